"""The report of a run as a plot, drawn by matplotlib, which is imported when a plot is drawn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import WsqueueError
from ...report.text import duration
from .report import BARS_PER_DECADE, BenchReport, Latency
from .table import describe
from .workload import Load

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_INCHES = 8.0, 3.2
"""Width of a plot, and height of each of its diagrams."""


def plot_problem(file: Path) -> str:
    """Return the reason why a plot can't be written to a file, "" if it can."""
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


def write_plot(report: BenchReport, load: Load, file: Path) -> None:
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


def _draw_throughput(axes: Axes, report: BenchReport) -> None:
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
        axes.annotate(f"{name} {duration(value / 1e6)}", at, xycoords=within, va="top", rotation=90)
    axes.set(xscale="log", xlabel="latency", ylabel=f"of {latency.samples:,} samples")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    axes.xaxis.set_minor_formatter(NullFormatter())
