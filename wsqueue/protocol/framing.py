"""WebSocket messages out of bytes, and bytes out of messages, over websockets' Sans-I/O protocol.

The library does the HTTP upgrade, fragments, control frames, the close handshake and every protocol
error. Plain frames, of which there are millions, take the fast lane (`cut_texts`) around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, ClassVar

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import HeaderLineTooLong, InvalidStatus, RequestLineTooLong, TooManyHeaders
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import CLIENT, CLOSED, CLOSING, CONNECTING, OPEN, SERVER, Event, Protocol, Side
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from .close import CloseCode, Closed
from .frames import MAX_HEADER_BYTES, cut_texts, frame_size, frame_texts

MAX_REASON_BYTES = 123
"""A control frame carries 125 bytes, two of which are the close code (RFC 6455 section 5.5)."""


MAX_HEAD_LINES = 130
"""Of a request or an answer: the first line, the 128 headers that the library takes, and an empty one."""


SUBPROTOCOL_HEADER = "Sec-WebSocket-Protocol"
"""RFC 6455 section 11.3.4."""


class _NoLogger:
    """Take the log calls of the library's protocol and drop them."""

    def isEnabledFor(self, _level: int) -> bool:  # noqa: N802 - the name in logging.Logger
        return False

    def debug(self, *_args: object, **_keywords: object) -> None:
        pass

    info = warning = error = debug


_NO_LOGGER: Any = _NoLogger()


class HttpResponse(msgspec.Struct, frozen=True):
    """Answer a request with a page instead of a WebSocket.

    Attributes:
        status: Of HTTP.
        text: The page.
        content_type: Of the page.
        headers: Besides those that each answer has.
    """

    status: int
    text: str
    content_type: str = "text/plain; charset=utf-8"
    headers: dict[str, str] = {}


class RequestReceived(msgspec.Struct, frozen=True):
    """Report a request, to be answered with `accept` or `respond`.

    Attributes:
        path: Of the request, with its query.
        host: The `Host` headers, "" if there are none: how the peer calls this node.
        offers_subprotocol: True if the peer offers the subprotocol of this end.
    """

    path: str
    host: str
    offers_subprotocol: bool


class Upgraded(msgspec.Struct, frozen=True):
    """Report that the WebSocket is open.

    Attributes:
        path: Of the request, with its query.
        offered: The subprotocols that the initiator offered, as they were sent.
        subprotocol: What the acceptor selected, None if it selected none.
    """

    path: str
    offered: str
    subprotocol: str | None


class PongReceived(msgspec.Struct, frozen=True):
    """Report the data of a pong."""

    data: bytes


Item = list[bytes] | RequestReceived | Upgraded | PongReceived
"""What comes out of a read: the payloads of consecutive text messages, or one of the rare things.

A payload may still turn out not to be UTF-8: `packets.decode` finds that out.
"""


