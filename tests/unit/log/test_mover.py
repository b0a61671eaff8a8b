"""Logs in SQLite files move into a fake engine, whatever its requests come to and wherever the move ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.fake_engine import FakeEngine, FakeLog, Fate
from tests.support.messages import append_one, packed
from tests.support.stores import Clock, Logs, batch, delivered, limits
from wsqueue.config.model import JetStream, Retention
from wsqueue.errors import StorageError, WsqueueError
from wsqueue.log import mover, schema
from wsqueue.log.archive import FILE_NAME
from wsqueue.log.engine import place_of
from wsqueue.log.moved_log import MovedLog, groups
from wsqueue.log.mover import Moved, Mover
from wsqueue.log.records import Record
from wsqueue.log.shared import SharedStore
from wsqueue.log.shared_record import MAX_PUBLISHERS, SharedRecord, decode_record
from wsqueue.log.shared_topic import MAX_RECORD_BYTES
from wsqueue.log.store import AppendChain, Outcome

pytestmark = pytest.mark.anyio

STREAMS = 2


@contextlib.asynccontextmanager
async def running(directory: Path, clock: Clock | None = None, **changes: Any) -> AsyncIterator[Logs]:
    logs = Logs(config=limits(mode="sqlite", directory=directory, **changes), clock=clock)
    await logs.store.open()
    try:
        yield logs
    finally:
        await logs.store.close()


@contextlib.contextmanager
def moved_logs(*directories: Path) -> Any:
    with contextlib.ExitStack() as stack:
        yield [
            MovedLog(file, stack.enter_context(contextlib.closing(schema.open_beside(file))))
            for file in (directory / FILE_NAME for directory in directories)
        ]


async def no_pause(_seconds: float) -> None:
    await asyncio.sleep(0)


async def move(
    log: FakeLog,
    *directories: Path,
    clock: Clock | None = None,
    only_check: bool = False,
    engine: FakeEngine | None = None,
) -> Moved:
    with moved_logs(*directories) as logs:
        moving = Mover(
            logs,
            engine or FakeEngine(log),
            streams=STREAMS,
            max_age=3600,
            clock=clock or Clock(),
            pause=no_pause,
        )
        await moving.survey()
        wanted = await moving.check()
        return wanted if only_check else await moving.move()


class Node:
    """A consumer's store on an engine."""

    def __init__(self, log: FakeLog, clock: Clock | None = None) -> None:
        jetstream = JetStream(servers=["nats://127.0.0.1:1"], streams=STREAMS)
        self.outcomes: list[Outcome] = []
        self.store = SharedStore(
            Retention(mode="jetstream", jetstream=jetstream),
            self.outcomes.extend,
            clock or Clock(),
            engine=FakeEngine(log),
            streams=STREAMS,
        )

    async def publish(self, *chains: AppendChain) -> list[str]:
        before = len(self.outcomes)
        self.store.append(chains)
        await self.store.settle()
        return [
            one.code or (f"stored at {one.record.offset}" if one.record is not None else "a repeat")
            for one in self.outcomes[before:]
        ]

    async def read(self, topic: str, offset: int = 0) -> tuple[str, list[Record]]:
        """Return the id of a topic's log, and all records from an offset on."""
        log = self.store.reading(topic, 1)
        opening = self.store.opening(log)
        assert opening is not None
        await opening
        records: list[Record] = []
        while offset < log.next:
            records += await self.store.read(log, offset, 2**20)
            offset = records[-1].end
        return self.store.log_id(log), records


@contextlib.asynccontextmanager
async def consumer(log: FakeLog, clock: Clock | None = None) -> AsyncIterator[Node]:
    node = Node(log, clock)
    await node.store.open()
    try:
        yield node
    finally:
        await node.store.close()


def records_in(log: FakeLog, topic: str) -> list[SharedRecord]:
    place = place_of(topic, STREAMS)
    return [decode_record(one.data) for one in log.streams[place.stream] if one.token == place.token]


