"""WebSocket messages out of bytes, and bytes out of messages, over websockets' Sans-I/O protocol.

The library does the opening handshake, fragments, control frames, the close handshake and every protocol
error. Plain frames (whole, unfragmented messages of the connection's type, within the limit), of which there
are millions, take the fast lane around it (`cut_messages`), and so do pings and pongs (`cut_controls`), which
a peer may send in masses.
The library is given whole frames before the fast lane goes on.

Bytes move through `Framing` like this:

```
             head, line by line          (while the library's state is CONNECTING)
read ──┬───────────────────────────────> library ──> RequestReceived, Upgraded
       │  plain frames
       ├──> cut_messages ─────────────────────────────> messages
       │       └─ the last, incomplete one ──> _tail ──> cut_messages, when it has _needed bytes
       │  whole pings and pongs
       ├──> cut_controls ──────────────────────────> PongReceived; pongs ──> _writes
       │  frames behind turn_frames
       ├──> _rest ──> the next call
       │  any other frame
       └──> _head, until the header is whole, then _lacking bytes
                     └─────────────────> library ──> PongReceived
                                             └─ fragments ──> _fragments ──> a message, with FIN
send_message, library.data_to_send ──> _writes ──> data_to_send
```

- At most one frame is incomplete: it is either in `_tail`, or the library has a part of it and the framing
  knows how much of it is to come (`_head`, `_lacking`).
- Messages are of one type: binary in v2, texts in classic (`binary`). The other type is refused, but an
  acceptor's first message decides it (`_undecided`): it need not speak the protocol that it selected.
- `_in_fragments` is True between the first fragment and the last. Only the library may read frames then.
- `_protocol`, the library's object, exists while it has something to do (`_settle`): during the opening
  handshake, inside a frame that is not plain, between fragments, from the first close frame on. A connection
  at rest does without its 4 KiB.
- `_failure` is set when this end refuses the peer. Nothing is read after that.
- A call takes `turn_frames` frames, so that it takes a few milliseconds at most, whatever the peer sends. The
  bytes behind them are in `_rest` until the next call.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from websockets.frames import Frame, Opcode
from websockets.protocol import CLOSED, CLOSING, CONNECTING, OPEN, Event, Protocol, Side

from .close import CloseCode, Closed
from .frames import (
    BINARY_AND_FIN,
    MAX_HEADER_BYTES,
    PING_AND_FIN,
    TEXT_AND_FIN,
    cut_controls,
    cut_messages,
    frame_messages,
    frame_pong,
    frame_size,
)

MAX_REASON_BYTES = 123
"""Length of a close frame's reason: 125 bytes without the close code (RFC 6455 section 5.5)."""

MAX_SKIPPED_BYTES = 2**30
"""Longest text that is skipped: far above the 100 MiB that the library of the original nodes takes."""

TURN_FRAMES = 512
"""Frames that are taken at a time: of any packets a few milliseconds."""

TURN_CLASSIC_FRAMES = 2048
"""The same of a classic peer, which sends messages only, and each in a frame: 4 ms."""

LIBRARY_FRAMES = 8
"""Frames for which a frame counts that the library takes: it takes 20 to 40 µs."""

FULL_FRAGMENT_BYTES = 1024
"""Size from which on a fragment is no burden, because there are few in a read."""

MAX_HEAD_LINES = 130
"""Lines of a request or response: the first, the 128 headers that the library takes, and an empty one."""


class _NoLogger:
    """Take the log calls of the library's protocol and drop them."""

    def isEnabledFor(self, _level: int) -> bool:  # noqa: N802 - the name in logging.Logger
        return False

    def debug(self, *_args: object, **_keywords: object) -> None:
        pass

    info = warning = error = debug


NO_LOGGER: Any = _NoLogger()


class HttpResponse(msgspec.Struct, frozen=True):
    """Answer a request with a page instead of a WebSocket.

    Attributes:
        status: HTTP status code.
        text: Body of the response.
        content_type: Media type of the body.
        headers: Headers besides those that every response has.
    """

    status: int
    text: str
    content_type: str = "text/plain; charset=utf-8"
    headers: dict[str, str] = {}


