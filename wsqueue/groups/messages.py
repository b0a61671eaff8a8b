"""The messages of a topic by their offsets, for lending.

A record is decoded once for all the messages that are lent of it one after another. One record and one chunk
of records from the archive are kept.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from operator import attrgetter

from ..log.records import Record
from ..log.store import Store
from ..protocol import v2
from ..protocol.packed import Packed

CHUNK_BYTES = 256 * 1024
"""Bytes that are read from an archive at a time, as for readers."""

_OFFSET = attrgetter("offset")


class TopicMessages:
    """Find and cut messages of one topic.

    Args:
        logs: The logs of all topics.
        topic: The topic.
    """

    __slots__ = (
        "_at",
        "_chunk",
        "_chunk_begin",
        "_chunk_end",
        "_deliver",
        "_forgotten",
        "_logs",
        "_record",
        "_topic",
    )

    def __init__(self, logs: Store, topic: str) -> None:
        self._logs, self._topic = logs, topic
        self._chunk: Sequence[Record] = ()
        self._chunk_begin = self._chunk_end = 0
        # How often the log may have been replaced.
        self._forgotten = 0
        self._record: Record | None = None
        self._deliver: v2.Deliver | None = None
        # The message behind those that were cut last: its offset, its index, and its first byte.
        self._at = (0, 0, 0)

    def forget(self) -> None:
        """Forget the records that were read, because they may be of another log."""
        self._chunk, self._chunk_begin, self._chunk_end = (), 0, 0
        self._record = self._deliver = None
        self._forgotten += 1

    def locate(self, offset: int, end: int) -> int | None:
        """Return the offset of the first message from one on that is in the log.

        Args:
            offset: Offset of a message.
            end: Offset of the next message that will be stored; it is returned if there are none.

        Returns:
            None if `fetch` must read the archive first.
        """
        record = self._record
        if record is not None and record.offset <= offset < record.end:
            return offset
        topic_log = self._logs.topic(self._topic)
        if self._chunk_begin <= offset < self._chunk_end:
            records, none = self._chunk, self._chunk_end
        elif self._logs.in_memory(topic_log, offset):
            records, none = topic_log.read(offset, 1), end
            # Nothing of it is needed any more, and there may be many groups.
            self._chunk, self._chunk_begin, self._chunk_end = (), 0, 0
        else:
            return None
        index = max(0, bisect.bisect_right(records, offset, key=_OFFSET) - 1)
        while index < len(records) and records[index].end <= offset:
            index += 1
        if index == len(records):
            return none
        self._use(records[index])
        return max(offset, records[index].offset)

    async def fetch(self, offset: int) -> None:
        """Read messages from an offset on, unless all must be forgotten meanwhile.

        Raises:
            WsqueueError: They cannot be read.
        """
        topic_log = self._logs.topic(self._topic)
        end, forgotten = topic_log.next, self._forgotten
        chunk = await self._logs.read(topic_log, offset, CHUNK_BYTES)
        if forgotten == self._forgotten:
            self._chunk, self._chunk_begin = chunk, offset
            self._chunk_end = chunk[-1].end if chunk else end

    def cut(self, offset: int, most: int) -> Packed:
        """Return messages from an offset on that `locate` has returned, at most those of its record."""
        assert self._record is not None
        if self._deliver is None:
            packet = v2.decode(self._record.packet)
            assert isinstance(packet, v2.Deliver)
            self._deliver = packet
        messages = self._deliver.messages
        at, index, begin = self._at
        if at != offset:
            index = offset - self._record.offset
            begin = sum(messages.sizes[:index])
        part = messages.part(index, most, begin)
        self._at = (offset + part.count, index + part.count, begin + part.data.nbytes)
        return part

    def _use(self, record: Record) -> None:
        self._record, self._deliver = record, None
        self._at = (record.offset, 0, 0)
