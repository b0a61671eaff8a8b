"""The states of a store: the same in memory, in a file and in an engine, whatever fails."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_engine import FakeEngine, FakeLog, Fate
from tests.support.stores import batch, limits
from wsqueue.config.model import JetStream, Retention
from wsqueue.errors import StorageError, WsqueueError
from wsqueue.log import shared_states, states
from wsqueue.log.archive import FILE_NAME
from wsqueue.log.database import Database
from wsqueue.log.engine import STATES, Place, Stored, state_place
from wsqueue.log.memory import MemoryStore
from wsqueue.log.shared import SharedStore
from wsqueue.log.snapshot import SNAPSHOT_NAME
from wsqueue.log.sqlite import SqliteStore
from wsqueue.log.states import State, StateChange, StateConflict, StateInfo, StatesFull
from wsqueue.log.store import Outcome, Store

pytestmark = pytest.mark.anyio

STREAMS = 2

Mode = Literal["memory", "sqlite", "shared"]
MODES: list[Mode] = ["memory", "sqlite", "shared"]


class Kept:
    """A store that can be closed and opened again, and the outcomes that it has told."""

    store: Store

    def __init__(self, mode: Mode, directory: Path, **limited: float) -> None:
        self.mode, self.directory, self.limited = mode, directory, limited
        self.log = FakeLog(STREAMS)
        self.outcomes: list[Outcome] = []
        self.damage: list[str] = []

    async def open(self) -> Store:
        """Open a store on all that is kept."""
        config = limits(mode=self.mode, directory=self.directory, **self.limited)  # type: ignore[arg-type]
        if self.mode == "shared":
            self.engine = FakeEngine(self.log)
            jetstream = JetStream(servers=["nats://127.0.0.1:1"], streams=STREAMS)
            shared = Retention(mode="jetstream", jetstream=jetstream)
            self.store = SharedStore(shared, self.outcomes.extend, engine=self.engine, streams=STREAMS)
        else:
            store = SqliteStore if self.mode == "sqlite" else MemoryStore
            self.store = store(config, self.outcomes.extend)
        self.store.on_damage = self.damage.append
        await self.store.open()
        return self.store

    async def reopen(self) -> Store:
        """Close the store cleanly, and open another one."""
        await self.store.close()
        return await self.open()


@pytest.fixture(params=MODES)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    return Kept(request.param, tmp_path)


async def test_a_state_is_changed_by_who_knows_its_version(kept: Kept) -> None:
    store = await kept.open()
    assert await store.state("news", "group/a") is None
    first = await store.change_state("news", "group/a", b"one", 0)
    assert first >= 1
    assert await store.state("news", "group/a") == State(first, b"one")
    for wrong in (0, first + 1):
        with pytest.raises(StateConflict, match="'group/a' of the topic 'news' has another version"):
            await store.change_state("news", "group/a", b"two", wrong)
    second = await store.change_state("news", "group/a", b"", first)
    assert second > first
    assert await store.state("news", "group/a") == State(second, b"")
    with pytest.raises(StateConflict):
        await store.change_state("news", "group/a", b"three", first)
    await store.close()


async def test_names_and_topics_are_told_apart(kept: Kept) -> None:
    store = await kept.open()
    names = [("a", "b"), ("a", "c"), ("b", "b"), ("a.b", ""), ("", "a.b"), ("Ä/*>", "ö \n")]
    versions = [await store.change_state(topic, name, f"{topic}|{name}".encode(), 0) for topic, name in names]
    assert len(set(versions)) == len(names)
    expected = {
        (topic, name): StateInfo(topic, name, version, f"{topic}|{name}".encode())
        for (topic, name), version in zip(names, versions, strict=True)
    }
    assert {(one.topic, one.name): one for one in await store.states()} == expected
    store = await kept.reopen()
    assert {(one.topic, one.name): one for one in await store.states()} == expected
    await kept.store.close()


async def test_a_state_is_dropped_by_who_knows_its_version(kept: Kept) -> None:
    store = await kept.open()
    with pytest.raises(StateConflict):
        await store.drop_state("news", "a", 0)
    first = await store.change_state("news", "a", b"one", 0)
    second = await store.change_state("news", "a", b"two", first)
    with pytest.raises(StateConflict):
        await store.drop_state("news", "a", first)
    await store.drop_state("news", "a", second)
    assert await store.state("news", "a") is None
    assert await store.states() == []
    with pytest.raises(StateConflict):
        await store.change_state("news", "a", b"three", second)
    # Otherwise somebody who has seen the dropped one would take the new one for it.
    assert await store.change_state("news", "a", b"three", 0) > second
    await store.close()


async def test_states_are_there_after_a_restart(kept: Kept) -> None:
    store = await kept.open()
    version = await store.change_state("news", "a", b"one", 0)
    gone = await store.change_state("news", "b", b"two", 0)
    await store.drop_state("news", "b", gone)
    store = await kept.reopen()
    assert await store.state("news", "a") == State(version, b"one")
    assert await store.state("news", "b") is None
    assert await store.change_state("news", "a", b"two", version) > version
    await store.close()


async def test_no_limit_of_the_log_drops_a_state(kept: Kept) -> None:
    kept.limited = {"max_messages_per_topic": 1, "max_bytes_per_topic": 1000, "max_age_seconds": 1}
    store = await kept.open()
    await store.change_state("news", "a", b"one", 0)
    store.append([batch(number, number - 1) for number in range(1, 5)])
    await store.settle()
    kept.log.expire()
    store.trim()
    assert [one.value for one in await store.states()] == [b"one"]
    await store.close()


async def test_the_number_of_names_is_bounded(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "MAX_NAMES_PER_TOPIC", 2)
    monkeypatch.setattr(states, "MAX_NAMES", 3)
    store = await kept.open()
    version = await store.change_state("a", "1", b"", 0)
    await store.change_state("a", "2", b"", 0)
    with pytest.raises(StatesFull, match="the topic 'a' has 2 names; expected at most 2"):
        await store.change_state("a", "3", b"", 0)
    await store.change_state("b", "1", b"", 0)
    with pytest.raises(StatesFull, match="there are 3 names on all topics; expected at most 3"):
        await store.change_state("b", "2", b"", 0)
    store = await kept.reopen()
    with pytest.raises(StatesFull):
        await store.change_state("b", "2", b"", 0)
    # Those that are there are changed all the same.
    version = await store.change_state("a", "1", b"changed", version)
    await store.drop_state("a", "1", version)
    await store.change_state("a", "3", b"", 0)
    await store.close()


async def test_the_size_of_states_is_bounded(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await kept.open()
    largest = b"x" * (states.MAX_STATE_BYTES - 2)
    version = await store.change_state("a", "1", largest, 0)
    with pytest.raises(StatesFull, match=r"has 524,289 bytes; expected at most 524,288"):
        await store.change_state("a", "1", largest + b"x", version)
    assert await store.state("a", "1") == State(version, largest)
    monkeypatch.setattr(states, "MAX_STATES_BYTES", len(largest) + 100)
    with pytest.raises(StatesFull, match="all states would have"):
        await store.change_state("a", "2", b"x" * 100, 0)
    await store.change_state("a", "1", b"", version)
    await store.change_state("a", "2", b"x" * 100, 0)
    await store.close()


async def test_of_changes_at_the_same_time_one_wins(kept: Kept) -> None:
    store = await kept.open()
    results = await asyncio.gather(
        *(store.change_state("a", "1", b"%d" % number, 0) for number in range(5)), return_exceptions=True
    )
    won = [number for number, result in enumerate(results) if isinstance(result, int)]
    assert len(won) == 1
    assert sum(isinstance(result, StateConflict) for result in results) == 4
    state = await store.state("a", "1")
    assert state == State(results[won[0]], b"%d" % won[0])  # type: ignore[arg-type]
    await store.close()


# ---- in a file


class Failing:
    """Let commits of a file fail, or wait, while it is told so.

    Attributes:
        fails: Whether they fail.
        go_on: Not set to let them wait.
        waits: Set when one waits, or would.
        commits: How many states each commit changed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = False
        self.go_on, self.waits = threading.Event(), threading.Event()
        self.go_on.set()
        self.commits: list[int] = []
        change_states = Database._change_states

        def fail(database: Database, changes: Sequence[StateChange]) -> None:
            change_states(database, changes)
            if changes:
                self.commits.append(len(changes))
                self.waits.set()
                self.go_on.wait()
            if self.fails:
                # When all has been written, and is not committed yet.
                raise sqlite3.OperationalError("the disk is gone")

        monkeypatch.setattr(Database, "_change_states", fail)


