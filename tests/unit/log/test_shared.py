"""The shared log: several consumers on one fake engine are one log, whatever their requests come to."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.fake_engine import FakeEngine, FakeLog, Fate
from tests.support.messages import append_one, packed
from tests.support.stores import Clock, batch, delivered
from wsqueue.config.model import JetStream, Retention, TopicRetention
from wsqueue.log import shared, shared_topic
from wsqueue.log.engine import Place, Stored, Unanswered, place_of
from wsqueue.log.records import Record
from wsqueue.log.shared import SharedStore
from wsqueue.log.shared_record import SharedRecord, decode_record
from wsqueue.log.shared_topic import SharedTopic
from wsqueue.log.store import AppendChain, Outcome
from wsqueue.log.topic import TopicLog
from wsqueue.report.report import EngineStatus

STREAMS = 2


def shared_limits(**changes: Any) -> Retention:
    jetstream = JetStream(servers=["nats://127.0.0.1:1"], streams=STREAMS)
    return Retention(mode="jetstream", jetstream=jetstream, **changes)


class Node:
    """A consumer's store on a log, and everything that it has told."""

    def __init__(self, log: FakeLog, clock: Clock | None = None, **limits: Any) -> None:
        self.engine = FakeEngine(log)
        self.outcomes: list[Outcome] = []
        self.heard: dict[str, list[Record]] = defaultdict(list)
        self.moved: list[tuple[str, bool]] = []
        self.available: list[bool] = []
        self.store = SharedStore(
            shared_limits(**limits),
            self._done,
            clock or Clock(),
            engine=self.engine,
            streams=STREAMS,
            pause=self._pause,
        )
        self.store.on_moved = lambda log, other: self.moved.append((log.name, other))
        self.store.on_available = self._tell

    async def open(self) -> Node:
        await self.store.open()
        return self

    async def publish(self, *chains: AppendChain) -> list[Outcome]:
        """Append chains, and return their outcomes once all are settled."""
        before = len(self.outcomes)
        self.store.append(chains)
        await self.store.settle()
        return [one for one in self.outcomes[before:] if any(one.chain is chain for chain in chains)]

    async def read_from(self, topic: str) -> TopicLog:
        """Follow a topic as a reader does, and return its log."""
        log = self.store.reading(topic, 1)
        opening = self.store.opening(log)
        assert opening is not None
        await opening
        return log

    def engine_status(self) -> EngineStatus:
        status = self.store.log_status().engine
        assert status is not None
        return status

    def texts(self, topic: str) -> list[str]:
        return texts_of(self.heard[topic])

    def _done(self, outcomes: list[Outcome]) -> None:
        self.outcomes += outcomes
        for outcome in outcomes:
            if outcome.record is not None:
                self.heard[outcome.record.topic].append(outcome.record)

    def _tell(self) -> None:
        assert self.store.shared is not None
        self.available.append(self.store.shared.available)

    async def _pause(self, seconds: float) -> None:
        # The sweep goes on slower than everything else, as it does in truth.
        for _ in range(50 if seconds >= 2 else 1):
            await asyncio.sleep(0)


def texts_of(records: list[Record]) -> list[str]:
    return [str(text) for record in records for text in delivered(record).messages.unpack()]


def run(test: Callable[[FakeLog], Awaitable[None]]) -> None:
    asyncio.run(_run(test))


async def _run(test: Callable[[FakeLog], Awaitable[None]]) -> None:
    log = FakeLog(STREAMS)
    try:
        async with asyncio.timeout(20):
            await test(log)
    finally:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


def records_in(log: FakeLog, topic: str) -> list[SharedRecord]:
    """Return the records of a topic that the engine has."""
    place = place_of(topic, STREAMS)
    return [decode_record(one.data) for one in log.streams[place.stream] if one.token == place.token]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


def codes(outcomes: list[Outcome]) -> list[str]:
    return [one.code or ("stored" if one.record is not None else "repeat") for one in outcomes]


def test_two_consumers_append_to_one_log() -> None:
    async def test(log: FakeLog) -> None:
        first, second = await Node(log).open(), await Node(log).open()
        (one,) = await first.publish(batch(1))
        (two,) = await second.publish(batch(2, 1))
        (three,) = await first.publish(batch(3, 2))
        offsets = [one.record.offset for one in (one, two, three) if one.record is not None]
        assert offsets == [0, 1, 2]
        assert len({record.log for record in records_in(log, "news")}) == 1
        assert [record.writer for record in records_in(log, "news")][0::2] != [
            record.writer for record in records_in(log, "news")
        ][1::2]

    run(test)


