"""The log of one topic: its offsets, and those of its records that are in memory.

    0            start          earliest         first            next             assigned
    │  forgotten   │    dropped     │  on disk only │   in memory    │  being stored   │  to come
    ├──────────────┼────────────────┼───────────────┼────────────────┼─────────────────┼──────────▶ offsets

| offset | is | moved by |
|---|---|---|
| `start` | where this log of the topic begins: the floor of the store when it met the topic | nothing |
| `Store.earliest` | the first message that is kept anywhere | limits |
| `first` | the first message in memory; `earliest` where there is only memory | limits |
| `next` | the message that will be stored next; all before it have been delivered | a commit |
| `assigned` | the message that will come next; `next` where there is only memory | an append, a failure |

Numbers are those of publishers' batches, one counter for each publisher over all topics: of each (topic,
publisher) `TopicLogs` keeps the last number that has been assigned offsets; a batch that is not beyond it is
a repeat.
"""

from __future__ import annotations

import bisect
import operator
from collections import deque

from .ledger import TopicCounts
from .records import Record

NO_RECORDS: deque[Record] = deque()
"""The records of each topic without messages, since an empty deque takes 760 bytes; it stays empty."""


class TopicLog(TopicCounts):
    """Hold the offsets of one topic, and its records that are in memory.

    Attributes:
        start: Offset at which this log of the topic begins.
        assigned: Offset of the message that will come next.
        records: Records in memory, without holes from `first` to `next`.
        time: Unix time of the newest record.
        dropped: Records that were dropped and still have an entry in the order of all records.
        passed: Entries in that order that have been passed over; as those of dropped records, its first ones.
        epoch: Number of the epoch of the last message before `next`, 0 without one.
        epoch_before: Number of the epoch of the last message before `first`, 0 if it is not known.
    """

    __slots__ = ("assigned", "dropped", "epoch", "epoch_before", "passed", "records", "start", "time")

    def __init__(self, name: str, start: int, next_offset: int, epoch: int = 0) -> None:
        super().__init__(name, next_offset)
        self.start = start
        self.assigned = next_offset
        self.records = NO_RECORDS
        self.time = 0.0
        self.dropped = self.passed = 0
        self.epoch = epoch
        self.epoch_before = 0

    def read(self, offset: int, max_bytes: int) -> list[Record]:
        """Return records in memory from the one that holds an offset, or the first after it."""
        index = bisect.bisect_right(self.records, offset, key=operator.attrgetter("offset"))
        if index and self.records[index - 1].end > offset:
            index -= 1
        found: list[Record] = []
        size = 0
        while index < len(self.records) and size < max_bytes:
            record = self.records[index]
            found.append(record)
            size += record.size
            index += 1
        return found

    def offset_at(self, moment: float) -> int:
        """Return the offset of the first record in memory that is not older, `next` if all are."""
        index = bisect.bisect_left(self.records, moment, key=operator.attrgetter("time"))
        return self.records[index].offset if index < len(self.records) else self.next

    def epoch_end(self, epoch: int) -> int | None:
        """Return the offset at which an epoch ends, None if no record in memory or before shows it."""
        if self.epoch <= epoch:
            return self.next
        index = bisect.bisect_right(self.records, epoch, key=operator.attrgetter("epoch"))
        return self.records[index].offset if index or 0 < self.epoch_before <= epoch else None
