"""The memory of topics, publishers and subscriptions, in both stores."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.log import sqlite
from wsqueue.log.index_budget import (
    IndexBudget,
    subscription_bytes,
    topic_bytes,
)
from wsqueue.log.records import StoreState, TopicState
from wsqueue.log.store import AppendChain
from wsqueue.net.connection import Connection
from wsqueue.nodes.subscribers import Subscribers
from wsqueue.protocol.repeats import NUMBER_BYTES, PUBLISHER_BYTES, name_bytes

from ...support.fake_connection import FakeConnection
from ...support.messages import append_one, packed
from ...support.stores import Archived, FakeArchive, Logs

pytestmark = pytest.mark.anyio

EACH = subscription_bytes("news")


@pytest.fixture(params=["memory", "sqlite"])
async def logs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Logs:
    monkeypatch.setattr(sqlite, "Archive", FakeArchive)
    return await Archived.opened() if request.param == "sqlite" else Logs()


async def store(logs: Logs, *batches: AppendChain) -> None:
    logs.append(*batches)
    if isinstance(logs, Archived):
        logs.archive.commit()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_a_name_takes_no_more_than_is_counted(name: str) -> None:
    name.encode()
    assert sys.getsizeof(name) <= name_bytes(name) + 16


async def test_subscriptions_to_unused_topics_leave_nothing_behind(logs: Logs) -> None:
    for number in range(100):
        logs.store.reading(f"topic {number}", 1)
    assert logs.store.log_status().topics == 100
    # Subscriptions count them.
    assert logs.store.index.used == 0
    assert logs.store.reading("topic 7", 1).readers == 2
    for number in range(100):
        logs.store.reading(f"topic {number}", -1)
    assert logs.store.log_status().topics == 1
    logs.store.reading("topic 7", -1)
    assert (logs.store.index.used, logs.store.log_status().topics) == (0, 0)


async def test_empty_topics_make_room_and_those_in_use_stay() -> None:
    logs = Logs()
    index = logs.store.index
    logs.append(*(append_one(f"{number}", packed("a")) for number in range(10)))
    assert index.used == 0
    logs.store.reading("0", 1)
    logs.clock.now += 10_000
    logs.store.trim()
    assert index.used == 9 * topic_bytes("0")
    index.limit = 5 * topic_bytes("0")
    logs.store.reading("new", 1)
    assert 0 < index.used <= index.limit
    assert logs.store.log_status().topics == 5
    # Neither what has a reader, nor the topic that just came.
    assert logs.store.topic("0").readers == 1
    assert logs.store.topic("new").readers == 1
    index.limit = 0
    log = logs.store.topic("another")
    assert logs.store.topic("another") is log
    # A topic that was forgotten begins above what it had.
    assert logs.store.topic("5").next == 1


async def test_topics_of_an_archive_are_not_in_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "Archive", FakeArchive)
    logs = await Archived.opened()
    logs.store.index.limit = 0
    await store(logs, *(append_one(f"{number}", packed("a")) for number in range(10)))
    logs.clock.now += 10_000
    logs.store.trim()
    assert not logs.store.index.full
    assert logs.store.topic("5").next == 1


async def test_numbers_have_half_of_it(logs: Logs) -> None:
    index, each = logs.store.index, PUBLISHER_BYTES + NUMBER_BYTES + name_bytes("news")
    index.limit = 2 * 10 * each

    def batches(*numbers: int) -> list[AppendChain]:
        return [append_one("news", packed("x"), f"p{number}", 1) for number in numbers]

    await store(logs, *batches(*range(100)))
    assert index.numbers == index.used == 10 * each
    # A repeat is known by those that came last.
    before = logs.store.topic("news").next
    await store(logs, *batches(*range(90, 100)))
    assert logs.store.topic("news").next == before
    await store(logs, *batches(0))
    assert logs.store.topic("news").next == before + 1
    assert index.numbers == 10 * each


async def test_a_failed_commit_and_a_restart_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "Archive", FakeArchive)
    state = StoreState(epochs=[], topics={"news": TopicState(0, 4)}, numbers={("news", "p"): 3})
    logs = await Archived.opened(state)
    index, each = logs.store.index, PUBLISHER_BYTES + NUMBER_BYTES + name_bytes("news")
    assert index.numbers == each
    logs.append(append_one("news", packed("x"), "q", 1), append_one("news", packed("x"), "p", 4))
    assert index.numbers == 2 * each
    logs.archive.fail()
    assert index.numbers == 2 * each


class Holder:
    def __init__(self, subscribers: Subscribers) -> None:
        self.subscribers, self.count = subscribers, 0
        self.connection = FakeConnection()
        self.refused = False

    def subscribe(self, count: int) -> None:
        for _ in range(count):
            self.count += 1
            self.subscribers.add(self, self.connection, "news")
            self.subscribers.relieve()

    def refuse(self, connection: Connection) -> None:
        assert connection is self.connection
        self.refused = True

    def end(self) -> None:
        for _ in range(self.count):
            self.subscribers.end_one(self, "news")
        self.count = 0


async def test_no_more_is_added_while_the_subscriptions_of_others_end() -> None:
    index = IndexBudget(10 * EACH)
    subscribers = Subscribers(index)
    holders = [Holder(subscribers) for _ in range(8)]
    for _ in range(50):
        for holder in holders:
            if not holder.refused:
                holder.subscribe(1)
        # Those that are being ended keep all that they have for a while; the others fit in.
        assert sum(holder.count for holder in holders if not holder.refused) <= 10
    for holder in holders:
        subscribers.remove(holder)
    assert index.used == 0


async def test_the_connection_with_the_most_subscriptions_makes_room() -> None:
    index = IndexBudget(10 * EACH)
    subscribers = Subscribers(index)
    small, large, other = (Holder(subscribers) for _ in range(3))
    large.subscribe(7)
    other.subscribe(3)
    assert index.used == index.limit
    small.subscribe(1)
    assert (small.refused, large.refused, other.refused) == (False, True, False)
    # No other is closed while its subscriptions end.
    small.subscribe(1)
    assert not other.refused
    large.end()
    subscribers.remove(large)
    assert index.used == 5 * EACH
    small.subscribe(6)
    assert small.refused
    for holder in (small, other):
        subscribers.remove(holder)
    assert index.used == 0