def test_a_repeat_is_known_at_any_consumer() -> None:
    async def test(log: FakeLog) -> None:
        first, second = await Node(log).open(), await Node(log).open()
        await first.publish(batch(1), batch(2, 1))
        appends = second.engine.appends
        assert codes(await second.publish(batch(1), batch(2, 1))) == ["repeat", "repeat"]
        assert second.engine.appends == appends
        chain = AppendChain("p", [2, 3], 1, "news", [1, 1], packed("2", "3"))
        (outcome,) = await second.publish(chain)
        assert (outcome.repeats, outcome.record and outcome.record.offset) == (1, 2)
        assert outcome.record is not None
        assert texts_of([outcome.record]) == ["3"]

    run(test)


def test_chains_that_wait_are_one_record() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        chains = [batch(number, number - 1) for number in range(1, 21)]
        await node.publish(*chains)
        assert len(records_in(log, "news")) == 1
        assert [one.chain for one in node.outcomes] == chains

    run(test)


def test_topics_wait_for_nobody() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        stuck = place_of("stuck", STREAMS)
        free = next(f"t{n}" for n in range(99) if place_of(f"t{n}", STREAMS).stream != stuck.stream)
        append = node.engine.append

        async def only_some(place: Any, data: bytes, after: int) -> int:
            if place.stream == stuck.stream:
                await asyncio.sleep(3600)
            return await append(place, data, after)

        node.engine.append = only_some  # type: ignore[method-assign]
        node.store.append([batch(1, topic="stuck"), batch(2, topic=free)])
        await until(lambda: bool(node.outcomes))
        assert [one.chain.topic for one in node.outcomes] == [free]

    run(test)


def test_an_answer_that_is_lost_shows_up_as_a_repeat() -> None:
    for fate in ("answer lost", "late", "lost"):

        async def test(log: FakeLog, fate: Fate = fate) -> None:
            node = await Node(log).open()
            fates: list[Fate] = [fate]
            node.engine.fate = lambda: fates.pop() if fates else "stored"
            node.store.append([batch(1)])
            await until(lambda: not fates)
            log.do_late()
            await node.store.settle()
            assert texts_of(node.heard["news"]) == ["1.0"]
            assert sum(record.end - record.offset for record in records_in(log, "news")) == 1
            assert codes(node.outcomes)[-1] in ("stored", "repeat")

        run(test)


def test_a_late_append_of_a_consumer_that_was_frozen_does_no_harm() -> None:
    async def test(log: FakeLog) -> None:
        frozen, other = await Node(log).open(), await Node(log).open()
        await frozen.publish(batch(1))
        frozen.engine.fate = lambda: "late"
        frozen.store.append([batch(2, 1)])
        await until(lambda: bool(log.late))
        frozen.engine.is_connected = False
        assert codes(await other.publish(batch(2, 1), batch(3, 2))) == ["stored", "stored"]
        log.do_late()
        frozen.engine.is_connected, frozen.engine.fate = True, lambda: "stored"
        await frozen.store.settle()
        assert codes(frozen.outcomes)[-1] == "repeat"
        assert [record.end for record in records_in(log, "news")] == [1, 3]

    run(test)


def test_a_refusal_is_proved_by_an_append() -> None:
    """Decision 6: a consumer whose server answers from the past must not refuse a batch for a missing one."""

    async def test(log: FakeLog) -> None:
        old, new = await Node(log).open(), await Node(log).open()
        await old.publish(batch(1))
        await new.publish(batch(2, 1))
        # The notice of 2 is lost, so `old` believes that 1 is the last batch.
        log.engines[0].deaf = True
        await new.publish(batch(3, 2))
        hidden = [1, 1, 1]
        old.engine.hidden = lambda: hidden.pop() if hidden else 0
        (outcome,) = await old.publish(batch(4, 3))
        assert codes([outcome]) == ["stored"]
        (outcome,) = await old.publish(batch(6, 5))
        assert codes([outcome]) == ["after_refused"]
        assert records_in(log, "news")[-1].batches == []

    run(test)


def test_no_room() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        node.engine.fate = lambda: "full"
        outcomes = await node.publish(batch(1), batch(2, 1))
        assert codes(outcomes) == ["full", "full"]
        assert outcomes[0].reason == "no room"
        assert node.store.log_status().failing == "no room"
        node.engine.fate = lambda: "stored"
        # Neither passes for the first batch of its publisher.
        assert codes(await node.publish(batch(3, 2))) == ["after_refused"]
        assert codes(await node.publish(batch(4))) == ["stored"]
        assert node.store.log_status().failing == ""

    run(test)


def test_a_refusal_lasts_until_something_is_stored() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        node.engine.fate = lambda: "full"
        await node.publish(batch(1))
        # The sweep has answers meanwhile.
        for _ in range(500):
            await asyncio.sleep(0)
        assert (node.store.log_status().failing, node.engine_status().available) == ("no room", True)
        node.engine.fate = lambda: "stored"
        await node.publish(batch(1))
        assert node.store.log_status().failing == ""

    run(test)


