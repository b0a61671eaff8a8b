"""The commands that publish messages, and print messages of topics."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal, cast

import click
import msgspec
from click.core import ParameterSource

from ..client import client
from ..client.reader import ReaderMessage, check_reader
from ..client.subscription import Subscription
from ..client.values import Gap, Message, Position, Start, belongs_to_one_topic
from ..config.load import load_config
from ..config.model import ClientConfig
from ..errors import ConnectError, InvalidMessage, WsqueueError
from ..protocol.starts import parse_start
from ..tools import demo as demo_tool
from ..tools.terminal import (
    all_bytes,
    for_each_line,
    json_line,
    text_of,
    to_stdout,
    until_first_ends,
    until_reader_gone,
)
from .common import Amount, config_option, ended_by_signals, fail, is_utf8, run


def _start(value: str) -> Start:
    """Return the start of a subscription, as it is written on the command line.

    Raises:
        click.BadParameter: It is none.
    """
    try:
        start = parse_start(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if isinstance(start, tuple):
        return Position(*start)
    try:
        return start.astimezone() if isinstance(start, datetime) else cast("Start", start)
    except (ValueError, OverflowError):
        message = f"{value!r} is not a start: the time is too near the years 1 or 9999"
        raise click.BadParameter(message) from None


def _header(value: str) -> tuple[str, str]:
    """Return the name and the value of a header, as it is written on the command line.

    Raises:
        click.BadParameter: It is none.
    """
    name, equals, text = value.partition("=")
    if not equals:
        raise click.BadParameter(f"{value!r} is not a header: expected NAME=VALUE")
    return name, text


class _Source(msgspec.Struct, frozen=True):
    """Hold where the messages come from that are published.

    Attributes:
        data: A message, or `-` for standard input.
        file: A file that is one message of bytes.
        as_bytes: True if standard input is one message of bytes.
    """

    data: str
    file: Path | None
    as_bytes: bool

    @property
    def is_lines(self) -> bool:
        """Return True if each line of standard input is a message."""
        return self.data == "-" and self.file is None and not self.as_bytes

    async def message(self, max_bytes: int) -> str | bytes:
        """Return the one message.

        Raises:
            InvalidMessage: It is too long.
            WsqueueError: It cannot be read.
        """
        if self.as_bytes:
            return await all_bytes(max_bytes)
        if self.file is None:
            return self.data
        try:
            with self.file.open("rb") as stream:
                data = stream.read(max_bytes + 1)
        except OSError as error:
            raise WsqueueError(f"{self.file}: {error.strerror}") from None
        if len(data) > max_bytes:
            raise InvalidMessage(f"{self.file} has more than max_message_bytes ({max_bytes})")
        return data


@click.command()
@click.argument("topic")
@config_option
def demo(topic: str, config_file: str) -> None:
    """Publish lines on TOPIC, and print its messages.

    On a terminal it publishes each line that you type. Without one it publishes standard input, and ends
    when all lines have come back (exit code 0), or when none has come back for five seconds (exit code 1).

    \b
    Examples:
      wsqueue demo news
      echo hello | wsqueue demo news
    """
    run(run_demo(load_config(config_file, ClientConfig), topic))


@click.command()
@click.argument("topic")
@click.argument("data", default="-")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Publish this file as one message of bytes.",
)
@click.option(
    "--bytes", "as_bytes", is_flag=True, help="Publish all of standard input as one message of bytes."
)
@click.option(
    "--header",
    "headers",
    type=_header,
    multiple=True,
    metavar="NAME=VALUE",
    help="Give each message a header; may be repeated.",
)
@click.option(
    "--confirm/--no-confirm",
    default=True,
    show_default=True,
    help="Wait until all messages are stored, or only until a producer has read them.",
)
@config_option
def publish(
    *,
    topic: str,
    data: str,
    file: Path | None,
    as_bytes: bool,
    headers: tuple[tuple[str, str], ...],
    confirm: bool,
    config_file: str,
) -> None:
    """Publish DATA on TOPIC, or each line of standard input.

    Without DATA, or with -, each line of standard input is a message. These are texts; --file and --bytes
    publish bytes, and subscribers get them as bytes. The command ends when the consumer
    of TOPIC has stored all messages. If it ends earlier, because of a line that cannot be published, an
    error or a signal, it first waits for the lines that it has read, and says how many are stored. A
    producer that only speaks the classic protocol confirms nothing, so messages may be lost when a
    connection to it breaks; their number is printed, and the exit code is 1.

    \b
    Examples:
      wsqueue publish news 'hello there'
      tail -F app.log | wsqueue publish logs
      wsqueue publish --file cat.png --header content-type=image/png pictures
      tar -c docs | wsqueue publish --bytes backups
    """
    if (data != "-") + (file is not None) + as_bytes > 1:
        raise click.UsageError("DATA, --file and --bytes each say what to publish: expected one of them.")
    if not all(map(is_utf8, (topic, data, *itertools.chain(*headers)))):
        raise InvalidMessage("an argument is not UTF-8: --file and --bytes publish bytes of any kind")
    given = _headers(headers)
    settings = load_config(config_file, ClientConfig)
    run(_publish(settings, topic, _Source(data, file, as_bytes), given, confirm=confirm))


def _name_work(_context: click.Context, _parameter: click.Parameter, group: str | None) -> None:
    """Name the command that works on messages of a group to whoever looks for it here.

    Raises:
        click.UsageError: There is a group.
    """
    if group is not None:
        raise click.UsageError(
            "a group lends messages to those who work on them:"
            f" see `wsqueue work TOPIC --group {group} -- COMMAND`"
        )


@click.command()
@click.argument("topics", nargs=-1, metavar="TOPIC...")
@click.option(
    "--prefix",
    metavar="PREFIX",
    help="Instead of TOPIC: all topics that begin with PREFIX, those too that begin later. An empty PREFIX"
    " stands for all topics.",
)
@click.option(
    "--from",
    "start",
    type=_start,
    default="latest",
    show_default=True,
    metavar="START",
    help="latest, earliest, an offset, LOG:OFFSET (printed by --json), -N for the last N messages of each"
    " topic, or a local time such as 2026-11-25T12:00.",
)
@click.option(
    "--reader",
    metavar="NAME",
    help="Go on where the reader of that name has come, which the consumer keeps. A reader that is new begins"
    " at START, by default the earliest message.",
)
@click.option("--group", hidden=True, expose_value=False, callback=_name_work)
@click.option(
    "--follow/--no-follow",
    default=True,
    show_default=True,
    help="Wait for new messages, or end after those that are already stored.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print each message and each gap as one line of JSON.",
)
@click.option(
    "--raw", "as_raw", is_flag=True, help="Print the data of each message as it is, and nothing between."
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option(
    "--timeout",
    type=Amount(min=0, min_open=True),
    metavar="SECONDS",
    help="End after that time. The exit code is 4 if no consumer has answered, and with --count or"
    " --no-follow 1 if messages are missing.",
)
@config_option
def subscribe(
    *,
    topics: tuple[str, ...],
    prefix: str | None,
    start: Start,
    reader: str | None,
    follow: bool,
    as_json: bool,
    as_raw: bool,
    count: int | None,
    timeout: float | None,
    config_file: str,
) -> None:
    """Print the messages of each TOPIC, one a line.

    With several topics, or a prefix, each line begins with the topic. Bytes that are no UTF-8 are shown with
    escapes; --raw prints them as they are, and --json has them in data_base64. After a lost connection the
    command resumes where it was. If messages in between are no longer stored, it says so on standard error.
    With --reader, a message is done when it is printed, and does not come to that reader again.

    \b
    Examples:
      wsqueue subscribe news
      wsqueue subscribe --from earliest --no-follow news
      wsqueue subscribe --from -20 --no-follow news
      wsqueue subscribe --prefix sensors/
      wsqueue subscribe --reader mail --no-follow orders
      wsqueue subscribe --json --count 10 --timeout 60 news sport
      wsqueue subscribe --raw --count 1 pictures > cat.png
    """
    if as_json and as_raw:
        raise click.UsageError("--json and --raw are two forms of output: expected one of them.")
    if prefix is None and not topics:
        raise click.UsageError("Missing argument 'TOPIC...', or --prefix.")
    if prefix is not None and (topics or reader is not None):
        raise click.UsageError("--prefix stands for topics: expected no TOPIC and no --reader with it.")
    if belongs_to_one_topic(start) and (prefix is not None or len(set(topics)) > 1):
        raise click.UsageError("an offset belongs to one topic, but several topics are given.")
    if reader is not None:
        given = click.get_current_context().get_parameter_source("start")
        start = "earliest" if given is ParameterSource.DEFAULT else start
        if len(topics) > 1:
            raise click.UsageError("a reader has one topic, but several topics are given.")
        try:
            check_reader(reader, start)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    settings = load_config(config_file, ClientConfig)
    form = _json_line if as_json else _raw if as_raw else _line if len(topics) == 1 else _line_with_topic
    subscription = partial(
        _subscription, topics=topics, prefix=prefix, start=start, reader=reader, follow=follow
    )
    run(_subscribe(settings, subscription, form=form, count=count, follow=follow, seconds=timeout))


async def run_demo(settings: ClientConfig, topic: str) -> None:
    """Run the demo on a topic until it ends; exit with 1 if messages did not come back."""
    async with client.connect(settings) as connected:
        try:
            missing = await demo_tool.demo(connected, topic, settings.limits.max_message_bytes)
        finally:
            # Whatever ends it, all lines that were read are published.
            await connected.close()
    if missing:
        click.echo(f"{missing} messages did not come back.", err=True)
        fail()


async def _publish(
    settings: ClientConfig, topic: str, source: _Source, headers: dict[str, str], *, confirm: bool
) -> None:
    max_bytes = settings.limits.max_message_bytes
    connected = client.connect(settings)
    # A signal ends the reading; another one ends the waiting for confirmations too.
    with ended_by_signals():
        async with connected:
            if source.is_lines:
                await _publish_lines(connected, topic, max_bytes, headers, confirm=confirm)
            else:
                connected.publish_nowait(topic, await source.message(max_bytes), headers=headers)
                await connected.close(confirm=confirm)
    if connected.lost_in_flight:
        click.echo(f"Up to {connected.lost_in_flight} messages were lost.", err=True)
        fail()


async def _publish_lines(
    connected: client.Client, topic: str, max_bytes: int, headers: dict[str, str], *, confirm: bool
) -> None:
    """Publish standard input; whatever ends it, wait for the lines before, and say how many are stored."""
    count = 0

    async def publish_line(line: str) -> None:
        nonlocal count
        await connected.drain()
        connected.publish_nowait(topic, line, headers=headers)
        count += 1

    problems = [
        problem
        for step in (for_each_line(max_bytes, publish_line), connected.close(confirm=confirm))
        if (problem := await _problem_of(step)) is not None
    ]
    if not problems:
        return
    first, *others = problems
    lines = f"the {count} lines before it" if isinstance(first, InvalidMessage) else f"{count} lines"
    done = "; ".join([f"{connected.confirmed} of {lines} are confirmed", *filter(None, map(str, others))])
    if isinstance(first, asyncio.CancelledError):
        click.echo(f"Interrupted: {done}.", err=True)
    first.add_note(done)
    raise first


async def _problem_of(step: Awaitable[None]) -> WsqueueError | asyncio.CancelledError | None:
    """Return the error of a step, or that a signal has ended it, so that the next step can be taken."""
    try:
        await step
    except WsqueueError as error:
        return error
    except asyncio.CancelledError as error:
        cast("asyncio.Task[None]", asyncio.current_task()).uncancel()
        return error
    return None


async def _subscribe(
    settings: ClientConfig,
    subscription: Callable[[client.Client], Subscription[Message | Gap]],
    *,
    form: Callable[[Message | Gap], bytes | str],
    count: int | None,
    follow: bool,
    seconds: float | None,
) -> None:
    left, subscribed = count, False

    async def show(messages: Subscription[Message | Gap]) -> None:
        nonlocal left
        async for message in messages:
            if isinstance(message, Gap) and form is not _json_line:
                click.echo(demo_tool.gap_text(message), err=True)
                continue
            shown = form(message)
            # Without `color`, click would remove escape sequences from the message.
            click.echo(shown, nl=isinstance(shown, str), color=True)
            if isinstance(message, ReaderMessage):
                message.done_nowait()
            if left is not None and not isinstance(message, Gap):
                left -= 1
                if not left:
                    return

    try:
        async with (
            asyncio.timeout(seconds),
            client.connect(settings) as connected,
            subscription(connected) as messages,
        ):
            subscribed = True
            await until_first_ends(show(messages), until_reader_gone())
    except TimeoutError:
        if not left and not subscribed:
            raise ConnectError(f"no consumer has answered within {seconds:g} seconds") from None
        if left or (count is None and not follow):
            missing = f"{left} of {count} messages did not come" if left else "Not all stored messages came"
            click.echo(f"{missing} within {seconds:g} seconds.", err=True)
            fail()


def _subscription(
    connected: client.Client,
    *,
    topics: tuple[str, ...],
    prefix: str | None,
    start: Start,
    reader: str | None,
    follow: bool,
) -> Subscription[Message | Gap]:
    if prefix is not None:
        return connected.subscribe(prefix=prefix, start=start, follow=follow, on_gap="yield")
    if reader is None:
        return connected.subscribe(*topics, start=start, follow=follow, on_gap="yield")
    begin = cast("Literal['earliest', 'latest']", start)
    messages = connected.subscribe(topics[0], reader=reader, start=begin, follow=follow, on_gap="yield")
    # Items of a subscription only come out of it.
    return cast("Subscription[Message | Gap]", messages)


def _json_line(message: Message | Gap) -> str:
    if isinstance(message, Gap):
        return json_line(msgspec.structs.asdict(message))
    fields = {name: getattr(message, name) for name in Message.__struct_fields__}
    if isinstance(message.data, bytes):
        fields = {"topic": message.topic, "data_base64": base64.b64encode(message.data).decode(), **fields}
        del fields["data"]
    if not message.log:
        del fields["log"], fields["offset"]  # a classic consumer has no log
    fields["headers"] = dict(message.headers)
    if not message.headers:
        del fields["headers"]
    return json_line(fields)


def _headers(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return the headers of the command line.

    Raises:
        click.UsageError: A name is there twice.
    """
    headers = dict(pairs)
    if len(headers) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in headers if names.count(name) > 1)
        raise click.UsageError(f"the header {twice!r} is there twice: a message has each once.")
    return headers


def _raw(message: Message | Gap) -> bytes:
    assert isinstance(message, Message)
    return message.data.encode() if isinstance(message.data, str) else message.data


def _line(message: Message | Gap) -> str:
    assert isinstance(message, Message)
    return to_stdout(text_of(message.data))


def _line_with_topic(message: Message | Gap) -> str:
    assert isinstance(message, Message)
    return to_stdout(f"{message.topic}: {text_of(message.data)}")
