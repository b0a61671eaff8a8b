"""The commands for operators: they list topics, groups and readers, and end some of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click
import msgspec

from ..config.keys import load_psk
from ..config.load import load_config
from ..config.model import ClientConfig
from ..errors import WsqueueError
from ..protocol.access import is_pattern
from ..protocol.v2 import MAX_ADDRESS_CHARACTERS, MAX_KEY_NAME_CHARACTERS, MAX_NUMBER
from ..report.text import age, amount, number
from ..tools.operator import Operator
from ..tools.terminal import json_line, one_line, printable
from .common import config_option, ended_by_signals, fail, run, text

json_option = click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each.")


@click.command()
@click.argument("pattern", default="*", type=text, metavar="[TOPIC]")
@json_option
@config_option
def topics(*, pattern: str, as_json: bool, config_file: str) -> None:
    """List the topics that have messages or subscribers.

    TOPIC is the name of one, or the beginning of names with * behind it. The columns are the number and the
    size of the messages that are kept, the offset of the next message, the number of subscriptions, and by
    how many messages each group and named reader is behind.

    The key must have no name, or the right `operator`.

    \b
    Examples:
      wsqueue topics
      wsqueue topics 'sensors/*'
      wsqueue topics --json | jq -r 'select(.messages > 1000) | .topic'
    """
    run(_topics(load_config(config_file, ClientConfig), _pattern(pattern), as_json=as_json))


async def _topics(settings: ClientConfig, pattern: str, *, as_json: bool) -> None:
    with ended_by_signals():
        async with _operator(settings) as operator:
            listing = await operator.topics(pattern)
    if as_json:
        for topic in listing.topics:
            click.echo(json_line(topic))
    else:
        _print_table(
            ("TOPIC", "MESSAGES", "SIZE", "NEXT", "SUBSCRIBERS", "BEHIND"),
            [
                (
                    one_line(topic.topic),
                    f"{topic.messages:,}",
                    amount(topic.bytes),
                    str(topic.next),
                    str(topic.subscribers),
                    ", ".join(f"{name.name} {name.lag:,}" for name in topic.names),
                )
                for topic in listing.topics
            ],
            left=(0, 5),
            nothing="no topics found",
        )
    _say(listing.problems)


@click.command()
@click.argument("pattern", default="*", type=text, metavar="[TOPIC]")
@click.option(
    "--forget",
    nargs=2,
    type=text,
    metavar="TOPIC NAME",
    help="Forget a group or named reader that nobody uses, instead of listing any.",
)
@json_option
@config_option
def groups(*, pattern: str, forget: tuple[str, str] | None, as_json: bool, config_file: str) -> None:
    """List the worker groups and named readers of topics.

    TOPIC is the name of one, or the beginning of names with * behind it. The columns are the number of
    members of a group or connections of a reader, of messages that are lent, and of messages that are kept
    and not done; the offset and the age of the first of these; and the number of messages that became dead
    letters. With --json, the age is the Unix time `oldest_time`.

    A group or reader that nobody uses is forgotten after 30 days, or at once with --forget. One of its name
    then begins anew.

    The key must have no name, or the right `operator`.

    \b
    Examples:
      wsqueue groups
      wsqueue groups orders --json | jq 'select(.members == 0 and .lag > 0)'
      wsqueue groups --forget orders billing
    """
    settings = load_config(config_file, ClientConfig)
    if forget is not None:
        run(_forget(settings, *forget))
    else:
        run(_groups(settings, _pattern(pattern), as_json=as_json))


async def _groups(settings: ClientConfig, pattern: str, *, as_json: bool) -> None:
    with ended_by_signals():
        async with _operator(settings) as operator:
            listing = await operator.topics(pattern, named=True)
    now = time.time()
    found = [(topic, entry) for topic in listing.topics for entry in topic.names]
    if as_json:
        for topic, entry in found:
            place = {"topic": topic.topic, "consumers": topic.consumers}
            click.echo(json_line(place | msgspec.structs.asdict(entry)))
    else:
        _print_table(
            ("TOPIC", "NAME", "KIND", "MEMBERS", "LENT", "BEHIND", "OLDEST", "AGE", "DEAD"),
            [
                (
                    one_line(topic.topic),
                    entry.name,
                    entry.kind,
                    f"{entry.members:,}",
                    f"{entry.lent:,}",
                    f"{entry.lag:,}",
                    str(entry.offset) if entry.lag else "-",
                    "-" if entry.oldest_time is None else age(max(0.0, now - entry.oldest_time)),
                    f"{entry.dead:,}" if entry.kind == "group" else "-",
                )
                for topic, entry in found
            ],
            left=(0, 1, 2),
            nothing="no groups or named readers found",
        )
    _say(listing.problems)


async def _forget(settings: ClientConfig, topic: str, name: str) -> None:
    with ended_by_signals():
        async with _operator(settings) as operator:
            await operator.forget(topic, name)
    click.echo(f"forgotten: {name} of {one_line(topic)}")


@click.command()
@click.argument("topic", type=text)
@click.option(
    "--before",
    type=click.IntRange(0, MAX_NUMBER),
    metavar="OFFSET",
    help="Drop messages before that offset only. Messages that were stored together with later ones stay.",
)
@click.option("--yes", is_flag=True, help="Don't ask.")
@config_option
def purge(*, topic: str, before: int | None, yes: bool, config_file: str) -> None:
    """Drop the messages of TOPIC that are kept, for good.

    Subscribers, groups and named readers that have not had them are told that messages are gone, as when
    they have become too old. Offsets go on, and no message is stored twice that was published before.

    It asks first, and needs --yes where nobody can be asked. The key must have no name, or the right
    `operator`.

    \b
    Examples:
      wsqueue purge sensors/attic
      wsqueue purge 'orders!billing!dead' --before 1200 --yes
    """
    settings = load_config(config_file, ClientConfig)
    if not yes:
        which = "all messages" if before is None else f"the messages before offset {before}"
        if not sys.stdin.isatty():
            raise click.UsageError(f"{which} of {topic!r} would go for good: expected --yes, or a terminal")
        click.confirm(f"Drop {which} of {one_line(topic)}, for good?", abort=True)
    run(_purge(settings, topic, before))


async def _purge(settings: ClientConfig, topic: str, before: int | None) -> None:
    with ended_by_signals():
        async with _operator(settings) as operator:
            count = await operator.purge(topic, before)
    click.echo(f"{number(count, 'message')} dropped")


@click.command()
@click.argument("address", type=text, required=False)
@click.option(
    "--key", type=text, metavar="NAME", help="All clients whose key has that name, tokens of it included."
)
@config_option
def disconnect(*, address: str | None, key: str | None, config_file: str) -> None:
    """End the connections of a client at all nodes.

    ADDRESS is its host, or host:port, as the journals of the nodes have it. Clients connect again by
    themselves: to keep one out, remove its key, or revoke its tokens.

    The key must have no name, or the right `operator`.

    \b
    Examples:
      wsqueue disconnect 192.0.2.7
      wsqueue disconnect 192.0.2.7:51234
      wsqueue disconnect --key billing
    """
    if (address is None) == (key is None):
        raise click.UsageError("expected either ADDRESS or --key")
    for noun, given, most in (
        ("ADDRESS", address, MAX_ADDRESS_CHARACTERS),
        ("--key", key, MAX_KEY_NAME_CHARACTERS),
    ):
        if given is not None and not 1 <= len(given) <= most:
            raise click.UsageError(f"{noun} has {len(given)} characters: expected 1 to {most}")
    run(_disconnect(load_config(config_file, ClientConfig), address, key))


async def _disconnect(settings: ClientConfig, address: str | None, key: str | None) -> None:
    if address is not None and address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    with ended_by_signals():
        async with _operator(settings) as operator:
            count, problems = await operator.disconnect(address=address, key=key)
    click.echo(f"{number(count, 'connection')} ended")
    _say(problems)


def _operator(settings: ClientConfig) -> Operator:
    return Operator(settings, load_psk(settings))


def _pattern(text: str) -> str:
    """Return a pattern of topics.

    Raises:
        click.UsageError: It is none.
    """
    if not is_pattern(text):
        raise click.UsageError(f"{text!r} is no TOPIC: expected a topic, or its beginning and one *")
    return text


def _print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int], nothing: str
) -> None:
    """Print a table; numbers are at the right of their columns, and no line is cut.

    Args:
        head: Titles of the columns.
        rows: A text for each column.
        left: Columns whose texts are at the left.
        nothing: A note for stderr if there are no rows.
    """
    if not rows:
        click.echo(nothing, err=True)
        return
    widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _say(problems: Sequence[WsqueueError]) -> None:
    """Say why nodes could not be asked, and end with a code that says so."""
    for problem in problems:
        click.echo(f"Error: {printable(str(problem))}", err=True)
    if problems:
        fail()
