"""A log that consumers share, on hosts with real systemd: three with a NATS server and a consumer each.

The tests build on each other, in the order of this file. They run only with WSQUEUE_WHOLE_LAB=1 in the
environment. Their figures are in docs/guarantees.md; `pytest -s` prints them.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..support import control_node
from ..support.labs import BIN, OwnLab, build
from ..support.waiting import wait_until
from .cluster import VERIFIED, needs_time, recap

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(1500), needs_time]

HOSTS = ("node1", "node2", "node3", "node4", "demo1")
FIRST, LATER = ("node1", "node2", "node3"), ("node1", "node4", "node3")
"""The hosts of the log before and after one of them is replaced."""
LOST = "node2"
"""This host has a NATS server, a consumer and a producer."""
VERSION = "0.1.0"
REPLACE = "ansible/playbooks/replace_consumer.yml"

# Publishes until standard input ends, 500 messages a second through two producers, and listens with two
# clients. Then it reads the whole log anew, and prints the results as JSON.
LOAD = """
import asyncio, json, sys, time
import wsqueue
from wsqueue.client import client as module
RATE, WINDOW, PUBLISHERS = 500, 4000, 2
TOPICS = [f"{sys.argv[1]}/{number}" for number in range(16)]

def pause(times):
    times = sorted(times)
    gaps = [(after - before, before) for before, after in zip(times, times[1:])]
    return max(gaps, default=(0.0, 0.0))

def worst(pairs):
    'Return the worst pause of all topics together, and of one topic, each with its begin.'
    of_topics = {}
    for topic, at in pairs:
        of_topics.setdefault(topic, []).append(at)
    alone = max(map(pause, of_topics.values()), default=(0.0, 0.0))
    return [[round(length, 2), round(at - START, 1)] for length, at in (pause(at for _, at in pairs), alone)]

def judge(heard, confirmed, attempted):
    chains = {}
    for topic, publisher, number in heard:
        chains.setdefault((topic, publisher), []).append(number)
    found = set(heard)
    return {
        "count": len(heard),
        "lost": len(confirmed - found),
        "twice": len(heard) - len(found),
        "overtaken": sum(b < a for numbers in chains.values() for a, b in zip(numbers, numbers[1:])),
        "unknown": len(found - attempted),
    }

