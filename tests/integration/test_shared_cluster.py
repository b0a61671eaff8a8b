"""Consumers that share a log on a NATS server, with a producer, clients and classic subscribers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import wsqueue
from wsqueue.client import failover
from wsqueue.nodes import producer as producer_module
from wsqueue.protocol import placement

from ..support.classic_peer import connected, topic_of
from ..support.nats_servers import NatsServers
from ..support.nodes import KEY, Nodes, RunningNode
from ..support.ports import free_port
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

TOPICS = topic_of(0, 2), topic_of(1, 2)


@pytest.fixture(autouse=True)
def _little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (placement, failover):
        monkeypatch.setattr(module, "AWAY_SECONDS", 0.2)
        monkeypatch.setattr(module, "BACK_SECONDS", 0.2)
    monkeypatch.setattr(producer_module, "CHECK_SECONDS", 0.01)


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[NatsServers]:
    async with NatsServers(tmp_path) as servers:
        yield servers


class Cluster:
    """Two consumers that share a log, on ports that stay, and a producer."""

    def __init__(self, nodes: Nodes, servers: NatsServers, topics: Sequence[Mapping[str, Any]] = ()) -> None:
        self._nodes, self._servers, self._topics = nodes, servers, list(topics)
        self.ports = [free_port(), free_port()]
        self.consumers: list[RunningNode] = []

    async def start(self) -> Cluster:
        for port in self.ports:
            self.consumers.append(await self.consumer(port))
        self.producer = await self._nodes.producer(self.consumers)
        await self.producer.ready()
        return self

    async def consumer(self, port: int) -> RunningNode:
        retention: dict[str, Any] = {
            "mode": "jetstream",
            "jetstream": self._servers.settings | {"streams": 2},
            "topics": self._topics,
        }
        return await self._nodes.consumer(port, retention=retention)

    def client(self) -> wsqueue.Client:
        return self._nodes.client([self.producer], self.consumers)


@pytest.fixture
async def cluster(nodes: Nodes, servers: NatsServers) -> Cluster:
    return await Cluster(nodes, servers).start()


async def collect(subscription: wsqueue.Subscription[wsqueue.Message], count: int) -> list[str | bytes]:
    async with soon():
        return [(await anext(subscription)).data for _ in range(count)]


async def test_messages_flow(cluster: Cluster) -> None:
    async with soon(), cluster.client() as client, client.subscribe(*TOPICS) as subscription:
        for topic in TOPICS:
            await client.publish(topic, "one", "two")
        assert sorted(map(str, await collect(subscription, 4))) == ["one", "one", "two", "two"]
        everything = [one async for one in client.subscribe(TOPICS[0], start="earliest", follow=False)]
        assert [(one.data, one.offset) for one in everything] == [("one", 0), ("two", 1)]
        start = everything[0].after
        rest = [one.data async for one in client.subscribe(TOPICS[0], start=start, follow=False)]
        assert rest == ["two"]
        for count in (1, 2, 20):
            last = [one.data async for one in client.subscribe(TOPICS[0], start=-count, follow=False)]
            assert last == ["one", "two"][-count:]


async def test_limits_of_some_topics(nodes: Nodes, servers: NatsServers) -> None:
    tables = [
        {"match": "state/*", "max_messages_per_topic": 1},
        {"match": "short", "max_age_seconds": 0.1},
    ]
    cluster = await Cluster(nodes, servers, tables).start()
    async with soon(), cluster.client() as client:

        async def kept(topic: str) -> list[str | bytes]:
            return [one.data async for one in client.subscribe(topic, start="earliest", follow=False)]

        for number in range(5):
            for topic in ("state/a", "state/b", "short", "other"):
                await client.publish(topic, f"{topic} {number}")
        assert len(await kept("other")) == 5
        for topic in ("state/a", "state/b"):
            while await kept(topic) != [f"{topic} 4"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        while await kept("short"):
            for consumer in cluster.consumers:
                consumer.consumer.logs.trim()
            await asyncio.sleep(0.01)
        await client.publish("short", "again")
        assert max(consumer.consumer.logs.topic("short").next for consumer in cluster.consumers) == 6


async def test_many_topics_of_one_producer(cluster: Cluster) -> None:
    """Their appends end in any order, and the producer is answered in its own."""
    topics = [f"topic-{number}" for number in range(200)]
    async with soon(), cluster.client() as client:
        for number in range(5):
            for topic in topics:
                client.publish_nowait(topic, f"{topic} {number}")
        await client.flush()
        assert client.confirmed == 1000
        for topic in topics[::50]:
            found = [one.data async for one in client.subscribe(topic, start="earliest", follow=False)]
            assert found == [f"{topic} {number}" for number in range(5)]


async def test_a_consumer_dies_and_comes_back(cluster: Cluster) -> None:
    """Its topics go on at the other one, and nothing is lost or comes twice."""
    async with soon(), cluster.client() as client, client.subscribe(*TOPICS) as subscription:
        sent: list[str] = []

        async def publish(count: int) -> None:
            for _ in range(count):
                sent.append(f"message {len(sent)}")
                await asyncio.gather(*(client.publish(topic, sent[-1]) for topic in TOPICS))

        await publish(5)
        await cluster.consumers[0].crash()
        await publish(5)
        heard = await collect(subscription, 20)
        await cluster.consumers[0].restart()
        await eventually(lambda: not any(link.presence.away for link in cluster.producer.links), "it is back")
        await publish(5)
        heard += await collect(subscription, 10)
        for topic in TOPICS:
            stored = [one async for one in client.subscribe(topic, start="earliest", follow=False)]
            assert [one.data for one in stored] == sent
            assert [one.offset for one in stored] == list(range(15))
            assert len({one.log for one in stored}) == 1
        assert sorted(map(str, heard)) == sorted(sent * 2)


async def test_ids_of_an_application_are_known_to_all_consumers(cluster: Cluster, nodes: Nodes) -> None:
    """A program that begins again after a consumer is lost stores nothing twice."""
    addresses = [consumer.address for consumer in cluster.consumers]

    async def publish(*ids: int) -> None:
        async with nodes.client([cluster.producer], addresses, publisher_secret=bytes(range(32))) as client:
            for topic, number in zip(itertools.cycle(TOPICS), ids, strict=False):
                client.publish_nowait(topic, str(number), id=number)
            await client.flush()

    async with soon():
        await publish(*range(1, 21))
        await cluster.consumers[0].crash()
        await publish(*range(11, 31))
        async with nodes.client([cluster.producer], addresses) as client:
            for index, topic in enumerate(TOPICS):
                stored = [one.data async for one in client.subscribe(topic, start="earliest", follow=False)]
                assert stored == [str(number) for number in range(1 + index, 31, 2)]
        assert cluster.consumers[1].counters["repeats"] == 10


async def test_the_server_is_away_for_a_while(cluster: Cluster, servers: NatsServers) -> None:
    async with soon(), cluster.client() as client, client.subscribe(TOPICS[0]) as subscription:
        await client.publish(TOPICS[0], "before")
        servers.kill(0)
        later = asyncio.create_task(client.publish(TOPICS[0], "meanwhile"))
        await eventually(
            lambda: "log" in cluster.producer.service.node.not_ready(), "the producer knows of it"
        )
        assert not later.done()
        servers.start(0)
        await later
        assert await collect(subscription, 2) == ["before", "meanwhile"]


async def test_a_classic_subscriber_hears_what_others_append(cluster: Cluster) -> None:
    """It is connected to the consumer that is not the topic's home."""
    async with soon(), cluster.client() as client:
        other = cluster.consumers[1]
        logs = other.consumer.logs
        async with connected(other.subscribe_url(TOPICS[0]), KEY) as subscriber:
            await other.subscribed(TOPICS[0])
            await eventually(lambda: bool(logs.log_id(logs.topic(TOPICS[0]))), "the log is known")
            await client.publish(TOPICS[0], "one", "two")
            assert await subscriber.data(2) == ["one", "two"]