def set_aside(directory: Path) -> int:
    """Return how many damaged files were set aside."""
    return len(list(directory.glob("*.corrupt-*Z")))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    return Failing(monkeypatch)


async def test_a_change_whose_commit_fails_was_none(tmp_path: Path, failing: Failing) -> None:
    kept = Kept("sqlite", tmp_path)
    store = await kept.open()
    version = await store.change_state("a", "1", b"one", 0)
    failing.fails = True
    with pytest.raises(StorageError, match="the disk is gone"):
        await store.change_state("a", "1", b"two", version)
    with pytest.raises(StorageError):
        await store.change_state("a", "2", b"two", 0)
    with pytest.raises(StorageError):
        await store.drop_state("a", "1", version)
    failing.fails = False
    assert [(one.name, one.value) for one in await store.states()] == [("1", b"one")]
    assert await store.change_state("a", "1", b"three", version) > version
    await store.change_state("a", "2", b"four", 0)
    assert {one.value for one in await (await kept.reopen()).states()} == {b"three", b"four"}
    await kept.store.close()


async def test_messages_and_changes_of_a_commit_fail_together(tmp_path: Path, failing: Failing) -> None:
    kept = Kept("sqlite", tmp_path)
    store = await kept.open()
    failing.fails = True
    changes = [asyncio.create_task(store.change_state("a", str(name), b"one", 0)) for name in range(3)]
    store.append([batch(1)])
    await store.settle()
    results = await asyncio.gather(*changes, return_exceptions=True)
    assert all(isinstance(result, StorageError) for result in results)
    assert [outcome.code for outcome in kept.outcomes] == ["full"]
    failing.fails = False
    store.append([batch(2)])
    await store.settle()
    await store.change_state("a", "0", b"two", 0)
    assert kept.outcomes[-1].record is not None
    assert [(one.name, one.value) for one in await (await kept.reopen()).states()] == [("0", b"two")]
    await kept.store.close()


