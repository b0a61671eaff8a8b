"""The metrics of a node, each with how it is taken from a report; docs/metrics.md has the same table.

The sets of labels are bounded: known codes and reasons, configured consumers, and the topics that a report
names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import msgspec

from ..protocol.close import CloseCode
from ..protocol.v2 import RefusalCode
from ..report.report import (
    LOST_REASONS,
    EngineStatus,
    HistogramStatus,
    LinkStatus,
    LogStatus,
    Report,
    WarningCode,
)

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
    CloseCode.ALTERED,
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


class MetricDescription(msgspec.Struct, frozen=True):
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


def _counter(name: str, node: Nodes, counter: str, text: str) -> MetricDescription:
    """Describe a metric that is a counter of the node."""
    return MetricDescription(
        name, "counter", node, (), text, lambda report: [((), report.counters.get(counter, 0))]
    )


def _gauge(name: str, node: Nodes, text: str, value: Callable[[Report], float | None]) -> MetricDescription:
    """Describe a metric that is a number; there is no metric when the value is None."""

    def samples(report: Report) -> Iterable[Sample] | None:
        number = value(report)
        return None if number is None else [((), number)]

    return MetricDescription(name, "gauge", node, (), text, samples)


def _log(name: str, text: str, value: Callable[[LogStatus], float | None]) -> MetricDescription:
    """Describe a metric that is a number of a consumer's logs."""
    return _gauge(name, "consumer", text, lambda report: None if report.log is None else value(report.log))


def _engine(
    name: str,
    text: str,
    value: Callable[[EngineStatus], float | None],
    kind: Literal["gauge", "counter"] = "gauge",
) -> MetricDescription:
    """Describe a metric of the servers of a shared log; a counter stays 0 without them."""

    def samples(report: Report) -> Iterable[Sample] | None:
        engine = report.log.engine if report.log is not None else None
        if engine is None:
            return [((), 0)] if kind == "counter" else None
        number = value(engine)
        return None if number is None else [((), number)]

    return MetricDescription(name, kind, "consumer", (), text, samples)


def _link(name: str, text: str, value: Callable[[LinkStatus], float]) -> MetricDescription:
    """Describe a metric of each link of a producer."""
    return MetricDescription(
        name,
        "gauge",
        "producer",
        ("consumer",),
        text,
        lambda report: [((link.address,), value(link)) for link in report.links],
    )


