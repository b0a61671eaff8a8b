"""The limits of a log: which records are kept, which go first, and which topics are forgotten.

These rules are the same wherever records lie. A ledger counts the records of one place, in memory or in a
file. The place asks it for each of its oldest records whether that must go, and then drops it in both:

    add ──▶ a topic with messages ──exceeds, must_drop: drop──▶ an empty topic ──forget──▶ only the floor
                     ▲                                              │
                     └───────────────────── add ────────────────────┘

An empty topic keeps its next offset. A topic that was forgotten begins anew at the floor, above all offsets
of all forgotten topics, so that no offset of a topic is used twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from ..config.model import Retention
from .index_budget import UNLIMITED, IndexBudget, topic_bytes
from .records import TOPIC_OVERHEAD_BYTES

MAX_TOPICS = 100_000
"""Maximum number of topics with messages; above it, the oldest messages go. Each takes 1 KiB in tables."""

MAX_EMPTY_TOPICS = 100_000
"""Maximum number of empty topics whose next offset is kept; above it, the longest empty are forgotten."""

FORGET_TRIES = 10
"""Topics that one call finds to be needed before it gives up, so that its time is bounded."""


class TopicCounts:
    """Count the records of one topic in one place.

    Attributes:
        name: Name of the topic.
        first: Offset of the first message that is kept here; `next` when there is none.
        next: Offset of the message that will be stored next.
        bytes: Bytes of the records that are kept here.
        readers: Number of readers; with readers, the topic is not forgotten.
    """

    __slots__ = ("bytes", "first", "name", "next", "readers")

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
        limits: Limits of the log; they may be replaced at any time.
        budget: Counts the memory of empty topics without readers; None if only their number is bounded.

    Attributes:
        budget: See above.
        topics: All topics that are remembered, by name.
        empty: Names of those without messages and readers; those that were so for longest come first.
        filled: Number of topics with messages.
        bytes: Bytes of all records and topics with messages.
        floor: Offset at which unknown topics begin.
    """

    def __init__(self, limits: Retention, budget: IndexBudget | None = None) -> None:
        self.limits = limits
        self.budget = budget or IndexBudget(UNLIMITED)
        self.topics: dict[str, Topic] = {}
        self.empty: OrderedDict[str, None] = OrderedDict()
        self.filled = self.bytes = self.floor = 0

    def know(self, topic: Topic) -> None:
        """Remember a topic, and count its records."""
        self.topics[topic.name] = topic
        if topic.messages:
            self.filled += 1
            self.bytes += topic.bytes + TOPIC_OVERHEAD_BYTES
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
        topic.next = end = offset + count
        messages = end - topic.first
        topic.bytes = size_of_all = topic.bytes + size
        self.bytes += size
        limits = self.limits
        return messages > limits.max_messages_per_topic or size_of_all > limits.max_bytes_per_topic

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
        limits = self.limits
        return topic.messages > limits.max_messages_per_topic or topic.bytes > limits.max_bytes_per_topic

    @property
    def crowded(self) -> bool:
        """Return True if there are too many empty topics, or no room for them."""
        return len(self.empty) > MAX_EMPTY_TOPICS or (self.budget.full and bool(self.empty))

    def must_drop(self, time: float, now: float) -> bool:
        """Return True if the oldest record must be dropped.

        Args:
            time: Its Unix time.
            now: Unix time.
        """
        limits = self.limits
        too_old = time < now - limits.max_age_seconds
        return too_old or self.bytes > limits.max_bytes or self.filled > MAX_TOPICS

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
