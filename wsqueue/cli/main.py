"""The command line: parsing, output, exit codes.

====  ==================================================================================
code  meaning
====  ==================================================================================
0     done
1     a check failed, messages did not come (back) in time, a node cannot listen or write, or just ended
2     the command line, or a line to publish, is wrong
3     a configuration file, or the pre-shared key that it points to, is wrong
4     no node answers
5     the nodes have another pre-shared key
130   ended by Ctrl-C
====  ==================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import msgspec

from .. import journal
from ..client import client
from ..client.values import Gap, Message, Position, Start
from ..config import model
from ..config.check import config_warnings
from ..config.keys import load_psk
from ..config.load import load_any_config, load_config
from ..config.model import ClientConfig, Limits
from ..errors import AuthenticationError, ConfigError, ConnectError, InvalidMessage, WsqueueError
from ..net.certificates import TlsContexts
from ..nodes import service
from ..nodes.consumer import Consumer
from ..nodes.producer import Producer
from ..tools.demo import demo as run_demo
from ..tools.demo import gap_text
from ..tools.local import LocalCluster
from ..tools.terminal import (
    discard_output,
    for_each_line,
    json_line,
    prepare_standard_files,
    printable,
    to_stdout,
)
from ..tools.verify import Check, write_junit
from ..tools.verify import verify as run_checks
from ..version import __version__
from . import watch
from .watch import (
    COMPLETE_VARIABLE,
    complete_file,
    config_option,
    ended_by_signals,
    progress_line,
    run,
)

if TYPE_CHECKING:
    from ..tools.bench import Load
    from ..tools.bench.bench import Protocol

NODE_COLORS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green")

_EXIT_CODES: dict[type[WsqueueError], int] = {
    AuthenticationError: 5,
    ConnectError: 4,
    ConfigError: 3,
    InvalidMessage: 2,
}


class _Commands(click.Group):
    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as click has it
        """Complete what the scripts of `wsqueue completion` ask for, however this was started."""
        kwargs["complete_var"] = COMPLETE_VARIABLE
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click has it
        """Turn our errors into one sentence on standard error and an exit code."""
        try:
            return super().invoke(ctx)
        except WsqueueError as error:
            code = next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 1)
            click.echo(f"Error: {printable(str(error))}", err=True)
            raise click.exceptions.Exit(code) from None
        except OSError as error:
            # A pipe that its reader has closed is click's affair, and no error.
            if error.errno == errno.EPIPE:
                raise
            click.echo(f"Error: {printable(str(error))}", err=True)
            discard_output()
            raise click.exceptions.Exit(1) from None
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None


class _Start(click.ParamType[Any, Any]):
    """Take where a subscription begins."""

    name = "start"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as click has it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Start:
        if value in ("latest", "earliest"):
            return cast("Start", value)
        if value.isdecimal():
            return int(value)
        if match := re.fullmatch(r"([0-9A-Za-z_-]{1,64}):([0-9]{1,16})", value):
            return Position(match[1], int(match[2]))
        try:
            return datetime.fromisoformat(value).astimezone()
        except ValueError:
            self.fail(
                f"{value!r} is no start: expected latest, earliest, an offset, LOG:OFFSET, or a time as"
                " 2026-11-25T12:00",
                param,
                ctx,
            )


_START = _Start()


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, "-V", "--version", message="wsqueue %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Log connections too; not used by the nodes.")
def main(verbose: bool) -> None:
    """A topic queue over WebSockets.

    Clients publish through any producer; the producer forwards a message to the consumer that the
    topic hashes to; the consumer fans it out to the topic's subscribers.

    \b
    A first try, all on this machine:
      wsqueue local --demo news

    \b
    Exit codes: 0 done, 1 a check failed or messages did not come, 2 wrong command line
    or line to publish, 3 wrong configuration, 4 no node answers, 5 another pre-shared key, 130 Ctrl-C.
    """
    prepare_standard_files()
    if os.environ.get("NO_COLOR"):
        click.get_current_context().color = False
    journal.configure("info" if verbose else "warning")


@main.command()
@click.argument("file", shell_complete=complete_file)
def consumer(file: str) -> None:
    """Run a consumer with the configuration FILE.

    It serves /producer and /subscribe/TOPIC. SIGTERM drains, SIGHUP reads FILE again, SIGUSR1 logs
    the counters.

    \b
    Example:
      wsqueue consumer /etc/wsqueue/consumer-10001.toml
    """
    _run_node(file, Consumer)


@main.command()
@click.argument("file", shell_complete=complete_file)
def producer(file: str) -> None:
    """Run a producer with the configuration FILE.

    It serves /produce, and keeps a link to every consumer. SIGTERM drains, SIGHUP reads FILE again,
    SIGUSR1 logs the counters.

    \b
    Example:
      wsqueue producer /etc/wsqueue/producer-10002.toml
    """
    _run_node(file, Producer)


@main.command("check-config")
@click.argument("file", shell_complete=complete_file)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object: role, warnings and the problem."
)
def check_config(file: str, *, as_json: bool) -> None:
    """Check the configuration FILE, its certificates, and the key if it has a psk_file; exit with 3 if wrong.

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
        raise click.exceptions.Exit(3) from None
    role = model.role_of(type(checked))
    if as_json:
        click.echo(json_line({"file": file, "role": role, "warnings": warnings, "problem": None, "at": None}))
        return
    for sentence in warnings:
        click.echo(f"Warning: {printable(sentence)}", err=True)
    click.echo(f"{printable(file)}: a good configuration of role {role}")


