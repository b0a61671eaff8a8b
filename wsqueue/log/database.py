"""The one SQLite file of a consumer's log: its schema, what a commit writes and trims, what is read.

Records lie in the order in which they came, so that an append fills whole pages and the oldest are deleted
from the front; one narrow index finds them by topic and offset.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from ..config.model import Retention
from ..errors import ConfigError, StorageError, WsqueueError
from .files import DISK_ERRORS, Damaged, lock_file, reason_of, set_aside, sync_directory
from .records import MAX_NUMBERS, Record, State, TopicState

FILE_NAME = "archive.sqlite"
LOCK_NAME = "lock"

APPLICATION_ID = 0x77737175
"""Says in the header of the file whose it is: `wsqu`."""

VERSION = 1
"""Of the schema; a file of another one is never touched."""

PAGE_BYTES = 16 * 1024
"""A batch of some 50 KB is 4 pages: half the work of SQLite's 4 KiB, which would make it 13."""

CACHE_KIB = 16 * 1024
"""Holds all pages of a group, so that none is written twice."""

RECORD_OVERHEAD_BYTES = 64
"""What a record counts beside its packet: its other columns and its entry in the index take less."""

NUMBERS_SLACK = 1000
"""More of them before the oldest go, since to find those takes a walk over all."""

MAX_TOPICS = 100_000
"""Topics that are remembered, with or without records: the writer holds some 500 bytes for each."""

TRIM_RECORDS = 100_000
"""Records that one transaction trims, lest appends wait seconds for it: more than a group can have."""

CHECKPOINT_BYTES = 8 * 1024 * 1024
"""Move this much at once from the write-ahead log: pages that changed several times are moved once."""

COMMIT_PAGES = 4
"""What any commit writes, however little it holds: the last pages of records, numbers and their indices."""

MAX_WAL_BYTES = 64 * 1024 * 1024
"""A longer write-ahead log waits for the reader to pause, and then begins again."""

SHRINK_PAGES = 1024
"""Pages (16 MiB) that go back to the file system in one step, when more than that and than half are free."""

BUSY_SECONDS = 5.0
"""How long to wait for another program that looks into the file, e.g. `sqlite3`."""

