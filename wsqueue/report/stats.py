"""What a node measures of itself, at next to no cost: times by size, peaks, topics with most messages.

No clock: whoever owns one says when a window ends (`WINDOW_SECONDS`).
"""

from __future__ import annotations

import heapq
import operator
from bisect import bisect_left
from collections import Counter

from .report import MAX_TOPIC_CHARACTERS, HistogramStatus, TopicStatus

WINDOW_SECONDS = 10.0
"""What is reported is of the last complete window and the one that goes on: 10 to 20 seconds."""

MAX_COUNTED_TOPICS = 2000
"""Topics that are counted in one window, the first that come: those with most messages come early."""

TIME_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: from a confirmation out of memory to a consumer that was restarted."""


class Histogram:
    """Count times by size, in seconds."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(TIME_BOUNDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """Count a time, so many times."""
        self._counts[bisect_left(TIME_BOUNDS, seconds)] += count
        self._sum += seconds * count

    def status(self) -> HistogramStatus:
        """Return what was counted."""
        return HistogramStatus(list(TIME_BOUNDS), list(self._counts), self._sum)


class Peak:
    """Keep the largest of the values of the last window and of this one."""

    __slots__ = ("_before", "_now")

    def __init__(self) -> None:
        self._before = self._now = 0.0

    @property
    def value(self) -> float:
        """Return the largest."""
        return max(self._before, self._now)

    def observe(self, value: float) -> None:
        """Take a value."""
        self._now = max(self._now, value)

    def turn(self) -> None:
        """End a window."""
        self._before, self._now = self._now, 0.0


class TopTopics:
    """Count the messages of topics in windows.

    Attributes:
        counts: Messages of this window by topic; the message path adds to those that are there by itself.
    """

    __slots__ = ("_before", "_before_seconds", "counts")

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._before_seconds = 0.0
        self.counts: dict[str, int] = {}

    def count(self, topic: str, messages: int) -> None:
        """Count messages of a topic, unless there are too many topics."""
        counts = self.counts
        if topic in counts:
            counts[topic] += messages
        elif len(counts) < MAX_COUNTED_TOPICS:
            counts[topic] = messages

    def turn(self, seconds: float) -> None:
        """End a window, which took so many seconds."""
        self._before, self._before_seconds = self.counts, seconds
        self.counts = {}

    def top(self, count: int, seconds: float) -> list[TopicStatus]:
        """Return the topics with most messages.

        Args:
            count: How many topics.
            seconds: For how long this window has gone on.
        """
        total = Counter(self._before)
        total.update(self.counts)
        whole = max(self._before_seconds + seconds, 1.0)
        most = heapq.nlargest(count, total.items(), key=operator.itemgetter(1))
        return [TopicStatus(_cut(topic), messages / whole) for topic, messages in most]


def _cut(topic: str) -> str:
    return topic if len(topic) <= MAX_TOPIC_CHARACTERS else topic[: MAX_TOPIC_CHARACTERS - 1] + "…"
