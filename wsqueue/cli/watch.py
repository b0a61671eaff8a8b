"""Commands that look at a cluster, and those about the command line itself; `cli` has the others.

What they need is imported where it is needed, for `wsqueue --help` and the nodes do without.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import click
import uvloop
from click.core import ParameterSource
from click.shell_completion import CompletionItem, get_completion_class

from ..config.keys import load_psk
from ..config.load import load_config
from ..config.model import ClientConfig
from ..net.certificates import TlsContexts
from ..tools.terminal import json_line, one_line
from ..version import __version__

if TYPE_CHECKING:
    from ..tools.doctor import Finding
    from ..tools.top import Snapshot

DEFAULT_CONFIG = "/etc/wsqueue/demo.toml"
"""Where the deployment puts the configuration of clients."""

COMPLETE_VARIABLE = "_WSQUEUE_COMPLETE"
"""Set by the scripts of `wsqueue completion`; click would make it of how the command was started."""


def complete_file(_context: click.Context, _parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """Let the shell complete the name of a file."""
    return [CompletionItem(start, type="file")]


config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    envvar="WSQUEUE_CONFIG",
    default=DEFAULT_CONFIG,
    show_default=True,
    show_envvar=True,
    shell_complete=complete_file,
    help="Configuration of role demo: where the nodes are, and the pre-shared key.",
)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on uvloop."""
    uvloop.run(coroutine)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a signal cancel what runs, so that it ends the processes that it has started."""
    code = 0

    def end(number: int) -> None:
        nonlocal code
        code = 128 + number
        this.cancel()

    loop, this = asyncio.get_running_loop(), cast("asyncio.Task[None]", asyncio.current_task())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    try:
        yield
    except asyncio.CancelledError:
        raise click.exceptions.Exit(code) from None


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield what says, on a terminal and nowhere else, what is going on; "" takes it away."""
    if not sys.stderr.isatty() or not sys.stdout.isatty():
        yield lambda _text: None
        return
    shown = False

    def say(text: str) -> None:
        nonlocal shown
        if shown or text:
            width = max(shutil.get_terminal_size().columns - 1, 1)
            click.echo(f"\r\x1b[K{one_line(text)[:width]}", err=True, nl=False, color=True)
        shown = bool(text)

    try:
        yield say
    finally:
        say("")


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.5, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often the nodes are asked.",
)
@click.option(
    "--once", is_flag=True, help="Print one snapshot and end; the nodes are asked twice, for the rates."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line each time.")
@config_option
def top(*, interval: float, once: bool, as_json: bool, config_file: str) -> None:
    """Show how all nodes of a cluster are, until q or Ctrl-C.

    Warnings come first, in words; then the nodes, their links, slow subscribers, and the topics with the
    most messages. Into a pipe it prints a snapshot each time.

    With --once the exit code is 0 when all nodes answer, 1 when one does not, and 4 (5) when none does
    (for they have another pre-shared key).

    \b
    Examples:
      wsqueue top
      wsqueue top --once
      wsqueue top --once --json | jq '.nodes[] | select(.problem != "")'
    """
    run(_top(load_config(config_file, ClientConfig), interval, once=once, as_json=as_json))


async def _top(settings: ClientConfig, interval: float, *, once: bool, as_json: bool) -> None:
    from ..monitoring.cluster import OTHER_KEY, ClusterMonitor  # noqa: PLC0415
    from ..tools import top as view  # noqa: PLC0415 - it needs rich, which takes a while

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
                if code := view.exit_code(snapshot, OTHER_KEY):
                    raise click.exceptions.Exit(code)
            elif as_json or not view.is_screen():
                await view.print_snapshots(asking, _write_snapshot(as_json=as_json))
            else:
                await view.watch(asking)
        finally:
            await monitor.stop()


def _write_snapshot(*, as_json: bool) -> Callable[[Snapshot], None]:
    from ..tools import top as view  # noqa: PLC0415 - as above

    printed = 0

    def write(snapshot: Snapshot) -> None:
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
    """Find out what is wrong, and say what to do; exit with 1 if something is.

    With each FILE, of any role, it checks the configuration on this host: addresses, keys and their
    fingerprints, certificates, open files, memory and the directory of the log. Without FILE, or with
    one of role demo, it asks all nodes of that cluster, and compares them.

    \b
    Examples:
      wsqueue doctor
      wsqueue doctor --config cluster/demo.toml
      sudo wsqueue doctor /etc/wsqueue/*.toml
      wsqueue doctor --json | jq -r '.findings[] | select(.state == "problem") | .text'
    """
    given = context.get_parameter_source("config_file") == ParameterSource.COMMANDLINE
    if given or not files:
        # As for all commands, a wrong configuration here has an exit code of its own.
        load_psk(load_config(config_file, ClientConfig))
        files = (*files, config_file)
    run(_doctor(list(dict.fromkeys(files)), as_json=as_json))


async def _doctor(files: Sequence[str], *, as_json: bool) -> None:
    from ..tools import doctor as checks  # noqa: PLC0415 - it needs psutil, which takes a while

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
        counts = {"check": len(found), **counts}
        click.echo(", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items()))
    if counts["problem"]:
        raise click.exceptions.Exit(1)


def _show_finding(finding: Finding) -> None:
    mark, color = {"ok": ("ok  ", "green"), "warning": ("WARN", "yellow"), "problem": ("FAIL", "red")}[
        finding.state
    ]
    click.echo(f"{click.style(mark, fg=color)} {one_line(finding.subject)}: {one_line(finding.text)}")
    if finding.advice:
        click.echo(f"     {click.style(one_line(finding.advice), dim=True)}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete commands, options and files.

    \b
    Examples:
      wsqueue completion bash > /etc/bash_completion.d/wsqueue
      wsqueue completion zsh > "${fpath[1]}/_wsqueue"
      wsqueue completion fish > ~/.config/fish/completions/wsqueue.fish
      source <(wsqueue completion bash)
    """
    kind = get_completion_class(shell)
    assert kind is not None
    main = click.get_current_context().find_root().command
    script = kind(main, {}, "wsqueue", COMPLETE_VARIABLE)
    # Not `source()`, which looks for the shell on the host that prints the script.
    click.echo((script.source_template % script.source_vars()).strip())


@click.command()
def man() -> None:
    """Print the manual page wsqueue(1).

    \b
    Examples:
      wsqueue man | man -l -
      wsqueue man > /usr/local/share/man/man1/wsqueue.1
    """
    from . import main as cli  # noqa: PLC0415 - which imports this module
    from .manual import manual  # noqa: PLC0415 - no other command needs it

    main = click.get_current_context().find_root().command
    assert isinstance(main, click.Group)
    click.echo(manual(main, __version__, cli.__doc__ or ""), nl=False)


ALL = (top, doctor, completion, man)
"""What `cli` adds to its commands."""
