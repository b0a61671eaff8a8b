"""Measure a change: `python -m bench.paired BEFORE`, with another checkout made by `git worktree add`.

`wsqueue bench` runs there and here in turns, so that other work of the machine affects both; each row is one
set of options. A ratio compares the medians of the CPU time of all nodes per message; the quarters are the
quartiles of the ratios of the pairs.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import click
import msgspec

HERE = Path(__file__).parent.parent

WORKLOADS = (
    "",
    "--batch 1",
    "--protocol classic",
    "--topics 100 --subscribers 10",
    "--rate 20000",
)
"""As fast as possible, one message per packet, classic, many topics, and a few messages per read."""


class _Node(msgspec.Struct):
    cpu_us_per_message: float


class _Report(msgspec.Struct):
    nodes: dict[str, _Node]


def measure(tree: Path, options: list[str]) -> float:
    """Return the µs of CPU time that the nodes of a checkout take for a message.

    Raises:
        subprocess.CalledProcessError: The bench failed; it has said why.
    """
    command = [sys.executable, "-m", "wsqueue", "bench", "--json", *options]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, check=True, cwd=tree, env=environment, stdout=subprocess.PIPE)
    report = msgspec.json.decode(done.stdout, type=_Report)
    return sum(node.cpu_us_per_message for node in report.nodes.values())


def row(before: Path, options: str, runs: int) -> str:
    """Return one row of the table."""
    took: dict[Path, list[float]] = {before: [], HERE: []}
    for number in range(runs):
        # In both orders, because the first run of a pair may find the machine cooler.
        for tree in (before, HERE) if number % 2 else (HERE, before):
            took[tree].append(measure(tree, shlex.split(options)))
    old, new = statistics.median(took[before]), statistics.median(took[HERE])
    low, _, high = statistics.quantiles([two / one for one, two in zip(*took.values(), strict=True)], n=4)
    return f"| `{options or 'default'}` | {old:.3g} | {new:.3g} | {new / old:.3f} | {low:.3f} to {high:.3f} |"


@click.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--runs", type=click.IntRange(min=2), default=9, show_default=True, help="Runs per checkout.")
@click.argument("options", nargs=-1, metavar="[-- OPTIONS]")
def main(before: Path, runs: int, options: tuple[str, ...]) -> None:
    """Compare with the checkout BEFORE, by `wsqueue bench` with OPTIONS or with several sets of them."""
    click.echo("| options | µs before | µs now | ratio | quarters |\n|---|---|---|---|---|")
    for one in [shlex.join(options)] if options else WORKLOADS:
        click.echo(row(before.resolve(), one, runs))


if __name__ == "__main__":
    main()