def contents(log: FakeLog) -> list[list[tuple[int, bytes]]]:
    return [[(one.seq, one.data) for one in stream] for stream in log.streams]


def texts(records: Sequence[Record]) -> list[tuple[int, str]]:
    """Return the offset and the text of each message."""
    return [
        (record.offset + index, str(text))
        for record in records
        for index, text in enumerate(delivered(record).messages.unpack())
    ]


async def test_a_log_is_the_same_in_the_engine(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock) as logs:
        for number in range(1, 6):
            await logs.stored(batch(number, number - 1, count=2))
            clock.now += 10
        await logs.stored(append_one("news", packed("classic")), batch(7, topic="other"))
        epoch = logs.store.epochs.current.id
        before = await logs.store.read(logs.store.topic("news"), 0, 2**20)
    log = FakeLog(STREAMS)
    moved = await move(log, tmp_path, clock=clock)
    assert (moved.topics, moved.messages, moved.before, moved.left_out) == (2, 12, 0, 0)
    assert moved.bytes == sum(
        record.bytes for topic in ("news", "other") for record in records_in(log, topic)[-1:]
    )
    assert [record.time for record in records_in(log, "news")] == [1000, 1010, 1020, 1030, 1040, 1050]
    async with consumer(log, clock) as node:
        assert await node.publish(batch(5, 4), batch(7, topic="other")) == ["a repeat", "a repeat"]
        id_, records = await node.read("news", 3)
        assert id_ == epoch
        assert texts(records) == texts(before)[2:]
        assert [record.packet for record in records] == [record.packet for record in before[1:]]
        assert await node.publish(batch(6, 5), batch(8, 6)) == ["stored at 11", "stored at 12"]
        assert await node.publish(batch(10, 9)) == ["after_refused"]


async def test_it_counts_and_writes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as logs:
        await logs.stored(batch(1), batch(2, 1))
    log = FakeLog(STREAMS)
    wanted = await move(log, tmp_path, only_check=True)
    assert log.ends == [0] * STREAMS
    assert await move(log, tmp_path) == wanted