METRICS = (
    MetricDescription(
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
    MetricDescription(
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
    MetricDescription(
        "wsqueue_client_connections",
        "gauge",
        "both",
        ("client",),
        "Connections now of clients, by the name of their key.",
        lambda report: [((client.name,), client.connections) for client in report.clients],
    ),
    MetricDescription(
        "wsqueue_client_refusals_total",
        "counter",
        "both",
        ("client",),
        "Connections, batches and subscriptions refused that the key of a client does not allow.",
        lambda report: [((client.name,), client.refused) for client in report.clients],
    ),
    _counter(
        "wsqueue_strangers_dropped_total",
        "both",
        "strangers_dropped",
        "Peers dropped before they had proved themselves, because there were too many.",
    ),
    MetricDescription(
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
    MetricDescription(
        "wsqueue_messages_lost_total",
        "counter",
        "producer",
        ("reason",),
        "Classic messages lost; in_flight: with a broken link; held: at a stop; refused: by a consumer;"
        " full: too much was held.",
        lambda report: [((reason,), report.counters.get(f"lost_{reason}", 0)) for reason in LOST_REASONS],
    ),
    _counter(
        "wsqueue_messages_dropped_total",
        "consumer",
        "dropped_invalid",
        "Messages of classic producers that cannot be taken: they are too long or not UTF-8.",
    ),
    _counter(
        "wsqueue_messages_skipped_for_classic_total",
        "consumer",
        "skipped_for_classic",
        "Messages that classic subscribers could not take: bytes that are not UTF-8, or too long.",
    ),
    _counter(
        "wsqueue_batches_repeated_total",
        "consumer",
        "repeats",
        "Batches that arrived again after they had been stored.",
    ),
    MetricDescription(
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
        "wsqueue_link_away",
        "1 while other consumers have the consumer's topics, else 0; only where they share a log.",
        lambda link: link.away,
    ),
    _counter(
        "wsqueue_failovers_total",
        "producer",
        "failovers",
        "Times that the topics of a consumer went to others with the same log, because it was away.",
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
    _counter(
        "wsqueue_group_messages_lent_total",
        "consumer",
        "group_deliveries",
        "Messages lent to members of worker groups, counted again each time.",
    ),
    _counter(
        "wsqueue_group_messages_lent_again_total",
        "consumer",
        "group_redeliveries",
        "Messages lent that were lent before.",
    ),
    _counter(
        "wsqueue_group_leases_over_total",
        "consumer",
        "leases_over",
        "Messages that a member of a worker group had for too long.",
    ),
    _counter(
        "wsqueue_group_messages_gone_total",
        "consumer",
        "group_gone",
        "Messages that the log dropped before a worker group had done them.",
    ),
    _counter(
        "wsqueue_groups_restarted_total",
        "consumer",
        "groups_restarted",
        "Worker groups that began at the earliest message, because the log is another one.",
    ),
    _counter(
        "wsqueue_dead_letters_total",
        "consumer",
        "dead_letters",
        "Messages that worker groups have given up.",
    ),
    MetricDescription(
        "wsqueue_lag_messages",
        "gauge",
        "consumer",
        ("topic", "kind", "name"),
        "Messages that are kept and that a worker group or named reader has not done, the largest numbers.",
        lambda report: _summed(((lag.topic, lag.kind, lag.name), lag.lag) for lag in report.lags),
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
        "Bytes that wait for the disk, or for the servers of a shared log.",
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
    _engine(
        "wsqueue_log_available",
        "1 when the consumer can use the shared log, 0 when it cannot; only where there is one.",
        lambda engine: engine.available,
    ),
    _engine(
        "wsqueue_log_streams_without_leader",
        "Streams of the shared log that do not answer; only where there is one.",
        lambda engine: engine.streams_without_leader,
    ),
    _engine(
        "wsqueue_log_replicas",
        "Servers that can be reached and have a stream of the shared log, the least of all streams.",
        lambda engine: engine.replicas or None,
    ),
    _engine(
        "wsqueue_log_replicas_wanted",
        "Servers that should have each stream of the shared log: replicas.",
        lambda engine: engine.replicas_wanted,
    ),
    _engine(
        "wsqueue_log_replica_lag_records",
        "Records by which a server of the shared log that can be reached is behind, the most of all.",
        lambda engine: engine.lag_records,
    ),
    _engine(
        "wsqueue_log_conflicts_total",
        "Appends to the shared log that another consumer's append was faster than, and that are tried again.",
        lambda engine: engine.conflicts,
        "counter",
    ),
    _engine(
        "wsqueue_log_unanswered_total",
        "Requests to the shared log that had no answer, or one of no use, and that are tried again.",
        lambda engine: engine.unanswered,
        "counter",
    ),
    MetricDescription(
        "wsqueue_commit_seconds",
        "histogram",
        "consumer",
        (),
        "Duration of commits of the logs, or of appends to a shared log; not where they are in memory.",
        lambda report: report.commit_seconds,
    ),
    MetricDescription(
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
    MetricDescription(
        "wsqueue_warnings",
        "gauge",
        "both",
        ("code",),
        "Warnings of the node now; the status page has the sentences.",
        _warnings,
    ),
    MetricDescription(
        "wsqueue_topic_messages_per_second",
        "gauge",
        "both",
        ("topic",),
        "Messages per second over the last 10 to 20 seconds, of the busiest topics.",
        lambda report: _summed(((topic.topic,), topic.messages_per_second) for topic in report.top_topics),
    ),
)
"""All metrics except those of the process, in the order in which they are exposed."""