@main.command()
@click.argument("topic")
@config_option
def demo(topic: str, config_file: str) -> None:
    """Publish each line that you type on TOPIC, and print what comes on it.

    Without a terminal it publishes what it reads, prints what comes back, and ends when all of it
    has (exit code 0) or when nothing more comes for five seconds (1).

    \b
    Examples:
      wsqueue demo news
      echo hello | wsqueue demo news
    """
    run(_demo(load_config(config_file, ClientConfig), topic))


@main.command()
@click.argument("topic")
@click.argument("data", default="-")
@click.option(
    "--confirm/--no-confirm",
    default=True,
    show_default=True,
    help="Wait until all is stored, or only until a producer has read it.",
)
@config_option
def publish(topic: str, data: str, confirm: bool, config_file: str) -> None:
    """Publish DATA on TOPIC; without DATA, or with -, each line of standard input.

    It ends when the consumer of TOPIC has stored all of it. A producer that only speaks the classic
    protocol confirms nothing: a connection to it that breaks may take messages with it, their number
    is said, and the exit code is 1.

    \b
    Examples:
      wsqueue publish news 'hello there'
      tail -F app.log | wsqueue publish logs
    """
    run(_publish(load_config(config_file, ClientConfig), topic, data, confirm=confirm))


@main.command()
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option(
    "--from",
    "start",
    type=_START,
    default="latest",
    show_default=True,
    metavar="START",
    help="latest, earliest, an offset, LOG:OFFSET as --json prints them, or a time as 2026-11-25T12:00.",
)
@click.option(
    "--follow/--no-follow",
    default=True,
    show_default=True,
    help="Go on, or end with what was published before.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help='Print {"topic": ..., "data": ..., ...}, a line each, and gaps too.',
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End after that time; with --count, the exit code is 1 when fewer than N came.",
)
@config_option
def subscribe(
    *,
    topics: tuple[str, ...],
    start: Start,
    follow: bool,
    as_json: bool,
    count: int | None,
    timeout: float | None,
    config_file: str,
) -> None:
    """Print the messages of each TOPIC as they come, a line each; with several, after their topic.

    After a lost connection it goes on where it was. Messages that are gone by then are said on standard
    error.

    \b
    Examples:
      wsqueue subscribe news
      wsqueue subscribe --from earliest --no-follow news
      wsqueue subscribe --json --count 10 --timeout 60 news sport
    """
    if isinstance(start, int | Position) and len(set(topics)) > 1:
        raise click.UsageError("an offset is of one topic, and there are several.")
    settings = load_config(config_file, ClientConfig)
    run(_subscribe(settings, topics, start, follow=follow, as_json=as_json, count=count, seconds=timeout))


