"""The durable log of a consumer's topics: one SQLite file, written by one thread and read by another.

The event loop only queues. The writer takes all that is queued, trims what the limits do not allow beside it,
commits, and only then tells the loop: what is told as committed survives a power cut.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..config.model import Retention
from ..journal import log
from ..report.stats import Histogram
from .database import Database, cost
from .files import reason_of
from .records import Record, State

logger = logging.getLogger(__name__)

MAX_GROUP_BYTES = 1024 * 1024
"""What one transaction writes: enough to make its cost small, and all of it is then delivered at once."""

EXPIRE_SECONDS = 5.0
"""How late an idle topic's records may expire: to look takes microseconds."""


class Archive:
    """Keep records in a directory that no other process uses.

    Args:
        directory: Made when missing.
        limits: What to keep. The newest record of a topic is kept whatever the limits of a topic say.
        committed: Called with records, in the order of `append`, once they survive a power cut.
        failed: Called with all records that are not committed, and the reason in one sentence.

    Attributes:
        commit_seconds: How long commits took.
        last_commit_seconds: What the latest took.
    """

    def __init__(
        self,
        directory: Path,
        limits: Retention,
        *,
        committed: Callable[[list[Record]], None],
        failed: Callable[[list[Record], str], None],
    ) -> None:
        self.last_commit_seconds = 0.0
        self.commit_seconds = Histogram()
        self._free_bytes = -1
        self._committed, self._failed = committed, failed
        self._store = Database(directory, limits)
        self._reader = ThreadPoolExecutor(1, "archive-reader")
        self._queue: deque[Record] = deque()
        self._pending_bytes = 0
        # Guards the queue and the two flags; it is never held while anything waits for the disk.
        self._wake = threading.Condition()
        self._failing = self._closing = False
        self._complaint = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()

    @property
    def pending_bytes(self) -> int:
        """Return how much is queued and neither committed nor failed; the caller bounds it."""
        return self._pending_bytes

    @property
    def bytes(self) -> int:
        """Return what the records take, as the limits count them."""
        return self._store.bytes

    @property
    def free_bytes(self) -> int:
        """Return how much room the file system had left a few seconds ago, -1 where it does not say."""
        return self._free_bytes

    async def open(self) -> State:
        """Open the file, or begin one, and return what it holds.

        Raises:
            ConfigError: The directory cannot be used, or the file is not ours.
            StorageError: The disk is full or does not work.
        """
        loop = asyncio.get_running_loop()
        try:
            state = await loop.run_in_executor(self._reader, self._store.open)
            self._free_bytes = await loop.run_in_executor(self._reader, self._store.free_bytes)
        except BaseException:
            self._reader.shutdown(wait=False)
            raise
        self._loop = loop
        threading.Thread(target=self._write, name="archive-writer", daemon=True).start()
        return state

    def knows(self, topic: str) -> bool:
        """Tell whether something is remembered of a topic."""
        return self._store.knows(topic)

    def append(self, records: Sequence[Record]) -> None:
        """Queue records for the writer."""
        assert self._loop is not None
        assert not self._closing
        self._pending_bytes += sum(map(cost, records))
        with self._wake:
            self._queue.extend(records)
            self._wake.notify()

    async def read(self, topic: str, offset: int, max_bytes: int) -> list[Record]:
        """Return a topic's records from the one that holds an offset on, at least one if there is any.

        When the first begins later, what lies between is gone.

        Args:
            topic: Its name.
            offset: Of a message.
            max_bytes: What all packets may have, but for the first.

        Raises:
            WsqueueError: The file cannot be read.
        """
        assert self._loop is not None
        return await self._loop.run_in_executor(self._reader, self._store.read, topic, offset, max_bytes)

    async def offset_at(self, topic: str, time: float) -> int:
        """Return the offset of a topic's first record that is not older than a time, else its next.

        It is 0 for a topic that is not remembered.

        Raises:
            WsqueueError: The file cannot be read.
        """
        assert self._loop is not None
        return await self._loop.run_in_executor(self._reader, self._store.offset_at, topic, time)

    async def close(self) -> None:
        """Commit what is queued, move all into the one file, and end the threads."""
        if self._loop is None or self._closing:
            return
        with self._wake:
            self._closing = True
            self._wake.notify()
        await self._ended.wait()
        await self._loop.run_in_executor(self._reader, self._store.close)
        self._reader.shutdown(wait=False)

    def _write(self) -> None:
        """Commit group after group, until the archive is closed; this is the writer thread."""
        while (group := self._next_group()) is not None:
            # Here, for a disk that stands still must not hold the event loop.
            self._free_bytes = self._store.free_bytes()
            began = time.perf_counter()
            try:
                self._store.commit(group)
            except Exception as error:  # noqa: BLE001 - what cannot be committed for any reason has failed
                reason = reason_of(error)
                self._store.roll_back()
                if not group:
                    self._complain(reason)
                    continue
                with self._wake:
                    self._failing = True
                if not self._tell(self._tell_failed, group, reason):
                    return
            else:
                seconds = time.perf_counter() - began
                if group and not self._tell(self._tell_committed, group, seconds):
                    return
                self._tidy(idle=not group)
        self._tell(self._ended.set)

    def _next_group(self) -> list[Record] | None:
        """Wait for records; return none of them when it is time to trim, and None at the end."""
        with self._wake:
            timeout = 0 if self._store.behind else EXPIRE_SECONDS
            # After a failure all that is queued belongs to it, until the loop has taken it away.
            self._wake.wait_for(lambda: not self._failing and (self._queue or self._closing), timeout)
            if self._failing:
                return []
            group: list[Record] = []
            size = 0
            while self._queue and size < MAX_GROUP_BYTES:
                group.append(self._queue.popleft())
                size += cost(group[-1])
            return None if self._closing and not group else group

    def _tidy(self, *, idle: bool) -> None:
        try:
            self._store.tidy(idle=idle)
        except (sqlite3.Error, MemoryError) as error:
            self._complain(reason_of(error))
        else:
            self._complaint = ""

    def _complain(self, reason: str) -> None:
        """Log why the file cannot be trimmed or tidied, once until it goes well again."""
        if reason != self._complaint:
            self._complaint = reason
            log(logger, logging.ERROR, "archive not tidied", file=self._store.file, reason=reason)

    def _tell(self, callback: Callable[..., object], *arguments: object) -> bool:
        """Call back on the event loop; return False when there is none any more."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return False
        return True

    def _tell_committed(self, group: list[Record], seconds: float) -> None:
        self.last_commit_seconds = seconds
        self.commit_seconds.observe(seconds)
        self._pending_bytes -= sum(map(cost, group))
        self._committed(group)

    def _tell_failed(self, group: list[Record], reason: str) -> None:
        with self._wake:
            records = [*group, *self._queue]
            self._queue.clear()
        self._pending_bytes -= sum(map(cost, records))
        try:
            self._failed(records, reason)
        finally:
            with self._wake:
                self._failing = False
                self._wake.notify()
