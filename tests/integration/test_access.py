"""Clients with names: the rights of their keys and tokens, at nodes that speak to them."""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

import wsqueue
from wsqueue.config.addresses import parse_address
from wsqueue.protocol.close import CloseCode
from wsqueue.tools.bench.v2 import V2Wire

from ..support.classic_peer import connected
from ..support.keys import psk_of
from ..support.nodes import BILLING, KEY, WATCH, Log, Nodes, RunningNode, write_key
from ..support.raw_v2_peer import V2Socket, new_secret, public_id_of, publish_of
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

NEXT = psk_of("billing, from tomorrow on")


def client_of(
    producer: RunningNode, consumer: RunningNode, *, name: str = "billing", psk: str = BILLING
) -> wsqueue.Client:
    return wsqueue.connect(
        producers=[f"{producer.address}/produce"],
        consumers=[f"{consumer.address}/subscribe"],
        psk=psk,
        name=name,
    )


def holder_of(producer: RunningNode, consumer: RunningNode, token: Any) -> wsqueue.Client:
    return wsqueue.connect(
        producers=[f"{producer.address}/produce"],
        consumers=[f"{consumer.address}/subscribe"],
        token=token,
    )


def lent(**changes: Any) -> str:
    """Return a token of billing."""
    values: dict[str, Any] = {"name": "billing", "who": "alice", "publish": ["*"], "subscribe": ["*"]}
    return wsqueue.Token.make(BILLING, **values | changes).text


async def closed_with(raw: V2Socket) -> int:
    async with soon():
        code, _ = await raw.close_frame()
    return code


async def test_a_name_may_do_what_its_key_allows(
    nodes: Nodes, log: Log, clients: list[dict[str, Any]]
) -> None:
    consumer, producer = await nodes.cluster(clients=clients)
    async with (
        soon(),
        nodes.client([producer], [consumer]) as everybody,
        client_of(producer, consumer) as client,
        everybody.subscribe("orders/1") as orders,
        client.subscribe("news") as news,
    ):
        await client.publish("orders/1", "an order")
        assert (await anext(orders)).data == "an order"
        await everybody.publish("news", "some news")
        assert (await anext(news)).data == "some news"
        with pytest.raises(wsqueue.PublishError, match="billing may not publish to 'news'") as caught:
            await client.publish("news", "no news")
        assert caught.value.code == "not_allowed"
        with pytest.raises(wsqueue.NotAllowedError, match="billing may not subscribe to 'orders/1'"):
            async with client.subscribe("orders/1"):
                pass
        # Everybody else goes on, and so do the topics that are allowed.
        await client.publish("orders/1", "another")
        assert (await anext(orders)).data == "another"
        await everybody.publish("news", "more")
        assert (await anext(news)).data == "more"
    assert producer.counters["not_allowed"] == consumer.counters["not_allowed"] == 1
    assert all('reason="billing may not' in line for line in log.lines("not allowed", logging.WARNING))


async def test_batches_behind_a_refused_one_are_refused_too(
    nodes: Nodes, clients: list[dict[str, Any]]
) -> None:
    _, producer = await nodes.cluster(clients=clients)
    async with soon(), V2Socket.speaking(producer.address, "/produce", BILLING, name="billing") as raw:
        raw.send(new_secret())
        for number in (1, 2):
            raw.send(publish_of(number, "news", "x", after=number - 1))
        raw.send(publish_of(3, "orders/1", "y"))
        assert await raw.answers(3) == {1: "not_allowed", 2: "not_allowed", 3: "stored"}


