"""Schedules of faults, made from a seed: the same seed gives the same schedule."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

Retention = Literal["memory", "sqlite", "jetstream"]

Kind = Literal[
    "kill",
    "interrupt",
    "restart",
    "reload",
    "stop",
    "freeze",
    "limits",
    "rotate",
    "reader",
    "cut",
    "reset",
    "tear",
    "half-close",
    "loss",
    "delay",
    "slow",
    "clock",
    "disk full",
    "backup",
    "restore",
    "reboot",
    "engine kill",
    "engine restart",
    "engine stop",
    "engine cut",
    "step-down",
    "engine gone",
    "consumer gone",
    "lists disagree",
    "grow",
    "shrink",
]

Backend = Literal["local", "lab"]

LAB_KINDS: tuple[Kind, ...] = (
    *("kill", "restart", "reload", "reboot", "stop", "freeze", "cut", "reset", "loss", "slow"),
)
"""Faults that can be done to hosts from outside."""

SQLITE_KINDS = frozenset({"disk full", "reader", "backup", "restore"})
"""Faults of a file that a log in memory has not."""

ENGINE_KINDS: tuple[Kind, ...] = (
    *("engine kill", "engine restart", "engine stop", "engine cut", "step-down", "engine gone"),
    *("consumer gone", "lists disagree", "grow", "shrink"),
)
"""Faults of a log that consumers share, on hosts of its own."""

FOR_GOOD: tuple[Kind, ...] = ("engine gone", "consumer gone", "shrink", "grow")
"""Faults that are not undone, each at most once: one of three consumers and two of three servers are left."""

PUBLISH_SECONDS: Mapping[Retention, float] = {"memory": 4.0, "sqlite": 4.0, "jetstream": 12.0}
"""How long messages are published by default: with a shared log, longer than an election and a failover."""

STREAMS = 4
"""Streams of the shared log, so few that a start is short."""

QUORUM_SECONDS = 2.0
"""How long a server may be away when another one is gone for good, because nothing is stored meanwhile."""

FREEZE_SECONDS = 15.0
"""Longer than the watchdog of a schedule waits, if it has one."""

WATCHDOG_SECONDS = 10.0
"""Less than the two minutes of the units, which a schedule does not last."""

CHANGES: tuple[Mapping[str, float], ...] = (
    {"max_connections": 3},
    {"max_held_bytes": 1},
    {"max_held_bytes": 2**30, "max_buffered_bytes": 2**26},
    {"max_buffered_bytes": 2 * 1024 * 1024},
    {"ping_interval_seconds": 0.2, "ping_timeout_seconds": 0.2},
    {"hello_seconds": 0.05},
)
"""Limits that are lowered or raised for a while."""

LOCAL_KINDS: tuple[Kind, ...] = tuple(
    kind for kind in get_args(Kind) if kind != "reboot" and kind not in ENGINE_KINDS
)

ALL_NODES = "all nodes"
"""Target of a fault that is done to the whole cluster."""

Direction = Literal["both", "up", "down"]
"""Up is from who connects to who listens."""

FIRST_FAULT = 0.2
"""Seconds: some messages flow before it, so that there is something to lose."""

TOPICS = ("news", "sport", "a/b", "weather today", "ünï😀", "0", "x" * 200, "%2F")


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that is done to one target, and undone some time later.

    Attributes:
        at: Seconds from the begin of the publishing.
        seconds: How long it lasts; a process that was ended starts again then.
        kind: The kind of fault.
        target: A process as `consumer-1`, or a link between two as `producer-1>consumer-1`; a link's fault
            with a process for its target is done to all links of that process. Of `step-down`, a stream.
        amount: Of `interrupt` and `restore`, the seconds from SIGTERM to SIGKILL; of `freeze`, those to the
            watchdog's SIGKILL, 0 without one; of `limits`, the index in `CHANGES`; of `reader`, 0 if SIGKILL
            ends it; of `tear`, the bytes that still pass; of `loss`, the share of reads that are late as by a
            retransmission; of `delay`, the seconds; of `slow`, bytes a second; of `clock`, the seconds by
            which it is set; of `lists disagree`, the seed of the other list; of `grow` and `shrink`, the
            seconds between the first step and the second.
        direction: Of a link's fault.
    """

    at: float
    seconds: float
    kind: Kind
    target: str
    amount: float = 0.0
    direction: Direction = "both"

    def __str__(self) -> str:
        more = f" {self.amount:g}" if self.amount else ""
        way = f" {self.direction}" if self.direction != "both" else ""
        return f"{self.at:.2f} s: {self.kind}{more}{way} {self.target} for {self.seconds:.2f} s"


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Describe publishers and subscribers meanwhile.

    Attributes:
        consumers: How many of these nodes there are.
        producers: Number of producers.
        subscriptions: The topics of each subscriber.
        topics: On which all publishers publish, each message on one of them.
        publishers: How many there are.
        rate: Messages a second of each publisher, when nothing holds it up.
        window: Messages that each publisher has under way at once.
        sizes: Bytes of data in a message, one of these.
        seconds: How long they publish.
        kept: Messages that the log of a topic keeps, 0 for all: who is away for long gets a gap.
        tls: Whether all connections are encrypted, and nodes have certificates.
        classic_publishers: How many publishers speak the classic protocol.
        classic_subscriptions: The topics of each subscriber that speaks the classic protocol.
        engines: How many servers have the log that the consumers share.
        spares: Consumers beside the others that do not run yet, and are in nobody's list.
        shuffled: Whether each subscriber has the consumers in an order of its own.
        members: How many clients are members of a worker group of each topic.
        keyed: Whether these groups have an order.
        readers: How many clients read each topic under a name.
    """

    consumers: int
    producers: int
    subscriptions: list[list[str]]
    topics: list[str]
    publishers: int
    rate: float
    window: int
    sizes: list[int]
    seconds: float
    kept: int = 0
    tls: bool = False
    classic_publishers: int = 0
    classic_subscriptions: list[list[str]] = []
    engines: int = 0
    spares: int = 0
    shuffled: bool = False
    members: int = 0
    keyed: bool = False
    readers: int = 0

    @property
    def consumer_names(self) -> list[str]:
        """Return the names of the consumers, in the order in which topics are hashed to them."""
        return _names("consumer", self.consumers)

    @property
    def spare_names(self) -> list[str]:
        """Return the names of the consumers that do not run yet."""
        return _names("consumer", self.consumers + self.spares)[self.consumers :]

    @property
    def all_consumer_names(self) -> list[str]:
        """Return the names of the consumers, those that do not run yet last."""
        return self.consumer_names + self.spare_names

    @property
    def engine_names(self) -> list[str]:
        """Return the names of the servers of a shared log."""
        return _names("engine", self.engines)

    @property
    def producer_names(self) -> list[str]:
        """Return the names of the producers."""
        return _names("producer", self.producers)

    @property
    def publisher_names(self) -> list[str]:
        """Return the names of the publishers."""
        return _names("publisher", self.publishers)

    @property
    def subscriber_names(self) -> list[str]:
        """Return the names of the subscribers."""
        return _names("subscriber", len(self.subscriptions))

    @property
    def classic_publisher_names(self) -> list[str]:
        """Return the names of the classic publishers."""
        return _names("classic-publisher", self.classic_publishers)

    @property
    def classic_subscriber_names(self) -> list[str]:
        """Return the names of the classic subscribers."""
        return _names("classic-subscriber", len(self.classic_subscriptions))

    @property
    def member_names(self) -> list[str]:
        """Return the names of the members of groups."""
        return _names("member", self.members)

    @property
    def reader_names(self) -> list[str]:
        """Return the names of the named readers."""
        return _names("reader", self.readers)

    @property
    def all_publisher_names(self) -> list[str]:
        """Return the names of the publishers of both protocols."""
        return self.publisher_names + self.classic_publisher_names

    @property
    def all_subscriber_names(self) -> list[str]:
        """Return the names of the subscribers of both protocols, of members of groups and of readers."""
        plain = self.subscriber_names + self.classic_subscriber_names
        return plain + self.member_names + self.reader_names

    @property
    def links(self) -> list[str]:
        """Return the names of the links, `who connects>who listens`."""
        return [
            f"{one}>{other}"
            for some, others in (
                (self.all_publisher_names, self.producer_names),
                (self.producer_names, self.all_consumer_names),
                (self.all_subscriber_names, self.consumer_names),
                (self.all_consumer_names, self.engine_names),
            )
            for one in some
            for other in others
        ]


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A workload and the faults that it must survive."""

    seed: int
    retention: Retention
    workload: Workload
    faults: list[Fault]

    @property
    def name(self) -> str:
        """Return a name for files and lines of output."""
        return f"seed-{self.seed}-{self.retention}"

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def read(file: Path) -> Schedule:
    """Return the schedule in a JSON file.

    Raises:
        msgspec.ValidationError: The file holds something else.
    """
    return msgspec.json.decode(file.read_bytes(), type=Schedule)


