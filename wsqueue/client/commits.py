"""How far a named reader has come, until the consumer has kept it. No I/O.

::

    done ──> said ──take──> under way ──confirm──> kept
              ^                │
              └── send_again ──┘

Messages are counted in the order in which the application gets them, because offsets do not rise where a log
is replaced by another one. One commit is under way at a time; all that is said meanwhile goes with the next.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from .values import Position

Waiter = TypeVar("Waiter")


class Commits(Generic[Waiter]):
    """Know up to which message all is done, and how much of that is kept."""

    def __init__(self) -> None:
        self._said = self._under_way = self._kept = 0
        self._position = self._sent = Position("", 0)
        self._waiters: list[tuple[int, Waiter]] = []

    @property
    def empty(self) -> bool:
        """Return True if all that was said is kept."""
        return self._said == self._kept

    def say(self, number: int, position: Position, waiter: Waiter | None = None) -> bool:
        """Note that a message and all before it are done.

        Args:
            number: Its place in the order in which the application has got messages, from 1 on.
            position: The position behind it.
            waiter: The caller's object that is to be told when that is kept.

        Returns:
            False if it is kept already; then nobody is told.
        """
        if number <= self._kept:
            return False
        if number > self._said:
            self._said, self._position = number, position
        if waiter is not None:
            self._waiters.append((number, waiter))
        return True

    def take(self) -> Position | None:
        """Return the position to send, None if there is none, or another one is under way."""
        if self._under_way or self.empty:
            return None
        self._under_way, self._sent = self._said, self._position
        return self._sent

    def confirm(self, position: Position) -> list[Waiter]:
        """Take the answer to a commit; return those who wait for it."""
        if not self._under_way or position != self._sent:
            return []
        self._kept, self._under_way = self._under_way, 0
        ready = [waiter for number, waiter in self._waiters if number <= self._kept]
        self._waiters = [one for one in self._waiters if one[0] > self._kept]
        return ready

    def send_again(self) -> None:
        """Let all that is not kept be sent on another connection."""
        self._under_way = 0

    def fail_all(self) -> list[Waiter]:
        """Give up all that is not kept; return those who wait for it."""
        waiters = [waiter for _, waiter in self._waiters]
        self._waiters.clear()
        self._said, self._under_way = self._kept, 0
        return waiters
