"""A log in a SQLite file that moves into an engine: which of its messages move, and in which records.

The file is only read. Each record in the engine holds several of the file, as if they had waited for the
engine together (`groups`). The last record of a topic has all numbers that the file remembers for it.
States move as they are, because the positions in them stay the same too.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ..errors import WsqueueError
from . import queries, schema
from .files import Damaged, reason_of
from .records import RECORD_OVERHEAD_BYTES, Record
from .shared_topic import MAX_RECORD_BYTES
from .states import Key, State

MAX_SPAN_SECONDS = 1.0
"""Time between the first and the last batch of a record, which has one time for all: a start by time is exact
to that, and a topic has at most as many records as it has seconds."""

WRITER = "migrate-"
"""Begin of the ids of writers that move a log."""

CHECK_RECORDS = 5_000
CHECK_BYTES = 64 * 1024 * 1024
"""Records, and bytes of them, that one step of the check reads."""

_TOPICS = "SELECT id, name, first, next, bytes FROM topic WHERE next > 0 ORDER BY id"
_NUMBERS = "SELECT publisher, number FROM number WHERE topic = ? ORDER BY id"
_FIRST_TIME = 'SELECT time FROM record WHERE topic = ? ORDER BY "offset" LIMIT 1'
_BYTES_FROM = """
SELECT ifnull(sum(length(packet)), 0), count(*) FROM record WHERE topic = ? AND "offset" >= ?
"""


class MovedTopic(msgspec.Struct, gc=False):
    """Say where a topic lies in the file, and which of its messages move.

    Attributes:
        id: Number of the topic in the file.
        name: Its name.
        first: Offset of the first message that moves, `next` when none does.
        next: Offset of the message that will be stored next.
        bytes: Bytes of the messages that move, as the limits count them.
    """

    id: int
    name: str
    first: int
    next: int
    bytes: int

    @property
    def messages(self) -> int:
        """Return the number of messages that move."""
        return self.next - self.first


class MovedLog:
    """Read the log of a consumer that does not run.

    Args:
        file: The file.
        connection: Connection to it.

    Attributes:
        file: See above.
        id: Id of the newest epoch, which the positions have that were read since the last start.
        writer: Writer of all records of this log in an engine, so that they are recognised.

    Raises:
        WsqueueError: The file can't be read, or isn't one of this version.
    """

    def __init__(self, file: Path, connection: sqlite3.Connection) -> None:
        self.file, self._connection = file, connection
        with self._explained():
            if schema.identity(connection) != (schema.APPLICATION_ID, schema.VERSION):
                raise WsqueueError(f"{file}: it is no log of version {schema.VERSION}")
            epochs = queries.epochs(connection)
            self._clean = bool(schema.count(connection, "SELECT clean FROM archive"))
        self.id = epochs[-1].id if epochs else ""
        self.writer = f"{WRITER}{self.id}"

    def check(self) -> Iterator[int]:
        """Check a file that was not closed cleanly; yield how many records have been checked.

        Raises:
            WsqueueError: It contradicts itself.
        """
        with self._explained():
            if self._clean:
                return
            after = 0
            while True:
                last = queries.check_records(self._connection, after, CHECK_RECORDS, CHECK_BYTES)
                if last is None:
                    return
                after = last
                yield last

    def topics(self, since: float) -> list[MovedTopic]:
        """Return all topics that have or had messages.

        Args:
            since: Unix time; older messages don't move.

        Raises:
            WsqueueError: The file can't be read.
        """
        with self._explained():
            topics = [MovedTopic(*row) for row in self._connection.execute(_TOPICS)]
            if topics and not self.id:
                raise Damaged("it has no epoch")
            for topic in topics:
                # Most topics have no old messages, which their first record shows.
                oldest = self._connection.execute(_FIRST_TIME, (topic.id,)).fetchone()
                if oldest is not None and oldest[0] < since:
                    found = queries.offset_at(self._connection, topic.id, since)
                    self._begin_at(topic, topic.next if found is None else found)
        return topics

    def skip(self, topic: MovedTopic, offset: int) -> None:
        """Don't move the messages before an offset, because the engine has them.

        Raises:
            WsqueueError: The file can't be read.
        """
        with self._explained():
            self._begin_at(topic, offset)

    def records(self, topic: MovedTopic, offset: int) -> list[Record]:
        """Return the records from an offset on that make about one record in an engine, none at the end.

        Raises:
            WsqueueError: The file can't be read, or contradicts itself.
        """
        with self._explained():
            records = queries.records_from(
                self._connection,
                topic.id,
                topic.name,
                offset,
                MAX_RECORD_BYTES,
                overhead=RECORD_OVERHEAD_BYTES,
            )
            if records and (records[0].offset < offset or records[-1].end > topic.next):
                raise Damaged(f"the records of the topic {topic.name!r} contradict its offsets")
        return records

    def numbers(self, topic: MovedTopic) -> dict[str, int]:
        """Return the last number of each publisher of a topic, least recently used first.

        Raises:
            WsqueueError: The file can't be read.
        """
        with self._explained():
            return dict(self._connection.execute(_NUMBERS, (topic.id,)))

    def state_keys(self) -> list[Key]:
        """Return the topics and the names of all states.

        Raises:
            WsqueueError: The file can't be read, or contradicts itself.
        """
        with self._explained():
            if not schema.count(self._connection, "SELECT count(*) FROM sqlite_schema WHERE name = 'state'"):
                # No consumer has used the file since there are states.
                return []
            return list(queries.heads(self._connection))

    def state(self, key: Key) -> State:
        """Return a state that the file has.

        Raises:
            WsqueueError: The file can't be read, or contradicts itself.
        """
        with self._explained():
            found = queries.state(self._connection, *key)
            if found is None:
                raise Damaged("an index of it lacks a state")
            return found

    def _begin_at(self, topic: MovedTopic, offset: int) -> None:
        if offset > topic.first:
            ((size, count),) = self._connection.execute(_BYTES_FROM, (topic.id, offset))
            topic.first, topic.bytes = offset, size + count * RECORD_OVERHEAD_BYTES

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of SQLite and of the file into sentences."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise WsqueueError(f"{self.file}: cannot read it: {reason_of(error)}") from None
        except Damaged as damaged:
            raise WsqueueError(f"{self.file}: it is damaged: {damaged}") from None


def groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield records in lists, each of which becomes one record in an engine."""
    group: list[Record] = []
    size = 0
    for record in records:
        if group and (
            size + record.size > MAX_RECORD_BYTES
            or record.offset != group[-1].end
            or record.time - group[0].time > MAX_SPAN_SECONDS
        ):
            yield group
            group, size = [], 0
        group.append(record)
        size += record.size
    if group:
        yield group