async def test_batches_that_came_together_are_one_record(tmp_path: Path) -> None:
    async with running(tmp_path) as logs:
        for number in range(1, 301):
            await logs.stored(append_one("news", packed("x" * 5000), "p", number, number - 1))
    log = FakeLog(STREAMS)
    await move(log, tmp_path)
    records = records_in(log, "news")
    assert len(records) == -(-300 * 5400 // MAX_RECORD_BYTES)
    assert [record.before for record in records] == [0, *range(1, len(records))]
    assert records[0].table == 0
    assert (records[-1].offset + len(records[-1].batches), records[-1].end) == (300, 300)


def record_at(offset: int, size: int = 100, time: float = 0.0) -> Record:
    return Record("news", offset, 1, time, "p", offset + 1, bytes(size))


def test_a_record_ends_at_a_hole_at_its_size_and_in_time() -> None:
    rows = [record_at(0), record_at(1), record_at(5), record_at(6, time=1.0), record_at(7, time=1.5)]
    rows += [record_at(8, MAX_RECORD_BYTES, 1.5), record_at(9, 1, 1.5)]
    assert [[row.offset for row in group] for group in groups(rows)] == [[0, 1], [5, 6], [7], [8], [9]]
    assert list(groups([])) == []


async def test_an_empty_topic_goes_on_at_its_offset(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock) as logs:
        await logs.stored(batch(1, count=3), batch(1, topic="other"))
        clock.now += 5000
        await logs.stored(batch(2, 1, topic="other"))
    log = FakeLog(STREAMS)
    moved = await move(log, tmp_path, clock=clock)
    assert (moved.topics, moved.messages) == (2, 1)
    (record,) = records_in(log, "news")
    assert (record.offset, record.end, record.batches, record.numbers, record.table) == (
        3,
        3,
        [],
        {"p": 1},
        0,
    )
    assert record.time == clock.now
    async with consumer(log, clock) as node:
        assert await node.publish(batch(1), batch(2, 1)) == ["a repeat", "stored at 3"]


async def test_old_messages_stay(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock, max_age_seconds=10_000) as logs:
        for number in range(1, 4):
            await logs.stored(batch(number, number - 1))
            clock.now += 1500
    log = FakeLog(STREAMS)
    moved = await move(log, tmp_path, clock=clock)
    assert moved.messages == 2
    assert [record.offset for record in records_in(log, "news")] == [1, 2]
    async with consumer(log, clock) as node:
        assert await node.publish(batch(3, 2), batch(4, 3)) == ["a repeat", "stored at 3"]
        assert texts((await node.read("news"))[1])[0] == (1, "2.0")


async def test_numbers_whose_messages_have_gone(tmp_path: Path) -> None:
    async with running(tmp_path, max_messages_per_topic=1) as logs:
        for number in range(MAX_PUBLISHERS + 200):
            await logs.stored(batch(7, publisher=f"p{number}"))
    log = FakeLog(STREAMS)
    await move(log, tmp_path)
    (record,) = records_in(log, "news")
    assert list(record.numbers) == [f"p{number}" for number in range(200, MAX_PUBLISHERS + 200)]
    assert record.table == 0


async def test_a_log_of_which_nothing_is_left(tmp_path: Path) -> None:
    async with running(tmp_path):
        pass
    log = FakeLog(STREAMS)
    assert await move(log, tmp_path) == Moved()
    assert log.ends == [0] * STREAMS


# ---- refused


async def test_messages_that_the_engine_has(tmp_path: Path) -> None:
    async with running(tmp_path) as logs:
        await logs.stored(batch(1), batch(1, topic="other"), batch(1, topic="more"))
    log = FakeLog(STREAMS)
    async with consumer(log) as node:
        await node.publish(batch(1, topic="other"), batch(1))
    before = contents(log)
    with pytest.raises(WsqueueError, match=r"have messages of the topic 'news', and of 1 others, already"):
        await move(log, tmp_path)
    assert contents(log) == before


async def test_a_topic_of_two_logs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        async with running(tmp_path / name) as logs:
            await logs.stored(batch(1), batch(1, topic=name))
    log = FakeLog(STREAMS)
    expected = r"two/archive.sqlite: it has messages of the topic 'news', and so has .*one/archive.sqlite; no"
    with pytest.raises(WsqueueError, match=expected):
        await move(log, tmp_path / "one", tmp_path / "two")
    assert log.ends == [0] * STREAMS


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
async def test_an_empty_topic_that_is_elsewhere_too(tmp_path: Path, order: tuple[str, str]) -> None:
    """A topic that has moved to another consumer leaves its offset behind."""
    clock = Clock()
    async with running(tmp_path / "old", clock) as logs:
        await logs.stored(batch(1, count=7))
    clock.now += 5000
    async with running(tmp_path / "new", clock) as logs:
        await logs.stored(batch(1))
        epoch = logs.store.epochs.current.id
    log = FakeLog(STREAMS)
    moved = await move(log, *(tmp_path / name for name in order), clock=clock)
    assert (moved.topics, moved.left_out) == (1, 1)
    assert [(record.log, record.end) for record in records_in(log, "news")] == [(epoch, 1)]
    alone = await move(log, tmp_path / "old", clock=clock)
    assert alone == Moved(left_out=1)


async def test_an_empty_topic_is_moved_before_the_one_with_messages(tmp_path: Path) -> None:
    clock, log = Clock(), FakeLog(STREAMS)
    async with running(tmp_path / "old", clock) as logs:
        await logs.stored(batch(1, count=7))
    clock.now += 5000
    async with running(tmp_path / "new", clock) as logs:
        await logs.stored(batch(1, publisher="q"))
        epoch = logs.store.epochs.current.id
    assert (await move(log, tmp_path / "old", clock=clock)).topics == 1
    assert [record.end for record in records_in(log, "news")] == [7]
    assert (await move(log, tmp_path / "new", clock=clock)).messages == 1
    assert [(record.log, record.end) for record in records_in(log, "news")] == [(epoch, 1)]
    async with consumer(log, clock) as node:
        assert await node.publish(batch(1, publisher="q"), batch(2, 1)) == ["a repeat", "stored at 1"]


async def test_the_log_went_on_after_a_move(tmp_path: Path) -> None:
    log = FakeLog(STREAMS)
    async with running(tmp_path) as logs:
        await logs.stored(batch(1))
    await move(log, tmp_path)
    async with running(tmp_path) as logs:
        await logs.stored(batch(2, 1))
    with pytest.raises(
        WsqueueError, match="of the topic 'news' already, which are not from this log as it is"
    ):
        await move(log, tmp_path)


async def test_a_consumer_has_appended_since(tmp_path: Path) -> None:
    log = FakeLog(STREAMS)
    async with running(tmp_path) as logs:
        await logs.stored(batch(1))
    await move(log, tmp_path)
    async with consumer(log) as node:
        await node.publish(batch(2, 1))
    with pytest.raises(WsqueueError, match="of the topic 'news' already"):
        await move(log, tmp_path)


async def test_a_consumer_appends_meanwhile(tmp_path: Path) -> None:
    log, engine = FakeLog(STREAMS), None
    async with running(tmp_path) as logs:
        await logs.stored(batch(1))
    async with consumer(log) as node:
        engine = FakeEngine(log)
        append = engine.append

        async def slow(place: Any, data: bytes, after: int) -> int:
            if not log.ends[place.stream]:
                await node.publish(batch(9))
            return await append(place, data, after)

        engine.append = slow  # type: ignore[method-assign]
        with pytest.raises(WsqueueError, match="somebody else appends to the topic 'news'"):
            await move(log, tmp_path, engine=engine)
    assert len(records_in(log, "news")) == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("UPDATE record SET count = 5 WHERE id = 1", "it is damaged: its records do not follow each other"),
        ("DELETE FROM epoch", "it is damaged: it has no epoch"),
        ("PRAGMA user_version = 3", "it is no log of version 4"),
    ],
)
async def test_a_damaged_file(tmp_path: Path, change: str, complaint: str) -> None:
    async with running(tmp_path) as logs:
        await logs.stored(batch(1), batch(2, 1))
        await logs.stored(batch(3, 2))
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
        other.execute("UPDATE archive SET clean = FALSE")
        other.execute(change)
    log = FakeLog(STREAMS)
    with pytest.raises(WsqueueError, match=complaint):
        await move(log, tmp_path)
    assert log.ends == [0] * STREAMS


