"""A peer that does not read slows only the peers that feed it, and no process outgrows its bound.

The bounds are those of docs/configuration.md, "Memory bounds", computed from the same limits. Memory is the
peak of the resident set, so that nothing can grow unseen between two looks at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import signal
import struct
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pytest
from websockets.frames import Opcode

from tests.support.classic_peer import topic_of
from tests.support.raw_peer import RawSocket, request_of
from tests.support.raw_v2_peer import V2Socket, data_of, encoded, forward_of, new_secret, publish_of
from tests.support.wire import BINARY, Raw
from wsqueue import Client, Message, Subscription
from wsqueue.client.inbox import MAX_WAITING_CHARACTERS, MAX_WAITING_MESSAGES
from wsqueue.client.outbox import WINDOW_BYTES, WINDOW_MESSAGES
from wsqueue.config.model import READ_MARGIN_BYTES, Limits, Retention
from wsqueue.log.archive import MAX_GROUP_BYTES
from wsqueue.log.ledger import MAX_EMPTY_TOPICS, MAX_TOPICS
from wsqueue.log.records import MAX_NUMBERS
from wsqueue.log.schema import CACHE_KIB
from wsqueue.log.sqlite import CACHE_BYTES, PENDING_BYTES
from wsqueue.log.states import MAX_STATES_BYTES
from wsqueue.net.write_buffer import CONGESTED_BYTES
from wsqueue.nodes.bounds import (
    CHARACTERS_BYTES,
    IDLE_BYTES,
    REFUSED_BYTES,
    STRANGER_BYTES,
    TOPIC_BYTES,
    WORK_BYTES,
)
from wsqueue.nodes.link_queue import (
    LINK_WINDOW_BYTES,
    MAX_REFUSED,
    NUMBER_BYTES,
    SLOW_LINK_BYTES,
)
from wsqueue.nodes.reader import CHUNK_BYTES, MAX_FRAMES_BYTES
from wsqueue.protocol.routing import CACHED_TOPICS
from wsqueue.protocol.v2 import OVERHEAD_BYTES
from wsqueue.report.stats import MAX_COUNTED_TOPICS

from ..faults.proxy import Link
from ..support.documents import rows
from ..support.processes import Cluster, Node, clean_environment, memory_bytes
from ..support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]
pytestmark += [pytest.mark.usefixtures("uncovered")]

KIB, MIB = 1024, 1024 * 1024

UVLOOP_READ_BYTES = 256_000  # Size of a read of uvloop.
SMALL_BATCHES_BYTES = 512 * KIB  # Overhead of the batches of one read if each is as small as can be.
MESSAGE_BYTES = 200  # Overhead of Python for a short message.
TLS_BYTES = 64 * KIB  # Overhead of a connection with TLS, as tests/integration/test_tls.py measures it.
FAR_TOO_MUCH_BYTES = 1024 * MIB  # A test that failed must not fill the memory of the machine.

FED, OTHER = topic_of(0, 2), topic_of(1, 2)  # Topics of the first and of the second of two consumers.
SMALL_LOG = {"max_bytes": 4 * MIB}  # A log that leaves the rest of a consumer's memory to be measured.

# A process that is stopped answers no pings.
QUIET: dict[str, Any] = {"ping_interval_seconds": 3600.0, "close_seconds": 1.0}
# The subscriber of these tests shares its process with the publisher, and may be slow.
PATIENT: dict[str, Any] = QUIET | {"max_buffered_bytes": 256 * MIB, "reconnect_max_seconds": 0.2}
SMALL: dict[str, Any] = QUIET | {"max_message_bytes": 4096, "max_buffered_bytes": MIB + 4096}


class Bounds:
    """Compute the bounds of docs/configuration.md, "Memory bounds", in bytes."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        # The end of a message that came in parts, and others after it.
        self.one_read = limits.max_message_bytes + READ_MARGIN_BYTES
        # A peer that sends: a read of the smallest batches takes most.
        self.feeding = self.one_read + SMALL_BATCHES_BYTES
        # A peer that reads slowly; classic subscribers of one topic share it. With slices on their way.
        self.slow_reader = limits.max_buffered_bytes + self.one_read + 4 * CONGESTED_BYTES
        # A v2 subscriber that reads slowly: the rest is in the log.
        frames = max(MAX_FRAMES_BYTES, CHUNK_BYTES + limits.max_message_bytes + OVERHEAD_BYTES)
        self.slow_subscriber = CONGESTED_BYTES + frames
        # A consumer that is down, or up and doesn't read; each publisher adds one read.
        self.link_down = limits.max_held_bytes + 2 * self.one_read
        self.link_slow = SLOW_LINK_BYTES + LINK_WINDOW_BYTES + CONGESTED_BYTES + 3 * self.one_read
        # A consumer that is down while publishers come and go: their last reads add up.
        self.link_down_at_worst = self.link_down + limits.max_held_bytes
        # Batches that one consumer refused, in a producer.
        self.refused = MAX_REFUSED * REFUSED_BYTES
        # Whatever waits in all connections.
        self.all_buffers = limits.max_total_buffered_bytes
        # Topics without messages, subscriptions, and publishers' last batches, in a consumer.
        self.index = limits.max_index_bytes
        # Topics that a log on disk knows, without and with messages.
        self.file_topics = (MAX_EMPTY_TOPICS + MAX_TOPICS) * (CHARACTERS_BYTES + 2 * TOPIC_BYTES)
        # A log on disk.
        self.disk = CACHE_BYTES + PENDING_BYTES + 2 * CACHE_KIB * KIB + 2 * MAX_GROUP_BYTES
        # Unconfirmed messages of a client, and those of them that wait to be written.
        self.window = 2 * WINDOW_BYTES + WINDOW_MESSAGES * MESSAGE_BYTES
        # Two windows of the topics with most messages.
        self.counted_topics = 2 * MAX_COUNTED_TOPICS * 700
        # A producer's routes.
        self.cached_topics = CACHED_TOPICS * (CHARACTERS_BYTES + TOPIC_BYTES)


