"""What kill -9, SIGTERM and SIGHUP do to traffic, and what they must not do."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from wsqueue import AuthenticationError, Client, Subscription
from wsqueue.routing import topic_hash

from .processes import Cluster, Node, eventually, free_port, in_thread

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]

TOPICS_OF_A_CONSUMER = 5

PAUSE_SECONDS = 0.005
"""Between two messages on each topic: about 1,500 a second from two publishers: load, and no flood."""

LONGEST_GAP_SECONDS = 1.0
"""Without a message on topics that go on: far above what a busy machine causes, far below a downtime."""

DOWN_SECONDS = 1.5


def topics_of(consumer: int, consumers: int, count: int = TOPICS_OF_A_CONSUMER) -> list[str]:
    names = (f"topic {number}" for number in range(1000))
    return [name for name in names if topic_hash(name) % consumers == consumer][:count]


class Traffic:
    """Publish numbered messages on each topic, as each publisher, and note what comes."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = topics
        self.published: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.came: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self.times: list[float] = []
        self._stopping = False

    def stop(self) -> None:
        """Let the publishers end."""
        self._stopping = True

    async def publish(self, publisher: str, client: Client) -> None:
        """Publish until `stop`."""
        while not self._stopping:
            for topic in self.topics:
                number = self.published[publisher, topic]
                self.published[publisher, topic] += 1
                await client.publish(topic, f"{publisher} {number}")
            await asyncio.sleep(PAUSE_SECONDS)
        await client.flush()

    async def receive(self, messages: Subscription) -> None:
        """Note what comes, until cancelled."""
        async for message in messages:
            publisher, number = message.data.split()
            self.came[publisher, message.topic].append(int(number))
            self.times.append(time.monotonic())

    @property
    def lost(self) -> int:
        """Return how many messages did not come."""
        return sum(self.published.values()) - sum(map(len, self.came.values()))

    def count_since(self, began: float) -> int:
        """Return how many messages came after a moment."""
        return sum(moment > began for moment in self.times)

    def longest_gap(self) -> float:
        """Return the longest time without any message."""
        return max(after - before for before, after in zip(self.times, self.times[1:], strict=False))

    async def wait_quiet(self) -> None:
        """Return when nothing more comes."""
        count = -1
        while count != len(self.times):
            count = len(self.times)
            await asyncio.sleep(0.5)

    async def wait_flowing(self) -> None:
        """Return when every publisher's messages come on every topic."""
        before = {key: len(numbers) for key, numbers in self.came.items()}
        await eventually(
            lambda: all(len(self.came[key]) > before.get(key, 0) + 10 for key in self.published),
            "messages flow",
        )

    def check(self, *, in_order: bool = True) -> None:
        """Check that nothing came twice, and that the last messages came."""
        assert self.published
        for key, published in self.published.items():
            came = self.came[key]
            assert len(came) == len(set(came)), f"{key} came twice"
            if in_order:
                assert came == sorted(came), f"{key} came out of order"
            assert published - 1 in came, f"the last message of {key} was lost"


@contextlib.asynccontextmanager
async def flowing(cluster: Cluster, publishers: Sequence[Client], *traffics: Traffic) -> AsyncIterator[None]:
    """Let traffic flow; at the end stop it and wait for what is under way."""
    async with asyncio.timeout(90), contextlib.AsyncExitStack() as stack:
        subscriptions = []
        for traffic in traffics:
            client = await stack.enter_async_context(cluster.client())
            subscriptions.append(await stack.enter_async_context(client.subscribe(*traffic.topics)))
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


async def bring_back(cluster: Cluster, consumer: Node, *, subscribers_first: bool) -> None:
    """Start a consumer again, and let the producers find it at once or after its subscribers have."""
    if subscribers_first:
        for producer in cluster.producers:
            producer.signal(signal.SIGSTOP)
    await in_thread(consumer.start)
    if subscribers_first:
        await in_thread(consumer.wait_open, TOPICS_OF_A_CONSUMER)
        for producer in cluster.producers:
            producer.signal(signal.SIGCONT)


