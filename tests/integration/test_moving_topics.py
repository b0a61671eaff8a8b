"""A producer whose list of consumers changes while batches are under way: none is lost, or overtaken."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ..support.classic_peer import topic_of
from ..support.nodes import KEY, Nodes, RunningNode
from ..support.ports import free_port
from ..support.raw_peer import RawServer
from ..support.raw_v2_peer import V2Server, V2Socket, new_secret, publish_of
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

TOPIC = topic_of(1, 2)
"""Its consumer is the second of two."""


async def use(producer: RunningNode, *addresses: str) -> None:
    """Change the list of consumers."""
    producer.write(consumers=Nodes.addresses(addresses, "/producer"))
    await producer.service.reload()


@contextlib.asynccontextmanager
async def publisher_at(producer: RunningNode) -> AsyncIterator[V2Socket]:
    async with V2Socket.speaking(producer.address, "/produce", KEY) as publisher:
        publisher.send(new_secret())
        yield publisher


async def forwarded(link: V2Socket) -> tuple[list[int], int]:
    """Return the numbers of the next batches at a consumer, and the number before them."""
    packet: dict[str, Any] = await link.next("forward")
    return packet["numbers"], packet["after"]


async def test_what_is_under_way_goes_to_the_new_consumer_first(nodes: Nodes) -> None:
    async with soon(), V2Server() as first, V2Server() as second:
        producer = await nodes.producer([first.address])
        old = await first.speaking(KEY)
        async with publisher_at(producer) as publisher:
            publisher.send(publish_of(1, TOPIC, "1"))
            assert await forwarded(old) == ([1], 0)
            await use(producer, first.address, second.address)
            publisher.send(publish_of(2, TOPIC, "2", after=1))
            new = await second.speaking(KEY)
            numbers: list[int] = []
            while numbers[-1:] != [2]:
                numbers += (await forwarded(new))[0]
            assert numbers == [1, 2]
            # It is no answer to anything that is under way now.
            old.send({"t": "ack", "numbers": [[1, 1]]})
            new.send({"t": "ack", "numbers": [[1, 2]]})
            acks: list[list[int]] = []
            while not acks or acks[-1][1] < 2:
                acks += (await publisher.next("ack"))["numbers"]
            assert acks[0][0] == 1


async def test_the_order_survives_a_consumer_that_never_came(nodes: Nodes) -> None:
    port = free_port()
    async with soon(), V2Server() as first:
        producer = await nodes.producer([first.address])
        hanging = await first.speaking(KEY)
        async with publisher_at(producer) as publisher:
            publisher.send(publish_of(1, TOPIC, "1"))
            assert await forwarded(hanging) == ([1], 0)
            await use(producer, first.address, f"127.0.0.1:{port}")
            publisher.send(publish_of(2, TOPIC, "2", after=1))
            await eventually(lambda: producer.counters["messages_in"] == 2, "both are there")
            await hanging.abort()
            await eventually(lambda: producer.links[0].connection is None, "its connection is lost")
            await use(producer, first.address)
            again = await first.speaking(KEY)
            numbers: list[int] = []
            while numbers[-1:] != [2]:
                numbers += (await forwarded(again))[0]
            assert numbers == [1, 2]


async def test_what_a_classic_consumer_did_not_confirm_goes_on(nodes: Nodes) -> None:
    async with soon(), RawServer() as classic, V2Server() as other:
        producer = await nodes.producer([classic.address])
        hanging = await classic.next()
        await hanging.accept(KEY)
        await producer.ready()
        async with publisher_at(producer) as publisher:
            publisher.send(publish_of(1, TOPIC, "1"))
            await eventually(lambda: producer.counters["forwarded"] == 1, "it is under way")
            await use(producer, other.address)
            new = await other.speaking(KEY)
            assert await forwarded(new) == ([1], 0)
            new.send({"t": "ack", "numbers": [[1, 1]]})
            assert (await publisher.next("ack"))["numbers"] == [[1, 1]]
            await hanging.abort()