class Post(msgspec.Struct, frozen=True):
    """Hold the head of a request that has a body; its credential is hidden.

    Attributes:
        size: Bytes of the body, None if the request does not say that, as when it comes in chunks.
        bearer: The credential (RFC 6750), "" if there is none.
        content_type: Media type of the body, "" if the request does not say that.
        idempotency_key: The same in each repeat of the request, "" if there is none.
        scheme: Scheme with which the request came to a proxy, "" if no header says that.
    """

    size: int | None
    bearer: str = ""
    content_type: str = ""
    idempotency_key: str = ""
    scheme: str = ""

    def __repr__(self) -> str:
        return f"Post(size={self.size}, content_type={self.content_type!r}, bearer=<hidden>)"


class Get(msgspec.Struct, frozen=True):
    """Hold the head of a `GET` or `HEAD` that asks for no WebSocket, as far as a stream of events needs it.

    Attributes:
        bearer: The credential (RFC 6750), "" if there is none; it is hidden.
        cookies: The `Cookie` headers, which may have a credential too, and are hidden.
        accept: The `Accept` headers, "" if there are none.
        last_event_id: Id of the last event that the peer has got, "" if it has got none.
        scheme: Scheme with which the request came to a proxy, "" if no header says that.
        embedded: True if a page sends the request without being able to read the answer, as for a picture.
        head: True if it is a `HEAD`.
    """

    bearer: str = ""
    cookies: str = ""
    accept: str = ""
    last_event_id: str = ""
    scheme: str = ""
    embedded: bool = False
    head: bool = False

    def __repr__(self) -> str:
        return f"Get(accept={self.accept!r}, last_event_id={self.last_event_id!r}, bearer=<hidden>)"


class RequestReceived(msgspec.Struct, frozen=True):
    """Report a request, to be answered with `accept` or `respond`.

    Attributes:
        path: Path and query, as they were sent.
        host: The `Host` headers, "" if there are none: the name by which the peer calls this node.
        offers_subprotocol: True if the peer offers the subprotocol of this end.
        origin: The `Origin` headers, None if there are none: the site whose page sends the request.
        forwarded_for: The `X-Forwarded-For` headers, None if no header says that a proxy forwards it.
        post: The head of a `POST`, None if it is a `GET` or a `HEAD`.
        get: The head of a `GET` or `HEAD` that asks for no WebSocket, None if it is another request.
    """

    path: str
    host: str
    offers_subprotocol: bool
    origin: str | None = None
    forwarded_for: str | None = None
    post: Post | None = None
    get: Get | None = None


class Upgraded(msgspec.Struct, frozen=True):
    """Report that the WebSocket is open.

    Attributes:
        path: Path and query of the request, as they were sent.
        offered: The subprotocols that the initiator offered, as they were sent.
        subprotocol: The one that the acceptor selected, None if it selected none.
    """

    path: str
    offered: str
    subprotocol: str | None


class BodyReceived(msgspec.Struct, frozen=True):
    """Report the body of a request, to be answered with `respond`."""

    body: bytes


class PongReceived(msgspec.Struct, frozen=True):
    """Report the data of a pong."""

    data: bytes


class TooLong(msgspec.Struct, frozen=True):
    """Report a text message that was skipped because it is too long, with the size of its frame."""

    bytes: int


Item = list[bytes] | RequestReceived | BodyReceived | Upgraded | PongReceived | TooLong
"""An item of a read: the payloads of consecutive messages, or one of the rare events.

A text may not be UTF-8; the decoders of packets find that out.
"""


