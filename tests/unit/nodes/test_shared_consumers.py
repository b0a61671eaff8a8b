"""Consumers that share a log, with connections that the test plays and an engine in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.fake_connection import FakeConnection
from tests.support.fake_engine import FakeEngine, FakeLog, Fate
from tests.support.messages import packed
from tests.support.session_pair import PSK
from tests.support.stores import Clock
from wsqueue.config.keys import Keys
from wsqueue.config.model import ConsumerConfig, JetStream, Retention
from wsqueue.log.engine import Place, place_of
from wsqueue.log.shared import SharedStore
from wsqueue.net.certificates import TlsContexts
from wsqueue.net.connection import Handler
from wsqueue.nodes import consumer as module
from wsqueue.nodes.clients import Clients
from wsqueue.nodes.consumer import Consumer, ProducerEndpoint
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode, Closed

pytestmark = pytest.mark.anyio

STREAMS = 2
LOST = Closed(CloseCode.ABNORMAL, "lost", by_peer=True)
SHARED = v2.Log("the log", available=True)


class Shared:
    """A consumer on a log, whose requests take the time that a test lets them take."""

    def __init__(self, log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine, self.clock = FakeEngine(log), Clock()
        self.gates: dict[int, asyncio.Event] = {}
        append = self.engine.append

        async def gated(place: Place, data: bytes, after: int) -> int:
            if place.stream in self.gates:
                await self.gates[place.stream].wait()
            return await append(place, data, after)

        self.engine.append = gated  # type: ignore[method-assign]
        jetstream = JetStream(servers=["nats://127.0.0.1:1"], streams=STREAMS)
        config = ConsumerConfig(
            listen=["127.0.0.1:1"], retention=Retention(mode="jetstream", jetstream=jetstream)
        )

        def make_store(config: ConsumerConfig, done: Any, _clock: Any) -> SharedStore:
            return SharedStore(
                config.retention, done, self.clock, engine=self.engine, streams=STREAMS, pause=pause
            )

        monkeypatch.setattr(module, "make_store", make_store)
        self.consumer = Consumer(config, Keys(PSK, PSK), Counter(), TlsContexts(config), Clients(Counter()))

    def connected(self, path: str) -> tuple[Handler, FakeConnection]:
        endpoint, connection = self.consumer.endpoint(path), FakeConnection()
        assert isinstance(endpoint, Handler)
        endpoint.established(connection)
        return endpoint, connection


async def pause(seconds: float) -> None:
    for _ in range(50 if seconds >= 1 else 1):
        await asyncio.sleep(0)


async def settled(condition: Callable[[], bool] = lambda: False, turns: int = 2000) -> None:
    """Let the loop turn until a condition holds, or some turns."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def two_consumers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Shared]]:
    log = FakeLog(STREAMS)
    consumers = [Shared(log, monkeypatch), Shared(log, monkeypatch)]
    for one in consumers:
        await one.consumer.start()
    yield consumers
    for one in consumers:
        await one.consumer.stop()


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Shared]]:
    async with two_consumers(monkeypatch) as consumers:
        yield consumers


def topic_in(stream: int) -> str:
    return next(f"t{n}" for n in range(99) if place_of(f"t{n}", STREAMS).stream == stream)


def chain(topic: str, *numbers: int, after: int = 0, publisher: str = "p") -> v2.Forward:
    messages = packed(*map(str, numbers))
    return v2.Forward(publisher, list(numbers), after, topic, [1] * len(numbers), messages)


def messages_in(packets: list[v2.Packet]) -> list[str | bytes]:
    return [message for one in packets if isinstance(one, v2.Deliver) for message in one.messages.unpack()]


async def test_peers_hear_first_which_log_it_is(two: list[Shared]) -> None:
    for path in ("/producer", "/subscribe"):
        assert two[0].connected(path)[1].take() == [SHARED]


async def test_peers_hear_whether_the_log_can_be_reached(two: list[Shared]) -> None:
    endpoint, producer = two[0].connected("/producer")
    subscriber = two[0].connected("/subscribe")[1]
    gone_endpoint, gone = two[0].connected("/subscribe")
    gone_endpoint.lost(gone, LOST)
    for connection in (producer, subscriber, gone):
        connection.take()
    two[0].engine.is_connected = False
    endpoint.received(producer, [chain("news", 1)])
    for _ in range(200):
        await asyncio.sleep(0.02)
        if subscriber.packets:
            break
    assert producer.take() == subscriber.take() == [v2.Log("the log", available=False)]
    assert two[0].consumer.not_ready() == "the shared log can't be reached"
    two[0].engine.is_connected = True
    await settled(lambda: len(producer.packets) == 2)
    assert producer.take() == [SHARED, v2.Ack([(1, 1)])]
    assert two[0].consumer.not_ready() == ""
    assert gone.take() == []


