"""A producer whose consumers share a log: topics of one that is away go to another one, and come back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest
from websockets.frames import Opcode

from wsqueue.net import connection
from wsqueue.nodes import producer as producer_module
from wsqueue.protocol import placement

from ..support.classic_peer import topic_of
from ..support.nodes import KEY, Log, Nodes
from ..support.ports import free_port
from ..support.raw_peer import RawServer, http_get
from ..support.raw_v2_peer import V2Server, V2Socket, new_secret, publish_of
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

TOPIC, OTHER = topic_of(0, 2), topic_of(1, 2)


@pytest.fixture(autouse=True)
def _little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "BACK_SECONDS", 0.1)
    monkeypatch.setattr(placement, "LOG_SECONDS", 0.1)
    monkeypatch.setattr(producer_module, "CHECK_SECONDS", 0.01)


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "AWAY_SECONDS", 0.1)


async def linked(server: V2Server, *, available: bool = True) -> V2Socket:
    """Return the next link to a consumer that shares its log."""
    link = await server.speaking(KEY)
    say(link, available=available)
    return link


def say(link: V2Socket, *, available: bool) -> None:
    link.send({"t": "log", "id": "shared", "available": available})


async def forwarded(link: V2Socket, last: int) -> list[int]:
    """Return the numbers of the next batches, up to one."""
    numbers: list[int] = []
    while numbers[-1:] != [last]:
        numbers += (await link.next("forward"))["numbers"]
    return numbers


@contextlib.asynccontextmanager
async def publisher_at(address: str) -> AsyncIterator[V2Socket]:
    async with V2Socket.speaking(address, "/produce", KEY) as publisher:
        publisher.send(new_secret())
        yield publisher


async def test_one_that_dies_and_returns(nodes: Nodes, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    async with soon(), V2Server() as second, contextlib.AsyncExitStack() as host:
        first = await host.enter_async_context(V2Server(port))
        producer = await nodes.producer([first.address, second.address])
        home, other = await linked(first), await linked(second)
        async with publisher_at(producer.address) as publisher:
            publisher.send(publish_of(1, TOPIC, "1"))
            publisher.send(publish_of(2, TOPIC, "2", after=1))
            assert await forwarded(home, 2) == [1, 2]
            home.send({"t": "ack", "numbers": [[1, 1]]})
            await publisher.confirmed(1)
            monkeypatch.setattr(placement, "AWAY_SECONDS", 0.1)
            await host.aclose()
            publisher.send(publish_of(3, TOPIC, "3", after=2))
            assert await forwarded(other, 3) == [2, 3]
            assert log.lines("consumer away") == [f"consumer away peer={first.address}/producer"]
            assert await http_get(producer.address, "/readyz") == (HTTPStatus.OK, "ready\n")
            other.send({"t": "ack", "numbers": [[1, 1]]})
            await publisher.confirmed(2)

            await host.enter_async_context(first)
            home = await linked(first)
            assert await forwarded(home, 3) == [3]
            publisher.send(publish_of(4, TOPIC, "4", after=3))
            publisher.send(publish_of(5, OTHER, "5"))
            assert (await forwarded(home, 4), await forwarded(other, 5)) == ([4], [5])
            assert log.lines("consumer back") == [f"consumer back peer={first.address}/producer"]
            # It is late with its answer: the batch is at its home again.
            other.send({"t": "refused", "number": 2, "code": "full", "reason": "no room"})
            other.send({"t": "ack", "numbers": [[3, 3]]})
            await publisher.confirmed(5)
            home.send({"t": "ack", "numbers": [[1, 2]]})
            await publisher.confirmed(3, 4)
        assert producer.counters["failovers"] == 1


@pytest.mark.usefixtures("little_patience")
async def test_one_that_falls_silent(nodes: Nodes, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without power or network says nothing, and 40 seconds of that would be long."""
    monkeypatch.setattr(connection, "CLOSE_PING_SECONDS", 0.1)
    async with soon(), V2Server() as first, V2Server() as second:
        producer = await nodes.producer([first.address, second.address])
        home, other = await linked(first), await linked(second)
        async with publisher_at(producer.address) as publisher:
            publisher.send(publish_of(1, TOPIC, "1"))
            # The other one answers its pings meanwhile.
            assert await forwarded(other, 1) == [1]
            other.send({"t": "ack", "numbers": [[1, 1]]})
            await publisher.confirmed(1)
            await home.until(Opcode.PING)
        (line,) = log.lines("link down")
        assert "4411" in line


@pytest.mark.usefixtures("little_patience")
async def test_one_that_cannot_reach_the_log(nodes: Nodes) -> None:
    async with soon(), V2Server() as first, V2Server() as second:
        producer = await nodes.producer([first.address, second.address])
        home, other = await linked(first, available=False), await linked(second)
        async with publisher_at(producer.address) as publisher:
            publisher.send(publish_of(1, TOPIC, "1"))
            assert await forwarded(other, 1) == [1]
            other.send({"t": "ack", "numbers": [[1, 1]]})
            await publisher.confirmed(1)
            say(home, available=True)
            await eventually(
                lambda: not any(link.away for link in producer.service.node.facts(0.0).links), "it is back"
            )
            publisher.send(publish_of(2, TOPIC, "2"))
            assert (await forwarded(home, 2))[-1] == 2


@pytest.mark.usefixtures("little_patience")
async def test_one_that_speaks_classic_is_no_substitute(nodes: Nodes) -> None:
    port = free_port()
    async with soon(), RawServer() as classic:
        producer = await nodes.producer([f"127.0.0.1:{port}", classic.address])
        link = await classic.next()
        await link.accept(KEY)
        await eventually(lambda: producer.links[1].connection, "the classic link is up")
        async with publisher_at(producer.address) as publisher, V2Server(port) as first:
            home = await linked(first)
            publisher.send(publish_of(1, TOPIC, "1"))
            assert await forwarded(home, 1) == [1]
            await home.abort()
            again = await linked(first, available=False)
            assert await forwarded(again, 1) == [1]
            assert producer.counters["failovers"] == 0
