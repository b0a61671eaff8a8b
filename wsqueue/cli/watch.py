"""The commands that watch a cluster. They import rich and psutil, which are slow, only when they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ..config.keys import load_psk
from ..config.load import load_config
from ..config.model import ClientConfig
from ..net.certificates import TlsContexts
from ..report.text import number
from ..tools.terminal import json_line, one_line
from .common import (
    Amount,
    ExitCode,
    complete_file,
    config_option,
    ended_by_signals,
    fail,
    progress_line,
    run,
)

if TYPE_CHECKING:
    from ..tools.doctor import Finding
    from ..tools.top import ClusterSnapshot


@click.command()
@click.option(
    "--interval",
    type=Amount(0.5, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two requests to each node.",
)
@click.option(
    "--once", is_flag=True, help="Print one snapshot and end; it takes two requests, because it has rates."
)
@click.option("--json", "as_json", is_flag=True, help="Print each snapshot as one line of JSON.")
@config_option
def top(*, interval: float, once: bool, as_json: bool, config_file: str) -> None:
    """Show the state of all nodes until q or Ctrl-C.

    Warnings come first, then the nodes, their links, slow subscribers, and the topics with the most
    messages. Without a terminal it prints one snapshot after the other.

    With --once the exit code is 0 if all nodes answer, 1 if only some do, and 4 if none does, or 5 if that
    is because they have another pre-shared key.

    \b
    Examples:
      wsqueue top
      wsqueue top --once
      wsqueue top --once --json | jq '.nodes[] | select(.problem != "")'
    """
    run(_top(load_config(config_file, ClientConfig), interval, once=once, as_json=as_json))


async def _top(settings: ClientConfig, interval: float, *, once: bool, as_json: bool) -> None:
    from ..monitoring.cluster import ClusterMonitor  # noqa: PLC0415
    from ..tools import top as view  # noqa: PLC0415 - it needs rich, which is slow to import

    monitor = ClusterMonitor(
        settings.subscribe_addresses,
        settings.produce_addresses,
        load_psk(settings),
        settings,
        TlsContexts(settings),
    )
    asking = view.Top(monitor, interval, settings.limits.hello_seconds)
    monitor.start()
    with ended_by_signals():
        try:
            if once:
                snapshot = await asking.once()
                _write_snapshot(as_json=as_json)(snapshot)
                raise click.exceptions.Exit(exit_code(snapshot))
            if as_json or not view.is_screen():
                await view.print_snapshots(asking, _write_snapshot(as_json=as_json))
            else:
                await view.watch(asking)
        finally:
            await monitor.stop()


def exit_code(snapshot: ClusterSnapshot) -> ExitCode:
    """Return the exit code of `wsqueue top --once`: FAILED when only some of the nodes answer."""
    from ..report.warnings import OTHER_KEY  # noqa: PLC0415 - as above

    if len(snapshot.answering) == len(snapshot.nodes):
        return ExitCode.DONE
    if snapshot.answering:
        return ExitCode.FAILED
    other_key = any(node.problem == OTHER_KEY for node in snapshot.nodes)
    return ExitCode.OTHER_KEY if other_key else ExitCode.NO_ANSWER


def _write_snapshot(*, as_json: bool) -> Callable[[ClusterSnapshot], None]:
    from ..tools import top as view  # noqa: PLC0415 - as above

    printed = 0

    def write(snapshot: ClusterSnapshot) -> None:
        nonlocal printed
        if as_json:
            click.echo(json_line(snapshot))
        else:
            if printed:
                click.echo()
            view.print_text(snapshot)
        printed += 1

    return write


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE...]", shell_complete=complete_file)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all findings.")
@config_option
@click.pass_context
def doctor(context: click.Context, *, files: tuple[str, ...], as_json: bool, config_file: str) -> None:
    """Find problems, and say how to solve them.

    With each FILE, of any role, it checks the configuration on this host: addresses, keys and their
    fingerprints, certificates, open files, memory and the directory of the log. Without FILE, or with a
    FILE of role demo, it asks all nodes of that cluster, and compares them. The exit code is 1 if there is
    a problem.

    \b
    Examples:
      wsqueue doctor
      wsqueue doctor --config cluster/demo.toml
      sudo wsqueue doctor /etc/wsqueue/*.toml
      wsqueue doctor --json | jq -r '.findings[] | select(.state == "problem") | .text'
    """
    given = context.get_parameter_source("config_file") == ParameterSource.COMMANDLINE
    if given or not files:
        # As with all commands, a wrong --config ends with exit code 3 and is not a finding.
        load_psk(load_config(config_file, ClientConfig))
        files = (*files, config_file)
    run(_doctor(list(dict.fromkeys(files)), as_json=as_json))


async def _doctor(files: Sequence[str], *, as_json: bool) -> None:
    from ..tools import doctor as checks  # noqa: PLC0415 - it needs psutil, which is slow to import

    found: list[Finding] = []
    with ended_by_signals(), progress_line() as say:
        async for finding in checks.check(files, say):
            say("")
            found.append(finding)
            if not as_json:
                _show_finding(finding)
    counts = {state: sum(finding.state == state for finding in found) for state in ("problem", "warning")}
    if as_json:
        click.echo(
            json_line({"findings": found, "problems": counts["problem"], "warnings": counts["warning"]})
        )
    else:
        click.echo(", ".join(number(count, noun) for noun, count in {"check": len(found), **counts}.items()))
    if counts["problem"]:
        fail()


def _show_finding(finding: Finding) -> None:
    mark, color = {"ok": ("ok  ", "green"), "warning": ("WARN", "yellow"), "problem": ("FAIL", "red")}[
        finding.state
    ]
    click.echo(f"{click.style(mark, fg=color)} {one_line(finding.subject)}: {one_line(finding.text)}")
    if finding.advice:
        click.echo(f"     {click.style(one_line(finding.advice), dim=True)}")
