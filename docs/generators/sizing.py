"""Write the tables of docs/sizing.md from those of docs/performance.md.

Run it as `python -m docs.generators.sizing`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from wsqueue.config.model import Limits, Retention
from wsqueue.log.index_budget import topic_bytes

DOCS = Path(__file__).parent.parent.parent / "docs"
FILE = DOCS / "sizing.md"

KIB, MIB, GIB = 1024, 1024**2, 1024**3
SIZES = {"16 B": 16, "100 B": 100, "1 KiB": KIB, "64 KiB": 64 * KIB}
SYSTEMS = {"memory": "wsqueue", "sqlite": "wsqueue, sqlite"}

NODE_MIB = 48
"""A node itself, as docs/configuration.md has it."""

SUBSCRIBER_KIB = 6
"""An idle subscriber that speaks v2, as docs/configuration.md has it."""

TOPIC_BYTES = topic_bytes("x" * 128)
"""A topic without messages, whose name is long."""

BOOKKEEPING_BYTES = 100
"""Overhead of a producer for each message that it holds, as in docs/configuration.md."""

SPARE = 2
"""Cores to have for each that is busy: half of a core is left for bursts."""


def measured(workload: str, size: str, retention: str) -> float:
    """Return the CPU time of all nodes in µs for one message, flat out."""
    text = (DOCS / "performance.md").read_text().split("<!-- bench:cpu -->")[1]
    header, rows = re.findall(rf"^\| {workload} \|(.*)\|\n\| --- .*\n((?:\|.*\n)+)", text, re.MULTILINE)[0]
    systems = [cell.strip() for cell in header.split("|")]
    line = re.search(rf"^\| {size} \|(.*)\|$", rows, re.MULTILINE)
    assert line is not None
    return float(line[1].split("|")[systems.index(SYSTEMS[retention])].replace(",", ""))


def first(size: str, retention: str) -> float:
    """Return the µs of a message with its first delivery."""
    return measured("1→1", size, retention)


def further(size: str, retention: str) -> float:
    """Return the µs of a further delivery where one topic has everything: it is framed for many at once."""
    return (measured("1→100", size, retention) - first(size, retention)) / 99


def further_of_many(size: str, retention: str) -> float:
    """Return the µs of a delivery where a hundred topics share the messages."""
    return measured("100 × 1→10", size, retention) / 10


def busy_cores(rate: float, size: str, subscribers: int, retention: str) -> float:
    """Return how many cores all nodes keep busy; the dearer kind of delivery counts."""
    delivery = max(further(size, retention), further_of_many(size, retention))
    return rate * (first(size, retention) + (subscribers - 1) * delivery) / 1e6


def figure(value: float) -> str:
    """Return three significant digits."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}"


def row(*cells: str) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cells) + " |"


def costs() -> Iterator[str]:
    """Write the cost of messages."""
    yield row("data", "retention", "first delivery", "each further one", "each, where topics are many")
    yield row(*["---"] * 5)
    for size in SIZES:
        for retention in SYSTEMS:
            values = (function(size, retention) for function in (first, further, further_of_many))
            yield row(size, retention, *map(figure, values))


def loads() -> Iterator[str]:
    """Write how many cores some loads take, and the traffic."""
    yield row("messages/s", "data", "subscribers", "retention", "cores busy", "cores to have", "MiB/s out")
    yield row(*["---"] * 7)
    for rate, size, subscribers, retention in (
        (10_000, "1 KiB", 3, "memory"),
        (10_000, "1 KiB", 3, "sqlite"),
        (100_000, "100 B", 10, "memory"),
        (1_000, "1 KiB", 500, "memory"),
        (500, "64 KiB", 10, "sqlite"),
    ):
        busy = busy_cores(rate, size, subscribers, retention)
        # A producer and a consumer, each of which keeps one core busy at most.
        cores = max(2, math.ceil(SPARE * busy))
        out = rate * subscribers * SIZES[size] / MIB
        yield row(f"{rate:,}", size, str(subscribers), retention, figure(busy), str(cores), figure(out))


def subscribers() -> Iterator[str]:
    """Write how much memory idle subscribers take."""
    yield row("idle subscribers, each with a topic", "consumers", "MiB each, at most")
    yield row(*["---"] * 3)
    for count in (1_000, 10_000, 50_000, 100_000):
        consumers = math.ceil(count / Limits().max_connections)
        each = math.ceil(count / consumers)
        memory = NODE_MIB + each * (SUBSCRIBER_KIB * KIB + TOPIC_BYTES) / MIB + Retention().max_bytes / MIB
        yield row(f"{count:,}", str(consumers), f"{memory:,.0f}")


def outages() -> Iterator[str]:
    """Write how long a producer holds the messages for a consumer, and how much a log takes."""
    yield row("messages/s for it", "data", "held by default for", "to hold for 30 s", "a day in the log")
    yield row(*["---"] * 5)
    for rate, size in ((100, "1 KiB"), (1_000, "1 KiB"), (10_000, "1 KiB"), (10_000, "100 B")):
        each_second = rate * (SIZES[size] + BOOKKEEPING_BYTES)
        held = Limits().max_held_bytes / each_second
        day = rate * SIZES[size] * 86_400 / GIB
        hold = 30 * each_second / MIB
        yield row(f"{rate:,}", size, f"{figure(held)} s", f"{hold:,.0f} MiB", f"{figure(day)} GiB")


BLOCKS = {"costs": costs, "loads": loads, "subscribers": subscribers, "outages": outages}


def with_tables(text: str) -> str:
    """Return the document with its tables made anew."""
    for name, rows in BLOCKS.items():
        begin, end = f"<!-- sizing:{name} -->", f"<!-- /sizing:{name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = "\n".join([f"{before}{begin}\n", *rows(), f"\n{end}{after}"])
    return text


def main() -> None:
    """Write the file."""
    FILE.write_text(with_tables(FILE.read_text()))


if __name__ == "__main__":
    main()
