"""Queries of a SQLite file of records: for readers, for the limits, and for the start."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator, Iterable, Mapping
from typing import Literal

from .file_ledger import FileTopic, Kept
from .files import Damaged
from .records import MAX_NUMBERS, RECORD_OVERHEAD_BYTES, Epoch, Record
from .states import MAX_VERSION, Key, State, StateHead, StateInfo, size_of

_ALL_RECORDS = """
SELECT name, "offset", count, time, publisher, number, packet, record.epoch
FROM record CROSS JOIN topic ON topic.id = record.topic ORDER BY record.id
"""
# Values that are used twice have names: Python 3.12 warns of ?1, which a later one takes again.
_RECORDS_FROM = """
SELECT "offset", count, time, publisher, number, packet, epoch FROM record
WHERE topic = :topic AND "offset" >=
    ifnull((SELECT max("offset") FROM record WHERE topic = :topic AND "offset" <= :offset), :offset)
ORDER BY "offset"
"""
_FIRST_RECORDS = """
SELECT "offset" + count, length(packet), time FROM record WHERE topic = ? ORDER BY "offset" LIMIT ?
"""
_OLDEST_RECORDS = """
SELECT record.id, name, "offset" + count, time, length(packet)
FROM record CROSS JOIN topic ON topic.id = record.topic WHERE record.id > ? ORDER BY record.id LIMIT ?
"""
_ENDS = """
SELECT (SELECT "offset" FROM record WHERE topic = :topic ORDER BY "offset" LIMIT 1),
    (SELECT "offset" + count FROM record WHERE topic = :topic ORDER BY "offset" DESC LIMIT 1)
"""
_VALUE_AFTER = """
SELECT "offset", count, {column} FROM record WHERE topic = ? AND "offset" >= ? ORDER BY "offset" LIMIT 1
"""
_CHECKED = """
SELECT id, length(packet),
    count < 1 OR typeof(substr(packet, -1)) <> 'blob'
    OR NOT EXISTS (
        SELECT 1 FROM topic WHERE topic.id = record.topic
        AND topic.first <= record."offset" AND record."offset" + record.count <= topic.next
        AND record.epoch <= topic.epoch
    )
    OR NOT EXISTS (
        SELECT 1 FROM record AS found INDEXED BY record_position
        WHERE found.topic = record.topic AND found."offset" = record."offset" AND found.id = record.id
    )
    OR ifnull((
        SELECT before."offset" + before.count > record."offset" OR before.epoch > record.epoch
        FROM record AS before
        WHERE before.topic = record.topic AND before."offset" < record."offset"
        ORDER BY before."offset" DESC LIMIT 1
    ), 0)
