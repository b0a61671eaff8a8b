"""A set of offsets as ranges. No I/O."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator


class Ranges:
    """Hold offsets as few ranges, each from its first offset to the one behind its last.

    Args:
        ranges: Ranges, in any order.
    """

    __slots__ = ("_begins", "_ends")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []
        for begin, end in ranges:
            self.add(begin, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges, the lowest first; none touches the next."""
        return iter(list(zip(self._begins, self._ends, strict=True)))

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self._begins)

    def __contains__(self, offset: int) -> bool:
        return self.end_at(offset) > offset

    def add(self, begin: int, end: int) -> None:
        """Add the offsets from `begin` to before `end`."""
        if begin >= end:
            return
        first = bisect.bisect_left(self._ends, begin)
        last = bisect.bisect_right(self._begins, end)
        if first < last:
            begin = min(begin, self._begins[first])
            end = max(end, self._ends[last - 1])
        self._begins[first:last] = [begin]
        self._ends[first:last] = [end]

    def drop_below(self, offset: int) -> None:
        """Remove the offsets below one."""
        gone = bisect.bisect_right(self._ends, offset)
        del self._begins[:gone], self._ends[:gone]
        if self._begins and self._begins[0] < offset:
            self._begins[0] = offset

    def end_at(self, offset: int) -> int:
        """Return the first offset from one on that is not in the set."""
        index = bisect.bisect_right(self._begins, offset) - 1
        return max(offset, self._ends[index]) if index >= 0 else offset

    def next_from(self, offset: int) -> int | None:
        """Return the first offset from one on that is in the set, None if there is none."""
        index = bisect.bisect_right(self._ends, offset)
        return max(offset, self._begins[index]) if index < len(self._begins) else None
