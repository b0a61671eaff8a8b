"""Delivery to classic subscribers: in turns, in order, at the pace of the fastest."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from wsqueue.log.records import Record
from wsqueue.net.buffers import Buffers
from wsqueue.net.connection import Connection
from wsqueue.nodes.classic_delivery import SLICE_BYTES, ClassicDelivery, data_of
from wsqueue.nodes.topics import Topics
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.frames import cut_texts

from ...support.fake_connection import FakeConnection

pytestmark = pytest.mark.anyio

MANY = [str(number) for number in range(20_000)]
"""Messages that are several slices long on the topic below, where each is repeated."""
TOPIC = "\x01" * 20
OTHER = "other"


class Subscriber(FakeConnection):
    """A classic subscriber, which notes what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[str] = []
        self.writes: list[int] = []

    def send_frames(self, frames: bytes) -> bool:
        if not self.sendable:
            return False
        payloads, end, _ = cut_texts(frames, 0, masked=False, max_message_bytes=2**31, max_frames=2**31)
        assert end == len(frames)
        packets = list(map(json.loads, payloads))
        assert all(packet["s"] in (TOPIC, OTHER) and packet["t"] == "m" for packet in packets)
        self.came += [packet["d"] for packet in packets]
        self.writes.append(len(frames))
        return True


class Delivery:
    """A delivery with some subscribers of one topic."""

    def __init__(self, subscribers: int, max_buffered_bytes: int = 2**30) -> None:
        self.topics: Topics[Connection] = Topics()
        self.subscribers = [Subscriber() for _ in range(subscribers)]
        for subscriber in self.subscribers:
            self.topics.subscribe(TOPIC, subscriber)
        self.counters: Counter[str] = Counter()
        self.buffers = Buffers(2**30)
        self.delivery = ClassicDelivery(self.topics, self.counters, max_buffered_bytes, self.buffers)
        self.next = 0

    def publish(self, *data: str, topic: str = TOPIC, at_hand: bool = True) -> None:
        packet = v2.encode(v2.Deliver(topic, self.next, "", 0, list(data)))
        record = Record(topic, self.next, len(data), 0.0, "", 0, packet)
        self.next = record.end
        assert data_of(record) == list(data)
        self.delivery.deliver(topic, [record], list(data) if at_hand else None)

    def lose(self, subscriber: Subscriber) -> None:
        subscriber.failed = CloseCode.GOING_AWAY
        self.topics.unsubscribe(TOPIC, subscriber)
        self.delivery.resume(TOPIC)

    async def turns(self, count: int = 200) -> None:
        for _ in range(count):
            await asyncio.sleep(0)


@pytest.mark.parametrize("at_hand", [True, False])
async def test_a_long_batch_comes_in_slices_and_before_the_next(at_hand: bool) -> None:
    one = Delivery(3)
    one.publish("first")
    assert [subscriber.came for subscriber in one.subscribers] == [["first"]] * 3
    one.publish(*MANY, at_hand=at_hand)
    one.publish("last")
    turns = 0
    while len(one.subscribers[0].came) < len(MANY) + 2:
        before = len(one.subscribers[0].writes)
        await asyncio.sleep(0)
        assert len(one.subscribers[0].writes) <= before + 1, "one slice in a turn"
        turns += 1
        assert turns < 1000
    assert turns > 5
    for subscriber in one.subscribers:
        assert subscriber.came == ["first", *MANY, "last"]
        assert max(subscriber.writes) <= SLICE_BYTES * 1.1
    assert one.counters["deliveries"] == 3 * (len(MANY) + 2)
    # Nothing waits any more, so the next is sent at once.
    one.publish("x")
    assert one.subscribers[0].came[-1] == "x"


