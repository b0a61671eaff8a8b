"""Peers that break protocol v2: the node says why, closes the connection, and serves all others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import msgspec
import pytest
from websockets.frames import Opcode

import wsqueue
from wsqueue.nodes import consumer as consumer_module

from ..support.classic_peer import IndependentConsumer, serving
from ..support.nodes import KEY, Log, Nodes
from ..support.raw_v2_peer import (
    V2Server,
    V2Socket,
    data_of,
    deliver_of,
    encoded,
    forward_of,
    messages_of,
    new_nonce,
    new_secret,
    publish_of,
)
from ..support.waiting import eventually, soon
from .test_hostile_peers import Bystanders, closed_with

pytestmark = pytest.mark.anyio

LIMITS: dict[str, Any] = {"max_message_bytes": 4096, "max_topic_bytes": 32}
OVERHEAD_BYTES = 4096
"""Most bytes of a frame besides a message."""

ENDPOINTS = ["/producer", "/subscribe", "/subscribe/news", "/produce"]
at_every_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS)

UNEXPECTED = (4409, "this endpoint does not take that packet")
LARGEST = 2**53 - 1

GOOD: dict[str, dict[str, Any]] = {
    "challenge": {"t": "challenge", "nonce": new_nonce()},
    "proof": {"t": "proof", "proof": new_nonce()},
    "initiator's proof": {"t": "proof", "proof": new_nonce(), "nonce": new_nonce(), "path": "/"},
    "publisher": new_secret(),
    "publish": publish_of(1, "news", "x"),
    "forward": forward_of(1, "news", "x"),
    "ack": {"t": "ack", "numbers": [[1, 1]]},
    "refused": {"t": "refused", "number": 1, "code": "full", "reason": "no"},
    "a range that is refused": {"t": "refused", "number": 1, "code": "full", "reason": "no", "last": 2},
    "subscribe": {"t": "subscribe", "topic": "news"},
    "subscribe to the last": {"t": "subscribe", "topic": "news", "start": "last", "count": 1},
    "subscribed": {"t": "subscribed", "topic": "news", "log": "x", "offset": 0, "end": 0},
    "unsubscribe": {"t": "unsubscribe", "topic": "news"},
    "unsubscribed": {"t": "unsubscribed", "topic": "news"},
    "deliver": deliver_of(0, "news", "x"),
    "gap": {"t": "gap", "topic": "news", "offset": 0, "missed": 1},
    "follow": {"t": "follow", "prefix": "news"},
    "followed": {"t": "followed", "prefix": "news"},
    "draining": {"t": "draining", "retry_seconds": 1.0},
    "log": {"t": "log", "id": "x", "available": True},
    "alive": {"t": "alive"},
}
"""One packet of each kind."""

TAKEN = {
    "/produce": {"publisher"},
    "/producer": {"forward"},
    "/subscribe": {"subscribe", "subscribe to the last", "unsubscribe", "follow"},
    "/subscribe/news": {"subscribe", "subscribe to the last", "unsubscribe", "follow"},
}
"""Packets that may come first after the hello."""


@at_every_endpoint
async def test_every_packet_that_an_endpoint_does_not_take_ends_the_connection(
    nodes: Nodes, log: Log, endpoint: str
) -> None:
    async with soon(), Bystanders.of(nodes, **LIMITS) as bystanders:
        node = bystanders.node(endpoint)
        for name, packet in GOOD.items():
            if name in TAKEN[endpoint]:
                continue
            async with V2Socket.speaking(node.address, endpoint, KEY) as raw:
                raw.send(packet)
                # A publisher has to name itself first, with its secret.
                code, reason = {
                    "challenge": (4404, "a second challenge in the hello"),
                    "proof": (4403, "a second answer in the hello"),
                    "initiator's proof": (4403, "a second answer in the hello"),
                }.get(name, UNEXPECTED)
                if (endpoint, name) == ("/produce", "publish"):
                    reason = "a publisher says first who it is"
                elif endpoint.startswith("/subscribe") and code == 4409:
                    reason = "publish at a producer's /produce"
                await closed_with(raw, code, reason)
        await bystanders.are_served()
        count = len(GOOD) - len(TAKEN[endpoint])
        await eventually(
            lambda: len(log.lines("connection closed ", logging.WARNING)) == count, "all are logged"
        )
        assert not [name for name in node.counters if name.startswith("refused_")]


@at_every_endpoint
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\xa9ask_alive",
        b"\x91" * 2000 + b"\x90",
        encoded(publish_of(1, "news", messages=msgspec.Raw(b"\x91" * 2000 + b"\x90"))),
        encoded(forward_of(1, "news", messages=msgspec.Raw(b"\x91" * 2000 + b"\x90"))),
        encoded({"t": "publish", "number": 1, "after": 0, "topic": "news"}),
        encoded({"t": "forward", "publisher": "p", "number": 1, "after": 0, "topic": "news"}),
        b'{"t":"ask_alive"}',
        encoded({"t": "ask_alive"})[:-1],
        encoded({"t": "ask_alive"}) + b"\0",
        encoded({"t": b"ask_alive"}),
        encoded({"t": "ask_alive?"}),
        encoded({b"t": "ask_alive"}),
        encoded({"t": msgspec.Raw(b"\xa2\xff\xfe")}),
        encoded({"t": msgspec.msgpack.Ext(5, b"ask_alive")}),
    ],
)
async def test_bytes_that_are_no_packet_end_the_connection(
    nodes: Nodes, endpoint: str, payload: bytes
) -> None:
    async with soon(), Bystanders.of(nodes, **LIMITS) as bystanders:
        async with V2Socket.speaking(bystanders.node(endpoint).address, endpoint, KEY) as raw:
            raw.send_frame(Opcode.BINARY, payload)
            await closed_with(raw, 4400, "not a valid packet: ")
        await bystanders.are_served()


@at_every_endpoint
@pytest.mark.parametrize("hello_done", [False, True])
async def test_a_text_ends_the_connection(nodes: Nodes, endpoint: str, hello_done: bool) -> None:
    way = V2Socket.speaking if hello_done else V2Socket.upgraded
    key = (KEY,) if hello_done else ()
    async with soon(), Bystanders.of(nodes, **LIMITS) as bystanders:
        async with way(bystanders.node(endpoint).address, endpoint, *key) as raw:
            raw.send_frame(Opcode.TEXT, b'{"t":"ask_alive"}')
            await closed_with(raw, 1003, "packets of v2 are binary messages, classic ones are texts")
        await bystanders.are_served()


async def test_unknown_fields_change_nothing(nodes: Nodes) -> None:
    """A peer of a newer version may know more."""
    more = {"new": [{"in": msgspec.msgpack.Ext(7, b"x")}], "newer": None, "messages2": b"x"}
    consumer, producer = await nodes.cluster()
    async with (
        soon(),
        V2Socket.speaking(consumer.address, "/subscribe", KEY) as subscriber,
        V2Socket.speaking(producer.address, "/produce", KEY) as raw,
    ):
        subscriber.send({"t": "subscribe", "topic": "news"} | more)
        await subscriber.next("subscribed")
        raw.send(more | new_secret())
        raw.send(publish_of(1, "news", "x", messages=more | messages_of("x")) | more)
        await raw.confirmed(1)
        packet = await subscriber.next("deliver")
        assert (data_of(packet), set(packet["messages"])) == (["x"], {"sizes", "data"})


def raw_messages(**changes: object) -> bytes:
    """Return one good message with some fields that differ, as it travels; None leaves a field out."""
    fields = messages_of("x") | changes
    return encoded({name: value for name, value in fields.items() if value is not None})


POISON = {
    "nothing": encoded(None),
    "a number": encoded(1),
    "a text": encoded("x"),
    "a list": encoded(["x"]),
    "an empty map": encoded({}),
    "numbers for names": encoded({1: [1], 2: b"x"}),
    "another type": encoded(msgspec.msgpack.Ext(5, b"x")),
    "nested deeply": b"\x91" * 200 + b"\x90",
    "no sizes": raw_messages(sizes=None),
    "no data": raw_messages(data=None),
    "no messages": raw_messages(sizes=[], data=b""),
    "sizes of nothing": raw_messages(sizes=[]),
    "too few bytes": raw_messages(sizes=[2]),
    "too many bytes": raw_messages(sizes=[0]),
    "too many messages": raw_messages(sizes=[1, 1]),
    "a huge size": raw_messages(sizes=[2**64 - 1]),
    "a negative size": raw_messages(sizes=[2, -1]),
    "half a size": raw_messages(sizes=[0.5, 0.5]),
    "sizes that are texts": raw_messages(sizes=["1"]),
    "a single size": raw_messages(sizes=1),
    "data that is a text": raw_messages(data="x"),
    "data that is a list": raw_messages(data=[120]),
    "data of no known kind": raw_messages(text=0),
    "headers of nobody": raw_messages(headers=[]),
    "headers of others": raw_messages(headers=[None, {"id": "1"}]),
    "headers that are no list": raw_messages(headers={"id": "1"}),
    "headers that are no map": raw_messages(headers=["id"]),
    "too many headers": raw_messages(headers=[{f"{number}": "" for number in range(17)}]),
    "a header without a name": raw_messages(headers=[{"": "x"}]),
    "a long name of a header": raw_messages(headers=[{"n" * 65: "x"}]),
    "a long header": raw_messages(headers=[{"id": "x" * 1025}]),
    "a header that is a number": raw_messages(headers=[{"id": 1}]),
    "a header of bytes": raw_messages(headers=[{"id": b"1"}]),
    "a header that is no UTF-8": raw_messages(headers=[{"id": msgspec.Raw(b"\xa1\xff")}]),
    "a header with a lone surrogate": raw_messages(headers=[{"id": msgspec.Raw(b"\xa3\xed\xa0\x80")}]),
}


class TestBatches:
    @pytest.mark.parametrize("name", POISON)
    @pytest.mark.parametrize("classic", [False, True])
    async def test_a_poison_batch_is_refused_alone(
        self, nodes: Nodes, log: Log, name: str, classic: bool
    ) -> None:
        """Others publish before it and after it, through the same link, in the same turn."""
        async with soon(), contextlib.AsyncExitStack() as stack:
            if classic:
                independent = IndependentConsumer(KEY, "document")
                address = await stack.enter_async_context(serving(independent.handle))
                producer = await nodes.producer([address], **LIMITS)
            else:
                consumer = await nodes.consumer(**LIMITS)
                address, producer = consumer.address, await nodes.producer([consumer], **LIMITS)
            await producer.ready()
            link = producer.links[0].connection
            client = await stack.enter_async_context(nodes.client([producer], [address]))
            subscriber = await stack.enter_async_context(client.subscribe("news"))
            raw = await stack.enter_async_context(V2Socket.speaking(producer.address, "/produce", KEY))
            raw.send(new_secret())
            raw.send(publish_of(1, "news", "good"))
            await raw.confirmed(1)
            assert (await anext(subscriber)).data == "good"
            raw.send(publish_of(2, "news", messages=msgspec.Raw(POISON[name])))
            raw.send(publish_of(3, "news", "good again"))
            publishing = asyncio.create_task(client.publish("news", "of another"))
            refused = await raw.next("refused")
            assert (refused["number"], refused["code"]) == (2, "invalid")
            await raw.confirmed(3)
            heard = sorted([(await anext(subscriber)).data for _ in range(2)])
            assert heard == ["good again", "of another"]
            await publishing
            assert producer.links[0].connection is link
            assert log.lines("link down ") == []
            await stack.aclose()
            await producer.crash()

    @pytest.mark.parametrize("sizes", [[LARGEST], [1] * 1000, [2**64 - 1] * 100])
    async def test_sizes_are_believed_when_the_data_has_shown_them(
        self, nodes: Nodes, sizes: list[int]
    ) -> None:
        async with soon(), Bystanders.of(nodes, **LIMITS) as bystanders:
            consumer, producer = bystanders.consumer, bystanders.producer
            before = consumer.counters["messages_in"], producer.counters["messages_in"]
            async with V2Socket.speaking(consumer.address, "/producer", KEY) as raw:
                raw.send(forward_of(1, "news", messages=messages_of("x") | {"sizes": sizes}))
                assert (await raw.next("refused"))["code"] == "invalid"
            async with V2Socket.speaking(producer.address, "/produce", KEY) as raw:
                raw.send(new_secret())
                raw.send(publish_of(1, "news", messages=messages_of("x") | {"sizes": sizes}))
                assert (await raw.next("refused"))["code"] == "invalid"
            assert (consumer.counters["messages_in"], producer.counters["messages_in"]) == before
            await bystanders.are_served()

    async def test_a_producer_that_forwards_poison_is_refused_these_batches(self, nodes: Nodes) -> None:
        async with soon(), Bystanders.of(nodes, **LIMITS) as bystanders:
            consumer = bystanders.consumer
            async with V2Socket.speaking(consumer.address, "/producer", KEY) as raw:
                for position, name in enumerate(POISON):
                    raw.send(forward_of(position + 1, "news", messages=msgspec.Raw(POISON[name])))
                    raw.send(forward_of(position + 1, "sport", "good"))
                    refused = await raw.next("refused")
                    assert (name, refused["number"], refused["code"]) == (name, 2 * position + 1, "invalid")
                    await raw.confirmed(2 * position + 2)
            assert consumer.counters["batches_refused_invalid"] == len(POISON)
            await bystanders.are_served()

    async def test_a_batch_that_no_consumer_takes_is_refused_by_the_producer(self, nodes: Nodes) -> None:
        async with soon(), Bystanders.of(nodes, **LIMITS) as bystanders:
            async with V2Socket.speaking(bystanders.producer.address, "/produce", KEY) as raw:
                raw.send(new_secret())
                for number, topic, data, code in (
                    (1, "x" * 33, "", "topic_too_long"),
                    (2, "ñ" * 17, "", "topic_too_long"),
                    (3, "news", "x" * (4096 + OVERHEAD_BYTES - 150), "too_long"),
                ):
                    raw.send(publish_of(number, topic, data))
                    refused = await raw.next("refused")
                    assert (refused["number"], refused["code"]) == (number, code)
                raw.send(publish_of(4, "x" * 32, "good"))
                await raw.confirmed(4)
            await bystanders.are_served()


class TestSubscribers:
    async def test_topics_of_a_connection_are_limited(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(consumer_module, "MAX_TOPICS_PER_CONNECTION", 500)
        async with soon(), Bystanders.of(nodes) as bystanders:
            async with V2Socket.speaking(bystanders.consumer.address, "/subscribe", KEY) as raw:
                for number in range(500):
                    raw.send({"t": "subscribe", "topic": str(number)})
                for _ in range(500):
                    await raw.next("subscribed")
                raw.send({"t": "unsubscribe", "topic": "0"})
                await raw.next("unsubscribed")
                raw.send({"t": "subscribe", "topic": "one more"})
                await raw.next("subscribed")
                raw.send({"t": "subscribe", "topic": "too many"})
                await closed_with(raw, 4413, "at most 500")
            await eventually(lambda: len(bystanders.consumer.consumer.readers) == 0, "all are forgotten")
            await bystanders.are_served()

    async def test_a_topic_that_is_too_long_ends_the_connection(self, nodes: Nodes) -> None:
        async with soon(), Bystanders.of(nodes, **LIMITS) as bystanders:
            async with V2Socket.speaking(bystanders.consumer.address, "/subscribe", KEY) as raw:
                raw.send({"t": "subscribe", "topic": "x" * 33})
                await closed_with(raw, 4410, "at most 32 bytes")
            await bystanders.are_served()


class TestConsumers:
    @pytest.mark.parametrize(
        "packet",
        [
            {"t": "ack", "numbers": [[1, 2]]},
            {"t": "refused", "number": LARGEST, "code": "full", "reason": "no"},
            {"t": "refused", "number": 1, "code": "full", "reason": "no", "last": LARGEST},
            {"t": "refused", "number": 2, "code": "full", "reason": "no", "last": 1},
            GOOD["deliver"],
        ],
    )
    async def test_a_consumer_that_answers_what_was_not_sent_is_left(
        self, nodes: Nodes, packet: dict[str, Any]
    ) -> None:
        async with soon(), V2Server() as server:
            producer = await nodes.producer([server.address])
            consumer = await server.speaking(KEY)
            async with V2Socket.speaking(producer.address, "/produce", KEY) as raw:
                raw.send(new_secret())
                raw.send(publish_of(1, "news", "1"))
                await consumer.next("forward")
                consumer.send(packet)
                await closed_with(consumer, *UNEXPECTED)
                await consumer.abort()
                # The batch is not lost by it.
                again = await server.speaking(KEY)
                assert data_of(await again.next("forward")) == ["1"]
                again.send({"t": "ack", "numbers": [[1, 1]]})
                await raw.confirmed(1)
                # Answers that come twice change nothing.
                again.send({"t": "ack", "numbers": [[1, 1]]})
                again.send({"t": "refused", "number": 1, "code": "full", "reason": "no"})
                again.send({"t": "draining", "retry_seconds": 0})
                raw.send(publish_of(2, "news", "2"))
                await again.next("forward")
                again.send({"t": "ack", "numbers": [[2, 2]]})
                again.send({"t": "refused", "number": 1, "code": "full", "reason": "no", "last": 2})
                await raw.confirmed(2)
            await producer.crash()


class TestClients:
    @pytest.mark.parametrize("name", ["a list", "no messages", "too few bytes", "headers of others"])
    async def test_a_client_leaves_a_consumer_that_delivers_poison(self, nodes: Nodes, name: str) -> None:
        async with soon(), V2Server() as server, nodes.client([server.address], [server.address]) as client:
            waiting = asyncio.ensure_future(anext(client.subscribe("news")))
            consumer = await server.speaking(KEY)
            await consumer.next("subscribe")
            consumer.send(GOOD["subscribed"])
            consumer.send(deliver_of(0, "news", messages=msgspec.Raw(POISON[name])))
            code, reason = await consumer.close_frame()
            assert (code, reason[:20]) == (4400, "not a valid packet: ")
            await consumer.abort()
            with pytest.raises(wsqueue.ConnectError, match="not a valid packet"):
                await waiting

    async def test_a_client_ignores_what_it_did_not_ask_for(self, nodes: Nodes) -> None:
        async with soon(), V2Server() as server, nodes.client([server.address], [server.address]) as client:
            publishing = asyncio.create_task(client.publish("news", "1"))
            producer = await server.speaking(KEY)
            await producer.next("publisher")
            await producer.next("publish")
            for numbers in ([[2, LARGEST]], [[5, 2]]):
                producer.send({"t": "ack", "numbers": numbers})
            producer.send({"t": "refused", "number": 7, "code": "full", "reason": "no"})
            for name in ("deliver", "gap", "subscribed", "unsubscribed"):
                producer.send(GOOD[name])
            producer.send_frame(Opcode.PING, b"done")
            assert await producer.until(Opcode.PONG) == b"done"
            assert not publishing.done()
            producer.send({"t": "ack", "numbers": [[1, LARGEST]]})
            await publishing
            messages = client.subscribe("news")
            waiting = asyncio.ensure_future(anext(messages))
            consumer = await server.speaking(KEY)
            await consumer.next("subscribe")
            other = {"topic": "other"}
            for name in ("deliver", "gap", "subscribed", "unsubscribed"):
                consumer.send(GOOD[name] | other)
            consumer.send(GOOD["subscribed"])
            consumer.send(GOOD["deliver"])
            assert (await waiting) == wsqueue.Message("news", "x", "x", 0)
            closing = asyncio.create_task(client.close())
            for node in (producer, consumer):
                await node.answer_close()
                node.writer.write_eof()
            await closing
