"""A producer whose links never come up, over connections that the test plays."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from typing import Any

import pytest

from wsqueue.config.keys import Keys
from wsqueue.config.model import Limits, ProducerConfig
from wsqueue.net.certificates import TlsContexts
from wsqueue.nodes.clients import Clients
from wsqueue.nodes.producer import Producer
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode, Closed, PeerError
from wsqueue.protocol.packed import Packed

from ...support.classic_peer import topic_of
from ...support.fake_connection import FakeConnection
from ...support.messages import packed
from ...support.raw_v2_peer import encoded, forward_of, new_secret, publish_of
from ...support.session_pair import PSK

LOST = Closed(CloseCode.ABNORMAL, "lost", by_peer=True)
TOPICS = [topic_of(index, 2) for index in range(2)]


@pytest.fixture
def producer() -> Producer:
    config = ProducerConfig(
        listen=["127.0.0.1:1"],
        consumers=["127.0.0.1:2/producer", "127.0.0.1:3/producer"],
        limits=Limits(max_held_bytes=1000),
    )
    return Producer(config, Keys(PSK, PSK), Counter(), TlsContexts(config), Clients(Counter()))


def publisher_of(producer: Producer) -> FakeConnection:
    connection = FakeConnection()
    producer.established(connection)
    producer.received(connection, [v2.Publisher(new_secret()["secret"])])
    return connection


def publish(producer: Producer, connection: FakeConnection, number: int, topic: str, size: int) -> None:
    producer.received(connection, [v2.Publish(number, 0, topic, packed("x" * size))])


def test_a_publisher_goes_on_when_no_link_is_full(producer: Producer) -> None:
    connection = publisher_of(producer)
    publish(producer, connection, 1, TOPICS[0], 1000)
    assert connection.paused == 1
    publish(producer, connection, 2, TOPICS[0], 1000)
    assert connection.paused == 1
    publish(producer, connection, 3, TOPICS[1], 1000)
    assert connection.paused == 2
    for left, link in zip((1, 0), producer.links, strict=True):
        assert link.take_all()
        assert connection.paused == left


def test_a_publisher_that_is_gone_is_neither_resumed_nor_answered(producer: Producer) -> None:
    gone, other = publisher_of(producer), publisher_of(producer)
    for connection in (gone, other):
        publish(producer, connection, 1, TOPICS[0], 1000)
    assert producer.facts(0.0).links[0].paused_publishers == 2
    producer.lost(gone, LOST)
    assert producer.facts(0.0).links[0].paused_publishers == 1
    assert len(producer.links[0].take_all()) == 2
    assert (gone.paused, other.paused) == (1, 0)
    assert gone.take() == other.take() == []


def test_publishers_that_come_and_go_cannot_leave_any_number_of_batches(producer: Producer) -> None:
    closed = []
    for _ in range(1000):
        connection = publisher_of(producer)
        publish(producer, connection, 1, TOPICS[0], 100_000)
        closed.append(connection.failed)
        producer.lost(connection, LOST)
        if connection.failed is not None:
            break
    assert closed[-1] == CloseCode.TRY_AGAIN_LATER
    assert set(closed[:-1]) == {None}


PUBLISH = publish_of(1, "news", "x")
NONCE = bytes(range(32))


def publisher(secret: bytes) -> dict[str, Any]:
    return {"t": "publisher", "secret": secret}


class TestPublishers:
    """A subscriber that sees the public ids of publishers can't publish under them."""

    @staticmethod
    def produced(*packets: dict[str, Any]) -> tuple[list[str], FakeConnection]:
        """Return the publisher ids under which a producer forwards packets, and the connection."""
        config = ProducerConfig(listen=["127.0.0.1:1"], consumers=["127.0.0.1:2/producer"])
        producer = Producer(config, Keys(PSK, PSK), Counter(), TlsContexts(config), Clients(Counter()))
        connection = FakeConnection()
        producer.established(connection)
        for packet in packets:
            producer.received(connection, [v2.decode(encoded(packet))])
        forwards = map(v2.decode, (batch.payload for batch in producer.links[0].take_all()))
        return [packet.publisher for packet in forwards if isinstance(packet, v2.Forward)], connection

    def test_a_public_id_as_computed_by_other_code(self) -> None:
        digest = hashlib.sha256(NONCE).digest()
        expected = base64.b64encode(digest[:16], b"-_").decode()[:22]
        ids, connection = self.produced(publisher(NONCE), PUBLISH)
        assert ids == [expected]
        assert connection.failed is None

    def test_a_public_id_is_no_secret(self) -> None:
        (seen,), _ = self.produced(publisher(NONCE), PUBLISH)
        digest = base64.urlsafe_b64decode(seen + "==")
        for guess in (seen.encode(), seen.encode().ljust(32), digest, digest + bytes(16), digest * 2):
            try:
                ids, _ = self.produced(publisher(guess), PUBLISH)
            except PeerError:
                assert len(guess) != 32
                continue
            assert len(ids) == 1
            assert ids != [seen]

    def test_a_publish_names_no_publisher(self) -> None:
        (own,), _ = self.produced(publisher(NONCE), PUBLISH)
        ids, connection = self.produced(publisher(NONCE), PUBLISH | {"publisher": "x"})
        assert (ids, connection.failed) == ([own], None)

    @pytest.mark.parametrize(
        "packets",
        [
            (PUBLISH,),
            (PUBLISH | {"publisher": "x"},),
            (publisher(NONCE),) * 2,
            (forward_of(1, "news", "x"),),
        ],
        ids=["without a publisher", "with another's", "as two publishers", "as a producer"],
    )
    def test_other_ways(self, packets: tuple[dict[str, Any], ...]) -> None:
        ids, connection = self.produced(*packets)
        assert ids == []
        assert connection.failed is CloseCode.UNEXPECTED_PACKET

    def test_another_key_of_the_same_kind_is_another_publisher(self) -> None:
        secrets = [bytes([number] * 32) for number in range(50)]
        ids = [self.produced(publisher(secret), PUBLISH)[0][0] for secret in secrets]
        assert len(set(ids)) == 50


