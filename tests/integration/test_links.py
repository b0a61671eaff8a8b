"""Links between producers and consumers: held messages, backpressure, reconnects, losses."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.frames import Opcode

from ..support.classic_peer import answer_of, connected, topic_of
from ..support.nodes import KEY, OTHER_KEY, Log, Nodes, RunningNode, cut
from ..support.ports import free_port
from ..support.raw_peer import RawServer, RawSocket
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

UP, DOWN = topic_of(0, 2), topic_of(1, 2)


async def test_a_consumer_that_is_down_holds_back_only_its_own_topics(nodes: Nodes) -> None:
    async with (
        soon(),
        half_a_cluster(nodes, max_held_bytes=1_000_000) as (up, port, producer),
        connected(producer.url("/produce"), KEY) as stuck,
        connected(producer.url("/produce"), KEY) as other,
        connected(up.subscribe_url(UP), KEY) as subscriber,
    ):
        await up.subscribed(UP)
        data = [f"{number:1000}" for number in range(20_000)]
        publishing = asyncio.create_task(stuck.publish(DOWN, *data))
        link = producer.links[1]
        await eventually(lambda: link.queue.blocked, "the publisher is paused")
        for number in range(50):
            await other.publish(UP, str(number))
            assert await subscriber.data(1) == [str(number)]
        assert not publishing.done()
        taken = producer.counters["messages_in"] - 50
        assert taken == link.queue.held_messages
        assert link.queue.held_bytes < 1_000_000 + 1024 * 1024

        async with RawServer(port) as server:
            down = await server.next()
            await down.accept(KEY)
            assert await data_of(down, len(data)) == data
            await publishing
            assert not link.queue.sendable
            assert producer.counters["forwarded"] == len(data) + 50
            await answer_pings_until_closed(producer, down)
            assert not link.queue.blocked
            assert link.queue.empty
        assert producer.counters["lost_in_flight"] == producer.counters["lost_held"] == 0


async def test_a_paused_publisher_is_given_up_when_it_is_gone_and_not_for_its_silence(nodes: Nodes) -> None:
    limits = {"max_held_bytes": 1000, "ping_interval_seconds": 0.1, "ping_timeout_seconds": 0.1}
    async with soon(), half_a_cluster(nodes, **limits) as (_, port, producer):
        link = producer.links[1]
        async with RawSocket.established(producer.address, "/produce", KEY) as gone:
            gone.publish(DOWN, *["x" * 1000] * 100)
            await eventually(lambda: link.queue.blocked, "it is paused")
        await eventually(lambda: not link.queue.blocked, "it is forgotten")
        await eventually(lambda: not producer.connections, "it is gone")
        held = link.queue.held_messages
        async with RawSocket.established(producer.address, "/produce", KEY) as silent:
            silent.publish(DOWN, *["x" * 1000] * 100)
            await eventually(lambda: link.queue.blocked, "it is paused")
            # These pings say that the node lives, and go unanswered.
            for _ in range(6):
                await silent.until(Opcode.PING)
            assert len(producer.connections) == 1
            down = await nodes.consumer(port=port)
            silent.send_frame(Opcode.PONG)
            await eventually(lambda: down.counters["messages_in"] == held + 100, "all is delivered")
            await eventually(lambda: not link.queue.blocked, "it is read from again")


async def test_a_peer_that_resets_at_once_costs_no_other_its_descriptor(nodes: Nodes) -> None:
    others: list[socket.socket] = []

    async with soon(), contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        await nodes.producer([f"127.0.0.1:{listener.getsockname()[1]}"])
        for _ in range(10):
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            await asyncio.sleep(0.02)
            others += socket.socketpair()
        gc.collect()
        for other in others:
            stack.enter_context(other)
            other.send(b"x")


async def test_a_consumer_that_does_not_read_pauses_the_publisher(nodes: Nodes) -> None:
    async with soon(), classic_consumer(nodes) as (producer, consumer):
        link = producer.links[0]
        data = [f"{number:10000}" for number in range(3000)]
        async with connected(producer.url("/produce"), KEY) as publisher:
            publishing = asyncio.create_task(publisher.publish("news", *data))
            await eventually(lambda: link.queue.blocked, "the publisher is paused")
            assert link.connection is not None
            assert link.connection.congested
            assert link.connection.buffered_bytes < 1024 * 1024
            assert not publishing.done()
            assert await data_of(consumer, len(data)) == data
            await publishing
        await answer_pings_until_closed(producer, consumer)


async def test_messages_that_a_broken_link_may_have_lost_are_counted(nodes: Nodes, log: Log) -> None:
    async with soon(), classic_consumer(nodes) as (producer, consumer):
        link = producer.links[0]
        async with connected(producer.url("/produce"), KEY) as publisher:
            await publisher.publish("news", *"abcde")
            ping = await consumer.until(Opcode.PING)
            confirmed = int.from_bytes(ping)
            await eventually(lambda: link.in_flight == 5, "all are sent")
            consumer.send_frame(Opcode.PONG, ping)
            await eventually(lambda: link.in_flight == 5 - confirmed, "some are confirmed")
            await publisher.publish("news", *"fgh")
            await eventually(lambda: link.in_flight == 8 - confirmed, "all are sent")
            await consumer.abort()
            await eventually(lambda: producer.counters["lost_in_flight"] == 8 - confirmed, "they are counted")
            (line,) = log.lines("link down ", logging.WARNING)
            assert f"in_flight={8 - confirmed}" in line
            assert link.in_flight == 0


async def test_nothing_is_sent_to_a_consumer_of_the_other_order(nodes: Nodes) -> None:
    """An original consumer proves itself, finds our answer wrong, and ignores messages until it closes."""
    async with soon(), RawServer() as server:
        producer = await nodes.producer([server.address])
        async with connected(producer.url("/produce"), KEY) as publisher:
            await publisher.publish("news", *map(str, range(10)))
            await eventually(lambda: producer.counters["messages_in"] == 10, "they are taken in")
            original = await server.next()
            await original.upgrade()
            original.send({"t": "h", "o": 1})
            once = None
            while once is None:
                once = (await original.packet()).get("o")
            original.send({"t": "h", "a": answer_of(once, KEY, "reversed")})
            frames = []
            while (frame := await original.frame())[0] is not Opcode.PING:
                frames.append(json.loads(frame[1])["t"])
            assert "m" not in frames
            original.send_frame(Opcode.CLOSE, (1000).to_bytes(2))
            await original.end()
        await producer.crash()
        assert producer.counters["lost_held"] == 10
        assert producer.counters["lost_in_flight"] == 0
        assert "hello_order" in producer.links[0].failures[producer.links[0].addresses[0]].reason


async def test_a_link_tries_for_ever_and_says_so_once(nodes: Nodes, log: Log) -> None:
    port = free_port()
    producer = await nodes.producer([f"127.0.0.1:{port}"], reconnect_max_seconds=0.01)
    link = producer.links[0]
    async with soon():
        await eventually(lambda: log.lines("link cannot open ", logging.WARNING), "it says so")
        async with RawServer(port) as server:
            for _ in range(20):
                await (await server.next()).abort()
        await eventually(lambda: "refused" in str(link.failures.get(link.addresses[0])), "refused again")
        lines = log.lines("link cannot open ", logging.WARNING)
        assert len(lines) <= 5
        assert "efused" in lines[0]
        await nodes.consumer(port=port)
        await producer.ready()
        assert len(log.lines("link up ")) == 1
        assert link.failures == {}


async def test_the_delay_grows_up_to_its_limit_with_jitter(nodes: Nodes) -> None:
    producer = await nodes.producer([f"127.0.0.1:{free_port()}"], reconnect_max_seconds=5.0)
    link = producer.links[0]
    for rounds, ceiling in ((0, 0.1), (1, 0.2), (2, 0.4), (5, 3.2), (6, 5.0), (1000, 5.0)):
        delays = {link.delay_seconds(rounds) for _ in range(20)}
        assert len(delays) > 1
        assert all(ceiling / 2 <= delay <= ceiling for delay in delays)


async def test_a_link_whose_peer_accepts_and_closes_backs_off(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with soon(), RawServer() as server:
        producer = await nodes.producer([server.address], reconnect_max_seconds=0.2)
        rounds: list[int] = []

        def delay(number: int) -> float:
            rounds.append(number)
            return 0.0

        monkeypatch.setattr(producer.links[0], "delay_seconds", delay)
        for _ in range(5):
            consumer = await server.next()
            await consumer.accept(KEY)
            await consumer.abort()
        await eventually(lambda: len(rounds) >= 5, "it tries again")
        assert rounds[:5] == [1, 2, 3, 4, 5]


async def test_a_link_with_another_key_goes_on_trying(nodes: Nodes, log: Log) -> None:
    consumer = await nodes.consumer(key=OTHER_KEY)
    producer = await nodes.producer([consumer])
    async with soon():
        await eventually(lambda: consumer.counters["refused_4401"] >= 3, "it tries again")
        (line,) = log.lines("link cannot open ", logging.WARNING)
        assert "4401" in line
        consumer.write_psk(KEY)
        await consumer.service.reload()
        await producer.ready()


async def test_a_consumer_that_never_answers_the_hello_is_given_up(nodes: Nodes, log: Log) -> None:
    async with soon(), RawServer() as server:
        producer = await nodes.producer([server.address], hello_seconds=0.3)
        await (await server.next()).end()
        consumer = await server.next()
        await consumer.accept(KEY)
        await producer.ready()
        assert "4408" in log.lines("link cannot open ", logging.WARNING)[0]


async def test_a_machine_that_does_not_even_answer_is_given_up(nodes: Nodes, log: Log) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        producer = await nodes.producer([f"127.0.0.1:{full.getsockname()[1]}"], hello_seconds=0.3)
        async with soon():
            await eventually(lambda: log.lines("link cannot open ", logging.WARNING), "it is given up")
            assert "no answer in time" in log.lines("link cannot open ")[0]
            await producer.stop()


async def test_messages_that_come_during_a_drain_may_pause_the_publisher(nodes: Nodes) -> None:
    port = free_port()
    producer = await nodes.producer([f"127.0.0.1:{port}"], max_held_bytes=1000, close_seconds=10.0)
    async with soon(), RawSocket.established(producer.address, "/produce", KEY) as publisher:
        draining = asyncio.create_task(producer.stop())
        assert (await publisher.close_frame())[0] == 1001
        publisher.publish("news", *["x" * 1000] * 100)
        publisher.send_frame(Opcode.CLOSE, (1001).to_bytes(2))
        publisher.writer.write_eof()
        await eventually(lambda: producer.links[0].queue.blocked, "it is paused")
        consumer = await nodes.consumer(port=port)
        await draining
        await eventually(lambda: consumer.counters["messages_in"] == 100, "all have come")


async def test_nothing_is_sent_into_a_connection_that_has_just_broken(nodes: Nodes) -> None:
    async with soon(), classic_consumer(nodes) as (producer, _):
        link = producer.links[0]
        connection = link.connection
        assert connection is not None
        cut(connection)
        assert link.connection is connection
        assert not link.open
        assert not connection.send_frames(b"\x81\x80\0\0\0\0")
        await eventually(lambda: link.connection is None, "it is down")
        assert link.in_flight == 0


async def test_a_link_stops_while_it_connects(nodes: Nodes) -> None:
    async with soon(), RawServer() as server:
        producer = await nodes.producer([server.address])
        other = await server.next()
        await producer.stop()
        await other.end()
        await producer.links[0].stop()


async def test_a_link_does_not_connect_again_after_a_stop_that_was_cancelled(nodes: Nodes) -> None:
    async with soon(), RawServer() as server:
        producer = await nodes.producer([server.address])
        consumer = await server.next()
        await consumer.accept(KEY)
        link = producer.links[0]
        await eventually(lambda: link.connection is not None, "it is up")
        stopping = asyncio.create_task(link.stop())
        await consumer.close_frame()
        stopping.cancel()
        await consumer.end()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await server.next()


async def test_a_consumer_that_sends_messages_is_ignored(nodes: Nodes) -> None:
    async with soon(), classic_consumer(nodes) as (producer, consumer):
        consumer.publish("news", "unexpected")
        consumer.send_frame(Opcode.PING, b"done")
        assert await consumer.until(Opcode.PONG) == b"done"
        assert not producer.service.node.not_ready()
        assert producer.counters["messages_in"] == 0


@contextlib.asynccontextmanager
async def classic_consumer(nodes: Nodes) -> AsyncIterator[tuple[RunningNode, RawSocket]]:
    """Start a producer, and be its consumer."""
    async with RawServer() as server:
        producer = await nodes.producer([server.address])
        consumer = await server.next()
        await consumer.accept(KEY)
        await producer.ready()
        yield producer, consumer


@contextlib.asynccontextmanager
async def half_a_cluster(
    nodes: Nodes, **settings: Any
) -> AsyncIterator[tuple[RunningNode, int, RunningNode]]:
    """Start a producer of two consumers, and the first of these; return the port of the second too."""
    up, port = await nodes.consumer(), free_port()
    producer = await nodes.producer([up, f"127.0.0.1:{port}"], **settings)
    await eventually(lambda: producer.links[0].connection, "one link is up")
    yield up, port, producer


async def data_of(raw: RawSocket, count: int) -> list[str]:
    """Return the data of the next messages; pings are answered."""
    data: list[str] = []
    while len(data) < count:
        opcode, payload = await raw.frame()
        if opcode is Opcode.PING:
            raw.send_frame(Opcode.PONG, payload)
        else:
            data.append(json.loads(payload)["d"])
    return data


async def answer_pings_until_closed(producer: RunningNode, consumer: RawSocket) -> None:
    """Let a producer drain to a consumer by hand."""
    stopping = asyncio.create_task(producer.stop())
    while True:
        opcode, payload = await consumer.frame()
        if opcode is Opcode.PING:
            consumer.send_frame(Opcode.PONG, payload)
        elif opcode is Opcode.CLOSE:
            consumer.send_frame(Opcode.CLOSE, payload)
            break
    await consumer.writer.drain()
    await consumer.abort()
    await stopping
