"""Closed subscriptions and clients: an iteration ends, and a call that comes too late says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import wsqueue

from ..support.nodes import Nodes, RunningNode
from ..support.ports import free_port
from ..support.waiting import POLL_SECONDS, soon

pytestmark = pytest.mark.anyio

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"start": "earliest"},
    "reader": {"reader": "r"},
    "group": {"group": "g"},
}
ALL = pytest.mark.parametrize("kind", KINDS)
WITH_OUTCOMES = pytest.mark.parametrize("kind", ["reader", "group"])


async def cluster(nodes: Nodes) -> tuple[RunningNode, wsqueue.Client]:
    """Return a consumer, and a client of it and a producer."""
    consumer = await nodes.consumer(port=free_port())
    return consumer, nodes.client([await nodes.producer([consumer])], [consumer])


async def called(call: Callable[[], Any]) -> None:
    """Call a function that may be async."""
    if asyncio.iscoroutine(result := call()):
        await result


async def rest(messages: wsqueue.Subscription[Any]) -> list[str]:
    return [one.data async for one in messages]


@WITH_OUTCOMES
async def test_another_task_closes_a_subscription_whose_messages_are_done_by_themselves(
    nodes: Nodes, kind: str
) -> None:
    _, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "0", "1", "2")
        one_at_a_time: dict[str, Any] = {"prefetch": 1} if kind == "group" else {}
        async with client.subscribe("jobs", **KINDS[kind], auto_done=True, **one_at_a_time) as jobs:
            await anext(jobs)
            await anext(jobs)
            await asyncio.create_task(jobs.close())
            # Those that had arrived may still come; the one before them is not done.
            assert await rest(jobs) in ([], ["2"])
        async with client.subscribe("jobs", **KINDS[kind]) as jobs:
            assert (await anext(jobs)).data == "1"


@ALL
async def test_an_iteration_that_waits_ends(nodes: Nodes, kind: str) -> None:
    _, client = await cluster(nodes)
    async with soon(), client:
        for closed in ("subscription", "client"):
            jobs = client.subscribe("jobs", **KINDS[kind])
            waiting = asyncio.create_task(rest(jobs))
            await asyncio.sleep(POLL_SECONDS)
            await (jobs if closed == "subscription" else client).close()
            assert await waiting == []
            assert await rest(jobs) == []


@ALL
@pytest.mark.parametrize("closed", ["subscription", "client"])
async def test_a_closed_subscription_does_not_connect_again(nodes: Nodes, kind: str, closed: str) -> None:
    consumer = await nodes.consumer()
    async with soon(), nodes.client(["127.0.0.1:1"], [consumer]) as client:
        jobs = client.subscribe("jobs", **KINDS[kind])
        await (jobs if closed == "subscription" else client).close()
        with pytest.raises(RuntimeError, match="the subscription is closed: make another one"):
            async with jobs:
                pass
        assert await rest(jobs) == []
        await jobs.close()
    assert consumer.counters["connections"] == 0


@WITH_OUTCOMES
async def test_outcomes_that_are_given_up_at_the_end(nodes: Nodes, kind: str) -> None:
    consumer, client = await cluster(nodes)
    async with asyncio.timeout(20), client:
        await client.publish("jobs", "0")
        async with client.subscribe("jobs", **KINDS[kind]) as jobs:
            job = await anext(jobs)
            await consumer.crash()
            job.done_nowait()
            waiting = [asyncio.create_task(one) for one in (jobs.flush(), job.done())]
            await asyncio.sleep(POLL_SECONDS)
            await jobs.close()
            for task in waiting:
                with pytest.raises(wsqueue.ConnectError, match="the subscription is closed, and"):
                    await task
            with pytest.raises(wsqueue.ConnectError, match="the subscription is closed, and"):
                await jobs.flush()
            await jobs.close()


@WITH_OUTCOMES
async def test_outcomes_after_the_end(nodes: Nodes, kind: str) -> None:
    _, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "0")
        async with client.subscribe("jobs", **KINDS[kind]) as jobs:
            job = await anext(jobs)
            await job.done()
        # All that was said is kept.
        await jobs.flush()
        await jobs.close()
        calls: list[Callable[[], Any]] = [job.done, job.done_nowait]
        if isinstance(job, wsqueue.GroupMessage):
            calls += [job.again, lambda: job.reject("x"), job.extend]
        for call in calls:
            with pytest.raises(wsqueue.ConnectError, match="the subscription is closed, and"):
                await called(call)


async def test_a_closed_client(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon():
        await client.publish("jobs", "0")
        await client.close()
        calls: list[Callable[[], Any]] = [
            lambda: client.publish("jobs", "1"),
            lambda: client.publish_nowait("jobs", "1"),
            *(lambda options=options: client.subscribe("jobs", **options) for options in KINDS.values()),
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match="the client is closed: make another one"):
                await called(call)
        await client.flush()
        await client.drain()
        await client.close()
