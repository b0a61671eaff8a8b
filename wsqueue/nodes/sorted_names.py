"""The names of all topics in their order, for a list that is read in parts."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Collection

SORTED_AT_ONCE = 10_000
"""Names that are sorted in a turn of the loop, in 10 ms."""

NAMES_SECONDS = 10.0
"""Time for which the names are used again by later parts of a list; then they are forgotten."""


class SortedNames:
    """Sort names in turns of the loop, and keep them while a list is read.

    Args:
        names: Returns the names.
    """

    def __init__(self, names: Callable[[], Awaitable[Collection[str]]]) -> None:
        self._names = names
        self._sorted: list[str] | None = None
        self._end: asyncio.TimerHandle | None = None

    async def all(self, *, anew: bool) -> list[str]:
        """Return the names in their order, as they were a few seconds ago at most.

        Args:
            anew: True for those of now.

        Raises:
            WsqueueError: They cannot be read.
        """
        if anew or self._sorted is None:
            names = list(await self._names())
            parts: list[list[str]] = []
            for begin in range(0, len(names), SORTED_AT_ONCE):
                parts.append(sorted(names[begin : begin + SORTED_AT_ONCE]))
                await asyncio.sleep(0)
            merged, found = heapq.merge(*parts), list[str]()
            while part := list(itertools.islice(merged, SORTED_AT_ONCE)):
                found += part
                await asyncio.sleep(0)
            self._keep(found)
            return found
        return self._sorted

    def _keep(self, names: list[str]) -> None:
        if self._end is not None:
            self._end.cancel()
        self._sorted = names
        self._end = asyncio.get_running_loop().call_later(NAMES_SECONDS, self._forget)

    def _forget(self) -> None:
        self._sorted = self._end = None
