"""Whoever does not read slows those who feed it and nobody else, and no process outgrows its bound.

The bounds are those of docs/configuration.md, "Memory bounds", computed from the same limits. Memory is the
peak of the resident set, so that nothing can grow unseen between two looks at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Opcode

from tests.integration.peer import topic_of
from tests.integration.raw import RawSocket, request_of
from tests.test_docs import rows
from wsqueue import Client, Subscription
from wsqueue.client import MAX_WAITING_CHARACTERS, MAX_WAITING_MESSAGES
from wsqueue.config import READ_MARGIN_BYTES, Limits
from wsqueue.connection import CONGESTED_BYTES, HELD_OVERHEAD_BYTES
from wsqueue.producer import SLOW_LINK_BYTES
from wsqueue.routing import CACHED_TOPICS, MAX_CACHED_CHARACTERS
from wsqueue.session import MAX_HELLO_BYTES

from .processes import Cluster, Node, clean_environment, eventually, in_thread, memory_bytes

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.usefixtures("uncovered"),
]

KIB, MIB = 1024, 1024 * 1024

UVLOOP_READ_BYTES = 256_000
"""What uvloop reads in one go."""

IDLE_BYTES = 40 * MIB
"""What a process has when nothing happens: Python and its modules."""

WORK_BYTES = 8 * MIB
"""What it takes to work, besides what waits in it: one read in all its forms, and what malloc keeps."""

STRANGER_BYTES = MAX_HELLO_BYTES * 9 // 8 + 32 * KIB
"""A peer that has not proved itself: what it may send, in a bytearray, and the connection."""

TOPIC_BYTES = 300
"""What the cache of the routes takes for a topic, besides its characters of up to 4 bytes."""

FAR_TOO_MUCH_BYTES = 1024 * MIB
"""A test that failed must not fill the memory of the machine."""

FED, OTHER = topic_of(0, 2), topic_of(1, 2)
"""A topic of the first of two consumers, and one of the second."""

PATIENT: dict[str, Any] = {
    # A process that is stopped answers no pings.
    "ping_interval_seconds": 3600.0,
    # The subscriber of these tests shares its process with the publisher, and may be slow.
    "max_buffered_bytes": 256 * MIB,
    "reconnect_max_seconds": 0.2,
}


def one_read(limits: Limits) -> int:
    """Return what one read can bring: a message of which the rest was there, and others after it."""
    return limits.max_message_bytes + READ_MARGIN_BYTES


def slow_reader(limits: Limits) -> int:
    """Return what can wait for a peer that reads slowly; subscribers of one topic share it."""
    return limits.max_buffered_bytes + one_read(limits)


def link_down(limits: Limits) -> int:
    """Return what can wait for a consumer that is down; one read more for each publisher comes to it."""
    return limits.max_held_bytes + 2 * one_read(limits)


def link_down_at_worst(limits: Limits) -> int:
    """Return the same where publishers come and go: then what they left behind adds up."""
    return 2 * limits.max_held_bytes + 2 * one_read(limits)


def link_slow(limits: Limits) -> int:
    """Return what can wait for a consumer that is up and does not read; one read more for each publisher."""
    return SLOW_LINK_BYTES + CONGESTED_BYTES + 2 * one_read(limits)


def cached_topics() -> int:
    """Return what a producer remembers of topics: for Python, a character may take 4 bytes."""
    return CACHED_TOPICS * (4 * MAX_CACHED_CHARACTERS + TOPIC_BYTES)


def kernel_bytes() -> int:
    """Return what the kernel holds of a connection in one direction: the buffers of both of its ends."""
    return kernel_limit("tcp_wmem") + kernel_limit("tcp_rmem")


def kernel_limit(name: str) -> int:
    """Return the most that a kind of buffer grows to (tcp(7))."""
    return int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2])


class Growth:
    """Measure how much a process grows from now on."""

    def __init__(self, pid: int) -> None:
        self._pid, self._base = pid, memory_bytes(pid, "VmRSS")
        assert self._base <= IDLE_BYTES

    def check(self, bound: int) -> None:
        """Check that it never was beyond a bound, besides `WORK_BYTES`."""
        peak = memory_bytes(self._pid, "VmHWM") - self._base
        assert peak <= bound + WORK_BYTES, f"{peak / MIB:.1f} MiB, and not {(bound + WORK_BYTES) / MIB:.1f}"


class Publisher:
    """Publish numbered messages of one size on one topic, flat out.

    Attributes:
        count: How many the client has taken.
    """

    def __init__(self, client: Client, topic: str, size: int) -> None:
        self.client, self._topic = client, topic
        self._padding = "x" * (size - 8)
        self.payload_bytes = len(json.dumps({"t": "m", "d": "x" * size, "s": topic}, separators=(",", ":")))
        self.count = 0
        self._stopping = False

    async def run(self) -> None:
        """Publish until `stop`."""
        while not self._stopping:
            await self.client.publish(self._topic, f"{self.count:08}{self._padding}")
            self.count += 1
            assert self.count * self.payload_bytes < FAR_TOO_MUCH_BYTES, "nothing halts the publisher"
            if self.count % 64 == 0:
                # A client that can send does not wait.
                await asyncio.sleep(0)
        await self.client.flush()

    def stop(self) -> None:
        """Let `run` end."""
        self._stopping = True

    async def halted(self) -> int:
        """Return the count once it no longer grows."""

        async def count() -> int:
            return self.count

        return await at_rest(count, 1)


class Received:
    """Note the numbers that come on a subscription."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    async def run(self, messages: Subscription) -> None:
        """Note what comes, until cancelled."""
        async for message in messages:
            self.numbers.append(int(message.data[:8]))


