"""The wires of the systems that wsqueue is compared with, for the load generator."""

from __future__ import annotations

import base64
import contextlib
import re
import secrets
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from websockets.frames import Frame, Opcode

from wsqueue.errors import ConnectError, WsqueueError
from wsqueue.tools.bench.classic import ClassicWire
from wsqueue.tools.bench.messages import Messages
from wsqueue.tools.bench.wire import Unwrapper, Wire
from wsqueue.tools.bench.workload import Load

TIMEOUT_SECONDS = 20.0
"""Maximum time until a server answers while a connection is opened."""

ENDLESS_FRAME_BYTES = 2**62
"""Length of a frame that no run can fill."""

TEXT, BINARY, PING, PONG = 0x81, 0x82, 0x89, 0x8A
"""The first bytes of unfragmented frames (RFC 6455 section 5.2)."""

_PING_LINE = re.compile(rb"(?<=\r\n)PING\r\n")
_PING_BEGUN = re.compile(rb"(?<=\r\n)P(?:I(?:N(?:G\r?)?)?)?\Z")


@runtime_checkable
class MessageWire(Wire, Protocol):
    """A wire that publishes each message by itself."""

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the bytes that publish data (ASCII); their number depends only on both lengths."""
        ...


@dataclass(frozen=True)
class Mixed:
    """A wire that replaces each message of the load by several messages of different sizes.

    The load generator sends messages of one size, with which a node may be faster than usual.

    Attributes:
        wire: Wire of the system.
        sizes: Bytes of data of the messages that follow each message of the load.
    """

    wire: MessageWire
    sizes: tuple[int, ...]

    @property
    def factor(self) -> int:
        """Return the number of messages for each message of the load."""
        return 1 + len(self.sizes)

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection to publish on."""
        return self.wire.open_publisher(number)

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection that is subscribed."""
        return self.wire.open_subscriber(topic)

    def publishing(self, load: Load) -> Messages:
        """Return the maker of the bytes that publishers write."""
        return Messages(self.published, load)

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the bytes that publish all messages."""
        return b"".join(self.wire.published(topic, one) for one in self._all(data))

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the bytes that deliver all messages."""
        return b"".join(self.wire.delivered(topic, one) for one in self._all(data))

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return the unwrapper of the system, or one that does not need messages of one size."""
        return TextUnwrapper() if isinstance(self.wire, ClassicWire) else self.wire.unwrapper(topic, load)

    def _all(self, data: bytes) -> list[bytes]:
        return [data, *(b"y" * size for size in self.sizes)]


