"""The publisher over connections that the test plays: waiting, failing, sending again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from tests.support.fake_connection import FakeConnection
from tests.support.messages import packed
from tests.support.session_pair import Pair
from wsqueue import ConnectError, PublishError
from wsqueue.client import outbox as outbox_module
from wsqueue.client.encoding import EncodedMessages, encode_messages
from wsqueue.client.link import ClientSettings
from wsqueue.client.owner import Owner
from wsqueue.client.publisher import PublisherLink
from wsqueue.config.model import ClientConfig, Limits
from wsqueue.net.certificates import TlsContexts
from wsqueue.net.credential import Credential
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode, Closed
from wsqueue.protocol.keys import PreSharedKey

pytestmark = pytest.mark.anyio

CONFIG = ClientConfig(producers=["127.0.0.1:1/produce"], consumers=["127.0.0.1:1/subscribe"])


class Producer(FakeConnection):
    """Stand for a connection to a producer that speaks v2."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Pair.established().acceptor
        self.session.v2 = True
        self.closed_with: CloseCode | None = None

    def close(self, code: CloseCode, reason: str = "") -> None:
        self.closed_with = code

    def published(self) -> list[tuple[int, list[str | bytes]]]:
        """Return the number and the data of each batch that was sent since the last time."""
        return [
            (packet.number, packet.messages.unpack())
            for packet in self.take()
            if isinstance(packet, v2.Publish)
        ]


class Link(PublisherLink):
    """Open no connection: the test brings them."""

    def __init__(self, open_seconds: float = 60.0, secret: bytes | None = None) -> None:
        psk, tls = PreSharedKey("key"), TlsContexts(CONFIG)
        settings = ClientSettings(
            config=CONFIG, credential=Credential(psk), tls=tls, open_seconds=open_seconds, owner=Owner()
        )
        super().__init__(CONFIG.produce_addresses, settings, secret)

    def start(self) -> None:
        """Leave it to `connect`."""

    def connect(self) -> Producer:
        self.connection = producer = Producer()
        self.up()
        return producer

    def lose(self, code: int = CloseCode.ABNORMAL) -> None:
        self.connection = None
        self.down(Closed(code, "lost", by_peer=True), 0)


def message(
    *data: str | bytes, topic: str = "news", headers: Mapping[str, str] | None = None
) -> EncodedMessages:
    return encode_messages(topic, data, Limits(), headers)


def ack(first: int, last: int | None = None) -> v2.Ack:
    return v2.Ack([(first, last or first)])


