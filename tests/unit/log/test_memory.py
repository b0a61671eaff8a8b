"""The logs of topics: in memory, and before an archive that the test plays."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from wsqueue.config.model import Retention as RetentionConfig
from wsqueue.errors import ConfigError
from wsqueue.log import memory
from wsqueue.log.memory import Batch, Outcome, TopicLogs
from wsqueue.log.records import Record, State, TopicState
from wsqueue.protocol import v2
from wsqueue.report.report import LogStatus
from wsqueue.report.stats import Histogram

anyio = pytest.mark.anyio


class Clock:
    """Tell the time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Logs:
    """A retention in memory, its clock, and what it has told.

    Attributes:
        outcomes: All of them.
        told: How many came at a time.
    """

    def __init__(
        self,
        *,
        max_bytes: int = 2**40,
        max_bytes_per_topic: int = 2**40,
        max_messages_per_topic: int = 2**40,
        max_age_seconds: float = 3600,
    ) -> None:
        self.config = RetentionConfig(
            max_bytes=max_bytes,
            max_bytes_per_topic=max_bytes_per_topic,
            max_messages_per_topic=max_messages_per_topic,
            max_age_seconds=max_age_seconds,
        )
        self.clock = Clock()
        self.outcomes: list[Outcome] = []
        self.told: list[int] = []
        self.retention = TopicLogs(self.config, self._done, self.clock)

    def append(self, *batches: Batch) -> list[Outcome]:
        """Append batches, and return what was told meanwhile."""
        known = len(self.outcomes)
        self.retention.append(batches)
        return self.outcomes[known:]

    def publish(self, topic: str, *data: str) -> Record:
        (outcome,) = self.append(Batch(topic, list(data)))
        assert outcome.record is not None
        return outcome.record

    def kept(self, topic: str) -> list[int]:
        """Return the offsets of the messages that are kept of a topic."""
        log = self.retention.topic(topic)
        records = log.read(0, 2**40)
        assert records == list(log.records)
        return [offset for record in records for offset in range(record.offset, record.end)]

    def _done(self, outcomes: list[Outcome]) -> None:
        self.told.append(len(outcomes))
        self.outcomes += outcomes


def batch(number: int, after: int = 0, *, topic: str = "news", publisher: str = "p", count: int = 1) -> Batch:
    return Batch(topic, [f"{number}.{index}" for index in range(count)], publisher, number, after)


def delivered(record: Record) -> v2.Deliver:
    packet = v2.decode(record.packet)
    assert isinstance(packet, v2.Deliver)
    return packet


class TestOffsets:
    """Each message has its place."""

    def test_every_topic_counts_its_messages_from_0(self) -> None:
        logs = Logs()
        assert [logs.publish("a", "1", "2").offset, logs.publish("a", "3").offset] == [0, 2]
        assert logs.publish("b", "1").offset == 0
        assert logs.kept("a") == [0, 1, 2]
        assert logs.retention.topic("a").next == 3

    def test_a_record_holds_the_packet_that_delivers_it(self) -> None:
        logs = Logs()
        logs.publish("news", "0")
        (outcome,) = logs.append(Batch("news", ["ñ", ""], "p", 7))
        assert outcome.record is not None
        assert delivered(outcome.record) == v2.Deliver("news", 1, "p", 7, ["ñ", ""])
        assert outcome.record.time == logs.clock.now
        assert (outcome.record.count, outcome.record.end) == (2, 3)

    def test_what_comes_together_is_told_together_and_in_order(self) -> None:
        logs = Logs()
        batches = [batch(1), batch(2, topic="b"), batch(1), batch(3)]
        assert [outcome.batch for outcome in logs.append(*batches)] == batches
        assert logs.told == [4]

    def test_nothing_is_told_of_nothing(self) -> None:
        logs = Logs()
        assert logs.append() == []
        assert logs.told == []

    def test_time_never_falls_within_a_topic(self) -> None:
        logs = Logs()
        times = []
        for now in (1000.0, 900.0, 1000.5, 950.0):
            logs.clock.now = now
            times.append(logs.publish("news", "x").time)
        assert times == [1000.0, 1000.0, 1000.5, 1000.5]

    def test_reading_from_an_offset(self) -> None:
        logs = Logs()
        records = [logs.publish("news", *"abc"), logs.publish("news", "d"), logs.publish("news", *"ef")]
        log = logs.retention.topic("news")
        for offset, first in ((0, 0), (2, 0), (3, 1), (4, 2), (5, 2)):
            assert log.read(offset, 2**40) == records[first:]
        assert log.read(6, 2**40) == []
        assert log.read(0, 1) == records[:1]
        assert log.read(0, records[0].size + 1) == records[:2]

    def test_the_offset_of_a_time(self) -> None:
        logs = Logs()
        log = logs.retention.topic("news")
        assert log.offset_at(0) == 0
        for now in (1000.0, 1010.0, 1010.0, 1020.0):
            logs.clock.now = now
            logs.publish("news", "x", "y")
        expected = {0.0: 0, 1000.0: 0, 1000.1: 2, 1010.0: 2, 1010.1: 6, 1020.0: 6, 1020.1: 8}
        assert {moment: log.offset_at(moment) for moment in expected} == expected

    @anyio
    async def test_all_is_in_memory(self) -> None:
        logs = Logs()
        record = logs.publish("news", "x")
        log = logs.retention.topic("news")
        assert logs.retention.in_memory(log, 0)
        assert await logs.retention.read(log, 0, 1) == [record]
        assert await logs.retention.offset_at(log, logs.clock.now) == 0
        assert not logs.retention.congested
        await logs.retention.settle()


