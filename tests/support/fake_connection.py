"""A connection without a transport, that keeps everything written to it."""

from __future__ import annotations

from collections.abc import Sequence

from wsqueue.config.model import Limits
from wsqueue.net.connection import Connection
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.frames import BINARY_AND_FIN, cut_messages, frame_messages

from .session_pair import accept


def payloads_of(frames: bytes, first: int) -> list[bytes]:
    """Return the payloads of frames of an acceptor, all of which begin with the same byte."""
    payloads, end, _ = cut_messages(
        frames, 0, first=first, masked=False, max_message_bytes=2**31, max_frames=2**31
    )
    assert end == len(frames)
    return payloads


class FakeConnection(Connection):
    """Stand for a v2 connection of an acceptor, whose hello is done.

    Attributes:
        packets: Everything that was written.
        failed: The code that it was ended with, None while it is open.
        is_congested: Whether the peer reads slowly; a test says so.
        room: Number of bytes after which it is congested.
        paused: How often reading is paused.
    """

    def __init__(self) -> None:
        super().__init__(accept(), Limits())
        self.session.v2 = True
        self.packets: list[v2.Packet] = []
        self.failed: CloseCode | None = None
        self.is_congested = False
        self.room: int | None = None
        self.paused = 0

    @property
    def sendable(self) -> bool:
        return self.failed is None

    @property
    def congested(self) -> bool:
        return self.is_congested or (self.room is not None and self.room <= 0)

    def send(self, payloads: Sequence[bytes]) -> None:
        self.send_frames(frame_messages(payloads, masked=False, binary=True))

    def send_frames(self, frames: bytes) -> bool:
        if not self.sendable:
            return False
        self.packets += map(v2.decode, payloads_of(frames, BINARY_AND_FIN))
        if self.room is not None:
            self.room -= len(frames)
        return True

    def fail(self, code: CloseCode, reason: str = "") -> None:
        if self.failed is None:
            self.failed = code

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1

    def take(self) -> list[v2.Packet]:
        """Return the packets written since the last call."""
        packets, self.packets = self.packets, []
        return packets
