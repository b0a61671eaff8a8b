"""The report of a run, and the counting of its latencies."""

from __future__ import annotations

import math
from collections import Counter

import msgspec

BARS_PER_DECADE = 20
"""Bars of the histogram per factor of ten: each is 12 % wide."""

LATENCY_BITS = 10
"""Significant bits of a counted latency: an error of at most 0.2 %, and few different values."""


class NodeUsage(msgspec.Struct, frozen=True):
    """CPU time and memory of a node in the measured phase; CPU times have steps of 10 ms.

    Attributes:
        cpu_seconds: User and system time.
        cpu_us_per_message: CPU time per published message, in µs.
        rss_bytes: Resident memory at the end.
        max_rss_bytes: Highest resident memory that was sampled.
    """

    cpu_seconds: float
    cpu_us_per_message: float
    rss_bytes: int
    max_rss_bytes: int


class Latency(msgspec.Struct, frozen=True):
    """Latencies in µs, from the time when a message was due until it was read.

    Attributes:
        samples: Number of measured deliveries; at high rates, not all are measured.
        histogram: Lower edge and count of each bar; the upper edge is the lower one times
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
    """Throughput in a part of the measured phase, which ended `seconds` after the beginning of the phase."""

    seconds: float
    messages_per_second: float
    deliveries_per_second: float


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report of a run.

    The measured phase lasts from its first message to the arrival of its last one. In a replay, subscribers
    read in this phase messages that were published before it.

    Attributes:
        messages_per_second: Published messages; in a replay, messages that each subscriber read.
        sent: Messages that were published in the phase; in a replay, before it.
        received: Deliveries that were read in the phase.
        lost: Deliveries that did not come, including the warm-up.
        duplicates: Deliveries beyond the published messages, including the warm-up.
        unconfirmed: Messages that were not confirmed, including the warm-up; 0 if the system confirms none.
        ended_early: True if the rest was not published because nothing had arrived for too long.
        load_generator_cpu_us_per_message: CPU time of both workers per message, in µs, with steps of 10 ms.
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
    """Count any number of latencies in little memory."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.longest = 0

    def add(self, ns: int) -> None:
        """Count a latency."""
        shift = max(ns.bit_length() - LATENCY_BITS, 0)
        self.counts[ns >> shift << shift] += 1
        self.longest = max(self.longest, ns)

    def report(self) -> Latency | None:
        """Return the report, None if there are no latencies."""
        if not self.counts:
            return None
        p50, p90, p99, p99_9 = map(self._percentile, (50, 90, 99, 99.9))
        return Latency(self.counts.total(), p50, p90, p99, p99_9, self.longest / 1000, self._histogram())

    def _percentile(self, percent: float) -> float:
        """Return the latency in µs that this share of all latencies does not exceed."""
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