class TestNumbers:
    """A batch is stored once, and not before one that it comes after."""

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_what_is_not_beyond_the_last_is_a_repeat(self, number: int) -> None:
        logs = Logs()
        logs.append(batch(3))
        (outcome,) = logs.append(batch(number, after=number - 1))
        assert (outcome.record, outcome.code) == (None, None)
        assert logs.kept("news") == [0]

    def test_numbers_may_leave_some_out(self) -> None:
        """For a publisher numbers its batches over all topics."""
        logs = Logs()
        outcomes = logs.append(batch(3), batch(5), batch(9, after=5))
        assert [outcome.record is not None for outcome in outcomes] == [True] * 3

    @pytest.mark.parametrize("after", [4, 8])
    def test_what_comes_after_one_that_did_not_come_is_refused(self, after: int) -> None:
        logs = Logs()
        logs.append(batch(3))
        (outcome,) = logs.append(batch(9, after=after))
        assert (outcome.record, outcome.code) == (None, "after_refused")
        assert str(after) in outcome.reason
        # It counts as not come itself, and may come again.
        assert [
            one.code for one in logs.append(batch(10, after=9), batch(after, after=3), batch(9, after))
        ] == [
            "after_refused",
            None,
            None,
        ]

    def test_a_publisher_that_is_not_known_may_begin_anywhere(self) -> None:
        logs = Logs()
        (outcome,) = logs.append(batch(9, after=8))
        assert outcome.record is not None

    def test_publishers_and_topics_have_nothing_to_do_with_each_other(self) -> None:
        logs = Logs()
        logs.append(batch(9))
        others = [batch(1, publisher="q"), batch(1, topic="b"), batch(2, after=1, topic="b")]
        assert all(outcome.record is not None for outcome in logs.append(*others))

    def test_nobodys_batches_are_never_repeats(self) -> None:
        logs = Logs()
        outcomes = logs.append(Batch("news", ["x"]), Batch("news", ["x"]))
        assert all(outcome.record is not None for outcome in outcomes)

    @pytest.mark.parametrize("problem", ["invalid", "topic_too_long"])
    def test_what_is_wrong_is_refused_each_time_and_counts_as_not_come(self, problem: str) -> None:
        logs = Logs()
        logs.append(batch(1))
        wrong = msgspec.structs.replace(batch(2, after=1), problem=problem)
        outcomes = logs.append(wrong, wrong, batch(3, after=2), batch(4))
        codes = [problem, problem, "after_refused", None]
        assert [outcome.code for outcome in outcomes] == codes
        assert all(bool(outcome.reason) == bool(outcome.code) for outcome in outcomes)
        # Even when a later one is there.
        assert logs.append(wrong)[0].code == problem

    def test_of_too_many_publishers_those_are_forgotten_that_were_quiet_for_longest(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "MAX_NUMBERS", 2)
        logs = Logs()
        logs.append(batch(5, publisher="a"), batch(5, publisher="b"), batch(6, publisher="a"))
        logs.append(batch(5, publisher="c"))
        stored = [logs.append(batch(5, publisher=name))[0].record is not None for name in "acb"]
        assert stored == [False, False, True]


