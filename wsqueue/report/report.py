"""The report of a node: the same values for the status page, the metrics, `top` and `doctor`.

A node makes a report from numbers that it has anyway, at most once in `FRESH_SECONDS`, however often it is
asked. docs/monitoring.md describes the fields. A node of another version may send more or fewer fields: a
field that is added gets a default, and a field with a few known values may have unknown ones.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

FRESH_SECONDS = 0.5
"""Time for which a report is used again, so that watching a node doesn't keep it busy."""

MAX_SLOW_PEERS = 10
"""Maximum number of slow subscribers that a report names; it counts all of them."""

MAX_TOPIC_CHARACTERS = 200
"""Maximum length of a topic's name in a report; a longer name is cut."""

LOST_REASONS = ("in_flight", "held", "refused", "full")
"""Reasons why classic messages are lost; each has a counter `lost_<reason>`."""

UnixTime = Annotated[float, msgspec.Meta(ge=0, lt=253_402_300_800)]
"""A time that has a date: before the year 10,000."""

LinkState = Literal["up", "down"]
ConnectionState = Literal["hello", "open", "closing"]
WarningCode = Literal[
    "certificate_expires",
    "clock_differs",
    "draining",
    "hello_refused",
    "keys_differ",
    "link_down",
    "link_remade",
    "link_slow",
    "log_clock",
    "log_failing",
    "log_held",
    "log_nearly_full",
    "log_unavailable",
    "logs_differ",
    "loop_lag",
    "node_unreachable",
    "many_connections",
    "messages_lost",
    "no_report",
    "publishers_paused",
    "replica_behind",
    "replica_missing",
    "reload_refused",
    "restart_needed",
    "strangers_dropped",
    "subscriber_slow",
    "version_differs",
]


class NodeWarning(msgspec.Struct, frozen=True):
    """Describe a problem and a way to solve it, each in a sentence.

    Attributes:
        code: A `WarningCode`, or a code of a newer version.
        text: The problem.
        advice: A way to solve it, "" for none.
    """

    code: WarningCode | str
    text: str
    advice: str = ""


class ConnectionCount(msgspec.Struct, frozen=True):
    """Count the connections of one kind.

    Attributes:
        role: The peer's role: publisher, producer, subscriber, monitor or operator; "" before it is known.
        state: The connection's state.
        protocol: v2, classic or http; "" during the hello.
        count: Number of connections.
    """

    role: str
    state: ConnectionState | str
    protocol: str
    count: int


class ClientStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Describe the clients with one name at a node.

    Attributes:
        name: Name of their key; "" for all publishers and subscribers with the key that has no name.
        connections: Number of their connections now.
        topics: Number of topics that these use now; without a name, only those of tokens are counted.
        refused: How often something was refused that the key does not allow, or that was too much.
    """

    name: str
    connections: int = 0
    topics: int = 0
    refused: int = 0


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a producer's link to a consumer.

    Attributes:
        address: The consumer's address.
        state: up or down.
        protocol: v2 or classic; "" while the link is down.
        seconds: Time since the state changed.
        reason: Why the link is down, "" when it is up.
        held_messages: Messages that wait for the consumer or its confirmation.
        held_bytes: Size of these messages.
        paused_publishers: Publishers that the producer doesn't read from because it holds too much.
        remade: Times that a link to a consumer that only speaks classic came up again.
        away: True while other consumers have the consumer's topics.
    """

    address: str
    state: LinkState | str
    protocol: str = ""
    seconds: float = 0.0
    reason: str = ""
    held_messages: int = 0
    held_bytes: int = 0
    paused_publishers: int = 0
    remade: int = 0
    away: bool = False


class TopicStatus(msgspec.Struct, frozen=True):
    """Give the rate of a topic over the last 10 to 20 seconds."""

    topic: str
    messages_per_second: float


