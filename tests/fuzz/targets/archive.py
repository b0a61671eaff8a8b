"""The file of a log: whatever its bytes are, opening it goes on, sets it aside or says why not.

The first byte chooses how the rest changes a good archive: it replaces the file, it changes some bytes of the
file or of its write-ahead log, or it changes rows, so that SQLite finds nothing wrong.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.messages import packed
from wsqueue.config.model import Retention
from wsqueue.errors import WsqueueError
from wsqueue.log.archive import FILE_NAME
from wsqueue.log.sqlite import SqliteStore
from wsqueue.log.store import Outcome

from ...support.messages import append_one

WORDS = (
    b"SQLite format 3\0",
    b"wsqu",
    b"\xff\xff\xff\xff",
    b"\x0d\0",
    b"\x0a\0",
    b"\x05\0",
    b"\x37\x7f\x06\x82",
)

MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of its own is made in it
"""Where files are not written to a disk."""

PLACE = Path(tempfile.mkdtemp(prefix="wsqueue-fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
RUNNER = asyncio.Runner()
PAGE_BYTES = 16 * 1024

NUMBERS = (-1, 0, 1, 2, 2**31, 2**53 - 1, 2**53, 2**62, 2**63 - 2, 2**63 - 1, -(2**63))


def check(data: bytes) -> None:
    """Change a good archive, open it, and use it."""
    if not data:
        return
    directory = PLACE / "log"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    way, changes = data[0] % 4, data[1:]
    if way == 0:
        (directory / FILE_NAME).write_bytes(changes)
    else:
        for name, content in good_files().items():
            if way == 2 or name == FILE_NAME:
                (directory / name).write_bytes(content)
    if way == 1:
        change_bytes(directory / FILE_NAME, changes)
    elif way == 2:
        change_bytes(directory / f"{FILE_NAME}-wal", changes)
    elif way == 3:
        change_rows(directory / FILE_NAME, changes)
    RUNNER.run(use(directory))


async def use(directory: Path) -> None:
    """Open the archive, publish, read, close, and find the same when it is opened again.

    Or find an empty one then, because a check, a read, a commit or the next start has found the damage.
    """
    outcomes: list[Outcome] = []
    damage: list[str] = []
    retention = Retention(mode="sqlite", directory=str(directory), max_age_seconds=3600.0)
    store = SqliteStore(retention, outcomes.extend, lambda: 1000.0)
    store.on_damage = damage.append
    try:
        await store.open()
    except WsqueueError as error:
        check_error(error, directory)
        return
    sent = [append_one(topic, packed("again"), "p", number) for topic in ("news", "new") for number in (1, 7)]
    store.append(sent)
    settled = asyncio.ensure_future(store.settle())
    while not damage and not (settled.done() and not store.log_status().unchecked):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    if damage:
        settled.cancel()
        await set_aside(store, directory)
        return
    assert [outcome.chain for outcome in outcomes] == sent
    stored = [outcome.record for outcome in outcomes if outcome.record is not None]
    for topic in ("news", "sport", "new"):
        log = store.topic(topic)
        earliest = store.earliest(log)
        assert earliest <= log.next
        try:
            records = await store.read(log, earliest, 2**20)
            await store.offset_at(log, 5.0)
            await store.epoch_end(log, 1)
        except WsqueueError as error:
            check_error(error, directory)
            if damage:
                await set_aside(store, directory)
                return
            continue
        for one, following in itertools.pairwise(records):
            assert one.end <= following.offset
    await use_states(store, directory)
    if damage:
        await set_aside(store, directory)
        return
    await store.close()
    other = SqliteStore(retention, outcomes.extend, lambda: 1000.0)
    await other.open()
    same = other.epochs.number(store.epochs.current.id) is not None
    assert same or not other.log_status().topics
    for record in stored if same else ():
        assert other.topic(record.topic).next >= record.end
    await other.close()


async def use_states(store: SqliteStore, directory: Path) -> None:
    """Read the states, and make one."""
    try:
        for one in await store.states():
            await store.state(one.topic, one.name)
        await store.change_state("news", "new", b"new", 0)
    except WsqueueError as error:
        check_error(error, directory)


async def set_aside(store: SqliteStore, directory: Path) -> None:
    """Close a damaged store, and find an empty one in its place."""
    await store.close()
    other = SqliteStore(Retention(mode="sqlite", directory=str(directory)), lambda _outcomes: None)
    await other.open()
    assert other.epochs.number(store.epochs.current.id) is None
    assert not other.log_status().topics
    await other.close()


def check_error(error: WsqueueError, directory: Path) -> None:
    """Check that an error names the place."""
    assert str(directory) in str(error)
    assert len(str(error).splitlines()) == 1, repr(str(error))


def change_bytes(file: Path, changes: bytes) -> None:
    """Change runs of bytes: a page, a place in it (in its header, as a rule), a length, and the bytes."""
    content = bytearray(file.read_bytes())
    position = 0
    while position + 4 <= len(changes) and content:
        page, place, more, length = changes[position : position + 4]
        run = changes[position + 4 : position + 4 + length % 8 + 1]
        start = (page * PAGE_BYTES + place + 256 * (more if place > 127 else 0)) % len(content)
        content[start : start + len(run)] = run
        if more == 255 and place <= 127:
            del content[start:]
        position += 4 + len(run)
    file.write_bytes(content)


def change_rows(file: Path, changes: bytes) -> None:
    """Change values: a table, a column, a row, a kind of value, and the value."""
    connection = sqlite3.connect(file, isolation_level=None)
    query = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
    tables = [
        (name, [column for _, column, *_ in connection.execute(f"PRAGMA table_info({name})")])
        for (name,) in connection.execute(query).fetchall()
    ]
    for position in range(0, len(changes) - 4, 5):
        table, column, row, kind, value = changes[position : position + 5]
        name, columns = tables[table % len(tables)]
        new: object = NUMBERS[value % len(NUMBERS)]
        if kind % 8 == 1:
            new = float(value) if value else float("inf")
        elif kind % 8 == 2:
            new = changes[position : position + value]
        elif kind % 8 == 3:
            new = value
        try:
            place = f"rowid = (SELECT rowid FROM {name} LIMIT 1 OFFSET {row % 8})"  # noqa: S608 - our own names
            if kind % 8 == 4:
                connection.execute(f"DELETE FROM {name} WHERE {place}")  # noqa: S608
            else:
                cast = "CAST(? AS TEXT)" if kind % 8 == 2 and kind & 8 else "?"
                query = f'UPDATE {name} SET "{columns[column % len(columns)]}" = {cast} WHERE {place}'  # noqa: S608
                connection.execute(query, (new,))
        except (sqlite3.Error, OverflowError):
            pass
    connection.close()


@functools.cache
def good_files() -> Mapping[str, bytes]:
    """Return an archive and its write-ahead log, as a crash leaves them."""
    directory = PLACE / "good"

    async def write() -> dict[str, bytes]:
        for batches in (
            [append_one("news", packed(f"old {number}"), "p", number) for number in range(1, 4)],
            [
                append_one("sport", packed("a", "b", headers=[{"k": "v"}, None]), "q", 5),
                append_one("news", packed("x" * 20_000)),
                append_one("n", packed(b"\xff", b"")),
            ],
        ):
            retention = Retention(mode="sqlite", directory=str(directory), max_age_seconds=3600.0)
            store = SqliteStore(retention, lambda _outcomes: None, lambda: 1000.0)
            await store.open()
            store.append(batches)
            await store.settle()
            await store.change_state(batches[0].topic, "name", b"x" * 20_000, 0)
            names = (FILE_NAME, f"{FILE_NAME}-wal")
            files = {name: (directory / name).read_bytes() for name in names}
            await store.close()
        return files

    return RUNNER.run(write())


def seeds() -> Iterator[bytes]:
    """Yield changes of each sort."""
    yield b"\x00"
    yield b"\x00SQLite format 3\0" + bytes(84)
    yield b"\x00no archive"
    for way in (1, 2):
        yield bytes([way])
        yield bytes([way, 0, 16, 0, 1, 0x40, 0])
        yield bytes([way, 0, 100, 0, 0, 0x0D, 2, 1, 0, 3, 0, 0, 0, 9])
        yield bytes([way, 1, 5, 255, 0, 0])
    for table in range(6):
        for column in range(8):
            yield bytes([3, table, column, 0, 0, 9, table, column, 1, 2, 4])
        yield bytes([3, table, 0, 0, 4, 0])
