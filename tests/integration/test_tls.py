"""TLS between clients and nodes: trust, refusals, reload, deadlines, ends, slow readers."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import connect

import wsqueue
from wsqueue.config.check import check_addresses
from wsqueue.config.model import ClientConfig, Tls
from wsqueue.errors import ConfigError, ConnectError
from wsqueue.net.certificates import TlsContexts
from wsqueue.net.connection import Connection
from wsqueue.net.tls import TlsStream
from wsqueue.net.write_buffer import WRITE_HIGH_WATER
from wsqueue.tools.bench.cluster import bench_cluster
from wsqueue.tools.bench.workload import Load
from wsqueue.tools.verify import verify

from ..support.certificates import Authority
from ..support.classic_peer import Peer, connected
from ..support.nodes import KEY, Log, Nodes, RunningNode
from ..support.ports import free_port
from ..support.raw_peer import RawServer, RawSocket, http_get
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

WSS = ["wss://127.0.0.1:0"]


def table(tls: Tls, **changes: Any) -> dict[str, Any]:
    """Return the table `[tls]` of a configuration."""
    settings = msgspec.structs.asdict(msgspec.structs.replace(tls, **changes))
    return {key: value for key, value in settings.items() if value is not None}


async def cluster(nodes: Nodes, tls: Tls, **settings: Any) -> tuple[RunningNode, RunningNode]:
    return await nodes.cluster(listen=WSS, tls=table(tls), **settings)


async def round_trip(client: wsqueue.Client) -> None:
    async with soon(), client, client.subscribe("news") as messages:
        for data in ("1", "x" * 900_000, "2"):
            await client.publish("news", data)
            assert (await anext(messages)).data == data


async def refused(nodes: Nodes, node: RunningNode, tls: Tls | None, address: str = "") -> str:
    """Return the reason why a client cannot publish."""
    address = address or node.address
    client = nodes.client([address], [address], tls=tls)
    async with soon(), client:
        with pytest.raises(ConnectError) as caught:
            await client.publish("news", "1")
    prefix = f"no node answers: {address}/produce: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


class TestTrust:
    async def test_a_round_trip(self, nodes: Nodes, authority: Authority, log: Log) -> None:
        consumer, producer = await cluster(nodes, authority.issue("node"))
        await round_trip(nodes.client([producer], [consumer], tls=authority.trusting()))
        await producer.stop()
        await consumer.stop()
        assert producer.counters["lost_held"] == producer.counters["lost_in_flight"] == 0
        assert log.lines("", logging.WARNING) == []

    async def test_by_name(self, nodes: Nodes, authority: Authority) -> None:
        tls = table(authority.issue("node", ["localhost"]))
        consumer = await nodes.consumer(listen=["wss://localhost:0"], tls=tls)
        producer = await nodes.producer([consumer], tls=tls)
        await producer.ready()

    async def test_a_peer_that_is_not_ours(self, nodes: Nodes, authority: Authority) -> None:
        consumer, producer = await cluster(nodes, authority.issue("node"), allow_classic=True)
        tls = authority.context()
        async with (
            soon(),
            connect(consumer.subscribe_url("news"), ssl=tls, proxy=None) as subscriber,
            connect(producer.url("/produce"), ssl=tls, proxy=None) as publisher,
        ):
            peers = [Peer(one, KEY, "document") for one in (subscriber, publisher)]
            for peer in peers:
                await peer.hello()
            await consumer.subscribed("news")
            await peers[1].publish("news", "1")
            assert await peers[0].data(1) == ["1"]

    async def test_the_pages(self, nodes: Nodes, authority: Authority) -> None:
        consumer = await nodes.consumer(listen=WSS, tls=table(authority.issue("node")))
        async with asyncio.timeout(2):
            for _ in range(3):
                assert await http_get(consumer.address, "/healthz", authority.context()) == (200, "ok\n")
            await eventually(lambda: not consumer.connections, "they are closed at once")

    async def test_an_unknown_authority(self, nodes: Nodes, authority: Authority, log: Log) -> None:
        producer = await nodes.producer(["127.0.0.1:1"], listen=WSS, tls=table(authority.issue("node")))
        other = Authority(nodes.directory, "other")
        for tls in (other.trusting(), None):
            reason = await refused(nodes, producer, tls)
            assert reason.startswith("its certificate is not to be trusted: ")
        await eventually(lambda: producer.counters["tls_refused"] == 2, "it is counted")
        for line in log.lines("TLS refused ", logging.WARNING):
            assert 'reason="it refuses this end: unknown ca"' in line

    @pytest.mark.parametrize(
        ("hosts", "host", "kind"),
        [(["192.0.2.1", "localhost"], "127.0.0.1", "IP address"), (["127.0.0.1"], "localhost", "Hostname")],
    )
    async def test_another_host(
        self, nodes: Nodes, authority: Authority, hosts: list[str], host: str, kind: str
    ) -> None:
        tls = authority.issue("node", hosts)
        producer = await nodes.producer(["127.0.0.1:1"], listen=[f"wss://{host}:0"], tls=table(tls))
        problem = await refused(nodes, producer, authority.trusting())
        assert f"not to be trusted: {kind} mismatch, certificate is not valid for '{host}'" in problem

    async def test_an_expired_certificate(self, nodes: Nodes, authority: Authority, log: Log) -> None:
        tls = authority.issue("node", days=-1)
        producer = await nodes.producer(["127.0.0.1:1"], listen=WSS, tls=table(tls))
        assert "has expired on" in log.lines("unwise configuration ")[0]
        problem = await refused(nodes, producer, authority.trusting())
        assert problem == "its certificate is not to be trusted: certificate has expired"

    @pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated")
    async def test_old_versions(self, nodes: Nodes, authority: Authority) -> None:
        consumer = await nodes.consumer(listen=WSS, tls=table(authority.issue("node")))
        tls = authority.context()
        tls.set_ciphers("ALL:@SECLEVEL=0")
        tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_2
        async with soon():
            assert (await http_get(consumer.address, "/healthz", tls))[0] == 200
            tls.minimum_version = tls.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises(OSError):  # noqa: PT011 - it depends on OpenSSL
                await http_get(consumer.address, "/healthz", tls)
            await eventually(lambda: consumer.counters["tls_refused"] == 1, "it is counted")


class TestClientCertificates:
    async def test_a_whole_cluster(self, nodes: Nodes, authority: Authority) -> None:
        tls = msgspec.structs.replace(authority.issue("node"), client_certificates=True)
        consumer, producer = await cluster(nodes, tls)
        await round_trip(nodes.client([producer], [consumer], tls=authority.issue("client")))

    async def test_none(self, nodes: Nodes, authority: Authority, log: Log) -> None:
        tls = table(authority.issue("node"), client_certificates=True)
        producer = await nodes.producer(["127.0.0.1:1"], listen=WSS, tls=tls)
        reason = await refused(nodes, producer, authority.trusting())
        assert reason == "it wants a certificate: expected [tls] certificate and key here"
        (line,) = log.lines("TLS refused ", logging.WARNING)
        assert "it has no certificate: [tls] client_certificates wants one" in line

    async def test_of_another_authority(self, nodes: Nodes, authority: Authority, log: Log) -> None:
        tls = table(authority.issue("node"), client_certificates=True)
        producer = await nodes.producer(["127.0.0.1:1"], listen=WSS, tls=tls)
        other = Authority(nodes.directory, "other").issue("client")
        reason = await refused(nodes, producer, msgspec.structs.replace(other, ca=str(authority.file)))
        assert reason == "it refuses this end: unknown ca"
        (line,) = log.lines("TLS refused ", logging.WARNING)
        assert "its certificate is not to be trusted: unable to get local issuer certificate" in line

    async def test_a_link_tries_for_ever(self, nodes: Nodes, authority: Authority, log: Log) -> None:
        own = authority.issue("node")
        consumer = await nodes.consumer(listen=WSS, tls=table(own, client_certificates=True))
        trusting = table(authority.trusting())
        producer = await nodes.producer([consumer], tls=trusting)
        await eventually(lambda: consumer.counters["tls_refused"] > 3, "it tries again")
        (line,) = log.lines("link cannot open ", logging.WARNING)
        assert "it wants a certificate" in line
        producer.write(tls=table(own))
        await producer.service.reload()
        await producer.ready()


class TestReload:
    async def test_the_next_connection_gets_the_new_certificate(
        self, nodes: Nodes, authority: Authority, log: Log
    ) -> None:
        consumer, producer = await cluster(nodes, authority.issue("node"))
        old = await certificate_of(producer, authority)
        async with (
            soon(),
            nodes.client([producer], [consumer], tls=authority.trusting()) as client,
            client.subscribe("news") as messages,
        ):
            await client.publish("news", "1")
            assert (await anext(messages)).data == "1"
            authority.issue("node")
            for node in (producer, consumer):
                await node.service.reload()
            assert await certificate_of(producer, authority) != old
            await client.publish("news", "2")
            assert (await anext(messages)).data == "2"
            assert producer.counters["connections"] == 3
            assert len(log.lines("reloaded ")) == 2
        assert log.lines("link down ", logging.WARNING) == []

    @pytest.mark.parametrize("name", ["certificate", "key"])
    async def test_a_broken_file_is_refused(
        self, nodes: Nodes, authority: Authority, log: Log, name: str
    ) -> None:
        tls = authority.issue("node")
        consumer = await nodes.consumer(listen=WSS, tls=table(tls))
        before = await certificate_of(consumer, authority)
        os.truncate(getattr(tls, name), 100)
        await consumer.service.reload()
        (line,) = log.lines("reload refused ", logging.ERROR)
        assert getattr(tls, name) in line
        assert await certificate_of(consumer, authority) == before

    async def test_tls_comes_and_goes_at_one_address(self, nodes: Nodes, authority: Authority) -> None:
        consumer = await nodes.consumer(free_port())
        plain = consumer.address
        secure = f"wss://{plain}"
        tls = authority.context()
        async with soon(), connected(consumer.url("/subscribe/news"), KEY):
            consumer.write(listen=[secure], tls=table(authority.issue("node")))
            await consumer.service.reload()
            assert consumer.address == secure
            assert (await http_get(secure, "/healthz", tls))[0] == 200
            assert (await http_get(plain, "/healthz"))[0] == 400
            consumer.write(listen=[plain])
            await consumer.service.reload()
            assert consumer.address == plain
            assert (await http_get(plain, "/healthz"))[0] == 200
            with pytest.raises(ssl.SSLError):
                await http_get(secure, "/healthz", tls)
            # Connections from before stay.
            assert len([one for one in consumer.service.connections if one.established]) == 1

    async def test_both_ends_bind_the_same_channel(self, nodes: Nodes, authority: Authority) -> None:
        consumer, producer = await cluster(nodes, authority.issue("node"))
        (first,) = bindings(consumer) | bindings(producer)
        authority.issue("node")
        await consumer.service.reload()
        await producer.service.reload()
        (link,) = producer.links
        old = link.connection
        assert old is not None
        old.abort(wsqueue.CloseCode.ABNORMAL)
        await eventually(lambda: link.connection not in (None, old), "it is up again")
        await eventually(lambda: len(consumer.connections) == 1, "the old one is gone")
        (second,) = bindings(consumer) | bindings(producer)
        assert len(first) == len(second) == 32
        assert first != second


class TestStrangers:
    async def test_a_plain_client(self, nodes: Nodes, authority: Authority, log: Log) -> None:
        tls = table(authority.issue("node"))
        producer = await nodes.producer(["127.0.0.1:1"], listen=WSS, tls=tls)
        address = producer.address.removeprefix("wss://")
        reason = await refused(nodes, producer, None, address)
        assert "TLS is spoken here: expected wss://" in reason
        (line,) = log.lines("TLS refused ", logging.WARNING)
        assert "it speaks HTTP without TLS: expected wss://" in line
        async with soon(), RawSocket.open(address) as raw:
            raw.writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert (await raw.page())[0] == 400
        assert (await http_get(producer.address, "/healthz", authority.context()))[0] == 200

    async def test_tls_at_a_plain_address(self, nodes: Nodes, authority: Authority, log: Log) -> None:
        producer = await nodes.producer(["127.0.0.1:1"])
        reason = await refused(nodes, producer, authority.trusting(), f"wss://{producer.address}")
        assert reason == "it speaks no TLS: expected an address without wss://, or one that does"
        (line,) = log.lines("TLS refused ", logging.WARNING)
        assert 'reason="it speaks TLS, and no TLS is spoken here"' in line
        assert (await http_get(producer.address, "/healthz"))[0] == 200

    async def test_a_peer_that_leaves_during_the_handshake(
        self, nodes: Nodes, authority: Authority, log: Log
    ) -> None:
        """A program that tests if a port is open does so; that is no cause for alarm."""
        consumer = await nodes.consumer(listen=WSS, tls=table(authority.issue("node")))
        for begin in (b"", b"\x16\x03\x01"):
            async with soon(), RawSocket.open(consumer.address) as raw:
                raw.writer.write(begin)
                raw.writer.write_eof()
                await raw.end()
        await eventually(lambda: not consumer.connections, "they are gone")
        assert log.lines("", logging.WARNING) == []

    async def test_a_stalled_handshake(self, nodes: Nodes, authority: Authority, log: Log) -> None:
        tls = table(authority.issue("node"))
        consumer = await nodes.consumer(
            listen=WSS, tls=tls, hello_seconds=0.3, max_connections=1, max_strangers=3
        )
        async with (
            soon(),
            RawSocket.open(consumer.address) as silent,
            RawSocket.open(consumer.address) as slow,
        ):
            slow.writer.write(b"\x16\x03\x01\x02\x00\x01")
            await eventually(lambda: len(consumer.connections) == 2, "they count as strangers")
            assert (await http_get(consumer.address, "/healthz", authority.context()))[0] == 200
            await silent.end()
            await slow.end()
        await eventually(lambda: consumer.counters["refused_4408"] == 2, "they are counted")
        assert len(log.lines("hello refused ", logging.WARNING)) == 2

    async def test_a_stalled_acceptor(self, nodes: Nodes, authority: Authority) -> None:
        async with soon(), RawServer() as server:
            address = f"wss://{server.address}"
            client = nodes.client([address], [address], tls=authority.trusting(), hello_seconds=0.3)
            async with client:
                with pytest.raises(ConnectError, match="the hello took too long"):
                    await client.publish("news", "1")

    async def test_a_drain_does_not_wait_for_a_handshake(self, nodes: Nodes, authority: Authority) -> None:
        tls = table(authority.issue("node"))
        consumer = await nodes.consumer(listen=WSS, tls=tls, hello_seconds=60.0, drain_seconds=60.0)
        async with asyncio.timeout(5), RawSocket.open(consumer.address) as raw:
            await eventually(lambda: consumer.connections, "it is accepted")
            await consumer.stop()
            await raw.end()


class Below:
    """Keep the transports and TLS streams below the connections of this process.

    Attributes:
        transports: The transport of each connection.
        streams: The TLS streams of acceptors.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.transports: dict[Connection, asyncio.Transport] = {}
        self.streams: list[TlsStream] = []
        made, accept = Connection.connection_made, TlsContexts.accept

        def connection_made(connection: Connection, transport: asyncio.Transport) -> None:
            self.transports[connection] = transport
            made(connection, transport)

        def accepted(contexts: TlsContexts) -> TlsStream:
            self.streams.append(accept(contexts))
            return self.streams[-1]

        monkeypatch.setattr(Connection, "connection_made", connection_made)
        monkeypatch.setattr(TlsContexts, "accept", accepted)


