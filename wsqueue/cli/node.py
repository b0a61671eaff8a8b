"""The commands that run a node, check its configuration, and count its messages."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import click

from .. import journal
from ..config import model
from ..config.check import config_warnings
from ..config.files import read_secret
from ..config.keys import MAX_PSK_BYTES, load_keys, load_psk
from ..config.load import load_any_config, load_config
from ..config.tokens import Token
from ..errors import ConfigError, StorageError
from ..log.kept import kept_in
from ..net.certificates import TlsContexts
from ..nodes import service
from ..nodes.bounds import memory_bound
from ..nodes.consumer import Consumer
from ..nodes.node import Node
from ..nodes.producer import Producer
from ..protocol.routing import router
from ..report.text import amount
from ..report.text import number as numbered
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
    help="Print one JSON object with the role, the most memory that it takes, the warnings and the problem.",
)
@click.option("--values-only", is_flag=True, help="Don't open the key and the certificates that FILE names.")
def check_config(file: str, *, as_json: bool, values_only: bool) -> None:
    """Check the configuration FILE, its certificates and its keys.

    Keys, tokens and passwords are checked that FILE names files of. The exit code is 3 if something is wrong.

    \b
    Examples:
      wsqueue check-config /etc/wsqueue/producer-10002.toml
      wsqueue check-config --json demo.toml | jq -r .problem
      wsqueue check-config --values-only /dev/stdin < for-another-host.toml
    """
    try:
        checked = load_any_config(file)
        warnings = config_warnings(checked)
        if not values_only:
            warnings += _check_secrets(checked)
            warnings += TlsContexts(checked).warnings(datetime.now(UTC))
    except ConfigError as error:
        if not as_json:
            raise
        wrong = {"file": error.file, "line": error.line, "key": error.key}
        click.echo(json_line(_checked(file, problem=str(error), at=wrong)))
        raise click.exceptions.Exit(ExitCode.WRONG_CONFIG) from None
    role = model.role_of(type(checked))
    memory = memory_bound(checked) if isinstance(checked, model.NodeConfig) else None
    if as_json:
        click.echo(json_line(_checked(file, role=role, memory_bytes=memory, warnings=warnings)))
        return
    for sentence in warnings:
        click.echo(f"Warning: {printable(sentence)}", err=True)
    needs = f", which takes at most {amount(memory)} of memory" if memory is not None else ""
    click.echo(f"{printable(file)}: a good configuration of role {role}{needs}")


def _check_secrets(checked: model.Config) -> list[str]:
    """Read the keys, the token and the password that a configuration names in files; return warnings.

    Raises:
        ConfigError: One cannot be used.
    """
    if isinstance(checked, model.ClientConfig) and checked.token_file is not None:
        token = load_psk(checked)
        assert isinstance(token, Token)
        ended = time.time() - token.claims.expires
        return [f"token_file: the token ended {ended / 60:.0f} minutes ago"] if ended >= 0 else []
    if isinstance(checked, model.NodeConfig) and _names_all_keys(checked):
        load_keys(checked)
    elif checked.psk_file is not None:
        load_psk(checked)
    jetstream = checked.retention.jetstream if isinstance(checked, model.ConsumerConfig) else None
    if jetstream is not None and jetstream.password_file is not None:
        read_secret(Path(jetstream.password_file), MAX_PSK_BYTES)
    return []


def _names_all_keys(checked: model.NodeConfig) -> bool:
    """Return True if no key that a node needs is a credential of its unit, which is not here."""
    enough = checked.psk_file is not None or (checked.clients and checked.node_psk_file is not None)
    return bool(enough) and all(client.key_file for client in checked.clients)


def _checked(file: str, **found: object) -> dict[str, object]:
    """Return the answer of `check-config --json`, in which all keys are always there."""
    answer: dict[str, object] = {"file": file, "role": None, "memory_bytes": None}
    return answer | {"warnings": [], "problem": None, "at": None} | found


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--number", type=click.IntRange(1), metavar="N", help="Number of the consumer in a list of consumers."
)
@click.option(
    "--of", "consumers", type=click.IntRange(1), metavar="COUNT", help="Number of consumers in that list."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def kept(directory: Path, *, number: int | None, consumers: int | None, as_json: bool) -> None:
    """Count the messages that a consumer keeps in DIRECTORY.

    With --number and --of, count only the orphans: messages of topics that belong to another consumer if this
    one is number N in a list of COUNT consumers. Clients with that list look for them elsewhere.

    The consumer may run meanwhile. With retention "memory" it has a file only while it does not run, and with
    "jetstream" none. Without a file the exit code is 1.

    \b
    Examples:
      wsqueue kept /var/lib/wsqueue/consumer-10001
      wsqueue kept --number 2 --of 3 /var/lib/wsqueue/consumer-10001
    """
    if (number is None) != (consumers is None) or (number or 0) > (consumers or 0):
        raise click.UsageError("expected --number N and --of COUNT together, and N at most COUNT")
    if number is None or consumers is None:
        found = kept_in(directory)
    else:
        consumer_of, own = router(consumers), number - 1
        found = kept_in(directory, lambda topic: consumer_of(topic) != own)
    if found is None:
        raise StorageError(
            f"{directory}: there is no file of messages; the consumer may keep them in memory, or on NATS"
            " servers"
        )
    if as_json:
        click.echo(json_line(found))
        return
    click.echo(f"{numbered(found.messages, 'message')} of {numbered(found.topics, 'topic')}")


def _run_node(file: str, kind: type[Node]) -> None:
    journal.configure(load_config(file, kind.config_type).log_level)
    service.run(file, kind)
