"""Tables of results, between the markers of a document."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .results import (
    COMMON,
    COMMON_RATE,
    FAN_OUT,
    GROUPS,
    HALF,
    IDLE,
    LATENCY_BYTES,
    MANY,
    MANY_PUBLISHERS,
    MANY_TOPICS,
    MEMBERS,
    MIXED,
    ONE,
    REPLAY,
    SCALING,
    STORED,
    TITLES,
    Figure,
    Results,
)
from .systems import SYSTEMS

LINE_COLUMNS = 120
"""Width of lines in documents, except those of tables."""

QUANTILES = ("p50", "p99", "p99.9")
WORKLOADS = {
    HALF: "latency at half of its own most",
    COMMON: f"at {COMMON_RATE:,} messages/s",
    IDLE: "idle subscribers",
    REPLAY: "replay",
    **{
        workload: f"{MANY_PUBLISHERS:,} publishers, {MANY_TOPICS} topics, {rate:,} messages/s"
        for workload, rate in MANY.items()
    },
    **{
        workload: f"{MEMBERS} members, {'flat out' if rate is None else f'{rate:,} messages/s'}"
        for workload, rate in GROUPS.items()
    },
}
BUSIEST = max(MANY, key=MANY.__getitem__)
"""The workload of many publishers with the most messages per second."""

CLASSIC, SQLITE, SQLITE_SINGLE = "wsqueue-classic", "wsqueue-sqlite", "wsqueue-sqlite-1"
ON_DISK = (SQLITE, SQLITE_SINGLE, "wsqueue-jetstream", "wsqueue-jetstream-1")
OF_GROUP = {
    "wsqueue-group": "wsqueue",
    "wsqueue-sqlite-group": SQLITE,
    "wsqueue-jetstream-group": "wsqueue-jetstream",
}
"""The systems with groups, and each of them with one subscriber instead."""

OURS = {STORED: ON_DISK, **dict.fromkeys(GROUPS, tuple(OF_GROUP))}
"""The systems that stand for wsqueue where it is not the first one alone."""


def size(payload: int) -> str:
    """Return a size of messages as text."""
    if payload == MIXED:
        return "mixed"
    return f"{payload // 1024} KiB" if payload >= 1024 else f"{payload} B"


def update(document: Path, results: Results) -> None:
    """Replace the text between the markers of a document, and append sections without markers.

    All other text is kept.
    """
    text = document.read_text() if document.exists() else "# Performance\n"
    for name, section in SECTIONS.items():
        begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        if begin not in text:
            text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{document}: {begin} has no {end}")
        text = f"{before}{begin}\n\n{section(results) or 'Not measured.'}\n\n{end}{after}"
    document.write_text(text)


def about(results: Results) -> str:
    """Describe the run: machine, versions and date."""
    rows = [("date", results.date), *results.machine.items(), *results.versions.items()]
    spreads = [high / low - 1 for low, high in (figure.cpu_range for figure in results.figures) if low]
    sentence = (
        f"Each figure is the median of {results.repetitions} runs of about {results.seconds:g} seconds, "
        "between which the other systems had theirs; of fewer where a system was so slow that one took much "
        "longer, and of one for the memory of idle subscribers."
    )
    if spreads:
        sentence += (
            f" Between the lowest and the highest CPU time of those runs lie {median(spreads):.0%} "
            f"(median over all figures) and at most {max(spreads):.0%}."
        )
    lost = sum(figure.lost for figure in results.figures)
    failed = sum(figure.failed for figure in results.figures)
    sentence += f" Runs that failed: {failed}; deliveries lost in all others together: {lost}."
    return f"{_table(('', ''), rows)}\n\n{textwrap.fill(sentence, LINE_COLUMNS)}"


@dataclass(frozen=True)
class Goal:
    """A goal, and how far it is reached.

    Attributes:
        workload: Name of the comparison.
        goal: The goal in words; it must be reached.
        aim: The aim in words; it should be reached.
        measure: Returns the ratio and a text with the figures, None if a figure is missing.
        limit: Ratio of the goal.
        wanted: Ratio of the aim.
        high: True if a high ratio is good.
    """

    workload: str
    goal: str
    aim: str
    measure: Callable[[Results], tuple[float, str] | None]
    limit: float
    wanted: float
    high: bool = False

    def row(self, results: Results) -> tuple[str, ...]:
        """Return the row of the table."""
        measured = self.measure(results)
        if measured is None:
            return (self.workload, self.goal, self.aim, "not measured")
        ratio, text = measured
        sign = 1 if self.high else -1
        if sign * ratio >= sign * self.wanted:
            verdict = "aim reached"
        elif sign * ratio >= sign * self.limit:
            verdict = "goal reached"
        else:
            verdict = "**missed**"
        return (self.workload, self.goal, self.aim, f"{text}: {verdict}")


def _less_cpu(results: Results) -> tuple[float, str] | None:
    ours, theirs = results.find(ONE, "wsqueue", 100), results.find(ONE, "reference", 100)
    if ours is None or theirs is None or not ours.cpu:
        return None
    ratio = theirs.cpu / ours.cpu
    return ratio, f"{_number(ratio)}× less ({_number(ours.cpu)} µs against {_number(theirs.cpu)} µs)"


def _cpu_of(
    workload: str, payload: int, system: str, *others: str
) -> Callable[[Results], tuple[float, str] | None]:
    """Return a function that compares the CPU time of a system with the least of the others."""

    def measure(results: Results) -> tuple[float, str] | None:
        ours, *theirs = (
            figure.cpu if (figure := results.find(workload, name, payload)) else 0.0
            for name in (system, *others)
        )
        least = min(filter(None, theirs), default=0.0)
        if not ours or not least:
            return None
        return ours / least, f"{_number(ours / least)}× ({_number(ours)} µs against {_number(least)} µs)"

    return measure


def _of_consumer(workload: str, system: str) -> Callable[[Results], tuple[float, str] | None]:
    """Return a function that compares the consumer's CPU time with that for a subscriber."""

    def measure(results: Results) -> tuple[float, str] | None:
        group, plain = (results.find(workload, name) for name in (system, OF_GROUP[system]))
        if group is None or plain is None or not _consumer(group) or not _consumer(plain):
            return None
        ratio = _consumer(group) / _consumer(plain)
        return (
            ratio,
            f"{_number(ratio)}× ({_number(_consumer(group))} µs against {_number(_consumer(plain))} µs)",
        )

    return measure


