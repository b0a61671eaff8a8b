"""The inbox of a subscription: the messages that the application has not taken yet. No I/O.

The links of the subscription put messages and gaps into one queue, in the order in which they arrive; the
application takes them out. Each connection that fills the queue is in one of two states:

| a connection is | while | then |
|---|---|---|
| read | the queue is not full | paused, after the read that fills the queue |
| paused | the queue is more than half full | read: all paused connections are resumed together |

The queue is full when it exceeds `MAX_WAITING_MESSAGES` or `MAX_WAITING_CHARACTERS`. It has no hard limit,
because a read that was begun is taken as a whole. Closing resumes all connections, so that each of them reads
the answer to its close frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from .values import Gap, Message

MAX_WAITING_MESSAGES = 1000
"""Messages in an inbox above which no more is read: enough to keep a fast application busy."""

MAX_WAITING_CHARACTERS = 16 * 1024 * 1024
"""Characters of data in an inbox above which no more is read, because large messages are fewer."""


class Pausable(Protocol):
    """A connection, as far as an inbox uses it."""

    def pause_reading(self) -> None:
        """Read no more."""

    def resume_reading(self) -> None:
        """Read again."""


class Inbox:
    """Keep messages and gaps for the application, and pause connections while they are too many.

    Attributes:
        closed: True once the subscription ends: nothing is added any more.
    """

    def __init__(self) -> None:
        self.closed = False
        self._items: deque[Message | Gap] = deque()
        self._characters = 0
        self._paused: set[Pausable] = set()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, items: Sequence[Message | Gap]) -> None:
        """Add items of one read."""
        if not self.closed:
            self._items.extend(items)
            self._characters += sum(len(item.data) for item in items if isinstance(item, Message))

    def __iter__(self) -> Iterator[Message | Gap]:
        return iter(self._items)

    def clear(self) -> None:
        """Drop all items, and resume the paused connections."""
        self._items.clear()
        self._characters = 0
        self._resume()

    def take(self) -> Message | Gap:
        """Return the next item, and resume the paused connections once half of the space is free.

        Raises:
            IndexError: There is none.
        """
        item = self._items.popleft()
        if isinstance(item, Message):
            self._characters -= len(item.data)
        if self._paused and not self._exceeds(MAX_WAITING_MESSAGES // 2, MAX_WAITING_CHARACTERS // 2):
            self._resume()
        return item

    def pause_if_full(self, connection: Pausable) -> None:
        """Stop reading from a connection while too much waits for the application."""
        full = self._exceeds(MAX_WAITING_MESSAGES, MAX_WAITING_CHARACTERS)
        if full and not self.closed and connection not in self._paused:
            self._paused.add(connection)
            connection.pause_reading()

    def forget(self, connection: Pausable) -> None:
        """Let go of a connection that is lost."""
        self._paused.discard(connection)

    def release(self, connection: Pausable) -> None:
        """Read on from a connection of which nothing comes into the queue any more, so that it can end."""
        if connection in self._paused:
            self._paused.discard(connection)
            connection.resume_reading()

    def close(self) -> None:
        """Add nothing from now on, and resume all connections; the items can still be taken."""
        self.closed = True
        self._resume()

    def _resume(self) -> None:
        paused, self._paused = self._paused, set()
        for connection in paused:
            connection.resume_reading()

    def _exceeds(self, messages: int, characters: int) -> bool:
        return len(self._items) > messages or self._characters > characters
