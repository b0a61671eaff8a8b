"""Measurements that cost a node next to nothing: times by size, peaks, busiest topics.

There is no clock here: the owner of a clock ends each window of `WINDOW_SECONDS` with `turn()`. Values are of
the last complete window and the current one together: of the last 10 to 20 seconds.
"""

from __future__ import annotations

import heapq
import operator
from bisect import bisect_left
from collections import Counter

from .report import MAX_TOPIC_CHARACTERS, HistogramStatus, TopicStatus

WINDOW_SECONDS = 10.0
"""Length of a window."""

MAX_COUNTED_TOPICS = 2000
"""Maximum number of topics counted in a window: the first ones, because busy topics come early."""

TIME_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds in seconds: from a confirmation out of memory to the restart of a consumer."""


class Histogram:
    """Count times by size, in seconds."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(TIME_BOUNDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """Count a time `count` times."""
        self._counts[bisect_left(TIME_BOUNDS, seconds)] += count
        self._sum += seconds * count

    def status(self) -> HistogramStatus:
        """Return the counts so far."""
        return HistogramStatus(list(TIME_BOUNDS), list(self._counts), self._sum)


class Peak:
    """Keep the largest value of the last window and of the current one."""

    __slots__ = ("_before", "_now")

    def __init__(self) -> None:
        self._before = self._now = 0.0

    @property
    def value(self) -> float:
        """Return the largest value."""
        return max(self._before, self._now)

    def observe(self, value: float) -> None:
        """Add a value to the current window."""
        self._now = max(self._now, value)

    def turn(self) -> None:
        """End a window."""
        self._before, self._now = self._now, 0.0


class TopTopics:
    """Count the messages of topics in windows.

    Attributes:
        counts: Messages of the current window by topic; the message path adds to existing entries directly.
    """

    __slots__ = ("_before", "_before_seconds", "counts")

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._before_seconds = 0.0
        self.counts: dict[str, int] = {}

    def count(self, topic: str, messages: int) -> None:
        """Count messages of a topic, unless it is new and there are too many topics."""
        counts = self.counts
        if topic in counts:
            counts[topic] += messages
        elif len(counts) < MAX_COUNTED_TOPICS:
            counts[topic] = messages

    def turn(self, seconds: float) -> None:
        """End a window that took `seconds`."""
        self._before, self._before_seconds = self.counts, seconds
        self.counts = {}

    def top(self, count: int, seconds: float) -> list[TopicStatus]:
        """Return the topics with the most messages.

        Args:
            count: Maximum number of topics.
            seconds: Age of the current window.
        """
        total = Counter(self._before)
        total.update(self.counts)
        total_seconds = max(self._before_seconds + seconds, 1.0)
        busiest = heapq.nlargest(count, total.items(), key=operator.itemgetter(1))
        return [TopicStatus(_cut(topic), messages / total_seconds) for topic, messages in busiest]


def _cut(topic: str) -> str:
    return topic if len(topic) <= MAX_TOPIC_CHARACTERS else topic[: MAX_TOPIC_CHARACTERS - 1] + "…"
