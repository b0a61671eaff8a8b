from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import operator
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.config.model import Retention, TopicRetention
from wsqueue.errors import ConfigError, StorageError, WsqueueError
from wsqueue.log import archive, database, database_file, ledger, queries, schema
from wsqueue.log.archive import FILE_NAME, Archive
from wsqueue.log.database import Database, Purge
from wsqueue.log.records import (
    RECORD_OVERHEAD_BYTES,
    TOPIC_OVERHEAD_BYTES,
    Epoch,
    Record,
    StoreState,
    TopicState,
)
from wsqueue.log.schema import APPLICATION_ID
from wsqueue.log.states import StateChange
from wsqueue.protocol.repeats import name_of

from ...support.stores import Clock, limits

pytestmark = pytest.mark.anyio

PACKET = b"x" * 100
COST = len(PACKET) + RECORD_OVERHEAD_BYTES
NOW = time.time()


def record(
    topic: str,
    offset: int,
    count: int = 1,
    *,
    at: float = NOW,
    publisher: str = "",
    number: int = 0,
    packet: bytes = PACKET,
    epoch: int = 0,
) -> Record:
    return Record(topic, offset, count, at, publisher, number, packet, epoch)


class Opened:
    """An open archive and what it told."""

    def __init__(self, directory: Path, kept: Retention) -> None:
        self.archive = Archive(
            directory, kept, committed=self._committed, failed=self._failed, damaged=self._damaged
        )
        self.state = StoreState(epochs=[], topics={}, numbers={})
        self.connections: list[sqlite3.Connection] = []
        self.groups: list[list[Record]] = []
        self.failures: list[tuple[list[Record], str]] = []
        self.failed = asyncio.Event()
        self.damage: list[str] = []
        self.on_failed: Callable[[], None] = lambda: None
        self._told = asyncio.Event()

    @property
    def writer(self) -> sqlite3.Connection:
        """The connection of the writer; that of the reader is the last."""
        return self.connections[-2]

    async def open(self) -> None:
        """Open it, and note its connections."""
        connect = schema.connect

        def noted(file: Path, *, durable: bool) -> sqlite3.Connection:
            self.connections.append(connect(file, durable=durable))
            return self.connections[-1]

        with mock.patch.object(schema, "connect", noted):
            self.state = await self.archive.open()

    @property
    def committed(self) -> list[Record]:
        return [one for group in self.groups for one in group]

    async def settled(self) -> None:
        """Wait until all that was appended is committed or failed, or the archive has failed itself."""
        while self.archive.pending_bytes and not self.damage:
            self._told.clear()
            await self._told.wait()

    async def add(self, *records: Record) -> None:
        self.archive.append(records)
        await self.settled()

    async def add_big(self, offsets: Iterable[int]) -> None:
        """Add large records of topic `a` one by one."""
        for offset in offsets:
            await self.add(big("a", offset))

    async def trimmed(self, **expected: list[int]) -> None:
        """Trim until these offsets of topics are kept; the writer does it in its own time."""
        while {topic: await self.offsets(topic) for topic in expected} != expected:
            self.archive.trim()
            await asyncio.sleep(0.001)

    async def offsets(self, topic: str, offset: int = 0, max_bytes: int = 2**40) -> list[int]:
        return [one.offset for one in await self.archive.read(topic, offset, max_bytes)]

    def _damaged(self, reason: str) -> None:
        self.damage.append(reason)
        self._told.set()

    async def checked(self) -> None:
        """Wait until all is checked, or found to be damaged."""
        while self.archive.unchecked and not self.damage:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def found_damaged(self) -> str:
        """Wait until the archive has found that it is damaged, and return what it says."""
        while not self.damage:
            self._told.clear()
            await self._told.wait()
        return self.damage[0]

    def _committed(self, records: list[Record]) -> None:
        self.groups.append(records)
        self._told.set()

    def _failed(self, records: list[Record], reason: str) -> None:
        self.failures.append((records, reason))
        self.failed.set()
        self._told.set()
        self.on_failed()


