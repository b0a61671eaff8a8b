"""Consumers that share a log, played by hand: they deliver it to subscribers, and come and go."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Self

from websockets.frames import Opcode

from .nodes import KEY
from .ports import free_port
from .raw_v2_peer import V2Server, V2Socket, decoded, deliver_of

EPOCH = "epoch"


class SharedTopics:
    """Hold the messages of all topics, and the consumers that deliver them."""

    def __init__(self) -> None:
        self.messages: dict[str, list[str]] = {}
        self.consumers: list[SharedConsumer] = []

    def append(self, topic: str, *data: str) -> None:
        """Add messages, each in a packet of its own."""
        self.messages.setdefault(topic, []).extend(data)
        for consumer in self.consumers:
            consumer.deliver()


class SharedConsumer:
    """Play a consumer at a port of its own.

    Args:
        topics: The log that it serves.
        log: The id that it names, None for a consumer that sends no `log`.
        available: True if it reaches its log from the beginning.

    Attributes:
        connections: How many peers have done the hello.
        requests: The packets `subscribe` that have come.
        closed: How many connections a peer has closed with a close frame.
        silent: True to answer nothing any more, neither pings nor new connections.
    """

    def __init__(self, topics: SharedTopics, log: str | None = "shared", *, available: bool = True) -> None:
        self._topics, self.log, self.available = topics, log, available
        topics.consumers.append(self)
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.connections = self.closed = 0
        self.silent = False
        self.requests: list[dict[str, Any]] = []
        self._peers: dict[V2Socket, dict[str, int]] = {}
        self._waiting: list[tuple[V2Socket, dict[str, Any]]] = []
        self._server: V2Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def subscribers(self) -> int:
        """Return how many connections have a subscription."""
        return sum(bool(offsets) for offsets in self._peers.values())

    async def start(self) -> None:
        """Listen, as the process does when it starts."""
        self._server = await V2Server(self._port).__aenter__()
        self._spawn(self._accept(self._server))

    async def stop(self) -> None:
        """Vanish, with all connections."""
        server, self._server = self._server, None
        if server is not None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._peers.clear()
            self._waiting.clear()
            await server.__aexit__()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.stop()

    def become(self, *, available: bool) -> None:
        """Reach the log again, or lose it, and tell all peers."""
        self.available = available
        for raw in self._peers:
            self._send(raw, self._named())
        waiting, self._waiting = self._waiting, []
        for raw, request in waiting:
            self._subscribe(raw, request)
        self.deliver()

    def deliver(self) -> None:
        """Send each subscriber the messages that it lacks, as far as the log can be reached."""
        for raw, offsets in self._peers.items():
            for topic, offset in offsets.items():
                messages = self._topics.messages.get(topic, [])
                if self.available:
                    for at in range(offset, len(messages)):
                        self._send(raw, deliver_of(at, topic, messages[at]))
                    offsets[topic] = len(messages)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, server: V2Server) -> None:
        while True:
            raw = await server.next()
            assert isinstance(raw, V2Socket)
            self._spawn(self._serve(raw))

    async def _serve(self, raw: V2Socket) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            if self.silent:
                await raw.end()
                return
            await raw.accept_v2(KEY)
            self.connections += 1
            self._peers[raw] = {}
            if self.log is not None:
                self._send(raw, self._named())
            while True:
                opcode, payload = await raw.frame()
                if opcode is Opcode.PING and not self.silent:
                    raw.send_frame(Opcode.PONG, payload)
                elif opcode is Opcode.CLOSE:
                    self.closed += 1
                    raw.send_frame(Opcode.CLOSE, payload)
                    await raw.writer.drain()
                    break
                elif opcode is Opcode.BINARY:
                    packet = decoded(payload)
                    assert packet["t"] == "subscribe", packet
                    self.requests.append(packet)
                    self._subscribe(raw, packet)
        self._peers.pop(raw, None)
        # Without waiting: if that is cancelled by `stop`, its own wait is.
        raw.writer.transport.abort()

    def _subscribe(self, raw: V2Socket, request: dict[str, Any]) -> None:
        if not self.available:
            self._waiting.append((raw, request))
            return
        topic = request["topic"]
        end = len(self._topics.messages.get(topic, []))
        starts = {"latest": end, "earliest": 0, "last": max(0, end - request.get("count", 0))}
        offset = starts.get(request.get("start", "latest"), request.get("offset", 0))
        assert request.get("log") in (None, EPOCH)
        place = {"log": EPOCH, "offset": offset, "end": end}
        self._send(raw, {"t": "subscribed", "topic": topic} | place)
        if raw in self._peers:
            self._peers[raw][topic] = offset
            self.deliver()

    @staticmethod
    def _send(raw: V2Socket, packet: dict[str, Any]) -> None:
        """Send a packet, unless the peer has gone, which is read later."""
        if not raw.writer.transport.is_closing():
            raw.send(packet)

    def _named(self) -> dict[str, Any]:
        return {"t": "log", "id": self.log, "available": self.available}
