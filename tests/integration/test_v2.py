"""Protocol v2 between clients and nodes: confirms, resends, logs, gaps, keys and drains."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from websockets.frames import Opcode

import wsqueue
from wsqueue.client.publisher import PublisherLink
from wsqueue.client.subscriber import SubscriberLink
from wsqueue.client.values import Start
from wsqueue.net.connection import Connection
from wsqueue.net.link import Link
from wsqueue.nodes.consumer_link import ConsumerLink
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.session import Event

from ..support.classic_peer import topic_of
from ..support.nodes import KEY, Nodes, RunningNode
from ..support.ports import free_port
from ..support.raw_v2_peer import V2Server, V2Socket, data_of, forward_of, public_id_of
from ..support.system_clock import SystemClock
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

SQLITE = "sqlite"
MODES = pytest.mark.parametrize("mode", ["memory", SQLITE])


@pytest.fixture(autouse=True)
def begin_with_the_first_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.randrange", lambda _count: 0)


def kept(nodes: Nodes, mode: str = "memory", **limits: int) -> dict[str, Any]:
    """Return the settings of a consumer whose logs outlive a stop."""
    return {"retention": {"mode": mode, "directory": f"{nodes.directory}/log", **limits}}


async def all_of(client: wsqueue.Client, topic: str, start: Start = "earliest") -> list[str | bytes]:
    """Return the data of all that a consumer keeps of a topic."""
    return [message.data async for message in client.subscribe(topic, start=start, follow=False)]


class TestConfirms:
    async def test_publish_returns_when_the_consumer_has_confirmed(self, nodes: Nodes) -> None:
        async with soon(), V2Server() as server:
            producer = await nodes.producer([server.address])
            consumer = await server.speaking(KEY)
            async with nodes.client([producer], [server.address]) as client:
                publishing = asyncio.create_task(client.publish("news", "1", "2"))
                forward = await consumer.next("forward")
                assert (forward["topic"], data_of(forward)) == ("news", ["1", "2"])
                flushing = asyncio.create_task(client.flush())
                assert await asyncio.wait({publishing, flushing}, timeout=0.1) == (
                    set(),
                    {publishing, flushing},
                )
                consumer.send({"t": "ack", "numbers": [[1, 1]]})
                await publishing
                await flushing
            stopping = asyncio.create_task(producer.stop())
            await consumer.answer_close()
            await consumer.abort()
            await stopping

    async def test_a_flush_ends_although_others_go_on_publishing(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with asyncio.timeout(5), nodes.client([producer], [consumer]) as client:
            stop = asyncio.Event()

            async def publish_for_ever() -> None:
                while not stop.is_set():
                    await client.drain()
                    client.publish_nowait("news", "x" * 1000)
                    await asyncio.sleep(0)

            publishing = asyncio.create_task(publish_for_ever())
            await eventually(lambda: consumer.counters["messages_in"], "it has begun")
            try:
                async with asyncio.timeout(3):
                    await client.flush()
            finally:
                stop.set()
                await publishing

    async def test_a_refusal_is_raised_where_it_belongs(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(max_topic_bytes=8)
        producer = await nodes.producer([consumer])
        async with soon(), nodes.client([producer], [consumer]) as client:
            publishing = asyncio.create_task(client.publish("too long a topic", "1"))
            client.publish_nowait("news", "2")
            with pytest.raises(wsqueue.PublishError, match="max_topic_bytes") as caught:
                await publishing
            assert caught.value.code == "topic_too_long"
            await client.flush()
            client.publish_nowait("too long a topic", "3")
            with pytest.raises(wsqueue.PublishError) as caught:
                await client.flush()
            assert caught.value.code == "topic_too_long"
            await client.flush()
            assert await all_of(client, "news") == ["2"]
            assert consumer.counters["batches_refused_topic_too_long"] == 2
            assert producer.links[0].connection

    async def test_closing_raises_what_nobody_has_heard_of(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(max_topic_bytes=8)
        producer = await nodes.producer([consumer])
        with pytest.raises(wsqueue.PublishError, match="max_topic_bytes"):
            async with soon(), nodes.client([producer], [consumer]) as client:
                client.publish_nowait("too long a topic", "3")

    async def test_small_limits_make_small_batches(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster(max_message_bytes=2000)
        data = [f"{number:100}" for number in range(1000)]
        async with soon(), nodes.client([producer], [consumer], max_message_bytes=2000) as client:
            for one in data:
                client.publish_nowait("news", one)
            await client.flush()
            assert await all_of(client, "news") == data


class TestResends:
    async def test_what_a_producer_did_not_confirm_goes_through_another(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer()
        second = await nodes.producer([consumer])
        async with soon(), V2Server() as server:
            client = nodes.client([server.address, second], [consumer])
            async with client:
                for number in range(100):
                    client.publish_nowait("news", str(number))
                    await asyncio.sleep(0)
                first = await server.speaking(KEY)
                secret = (await first.next("publisher"))["secret"]
                taken = [await first.next("publish") for _ in range(2)]
                # It has passed these on, and vanishes before it could say so.
                async with V2Socket.speaking(consumer.address, "/producer", KEY) as link:
                    for batch in taken:
                        number, topic, messages = batch["number"], batch["topic"], batch["messages"]
                        fields = {"publisher": public_id_of(secret), "after": batch["after"]}
                        link.send(forward_of(number, topic, messages=messages, **fields))
                    await link.confirmed(1, 2)
                await first.abort()
                await client.flush()
                assert await all_of(client, "news") == [str(number) for number in range(100)]
                assert consumer.counters["repeats"] == 2
                assert second.counters["messages_in"] == 100
            assert client.lost_in_flight == 0

    async def test_a_link_that_is_cut_at_any_moment_loses_nothing(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        consumer = await nodes.consumer()
        producers = [await nodes.producer([consumer], reconnect_max_seconds=0.01) for _ in range(2)]
        for producer in producers:
            await producer.ready()
        cut_some(monkeypatch, ConsumerLink, v2.Ack)
        await publish_while(nodes, producers, consumer, lambda number: cut_links(producers[number % 2]))
        assert consumer.counters["repeats"]

    async def test_a_publisher_that_is_cut_off_at_any_moment_loses_nothing(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        consumer = await nodes.consumer()
        producers = [await nodes.producer([consumer]) for _ in range(2)]
        for producer in producers:
            await producer.ready()
        cut_some(monkeypatch, PublisherLink, v2.Ack)

        def cut(_number: int) -> None:
            for producer in producers:
                for connection in list(producer.connections):
                    connection.abort(CloseCode.ABNORMAL)

        await publish_while(nodes, producers, consumer, cut)
        assert consumer.counters["repeats"]

    async def test_a_subscriber_that_is_cut_off_at_any_moment_misses_nothing(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        consumer, producer = await nodes.cluster()
        cut_some(monkeypatch, SubscriberLink, v2.Deliver)

        def cut(_number: int) -> None:
            for connection in subscribers(consumer):
                connection.abort(CloseCode.ABNORMAL)

        await publish_while(nodes, [producer], consumer, cut)

    async def test_a_publisher_whose_producer_drains_goes_elsewhere_at_once(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It neither waits, as after a connection that was lost, nor hears of an error."""
        monkeypatch.setattr(PublisherLink, "delay_seconds", lambda _link, _rounds: 3600.0)
        consumer = await nodes.consumer()
        producers = [await nodes.producer([consumer], port=free_port()) for _ in range(2)]
        for producer in producers:
            await producer.ready()
        async with soon(), nodes.client(producers, [consumer], open_seconds=0.5) as client:
            count = itertools.count()

            async def publish_for_ever() -> None:
                while True:
                    await client.publish("news", str(next(count)))

            publishing = asyncio.create_task(publish_for_ever())
            for turn in range(4):
                node, other = producers[turn % 2], producers[1 - turn % 2]
                await used(node)
                await node.stop()
                await used(other)
                await node.restart()
                await node.ready()
            publishing.cancel()
            await asyncio.wait([publishing])
            assert publishing.cancelled()
            await client.flush()
            assert await all_of(client, "news") == [str(number) for number in range(next(count))]

    async def test_a_draining_producer_says_so_before_it_closes(self, nodes: Nodes) -> None:
        _, producer = await nodes.cluster()
        async with soon(), V2Socket.speaking(producer.address, "/produce", KEY) as raw:
            draining = asyncio.create_task(producer.stop())
            assert set(await raw.next("draining")) == {"t", "retry_seconds"}
            assert await raw.close_frame() == (1001, "draining")
            raw.send_frame(Opcode.CLOSE, (1001).to_bytes(2))
            raw.writer.write_eof()
            await draining