async def turn() -> None:
    """Let tasks run that can, and batches be sent."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_messages_of_one_turn_share_a_batch() -> None:
    link = Link()
    producer = link.connect()
    link.publish_nowait(message("1"))
    publishing = link.publish(message("2", "3"))
    await turn()
    assert producer.published() == [(1, ["1", "2", "3"])]
    flushing = asyncio.create_task(link.flush())
    await turn()
    assert not publishing.done()
    assert not flushing.done()
    link.received_events([ack(1)])
    await publishing
    await flushing


async def test_a_full_window_lets_publishers_wait_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "WINDOW_MESSAGES", 2)
    link = Link()
    link.connect()
    link.publish_nowait(message("1", "2"))
    ended: list[str] = []

    async def publish(name: str) -> None:
        await link.drain()
        ended.append(name)
        link.publish_nowait(message(name, name))

    tasks = [asyncio.create_task(publish(name)) for name in "abc"]
    await turn()
    assert (link.full, ended) == (True, [])
    tasks[1].cancel()
    for number in (1, 2):
        link.received_events([ack(number)])
        await turn()
    assert ended == ["a", "c"]
    assert link.unconfirmed == 2


async def test_a_refusal_is_raised_where_its_message_was_published() -> None:
    link = Link()
    link.connect()
    publishing = link.publish(message("1"))
    await turn()
    link.received_events([v2.Refused(1, "full", "no room")])
    with pytest.raises(PublishError, match="no room") as caught:
        await publishing
    assert caught.value.code == "full"
    await link.flush()
    # The refusal of a shared batch is raised by both.
    publishing = link.publish(message("2"))
    link.publish_nowait(message("3"))
    await turn()
    link.received_events([v2.Refused(2, "full", "no room")])
    for waiting in (publishing, link.flush()):
        with pytest.raises(PublishError, match="no room"):
            await waiting
    await link.flush()


async def test_a_publisher_that_was_cancelled_has_published() -> None:
    link = Link()
    producer = link.connect()
    publishing = link.publish(message("1"))
    publishing.cancel()
    await turn()
    assert producer.published() == [(1, ["1"])]
    link.received_events([v2.Refused(1, "full", "nothing waits for it")])
    await link.flush()


async def test_unconfirmed_batches_are_sent_again_by_the_same_publisher() -> None:
    link = Link()
    first = link.connect()
    for topic in ("a", "b", "c"):
        link.publish_nowait(message(topic, topic=topic))
    await turn()
    (hello, *sent) = first.take()
    link.received_events([ack(2)])
    link.lose()
    link.publish_nowait(message("d"))
    await turn()
    second = link.connect()
    assert second.take() == [hello, sent[0], sent[2], v2.Publish(4, 0, "news", packed("d"))]
    link.received_events([ack(1), ack(3, 4)])
    await link.flush()


async def test_messages_with_ids_are_batches_of_their_own() -> None:
    link = Link(secret=bytes(range(32)))
    producer = link.connect()
    assert producer.take() == [v2.Publisher(bytes(range(32)))]
    first = link.publish(message("3"), 3)
    link.publish_nowait(message("5"), 5)
    with pytest.raises(ValueError, match="the id 4 is not above 5"):
        link.publish(message("4"), 4)
    await turn()
    assert producer.published() == [(3, ["3"]), (5, ["5"])]
    link.lose()
    producer = link.connect()
    assert producer.published() == [(3, ["3"]), (5, ["5"])]
    link.received_events([ack(1, 3)])
    await first
    link.received_events([v2.Refused(5, "full", "no room")])
    with pytest.raises(PublishError, match="no room"):
        await link.flush()
    for publish in (link.publish, link.publish_nowait):
        with pytest.raises(PublishError, match="the message with the id 5 was refused or failed before"):
            publish(message("6"), 6)
    assert link.unconfirmed == 0


async def test_a_slow_producer_is_not_given_up() -> None:
    link = Link(open_seconds=0.01)
    producer = link.connect()
    producer.is_congested = True
    link.publish_nowait(message("1"))
    sending = asyncio.create_task(link.all_sent())
    await asyncio.sleep(0.05)
    assert not sending.done()
    assert producer.published() == []
    producer.is_congested = False
    link.writable(producer)
    await sending
    assert producer.published() == [(1, ["1"])]


@pytest.mark.parametrize("was_up", [False, True])
async def test_messages_fail_without_a_connection(was_up: bool) -> None:
    link = Link(open_seconds=0.01)
    if was_up:
        link.connect()
        link.lose()
    publishing = link.publish(message("1"))
    link.publish_nowait(message("2", topic="sport"))
    for waiting in (publishing, link.flush()):
        with pytest.raises(ConnectError, match=r"no node answers: 127\.0\.0\.1:1/produce: no answer"):
            await waiting
    producer = link.connect()
    await turn()
    assert producer.published() == []


async def test_messages_that_a_producer_closed_for_are_not_sent_again() -> None:
    link = Link()
    link.connect()
    publishing = link.publish(message("1"))
    await turn()
    link.lose(CloseCode.INVALID_PACKET)
    with pytest.raises(PublishError, match="the producer does not take it") as caught:
        await publishing
    assert caught.value.code == "invalid"
    assert link.connect().published() == []


async def test_stopping_fails_what_is_unconfirmed() -> None:
    link = Link()
    link.connect()
    publishing = link.publish(message("1"))
    await turn()
    await link.stop()
    with pytest.raises(ConnectError, match="the client was closed"):
        await publishing


async def test_who_waits_for_room_does_not_publish_after_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "WINDOW_MESSAGES", 1)
    link = Link()
    link.connect()
    link.publish_nowait(message("a"))
    waiting = asyncio.create_task(link.drain())
    await turn()
    await link.stop()
    with pytest.raises(ConnectError, match="the client was closed"):
        await waiting


async def test_no_task_is_left_by_a_link_that_was_stopped() -> None:
    link = Link()
    link.connect()
    before = asyncio.all_tasks()
    await link.stop()
    link.lose(CloseCode.NORMAL)
    assert asyncio.all_tasks() == before


async def test_a_producer_that_drains_is_left() -> None:
    link = Link()
    producer = link.connect()
    link.received_events([v2.Draining(1.0)])
    assert producer.closed_with == CloseCode.NORMAL