def generate(
    seed: int, retention: Retention, seconds: float | None = None, backend: Backend = "local"
) -> Schedule:
    """Return the schedule of a seed.

    Args:
        seed: Any integer.
        retention: The mode of the consumers.
        seconds: How long messages are published, and faults begin; None for `PUBLISH_SECONDS`.
        backend: Where it is to run; this limits the kinds of faults.
    """
    seconds = PUBLISH_SECONDS[retention] if seconds is None else seconds
    rng = random.Random(f"{seed} {retention} {seconds} {backend}")
    workload = _workload(rng, seconds)
    if retention == "jetstream":
        return Schedule(seed, retention, *_on_engines(rng, workload))
    kinds = tuple(kind for kind in LOCAL_KINDS if kind in _DRAW)
    if backend == "lab":
        workload = msgspec.structs.replace(
            workload, consumers=2, producers=2, tls=False, classic_publishers=0, classic_subscriptions=[]
        )
        kinds = LAB_KINDS
    allowed = [kind for kind in kinds if retention == "sqlite" or kind not in SQLITE_KINDS]
    faults: list[Fault] = []
    for _ in range(rng.randint(2, 7)):
        kind = rng.choice(allowed)
        if kind == "freeze" and rng.random() < 0.75:
            # It takes longer than all others together.
            kind = "stop"
        fault = _DRAW[kind](rng, workload)
        if backend == "lab" and fault.kind in HITS_A_LINK:
            fault = msgspec.structs.replace(fault, target=rng.choice(_between_hosts(workload)))
        faults.append(fault)
        if fault.kind == "restore":
            faults.append(_backup(rng, fault))
        elif fault.kind in HITS_THE_PROCESS - {"freeze"} and rng.random() < 0.2:
            # As when a power failure or an update takes two at once.
            faults.append(msgspec.structs.replace(fault, target=rng.choice(_nodes(workload))))
    return Schedule(seed, retention, workload, _without_clashes(faults))