@main.command()
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write a JUnit XML report.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all checks.")
@config_option
def verify(junit: Path | None, *, as_json: bool, config_file: str) -> None:
    """Run the end-to-end tests against a cluster; exit with 1 if any fails.

    Every node answers; a random message comes back unmodified through every producer and every
    consumer; every endpoint refuses a wrong key.

    \b
    Examples:
      wsqueue verify --junit report.xml
      wsqueue verify --json | jq -r '.checks[] | select(.problem != "") | .name'
    """
    run(_verify(load_config(config_file, ClientConfig), junit, as_json=as_json))


@main.command()
@click.option("--consumers", type=click.IntRange(1, 100), default=2, show_default=True, metavar="N")
@click.option("--producers", type=click.IntRange(1, 100), default=2, show_default=True, metavar="N")
@click.option(
    "--port",
    type=click.IntRange(0, 65_336),
    default=10_001,
    show_default=True,
    help="Where the first consumer listens; the other nodes follow. 0 lets the system choose.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep the configurations and the key there, instead of in a temporary directory.",
)
@click.option(
    "--retention",
    type=click.Choice(["memory", "sqlite"]),
    default="memory",
    show_default=True,
    help="Where the consumers keep what was published.",
)
@click.option("--demo", "demo_topic", metavar="TOPIC", help="Verify the cluster, run the demo, and end.")
def local(
    *,
    consumers: int,
    producers: int,
    port: int,
    directory: Path | None,
    retention: model.RetentionMode,
    demo_topic: str | None,
) -> None:
    """Run a cluster on loopback until Ctrl-C, each node a process of its own.

    \b
    Examples:
      wsqueue local
      wsqueue local --directory cluster
      wsqueue local --consumers 4 --producers 3 --port 0
      wsqueue local --demo news
    """
    run(
        _local(
            consumers=consumers,
            producers=producers,
            port=port,
            directory=directory,
            retention=retention,
            demo_topic=demo_topic,
        )
    )


