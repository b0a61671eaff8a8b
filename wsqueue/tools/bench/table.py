"""The report of a run as a table for people."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ...report.text import amount, duration, number
from .report import BenchReport, Latency, NodeUsage
from .workload import Load


def describe(load: Load) -> str:
    """Return a line that describes a load."""
    parts = [
        number(load.publishers, "publisher"),
        number(load.topics, "topic"),
        number(load.subscribers, "subscriber") + (" each" if load.topics > 1 else ""),
        f"{load.size:,} bytes",
        f"{load.rate:,g} messages/s" if load.rate is not None else "as fast as possible",
    ]
    if load.batch is not None:
        parts.append(f"at most {load.batch:,} in a packet")
    return ", ".join(parts)


def table(report: BenchReport, load: Load) -> str:
    """Return the report as text."""
    sent, seconds = [f"{report.messages_per_second:,.0f}/s", f"in {report.seconds:.2f} s"], ["", ""]
    if load.replay:
        sent, seconds = ["before", ""], sent
    rows = [
        ["sent", f"{report.sent:,}", *sent],
        [
            "read" if load.replay else "delivered",
            f"{report.received:,}",
            f"{report.deliveries_per_second:,.0f}/s",
            seconds[1],
        ],
        ["lost", f"{report.lost:,}", "", ""],
        ["duplicates", f"{report.duplicates:,}", "", ""],
        ["unconfirmed", f"{report.unconfirmed:,}", "", ""],
    ]
    parts = [describe(load), _align(rows), _latency_text(report.latency, load), _usage_text(report)]
    return "\n\n".join(parts)


def _latency_text(latency: Latency | None, load: Load) -> str:
    if latency is None and load.replay:
        return "latency: not measured in a replay"
    if latency is None:
        return "latency: needs --rate, because without it messages wait for each other"
    names = ["latency", "p50", "p90", "p99", "p99.9", "max", "samples"]
    values = (latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max)
    return _align([names, ["", *(duration(us / 1e6) for us in values), f"{latency.samples:,}"]])


def _usage_text(report: BenchReport) -> str:
    generator = ["load generator", "", f"{report.load_generator_cpu_us_per_message:.2f} µs", "", ""]
    rows = [
        ["CPU", "total", "per message", "memory", "maximum"],
        *itertools.starmap(_usage_row, report.nodes.items()),
    ]
    text = _align([*rows, generator])
    if report.nodes:
        return f"{text}\nCPU times have steps of 10 ms."
    return f"{text}\nCPU and memory of the nodes are not known, because they may be on other machines."


def _usage_row(name: str, usage: NodeUsage) -> list[str]:
    return [
        name,
        f"{usage.cpu_seconds:.2f} s",
        f"{usage.cpu_us_per_message:.2f} µs",
        amount(usage.rss_bytes),
        amount(usage.max_rss_bytes),
    ]


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines with aligned columns: the first one to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