def with_groups(schedule: Schedule) -> Schedule:
    """Return a schedule with members of groups and named readers, and faults that are done to them."""
    rng = random.Random(f"{schedule.seed} {schedule.retention} groups")
    workload = msgspec.structs.replace(
        schedule.workload,
        members=rng.randint(2, 4),
        keyed=rng.random() < 0.4,
        kept=0,
        # Their numbers are another's on each connection.
        classic_publishers=0,
        classic_subscriptions=[],
    )
    faults = [fault for fault in schedule.faults if "classic" not in fault.target]
    for _ in range(rng.randint(1, 4)):
        kind: Kind = rng.choice(["kill", "kill", "stop"])
        target = rng.choice(workload.member_names)
        faults.append(Fault(_begin(rng, workload), round(rng.uniform(0, 3), 3), kind, target))
    workload = msgspec.structs.replace(workload, readers=rng.randint(1, 2))
    faults += [
        Fault(_begin(rng, workload), round(rng.uniform(0, 3), 3), "kill", target)
        for target in rng.choices(workload.reader_names, k=rng.randint(1, 4))
    ]
    return Schedule(schedule.seed, schedule.retention, workload, _without_clashes(faults))


def _workload(rng: random.Random, seconds: float) -> Workload:
    topics = rng.sample(TOPICS, rng.randint(1, 5))
    window = rng.choice([1, 1, 8, 64])
    large = rng.random() < 0.25
    tls = rng.random() < 0.3
    # By itself, a node takes no classic peer over TLS.
    classic = not tls and rng.random() < 0.5
    return Workload(
        consumers=rng.choice([1, 2, 2, 3]),
        producers=rng.choice([1, 2, 2]),
        subscriptions=[
            topics if index == 0 or rng.random() < 0.5 else rng.sample(topics, rng.randint(1, len(topics)))
            for index in range(rng.randint(1, 3))
        ],
        topics=topics,
        publishers=rng.randint(1, 3),
        rate=rng.choice([20.0, 60.0, 150.0]) / (4 if large else 1),
        window=window,
        sizes=[40, 100_000, 1000] if large else [40, 40, 1000],
        seconds=seconds,
        kept=rng.choice([0, 0, 0, 0, 20, 100]),
        tls=tls,
        classic_publishers=int(classic),
        classic_subscriptions=[rng.sample(topics, rng.randint(1, len(topics)))] if classic else [],
    )


