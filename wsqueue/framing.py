"""WebSocket messages out of bytes, and bytes out of messages, over websockets' Sans-I/O protocol.

The library does the HTTP upgrade, fragments, control frames, the close handshake and every protocol
error; this module turns its frames into payloads and writes frames in batches.
"""

from __future__ import annotations

import logging
import secrets
import struct
from collections.abc import Callable, Sequence
from http import HTTPStatus

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import HeaderLineTooLong, InvalidStatus, RequestLineTooLong, TooManyHeaders
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import CLOSED, CLOSING, OPEN, Event
from websockets.server import ServerProtocol
from websockets.uri import WebSocketURI

from .errors import CloseCode, Closed

MAX_REASON_BYTES = 123
"""A control frame carries 125 bytes, two of which are the close code (RFC 6455 section 5.5)."""

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - a platform without the compiled extension
    from websockets.utils import apply_mask

_silent = logging.getLogger("wsqueue.websockets")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False
_silent.setLevel(logging.CRITICAL)


class HttpAnswer(msgspec.Struct, frozen=True):
    """Answer a request with a plain-text page instead of a WebSocket."""

    status: int
    text: str


class Opened(msgspec.Struct, frozen=True):
    """Report that the WebSocket is open."""


class Ponged(msgspec.Struct, frozen=True):
    """Report the data of a pong."""

    data: bytes


Item = bytes | Opened | Ponged
"""What comes out of a read: the payload of a text message, or one of the rare things."""


def frame_texts(payloads: Sequence[bytes], *, masked: bool) -> bytes:
    """Return unfragmented text frames for all payloads, joined for one write (RFC 6455 section 5.2).

    Args:
        payloads: UTF-8.
        masked: True for what an initiator sends; each frame gets its own key, from one draw.
    """
    parts: list[bytes] = []
    append = parts.append
    mask_bit = 0x80 if masked else 0
    keys = secrets.token_bytes(4 * len(payloads)) if masked else b""
    for index, payload in enumerate(payloads):
        length = len(payload)
        if length < 126:
            append(struct.pack("!BB", 0x81, mask_bit | length))
        elif length < 65_536:
            append(struct.pack("!BBH", 0x81, mask_bit | 126, length))
        else:
            append(struct.pack("!BBQ", 0x81, mask_bit | 127, length))
        if masked:
            key = keys[4 * index : 4 * index + 4]
            append(key)
            append(apply_mask(payload, key))
        else:
            append(payload)
    return b"".join(parts)


