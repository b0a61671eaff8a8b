"""The life of a node: pages, limits, keepalive, drain, reload, listeners."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from wsqueue.errors import ConfigError, ListenError, StorageError
from wsqueue.log.snapshot import SNAPSHOT_NAME
from wsqueue.nodes import connections
from wsqueue.nodes.consumer import Consumer
from wsqueue.nodes.producer import Producer
from wsqueue.nodes.service import Service, run

from ..support.classic_peer import RefusedError, connected, topic_of
from ..support.messages import append_one, packed
from ..support.nodes import KEY, OTHER_KEY, Log, Nodes, RunningNode
from ..support.ports import free_port
from ..support.raw_peer import RawServer, RawSocket, http_get
from ..support.system_clock import SystemClock
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio


async def test_pages_of_a_consumer(nodes: Nodes) -> None:
    consumer = await nodes.consumer(max_topic_bytes=8)
    async with soon():
        assert await http_get(consumer.address, "/healthz") == (200, "ok\n")
        assert await http_get(consumer.address, "/readyz?verbose") == (200, "ready\n")
        assert await http_get(consumer.address, "/nothing") == (
            404,
            "Not found: this consumer has /producer and /subscribe/TOPIC, and GET /events/TOPIC.\n",
        )
        assert (await http_get(consumer.address, "/subscribe"))[0] == 426
        assert await http_get(consumer.address, "/subscribe/%ff") == (
            400,
            "The topic is not percent-encoded UTF-8.\n",
        )
        too_long = (400, "The topic has more than 8 bytes.\n")
        assert await http_get(consumer.address, "/subscribe/123456789") == too_long
        assert await http_get(consumer.address, "/subscribe/%C3%B1%C3%B1%C3%B1%C3%B1x") == too_long
        assert (await http_get(consumer.address, "/subscribe/12345678"))[0] == 426
        assert (await http_get(consumer.address, "/producer"))[0] == 426


async def test_pages_of_a_producer(nodes: Nodes) -> None:
    _, producer = await nodes.cluster()
    async with soon():
        assert await http_get(producer.address, "/healthz") == (200, "ok\n")
        assert await http_get(producer.address, "/readyz") == (200, "ready\n")
        assert await http_get(producer.address, "/producer") == (
            404,
            "Not found: this producer has /produce and /publish/TOPIC.\n",
        )
        assert (await http_get(producer.address, "/produce"))[0] == 426
        assert not [name for name in producer.counters if name.startswith("refused_")]


async def test_a_producer_is_ready_when_all_its_links_are_up(nodes: Nodes) -> None:
    first = await nodes.consumer()
    down = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    producer = await nodes.producer([down[0], first, down[1]])
    async with soon():
        await eventually(lambda: producer.links[1].connection, "one link is up")
        assert await http_get(producer.address, "/readyz") == (
            503,
            f"not ready: no link to {down[0]}/producer, {down[1]}/producer\n",
        )
        assert (await http_get(producer.address, "/healthz"))[0] == 200
        for address in down:
            await nodes.consumer(port=int(address.rpartition(":")[2]))
        await producer.ready()
        assert (await http_get(producer.address, "/readyz"))[0] == 200


async def test_a_request_that_the_page_of_a_peer_gets_with_a_query(nodes: Nodes) -> None:
    consumer = await nodes.consumer()
    async with soon(), connected(consumer.url("/subscribe/news?x=1"), KEY):
        await consumer.subscribed("news")


FULL = (503, "This node has all the connections that it may have.\n")


async def test_connections_are_limited_and_health_still_answers(nodes: Nodes, log: Log) -> None:
    consumer = await nodes.consumer(max_connections=2)
    async with (
        soon(),
        connected(consumer.url("/subscribe/news"), KEY),
        connected(consumer.url("/subscribe/news"), KEY),
    ):
        for number in (1, 2, 3):
            assert await http_get(consumer.address, "/subscribe/news") == FULL
            assert consumer.counters["connections_refused"] == number
        assert (await http_get(consumer.address, "/healthz"))[0] == 200
        assert (await http_get(consumer.address, "/readyz"))[0] == 200
        # Producers have places of their own.
        async with connected(consumer.url("/producer"), KEY):
            pass
    await eventually(lambda: not consumer.connections, "they are gone")
    async with soon(), connected(consumer.url("/subscribe/news"), KEY):
        pass


async def test_links_are_limited(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINK_CONNECTIONS", 1)
    consumer = await nodes.consumer()
    async with soon(), connected(consumer.url("/producer"), KEY):
        assert await http_get(consumer.address, "/producer") == FULL
        async with connected(consumer.url("/subscribe/news"), KEY):
            pass


async def test_the_last_place_is_taken_during_a_hello(nodes: Nodes) -> None:
    consumer = await nodes.consumer(max_connections=1)
    async with (
        soon(),
        RawSocket.opened(consumer.address, "/subscribe/news") as late,
        connected(consumer.url("/subscribe/news"), KEY),
    ):
        await late.hello(KEY)
        code, reason = await late.close_frame()
        assert (code, reason) == (1013, "this node has all the connections that it may have")
        assert consumer.subscribers("news") == 1
    await eventually(lambda: consumer.counters["refused_1013"] == 1, "it is counted")


STRANGERS = [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"\x16"]


@pytest.mark.parametrize("socket", ["127.0.0.1:0", "unix"])
@pytest.mark.parametrize("begin", STRANGERS, ids=["silent", "half a request", "half a record"])
async def test_strangers_keep_nobody_out(nodes: Nodes, log: Log, begin: bytes, socket: str) -> None:
    """Far more of them than there are places come, and stay until they are dropped."""
    listen = f"unix:{nodes.directory}/node.sock" if socket == "unix" else socket
    consumer = await nodes.consumer(
        listen=["127.0.0.1:0", listen] if socket == "unix" else [listen],
        max_connections=5,
        max_strangers=20,
        hello_seconds=60.0,
    )
    address = str(consumer.service.addresses[-1])
    async with soon(), contextlib.AsyncExitStack() as stack:
        before = await stack.enter_async_context(RawSocket.established(address, "/subscribe/news", KEY))
        link = await stack.enter_async_context(RawSocket.established(address, "/producer", KEY))
        for _ in range(100):
            stranger = await stack.enter_async_context(RawSocket.open(address))
            stranger.writer.write(begin)
        await eventually(lambda: consumer.counters["strangers_dropped"] >= 80, "the pool is full")
        assert len(consumer.connections) <= 22
        # Each comes in on one of a few attempts at most: one place of twenty is drawn for each that comes.
        for path in ("/subscribe/news", "/producer"):
            await stack.enter_async_context(RawSocket.established(address, path, KEY))
        async with RawSocket.open(address) as probe:
            probe.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await probe.page() == (200, "ok\n")
        link.publish("news", "still here")
        packet = await before.packet()
        assert packet["d"] == "still here"
        (warning,) = [
            warning
            for warning in consumer.service.reporter.report().warnings
            if warning.code == "strangers_dropped"
        ]
        assert "had not proved themselves were dropped in the last minute" in warning.text
        (line,) = log.lines("strangers dropped ", logging.WARNING)
        assert "count=1 max_strangers=20" in line


async def test_a_client_that_does_not_close_after_a_page_is_dropped(nodes: Nodes) -> None:
    consumer = await nodes.consumer(close_seconds=0.2)
    async with soon(), RawSocket.open(consumer.address) as raw:
        raw.writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await raw.page())[0] == 200
        await eventually(lambda: not consumer.connections, "it is dropped")


async def test_a_silent_peer_is_pinged_and_given_up(nodes: Nodes, log: Log) -> None:
    consumer = await nodes.consumer(ping_interval_seconds=0.1, ping_timeout_seconds=0.1)
    async with (
        soon(),
        connected(consumer.url("/subscribe/news"), KEY) as lively,
        RawSocket.established(consumer.address, "/subscribe/news", KEY) as silent,
    ):
        await consumer.subscribed("news", 2)
        assert await silent.until(Opcode.PING) == b""
        await silent.end()
        await consumer.subscribed("news", 1)
        assert lively.socket.close_code is None
        (line,) = log.lines("connection closed ", logging.WARNING)
        assert "4411" in line


async def test_a_peer_that_answers_pings_or_talks_is_kept(nodes: Nodes) -> None:
    consumer = await nodes.consumer(ping_interval_seconds=0.1, ping_timeout_seconds=0.3)
    async with (
        soon(),
        RawSocket.established(consumer.address, "/producer", KEY) as answering,
        RawSocket.established(consumer.address, "/producer", KEY) as talking,
    ):
        for _ in range(4):
            answering.send_frame(Opcode.PONG, await answering.until(Opcode.PING))
            await talking.until(Opcode.PING)
            talking.publish("news", "still there")
        assert len(consumer.connections) == 2


async def test_silence_is_never_longer_than_the_interval(nodes: Nodes) -> None:
    """A firewall forgets a connection after a while, however long a pong may take."""
    consumer = await nodes.consumer(ping_interval_seconds=0.1, ping_timeout_seconds=60.0)
    async with asyncio.timeout(5), RawSocket.established(consumer.address, "/producer", KEY) as raw:
        for _ in range(3):
            raw.send_frame(Opcode.PONG, await raw.until(Opcode.PING))


async def test_a_drain_delivers_all_that_was_taken_in(nodes: Nodes, log: Log) -> None:
    consumer, producer = await nodes.cluster()
    data = [str(number) for number in range(2000)]
    async with (
        soon(),
        connected(consumer.url("/subscribe/news"), KEY) as subscriber,
        connected(producer.url("/produce"), KEY) as publisher,
    ):
        await consumer.subscribed("news")
        reading = asyncio.create_task(subscriber.data(len(data)))
        await publisher.publish("news", *data)
        await producer.stop()
        await consumer.stop()
        assert await reading == data
        for peer in (publisher, subscriber):
            with pytest.raises(ConnectionClosed):
                await peer.receive()
            assert (peer.socket.close_code, peer.socket.close_reason) == (1001, "draining")
        assert producer.counters["lost_held"] == producer.counters["lost_in_flight"] == 0
        assert log.lines("drain cut short") == []
        assert len(log.lines("stopped ")) == 2


async def test_a_drain_closes_connections_that_send_messages_first(nodes: Nodes) -> None:
    consumer = await nodes.consumer(close_seconds=10.0)
    async with (
        soon(),
        RawSocket.established(consumer.address, "/producer", KEY) as producer,
        RawSocket.established(consumer.address, "/subscribe/news", KEY) as subscriber,
    ):
        await consumer.subscribed("news")
        draining = asyncio.create_task(consumer.stop())
        assert await producer.close_frame() == (1001, "draining")
        # What it sends before it answers the close frame is still delivered.
        producer.publish("news", "the last one")
        assert (await subscriber.packet())["d"] == "the last one"
        producer.send_frame(Opcode.CLOSE, (1001).to_bytes(2))
        producer.writer.write_eof()
        assert await subscriber.close_frame() == (1001, "draining")
        assert not draining.done()
        subscriber.send_frame(Opcode.CLOSE, (1001).to_bytes(2))
        subscriber.writer.write_eof()
        await draining


async def test_a_drain_ends_although_no_peer_answers(nodes: Nodes, log: Log) -> None:
    consumer = await nodes.consumer(close_seconds=60.0, drain_seconds=0.5)
    async with (
        soon(),
        RawSocket.established(consumer.address, "/producer", KEY) as producer,
        RawSocket.established(consumer.address, "/subscribe/news", KEY) as subscriber,
        RawSocket.open(consumer.address) as idle,
    ):
        await eventually(lambda: len(consumer.connections) == 3, "all are accepted")
        await consumer.stop()
        assert len(log.lines("drain cut short ", logging.WARNING)) == 1
        for raw in (producer, subscriber, idle):
            await raw.end()


async def test_a_drain_ends_although_a_consumer_is_stuck(nodes: Nodes, log: Log) -> None:
    """The whole stop takes `drain_seconds` at most, because systemd kills the process then."""
    async with soon(), RawServer() as server:
        producer = await nodes.producer([server.address], close_seconds=60.0, drain_seconds=0.5)
        stuck = await server.next()
        await stuck.accept(KEY)
        await producer.ready()
        async with connected(producer.url("/produce"), KEY) as publisher:
            await publisher.publish("news", "1")
            await eventually(lambda: producer.counters["forwarded"] == 1, "it is forwarded")
            stopping = asyncio.create_task(producer.service.drain())
            try:
                await asyncio.wait([stopping], timeout=5.0)
                assert stopping.done()
            finally:
                await stuck.abort()
                await stopping


async def test_a_drain_waits_for_a_consumer_that_comes_back(nodes: Nodes) -> None:
    consumer = await nodes.consumer(port=free_port())
    producer = await nodes.producer([consumer])
    await producer.ready()
    await consumer.crash()
    async with soon(), connected(producer.url("/produce"), KEY) as publisher:
        await publisher.publish("news", "1", "2", "3")
        await eventually(lambda: producer.counters["messages_in"] == 3, "they are taken in")
        draining = asyncio.create_task(producer.stop())
        await eventually(lambda: not producer.connections, "the publisher is gone")
        assert not draining.done()
        await consumer.restart()
        await draining
        assert producer.counters["forwarded"] == consumer.counters["messages_in"] == 3
        assert producer.counters["lost_held"] == 0


async def test_a_node_that_drains_is_not_ready(nodes: Nodes) -> None:
    producer = await nodes.producer([f"127.0.0.1:{free_port()}"], drain_seconds=60.0)
    async with soon(), RawSocket.open(producer.address) as probe, running(producer):
        async with connected(producer.url("/produce"), KEY) as publisher:
            await publisher.publish("news", "1")
            await eventually(lambda: producer.counters["messages_in"] == 1, "it is taken in")
            producer.service.stop()
            await eventually(lambda: publisher.socket.close_code == 1001, "it is closed")
        probe.writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert await probe.page() == (503, "not ready: draining\n")
        with pytest.raises(OSError, match=r"refused|Connect"):
            await http_get("{}:{}".format(*probe.writer.get_extra_info("peername")), "/healthz")
        producer.service.stop()


async def test_a_second_stop_cuts_the_drain_short(nodes: Nodes, log: Log) -> None:
    producer = await nodes.producer([f"127.0.0.1:{free_port()}"], drain_seconds=60.0)
    async with soon(), running(producer), connected(producer.url("/produce"), KEY) as publisher:
        await publisher.publish("news", "1")
        await eventually(lambda: producer.counters["messages_in"] == 1, "it is taken in")
        producer.service.stop()
        await eventually(lambda: log.lines("draining "), "it drains")
        producer.service.stop()
    assert len(log.lines("drain cut short ", logging.WARNING)) == 1
    (line,) = log.lines("counters ")
    assert "lost_held=1" in line
    assert producer.counters["lost_held"] == 1


async def test_signals(nodes: Nodes, log: Log) -> None:
    consumer = nodes.made(Consumer)
    running_service = asyncio.create_task(consumer.service.run())
    async with soon():
        await eventually(lambda: log.lines("started "), "it has started")
        os.kill(os.getpid(), signal.SIGUSR1)
        await eventually(lambda: log.lines("counters "), "it logs its counters")
        for number in (1, 2):
            os.kill(os.getpid(), signal.SIGHUP)
            await eventually(lambda: len(log.lines("reloaded ")) == number, "it reloads")  # noqa: B023
        os.kill(os.getpid(), signal.SIGTERM)
        await running_service
    assert len(log.lines("stopped ")) == 1
    assert consumer.service.addresses == []


async def test_an_exception_that_nothing_caught_is_logged(nodes: Nodes, log: Log) -> None:
    consumer = nodes.made(Consumer)
    async with soon(), running(consumer):
        await eventually(lambda: consumer.service.addresses, "it has started")
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: 1 / 0)
        await eventually(lambda: log.lines("internal error"), "it is logged")
        assert (await http_get(consumer.address, "/healthz"))[0] == 200
        consumer.service.stop()
    (record,) = [record for record in log.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    log.records.clear()


async def test_a_damaged_log_ends_the_node_and_the_next_start_begins_anew(nodes: Nodes, log: Log) -> None:
    directory = nodes.directory / "log"
    settings: dict[str, Any] = {"retention": {"mode": "sqlite", "directory": str(directory)}}
    address = f"127.0.0.1:{(port := free_port())}"
    consumer = nodes.made(Consumer, port, **settings)
    producer = await nodes.producer([address])
    async with soon(), nodes.client([producer], [address]) as client:
        async with running(consumer):
            await client.publish("news", "before")
            consumer.service.stop()
        with contextlib.closing(sqlite3.connect(directory / "archive.sqlite")) as other, other:
            # As after a crash, on a disk that lies.
            other.execute("UPDATE archive SET clean = 0")
            other.execute("UPDATE record SET count = 0")
        consumer.service = Service(consumer.file, Consumer)
        with pytest.raises(StorageError, match="archive is damaged, and is set aside: its records do not"):
            await consumer.service.run()
        assert len(list(directory.glob("archive.sqlite.corrupt-*Z"))) == 1
        consumer.service = Service(consumer.file, Consumer)
        async with running(consumer):
            await client.publish("news", "after")
            async with client.subscribe("news", start="earliest", follow=False) as messages:
                assert [message.data async for message in messages] == ["after"]
            consumer.service.stop()
    assert len(log.lines("archive set aside ", logging.ERROR)) == 1
    log.records.clear()


@pytest.mark.parametrize("set_by", [86_400.0, -86_400.0])
async def test_a_clock_that_is_set_changes_neither_times_nor_what_is_kept(
    nodes: Nodes, log: Log, monkeypatch: pytest.MonkeyPatch, set_by: float
) -> None:
    system = SystemClock(monkeypatch)
    consumer, producer = await nodes.cluster()

    def ahead() -> float:
        log_status = consumer.service.reporter.report().log
        assert log_status is not None
        return log_status.clock_seconds

    async with soon(), nodes.client([producer], [consumer]) as client:
        await client.publish("news", "before")
        system.set_by = set_by
        await eventually(lambda: abs(ahead() + set_by) < 10, "the report says so")
        await client.publish("news", "after")
        logs = consumer.consumer.logs
        before, after = await logs.read(logs.topic("news"), 0, 2**20)
        assert 0 <= after.time - before.time < 60
        system.set_by = 0.0
        await eventually(lambda: log.lines("clock agrees"), "it is over")
    assert len(log.lines("system clock was set ahead_seconds=", logging.WARNING)) == 2


async def test_a_snapshot_is_written_though_the_drain_is_cut_short(nodes: Nodes, log: Log) -> None:
    class SlowToClose(Consumer):
        async def drain(self) -> None:
            await asyncio.Event().wait()

    settings: dict[str, Any] = {"retention": {"directory": str(nodes.directory / "log")}}
    consumer = nodes.made(SlowToClose, free_port(), drain_seconds=0.05, **settings)
    async with soon():
        await consumer.start()
        consumer.consumer.logs.append([append_one("news", packed("kept"))])
        await consumer.service.drain()
    assert log.lines("drain cut short")
    assert (nodes.directory / "log" / SNAPSHOT_NAME).exists()


def test_run_serves_until_it_is_told_to_stop(tmp_path: Path, log: Log) -> None:
    consumer = Nodes(tmp_path).made(Consumer)

    class StopsAtOnce(Consumer):
        async def start(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    run(consumer.file, StopsAtOnce)
    assert len(log.lines("stopped ")) == 1


async def test_a_new_key_is_for_new_connections(nodes: Nodes, log: Log) -> None:
    consumer, producer = await nodes.cluster()
    async with soon(), connected(consumer.url("/subscribe/news"), KEY) as old:
        await consumer.subscribed("news")
        consumer.write_psk(OTHER_KEY)
        await consumer.service.reload()
        assert len(log.lines("reloaded ")) == 1
        with pytest.raises(RefusedError):
            async with connected(consumer.url("/subscribe/news"), KEY):
                pass
        async with (
            connected(consumer.url("/subscribe/news"), OTHER_KEY) as new,
            connected(producer.url("/produce"), KEY) as publisher,
        ):
            await consumer.subscribed("news", 2)
            await publisher.publish("news", "1")
            assert [await old.data(1), await new.data(1)] == [["1"], ["1"]]


async def test_held_messages_are_routed_anew(nodes: Nodes) -> None:
    down = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    producer = await nodes.producer(down)
    consumers = [await nodes.consumer() for _ in range(3)]
    topics = [topic_of(index, 3) for index in range(3)]
    async with soon(), contextlib.AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(connected(producer.url("/produce"), KEY))
        subscribers = [
            await stack.enter_async_context(connected(consumer.subscribe_url(topic), KEY))
            for consumer, topic in zip(consumers, topics, strict=True)
        ]
        for consumer, topic in zip(consumers, topics, strict=True):
            await consumer.subscribed(topic)
        data = [str(number) for number in range(100)]
        for one in data:
            for topic in topics:
                await publisher.publish(topic, one)
        await eventually(lambda: producer.counters["messages_in"] == 300, "they are taken in")
        producer.write(consumers=Nodes.addresses(consumers, "/producer"))
        await producer.service.reload()
        for subscriber in subscribers:
            assert await subscriber.data(100) == data
        await producer.ready()


async def test_links_that_stay_are_kept_and_others_are_closed(nodes: Nodes) -> None:
    consumers = [await nodes.consumer() for _ in range(3)]
    producer = await nodes.producer(consumers[:2])
    await producer.ready()
    kept, closed = (link.connection for link in producer.links)
    producer.write(consumers=Nodes.addresses([consumers[2], consumers[0]], "/producer"))
    async with soon():
        await producer.service.reload()
        await producer.ready()
        assert producer.links[1].connection is kept
        await eventually(lambda: not consumers[1].connections, "the other one is closed")
        assert closed is not None
        assert consumers[1].counters["connections"] == 1
        topic = topic_of(1, 2)
        async with (
            connected(consumers[0].subscribe_url(topic), KEY) as subscriber,
            connected(producer.url("/produce"), KEY) as publisher,
        ):
            await consumers[0].subscribed(topic)
            await publisher.publish(topic, "1")
            assert await subscriber.data(1) == ["1"]


async def test_publishers_go_on_after_a_reload_that_joins_what_two_links_held(nodes: Nodes) -> None:
    limits: dict[str, Any] = {"max_held_bytes": 1_000_000, "max_message_bytes": 100_000}
    down = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    producer = await nodes.producer(down, **limits)
    consumer = await nodes.consumer()
    async with soon(), contextlib.AsyncExitStack() as stack:
        data = ["x" * 90_000] * 60
        publishing = []
        for topic in (topic_of(0, 2), topic_of(1, 2)):
            publisher = await stack.enter_async_context(connected(producer.url("/produce"), KEY))
            publishing.append(asyncio.create_task(publisher.publish(topic, *data)))
        await eventually(lambda: all(link.queue.full for link in producer.links), "both links are full")
        for address in (*down * 5, consumer.address):
            before = producer.counters["messages_in"]
            producer.write(consumers=[f"{address}/producer"])
            await producer.service.reload()
            await eventually(lambda: producer.counters["messages_in"] > before, "they are read again")  # noqa: B023
        await asyncio.gather(*publishing)
        await eventually(lambda: consumer.counters["messages_in"] == 120, "all has come")
    assert "lost_full" not in producer.counters


async def test_a_wrong_file_is_refused_and_the_old_one_kept(nodes: Nodes, log: Log) -> None:
    consumer = await nodes.consumer()
    file, good = consumer.file, consumer.file.read_text()
    bad = ["[", good + "\nx = 1", good.replace("consumer", "producer"), good.replace("127.0.0.1", "nowhere!")]
    bad += [good.replace("node-0.psk", "none.psk"), good.replace("127.0.0.1", "192.0.2.1")]
    async with soon():
        for number, text in enumerate(bad, 1):
            file.write_text(text)
            await consumer.service.reload()
            assert len(log.lines("reload refused ", logging.ERROR)) == number
        consumer.write_psk("")
        file.write_text(good)
        await consumer.service.reload()
        assert len(log.lines("reload refused ", logging.ERROR)) == len(bad) + 1
        assert log.lines("reloaded ") == []
        report = consumer.service.reporter.report()
        assert "the pre-shared key is empty" in report.reload_refused
        assert [warning.code for warning in report.warnings] == ["reload_refused"]
        async with connected(consumer.url("/subscribe/news"), KEY):
            await consumer.subscribed("news")


async def test_new_limits_are_for_new_connections(nodes: Nodes) -> None:
    consumer = await nodes.consumer()
    async with soon(), connected(consumer.url("/subscribe/12345"), KEY):
        consumer.write(max_topic_bytes=4, max_connections=1)
        await consumer.service.reload()
        assert (await http_get(consumer.address, "/subscribe/1234"))[0] == 503
    await eventually(lambda: not consumer.connections, "it is gone")
    assert (await http_get(consumer.address, "/subscribe/12345"))[0] == 400


async def test_listeners_come_and_go(nodes: Nodes, log: Log) -> None:
    first, second = (f"unix:{nodes.directory}/{name}.sock" for name in ("first", "second"))
    consumer = await nodes.consumer(listen=["127.0.0.1:0", first])
    address = consumer.address
    async with soon():
        async with RawSocket.established(first, "/subscribe/news", KEY) as kept:
            await consumer.subscribed("news")
            consumer.write(listen=[second, "127.0.0.1:0"])
            await consumer.service.reload()
            assert consumer.service.addresses[0].port == int(address.rpartition(":")[2])
            for reachable in (address, second):
                assert (await http_get(reachable, "/healthz"))[0] == 200
            with pytest.raises(OSError):  # noqa: PT011 - it depends on which side removes the socket file
                await http_get(first, "/healthz")
            assert [file.name for file in nodes.directory.glob("*.sock")] == ["second.sock"]
            async with connected(f"ws://{address}/producer", KEY) as producer:
                await producer.publish("news", "1")
                assert (await kept.packet())["d"] == "1"
        taken = socket.socket()
        with taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            consumer.write(listen=["127.0.0.1:0", first, f"127.0.0.1:{taken.getsockname()[1]}"])
            await consumer.service.reload()
        assert len(log.lines("reload refused ", logging.ERROR)) == 1
        for reachable in (address, second):
            assert (await http_get(reachable, "/healthz"))[0] == 200


async def test_ipv6(nodes: Nodes) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    consumer = await nodes.consumer(listen=["[::1]:0"])
    producer = await nodes.producer([consumer], listen=["[::1]:0"])
    assert consumer.address.startswith("[::1]:")
    async with soon(), nodes.client([producer], [consumer]) as client, client.subscribe("news") as messages:
        await client.publish("news", "1")
        assert (await anext(messages)).data == "1"
        assert await http_get(producer.address, "/healthz") == (200, "ok\n")


async def test_unix_sockets(nodes: Nodes) -> None:
    consumer = await nodes.consumer(listen=[f"unix:{nodes.directory}/consumer.sock"])
    producer = await nodes.producer([consumer], listen=[f"unix:{nodes.directory}/producer.sock"])
    await producer.ready()
    async with soon(), nodes.client([producer], [consumer]) as client, client.subscribe("a/b ñ") as messages:
        await client.publish("a/b ñ", "1")
        assert (await anext(messages)).data == "1"
    for node in (producer, consumer):
        await node.stop()
    assert not list(nodes.directory.glob("*.sock"))


async def test_a_stale_unix_socket_is_replaced(nodes: Nodes) -> None:
    path = nodes.directory / "node.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert path.is_socket()
    consumer = await nodes.consumer(listen=[f"unix:{path}"])
    async with soon():
        assert (await http_get(consumer.address, "/healthz"))[0] == 200
        await consumer.stop()
    assert not path.exists()


async def test_an_address_in_use_is_refused(nodes: Nodes) -> None:
    first = await nodes.consumer()
    unix = nodes.directory / "node.sock"
    second = nodes.made(Consumer, listen=[f"unix:{unix}", first.address])
    with pytest.raises(ListenError, match=rf"cannot listen on {first.address}: .*in use"):
        await second.service.start()
    assert second.service.addresses == []
    assert not unix.exists()


async def test_a_unix_socket_in_use_is_refused(nodes: Nodes) -> None:
    first = await nodes.consumer(listen=[f"unix:{nodes.directory}/node.sock"])
    second = nodes.made(Producer, listen=[first.address], consumers=["127.0.0.1:1/producer"])
    with pytest.raises(ListenError, match="cannot listen on unix:"):
        await second.service.start()
    async with soon():
        assert '"role":"consumer"' in (await http_get(first.address, "/status.json"))[1]


@pytest.mark.timeout(30)
async def test_a_unix_socket_whose_owner_is_busy_is_refused(nodes: Nodes) -> None:
    """Its queue is full, so that a client has to wait."""
    path = nodes.directory / "node.sock"
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        waiting = 0
        while waiting != errno.EAGAIN:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            waiting = client.connect_ex(str(path))
        consumer = nodes.made(Consumer, listen=[f"unix:{path}"])
        with pytest.raises(ListenError, match="cannot listen on unix:"):
            await consumer.service.start()
        assert path.is_socket()


async def test_a_unix_socket_that_cannot_be_made_is_refused(nodes: Nodes) -> None:
    consumer = nodes.made(Consumer, listen=[f"unix:{nodes.directory}/none/node.sock"])
    with pytest.raises(ListenError, match="cannot listen on unix:"):
        await consumer.service.start()


async def test_a_configuration_of_another_role_is_refused(nodes: Nodes) -> None:
    consumer = nodes.made(Consumer)
    with pytest.raises(ConfigError, match="expected 'producer', found 'consumer'"):
        Service(consumer.file, Producer)


async def test_warnings(nodes: Nodes, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = (100, 500)
    wanted: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _which: limits)
    monkeypatch.setattr("resource.setrlimit", lambda _which, new: wanted.append(new))
    await nodes.producer([f"unix:/{number}" for number in range(31)])
    assert wanted == [(500, 500)]
    (line,) = log.lines("too few open files allowed ", logging.WARNING)
    assert "allowed=500 wanted=18456" in line
    assert len(log.lines("unwise configuration ", logging.WARNING)) == 1


async def test_a_node_says_once_that_nothing_protects_its_connections(nodes: Nodes, log: Log) -> None:
    elsewhere = ["nowhere.invalid:1/producer", "nowhere.invalid:2/producer"]
    with pytest.raises(ConfigError, match="without TLS nothing protects what is sent there"):
        nodes.made(Producer, consumers=elsewhere)
    await nodes.producer(elsewhere, plain=True)
    (line,) = log.lines("unwise configuration ", logging.WARNING)
    assert "connections with other hosts go without TLS, and nothing protects them after the hello" in line


async def test_a_slow_subscriber_that_stays_stuck_is_dropped(nodes: Nodes) -> None:
    limit = 1024 * 1024 + 65_536
    consumer = await nodes.consumer(max_message_bytes=65_536, max_buffered_bytes=limit, close_seconds=0.2)
    async with (
        soon(),
        RawSocket.established(consumer.address, "/subscribe/news", KEY, receive_buffer=4096) as slow,
        connected(consumer.url("/producer"), KEY) as producer,
    ):
        await consumer.subscribed("news")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(200):
            await producer.publish("news", *["x" * 60_000] * 4)
        await consumer.subscribed("news", 0)
        assert consumer.counters["slow_subscribers"] == 1


async def test_a_peer_that_reads_no_pongs_is_closed(nodes: Nodes, log: Log) -> None:
    """Pongs wait in the write buffer too, and so count against its limit."""
    limit = 1024 * 1024 + 4096
    consumer = await nodes.consumer(max_message_bytes=4096, max_buffered_bytes=limit, close_seconds=0.2)
    async with soon(), RawSocket.established(consumer.address, "/producer", KEY, receive_buffer=4096) as raw:
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        pings = 500 * Frame(Opcode.PING, b"x" * 125).serialize(mask=True)
        with contextlib.suppress(ConnectionError):
            while consumer.connections:
                raw.writer.write(pings)
                await raw.writer.drain()
                assert all(one.buffered_bytes <= 2 * limit for one in consumer.connections)
        await eventually(lambda: log.lines("connection closed ", logging.WARNING), "it is logged")
        assert "1013" in log.lines("connection closed ", logging.WARNING)[0]


@contextlib.asynccontextmanager
async def running(node: RunningNode) -> AsyncIterator[None]:
    """Run a node as its process does, started or not, until it ends by itself."""
    if node.service.addresses:

        async def started() -> None:
            pass

        node.service.start = started  # type: ignore[method-assign]
    task = asyncio.create_task(node.service.run())
    try:
        yield
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])