@pytest.mark.parametrize("fails", [False, True])
async def test_changes_that_come_during_a_commit(tmp_path: Path, failing: Failing, fails: bool) -> None:
    """The next commit has all of them; when the one under way fails, they fail too."""
    kept = Kept("sqlite", tmp_path)
    store = await kept.open()
    failing.fails = fails
    failing.go_on.clear()
    changes = [asyncio.create_task(store.change_state("a", "first", b"", 0))]
    assert await asyncio.to_thread(failing.waits.wait, 10)
    changes += [asyncio.create_task(store.change_state("a", str(name), b"", 0)) for name in range(20)]
    await asyncio.sleep(0)
    failing.go_on.set()
    results = await asyncio.gather(*changes, return_exceptions=True)
    assert {type(result) for result in results} == {StorageError if fails else int}
    assert failing.commits == ([1] if fails else [1, 20])
    failing.fails = False
    await store.change_state("a", "last", b"", 0)
    assert len(await (await kept.reopen()).states()) == (1 if fails else 22)
    await kept.store.close()


async def test_a_change_that_nobody_waits_for_is_made_all_the_same(tmp_path: Path) -> None:
    kept = Kept("sqlite", tmp_path)
    store = await kept.open()
    waiting = asyncio.create_task(store.change_state("a", "1", b"one", 0))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    with pytest.raises(StateConflict):
        await store.change_state("a", "1", b"two", 0)
    assert [one.value for one in await (await kept.reopen()).states()] == [b"one"]
    await kept.store.close()