class TextUnwrapper:
    """Remove control frames from text frames of any size.

    It looks at each frame, and therefore takes several times as long as `ClassicUnwrapper`.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self._replies = b""

    def unwrap(self, data: bytes) -> bytes:
        """Return the text frames, with their headers.

        Raises:
            WsqueueError: The node has closed, or broken the protocol.
        """
        data, at, begin = self._rest + data, self._left, 0
        parts = []
        while (header := _header(data, at)) is not None:
            size, first, length = header
            end = at + size + length
            if first == TEXT:
                at = end
                continue
            if end > len(data):
                break
            self._take_control(first, data[at + size : end])
            parts.append(data[begin:at])
            begin = at = end
        # The beginning of an incomplete text frame belongs to a record; that of a control frame does not.
        whole = min(at, len(data))
        self._left, self._rest = at - whole, data[whole:]
        return b"".join([*parts, data[begin:whole]])

    def replies(self) -> bytes:
        """Return the pongs for the pings so far, once."""
        replies, self._replies = self._replies, b""
        return replies

    def _take_control(self, first: int, payload: bytes) -> None:
        if first == PING:
            self._replies += Frame(Opcode.PONG, payload).serialize(mask=True)
        elif first != PONG:
            raise WsqueueError(f"the node sent a frame 0x{first:02x} {payload!r}")


class Passed:
    """The unwrapper of a protocol that only sends records: Redis over TCP."""

    def unwrap(self, data: bytes) -> bytes:
        """Return the data, which are all records."""
        return data

    def replies(self) -> bytes:
        """Return no bytes: the server expects no replies."""
        return b""


@dataclass(frozen=True)
class RedisWire:
    """Publish and subscribe with Redis' own protocol over TCP (RESP2).

    A publisher switches the replies off, or the server would answer each message with the number of its
    receivers: that is the faster way for Redis, and this load generator reads no publisher's socket.

    Attributes:
        host: Where the server listens.
        port: TCP port.
    """

    host: str
    port: int

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection on which commands publish, and the server does not reply."""
        with _connecting(self.host, self.port) as connection:
            connection.sendall(_resp(b"CLIENT", b"REPLY", b"OFF"))
        return connection

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection that is subscribed."""
        with _connecting(self.host, self.port) as connection:
            connection.sendall(_resp(b"SUBSCRIBE", topic.encode()))
            _expect(connection, b"*3\r\n" + _bulk(b"subscribe") + _bulk(topic.encode()) + b":1\r\n")
        return connection

    def publishing(self, load: Load) -> Messages:
        """Return the maker of the bytes that publishers write."""
        return Messages(self.published, load)

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the command that publishes a message."""
        return _resp(b"PUBLISH", topic.encode(), data)

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the record of a message."""
        return _resp(b"message", topic.encode(), data)

    def unwrapper(self, topic: str, load: Load) -> Passed:
        """Return the unwrapper of a subscriber's connection."""
        return Passed()


