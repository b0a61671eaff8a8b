"""Clients behind proxies that end TLS: a small one, and nginx and Caddy as docs/proxies.md has them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import wsqueue

from ..support.certificates import Authority
from ..support.event_source import EventSource
from ..support.nodes import BILLING, KEY, Log, Nodes
from ..support.ports import free_port
from ..support.proxies import proxied, real_proxy
from ..support.raw_peer import http_get, request_of
from ..support.raw_v2_peer import SUBPROTOCOL, V2Socket
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

CLIENT = "192.0.2.7"


@contextlib.asynccontextmanager
async def proxy(ports: dict[str, str], context: ssl.SSLContext) -> AsyncIterator[str]:
    """End TLS, and pass each path on to a node, without `/queue` and with the address of the client."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        host, _, port = next(at for name, at in ports.items() if path.startswith(name)).rpartition(":")
        head = head.replace(f" {path} ", f" {path.removeprefix('/queue')} ", 1)
        head = head.removesuffix("\r\n") + f"X-Forwarded-For: {CLIENT}\r\n\r\n"
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        inner_writer.write(head.encode())
        await asyncio.gather(pass_on(reader, inner_writer), pass_on(inner_reader, writer))

    server = await asyncio.start_server(handle, "127.0.0.1", ssl=context)
    async with server:
        yield f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/queue"


def client_at(address: str, ca: Path, **options: Any) -> wsqueue.Client:
    return wsqueue.connect(
        producers=[f"{address}/produce"],
        consumers=[f"{address}/subscribe"],
        psk=KEY,
        tls=wsqueue.Tls(ca=str(ca)),
        **options,
    )


async def round_trip(client: wsqueue.Client) -> None:
    async with soon(), client, client.subscribe("news") as messages:
        await client.publish("news", "hello")
        assert (await anext(messages)).data == "hello"


def server_context(authority: Authority) -> ssl.SSLContext:
    tls = authority.issue("proxy")
    assert tls.certificate is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.certificate, tls.key)
    return context


async def test_a_client_that_knows_of_the_proxy(nodes: Nodes, log: Log, authority: Authority) -> None:
    consumer, producer, ports = await proxied(nodes)
    async with proxy(ports, server_context(authority)) as address:
        client = client_at(address, authority.file, channel_binding="none")
        async with soon(), client, client.subscribe("news") as messages:
            await client.publish("news", "hello")
            assert (await anext(messages)).data == "hello"
            for node in (consumer, producer):
                assert CLIENT in {connection.peer for connection in node.connections}
    assert log.lines("hello refused") == []


async def test_a_client_that_does_not_know_of_the_proxy(nodes: Nodes, authority: Authority) -> None:
    _, _, ports = await proxied(nodes)
    async with (
        soon(),
        proxy(ports, server_context(authority)) as address,
        client_at(address, authority.file) as client,
    ):
        with pytest.raises(wsqueue.ConnectError, match=r'4414.*set channel_binding = "none" there'):
            await client.publish("news", "hello")


async def test_only_listeners_for_proxies_take_such_clients(nodes: Nodes, authority: Authority) -> None:
    """A node's own listener demands that the proof names its certificate, or that there is no TLS."""
    consumer, producer = await nodes.cluster()
    ports = {"/queue/subscribe": consumer.address, "/queue/produce": producer.address}
    async with (
        soon(),
        proxy(ports, server_context(authority)) as address,
        client_at(address, authority.file, channel_binding="none") as client,
    ):
        with pytest.raises(wsqueue.ConnectError, match="4414"):
            await client.publish("news", "hello")


@pytest.mark.parametrize(("binding", "taken"), [("optional", True), ("required", False)])
async def test_a_client_that_cannot_name_the_certificate(
    nodes: Nodes, authority: Authority, binding: str, *, taken: bool
) -> None:
    """Such as a browser, which has verified it."""
    issued = authority.issue("node")
    tls = {name: getattr(issued, name) for name in ("certificate", "key", "ca")}
    consumer = await nodes.consumer(listen=["wss://127.0.0.1:0"], tls=tls, channel_binding=binding)
    producer = await nodes.producer(
        [consumer], listen=["wss://127.0.0.1:0"], tls=tls, channel_binding=binding
    )
    await producer.ready()
    client = wsqueue.connect(
        producers=[f"{producer.address}/produce"],
        consumers=[f"{consumer.address}/subscribe"],
        psk=KEY,
        tls=wsqueue.Tls(ca=str(authority.file)),
        channel_binding="none",
    )
    if taken:
        await round_trip(client)
        return
    async with soon(), client:
        with pytest.raises(wsqueue.ConnectError, match="4414"):
            await client.publish("news", "hello")


