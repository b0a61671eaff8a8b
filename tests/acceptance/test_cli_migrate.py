"""The logs of consumers move to a NATS server, as publishers and subscribers see it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import wsqueue

from ..support.commands import Terminal, run
from ..support.nats_servers import NatsServers
from ..support.processes import Cluster, Node

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

TOPICS = [f"topic {number}" for number in range(8)]


def use_servers(node: Node, servers: NatsServers) -> None:
    """Write another configuration of a consumer, which it takes at its next start."""
    del node.settings["retention.directory"]
    table = servers.settings | {"name": "cluster", "streams": 2}
    node.settings["retention.mode"] = "jetstream"
    node.settings |= {f"retention.jetstream.{key}": value for key, value in table.items()}
    node.write()


async def test_a_cluster_moves_its_logs(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(2, 1, retention={"mode": "sqlite"})
    one, two = cluster.consumers
    (producer,) = cluster.producers
    async with asyncio.timeout(100), cluster.client() as client, NatsServers(tmp_path / "nats") as servers:
        for topic in TOPICS:
            await client.publish(topic, "0", "1", "2")
        read = {}
        for topic in TOPICS:
            async with client.subscribe(topic, start="earliest") as messages:
                read[topic] = [await anext(messages) for _ in range(2)][-1].after
        logs = [cluster.directory / f"logs-{number}" for number in (1, 2)]
        arguments: tuple[str | Path, ...] = ("migrate", one.file, "--from", logs[0], "--from", logs[1])
        refused = run(*arguments)
        assert (refused.code, refused.stdout) == (3, "")
        assert (
            "retention.mode: the mode is sqlite; expected jetstream, with the servers that" in refused.error
        )
        use_servers(one, servers)
        refused = run(*arguments)
        assert (refused.code, refused.stdout) == (3, "")
        assert refused.error.endswith("logs-1: a consumer uses it; expected that it is stopped")
        copy = cluster.directory / "copy"
        copy.mkdir()
        assert run("backup", logs[0], copy / "archive.sqlite").code == 0
        checked = run("migrate", one.file, "--from", copy, "--check")
        assert (checked.code, checked.stderr) == (0, "")
        assert "can be moved to the NATS servers." in checked.stdout
        # Publishing goes on at the producer, and its messages wait there.
        one.terminate()
        two.terminate()
        client.publish_nowait(TOPICS[0], "3")
        checked = run(*arguments, "--check")
        assert (checked.code, checked.stderr) == (0, "")
        assert checked.stdout.startswith("24 messages (")
        assert checked.stdout.endswith(") on 8 topics can be moved to the NATS servers.\n")
        with Terminal(*arguments) as terminal:
            terminal.wait_for("asking the NATS servers")
            terminal.wait_for(") on 8 topics moved to the NATS servers.")
            assert terminal.end() == 0
        again = run(*arguments)
        assert (again.code, again.stdout.splitlines()[1:]) == (0, ["8 topics had been moved before."])
        use_servers(two, servers)
        for node in (one, two):
            node.start()
        await client.flush()
        for topic in TOPICS:
            async with client.subscribe(topic, start=read[topic], on_gap="yield") as messages:
                item = await anext(messages)
                assert isinstance(item, wsqueue.Message)
                assert (item.data, item.offset) == ("2", 2)
                if topic == TOPICS[0]:
                    item = await anext(messages)
                    assert isinstance(item, wsqueue.Message)
                    assert (item.data, item.offset) == ("3", 3)
        refused = run(*arguments)
        assert (refused.code, refused.stdout) == (1, "")
        assert "the NATS servers have messages of the topic 'topic " in refused.error
        producer.terminate()
        one.terminate()
        for arguments in (("backup", one.file, "x"), ("restore", logs[1] / "archive.sqlite", one.file)):
            refused = run(*arguments)
            assert (refused.code, refused.stdout) == (3, "")
            expected = f"retention.mode: the log is on the NATS servers: {servers.urls[0]}; expected the mode"
            assert expected in refused.error
