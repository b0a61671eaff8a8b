"""The commands that keep and bring back a log, beside nodes that run."""

from __future__ import annotations

import itertools
import threading

import pytest

import wsqueue

from ..support.commands import Terminal, run
from ..support.processes import Cluster
from ..support.waiting import soon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


async def test_a_host_is_lost_and_restored(cluster: Cluster) -> None:
    """A backup of a consumer that is published to, and its loss, as publishers and subscribers see it."""
    cluster.start(1, 1, retention={"mode": "sqlite"})
    (consumer,) = cluster.consumers
    backup, log = cluster.directory / "backup", cluster.directory / "logs-1"
    stop = threading.Event()
    results = []

    def back_up() -> None:
        results.append(run("backup", consumer.file, backup))
        stop.set()

    async with soon(), cluster.client() as client, client.subscribe("news", on_gap="yield") as messages:
        thread = threading.Thread(target=back_up)
        await client.publish("news", "0")
        thread.start()
        for number in itertools.count(1):
            await client.publish("news", str(number))
            if stop.is_set():
                break
        thread.join()
        received = [await anext(messages) for _ in range(number + 1)]
        positions = [item.after for item in received if isinstance(item, wsqueue.Message)]
        assert len(positions) == number + 1
        (made,) = results
        assert (made.code, made.stderr) == (0, "")
        assert made.stdout.startswith(f"{backup}: ")
        there = int(made.stdout.split()[1].replace(",", ""))
        assert 1 <= there <= number + 1
        refused = run("restore", "--replace", backup, consumer.file)
        assert refused.code == 3
        assert "a consumer uses it; expected that it is stopped" in refused.error
        consumer.kill()
        refused = run("restore", backup, consumer.file)
        assert refused.code == 1
        assert "--replace sets it aside" in refused.error
        restored = run("restore", "--replace", backup, consumer.file)
        assert (restored.code, restored.stderr) == (0, "")
        assert f"The log that was there is {log}/archive.sqlite.replaced-" in restored.stdout
        consumer.start()
        # The publisher goes on, and the subscriber is told.
        await client.publish("news", "after")
        assert await anext(messages) == wsqueue.Gap("news", None)
        last = await anext(messages)
        assert isinstance(last, wsqueue.Message)
        assert (last.data, last.offset) == ("after", there)
        # One that was away is told too, although the backup has all that it had read.
        away = client.subscribe("news", start=positions[0], follow=False, on_gap="yield")
        items = [item async for item in away]
        assert items[0] == wsqueue.Gap("news", None)
        data = [item.data for item in items if isinstance(item, wsqueue.Message)]
        assert data == [*map(str, range(1, there)), "after"]


def test_a_consumer_that_keeps_its_log_in_memory(cluster: Cluster) -> None:
    cluster.start(1, 1, retention={"mode": "memory"})
    (consumer,) = cluster.consumers
    backup = cluster.directory / "backup"
    assert run("publish", "news", "kept", "--config", cluster.demo_file) == (0, "", "")
    refused = run("backup", consumer.file, backup)
    assert refused.code == 1
    assert "leaves a file here when it is stopped" in refused.error
    consumer.terminate()
    made = run("backup", consumer.file, backup)
    assert (made.code, made.stdout.partition(",")[0]) == (0, f"{backup}: 1 messages on 1 topics")
    restored = run("restore", "--replace", backup, consumer.file)
    assert restored.code == 0
    consumer.start()
    arguments = ("subscribe", "news", "--from", "earliest", "--count", "1", "--config", cluster.demo_file)
    assert run(*arguments).stdout.strip().endswith("kept")


def test_progress_is_shown_on_a_terminal_only(cluster: Cluster) -> None:
    cluster.start(1, 1, retention={"mode": "sqlite"})
    assert run("publish", "news", "kept", "--config", cluster.demo_file) == (0, "", "")
    log = cluster.directory / "logs-1"
    with Terminal("backup", log, cluster.directory / "one") as terminal:
        terminal.wait_for("checking the copy")
        terminal.wait_for("1 messages on 1 topics")
        assert terminal.end() == 0
    made = run("backup", log, cluster.directory / "two")
    assert (made.code, made.stderr) == (0, "")
    assert made.stdout.count("\n") == 1