@pytest.mark.parametrize("subscribers_first", [True, False])
@pytest.mark.parametrize("end", [Node.kill, Node.terminate])
async def test_a_consumer_ends_under_load_and_comes_back(
    cluster: Cluster, end: Callable[[Node], None], subscribers_first: bool
) -> None:
    await in_thread(cluster.start, 2, 2)
    victim, other = cluster.consumers
    hit, spared = Traffic(topics_of(0, 2)), Traffic(topics_of(1, 2))
    publishers = [cluster.client(producer) for producer in cluster.producers]
    async with flowing(cluster, publishers, hit, spared):
        await in_thread(end, victim)
        down = time.monotonic()
        await asyncio.sleep(DOWN_SECONDS)
        assert spared.count_since(down) > 100
        before = len(hit.times)
        await bring_back(cluster, victim, subscribers_first=subscribers_first)
        await hit.wait_flowing()
        assert len(hit.times) > before
        await asyncio.sleep(0.5)

    spared.check()
    assert spared.lost == 0
    if not subscribers_first:
        assert spared.longest_gap() < LONGEST_GAP_SECONDS
    hit.check()
    counters = [producer.counters() for producer in cluster.producers]
    in_flight = sum(one["lost_in_flight"] for one in counters)
    # The classic protocol keeps nothing for a subscriber that is away.
    unheard = victim.counters()["without_subscriber"]
    assert unheard == 0 or not subscribers_first
    assert hit.lost <= in_flight + unheard
    if end is Node.terminate:
        assert in_flight == 0
        assert hit.lost == unheard
    assert [one["lost_held"] for one in counters] == [0, 0]
    assert [publisher.lost_in_flight for publisher in publishers] == [0, 0]
    assert other.counters()["without_subscriber"] == 0
    for producer in cluster.producers:
        assert producer.log.count("link down") == 1
        assert producer.log.count("link up") == 3


async def busy_producer(cluster: Cluster) -> Node:
    """Return the producer that the only publisher uses."""
    while True:
        for producer in cluster.producers:
            counters = await in_thread(producer.counters)
            if counters["open"] and counters["messages_in"]:
                return producer


async def test_a_publisher_goes_on_through_another_producer_when_its_own_is_killed(cluster: Cluster) -> None:
    await in_thread(cluster.start, 2, 2)
    traffic, publisher = Traffic(topics_of(0, 2) + topics_of(1, 2)), cluster.client()
    async with flowing(cluster, [publisher], traffic):
        for _ in range(2):
            busy = await busy_producer(cluster)
            await in_thread(busy.kill)
            await traffic.wait_flowing()
            await in_thread(busy.start)
            await in_thread(busy.wait_logged, "link up", 2)

    traffic.check(in_order=False)
    assert traffic.lost <= publisher.lost_in_flight
    assert all(consumer.counters()["without_subscriber"] == 0 for consumer in cluster.consumers)
    assert traffic.longest_gap() < 2 * LONGEST_GAP_SECONDS


async def test_a_producer_that_is_stopped_loses_nothing_that_it_took_in(cluster: Cluster) -> None:
    await in_thread(cluster.start, 2, 2)
    traffic, publisher = Traffic(topics_of(0, 2) + topics_of(1, 2)), cluster.client()
    async with flowing(cluster, [publisher], traffic):
        for _ in range(3):
            busy = await busy_producer(cluster)
            await in_thread(busy.terminate)
            counters = busy.logged_counters()
            assert counters["messages_in"] == counters["forwarded"] > 0
            assert counters["lost_in_flight"] == counters["lost_held"] == counters["open"] == 0
            await traffic.wait_flowing()
            await in_thread(busy.start)

    traffic.check(in_order=False)
    assert traffic.lost == publisher.lost_in_flight == 0
    assert traffic.longest_gap() < 2 * LONGEST_GAP_SECONDS


async def test_a_flushed_message_is_not_lost_with_a_producer_that_is_stopped(cluster: Cluster) -> None:
    await in_thread(cluster.start, 1, 1)
    async with asyncio.timeout(60), cluster.client() as client, client.subscribe("news") as messages:
        for number in range(1000):
            await client.publish("news", str(number))
        await client.flush()
        await in_thread(cluster.producers[0].terminate)
        assert [(await anext(messages)).data for _ in range(1000)] == [str(number) for number in range(1000)]
        assert client.lost_in_flight == 0


async def test_what_a_stopped_producer_held_and_did_not_read_is_counted(cluster: Cluster) -> None:
    """While its consumer is down it holds little, and then leaves the rest to wait in the publisher."""
    await in_thread(lambda: cluster.start(1, 1, max_held_bytes=1_000_000, drain_seconds=3, close_seconds=1))
    consumer, producer = cluster.consumers[0], cluster.producers[0]
    await in_thread(consumer.kill)
    await in_thread(producer.wait_logged, "link down")
    published = 0
    async with asyncio.timeout(60), cluster.client() as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                while True:
                    await client.publish("news", "x" * 50_000)
                    published += 1
        await in_thread(producer.terminate)
        counters = producer.logged_counters()
        await eventually(lambda: not client_is_connected(client), "the client notices")
        lost_in_flight = client.lost_in_flight
    assert counters["lost_held"] == counters["messages_in"] > 0
    assert published > counters["messages_in"]
    assert lost_in_flight >= published - counters["messages_in"]