def test_readers_begin_though_there_is_no_room() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        await node.publish(batch(1))
        node.engine.fate = lambda: "full"
        topic = await node.read_from("news")
        assert [record.offset for record in await node.store.read(topic, 0, 100)] == [0]
        assert codes(await node.publish(batch(2, 1))) == ["full"]

    run(test)


def test_no_room_after_an_append_that_may_be_done() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        fates: list[Fate] = ["stored", "full", "full", "late"]
        node.engine.fate = fates.pop
        await node.publish(batch(1))
        # Refusing it as `full` would be wrong if the late append came.
        assert codes(node.outcomes) == ["stored"]

    run(test)


def test_a_batch_that_is_invalid_makes_its_publisher_known_everywhere() -> None:
    async def test(log: FakeLog) -> None:
        first, second = await Node(log).open(), await Node(log).open()
        broken = append_one("news", packed("x"), "p", 1)
        broken.problem = "invalid"
        assert codes(await first.publish(broken)) == ["invalid"]
        assert codes(await second.publish(batch(2, 1))) == ["after_refused"]

    run(test)


def test_a_topic_that_is_too_long_never_reaches_the_log() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        broken = append_one("news", packed("x"), "p", 1)
        broken.problem = "topic_too_long"
        assert codes(await node.publish(broken)) == ["topic_too_long"]
        assert node.engine.appends == 0

    run(test)


def test_classic_batches_are_stored_once() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        fates: list[Fate] = ["answer lost"]
        node.engine.fate = lambda: fates.pop() if fates else "stored"
        await node.publish(
            AppendChain("", [0], 0, "news", [1], packed("a")),
            AppendChain("", [0], 0, "news", [1], packed("b")),
        )
        assert node.texts("news") == ["a", "b"]

    run(test)


def test_a_reader_elsewhere_hears_everything() -> None:
    for deaf in (False, True):

        async def test(log: FakeLog, deaf: bool = deaf) -> None:
            writer, reader = await Node(log).open(), await Node(log).open()
            topic = await reader.read_from("news")
            reader.engine.deaf = deaf
            for number in range(1, 6):
                await writer.publish(batch(number, number - 1))
            await until(lambda: len(reader.texts("news")) == 5)
            assert reader.texts("news") == [f"{number}.0" for number in range(1, 6)]
            assert (topic.next, reader.store.log_id(topic)) == (5, records_in(log, "news")[0].log)
            assert not reader.moved

        run(test)


def test_a_record_without_a_notice_is_found_though_an_old_leader_answers_first() -> None:
    async def test(log: FakeLog) -> None:
        writer, reader = await Node(log).open(), await Node(log).open()
        await writer.publish(batch(1))
        topic = await reader.read_from("news")
        reader.engine.deaf = True
        hidden = [1, 1]
        reader.engine.hidden = lambda: hidden.pop() if hidden else 0
        await writer.publish(batch(2, 1))
        await until(lambda: topic.next == 2)
        assert reader.texts("news") == ["2.0"]
        assert not hidden

    run(test)


def test_an_opening_knows_all_that_was_confirmed_before() -> None:
    """Decision 6: `subscribed.end` comes from a log that an append has proved to be all."""

    async def test(log: FakeLog) -> None:
        writer, reader = await Node(log).open(), await Node(log).open()
        await writer.publish(batch(1), batch(2, 1))
        hidden = [9, 9, 1]
        reader.engine.hidden = lambda: hidden.pop() if hidden else 0
        topic = await reader.read_from("news")
        assert topic.next == 2

    run(test)


def test_a_reader_of_a_topic_without_messages_has_a_position() -> None:
    async def test(log: FakeLog) -> None:
        one, two = await Node(log).open(), await Node(log).open()
        here, there = await one.read_from("news"), await two.read_from("news")
        assert one.store.log_id(here) == two.store.log_id(there) != ""
        assert (here.next, there.next) == (0, 0)

    run(test)


def test_reading_begins_in_the_middle_of_a_record() -> None:
    async def test(log: FakeLog) -> None:
        writer, reader = await Node(log).open(), await Node(log).open()
        await writer.publish(*(batch(number, number - 1, count=2) for number in range(1, 5)))
        assert len(records_in(log, "news")) == 1
        topic = await reader.read_from("news")
        assert not reader.store.in_memory(topic, 0)
        for offset, first in ((0, 0), (1, 0), (2, 2), (5, 4), (7, 6)):
            records = await reader.store.read(topic, offset, 2**20)
            assert [record.offset for record in records] == list(range(first, 8, 2))

    run(test)


