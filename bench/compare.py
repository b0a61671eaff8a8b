"""Compare wsqueue with other systems in one run: `make bench`, or `python -m bench.compare --help`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import fnmatch
import os
import platform
import re
import resource
import select
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import psutil
import uvloop

from wsqueue.cli.common import ExitCode
from wsqueue.errors import WsqueueError
from wsqueue.tools.bench.runner import run_load
from wsqueue.tools.bench.wire import Wire
from wsqueue.tools.bench.workload import Load

from . import plots, report
from .results import (
    COMMON,
    COMMON_RATE,
    FAN_OUT,
    GROUPS,
    HALF,
    IDLE,
    LATENCY_BYTES,
    MANY,
    MANY_PUBLISHERS,
    MANY_TOPICS,
    MIXED,
    MIXED_SIZES,
    ONE,
    PAYLOADS,
    REPLAY,
    SCALING,
    STORED,
    TOPICS,
    Figure,
    Results,
    combine,
)
from .systems import SYSTEMS, check_installed, versions
from .wires import MessageWire, Mixed

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results.json"
DOCUMENT = ROOT / "docs" / "performance.md"

LARGE_BYTES = 64 * 1024
"""From this payload on, fan-out moves gigabytes, so its run is kept short."""

LARGE_FAN_OUT_SECONDS = 1.5

SLOW_SECONDS = 15.0
"""A repetition that takes longer is the last one: a slow system needs long for the last messages."""

IDLE_AHEAD = 20
"""Subscribers before the first look at the memory: the first ones load code."""

SPARE_FILES = 200

WORKLOADS = (ONE, FAN_OUT, TOPICS, HALF, COMMON, IDLE, SCALING, REPLAY, STORED, *MANY, *GROUPS)


@dataclass(frozen=True)
class Plan:
    """The extent of a run.

    Attributes:
        repetitions: Number of repetitions of each figure.
        seconds: Duration of each repetition without a rate.
        rate_seconds: Duration of each repetition with a rate.
        warm_up: Seconds before each repetition that are not measured.
        shapes: Workloads without a rate, with their payloads.
        idle: Number of subscribers whose memory is measured.
        consumers: Numbers of consumers of wsqueue, to measure how it scales.
        replay: Messages that a subscriber reads from the log.
        stored: Payloads of messages that are confirmed once they are stored.
        many: Workloads with many publishers.
        publishers: Number of these publishers.
        groups: Workloads with groups.
        settle: Seconds between the last subscriber and the look at the memory.
    """

    repetitions: int
    seconds: float
    rate_seconds: float
    warm_up: float
    shapes: dict[str, Sequence[int]]
    idle: int
    consumers: Sequence[int]
    replay: int
    stored: Sequence[int]
    many: Sequence[str]
    publishers: int
    groups: Sequence[str]
    settle: float


FULL = Plan(
    repetitions=3,
    seconds=2.0,
    rate_seconds=4.0,
    warm_up=0.5,
    shapes={ONE: (*PAYLOADS, MIXED), FAN_OUT: PAYLOADS, TOPICS: PAYLOADS},
    idle=10_000,
    consumers=(1, 2, 4),
    replay=2_000_000,
    stored=(LATENCY_BYTES, LARGE_BYTES),
    many=tuple(MANY),
    publishers=MANY_PUBLISHERS,
    groups=tuple(GROUPS),
    settle=1.0,
)
QUICK = Plan(
    repetitions=1,
    seconds=0.2,
    rate_seconds=0.2,
    warm_up=0.1,
    shapes={ONE: (LATENCY_BYTES,), FAN_OUT: (LATENCY_BYTES,)},
    idle=200,
    consumers=(1, 2),
    replay=20_000,
    stored=(LATENCY_BYTES,),
    many=tuple(MANY)[:1],
    publishers=100,
    groups=tuple(GROUPS)[:1],
    settle=0.1,
)


@dataclass(frozen=True)
class Case:
    """A workload that is measured on one system after the other.

    Attributes:
        workload: Name of the workload.
        systems: Keys of `SYSTEMS`.
        load: The load; for `IDLE`, only the number of subscribers is used.
        mixed: True if messages of several sizes follow each other.
        consumers: Number of consumers of the system.
    """

    workload: str
    systems: Sequence[str]
    load: Load
    mixed: bool = False
    consumers: int = 1

    @property
    def payload(self) -> int:
        """Return the payload under which the figure is stored."""
        return MIXED if self.mixed else self.load.size


class Comparison:
    """Measure one case after the other.

    Args:
        plan: Extent of the run.
        wanted: Returns True if a system and a workload are to be measured.
        say: Called with a line for each figure.
    """

    def __init__(self, plan: Plan, wanted: Callable[[str, str], bool], say: Callable[[str], None]) -> None:
        self._plan, self._wanted, self._say = plan, wanted, say
        self._figures: list[Figure] = []
        self._most: dict[str, float] = {}

    async def run(self) -> Results:
        """Measure everything.

        Raises:
            WsqueueError: A system is not installed.
        """
        cases = list(self._cases())
        systems = {system for case in cases for system in case.systems}
        check_installed(systems)
        # Child processes inherit the limit; not all of them raise it themselves.
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        began = dt.datetime.now(dt.UTC)
        for case in cases:
            await self._measure(case)
        return Results(
            date=f"{began:%Y-%m-%d %H:%M} UTC",
            machine=machine(),
            versions=versions(systems),
            repetitions=self._plan.repetitions,
            seconds=self._plan.seconds,
            figures=self._figures,
        )

    def _cases(self) -> Iterator[Case]:
        plan = self._plan
        shapes = {ONE: (1, 1), FAN_OUT: (1, 100), TOPICS: (100, 10)}
        for workload, payloads in plan.shapes.items():
            topics, subscribers = shapes[workload]
            for payload in payloads:
                short = payload >= LARGE_BYTES and workload != ONE
                load = Load(
                    topics=topics,
                    subscribers=subscribers,
                    size=payload or MIXED_SIZES[0],
                    duration=min(plan.seconds, LARGE_FAN_OUT_SECONDS) if short else plan.seconds,
                    warm_up=plan.warm_up,
                )
                mixed = payload == MIXED
                systems = [name for name in self._systems(workload) if not (mixed and SYSTEMS[name].batches)]
                yield Case(workload, systems, load, mixed=mixed)
        load = Load(size=LATENCY_BYTES, rate=COMMON_RATE, duration=plan.rate_seconds, warm_up=plan.warm_up)
        yield Case(HALF, self._systems(HALF), load)
        yield Case(COMMON, self._systems(COMMON), load)
        yield Case(IDLE, self._systems(IDLE), Load(topics=plan.idle))
        load = Load(topics=100, size=LATENCY_BYTES, duration=plan.seconds, warm_up=plan.warm_up)
        for consumers in plan.consumers:
            yield Case(SCALING, self._systems(SCALING), load, consumers=consumers)
        load = Load(size=LATENCY_BYTES, count=plan.replay, replay=True)
        yield Case(REPLAY, self._systems(REPLAY), load)
        for payload in plan.stored:
            load = Load(size=payload, duration=plan.seconds, warm_up=plan.warm_up)
            yield Case(STORED, self._systems(STORED), load)
        for workload in plan.many:
            load = Load(
                publishers=plan.publishers,
                topics=MANY_TOPICS,
                size=LATENCY_BYTES,
                rate=MANY[workload],
                duration=plan.rate_seconds,
                warm_up=plan.warm_up,
            )
            yield Case(workload, self._systems(workload), load)
        for workload in plan.groups:
            rate = GROUPS[workload]
            duration = plan.seconds if rate is None else plan.rate_seconds
            load = Load(size=LATENCY_BYTES, rate=rate, duration=duration, warm_up=plan.warm_up)
            yield Case(workload, self._systems(workload), load)

    def _systems(self, workload: str) -> list[str]:
        return [
            name
            for name, system in SYSTEMS.items()
            if workload in system.workloads and self._wanted(name, workload)
        ]

    async def _measure(self, case: Case) -> None:
        """Let the systems take turns, so that a disturbance of the machine affects all of them."""
        found: dict[str, list[Figure]] = {system: [] for system in case.systems}
        failed = dict.fromkeys(case.systems, 0)
        slow: set[str] = set()
        # Opening all subscribers takes long, and the memory hardly varies.
        for _ in range(1 if case.workload == IDLE else self._plan.repetitions):
            for system in case.systems:
                if system in slow:
                    continue
                began = time.monotonic()
                try:
                    found[system].append(await self._figure(case, system))
                except (WsqueueError, OSError) as error:
                    self._say(f"{_name(case, system)}: {error}")
                    failed[system] += 1
                if time.monotonic() - began > SLOW_SECONDS:
                    slow.add(system)
        for system, figures in found.items():
            none = Figure(case.workload, system, case.payload, case.consumers)
            figure = combine(figures or [none], failed[system])
            self._say(f"{_name(case, system)}: {_summary(figure)}")
            self._figures.append(figure)
            if (case.workload, case.payload) == (ONE, LATENCY_BYTES):
                self._most[system] = figure.messages

    async def _figure(self, case: Case, system: str) -> Figure:
        if case.workload == IDLE:
            return await idle(case, system, self._plan.settle)
        if case.workload in (HALF, COMMON):
            most = await self._most_of(case, system)
            if case.workload == HALF:
                case = dataclasses.replace(case, load=msgspec.structs.replace(case.load, rate=most / 2))
            elif most < COMMON_RATE:
                return Figure(case.workload, system, case.payload)
        return await flood(case, system)

    async def _most_of(self, case: Case, system: str) -> float:
        """Return the messages per second of a system, 1→1 and without a rate."""
        if not self._most.get(system):
            load = msgspec.structs.replace(case.load, rate=None)
            self._most[system] = (await flood(dataclasses.replace(case, load=load), system)).messages
        return self._most[system]


async def flood(case: Case, system: str) -> Figure:
    """Start a system, put load on it, and end it.

    Raises:
        WsqueueError: The system failed, or messages were not confirmed.
    """
    load = SYSTEMS[system].load(case.load)
    async with _started(case, system) as (wire, nodes):
        # One message of the load is then several messages.
        mixed = None
        if case.mixed:
            assert isinstance(wire, MessageWire)
            mixed = Mixed(wire, MIXED_SIZES[1:])
        found = await run_load(mixed or wire, load, nodes)
    if found.unconfirmed:
        raise WsqueueError(f"{found.unconfirmed} messages were not confirmed")
    several = mixed.factor if mixed else 1
    latency = found.latency
    return Figure(
        workload=case.workload,
        system=system,
        payload=case.payload,
        consumers=case.consumers,
        rate=load.rate or 0.0,
        messages=found.messages_per_second * several,
        deliveries=found.deliveries_per_second * several,
        lost=found.lost * several,
        cpu=sum(node.cpu_us_per_message for node in found.nodes.values()) / several,
        nodes={name: node.cpu_us_per_message / several for name, node in found.nodes.items()},
        load_cpu=found.load_generator_cpu_us_per_message / several,
        rss=max(node.max_rss_bytes for node in found.nodes.values()) / 2**20,
        latency=(latency.p50 / 1000, latency.p99 / 1000, latency.p99_9 / 1000) if latency else None,
    )


async def idle(case: Case, system: str, settle: float) -> Figure:
    """Open subscribers, each on a topic of its own, and measure the memory of the nodes for each.

    Raises:
        WsqueueError: The system failed, or closed subscribers.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(case.load.topics, hard - SPARE_FILES)
    topics = [f"idle-{number:05}" for number in range(IDLE_AHEAD + count)]
    poll = select.poll()
    with contextlib.ExitStack() as stack:
        async with _started(case, system) as (wire, nodes):

            def subscribe(names: Iterable[str]) -> None:
                for topic in names:
                    poll.register(stack.enter_context(wire.open_subscriber(topic)), select.POLLRDHUP)

            await asyncio.to_thread(subscribe, topics[:IDLE_AHEAD])
            before = _memory(nodes)
            await asyncio.to_thread(subscribe, topics[IDLE_AHEAD:])
            await asyncio.sleep(settle)
            used = _memory(nodes) - before
            # Pings are not answered here, so nodes close connections after a while.
            if closed := len(poll.poll(0)):
                raise WsqueueError(
                    f"{closed} of {count} idle subscribers were closed before they were counted"
                )
            # Close first: otherwise the nodes would wait for a close frame from each subscriber.
            stack.close()
    return Figure(case.workload, system, idle_bytes=used / count, subscribers=count)


