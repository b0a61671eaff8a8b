"""Exit codes, options, signal handling and progress output that several commands share."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import math
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import click
from click.shell_completion import CompletionItem

from ..config.model import RetentionMode
from ..tools.local_engine import find_nats_server
from ..tools.terminal import one_line


class ExitCode(enum.IntEnum):
    """The exit codes of all commands.

    Attributes:
        meaning: The text for `--help`, the manual page and docs/operations.md.
    """

    meaning: str

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        """Return the member of a code, with its meaning."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done"
    FAILED = 1, "a check failed, messages were lost or late, or a node could not start or go on"
    WRONG_USAGE = 2, "the command line, or a line to publish, is wrong"
    WRONG_CONFIG = 3, "a configuration file, or the pre-shared key that it points to, is wrong"
    NO_ANSWER = 4, "no node answers"
    OTHER_KEY = 5, "the nodes have another pre-shared key, or it does not allow that"
    INTERRUPTED = 130, "ended by Ctrl-C"


_NODE_COLORS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green")

CONFIG_VARIABLE = "WSQUEUE_CONFIG"
"""The environment variable that stands for --config."""

DEFAULT_CONFIG = "/etc/wsqueue/demo.toml"
"""The configuration file of clients, where the deployment puts it."""

COMPLETE_VARIABLE = "_WSQUEUE_COMPLETE"
"""Set by the scripts of `wsqueue completion`; click's own name depends on how the command was started."""


def complete_file(_context: click.Context, _parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """Let the shell complete the name of a file."""
    return [CompletionItem(start, type="file")]


class Amount(click.FloatRange):
    """A number in a range; `nan`, which no range has, is refused too."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as click has it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a valid float.", param, ctx)
        return number


def text(value: str) -> str:
    """Return a text of the command line, each byte of which is UTF-8: a packet holds no other.

    Raises:
        click.BadParameter: It is another.
    """
    if not is_utf8(value):
        raise click.BadParameter(f"{value!r} is not UTF-8.")
    return value


def is_utf8(argument: str) -> bool:
    """Return False if the bytes of an argument were no UTF-8: Python has replaced them by surrogates then."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    envvar=CONFIG_VARIABLE,
    default=DEFAULT_CONFIG,
    show_default=True,
    show_envvar=True,
    shell_complete=complete_file,
    help="Configuration file of role demo: addresses of the nodes, and the pre-shared key.",
)


nats_server_option = click.option(
    "--nats-server",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The program nats-server for --retention jetstream; without it, that of this Python or the PATH.",
)


def engine_for(mode: RetentionMode, nats_server: Path | None) -> Path | None:
    """Return the program nats-server that a retention mode needs, None if it needs none.

    Raises:
        click.UsageError: The program is given, and not needed.
        WsqueueError: It is needed, and not found.
    """
    if mode == "jetstream":
        return find_nats_server(nats_server)
    if nats_server is not None:
        raise click.UsageError("--nats-server is only for --retention jetstream.")
    return None


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine, on uvloop where it is installed."""
    try:
        import uvloop  # noqa: PLC0415 - the client does without it
    except ImportError:
        asyncio.run(coroutine)
    else:
        uvloop.run(coroutine)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Cancel the current task on SIGINT, SIGTERM or SIGHUP, so that it can end all that it has begun.

    A signal that whoever started the command ignores, as `nohup` does, stays ignored.

    Raises:
        click.exceptions.Exit: A signal came; the exit code is 128 plus its number.
    """
    code = 0

    def end(number: int) -> None:
        nonlocal code
        code = 128 + number
        this.cancel()

    loop, this = asyncio.get_running_loop(), cast("asyncio.Task[None]", asyncio.current_task())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, end, number)
    try:
        yield
    except asyncio.CancelledError:
        raise click.exceptions.Exit(code) from None


@contextlib.contextmanager
def progress_line(*, beside_output: bool = False) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a line of progress on a terminal; an empty text removes it.

    Args:
        beside_output: True to show it on standard error also when standard output is no terminal.
    """
    if not sys.stderr.isatty() or not (beside_output or sys.stdout.isatty()):
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


def node_lines(hidden: list[str]) -> Callable[[str, str], None]:
    """Return a function that prints a line from the log of a node, in the colour of the node.

    Args:
        hidden: Texts of log levels; lines with one of them aren't printed.
    """
    colors = itertools.cycle(_NODE_COLORS)
    color_of: defaultdict[str, str] = defaultdict(lambda: next(colors))

    def show(name: str, line: str) -> None:
        if not any(level in line for level in hidden):
            click.echo(f"{click.style(f'{name:<11}|', fg=color_of[name])} {line}", err=True)

    return show


def fail() -> NoReturn:
    """End the command with the code of a failure."""
    raise click.exceptions.Exit(ExitCode.FAILED)
