"""Topics as server-sent events: a `GET` to a consumer, answered until its client goes (docs/http.md).

```
GET /events/TOPIC ──► established ──► Reader ── frames of packets ──► EventOutlet ── events ──► Connection
                      403                ▲                               │  ▲
                                         └────── catch_up, when all is ──┘  └── EventTurns: a slice each
```

A `Reader` takes the client through the log as any subscriber, and knows nothing of events: the outlet stands
in for the connection, and is congested until the events of all packets that it has taken are written. Events
can be far longer than their packets. So they are made a slice at a time, one slice of one stream in a turn of
the loop. Those of a small batch are made at once, and once for all streams of the topic.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import ClassVar, Protocol

from ..log.store import Store
from ..net.buffers import Buffers
from ..net.connection import Connection, Handler
from ..protocol import v2
from ..protocol.close import CloseCode, Closed
from ..protocol.events import SLICE_BYTES, EventEncoder, EventsAsked, whole_slice
from ..protocol.frames import BINARY_AND_FIN, cut_messages
from ..protocol.framing import HttpResponse
from .clients import Clients
from .reader import Reader, ReaderTurns
from .subscribers import Subscribers
from .topics import Topics

SMALL_BYTES = 64 * 1024
"""Frames of a batch whose events are made at once, if they are one slice."""

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 5.0
"""Seconds after which a client comes again, by chance, so that not all come at once after a restart."""

HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of a stream; the third tells nginx to pass each event on at once."""


class EventTurns:
    """Let the streams of a node make their events, one slice in a turn of the loop."""

    def __init__(self) -> None:
        self._waiting: dict[EventOutlet, None] = {}
        self._next: asyncio.Handle | None = None
        self._frames, self._form, self._events = b"", ("", False), b""

    def ask(self, outlet: EventOutlet) -> None:
        """Call `take_turn` of an outlet when it is its turn."""
        self._waiting[outlet] = None
        if self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._turn)

    def withdraw(self, outlet: EventOutlet) -> None:
        """Forget an outlet."""
        self._waiting.pop(outlet, None)

    def events_of(self, frames: bytes, log: str, *, as_json: bool) -> bytes:
        """Return the events of a small batch, made once for all streams; b"" if it must be made in slices."""
        if len(frames) > SMALL_BYTES:
            return b""
        if self._frames is not frames or self._form != (log, as_json):
            self._frames, self._form = frames, (log, as_json)
            self._events = whole_slice(_payloads(frames), log, as_json=as_json)
        return self._events

    def _turn(self) -> None:
        self._next = None
        if self._waiting:
            outlet = next(iter(self._waiting))
            del self._waiting[outlet]
            outlet.take_turn()
        if self._waiting and self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._turn)


class EventOutlet:
    """Take packets of a subscription as a connection does, and write them as events.

    Args:
        connection: The connection of the client.
        encoder: Makes the events.
        turns: Turns of all streams.
        buffers: Counts the bytes that wait here.
        caught_up: Called when all that was taken is written, or the client reads again.
    """

    def __init__(
        self,
        connection: Connection,
        encoder: EventEncoder,
        turns: EventTurns,
        buffers: Buffers,
        caught_up: Callable[[], None],
    ) -> None:
        self._connection, self._encoder, self._caught_up = connection, encoder, caught_up
        self._turns, self._buffers = turns, buffers
        # Whole events, of which those up to an index are written.
        self._slice, self._written = b"", 0

    @property
    def peer(self) -> str:
        """Return the address of the client."""
        return self._connection.peer

    @property
    def buffered_bytes(self) -> int:
        """Return the bytes that wait in this process to be written."""
        return self._connection.buffered_bytes + len(self._slice) - self._written

    @property
    def sendable(self) -> bool:
        """Return True if events can be written."""
        return self._connection.sendable

    @property
    def congested(self) -> bool:
        """Return True if events are still to be written; `caught_up` is called after it."""
        return self._busy or self._connection.congested

    @property
    def _busy(self) -> bool:
        return bool(self._slice) or self._encoder.waiting

    def send_packet(self, packet: v2.Packet) -> None:
        """Write the event of a packet, behind those that wait."""
        assert isinstance(packet, v2.Subscribed | v2.Gap)
        busy = self._busy
        self._encoder.take(packet)
        if not busy and (event := self._encoder.next_slice()):
            self._connection.send_frames(event)

    def send_frames(self, frames: bytes) -> bool:
        """Write the events of packets, now or in turns.

        Returns:
            True if they are written, or will be.
        """
        if not self.sendable:
            return False
        encoder = self._encoder
        if not self._busy and (events := self._turns.events_of(frames, encoder.log, as_json=encoder.as_json)):
            encoder.has_position = True
            return self._connection.send_frames(events)
        for payload in _payloads(frames):
            encoder.take(payload)
        self._turns.ask(self)
        self._count()
        return True

    def fail(self, code: CloseCode, reason: str = "") -> None:
        """End the stream."""
        self._connection.fail(code, reason)

    def give_up(self, reason: str) -> None:
        """End the stream, because the node has too much waiting (`Buffers` calls this)."""
        self.drop()
        self._connection.fail(CloseCode.TRY_AGAIN_LATER, reason)

    def resume(self) -> None:
        """Go on, because the client reads again."""
        if self._busy:
            self._turns.ask(self)
        else:
            self._caught_up()

    def take_turn(self) -> None:
        """Make and write the next events (`EventTurns` calls this)."""
        if not self._slice:
            self._slice = self._encoder.next_slice()
        self._write()
        self._count()
        if not self._busy:
            self._caught_up()
        elif self.sendable and not self._connection.congested:
            self._turns.ask(self)

    def drop(self) -> None:
        """Forget all that waits."""
        self._encoder.drop()
        self._slice, self._written = b"", 0
        self._turns.withdraw(self)
        self._count()

    def _write(self) -> None:
        """Write as much as the connection takes; before the rest of a long event, nothing else may come."""
        connection = self._connection
        while self._slice and connection.sendable and not connection.congested:
            part = self._slice[self._written : self._written + SLICE_BYTES]
            self._written += len(part)
            whole = self._written == len(self._slice)
            if whole:
                self._slice, self._written = b"", 0
            connection.session.say_inside_event(not whole)
            connection.send_frames(part)

    def _count(self) -> None:
        self._buffers.count(self, self._encoder.waiting_bytes + len(self._slice))


