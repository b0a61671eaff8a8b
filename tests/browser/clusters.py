"""Nodes that know of each other, as those of one configuration do."""

from __future__ import annotations

from typing import Any

from tests.integration.nodes import Nodes, RunningNode, free_port


async def cluster(
    nodes: Nodes, consumers: int = 2, **monitoring: Any
) -> tuple[list[RunningNode], RunningNode]:
    """Start consumers and a producer; the settings are those of [monitoring]."""
    producers = [f"127.0.0.1:{free_port()}"]
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(consumers)]
    monitoring |= {"producers": producers}
    settings = monitoring | {"consumers": addresses}
    started = [await nodes.consumer(port=port_of(one), monitoring=settings) for one in addresses]
    producer = await nodes.producer(started, port=port_of(producers[0]), monitoring=monitoring)
    await producer.ready()
    return started, producer


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def page_of(node: RunningNode) -> str:
    """Return the address of a node's status page."""
    return node.url("/").replace("ws:", "http:")