async def test_a_stop_commits_the_changes_that_wait(tmp_path: Path) -> None:
    kept = Kept("sqlite", tmp_path)
    store = await kept.open()
    changes = [asyncio.create_task(store.change_state("a", str(name), b"one", 0)) for name in range(3)]
    await asyncio.sleep(0)
    await store.close()
    assert len(await asyncio.gather(*changes)) == 3
    with pytest.raises(StorageError, match="the log is closed"):
        await store.change_state("a", "4", b"one", 0)
    assert len(await (await kept.open()).states()) == 3
    await kept.store.close()


async def test_a_file_without_states_gets_them(tmp_path: Path) -> None:
    """Files of an earlier build are not set aside."""
    kept = Kept("sqlite", tmp_path)
    store = await kept.open()
    store.append([batch(1)])
    await store.settle()
    await store.close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as file:
        file.execute("DROP TABLE state")
        file.commit()
    store = await kept.open()
    assert store.topic("news").next == 1
    await store.change_state("news", "a", b"one", 0)
    await store.close()
    assert set_aside(tmp_path) == 0


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO state VALUES ('a', 'b', 0, x'00')",
        "INSERT INTO state VALUES ('a', 'b', 9223372036854775807, x'00')",
        "DROP TABLE state; CREATE TABLE state (topic, name, version, value);"
        "INSERT INTO state VALUES ('a', 'b', 'one', x'00')",
        "DROP TABLE state; CREATE TABLE state (topic, name, version, value);"
        "INSERT INTO state VALUES ('a', 'b', 1, 'text')",
        "DROP TABLE state; CREATE TABLE state (topic, name, version, value);"
        "INSERT INTO state VALUES (7, 'b', 1, x'00')",
        "DROP TABLE state; CREATE TABLE state (topic, name)",
    ],
)
@pytest.mark.parametrize("mode", ["sqlite", "memory"])
async def test_states_that_none_can_be_are_damage(mode: Mode, tmp_path: Path, damage: str) -> None:
    kept = Kept(mode, tmp_path)
    await (await kept.open()).close()
    name = FILE_NAME if mode == "sqlite" else SNAPSHOT_NAME
    with closing(sqlite3.connect(tmp_path / name)) as file:
        file.executescript(damage)
    store = await kept.open()
    assert await store.states() == []
    assert set_aside(tmp_path) == 1
    await store.close()


async def test_damage_that_is_found_later_ends_changes(tmp_path: Path) -> None:
    kept = Kept("sqlite", tmp_path)
    store = await kept.open()
    await store.change_state("a", "1", b"one", 0)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as file:
        file.execute("UPDATE state SET version = 0")
        file.commit()
    for read in (store.state("a", "1"), store.states()):
        with pytest.raises(WsqueueError, match="cannot be read: it has a state that none can be"):
            await read
    assert len(kept.damage) == 1
    with pytest.raises(StorageError, match="it has a state that none can be"):
        await store.change_state("a", "2", b"one", 0)
    await store.close()
    assert await (await kept.open()).states() == []
    await kept.store.close()


# ---- in an engine


async def shared_pair() -> tuple[Kept, Store, Kept, Store]:
    one, two = Kept("shared", Path()), Kept("shared", Path())
    two.log = one.log
    return one, await one.open(), two, await two.open()


async def test_consumers_share_states() -> None:
    _, one, _, two = await shared_pair()
    first = await one.change_state("a", "1", b"one", 0)
    with pytest.raises(StateConflict):
        await two.change_state("a", "1", b"two", 0)
    second = await two.change_state("a", "1", b"two", first)
    with pytest.raises(StateConflict):
        await one.drop_state("a", "1", first)
    assert await one.state("a", "1") == State(second, b"two")
    await two.drop_state("a", "1", second)
    assert await one.states() == []
    await one.close()
    await two.close()