def test_old_records_are_read_from_the_engine() -> None:
    async def test(log: FakeLog) -> None:
        writer, reader = await Node(log).open(), await Node(log).open()
        clock = writer.store._clock
        assert isinstance(clock, Clock)
        for number in range(1, 31):
            clock.now += 10
            await writer.publish(batch(number, number - 1, count=3))
            await writer.publish(batch(number, topic="other", publisher="q"))
        topic = await reader.read_from("news")
        assert not reader.store.in_memory(topic, 0)
        assert (reader.store.earliest(topic), topic.next) == (0, 90)
        offset, everything = 0, list[Record]()
        while offset < topic.next:
            records = await reader.store.read(topic, offset, 200)
            everything += records
            offset = records[-1].end
        assert texts_of(everything) == [f"{n}.{i}" for n in range(1, 31) for i in range(3)]
        # In the middle of a record, and without a place that is remembered.
        (first, *_) = await reader.store.read(topic, 46, 1)
        assert (first.offset, first.end) == (45, 48)
        assert await reader.store.offset_at(topic, 1000 + 10 * 20) == 57
        assert await reader.store.offset_at(topic, 1e9) == 90

    run(test)


def test_a_search_ends_though_a_server_that_is_off_gets_a_share_of_the_requests() -> None:
    async def test(log: FakeLog) -> None:
        writer = await Node(log).open()
        for number in range(1, 200):
            await writer.publish(batch(number, number - 1))
        node = await Node(log).open()
        topic = await node.read_from("news")
        read, asked = node.engine.read, 0

        async def read_sometimes(place: Place, seq: int, max_bytes: int) -> list[Stored]:
            nonlocal asked
            asked += 1
            if asked % 3 == 0:
                raise Unanswered("time is up")
            return await read(place, seq, max_bytes)

        node.engine.read = read_sometimes  # type: ignore[method-assign]
        assert (await node.store.read(topic, 150, 1))[0].offset == 150
        assert asked < 20

    run(test)


def test_a_log_that_has_expired_begins_anew() -> None:
    async def test(log: FakeLog) -> None:
        clock = Clock()
        reader, writer = await Node(log, clock).open(), await Node(log, clock).open()
        topic = await reader.read_from("news")
        await writer.publish(batch(1), batch(2, 1))
        await until(lambda: len(reader.texts("news")) == 2)
        before = reader.store.log_id(topic)
        clock.now += 86_400
        log.expire()
        (outcome,) = await writer.publish(batch(3))
        assert outcome.record is not None
        await until(lambda: bool(reader.moved))
        assert reader.moved == [("news", True)]
        assert reader.store.log_id(topic) not in ("", before)
        assert topic.next == outcome.record.end == 1

    run(test)


def test_the_log_of_a_topic_that_is_read_does_not_expire() -> None:
    async def test(log: FakeLog) -> None:
        clock = Clock()
        node = await Node(log, clock).open()
        await node.read_from("news")
        before = len(records_in(log, "news"))
        clock.now += 43_201
        node.store.trim()
        await until(lambda: len(records_in(log, "news")) == before + 1)
        assert records_in(log, "news")[-1].table == 0

    run(test)


def test_a_reader_that_is_far_behind_is_told_to_read() -> None:
    async def test(log: FakeLog) -> None:
        writer, reader = await Node(log).open(), await Node(log).open()
        await reader.read_from("news")
        reader.engine.deaf = True
        reader.engine.is_connected = False
        for number in range(1, 21):
            await writer.publish(append_one("news", packed("x" * 1_000_000), "p", number, number - 1))
        reader.engine.is_connected = True
        await until(lambda: bool(reader.moved))
        assert reader.moved == [("news", False)]
        assert reader.store.topic("news").next == 20

    run(test)


def test_a_table_tells_of_all_publishers() -> None:
    async def test(log: FakeLog) -> None:
        writer = await Node(log).open()
        for number in range(1, 701):
            await writer.publish(batch(number, publisher=f"p{number}"))
        tables = [record for record in records_in(log, "news") if not record.table]
        assert 2 <= len(tables) < 100
        other = await Node(log).open()
        again = [batch(number, publisher=f"p{number}") for number in range(1, 701)]
        assert codes(await other.publish(*again)) == ["repeat"] * 700

    run(test)


QUIET = ["billing/a", "billing/b", "shop/c", "d"]


def test_a_flood_of_one_name_does_not_make_others_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_topic, "MAX_PUBLISHERS", 20)

    async def test(log: FakeLog) -> None:
        writers = [await Node(log).open(), await Node(log).open()]
        await writers[0].publish(*(batch(5, publisher=name) for name in QUIET))
        for number in range(300):
            await writers[number % 2].publish(batch(5, publisher=f"flood/{number:022}"))
        table = [record for record in records_in(log, "news") if not record.table][-1]
        assert len(table.numbers) == 20
        assert list(table.numbers)[:4] == QUIET
        assert all(number == 5 for number in table.numbers.values())
        # Whoever reads the log knows the same, whether or not it wrote any of it.
        for node in (*writers, await Node(log).open()):
            again = [batch(5, publisher=name) for name in QUIET]
            assert codes(await node.publish(*again)) == ["repeat"] * 4
        assert codes(await node.publish(batch(5, publisher=f"flood/{0:022}"))) == ["stored"]

    run(test)