def _consumer(figure: Figure) -> float:
    """Return the CPU time of the consumer for a message, 0 if the system has none."""
    return figure.nodes.get("consumer-1", 0.0)


def _confirmed(system: str, other: str, payload: int) -> Callable[[Results], tuple[float, str] | None]:
    """Return a function that compares how many messages two systems confirm from the disk."""

    def measure(results: Results) -> tuple[float, str] | None:
        ours, theirs = (results.find(STORED, name, payload) for name in (system, other))
        if ours is None or theirs is None or not theirs.messages:
            return None
        ratio = ours.messages / theirs.messages
        return ratio, f"{_number(ratio)}× ({_rate(ours.messages)}/s against {_rate(theirs.messages)}/s)"

    return measure


def _replay(system: str) -> Callable[[Results], tuple[float, str] | None]:
    """Return a function that compares the speed of a replay with the highest speed of live delivery."""

    def measure(results: Results) -> tuple[float, str] | None:
        read, live = results.find(REPLAY, system), results.find(ONE, "wsqueue", LATENCY_BYTES)
        if read is None or live is None or not live.deliveries or not read.deliveries:
            return None
        ratio = read.deliveries / live.deliveries
        return ratio, f"{_number(ratio)}× ({_rate(read.deliveries)}/s against {_rate(live.deliveries)}/s)"

    return measure


def _more_deliveries(results: Results) -> tuple[float, str] | None:
    ours, theirs = results.find(FAN_OUT, "wsqueue", 100), results.find(FAN_OUT, "nats", 100)
    if ours is None or theirs is None or not theirs.deliveries:
        return None
    ratio = ours.deliveries / theirs.deliveries
    return ratio, f"{_number(ratio)}× ({_rate(ours.deliveries)}/s against {_rate(theirs.deliveries)}/s)"


def _latencies(results: Results) -> tuple[float, str] | None:
    ours, theirs = results.find(COMMON, "wsqueue"), results.find(COMMON, "nats")
    if ours is None or theirs is None or ours.latency is None or theirs.latency is None:
        return None
    pairs = list(zip(QUANTILES[:2], ours.latency, theirs.latency, strict=False))
    texts = [f"{name} {_number(a / b)}× ({_number(a)} ms against {_number(b)} ms)" for name, a, b in pairs]
    return max(a / b for _, a, b in pairs), ", ".join(texts)


