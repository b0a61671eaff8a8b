"""Messages that are published by HTTP requests, at a producer that clients of all kinds use."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

import wsqueue
from wsqueue.report.report import ConnectionCount

from ..support.certificates import Authority
from ..support.keys import psk_of
from ..support.nodes import BILLING, KEY, Log, Nodes, RunningNode
from ..support.paths import ROOT
from ..support.ports import free_port
from ..support.raw_peer import RawSocket
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

JSON = "Content-Type: application/json"


class Answer(msgspec.Struct):
    """Hold a response."""

    status: int
    headers: dict[str, str]
    text: str


def head_of(path: str, *headers: str, size: int | None, key: str = BILLING) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += [f"Content-Length: {size}"] if size is not None else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def answer_of(raw: RawSocket) -> Answer:
    head, _, text = (await raw.reader.read()).decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    return Answer(int(first.split()[1]), dict(line.split(": ", 1) for line in lines), text)


async def post(
    node: RunningNode, path: str, body: bytes = b"x", *headers: str, key: str = BILLING, **options: Any
) -> Answer:
    async with soon(), RawSocket.open(node.address, **options) as raw:
        raw.writer.write(head_of(path, *headers, size=len(body), key=key) + body)
        return await answer_of(raw)


def token(**changes: Any) -> str:
    values: dict[str, Any] = {"name": "billing", "who": "cron", "publish": ["orders/*"]}
    return wsqueue.Token.make(BILLING, **values | changes).text


async def test_a_message_arrives_with_its_type(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await nodes.cluster(clients=clients)
    async with (
        soon(),
        nodes.client([producer], [consumer]) as everybody,
        everybody.subscribe("orders/é 1?") as orders,
    ):
        sent: list[tuple[bytes, list[str], str | bytes]] = [
            (b'{"a": 1}', [JSON], '{"a": 1}'),
            ("grün".encode(), ["Content-Type: text/plain; charset=UTF-8"], "grün"),
            ("grün".encode("latin-1"), ["Content-Type: text/plain; charset=latin-1"], b"gr\xfcn"),
            (b"\x89PNG", ["Content-Type: image/png"], b"\x89PNG"),
            (b"", ["Content-Type: text/plain"], ""),
            (b"plain", [], b"plain"),
        ]
        for body, headers, data in sent:
            answer = await post(producer, "/publish/orders/%C3%A9%201%3F?x=1", body, *headers)
            assert (answer.status, answer.text) == (204, "")
            assert "Content-Length" not in answer.headers
            message = await anext(orders)
            assert message.data == data
            assert message.headers == ({"content-type": headers[0].partition(": ")[2]} if headers else {})


async def test_a_repeat_is_stored_once(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await nodes.cluster(clients=clients)
    async with (
        soon(),
        nodes.client([producer], [consumer]) as everybody,
        everybody.subscribe("orders/1") as orders,
        everybody.subscribe("orders/2") as others,
    ):
        for body, path, key, bearer in (
            (b"first", "/publish/orders/1", "a", BILLING),
            (b"first again", "/publish/orders/1", "a", BILLING),
            (b"another user", "/publish/orders/1", "a", token()),
            (b"another key", "/publish/orders/1", "b", BILLING),
            (b"another topic", "/publish/orders/2", "a", BILLING),
            (b"no key", "/publish/orders/1", "", BILLING),
            (b"no key", "/publish/orders/1", "", BILLING),
        ):
            answer = await post(producer, path, body, f"Idempotency-Key: {key}", key=bearer)
            assert answer.status == 204
        got = [(await anext(orders)).data for _ in range(5)]
        assert got == [b"first", b"another user", b"another key", b"no key", b"no key"]
        assert (await anext(others)).data == b"another topic"


@pytest.mark.parametrize(
    ("bearer", "expected"),
    [
        ("", ("expected `Authorization: Bearer` with a token", "")),
        ("guessed", ("this is neither a valid token nor", "")),
        (KEY, ("this key has no name", "")),
        (BILLING + "x", ("this is neither a valid token nor", "")),
        (token() + "x", ("this is neither a valid token nor", "billing:cron")),
        (token(name="nobody"), ("this is neither a valid token nor", "")),
        (token().replace(".", "A."), ("this is neither a valid token nor", "")),
        (token(now=1e9), ("the token is not valid: it ended", "billing:cron")),
    ],
)
async def test_who_may_not(
    nodes: Nodes, log: Log, clients: list[dict[str, Any]], bearer: str, expected: tuple[str, str]
) -> None:
    _, producer = await nodes.cluster(clients=clients)
    text, claims = expected
    answer = await post(producer, "/publish/orders/1", key=bearer)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.text.startswith(text)
    await eventually(lambda: bool(log.lines("hello refused")), "it is logged")
    assert producer.counters["refused_401"] == 1
    (line,) = log.lines("hello refused")
    assert (f" claims={claims} " in line) is bool(claims)
    secret = bearer.partition(".")[2] or bearer
    assert not secret or not any(secret in record.getMessage() for record in log.records)


async def test_a_name_without_the_right(nodes: Nodes, log: Log, clients: list[dict[str, Any]]) -> None:
    _, producer = await nodes.cluster(clients=clients)
    for bearer, path, text in (
        (BILLING, "/publish/news", "billing may not publish to 'news'"),
        (token(publish=["*"]), "/publish/news", "billing:cron may not publish to 'news'"),
        (token(publish=[]), "/publish/orders/1", "billing:cron may not publish to 'orders/1'"),
    ):
        answer = await post(producer, path, key=bearer)
        assert (answer.status, answer.text) == (403, f"{text}\n")
        assert any(text in line for line in log.lines("not allowed"))


@pytest.mark.parametrize(
    ("head", "status", "text"),
    [
        (["POST /publish/orders/1 HTTP/1.1", "Content-Length: many"], 400, "Content-Length"),
        (["POST /publish/orders/1 HTTP/1.1", "Content-Length: 1", "Content-Length: 2"], 400, "conflicting"),
        (["POST /publish/orders/1 HTTP/1.1", "Transfer-Encoding: gzip"], 501, "chunked"),
        (["POST  HTTP/1.1", "Content-Length: 1"], 400, "illegal request line"),
        (["POST /publish/orders/1 HTTP/1.1", "Content-Length: 1048577"], 413, "1048576 bytes"),
        (["POST /publish/orders/%FF HTTP/1.1", "Content-Length: 1"], 400, "percent-encoded UTF-8"),
        ([f"POST /publish/{'x' * 300} HTTP/1.1", "Content-Length: 1"], 414, "256 bytes"),
        (["POST /produce HTTP/1.1", "Content-Length: 1"], 404, "/publish/TOPIC"),
        (["POST /status HTTP/1.1", "Content-Length: 1"], 404, "/publish/TOPIC"),
        (["POST / HTTP/1.1", "Content-Length: 1"], 404, "/publish/TOPIC"),
        (["PUT /publish/orders/1 HTTP/1.1", "Content-Length: 0"], 405, "POST at /publish/TOPIC"),
        (["PUT /publish/orders/1 HTTP/1.1", "Content-Length: 1"], 405, "POST at /publish/TOPIC"),
        (["GET /publish/orders/1 HTTP/1.1", "Content-Length: 1"], 400, "POST /publish/TOPIC"),
        (["GET /publish/orders/1 HTTP/1.1", "no colon"], 400, "Line 4 of the request"),
        (["GET /publish/orders/1 HTTP/1.1"], 405, "Only POST"),
        (
            ["POST /publish/orders/1 HTTP/1.1", "Content-Length: 1", f"Idempotency-Key: {'x' * 256}"],
            400,
            "255 characters",
        ),
        (
            ["POST /publish/orders/1 HTTP/1.1", "Content-Length: 1", f"Content-Type: text/{'x' * 1020}"],
            400,
            "1024 characters",
        ),
    ],
)
async def test_requests_that_cannot_be_taken(
    nodes: Nodes, clients: list[dict[str, Any]], head: list[str], status: int, text: str
) -> None:
    _, producer = await nodes.cluster(clients=clients)
    head = [head[0], "Host: localhost", f"Authorization: Bearer {BILLING}", *head[1:]]
    async with soon(), RawSocket.open(producer.address) as raw:
        raw.writer.write(("\r\n".join(head) + "\r\n\r\n").encode())
        answer = await answer_of(raw)
    assert answer.status == status
    assert text in answer.text


async def test_a_peer_that_resets_at_once_does_not_pass_for_one_of_this_host(
    nodes: Nodes, log: Log, clients: list[dict[str, Any]]
) -> None:
    _, producer = await nodes.cluster(clients=clients)
    before = producer.counters["connections"]
    host, _, port = producer.address.rpartition(":")
    # The node accepts it when the loop turns, and nobody can say any more who it was.
    with socket.create_connection((host, int(port))) as peer:
        peer.sendall(head_of("/publish/orders/1", size=1, key="guessed") + b"x")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await eventually(lambda: producer.counters["connections"] == before + 1, "it is accepted")
    await eventually(lambda: len(producer.connections) == 0, "it is gone")
    assert not log.lines("hello refused")
    assert producer.counters["refused_401"] == 0


async def test_a_head_without_end(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    _, producer = await nodes.cluster(clients=clients)
    async with soon(), RawSocket.open(producer.address) as raw:
        raw.writer.write(b"POST /publish/orders/1 HTTP/1.1\r\nX: " + b"x" * 40_000)
        assert (await answer_of(raw)).status == 431


async def test_a_text_that_is_none(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    _, producer = await nodes.cluster(clients=clients)
    answer = await post(producer, "/publish/orders/1", b"\xff", JSON)
    assert (answer.status, "not UTF-8" in answer.text) == (400, True)


async def test_a_consumer_takes_none(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer = await nodes.consumer(clients=clients)
    assert (await post(consumer, "/publish/orders/1")).status == 404


async def test_no_credential_travels_in_the_clear(
    nodes: Nodes, clients: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    consumer = await nodes.consumer(clients=clients)
    producer = await nodes.producer([consumer], clients=clients, proxy={"listen": [f"127.0.0.1:{port}"]})
    await producer.ready()
    request = head_of("/publish/orders/1", "X-Forwarded-For: 192.0.2.1", size=1) + b"x"
    # A proxy on the host of the node may have spoken TLS with the client.
    async with soon(), RawSocket.open(f"127.0.0.1:{port}") as raw:
        raw.writer.write(request)
        assert (await answer_of(raw)).status == 204
        answer = await post(producer, "/publish/orders/1", b"x", "X-Forwarded-Proto: http")
        assert (answer.status, "https" in answer.text) == (403, True)
    # As if these addresses were on two hosts.
    monkeypatch.setattr("wsqueue.net.connection.is_loopback", lambda _host: False)
    host, _, node_port = producer.address.rpartition(":")
    for to in (int(node_port), port):
        reader, writer = await asyncio.open_connection(host, to, local_addr=("127.0.0.2", 0))
        raw = RawSocket(reader, writer, masked=True)
        writer.write(request)
        async with soon():
            answer = await answer_of(raw)
        assert (answer.status, "https" in answer.text) == (403, True)
        await raw.abort()


async def test_the_commands_in_the_documentation(
    nodes: Nodes, clients: list[dict[str, Any]], authority: Authority, tmp_path: Path
) -> None:
    text = (ROOT / "docs" / "http.md").read_text()
    (tmp_path / "keys").mkdir(mode=0o700)
    for config in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        clients += tomllib.loads(config)["clients"]
        file = tmp_path / clients[-1]["key_file"]
        file.write_text(psk_of(clients[-1]["name"]))
        file.chmod(0o600)
    issued = authority.issue("node")
    tls = {name: getattr(issued, name) for name in ("certificate", "key", "ca")}
    consumer = await nodes.consumer(clients=clients, listen=["wss://127.0.0.1:0"], tls=tls)
    producer = await nodes.producer([consumer], clients=clients, listen=["wss://127.0.0.1:0"], tls=tls)
    await producer.ready()
    port = producer.address.rpartition(":")[2]
    async with (
        soon(),
        nodes.client([producer], [consumer], tls=wsqueue.Tls(ca=str(authority.file))) as client,
        client.subscribe("jobs/backup") as jobs,
    ):
        for commands in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            script = commands.replace("queue.example.com:10002", f"localhost:{port}")
            script = script.replace("curl ", f"curl --silent --show-error --cacert {authority.file} ")
            shell = await asyncio.create_subprocess_exec(
                "sh", "-ec", script, cwd=tmp_path, stdout=-1, stderr=-2
            )
            output, _ = await shell.communicate()
            assert (shell.returncode, output) == (0, b"")
        assert (tmp_path / "cron.header").stat().st_mode & 0o77 == 0
        first, second = [await anext(jobs) for _ in "12"]
        assert (first.data, first.headers) == (
            '{"job": "backup", "ok": true}',
            {"content-type": "application/json"},
        )
        assert second.data == "done"
    await _read_as_events(text, consumer, authority, tmp_path)


async def _read_as_events(text: str, consumer: RunningNode, authority: Authority, directory: Path) -> None:
    """Run the command that reads the messages as events, which is to print the lines of the document."""
    (script,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    (printed,) = re.findall(r"```text\n(retry.*?)```", text, re.DOTALL)
    script = script.replace("queue.example.com:10001", f"localhost:{consumer.address.rpartition(':')[2]}")
    script = script.replace("curl ", f"exec curl --cacert {authority.file} ")
    shell = await asyncio.create_subprocess_exec("sh", "-ec", script, cwd=directory, stdout=-1, stderr=-1)
    assert shell.stdout is not None
    async with soon():
        output = await shell.stdout.readuntil(b"data: done\n") + await shell.stdout.readuntil(b"\n\n")
    shell.terminate()
    await shell.wait()
    changing = r"(?m)^retry: \d+$|(?<=^id: )[0-9a-f]{16}"
    assert re.sub(changing, "-", output.decode()) == re.sub(changing, "-", printed)


async def test_while_the_consumer_is_away(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await nodes.cluster(clients=clients)
    address = consumer.address
    await consumer.stop()
    await eventually(producer.service.node.not_ready, "the link is down")
    answer = await post(producer, "/publish/orders/1")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert answer.text == f"The consumer {address}/producer cannot take it now.\n"
    assert not producer.counters["messages_in"]


async def test_a_body_that_comes_in_parts(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await nodes.cluster(clients=clients)
    body = b"x" * 1_000_000
    async with (
        soon(),
        nodes.client([producer], [consumer]) as everybody,
        everybody.subscribe("orders/1") as orders,
        RawSocket.open(producer.address) as raw,
    ):
        raw.writer.write(head_of("/publish/orders/1", "Expect: 100-continue", size=len(body)))
        assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        for at in range(0, len(body), 200_000):
            raw.writer.write(body[at : at + 200_000])
            await asyncio.sleep(0.01)
        # Nothing behind the body is taken for anything.
        raw.writer.write(head_of("/publish/orders/1", size=1) + b"y")
        assert (await answer_of(raw)).status == 204
        assert (await anext(orders)).data == body
    assert producer.counters["messages_in"] == 1


async def test_a_body_in_chunks(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    consumer, producer = await nodes.cluster(clients=clients, max_message_bytes=1000)
    chunked = head_of("/publish/orders/1", "Transfer-Encoding: chunked", size=None)
    async with (
        soon(),
        nodes.client([producer], [consumer]) as everybody,
        everybody.subscribe("orders/1") as orders,
    ):
        for chunks, status in (
            (b"5\r\nparts\r\n3\r\n of\r\n0\r\n\r\n", 204),
            (b"0\r\n\r\n", 204),
            (b"500\r\n" + b"x" * 0x500, 413),
            (b"one\r\n", 400),
        ):
            async with RawSocket.open(producer.address) as raw:
                # In two reads, of which one ends within the first word.
                raw.writer.write(chunked[:3])
                await asyncio.sleep(0.01)
                raw.writer.write(chunked[3:] + chunks)
                assert (await answer_of(raw)).status == status
        assert [(await anext(orders)).data for _ in "12"] == [b"parts of", b""]


async def test_too_slow_a_body(
    nodes: Nodes, clients: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsqueue.nodes.publish_request.BODY_SECONDS", 0.2)
    _, producer = await nodes.cluster(clients=clients)
    async with soon(), RawSocket.open(producer.address) as raw:
        raw.writer.write(head_of("/publish/orders/1", size=2) + b"x")
        assert (await answer_of(raw)).status == 408


async def test_it_waits_for_the_log_and_not_for_ever(
    nodes: Nodes, clients: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsqueue.nodes.publish_request.STORE_SECONDS", 0.2)
    consumer, producer = await nodes.cluster(clients=clients)
    for connection in consumer.service.connections:
        connection.pause_reading()
    answer = await post(producer, "/publish/orders/1", b"x", "Idempotency-Key: once")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert "It is not stored after" in answer.text
    async with (
        soon(),
        nodes.client([producer], [consumer]) as everybody,
        everybody.subscribe("orders/1", start="earliest") as orders,
    ):
        for connection in consumer.service.connections:
            if connection.handler is not None and connection.handler.peer_is_node:
                connection.resume_reading()
        assert (await anext(orders)).data == b"x"
        again = await post(producer, "/publish/orders/1", b"x", "Idempotency-Key: once")
        assert again.status == 204
        assert (await post(producer, "/publish/orders/1", b"y")).status == 204
        assert (await anext(orders)).data == b"y"


async def test_the_bytes_of_a_name(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    clients[0] |= {"bytes_per_second": 100}
    _, producer = await nodes.cluster(clients=clients)
    assert (await post(producer, "/publish/orders/1", b"x" * 3000)).status == 204
    await eventually(lambda: not _connections_of_billing(producer), "it is gone")
    answer = await post(producer, "/publish/orders/1")
    assert (answer.status, answer.text) == (429, "billing has sent more than its bytes_per_second.\n")
    assert 20 <= int(answer.headers["Retry-After"]) <= 35


async def test_the_connections_of_a_name(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    clients[0] |= {"max_connections": 1}
    _, producer = await nodes.cluster(clients=clients)
    async with soon(), RawSocket.open(producer.address) as raw:
        raw.writer.write(head_of("/publish/orders/1", size=2) + b"x")
        await eventually(lambda: _connections_of_billing(producer) == 1, "it is taken")
        assert (
            ConnectionCount("publisher", "open", "http", 1) in producer.service.reporter.report().connections
        )
        answer = await post(producer, "/publish/orders/1")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert "billing has 1 connections" in answer.text


async def test_a_drain_answers_what_is_open(nodes: Nodes, clients: list[dict[str, Any]]) -> None:
    _, producer = await nodes.cluster(clients=clients)
    async with soon(), RawSocket.open(producer.address) as raw:
        raw.writer.write(head_of("/publish/orders/1", size=2) + b"x")
        await eventually(lambda: _connections_of_billing(producer) == 1, "it is taken")
        stopping = asyncio.create_task(producer.stop())
        answer = await answer_of(raw)
        assert (answer.status, answer.text) == (503, "draining.\n")
        await stopping


def _connections_of_billing(node: RunningNode) -> int:
    names = {client.name: client.connections for client in node.service.reporter.report().clients}
    return names["billing"]
