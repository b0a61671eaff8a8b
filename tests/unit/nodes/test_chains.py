"""Batches that travel as one: the rules of joining, and the fate of each batch on any way."""

from __future__ import annotations

import asyncio
from collections import Counter
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wsqueue.config.keys import Keys
from wsqueue.config.model import ConsumerConfig, ProducerConfig, Retention
from wsqueue.log.records import Record, StoreState, TopicState
from wsqueue.net.certificates import TlsContexts
from wsqueue.nodes import chains
from wsqueue.nodes.chains import MAX_CHAIN_BYTES, Chain, packet_bytes
from wsqueue.nodes.clients import Clients
from wsqueue.nodes.consumer import Consumer, ProducerEndpoint
from wsqueue.nodes.link_queue import LinkQueue, Origin
from wsqueue.nodes.producer import Producer
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode, Closed
from wsqueue.protocol.packed import Packed

from ...support.examples import examples
from ...support.fake_connection import FakeConnection
from ...support.messages import packed
from ...support.raw_v2_peer import new_secret
from ...support.session_pair import PSK
from ...support.stores import FakeArchive
from ...support.strategies import chains as chains_of
from ...support.strategies import numbers

LOST = Closed(CloseCode.ABNORMAL, "lost", by_peer=True)
TOPICS = ("a", "b")
PUBLISHER = Origin(None)
PUBLISHER.id = "p"


def publish(number: int, after: int, *data: str | bytes) -> v2.Publish:
    return v2.Publish(number, after, "news", packed(*data))


def merged(first: v2.Publish, *others: v2.Publish) -> v2.Forward:
    """Return the packet of a chain that all of these join."""
    chain = Chain(first, MAX_CHAIN_BYTES)
    assert all(map(chain.join, others))
    forward = v2.decode(chain.forward(PUBLISHER).payload)
    assert isinstance(forward, v2.Forward)
    return forward


class TestJoining:
    def test_a_batch_alone_is_a_chain(self) -> None:
        assert merged(publish(7, 3, "a", "b")) == v2.Forward("p", [7], 3, "news", [2], packed("a", "b"))

    def test_each_batch_comes_after_the_one_before(self) -> None:
        forward = merged(publish(7, 3, "a", "ñ"), publish(9, 7, ""), publish(10, 9, "b", "c"))
        assert forward == v2.Forward("p", [7, 9, 10], 3, "news", [2, 1, 2], packed("a", "ñ", "", "b", "c"))

    def test_batches_of_bytes(self) -> None:
        forward = merged(publish(1, 0, b"\xff"), publish(2, 1, b"", b"\0"))
        assert forward == v2.Forward("p", [1, 2], 0, "news", [1, 2], packed(b"\xff", b"", b"\0"))

    @pytest.mark.parametrize(
        "other",
        [
            *(publish(8, after, "b") for after in (0, 3, 6, 8, 9)),
            *(publish(number, 7, "b") for number in (1, 6, 7)),
            publish(8, 7, b"b"),
            v2.Publish(8, 7, "news", packed("b", headers=[{"k": "v"}])),
            v2.Publish(8, 7, "news", Packed([2], memoryview(b"b"))),
            v2.Publish(8, 7, "news", Packed([], memoryview(b""))),
        ],
    )
    def test_one_that_cannot_join(self, other: v2.Publish) -> None:
        chain = Chain(publish(7, 3, "a"), MAX_CHAIN_BYTES)
        assert not chain.join(other)
        # It is as it was, and others can join.
        assert chain.join(publish(8, 7, "c"))
        assert v2.decode(chain.forward(PUBLISHER).payload) == v2.Forward(
            "p", [7, 8], 3, "news", [1, 1], packed("a", "c")
        )

    def test_no_more_than_it_may_have(self) -> None:
        batches = [publish(number, number - 1, "x" * 100) for number in range(1, 5)]
        chain = Chain(batches[0], 2 * packet_bytes(batches[0].messages))
        assert [chain.join(batch) for batch in batches[1:]] == [True, True, False]

    @given(chains_of(numbers))
    def test_its_packet_has_no_more_bytes_than_were_counted(
        self, chain: tuple[list[int], list[int], Packed]
    ) -> None:
        many, counts, messages = chain
        if messages.headers is None:
            fields = len(v2.encode(v2.Forward("p", [1], 0, "news", [1], packed(""))))
            counted = fields + packet_bytes(messages) + chains.BATCH_FIELD_BYTES * len(many) + 16
            assert len(v2.encode(v2.Forward("p", many, 0, "news", counts, messages))) <= counted