@contextlib.asynccontextmanager
async def opened(directory: Path, kept: Retention | None = None) -> AsyncIterator[Opened]:
    one = Opened(directory, kept or limits())
    await one.open()
    try:
        yield one
    finally:
        await one.archive.close()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let the writer wait with its next group, as it does for a slow disk."""
    go, commit = threading.Event(), Database.commit

    def wait(database: Database, group: Sequence[Record], changes: Sequence[StateChange]) -> list[Purge]:
        go.wait()
        return commit(database, group, changes)

    with mock.patch.object(Database, "commit", wait):
        try:
            yield
        finally:
            go.set()


@contextlib.contextmanager
def full(one: Opened) -> Iterator[None]:
    """Let the file not grow any more, as on a full disk."""
    pages = one.writer.execute("PRAGMA page_count").fetchone()[0]
    one.writer.execute(f"PRAGMA max_page_count = {pages}")
    yield
    one.writer.execute("PRAGMA max_page_count = 1000000")


def size(file: Path, side: str = "") -> int:
    return Path(f"{file}{side}").stat().st_size


def names(directory: Path, pattern: str = "*") -> list[str]:
    return sorted(entry.name for entry in directory.glob(pattern))


def big(topic: str, offset: int) -> Record:
    return record(topic, offset, packet=b"x" * 100_000)


@contextlib.contextmanager
def other_program(directory: Path, *statements: str) -> Iterator[sqlite3.Connection]:
    """Let another program execute statements in the file of an archive, and then hold it open."""
    with contextlib.closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as other:
        for statement in statements:
            other.execute(statement).fetchall()
        yield other


def execute(directory: Path, statement: str) -> None:
    with other_program(directory, statement):
        pass


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Opened]:
    async with opened(tmp_path) as one:
        yield one


async def test_records_are_committed_in_order_and_read_as_they_were(one: Opened) -> None:
    records = [
        record("news", 0, 3, publisher="p", number=7),
        record("s\u00fcd\0\U0001f642", 0, packet=b"\0\xff"),
        record("news", 3, publisher="p", number=8),
        record("", 2**53, at=NOW + 0.25),
    ]
    await one.add(*records)
    assert one.committed == records
    assert one.archive.pending_bytes == 0
    assert await one.archive.read("news", 0, 10**6) == [records[0], records[2]]
    assert await one.archive.read("s\u00fcd\0\U0001f642", 0, 10**6) == [records[1]]
    assert await one.archive.read("", 0, 10**6) == [records[3]]
    assert await one.archive.read("unknown", 0, 10**6) == []


async def test_what_queues_meanwhile_is_one_group(one: Opened) -> None:
    with held():
        for offset in range(100):
            one.archive.append([record("news", offset)])
        assert one.archive.pending_bytes == 100 * COST
        assert one.groups == []
    await one.settled()
    assert len(one.groups) <= 2  # the first went alone if the writer was quick
    assert [entry.offset for entry in one.committed] == list(range(100))


async def test_a_group_is_bounded(one: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_GROUP_BYTES", 10 * COST)
    await one.add(*(record("news", offset) for offset in range(100)))
    assert [len(group) for group in one.groups] == [10] * 10


async def test_a_read_begins_at_the_record_that_holds_the_offset(one: Opened) -> None:
    await one.add(*(record("news", offset, 10) for offset in range(0, 50, 10)))
    assert await one.offsets("news", 19) == [10, 20, 30, 40]
    assert await one.offsets("news", 20) == [20, 30, 40]
    assert await one.offsets("news", 20, 2 * len(PACKET)) == [20, 30]
    assert await one.offsets("news", 29, 1) == [20]
    assert await one.offsets("news", 50) == []


async def test_what_was_committed_is_there_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as one:
        await one.add(record("news", 0, 5, publisher="p", number=3), record("sport", 0))
        await one.add(record("news", 5, publisher="q", number=1), record("news", 6, publisher="p", number=4))
        assert one.state.epochs == []
        one.archive.begin_epoch(Epoch("0123456789abcdef", 1))
        assert (one.state.topics, one.state.numbers) == ({}, {})
    assert names(tmp_path) == [FILE_NAME, "lock"]
    async with opened(tmp_path) as one:
        assert one.state == StoreState(
            epochs=[Epoch("0123456789abcdef", 1)],
            topics={"news": TopicState(0, 7), "sport": TopicState(0, 1)},
            numbers={("news", "q"): 1, ("news", "p"): 4},
        )
        assert list(one.state.numbers) == [("news", "q"), ("news", "p")]
        await one.add(record("news", 7))
        assert await one.offsets("news") == [0, 5, 6, 7]


async def test_close_commits_what_is_queued(tmp_path: Path) -> None:
    async with opened(tmp_path) as one:
        one.archive.append([record("news", offset) for offset in range(1000)])
    assert len(one.committed) == 1000
    await one.archive.close()
    async with opened(tmp_path) as one:
        assert one.state.topics == {"news": TopicState(0, 1000)}


async def test_files_and_directory_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "archive"
    async with opened(directory) as one:
        await one.add(record("news", 0))
        assert directory.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o600}


async def test_much_is_trimmed_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as one:
        await one.add(*(record(topic, offset) for offset in range(100) for topic in "ab"))
    monkeypatch.setattr(database, "TRIM_RECORDS", 7)
    async with opened(
        tmp_path, limits(max_messages_per_topic=20, max_bytes=30 * COST + 2 * TOPIC_OVERHEAD_BYTES)
    ) as one:
        await one.trimmed(a=[*range(85, 100)], b=[*range(85, 100)])


async def test_space_is_used_again_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_file, "SHRINK_PAGES", 4)
    monkeypatch.setattr(database_file, "CHECKPOINT_BYTES", 10**6)
    file = tmp_path / FILE_NAME
    async with opened(tmp_path, limits(max_bytes=10**6)) as one:
        await one.add_big(range(100))
        assert size(file) < 1.5 * 10**6
        assert size(file, "-wal") < 4 * 10**6
    async with opened(tmp_path, limits(max_bytes=1)) as one:
        while size(file) >= 0.5 * 10**6:
            one.archive.trim()
            await asyncio.sleep(0.001)


async def test_small_commits_do_not_fill_the_disk(
    one: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_file, "CHECKPOINT_BYTES", 10**6)
    for offset, topic in itertools.product(range(20), range(10)):
        await one.add(record(f"topic {topic}", offset, publisher="p", number=offset + 1))
    assert size(tmp_path / FILE_NAME, "-wal") < 3 * 10**6


class TestAnotherProcessThatReads:
    """It keeps the write-ahead log from being emptied, and nothing waits for it."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database_file, "CHECKPOINT_BYTES", 0)
        monkeypatch.setattr(schema, "MAX_WAL_BYTES", 10**6)
        monkeypatch.setattr(database_file, "HELD_BYTES", 3 * 10**6)
        # A test in which anything waits for the other process does not end.
        monkeypatch.setattr(schema, "BUSY_SECONDS", 3600)

    async def test_it_is_said_and_the_log_begins_again_when_it_has_ended(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", logger="wsqueue")
        async with opened(tmp_path) as one:
            await one.add(big("a", 0))
            assert one.archive.held_seconds == 0
            with other_program(tmp_path, "BEGIN", "SELECT count(*) FROM record"):
                await one.add_big(range(1, 20))
                assert one.archive.held_seconds > 0
                assert one.archive.wal_bytes > 10**6
            assert one.failures == []
            grown = size(tmp_path / FILE_NAME, "-wal")
            await one.add_big(range(20, 40))
            assert size(tmp_path / FILE_NAME, "-wal") <= grown
            assert (one.archive.held_seconds, one.archive.wal_bytes) == (0, 0)
        events = [line.message.partition(" file=")[0] for line in caplog.records]
        assert events == ["archive held", "archive released"]

    async def test_its_end_is_seen_without_a_commit(self, one: Opened, tmp_path: Path) -> None:
        await one.add(big("a", 0))
        with other_program(tmp_path, "BEGIN", "SELECT count(*) FROM record"):
            await one.add_big(range(1, 20))
        while one.archive.held_seconds:
            one.archive.trim()
            await asyncio.sleep(0.001)
        assert one.archive.wal_bytes == 0

    async def test_it_may_read_as_much_as_the_log_may_have(self, tmp_path: Path) -> None:
        """Above that, messages are refused, until it has ended."""
        for most, expected in ((10**6, 3 * 10**6), (5 * 10**6, 5 * 10**6)):
            directory = tmp_path / str(most)
            async with opened(directory, limits(max_bytes=most)) as one:
                await one.add(big("a", 0))
                with other_program(directory, "BEGIN", "SELECT count(*) FROM record"):
                    for offset in range(1, 100):
                        await one.add(big("a", offset))
                        if one.failures:
                            break
                (_, reason) = one.failures[0]
                assert "another process has been reading" in reason
                assert "its write-ahead log has grown to" in reason
                assert expected < size(directory / FILE_NAME, "-wal") < expected + 10**6
                # Once it has ended, all goes on.
                failed = one.failures[0][0][0]
                await one.add(failed)
                assert len(one.failures) == 1
                assert one.committed[-1] is failed

    async def test_a_full_disk_does_not_wait_for_it(self, one: Opened, tmp_path: Path) -> None:
        await one.add(big("a", 0))
        with other_program(tmp_path, "BEGIN", "SELECT count(*) FROM record"), full(one):
            await one.add_big(range(1, 20))
        assert {reason for _, reason in one.failures} == {"the disk is full"}


async def test_what_is_trimmed_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages that it changes are counted too."""
    monkeypatch.setattr(database, "TRIM_RECORDS", 50)
    monkeypatch.setattr(database_file, "CHECKPOINT_BYTES", 500_000)
    async with opened(tmp_path) as one:
        for topic in range(50):
            await one.add(*(record(f"{topic}", offset) for offset in range(100)))
    async with opened(tmp_path, limits(max_messages_per_topic=1)) as one:
        await one.trimmed(**{str(topic): [99] for topic in range(50)})
        assert size(tmp_path / FILE_NAME, "-wal") < 2 * 10**6


async def test_the_newest_numbers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MAX_NUMBERS", 10)
    monkeypatch.setattr(database, "NUMBERS_SLACK", 5)
    async with opened(tmp_path) as one:
        for offset in range(30):
            await one.add(record("a", offset, publisher=f"p{offset}", number=offset))
            await one.add(record("b", offset, publisher="often", number=offset), record("c", offset))
        rows = one.writer.execute("SELECT count(*) FROM number").fetchone()[0]
        assert rows <= 15
    async with opened(tmp_path) as one:
        numbers = one.state.numbers
        assert list(numbers.items())[-9:] == [
            *((("a", f"p{index}"), index) for index in range(22, 30)),
            (("b", "often"), 29),
        ]


async def test_the_numbers_of_a_publisher_that_floods_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_NUMBERS", 10)
    monkeypatch.setattr(database, "NUMBERS_SLACK", 5)
    async with opened(tmp_path) as one:
        await one.add(*(record("a", offset, publisher=f"p{offset}", number=1) for offset in range(4)))
        for number in range(50):
            await one.add(record(f"topic {number}", 0, publisher="flood", number=1))
    async with opened(tmp_path) as one:
        numbers = list(one.state.numbers)
        assert numbers[:4] == [("a", f"p{index}") for index in range(4)]
        assert numbers[4:] == [(f"topic {number}", "flood") for number in range(50 - len(numbers[4:]), 50)]
        assert len(numbers) <= 15


async def test_the_numbers_of_a_name_that_floods_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_NUMBERS", 10)
    monkeypatch.setattr(database, "NUMBERS_SLACK", 5)
    quiet = ["billing/a", "billing/b", "shop/c", "d"]
    async with opened(tmp_path) as one:
        await one.add(*(record("a", at, publisher=who, number=1) for at, who in enumerate(quiet)))
        for number in range(50):
            await one.add(record("a", 4 + number, publisher=f"flood/{number}", number=1))
    async with opened(tmp_path) as one:
        numbers = [publisher for _, publisher in one.state.numbers]
        assert numbers[:4] == quiet
        assert numbers[4:] == [f"flood/{number}" for number in range(54 - len(numbers), 50)]
        assert len(numbers) <= 15


OWNERS = st.tuples(st.integers(1, 5), st.sampled_from(["p", "q", "a/p", "a/q", "a/r", "b/p", "b/q", "/p"]))


@given(st.lists(OWNERS, unique=True, max_size=40), st.integers(0, 40))
def test_the_file_forgets_as_the_rule_says(owners: list[tuple[int, str]], limit: int) -> None:
    left = list(owners)
    while len(left) > limit:
        names = most(name_of(publisher) for _, publisher in left)
        # The first topic of each publisher with most topics of its name.
        first: list[tuple[int, str]] = []
        for name in names:
            publishers = most(publisher for _, publisher in left if name_of(publisher) == name)
            first.append(next(owner for owner in left if owner[1] in publishers))
        left.remove(min(first, key=left.index))
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE number (id INTEGER PRIMARY KEY, topic, publisher)")
        connection.executemany("INSERT INTO number (topic, publisher) VALUES (?, ?)", owners)
        with mock.patch.object(queries, "MAX_NUMBERS", limit):
            queries.forget_numbers(connection)
        assert connection.execute("SELECT topic, publisher FROM number ORDER BY id").fetchall() == left


def most(items: Iterable[str]) -> set[str]:
    counts = Counter(items)
    return {item for item, count in counts.items() if count == max(counts.values())}


async def test_topics_are_forgotten_and_their_offsets_are_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MAX_TOPICS", 10)
    monkeypatch.setattr(ledger, "MAX_EMPTY_TOPICS", 10)
    async with opened(tmp_path) as one:
        await one.add(record("old", 0, 77, publisher="p", number=1))
        for index in range(20):
            await one.add(record(f"t{index}", 0, 5, publisher="p", number=1))
        assert await one.offsets("t9") == []
        assert await one.offsets("t10") == [0]
    async with opened(tmp_path) as one:
        assert one.state.floor == 77
        assert len(one.state.topics) == 20
        assert {topic for topic, _ in one.state.numbers} <= set(one.state.topics)
        assert one.archive.first("old") is None
        await one.add(record("old", 77))
        assert await one.offsets("old") == [77]


async def test_no_offset_is_taken_twice(tmp_path: Path) -> None:
    async with opened(tmp_path, limits(max_bytes=COST + TOPIC_OVERHEAD_BYTES)) as one:
        await one.add(record("a", 0, 5), record("b", 0))
        assert await one.offsets("a") == []
        await one.add(record("a", 4))
        assert [reason for _, reason in one.failures] == [
            "offset 4 of topic 'a' was there before: the next is 5"
        ]
        await one.add(record("a", 7))
        assert await one.offsets("a") == [7], "but some may be skipped"


async def test_a_full_disk_fails_all_that_is_not_committed(tmp_path: Path) -> None:
    async with opened(tmp_path) as one:
        await one.add(big("a", 0))
        later = [record("a", 9), record("b", 0)]
        one.on_failed = lambda: one.archive.append([record("a", 1)])
        with full(one):
            with held():
                records = [big("a", offset) for offset in range(1, 9)]
                one.archive.append(records)
                one.archive.append(later)
            await one.failed.wait()
            assert one.failures[0] == (records + later, "the disk is full")
            assert await one.offsets("a") in ([0], [0, 1]), "reads go on"
            one.on_failed = lambda: None
            await one.settled()
        await one.add(big("a", 2), record("b", 0))
        assert [f"{entry.topic}{entry.offset}" for entry in one.committed] == ["a0", "a1", "a2", "b0"]
        assert len(one.failures) == 1
    async with opened(tmp_path) as one:
        assert one.state.topics == {"a": TopicState(0, 3), "b": TopicState(0, 1)}


async def test_a_full_archive_needs_no_space(tmp_path: Path) -> None:
    async with opened(tmp_path, limits(max_bytes=10**6)) as one:
        await one.add_big(range(20))
        with full(one):
            await one.add_big(range(20, 40))
        assert one.failures == []


async def test_expired_records_make_room_on_a_full_disk(one: Opened) -> None:
    await one.add_big(range(5))
    with full(one):
        while one.failures == []:
            await one.add(big("b", len(one.committed)))
        one.archive.reconfigure(limits(max_age_seconds=-60))
        await one.trimmed(a=[])
        one.archive.reconfigure(limits())
        await one.add(big("c", 0))
    assert await one.offsets("c") == [0]
    assert len(one.failures) == 1


@pytest.mark.parametrize(
    "bad",
    [
        *(record("a", 2**63), record("a", 2, 0), record("a", 1), record("\ud800", 0)),
        record("a", 2, at=float("nan")),
    ],
)
async def test_what_cannot_be_kept_fails_and_harms_nothing(one: Opened, bad: Record) -> None:
    await one.add(record("a", 0))
    good = record("a", 1)
    await one.add(good, bad)
    assert all(map(operator.is_, one.failures[0][0], (good, bad)))
    await one.add(good)
    assert await one.offsets("a") == [0, 1]


async def test_another_program_that_writes_fails_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.01)
    async with opened(tmp_path) as one:
        with other_program(tmp_path, "BEGIN IMMEDIATE"):
            await one.add(record("a", 0))
            assert one.failures == [([record("a", 0)], "database is locked")]
        await one.add(record("a", 0))
        assert await one.offsets("a") == [0]


CHILD = """
import asyncio, itertools, sys
from pathlib import Path
from wsqueue.config.model import Retention
from wsqueue.log.archive import Archive
from wsqueue.log.records import Record

def committed(records):
    print(*(f"{one.topic}:{one.offset}:{one.number}" for one in records), flush=True)

async def main(directory):
    kept = Retention(max_bytes=2**40, max_bytes_per_topic=2**40, max_messages_per_topic=2**40)
    archive = Archive(Path(directory), kept, committed=committed, failed=print, damaged=print)
    await archive.open()
    changing = asyncio.create_task(change(archive))
    for number in itertools.count():
        archive.append([Record("ab"[number % 2], number // 2, 1, 1e12, "p", number, b"x" * 1000)])
        await asyncio.sleep(0.001 if archive.pending_bytes > 100_000 else 0)

async def change(archive):
    version = 0
    while True:
        version = await archive.change_state("a", "name", b"%d" % (version + 1), version)
        print(f"state:{version}", flush=True)

asyncio.run(main(sys.argv[1]))
"""


def start_child(directory: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHILD, str(directory)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_child(directory: Path, lines: int) -> list[str]:
    """Kill it once it has written `lines` lines, and return the records of all that it told."""
    with start_child(directory) as child:
        assert child.stdout is not None
        told = [child.stdout.readline() for _ in range(lines)]
        child.kill()
        told += child.stdout.readlines()
    return [entry for line in told if line.endswith("\n") for entry in line.split()]


async def test_a_killed_process_loses_nothing_that_it_told(tmp_path: Path) -> None:
    for kill_after in (1, 20):
        directory = tmp_path / str(kill_after)
        entries = kill_child(directory, kill_after)
        told = [entry for entry in entries if not entry.startswith("state:")]
        versions = [int(entry.partition(":")[2]) for entry in entries if entry.startswith("state:")]
        assert told
        async with opened(directory) as one:
            state = await one.archive.state("a", "name")
            if versions:
                assert state is not None
                assert state.version in (versions[-1], versions[-1] + 1)
                assert state.value == b"%d" % state.version
            records = {topic: await one.archive.read(topic, 0, 2**40) for topic in "ab"}
            both = records["a"] + records["b"]
            assert {f"{entry.topic}:{entry.offset}:{entry.number}" for entry in both} >= set(told)
            for topic in one.state.topics:
                assert [entry.offset for entry in records[topic]] == list(range(len(records[topic])))
                assert one.state.topics[topic] == TopicState(0, len(records[topic]))
                assert one.state.numbers[topic, "p"] == records[topic][-1].number


async def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with opened(tmp_path) as one:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        try:
            while not one.failures:
                await one.add(big("a", len(one.committed)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "must not grow" in one.failures[0][1]
        await one.add(big("a", len(one.committed)))
    async with opened(tmp_path) as again:
        assert await again.offsets("a") == [record.offset for record in one.committed]


async def test_what_cannot_be_trimmed_now_is_logged_once_and_trimmed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.001)
    async with opened(tmp_path) as one:
        await one.add(record("a", 0))
        with other_program(tmp_path, "BEGIN IMMEDIATE"):
            one.archive.reconfigure(limits(max_age_seconds=-60))
            while not caplog.records:
                one.archive.trim()
                await asyncio.sleep(0.001)
            for _ in range(20):
                one.archive.trim()
                assert await one.offsets("a") == [0]
                await asyncio.sleep(0.001)
        await one.trimmed(a=[])
    assert [line.message.partition(" file=")[0] for line in caplog.records] == ["archive not tidied"]
    assert one.failures == []


async def test_a_read_that_fails_says_so_and_writing_goes_on(one: Opened, tmp_path: Path) -> None:
    await one.add(record("a", 0))
    execute(tmp_path, "UPDATE record SET publisher = CAST(x'ff' AS TEXT)")
    with pytest.raises(WsqueueError, match="cannot be read: Could not decode"):
        await one.archive.read("a", 0, 1)
    await one.add(record("a", 1))
    assert await one.offsets("a", 1) == [1]


async def test_every_commit_is_synced(one: Opened) -> None:
    for connection in one.connections:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert one.writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_copy_of_another_program_is_as_good(tmp_path: Path) -> None:
    async with opened(tmp_path) as one:
        await one.add(record("a", 0))
    execute(tmp_path, "PRAGMA journal_mode = DELETE")
    async with opened(tmp_path) as one:
        assert one.state.topics == {"a": TopicState(0, 1)}
        await one.add(record("a", 1))


async def test_a_file_that_another_program_locks_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.001)
    async with opened(tmp_path) as one:
        await one.add(record("a", 0))
    with other_program(tmp_path, "BEGIN IMMEDIATE"), pytest.raises(StorageError, match="database is locked"):
        await Opened(tmp_path, limits()).archive.open()
    assert names(tmp_path, "*.corrupt-*") == []
    async with opened(tmp_path) as one:
        assert one.state.topics == {"a": TopicState(0, 1)}


async def test_a_disk_without_room_is_no_wrong_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or systemd would not start the node again once there is room."""

    def write(_file: Path) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(database_file, "lock_directory", write)
    with pytest.raises(StorageError, match="cannot keep messages here: No space left on device"):
        await Opened(tmp_path, limits()).archive.open()


@pytest.mark.parametrize("fails", [False, True])
def test_the_writer_ends_when_the_loop_is_gone(tmp_path: Path, fails: bool) -> None:
    async def leave() -> Opened:
        one = Opened(tmp_path, limits())
        await one.open()
        held_back.enter_context(held())
        one.archive.append([record("a", 0, 0 if fails else 1)])
        return one

    with contextlib.ExitStack() as held_back:
        one = asyncio.run(leave())
    for thread in threading.enumerate():
        if thread.name == "archive-writer":
            thread.join()
    assert (one.groups, one.failures) == ([], [])
    for connection in reversed(one.connections):
        connection.close()


async def test_the_room_on_the_disk(small_disk: Path) -> None:
    async with opened(small_disk) as one:
        free = one.archive.free_bytes
        assert 0 < free < 1024 * 1024
        with (small_disk / "filler").open("wb") as stream:
            stream.write(bytes(300_000))
        # It is looked at with the next commit.
        assert one.archive.free_bytes == free
        await one.add(record("a", 0))
        assert free - 600_000 < one.archive.free_bytes <= free - 300_000


async def test_commits_are_counted_by_how_long_they_took(one: Opened) -> None:
    assert sum(one.archive.commit_seconds.status().counts) == 0
    for offset in range(3):
        await one.add(record("a", offset))
    status = one.archive.commit_seconds.status()
    assert sum(status.counts) == 3
    assert 0 < one.archive.last_commit_seconds <= status.sum
    with full(one):
        await one.add(big("a", 3))
    assert len(one.failures) == 1
    # What failed was no commit.
    assert one.archive.commit_seconds.status() == status


async def test_a_directory_is_for_one_process(tmp_path: Path) -> None:
    async with opened(tmp_path) as one:
        await one.add(record("a", 0))
        with start_child(tmp_path) as child:
            assert f"ConfigError: {tmp_path}: another process uses it" in child.communicate()[1]
        second = Opened(tmp_path, limits())
        with pytest.raises(ConfigError, match="another process uses it"):
            await second.archive.open()
        await second.archive.close()
        await one.add(record("a", 1))
    async with opened(tmp_path) as one:
        assert await one.offsets("a") == [0, 1]


async def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for directory in (file, file / "below", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError) as caught:
            await Opened(directory, limits()).archive.open()
        assert caught.value.file == str(directory)
        assert "cannot keep messages here" in caught.value.problem
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ConfigError, match="cannot keep messages here: Is a directory"):
        await Opened(tmp_path, limits()).archive.open()


async def test_files_that_belong_to_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after root has put copies back; other things may lie there, such as a disk's lost+found."""
    async with opened(tmp_path) as one:
        await one.add(record("a", 0))
    (tmp_path / "lost+found").mkdir()
    others = {"lost+found"}
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path).name not in others)
    async with opened(tmp_path):
        pass
    others.add(FILE_NAME)
    with pytest.raises(ConfigError) as caught:
        await Opened(tmp_path, limits()).archive.open()
    assert caught.value.file == str(tmp_path / FILE_NAME)
    assert caught.value.problem == (
        "the node may not read and write it: expected that the user of the node owns all files here,"
        f" as after `chown -R --reference={tmp_path} {tmp_path}/` by root"
    )


@pytest.mark.parametrize(
    ("pragma", "problem"),
    [
        (f"application_id = {APPLICATION_ID + 1}", "it belongs to another program"),
        ("user_version = 5", "it has version 5, not 4"),
    ],
)
async def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, pragma: str, problem: str) -> None:
    async with opened(tmp_path) as one:
        await one.add(record("a", 0))
    execute(tmp_path, f"PRAGMA {pragma}")
    before = (tmp_path / FILE_NAME).read_bytes()
    for _ in range(2):
        with pytest.raises(ConfigError, match=problem) as caught:
            await Opened(tmp_path, limits()).archive.open()
        assert caught.value.file == str(tmp_path / FILE_NAME)
    assert (tmp_path / FILE_NAME).read_bytes() == before


