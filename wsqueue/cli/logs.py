"""The commands that keep and bring back the log of a consumer."""

from __future__ import annotations

from pathlib import Path

import click

from ..config.model import RetentionMode
from ..report.text import amount, number
from ..tools import backup as tool
from ..tools.terminal import printable
from .common import complete_file, progress_line, run


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
    type=click.Choice(list(tool.NAMES)),
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


@click.command()
@click.argument("config", shell_complete=complete_file)
@click.option(
    "--from",
    "directories",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIRECTORY",
    multiple=True,
    required=True,
    help="Directory of the log of a consumer with the retention mode sqlite; may be given several times.",
)
@click.option("--check", is_flag=True, help="Only check and count; nothing is written.")
def migrate(config: str, directories: tuple[Path, ...], *, check: bool) -> None:
    """Move the logs of stopped consumers to the NATS servers of the configuration CONFIG.

    CONFIG is the configuration of a consumer with the retention mode jetstream. Messages keep their offsets,
    subscribers that come back go on where they were, and repeated batches are still recognised. The files are
    only read. All topics are checked before anything is written: the servers must have no messages of them,
    and no two logs the same topic. A move that was interrupted goes on when the command is given again.

    \b
    Examples:
      wsqueue migrate /etc/wsqueue/consumer-10001.toml --from /var/lib/wsqueue/consumer-10001
      wsqueue migrate consumer.toml --from web1/consumer-10001 --from web2/consumer-10001 --check
    """
    # Imported here because it takes 9 ms that no other command needs.
    from ..log.mover import Moved  # noqa: PLC0415
    from ..tools.migrate import migrate as migrate_logs  # noqa: PLC0415

    with progress_line() as say:
        moved = Moved()

        async def move() -> None:
            nonlocal moved
            moved = await migrate_logs(Path(config), directories, check=check, say=say)

        run(move())
    counts = f"{number(moved.messages, 'message')} ({amount(moved.bytes)}) on {number(moved.topics, 'topic')}"
    click.echo(f"{counts} {'can be moved' if check else 'moved'} to the NATS servers.")
    if moved.states:
        click.echo(
            f"{number(moved.states, 'state')} of these topics {'can be moved' if check else 'moved'} too."
        )
    if moved.before:
        click.echo(f"{number(moved.before, 'topic')} had been moved before.")
    if moved.left_out:
        click.echo(f"{number(moved.left_out, 'topic')} without messages left out: they are elsewhere too.")