def client_is_connected(client: Client) -> bool:
    assert client._publishing is not None
    return client._publishing.connection is not None


async def http_status(address: str, path: str) -> int:
    """Return the status of a GET, 0 when nobody answers."""
    host, _, port = address.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return 0
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    status = (await reader.readline()).split()[1]
    writer.close()
    await writer.wait_closed()
    return int(status)


async def comes_back(client: Client, messages: Subscription, topic: str, data: str) -> None:
    """Publish a message, and check that it is the next that comes."""
    await client.publish(topic, data)
    async with asyncio.timeout(10):
        message = await anext(messages)
    assert (message.topic, message.data) == (topic, data)


async def test_sighup_with_a_wrong_file_changes_nothing_and_with_a_right_one_applies_it(
    cluster: Cluster,
) -> None:
    await in_thread(cluster.start, 1, 1)
    consumer, producer = cluster.nodes[::-1]
    async with asyncio.timeout(60), cluster.client() as client, client.subscribe("news") as messages:
        await comes_back(client, messages, "news", "before")

        for node in cluster.nodes:
            node.file.write_text(f'role = "{node.role}"\nlisten = ["{node.address}"]\ncosumers = []\n')
            node.signal(signal.SIGHUP)
            await in_thread(node.wait_logged, "ERROR reload refused")
            assert f"{node.file}:3" in node.log
            assert await http_status(node.address, "/readyz") == 200
        await comes_back(client, messages, "news", "meanwhile")
        async with cluster.client() as another, another.subscribe("news") as more:
            await comes_back(another, more, "news", "a new connection")
        assert (await anext(messages)).data == "a new connection"

        for node in cluster.nodes:
            more_address = f"127.0.0.1:{free_port()}"
            assert await http_status(more_address, "/healthz") == 0
            node.settings["listen"] = [node.address, more_address]
            node.write()
            node.signal(signal.SIGHUP)
            await in_thread(node.wait_logged, "INFO reloaded")
            assert await http_status(more_address, "/readyz") == 200
            assert await http_status(node.address, "/readyz") == 200
        await comes_back(client, messages, "news", "after")
    assert "link down" not in producer.log
    assert consumer.counters()["connections"] > 0


async def test_sighup_takes_a_new_consumer_in(cluster: Cluster) -> None:
    await in_thread(cluster.start, 1, 2)
    traffic = Traffic(topics_of(0, 2))
    publishers = [cluster.client(producer) for producer in cluster.producers]
    (moved,) = topics_of(1, 2, 1)
    async with flowing(cluster, publishers, traffic):
        added = cluster.add_consumer()
        await in_thread(added.start)
        for producer in cluster.producers:
            producer.settings["consumers"] = [f"{node.address}/producer" for node in cluster.consumers]
            producer.write()
            producer.signal(signal.SIGHUP)
            await in_thread(producer.wait_logged, "link up", 2)
        async with cluster.client() as client, client.subscribe(moved) as messages:
            await comes_back(client, messages, moved, "to the new consumer")
        await traffic.wait_flowing()
    traffic.check()
    assert traffic.lost == 0
    assert added.counters()["messages_in"] == 1


async def test_sighup_changes_the_key_for_new_connections_only(cluster: Cluster) -> None:
    await in_thread(cluster.start, 1, 1)
    async with asyncio.timeout(60), cluster.client() as client, client.subscribe("news") as messages:
        await comes_back(client, messages, "news", "with the old key")
        old = cluster.client()
        cluster.secret = "another secret, " + cluster.secret[::-1]
        cluster.write_psk()
        for node in cluster.nodes:
            node.signal(signal.SIGHUP)
            await in_thread(node.wait_logged, "INFO reloaded")
        await comes_back(client, messages, "news", "on an old connection")
        async with old:
            with pytest.raises(AuthenticationError):
                await old.publish("news", "never")
            with pytest.raises(AuthenticationError):
                await old.subscribe("news").__aenter__()
        async with cluster.client() as new:
            await new.publish("news", "with the new key")
            await new.flush()
        assert (await anext(messages)).data == "with the new key"
