"""The records in a SQLite file: one transaction writes a group and holds the limits.

The writer thread changes the file; the reader thread opens it, reads it and closes it. The ledger belongs to
the writer; other threads only look at single topics in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from ..config.model import Retention
from ..journal import log
from . import queries, schema
from .database_file import DatabaseFile
from .epochs import MAX_EPOCHS
from .file_ledger import FileLedger, FileTopic
from .files import Damaged
from .records import MAX_OFFSET, Epoch, Record, StoreState, TopicState
from .schema import PAGE_BYTES
from .states import State, StateChange, StateInfo

logger = logging.getLogger(__name__)

NUMBERS_SLACK = 10_000
"""Numbers written before those beyond `MAX_NUMBERS` go, because sorting all takes 0.4 s."""

TRIM_RECORDS = 10_000
"""Records that one step trims, so that appends wait some 50 ms for it: more than a group can have."""

DUE_TOPICS = 1_000
"""Topics with an age of their own whose first record one step looks at, in 15 ms."""

CHECK_RECORDS = 5_000
"""Records that one step checks, so that subscribers wait some 20 ms for it."""

CHECK_BYTES = 4 * 1024 * 1024
"""Bytes of packets after which a step of the check ends, for the same reason."""

COMMIT_PAGES = 5
"""Pages that any commit writes, however little it holds: of topics, records, numbers and their indices."""

RESTORED_AT_ONCE = 20_000
"""Records that one transaction restores."""

_INSERT_RECORD = """
INSERT INTO record (topic, "offset", count, time, publisher, number, packet, epoch)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_TOPICS = "SELECT id, name, first, next, bytes, epoch FROM topic ORDER BY id"
_WRITE_TOPIC = """
INSERT OR REPLACE INTO topic (id, name, first, next, bytes, epoch) VALUES (?, ?, ?, ?, ?, ?)
"""
_INSERT_EPOCH = "INSERT OR IGNORE INTO epoch VALUES (?, ?, ?)"
_DELETE_OLD_EPOCHS = "DELETE FROM epoch WHERE number <= ?"
_INSERT_NUMBER = "INSERT OR REPLACE INTO number (topic, publisher, number) VALUES (?, ?, ?)"
_DELETE_RANGE = "DELETE FROM record WHERE id BETWEEN ? AND ?"
_NEWEST = "SELECT ifnull(max(id), 0) FROM record"
_WRITE_STATE = "INSERT OR REPLACE INTO state (topic, name, version, value) VALUES (?, ?, ?, ?)"
_DELETE_STATE = "DELETE FROM state WHERE topic = ? AND name = ?"


class Purge(msgspec.Struct, frozen=True, eq=False):
    """Ask for the end of a topic's first records.

    Attributes:
        topic: Name of the topic.
        before: Offset before which a record must end.
        done: Is done when the purge is committed.
    """

    topic: str
    before: int
    done: asyncio.Future[None]