def test_a_flood_that_is_refused_does_not_hide_that_others_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_topic, "MAX_PUBLISHERS", 20)
    monkeypatch.setattr(shared_topic, "OWED_SLACK", 5)

    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        node.engine.fate = lambda: "full"
        await node.publish(*(batch(1, publisher=name) for name in QUIET))
        for number in range(100):
            await node.publish(batch(1, publisher=f"flood/{number:022}"))
        node.engine.fate = lambda: "stored"
        again = [batch(2, 1, publisher=name) for name in QUIET]
        assert codes(await node.publish(*again)) == ["after_refused"] * 4
        assert len(records_in(log, "news")[-1].numbers) <= 25

    run(test)


def test_the_oldest_records_of_a_topic_are_dropped() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log, max_bytes_per_topic=10_000).open()
        for number in range(1, 201):
            await node.publish(append_one("news", packed("x" * 100), "p", number, number - 1))
        await until(lambda: len(records_in(log, "news")) < 40)
        records = records_in(log, "news")
        # No fewer than the limit says, and the rest says all that is needed.
        assert records[-1].bytes - records[0].bytes >= 9_000
        other = await Node(log).open()
        assert codes(await other.publish(batch(200, 199))) == ["repeat"]
        assert codes(await other.publish(batch(201, 200))) == ["stored"]

    run(test)


def full(log: FakeLog, topic: str) -> bool:
    """Return True if the engine has messages of a topic."""
    return any(record.batches for record in records_in(log, topic))


async def earliest(node: Node, topic: str) -> list[str]:
    """Return the texts that a reader gets who begins at the earliest message."""
    log = await node.read_from(topic)
    found = texts_of(await node.store.read(log, node.store.earliest(log), 2**20)) if log.next else []
    node.store.reading(topic, -1)
    return found


def test_a_topic_that_keeps_its_last_message_has_no_other_one_in_the_engine() -> None:
    """Its records are tables: each lets the one before go."""

    async def test(log: FakeLog) -> None:
        tables = (TopicRetention(match="state/*", max_messages_per_topic=1),)
        node = await Node(log, topics=tables).open()
        for number in range(1, 11):
            for topic in ("state/a", "other"):
                await node.publish(append_one(topic, packed(str(number)), f"p{number % 3}", number))
        await until(lambda: len(records_in(log, "state/a")) == 1)
        assert len(records_in(log, "other")) == 10
        other = await Node(log, topics=tables).open()
        assert await earliest(other, "state/a") == await earliest(node, "state/a") == ["10"]
        assert len(await earliest(other, "other")) == 10
        # All publishers are still known.
        again = [append_one("state/a", packed("x"), f"p{number % 3}", number) for number in (8, 9, 10)]
        assert codes(await other.publish(*again)) == ["repeat"] * 3

    run(test)


def test_a_consumer_that_has_only_read_drops_what_others_have_left() -> None:
    async def test(log: FakeLog) -> None:
        tables = (TopicRetention(match="state", max_messages_per_topic=1),)
        node, reader = [await Node(log, topics=tables).open() for _ in range(2)]
        await reader.read_from("state")
        for number in range(1, 50):
            await node.publish(append_one("state", packed(str(number)), "p", number))
        await until(lambda: reader.texts("state")[-1:] == ["49"])
        purges = reader.engine.purges
        assert codes(await reader.publish(append_one("state", packed("50"), "p", 50))) == ["stored"]
        await until(lambda: reader.engine.purges == purges + 1)
        assert await earliest(node, "state") == ["50"]

    run(test)


def test_an_age_of_a_topic_is_held_by_whoever_appends() -> None:
    async def test(log: FakeLog) -> None:
        clock = Clock()
        tables = (TopicRetention(match="short", max_age_seconds=160),)
        node = await Node(log, clock, topics=tables).open()
        for number in range(1, 101):
            clock.now += 10
            for topic in ("short", "long"):
                await node.publish(append_one(topic, packed(str(number)), f"p{number % 30}", number))
        await until(lambda: len(records_in(log, "short")) < 20)
        # None goes too early, and none is there for more than a sixteenth longer.
        assert clock.now - 170 <= records_in(log, "short")[0].time <= clock.now - 160
        assert len(records_in(log, "long")) == 100

    run(test)


def test_old_messages_of_a_topic_go_when_no_more_come() -> None:
    async def test(log: FakeLog) -> None:
        clock = Clock()
        tables = (TopicRetention(match="short*", max_age_seconds=100),)
        node = await Node(log, clock, topics=tables).open()
        for topic in ("short1", "short2", "long"):
            await node.publish(*(batch(number, topic=topic) for number in (1, 2, 3)))
        clock.now += 101
        node.store.trim()
        await until(lambda: not full(log, "short1") and not full(log, "short2"))
        (record,) = records_in(log, "short1")
        # An empty record stays, so that offsets and numbers go on.
        assert (record.batches, record.offset) == ([], 3)
        assert codes(await node.publish(batch(3, topic="short1"))) == ["repeat"]
        assert len(records_in(log, "long")) == 1
        appends = node.engine.appends
        for _ in range(3):
            clock.now += 101
            node.store.trim()
            await node.store.settle()
            for _ in range(100):
                await asyncio.sleep(0)
        assert node.engine.appends == appends
        (outcome,) = await node.publish(batch(4, 3, topic="short2"))
        assert outcome.record is not None
        assert outcome.record.offset == 3

    run(test)


