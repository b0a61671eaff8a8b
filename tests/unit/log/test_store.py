"""Every store keeps the same promises, in memory and on disk."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from wsqueue.config.model import Retention, TopicRetention
from wsqueue.log import database, ledger, logs
from wsqueue.log.records import RECORD_OVERHEAD_BYTES, TOPIC_OVERHEAD_BYTES, Record
from wsqueue.log.store import AppendChain, Outcome
from wsqueue.protocol.packed import Headers, Packed
from wsqueue.report.report import LogStatus

from ...support.examples import examples
from ...support.messages import append_one, deliver_one, packed
from ...support.stores import Clock, Logs, batch, delivered, limits

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("mode", ["memory", "sqlite"])]

SIZE = Logs().publish("a", "x" * 100).size


class Running(Logs):
    """A store that is open."""

    async def publish_all(self, topic: str, *data: str | bytes) -> Record:
        (outcome,) = await self.stored(append_one(topic, packed(*data)))
        assert outcome.record is not None
        return outcome.record

    async def kept(self, topic: str) -> list[int]:
        """Return the offsets of the messages that are kept of a topic."""
        offsets = await self.found(topic)
        log = self.store.topic(topic)
        assert self.store.earliest(log) == (offsets[0] if offsets else log.next)
        return offsets

    async def found(self, topic: str) -> list[int]:
        """Return the same while a thread may trim."""
        records = await self.store.read(self.store.topic(topic), 0, 2**40)
        return [offset for record in records for offset in range(record.offset, record.end)]

    async def trimmed(self, **expected: list[int]) -> None:
        """Trim, and wait until these offsets are kept of topics; a disk is trimmed by a thread."""
        self.store.trim()
        async with asyncio.timeout(5):
            while {topic: await self.found(topic) for topic in expected} != expected:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def running(
    mode: str, directory: Path | None = None, clock: Clock | None = None, **limited: Any
) -> AsyncIterator[Running]:
    with tempfile.TemporaryDirectory() as temporary:
        logs = Running(
            config=limits(mode=mode, directory=directory or Path(temporary), **limited), clock=clock
        )
        await logs.store.open()
        try:
            yield logs
        finally:
            await logs.store.close()


class TestOffsets:
    """Each message has its place."""

    async def test_time_never_falls_within_a_topic(self, mode: str) -> None:
        async with running(mode) as logs:
            times = []
            for now in (1000.0, 900.0, 1000.5, 950.0):
                logs.clock.now = now
                times.append((await logs.publish_all("news", "x")).time)
            assert times == [1000.0, 1000.0, 1000.5, 1000.5]

    async def test_reading_from_an_offset(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for cache_bytes in (0, 2**30):
            monkeypatch.setattr("wsqueue.log.sqlite.CACHE_BYTES", cache_bytes)
            async with running(mode) as logs:
                records = [await logs.publish_all("news", *data) for data in ("abc", "d", "ef")]
                log = logs.store.topic("news")
                for offset, first in ((0, 0), (2, 0), (3, 1), (4, 2), (5, 2)):
                    assert await logs.store.read(log, offset, 2**40) == records[first:]
                assert await logs.store.read(log, 6, 2**40) == []
                assert await logs.store.read(log, 0, 1) == records[:1]
                assert logs.store.in_memory(log, 0) == (mode == "memory" or cache_bytes > 0)
                assert logs.store.in_memory(log, 6)

    async def test_the_offset_of_a_time(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for cache_bytes in (0, 700, 2**30):
            monkeypatch.setattr("wsqueue.log.sqlite.CACHE_BYTES", cache_bytes)
            async with running(mode) as logs:
                log = logs.store.topic("news")
                assert await logs.store.offset_at(log, 0) == 0
                for now in (1000.0, 1010.0, 1010.0, 1020.0):
                    logs.clock.now = now
                    await logs.publish_all("news", "x", "y")
                expected = {0.0: 0, 1000.0: 0, 1000.1: 2, 1010.0: 2, 1010.1: 6, 1020.0: 6, 1020.1: 8}
                assert {moment: await logs.store.offset_at(log, moment) for moment in expected} == expected


async def test_texts_bytes_and_headers_are_kept_as_they_came(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsqueue.log.sqlite.CACHE_BYTES", 0)
    headers: list[Headers | None] = [{"id": "ñ"}, None]
    sent = [
        packed("", "\U0001f642\0\uffff"),
        packed(bytes(range(256)), b""),
        packed("a", "b", headers=headers),
        packed(b"\xff", b"b", headers=headers),
        # No publisher of ours sends such a text.
        Packed([1, 2], memoryview(b"\xff\xc3\xb1")),
    ]
    async with running(mode, tmp_path) as logs:
        await logs.stored(*(append_one("news", messages) for messages in sent))
    async with running(mode, tmp_path) as logs:
        records = await logs.store.read(logs.store.topic("news"), 0, 2**40)
        assert [delivered(record).messages for record in records] == sent


class TestNumbers:
    """A batch is stored once, and not before one that it comes after."""

    async def codes(self, logs: Logs, *batches: AppendChain) -> list[str]:
        await logs.stored(*batches)
        return [logs.outcome_of(one).partition(" at ")[0] for one in batches]

    @pytest.mark.parametrize("after", [4, 8])
    async def test_a_batch_after_one_that_did_not_come_is_refused(self, mode: str, after: int) -> None:
        async with running(mode) as logs:
            await logs.stored(batch(3))
            (outcome,) = await logs.stored(batch(9, after=after))
            assert (outcome.record, outcome.code) == (None, "after_refused")
            assert outcome.reason == "a batch before it was refused, or never came"
            # It counts as not come itself, and may come again.
            again = batch(10, after=9), batch(after, after=3), batch(9, after)
            assert await self.codes(logs, *again) == ["after_refused", "stored", "stored"]

    @pytest.mark.parametrize("problem", ["invalid", "topic_too_long"])
    async def test_a_wrong_batch_is_refused_each_time_and_counts_as_not_come(
        self, mode: str, problem: str
    ) -> None:
        async with running(mode) as logs:
            await logs.stored(batch(1))
            wrong = msgspec.structs.replace(batch(2, after=1), problem=problem)
            outcomes = await logs.stored(wrong, wrong, batch(3, after=2), batch(4))
            assert [outcome.code for outcome in outcomes] == [problem, problem, "after_refused", None]
            assert all(bool(outcome.reason) == bool(outcome.code) for outcome in outcomes)
            # Even when a later one is there.
            assert (await logs.stored(wrong))[0].code == problem

    async def test_behind_a_broken_batch_of_a_new_publisher_nothing_is_stored(self, mode: str) -> None:
        async with running(mode) as logs:
            wrong = msgspec.structs.replace(batch(1), problem="invalid")
            outcomes = await logs.stored(wrong, batch(2, after=1), batch(3))
            assert [outcome.code for outcome in outcomes] == ["invalid", "after_refused", None]

    @pytest.mark.parametrize("before", range(7))
    async def test_the_batches_of_a_chain_that_were_not_stored_are_stored_together(
        self, mode: str, before: int
    ) -> None:
        """Whichever of them came before, alone or in other chains."""
        texts = [str(number) for number in range(1, 7)]
        chain = AppendChain("p", [1, 2, 4, 7], 0, "news", [2, 1, 1, 2], packed(*texts))
        async with running(mode) as logs:
            if before:
                await logs.stored(batch(before))
            (outcome,) = await logs.stored(chain)
            repeats = sum(number <= before for number in (1, 2, 4))
            skipped = sum([2, 1, 1][:repeats])
            assert (outcome.repeats, outcome.code) == (repeats, None)
            assert outcome.record is not None
            deliver = delivered(outcome.record)
            assert (deliver.numbers, deliver.counts) == ([1, 2, 4, 7][repeats:], [2, 1, 1, 2][repeats:])
            assert deliver.messages.unpack() == texts[skipped:]
            (again,) = await logs.stored(chain)
            assert (again.repeats, again.record, again.code) == (4, None, None)

    async def test_the_numbers_of_quiet_publishers_are_forgotten(
        self, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logs, "MAX_NUMBERS", 2)
        async with running(mode) as running_logs:
            a, b, c = (batch(5, publisher=name) for name in "abc")
            await running_logs.stored(a, b, batch(6, publisher="a"), c)
            again = [batch(5, publisher=name) for name in "acb"]
            assert await self.codes(running_logs, *again) == ["a repeat", "a repeat", "stored"]

    async def test_a_flood_of_one_publisher_does_not_make_others_strangers(
        self, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logs, "MAX_NUMBERS", 10)
        async with running(mode) as running_logs:
            quiet, again = ([batch(5, publisher=name) for name in "abc"] for _ in range(2))
            await running_logs.stored(*quiet)
            for number in range(100):
                flood = append_one(f"topic {number}", packed("x"), "flood", 1)
                assert await self.codes(running_logs, flood) == ["stored"]
            assert await self.codes(running_logs, *again) == ["a repeat"] * 3

    @pytest.mark.parametrize("bound", ["pairs", "bytes"])
    async def test_a_flood_of_one_name_does_not_make_others_strangers(
        self, mode: str, bound: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with running(mode) as running_logs:
            if bound == "pairs":
                monkeypatch.setattr(logs, "MAX_NUMBERS", 10)
            else:
                running_logs.store.index.limit = 20_000
            names = ["billing/a", "billing/b", "shop/c", "d"]
            quiet, again = ([batch(5, publisher=name) for name in names] for _ in range(2))
            await running_logs.stored(*quiet)
            for number in range(100):
                flood = batch(5, publisher=f"flood/{number:022}")
                assert await self.codes(running_logs, flood) == ["stored"]
            assert await self.codes(running_logs, *again) == ["a repeat"] * 4
            # It has forgotten its own.
            assert await self.codes(running_logs, batch(5, publisher=f"flood/{0:022}")) == ["stored"]


class TestLimits:
    """The limit that is reached first drops the oldest messages."""

    async def test_messages_of_a_topic(self, mode: str) -> None:
        async with running(mode, max_messages_per_topic=3) as logs:
            for data, kept in (("abc", [0, 1, 2]), ("d", [3]), ("ef", [3, 4, 5])):
                await logs.publish_all("news", *data)
                assert await logs.kept("news") == kept
            await logs.publish_all("other", "x")
            assert await logs.kept("news") == [3, 4, 5]

    async def test_bytes_of_a_topic(self, mode: str) -> None:
        async with running(mode, max_bytes_per_topic=3 * SIZE) as logs:
            await logs.stored(*(append_one("a", packed("x" * 100)) for _ in range(3)))
            assert await logs.kept("a") == [0, 1, 2]
            await logs.publish_all("a", "x" * 101)
            assert await logs.kept("a") == [2, 3]

    async def test_bytes_of_all_topics(self, mode: str) -> None:
        async with running(mode, max_bytes=4 * SIZE + 3 * TOPIC_OVERHEAD_BYTES) as logs:
            for topic in "abca":
                await logs.publish_all(topic, "x" * 100)
            assert [await logs.kept(topic) for topic in "abc"] == [[0, 1], [0], [0]]
            assert logs.store.log_status().bytes == 4 * SIZE + 3 * TOPIC_OVERHEAD_BYTES
            await logs.publish_all("c", "x" * 100)
            # The oldest of all goes, of whatever topic.
            assert [await logs.kept(topic) for topic in "abc"] == [[1], [0], [0, 1]]

    async def test_topics_with_messages(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger, "MAX_TOPICS", 2)
        async with running(mode) as logs:
            for topic in "abac":
                await logs.publish_all(topic, "x")
            assert [await logs.kept(topic) for topic in "abc"] == [[1], [], [0]]

    async def test_a_batch_larger_than_all_may_be_is_delivered_and_not_kept(self, mode: str) -> None:
        async with running(mode, max_bytes=1000) as logs:
            for offset in range(2):
                assert (await logs.publish_all("news", "x" * 1000)).offset == offset
                assert await logs.kept("news") == []
            assert logs.store.log_status().bytes == 0

    async def test_a_message_of_the_future_does_not_keep_the_others(
        self, mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It was stored while the clock was a day ahead, before a start with the right time."""
        async with running(mode, tmp_path, max_age_seconds=10**6) as logs:
            await logs.publish_all("a", "x")
            logs.clock.now += 86_400
            for topic in "abba":
                await logs.publish_all(topic, "x")
        clock = Clock()
        clock.now += 5
        async with running(mode, tmp_path, clock, max_age_seconds=10) as logs:
            assert "messages dated back" in caplog.text
            assert "ahead_seconds=86395.000" in caplog.text
            await logs.publish_all("a", "x")
            a, b = (logs.store.topic(name) for name in "ab")
            times = [record.time for record in await logs.store.read(a, 0, 2**40)]
            assert times == [1000.0, 1005.0, 1005.0, 1005.0]
            assert await logs.store.offset_at(a, 1003.0) == 1
            await logs.trimmed(a=[0, 1, 2, 3], b=[0, 1])
            clock.now += 8
            await logs.publish_all("c", "x")
            await logs.trimmed(a=[1, 2, 3], b=[0, 1], c=[0])
            clock.now += 8
            await logs.trimmed(a=[], b=[], c=[0])
            assert (a.next, b.next) == (4, 2)

    async def test_age(self, mode: str) -> None:
        async with running(mode, max_age_seconds=10) as logs:
            for topic in ("a", "b", "a"):
                await logs.publish_all(topic, "x")
                logs.clock.now += 5
            assert [await logs.kept(topic) for topic in "ab"] == [[0, 1], [0]]
            await logs.trimmed(a=[1], b=[0])
            logs.clock.now += 10.5
            await logs.trimmed(a=[], b=[])
            log = logs.store.topic("a")
            assert (log.first, log.next) == (2, 2)

    async def test_other_limits_hold_from_a_reload_on(self, mode: str) -> None:
        async with running(mode) as logs:
            await logs.stored(*(append_one(topic, packed("x")) for topic in "ababa"))
            logs.store.reconfigure(msgspec.structs.replace(logs.config, max_messages_per_topic=1))
            await logs.trimmed(a=[2], b=[1])
            logs.store.reconfigure(msgspec.structs.replace(logs.config, max_age_seconds=1))
            logs.clock.now += 2
            await logs.trimmed(a=[], b=[])
            assert logs.store.log_status().limit_bytes == 2**40


