"""Pongs as confirmations: how a sender knows which classic messages its peer has dealt with.

The classic protocol has no acknowledgements. But a peer answers a ping after all messages that came before
it, so each ping carries the number of messages that were sent, and its pong confirms them.
"""

from __future__ import annotations

COUNT_BYTES = 8
"""Length of a ping's data: an unsigned integer in network byte order."""


def encode_count(count: int) -> bytes:
    """Return the data of the ping that follows `count` messages."""
    return count.to_bytes(COUNT_BYTES)


class PongConfirmations:
    """Count the classic messages of one connection: those sent, and those confirmed by pongs.

    Attributes:
        sent: Messages sent so far.
        confirmed: How many of them the peer has dealt with, from the first one on.
    """

    __slots__ = ("_pinged", "confirmed", "sent")

    def __init__(self) -> None:
        self.sent = self.confirmed = 0
        self._pinged = False

    @property
    def in_flight(self) -> int:
        """Return the number of messages sent and not confirmed: a broken connection can lose them."""
        return self.sent - self.confirmed

    @property
    def ping_due(self) -> bool:
        """Return True if messages are in flight and no ping was sent since the latest confirmation."""
        return self.in_flight > 0 and not self._pinged

    def add(self, count: int) -> None:
        """Note that messages were sent."""
        self.sent += count

    def ping(self) -> bytes:
        """Return the data of a ping, whose pong confirms all messages sent so far."""
        self._pinged = True
        return encode_count(self.sent)

    def receive_pong(self, data: bytes) -> bool:
        """Take the data of a pong; return True if it confirms messages of this connection.

        Other data (of a keepalive ping, or made up by the peer) changes nothing.
        """
        if len(data) != COUNT_BYTES:
            return False
        count = int.from_bytes(data)
        if not self.confirmed <= count <= self.sent:
            return False
        self.confirmed = count
        self._pinged = False
        return True
