"""Run schedules of faults: `python -m tests.faults --help`."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal

import click
import uvloop

from wsqueue.errors import WsqueueError

from . import harness, schedule
from .cluster import Cluster, LoopbackCluster
from .harness import Outcome
from .lab import Lab, LabCluster
from .schedule import Schedule

BOTH: list[schedule.Retention] = ["memory", "sqlite"]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--seed", type=int, help="Seed of the first schedule; the others follow.  [default: by chance]")
@click.option("--schedules", type=click.IntRange(1), default=20, help="How many to run.")
@click.option(
    "--retention",
    type=click.Choice([*BOTH, "both", "jetstream"]),
    default="both",
    help="Retention of the consumers; both: memory for even seeds, sqlite for odd ones.",
)
@click.option("--backend", type=click.Choice(["local", "lab"]), default="local", help="Where the nodes run.")
@click.option("--replay", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="One schedule.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 600),
    help="How long each publishes.  [default: 4, with jetstream 12]",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=4, help="How many run at once.")
@click.option("--groups", is_flag=True, help="Let worker groups and named readers have all topics, too.")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Where to keep the files of failed schedules."
)
def main(
    *,
    seed: int | None,
    schedules: int,
    retention: schedule.Retention | Literal["both"],
    backend: schedule.Backend,
    replay: Path | None,
    seconds: float | None,
    jobs: int,
    groups: bool,
    directory: Path | None,
) -> None:
    """Run seeded schedules of faults, print a verdict on each, and exit with 1 when one is bad."""
    if backend == "lab" and retention == "jetstream":
        raise click.UsageError("the lab has no NATS servers: expected --backend local with jetstream")
    if replay is not None:
        wanted = [schedule.read(replay)]
    else:
        first = random.randrange(1_000_000) if seed is None else seed
        wanted = [
            schedule.generate(
                number, BOTH[number % 2] if retention == "both" else retention, seconds, backend
            )
            for number in range(first, first + schedules)
        ]
        if groups:
            wanted = list(map(schedule.with_groups, wanted))
    directory = directory or Path(tempfile.mkdtemp(prefix="wsqueue-faults-"))
    for one in wanted:
        if (directory / one.name).exists():
            raise click.UsageError(
                f"{directory / one.name} is there, from another run: expected another --directory, or that it"
                " is removed"
            )
    try:
        if backend == "lab":
            outcomes = uvloop.run(run_on_a_lab(wanted, directory))
        else:
            outcomes = uvloop.run(run_all(wanted, directory, jobs, LoopbackCluster))
    except WsqueueError as error:
        raise click.ClickException(str(error)) from None
    summarize(outcomes)
    if not any(directory.iterdir()):
        directory.rmdir()
    sys.exit(not all(outcome.good for outcome in outcomes))


async def run_on_a_lab(schedules: Iterable[Schedule], directory: Path) -> list[Outcome]:
    """Run schedules, one after another, on hosts that are made for them."""
    with tempfile.TemporaryDirectory(prefix="wsqueue-lab-") as state:
        async with Lab(Path(state)) as lab:
            return await run_all(schedules, directory, 1, partial(LabCluster, lab))


async def run_all(
    schedules: Iterable[Schedule],
    directory: Path,
    jobs: int,
    make_cluster: Callable[[Schedule, Path], Cluster],
) -> list[Outcome]:
    """Run schedules, several at once, and print the outcome of each."""
    waiting, outcomes = iter(schedules), list[Outcome]()

    async def run_some() -> None:
        for one in waiting:
            place = directory / one.name
            place.mkdir(parents=True)
            outcome = await harness.run(one, make_cluster(one, place), place)
            outcomes.append(outcome)
            show(outcome, place)
            if outcome.good:
                shutil.rmtree(place)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(jobs):
            tasks.create_task(run_some())
    return outcomes


def show(outcome: Outcome, place: Path) -> None:
    """Print the verdict, and when it is bad also why and how to see it again."""
    click.echo(f"seed {outcome.schedule.seed} {outcome.schedule.retention}: {outcome.verdict}")
    for note in outcome.notes:
        click.echo(f"  note: {note}")
    if not outcome.good:
        for sentence in [*outcome.verdict.violations, *outcome.problems]:
            click.echo(f"  {sentence}")
        for fault in outcome.schedule.faults:
            click.echo(f"  fault at {fault}")
        click.echo(f"  replay: python -m tests.faults --replay {place / 'schedule.json'}")


def summarize(outcomes: list[Outcome]) -> None:
    """Print the totals."""
    totals = Counter[str]()
    for outcome in outcomes:
        for name in ("attempted", "acknowledged", "delivered", "lost", "duplicated", "unexpected", "gaps"):
            totals[name] += getattr(outcome.verdict, name)
        totals["out of order"] += outcome.verdict.out_of_order
        totals["bad"] += not outcome.good
        totals["faults"] += len(outcome.schedule.faults)
    click.echo(
        f"{len(outcomes)} schedules with {totals['faults']} faults, {totals['bad']} bad: "
        f"attempted {totals['attempted']}, acknowledged {totals['acknowledged']}, "
        f"delivered {totals['delivered']}, lost {totals['lost']}, duplicated {totals['duplicated']}, "
        f"unexpected {totals['unexpected']}, out of order {totals['out of order']}, "
        f"gaps announced {totals['gaps']}"
    )


def in_own_namespaces() -> None:
    """Begin again where neither mounts nor processes outlive this one, if this machine lets root do so.

    The hosts of a lab end by their own means.
    """
    if os.geteuid() or not shutil.which("unshare") or "WSQUEUE_FAULTS_UNSHARED" in os.environ:
        return
    os.environ["WSQUEUE_FAULTS_UNSHARED"] = "1"
    processes = (
        []
        if any(one.endswith("lab") for one in sys.argv)
        else ["--pid", "--fork", "--kill-child", "--mount-proc"]
    )
    arguments = ["unshare", "--mount", "--propagation", "private", *processes]
    os.execvp(  # noqa: S606 - no shell is needed
        "unshare", [*arguments, sys.executable, "-m", "tests.faults", *sys.argv[1:]]
    )


if __name__ == "__main__":
    in_own_namespaces()
    main()
