"""A client that a fork copies, as a server does that loads the application before it starts its workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..support.commands import SECONDS, check_no_traceback, run
from ..support.processes import Cluster, clean_environment

pytestmark = pytest.mark.timeout(120)

LOOPS = pytest.mark.parametrize("new_loop", ["asyncio.new_event_loop", "uvloop.new_event_loop"])

BEGIN = """
import asyncio, gc, os, sys
import uvloop, wsqueue

file, topic = sys.argv[1:]
loop = {new_loop}()
client = wsqueue.connect(file)
publish = client.publish

def fork(work):
    pid = os.fork()
    if not pid:
        try:
            print(work(), flush=True)
        except wsqueue.OwnerError as error:
            print(error, flush=True)
        sys.exit()  # as a process ends that did nothing special: with all its objects
    assert os.waitpid(pid, 0)[1] == 0
"""

UNUSED = """
def child(name):
    return loop.run_until_complete(publish(topic, name)) or "confirmed"

fork(lambda: child("one"))
fork(lambda: child("two"))
loop.run_until_complete(client.close())
"""

USED = """
async def begin():
    global messages
    messages = client.subscribe(topic)
    async with asyncio.timeout(20):
        await messages.__aenter__()
        await publish(topic, "before")
        assert (await anext(messages)).data == "before"

def drop():
    global client, messages, publish
    del client, messages, publish
    gc.collect()
    return loop.run_until_complete(asyncio.sleep(0.5)) or "dropped"

async def end():
    async with asyncio.timeout(20):
        client.publish_nowait(topic, *"abc")
        await publish(topic, "after")
        assert [(await anext(messages)).data for _ in range(4)] == ["a", "b", "c", "after"]
        await client.close()

loop.run_until_complete(begin())
fork(lambda: loop.run_until_complete(publish(topic, "in the same loop")))
fork(lambda: asyncio.run(publish(topic, "in another loop")))
fork(lambda: loop.run_until_complete(asyncio.sleep(0.5)) or "slept")
fork(drop)
fork(lambda: loop.close() or "closed")
loop.run_until_complete(end())
"""


def python(cluster: Cluster, directory: Path, program: str, topic: str) -> list[str]:
    """Run a program, and return the lines that it printed."""
    file = directory / "program.py"
    file.write_text(program)
    done = subprocess.run(
        [sys.executable, file, cluster.demo_file, topic],
        capture_output=True,
        timeout=SECONDS,
        check=False,
        env=clean_environment(),
    )
    error = done.stderr.decode()
    check_no_traceback(error)
    assert done.returncode == 0, error
    return done.stdout.decode().splitlines()


def stored(cluster: Cluster, topic: str) -> list[str]:
    result = run("subscribe", f"--config={cluster.demo_file}", "--from=earliest", "--no-follow", topic)
    assert result.code == 0
    return result.stdout.splitlines()


@LOOPS
def test_each_process_may_use_a_client_that_was_never_used(
    standing_cluster: Cluster, tmp_path: Path, topic: str, new_loop: str
) -> None:
    printed = python(standing_cluster, tmp_path, BEGIN.format(new_loop=new_loop) + UNUSED, topic)
    assert printed == ["confirmed", "confirmed"]
    assert stored(standing_cluster, topic) == ["one", "two"]


@LOOPS
def test_a_client_that_is_connected_stays_with_its_process(
    standing_cluster: Cluster, tmp_path: Path, topic: str, new_loop: str
) -> None:
    """The children end in various ways, and the parent notices nothing."""
    before = [node.counters()["connections"] for node in standing_cluster.nodes]
    printed = python(standing_cluster, tmp_path, BEGIN.format(new_loop=new_loop) + USED, topic)
    after = [node.counters()["connections"] for node in standing_cluster.nodes]
    sentence = (
        "the client was used before this process was forked, and belongs to the parent process: make another"
        " client with wsqueue.connect() in each process"
    )
    assert printed == [sentence, sentence, "slept", "dropped", "closed"]
    assert sum(after) == sum(before) + 2
    assert stored(standing_cluster, topic) == ["before", "a", "b", "c", "after"]
