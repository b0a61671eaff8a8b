"""What a node says of itself: one report, for the status page, the metrics, `top` and `doctor`.

A report is made of numbers that the node has anyway, at most once in `FRESH_SECONDS`, however often it is
asked for. `docs/monitoring.md` describes its fields. A peer of another version may send more or fewer: what
is added has a default, and what has a few values today may have others tomorrow.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FRESH_SECONDS = 0.5
"""For how long a report is used again: watching a node must not keep it busy."""

MAX_SLOW_PEERS = 10
"""Slow subscribers that a report names; it counts all."""

MAX_TOPIC_CHARACTERS = 200
"""Of a topic's name in a report; a longer one is cut."""


LOST_REASONS = ("in_flight", "held", "refused", "full")
"""Of the counters `lost_<reason>` of classic messages."""

LinkState = Literal["up", "down"]
ConnectionState = Literal["hello", "open", "closing"]
WarningCode = Literal[
    "certificate_expires",
    "clock_differs",
    "draining",
    "hello_refused",
    "keys_differ",
    "link_down",
    "link_slow",
    "log_failing",
    "log_nearly_full",
    "loop_lag",
    "node_unreachable",
    "many_connections",
    "messages_lost",
    "publishers_paused",
    "subscriber_slow",
    "unwise_configuration",
    "version_differs",
]


class NodeWarning(msgspec.Struct, frozen=True):
    """Say what is wrong, and what to do about it, a sentence each.

    Attributes:
        code: A `WarningCode`, or one of a newer version.
        text: What is wrong.
        advice: What to do, "" for nothing.
    """

    code: WarningCode | str
    text: str
    advice: str = ""


class Connections(msgspec.Struct, frozen=True):
    """Count the connections of one kind.

    Attributes:
        role: Of the peer: publisher, producer, subscriber or monitor; "" before that is known.
        state: Of the connection.
        protocol: v2 or classic; "" while the hello goes on.
        count: How many there are.
    """

    role: str
    state: ConnectionState | str
    protocol: str
    count: int


class LinkStatus(msgspec.Struct, frozen=True):
    """Say how a producer's link to a consumer is.

    Attributes:
        address: Of the consumer.
        state: Whether it is up.
        protocol: v2 or classic; "" while it is down.
        seconds: For how long it has been so.
        reason: Why it is down, "" when it is up.
        held_messages: What waits for the consumer or its confirmation.
        held_bytes: What they take.
        paused_publishers: Those that are not read from, for too much is held.
    """

    address: str
    state: LinkState | str
    protocol: str
    seconds: float
    reason: str
    held_messages: int
    held_bytes: int
    paused_publishers: int


class TopicStatus(msgspec.Struct, frozen=True):
    """Say how much comes on a topic, over the last 10 to 20 seconds."""

    topic: str
    messages_per_second: float


class SlowPeer(msgspec.Struct, frozen=True):
    """Name a subscriber that reads slower than its topics grow.

    Attributes:
        peer: Its address.
        protocol: v2 or classic.
        buffered_bytes: What waits to be written to it.
        behind_messages: What it has still to read from the logs.
    """

    peer: str
    protocol: str
    buffered_bytes: int
    behind_messages: int


class LogStatus(msgspec.Struct, frozen=True):
    """Say how the logs of a consumer's topics are.

    Attributes:
        mode: memory or sqlite.
        topics: How many are known.
        bytes: What all logs take.
        limit_bytes: What they may take.
        pending_bytes: What waits for the disk.
        commit_seconds: Time that the last commit took; 0 with memory.
        free_bytes: Of the file system of the archive; -1 where there is none.
        failing: Why nothing can be stored now, "" when it can.
    """

    mode: str
    topics: int
    bytes: int
    limit_bytes: int
    pending_bytes: int
    commit_seconds: float
    free_bytes: int
    failing: str


class HistogramStatus(msgspec.Struct, frozen=True):
    """Count times by size.

    Attributes:
        bounds: Upper bounds in seconds, rising.
        counts: How many were at most each bound and above the one before, then those above all.
        sum: Of all, in seconds.
    """

    bounds: list[float]
    counts: list[int]
    sum: float


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Say what only a node of its role knows; the attributes are those of `Report`."""

    links: list[LinkStatus] = []
    confirm_seconds: HistogramStatus | None = None
    commit_seconds: HistogramStatus | None = None
    top_topics: list[TopicStatus] = []
    slow_peers: list[SlowPeer] = []
    log: LogStatus | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Say how a node is.

    Attributes:
        id: Of this run of the node.
        role: consumer or producer.
        version: Of wsqueue.
        python: Version of Python.
        addresses: Where it listens.
        time: Unix time at the node.
        uptime_seconds: Since it began to listen.
        not_ready: Why it does not do all of its work, "" when it does.
        psk_fingerprints: Of its keys for clients, in their order (docs/monitoring.md).
        certificate_sha256: Of its certificate, in hexadecimal; "" without one.
        certificate_ends: Unix time at which the first of its certificates ends; None without one.
        loop_lag_seconds: The longest that the event loop was late in the last 10 to 20 seconds.
        max_connections: How many it accepts.
        connections: How many there are, by kind.
        counters: As in docs/operations.md.
        links: Of a producer.
        confirm_seconds: From reading a batch to its confirmation, at a producer.
        commit_seconds: Of the archive, at a consumer.
        top_topics: Those with the most messages, at most `monitoring.top_topics`.
        slow_subscribers: How many are behind now.
        slow_peers: Those that are most behind.
        log: Of a consumer.
        warnings: What is wrong.
    """

    id: str
    role: str
    version: str
    python: str = ""
    addresses: list[str] = []
    time: float = 0.0
    uptime_seconds: float = 0.0
    not_ready: str = ""
    psk_fingerprints: list[str] = []
    certificate_sha256: str = ""
    certificate_ends: float | None = None
    loop_lag_seconds: float = 0.0
    max_connections: int = 0
    connections: list[Connections] = []
    counters: dict[str, int] = {}
    links: list[LinkStatus] = []
    confirm_seconds: HistogramStatus | None = None
    commit_seconds: HistogramStatus | None = None
    top_topics: list[TopicStatus] = []
    slow_subscribers: int = 0
    slow_peers: list[SlowPeer] = []
    log: LogStatus | None = None
    warnings: list[NodeWarning] = []


class ClusterNode(msgspec.Struct, frozen=True):
    """Say what is known of one node of the cluster.

    Attributes:
        address: As it is configured.
        role: consumer or producer, as it is configured.
        report: Its latest report, None when there never was one.
        age_seconds: Of the report; None without one.
        clock_seconds: By how much its clock is ahead of ours, with an error of up to half a second.
        problem: Why there is no newer one, "" when it is new.
    """

    address: str
    role: str
    report: Report | None
    age_seconds: float | None
    clock_seconds: float | None
    problem: str

    @property
    def answers(self) -> bool:
        """Tell whether the node has answered just now."""
        return self.report is not None and not self.problem


class Cluster(msgspec.Struct, frozen=True):
    """Say how all nodes of a cluster are, as one sees it.

    Attributes:
        consumers: Addresses, in the order that decides which topic is whose.
        producers: Addresses.
        nodes: Consumers first, each in the order of its list.
        warnings: Of all nodes, with the node before the sentence, and what only a look at all of them shows.
    """

    consumers: list[str]
    producers: list[str]
    nodes: list[ClusterNode]
    warnings: list[NodeWarning]
