"""Peers that break the protocol: the node says why, closes the connection, and serves all others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode

from ..support.classic_peer import Peer, answer_of, connected, message_of
from ..support.examples import examples
from ..support.nodes import KEY, OTHER_KEY, Log, Nodes, RunningNode
from ..support.raw_peer import RawServer, RawSocket
from ..support.strategies import cut
from ..support.waiting import eventually, soon
from ..support.wire import Raw

pytestmark = pytest.mark.anyio

ENDPOINTS = ["/producer", "/subscribe/news", "/produce"]
at_every_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS)

LIMITS: dict[str, Any] = {"max_message_bytes": 4096, "max_topic_bytes": 32}

Attack = Callable[[RawSocket, int], None]


def texts(*payloads: bytes) -> Attack:
    def attack(raw: RawSocket, once: int) -> None:
        for payload in payloads:
            raw.send_frame(Opcode.TEXT, payload)

    return attack


def answers(*keys: str) -> Attack:
    def attack(raw: RawSocket, once: int) -> None:
        for key in keys:
            raw.send({"t": "h", "a": answer_of(once, key)})

    return attack


EARLY: dict[str, tuple[Attack, int, str]] = {
    "another key": (answers(OTHER_KEY), 4401, "wrong answer: the pre-shared keys differ"),
    "data before hello": (texts(message_of("news", "x").encode()), 4402, "data before the hello was done"),
    "subscribe": (texts(b'{"t":"s","s":"news"}'), 4409, "this endpoint does not take that packet"),
    "oversize": (texts(b"x" * 4097), 1009, "4097 bytes"),
}

LATE: dict[str, tuple[Attack, int, str]] = {
    "no JSON": (texts(b"hello"), 4400, "not a valid packet: "),
    "second answer": (answers(KEY), 4403, "a second answer in the hello"),
    "oversize": EARLY["oversize"],
    "long topic": (texts(message_of("ñ" * 17, "").encode()), 4410, "the topic is too long: at most 32 bytes"),
}


@at_every_endpoint
@pytest.mark.parametrize("name", EARLY)
async def test_a_bad_hello_is_refused(nodes: Nodes, log: Log, endpoint: str, name: str) -> None:
    attack, code, reason = EARLY[name]
    async with soon(), Bystanders.of(nodes, **LIMITS) as bystanders:
        node = bystanders.node(endpoint)
        async with RawSocket.opened(node.address, endpoint) as raw:
            once = (await raw.packet())["o"]
            attack(raw, once)
            await closed_with(raw, code, reason)
        await eventually(lambda: node.counters[f"refused_{code}"] == 1, "it is counted")
        assert [reason in line for line in log.lines("hello refused ", logging.WARNING)] == [True]
        assert log.lines("connection closed ", logging.WARNING) == []
        await bystanders.are_served()


@at_every_endpoint
@pytest.mark.parametrize("name", LATE)
async def test_a_bad_packet_ends_the_connection(nodes: Nodes, log: Log, endpoint: str, name: str) -> None:
    attack, code, reason = LATE[name]
    if endpoint == "/producer" and name in ("oversize", "long topic"):
        pytest.skip("a producer passes on what others send")
    async with soon(), Bystanders.of(nodes, **LIMITS) as bystanders:
        node = bystanders.node(endpoint)
        async with RawSocket.opened(node.address, endpoint) as raw:
            once = (await raw.packet())["o"]
            raw.send({"t": "h", "o": 7})
            raw.send({"t": "h", "a": answer_of(once, KEY)})
            assert (await raw.packet())["a"] == answer_of(7, KEY)
            attack(raw, once)
            await closed_with(raw, code, reason)
        await eventually(lambda: log.lines("connection closed ", logging.WARNING), "it is logged")
        assert [reason in line for line in log.lines("connection closed ", logging.WARNING)] == [True]
        assert not [name for name in node.counters if name.startswith("refused_")]
        await bystanders.are_served()


DROPPED: dict[str, bytes] = {
    "too long": message_of("news", "x" * 5000).encode(),
    "one byte too long": message_of("news", "x" * (4097 - len(message_of("news", "")))).encode(),
    "long topic": message_of("ñ" * 17, "").encode(),
    "lone surrogate": b'{"t":"m","d":"\\ud83d","s":"news"}',
    "lone surrogate in the topic": b'{"s":"\\udc00","t":"m","d":"x"}',
    "no text": b'{"t":"m","d":7,"s":"news"}',
    "no topic": b'{"t":"m","d":"x"}',
}


@pytest.mark.parametrize("name", DROPPED)
@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_classic_producer_goes_on_when_a_client_of_it_sends_a_bad_message(
    nodes: Nodes, log: Log, name: str, pieces: int
) -> None:
    """An original producer passes on what it gets, and never comes back when it is closed."""
    async with soon(), Bystanders.of(nodes, **LIMITS) as bystanders:
        consumer = bystanders.consumer
        client = nodes.client([bystanders.producer], [consumer])
        async with RawSocket.established(consumer.address, "/producer", KEY) as raw, client:
            subscription = client.subscribe("news")
            async with subscription as messages:
                texts_of = [
                    message_of("news", "first").encode(),
                    DROPPED[name],
                    message_of("news", "last").encode(),
                ]
                stream = b"".join(Raw(text, key=b"abcd").render(masked=True) for text in texts_of)
                size = -(-len(stream) // pieces)
                for begin in range(0, len(stream), size):
                    raw.writer.write(stream[begin : begin + size])
                    await raw.writer.drain()
                    await asyncio.sleep(0.01)
                raw.send_frame(Opcode.PING, b"still here")
                assert await raw.until(Opcode.PONG) == b"still here"
                assert [(await anext(messages)).data for _ in range(2)] == ["first", "last"]
        assert consumer.counters["dropped_invalid"] == 1
        assert len(log.lines("message dropped ", logging.WARNING)) == 1
        await bystanders.are_served()


async def test_a_subscriber_may_not_publish(nodes: Nodes, log: Log) -> None:
    async with soon(), Bystanders.of(nodes) as bystanders:
        async with RawSocket.established(bystanders.consumer.address, "/subscribe/news", KEY) as raw:
            raw.publish("news", "not from here")
            await closed_with(raw, 4409, "publish at a producer's /produce")
        await eventually(lambda: log.lines("connection closed ", logging.WARNING), "it is logged")
        await bystanders.are_served()


@at_every_endpoint
async def test_a_hello_has_a_deadline(nodes: Nodes, log: Log, endpoint: str) -> None:
    async with soon(), Bystanders.of(nodes, hello_seconds=1.0) as bystanders:
        node = bystanders.node(endpoint)
        async with RawSocket.opened(node.address, endpoint) as raw:
            raw.send({"t": "h", "o": 1})
            # Pings do not prolong it.
            with contextlib.suppress(ConnectionError):
                while not node.counters["refused_4408"]:
                    raw.send_frame(Opcode.PING)
                    await raw.writer.drain()
                    await asyncio.sleep(0.1)
            await closed_with(raw, 4408, "the hello took too long")
        await eventually(lambda: node.counters["refused_4408"] == 1, "it is counted")
        assert len(log.lines("hello refused ", logging.WARNING)) == 1
        await bystanders.are_served()


@at_every_endpoint
async def test_a_peer_that_goes_away_in_the_hello_is_counted(nodes: Nodes, endpoint: str) -> None:
    async with soon(), Bystanders.of(nodes) as bystanders:
        node = bystanders.node(endpoint)
        async with RawSocket.opened(node.address, endpoint):
            pass
        await eventually(lambda: node.counters["refused_by_peer"] == 1, "it is counted")
        await bystanders.are_served()


PIECES = st.lists(st.binary(max_size=64), max_size=8)


def any_frame(opcode: int, fin: bool, payload: bytes, masked: bool) -> bytes:
    """Return a frame that may break any rule; a mask of zeros changes nothing."""
    mask_bit = 0x80 if masked else 0
    size = len(payload)
    length = bytes([mask_bit | size]) if size < 126 else bytes([mask_bit | 126]) + size.to_bytes(2)
    return bytes([0x80 * fin | opcode]) + length + bytes(4 if masked else 0) + payload


FRAMES = st.builds(
    any_frame,
    st.one_of(st.sampled_from(Opcode), st.integers(0, 127)),
    st.booleans(),
    st.one_of(
        st.binary(max_size=130),
        st.sampled_from([b"", b'{"t":"h","o":1}', b'{"t":"h","a":""}', b'{"t":"m","d":"x","s":"other"}']),
        st.sampled_from([b'{"t":"m","d":"\\ud800","s":"\\udfff"}', b"\x03\xe8bye", b"\x00", b"\xff" * 5000]),
    ),
    st.sampled_from([True, True, True, False]),
)
AFTER_UPGRADE = st.lists(st.one_of(FRAMES, FRAMES, st.binary(max_size=16)), max_size=8)
REQUEST_LINES = (
    b"GET |POST |/ HTTP/1.1|/producer HTTP/1.1|/subscribe/%ff HTTP/1.1|/subscribe/%00%ed%a0%80 HTTP/1.0"
)
REQUEST_LINES += b"|/subscribe/\xff HTTP/1.1|/produce?x HTTP/1.1|Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
REQUEST_LINES += b"|Sec-WebSocket-Version: 13|Sec-WebSocket-Extensions: permessage-deflate|Host: x"
RESPONSE_LINES = b"HTTP/1.1 101 Switching Protocols|HTTP/1.1 200 OK|HTTP/1.1 503 \xff|HTTP/1.1 999999 x"
RESPONSE_LINES += b"|Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=|Content-Length: -5"
RESPONSE_LINES += b"|Transfer-Encoding: chunked|5\r\nhello\r\n0\r\n"
COMMON_LINES = b"|Upgrade: websocket|Connection: Upgrade|Content-Length: 5|"


def head_of(lines: bytes) -> st.SearchStrategy[list[bytes]]:
    """Return pieces of the head of a request or a response."""
    known = [line if line.endswith(b" ") else line + b"\r\n" for line in (lines + COMMON_LINES).split(b"|")]
    return st.lists(
        st.one_of(st.binary(max_size=64), st.sampled_from([*known, b"\n", b"x" * 9000])), max_size=12
    )


REQUESTS, RESPONSES = head_of(REQUEST_LINES), head_of(RESPONSE_LINES)
CUTS = st.lists(st.integers(0, 400), max_size=4)


@at_every_endpoint
def test_any_bytes_before_the_upgrade(tmp_path: Path, log: Log, endpoint: str) -> None:
    attack_with_any_bytes(tmp_path, log, endpoint, REQUESTS, RawSocket.open)


@at_every_endpoint
def test_any_bytes_after_the_upgrade(tmp_path: Path, log: Log, endpoint: str) -> None:
    attack_with_any_bytes(
        tmp_path, log, endpoint, AFTER_UPGRADE, lambda address: RawSocket.opened(address, endpoint)
    )


@at_every_endpoint
def test_any_bytes_after_the_hello(tmp_path: Path, log: Log, endpoint: str) -> None:
    attack_with_any_bytes(
        tmp_path, log, endpoint, AFTER_UPGRADE, lambda address: RawSocket.established(address, endpoint, KEY)
    )


@pytest.mark.parametrize("stage", ["before the upgrade", "after the upgrade", "after the hello"])
def test_any_bytes_from_a_consumer(tmp_path: Path, log: Log, stage: str) -> None:
    with loop_that_fails() as runner:
        server, nodes = RawServer(), Nodes(tmp_path)

        async def begin_link() -> RunningNode:
            await server.__aenter__()
            return await nodes.producer([server.address], reconnect_max_seconds=0.01, **LIMITS)

        async def attack_link(chunks: list[bytes]) -> None:
            async with soon():
                raw = await server.next()
                if stage == "after the upgrade":
                    await raw.upgrade()
                elif stage == "after the hello":
                    await raw.accept(KEY)
                await write_and_end(raw, chunks)
                await raw.abort()

        async def end_link() -> None:
            async with soon():
                await (await server.next()).accept(KEY)
                await producer.ready()
                await server.__aexit__()
            await nodes.stop()

        producer = runner.run(begin_link())

        @examples(60)
        @given(st.one_of(RESPONSES if stage == "before the upgrade" else AFTER_UPGRADE, PIECES), CUTS)
        def attack(chunks: list[bytes], cuts: list[int]) -> None:
            runner.run(attack_link(cut(b"".join(chunks), cuts)))

        attack()
        runner.run(end_link())


def attack_with_any_bytes(
    directory: Path,
    log: Log,
    endpoint: str,
    chunks_of_bytes: st.SearchStrategy[list[bytes]],
    connect: Callable[[str], contextlib.AbstractAsyncContextManager[RawSocket]],
) -> None:
    with loop_that_fails() as runner:
        bystanders = runner.run(Bystanders.start(Nodes(directory), **LIMITS))

        @examples(60)
        @given(st.one_of(chunks_of_bytes, PIECES), CUTS)
        def attack(chunks: list[bytes], cuts: list[int]) -> None:
            runner.run(attack_once(bystanders, endpoint, connect, cut(b"".join(chunks), cuts)))

        try:
            attack()
        finally:
            runner.run(bystanders.stop())


async def attack_once(
    bystanders: Bystanders,
    endpoint: str,
    connect: Callable[[str], contextlib.AbstractAsyncContextManager[RawSocket]],
    chunks: list[bytes],
) -> None:
    async with soon():
        async with connect(bystanders.node(endpoint).address) as raw:
            await write_and_end(raw, chunks)
        await bystanders.are_served()


async def write_and_end(raw: RawSocket, chunks: list[bytes]) -> None:
    """Write all chunks, end our stream, and wait for the end of the other."""
    with contextlib.suppress(ConnectionError):
        for chunk in chunks:
            raw.writer.write(chunk)
            await raw.writer.drain()
            await asyncio.sleep(0)
        if raw.writer.can_write_eof():
            raw.writer.write_eof()
        await raw.end()


@contextlib.contextmanager
def loop_that_fails() -> Iterator[asyncio.Runner]:
    """Run an event loop, and fail if anything raised into it."""
    problems: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(lambda _loop, context: problems.append(context))
        yield runner
    assert problems == []


class Bystanders:
    """Hold a cluster with a publisher and a subscriber, which hostile peers must not disturb."""

    def __init__(self, nodes: Nodes, consumer: RunningNode, producer: RunningNode) -> None:
        self.nodes, self.consumer, self.producer = nodes, consumer, producer
        self.stack = contextlib.AsyncExitStack()
        self._count = 0
        self._subscriber: Peer
        self._publisher: Peer

    @classmethod
    async def start(cls, nodes: Nodes, **limits: Any) -> Bystanders:
        made = cls(nodes, *await nodes.cluster(**limits))
        stack = made.stack
        made._subscriber = await stack.enter_async_context(
            connected(made.consumer.subscribe_url("bystanders"), KEY)
        )
        made._publisher = await stack.enter_async_context(connected(made.producer.url("/produce"), KEY))
        await made.consumer.subscribed("bystanders")
        return made

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, nodes: Nodes, **limits: Any) -> AsyncIterator[Bystanders]:
        made = await cls.start(nodes, **limits)
        try:
            yield made
        finally:
            await made.stack.aclose()

    async def stop(self) -> None:
        await self.stack.aclose()
        await self.nodes.stop()

    def node(self, endpoint: str) -> RunningNode:
        return self.producer if endpoint == "/produce" else self.consumer

    async def are_served(self) -> None:
        """Publish a message on a connection that was there before, and receive it."""
        self._count += 1
        await self._publisher.publish("bystanders", str(self._count))
        assert await self._subscriber.data(1) == [str(self._count)]


async def closed_with(raw: RawSocket, code: int, reason: str) -> None:
    found, text = await raw.close_frame()
    assert found == code
    assert reason in text
    await raw.end()
