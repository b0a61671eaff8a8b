"""One connection on the event loop: reads, writes, backpressure, keepalive and deadlines.

Bytes move through `Connection` like this; TLS is there only if its address has it:

```
transport ── data_received ──> TlsStream ──> Session ──> events ──> Handler
                  └─> _unread ── _take_turn ──┘
Handler ── send, send_packet ──> Session.frame ──┐
Session ── data_to_send ── _flush ───────────────┴─> WriteBuffer ──> TlsStream ──> transport
```

- The loop's write buffer holds up to 16 KiB. While it is full, whole frames wait in the `WriteBuffer`,
  unencrypted. Nothing is written past them, and the stream ends after them.
- `_pauses` counts the calls of `pause_reading` that aren't undone. While it isn't 0, nothing is read, and
  nothing is taken of bytes that were read before.
- A turn of the loop takes at most `TURN_BYTES` of a connection, and as many frames as the session takes at
  a time. The rest waits in `_unread` (as it came from the network) and in the session (`behind`). While it
  waits, `_turn` is the call that goes on with it, and the transport does not read (`_reading`), so that the
  end of the stream, too, comes after the rest.
- `_established` is True once the hello was done, `_closing` once the connection has to end.
- `_timer` is the deadline of the hello, then the keepalive, then, while closing, the deadline of the end.
- A `POST` never becomes a WebSocket. Its credential takes the place of the hello, its body that of messages,
  and its handler answers it with `respond`, in a time of its own: nothing pings here.
- Nor does a `GET` with a credential, which its handler answers with `respond` or `stream`. Events go out like
  messages then, and comments like pings, which nothing answers: the kernel notices that the peer is gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import ClassVar, Protocol, cast

from ..config.addresses import Address, is_loopback
from ..config.keys import Keys
from ..config.model import Config, Limits
from ..protocol import v2
from ..protocol.access import KeyRing
from ..protocol.close import UNREACHABLE, CloseCode, Closed
from ..protocol.framing import HttpResponse, RequestReceived
from ..protocol.session import Event, HelloDone, Session
from .buffers import COUNTED_BYTES, Buffers
from .timers import Timer, deadline
from .tls import NO_TLS_ANSWER, TlsStream
from .tunnel import reach
from .write_buffer import CONGESTED_BYTES, WriteBuffer

TURN_BYTES = 256 * 1024
"""Bytes of a connection that a turn of the loop takes: a read of the loop, which takes less than 1 ms."""

FULL_READ_BYTES = 250_000
"""Size from which on the loop's buffer was full: then uvloop would read 31 times more before other peers."""

BURDEN_PER_SECOND = 20_000
"""Control frames and tiny fragments that a peer may send in a second before it is read slower.

A classic link sends ten pings a second. This number takes 2 % of a core, as tiny fragments 10 %.
"""

BURDEN_BURST_SECONDS = 0.5
"""Time for which a peer that was silent may send more of them."""

CLOSE_PING_SECONDS = 2.0
"""Silence until a peer whose place another one can take is pinged, and the time for its answer (seconds)."""

PAUSED_PING_SECONDS = 1.0
"""Seconds between two pings of an end that does not read: its peer may wait for no more than twice that."""

USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
"""Option of Linux: the milliseconds for which the peer's host may take none of the bytes (tcp(7))."""

TLS_BEGIN = b"\x16\x03"
"""First bytes of a TLS connection: the type of the record, and 3 for its version; no request has them."""