def kernel_limit(name: str) -> int:
    """Return the largest size of a kind of buffer (tcp(7))."""
    return int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2])


class Growth:
    """Measure how much a process grows from now on."""

    def __init__(self, pid: int, idle: int = IDLE_BYTES) -> None:
        self._pid, self._base = pid, memory_bytes(pid, "VmRSS")
        assert self._base <= idle

    def check(self, bound: int) -> None:
        """Check that it never was beyond a bound, besides `WORK_BYTES`."""
        peak = memory_bytes(self._pid, "VmHWM") - self._base
        assert peak <= bound + WORK_BYTES, f"{peak / MIB:.1f} MiB, and not {(bound + WORK_BYTES) / MIB:.1f}"


class Publisher:
    """Publish numbered messages of one size on one topic, flat out, and count those the client has taken."""

    def __init__(self, client: Client, topic: str, size: int, name: int = 0) -> None:
        self.client, self._topic, self._name = client, topic, name
        self._padding = "x" * (size - 8)
        self.message_bytes = size + len(topic)
        self.count = 0
        self._stopping = False

    async def run(self) -> None:
        """Publish until `stop`."""
        while not self._stopping:
            await self.client.drain()
            self.client.publish_nowait(self._topic, f"{self._name:02}{self.count:06}{self._padding}")
            self.count += 1
            assert self.count * self.message_bytes < FAR_TOO_MUCH_BYTES, "nothing halts the publisher"
            if self.count % 64 == 0:
                # A client that can send does not wait.
                await asyncio.sleep(0)
        await self.client.flush()

    def stop(self) -> None:
        """Let `run` end."""
        self._stopping = True

    async def taken(self) -> int:
        return self.count


class Received:
    """Note the numbers that come on a subscription, of each publisher."""

    def __init__(self) -> None:
        self.numbers: defaultdict[int, list[int]] = defaultdict(list)

    @property
    def count(self) -> int:
        """Return how many messages came."""
        return sum(map(len, self.numbers.values()))

    async def run(self, messages: Subscription[Message]) -> None:
        """Note the messages that come, until cancelled."""
        async for message in messages:
            self.numbers[int(message.data[:2])].append(int(message.data[2:8]))


@contextlib.asynccontextmanager
async def running(*tasks: Any) -> AsyncIterator[None]:
    """Run tasks meanwhile; they fail the test when they fail, and are cancelled at the end."""
    async with asyncio.TaskGroup() as group:
        started = [group.create_task(task) for task in tasks]
        yield
        for task in started:
            task.cancel()


async def waiting_messages(producer: Node) -> int:
    """Return how many messages a producer has taken and not yet sent on."""
    counters = await asyncio.to_thread(producer.counters)
    return counters["messages_in"] - counters["forwarded"]


async def at_rest(number: Callable[[], Awaitable[int]], at_least: int) -> int:
    """Return a number once it is large enough and has not changed for a while."""
    before, now = 0, await number()
    while now != before or now < at_least:
        await asyncio.sleep(0.5)
        before, now = now, await number()
    return now


async def round_trips(client: Client, topic: str, messages: Subscription[Message], count: int = 200) -> None:
    """Publish and receive in turn."""
    for number in range(count):
        await client.publish(topic, str(number))
        assert (await anext(messages)).data == str(number)


def text_frame(payload: bytes) -> bytes:
    """Return a text frame, masked with zeros (RFC 6455 section 5.2)."""
    return Raw(payload, key=bytes(4)).render(masked=True)


def binary_frame(payload: bytes) -> bytes:
    """Return a binary frame, masked with zeros."""
    return Raw(payload, BINARY, key=bytes(4)).render(masked=True)


def packet_frames(packets: Iterable[dict[str, Any]]) -> bytes:
    """Return the frames of packets of v2."""
    return b"".join(binary_frame(encoded(packet)) for packet in packets)


def message_frame(topic: str, data: str) -> bytes:
    return text_frame(json.dumps({"t": "m", "d": data, "s": topic}, separators=(",", ":")).encode())