@pytest.mark.parametrize(
    "messages",
    [
        Packed([], memoryview(b"")),
        Packed([], memoryview(b"x")),
        Packed([2], memoryview(b"x")),
        Packed([0], memoryview(b"x")),
        Packed([1, 1], memoryview(b"x")),
        Packed([v2.MAX_NUMBER], memoryview(b"x")),
        Packed([2**64 - 1] * 100, memoryview(b"x")),
        Packed([1], memoryview(b"x"), headers=[]),
        Packed([1], memoryview(b"x"), headers=[None, None]),
    ],
)
def test_sizes_that_cannot_be_true_change_no_number(producer: Producer, messages: Packed) -> None:
    connection = publisher_of(producer)
    producer.received(connection, [v2.Publish(7, 0, TOPICS[0], messages)])
    assert connection.take() == [v2.Refused(7, "invalid", v2.INVALID_MESSAGES)]
    assert producer.counters["messages_in"] == 0
    assert sum(topic.messages_per_second for topic in producer.facts(1.0).top_topics) == 0
    assert sum(link.held_messages for link in producer.facts(0.0).links) == 0


@pytest.mark.parametrize("count", [1, 2, 1000])
@pytest.mark.parametrize("data", ["", b"", "\0", b"\xff" * 300])
def test_many_messages_of_any_size_are_taken(producer: Producer, count: int, data: str | bytes) -> None:
    connection = publisher_of(producer)
    producer.received(connection, [v2.Publish(1, 0, TOPICS[0], packed(*[data] * count))])
    assert connection.take() == []
    assert producer.counters["messages_in"] == count
    (batch,) = producer.links[0].take_all()
    forward = v2.decode(batch.payload)
    assert isinstance(forward, v2.Forward)
    assert (batch.count, forward.messages.unpack()) == (count, [data] * count)


def test_a_batch_that_is_too_long_is_refused() -> None:
    config = ProducerConfig(
        listen=["127.0.0.1:1"], consumers=["127.0.0.1:2/producer"], limits=Limits(max_message_bytes=1000)
    )
    producer = Producer(config, Keys(PSK, PSK), Counter(), TlsContexts(config), Clients(Counter()))
    connection = publisher_of(producer)
    most = 1000 + v2.OVERHEAD_BYTES
    producer.received(connection, [v2.Publish(1, 0, "news", packed(bytes(1000)))])
    assert connection.take() == []
    producer.received(connection, [v2.Publish(2, 0, "news", packed(bytes(most)))])
    assert connection.take() == [v2.Refused(2, "too_long", "the batch has more than 1000 bytes")]


def answers_to(producer: Producer, *packets: v2.Packet) -> list[v2.Packet]:
    """Return the answers to packets that come in one read, when the link can send."""
    connection = publisher_of(producer)
    producer.received(connection, list(packets))
    for link in producer.links:
        link.queue.connected(v2=True)
        link.queue.next_slice(2**20)
    refusals = [packet for link in producer.links for _, packet in link.queue.answers()]
    return [*connection.take(), *refusals]


@pytest.mark.parametrize(
    ("topic", "broken", "code"),
    [
        ("news", Packed([2], memoryview(b"a")), "invalid"),
        ("news", packed("x" * 2_000_000), "too_long"),
        ("x" * 1000, packed("x"), "topic_too_long"),
    ],
)
def test_batches_after_one_that_is_refused_here_are_refused(
    producer: Producer, topic: str, broken: Packed, code: str
) -> None:
    """A consumer that does not know the publisher would take them, and leave a hole."""
    good = packed("x")
    batches = [
        v2.Publish(1, 0, topic, broken),
        v2.Publish(2, 1, topic, good),
        v2.Publish(3, 2, topic, good),
        v2.Publish(4, 0, "other", good),
    ]
    found = {one.number: one.code for one in answers_to(producer, *batches) if isinstance(one, v2.Refused)}
    after = code if code == "topic_too_long" else "after_refused"
    assert found == {1: code, 2: after, 3: after}


@pytest.mark.parametrize(("number", "after"), [(5, 0), (4, 0), (1, 0), (6, 6), (6, 7)])
def test_a_number_out_of_order_closes_the_publisher(producer: Producer, number: int, after: int) -> None:
    """It would pass for a repeat, and be confirmed without being stored."""
    connection = publisher_of(producer)
    producer.received(connection, [v2.Publish(5, 0, "news", packed("x"))])
    assert connection.failed is None
    producer.received(connection, [v2.Publish(number, after, "news", packed("y"))])
    assert connection.failed == CloseCode.INVALID_PACKET


def test_nothing_behind_a_fault_of_a_publisher_is_taken(producer: Producer) -> None:
    connection = FakeConnection()
    producer.established(connection)
    batches = [v2.Publish(number, 0, "news", packed("x")) for number in (1, 2)]
    producer.received(connection, [batches[0], v2.Publisher(new_secret()["secret"]), batches[1]])
    assert connection.failed == CloseCode.UNEXPECTED_PACKET
    assert not any(link.queue.held_messages for link in producer.links)
