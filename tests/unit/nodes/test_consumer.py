"""The answers of a consumer to producers, and when it stops reading from them."""

from __future__ import annotations

from collections import Counter

import pytest

from wsqueue.config.keys import Keys
from wsqueue.config.model import ConsumerConfig
from wsqueue.net.certificates import TlsContexts
from wsqueue.nodes.clients import Clients
from wsqueue.nodes.consumer import Consumer, ProducerEndpoint
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode, Closed

from ...support.fake_connection import FakeConnection
from ...support.messages import packed
from ...support.session_pair import PSK

LOST = Closed(CloseCode.ABNORMAL, "lost", by_peer=True)
NEVER_CAME = "a batch before it was refused, or never came"


@pytest.fixture
def endpoint() -> ProducerEndpoint:
    config = ConsumerConfig(listen=["127.0.0.1:1"])
    endpoint = Consumer(config, Keys(PSK, PSK), Counter(), TlsContexts(config), Clients(Counter())).endpoint(
        "/producer"
    )
    assert isinstance(endpoint, ProducerEndpoint)
    return endpoint


def connected(endpoint: ProducerEndpoint) -> FakeConnection:
    connection = FakeConnection()
    endpoint.established(connection)
    return connection


def chain(*numbers: int, after: int = 0, publisher: str = "p", topic: str = "news") -> v2.Forward:
    """Return batches of one message each."""
    messages = packed(*map(str, numbers))
    return v2.Forward(publisher, list(numbers), after, topic, [1] * len(numbers), messages)


def broken(*numbers: int) -> v2.Forward:
    """Return batches that have fewer messages than their counts say."""
    return v2.Forward("p", list(numbers), 0, "news", [2] * len(numbers), packed(*map(str, numbers)))


class TestRefusals:
    def test_one_packet_refuses_a_chain(self, endpoint: ProducerEndpoint) -> None:
        connection = connected(endpoint)
        endpoint.received(connection, [chain(1), chain(*range(3, 1003), after=2)])
        assert connection.take() == [v2.Ack([(1, 1)]), v2.Refused(2, "after_refused", NEVER_CAME, 1001)]

    def test_one_batch_is_no_range(self, endpoint: ProducerEndpoint) -> None:
        connection = connected(endpoint)
        endpoint.received(connection, [broken(5)])
        assert connection.take() == [v2.Refused(1, "invalid", v2.INVALID_MESSAGES)]

    def test_chains_that_are_refused_for_the_same_reason_become_one_range(
        self, endpoint: ProducerEndpoint
    ) -> None:
        connection, other = connected(endpoint), connected(endpoint)
        endpoint.received(other, [chain(1), chain(1, publisher="q", topic="sport")])
        other.take()
        late = [chain(number, number + 1, after=number - 1) for number in range(3, 30, 3)]
        late.append(chain(9, after=7, publisher="q", topic="sport"))
        endpoint.received(connection, list(late))
        assert connection.take() == [v2.Refused(1, "after_refused", NEVER_CAME, 19)]
        assert other.take() == []

    def test_answers_are_in_the_order_of_the_batches(self, endpoint: ProducerEndpoint) -> None:
        connection = connected(endpoint)
        endpoint.received(
            connection,
            [
                *(broken(1, 2), broken(3), chain(1, 2), chain(2, 3, after=1), chain(7, 8, after=6)),
                *(broken(7), chain(1, 4, after=3), chain(9, after=6), chain(5, after=4)),
            ],
        )
        assert connection.take() == [
            v2.Refused(1, "invalid", v2.INVALID_MESSAGES, 3),
            v2.Ack([(4, 7)]),
            v2.Refused(8, "after_refused", NEVER_CAME, 9),
            v2.Refused(10, "invalid", v2.INVALID_MESSAGES),
            v2.Ack([(11, 12)]),
            v2.Refused(13, "after_refused", NEVER_CAME),
            v2.Ack([(14, 14)]),
        ]


class TestSlowProducers:
    def test_one_that_does_not_read_its_answers_is_read_no_more(self, endpoint: ProducerEndpoint) -> None:
        connection, other = connected(endpoint), connected(endpoint)
        connection.room = 100
        for number in range(1, 9):
            endpoint.received(connection, [chain(number)])
        assert (connection.paused, other.paused) == (1, 0)
        endpoint.received(other, [chain(1, publisher="q")])
        connection.room = None
        endpoint.writable(connection)
        endpoint.writable(connection)
        assert (connection.paused, other.paused) == (0, 0)
        connection.is_congested = True
        endpoint.received(connection, [chain(9)])
        assert connection.paused == 1
        endpoint.lost(connection, LOST)
        endpoint.writable(connection)
        assert connection.paused == 1
