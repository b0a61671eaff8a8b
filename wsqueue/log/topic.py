"""The log of one topic: its offsets, and the records of it that are in memory."""

from __future__ import annotations

import bisect
import operator
from collections import deque

from .records import Record

NO_RECORDS: deque[Record] = deque()
"""Of each topic without messages, for an empty deque takes 760 bytes; it stays empty."""


class TopicLog:
    """Hold what is known of one topic, and what is in memory of its messages.

    Attributes:
        name: The topic.
        start: The offset at which this log begins: what came before, nobody knows.
        first: Of the first message that is kept; in an archive, it may have gone since.
        next: Of the message that will be stored next: all before it have been delivered.
        assigned: Of the message that will come next.
        records: What is in memory, without holes up to `next`.
        bytes: Of the records.
        messages: In the records.
        readers: Subscribers that go by this log.
    """

    __slots__ = (
        "assigned",
        "bytes",
        "dropped",
        "first",
        "messages",
        "name",
        "next",
        "readers",
        "records",
        "start",
        "time",
    )

    def __init__(self, name: str, first: int, next_offset: int) -> None:
        self.name = name
        self.start = self.first = first
        self.next = self.assigned = next_offset
        self.records = NO_RECORDS
        self.bytes = self.messages = self.readers = 0
        self.time = 0.0
        # Records that have gone and still have an entry in TopicLogs._order.
        self.dropped = 0

    @property
    def cached_from(self) -> int:
        """Return the offset from which on everything is in memory."""
        return self.records[0].offset if self.records else self.next

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