class TestLimits:
    """Whichever limit is reached first drops the oldest messages."""

    def test_messages_of_a_topic(self) -> None:
        logs = Logs(max_messages_per_topic=3)
        for count in (1, 1, 1):
            logs.publish("news", *["x"] * count)
        assert logs.kept("news") == [0, 1, 2]
        logs.publish("news", "x")
        assert logs.kept("news") == [1, 2, 3]
        logs.publish("news", "x", "x")
        assert logs.kept("news") == [3, 4, 5]
        logs.publish("other", "x")
        assert logs.kept("news") == [3, 4, 5]

    def test_the_newest_batch_of_a_topic_stays_however_large_it_is(self) -> None:
        logs = Logs(max_messages_per_topic=3, max_bytes_per_topic=10)
        logs.publish("news", "x")
        logs.publish("news", *"abcde")
        assert logs.kept("news") == [1, 2, 3, 4, 5]

    def test_bytes_of_a_topic(self) -> None:
        size = Logs().publish("news", "x" * 100).size
        logs = Logs(max_bytes_per_topic=3 * size)
        for _ in range(3):
            logs.publish("news", "x" * 100)
        assert logs.kept("news") == [0, 1, 2]
        logs.publish("news", "x" * 101)
        assert logs.kept("news") == [2, 3]

    def test_bytes_of_all_topics(self) -> None:
        size = Logs().publish("a", "x" * 100).size
        logs = Logs(max_bytes=4 * size + 3 * memory.TOPIC_OVERHEAD_BYTES)
        for topic in "abca":
            logs.publish(topic, "x" * 100)
        assert [logs.kept(topic) for topic in "abc"] == [[0, 1], [0], [0]]
        logs.publish("c", "x" * 100)
        # The oldest of all goes, of whatever topic.
        assert [logs.kept(topic) for topic in "abc"] == [[1], [0], [0, 1]]

    def test_a_batch_larger_than_all_may_be_is_delivered_and_not_kept(self) -> None:
        logs = Logs(max_bytes=1000)
        assert logs.publish("news", "x" * 1000).offset == 0
        assert logs.kept("news") == []
        assert logs.retention.topic("news").first == 1
        assert logs.publish("news", "x" * 1000).offset == 1

    def test_age(self) -> None:
        logs = Logs(max_age_seconds=10)
        for topic in ("a", "b", "a"):
            logs.publish(topic, "x")
            logs.clock.now += 5
        assert [logs.kept(topic) for topic in "ab"] == [[0, 1], [0]]
        logs.retention.trim()
        assert [logs.kept(topic) for topic in "ab"] == [[1], [0]]
        logs.clock.now += 10.5
        logs.retention.trim()
        assert [logs.kept(topic) for topic in "ab"] == [[], []]
        log = logs.retention.topic("a")
        assert (log.first, log.next, log.cached_from) == (2, 2, 2)

    def test_other_limits_hold_from_a_reload_on(self) -> None:
        logs = Logs()
        for _ in range(5):
            logs.publish("news", "x")
        logs.retention.reconfigure(msgspec.structs.replace(logs.config, max_messages_per_topic=2))
        logs.publish("news", "x")
        assert logs.kept("news") == [4, 5]
        logs.retention.reconfigure(msgspec.structs.replace(logs.config, max_age_seconds=1))
        logs.clock.now += 2
        logs.retention.trim()
        assert logs.kept("news") == []


