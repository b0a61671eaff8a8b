"""Forty thousand messages of all kinds and sizes arrive: unmodified, in order, exactly once."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import pytest

from tests.support.classic_peer import hash_of
from wsqueue import Client, Message, Subscription

from ..support.processes import Cluster

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(280)]
pytestmark += [pytest.mark.usefixtures("uncovered")]

MESSAGES = 40_000
TOPICS = 1000
CONSUMERS, PRODUCERS = 4, 3
SUBSCRIBERS_OF_A_TOPIC = 2
MAX_DATA_BYTES = 65_536
POOL_BYTES = 1024 * 1024

WINDOW = 2000
"""Deliveries that may be under way: this process publishes and subscribes, and must keep up with itself."""

ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789",
    "\"'\\/{}[]:,<>&%?#",
    "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "ñéüßøåčЖдиλπאبกあ漢字한\u200b\u2028\u2029\ufeff\ufffd\uffff",
    "😀🎉𝄞𐍈🏳\U0010ffff\U0001f1ea",
)
"""The last is astral; the third becomes six times as long in JSON."""

TRICKY_TOPICS = (
    *(".", "..", "/", "//", "%", "%2F", "a/b", " ", "?", "#", "+", "\x00", "\n", "😀"),
    "a b?c=d&e#f",
)


def random_text(rng: random.Random, characters: int, weights: Sequence[int] = (60, 10, 3, 15, 12)) -> str:
    alphabets = rng.choices(ALPHABETS, weights, k=characters)
    return "".join(map(rng.choice, alphabets))


def random_topics(rng: random.Random) -> list[str]:
    topics = dict.fromkeys(TRICKY_TOPICS)
    while len(topics) < TOPICS:
        topics[random_text(rng, rng.randint(1, 60))] = None
    return list(topics)


class Data:
    """Make text of an exact size out of a pool: drawing each character would take minutes; and bytes."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pool = random_text(rng, POOL_BYTES // 2).encode()[:POOL_BYTES]

    def of_size(self, size: int) -> str | bytes:
        """Return any bytes, or three times as often text."""
        return self._text(size) if self._rng.randrange(4) else self._rng.randbytes(size)

    def _text(self, size: int) -> str:
        begin = self._rng.randrange(len(self._pool) - size)
        # Characters that the slice cuts are dropped at both ends, and made up for.
        text = self._pool[begin : begin + size].decode(errors="ignore")
        return text + "x" * (size - len(text.encode()))

    def of_random_size(self) -> str | bytes:
        """Return data with a size from 0 to 64 KiB, as often below 256 bytes as above."""
        return self.of_size(round((MAX_DATA_BYTES + 1) ** self._rng.random()) - 1)

    def headers(self) -> dict[str, str]:
        """Return a few headers, but mostly none."""
        count = max(0, self._rng.randrange(24) - 20)
        return {f"name {number}": random_text(self._rng, self._rng.randrange(8)) for number in range(count)}


def fingerprint(data: str | bytes, headers: Mapping[str, str]) -> int:
    """Return a hash of a message; a text and its bytes have the same, but for their types."""
    return hash((type(data), data, *sorted(headers.items())))


def is_interleaving(merged: Sequence[int], parts: Sequence[Sequence[int]]) -> bool:
    """Return True if a sequence has exactly the items of some others, each in its own order."""
    reachable = {tuple(0 for _ in parts)}
    for item in merged:
        reachable = {
            (*state[:index], state[index] + 1, *state[index + 1 :])
            for state in reachable
            for index, part in enumerate(parts)
            if state[index] < len(part) and part[state[index]] == item
        }
    return tuple(map(len, parts)) in reachable


def test_the_check_of_the_order_sees_what_is_wrong() -> None:
    parts = [[1, 2, 3], [1, 9]]
    assert is_interleaving([1, 1, 2, 9, 3], parts)
    assert is_interleaving([1, 9, 1, 2, 3], parts)
    assert not is_interleaving([1, 2, 9, 1, 3], [[1, 2, 3], [1, 9, 0]])
    assert not is_interleaving([2, 1, 1, 9, 3], parts)
    assert not is_interleaving([1, 1, 2, 9, 3, 3], parts)
    assert not is_interleaving([1, 1, 2, 9], parts)


