"""The store on disk: a batch is stored when the archive has it; the newest records are in memory too.

    append ──▶ pending ──────────────▶ committed: kept in memory, told ──▶ done
                  │  records                ▲
                  └────────▶ archive ───────┤
                                            └─ failed: all pending are taken back and refused ──▶ done

Pending outcomes are told in the order in which their batches came, so that a repeat and a refusal wait for
the records before them.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ..config.model import Retention
from ..errors import ConfigError
from ..journal import log
from ..protocol.packed import NOTHING
from ..report.report import HistogramStatus, LogStatus
from .archive import Archive
from .files import state_directory
from .index_budget import IndexBudget
from .logs import TopicLogs
from .records import Record
from .states import State, StateInfo
from .store import AppendChain, Done, Outcome, TopicExtent
from .topic import TopicLog

logger = logging.getLogger(__name__)

CACHE_BYTES = 64 * 1024 * 1024
"""Bytes of records in memory too: subscribers that come back soon don't wait for the disk."""

PENDING_BYTES = 32 * 1024 * 1024
"""Bytes that may wait for the disk; above it, no more is read from the producers."""

PENDING_OVERHEAD_BYTES = 600
"""Bytes of a chain that waits besides its record, so that the limit is honest."""

PENDING_BATCH_BYTES = 50
"""Bytes of a batch of such a chain: its number."""