class Framing:
    """Hold one end of a WebSocket connection, without I/O.

    A peer's fault never raises: it becomes a close frame to send and a cause in `closed`.

    The library's protocol is there only while it has something to do: during the upgrade, between the
    fragments of a message, from the first close frame on. A connection at rest does without its 4 KiB.
    """

    __slots__ = (
        "_failure",
        "_fragments",
        "_head",
        "_head_lines",
        "_in_fragments",
        "_lacking",
        "_max_message_bytes",
        "_needed",
        "_protocol",
        "_tail",
        "_writes",
    )

    masked: ClassVar[bool]
    _side: ClassVar[Side]

    def __init__(self, protocol: Protocol, max_message_bytes: int) -> None:
        self._protocol: Protocol | None = protocol
        self._max_message_bytes = max_message_bytes
        self._failure: Closed | None = None
        self._writes = protocol.data_to_send()
        self._head_lines = 0
        # The beginning of a plain frame, and the length at which to look at it again.
        self._tail = bytearray()
        self._needed = 0
        # Of the frame that the library is reading: an incomplete header, or what is left to come.
        self._head = b""
        self._lacking = 0
        self._fragments = bytearray()
        self._in_fragments = False

    def allow_more(self, more_bytes: int) -> None:
        """Let messages be longer by so many bytes from now on."""
        self._max_message_bytes += more_bytes
        if self._protocol is not None:
            self._protocol.max_message_size = self._max_message_bytes

    @property
    def open(self) -> bool:
        """Tell whether messages may be sent: after the upgrade and before any close frame."""
        protocol = self._protocol
        return self._failure is None and (protocol is None or protocol.state is OPEN)

    @property
    def quiet(self) -> bool:
        """Tell whether there is nothing to send and nothing ends, as after nearly every read."""
        return self._protocol is None and not self._writes and self._failure is None

    @property
    def closing(self) -> bool:
        """Tell whether the TCP connection should end soon; if it does not, it must be aborted."""
        return self._protocol is not None and self._protocol.close_expected()

    @property
    def closed(self) -> Closed | None:
        """Say why the connection ended or is about to, None while it goes on."""
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
        """Tell whether the peer has closed, or echoed our close, and so has read all that we sent.

        One that closes first reads on until our echo, and then ends the stream; one that gives up before
        that resets the connection.
        """
        if self._protocol is None:
            return False
        received, ended = self._protocol.close_rcvd, self._protocol.state is CLOSED
        return ended and received is not None and received.code in (CloseCode.NORMAL, CloseCode.GOING_AWAY)

    def receive_data(self, data: bytes) -> list[Item]:
        """Take bytes from the network; return what is whole."""
        items: list[Item] = []
        if self._failure is not None:
            return items
        position = self._read_head(data, items) if self._protocol is not None else 0
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
        """Return what must be written, where b"" means to half-close the connection."""
        writes, self._writes = self._writes, []
        return writes

    def send_text(self, payload: bytes) -> None:
        """Queue one text message, unless the connection is closing."""
        if self.open:
            self._writes.append(frame_texts([payload], masked=self.masked))

    def send_ping(self, data: bytes = b"") -> None:
        """Queue a ping of at most 125 bytes, unless the connection is closing."""
        if self.open:
            self._library().send_ping(data)
            self._settle()

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin the close handshake; what the peer sent before its own close frame is still read."""
        if self.open:
            self._library().send_close(code, _short(reason))
            self._settle()

    def fail(self, code: CloseCode, reason: str) -> None:
        """End the connection at once, unless it has ended; nothing more is read from it."""
        self._failure = self.closed or Closed(code, reason, by_peer=False)
        library = self._library()
        if library.state in (OPEN, CLOSING):
            library.fail(code, _short(reason))
            self._settle()

    def refuse(self, code: CloseCode, reason: str) -> None:
        """End the connection for a fault in what was just read.

        Unlike `fail`, this comes before a close frame of the peer: that was behind the fault in the
        same read, for nothing is read after it.
        """
        if self.closed is None or self.closed.by_peer:
            self._failure = Closed(code, reason, by_peer=False)
        self.fail(code, reason)

    def _library(self) -> Protocol:
        """Return the library's protocol, made anew when it was let go."""
        if self._protocol is None:
            self._protocol = Protocol(
                self._side, state=OPEN, max_size=self._max_message_bytes, logger=_NO_LOGGER
            )
        return self._protocol

    def _settle(self) -> None:
        """Queue what the library wants to write, and let it go when it is at rest."""
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
        while position < len(data) and self._failure is None:
            if self._fast:
                payloads, position, needed = cut_texts(
                    data, position, masked=not self.masked, max_message_bytes=self._max_message_bytes
                )
                if payloads:
                    _add(items, payloads)
                if position == len(data):
                    return
                if needed:
                    self._tail += memoryview(data)[position:]
                    self._needed = needed
                    return
            position = self._hand_over(data, position, items)

    @property
    def _fast(self) -> bool:
        """Tell whether a frame begins here that may be plain: the library is reading none, and listens."""
        library = self._protocol
        return library is None or (
            not (self._lacking or self._head or self._in_fragments)
            and library.state in (OPEN, CLOSING)
            and library.close_rcvd is None
            and library.parser_exc is None
        )

    def _hand_over(self, data: bytes, position: int, items: list[Item]) -> int:
        """Hand the frame at a position, or what is there of it, to the library; return where it ends."""
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
        if frame.opcode in (Opcode.TEXT, Opcode.CONT):
            self._fragments += frame.data
            self._in_fragments = not frame.fin
            if frame.fin:
                payload = bytes(self._fragments)
                self._fragments.clear()
                return [payload]
        elif frame.opcode is Opcode.BINARY:
            self.refuse(CloseCode.UNSUPPORTED_DATA, CloseCode.UNSUPPORTED_DATA.reason)
        elif frame.opcode is Opcode.PONG:
            return PongReceived(bytes(frame.data))
        return None

    def _take_opening(self, event: Event) -> RequestReceived | Upgraded | None:
        raise NotImplementedError

    def _refusal(self, error: Exception) -> Closed:
        raise NotImplementedError


ONLY_GET = HttpResponse(405, "Only GET and HEAD are answered here.\n", headers={"Allow": "GET, HEAD"})