async def test_a_state_that_changes_before_it_is_dropped_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, one, _, two = await shared_pair()
    version = await one.change_state("a", "1", b"one", 0)
    last = kept.engine.last

    async def change_behind(place: Place) -> Stored | None:
        found = await last(place)
        await two.change_state("a", "1", b"two", version)
        return found

    monkeypatch.setattr(kept.engine, "last", change_behind)
    with pytest.raises(StateConflict):
        await one.drop_state("a", "1", version)
    state = await two.state("a", "1")
    assert state is not None
    assert state.value == b"two"
    await one.close()
    await two.close()


async def test_an_answer_that_does_not_come() -> None:
    kept, one, _, two = await shared_pair()
    fates: list[Fate] = ["lost", "answer lost", "full", "late"]
    kept.engine.fate = lambda: fates.pop(0) if fates else "stored"
    with pytest.raises(StorageError):
        await one.change_state("a", "1", b"lost", 0)
    assert await one.state("a", "1") is None
    with pytest.raises(StorageError):
        await one.change_state("a", "1", b"unheard", 0)
    state = await one.state("a", "1")
    assert state is not None
    assert state.value == b"unheard"
    with pytest.raises(StatesFull, match="no room"):
        await one.change_state("a", "1", b"full", state.version)
    with pytest.raises(StorageError):
        await one.change_state("a", "1", b"late", state.version)
    newer = await two.change_state("a", "1", b"faster", state.version)
    kept.log.do_late()
    assert await one.state("a", "1") == State(newer, b"faster")
    kept.engine.is_connected = False
    for request in (
        one.state("a", "1"),
        one.states(),
        one.drop_state("a", "1", newer),
        one.change_state("b", "1", b"", 0),
    ):
        with pytest.raises(StorageError, match="there is no connection"):
            await request
    await one.close()
    await two.close()


async def test_records_that_are_no_states() -> None:
    kept = Kept("shared", Path())
    store = await kept.open()
    await store.change_state("a", "1", b"one", 0)
    place, foreign = state_place("a", "2"), state_place("a", "3")
    kept.log.append(place, b"not ours", 0)
    kept.log.append(foreign, shared_states.encode_state("b", "3", b"of another topic"), 0)
    with pytest.raises(StorageError, match="a state that is none of wsqueue"):
        await store.state("a", "2")
    with pytest.raises(StorageError, match="another state in the place of '3' of 'a'"):
        await store.state("a", "3")
    newer = shared_states._encoder.encode(shared_states.SharedState(2, "a", "4", b""))
    kept.log.append(state_place("a", "4"), newer, 0)
    with pytest.raises(StorageError, match="a state of format 2; expected 1: update this consumer"):
        await store.state("a", "4")
    assert ("a", "1") in {(one.topic, one.name) for one in await store.states()}
    assert len(kept.log.records(STATES)) == 4
    await store.close()


async def test_a_list_that_takes_several_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_states, "READ_BYTES", 100)
    kept = Kept("shared", Path())
    store = await kept.open()
    for number in range(10):
        await store.change_state("a", str(number), b"x" * 60, 0)
    scan, changed = kept.engine.scan, False

    async def change_behind(*arguments: int) -> list[Stored]:
        nonlocal changed
        found = await scan(*arguments)
        if not changed:
            changed = True
            await store.change_state("a", "0", b"changed", 1)
        return found

    monkeypatch.setattr(kept.engine, "scan", change_behind)
    listed = await store.states()
    assert sorted(one.name for one in listed) == list("0123456789")
    assert [one.value for one in listed if one.name == "0"] == [b"changed"]
    await store.close()


# ---- any order of events

TOPICS, NAMES = "ab", "12"
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["change", "change", "change", "drop", "wrong", "together", "publish", "reopen"]),
        st.sampled_from(TOPICS),
        st.sampled_from(NAMES),
        st.sampled_from(["stored", "stored", "lost", "answer lost", "late", "full"]),
    ),
    max_size=25,
)