class TestForgottenTopics:
    """A topic without messages may be forgotten, its offsets must not come again."""

    @pytest.fixture
    def logs(self, monkeypatch: pytest.MonkeyPatch) -> Logs:
        monkeypatch.setattr(memory, "MAX_EMPTY_TOPICS", 2)
        return Logs(max_age_seconds=10)

    def test_it_goes_on_above_all_offsets_that_were_used(self, logs: Logs) -> None:
        for topic, count in (("a", 3), ("b", 7), ("c", 2)):
            logs.publish(topic, *["x"] * count)
        logs.clock.now += 11
        logs.retention.trim()
        # Of three empty topics the one is forgotten that has been so for longest.
        assert logs.retention.topic("b").next == 7
        assert logs.retention.topic("c").next == 2
        assert logs.retention.topic("a").start == 3
        assert logs.publish("a", "x").offset == 3

    def test_a_new_topic_begins_there_too(self, logs: Logs) -> None:
        logs.publish("a", *"xyz")
        logs.clock.now += 11
        logs.retention.trim()
        for name in "bcd":
            logs.retention.topic(name)
        log = logs.retention.topic("e")
        assert (log.start, log.first, log.next, log.assigned) == (3, 3, 3, 3)

    def test_looking_at_topics_leaves_no_more_of_them(self, logs: Logs) -> None:
        for number in range(100):
            logs.retention.topic(str(number))
        assert len(logs.retention._topics) == 2

    def test_a_new_topic_is_never_the_one_that_is_forgotten(self) -> None:
        assert memory.FORGET_TRIES < memory.MAX_EMPTY_TOPICS

    def test_a_topic_with_a_reader_stays(self, logs: Logs) -> None:
        logs.publish("read", *"abc")
        for more in (1, 1, -1):
            logs.retention.reading("read", more)
        logs.clock.now += 11
        logs.retention.trim()
        for number in range(100):
            logs.retention.topic(str(number))
        assert logs.retention.topic("read").start == 0
        logs.retention.reading("read", -1)
        for number in range(100):
            logs.retention.topic(str(number))
        assert logs.retention.topic("read").start == 3

    def test_a_topic_with_messages_stays(self, logs: Logs) -> None:
        logs.publish("a", "x")
        for number in range(100):
            logs.retention.topic(str(number))
        assert logs.kept("a") == [0]
        assert logs.publish("a", "x").offset == 1


class Kept(msgspec.Struct):
    """What the model knows of a batch that is kept."""

    topic: str
    offset: int
    count: int
    size: int
    time: float


