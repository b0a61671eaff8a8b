"""The results of a run of the comparison, and their file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import msgspec

PAYLOADS = (16, 100, 1024, 65_536)
"""Bytes of data in a message: a number, a line, a small document, a large one."""

COMMON_RATE = 50_000
"""Messages per second at which the latencies of all systems are compared."""

ONE, FAN_OUT, TOPICS = "1-1", "1-100", "100x10"
"""Workloads without a rate."""

HALF, COMMON, IDLE, SCALING, REPLAY, STORED = "half", "common", "idle", "scaling", "replay", "stored"
"""Other workloads: latency at half of the highest rate of a system, latency at `COMMON_RATE`, idle
subscribers, more consumers, replays of stored messages, and messages that are stored before they are
confirmed."""

GROUPS: dict[str, float | None] = {"groups": None, "groups-20k": 20_000}
"""Workloads in which the members of a group share the messages, and their rates; None for as many as go."""

MEMBERS = 8
"""The members of a group. A system without groups has one subscriber that gets all messages instead."""

MANY = {"many-2k": 2_000, "many-20k": 20_000}
"""Workloads with many publishers and topics, and the messages per second of all publishers together."""

MANY_PUBLISHERS, MANY_TOPICS = 2_000, 200
"""The publishers and the topics of these workloads; each topic has one subscriber."""

TITLES = {ONE: "1→1", FAN_OUT: "1→100", TOPICS: "100 × 1→10"}
"""Titles of the workloads without a rate, in tables."""

LATENCY_BYTES = 100
"""Bytes of data of a message if only one size is measured."""

MIXED = 0
"""The payload of figures with messages of several sizes."""

MIXED_SIZES = (100, 30, 300, 16, 1000, 60, 150, 500)
"""The sizes of these messages."""


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """The figures of a system at a workload: each number is the median of all repetitions.

    Attributes:
        workload: Name of the workload.
        system: Key of `bench.systems.SYSTEMS`.
        payload: Bytes of data in a message, or `MIXED`.
        consumers: Number of consumers of wsqueue.
        rate: Requested messages per second, 0 for as many as possible.
        messages: Messages per second.
        deliveries: Deliveries per second.
        failed: Number of repetitions that failed.
        lost: Deliveries that did not come, in all repetitions.
        cpu: CPU time of all nodes, in µs per message.
        cpu_range: Lowest and highest `cpu` of the repetitions.
        nodes: CPU time by node, in µs per message.
        load_cpu: CPU time of the load generator, in µs per message.
        rss: Highest memory of a single node, in MiB.
        latency: p50, p99 and p99.9 in ms, if there is a rate.
        idle_bytes: Memory of all nodes per idle subscriber.
        subscribers: Number of idle subscribers.
    """

    workload: str
    system: str
    payload: int = 0
    consumers: int = 1
    rate: float = 0.0
    messages: float = 0.0
    deliveries: float = 0.0
    failed: int = 0
    lost: int = 0
    cpu: float = 0.0
    cpu_range: tuple[float, float] = (0.0, 0.0)
    nodes: dict[str, float] = {}
    load_cpu: float = 0.0
    rss: float = 0.0
    latency: tuple[float, float, float] | None = None
    idle_bytes: float = 0.0
    subscribers: int = 0


class Results(msgspec.Struct, frozen=True):
    """The results of a run.

    Attributes:
        date: Begin of the run, in UTC.
        machine: Description of the machine.
        versions: Versions of all systems and libraries.
        repetitions: Number of repetitions of each figure.
        seconds: Planned duration of each repetition.
        figures: All figures, in the order of the workloads.
    """

    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    repetitions: int
    seconds: float
    figures: list[Figure]

    def find(
        self, workload: str, system: str, payload: int | None = None, consumers: int = 1
    ) -> Figure | None:
        """Return a figure, None if it was not measured."""
        for figure in self.figures:
            if (figure.workload, figure.system, figure.consumers) == (workload, system, consumers) and (
                payload in (None, figure.payload)
            ):
                return figure
        return None

    def systems(self, workload: str) -> list[str]:
        """Return the systems that were measured at a workload, in the order of measuring."""
        return list(dict.fromkeys(figure.system for figure in self.figures if figure.workload == workload))

    def payloads(self, workload: str) -> list[int]:
        """Return the payloads that were measured at a workload."""
        return sorted({figure.payload for figure in self.figures if figure.workload == workload})

    def write(self, file: Path) -> None:
        """Write the file with one line per figure, so that files of two runs can be compared."""
        head = msgspec.json.encode(msgspec.structs.replace(self, figures=[]))
        lines = b",\n".join(map(msgspec.json.encode, self.figures))
        file.write_bytes(head.removesuffix(b"[]}") + b"[\n" + lines + b"\n]}\n")

    @classmethod
    def read(cls, file: Path) -> Results:
        """Read a file that `write` has written."""
        return msgspec.json.decode(file.read_bytes(), type=cls)


def combine(repetitions: Sequence[Figure], failed: int) -> Figure:
    """Return a figure with the median of each number of all repetitions that did not fail."""

    def middle(number: Callable[[Figure], float]) -> float:
        return _digits(median(map(number, repetitions)))

    first = repetitions[0]
    costs = [figure.cpu for figure in repetitions]
    latencies = [figure.latency for figure in repetitions if figure.latency is not None]
    return msgspec.structs.replace(
        first,
        messages=middle(lambda figure: figure.messages),
        deliveries=middle(lambda figure: figure.deliveries),
        failed=failed,
        lost=sum(figure.lost for figure in repetitions),
        cpu=middle(lambda figure: figure.cpu),
        cpu_range=(_digits(min(costs)), _digits(max(costs))),
        nodes={name: middle(lambda figure, name=name: figure.nodes[name]) for name in first.nodes},  # type: ignore[misc]
        load_cpu=middle(lambda figure: figure.load_cpu),
        rss=middle(lambda figure: figure.rss),
        latency=_medians(latencies) if latencies else None,
        idle_bytes=middle(lambda figure: figure.idle_bytes),
    )


def _medians(latencies: Iterable[tuple[float, float, float]]) -> tuple[float, float, float]:
    p50, p99, p999 = (_digits(median(values)) for values in zip(*latencies, strict=True))
    return p50, p99, p999


def _digits(value: float) -> float:
    """Round to four digits: the file stays small, and no figure is more exact."""
    return float(f"{value:.4g}")
