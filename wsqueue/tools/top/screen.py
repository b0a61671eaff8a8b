"""A snapshot as lines of text that fit a screen: each part gets a share of the lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from . import contents
from .contents import NO_LIMIT, Warnings
from .snapshot import ClusterSnapshot
from .table import Table

__all__ = ["NO_LIMIT", "screen"]

WARNINGS_SHARE = 0.4
"""Part of the screen that warnings may take: they are long, and the numbers must stay in sight."""

MANY_NODES = 10
"""Lines of nodes that are shown before other parts get more than they need at least."""

Part = Warnings | Table


def screen(snapshot: ClusterSnapshot, width: int, height: int, hint: str = "") -> list[Text]:
    """Return the lines that show a snapshot.

    Args:
        snapshot: The snapshot to show.
        width: Cells of a line at most.
        height: Number of lines at most.
        hint: Text for the end of the first line.
    """
    lines = contents.summary(snapshot, width, hint)
    room = height - len(lines)
    warnings = Warnings(snapshot.warnings, width)
    nodes, links = contents.nodes(snapshot, width), contents.links(snapshot, width)
    slow, topics = contents.slow_subscribers(snapshot, width), contents.topics(snapshot, width)
    lags, clients = contents.lags(snapshot, width), contents.clients(snapshot, width)
    every: tuple[Part, ...] = (warnings, nodes, links, slow, lags, topics, clients)
    parts = [part for part in every if part.height]
    # Without room for all, the last parts are left out first, and then the blank lines between parts.
    while len(parts) > 1 and sum(part.least for part in parts) > room:
        parts.pop()
    blank = 1 if sum(part.least + 1 for part in parts) <= room else 0
    wanted: list[tuple[Part, int]] = [
        (nodes, MANY_NODES),
        (warnings, int(height * WARNINGS_SHARE)),
        (links, 1 + contents.links_down(snapshot)),
    ]
    for part, share in _shares(parts, room - blank * len(parts), wanted):
        lines += [Text()] * blank + part.lines(share)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines[:height]


def _shares(parts: Sequence[Part], room: int, wanted: Sequence[tuple[Part, int]]) -> list[tuple[Part, int]]:
    """Return the number of lines of each part.

    Args:
        parts: The most important first.
        room: Lines for all parts together.
        wanted: Parts that get up to a number of lines before the rest is shared, a line for each in turn.
    """
    heights = [part.least for part in parts]
    left = room - sum(heights)
    targets = [[height if part is first else 0 for part in parts] for first, height in wanted]
    highest = max((part.height for part in parts), default=0)
    targets += [[height] * len(parts) for height in range(1, min(highest, room) + 1)]
    for target in targets:
        for index, part in enumerate(parts):
            more = min(left, min(target[index], part.height) - heights[index])
            if more > 0:
                heights[index] += more
                left -= more
    return list(zip(parts, heights, strict=True))