class ServerFraming(Framing):
    """Receive a request, and accept a WebSocket or respond with a page.

    After a `RequestReceived`, nothing more is read until it is answered; data that comes meanwhile waits.

    Args:
        max_message_bytes: Larger messages close the connection with 1009.
        subprotocol: Selected when it is offered.
    """

    __slots__ = ("_behind_request", "_request", "_subprotocol")

    masked = False
    _side = SERVER

    def __init__(self, max_message_bytes: int, subprotocol: str) -> None:

        def select(_protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
            return next((name for name in offered if name == subprotocol), None)

        protocol = ServerProtocol(max_size=max_message_bytes, logger=_NO_LOGGER, select_subprotocol=select)
        super().__init__(protocol, max_message_bytes)
        self._subprotocol = subprotocol
        self._request: Request | None = None
        self._behind_request = b""

    def accept(self) -> list[Item]:
        """Open the WebSocket that was requested; return what the bytes behind the request hold.

        A request without the headers of an upgrade is refused (RFC 6455 section 4.2.1).
        """
        library, request = self._answer()
        self._send(library.accept(request), request)
        if not self.open:
            return []
        upgraded = Upgraded(request.path, _offered(request), library.subprotocol)
        data, self._behind_request = self._behind_request, b""
        return [upgraded, *self.receive_data(data)]

    def respond(self, page: HttpResponse) -> None:
        """Answer the request with a page, and end the connection; the bytes behind it are ignored."""
        library, request = self._answer()
        response = library.reject(page.status, page.text)
        for name, value in {"Content-Type": page.content_type, **page.headers}.items():
            response.headers.pop(name, None)
            response.headers[name] = value
        self._send(response, request)

    def _answer(self) -> tuple[ServerProtocol, Request]:
        library, request = self._protocol, self._request
        assert isinstance(library, ServerProtocol)
        assert request is not None, "there is no request to answer"
        self._request = None
        return library, request

    def _send(self, response: Response, request: Request) -> None:
        library = self._protocol
        assert isinstance(library, ServerProtocol)
        if request.method == "HEAD":
            response.body = b""
        library.send_response(response)
        if not self.open:
            self._failure = Closed(response.status_code, response.reason_phrase, by_peer=False)
            self._behind_request = b""
        self._settle()

    def _read_head(self, data: bytes, items: list[Item]) -> int:
        position = super()._read_head(data, items) if self._request is None else 0
        if self._request is None:
            return position
        self._behind_request += data[position:]
        return len(data)

    def _take_opening(self, event: Event) -> RequestReceived | None:
        assert isinstance(event, Request)
        self._request = event
        if event.method not in ("GET", "HEAD"):
            self.respond(ONLY_GET)
            return None
        names = re.split(r"[\s,]+", _offered(event))
        host = ", ".join(event.headers.get_all("Host"))
        return RequestReceived(event.path, host, self._subprotocol in names)

    def _refusal(self, error: Exception) -> Closed:
        status = HTTPStatus.BAD_REQUEST
        if isinstance(error, RequestLineTooLong):
            status = HTTPStatus.REQUEST_URI_TOO_LONG
        elif isinstance(error, HeaderLineTooLong | TooManyHeaders):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        return Closed(status, f"not a WebSocket request: {error}", by_peer=False)


class ClientFraming(Framing):
    """Open a WebSocket.

    Args:
        host: Host name or address, without brackets.
        port: TCP port.
        path: Path of the endpoint, percent-encoded.
        max_message_bytes: Larger messages close the connection with 1009.
        subprotocols: To offer.
    """

    __slots__ = ("_offered", "_path")

    masked = True
    _side = CLIENT

    def __init__(
        self, host: str, port: int, path: str, max_message_bytes: int, subprotocols: Sequence[str] = ()
    ) -> None:
        uri = WebSocketURI(False, host, port, path, "")
        protocol = ClientProtocol(
            uri,
            max_size=max_message_bytes,
            logger=_NO_LOGGER,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        )
        request = protocol.connect()
        protocol.send_request(request)
        super().__init__(protocol, max_message_bytes)
        self._path, self._offered = path, _offered(request)

    def _take_opening(self, event: Event) -> Upgraded | None:
        library = self._protocol
        assert isinstance(library, ClientProtocol)
        return Upgraded(self._path, self._offered, library.subprotocol) if self.open else None

    def _refusal(self, error: Exception) -> Closed:
        if isinstance(error, InvalidStatus):
            response = error.response
            return Closed(response.status_code, f"HTTP {response.reason_phrase}", by_peer=True)
        return Closed(CloseCode.ABNORMAL, f"not a WebSocket server: {error}", by_peer=True)


def _offered(request: Request) -> str:
    """Return the subprotocols that a request offers, as they were sent."""
    return ", ".join(request.headers.get_all(SUBPROTOCOL_HEADER))


def _short(reason: str) -> str:
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")


def _add(items: list[Item], item: Item) -> None:
    """Add what was read to the items; texts that follow each other are one."""
    if isinstance(item, list) and items and isinstance(items[-1], list):
        items[-1] += item
    else:
        items.append(item)