class LagStatus(msgspec.Struct, frozen=True):
    """Say by how much a worker group or a named reader is behind.

    Attributes:
        topic: Its topic.
        kind: group or reader.
        name: Its name.
        lag: Number of messages that are kept and not done.
        members: Number of its members, or of the connections that use the reader, at this consumer.
    """

    topic: str
    kind: Literal["group", "reader"] | str
    name: str
    lag: int
    members: int


class SlowPeer(msgspec.Struct, frozen=True):
    """Name a subscriber that reads slower than its topics grow.

    Attributes:
        peer: The subscriber's address.
        protocol: v2, classic or events.
        buffered_bytes: Bytes that wait to be written to it.
        behind_messages: Messages that it has still to read from the logs.
    """

    peer: str
    protocol: str
    buffered_bytes: int
    behind_messages: int


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Describe the servers that keep a shared log, as a consumer sees them.

    Attributes:
        id: Id of the log, the same at all consumers that share it.
        server: Name and version of the server that the consumer is connected to, "" without a connection.
        available: False while the servers do nothing that the consumer asks of them.
        unavailable_seconds: Time since they did something, 0 while the log is available.
        streams: Number of streams: those that the topics are divided among, and that of the states.
        streams_without_leader: Number of streams that don't answer.
        leaders: Number of streams that each server leads, by its name.
        replicas: Number of servers that have a stream and can be reached, the least over all streams that
            answer; 0 if none answers.
        replicas_wanted: Number of servers that should have each stream.
        lag_records: Most records by which a replica that can be reached is behind.
        lag_seconds: Time for which a replica has been far behind, 0 if none is.
        conflicts: Appends that another consumer's append was faster than; they are tried again.
        unanswered: Requests that had no answer, or one of no use; they are tried again.
    """

    id: str = ""
    server: str = ""
    available: bool = True
    unavailable_seconds: float = 0.0
    streams: int = 0
    streams_without_leader: int = 0
    leaders: dict[str, int] = {}
    replicas: int = 0
    replicas_wanted: int = 0
    lag_records: int = 0
    lag_seconds: float = 0.0
    conflicts: int = 0
    unanswered: int = 0


class LogStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Describe the logs of a consumer's topics.

    Attributes:
        mode: memory, sqlite or jetstream.
        topics: Number of known topics.
        bytes: Size of all logs.
        limit_bytes: Maximum size of all logs.
        pending_bytes: Bytes that wait for the disk, or for the servers of a shared log.
        commit_seconds: Duration of the last commit, or append to a shared log; 0 with memory.
        free_bytes: Free space of the logs' file system; -1 where there is none.
        failing: Why nothing can be stored now, "" when it can.
        unchecked: Records that are still to be checked after an unclean stop.
        wal_bytes: Bytes of SQLite's write-ahead log.
        clock_seconds: By how much the clock that dates messages is ahead of the system's.
        held_seconds: Time for which another process has kept that log from being emptied, 0 if none does.
        engine: The servers of a shared log, None with another mode.
    """

    mode: str
    topics: int
    bytes: int
    limit_bytes: int
    pending_bytes: int = 0
    commit_seconds: float = 0.0
    free_bytes: int = -1
    failing: str = ""
    unchecked: int = 0
    wal_bytes: int = 0
    held_seconds: float = 0.0
    clock_seconds: float = 0.0
    engine: EngineStatus | None = None