def _idle_memory(results: Results) -> tuple[float, str] | None:
    ours = results.find(IDLE, "wsqueue")
    return (
        None
        if ours is None or not ours.subscribers
        else (ours.idle_bytes / 1024, f"{ours.idle_bytes / 1024:.1f} KiB")
    )


GOALS = (
    Goal(
        f"{TITLES[ONE]}, 100 B: CPU of all nodes, against the reference",
        "8× less",
        "20× less",
        _less_cpu,
        8,
        20,
        True,
    ),
    Goal(
        f"{TITLES[ONE]}, 100 B: CPU of all nodes, against NATS over WebSockets",
        "within 0.4×",
        "within 0.25×",
        _cpu_of(ONE, 100, "wsqueue", "nats", "nats-frames"),
        0.4,
        0.25,
    ),
    Goal(
        f"{TITLES[ONE]}, 100 B, one message a batch: CPU, against NATS with a frame each",
        "within 6×",
        "within 2×",
        _cpu_of(ONE, 100, "wsqueue-1", "nats-frames"),
        6,
        2,
    ),
    Goal(
        f"{TITLES[ONE]}, 1 KiB: CPU, against NATS",
        "within 0.8×",
        "within 0.5×",
        _cpu_of(ONE, 1024, "wsqueue", "nats", "nats-frames"),
        0.8,
        0.5,
    ),
    Goal(
        f"{TITLES[ONE]}, 64 KiB: CPU, against NATS",
        "within 0.6×",
        "within 0.4×",
        _cpu_of(ONE, 65_536, "wsqueue", "nats", "nats-frames"),
        0.6,
        0.4,
    ),
    Goal(
        f"{TITLES[ONE]}, 64 KiB: CPU, against Redis",
        "within 3×",
        "within 2×",
        _cpu_of(ONE, 65_536, "wsqueue", "redis"),
        3,
        2,
    ),
    Goal(
        f"{TITLES[FAN_OUT]}, 64 KiB: CPU, against the reference",
        "within 0.6×",
        "within 0.4×",
        _cpu_of(FAN_OUT, 65_536, "wsqueue", "reference"),
        0.6,
        0.4,
    ),
    Goal(
        f"{TITLES[ONE]}, 64 KiB: CPU with logs on the disk (sqlite), against memory",
        "within 1.6×",
        "within 1.3×",
        _cpu_of(ONE, 65_536, SQLITE, "wsqueue"),
        1.6,
        1.3,
    ),
    Goal(
        "confirmed from the disk, 100 B, one a batch: messages/s, against JetStream always synced",
        "10×",
        "20×",
        _confirmed(SQLITE_SINGLE, "nats-jetstream-sync", 100),
        10,
        20,
        True,
    ),
    Goal(
        "confirmed from the disk, 64 KiB: messages/s, against JetStream always synced",
        "1.2×",
        "2×",
        _confirmed(SQLITE_SINGLE, "nats-jetstream-sync", 65_536),
        1.2,
        2,
        True,
    ),
    Goal(
        "confirmed from a log on JetStream, 64 KiB: messages/s, against JetStream itself, always synced",
        "0.5×",
        "1×",
        _confirmed("wsqueue-jetstream-1", "nats-jetstream-sync", 65_536),
        0.5,
        1,
        True,
    ),
    Goal(
        f"{WORKLOADS[BUSIEST]}: CPU, classic, against NATS",
        "within 1.3×",
        "equal or less",
        _cpu_of(BUSIEST, LATENCY_BYTES, CLASSIC, "nats"),
        1.3,
        1,
    ),
    Goal(f"{TITLES[FAN_OUT]}, 100 B: deliveries/s, against NATS", "2×", "4×", _more_deliveries, 2, 4, True),
    Goal(
        f"p50 and p99 at {COMMON_RATE:,} messages/s, against NATS",
        "within 1.5×",
        "equal or less",
        _latencies,
        1.5,
        1,
    ),
    Goal("memory of an idle subscriber", "8 KiB", "5 KiB", _idle_memory, 8, 5),
    Goal(
        f"{TITLES[ONE]}, 100 B: CPU with confirmations, against classic",
        "within 1.3×",
        "less",
        _cpu_of(ONE, LATENCY_BYTES, "wsqueue", CLASSIC),
        1.3,
        1,
    ),
    Goal(
        f"the same at {COMMON_RATE:,} messages/s, with small batches",
        "within 1.3×",
        "less",
        _cpu_of(COMMON, LATENCY_BYTES, "wsqueue", CLASSIC),
        1.3,
        1,
    ),
    Goal(
        f"{TITLES[ONE]}, 100 B: CPU with logs on the disk (sqlite), against classic",
        "within 3×",
        "less",
        _cpu_of(ONE, LATENCY_BYTES, SQLITE, CLASSIC),
        3,
        1,
    ),
    *(
        Goal(
            f"replay, {where}: deliveries/s, against the most of one subscriber live",
            "5×",
            "10×",
            _replay(system),
            5,
            10,
            True,
        )
        for system, where in (("wsqueue", "memory"), (SQLITE, "sqlite"))
    ),
    *(
        Goal(
            f"group, {WORKLOADS[workload]}, 100 B, {where}: CPU of the consumer, against one subscriber",
            "within 3×",
            "within 2×",
            _of_consumer(workload, system),
            3,
            2,
        )
        for workload in GROUPS
        for system, where in (("wsqueue-group", "memory"), ("wsqueue-sqlite-group", "sqlite"))
    ),
)


