"""The parts of a snapshot: a summary, warnings in words, and tables. Each is as wide as the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import msgspec
from rich.cells import cell_len
from rich.text import Text

from ...report.report import ClusterNode, LinkStatus, NodeWarning, Report, SlowPeer
from ...report.text import age, amount, duration, number, rate
from ...report.warnings import NO_REPORTS
from ..terminal import one_line
from .snapshot import ClusterSnapshot, NodeSnapshot, Rates
from .table import CONSOLE, GAP, Column, Table

NO_LIMIT = 1_000_000
"""Width and height of a screen on which nothing is cut: for a pipe."""

WORST_FIRST = (
    "node_unreachable",
    "log_failing",
    "log_unavailable",
    "link_down",
    "publishers_paused",
    "link_slow",
    "loop_lag",
)
"""Codes of warnings that come before all others."""

_NODE_COLUMNS = (
    Column("ROLE", 9),
    Column("NODE", 10, shrinks=True),
    Column("STATE", 8),
    Column("VERSION", 1),
    Column("UP", 4, right=True),
    Column("CONN", 6, right=True),
    Column("IN/s", 7, right=True),
    Column("OUT/s", 7, right=True),
    Column("BYTES IN/s", 0, right=True),
    Column("BYTES OUT/s", 0, right=True),
    Column("LAG", 5, right=True),
    Column("LOG", 3, right=True),
)
_LINK_COLUMNS = (
    Column("FROM PRODUCER", 7, shrinks=True),
    Column("TO CONSUMER", 8, shrinks=True),
    Column("LINK", 10),
    Column("FOR", 5, right=True),
    Column("HELD", 4, right=True),
    Column("BYTES", 6, right=True),
    Column("PAUSED", 3, right=True),
    Column("REASON", 2, shrinks=True),
)
_SLOW_COLUMNS = (
    Column("SLOW SUBSCRIBER", 9, shrinks=True),
    Column("OF CONSUMER", 5, shrinks=True),
    Column("PROTOCOL", 2),
    Column("BEHIND", 7, right=True),
    Column("BUFFERED", 6, right=True),
)
_CLIENT_COLUMNS = (
    Column("CLIENT", 9, shrinks=True),
    Column("CONN", 8, right=True),
    Column("TOPICS", 5, right=True),
    Column("REFUSED", 7, right=True),
)
_LAG_COLUMNS = (
    Column("BEHIND", 9, right=True),
    Column("GROUP OR READER", 8, shrinks=True),
    Column("OF TOPIC", 7, shrinks=True),
    Column("MEMBERS", 6, right=True),
)
_TOPIC_COLUMNS = (Column("MESSAGES/s", 1, right=True), Column("TOPIC", 2, shrinks=True))


def summary(snapshot: ClusterSnapshot, width: int, hint: str) -> list[Text]:
    """Return the two lines that sum up a snapshot; the time and the hint are left out without room."""
    answering, total = len(snapshot.answering), len(snapshot.nodes)
    warnings = number(len(snapshot.warnings), "warning") if snapshot.warnings else "no warnings"
    style = "green" if not snapshot.warnings else ("yellow" if answering == total else "red")
    first = Text.assemble(
        ("wsqueue top", "bold"), " " * GAP, (f"{answering} of {total} nodes answer, {warnings}", style)
    )
    moment = datetime.fromtimestamp(snapshot.time).astimezone()
    if width == NO_LIMIT:
        first.append(f"{' ' * GAP}{moment:%Y-%m-%d %H:%M:%S%z}")
        return [first, Text(_throughput(snapshot))]
    for end in (f"{moment:%H:%M:%S}{' ' * GAP}{hint}".rstrip(), hint):
        space = width - first.cell_len - cell_len(end)
        if end and space >= GAP:
            first.append(" " * space)
            first.append(end, style="dim")
            break
    return [first, Text(_throughput(snapshot))]


def _throughput(snapshot: ClusterSnapshot) -> str:
    if not snapshot.answering:
        return "No node answers."
    delivered = _total(snapshot, "consumer")
    published = _total(snapshot, "producer") or delivered
    if published is None:
        return "Rates come with the second answer."
    text = f"Published {rate(published.messages_in)} messages/s"
    return f"{text}, delivered {rate(delivered.messages_out)} messages/s" if delivered else text


def _total(snapshot: ClusterSnapshot, role: str) -> Rates | None:
    """Return the sum of the rates of all nodes of a role, None if no rates are known."""
    found = [node.rates for node in snapshot.answering if node.role == role and node.rates is not None]
    if not found:
        return None
    return Rates(*(sum(values) for values in zip(*map(msgspec.structs.astuple, found), strict=True)))


class Warnings:
    """Warnings in words: with advice, without it, or cut to a line each, depending on the room.

    Args:
        warnings: All warnings.
        width: Cells of a line.

    Attributes:
        height: Number of lines with all advice.
        least: The smallest number of lines that is worth showing: a warning, and a count of the others.
    """

    def __init__(self, warnings: Sequence[NodeWarning], width: int) -> None:
        places = {code: place for place, code in enumerate(WORST_FIRST)}
        self._warnings = sorted(warnings, key=lambda warning: places.get(warning.code, len(places)))
        self._width = width
        self._with_advice = self._wrapped(advice=True)
        self.height = len(self._with_advice)
        self.least = min(self.height, 2)

    def lines(self, height: int) -> list[Text]:
        """Return the warnings in at most `height` lines."""
        if self.height <= height:
            return self._with_advice
        if len(lines := self._wrapped(advice=False)) <= height:
            return lines
        if len(self._warnings) <= height:
            return self._cut(self._warnings)
        more = f"… and {len(self._warnings) - height + 1} more warnings"
        return [*self._cut(self._warnings[: height - 1]), Text(more, style="dim")]

    def _wrapped(self, *, advice: bool) -> list[Text]:
        lines: list[Text] = []
        for warning in self._warnings:
            lines += self._wrap("! ", warning.text, "yellow")
            if advice and warning.advice:
                lines += self._wrap("  ", warning.advice, "dim")
        return lines

    def _wrap(self, mark: str, text: str, style: str) -> list[Text]:
        lines = Text(one_line(text), style=style).wrap(CONSOLE, max(self._width - len(mark), 1))
        for line in lines:
            line.rstrip()
        return [
            Text.assemble((mark if index == 0 else "  ", style), line) for index, line in enumerate(lines)
        ]

    def _cut(self, warnings: Sequence[NodeWarning]) -> list[Text]:
        lines = [Text(f"! {one_line(warning.text)}", style="yellow") for warning in warnings]
        for line in lines:
            line.truncate(self._width, overflow="ellipsis")
        return lines


def nodes(snapshot: ClusterSnapshot, width: int) -> Table:
    """Return the table of all nodes; those that are down or not ready come first."""
    ordered = sorted(snapshot.nodes, key=lambda node: node.answers and not _not_ready(node))
    return Table(_NODE_COLUMNS, [_node(node) for node in ordered], width, "nodes")


def _node(node: NodeSnapshot) -> list[str | Text]:
    report, rates = node.report, node.rates
    if report is None or node.problem:
        silent = node.problem in NO_REPORTS
        state = Text("no report", style="yellow") if silent else Text("down", style="bold red")
        return [node.role, node.address, state, *["-"] * 9]
    return [
        node.role,
        node.address,
        _state(report),
        report.version,
        age(report.uptime_seconds),
        f"{sum(kind.count for kind in report.connections):,}",
        rate(rates.messages_in) if rates else "-",
        rate(rates.messages_out) if rates else "-",
        amount(rates.bytes_in) if rates else "-",
        amount(rates.bytes_out) if rates else "-",
        duration(report.loop_lag_seconds),
        _log(report),
    ]


def _not_ready(node: ClusterNode) -> str:
    return node.report.not_ready if node.report is not None else ""


def _state(report: Report) -> Text:
    if not report.not_ready:
        return Text("ready", style="green")
    return Text("draining" if report.not_ready == "draining" else "not ready", style="yellow")


def _log(report: Report) -> str | Text:
    if report.log is None:
        return "-"
    log, engine = report.log, report.log.engine
    if engine is not None and not engine.available:
        return Text("unavailable", style="bold red")
    if log.failing:
        return Text("failing", style="bold red")
    used = f"{amount(log.bytes)} {100 * log.bytes // max(log.limit_bytes, 1)}%"
    if engine is None:
        return used
    poor = engine.streams_without_leader or engine.replicas < engine.replicas_wanted
    # A log that many consumers share is in the row of each of them.
    return Text(f"{used} R{engine.replicas}/{engine.replicas_wanted}", style="yellow" if poor else "")


def links(snapshot: ClusterSnapshot, width: int) -> Table:
    """Return the table of all links; those that are down, and those that hold most, come first."""

    def worst_first(item: tuple[str, LinkStatus]) -> tuple[bool, int]:
        return item[1].state == "up", -item[1].held_bytes

    rows: list[list[str | Text]] = [
        [
            address,
            link.address.removesuffix("/producer"),
            Text(link.state, style="green" if link.state == "up" else "bold red"),
            age(link.seconds),
            f"{link.held_messages:,}",
            amount(link.held_bytes),
            f"{link.paused_publishers:,}" if link.paused_publishers else "-",
            link.reason,
        ]
        for address, link in sorted(_links(snapshot), key=worst_first)
    ]
    return Table(_LINK_COLUMNS, rows, width, "links")


def links_down(snapshot: ClusterSnapshot) -> int:
    """Return the number of links that are down."""
    return sum(link.state == "down" for _, link in _links(snapshot))


def _links(snapshot: ClusterSnapshot) -> list[tuple[str, LinkStatus]]:
    """Return all links, each with the address of its producer."""
    return [
        (node.address, link)
        for node in snapshot.answering
        if node.report is not None
        for link in node.report.links
    ]


def slow_subscribers(snapshot: ClusterSnapshot, width: int) -> Table:
    """Return the table of subscribers that are behind, the slowest first."""
    reports = [(node.address, node.report) for node in snapshot.answering if node.report is not None]
    peers: list[tuple[str, SlowPeer]] = [
        (address, peer) for address, report in reports for peer in report.slow_peers
    ]
    rows = [
        [
            peer.peer,
            address,
            peer.protocol,
            number(peer.behind_messages, "message") if peer.protocol == "v2" else "-",
            amount(peer.buffered_bytes),
        ]
        for address, peer in sorted(peers, key=lambda item: -item[1].behind_messages)
    ]
    unlisted = sum(report.slow_subscribers for _, report in reports) - len(rows)
    return Table(_SLOW_COLUMNS, rows, width, "slow subscribers", unlisted)


def lags(snapshot: ClusterSnapshot, width: int) -> Table:
    """Return the table of groups and named readers that are behind, the furthest first.

    Consumers that share a log each have the lag of all, and know their own members.
    """
    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    for node in snapshot.answering:
        for one in node.report.lags if node.report is not None else ():
            lag, members = found.get((one.topic, one.kind, one.name), (0, 0))
            found[one.topic, one.kind, one.name] = max(lag, one.lag), members + one.members
    rows = [
        [f"{lag:,}", name, topic, f"{members:,}"]
        for (topic, _, name), (lag, members) in sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
        if lag
    ]
    return Table(_LAG_COLUMNS, rows, width, "groups and readers")


def clients(snapshot: ClusterSnapshot, width: int) -> Table:
    """Return the table of clients by the names of their keys, over all nodes; empty if none has a name.

    Those of which most was refused come first, and then those with most connections.
    """
    sums: dict[str, Counter[str]] = {}
    for node in snapshot.answering:
        for client in node.report.clients if node.report is not None else ():
            numbers = {name: getattr(client, name) for name in ("connections", "topics", "refused")}
            sums.setdefault(client.name, Counter()).update(numbers)
    rows: list[list[str | Text]] = [
        [
            name or Text("without a name", style="dim"),
            f"{total['connections']:,}",
            f"{total['topics']:,}" if total["topics"] else "-",
            Text(f"{total['refused']:,}", style="yellow") if total["refused"] else "-",
        ]
        for name, total in sorted(
            sums.items(), key=lambda item: (-item[1]["refused"], -item[1]["connections"], item[0])
        )
    ]
    return Table(_CLIENT_COLUMNS, rows if sums.keys() - {""} else [], width, "names")


def topics(snapshot: ClusterSnapshot, width: int) -> Table:
    """Return the table of the topics with the most messages."""
    rows = [[rate(topic.messages_per_second), topic.topic] for topic in snapshot.top_topics]
    return Table(_TOPIC_COLUMNS, rows, width, "topics")
