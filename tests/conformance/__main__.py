"""Check another implementation of protocol v2: `python -m tests.conformance --help`."""

from __future__ import annotations

import asyncio
import functools
import linecache
import os
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import click

from wsqueue.config.addresses import parse_address

from ..support.raw_v2_peer import V2Server
from .checks import CHECKS, Check, Subject
from .group_checks import GROUP_CHECKS
from .operator_checks import OPERATOR_CHECKS
from .prefix_checks import PREFIX_CHECKS
from .program import Program
from .reader_checks import READER_CHECKS

CHECK_SECONDS = 15.0
"""Time for one check."""

MORE_CHECKS = {
    "groups": GROUP_CHECKS,
    "readers": READER_CHECKS,
    "prefixes": PREFIX_CHECKS,
    "operators": OPERATOR_CHECKS,
}
"""Checks of the parts that an implementation may lack."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Check an implementation of wsqueue's protocol v2 against docs/protocol.md.

    The vectors of packets and proofs are in tests/data/v2.json. Give the implementation a pre-shared key and
    logs of its own for this.
    """


class _Address(click.ParamType[str, str]):
    """The address of a node: `host:port`, `[ipv6]:port` or `unix:/path`."""

    name = "address"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            address = parse_address(value)
        except ValueError as error:
            self.fail(f"{value!r} is not an address: {error}", param, ctx)
        if address.tls:
            self.fail(f"{value!r}: the checks do without TLS", param, ctx)
        return value


class _Key(click.Path):
    """A file with the pre-shared key, which it reads."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        file = super().convert(value, param, ctx)
        try:
            return Path(os.fsdecode(file)).read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            self.fail(f"{value!r} is not UTF-8", param, ctx)


key_file = click.option(
    "--psk-file",
    "key",
    required=True,
    type=_Key(exists=True, dir_okay=False),
    help="File with the pre-shared key.",
)
only = click.option("--only", default="", help="Run the checks whose names contain this.")
groups = click.option("--groups", is_flag=True, help="Check worker groups too, which it may lack.")
readers = click.option("--readers", is_flag=True, help="Check named readers too, which it may lack.")
prefixes = click.option("--prefixes", is_flag=True, help="Check prefixes too, which it may lack.")
operators = click.option("--operators", is_flag=True, help="Check requests of operators too, as it may lack.")


@main.command()
@click.argument("address", type=_Address())
@key_file
@only
@groups
@readers
@prefixes
@operators
def consumer(address: str, key: str, only: str, **wanted: bool) -> None:
    """Check the consumer at ADDRESS (host:port): the checks are its producers and subscribers.

    --operators needs a consumer with groups and named readers.
    """

    async def subject(_stack: AsyncExitStack) -> Subject:
        return Subject(key, address)

    sys.exit(asyncio.run(run("consumer", subject, only, wanted)))


@main.command()
@click.argument("address", type=_Address())
@click.option("--listen", required=True, type=int, help="Port of loopback at which its only consumer is.")
@key_file
@only
@operators
def producer(address: str, listen: int, key: str, only: str, **wanted: bool) -> None:
    """Check the producer at ADDRESS (host:port): the checks are its publishers and its only consumer."""

    async def subject(stack: AsyncExitStack) -> Subject:
        return Subject(key, address, consumer=await stack.enter_async_context(V2Server(listen)))

    sys.exit(asyncio.run(run("producer", subject, only, wanted)))


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
@groups
@readers
@prefixes
def client(
    command: str, listen_producer: int, listen_consumer: int, key: str, only: str, **wanted: bool
) -> None:
    """Check the client that COMMAND starts: the checks are its only producer and its only consumer.

    COMMAND is started for each check; it knows the addresses and the key, as from its configuration. It takes
    these lines on its standard input:

    \b
    publish TOPIC DATA      publish one text, as a batch of its own, and go on; DATA ends with the line
    subscribe TOPIC START   subscribe to a topic; START is earliest or latest
    work TOPIC GROUP        with --groups: join a worker group, and settle each message as its data says:
                            done, again or reject
    read TOPIC READER       with --readers: subscribe as a named reader, from the earliest message on if it is
                            new, and say of each message with the data "done" that it is done
    follow PREFIX START     with --prefixes: subscribe to all topics that begin with PREFIX

    and writes these lines, at once:

    \b
    confirmed DATA          the batch is confirmed
    refused DATA CODE       the batch is refused
    message OFFSET DATA     a message of the subscription, the reader or the prefix
    gap MISSED              messages are missing; MISSED is their number, or "unknown"
    lent OFFSET TIMES DATA  a message of the group; TIMES says how often it was lent
    settled DATA            the outcome of a message of the group is confirmed
    kept DATA               it is confirmed that a message of the reader is done
    """

    async def subject(stack: AsyncExitStack) -> Subject:
        servers = [
            await stack.enter_async_context(V2Server(listen)) for listen in (listen_producer, listen_consumer)
        ]
        program = functools.partial(Program.running, shlex.split(command))
        return Subject(key, producer=servers[0], consumer=servers[1], program=program)

    sys.exit(asyncio.run(run("client", subject, only, wanted)))


async def run(
    role: str,
    subject: Callable[[AsyncExitStack], Awaitable[Subject]],
    only: str,
    wanted: Mapping[str, bool],
) -> int:
    """Run the checks of a role, and print a line on each; return 1 if any fails.

    Args:
        role: `consumer`, `producer` or `client`.
        subject: Makes the implementation under test.
        only: Part of the names of the checks.
        wanted: Whether to check the parts that an implementation may lack, by the names of `MORE_CHECKS`.
    """
    failed = 0
    checks = [*CHECKS[role]]
    for part, is_wanted in wanted.items():
        checks += MORE_CHECKS[part][role] if is_wanted else []
    chosen = [check for check in checks if only in check.__name__]
    if not chosen:
        raise click.BadParameter(f"no check of a {role} has {only!r} in its name", param_hint="--only")
    for check in chosen:
        problem = await problem_of(check, subject)
        failed += bool(problem)
        title = (check.__doc__ or "").strip().splitlines()[0]
        print(f"{'FAIL' if problem else 'ok  '}  {check.__name__}: {title}", flush=True)
        if problem:
            print(f"      {problem}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} checks passed")
    return 1 if failed else 0


async def problem_of(check: Check, subject: Callable[[AsyncExitStack], Awaitable[Subject]]) -> str:
    """Run one check; return the fault that it found, "" if there is none."""
    try:
        async with asyncio.timeout(CHECK_SECONDS), AsyncExitStack() as stack:
            await check(await subject(stack))
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:.0f} seconds"
    except asyncio.IncompleteReadError:
        return "the connection ended"
    except ConnectionRefusedError as error:
        return f"nothing listens: {error.strerror}"
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
