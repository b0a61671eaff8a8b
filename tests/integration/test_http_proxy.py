"""Clients that connect through an HTTP proxy, which their configuration or the environment names."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

import wsqueue
from wsqueue.config.addresses import parse_address
from wsqueue.config.model import ClientConfig
from wsqueue.net.tunnel import proxy_for
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.tools.doctor import check_cluster

from ..support.certificates import Authority
from ..support.http_proxy import ConnectProxy, http_proxy
from ..support.nodes import KEY, Log, Nodes
from ..support.ports import free_port
from ..support.waiting import soon

pytestmark = pytest.mark.anyio

NAME = "node.test"
"""A name that the proxy alone knows."""

WSS = ["wss://127.0.0.1:0"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Reached:
    """Nodes with TLS behind a proxy.

    Attributes:
        proxy: The proxy.
        url: Its URL.
        targets: The addresses of the nodes, as the proxy knows them: the consumer's and the producer's.
        ca: File of the authority that clients trust.
    """

    def __init__(self, proxy: ConnectProxy, ports: list[int], ca: Path) -> None:
        self.proxy, self.ca = proxy, ca
        self.url = f"http://127.0.0.1:{proxy.port}"
        self.targets = [f"{NAME}:{port}" for port in ports]

    def client(self, **options: object) -> wsqueue.Client:
        """Return a client of the nodes."""
        consumer, producer = self.targets
        return wsqueue.connect(
            producers=[f"wss://{producer}/produce"],
            consumers=[f"wss://{consumer}/subscribe"],
            psk=KEY,
            tls=wsqueue.Tls(ca=str(self.ca)),
            open_seconds=5,
            **options,  # type: ignore[arg-type]
        )


@contextlib.asynccontextmanager
async def reached(nodes: Nodes, user: str = "", interim: Sequence[bytes] = ()) -> AsyncIterator[Reached]:
    authority = Authority(nodes.directory)
    issued = msgspec.structs.asdict(authority.issue("node", [NAME, "127.0.0.1"]))
    tls = {key: value for key, value in issued.items() if value is not None}
    consumer = await nodes.consumer(listen=WSS, tls=tls)
    producer = await nodes.producer([consumer], listen=WSS, tls=tls)
    await producer.ready()
    ports = [int(node.address.rpartition(":")[2]) for node in (consumer, producer)]
    async with http_proxy({f"{NAME}:{port}": port for port in ports}, user, interim) as proxy:
        yield Reached(proxy, ports, authority.file)


async def round_trip(client: wsqueue.Client) -> None:
    async with soon(), client, client.subscribe("news") as messages:
        await client.publish("news", "hello")
        assert (await anext(messages)).data == "hello"


async def test_the_proxy_of_the_configuration(nodes: Nodes) -> None:
    async with reached(nodes) as there:
        await round_trip(there.client(http_proxy=there.url))
        assert {head.split()[1] for head in there.proxy.heads} == set(there.targets)
        for head in there.proxy.heads:
            target = head.split()[1]
            assert head == f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_the_proxy_of_the_environment(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    async with reached(nodes) as there:
        monkeypatch.setenv(variable, there.url)
        await round_trip(there.client())
        assert len(there.proxy.heads) == 2


@pytest.mark.parametrize("way", ["none", "NO_PROXY"])
async def test_no_proxy(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    async with reached(nodes) as there:
        monkeypatch.setenv("HTTPS_PROXY", there.url)
        if way == "NO_PROXY":
            monkeypatch.setenv("NO_PROXY", "other.test,.test")
        async with soon():
            client = there.client(http_proxy="none" if way == "none" else None)
            # The name is known to the proxy alone.
            with pytest.raises(wsqueue.ConnectError):
                await client.publish("news", "x")
        assert there.proxy.heads == []


@pytest.mark.parametrize("entry", ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:443"])
def test_no_proxy_with_an_ipv6_address(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", f"other.test, {entry}")
    config = ClientConfig(producers=[], consumers=[])
    assert proxy_for(parse_address("wss://[2001:db8::1]:443"), config) is None
    assert str(proxy_for(parse_address("wss://[2001:db8::2]:443"), config)) == "proxy:3128"


async def test_addresses_without_tls_and_of_this_host(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, producer = await nodes.cluster()
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    await round_trip(nodes.client([producer], [consumer]))
    port = int(producer.address.rpartition(":")[2])
    async with http_proxy({f"{NAME}:{port}": port}) as proxy:
        client = wsqueue.connect(
            producers=[f"{NAME}:{port}/produce"],
            consumers=["127.0.0.1:1/subscribe"],
            psk=KEY,
            http_proxy=f"127.0.0.1:{proxy.port}",
        )
        async with soon(), client:
            await client.publish("news", "hello")
        assert len(proxy.heads) == 1


async def test_a_proxy_with_a_password(nodes: Nodes, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    async with reached(nodes, user="me:p@ss word") as there:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss%20word@127.0.0.1:{there.proxy.port}")
        await round_trip(there.client())
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:wrong-secret@127.0.0.1:{there.proxy.port}")
        async with soon():
            with pytest.raises(wsqueue.ConnectError, match="407 Proxy Authentication Required") as caught:
                await there.client().publish("news", "x")
    secrets = ["wrong-secret", base64.b64encode(b"me:wrong-secret").decode(), "p@ss"]
    text = str(caught.value) + "\n".join(log.lines(""))
    assert not any(secret in text for secret in secrets)


async def test_interim_answers_come_before_the_one_that_counts(nodes: Nodes) -> None:
    interim = [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 1",
        b"99 \r\n\r\n",
    ]
    async with reached(nodes, interim=interim) as there:
        await round_trip(there.client(http_proxy=f"http://127.0.0.1:{there.proxy.port}"))


ANSWERS = {
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n": "opens no connection to node.test:1: 403 F",
    b"SSH-2.0-OpenSSH\r\n\r\n": "does not answer as an HTTP proxy does",
    b"": "closed the connection without an answer",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000: "does not answer as an HTTP proxy does",
    b"HTTP/1.1 200 OK\n\n": "does not answer as an HTTP proxy does",
    b"HTTP/1.1 200 OK\r\n\r\nhello": "sends bytes",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n": "no connection to node.test:1: 403",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\n\r\n": "no connection to node.test:1: 101",
    b"HTTP/1.1 100 Continue\r\n\r\n": "closed the connection without an answer",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 700: "answers with more than 16384 bytes",
}


@pytest.mark.parametrize(("answer", "problem"), ANSWERS.items(), ids=range(len(ANSWERS)))
async def test_answers_that_open_nothing(answer: bytes, problem: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, soon():
        client = wsqueue.connect(
            producers=[f"wss://{NAME}:1/produce"],
            consumers=[f"wss://{NAME}:1/subscribe"],
            psk=KEY,
            http_proxy=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        )
        with pytest.raises(wsqueue.ConnectError, match=problem):
            await client.publish("news", "x")


async def test_a_proxy_that_is_not_there_or_says_nothing() -> None:
    addresses = {"producers": [f"wss://{NAME}:1/produce"], "consumers": [f"wss://{NAME}:1/subscribe"]}
    gone = wsqueue.connect(**addresses, psk=KEY, http_proxy=f"127.0.0.1:{free_port()}")  # type: ignore[arg-type]
    with pytest.raises(wsqueue.ConnectError, match=r"the proxy 127\.0\.0\.1:\d+ does not answer: Connection"):
        await gone.publish("news", "x")
    limits = wsqueue.Limits(hello_seconds=0.2)
    async with soon():
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"127.0.0.1:{silent.getsockname()[1]}"
            client = wsqueue.connect(**addresses, psk=KEY, http_proxy=url, limits=limits)  # type: ignore[arg-type]
            with pytest.raises(wsqueue.ConnectError, match="no answer in time"):
                await client.publish("news", "x")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://proxy:1", "spoken to by 'https'"),
        ("socks5://proxy:1", "spoken to by 'socks5'"),
        ("http://proxy:99999", "a port from 1 to 65535"),
        ("http://proxy..example:3128", "not the URL of a proxy"),
        ("http://pro xy:3128", "not the URL of a proxy"),
        ("me:secret@proxy://", "not the URL of a proxy"),
        ("http://me:secret\uff1a@proxy:1", "not the URL of a proxy"),
        ("http://me:[secret]@proxy:1", "not the URL of a proxy"),
        ("http://", "not the URL of a proxy"),
        ("http://proxy/path", "not the URL of a proxy"),
        ("http://me:secret@proxy:1", "expected it in the environment variable HTTPS_PROXY"),
    ],
)
def test_urls_that_cannot_be_used(url: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(wsqueue.ConfigError, match=problem) as caught:
        wsqueue.connect(producers=["a:1/produce"], consumers=["a:1/subscribe"], psk=KEY, http_proxy=url)
    assert "secret" not in str(caught.value)
    file = tmp_path / "demo.toml"
    file.write_text(
        f'role = "demo"\nproducers = ["a:1/produce"]\nconsumers = ["a:1/subscribe"]\nhttp_proxy = "{url}"\n'
    )
    with pytest.raises(wsqueue.ConfigError, match=problem) as caught:
        wsqueue.connect(file, psk=KEY)
    assert "demo.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("socks5://me:secret@proxy:1", "'socks5'"),
        ("http://me:secret\uff1a@proxy:1", "not the URL of a proxy"),
        ("http://me:secret\udcff@proxy:1", "not the URL of a proxy"),
    ],
)
async def test_a_url_in_the_environment_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, url: str, problem: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    client = wsqueue.connect(
        producers=[f"wss://{NAME}:1/produce"], consumers=[f"wss://{NAME}:1/subscribe"], psk=KEY
    )
    async with soon():
        with pytest.raises(
            wsqueue.ConnectError, match=f"HTTPS_PROXY in the environment: .*{problem}"
        ) as caught:
            await client.publish("news", "x")
    assert "secret" not in str(caught.value)


async def test_the_doctor_goes_through_the_proxy_too(nodes: Nodes) -> None:
    async with reached(nodes) as there, soon():
        consumer, producer = there.targets
        config = ClientConfig(
            producers=[f"wss://{producer}/produce"],
            consumers=[f"wss://{consumer}/subscribe"],
            tls=wsqueue.Tls(ca=str(there.ca)),
            http_proxy=there.url,
        )
        found = [finding async for finding in check_cluster(config, PreSharedKey(KEY), lambda _text: None)]
        assert [finding for finding in found if finding.state == "problem"] == []
        assert any("certificate" in finding.text and finding.state == "ok" for finding in found), found
