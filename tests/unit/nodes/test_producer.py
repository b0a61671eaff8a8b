"""A producer whose links never come up, over connections that the test plays."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter

import msgspec
import pytest

from wsqueue.config.keys import Keys
from wsqueue.config.model import Limits, ProducerConfig
from wsqueue.net.certificates import TlsContexts
from wsqueue.nodes.producer import Producer
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode, Closed, PeerError

from ...support.classic_peer import topic_of
from ...support.fake_connection import FakeConnection
from ...support.raw_v2_peer import new_secret
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
    return Producer(config, Keys(PSK, PSK), Counter(), TlsContexts(config))


def publisher_of(producer: Producer) -> FakeConnection:
    connection = FakeConnection()
    producer.established(connection)
    producer.received(connection, [v2.Publisher(new_secret()["secret"])])
    return connection


def publish(producer: Producer, connection: FakeConnection, number: int, topic: str, size: int) -> None:
    data = msgspec.Raw(msgspec.json.encode(["x" * size]))
    producer.received(connection, [v2.Publish(number, 0, topic, 1, data)])


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


PUBLISH = b'{"t":"publish","number":1,"after":0,"topic":"news","count":1,"data":["x"]}'


NONCE = base64.b64encode(bytes(range(32))).decode()


class TestPublishers:
    """A subscriber that sees the public ids of publishers can't publish under them."""

    @staticmethod
    def produced(*payloads: bytes) -> tuple[list[str], FakeConnection]:
        """Return the publisher ids under which a producer forwards payloads, and the connection."""
        config = ProducerConfig(listen=["127.0.0.1:1"], consumers=["127.0.0.1:2/producer"])
        producer = Producer(config, Keys(PSK, PSK), Counter(), TlsContexts(config))
        connection = FakeConnection()
        producer.established(connection)
        for payload in payloads:
            producer.received(connection, [v2.decode(payload)])
        forwards = map(v2.decode, (batch.payload for batch in producer.links[0].take_waiting()))
        return [packet.publisher for packet in forwards if isinstance(packet, v2.Forward)], connection

    @staticmethod
    def publisher(secret: str) -> bytes:
        return json.dumps({"t": "publisher", "secret": secret}).encode()

    def test_a_public_id_as_computed_by_other_code(self) -> None:
        digest = hashlib.sha256(base64.b64decode(NONCE)).digest()
        expected = base64.b64encode(digest[:16], b"-_").decode()[:22]
        ids, connection = self.produced(self.publisher(NONCE), PUBLISH)
        assert ids == [expected]
        assert connection.failed is None

    def test_a_public_id_is_no_secret(self) -> None:
        (seen,), _ = self.produced(self.publisher(NONCE), PUBLISH)
        for guess in (seen, seen + "=" * 22, base64.b64encode(seen.encode().ljust(32)[:32]).decode()):
            payload = self.publisher(guess)
            try:
                ids, _ = self.produced(payload, PUBLISH)
            except PeerError:
                continue
            assert ids != [seen]
        digest = base64.urlsafe_b64decode(seen + "==")
        for padding in (bytes(16), digest):
            ids, _ = self.produced(self.publisher(base64.b64encode(digest + padding).decode()), PUBLISH)
            assert len(ids) == 1
            assert ids != [seen]

    def test_a_publish_names_no_publisher(self) -> None:
        with pytest.raises(PeerError, match="unknown field"):
            v2.decode(PUBLISH.replace(b'"topic"', b'"publisher":"x","topic"'))

    @pytest.mark.parametrize(
        "payloads",
        [
            (PUBLISH,),
            (b'{"t":"publisher","secret":"%s"}' % NONCE.encode(),) * 2,
            (PUBLISH.replace(b"publish", b"forward").replace(b'"topic"', b'"publisher":"x","topic"'),),
        ],
        ids=["without a publisher", "as two publishers", "as a producer"],
    )
    def test_other_ways(self, payloads: tuple[bytes, ...]) -> None:
        ids, connection = self.produced(*payloads)
        assert ids == []
        assert connection.failed is CloseCode.UNEXPECTED_PACKET

    def test_another_key_of_the_same_kind_is_another_publisher(self) -> None:
        secrets = [base64.b64encode(bytes([number] * 32)).decode() for number in range(50)]
        ids = [self.produced(self.publisher(secret), PUBLISH)[0][0] for secret in secrets]
        assert len(set(ids)) == 50


@pytest.mark.parametrize("count", [2, 3, v2.MAX_NUMBER])
@pytest.mark.parametrize("data", [["x"], [], [""], {"a": 1}, 1])
def test_a_count_that_cannot_be_true_changes_no_number(producer: Producer, count: int, data: object) -> None:
    connection = publisher_of(producer)
    raw = msgspec.Raw(msgspec.json.encode(data))
    producer.received(connection, [v2.Publish(7, 0, TOPICS[0], count, raw)])
    refused = v2.Refused(7, "invalid", v2.INVALID_DATA)
    if count > len(bytes(raw)) // 3:
        assert connection.take() == [refused]
    assert producer.counters["messages_in"] <= len(bytes(raw)) // 3
    assert sum(topic.messages_per_second for topic in producer.facts(1.0).top_topics) <= len(bytes(raw)) // 3
    assert sum(link.held_messages for link in producer.facts(0.0).links) <= len(bytes(raw)) // 3


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_the_shortest_data_of_a_count_is_taken(producer: Producer, count: int) -> None:
    connection = publisher_of(producer)
    data = msgspec.Raw(msgspec.json.encode([""] * count))
    producer.received(connection, [v2.Publish(1, 0, TOPICS[0], count, data)])
    assert connection.take() == []
    assert producer.counters["messages_in"] == count