class Flood:
    """Many messages on one topic, as a peer sends that reads no answer: v2 batches of one, or classic."""

    def __init__(self, *, v2: bool, size: int) -> None:
        self.v2, self._data = v2, "x" * size
        # The data of a batch, and the overhead that is counted for each in a chain.
        self.bytes = size + (NUMBER_BYTES if v2 else 3)

    def __str__(self) -> str:
        return f"{'v2' if self.v2 else 'classic'} {self.bytes}"

    async def opened(self, peers: Peers, producer: Node, count: int) -> list[RawSocket]:
        """Return connections."""
        if not self.v2:
            return await peers.established(producer, *["/produce"] * count)
        opened: list[RawSocket] = []
        for raw in await peers.speaking(producer, *["/produce"] * count):
            raw.send(new_secret())
            stop_reading(raw)
            opened.append(raw)
        return opened

    def count(self, held: int) -> int:
        """Return how many messages are more than a producer that holds so much takes, with the kernel."""
        frame = len(self.frames(1))
        return held // self.bytes + (kernel_limit("tcp_wmem") + kernel_limit("tcp_rmem")) // frame + 1

    def frames(self, count: int, before: int = 0) -> bytes:
        """Return the frames that publish `count` messages, after those of `before` messages."""
        if not self.v2:
            return message_frame(FED, self._data) * count
        numbers = range(before, before + count)
        return packet_frames(publish_of(number + 1, FED, self._data, after=number) for number in numbers)


async def send_all(raw: RawSocket, data: bytes) -> None:
    """Send as fast as the node reads, until it is through or the node ends the connection."""
    with contextlib.suppress(ConnectionError):
        raw.writer.write(data)
        await raw.writer.drain()


def stop_reading(raw: RawSocket) -> None:
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]


Socket = TypeVar("Socket", bound=RawSocket)


