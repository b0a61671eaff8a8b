"""Prometheus's text format: all metrics of a node from one report; nothing is counted here.

No registry is used, so that a program that imports wsqueue keeps its own metrics apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from prometheus_client import exposition as text_format
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from ..report.report import HistogramStatus, Report
from .metrics import METRICS, MetricDescription

CONTENT_TYPE = text_format.CONTENT_TYPE_PLAIN_0_0_4
"""Type of the text; every version of Prometheus reads it."""


def exposition(report: Report) -> str:
    """Return all metrics of a node, and those of this process."""
    return text_format.generate_latest(_Reported(report)).decode()


class _Reported(Collector):
    """Collect the metrics of one report."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of a node of this role, and of its process."""
        for described in METRICS:
            if described.node in ("both", self._report.role) and (metric := _metric(described, self._report)):
                yield metric
        yield from _PROCESS.collect()


class ProcessMetrics(ProcessCollector):
    """Collect the CPU time, memory and file descriptors of this process.

    The library reads the boot time from /proc/stat, which our units hide (`ProcSubset=pid`), and collects
    nothing without it.
    """

    def _boot_time(self) -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


_PROCESS = ProcessMetrics(registry=None)


def _metric(described: MetricDescription, report: Report) -> Metric | None:
    """Return a metric with its samples, None when it has none."""
    taken = described.take(report)
    if taken is None:
        return None
    if isinstance(taken, HistogramStatus):
        return HistogramMetricFamily(described.name, described.text, *_buckets(taken))
    kind = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
    metric = kind(described.name, described.text, labels=described.labels)
    for labels, number in taken:
        metric.add_metric(labels, number)
    return metric if metric.samples else None


def _buckets(times: HistogramStatus) -> tuple[list[tuple[str, float]], float]:
    """Return the cumulative counts by bound, the form that Prometheus wants, and the sum."""
    bounds = [*times.bounds, math.inf]
    count, buckets = 0, []
    for bound, more in zip(bounds, times.counts, strict=True):
        count += more
        buckets.append(("+Inf" if math.isinf(bound) else repr(float(bound)), float(count)))
    return buckets, times.sum