class Handler:
    """Take the events of connections of one kind; a method that isn't overridden does nothing.

    Attributes:
        peer_role: The peer's part: publisher, producer, subscriber, consumer, node, monitor or operator.
        peer_sends_messages: True if messages come from the peer; a drain closes these connections first.
        peer_is_node: True if the peer must know the key of nodes, False for a key of clients.
        peer_may_be_node: True if a peer with the key of nodes is taken too.
        takes_get: True if it answers a `GET` with a credential, and no WebSocket.
    """

    peer_role: ClassVar[str] = "node"
    peer_sends_messages: ClassVar[bool] = False
    peer_is_node: ClassVar[bool] = False
    peer_may_be_node: ClassVar[bool] = False
    takes_get: ClassVar[bool] = False

    def keys_of_peers(self, keys: Keys) -> KeyRing:
        """Return the keys of a node that peers may have here."""
        if self.peer_is_node:
            return keys.for_nodes
        return keys.for_all if self.peer_may_be_node else keys.for_clients

    def established(self, connection: Connection) -> None:
        """Take a connection whose peer has proved itself."""

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Take all events of one read; called only after `established`."""

    def writable(self, connection: Connection) -> None:
        """Resume writing; called when the write buffer has drained."""

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Forget a connection, whether or not it was ever established."""