class Framing:
    """Hold one end of a WebSocket connection, without I/O.

    A peer's fault never raises: it becomes a close frame to send and a cause in `closed`.

    Attributes:
        masked: True if this end masks its frames, as an initiator must.
        binary: True if messages are binary, False if they are texts.
        skips_long: True if texts that are too long are skipped and reported; else they end the connection.
        turn_frames: Frames that a call of `receive_data` takes.
    """

    __slots__ = (
        "_burden",
        "_failure",
        "_fragments",
        "_head",
        "_head_lines",
        "_in_fragments",
        "_lacking",
        "_max_message_bytes",
        "_needed",
        "_protocol",
        "_rest",
        "_rest_at",
        "_skipping",
        "_tail",
        "_undecided",
        "_writes",
        "binary",
        "skips_long",
        "turn_frames",
    )

    masked: ClassVar[bool]
    _side: ClassVar[Side]

    def __init__(self, protocol: Protocol, max_message_bytes: int) -> None:
        self._protocol: Protocol | None = protocol
        self._max_message_bytes = max_message_bytes
        self._failure: Closed | None = None
        self._writes = protocol.data_to_send()
        self._head_lines = 0
        self._tail = bytearray()
        self._needed = 0
        self._head = b""
        self._lacking = 0
        self._fragments = bytearray()
        self._in_fragments = False
        # Bytes of a frame that are still to be skipped.
        self._skipping = 0
        self.skips_long = self.binary = self._undecided = False
        self._rest, self._rest_at = b"", 0
        self._burden = 0
        self.turn_frames = TURN_FRAMES

    def allow_more(self, more_bytes: int) -> None:
        """Raise the limit of messages from now on, or lower it if `more_bytes` is negative."""
        self._max_message_bytes += more_bytes
        if self._protocol is not None:
            self._protocol.max_message_size = self._max_message_bytes

    @property
    def open(self) -> bool:
        """Return True if messages may be sent: after the upgrade and before any close frame."""
        protocol = self._protocol
        return self._failure is None and (protocol is None or protocol.state is OPEN)

    @property
    def quiet(self) -> bool:
        """Return True if nothing is to be done after a read, as after most reads.

        There is nothing to send, no rest and no burden, and the connection isn't closing.
        """
        return (
            self._protocol is None
            and not self._writes
            and self._failure is None
            and not self._burden
            and not self._rest
        )

    @property
    def behind(self) -> bool:
        """Return True if there are bytes that the latest call did not take: call `receive_data` again."""
        return bool(self._rest)

    @property
    def unfinished_bytes(self) -> int:
        """Return the bytes that came of a message whose end has not, and those for the next turn."""
        waiting = len(self._rest) - self._rest_at if self._rest else 0
        return len(self._tail) + len(self._fragments) + waiting

    @property
    def closing(self) -> bool:
        """Return True if the TCP connection should end soon; if it doesn't, abort it."""
        return self._protocol is not None and self._protocol.close_expected()

    @property
    def closed(self) -> Closed | None:
        """Return why the connection ended or is about to end, None while it goes on."""
        protocol = self._protocol
        if self._failure is not None or protocol is None:
            return self._failure
        if protocol.handshake_exc is not None:
            return self._refusal(protocol.handshake_exc)
        received, sent = protocol.close_rcvd, protocol.close_sent
        if received is not None and (sent is None or protocol.close_rcvd_then_sent):
            return Closed(received.code, received.reason, by_peer=True)
        if sent is not None:
            return Closed(sent.code, sent.reason, by_peer=False)
        if protocol.state is CLOSED:
            return Closed(CloseCode.ABNORMAL, CloseCode.ABNORMAL.reason, by_peer=True)
        return None

    @property
    def closed_cleanly(self) -> bool:
        """Return True if the peer has closed, or echoed our close, and so has read all that we sent.

        A peer that closes first reads on until our echo, and then ends the stream; a peer that gives up
        earlier resets the connection.
        """
        if self._protocol is None:
            return False
        received, ended = self._protocol.close_rcvd, self._protocol.state is CLOSED
        return ended and received is not None and received.code in (CloseCode.NORMAL, CloseCode.GOING_AWAY)

    def take_burden(self) -> int:
        """Return the number of control frames and tiny fragments since the last call.

        They carry no message, so that a peer that sends many of them keeps this end busy for nothing.
        """
        burden, self._burden = self._burden, 0
        return burden

    def receive_data(self, data: bytes) -> list[Item]:
        """Take bytes from the network; return the items that are complete in the first `turn_frames` frames.

        The bytes behind those wait until the next call, which may bring no others: see `behind`.
        """
        items: list[Item] = []
        begin = 0
        if self._rest:
            data, begin = (self._rest + data, self._rest_at) if data else (self._rest, self._rest_at)
            self._rest = b""
        if self._failure is not None:
            return items
        if self._skipping:
            skipped = min(self._skipping, len(data))
            self._skipping -= skipped
            data = data[skipped:]
        position = begin or (self._read_head(data, items) if self._protocol is not None else 0)
        while self._tail and self._needed - len(self._tail) <= len(data) - position:
            middle = position + self._needed - len(self._tail)
            frame = bytes(self._tail) + data[position:middle]
            self._tail.clear()
            position = middle
            self._read_frames(frame, 0, items)
        if self._tail:
            self._tail += memoryview(data)[position:]
        else:
            self._read_frames(data, position, items)
        if self._protocol is not None:
            self._settle()
        return items

    def receive_eof(self) -> None:
        """Take the end of the peer's stream."""
        self._library().receive_eof()
        self._settle()

    def data_to_send(self) -> list[bytes]:
        """Return the bytes to write, where b"" means to half-close the connection."""
        writes, self._writes = self._writes, []
        return writes

    def send_message(self, payload: bytes) -> None:
        """Queue one message, unless the connection is closing."""
        if self.open:
            self._writes.append(frame_messages([payload], masked=self.masked, binary=self.binary))

    def send_ping(self, data: bytes = b"") -> None:
        """Queue a ping of at most 125 bytes, unless the connection is closing."""
        if self.open:
            self._library().send_ping(data)
            self._settle()

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin the close handshake; frames that come before the peer's close frame are still read."""
        if self.open:
            self._library().send_close(code, _short(reason))
            self._settle()

    def fail(self, code: CloseCode, reason: str) -> None:
        """End the connection at once, unless it has ended; nothing more is read from it."""
        self._failure = self.closed or Closed(code, reason, by_peer=False)
        self._tail, self._fragments, self._rest = bytearray(), bytearray(), b""
        library = self._library()
        if library.state in (OPEN, CLOSING):
            library.fail(code, _short(reason))
            self._settle()

    def refuse(self, code: CloseCode, reason: str) -> None:
        """End the connection because of a fault in the latest read.

        Unlike `fail`, this has precedence over a close frame of the peer: that frame was behind the fault in
        the same read, since nothing is read after it.
        """
        if self.closed is None or self.closed.by_peer:
            self._failure = Closed(code, reason, by_peer=False)
        self.fail(code, reason)

    def _library(self) -> Protocol:
        """Return the library's protocol; make a new one if it was dropped."""
        if self._protocol is None:
            self._protocol = Protocol(
                self._side, state=OPEN, max_size=self._max_message_bytes, logger=NO_LOGGER
            )
        return self._protocol

    def _settle(self) -> None:
        """Queue the bytes that the library wants to write, and drop it when it is at rest."""
        library = self._library()
        self._writes += library.data_to_send()
        busy = self._lacking or self._head or self._in_fragments or self._failure is not None
        if library.state is OPEN and not busy:
            self._protocol = None

    def _read_head(self, data: bytes, items: list[Item]) -> int:
        """Hand the request or the response to the library, and return where the frames begin.

        The library gets it line by line, because it would parse the bytes behind it as frames, on the
        acceptor's side even before the request has been answered.
        """
        position = 0
        library = self._protocol
        while position < len(data) and not items and library is not None and library.state is CONNECTING:
            newline = data.find(b"\n", position) if self._head_lines < MAX_HEAD_LINES else -1
            self._head_lines += newline >= 0
            end = newline + 1 or len(data)
            self._feed(data[position:end], items)
            position = end
        return position

    def _read_frames(self, data: bytes, position: int, items: list[Item]) -> None:
        left = self.turn_frames
        while position < len(data) and self._failure is None:
            if left <= 0:
                self._rest, self._rest_at = data, position
                return
            if self._fast:
                payloads, position, needed = cut_messages(
                    data,
                    position,
                    first=BINARY_AND_FIN if self.binary else TEXT_AND_FIN,
                    masked=not self.masked,
                    max_message_bytes=self._max_message_bytes,
                    max_frames=left,
                )
                if payloads:
                    _add(items, payloads)
                    left -= len(payloads)
                    self._undecided = False
                if needed:
                    if position < len(data):
                        self._tail += memoryview(data)[position:]
                        self._needed = needed
                    return
                if left <= 0:
                    continue
                if self.skips_long and (skipped := self._skip_long(data, position, items)):
                    position, left = skipped, left - 1
                    continue
                count, position = self._take_controls(data, position, items, left)
                if count:
                    left -= count
                    continue
            left -= LIBRARY_FRAMES
            position = self._hand_over(data, position, items)

    def _skip_long(self, data: bytes, position: int, items: list[Item]) -> int:
        """Skip a text that is too long to be cut; return where to go on, 0 if it is another frame."""
        size = frame_size(data[position : position + MAX_HEADER_BYTES])
        text = data[position] == TEXT_AND_FIN and bool(data[position + 1] & 0x80) is not self.masked
        if size is None or not text or size > MAX_SKIPPED_BYTES:
            return 0
        items.append(TooLong(size))
        end = position + size
        self._skipping = max(0, end - len(data))
        return min(end, len(data))

    def _take_controls(self, data: bytes, position: int, items: list[Item], count: int) -> tuple[int, int]:
        """Take at most `count` pings or pongs from a position on; return how many, and where they end.

        The library has to see to all others.
        """
        if self._protocol is not None:
            # Frames that it has to send go first, and it may be at rest now.
            self._settle()
            if self._protocol is not None:
                return 0, position
        payloads, after = cut_controls(
            data,
            position,
            masked=not self.masked,
            max_message_bytes=self._max_message_bytes,
            max_frames=count,
        )
        if payloads and data[position] == PING_AND_FIN:
            self._writes += [frame_pong(payload, masked=self.masked) for payload in payloads]
        else:
            items += map(PongReceived, payloads)
        self._burden += len(payloads)
        return len(payloads), after

    @property
    def _fast(self) -> bool:
        """Return True if the next frame may be plain: the library is inside no frame, and not closed."""
        library = self._protocol
        return library is None or (
            not (self._lacking or self._head or self._in_fragments)
            and library.state in (OPEN, CLOSING)
            and library.close_rcvd is None
            and library.parser_exc is None
        )

    def _hand_over(self, data: bytes, position: int, items: list[Item]) -> int:
        """Hand the frame at a position, or the part that is there, to the library; return where it ends."""
        if not self._lacking:
            known = len(self._head)
            self._head += data[position : position + MAX_HEADER_BYTES - known]
            size = frame_size(self._head)
            self._lacking = (size or len(self._head)) - known
            if size:
                self._head = b""
        end = min(position + self._lacking, len(data))
        self._lacking -= end - position
        self._feed(data[position:end], items)
        return end

    def _feed(self, data: bytes, items: list[Item]) -> None:
        library = self._library()
        library.receive_data(data)
        for event in library.events_received():
            item = self._take_frame(event) if isinstance(event, Frame) else self._take_opening(event)
            if item is not None:
                _add(items, item)

    def _take_frame(self, frame: Frame) -> Item | None:
        if len(frame.data) < FULL_FRAGMENT_BYTES:
            self._burden += LIBRARY_FRAMES
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY) and not self._takes(frame.opcode is Opcode.BINARY):
            self.refuse(CloseCode.UNSUPPORTED_DATA, CloseCode.UNSUPPORTED_DATA.reason)
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._fragments += frame.data
            self._in_fragments = not frame.fin
            if frame.fin:
                payload = bytes(self._fragments)
                self._fragments.clear()
                return [payload]
        elif frame.opcode is Opcode.PONG:
            return PongReceived(bytes(frame.data))
        return None

    def _takes(self, binary: bool) -> bool:
        """Return True if messages of a type are taken; the first one of an acceptor decides it."""
        if self._undecided:
            self._undecided, self.binary = False, binary
        return binary is self.binary

    def _take_opening(self, event: Event) -> RequestReceived | Upgraded | None:
        raise NotImplementedError

    def _refusal(self, error: Exception) -> Closed:
        raise NotImplementedError


def _short(reason: str) -> str:
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")


def _add(items: list[Item], item: Item) -> None:
    """Add an item to those of a read; join consecutive texts."""
    if isinstance(item, list) and items and isinstance(items[-1], list):
        items[-1] += item
    else:
        items.append(item)
