"""Snapshots of a cluster, with rates since the snapshot before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from ...report.report import Cluster, ClusterNode, NodeWarning, Report, TopicStatus

MAX_TOPICS = 20
"""Maximum number of topics in a snapshot."""


class Rates(msgspec.Struct, frozen=True):
    """Messages and bytes per second of a node, since the report before.

    Attributes:
        messages_in: Messages received.
        messages_out: Messages forwarded by a producer, or delivered by a consumer.
        bytes_in: Bytes read.
        bytes_out: Bytes written.
    """

    messages_in: float
    messages_out: float
    bytes_in: float
    bytes_out: float


class NodeSnapshot(ClusterNode, frozen=True):
    """A node and its rates: None unless it has answered twice since it started."""

    rates: Rates | None


class ClusterSnapshot(msgspec.Struct, frozen=True):
    """The state of a cluster at a time; described in `docs/top.md`.

    Attributes:
        time: Unix time.
        consumers: Addresses of the consumers, in the order that maps topics to them.
        producers: Addresses of the producers.
        nodes: All nodes, consumers first.
        warnings: Warnings of all nodes, and warnings about differences between them.
        top_topics: Topics with the most messages in the cluster.
    """

    time: float
    consumers: list[str]
    producers: list[str]
    nodes: list[NodeSnapshot]
    warnings: list[NodeWarning]
    top_topics: list[TopicStatus]

    @property
    def answering(self) -> list[NodeSnapshot]:
        """Return the nodes that answer."""
        return [node for node in self.nodes if node.answers]


class Sampler:
    """Make snapshots of a cluster, each with rates since the one before."""

    def __init__(self) -> None:
        self._before: dict[str, Report] = {}
        self._rates: dict[str, Rates] = {}

    def snapshot(self, cluster: Cluster, now: float) -> ClusterSnapshot:
        """Return the snapshot of a cluster.

        Args:
            cluster: The cluster, from the monitor.
            now: Unix time.
        """
        nodes = [self._node(node) for node in cluster.nodes]
        return ClusterSnapshot(
            now, cluster.consumers, cluster.producers, nodes, cluster.warnings, top_topics(cluster.nodes)
        )

    def _node(self, node: ClusterNode) -> NodeSnapshot:
        place = node.address
        if node.report is None or node.problem:
            self._before.pop(place, None)
            self._rates.pop(place, None)
            return NodeSnapshot(**msgspec.structs.asdict(node), rates=None)
        before = self._before.get(place)
        if before is None or before.id != node.report.id:
            self._rates.pop(place, None)
            self._before[place] = node.report
        # A node may have sent the same report twice.
        elif (seconds := node.report.uptime_seconds - before.uptime_seconds) > 0:
            self._rates[place] = rates(before, node.report, seconds)
            self._before[place] = node.report
        return NodeSnapshot(**msgspec.structs.asdict(node), rates=self._rates.get(place))


def rates(before: Report, now: Report, seconds: float) -> Rates:
    """Return the rates of a node from two of its reports and the seconds between them."""

    def rate(counter: str) -> float:
        return max(0, now.counters.get(counter, 0) - before.counters.get(counter, 0)) / seconds

    out = "deliveries" if now.role == "consumer" else "forwarded"
    return Rates(rate("messages_in"), rate(out), rate("bytes_in"), rate("bytes_out"))


def top_topics(nodes: Sequence[ClusterNode]) -> list[TopicStatus]:
    """Return the topics with the most messages over all nodes.

    A producer and a consumer both count a message, so the larger one of both sums is used.
    """
    sums: dict[str, Counter[str]] = {}
    for node in nodes:
        if node.report is not None and not node.problem:
            of_role = sums.setdefault(node.role, Counter())
            for topic in node.report.top_topics:
                of_role[topic.topic] += topic.messages_per_second  # type: ignore[assignment] # also floats
    highest: Counter[str] = Counter()
    for of_role in sums.values():
        highest |= of_role
    return [TopicStatus(topic, float(rate)) for topic, rate in highest.most_common(MAX_TOPICS)]