_SCHEMA = f"""
CREATE TABLE archive (id TEXT NOT NULL, floor INTEGER NOT NULL) STRICT;
CREATE TABLE topic (id INTEGER PRIMARY KEY, name TEXT NOT NULL, next INTEGER NOT NULL) STRICT;
CREATE TABLE record (
    id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, "offset" INTEGER NOT NULL, count INTEGER NOT NULL,
    time REAL NOT NULL, publisher TEXT NOT NULL, number INTEGER NOT NULL, packet BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX record_position ON record (topic, "offset");
CREATE TABLE number (
    id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, publisher TEXT NOT NULL, number INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX number_owner ON number (topic, publisher);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""

_ENVIRONMENT = frozenset(
    (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
    )
)
"""Errors that say nothing against the file."""

_SETTINGS = frozenset((sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM))
"""Those of them that do not pass by themselves."""


class _Topic(msgspec.Struct):
    """Count what is kept of a topic."""

    id: int
    name: str
    first: int
    next: int
    messages: int = 0
    bytes: int = 0


class _Change:
    """Count what a transaction makes of the topics, which stay as they are until it is committed.

    Args:
        topics: By id, before it.
        bytes: Of all records, before it.
        filled: How many topics have records, before it.
        floor: Where new topics begin, before it.
    """

    def __init__(self, topics: dict[int, _Topic], bytes: int, filled: int, floor: int) -> None:  # noqa: A002
        self.topics: dict[int, _Topic] = {}
        self.ids: dict[str, int] = {}
        self.forgotten: list[_Topic] = []
        self.crowded: set[int] = set()
        self.behind = False
        self.bytes, self.filled, self.floor = bytes, filled, floor
        self._before = topics

    def topic(self, id: int) -> _Topic:  # noqa: A002 - as in _Topic
        """Return a topic as the transaction has it."""
        topic = self.topics.get(id)
        if topic is None:
            topic = self.topics[id] = copy.copy(self._before[id])
        return topic

    def add(self, topic: _Topic, offset: int, count: int, cost: int) -> None:
        """Count a record that comes."""
        if not topic.messages:
            topic.first = offset
            self.filled += 1
        topic.next = offset + count
        topic.messages += count
        topic.bytes += cost
        self.bytes += cost

    def drop(self, topic: _Topic, offset: int, count: int, cost: int) -> None:
        """Count the first record of a topic, which goes."""
        topic.first = offset + count
        topic.messages -= count
        topic.bytes -= cost
        self.bytes -= cost
        if not topic.messages:
            self.filled -= 1


class Database:
    """Hold the file: the writer thread changes it, the reader thread opens it, reads it and closes it.

    Args:
        directory: Of the file.
        limits: What to keep.
    """

    def __init__(self, directory: Path, limits: Retention) -> None:
        self.file = directory / FILE_NAME
        self.behind = True
        """True when the limits may ask for more trimming than was done."""
        self._directory, self._limits = directory, limits
        self._lock: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._connections: list[sqlite3.Connection] = []
        self._topics: dict[int, _Topic] = {}
        self._ids: dict[str, int] = {}
        self._empty: dict[int, None] = {}  # ids in the order in which the topics became empty
        self._crowded: set[int] = set()  # ids of topics that may exceed their limits
        self._bytes = self._filled = self._last_id = self._floor = 0
        self._new_numbers = self._uncheckpointed = 0

    def free_bytes(self) -> int:
        """Return how much room the file system has left, -1 where it does not say."""
        try:
            file_system = os.statvfs(self.file.parent)
        except OSError:
            return -1
        return file_system.f_bavail * file_system.f_frsize

    def open(self) -> State:
        """Open the file or begin one; set a damaged one aside.

        Raises:
            ConfigError: The directory cannot be used, or the file is not ours.
            StorageError: The disk is full or does not work.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = lock_file(self._directory / LOCK_NAME)
            try:
                return self._load()
            except Damaged as damaged:
                self._close_connections()
                set_aside(self.file, str(damaged))
                self._begin()
                return self._load()
        except OSError as error:
            self.close()
            problem = f"cannot keep messages here: {error.strerror or error}"
            if error.errno in DISK_ERRORS:
                raise StorageError(f"{self._directory}: {problem}") from None
            raise ConfigError(problem, file=str(self._directory)) from None
        except BaseException:
            self.close()
            raise

    def _load(self) -> State:
        try:
            self._connect()
            self._identify()
            return self._survey()
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            problem = f"cannot open it: {reason_of(error)}"
            if code in _SETTINGS:
                raise ConfigError(problem, file=str(self.file)) from None
            if code in _ENVIRONMENT:
                raise StorageError(f"{self.file}: {problem}") from None
            raise Damaged(str(error)) from None

    def _connect(self) -> None:
        fresh = not self.file.exists() or not self.file.stat().st_size
        wal = Path(f"{self.file}-wal")
        os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
        if fresh and wal.exists() and wal.stat().st_size:
            raise Damaged("the file is empty, and its write-ahead log is not")
        for _ in range(2):
            connection = sqlite3.connect(
                self.file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connections.append(connection)
            for pragma in (
                "synchronous = FULL",
                "wal_autocheckpoint = 0",
                f"journal_size_limit = {MAX_WAL_BYTES}",
                f"cache_size = -{CACHE_KIB}",
                "secure_delete = OFF",  # some builds of SQLite write zeros over all that is deleted
                "cell_size_check = ON",
                "trusted_schema = OFF",
            ):
                connection.execute(f"PRAGMA {pragma}")

    def _identify(self) -> None:
        """Make sure that the file is ours, and make the tables of a new one."""
        writer = self._writer
        identity = [self._count(f"PRAGMA {name}") for name in ("application_id", "user_version")]
        if identity == [0, 0] and not self._count("SELECT count(*) FROM sqlite_schema"):
            writer.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            writer.execute("PRAGMA auto_vacuum = INCREMENTAL")
            writer.execute("PRAGMA journal_mode = WAL")
            writer.executescript(f"BEGIN; {_SCHEMA}")
            writer.execute("INSERT INTO archive VALUES (?, 0)", (secrets.token_hex(8),))
            writer.execute("COMMIT")
            sync_directory(self._directory)
            sync_directory(self._directory.parent)
        elif identity[0] != APPLICATION_ID:
            raise ConfigError(
                "it belongs to another program; expected a directory of its own", file=str(self.file)
            )
        elif identity[1] != VERSION:
            raise ConfigError(
                f"it has version {identity[1]}, not {VERSION}; run the wsqueue that wrote it or move it away",
                file=str(self.file),
            )

    def _survey(self) -> State:
        """Check the file, and count what it holds."""
        writer = self._writer
        # The whole check, not the quick one, for an index that misses a record would hide it.
        problem = self._text("PRAGMA integrity_check(1)")
        if problem != "ok":
            raise Damaged(problem)
        # A copy that another program made has no write-ahead log.
        if self._text("PRAGMA journal_mode = WAL") != "wal":
            raise Damaged("it has no write-ahead log")
        # The file can be written, as was seen, but its header may say that it must not be.
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("ROLLBACK")
        (identity, self._floor), *others = writer.execute("SELECT id, floor FROM archive").fetchall() or [
            ("", 0)
        ]
        if others or len(identity) != 16:
            raise Damaged("it has no id")
        for id_, name, next_ in writer.execute("SELECT id, name, next FROM topic ORDER BY id"):
            self._topics[id_] = _Topic(id_, name, next_, next_)
            self._ids[name] = self._last_id = id_
        if len(self._ids) != len(self._topics):
            raise Damaged("it has a topic twice")
        change = _Change(self._topics, 0, 0, self._floor)
        rows = writer.execute('SELECT topic, "offset", count, length(packet) FROM record ORDER BY id')
        for id_, offset, count, length in rows:
            topic = self._topics.get(id_)
            if topic is None or count < 1 or (topic.messages and offset < topic.next):
                raise Damaged("its records do not follow each other")
            change.add(topic, offset, count, length + RECORD_OVERHEAD_BYTES)
        self._bytes, self._filled = change.bytes, change.filled
        self._empty = dict.fromkeys(id_ for id_, topic in self._topics.items() if not topic.messages)
        self._crowded = {id_ for id_, topic in self._topics.items() if self._exceeds(topic)}
        newest = "SELECT * FROM number ORDER BY id DESC LIMIT ?"
        numbers = writer.execute(
            f"SELECT name, publisher, number FROM ({newest}) AS newest"  # noqa: S608 - no input in it
            " JOIN topic ON topic.id = newest.topic ORDER BY newest.id",
            (MAX_NUMBERS,),
        )
        return State(
            id=identity,
            topics={topic.name: TopicState(topic.first, topic.next) for topic in self._topics.values()},
            numbers={(name, publisher): number for name, publisher, number in numbers},
            floor=self._floor,
        )

    @property
    def bytes(self) -> int:
        """Return what the records take."""
        return self._bytes

    def knows(self, name: str) -> bool:
        """Tell whether something is remembered of a topic; for any thread."""
        return name in self._ids

    def commit(self, group: Sequence[Record]) -> None:
        """Write a group and trim, all or nothing.

        Raises:
            Exception: Nothing is written; `roll_back` comes next.
        """
        change = _Change(self._topics, self._bytes, self._filled, self._floor)
        ids = [self._expect(change, record) for record in group]
        self._writer.execute("BEGIN IMMEDIATE")
        # What goes makes room for what comes, so that a full file does not grow; what comes may go too.
        self._trim(change)
        if group:
            self._insert(ids, group)
            self._trim(change)
            self._forget(change)
        self._writer.executemany(
            "INSERT OR REPLACE INTO topic VALUES (?, ?, ?)",
            # The next offset of the other topics follows from their records.
            [
                (topic.id, topic.name, topic.next)
                for topic in change.topics.values()
                if not topic.messages or topic.id not in self._topics
            ],
        )
        self._writer.execute("COMMIT")
        self._apply(change)
        self._uncheckpointed += sum(map(cost, group)) + COMMIT_PAGES * PAGE_BYTES

    def roll_back(self) -> None:
        """Leave a failed transaction, and make sure that it does not come back."""
        self.behind = False  # what cannot be trimmed now is tried again later
        with contextlib.suppress(sqlite3.Error, MemoryError):
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            # When only the sync failed, all of the transaction lies in the write-ahead log, where a start
            # after a crash would find it. To empty the log also makes room on a disk that is full.
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def tidy(self, *, idle: bool) -> None:
        """Move what is committed out of the write-ahead log, and give free space back.

        Raises:
            sqlite3.Error: Not now; nothing is lost.
        """
        if idle:
            pages, free = self._count("PRAGMA page_count"), self._count("PRAGMA freelist_count")
            if free > max(pages // 2, SHRINK_PAGES):
                self._writer.execute(f"PRAGMA incremental_vacuum({SHRINK_PAGES})").fetchall()
                self._uncheckpointed += SHRINK_PAGES * PAGE_BYTES
        if self._uncheckpointed > (0 if idle else CHECKPOINT_BYTES):
            _, frames, moved = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if moved < frames and frames * PAGE_BYTES > MAX_WAL_BYTES:
                self._writer.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            self._uncheckpointed = 0

    def read(self, name: str, offset: int, max_bytes: int) -> list[Record]:
        """Return a topic's records from the one that holds an offset on, as `Archive.read` says."""
        records: list[Record] = []
        id_ = self._ids.get(name)
        if id_ is None:
            return records
        with self._reading(
            'SELECT "offset", count, time, publisher, number, packet FROM record'
            ' WHERE topic = ?1 AND "offset" >='
            ' ifnull((SELECT max("offset") FROM record WHERE topic = ?1 AND "offset" <= ?2), ?2)'
            ' ORDER BY "offset"',
            (id_, offset),
        ) as rows:
            size = 0
            for row in rows:
                record = Record(name, *row)
                size += len(record.packet)
                if records and size > max_bytes:
                    break
                if record.offset + record.count > offset:
                    records.append(record)
                else:
                    size = 0
        return records

    def offset_at(self, name: str, moment: float) -> int:
        """Return the offset of the first record that is not older, else the next, by bisection."""
        topic = self._topics.get(self._ids.get(name, 0))
        if topic is None:
            return 0
        low, high = topic.first, topic.next
        found = high
        query = (
            'SELECT "offset", count, time FROM record'
            ' WHERE topic = ? AND "offset" >= ? ORDER BY "offset" LIMIT 1'
        )
        while low < high:
            middle = (low + high) // 2
            with self._reading(query, (topic.id, middle)) as rows:
                row = rows.fetchone()
            if row is not None and row[2] < moment:
                low = row[0] + row[1]
                continue
            high = middle
            if row is not None:
                found = row[0]
        return found

    def close(self) -> None:
        """Move all into the one file, as far as that goes, and let go of it."""
        self._close_connections()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _writer(self) -> sqlite3.Connection:
        return self._connections[0]

    def _text(self, query: str) -> str:
        """Return the one value that a query has."""
        return str(self._writer.execute(query).fetchone()[0])

    def _count(self, query: str) -> int:
        return int(self._text(query))

    @contextlib.contextmanager
    def _reading(self, query: str, arguments: tuple[object, ...]) -> Iterator[sqlite3.Cursor]:
        """Read with the reader's connection, and end the read, lest it hold the write-ahead log."""
        try:
            with contextlib.closing(self._connections[1].execute(query, arguments)) as rows:
                yield rows
        except sqlite3.Error as error:
            raise WsqueueError(f"{self.file}: cannot be read: {reason_of(error)}") from None

    def _close_connections(self) -> None:
        # The last one to close moves what is in the write-ahead log, and removes that.
        for connection in reversed(self._connections):
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        self._connections = []

    def _expect(self, change: _Change, record: Record) -> int:
        """Count a record that is to be written, and return the id of its topic."""
        name, offset = record.topic, record.offset
        id_ = self._ids.get(name) or change.ids.get(name)
        if id_ is None:
            id_ = change.ids[name] = self._last_id = self._last_id + 1
            change.topics[id_] = _Topic(id_, name, 0, 0)
        topic = change.topic(id_)
        if offset < topic.next or record.count < 1:
            raise ValueError(f"offset {offset} of topic {name!r} was there before: the next is {topic.next}")
        change.add(topic, offset, record.count, cost(record))
        return id_

    def _insert(self, ids: Sequence[int], group: Sequence[Record]) -> None:
        self._writer.executemany(
            'INSERT INTO record (topic, "offset", count, time, publisher, number, packet)'
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (id_, one.offset, one.count, one.time, one.publisher, one.number, one.packet)
                for id_, one in zip(ids, group, strict=True)
            ],
        )
        numbers: dict[tuple[int, str], int] = {}
        for id_, record in zip(ids, group, strict=True):
            if record.publisher:
                numbers.pop((id_, record.publisher), None)
                numbers[id_, record.publisher] = record.number
        # A row that replaces another gets a new id: they are in the order of their use.
        self._writer.executemany(
            "INSERT OR REPLACE INTO number (topic, publisher, number) VALUES (?, ?, ?)",
            [(*owner, number) for owner, number in numbers.items()],
        )
        self._new_numbers += len(numbers)
        if self._new_numbers > NUMBERS_SLACK:
            self._writer.execute(
                "DELETE FROM number WHERE id <= (SELECT id FROM number ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (MAX_NUMBERS,),
            )
            self._new_numbers = 0

    def _exceeds(self, topic: _Topic) -> bool:
        limits = self._limits
        return topic.bytes > limits.max_bytes_per_topic or topic.messages > limits.max_messages_per_topic

    def _trim(self, change: _Change) -> None:
        """Delete what exceeds the limits, oldest first, but only so much at once."""
        room = TRIM_RECORDS
        for id_ in self._crowded:
            change.topic(id_)
        for topic in list(change.topics.values()):
            if room and self._exceeds(topic):
                room -= self._trim_topic(change, topic, room)
        room -= self._trim_oldest(change, room)
        change.behind = not room
        change.crowded = {id_ for id_, topic in change.topics.items() if not room and self._exceeds(topic)}

    def _trim_topic(self, change: _Change, topic: _Topic, room: int) -> int:
        """Delete the first records of a topic, but never its newest; return how many."""
        dropped = 0
        query = 'SELECT "offset", count, length(packet) FROM record WHERE topic = ? ORDER BY "offset" LIMIT ?'
        with contextlib.closing(self._writer.execute(query, (topic.id, room))) as rows:
            for offset, count, length in rows:
                if not self._exceeds(topic) or offset + count == topic.next:
                    break
                change.drop(topic, offset, count, length + RECORD_OVERHEAD_BYTES)
                dropped += 1
        if dropped:
            self._writer.execute(
                'DELETE FROM record WHERE topic = ? AND "offset" < ?', (topic.id, topic.first)
            )
        return dropped

    def _trim_oldest(self, change: _Change, room: int) -> int:
        """Delete the oldest records of all topics; return how many."""
        dropped = last = 0
        expired = time.time() - self._limits.max_age_seconds
        query = 'SELECT id, topic, "offset", count, time, length(packet) FROM record ORDER BY id LIMIT ?'
        with contextlib.closing(self._writer.execute(query, (room,))) as rows:
            for id_, topic, offset, count, moment, length in rows:
                crowded = change.bytes > self._limits.max_bytes or change.filled > MAX_TOPICS
                if not crowded and moment >= expired:
                    break
                change.drop(change.topic(topic), offset, count, length + RECORD_OVERHEAD_BYTES)
                dropped, last = dropped + 1, id_
        if dropped:
            self._writer.execute("DELETE FROM record WHERE id <= ?", (last,))
        return dropped

    def _forget(self, change: _Change) -> None:
        """Forget the topics that have been empty for longest, when there are too many.

        The caller may remember them until the next start. Should one come back after that, it begins at
        the floor, above all offsets that it may have had.
        """
        excess = len(self._topics) - MAX_TOPICS
        if excess <= 0:
            return
        idle = (id_ for id_ in self._empty if id_ not in change.topics)
        change.forgotten = [self._topics[id_] for id_ in itertools.islice(idle, excess)]
        gone = [(topic.id,) for topic in change.forgotten]
        self._writer.executemany("DELETE FROM topic WHERE id = ?", gone)
        self._writer.executemany("DELETE FROM number WHERE topic = ?", gone)
        change.floor = max([change.floor, *(topic.next for topic in change.forgotten)])
        self._writer.execute("UPDATE archive SET floor = ?", (change.floor,))

    def _apply(self, change: _Change) -> None:
        """Take over what is committed now."""
        self._bytes, self._filled, self._floor = change.bytes, change.filled, change.floor
        self.behind, self._crowded = change.behind, change.crowded
        self._topics.update(change.topics)
        self._ids.update(change.ids)
        for id_, topic in change.topics.items():
            self._empty.pop(id_, None)
            if not topic.messages:
                self._empty[id_] = None
        for topic in change.forgotten:
            del self._topics[topic.id], self._ids[topic.name], self._empty[topic.id]


def cost(record: Record) -> int:
    """Return how many bytes a record counts."""
    return len(record.packet) + RECORD_OVERHEAD_BYTES
