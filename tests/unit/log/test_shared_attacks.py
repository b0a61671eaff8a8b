"""The shared log in situations that somebody made up to break it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.support.fake_engine import FakeLog, Fate
from tests.support.messages import append_one, packed
from tests.support.stores import Clock, batch
from wsqueue.log.engine import Conflict, Place, Stored, place_of
from wsqueue.log.engine_reader import EngineReader
from wsqueue.log.seen import Seen
from wsqueue.log.shared import SWEEP_SECONDS
from wsqueue.protocol.packed import Packed

from .test_shared import STREAMS, Node, codes, records_in, run, until


def test_no_room_at_a_consumer_that_knows_an_old_log() -> None:
    async def test(log: FakeLog) -> None:
        first, second = await Node(log).open(), await Node(log).open()
        second.engine.deaf = True
        await second.publish(batch(1))
        await first.publish(batch(2, 1))
        # Its confirmation is lost with the first consumer, and the disks are full meanwhile.
        second.engine.fate = lambda: "full"
        assert codes(await second.publish(batch(2, 1), batch(3, 2))) == ["repeat", "full"]

    run(test)


def test_no_room_after_an_append_that_may_be_done_leaves_the_consumer_available() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        fates: list[Fate] = ["late"]
        node.engine.fate = lambda: fates.pop() if fates else "full"
        node.store.append([batch(1)])
        await until(lambda: node.engine.appends > 3)
        await asyncio.sleep(1.2)
        assert node.available == []
        assert node.store.log_status().failing == "no room"
        node.engine.fate = lambda: "stored"
        await node.store.settle()
        assert codes(node.outcomes) == ["stored"]

    run(test)


def test_a_search_at_a_server_that_is_behind_skips_nothing() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        for number in range(1, 9):
            await node.publish(append_one("news", packed("x" * 100), "p", number, number - 1))
        topic = node.store._topic("news")
        reader = EngineReader(node.engine, asyncio.Semaphore(1), node._pause)
        read, reads = node.engine.read, 0

        async def behind(place: Place, seq: int, max_bytes: int) -> list[Stored]:
            nonlocal reads
            reads += 1
            found = await read(place, seq, max_bytes)
            # The first request goes to a server that has only half of the log.
            return [one for one in found if one.seq <= 4] if reads == 1 else found

        node.engine.read = behind  # type: ignore[method-assign]
        records = await reader.read(topic, 6, 200)
        assert [record.offset for record in records][:1] == [6]

    run(test)


def test_a_record_is_no_larger_than_the_servers_take() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        headers: list[dict[str, str] | None] = [{"trace": "x" * 1000}] * 900
        headed = Packed([1] * 900, memoryview(b"x" * 900), True, headers)
        empty = packed(*[""] * 900_000)
        await node.publish(
            append_one("news", packed("x" * 500_000), "p", 1),
            append_one("news", headed, "p", 2, 1),
            append_one("news", packed("x" * 500_000), "p", 3, 2),
            append_one("news", empty, "p", 4, 3),
        )
        sizes = [len(one.data) for one in log.streams[place_of("news", STREAMS).stream]]
        assert max(sizes) < 1024 * 1024 + 300 * 1024

    run(test)


def test_a_conflict_that_shows_nothing_new_is_not_tried_without_end() -> None:
    async def test(log: FakeLog) -> None:
        pauses: list[float] = []
        node = await Node(log).open()
        await node.publish(batch(1))

        async def under_way(place: Place, data: bytes, after: int) -> int:
            raise Conflict("wrong last sequence")

        pause = node.store._pause

        async def noted(seconds: float) -> None:
            if seconds < SWEEP_SECONDS:
                pauses.append(seconds)
            await pause(seconds)

        node.store._pause = noted
        node.engine.append = under_way  # type: ignore[method-assign]
        node.store.append([batch(2, 1)])
        await until(lambda: len(pauses) == 30)
        assert sum(pauses[-10:]) > 1

    run(test)


def test_streams_that_are_made_anew_are_followed() -> None:
    async def test(log: FakeLog) -> None:
        first, second = await Node(log).open(), await Node(log).open()
        for number in range(1, 6):
            await first.publish(batch(number, number - 1))
        await second.read_from("news")
        for _ in range(300):
            await asyncio.sleep(0)
        log.expire()
        log.ends = [0] * STREAMS
        await first.publish(batch(6, 5))
        await until(lambda: second.texts("news")[-1:] == ["6.0"] or ("news", True) in second.moved)

    run(test)


def test_one_hole_at_full_speed_is_missed_once() -> None:
    seen, last, missed = Seen(), 0, 0
    for _sweep in range(20):
        for _ in range(30_000):
            last += 1
            if last != 5:
                seen.note(last)
        missed += seen.missed(last)
    assert missed <= 2


def test_a_record_of_somebody_else_does_not_keep_the_log_large() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log, max_bytes=100_000).open()
        for stream, records in enumerate(log.streams):
            log.ends[stream] += 1
            records.append(Stored(log.ends[stream], b"not ours", "somebody"))
        for number in range(1, 400):
            await node.publish(append_one("news", packed("x" * 1000), "p", number, number - 1))
        await until(lambda: sum(len(one.data) for records in log.streams for one in records) <= 110_000)

    run(test)


def test_notices_of_nobody() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        notices: list[list[Any]] = [["news", -100, 3], ["news", 0, -3], ["news", 99, 3]]
        for notice in notices:
            node.engine.on_notice(msgspec.msgpack.encode([notice]))
        assert codes(await node.publish(batch(1))) == ["stored"]

    run(test)


def test_the_log_of_a_topic_that_was_forgotten_in_part_and_is_read_does_not_expire() -> None:
    async def test(log: FakeLog) -> None:
        clock = Clock()
        node = await Node(log, clock).open()
        topic = node.store._topic((await node.read_from("news")).name)
        topic.close()
        before = len(records_in(log, "news"))
        clock.now += 43_201
        node.store.trim()
        await until(lambda: len(records_in(log, "news")) == before + 1)

    run(test)


def test_a_leader_that_is_behind_makes_no_gap() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        for number in range(1, 9):
            await node.publish(append_one("news", packed("x" * 100), "p", number, number - 1))
        topic = node.store._topic("news")
        reader = EngineReader(node.engine, asyncio.Semaphore(1), node._pause)
        (first, *_) = await reader.read(topic, 5, 1)
        assert first.offset == 5
        # For the next requests, one to a server with the stream and one to a leader that has lost the others.
        hidden = [0, 2, 2]
        node.engine.hidden = lambda: hidden.pop() if hidden else 0
        assert [record.offset for record in await reader.read(topic, 6, 2000)] == [6, 7]

    run(test)


def test_a_topic_with_a_record_of_somebody_else_is_no_failure_of_the_engine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        place = place_of("news", STREAMS)
        log.ends[place.stream] += 1
        log.streams[place.stream].append(Stored(log.ends[place.stream], b"not ours", place.token))
        node.store.append([batch(1)])
        await node.store.settle()
        await asyncio.sleep(1.2)
        assert node.available == []
        assert codes(node.outcomes) == ["full"]
        assert node.outcomes[0].reason.startswith("the shared log has a record that is none of wsqueue")
        assert [record.message for record in caplog.records if "topic unusable" in record.message] == [
            'topic unusable topic=news reason="the shared log has a record that is none of wsqueue: Expected'
            ' `array`, got `int`"'
        ]
        log.expire()
        # It passes for the first batch of its publisher no more than any other.
        assert codes(await node.publish(batch(2, 1))) == ["after_refused"]
        assert codes(await node.publish(batch(3))) == ["stored"]

    run(test)


def test_a_writer_with_a_wrong_clock_lets_no_log_expire_that_is_read() -> None:
    async def test(log: FakeLog) -> None:
        ahead, clock = Clock(), Clock()
        ahead.now += 864_000
        writer, reader = await Node(log, ahead).open(), await Node(log, clock).open()
        await reader.read_from("news")
        await writer.publish(batch(1))
        await until(lambda: reader.texts("news") == ["1.0"])
        clock.now += 43_201
        before = len(records_in(log, "news"))
        reader.store.trim()
        await until(lambda: len(records_in(log, "news")) == before + 1)
        reader.store.trim()
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(records_in(log, "news")) == before + 1

    run(test)
