"""The messages, times and counts of the load generator, without sockets."""

from __future__ import annotations

import itertools
import math
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.errors import AuthenticationError, ConnectError, WsqueueError
from wsqueue.protocol.close import CloseCode, PeerError
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.tools.bench.__main__ import picklable
from wsqueue.tools.bench.classic import ClassicWire
from wsqueue.tools.bench.counters import MEASURED, At, Counters
from wsqueue.tools.bench.messages import SEND_BYTES, Messages
from wsqueue.tools.bench.report import BARS_PER_DECADE, LATENCY_BITS, Latencies, Latency
from wsqueue.tools.bench.runner import lost_and_duplicates
from wsqueue.tools.bench.workload import MIN_SIZE, STAMPS_PER_SECOND, WINDOW_BYTES, Load, Pace, Window

SECRET = "correct horse battery staple"
WIRE = ClassicWire([], [], PreSharedKey(SECRET))
TOPIC = "bench-0000"


class TestLoad:
    def test_topics_have_one_length(self) -> None:
        assert Load(topics=3).topic_names == ["bench-0000", "bench-0001", "bench-0002"]
        assert {len(name) for name in Load(topics=10_001).topic_names} == {len("bench-10000")}

    @given(st.integers(MIN_SIZE, 300), st.integers(0, 2**60 - 1))
    def test_data_has_the_size_that_was_asked_for(self, size: int, due_ns: int) -> None:
        load = Load(size=size)
        assert len(load.filler) == size
        stamped = load.stamped(due_ns)
        assert (len(stamped), stamped[:1]) == (size, b"t")
        assert int(stamped[1:MIN_SIZE], 16) == due_ns
        assert stamped[MIN_SIZE:] == load.filler[MIN_SIZE:]

    @given(st.floats(0.01, 1e7), st.integers(1, 10_000), st.integers(1, 10_000))
    def test_few_messages_are_stamped_and_of_all_topics(
        self, rate: float, subscribers: int, topics: int
    ) -> None:
        assert Load().stamp_every == 0
        every = Load(rate=rate, subscribers=subscribers, topics=topics).stamp_every
        assert every >= 1
        assert rate * subscribers / every <= STAMPS_PER_SECOND * 1.000001
        assert math.gcd(every, topics) == 1

    def test_what_cannot_be_run_is_refused(self) -> None:
        for name, value, least in (("size", 15, 16), ("topics", 0, 1), ("count", 0, 1), ("warm_up", -1, 0)):
            with pytest.raises(ValueError, match=f"^{name} is {value}: expected at least {least}$"):
                Load(**{name: value})  # type: ignore[arg-type]
        for name, wrong in (("rate", 0), ("rate", math.nan), ("duration", math.inf)):
            with pytest.raises(ValueError, match=f"^{name} is {wrong}: expected more than 0$"):
                Load(**{name: wrong})  # type: ignore[arg-type]

    def test_the_window_is_a_number_of_bytes_and_some_messages_of_each_topic(self) -> None:
        assert Load().window(128) == WINDOW_BYTES // 128
        assert Load().window(WINDOW_BYTES) == 2
        assert Load(topics=1000).window(WINDOW_BYTES) == 2000


class TestPace:
    @given(st.floats(0.01, 1e7), st.integers(0, 10**9), st.integers(0, 2**50))
    def test_each_message_is_due_at_its_own_time(self, rate: float, number: int, start_ns: int) -> None:
        pace = Pace(start_ns, rate)
        due_ns = pace.due_ns(number)
        # A nanosecond and the last bits of a float.
        slack = 2 + int(due_ns * 1e-15)
        assert pace.due(due_ns + slack) >= number + 1 - rate * slack / 1e9
        assert pace.due(due_ns - slack) <= number + 1
        assert abs(due_ns - start_ns - number / rate * 1e9) <= slack

    def test_nothing_is_due_before_the_start(self) -> None:
        pace = Pace(1000, 1e6)
        assert [pace.due(now) for now in (0, 999, 1000, 1999, 2000, 2999)] == [0, 0, 1, 1, 2, 2]
        assert [pace.due_ns(number) for number in range(3)] == [1000, 2000, 3000]


def reported(samples: list[int]) -> Latency:
    latencies = Latencies()
    for ns in samples:
        latencies.add(ns)
    report = latencies.report()
    assert report is not None
    return report