async def main():
    stopped = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    attempted, confirmed, confirmations, errors, late = set(), set(), [[], []], [], [0.0, 0.0]
    heard, deliveries = [[], []], [[], []]

    async def take(index, messages):
        async for message in messages:
            publisher, number = message.data.split()
            heard[index].append((message.topic, int(publisher), int(number)))
            deliveries[index].append((message.topic, time.monotonic()))

    async def one(client, publisher, topic, number, window):
        begin = time.monotonic()
        attempted.add((topic, publisher, number))
        try:
            await client.publish(topic, f"{publisher} {number}")
        except wsqueue.WsqueueError as error:
            errors.append(f"{time.monotonic() - START:.1f}: {type(error).__name__}: {error}")
        else:
            confirmed.add((topic, publisher, number))
            now = time.monotonic()
            confirmations[publisher].append((topic, now))
            late[publisher] = max(late[publisher], now - begin)
        window.release()

    async def publish(client, publisher, tasks):
        window, number, due = asyncio.Semaphore(WINDOW), 0, time.monotonic()
        while not stopped.done():
            await window.acquire()
            tasks.create_task(one(client, publisher, TOPICS[number % len(TOPICS)], number, window))
            number += 1
            # Time that was lost is not made up for, but for a tenth of a second.
            due = max(due + PUBLISHERS / RATE, time.monotonic() - 0.1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    clients = [wsqueue.connect("/etc/wsqueue/demo.toml") for _ in range(4)]
    subscriptions = [client.subscribe(*TOPICS) for client in clients[2:]]
    for subscription in subscriptions:
        await subscription.__aenter__()
    taking = [asyncio.create_task(take(*pair)) for pair in enumerate(subscriptions)]
    # Each publisher begins at a producer of its own.
    for publisher, client in enumerate(clients[:2]):
        module.random.randrange = lambda count, publisher=publisher: publisher % count
        client._publishing()
    print("started", flush=True)
    async with asyncio.TaskGroup() as tasks:
        for publisher in range(PUBLISHERS):
            tasks.create_task(publish(clients[publisher], publisher, tasks))
    end = time.monotonic()
    while min(map(len, heard)) < len(confirmed) and time.monotonic() < end + 30:
        await asyncio.sleep(0.05)
    # Whatever came twice would come by then.
    await asyncio.sleep(1)
    broken = [str(task.exception()) for task in taking if task.done()]
    for task in taking:
        task.cancel()
    read = []
    async with wsqueue.connect("/etc/wsqueue/demo.toml") as client:
        async for message in client.subscribe(*TOPICS, start="earliest", follow=False):
            publisher, number = message.data.split()
            read.append((message.topic, int(publisher), int(number)))
    print(json.dumps({
        "seconds": round(end - START),
        "attempted": len(attempted),
        "confirmed": len(confirmed),
        "errors": errors[:5],
        "error_count": len(errors),
        "broken": broken,
        "subscribers": [judge(one, confirmed, attempted) for one in heard],
        "log": judge(read, confirmed, attempted),
        "latest": [round(seconds, 2) for seconds in late],
        # Of the publishers together, and of each.
        "confirmations": [worst(confirmations[0] + confirmations[1]), *map(worst, confirmations)],
        "deliveries": [worst(one) for one in deliveries],
    }), flush=True)

START = time.monotonic()
asyncio.run(main())
"""


class SharedLog:
    """Hosts, their inventory, and loads on them."""

    def __init__(self, lab: OwnLab, directory: Path, zipapp: Path) -> None:
        self.lab, self.directory, self.zipapp = lab, directory, zipapp
        engine = BIN / "nats-server"
        self._variables: dict[str, Any] = self.lab.variables | {
            "wsqueue_psk": secrets.token_urlsafe(32),
            "wsqueue_node_psk": secrets.token_urlsafe(32),
            "wsqueue_tls": True,
            "wsqueue_tls_directory": str(directory / "tls"),
            "wsqueue_ca_passphrase": secrets.token_urlsafe(32),
            "wsqueue_consumer_retention": {"mode": "jetstream", "max_bytes": 2**28},
            "wsqueue_engine_package": str(engine),
            "wsqueue_engine_sha256": hashlib.sha256(engine.read_bytes()).hexdigest(),
            "wsqueue_engine_password": secrets.token_urlsafe(32),
            "wsqueue_engine_node_password": secrets.token_urlsafe(32),
            "wsqueue_release_zipapp": str(zipapp),
            "wsqueue_release_other_sources": True,
        }

    @property
    def file(self) -> Path:
        return self.directory / "hosts.yml"

    def inventory(self, engine: Sequence[str], consumers: Sequence[str] = ()) -> None:
        """Write the inventory. The first two hosts have producers, and all have consumers by default."""
        groups = {
            "engine": engine,
            "consumers": consumers or engine,
            "producers": engine[:2],
            "demo": ["demo1"],
        }
        children = {
            group: {"hosts": {host: {"ansible_host": self.lab.address(host)} for host in names}}
            for group, names in groups.items()
        }
        # JSON is YAML.
        self.file.write_text(json.dumps({"all": {"children": children, "vars": self._variables}}))
        self.file.chmod(0o600)

    def play(self, *arguments: str) -> str:
        start = time.monotonic()
        result = control_node.try_to_run("ansible-playbook", "-i", self.file, *arguments, timeout=900)
        print(f"{' '.join(arguments)}: {time.monotonic() - start:.0f} s")
        assert result.returncode == 0, result.stdout[-20_000:]
        return result.stdout

    def interface(self, host: str) -> str:
        """Return the interface of this machine that leads to a host."""
        return f"{self.lab.bridge}-{self.lab.address(host).rpartition('.')[2]}"

    def connect(self, host: str, state: str) -> None:
        subprocess.run(["ip", "link", "set", self.interface(host), state], check=True)

    def part(self, host: str, others: Sequence[str], action: str) -> None:
        """Let no packet between a host and some others get through (`add`), or let all through (`del`)."""
        for here, there in [(host, other) for other in others] + [(other, host) for other in others]:
            self.lab.ssh(here, f"ip route {action} blackhole {self.lab.address(there)}/32")

    def power_off(self, host: str) -> None:
        """End a host at once: no process says goodbye, and no kernel closes its connections."""
        self.connect(host, "down")
        groups = [
            path
            for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
            if (path / f"wsqueue-lab-{self.lab.bridge}" / host / "cgroup.kill").exists()
        ]
        assert len(groups) == 1
        (groups[0] / f"wsqueue-lab-{self.lab.bridge}" / host / "cgroup.kill").write_text("1")
        wait_until(
            lambda: re.search(rf"^{host} .* broken$", self.lab.run("status"), re.MULTILINE), "it is off"
        )

    def log_report(self, host: str) -> str:
        """Return the findings of doctor about a consumer, in one line."""
        release = "PYTHONPATH=/opt/wsqueue/current/site-packages python3 -m wsqueue"
        told = self.lab.try_to("ssh", host, f"{release} doctor /etc/wsqueue/consumer-10001.toml").stdout
        return " ".join(told.split())

    def is_whole(self, host: str) -> bool:
        """Return True if each stream has three replicas that are reached."""
        return re.search(r"9 streams with .*, each on 3 servers", self.log_report(host)) is not None

    @contextmanager
    def load(self, name: str) -> Iterator[dict[str, Any]]:
        """Publish and subscribe on the demo host; the result that it yields is empty until the block ends."""
        # The real path, which stays when the link moves.
        release = self.lab.ssh("demo1", "readlink -f /opt/wsqueue/current")
        self.lab.ssh("demo1", "cat >/tmp/load.py", stdin=LOAD)
        result: dict[str, Any] = {}
        command = f"PYTHONPATH={release}/site-packages exec python3 /tmp/load.py {name}-{time.time():.0f}"
        with self.lab.running("demo1", command) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            time.sleep(5)
            yield result
            time.sleep(5)
            assert process.poll() is None, process.stdout.read()
            shown, _ = process.communicate(timeout=120)
            assert process.returncode == 0, shown
            [line] = [line for line in shown.splitlines() if line.startswith("{")]
            result |= json.loads(line)
            print(f"{name}: {json.dumps(result)}")


def assert_nothing_is_lost(result: dict[str, Any]) -> None:
    assert result["error_count"] == 0, result["errors"]
    assert result["broken"] == []
    assert result["confirmed"] == result["attempted"] > 1000
    for heard in (*result["subscribers"], result["log"]):
        assert heard == {
            "count": result["confirmed"],
            "lost": 0,
            "twice": 0,
            "overtaken": 0,
            "unknown": 0,
        }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedLog]:
    lab = OwnLab(tmp_path_factory.mktemp("lab"), HOSTS, first="wsqs", net=90)
    try:
        lab.up()
        zipapp = build(tmp_path_factory.mktemp("source"), VERSION)
        shared = SharedLog(lab, tmp_path_factory.mktemp("rollout"), zipapp)
        shared.inventory(FIRST)
        yield shared
    finally:
        lab.down()


def test_all_is_rolled_out_together(shared: SharedLog) -> None:
    shared.play("ansible/playbooks/ca.yml")
    assert VERIFIED.search(shared.play("site.yml"))
    assert shared.is_whole("node1"), shared.log_report("node1")
    output = shared.play("site.yml")
    assert VERIFIED.search(output)
    counts = recap(output)
    assert {host: one["changed"] for host, one in counts.items()} == dict.fromkeys(counts, 0)
    assert set(counts) >= {*FIRST, "demo1"}


def test_a_host_is_cut_off_for_a_while(shared: SharedLog) -> None:
    """With its consumer, its producer and its NATS server, from all others and the clients."""
    with shared.load("cut") as result:
        shared.connect("node2", "down")
        time.sleep(30)
        shared.connect("node2", "up")
        time.sleep(30)
    assert_nothing_is_lost(result)
    wait_until(lambda: shared.is_whole("node2"), "all servers have all", 60)


def test_a_consumer_is_on_the_minority_side(shared: SharedLog) -> None:
    """Its host and the others don't reach each other, and the clients reach all of them."""
    with shared.load("minority") as result:
        shared.part("node2", ["node1", "node3"], "add")
        time.sleep(30)
        shared.part("node2", ["node1", "node3"], "del")
        time.sleep(30)
    assert_nothing_is_lost(result)
    wait_until(lambda: shared.is_whole("node2"), "all servers have all", 60)


def test_a_host_is_lost_for_good(shared: SharedLog) -> None:
    """Its disk was in memory, and those of the others lose no power."""
    with shared.load("off") as result:
        shared.power_off(LOST)
        time.sleep(40)
    assert_nothing_is_lost(result)
    # A server counts as reached for 15 seconds.
    assert "2 of 3 servers that keep a part of the log can be reached" in shared.log_report("node1")


def test_the_lost_host_is_replaced(shared: SharedLog) -> None:
    shared.inventory(LATER)
    with shared.load("replaced") as result:
        shared.play("ansible/playbooks/ca.yml")
        assert VERIFIED.search(shared.play(REPLACE, "-e", f"wsqueue_engine_lost={LOST}"))
    assert_nothing_is_lost(result)
    wait_until(lambda: shared.is_whole("node1"), "the new server has all", 60)
    assert f"{LOST} " not in shared.log_report("node1").rpartition("The log has")[2]


def test_consumers_go_and_come_under_load(shared: SharedLog) -> None:
    """Subscribers have the list from before."""
    shared.inventory(LATER, consumers=["node1", "node3"])
    with shared.load("fewer") as result:
        output = shared.play("site.yml", "-e", '{"wsqueue_retired": ["consumer-10001"]}')
        assert VERIFIED.search(output)
    assert_nothing_is_lost(result)
    shared.inventory(LATER)
    with shared.load("more") as result:
        assert VERIFIED.search(shared.play("site.yml"))
    assert_nothing_is_lost(result)
