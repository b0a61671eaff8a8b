"""Clients that cannot ping, such as browsers, ask whether a node is there."""

from __future__ import annotations

import pytest

from ..support.nodes import KEY, Nodes, RunningNode
from ..support.raw_v2_peer import V2Socket
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

PATHS = ["/produce", "/producer", "/subscribe", "/subscribe/news", "/status"]


def node_of(path: str, consumer: RunningNode, producer: RunningNode) -> RunningNode:
    return producer if path == "/produce" else consumer


@pytest.mark.parametrize("path", PATHS)
async def test_every_endpoint_answers(nodes: Nodes, path: str) -> None:
    node = node_of(path, *await nodes.cluster())
    async with soon(), V2Socket.speaking(node.address, path, KEY) as raw:
        for _ in range(2):
            raw.send({"t": "ask_alive"})
            assert await raw.packet() == {"t": "alive"}


async def test_a_node_that_does_not_read_says_so_itself(nodes: Nodes) -> None:
    """Its pings show no script that it is there, and the question waits unread."""
    _, producer = await nodes.cluster(ping_interval_seconds=0.2, ping_timeout_seconds=0.2)
    async with soon(), V2Socket.speaking(producer.address, "/produce", KEY) as raw:
        raw.send({"t": "ask_alive"})
        assert await raw.next("alive") == {"t": "alive"}
        (connection,) = await eventually(lambda: list(producer.connections), "it is there")
        connection.pause_reading()
        raw.send({"t": "ask_alive"})
        for _ in range(3):
            assert await raw.next("alive") == {"t": "alive"}
        connection.resume_reading()