async def test_a_producer_is_answered_in_its_order(two: list[Shared]) -> None:
    """Topics complete in any order, and an answer stands for all batches before it."""
    slow, fast = topic_in(0), topic_in(1)
    endpoint, producer = two[0].connected("/producer")
    subscriber_endpoint, subscriber = two[0].connected("/subscribe")
    subscriber_endpoint.received(subscriber, [v2.Subscribe(fast)])
    await settled(lambda: len(subscriber.packets) == 2)
    producer.take()
    subscriber.take()
    gate = two[0].gates[0] = asyncio.Event()
    endpoint.received(producer, [chain(fast, 1), chain(slow, 2), chain(fast, 3, 4, after=1)])
    endpoint.received(producer, [chain(fast, 9, after=8), chain(fast, 5, after=4)])
    await settled(lambda: len(messages_in(subscriber.packets)) == 4)
    # They are delivered at once, and confirmed up to the one that is not stored.
    assert messages_in(subscriber.take()) == ["1", "3", "4", "5"]
    assert producer.take() == [v2.Ack([(1, 1)])]
    assert isinstance(endpoint, ProducerEndpoint)
    early = endpoint._producers[producer].early
    assert [one.chain.messages.count for one in early.values()] == [0, 0, 0]
    gate.set()
    await settled(lambda: len(producer.packets) == 3)
    first, refused, last = producer.take()
    assert (first, last) == (v2.Ack([(2, 4)]), v2.Ack([(6, 6)]))
    assert isinstance(refused, v2.Refused)
    assert (refused.number, refused.last, refused.code) == (5, None, "after_refused")


async def test_a_producer_that_is_gone_is_not_answered(two: list[Shared]) -> None:
    gate = two[0].gates[0] = asyncio.Event()
    endpoint, producer = two[0].connected("/producer")
    endpoint.received(producer, [chain(topic_in(0), 1)])
    endpoint.lost(producer, LOST)
    gate.set()
    await settled(turns=200)
    other_endpoint, other = two[1].connected("/producer")
    other.take()
    other_endpoint.received(other, [chain(topic_in(0), 1)])
    await settled(lambda: bool(other.packets))
    assert other.take() == [v2.Ack([(1, 1)])]
    assert two[1].consumer.counters["repeats"] == 1


async def test_a_subscriber_goes_on_at_another_consumer(two: list[Shared]) -> None:
    producer_endpoint, producer = two[0].connected("/producer")
    endpoint, subscriber = two[0].connected("/subscribe")
    endpoint.received(subscriber, [v2.Subscribe("news")])
    await settled(lambda: len(subscriber.packets) == 2)
    (_, begun) = subscriber.take()
    assert isinstance(begun, v2.Subscribed)
    assert (begun.offset, begun.end) == (0, 0)
    producer_endpoint.received(producer, [chain("news", 1, 2)])
    await settled(lambda: bool(subscriber.packets))
    assert messages_in(subscriber.take()) == ["1", "2"]
    endpoint, elsewhere = two[1].connected("/subscribe")
    endpoint.received(elsewhere, [v2.Subscribe("news", "offset", begun.log, 1)])
    await settled(lambda: len(elsewhere.packets) == 3)
    _, again, rest = elsewhere.take()
    assert again == v2.Subscribed("news", begun.log, 1, 2)
    assert messages_in([rest]) == ["2"]
    producer_endpoint.received(producer, [chain("news", 3, after=2)])
    await settled(lambda: bool(elsewhere.packets))
    assert messages_in(elsewhere.take()) == ["3"]


async def test_all_starts_of_a_subscription(two: list[Shared]) -> None:
    endpoint, producer = two[0].connected("/producer")
    for number in range(1, 5):
        two[0].clock.now = 1000.0 + number
        endpoint.received(producer, [chain("news", number, after=number - 1)])
        await settled(lambda number=number: v2.Ack([(number, number)]) in producer.packets)  # type: ignore[misc]
    for packet, messages in (
        (v2.Subscribe("news"), []),
        (v2.Subscribe("news", "earliest"), ["1", "2", "3", "4"]),
        (v2.Subscribe("news", "offset", offset=2), ["3", "4"]),
        (v2.Subscribe("news", "time", time=1003.0), ["3", "4"]),
        (v2.Subscribe("news", "last", count=3), ["2", "3", "4"]),
        (v2.Subscribe("news", "last", count=9), ["1", "2", "3", "4"]),
    ):
        endpoint, subscriber = two[1].connected("/subscribe")
        endpoint.received(subscriber, [packet])
        await settled(turns=200)
        assert messages_in(subscriber.take()) == messages


