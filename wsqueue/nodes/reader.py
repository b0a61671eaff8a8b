"""A subscriber of one topic: it is sent what comes, and reads what it has missed in the topic's log."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

import msgspec

from ..errors import WsqueueError
from ..journal import log
from ..log.memory import TopicLogs
from ..log.records import Record
from ..log.topic import TopicLog
from ..net.connection import Connection
from ..protocol import v2
from ..protocol.close import CloseCode
from ..protocol.frames import frame_texts

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
"""What is read from a log in one go: about what a socket takes."""

MAX_FRAMES_BYTES = 2 * CHUNK_BYTES
"""What is sent in one go to one that keeps up; more could overflow the write buffer, whose limit ends it."""


class Reader:
    """Take one subscriber through the log of one topic.

    It is live while it has been sent all that is stored. One that does not keep up falls back to reading the
    log, and is told of what has gone there before it came to it.

    Args:
        connection: Of the subscriber.
        retention: The logs.
        packet: What the subscriber asks for.
        counters: Where events are counted.
        behind: Those that did not keep up and have not caught up yet.
        turn: Held by the one reader of the connection that reads the archive.
    """

    __slots__ = (
        "_behind",
        "_connection",
        "_counters",
        "_exact",
        "_live",
        "_offset",
        "_retention",
        "_task",
        "_topic",
        "_turn",
    )

    def __init__(
        self,
        connection: Connection,
        retention: TopicLogs,
        packet: v2.Subscribe,
        counters: Counter[str],
        *,
        behind: set[Reader],
        turn: asyncio.Lock,
    ) -> None:
        self._connection, self._retention, self._counters = connection, retention, counters
        self._turn, self._behind = turn, behind
        self._topic = packet.topic
        self._offset = 0
        self._live = False
        # Whether the subscriber has a right to the message at the offset, so that its lack is a gap.
        self._exact = True
        self._task: asyncio.Task[None] | None = None
        topic_log = retention.reading(packet.topic, 1)
        if packet.start == "time" and packet.time is not None:
            self._task = asyncio.create_task(self._begin_at(packet.time))
        elif packet.start == "earliest":
            self._exact = False
            self._begin(topic_log, topic_log.first)
        elif packet.offset is None:
            self._begin(topic_log, topic_log.next)
        else:
            self._resume(topic_log, packet.log, packet.offset)

    @property
    def connection(self) -> Connection:
        """Return the connection of the subscriber."""
        return self._connection

    @property
    def missing(self) -> int:
        """Return how many messages of the log it has still to be sent."""
        return max(0, self._retention.topic(self._topic).next - self._offset)

    def take(self, offset: int, end: int, frames: bytes) -> bool:
        """Send what has just been stored, unless this reader is behind; return whether it was sent.

        Args:
            offset: Of the first message.
            end: After the last.
            frames: Of the packets.
        """
        if not self._live:
            return False
        # An archive that was slow reports very much at once.
        too_much = len(frames) > MAX_FRAMES_BYTES
        if too_much or offset != self._offset or self._connection.congested:
            self._live = False
            self._counters["fell_behind"] += 1
            log(logger, logging.DEBUG, "fell behind", peer=self._connection.peer, topic=self._topic)
            self._behind.add(self)
            self.catch_up()
            return False
        self._offset = end
        return self._connection.send_frames(frames)

    def catch_up(self) -> None:
        """Send what is in the log, as much as the subscriber takes."""
        connection = self._connection
        while not self._live and self._task is None and connection.sendable and not connection.congested:
            topic_log = self._retention.topic(self._topic)
            if self._offset >= topic_log.next:
                # The archive may be ahead of what has been reported; `take` will find that.
                self._live = True
                self._behind.discard(self)
            elif self._retention.in_memory(topic_log, self._offset):
                self._send(topic_log, topic_log.read(self._offset, CHUNK_BYTES), topic_log.next)
            else:
                self._task = asyncio.create_task(self._read_archive(topic_log))

    def stop(self) -> None:
        """Send nothing more."""
        self._live = False
        self._behind.discard(self)
        self._retention.reading(self._topic, -1)
        if self._task is not None:
            self._task.cancel()

    def _begin(self, topic_log: TopicLog, offset: int) -> None:
        self._offset = offset
        self._connection.send_packet(v2.Subscribed(self._topic, self._retention.id, offset, topic_log.next))

    async def _begin_at(self, moment: float) -> None:
        topic_log = self._retention.topic(self._topic)
        try:
            offset = await self._retention.offset_at(topic_log, moment)
        except WsqueueError as error:
            self._fail(error)
            return
        self._exact = False
        self._task = None
        self._begin(topic_log, offset)
        self.catch_up()

    def _resume(self, topic_log: TopicLog, log_id: str | None, offset: int) -> None:
        if log_id in (None, self._retention.id) and topic_log.start <= offset <= topic_log.next:
            self._begin(topic_log, offset)
            return
        # What the subscriber has seen is of another log, or of a part of this one that nobody knows.
        self._exact = False
        self._begin(
            topic_log,
            topic_log.next if offset > topic_log.next and log_id == self._retention.id else topic_log.first,
        )
        self._tell_of_gap(None)

    async def _read_archive(self, topic_log: TopicLog) -> None:
        async with self._turn:
            connection = self._connection
            if connection.congested or not connection.sendable:
                # The others have read enough; `writable` comes when the subscriber has taken it.
                self._task = None
                return
            # What is committed while the archive is read may not be in what it finds.
            end = topic_log.next
            try:
                records = await self._retention.read(topic_log, self._offset, CHUNK_BYTES)
            except WsqueueError as error:
                self._fail(error)
                return
            self._task = None
            self._send(topic_log, records, end)
        self.catch_up()

    def _send(self, topic_log: TopicLog, records: Sequence[Record], end: int) -> None:
        """Send records; if there are none, what was before `end` is gone."""
        first = records[0].offset if records else end
        if first > self._offset:
            missed = first - self._offset
            if self._exact:
                self._offset = first
                self._tell_of_gap(missed)
            else:
                # What was there when it subscribed has gone since.
                self._begin(topic_log, first)
        self._exact = True
        if records:
            packets = [record.packet for record in records]
            packets[0] = _from_offset(records[0], self._offset)
            count = records[-1].end - self._offset
            self._offset = records[-1].end
            if self._connection.send_frames(frame_texts(packets, masked=False)):
                self._counters["deliveries"] += count

    def _fail(self, error: WsqueueError) -> None:
        """Close the connection, whose subscriber will come again."""
        log(logger, logging.ERROR, "archive unreadable", reason=error)
        self._connection.fail(CloseCode.INTERNAL_ERROR, "the log of the topic cannot be read")

    def _tell_of_gap(self, missed: int | None) -> None:
        self._counters["gaps"] += 1
        count = "unknown" if missed is None else missed
        log(logger, logging.WARNING, "gap told", peer=self._connection.peer, topic=self._topic, missed=count)
        self._connection.send_packet(v2.Gap(self._topic, self._offset, missed))


def _from_offset(record: Record, offset: int) -> bytes:
    """Return the packet of a record without the messages before an offset."""
    if offset <= record.offset:
        return record.packet
    deliver = v2.decode(record.packet)
    assert isinstance(deliver, v2.Deliver)
    rest = deliver.data[offset - record.offset :]
    return v2.encode(msgspec.structs.replace(deliver, offset=offset, data=rest))