@contextlib.asynccontextmanager
async def running(*tasks: Any) -> AsyncIterator[None]:
    """Run tasks meanwhile; they fail the test when they fail, and are cancelled at the end."""
    async with asyncio.TaskGroup() as group:
        started = [group.create_task(task) for task in tasks]
        yield
        for task in started:
            task.cancel()


async def held_bytes(producer: Node, payload_bytes: int) -> int:
    """Return what a producer holds, as it counts itself, when all messages have the same size."""
    counters = await in_thread(producer.counters)
    return (counters["messages_in"] - counters["forwarded"]) * (payload_bytes + HELD_OVERHEAD_BYTES)


async def at_rest(number: Callable[[], Awaitable[int]], at_least: int) -> int:
    """Return a number once it is large enough and has not changed for a while."""
    before, now = 0, await number()
    while now != before or now < at_least:
        await asyncio.sleep(0.5)
        before, now = now, await number()
    return now


async def round_trips(client: Client, topic: str, messages: Subscription, count: int = 200) -> None:
    """Publish and receive in turn."""
    for number in range(count):
        await client.publish(topic, str(number))
        assert (await anext(messages)).data == str(number)


def text_frame(payload: bytes) -> bytes:
    """Return a text frame, masked with zeros (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB4x", 0x81, 0x80 | size) + payload
    if size < 65_536:
        return struct.pack("!BBH4x", 0x81, 0x80 | 126, size) + payload
    return struct.pack("!BBQ4x", 0x81, 0x80 | 127, size) + payload


def message_frame(topic: str, data: str) -> bytes:
    return text_frame(json.dumps({"t": "m", "d": data, "s": topic}, separators=(",", ":")).encode())


async def send_all(raw: RawSocket, data: bytes) -> None:
    """Send as fast as the node reads, until it is through or the node ends the connection."""
    with contextlib.suppress(ConnectionError):
        raw.writer.write(data)
        await raw.writer.drain()


def stop_reading(raw: RawSocket) -> None:
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]


class Peers:
    """Open raw connections, and abort them at the end."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Peers:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._stack.aclose()

    async def opened(self, node: Node, count: int) -> list[RawSocket]:
        """Return connections on which nothing was sent."""
        return [await self._stack.enter_async_context(RawSocket.open(node.address)) for _ in range(count)]

    async def established(self, node: Node, *paths: str) -> list[RawSocket]:
        """Return connections with the hello done, and little room in the kernel for what they do not read."""
        return [
            await self._stack.enter_async_context(
                RawSocket.established(node.address, path, self._secret, receive_buffer=4096)
            )
            for path in paths
        ]