async def publish_while(nodes: Nodes, producers: list[RunningNode], consumer: RunningNode, harm: Any) -> None:
    """Publish on two topics while harm is done again and again; see that nothing is lost or comes twice."""
    count, topics = 400, ("news", "sport")
    async with (
        soon(),
        nodes.client(producers, [consumer], reconnect_max_seconds=0.01) as client,
        client.subscribe(*topics) as messages,
    ):

        async def publish() -> None:
            for number in range(count):
                for topic in topics:
                    client.publish_nowait(topic, f"{number} {'x' * (number % 7 * 3000)}")
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                if number % 20 == 19:
                    harm(number)
                    await client.flush()
            await client.flush()

        publishing = asyncio.create_task(publish())
        received: dict[str, list[int]] = {topic: [] for topic in topics}
        for _ in range(count * len(topics)):
            message = await anext(messages)
            received[message.topic].append(int(message.data.split()[0]))
        await publishing
        assert received == {topic: list(range(count)) for topic in topics}
        for topic in topics:
            earliest = client.subscribe(topic, start="earliest", follow=False)
            stored = [(message.offset, int(message.data.split()[0])) async for message in earliest]
            # A message that was stored twice would have two offsets.
            assert stored == list(zip(range(count), range(count), strict=True))
        assert client.lost_in_flight == 0


