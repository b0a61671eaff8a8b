"""The run: it starts the workers, drives them through the phases, and makes the report."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence

from ...errors import WsqueueError
from .counters import (
    FINISHED,
    MEASURED,
    NO_LIMIT,
    WARM_UP,
    At,
    Counters,
)
from .report import BenchReport, NodeUsage, Throughput
from .usage import Usage
from .wire import Wire
from .worker import Worker
from .workload import Load

TICK_SECONDS = 0.01
"""Time between two looks at the workers; the clock of CPU times has the same resolution."""

SAMPLE_SECONDS = 0.1
"""Time between two samples of throughput, memory and the state of nodes."""

GIVE_UP_SECONDS = 5.0
"""Time without a published message or a delivery after which missing deliveries count as lost."""

LATE_SECONDS = 0.1
"""Time after its end in which a run with a rate may still send messages that were due before."""

LEAD_SECONDS = 0.002
"""Time from the announcement of a phase to its first message; workers look for it every millisecond."""

OPENING = 0.1
"""Share of the progress that opening the connections takes."""

REPLAYING = 0.7
"""Share of the progress before a replay begins."""


async def run_load(
    wire: Wire, load: Load, nodes: Mapping[str, int], progress: Callable[[float], None] = lambda _done: None
) -> BenchReport:
    """Put load on a system, and return the report.

    Args:
        wire: The wire of the system.
        load: The load.
        nodes: Process ids of the nodes of the system by name, if they run on this machine.
        progress: Called now and then with the share of the run that is done, 0 to 1.

    Raises:
        ConnectError: A node does not answer.
        WsqueueError: A node ended, closed a connection, or delivered data that was not published.
    """
    usage = Usage(nodes)
    workers: list[Worker] = []
    with Counters() as counters:
        try:
            for kind in ("subscribers", "publishers"):
                workers.append(await Worker.start(kind, wire, load, counters.descriptor))  # noqa: PERF401
            return await _Run(load, counters, workers, usage, progress).report()
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                await worker.ended()


class _Run:
    """Drive the workers through the phases."""

    def __init__(
        self,
        load: Load,
        counters: Counters,
        workers: Sequence[Worker],
        nodes: Usage,
        progress: Callable[[float], None],
    ) -> None:
        self._load, self._counters, self._progress = load, counters, progress
        self._workers, self._nodes = workers, nodes
        self._ended_early = False
        self._sampled = 0.0
        self._points: list[tuple[int, int, int]] = []

    async def report(self) -> BenchReport:
        load, counters = self._load, self._counters
        await self._open()
        measured = load.duration if load.count is None else 1
        begin = OPENING + (1 - OPENING) * load.warm_up / (load.warm_up + measured)
        if load.replay:
            begin = REPLAYING
            await self._phase(WARM_UP, None, load.count, (OPENING, begin))
        elif load.warm_up:
            await self._phase(WARM_UP, load.warm_up, None, (OPENING, begin))
        sent, received = 0 if load.replay else counters[At.PUBLISHED], counters[At.RECEIVED]
        workers = Usage({worker.name: worker.pid for worker in self._workers})
        nodes, generator = self._nodes.cpu_seconds(), workers.cpu_seconds()
        self._points.clear()
        duration, count = (load.duration, None) if load.count is None else (None, load.count)
        ended_ns = await self._phase(MEASURED, duration, 0 if load.replay else count, (begin, 1))
        nodes = _difference(self._nodes.cpu_seconds(), nodes)
        generator = _difference(workers.cpu_seconds(), generator)
        self._nodes.sample()
        counters[At.PHASE] = FINISHED
        (latencies, counts), _ = [await worker.outcome() for worker in self._workers]
        self._progress(1)
        lost, duplicates = lost_and_duplicates(load, counters[At.PUBLISHED], counts)
        messages, deliveries = counters[At.PUBLISHED] - sent, sum(counts) - received
        if not messages:
            raise WsqueueError(f"no message could be published within {GIVE_UP_SECONDS:g} seconds")
        seconds, us_each = (ended_ns - counters[At.START_NS]) / 1e9, 1e6 / messages
        return BenchReport(
            messages_per_second=messages / seconds,
            deliveries_per_second=deliveries / seconds,
            sent=messages,
            received=deliveries,
            lost=lost,
            duplicates=duplicates,
            unconfirmed=counters[At.PUBLISHED] - counters[At.CONFIRMED],
            ended_early=self._ended_early,
            seconds=seconds,
            nodes={
                name: NodeUsage(cpu, cpu * us_each, self._nodes.rss[name], self._nodes.max_rss[name])
                for name, cpu in nodes.items()
            },
            load_generator_cpu_us_per_message=sum(generator.values()) * us_each,
            latency=latencies.report(),
            throughput=_throughput(self._points),
        )

    async def _open(self) -> None:
        load, counters = self._load, self._counters
        connections = load.publishers + load.subscribers * load.topics
        while (opened := counters[At.PUBLISHERS_OPEN] + counters[At.SUBSCRIBERS_OPEN]) < connections:
            await self._tick(OPENING * opened / connections)

    async def _phase(
        self, phase: int, seconds: float | None, count: int | None, progress: tuple[float, float]
    ) -> int:
        """Publish, wait until all messages have arrived or none does any more, and return the end in ns."""
        load, counters = self._load, self._counters
        limit = count if count is not None else NO_LIMIT
        if load.rate is not None and seconds is not None:
            limit = max(1, math.ceil(load.rate * seconds))
            seconds += LATE_SECONDS
        start_ns = time.monotonic_ns() + int(LEAD_SECONDS * 1e9)
        counters[At.START_NS], counters[At.LIMIT] = start_ns, limit
        counters[At.STOP_NS] = start_ns + int(seconds * 1e9) if seconds is not None else NO_LIMIT
        counters[At.PHASE] = phase
        first = counters[At.PUBLISHED]
        # With a low rate, pauses are normal.
        patience = GIVE_UP_SECONDS + (2 / load.rate if load.rate is not None else 0)
        moved, moved_at = (0, 0, 0), time.monotonic()
        self._ended_early = False
        while not self._all_arrived(phase):
            now = (counters[At.PUBLISHED], counters[At.RECEIVED], counters[At.CONFIRMED])
            if now != moved:
                moved, moved_at = now, time.monotonic()
            elif time.monotonic() - moved_at > patience:
                self._ended_early |= counters[At.PUBLISHED_PHASE] != phase
                counters[At.STOP_NS] = 0
                # A publisher that waits for its socket goes on until the run ends.
                await asyncio.sleep(TICK_SECONDS)
                break
            if seconds is not None:
                share = (time.monotonic_ns() - start_ns) / 1e9 / seconds
            elif limit:
                share = (now[0] - first) / limit
            else:
                share = now[1] / (now[0] * load.deliveries)
            begin, end = progress
            await self._tick(begin + (end - begin) * min(max(share, 0), 1))
        self._take_point()
        published_ns = (
            counters[At.PUBLISHED_NS] if counters[At.PUBLISHED_PHASE] == phase else time.monotonic_ns()
        )
        return max(published_ns, counters[At.RECEIVED_NS])

    def _all_arrived(self, phase: int) -> bool:
        # In this order: the number of published messages is final once the phase is published.
        if self._counters[At.PUBLISHED_PHASE] != phase:
            return False
        published = self._counters[At.PUBLISHED]
        if self._counters[At.CONFIRMED] < published:
            return False
        if self._load.replay and phase == WARM_UP:
            return True
        return self._counters[At.RECEIVED] >= published * self._load.deliveries

    async def _tick(self, done: float) -> None:
        await asyncio.sleep(TICK_SECONDS)
        failed = next((worker for worker in self._workers if worker.has_ended), None)
        now = time.monotonic()
        if failed is None and now - self._sampled < SAMPLE_SECONDS:
            return
        # Look at the nodes first: "a node ended" explains more than "a connection broke".
        self._nodes.sample()
        if failed is not None:
            await failed.outcome()
            raise WsqueueError("the load generator ended before the run did")
        self._sampled = now
        self._take_point()
        self._progress(done)

    def _take_point(self) -> None:
        counters = self._counters
        self._points.append((time.monotonic_ns(), counters[At.PUBLISHED], counters[At.RECEIVED]))


def lost_and_duplicates(load: Load, sent: int, received: Sequence[int]) -> tuple[int, int]:
    """Return how many deliveries are missing, and how many came beyond the published messages.

    Args:
        load: The load.
        sent: Number of published messages, each to the next topic.
        received: Deliveries on each subscriber's connection, or on all that share a topic; ordered by topic.
    """
    # The first topics may have one message more than the others.
    missing = [
        -(-(sent - index // load.deliveries) // load.topics) - count for index, count in enumerate(received)
    ]
    return sum(max(number, 0) for number in missing), -sum(min(number, 0) for number in missing)


def _difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds - before[name], 2) for name, seconds in after.items()}


def _throughput(points: Sequence[tuple[int, int, int]]) -> list[Throughput]:
    found = []
    for (began_ns, sent, received), (ended_ns, sent_then, received_then) in itertools.pairwise(points):
        seconds = (ended_ns - began_ns) / 1e9
        rates = (sent_then - sent) / seconds, (received_then - received) / seconds
        found.append(Throughput((ended_ns - points[0][0]) / 1e9, *rates))
    return found
