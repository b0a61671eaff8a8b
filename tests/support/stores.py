"""Stores with a clock that the test sets, and an archive that the test plays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from wsqueue.config.model import Retention, TopicRetention
from wsqueue.log.memory import MemoryStore
from wsqueue.log.records import Epoch, Record, StoreState
from wsqueue.log.sqlite import SqliteStore
from wsqueue.log.store import AppendChain, Outcome, Store
from wsqueue.protocol import v2
from wsqueue.report.stats import Histogram

from .messages import append_one, packed


class Clock:
    """Tell the time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits(
    *,
    max_bytes: int = 2**40,
    max_bytes_per_topic: int = 2**40,
    max_messages_per_topic: int = 2**40,
    max_age_seconds: float = 3600,
    mode: str = "memory",
    directory: Path | None = None,
    topics: Sequence[TopicRetention] = (),
) -> Retention:
    """Return limits that are far away, unless they are given."""
    return Retention(
        mode="sqlite" if mode == "sqlite" else "memory",
        directory=None if directory is None else str(directory),
        max_bytes=max_bytes,
        max_bytes_per_topic=max_bytes_per_topic,
        max_messages_per_topic=max_messages_per_topic,
        max_age_seconds=max_age_seconds,
        topics=tuple(topics),
    )


class Logs:
    """A store, in memory unless another is given, its clock, and the outcomes that it has told.

    Attributes:
        outcomes: All outcomes.
        told: How many came at a time.
    """

    def __init__(
        self, *, config: Retention | None = None, clock: Clock | None = None, **limited: float
    ) -> None:
        self.config = config or limits(**limited)  # type: ignore[arg-type]
        self.clock = clock or Clock()
        self.outcomes: list[Outcome] = []
        self.told: list[int] = []
        store = SqliteStore if self.config.mode == "sqlite" else MemoryStore
        self.store: Store = store(self.config, self._done, self.clock)

    def append(self, *batches: AppendChain) -> list[Outcome]:
        """Append batches, and return the outcomes that were told meanwhile."""
        known = len(self.outcomes)
        self.store.append(batches)
        return self.outcomes[known:]

    async def stored(self, *batches: AppendChain) -> list[Outcome]:
        """Append batches, and return the outcomes once they are settled."""
        known = len(self.outcomes)
        self.store.append(batches)
        await self.store.settle()
        return self.outcomes[known:]

    def publish(self, topic: str, *data: str | bytes) -> Record:
        (outcome,) = self.append(append_one(topic, packed(*data)))
        assert outcome.record is not None
        return outcome.record

    def outcome_of(self, which: AppendChain) -> str:
        """Return what became of a batch, "" when nothing has been told."""
        for outcome in self.outcomes:
            if outcome.chain is which:
                stored = f"stored at {outcome.record.offset}" if outcome.record is not None else "a repeat"
                return outcome.code or stored
        return ""

    def in_memory(self, topic: str) -> list[int]:
        """Return the offsets of the messages of a topic that are in memory."""
        records = self.store.topic(topic).read(0, 2**40)
        return [offset for record in records for offset in range(record.offset, record.end)]

    def _done(self, outcomes: list[Outcome]) -> None:
        self.told.append(len(outcomes))
        self.outcomes += outcomes


def batch(
    number: int, after: int = 0, *, topic: str = "news", publisher: str = "p", count: int = 1
) -> AppendChain:
    texts = [f"{number}.{index}" for index in range(count)]
    return append_one(topic, packed(*texts), publisher, number, after)


def delivered(record: Record) -> v2.Deliver:
    packet = v2.decode(record.packet)
    assert isinstance(packet, v2.Deliver)
    return packet


class FakeArchive:
    """An archive that commits and fails when the test says so."""

    opened: FakeArchive
    state = StoreState(epochs=[], topics={}, numbers={})

    def __init__(
        self,
        directory: Path,
        limits: Retention,
        *,
        committed: Callable[[list[Record]], None],
        failed: Callable[[list[Record], str], None],
        damaged: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._committed, self._failed, self.damaged = committed, failed, damaged
        self.queue: deque[Record] = deque()
        self.stored: list[Record] = []
        self.epochs: list[Epoch] = []
        self.limits = limits
        self.pending_bytes = self.bytes = self.trims = self.unchecked = self.wal_bytes = 0
        self.held_seconds = 0.0
        self.free_bytes = 5_000_000
        self.last_commit_seconds = 0.25
        self.commit_seconds = Histogram()
        self.closed = False

    async def open(self) -> StoreState:
        FakeArchive.opened = self
        return self.state

    def append(self, records: Sequence[Record]) -> None:
        self.queue.extend(records)

    def commit(self, count: int | None = None) -> None:
        records = [self.queue.popleft() for _ in range(len(self.queue) if count is None else count)]
        self.stored += records
        self._committed(records)

    def fail(self) -> None:
        records = list(self.queue)
        self.queue.clear()
        self._failed(records, "the disk is full")

    def first(self, topic: str) -> int | None:
        for record in self.stored:
            if record.topic == topic:
                return record.offset
        return self.state.topics[topic].first if topic in self.state.topics else None

    def begin_epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)

    def trim(self) -> None:
        self.trims += 1

    def reconfigure(self, limits: Retention) -> None:
        self.limits = limits

    async def close(self) -> None:
        self.closed = True


class Archived(Logs):
    """A store on disk before a fake archive, which a test puts in the place of `sqlite.Archive`."""

    archive: FakeArchive

    @classmethod
    async def opened(cls, state: StoreState | None = None) -> Archived:
        logs = cls(config=limits(mode="sqlite", directory=Path("/nowhere")))
        FakeArchive.state = state or StoreState(epochs=[], topics={}, numbers={})
        await logs.store.open()
        logs.archive = FakeArchive.opened
        return logs