def test_a_trim_drops_old_messages_of_few_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MAX_AGED", 2)

    async def test(log: FakeLog) -> None:
        clock = Clock()
        node = await Node(log, clock, topics=(TopicRetention(match="*", max_age_seconds=100),)).open()
        topics = [str(number) for number in range(5)]
        await node.publish(*(batch(1, topic=topic) for topic in topics))
        clock.now += 101
        counts = []
        for _ in range(3):
            node.store.trim()
            for _ in range(100):
                await asyncio.sleep(0)
            counts.append(sum(full(log, topic) for topic in topics))
        assert counts == [3, 1, 0]

    run(test)


def test_a_topic_that_others_append_to_is_theirs() -> None:
    async def test(log: FakeLog) -> None:
        clock = Clock()
        tables = (TopicRetention(match="short", max_age_seconds=100),)
        before, after = [await Node(log, clock, topics=tables).open() for _ in range(2)]
        await before.publish(batch(1, topic="short"))
        clock.now += 60
        await after.publish(batch(2, 1, topic="short"))
        clock.now += 60
        for node in (before, after):
            node.store.trim()
            for _ in range(100):
                await asyncio.sleep(0)
        assert (before.engine.appends, before.engine.purges) == (1, 0)
        assert [record.offset for record in records_in(log, "short")] == [1]
        clock.now += 60
        before.store.trim()
        after.store.trim()
        await until(lambda: not full(log, "short"))
        assert before.engine.appends == 1

    run(test)


def test_a_reader_gets_no_old_messages_of_a_topic_that_no_consumer_knew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(log: FakeLog) -> None:
        clock = Clock()
        tables = (TopicRetention(match="short", max_age_seconds=100),)
        node = await Node(log, clock, topics=tables).open()
        await node.publish(*(batch(number, topic="short") for number in (1, 2, 3)))
        await node.store.close()
        clock.now += 101
        other = await Node(log, clock, topics=tables).open()
        purge = other.engine.purge

        async def slowly(place: Place, below: int) -> None:
            for _ in range(100):
                await asyncio.sleep(0)
            await purge(place, below)

        monkeypatch.setattr(other.engine, "purge", slowly)
        assert await earliest(other, "short") == []
        await other.publish(batch(4, 3, topic="short"))
        assert await earliest(other, "short") == ["4.0"]

    run(test)


def test_other_tables_hold_from_a_reload_on_for_what_comes() -> None:
    async def test(log: FakeLog) -> None:
        clock = Clock()
        node = await Node(log, clock).open()
        await node.publish(*(batch(number, topic=topic) for topic in "ab" for number in (1, 2)))
        tables = (
            TopicRetention(match="a", max_messages_per_topic=1),
            TopicRetention(match="b", max_age_seconds=100),
        )
        node.store.reconfigure(shared_limits(topics=tables))
        await node.publish(batch(3, topic="a"))
        clock.now += 101
        node.store.trim()
        await until(lambda: not full(log, "b"))
        assert await earliest(node, "a") == ["3.0"]
        assert await earliest(node, "b") == []

    run(test)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.sampled_from([0, 3, 11, 40, 170]))),
    st.sampled_from([1, 3, 40, 1000]),
    st.sampled_from([16.0, 160.0, 86_400.0]),
    st.booleans(),
)
@example([(0, 1, 11), (0, 1, 0), (0, 2, 11)], 40, 16.0, True)
def test_limits_by_topic_drop_no_message_too_early_and_none_too_late(
    steps: list[tuple[int, int, int]], most: int, age: float, alone: bool
) -> None:
    """At one consumer to a sixteenth of each limit; another that goes on may keep messages longer.

    Each step sends some messages, through one consumer or the other, and lets some time pass.
    """

    async def test(log: FakeLog) -> None:
        clock = Clock()
        tables = (TopicRetention(match="own", max_messages_per_topic=most, max_age_seconds=age),)
        nodes = [await Node(log, clock, topics=tables).open() for _ in range(2)]
        times: list[float] = []
        for which, count, seconds in steps:
            node = nodes[0 if alone else which]
            for _ in range(count):
                times.append(clock.now)
                await node.publish(append_one("own", packed("x"), "p", len(times)))
            clock.now += seconds
            for one in nodes:
                one.store.trim()
            for _ in range(200):
                await asyncio.sleep(0)
            kept = {
                offset for record in records_in(log, "own") for offset in range(record.offset, record.end)
            }
            end = len(times)
            assert {at for at in range(max(0, end - most), end) if times[at] >= clock.now - age} <= kept
            if alone:
                assert min(kept, default=end) >= end - most * 17 / 16
                assert all(times[at] >= clock.now - age * 17 / 16 for at in kept)

    run(test)


