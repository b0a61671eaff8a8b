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


class Stubborn(Peer):
    """A connection that keeps a part of its waiting bytes until it is given up again."""

    def __init__(self, buffers: Buffers, part: int) -> None:
        super().__init__(buffers)
        self.part, self.times = part, 0

    def give_up(self, reason: str) -> None:
        self.times += 1
        if self.times == 1:
            self.wait(self.part)


def test_a_part_that_cannot_be_dropped_counts_until_there_is_no_room_for_it() -> None:
    buffers = Buffers(10 * COUNTED_BYTES)
    peers = [Stubborn(buffers, 2 * COUNTED_BYTES) for _ in range(1000)]
    for peer in peers:
        peer.wait(4 * COUNTED_BYTES)
        assert buffers.bytes <= buffers.limit
    # Each is failed once, and then aborted for the sake of others.
    assert {peer.times for peer in peers[:-5]} == {2}
    left = [peer for peer in peers if peer.times < 2]
    assert buffers.bytes == sum((4 - 2 * peer.times) * COUNTED_BYTES for peer in left)


def test_all_are_given_up_at_once_when_the_limit_falls() -> None:
    buffers = Buffers(10_000 * COUNTED_BYTES)
    peers = [Stubborn(buffers, 2 * COUNTED_BYTES) for _ in range(2500)]
    for peer in peers:
        peer.wait(4 * COUNTED_BYTES)
    buffers.limit = 0
    peers[0].wait(4 * COUNTED_BYTES)
    assert buffers.bytes == 0
    assert {peer.times for peer in peers} == {2}


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