def _on_engines(rng: random.Random, workload: Workload) -> tuple[Workload, list[Fault]]:
    """Return a workload on consumers that share a log, and its faults."""
    workload = msgspec.structs.replace(
        workload,
        consumers=3,
        engines=3,
        spares=1,
        shuffled=rng.random() < 0.3,
        # More megabytes would not fit in the time.
        rate=min(workload.rate, 15.0) if max(workload.sizes) > 1000 else workload.rate,
        # One message at a time is one in an election.
        window=rng.choice([1, 8, 8, 64]),
        # A classic peer has one list, and no other consumer than the first one.
        classic_publishers=0,
        classic_subscriptions=[],
    )
    faults: list[Fault] = []
    for _ in range(rng.randint(3, 9)):
        kind = rng.choice(ENGINE_KINDS if rng.random() < 0.6 else OLD_KINDS)
        if kind == "freeze" and rng.random() < 0.75:
            kind = "stop"
        if kind not in FOR_GOOD or all(kind != fault.kind for fault in faults):
            faults.append(_DRAW[kind](rng, workload))
    if rng.random() < 0.5:
        # Its next life reads all from the servers, perhaps through a consumer that appended nothing.
        target = rng.choice(workload.subscriber_names)
        faults.append(Fault(_begin(rng, workload), round(rng.uniform(0, 8), 3), "kill", target))
    if any(fault.kind == "engine gone" for fault in faults):
        faults = [
            msgspec.structs.replace(fault, seconds=min(fault.seconds, QUORUM_SECONDS))
            if fault.kind in {"engine kill", "engine restart", "engine stop"}
            else fault
            for fault in faults
        ]
    return workload, _without_clashes(faults)


def _names(role: str, count: int) -> list[str]:
    return [f"{role}-{number}" for number in range(1, count + 1)]


def _nodes(workload: Workload) -> list[str]:
    return workload.consumer_names + workload.producer_names


def _consumers(workload: Workload) -> list[str]:
    return workload.consumer_names


def _producers(workload: Workload) -> list[str]:
    return workload.producer_names


def _spares(workload: Workload) -> list[str]:
    return workload.spare_names


def _engines(workload: Workload) -> list[str]:
    return workload.engine_names


