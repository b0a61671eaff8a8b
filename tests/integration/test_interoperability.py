"""An independent classic peer, in both orders of the digest, against every endpoint and both ways."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import pytest
from websockets.asyncio.client import connect

import wsqueue
from wsqueue.client.values import Start

from ..support.classic_peer import (
    ORDERS,
    IndependentConsumer,
    IndependentProducer,
    Order,
    RefusedError,
    answer_of,
    connected,
    serving,
)
from ..support.nodes import KEY, OTHER_KEY, Log, Nodes, RunningNode
from ..support.ports import free_port
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

TOPICS = ["news", "orders/eu/42", "a b", "日本語 😀", "", "100%", "%2F"]
TOPICS += ["?#&=+;@:", "../x", '"\\\x00\n', "x" * 256]

both_orders = pytest.mark.parametrize("order", ORDERS)


@both_orders
@pytest.mark.parametrize("topic", TOPICS)
async def test_a_peer_publishes_and_subscribes(nodes: Nodes, order: Order, topic: str) -> None:
    consumer, producer = await nodes.cluster()
    data = ["hello", "", "ñ 日本 😀 \x00 \"'\\", "y" * 70_000]
    async with (
        soon(),
        connected(consumer.subscribe_url(topic), KEY, order) as subscriber,
        connected(producer.url("/produce"), KEY, order) as publisher,
    ):
        await consumer.subscribed(topic)
        await publisher.publish(topic, *data)
        assert await subscriber.messages(len(data)) == [(topic, one) for one in data]


@both_orders
async def test_a_peer_is_a_producer(nodes: Nodes, order: Order) -> None:
    consumer = await nodes.consumer()
    async with (
        soon(),
        connected(consumer.subscribe_url("news"), KEY, order) as subscriber,
        connected(consumer.url("/producer"), KEY, order) as producer,
    ):
        await consumer.subscribed("news")
        await producer.publish("news", "1", "2", "3")
        assert await subscriber.data(3) == ["1", "2", "3"]
        assert consumer.counters["messages_in"] == consumer.counters["deliveries"] == 3


async def test_a_message_comes_as_the_same_strings_however_it_was_written(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    payload = '{ "s" : "n\\u0065ws",\n"d":"\\u00f1 \\ud83d\\ude00","t":"m"}'
    async with (
        soon(),
        connected(consumer.subscribe_url("news"), KEY) as subscriber,
        connected(producer.url("/produce"), KEY) as publisher,
    ):
        await consumer.subscribed("news")
        await publisher.socket.send(payload)
        assert await subscriber.receive() == {"t": "m", "d": "ñ 😀", "s": "news"}


@pytest.mark.parametrize("endpoint", ["/producer", "/subscribe/news", "/produce"])
async def test_a_hello_holds_nothing_but_what_the_wire_demands(nodes: Nodes, endpoint: str) -> None:
    node = await node_with(nodes, endpoint)
    async with soon(), connect(node.url(endpoint), proxy=None) as socket:
        challenge = json.loads(await socket.recv())
        assert set(challenge) == {"t", "o"}
        await socket.send(json.dumps({"t": "h", "o": 255}))
        await socket.send(json.dumps({"t": "h", "a": answer_of(challenge["o"], KEY)}))
        assert json.loads(await socket.recv()) == {"t": "h", "a": answer_of(255, KEY)}


@both_orders
@pytest.mark.parametrize("endpoint", ["/producer", "/subscribe/news", "/produce"])
async def test_a_peer_with_another_key_learns_that_it_is_refused(
    nodes: Nodes, order: Order, endpoint: str
) -> None:
    node = await node_with(nodes, endpoint)
    with pytest.raises(RefusedError):
        async with soon(), connected(node.url(endpoint), OTHER_KEY, order):
            pass
    await eventually(lambda: node.counters["refused_4401"] == 1, "the refusal is counted")


@both_orders
async def test_our_client_works_with_independent_nodes(nodes: Nodes, order: Order) -> None:
    consumers = [IndependentConsumer(KEY, order) for _ in range(2)]
    async with serving(consumers[0].handle) as first, serving(consumers[1].handle) as second:
        producer = IndependentProducer(KEY, order, [f"ws://{first}/producer", f"ws://{second}/producer"])
        async with (
            soon(),
            serving(producer.handle) as address,
            nodes.client([address], [first, second], hello_order=wsqueue.Order(order)) as client,
            client.subscribe(*TOPICS) as messages,
        ):
            await eventually(
                lambda: sum(len(consumer.subscribers) for consumer in consumers) == len(TOPICS), "subscribed"
            )
            for topic in TOPICS:
                await client.publish(topic, f"data of {topic}")
                assert await anext(messages) == wsqueue.Message(topic, f"data of {topic}")
            await client.flush()


@both_orders
async def test_our_producer_works_with_an_independent_consumer(nodes: Nodes, order: Order) -> None:
    independent = IndependentConsumer(KEY, order)
    async with soon(), serving(independent.handle) as address:
        producer = await nodes.producer([address], hello_order=order)
        await producer.ready()
        async with (
            connected(f"ws://{address}/subscribe/news", KEY, order) as subscriber,
            connected(producer.url("/produce"), KEY, order) as publisher,
        ):
            await eventually(lambda: independent.subscribers["news"], "subscribed")
            await publisher.publish("news", "1", "2", "3")
            assert await subscriber.data(3) == ["1", "2", "3"]
        await producer.stop()


async def test_a_client_in_the_wrong_order_is_told_so(nodes: Nodes) -> None:
    async with (
        asyncio.timeout(5),
        serving(IndependentConsumer(KEY, "reversed").handle) as address,
        nodes.client([address], [address], open_seconds=0.5) as client,
    ):
        with pytest.raises(wsqueue.ConnectError):
            await anext(client.subscribe("news"))


async def test_all_subscribers_hear_all_producers_whenever_those_connected(nodes: Nodes) -> None:
    consumer = await nodes.consumer()
    early = await nodes.producer([consumer])
    await early.ready()
    async with (
        soon(),
        connected(early.url("/produce"), KEY) as first_publisher,
        connected(consumer.subscribe_url("news"), KEY) as first,
        connected(consumer.subscribe_url("news"), KEY, "reversed") as second,
        connected(consumer.subscribe_url("sport"), KEY) as other,
    ):
        await consumer.subscribed("news", 2)
        await consumer.subscribed("sport")
        late = await nodes.producer([consumer])
        await late.ready()
        async with connected(late.url("/produce"), KEY) as second_publisher:
            await first_publisher.publish("news", "early")
            assert [await first.data(1), await second.data(1)] == [["early"], ["early"]]
            await second_publisher.publish("news", "late")
            assert [await first.data(1), await second.data(1)] == [["late"], ["late"]]
            await second_publisher.publish("sport", "other")
            assert await other.messages(1) == [("sport", "other")]


async def test_a_link_to_a_classic_consumer_that_is_made_again_is_warned_of(nodes: Nodes, log: Log) -> None:
    """Subscribers of an original consumer may hear nothing more of it, and nothing else says so."""
    port = free_port()
    async with soon():
        consumer = IndependentConsumer(KEY, "document")
        async with serving(consumer.handle, port) as address:
            producer = await nodes.producer([address])
            await producer.ready()
            assert log.lines("classic link made again") == []
        async with serving(consumer.handle, port):
            (line,) = await eventually(lambda: log.lines("classic link made again"), "it is logged")
            assert line.startswith(f"classic link made again peer={address}/producer advice=")
            await producer.ready()
            assert [link.link_status().remade for link in producer.links] == [1]
            ours = await nodes.consumer()
            other = await nodes.producer([ours])
            await other.ready()
            await ours.crash()
            await ours.restart()
            assert len(log.lines("classic link made again")) == 1


@pytest.mark.parametrize("start", ["earliest", 7, -7, wsqueue.Position("log", 7), datetime.now(UTC)])
async def test_a_classic_consumer_keeps_nothing_to_begin_with(nodes: Nodes, start: Start) -> None:
    consumer = IndependentConsumer(KEY, "document")
    async with soon(), serving(consumer.handle) as address, nodes.client([address], [address]) as client:
        for _ in range(2):
            with pytest.raises(wsqueue.ConnectError, match=r"classic.*can only begin with the next message"):
                async with client.subscribe("news", start=start):
                    pass
        with pytest.raises(wsqueue.ConnectError, match=r"classic.*can only begin with the next message"):
            await anext(client.subscribe("news", start=start))
        async with client.subscribe("news"):
            assert len(consumer.subscribers["news"]) == 1


async def test_a_subscriber_that_is_gone_is_forgotten(nodes: Nodes) -> None:
    consumer = await nodes.consumer()
    async with soon(), connected(consumer.url("/producer"), KEY) as producer:
        async with connected(consumer.subscribe_url("news"), KEY):
            await consumer.subscribed("news")
        await consumer.subscribed("news", 0)
        assert len(consumer.consumer.topics) == 0
        await producer.publish("news", "nobody")
        await eventually(lambda: consumer.counters["without_subscriber"] == 1, "it is counted")


async def node_with(nodes: Nodes, endpoint: str) -> RunningNode:
    consumer = await nodes.consumer()
    return await nodes.producer([consumer]) if endpoint == "/produce" else consumer
