"""The pages of a node, `/status`, and the reports of the other nodes."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from websockets.frames import Frame, Opcode

from wsqueue.config.addresses import Address
from wsqueue.config.model import Tls
from wsqueue.monitoring import pages as pages_module
from wsqueue.monitoring.pages import OTHER_SITE
from wsqueue.protocol.close import CloseCode
from wsqueue.report.report import Cluster, ClusterNode, Report
from wsqueue.version import __version__

from ..support.certificates import Authority, digest_of
from ..support.nodes import KEY, OTHER_KEY, Log, Nodes, RunningNode
from ..support.ports import free_port
from ..support.raw_peer import RawSocket, http_get, offer_of, request_of
from ..support.raw_v2_peer import V2Socket, encoded, new_secret, publish_of
from ..support.waiting import eventually, soon
from .test_tls import WSS, table

pytestmark = pytest.mark.anyio

PAGES = ["/", "/status.json", "/cluster.json", "/metrics", "/client.js"]


async def answer(
    address: str,
    path: str,
    *,
    method: str = "GET",
    host: str | None = "localhost",
    origin: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> tuple[int, dict[str, str], str]:
    """Return status, headers (names in lower case) and body of a page."""
    async with RawSocket.open(address, tls=tls) as raw:
        line = "" if host is None else f"Host: {host}\r\n"
        line += "" if origin is None else f"Origin: {origin}\r\n"
        raw.writer.write(f"{method} {path} HTTP/1.1\r\n{line}\r\n".encode())
        head, _, body = (await raw.reader.read()).decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    headers = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in headers}) == len(headers)
    return int(first.split()[1]), {name.lower(): value for name, value in headers}, body


async def report_of(node: RunningNode) -> Report:
    status, text = await http_get(node.address, "/status.json")
    assert status == 200
    return msgspec.json.decode(text, type=Report)


async def cluster_of(address: str, tls: ssl.SSLContext | None = None) -> Cluster:
    status, text = await http_get(address, "/cluster.json", tls)
    assert status == 200
    return msgspec.json.decode(text, type=Cluster)


async def cluster_when(node: RunningNode, true: Any, tls: ssl.SSLContext | None = None) -> Cluster:
    """Return the cluster as soon as a condition is true for it."""
    async with soon():
        while not true(cluster := await cluster_of(node.address, tls)):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)
    return cluster


def known(cluster: Cluster) -> bool:
    """Return True if each node has answered, or is known not to."""
    return all(node.report is not None or node.problem for node in cluster.nodes)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all peers seem to come from another host."""
    monkeypatch.setattr("wsqueue.net.connection.peer_address", lambda _transport: Address("192.0.2.9", 9))


