"""The names of all topics in their order, for a list that is read in parts."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Collection

SORTED_AT_ONCE = 10_000
"""Names that are sorted in a turn of the loop, in 10 ms."""

NAMES_SECONDS = 10.0
"""Time for which the names are used again by later parts of a list."""


class SortedNames:
    """Sort names in turns of the loop, and keep them while a list is read.

    Args:
        names: Returns the names.
    """

    def __init__(self, names: Callable[[], Collection[str]]) -> None:
        self._names = names
        self._sorted: list[str] = []
        self._made = -NAMES_SECONDS

    async def all(self, *, anew: bool) -> list[str]:
        """Return the names in their order, as they were a few seconds ago at most.

        Args:
            anew: True for those of now.
        """
        if anew or time.monotonic() - self._made >= NAMES_SECONDS:
            names = list(self._names())
            parts: list[list[str]] = []
            for begin in range(0, len(names), SORTED_AT_ONCE):
                parts.append(sorted(names[begin : begin + SORTED_AT_ONCE]))
                await asyncio.sleep(0)
            merged, found = heapq.merge(*parts), list[str]()
            while part := list(itertools.islice(merged, SORTED_AT_ONCE)):
                found += part
                await asyncio.sleep(0)
            self._sorted, self._made = found, time.monotonic()
        return self._sorted