def _streams(_workload: Workload) -> list[str]:
    return [f"wsqueue-{number}" for number in range(STREAMS)]


def _between_hosts(workload: Workload) -> list[str]:
    """Return the links of which both ends are nodes, and the nodes: the clients share one host."""
    return _nodes(workload) + [link for link in workload.links if link.startswith("producer")]


def _begin(rng: random.Random, workload: Workload) -> float:
    return round(rng.uniform(FIRST_FAULT, max(FIRST_FAULT, workload.seconds - 0.3)), 3)


def _link_target(rng: random.Random, workload: Workload) -> str:
    """Return a link, or a process, which stands for all its links."""
    return rng.choice(workload.links if rng.random() < 0.6 else _nodes(workload))


def _process_fault(kind: Kind, shortest: float, longest: float) -> Callable[[random.Random, Workload], Fault]:
    def draw(rng: random.Random, workload: Workload) -> Fault:
        targets = _nodes(workload)
        if kind in {"kill", "stop"} and rng.random() < 0.25:
            targets = workload.all_subscriber_names + (workload.all_publisher_names if kind == "stop" else [])
        return Fault(
            at=_begin(rng, workload),
            seconds=round(rng.uniform(shortest, longest), 3),
            kind=kind,
            target=rng.choice(targets),
            amount=round(rng.uniform(0, 0.15), 3) if kind == "interrupt" else 0.0,
        )

    return draw


def _node_fault(
    kind: Kind,
    shortest: float,
    longest: float,
    targets: Callable[[Workload], list[str]],
    amount: Callable[[random.Random], float] = lambda _rng: 0.0,
) -> Callable[[random.Random, Workload], Fault]:
    def draw(rng: random.Random, workload: Workload) -> Fault:
        return Fault(
            at=_begin(rng, workload),
            seconds=round(rng.uniform(shortest, longest), 3),
            kind=kind,
            target=rng.choice(targets(workload)),
            amount=amount(rng),
        )

    return draw


def _link_fault(
    kind: Kind,
    amount: Callable[[random.Random], float],
    longest: float,
    directions: Sequence[Direction] = ("both", "both", "up", "down"),
) -> Callable[[random.Random, Workload], Fault]:
    def draw(rng: random.Random, workload: Workload) -> Fault:
        return Fault(
            at=_begin(rng, workload),
            seconds=round(rng.uniform(0.1, longest), 3) if longest else 0.0,
            kind=kind,
            target=_link_target(rng, workload),
            amount=round(amount(rng), 4),
            direction=rng.choice(directions),
        )

    return draw


def _clock(rng: random.Random, workload: Workload) -> Fault:
    return Fault(
        at=_begin(rng, workload),
        seconds=round(rng.uniform(0.2, 2), 3),
        kind="clock",
        target=rng.choice(_nodes(workload)),
        amount=rng.choice([-1, 1]) * rng.choice([2.0, 3600.0, 86_400.0, 86_400.0 * 300]),
    )


def _freeze(rng: random.Random, workload: Workload) -> Fault:
    return Fault(
        at=_begin(rng, workload),
        seconds=FREEZE_SECONDS,
        kind="freeze",
        target=rng.choice(_nodes(workload)),
        amount=rng.choice([0.0, WATCHDOG_SECONDS]),
    )


def _rotate(rng: random.Random, workload: Workload) -> Fault:
    return Fault(_begin(rng, workload), round(rng.uniform(0.3, 2.5), 3), "rotate", ALL_NODES)


def _backup(rng: random.Random, restore: Fault) -> Fault:
    """Return the fault that makes the copy which another puts back."""
    return Fault(round(rng.uniform(0.05, restore.at), 3), 0.0, "backup", restore.target)


