"""Topics as server-sent events, from a consumer that clients of all kinds use."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import wsqueue
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.events import SLICE_BYTES
from wsqueue.report.report import ConnectionCount

from ..support.certificates import Authority
from ..support.event_source import Event, EventSource
from ..support.nats_servers import NatsServers
from ..support.nodes import BILLING, KEY, OTHER_KEY, Log, Nodes, RunningNode, write_key
from ..support.ports import free_port
from ..support.raw_peer import RawSocket
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

NEWS = "/events/news"


def bearer(credential: str = BILLING) -> str:
    return f"Authorization: Bearer {credential}"


def cookie(credential: str) -> str:
    return f"Cookie: theme=dark; wsqueue_token={credential}"


def token(**changes: Any) -> str:
    values: dict[str, Any] = {"name": "billing", "who": "alice", "subscribe": ["news"]}
    return wsqueue.Token.make(BILLING, **values | changes).text


@contextlib.asynccontextmanager
async def stream(
    node: RunningNode, path: str = NEWS, *headers: str, credential: str = BILLING, **options: Any
) -> AsyncIterator[EventSource]:
    """Open a stream, which must begin."""
    lines = [bearer(credential)] if credential else []
    async with EventSource.open(node.address, path, *lines, *headers, **options) as source:
        assert (source.status, source.page) == (200, "")
        yield source


async def cluster(
    nodes: Nodes, clients: list[dict[str, Any]], **settings: Any
) -> tuple[RunningNode, RunningNode]:
    """Start a consumer with some settings, and a producer."""
    consumer = await nodes.consumer(port=free_port(), clients=clients, **settings)
    producer = await nodes.producer([consumer], clients=clients)
    await producer.ready()
    return consumer, producer


async def answer(node: RunningNode, path: str, *headers: str, **options: Any) -> tuple[int, str]:
    """Return the status and the page for a request that is refused."""
    async with soon(), EventSource.open(node.address, path, *headers, **options) as source:
        return source.status, source.page


async def test_messages_arrive(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await cluster(nodes, clients)
    async with (
        soon(),
        nodes.client([producer], [consumer]) as client,
        stream(consumer) as source,
        stream(consumer, f"{NEWS}?format=json", cookie(token()), credential="") as fields,
    ):
        assert source.headers["content-type"] == "text/event-stream"
        assert source.headers["cache-control"] == "no-store"
        assert source.headers["x-accel-buffering"] == "no"
        assert source.headers["connection"] == "close"
        assert "access-control-allow-origin" not in source.headers
        log, _, begin = (await source.identified()).rpartition(":")
        assert begin == "0"
        assert 1000 <= (source.parser.retry or 0) <= 5000
        await client.publish("news", "one\r\ntwo\n", headers={"content-type": "text/plain"})
        await client.publish("news", b"\xff\x00")
        await client.publish("news", b"bytes, and a text")
        assert [await source.next() for _ in "123"] == [
            Event("one\ntwo\n", "message", f"{log}:1"),
            Event(base64.b64encode(b"\xff\x00").decode(), "binary", f"{log}:2"),
            Event("bytes, and a text", "message", f"{log}:3"),
        ]
        assert [json.loads(data) for data in await fields.data(3)] == [
            {"data": "one\r\ntwo\n", "headers": {"content-type": "text/plain"}},
            {"data_base64": "/wA="},
            {"data": "bytes, and a text"},
        ]
    assert consumer.counters["deliveries"] == 6
    await consumer.subscribed("news", 0)


@pytest.mark.parametrize("mode", ["memory", "sqlite"])
async def test_a_stream_resumes(nodes: Nodes, clients: list[dict[str, Any]], mode: str) -> None:
    consumer, producer = await cluster(nodes, clients, retention={"mode": mode, "directory": mode})
    async with soon(), nodes.client([producer], [consumer]) as client:
        async with stream(consumer) as source:
            nothing = await source.identified()
        for number in range(5):
            await client.publish("news", str(number))
        async with stream(consumer, NEWS, f"Last-Event-ID: {nothing}") as source:
            assert await source.data(3) == ["0", "1", "2"]
            last = source.last_id
        if mode == "sqlite":
            await consumer.crash()
        else:
            await consumer.stop()
        await consumer.restart()
        await client.publish("news", "5")
        # The header counts, because a browser repeats the URL with it.
        async with stream(consumer, f"{NEWS}?from=earliest", f"Last-Event-ID: {last}") as source:
            assert await source.data(3) == ["3", "4", "5"]
        async with stream(consumer, f"{NEWS}?from={last}") as source:
            assert await source.data(3) == ["3", "4", "5"]
        async with stream(consumer, f"{NEWS}?from=-1") as source:
            assert await source.data(1) == ["5"]
        async with stream(consumer, f"{NEWS}?from=earliest") as source:
            assert await source.data(2) == ["0", "1"]


async def test_a_shared_log(nodes: Nodes, clients: list[dict[str, Any]], tmp_path: Path) -> None:
    async with NatsServers(tmp_path / "nats") as servers:
        retention = {"mode": "jetstream", "jetstream": servers.settings | {"streams": 2}}
        ports = [free_port(), free_port()]
        monitoring = {"consumers": [f"127.0.0.1:{port}" for port in ports]}
        first, second = [
            await nodes.consumer(port, clients=clients, retention=retention, monitoring=monitoring)
            for port in ports
        ]
        producer = await nodes.producer([first, second], clients=clients)
        await producer.ready()
        async with soon(), nodes.client([producer], [first, second]) as client:
            async with stream(first) as source:
                await source.identified()
                await client.publish("news", "0", "1")
                assert await source.data(2) == ["0", "1"]
            await client.publish("news", "2")
            # Any consumer has all topics, and the position is one of them all.
            async with stream(second, NEWS, f"Last-Event-ID: {source.last_id}") as other:
                assert await other.data(1) == ["2"]
                await client.publish("news", "3")
                assert await other.data(1) == ["3"]
        assert first.counters["gaps"] == second.counters["gaps"] == 0
        for node in (producer, first, second):
            await node.stop()


async def test_gaps_are_told(nodes: Nodes, log: Log, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await cluster(nodes, clients, retention={"max_messages_per_topic": 2})
    async with soon(), nodes.client([producer], [consumer]) as client:
        async with stream(consumer) as source:
            begin = await source.identified()
        for number in range(5):
            await client.publish("news", str(number))
        name = begin.partition(":")[0]
        async with stream(consumer, NEWS, f"Last-Event-ID: {begin}") as source:
            assert await source.next() == Event('{"missed":3}', "gap", f"{name}:3")
            assert await source.data(2) == ["3", "4"]
        async with stream(consumer, NEWS, "Last-Event-ID: anotherlog:1") as source:
            assert await source.next() == Event('{"missed":null}', "gap", f"{name}:3")
            assert await source.data(2) == ["3", "4"]
    assert consumer.counters["gaps"] == 2


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], (401, "expected `Authorization: Bearer` or the cookie `wsqueue_token`")),
        ([bearer("guessed")], (401, "this is neither a valid token nor")),
        ([bearer(KEY)], (401, "this key has no name")),
        ([bearer(token() + "x")], (401, "this is neither a valid token nor")),
        ([cookie(token() + "x")], (401, "this is neither a valid token nor")),
        ([bearer(token(now=1e9))], (401, "the token is not valid: it ended")),
        ([cookie(token()), cookie(BILLING)], (401, "expected `Authorization: Bearer` or the cookie")),
        ([bearer(token(subscribe=[]))], (403, "billing:alice may not subscribe to 'news'")),
        ([bearer(), "X-Forwarded-Proto: http"], (403, "must not travel in the clear")),
        ([bearer(), "Origin: https://elsewhere.example.com"], (403, "A page of another site")),
        ([cookie(token()), "Sec-Fetch-Mode: no-cors"], (403, "A page of another site")),
        ([bearer(), "Accept: image/png"], (406, "text/event-stream")),
        ([bearer(), "Last-Event-ID: 5"], (400, "Last-Event-ID")),
    ],
)
async def test_who_may_not(
    nodes: Nodes, log: Log, clients: list[dict[str, Any]], headers: list[str], expected: tuple[int, str]
) -> None:
    consumer = await nodes.consumer(clients=clients)
    status, text = expected
    found, page = await answer(consumer, NEWS, *headers)
    assert (found, text in page, page.count("\n")) == (status, True, 1)
    for header in headers:
        assert not any(header[-10:] in record.getMessage() for record in log.records)
    await eventually(lambda: not consumer.connections, "it is gone")


async def test_no_token_in_a_url(nodes: Nodes, log: Log, clients: list[dict[str, Any]]) -> None:
    consumer = await nodes.consumer(clients=clients)
    for name in ("token", "access_token", "wsqueue_token"):
        lent = token()
        status, page = await answer(consumer, f"{NEWS}?{name}={lent}", bearer())
        assert (status, "never into a URL" in page) == (400, True)
        secrets = (lent[-43:], name + "=")
        assert not any(secret in record.getMessage() for record in log.records for secret in secrets)


@pytest.mark.parametrize(
    ("request_line", "status", "text"),
    [
        (f"HEAD {NEWS}", 405, ""),
        (f"POST {NEWS}", 405, "Only GET"),
        (f"PUT {NEWS}", 405, "Only GET"),
        ("GET /events/", 404, "GET /events/TOPIC"),
        ("GET /events", 404, "GET /events/TOPIC"),
        ("GET /events/%FF", 400, "percent-encoded UTF-8"),
        (f"GET /events/{'x' * 300}", 414, "256 bytes"),
        ("GET /events/other", 403, "billing may not subscribe to 'other'"),
    ],
)
async def test_requests_that_cannot_be_taken(
    nodes: Nodes, clients: list[dict[str, Any]], request_line: str, status: int, text: str
) -> None:
    consumer = await nodes.consumer(clients=clients)
    method, path = request_line.split()
    headers = [bearer(), "Content-Length: 0"] if method in ("POST", "PUT") else [bearer()]
    found, page = await answer(consumer, path, *headers, method=method)
    assert (found, text in page) == (status, True)


async def test_sites_that_may_read(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    site = "https://app.example.com"
    consumer = await nodes.consumer(clients=clients, origins=[site])
    async with soon(), stream(consumer, NEWS, f"Origin: {site}", "Sec-Fetch-Mode: cors") as source:
        assert source.headers["access-control-allow-origin"] == site
        assert source.headers["access-control-allow-credentials"] == "true"
        assert source.headers["vary"] == "Origin"


async def test_other_requests(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await cluster(nodes, clients)
    async with soon(), nodes.client([producer], [consumer]) as client:
        pipelined = f"GET {NEWS} HTTP/1.1\r\nHost: x\r\n{bearer()}\r\n\r\n".encode()
        async with (
            stream(consumer, version="1.0") as old,
            stream(consumer, behind=pipelined) as other,
            stream(consumer, behind=b"\x00\xff" * 1000) as garbage,
        ):
            await consumer.subscribed("news", 3)
            await client.publish("news", "hello")
            for source in (old, other, garbage):
                assert await source.data(1) == ["hello"]
            # A client that sends without end is let go.
            garbage.raw.writer.write(b"x" * 100_000)
            assert await garbage.ended() == []
        for head in (b"GET /events/news", b"GET /events/news HTTP/9\r\n\r\n", b"\x00\r\n\r\n"):
            async with RawSocket.open(consumer.address) as raw:
                raw.writer.write(head)
                raw.writer.write_eof()
                await raw.end()
    await consumer.subscribed("news", 0)


async def test_over_tls(nodes: Nodes, authority: Authority, clients: list[dict[str, Any]]) -> None:
    issued = authority.issue("node")
    tls = {name: getattr(issued, name) for name in ("certificate", "key", "ca")}
    consumer = await nodes.consumer(clients=clients, listen=["wss://127.0.0.1:0"], tls=tls)
    producer = await nodes.producer([consumer], clients=clients, tls=tls)
    await producer.ready()
    context = ssl.create_default_context(cafile=str(authority.file))
    async with (
        soon(),
        nodes.client([producer], [producer]) as client,
        stream(consumer, tls=context) as source,
    ):
        await source.identified()
        long = "x" * 900_000
        await client.publish("news", long)
        assert await source.data(1) == [long]
        drain = asyncio.create_task(consumer.stop())
        assert await source.ended() == []
        await drain


async def test_a_slow_client_loses_nothing(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await cluster(nodes, clients)
    batches = [[f"{batch} {number} " + "x" * 1000 for number in range(1000)] for batch in range(8)]
    async with (
        soon(),
        nodes.client([producer], [consumer]) as client,
        stream(consumer, receive_buffer=4096) as source,
        stream(consumer) as fast,
    ):
        await source.identified()
        most = 0
        for batch in batches:
            await client.publish("news", *batch)
            assert await fast.data(len(batch)) == batch
            most = max(most, consumer.service.node.buffers.bytes)
        # The log has the rest: no more waits than in a connection, with one packet and its events.
        assert 0 < most < 4 * 1024 * 1024
        (report,) = consumer.service.node.facts(1.0).slow_peers
        assert (report.protocol, report.behind_messages > 0) == ("events", True)
        for batch in batches:
            assert await source.data(len(batch)) == batch
    assert consumer.counters["gaps"] == 0
    await eventually(lambda: not consumer.service.node.buffers.bytes, "nothing is counted any more")


async def test_events_that_are_far_longer_than_their_messages(
    nodes: Nodes, clients: list[dict[str, Any]]
) -> None:
    consumer, producer = await cluster(
        nodes, clients, ping_interval_seconds=0.05, max_buffered_bytes=2**21, max_total_buffered_bytes=2**24
    )
    lines, many = "\n" * 900_000, [""] * 20_000
    async with (
        soon(),
        nodes.client([producer], [consumer]) as client,
        stream(consumer, receive_buffer=4096) as source,
    ):
        await source.identified()
        await client.publish("news", lines)
        await client.publish("news", *many)
        # Comments come between events, and not within one.
        await asyncio.sleep(0.3)
        assert await source.data(1) == [lines]
        assert await source.data(len(many)) == many
        await client.publish("news", "end")
        assert await source.data(1) == ["end"]
    assert 6 * len(lines) > 2 * SLICE_BYTES


async def test_a_quiet_stream_has_comments(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer = await nodes.consumer(clients=clients, ping_interval_seconds=0.05, ping_timeout_seconds=0.05)
    async with soon(), stream(consumer) as source:
        while source.parser.comments < 5:
            source.parser.feed(await source.raw.reader.read(100))
        # Nothing answers them.
        assert consumer.subscribers("news") == 1


async def test_a_client_that_ends_its_side_is_gone(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer = await nodes.consumer(clients=clients)
    async with soon(), stream(consumer) as source:
        await consumer.subscribed("news")
        source.raw.writer.write_eof()
        await consumer.subscribed("news", 0)
    await eventually(lambda: not consumer.connections, "it is gone")


async def test_a_drain_ends_streams(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await cluster(nodes, clients, retention={"directory": "log"})
    async with soon(), nodes.client([producer], [consumer]) as client, stream(consumer) as source:
        await source.identified()
        await client.publish("news", "one")
        await consumer.stop()
        assert [event.data for event in await source.ended()] == ["one"]
        await consumer.restart()
        await client.publish("news", "two")
        async with stream(consumer, NEWS, f"Last-Event-ID: {source.last_id}") as again:
            assert await again.data(1) == ["two"]


async def test_a_token_that_ends_as_its_stream_begins(
    nodes: Nodes, clients: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    consumer = await nodes.consumer(clients=clients)

    class Later:
        @staticmethod
        def time() -> float:
            return time.time() + 1e7

    # It is right when the request comes, and not right any more when the connection is taken.
    monkeypatch.setattr("wsqueue.nodes.clients.time", Later)
    async with soon(), stream(consumer, credential=token()) as source:
        assert await source.ended() == []
    await eventually(lambda: not consumer.connections, "it is gone")
    await consumer.subscribed("news", 0)
    assert not log.lines("hello refused")
    (line,) = log.lines("connection closed")
    assert CloseCode.TOKEN_ENDED.reason in line


async def test_rights_that_end(nodes: Nodes, clients: list[dict[str, Any]], monkeypatch: Any) -> None:
    consumer = await nodes.consumer(clients=clients)
    async with soon(), stream(consumer) as source, stream(consumer, credential=token()) as lent:
        await consumer.subscribed("news", 2)
        write_key(nodes.directory, "billing", OTHER_KEY)
        await consumer.service.reload()
        assert await source.ended() == await lent.ended() == []
        assert (await answer(consumer, NEWS, bearer()))[0] == 401
    write_key(nodes.directory, "billing", BILLING)
    await consumer.service.reload()
    monkeypatch.setattr("wsqueue.protocol.access.TOKEN_TOLERANCE_SECONDS", 0.0)
    async with soon(), stream(consumer, credential=token(seconds=1.0)) as lent:
        assert await lent.ended() == []


async def test_limits_of_connections(nodes: Nodes, log: Log, clients: list[dict[str, Any]]) -> None:
    clients[0]["max_connections"] = 1
    clients.append({"name": "web", "key_file": "web.key", "subscribe": ["*"], "max_topics": 1})
    write_key(nodes.directory, "web", OTHER_KEY)
    consumer = await nodes.consumer(clients=clients, max_connections=3)
    async with soon(), stream(consumer):
        await consumer.subscribed("news")
        status, page = await answer(consumer, NEWS, bearer())
        assert (status, page) == (503, "billing has 1 connections, and may have no more.\n")
        async with stream(consumer, "/events/a", credential=OTHER_KEY):
            await consumer.subscribed("a")
            status, page = await answer(consumer, "/events/b", bearer(OTHER_KEY))
            assert (status, page) == (403, "web uses 1 topics, and may use no more\n")
            async with stream(consumer, "/events/a", credential=OTHER_KEY):
                await consumer.subscribed("a", 2)
                assert (await answer(consumer, "/events/a", bearer(OTHER_KEY)))[0] == 503
                kinds = consumer.service.reporter.report().connections
                assert ConnectionCount("subscriber", "open", "events", 3) in kinds
    await eventually(lambda: not consumer.connections, "all are gone")
    assert [client.connections for client in consumer.service.reporter._clients()] == [0, 0, 0, 0]


async def test_the_other_nodes_refuse(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    ports = [free_port(), free_port()]
    consumers = [f"127.0.0.1:{port}" for port in ports]
    first = await nodes.consumer(port=ports[0], clients=clients, monitoring={"consumers": consumers})
    second = await nodes.consumer(
        listen=[f"0.0.0.0:{ports[1]}"], plain=True, clients=clients, monitoring={"consumers": consumers}
    )
    producer = await nodes.producer(consumers, clients=clients)
    home, other = (first, second) if wsqueue_home("news") == 0 else (second, first)
    status, page = await answer(other, NEWS, bearer())
    assert (status, page) == (
        421,
        f"This topic belongs to another consumer: ask 127.0.0.1:{home.address.rpartition(':')[2]}.\n",
    )
    async with soon(), stream(home) as source:
        await source.identified()
    status, page = await answer(producer, NEWS, bearer())
    assert (status, page) == (
        404,
        "Not found: a producer keeps no messages; the consumer of the topic has /events/TOPIC.\n",
    )


def wsqueue_home(topic: str) -> int:
    value = 0
    for character in topic:
        value = (value * 31 + ord(character)) & 0xFFFF_FFFF
    return (value if value < 2**31 else 2**32 - value) % 2