async def test_a_reload_with_another_age(cluster: Cluster) -> None:
    async with soon(), cluster.client() as client:
        consumer = cluster.consumers[0]
        consumer.write(retention=consumer._settings["retention"] | {"max_age_seconds": 7200})
        await consumer.service.reload()
        await client.publish(TOPICS[0], "still there")


async def test_a_named_reader_goes_on_at_another_consumer(cluster: Cluster) -> None:
    topic = TOPICS[0]
    async with asyncio.timeout(30), cluster.client() as client:
        await client.publish(topic, *(f"{number}" for number in range(6)))
        async with client.subscribe(topic, reader="r") as subscription:
            messages = [await anext(subscription) for _ in range(5)]
            await messages[1].done()
            await cluster.consumers[0].crash()
            # The other consumer keeps it now.
            await messages[3].done()
            assert (await anext(subscription)).data == "5"
        rest = [one.data async for one in client.subscribe(topic, reader="r", follow=False)]
        assert rest == ["4", "5"]
        await cluster.consumers[0].restart()
        # Both have it under way, and the furthest counts.
        async with (
            client.subscribe(topic, reader="r") as one,
            client.subscribe(topic, reader="r") as two,
        ):
            await anext(one)
            await asyncio.gather((await anext(one)).done(), (await anext(two)).done())
        assert [one.data async for one in client.subscribe(topic, reader="r", follow=False)] == []