class TestLatencies:
    @given(st.lists(st.integers(0, 10**10), min_size=1, max_size=300))
    def test_percentiles_are_those_of_the_samples(self, samples: list[int]) -> None:
        report = reported(samples)
        assert report.samples == len(samples)
        assert report.max == max(samples) / 1000
        ordered = sorted(samples)
        found = (report.p50, report.p90, report.p99, report.p99_9)
        for percent, us in zip((50, 90, 99, 99.9), found, strict=True):
            exact = ordered[math.ceil(len(samples) * percent / 100) - 1] / 1000
            assert exact * (1 - 2 ** (1 - LATENCY_BITS)) <= us <= exact

    @given(st.lists(st.integers(1, 10**10), min_size=1, max_size=300))
    def test_the_histogram_has_every_sample_in_one_of_its_bars(self, samples: list[int]) -> None:
        report = reported(samples)
        bars = report.histogram
        assert sum(count for _, count in bars) == len(samples)
        for (begin, _), (end, _) in itertools.pairwise(bars):
            assert end / begin == pytest.approx(10 ** (1 / BARS_PER_DECADE))
        assert bars[0][0] <= min(samples) / 1000 * 1.000001
        assert bars[-1][0] * 10 ** (1 / BARS_PER_DECADE) >= max(samples) / 1000 * 0.99

    def test_without_samples_there_is_nothing_to_report(self) -> None:
        assert Latencies().report() is None


class TestMessages:
    @given(
        st.integers(1, 5),
        st.lists(st.tuples(st.integers(0, 60), st.sets(st.integers(0, 59))), min_size=1, max_size=10),
    )
    def test_they_go_to_one_topic_after_the_other_and_some_have_their_time(
        self, topics: int, batches: list[tuple[int, set[int]]]
    ) -> None:
        load = Load(topics=topics, size=20)
        messages, names = Messages(PlainWire().published, load), load.topic_names
        first = 7
        for count, stamped in batches:
            due_ns = {index: 10**12 + first + index for index in stamped if index < count}
            expected = [
                PlainWire().published(
                    names[(first + index) % topics],
                    load.stamped(due_ns[index]) if index in due_ns else load.filler,
                )
                for index in range(count)
            ]
            assert bytes(messages.make(0, first, count, due_ns)) == b"".join(expected)
            first += count

    @pytest.mark.parametrize("topics", [1, 3, 1000])
    def test_a_batch_is_whole_wherever_it_begins(self, topics: int) -> None:
        load = Load(topics=topics)
        messages = Messages(WIRE.published, load)
        size = len(WIRE.published(TOPIC, load.filler))
        assert size * messages.batch <= SEND_BYTES < size * (messages.batch + 1)
        assert len(messages.make(0, topics - 1, messages.batch, {})) == size * messages.batch


class PlainWire(ClassicWire):
    """A wire without random masks."""

    def __init__(self) -> None:
        super().__init__([], [], PreSharedKey(SECRET))

    def published(self, topic: str, data: bytes) -> bytes:
        return b"%b:%b\n" % (topic.encode(), data)


def test_the_window_is_closed_until_the_slowest_subscriber_has_read() -> None:
    window = Window(size=100, batch=10)
    many = 10**9
    assert [window.free(ahead, many) for ahead in (0, 90, 91, 100)] == [10, 10, 0, 0]
    assert [window.free(ahead, 1) for ahead in (0, 99, 100)] == [1, 1, 0]
    assert [Window(size=100, batch=1000).free(ahead, many) for ahead in (0, 50, 51)] == [100, 50, 0]


def test_counters_are_shared() -> None:
    with Counters() as ours, Counters(os.dup(ours.descriptor)) as theirs:
        ours[At.PHASE] = MEASURED
        theirs[At.RECEIVED] = 2**63
        assert (theirs[At.PHASE], ours[At.RECEIVED]) == (MEASURED, 2**63)


def test_what_is_lost_on_one_connection_is_not_made_up_for_by_another() -> None:
    # Two topics, two subscribers of each.
    load = Load(topics=2, subscribers=2)
    for sent, received, expected in (
        (5, [3, 3, 2, 2], (0, 0)),
        (5, [3, 2, 0, 2], (3, 0)),
        (5, [4, 3, 2, 1], (1, 1)),
        (1, [0, 0, 1, 1], (2, 2)),
        (0, [0, 0, 0, 0], (0, 0)),
    ):
        assert lost_and_duplicates(load, sent, received) == expected


def test_what_subscribers_that_share_a_topic_have_got_is_counted_together() -> None:
    load = Load(topics=2, subscribers=8, shared=True)
    assert load.deliveries == 1
    assert lost_and_duplicates(load, 5, [3, 2]) == (0, 0)
    assert lost_and_duplicates(load, 5, [1, 3]) == (2, 1)


def test_an_error_comes_back_from_a_worker() -> None:
    errors: list[WsqueueError] = [
        kind("sentence") for kind in (WsqueueError, ConnectError, AuthenticationError)
    ]
    for error in [*errors, PeerError(CloseCode.TRY_AGAIN_LATER)]:
        copy = pickle.loads(pickle.dumps(picklable(error)))  # noqa: S301
        assert type(copy) is (WsqueueError if isinstance(error, PeerError) else type(error))
        assert str(copy) == str(error)