def test_the_bounds_are_documented() -> None:
    """The last column of the table in docs/configuration.md is in MiB."""
    limits = Limits()
    bounds = {
        "node": IDLE_BYTES + WORK_BYTES,
        "feeding": one_read(limits),
        "slow": slow_reader(limits),
        "stranger": STRANGER_BYTES,
        "down": link_down_at_worst(limits),
        "up": link_slow(limits),
        "topics": cached_topics(),
        "application": 4 * (MAX_WAITING_CHARACTERS + one_read(limits)),
    }
    documented = [float(row[-1].replace(",", "")) for row in rows("docs/configuration.md", "Memory bounds")]
    assert documented == [round(bound / MIB, 1) for bound in bounds.values()]


# A consumer that does not read.


@pytest.mark.parametrize("size", [100, 100_000])
async def test_a_stopped_consumer_halts_who_feeds_it_and_nobody_else(cluster: Cluster, size: int) -> None:
    await in_thread(lambda: cluster.start(2, 1, **PATIENT))
    stopped, (producer,), limits = cluster.consumers[0], cluster.producers, Limits(**PATIENT)
    came = Received()
    async with (
        asyncio.timeout(100),
        cluster.client(**PATIENT) as feeding,
        cluster.client(**PATIENT) as other,
        feeding.subscribe(FED) as messages,
        other.subscribe(OTHER) as others,
    ):
        await round_trips(other, OTHER, others)
        publisher, growth = Publisher(feeding, FED, size), Growth(producer.pid)
        stopped.signal(signal.SIGSTOP)
        async with running(came.run(messages), publisher.run()):
            held = await at_rest(lambda: held_bytes(producer, publisher.payload_bytes), SLOW_LINK_BYTES)
            assert held <= SLOW_LINK_BYTES + one_read(limits)
            halted = await publisher.halted()
            # From the client's buffer to the socket that the consumer does not read.
            bound = (
                (CONGESTED_BYTES + limits.max_message_bytes)
                + kernel_bytes()
                + (SLOW_LINK_BYTES + one_read(limits))
                + (CONGESTED_BYTES + one_read(limits))
                + kernel_bytes()
            )
            taken = halted * publisher.payload_bytes
            assert taken <= bound
            await round_trips(other, OTHER, others)
            growth.check(link_slow(limits) + one_read(limits))

            stopped.signal(signal.SIGCONT)
            await eventually(lambda: publisher.count > halted, "the publisher goes on")
            publisher.stop()
            await eventually(lambda: len(came.numbers) == publisher.count, "all have come")
    assert came.numbers == list(range(publisher.count))
    assert feeding.lost_in_flight == producer.counters()["lost_in_flight"] == 0


@pytest.mark.parametrize("size", [8, 900_000])
async def test_what_is_held_for_a_consumer_that_is_down_is_bounded(cluster: Cluster, size: int) -> None:
    settings = PATIENT | {"max_held_bytes": 16 * MIB}
    await in_thread(lambda: cluster.start(2, 1, **settings))
    down, (producer,), limits = cluster.consumers[0], cluster.producers, Limits(**settings)
    came = Received()
    async with (
        asyncio.timeout(100),
        cluster.client(**settings) as feeding,
        cluster.client(**settings) as other,
        feeding.subscribe(FED) as messages,
        other.subscribe(OTHER) as others,
    ):
        await round_trips(other, OTHER, others)
        await in_thread(down.kill)
        await in_thread(producer.wait_logged, "link down")
        publisher, growth = Publisher(feeding, FED, size), Growth(producer.pid)
        async with running(came.run(messages), publisher.run()):
            held = await at_rest(lambda: held_bytes(producer, publisher.payload_bytes), limits.max_held_bytes)
            halted = await publisher.halted()
            assert held <= limits.max_held_bytes + one_read(limits)
            await round_trips(other, OTHER, others)
            growth.check(link_down(limits) + one_read(limits))

            await in_thread(down.start)
            await eventually(lambda: publisher.count > halted, "the publisher goes on")
            # A consumer keeps nothing for a subscriber that is not yet back.
            await eventually(lambda: came.numbers, "the subscriber is back")
            publisher.stop()
            await eventually(lambda: publisher.count - 1 in came.numbers[-1:], "the last has come")
    counters = await in_thread(down.counters)
    assert counters["messages_in"] == publisher.count
    assert came.numbers == list(range(counters["without_subscriber"], publisher.count))
    assert feeding.lost_in_flight == producer.counters()["lost_in_flight"] == 0