class Traffic:
    """Publish, subscribe, and keep the fingerprint of each message by topic."""

    def __init__(self) -> None:
        self.published = self.delivered = 0
        self.sent = [defaultdict[str, list[int]](list) for _ in range(PRODUCERS)]
        self.came = [defaultdict[str, list[int]](list) for _ in range(SUBSCRIBERS_OF_A_TOPIC)]
        self._progress = asyncio.Event()

    @property
    def missing(self) -> int:
        return SUBSCRIBERS_OF_A_TOPIC * self.published - self.delivered

    async def publish(self, publisher: int, client: Client, seed: str, topics: Sequence[str]) -> None:
        rng = random.Random(f"{seed} {publisher}")
        made = Data(rng)
        for index in range(MESSAGES // PRODUCERS + (publisher < MESSAGES % PRODUCERS)):
            # The smallest and the largest size are there for sure.
            data = made.of_size((0, MAX_DATA_BYTES)[index % 2]) if index < 4 else made.of_random_size()
            headers = made.headers()
            topic = rng.choice(topics)
            await self.at_most_missing(WINDOW)
            self.sent[publisher][topic].append(fingerprint(data, headers))
            self.published += 1
            await client.drain()
            client.publish_nowait(topic, data, headers=headers)
        await client.flush()
        assert client.lost_in_flight == 0

    async def receive(self, subscriber: int, messages: Subscription[Message]) -> None:
        came = self.came[subscriber]
        async for message in messages:
            came[message.topic].append(fingerprint(message.data, message.headers))
            self.delivered += 1
            self._progress.set()

    async def at_most_missing(self, most: int) -> None:
        while self.missing > most:
            self._progress.clear()
            await self._progress.wait()


async def run_traffic(cluster: Cluster, seed: str, topics: Sequence[str]) -> Traffic:
    traffic = Traffic()
    async with asyncio.timeout(220), AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        receiving = []
        for subscriber in range(SUBSCRIBERS_OF_A_TOPIC):
            client = await stack.enter_async_context(cluster.client())
            messages = await stack.enter_async_context(client.subscribe(*topics))
            receiving.append(tasks.create_task(traffic.receive(subscriber, messages)))
        async with AsyncExitStack() as publishers:
            clients = [
                await publishers.enter_async_context(cluster.client(node)) for node in cluster.producers
            ]
            publishing = (
                traffic.publish(number, client, seed, topics) for number, client in enumerate(clients)
            )
            await asyncio.gather(*publishing)
            await traffic.at_most_missing(0)
        # A repeated message would come soon.
        await asyncio.sleep(0.5)
        for task in receiving:
            task.cancel()
    return traffic


async def test_all_messages_arrive_unmodified_in_order_and_once(cluster: Cluster) -> None:
    seed = secrets.token_hex(8)
    print(f"{seed=}")
    topics = random_topics(random.Random(seed))
    await asyncio.to_thread(cluster.start, CONSUMERS, PRODUCERS)
    traffic = await run_traffic(cluster, seed, topics)

    assert traffic.published == MESSAGES
    assert traffic.missing == 0
    for topic in topics:
        sent = [by_topic[topic] for by_topic in traffic.sent]
        for came in traffic.came:
            assert is_interleaving(came[topic], sent), repr(topic)

    shares = [0] * CONSUMERS
    for by_topic in traffic.sent:
        for topic, hashes in by_topic.items():
            shares[hash_of(topic) % CONSUMERS] += len(hashes)
    for consumer, share in zip(cluster.consumers, shares, strict=True):
        # The subscribers are gone, the producers stay.
        consumer.wait_open(PRODUCERS)
        counters = consumer.counters()
        assert counters["messages_in"] == share
        assert counters["deliveries"] == share * SUBSCRIBERS_OF_A_TOPIC
        assert counters["slow_subscribers"] == counters["without_subscriber"] == counters["gaps"] == 0
        assert counters["repeats"] == 0
    for producer, by_topic in zip(cluster.producers, traffic.sent, strict=True):
        counters = producer.counters()
        assert counters["messages_in"] == counters["forwarded"] == sum(map(len, by_topic.values()))
        assert counters["lost_in_flight"] == 0
