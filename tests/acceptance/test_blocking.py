"""The blocking client: from threads, across forks, interrupted, and in the programs of docs/blocking.md."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsqueue
import wsqueue.sync
from wsqueue.net.credential import Renew
from wsqueue.sync.subscription import MAX_ITEMS

from ..support.documents import code_blocks
from ..support.paths import ROOT
from ..support.processes import Cluster, clean_environment

pytestmark = pytest.mark.timeout(120)

SECONDS = 30.0
BLOCKS = code_blocks(ROOT / "docs" / "blocking.md", "python")


@pytest.fixture
def client(standing_cluster: Cluster) -> Iterator[wsqueue.sync.Client]:
    with wsqueue.sync.connect(standing_cluster.demo_file) as client:
        yield client


def test_messages_in_order_and_the_end(client: wsqueue.sync.Client, topic: str) -> None:
    data = [f"message {number}" for number in range(MAX_ITEMS + 10)]
    client.publish(topic, *data[:-1], headers={"trace": "t"})
    client.publish_nowait(topic, b"bytes")
    client.flush(timeout=SECONDS)
    assert client.confirmed == len(data)
    with client.subscribe(topic, start="earliest", follow=False) as messages:
        found = list(messages)
        assert [message.data for message in found] == [*data[:-1], b"bytes"]
        assert found[0].headers == {"trace": "t"}
        with pytest.raises(EOFError, match="has ended"):
            messages.get()


def test_a_message_that_comes_after_the_timeout_is_not_lost(client: wsqueue.sync.Client, topic: str) -> None:
    with client.subscribe(topic) as messages:
        for number in range(20):
            with pytest.raises(TimeoutError, match=f"no message of '{topic}' came within 0.001 s"):
                messages.get(timeout=0.001)
            client.publish(topic, str(number))
            with contextlib.suppress(TimeoutError):
                assert messages.get(timeout=0).data == str(number)
                continue
            assert messages.get(timeout=SECONDS).data == str(number)


def test_a_prefix(client: wsqueue.sync.Client, topic: str) -> None:
    with client.subscribe(prefix=topic) as messages:
        for name in (topic, f"{topic}/new"):
            client.publish(name, "x")
            assert messages.get(timeout=SECONDS).topic == name


def test_errors_are_those_of_the_other_client(client: wsqueue.sync.Client, topic: str) -> None:
    with pytest.raises(wsqueue.InvalidMessage):
        client.publish(topic, "x" * 2**21)
    with pytest.raises(wsqueue.InvalidMessage, match="no topic"):
        client.subscribe()
    with pytest.raises(ValueError, match="prefetch is 0"):
        client.subscribe(topic, group="g", prefetch=0)
    with pytest.raises(TypeError, match="nonsense"):
        client.subscribe(topic, nonsense=1)  # type: ignore[call-overload]
    with pytest.raises(wsqueue.ConfigError, match="empty"):
        wsqueue.sync.connect(producers=["a:1/produce"], consumers=["a:2/subscribe"], psk="")
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.publish(topic, "x")


def test_a_node_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        client = wsqueue.sync.connect(
            producers=[f"{address}/produce"], consumers=[f"{address}/subscribe"], psk="k", open_seconds=1
        )
        with pytest.raises(TimeoutError, match=r"the messages on 'news' were not confirmed within 0.1 s"):
            client.publish("news", "x", timeout=0.1)
        with pytest.raises(TimeoutError, match=r"not all messages were confirmed within 0.1 s"):
            client.flush(timeout=0.1)
        with pytest.raises(wsqueue.ConnectError):
            client.publish("news", "x")
        with pytest.raises(wsqueue.ConnectError):
            client.subscribe("news").get()
        client.close()


def publish_each(client: wsqueue.sync.Client, topic: str, data: list[str]) -> None:
    for one in data:
        client.publish(topic, one)


def test_threads_share_a_client_and_a_subscription(client: wsqueue.sync.Client, topic: str) -> None:
    came: list[object] = []
    wanted = [f"{name} {number}" for name in "abc" for number in range(50)]
    with client.subscribe(topic) as messages:
        readers = [
            threading.Thread(target=lambda: came.extend(message.data for message in messages))
            for _ in range(3)
        ]
        writers = [
            threading.Thread(target=publish_each, args=(client, topic, part))
            for part in (wanted[:50], wanted[50:100], wanted[100:])
        ]
        for thread in readers + writers:
            thread.start()
        for writer in writers:
            writer.join(SECONDS)
        while len(came) < len(wanted):
            time.sleep(0.01)
    for reader in readers:
        reader.join(SECONDS)
        assert not reader.is_alive()
    assert sorted(map(str, came)) == sorted(wanted)


def test_a_timeout_counts_while_another_thread_waits(client: wsqueue.sync.Client, topic: str) -> None:
    came: list[object] = []
    with client.subscribe(topic) as messages:
        reader = threading.Thread(target=lambda: came.append(messages.get(timeout=SECONDS).data))
        reader.start()
        for timeout in (0.0, 0.2):
            with pytest.raises(TimeoutError, match=f"no message of '{topic}' came within {timeout:g} s"):
                messages.get(timeout=timeout)
        assert reader.is_alive()
        client.publish(topic, "one")
        reader.join(SECONDS)
    assert came == ["one"]


def test_outcomes_of_a_group(client: wsqueue.sync.Client, topic: str) -> None:
    client.publish(topic, "one", "two", "three")
    with client.subscribe(topic, group="g", lease_seconds=20) as jobs:
        one, two, three = (jobs.get(timeout=SECONDS) for _ in range(3))
        assert (one.data, one.deliveries, one.offset) == ("one", 1, 0)
        one.extend()
        one.done()
        two.again()
        three.reject("it is a test")
        again = jobs.get(timeout=SECONDS)
        assert (again.data, again.deliveries) == ("two", 2)
        again.done_nowait()
        jobs.flush()
        with pytest.raises(TimeoutError):
            jobs.get(timeout=0.2)
    letters = client.subscribe(f"{topic}!g!dead", start="earliest", follow=False)
    assert [letter.headers["dead-reason"] for letter in letters] == ["it is a test"]


@pytest.mark.parametrize("auto_done", [True, False])
def test_a_reader_goes_on_where_it_was(client: wsqueue.sync.Client, topic: str, auto_done: bool) -> None:
    client.publish(topic, "one", "two", "three")
    with client.subscribe(topic, reader="r", auto_done=auto_done) as messages:
        message = messages.get(timeout=SECONDS)
        assert message.data == "one"
        if auto_done:
            messages.get(timeout=SECONDS)
        else:
            message.done_nowait()
        messages.flush()
    with client.subscribe(topic, reader="r") as messages:
        found = messages.get(timeout=SECONDS)
        assert found.data == "two"
        found.done()


def test_a_call_of_a_function_that_renews_tokens_is_refused(standing_cluster: Cluster) -> None:
    clients: list[wsqueue.sync.Client] = []

    def renew() -> str:
        clients[0].publish("news", "x")
        return ""

    clients.append(wsqueue.sync.connect(standing_cluster.demo_file, token=renew, open_seconds=1))
    with pytest.raises(wsqueue.ConnectError, match="would wait for itself"):
        clients[0].publish("news", "x")
    with contextlib.suppress(wsqueue.ConnectError):
        clients[0].close()


def test_a_function_that_renews_tokens_keeps_nobody_waiting(
    client: wsqueue.sync.Client, standing_cluster: Cluster, topic: str
) -> None:
    goes_on = threading.Event()

    def hang() -> str:
        goes_on.wait(SECONDS)
        return "no token"

    with contextlib.suppress(wsqueue.ConnectError), contextlib.ExitStack() as stack:
        waiting = stack.enter_context(wsqueue.sync.connect(standing_cluster.demo_file, token=hang))
        with pytest.raises(TimeoutError, match=r"not confirmed within 0.1 s"):
            waiting.publish(topic, "x", timeout=0.1)
        client.publish(topic, "x", timeout=SECONDS / 2)
        assert not goes_on.is_set()
        goes_on.set()


async def leave_later() -> str:
    sys.exit("no backend")


def leave() -> str:
    sys.exit("no backend")


def stop() -> str:
    raise StopIteration("no backend")


def interrupt() -> str:
    raise KeyboardInterrupt


@pytest.mark.parametrize("renew", [leave, leave_later, stop, interrupt])
def test_a_function_that_renews_tokens_fails_for_its_client_alone(
    client: wsqueue.sync.Client, standing_cluster: Cluster, topic: str, renew: Renew
) -> None:
    fails = wsqueue.sync.connect(standing_cluster.demo_file, token=renew, open_seconds=1)
    with pytest.raises(wsqueue.ConnectError, match=r"has brought no token: .*"):
        fails.publish(topic, "x")
    fails.close(confirm=False)
    client.publish(topic, "x", timeout=SECONDS)


def run(cluster: Cluster, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that has the file of the cluster as its first argument."""
    done = subprocess.run(
        [sys.executable, "-c", program, cluster.demo_file, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=clean_environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done


FORKS = """
import os, sys, wsqueue, wsqueue.sync
file, topic = sys.argv[1:]
client = wsqueue.sync.connect(file)
secret = wsqueue.sync.connect(file, publisher_secret=bytes(31) + b"x")
client.publish(topic, "parent")
secret.publish(topic + "-ids", "parent", id=1)
messages = client.subscribe(topic)
messages.__enter__()

def child(depth):
    counted = [client.confirmed, secret.confirmed]
    client.publish(topic, f"child {depth}")
    assert [*counted, client.confirmed] == [0, 0, 1], (counted, client.confirmed)
    for refused in (messages.get, lambda: secret.publish(topic + "-ids", "child", id=2)):
        try:
            refused()
            raise SystemExit("it was not refused")
        except wsqueue.OwnerError:
            pass
    if depth < 3:
        fork(depth + 1)

def fork(depth):
    pid = os.fork()
    if not pid:
        child(depth)
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0

fork(1)
print([messages.get(timeout=20).data for _ in range(3)])
client.publish(topic, "still here")
print(messages.get(timeout=20).data)
secret.publish(topic + "-ids", "parent", id=2)
assert [client.confirmed, secret.confirmed] == [2, 2]
"""


def test_each_forked_process_has_connections_of_its_own(standing_cluster: Cluster, topic: str) -> None:
    """The programs end without closing anything, and in silence."""
    done = run(standing_cluster, FORKS, topic)
    assert done.stdout.splitlines() == ["['child 1', 'child 2', 'child 3']", "still here"]


WITHOUT_AT_FIRST = """
import os, resource, sys, threading, wsqueue.sync
file, topic = sys.argv[1:]
client = wsqueue.sync.connect(file)
# The loop that asyncio cannot make complains when it is collected.
sys.unraisablehook = lambda _: None

def publish():
    try:
        client.publish(topic, "x", timeout=20)
    except (OSError, RuntimeError) as error:
        print(error)

resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
files = []
try:
    while True:
        files.append(os.dup(0))
except OSError:
    publish()
for file in files:
    os.close(file)

start = threading.Thread.start

def refuse(thread):
    threading.Thread.start = start
    raise RuntimeError("can't start new thread")

threading.Thread.start = refuse
publish()
publish()
print(client.confirmed)
"""


def test_a_first_call_without_files_or_threads_is_no_last_one(standing_cluster: Cluster, topic: str) -> None:
    done = run(standing_cluster, WITHOUT_AT_FIRST, topic)
    assert done.stdout.splitlines() == ["[Errno 24] Too many open files", "can't start new thread", "1"]


UNCLOSED = """
import atexit, sys, threading
file, topic = sys.argv[1:]

def late():
    try:
        client.publish(topic, "late")
    except RuntimeError as error:
        print(error)

# The function that is registered first is called last.
atexit.register(late)
import wsqueue.sync

def read():
    print(messages.get().data)
    reading.set()
    for message in messages:
        pass

def write():
    while True:
        client.publish(topic, "x")

client = wsqueue.sync.connect(file)
messages = client.subscribe(topic, start="earliest")
reading = threading.Event()
client.publish(topic, "first")
for options in ({"group": "g"}, {"reader": "r"}):
    client.subscribe(topic, **options).__enter__()
threading.Thread(target=read, daemon=True).start()
threading.Thread(target=write, daemon=True).start()
reading.wait()
client.publish_nowait(topic, "unconfirmed")
"""


def test_a_process_ends_in_silence_with_calls_under_way(standing_cluster: Cluster, topic: str) -> None:
    """Its daemon threads wait in calls, and end with it."""
    done = run(standing_cluster, UNCLOSED, topic)
    assert done.stdout.splitlines() == [
        "first",
        "the process ends, and its clients are gone: use them before that",
    ]


LOOKING = """
import asyncio, socket, sys, threading, wsqueue, wsqueue.sync

def getaddrinfo(host, *place, flags=0, **options):
    if flags:
        raise socket.gaierror
    print("asked", flush=True)
    threading.Event().wait()

socket.getaddrinfo = getaddrinfo
nodes = {"producers": ["node.example:1/produce"], "consumers": ["node.example:2/subscribe"], "psk": "k"}

async def publish():
    async with asyncio.timeout(0.1):
        await wsqueue.connect(**nodes).publish("news", "x")

try:
    if sys.argv[2] == "sync":
        wsqueue.sync.connect(**nodes).publish("news", "x", timeout=0.1)
    elif sys.argv[2] == "asyncio":
        asyncio.run(publish())
    else:
        import uvloop
        uvloop.run(publish())
except TimeoutError:
    print("late")
"""


@pytest.mark.parametrize("loop", ["sync", "asyncio", "uvloop"])
def test_the_end_of_a_process_does_not_wait_for_a_resolver(standing_cluster: Cluster, loop: str) -> None:
    assert run(standing_cluster, LOOKING, loop).stdout.splitlines() == ["asked", "late"]


INTERRUPTED = """
import sys, wsqueue.sync
file, topic = sys.argv[1:]
with wsqueue.sync.connect(file) as client, client.subscribe(topic) as messages:
    try:
        print("ready", flush=True)
        messages.get()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    client.publish(topic, "kept")
    print(messages.get(timeout=20).data)
"""


def test_ctrl_c_ends_a_call_and_no_more(standing_cluster: Cluster, topic: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, standing_cluster.demo_file, topic],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=SECONDS)[0].splitlines() == ["interrupted", "kept"]
    assert process.returncode == 0


@contextlib.contextmanager
def program(cluster: Cluster, part: str, ending: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run the block that has a part, where it expects its cluster, and end it."""
    (block,) = (block for block in BLOCKS if part in block)
    home = Path(cluster.directory) / "home"
    if not home.exists():
        home.mkdir()
        (home / "cluster").symlink_to(cluster.directory)
    process = subprocess.Popen(
        [sys.executable, "-c", block + ending],
        cwd=home,
        env=clean_environment(PYTHONPATH=os.fspath(ROOT), PYTHONUNBUFFERED=""),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_the_script_of_the_document(cluster: Cluster) -> None:
    cluster.start(1, 1)
    with program(cluster, "for message in") as process:
        assert process.communicate(timeout=SECONDS)[0].splitlines() == ["one", "two"]


REQUESTS = """
with app.test_client() as browser:
    print(browser.post("/orders", data="a book").status, flush=True)
import os, sys
pid = os.fork()  # as gunicorn does with preload_app
if not pid:
    with app.test_client() as browser:
        print(browser.post("/orders", data="a pen").status)
    sys.exit()
os.waitpid(pid, 0)
"""


def test_the_web_application_of_the_document(cluster: Cluster) -> None:
    cluster.start(1, 1)
    with program(cluster, "flask", REQUESTS) as process:
        assert process.communicate(timeout=SECONDS)[0].splitlines() == ["202 ACCEPTED", "202 ACCEPTED"]
    with wsqueue.sync.connect(cluster.demo_file) as client:
        orders = client.subscribe("orders", start="earliest", follow=False)
        assert [order.data for order in orders] == ["a book", "a pen"]


def test_the_workers_of_the_document(cluster: Cluster) -> None:
    cluster.start(1, 1)
    with program(cluster, "multiprocessing") as process, wsqueue.sync.connect(cluster.demo_file) as client:
        client.publish("orders", *map(str, range(20)))
        assert process.stdout is not None
        billed = {process.stdout.readline().strip() for _ in range(21)}
        assert billed == {
            "billed the first, before there are workers",
            *(f"billed {number}" for number in range(20)),
        }