@main.command()
@click.option("--config", "config_file", metavar="FILE", help="Drive that cluster; only if it is given here.")
@click.option("--consumers", type=click.IntRange(1, 100), metavar="N", help="Nodes to start.  [default: 1]")
@click.option("--producers", type=click.IntRange(1, 100), metavar="N", help="Nodes to start.  [default: 1]")
@click.option(
    "--retention",
    type=click.Choice(["memory", "sqlite"]),
    help="Where the consumers to start keep what is published.  [default: memory]",
)
@click.option(
    "--protocol",
    type=click.Choice(["v2", "classic"]),
    default="v2",
    show_default=True,
    help="What clients speak: with v2, all messages must be confirmed.",
)
@click.option("--publishers", type=click.IntRange(min=1), default=1, show_default=True, metavar="N")
@click.option(
    "--subscribers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Subscribers of each topic.",
)
@click.option("--topics", type=click.IntRange(min=1), default=1, show_default=True, metavar="N")
@click.option(
    "--size",
    type=int,
    default=100,
    show_default=True,
    metavar="BYTES",
    help="Data of a message, at least 16.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, 10_000_000, min_open=True),
    metavar="N",
    help="Messages a second, and take their latency; without it, as many as go.",
)
@click.option(
    "--duration",
    type=click.FloatRange(0, 86_400, min_open=True),
    metavar="SECONDS",
    help="How long to measure.  [default: 5]",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Measure N messages instead.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Send at most N messages at once; without it, what is due and 64 KiB hold.",
)
@click.option(
    "--replay",
    is_flag=True,
    help="Publish --count messages first, 256 MiB without it, and measure how fast the logs are read.",
)
@click.option(
    "--warm-up",
    type=click.FloatRange(0, 86_400),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Publish so long before.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw throughput and latency: .svg, .png or .pdf (needs matplotlib).",
)
def bench(
    *,
    config_file: str | None,
    consumers: int | None,
    producers: int | None,
    retention: model.RetentionMode | None,
    protocol: Protocol,
    duration: float | None,
    as_json: bool,
    plot: Path | None,
    **numbers: Any,  # noqa: ANN401 - those of Load
) -> None:
    """Measure throughput, latency, and what the nodes use; exit with 1 if messages were lost or came twice.

    With v2, messages that are not confirmed in the end are an error, too.

    Without --config it starts a cluster on loopback. It floods a cluster: mind whose that is. With
    --rate, the latency counts from when a message was due, even if the cluster held up its sending.

    \b
    Examples:
      wsqueue bench
      wsqueue bench --rate 10000 --plot latency.svg
      wsqueue bench --topics 10 --subscribers 100 --count 100000 --json
      wsqueue bench --retention sqlite --replay
      wsqueue bench --config demo.toml --rate 1000 --duration 60
    """
    # Imported here, for it takes 3 MiB that no node needs.
    from ..tools.bench import Load  # noqa: PLC0415
    from ..tools.bench import bench as benchmark  # noqa: PLC0415

    started = (consumers, producers, retention)
    if config_file is not None and started != (None, None, None):
        raise click.UsageError(
            "--consumers, --producers and --retention are for a cluster that is started, not for --config."
        )
    if numbers["replay"]:
        if duration is not None or protocol == "classic":
            raise click.UsageError("--replay goes with --count and v2, not with --duration or classic.")
        numbers["count"] = numbers["count"] or max(1, benchmark.REPLAY_BYTES // numbers["size"])
    if duration is not None and numbers["count"] is not None:
        raise click.UsageError("--duration or --count, not both.")
    try:
        load = Load(duration=5.0 if duration is None else duration, **numbers)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    settings = load_config(config_file, ClientConfig) if config_file is not None else None
    if settings is not None:
        nodes = len(settings.consumers), len(settings.producers)
    else:
        nodes = consumers or 1, producers or 1
    problem = benchmark.problem(load, *nodes, settings.limits if settings is not None else Limits())
    if not problem and plot is not None:
        problem = benchmark.plot_problem(plot)
    if problem:
        raise click.UsageError(problem)
    cluster = (*nodes, retention or "memory")
    run(_bench(load, settings, cluster, protocol, as_json=as_json, plot=plot))


def _run_node(file: str, kind: type[service.Node]) -> None:
    journal.configure(load_config(file, kind.config_type).log_level)
    service.run(file, kind)


def _fail() -> None:
    raise click.exceptions.Exit(1)


async def _demo(settings: ClientConfig, topic: str) -> None:
    async with client.connect(settings) as connected:
        missing = await run_demo(connected, topic, settings.limits.max_message_bytes)
    if missing:
        click.echo(f"{missing} messages did not come back.", err=True)
        _fail()


async def _publish(settings: ClientConfig, topic: str, data: str, *, confirm: bool) -> None:
    connected = client.connect(settings)

    async def publish_line(line: str) -> None:
        await connected.drain()
        connected.publish_nowait(topic, line)

    async with connected:
        if data != "-":
            await publish_line(data)
        else:
            await for_each_line(settings.limits.max_message_bytes, publish_line)
        await connected.close(confirm=confirm)
    if connected.lost_in_flight:
        click.echo(f"Up to {connected.lost_in_flight} messages were lost.", err=True)
        _fail()


async def _subscribe(
    settings: ClientConfig,
    topics: tuple[str, ...],
    start: Start,
    *,
    follow: bool,
    as_json: bool,
    count: int | None,
    seconds: float | None,
) -> None:
    left = count
    try:
        async with (
            asyncio.timeout(seconds),
            client.connect(settings) as connected,
            connected.subscribe(*topics, start=start, follow=follow, on_gap="yield") as messages,
        ):
            async for message in messages:
                if isinstance(message, Gap) and not as_json:
                    click.echo(gap_text(message), err=True)
                    continue
                # With color, click leaves alone what it takes for colors.
                click.echo(_line(message, as_json, len(topics)), color=True)
                if left is not None and not isinstance(message, Gap):
                    left -= 1
                    if not left:
                        return
    except TimeoutError:
        if left:
            click.echo(f"{left} of {count} messages did not come within {seconds:g} seconds.", err=True)
            _fail()


def _line(message: Message | Gap, as_json: bool, topics: int) -> str:
    if isinstance(message, Gap) or as_json:
        fields = msgspec.structs.asdict(message)
        if not fields.get("log", True):
            del fields["log"], fields["offset"]  # a classic consumer keeps none
        return json_line(fields)
    return to_stdout(message.data if topics == 1 else f"{message.topic}: {message.data}")


async def _verify(settings: ClientConfig, junit: Path | None, *, as_json: bool = False) -> None:
    checks = []
    with progress_line() as say:
        async for check in run_checks(settings, load_psk(settings), say):
            checks.append(check)
            say("")
            if not as_json:
                _show_check(check)
    failed = sum(bool(check.problem) for check in checks)
    if as_json:
        click.echo(json_line({"checks": checks, "failed": failed}))
    else:
        click.echo(f"{len(checks)} checks, {failed} failed")
    if junit is not None:
        try:
            write_junit(checks, junit)
        except OSError as error:
            raise WsqueueError(f"cannot write {junit}: {error.strerror}") from None
    if failed:
        _fail()


def _show_check(check: Check) -> None:
    mark = click.style("FAIL", fg="red", bold=True) if check.problem else click.style("ok  ", fg="green")
    problem = f": {printable(check.problem)}" if check.problem else ""
    click.echo(f"{mark} {check.name}{problem} ({check.seconds * 1000:.0f} ms)")


async def _bench(
    load: Load,
    settings: ClientConfig | None,
    cluster: tuple[int, int, model.RetentionMode],
    protocol: Protocol,
    *,
    as_json: bool,
    plot: Path | None,
) -> None:
    from ..tools.bench import bench as benchmark  # noqa: PLC0415 - as above

    with ended_by_signals(), _progress_bar() as progress:
        if settings is not None:
            report = await benchmark.bench(load, settings, progress, protocol)
        else:
            show = _node_lines(hidden=[" INFO "])
            report = await benchmark.bench_local(load, cluster, progress, show, protocol)
    if as_json:
        fields = {"protocol": protocol, "load": load, **msgspec.structs.asdict(report)}
        click.echo(msgspec.json.encode(fields))
    else:
        click.echo(benchmark.table(report, load))
    if plot is not None:
        benchmark.write_plot(report, load, plot)
    if report.lost:
        click.echo(f"{report.lost} deliveries were lost.", err=True)
    if report.duplicates:
        click.echo(f"{report.duplicates} deliveries were duplicates.", err=True)
    if report.unconfirmed:
        click.echo(f"{report.unconfirmed} messages were not confirmed.", err=True)
    if report.ended_early:
        click.echo("The run ended early, for nothing moved any more.", err=True)
    if report.lost or report.duplicates or report.unconfirmed or report.ended_early:
        _fail()


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[float], None]]:
    """Show how much is done, 0 to 1, if a terminal is there to show it."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    with click.progressbar(length=1000, file=sys.stderr) as bar:
        yield lambda done: bar.update(round(done * 1000) - bar.pos)


async def _local(
    *,
    consumers: int,
    producers: int,
    port: int,
    directory: Path | None,
    retention: model.RetentionMode,
    demo_topic: str | None,
) -> None:
    # The demo has the terminal for itself, and its checks provoke warnings.
    show = _node_lines(hidden=[" INFO ", " WARNING "] if demo_topic is not None else [])
    with ended_by_signals():
        kept = model.Retention(mode=retention)
        async with LocalCluster(consumers, producers, port, directory, show, retention=kept) as cluster:
            if demo_topic is None:
                click.echo("The cluster is up; Ctrl-C ends it. In another terminal:")
                click.echo(f"  wsqueue demo --config {cluster.config_file} news")
                click.echo(f"Its status page, with a demo for the browser: {cluster.status_page}")
                await cluster.wait()
            else:
                settings = load_config(cluster.config_file, ClientConfig)
                await _verify(settings, None)
                if sys.stdin.isatty():
                    # Else all is over with the input.
                    click.echo(f"The status page of the cluster, as long as this runs: {cluster.status_page}")
                await _demo(settings, demo_topic)


def _node_lines(hidden: list[str]) -> Callable[[str, str], None]:
    """Return what shows the lines that nodes log, but for those of the hidden levels."""
    colors = itertools.cycle(NODE_COLORS)
    color_of: defaultdict[str, str] = defaultdict(lambda: next(colors))

    def show(name: str, line: str) -> None:
        if not any(level in line for level in hidden):
            click.echo(f"{click.style(f'{name:<11}|', fg=color_of[name])} {line}", err=True)

    return show


for _command in watch.ALL:
    main.add_command(_command)