async def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path) as one:
        await one.add(record("a", 0))
    for round_ in range(5):
        (tmp_path / FILE_NAME).write_text("no database, whatever it is\n" * (100 + round_))
        async with opened(tmp_path) as one:
            assert one.state.topics == {}
            await one.add(record("a", 0))
            assert await one.offsets("a") == [0]
    aside = [tmp_path / name for name in names(tmp_path, "*.corrupt-*Z")]
    assert [size(file) // 28 for file in aside] == [102, 103, 104], "the newest are kept"
    events = [line for line in caplog.records if line.message.startswith("archive set aside")]
    assert len(events) == 5
    assert events[-1].levelno == logging.ERROR
    assert str(aside[-1]) in events[-1].message
    assert 'reason="file is not a database"' in events[-1].message


async def test_an_emptied_file_is_set_aside_with_its_log(tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    async with opened(tmp_path / "first") as one:
        await one.add(record("a", 0))
        shutil.copytree(tmp_path / "first", directory)
    (directory / FILE_NAME).write_bytes(b"")
    async with opened(directory) as one:
        assert one.state.topics == {}
    assert [name.partition("Z")[2] for name in names(directory, "*.corrupt-*")] == ["", "-shm", "-wal"]


async def test_records_that_contradict_each_other_are_found_after_an_unclean_stop(tmp_path: Path) -> None:
    async with opened(tmp_path / "first") as one:
        one.archive.begin_epoch(Epoch("0123456789abcdef", 1))
        await one.add(*(record("a", offset, 10, epoch=1) for offset in range(0, 50, 10)))
        await one.add(big("b", 0))
    for index, statement in enumerate(
        (
            'UPDATE record SET "offset" = 11 WHERE "offset" = 20',
            "UPDATE record SET count = 0",
            "UPDATE record SET topic = 7 WHERE id = 3",
            "UPDATE record SET epoch = 2 WHERE id = 3",
            "UPDATE record SET epoch = 0 WHERE id = 3",
            "DELETE FROM topic WHERE name = 'a'",
        )
    ):
        directory = tmp_path / str(index)
        shutil.copytree(tmp_path / "first", directory)
        execute(directory, statement)
        async with opened(directory) as one:
            # After a clean stop, nothing is checked.
            assert one.archive.unchecked == 0
        execute(directory, "UPDATE archive SET clean = FALSE")
        async with opened(directory) as one:
            found = await one.found_damaged()
            assert found.endswith("is damaged, and is set aside: its records do not follow each other")
            # Nothing is stored any more, so that nothing is confirmed and then set aside.
            one.archive.append([record("c", 0)])
            await asyncio.sleep(0.01)
            assert (one.committed, one.failures) == ([], [])
        assert len(names(directory, "*.corrupt-*Z")) == 1, statement
        async with opened(directory) as one:
            assert one.state.topics == {}, statement


def counting(steps: list[int]) -> Callable[..., sqlite3.Connection]:
    """Return a connect whose connections count the steps that SQLite's machine takes."""
    connect = schema.connect

    def counted(file: Path, *, durable: bool) -> sqlite3.Connection:
        connection = connect(file, durable=durable)
        connection.set_progress_handler(lambda: steps.append(0), 1)
        return connection

    return counted


async def test_a_start_does_not_look_at_the_records(tmp_path: Path) -> None:
    """Whether it was stopped cleanly or not; counted in the steps of SQLite's machine."""
    steps: dict[tuple[int, bool], int] = {}
    for records in (10, 5000):
        directory = tmp_path / str(records)
        async with opened(directory) as one:
            await one.add(*(record(f"t{offset % 5}", offset // 5) for offset in range(records)))
            await one.add(record("t0", records))
            shutil.copytree(directory, tmp_path / f"{records} killed")
        for killed in (False, True):
            counted: list[int] = []
            where = tmp_path / f"{records} killed" if killed else directory
            with mock.patch.object(schema, "connect", counting(counted)):
                kept = Database(where / FILE_NAME, limits())
                state = kept.open()
            assert len(state.topics) == 5
            assert kept.ledger.bytes == (records + 1) * COST + 5 * TOPIC_OVERHEAD_BYTES
            assert kept.unchecked == (records + 1 if killed else 0)
            kept.close()
            steps[records, killed] = len(counted)
    assert steps[10, False] > 100
    assert steps[5000, False] == steps[10, False]
    assert steps[5000, True] == steps[10, True]


async def test_an_unclean_stop_is_remembered_until_all_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="wsqueue")
    monkeypatch.setattr(database, "CHECK_RECORDS", 10)
    async with opened(tmp_path / "first") as one:
        await one.add(*(record("a", offset) for offset in range(100)))
        shutil.copytree(tmp_path / "first", tmp_path / "killed")
    async with opened(tmp_path / "killed") as one:
        assert one.archive.unchecked == 100
    assert names(tmp_path / "killed") == [FILE_NAME, "lock"]
    async with opened(tmp_path / "killed") as one:
        # It was closed before the check had ended.
        assert one.archive.unchecked == 100
        await one.add(record("a", 100))
        while "archive checked file=" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    async with opened(tmp_path / "killed") as one:
        assert one.archive.unchecked == 0
        assert len(await one.offsets("a")) == 101


async def test_a_check_goes_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CHECK_RECORDS", 30)
    monkeypatch.setattr(database, "CHECK_BYTES", 300_000)
    async with opened(tmp_path) as one:
        await one.add(*(record("a", offset) for offset in range(100)))
        await one.add_big(range(100, 110))
    execute(tmp_path, "UPDATE archive SET clean = FALSE")
    kept = Database(tmp_path / FILE_NAME, limits())
    kept.open()
    left = []
    while kept.unchecked:
        kept.check()
        left.append(kept.unchecked)
    kept.close()
    assert left == [80, 50, 20, 7, 3, 0]


def test_a_commit_that_fails_drops_nothing_by_age(tmp_path: Path) -> None:
    clock = Clock()
    tables = [
        TopicRetention(match="long", max_age_seconds=1000),
        TopicRetention(match="short", max_age_seconds=8),
    ]
    kept = Database(tmp_path / FILE_NAME, limits(max_age_seconds=10, topics=tables), clock=clock)
    kept.open()
    kept.commit([record(topic, 0, at=clock.now) for topic in ("short", "other", "long")])
    clock.now += 7
    kept.commit([record("short", 1, at=clock.now)])
    clock.now += 4
    with pytest.raises(UnicodeEncodeError):
        kept.commit([record("new", 0, at=clock.now, publisher="\ud800")])
    kept.roll_back()
    assert [one.topic for one in kept.records()] == ["short", "other", "long", "short"]
    kept.commit([])
    assert [(one.topic, one.offset) for one in kept.records()] == [("long", 0), ("short", 1)]
    kept.close()


@pytest.mark.parametrize("version", [1, 2])
async def test_an_archive_of_an_older_version_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: int
) -> None:
    async with opened(tmp_path) as one:
        await one.add(record("a", 0))
    execute(tmp_path, f"PRAGMA user_version = {version}")
    async with opened(tmp_path) as one:
        assert one.state.topics == {}
    assert f"it has version {version}, and this version of wsqueue reads version 4" in caplog.text


async def test_a_topic_table_that_contradicts_itself_is_set_aside_at_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as one:
        one.archive.begin_epoch(Epoch("0123456789abcdef", 1))
        await one.add(*(record("a", offset, 10, epoch=1) for offset in range(0, 50, 10)))
    for index, statement in enumerate(
        (
            "UPDATE topic SET first = 51",
            "UPDATE topic SET first = -1",
            "UPDATE topic SET bytes = 0",
            "UPDATE topic SET epoch = -1",
            "UPDATE topic SET epoch = 2",
            "DELETE FROM epoch",
            "UPDATE epoch SET number = -1",
            "UPDATE epoch SET number = 9007199254740992",
            "INSERT INTO topic VALUES (7, 'a', 0, 0, 0, 0)",
            "UPDATE topic SET name = CAST(x'ff' AS TEXT)",
            "DELETE FROM archive",
            "INSERT INTO archive VALUES (0, 1)",
            "DROP TABLE number",
        )
    ):
        directory = tmp_path / str(index)
        directory.mkdir()
        shutil.copy(tmp_path / FILE_NAME, directory)
        execute(directory, statement)
        async with opened(directory) as one:
            assert one.state.topics == {}, statement
        assert len(names(directory, "*.corrupt-*Z")) == 1, statement


async def test_a_file_that_spoils_the_message_of_its_error_is_set_aside(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    file = tmp_path / FILE_NAME
    content = file.read_bytes()
    # SQLite quotes this in its error, and Python can't decode it.
    file.write_bytes(content.replace(b"CREATE TABLE number", b"CREATE \xe0\xe0\xe0\xe0\xe0 number"))
    assert file.read_bytes() != content
    async with opened(tmp_path) as one:
        assert one.state.topics == {}
    assert len(names(tmp_path, "*.corrupt-*Z")) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE topic SET first = -1",
        "UPDATE topic SET next = 9223372036854775807",
        "INSERT INTO topic VALUES (7, 'b', 9007199254740991, 9007199254740991, 0, 0)",
        "UPDATE archive SET floor = -1",
    ],
)
async def test_a_file_with_offsets_that_no_message_can_have_is_set_aside(
    tmp_path: Path, statement: str
) -> None:
    async with opened(tmp_path) as one:
        await one.add(record("a", 0))
    execute(tmp_path, statement)
    async with opened(tmp_path) as one:
        assert one.state.topics == {}
    assert len(names(tmp_path, "*.corrupt-*Z")) == 1


def damage(file: Path, dice: random.Random) -> range:
    """Spoil some bytes of a file, and return which."""
    data = bytearray(file.read_bytes())
    begin = dice.choice([dice.randrange(len(data)), dice.randrange(min(200, len(data)))])
    length = min(dice.choice([1, 1, 8, 100, 4096, 50_000]), len(data) - begin)
    match dice.randrange(5):
        case 0:
            data[begin] ^= 1 << dice.randrange(8)
            length = 1
        case 1:
            data[begin : begin + length] = bytes(length)
        case 2:
            data[begin : begin + length] = dice.randbytes(length)
        case 3:
            length = len(data) - begin
            del data[begin:]
        case 4:
            length = len(data) - begin
            data[begin:begin] = dice.randbytes(dice.choice([1, 512, schema.PAGE_BYTES]))
    file.write_bytes(data)
    return range(begin, begin + length)


async def test_damage_anywhere_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_file, "CHECKPOINT_BYTES", 200_000)
    whole = tmp_path / "whole"
    async with opened(whole) as one:
        for offset in range(40):
            await one.add(
                *(record(f"t{topic}", offset, publisher=f"p{topic}", number=offset) for topic in range(9)),
                record("large", offset, packet=b"x" * 20_000),
            )
        # As a crash leaves it: part is in the log only.
        crashed = tmp_path / "crashed"
        shutil.copytree(whole, crashed)
    outcomes = set()
    for seed in range(40):
        dice = random.Random(seed)
        directory = tmp_path / "damaged"
        shutil.copytree(dice.choice([whole, crashed]), directory)
        file = dice.choice(sorted(entry for entry in directory.iterdir() if entry.stat().st_size))
        spoilt = damage(file, dice)
        one = Opened(directory, limits(max_bytes=2 * 10**6))
        try:
            state = await one.archive.open()
        except ConfigError:
            # Who made the file is said there: what is left alone then may be another program's.
            assert file.name == FILE_NAME, seed
            assert spoilt.start < 72, seed
            assert spoilt.stop > 60, seed
            outcomes.add("refused")
        else:
            outcomes.add("kept" if state.topics else "set aside")
            checked = one.archive.unchecked > 0
            await one.checked()
            for topic, known in state.topics.items():
                with contextlib.suppress(WsqueueError):
                    offsets = await one.offsets(topic)
                    if checked and not one.damage:
                        assert offsets == sorted(set(offsets)), seed
                        assert all(known.first <= offset < known.next for offset in offsets), seed
            for topic in ("new", "large"):
                known = state.topics.get(topic, TopicState(0, state.floor))
                following = range(known.next, known.next + 20)
                await one.add(*(record(topic, offset, packet=b"y" * 20_000) for offset in following))
            told = len(one.committed) + sum(len(records) for records, _ in one.failures)
            assert told == 40 or one.damage, seed
            await one.archive.close()
            if one.damage:
                outcomes.add("set aside later")
                assert len(names(directory, "*.corrupt-*Z")) == 1, seed
        shutil.rmtree(directory)
    assert outcomes >= {"kept", "set aside", "set aside later"}