class Framing:
    """Hold one end of a WebSocket connection, without I/O.

    A peer's fault never raises: it becomes a close frame to send and a cause in `closed`.
    """

    __slots__ = ("_failure", "_fragments", "_protocol")

    masked: bool

    def __init__(self, protocol: ClientProtocol | ServerProtocol) -> None:
        self._protocol = protocol
        self._fragments = bytearray()
        self._failure: Closed | None = None

    @property
    def open(self) -> bool:
        """Tell whether messages may be sent: after the upgrade and before any close frame."""
        return self._failure is None and self._protocol.state is OPEN

    @property
    def closing(self) -> bool:
        """Tell whether the TCP connection should end soon; if it does not, it must be aborted."""
        return self._protocol.close_expected()

    @property
    def closed(self) -> Closed | None:
        """Say why the connection ended or is about to, None while it goes on."""
        protocol = self._protocol
        if self._failure is not None:
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
        received, ended = self._protocol.close_rcvd, self._protocol.state is CLOSED
        return ended and received is not None and received.code in (CloseCode.NORMAL, CloseCode.GOING_AWAY)

    def receive_data(self, data: bytes) -> list[Item]:
        """Take bytes from the network; return what is whole."""
        if self._failure is not None:
            return []
        self._protocol.receive_data(data)
        return self._items(self._protocol.events_received())

    def receive_eof(self) -> None:
        """Take the end of the peer's stream."""
        self._protocol.receive_eof()

    def data_to_send(self) -> list[bytes]:
        """Return what must be written, where b"" means to half-close the connection."""
        return self._protocol.data_to_send()

    def send_text(self, payload: bytes) -> None:
        """Queue one text message, unless the connection is closing."""
        if self.open:
            self._protocol.send_text(payload)

    def send_ping(self, data: bytes = b"") -> None:
        """Queue a ping of at most 125 bytes, unless the connection is closing."""
        if self.open:
            self._protocol.send_ping(data)

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin the close handshake; what the peer sent before its own close frame is still read."""
        if self.open:
            self._protocol.send_close(code, _short(reason))

    def fail(self, code: CloseCode, reason: str) -> None:
        """End the connection at once, unless it has ended; nothing more is read from it."""
        self._failure = self.closed or Closed(code, reason, by_peer=False)
        if self._protocol.state in (OPEN, CLOSING):
            self._protocol.fail(code, _short(reason))

    def refuse(self, code: CloseCode, reason: str) -> None:
        """End the connection for a fault in what was just read.

        Unlike `fail`, this comes before a close frame of the peer: that was behind the fault in the
        same read, for nothing is read after it.
        """
        if self.closed is None or self.closed.by_peer:
            self._failure = Closed(code, reason, by_peer=False)
        self.fail(code, reason)

    def _items(self, events: Sequence[Event]) -> list[Item]:
        items: list[Item] = []
        for event in events:
            if isinstance(event, Frame):
                item = self._take_frame(event)
                if item is not None:
                    items.append(item)
                if self._failure is not None:
                    break
            else:
                items.extend(self._take_opening(event))
        return items

    def _take_frame(self, frame: Frame) -> Item | None:
        if frame.opcode is Opcode.TEXT and frame.fin:
            return self._text(bytes(frame.data))
        if frame.opcode in (Opcode.TEXT, Opcode.CONT):
            self._fragments += frame.data
            if frame.fin:
                payload = bytes(self._fragments)
                self._fragments.clear()
                return self._text(payload)
        elif frame.opcode is Opcode.BINARY:
            self.refuse(CloseCode.UNSUPPORTED_DATA, CloseCode.UNSUPPORTED_DATA.reason)
        elif frame.opcode is Opcode.PONG:
            return Ponged(bytes(frame.data))
        return None

    def _text(self, payload: bytes) -> bytes | None:
        try:
            payload.decode()
        except UnicodeDecodeError:
            self.refuse(CloseCode.INVALID_TEXT, CloseCode.INVALID_TEXT.reason)
            return None
        return payload

    def _take_opening(self, event: Event) -> list[Item]:
        raise NotImplementedError

    def _refusal(self, error: Exception) -> Closed:
        raise NotImplementedError


class ServerFraming(Framing):
    """Accept a WebSocket, or answer the request with a page.

    Args:
        answer_request: From the request's path (with query) to a page, or None to upgrade.
        max_message_bytes: Larger messages close the connection with 1009.
    """

    __slots__ = ("_answer_request", "_requested")

    masked = False
    _protocol: ServerProtocol

    def __init__(self, answer_request: Callable[[str], HttpAnswer | None], max_message_bytes: int) -> None:
        super().__init__(ServerProtocol(max_size=max_message_bytes, logger=_silent))
        self._answer_request = answer_request
        self._requested = False

    def receive_data(self, data: bytes) -> list[Item]:
        """Take bytes from the network; return what is whole.

        Until the request is complete it goes to the library line by line, for the library would
        parse what follows the request as frames before the request has been answered.
        """
        items: list[Item] = []
        while data and not self._requested and not self.closing:
            end = data.find(b"\n") + 1 or len(data)
            items += super().receive_data(data[:end])
            data = data[end:]
        if data:
            items += super().receive_data(data)
        return items

    def _take_opening(self, event: Event) -> list[Item]:
        assert isinstance(event, Request)
        self._requested = True
        answer = self._answer_request(event.path)
        if answer is None:
            response = self._protocol.accept(event)
        else:
            response = self._protocol.reject(answer.status, answer.text)
        self._protocol.send_response(response)
        if self.open:
            return [Opened()]
        self._failure = Closed(response.status_code, response.reason_phrase, by_peer=False)
        return []

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
    """

    __slots__ = ()

    masked = True
    _protocol: ClientProtocol

    def __init__(self, host: str, port: int, path: str, max_message_bytes: int) -> None:
        uri = WebSocketURI(False, host, port, path, "")
        protocol = ClientProtocol(uri, max_size=max_message_bytes, logger=_silent)
        super().__init__(protocol)
        protocol.send_request(protocol.connect())

    def _take_opening(self, event: Event) -> list[Item]:
        return [Opened()] if self.open else []

    def _refusal(self, error: Exception) -> Closed:
        if isinstance(error, InvalidStatus):
            response = error.response
            return Closed(response.status_code, f"HTTP {response.reason_phrase}", by_peer=True)
        return Closed(CloseCode.ABNORMAL, f"not a WebSocket server: {error}", by_peer=True)


def _short(reason: str) -> str:
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