@dataclass(frozen=True)
class NatsWire:
    """Publish and subscribe with NATS' protocol in binary WebSocket messages.

    Attributes:
        host: Where the server listens for WebSockets.
        port: TCP port.
        frame_each: True gives each PUB a WebSocket message of its own, as a client does that flushes each.
            False puts all that a connection publishes into one frame without end. That is the limit of what a
            client can do that gathers many: NATS reads a frame's payload as it comes, and unframes nothing.
    """

    host: str
    port: int
    frame_each: bool

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection that is ready to publish."""
        return self._open(b"")

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection that is subscribed."""
        return self._open(f"SUB {topic} 1\r\n".encode())

    def publishing(self, load: Load) -> Messages:
        """Return the maker of the bytes that publishers write."""
        return Messages(self.published, load)

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the frame that publishes a message."""
        command = b"PUB %b %d\r\n%b\r\n" % (topic.encode(), len(data), data)
        return _masked(command) if self.frame_each else command

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the record of a message, without a frame."""
        return b"MSG %b 1 %d\r\n%b\r\n" % (topic.encode(), len(data), data)

    def unwrapper(self, topic: str, load: Load) -> NatsUnwrapper:
        """Return the unwrapper of a subscriber's connection."""
        return NatsUnwrapper(framed=self.frame_each)

    def _open(self, commands: bytes) -> socket.socket:
        """Upgrade, connect and send commands; return when the server has executed them."""
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        request = (
            f"GET / HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        options = b'CONNECT {"verbose":false,"pedantic":false,"lang":"bench","version":"0","protocol":0}\r\n'
        with _connecting(self.host, self.port) as connection:
            connection.sendall(request.encode())
            head = _read_until(connection, b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101 "):
                raise ConnectError(f"the server answers {head[:200]!r}")
            commands = options + commands + b"PING\r\n"
            if self.frame_each:
                connection.sendall(_masked(commands))
            else:
                header = struct.pack("!BBQ4x", BINARY, 0x80 | 127, ENDLESS_FRAME_BYTES)
                connection.sendall(header + commands)
            # No message is published on the topic yet, so none follows the answer.
            answer = _read_until(connection, b"PONG\r\n")
            if b"-ERR" in answer:
                raise ConnectError(f"the server answers {answer[:200]!r}")
        return connection


class NatsUnwrapper:
    """Remove the frames around the messages of a NATS server, and its PINGs between them.

    The data of a message must hold no line break and not be PING: then a line PING is the server's, and the
    messages need not be parsed to find it.

    Args:
        framed: Whether an answer needs a frame of its own, or is within the frame without end.
    """

    def __init__(self, *, framed: bool) -> None:
        self._pong = _masked(b"PONG\r\n") if framed else b"PONG\r\n"
        self._begun = b""
        self._control = bytearray()
        self._opcode = BINARY
        self._remaining = 0
        self._before, self._held = b"\r\n", b""
        self._replies: list[bytes] = []

    def unwrap(self, data: bytes) -> bytes:
        """Return the records in the bytes that were read; incomplete ones too.

        Raises:
            WsqueueError: The server has closed, or sent a frame that it is not known to send.
        """
        data, position = self._begun + data, 0
        self._begun = b""
        parts = [self._before, self._held]
        while position < len(data):
            if self._remaining == 0:
                header = _header(data, position)
                if header is None:
                    self._begun = data[position:]
                    break
                size, self._opcode, self._remaining = header
                position += size
            payload = data[position : position + self._remaining]
            position += len(payload)
            self._remaining -= len(payload)
            if self._opcode & 8:
                self._take_control(payload)
            else:
                parts.append(payload)
        return self._without_pings(b"".join(parts))

    def replies(self) -> bytes:
        """Return the pongs for the pings so far, once."""
        replies = b"".join(self._replies)
        self._replies.clear()
        return replies

    def _without_pings(self, text: bytes) -> bytes:
        """Remove PINGs from bytes that follow two bytes already returned, and keep the beginning of one."""
        if b"PING" in text:
            text, pings = _PING_LINE.subn(b"", text)
            self._replies += [self._pong] * pings
        begun = _PING_BEGUN.search(text, max(0, len(text) - len(b"\r\nPING\r")))
        end = begun.start() if begun else len(text)
        records, self._held, self._before = text[2:end], text[end:], text[end - 2 : end]
        return records

    def _take_control(self, payload: bytes) -> None:
        """Collect the payload of a control frame, which NATS sends only when it closes."""
        self._control += payload
        if self._remaining == 0:
            raise WsqueueError(f"the server sent a frame 0x{self._opcode:02x} {bytes(self._control)!r}")


@contextlib.contextmanager
def _connecting(host: str, port: int) -> Iterator[socket.socket]:
    """Open a connection, with a deadline only while it is set up.

    Raises:
        ConnectError: The server cannot be reached, or breaks off.
    """
    try:
        connection = socket.create_connection((host, port), TIMEOUT_SECONDS)
        try:
            yield connection
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
    except OSError as error:
        raise ConnectError(f"{host}:{port}: {error.strerror or error}") from None


def _read(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise ConnectError("the server has closed the connection")
    return data


def _read_until(connection: socket.socket, end: bytes) -> bytes:
    found = b""
    while end not in found:
        found += _read(connection)
    return found


def _expect(connection: socket.socket, wanted: bytes) -> None:
    """Read an answer, and no byte beyond it."""
    found = b""
    while len(found) < len(wanted):
        found += _read(connection)
    if found != wanted:
        raise ConnectError(f"the server answers {found[:200]!r}")


def _resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(map(_bulk, words))


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


def _masked(payload: bytes) -> bytes:
    """Return a frame of a client, masked with zeros: a server unmasks with any key."""
    length = len(payload)
    if length < 126:
        return struct.pack("!BB4x", BINARY, 0x80 | length) + payload
    if length < 65_536:
        return struct.pack("!BBH4x", BINARY, 0x80 | 126, length) + payload
    return struct.pack("!BBQ4x", BINARY, 0x80 | 127, length) + payload


def _header(data: bytes, position: int) -> tuple[int, int, int] | None:
    """Return size, first byte and payload length of a frame header, None if it is incomplete."""
    size = 2
    if position + 1 < len(data):
        size += {126: 2, 127: 8}.get(data[position + 1], 0)
    if position + size > len(data):
        return None
    length = int.from_bytes(data[position + 2 : position + size]) if size > 2 else data[position + 1]
    return size, data[position], length