def machine() -> dict[str, str]:
    """Return a description of this machine."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "CPU": model[1] if model else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
    }


@contextlib.asynccontextmanager
async def _started(case: Case, system: str) -> AsyncIterator[tuple[Wire, Mapping[str, int]]]:
    arguments: dict[str, object] = {}
    if case.consumers > 1:
        arguments["consumers"] = case.consumers
    if case.load.replay:
        arguments["load"] = case.load
    async with SYSTEMS[system].start(**arguments) as running:
        yield running.wire, running.nodes


def _memory(nodes: Mapping[str, int]) -> int:
    """Return the resident memory of all nodes, in bytes."""
    return sum(int(psutil.Process(pid).memory_info().rss) for pid in nodes.values())


def _name(case: Case, system: str) -> str:
    payload = "" if case.workload == IDLE else f" {report.size(case.payload)}"
    consumers = f" {case.consumers} consumers" if case.consumers > 1 else ""
    return f"{system}/{case.workload}{payload}{consumers}"


def _summary(figure: Figure) -> str:
    if figure.subscribers:
        return f"{figure.idle_bytes / 1024:.1f} KiB a subscriber"
    if not figure.messages:
        return "no figure"
    text = f"{figure.cpu:.2f} µs/message, {figure.messages:,.0f} messages/s, lost {figure.lost}"
    if figure.latency:
        text += ", latency {:.2f}, {:.2f}, {:.2f} ms".format(*figure.latency)
    return text


def _matcher(patterns: Sequence[str]) -> Callable[[str, str], bool]:
    """Return True if a system and a workload are to be measured; without patterns, all are.

    Raises:
        click.BadParameter: A pattern matches nothing.
    """
    names = [f"{system}/{workload}" for system in SYSTEMS for workload in WORKLOADS]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise click.BadParameter(
                f"{pattern!r} matches none; systems: {', '.join(SYSTEMS)}; workloads: {', '.join(WORKLOADS)}"
            )
    return lambda system, workload: (
        not patterns or any(fnmatch.fnmatch(f"{system}/{workload}", pattern) for pattern in patterns)
    )


@click.command()
@click.option(
    "--quick",
    is_flag=True,
    help="See that everything works, in short runs with useless figures. Writes nothing without --output.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="SYSTEM/WORKLOAD",
    help="Measure only this, as nats/common or 'wsqueue/*'; may be given several times. Writes nothing"
    " without --output.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write results, document and plots there instead of into the checkout.",
)
@click.option(
    "--tables", is_flag=True, help="Measure nothing: make document and plots from the results there are."
)
def main(quick: bool, only: tuple[str, ...], output: Path | None, tables: bool) -> None:
    """Measure wsqueue and other systems on this machine, and write results, tables and plots.

    A whole run takes about 35 minutes, in which nothing else should run here.
    """
    wanted = _matcher(only)
    keep = output is not None or not (only or quick)
    file, document = (output / "results.json", output / "performance.md") if output else (RESULTS, DOCUMENT)
    try:
        if tables:
            results = Results.read(file)
        else:
            results = uvloop.run(Comparison(QUICK if quick else FULL, wanted, click.echo).run())
        if keep:
            document.parent.mkdir(parents=True, exist_ok=True)
            if not tables:
                results.write(file)
            report.update(document, results)
            plots.draw(document.with_suffix(""), results)
            click.echo(f"Written: {file}, {document} and plots in {document.with_suffix('')}")
    except OSError as error:
        file_name = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{file_name}{error.strerror or error}") from None
    except (WsqueueError, ValueError, msgspec.DecodeError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None


if __name__ == "__main__":
    main()