_DRAW: dict[Kind, Callable[[random.Random, Workload], Fault]] = {
    "kill": _process_fault("kill", 0.0, 1.5),
    "interrupt": _process_fault("interrupt", 0.0, 1.0),
    "restart": _process_fault("restart", 0.0, 1.0),
    "reload": _process_fault("reload", 0.0, 0.0),
    # The longest is longer than a ping and its timeout.
    "stop": _process_fault("stop", 0.05, 3.0),
    "freeze": _freeze,
    "limits": _node_fault("limits", 0.2, 2, _nodes, lambda rng: float(rng.randrange(len(CHANGES)))),
    "rotate": _rotate,
    "reader": _node_fault("reader", 0.3, 3, _consumers, lambda rng: float(rng.randrange(2))),
    "cut": _link_fault("cut", lambda _: 0, 3.0),
    "reset": _link_fault("reset", lambda _: 0, 0, ("both",)),
    "tear": _link_fault("tear", lambda rng: int(2000 ** rng.random()), 2.0, ("up", "down")),
    "half-close": _link_fault("half-close", lambda _: 0, 0, ("up", "down")),
    "loss": _link_fault("loss", lambda rng: rng.uniform(0.02, 0.3), 2.0),
    "delay": _link_fault("delay", lambda rng: rng.choice([0.005, 0.05, 0.3]), 2.0),
    "slow": _link_fault("slow", lambda rng: rng.choice([2000, 20_000]), 2.0),
    "clock": _clock,
    "disk full": _node_fault("disk full", 0.2, 1.5, _consumers),
    # With each comes a backup.
    "restore": _node_fault("restore", 0, 1, _consumers, lambda rng: rng.choice([0.0, 0.1, 3.0])),
    "reboot": _process_fault("reboot", 0.0, 0.0),
    "engine kill": _node_fault("engine kill", 0.0, 6, _engines),
    "engine restart": _node_fault("engine restart", 0.0, 6, _engines),
    # The longest is longer than an election takes to begin.
    "engine stop": _node_fault("engine stop", 0.2, 12, _engines),
    "engine cut": _node_fault("engine cut", 0.2, 10, _consumers),
    "step-down": _node_fault("step-down", 0, 0, _streams),
    "engine gone": _node_fault("engine gone", 0, 0, _engines),
    "consumer gone": _node_fault("consumer gone", 0, 0, _consumers),
    "lists disagree": _node_fault(
        "lists disagree", 0.5, 6, _producers, lambda rng: float(rng.randrange(1000))
    ),
    "grow": _node_fault("grow", 0, 0, _spares, lambda rng: round(rng.uniform(0, 3), 3)),
    "shrink": _node_fault("shrink", 0, 0, _consumers, lambda rng: round(rng.uniform(0, 1), 3)),
}

OLD_KINDS: tuple[Kind, ...] = tuple(kind for kind in LOCAL_KINDS if kind not in SQLITE_KINDS)
"""Faults of every retention."""

HITS_THE_PROCESS = frozenset(
    {
        *("kill", "interrupt", "restart", "restore", "stop", "freeze", "reboot"),
        *("engine kill", "engine restart", "engine stop", "engine gone", "consumer gone", "shrink"),
    }
)
"""A process can have only one of these at a time."""

HITS_A_LINK = frozenset({"cut", "reset", "tear", "half-close", "loss", "delay", "slow"})


def _without_clashes(faults: Sequence[Fault]) -> list[Fault]:
    """Return the faults in their order, without those that hit a process that another has hit just then."""
    busy_until: dict[tuple[str, str], float] = {}
    kept = []
    for fault in sorted(faults, key=lambda fault: fault.at):
        what = (fault.target, "process" if fault.kind in HITS_THE_PROCESS else fault.kind)
        if fault.at >= busy_until.get(what, 0.0):
            # A process needs a moment to begin again.
            ending = fault.amount if fault.kind in {"interrupt", "restore"} else 0.0
            ending = math.inf if fault.kind in FOR_GOOD else ending
            busy_until[what] = fault.at + fault.seconds + ending + 0.3
            kept.append(fault)
    return kept
