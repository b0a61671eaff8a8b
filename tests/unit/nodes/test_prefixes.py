"""Subscriptions to all topics with a prefix at a consumer, over connections that the test plays."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.config.keys import Keys
from wsqueue.config.model import ConsumerConfig, Retention
from wsqueue.log import shared_names
from wsqueue.log.engine import place_of
from wsqueue.net.certificates import TlsContexts
from wsqueue.net.connection import Handler
from wsqueue.nodes import consumer as consumer_module
from wsqueue.nodes import prefixes
from wsqueue.nodes.clients import Clients
from wsqueue.nodes.consumer import Consumer
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode

from ...support.fake_connection import FakeConnection
from ...support.session_pair import PSK
from .test_shared_consumers import LOST, STREAMS, Shared, chain, messages_in, settled, two_consumers

pytestmark = pytest.mark.anyio


class Peer:
    """A subscriber of a consumer."""

    def __init__(self, node: Consumer) -> None:
        endpoint, self.connection = node.endpoint("/subscribe"), FakeConnection()
        assert isinstance(endpoint, Handler)
        self.endpoint = endpoint
        endpoint.established(self.connection)
        self.packets: list[v2.Packet] = []

    def send(self, *packets: v2.Packet) -> None:
        self.endpoint.received(self.connection, list(packets))

    async def follow(self, prefix: str, start: Any = "latest", **more: Any) -> list[v2.Packet]:
        """Follow a prefix, and return all packets up to the answer."""
        self.send(v2.Follow(prefix, start, **more))
        await settled(lambda: any(isinstance(one, v2.Followed) for one in self.connection.packets))
        return self.connection.take()

    async def took(self, count: int) -> list[v2.Packet]:
        """Return packets, once there are that many."""
        await settled(lambda: len(self.connection.packets) >= count)
        return self.connection.take()


class Node:
    """A consumer with a log in memory, and a producer."""

    def __init__(self, **retention: Any) -> None:
        config = ConsumerConfig(listen=["127.0.0.1:1"], retention=Retention(**retention))
        self.clients = Clients(Counter())
        self.consumer = Consumer(config, Keys(PSK, PSK), Counter(), TlsContexts(config), self.clients)
        producer = self.consumer.endpoint("/producer")
        assert isinstance(producer, Handler)
        self.producer, self.connection = producer, FakeConnection()
        producer.established(self.connection)
        self._number = 0

    def publish(self, *topics: str) -> None:
        """Publish a message on each topic, all in one read."""
        chains = []
        for topic in topics:
            self._number += 1
            chains.append(chain(topic, self._number))
        self.producer.received(self.connection, list(chains))

    def is_followed(self) -> bool:
        return self.consumer.logs.followed


def subscribed(packets: list[v2.Packet]) -> dict[str, tuple[int, int]]:
    return {one.topic: (one.offset, one.end) for one in packets if isinstance(one, v2.Subscribed)}


def delivered(packets: list[v2.Packet]) -> list[tuple[str, int]]:
    return [(one.topic, one.offset) for one in packets if isinstance(one, v2.Deliver)]


def followed(packets: list[v2.Packet]) -> int:
    return sum(isinstance(one, v2.Followed) for one in packets)


async def test_topics_that_are_there_and_those_that_come() -> None:
    node = Node()
    node.publish("s/a", "s/b", "s/a", "t/a")
    peer = Peer(node.consumer)
    packets = await peer.follow("s/")
    assert subscribed(packets) == {"s/a": (2, 2), "s/b": (1, 1)}
    assert packets[-1] == v2.Followed("s/")
    node.publish("s/a", "t/b", "s/c", "s/c", "s")
    packets = peer.connection.take()
    assert subscribed(packets) == {"s/c": (0, 0)}
    assert delivered(packets) == [("s/a", 2), ("s/c", 0), ("s/c", 1)]


@pytest.mark.parametrize(
    ("start", "more", "first"),
    [("earliest", {}, 0), ("last", {"count": 2}, 1), ("time", {"time": 0.0}, 0), ("time", {"time": 9e15}, 3)],
)
async def test_starts(start: str, more: dict[str, Any], first: int) -> None:
    node = Node()
    node.publish(*["s/a"] * 3)
    peer = Peer(node.consumer)
    packets = await peer.follow("s/", start, **more)
    packets += await peer.took(3 - first - len(delivered(packets)))
    assert subscribed(packets) == {"s/a": (first, 3)}
    # Messages come behind the answer, so that a client has that before it stops reading.
    assert packets[1] == v2.Followed("s/")
    assert delivered(packets) == [("s/a", offset) for offset in range(first, 3)]


async def test_the_empty_prefix_is_that_of_all_topics() -> None:
    node = Node()
    node.publish("a", "b!work!dead")
    peer = Peer(node.consumer)
    assert subscribed(await peer.follow("")) == {"a": (1, 1), "b!work!dead": (1, 1)}
    node.publish("", "ü")
    assert subscribed(peer.connection.take()) == {"": (0, 0), "ü": (0, 0)}


async def test_a_topic_without_messages_joins_with_its_next_one() -> None:
    node = Node(max_age_seconds=60)
    node.publish("s/a", "s/a")
    seconds = time.time() + 3600
    node.consumer.logs._clock = lambda: seconds  # type: ignore[attr-defined]
    node.consumer.logs.trim()
    other, peer = Peer(node.consumer), Peer(node.consumer)
    other.send(v2.Subscribe("s/a"), v2.Subscribe("s/b"))
    assert subscribed(await peer.follow("s/", "earliest")) == {}
    node.publish("s/a")
    packets = peer.connection.take()
    assert (subscribed(packets), delivered(packets)) == ({"s/a": (2, 2)}, [("s/a", 2)])


async def test_what_the_client_has_asked_for_is_left_alone() -> None:
    node = Node()
    node.publish(*["s/a"] * 3, "s/b")
    peer = Peer(node.consumer)
    log = node.consumer.logs.epochs.current.id
    peer.send(v2.Subscribe("s/a", "offset", log=log, offset=1))
    packets = await peer.follow("s/", "earliest")
    packets += await peer.took(1)
    assert subscribed(packets) == {"s/a": (1, 3), "s/b": (0, 1)}
    assert sorted(delivered(packets)) == [("s/a", 1), ("s/a", 2), ("s/b", 0)]
    # A topic that is given up comes back with a message only if it has had none.
    peer.send(v2.Unsubscribe("s/a"))
    node.publish("s/a", "s/b")
    packets = peer.connection.take()
    assert packets[0] == v2.Unsubscribed("s/a")
    assert delivered(packets) == [("s/b", 1)]


async def test_topics_that_come_while_the_first_ones_join_begin_as_these(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefixes, "TURN_JOINS", 1)
    node = Node()
    node.publish("s/a", "s/b", "s/c")
    peer = Peer(node.consumer)
    peer.send(v2.Follow("s/", "earliest"))
    await settled(lambda: bool(peer.connection.packets))
    node.publish("s/d", "s/a")
    await settled(lambda: any(isinstance(one, v2.Followed) for one in peer.connection.packets))
    await settled(lambda: len(peer.connection.packets) >= 10)
    packets = peer.connection.take()
    assert set(subscribed(packets)) == {"s/a", "s/b", "s/c", "s/d"}
    assert sorted(delivered(packets)) == [("s/a", 0), ("s/a", 1), ("s/b", 0), ("s/c", 0), ("s/d", 0)]


async def test_many_new_topics_join_in_several_turns_without_a_loss() -> None:
    node = Node()
    peers = [Peer(node.consumer) for _ in range(3)]
    for peer in peers:
        assert await peer.follow("s/") == [v2.Followed("s/")]
    topics = [f"s/{number}" for number in range(3 * prefixes.TURN_JOINS)]
    node.publish(*topics)
    at_once = sum(len(subscribed(peer.connection.packets)) for peer in peers)
    assert at_once == prefixes.TURN_JOINS
    node.publish(*topics)
    for peer in peers:
        packets = await peer.took(3 * len(topics))
        assert sorted(delivered(packets)) == sorted((topic, n) for topic in topics for n in range(2))
        assert not any(isinstance(one, v2.Gap) for one in packets)


async def test_a_topic_that_waits_and_is_asked_for_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "TURN_JOINS", 1)
    node = Node()
    node.consumer.prefixes._make_room()
    peer = Peer(node.consumer)
    await peer.follow("s/")
    node.publish("s/a", "s/b", "s/c")
    peer.send(v2.Subscribe("s/c", "earliest"))
    packets = await peer.took(6)
    await settled(turns=20)
    packets += peer.connection.take()
    assert sorted(delivered(packets)) == [("s/a", 0), ("s/b", 0), ("s/c", 0)]


async def test_too_many_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    node.consumer.prefixes.max_topics = 3
    monkeypatch.setattr(consumer_module, "MAX_TOPICS_PER_CONNECTION", 3)
    node.publish("s/a", "s/b", "s/c")
    full, peer = Peer(node.consumer), Peer(node.consumer)
    full.send(v2.Subscribe("t"), v2.Follow("s/"))
    await settled(lambda: full.connection.failed is not None)
    assert full.connection.failed == CloseCode.TOO_MANY_TOPICS
    # None of the topics that are too many has been joined.
    assert subscribed(full.connection.take()) == {"t": (0, 0)}
    assert len(subscribed(await peer.follow("s/"))) == 3
    node.publish("t/a")
    assert peer.connection.failed is None
    node.publish("s/d")
    assert peer.connection.failed == CloseCode.TOO_MANY_TOPICS


async def test_another_prefix_takes_the_place_of_the_first() -> None:
    node = Node()
    node.publish("s/a", "t/a")
    peer = Peer(node.consumer)
    await peer.follow("s/")
    assert subscribed(await peer.follow("t/")) == {"t/a": (1, 1)}
    node.publish("s/b", "t/b", "s/a")
    packets = peer.connection.take()
    assert delivered(packets) == [("t/b", 0), ("s/a", 1)]


async def test_a_prefix_that_is_replaced_before_its_answer_holds_nothing_back() -> None:
    node = Node()
    node.consumer.max_topic_bytes = 8
    node.publish("s/a")
    peer = Peer(node.consumer)
    peer.send(v2.Subscribe("s/a", "earliest"), v2.Follow("s/"), v2.Subscribe("t", "earliest"))
    peer.send(v2.Follow("long prefix"))
    assert peer.connection.failed == CloseCode.TOPIC_TOO_LONG
    again = Peer(node.consumer)
    again.send(v2.Follow("s/"), v2.Subscribe("s/a", "earliest"), v2.Follow("t/"))
    packets = await again.took(3)
    assert sorted(type(one).__name__ for one in packets) == ["Deliver", "Followed", "Subscribed"]


async def test_nothing_is_left_of_a_follower_that_is_gone() -> None:
    node = Node()
    node.publish("s/a")
    peer, early = Peer(node.consumer), Peer(node.consumer)
    await peer.follow("s/")
    early.send(v2.Follow("s/"))
    assert node.is_followed()
    for one in (peer, early):
        one.endpoint.lost(one.connection, LOST)
        one.endpoint.lost(one.connection, LOST)
    assert not node.is_followed()
    await settled(turns=10)
    node.publish("s/b")
    assert not node.consumer.readers.subscribers("s/b")
    assert node.consumer.logs.topic("s/a").readers == 0


async def test_a_connection_that_has_no_room_gets_no_more() -> None:
    node = Node()
    peer = Peer(node.consumer)
    await peer.follow("s/")
    node.consumer.logs.index.limit = node.consumer.logs.index.used
    node.publish("s/a", "s/b")
    assert peer.connection.failed == CloseCode.TOO_MANY_SUBSCRIPTIONS
    assert not node.is_followed()
    peer.send(v2.Follow("s/"))
    assert not node.is_followed()


NAMES = st.text("ab/", max_size=3)
STEPS: st.SearchStrategy[tuple[str, list[str]]] = st.one_of(
    st.tuples(st.just("publish"), st.lists(NAMES, min_size=1, max_size=4)),
    st.tuples(st.just("subscribe"), st.lists(NAMES, min_size=1, max_size=2)),
    st.sampled_from([("follow", []), ("turn", []), ("congest", []), ("room", [])]),
)


@given(NAMES, st.lists(STEPS, max_size=15))
def test_a_follower_gets_what_subscribers_of_each_topic_get(
    prefix: str, steps: list[tuple[str, list[str]]]
) -> None:
    """From the earliest message on, that is all of each topic, once and in order, whenever it begins."""

    async def check() -> None:
        node, asked, count = Node(), False, Counter[str]()
        peer = Peer(node.consumer)
        for step, names in [*steps, ("follow", []), ("room", [])]:
            if step == "publish":
                node.publish(*names)
                count.update(names)
            elif step == "subscribe":
                # Asking again would deliver again.
                new = [name for name in names if f"{prefix}{name}" not in peer.endpoint._readers]  # type: ignore[attr-defined]
                peer.send(*(v2.Subscribe(f"{prefix}{name}", "earliest") for name in dict.fromkeys(new)))
            elif step == "follow" and not asked:
                asked = True
                peer.send(v2.Follow(prefix, "earliest"))
            elif step in ("congest", "room"):
                peer.connection.is_congested = step == "congest"
                if step == "room":
                    peer.endpoint.writable(peer.connection)
            else:
                await asyncio.sleep(0)
        wanted = sorted((name, n) for name in count if name.startswith(prefix) for n in range(count[name]))
        packets = peer.connection.packets
        await settled(lambda: len(delivered(packets)) >= len(wanted) and followed(packets) > 0, turns=200)
        assert sorted(delivered(packets)) == wanted
        for name in count:
            offsets = [offset for topic, offset in delivered(packets) if topic == name]
            assert offsets == sorted(offsets)
        assert followed(packets) == 1

    asyncio.run(check())


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Shared]]:
    async with two_consumers(monkeypatch) as consumers:
        yield consumers


class Writer:
    """A producer of a consumer that shares its log."""

    def __init__(self, shared: Shared, name: str) -> None:
        self.endpoint, self.connection = shared.connected("/producer")
        self._name, self._number = name, 0
        self.connection.take()

    async def publish(self, *topics: str) -> None:
        """Publish a message on each topic, and wait until all are confirmed."""
        for topic in topics:
            self._number += 1
            self.endpoint.received(self.connection, [chain(topic, self._number, publisher=self._name)])
        await settled(lambda: sum(one.numbers[-1][1] == self._number for one in self._acks) > 0, turns=20_000)
        assert self._acks
        self.connection.take()

    @property
    def _acks(self) -> list[v2.Ack]:
        return [one for one in self.connection.packets if isinstance(one, v2.Ack)]


async def test_one_of_the_consumers_that_share_a_log_has_all_topics(two: list[Shared]) -> None:
    writers = [Writer(one, f"p{number}") for number, one in enumerate(two)]
    await writers[0].publish(*(f"s/{number}" for number in range(10)), "t")
    await writers[1].publish("s/x")
    peer = Peer(two[1].consumer)
    packets = await peer.follow("s/")
    assert set(subscribed(packets)) == {*(f"s/{number}" for number in range(10)), "s/x"}
    assert packets[-1] == v2.Followed("s/")
    # One that another consumer begins, one that this one begins, and others that are known or don't match.
    await writers[0].publish("s/y", "s/y", "s/1", "u")
    await writers[1].publish("s/z", "s/2")
    await settled(lambda: len(messages_in(peer.connection.packets)) == 5)
    assert sorted(delivered(peer.connection.take())) == [
        ("s/1", 1),
        ("s/2", 1),
        ("s/y", 0),
        ("s/y", 1),
        ("s/z", 0),
    ]


async def test_topics_are_found_whose_notices_are_lost(two: list[Shared]) -> None:
    writer, peer = Writer(two[0], "p"), Peer(two[1].consumer)
    assert await peer.follow("s/") == [v2.Log("the log", available=True), v2.Followed("s/")]
    two[1].engine.deaf = True
    await writer.publish("s/a", "s/b", "s/c", "s/d", "s/a")
    await settled(lambda: len(messages_in(peer.connection.packets)) == 5)
    assert sorted(delivered(peer.connection.packets)) == [
        ("s/a", 0),
        ("s/a", 1),
        ("s/b", 0),
        ("s/c", 0),
        ("s/d", 0),
    ]


async def test_topics_are_listed_once_the_engine_answers(
    two: list[Shared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "RETRY_SECONDS", 0)
    await Writer(two[0], "p").publish("s/a")
    two[1].engine.is_connected = False
    peer = Peer(two[1].consumer)
    peer.send(v2.Follow("s/", "earliest"))
    await settled(turns=100)
    assert not subscribed(peer.connection.packets)
    two[1].engine.is_connected = True
    await settled(lambda: bool(messages_in(peer.connection.packets)))
    assert delivered(peer.connection.packets) == [("s/a", 0)]


async def test_a_server_that_is_behind_hides_no_topic(
    two: list[Shared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "RETRY_SECONDS", 0)
    await Writer(two[0], "p").publish("s/a", "s/b")
    engine, newest = two[1].engine, two[1].engine.newest
    asked = 0

    async def behind(stream: int, tokens: Any) -> Any:
        nonlocal asked
        asked += 1
        return [] if asked < 4 else await newest(stream, tokens)

    engine.newest = behind  # type: ignore[method-assign]
    peer = Peer(two[1].consumer)
    assert set(subscribed(await peer.follow("s/", "earliest"))) == {"s/a", "s/b"}


async def test_a_record_of_somebody_else_is_no_topic(two: list[Shared]) -> None:
    log = two[0].engine.log
    log.append(place_of("nobody", STREAMS), b"nonsense", 0)
    peer = Peer(two[0].consumer)
    assert (await peer.follow(""))[-1] == v2.Followed("")


async def test_a_shared_log_with_too_many_topics(two: list[Shared], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_names, "MAX_NAMES_BYTES", 3 * shared_names.ENTRY_BYTES + 300)
    await Writer(two[0], "p").publish("a", "b", "c")
    peer = Peer(two[1].consumer)
    assert (await peer.follow(""))[-1] == v2.Followed("")
    await Writer(two[0], "q").publish("d")
    other = Peer(two[1].consumer)
    assert (await other.follow(""))[-1] == v2.Followed("", "full")
    # One that begins without a notice can't be found, and whoever would miss it is told.
    two[1].engine.deaf = True
    await Writer(two[0], "r").publish("e")
    await settled(lambda: peer.connection.failed is not None)
    assert peer.connection.failed == CloseCode.TOO_MANY_SUBSCRIPTIONS
    assert other.connection.failed is None
