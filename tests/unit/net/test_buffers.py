"""The budget of what waits in all connections."""

from __future__ import annotations

from wsqueue.net.buffers import COUNTED_BYTES, Buffers


class Peer:
    """A connection that notes why it was given up."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers, self.reason = buffers, ""

    def wait(self, count: int) -> None:
        self.buffers.count(self, count)

    def give_up(self, reason: str) -> None:
        self.reason = reason


def test_the_connection_with_the_most_is_given_up() -> None:
    buffers = Buffers(10 * COUNTED_BYTES)
    one, two, three = (Peer(buffers) for _ in range(3))
    one.wait(3 * COUNTED_BYTES)
    two.wait(5 * COUNTED_BYTES)
    three.wait(2 * COUNTED_BYTES)
    assert not one.reason + two.reason + three.reason
    three.wait(3 * COUNTED_BYTES)
    assert (bool(one.reason), bool(two.reason), bool(three.reason)) == (False, True, False)
    assert buffers.bytes == 6 * COUNTED_BYTES
    # It may be the one that is counted, and others go on one by one until there is room.
    three.wait(20 * COUNTED_BYTES)
    assert three.reason
    assert buffers.bytes == 3 * COUNTED_BYTES
    buffers.limit = 0
    two.wait(2 * COUNTED_BYTES)
    assert one.reason
    assert buffers.bytes == 0


def test_what_is_written_or_gone_counts_no_more_and_little_never_does() -> None:
    buffers = Buffers(10 * COUNTED_BYTES)
    peers = [Peer(buffers) for _ in range(1000)]
    for peer in peers:
        peer.wait(COUNTED_BYTES)
    assert buffers.bytes == 0
    for peer in peers:
        peer.wait(9 * COUNTED_BYTES)
        peer.wait(0)
    assert buffers.bytes == 0
    assert not any(peer.reason for peer in peers)