def test_the_oldest_records_of_all_are_dropped_and_no_newest_one() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log, max_bytes=100_000, max_bytes_per_topic=100_000).open()
        await node.publish(batch(1, topic="quiet"))
        for number in range(1, 401):
            topic = f"busy{number % 3}"
            await node.publish(append_one(topic, packed("x" * 1000), "p", number))
        await until(lambda: sum(len(one.data) for records in log.streams for one in records) < 115_000)
        assert len(records_in(log, "quiet")) == 1
        assert all(records_in(log, f"busy{number}") for number in range(3))

    run(test)


def test_an_engine_that_is_away_is_told_once() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        await node.publish(batch(1))
        node.engine.is_connected = False
        node.store.append([batch(2, 1)])
        await until_seconds(lambda: node.available == [False])
        assert node.store.log_status().failing == "there is no connection"
        engine = node.engine_status()
        assert (engine.available, engine.server, engine.unanswered > 1) == (False, "", True)
        assert 0.5 < engine.unavailable_seconds < 60
        # Earlier states of the servers say nothing of now.
        assert (engine.streams, engine.streams_without_leader, engine.replicas, engine.leaders) == (
            STREAMS + 1,
            STREAMS + 1,
            0,
            {},
        )
        node.engine.is_connected = True
        await node.store.settle()
        assert node.available == [False, True]
        engine = node.engine_status()
        assert (engine.available, engine.unavailable_seconds) == (True, 0.0)
        assert codes(node.outcomes) == ["stored", "stored"]

    run(test)


def test_the_status_of_the_engine() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        assert node.engine_status() == EngineStatus(
            id="the log",
            server="n1 2.15.1",
            streams=STREAMS + 1,
            leaders={"n0": 1, "n1": 1, "n2": 1},
            replicas=3,
            replicas_wanted=3,
        )
        node.engine.lag, node.engine.replicas, node.engine.silent = 5000, 2, {1}
        await until(lambda: node.engine_status().streams_without_leader == 1)
        await until(lambda: node.engine_status().lag_seconds > 0)
        status = node.engine_status()
        assert (status.lag_records, status.replicas, status.leaders) == (5000, 2, {"n0": 1, "n2": 1})
        node.engine.lag, node.engine.silent = 1000, set()
        await until(lambda: node.engine_status().streams_without_leader == 0)
        await until(lambda: node.engine_status().lag_seconds == 0)

    run(test)


def test_conflicts_are_counted() -> None:
    async def test(log: FakeLog) -> None:
        node, other = await Node(log).open(), await Node(log).open()
        await node.publish(batch(1))
        log.engines[0].deaf = True
        await other.publish(batch(2, 1))
        await node.publish(batch(3, 2))
        status = node.engine_status()
        assert (status.conflicts, status.unanswered) == (1, 0)

    run(test)