async def test_a_classic_peers_key_says_who_it_is(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await nodes.cluster(clients=clients)
    async with (
        soon(),
        connected(consumer.subscribe_url("orders/1"), KEY) as everybody,
        connected(producer.url("/produce"), BILLING) as publisher,
        connected(consumer.subscribe_url("news"), BILLING) as subscriber,
    ):
        await consumer.subscribed("orders/1")
        await consumer.subscribed("news")
        await publisher.publish("orders/1", "an order")
        assert await everybody.data(1) == ["an order"]
        await publisher.publish("news", "no news")
        async with connected(consumer.subscribe_url("orders/1"), BILLING) as another:
            for peer in (publisher, another):
                with pytest.raises(ConnectionClosed) as caught:
                    await peer.data(1)
                assert caught.value.rcvd is not None
                assert caught.value.rcvd.code == CloseCode.NOT_ALLOWED
        assert subscriber.socket.close_code is None


@pytest.mark.parametrize(("key", "name"), [(BILLING, "billing"), (KEY, "")])
async def test_no_name_and_no_token_opens_a_link_between_nodes(
    nodes: Nodes, clients: list[dict[str, Any]], tmp_path: Path, key: str, name: str
) -> None:
    write_key(tmp_path, "nodes", psk_of("nodes"))
    consumer = await nodes.consumer(clients=clients, node_psk_file="nodes.key")
    token = wsqueue.Token.make(key, name=name, publish=["*"])
    for more in ({"name": name}, {"token": token.token}):
        secret = key if "name" in more else token.text.partition(".")[2]
        async with V2Socket.upgraded(consumer.address, "/producer") as raw:
            await raw.prove_wrongly(secret, "/producer", **more)
            assert await closed_with(raw) == CloseCode.WRONG_ANSWER


async def test_the_journal_has_the_name_that_is_claimed(
    nodes: Nodes, log: Log, clients: list[dict[str, Any]]
) -> None:
    _, producer = await nodes.cluster(clients=clients)
    token = wsqueue.Token.make(BILLING, name="billing", who="mallory")
    for secret, more in (("guessed", {"name": "billing"}), ("guessed", {"token": token.token})):
        async with V2Socket.upgraded(producer.address, "/produce") as raw:
            await raw.prove_wrongly(secret, "/produce", **more)
            assert await closed_with(raw) == CloseCode.WRONG_ANSWER
    await eventually(lambda: len(log.lines("hello refused")) == 2, "both are logged")
    one, other = log.lines("hello refused")
    assert " claims=billing " in one
    assert " claims=billing:mallory " in other


async def test_reports_need_a_right(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer = await nodes.consumer(clients=clients)
    async with soon(), V2Socket.speaking(consumer.address, "/status", WATCH, name="watch") as raw:
        raw.send({"t": "ask_report"})
        assert (await raw.packet())["t"] == "report"
    async with V2Socket.speaking(consumer.address, "/status", BILLING, name="billing") as raw:
        assert await closed_with(raw) == CloseCode.NOT_ALLOWED


async def test_the_name_is_a_part_of_the_public_id(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await nodes.cluster(clients=clients)
    secret = new_secret()
    token = wsqueue.Token.make(BILLING, name="billing", who="alice", publish=["*"])
    ids = []
    async with soon(), V2Socket.speaking(consumer.address, "/subscribe", KEY) as subscriber:
        subscriber.send({"t": "subscribe", "topic": "orders/1"})
        await subscriber.next("subscribed")
        for key, more in (
            (KEY, {}),
            (BILLING, {"name": "billing"}),
            (token.text.partition(".")[2], {"token": token.token}),
        ):
            async with V2Socket.speaking(producer.address, "/produce", key, **more) as raw:
                raw.send(secret)
                raw.send(publish_of(1, "orders/1", "x"))
                await raw.confirmed(1)
            # One secret is three publishers, so that no batch of another is taken for a repeat.
            ids.append((await subscriber.next("deliver"))["publisher"])
    bare = public_id_of(secret["secret"])
    assert ids == [bare, f"billing/{bare}", f"billing/{public_id_of(secret['secret'], 'alice')}"]


async def test_the_load_generator_keeps_its_name_in_its_workers(
    nodes: Nodes, clients: list[dict[str, Any]]
) -> None:
    consumer, _ = await nodes.cluster(clients=clients)
    address = parse_address(f"{consumer.address}/subscribe", "/subscribe")
    token = wsqueue.Token(lent(subscribe=["news"]))
    async with soon():
        for psk in (wsqueue.PreSharedKey(BILLING, name="billing"), token):
            # As it goes through the pipe to a worker.
            wire = copy.deepcopy(V2Wire([], [address], psk))
            (await asyncio.to_thread(wire.open_subscriber, "news")).close()


async def test_a_token_is_for_its_user(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await nodes.cluster(clients=clients)
    async with (
        soon(),
        nodes.client([producer], [consumer]) as everybody,
        holder_of(producer, consumer, lent(publish=["orders/mine"])) as client,
        client.subscribe("news") as news,
    ):
        await everybody.publish("news", "some news")
        assert (await anext(news)).data == "some news"
        await client.publish("orders/mine", "mine")
        with pytest.raises(wsqueue.PublishError, match="billing:alice may not publish"):
            await client.publish("orders/other", "not mine")


async def test_a_token_that_ends_is_renewed(
    nodes: Nodes, log: Log, clients: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsqueue.protocol.access.TOKEN_TOLERANCE_SECONDS", 0.0)
    monkeypatch.setattr("wsqueue.net.credential.RENEW_SECONDS", 0.0)
    consumer, producer = await nodes.cluster(clients=clients)
    brought: list[str] = []

    async def renew() -> str:
        # The first one has ended before it is used.
        brought.append(lent(seconds=0.5) if brought else lent(seconds=0.5, now=time.time() - 3600))
        await asyncio.sleep(0)
        return brought[-1]

    async with (
        soon(),
        holder_of(producer, consumer, renew) as client,
        nodes.client([producer], [consumer]) as everybody,
        client.subscribe("news") as news,
    ):
        number = 0
        while len(brought) < 4:
            await everybody.publish("news", str(number))
            await client.publish("orders/1", "x")
            assert (await anext(news)).data == str(number)
            number += 1
            await asyncio.sleep(0.01)
    # That is how tokens end: nothing to warn of.
    assert log.lines("connection closed", logging.WARNING) == []


async def test_a_token_that_ends_and_is_not_renewed(
    nodes: Nodes, clients: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsqueue.protocol.access.TOKEN_TOLERANCE_SECONDS", 0.0)
    consumer, producer = await nodes.cluster(clients=clients)
    async with soon(), holder_of(producer, consumer, lent(seconds=0.3)) as client:
        async with client.subscribe("news") as news:
            with pytest.raises(wsqueue.AuthenticationError, match="4417"):
                await anext(news)
        with pytest.raises(wsqueue.AuthenticationError, match="4417"):
            await client.publish("orders/1", "x")


@pytest.mark.parametrize("bad", ["no token", 7, ValueError("no backend"), asyncio.CancelledError()])
async def test_an_application_that_brings_no_token(
    nodes: Nodes, clients: list[dict[str, Any]], bad: Any
) -> None:
    consumer, producer = await nodes.cluster(clients=clients)

    def renew() -> Any:
        if isinstance(bad, BaseException):
            raise bad
        return bad

    async with soon(), holder_of(producer, consumer, renew) as client:
        with pytest.raises(wsqueue.ConnectError, match="the application has brought no token"):
            await client.publish("orders/1", "x")


class TestLimits:
    """The limits of a name hold for all of its connections to a node, and for no other name."""

    async def test_connections(self, nodes: Nodes, clients: list[dict[str, Any]]) -> None:
        clients[0]["max_connections"] = 2
        _, producer = await nodes.cluster(clients=clients)
        speaking = [V2Socket.speaking(producer.address, "/produce", BILLING, name="billing") for _ in "12"]
        async with soon(), speaking[0], speaking[1]:
            async with V2Socket.upgraded(producer.address, "/produce") as third:
                await third.prove(BILLING, "/produce", name="billing")
                assert await third.close_frame() == (
                    CloseCode.TRY_AGAIN_LATER,
                    "billing has 2 connections, and may have no more",
                )
            async with V2Socket.speaking(producer.address, "/produce", KEY):
                clients_now = producer.service.reporter.report().clients
                assert [(client.name, client.connections, client.refused) for client in clients_now] == [
                    ("", 1, 0),
                    ("billing", 2, 1),
                    ("watch", 0, 0),
                ]
        await eventually(lambda: not producer.connections, "they are gone")
        async with V2Socket.speaking(producer.address, "/produce", BILLING, name="billing"):
            pass

    async def test_topics(self, nodes: Nodes, clients: list[dict[str, Any]]) -> None:
        clients[0] |= {"max_topics": 2, "subscribe": ["*"]}
        consumer, producer = await nodes.cluster(clients=clients)
        async with soon(), V2Socket.speaking(producer.address, "/produce", BILLING, name="billing") as raw:
            raw.send(new_secret())
            for number, topic in enumerate(("orders/1", "orders/2", "orders/3", "orders/1"), 1):
                raw.send(publish_of(number, topic, "x"))
            assert await raw.answers(4) == {1: "stored", 2: "stored", 3: "not_allowed", 4: "stored"}
        async with soon(), V2Socket.speaking(consumer.address, "/subscribe", BILLING, name="billing") as raw:
            for topic in "abc":
                raw.send({"t": "subscribe", "topic": topic})
            for topic in "ab":
                assert (await raw.next("subscribed"))["topic"] == topic
            assert await raw.packet() == {"t": "unsubscribed", "topic": "c", "code": "not_allowed"}
            raw.send({"t": "unsubscribe", "topic": "a"})
            await raw.next("unsubscribed")
            raw.send({"t": "subscribe", "topic": "c"})
            await raw.next("subscribed")

    async def test_topics_of_groups(self, nodes: Nodes, clients: list[dict[str, Any]]) -> None:
        """A topic counts as long as there is a membership of it, and no longer."""
        clients[0] |= {"max_topics": 1, "subscribe": ["*"], "groups": ["*"]}
        consumer, _ = await nodes.cluster(clients=clients)
        wishes = {"group": "g", "prefetch": 1, "lease_seconds": 30.0, "max_deliveries": 3}
        async with soon(), V2Socket.speaking(consumer.address, "/subscribe", BILLING, name="billing") as raw:
            raw.send({"t": "join", "topic": "a"} | wishes)
            await raw.next("joined")
            raw.send({"t": "unsubscribe", "topic": "a"})
            await raw.next("unsubscribed")
            raw.send({"t": "join", "topic": "b"} | wishes)
            assert (await raw.next("left"))["code"] == "not_allowed"
            raw.send({"t": "leave", "topic": "a", "group": "g"})
            await raw.next("left")
            raw.send({"t": "join", "topic": "b"} | wishes)
            await raw.next("joined")

    async def test_bytes(self, nodes: Nodes, clients: list[dict[str, Any]]) -> None:
        """Two connections share their bytes, and others don't wait."""
        clients[0]["bytes_per_second"] = 20_000
        consumer, producer = await nodes.cluster(clients=clients)
        data = "x" * 1000
        async with (
            soon(),
            client_of(producer, consumer) as one,
            client_of(producer, consumer) as two,
            nodes.client([producer], [consumer]) as everybody,
        ):
            # The bytes of a second may come at once, and whoever exceeds that waits before its next read.
            for each in (one, two, one):
                await each.publish("orders/1", *[data] * 15)
            sending = [asyncio.create_task(each.publish("orders/1", "x")) for each in (one, two)]
            for _ in range(5):
                await everybody.publish("news", *[data] * 100)
            assert not any(each.done() for each in sending)
            await asyncio.gather(*sending)


class TestReloads:
    """A reload takes rights and keys away from connections that are there."""

    async def test_a_name_that_is_gone(self, nodes: Nodes, log: Log, clients: list[dict[str, Any]]) -> None:
        consumer, producer = await nodes.cluster(clients=clients)
        async with (
            soon(),
            client_of(producer, consumer) as client,
            nodes.client([producer], [consumer]) as everybody,
        ):
            await client.publish("orders/1", "x")
            await everybody.publish("news", "x")
            producer.write(clients=clients[1:])
            await producer.service.reload()
            with pytest.raises(wsqueue.AuthenticationError, match="4401"):
                await client.publish("orders/1", "y")
            await everybody.publish("news", "y")
            (line,) = log.lines("link down")
            assert "the keys of this node have changed" in line

    async def test_a_key_that_goes_during_the_hello(
        self, nodes: Nodes, clients: list[dict[str, Any]]
    ) -> None:
        _, producer = await nodes.cluster(clients=clients)
        async with soon(), V2Socket.upgraded(producer.address, "/produce") as raw:
            producer.write(clients=clients[1:])
            await producer.service.reload()
            await raw.prove(BILLING, "/produce", name="billing")
            assert await raw.close_frame() == (
                CloseCode.TRY_AGAIN_LATER,
                "the keys of this node have changed",
            )

    async def test_rights_that_shrink(self, nodes: Nodes, clients: list[dict[str, Any]]) -> None:
        consumer, producer = await nodes.cluster(clients=clients)
        async with soon(), client_of(producer, consumer) as client, client.subscribe("news") as news:
            await client.publish("orders/1", "x")
            fewer = [clients[0] | {"publish": ["orders/2"], "subscribe": []}, clients[1]]
            for node in (producer, consumer):
                node.write(clients=fewer)
                await node.service.reload()
            with pytest.raises(wsqueue.PublishError, match="may not publish"):
                await client.publish("orders/1", "y")
            await client.publish("orders/2", "y")
            with pytest.raises(wsqueue.NotAllowedError):
                await anext(news)

    async def test_a_key_is_rotated_without_a_lost_connection(
        self, nodes: Nodes, log: Log, clients: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        consumer, producer = await nodes.cluster(clients=clients)
        steps: Iterator[tuple[str, ...]] = iter([(BILLING, NEXT), (NEXT, BILLING), (NEXT, BILLING), (NEXT,)])
        async with soon(), client_of(producer, consumer) as old, old.subscribe("news"):
            await old.publish("orders/1", "x")
            for keys in itertools.islice(steps, 3):
                write_key(tmp_path, "billing", *keys)
                for node in (producer, consumer):
                    await node.service.reload()
                await old.publish("orders/1", "x")
            assert not log.lines("link down")
            async with client_of(producer, consumer, psk=NEXT) as new:
                await new.publish("orders/1", "x")
            write_key(tmp_path, "billing", *next(steps))
            for node in (producer, consumer):
                await node.service.reload()
            with pytest.raises(wsqueue.AuthenticationError):
                await old.publish("orders/1", "x")