@pytest.fixture
def below(monkeypatch: pytest.MonkeyPatch) -> Below:
    return Below(monkeypatch)


class TestEnds:
    async def test_a_stream_that_is_cut_off_is_lost(
        self, nodes: Nodes, authority: Authority, log: Log, below: Below
    ) -> None:
        """An attacker between both ends can send a FIN, but not the end of TLS."""
        consumer, producer = await cluster(nodes, authority.issue("node"))
        (accepted,) = consumer.connections
        below.transports[accepted].write_eof()
        await eventually(lambda: log.lines("link down ", logging.WARNING), "the link is lost")
        assert "1006 (connection lost)" in log.lines("link down ", logging.WARNING)[0]
        await producer.ready()

    async def test_the_end_of_tls_is_the_end_of_the_stream(
        self, nodes: Nodes, authority: Authority, log: Log, below: Below
    ) -> None:
        consumer, producer = await cluster(nodes, authority.issue("node"))
        (accepted,) = consumer.connections
        (stream,) = below.streams
        below.transports[accepted].write(stream.end())
        await eventually(lambda: log.lines("link down ", logging.WARNING), "the link is down")
        await producer.ready()
        await eventually(lambda: len(consumer.connections) == 1, "the old one is gone")

    async def test_a_close_is_fast(self, nodes: Nodes, authority: Authority, log: Log) -> None:
        consumer, producer = await cluster(nodes, authority.issue("node"), close_seconds=10.0)
        async with asyncio.timeout(3):
            async with (
                nodes.client([producer], [consumer], tls=authority.trusting(), close_seconds=10.0) as client,
                client.subscribe("news"),
            ):
                await client.publish("news", "1")
            await producer.stop()
            await consumer.stop()
        assert log.lines("drain cut short") == []
        assert log.lines("link down ", logging.WARNING) == []

    async def test_reading_that_was_paused_loses_nothing(self, nodes: Nodes, authority: Authority) -> None:
        own = authority.issue("node")
        producer = await nodes.producer(
            ["wss://127.0.0.1:1"], listen=WSS, tls=table(own), max_held_bytes=1000, max_message_bytes=100_000
        )
        consumer = await nodes.consumer(listen=WSS, tls=table(own))
        subscribe = consumer.address + "/subscribe"
        client = wsqueue.connect(
            producers=[producer.address + "/produce"],
            consumers=[subscribe],
            psk=KEY,
            tls=authority.trusting(),
        )
        async with soon(), client, client.subscribe("news") as messages:
            data = [f"{number:50000}" for number in range(60)]
            publishing = asyncio.gather(*(client.publish("news", text) for text in data))
            await eventually(lambda: producer.links[0].queue.blocked, "it is paused")
            producer.write(consumers=[consumer.address + "/producer"])
            await producer.service.reload()
            received = [(await anext(messages)).data for _ in range(60)]
            await publishing
            assert received == data