class Feeder(Protocol):
    """The consumer, as far as streams need it."""

    counters: Counter[str]
    clients: Clients
    readers: Topics[Reader]
    behind: set[Reader]
    cutting: asyncio.Lock
    buffers: Buffers
    logs: Store
    subscribers: Subscribers
    event_turns: EventTurns


class EventsEndpoint(Handler):
    """Send the events of one topic to one client.

    Args:
        consumer: The node.
        asked: The request.
        origin: The site whose page sent it, None if it is of no browser, or of a page of the same site.
    """

    peer_role: ClassVar[str] = "subscriber"
    takes_get: ClassVar[bool] = True

    def __init__(self, consumer: Feeder, asked: EventsAsked, origin: str | None) -> None:
        self._consumer, self._asked, self._origin = consumer, asked, origin
        self._reader: Reader | None = None
        self._outlet: EventOutlet | None = None

    def established(self, connection: Connection) -> None:
        """Begin the stream; respond if the client may not subscribe to the topic."""
        consumer, topic = self._consumer, self._asked.start.topic
        client = consumer.clients.of(connection)
        if problem := "" if client is None else client.subscribes(topic):
            consumer.clients.note_refusal(connection, topic, problem)
            connection.respond(HttpResponse(403, f"{problem}\n"))
            return
        connection.stream(HEADERS | _allow(self._origin))
        retry = random.uniform(MIN_RETRY_SECONDS, MAX_RETRY_SECONDS)  # noqa: S311 - nobody gains by a guess
        connection.send_frames(f"retry: {retry * 1000:.0f}\n\n".encode())
        # First, so that empty topics make room.
        consumer.subscribers.add(self, connection, topic)
        encoder = EventEncoder(as_json=self._asked.as_json, resumes=self._asked.resumes)
        self._outlet = EventOutlet(
            connection, encoder, consumer.event_turns, consumer.buffers, self._catch_up
        )
        self._reader = Reader(
            self._outlet,
            consumer.logs,
            self._asked.start,
            counters=consumer.counters,
            behind=consumer.behind,
            turns=ReaderTurns(consumer.cutting),
        )
        consumer.readers.subscribe(self._reader.topic, self._reader)
        self._reader.catch_up()
        consumer.subscribers.relieve()

    def writable(self, connection: Connection) -> None:
        """Write the events that wait, and let the reader continue in its log."""
        if self._outlet is not None:
            self._outlet.resume()

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Unsubscribe."""
        self._stop()
        self._consumer.subscribers.remove(self)
        if closed.code == CloseCode.TRY_AGAIN_LATER and not closed.by_peer:
            self._consumer.counters["slow_subscribers"] += 1

    def refuse(self, connection: Connection) -> None:
        """End the stream, because there is no room for it."""
        connection.fail(CloseCode.TOO_MANY_SUBSCRIPTIONS, "there is no room for more")
        self._stop()

    def _catch_up(self) -> None:
        if self._reader is not None:
            self._reader.catch_up()

    def _stop(self) -> None:
        if self._reader is not None and self._outlet is not None:
            self._consumer.readers.unsubscribe(self._reader.topic, self._reader)
            self._reader.stop()
            self._outlet.drop()
        self._reader = self._outlet = None


def _allow(origin: str | None) -> dict[str, str]:
    """Return the headers that let a page of another site read the stream (Fetch Standard, section 3.3)."""
    if origin is None:
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Vary": "Origin",
    }


def _payloads(frames: bytes) -> list[bytes]:
    """Return the packets in frames of this node."""
    most = len(frames)
    return cut_messages(
        frames, 0, first=BINARY_AND_FIN, masked=False, max_message_bytes=most, max_frames=most
    )[0]