async def until_seconds(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


FATES: list[Fate] = ["stored", "stored", "stored", "stored", "answer lost", "late", "lost", "full"]


@examples(150)
@given(st.integers(0, 2**32), st.integers(2, 3), st.integers(1, 3))
def test_several_consumers_are_one_log(seed: int, nodes: int, topics: int) -> None:
    """Publishers send through any consumer, and again through others; every request may fail in any way.

    Each batch is stored once, in the order of its publisher, or refused and then nothing behind it is stored
    that comes after it; and all readers hear the same.
    """
    asyncio.run(_storm(random.Random(seed), nodes, topics))


class Route:
    """The batches of a publisher on a topic at a producer, which sends them through one consumer at a time.

    Attributes:
        confirmed: Numbers that were confirmed.
        refused: Numbers that were refused.
    """

    def __init__(self, topic: str, publisher: str, node: Node) -> None:
        self.topic, self.publisher, self.node = topic, publisher, node
        self.confirmed: set[int] = set()
        self.refused: set[int] = set()
        self._sent: dict[int, AppendChain] = {}

    def publish(self, number: int) -> None:
        """Publish a batch, after the last one that is not answered."""
        self._send(number, max(self._sent, default=0))

    def move(self, node: Node) -> None:
        """Send all that is not answered through another consumer, or once more through the same."""
        self.node = node
        sent, self._sent = self._sent, {}
        for number, chain in sent.items():
            self._send(number, chain.after)

    def told(self, outcome: Outcome) -> None:
        """Take an answer, unless the batch was sent again since."""
        (number,) = outcome.chain.numbers
        if self._sent.get(number) is outcome.chain:
            del self._sent[number]
            good = outcome.code is None or outcome.repeats
            (self.confirmed if good else self.refused).add(number)

    def _send(self, number: int, after: int) -> None:
        if after in self.refused:
            self.refused.add(number)
            return
        chain = batch(number, after, topic=self.topic, publisher=self.publisher)
        self._sent[number] = chain
        self.node.store.append([chain])


class Storm:
    """Several consumers whose requests fail in any way, and the routes of batches through them."""

    def __init__(self, rng: random.Random, nodes: list[Node], log: FakeLog, names: list[str]) -> None:
        self.rng, self.nodes, self.log, self.names, self.calm = rng, nodes, log, names, False
        self.routes = [Route(name, who, rng.choice(nodes)) for name in names for who in ("p", "q")]
        for node in nodes:
            node.engine.fate = self._fate
            node.engine.hidden = lambda: 0 if self.calm or rng.random() < 0.7 else rng.randrange(3)
            node.engine.steps = lambda: rng.randrange(3)
            for name in names:
                if rng.random() < 0.5:
                    node.store.opening(node.store.reading(name, 1))

    async def publish(self, count: int) -> None:
        """Publish batches, and let them take other ways now and then."""
        rng = self.rng
        for number in range(1, count):
            rng.choice(self.routes).publish(number)
            while rng.random() < 0.3:
                rng.choice(self.routes).move(rng.choice(self.nodes))
            for node in self.nodes:
                node.engine.deaf = rng.random() < 0.3
            for _ in range(rng.randrange(20)):
                await asyncio.sleep(0)
                self._tell()

    async def end(self) -> None:
        """Let all requests succeed from now on, and wait until nothing is under way."""
        self.calm = True
        self.log.do_late()
        for node in self.nodes:
            await node.store.settle()
            for name in self.names:
                topic = node.store.topic(name)
                assert isinstance(topic, SharedTopic)
                await until(lambda topic=topic: not topic.proof)  # type: ignore[misc]
        self._tell()

    def _fate(self) -> Fate:
        if self.calm:
            return "stored"
        if self.log.late and self.rng.random() < 0.3:
            self.log.do_late()
        return self.rng.choice(FATES)

    def _tell(self) -> None:
        for node in self.nodes:
            for outcome in node.outcomes:
                for route in self.routes:
                    if (outcome.chain.topic, outcome.chain.publisher) == (route.topic, route.publisher):
                        route.told(outcome)
            node.outcomes.clear()


async def _storm(rng: random.Random, count: int, topic_count: int) -> None:
    log = FakeLog(STREAMS)
    nodes = [await Node(log).open() for _ in range(count)]
    storm = Storm(rng, nodes, log, [f"topic-{number}" for number in range(topic_count)])
    await storm.publish(rng.randrange(2, 40))
    await storm.end()
    for name in storm.names:
        records = records_in(log, name)
        assert len({record.log for record in records}) <= 1
        ends = [0, *(record.end for record in records)]
        assert [record.offset for record in records] == ends[: len(records)]
        stored = [(one.publisher, one.number) for record in records for one in record.batches]
        assert len(stored) == len(set(stored)), "a batch is stored twice"
        for route in storm.routes:
            if route.topic == name:
                numbers = [number for who, number in stored if who == route.publisher]
                assert numbers == sorted(numbers), "batches are out of order"
                assert route.confirmed <= set(numbers), "a batch is confirmed and not stored"
        for node in nodes:
            await _check_reader(node, name, records)
    for node in nodes:
        await node.store.close()


async def _check_reader(node: Node, name: str, records: list[SharedRecord]) -> None:
    """Check that a reader has heard all from some place on, and can read the rest."""
    topic = node.store.topic(name)
    if not topic.readers:
        return
    assert isinstance(topic, SharedTopic)
    await until(lambda: topic.next == (records[-1].end if records else 0))
    truth = [(one.publisher, one.number) for record in records for one in record.batches]
    heard = [(one.publisher, one.number) for one in node.heard[name]]
    assert heard == truth[len(truth) - len(heard) :]
    everything: list[Record] = []
    offset = 0
    while offset < topic.next:
        everything += await node.store.read(topic, offset, 100)
        offset = everything[-1].end
    assert [(one.publisher, one.number) for one in everything] == truth


@pytest.mark.parametrize("read", [True, False])
def test_a_log_that_has_lost_its_last_messages_goes_on(read: bool) -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        await node.publish(batch(1), batch(2, 1))
        if read:
            await node.read_from("news")
        await node.publish(batch(3, 2), batch(4, 3))
        log.lose_last(place_of("news", STREAMS))
        # Known again once the answers are older for so long that no leader can give them.
        assert codes(await node.publish(batch(1, publisher="q"))) == ["stored"]
        assert [(one.offset, one.end) for one in records_in(log, "news") if one.batches] == [(0, 2), (2, 3)]
        assert node.moved == [("news", False)]
        assert codes(await node.publish(batch(3, 2))) == ["stored"]

    run(test)
