"""A subscription to one topic: new batches are sent at once, missed ones are read from the topic's log.

```
              ┌──► starting ─── offset found ──┐
Subscribe ────┤                                ▼          caught up
              └──────────────────────────► behind ◄──────────────────► live
                                           │    ▲  congested or a hole
                not in memory or to be cut ▼    │
                                          reading
```

- starting (`_asking`, `_find`): a start by time, or at a position of an earlier epoch, may wait for the
  archive. A log that others append to must first be known (`_opening`). Every other start knows its offset at
  once.
- behind: the subscriber has been sent all before `_offset`. `catch_up` sends records that are in memory,
  until the reader is live or the connection is congested; then the connection's `writable` calls it again.
- reading (`_asking`): the next record is not in memory and is read from the archive, or it begins before
  `_offset` and must be cut.
- In both, `ReaderTurns` lets one reader of a connection go on at a time, in one task, however many there are.
  Of all readers of the node, one cuts a record in a turn of the loop, because a million messages take 25 ms.
- live: `_offset` is the topic's `next`, and `take` sends each batch as it is stored.

`_offset` is the offset of the next message that the subscriber must be sent; all from it to the topic's
`next` are missing. If the log no longer has the message at `_offset`, the reader skips to the first that it
has, and tells the subscriber of the gap. Before it has sent a message or was live, it starts there instead,
without a gap, unless the subscriber asked for that very offset (`_exact`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from ..errors import WsqueueError
from ..journal import log
from ..log.records import Record
from ..log.store import Store
from ..log.topic import TopicLog
from ..protocol import v2
from ..protocol.close import CloseCode
from ..protocol.frames import frame_messages

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
"""Bytes that are read from a log at a time: about as many as a socket takes."""

TURN_CHUNKS = 8
"""Chunks that a reader sends in one go: 2 MiB take a few milliseconds."""

MAX_FRAMES_BYTES = 2 * CHUNK_BYTES
"""Maximum bytes of one write to a live reader: more could overflow the write buffer, which closes it."""


class Outlet(Protocol):
    """The connection of a subscriber, as far as a reader needs it, or an adapter that stands in for it."""

    @property
    def peer(self) -> str:
        """Return the address of the subscriber."""
        ...

    @property
    def buffered_bytes(self) -> int:
        """Return the bytes that wait in this process to be written."""
        ...

    @property
    def sendable(self) -> bool:
        """Return True if messages can be written."""
        ...

    @property
    def congested(self) -> bool:
        """Return True if the subscriber reads slowly; `Reader.catch_up` is called after it."""
        ...

    def send_packet(self, packet: v2.Packet) -> None:
        """Write one packet."""
        ...

    def send_frames(self, frames: bytes) -> bool:
        """Write frames of packets; return True if they were written."""
        ...

    def fail(self, code: CloseCode, reason: str = "") -> None:
        """End the connection."""
        ...


class ReaderTurns:
    """Let the readers of one connection wait for the archive or to cut a record, one after another.

    Args:
        cutting: Held by the reader that cuts a record, one of all connections. At most one reader of each
            connection waits for it, so that connections take turns.

    Attributes:
        cutting: See above.
        held: True while readers that are not live send no messages, because others are still to begin.
    """

    __slots__ = ("_task", "_waiting", "cutting", "held")

    def __init__(self, cutting: asyncio.Lock) -> None:
        self.cutting = cutting
        self.held = False
        self._waiting: dict[Reader, None] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, reader: Reader) -> None:
        """Call `take_turn` of a reader when it is its turn."""
        self._waiting[reader] = None
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def withdraw(self, reader: Reader) -> None:
        """Forget a reader that has stopped."""
        self._waiting.pop(reader, None)

    async def finish(self) -> None:
        """Wait until no reader waits for its turn."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._waiting:
            reader = next(iter(self._waiting))
            del self._waiting[reader]
            await reader.take_turn()
        self._task = None


