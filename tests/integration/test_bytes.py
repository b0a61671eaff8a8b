"""Messages of text and of bytes, with headers, arrive as they were published, by all ways through nodes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

import wsqueue
from wsqueue.client.values import Start

from ..support.classic_peer import IndependentConsumer, IndependentProducer, connected, serving, topic_of
from ..support.nodes import KEY, Log, Nodes, RunningNode
from ..support.ports import free_port
from ..support.raw_v2_peer import V2Socket, messages_of, new_secret, publish_of
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

MODES = pytest.mark.parametrize("mode", ["memory", "sqlite"])
MIB = 1024 * 1024

Data = str | bytes

TEXTS = [
    "",
    "".join(map(chr, range(32))),
    "\"'\\/\x7f\x80\x9f\xa0\xad",
    "ñ n\u0303 e\u0301\u0323\u0302 \u1100\u1161\u11a8",
    "\ufeffbegins with a byte order mark\ufffe",
    "\u2028\u2029\u200b\u200d\u202e\u2066",
    "\ud7ff\ue000\uf8ff\ufdd0\ufffd\uffff",
    "𝄞😀\U00010000\U0010ffff",
    "👩\u200d👩\u200d👧🏳\ufe0f\u200d🌈🇪🇺",
    # The whole first plane, and both ends of all others.
    "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, 0x10000)))),
    "".join(chr((plane << 16) + end) for plane in range(1, 17) for end in (0, 1, 0xFFFE, 0xFFFF)),
]

NO_TEXTS = [
    b"\xff",
    b"\x80",
    b"\xc0\x80",  # NUL in two bytes
    b"\xe2\x82",  # the beginning of a character
    b"a\xed\xa0\xbd\xed\xb8\x80",  # a character beyond the first plane, as two surrogates
    b"\xf4\x90\x80\x80",  # beyond the last plane
    bytes(range(256)),
]

HEADERS: list[Mapping[str, str]] = [
    {},
    {"content-type": "image/png"},
    {"ñ \0\U0001f642": "", "\ufeff": "\ufeff\uffff\n", "empty": ""},
    {f"{number}".rjust(64, "n"): "\U0001f642" * 1024 for number in range(16)},
]


class Sent(NamedTuple):
    """A message as it was published and as it should come."""

    data: Data
    headers: Mapping[str, str] = MappingProxyType({})


def of_all_kinds(topic: str) -> list[Sent]:
    """Return texts, bytes and random data of all sizes, in turn and with headers."""
    dice = random.Random(1)
    most = MIB - len(topic)
    sizes = [
        0,
        1,
        125,
        126,
        65_535,
        65_536,
        most,
        *(round((most + 1) ** dice.random()) - 1 for _ in range(25)),
    ]
    texts: list[Data] = [*TEXTS, "\0" * most, "\U0001f642" * (most // 4)]
    raw: list[Data] = [*NO_TEXTS, *(text.encode() for text in TEXTS), *map(dice.randbytes, sizes)]
    mixed = [one for pair in itertools.zip_longest(texts, raw) for one in pair if one is not None]
    return [
        *(Sent(data) for data in mixed),
        *(Sent(data, headers) for headers in HEADERS for data in ("text", b"\xff\xfe")),
    ]


def check(found: list[wsqueue.Message], expected: list[Sent]) -> None:
    """Check that messages came as they were published, all of them and in their order."""
    for message, sent in itertools.zip_longest(found, expected):
        # A failure would show a megabyte.
        assert type(message.data) is type(sent.data)
        assert len(message.data) == len(sent.data)
        assert bool(message.data == sent.data)
        assert dict(message.headers) == dict(sent.headers)
    offsets = [message.offset for message in found]
    assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))


async def publish_all(client: wsqueue.Client, topic: str, messages: list[Sent]) -> None:
    for data, headers in messages:
        await client.drain()
        client.publish_nowait(topic, data, headers=headers)
    await client.flush()


async def all_of(client: wsqueue.Client, topic: str, start: Start = "earliest") -> list[wsqueue.Message]:
    """Return all that a consumer keeps of a topic."""
    return [message async for message in client.subscribe(topic, start=start, follow=False)]


def large(nodes: Nodes, mode: str = "memory") -> dict[str, Any]:
    """Return the settings of a consumer whose log outlives a stop, and keeps all of a test."""
    retention = {"mode": mode, "directory": f"{nodes.directory}/log", "max_bytes_per_topic": 64 * MIB}
    return {"retention": retention | {"max_bytes": 64 * MIB}}


class TestV2:
    @MODES
    async def test_all_kinds_come_live_and_from_the_log(self, nodes: Nodes, mode: str) -> None:
        consumer = await nodes.consumer(port=free_port(), **large(nodes, mode))
        producer = await nodes.producer([consumer])
        messages = of_all_kinds("news")
        async with soon(), nodes.client([producer], [consumer]) as client:
            async with client.subscribe("news") as subscription:
                publishing = asyncio.create_task(publish_all(client, "news", messages))
                check([await anext(subscription) for _ in messages], messages)
                await publishing
            check(await all_of(client, "news"), messages)
            check(await all_of(client, "news", 7), messages[7:])
            await consumer.stop()
            await consumer.restart()
            check(await all_of(client, "news"), messages)
            assert consumer.counters["gaps"] == consumer.counters["skipped_for_classic"] == 0

    @MODES
    @pytest.mark.parametrize("kind", [str, bytes])
    async def test_from_an_offset_inside_a_batch(self, nodes: Nodes, mode: str, kind: type[Data]) -> None:
        consumer = await nodes.consumer(port=free_port(), **large(nodes, mode))
        producer = await nodes.producer([consumer])
        data: list[Data] = [text for text in TEXTS if len(text) < 1000]
        if kind is bytes:
            data = [*NO_TEXTS, b"", b"x"]
        async with soon(), nodes.client([producer], [consumer]) as client:
            # They are published in the same turn, and so are one batch.
            client.publish_nowait("news", *data)
            client.publish_nowait("news", *data, headers=HEADERS[2])
            client.publish_nowait("news", *data)
            await client.flush()
            messages = [Sent(one, headers) for headers in ({}, HEADERS[2], {}) for one in data]
            for _ in range(2):
                for offset in range(len(messages)):
                    check(await all_of(client, "news", offset), messages[offset:])
                await consumer.stop()
                await consumer.restart()

    async def test_texts_and_bytes_in_turn_keep_their_order(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        data: list[Data] = []
        for number in range(1000):
            text = f"{number}"
            data.append(text if number % 2 else text.encode())
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            client.subscribe("news") as subscription,
        ):
            await client.publish("news", *data[:300])
            for one in data[300:600]:
                client.publish_nowait("news", one)
            for one in data[600:]:
                client.publish_nowait("news", one, headers={"number": one} if isinstance(one, str) else {})
                await asyncio.sleep(0)
            await client.flush()
            expected = [Sent(one) for one in data[:600]]
            expected += [Sent(one, {"number": one} if isinstance(one, str) else {}) for one in data[600:]]
            check([await anext(subscription) for _ in data], expected)

    async def test_many_small_messages_with_headers_under_a_small_limit(self, nodes: Nodes) -> None:
        """Headers take more bytes on their way than they have."""
        consumer, producer = await nodes.cluster(max_message_bytes=2000)
        messages = [Sent("", {chr(65 + name): "" for name in range(16)})] * 2000 + [Sent("")] * 20_000
        async with soon(), nodes.client([producer], [consumer], max_message_bytes=2000) as client:
            for topic in ("n", ""):
                await publish_all(client, topic, messages)
                check(await all_of(client, topic), messages)

    async def test_a_text_that_is_no_text_comes_as_bytes(self, nodes: Nodes) -> None:
        """No client of ours publishes one, and no node looks into messages."""
        consumer, producer = await nodes.cluster()
        fields = messages_of("x") | {"sizes": [1, 1, 2, 0], "data": b"a\xff\xc3\xb1"}
        async with (
            soon(),
            V2Socket.speaking(producer.address, "/produce", KEY) as raw,
            nodes.client([producer], [consumer]) as client,
        ):
            raw.send(new_secret())
            raw.send(publish_of(1, "news", messages=fields))
            await raw.confirmed(1)
            expected = [Sent("a"), Sent(b"\xff"), Sent("ñ"), Sent("")]
            for offset in range(4):
                check(await all_of(client, "news", offset), expected[offset:])


class TestClassicPeers:
    """Peers that have texts only, at nodes that speak both."""

    async def test_a_classic_publisher_for_a_v2_subscriber(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        long = ["x" * 1_000_000, "\x01" * 170_000, "\U0001f642" * 250_000]
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            client.subscribe("news") as subscription,
            connected(producer.url("/produce"), KEY) as publisher,
        ):
            await publisher.publish("news", *TEXTS)
            for text in long:
                # With more escapes than it needs, one would be longer than a message may be.
                packet = {"t": "m", "d": text, "s": "news"}
                await publisher.socket.send(json.dumps(packet, ensure_ascii=False))
            expected = [Sent(text) for text in (*TEXTS, *long)]
            check([await anext(subscription) for _ in expected], expected)
            check(await all_of(client, "news"), expected)

    @MODES
    async def test_a_v2_publisher_for_a_classic_subscriber(self, nodes: Nodes, log: Log, mode: str) -> None:
        consumer = await nodes.consumer(**large(nodes, mode))
        producer = await nodes.producer([consumer])
        messages = [
            *(Sent(text) for text in TEXTS),
            *(Sent(text, HEADERS[1]) for text in TEXTS),
            *(Sent(text.encode()) for text in TEXTS),
            *(Sent(data) for data in NO_TEXTS),
            Sent("after"),
            Sent("x" * 1_000_000),
            # Each character takes six bytes in JSON.
            Sent("\x01" * 174_000),
            Sent("\x01" * 200_000),
            Sent(b"\x01" * 200_000),
            Sent("last"),
        ]
        skipped = {*NO_TEXTS, "\x01" * 200_000, b"\x01" * 200_000}
        came = [
            data if isinstance(data, str) else data.decode() for data, _ in messages if data not in skipped
        ]
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            client.subscribe("news", "sport") as subscription,
            connected(consumer.subscribe_url("news"), KEY) as classic,
            connected(consumer.subscribe_url("sport"), KEY, "reversed") as other,
        ):
            await consumer.subscribed("news", 2)
            await consumer.subscribed("sport", 2)
            hearing = asyncio.create_task(classic.data(len(came)))
            publishing = asyncio.create_task(publish_all(client, "news", messages))
            check([await anext(subscription) for _ in messages], messages)
            await publishing
            assert await hearing == came
            assert consumer.counters["skipped_for_classic"] == len(skipped)
            (line,) = log.lines("skipped for classic", logging.WARNING)
            assert line.startswith("skipped for classic topic=news reason=")
            await client.publish("sport", b"\xff", b"ok")
            await client.publish("sport", b"\xff", b"\xfe")
            await client.publish("sport", "also")
            assert await other.data(2) == ["ok", "also"]
            assert consumer.counters["skipped_for_classic"] == len(skipped) + 3
            assert len(log.lines("skipped for classic")) == 2
        assert log.lines("connection closed ", logging.WARNING) == []

    async def test_bytes_among_many_batches_for_a_classic_subscriber(self, nodes: Nodes) -> None:
        """Some wait as they are, and are looked into when their turn comes."""
        consumer, producer = await nodes.cluster(max_buffered_bytes=64 * MIB)
        data: list[Data] = []
        for number in range(3000):
            kinds: list[Data] = [f"{number}", f"{number}".encode(), b"\xff" * 1000]
            data.append(kinds[number // 50 % 3])
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            connected(consumer.subscribe_url("news"), KEY) as classic,
        ):
            await consumer.subscribed("news")
            await client.publish("news", *data)
            expected = [f"{number}" for number in range(3000) if number // 50 % 3 < 2]
            assert await classic.data(len(expected)) == expected
            assert consumer.counters["skipped_for_classic"] == 1000


class TestClassicNodes:
    """Nodes that only speak classic: messages that they cannot take are refused, and all others go on."""

    @contextlib.asynccontextmanager
    async def mixed(
        self, nodes: Nodes, independent: IndependentConsumer
    ) -> AsyncIterator[tuple[RunningNode, RunningNode, str]]:
        """Yield a producer, its first consumer, and the address of its second, which is classic."""
        ours = await nodes.consumer()
        async with serving(independent.handle) as theirs:
            producer = await nodes.producer([ours, theirs])
            await producer.ready()
            yield producer, ours, theirs
            await producer.stop()

    async def test_a_consumer(self, nodes: Nodes) -> None:
        ours_topic, theirs_topic = (topic_of(index, 2) for index in range(2))
        independent = IndependentConsumer(KEY, "document")
        async with (
            soon(),
            self.mixed(nodes, independent) as (producer, ours, theirs),
            nodes.client([producer], [ours, theirs]) as client,
            nodes.client([producer], [ours, theirs]) as other,
            client.subscribe(theirs_topic) as subscription,
            client.subscribe(ours_topic) as others,
        ):
            await eventually(lambda: independent.subscribers[theirs_topic], "subscribed")
            link = producer.links[1].connection
            for data, headers, code in (
                (b"\xff", None, "invalid"),
                (b"text", None, "invalid"),
                (b"", None, "invalid"),
                ("text", HEADERS[1], "invalid"),
                ("\x01" * 200_000, None, "too_long"),
            ):
                refused = asyncio.create_task(client.publish(theirs_topic, data, headers=headers))
                # Another publisher goes on meanwhile, and so does the other consumer.
                await other.publish(theirs_topic, "of another")
                await client.publish(ours_topic, data, headers=headers)
                with pytest.raises(wsqueue.PublishError, match="classic") as caught:
                    await refused
                assert caught.value.code == code
                await client.publish(theirs_topic, "after")
                assert [(await anext(subscription)).data for _ in range(2)] == ["of another", "after"]
                assert (await anext(others)).data == data
            await client.publish(theirs_topic, *TEXTS)
            found = [await anext(subscription) for _ in TEXTS]
            assert [message.data for message in found] == TEXTS
            # Messages behind bytes in the same call are refused, so that no hole is left.
            with pytest.raises(wsqueue.PublishError, match="classic"):
                await client.publish(theirs_topic, "before", b"bytes", "behind")
            client.publish_nowait(theirs_topic, "next")
            await client.flush()
            assert [(await anext(subscription)).data for _ in range(2)] == ["before", "next"]
            assert producer.links[1].connection is link
            assert producer.counters["lost_in_flight"] == producer.counters["lost_refused"] == 0

    async def test_a_producer(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer()
        producer = IndependentProducer(KEY, "document", [consumer.url("/producer")])
        async with (
            soon(),
            serving(producer.handle) as address,
            nodes.client([address], [consumer]) as client,
            client.subscribe("news") as subscription,
        ):
            await consumer.subscribed("news")
            await client.publish("news", *TEXTS)
            assert [(await anext(subscription)).data for _ in TEXTS] == TEXTS
            for data, headers, problem in (
                (b"\xff", None, "takes texts without headers"),
                (b"text", None, "takes texts without headers"),
                ("text", HEADERS[1], "takes texts without headers"),
                ("\x01" * 200_000, None, "in the classic form"),
            ):
                with pytest.raises(wsqueue.PublishError, match=problem) as caught:
                    await client.publish("news", data, headers=headers)
                assert caught.value.code == "invalid"
                client.publish_nowait("news", data, headers=headers)
                client.publish_nowait("news", "goes")
                with pytest.raises(wsqueue.PublishError, match=problem):
                    await client.flush()
                await client.flush()
            # Text that shares a batch with headers is refused with it.
            for _ in range(3):
                assert (await anext(subscription)).data == "goes"
            await client.publish("news", "last")
            assert (await anext(subscription)).data == "last"
            assert client.lost_in_flight == 0