@pytest.mark.parametrize(("size", "reads"), [(50, 2), (60_000, 16)])
async def test_each_of_many_publishers_adds_one_read_at_most(cluster: Cluster, size: int, reads: int) -> None:
    publishers = 50
    settings = PATIENT | {"max_held_bytes": 4 * MIB, "max_message_bytes": 65_536}
    await in_thread(lambda: cluster.start(2, 1, **settings))
    down, (producer,), limits = cluster.consumers[0], cluster.producers, Limits(**settings)
    await in_thread(down.kill)
    await in_thread(producer.wait_logged, "link down")
    frame = message_frame(FED, "x" * size)
    each = reads * UVLOOP_READ_BYTES // len(frame)
    payload_bytes = len(frame) - (6 if size < 126 else 8)
    async with (
        asyncio.timeout(100),
        Peers(cluster.secret) as peers,
        cluster.client(**settings) as other,
        other.subscribe(OTHER) as others,
    ):
        feeding = await peers.established(producer, *["/produce"] * publishers)
        growth = Growth(producer.pid)
        async with running(*(send_all(raw, frame * each) for raw in feeding)):
            held = await at_rest(lambda: held_bytes(producer, payload_bytes), limits.max_held_bytes)
            everything = publishers * each * (payload_bytes + HELD_OVERHEAD_BYTES)
            assert held < everything
            assert held <= limits.max_held_bytes + publishers * one_read(limits)
            growth.check(link_down(limits) + publishers * one_read(limits))
            await round_trips(other, OTHER, others)

            await in_thread(down.start)
            while (await in_thread(down.counters))["messages_in"] < publishers * each:
                pass
    assert producer.counters()["lost_in_flight"] == 0


async def test_publishers_go_on_when_a_stopped_consumer_is_given_up(cluster: Cluster) -> None:
    settings = PATIENT | {"ping_interval_seconds": 1.0, "ping_timeout_seconds": 1.0}
    await in_thread(lambda: cluster.start(2, 1, **settings))
    stopped, (producer,), limits = cluster.consumers[0], cluster.producers, Limits(**settings)
    async with asyncio.timeout(100), cluster.client(**PATIENT) as feeding:
        publisher = Publisher(feeding, FED, 100_000)
        stopped.signal(signal.SIGSTOP)
        async with running(publisher.run()):
            await at_rest(lambda: held_bytes(producer, publisher.payload_bytes), SLOW_LINK_BYTES)
            await in_thread(producer.wait_logged, "link down")

            await at_rest(lambda: held_bytes(producer, publisher.payload_bytes), limits.max_held_bytes)
        stopped.signal(signal.SIGCONT)


async def test_what_publishers_leave_behind_does_not_add_up(cluster: Cluster) -> None:
    settings: dict[str, Any] = {
        "max_held_bytes": MIB,
        # How soon a producer notices that a publisher is gone that it does not read from.
        "ping_interval_seconds": 0.1,
        "ping_timeout_seconds": 0.1,
        "drain_seconds": 1.0,
    }
    await in_thread(lambda: cluster.start(2, 1, **settings))
    down, (producer,), limits = cluster.consumers[0], cluster.producers, Limits(**settings)
    await in_thread(down.kill)
    await in_thread(producer.wait_logged, "link down")
    growth = Growth(producer.pid)
    for _ in range(40):
        # As `wsqueue publish` does when it is told to give up.
        async with asyncio.timeout(30), Peers(cluster.secret) as peers:
            (raw,) = await peers.established(producer, "/produce")
            await send_all(raw, message_frame(FED, "x" * 900_000))
            await raw.writer.drain()
            await asyncio.sleep(0.01)
        await in_thread(producer.wait_open, 0)
    growth.check(link_down_at_worst(limits))
    assert producer.counters()["lost_full"] > 0


