"""The effects of kill -9, SIGTERM and SIGHUP on traffic, and their limits."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from wsqueue import Client, Gap, Message, Subscription
from wsqueue.protocol.routing import topic_hash

from ..support.ports import free_port
from ..support.processes import Cluster, Node
from ..support.raw_peer import http_get
from ..support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]
pytestmark += [pytest.mark.usefixtures("uncovered")]

TOPICS_OF_A_CONSUMER = 5

PAUSE_SECONDS = 0.005  # Between two messages on each topic: load of about 1,500 a second, and no flood.
DOWN_SECONDS = 1.5


def topics_of(consumer: int, consumers: int, count: int = TOPICS_OF_A_CONSUMER) -> list[str]:
    names = (f"topic {number}" for number in range(1000))
    return [name for name in names if topic_hash(name) % consumers == consumer][:count]


class Traffic:
    """Publish numbered messages on each topic, as each publisher, and note the messages that come.

    Attributes:
        published: How many messages of each publisher on each topic.
        came: For each topic, publisher and number of each message, and None for each gap.
        times: When messages came.
    """

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = topics
        self.published: Counter[tuple[str, str]] = Counter()
        self.came: defaultdict[str, list[tuple[str, int] | None]] = defaultdict(list)
        self.times: list[float] = []
        self._stopping = False

    def stop(self) -> None:
        """Let the publishers end."""
        self._stopping = True

    async def publish(self, publisher: str, client: Client) -> None:
        """Publish until `stop`, then wait until all is confirmed."""
        while not self._stopping:
            for topic in self.topics:
                await client.drain()
                client.publish_nowait(topic, f"{publisher} {self.published[publisher, topic]}")
                self.published[publisher, topic] += 1
            await asyncio.sleep(PAUSE_SECONDS)
        await client.flush()

    async def receive(self, messages: Subscription[Message | Gap]) -> None:
        """Note the messages that come, until cancelled."""
        async for item in messages:
            if isinstance(item, Gap):
                self.came[item.topic].append(None)
                continue
            assert isinstance(item.data, str)
            publisher, number = item.data.split()
            self.came[item.topic].append((publisher, int(number)))
            self.times.append(time.monotonic())

    @property
    def gaps(self) -> int:
        """Return how many gaps were announced."""
        return sum(items.count(None) for items in self.came.values())

    @property
    def lost(self) -> int:
        """Return how many messages did not come."""
        return self.published.total() - len(self.times)

    def count_since(self, began: float) -> int:
        """Return how many messages came after a moment."""
        return sum(moment > began for moment in self.times)

    async def wait_quiet(self) -> None:
        """Return when nothing more comes."""
        count = -1
        while count != len(self.times):
            count = len(self.times)
            await asyncio.sleep(0.5)

    async def wait_flowing(self) -> None:
        """Return when messages come on every topic."""
        before = {topic: len(items) for topic, items in self.came.items()}
        await eventually(
            lambda: all(len(self.came[topic]) > before.get(topic, 0) + 20 for topic in self.topics),
            "messages flow",
        )

    def check(self) -> None:
        """Check that all confirmed messages came in order and once, except those in an announced gap."""
        assert self.published
        next_numbers: Counter[tuple[str, str]] = Counter()
        for topic, items in self.came.items():
            hidden: set[tuple[str, str]] = set()
            for item in items:
                if item is None:
                    hidden |= {(publisher, topic) for publisher, _ in self.published}
                    continue
                publisher, number = item
                key = (publisher, topic)
                assert number >= next_numbers[key], f"{key}: {number} came again, or too late"
                assert number == next_numbers[key] or key in hidden, f"{key} lacks what is before {number}"
                hidden.discard(key)
                next_numbers[key] = number + 1
        assert next_numbers == self.published, "the last messages lack"


@contextlib.asynccontextmanager
async def flowing(cluster: Cluster, publishers: Sequence[Client], *traffics: Traffic) -> AsyncIterator[None]:
    """Let traffic flow; at the end stop it and wait for the messages under way."""
    async with asyncio.timeout(90), contextlib.AsyncExitStack() as stack:
        subscriptions = []
        for traffic in traffics:
            client = await stack.enter_async_context(cluster.client())
            messages = client.subscribe(*traffic.topics, on_gap="yield")
            subscriptions.append(await stack.enter_async_context(messages))
        for publisher in publishers:
            await stack.enter_async_context(publisher)
        async with asyncio.TaskGroup() as tasks:
            receiving, publishing = [], []
            for traffic, messages in zip(traffics, subscriptions, strict=True):
                receiving.append(tasks.create_task(traffic.receive(messages)))
                for number, publisher in enumerate(publishers):
                    publishing.append(tasks.create_task(traffic.publish(str(number), publisher)))
            for traffic in traffics:
                await traffic.wait_flowing()
            yield
            for traffic in traffics:
                traffic.stop()
            await asyncio.wait(publishing)
            for traffic in traffics:
                await traffic.wait_quiet()
            for task in receiving:
                task.cancel()


async def bring_back(cluster: Cluster, consumer: Node, subscribers: int) -> None:
    """Start a consumer again; its producers find it after `subscribers` of its subscribers."""
    if subscribers:
        for producer in cluster.producers:
            producer.signal(signal.SIGSTOP)
    await asyncio.to_thread(consumer.start)
    if subscribers:
        await asyncio.to_thread(consumer.wait_open, subscribers)
        for producer in cluster.producers:
            producer.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("retention", "end", "subscribers"),
    [
        ("sqlite", Node.kill, 0),
        ("sqlite", Node.terminate, 1),
        ("memory", Node.terminate, 0),
        ("memory", Node.kill, 0),
        ("memory", Node.kill, 1),
    ],
)
async def test_a_consumer_ends_under_load_and_comes_back(
    cluster: Cluster, retention: str, end: Callable[[Node], None], subscribers: int
) -> None:
    await asyncio.to_thread(cluster.start, 2, 2, retention={"mode": retention})
    victim, other = cluster.consumers
    hit, spared = Traffic(topics_of(0, 2)), Traffic(topics_of(1, 2))
    publishers = [cluster.client(producer) for producer in cluster.producers]
    async with flowing(cluster, publishers, hit, spared):
        await asyncio.to_thread(end, victim)
        down = time.monotonic()
        await asyncio.sleep(DOWN_SECONDS)
        assert spared.count_since(down) > 100
        before = len(hit.times)
        await bring_back(cluster, victim, subscribers)
        await hit.wait_flowing()
        assert len(hit.times) > before
        await asyncio.sleep(0.5)

    spared.check()
    assert spared.lost == spared.gaps == 0
    hit.check()
    if retention == "memory" and end is Node.kill:
        # The log is gone with the process, and each subscriber is told so, once.
        assert hit.gaps == len(hit.topics)
    else:
        assert hit.lost == hit.gaps == 0
    for counters in (producer.counters() for producer in cluster.producers):
        assert counters["lost_in_flight"] == counters["lost_held"] == counters["lost_refused"] == 0
    assert other.counters()["without_subscriber"] == other.counters()["gaps"] == 0
    for producer in cluster.producers:
        assert producer.log.count("link down") == 1
        assert producer.log.count("link up") == 3


async def busy_producer(cluster: Cluster) -> Node:
    """Return the producer that the only publisher uses."""
    while True:
        for producer in cluster.producers:
            counters = await asyncio.to_thread(producer.counters)
            if counters["open"] and counters["messages_in"]:
                return producer


async def test_a_publisher_goes_on_through_another_producer_when_its_own_is_killed(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.start, 2, 2)
    traffic, publisher = Traffic(topics_of(0, 2) + topics_of(1, 2)), cluster.client()
    async with flowing(cluster, [publisher], traffic):
        for _ in range(2):
            busy = await busy_producer(cluster)
            await asyncio.to_thread(busy.kill)
            await traffic.wait_flowing()
            await asyncio.to_thread(busy.start)
            await asyncio.to_thread(busy.wait_logged, "link up", 2)

    traffic.check()
    assert traffic.lost == traffic.gaps == publisher.lost_in_flight == 0
    assert all(consumer.counters()["without_subscriber"] == 0 for consumer in cluster.consumers)


@pytest.mark.parametrize("retention", ["memory", "sqlite"])
async def test_a_rolling_restart_goes_unnoticed(
    cluster: Cluster, retention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each producer must have a publisher; by chance, the first has none in one run of eight.
    turns = itertools.count()
    monkeypatch.setattr("wsqueue.client.client.random.randrange", lambda producers: next(turns) % producers)
    await asyncio.to_thread(cluster.start, 2, 2, retention={"mode": retention})
    traffic = Traffic(topics_of(0, 2) + topics_of(1, 2))
    publishers = [cluster.client() for _ in range(3)]
    async with flowing(cluster, publishers, traffic):
        for node in [*cluster.consumers, *cluster.producers]:
            await asyncio.to_thread(node.terminate)
            counters = node.logged_counters()
            assert counters["messages_in"] > 0
            assert counters["open"] == counters["lost_held"] == counters["lost_in_flight"] == 0
            # Batches that a consumer had not confirmed when it stopped are forwarded again.
            assert node.role == "consumer" or counters["messages_in"] <= counters["forwarded"]
            assert "cut short" not in node.log
            await asyncio.to_thread(node.start)
            if node.role == "producer":
                await asyncio.to_thread(node.wait_logged, "link up", 2)
            await traffic.wait_flowing()

    traffic.check()
    assert traffic.lost == traffic.gaps == 0
    assert [publisher.lost_in_flight for publisher in publishers] == [0, 0, 0]
    assert all(consumer.counters()["gaps"] == 0 for consumer in cluster.consumers)


async def test_what_a_stopped_producer_held_is_not_confirmed(cluster: Cluster) -> None:
    """While its consumer is down it holds little, and leaves the rest to wait in the publisher."""
    await asyncio.to_thread(cluster.start, 1, 1, max_held_bytes=1_000_000, drain_seconds=1, close_seconds=1)
    (consumer,), (producer,) = cluster.consumers, cluster.producers
    await asyncio.to_thread(consumer.kill)
    await asyncio.to_thread(producer.wait_logged, "link down")
    async with asyncio.timeout(60), cluster.client() as client:
        for _ in range(100):
            client.publish_nowait("news", "x" * 50_000)
        flushed = asyncio.create_task(client.flush())
        await asyncio.sleep(1)
        await asyncio.to_thread(producer.terminate)
        counters = producer.logged_counters()
        assert 0 < counters["messages_in"] < 100
        assert counters["lost_held"] == counters["forwarded"] == 0
        assert not flushed.done()

        await asyncio.to_thread(consumer.start)
        await asyncio.to_thread(producer.start)
        await flushed
    assert consumer.counters()["messages_in"] == 100
    assert client.lost_in_flight == 0


async def is_ready(address: str) -> bool | None:
    """Return whether a node says that it is ready, None when it does not listen."""
    try:
        return (await http_get(address, "/readyz"))[0] == 200
    except ConnectionRefusedError:
        return None


async def comes_back(client: Client, messages: Subscription[Message], topic: str, data: str) -> None:
    """Publish a message, and check that it is the next that comes."""
    await client.publish(topic, data)
    async with asyncio.timeout(10):
        message = await anext(messages)
    assert (message.topic, message.data) == (topic, data)


async def test_sighup_with_a_wrong_file_changes_nothing_and_with_a_right_one_applies_it(
    cluster: Cluster,
) -> None:
    await asyncio.to_thread(cluster.start, 1, 1)
    consumer, producer = cluster.nodes[::-1]
    async with asyncio.timeout(60), cluster.client() as client, client.subscribe("news") as messages:
        await comes_back(client, messages, "news", "before")

        for node in cluster.nodes:
            node.file.write_text(f'role = "{node.role}"\nlisten = ["{node.address}"]\ncosumers = []\n')
            node.signal(signal.SIGHUP)
            await asyncio.to_thread(node.wait_logged, "ERROR reload refused")
            assert f"{node.file}:3" in node.log
            assert await is_ready(node.address)
        await comes_back(client, messages, "news", "meanwhile")
        async with cluster.client() as another, another.subscribe("news") as more:
            await comes_back(another, more, "news", "a new connection")
        assert (await anext(messages)).data == "a new connection"

        for node in cluster.nodes:
            more_address = f"127.0.0.1:{free_port()}"
            assert await is_ready(more_address) is None
            node.settings["listen"] = [node.address, more_address]
            node.write()
            node.signal(signal.SIGHUP)
            await asyncio.to_thread(node.wait_logged, "INFO reloaded")
            assert await is_ready(more_address)
            assert await is_ready(node.address)
        await comes_back(client, messages, "news", "after")
    assert "link down" not in producer.log
    assert consumer.counters()["connections"] > 0


@pytest.mark.parametrize("thawed_first", ["consumer", "producer"])
async def test_what_stood_still_goes_on_with_its_connections(cluster: Cluster, thawed_first: str) -> None:
    """A host is frozen with its nodes while pings are unanswered; no time that passes then counts."""
    pings: dict[str, Any] = {"ping_interval_seconds": 1.0, "ping_timeout_seconds": 1.5}
    await asyncio.to_thread(cluster.start, 1, 1, **pings)
    (consumer,), (producer,) = cluster.consumers, cluster.producers
    async with asyncio.timeout(60), cluster.client() as client, client.subscribe("news") as messages:
        await client.publish("news", "before")
        assert (await anext(messages)).data == "before"
        for asked, asking in ((producer, consumer), (consumer, producer)):
            # The one that still runs has pinged by then, and can't hear the answer.
            asked.signal(signal.SIGSTOP)
            await asyncio.sleep(1.3)
            asking.signal(signal.SIGSTOP)
            await asyncio.sleep(4.0)
            for node in sorted([asked, asking], key=lambda node: node.role != thawed_first):
                node.signal(signal.SIGCONT)
                await asyncio.sleep(0.5)
        await client.publish("news", "after")
        assert (await anext(messages)).data == "after"
    assert not any("4411" in node.log or "link down" in node.log for node in cluster.nodes)