FROM record WHERE id > ? ORDER BY id LIMIT ?
"""
"""The last byte of a packet is only found through all of its pages."""

_NEWEST_RECORDS = """
SELECT min(id), count(*), max(time)
FROM (SELECT id, time FROM record WHERE id <= ? ORDER BY id DESC LIMIT ?) AS newest
"""
_DATE_BACK = "UPDATE record SET time = :now WHERE id BETWEEN :first AND :last AND time > :now"
_HEADS = "SELECT topic, name, version, typeof(value) = 'blob', length(value) FROM state"
_NUMBERS = """
SELECT name, publisher, number FROM number JOIN topic ON topic.id = number.topic ORDER BY number.id
"""
# Again and again a number goes of the name with most numbers, from the publisher of it with most topics: the
# one that it used least recently.
_FORGET_NUMBERS = """
DELETE FROM number WHERE id IN (
    SELECT id
    FROM (
        SELECT id, row_number() OVER (PARTITION BY name ORDER BY rank, id DESC) AS rank
        FROM (
            SELECT id, substr(publisher, 1, max(0, instr(publisher, '/') - 1)) AS name,
                row_number() OVER (PARTITION BY publisher ORDER BY id DESC) AS rank
            FROM number
        )
    )
    ORDER BY rank, id DESC LIMIT -1 OFFSET ?
)
"""


def all_records(connection: sqlite3.Connection) -> list[Record]:
    """Return the records of all topics, oldest first."""
    return [Record(*row) for row in connection.execute(_ALL_RECORDS)]


def numbers(connection: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """Return the numbers, least recently used first."""
    return {(name, publisher): number for name, publisher, number in connection.execute(_NUMBERS)}


def forget_numbers(connection: sqlite3.Connection) -> None:
    """Forget numbers beyond `MAX_NUMBERS`, as `protocol.repeats` does."""
    ((count,),) = connection.execute("SELECT count(*) FROM number")
    if count > MAX_NUMBERS:
        connection.execute(_FORGET_NUMBERS, (MAX_NUMBERS,))


def epochs(connection: sqlite3.Connection) -> list[Epoch]:
    """Return the epochs, oldest first."""
    rows = connection.execute("SELECT id, number, restored FROM epoch ORDER BY number")
    return [Epoch(id_, number, bool(restored)) for id_, number, restored in rows]


def heads(connection: sqlite3.Connection) -> dict[Key, StateHead]:
    """Return the states without their values.

    Raises:
        Damaged: One contradicts the schema.
        sqlite3.Error: They cannot be read.
    """
    found: dict[Key, StateHead] = {}
    for topic, name, version, is_blob, length in connection.execute(_HEADS):
        _expect_state(topic, name, version, b"" if is_blob else None)
        found[topic, name] = StateHead(version, size_of(topic, name) + length)
    return found


def state(connection: sqlite3.Connection, topic: str, name: str) -> State | None:
    """Return a state, None if there is none.

    Raises:
        Damaged: It contradicts the schema.
        sqlite3.Error: It cannot be read.
    """
    query = "SELECT version, value FROM state WHERE topic = ? AND name = ?"
    rows = connection.execute(query, (topic, name)).fetchall()
    for version, value in rows:
        _expect_state(topic, name, version, value)
        return State(version, value)
    return None


def states(connection: sqlite3.Connection) -> list[StateInfo]:
    """Return all states.

    Raises:
        Damaged: One contradicts the schema.
        sqlite3.Error: They cannot be read.
    """
    found: list[StateInfo] = []
    for topic, name, version, value in connection.execute("SELECT topic, name, version, value FROM state"):
        _expect_state(topic, name, version, value)
        found.append(StateInfo(topic, name, version, value))
    return found


def _expect_state(topic: object, name: object, version: object, value: object) -> None:
    """Make sure that the values of a state are such as are written.

    Raises:
        Damaged: They are others.
    """
    types = isinstance(topic, str) and isinstance(name, str) and isinstance(value, bytes)
    if not types or not isinstance(version, int) or not 1 <= version <= MAX_VERSION:
        raise Damaged("it has a state that none can be")


def records_from(
    connection: sqlite3.Connection, topic: int, name: str, offset: int, max_bytes: int, *, overhead: int = 0
) -> list[Record]:
    """Return a topic's records from the one that holds an offset on, at least one if there is any.

    Args:
        connection: Connection to the file.
        topic: Id of the topic.
        name: Name of the topic.
        offset: Offset of a message.
        max_bytes: Bytes that all packets may have, except for the first.
        overhead: Bytes that each record counts besides its packet.

    Raises:
        Damaged: A record is empty, or begins before the end of the one before it.
        sqlite3.Error: The file cannot be read.
    """
    records: list[Record] = []
    size = 0
    # The read ends here, because a read that stays open holds the write-ahead log.
    with contextlib.closing(connection.execute(_RECORDS_FROM, {"topic": topic, "offset": offset})) as rows:
        for row in rows:
            record = Record(name, *row)
            if record.count < 1 or (records and record.offset < records[-1].end):
                raise Damaged(f"the records of the topic {name!r} do not follow each other")
            if record.end <= offset:
                continue
            size += len(record.packet) + overhead
            if records and size > max_bytes:
                break
            records.append(record)
    return records


def offset_at(connection: sqlite3.Connection, topic: int, moment: float) -> int | None:
    """Return the offset of a topic's first record that is not older, None without one."""
    return _first_not_below(connection, topic, "time", moment)


