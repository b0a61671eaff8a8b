"""Queries of a SQLite file of records: for readers, for the limits, and for the start."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator, Iterable, Mapping

from .file_ledger import FileTopic, Kept
from .records import MAX_NUMBERS, RECORD_OVERHEAD_BYTES, Record

_ALL_RECORDS = """
SELECT name, "offset", count, time, publisher, number, packet
FROM record CROSS JOIN topic ON topic.id = record.topic ORDER BY record.id
"""
_RECORDS_FROM = """
SELECT "offset", count, time, publisher, number, packet FROM record
WHERE topic = ?1 AND "offset" >=
    ifnull((SELECT max("offset") FROM record WHERE topic = ?1 AND "offset" <= ?2), ?2)
ORDER BY "offset"
"""
_FIRST_RECORDS = """
SELECT "offset", count, length(packet) FROM record WHERE topic = ? ORDER BY "offset" LIMIT ?
"""
_OLDEST_RECORDS = """
SELECT name, "offset", count, time, length(packet)
FROM record CROSS JOIN topic ON topic.id = record.topic ORDER BY record.id LIMIT ?
"""
_ENDS = """
SELECT (SELECT "offset" FROM record WHERE topic = ?1 ORDER BY "offset" LIMIT 1),
    (SELECT "offset" + count FROM record WHERE topic = ?1 ORDER BY "offset" DESC LIMIT 1)
"""
_TIME_AFTER = """
SELECT "offset", count, time FROM record WHERE topic = ? AND "offset" >= ? ORDER BY "offset" LIMIT 1
"""
_NUMBERS = """
SELECT name, publisher, number FROM (SELECT * FROM number ORDER BY id DESC LIMIT ?) AS newest
JOIN topic ON topic.id = newest.topic ORDER BY newest.id
"""


def all_records(connection: sqlite3.Connection) -> list[Record]:
    """Return the records of all topics, oldest first."""
    return [Record(*row) for row in connection.execute(_ALL_RECORDS)]


def numbers(connection: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """Return the newest numbers, least recently used first."""
    rows = connection.execute(_NUMBERS, (MAX_NUMBERS,))
    return {(name, publisher): number for name, publisher, number in rows}


def records_from(
    connection: sqlite3.Connection, topic: int, name: str, offset: int, max_bytes: int
) -> list[Record]:
    """Return a topic's records from the one that holds an offset on, at least one if there is any.

    Args:
        connection: Connection to the file.
        topic: Id of the topic.
        name: Name of the topic.
        offset: Offset of a message.
        max_bytes: Bytes that all packets may have, except for the first.
    """
    records: list[Record] = []
    size = 0
    # The read ends here, because a read that stays open holds the write-ahead log.
    with contextlib.closing(connection.execute(_RECORDS_FROM, (topic, offset))) as rows:
        for row in rows:
            record = Record(name, *row)
            if record.end <= offset:
                continue
            size += len(record.packet)
            if records and size > max_bytes:
                break
            records.append(record)
    return records


def offset_at(connection: sqlite3.Connection, topic: int, moment: float) -> int | None:
    """Return the offset of a topic's first record that is not older, None without one, by bisection."""
    (low, high) = connection.execute(_ENDS, (topic,)).fetchall()[0]
    if low is None:
        return None
    found: int | None = None
    while low < high:
        middle = (low + high) // 2
        rows = connection.execute(_TIME_AFTER, (topic, middle)).fetchall()
        if rows and rows[0][2] < moment:
            low = rows[0][0] + rows[0][1]
            continue
        high = middle
        if rows:
            found = rows[0][0]
    return found


def first_records(
    connection: sqlite3.Connection, topic: FileTopic, limit: int, coming: Iterable[Record]
) -> Generator[Kept, None, None]:
    """Yield the first records of a topic, at most `limit` from the file, then those that come."""
    left = limit
    with contextlib.closing(connection.execute(_FIRST_RECORDS, (topic.id, limit))) as rows:
        for offset, count, length in rows:
            yield (topic, offset + count, count, length + RECORD_OVERHEAD_BYTES, 0.0)
            left -= 1
    if left:
        for record in coming:
            yield (topic, record.end, record.count, record.size, record.time)


def oldest_records(
    connection: sqlite3.Connection, topics: Mapping[str, FileTopic], limit: int, coming: Iterable[Record]
) -> Generator[Kept, None, None]:
    """Yield the oldest records of all topics, as `first_records` does."""
    left = limit
    with contextlib.closing(connection.execute(_OLDEST_RECORDS, (limit,))) as rows:
        for name, offset, count, moment, length in rows:
            yield (topics[name], offset + count, count, length + RECORD_OVERHEAD_BYTES, moment)
            left -= 1
    if left:
        for record in coming:
            topic = topics[record.topic]
            if record.offset >= topic.first:
                yield (topic, record.end, record.count, record.size, record.time)
