"""Plots of results, as SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .report import QUANTILES
from .results import COMMON, COMMON_RATE, LATENCY_BYTES, MIXED, ONE, SCALING, TITLES, Results
from .systems import SYSTEMS

COLORS = dict(
    zip(
        SYSTEMS,
        (
            *("#d62728", "#ff7f0e", "#8c1a1b", "#5f0f10", "#e377c2", "#9c4f86"),
            *("#b8860b", "#8b6508", "#5c4305", "#f4a3a4"),
            *("#7f7f7f", "#c7c7c7"),
            *("#1f77b4", "#9ecae1", "#0b4f8a", "#08306b", "#041833"),
            *("#2ca02c", "#155d15", "#0a2f0a"),
        ),
        strict=True,
    )
)

mpl.rcParams.update(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 11,
        "legend.frameon": False,
        # The same results must make the same file.
        "svg.hashsalt": "wsqueue",
    }
)


def draw(directory: Path, results: Results) -> list[Path]:
    """Write all plots for which there are figures, and return their files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in PLOTS.items():
        figure = Figure(figsize=(7.2, 4), layout="constrained")
        if plot(figure.add_subplot(), results):
            file = directory / f"{name}.svg"
            figure.savefig(file, format="svg", metadata={"Date": None})
            files.append(file)
    return files


def cpu(axes: Axes, results: Results) -> bool:
    """Draw the CPU time per message by payload."""
    payloads = [payload for payload in results.payloads(ONE) if payload != MIXED]
    for system in results.systems(ONE):
        found = [results.find(ONE, system, payload) for payload in payloads]
        figures = [figure for figure in found if figure is not None and figure.messages]
        axes.plot(
            [figure.payload for figure in figures],
            [figure.cpu for figure in figures],
            marker="o",
            color=COLORS[system],
            label=SYSTEMS[system].title,
        )
    axes.set(xscale="log", yscale="log", xlabel="bytes of data", ylabel="CPU µs/message")
    axes.set_title(f"CPU time of all nodes for a message, {TITLES[ONE]} (less is better)")
    axes.set_xticks(payloads, [f"{payload:,}" for payload in payloads])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.legend()
    return bool(payloads)


def deliveries(axes: Axes, results: Results) -> bool:
    """Draw deliveries per second by workload."""
    names = [name for name in TITLES if LATENCY_BYTES in results.payloads(name)]
    values = {
        system: [
            figure.deliveries if (figure := results.find(name, system, LATENCY_BYTES)) else 0.0
            for name in names
        ]
        for name in names
        for system in results.systems(name)
    }
    _bars(axes, [TITLES[name] for name in names], values)
    axes.set(ylabel="deliveries/s")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: _short(value)))
    axes.set_title(f"Deliveries a second, {LATENCY_BYTES} B, as fast as it goes (more is better)")
    return bool(names)


def latency(axes: Axes, results: Results) -> bool:
    """Draw the latencies at the common rate of all systems."""
    figures = {system: results.find(COMMON, system) for system in results.systems(COMMON)}
    values = {
        system: list(figure.latency)
        for system, figure in figures.items()
        if figure is not None and figure.latency is not None
    }
    for system, points in values.items():
        axes.plot(QUANTILES, points, marker="o", color=COLORS[system], label=SYSTEMS[system].title)
    axes.set(yscale="log", ylabel="ms")
    axes.legend()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(f"Latency at {COMMON_RATE:,} messages/s of {LATENCY_BYTES} B (less is better)")
    return bool(values)


def scaling(axes: Axes, results: Results) -> bool:
    """Draw messages per second by number of consumers."""
    figures = [figure for figure in results.figures if figure.workload == SCALING]
    names = [f"{figure.consumers} consumer{'s' * (figure.consumers > 1)}" for figure in figures]
    _bars(axes, names, {"wsqueue": [figure.messages for figure in figures]})
    axes.set(ylabel="messages/s")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: _short(value)))
    cores = results.machine.get("cores", "?")
    axes.set_title(f"Messages a second, all processes on {cores} cores (more is better)")
    return bool(figures)


PLOTS: dict[str, Callable[[Axes, Results], bool]] = {
    "cpu": cpu,
    "deliveries": deliveries,
    "latency": latency,
    "scaling": scaling,
}
"""The plots by the names of their files; each returns True if it has drawn something."""


def _bars(axes: Axes, names: list[str], values: dict[str, list[float]]) -> None:
    """Draw groups of bars, with one bar per system in each group."""
    width = 0.8 / max(1, len(values))
    for number, (system, heights) in enumerate(values.items()):
        places = [place + (number - (len(values) - 1) / 2) * width for place in range(len(names))]
        bars = axes.bar(places, heights, width * 0.92, color=COLORS[system], label=SYSTEMS[system].title)
        axes.bar_label(bars, list(map(_short, heights)), fontsize=9)
    axes.set_xticks(range(len(names)), names)
    if len(values) > 1:
        axes.legend()


def _short(value: float) -> str:
    """Return a count in few letters: 950, 9.5k, 950k, 9.5M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0f}"
