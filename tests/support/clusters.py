"""Nodes that know of each other, as those of one configuration do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.nodes import Nodes, RunningNode
from tests.support.ports import free_port


async def cluster(
    nodes: Nodes,
    consumers: int = 2,
    tls: dict[str, Any] | None = None,
    clients: Sequence[dict[str, Any]] = (),
    **monitoring: Any,
) -> tuple[list[RunningNode], RunningNode]:
    """Start consumers and a producer; the other settings are those of [monitoring]."""
    scheme = "wss://" if tls is not None else ""
    settings: dict[str, Any] = {"tls": tls} if tls is not None else {}
    settings |= {"clients": list(clients)} if clients else {}
    producers = [f"{scheme}127.0.0.1:{free_port()}"]
    addresses = [f"{scheme}127.0.0.1:{free_port()}" for _ in range(consumers)]
    monitoring |= {"producers": producers}
    known = monitoring | {"consumers": addresses}
    started = [await nodes.consumer(listen=[one], monitoring=known, **settings) for one in addresses]
    producer = await nodes.producer(started, listen=producers, monitoring=monitoring, **settings)
    await producer.ready()
    return started, producer


def page_of(node: RunningNode) -> str:
    """Return the address of a node's status page."""
    return node.url("/").replace("ws", "http", 1)
