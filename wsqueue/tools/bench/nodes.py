"""Connections to the nodes of wsqueue, for both protocols."""

from __future__ import annotations

import secrets
import socket
import ssl
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from ...config.addresses import Address
from ...config.model import Limits
from ...errors import AuthenticationError, ConnectError, why
from ...net.certificates import TlsContexts
from ...net.tls import channel_binding, explain
from ...protocol.close import CloseCode
from ...protocol.keys import Order, PreSharedKey
from ...protocol.routing import topic_hash
from ...protocol.session import Session

OPEN_SECONDS = 10.0
"""Maximum time of each step of opening a connection."""


class NodesWire:
    """Open connections to nodes; subclasses implement the protocols.

    Args:
        producers: Addresses of the `/produce` endpoints.
        consumers: Addresses of the `/subscribe` endpoints, in the same order as at the producers.
        psk: The pre-shared key.
        hello_order: Digest order of a classic hello.
        limits: Limits of the nodes.
        tls: Certificates, used at wss:// addresses.
    """

    _v2: ClassVar[bool]

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
        # A key refuses to be pickled, but this pickle only goes through a pipe to a child process.
        psk = self._psk
        secret = psk._secrets[0].decode(), psk.name, psk.token  # noqa: SLF001
        addresses = self._producers, self._consumers
        return _restored, (type(self), addresses, secret, self._order, (self._limits, self._tls))

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection to a producer; consecutive numbers go to different producers."""
        return self._open(self._producers[number % len(self._producers)])

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection to the topic's consumer."""
        consumer = self._consumers[topic_hash(topic) % len(self._consumers)]
        return self._open(consumer.with_path(f"{consumer.path}/{quote(topic, safe='')}"))

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
            raise ConnectError(f"no node answers: {address}: {why(error)}") from None
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
        session = Session.initiator(
            address.host or "localhost",
            address.port or 80,
            address.path,
            self._psk,
            self._order,
            offer_v2=self._v2,
            allow_classic=not self._v2,
            max_message_bytes=self._limits.max_message_bytes,
            max_topic_bytes=self._limits.max_topic_bytes,
        )
        if isinstance(connection, ssl.SSLSocket):
            session.channel_binding = channel_binding(connection)
        # A classic node answers before it has verified; only its pong proves that it has (see `link`),
        # because no other peer can know its payload.
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
            while session.behind:
                session.receive_data(b"")
            if session.established and not asked:
                session.ping(token)
                asked = True


def _restored(
    kind: type[NodesWire],
    addresses: tuple[list[Address], list[Address]],
    secret: tuple[str, str, bytes],
    order: Order,
    others: tuple[Limits, TlsContexts | None],
) -> NodesWire:
    limits, tls = others
    text, name, token = secret
    psk = PreSharedKey(text, name=name)
    psk.token = token
    return kind(*addresses, psk, order, limits, tls=tls)


def _connect(address: Address) -> socket.socket:
    if not address.socket:
        connection = socket.create_connection((address.host, address.port), OPEN_SECONDS)
        # With Nagle's algorithm, the second packet of the hello would wait 40 ms for an acknowledgement.
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
