"""The report of a run, and how its latencies are counted."""

from __future__ import annotations

import math
from collections import Counter

import msgspec

BARS_PER_DECADE = 20
"""Bars of the histogram between a number and ten times the number: each 12 % wide."""

LATENCY_BITS = 10
"""Significant bits of a latency that is counted: 0.2 %, whatever its size, in little memory."""


class NodeUsage(msgspec.Struct, frozen=True):
    """Report what a node used in the measured phase; its CPU time comes in steps of 10 ms.

    Attributes:
        cpu_seconds: User and system time.
        cpu_us_per_message: The same for one published message, in µs.
        rss_bytes: Resident memory at the end.
        max_rss_bytes: The most resident memory that was seen.
    """

    cpu_seconds: float
    cpu_us_per_message: float
    rss_bytes: int
    max_rss_bytes: int


class Latency(msgspec.Struct, frozen=True):
    """Report how long messages took from when they were due until they were read, in µs.

    Attributes:
        samples: Deliveries that were timed; where they are many, not all are.
        histogram: Where each bar begins, and how many are in it; a bar ends at its beginning times
            10 ** (1 / `BARS_PER_DECADE`).
    """

    samples: int
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float
    histogram: list[tuple[float, int]]


class Throughput(msgspec.Struct, frozen=True):
    """Report a stretch of the measured phase that ended `seconds` after its beginning."""

    seconds: float
    messages_per_second: float
    deliveries_per_second: float


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """Report a run.

    The measured phase goes from its first message to the arrival of its last; a replay's only reads.

    Attributes:
        messages_per_second: Published ones; in a replay those that each subscriber read.
        sent: Messages that were published in it; in a replay before it.
        received: Deliveries that were read in it.
        lost: Deliveries that did not come, of the warm-up too.
        duplicates: Deliveries that came beyond what was published, in the warm-up too.
        unconfirmed: Messages that were not confirmed, of the warm-up too; 0 where nobody confirms.
        ended_early: Whether nothing moved for so long that the rest was not published.
        load_generator_cpu_us_per_message: What both workers took, in µs; comes in steps as the nodes'.
        latency: None without a rate.
    """

    messages_per_second: float
    deliveries_per_second: float
    sent: int
    received: int
    lost: int
    duplicates: int
    unconfirmed: int
    ended_early: bool
    seconds: float
    nodes: dict[str, NodeUsage]
    load_generator_cpu_us_per_message: float
    latency: Latency | None
    throughput: list[Throughput]


class Latencies:
    """Count latencies in little memory, however many there are."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.longest = 0

    def add(self, ns: int) -> None:
        """Count one."""
        shift = max(ns.bit_length() - LATENCY_BITS, 0)
        self.counts[ns >> shift << shift] += 1
        self.longest = max(self.longest, ns)

    def report(self) -> Latency | None:
        """Return the report, None if there is nothing to report."""
        if not self.counts:
            return None
        p50, p90, p99, p99_9 = map(self._percentile, (50, 90, 99, 99.9))
        return Latency(self.counts.total(), p50, p90, p99, p99_9, self.longest / 1000, self._histogram())

    def _percentile(self, percent: float) -> float:
        """Return the µs within which so many of all latencies were."""
        left = math.ceil(self.counts.total() * percent / 100)
        for ns, count in sorted(self.counts.items()):
            left -= count
            if left <= 0:
                return ns / 1000
        return self.longest / 1000

    def _histogram(self) -> list[tuple[float, int]]:
        bars: Counter[int] = Counter()
        for ns, count in self.counts.items():
            # A time of 0 has no logarithm.
            bars[math.floor(BARS_PER_DECADE * math.log10(max(ns, 1) / 1000))] += count
        return [(10 ** (bar / BARS_PER_DECADE), bars[bar]) for bar in range(min(bars), max(bars) + 1)]