class Reader:
    """Take one subscriber through the log of one topic.

    Args:
        connection: Connection of the subscriber, or an outlet that stands in for it.
        logs: The logs of all topics.
        packet: The topic, and where to start.
        counters: Counters of the node.
        behind: Readers of all subscribers that fell behind; the reader adds and removes itself.
        turns: Turns of the connection's readers.
    """

    __slots__ = (
        "_asking",
        "_behind",
        "_connection",
        "_counters",
        "_exact",
        "_find",
        "_live",
        "_logs",
        "_moves",
        "_next_turn",
        "_offset",
        "_opening",
        "_stopped",
        "_topic",
        "_turns",
        "_unnamed",
    )

    def __init__(
        self,
        connection: Outlet,
        logs: Store,
        packet: v2.Subscribe,
        *,
        counters: Counter[str],
        behind: set[Reader],
        turns: ReaderTurns,
    ) -> None:
        self._connection, self._logs, self._counters = connection, logs, counters
        self._turns, self._behind = turns, behind
        topic_log = logs.reading(packet.topic, 1)
        # As the log has it, so that it is in memory once.
        self._topic = topic_log.name
        self._offset = self._moves = 0
        self._live = self._stopped = self._asking = self._unnamed = False
        self._opening = logs.opening(topic_log)
        # Finds the offset to start at, until it has.
        self._find: Callable[[TopicLog], Awaitable[None]] | None = None
        # True if the subscriber asked for the message at the offset, or has got all before it: then it is a
        # gap if the log no longer has it.
        self._exact = True
        self._next_turn: asyncio.Handle | None = None
        if self._opening is None:
            self._start(topic_log, packet)
        else:
            self._asking = True
            self._opening.add_done_callback(partial(self._opened, packet))

    def _opened(self, packet: v2.Subscribe, opening: asyncio.Future[None]) -> None:
        """Begin, now that the log is known."""
        self._opening = None
        if not self._stopped and not opening.cancelled():
            self._asking = False
            self._start(self._logs.topic(self._topic), packet)
            self.catch_up()

    def _start(self, topic_log: TopicLog, packet: v2.Subscribe) -> None:
        """Find the offset to start at."""
        if packet.start == "time" and packet.time is not None:
            self._find = partial(self._begin_at, packet.time)
            self._ask()
        elif packet.start in ("earliest", "last"):
            self._exact = False
            first = 0 if packet.count is None else topic_log.next - packet.count
            self._begin(topic_log, max(first, self._logs.earliest(topic_log)))
        elif packet.offset is None:
            self._begin(topic_log, topic_log.next)
        elif packet.log in (None, self._logs.log_id(topic_log)):
            self._resume(topic_log, packet.log, packet.offset)
        elif (epoch := self._logs.epochs.number(packet.log)) is None:
            self._begin_after_gap(topic_log, 0)
        else:
            self._find = partial(self._resume_in, epoch, packet.offset)
            self._ask()

    @property
    def connection(self) -> Outlet:
        """Return the connection of the subscriber, or its outlet."""
        return self._connection

    @property
    def topic(self) -> str:
        """Return the topic, as its log has it."""
        return self._topic

    @property
    def opening(self) -> asyncio.Future[None] | None:
        """Return a future that is done when the log of the topic is known, None if it is."""
        return self._opening

    @property
    def missing(self) -> int:
        """Return the number of stored messages that the subscriber has not been sent."""
        return max(0, self._logs.topic(self._topic).next - self._offset)

    def take(self, offset: int, end: int, frames: bytes) -> bool:
        """Send batches that have just been stored, unless this reader is behind.

        Args:
            offset: Offset of the first message.
            end: Offset after the last message.
            frames: Frames of the packets.

        Returns:
            True if they were sent.
        """
        if not self._live:
            return False
        # A slow archive commits a large group, which comes here at once.
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
        """Send missing messages from the log, as many as the subscriber takes, in turns."""
        connection = self._connection
        chunks = 0
        while not (self._live or self._asking or self._turns.held) and _has_room(connection):
            if chunks == TURN_CHUNKS:
                # A subscriber that reads as fast as this node writes must not keep all others waiting.
                self._cancel_turn()
                self._next_turn = asyncio.get_running_loop().call_soon(self.catch_up)
                return
            chunks += 1
            topic_log = self._logs.topic(self._topic)
            if self._offset >= topic_log.next:
                # The archive may have committed more than it has reported; `take` will find the hole.
                self._live = self._exact = True
                self._behind.discard(self)
            elif self._logs.in_memory(topic_log, self._offset):
                records = topic_log.read(self._offset, CHUNK_BYTES)
                if self._must_cut(records):
                    self._ask()
                else:
                    self._send(topic_log, records, topic_log.next)
            else:
                self._ask()

    def name_epoch(self) -> None:
        """Tell the subscriber of another epoch, so that its position is one of that."""
        if self._find is None and self._opening is None:
            self._begin(self._logs.topic(self._topic), self._offset)

    def find_again(self, *, other: bool) -> None:
        """Go on in a log that has gone on without this reader.

        Args:
            other: Whether it is another log now, so that nobody knows which messages are missing.
        """
        if self._find is not None or self._opening is not None:
            return
        self._live = False
        self._moves += 1
        self._behind.add(self)
        topic_log = self._logs.topic(self._topic)
        if other:
            self._begin_after_gap(topic_log, topic_log.start)
        elif self._offset > topic_log.next:
            # The subscriber has read messages that this log has lost.
            self._begin_after_gap(topic_log, topic_log.next)
        elif self._unnamed:
            self._begin(topic_log, self._offset)
        self.catch_up()

    def stop(self) -> None:
        """Stop; nothing more is sent."""
        self._live, self._stopped = False, True
        self._behind.discard(self)
        self._logs.reading(self._topic, -1)
        self._cancel_turn()
        self._turns.withdraw(self)

    def _cancel_turn(self) -> None:
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None

    def _begin(self, topic_log: TopicLog, offset: int) -> None:
        self._offset = offset
        log_id = self._logs.log_id(topic_log)
        # While a shared log has no room, a reader of a new topic begins in one that has no id.
        self._unnamed = not log_id
        self._connection.send_packet(v2.Subscribed(self._topic, log_id, offset, topic_log.next))

    def _ask(self) -> None:
        self._asking = True
        self._turns.ask(self)

    async def take_turn(self) -> None:
        """Find the start, or read and send the next chunk (`ReaderTurns` calls this)."""
        try:
            if self._find is not None:
                await self._find(self._logs.topic(self._topic))
                self._find = None
                self._asking = False
                if not self._stopped:
                    self.catch_up()
            else:
                await self._go_on()
        except WsqueueError as error:
            if not self._stopped:
                self._fail(error)

    async def _begin_at(self, moment: float, topic_log: TopicLog) -> None:
        offset = await self._logs.offset_at(topic_log, moment)
        if not self._stopped:
            self._exact = False
            self._begin(topic_log, offset)

    def _resume(self, topic_log: TopicLog, log_id: str | None, offset: int) -> None:
        """Go on in the epoch of now."""
        if topic_log.start <= offset <= topic_log.next:
            self._begin(topic_log, offset)
        else:
            # The subscriber has read messages that this log lost, or a part of it that is no longer known.
            beyond = offset > topic_log.next and log_id is not None
            self._begin_after_gap(topic_log, topic_log.next if beyond else 0)

    async def _resume_in(self, epoch: int, offset: int, topic_log: TopicLog) -> None:
        """Go on in an earlier epoch, as far as this log has the messages that were read in it."""
        end = await self._logs.epoch_end(topic_log, epoch)
        if self._stopped:
            return
        if end is None:
            # All that is known: nothing was read before the first offset, and lost messages are a gap anyway.
            shared = offset == 0 or offset < self._logs.earliest(topic_log)
            end = 0
        else:
            shared = offset <= end
        if shared and offset >= topic_log.start and epoch >= self._logs.epochs.restored:
            self._begin(topic_log, offset)
        else:
            self._begin_after_gap(topic_log, min(offset, end))

    def _begin_after_gap(self, topic_log: TopicLog, offset: int) -> None:
        """Begin at an offset, or the first that is kept, and tell that nobody knows how much was missed."""
        self._exact = False
        self._begin(topic_log, max(offset, self._logs.earliest(topic_log)))
        self._tell_of_gap(None)

    async def _go_on(self) -> None:
        """Send the next chunk, and wait before if its first record must be cut."""
        if await self._send_next(may_cut=False):
            return
        async with self._turns.cutting:
            if not self._stopped:
                # It reads again, because chunks of all connections that wait here would take too much memory.
                await self._send_next(may_cut=True)
                # The loop takes a turn before the next reader cuts.
                await asyncio.sleep(0)

    async def _send_next(self, *, may_cut: bool) -> bool:
        """Read and send the next chunk.

        Returns:
            False if nothing was sent because a record must be cut.
        """
        connection = self._connection
        if connection.congested or not connection.sendable:
            # Other readers of the connection have filled it; `writable` continues.
            self._asking = False
            return True
        topic_log = self._logs.topic(self._topic)
        # Records that are committed while the archive is read may be missing in the result.
        end, moves = topic_log.next, self._moves
        records = await self._logs.read(topic_log, self._offset, CHUNK_BYTES)
        if self._stopped:
            return True
        if self._moves != moves:
            # They may be of a log that has gone.
            self._asking = False
            self.catch_up()
            return True
        if self._must_cut(records) and not may_cut:
            return False
        self._asking = False
        self._send(topic_log, records, end)
        self.catch_up()
        return True

    def _must_cut(self, records: Sequence[Record]) -> bool:
        """Return True if the next records begin with messages before the offset."""
        return bool(records) and records[0].offset < self._offset

    def _send(self, topic_log: TopicLog, records: Sequence[Record], end: int) -> None:
        """Send records; if there are none, the messages before `end` are gone."""
        first = records[0].offset if records else end
        if first > self._offset:
            missed = first - self._offset
            if self._exact:
                self._offset = first
                self._tell_of_gap(missed)
            else:
                # The first message was dropped after the subscriber asked for it.
                self._begin(topic_log, first)
        self._exact = True
        if records:
            packets = [record.packet for record in records]
            if self._must_cut(records):
                packets[0] = _cut(records[0], self._offset)
            count = records[-1].end - self._offset
            self._offset = records[-1].end
            if self._connection.send_frames(frame_messages(packets, masked=False, binary=True)):
                self._counters["deliveries"] += count

    def _fail(self, error: WsqueueError) -> None:
        """Close the connection; the subscriber will connect again."""
        log(logger, logging.ERROR, "archive unreadable", reason=error)
        self._connection.fail(CloseCode.INTERNAL_ERROR, "the log of the topic cannot be read")

    def _tell_of_gap(self, missed: int | None) -> None:
        self._counters["gaps"] += 1
        count = "unknown" if missed is None else missed
        log(logger, logging.WARNING, "gap told", peer=self._connection.peer, topic=self._topic, missed=count)
        self._connection.send_packet(v2.Gap(self._topic, self._offset, missed))


def _has_room(connection: Outlet) -> bool:
    return connection.sendable and not connection.congested


def _cut(record: Record, offset: int) -> bytes:
    """Return the packet of a record, without the messages before an offset inside it."""
    deliver = v2.decode(record.packet)
    assert isinstance(deliver, v2.Deliver)
    return v2.encode(deliver.behind(offset - record.offset))