@pytest.mark.parametrize(
    ("which", "count", "complaint"),
    [
        (1, 5, "the records of the topic 'news' do not follow each other"),
        (2, 0, "the records of the topic 'news' do not follow each other"),
        (2, 5, "the records of the topic 'news' contradict its offsets"),
    ],
)
async def test_damage_that_shows_up_on_the_way(
    tmp_path: Path, which: int, count: int, complaint: str
) -> None:
    async with running(tmp_path) as logs:
        await logs.stored(batch(1), batch(2, 1))
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
        other.execute("UPDATE record SET count = ? WHERE id = ?", (count, which))
    with pytest.raises(WsqueueError, match=complaint):
        await move(FakeLog(STREAMS), tmp_path)


# ---- interrupted


async def long_log(directory: Path) -> Clock:
    """Make a log with topics of several records, of several publishers, and one that is empty."""
    clock = Clock()
    async with running(directory, clock) as logs:
        await logs.stored(batch(1, topic="empty", count=4))
        clock.now += 3000
        for number in range(1, 7):
            for topic in ("news", "other"):
                chain = batch(number, number - 1, topic=topic, publisher=f"p{number % 2}", count=number)
                await logs.stored(chain, batch(number, topic=topic, publisher=f"only {number}"))
            clock.now += 120
    clock.now += 1000
    return clock


