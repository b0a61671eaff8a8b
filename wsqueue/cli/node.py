"""The commands that run a node, and the one that checks a configuration file."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from .. import journal
from ..config import model
from ..config.check import config_warnings
from ..config.keys import load_psk
from ..config.load import load_any_config, load_config
from ..errors import ConfigError
from ..net.certificates import TlsContexts
from ..nodes import service
from ..nodes.consumer import Consumer
from ..nodes.node import Node
from ..nodes.producer import Producer
from ..tools.terminal import json_line, printable
from .common import ExitCode, complete_file


@click.command()
@click.argument("file", shell_complete=complete_file)
def consumer(file: str) -> None:
    """Run a consumer with the configuration FILE.

    It serves /producer and /subscribe/TOPIC. SIGTERM drains and ends it, SIGHUP reads FILE again, and
    SIGUSR1 logs the counters.

    \b
    Example:
      wsqueue consumer /etc/wsqueue/consumer-10001.toml
    """
    _run_node(file, Consumer)


@click.command()
@click.argument("file", shell_complete=complete_file)
def producer(file: str) -> None:
    """Run a producer with the configuration FILE.

    It serves /produce, and keeps a link to every consumer. SIGTERM drains and ends it, SIGHUP reads FILE
    again, and SIGUSR1 logs the counters.

    \b
    Example:
      wsqueue producer /etc/wsqueue/producer-10002.toml
    """
    _run_node(file, Producer)


@click.command("check-config")
@click.argument("file", shell_complete=complete_file)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object with the role, the warnings and the problem.",
)
def check_config(file: str, *, as_json: bool) -> None:
    """Check the configuration FILE, its certificates and its key.

    The key is checked if FILE has a psk_file. The exit code is 3 if something is wrong.

    \b
    Examples:
      wsqueue check-config /etc/wsqueue/producer-10002.toml
      wsqueue check-config --json demo.toml | jq -r .problem
    """
    try:
        checked = load_any_config(file)
        if checked.psk_file is not None:
            load_psk(checked)
        warnings = config_warnings(checked) + TlsContexts(checked).warnings(datetime.now(UTC))
    except ConfigError as error:
        if not as_json:
            raise
        wrong = {"file": error.file, "line": error.line, "key": error.key}
        click.echo(
            json_line({"file": file, "role": None, "warnings": [], "problem": str(error), "at": wrong})
        )
        raise click.exceptions.Exit(ExitCode.WRONG_CONFIG) from None
    role = model.role_of(type(checked))
    if as_json:
        click.echo(json_line({"file": file, "role": role, "warnings": warnings, "problem": None, "at": None}))
        return
    for sentence in warnings:
        click.echo(f"Warning: {printable(sentence)}", err=True)
    click.echo(f"{printable(file)}: a good configuration of role {role}")


def _run_node(file: str, kind: type[Node]) -> None:
    journal.configure(load_config(file, kind.config_type).log_level)
    service.run(file, kind)
