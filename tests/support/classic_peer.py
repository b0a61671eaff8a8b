"""A classic peer, written from the seed's words alone: `websockets`, json and hashlib, nothing of wsqueue.

Like an original node it sends its challenge at once, answers the peer's at once, before it has verified
anything, ignores data of a peer that has not proved itself, and knows one order of the digest only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Literal
from urllib.parse import quote, unquote

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Order = Literal["document", "reversed"]
ORDERS: tuple[Order, ...] = ("document", "reversed")

Connection = ClientConnection | ServerConnection


class RefusedError(Exception):
    """The other end does not know the key."""


def answer_of(once: int, key: str, order: Order = "document") -> str:
    """Return the answer to a challenge."""
    parts = [f"{once:x}", key]
    text = "".join(parts if order == "document" else reversed(parts))
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def hash_of(topic: str) -> int:
    """Return the hash of a topic, as JavaScript computes it with `(h << 5) - h + unit | 0`."""
    units = topic.encode("utf-16-be")
    value = 0
    for high, low in zip(units[::2], units[1::2], strict=True):
        value = ((value << 5) - value + (high << 8 | low) + 2**31) % 2**32 - 2**31
    return abs(value)


def topic_of(index: int, consumers: int, prefix: str = "topic") -> str:
    """Return a topic that belongs to one of some consumers."""
    return next(
        topic for topic in (f"{prefix}{i}" for i in range(1000)) if hash_of(topic) % consumers == index
    )


def subscribe_path(topic: str) -> str:
    """Return the path at which to subscribe, with `encodeURIComponent`."""
    return "/subscribe/" + quote(topic, safe="!'()*~-._")


def message_of(topic: str, data: str) -> str:
    """Return a message packet."""
    return json.dumps({"t": "m", "d": data, "s": topic})


class Peer:
    """Speak the classic protocol on one connection."""

    def __init__(self, socket: Connection, key: str, order: Order) -> None:
        self.socket, self._key, self._order = socket, key, order

    async def hello(self, *, any_key: bool = False) -> None:
        """Prove ourselves, and verify the other end unless `any_key` will do.

        Raises:
            RefusedError: Its answer is wrong.
        """
        once = secrets.randbelow(2**31 - 2) + 1
        await self.send({"t": "h", "o": once})
        answered = proved = False
        while not (answered and proved):
            packet = await self.receive()
            if packet["t"] != "h":
                continue
            if packet.get("o"):
                await self.send({"t": "h", "a": answer_of(packet["o"], self._key, self._order)})
                answered = True
            elif any_key or packet["a"] == answer_of(once, self._key, self._order):
                proved = True
            else:
                await self.socket.close()
                raise RefusedError

    async def send(self, packet: dict[str, Any]) -> None:
        """Send one packet."""
        await self.socket.send(json.dumps(packet))

    async def receive(self) -> dict[str, Any]:
        """Return the next packet."""
        text = await self.socket.recv()
        assert isinstance(text, str)
        packet: dict[str, Any] = json.loads(text)
        return packet

    async def publish(self, topic: str, *data: str) -> None:
        """Send messages."""
        for one in data:
            await self.socket.send(message_of(topic, one))

    async def messages(self, count: int) -> list[tuple[str, str]]:
        """Return topic and data of the next messages."""
        packets = [await self.receive() for _ in range(count)]
        assert all(packet["t"] == "m" for packet in packets)
        return [(packet["s"], packet["d"]) for packet in packets]

    async def data(self, count: int) -> list[str]:
        """Return the data of the next messages."""
        return [data for _, data in await self.messages(count)]


@contextlib.asynccontextmanager
async def connected(url: str, key: str, order: Order = "document") -> AsyncIterator[Peer]:
    """Connect to a node, with the hello done."""
    async with connect(url, proxy=None) as socket:
        peer = Peer(socket, key, order)
        await peer.hello()
        yield peer


class IndependentConsumer:
    """Be a consumer: `/producer` and `/subscribe/<topic>`.

    Args:
        key: The pre-shared key.
        order: The order of the digest.
        any_key: Take any answer for a right one.
        change: Function that changes each packet that is forwarded.
    """

    def __init__(
        self,
        key: str,
        order: Order,
        *,
        any_key: bool = False,
        change: Callable[[str], str] = str,
    ) -> None:
        self._key, self._order, self._any_key, self._change = key, order, any_key, change
        self.subscribers: defaultdict[str, list[Connection]] = defaultdict(list)

    async def handle(self, socket: ServerConnection) -> None:
        """Serve one connection."""
        assert socket.request is not None
        path = socket.request.path
        await Peer(socket, self._key, self._order).hello(any_key=self._any_key)
        if path == "/producer":
            async for text in socket:
                for subscriber in self.subscribers[json.loads(text)["s"]]:
                    await subscriber.send(self._change(str(text)))
        else:
            topic = unquote(path.removeprefix("/subscribe/"))
            self.subscribers[topic].append(socket)
            await socket.wait_closed()
            self.subscribers[topic].remove(socket)


class IndependentProducer:
    """Be a producer: `/produce`, with a connection of its own to each consumer for each publisher.

    Args:
        key: The pre-shared key.
        order: The order of the digest.
        consumers: URLs of their `/producer`.
    """

    def __init__(self, key: str, order: Order, consumers: Sequence[str]) -> None:
        self._key, self._order, self._consumers = key, order, consumers

    async def handle(self, socket: ServerConnection) -> None:
        """Serve one connection."""
        async with contextlib.AsyncExitStack() as stack:
            links = [
                await stack.enter_async_context(connected(url, self._key, self._order))
                for url in self._consumers
            ]
            await Peer(socket, self._key, self._order).hello()
            async for text in socket:
                await links[hash_of(json.loads(text)["s"]) % len(links)].socket.send(text)


@contextlib.asynccontextmanager
async def serving(handle: Callable[[ServerConnection], Awaitable[None]], port: int = 0) -> AsyncIterator[str]:
    """Serve on loopback, and return `host:port`."""

    async def handle_quietly(socket: ServerConnection) -> None:
        with contextlib.suppress(RefusedError, ConnectionClosed):
            await handle(socket)

    async with serve(handle_quietly, "127.0.0.1", port) as server:
        yield f"127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
