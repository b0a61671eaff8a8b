"""The rest of a connection whose request is answered with events (docs/http.md), without I/O.

A response without a length ends with its connection. An event is whole with its empty line, and a peer drops
one that is not: so the connection may end anywhere, and other lines are written between events only.
"""

from __future__ import annotations

from typing import ClassVar

from websockets.protocol import OPEN, SERVER, Protocol, Side

from .close import CloseCode, Closed
from .framing import NO_LOGGER, Framing, Item

COMMENT = b":\n\n"
"""Line that means nothing, so that proxies and firewalls don't forget the connection."""

MAX_IGNORED_BYTES = 64 * 1024
"""Bytes from the peer behind its request, which mean nothing here: as many as a stranger may send."""


class EventFraming(Framing):
    """Hold the acceptor's end of a connection on which only events go out.

    Args:
        writes: The bytes that are written first.

    Attributes:
        inside_event: True while a part of an event is still to be written.
    """

    __slots__ = ("_ignored", "inside_event")

    masked = False
    _side: ClassVar[Side] = SERVER

    def __init__(self, writes: list[bytes]) -> None:
        super().__init__(Protocol(SERVER, state=OPEN, logger=NO_LOGGER), 0)
        # Nothing here is of a WebSocket.
        self._protocol = None
        self._writes = writes
        self._ignored = 0
        self.inside_event = False

    @property
    def quiet(self) -> bool:
        """Return True if nothing is to be done after a read."""
        return self._failure is None and not self._writes

    @property
    def closing(self) -> bool:
        """Return True if the TCP connection should end soon; if it doesn't, abort it."""
        return self._failure is not None and not self._failure.by_peer

    def receive_data(self, data: bytes) -> list[Item]:
        """Ignore bytes behind the request, such as another request, and end the stream if there are many."""
        self._ignored += len(data)
        if self._ignored > MAX_IGNORED_BYTES:
            self.fail(CloseCode.UNEXPECTED_PACKET, f"more than {MAX_IGNORED_BYTES} bytes behind a request")
        return []

    def receive_eof(self) -> None:
        """Take the end of the peer's stream, which wants no more events."""
        if self._failure is None:
            self._failure = Closed(CloseCode.ABNORMAL, "the client has gone", by_peer=True)

    def send_ping(self, _data: bytes = b"") -> None:
        """Queue a comment, unless an event is under way, or the connection is closing."""
        if self._failure is None and not self.inside_event:
            self._writes.append(COMMENT)

    def close(self, code: CloseCode, reason: str) -> None:
        """End the stream, so that the client comes again; it is told no reason, because it knows none."""
        self.fail(code, reason)

    def fail(self, code: CloseCode, reason: str) -> None:
        """End the stream, unless it has ended."""
        if self._failure is None:
            self._failure = Closed(code, reason, by_peer=False)
            self._writes.append(b"")