class Merging(RuleBasedStateMachine):
    """Publish through two producers to a consumer, over connections that break, with a disk that fails.

    A publisher sends all unconfirmed batches again when it changes its producer, and a producer when it has a
    new link. Reads divide them anew each time, so that a batch comes in other chains than before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = mock.patch("wsqueue.log.sqlite.Archive", FakeArchive)
        self.patch.start()
        self.producers = [self.new_producer() for _ in range(2)]
        self.secret = new_secret()["secret"]
        self.number = self.at = 0
        self.outstanding: dict[int, v2.Publish] = {}
        self.published: dict[int, v2.Publish] = {}
        self.confirmed: set[int] = set()
        # Batches on the connection of the publisher, packets and answers on each link.
        self.inbox: list[v2.Publish] = []
        self.pipes: list[list[bytes]] = [[], []]
        self.answers: list[list[v2.Packet]] = [[], []]
        self.links = [FakeConnection(), FakeConnection()]
        self.connection = FakeConnection()
        self.stored: list[Record] = []

    @initialize(mode=st.sampled_from(["memory", "sqlite", "sqlite"]))
    def begin(self, mode: str) -> None:
        self.on_disk = mode == "sqlite"
        self.start_consumer(StoreState(epochs=[], topics={}, numbers={}))
        self.change_producer(0)

    def new_producer(self) -> Producer:
        config = ProducerConfig(listen=["127.0.0.1:1"], consumers=["127.0.0.1:2/producer"])
        producer = Producer(config, Keys(PSK, PSK), Counter(), TlsContexts(config), Clients(Counter()))
        producer.links[0].queue.connected(v2=True)
        return producer

    def start_consumer(self, state: StoreState) -> None:
        FakeArchive.state = state
        retention = Retention(mode="sqlite", directory="/nowhere") if self.on_disk else Retention()
        config = ConsumerConfig(listen=["127.0.0.1:2"], retention=retention)
        self.consumer = Consumer(config, Keys(PSK, PSK), Counter(), TlsContexts(config), Clients(Counter()))
        if self.on_disk:
            asyncio.run(self.consumer.logs.open())
        endpoint = self.consumer.endpoint("/producer")
        assert isinstance(endpoint, ProducerEndpoint)
        self.endpoint = endpoint
        for link in range(2):
            self.renew_link(link)

    def renew_link(self, link: int) -> None:
        self.pipes[link], self.answers[link] = [], []
        self.links[link] = FakeConnection()
        self.endpoint.established(self.links[link])

    @rule(
        many=st.lists(
            st.tuples(st.sampled_from("aaab"), st.integers(1, 3), st.sampled_from([True] * 5 + [False])),
            min_size=1,
            max_size=6,
        ),
        reads=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    )
    def publish(self, many: list[tuple[str, int, bool]], reads: list[int]) -> None:
        for topic, count, is_text in many:
            self.number += 1
            texts = [f"{self.number}.{index}" for index in range(count)]
            data = packed(*texts) if is_text else packed(*map(str.encode, texts))
            after = max((one for one, batch in self.outstanding.items() if batch.topic == topic), default=0)
            batch = v2.Publish(self.number, after, topic, data)
            self.published[self.number] = self.outstanding[self.number] = batch
            self.inbox.append(batch)
        for count in reads:
            self.read(count)

    def read(self, count: int) -> None:
        batches, self.inbox = self.inbox[:count], self.inbox[count:]
        self.producers[self.at].received(self.connection, list(batches))

    def change_producer(self, at: int) -> None:
        self.producers[self.at].lost(self.connection, LOST)
        self.at, self.connection = at, FakeConnection()
        self.producers[at].established(self.connection)
        self.producers[at].received(self.connection, [v2.Publisher(self.secret)])
        self.inbox = list(self.outstanding.values())

    @rule(
        link=st.integers(0, 1),
        slice_bytes=st.sampled_from([1, 600, 2**20]),
        packets=st.integers(0, 4),
        answers=st.integers(0, 3),
    )
    def pass_on(self, link: int, slice_bytes: int, packets: int, answers: int) -> None:
        """Let a producer send some chains, the consumer read some, and the producer read some answers."""
        if link == self.at:
            self.read(3)
        self.pipes[link] += self.queue_of(link).next_slice(slice_bytes)
        self.hear(link)
        self.consume(link, packets)
        self.answer(link, answers)

    def consume(self, link: int, count: int) -> None:
        payloads, self.pipes[link] = self.pipes[link][:count], self.pipes[link][count:]
        self.endpoint.received(self.links[link], list(map(v2.decode, payloads)))
        self.collect()

    @precondition(lambda self: self.on_disk)
    @rule(count=st.integers(0, 3), fails=st.booleans())
    def commit(self, count: int, fails: bool) -> None:
        """Store some records; then the disk may be full: all that waits for it is refused."""
        archive = FakeArchive.opened
        archive.commit(min(count, len(archive.queue)))
        if fails and archive.queue:
            archive.fail()
        self.collect()

    def answer(self, link: int, count: int) -> None:
        """Let a producer read some answers of the consumer, and the publisher those of its producer."""
        answers, self.answers[link] = self.answers[link][:count], self.answers[link][count:]
        queue = self.queue_of(link)
        for packet in answers:
            if isinstance(packet, v2.Ack):
                queue.confirm(packet.numbers[-1][1], 0.0)
            else:
                assert isinstance(packet, v2.Refused)
                queue.refuse(packet, 0.0)
        self.hear(link)

    @rule(kind=st.sampled_from(["link", "link", "producer", "crash"]), which=st.integers(0, 1))
    def break_something(self, kind: str, which: int) -> None:
        if kind == "link":
            self.lose_link(which)
        elif kind == "producer":
            self.change_producer(which)
        elif self.on_disk:
            self.crash()

    def lose_link(self, link: int) -> None:
        """Let a link break; packets and answers on it are lost."""
        self.queue_of(link).disconnected(LOST)
        self.endpoint.lost(self.links[link], LOST)
        self.renew_link(link)
        self.queue_of(link).connected(v2=True)
        self.hear(link)

    def crash(self) -> None:
        """Kill the consumer, and start it with all that is on the disk."""
        self.stored = FakeArchive.opened.stored
        topics = {record.topic: TopicState(0, record.end, record.epoch) for record in self.stored}
        known = {(record.topic, record.publisher): record.number for record in self.stored}
        state = StoreState(epochs=self.consumer.logs.epochs.known(), topics=topics, numbers=known)
        for link in range(2):
            self.queue_of(link).disconnected(LOST)
        self.start_consumer(state)
        FakeArchive.opened.stored = self.stored
        for link in range(2):
            self.queue_of(link).connected(v2=True)
            self.hear(link)

    def queue_of(self, link: int) -> LinkQueue:
        return self.producers[link].links[0].queue

    def collect(self) -> None:
        """Put the consumer's answers on their links."""
        for link in range(2):
            self.answers[link] += self.links[link].take()

    def hear(self, link: int) -> None:
        """Let the publisher hear the answers of a producer."""
        queue = self.queue_of(link)
        queue.released()
        for origin, packet in queue.answers():
            if origin.connection is not self.connection:
                continue
            if isinstance(packet, v2.Ack):
                found = [number for first, last in packet.numbers for number in range(first, last + 1)]
                # None that is between them, and each once.
                assert len(found) == len(set(found))
                assert self.outstanding.keys() >= set(found)
                self.confirmed |= set(found)
            else:
                assert isinstance(packet, v2.Refused)
                assert packet.last is None
                found = [packet.number]
                assert self.on_disk
                assert packet.code in {"full", "after_refused"}
            for number in found:
                del self.outstanding[number]

    def log(self) -> dict[str, list[v2.Deliver]]:
        """Return all that the consumer has stored."""
        if self.on_disk:
            records = FakeArchive.opened.stored
        else:
            records = [one for topic in TOPICS for one in self.consumer.logs.topic(topic).read(0, 2**40)]
        found: dict[str, list[v2.Deliver]] = {topic: [] for topic in TOPICS}
        for record in records:
            deliver = v2.decode(record.packet)
            assert isinstance(deliver, v2.Deliver)
            assert (deliver.offset, record.end) == (record.offset, record.offset + deliver.messages.count)
            found[record.topic].append(deliver)
        return found

    @invariant()
    def every_confirmed_batch_is_stored_once_and_in_order(self) -> None:
        stored: set[int] = set()
        for topic, delivers in self.log().items():
            batches = [number for deliver in delivers for number in deliver.numbers]
            assert batches == sorted(set(batches))
            stored |= set(batches)
            offset = 0
            for deliver in delivers:
                assert deliver.offset == offset
                offset += deliver.messages.count
                expected = [self.published[number] for number in deliver.numbers]
                assert [one.topic for one in expected] == [topic] * len(expected)
                assert deliver.counts == [one.messages.count for one in expected]
                data = [message for one in expected for message in one.messages.unpack()]
                assert deliver.messages.unpack() == data
            # Nothing is stored behind a batch that the publisher still hopes for: there is no hole.
            hoped_for = [number for number, batch in self.outstanding.items() if batch.topic == topic]
            assert not batches or all(one in batches or one > batches[-1] for one in hoped_for)
        assert stored >= self.confirmed

    def teardown(self) -> None:
        """Let all go well: every batch has its outcome in the end."""
        if not hasattr(self, "consumer"):
            self.patch.stop()
            return
        for _ in range(3):
            self.change_producer(self.at)
            self.read(2**20)
            for link in range(2):
                self.pass_on(link, 2**20, 2**20, 0)
            if self.on_disk:
                self.commit(2**20, fails=False)
            for link in range(2):
                self.answer(link, 2**20)
        assert not self.outstanding
        self.every_confirmed_batch_is_stored_once_and_in_order()
        self.patch.stop()


Merging.TestCase.settings = examples(120, stateful_step_count=50)
TestMerging = Merging.TestCase
