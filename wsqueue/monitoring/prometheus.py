"""The metrics of a node in Prometheus's text format; docs/metrics.md describes each metric.

All metrics are made from one report at a time: nothing is counted here, and no registry is used. The sets of
labels are bounded: known codes and reasons, configured consumers, and the topics that a report names.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, get_args

import msgspec
from prometheus_client import exposition as text_format
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from ..protocol.close import CloseCode
from ..protocol.v2 import RefusalCode
from ..report.report import (
    LOST_REASONS,
    HistogramStatus,
    LinkStatus,
    LogStatus,
    Report,
    WarningCode,
)

CONTENT_TYPE = text_format.CONTENT_TYPE_PLAIN_0_0_4
"""Type of the text; every version of Prometheus reads it."""

UNKNOWN = "unknown"
"""Label of a connection whose peer has not yet asked for an endpoint."""

OTHER = "other"
"""Reason of a refusal whose close code has no name."""

REFUSED_REASONS = ("by_peer", "tls")
"""Reasons other than close codes."""

HELLO_CODES = (
    CloseCode.INVALID_PACKET,
    CloseCode.WRONG_ANSWER,
    CloseCode.EARLY_DATA,
    CloseCode.SECOND_ANSWER,
    CloseCode.SECOND_CHALLENGE,
    CloseCode.REFLECTED_CHALLENGE,
    CloseCode.HELLO_TIMEOUT,
    CloseCode.CLASSIC_REFUSED,
)
"""Close codes of refused hellos, which are exposed as 0 before the first refusal."""

CODES = {str(code.value): code.name.lower() for code in CloseCode} | {
    "1002": "protocol_error",
    "1009": "message_too_big",
}
"""Names of the close codes, with two that the WebSocket library uses."""

Nodes = Literal["both", "consumer", "producer"]

Sample = tuple[tuple[str, ...], float]
"""Values of the labels, and the number."""


class Described(msgspec.Struct, frozen=True):
    """Describe a metric, and how to take it from a report.

    Attributes:
        name: Name of the metric.
        kind: gauge, counter or histogram.
        node: Nodes that have the metric: consumer, producer, or both.
        labels: Names of the labels.
        text: Meaning, in a sentence.
        take: Returns the samples, or the times of a histogram; None if there are none.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    node: Nodes
    labels: tuple[str, ...]
    text: str
    take: Callable[[Report], Iterable[Sample] | HistogramStatus | None]


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


def _metric(described: Described, report: Report) -> Metric | None:
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


