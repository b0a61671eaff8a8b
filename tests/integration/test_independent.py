"""Our nodes and client, and independent ones, in any mix; and the conformance checks of both."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from wsqueue.protocol.packed import Headers

from ..conformance.checks import CHECKS, Check, Subject
from ..conformance.group_checks import GROUP_CHECKS
from ..conformance.operator_checks import OPERATOR_CHECKS
from ..conformance.prefix_checks import PREFIX_CHECKS
from ..conformance.program import Program
from ..conformance.reader_checks import READER_CHECKS
from ..independent import peer
from ..support.nodes import KEY, Nodes, RunningNode, cut
from ..support.raw_v2_peer import V2Server
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

Sent = tuple[str | bytes, dict[str, str]]

ADAPTERS = pytest.mark.parametrize("adapter", ["tests.conformance.adapter", "tests.independent.adapter"])

MIXES = [
    (client, producer, consumer)
    for client in ("our", "their")
    for producer in ("our", "their")
    for consumer in ("our", "their")
    if {client, producer, consumer} != {"our"}
]


class Node(Protocol):
    """A node whose connections can be cut."""

    address: str

    def cut(self) -> None: ...


class Ours:
    def __init__(self, node: RunningNode) -> None:
        self._node, self.address = node, node.address

    def cut(self) -> None:
        for connection in list(self._node.connections):
            cut(connection)


class Theirs:
    def __init__(self, node: peer.Producer | peer.Consumer) -> None:
        self._node, self.address = node, f"127.0.0.1:{node.port}"

    def cut(self) -> None:
        self._node.cut()


@contextlib.asynccontextmanager
async def consumer_of(kind: str, nodes: Nodes) -> AsyncIterator[Node]:
    if kind == "our":
        yield Ours(await nodes.consumer())
        return
    consumer = peer.Consumer([KEY], [KEY])
    await consumer.start()
    yield Theirs(consumer)
    await consumer.stop()


@contextlib.asynccontextmanager
async def producer_of(kind: str, nodes: Nodes, consumer: str) -> AsyncIterator[Node]:
    if kind == "our":
        yield Ours(await nodes.producer([consumer]))
        return
    producer = peer.Producer([KEY], [f"ws://{consumer}"], KEY)
    await producer.start()
    yield Theirs(producer)
    await producer.stop()


async def our_client(
    nodes: Nodes, producer: str, consumer: str, sent: list[Sent], cuts: asyncio.Event
) -> list[Sent]:
    async with nodes.client([producer], [consumer]) as client:
        for data, headers in sent:
            client.publish_nowait("news", data, headers=headers)
            await asyncio.sleep(0)
        cuts.set()
        await client.flush()
        received: list[Sent] = []
        async for message in client.subscribe("news", start="earliest"):
            received.append((message.data, dict(message.headers)))
            if len(received) == len(sent):
                return received
    raise AssertionError


async def their_client(producer: str, consumer: str, sent: list[Sent], cuts: asyncio.Event) -> list[Sent]:
    client = peer.Client([f"ws://{producer}"], [f"ws://{consumer}"], KEY)
    publishing: list[asyncio.Task[None]] = []
    for data, headers in sent:
        of_each: list[Headers | None] | None = [headers] if headers else None
        publishing.append(asyncio.create_task(client.publish("news", [data], of_each)))
        await asyncio.sleep(0)
    cuts.set()
    await asyncio.gather(*publishing)
    received: list[Sent] = []
    async with contextlib.aclosing(client.subscribe("news", "earliest")) as items:  # type: ignore[type-var]
        async for item in items:
            assert isinstance(item, peer.Message)
            received.append((item.data, item.headers or {}))
            if len(received) == len(sent):
                break
    await client.close()
    return received


@pytest.mark.parametrize(("client", "producer", "consumer"), MIXES, ids="-".join)
async def test_any_mix_delivers_each_message_once_and_in_order(
    client: str, producer: str, consumer: str, nodes: Nodes
) -> None:
    """Each message is a batch, and connections of both nodes are cut while they are under way."""
    chance = random.Random(f"{client} {producer} {consumer}")
    sent: list[Sent] = []
    for number in range(300):
        data: str | bytes = f"{number} ñ"
        if chance.random() < 0.2:
            data = f"{number} ".encode() + b"\xff\0"
        sent.append((data, {"number": f"{number}"} if chance.random() < 0.1 else {}))
    cuts = asyncio.Event()
    async with (
        soon(),
        consumer_of(consumer, nodes) as last,
        producer_of(producer, nodes, last.address) as first,
    ):

        async def cut_some() -> None:
            await cuts.wait()
            for _ in range(3):
                await asyncio.sleep(0.02)
                chance.choice([first, last]).cut()

        cutting = asyncio.create_task(cut_some())
        if client == "our":
            received = await our_client(nodes, first.address, last.address, sent, cuts)
        else:
            received = await their_client(first.address, last.address, sent, cuts)
        await cutting
    assert received == sent


async def test_members_of_both_clients_share_a_group(nodes: Nodes) -> None:
    """Each message is done by one of them, or by both if the connection breaks before that is confirmed."""
    consumer = await nodes.consumer()
    producer = await nodes.producer([consumer])
    theirs = peer.Client([], [f"ws://{consumer.address}"], KEY).member("jobs", "g", prefetch=5)
    done: list[set[int]] = [set(), set()]

    async def their_work() -> None:
        while True:
            loan = await theirs.loans.get()
            await theirs.settle(loan, "done")
            done[0].add(loan.offset)

    async with soon(), nodes.client([producer], [consumer]) as client:

        async def our_work() -> None:
            async with client.subscribe("jobs", group="g", prefetch=5, max_deliveries=1000) as jobs:
                async for job in jobs:
                    await job.done()
                    done[1].add(job.offset or 0)

        await client.publish("jobs", *(f"{number}" for number in range(200)))
        working = [asyncio.create_task(work) for work in (theirs.run(), their_work(), our_work())]
        try:
            await eventually(lambda: all(done), "both have worked")
            for connection in list(consumer.connections):
                cut(connection)
            await eventually(lambda: set.union(*done) == set(range(200)), "all is done")
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)


async def test_both_clients_go_on_under_one_name(nodes: Nodes) -> None:
    """Each message comes to one of them, in order, or again if the connection breaks before it is kept."""
    consumer = await nodes.consumer()
    producer = await nodes.producer([consumer])
    theirs = peer.Client([], [f"ws://{consumer.address}"], KEY)
    done = list[int]()

    async def their_part(count: int) -> None:
        reader = theirs.reader("jobs", "r")
        reading = asyncio.create_task(reader.run())
        for _ in range(count):
            message = await reader.messages.get()
            await reader.done(message)
            done.append(message.offset)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    async with soon(), nodes.client([producer], [consumer]) as client:

        async def our_part(count: int) -> None:
            async with client.subscribe("jobs", reader="r") as jobs:
                for _ in range(count):
                    message = await anext(jobs)
                    await message.done()
                    done.append(message.offset or 0)

        await client.publish("jobs", *(f"{number}" for number in range(80)))

        async def cut_once(count: int) -> None:
            await eventually(lambda: len(done) > count, "it goes on")
            for connection in list(consumer.connections):
                cut(connection)

        for number in range(8):
            part = our_part if number % 2 else their_part
            await asyncio.gather(part(10), cut_once(10 * number))
        assert done == list(range(80))


async def test_their_client_follows_a_prefix_at_our_consumers(nodes: Nodes) -> None:
    """Each message comes once and in the order of its topic, though connections break."""
    consumers = [await nodes.consumer() for _ in range(2)]
    producer = await nodes.producer(consumers)
    theirs = peer.Client([], [f"ws://{one.address}" for one in consumers], KEY).follow("s/", "earliest")
    topics = [f"s/{number}" for number in range(6)]
    came: dict[str, list[str | bytes]] = {topic: [] for topic in topics}

    async def take(count: int) -> None:
        for _ in range(count):
            item = await theirs.items.get()
            assert isinstance(item, peer.Message)
            came[item.topic].append(item.data)

    async with soon(), nodes.client([producer], consumers) as client:
        for topic in (*topics[:3], "other"):
            await client.publish(topic, "0", "1")
        following = asyncio.create_task(theirs.run())
        try:
            await theirs.ready.wait()
            await take(6)
            for node in consumers:
                for connection in list(node.connections):
                    cut(connection)
            for topic in (*topics, "other"):
                await client.publish(topic, "2")
            await take(6)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    assert came == {topic: ["0", "1", "2"] if topic in topics[:3] else ["2"] for topic in topics}


async def test_their_operator_at_our_nodes(nodes: Nodes) -> None:
    consumer = await nodes.consumer()
    producer = await nodes.producer([consumer])
    async with soon(), nodes.client([producer], [consumer]) as client:
        await client.publish("jobs", "0", "1")
        async with client.subscribe("jobs", reader="r", start="earliest") as jobs:
            await (await anext(jobs)).done()
        async with peer.Operator.of(f"ws://{consumer.address}", KEY) as operator:
            (topic,) = await operator.topics("j*", named=True)
            assert (topic["topic"], topic["messages"]) == ("jobs", 2)
            assert [(one["name"], one["offset"], one["lag"]) for one in topic["names"]] == [("r", 1, 1)]
            assert await operator.do("purge", topic="jobs") == 2
            assert await operator.do("forget", topic="jobs", kind="reader", name="r") == 1
            assert await operator.topics() == []
        async with peer.Operator.of(f"ws://{producer.address}", KEY) as operator:
            assert await operator.do("disconnect", address="127.0.0.1") == 1
            with pytest.raises(peer.RefusedError) as refused:
                await operator.topics()
            assert refused.value.code == "unsupported"


def checks_of(*roles: str, checks: dict[str, list[Check]] = CHECKS) -> pytest.MarkDecorator:
    found = [(role, check) for role in roles for check in checks[role]]
    ids = [f"{role}-{check.__name__}" for role, check in found]
    return pytest.mark.parametrize(("role", "check"), found, ids=ids)


@pytest.mark.parametrize("whose", ["our", "their"])
@checks_of("consumer", "producer")
async def test_a_node_conforms(role: str, check: Check, whose: str, nodes: Nodes) -> None:
    async with soon(), contextlib.AsyncExitStack() as stack:
        if role == "consumer":
            node = await stack.enter_async_context(consumer_of(whose, nodes))
            await check(Subject(KEY, node.address))
        else:
            server = await stack.enter_async_context(V2Server())
            node = await stack.enter_async_context(producer_of(whose, nodes, server.address))
            await check(Subject(KEY, node.address, consumer=server))


# An implementation may lack them, as the independent consumer does.
MORE_CHECKS = {
    role: [
        check
        for checks in (GROUP_CHECKS, READER_CHECKS, PREFIX_CHECKS, OPERATOR_CHECKS)
        for check in checks.get(role, [])
    ]
    for role in ("consumer", "producer", "client")
}


@checks_of("consumer", checks=MORE_CHECKS)
async def test_more_of_a_consumer_conforms(role: str, check: Check, nodes: Nodes) -> None:
    async with soon(), consumer_of("our", nodes) as node:
        await check(Subject(KEY, node.address))


@checks_of("producer", checks=MORE_CHECKS)
async def test_more_of_a_producer_conforms(role: str, check: Check, nodes: Nodes) -> None:
    async with soon(), V2Server() as server, producer_of("our", nodes, server.address) as node:
        await check(Subject(KEY, node.address, consumer=server))


@ADAPTERS
@checks_of("client", checks=MORE_CHECKS)
async def test_more_of_a_client_conforms(role: str, check: Check, adapter: str, tmp_path: Path) -> None:
    await check_client(check, adapter, tmp_path)


@ADAPTERS
@checks_of("client")
async def test_a_client_conforms(role: str, check: Check, adapter: str, tmp_path: Path) -> None:
    await check_client(check, adapter, tmp_path)


async def check_client(check: Check, adapter: str, tmp_path: Path) -> None:
    key = tmp_path / "psk"
    key.write_text(KEY)
    key.chmod(0o600)
    async with soon(), V2Server() as producer, V2Server() as consumer:
        command = [sys.executable, "-m", adapter, producer.address, consumer.address, str(key)]
        program = functools.partial(Program.running, command)
        await check(Subject(KEY, producer=producer, consumer=consumer, program=program))
