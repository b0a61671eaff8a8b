"""A snapshot as lines of text, as many and as wide as there is room for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ...report.report import ClusterNode, LinkStatus, NodeWarning, Report, SlowPeer
from ...report.text import amount, number
from ..terminal import one_line
from .snapshot import NodeSnapshot, Rates, Snapshot

NO_LIMIT = 1_000_000
"""Width and height of what goes to a pipe, where nothing is cut."""

WARNINGS_SHARE = 0.4
"""Part of the screen that warnings may take: they are in words, and the numbers must stay in sight."""

MANY_NODES = 10
"""Lines of nodes that come before other things."""

WORST_FIRST = ("node_unreachable", "log_failing", "link_down", "publishers_paused", "link_slow", "loop_lag")
"""Codes of warnings that come before all others."""

GAP = "  "
"""Between two columns."""


class Column(msgspec.Struct, frozen=True):
    """Describe a column.

    Attributes:
        title: At its head.
        importance: What a narrow screen has no room for goes first where this is lowest.
        right: Whether it holds numbers.
        shrinks: Whether its texts may be cut.
    """

    title: str
    importance: int
    right: bool = False
    shrinks: bool = False


class Section(msgspec.Struct, frozen=True):
    """Hold lines that belong together.

    Attributes:
        head: First line, None without one.
        rows: The others, the most important first.
        what: What a row is, several of them: for the line that counts those that are not shown.
    """

    head: Text | None
    rows: list[Text]
    what: str

    def lines(self, height: int) -> list[Text]:
        """Return the section in at most so many lines."""
        head = [self.head] if self.head is not None else []
        room = height - len(head)
        if room >= len(self.rows):
            return head + self.rows
        hidden = len(self.rows) - room + 1
        return [*head, *self.rows[: room - 1], Text(f"… and {hidden} more {self.what}", style="dim")]

    @property
    def least(self) -> int:
        """Return how many lines it needs at least."""
        return min(self.height, (self.head is not None) + 2)

    @property
    def height(self) -> int:
        """Return how many lines it has."""
        return (self.head is not None) + len(self.rows)


def screen(snapshot: Snapshot, width: int, height: int, hint: str = "") -> list[Text]:
    """Return the lines that show a snapshot.

    Args:
        snapshot: What to show.
        width: Of each line, in cells.
        height: The most lines.
        hint: For the first line, at its end.
    """
    lines = _summary(snapshot, width, hint)
    room = height - len(lines)
    warnings = _warnings(snapshot.warnings, width, NO_LIMIT)
    nodes, links = _nodes(snapshot, width), _links(snapshot, width)
    sections = [
        section
        for section in (warnings, nodes, links, _slow(snapshot, width), _topics(snapshot, width))
        if section.rows
    ]
    # What matters least gives way first, and a line apart is the first thing to give.
    while len(sections) > 1 and sum(section.least for section in sections) > room:
        sections.pop()
    blank = 1 if sum(section.least + 1 for section in sections) <= room else 0
    wanted = [
        (nodes, MANY_NODES),
        (warnings, int(height * WARNINGS_SHARE)),
        (links, 1 + sum(link.state == "down" for _, link in _all_links(snapshot))),
    ]
    for section, lines_of_it in _shares(sections, room - blank * len(sections), wanted):
        if section is warnings:
            section = _warnings(snapshot.warnings, width, lines_of_it)  # noqa: PLW2901 - at less length
        lines += [Text()] * blank + section.lines(lines_of_it)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines[:height]


def _shares(
    sections: Sequence[Section], room: int, wanted: Sequence[tuple[Section, int]]
) -> list[tuple[Section, int]]:
    """Return how many lines each section gets.

    Args:
        sections: The most important first.
        room: Lines for all of them.
        wanted: How many lines some should have before others get more than they need at least.
    """
    heights = [section.least for section in sections]
    left = room - sum(heights)
    targets = [[height if section is one else 0 for section in sections] for one, height in wanted]
    # In the end, each gets a line in turn.
    most = max((section.height for section in sections), default=0)
    targets += [[height] * len(sections) for height in range(1, most + 1)]
    for target in targets:
        for index, section in enumerate(sections):
            more = min(left, min(target[index], section.height) - heights[index])
            if more > 0:
                heights[index] += more
                left -= more
    return list(zip(sections, heights, strict=True))


def _summary(snapshot: Snapshot, width: int, hint: str) -> list[Text]:
    answering, all_nodes = snapshot.answering, snapshot.nodes
    nodes = f"{len(answering)} of {len(all_nodes)} nodes answer"
    words = "no warnings" if not snapshot.warnings else number(len(snapshot.warnings), "warning")
    style = "green" if not snapshot.warnings else ("yellow" if len(answering) == len(all_nodes) else "red")
    first = Text.assemble(("wsqueue top", "bold"), GAP, (f"{nodes}, {words}", style))
    moment = datetime.fromtimestamp(snapshot.time).astimezone()
    if width == NO_LIMIT:
        first.append(f"{GAP}{moment:%Y-%m-%d %H:%M:%S%z}")
    else:
        for end in (f"{moment:%H:%M:%S}{GAP}{hint}".rstrip(), hint):
            pad = width - first.cell_len - cell_len(end)
            if end and pad >= len(GAP):
                first.append(" " * pad)
                first.append(end, style="dim")
                break
    published = _sum(answering, "producer") or _sum(answering, "consumer")
    delivered = _sum(answering, "consumer")
    second = "Rates come with the second answer."
    if published is not None:
        second = f"Published {_number(published.messages_in)} messages/s"
        if delivered is not None:
            second += f", delivered {_number(delivered.messages_out)} messages/s"
    elif not answering:
        second = "No node answers."
    return [first, Text(second)]


def _sum(nodes: Sequence[NodeSnapshot], role: str) -> Rates | None:
    """Return the rates of all nodes of a role together, None when there are none."""
    found = [node.rates for node in nodes if node.role == role and node.rates is not None]
    if not found:
        return None
    return Rates(*(sum(values) for values in zip(*map(msgspec.structs.astuple, found), strict=True)))


def _warnings(warnings: Sequence[NodeWarning], width: int, height: int) -> Section:
    """Return the warnings, at as much length as there is room for."""
    places = {code: place for place, code in enumerate(WORST_FIRST)}
    worst = sorted(warnings, key=lambda warning: places.get(warning.code, len(places)))
    console = Console(width=width, no_color=True, file=sys.stderr)

    def wrapped(text: str, style: str, mark: str) -> list[Text]:
        lines = Text(one_line(text), style=style).wrap(console, max(width - 2, 1))
        return [
            Text.assemble((mark if index == 0 else "  ", style), line) for index, line in enumerate(lines)
        ]

    def rows(*, advice: bool) -> list[Text]:
        found: list[Text] = []
        for warning in worst:
            found += wrapped(warning.text, "yellow", "! ")
            if advice and warning.advice:
                found += wrapped(warning.advice, "dim", "  ")
        return found

    for advice in (True, False):
        if len(whole := rows(advice=advice)) <= height or width == NO_LIMIT:
            return Section(None, whole, "lines of warnings")
    short = [Text(f"! {one_line(warning.text)}", style="yellow") for warning in worst]
    for line in short:
        line.truncate(width, overflow="ellipsis")
    kept = Section(None, short, "warnings").lines(height)
    return Section(None, kept, "warnings")


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


def _nodes(snapshot: Snapshot, width: int) -> Section:
    rows: list[list[str | Text]] = []
    # In a large cluster, those that need somebody come first.
    for node in sorted(snapshot.nodes, key=lambda node: node.answers and not _not_ready(node)):
        report, rate = node.report, node.rates
        if report is None or node.problem:
            cells: list[str | Text] = [node.role, node.address, Text("down", style="bold red"), *["-"] * 9]
        else:
            state = Text("ready", style="green")
            if report.not_ready:
                draining = report.not_ready == "draining"
                state = Text("draining" if draining else "not ready", style="yellow")
            cells = [
                node.role,
                node.address,
                state,
                report.version,
                _duration(report.uptime_seconds),
                f"{sum(kind.count for kind in report.connections):,}",
                _number(rate.messages_in) if rate else "-",
                _number(rate.messages_out) if rate else "-",
                amount(rate.bytes_in) if rate else "-",
                amount(rate.bytes_out) if rate else "-",
                _milliseconds(report.loop_lag_seconds),
                _log(report),
            ]
        rows.append(cells)
    return _table(_NODE_COLUMNS, rows, width, "nodes")


def _log(report: Report) -> str | Text:
    if report.log is None:
        return "-"
    if report.log.failing:
        return Text("failing", style="bold red")
    used = 100 * report.log.bytes // max(report.log.limit_bytes, 1)
    return f"{amount(report.log.bytes)} {used}%"


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


def _links(snapshot: Snapshot, width: int) -> Section:
    def worst_first(item: tuple[str, LinkStatus]) -> tuple[bool, int]:
        return item[1].state == "up", -item[1].held_bytes

    rows: list[list[str | Text]] = [
        [
            address,
            link.address.removesuffix("/producer"),
            Text(link.state, style="green" if link.state == "up" else "bold red"),
            _duration(link.seconds),
            f"{link.held_messages:,}",
            amount(link.held_bytes),
            f"{link.paused_publishers:,}" if link.paused_publishers else "-",
            link.reason,
        ]
        for address, link in sorted(_all_links(snapshot), key=worst_first)
    ]
    return _table(_LINK_COLUMNS, rows, width, "links")


def _all_links(snapshot: Snapshot) -> list[tuple[str, LinkStatus]]:
    """Return all links with the address of their producer."""
    return [
        (node.address, link)
        for node in snapshot.answering
        if node.report is not None
        for link in node.report.links
    ]


_SLOW_COLUMNS = (
    Column("SLOW SUBSCRIBER", 9, shrinks=True),
    Column("OF CONSUMER", 5, shrinks=True),
    Column("PROTOCOL", 2),
    Column("BEHIND", 7, right=True),
    Column("BUFFERED", 6, right=True),
)


def _slow(snapshot: Snapshot, width: int) -> Section:
    peers: list[tuple[str, SlowPeer]] = [
        (node.address, peer)
        for node in snapshot.answering
        if node.report is not None
        for peer in node.report.slow_peers
    ]
    rows: list[list[str | Text]] = [
        [
            peer.peer,
            address,
            peer.protocol,
            number(peer.behind_messages, "message") if peer.protocol == "v2" else "-",
            amount(peer.buffered_bytes),
        ]
        for address, peer in sorted(peers, key=lambda item: -item[1].behind_messages)
    ]
    total = sum(node.report.slow_subscribers for node in snapshot.answering if node.report is not None)
    section = _table(_SLOW_COLUMNS, rows, width, "slow subscribers")
    if rows and total > len(rows):
        section.rows.append(Text(f"… and {total - len(rows)} more slow subscribers", style="dim"))
    return section


_TOPIC_COLUMNS = (Column("MESSAGES/s", 1, right=True), Column("TOPIC", 2, shrinks=True))


def _topics(snapshot: Snapshot, width: int) -> Section:
    rows: list[list[str | Text]] = [
        [_number(topic.messages_per_second), topic.topic] for topic in snapshot.top_topics
    ]
    return _table(_TOPIC_COLUMNS, rows, width, "topics")


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], width: int, what: str) -> Section:
    """Return a table as wide as there is room: of columns that do not fit, the least important go."""
    cells = [[cell if isinstance(cell, Text) else Text(one_line(cell)) for cell in row] for row in rows]
    # A column that says nothing in any row is not shown.
    shown = [
        index for index in range(len(columns)) if any(row[index].plain not in ("", "-") for row in cells)
    ]
    widths = {
        index: max(cell_len(columns[index].title), *(row[index].cell_len for row in cells), 0)
        for index in shown
        if cells
    }
    least = {index: min(wide, 16) if columns[index].shrinks else wide for index, wide in widths.items()}

    def total(of: dict[int, int]) -> int:
        return sum(of[index] for index in shown) + len(GAP) * (len(shown) - 1)

    while cells and len(shown) > 1 and total(least) > width:
        lowest = min(columns[index].importance for index in shown)
        shown = [index for index in shown if columns[index].importance > lowest] or shown[-1:]
    while cells and (over := total(widths) - width) > 0:
        shrinking = [index for index in shown if columns[index].shrinks and widths[index] > 1]
        if not shrinking:
            break
        widest = max(shrinking, key=lambda index: widths[index])
        others = [widths[index] for index in shrinking if index != widest]
        widths[widest] -= min(over, max(1, widths[widest] - max(others, default=1)), widths[widest] - 1)
    head = [Text(columns[index].title, style="bold dim") for index in range(len(columns))]

    def line(of: Sequence[Text]) -> Text:
        whole = Text()
        for place, index in enumerate(shown):
            cell = of[index].copy()
            cell.truncate(widths[index], overflow="ellipsis")
            pad = " " * (widths[index] - cell.cell_len)
            last = place == len(shown) - 1
            whole.append(GAP if place else "")
            if columns[index].right:
                whole.append(pad)
            whole.append(cell)
            if not columns[index].right and not last:
                whole.append(pad)
        whole.truncate(width, overflow="ellipsis")
        return whole

    return Section(line(head) if cells else None, [line(row) for row in cells], what)


def _not_ready(node: ClusterNode) -> str:
    return node.report.not_ready if node.report is not None else ""


def _number(value: float) -> str:
    """Return a rate for people: with a decimal where that says something."""
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _duration(seconds: float) -> str:
    """Return a time in its two largest units, e.g. 3d 4h."""
    whole = int(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // part}{smaller}"
    return f"{whole}s"
