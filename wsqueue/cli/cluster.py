"""The commands that run a cluster on this machine, and verify any cluster."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import click

from ..config import model
from ..config.addresses import parse_address
from ..config.keys import load_psk
from ..config.load import load_config
from ..config.model import ClientConfig
from ..errors import WsqueueError
from ..tools.local import LocalCluster
from ..tools.terminal import json_line, printable
from ..tools.verify import Check, write_junit
from ..tools.verify import verify as run_checks
from .common import (
    config_option,
    ended_by_signals,
    engine_for,
    fail,
    nats_server_option,
    node_lines,
    progress_line,
    run,
)
from .messages import run_demo


@click.command()
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write a JUnit XML report.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all checks.")
@click.option(
    "--without",
    metavar="ADDRESS",
    multiple=True,
    help="Leave out the node at host:port, which is known to be down; may be given several times.",
)
@config_option
def verify(junit: Path | None, *, as_json: bool, without: tuple[str, ...], config_file: str) -> None:
    """Run the end-to-end tests against a cluster.

    Every node must answer, a random message must come back unmodified through every producer and every
    consumer, and every endpoint must refuse a wrong key. The exit code is 1 if a check fails.

    \b
    Examples:
      wsqueue verify --junit report.xml
      wsqueue verify --json | jq -r '.checks[] | select(.problem != "") | .name'
      wsqueue verify --without 192.0.2.7:10001
    """
    settings = load_config(config_file, ClientConfig)
    run(_verify(settings, junit, as_json=as_json, without=_known_nodes(without, settings)))


@click.command()
@click.option("--consumers", type=click.IntRange(1, 100), default=2, show_default=True, metavar="N")
@click.option("--producers", type=click.IntRange(1, 100), default=2, show_default=True, metavar="N")
@click.option(
    "--port",
    type=click.IntRange(0, 65_336),
    default=10_001,
    show_default=True,
    help="Port of the first consumer; the other nodes use the next ones. With 0, the system chooses.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Directory of the configuration files and the key; without it, a temporary one.",
)
@click.option(
    "--retention",
    type=click.Choice(["memory", "sqlite", "jetstream"]),
    default="memory",
    show_default=True,
    help="Where the consumers store messages; for jetstream, a NATS server is started that keeps one log.",
)
@nats_server_option
@click.option(
    "--demo", "demo_topic", metavar="TOPIC", help="Verify the cluster, run the demo on TOPIC, and end."
)
def local(
    *,
    consumers: int,
    producers: int,
    port: int,
    directory: Path | None,
    retention: model.RetentionMode,
    nats_server: Path | None,
    demo_topic: str | None,
) -> None:
    """Run a cluster on this machine until Ctrl-C.

    Each node is a process of its own, and listens on loopback only. When one of them ends, the others are
    ended too. In the directory, the logs stay; the key and the configuration files are written anew at each
    start.

    \b
    Examples:
      wsqueue local
      wsqueue local --directory cluster
      wsqueue local --consumers 4 --producers 3 --port 0
      wsqueue local --demo news
    """
    run(
        _local(
            consumers=consumers,
            producers=producers,
            port=port,
            directory=directory,
            retention=retention,
            nats_server=nats_server,
            demo_topic=demo_topic,
        )
    )


def _known_nodes(texts: Sequence[str], settings: ClientConfig) -> set[tuple[str, int]]:
    """Return host and port of each address, which must be one of the cluster's."""
    known = {(node.host, node.port) for node in settings.produce_addresses + settings.subscribe_addresses}
    found = set()
    for text in texts:
        try:
            address = parse_address(text)
        except ValueError as error:
            raise click.BadParameter(f"{text} is not an address: {error}", param_hint="--without") from None
        if (address.host, address.port) not in known:
            raise click.BadParameter(f"{text} is no node of the configuration", param_hint="--without")
        found.add((address.host, address.port))
    return found


async def _verify(
    settings: ClientConfig,
    junit: Path | None,
    *,
    as_json: bool = False,
    without: Collection[tuple[str, int]] = (),
) -> None:
    checks = []
    with progress_line() as say:
        async for check in run_checks(settings, load_psk(settings), say, without):
            checks.append(check)
            say("")
            if not as_json:
                _show_check(check)
    failed = sum(bool(check.problem) for check in checks)
    if as_json:
        click.echo(json_line({"checks": checks, "failed": failed}))
    else:
        click.echo(f"{len(checks)} checks, {failed} failed")
    if junit is not None:
        try:
            write_junit(checks, junit)
        except OSError as error:
            raise WsqueueError(f"cannot write {junit}: {error.strerror}") from None
    if failed:
        fail()


def _show_check(check: Check) -> None:
    mark = click.style("FAIL", fg="red", bold=True) if check.problem else click.style("ok  ", fg="green")
    problem = f": {printable(check.problem)}" if check.problem else ""
    click.echo(f"{mark} {check.name}{problem} ({check.seconds * 1000:.0f} ms)")


async def _local(
    *,
    consumers: int,
    producers: int,
    port: int,
    directory: Path | None,
    retention: model.RetentionMode,
    nats_server: Path | None,
    demo_topic: str | None,
) -> None:
    engine = engine_for(retention, nats_server)
    # The demo needs the terminal for itself, and the checks before it provoke warnings.
    show = node_lines(hidden=[" INFO ", " WARNING "] if demo_topic is not None else [])
    with ended_by_signals():
        kept = model.Retention(mode=retention if engine is None else "memory")
        async with LocalCluster(
            consumers, producers, port, directory, show, retention=kept, nats_server=engine
        ) as cluster:
            if demo_topic is None:
                click.echo("The cluster is up; Ctrl-C ends it. In another terminal:")
                click.echo(f"  wsqueue demo --config {cluster.config_file} news")
                click.echo(f"Status page, with a demo for the browser: {cluster.status_page}")
                await cluster.wait()
            else:
                settings = load_config(cluster.config_file, ClientConfig)
                await _verify(settings, None)
                if sys.stdin.isatty():
                    # Without a terminal, the cluster ends with standard input.
                    click.echo(f"Status page of the cluster, until this command ends: {cluster.status_page}")
                await run_demo(settings, demo_topic)
