"""The benchmark: load on a cluster, here or anywhere, and what came of it as a table and as a plot."""

from __future__ import annotations

import importlib.util
import itertools
import resource
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...config.keys import load_psk
from ...config.load import load_config
from ...config.model import ClientConfig, Limits, Retention, RetentionMode
from ...errors import WsqueueError
from ...log.records import RECORD_OVERHEAD_BYTES
from ...net.certificates import TlsContexts
from ...protocol import classic
from ...protocol.routing import topic_hash
from ..local import LocalCluster
from . import (
    BARS_PER_DECADE,
    SPARE_FILES,
    ClassicWire,
    Latency,
    Load,
    NodeUsage,
    Report,
    V2Wire,
    Wire,
    run,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_INCHES = 8.0, 3.2
"""Width of a plot, and height of each of its diagrams."""

REPLAY_BYTES = 256 * 1024 * 1024
"""Data that a replay reads if nobody says how much: with sqlite, most of it is no longer in memory."""

Protocol = Literal["v2", "classic"]

_MIB = 1024 * 1024
_WIRES: dict[Protocol, type[V2Wire] | type[ClassicWire]] = {"v2": V2Wire, "classic": ClassicWire}


async def bench_local(
    load: Load,
    cluster: tuple[int, int, RetentionMode],
    progress: Callable[[float], None],
    show: Callable[[str, str], None],
    protocol: Protocol = "v2",
) -> Report:
    """Put load on a cluster that is started for it on this machine.

    Args:
        load: What to publish.
        cluster: Numbers of consumers and of producers, and where consumers keep what is published.
        progress: Called now and then with how much is done, 0 to 1.
        show: Called with the name of a node and a line that it logged.
        protocol: What clients speak.

    Raises:
        WsqueueError: A node did not start, ended, or delivered what was not published.
    """
    consumers, producers, mode = cluster
    retention = retention_for(load, mode)
    async with LocalCluster(consumers, producers, 0, None, show, retention=retention) as running:
        settings = load_config(running.config_file, ClientConfig)
        return await run(wire(settings, protocol), load, running.pids, progress)


async def bench(
    load: Load, settings: ClientConfig, progress: Callable[[float], None], protocol: Protocol = "v2"
) -> Report:
    """Put load on a cluster that runs anywhere; what its nodes use is not known here.

    Raises:
        ConfigError: The key or a certificate cannot be read.
        ConnectError: A node does not answer.
        WsqueueError: A node closed a connection, or delivered what was not published.
    """
    return await run(wire(settings, protocol), load, {}, progress)


def wire(settings: ClientConfig, protocol: Protocol) -> Wire:
    """Return how to speak to a cluster.

    Raises:
        ConfigError: The key or a certificate cannot be read.
    """
    return _WIRES[protocol](
        settings.produce_addresses,
        settings.subscribe_addresses,
        load_psk(settings),
        settings.hello_order,
        settings.limits,
        tls=TlsContexts(settings),
    )


def retention_for(load: Load, mode: RetentionMode) -> Retention:
    """Return a retention that keeps all that a replay reads, the default one without a replay."""
    if not load.replay or load.count is None:
        return Retention(mode=mode)
    # However small its batches are.
    most = load.count * (load.size + 2 * RECORD_OVERHEAD_BYTES)
    return Retention(mode=mode, max_bytes=most, max_bytes_per_topic=most, max_messages_per_topic=load.count)


def problem(load: Load, consumers: int, producers: int, limits: Limits) -> str:
    """Say why a load would come to nothing, "" if it would not.

    Args:
        load: What to publish.
        consumers: Number of consumers.
        producers: Number of producers.
        limits: Of the nodes, as far as they are known.
    """
    message = classic.Message(data=load.filler.decode(), topic=load.topic_names[0])
    if (size := len(classic.encode(message))) > limits.max_message_bytes:
        most = load.size - (size - limits.max_message_bytes)
        return f"--size {load.size} is too large for max_message_bytes: expected at most {most}"
    if load.batch is not None and load.batch > (most := limits.max_message_bytes // (load.size + 3)):
        return f"--batch {load.batch} is too large for max_message_bytes: expected at most {max(most, 1)}"
    topics_of = Counter(topic_hash(topic) % consumers for topic in load.topic_names)
    # A consumer has a link from each producer, too.
    subscriptions = load.subscribers * max(topics_of.values()) + producers
    if subscriptions > limits.max_connections:
        return (
            f"--topics {load.topics} with --subscribers {load.subscribers} each would need {subscriptions}"
            f" connections to one consumer: at most {limits.max_connections} (max_connections) are allowed"
        )
    publishers = -(-load.publishers // producers)
    if publishers > limits.max_connections:
        return (
            f"--publishers {load.publishers} would need {publishers} connections to one producer:"
            f" at most {limits.max_connections} (max_connections) are allowed"
        )
    needed = max(load.topics * load.subscribers, load.publishers) + SPARE_FILES
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        return f"that needs {needed} open files, and {hard} are allowed: see `ulimit -Hn`"
    return ""


def plot_problem(file: Path) -> str:
    """Say why a plot cannot be written to a file, "" if it can."""
    if importlib.util.find_spec("matplotlib") is None:
        return "a plot needs matplotlib: pip install 'wsqueue[plot]'"
    from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415 - only a plot needs it

    suffixes = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix.lower().removeprefix(".") not in suffixes:
        return f"{file}: expected a name that ends with one of .{', .'.join(suffixes)}"
    existed = file.exists()
    try:
        with file.open("ab"):
            pass
    except OSError as error:
        return f"cannot write {file}: {error.strerror}"
    if not existed:
        file.unlink()
    return ""


def write_plot(report: Report, load: Load, file: Path) -> None:
    """Draw throughput over time and, with a rate, a histogram of latencies.

    Raises:
        WsqueueError: The file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - only a plot needs it

    width, height = PLOT_INCHES
    diagrams = 1 if report.latency is None else 2
    figure = Figure(figsize=(width, height * diagrams), layout="constrained")
    axes = figure.subplots(diagrams, squeeze=False)[:, 0]
    figure.suptitle(describe(load), fontsize="medium")
    _draw_throughput(axes[0], report)
    if report.latency is not None:
        _draw_latency(axes[1], report.latency)
    try:
        figure.savefig(file)
    except OSError as error:
        raise WsqueueError(f"cannot write {file}: {error.strerror}") from None


def describe(load: Load) -> str:
    """Return what was published, in one line."""
    parts = [
        _count(load.publishers, "publisher"),
        _count(load.topics, "topic"),
        _count(load.subscribers, "subscriber") + (" each" if load.topics > 1 else ""),
        f"{load.size:,} bytes",
        f"{load.rate:,g} messages/s" if load.rate is not None else "as fast as it goes",
    ]
    if load.batch is not None:
        parts.append(f"at most {load.batch:,} at once")
    return ", ".join(parts)


def table(report: Report, load: Load) -> str:
    """Return the report for people."""
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
        return "latency: not for a replay"
    if latency is None:
        return "latency: needs --rate, for without it messages wait for each other"
    names = ["latency", "p50", "p90", "p99", "p99.9", "max", "samples"]
    values = (latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max)
    return _align([names, ["", *map(_duration, values), f"{latency.samples:,}"]])


def _usage_text(report: Report) -> str:
    generator = ["load generator", "", f"{report.load_generator_cpu_us_per_message:.2f} µs", "", ""]
    rows = [
        ["CPU", "in all", "per message", "memory", "at most"],
        *itertools.starmap(_usage_row, report.nodes.items()),
    ]
    text = _align([*rows, generator])
    if report.nodes:
        return f"{text}\nCPU times come in steps of 10 ms."
    return f"{text}\nWhat the nodes use is not known: they may be on other machines."


def _usage_row(name: str, usage: NodeUsage) -> list[str]:
    return [
        name,
        f"{usage.cpu_seconds:.2f} s",
        f"{usage.cpu_us_per_message:.2f} µs",
        f"{usage.rss_bytes / _MIB:.1f} MiB",
        f"{usage.max_rss_bytes / _MIB:.1f} MiB",
    ]


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with columns of equal width, all but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _duration(us: float) -> str:
    """Return a time with three digits and its unit."""
    for unit, limit in (("µs", 1000.0), ("ms", 1_000_000.0)):
        if us < limit:
            return f"{us * 1000 / limit:.3g} {unit}"
    return f"{us / 1_000_000:.3g} s"


def _draw_throughput(axes: Axes, report: Report) -> None:
    seconds = [point.seconds for point in report.throughput]
    axes.plot(seconds, [point.messages_per_second for point in report.throughput], label="messages/s sent")
    axes.plot(seconds, [point.deliveries_per_second for point in report.throughput], label="deliveries/s")
    axes.set_xlabel("seconds")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend()


def _draw_latency(axes: Axes, latency: Latency) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter  # noqa: PLC0415 - as above

    edges = [begin / 1e6 for begin, _count in latency.histogram]
    edges.append(edges[-1] * 10 ** (1 / BARS_PER_DECADE))
    axes.stairs([count for _begin, count in latency.histogram], edges, fill=True)
    for name, value in (("p50", latency.p50), ("p99", latency.p99), ("max", latency.max)):
        axes.axvline(value / 1e6, color="gray", linestyle=":")
        at, within = (value / 1e6, 0.95), ("data", "axes fraction")
        axes.annotate(f"{name} {_duration(value)}", at, xycoords=within, va="top", rotation=90)
    axes.set(xscale="log", xlabel="latency", ylabel=f"of {latency.samples:,} samples")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    axes.xaxis.set_minor_formatter(NullFormatter())
