"""The values that nodes measure while messages go through them, and their reports of these."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.frames import Close, Opcode

from wsqueue.errors import PublishError
from wsqueue.log.database import Database
from wsqueue.log.records import Record
from wsqueue.monitoring import reporter
from wsqueue.nodes import link_queue
from wsqueue.nodes.consumer import Consumer
from wsqueue.protocol.close import CloseCode
from wsqueue.report.report import HistogramStatus, LinkStatus, Report
from wsqueue.report.stats import TIME_BOUNDS
from wsqueue.report.warnings import MAX_LAG_SECONDS

from ..support.classic_peer import connected, topic_of
from ..support.nodes import (
    KEY,
    WAIT_SECONDS,
    Log,
    Nodes,
    RunningNode,
    eventually,
    free_port,
    soon,
)
from ..support.raw_peer import RawServer, RawSocket
from ..support.raw_v2_peer import V2Server, V2Socket, new_secret, publish_of
from .test_service import running

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a report each time that one is asked for."""
    monkeypatch.setattr(reporter, "FRESH_SECONDS", 0.0)


def report_of(node: RunningNode) -> Report:
    """Return a report of now."""
    return node.service.reporter.report()


def codes(node: RunningNode) -> list[str]:
    return [warning.code for warning in report_of(node).warnings]


def status_of(producer: RunningNode, index: int = 0) -> LinkStatus:
    return report_of(producer).links[index]


def confirmed(producer: RunningNode) -> HistogramStatus:
    histogram = report_of(producer).confirm_seconds
    assert histogram is not None
    assert histogram.bounds == list(TIME_BOUNDS)
    return histogram


@contextlib.asynccontextmanager
async def publisher_of(producer: RunningNode) -> AsyncIterator[V2Socket]:
    """Connect as a publisher that numbers its batches itself."""
    async with V2Socket.speaking(producer.address, "/produce", KEY) as publisher:
        publisher.send(new_secret())
        yield publisher


@contextlib.asynccontextmanager
async def told_in_classic(nodes: Nodes) -> AsyncIterator[tuple[RawServer, RunningNode, RawSocket, RawSocket]]:
    """Send a message to a classic consumer; yield its listener, the producer, and the two connections."""
    async with RawServer() as server:
        producer = await nodes.producer([server.address])
        consumer = await server.next()
        await consumer.accept(KEY)
        async with RawSocket.established(producer.address, "/produce", KEY) as publisher:
            publisher.publish("news", "1")
            await consumer.until(Opcode.TEXT)
            yield server, producer, consumer, publisher


