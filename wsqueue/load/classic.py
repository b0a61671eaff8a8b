"""The classic protocol of wsqueue, as the load generator needs it."""

from __future__ import annotations

import secrets
import socket
import ssl
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from websockets.frames import Close, Frame, Opcode

from .. import packets
from ..addresses import Address
from ..config import Limits
from ..errors import AuthenticationError, CloseCode, ConnectError, WsqueueError
from ..framing import MAX_HEADER_BYTES, TEXT_AND_FIN, frame_size, frame_texts
from ..hello import Order, PreSharedKey
from ..routing import topic_hash
from ..session import Session
from ..tls import TlsContexts, channel_binding, explain

OPEN_SECONDS = 10.0
"""How long a node may take for each step of a connection."""

_FIN = 0x80
_CLOSE, _PING, _PONG = _FIN | Opcode.CLOSE, _FIN | Opcode.PING, _FIN | Opcode.PONG


class ClassicWire:
    """Speak the classic protocol of wsqueue.

    Args:
        producers: Their `/produce` endpoints.
        consumers: Their `/subscribe` endpoints, in the order that the producers have too.
        psk: The pre-shared key.
        hello_order: The digest order of an initiator.
        limits: Sizes.
        tls: Certificates, used at wss:// addresses.
    """

    def __init__(
        self,
        producers: Sequence[Address],
        consumers: Sequence[Address],
        psk: PreSharedKey,
        hello_order: Order = Order.DOCUMENT,
        limits: Limits | None = None,
        *,
        tls: TlsContexts | None = None,
    ) -> None:
        self._producers, self._consumers = list(producers), list(consumers)
        self._psk, self._order, self._limits, self._tls = psk, hello_order, limits or Limits(), tls

    def __reduce__(self) -> tuple[Any, ...]:
        # A key refuses to be pickled; this pickle goes through a pipe to a process of our own.
        secret = self._psk._secrets[0].decode()  # noqa: SLF001
        nodes = self._producers, self._consumers
        return _classic_wire, (nodes, secret, self._order, self._limits, self._tls)

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection to one producer after the other."""
        return self._open(self._producers[number % len(self._producers)])

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection to the topic's consumer."""
        consumer = self._consumers[topic_hash(topic) % len(self._consumers)]
        return self._open(consumer.with_path(f"{consumer.path}/{quote(topic, safe='')}"))

    def published(self, topic: str, data: bytes) -> bytes:
        """Return a masked frame."""
        return frame_texts([_payload(topic, data)], masked=True)

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return an unmasked frame."""
        return frame_texts([_payload(topic, data)], masked=False)

    def unwrapper(self) -> ClassicUnwrapper:
        """Return what takes control frames out."""
        return ClassicUnwrapper()

    def publisher_unwrapper(self) -> ClassicUnwrapper:
        """Return what answers pings: a publisher that says little gets some."""
        return ClassicUnwrapper()

    def _open(self, address: Address) -> socket.socket:
        try:
            connection = self._connect(address)
            try:
                self._hello(connection, address)
            except BaseException:
                connection.close()
                raise
        except TimeoutError:
            raise ConnectError(f"no node answers: {address}: no answer in time") from None
        except ssl.SSLError as error:
            raise ConnectError(f"no node answers: {address}: {explain(error)}") from None
        except OSError as error:
            raise ConnectError(f"no node answers: {address}: {error.strerror or error}") from None
        connection.settimeout(None)
        return connection

    def _connect(self, address: Address) -> socket.socket:
        connection = _connect(address)
        if not address.tls:
            return connection
        assert self._tls is not None
        try:
            return self._tls.wrap(connection, address)
        except OSError:
            connection.close()
            raise

    def _hello(self, connection: socket.socket, address: Address) -> None:
        session = Session.initiate(
            address.host or "localhost",
            address.port or 80,
            address.path,
            self._psk,
            self._order,
            offer_v2=False,
            allow_classic=True,
            max_message_bytes=self._limits.max_message_bytes,
            max_topic_bytes=self._limits.max_topic_bytes,
        )
        if isinstance(connection, ssl.SSLSocket):
            session.channel_binding = channel_binding(connection)
        # An original node answers before it has verified: only its pong says that it has (see `link`).
        # Nobody else could know what is in that.
        token = secrets.token_bytes(8)
        heard, asked = b"", False
        while not (asked and heard.endswith(token)):
            for data in session.data_to_send():
                connection.sendall(data)
            if session.closed is not None:
                wrong_key = session.closed.code == CloseCode.WRONG_ANSWER
                kind = AuthenticationError if wrong_key else ConnectError
                raise kind(f"no node answers: {address}: {session.closed}")
            data = connection.recv(65_536)
            if not data:
                raise ConnectError(f"no node answers: {address}: it closed the connection during the hello")
            heard = (heard + data)[-len(token) :]
            session.receive_data(data)
            if session.established and not asked:
                session.ping(token)
                asked = True


class ClassicUnwrapper:
    """Take the control frames out of a stream of text frames, most of which have one length.

    To parse each frame would take 10 µs for each message: only those that begin otherwise than expected are.
    """

    _TEXTS, _KINDS = bytes([TEXT_AND_FIN]), bytes([TEXT_AND_FIN, _CLOSE, _PING, _PONG])

    def __init__(self) -> None:
        self._stride = 0
        self._left = 0
        self._held = b""
        self._replies = b""

    def unwrap(self, data: bytes) -> bytes:
        """Return the text frames, with their headers.

        Raises:
            WsqueueError: The node has closed.
        """
        data, self._held = self._held + data, b""
        parts: list[bytes] = []
        begin, at = 0, self._left
        while at < len(data):
            at += self._alike(data, at)
            head = data[at : at + MAX_HEADER_BYTES]
            if not head:
                break
            if head[0] not in self._KINDS:
                # Somebody else's message was longer or shorter; the records' own check will say so.
                at = len(data)
                break
            size = frame_size(head)
            if size is not None and head[0] == TEXT_AND_FIN:
                self._stride = size
                at += size
                continue
            if size is None or at + size > len(data):
                self._held = data[at:]
                break
            parts.append(data[begin:at])
            self._take_control(head[0], data[at + 2 : at + size])
            begin = at = at + size
        end = len(data) - len(self._held)
        self._left = at - end
        # Joining one part, or slicing the whole, copies nothing.
        return b"".join([*parts, data[begin:end]])

    def replies(self) -> bytes:
        """Return the pongs for the pings so far."""
        replies, self._replies = self._replies, b""
        return replies

    def _alike(self, data: bytes, at: int) -> int:
        """Return how many bytes there are of text frames, if all of them are as long as the last one.

        They are, for they hold records: who counts and compares those would see it if one was not.
        """
        if not self._stride:
            return 0
        kinds = data[at :: self._stride]
        return self._stride * (len(kinds) - len(kinds.lstrip(self._TEXTS)))

    def _take_control(self, kind: int, payload: bytes) -> None:
        if kind == _PING:
            self._replies += Frame(Opcode.PONG, payload).serialize(mask=True)
        elif kind == _CLOSE:
            close = Close.parse(payload)
            raise WsqueueError(f"the node closed with {close.code} ({close.reason})")


def _classic_wire(
    nodes: tuple[list[Address], list[Address]],
    secret: str,
    order: Order,
    limits: Limits,
    tls: TlsContexts | None,
) -> ClassicWire:
    return ClassicWire(*nodes, PreSharedKey(secret), order, limits, tls=tls)


def _payload(topic: str, data: bytes) -> bytes:
    return packets.encode(packets.Message(data=data.decode(), topic=topic))


def _connect(address: Address) -> socket.socket:
    if not address.socket:
        connection = socket.create_connection((address.host, address.port), OPEN_SECONDS)
        # Else the second packet of the hello would wait 40 ms for the acknowledgement of the first.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(OPEN_SECONDS)
        connection.connect(address.socket)
    except OSError:
        connection.close()
        raise
    return connection