class HistogramStatus(msgspec.Struct, frozen=True):
    """Count times by size.

    Attributes:
        bounds: Upper bounds in seconds, rising.
        counts: Number of times up to each bound and above the bound before; at the end, of times above all.
        sum: Sum of all times in seconds.
    """

    bounds: list[float]
    counts: list[int]
    sum: float


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the part of a report that depends on the role; the attributes are those of `Report`."""

    links: list[LinkStatus] = []
    confirm_seconds: HistogramStatus | None = None
    commit_seconds: HistogramStatus | None = None
    top_topics: list[TopicStatus] = []
    lags: list[LagStatus] = []
    slow_peers: list[SlowPeer] = []
    log: LogStatus | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a node.

    Attributes:
        id: A random id of this run of the node.
        role: consumer or producer.
        version: Version of wsqueue.
        python: Version of Python.
        addresses: Where the node listens.
        time: Unix time at the node.
        uptime_seconds: Time since the node began to listen.
        not_ready: Why the node doesn't do all of its work, "" when it does.
        restart_needed: Sentences about keys of the configuration whose values hold only after a restart.
        reload_refused: Why the configuration could not be read again; the node goes on with the one before.
        psk_fingerprints: Fingerprints of its keys for clients, in their order (docs/monitoring.md).
        certificate_sha256: SHA-256 of its certificate in hexadecimal; "" without a certificate.
        certificate_ends: Unix time at which the first of its certificates ends; None without a certificate.
        loop_lag_seconds: The longest delay of the event loop in the last 10 to 20 seconds.
        max_connections: Maximum number of connections.
        connections: Number of connections by kind.
        clients: The clients by the names of their keys: those that are connected or in the configuration.
        counters: As in docs/operations.md.
        links: A producer's links.
        confirm_seconds: Times from reading a batch to its confirmation, at a producer.
        commit_seconds: Durations of commits to the disk, at a consumer.
        top_topics: Topics with the most messages, at most `monitoring.top_topics`.
        lags: Groups and named readers that are furthest behind, at most `monitoring.top_topics`, at a
            consumer.
        slow_subscribers: Number of subscribers that are behind now.
        slow_peers: The subscribers that are furthest behind.
        log: A consumer's logs.
        warnings: The problems of the node.
    """

    id: str
    role: str
    version: str
    python: str = ""
    addresses: list[str] = []
    time: float = 0.0
    uptime_seconds: float = 0.0
    not_ready: str = ""
    restart_needed: list[str] = []
    reload_refused: str = ""
    psk_fingerprints: list[str] = []
    certificate_sha256: str = ""
    certificate_ends: UnixTime | None = None
    loop_lag_seconds: float = 0.0
    max_connections: int = 0
    connections: list[ConnectionCount] = []
    clients: list[ClientStatus] = []
    counters: dict[str, int] = {}
    links: list[LinkStatus] = []
    confirm_seconds: HistogramStatus | None = None
    commit_seconds: HistogramStatus | None = None
    top_topics: list[TopicStatus] = []
    lags: list[LagStatus] = []
    slow_subscribers: int = 0
    slow_peers: list[SlowPeer] = []
    log: LogStatus | None = None
    warnings: list[NodeWarning] = []


class ClusterNode(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the latest report of a node of the cluster, or its problem.

    Attributes:
        address: The node's address in the configuration.
        role: The node's role in the configuration: consumer or producer.
        report: The latest report, None before the first.
        age_seconds: Age of the report; None without a report.
        clock_seconds: By how much the node's clock is ahead of ours, give or take half a second.
        problem: Why there is no newer report, "" when it is new.
    """

    address: str
    role: str
    report: Report | None = None
    age_seconds: float | None = None
    clock_seconds: float | None = None
    problem: str = ""

    @property
    def answers(self) -> bool:
        """Return True if the node has answered just now."""
        return self.report is not None and not self.problem

    def __str__(self) -> str:
        return f"{self.role} {self.address}"


class Cluster(msgspec.Struct, frozen=True):
    """Describe all nodes of a cluster, as one of them or a tool sees them.

    Attributes:
        consumers: Addresses, in the order that decides to which consumer a topic belongs.
        producers: Addresses.
        nodes: Consumers first, each in the order of its list.
        warnings: Warnings of all nodes, each after the node's name, and differences between nodes.
    """

    consumers: list[str]
    producers: list[str]
    nodes: list[ClusterNode]
    warnings: list[NodeWarning]
