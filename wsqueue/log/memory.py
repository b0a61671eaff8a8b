"""The logs of a consumer's topics: every batch gets its offset, repeats are dropped, old ones go.

What is kept in memory serves subscribers that come back soon. With retention `sqlite` it is a cache of the
archive, and a batch is stored when the archive has committed it; with `memory` there is nothing else, but
a clean stop leaves a snapshot for the next start.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import os
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from ..config import model as configuration
from ..errors import ConfigError
from ..journal import log
from ..protocol import v2
from ..protocol.v2 import RefusalCode
from ..report.report import HistogramStatus, LogStatus
from .records import MAX_NUMBERS, Record, State, TopicState
from .snapshot import take_snapshot, write_snapshot
from .sqlite import Archive
from .topic import NO_RECORDS, TopicLog

logger = logging.getLogger(__name__)

MAX_EMPTY_TOPICS = 100_000
"""Topics without messages whose next offset is remembered, likewise."""

TOPIC_OVERHEAD_BYTES = 1200
"""What a topic with messages takes besides them, so that limits are honest."""

CACHE_BYTES = 64 * 1024 * 1024
"""What is in memory of an archive: subscribers that come back soon don't wait for the disk."""

PENDING_BYTES = 32 * 1024 * 1024
"""What may wait for the disk; above it, no more is read from the producers."""

PENDING_OVERHEAD_BYTES = 800
"""What a batch that waits takes besides its packet, so that this is honest."""

FORGET_TRIES = 10
"""Topics that are looked at for each that comes: more than one, so that they get fewer."""

PROBLEMS: dict[RefusalCode, str] = {
    "invalid": v2.INVALID_DATA,
    "topic_too_long": "the topic has more than max_topic_bytes",
}

SNAPSHOT = "snapshot.sqlite3"
"""The file that a clean stop leaves when the logs are in memory."""


class Batch(msgspec.Struct, gc=False):
    """Hold messages of one publisher on one topic that came together.

    Attributes:
        topic: Of all messages.
        data: The messages.
        publisher: Public id of the publisher; "" for a classic one.
        number: Of the batch, by its publisher; 0 for a classic one.
        after: The number of the publisher's batch before, if that need not be here yet, else 0.
        source: Whoever is told what became of it.
        problem: Why it cannot be stored, None when it can.
    """

    topic: str
    data: list[str]
    publisher: str = ""
    number: int = 0
    after: int = 0
    source: object = None
    problem: RefusalCode | None = None


class Outcome(msgspec.Struct, gc=False):
    """Say what became of a batch.

    Attributes:
        batch: Which.
        record: Where it is in the log; None when it was there before, or is refused.
        code: Why it is refused, None when it is not.
        reason: The same in words.
    """

    batch: Batch
    record: Record | None = None
    code: RefusalCode | None = None
    reason: str = ""


