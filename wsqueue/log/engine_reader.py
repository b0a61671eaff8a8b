"""Read the records of topics that are no longer in memory from an engine.

An engine knows records by their sequence numbers, and readers ask for offsets. The place after the last
record of a reader is remembered; any other one is searched: each step reads the record in the middle of those
that are left.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

from ..errors import StorageError
from .engine import Engine, Place, Unanswered
from .records import RECORD_OVERHEAD_BYTES, Record
from .shared_record import SharedRecord, decode_record
from .shared_topic import SharedTopic, records_of
from .store import TopicExtent

Result = TypeVar("Result")

READ_SECONDS = 15.0
"""Time after which a step of a read gives up: more than an election takes."""

AGAIN_SECONDS = 0.1
"""Time between two attempts to read."""

NOTHING = nullcontext()

MAX_CURSORS = 10_000
"""Places of readers that are remembered, so that they need not be searched: 2 MiB."""


async def table_of(engine: Engine, place: Place, record: SharedRecord) -> SharedRecord | None:
    """Return the table that the last record of a topic needs: the record itself, or None if that has gone.

    Raises:
        Unanswered: No server that has it answers.
    """
    if not record.table:
        return record
    found = await engine.read(place, record.table, 1)
    if not found:
        raise Unanswered("a server answers that doesn't have the newest messages yet")
    return decode_record(found[0].data) if found[0].seq == record.table else None


class EngineReader:
    """Find and read records of topics.

    Args:
        engine: The engine.
        requests: Held during each request.
        pause: Sleeps.
    """

    def __init__(
        self, engine: Engine, requests: asyncio.Semaphore, pause: Callable[[float], Awaitable[None]]
    ) -> None:
        self._engine, self._requests, self._pause = engine, requests, pause
        self._cursors: OrderedDict[tuple[str, str, int], int] = OrderedDict()

    async def read(self, topic: SharedTopic, offset: int, max_bytes: int) -> list[Record]:
        """Return records from the one that holds an offset on, at least one if there is any.

        Raises:
            StorageError: The engine doesn't answer.
        """
        return await self.in_time(partial(self._read, topic, offset, max_bytes))

    async def offset_at(self, topic: SharedTopic, moment: float) -> int:
        """Return the offset of the first record that is not older than a Unix time, `next` if all are.

        Raises:
            StorageError: The engine doesn't answer.
        """
        end = topic.next
        seq = await self.in_time(partial(self._find, topic, lambda record: record.time >= moment))
        found, _ = await self.in_time(partial(self._records_from, topic, seq, 1))
        return found[0].offset if found else end

    async def seq_at(self, topic: SharedTopic, offset: int) -> int:
        """Return a sequence number before which all records of a topic end at or before an offset.

        Raises:
            StorageError: The engine doesn't answer.
        """
        return await self._find(topic, lambda record: record.end > offset)

    async def purge(self, place: Place, below: int) -> None:
        """Drop the records of a topic below a sequence number.

        Raises:
            StorageError: The engine doesn't answer.
        """
        await self.in_time(partial(self._engine.purge, place, below), self._requests)

    async def extent(self, place: Place) -> TopicExtent | None:
        """Return how much of a topic is kept, None if it has no record.

        Raises:
            StorageError: The engine doesn't answer, or has something else in that place.
        """
        return await self.in_time(partial(self._extent, place), self._requests)

    async def in_time(
        self,
        request: Callable[[], Awaitable[Result]],
        held: AbstractAsyncContextManager[Any] = NOTHING,
    ) -> Result:
        """Ask the engine until it answers, or for too long; hold something during each attempt.

        Raises:
            StorageError: It does not answer.
        """
        until = time.monotonic() + READ_SECONDS
        while True:
            try:
                async with held:
                    return await request()
            except Unanswered as error:
                if time.monotonic() > until:
                    raise StorageError(f"the log can't be read: {error}") from None
                await self._pause(AGAIN_SECONDS)

    async def _extent(self, place: Place) -> TopicExtent | None:
        last = await self._engine.last(place)
        if last is None:
            return None
        newest = decode_record(last.data)
        found = await self._engine.read(place, 1, 1)
        if not found:
            raise Unanswered("a server answers that doesn't have the newest messages yet")
        oldest = decode_record(found[0].data)
        if oldest.log != newest.log:
            oldest = newest
        size = sum(len(batch.packet) + RECORD_OVERHEAD_BYTES for batch in oldest.batches)
        return TopicExtent(newest.topic, newest.bytes - oldest.bytes + size, oldest.offset, newest.end)

    async def _read(self, topic: SharedTopic, offset: int, max_bytes: int) -> list[Record]:
        """Return the records that hold an offset and those after it."""
        seq = self._cursors.pop((topic.name, topic.id, offset), 0)
        if not seq:
            seq = 1 if offset <= topic.start else await self._find(topic, lambda record: record.end > offset)
        while True:
            records, seq = await self._records_from(topic, seq, max_bytes)
            # A record of the engine holds several, and the first of them may end before the offset. So may
            # all of them, if a server without the newest records took part in the search.
            wanted = [record for record in records if record.end > offset]
            if wanted or not records:
                break
        if records:
            self._cursors[topic.name, topic.id, records[-1].end] = seq
            if len(self._cursors) > MAX_CURSORS:
                self._cursors.popitem(last=False)
        return wanted

    async def _records_from(self, topic: SharedTopic, seq: int, max_bytes: int) -> tuple[list[Record], int]:
        """Return the next records from a sequence number on, and the number after them.

        There is at least one if there is any.
        """
        end, records = topic.seq, list[Record]()
        while not records and seq <= end:
            found = await self.in_time(
                partial(self._engine.read, topic.place, seq, max_bytes), self._requests
            )
            if not found:
                # The newest record goes last: a server without it is behind, also one that leads and has lost
                # the others. If the log has gone, the subscriber connects again and finds out.
                raise Unanswered("a server answers that doesn't have the newest messages yet")
            for stored in found:
                if stored.seq > end:
                    # The reader hears of later messages when they are known here.
                    return records, stored.seq
                record = decode_record(stored.data)
                if record.log == topic.id:
                    records += records_of(topic.name, record)
                seq = stored.seq + 1
        return records, seq

    async def _find(self, topic: SharedTopic, right: Callable[[SharedRecord], bool]) -> int:
        """Return a sequence number from which on the first record is the first one that is right.

        All after that one must be right too.
        """
        low, high = 1, topic.seq + 1
        while low < high:
            middle = (low + high) // 2
            # Each is repeated by itself: a server whose host is off gets a share of the requests until the
            # others notice, and hardly a search would end in which all must succeed.
            found = await self.in_time(partial(self._engine.read, topic.place, middle, 1), self._requests)
            if not found or found[0].seq > topic.seq or right(decode_record(found[0].data)):
                high = middle
            else:
                low = found[0].seq + 1
        return low