class TestSlowReaders:
    @pytest.mark.parametrize("secure", [False, True])
    async def test_a_slow_subscriber_is_closed_and_others_are_not_slowed(
        self, nodes: Nodes, authority: Authority, log: Log, secure: bool
    ) -> None:
        limit = 1024 * 1024 + 65_536
        consumer = await nodes.consumer(
            listen=["127.0.0.1:0", *WSS],
            tls=table(authority.issue("node")),
            allow_classic=True,
            max_message_bytes=65_536,
            max_buffered_bytes=limit,
            close_seconds=10.0,
        )
        address = str(consumer.service.addresses[secure])
        tls = authority.context() if secure else None
        chunk = ["x" * 60_000] * 4
        async with (
            soon(),
            RawSocket.established(address, "/subscribe/news", KEY, receive_buffer=4096, tls=tls) as slow,
            connected(consumer.url("/subscribe/news"), KEY) as healthy,
            connected(consumer.url("/producer"), KEY) as producer,
        ):
            await consumer.subscribed("news", 2)
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(200):
                await producer.publish("news", *chunk)
                assert await healthy.data(len(chunk)) == chunk
                most = max(connection.buffered_bytes for connection in consumer.connections)
                assert most <= limit + 512 * 1024
                if any(connection.session.closing for connection in consumer.connections):
                    break
            else:
                pytest.fail("it is not closed")
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert await slow.close_frame() == (1013, "too slow: the write buffer for this peer is full")
            await slow.abort()
            await eventually(lambda: consumer.counters["slow_subscribers"] == 1, "it is counted")
            assert "1013" in log.lines("connection closed ", logging.WARNING)[0]
            await producer.publish("news", "after")
            assert await healthy.data(1) == ["after"]

    async def test_what_waits_for_a_subscriber_is_written_in_order(
        self, nodes: Nodes, authority: Authority
    ) -> None:
        consumer = await nodes.consumer(
            listen=["127.0.0.1:0", *WSS],
            tls=table(authority.issue("node")),
            allow_classic=True,
            max_buffered_bytes=2**25,
        )
        secure = str(consumer.service.addresses[1])
        async with (
            soon(),
            RawSocket.established(
                secure, "/subscribe/news", KEY, receive_buffer=4096, tls=authority.context()
            ) as slow,
            connected(consumer.url("/producer"), KEY) as producer,
        ):
            await consumer.subscribed("news")
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            data = [f"{number:{1 + number % 7 * 9000}}" for number in range(400)]
            await producer.publish("news", *data)
            await eventually(
                lambda: any(one.buffered_bytes > WRITE_HIGH_WATER for one in consumer.connections),
                "more is written than the loop takes",
            )
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert [(await slow.packet())["d"] for _ in data] == data