async def used(producer: RunningNode) -> None:
    """Wait until a client publishes through a producer."""
    await eventually(lambda: producer.counters["messages_in"], "it is used")


def cut_some(monkeypatch: pytest.MonkeyPatch, kind: type[Link], packet: type[object]) -> None:
    """Cut links each time that several packets of a kind have come, of which the last is lost."""
    received_events, count = kind.received_events, itertools.count()

    def receive(link: Link, events: list[Event]) -> None:
        if any(isinstance(event, packet) for event in events) and next(count) % 5 == 3:
            assert link.connection is not None
            link.connection.abort(CloseCode.ABNORMAL)
        else:
            received_events(link, events)

    monkeypatch.setattr(kind, "received_events", receive)


def cut_links(producer: RunningNode) -> None:
    for link in producer.links:
        if link.connection is not None:
            link.connection.abort(CloseCode.ABNORMAL)


def subscribers(consumer: RunningNode) -> list[Connection]:
    return [
        connection
        for connection in consumer.connections
        if connection.handler is not None and connection.handler.peer_role == "subscriber"
    ]


class TestLogs:
    @MODES
    async def test_a_subscription_begins_where_it_is_told_to(self, nodes: Nodes, mode: str) -> None:
        consumer = await nodes.consumer(**kept(nodes, mode))
        producer = await nodes.producer([consumer])
        async with soon(), nodes.client([producer], [consumer]) as client:
            await client.publish("news", *"abc")
            middle = datetime.now(UTC)
            # So that the time of the next is another one.
            await eventually(lambda: datetime.now(UTC) > middle, "time passes")
            await client.publish("news", *"def")
            everything = [
                message async for message in client.subscribe("news", start="earliest", follow=False)
            ]
            assert [(message.data, message.offset) for message in everything] == list(
                zip("abcdef", range(6), strict=True)
            )
            assert {message.log for message in everything} == {consumer.consumer.logs.epochs.current.id}
            assert await all_of(client, "news", 0) == list("abcdef")
            assert await all_of(client, "news", 1) == list("bcdef")
            assert await all_of(client, "news", 5) == ["f"]
            assert await all_of(client, "news", 6) == []
            assert await all_of(client, "news", -1) == ["f"]
            assert await all_of(client, "news", -4) == list("cdef")
            assert await all_of(client, "news", -20) == list("abcdef")
            assert await all_of(client, "sport", -20) == []
            assert await all_of(client, "news", everything[1].after) == list("cdef")
            assert await all_of(client, "news", everything[5].after) == []
            assert await all_of(client, "news", middle) == list("def")
            assert await all_of(client, "news", datetime.fromtimestamp(0, UTC)) == list("abcdef")
            assert await all_of(client, "news", datetime.fromtimestamp(2**33, UTC)) == []
            assert await all_of(client, "news", "latest") == []
            assert await all_of(client, "sport") == []
            async with client.subscribe("news") as latest, client.subscribe("news", start=4) as later:
                await client.publish("news", "g")
                assert (await anext(latest)).data == "g"
                assert [(await anext(later)).data for _ in range(3)] == list("efg")

    async def test_several_topics_end_together(self, nodes: Nodes) -> None:
        consumers = [await nodes.consumer() for _ in range(2)]
        producer = await nodes.producer(consumers)
        topics = [topic_of(index, 2, prefix) for index in range(2) for prefix in ("a", "b")]
        async with soon(), nodes.client([producer], consumers) as client:
            for topic in topics[1:]:
                await client.publish(topic, *(f"{topic} {number}" for number in range(3000)))
            received: dict[str, list[str | bytes]] = {topic: [] for topic in topics}
            async for message in client.subscribe(*topics, topics[0], start="earliest", follow=False):
                received[message.topic].append(message.data)
            assert received == {topics[0]: []} | {
                topic: [f"{topic} {number}" for number in range(3000)] for topic in topics[1:]
            }

    async def test_the_last_messages_of_each_topic_come_once(self, nodes: Nodes) -> None:
        """A lost connection is followed by one at the position that the subscription has come to."""
        consumers = [await nodes.consumer() for _ in range(2)]
        producer = await nodes.producer(consumers)
        topics = [topic_of(index, 2, prefix) for index in range(2) for prefix in ("a", "b")]
        async with soon(), nodes.client([producer], consumers) as client:
            for topic in topics[1:]:
                await client.publish(topic, *(f"{number}" for number in range(10)))
            received: dict[str, list[str | bytes]] = {topic: [] for topic in topics}
            async with client.subscribe(*topics, start=-3) as messages:
                for number in range(10, 14):
                    for topic in topics:
                        await client.publish(topic, f"{number}")
                    while not all(one[-1:] == [f"{number}"] for one in received.values()):
                        message = await anext(messages)
                        received[message.topic].append(message.data)
                    for consumer in consumers:
                        for connection in subscribers(consumer):
                            connection.abort(CloseCode.ABNORMAL)
            after = [f"{number}" for number in range(10, 14)]
            assert received == {topics[0]: after} | {topic: ["7", "8", "9", *after] for topic in topics[1:]}

    async def test_what_was_trimmed_is_an_exact_gap(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(**kept(nodes, max_messages_per_topic=10))
        producer = await nodes.producer([consumer])
        async with soon(), nodes.client([producer], [consumer]) as client:
            for number in range(30):
                await client.publish("news", str(number))
            start = wsqueue.Position(consumer.consumer.logs.epochs.current.id, 5)
            messages = client.subscribe("news", start=start, follow=False)
            with pytest.raises(wsqueue.GapError, match="15 messages of topic 'news' are gone") as caught:
                await anext(messages)
            assert (caught.value.topic, caught.value.missed) == ("news", 15)
            assert [message.data async for message in messages] == [str(number) for number in range(20, 30)]
            yielding = client.subscribe("news", start=start, follow=False, on_gap="yield")
            assert await anext(yielding) == wsqueue.Gap("news", 15)
            assert len([item async for item in yielding]) == 10
            # Who asks for the earliest that there is misses nothing, nor who asks for more than there are.
            assert len(await all_of(client, "news")) == 10
            assert len(await all_of(client, "news", -20)) == 10
            assert len(await all_of(client, "news", datetime.fromtimestamp(0, UTC))) == 10

    @MODES
    async def test_a_clean_restart_loses_nothing(self, nodes: Nodes, mode: str) -> None:
        consumer = await nodes.consumer(port=free_port(), **kept(nodes, mode))
        producer = await nodes.producer([consumer])
        await publish_over_restarts(nodes, producer, consumer, consumer.stop)

    async def test_a_crash_loses_nothing_that_is_on_disk(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(port=free_port(), **kept(nodes, SQLITE))
        producer = await nodes.producer([consumer])
        await publish_over_restarts(nodes, producer, consumer, consumer.crash)

    async def test_a_crash_that_loses_what_was_in_memory_is_announced(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(port=free_port())
        producer = await nodes.producer([consumer])
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            client.subscribe("news", on_gap="yield") as messages,
            client.subscribe("news") as raising,
        ):
            await client.publish("news", "before")
            for subscription in (messages, raising):
                item = await anext(subscription)
                assert isinstance(item, wsqueue.Message)
                assert item.data == "before"
            await consumer.crash()
            await consumer.restart()
            await client.publish("news", "after")
            assert await anext(messages) == wsqueue.Gap("news", None)
            with pytest.raises(wsqueue.GapError, match="some messages of topic 'news' are gone"):
                await anext(raising)
            for subscription in (messages, raising):
                item = await anext(subscription)
                assert isinstance(item, wsqueue.Message)
                assert (item.data, item.offset) == ("after", 0)

    @MODES
    async def test_a_directory_that_is_put_back_from_a_copy_is_a_gap(self, nodes: Nodes, mode: str) -> None:
        consumer = await nodes.consumer(port=free_port(), **kept(nodes, mode))
        producer = await nodes.producer([consumer])
        log, copy = nodes.directory / "log", nodes.directory / "copy"
        async with soon(), nodes.client([producer], [consumer]) as client:
            await client.publish("news", *(f"{number}" for number in range(100)))
            shared = [message async for message in client.subscribe("news", start="earliest", follow=False)]
            await consumer.stop()
            shutil.copytree(log, copy)
            await consumer.restart()
            await client.publish("news", *(f"lost {number}" for number in range(100)))
            lost = [message async for message in client.subscribe("news", start=100, follow=False)]
            await consumer.stop()
            shutil.rmtree(log)
            shutil.copytree(copy, log)
            await consumer.restart()
            new = [f"new {number}" for number in range(150)]
            await client.publish("news", *new)
            start = lost[-1].after
            items = [
                item async for item in client.subscribe("news", start=start, follow=False, on_gap="yield")
            ]
            assert items[0] == wsqueue.Gap("news", None)
            assert [item.data for item in items if isinstance(item, wsqueue.Message)][-150:] == new
            # Who had read only what is still there goes on.
            assert await all_of(client, "news", shared[-1].after) == new
            assert await all_of(client, "news", shared[41].after) == [f"{n}" for n in range(42, 100)] + new

    async def test_a_machine_that_may_have_been_set_back_begins_an_epoch(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        system = SystemClock(monkeypatch)
        consumer, producer = await nodes.cluster()
        logs = consumer.consumer.logs

        def behind() -> float:
            log_status = consumer.service.reporter.report().log
            assert log_status is not None
            return -log_status.clock_seconds

        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            client.subscribe("news") as messages,
        ):
            await client.publish("news", "a", "b")
            before = [await anext(messages) for _ in range(2)]
            system.set_by = 3.0
            await eventually(lambda: behind() > 2, "the step is seen")
            await client.publish("news", "c")
            assert (await anext(messages)).log == before[-1].log, "so little is not worth it"
            system.set_by += 3600.0
            await eventually(lambda: logs.epochs.current.id != before[-1].log, "an epoch begins")
            await client.publish("news", "d", "e")
            after = [await anext(messages) for _ in range(2)]
            assert after[-1].log == logs.epochs.current.id
            assert [message.data for message in [*before, *after]] == ["a", "b", "d", "e"]
            # Positions of either go on without a gap; one that was lost with the machine's future doesn't.
            assert await all_of(client, "news", before[-1].after) == ["c", "d", "e"]
            assert await all_of(client, "news", after[0].after) == ["e"]
            lost = wsqueue.Position(before[-1].log, 4)
            items = client.subscribe("news", start=lost, follow=False, on_gap="yield")
            found = [item async for item in items]
            assert found[0] == wsqueue.Gap("news", None)
            assert [item.data for item in found if isinstance(item, wsqueue.Message)] == ["d", "e"]
        assert logs.epochs.current.number == 2

    async def test_an_absent_subscriber_gets_what_it_missed(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with soon(), nodes.client([producer], [consumer]) as client:
            async with client.subscribe("news") as messages:
                await client.publish("news", *"abc")
                last = await anext(messages)
            await client.publish("news", *"def")
            async with client.subscribe("news", start=last.after) as messages:
                assert [(await anext(messages)).data for _ in range(5)] == list("bcdef")

    async def test_many_topics_on_one_connection(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        topics = [f"topic {number}" for number in range(1500)]
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            client.subscribe(*topics) as messages,
        ):
            assert len(subscribers(consumer)) == 2
            for topic in topics:
                client.publish_nowait(topic, f"of {topic}")
            await client.flush()
            received = {message.topic: message.data async for message in first(messages, len(topics))}
            assert received == {topic: f"of {topic}" for topic in topics}

    async def test_a_topic_is_given_up_and_taken_again(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            V2Socket.speaking(consumer.address, "/subscribe", KEY) as raw,
        ):
            for topic in ("a", "b"):
                raw.send({"t": "subscribe", "topic": topic})
                assert (await raw.next("subscribed"))["topic"] == topic
            raw.send({"t": "unsubscribe", "topic": "a"})
            raw.send({"t": "unsubscribe", "topic": "never subscribed"})
            assert (await raw.next("unsubscribed"))["topic"] == "a"
            assert (await raw.next("unsubscribed"))["topic"] == "never subscribed"
            await client.publish("a", "not wanted")
            await client.publish("b", "wanted")
            assert await raw.delivered(1) == ["wanted"]
            raw.send({"t": "subscribe", "topic": "a", "start": "earliest"})
            assert (await raw.next("subscribed"))["offset"] == 0
            assert await raw.delivered(1) == ["not wanted"]
            # Subscribing again begins anew.
            raw.send({"t": "subscribe", "topic": "a", "start": "earliest"})
            assert (await raw.next("subscribed"))["offset"] == 0
            assert await raw.delivered(1) == ["not wanted"]
            await client.publish("a", "once")
            await client.publish("a", "more")
            assert await raw.delivered(2) == ["once", "more"]
        await eventually(lambda: len(consumer.consumer.readers) == 0, "nobody subscribes any more")


async def first(
    messages: wsqueue.Subscription[wsqueue.Message], count: int
) -> AsyncIterator[wsqueue.Message]:
    for _ in range(count):
        yield await anext(messages)


async def publish_over_restarts(
    nodes: Nodes, producer: RunningNode, consumer: RunningNode, end: Callable[[], Awaitable[None]]
) -> None:
    """Publish while the consumer ends and comes back; see that nothing is lost."""
    count = 300
    async with soon(), nodes.client([producer], [consumer]) as client, client.subscribe("news") as messages:

        async def restart() -> None:
            for _ in range(3):
                before = consumer.counters["messages_in"]
                await eventually(lambda: consumer.counters["messages_in"] > before, "something comes")  # noqa: B023
                await end()
                await consumer.restart()

        async def publish() -> None:
            for number in itertools.count():
                await client.publish("news", str(number))
                if restarting.done() and number >= count:
                    return

        restarting = asyncio.create_task(restart())
        publishing = asyncio.create_task(publish())
        received = [int(message.data) async for message in first(messages, count)]
        await publishing
        await restarting
        assert received == list(range(count))
        stored = [int(data) for data in await all_of(client, "news")]
        assert stored == list(range(len(stored)))
        assert len(stored) > count


class TestSlowSubscribers:
    @MODES
    async def test_one_that_falls_behind_catches_up_without_loss(self, nodes: Nodes, mode: str) -> None:
        consumer = await nodes.consumer(**kept(nodes, mode))
        producer = await nodes.producer([consumer])
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            slow_subscriber(consumer) as slow,
            client.subscribe("news") as messages,
        ):
            data = [f"{number:10000}" for number in range(800)]
            await client.publish("news", *data)
            received = [message.data async for message in first(messages, len(data))]
            assert received == data
            assert consumer.counters["fell_behind"] >= 1
            assert max(connection.buffered_bytes for connection in consumer.connections) < 2 * 1024 * 1024
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert await slow.delivered(len(data)) == data
            await client.publish("news", "live again")
            assert await slow.delivered(1) == ["live again"]
            assert consumer.counters["gaps"] == 0
            assert consumer.counters["slow_subscribers"] == 0

    @MODES
    async def test_one_that_is_too_far_behind_gets_an_exact_gap(self, nodes: Nodes, mode: str) -> None:
        consumer = await nodes.consumer(**kept(nodes, mode, max_messages_per_topic=20))
        producer = await nodes.producer([consumer])
        async with soon(), nodes.client([producer], [consumer]) as client, slow_subscriber(consumer) as slow:
            count = 0
            for _ in range(30):
                await client.publish("news", *(f"{count + number:60000}" for number in range(10)))
                count += 10
            assert consumer.counters["fell_behind"] >= 1
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
            received: list[int] = []
            missed = offset = 0
            while received[-1:] != [count - 1]:
                packet = await slow.packet()
                if packet["t"] == "gap":
                    missed += packet["missed"]
                    offset += packet["missed"]
                    assert packet["offset"] == offset
                else:
                    assert packet["offset"] == offset
                    offset += len(data_of(packet))
                    received += map(int, data_of(packet))
            assert received == sorted(set(received))
            assert 0 < missed == count - len(received)


@contextlib.asynccontextmanager
async def slow_subscriber(consumer: RunningNode) -> AsyncIterator[V2Socket]:
    """Subscribe to `news`, and read nothing more."""
    async with V2Socket.speaking(consumer.address, "/subscribe", KEY, receive_buffer=4096) as slow:
        slow.send({"t": "subscribe", "topic": "news"})
        await slow.next("subscribed")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        yield slow