@pytest.mark.parametrize(
    ("said", "peer"),
    [
        ("192.0.2.9", "192.0.2.9"),
        # A client that lies about itself: the proxy adds the truth behind that.
        ("127.0.0.1, 192.0.2.9", "192.0.2.9"),
        ("192.0.2.9, 127.0.0.1", "192.0.2.9"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("nonsense", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
async def test_the_journal_has_the_client(nodes: Nodes, log: Log, said: str, peer: str) -> None:
    _, _, ports = await proxied(nodes)
    async with soon(), V2Socket.open(ports["/queue/produce"]) as raw:
        offer = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}"
        raw.writer.write(request_of("/produce", offer, f"X-Forwarded-For: {said}"))
        await raw.reader.readuntil(b"\r\n\r\n")
        await raw.prove_wrongly("another key", "/produce")
        await raw.close_frame()
    await eventually(lambda: log.lines("hello refused"), "it is refused")
    assert f" peer={peer}" in log.lines("hello refused")[0]


async def test_a_proxy_that_is_not_trusted(nodes: Nodes, log: Log) -> None:
    port = f"127.0.0.1:{free_port()}"
    consumer = await nodes.consumer(proxy={"listen": [port], "trusted": ["192.0.2.1"]})
    async with soon(), V2Socket.open(port) as raw:
        raw.writer.write(request_of("/nowhere", "X-Forwarded-For: 192.0.2.9"))
        await raw.page()
    await eventually(lambda: not consumer.connections, "it is closed")
    assert "192.0.2.9" not in log.lines("request answered")[0]


@pytest.mark.parametrize(
    "header", ["X-Forwarded-For: 192.0.2.7", "Forwarded: for=192.0.2.7", "Via: 1.1 proxy"]
)
async def test_a_proxy_on_this_host_does_not_open_the_pages(nodes: Nodes, header: str) -> None:
    """Whoever comes through it is not on this host."""
    consumer = await nodes.consumer()
    assert (await http_get(consumer.address, "/status.json"))[0] == 200
    async with soon(), V2Socket.open(consumer.address) as raw:
        raw.writer.write(f"GET /status.json HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode())
        assert (await raw.page())[0] == 403


def post(address: str, authority: Authority) -> int:
    """Publish by HTTP, and return the status."""
    headers = {"Authorization": f"Bearer {BILLING}", "Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{address}/publish/orders/1", b"by HTTP", headers)  # noqa: S310 - https
    context = ssl.create_default_context(cafile=authority.file)
    with urllib.request.urlopen(request, context=context, timeout=10) as response:  # noqa: S310 - as above
        return int(response.status)


@pytest.mark.parametrize("program", ["nginx", "caddy"])
async def test_real_proxies(
    nodes: Nodes, authority: Authority, clients: list[dict[str, Any]], tmp_path: Path, program: str
) -> None:
    consumer, producer, ports = await proxied(nodes, clients=clients)
    authority.issue("proxy")
    async with real_proxy(program, tmp_path, ports) as port:
        address = f"wss://localhost:{port}/queue"
        client = client_at(address, authority.file, channel_binding="none")
        async with soon(), client, client.subscribe("news", "a/b ñ", "orders/1") as messages:
            for topic in ("news", "a/b ñ"):
                await client.publish(topic, "hello")
                assert (await anext(messages)).topic == topic
            assert await asyncio.to_thread(post, f"https://localhost:{port}/queue", authority) == 204
            assert (await anext(messages)).data == b"by HTTP"
            # The proxy tells where the client is.
            assert all(connection.forwarded for connection in producer.connections)
            context = ssl.create_default_context(cafile=str(authority.file))
            path, bearer = "/queue/events/news", f"Authorization: Bearer {BILLING}"
            async with EventSource.open(f"127.0.0.1:{port}", path, bearer, tls=context) as source:
                assert source.status == 200
                # Each event comes at once, though the stream goes on.
                for text in ("one", "two"):
                    await client.publish("news", text)
                    assert await source.data(1) == [text]
            await eventually(lambda: consumer.subscribers("news") == 1, "the stream is gone")