async def test_a_position_of_a_log_that_is_unknown_is_a_gap(two: list[Shared]) -> None:
    endpoint, subscriber = two[0].connected("/subscribe")
    endpoint.received(subscriber, [v2.Subscribe("news", "offset", "another", 7)])
    await settled(lambda: len(subscriber.packets) == 3)
    _, begun, gap = subscriber.take()
    assert isinstance(begun, v2.Subscribed)
    assert (begun.offset, gap) == (0, v2.Gap("news", 0, None))


async def test_readers_are_told_when_the_log_has_gone(two: list[Shared]) -> None:
    endpoint, subscriber = two[0].connected("/subscribe")
    endpoint.received(subscriber, [v2.Subscribe("news")])
    await settled(lambda: len(subscriber.packets) == 2)
    (_, begun) = subscriber.take()
    assert isinstance(begun, v2.Subscribed)
    two[0].clock.now = two[1].clock.now = 1e6
    two[0].engine.log.expire()
    producer_endpoint, producer = two[1].connected("/producer")
    producer_endpoint.received(producer, [chain("news", 1)])
    await settled(lambda: len(messages_in(subscriber.packets)) == 1)
    anew, gap, deliver = subscriber.take()
    assert isinstance(anew, v2.Subscribed)
    assert anew.log != begun.log
    assert gap == v2.Gap("news", 0, None)
    assert messages_in([deliver]) == ["1"]


@pytest.mark.parametrize("there", [0, 1])
async def test_readers_that_began_without_room_hear_the_id_of_the_log(two: list[Shared], there: int) -> None:
    fates: list[Fate] = ["full"]
    two[0].engine.fate = lambda: fates[-1]
    endpoint, subscriber = two[0].connected("/subscribe")
    endpoint.received(subscriber, [v2.Subscribe("news")])
    await settled(lambda: len(subscriber.packets) == 2)
    assert subscriber.take()[1] == v2.Subscribed("news", "", 0, 0)
    fates.append("stored")
    producer_endpoint, producer = two[there].connected("/producer")
    producer_endpoint.received(producer, [chain("news", 1)])
    await settled(lambda: bool(messages_in(subscriber.packets)))
    named, deliver = subscriber.take()
    # Without it, the subscriber would begin at `latest` again after a reconnect.
    assert isinstance(named, v2.Subscribed)
    assert (bool(named.log), named.offset) == (True, 0)
    assert messages_in([deliver]) == ["1"]


async def test_one_that_is_far_behind_reads_at_its_pace(two: list[Shared]) -> None:
    endpoint, subscriber = two[0].connected("/subscribe")
    endpoint.received(subscriber, [v2.Subscribe("news")])
    await settled(lambda: len(subscriber.packets) == 2)
    subscriber.take()
    two[0].engine.deaf, two[0].engine.is_connected = True, False
    producer_endpoint, producer = two[1].connected("/producer")
    data = "x" * 1_000_000
    for number in range(1, 13):
        packet = v2.Forward("p", [number], number - 1, "news", [1], packed(data))
        producer_endpoint.received(producer, [packet])
        await settled(lambda number=number: v2.Ack([(number, number)]) in producer.packets)  # type: ignore[misc]
    two[0].engine.is_connected = True
    await settled(lambda: len(messages_in(subscriber.packets)) == 12, 20_000)
    delivers = [one for one in subscriber.take() if isinstance(one, v2.Deliver)]
    assert [one.offset for one in delivers] == list(range(12))


async def test_a_subscriber_that_leaves_while_the_log_opens(two: list[Shared]) -> None:
    two[0].engine.is_connected = False
    endpoint, subscriber = two[0].connected("/subscribe")
    endpoint.received(subscriber, [v2.Subscribe("news")])
    endpoint.received(subscriber, [v2.Unsubscribe("news")])
    two[0].engine.is_connected = True
    await settled(turns=200)
    assert subscriber.take() == [SHARED, v2.Unsubscribed("news")]


async def test_a_subscriber_that_has_read_messages_which_the_log_has_lost(two: list[Shared]) -> None:
    producer_endpoint, producer = two[0].connected("/producer")
    endpoint, subscriber = two[0].connected("/subscribe")
    endpoint.received(subscriber, [v2.Subscribe("news")])
    await settled(lambda: len(subscriber.packets) == 2)
    for number in (1, 2):
        producer_endpoint.received(producer, [chain("news", number, after=number - 1)])
        await settled(lambda number=number: v2.Ack([(number, number)]) in producer.packets)  # type: ignore[misc]
    assert messages_in(subscriber.take()) == ["1", "2"]
    two[0].engine.log.lose_last(place_of("news", STREAMS))
    producer_endpoint.received(producer, [chain("news", 3, publisher="q")])
    await settled(lambda: bool(messages_in(subscriber.packets)))
    begun, gap, deliver = subscriber.take()
    assert isinstance(begun, v2.Subscribed)
    assert (begun.offset, gap) == (1, v2.Gap("news", 1, None))
    assert messages_in([deliver]) == ["3"]