class TestAudience:
    """Peers that may see the pages."""

    async def test_this_host(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with soon():
            for node in (consumer, producer):
                for path in PAGES:
                    status, _, body = await answer(node.address, path)
                    assert (status, len(body) > 100) == (200, True)
                assert (await answer(node.address, "/"))[2].lstrip().lower().startswith("<!doctype html>")

    async def test_a_unix_socket_is_on_this_host(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(listen=[f"unix:{nodes.directory}/node.sock"])
        async with soon():
            assert (await answer(consumer.address, "/status.json"))[0] == 200

    @pytest.mark.usefixtures("far")
    async def test_another_host(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with soon():
            for node, role in ((consumer, "consumer"), (producer, "producer")):
                status, headers, body = await answer(node.address, "/")
                assert (status, body) == (200, f"wsqueue {role} {__version__}\n")
                assert headers["content-type"] == "text/plain; charset=utf-8"
                for path in PAGES[1:]:
                    status, _, body = await answer(node.address, path)
                    assert status == 403
                    assert body.startswith("You may not see the pages of this node: see")
                    assert "[monitoring]" in body
                    assert node.address not in body
                assert await http_get(node.address, "/healthz") == (200, "ok\n")
                assert await http_get(node.address, "/readyz") == (200, "ready\n")
                assert (await http_get(node.address, "/nothing"))[0] == 404

    @pytest.mark.usefixtures("far")
    async def test_all(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(monitoring={"pages": "all"}, hosts=["Status.example"])
        async with soon():
            for path in PAGES:
                assert (await answer(consumer.address, path, host="status.example:80"))[0] == 200

    async def test_none(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(monitoring={"pages": "none"})
        async with soon():
            assert await http_get(consumer.address, "/") == (200, f"wsqueue consumer {__version__}\n")
            for path in PAGES[1:]:
                assert (await http_get(consumer.address, path))[0] == 403
            consumer.write(monitoring={"pages": "loopback"})
            await consumer.service.reload()
            for path in PAGES:
                assert (await http_get(consumer.address, path))[0] == 200

    async def test_a_page_of_another_site(self, nodes: Nodes) -> None:
        """Its browser is on this host, and its name is made to lead here (DNS rebinding)."""
        own = [None, "", "localhost", "LocalHost:10002", "127.0.0.1:10002", "[::1]:10002", "192.0.2.1"]
        other = ["evil.example:10002", "localhost.evil.example", "127.0.0.1.evil.example:10002"]
        other += ["localhost, evil.example", "[evil.example]"]
        consumer = await nodes.consumer()
        async with soon():
            for host in (*own, *other):
                for path in PAGES[1:]:
                    status, _, body = await answer(consumer.address, path, host=host)
                    assert status == (200 if host in own else 403)
                    assert host in own or "http://localhost" in body
            assert await http_get(consumer.address, "/healthz") == (200, "ok\n")


class TestSites:
    """Pages of other sites, in a browser that reaches the nodes."""

    @pytest.mark.parametrize("pages", ["all", "loopback", "listener"])
    async def test_a_name_that_leads_here(self, nodes: Nodes, pages: str) -> None:
        """The pages are not shown by a name that is not the cluster's (DNS rebinding)."""
        own = f"127.0.0.1:{free_port()}"
        listener = {"listen": [own], "pages": "none"} if pages == "listener" else {"pages": pages}
        others = {"consumers": ["wss://consumer2.example:1"], "producers": ["wss://[2001:db8::7]:1"]}
        consumer = await nodes.consumer(monitoring=listener | others, hosts=["queue.example"])
        address = own if pages == "listener" else consumer.address
        known = [
            None,
            "localhost:1",
            "127.0.0.1",
            "[::1]:1",
            "192.0.2.1:1",
            "queue.example",
            "QUEUE.example:1",
        ]
        known += ["consumer2.example:9", socket.gethostname()]
        async with soon():
            for host in known:
                for path in PAGES:
                    status, _, body = await answer(address, path, host=host)
                    assert (status, len(body) > 100) == (200, True), host
            for host in (
                "evil.example",
                "evil.example:10001",
                "queue.example.evil.example",
                "[evil.example]",
            ):
                for path in PAGES[1:]:
                    status, _, body = await answer(address, path, host=host)
                    assert (status, "`hosts`" in body) == (403, True)
                assert (await answer(address, "/", host=host))[2] == f"wsqueue consumer {__version__}\n"
                assert (await answer(address, "/healthz", host=host))[::2] == (200, "ok\n")

    async def test_a_page_of_another_site_opens_no_websocket(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster(
            hosts=["queue.example"],
            origins=["https://app.example.com", "http://intranet.example:8080", "null"],
        )
        foreign = [
            "http://evil.example",
            "https://app.example.com.evil.example",
            "https://app.example.com:444",
        ]
        foreign += [
            "http://app.example.com",
            "http://192.0.2.1",
            "http://localhost.evil.example",
            "file://",
            "",
        ]
        foreign += ["http://[", "http://evil.example, http://localhost"]
        own = [
            "http://127.0.0.1:1",
            "http://localhost:3000",
            "https://app.example.com",
            "HTTPS://App.example.com",
        ]
        own += ["http://intranet.example:8080", "null", "http://queue.example:20001"]
        places = [(consumer, "/producer"), (consumer, "/subscribe"), (consumer, "/subscribe/news")]
        places += [(producer, "/produce"), (consumer, "/status"), (producer, "/status")]
        async with soon():
            for node, path in places:
                for origin in foreign:
                    async with RawSocket.open(node.address) as raw:
                        raw.writer.write(request_of(path, offer_of("wsqueue.v2"), f"Origin: {origin}"))
                        assert await raw.page() == (403, OTHER_SITE.text)
                for origin in own:
                    async with RawSocket.open(node.address) as raw:
                        raw.writer.write(request_of(path, offer_of("wsqueue.v2"), f"Origin: {origin}"))
                        assert (await raw.reader.readline()).startswith(b"HTTP/1.1 101 "), origin
            for path in ("/", "/healthz", "/readyz", "/metrics", "/nothing"):
                assert (await answer(consumer.address, path, origin="http://evil.example"))[0] == 403

    async def test_a_name_that_leads_here_opens_no_websocket(self, nodes: Nodes) -> None:
        """The site has this name in both headers, so that its origin is that of the node."""
        consumer = await nodes.consumer()
        for host, status in (("evil.example:10001", 403), ("192.0.2.1:10001", 101)):
            async with soon(), RawSocket.open(consumer.address) as raw:
                request = request_of("/subscribe/news", f"Origin: http://{host}")
                raw.writer.write(request.replace(b"Host: node", b"Host: " + host.encode()))
                assert (await raw.reader.readline()).split()[1] == str(status).encode()

    @pytest.mark.usefixtures("far")
    async def test_a_stranger_is_not_told_the_addresses_of_consumers(self, nodes: Nodes) -> None:
        down = f"127.0.0.1:{free_port()}"
        producer = await nodes.producer([down])
        async with soon():
            assert await http_get(producer.address, "/readyz") == (503, "not ready\n")
            producer.write(monitoring={"pages": "all"})
            await producer.service.reload()
            status, body = await http_get(producer.address, "/readyz")
            assert (status, down in body) == (503, True)


class TestListeners:
    """Listeners that serve only the pages."""

    @pytest.mark.usefixtures("far")
    async def test_they_show_the_pages_to_all_peers(self, nodes: Nodes) -> None:
        address = f"127.0.0.1:{free_port()}"
        consumer = await nodes.consumer(monitoring={"listen": [address], "pages": "none"})
        async with soon():
            for path in PAGES:
                status, headers, body = await answer(address, path)
                assert (status, len(body) > 100) == (200, True)
                assert headers["cache-control"] == "no-store"
            assert await http_get(address, "/healthz") == (200, "ok\n")
            assert await http_get(address, "/readyz") == (200, "ready\n")
            assert (await http_get(consumer.address, "/metrics"))[0] == 403
            await consumer.stop()
            with pytest.raises(ConnectionRefusedError):
                await http_get(address, "/metrics")

    async def test_they_serve_nothing_else(self, nodes: Nodes) -> None:
        address = f"127.0.0.1:{free_port()}"
        consumer = await nodes.consumer(monitoring={"listen": [address]})
        other = f"127.0.0.1:{free_port()}"
        await nodes.producer([consumer], monitoring={"listen": [other]})
        sentence = "Not found: there are /healthz, /readyz, /, /status.json, "
        async with soon():
            for where in (address, other):
                for path in ("/producer", "/subscribe", "/subscribe/news", "/produce", "/status", "/nothing"):
                    for offers in ([], [offer_of("wsqueue.v2")]):
                        async with RawSocket.open(where) as raw:
                            raw.writer.write(request_of(path, *offers))
                            status, body = await raw.page()
                            assert (status, body[: len(sentence)]) == (404, sentence)
        # Who asks for a WebSocket has a wrong address, and finds it in the journal.
        refused = {name: count for name, count in consumer.counters.items() if name.startswith("refused_")}
        assert refused == {"refused_404": 6}

    async def test_a_reload_turns_them_around(self, nodes: Nodes) -> None:
        first, second = (f"127.0.0.1:{free_port()}" for _ in range(2))
        consumer = await nodes.consumer(listen=[first], monitoring={"listen": [second]})
        async with soon():
            for _ in range(2):
                assert (await http_get(first, "/producer"))[0] == 426
                assert (await http_get(second, "/producer"))[0] == 404
                assert [str(address) for address in consumer.service.addresses] == [first]
                first, second = second, first
                consumer.write(listen=[first], monitoring={"listen": [second]})
                await consumer.service.reload()
            assert (await report_of(consumer)).addresses == [first]

    async def test_tls(self, nodes: Nodes, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        address = f"wss://127.0.0.1:{free_port()}"
        tls = table(authority.issue("node"))
        await nodes.consumer(monitoring={"listen": [address]}, tls=tls)
        async with soon():
            status, _, _ = await answer(address, "/metrics", tls=authority.context())
            assert status == 200


class TestRequests:
    async def test_headers(self, nodes: Nodes) -> None:
        producers = ["wss://p1.example:7", "p2.example:8"]
        consumer = await nodes.consumer(plain=True, monitoring={"producers": producers})
        types = ["text/html; charset=utf-8", "application/json", "application/json"]
        types += ["text/plain; version=0.0.4; charset=utf-8", "text/javascript; charset=utf-8"]
        async with soon():
            for path, kind in zip(PAGES, types, strict=True):
                status, headers, body = await answer(consumer.address, path)
                assert status == 200
                assert headers["cache-control"] == "no-store"
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["referrer-policy"] == "no-referrer"
                assert headers["connection"] == "close"
                assert int(headers["content-length"]) == len(body.encode())
                assert "access-control-allow-origin" not in headers
                assert headers["content-type"].split(";")[0] == kind.split(";")[0]
                assert ("content-security-policy" in headers) == (path == "/")
            _, headers, _ = await answer(consumer.address, "/")
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert re.search(r"connect-src 'self' wss://p1\.example:7 ws://p2\.example:8(;|$)", policy)
            assert headers["x-frame-options"] == "DENY"

    async def test_a_page_of_a_node_whose_peers_are_at_unix_sockets(self, nodes: Nodes) -> None:
        """No browser can open a unix socket, and a policy can't name it."""
        producer = await nodes.producer([f"unix:{nodes.directory}/consumer.sock", "localhost:1"])
        async with soon():
            status, headers, _ = await answer(producer.address, "/")
            assert status == 200
            assert "connect-src 'self' ws://localhost:1;" in headers["content-security-policy"]

    async def test_a_page_of_a_node_whose_peers_have_names_that_are_not_ascii(self, nodes: Nodes) -> None:
        consumers = ["日本.example:1", "wss://Ñandú.example:2", "a;b:3", "a'b:4", "a*b:5"]
        consumer = await nodes.consumer(plain=True, monitoring={"consumers": consumers})
        async with soon():
            status, headers, _ = await answer(consumer.address, "/")
            assert status == 200
            (origins,) = re.findall("connect-src 'self' ([^;]*);", headers["content-security-policy"])
            assert origins == "ws://xn--wgv71a.example:1 wss://xn--and-6ma2c.example:2"

    @pytest.mark.parametrize("text", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: localhost\r\nx: "])
    async def test_a_request_that_never_ends(self, nodes: Nodes, text: bytes) -> None:
        address = f"127.0.0.1:{free_port()}"
        consumer = await nodes.consumer(hello_seconds=0.2, monitoring={"listen": [address]})
        async with soon():
            for where in (consumer.address, address):
                async with RawSocket.open(where) as raw:
                    raw.writer.write(text)
                    await raw.end()
        await eventually(lambda: not consumer.connections, "they are gone")
        assert consumer.counters[f"refused_{CloseCode.HELLO_TIMEOUT}"] == 2
        # A browser does so, with connections that it opens in advance.
        assert (await report_of(consumer)).warnings == []

    async def test_one_request_a_connection(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer()
        async with soon():
            async with RawSocket.open(consumer.address) as raw:
                raw.writer.write(
                    b"GET /healthz HTTP/1.1\r\n\r\n" + b"GET /status.json HTTP/1.1\r\n\r\n" * 1000
                )
                assert await raw.page() == (200, "ok\n")
            async with RawSocket.open(consumer.address) as raw:
                raw.writer.write(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")
                await raw.end()
        await eventually(lambda: not consumer.connections, "both are gone")

    async def test_a_full_node_still_shows_its_pages(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(max_connections=1)
        async with soon(), V2Socket.speaking(consumer.address, "/subscribe", KEY):
            report = await report_of(consumer)
            assert [warning.code for warning in report.warnings] == ["many_connections"]
            assert (await http_get(consumer.address, "/status"))[0] == 503


class TestStatusEndpoint:
    """`/status`, after the hello."""

    async def test_a_report(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with soon():
            for node, role in ((consumer, "consumer"), (producer, "producer")):
                async with V2Socket.speaking(node.address, "/status", KEY) as monitor:
                    monitor.send({"t": "ask_report"})
                    packet = await monitor.next("report")
                    assert set(packet) == {"t", "report"}
                    report = msgspec.json.decode(packet["report"], type=Report)
                    assert msgspec.to_builtins(report) == json.loads(packet["report"])
                    assert (report.role, report.version, report.addresses) == (
                        role,
                        __version__,
                        [node.address],
                    )
                    kinds = {(kind.role, kind.state, kind.protocol) for kind in report.connections}
                    assert ("monitor", "open", "v2") in kinds

    async def test_it_is_for_all_peers_with_the_key(self, nodes: Nodes, far: None) -> None:
        consumer = await nodes.consumer(monitoring={"pages": "none"})
        async with soon(), V2Socket.speaking(consumer.address, "/status", KEY) as monitor:
            monitor.send({"t": "ask_report"})
            await monitor.next("report")

    async def test_another_key(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer()
        for _ in range(5):
            async with soon(), V2Socket.upgraded(consumer.address, "/status") as monitor:
                await monitor.prove_wrongly(OTHER_KEY, "/status")
                monitor.send({"t": "ask_report"})
                assert (await monitor.close_frame())[0] == CloseCode.WRONG_ANSWER
        await eventually(lambda: not consumer.connections, "it is gone")
        async with soon():
            while not (warnings := (await report_of(consumer)).warnings):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.05)
        (warning,) = warnings
        assert warning.code == "hello_refused"
        assert "another pre-shared key was refused 5 times in the last minute" in warning.text
        assert OTHER_KEY not in str(warning)

    async def test_the_classic_protocol(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer()
        async with soon(), RawSocket.established(consumer.address, "/status", KEY) as raw:
            assert await raw.close_frame() == (CloseCode.CLASSIC_REFUSED, CloseCode.CLASSIC_REFUSED.reason)

    @pytest.mark.parametrize(
        "packet",
        [
            publish_of(1, "news", "1"),
            {"t": "subscribe", "topic": "news"},
            {"t": "report", "report": "{}"},
            new_secret(),
        ],
    )
    async def test_other_packets(self, nodes: Nodes, packet: dict[str, Any]) -> None:
        consumer, producer = await nodes.cluster()
        async with soon():
            for node in (consumer, producer):
                async with V2Socket.speaking(node.address, "/status", KEY) as monitor:
                    monitor.send(packet)
                    monitor.send({"t": "ask_report"})
                    assert (await monitor.close_frame())[0] == CloseCode.UNEXPECTED_PACKET
        assert consumer.counters["messages_in"] == producer.counters["messages_in"] == 0

    @pytest.mark.parametrize("path", ["/producer", "/subscribe", "/produce"])
    async def test_reports_are_told_there_only(self, nodes: Nodes, path: str) -> None:
        consumer, producer = await nodes.cluster()
        node = producer if path == "/produce" else consumer
        async with soon(), V2Socket.speaking(node.address, path, KEY) as raw:
            raw.send({"t": "ask_report"})
            assert (await raw.close_frame())[0] == CloseCode.UNEXPECTED_PACKET

    async def test_clients_and_nodes_may_ask_and_nobody_else(self, nodes: Nodes) -> None:
        (nodes.directory / "nodes.psk").write_text(OTHER_KEY)
        (nodes.directory / "nodes.psk").chmod(0o600)
        consumer = await nodes.consumer(node_psk_file="nodes.psk")
        producer = await nodes.producer([consumer], node_psk_file="nodes.psk")
        await producer.ready()
        async with soon():
            for node in (consumer, producer):
                for key in (KEY, OTHER_KEY):
                    async with V2Socket.speaking(node.address, "/status", key) as monitor:
                        monitor.send({"t": "ask_report"})
                        await monitor.next("report")
                async with V2Socket.upgraded(node.address, "/status") as monitor:
                    await monitor.prove_wrongly("a key of nobody", "/status")
                    assert (await monitor.close_frame())[0] == CloseCode.WRONG_ANSWER
            cluster = await cluster_when(producer, known)
            assert (len(cluster.nodes), problems(cluster)) == (2, {})

    async def test_one_that_asks_and_does_not_read(self, nodes: Nodes) -> None:
        limit = 1024 * 1024 + 4096
        consumer = await nodes.consumer(max_message_bytes=4096, max_buffered_bytes=limit, close_seconds=0.2)
        async with (
            soon(),
            V2Socket.speaking(consumer.address, "/status", KEY, receive_buffer=4096) as monitor,
        ):
            monitor.writer.transport.pause_reading()  # type: ignore[attr-defined]
            questions = frames_of({"t": "ask_report"}, 1000)
            most = 0
            while consumer.connections:
                monitor.writer.write(questions)
                await asyncio.sleep(0)
                most = max([most, *(connection.buffered_bytes for connection in consumer.connections)])
            assert most <= limit + 64 * 1024

    async def test_a_drain(self, nodes: Nodes, log: Log) -> None:
        consumer = await nodes.consumer()
        async with soon(), V2Socket.speaking(consumer.address, "/status", KEY) as monitor:
            stopping = asyncio.create_task(consumer.stop())
            assert (await monitor.next("draining"))["retry_seconds"] >= 0
            await monitor.answer_close()
            await monitor.abort()
            await stopping
        assert not log.lines("drain cut short")

    async def test_a_drain_with_one_that_is_stuck(self, nodes: Nodes, log: Log) -> None:
        consumer = await nodes.consumer(close_seconds=0.1)
        async with soon(), V2Socket.speaking(consumer.address, "/status", KEY):
            await consumer.stop()
        assert not consumer.connections
        assert not log.lines("drain cut short")


def frames_of(packet: dict[str, Any], count: int) -> bytes:
    return Frame(Opcode.BINARY, encoded(packet)).serialize(mask=True) * count


class TestCluster:
    """The reports of all nodes, at a node."""

    async def test_a_node_that_knows_no_others(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer()
        cluster = await cluster_of(consumer.address)
        assert (cluster.consumers, cluster.producers) == ([consumer.address], [])
        (node,) = cluster.nodes
        assert node.report is not None
        assert (node.address, node.age_seconds, node.clock_seconds) == (consumer.address, 0.0, 0.0)
        assert (node.problem, cluster.warnings) == ("", [])

    async def test_all_is_well(self, nodes: Nodes) -> None:
        consumers = [await nodes.consumer() for _ in range(2)]
        producers = [await nodes.producer(consumers) for _ in range(2)]
        all_nodes = {
            "consumers": [node.address for node in consumers],
            "producers": [node.address for node in producers],
        }
        for node in (*consumers, *producers):
            await node.ready()
            node.write(monitoring=all_nodes)
            await node.service.reload()
        for node in (*consumers, *producers):
            first = await cluster_of(node.address)
            assert [each.address for each in first.nodes] == all_nodes["consumers"] + all_nodes["producers"]
            cluster = await cluster_when(node, known)
            assert (cluster.consumers, cluster.producers) == tuple(all_nodes.values())
            assert cluster.warnings == []
            ids = set()
            for known_node in cluster.nodes:
                assert known_node.report is not None
                assert known_node.age_seconds is not None
                assert known_node.clock_seconds is not None
                assert known_node.report.addresses == [known_node.address]
                assert abs(known_node.clock_seconds) < 5
                ids.add(known_node.report.id)
            assert len(ids) == 4

    async def test_nodes_that_are_down_or_have_another_key(self, nodes: Nodes) -> None:
        first = await nodes.consumer()
        other = await nodes.consumer(key=OTHER_KEY)
        port = free_port()
        producer = await nodes.producer([first, other], monitoring={"producers": [f"127.0.0.1:{port}"]})
        cluster = await cluster_when(producer, known)
        assert cluster.consumers == [first.address, other.address]
        assert cluster.producers == [f"127.0.0.1:{port}", producer.address]
        assert problems(cluster) == {
            other.address: "it has another pre-shared key",
            f"127.0.0.1:{port}": "Connection refused",
        }
        assert [warning.code for warning in cluster.warnings].count("node_unreachable") == 2
        text = " ".join(warning.text for warning in cluster.warnings)
        assert f"consumer {other.address} does not answer: it has another pre-shared key." in text
        assert KEY not in text
        assert OTHER_KEY not in text
        assert "link_down" in [warning.code for warning in cluster.warnings]
        # A node comes, and a node goes.
        late = await nodes.producer([first], port=port)
        await cluster_when(producer, lambda now: f"127.0.0.1:{port}" not in problems(now))
        await late.crash()
        cluster = await cluster_when(producer, lambda now: f"127.0.0.1:{port}" in problems(now))
        gone = next(node for node in cluster.nodes if node.address == f"127.0.0.1:{port}")
        # Its last report is kept, with its age.
        assert gone.report is not None
        assert gone.age_seconds is not None

    async def test_a_node_that_has_no_status(self, nodes: Nodes) -> None:
        """For example a node of a former version, which answers 404."""
        consumer = await nodes.consumer()
        address = f"127.0.0.1:{free_port()}"
        pages = await nodes.consumer(monitoring={"listen": [address]})
        producer = await nodes.producer([consumer], monitoring={"consumers": [address]})
        cluster = await cluster_when(producer, problems)
        assert "it has no /status" in problems(cluster)[address]
        assert pages.address not in problems(cluster)

    async def test_a_node_that_is_full(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(max_connections=1)
        producer = await nodes.producer([consumer])
        await producer.ready()
        async with V2Socket.speaking(consumer.address, "/subscribe", KEY):
            cluster = await cluster_when(producer, problems)
        assert "(max_connections)" in problems(cluster)[consumer.address]

    async def test_it_goes_by_the_latest_configuration(self, nodes: Nodes) -> None:
        first, second = await nodes.consumer(), await nodes.consumer()
        producer = await nodes.producer([first])
        await producer.ready()
        await cluster_when(producer, known)
        producer.write(consumers=Nodes.addresses([second], "/producer"))
        await producer.service.reload()
        cluster = await cluster_when(producer, known)
        assert cluster.consumers == [second.address]
        await eventually(lambda: not first.connections, "the former node is asked no more")

    async def test_asking_ends_when_no_requests_come(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pages_module, "IDLE_SECONDS", 0.5)
        monkeypatch.setattr(pages_module, "FRESH_SECONDS", 0.05)
        consumer, producer = await nodes.cluster()
        before = asyncio.all_tasks()
        assert len(consumer.connections) == 1
        for _ in range(2):
            await cluster_when(producer, known)
            assert asyncio.all_tasks() - before
            await eventually(lambda: len(consumer.connections) == 1, "it is asked no more")
            await eventually(lambda: asyncio.all_tasks() <= before, "all tasks have ended")
            # The reports are old by then, which is no problem.
            first = await cluster_of(producer.address)
            assert first.warnings == []
            assert [node.report is not None for node in first.nodes] == [False, True]
        await producer.service.reload()
        await eventually(lambda: asyncio.all_tasks() <= before, "all tasks have ended")

    async def test_a_node_that_stops_while_it_is_watched(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        before = asyncio.all_tasks()
        await cluster_when(producer, known)
        await producer.stop()
        await eventually(lambda: asyncio.all_tasks() <= before, "all tasks have ended")
        await eventually(lambda: not consumer.connections, "the node is asked no more")

    async def test_watching_logs_nothing(self, nodes: Nodes, log: Log) -> None:
        consumer = await nodes.consumer()
        monitoring = {"producers": [f"127.0.0.1:{free_port()}"]}
        producer = await nodes.producer([consumer], monitoring=monitoring)
        await producer.ready()
        log.records.clear()
        await cluster_when(producer, known)
        assert log.lines("", logging.INFO) == []

    async def test_tls(self, nodes: Nodes, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        issued = authority.issue("node")
        consumer, producer = await nodes.cluster(listen=WSS, tls=table(issued))
        context = authority.context()
        cluster = await cluster_when(producer, known, context)
        assert [node.problem for node in cluster.nodes] == ["", ""]
        assert cluster.consumers == [consumer.address]
        assert cluster.warnings == []
        digest, ends = certificate_of(issued)
        for known_node in cluster.nodes:
            assert known_node.report is not None
            assert known_node.report.certificate_sha256 == digest
            assert known_node.report.certificate_ends == ends

    async def test_tls_of_another_authority(self, nodes: Nodes, tmp_path: Path) -> None:
        authority, other = Authority(tmp_path), Authority(tmp_path, "other")
        consumer = await nodes.consumer(listen=WSS, tls=table(authority.issue("one")))
        producer = await nodes.producer([consumer], tls=table(other.issue("two")))
        cluster = await cluster_when(producer, problems)
        assert problems(cluster)[consumer.address].startswith("its certificate is not to be trusted: ")


def problems(cluster: Cluster) -> dict[str, str]:
    """Return the problems of nodes, by address."""

    def words(node: ClusterNode) -> str:
        return re.sub(r"^\d+ ", "", node.problem)

    return {node.address: words(node) for node in cluster.nodes if node.problem}


def certificate_of(tls: Tls) -> tuple[str, float]:
    """Return digest and end of a certificate."""
    assert tls.certificate is not None
    certificate = x509.load_pem_x509_certificate(Path(tls.certificate).read_bytes())
    return digest_of(tls), certificate.not_valid_after_utc.timestamp()
