"""What peers ask for at once is done in turns, so that no callback holds all others up.

The times are CPU times of callbacks, and so do not count other work of the machine. What they are compared
with is generous: without turns each of these takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from ..support.callbacks import longest_callback
from ..support.classic_peer import IndependentConsumer, serving, subscribe_path
from ..support.nodes import KEY, Nodes
from ..support.raw_peer import RawSocket
from ..support.raw_v2_peer import V2Socket, encoded, new_secret, publish_of
from ..support.waiting import eventually, soon
from ..support.wire import BINARY, Raw

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.usefixtures("uncovered")]

MOST_SECONDS = 0.25
MIB = 1024 * 1024
COUNT = 1_020_000
"""Empty messages in a batch of nearly 1 MiB."""

TOPIC = "\x01" * 80
"""Its characters take six bytes each in JSON."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Use asyncio's own loop, whose callbacks can be measured."""
    return "asyncio", {"use_uvloop": False}


def frame_of(packet: dict[str, Any]) -> bytes:
    return Raw(encoded(packet), BINARY, key=bytes(4)).render(masked=True)


def classic_bytes(count: int) -> int:
    """Return the length of the frames of `count` empty messages."""
    payload = len(json.dumps({"t": "m", "d": "", "s": TOPIC}, separators=(",", ":")))
    return count * (payload + 4)


async def read_bytes(raw: RawSocket, count: int) -> None:
    while count > 0:
        data = await raw.reader.read(256 * 1024)
        assert data, "the connection ended"
        count -= len(data)


async def test_many_tiny_messages_on_a_long_topic_for_classic_subscribers(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    frame = frame_of(publish_of(1, TOPIC, *[""] * COUNT))
    path = subscribe_path(TOPIC)
    async with asyncio.timeout(100), contextlib.AsyncExitStack() as stack:
        opened = [RawSocket.established(consumer.address, path, key=KEY) for _ in range(100)]
        subscribers = [await stack.enter_async_context(one) for one in opened]
        for subscriber in subscribers[1:]:
            subscriber.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw = await stack.enter_async_context(V2Socket.speaking(producer.address, "/produce", KEY))
        raw.send(new_secret())
        with longest_callback() as longest:
            raw.writer.write(frame)
            await raw.confirmed(1)
            # One reads all, though 99 read nothing and are closed meanwhile.
            await read_bytes(subscribers[0], classic_bytes(COUNT))
        assert longest.seconds < MOST_SECONDS, longest.name
        await eventually(lambda: consumer.counters["slow_subscribers"] == 99, "the others are closed")
        assert consumer.counters["deliveries"] >= COUNT


async def test_many_tiny_messages_on_a_long_topic_for_a_classic_consumer(nodes: Nodes) -> None:
    independent = IndependentConsumer(KEY, "document")
    async with asyncio.timeout(100), serving(independent.handle) as address:
        producer = await nodes.producer([address])
        await producer.ready()
        count = COUNT // 30
        frame = frame_of(publish_of(1, TOPIC, *[""] * count))
        async with V2Socket.speaking(producer.address, "/produce", KEY) as raw:
            raw.send(new_secret())
            with longest_callback() as longest:
                raw.writer.write(frame)
                await raw.confirmed(1)
            assert longest.seconds < MOST_SECONDS, longest.name
    assert producer.counters["forwarded"] == count


async def test_a_connection_with_many_topics_ends_in_turns(nodes: Nodes) -> None:
    consumer = await nodes.consumer()
    count = 10_000
    async with soon(), V2Socket.speaking(consumer.address, "/subscribe", KEY) as raw:
        raw.writer.write(
            b"".join(frame_of({"t": "subscribe", "topic": str(number)}) for number in range(count))
        )
        for _ in range(count):
            await raw.next("subscribed")
        assert len(consumer.consumer.readers) == count
        with longest_callback() as longest:
            await raw.abort()
            await eventually(lambda: not consumer.consumer.readers, "all subscriptions end")
        assert longest.seconds < MOST_SECONDS, longest.name
