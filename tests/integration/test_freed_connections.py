"""Subscriptions and clients that nobody closes: their connections end with them."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading

import pytest

import wsqueue

from ..support.classic_peer import IndependentConsumer, serving
from ..support.nodes import KEY, OTHER_KEY, Log, Nodes, RunningNode
from ..support.ports import free_port
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

MAX_CONNECTIONS = 50
TIMES = MAX_CONNECTIONS + 10


async def has_connections(node: RunningNode, count: int) -> None:
    await eventually(lambda: len(node.connections) == count, f"{count} connections")


async def test_iterations_that_end(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster(max_connections=MAX_CONNECTIONS)
    async with soon(), nodes.client([producer], [consumer]) as client:
        await client.publish("news", *"abc")
        kept = []
        for _ in range(TIMES):
            messages = client.subscribe("news", start="earliest", follow=False)
            assert [message.data async for message in messages] == ["a", "b", "c"]
            with pytest.raises(StopAsyncIteration):
                await anext(messages)
            kept.append(messages)  # so that it is not the end of the object that closes the connection
        await has_connections(consumer, 1)


async def test_iterations_that_are_broken_off(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster(max_connections=MAX_CONNECTIONS)
    async with soon(), nodes.client([producer], [consumer]) as client:
        await client.publish("news", *"abc")
        for _ in range(TIMES):
            async for message in client.subscribe("news", start="earliest"):
                assert message.data == "a"
                break
            # The end of a loop is noticed at once, and its connection is closed in turn.
            await consumer.subscribed("news", 0)
        await has_connections(consumer, 1)
        sent = consumer.counters["messages_out"]
        await client.publish("news", "nobody is there")
        assert consumer.counters["messages_out"] == sent


async def test_iterations_that_raise(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster(max_connections=MAX_CONNECTIONS)

    async def fail(client: wsqueue.Client) -> None:
        async for message in client.subscribe("news", start="earliest"):
            raise ValueError(message.data)

    async with soon(), nodes.client([producer], [consumer]) as client:
        await client.publish("news", "a")
        for _ in range(TIMES):
            with pytest.raises(ValueError, match="a"):
                await fail(client)
            await consumer.subscribed("news", 0)
        await has_connections(consumer, 1)


async def test_iterations_that_are_cancelled(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster(max_connections=MAX_CONNECTIONS)

    async def read(client: wsqueue.Client) -> None:
        async for _ in client.subscribe("news"):
            pass

    async with soon(), nodes.client([producer], [consumer]) as client:
        for _ in range(TIMES):
            reading = asyncio.create_task(read(client))
            await consumer.subscribed("news")
            reading.cancel()
            await asyncio.wait([reading])
            del reading
            await consumer.subscribed("news", 0)
        await has_connections(consumer, 1)


async def test_subscriptions_that_fail_give_back_the_connections_that_they_have(nodes: Nodes) -> None:
    """One consumer answers and the other doesn't; the application keeps the subscription, and tries again."""
    consumer, down = await nodes.consumer(max_connections=MAX_CONNECTIONS), free_port()
    async with soon(), nodes.client([consumer], [consumer, f"127.0.0.1:{down}"]) as client:
        kept = []
        for _ in range(TIMES):
            messages = client.subscribe("news", "newt")  # one topic for each consumer
            with pytest.raises(wsqueue.ConnectError):
                await anext(messages)
            kept.append(messages)
        await has_connections(consumer, 0)
        await nodes.consumer(port=down)
        waiting = asyncio.ensure_future(anext(kept[0], None))
        await has_connections(consumer, 1)
        await kept[0].close()
        assert await waiting is None


async def test_subscriptions_that_were_never_begun(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster(max_connections=MAX_CONNECTIONS)
    async with soon(), nodes.client([producer], [consumer]) as client:
        kept = [client.subscribe("news") for _ in range(TIMES)]
        async with client.subscribe("news"):
            await has_connections(consumer, 2)
    with pytest.raises(StopAsyncIteration):
        await anext(kept[0])  # the client has closed it
    await has_connections(consumer, 1)


async def test_a_subscription_outlives_a_client_that_was_dropped(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    async with soon(), nodes.client([producer], [consumer]) as other:
        reading = asyncio.ensure_future(anext(nodes.client([producer], [consumer]).subscribe("news")))
        await consumer.subscribed("news")
        gc.collect()
        await other.publish("news", "1")
        assert (await reading).data == "1"
        del reading
        await has_connections(consumer, 1)


async def test_clients_that_are_dropped(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster(max_connections=MAX_CONNECTIONS)
    async with soon():
        for number in range(TIMES):
            client = nodes.client([producer], [consumer])
            await client.publish("news", str(number))
            client.publish_nowait("news", "not awaited")
            del client
            await has_connections(producer, 0)
    await eventually(lambda: consumer.counters["messages_in"] == 2 * TIMES, "all are stored")


async def test_the_last_reference_may_be_dropped_in_a_thread(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    holders = [nodes.client([producer], [consumer])]
    await holders[0].publish("news", "1")
    await eventually(lambda: len(producer.connections) == 1, "it is connected")
    thread = threading.Thread(target=holders.clear)
    thread.start()
    thread.join()
    await has_connections(producer, 0)


async def test_messages_that_a_dropped_client_cannot_send_are_in_the_log(nodes: Nodes, log: Log) -> None:
    consumer, producer = await nodes.cluster()
    client = nodes.client([producer], [consumer], OTHER_KEY)
    for data in "abc":
        client.publish_nowait("news", data)
    del client
    dropped = await eventually(lambda: log.lines("client dropped", logging.WARNING), "it is logged")
    assert dropped[0].startswith("client dropped unconfirmed=3 reason=")


@pytest.mark.parametrize("topics", [1, 3])
async def test_at_a_classic_consumer(nodes: Nodes, topics: int) -> None:
    names = [f"topic {number}" for number in range(topics)]
    classic = IndependentConsumer(KEY, "document")

    async def has_subscribers(count: int) -> None:
        await eventually(lambda: sum(map(len, classic.subscribers.values())) == count, f"{count} subscribers")

    async with soon(), serving(classic.handle) as address, nodes.client([address], [address]) as client:
        reading = asyncio.ensure_future(anext(client.subscribe(*names)))
        await has_subscribers(topics)
        reading.cancel()
        await asyncio.wait([reading])
        del reading
        await has_subscribers(0)