def goals(results: Results) -> str:
    """Compare the figures with the goals."""
    head = ("workload", "goal at least", "aim", "measured")
    return _table(head, [goal.row(results) for goal in GOALS])


@dataclass(frozen=True)
class Number:
    """A number of a figure by which systems can be compared.

    Attributes:
        name: Title in a table.
        of: Returns the number, 0 if there is none.
        high: True if a high number is good.
    """

    name: str
    of: Callable[[Figure], float]
    high: bool = False


def _quantile(index: int) -> Callable[[Figure], float]:
    return lambda figure: 0.0 if figure.latency is None else figure.latency[index]


_CPU = Number("CPU µs/message", lambda figure: figure.cpu)
_QUANTILES = [Number(f"{name} ms", _quantile(index)) for index, name in enumerate(QUANTILES)]
COMPARED = {
    **dict.fromkeys(TITLES, (_CPU, Number("deliveries/s", lambda figure: figure.deliveries, high=True))),
    HALF: _QUANTILES,
    **dict.fromkeys((COMMON, *MANY), (_CPU, *_QUANTILES)),
    **dict.fromkeys(
        (STORED, *GROUPS), (_CPU, Number("messages/s", lambda figure: figure.messages, high=True))
    ),
    IDLE: (Number("KiB each", lambda figure: figure.idle_bytes / 1024),),
}
"""The numbers by which systems are compared, by workload."""


def losses(results: Results) -> str:
    """List every number in which another system is better than wsqueue, the largest factor first."""
    rows: list[tuple[float, Sequence[str]]] = []
    for ours in results.figures:
        if ours.system not in OURS.get(ours.workload, ("wsqueue",)):
            continue
        peers = [
            figure
            for figure in results.figures
            if (figure.workload, figure.payload) == (ours.workload, ours.payload)
            and not figure.system.startswith("wsqueue")
        ]
        for number in COMPARED.get(ours.workload, ()):
            factors = {peer.system: _factor(number, ours, peer) for peer in peers}
            better = [peer for peer in peers if factors[peer.system] > 1]
            if better:
                cells = [
                    f"{SYSTEMS[peer.system].title} {_number(number.of(peer))} ({factors[peer.system]:.2g}×)"
                    for peer in better
                ]
                row = (_workload(ours), number.name, _number(number.of(ours)), ", ".join(cells))
                rows.append((max(factors.values()), row))
    if not rows:
        return "Nowhere, in what was measured."
    rows.sort(key=lambda item: item[0], reverse=True)
    return _table(("workload", "", "wsqueue", "better"), [row for _, row in rows])


def _factor(number: Number, ours: Figure, theirs: Figure) -> float:
    """Return the factor by which the other system is better, 0 if a number is missing."""
    mine, other = number.of(ours), number.of(theirs)
    if not mine or not other:
        return 0.0
    return other / mine if number.high else mine / other


def _workload(figure: Figure) -> str:
    if figure.workload in TITLES:
        return f"{TITLES[figure.workload]}, {size(figure.payload)}"
    if figure.workload == STORED:
        return f"stored, {size(figure.payload)}: {SYSTEMS[figure.system].title}"
    if figure.workload in GROUPS:
        return f"{WORKLOADS[figure.workload]}: {SYSTEMS[figure.system].title}"
    return WORKLOADS[figure.workload]


