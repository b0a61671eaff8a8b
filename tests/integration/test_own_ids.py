"""Messages with ids of the application's own, published again by later runs of its program."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest

import wsqueue
from wsqueue.client import outbox

from ..support.classic_peer import IndependentProducer, serving
from ..support.nodes import KEY, Nodes
from ..support.ports import free_port
from ..support.raw_v2_peer import V2Server, data_of, public_id_of
from ..support.waiting import soon

pytestmark = pytest.mark.anyio

SECRET = secrets.token_bytes(32)


async def stored(client: wsqueue.Client, topic: str) -> list[str | bytes]:
    return [message.data async for message in client.subscribe(topic, start="earliest", follow=False)]


@pytest.mark.parametrize("mode", ["memory", "sqlite"])
async def test_a_program_that_begins_again_stores_nothing_twice(nodes: Nodes, mode: str) -> None:
    """Also when consumer and producer were restarted in between."""
    kept: dict[str, Any] = {"retention": {"mode": mode, "directory": f"{nodes.directory}/log"}}
    consumer = await nodes.consumer(port=free_port(), **kept)
    producer = await nodes.producer([consumer], port=free_port())
    async with soon(), nodes.client([producer], [consumer], publisher_secret=SECRET) as first:
        for number, topic in ((1, "news"), (2, "news"), (4, "sport"), (9, "news")):
            await first.publish(topic, str(number), headers={"id": str(number)}, id=number)
        with pytest.raises(ValueError, match="the id 4 is not above 9"):
            await first.publish("sport", "4", id=4)
    for node in (producer, consumer):
        await node.stop()
        await node.restart()
    async with soon(), nodes.client([producer], [consumer], publisher_secret=SECRET) as second:
        rows = [(2, "news"), (4, "sport"), (5, "sport"), (9, "news"), (12, "news"), (13, "sport")]
        await asyncio.gather(*(second.publish(topic, str(number), id=number) for number, topic in rows))
        assert await stored(second, "news") == ["1", "2", "9", "12"]
        assert await stored(second, "sport") == ["4", "5", "13"]
    assert consumer.counters["repeats"] == 3
    async with (
        soon(),
        nodes.client([producer], [consumer], publisher_secret=secrets.token_bytes(32)) as other,
    ):
        await other.publish("news", "of another", id=1)
        assert await stored(other, "news") == ["1", "2", "9", "12", "of another"]


async def test_many_calls_have_their_order_and_travel_together(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them the window holds: one that waited would be overtaken."""
    monkeypatch.setattr(outbox, "WINDOW_MESSAGES", 10)
    count = 1000
    async with soon(), V2Server() as server:
        producer = await nodes.producer([server.address])
        link = await server.speaking(KEY)
        async with nodes.client([producer], [server.address], publisher_secret=SECRET) as client:
            calls = [
                asyncio.create_task(client.publish("news", str(each), id=each))
                for each in range(1, count + 1)
            ]
            got: list[str | bytes] = []
            packets = 0
            while len(got) < count:
                forward = await link.next("forward")
                assert forward["publisher"] == public_id_of(SECRET)
                assert forward["counts"] == [1] * len(forward["numbers"])
                assert forward["numbers"] == list(map(int, data_of(forward)))
                got += data_of(forward)
                packets += 1
            link.send({"t": "ack", "numbers": [[1, count]]})
            await asyncio.gather(*calls)
        assert got == [str(each) for each in range(1, count + 1)]
        assert packets < count / 20
        stopping = asyncio.create_task(producer.stop())
        await link.answer_close()
        await link.abort()
        await stopping


async def test_what_was_refused_is_published_again_by_another_client(nodes: Nodes) -> None:
    async with soon(), V2Server() as server:
        producer = await nodes.producer([server.address])
        link = await server.speaking(KEY)
        async with nodes.client([producer], [server.address], publisher_secret=SECRET) as first:
            calls = [asyncio.create_task(first.publish("news", str(each), id=each)) for each in (1, 2)]
            assert data_of(await link.next("forward")) == ["1", "2"]
            link.send({"t": "refused", "number": 1, "last": 2, "code": "full", "reason": "no room"})
            for call in calls:
                with pytest.raises(wsqueue.PublishError, match="no room"):
                    await call
            with pytest.raises(wsqueue.PublishError, match="the message with the id 1 was refused") as caught:
                await first.publish("news", "3", id=3)
            assert caught.value.code == "after_refused"
        async with nodes.client([producer], [server.address], publisher_secret=SECRET) as second:
            for each in (1, 2, 3):
                second.publish_nowait("news", str(each), id=each)
                # Each in a packet of its own, so that the producer sees which one it comes after.
                forward = await link.next("forward")
                assert (forward["numbers"], forward["after"]) == ([each], each - 1)
            link.send({"t": "ack", "numbers": [[3, 5]]})
            await second.flush()
        stopping = asyncio.create_task(producer.stop())
        await link.answer_close()
        await link.abort()
        await stopping


async def test_a_classic_producer_is_not_used(nodes: Nodes) -> None:
    """It would store messages again that come again."""
    producer = IndependentProducer(KEY, "document", [])
    async with soon(), serving(producer.handle) as address:
        client = nodes.client([address], [address], publisher_secret=SECRET)
        with pytest.raises(wsqueue.ConnectError, match="this end does not speak the classic protocol"):
            async with client:
                await client.publish("news", "1", id=1)
