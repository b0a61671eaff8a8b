"""The ledger of the records in a file, whose transactions may fail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TypeAlias

from ..config.model import Retention
from .ledger import Ledger, TopicCounts


class FileTopic(TopicCounts):
    """Count the records of a topic in the file, where the topic has an id, and its last record an epoch."""

    __slots__ = ("epoch", "id")

    def __init__(self, id: int, name: str, next_offset: int, epoch: int) -> None:  # noqa: A002 - the column
        super().__init__(name, next_offset)
        self.id, self.epoch = id, epoch


Kept: TypeAlias = tuple[FileTopic, int, int, float]
"""A record that a ledger counts: its topic, the offset after it, its bytes, its Unix time."""


class FileLedger(Ledger[FileTopic]):
    """Count the records in the file; a transaction that fails is taken back.

    Attributes:
        before: Topics that this transaction has changed, as they were; None for new topics.
    """

    def __init__(self, limits: Retention) -> None:
        super().__init__(limits)
        self.begin()

    def begin(self) -> None:
        """Begin a transaction."""
        self.before: dict[str, FileTopic | None] = {}
        self._totals = self.bytes, self.filled, self.floor

    def know(self, topic: FileTopic) -> None:
        """Remember a topic, and count its records."""
        self.before.setdefault(topic.name, None)
        super().know(topic)

    def add(self, topic: FileTopic, offset: int, count: int, size: int) -> bool:
        """Count a record at the end of its topic; return True if the topic exceeds its limits."""
        if topic.name not in self.before:
            self._save(topic)
        return super().add(topic, offset, count, size)

    def drop(self, topic: FileTopic, end: int, size: int) -> None:
        """Count the first record of a topic no more, which ends before the offset `end`."""
        if topic.name not in self.before:
            self._save(topic)
        super().drop(topic, end, size)

    def forget(self, needed: Callable[[FileTopic], bool]) -> list[FileTopic]:
        """Forget empty topics when there are too many, those first that were empty for longest."""
        forgotten = super().forget(needed)
        self.before.update({topic.name: topic for topic in forgotten})
        return forgotten

    def trim_topic(self, topic: FileTopic, records: Iterable[Kept]) -> int:
        """Drop the first records of a topic that exceeds its limits, never its newest; return how many.

        Args:
            topic: The topic.
            records: Its records, oldest first.
        """
        dropped = 0
        for _, end, size, _ in records:
            if not self.exceeds(topic) or end == topic.next:
                break
            self.drop(topic, end, size)
            dropped += 1
        return dropped

    def trim_oldest(self, records: Iterable[Kept], now: float) -> int:
        """Drop the oldest records while they are too old, or all records are too many; return how many.

        Args:
            records: Records of all topics, oldest first. The next one is asked for when the one before has
                been dropped.
            now: Unix time.
        """
        dropped = 0
        for topic, end, size, time in records:
            if not self.must_drop(time, now):
                break
            self.drop(topic, end, size)
            dropped += 1
        return dropped

    def roll_back(self) -> None:
        """Take the transaction back."""
        self.bytes, self.filled, self.floor = self._totals
        for name, topic in self.before.items():
            self.empty.pop(name, None)
            if topic is None:
                self.topics.pop(name, None)
            else:
                self.topics[name] = topic
                self._note(topic)
        self.begin()

    def _save(self, topic: FileTopic) -> None:
        self.before[topic.name] = copy.copy(topic)
