"""A producer whose consumers share a log, and come and go: connections that the test plays."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wsqueue.config.keys import Keys
from wsqueue.config.model import Limits, ProducerConfig
from wsqueue.net.certificates import TlsContexts
from wsqueue.nodes import producer as producer_module
from wsqueue.nodes.clients import Clients
from wsqueue.nodes.consumer_link import ConsumerLink
from wsqueue.nodes.producer import Producer, public_id
from wsqueue.protocol import placement, v2
from wsqueue.protocol.access import ANYBODY
from wsqueue.protocol.close import CloseCode, Closed
from wsqueue.report.report import LinkStatus

from ...support.classic_peer import topic_of
from ...support.fake_connection import FakeConnection
from ...support.messages import packed
from ...support.raw_v2_peer import new_secret
from ...support.session_pair import PSK, few

LOST = Closed(CloseCode.ABNORMAL, "lost", by_peer=True)
CONSUMERS = 3
TOPICS = [topic_of(index, CONSUMERS) for index in range(CONSUMERS)]
TURNS = 10
"""Turns of the loop after which a timer of no seconds has fired."""

Batch = tuple[str, str, int]
"""Publisher, topic and number."""


@pytest.fixture(autouse=True, scope="module")
def _no_time() -> Iterator[None]:
    """Let topics move as soon as they may, and links open no connections of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "AWAY_SECONDS", 0.0)
        patch.setattr(placement, "BACK_SECONDS", 0.0)
        patch.setattr(producer_module, "CHECK_SECONDS", 0.0)
        patch.setattr(ConsumerLink, "start", lambda _link: None)
        yield


class Wire:
    """Play a consumer on one connection of a link.

    Attributes:
        connection: The connection; the consumer may go on with its batches after it is lost.
        batches: All that came on it.
        stored: How many of them are in the shared log.
        answered: How many of them are confirmed or refused.
    """

    def __init__(self, cluster: Cluster, index: int, *, log: str | None, available: bool = True) -> None:
        self.cluster, self.link = cluster, cluster.producer.links[index]
        self.connection = FakeConnection()
        self.connection.session.v2 = True
        self.connection.heard_at = monotonic()
        self.batches: list[v2.Forward] = []
        self.stored = self.answered = 0
        self.link.established(self.connection)
        if log is not None:
            self.say(v2.Log(log, available))

    def say(self, packet: v2.Packet) -> None:
        self.connection.heard_at = monotonic()
        self.link.received(self.connection, [packet])

    def read(self) -> None:
        """Take all that is sent; chains are taken apart."""
        for packet in self.connection.take():
            assert isinstance(packet, v2.Forward)
            after = packet.after
            for number in packet.numbers:
                self.batches.append(
                    v2.Forward(packet.publisher, [number], after, packet.topic, [1], packet.messages)
                )
                after = number

    def numbers(self) -> list[int]:
        """Return the numbers of all batches that came."""
        self.read()
        return [batch.numbers[0] for batch in self.batches]

    def store(self, count: int) -> None:
        """Append the next batches to the shared log, as docs/protocol.md has it."""
        self.read()
        for batch in self.batches[self.stored : self.stored + count]:
            stored, number = self.cluster.log[batch.publisher, batch.topic], batch.numbers[0]
            if not stored or number > stored[-1]:
                assert not stored or batch.after <= stored[-1], "no batch overtakes another"
                stored.append(number)
            self.stored += 1

    def confirm(self) -> None:
        """Confirm all that is stored."""
        if self.stored > self.answered:
            self.answered = self.stored
            self.say(v2.Ack([(1, self.stored)]))


class Cluster:
    """Play the publishers and the consumers of a producer."""

    def __init__(self, publishers: int = 1, **limits: Any) -> None:
        addresses = [f"127.0.0.1:{port}/producer" for port in range(2, 2 + CONSUMERS)]
        config = ProducerConfig(listen=["127.0.0.1:1"], consumers=addresses, limits=Limits(**limits))
        self.producer = Producer(config, Keys(PSK, PSK), Counter(), TlsContexts(config), Clients(Counter()))
        self.log: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self.wires: dict[int, Wire] = {}
        self.zombies: list[Wire] = []
        self.publishers = [FakeConnection() for _ in range(publishers)]
        secrets = [new_secret()["secret"] for _ in self.publishers]
        self.ids = [public_id(secret, ANYBODY) for secret in secrets]
        for publisher, secret in zip(self.publishers, secrets, strict=True):
            self.producer.established(publisher)
            self.producer.received(publisher, [v2.Publisher(secret)])
        self.published: list[dict[int, str]] = [{} for _ in self.publishers]
        self.answers: list[list[v2.Packet]] = [[] for _ in self.publishers]

    def up(self, index: int, log: str | None = "a", *, available: bool = True) -> Wire:
        """Connect a consumer, or connect it anew."""
        self.down(index)
        wire = self.wires[index] = Wire(self, index, log=log, available=available)
        return wire

    def down(self, index: int) -> None:
        """Cut the connection of a consumer, which goes on with the batches that it has."""
        wire = self.wires.pop(index, None)
        if wire is not None:
            wire.read()
            self.zombies.append(wire)
            wire.link.lost(wire.connection, LOST)

    def publish(self, *topics: str, publisher: int = 0) -> None:
        """Publish a batch on each topic, in one read."""
        published = self.published[publisher]
        unanswered = published.keys() - self.acked(publisher)
        packets: list[v2.Packet] = []
        for topic in topics:
            number = len(published) + 1
            after = max((one for one in unanswered if published[one] == topic), default=0)
            packets.append(v2.Publish(number, after, topic, packed("x")))
            published[number] = topic
            unanswered.add(number)
        self.producer.received(self.publishers[publisher], list(packets))

    def acked(self, publisher: int = 0) -> set[int]:
        """Return the numbers that a publisher has got confirmations for."""
        self.answers[publisher] += self.publishers[publisher].take()
        acked: list[int] = []
        for packet in self.answers[publisher]:
            assert isinstance(packet, v2.Ack)
            for first, last in packet.numbers:
                acked += range(first, last + 1)
        assert len(set(acked)) == len(acked)
        return set(acked)

    @property
    def links(self) -> list[LinkStatus]:
        return self.producer.facts(0.0).links

    @property
    def held(self) -> int:
        return sum(link.held_messages for link in self.links)