async def test_nothing_is_built_for_subscribers_that_are_gone() -> None:
    one = Delivery(2)
    one.publish(*MANY)
    await one.turns(2)
    for subscriber in one.subscribers:
        one.lose(subscriber)
    came = len(one.subscribers[0].came)
    assert came < len(MANY)
    await one.turns()
    assert len(one.subscribers[0].came) == came
    # A topic that is subscribed to again begins with what is published then.
    another = Subscriber()
    one.topics.subscribe(TOPIC, another)
    one.publish("new")
    assert another.came == ["new"]


async def test_the_fastest_subscriber_sets_the_pace() -> None:
    one = Delivery(2)
    slow, fast = one.subscribers
    slow.is_congested = fast.is_congested = True
    one.publish("a")
    one.publish(*MANY)
    await one.turns()
    assert slow.came == fast.came == []
    fast.is_congested = False
    one.delivery.resume(TOPIC)
    await one.turns()
    assert fast.came == slow.came == ["a", *MANY]


async def test_batches_that_wait_for_slow_subscribers_are_bounded() -> None:
    one = Delivery(2, max_buffered_bytes=100_000)
    for subscriber in one.subscribers:
        subscriber.is_congested = True
    published = 0
    while one.subscribers[0].failed is None:
        one.publish("x" * 1000)
        published += 1
    assert 50 < published < 100
    assert [subscriber.failed for subscriber in one.subscribers] == [CloseCode.TRY_AGAIN_LATER] * 2
    await one.turns()
    assert one.counters["deliveries"] == 0


async def test_what_waits_counts_with_what_waits_in_connections() -> None:
    one = Delivery(2)
    for subscriber in one.subscribers:
        subscriber.is_congested = True
    one.publish("x" * 100_000)
    assert one.buffers.bytes > 100_000
    one.subscribers[0].is_congested = False
    one.delivery.resume(TOPIC)
    await one.turns()
    assert (len(one.subscribers[1].came), one.buffers.bytes) == (1, 0)
    one.subscribers[0].is_congested = True
    one.buffers.limit = 150_000
    one.publish("x" * 100_000)
    one.publish("x" * 100_000)
    assert [subscriber.failed for subscriber in one.subscribers] == [CloseCode.TRY_AGAIN_LATER] * 2
    assert one.buffers.bytes == 0
    await one.turns()


class Unread(Subscriber):
    """A subscriber that keeps what it gets waiting, and so counts it."""

    def __init__(self, buffers: Buffers) -> None:
        super().__init__()
        self.buffers = buffers

    def send_frames(self, frames: bytes) -> bool:
        written = super().send_frames(frames)
        self.buffers.count(self, sum(self.writes))
        return written


@pytest.mark.parametrize("when", ["sending", "sent"])
async def test_a_backlog_that_is_given_up_in_its_turn_holds_up_no_other_topic(when: str) -> None:
    one = Delivery(0)
    # Its first slice brings all above the limit, or a reload has lowered the limit meanwhile.
    unread = Unread(one.buffers) if when == "sending" else Subscriber()
    another = Subscriber()
    one.topics.subscribe(TOPIC, unread)
    one.topics.subscribe(OTHER, another)
    for _ in range(20):
        one.publish("x" * 100_000, at_hand=False)
    one.publish(*MANY, topic=OTHER)
    one.buffers.limit = one.buffers.bytes if when == "sending" else 500_000
    await one.turns()
    assert unread.failed is CloseCode.TRY_AGAIN_LATER
    assert another.came == MANY
    assert one.buffers.bytes == sum(unread.writes) * (when == "sending")
    # Nothing is left of it.
    one.topics.unsubscribe(TOPIC, unread)
    late = Subscriber()
    one.topics.subscribe(TOPIC, late)
    one.publish("new")
    assert late.came == ["new"]


async def test_a_drain_waits_for_all_and_for_no_slow_subscriber() -> None:
    one = Delivery(2)
    for subscriber in one.subscribers:
        subscriber.is_congested = True
    one.publish(*MANY)
    await one.delivery.settle()
    assert one.subscribers[0].came == MANY
    await one.delivery.settle()
