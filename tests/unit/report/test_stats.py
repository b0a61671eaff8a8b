"""Times by size, peaks, and the busiest topics."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.report import stats
from wsqueue.report.report import MAX_TOPIC_CHARACTERS, HistogramStatus, TopicStatus
from wsqueue.report.stats import TIME_BOUNDS, Histogram, Peak, TopTopics

from ...support.session_pair import few

times = st.floats(0, 100) | st.sampled_from(TIME_BOUNDS)


class TestHistogram:
    def test_nothing(self) -> None:
        assert Histogram().status() == HistogramStatus(list(TIME_BOUNDS), [0] * (len(TIME_BOUNDS) + 1), 0.0)

    def test_a_status_does_not_change_later(self) -> None:
        histogram = Histogram()
        before = histogram.status()
        histogram.observe(1.0)
        assert before == Histogram().status()

    def test_the_bounds_rise(self) -> None:
        assert all(low < high for low, high in itertools.pairwise(TIME_BOUNDS))

    @few
    @given(st.lists(st.tuples(times | st.floats(100, 1e9), st.integers(0, 1000))))
    def test_like_a_simple_one(self, observed: list[tuple[float, int]]) -> None:
        histogram = Histogram()
        for seconds, count in observed:
            histogram.observe(seconds, count)
        status = histogram.status()
        lows = (-1.0, *TIME_BOUNDS)
        highs = (*TIME_BOUNDS, float("inf"))
        assert status.counts == [
            sum(count for seconds, count in observed if low < seconds <= high)
            for low, high in zip(lows, highs, strict=True)
        ]
        assert status.sum == pytest.approx(sum(seconds * count for seconds, count in observed))


class TestPeak:
    @few
    @given(st.lists(st.floats(0, 100) | st.none()))
    def test_like_a_simple_one(self, steps: list[float | None]) -> None:
        peak, windows = Peak(), [[0.0]]
        for step in steps:
            if step is None:
                peak.turn()
                windows.append([0.0])
            else:
                peak.observe(step)
                windows[-1].append(step)
            assert peak.value == max(itertools.chain(*windows[-2:]))


class TestTopTopics:
    def test_nothing(self) -> None:
        assert TopTopics().top(10, 5.0) == []

    def test_no_more_than_wanted(self) -> None:
        topics = TopTopics()
        for number in range(20):
            topics.count(f"topic{number}", number + 1)
        assert [status.topic for status in topics.top(2, 10.0)] == ["topic19", "topic18"]
        assert topics.top(0, 10.0) == []

    def test_a_window_that_has_just_begun_or_was_longer_than_others(self) -> None:
        """A window is longer if the process was stopped for a while."""
        topics = TopTopics()
        topics.count("a", 100)
        assert topics.top(1, 0.0001) == [TopicStatus("a", 100.0)]
        topics.turn(95.0)
        assert topics.top(1, 5.0) == [TopicStatus("a", 1.0)]

    def test_topics_are_limited_and_those_that_are_known_go_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stats, "MAX_COUNTED_TOPICS", 2)
        topics = TopTopics()
        for topic in ("a", "b", "c", "a", "c"):
            topics.count(topic, 10)
        assert topics.top(10, 10.0) == [TopicStatus("a", 2.0), TopicStatus("b", 1.0)]
        topics.turn(10.0)
        topics.count("c", 30)
        assert topics.top(1, 10.0) == [TopicStatus("c", 1.5)]

    @pytest.mark.parametrize("more", [0, 1])
    def test_a_long_name_is_cut(self, more: int) -> None:
        topics = TopTopics()
        topics.count("ñ" * (MAX_TOPIC_CHARACTERS + more), 1)
        (status,) = topics.top(10, 1.0)
        assert status.topic == "ñ" * (MAX_TOPIC_CHARACTERS - more) + "…" * more

    @few
    @given(
        st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 100)) | st.floats(0.5, 20), max_size=30),
        st.integers(0, 5),
        st.floats(1, 20),
    )
    def test_like_a_simple_one(
        self, steps: list[tuple[str, int] | float], count: int, seconds: float
    ) -> None:
        topics = TopTopics()
        windows: list[tuple[list[tuple[str, int]], float]] = []
        now: list[tuple[str, int]] = []
        for step in steps:
            if isinstance(step, tuple):
                topics.count(*step)
                now.append(step)
            else:
                topics.turn(step)
                windows.append((now, step))
                now = []
        before, before_seconds = windows[-1] if windows else ([], 0.0)
        whole: Counter[str] = Counter()
        for topic, messages in before + now:
            whole[topic] += messages
        found = topics.top(count, seconds)
        rates = sorted((messages / (before_seconds + seconds) for messages in whole.values()), reverse=True)
        assert [top.messages_per_second for top in found] == pytest.approx(rates[:count])
        for top in found:
            assert top.messages_per_second == pytest.approx(whole[top.topic] / (before_seconds + seconds))
        assert len({top.topic for top in found}) == len(found)
