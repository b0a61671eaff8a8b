"""Attacks with names and tokens: each ends with its code, is in the journal, and disturbs nobody else.

More are in test_access.py (rights and limits), test_proxies.py (proxies that lie about addresses),
tests/unit/protocol/test_repeats.py (the memory of repeats) and tests/floods.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.frames import Opcode

import wsqueue
from wsqueue.config.model import ClientConfig
from wsqueue.protocol.close import CloseCode

from ..support.keys import psk_of
from ..support.nodes import KEY, Log, Nodes, RunningNode, write_key
from ..support.raw_peer import offer_of
from ..support.raw_v2_peer import SUBPROTOCOL, V2Socket, new_nonce, new_secret, proof_of, publish_of
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

WEB, SHOP, NODES = map(psk_of, ("web", "shop", "nodes"))


class Cluster(NamedTuple):
    """A consumer and a producer that know the names web and shop."""

    consumer: RunningNode
    producer: RunningNode

    def client(self, **secret: Any) -> wsqueue.Client:
        return wsqueue.connect(
            producers=[f"{self.producer.address}/produce"],
            consumers=[f"{self.consumer.address}/subscribe"],
            **secret,
        )


def clients_with(**changes: Any) -> list[dict[str, Any]]:
    """Return the clients of a configuration, with other values for web."""
    web = {"name": "web", "key_file": "web.key", "subscribe": ["users/*"], "publish": ["clicks"]}
    shop = {"name": "shop", "key_file": "shop.key", "publish": ["orders"], "subscribe": ["orders"]}
    return [web | changes, shop]


@pytest.fixture
async def cluster(nodes: Nodes, tmp_path: Path) -> Cluster:
    for name, key in (("web", WEB), ("shop", SHOP), ("nodes", NODES)):
        write_key(tmp_path, name, key)
    return Cluster(*await nodes.cluster(clients=clients_with(), node_psk_file="nodes.key"))


@contextlib.asynccontextmanager
async def in_peace(cluster: Cluster) -> AsyncIterator[None]:
    """Let another client publish and subscribe all the time; it must notice nothing."""
    async with soon(), cluster.client(psk=SHOP, name="shop") as shop, shop.subscribe("orders") as orders:
        ended = asyncio.Event()

        async def work() -> int:
            number = 0
            while not ended.is_set() or number < 3:
                await shop.publish("orders", str(number))
                assert (await anext(orders)).data == str(number)
                number += 1
                await asyncio.sleep(0.005)
            return number

        working = asyncio.create_task(work())
        try:
            yield
        finally:
            ended.set()
            await working
    for node in cluster:
        names = {client.name: client for client in node.service.reporter.report().clients}
        assert names["shop"].refused == 0


def token_of(**changes: Any) -> wsqueue.Token:
    values: dict[str, Any] = {"name": "web", "who": "alice", "subscribe": ["users/alice/*"]}
    return wsqueue.Token.make(WEB, **values | changes)


def secret_of(token: wsqueue.Token) -> str:
    return token.text.partition(".")[2]


async def hello(raw: V2Socket, path: str, secret: str, **more: Any) -> int:
    await raw.prove_wrongly(secret, path, **more)
    return (await raw.close_frame())[0]


async def altered(cluster: Cluster, **changes: Any) -> int:
    """Present the claims of a token with others in them, and the secret that it has."""
    token = token_of()
    claims = json.dumps(json.loads(token.token) | changes).encode()
    async with V2Socket.upgraded(cluster.consumer.address, "/subscribe") as raw:
        return await hello(raw, "/subscribe", secret_of(token), token=claims)


async def presented(cluster: Cluster, token: wsqueue.Token, path: str = "/subscribe") -> int:
    async with V2Socket.upgraded(cluster.consumer.address, path) as raw:
        return await hello(raw, path, secret_of(token), token=token.token)


async def another_user(cluster: Cluster) -> int:
    return await altered(cluster, who="root")


async def longer(cluster: Cluster) -> int:
    return await altered(cluster, expires=token_of(seconds=86_400).claims.expires)


async def widened(cluster: Cluster) -> int:
    return await altered(cluster, subscribe=["*"], publish=["*"])


async def ended(cluster: Cluster) -> int:
    return await presented(cluster, token_of(seconds=-3600))


async def revoked(cluster: Cluster) -> int:
    cluster.consumer.write(clients=clients_with(not_before=time.time() + 1))
    await cluster.consumer.service.reload()
    return await presented(cluster, token_of())


async def of_a_name_that_is_gone(cluster: Cluster) -> int:
    cluster.consumer.write(clients=clients_with()[1:])
    await cluster.consumer.service.reload()
    return await presented(cluster, token_of())


async def as_a_node(cluster: Cluster) -> int:
    return await presented(cluster, token_of(), "/producer")


async def named_as_a_node(cluster: Cluster) -> int:
    async with V2Socket.upgraded(cluster.consumer.address, "/producer") as raw:
        return await hello(raw, "/producer", WEB, name="web")


async def replayed(cluster: Cluster) -> int:
    """Send a proof a second time, which was right on another connection."""
    token, nonce = token_of(), new_nonce()
    async with V2Socket.upgraded(cluster.consumer.address, "/subscribe") as raw:
        challenge = (await raw.packet())["nonce"]
        proof = proof_of(secret_of(token), "initiator", challenge, nonce, "/subscribe", token=token.token)
        packet = {"t": "proof", "proof": proof, "nonce": nonce, "path": "/subscribe", "token": token.token}
        raw.send(packet)
        assert (await raw.packet())["t"] == "proof"
    async with V2Socket.upgraded(cluster.consumer.address, "/subscribe") as raw:
        await raw.packet()
        raw.send(packet)
        return (await raw.close_frame())[0]


async def passed_on_to_another_path(cluster: Cluster) -> int:
    """Pass the nonces of one connection on, so that a proof for another path is fresh."""
    token = token_of()
    async with V2Socket.upgraded(cluster.producer.address, "/produce") as raw:
        return await hello(raw, "/subscribe", secret_of(token), token=token.token)


async def guessed(cluster: Cluster) -> int:
    codes = set()
    for guess in range(20):
        async with V2Socket.upgraded(cluster.consumer.address, "/subscribe") as raw:
            codes.add(await hello(raw, "/subscribe", f"{WEB}{guess}", name="web"))
    (code,) = codes
    return code


async def with_a_token_as_a_key(cluster: Cluster) -> int:
    """Make a token with a token, as if that were the key."""
    token = token_of(subscribe=["*"])
    made = wsqueue.Token.make(secret_of(token), name="web", who="alice", subscribe=["*"])
    return await presented(cluster, made)


async def asks_for_reports(cluster: Cluster) -> int:
    token = token_of(status=True)
    async with V2Socket.speaking(
        cluster.consumer.address, "/status", secret_of(token), token=token.token
    ) as raw:
        return (await raw.close_frame())[0]


@pytest.mark.parametrize(
    ("attack", "code", "line"),
    [
        (another_user, CloseCode.WRONG_ANSWER, "hello refused peer={} claims=web:root "),
        (longer, CloseCode.WRONG_ANSWER, "hello refused peer={} claims=web:alice "),
        (widened, CloseCode.WRONG_ANSWER, "hello refused peer={} claims=web:alice "),
        (ended, CloseCode.TOKEN_ENDED, "hello refused peer={} claims=web:alice "),
        (revoked, CloseCode.TOKEN_ENDED, "hello refused peer={} claims=web:alice "),
        (of_a_name_that_is_gone, CloseCode.WRONG_ANSWER, "hello refused peer={} claims=web:alice "),
        (as_a_node, CloseCode.WRONG_ANSWER, "hello refused peer={} claims=web:alice "),
        (named_as_a_node, CloseCode.WRONG_ANSWER, "hello refused peer={} claims=web "),
        (replayed, CloseCode.WRONG_ANSWER, "hello refused peer={} claims=web:alice "),
        (passed_on_to_another_path, CloseCode.ALTERED, "hello refused peer={} claims=web:alice "),
        (guessed, CloseCode.WRONG_ANSWER, "hello refused peer={} claims=web "),
        (with_a_token_as_a_key, CloseCode.WRONG_ANSWER, "hello refused peer={} claims=web:alice "),
        (asks_for_reports, CloseCode.NOT_ALLOWED, "connection closed peer={} client=web:alice "),
    ],
)
async def test_an_attack_ends_with_its_code(
    cluster: Cluster, log: Log, attack: Callable[[Cluster], Awaitable[int]], code: CloseCode, line: str
) -> None:
    async with in_peace(cluster):
        assert await attack(cluster) == code
        begin, _, end = line.partition("{}")
        await eventually(lambda: any(end in one for one in log.lines(begin)), "it is logged")


async def test_topics_of_others(cluster: Cluster, log: Log) -> None:
    """A token has no more rights than its key, whatever it says, and no right of others."""
    token = token_of(subscribe=["*"], publish=["*"])
    async with in_peace(cluster):
        async with V2Socket.speaking(
            cluster.consumer.address, "/subscribe", secret_of(token), token=token.token
        ) as raw:
            raw.send({"t": "subscribe", "topic": "orders"})
            assert await raw.next("unsubscribed") == {
                "t": "unsubscribed",
                "topic": "orders",
                "code": "not_allowed",
            }
        async with V2Socket.speaking(
            cluster.producer.address, "/produce", secret_of(token), token=token.token
        ) as raw:
            raw.send(new_secret())
            raw.send(publish_of(1, "orders", "a false order"))
            raw.send(publish_of(2, "clicks", "a click"))
            assert await raw.answers(2) == {1: "not_allowed", 2: "stored"}
    reasons = [f"\"web:alice may not {what} to 'orders'\"" for what in ("subscribe", "publish")]
    assert all(any(reason in line for line in log.lines("not allowed")) for reason in reasons)


async def test_the_secret_of_another_publisher(cluster: Cluster) -> None:
    """Whoever has listened to it learns nothing of its batches, and takes none of its numbers."""
    cluster.producer.write(clients=clients_with(publish=["orders"]))
    await cluster.producer.service.reload()
    secret = new_secret()
    address = cluster.producer.address
    async with soon(), cluster.client(psk=KEY) as everybody, everybody.subscribe("orders") as orders:
        async with V2Socket.speaking(address, "/produce", SHOP, name="shop") as shop:
            shop.send(secret)
            shop.send(publish_of(1, "orders", "one"))
            await shop.confirmed(1)
        async with V2Socket.speaking(address, "/produce", WEB, name="web") as web:
            web.send(secret)
            # Not taken for a repeat, which would be confirmed without being stored.
            for number in (1, 2):
                web.send(publish_of(number, "orders", f"false {number}", after=number - 1))
            await web.confirmed(1, 2)
        async with V2Socket.speaking(address, "/produce", SHOP, name="shop") as shop:
            shop.send(secret)
            shop.send(publish_of(2, "orders", "two", after=1))
            await shop.confirmed(2)
        assert [(await anext(orders)).data for _ in range(4)] == ["one", "false 1", "false 2", "two"]


@contextlib.asynccontextmanager
async def stripping(node: RunningNode, heard: list[bytes]) -> AsyncIterator[str]:
    """Take the offer of v2 out of requests, and keep the bytes of a client behind them."""
    host, _, port = node.address.rpartition(":")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                kept.append(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        offer = f"{offer_of(SUBPROTOCOL)}\r\n".encode()
        assert offer in head
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        inner_writer.write(head.replace(offer, b""))
        await asyncio.gather(pass_on(reader, inner_writer, heard), pass_on(inner_reader, writer, []))

    server = await asyncio.start_server(handle, "127.0.0.1")
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    "secret",
    [
        {"psk": WEB, "name": "web"},
        {"token": token_of(publish=["clicks"]).text},
        {"token": lambda: token_of(publish=["clicks"]).text},
    ],
    ids=["name", "token", "renewed token"],
)
async def test_a_downgrade(cluster: Cluster, secret: dict[str, Any]) -> None:
    """The client goes away, and says nothing that is made of its key."""
    heard: list[bytes] = []
    async with (
        in_peace(cluster),
        stripping(cluster.producer, heard) as producer,
        stripping(cluster.consumer, heard) as consumer,
        wsqueue.connect(
            producers=[f"{producer}/produce"], consumers=[f"{consumer}/subscribe"], **secret
        ) as client,
    ):
        with pytest.raises(wsqueue.ConnectError, match="4412"):
            await client.publish("clicks", "a click")
        with pytest.raises(wsqueue.ConnectError, match="4412"):
            async with client.subscribe("users/alice/news"):
                pass
    # Close frames and nothing else: 6 bytes of head and mask before the code and the reason.
    assert len(heard) == 2
    for frame in heard:
        assert frame[0] == 0x80 | Opcode.CLOSE
        assert len(frame) == 6 + (frame[1] & 0x7F)


async def test_a_name_may_be_told_to_speak_classic(cluster: Cluster) -> None:
    """As in a cluster with original nodes, whose only key may be one that others know under a name."""
    heard: list[bytes] = []
    async with soon(), stripping(cluster.producer, heard) as producer:
        config = ClientConfig(producers=[f"{producer}/produce"], consumers=[], allow_classic=True)
        async with wsqueue.connect(config, psk=WEB, name="web") as client:
            await client.publish("clicks", "a click")
            assert client.lost_in_flight in (0, 1)
        with pytest.raises(wsqueue.ConfigError, match="the classic protocol has no tokens"):
            wsqueue.connect(config, token=token_of().text)
