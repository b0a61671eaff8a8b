"""The ledger of the records in a file, whose transactions may fail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from ..config.model import Retention
from .ledger import ALWAYS_DUE, Ledger, TopicCounts


class FileTopic(TopicCounts):
    """Count the records of a topic in the file, where the topic has an id, and its last record an epoch."""

    __slots__ = ("epoch", "id")

    def __init__(self, id: int, name: str, next_offset: int, epoch: int) -> None:  # noqa: A002 - the column
        super().__init__(name, next_offset)
        self.id, self.epoch = id, epoch


Kept: TypeAlias = tuple[FileTopic, int, int, float, int]
"""A record that a ledger counts: its topic, the offset after it, its bytes, its Unix time, and its id in the
file, which is 0 for one that comes, and where nobody asks for it."""


class Trimmed(msgspec.Struct):
    """Hold the outcome of a walk over the oldest records.

    Attributes:
        records: How many were looked at, but for the one that ended the walk.
        dropped: The first and the last id of each row of records in the file that are dropped.
        passed: Id of the last record that was passed over, 0 without one.
    """

    records: int = 0
    dropped: list[tuple[int, int]] = []
    passed: int = 0


class FileLedger(Ledger[FileTopic]):
    """Count the records in the file; a transaction that fails is taken back.

    Attributes:
        before: Topics that this transaction has changed, as they were; None for new topics.
    """

    def __init__(self, limits: Retention) -> None:
        # Topics that this transaction has looked at, and when they are due again.
        self._looked: dict[str, float] = {}
        super().__init__(limits)
        self.begin()

    def begin(self) -> None:
        """Begin a transaction."""
        for name, due in self._looked.items():
            topic = self.topics.get(name)
            if topic is not None and topic.messages:
                self.watch(topic, due)
        self._looked = {}
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
        for _, end, size, _, _ in records:
            if not self.exceeds(topic) or end == topic.next:
                break
            self.drop(topic, end, size)
            dropped += 1
        return dropped

    def purge(self, topic: FileTopic, records: Iterable[Kept], before: int) -> int:
        """Drop the first records of a topic that end before an offset; return how many.

        Args:
            topic: The topic.
            records: Its records, oldest first.
            before: The offset.
        """
        dropped = 0
        for _, end, size, _, _ in records:
            if end > before:
                break
            self.drop(topic, end, size)
            dropped += 1
        return dropped

    def trim_aged(self, topic: FileTopic, records: Iterable[Kept], now: float) -> int:
        """Drop the first records of a topic that are too old by its own age; return how many.

        Args:
            topic: One of the topics that are due.
            records: Its records, oldest first; the topic stays due if more are too old.
            now: Unix time.
        """
        dropped = 0
        self._looked[topic.name] = ALWAYS_DUE
        for _, end, size, time, _ in records:
            due = time + topic.limits.max_age_seconds
            if due >= now:
                self._looked[topic.name] = due
                break
            self.drop(topic, end, size)
            dropped += 1
        return dropped

    def trim_oldest(self, records: Iterable[Kept], now: float, *, passing: bool = True) -> Trimmed:
        """Drop the oldest records while they are too old, or all records are too many.

        Args:
            records: Records of all topics, oldest first. The next one is asked for when the one before has
                been dropped.
            now: Unix time.
            passing: Whether to go on behind a record whose topic has an age of its own.
        """
        trimmed, begins = Trimmed(), True
        for topic, end, size, time, id_ in records:
            if topic.limits.own_age and not self.overfull:
                if not passing:
                    break
                trimmed.passed, begins = id_ or trimmed.passed, True
            elif self.must_drop(time, now):
                self.drop(topic, end, size)
                if id_:
                    first = id_ if begins else trimmed.dropped.pop()[0]
                    trimmed.dropped.append((first, id_))
                    begins = False
            else:
                break
            trimmed.records += 1
        return trimmed

    def roll_back(self) -> None:
        """Take the transaction back."""
        self.bytes, self.filled, self.floor = self._totals
        self._looked = dict.fromkeys(self._looked, ALWAYS_DUE)
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
