"""The commands that keep and bring back the log of a consumer."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from ..config.model import RetentionMode
from ..tools import backup as tool
from ..tools.terminal import printable
from .common import complete_file, progress_line


@click.command()
@click.argument("log", metavar="LOG", shell_complete=complete_file)
@click.argument("target", shell_complete=complete_file)
@click.option("--replace", is_flag=True, help="Replace TARGET if it is there.")
def backup(log: str, target: str, *, replace: bool) -> None:
    """Copy the log of a consumer to the file TARGET; the consumer goes on meanwhile.

    LOG is the configuration of the consumer, the directory of its log, or the file of the log. The backup
    holds all messages of one moment, and which batches were stored. It is checked, and is there as a whole or
    not at all. Only its owner may read it.

    A consumer with the retention mode memory has its log in memory; only the file that it leaves when it is
    stopped can be copied.

    \b
    Examples:
      wsqueue backup /etc/wsqueue/consumer-10001.toml /backup/consumer-10001.sqlite
      wsqueue backup /var/lib/wsqueue/consumer-10001 /backup/$(hostname)-10001-$(date +%F).sqlite
    """
    with progress_line() as say:
        content = tool.back_up(Path(log), Path(target), replace=replace, say=say)
    click.echo(f"{printable(target)}: {content}")


@click.command()
@click.argument("backup", shell_complete=complete_file)
@click.argument("where", metavar="PLACE", shell_complete=complete_file)
@click.option(
    "--mode",
    type=click.Choice(get_args(RetentionMode)),
    help="Retention mode of the consumer, if PLACE is a directory.  [default: sqlite]",
)
@click.option("--replace", is_flag=True, help="Set a log that is there aside; it is renamed, not deleted.")
def restore(backup: str, where: str, *, mode: RetentionMode | None, replace: bool) -> None:
    """Put the file BACKUP in the place of the log of a consumer, which must be stopped.

    PLACE is the configuration of the consumer, or the directory of its log. The log that it gets says that
    messages after the backup may be missing, so that all subscribers that come back are told of a gap; they
    go on where they were, as far as the backup reaches. Publishers send unconfirmed messages again.

    \b
    Examples:
      wsqueue restore /backup/consumer-10001.sqlite /etc/wsqueue/consumer-10001.toml
      wsqueue restore --replace web1-10001-2026-11-30.sqlite /var/lib/wsqueue/consumer-10001
    """
    with progress_line() as say:
        content, aside = tool.restore(Path(backup), Path(where), mode=mode, replace=replace, say=say)
    click.echo(f"{printable(where)}: {content}")
    if aside is not None:
        click.echo(f"The log that was there is {printable(str(aside))} now.")
