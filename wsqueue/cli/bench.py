"""The command that measures a cluster."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..config import model
from ..config.load import load_config
from ..config.model import ClientConfig, Limits
from .common import Amount, ended_by_signals, engine_for, fail, nats_server_option, node_lines, run

if TYPE_CHECKING:
    from ..tools.bench.cluster import Protocol
    from ..tools.bench.report import BenchReport
    from ..tools.bench.workload import Load


@click.command()
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="Measure the cluster of this configuration; without it, start one on loopback.",
)
@click.option(
    "--consumers", type=click.IntRange(1, 100), metavar="N", help="Consumers to start.  [default: 1]"
)
@click.option(
    "--producers", type=click.IntRange(1, 100), metavar="N", help="Producers to start.  [default: 1]"
)
@click.option(
    "--retention",
    type=click.Choice(["memory", "sqlite", "jetstream"]),
    help="Where the started consumers store messages.  [default: memory]",
)
@nats_server_option
@click.option(
    "--protocol",
    type=click.Choice(["v2", "classic"]),
    default="v2",
    show_default=True,
    help="Protocol of the clients; with v2, all messages must be confirmed.",
)
@click.option("--publishers", type=click.IntRange(min=1), default=1, show_default=True, metavar="N")
@click.option(
    "--subscribers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Subscribers of each topic.",
)
@click.option("--topics", type=click.IntRange(min=1), default=1, show_default=True, metavar="N")
@click.option(
    "--size",
    type=int,
    default=100,
    show_default=True,
    metavar="BYTES",
    help="Data of each message, at least 16.",
)
@click.option(
    "--rate",
    type=Amount(0, 10_000_000, min_open=True),
    metavar="N",
    help="Messages per second, and measure their latency; without it, as many as possible.",
)
@click.option(
    "--duration",
    type=Amount(0, 86_400, min_open=True),
    metavar="SECONDS",
    help="Duration of the measurement.  [default: 5]",
)
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", help="Measure N messages instead of a duration."
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Put at most N messages into a packet of v2, or into a classic write; without it, all that are due,"
    " up to 64 KiB.",
)
@click.option(
    "--replay",
    is_flag=True,
    help="Publish --count messages first (without it, 256 MiB), then measure how fast the logs are read.",
)
@click.option(
    "--warm-up",
    type=Amount(0, 86_400),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Warm-up time before the measurement.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw throughput and latency: .svg, .png or .pdf (needs matplotlib).",
)
def bench(
    *,
    config_file: str | None,
    consumers: int | None,
    producers: int | None,
    retention: model.RetentionMode | None,
    nats_server: Path | None,
    protocol: Protocol,
    duration: float | None,
    as_json: bool,
    plot: Path | None,
    **numbers: Any,  # noqa: ANN401 - the fields of Load
) -> None:
    """Measure throughput, latency, CPU and memory of a cluster.

    Without --config it starts a cluster on loopback. Mind that it floods the cluster. With --rate, the
    latency of a message counts from the time when it was due, even if it was sent later because the cluster
    was busy.

    The exit code is 1 if messages were lost, came twice or, with v2, were not confirmed.

    \b
    Examples:
      wsqueue bench
      wsqueue bench --rate 10000 --plot latency.svg
      wsqueue bench --topics 10 --subscribers 100 --count 100000 --json
      wsqueue bench --retention sqlite --replay
      wsqueue bench --config demo.toml --rate 1000 --duration 60
    """
    # Imported here because it takes 3 MiB that no node needs.
    from ..tools.bench.cluster import REPLAY_BYTES, load_problem  # noqa: PLC0415
    from ..tools.bench.plot import plot_problem  # noqa: PLC0415
    from ..tools.bench.workload import Load  # noqa: PLC0415

    started = (consumers, producers, retention)
    if config_file is not None and started != (None, None, None):
        raise click.UsageError(
            "--consumers, --producers and --retention can't be used with --config, which starts no nodes."
        )
    if numbers["replay"]:
        if duration is not None or protocol == "classic":
            raise click.UsageError("--replay can't be used with --duration or --protocol classic.")
        numbers["count"] = numbers["count"] or max(1, REPLAY_BYTES // numbers["size"])
    if duration is not None and numbers["count"] is not None:
        raise click.UsageError("--duration and --count can't be used together.")
    try:
        load = Load(duration=5.0 if duration is None else duration, **numbers)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    settings = load_config(config_file, ClientConfig) if config_file is not None else None
    if settings is not None:
        nodes = len(settings.consumers), len(settings.producers)
    else:
        nodes = consumers or 1, producers or 1
    problem = load_problem(load, *nodes, settings.limits if settings is not None else Limits())
    if not problem and plot is not None:
        problem = plot_problem(plot)
    if problem:
        raise click.UsageError(problem)
    mode = retention or "memory"
    engine = engine_for(mode, nats_server)
    run(_bench(load, settings, (*nodes, mode), protocol, engine=engine, as_json=as_json, plot=plot))


async def _bench(
    load: Load,
    settings: ClientConfig | None,
    cluster: tuple[int, int, model.RetentionMode],
    protocol: Protocol,
    *,
    engine: Path | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    from ..tools.bench.cluster import bench_cluster, bench_started_cluster  # noqa: PLC0415 - as above
    from ..tools.bench.plot import write_plot  # noqa: PLC0415
    from ..tools.bench.table import table  # noqa: PLC0415

    with ended_by_signals(), _progress_bar() as progress:
        if settings is not None:
            report = await bench_cluster(load, settings, progress, protocol)
        else:
            show = node_lines(hidden=[" INFO "])
            report = await bench_started_cluster(load, cluster, progress, show, protocol, nats_server=engine)
    if as_json:
        fields = {"protocol": protocol, "load": load, **msgspec.structs.asdict(report)}
        click.echo(msgspec.json.encode(fields))
    else:
        click.echo(table(report, load))
    if plot is not None:
        write_plot(report, load, plot)
    if problems := _problems(report):
        click.echo("\n".join(problems), err=True)
        fail()


def _problems(report: BenchReport) -> list[str]:
    counts = {
        "deliveries were lost": report.lost,
        "deliveries were duplicates": report.duplicates,
        "messages were not confirmed": report.unconfirmed,
    }
    problems = [f"{count} {text}." for text, count in counts.items() if count]
    if report.ended_early:
        problems.append("The run ended early because no message came any more.")
    return problems


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[float], None]]:
    """Yield a function that shows a share of the work, 0 to 1, as done, if there is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    with click.progressbar(length=1000, file=sys.stderr) as bar:
        yield lambda done: bar.update(round(done * 1000) - bar.pos)