class TopicLogs:
    """Keep the logs of all topics.

    Args:
        config: The mode and the limits.
        done: Called with the outcomes of batches, in the order in which they came.
        clock: Returns the Unix time.

    Attributes:
        id: Of the logs; offsets of other logs mean nothing here.
    """

    def __init__(
        self,
        config: configuration.Retention,
        done: Callable[[list[Outcome]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.id = secrets.token_hex(8)
        self._done, self._clock = done, clock
        self._topics: dict[str, TopicLog] = {}
        self._empty: OrderedDict[str, None] = OrderedDict()
        # The topic of each record in memory, oldest first.
        self._order: deque[TopicLog] = deque()
        self._records = self._bytes = 0
        self._floor = 0
        self._numbers: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._archive: Archive | None = None
        self._failing = ""
        # What waits for the archive, in the order in which it came, with the number before of each.
        self._pending: deque[tuple[Outcome, int | None]] = deque()
        self._settled = asyncio.Event()
        self._settled.set()
        self.reconfigure(config)

    def reconfigure(self, config: configuration.Retention) -> None:
        """Use other limits from now on; mode and directory are those of the start."""
        self._config = config

    @property
    def congested(self) -> bool:
        """Tell whether too much waits for the disk."""
        if self._archive is None:
            return False
        overhead = PENDING_OVERHEAD_BYTES * len(self._pending)
        return self._archive.pending_bytes + overhead > PENDING_BYTES

    async def open(self) -> None:
        """Open the archive, or take what the last clean stop left.

        Raises:
            ConfigError: There is no directory, or it cannot be used.
            StorageError: The disk is full or does not work.
        """
        directory = self._directory()
        if self._config.mode == "sqlite":
            if directory is None:
                raise ConfigError("required for the mode sqlite", key="retention.directory")
            self._archive = Archive(directory, self._config, committed=self._committed, failed=self._failed)
            self._take_over(await self._archive.open())
        elif directory is not None:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                problem = f"cannot make the directory: {error.strerror}"
                raise ConfigError(problem, file=str(directory), key="retention.directory") from None
            snapshot = await asyncio.to_thread(take_snapshot, directory / SNAPSHOT)
            if snapshot is not None:
                self._take_over(snapshot)
                for record in snapshot.records:
                    self._keep(self._topics[record.topic], record)
        self.trim()

    def _take_over(self, state: State) -> None:
        self.id, self._floor = state.id, state.floor
        self._numbers.update(state.numbers)
        for name, topic in state.topics.items():
            log = self._topics[name] = TopicLog(name, topic.first, topic.next)
            log.start = 0
            self._empty[name] = None

    def commit_seconds(self) -> HistogramStatus | None:
        """Return how long commits of the archive took, None without one."""
        return None if self._archive is None else self._archive.commit_seconds.status()

    def log_status(self) -> LogStatus:
        """Return how the logs are."""
        archive = self._archive
        return LogStatus(
            mode=self._config.mode,
            topics=len(self._topics),
            bytes=self._bytes if archive is None else archive.bytes,
            limit_bytes=self._config.max_bytes,
            pending_bytes=0 if archive is None else archive.pending_bytes,
            commit_seconds=0.0 if archive is None else archive.last_commit_seconds,
            free_bytes=-1 if archive is None else archive.free_bytes,
            failing=self._failing,
        )

    async def settle(self) -> None:
        """Wait until nothing waits for the disk."""
        await self._settled.wait()

    async def close(self) -> None:
        """Close the archive, or leave a snapshot.

        Raises:
            WsqueueError: The snapshot cannot be written.
        """
        if self._archive is not None:
            await self._archive.close()
            return
        directory = self._directory()
        if directory is None or not self._topics:
            return
        records = sorted(
            (record for log in self._topics.values() for record in log.records),
            key=operator.attrgetter("time"),
        )
        topics = {name: TopicState(log.cached_from, log.next) for name, log in self._topics.items()}
        await asyncio.to_thread(
            write_snapshot, directory / SNAPSHOT, self.id, records, topics, dict(self._numbers), self._floor
        )

    def topic(self, name: str) -> TopicLog:
        """Return the log of a topic, a new one if there is none."""
        log = self._topics.get(name)
        if log is None:
            log = self._topics[name] = TopicLog(name, self._floor, self._floor)
            self._note_use(log)
        return log

    def reading(self, name: str, more: int) -> TopicLog:
        """Return the log of a topic, which has one reader more or less: with some, it is not forgotten."""
        log = self.topic(name)
        log.readers += more
        self._note_use(log)
        return log

    def append(self, batches: Sequence[Batch]) -> None:
        """Store batches, or find out that they were stored before, or refuse them."""
        outcomes: list[Outcome] = []
        records: list[Record] = []
        for batch in batches:
            key = (batch.topic, batch.publisher)
            before = self._numbers.get(key)
            outcome = self._admit(batch, before)
            if self._archive is not None and (outcome.record is not None or self._pending):
                self._pending.append((outcome, before))
                # What is needed is in the packet, where it takes far less.
                batch.data = []
                if outcome.record is not None:
                    records.append(outcome.record)
                continue
            if outcome.record is not None:
                self._keep(self.topic(batch.topic), outcome.record)
            outcomes.append(outcome)
        if self._archive is not None and records:
            self._settled.clear()
            self._archive.append(records)
        if outcomes:
            if self._archive is None:
                self.trim()
            self._done(outcomes)

    def in_memory(self, log: TopicLog, offset: int) -> bool:
        """Tell whether everything that is kept from an offset on is in memory."""
        return self._archive is None or offset >= log.cached_from

    async def read(self, log: TopicLog, offset: int, max_bytes: int) -> list[Record]:
        """Return records from the one that holds an offset on, also those that only the archive has."""
        if self._archive is None or self.in_memory(log, offset):
            return log.read(offset, max_bytes)
        return await self._archive.read(log.name, offset, max_bytes)

    async def offset_at(self, log: TopicLog, moment: float) -> int:
        """Return the offset of the first record that is not older than a time."""
        if self._archive is None or (log.records and log.records[0].time < moment):
            return log.offset_at(moment)
        return await self._archive.offset_at(log.name, moment)

    def trim(self) -> None:
        """Let go of what is too old or too much."""
        limit = CACHE_BYTES if self._archive is not None else self._config.max_bytes
        oldest = self._clock() - self._config.max_age_seconds
        order = self._order
        while order:
            log = order[0]
            if log.dropped:
                log.dropped -= 1
            elif self._bytes > limit or log.records[0].time < oldest:
                self._drop_first(log)
                log.dropped -= 1
            else:
                break
            order.popleft()
        if len(order) > 2 * self._records + 1000:
            self._order = deque(self._live_order())

    def _admit(self, batch: Batch, before: int | None) -> Outcome:
        """Give a batch its place in the log, unless it is there or one is missing before it.

        Args:
            batch: Which.
            before: The number of the publisher's last batch on the topic, None when it is new here (or
                has been forgotten), and so may begin with any.
        """
        if batch.problem is not None:
            return Outcome(batch, code=batch.problem, reason=PROBLEMS[batch.problem])
        if batch.publisher:
            if before is not None and batch.number <= before:
                return Outcome(batch)
            if before is not None and batch.after > before:
                reason = f"batch {batch.after} of the publisher did not come before it"
                return Outcome(batch, code="after_refused", reason=reason)
        log = self.topic(batch.topic)
        if batch.publisher:
            # With the topic as the log has it, so that it is in memory once.
            key = (log.name, batch.publisher)
            self._numbers[key] = batch.number
            self._numbers.move_to_end(key)
            if len(self._numbers) > MAX_NUMBERS:
                self._numbers.popitem(last=False)
        packet = v2.encode(v2.Deliver(batch.topic, log.assigned, batch.publisher, batch.number, batch.data))
        log.time = max(log.time, self._clock())
        record = Record(
            log.name, log.assigned, len(batch.data), log.time, batch.publisher, batch.number, packet
        )
        log.assigned = record.end
        return Outcome(batch, record)

    def _keep(self, log: TopicLog, record: Record) -> None:
        if not log.records:
            log.records = deque()
            self._note_use(log)
            self._bytes += TOPIC_OVERHEAD_BYTES
        log.records.append(record)
        log.next = record.end
        log.bytes += record.size
        log.messages += record.count
        self._bytes += record.size
        self._records += 1
        self._order.append(log)
        config = self._config
        # The newest stays, however large it is.
        while len(log.records) > 1 and (
            log.bytes > config.max_bytes_per_topic or log.messages > config.max_messages_per_topic
        ):
            self._drop_first(log)

    def _drop_first(self, log: TopicLog) -> None:
        record = log.records.popleft()
        log.bytes -= record.size
        log.messages -= record.count
        log.dropped += 1
        if self._archive is None:
            log.first = record.end
        self._bytes -= record.size
        self._records -= 1
        if not log.records:
            log.records = NO_RECORDS
            self._bytes -= TOPIC_OVERHEAD_BYTES
            self._note_use(log)

    def _live_order(self) -> Iterator[TopicLog]:
        for topic_log in self._order:
            if topic_log.dropped:
                topic_log.dropped -= 1
            else:
                yield topic_log

    def _note_use(self, log: TopicLog) -> None:
        """Note whether a topic may be forgotten: none with messages or readers."""
        if log.records is not NO_RECORDS or log.readers:
            self._empty.pop(log.name, None)
        elif log.name not in self._empty:
            self._empty[log.name] = None
            self._forget_topics()

    def _forget_topics(self) -> None:
        """Forget topics that nothing is in, those that have been so for longest first.

        Other topics begin where these ended, so that no offset is used twice. What the archive has it forgets
        by itself, so that some may stay a while longer.
        """
        for _ in range(FORGET_TRIES):
            if len(self._empty) <= MAX_EMPTY_TOPICS:
                return
            name, _none = self._empty.popitem(last=False)
            log = self._topics[name]
            if log.assigned != log.next or (self._archive is not None and self._archive.knows(name)):
                self._empty[name] = None
                continue
            self._floor = max(self._floor, log.assigned)
            del self._topics[name]

    def _committed(self, records: list[Record]) -> None:
        """Report what is on disk now (the archive calls this)."""
        if self._failing:
            log(logger, logging.INFO, "messages stored again", after=self._failing)
            self._failing = ""
        outcomes: list[Outcome] = []
        left = len(records)
        while self._pending and (left or self._pending[0][0].record is None):
            outcome, _ = self._pending.popleft()
            if outcome.record is not None:
                left -= 1
                self._keep(self.topic(outcome.record.topic), outcome.record)
            outcomes.append(outcome)
        self._report(outcomes)

    def _failed(self, records: list[Record], reason: str) -> None:
        """Take back all that could not be written, and refuse it (the archive calls this)."""
        if reason != self._failing:
            log(logger, logging.ERROR, "messages refused", reason=reason)
        self._failing = reason
        for outcome, before in reversed(self._pending):
            if outcome.record is None:
                continue
            self.topic(outcome.record.topic).assigned = outcome.record.offset
            if outcome.batch.publisher:
                # Not forgotten, for then the next batch would do for the first.
                self._numbers[outcome.batch.topic, outcome.batch.publisher] = before or 0
        outcomes: list[Outcome] = []
        for outcome, _ in self._pending:
            batch = outcome.batch
            stored = bool(batch.publisher) and batch.number <= self._numbers.get(
                (batch.topic, batch.publisher), 0
            )
            refused = outcome.code is not None
            outcomes.append(outcome if stored or refused else Outcome(batch, None, "full", reason))
        self._pending.clear()
        self._report(outcomes)

    def _report(self, outcomes: list[Outcome]) -> None:
        self.trim()
        if not self._pending:
            self._settled.set()
        if outcomes:
            self._done(outcomes)

    def _directory(self) -> Path | None:
        directory = self._config.directory or os.environ.get("STATE_DIRECTORY")
        return Path(directory) if directory else None