class Model:
    """A dict that a store must equal.

    Attributes:
        values: The version and the value of each state, as the store told them.
    """

    def __init__(self, kept: Kept, failing: Failing) -> None:
        self.kept, self.failing = kept, failing
        self.values: dict[tuple[str, str], State] = {}
        self.newest = self.count = 0

    async def step(self, step: str, topic: str, name: str, fate: Fate) -> None:
        store, key = self.kept.store, (topic, name)
        known = self.values.get(key)
        version = 0 if known is None else known.version
        self.count += 1
        value = b"%d" % self.count
        self._meet(fate)
        if step == "change":
            await self._change(key, value, version)
        elif step == "drop" and known is not None:
            self._meet("stored" if self.kept.mode == "shared" else fate)
            if await self._done(store.drop_state(topic, name, version)):
                del self.values[key]
        elif step == "wrong":
            self._meet("stored")
            with pytest.raises(StateConflict):
                await store.change_state(topic, name, value, self.newest + 1)
        elif step == "together":
            # Two changes of one state, and one of each other, wait together: the first one wins.
            keys = [key, key, *((other, name) for other in TOPICS if other != topic)]
            versions = [self.values[one].version if one in self.values else 0 for one in keys]
            await asyncio.gather(
                *(
                    self._change(one, b"%d/%d" % (self.count, place), versions[place])
                    for place, one in enumerate(keys)
                )
            )
        elif step == "publish" and self.kept.mode != "shared":
            store.append([batch(self.count, topic=topic)])
            await store.settle()
        elif step == "reopen":
            self._meet("stored")
            self.kept.log.do_late()
            await self.kept.reopen()
            if self.kept.mode != "shared":
                # Nobody has the version of a dropped state after that.
                self.newest = max((state.version for state in self.values.values()), default=0)
        self._meet("stored")
        self.kept.log.do_late()
        await self._learn()

    def _meet(self, fate: Fate) -> None:
        if self.kept.mode == "shared":
            self.kept.engine.fate = lambda: fate
        else:
            self.failing.fails = self.kept.mode == "sqlite" and fate != "stored"

    async def _change(self, key: tuple[str, str], value: bytes, version: int) -> None:
        store = self.kept.store

        async def change() -> None:
            new = await store.change_state(*key, value, version)
            assert new > self.newest or self.kept.mode == "shared"
            assert new > version
            self.newest = max(self.newest, new)
            self.values[key] = State(new, value)

        await self._done(change())

    async def _done(self, change: Awaitable[None]) -> bool:
        try:
            await change
        except (StatesFull, StorageError, StateConflict):
            return False
        return True

    async def _learn(self) -> None:
        """Compare, and take over the changes of an engine whose answers were lost."""
        listed = {
            (one.topic, one.name): State(one.version, one.value) for one in await self.kept.store.states()
        }
        for topic in TOPICS:
            for name in NAMES:
                key = topic, name
                assert await self.kept.store.state(topic, name) == listed.get(key)
                if self.kept.mode == "shared" and key in listed and listed[key] != self.values.get(key):
                    # Only the last step can have done that, and never in the place of a newer value.
                    assert int(listed[key].value.partition(b"/")[0]) == self.count
                    assert listed[key].version > self.newest or self.newest == 0
                    self.values[key] = listed[key]
        self.newest = max([self.newest, *(state.version for state in listed.values())])
        assert listed == self.values


@pytest.mark.parametrize("mode", MODES)
@given(steps=STEPS)
def test_any_order_of_changes_and_failures(
    mode: Mode, steps: list[tuple[str, str, str, Fate]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def run() -> None:
        kept = Kept(mode, tmp_path_factory.mktemp("states"))
        with pytest.MonkeyPatch.context() as patch:
            model = Model(kept, Failing(patch))
            await kept.open()
            for step in steps:
                await model.step(*step)
            await kept.store.close()

    asyncio.run(run())