async def turn() -> None:
    """Let topics move."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class TestOneThatDies:
    pytestmark = pytest.mark.anyio

    async def test_its_batches_go_to_another_one_and_later_ones_return(self) -> None:
        cluster = Cluster()
        first, second = cluster.up(0), cluster.up(1)
        cluster.up(2)
        await turn()
        cluster.publish(TOPICS[0], TOPICS[0])
        assert first.numbers() == [1, 2]
        cluster.down(0)
        cluster.publish(TOPICS[0])
        await turn()
        assert [link.away for link in cluster.links] == [True, False, False]
        assert cluster.producer.counters["failovers"] == 1
        assert not cluster.producer.not_ready()
        (other,) = [wire for wire in cluster.wires.values() if wire.numbers()]
        assert other.numbers() == [1, 2, 3]
        cluster.publish(TOPICS[0], TOPICS[1])
        back = cluster.up(0)
        await turn()
        assert back.numbers() == [1, 2, 3, 4]
        assert second.numbers()[-1] == 5
        assert not any(link.away for link in cluster.links)
        for wire in (other, back):
            wire.store(10)
            wire.confirm()
        assert cluster.acked() >= {1, 2, 3, 4}
        await cluster.producer.stop()

    @pytest.mark.parametrize(
        "late",
        [v2.Ack([(1, 2)]), v2.Refused(1, "full", "no room"), v2.Refused(1, "full", "no room", 2)],
        ids=["confirmation", "refusal", "range of refusals"],
    )
    async def test_late_answers_are_ignored(self, late: v2.Packet) -> None:
        cluster = Cluster()
        old = cluster.up(0)
        cluster.up(1)
        await turn()
        cluster.publish(TOPICS[0], TOPICS[0])
        assert old.numbers() == [1, 2]
        old.say(v2.Log("a", False))
        await turn()
        new = cluster.wires[1]
        assert new.numbers() == [1, 2]
        old.say(late)
        cluster.publish(TOPICS[0])
        assert old.connection.failed is None
        assert (cluster.acked(), new.numbers()) == (set(), [1, 2, 3])
        new.store(3)
        new.confirm()
        assert cluster.acked() == {1, 2, 3}
        assert cluster.held == 0
        await cluster.producer.stop()

    async def test_late_answers_count_for_the_batches_that_stayed(self) -> None:
        cluster = Cluster()
        for index in range(CONSUMERS):
            cluster.up(index)
        cluster.down(1)
        await turn()
        cluster.publish(TOPICS[0], TOPICS[1], TOPICS[0], TOPICS[1])
        (other,) = [wire for wire in cluster.wires.values() if 2 in wire.numbers()]
        cluster.up(1)
        await turn()
        assert set(cluster.wires[1].numbers()) == {2, 4}
        other.store(4)
        other.confirm()
        assert not cluster.acked() & {2, 4}
        await cluster.producer.stop()

    async def test_publishers_that_were_paused_for_it_go_on(self) -> None:
        cluster = Cluster(max_held_bytes=1000)
        cluster.up(1)
        cluster.up(0)
        await turn()
        cluster.down(0)
        cluster.publish(*[TOPICS[0]] * 100)
        assert cluster.publishers[0].paused == 1
        await turn()
        assert cluster.wires[1].numbers() == list(range(1, 101))
        assert cluster.publishers[0].paused == 0
        await cluster.producer.stop()

    async def test_a_drain_waits_for_batches_that_move(self) -> None:
        cluster = Cluster()
        cluster.up(0)
        other = cluster.up(1)
        cluster.publish(TOPICS[0])
        draining = asyncio.create_task(cluster.producer.drain())
        await turn()
        cluster.down(0)
        await turn()
        assert not draining.done()
        other.store(1)
        other.confirm()
        await draining
        assert cluster.acked() == {1}
        await cluster.producer.stop()

    async def test_nothing_moves_after_a_stop(self) -> None:
        cluster = Cluster()
        cluster.up(0)
        cluster.up(1)
        cluster.up(2)
        await turn()
        await cluster.producer.stop()
        cluster.down(0)
        await turn()
        assert cluster.producer.counters["failovers"] == 0


class TestOthers:
    pytestmark = pytest.mark.anyio

    async def test_logs_of_their_own_change_nothing(self) -> None:
        cluster = Cluster()
        for index in range(CONSUMERS):
            cluster.up(index, None)
        cluster.down(0)
        cluster.publish(*TOPICS)
        await turn()
        assert cluster.links[0].held_messages == 1
        assert cluster.producer.counters["failovers"] == 0
        assert cluster.producer.not_ready() == "no link to 127.0.0.1:2/producer"

    async def test_another_log_is_no_substitute(self) -> None:
        cluster = Cluster()
        cluster.up(0, "a")
        cluster.up(1, "b")
        cluster.up(2, "b")
        cluster.down(0)
        cluster.publish(TOPICS[0])
        await turn()
        assert cluster.links[0].held_messages == 1
        assert cluster.producer.not_ready() == "no link to 127.0.0.1:2/producer"
        await cluster.producer.stop()

    async def test_a_log_that_nobody_reaches(self) -> None:
        cluster = Cluster()
        for index in range(CONSUMERS):
            cluster.up(index, available=False)
        await turn()
        assert cluster.producer.not_ready() == "no log at " + ", ".join(
            f"127.0.0.1:{port}/producer" for port in (2, 3, 4)
        )
        cluster.wires[2].say(v2.Log("a", True))
        assert not cluster.producer.not_ready()
        await cluster.producer.stop()


INDEXES = st.integers(0, CONSUMERS - 1)
COUNTS = st.integers(1, 5)
PUBLISHERS = 2


class Machine(RuleBasedStateMachine):
    """Let consumers come and go with batches under way: each is stored once, in order, and confirmed."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.cluster = Cluster(PUBLISHERS)

    def run(self, step: Callable[[], object]) -> None:
        async def run() -> None:
            step()

        self.loop.run_until_complete(run())

    @rule(index=INDEXES, available=st.booleans())
    def up(self, index: int, available: bool) -> None:
        self.run(lambda: self.cluster.up(index, available=available))

    @rule(index=INDEXES)
    def down(self, index: int) -> None:
        self.run(lambda: self.cluster.down(index))

    @rule(index=INDEXES, available=st.booleans())
    def say(self, index: int, available: bool) -> None:
        if wire := self.cluster.wires.get(index):
            self.run(lambda: wire.say(v2.Log("a", available)))

    @rule(topics=st.lists(st.sampled_from(TOPICS), min_size=1, max_size=6), publisher=st.integers(0, 1))
    def publish(self, topics: list[str], publisher: int) -> None:
        self.run(lambda: self.cluster.publish(*topics, publisher=publisher))

    @rule(index=INDEXES, count=COUNTS)
    def store(self, index: int, count: int) -> None:
        if wire := self.cluster.wires.get(index):
            wire.store(count)

    @rule(index=INDEXES)
    def confirm(self, index: int) -> None:
        if wire := self.cluster.wires.get(index):
            self.run(wire.confirm)

    @rule(index=st.integers(0, 5), count=COUNTS)
    def store_late(self, index: int, count: int) -> None:
        for zombie in self.cluster.zombies[index : index + 1]:
            zombie.store(count)

    @rule()
    def move(self) -> None:
        self.loop.run_until_complete(turn())

    @invariant()
    def no_batch_is_forgotten(self) -> None:
        answered = sum(len(self.cluster.acked(publisher)) for publisher in range(PUBLISHERS))
        unanswered = sum(map(len, self.cluster.published)) - answered
        # A chain counts as a whole until all of its batches are answered.
        assert self.cluster.held >= unanswered
        assert bool(self.cluster.held) == bool(unanswered)

    def teardown(self) -> None:
        try:
            self.loop.run_until_complete(self._end())
        finally:
            self.loop.close()

    async def _end(self) -> None:
        cluster = self.cluster
        for index in range(CONSUMERS):
            cluster.up(index)
        for _ in range(3):
            await turn()
            for wire in cluster.wires.values():
                wire.store(10_000)
                wire.confirm()
        await cluster.producer.drain()
        await cluster.producer.stop()
        for publisher, published in enumerate(cluster.published):
            assert cluster.acked(publisher) == set(published)
            for topic in TOPICS:
                numbers = cluster.log[cluster.ids[publisher], topic]
                assert numbers == [number for number, on in published.items() if on == topic]


TestMachine = Machine.TestCase
TestMachine.settings = settings(few, stateful_step_count=40)
