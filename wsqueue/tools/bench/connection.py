"""A connection of a worker. It makes plain system calls, because an event loop would cost too much."""

from __future__ import annotations

import contextlib
import socket
import ssl

from ...config.addresses import Address
from ...errors import WsqueueError, why
from .wire import Unwrapper

_NOT_NOW = BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError
"""Raised by a socket that would have to wait."""

READ_BYTES = 256 * 1024
"""Bytes that are read from a socket at a time."""


class LoadConnection:
    """A socket that never blocks, and the bytes that it has not taken yet.

    Args:
        name: Name of its owner, for errors.
        connection: The socket.
        unwrapper: Finds the records in the bytes that are read; without it, they are dropped.
    """

    def __init__(self, name: str, connection: socket.socket, unwrapper: Unwrapper | None) -> None:
        connection.setblocking(False)
        peer = connection.getpeername()
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Address(host=peer[0], port=peer[1])
        self._name = f"{name} at {peer}"
        self._connection, self._unwrapper = connection, unwrapper
        self._pending: memoryview | bytes = b""

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._connection.fileno()

    def write(self, data: memoryview | bytes) -> None:
        """Write data, and keep the bytes that the socket does not take; only while nothing is pending."""
        try:
            written = self._send(data)
        except OSError as error:
            # The peer may have sent a reason before it closed the connection.
            self.read(memoryview(bytearray(READ_BYTES)))
            raise WsqueueError(f"{self._name}: {why(error)}") from None
        self._pending = data[written:]

    def flush(self) -> bool:
        """Write the pending bytes, and return True if none are left."""
        if self._pending:
            self.write(self._pending)
        return not self._pending

    def read(self, buffer: memoryview) -> bytes:
        """Read, write the replies of the unwrapper, and return the records that it finds.

        The buffer is reused, because allocating one of this size for each read would map memory each time.

        Raises:
            WsqueueError: The connection has ended, or the peer broke the protocol.
        """
        try:
            data = self._receive(buffer)
        except _NOT_NOW:
            return b""
        except OSError as error:
            raise WsqueueError(f"{self._name}: {why(error)}") from None
        if not data:
            raise WsqueueError(f"{self._name}: the node closed the connection")
        if self._unwrapper is None:
            return b""
        try:
            stream = self._unwrapper.unwrap(data)
        except WsqueueError as error:
            raise WsqueueError(f"{self._name}: {error}") from None
        if replies := self._unwrapper.replies():
            if self._pending:
                self._pending = bytes(self._pending) + replies
            else:
                self.write(replies)
        return stream

    def _send(self, data: memoryview | bytes) -> int:
        connection, written = self._connection, 0
        try:
            written = connection.send(data)
            # TLS sends one record at a time.
            while isinstance(connection, ssl.SSLSocket) and written < len(data):
                written += connection.send(data[written:])
        except _NOT_NOW:
            pass
        return written

    def _receive(self, buffer: memoryview) -> bytes:
        connection, size = self._connection, self._connection.recv_into(buffer)
        if not isinstance(connection, ssl.SSLSocket):
            return bytes(buffer[:size])
        # TLS reads one record at a time, and no event would follow for the rest of a record.
        parts = [bytes(buffer[:size])]
        with contextlib.suppress(*_NOT_NOW):
            while size and (sum(map(len, parts)) < len(buffer) or connection.pending()):
                size = connection.recv_into(buffer)
                parts.append(bytes(buffer[:size]))
        return b"".join(parts)
