"""Delivery to classic subscribers: in turns, in order, at the pace of the fastest."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from wsqueue.config.model import Limits
from wsqueue.log.records import Record
from wsqueue.net.buffers import Buffers
from wsqueue.net.connection import Connection
from wsqueue.nodes import classic_delivery
from wsqueue.nodes.classic_delivery import SLICE_BYTES, ClassicDelivery
from wsqueue.nodes.topics import Topics
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.frames import TEXT_AND_FIN
from wsqueue.protocol.packed import Headers, Packed

from ...support.fake_connection import FakeConnection, payloads_of
from ...support.messages import deliver_one, packed

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
        packets = list(map(json.loads, payloads_of(frames, TEXT_AND_FIN)))
        assert all(packet["s"] in (TOPIC, OTHER) and packet["t"] == "m" for packet in packets)
        self.came += [packet["d"] for packet in packets]
        self.writes.append(len(frames))
        return True


class Delivery:
    """A delivery with some subscribers of one topic."""

    def __init__(self, subscribers: int, **limits: int) -> None:
        self.topics: Topics[Connection] = Topics()
        self.subscribers = [Subscriber() for _ in range(subscribers)]
        for subscriber in self.subscribers:
            self.topics.subscribe(TOPIC, subscriber)
        self.counters: Counter[str] = Counter()
        self.buffers = Buffers(2**30)
        far = {"max_buffered_bytes": 2**30, "max_total_buffered_bytes": 2**30}
        self.delivery = ClassicDelivery(self.topics, self.counters, Limits(**far | limits), self.buffers)
        self.next = 0

    def publish(self, *data: str | bytes, topic: str = TOPIC) -> None:
        self.deliver(packed(*data), topic=topic)

    def deliver(self, *batches: Packed, topic: str = TOPIC) -> None:
        """Deliver batches, all at once."""
        records = []
        for messages in batches:
            packet = v2.encode(deliver_one(topic, self.next, "", 0, messages))
            records.append(Record(topic, self.next, messages.count, 0.0, "", 0, packet))
            self.next = records[-1].end
        self.delivery.deliver(topic, records)

    def lose(self, subscriber: Subscriber) -> None:
        subscriber.failed = CloseCode.GOING_AWAY
        self.topics.unsubscribe(TOPIC, subscriber)
        self.delivery.resume(TOPIC)

    async def turns(self, count: int = 200) -> None:
        for _ in range(count):
            await asyncio.sleep(0)


async def test_a_long_batch_comes_in_slices_and_before_the_next() -> None:
    one = Delivery(3)
    one.publish("first")
    assert [subscriber.came for subscriber in one.subscribers] == [["first"]] * 3
    one.publish(*MANY)
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
    one = Delivery(2, max_message_bytes=20_000, max_buffered_bytes=1_100_000)
    for subscriber in one.subscribers:
        subscriber.is_congested = True
    published = 0
    while one.subscribers[0].failed is None:
        one.publish("x" * 12_000)
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
    unread.is_congested = True
    for _ in range(20):
        one.publish("x" * 100_000)
    unread.is_congested = False
    one.delivery.resume(TOPIC)
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


def with_headers(*data: str | bytes) -> Packed:
    headers: list[Headers | None] = [{"id": str(number)} for number in range(len(data))]
    return packed(*data, headers=headers)


async def test_headers_are_left_out() -> None:
    one = Delivery(1)
    one.deliver(with_headers("a", "b"), packed("c"))
    assert one.subscribers[0].came == ["a", "b", "c"]
    assert one.counters["skipped_for_classic"] == 0


@pytest.mark.parametrize("waits", [False, True])
async def test_bytes_that_are_no_text_are_skipped(waits: bool, caplog: pytest.LogCaptureFixture) -> None:
    one = Delivery(2)
    for subscriber in one.subscribers:
        subscriber.is_congested = waits
    one.deliver(packed(b"a", b"\xff", "\U0001f642".encode(), b""), packed(b"\xed\xa0\x80"), packed("b"))
    # Their characters would make one text, but none of these bytes is one.
    one.publish(b"\xc3", b"\xb1")
    for subscriber in one.subscribers:
        subscriber.is_congested = False
    one.delivery.resume(TOPIC)
    await one.turns()
    for subscriber in one.subscribers:
        assert subscriber.came == ["a", "\U0001f642", "", "b"]
    assert one.counters == {"skipped_for_classic": 4, "deliveries": 8}
    (record,) = caplog.records
    assert record.message.startswith("skipped for classic topic=")


async def test_a_batch_of_which_all_is_skipped_holds_nothing_up() -> None:
    one = Delivery(1)
    one.subscribers[0].is_congested = True
    one.publish(*[b"\xff"] * 1000)
    one.publish(b"\xff")
    one.publish("a")
    one.subscribers[0].is_congested = False
    one.delivery.resume(TOPIC)
    await one.turns()
    one.publish(*[b"\xff"] * 10)
    assert (one.subscribers[0].came, one.buffers.bytes) == (["a"], 0)
    assert one.counters["skipped_for_classic"] == 1011


async def test_messages_whose_classic_form_is_too_long_are_skipped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    most = 1000
    room = most - len(json.dumps({"t": "m", "d": "", "s": OTHER}, separators=(",", ":")))
    one = Delivery(0, max_message_bytes=most)
    subscriber = Subscriber()
    one.topics.subscribe(OTHER, subscriber)
    # A control character takes six bytes in JSON, and a quotation mark two.
    fits = ["x" * room, "\x01" * (room // 6), '"' * (room // 2), "ñ" * (room // 2)]
    for text in fits:
        one.publish(text, text + text[:1] * 6, topic=OTHER)
    assert subscriber.came == fits
    assert one.counters == {"skipped_for_classic": 4, "deliveries": 4}
    assert len(caplog.records) == 1
    # A reload allows more.
    one.delivery.limits = Limits(max_message_bytes=most + 6)
    one.publish("x" * (room + 6), topic=OTHER)
    assert subscriber.came == [*fits, "x" * (room + 6)]


async def test_each_topic_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classic_delivery, "MAX_WARNED_TOPICS", 2)
    one = Delivery(1)
    one.topics.subscribe(OTHER, Subscriber())
    for _ in range(3):
        for topic in (TOPIC, OTHER):
            one.publish(b"\xff", topic=topic)
    assert len(caplog.records) == 2
    # There are no more that it remembers.
    one.topics.subscribe("third", Subscriber())
    for topic in ("third", TOPIC, "third", TOPIC):
        one.publish(b"\xff", topic=topic)
    assert len(caplog.records) == 4


async def test_control_characters_take_several_slices_at_once() -> None:
    """The size of a batch is estimated without looking into it."""
    one = Delivery(1)
    texts = ["\x01" * 1000] * 200
    one.publish(*texts, topic=TOPIC)
    assert one.subscribers[0].came == texts
    assert max(one.subscribers[0].writes) <= 6 * SLICE_BYTES
