"""Subscriptions to all topics with a prefix: topics that come later, restarts, rights and limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import wsqueue
from wsqueue.client import failover
from wsqueue.nodes import consumer as consumer_module
from wsqueue.nodes import prefixes
from wsqueue.nodes import producer as producer_module
from wsqueue.protocol import placement
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.routing import topic_hash

from ..support.classic_peer import IndependentConsumer, serving
from ..support.nats_servers import NatsServers
from ..support.nodes import BILLING, KEY, Nodes, RunningNode, cut, write_key
from ..support.ports import free_port
from ..support.raw_v2_peer import V2Socket
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

MODES = pytest.mark.parametrize("mode", ["memory", "sqlite"])


class Cluster:
    """Two consumers with logs of their own, on ports that stay, and a producer."""

    def __init__(self, consumers: list[RunningNode], producer: RunningNode, nodes: Nodes) -> None:
        self.consumers, self.producer, self._nodes = consumers, producer, nodes

    def client(self) -> wsqueue.Client:
        return self._nodes.client([self.producer], self.consumers)


async def cluster(nodes: Nodes, mode: str = "memory", **settings: Any) -> Cluster:
    consumers = [
        await nodes.consumer(
            free_port(), retention={"mode": mode, "directory": f"{nodes.directory}/log-{number}"}, **settings
        )
        for number in range(2)
    ]
    producer = await nodes.producer(consumers)
    await producer.ready()
    return Cluster(consumers, producer, nodes)


def topics_at(consumer: int, count: int, *, beyond: int = 0) -> list[str]:
    """Return topics that begin with `s/` and live at one of two consumers."""
    names = (f"s/{number}" for number in range(beyond, 1000))
    return [name for name in names if topic_hash(name) % 2 == consumer][:count]


async def collect(
    subscription: wsqueue.Subscription[wsqueue.Message], count: int
) -> list[tuple[str, str | bytes]]:
    """Return the next messages, sorted."""
    async with soon():
        found = [await anext(subscription) for _ in range(count)]
    return sorted((one.topic, one.data) for one in found)


async def stored(
    client: wsqueue.Client, prefix: str, start: Any = "earliest"
) -> list[tuple[str, str | bytes]]:
    """Return all stored messages of topics with a prefix, sorted."""
    subscription = client.subscribe(prefix=prefix, start=start, follow=False)
    return sorted([(one.topic, one.data) async for one in subscription])


@MODES
async def test_topics_of_all_consumers_and_those_that_come(nodes: Nodes, mode: str) -> None:
    made = await cluster(nodes, mode)
    old, new = topics_at(0, 2) + topics_at(1, 2), topics_at(0, 2, beyond=500) + topics_at(1, 2, beyond=500)
    async with soon(), made.client() as client:
        for topic in [*old, "other"]:
            await client.publish(topic, "0")
        async with client.subscribe(prefix="s/") as subscription:
            for topic in [*old, *new, "other"]:
                await client.publish(topic, "1", "2")
            expected = sorted((topic, data) for topic in old + new for data in "12")
            assert await collect(subscription, 16) == expected
        everything = sorted((topic, data) for topic in old for data in "012")
        everything = sorted(everything + [(topic, data) for topic in new for data in "12"])
        assert await stored(client, "s/") == everything
        assert await stored(client, "s/", -1) == sorted((topic, "2") for topic in old + new)
        assert await stored(client, "s/", datetime.fromtimestamp(0, UTC)) == everything
        assert await stored(client, "s/", "latest") == []
        assert await stored(client, "nothing/") == []
        assert len(await stored(client, "")) == 16 + 4 + 3


@pytest.mark.parametrize(("mode", "how"), [("memory", "stop"), ("sqlite", "stop"), ("sqlite", "crash")])
async def test_topics_that_come_while_a_consumer_is_away(nodes: Nodes, mode: str, how: str) -> None:
    made = await cluster(nodes, mode)
    old, new = topics_at(0, 3), topics_at(0, 3, beyond=500)
    async with soon(), made.client() as client:
        await client.publish(old[0], "0")
        async with client.subscribe(prefix="s/") as subscription:
            await client.publish(old[0], "1")
            await client.publish(old[1], "1")
            # The subscriber goes on in both, and has not read the last messages.
            assert await collect(subscription, 1) == [(old[0], "1")]
            await (made.consumers[0].stop() if how == "stop" else made.consumers[0].crash())
            publishing = [asyncio.create_task(client.publish(one, "2")) for one in [*old[:2], *new]]
            await made.consumers[0].restart()
            await asyncio.gather(*publishing)
            await client.publish(old[2], "3")
            expected = [(old[1], "1"), *((one, "2") for one in [*old[:2], *new]), (old[2], "3")]
            assert await collect(subscription, 7) == sorted(expected)
            await client.publish(old[0], "4")
            assert await collect(subscription, 1) == [(old[0], "4")]


@MODES
async def test_topics_that_come_while_the_subscriber_is_away(nodes: Nodes, mode: str) -> None:
    made = await cluster(nodes, mode)
    topics = topics_at(0, 200)
    async with soon(), made.client() as client, client.subscribe(prefix="s/") as subscription:
        for number, topic in enumerate(topics):
            client.publish_nowait(topic, "0")
            if not number % 20:
                await client.flush()
                # The clients' connections, and not that of the producer.
                for connection in list(made.consumers[0].connections):
                    if connection.handler is not None and connection.handler.peer_role == "subscriber":
                        cut(connection)
        assert await collect(subscription, 200) == sorted((topic, "0") for topic in topics)
        await client.publish(topics[0], "1")
        assert await collect(subscription, 1) == [(topics[0], "1")]


async def test_a_log_that_is_lost_is_a_gap_in_the_topics_that_were_known(nodes: Nodes) -> None:
    made = await cluster(nodes)
    first, second = topics_at(0, 2)
    async with soon(), made.client() as client, client.subscribe(prefix="s/", on_gap="yield") as subscription:
        await client.publish(first, "0")
        assert (await anext(subscription)) == wsqueue.Message(
            first, "0", made.consumers[0].consumer.logs.epochs.current.id
        )
        await made.consumers[0].crash()
        await made.consumers[0].restart()
        assert await anext(subscription) == wsqueue.Gap(first, None)
        await client.publish(second, "1")
        message = await anext(subscription)
        assert isinstance(message, wsqueue.Message)
        assert (message.topic, message.data) == (second, "1")


async def test_a_slow_application_pauses_the_consumers(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsqueue.client.inbox.MAX_WAITING_MESSAGES", 10)
    made = await cluster(nodes)
    topics = topics_at(0, 20) + topics_at(1, 20)
    async with soon(), made.client() as client:
        for topic in topics:
            await client.publish(topic, *("x" * 50_000 for _ in range(10)))
        async with client.subscribe(prefix="s/", start="earliest") as subscription:
            await asyncio.sleep(0.2)
            assert len(subscription._feed.inbox) < 300
            assert len(await collect(subscription, 400)) == 400


async def test_topics_come_from_their_home_only(nodes: Nodes) -> None:
    made = await cluster(nodes)
    topic = topics_at(0, 1)[0]
    reversed_producer = await nodes.producer(made.consumers[::-1])
    async with soon(), made.client() as client:
        async with nodes.client([reversed_producer], made.consumers) as other:
            await other.publish(topic, "stale")
        await client.publish(topic, "1")
        assert await stored(client, "s/") == [(topic, "1")]
        async with client.subscribe(prefix="s/", start="earliest") as subscription:
            assert await collect(subscription, 1) == [(topic, "1")]
            await made.consumers[0].subscribed(topic, 1)
            await made.consumers[1].subscribed(topic, 0)


async def test_dead_letters_are_topics(nodes: Nodes) -> None:
    made = await cluster(nodes)
    async with soon(), made.client() as client, client.subscribe(prefix="s/") as subscription:
        await client.publish("s/jobs", "0")
        async with client.subscribe("s/jobs", group="work") as jobs:
            await (await anext(jobs)).reject("no")
        assert await collect(subscription, 2) == [("s/jobs", "0"), ("s/jobs!work!dead", "0")]


async def test_rights(nodes: Nodes) -> None:
    write_key(nodes.directory, "billing", BILLING)
    rights: dict[str, Any] = {"subscribe": ["s/a/*", "t"]}
    consumer = await nodes.consumer(clients=[{"name": "billing", "key_file": "billing.key"} | rights])
    producer = await nodes.producer([consumer])
    options: dict[str, Any] = {
        "producers": [f"{producer.address}/produce"],
        "consumers": [f"{consumer.address}/subscribe"],
    }
    token = wsqueue.Token.make(BILLING, name="billing", subscribe=["s/*"], publish=[]).text
    async with soon(), nodes.client([producer], [consumer]) as everybody:
        await everybody.publish("s/a/1", "0")
        credentials: list[dict[str, Any]] = [{"psk": BILLING, "name": "billing"}, {"token": token}]
        for credential in credentials:
            async with wsqueue.connect(**options, **credential) as client:
                assert await stored(client, "s/a/") == [("s/a/1", "0")]
                assert await stored(client, "s/a/1") == [("s/a/1", "0")]
                for prefix in ("s/", "s/a", "t", ""):
                    with pytest.raises(
                        wsqueue.NotAllowedError, match=f"all topics that begin with '{prefix}'"
                    ):
                        await stored(client, prefix)
    assert consumer.counters["not_allowed"] == 8


async def test_a_key_that_uses_few_topics(nodes: Nodes) -> None:
    write_key(nodes.directory, "billing", BILLING)
    rights: dict[str, Any] = {"subscribe": ["*"], "max_topics": 2}
    consumer = await nodes.consumer(clients=[{"name": "billing", "key_file": "billing.key"} | rights])
    producer = await nodes.producer([consumer])
    async with soon(), nodes.client([producer], [consumer]) as everybody:
        for topic in ("s/1", "s/2", "s/3"):
            await everybody.publish(topic, "0")
        async with wsqueue.connect(
            producers=[f"{producer.address}/produce"],
            consumers=[f"{consumer.address}/subscribe"],
            psk=BILLING,
            name="billing",
        ) as client:
            with pytest.raises(wsqueue.NotAllowedError, match="may not subscribe to 's/3'"):
                await stored(client, "s/")


async def test_too_many_topics(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "MAX_TOPICS_PER_CONNECTION", 4)
    consumer, producer = await nodes.cluster()
    async with soon(), nodes.client([producer], [consumer]) as client:
        for number in range(4):
            await client.publish(f"s/{number}", "0")
        subscription = client.subscribe(prefix="s/")
        async with subscription:
            await client.publish("s/4", "0")
            with pytest.raises(wsqueue.ConnectError, match="at most 4"):
                await collect(subscription, 2)
        with pytest.raises(wsqueue.ConnectError, match=r"4413.*at most 4: expected a longer prefix"):
            await stored(client, "s/")
        assert len(await stored(client, "s/4")) == 1


async def test_a_consumer_that_only_speaks_classic(nodes: Nodes) -> None:
    independent = IndependentConsumer(KEY, "document")
    async with soon(), serving(independent.handle) as address, nodes.client([address], [address]) as client:
        with pytest.raises(wsqueue.ConnectError, match="this end does not speak the classic protocol"):
            await stored(client, "s/")


@pytest.mark.parametrize(
    ("call", "kind", "error"),
    [
        (lambda client: client.subscribe("jobs", prefix="s/"), ValueError, "a prefix stands for topics"),
        (lambda client: client.subscribe(prefix="s/", reader="r"), ValueError, "a prefix stands for topics"),
        (lambda client: client.subscribe(prefix="s/", group="g"), ValueError, "a prefix stands for topics"),
        (lambda client: client.subscribe(prefix="s/", start=5), ValueError, "an offset belongs to one topic"),
        (lambda client: client.subscribe(prefix="s/", start="x"), ValueError, "'x' is not a start"),
        (lambda client: client.subscribe(prefix=5), wsqueue.InvalidMessage, "is int, expected str"),
        (lambda client: client.subscribe(prefix="x" * 9999), wsqueue.InvalidMessage, "max_topic_bytes"),
        (lambda client: client.subscribe(), wsqueue.InvalidMessage, "at least one, or a prefix"),
    ],
)
async def test_prefixes_that_cannot_be(
    nodes: Nodes, call: Callable[[wsqueue.Client], object], kind: type[Exception], error: str
) -> None:
    async with nodes.client(["127.0.0.1:1"], ["127.0.0.1:1"]) as client:
        with pytest.raises(kind, match=error):
            call(client)


async def test_packets_of_a_peer(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, producer = await nodes.cluster(max_topic_bytes=20)
    async with soon(), nodes.client([producer], [consumer]) as client:
        await client.publish("s/a", "0")
        async with V2Socket.speaking(consumer.address, "/subscribe", KEY) as raw:
            raw.send({"t": "follow", "prefix": "s/", "start": "last", "count": 1})
            assert (await raw.next("subscribed"))["topic"] == "s/a"
            assert await raw.next("followed") == {"t": "followed", "prefix": "s/"}
            assert (await raw.next("deliver"))["topic"] == "s/a"
        for packet, code in (
            ({"prefix": "s" * 21}, CloseCode.TOPIC_TOO_LONG),
            ({}, CloseCode.INVALID_PACKET),
            ({"prefix": b"s/"}, CloseCode.INVALID_PACKET),
            ({"prefix": "s/", "start": "offset"}, CloseCode.INVALID_PACKET),
            ({"prefix": "s/", "start": "time"}, CloseCode.INVALID_PACKET),
            ({"prefix": "s/", "count": 1}, CloseCode.INVALID_PACKET),
            ({"prefix": "s/", "start": "last", "count": 0}, CloseCode.INVALID_PACKET),
        ):
            async with V2Socket.speaking(consumer.address, "/subscribe", KEY) as raw:
                raw.send({"t": "follow"} | packet)
                assert (await raw.close_frame())[0] == code
        async with V2Socket.speaking(producer.address, "/produce", KEY) as raw:
            raw.send({"t": "follow", "prefix": "s/"})
            assert (await raw.close_frame())[0] == CloseCode.UNEXPECTED_PACKET


# ---- a log that consumers share


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[NatsServers]:
    async with NatsServers(tmp_path) as servers:
        yield servers


@contextlib.asynccontextmanager
async def shared(nodes: Nodes, servers: NatsServers) -> AsyncIterator[Cluster]:
    retention = {"mode": "jetstream", "jetstream": servers.settings | {"streams": 2}}
    consumers = [await nodes.consumer(free_port(), retention=retention) for _ in range(2)]
    producer = await nodes.producer(consumers)
    await producer.ready()
    yield Cluster(consumers, producer, nodes)


async def test_one_consumer_of_a_shared_log_is_asked(nodes: Nodes, servers: NatsServers) -> None:
    topics, new = [f"s/{number}" for number in range(20)], [f"s/new-{number}" for number in range(20)]
    async with soon(), shared(nodes, servers) as made, made.client() as client:
        for topic in [*topics, "other"]:
            await client.publish(topic, "0")
        assert await stored(client, "s/") == sorted((topic, "0") for topic in topics)
        async with client.subscribe(prefix="s/") as subscription:
            counts = [len(one.consumer.readers) for one in made.consumers]
            assert sorted(counts) == [0, 20]
            await asyncio.gather(*(client.publish(topic, "1", "2") for topic in [*topics, *new, "other"]))
            expected = sorted((topic, data) for topic in topics + new for data in "12")
            assert await collect(subscription, 80) == expected
        assert len(await stored(client, "")) == 20 * 3 + 20 * 2 + 3


async def test_another_consumer_of_a_shared_log_stands_in(
    nodes: Nodes, servers: NatsServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (placement, failover):
        monkeypatch.setattr(module, "AWAY_SECONDS", 0.2)
        monkeypatch.setattr(module, "BACK_SECONDS", 0.2)
    monkeypatch.setattr(producer_module, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(prefixes, "RETRY_SECONDS", 0.05)
    topics = [f"s/{number}" for number in range(5)]
    async with (
        soon(),
        shared(nodes, servers) as made,
        made.client() as client,
        client.subscribe(prefix="s/") as subscription,
    ):
        for topic in topics:
            await client.publish(topic, "0")
        assert await collect(subscription, 5) == sorted((topic, "0") for topic in topics)
        asked = next(one for one in made.consumers if len(one.consumer.readers))
        await asked.crash()
        late = ["s/late-0", "s/late-1"]
        for topic in [*topics, *late]:
            await client.publish(topic, "1")
        assert await collect(subscription, 7) == sorted((topic, "1") for topic in [*topics, *late])
        await asked.restart()
        await eventually(lambda: len(asked.consumer.readers) == 7, "the topics are back")
        for topic in [*topics, *late, "s/last"]:
            await client.publish(topic, "2")
        expected = sorted((topic, "2") for topic in [*topics, *late, "s/last"])
        assert await collect(subscription, 8) == expected