# Subscribers that do not read.


async def publish_until_full(
    client: Client,
    topics: Sequence[str],
    limits: Limits,
    wait: Callable[[], Any] | None = None,
    size: int = 60_000,
) -> int:
    """Publish more than node and kernel hold for a subscriber that does not read; return how many."""
    # The peer's own buffer in the kernel is small.
    count = (limits.max_buffered_bytes + kernel_limit("tcp_wmem") + MIB) // size
    for number in range(count):
        for topic in topics:
            await client.publish(topic, f"{number:08}" + "x" * size)
        # In step with those who read, lest they fall behind too.
        if number % 8 == 7:
            await client.flush()
            if wait is not None:
                await eventually(lambda: wait() == number + 1, "the others have all")  # noqa: B023
    return count


async def test_a_stopped_subscriber_is_closed_and_the_others_get_all(cluster: Cluster) -> None:
    settings: dict[str, Any] = {"ping_interval_seconds": 3600.0, "close_seconds": 60.0}
    await in_thread(lambda: cluster.start(1, 1, **settings))
    (consumer,), limits = cluster.consumers, Limits(**settings)
    readers = [Received() for _ in range(20)]
    async with asyncio.timeout(100), Peers(cluster.secret) as peers, contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(cluster.client(**settings))
        messages = [await stack.enter_async_context(client.subscribe("news")) for _ in readers]
        (stopped,) = await peers.established(consumer, "/subscribe/news")
        stop_reading(stopped)
        growth = Growth(consumer.pid)
        async with running(*(reader.run(one) for reader, one in zip(readers, messages, strict=True))):
            count = await publish_until_full(
                client, ["news"], limits, lambda: min(len(reader.numbers) for reader in readers)
            )
            await eventually(lambda: all(len(one.numbers) == count for one in readers), "all have come")
        growth.check(slow_reader(limits))
        assert all(reader.numbers == list(range(count)) for reader in readers)
        stopped.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await stopped.close_frame() == (1013, "too slow: the write buffer for this peer is full")
    await in_thread(consumer.wait_logged, r"WARNING connection closed .*1013 \(too slow")
    assert consumer.counters()["slow_subscribers"] == 1


@pytest.mark.parametrize(
    ("subscribers", "topics", "size"), [(200, 1, 60_000), (100, 1, 1000), (25, 25, 60_000)]
)
async def test_many_stopped_subscribers_of_a_topic_share_what_waits(
    cluster: Cluster, subscribers: int, topics: int, size: int
) -> None:
    settings: dict[str, Any] = {"ping_interval_seconds": 3600.0, "close_seconds": 1.0}
    await in_thread(lambda: cluster.start(1, 1, **settings))
    (consumer,), limits = cluster.consumers, Limits(**settings)
    names = [f"topic-{number}" for number in range(topics)]
    paths = [f"/subscribe/{names[number % topics]}" for number in range(subscribers)]
    async with asyncio.timeout(100), Peers(cluster.secret) as peers, cluster.client(**settings) as client:
        for raw in await peers.established(consumer, *paths):
            stop_reading(raw)
        growth = Growth(consumer.pid)
        await publish_until_full(client, names, limits, size=size)
        await eventually(lambda: consumer.log.count("1013") >= min(subscribers, 20), "they are closed")
        await in_thread(consumer.wait_open, 1)
        growth.check(topics * slow_reader(limits))
        assert consumer.counters()["slow_subscribers"] == subscribers


PING = struct.pack("!BB4x", 0x89, 0x80)

SMALL: dict[str, Any] = {
    "ping_interval_seconds": 3600.0,
    "close_seconds": 1.0,
    "max_message_bytes": 4096,
    "max_buffered_bytes": MIB + 4096,
}