class Peers(contextlib.AsyncExitStack):
    """Open raw connections with little room in the kernel for unread bytes, and abort them at the end."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._secret = secret

    async def opened(self, node: Node, count: int) -> list[RawSocket]:
        """Return connections on which nothing was sent."""
        return await self._all(RawSocket.open(node.address) for _ in range(count))

    async def established(self, node: Node, *paths: str) -> list[RawSocket]:
        """Return connections with the classic hello done."""
        opened = functools.partial(RawSocket.established, key=self._secret, receive_buffer=4096)
        return await self._all(opened(node.address, path) for path in paths)

    async def speaking(self, node: Node, *paths: str) -> list[V2Socket]:
        """Return connections that speak v2."""
        opened = functools.partial(V2Socket.speaking, key=self._secret, receive_buffer=4096)
        return await self._all(opened(node.address, path) for path in paths)

    async def _all(self, opening: Iterable[AbstractAsyncContextManager[Socket]]) -> list[Socket]:
        return [await self.enter_async_context(one) for one in opening]


async def started(
    cluster: Cluster, consumers: int = 1, retention: dict[str, Any] | None = None, **changes: Any
) -> tuple[Node, Node, Bounds]:
    """Start consumers and a producer; return the first consumer, the producer and the bounds."""
    settings = QUIET | changes
    await asyncio.to_thread(cluster.start, consumers, 1, retention=retention, **settings)
    return cluster.consumers[0], cluster.producers[0], Bounds(Limits(**settings))


async def taken_down(consumer: Node, producer: Node) -> None:
    """Kill a consumer, and return once its producer knows."""
    await asyncio.to_thread(consumer.kill)
    await asyncio.to_thread(producer.wait_logged, "link down")


async def wait_taken(node: Node, count: int) -> None:
    while (await asyncio.to_thread(node.counters))["messages_in"] < count:
        pass


@contextlib.asynccontextmanager
async def peers_and_others(
    cluster: Cluster, topic: str = OTHER, **settings: Any
) -> AsyncIterator[tuple[Peers, Callable[[], Awaitable[None]]]]:
    """Yield raw peers, and a check that other clients publish and receive all the while."""
    async with (
        asyncio.timeout(100),
        Peers(cluster.secret) as peers,
        cluster.client(**settings) as other,
        other.subscribe(topic) as messages,
    ):
        others_go_on = functools.partial(round_trips, other, topic, messages)
        await others_go_on()
        yield peers, others_go_on


def test_the_bounds_are_documented() -> None:
    """The last column of the table in docs/configuration.md is in MiB."""
    bounds = Bounds(Limits())
    computed = [
        *(IDLE_BYTES + WORK_BYTES, bounds.feeding, bounds.slow_reader, bounds.slow_subscriber),
        *(Retention().max_bytes, bounds.disk, bounds.index, MAX_STATES_BYTES, bounds.file_topics),
        *(STRANGER_BYTES, TLS_BYTES),
        *(bounds.link_down_at_worst, bounds.link_slow, bounds.refused),
        *(bounds.cached_topics, bounds.counted_topics),
        *(4 * (MAX_WAITING_CHARACTERS + bounds.one_read), bounds.window),
    ]
    documented = [float(row[-1].replace(",", "")) for row in rows("docs/configuration.md", "Memory bounds")]
    assert documented == [round(bound / MIB, 1) for bound in computed]


# A consumer that does not read.


@pytest.mark.parametrize("size", [400, 100_000])
async def test_a_stopped_consumer_halts_only_the_publishers_that_feed_it(cluster: Cluster, size: int) -> None:
    # The subscriber of this test may fall far behind, and must miss nothing.
    retention = {"max_bytes": FAR_TOO_MUCH_BYTES, "max_bytes_per_topic": FAR_TOO_MUCH_BYTES}
    stopped, producer, bounds = await started(cluster, 2, retention, **PATIENT)
    came = Received()
    async with (
        asyncio.timeout(100),
        cluster.client(**PATIENT) as other,
        cluster.client(**PATIENT) as subscriber,
        subscriber.subscribe(FED) as messages,
        other.subscribe(OTHER) as others,
        contextlib.AsyncExitStack() as stack,
    ):
        await round_trips(other, OTHER, others)
        clients = [await stack.enter_async_context(cluster.client(**PATIENT)) for _ in range(3)]
        publishers = [Publisher(client, FED, size, name) for name, client in enumerate(clients)]
        growth = Growth(producer.pid)
        stopped.signal(signal.SIGSTOP)
        async with running(came.run(messages), *(publisher.run() for publisher in publishers)):
            waiting = await at_rest(lambda: waiting_messages(producer), SLOW_LINK_BYTES * 9 // 10 // size)
            assert waiting * size <= SLOW_LINK_BYTES + len(publishers) * bounds.one_read
            halted = [await at_rest(publisher.taken, 1) for publisher in publishers]
            for publisher, count in zip(publishers, halted, strict=True):
                assert count * publisher.message_bytes <= WINDOW_BYTES + publisher.message_bytes
            await round_trips(other, OTHER, others)
            growth.check(bounds.link_slow + len(publishers) * bounds.one_read)

            stopped.signal(signal.SIGCONT)
            for publisher, count in zip(publishers, halted, strict=True):
                await eventually(lambda: publisher.count > count, "the publisher goes on")  # noqa: B023
                publisher.stop()
            await eventually(lambda: came.count == sum(one.count for one in publishers), "all have come")
    assert came.numbers == {name: list(range(one.count)) for name, one in enumerate(publishers)}
    assert producer.counters()["lost_in_flight"] == 0


FLOODS = [
    Flood(v2=v2, size=size) for v2, size in ((False, 50), (True, 200), (False, 900_000), (True, 900_000))
]


@pytest.mark.parametrize(
    ("flood", "reads"),
    [*((flood, 0) for flood in FLOODS), (FLOODS[0], 4), (FLOODS[1], 2), (Flood(v2=True, size=60_000), 16)],
    ids=str,
)
async def test_the_messages_held_for_a_consumer_that_is_down_are_bounded(
    cluster: Cluster, flood: Flood, reads: int
) -> None:
    """One publisher sends more than is held, or 50 send some reads each: each adds one read at most."""
    publishers = 50 if reads else 1
    many: dict[str, Any] = {"max_held_bytes": 4 * MIB, "max_message_bytes": 65_536}
    down, producer, bounds = await started(
        cluster, 2, **PATIENT, **(many if reads else {"max_held_bytes": 8 * MIB})
    )
    async with peers_and_others(cluster) as (peers, others_go_on):
        await taken_down(down, producer)
        opened = await flood.opened(peers, producer, publishers)
        growth = Growth(producer.pid)
        each = flood.count(bounds.limits.max_held_bytes + MIB)
        if reads:
            each = reads * UVLOOP_READ_BYTES // len(flood.frames(1))
        frames = flood.frames(each)
        async with running(*(send_all(raw, frames) for raw in opened)):
            half = bounds.limits.max_held_bytes // 2 // flood.bytes + 1
            held = await at_rest(lambda: waiting_messages(producer), half)
            assert held < publishers * each
            assert reads or held * flood.bytes <= bounds.link_down
            growth.check(bounds.link_down + publishers * bounds.feeding)
            await others_go_on()
            # The kernel of a peer whose receive buffer is full drops window updates, too.
            for raw in opened:
                raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
            await asyncio.to_thread(down.start)
            await wait_taken(down, publishers * each)
    assert producer.counters()["lost_in_flight"] == 0


async def test_publishers_go_on_when_a_stopped_consumer_is_given_up(cluster: Cluster) -> None:
    settings = PATIENT | {"ping_interval_seconds": 1.0, "ping_timeout_seconds": 1.0}
    stopped, producer, bounds = await started(cluster, 2, **settings)
    size = 100_000
    total = bounds.limits.max_held_bytes // size * 2

    async def taken() -> int:
        return (await asyncio.to_thread(producer.counters))["messages_in"]

    async with asyncio.timeout(100), Peers(cluster.secret) as peers:
        (raw,) = await peers.established(producer, "/produce")
        stopped.signal(signal.SIGSTOP)
        async with running(send_all(raw, message_frame(FED, "x" * size) * total)):
            await asyncio.to_thread(producer.wait_logged, "link down")
            # Far more than it takes while it waits for the consumer.
            assert bounds.link_slow < bounds.limits.max_held_bytes * 9 // 10
            await at_rest(taken, bounds.limits.max_held_bytes * 9 // 10 // size)
        stopped.signal(signal.SIGCONT)


async def test_what_publishers_leave_behind_does_not_add_up(cluster: Cluster) -> None:
    # How soon a producer notices that a publisher is gone that it does not read from.
    pings: dict[str, Any] = {"ping_interval_seconds": 0.1, "ping_timeout_seconds": 0.1}
    down, producer, bounds = await started(cluster, 2, max_held_bytes=MIB, drain_seconds=1.0, **pings)
    await taken_down(down, producer)
    growth = Growth(producer.pid)
    for _ in range(40):
        # As `wsqueue publish` does when it is told to give up.
        async with asyncio.timeout(30), Peers(cluster.secret) as peers:
            (raw,) = await peers.established(producer, "/produce")
            await send_all(raw, message_frame(FED, "x" * 900_000))
            await raw.writer.drain()
            await asyncio.sleep(0.01)
        await asyncio.to_thread(producer.wait_open, 0)
    growth.check(bounds.link_down_at_worst)
    assert producer.counters()["lost_full"] > 0


async def test_what_is_held_does_not_hold_the_connections_of_its_publishers(cluster: Cluster) -> None:
    down, producer, bounds = await started(cluster, 2, drain_seconds=1.0)
    await taken_down(down, producer)
    growth = Growth(producer.pid)
    # A whole batch, and a message that lacks its last byte.
    frames = FLOODS[1].frames(1) + binary_frame(b"x" * bounds.limits.max_message_bytes)[:-1]
    for _ in range(100):
        async with asyncio.timeout(30), Peers(cluster.secret) as peers:
            (raw,) = await FLOODS[1].opened(peers, producer, 1)
            await send_all(raw, frames)
    await asyncio.to_thread(producer.wait_open, 0)
    assert producer.counters()["messages_in"] > 50
    # Some of those that are gone may not have been read to their end.
    growth.check(16 * bounds.feeding)


# Subscribers that do not read.


async def publish_until_full(
    client: Client, topics: list[str], limits: Limits, size: int, wait: Callable[[], int] | None = None
) -> int:
    """Publish more than node and kernel hold for a subscriber that does not read; return how many."""
    # The peer's own buffer in the kernel is small.
    count = (limits.max_buffered_bytes + kernel_limit("tcp_wmem") + MIB) // size
    for number in range(count):
        for topic in topics:
            await client.drain()
            client.publish_nowait(topic, f"{number:08}" + "x" * size)
        # In step with the other subscribers, so that they don't fall behind too.
        if number % 8 == 7:
            await client.flush()
            if wait is not None:
                await eventually(lambda: wait() == number + 1, "the others have all")  # noqa: B023
    return count


async def test_a_stopped_subscriber_is_closed_and_the_others_get_all(cluster: Cluster) -> None:
    consumer, _, bounds = await started(cluster, 1, SMALL_LOG, close_seconds=60.0)
    readers = [Received() for _ in range(20)]
    async with asyncio.timeout(100), Peers(cluster.secret) as peers, contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(cluster.client(**QUIET))
        messages = [await stack.enter_async_context(client.subscribe("news")) for _ in readers]
        (stopped,) = await peers.established(consumer, "/subscribe/news")
        stop_reading(stopped)
        growth = Growth(consumer.pid)
        async with running(*(reader.run(one) for reader, one in zip(readers, messages, strict=True))):

            def slowest() -> int:
                return min(reader.count for reader in readers)

            count = await publish_until_full(client, ["news"], bounds.limits, 60_000, slowest)
            await eventually(lambda: all(one.count == count for one in readers), "all have come")
        growth.check(SMALL_LOG["max_bytes"] + bounds.slow_reader)
        assert all(reader.numbers == {0: list(range(count))} for reader in readers)
        stopped.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await stopped.close_frame() == (1013, "too slow: the write buffer for this peer is full")
    await asyncio.to_thread(consumer.wait_logged, r"WARNING connection closed .*1013 \(too slow")
    assert consumer.counters()["slow_subscribers"] == 1


@pytest.mark.parametrize(
    ("subscribers", "topics", "size"), [(200, 1, 60_000), (100, 1, 1000), (25, 25, 60_000)]
)
async def test_many_stopped_subscribers_of_a_topic_share_what_waits(
    cluster: Cluster, subscribers: int, topics: int, size: int
) -> None:
    consumer, _, bounds = await started(cluster, 1, SMALL_LOG)
    names = [f"topic-{number}" for number in range(topics)]
    paths = [f"/subscribe/{names[number % topics]}" for number in range(subscribers)]
    async with asyncio.timeout(100), Peers(cluster.secret) as peers, cluster.client(**QUIET) as client:
        for raw in await peers.established(consumer, *paths):
            stop_reading(raw)
        growth = Growth(consumer.pid)
        await publish_until_full(client, names, bounds.limits, size)
        await eventually(lambda: consumer.log.count("1013") >= min(subscribers, 20), "they are closed")
        await asyncio.to_thread(consumer.wait_open, 1)
        growth.check(SMALL_LOG["max_bytes"] + topics * bounds.slow_reader)
        assert consumer.counters()["slow_subscribers"] == subscribers


PING = b"\x89\x80\0\0\0\0"


async def test_small_messages_one_at_a_time_to_stopped_subscribers(cluster: Cluster) -> None:
    consumer = cluster.add_consumer(**{"retention.max_bytes": MIB})
    path = str(cluster.directory / "socket")
    consumer.settings["listen"] = [consumer.address, f"unix:{path}"]
    consumer.limits = SMALL
    await asyncio.to_thread(consumer.start)
    bounds = Bounds(Limits(**SMALL))
    async with asyncio.timeout(100), Peers(cluster.secret) as peers:
        (link,) = await peers.established(consumer, "/producer")
        # A unix socket keeps little in the kernel.
        consumer.address = f"unix:{path}"
        for raw in await peers.established(consumer, *["/subscribe/t"] * 10):
            stop_reading(raw)
        growth = Growth(consumer.pid)
        for _ in range(45_000):
            link.writer.write(message_frame("t", "x") + PING)
            assert await link.reader.readexactly(2) == b"\x8a\0"
        growth.check(MIB + bounds.slow_reader)


# An application that does not iterate.


APPLICATION = """
import asyncio, sys, wsqueue
async def main():
    async with wsqueue.connect(sys.argv[1]) as client, client.subscribe("news") as messages:
        print((await anext(messages)).data, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        numbers = []
        async for message in messages:
            numbers.append(int(message.data[:8]))
            if len(numbers) == int(sys.argv[2]):
                break
        print(numbers == list(range(len(numbers))), flush=True)
asyncio.run(main())
"""


async def test_a_client_whose_application_is_stuck_stops_reading(cluster: Cluster) -> None:
    size = 20_000
    consumer, _, bounds = await started(cluster)
    application = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", APPLICATION, str(cluster.demo_file), str(MAX_WAITING_MESSAGES)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    assert application.stdin is not None
    assert application.stdout is not None
    try:
        async with asyncio.timeout(100), cluster.client(**QUIET) as client:
            await asyncio.to_thread(consumer.wait_open, 2)
            await client.publish("news", "begin")
            assert await application.stdout.readline() == b"begin\n"
            growth = Growth(application.pid)
            count = 0
            while not consumer.counters()["fell_behind"] or count < 5 * MAX_WAITING_MESSAGES:
                for _ in range(500):
                    await client.drain()
                    client.publish_nowait("news", f"{count:08}{'x' * size}")
                    count += 1
                assert count * size < FAR_TOO_MUCH_BYTES, "the application takes all"
                await client.flush()
            growth.check(MAX_WAITING_MESSAGES * (size + KIB) + bounds.one_read)
            application.stdin.write(b"go on\n")
            assert await application.stdout.readline() == b"True\n"
            assert await application.wait() == 0
    finally:
        if application.returncode is None:
            application.kill()
            await application.wait()


async def test_a_stuck_application_does_not_grow_with_each_reconnect(cluster: Cluster) -> None:
    # A client that does not read learns of a reset when it pings.
    settings: dict[str, Any] = {"ping_interval_seconds": 0.2, "reconnect_max_seconds": 0.2}
    await asyncio.to_thread(cluster.start, 1, 1, **settings)
    (consumer,) = cluster.consumers
    link = Link("proxy")
    link.upstream = ("127.0.0.1", consumer.port)
    await link.start()
    async with (
        asyncio.timeout(100),
        contextlib.AsyncExitStack() as stack,
        cluster.client(**settings) as client,
        cluster.client(consumers=[f"{link.address}/subscribe"], **settings) as stuck,
        # On a slow machine it takes so little that the log drops messages before they come: a gap, once each
        # time that it connects.
        stuck.subscribe("news", on_gap="yield") as messages,
    ):
        stack.push_async_callback(link.stop)
        for number in range(1, 9):
            for _ in range(200):
                await client.drain()
                client.publish_nowait("news", "x" * 20_000)
            await client.flush()
            assert link.accepted == number
            link.reset()
            # It does not read on, not even the answer to its subscription.
            await eventually(lambda: link.accepted > number, "it is back")  # noqa: B023
            await asyncio.to_thread(consumer.wait_open, 2)
        await messages.close()
        # The messages before the first pause, and a batch that was on its way.
        waiting = [item async for item in messages]
        assert len(waiting) <= MAX_WAITING_MESSAGES + 2 * CHUNK_BYTES // 20_000


# Peers that mean harm.


def subscriptions(begin: int) -> bytes:
    """Return the frames that subscribe to 1000 topics, and end that."""
    packets = (
        {"t": kind, "topic": f"topic {number}"}
        for number in range(begin, begin + 1000)
        for kind in ("subscribe", "unsubscribe")
    )
    return packet_frames(packets)


LONG_PINGS = 2000 * (struct.pack("!BB4x", 0x89, 0x80 | 125) + b"x" * 125)


@pytest.mark.parametrize(
    ("path", "v2", "frames", "changes"),
    [
        ("/produce", False, lambda _: LONG_PINGS, {}),
        ("/subscribe/news", False, lambda _: LONG_PINGS, {}),
        ("/produce", True, lambda before: FLOODS[1].frames(1000, before), {"max_topic_bytes": 5}),
        ("/subscribe", True, subscriptions, {}),
    ],
    ids=["pings of a publisher", "pings of a subscriber", "refused batches", "subscriptions"],
)
async def test_a_flood_whose_answers_are_not_read(
    cluster: Cluster, path: str, v2: bool, frames: Callable[[int], bytes], changes: dict[str, Any]
) -> None:
    consumer, producer, bounds = await started(cluster, **changes)
    node = producer if path == "/produce" else consumer
    async with peers_and_others(cluster, "news") as (peers, others_go_on):
        if v2 and node is producer:
            (raw,) = await FLOODS[1].opened(peers, producer, 1)
        else:
            (raw,) = await (peers.speaking if v2 else peers.established)(node, path)
        stop_reading(raw)
        growth = Growth(node.pid)
        for begin in itertools.count(step=1000):
            await send_all(raw, frames(begin))
            growth.check(bounds.slow_reader + bounds.index * (path == "/subscribe"))
            if raw.writer.transport.is_closing():
                break
        await asyncio.to_thread(node.wait_logged, r"connection closed .*1013")
        await others_go_on()


async def test_strangers_hold_little_and_not_for_long(cluster: Cluster) -> None:
    strangers = 160
    consumer, _, _ = await started(cluster, hello_seconds=3.0)
    # A header that never ends, a message that never does, one that is too long for a stranger, and garbage.
    endless_request = request_of("/producer")[:-2] + (b"X: " + b"x" * 8000 + b"\r\n") * 7
    endless_message = (
        request_of("/producer") + struct.pack("!BBQ4x", 0x01, 0x80 | 127, 65_000) + b"x" * 64_000
    )
    too_much = request_of("/producer") + text_frame(b"x" * 1_000_000)[:-1]
    garbage = b"\x00\xff\r" * 2000
    attacks = [endless_request, endless_message, too_much, garbage]
    async with peers_and_others(cluster, "news") as (peers, others_go_on):
        growth = Growth(consumer.pid)
        for number, raw in enumerate(await peers.opened(consumer, strangers)):
            stop_reading(raw)
            await send_all(raw, attacks[number % len(attacks)])
        await others_go_on()
        growth.check(strangers * STRANGER_BYTES)
        await asyncio.to_thread(consumer.wait_open, 2)


async def test_messages_that_never_end(cluster: Cluster) -> None:
    count = 50
    _, producer, bounds = await started(cluster)
    async with peers_and_others(cluster, "news") as (peers, others_go_on):
        raws = await peers.established(producer, *["/produce"] * count)
        growth = Growth(producer.pid)
        for number, raw in enumerate(raws):
            if number % 2:
                # One frame, of which the last byte is missing.
                await send_all(raw, text_frame(b"x" * bounds.limits.max_message_bytes)[:-1])
            else:
                for _ in range(16):
                    raw.send_frame(Opcode.CONT if _ else Opcode.TEXT, b"x" * 65_500, fin=False)
                raw.send_frame(Opcode.PING)
                await raw.until(Opcode.PONG)
        await others_go_on()
        growth.check(count * bounds.one_read)
        # They count: one byte more is too much.
        raws[0].send_frame(Opcode.CONT, b"x" * bounds.limits.max_message_bytes)
        assert (await raws[0].close_frame())[0] == 1009


@pytest.mark.parametrize("what", ["unfinished messages", "messages that are not read"])
async def test_what_waits_in_all_connections_is_bounded(cluster: Cluster, what: str) -> None:
    """Each connection has less than its own limit, and all together have four times their limit."""
    total = 24 * MIB
    limits: dict[str, Any] = {"max_message_bytes": MIB, "max_total_buffered_bytes": total}
    consumer, producer, bounds = await started(
        cluster, 1, SMALL_LOG, max_buffered_bytes=2 * MIB, ping_timeout_seconds=5.0, **limits
    )
    count = 4 * total // MIB
    async with peers_and_others(cluster, "news") as (peers, others_go_on):
        if what == "unfinished messages":
            node = producer
            raws = await peers.established(producer, *["/produce"] * count)
            growth = Growth(producer.pid)
            for raw in raws:
                await send_all(raw, text_frame(b"x" * (MIB - 1))[:-1])
        else:
            node = consumer
            names = [f"topic-{number}" for number in range(count)]
            for raw in await peers.established(consumer, *[f"/subscribe/{name}" for name in names]):
                stop_reading(raw)
            growth = Growth(consumer.pid)
            async with cluster.client(**QUIET) as client:
                # More than the kernel takes, in batches that a subscriber is sent while it is not congested.
                for _ in range(1 + (kernel_limit("tcp_wmem") + MIB) // 900_000):
                    for name in names:
                        await client.publish(name, "x" * 900_000)
        await asyncio.to_thread(node.wait_logged, "connection closed .*1013 .*all connections")
        await others_go_on()
        # A message that is sent is in memory as it came, as text and framed, with those that are given up for
        # it, and leaves holes of its size.
        sent = 0 if node is producer else 20 * MIB
        growth.check(total + 2 * bounds.one_read + SMALL_LOG["max_bytes"] + sent)


# Subscribers of a log.


@pytest.mark.parametrize("mode", ["memory", "sqlite"])
@pytest.mark.parametrize(("subscribers", "topics"), [(100, 1), (10, 100)])
async def test_subscribers_that_ask_for_a_large_log_and_do_not_read_it(
    cluster: Cluster, mode: str, subscribers: int, topics: int
) -> None:
    consumer, _, bounds = await started(cluster, 1, {"mode": mode}, max_message_bytes=65_536)
    names = [f"topic-{number}" for number in range(topics)]
    async with cluster.client() as client:
        for topic in names * (500 // topics):
            await client.drain()
            client.publish_nowait(topic, "x" * 30_000)
        await client.flush()
    packets = [{"t": "subscribe", "topic": topic, "start": "earliest"} for topic in names]
    async with asyncio.timeout(100), Peers(cluster.secret) as peers:
        # Nothing of a log on disk is in memory then.
        await asyncio.to_thread(consumer.terminate)
        await asyncio.to_thread(consumer.start)
        opened = await peers.speaking(consumer, *["/subscribe"] * subscribers)
        growth = Growth(consumer.pid, FAR_TOO_MUCH_BYTES)
        for raw in opened:
            stop_reading(raw)
            await send_all(raw, packet_frames(packets))

        async def deliveries() -> int:
            return (await asyncio.to_thread(consumer.counters))["deliveries"]

        assert await at_rest(deliveries, 1) < subscribers * topics * (500 // topics)
        growth.check(subscribers * bounds.slow_subscriber + 2 * CACHE_KIB * KIB * (mode == "sqlite"))
        assert "1013" not in consumer.log
        # One that reads again gets all.
        raw = opened[0]
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        came = 0
        while came < topics * (500 // topics):
            packet = await raw.packet()
            came += len(data_of(packet)) if packet["t"] == "deliver" else 0


@pytest.mark.parametrize("mode", ["memory", "sqlite"])
async def test_a_log_that_is_full_does_not_grow(cluster: Cluster, mode: str) -> None:
    consumer, producer, bounds = await started(cluster, 1, {"mode": mode, "max_bytes": 8 * MIB})
    flood, count = FLOODS[1], 100_000
    async with asyncio.timeout(100), Peers(cluster.secret) as peers:
        (raw,) = await flood.opened(peers, producer, 1)
        growth = Growth(consumer.pid)
        await send_all(raw, flood.frames(count))
        await wait_taken(consumer, count)
        growth.check(8 * MIB + 2 * bounds.one_read if mode == "memory" else bounds.disk)


@pytest.mark.parametrize("mode", ["memory", "sqlite"])
async def test_publishers_and_topics_without_end(cluster: Cluster, mode: str) -> None:
    retention = {"mode": mode, **SMALL_LOG}
    consumer, producer, bounds = await started(cluster, 1, retention, max_topic_bytes=100)
    log = bounds.disk + bounds.file_topics if mode == "sqlite" else SMALL_LOG["max_bytes"]
    publishers, topics = MAX_NUMBERS * 3 // 2, CACHED_TOPICS * 3
    async with asyncio.timeout(100), Peers(cluster.secret) as peers:
        (link,) = await peers.speaking(consumer, "/producer")
        (raw,) = await peers.established(producer, "/produce")
        # Both are read, because a system that drops packets of a full receive buffer may lose with them
        # that the node's buffer has room again.
        growths = Growth(producer.pid), Growth(consumer.pid)
        for begin in range(0, publishers, 1000):
            # Each client is another, and a producer passes that on.
            numbers = range(begin, begin + 1000)
            forwards = (forward_of(1, "news", "", publisher=f"{number:022}") for number in numbers)
            await send_all(link, packet_frames(forwards))
        await wait_taken(consumer, publishers)
        growths[1].check(bounds.index // 2 + log)
        for begin in range(0, topics, 1024):
            # One character beyond the basic plane, and Python takes 4 bytes for each.
            frames = (message_frame(f"😀{number:096}", "") for number in range(begin, begin + 1024))
            await send_all(raw, b"".join(frames))
        await wait_taken(consumer, publishers + topics)
        growths[0].check(bounds.cached_topics + bounds.link_slow)
        growths[1].check(bounds.index + log)


async def test_subscriptions_without_end_are_bounded_and_given_back(cluster: Cluster) -> None:
    """Clients that subscribe to all they can make room for others, and then leave no memory behind."""
    consumer, _, bounds = await started(cluster, max_index_bytes=16 * MIB)
    subscribed = 0
    async with peers_and_others(cluster, "news") as (_, others_go_on):
        growth = Growth(consumer.pid)
        for _ in range(2):
            async with asyncio.timeout(90), Peers(cluster.secret) as peers:
                speaking = functools.partial(
                    V2Socket.speaking, consumer.address, "/subscribe", cluster.secret
                )
                for raw in [await peers.enter_async_context(speaking()) for _ in range(8)]:
                    packets = (
                        {"t": "subscribe", "topic": f"{subscribed + number} {'é' * 100}"}
                        for number in range(9000)
                    )
                    subscribed += 9000
                    await send_all(raw, packet_frames(packets))
                    # It has all answers, or is closed.
                    with contextlib.suppress(EOFError, ConnectionError):
                        raw.send_frame(Opcode.PING)
                        await raw.until(Opcode.PONG)
                await asyncio.to_thread(consumer.wait_logged, "connection closed .*4415")
                await others_go_on()
            await asyncio.to_thread(consumer.wait_open, 2)
            growth.check(bounds.index + 8 * MIB)
        await others_go_on()
    left = memory_bytes(consumer.pid, "VmRSS")
    assert left < IDLE_BYTES + WORK_BYTES + bounds.index // 2, f"{left / MIB:.1f} MiB are left"


@pytest.mark.parametrize("kind", ["control characters", "letters"])
async def test_a_batch_of_tiny_messages_on_a_long_topic_takes_little(cluster: Cluster, kind: str) -> None:
    """Not even where classic subscribers and a classic consumer get a message each for a byte of it."""
    consumer, producer, bounds = await started(cluster, 1, SMALL_LOG, max_topic_bytes=1024)
    topic, count = ("\x01" if kind == "control characters" else "x") * 1024, 1_051_000
    frame = packet_frames([publish_of(1, topic, *[""] * count)])
    # It has the bytes that a message may have, and the packet that passes it on has more.
    assert len(frame) > bounds.limits.max_message_bytes
    async with asyncio.timeout(100), Peers(cluster.secret) as peers:
        path = f"/subscribe/{quote(topic)}"
        for raw in await peers.established(consumer, *[path] * 20):
            stop_reading(raw)
        (raw,) = await FLOODS[1].opened(peers, producer, 1)
        growths = [Growth(node.pid) for node in (producer, consumer)]
        await send_all(raw, frame)
        await wait_taken(consumer, count)
        growths[0].check(32 * MIB)
        # The log, and what each of the subscribers has not read.
        growths[1].check(32 * MIB + SMALL_LOG["max_bytes"] + 20 * 2 * CONGESTED_BYTES)
        seconds = [cpu_seconds(node.pid) for node in (producer, consumer)]
        assert max(seconds) < 3.0, seconds


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
