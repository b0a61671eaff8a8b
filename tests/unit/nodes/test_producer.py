"""A producer whose links never come up, over connections that the test plays."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from wsqueue.config.keys import Keys
from wsqueue.config.model import Limits, ProducerConfig
from wsqueue.net.certificates import TlsContexts
from wsqueue.nodes.producer import Producer
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode, Closed

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