class Database(DatabaseFile):
    """Keep records in the file, within the limits.

    Args:
        file: The file.
        limits: Limits of the log.
        durable: Whether each commit must survive a power cut, and another thread may read meanwhile.
        clock: Returns the Unix time.

    Attributes:
        file: The file.
        limits: Limits of the log, which hold from the next commit on.
        ledger: Counts of the records.
        behind: True when the limits may ask for more trimming than was done.
        purges: Purges that are not done; any thread may append one.
    """

    def __init__(
        self,
        file: Path,
        limits: Retention,
        *,
        durable: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(file, durable=durable)
        self.limits, self._clock = limits, clock
        self.ledger = FileLedger(limits)
        self.behind = True
        self._crowded: set[str] = set()  # names of topics that may exceed their limits
        self._last_id = self._new_numbers = 0
        self._passed = 0  # id up to which only records of topics with ages of their own are left
        self._clean = True  # the file says so
        self._checked = self._last_unchecked = 0
        self._new_epochs: list[Epoch] = []
        self.purges: list[Purge] = []
        self._purged: list[Purge] = []  # those that this transaction has done

    def _survey(self) -> StoreState:
        """Take over the state of the topics from the file; the records are not looked at."""
        writer = self._writer
        ledger = self.ledger = FileLedger(self.limits)
        rows = writer.execute("SELECT floor, clean FROM archive").fetchall()
        if len(rows) != 1:
            raise Damaged("it has no floor")
        ledger.floor, clean = rows[0]
        epochs = queries.epochs(writer)
        newest_epoch = epochs[-1].number if epochs else 0
        if epochs and not (epochs[0].number > 0 and newest_epoch <= MAX_OFFSET):
            raise Damaged("it has an epoch with a number that none can have")
        for id_, name, first, next_, size, epoch in writer.execute(_TOPICS):
            if name in ledger.topics:
                raise Damaged("it has a topic twice")
            if not 0 <= first <= next_ or (first < next_) != (size > 0):
                raise Damaged("the offsets of a topic contradict its size")
            if not 0 <= epoch <= newest_epoch:
                raise Damaged("a topic has an epoch that the file does not have")
            topic = FileTopic(id_, name, next_, epoch)
            topic.first, topic.bytes = first, size
            ledger.know(topic)
            self._last_id = id_
        ledger.begin()
        self._crowded = {name for name, topic in ledger.topics.items() if ledger.exceeds(topic)}
        state = StoreState(
            epochs=epochs,
            topics={
                name: TopicState(topic.first, topic.next, topic.epoch)
                for name, topic in ledger.topics.items()
            },
            numbers=queries.numbers(writer),
            floor=ledger.floor,
            heads=queries.heads(writer),
        )
        newest_record = schema.count(writer, _NEWEST)
        self._date_back(newest_record)
        self._clean, self._checked = bool(clean), 0
        self._last_unchecked = 0 if clean else newest_record
        return state

    @property
    def unchecked(self) -> int:
        """Return about how many records must still be checked because the file was not closed cleanly."""
        return self._last_unchecked - self._checked

    def check(self) -> None:
        """Check some of the records that were there when the file was opened.

        Raises:
            Damaged: The file contradicts itself.
            WsqueueError: It cannot be read.
        """
        with self._reading() as connection:
            last = queries.check_records(connection, self._checked, CHECK_RECORDS, CHECK_BYTES)
        self._checked = self._last_unchecked if last is None else min(last, self._last_unchecked)

    def close(self) -> None:
        """Mark the file as closed cleanly, unless it has to be checked; move all into it, and unlock it."""
        if not self._clean and not self.unchecked:
            # If that fails, the next start checks the file.
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("UPDATE archive SET clean = TRUE")
        super().close()

    def _date_back(self, newest: int) -> None:
        """Give the time of this start to all records with a later one: they came when a clock was ahead.

        No record is newer than those after it then, so that the first ones are always the oldest.
        """
        writer, now = self._writer, self._clock()
        last, ahead = newest, 0.0
        records = 1  # nearly always, the newest record alone shows that there is nothing to do
        while last > 0:
            writer.execute("BEGIN IMMEDIATE")
            last, latest = queries.date_back(writer, last, records, now)
            writer.execute("COMMIT")
            ahead, records = max(ahead, latest - now), CHECK_RECORDS
            self.tidy(idle=False)
        if ahead:
            seconds = f"{ahead:.3f}"
            log(logger, logging.WARNING, "messages dated back", file=self.file, ahead_seconds=seconds)

    def first(self, name: str) -> int | None:
        """Return the offset of a topic's first record, its next without any, None if it is not remembered.

        Any thread may ask. Records of a commit under way count.
        """
        topic = self.ledger.topics.get(name)
        return None if topic is None else topic.first

    def bytes_of(self, name: str) -> int:
        """Return the bytes of a topic's records; any thread may ask."""
        topic = self.ledger.topics.get(name)
        return 0 if topic is None else topic.bytes

    def begin_epoch(self, epoch: Epoch) -> None:
        """Have the next commit write an epoch; any thread may call this."""
        self._new_epochs.append(epoch)

    def commit(self, group: Sequence[Record], changes: Sequence[StateChange] = ()) -> list[Purge]:
        """Write a group and changes of states, purge and trim, all or nothing.

        Returns:
            The purges that are done now.

        Raises:
            Exception: Nothing is written; `roll_back` must come next.
        """
        ledger = self.ledger
        self._purged = []
        self._use_limits()
        self._check_room(ledger.limits.max_bytes)
        ids = [self._expect(record) for record in group]
        self._writer.execute("BEGIN IMMEDIATE")
        # Before the group is written: a full file does not grow, and no record is written only to go at once.
        trimmed = self._trim(group)
        epochs = list(self._new_epochs)
        self._insert_epochs(epochs)
        self._insert(ids, group)
        self._change_states(changes)
        self._forget()
        self._write_topics()
        if self._clean:
            self._writer.execute("UPDATE archive SET clean = FALSE")
        self._writer.execute("COMMIT")
        self._clean = False
        del self._new_epochs[: len(epochs)]
        self.behind = not trimmed
        self._crowded = {topic.name for topic in self._touched() if self.behind and ledger.exceeds(topic)}
        ledger.begin()
        self._uncheckpointed += sum(record.size for record in group) + COMMIT_PAGES * PAGE_BYTES
        self._uncheckpointed += sum(change.after.size for change in changes if change.after is not None)
        for purge in self._purged:
            # The loop may have given it up, because the transaction before failed.
            with contextlib.suppress(ValueError):
                self.purges.remove(purge)
        return self._purged

    def roll_back(self) -> None:
        """Leave a failed transaction, and make sure that it does not come back."""
        self.ledger.roll_back()
        self._passed = 0  # records before it may be there again
        self.behind = False  # another commit will try again
        with contextlib.suppress(sqlite3.Error, MemoryError):
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            # When only the sync failed, all of the transaction lies in the write-ahead log, where a start
            # after a crash would find it. To empty the log also makes room on a disk that is full.
            self._empty_wal()

    def restore(self, state: StoreState, records: Iterable[Record], states: Iterable[StateInfo] = ()) -> None:
        """Write all of a log into a file that is new.

        Args:
            state: State of the log.
            records: All records, oldest first.
            states: All states.
        """
        for group in _groups(records):
            self.commit(group)
        writer, topics = self._writer, self.ledger.topics
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE archive SET floor = ?", (state.floor,))
        self._insert_epochs(state.epochs)
        for name, topic in state.topics.items():
            if name not in topics:
                self._know(name, topic.next, topic.epoch)
        self._write_topics()
        writer.executemany(_WRITE_STATE, [(one.topic, one.name, one.version, one.value) for one in states])
        writer.execute("DELETE FROM number")
        writer.executemany(
            _INSERT_NUMBER,
            [
                (topics[name].id, publisher, number)
                for (name, publisher), number in state.numbers.items()
                if name in topics
            ],
        )
        writer.execute("COMMIT")
        self.ledger.begin()

    def records(self) -> list[Record]:
        """Return all records, oldest first.

        Raises:
            sqlite3.Error: They cannot be read.
        """
        return queries.all_records(self._writer)

    def states(self) -> list[StateInfo]:
        """Return all states.

        Raises:
            Damaged: One contradicts the schema.
            sqlite3.Error: They cannot be read.
        """
        return queries.states(self._writer)

    def read_state(self, topic: str, name: str) -> State | None:
        """Return a state, None if there is none."""
        with self._reading() as connection:
            return queries.state(connection, topic, name)

    def read_states(self) -> list[StateInfo]:
        """Return all states."""
        with self._reading() as connection:
            return queries.states(connection)

    def read(self, name: str, offset: int, max_bytes: int) -> list[Record]:
        """Return a topic's records from the one that holds an offset on, as `Archive.read` says."""
        topic = self.ledger.topics.get(name)
        if topic is None:
            return []
        with self._reading() as connection:
            return queries.records_from(connection, topic.id, name, offset, max_bytes)

    def offset_at(self, name: str, moment: float) -> int | None:
        """Return the offset of a topic's first record that is not older, None without one."""
        topic = self.ledger.topics.get(name)
        if topic is None:
            return None
        with self._reading() as connection:
            return queries.offset_at(connection, topic.id, moment)

    def epoch_end(self, name: str, epoch: int) -> int | None:
        """Return the offset at which an epoch ends in a topic, None if no record shows it."""
        topic = self.ledger.topics.get(name)
        if topic is None:
            return None
        with self._reading() as connection:
            return queries.epoch_end(connection, topic.id, epoch)

    def _use_limits(self) -> None:
        """Take other limits over: any topic may exceed them."""
        ledger = self.ledger
        if ledger.limits != self.limits:
            ledger.limit(self.limits)
            self._passed = 0
            self._crowded = {name for name, topic in ledger.topics.items() if ledger.exceeds(topic)}

    def _know(self, name: str, next_offset: int, epoch: int) -> FileTopic:
        self._last_id += 1
        topic = FileTopic(self._last_id, name, next_offset, epoch)
        self.ledger.know(topic)
        return topic

    def _expect(self, record: Record) -> int:
        """Count a record that is to be written, and return the id of its topic."""
        name, offset = record.topic, record.offset
        topic = self.ledger.topics.get(name) or self._know(name, 0, record.epoch)
        if offset < topic.next or record.count < 1:
            raise ValueError(f"offset {offset} of topic {name!r} was there before: the next is {topic.next}")
        self.ledger.add(topic, offset, record.count, record.size)
        topic.epoch = record.epoch
        return topic.id

    def _insert(self, ids: Sequence[int], group: Sequence[Record]) -> None:
        topics = self.ledger.topics
        self._writer.executemany(
            _INSERT_RECORD,
            [
                (id_, one.offset, one.count, one.time, one.publisher, one.number, one.packet, one.epoch)
                for id_, one in zip(ids, group, strict=True)
                if one.offset >= topics[one.topic].first
            ],
        )
        numbers: dict[tuple[int, str], int] = {}
        for id_, record in zip(ids, group, strict=True):
            if record.publisher:
                numbers.pop((id_, record.publisher), None)
                numbers[id_, record.publisher] = record.number
        # A row that replaces another gets a new id: they are in the order of their use.
        self._writer.executemany(_INSERT_NUMBER, [(*owner, number) for owner, number in numbers.items()])
        self._new_numbers += len(numbers)
        if self._new_numbers > NUMBERS_SLACK:
            queries.forget_numbers(self._writer)
            self._new_numbers = 0

    def _change_states(self, changes: Sequence[StateChange]) -> None:
        for change in changes:
            if change.after is None:
                self._writer.execute(_DELETE_STATE, (change.topic, change.name))
            else:
                row = (change.topic, change.name, change.after.version, change.value)
                self._writer.execute(_WRITE_STATE, row)

    def _write_topics(self) -> None:
        """Write the topics that this transaction has changed, so that no start must count their records."""
        topics = self.ledger.topics
        changed = [topics[name] for name in self.ledger.before if name in topics]
        self._writer.executemany(
            _WRITE_TOPIC,
            [(topic.id, topic.name, topic.first, topic.next, topic.bytes, topic.epoch) for topic in changed],
        )

    def _insert_epochs(self, epochs: Sequence[Epoch]) -> None:
        if epochs:
            rows = [(epoch.number, epoch.id, epoch.restored) for epoch in epochs]
            self._writer.executemany(_INSERT_EPOCH, rows)
            self._writer.execute(_DELETE_OLD_EPOCHS, (epochs[-1].number - MAX_EPOCHS,))

    def _touched(self) -> list[FileTopic]:
        """Return topics that this transaction has changed, or that may exceed their limits."""
        ledger = self.ledger
        names = {**ledger.before, **dict.fromkeys(self._crowded)}
        return [ledger.topics[name] for name in names if name in ledger.topics]

    def _trim(self, group: Sequence[Record]) -> bool:
        """Drop records above the limits, oldest first, from the file and from the group to be written.

        Returns:
            True if all are dropped, False if there was no time for that in this step.
        """
        ledger, now, room = self.ledger, self._clock(), TRIM_RECORDS
        crowded = [topic for topic in self._touched() if ledger.exceeds(topic)]
        due = ledger.due(now, DUE_TOPICS)
        coming: dict[str, list[Record]] = {topic.name: [] for topic in (*crowded, *due)}
        if coming:
            for record in group:
                if record.topic in coming:
                    coming[record.topic].append(record)
        # More than there is room for can be dropped of the group, which is small.
        for topic in crowded:
            room = max(0, room - self._trim_topic(topic, room, coming[topic.name]))
        for topic in due:
            room = max(0, room - self._trim_aged(topic, room, coming[topic.name], now))
        purges = list(self.purges)
        for purge in purges:
            room = max(0, room - self._purge(purge, room))
        room = max(0, room - self._trim_oldest(room, group, now))
        if self._passed:
            # Ids are given again when the newest records have gone.
            self._passed = min(self._passed, schema.count(self._writer, _NEWEST))
        return room > 0 and not ledger.is_due(now) and len(self._purged) == len(purges)

    def _purge(self, purge: Purge, room: int) -> int:
        """Drop some of the records that a purge is about; return how many."""
        topic = self.ledger.topics.get(purge.topic)
        dropped = 0
        if topic is not None:
            with contextlib.closing(queries.first_records(self._writer, topic, room, ())) as records:
                dropped = self.ledger.purge(topic, records, purge.before)
            if dropped:
                self._delete_first(topic)
        if dropped < room:
            self._purged.append(purge)
        return dropped

    def _trim_topic(self, topic: FileTopic, room: int, coming: Iterable[Record]) -> int:
        with contextlib.closing(queries.first_records(self._writer, topic, room, coming)) as records:
            dropped = self.ledger.trim_topic(topic, records)
        if dropped:
            self._delete_first(topic)
        return dropped

    def _trim_aged(self, topic: FileTopic, room: int, coming: Iterable[Record], now: float) -> int:
        with contextlib.closing(queries.first_records(self._writer, topic, room, coming)) as records:
            dropped = self.ledger.trim_aged(topic, records, now)
        if dropped:
            self._delete_first(topic)
        return dropped

    def _delete_first(self, topic: FileTopic) -> None:
        """Delete the records of a topic that it no longer counts."""
        query = 'DELETE FROM record WHERE topic = ? AND "offset" < ?'
        self._writer.execute(query, (topic.id, topic.first))

    def _trim_oldest(self, room: int, coming: Sequence[Record], now: float) -> int:
        """Drop the oldest records of all topics; return how many were looked at."""
        looked = 0
        if self._passed and self.ledger.overfull:
            looked = self._trim_from(0, room, coming, now, passing=False)
        return looked + self._trim_from(self._passed, max(0, room - looked), coming, now, passing=True)

    def _trim_from(
        self, after: int, room: int, coming: Sequence[Record], now: float, *, passing: bool
    ) -> int:
        """Drop the oldest records of all topics after the one with an id; return how many were looked at."""
        found = queries.oldest_records(self._writer, self.ledger.topics, after, room, coming)
        with contextlib.closing(found) as records:
            trimmed = self.ledger.trim_oldest(records, now, passing=passing)
        self._writer.executemany(_DELETE_RANGE, trimmed.dropped)
        self._passed = max(self._passed, trimmed.passed)
        return trimmed.records

    def _forget(self) -> None:
        """Forget the topics that were empty for longest, when there are too many.

        The event loop may remember them until the next start. A topic that comes back after that begins at
        the floor, above all offsets that it may have had.
        """
        touched = self.ledger.before.keys()
        forgotten = self.ledger.forget(lambda topic: topic.name in touched)
        if forgotten:
            gone = [(topic.id,) for topic in forgotten]
            self._writer.executemany("DELETE FROM topic WHERE id = ?", gone)
            self._writer.executemany("DELETE FROM number WHERE topic = ?", gone)
            self._writer.execute("UPDATE archive SET floor = ?", (self.ledger.floor,))


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield records in lists, so that each write stays small."""
    left = iter(records)
    while group := list(itertools.islice(left, RESTORED_AT_ONCE)):
        yield group