async def test_an_interruption_after_each_append(tmp_path: Path) -> None:
    clock = await long_log(tmp_path)
    whole = FakeLog(STREAMS)
    wanted = await move(whole, tmp_path, clock=clock)
    assert wanted.topics == 3
    total = sum(whole.ends)
    assert total == 13
    for end in range(total + 1):
        log = FakeLog(STREAMS)
        engine = FakeEngine(log)
        engine.fate = lambda log=log, end=end: "stored" if sum(log.ends) < end else "full"  # type: ignore[misc]
        with contextlib.suppress(StorageError):
            await move(log, tmp_path, clock=clock, engine=engine)
        assert sum(log.ends) == end
        rest = await move(log, tmp_path, clock=clock)
        assert (rest.topics + rest.before, sum(log.ends)) == (3, total)
        for topic in ("news", "other", "empty"):
            records, expected = records_in(log, topic), records_in(whole, topic)
            assert [
                (one.log, one.offset, one.end, one.bytes, one.time, one.numbers, one.batches)
                for one in records
            ] == [
                (one.log, one.offset, one.end, one.bytes, one.time, one.numbers, one.batches)
                for one in expected
            ]
        again = await move(log, tmp_path, clock=clock)
        assert again == Moved(before=3)


async def test_the_engine_has_no_room(tmp_path: Path) -> None:
    clock, log = await long_log(tmp_path), FakeLog(STREAMS)
    engine = FakeEngine(log)
    engine.fate = lambda: "full"
    with pytest.raises(StorageError, match="no room; the same command goes on where it ended"):
        await move(log, tmp_path, clock=clock, engine=engine)


async def test_the_engine_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = await long_log(tmp_path), FakeLog(STREAMS)
    engine = FakeEngine(log)
    monkeypatch.setattr(mover, "GIVE_UP_SECONDS", 0.05)
    engine.fate = lambda: "lost"
    with pytest.raises(StorageError, match="lost; the same command goes on where it ended"):
        await move(log, tmp_path, clock=clock, engine=engine)
    engine.is_connected = False
    with pytest.raises(StorageError, match="there is no connection; the same command goes on"):
        await move(log, tmp_path, clock=clock, engine=engine)