async def test_small_messages_one_at_a_time_to_stopped_subscribers(cluster: Cluster) -> None:
    consumer = cluster.add_consumer()
    path = str(cluster.directory / "socket")
    consumer.settings["listen"] = [consumer.address, f"unix:{path}"]
    consumer.limits = SMALL
    await in_thread(consumer.start)
    limits = Limits(**SMALL)
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
        growth.check(limits.max_buffered_bytes + one_read(limits))


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
    settings: dict[str, Any] = {"ping_interval_seconds": 3600.0, "close_seconds": 1.0}
    await in_thread(lambda: cluster.start(1, 1, **settings))
    (consumer,), limits = cluster.consumers, Limits(**settings)
    application = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", APPLICATION, str(cluster.demo_file), str(MAX_WAITING_MESSAGES)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    assert application.stdin is not None
    assert application.stdout is not None
    try:
        async with asyncio.timeout(100), cluster.client(**settings) as client:
            await in_thread(consumer.wait_open, 2)
            await client.publish("news", "begin")
            assert await application.stdout.readline() == b"begin\n"
            growth = Growth(application.pid)
            count = 0
            while not consumer.counters()["slow_subscribers"]:
                for _ in range(500):
                    await client.publish("news", f"{count:08}{'x' * size}")
                    count += 1
                assert count * size < FAR_TOO_MUCH_BYTES, "the consumer keeps all"
                await client.flush()
            growth.check(MAX_WAITING_MESSAGES * (size + KIB) + one_read(limits))
            application.stdin.write(b"go on\n")
            assert await application.stdout.readline() == b"True\n"
            assert await application.wait() == 0
    finally:
        if application.returncode is None:
            application.kill()
            await application.wait()


async def test_a_stuck_application_does_not_grow_with_each_reconnect(cluster: Cluster) -> None:
    settings: dict[str, Any] = {
        "ping_interval_seconds": 0.2,
        "ping_timeout_seconds": 0.2,
        "close_seconds": 0.2,
        "reconnect_max_seconds": 0.2,
        "max_buffered_bytes": 2 * MIB,
    }
    await in_thread(lambda: cluster.start(1, 1, **settings))
    (consumer,) = cluster.consumers
    async with (
        asyncio.timeout(100),
        cluster.client(ping_interval_seconds=3600.0) as client,
        cluster.client(**settings) as stuck,
        stuck.subscribe("news") as messages,
    ):
        while (await in_thread(consumer.counters))["slow_subscribers"] < 8:
            for _ in range(200):
                await client.publish("news", "x" * 20_000)
            await client.flush()
        assert len(messages._messages) <= MAX_WAITING_MESSAGES + UVLOOP_READ_BYTES // 20_000 + 1
        assert len(messages._paused) <= 1


# Peers that mean harm.


async def test_a_flood_of_empty_pings(cluster: Cluster) -> None:
    await in_thread(lambda: cluster.start(1, 1, **SMALL))
    (node,), limits = cluster.producers, Limits(**SMALL)
    async with asyncio.timeout(100), Peers(cluster.secret) as peers:
        (raw,) = await peers.established(node, "/produce")
        stop_reading(raw)
        growth = Growth(node.pid)
        while not raw.writer.transport.is_closing():
            await send_all(raw, 10_000 * PING)
        await in_thread(node.wait_logged, r"connection closed .*1013")
        growth.check(slow_reader(limits))


@pytest.mark.parametrize("endpoint", ["/produce", "/subscribe/news"])
async def test_a_flood_of_pings_of_which_no_pong_is_read(cluster: Cluster, endpoint: str) -> None:
    settings: dict[str, Any] = {"ping_interval_seconds": 3600.0, "close_seconds": 1.0}
    await in_thread(lambda: cluster.start(1, 1, **settings))
    node, limits = cluster.nodes[0 if endpoint == "/produce" else 1], Limits(**settings)
    async with (
        asyncio.timeout(100),
        Peers(cluster.secret) as peers,
        cluster.client() as other,
        other.subscribe("news") as messages,
    ):
        (raw,) = await peers.established(node, endpoint)
        stop_reading(raw)
        growth = Growth(node.pid)
        pings = 2000 * (struct.pack("!BB4x", 0x89, 0x80 | 125) + b"x" * 125)
        while not raw.writer.transport.is_closing():
            await send_all(raw, pings)
            growth.check(slow_reader(limits))
        await in_thread(node.wait_logged, r"connection closed .*1013")
        await round_trips(other, "news", messages)


