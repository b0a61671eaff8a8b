"""The bytes that a connection has still to write, in plaintext: the loop's own buffer is kept small."""

from __future__ import annotations

import asyncio

from .tls import TlsStream

WRITE_HIGH_WATER = 16 * 1024
"""Bytes in the loop's write buffer above which further writes wait here, where they take less memory."""

CONGESTED_BYTES = 256 * 1024
"""Bytes that wait for a peer from which on it is congested: about as much as a socket takes in one go."""

HELD_OVERHEAD_BYTES = 100
"""Memory of a waiting write besides its bytes (an object and a list entry), so that limits are honest."""

SMALL_WRITE_BYTES = 4 * 1024
"""Average size below which waiting writes are joined: the loop takes 850 bytes more for each write."""


class WriteBuffer:
    """Write to a transport, and keep whole frames back while its buffer is full.

    Args:
        tls: Encrypts all that is written, if there is TLS.

    Attributes:
        transport: The transport while there is one.
        full: True while the peer reads slower than we write.
    """

    __slots__ = ("_bytes", "_eof_due", "_frames", "_tls", "full", "transport")

    def __init__(self, tls: TlsStream | None) -> None:
        self.transport: asyncio.Transport | None = None
        self.full = False
        self._tls = tls
        # Whole frames; subscribers of a topic share the same bytes.
        self._frames: list[bytes] = []
        self._bytes = 0
        self._eof_due = False

    @property
    def size(self) -> int:
        """Return the bytes that wait in this process to be written."""
        if self.transport is None:
            return 0
        return self.transport.get_write_buffer_size() + self._bytes

    def attach(self, transport: asyncio.Transport) -> None:
        """Write to a transport from now on."""
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)

    def write(self, data: bytes) -> None:
        """Write whole frames, or keep them until there is room."""
        assert self.transport is not None
        if self.full:
            self._frames.append(data)
            self._bytes += len(data) + HELD_OVERHEAD_BYTES
        elif self._tls is not None:
            self.transport.write(self._tls.send(data))
        else:
            self.transport.write(data)

    def write_eof(self) -> None:
        """End the stream behind everything that waits."""
        self._eof_due = True
        self.write_waiting()

    def write_waiting(self) -> None:
        """Write the frames that wait, as far as there is room."""
        transport, frames = self.transport, self._frames
        while frames and transport is not None and not self.full:
            size = count = 0
            while count < len(frames) and size < CONGESTED_BYTES:
                size += len(frames[count])
                count += 1
            batch = frames[:count]
            del frames[:count]
            self._bytes -= size + HELD_OVERHEAD_BYTES * count
            if self._tls is not None:
                transport.write(self._tls.send(b"".join(batch)))
            elif size < count * SMALL_WRITE_BYTES:
                transport.write(b"".join(batch))
            else:
                transport.writelines(batch)
        if self._eof_due and not frames and transport is not None:
            self._eof_due = False
            if self._tls is not None:
                # The TCP stream stays open, so that the peer can end its direction of TLS.
                transport.write(self._tls.end())
            else:
                transport.write_eof()

    def drop(self) -> None:
        """Forget the frames that wait."""
        self._frames.clear()
        self._bytes = 0