FATES = st.lists(
    st.tuples(
        st.sampled_from(["stored", "stored", "answer lost", "late", "lost", "full"]), st.integers(0, 2)
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def long_directory(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Clock]:
    directory = tmp_path_factory.mktemp("log")
    return directory, asyncio.run(long_log(directory))


@examples(60)
@given(fates=FATES)
def test_whatever_requests_come_to(long_directory: tuple[Path, Clock], fates: list[tuple[Fate, int]]) -> None:
    """Appends are lost, late or unanswered, servers answer with less than there is; then it goes on."""
    directory, clock = long_directory

    async def test() -> None:
        log, whole = FakeLog(STREAMS), FakeLog(STREAMS)
        engine, left = FakeEngine(log), list(fates)

        def fate() -> Fate:
            log.do_late()
            return left.pop()[0] if left else "stored"

        engine.fate = fate
        engine.hidden = lambda: left[-1][1] if left else 0
        while True:
            try:
                await move(log, directory, clock=clock, engine=engine)
                break
            except WsqueueError as error:
                # With some of the records hidden, they seem to be somebody else's when they show up.
                complaint = str(error)
            assert "the same command goes on" in complaint or "somebody else" in complaint
        log.do_late()
        await move(whole, directory, clock=clock)
        for topic in ("news", "other", "empty"):
            batches = [one for record in records_in(log, topic) for one in record.batches]
            assert batches == [one for record in records_in(whole, topic) for one in record.batches]
            ends = [(record.offset, record.end) for record in records_in(log, topic)]
            assert all(end == offset for (_, end), (offset, _) in itertools.pairwise(ends))
            assert known(log, topic) == known(whole, topic)

    asyncio.run(test())


def known(log: FakeLog, topic: str) -> dict[str, int]:
    """Return the numbers that a consumer knows when it opens a topic."""
    place = place_of(topic, STREAMS)
    stored = {
        one.seq: decode_record(one.data) for one in log.streams[place.stream] if one.token == place.token
    }
    last = stored[max(stored)]
    return (stored[last.table].numbers if last.table else {}) | last.numbers


# ---- states


async def keep_states(directory: Path, **values: bytes) -> None:
    """Let a log have messages of the topic `news`, and states of it."""
    async with running(directory) as logs:
        await logs.stored(batch(1))
        for name, value in values.items():
            await logs.store.change_state("news", name, value, 0)


async def states_in(log: FakeLog) -> dict[str, bytes]:
    async with consumer(log) as node:
        return {f"{one.topic} {one.name}": one.value for one in await node.store.states()}


async def test_states_move_with_their_topics(tmp_path: Path) -> None:
    await keep_states(tmp_path, a=b"one", b=b"two")
    async with running(tmp_path) as logs:
        await logs.store.change_state("without messages", "a", b"three", 0)
    log = FakeLog(STREAMS)
    assert (await move(log, tmp_path, only_check=True)).states == 3
    assert await states_in(log) == {}
    assert (await move(log, tmp_path)).states == 3
    assert await states_in(log) == {"news a": b"one", "news b": b"two", "without messages a": b"three"}


async def test_a_state_that_a_consumer_has_changed_since_stays(tmp_path: Path) -> None:
    await keep_states(tmp_path, a=b"one")
    log = FakeLog(STREAMS)
    await move(log, tmp_path)
    async with consumer(log) as node:
        state = await node.store.state("news", "a")
        assert state is not None
        await node.store.change_state("news", "a", b"changed", state.version)
    await move(log, tmp_path)
    assert await states_in(log) == {"news a": b"changed"}


async def test_states_move_from_the_log_that_has_the_messages(tmp_path: Path) -> None:
    async with running(tmp_path / "before") as logs:
        await logs.store.change_state("news", "a", b"elsewhere", 0)
        await logs.store.change_state("news", "b", b"elsewhere", 0)
    await keep_states(tmp_path / "now", a=b"here")
    for order in (["before", "now"], ["now", "before"]):
        log = FakeLog(STREAMS)
        assert (await move(log, *(tmp_path / name for name in order))).states == 1
        assert await states_in(log) == {"news a": b"here"}


async def test_a_log_without_states(tmp_path: Path) -> None:
    await keep_states(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as file:
        file.execute("DROP TABLE state")
        file.commit()
    moved = await move(FakeLog(STREAMS), tmp_path)
    assert (moved.topics, moved.states) == (1, 0)


@pytest.mark.parametrize("fate", ["lost", "answer lost", "late"])
async def test_the_answer_to_a_state_does_not_come(tmp_path: Path, fate: Fate) -> None:
    await keep_states(tmp_path, a=b"one")
    log = FakeLog(STREAMS)
    engine = FakeEngine(log)
    fates: list[Fate] = ["stored", fate]
    engine.fate = lambda: fates.pop(0) if fates else "stored"
    assert (await move(log, tmp_path, engine=engine)).states == 1
    log.do_late()
    assert await states_in(log) == {"news a": b"one"}


async def test_no_room_for_a_state(tmp_path: Path) -> None:
    await keep_states(tmp_path, a=b"one")
    log = FakeLog(STREAMS)
    engine = FakeEngine(log)
    fates: list[Fate] = ["stored", "full"]
    engine.fate = lambda: fates.pop(0)
    with pytest.raises(StorageError, match="no room; the same command goes on where it ended"):
        await move(log, tmp_path, engine=engine)
    moved = await move(log, tmp_path)
    assert (moved.before, moved.states) == (1, 1)
    assert await states_in(log) == {"news a": b"one"}