async def test_strangers_hold_little_and_not_for_long(cluster: Cluster) -> None:
    strangers = 160
    settings: dict[str, Any] = {"ping_interval_seconds": 3600.0, "hello_seconds": 3.0}
    await in_thread(lambda: cluster.start(1, 1, **settings))
    (consumer,) = cluster.consumers
    # A header that never ends, a message that never does, one that is too long for a stranger, and garbage.
    endless_request = request_of("/producer")[:-2] + (b"X: " + b"x" * 8000 + b"\r\n") * 7
    endless_message = (
        request_of("/producer") + struct.pack("!BBQ4x", 0x01, 0x80 | 127, 65_000) + b"x" * 64_000
    )
    too_much = request_of("/producer") + text_frame(b"x" * 1_000_000)[:-1]
    garbage = b"\x00\xff\r" * 2000
    attacks = [endless_request, endless_message, too_much, garbage]
    async with (
        asyncio.timeout(100),
        Peers(cluster.secret) as peers,
        cluster.client() as other,
        other.subscribe("news") as messages,
    ):
        growth = Growth(consumer.pid)
        for number, raw in enumerate(await peers.opened(consumer, strangers)):
            stop_reading(raw)
            await send_all(raw, attacks[number % len(attacks)])
        await round_trips(other, "news", messages)
        growth.check(strangers * STRANGER_BYTES)
        await in_thread(consumer.wait_open, 2)


async def test_messages_that_never_end(cluster: Cluster) -> None:
    count = 50
    settings: dict[str, Any] = {"ping_interval_seconds": 3600.0}
    await in_thread(lambda: cluster.start(1, 1, **settings))
    (producer,), limits = cluster.producers, Limits(**settings)
    async with (
        asyncio.timeout(100),
        Peers(cluster.secret) as peers,
        cluster.client() as other,
        other.subscribe("news") as messages,
    ):
        raws = await peers.established(producer, *["/produce"] * count)
        growth = Growth(producer.pid)
        for number, raw in enumerate(raws):
            if number % 2:
                # One frame, of which the last byte is missing.
                await send_all(raw, text_frame(b"x" * limits.max_message_bytes)[:-1])
            else:
                for _ in range(16):
                    raw.send_frame(Opcode.CONT if _ else Opcode.TEXT, b"x" * 65_500, fin=False)
                raw.send_frame(Opcode.PING)
                await raw.until(Opcode.PONG)
        await round_trips(other, "news", messages)
        growth.check(count * one_read(limits))
        # They count: one byte more is too much.
        raws[0].send_frame(Opcode.CONT, b"x" * limits.max_message_bytes)
        assert (await raws[0].close_frame())[0] == 1009


async def test_topics_without_end(cluster: Cluster) -> None:
    settings: dict[str, Any] = {"ping_interval_seconds": 3600.0, "max_topic_bytes": 100}
    await in_thread(lambda: cluster.start(1, 1, **settings))
    (producer,) = cluster.producers
    async with asyncio.timeout(100), Peers(cluster.secret) as peers:
        (raw,) = await peers.established(producer, "/produce")
        growth = Growth(producer.pid)
        topics = CACHED_TOPICS * 2
        for begin in range(0, topics, 1024):
            # One character beyond the basic plane, and Python takes 4 bytes for each.
            frames = (message_frame(f"😀{number:096}", "") for number in range(begin, begin + 1024))
            await send_all(raw, b"".join(frames))
        raw.send_frame(Opcode.PING)
        await raw.until(Opcode.PONG)
        growth.check(cached_topics())
        assert producer.counters()["messages_in"] >= topics