class Model(RuleBasedStateMachine):
    """Any history of a retention in memory, next to one list in which the oldest come first."""

    @initialize(
        messages=st.integers(1, 6), topic_bytes=st.integers(400, 2000), all_bytes=st.integers(1000, 8000)
    )
    def begin(self, messages: int, topic_bytes: int, all_bytes: int) -> None:
        self.logs = Logs(
            max_bytes=all_bytes,
            max_bytes_per_topic=topic_bytes,
            max_messages_per_topic=messages,
            max_age_seconds=10,
        )
        self.limits = self.logs.config
        self.order: list[Kept] = []
        self.next: dict[str, int] = {}
        self.used: dict[str, int] = {}
        self.last: dict[tuple[str, str], int] = {}
        self.clock_of: dict[str, float] = {}

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
            Batch(topic, ["x" * 20 * count] * count, publisher, number if publisher else 0, after)
            for topic, publisher, number, after, count in many
        ]
        for outcome in self.logs.append(*batches):
            self._expect(outcome)
        self._trim()

    @rule(seconds=st.sampled_from([-3.0, 1.0, 4.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.logs.clock.now += seconds

    @rule()
    def trim(self) -> None:
        self.logs.retention.trim()
        self._trim()

    @rule(names=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4))
    def look(self, names: list[str]) -> None:
        for name in names:
            log = self.logs.retention.topic(name)
            assert log.next >= self.used.get(name, 0)

    def _expect(self, outcome: Outcome) -> None:
        one, record = outcome.batch, outcome.record
        last = self.last.get((one.topic, one.publisher))
        if one.publisher and last is not None and one.number <= last:
            assert (record, outcome.code) == (None, None)
        elif one.publisher and last is not None and one.after > last:
            assert (record, outcome.code) == (None, "after_refused")
        else:
            assert record is not None
            assert outcome.code is None
            # No offset is ever used twice, though the topic was forgotten.
            assert record.offset >= self.used.get(one.topic, 0)
            if any(kept.topic == one.topic for kept in self.order):
                assert record.offset == self.used[one.topic]
            assert record.count == len(one.data)
            now = self.clock_of[one.topic] = record.time
            assert now >= self.logs.clock.now
            assert delivered(record) == v2.Deliver(
                one.topic, record.offset, one.publisher, one.number, one.data
            )
            if one.publisher:
                self.last[one.topic, one.publisher] = one.number
            self.used[one.topic] = record.end
            self.order.append(Kept(one.topic, record.offset, record.count, len(record.packet) + 300, now))
            self._trim_topic(one.topic)

    def _trim_topic(self, topic: str) -> None:
        limits = self.limits
        mine = [kept for kept in self.order if kept.topic == topic]
        while len(mine) > 1 and (
            sum(kept.size for kept in mine) > limits.max_bytes_per_topic
            or sum(kept.count for kept in mine) > limits.max_messages_per_topic
        ):
            self.order.remove(mine.pop(0))

    def _trim(self) -> None:
        oldest = self.logs.clock.now - self.limits.max_age_seconds
        while self.order:
            topics = {kept.topic for kept in self.order}
            size = sum(kept.size for kept in self.order) + len(topics) * memory.TOPIC_OVERHEAD_BYTES
            if size <= self.limits.max_bytes and self.order[0].time >= oldest:
                break
            self.order.pop(0)

    @invariant()
    def the_same_is_kept(self) -> None:
        if not hasattr(self, "logs"):
            return
        for topic in {kept.topic for kept in self.order} | set(self.logs.retention._topics):
            expected = [
                offset
                for kept in self.order
                if kept.topic == topic
                for offset in range(kept.offset, kept.offset + kept.count)
            ]
            assert self.logs.kept(topic) == expected
            log = self.logs.retention.topic(topic)
            assert log.messages == len(expected)
            assert log.bytes == sum(kept.size for kept in self.order if kept.topic == topic)
            assert log.first == log.cached_from == (expected[0] if expected else log.next)
            assert log.next == log.assigned

    @invariant()
    def nothing_is_left_of_what_has_gone(self) -> None:
        if not hasattr(self, "logs"):
            return
        kept = self.logs.retention
        assert len(kept._order) <= 2 * len(self.order) + 1000
        assert len(kept._empty) <= memory.MAX_EMPTY_TOPICS
        assert set(kept._empty) == {name for name, log in kept._topics.items() if not log.records}


class TestAgainstTheModel:
    """Any history, with few empty topics, so that some are forgotten."""

    @pytest.fixture(autouse=True)
    def few_empty_topics(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "MAX_EMPTY_TOPICS", 3)

    def test_any_history(self) -> None:
        run_state_machine_as_test(
            Model,
            settings=settings(
                max_examples=60,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

    def test_many_dropped_records_of_a_quiet_topic_leave_no_entries(self) -> None:
        """The oldest record of all may keep those behind it, which their topic has dropped, from going."""
        logs = Logs(max_messages_per_topic=1)
        logs.publish("quiet", "x")
        for _ in range(5000):
            logs.publish("busy", "x")
        assert len(logs.retention._order) <= 1010
        assert (logs.kept("quiet"), logs.kept("busy")) == ([0], [4999])
        logs.clock.now += 4000
        logs.retention.trim()
        assert (logs.kept("quiet"), logs.kept("busy")) == ([], [])
        assert not logs.retention._order


class TestStatus:
    """How the logs are, when they are in memory."""

    def test_it_grows_and_shrinks_with_them(self) -> None:
        logs = Logs(max_bytes=100_000)
        empty = logs.retention.log_status()
        assert empty == LogStatus(mode="memory", topics=0, bytes=0, limit_bytes=100_000)
        for topic in ("news", "sport", "news"):
            logs.publish(topic, "x" * 1000)
        status = logs.retention.log_status()
        assert (status.topics, status.failing) == (2, "")
        assert 3000 < status.bytes < 10_000
        logs.clock.now += 4000
        logs.retention.trim()
        # The topics are still known, for their offsets go on.
        assert logs.retention.log_status() == msgspec.structs.replace(empty, topics=2)
        assert logs.retention.commit_seconds() is None

    def test_a_reload_changes_the_limit(self) -> None:
        logs = Logs(max_bytes=100_000)
        logs.retention.reconfigure(RetentionConfig(max_bytes=7))
        assert logs.retention.log_status().limit_bytes == 7


class FakeArchive:
    """An archive that commits and fails when the test says so."""

    opened: FakeArchive
    state = State(id="0123456789abcdef", topics={}, numbers={})

    def __init__(
        self,
        directory: Path,
        limits: RetentionConfig,
        *,
        committed: Callable[[list[Record]], None],
        failed: Callable[[list[Record], str], None],
    ) -> None:
        self._committed, self._failed = committed, failed
        self.queue: deque[Record] = deque()
        self.stored: list[Record] = []
        self.pending_bytes = self.bytes = 0
        self.free_bytes = 5_000_000
        self.last_commit_seconds = 0.25
        self.commit_seconds = Histogram()
        self.closed = False

    async def open(self) -> State:
        FakeArchive.opened = self
        return self.state

    def append(self, records: Sequence[Record]) -> None:
        self.queue.extend(records)

    def commit(self, count: int | None = None) -> None:
        records = [self.queue.popleft() for _ in range(len(self.queue) if count is None else count)]
        self.stored += records
        self._committed(records)

    def fail(self) -> None:
        records = list(self.queue)
        self.queue.clear()
        self._failed(records, "the disk is full")

    def knows(self, topic: str) -> bool:
        return any(record.topic == topic for record in self.stored)

    async def close(self) -> None:
        self.closed = True


class Archived(Logs):
    """A retention before a fake archive."""

    archive: FakeArchive

    @classmethod
    async def opened(cls, state: State | None = None) -> Archived:
        logs = cls()
        logs.config = RetentionConfig(mode="sqlite", directory="/nowhere")
        logs.retention = TopicLogs(logs.config, logs._done, logs.clock)
        FakeArchive.state = state or State(id="0123456789abcdef", topics={}, numbers={})
        await logs.retention.open()
        logs.archive = FakeArchive.opened
        return logs

    def outcome_of(self, which: Batch) -> str:
        """Return what became of a batch, "" when nothing has been told."""
        for outcome in self.outcomes:
            if outcome.batch is which:
                stored = f"stored at {outcome.record.offset}" if outcome.record is not None else "a repeat"
                return outcome.code or stored
        return ""


@anyio
class TestArchive:
    """Nothing is told before the archive has it, and what it cannot write is taken back."""

    @pytest.fixture(autouse=True)
    def fake(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(memory, "Archive", FakeArchive)
        return iter([None])

    async def test_it_needs_a_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("STATE_DIRECTORY", raising=False)
        logs = TopicLogs(RetentionConfig(mode="sqlite"), lambda _outcomes: None)
        with pytest.raises(ConfigError, match="required for the mode sqlite"):
            await logs.open()

    async def test_it_goes_on_where_the_archive_ends(self) -> None:
        state = State(id="f" * 16, topics={"news": TopicState(3, 9)}, numbers={("news", "p"): 4}, floor=5)
        logs = await Archived.opened(state)
        assert logs.retention.id == "f" * 16
        log = logs.retention.topic("news")
        assert (log.first, log.next, log.cached_from) == (3, 9, 9)
        assert not logs.retention.in_memory(log, 8)
        assert logs.retention.topic("other").start == 5
        again, new = batch(4), batch(5, after=4)
        logs.append(again, new)
        logs.archive.commit()
        assert [logs.outcome_of(one) for one in (again, new)] == ["a repeat", "stored at 9"]

    async def test_nothing_is_told_before_it_is_committed(self) -> None:
        logs = await Archived.opened()
        one, two, three = batch(1, count=2), batch(2, after=1), batch(3)
        assert logs.append(one, two, three) == []
        log = logs.retention.topic("news")
        assert (log.next, log.assigned) == (0, 4)
        assert logs.kept("news") == []
        logs.archive.commit(2)
        assert [logs.outcome_of(which) for which in (one, two, three)] == ["stored at 0", "stored at 2", ""]
        assert log.next == 3
        logs.archive.commit()
        assert logs.told == [2, 1]
        assert logs.kept("news") == [0, 1, 2, 3]

    async def test_its_status_is_the_archive_s(self) -> None:
        logs = await Archived.opened()
        logs.archive.pending_bytes, logs.archive.bytes = 700, 12_000
        logs.append(batch(1))
        limit = logs.config.max_bytes
        status = LogStatus(
            mode="sqlite",
            topics=1,
            bytes=12_000,
            limit_bytes=limit,
            pending_bytes=700,
            commit_seconds=0.25,
            free_bytes=5_000_000,
        )
        assert logs.retention.log_status() == status
        logs.archive.fail()
        assert logs.retention.log_status().failing == "the disk is full"
        logs.append(batch(1))
        assert logs.retention.log_status().failing == "the disk is full"
        logs.archive.commit()
        assert logs.retention.log_status() == status
        logs.archive.commit_seconds.observe(0.1)
        commits = logs.retention.commit_seconds()
        assert commits is not None
        assert sum(commits.counts) == 1

    async def test_a_repeat_waits_for_what_it_repeats(self) -> None:
        logs = await Archived.opened()
        one, again, two = batch(1), batch(1), batch(2)
        assert logs.append(one) == logs.append(again) == logs.append(two) == []
        logs.archive.commit(1)
        assert [logs.outcome_of(which) for which in (one, again, two)] == ["stored at 0", "a repeat", ""]
        logs.archive.commit()
        assert logs.outcome_of(two) == "stored at 1"

    async def test_a_refusal_waits_for_its_turn(self) -> None:
        """For its producer takes a refusal for a confirmation of all that came before."""
        logs = await Archived.opened()
        one, refused = batch(1), batch(5, after=3)
        assert logs.append(one, refused) == []
        logs.archive.commit()
        assert [outcome.batch for outcome in logs.outcomes] == [one, refused]
        assert logs.outcomes[1].code == "after_refused"

    async def test_what_need_not_wait_is_told_at_once(self) -> None:
        logs = await Archived.opened()
        logs.append(batch(1))
        logs.archive.commit()
        again, refused = batch(1), batch(5, after=3)
        outcomes = logs.append(again, refused)
        assert [outcome.code for outcome in outcomes] == [None, "after_refused"]
        await logs.retention.settle()

    async def test_what_cannot_be_written_is_refused_and_taken_back(self) -> None:
        logs = await Archived.opened()
        logs.append(batch(1, count=3))
        logs.archive.commit()
        one, again, two, refused = batch(2, after=1), batch(2, after=1), batch(3, after=2), batch(9, after=8)
        other = batch(4, topic="other")
        logs.append(one, again, two, refused, other)
        logs.archive.fail()
        codes = [logs.outcome_of(which) for which in (one, again, two, refused, other)]
        assert codes == ["full", "full", "full", "after_refused", "full"]
        assert all(outcome.reason for outcome in logs.outcomes[1:])
        # Another attempt is none of a repeat, and gets the offsets that the others had.
        retried = [batch(2, after=1), batch(3, after=2), batch(4, topic="other")]
        logs.append(*retried)
        logs.archive.commit()
        assert [logs.outcome_of(which) for which in retried] == ["stored at 3", "stored at 4", "stored at 0"]
        assert logs.kept("news") == [0, 1, 2, 3, 4]

    async def test_what_was_committed_before_stays_when_the_rest_fails(self) -> None:
        logs = await Archived.opened()
        one, two, again = batch(1), batch(2, after=1), batch(1)
        logs.append(one, two, again)
        logs.archive.commit(1)
        logs.archive.fail()
        assert [logs.outcome_of(which) for which in (one, two, again)] == ["stored at 0", "full", "a repeat"]
        assert logs.retention.topic("news").assigned == 1

    async def test_after_a_failure_nothing_comes_before_what_has_failed(self) -> None:
        """Not even of a publisher that was new, which else could begin anywhere."""
        logs = await Archived.opened()
        first, second, third = batch(7), batch(8, after=7), batch(9)
        logs.append(first)
        logs.archive.fail()
        logs.append(second, third)
        logs.archive.commit()
        outcomes = [logs.outcome_of(which) for which in (first, second, third)]
        assert outcomes == ["full", "after_refused", "stored at 0"]

    async def test_settling(self) -> None:
        logs = await Archived.opened()
        await logs.retention.settle()
        for end in (logs.archive.commit, logs.archive.fail):
            logs.append(batch(1, publisher=end.__name__), batch(1, publisher=end.__name__))
            settling = asyncio.create_task(logs.retention.settle())
            await asyncio.sleep(0)
            assert not settling.done()
            end()
            await asyncio.wait_for(settling, 1)

    async def test_too_much_waits(self) -> None:
        logs = await Archived.opened()
        assert not logs.retention.congested
        logs.archive.pending_bytes = memory.PENDING_BYTES + 1
        assert logs.retention.congested

    async def test_very_many_small_batches_are_too_much_too(self) -> None:
        logs = await Archived.opened()
        logs.archive.pending_bytes = memory.PENDING_BYTES - 100 * memory.PENDING_OVERHEAD_BYTES
        for number in range(1, 102):
            assert not logs.retention.congested
            logs.append(batch(number))
        assert logs.retention.congested

    async def test_the_memory_is_a_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        logs = await Archived.opened()
        size = Logs().publish("news", "x" * 100).size
        monkeypatch.setattr(memory, "CACHE_BYTES", 2 * size + memory.TOPIC_OVERHEAD_BYTES + 50)
        for _ in range(5):
            logs.append(Batch("news", ["x" * 100]))
            logs.archive.commit()
        log = logs.retention.topic("news")
        assert logs.kept("news") == [3, 4]
        assert (log.first, log.cached_from, log.next) == (0, 3, 5)
        assert [logs.retention.in_memory(log, offset) for offset in range(6)] == [False] * 3 + [True] * 3

    async def test_a_topic_is_forgotten_when_the_archive_has_forgotten_it_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "MAX_EMPTY_TOPICS", 2 * memory.FORGET_TRIES)
        monkeypatch.setattr(memory, "CACHE_BYTES", 0)
        logs = await Archived.opened()
        for topic, count in (("waiting", 1), ("known", 3), ("gone", 7)):
            logs.append(batch(1, topic=topic, count=count))
        logs.archive.commit()
        logs.append(batch(2, topic="waiting"))
        logs.archive.stored = [record for record in logs.archive.stored if record.topic == "known"]
        for number in range(200):
            logs.retention.topic(str(number))
        assert {"waiting", "known"} <= set(logs.retention._topics)
        assert "gone" not in logs.retention._topics
        assert len(logs.retention._topics) == memory.MAX_EMPTY_TOPICS
        assert logs.retention.topic("gone").start == 7
        logs.archive.commit()
        assert logs.outcomes[-1].record is not None
        assert logs.outcomes[-1].record.offset == 1

    async def test_it_is_closed(self) -> None:
        logs = await Archived.opened()
        await logs.retention.close()
        assert logs.archive.closed

    @pytest.mark.parametrize("seed", range(30))
    async def test_any_history(self, seed: int) -> None:
        """Two publishers send on two topics, again and again, while commits and failures come."""
        random = Random(seed)
        logs = await Archived.opened()
        sent: list[Batch] = []
        for _ in range(120):
            kind = random.random()
            if kind < 0.6:
                many = [
                    batch(
                        number := random.randint(1, 25),
                        after=random.choice([0, number - 1, random.randint(0, 25)]),
                        topic=random.choice("ab"),
                        publisher=random.choice("pq"),
                        count=random.randint(1, 3),
                    )
                    for _ in range(random.randint(1, 4))
                ]
                sent += many
                logs.append(*many)
            elif kind < 0.9:
                logs.archive.commit(random.randint(0, len(logs.archive.queue)))
            else:
                logs.archive.fail()
        logs.archive.commit()
        # All are told, in their order.
        assert [id(outcome.batch) for outcome in logs.outcomes] == [id(one) for one in sent]
        for topic in "ab":
            stored = [outcome.record for outcome in logs.outcomes if outcome.record is not None]
            mine = [record for record in stored if record.topic == topic]
            assert mine == [record for record in logs.archive.stored if record.topic == topic]
            assert [record.offset for record in mine] == [0, *(record.end for record in mine)][: len(mine)]
            for publisher in "pq":
                numbers = [record.number for record in mine if record.publisher == publisher]
                assert all(one < two for one, two in itertools.pairwise(numbers))
        # What was called a repeat had been stored by then.
        stored_by: set[tuple[str, str, int]] = set()
        highest: dict[tuple[str, str], int] = {}
        for outcome in logs.outcomes:
            one = outcome.batch
            if outcome.record is not None:
                stored_by.add((one.topic, one.publisher, one.number))
                highest[one.topic, one.publisher] = one.number
            elif outcome.code is None:
                assert one.number <= highest[one.topic, one.publisher]
        assert stored_by