class TestLimitsByTopic:
    """The first table that matches a topic changes its limits, in a file as in memory."""

    @pytest.fixture(autouse=True, params=[0, 2**30])
    def cache(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wsqueue.log.sqlite.CACHE_BYTES", request.param)

    async def test_the_first_table_that_matches_holds(self, mode: str) -> None:
        tables = [
            TopicRetention(match="state/a", max_messages_per_topic=2),
            TopicRetention(match="state/*", max_messages_per_topic=1),
            TopicRetention(match="*", max_bytes_per_topic=3 * SIZE + 30),
        ]
        async with running(mode, max_messages_per_topic=5, topics=tables) as logs:
            for topic in ("state/a", "state/b", "state", "other"):
                for _ in range(4):
                    await logs.publish_all(topic, "x" * 100)
            kept = {topic: await logs.kept(topic) for topic in ("state/a", "state/b", "state", "other")}
            assert kept == {"state/a": [2, 3], "state/b": [3], "state": [1, 2, 3], "other": [1, 2, 3]}
            # Limits that a table does not give are those of all topics.
            await logs.publish_all("state/b", *"vwxyz")
            await logs.publish_all("other", *"vwxyz")
            assert (await logs.kept("state/b"), await logs.kept("other")) == ([*range(4, 9)], [*range(4, 9)])

    async def test_a_shorter_age(self, mode: str) -> None:
        tables = [TopicRetention(match="short", max_age_seconds=10)]
        async with running(mode, max_age_seconds=100, topics=tables) as logs:
            for topic in ("long", "short", "long", "short"):
                await logs.publish_all(topic, "x")
                logs.clock.now += 4
            await logs.trimmed(long=[0, 1], short=[1])
            logs.clock.now += 7
            # An append is enough, as for the age of all topics.
            await logs.publish_all("long", "x")
            await logs.trimmed(long=[0, 1, 2], short=[])
            await logs.publish_all("short", "x")
            assert await logs.kept("short") == [2]
            logs.clock.now += 90
            await logs.trimmed(long=[2], short=[])

    async def test_a_longer_age_holds_nobody_up(self, mode: str) -> None:
        tables = [TopicRetention(match="long*", max_age_seconds=1000)]
        async with running(mode, max_age_seconds=10, topics=tables) as logs:
            for topic in ("long", "short", "long", "longer", "short"):
                await logs.publish_all(topic, "x")
            logs.clock.now += 11
            await logs.trimmed(long=[0, 1], longer=[0], short=[])
            for topic in ("short", "long"):
                await logs.publish_all(topic, "x")
            logs.clock.now += 11
            await logs.trimmed(long=[0, 1, 2], longer=[0], short=[])
            logs.clock.now += 979
            await logs.trimmed(long=[2], longer=[], short=[])
            logs.clock.now += 12
            await logs.trimmed(long=[], longer=[], short=[])

    async def test_the_oldest_of_all_topics_go_first(self, mode: str) -> None:
        """Also those that were passed over because their topic keeps them longer."""
        tables = [TopicRetention(match="long", max_age_seconds=1000)]
        room = 4 * SIZE + 30 + 2 * TOPIC_OVERHEAD_BYTES
        async with running(mode, max_age_seconds=10, max_bytes=room, topics=tables) as logs:
            for topic in ("long", "long", "a"):
                await logs.publish_all(topic, "x" * 100)
            logs.clock.now += 11
            await logs.trimmed(long=[0, 1], a=[])
            for topic in ("a", "a", "long"):
                await logs.publish_all(topic, "x" * 100)
            assert (await logs.kept("long"), await logs.kept("a")) == ([1, 2], [1, 2])
            await logs.publish_all("a", "x" * 100)
            await logs.publish_all("a", "x" * 100)
            assert (await logs.kept("long"), await logs.kept("a")) == ([2], [2, 3, 4])

    async def test_dropped_records_among_those_that_were_passed_over(self, mode: str) -> None:
        tables = [
            TopicRetention(match="state", max_messages_per_topic=1, max_age_seconds=1000),
            TopicRetention(match="long", max_age_seconds=1000),
        ]
        async with running(mode, max_age_seconds=10, topics=tables) as logs:
            for topic in ("long", "state", "a", "long", "state"):
                await logs.publish_all(topic, "x" * 100)
            logs.clock.now += 11
            await logs.trimmed(long=[0, 1], state=[1], a=[])
            room = SIZE + 30 + TOPIC_OVERHEAD_BYTES
            logs.store.reconfigure(msgspec.structs.replace(logs.config, max_bytes=room))
            await logs.trimmed(long=[], state=[1])

    async def test_records_after_all_others_have_gone(self, mode: str) -> None:
        """A file gives their ids again, and they must not pass for those that were passed over."""
        tables = [TopicRetention(match="long", max_age_seconds=20)]
        async with running(mode, max_age_seconds=10, topics=tables) as logs:
            for _ in range(5):
                await logs.publish_all("long", "x")
            logs.clock.now += 11
            await logs.trimmed(long=[*range(5)])
            logs.clock.now += 11
            await logs.trimmed(long=[])
            await logs.publish_all("short", "x")
            logs.clock.now += 11
            await logs.trimmed(short=[])

    async def test_tables_hold_from_a_reload_on(self, mode: str) -> None:
        async with running(mode, max_age_seconds=10) as logs:

            def reload(*tables: TopicRetention) -> None:
                logs.store.reconfigure(msgspec.structs.replace(logs.config, topics=tables))

            await logs.stored(*(append_one(topic, packed("x")) for topic in "abababc"))
            reload(TopicRetention(match="a", max_messages_per_topic=1))
            await logs.trimmed(a=[2], b=[0, 1, 2], c=[0])
            reload(
                TopicRetention(match="b", max_age_seconds=30), TopicRetention(match="*", max_age_seconds=5)
            )
            logs.clock.now += 6
            await logs.trimmed(a=[], b=[0, 1, 2], c=[])
            await logs.publish_all("a", "x", "y")
            logs.clock.now += 11
            await logs.trimmed(a=[], b=[0, 1, 2])
            # Those that were passed over are as old as they are.
            reload()
            await logs.trimmed(b=[])
            await logs.publish_all("a", "x", "y")
            assert await logs.kept("a") == [5, 6]

    async def test_they_hold_from_a_restart_on(self, mode: str, tmp_path: Path) -> None:
        async with running(mode, tmp_path) as logs:
            await logs.stored(*(append_one(topic, packed("x")) for topic in "abab"))
        clock = Clock()
        clock.now += 20
        tables = [
            TopicRetention(match="a", max_messages_per_topic=1),
            TopicRetention(match="b", max_age_seconds=10),
        ]
        async with running(mode, tmp_path, clock, topics=tables) as logs:
            await logs.trimmed(a=[1], b=[])

    async def test_topics_that_have_gone_are_forgotten(
        self, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However long their messages might have stayed."""
        monkeypatch.setattr(ledger, "MAX_EMPTY_TOPICS", 100)
        tables = [TopicRetention(match="*", max_age_seconds=10**8)]
        topics = 5_000
        async with running(mode, max_bytes=10_000, topics=tables) as logs:
            tracemalloc.start()
            try:
                for number in range(topics):
                    logs.store.append([append_one(f"{'x' * 200}{number}", packed("x"))])
                    if not number % 1000:
                        await logs.store.settle()
                        await asyncio.sleep(0)
                await logs.store.settle()
                logs.outcomes.clear()
                assert tracemalloc.get_traced_memory()[0] < 1_500_000
            finally:
                tracemalloc.stop()

    async def test_much_is_dropped_in_steps(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database, "TRIM_RECORDS", 3)
        monkeypatch.setattr(logs, "AGED_RECORDS", 3)
        monkeypatch.setattr(database, "DUE_TOPICS", 2)
        tables = [
            TopicRetention(match="short*", max_age_seconds=10),
            TopicRetention(match="long*", max_age_seconds=1000),
        ]
        async with running(mode, max_age_seconds=50, topics=tables) as running_logs:
            topics = [f"{name}{number}" for name in ("long", "short", "other") for number in range(5)]
            for _ in range(3):
                await running_logs.stored(*(append_one(topic, packed("x")) for topic in topics))
            running_logs.clock.now += 11
            for expected in ([0, 1, 2], []):
                for _ in range(20):
                    running_logs.store.trim()
                kept = {topic: [] if topic.startswith("short") else [0, 1, 2] for topic in topics}
                kept |= {topic: expected for topic in topics if topic.startswith("other")}
                await running_logs.trimmed(**kept)
                running_logs.clock.now += 50


class TestForgottenTopics:
    """A topic without messages may be forgotten, its offsets must not come again."""

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger, "MAX_EMPTY_TOPICS", 2)

    async def test_a_new_topic_begins_there_too(self, mode: str) -> None:
        async with running(mode, max_age_seconds=10) as logs:
            await logs.publish_all("a", *"xyz")
            logs.clock.now += 11
            await logs.trimmed(a=[])
            for name in "bcd":
                await logs.publish_all(name, "x")
            logs.clock.now += 11
            await logs.trimmed(d=[])
            for number in range(20):
                logs.store.topic(str(number))
            log = logs.store.topic("e")
            assert log.start == log.first == log.next == log.assigned == 3

    async def test_a_topic_with_a_reader_stays(self, mode: str) -> None:
        async with running(mode) as logs:
            read = logs.store.reading("read", 1)
            logs.store.reading("read", 1)
            logs.store.reading("read", -1)
            for number in range(100):
                logs.store.topic(str(number))
            assert logs.store.topic("read") is read
            logs.store.reading("read", -1)
            for number in range(100):
                logs.store.topic(str(number))
            assert logs.store.topic("read") is not read


class TestRestart:
    """A clean restart keeps everything."""

    async def test_it_goes_on_where_it_was(self, mode: str, tmp_path: Path) -> None:
        async with running(mode, tmp_path, max_messages_per_topic=3) as logs:
            await logs.stored(batch(3, count=2), batch(4), batch(5, topic="ñ\0🙂", publisher="q"), batch(6))
            epoch, status = logs.store.epochs.current, logs.store.log_status()
            records = {
                topic: await logs.store.read(logs.store.topic(topic), 0, 2**40) for topic in ("news", "ñ\0🙂")
            }
        async with running(mode, tmp_path, max_messages_per_topic=3) as logs:
            assert logs.store.epochs.current.id != epoch.id
            assert logs.store.epochs.number(epoch.id) == epoch.number
            assert msgspec.structs.replace(logs.store.log_status(), commit_seconds=0, free_bytes=0) == (
                msgspec.structs.replace(status, commit_seconds=0, free_bytes=0)
            )
            for topic, expected in records.items():
                assert await logs.store.read(logs.store.topic(topic), 0, 2**40) == expected
            log = logs.store.topic("news")
            assert (log.start, logs.store.earliest(log), log.next) == (0, 2, 4)
            repeats = batch(6), batch(5, topic="ñ\0🙂", publisher="q")
            assert [outcome.record for outcome in await logs.stored(*repeats)] == [None, None]
            assert (await logs.publish_all("news", "x")).offset == 4

    async def test_with_lower_limits_less_is_kept(self, mode: str, tmp_path: Path) -> None:
        async with running(mode, tmp_path) as logs:
            await logs.stored(*(append_one(topic, packed("x" * 100)) for topic in "ab" * 5))
        async with running(mode, tmp_path, max_messages_per_topic=2) as logs:
            await logs.trimmed(a=[3, 4], b=[3, 4])
        async with running(mode, tmp_path, max_bytes=SIZE + TOPIC_OVERHEAD_BYTES) as logs:
            await logs.trimmed(a=[], b=[4])

    async def test_an_empty_store_leaves_a_usable_directory(self, mode: str, tmp_path: Path) -> None:
        directory = tmp_path / "state" / "log"
        for _ in range(2):
            async with running(mode, directory) as logs:
                assert logs.store.log_status().topics == 0
        assert directory.stat().st_mode & 0o777 == 0o700


async def test_the_status_grows_and_shrinks(mode: str) -> None:
    async with running(mode, max_bytes=100_000) as logs:
        empty = logs.store.log_status()
        known = LogStatus(mode=mode, topics=0, bytes=0, limit_bytes=100_000)
        assert msgspec.structs.replace(empty, free_bytes=-1) == known
        for topic in ("news", "sport", "news"):
            await logs.publish_all(topic, "x" * 1000)
        status = logs.store.log_status()
        assert (status.topics, status.failing, status.pending_bytes) == (2, "", 0)
        assert 3000 < status.bytes < 10_000
        assert not logs.store.congested
        logs.clock.now += 4000
        await logs.trimmed(news=[], sport=[])
        # The topics are still known, because their offsets go on.
        assert (logs.store.log_status().topics, logs.store.log_status().bytes) == (2, 0)
        commits = logs.store.commit_seconds()
        assert (commits is None) == (mode == "memory")


async def test_the_rules_do_not_forget_a_topic_that_is_new(mode: str) -> None:
    assert ledger.FORGET_TRIES < ledger.MAX_EMPTY_TOPICS


class KeptBatch(msgspec.Struct):
    """A kept batch in the model."""

    topic: str
    offset: int
    count: int
    size: int
    time: float


TABLES = st.lists(
    st.builds(
        TopicRetention,
        match=st.sampled_from(["a", "b", "a*", "c*", "*"]),
        max_bytes_per_topic=st.none() | st.integers(400, 2000),
        max_messages_per_topic=st.integers(1, 6),
        max_age_seconds=st.none() | st.sampled_from([3.0, 10.0, 30.0]),
    ),
    max_size=3,
)


class Model(RuleBasedStateMachine):
    """Any history of a store, next to one list in which the oldest come first."""

    mode: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.closing = contextlib.AsyncExitStack()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize(
        messages=st.integers(1, 6),
        topic_bytes=st.integers(400, 2000),
        all_bytes=st.integers(1000, 8000) | st.just(30_000),
        tables=TABLES,
    )
    def begin(self, messages: int, topic_bytes: int, all_bytes: int, tables: list[TopicRetention]) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.limits = limits(
            mode=self.mode,
            directory=Path(self.directory.name),
            max_bytes=all_bytes,
            max_bytes_per_topic=topic_bytes,
            max_messages_per_topic=messages,
            max_age_seconds=10,
            topics=tables,
        )
        self.order: list[KeptBatch] = []
        self.used: dict[str, int] = {}
        self.last: dict[tuple[str, str], int] = {}
        self.unsure: set[tuple[str, str]] = set()
        self.open()

    def open(self) -> None:
        async def opened() -> None:
            self.logs = Running(config=self.limits, clock=self.clock)
            await self.logs.store.open()

        self.run(opened())
        self.trim()

    def teardown(self) -> None:
        if hasattr(self, "logs"):
            self.run(self.logs.store.close())
            self.directory.cleanup()
        self.runner.close()

    @rule(set_back=st.sampled_from([0.0, 0.0, 3.0, 1000.0]))
    def restart(self, set_back: float) -> None:
        self.run(self.logs.store.close())
        # Only a start may find another time, before that of the messages; they get its time then.
        self.clock.now -= set_back
        for kept in self.order:
            kept.time = min(kept.time, self.clock.now)
        # The numbers of a topic that was forgotten are not kept.
        known = {kept.topic for kept in self.order}
        self.unsure |= {owner for owner in self.last if owner[0] not in known}
        self.open()

    @rule(
        many=st.lists(
            st.tuples(
                st.sampled_from("abc"),
                st.sampled_from(["", "p", "q"]),
                st.integers(1, 12),
                st.integers(0, 12),
                st.integers(1, 4),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def append(self, many: list[tuple[str, str, int, int, int]]) -> None:
        batches = [
            append_one(topic, packed(*[one] * count), publisher, number if publisher else 0, after)
            for topic, publisher, number, after, count in many
            for one in ["x" * 20 * count if count % 2 else b"\xff" * 20 * count]
        ]
        messages = [one.messages for one in batches]
        for outcome, expected in zip(self.run(self.logs.stored(*batches)), messages, strict=True):
            self._expect(outcome, expected)
        if any(outcome.record for outcome in self.logs.outcomes[-len(batches) :]):
            self._trim()
        else:
            self.trim()

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        if self.logs.store.log_status().mode == "sqlite":
            # Its thread may not have begun the trim before, and would do it by the new time.
            self.trim()

    @rule(tables=TABLES)
    def reload(self, tables: list[TopicRetention]) -> None:
        self.limits = msgspec.structs.replace(self.limits, topics=tuple(tables))
        self.logs.store.reconfigure(self.limits)
        for topic in "abc":
            self._trim_topic(topic)
        self.trim()

    @rule()
    def trim(self) -> None:
        self._trim()
        topics = {kept.topic for kept in self.order} | set(self.used)
        self.run(self.logs.trimmed(**{topic: self._offsets(topic) for topic in topics}))

    @rule(names=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4))
    def look(self, names: list[str]) -> None:
        for name in names:
            assert self.logs.store.topic(name).next >= self.used.get(name, 0)

    def _expect(self, outcome: Outcome, messages: Packed) -> None:
        one, record = outcome.chain, outcome.record
        owner = one.topic, one.publisher
        last = self.last.get(owner)
        if record is None:
            assert one.publisher
            assert last is not None
            assert (one.after > last) if outcome.code == "after_refused" else (one.numbers[-1] <= last)
            return
        assert (
            not one.publisher or last is None or owner in self.unsure or one.numbers[-1] > last >= one.after
        )
        assert outcome.code is None
        # No offset is ever used twice, though the topic was forgotten.
        assert record.offset >= self.used.get(one.topic, 0)
        if any(kept.topic == one.topic for kept in self.order):
            assert record.offset == self.used[one.topic]
        assert record.count == messages.count
        assert delivered(record) == deliver_one(
            one.topic, record.offset, one.publisher, one.numbers[-1], messages
        )
        if one.publisher:
            self.last[owner] = one.numbers[-1]
            self.unsure.discard(owner)
        self.used[one.topic] = record.end
        size = len(record.packet) + RECORD_OVERHEAD_BYTES
        self.order.append(KeptBatch(one.topic, record.offset, record.count, size, record.time))
        self._trim_topic(one.topic)

    def _limits_of(self, topic: str) -> Retention:
        """Return the limits of a topic, whose name has one character."""
        for table in self.limits.topics:
            if table.match in (topic, f"{topic}*", "*"):
                fields = msgspec.structs.asdict(table).items()
                own = {key: value for key, value in fields if value is not None and key != "match"}
                return msgspec.structs.replace(self.limits, **own)
        return self.limits

    def _trim_topic(self, topic: str) -> None:
        mine = [kept for kept in self.order if kept.topic == topic]
        limits = self._limits_of(topic)
        while len(mine) > 1 and (
            sum(kept.size for kept in mine) > limits.max_bytes_per_topic
            or sum(kept.count for kept in mine) > limits.max_messages_per_topic
        ):
            self.order.remove(mine.pop(0))

    def _trim(self) -> None:
        """Drop records that are too old by an age of their topic, then the oldest, or those too old."""
        ages = {topic: self._limits_of(topic).max_age_seconds for topic in "abc"}
        own = {topic for topic in ages if ages[topic] != self.limits.max_age_seconds}
        self.order = [
            kept
            for kept in self.order
            if kept.topic not in own or kept.time >= self.clock.now - ages[kept.topic]
        ]
        while self.order:
            topics = {kept.topic for kept in self.order}
            size = sum(kept.size for kept in self.order) + len(topics) * TOPIC_OVERHEAD_BYTES
            if size > self.limits.max_bytes:
                self.order.pop(0)
                continue
            oldest = next((kept for kept in self.order if kept.topic not in own), None)
            if oldest is None or oldest.time >= self.clock.now - self.limits.max_age_seconds:
                break
            self.order.remove(oldest)

    def _offsets(self, topic: str) -> list[int]:
        mine = [kept for kept in self.order if kept.topic == topic]
        return [offset for kept in mine for offset in range(kept.offset, kept.offset + kept.count)]

    @invariant()
    def the_same_is_kept(self) -> None:
        if not hasattr(self, "logs"):
            return
        for topic in "abc":
            expected = self._offsets(topic)
            assert self.run(self.logs.kept(topic)) == expected
            log = self.logs.store.topic(topic)
            assert log.next == log.assigned
            assert self.logs.store.earliest(log) == (expected[0] if expected else log.next)
        topics = {kept.topic for kept in self.order}
        size = sum(kept.size for kept in self.order) + len(topics) * TOPIC_OVERHEAD_BYTES
        status = self.logs.store.log_status()
        assert status.bytes == size
        assert status.topics <= len(topics) + ledger.MAX_EMPTY_TOPICS + 3


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_any_history(mode: str, cache_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few empty topics, so that some are forgotten, and with a cache before the file and without."""
    monkeypatch.setattr("wsqueue.log.sqlite.CACHE_BYTES", cache_bytes)
    monkeypatch.setattr(ledger, "MAX_EMPTY_TOPICS", 3)

    class OfMode(Model):
        pass

    OfMode.mode = mode
    run_state_machine_as_test(
        OfMode,
        settings=examples(
            20,
            stateful_step_count=30,
            report_multiple_bugs=False,
            phases=[Phase.generate],  # to shrink a history takes minutes, because each has a directory
            suppress_health_check=list(HealthCheck),
        ),
    )
