"""What is known of a cluster at one time, with the rates since the time before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from ...report.report import Cluster, ClusterNode, NodeWarning, Report, TopicStatus

MAX_TOPICS = 20
"""Topics that a snapshot names."""


class Rates(msgspec.Struct, frozen=True):
    """Say how much a node has to do, per second, since it was asked before.

    Attributes:
        messages_in: MessagesReceived.
        messages_out: Forwarded by a producer, delivered by a consumer.
        bytes_in: Read.
        bytes_out: Written.
    """

    messages_in: float
    messages_out: float
    bytes_in: float
    bytes_out: float


class NodeSnapshot(ClusterNode, frozen=True):
    """Say what is known of a node, and its rates: None when it did not answer twice in one run."""

    rates: Rates | None


class Snapshot(msgspec.Struct, frozen=True):
    """Say how a cluster is at a time; `docs/top.md` describes it.

    Attributes:
        time: Unix time.
        consumers: Addresses, in the order that decides which topic is whose.
        producers: Addresses.
        nodes: Consumers first.
        warnings: Of all nodes, and what only a look at all of them shows.
        top_topics: Those with the most messages in the cluster.
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
    """Make a snapshot of each state of a cluster, with rates since the one before."""

    def __init__(self) -> None:
        self._before: dict[str, Report] = {}
        self._rates: dict[str, Rates] = {}

    def snapshot(self, cluster: Cluster, now: float) -> Snapshot:
        """Return the snapshot of a cluster.

        Args:
            cluster: As the monitor has it.
            now: Unix time.
        """
        nodes = [self._node(node) for node in cluster.nodes]
        return Snapshot(
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
        # A node makes a report of its own only so often.
        elif (seconds := node.report.uptime_seconds - before.uptime_seconds) > 0:
            self._rates[place] = rates(before, node.report, seconds)
            self._before[place] = node.report
        return NodeSnapshot(**msgspec.structs.asdict(node), rates=self._rates.get(place))


def rates(before: Report, now: Report, seconds: float) -> Rates:
    """Return the rates of a node between two reports that are so many seconds apart."""

    def rate(counter: str) -> float:
        return max(0, now.counters.get(counter, 0) - before.counters.get(counter, 0)) / seconds

    out = "deliveries" if now.role == "consumer" else "forwarded"
    return Rates(rate("messages_in"), rate(out), rate("bytes_in"), rate("bytes_out"))


def top_topics(nodes: Sequence[ClusterNode]) -> list[TopicStatus]:
    """Return the topics with the most messages over all nodes.

    A message passes a producer and a consumer, each of which counts it; the larger sum has seen more.
    """
    sums: dict[str, Counter[str]] = {}
    for node in nodes:
        if node.report is not None and not node.problem:
            of_role = sums.setdefault(node.role, Counter())
            for topic in node.report.top_topics:
                of_role[topic.topic] += topic.messages_per_second  # type: ignore[assignment] # also floats
    most: Counter[str] = Counter()
    for of_role in sums.values():
        most |= of_role
    return [TopicStatus(topic, float(rate)) for topic, rate in most.most_common(MAX_TOPICS)]