def _summed(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Add up samples with the same labels, because a time series must occur once."""
    sums: dict[tuple[str, ...], float] = {}
    for labels, number in samples:
        sums[labels] = sums.get(labels, 0) + number
    return sums.items()


def _connections(report: Report) -> Iterable[Sample]:
    return _summed(
        ((kind.role or UNKNOWN, kind.state, kind.protocol or UNKNOWN), kind.count)
        for kind in report.connections
    )


def _hellos_refused(report: Report) -> Iterable[Sample]:
    counts = {code.name.lower(): 0 for code in HELLO_CODES} | dict.fromkeys(REFUSED_REASONS, 0)
    for counter, count in report.counters.items():
        if (reason := _refused_reason(counter)) is not None:
            counts[reason] = counts.get(reason, 0) + count
    return (((reason,), count) for reason, count in counts.items())


def _refused_reason(counter: str) -> str | None:
    """Return the reason of a counter of refused hellos, None for another counter."""
    if counter == "tls_refused":
        return "tls"
    start, _, code = counter.partition("refused_")
    if start or not code:
        return None
    if code in REFUSED_REASONS:
        return code
    return CODES.get(code, OTHER)


def _warnings(report: Report) -> Iterable[Sample]:
    counts = Counter(warning.code for warning in report.warnings)
    return (((code,), counts[code]) for code in get_args(WarningCode))


def _counter(name: str, node: Nodes, counter: str, text: str) -> Described:
    """Describe a metric that is a counter of the node."""
    return Described(name, "counter", node, (), text, lambda report: [((), report.counters.get(counter, 0))])


def _gauge(name: str, node: Nodes, text: str, value: Callable[[Report], float | None]) -> Described:
    """Describe a metric that is a number; there is no metric when the value is None."""

    def samples(report: Report) -> Iterable[Sample] | None:
        number = value(report)
        return None if number is None else [((), number)]

    return Described(name, "gauge", node, (), text, samples)


def _log(name: str, text: str, value: Callable[[LogStatus], float | None]) -> Described:
    """Describe a metric that is a number of a consumer's logs."""
    return _gauge(name, "consumer", text, lambda report: None if report.log is None else value(report.log))


def _link(name: str, text: str, value: Callable[[LinkStatus], float]) -> Described:
    """Describe a metric of each link of a producer."""
    return Described(
        name,
        "gauge",
        "producer",
        ("consumer",),
        text,
        lambda report: [((link.address,), value(link)) for link in report.links],
    )


METRICS = (
    Described(
        "wsqueue_build_info",
        "gauge",
        "both",
        ("version", "python", "role"),
        "Which version of wsqueue the node runs, with which Python, and its role; always 1.",
        lambda report: [((report.version, report.python, report.role), 1)],
    ),
    _gauge(
        "wsqueue_uptime_seconds",
        "both",
        "Time since the node began to listen.",
        lambda report: report.uptime_seconds,
    ),
    _gauge(
        "wsqueue_ready",
        "both",
        "1 when the node does all of its work, 0 when it does not; /readyz says why.",
        lambda report: not report.not_ready,
    ),
    Described(
        "wsqueue_connections",
        "gauge",
        "both",
        ("role", "state", "protocol"),
        "Connections now, by the role of the peer, their state and their protocol.",
        _connections,
    ),
    _gauge(
        "wsqueue_connections_limit",
        "both",
        "Maximum number of connections: max_connections.",
        lambda report: report.max_connections,
    ),
    _counter("wsqueue_connections_accepted_total", "both", "connections", "Connections accepted."),
    _counter(
        "wsqueue_connections_refused_total",
        "both",
        "connections_refused",
        "Connections refused because there were too many.",
    ),
    Described(
        "wsqueue_hellos_refused_total",
        "counter",
        "both",
        ("reason",),
        "Hellos refused, by close code; by_peer: ended by the peer; tls: the TLS handshake failed.",
        _hellos_refused,
    ),
    _counter("wsqueue_received_bytes_total", "both", "bytes_in", "Bytes read from all connections."),
    _counter("wsqueue_sent_bytes_total", "both", "bytes_out", "Bytes written to all connections."),
    _counter("wsqueue_messages_received_total", "both", "messages_in", "Messages received."),
    _counter(
        "wsqueue_messages_forwarded_total",
        "producer",
        "forwarded",
        "Messages written to a consumer; those resent after a lost link count again.",
    ),
    _counter(
        "wsqueue_messages_delivered_total",
        "consumer",
        "deliveries",
        "Messages written to subscribers, counted once per subscriber.",
    ),
    _counter(
        "wsqueue_messages_without_subscriber_total",
        "consumer",
        "without_subscriber",
        "Messages that had no subscriber when they arrived.",
    ),
    Described(
        "wsqueue_messages_lost_total",
        "counter",
        "producer",
        ("reason",),
        "Classic messages lost; in_flight: with a broken link; held: at a stop; refused: by a consumer;"
        " full: too much was held.",
        lambda report: [((reason,), report.counters.get(f"lost_{reason}", 0)) for reason in LOST_REASONS],
    ),
    _counter(
        "wsqueue_batches_repeated_total",
        "consumer",
        "repeats",
        "Batches that arrived again after they had been stored.",
    ),
    Described(
        "wsqueue_batches_refused_total",
        "counter",
        "consumer",
        ("code",),
        "Batches refused permanently.",
        lambda report: [
            ((code,), report.counters.get(f"batches_refused_{code}", 0)) for code in get_args(RefusalCode)
        ],
    ),
    _link(
        "wsqueue_link_up",
        "1 when the link to the consumer is up, 0 when it is down.",
        lambda link: link.state == "up",
    ),
    _link(
        "wsqueue_link_held_messages",
        "Messages that wait for the consumer or its confirmation.",
        lambda link: link.held_messages,
    ),
    _link(
        "wsqueue_link_held_bytes",
        "Bytes that wait for the consumer or its confirmation.",
        lambda link: link.held_bytes,
    ),
    _link(
        "wsqueue_link_paused_publishers",
        "Publishers that are paused because too much is held for the consumer.",
        lambda link: link.paused_publishers,
    ),
    _gauge(
        "wsqueue_slow_subscribers",
        "consumer",
        "Subscribers that are behind now.",
        lambda report: report.slow_subscribers,
    ),
    _counter(
        "wsqueue_subscribers_closed_slow_total",
        "consumer",
        "slow_subscribers",
        "Classic subscribers closed because they were too slow.",
    ),
    _counter(
        "wsqueue_subscribers_fell_behind_total",
        "consumer",
        "fell_behind",
        "Times that a v2 subscriber fell behind and continued from the log.",
    ),
    _counter(
        "wsqueue_gaps_total",
        "consumer",
        "gaps",
        "Gaps that v2 subscribers were told of: the log had dropped messages before they were read.",
    ),
    _log(
        "wsqueue_log_bytes",
        "Size of the logs of all topics.",
        lambda log: log.bytes,
    ),
    _log(
        "wsqueue_log_limit_bytes",
        "Maximum size of the logs of all topics: max_bytes.",
        lambda log: log.limit_bytes,
    ),
    _log(
        "wsqueue_log_topics",
        "Topics that the consumer knows.",
        lambda log: log.topics,
    ),
    _log(
        "wsqueue_log_pending_bytes",
        "Bytes that wait for the disk.",
        lambda log: log.pending_bytes,
    ),
    _log(
        "wsqueue_log_free_bytes",
        "Bytes free in the file system of the logs; only where they are on a disk.",
        lambda log: log.free_bytes if log.free_bytes >= 0 else None,
    ),
    _log(
        "wsqueue_log_failing",
        "1 when nothing can be stored now, 0 when it can.",
        lambda log: bool(log.failing),
    ),
    Described(
        "wsqueue_commit_seconds",
        "histogram",
        "consumer",
        (),
        "Duration of commits of the logs; only where they are on a disk.",
        lambda report: report.commit_seconds,
    ),
    Described(
        "wsqueue_confirm_seconds",
        "histogram",
        "producer",
        (),
        "Time from reading a batch to its confirmation; at most 200 per second and link are timed.",
        lambda report: report.confirm_seconds,
    ),
    _gauge(
        "wsqueue_event_loop_lag_seconds",
        "both",
        "Longest delay of the event loop in the last 10 to 20 seconds.",
        lambda report: report.loop_lag_seconds,
    ),
    _gauge(
        "wsqueue_certificate_expiry_timestamp_seconds",
        "both",
        "Unix time at which the first of the node's certificates ends; only where it has one.",
        lambda report: report.certificate_ends,
    ),
    Described(
        "wsqueue_warnings",
        "gauge",
        "both",
        ("code",),
        "Warnings of the node now; the status page has the sentences.",
        _warnings,
    ),
    Described(
        "wsqueue_topic_messages_per_second",
        "gauge",
        "both",
        ("topic",),
        "Messages per second over the last 10 to 20 seconds, of the busiest topics.",
        lambda report: _summed(((topic.topic,), topic.messages_per_second) for topic in report.top_topics),
    ),
)
"""All metrics except those of the process, in the order in which they are exposed."""