class SqliteStore(TopicLogs):
    """Keep the logs of all topics in a SQLite file, and the newest records in memory.

    Args:
        config: The directory and the limits.
        done: Called with the outcomes of batches, in the order in which they came.
        clock: Returns the Unix time.
    """

    def __init__(self, config: Retention, done: Done, clock: Callable[[], float] = time.time) -> None:
        super().__init__(config, done, clock)
        self._directory = state_directory(config)
        self._archive = Archive(
            self._directory or Path(),
            config,
            committed=self._committed,
            failed=self._failed,
            damaged=self._damaged,
            clock=clock,
        )
        self._failing = ""
        # Outcomes that wait for the archive, each with the publisher's number before.
        self._pending: deque[tuple[Outcome, int | None]] = deque()
        self._pending_batches = 0
        self._settled = asyncio.Event()
        self._settled.set()

    async def open(self) -> None:
        """Open the archive.

        Raises:
            ConfigError: There is no directory, or it cannot be used.
            StorageError: The disk is full or does not work.
        """
        if self._directory is None:
            raise ConfigError("required for the mode sqlite", key="retention.directory")
        self._take_over(await self._archive.open())

    async def close(self) -> None:
        """Commit all that is pending, and close the archive."""
        await self._archive.close()

    def reconfigure(self, limits: Retention) -> None:
        """Use other limits from now on; mode and directory stay those of the start."""
        self._archive.reconfigure(limits)
        super().reconfigure(limits)

    @property
    def congested(self) -> bool:
        """Return True if too much waits for the disk."""
        overhead = PENDING_OVERHEAD_BYTES * len(self._pending) + PENDING_BATCH_BYTES * self._pending_batches
        return self._archive.pending_bytes + overhead > PENDING_BYTES

    async def settle(self) -> None:
        """Wait until nothing waits for the disk."""
        await self._settled.wait()

    def append(self, chains: Sequence[AppendChain]) -> None:
        """Hand batches to the archive; tell at once the outcomes that need not wait for it."""
        outcomes: list[Outcome] = []
        records: list[Record] = []
        now = self._clock()
        for chain in chains:
            before = self._repeats.last(chain.topic, chain.publisher)
            outcome = self._admit(chain, before, now)
            if outcome.record is not None:
                records.append(outcome.record)
            elif not self._pending:
                outcomes.append(outcome)
                continue
            self._pending.append((outcome, before))
            self._pending_batches += len(chain.numbers)
            # The messages are in the packet, where they take far less.
            chain.messages, chain.counts = NOTHING, []
        if records:
            self._settled.clear()
            self._archive.append(records)
        if outcomes:
            self._done(outcomes)

    def trim(self) -> None:
        """Drop records above the limits, in memory now, on disk soon."""
        super().trim()
        self._archive.trim()

    def earliest(self, log: TopicLog) -> int:
        """Return the offset of the first message that is kept, `next` when there is none."""
        first = self._archive.first(log.name)
        return log.next if first is None else min(first, log.next)

    def in_memory(self, log: TopicLog, offset: int) -> bool:
        """Return True if all messages that are kept from an offset on are in memory."""
        return offset >= log.first

    async def read(self, log: TopicLog, offset: int, max_bytes: int) -> list[Record]:
        """Return records from the one that holds an offset on, also those that only the archive has.

        Raises:
            WsqueueError: The archive cannot be read.
        """
        if self.in_memory(log, offset):
            return log.read(offset, max_bytes)
        return await self._archive.read(log.name, offset, max_bytes)

    async def offset_at(self, log: TopicLog, moment: float) -> int:
        """Return the offset of the first record that is not older than a Unix time, `next` if all are.

        Raises:
            WsqueueError: The archive cannot be read.
        """
        if log.records and log.records[0].time < moment:
            return log.offset_at(moment)
        # A commit during the read may not be among the records that it finds.
        end = log.next
        found = await self._archive.offset_at(log.name, moment)
        return end if found is None else found

    async def epoch_end(self, log: TopicLog, epoch: int) -> int | None:
        """Return the offset at which an epoch of these logs ends in a topic, None if nothing shows it.

        Raises:
            WsqueueError: The archive cannot be read.
        """
        end = log.epoch_end(epoch)
        return await self._archive.epoch_end(log.name, epoch) if end is None else end

    def begin_epoch(self) -> None:
        """Begin another epoch, which the archive keeps before any record of it."""
        super().begin_epoch()
        self._archive.begin_epoch(self.epochs.current)

    async def state(self, topic: str, name: str) -> State | None:
        """Return a state, None if there is none.

        Raises:
            WsqueueError: The archive cannot be read.
        """
        return await self._archive.state(topic, name)

    async def change_state(self, topic: str, name: str, value: bytes, version: int) -> int:
        """Replace a state, or make one, and return its new version once it is on disk.

        Raises:
            StateConflict: It has another version: nothing was changed.
            StatesFull: There are too many states, or there is no room: nothing was changed.
            StorageError: The disk does not take it: nothing was changed.
        """
        return await self._archive.change_state(topic, name, value, version)

    async def drop_state(self, topic: str, name: str, version: int) -> None:
        """Delete a state, and return once that is on disk.

        Raises:
            StateConflict: It has another version, or there is none: nothing was changed.
            StorageError: The disk does not take it: nothing was changed.
        """
        await self._archive.drop_state(topic, name, version)

    async def states(self) -> list[StateInfo]:
        """Return all states.

        Raises:
            WsqueueError: The archive cannot be read.
        """
        return await self._archive.states()

    def log_status(self) -> LogStatus:
        """Return the status of the logs for reports."""
        archive = self._archive
        return LogStatus(
            mode="sqlite",
            topics=len(self._ledger.topics),
            bytes=archive.bytes,
            limit_bytes=self._config.max_bytes,
            pending_bytes=archive.pending_bytes,
            commit_seconds=archive.last_commit_seconds,
            free_bytes=archive.free_bytes,
            failing=self._failing,
            unchecked=archive.unchecked,
            wal_bytes=archive.wal_bytes,
            held_seconds=archive.held_seconds,
        )

    def commit_seconds(self) -> HistogramStatus | None:
        """Return how long commits of the archive took."""
        return self._archive.commit_seconds.status()

    async def _purge_topic(self, log: TopicLog, end: int) -> None:
        """Drop the records that end before an offset, on disk first.

        Raises:
            StorageError: The disk doesn't do it.
        """
        await self._archive.purge(log.name, end)
        await self._purge_memory(log, end)

    def _extent(self, log: TopicLog) -> TopicExtent:
        """Return how much of a topic is kept on disk."""
        return TopicExtent(log.name, self._archive.bytes_of(log.name), self.earliest(log), log.next)

    def _memory_limits(self, config: Retention) -> Retention:
        """Return the limits of the records in memory, which are those of the archive but for their size."""
        return msgspec.structs.replace(config, max_bytes=min(CACHE_BYTES, config.max_bytes))

    def _empty_topics_budget(self) -> IndexBudget | None:
        """Return None: a topic that is empty in memory is needed as long as the archive knows it."""
        return None

    def _needed(self, log: TopicLog) -> bool:
        """Return True if an empty topic waits for the archive, or the archive knows it."""
        return log.assigned != log.next or self._archive.first(log.name) is not None

    def _committed(self, records: list[Record]) -> None:
        """Tell the outcomes of records that are on disk now (the archive calls this)."""
        if self._failing:
            log(logger, logging.INFO, "messages stored again", after=self._failing)
            self._failing = ""
        outcomes: list[Outcome] = []
        left = len(records)
        while self._pending and (left or self._pending[0][0].record is None):
            outcome, _ = self._pending.popleft()
            self._pending_batches -= len(outcome.chain.numbers)
            if outcome.record is not None:
                left -= 1
                self._keep(outcome.record)
            outcomes.append(outcome)
        self._tell(outcomes)

    def _damaged(self, reason: str) -> None:
        """Say that the archive can be used no more (the archive calls this)."""
        self._failing = reason
        self.on_damage(reason)

    def _failed(self, records: list[Record], reason: str) -> None:
        """Take back all that could not be written, and refuse it (the archive calls this)."""
        if reason != self._failing:
            log(logger, logging.ERROR, "messages refused", reason=reason)
        self._failing = reason
        for outcome, before in reversed(self._pending):
            if outcome.record is None:
                continue
            self.topic(outcome.record.topic).assigned = outcome.record.offset
            if outcome.chain.publisher:
                # Not forgotten, because then the next batch would pass for the first.
                self._remember(outcome.chain.topic, outcome.chain.publisher, before or 0)
        outcomes: list[Outcome] = []
        for outcome, _ in self._pending:
            chain, numbers = outcome.chain, outcome.chain.numbers
            last = self._repeats.last(chain.topic, chain.publisher) or 0
            stored = bisect.bisect_right(numbers, last) if chain.publisher else 0
            if outcome.code is None and stored < len(numbers):
                outcome = Outcome(chain, stored, code="full", reason=reason)  # noqa: PLW2901 - the fate changed
            outcomes.append(outcome)
        self._pending.clear()
        self._pending_batches = 0
        self._tell(outcomes)

    def _tell(self, outcomes: list[Outcome]) -> None:
        super().trim()
        if not self._pending:
            self._settled.set()
        if outcomes:
            self._done(outcomes)
