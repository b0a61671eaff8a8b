"""The group of all commands. It prints each error as one sentence and chooses the exit code."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from .. import journal
from ..errors import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    InvalidMessage,
    NotAllowedError,
    WsqueueError,
)
from ..tools.terminal import discard_output, prepare_standard_files, printable
from ..version import __version__
from . import bench, cluster, keys, logs, messages, node, operator, shell, watch, work
from .common import COMPLETE_VARIABLE, ExitCode

COMMANDS = (
    node.consumer,
    node.producer,
    node.check_config,
    node.kept,
    messages.demo,
    messages.publish,
    messages.subscribe,
    work.work,
    logs.backup,
    logs.restore,
    logs.migrate,
    keys.keygen,
    keys.token,
    cluster.verify,
    cluster.local,
    bench.bench,
    watch.top,
    watch.doctor,
    operator.topics,
    operator.groups,
    operator.purge,
    operator.disconnect,
    shell.completion,
    shell.man,
)


class _Commands(click.Group):
    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as click has it
        """Answer the scripts of `wsqueue completion`, under whatever name the command was started."""
        kwargs["complete_var"] = COMPLETE_VARIABLE
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            # Click itself ends quietly when the reader of a pipe has closed it.
            click.echo(f"Error: {printable(str(error))}", err=True)
            discard_output()
            sys.exit(ExitCode.FAILED)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click has it
        """Turn an error into one sentence on standard error, and an exit code."""
        try:
            return super().invoke(ctx)
        except WsqueueError as error:
            text = "; ".join([str(error), *getattr(error, "__notes__", ())])
            click.echo(f"Error: {printable(text)}", err=True)
            raise click.exceptions.Exit(_exit_code(error)) from None
        except KeyboardInterrupt:
            raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
        except click.Abort as error:
            # At a question, click takes Ctrl-C for a no.
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            click.echo(err=True)
            raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None


def _exit_code(error: WsqueueError) -> ExitCode:
    match error:
        case AuthenticationError() | NotAllowedError():
            return ExitCode.OTHER_KEY
        case ConnectError():
            return ExitCode.NO_ANSWER
        case ConfigError():
            return ExitCode.WRONG_CONFIG
        case InvalidMessage():
            return ExitCode.WRONG_USAGE
    return ExitCode.FAILED


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\n".join(["\b", "Exit codes:", *(f"  {code:<3}  {code.meaning}" for code in ExitCode)]),
)
@click.version_option(__version__, "-V", "--version", message="wsqueue %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Also log connections; the nodes ignore it.")
def main(verbose: bool) -> None:
    """A topic queue over WebSockets.

    Clients publish through any producer. The producer forwards each message to one consumer, chosen by
    the hash of the topic; the consumer sends it to all subscribers of the topic.

    \b
    To try it, with all nodes on this machine:
      wsqueue local --demo news
    """
    prepare_standard_files()
    if os.environ.get("NO_COLOR"):
        click.get_current_context().color = False
    journal.configure("info" if verbose else "warning")


for _command in COMMANDS:
    main.add_command(_command)
