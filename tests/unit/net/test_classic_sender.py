"""Sending on a classic connection, which the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from wsqueue.net import classic_sender
from wsqueue.net.classic_sender import ClassicSender
from wsqueue.protocol.framing import PongReceived

from ...support.fake_connection import FakeConnection

pytestmark = pytest.mark.anyio

MESSAGE = b'{"t":"m","d":"x","s":"news"}'


class Peer(FakeConnection):
    """Keep the writes in order: a number of messages, or the data of a ping."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[int | bytes] = []

    def send(self, payloads: Sequence[bytes]) -> None:
        self.written.append(len(payloads))

    def ping(self, data: bytes = b"") -> None:
        self.written.append(data)

    def pong(self) -> PongReceived:
        """Return the answer to the latest ping."""
        data = self.written[-1]
        assert isinstance(data, bytes)
        return PongReceived(data)


@pytest.fixture(autouse=True)
def _short_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classic_sender, "CONFIRM_SECONDS", 0.01)


async def test_one_ping_follows_messages_after_a_while_and_another_those_after_it() -> None:
    peer = Peer()
    sender = ClassicSender(peer)
    for _ in range(3):
        sender.send([MESSAGE] * 2)
    await asyncio.sleep(0.03)
    assert peer.written == [2, 2, 2, (6).to_bytes(8)]
    pong = peer.pong()
    sender.send([MESSAGE])
    await asyncio.sleep(0.03)
    assert peer.written[4:] == [1]
    assert (sender.receive([pong]), sender.in_flight) == (6, 1)
    await asyncio.sleep(0.03)
    assert peer.written[5:] == [(7).to_bytes(8)]
    assert (sender.receive([peer.pong()]), sender.in_flight) == (7, 0)
    await asyncio.sleep(0.03)
    assert len(peer.written) == 6


async def test_a_strange_pong_confirms_nothing() -> None:
    sender = ClassicSender(Peer())
    sender.send([MESSAGE] * 3)
    strange = [PongReceived(data) for data in (b"", b"x" * 8, (9).to_bytes(8), b"hello")]
    assert sender.receive(strange) is None
    assert sender.in_flight == 3
    assert sender.receive([PongReceived((1).to_bytes(8)), *strange]) == 1


async def test_all_confirmed_asks_at_once_and_waits_for_all_that_was_sent() -> None:
    peer = Peer()
    sender = ClassicSender(peer)
    await sender.all_confirmed()
    sender.send([MESSAGE] * 2)
    cancelled, first = (
        asyncio.create_task(sender.all_confirmed()),
        asyncio.create_task(sender.all_confirmed()),
    )
    await asyncio.sleep(0)
    assert peer.written == [2, (2).to_bytes(8)]
    pong = peer.pong()
    cancelled.cancel()
    sender.send([MESSAGE])
    second = asyncio.create_task(sender.all_confirmed())
    await asyncio.sleep(0)
    sender.receive([pong])
    await first
    assert not second.done()
    assert peer.written == [2, (2).to_bytes(8), 1, (3).to_bytes(8)]
    sender.receive([peer.pong()])
    await second


async def test_all_confirmed_ends_when_the_connection_is_lost() -> None:
    peer = Peer()
    sender = ClassicSender(peer)
    sender.send([MESSAGE])
    waiting = asyncio.create_task(sender.all_confirmed())
    await asyncio.sleep(0)
    sender.close()
    await waiting
    assert sender.in_flight == 1
    await asyncio.sleep(0.03)
    assert peer.written == [1, (1).to_bytes(8)]


async def test_messages_that_somebody_waits_for_are_asked_about_at_once_and_one_ping_at_a_time() -> None:
    peer = Peer()
    sender = ClassicSender(peer)
    sender.send([MESSAGE], awaited=True)
    for _ in range(3):
        sender.send([MESSAGE], awaited=True)
    assert peer.written == [1, (1).to_bytes(8), 1, 1, 1]
    assert sender.receive([PongReceived((1).to_bytes(8))]) == 1
    assert peer.written[5:] == [(4).to_bytes(8)]
    assert sender.receive([peer.pong()]) == 4
    # Nobody waits for the next one, so that it is asked about a while later.
    sender.send([MESSAGE])
    assert peer.written[6:] == [1]