class TestLinks:
    async def test_a_consumer_that_is_down(self, nodes: Nodes) -> None:
        up, port = await nodes.consumer(), free_port()
        producer = await nodes.producer([up, f"127.0.0.1:{port}"])
        down, other = topic_of(1, 2), topic_of(0, 2)
        async with (
            soon(),
            publisher_of(producer) as publisher,
            RawSocket.established(producer.address, "/produce", KEY) as classic,
        ):
            await eventually(lambda: status_of(producer).state == "up", "one link is up")
            await eventually(lambda: producer.links[1].failures, "the other one cannot be")
            publisher.send(publish_of(1, down, "a", "b", "c"))
            publisher.send(publish_of(2, other, "x"))
            classic.publish(down, "d", "e")
            await publisher.confirmed(2)
            await eventually(lambda: producer.counters["messages_in"] == 6, "all has come")
            link = status_of(producer, 1)
            assert link.address == f"127.0.0.1:{port}/producer"
            assert (link.state, link.protocol) == ("down", "")
            assert "Connection refused" in link.reason
            assert (link.held_messages, link.held_bytes) == (5, producer.links[1].queue.held_bytes)
            assert link.paused_publishers == 0
            assert status_of(producer).held_messages == status_of(producer).held_bytes == 0
            assert codes(producer) == ["link_down"]
            (warning,) = report_of(producer).warnings
            assert f"127.0.0.1:{port}/producer" in warning.text
            assert "5 messages" in warning.text
            await nodes.consumer(port=port)
            await publisher.confirmed(1)
            await eventually(lambda: not status_of(producer, 1).held_messages, "all is confirmed")
            link = status_of(producer, 1)
            assert (link.state, link.protocol, link.reason) == ("up", "v2", "")
            assert (link.held_messages, link.held_bytes, link.paused_publishers) == (0, 0, 0)
            assert report_of(producer).warnings == []

    async def test_publishers_that_are_paused(self, nodes: Nodes) -> None:
        port = free_port()
        producer = await nodes.producer([f"127.0.0.1:{port}"], max_held_bytes=10_000)
        async with soon(), publisher_of(producer) as first, publisher_of(producer) as second:
            for number in range(1, 20):
                for publisher in (first, second):
                    publisher.send(publish_of(number, "news", "x" * 1000))
            await eventually(lambda: status_of(producer).paused_publishers == 2, "both are paused")
            assert status_of(producer).held_bytes >= 10_000
            assert codes(producer) == ["link_down", "publishers_paused"]
            await first.abort()
            await nodes.consumer(port=port)
            await second.confirmed(*range(1, 20))
            await eventually(lambda: not status_of(producer).held_messages, "all is confirmed")
            assert status_of(producer).paused_publishers == 0

    async def test_a_consumer_that_is_slow(self, nodes: Nodes) -> None:
        async with soon(), V2Server() as server:
            producer = await nodes.producer([server.address], max_held_bytes=10_000)
            consumer = await server.speaking(KEY)
            async with publisher_of(producer) as publisher:
                publisher.send(publish_of(1, "news", *["x" * 100] * 200))
                await consumer.next("forward")
                await eventually(lambda: status_of(producer).paused_publishers, "it is paused")
                link = status_of(producer)
                # It has gone out, and is held until it is confirmed.
                assert (link.state, link.held_messages) == ("up", 200)
                assert link.held_bytes >= 20_000
                assert codes(producer) == ["link_slow", "publishers_paused"]
                consumer.send({"t": "ack", "numbers": [[1, 1]]})
                await publisher.confirmed(1)
                assert status_of(producer).held_messages == 0
                assert report_of(producer).warnings == []
            await consumer.abort()

    async def test_a_classic_consumer(self, nodes: Nodes) -> None:
        async with soon(), RawServer() as server:
            producer = await nodes.producer([server.address])
            consumer = await server.next()
            await consumer.accept(KEY)
            await eventually(lambda: status_of(producer).state == "up", "it is up")
            assert status_of(producer).protocol == "classic"
            async with connected(producer.url("/produce"), KEY) as publisher:
                await publisher.publish("news", "1", "2")
                ping = await consumer.until(Opcode.PING)
                assert 1 <= status_of(producer).held_messages <= 2
                assert sum(confirmed(producer).counts) == 0
                while int.from_bytes(ping) < 2:
                    consumer.send_frame(Opcode.PONG, ping)
                    ping = await consumer.until(Opcode.PING)
                consumer.send_frame(Opcode.PONG, ping)
                await eventually(lambda: not status_of(producer).held_messages, "it is confirmed")
                assert 1 <= sum(confirmed(producer).counts) <= 2

    async def test_since_when(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(port=free_port())
        producer = await nodes.producer([consumer])
        await producer.ready()
        first = status_of(producer).seconds
        await asyncio.sleep(0)
        assert status_of(producer).seconds > first >= 0
        since = producer.links[0].since
        await consumer.crash()
        await eventually(lambda: status_of(producer).state == "down", "it is down")
        down = producer.links[0].since
        assert down > since
        await eventually(lambda: producer.links[0].failures, "it was tried again")
        # It has been down since it was lost, not since the latest try.
        assert producer.links[0].since == down
        await consumer.restart()
        await producer.ready()
        assert producer.links[0].since > down


class TestTraffic:
    """The bytes of a producer's links: the bytes that one end reads, the other has written."""

    @staticmethod
    async def same(producer: RunningNode, *consumers: RunningNode) -> tuple[int, int]:
        """Wait until both ends have counted the same bytes, and return those of the producer."""

        def counted() -> tuple[int, int]:
            traffic = producer.service.node.traffic
            return traffic.bytes_in, traffic.bytes_out

        def counted_there() -> tuple[int, int]:
            traffic = [consumer.service.node.traffic for consumer in consumers]
            return sum(each.bytes_out for each in traffic), sum(each.bytes_in for each in traffic)

        await eventually(lambda: counted() == counted_there(), "both have counted the same")
        return counted()

    async def test_over_reconnects_and_a_reload_that_gives_a_link_up(self, nodes: Nodes) -> None:
        first, second = await nodes.consumer(), await nodes.consumer()
        producer = await nodes.producer([first])
        before = (0, 0)
        for _ in range(3):
            await producer.ready()
            now = await self.same(producer, first)
            # Headers and hello of each connection count, too.
            assert now[0] > before[0]
            assert now[1] > before[1]
            before = now
            connection = producer.links[0].connection
            assert connection is not None
            connection.abort(CloseCode.NORMAL)
            await eventually(lambda: not first.connections, "it is lost")
        await producer.ready()
        producer.write(consumers=Nodes.addresses([second], "/producer"))
        await producer.service.reload()
        await producer.ready()
        await eventually(lambda: not first.connections, "the former link is closed")
        after = await self.same(producer, first, second)
        assert after[0] > before[0]
        assert after[1] > before[1]

    async def test_links_and_publishers_count_together(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with soon(), publisher_of(producer) as publisher:
            publisher.send(publish_of(1, "news", "x" * 1000))
            await publisher.confirmed(1)
            written = consumer.service.node.traffic.bytes_out
            assert producer.service.node.traffic.bytes_in > written + 1000

    async def test_a_consumer_that_is_down(self, nodes: Nodes) -> None:
        producer = await nodes.producer([f"127.0.0.1:{free_port()}"])
        await eventually(lambda: producer.links[0].failures, "it was tried")
        assert await self.same(producer) == (0, 0)


class TestConfirmSeconds:
    """On each link one batch at a time is timed, now and then."""

    @pytest.fixture(autouse=True)
    def as_often_as_can_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link_queue, "TIMING_SECONDS", 0.0)

    async def test_one_after_the_other(self, nodes: Nodes) -> None:
        _, producer = await nodes.cluster()
        async with soon(), publisher_of(producer) as publisher:
            for number in range(1, 51):
                publisher.send(publish_of(number, f"topic{number % 3}", "a", "b"))
                await publisher.confirmed(number)
                assert sum(confirmed(producer).counts) == number
        assert 0 < confirmed(producer).sum < 50 * WAIT_SECONDS

    async def test_classic_ones(self, nodes: Nodes) -> None:
        _, producer = await nodes.cluster()
        async with soon(), RawSocket.established(producer.address, "/produce", KEY) as publisher:
            for number in range(1, 4):
                publisher.publish("news", str(number))
                await eventually(lambda: producer.counters["messages_in"] == number, "it has come")  # noqa: B023
                await eventually(lambda: not status_of(producer).held_messages, "it is confirmed")
                assert sum(confirmed(producer).counts) == number

    async def test_several_links(self, nodes: Nodes) -> None:
        consumers = [await nodes.consumer() for _ in range(2)]
        producer = await nodes.producer(consumers)
        await producer.ready()
        async with soon(), publisher_of(producer) as publisher:
            for index in (0, 1):
                publisher.send(publish_of(index + 1, topic_of(index, 2), "a"))
            assert set(await publisher.answers(2)) == {1, 2}
        assert sum(confirmed(producer).counts) == 2

    async def test_one_before_a_classic_consumer_closes(self, nodes: Nodes) -> None:
        """It has dealt with all that came before its close frame, and so confirms it."""
        async with soon(), told_in_classic(nodes) as (_server, producer, consumer, _publisher):
            consumer.send_frame(Opcode.CLOSE, Close(1000, "").serialize())
            await consumer.close_frame()
            consumer.writer.write_eof()
            await eventually(lambda: sum(confirmed(producer).counts) == 1, "it is confirmed")
            assert not status_of(producer).held_messages
            assert not producer.counters["lost_in_flight"]


class TestTopTopics:
    async def test_both_nodes_count(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster(monitoring={"top_topics": 2})
        async with soon(), nodes.client([producer], [consumer]) as client:
            for topic, count in (("few", 1), ("most", 30), ("some", 5)):
                await client.publish(topic, *map(str, range(count)))
        for node in (consumer, producer):
            top = report_of(node).top_topics
            assert [status.topic for status in top] == ["most", "some"]
            rates = [status.messages_per_second for status in top]
            assert rates[0] == pytest.approx(6 * rates[1])
            node.write(monitoring={"top_topics": 0})
            await node.service.reload()
            assert report_of(node).top_topics == []

    async def test_classic_messages_count(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with soon(), connected(producer.url("/produce"), KEY) as publisher:
            await publisher.publish("news", *map(str, range(10)))
            await eventually(lambda: consumer.counters["messages_in"] == 10, "all has come")
        for node in (consumer, producer):
            assert [status.topic for status in report_of(node).top_topics] == ["news"]


class TestSlowSubscribers:
    async def test_one_that_falls_behind_and_catches_up(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        data = [f"{number:10000}" for number in range(800)]
        async with soon(), nodes.client([producer], [consumer]) as client, slow_reader(consumer) as slow:
            await client.publish("news", *data)
            report = report_of(consumer)
            assert report.slow_subscribers == 1
            (peer,) = report.slow_peers
            assert peer.peer == peer_of(slow)
            assert peer.protocol == "v2"
            # It is the only subscriber, so that all deliveries were to it.
            assert peer.behind_messages == len(data) - report.counters["deliveries"] > 0
            assert peer.buffered_bytes > 0
            (warning,) = report.warnings
            assert warning.code == "subscriber_slow"
            assert f"{peer.peer} ({peer.behind_messages} messages behind)" in warning.text
            resume(slow)
            assert await slow.delivered(len(data)) == data
            await eventually(lambda: not report_of(consumer).slow_subscribers, "it has caught up")
            report = report_of(consumer)
            assert (report.slow_peers, report.warnings) == ([], [])
            assert report.counters["fell_behind"] == 1

    async def test_one_that_goes_away_while_it_is_behind(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with soon(), nodes.client([producer], [consumer]) as client:
            async with slow_reader(consumer):
                await client.publish("news", *[f"{number:10000}" for number in range(800)])
                assert len(consumer.consumer.behind) == 1
            await eventually(lambda: not consumer.consumer.behind, "it is gone")
            assert report_of(consumer).warnings == []

    async def test_one_that_gives_the_topic_up(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with soon(), nodes.client([producer], [consumer]) as client, slow_reader(consumer) as slow:
            await client.publish("news", *[f"{number:10000}" for number in range(800)])
            assert report_of(consumer).slow_subscribers == 1
            slow.send({"t": "unsubscribe", "topic": "news"})
            await eventually(lambda: not consumer.consumer.behind, "it is no subscriber any more")

    async def test_several_topics_of_one_connection_are_one_subscriber(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            slow_reader(consumer, "news", "sport") as slow,
        ):
            data = [f"{number:10000}" for number in range(600)]
            for _ in range(2):
                await client.publish("news", *data)
                await client.publish("sport", *data)
            report = report_of(consumer)
            assert len(consumer.consumer.behind) == 2
            (peer,) = report.slow_peers
            assert (report.slow_subscribers, peer.peer) == (1, peer_of(slow))
            assert peer.behind_messages == 2400 - report.counters["deliveries"]

    async def test_a_classic_one(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            RawSocket.established(consumer.address, "/subscribe/news", KEY, receive_buffer=4096) as slow,
        ):
            await consumer.subscribed("news")
            pause(slow)
            while not (report := report_of(consumer)).slow_subscribers:
                await client.publish("news", *["x" * 10_000] * 10)
            (peer,) = report.slow_peers
            assert (peer.peer, peer.protocol, peer.behind_messages) == (peer_of(slow), "classic", 0)
            assert peer.buffered_bytes > 0
            assert [warning.code for warning in report.warnings] == ["subscriber_slow"]
            resume(slow)
            reading = asyncio.create_task(slow.end())
            await eventually(lambda: not report_of(consumer).slow_subscribers, "it has caught up")
            await slow.abort()
            await reading

    async def test_one_that_begins_in_the_past_is_not_slow(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with soon(), nodes.client([producer], [consumer]) as client:
            await client.publish("news", *[f"{number:10000}" for number in range(800)])
            async with slow_reader(consumer, start="earliest"):
                assert report_of(consumer).warnings == []


@contextlib.asynccontextmanager
async def slow_reader(consumer: RunningNode, *topics: str, start: str = "latest") -> AsyncIterator[V2Socket]:
    """Subscribe to some topics, and read nothing more."""
    async with V2Socket.speaking(consumer.address, "/subscribe", KEY, receive_buffer=4096) as slow:
        for topic in topics or ("news",):
            slow.send({"t": "subscribe", "topic": topic, "start": start})
            await slow.next("subscribed")
        pause(slow)
        yield slow


def pause(raw: RawSocket) -> None:
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]


def resume(raw: RawSocket) -> None:
    raw.writer.transport.resume_reading()  # type: ignore[attr-defined]


def peer_of(raw: RawSocket) -> str:
    """Return the address that a node knows this end by."""
    host, port = raw.writer.get_extra_info("sockname")
    return f"{host}:{port}"


def kept(directory: Path, **limits: Any) -> dict[str, Any]:
    """Return the settings of a consumer whose logs are on a disk."""
    return {"retention": {"mode": "sqlite", "directory": str(directory), **limits}}


class TestLog:
    async def test_in_memory(self, nodes: Nodes) -> None:
        consumer = await nodes.consumer(retention={"max_bytes": 1_000_000})
        producer = await nodes.producer([consumer])
        async with soon(), nodes.client([producer], [consumer]) as client:
            await client.publish("news", "x" * 10_000)
            await client.publish("sport", "y")
        report = report_of(consumer)
        assert report.log is not None
        assert (report.log.mode, report.log.topics, report.log.limit_bytes) == ("memory", 2, 1_000_000)
        assert 10_000 < report.log.bytes < 20_000
        assert (report.log.pending_bytes, report.log.commit_seconds) == (0, 0.0)
        assert (report.log.free_bytes, report.log.failing) == (-1, "")
        assert report.commit_seconds is None

    async def test_on_a_disk(self, nodes: Nodes, tmp_path: Path) -> None:
        consumer = await nodes.consumer(**kept(tmp_path / "log", max_bytes=1_000_000))
        producer = await nodes.producer([consumer])
        log = report_of(consumer).log
        assert log is not None
        assert log.free_bytes > 0
        async with soon(), nodes.client([producer], [consumer]) as client:
            for number in range(5):
                await client.publish("news", str(number) * 1000)
        report = report_of(consumer)
        assert report.log is not None
        assert (report.log.mode, report.log.topics, report.log.limit_bytes) == ("sqlite", 1, 1_000_000)
        assert 5000 < report.log.bytes < 20_000
        assert (report.log.pending_bytes, report.log.failing) == (0, "")
        assert report.log.commit_seconds > 0
        assert report.log.free_bytes > 0
        assert report.commit_seconds is not None
        # One per message, because each was waited for.
        assert sum(report.commit_seconds.counts) == 5
        assert report.commit_seconds.sum >= report.log.commit_seconds

    async def test_what_waits_for_a_disk(
        self, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        consumer = await nodes.consumer(**kept(tmp_path / "log"))
        producer = await nodes.producer([consumer])
        disk, commit = threading.Event(), Database.commit

        def commit_later(database: Database, group: Sequence[Record]) -> None:
            assert not group or disk.wait(WAIT_SECONDS)
            commit(database, group)

        monkeypatch.setattr(Database, "commit", commit_later)
        async with soon(), nodes.client([producer], [consumer]) as client:
            publishing = asyncio.create_task(client.publish("news", "x" * 10_000))
            await eventually(lambda: consumer.counters["messages_in"], "it has come")
            log = report_of(consumer).log
            assert log is not None
            assert log.pending_bytes > 10_000
            assert log.bytes == 0
            disk.set()
            await publishing
            log = report_of(consumer).log
            assert log is not None
            assert log.pending_bytes == 0
            assert log.bytes > 10_000

    async def test_a_disk_that_stands_still_does_not_hold_the_node(
        self, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = threading.get_ident()
        asked: list[int] = []

        def free_bytes(_database: Database) -> int:
            asked.append(threading.get_ident())
            return 12_345

        monkeypatch.setattr(Database, "free_bytes", free_bytes)
        consumer = await nodes.consumer(**kept(tmp_path / "log"))
        producer = await nodes.producer([consumer])
        async with soon(), nodes.client([producer], [consumer]) as client:
            await client.publish("news", "1")
        for _ in range(3):
            log = report_of(consumer).log
            assert log is not None
            assert log.free_bytes == 12_345
        assert loop not in asked

    async def test_a_disk_that_is_full_and_then_is_not(
        self, small_disk: Path, nodes: Nodes, log: Log
    ) -> None:
        consumer = await nodes.consumer(**kept(small_disk / "log"))
        producer = await nodes.producer([consumer])
        async with soon(), nodes.client([producer], [consumer]) as client:
            await client.publish("news", "1")
            assert codes(consumer) == ["log_nearly_full"]
            filler = small_disk / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(4096))
            for _ in range(2):
                with pytest.raises(PublishError, match="the disk is full"):
                    await client.publish("news", "x" * 100_000)
            report = report_of(consumer)
            assert report.log is not None
            assert report.log.failing == "the disk is full"
            assert 0 <= report.log.free_bytes < 500_000
            assert [warning.code for warning in report.warnings] == ["log_failing", "log_nearly_full"]
            assert "the disk is full" in report.warnings[0].text
            filler.unlink()
            await client.publish("news", "x" * 100_000)
            assert codes(consumer) == ["log_nearly_full"]
            await client.publish("news", "2")
            again = report_of(consumer).log
            assert again is not None
            assert again.failing == ""
            assert again.free_bytes > report.log.free_bytes
        # It is logged once, however much is refused, and so is its end.
        assert log.lines("messages refused ", logging.ERROR) == ['messages refused reason="the disk is full"']
        assert len(log.lines("messages stored again ", logging.INFO)) == 1
        log.records.clear()


async def test_a_process_that_stands_still(nodes: Nodes) -> None:
    consumer = nodes.made(Consumer)
    async with running(consumer):
        await eventually(lambda: consumer.service.addresses, "it runs")
        # Now the loop does nothing else, either.
        time.sleep(MAX_LAG_SECONDS + reporter.LAG_SECONDS + 0.1)  # noqa: ASYNC251 - as a disk or a full machine does
        await eventually(lambda: report_of(consumer).loop_lag_seconds > MAX_LAG_SECONDS, "it is noticed")
        assert codes(consumer) == ["loop_lag"]
        consumer.service.stop()


async def test_bytes_of_clients_that_come_and_go(nodes: Nodes) -> None:
    consumer = await nodes.consumer()
    request = b"GET /healthz HTTP/1.1\r\n\r\n"
    async with soon():
        for _ in range(3):
            async with RawSocket.open(consumer.address) as raw:
                raw.writer.write(request)
                answered = len(await raw.reader.read())
        await eventually(lambda: not consumer.connections, "they are gone")
    counters = report_of(consumer).counters
    assert (counters["bytes_in"], counters["bytes_out"]) == (3 * len(request), 3 * answered)
    assert counters["connections"] == 3


async def test_a_report_is_what_the_wire_has(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "FRESH_SECONDS", WAIT_SECONDS)
    consumer, producer = await nodes.cluster()
    async with soon(), nodes.client([producer], [consumer]) as client, client.subscribe("news") as messages:
        await client.publish("news", "1")
        assert (await anext(messages)).data == "1"
        for node in (consumer, producer):
            report = report_of(node)
            assert msgspec.json.decode(node.service.reporter.encoded(), type=Report) == report
            assert report.counters["messages_in"] == 1