class TestTools:
    async def test_verify(self, nodes: Nodes, authority: Authority) -> None:
        consumer, producer = await cluster(nodes, authority.issue("node"))
        config = demo(nodes, [producer], [consumer], authority.trusting())
        async with soon():
            checks = [check async for check in verify(config, wsqueue.PreSharedKey(KEY))]
        assert [check.problem for check in checks] == [""] * len(checks)

    async def test_bench(self, nodes: Nodes, authority: Authority) -> None:
        consumer, producer = await cluster(nodes, authority.issue("node"), allow_classic=True)
        config = demo(nodes, [producer], [consumer], authority.trusting())
        load = Load(publishers=2, subscribers=2, topics=3, size=20_000, count=600, warm_up=0.1)
        async with soon():
            report = await bench_cluster(load, config, lambda _done: None)
        assert (report.sent, report.received, report.lost, report.duplicates) == (600, 1200, 0, 0)


async def test_a_client_with_a_certificate_that_cannot_be_used(nodes: Nodes) -> None:
    with pytest.raises(ConfigError, match=r"none\.pem: cannot read it"):
        nodes.client(["wss://a:1"], ["wss://a:1"], tls=Tls(ca=f"{nodes.directory}/none.pem"))


def demo(nodes: Nodes, producers: list[RunningNode], consumers: list[RunningNode], tls: Tls) -> ClientConfig:
    psk = nodes.directory / "demo.psk"
    psk.write_text(KEY)
    psk.chmod(0o600)
    config = ClientConfig(
        producers=Nodes.addresses(producers, "/produce"),
        consumers=Nodes.addresses(consumers, "/subscribe"),
        psk_file=str(psk),
        tls=tls,
    )
    check_addresses(config)
    return config


def bindings(node: RunningNode) -> set[bytes]:
    connections = {*node.connections} | {link.connection for link in getattr(node.service.node, "links", [])}
    return {connection.session.channel_binding for connection in connections if connection is not None}


async def certificate_of(node: RunningNode, authority: Authority) -> bytes:
    """Return the certificate that the next connection gets."""
    async with soon(), RawSocket.open(node.address, tls=authority.context()) as raw:
        tls = raw.writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True)
        assert isinstance(certificate, bytes)
        return certificate
