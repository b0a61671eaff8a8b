"""Offsets as ranges, against a set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol.ranges import Ranges

offsets = st.integers(0, 40)
pairs = st.lists(st.tuples(offsets, st.integers(0, 6)), max_size=20)


@given(pairs, offsets, offsets)
def test_it_is_a_set(added: list[tuple[int, int]], low: int, asked: int) -> None:
    ranges, model = Ranges(), set[int]()
    for begin, length in added:
        ranges.add(begin, begin + length)
        model |= set(range(begin, begin + length))
    for _ in range(2):
        found = list(ranges)
        assert {offset for begin, end in found for offset in range(begin, end)} == model
        # None is empty, and none touches the next.
        edges = [edge for one in found for edge in one]
        assert edges == sorted(set(edges))
        assert len(ranges) == len(found)
        assert (asked in ranges) is (asked in model)
        assert ranges.next_from(asked) == min((one for one in model if one >= asked), default=None)
        assert ranges.end_at(asked) == next(one for one in range(asked, 100) if one not in model)
        assert list(Ranges(found)) == found
        ranges.drop_below(low)
        model = {offset for offset in model if offset >= low}
