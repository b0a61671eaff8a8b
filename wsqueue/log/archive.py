"""The archive: records in a SQLite file, written by one thread and read by another.

    append ──▶ queue ──▶ group ──▶ commit ──▶ committed     of the group
    (loop)       │     (writer)      │         (loop)
                 │                   └──▶ failing ──▶ failed    of the group and of the whole queue
                 └───────────────────────────────────▲ (loop)

The event loop only queues. The writer takes the queue as one group, deletes records above the limits
beside it, commits, and only then tells the loop: records that are told as committed survive a power cut. When
a commit fails, the writer stands still until the loop has taken all of the queue back, because queued records
may come after failed ones. Without records, the writer wakes when `trim` is called, to trim and to tidy.

Changes of states go the same way: the next commit has all that wait. The loop judges them by the index of
states, which is as if all of them were committed; those that fail are undone, the newest first.

A file that was not closed cleanly is checked in small steps, between the reads of subscribers. When the
check, a read or a commit finds damage, the writer ends, `damaged` is called, and `close` sets the file aside.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ..config.model import Retention
from ..errors import StorageError, WsqueueError
from ..journal import Complaint, log
from ..report.stats import Histogram
from .database import Database, Purge
from .files import Damaged, reason_of, set_aside
from .records import Epoch, Record, StoreState
from .schema import is_damage
from .states import State, StateChange, StateIndex, StateInfo, Value

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

FILE_NAME = "archive.sqlite"

MAX_GROUP_BYTES = 1024 * 1024
"""Bytes that one transaction writes: enough to make its cost small; all of it is then delivered at once."""


class Archive:
    """Keep records in a directory that no other process uses.

    Args:
        directory: Directory of the file; made when missing.
        limits: Limits of the log.
        committed: Called with records, in the order of `append`, once they survive a power cut.
        failed: Called with all records that are not committed, and the reason in one sentence.
        damaged: Called with a sentence when the file is damaged: nothing is committed any more, and the
            caller must close the archive.
        clock: Returns the Unix time.

    Attributes:
        commit_seconds: Times that commits took.
        last_commit_seconds: Time that the latest took.
    """

    def __init__(
        self,
        directory: Path,
        limits: Retention,
        *,
        committed: Callable[[list[Record]], None],
        failed: Callable[[list[Record], str], None],
        damaged: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.last_commit_seconds = 0.0
        self.commit_seconds = Histogram()
        self._free_bytes = -1
        self._committed, self._failed, self._on_damage = committed, failed, damaged
        self._database = Database(directory / FILE_NAME, limits, clock=clock)
        self._reader = ThreadPoolExecutor(1, "archive-reader")
        self._queue: deque[Record] = deque()
        self._pending_bytes = 0
        self._index = StateIndex()
        self._changes: list[StateChange] = []
        # All changes that are neither committed nor failed, in their order.
        self._unsettled: deque[tuple[StateChange, asyncio.Future[None]]] = deque()
        # Guards the queue, the changes and the three flags; it is never held while anything waits for the
        # disk.
        self._wake = threading.Condition()
        self._failing = self._closing = self._trimming = False
        self._damage = ""
        self._complaint = Complaint()
        self._held = False
        self._checking: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()

    @property
    def pending_bytes(self) -> int:
        """Return the bytes of records that are neither committed nor failed; the caller bounds them."""
        return self._pending_bytes

    @property
    def bytes(self) -> int:
        """Return the bytes of all records, as the limits count them."""
        return self._database.ledger.bytes

    @property
    def wal_bytes(self) -> int:
        """Return the bytes of the write-ahead log that have not been moved into the file."""
        return self._database.wal_bytes

    @property
    def held_seconds(self) -> float:
        """Return the time for which another process has kept them from being moved, 0 if none does."""
        since = self._database.held_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def unchecked(self) -> int:
        """Return about how many records must still be checked because the file was not closed cleanly."""
        return self._database.unchecked

    @property
    def free_bytes(self) -> int:
        """Return the bytes that the file system had left when it was last asked, -1 if it does not say."""
        return self._free_bytes

    async def open(self) -> StoreState:
        """Open the file, or begin a new one, and return its state.

        Raises:
            ConfigError: The directory cannot be used, or the file is not ours.
            StorageError: The disk is full or does not work.
        """
        loop = asyncio.get_running_loop()
        try:
            state = await loop.run_in_executor(self._reader, self._database.open)
            self._free_bytes = await loop.run_in_executor(self._reader, self._database.free_bytes)
        except BaseException:
            self._reader.shutdown(wait=False)
            raise
        self._loop, self._index = loop, StateIndex(state.heads.items())
        threading.Thread(target=self._write, name="archive-writer", daemon=True).start()
        if self._database.unchecked:
            self._checking = loop.create_task(self._check())
        return state

    def first(self, topic: str) -> int | None:
        """Return the offset of a topic's first record, its next without any, None if it is not remembered.

        Records of a commit under way count.
        """
        return self._database.first(topic)

    def bytes_of(self, topic: str) -> int:
        """Return the bytes of a topic's records, as the limits count them."""
        return self._database.bytes_of(topic)

    def reconfigure(self, limits: Retention) -> None:
        """Use other limits from the next commit or trim on."""
        self._database.limits = limits

    def append(self, records: Sequence[Record]) -> None:
        """Queue records for the writer."""
        assert self._loop is not None
        assert not self._closing
        self._pending_bytes += sum(record.size for record in records)
        with self._wake:
            self._queue.extend(records)
            self._wake.notify()

    async def state(self, topic: str, name: str) -> State | None:
        """Return a state as it is committed, None if there is none.

        Raises:
            WsqueueError: The file cannot be read.
        """
        return await self._ask(functools.partial(self._database.read_state, topic, name))

    async def states(self) -> list[StateInfo]:
        """Return all states as they are committed.

        Raises:
            WsqueueError: The file cannot be read.
        """
        return await self._ask(self._database.read_states)

    async def change_state(self, topic: str, name: str, value: Value, version: int) -> int:
        """Replace a state, or make one, and return its new version once that is committed.

        Raises:
            StateConflict: It has another version: nothing was changed.
            StatesFull: There is no room for it: nothing was changed.
            StorageError: The change could not be committed.
        """
        self._expect_writer()
        change = self._index.change(topic, name, value, version)
        await self._settled(change)
        assert change.after is not None
        return change.after.version

    async def drop_state(self, topic: str, name: str, version: int) -> None:
        """Delete a state, and return once that is committed.

        Raises:
            StateConflict: It has another version, or there is none: nothing was changed.
            StorageError: The change could not be committed.
        """
        self._expect_writer()
        await self._settled(self._index.drop(topic, name, version))

    async def purge(self, topic: str, before: int) -> None:
        """Delete the first records of a topic that end before an offset, and return once that is committed.

        Raises:
            StorageError: It could not be.
        """
        self._expect_writer()
        assert self._loop is not None
        done: asyncio.Future[None] = self._loop.create_future()
        self._database.purges.append(Purge(topic, before, done))
        self.trim()
        await done

    def _expect_writer(self) -> None:
        """Make sure that somebody commits.

        Raises:
            StorageError: Nobody does any more.
        """
        if self._loop is None or self._closing or self._damage:
            raise StorageError(f"{self._database.file}: {self._damage or 'the log is closed'}")

    async def _settled(self, change: StateChange) -> None:
        """Queue a change for the writer, and wait until it is committed.

        Raises:
            StorageError: It could not be.
        """
        assert self._loop is not None
        settled: asyncio.Future[None] = self._loop.create_future()
        self._unsettled.append((change, settled))
        with self._wake:
            self._changes.append(change)
            self._wake.notify()
        await settled

    def begin_epoch(self, epoch: Epoch) -> None:
        """Have the writer keep an epoch, before any record that is appended later."""
        self._database.begin_epoch(epoch)
        self.trim()

    def trim(self) -> None:
        """Have the writer trim and tidy when nothing comes: records get too old by themselves."""
        with self._wake:
            self._trimming = True
            self._wake.notify()

    async def read(self, topic: str, offset: int, max_bytes: int) -> list[Record]:
        """Return a topic's records from the one that holds an offset on, at least one if there is any.

        When the first begins after the offset, the messages between are gone.

        Args:
            topic: Name of the topic.
            offset: Offset of a message.
            max_bytes: Bytes that all packets may have, except for the first.

        Raises:
            WsqueueError: The file cannot be read.
        """
        return await self._ask(functools.partial(self._database.read, topic, offset, max_bytes))

    async def offset_at(self, topic: str, time: float) -> int | None:
        """Return the offset of a topic's first record that is not older than a time, None without one.

        Raises:
            WsqueueError: The file cannot be read.
        """
        return await self._ask(functools.partial(self._database.offset_at, topic, time))

    async def epoch_end(self, topic: str, epoch: int) -> int | None:
        """Return the offset at which an epoch ends in a topic, None if no record shows it.

        Raises:
            WsqueueError: The file cannot be read.
        """
        return await self._ask(functools.partial(self._database.epoch_end, topic, epoch))

    async def close(self) -> None:
        """Commit the queue, move all into the one file, and end the threads; set a damaged file aside."""
        if self._loop is None or self._closing:
            return
        if self._checking is not None:
            self._checking.cancel()
        with self._wake:
            self._closing = True
            self._wake.notify()
        await self._ended.wait()
        await self._loop.run_in_executor(self._reader, self._database.close)
        if self._damage:
            await self._loop.run_in_executor(self._reader, set_aside, self._database.file, self._damage)
        self._reader.shutdown(wait=False)

    async def _ask(self, question: Callable[[], Result]) -> Result:
        """Return the answer of the reader thread.

        Raises:
            WsqueueError: The file cannot be read.
        """
        assert self._loop is not None
        try:
            return await self._loop.run_in_executor(self._reader, question)
        except Damaged as damaged:
            self._found_damage(str(damaged))
            raise WsqueueError(f"{self._database.file}: cannot be read: {damaged}") from None

    async def _check(self) -> None:
        """Check the file in small steps, and rest for as long as each took."""
        database = self._database
        began = time.monotonic()
        log(logger, logging.INFO, "checking archive", file=database.file, records=database.unchecked)
        while database.unchecked:
            step_began = time.monotonic()
            try:
                await self._ask(database.check)
            except WsqueueError as error:
                if not self._damage:
                    log(logger, logging.ERROR, "archive not checked", reason=error)
                return
            await asyncio.sleep(time.monotonic() - step_began)
        seconds = f"{time.monotonic() - began:.1f}"
        log(logger, logging.INFO, "archive checked", file=database.file, seconds=seconds)

    def _found_damage(self, reason: str) -> None:
        """Stop writing, and say so, once."""
        if self._damage:
            return
        self._damage = reason
        with self._wake:
            self._wake.notify()
        self._on_damage(f"{self._database.file}: the archive is damaged, and is set aside: {reason}")

    def _write(self) -> None:
        """Commit group after group, until the archive is closed; this is the writer thread."""
        while (work := self._next_group()) is not None:
            group, changes = work
            # Asked in this thread, because a disk that stands still must not hold the event loop.
            self._free_bytes = self._database.free_bytes()
            began = time.perf_counter()
            try:
                purged = self._database.commit(group, changes)
            except Exception as error:  # noqa: BLE001 - a commit may fail for any reason
                reason = reason_of(error)
                if is_damage(error):
                    self._tell(self._found_damage, reason)
                    break
                self._database.roll_back()
                self._tell(self._fail_purges, reason)
                if not group and not changes:
                    self._complain(reason)
                    continue
                with self._wake:
                    self._failing = True
                if not self._tell(self._tell_failed, group, reason):
                    return
            else:
                seconds = time.perf_counter() - began
                if purged:
                    self._tell(_settle_purges, purged)
                told = not (group or changes) or self._tell(
                    self._tell_committed, group, len(changes), seconds
                )
                if not told:
                    return
                self._tidy(idle=not group and not changes)
        self._tell(self._end)

    def _next_group(self) -> tuple[list[Record], list[StateChange]] | None:
        """Wait for records and changes of states, and return them.

        Returns:
            No record and no change when it is time to trim, and None at the end.
        """
        with self._wake:
            timeout = 0 if self._database.behind else None
            self._wake.wait_for(self._has_work, timeout)
            trimming, self._trimming = self._trimming, False
            if self._damage:
                return None
            if self._failing:
                return [], []
            group: list[Record] = []
            size = 0
            while self._queue and size < MAX_GROUP_BYTES:
                group.append(self._queue.popleft())
                size += group[-1].size
            changes, self._changes = self._changes, []
            # A commit that was asked for comes before the end: it may have an epoch to write.
            work = group or changes or trimming
            return None if self._closing and not work else (group, changes)

    def _has_work(self) -> bool:
        # After a failure the whole queue belongs to it, until the loop has taken it away.
        work = self._queue or self._changes or self._closing or self._trimming or self._damage
        return bool(work) and not self._failing

    def _tidy(self, *, idle: bool) -> None:
        try:
            self._database.tidy(idle=idle)
        except (sqlite3.Error, UnicodeDecodeError, MemoryError) as error:
            if is_damage(error):
                self._tell(self._found_damage, reason_of(error))
            self._complain(reason_of(error))
        else:
            self._complaint.end()
            self._say_if_held()

    def _say_if_held(self) -> None:
        """Log that another process holds the write-ahead log, and that it no longer does."""
        database = self._database
        held = database.held_since is not None
        if held and not self._held:
            log(logger, logging.WARNING, "archive held", file=database.file, wal_bytes=database.wal_bytes)
        elif self._held and not held:
            log(logger, logging.INFO, "archive released", file=database.file)
        self._held = held

    def _complain(self, reason: str) -> None:
        """Log why the file cannot be trimmed or tidied."""
        file = self._database.file
        self._complaint.log(logger, logging.ERROR, "archive not tidied", file=file, reason=reason)

    def _tell(self, callback: Callable[..., object], *arguments: object) -> bool:
        """Call back on the event loop; return False when the loop has ended."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return False
        return True

    def _tell_committed(self, group: list[Record], changes: int, seconds: float) -> None:
        self.last_commit_seconds = seconds
        self.commit_seconds.observe(seconds)
        for _ in range(changes):
            _, settled = self._unsettled.popleft()
            if not settled.done():
                settled.set_result(None)
        if group:
            self._pending_bytes -= sum(record.size for record in group)
            self._committed(group)

    def _tell_failed(self, group: list[Record], reason: str) -> None:
        with self._wake:
            records = [*group, *self._queue]
            self._queue.clear()
            self._changes.clear()
        self._pending_bytes -= sum(record.size for record in records)
        try:
            self._fail_changes(reason)
            if records:
                self._failed(records, reason)
        finally:
            with self._wake:
                self._failing = False
                self._wake.notify()

    def _fail_changes(self, reason: str) -> None:
        """Undo all changes of states that are not committed, and say so."""
        while self._unsettled:
            change, settled = self._unsettled.pop()
            self._index.undo(change)
            if not settled.done():
                settled.set_exception(StorageError(f"{self._database.file}: {reason}"))

    def _end(self) -> None:
        """Note that the writer has ended; changes are left only in a damaged file."""
        self._fail_changes(self._damage)
        self._fail_purges(self._damage or "the log is closed")
        self._ended.set()

    def _fail_purges(self, reason: str) -> None:
        """Give up all purges that are not committed, and say so."""
        purges = self._database.purges
        while purges:
            purge = purges.pop()
            if not purge.done.done():
                purge.done.set_exception(StorageError(f"{self._database.file}: {reason}"))


def _settle_purges(purges: Sequence[Purge]) -> None:
    """Say that purges are committed."""
    for purge in purges:
        if not purge.done.done():
            purge.done.set_result(None)
