"""Protocol v2 and the classic one side by side: on the same topics, on mixed nodes, and with several keys."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from websockets.frames import Opcode

import wsqueue
from wsqueue.config.model import ClientConfig

from ..support.classic_peer import (
    ORDERS,
    IndependentConsumer,
    IndependentProducer,
    Order,
    RefusedError,
    connected,
    serving,
    topic_of,
)
from ..support.keys import psk_of
from ..support.nodes import KEY, OTHER_KEY, Nodes, RunningNode, cut
from ..support.ports import free_port
from ..support.raw_peer import RawSocket, http_get, request_of
from ..support.raw_v2_peer import V2Socket, forward_of
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

NODES_KEY = psk_of("nodes")
THIRD_KEY = psk_of("somebody else")
both_orders = pytest.mark.parametrize("order", ORDERS)


class TestMixedTopics:
    async def test_subscribers_of_both_protocols_get_the_same(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            client.subscribe("news") as messages,
            connected(consumer.subscribe_url("news"), KEY) as subscriber,
            connected(producer.url("/produce"), KEY, "reversed") as publisher,
            connected(consumer.url("/producer"), KEY) as classic_producer,
        ):
            await consumer.subscribed("news", 2)
            expected: list[str] = []
            for number in range(20):
                await client.publish("news", f"v2 {number}", f"v2 {number} again")
                await publisher.publish("news", f"classic {number}")
                await taken_in(consumer, len(expected) + 3)
                await classic_producer.publish("news", f"direct {number}")
                await (await classic_producer.socket.ping())
                expected += [f"v2 {number}", f"v2 {number} again", f"classic {number}", f"direct {number}"]
            assert await subscriber.data(80) == expected
            found = [await anext(messages) for _ in range(80)]
            assert [message.data for message in found] == expected
            assert [message.offset for message in found] == list(range(80))
            earliest = client.subscribe("news", start="earliest", follow=False)
            assert [message.data async for message in earliest] == expected

    async def test_each_publisher_keeps_its_order(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        count = 500
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            client.subscribe("news") as messages,
            connected(consumer.subscribe_url("news"), KEY) as subscriber,
            connected(producer.url("/produce"), KEY) as publisher,
        ):
            await consumer.subscribed("news", 2)

            async def publish_v2() -> None:
                for number in range(count):
                    client.publish_nowait("news", f"v2 {number}")
                    await asyncio.sleep(0)

            heard = asyncio.create_task(subscriber.data(2 * count))
            await asyncio.gather(
                publish_v2(), publisher.publish("news", *(f"classic {number}" for number in range(count)))
            )
            received = [(await anext(messages)).data for _ in range(2 * count)]
            texts = await heard
            assert texts == received
            for kind in ("v2", "classic"):
                numbers = [int(text.split()[1]) for text in texts if text.startswith(kind)]
                assert numbers == list(range(count))

    async def test_classic_messages_survive_a_link_that_is_cut(self, nodes: Nodes) -> None:
        """Between nodes that speak v2 they are numbered and sent again; only the publisher does not know."""
        consumer, producer = await nodes.cluster()
        count = 400
        async with (
            soon(),
            connected(consumer.subscribe_url("news"), KEY) as subscriber,
            connected(producer.url("/produce"), KEY) as publisher,
        ):
            await consumer.subscribed("news")
            heard = asyncio.create_task(subscriber.data(count))
            for begin in range(0, count, 20):
                await publisher.publish("news", *map(str, range(begin, begin + 20)))
                await taken_in(producer, begin + 1)
                connection = producer.links[0].connection
                if connection is not None:
                    cut(connection)
            assert await heard == list(map(str, range(count)))
            assert producer.counters["lost_in_flight"] == 0
            assert consumer.counters["deliveries"] == count


class TestMixedNodes:
    @both_orders
    async def test_a_client_publishes_through_nodes_of_both_kinds(self, nodes: Nodes, order: Order) -> None:
        """It moves from a classic producer to ours and back, and from a classic consumer to ours."""
        ours = await nodes.consumer()
        async with soon(), contextlib.AsyncExitStack() as stack:
            independent = IndependentConsumer(KEY, order)
            theirs = await stack.enter_async_context(serving(independent.handle))
            producer = await nodes.producer([ours, theirs], hello_order=order)
            await producer.ready()
            classic = IndependentProducer(KEY, order, [ours.url("/producer"), f"ws://{theirs}/producer"])
            classic_address = await stack.enter_async_context(serving(classic.handle))
            topics = [topic_of(index, 2) for index in range(2)]
            for first in (producer, classic_address):
                async with (
                    nodes.client([first], [ours, theirs], hello_order=wsqueue.Order(order)) as client,
                    client.subscribe(*topics) as messages,
                ):
                    await ours.subscribed(topics[0])
                    await eventually(lambda: independent.subscribers[topics[1]], "subscribed")
                    for topic in topics:
                        await client.publish(topic, *map(str, range(100)))
                        received = [await anext(messages) for _ in range(100)]
                        assert [message.data for message in received] == list(map(str, range(100)))
                        assert {bool(message.log) for message in received} == {topic == topics[0]}
                    assert client.lost_in_flight == 0
            await producer.stop()


class TestKeys:
    @pytest.mark.parametrize("endpoint", ["/produce", "/producer", "/subscribe", "/subscribe/news"])
    async def test_an_acceptor_takes_each_of_its_keys(self, nodes: Nodes, endpoint: str) -> None:
        consumer = await nodes.consumer(key=f"{KEY}\n{OTHER_KEY}\n")
        producer = await nodes.producer([consumer], key=f"{KEY}\n{OTHER_KEY}\n")
        node = producer if endpoint == "/produce" else consumer
        for key in (KEY, OTHER_KEY):
            async with soon(), V2Socket.speaking(node.address, endpoint, key) as raw:
                raw.send_frame(Opcode.PING, b"well?")
                assert await raw.until(Opcode.PONG) == b"well?"
            if endpoint != "/subscribe":
                async with soon(), connected(node.url(endpoint), key, "reversed"):
                    pass
        async with soon(), V2Socket.upgraded(node.address, endpoint) as raw:
            await raw.prove_wrongly(THIRD_KEY, endpoint)
            assert (await raw.close_frame())[0] == 4401
        await eventually(lambda: node.counters["refused_4401"] == 1, "it is counted")

    async def test_a_key_is_rotated_without_a_pause(self, nodes: Nodes) -> None:
        """First all nodes accept the new key, then all use it, then none accepts the old one."""
        consumer = await nodes.consumer(port=free_port())
        producer = await nodes.producer([consumer], port=free_port())
        await producer.ready()
        async with soon():
            for keys in (f"{KEY}\n{OTHER_KEY}", f"{OTHER_KEY}\n{KEY}", OTHER_KEY):
                for node in (consumer, producer):
                    node.write_psk(keys)
                    await node.service.reload()
                link = producer.links[0].connection
                assert link is not None
                cut(link)
                await eventually(lambda: producer.links[0].connection not in (None, link), "it is up again")  # noqa: B023
                for key in keys.split("\n"):
                    async with nodes.client([producer], [consumer], key) as client:
                        await client.publish("news", key)
                        messages = client.subscribe("news", start="earliest", follow=False)
                        assert [message.data async for message in messages][-1] == key
                        assert producer.counters["refused_4401"] == consumer.counters["refused_4401"] == 0
            async with nodes.client([producer], [consumer], KEY) as client:
                with pytest.raises(wsqueue.AuthenticationError):
                    await client.publish("news", "the old key")

    async def test_who_knows_the_key_of_clients_is_no_producer(self, nodes: Nodes) -> None:
        (nodes.directory / "nodes.psk").write_text(NODES_KEY)
        (nodes.directory / "nodes.psk").chmod(0o600)
        consumer = await nodes.consumer(node_psk_file="nodes.psk")
        producer = await nodes.producer([consumer], node_psk_file="nodes.psk")
        await producer.ready()
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            client.subscribe("news") as messages,
        ):
            async with V2Socket.upgraded(consumer.address, "/producer") as raw:
                await raw.prove_wrongly(KEY, "/producer")
                assert await raw.close_frame() == (4401, "wrong answer: the pre-shared keys differ")
            with pytest.raises(RefusedError):
                async with connected(consumer.url("/producer"), KEY):
                    pass
            await eventually(lambda: consumer.counters["refused_4401"] == 2, "both are counted")
            for path, node in (("/subscribe", consumer), ("/produce", producer)):
                async with V2Socket.upgraded(node.address, path) as raw:
                    await raw.prove_wrongly(NODES_KEY, path)
                    assert (await raw.close_frame())[0] == 4401
            async with V2Socket.speaking(consumer.address, "/producer", NODES_KEY) as raw:
                raw.send(forward_of(1, "news", "from a node"))
                await raw.confirmed(1)
            await client.publish("news", "from a client")
            assert [(await anext(messages)).data for _ in range(2)] == ["from a node", "from a client"]


class TestWithoutClassic:
    async def test_a_node_refuses_classic_peers(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster(allow_classic=False)
        for node, path in ((consumer, "/producer"), (consumer, "/subscribe/news"), (producer, "/produce")):
            async with soon(), RawSocket.open(node.address) as raw:
                raw.writer.write(request_of(path))
                assert await raw.page() == (426, "Expected the subprotocol wsqueue.v2.\n")
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            client.subscribe("news") as messages,
        ):
            await client.publish("news", "1")
            assert (await anext(messages)).data == "1"
        assert (await http_get(consumer.address, "/healthz"))[0] == 200

    async def test_a_link_refuses_a_classic_consumer(self, nodes: Nodes) -> None:
        independent = IndependentConsumer(KEY, "document")
        async with soon(), serving(independent.handle) as address:
            producer = await nodes.producer([address], allow_classic=False)
            link = producer.links[0]
            await eventually(lambda: link.addresses[0] in link.failures, "it is refused")
            assert link.failures[link.addresses[0]].code == 4412
            assert link.connection is None

    async def test_a_client_refuses_classic_nodes(self, nodes: Nodes) -> None:
        independent = IndependentConsumer(KEY, "document")
        async with soon(), serving(independent.handle) as address:
            config = ClientConfig(
                producers=[f"{address}/produce"], consumers=[f"{address}/subscribe"], allow_classic=False
            )
            async with wsqueue.connect(config, psk=KEY) as client:
                with pytest.raises(wsqueue.ConnectError, match="4412"):
                    await client.publish("news", "1")
                with pytest.raises(wsqueue.ConnectError, match="4412"):
                    await anext(client.subscribe("news"))


async def taken_in(node: RunningNode, count: int) -> None:
    """Wait until a node has received a number of messages."""
    await eventually(lambda: node.counters["messages_in"] >= count, "they are taken in")