class Owner:
    """Keep the connections that an acceptor has accepted; a method that isn't overridden does nothing."""

    def opened(self, connection: Connection) -> None:
        """Take a connection whose peer is a stranger yet."""

    def refusal(self, connection: Connection) -> str:
        """Return why a peer that has proved itself may not stay, "" if it may; its handler is known."""
        return ""

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Forget a connection; called last."""


class Meter(Protocol):
    """Limit the bytes that come from some connections."""

    def pay(self, size: int, now: float) -> float:
        """Count bytes that came; return the seconds for which no more should be read."""


class Traffic:
    """Count the bytes of several connections, without those that TLS adds.

    Attributes:
        bytes_in: Bytes read so far.
        bytes_out: Bytes written so far.
    """

    __slots__ = ("bytes_in", "bytes_out")

    def __init__(self) -> None:
        self.bytes_in = self.bytes_out = 0


Endpoint = Callable[["Connection", RequestReceived], Handler | HttpResponse]
"""Finds the handler that takes the WebSocket of a request, or the page that answers it."""


class Connection(asyncio.Protocol):
    """Drive one session over one transport.

    Args:
        session: The protocol.
        limits: Deadlines and buffer sizes.
        handler: It takes the events; an acceptor gets it from its endpoint.
        owner: It keeps the connection, if there is an owner.
        tls: The TLS stream, if there is one; the deadline of the hello covers the TLS handshake too.
        traffic: Counts the bytes of this and other connections, without the overhead of TLS.
        buffers: Counts the bytes that wait in this and other connections; None if nothing bounds their sum.
        binds: False if the proof must not name the certificate, because a proxy ends TLS.

    Attributes:
        forwarded: True if a proxy has forwarded the request.
        heard_at: Time of the latest read (monotonic), 0 before the first.
        keys: The keys that an acceptor takes.
        meter: Limits the bytes that are read from this connection, with others; None if nothing does.
        peer: Address of the peer, known once it is connected; `unix` for a unix socket.
        peer_host: Host of that address, "" for a unix socket.
    """

    __slots__ = (
        "_binds",
        "_buffers",
        "_burden_paid",
        "_close_watch",
        "_closing",
        "_counted",
        "_endpoint",
        "_established",
        "_limits",
        "_owner",
        "_pauses",
        "_pinged_at",
        "_problem",
        "_reading",
        "_rest",
        "_timer",
        "_tls",
        "_traffic",
        "_transport",
        "_turn",
        "_unread",
        "_writes",
        "forwarded",
        "handler",
        "heard_at",
        "keys",
        "meter",
        "peer",
        "peer_host",
        "session",
    )

    def __init__(
        self,
        session: Session,
        limits: Limits,
        *,
        handler: Handler | None = None,
        owner: Owner | None = None,
        tls: TlsStream | None = None,
        traffic: Traffic | None = None,
        buffers: Buffers | None = None,
        binds: bool = True,
    ) -> None:
        self.session = session
        self.handler = handler
        self.peer = self.peer_host = ""
        self._traffic = traffic or Traffic()
        self._buffers, self._counted = buffers, False
        self._limits = limits
        self._endpoint: Endpoint | None = None
        self.keys: Keys | None = None
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._timer: Timer | None = None
        self._rest: Timer | None = None
        self.meter: Meter | None = None
        self._established = self._closing = self._close_watch = False
        self.heard_at, self.forwarded, self._binds = 0.0, False, binds
        self._pinged_at: float | None = None
        self._pauses = 0
        self._reading = True
        self._turn: asyncio.Handle | None = None
        self._unread = b""
        # The time at which all control frames so far are paid for.
        self._burden_paid = 0.0
        self._tls, self._problem = tls, ""
        self._writes = WriteBuffer(tls)

    @classmethod
    def accept(
        cls,
        endpoint: Endpoint,
        keys: Keys,
        config: Config,
        *,
        owner: Owner,
        tls: TlsStream | None = None,
        traffic: Traffic | None = None,
        buffers: Buffers | None = None,
    ) -> Connection:
        """Return a connection that waits for a request, to be answered by `endpoint`."""
        limits = config.limits
        session = Session.acceptor(
            allow_classic=config.allow_classic,
            max_message_bytes=limits.max_message_bytes,
            max_topic_bytes=limits.max_topic_bytes,
        )
        connection = cls(session, limits, owner=owner, tls=tls, traffic=traffic, buffers=buffers)
        connection._endpoint, connection.keys = endpoint, keys
        return connection

    async def open(self, address: Address, config: Config) -> None:
        """Open the transport of an initiator.

        Args:
            address: That of the acceptor.
            config: That of this end, which says whether there is a proxy on the way.

        Raises:
            OSError: There is no listener at the address.
            TimeoutError: The connection is not open within `hello_seconds`.
        """
        loop = asyncio.get_running_loop()
        async with deadline(self._limits.hello_seconds):
            if address.socket:
                await loop.create_unix_connection(lambda: self, address.socket)
            else:
                plain = await reach(address, config)
                await loop.create_connection(lambda: self, sock=plain)
                if self._transport is None:
                    # It has ended at once, as when the peer resets it. uvloop has closed the descriptor, and
                    # the socket doesn't know that, so that it would later close the descriptor's next owner.
                    plain.detach()

    @property
    def established(self) -> bool:
        """Return True if the hello was ever done on this connection."""
        return self._established

    @property
    def from_this_host(self) -> bool:
        """Return True if the peer is connected, and on this host, and not behind a proxy here."""
        return not self.forwarded and self._within_this_host

    @property
    def private(self) -> bool:
        """Return True if nobody on a network can read it: there is TLS, or both ends are on this host."""
        return self._tls is not None or self._within_this_host

    @property
    def _within_this_host(self) -> bool:
        """Return True if there is a connection, and both of its ends are on this host."""
        if self._transport is None:
            return False
        # A host that connects to itself by its own name has one address at both ends.
        address, own = peer_address(self._transport), self._transport.get_extra_info("sockname")
        return address is None or is_loopback(address.host) or address.host == own[0]

    @property
    def buffered_bytes(self) -> int:
        """Return the bytes that wait in this process to be written."""
        return self._writes.size

    @property
    def sendable(self) -> bool:
        """Return True if messages can be written: the hello is done, and the connection isn't ending."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and self.session.established

    @property
    def congested(self) -> bool:
        """Return True if the peer reads slower than we write; `Handler.writable` is called after it."""
        return self._writes.full and self._writes.size >= CONGESTED_BYTES

    def send(self, payloads: Sequence[bytes]) -> None:
        """Write messages in one go; they are dropped if the session is ending."""
        self.send_frames(self.session.frame(payloads))

    def send_frames(self, frames: bytes) -> bool:
        """Write frames that `Session.frame` made; they are dropped if the session is ending.

        A peer for which more than `max_buffered_bytes` wait is closed with 1013.

        Returns:
            True if they were written.
        """
        if not self.sendable:
            return False
        self._traffic.bytes_out += len(frames)
        self._writes.write(frames)
        self._check_buffer()
        return True

    def send_packet(self, packet: v2.Packet) -> None:
        """Write one packet of v2; it is dropped if the session is ending."""
        self.send([v2.encode(packet)])

    def respond(self, page: HttpResponse) -> None:
        """Answer a request, which ends the connection; nothing is done if it was answered already."""
        if self.session.unanswered:
            self.session.respond(page)
            self._flush()

    def stream(self, headers: Mapping[str, str]) -> None:
        """Answer a `GET` with events without end, which `send_frames` writes.

        Args:
            headers: Headers of the response.
        """
        self.session.stream(headers)
        self._flush()
        assert self._transport is not None
        sock = self._transport.get_extra_info("socket")
        if USER_TIMEOUT is not None and sock.family != socket.AF_UNIX:
            limits = self._limits
            seconds = limits.ping_interval_seconds + limits.ping_timeout_seconds
            sock.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, int(seconds * 1000))

    def ping(self, data: bytes = b"") -> None:
        """Send a ping of at most 125 bytes."""
        self.session.ping(data)
        self._flush()

    def forwarded_from(self, client: str) -> None:
        """Note that a proxy has forwarded the request of a client; "" if nobody who is trusted names it."""
        self.forwarded = True
        if client:
            self.peer = self.peer_host = client

    def watch_closely(self) -> None:
        """Notice within seconds that the peer is silent, because another one can take its place."""
        if not self._close_watch:
            self._close_watch = True
            self._keepalive()

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Begin the close handshake; messages that the peer has sent by then are still received."""
        if self.session.established or self.session.unanswered:
            self.session.close(code, reason)
            self._flush()
        elif not self._closing:
            self.abort(code, reason)

    def fail(self, code: CloseCode, reason: str = "") -> None:
        """End the connection because of the peer's fault, with a close code."""
        self.session.fail(code, reason)
        self._end_if_failed()

    def abort(self, code: CloseCode, reason: str = "") -> None:
        """End the connection at once, without a close handshake."""
        self.session.fail(code, reason)
        if self._transport is not None:
            self._transport.abort()

    def detach(self) -> None:
        """Let go of the peer without a word, in a process that got the connection by a fork.

        Both processes share the socket, which belongs to the parent. Here a dead one takes its place, so that
        nothing is read from it, written to it or shut down, whatever becomes of this copy.
        """
        if self._transport is not None:
            descriptor = self._transport.get_extra_info("socket").fileno()
            dead, other = socket.socketpair()
            with dead, other:
                if descriptor >= 0:
                    os.dup2(dead.fileno(), descriptor, inheritable=False)

    def pause_reading(self) -> None:
        """Stop reading, so that the peer has to stop sending; calls nest."""
        self._pauses += 1
        if self._pauses == 1 and self._transport is not None and not self._transport.is_closing():
            self._go_on()
            self._keepalive()

    def resume_reading(self) -> None:
        """Undo one `pause_reading`."""
        self._pauses -= 1
        if self._pauses == 0 and self._transport is not None and not self._transport.is_closing():
            self._go_on()
            self._keepalive()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the hello (asyncio calls this)."""
        self._transport = cast("asyncio.Transport", transport)
        address, own = peer_address(transport), transport.get_extra_info("sockname")
        if self._endpoint is not None and address is None and isinstance(own, tuple):
            # It was reset before it was accepted, and must not pass for a unix socket of this host.
            self._transport.abort()
            return
        self._writes.attach(self._transport)
        self.peer, self.peer_host = str(address or "unix"), address.host if address is not None else ""
        self._set_timer(self._limits.hello_seconds, self._hello_late)
        if self._owner is not None:
            self._owner.opened(self)
        if self._tls is not None:
            self.session.channel_binding = self._tls.channel_binding if self._binds else b""
            self._transport.write(self._tls.data_to_send())
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take bytes (asyncio calls this)."""
        first, self.heard_at = not self.heard_at, monotonic()
        if first and self._tls is None and data.startswith(TLS_BEGIN):
            self._refuse("it speaks TLS, and no TLS is spoken here", NO_TLS_ANSWER)
        elif len(data) > TURN_BYTES or self._unread:
            self._unread += data
            if self._turn is None:
                self._take_turn()
        else:
            self._take(data)
            if len(data) >= FULL_READ_BYTES and self._turn is None:
                # Other peers come first.
                self._turn = asyncio.get_running_loop().call_soon(self._take_turn)
                self._go_on()

    def _take_turn(self) -> None:
        """Take the next part of the bytes that were read, and read on behind the last."""
        self._turn = None
        if self._pauses or self._transport is None or self._transport.is_closing():
            return
        self.heard_at = monotonic()
        if self.session.behind:
            self._receive(b"")
            if self._tls is not None:
                self._end_tls(self._tls)
        elif self._unread:
            data, self._unread = self._unread[:TURN_BYTES], self._unread[TURN_BYTES:]
            self._take(data)
        self._go_on()

    def _take(self, data: bytes) -> None:
        """Take bytes as they came from the network."""
        if self._tls is not None:
            self._receive_tls(self._tls, data)
        else:
            self._receive(data)

    def _go_on(self) -> None:
        """Read on; or, if bytes that were read wait, take them in another turn."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._turn is None and not self._pauses:
            loop = asyncio.get_running_loop()
            delay = self._burden_paid - monotonic() if self._burden_paid else 0.0
            if delay > 0:
                self._turn = loop.call_later(delay, self._take_turn)
            elif self._unread or self.session.behind:
                self._turn = loop.call_soon(self._take_turn)
        reading = not self._pauses and self._turn is None
        if reading != self._reading:
            self._reading = reading
            if reading:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def _receive(self, data: bytes) -> None:
        self._traffic.bytes_in += len(data)
        events = self.session.receive_data(data)
        if not self._established and events:
            events = self._receive_hello(events)
        if events and self.handler is not None:
            self.handler.received(self, events)
        # Not earlier, because a pong confirms that all messages before its ping have been dealt with.
        if not self.session.quiet:
            self._end_if_failed()
            self._check_buffer()
            if burden := self.session.take_burden():
                begin = max(self._burden_paid, self.heard_at - BURDEN_BURST_SECONDS)
                self._burden_paid = begin + burden / BURDEN_PER_SECOND
            self._go_on()
        if self._counted or not events:
            # The beginning of a long message, or its end.
            self._count()
        if self.meter is not None and (seconds := self.meter.pay(len(data), self.heard_at)):
            self._rest_for(seconds)

    def _rest_for(self, seconds: float) -> None:
        """Read nothing for a while."""
        if self._rest is None and self._transport is not None:
            self.pause_reading()
            self._rest = Timer(seconds, self._rested)

    def _rested(self) -> None:
        self._rest = None
        self.resume_reading()

    def _receive_hello(self, events: list[Event]) -> list[Event]:
        """Take the events of a read before the hello was done; return those for the handler.

        A peer may send pongs before it has proved itself; no handler gets them.
        """
        if isinstance(events[0], RequestReceived):
            events = self._answer(events[0])
        if any(isinstance(event, HelloDone) for event in events):
            self._establish()
        return events if self._established else []

    def _answer(self, request: RequestReceived) -> list[Event]:
        """Answer a request as the endpoint says; return the events in the bytes behind it."""
        assert self._endpoint is not None
        assert self.keys is not None
        answer = self._endpoint(self, request)
        if isinstance(answer, HttpResponse):
            self.session.respond(answer)
            return []
        self.handler = answer
        ring = answer.keys_of_peers(self.keys)
        if request.post is not None:
            return self.session.accept_post(ring, now=time.time())
        if answer.takes_get:
            return self.session.accept_get(ring, now=time.time())
        return self.session.accept(ring, now=time.time(), drops_bad_messages=answer.peer_is_node)

    def eof_received(self) -> None:
        """Take the end of the stream (asyncio calls this, and closes the transport after it)."""
        # TLS has an end of its own; without it the stream was cut off, and the connection is lost.
        if self._tls is None:
            self.session.receive_eof()
            self._flush()

    def pause_writing(self) -> None:
        """Note that the peer reads slower than we write (asyncio calls this)."""
        self._writes.full = True

    def resume_writing(self) -> None:
        """Write the waiting data (asyncio calls this)."""
        self._writes.full = False
        self._writes.write_waiting()
        if self._counted:
            self._count()
        if self.handler is not None and not self.congested:
            self.handler.writable(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the transport and all waiting data (asyncio calls this)."""
        for call in (self._timer, self._turn, self._rest):
            if call is not None:
                call.cancel()
        self._unread = b""
        self._transport = self._writes.transport = None
        self._writes.drop()
        if self._counted and self._buffers is not None:
            self._buffers.count(self, 0)
        code = UNREACHABLE if self._problem and not self._established else CloseCode.ABNORMAL
        reason = self._problem or str(exc or CloseCode.ABNORMAL.reason)
        lost = Closed(code, reason, by_peer=True)
        closed = self.session.closed or lost
        if self.handler is not None:
            self.handler.lost(self, closed)
        if self._owner is not None:
            self._owner.lost(self, closed)

    def _receive_tls(self, tls: TlsStream, data: bytes) -> None:
        plain = tls.receive(data)
        self.session.channel_binding = tls.channel_binding if self._binds else b""
        if answer := tls.data_to_send():
            assert self._transport is not None
            self._transport.write(answer)
            self._check_buffer()
        if plain:
            self._receive(plain)
        self._end_tls(tls)

    def _end_tls(self, tls: TlsStream) -> None:
        """End the connection if its TLS stream has ended, and all of it has been taken."""
        transport = self._transport
        if transport is None or transport.is_closing() or self.session.behind:
            return
        if tls.problem:
            self._refuse(tls.problem, b"")
        elif tls.ended:
            self.session.receive_eof()
            self._flush()
            transport.write(tls.end())
            transport.close()

    def _refuse(self, problem: str, answer: bytes) -> None:
        """End the connection because of a problem below the session, with a last answer to the peer."""
        assert self._transport is not None
        self._problem = problem
        self._writes.drop()
        self._transport.write(answer)
        self._transport.close()
        self._closing = True
        self._set_timer(self._limits.close_seconds, self._close_late)

    def _establish(self) -> None:
        if self._owner is not None and (refusal := self._owner.refusal(self)):
            self.fail(CloseCode.TRY_AGAIN_LATER, refusal)
            return
        self._established = True
        # The answer of the hello goes out before anything that the handler writes.
        self._flush()
        if not self._closing:
            self._set_timer(self._keepalive_seconds[0], self._keepalive)
        if self.handler is not None:
            self.handler.established(self)
        if self.session.unanswered:
            # A part of the body may have come with the head, and nothing may come behind it.
            self._count()

    def _flush(self) -> None:
        writes = self.session.data_to_send()
        if writes and self._transport is not None and not self._transport.is_closing():
            # Joined, because a read can hold very many pings.
            data = b"".join(writes)
            if data:
                self._traffic.bytes_out += len(data)
                self._writes.write(data)
            if not writes[-1]:
                self._writes.write_eof()
        if self.session.closing and not self._closing:
            self._closing = True
            self._set_timer(self._limits.close_seconds, self._close_late)

    def _end_if_failed(self, *, late: bool = False) -> None:
        """Send the bytes that are due; if no WebSocket is open to carry a close code, just end.

        A stranger that floods this end would come again at once, so that it is only closed when the hello is
        `late`; until then it is not read.
        """
        if self.session.overrun and not late:
            if not self._pauses:
                self._pauses = 1
                self._go_on()
            return
        self._flush()
        if self.session.closed is not None and not self._closing and self._transport is not None:
            self._transport.abort()

    def _check_buffer(self) -> None:
        # Until it is full, the loop's buffer has all that waits, which is less than any limit.
        if self._writes.full and self._writes.size > self._limits.max_buffered_bytes:
            self.give_up()
        elif self._counted or self._writes.full:
            self._count()

    def give_up(self, reason: str = "") -> None:
        """End the connection, and drop all that waits: the peer would not read it in time.

        The rest of a frame of which the loop has written a part must come before the close frame, and goes
        only when the connection is given up again.
        """
        self._writes.drop()
        if self._closing:
            self.abort(CloseCode.TRY_AGAIN_LATER, reason)
        else:
            self.fail(CloseCode.TRY_AGAIN_LATER, reason)
            self._count()

    def _count(self) -> None:
        """Count the bytes that wait in this connection, to be written or for the rest of a message.

        A link between nodes has everybody's messages, and must not be cut because others read slowly.
        """
        waiting = self._writes.size + self.session.unfinished_bytes + len(self._unread)
        if self.handler is not None and self.handler.peer_is_node:
            waiting = 0
        self._counted = waiting > COUNTED_BYTES
        if self._buffers is not None:
            self._buffers.count(self, waiting)

    def _hello_late(self) -> None:
        self.session.fail(CloseCode.HELLO_TIMEOUT, CloseCode.HELLO_TIMEOUT.reason)
        if self.session.overrun:
            # The peer must be able to read the close code, and answer it.
            self._pauses = 0
            self._go_on()
        self._end_if_failed(late=True)

    def _close_late(self) -> None:
        self.abort(CloseCode.ABNORMAL)

    @property
    def _keepalive_seconds(self) -> tuple[float, float]:
        """Return the silence after which this end pings, and the time that the answer may take (seconds)."""
        interval, timeout = self._limits.ping_interval_seconds, self._limits.ping_timeout_seconds
        if self._close_watch:
            return min(interval, CLOSE_PING_SECONDS), min(timeout, CLOSE_PING_SECONDS)
        return interval, timeout

    def _keepalive(self) -> None:
        """Ping after an interval of silence, and give the peer up if the ping goes unanswered.

        While reading is paused the peer's bytes wait unread, so its silence proves nothing. Its own pings go
        unanswered meanwhile, so pings of this end show that it lives, or `alive` if the peer sees no pings.
        """
        if self._closing or self.session.unanswered:
            return
        now = monotonic()
        interval, timeout = self._keepalive_seconds
        if self.session.streams:
            if not self._writes.full:
                self.ping()
            self._set_timer(interval, self._keepalive)
            return
        if self._pauses:
            self._ping_while_paused(now)
            self._set_timer(min(interval / 2, timeout / 2, PAUSED_PING_SECONDS), self._keepalive)
            return
        if self._pinged_at is not None and self.heard_at >= self._pinged_at:
            self._pinged_at = None
        if self._pinged_at is None and now - self.heard_at >= interval:
            self._pinged_at = now
            self.ping()
        if self._pinged_at is None:
            self._set_timer(self.heard_at + interval - now, self._keepalive)
        elif now - self._pinged_at < timeout:
            self._set_timer(min(interval, self._pinged_at + timeout - now), self._keepalive)
        else:
            self.abort(CloseCode.PING_TIMEOUT)

    def _ping_while_paused(self, now: float) -> None:
        self.heard_at, self._pinged_at = now, None
        if not self._writes.full:
            self.ping()
            if self.session.asked_alive:
                self.send_packet(v2.Alive())

    def _keepalive_anew(self) -> None:
        """Begin the keepalive anew after this process stood still: the peer may have answered in time."""
        self.heard_at, self._pinged_at = monotonic(), None
        self._keepalive()

    def _set_timer(self, delay: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Any other deadline begins anew as it is.
        late = self._keepalive_anew if callback == self._keepalive else None
        self._timer = Timer(delay, callback, late)


def peer_address(transport: asyncio.BaseTransport) -> Address | None:
    """Return the address of the peer; None for a unix socket, and if uvloop can't tell it any more."""
    name = transport.get_extra_info("peername")
    return Address(host=name[0], port=name[1]) if isinstance(name, tuple) else None
