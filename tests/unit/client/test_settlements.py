"""Outcomes of messages on their way to the coordinator, over connections that come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsqueue.client.settlements import Settlements
from wsqueue.protocol import v2

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["done", "again", "reject", "release", "extend"]), st.integers(0, 9)),
        st.tuples(st.sampled_from(["take", "confirm", "lost"]), st.integers(0, 9)),
    ),
    max_size=40,
)


def settlements() -> Settlements[int]:
    return Settlements("jobs", "g")


def test_outcomes_of_a_kind_share_a_packet() -> None:
    outcomes = settlements()
    for offset in (3, 1, 2, 7):
        outcomes.settle("done", "log", [offset])
    outcomes.settle("again", "log", [9], delay=1.0)
    outcomes.settle("again", "log", [10], delay=2.0)
    outcomes.settle("done", "other", [3])
    assert outcomes.take() == [
        v2.Settle("jobs", "g", 1, "log", "done", [(1, 3), (7, 7)]),
        v2.Settle("jobs", "g", 2, "log", "again", [(9, 9)], 1.0),
        v2.Settle("jobs", "g", 3, "log", "again", [(10, 10)], 2.0),
        v2.Settle("jobs", "g", 4, "other", "done", [(3, 3)]),
    ]
    assert outcomes.take() == []


def test_a_packet_has_no_more_ranges_than_it_may() -> None:
    outcomes = settlements()
    outcomes.settle("done", "log", range(0, 4 * v2.MAX_SETTLED_RANGES, 2))
    packets = outcomes.take()
    assert [len(packet.offsets) for packet in packets] == [v2.MAX_SETTLED_RANGES] * 2


def test_after_a_reconnect_all_that_is_not_confirmed_comes_again() -> None:
    outcomes = settlements()
    outcomes.settle("done", "log", [1], waiter=1)
    outcomes.settle("reject", "log", [2], reason="no", waiter=2)
    assert len(outcomes.take()) == 2
    assert outcomes.confirm(1) == [1]
    outcomes.settle("extend", "log", [3])
    outcomes.settle("release", "log", [4])
    outcomes.settle("done", "log", [5], waiter=5)
    assert outcomes.is_done("log", 5)
    assert not outcomes.is_done("log", 2)
    assert not outcomes.is_done("other", 5)
    outcomes.send_again()
    assert outcomes.take() == [
        v2.Settle("jobs", "g", 1, "log", "reject", [(2, 2)], reason="no"),
        v2.Settle("jobs", "g", 2, "log", "done", [(5, 5)]),
    ]
    assert outcomes.confirm(2) == [2, 5]
    assert outcomes.empty


@given(STEPS)
def test_each_waiter_is_told_once(steps: list[tuple[str, int]]) -> None:
    outcomes, told, waiting, sent = settlements(), list[int](), list[int](), 0
    for number, (step, value) in enumerate(steps):
        if step == "take":
            sent += len(outcomes.take())
        elif step == "confirm":
            told += outcomes.confirm(min(value, sent))
        elif step == "lost":
            outcomes.send_again()
            sent = 0
        elif step in ("release", "extend"):
            outcomes.settle(step, "log", [value])  # type: ignore[arg-type]
        else:
            waiting.append(number)
            outcomes.settle(step, "log", [value], waiter=number)  # type: ignore[arg-type]
    if len(steps) % 2:
        told += outcomes.fail_all()
    else:
        outcomes.send_again()
        told += outcomes.confirm(len(outcomes.take()))
    assert sorted(told) == waiting
    assert outcomes.empty