def cpu(results: Results) -> str:
    """Show the CPU time of all nodes per message, by workload, payload and system."""
    tables = _by_payload(results, lambda figure: _number(figure.cpu))
    return tables and f"{tables}\n\n{_plot('cpu', 'CPU time of a message by its size and by system')}"


def rates(results: Results) -> str:
    """Show deliveries per second and the CPU time of the load generator, by workload, payload and system."""
    tables = _by_payload(results, lambda figure: _rate_and_share(figure, figure.deliveries))
    return tables and f"{tables}\n\n{_plot('deliveries', 'Deliveries a second by workload and by system')}"


def nodes(results: Results) -> str:
    """Show the CPU time of each node, and the memory of each system."""
    rows = [
        (
            SYSTEMS[figure.system].title,
            ", ".join(f"{name} {_number(value)}" for name, value in figure.nodes.items()),
            _number(figure.load_cpu),
            _number(figure.rss),
        )
        for system in results.systems(ONE)
        if (figure := results.find(ONE, system, LATENCY_BYTES))
    ]
    if not rows:
        return ""
    head = (f"{TITLES[ONE]}, {size(LATENCY_BYTES)}", "CPU µs/message", "load generator", "largest node, MiB")
    return _table(head, rows)


def latency(results: Results) -> str:
    """Show latencies at half of the highest rate of each system, and at a common rate."""
    tables = _latencies_of(results, (HALF, COMMON))
    if results.systems(COMMON):
        tables += f"\n\n{_plot('latency', f'Latency at {COMMON_RATE:,} messages/s by system')}"
    return tables


def many(results: Results) -> str:
    """Show latencies with many publishers and topics."""
    return _latencies_of(results, MANY)


def _latencies_of(results: Results, workloads: Iterable[str]) -> str:
    """Return a table of latencies for each workload."""
    tables = []
    for workload in workloads:
        rows = []
        for system in results.systems(workload):
            figure = results.find(workload, system)
            assert figure is not None
            cells = ["–"] * 5
            if figure.latency is not None:
                cells = [_rate(figure.messages), *map(_number, figure.latency), _number(figure.cpu)]
            rows.append((SYSTEMS[system].title, *cells))
        if rows:
            head = (
                WORKLOADS[workload],
                "messages/s",
                *(f"{name} ms" for name in QUANTILES),
                "CPU µs/message",
            )
            tables.append(_table(head, rows))
    return "\n\n".join(tables)


def stored(results: Results) -> str:
    """Show confirmed messages per second, and the CPU times, by system and payload."""
    payloads = results.payloads(STORED)
    numbers: tuple[tuple[str, Callable[[Figure], str]], ...] = (
        ("messages/s", lambda figure: _rate_and_share(figure, figure.messages)),
        ("CPU µs/message", lambda figure: _number(figure.cpu)),
    )
    rows = [
        (
            SYSTEMS[system].title,
            *(
                _cell(results.find(STORED, system, payload), cell)
                for payload in payloads
                for _, cell in numbers
            ),
        )
        for system in results.systems(STORED)
    ]
    head = ("confirmed", *(f"{size(payload)}: {name}" for payload in payloads for name, _ in numbers))
    return _table(head, rows) if rows else ""


def groups(results: Results) -> str:
    """Show messages that are done per second, and the CPU times, of groups and of one subscriber."""
    tables = []
    for workload, rate in GROUPS.items():
        rows = []
        for system in results.systems(workload):
            figure = results.find(workload, system)
            assert figure is not None
            plain = results.find(workload, OF_GROUP.get(system, ""))
            consumer, before = _consumer(figure), _consumer(plain) if plain else 0.0
            cells = [
                _cell(figure, lambda figure: _rate_and_share(figure, figure.messages)),
                _number(figure.cpu),
                _number(consumer) if consumer else "–",
                f"{_number(consumer / before)}×" if before else "–",
            ]
            if rate is not None:
                cells += map(_number, figure.latency[:2]) if figure.latency else ("–", "–")
            rows.append((SYSTEMS[system].title, *cells))
        if rows:
            head = (
                WORKLOADS[workload],
                "messages/s",
                "CPU µs/message",
                "the consumer's",
                "against a subscriber",
            )
            quantiles = [] if rate is None else [f"{name} ms" for name in QUANTILES[:2]]
            tables.append(_table((*head, *quantiles), rows))
    return "\n\n".join(tables)


