"""The commands that make keys and tokens."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from ..config.key_strength import is_weak
from ..config.keys import load_psk
from ..config.load import load_config
from ..config.model import ClientConfig
from ..config.tokens import Token
from ..errors import ConfigError, WsqueueError
from .common import Amount, config_option, text

KEY_BYTES = 32
"""Length of a key: 256 bits can't be guessed."""


output_option = click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="New file that only its owner may read, instead of standard output.",
)


@click.command()
@output_option
def keygen(output: Path | None) -> None:
    """Make a key: 256 random bits, as 43 characters.

    \b
    Examples:
      wsqueue keygen --output keys/billing
      wsqueue keygen
    """
    key = secrets.token_urlsafe(KEY_BYTES)
    # One in thousands looks like words to the nodes.
    while is_weak(key):
        key = secrets.token_urlsafe(KEY_BYTES)
    _write(key, output)


def _write(secret: str, output: Path | None) -> None:
    """Write a secret to standard output, or to a new file.

    Raises:
        WsqueueError: The file is there, or cannot be written.
    """
    if output is None:
        click.echo(secret)
        return
    try:
        # Nobody else may open it meanwhile, and no key is overwritten.
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise WsqueueError(f"{output} is there already: expected the name of a new file") from None
    except OSError as error:
        raise WsqueueError(f"cannot write {output}: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secret}\n")


@click.command()
@config_option
@click.option("--who", type=text, default="", help="User of the token, for the journals of the nodes.")
@click.option(
    "--publish",
    type=text,
    metavar="TOPIC",
    multiple=True,
    help="Topic that may be published to; several times for more.",
)
@click.option(
    "--subscribe",
    type=text,
    metavar="TOPIC",
    multiple=True,
    help="Topic that may be subscribed to; several times for more.",
)
@click.option(
    "--group",
    "groups",
    type=text,
    metavar="GROUP",
    multiple=True,
    help="Worker group that may be joined, or name of a reader, on those topics; several times for more.",
)
@click.option("--status", is_flag=True, help="Reports may be read.")
@click.option("--operator", is_flag=True, help="Topics may be listed and purged, and clients disconnected.")
@output_option
@click.option(
    "--hours",
    type=Amount(min=0, max=24 * 366, min_open=True),
    metavar="HOURS",
    default=1.0,
    show_default=True,
    help="How long it lasts.",
)
def token(
    config_file: str,
    who: str,
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    groups: tuple[str, ...],
    *,
    status: bool,
    operator: bool,
    hours: float,
    output: Path | None,
) -> None:
    """Lend the key of a configuration to somebody for a while, as a token.

    Who has the token has the rights in it, as far as the key has them too. A TOPIC that ends with * stands
    for all topics that begin so. The token is a secret. It ends by itself; before that, only the key's
    `not_before` or its removal end it.

    \b
    Examples:
      wsqueue token --who alice --subscribe news
      wsqueue token --config billing.toml --publish 'orders/*' --hours 8 --output alice.token
    """
    if not (publish or subscribe or status or operator):
        raise click.UsageError(
            "a token without rights is of no use: expected --publish, --subscribe, --status or --operator"
        )
    psk = load_psk(load_config(config_file, ClientConfig))
    if psk.token:
        raise ConfigError(
            "a token makes no tokens: expected psk_file instead of token_file", file=config_file
        )
    try:
        made = Token.make(
            psk,
            who=who,
            publish=publish,
            subscribe=subscribe,
            groups=groups,
            status=status,
            operator=operator,
            seconds=hours * 3600,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _write(made.text, output)