def epoch_end(connection: sqlite3.Connection, topic: int, epoch: int) -> int | None:
    """Return the offset of a topic's first record of a later epoch, None without any record before it."""
    end = _first_not_below(connection, topic, "epoch", epoch + 1)
    (first, _) = connection.execute(_ENDS, {"topic": topic}).fetchall()[0]
    return None if end == first else end


def _first_not_below(
    connection: sqlite3.Connection, topic: int, column: Literal["time", "epoch"], bound: float
) -> int | None:
    """Return the offset of a topic's first record with a value not below a bound, by bisection."""
    (low, high) = connection.execute(_ENDS, {"topic": topic}).fetchall()[0]
    if low is None:
        return None
    query = _VALUE_AFTER.format(column=column)
    found: int | None = None
    while low < high:
        middle = (low + high) // 2
        rows = connection.execute(query, (topic, middle)).fetchall()
        if rows and rows[0][2] < bound:
            low = rows[0][0] + rows[0][1]
            continue
        high = middle
        if rows:
            found = rows[0][0]
    return found


def check_records(connection: sqlite3.Connection, after: int, records: int, max_bytes: int) -> int | None:
    """Check records against the index, their topic and the record before; return the id of the last one.

    Args:
        connection: Connection to the file.
        after: Id of the record before.
        records: Maximum number of records.
        max_bytes: Bytes after which no further packet is read.

    Returns:
        None when there are no more.

    Raises:
        Damaged: A record contradicts something.
        sqlite3.Error: The file cannot be read.
    """
    last: int | None = None
    size = 0
    with contextlib.closing(connection.execute(_CHECKED, (after, records))) as rows:
        for last, length, wrong in rows:  # noqa: B007 - the last one counts
            if wrong:
                raise Damaged("its records do not follow each other")
            size += length
            if size > max_bytes:
                break
    return last


def date_back(connection: sqlite3.Connection, last: int, records: int, now: float) -> tuple[int, float]:
    """Give the time `now` to the newest records that have a later one.

    Args:
        connection: Connection to the file.
        last: Id of the last of them.
        records: Maximum number of records.
        now: Unix time.

    Returns:
        The id before them, 0 when there cannot be more, and the latest time found.
    """
    ((first, count, latest),) = connection.execute(_NEWEST_RECORDS, (last, records)).fetchall()
    if not count or latest <= now:
        return 0, now
    changed = connection.execute(_DATE_BACK, {"now": now, "first": first, "last": last}).rowcount
    return first - 1 if changed == count else 0, latest


def first_records(
    connection: sqlite3.Connection, topic: FileTopic, limit: int, coming: Iterable[Record]
) -> Generator[Kept, None, None]:
    """Yield the first records of a topic, at most `limit` from the file, then those that come."""
    left = limit
    with contextlib.closing(connection.execute(_FIRST_RECORDS, (topic.id, limit))) as rows:
        for end, length, moment in rows:
            yield (topic, end, length + RECORD_OVERHEAD_BYTES, moment, 0)
            left -= 1
    if left:
        for record in coming:
            yield (topic, record.end, record.size, record.time, 0)


def oldest_records(
    connection: sqlite3.Connection,
    topics: Mapping[str, FileTopic],
    after: int,
    limit: int,
    coming: Iterable[Record],
) -> Generator[Kept, None, None]:
    """Yield the oldest records of all topics after the one with an id, as `first_records` does."""
    left = limit
    with contextlib.closing(connection.execute(_OLDEST_RECORDS, (after, limit))) as rows:
        for id_, name, end, moment, length in rows:
            yield (topics[name], end, length + RECORD_OVERHEAD_BYTES, moment, id_)
            left -= 1
    if left:
        for record in coming:
            topic = topics[record.topic]
            if record.offset >= topic.first:
                yield (topic, record.end, record.size, record.time, 0)
