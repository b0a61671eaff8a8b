"""The bytes that wait in all connections of a node, in one budget.

Each connection has a limit of its own, and thousands of them together have far more memory than a host. Above
the budget, the connection with the most is closed: it reads too slowly, or began a long message and others do
as well. Data that several connections share counts for each of them.
"""

from __future__ import annotations

from typing import Protocol

COUNTED_BYTES = 16 * 1024
"""Bytes of a connection from which on they are counted, so that small messages cost nothing."""


class Holder(Protocol):
    """A connection."""

    def give_up(self, reason: str) -> None:
        """Drop all that waits, and end; count again if a part cannot be dropped now.

        It is called again when others can't make room for that part.
        """


class Buffers:
    """Count the bytes that wait in connections.

    Args:
        limit: Bytes in all above which the connection with the most is closed; a reload sets another.

    Attributes:
        limit: See above.
        bytes: Bytes in all connections.
    """

    __slots__ = ("_giving_up", "_waiting", "bytes", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._waiting: dict[Holder, int] = {}
        self._giving_up = False

    def count(self, connection: Holder, waiting: int) -> None:
        """Note how many bytes wait in a connection now."""
        before = self._waiting.pop(connection, 0)
        if waiting > COUNTED_BYTES:
            self._waiting[connection] = waiting
        else:
            waiting = 0
        self.bytes += waiting - before
        if self._giving_up:
            return
        self._giving_up = True
        try:
            while self.bytes > self.limit:
                worst = max(self._waiting, key=self._waiting.__getitem__)
                self.bytes -= self._waiting.pop(worst)
                worst.give_up("all connections together have too much waiting, and this one has the most")
        finally:
            self._giving_up = False
