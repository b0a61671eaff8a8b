"""Pongs as confirmations: the counts, and the effect of a pong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol.pongs import PongConfirmations, encode_count


def sent(count: int) -> PongConfirmations:
    """Return the counts of a connection on which messages were sent."""
    counts = PongConfirmations()
    counts.add(count)
    return counts


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"x" * 8, encode_count(4), encode_count(1), encode_count(2) + b"\0"]
)
def test_a_pong_of_another_ping_confirms_nothing(data: bytes) -> None:
    counts = sent(2)
    counts.receive_pong(counts.ping())
    counts.add(1)
    counts.ping()
    assert not counts.receive_pong(data)
    assert (counts.confirmed, counts.in_flight, counts.ping_due) == (2, 1, False)


def test_a_ping_is_due_when_messages_are_in_flight_and_none_is_under_way() -> None:
    counts = PongConfirmations()
    due = [counts.ping_due]
    counts.add(1)
    due.append(counts.ping_due)
    ping = counts.ping()
    counts.add(1)
    due.append(counts.ping_due)
    counts.receive_pong(ping)
    due.append(counts.ping_due)
    counts.receive_pong(counts.ping())
    due.append(counts.ping_due)
    assert due == [False, True, False, True, False]


@given(st.lists(st.integers(1, 1000) | st.sampled_from(["ping", "pong", "deal"])))
def test_never_more_is_confirmed_than_the_peer_has_dealt_with(steps: list[int | str]) -> None:
    """A peer deals with messages and pings in their order, and answers pings as it comes to them."""
    counts = PongConfirmations()
    stream: list[int | bytes] = []
    pongs: list[bytes] = []
    total = dealt = 0
    for step in steps:
        if isinstance(step, int):
            counts.add(step)
            total += step
            stream.append(step)
        elif step == "ping":
            stream.append(counts.ping())
        elif step == "pong" and pongs:
            assert counts.receive_pong(pongs.pop(0))
        elif step == "deal" and stream:
            item = stream.pop(0)
            if isinstance(item, int):
                dealt += item
            else:
                pongs.append(item)
        assert counts.confirmed <= dealt <= counts.sent == total
        assert counts.in_flight == total - counts.confirmed
    stream.append(counts.ping())
    for pong in pongs + [item for item in stream if isinstance(item, bytes)]:
        assert counts.receive_pong(pong)
    assert counts.in_flight == 0
    assert not counts.ping_due
