"""Eight workers share 200,000 messages, on disk; then some of them are slow, go and come."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest

from wsqueue import Client

from ..support.processes import Cluster

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(280)]
pytestmark += [pytest.mark.usefixtures("uncovered")]

WORKERS = 8
MESSAGES = 200_000
LESS = 3000
"""Messages of a test in which workers pause."""


class Work:
    """Count the messages that workers have done."""

    def __init__(self, client: Client, topic: str, messages: int, prefetch: int) -> None:
        self.client, self.topic, self.messages, self.prefetch = client, topic, messages, prefetch
        self.done: list[Counter[str]] = []
        self.numbers: set[str] = set()
        self.finished = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, pause: Callable[[], float] | None = None) -> None:
        """Let another worker begin, which pauses for each message."""
        mine: Counter[str] = Counter()
        self.done.append(mine)
        self._tasks.append(asyncio.create_task(self._work(mine, pause)))

    async def remove(self, index: int) -> None:
        """End a worker in the middle of its work."""
        self._tasks[index].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._tasks[index]

    async def end(self) -> None:
        """Wait until all is done, and end the workers."""
        await self.finished.wait()
        for index in range(len(self._tasks)):
            await self.remove(index)

    async def _work(self, mine: Counter[str], pause: Callable[[], float] | None) -> None:
        async with self.client.subscribe(self.topic, group="g", prefetch=self.prefetch) as messages:
            async for message in messages:
                if pause is not None:
                    await asyncio.sleep(pause())
                # Before it is told, because this task may be cancelled while it waits for the answer.
                mine[str(message.data)] += 1
                self.numbers.add(str(message.data))
                if len(self.numbers) == self.messages:
                    self.finished.set()
                if pause is not None:
                    await message.done()
                    continue
                message.done_nowait()
                if len(mine) % 50 == 0:
                    await asyncio.sleep(0)


async def publish(client: Client, topic: str, messages: int) -> None:
    numbers = map(str, range(messages))
    while part := list(itertools.islice(numbers, 500)):
        await client.drain()
        client.publish_nowait(topic, *part)
    await client.flush()


async def test_workers_of_equal_speed_get_equal_shares(cluster: Cluster) -> None:
    retention = {"mode": "sqlite", "max_bytes_per_topic": 2**26}
    await asyncio.to_thread(cluster.start, 1, 1, retention=retention)
    async with asyncio.timeout(250), cluster.client() as client:
        work = Work(client, "jobs", MESSAGES, prefetch=100)
        for _ in range(WORKERS):
            work.add()
        await publish(client, "jobs", MESSAGES)
        await work.end()
        assert sum(work.done, Counter()) == Counter(map(str, range(MESSAGES)))
        shares = sorted(map(len, work.done))
        assert shares[-1] <= 1.1 * shares[0], shares


async def test_workers_that_are_slow_or_go_hold_nothing_up(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.start, 1, 1, retention={"mode": "sqlite"})
    rng = random.Random(1)
    async with asyncio.timeout(100), cluster.client() as client:
        work = Work(client, "jobs", LESS, prefetch=2)
        work.add(lambda: 0.1)
        for _ in range(WORKERS - 1):
            work.add(lambda: 0.002)
        await publish(client, "jobs", LESS)
        for gone in rng.sample(range(1, WORKERS), 3):
            await asyncio.sleep(0.2)
            await work.remove(gone)
            work.add(lambda: 0.002)
        await work.end()
    done = sum(work.done, Counter())
    assert done.keys() == set(map(str, range(LESS)))
    # The messages that those had who went may be done twice.
    assert sum(done.values()) <= LESS + 3 * 2
    fast = [len(mine) for mine in work.done[1:WORKERS]]
    # The slow one has done its part, and no more.
    assert 0 < len(work.done[0]) < max(fast) / 2
