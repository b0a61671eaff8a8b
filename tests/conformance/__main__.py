"""Check another implementation of protocol v2: `python -m tests.conformance --help`."""

from __future__ import annotations

import asyncio
import functools
import linecache
import shlex
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import click

from ..support.raw_v2_peer import V2Server
from .checks import CHECKS, Check, Subject
from .program import Program

CHECK_SECONDS = 15.0
"""Time for one check."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Check an implementation of wsqueue's protocol v2 against docs/protocol.md.

    The vectors of packets and proofs are in tests/data/v2.json. Give the implementation a pre-shared key and
    logs of its own for this.
    """


key_file = click.option(
    "--psk-file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the pre-shared key.",
)
only = click.option("--only", default="", help="Run the checks whose names contain this.")


@main.command()
@click.argument("address")
@key_file
@only
def consumer(address: str, psk_file: Path, only: str) -> None:
    """Check the consumer at ADDRESS (host:port): the checks are its producers and subscribers."""
    key = psk_file.read_text().strip()

    async def subject(_stack: AsyncExitStack) -> Subject:
        return Subject(key, address)

    sys.exit(asyncio.run(run("consumer", subject, only)))


@main.command()
@click.argument("address")
@click.option("--listen", required=True, type=int, help="Port of loopback at which its only consumer is.")
@key_file
@only
def producer(address: str, listen: int, psk_file: Path, only: str) -> None:
    """Check the producer at ADDRESS (host:port): the checks are its publishers and its only consumer."""
    key = psk_file.read_text().strip()

    async def subject(stack: AsyncExitStack) -> Subject:
        return Subject(key, address, consumer=await stack.enter_async_context(V2Server(listen)))

    sys.exit(asyncio.run(run("producer", subject, only)))


@main.command()
@click.argument("command")
@click.option(
    "--listen-producer", required=True, type=int, help="Port of loopback at which its only producer is."
)
@click.option(
    "--listen-consumer", required=True, type=int, help="Port of loopback at which its only consumer is."
)
@key_file
@only
def client(command: str, listen_producer: int, listen_consumer: int, psk_file: Path, only: str) -> None:
    r"""Check the client that COMMAND starts: the checks are its only producer and its only consumer.

    COMMAND is started for each check. It takes these lines on its standard input:

    \b
    publish TOPIC DATA      publish one text, as a batch of its own, and go on
    subscribe TOPIC START   subscribe to a topic; START is earliest or latest

    and writes these lines, at once:

    \b
    confirmed DATA          the batch is confirmed
    refused DATA CODE       the batch is refused
    message OFFSET DATA     a message of the subscription
    gap MISSED              messages are missing; MISSED is their number, or "unknown"
    """
    key = psk_file.read_text().strip()

    async def subject(stack: AsyncExitStack) -> Subject:
        servers = [
            await stack.enter_async_context(V2Server(listen)) for listen in (listen_producer, listen_consumer)
        ]
        program = functools.partial(Program.running, shlex.split(command))
        return Subject(key, producer=servers[0], consumer=servers[1], program=program)

    sys.exit(asyncio.run(run("client", subject, only)))


async def run(role: str, subject: Callable[[AsyncExitStack], Awaitable[Subject]], only: str) -> int:
    """Run the checks of a role, and print a line on each; return 1 if any fails."""
    failed = 0
    chosen = [check for check in CHECKS[role] if only in check.__name__]
    for check in chosen:
        problem = await problem_of(check, subject)
        failed += bool(problem)
        title = (check.__doc__ or "").strip().splitlines()[0]
        print(f"{'FAIL' if problem else 'ok  '}  {check.__name__}: {title}", flush=True)
        if problem:
            print(f"      {problem}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} checks passed")
    return 1 if failed or not chosen else 0


async def problem_of(check: Check, subject: Callable[[AsyncExitStack], Awaitable[Subject]]) -> str:
    """Run one check; return the fault that it found, "" if there is none."""
    try:
        async with asyncio.timeout(CHECK_SECONDS), AsyncExitStack() as stack:
            await check(await subject(stack))
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:.0f} seconds"
    except asyncio.IncompleteReadError:
        return "the connection ended"
    except (AssertionError, OSError, LookupError, ValueError) as error:
        line = error.__traceback__
        while line is not None and line.tb_next is not None:
            line = line.tb_next
        assert line is not None
        file, number = line.tb_frame.f_code.co_filename, line.tb_lineno
        source = linecache.getline(file, number).strip()
        return f"{type(error).__name__} at {Path(file).name}:{number}: {source} {error}".rstrip()
    return ""


if __name__ == "__main__":
    main()
