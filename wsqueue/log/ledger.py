"""The limits of a log: which records are kept, which go first, and which topics are forgotten.

These rules are the same wherever records lie. A ledger counts the records of one place, in memory or in a
file. The place asks it for each of its oldest records whether that must go, and then drops it in both:

    add ──▶ a topic with messages ──exceeds, must_drop: drop──▶ an empty topic ──forget──▶ only the floor
                     ▲                                              │
                     └───────────────────── add ────────────────────┘

The oldest records of all go first, in the order in which they came. A topic with an age of its own, by a
table in `[retention]`, is not aged in that order, because its records would go too late, or keep others from
going. Such topics wait in a heap until the first record of each may be too old (`due`, `watch`).

An empty topic keeps its next offset. A topic that was forgotten begins anew at the floor, above all offsets
of all forgotten topics, so that no offset of a topic is used twice.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from ..config.model import Retention
from .index_budget import UNLIMITED, IndexBudget, topic_bytes
from .records import TOPIC_OVERHEAD_BYTES
from .topic_limits import LimitTables, TopicLimits

MAX_TOPICS = 100_000
"""Maximum number of topics with messages; above it, the oldest messages go. Each takes 1 KiB in tables."""

MAX_EMPTY_TOPICS = 100_000
"""Maximum number of empty topics whose next offset is kept; above it, the longest empty are forgotten."""

FORGET_TRIES = 10
"""Topics that one call finds to be needed before it gives up, so that its time is bounded."""


HEAP_SLACK = 1_000
"""Entries of topics without messages in the heap that are not worth a walk over all."""

ALWAYS_DUE = -math.inf
"""Unix time of a topic in the heap whose first record may be of any age."""


class TopicCounts:
    """Count the records of one topic in one place.

    Attributes:
        name: Name of the topic.
        first: Offset of the first message that is kept here; `next` when there is none.
        next: Offset of the message that will be stored next.
        bytes: Bytes of the records that are kept here.
        readers: Number of readers; with readers, the topic is not forgotten.
        limits: Its limits, which the ledger sets.
    """

    __slots__ = ("bytes", "first", "limits", "name", "next", "readers")

    limits: TopicLimits

    def __init__(self, name: str, next_offset: int) -> None:
        self.name = name
        self.first = self.next = next_offset
        self.bytes = self.readers = 0

    @property
    def messages(self) -> int:
        """Return the number of messages that are kept here."""
        return self.next - self.first


Topic = TypeVar("Topic", bound=TopicCounts)


class Ledger(Generic[Topic]):
    """Count the records of one place, and drop those that exceed the limits.

    Args:
        limits: Limits of the log.
        budget: Counts the memory of empty topics without readers; None if only their number is bounded.

    Attributes:
        limits: See above; `limit` changes them.
        budget: See above.
        topics: All topics that are remembered, by name.
        empty: Names of those without messages and readers; those that were so for longest come first.
        filled: Number of topics with messages.
        bytes: Bytes of all records and topics with messages.
        floor: Offset at which unknown topics begin.
    """

    def __init__(self, limits: Retention, budget: IndexBudget | None = None) -> None:
        self.budget = budget or IndexBudget(UNLIMITED)
        self.topics: dict[str, Topic] = {}
        self.empty: OrderedDict[str, None] = OrderedDict()
        self.filled = self.bytes = self.floor = 0
        self.limit(limits)

    def limit(self, limits: Retention) -> None:
        """Use these limits from now on."""
        self.limits, self._tables = limits, LimitTables(limits)
        # Each topic with messages and an age of its own is there once; so are some that have none any more.
        self._heap: list[tuple[float, str]] = []
        self._watched: set[str] = set()
        for topic in self.topics.values():
            topic.limits = self._tables.of(topic.name)
            if topic.messages:
                self.watch(topic)

    def know(self, topic: Topic) -> None:
        """Remember a topic, and count its records."""
        self.topics[topic.name] = topic
        topic.limits = self._tables.of(topic.name)
        if topic.messages:
            self.filled += 1
            self.bytes += topic.bytes + TOPIC_OVERHEAD_BYTES
            self.watch(topic)
        self._note(topic)

    def hold(self, topic: Topic, more: int) -> None:
        """Count readers of a topic; with readers, it is not forgotten."""
        topic.readers += more
        self._note(topic)

    def add(self, topic: Topic, offset: int, count: int, size: int) -> bool:
        """Count a record at the end of its topic; return True if the topic exceeds its limits."""
        if topic.first == topic.next:
            topic.first = offset
            self.filled += 1
            self.bytes += TOPIC_OVERHEAD_BYTES
            self._leave(topic)
            self.watch(topic)
        topic.next = end = offset + count
        messages = end - topic.first
        topic.bytes = size_of_all = topic.bytes + size
        self.bytes += size
        limits = topic.limits
        return messages > limits.max_messages or size_of_all > limits.max_bytes

    def drop(self, topic: Topic, end: int, size: int) -> None:
        """Count the first record of a topic no more, which ends before the offset `end`."""
        topic.first = end
        topic.bytes -= size
        self.bytes -= size
        if end == topic.next:
            self.filled -= 1
            self.bytes -= TOPIC_OVERHEAD_BYTES
            self._note(topic)

    def exceeds(self, topic: Topic) -> bool:
        """Return True if a topic has more than one topic may have."""
        limits = topic.limits
        return topic.messages > limits.max_messages or topic.bytes > limits.max_bytes

    @property
    def overfull(self) -> bool:
        """Return True if there are too many records, so that the oldest of all must be dropped."""
        return self.bytes > self.limits.max_bytes or self.filled > MAX_TOPICS

    @property
    def crowded(self) -> bool:
        """Return True if there are too many empty topics, or no room for them."""
        return len(self.empty) > MAX_EMPTY_TOPICS or (self.budget.full and bool(self.empty))

    def must_drop(self, time: float, now: float) -> bool:
        """Return True if the oldest record must be dropped, whose topic has no age of its own.

        Args:
            time: Its Unix time.
            now: Unix time.
        """
        limits = self.limits
        too_old = time < now - limits.max_age_seconds
        return too_old or self.bytes > limits.max_bytes or self.filled > MAX_TOPICS

    def watch(self, topic: Topic, due: float = ALWAYS_DUE) -> None:
        """Let a topic wait until its first record may be too old, if it has an age of its own.

        Args:
            topic: The topic.
            due: Unix time after which that record is too old.
        """
        if topic.limits.own_age and topic.name not in self._watched:
            self._watched.add(topic.name)
            heapq.heappush(self._heap, (due, topic.name))
            if len(self._heap) > 2 * self.filled + HEAP_SLACK:
                self._forget_empty()

    def is_due(self, now: float) -> bool:
        """Return True if the first record of a topic may be too old by an age of the topic's own."""
        return bool(self._heap) and self._heap[0][0] < now

    def due(self, now: float, most: int) -> list[Topic]:
        """Return topics whose first record may be too old; the caller lets them wait again.

        Args:
            now: Unix time.
            most: Maximum number of topics; others stay due.
        """
        found: list[Topic] = []
        for _ in range(most):
            if not self.is_due(now):
                break
            _, name = heapq.heappop(self._heap)
            self._watched.discard(name)
            topic = self.topics.get(name)
            if topic is not None and topic.messages:
                found.append(topic)
        return found

    def forget(self, needed: Callable[[Topic], bool]) -> list[Topic]:
        """Forget empty topics when there are too many, those first that were empty for longest.

        Args:
            needed: Returns True for a topic that must not be forgotten now.

        Returns:
            The forgotten topics.
        """
        forgotten: list[Topic] = []
        tries = FORGET_TRIES
        while self.crowded and tries:
            topic = self.topics[next(iter(self.empty))]
            if needed(topic):
                self.empty.move_to_end(topic.name)
                tries -= 1
                continue
            self._drop(topic)
            forgotten.append(topic)
        return forgotten

    def forget_unused(self, topic: Topic) -> None:
        """Forget an empty topic at once if a new one of its name would be the same."""
        if topic.name in self.empty and topic.next <= self.floor:
            self._drop(topic)

    def _forget_empty(self) -> None:
        """Take topics without messages out of the heap, where they would stay for as long as their age."""
        topics = self.topics
        self._heap = [(due, name) for due, name in self._heap if name in topics and topics[name].messages]
        heapq.heapify(self._heap)
        self._watched = {name for _, name in self._heap}

    def _drop(self, topic: Topic) -> None:
        self._leave(topic)
        self.floor = max(self.floor, topic.next)
        del self.topics[topic.name]

    def _note(self, topic: Topic) -> None:
        """Note whether a topic is empty."""
        if topic.messages or topic.readers:
            self._leave(topic)
        elif topic.name not in self.empty:
            self.empty[topic.name] = None
            self.budget.used += topic_bytes(topic.name)

    def _leave(self, topic: Topic) -> None:
        """Count a topic no more among those that are empty."""
        if topic.name in self.empty:
            del self.empty[topic.name]
            self.budget.used -= topic_bytes(topic.name)
