"""The command that runs a command for each message of a worker group."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Literal

import click

from ..client import client
from ..client.group import GroupSubscription
from ..config.load import load_config
from ..config.model import ClientConfig
from ..groups.lending import SMALL_PREFETCH
from ..protocol.v2 import (
    MAX_DELAY_SECONDS,
    MAX_DELIVERIES,
    MAX_LEASE_SECONDS,
    MAX_PREFETCH,
    MIN_LEASE_SECONDS,
)
from ..report.text import rate
from ..tools.work import MAX_PARALLEL, CommandError, Options, Work
from .common import Amount, complete_file, config_option, ended_by_signals, progress_line, run

PROGRESS_SECONDS = 0.25
"""Seconds between two lines of progress: a reader can follow, and the cost is small."""

RATE_SAMPLES = 20
"""Lines of progress over which the rate is measured: 5 seconds."""


@click.command()
@click.argument("topic")
@click.argument(
    "command", nargs=-1, required=True, metavar="-- COMMAND [ARG]...", shell_complete=complete_file
)
@click.option("--group", required=True, metavar="NAME", help="Name of the worker group.")
@click.option(
    "--parallel",
    type=click.IntRange(1, MAX_PARALLEL),
    default=1,
    show_default=True,
    metavar="N",
    help="Commands that run at a time.",
)
@click.option(
    "--prefetch",
    type=click.IntRange(1, MAX_PREFETCH),
    metavar="N",
    help="Messages that this worker has at a time, those of running commands included; by default as many"
    f" as --parallel, and from {SMALL_PREFETCH + 1} on twice as many.",
)
@click.option(
    "--retry-delay",
    type=Amount(0, MAX_DELAY_SECONDS),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time until a message that failed is lent again; twice as long after each further delivery.",
)
@click.option(
    "--timeout",
    type=Amount(min=0, min_open=True),
    metavar="SECONDS",
    help="End a command that takes longer: with SIGTERM, and with SIGKILL 5 seconds later; it has failed.",
)
@click.option(
    "--max-deliveries",
    type=click.IntRange(1, MAX_DELIVERIES),
    default=client.MAX_DELIVERIES,
    show_default=True,
    metavar="N",
    help="Deliveries after which a message becomes a dead letter.",
)
@click.option(
    "--order-key",
    metavar="HEADER",
    help="Work in order on messages with the same value of this header.",
)
@click.option(
    "--from",
    "start",
    type=click.Choice(["earliest", "latest"]),
    default="earliest",
    show_default=True,
    help="Where a group begins that is new.",
)
@click.option(
    "--lease-seconds",
    type=Amount(MIN_LEASE_SECONDS, MAX_LEASE_SECONDS),
    default=client.LEASE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Time after which others get the messages of a worker that is gone without a word. It is no limit"
    " for commands: while they run, it begins anew.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages are done.")
@click.option(
    "--idle-seconds",
    type=Amount(min=0, min_open=True),
    metavar="SECONDS",
    help="End when no message has come, and no command has run, for that time.",
)
@config_option
def work(
    *,
    topic: str,
    command: tuple[str, ...],
    group: str,
    parallel: int,
    prefetch: int | None,
    retry_delay: float,
    timeout: float | None,
    max_deliveries: int,
    order_key: str | None,
    start: Literal["earliest", "latest"],
    lease_seconds: float,
    count: int | None,
    idle_seconds: float | None,
    config_file: str,
) -> None:
    """Run COMMAND for each message of TOPIC that a worker group lends to this worker.

    The data of the message is the standard input of the command, byte by byte. With exit code 0 the message
    is done. With any other, or when a signal ends the command, it is lent again, perhaps to another worker.

    The command finds WSQUEUE_TOPIC, WSQUEUE_GROUP, WSQUEUE_OFFSET and WSQUEUE_DELIVERIES in its environment,
    and each header as WSQUEUE_HEADER_NAME, in upper case and with _ for all that is no letter or digit of
    ASCII. The last one counts when several have the same name then, and one with a NUL is left out.
    WSQUEUE_PSK and CREDENTIALS_DIRECTORY are not passed on.

    At SIGINT or SIGTERM, the worker takes no more messages, and ends when its commands have ended. A second
    signal ends them as --timeout does.

    \b
    Examples:
      wsqueue work jobs --group billing -- ./bill --quiet
      wsqueue work pictures --group thumbnails --parallel 4 --timeout 60 -- ./shrink
      wsqueue work 'jobs!billing!dead' --group look --idle-seconds 2 -- cat
    """
    if prefetch is not None and prefetch < parallel:
        raise click.UsageError(f"--prefetch {prefetch} is too few for --parallel {parallel}.")
    if shutil.which(command[0]) is None:
        raise click.UsageError(
            f"no command {command[0]!r}: expected a program of the PATH, or the path of a file that may be"
            " executed."
        )
    settings = load_config(config_file, ClientConfig)
    options = Options(
        command=command,
        group=group,
        lease_seconds=lease_seconds,
        max_deliveries=max_deliveries,
        parallel=parallel,
        retry_delay=retry_delay,
        seconds=timeout,
        count=count,
        idle_seconds=idle_seconds,
    )

    def join(connected: client.Client) -> GroupSubscription:
        return connected.subscribe(
            topic,
            group=group,
            start=start,
            prefetch=prefetch or (parallel if parallel <= SMALL_PREFETCH else 2 * parallel),
            lease_seconds=lease_seconds,
            max_deliveries=max_deliveries,
            order_key=order_key,
        )

    run(_work(settings, join, options))


async def _work(
    settings: ClientConfig, join: Callable[[client.Client], GroupSubscription], options: Options
) -> None:
    with ended_by_signals():
        async with client.connect(settings) as connected:
            try:
                joined = join(connected)
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            async with joined as messages:
                working = Work(messages, options)
                try:
                    async with _progress(working):
                        await working.run()
                except CommandError as error:
                    raise click.UsageError(str(error)) from None
                finally:
                    click.echo(f"{working.done} done, {working.failed} failed", err=True)


@contextlib.asynccontextmanager
async def _progress(working: Work) -> AsyncIterator[None]:
    """Show how the work goes on, if standard error is a terminal."""
    with progress_line(beside_output=True) as say:
        showing = asyncio.create_task(_show(working, say))
        try:
            yield
        finally:
            showing.cancel()


async def _show(working: Work, say: Callable[[str], None]) -> None:
    clock = asyncio.get_running_loop().time
    samples: deque[tuple[float, int]] = deque(maxlen=RATE_SAMPLES)
    while True:
        samples.append((clock(), working.done + working.failed))
        (begin, before), (end, after) = samples[0], samples[-1]
        per_second = (after - before) / (end - begin) if end > begin else 0.0
        say(
            f"{working.done} done, {working.failed} failed, {working.running} running,"
            f" {rate(per_second)} messages/s"
        )
        await asyncio.sleep(PROGRESS_SECONDS)
