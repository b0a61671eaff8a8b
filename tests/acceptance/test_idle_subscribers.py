"""Thousands of subscribers, classic and v2, come and go, and the consumer's memory does not grow."""

from __future__ import annotations

import asyncio
import json
import secrets
import struct
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

from tests.support.classic_peer import answer_of
from tests.support.raw_peer import offer_of, request_of
from tests.support.raw_v2_peer import SUBPROTOCOL, data_of, decoded, encoded, new_nonce, proof_of
from tests.support.wire import BINARY, TEXT, Raw

from ..support.processes import Cluster, Node, allow_open_files

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(290), pytest.mark.usefixtures("uncovered")]

SUBSCRIBERS = 5_000
WAVES = 3
AT_ONCE = 200
OPEN_FILES = 5_500  # Open files of the process: the subscribers, and those of Python and the test runner.
MAX_GROWTH = 1.10
# Memory for an idle subscriber, as docs/configuration.md has it.
MAX_CLASSIC_BYTES, MAX_V2_BYTES = 5 * 1024, 7 * 1024


def masked_text(packet: dict[str, object]) -> bytes:
    """Return a text frame, masked with zeros (RFC 6455 section 5.2)."""
    return Raw(json.dumps(packet, separators=(",", ":")).encode(), key=bytes(4)).render(masked=True)


def masked_binary(packet: dict[str, object]) -> bytes:
    """Return a binary frame, masked with zeros."""
    return Raw(encoded(packet), BINARY, key=bytes(4)).render(masked=True)


class Subscriber:
    """Subscribe with little more than a socket: the client library would take most of the time."""

    def __init__(self, topic: str, source: str = "127.0.0.1") -> None:
        self.topic, self._source = topic, source
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, consumer: Node, secret: str) -> None:
        """Subscribe."""
        writer = await self._upgrade(consumer, f"/subscribe/{self.topic}")
        challenge = await self.read()
        once = secrets.randbelow(2**31 - 2) + 1
        proof = masked_text({"t": "h", "a": answer_of(challenge["o"], secret)})
        writer.write(masked_text({"t": "h", "o": once}) + proof)
        assert (await self.read())["a"] == answer_of(once, secret)

    async def message(self) -> str:
        """Return the next message."""
        packet = await self.read()
        assert packet == {"t": "m", "d": packet["d"], "s": self.topic}
        return str(packet["d"])

    async def _upgrade(self, consumer: Node, path: str, *headers: str) -> asyncio.StreamWriter:
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", consumer.port, local_addr=(self._source, 0), limit=4096
        )
        self._writer.write(request_of(path, *headers))
        assert b" 101 " in await self._reader.readuntil(b"\r\n\r\n")
        return self._writer

    async def read(self) -> dict[str, Any]:
        """Return the next packet."""
        packet: dict[str, Any] = json.loads(await self.read_frame(TEXT))
        return packet

    async def read_frame(self, first: int) -> bytes:
        """Return the payload of the next frame, of less than 64 KiB."""
        found, length = await self._reader.readexactly(2)
        assert found == first
        if length == 126:
            length = int.from_bytes(await self._reader.readexactly(2))
        return await self._reader.readexactly(length)

    async def close(self, *, politely: bool = True) -> None:
        """Close with the WebSocket's handshake, or drop the connection."""
        if self._writer is None:
            return
        if politely:
            self._writer.write(struct.pack("!BB4xH", 0x88, 0x80 | 2, 1000))
            assert (await self._reader.readexactly(2))[0] == 0x88
        self._writer.close()
        await self._writer.wait_closed()
        self._writer = None


class V2Subscriber(Subscriber):
    """Subscribe in v2."""

    async def open(self, consumer: Node, secret: str) -> None:
        """Subscribe."""
        path = "/subscribe"
        writer = await self._upgrade(consumer, path, offer_of(SUBPROTOCOL))
        challenge, nonce = await self.read(), new_nonce()
        nonces = challenge["nonce"], nonce
        writer.write(
            masked_binary(
                {
                    "t": "proof",
                    "proof": proof_of(secret, "initiator", *nonces, path),
                    "nonce": nonce,
                    "path": path,
                }
            )
        )
        assert await self.read() == {"t": "proof", "proof": proof_of(secret, "acceptor", *nonces, path)}
        writer.write(masked_binary({"t": "subscribe", "topic": self.topic}))
        assert (await self.read())["t"] == "subscribed"

    async def message(self) -> str:
        """Return the next message."""
        packet = await self.read()
        assert (packet["t"], packet["topic"]) == ("deliver", self.topic)
        (data,) = data_of(packet)
        return str(data)

    async def read(self) -> dict[str, Any]:
        """Return the next packet."""
        return decoded(await self.read_frame(BINARY))


async def for_all(
    subscribers: Iterable[Subscriber], work: Callable[[Subscriber], Coroutine[Any, Any, None]]
) -> None:
    """Do something with all subscribers, some at a time."""
    waiting = iter(subscribers)

    async def some() -> None:
        for subscriber in waiting:
            async with asyncio.timeout(30):
                await work(subscriber)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(some())


@pytest.mark.slow
async def test_memory_after_three_waves_is_that_after_the_first(cluster: Cluster) -> None:
    allow_open_files(OPEN_FILES)
    # The subscribers of this test do not answer pings, and all together may be slow in the hello.
    await asyncio.to_thread(cluster.start, 1, 1, ping_interval_seconds=3600.0, hello_seconds=60.0)
    (consumer,) = cluster.consumers
    full, empty, each = [], [], []
    async with cluster.client() as publisher:
        for wave in range(WAVES):
            # Each wave comes from an address of its own, so that the ports suffice.
            source = f"127.0.0.{wave + 2}"
            subscribers: list[Subscriber] = []
            try:
                for kind in (Subscriber, V2Subscriber):
                    before = consumer.resident_bytes()
                    some = [kind(f"{kind.__name__}-{number}", source) for number in range(SUBSCRIBERS // 2)]
                    subscribers += some
                    await for_all(some, lambda one: one.open(consumer, cluster.secret))
                    # Also the producer's link.
                    await asyncio.to_thread(consumer.wait_open, len(subscribers) + 1)
                    chosen = secrets.choice(some)
                    await publisher.publish(chosen.topic, f"wave {wave}")
                    async with asyncio.timeout(10):
                        assert await chosen.message() == f"wave {wave}"
                    each.append((consumer.resident_bytes() - before) / len(some))
                full.append(consumer.resident_bytes())
                await for_all(subscribers[::2], Subscriber.close)
            finally:
                await for_all(subscribers, lambda one: one.close(politely=False))
            await asyncio.to_thread(consumer.wait_open, 1)
            empty.append(consumer.resident_bytes())
    print(f"{full=} {empty=} {each=}")
    counters = consumer.counters()
    assert counters["connections"] == WAVES * SUBSCRIBERS + 1
    assert counters["deliveries"] == 2 * WAVES
    assert "connections_refused" not in counters
    assert full[-1] <= MAX_GROWTH * full[0]
    assert empty[-1] <= MAX_GROWTH * empty[0]
    assert each[0] <= MAX_CLASSIC_BYTES
    assert each[1] <= MAX_V2_BYTES
