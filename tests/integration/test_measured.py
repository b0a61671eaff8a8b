"""The values that nodes measure while messages go through them, and their reports of these."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.frames import Close, Opcode

from wsqueue.monitoring import reporter
from wsqueue.nodes import link_queue
from wsqueue.nodes.consumer import Consumer
from wsqueue.protocol.close import CloseCode
from wsqueue.report.report import HistogramStatus, LinkStatus, Report
from wsqueue.report.stats import TIME_BOUNDS
from wsqueue.report.warnings import MAX_LAG_SECONDS

from ..support.classic_peer import topic_of
from ..support.nodes import KEY, Nodes, RunningNode
from ..support.ports import free_port
from ..support.raw_peer import RawServer, RawSocket
from ..support.raw_v2_peer import V2Socket, new_secret, publish_of
from ..support.waiting import eventually, soon
from .test_service import running

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a report each time that one is asked for."""
    monkeypatch.setattr(reporter, "FRESH_SECONDS", 0.0)


def report_of(node: RunningNode) -> Report:
    """Return a report of now."""
    return node.service.reporter.report()


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
            assert status_of(producer).held_messages == status_of(producer).held_bytes == 0
            (warning,) = report_of(producer).warnings
            assert warning.code == "link_down"
            await nodes.consumer(port=port)
            await publisher.confirmed(1)
            await eventually(lambda: not status_of(producer, 1).held_messages, "all is confirmed")
            link = status_of(producer, 1)
            assert (link.state, link.protocol, link.reason) == ("up", "v2", "")
            assert link.held_bytes == 0
            assert report_of(producer).warnings == []

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


class TestConfirmSeconds:
    """On each link one batch at a time is timed, now and then."""

    @pytest.fixture(autouse=True)
    def as_often_as_can_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link_queue, "TIMING_SECONDS", 0.0)

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
        async with soon(), RawServer() as server:
            producer = await nodes.producer([server.address])
            consumer = await server.next()
            await consumer.accept(KEY)
            async with RawSocket.established(producer.address, "/produce", KEY) as publisher:
                publisher.publish("news", "1")
                await consumer.until(Opcode.TEXT)
                assert (status_of(producer).protocol, status_of(producer).held_messages) == ("classic", 1)
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
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert await slow.delivered(len(data)) == data
            await eventually(lambda: not report_of(consumer).slow_subscribers, "it has caught up")
            report = report_of(consumer)
            assert (report.slow_peers, report.warnings) == ([], [])
            assert report.counters["fell_behind"] == 1

    async def test_several_topics_of_one_connection_are_one_subscriber(self, nodes: Nodes) -> None:
        consumer, producer = await nodes.cluster()
        async with (
            soon(),
            nodes.client([producer], [consumer]) as client,
            slow_reader(consumer, "news", "sport") as slow,
        ):
            data = [f"{number:10000}" for number in range(600)]
            for topic in ("news", "sport") * 2:
                await client.publish(topic, *data)
            report = report_of(consumer)
            assert len(consumer.consumer.behind) == 2
            (peer,) = report.slow_peers
            assert (report.slow_subscribers, peer.peer) == (1, peer_of(slow))
            assert peer.behind_messages == 2400 - report.counters["deliveries"]
            for topic in ("news", "sport"):
                slow.send({"t": "unsubscribe", "topic": topic})
            await eventually(lambda: not consumer.consumer.behind, "it is no subscriber any more")


@contextlib.asynccontextmanager
async def slow_reader(consumer: RunningNode, *topics: str) -> AsyncIterator[V2Socket]:
    """Subscribe to some topics, and read nothing more."""
    async with V2Socket.speaking(consumer.address, "/subscribe", KEY, receive_buffer=4096) as slow:
        for topic in topics or ("news",):
            slow.send({"t": "subscribe", "topic": topic})
            await slow.next("subscribed")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        yield slow


def peer_of(raw: RawSocket) -> str:
    """Return the address that a node knows this end by."""
    host, port = raw.writer.get_extra_info("sockname")
    return f"{host}:{port}"


async def test_a_log_on_a_disk(nodes: Nodes, tmp_path: Path) -> None:
    consumer = await nodes.consumer(retention={"mode": "sqlite", "directory": str(tmp_path / "log")})
    producer = await nodes.producer([consumer])
    async with soon(), nodes.client([producer], [consumer]) as client:
        for number in range(5):
            await client.publish("news", str(number) * 1000)
    report = report_of(consumer)
    assert report.log is not None
    assert (report.log.mode, report.log.topics) == ("sqlite", 1)
    assert report.commit_seconds is not None
    # One per message, because each was waited for.
    assert sum(report.commit_seconds.counts) == 5


async def test_a_process_that_stands_still(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "LAG_SECONDS", 0.01)
    consumer = nodes.made(Consumer)
    async with running(consumer):
        await eventually(lambda: consumer.service.addresses, "it runs")
        time.sleep(MAX_LAG_SECONDS + 0.1)  # noqa: ASYNC251 - as a disk or a full machine does
        await eventually(lambda: report_of(consumer).loop_lag_seconds > MAX_LAG_SECONDS, "it is noticed")
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