def idle(results: Results) -> str:
    """Show the memory of idle subscribers."""
    rows = [
        (SYSTEMS[system].title, f"{figure.subscribers:,}", f"{figure.idle_bytes / 1024:.1f}")
        for system in results.systems(IDLE)
        if (figure := results.find(IDLE, system))
    ]
    return _table(("", "subscribers", "KiB each, all nodes"), rows) if rows else ""


def scaling(results: Results) -> str:
    """Show the effect of more consumers."""
    rows = [
        (
            f"{figure.consumers}",
            _rate(figure.messages),
            _rate(figure.deliveries),
            _number(figure.cpu),
            _number(figure.load_cpu),
            f"{(figure.cpu + figure.load_cpu) * figure.messages / 1e6:.2f}",
        )
        for figure in results.figures
        if figure.workload == SCALING and figure.messages
    ]
    head = ("consumers", "messages/s", "deliveries/s", "CPU µs/message", "load generator", "cores in use")
    if not rows:
        return ""
    return f"{_table(head, rows)}\n\n{_plot('scaling', 'Messages a second by number of consumers')}"


def v2(results: Results) -> str:
    """Show the cost of confirmations and logs over the classic protocol, and the speed of replays."""
    systems = {"wsqueue": "memory", SQLITE: "sqlite"}
    rows = []
    for workload, payload in dict.fromkeys(
        (figure.workload, figure.payload) for figure in results.figures if figure.system == CLASSIC
    ):
        classic = results.find(workload, CLASSIC, payload)
        if classic is None or not classic.cpu or payload == MIXED:
            continue
        ours = [results.find(workload, system, payload) for system in systems]
        ratios = [
            f"{_number(figure.cpu / classic.cpu)}×" if figure and figure.cpu else "–" for figure in ours
        ]
        rows.append((_workload(classic), _number(classic.cpu), *ratios))
    head = ("CPU of all nodes", "classic, µs/message", *(f"v2, {name}" for name in systems.values()))
    tables = [_table(head, rows)] if rows else []
    rows = [
        (name, _rate(figure.deliveries), _number(figure.cpu), _number(figure.load_cpu))
        for system, name in systems.items()
        if (figure := results.find(REPLAY, system)) and figure.messages
    ]
    if rows:
        head = (f"replay, {size(LATENCY_BYTES)}", "messages/s", "CPU µs/message", "load generator")
        tables.append(_table(head, rows))
    return "\n\n".join(tables)


SECTIONS: dict[str, Callable[[Results], str]] = {
    "about": about,
    "goals": goals,
    "losses": losses,
    "cpu": cpu,
    "nodes": nodes,
    "rates": rates,
    "latency": latency,
    "many": many,
    "idle": idle,
    "scaling": scaling,
    "v2": v2,
    "stored": stored,
    "groups": groups,
}
"""The sections that a run writes, by the name in their markers."""


def _by_payload(results: Results, cell: Callable[[Figure], str]) -> str:
    """Return a table for each workload without a rate."""
    tables: list[str] = []
    for workload, title in TITLES.items():
        systems = results.systems(workload)
        rows = []
        for payload in results.payloads(workload):
            figures = [results.find(workload, system, payload) for system in systems]
            rows.append((size(payload), *(_cell(figure, cell) for figure in figures)))
        if rows:
            tables.append(_table((title, *(SYSTEMS[system].title for system in systems)), rows))
    return "\n\n".join(tables)


def _cell(figure: Figure | None, cell: Callable[[Figure], str]) -> str:
    if figure is None:
        return "–"
    return cell(figure) if figure.messages else "failed"


def _rate_and_share(figure: Figure, rate: float) -> str:
    """Return a rate, and in brackets the load generator's share of the CPU time."""
    share = figure.load_cpu / ((figure.load_cpu + figure.cpu) or 1)
    return f"{_rate(rate)} ({share:.0%})"


def _plot(name: str, text: str) -> str:
    """Show the plots that `bench.plots` draws beside the document."""
    return f"![{text}](performance/{name}.svg)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    """Return a number with three digits: 1,230, 12.3, 0.123."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return re.sub(r"\.0+$", "", f"{value:.3g}")


def _rate(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.0f}"