@pytest.fixture
def short_takeover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the times of coordinators."""
    for name, seconds in (("RENEW", 0.2), ("TAKEOVER", 1.0), ("LATE", 0.7), ("WATCH", 0.1)):
        monkeypatch.setattr(f"wsqueue.groups.keeper.{name}_SECONDS", seconds)


class TestGroups:
    @pytest.fixture(autouse=True)
    async def _ended(self, cluster: Cluster) -> AsyncIterator[None]:
        """Wait until the states of all groups are kept, while the servers are there."""
        yield
        await eventually(
            lambda: not any(one.consumer.groups.by_topic for one in cluster.consumers), "no group is left"
        )

    @pytest.mark.parametrize("how", ["stop", "crash"])
    @pytest.mark.usefixtures("short_takeover")
    async def test_a_group_goes_on_at_another_consumer(self, cluster: Cluster, how: str) -> None:
        async with asyncio.timeout(20), cluster.client() as client:
            topic = TOPICS[0]
            await client.publish(topic, *(f"{number}" for number in range(6)))
            async with client.subscribe(topic, group="g", prefetch=3) as jobs:
                first = await anext(jobs)
                await first.done()
                held = await anext(jobs)
                home = cluster.consumers[0]
                await (home.stop() if how == "stop" else home.crash())
                # The one that is held counts when another consumer coordinates the group.
                await held.done()
                done = {first.data, held.data}
                while len(done) < 6:
                    job = await anext(jobs)
                    await job.done()
                    done.add(job.data)
                await client.publish(topic, "later")
                while (job := await anext(jobs)).data != "later":
                    await job.done()
                await job.reject("no more")
            letters = client.subscribe(f"{topic}!g!dead", start="earliest")
            assert (await anext(letters)).data == "later"
            # The home comes back, and finds all of it done.
            await home.restart()
            async with client.subscribe(topic, group="g") as jobs:
                await client.publish(topic, "last")
                assert (await anext(jobs)).data == "last"

    async def test_members_find_the_consumer_that_coordinates(self, cluster: Cluster, nodes: Nodes) -> None:
        topic = TOPICS[0]
        other = nodes.client([cluster.producer], cluster.consumers[::-1])
        async with (
            asyncio.timeout(20),
            cluster.client() as client,
            other,
            client.subscribe(topic, group="g", prefetch=1) as jobs,
        ):
            await client.publish(topic, "1", "2")
            first = await anext(jobs)
            # For this one the other consumer is the home; it sees that the group is coordinated.
            async with other.subscribe(topic, group="g", prefetch=1) as more:
                second = await anext(more)
                assert {first.data, second.data} == {"1", "2"}
                await second.done()
            await first.done()
        assert [one.counters["group_deliveries"] for one in cluster.consumers] == [2, 0]

    async def test_what_a_member_of_a_lost_coordinator_did_is_kept(
        self, cluster: Cluster, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        topic = TOPICS[0]
        other = nodes.client([cluster.producer], cluster.consumers[::-1])
        monkeypatch.setattr("wsqueue.groups.keeper.TAKEOVER_SECONDS", 0.5)
        monkeypatch.setattr("wsqueue.groups.keeper.WATCH_SECONDS", 0.1)
        async with asyncio.timeout(20), cluster.client() as client, other:
            await client.publish(topic, "1", "2")
            async with (
                client.subscribe(topic, group="g", prefetch=1) as jobs,
                # The first coordinator seems to stand still, so that the other one takes over.
                other.subscribe(topic, group="g", prefetch=5) as more,
            ):
                first = await anext(jobs)
                again = [await anext(more) for _ in range(2)]
                assert [job.data for job in again] == ["1", "2"]
                # The first coordinator cannot keep anything any more, and sends its members to the other.
                await first.done()
                await again[1].done()
            async with client.subscribe(topic, group="g") as jobs:
                await client.publish(topic, "3")
                assert (await anext(jobs)).data == "3"
