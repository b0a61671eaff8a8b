"""An acceptor's connection on a transport that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from websockets.frames import Opcode

from wsqueue.config.keys import Keys
from wsqueue.config.model import ConsumerConfig, Limits
from wsqueue.net.buffers import Buffers
from wsqueue.net.connection import (
    BURDEN_BURST_SECONDS,
    BURDEN_PER_SECOND,
    TURN_BYTES,
    Connection,
    Handler,
    Owner,
)
from wsqueue.protocol.close import CloseCode, Closed
from wsqueue.protocol.frames import cut_controls
from wsqueue.protocol.framing import TURN_CLASSIC_FRAMES, HttpResponse, RequestReceived
from wsqueue.protocol.keys import PreSharedKey, Role
from wsqueue.protocol.session import Event, HelloDone, Session

from ...support.session_pair import PSK, RawPeer, initiate, message, received
from ...support.waiting import eventually

pytestmark = pytest.mark.anyio

CLIENTS = PreSharedKey("the key of clients")


class FakeTransport(asyncio.Transport):
    """Keep the bytes that are written."""

    def __init__(self, extra: dict[str, Any] | None = None) -> None:
        super().__init__(extra)
        self.written = b""
        self.ended = False
        self.reading = True
        self.unwritten = 0

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unwritten


class Recorder(Handler):
    """Keep the calls of a connection."""

    peer_is_node = True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.on_received: Callable[[], None] | None = None
        self.events: list[Event] = []

    def established(self, connection: Connection) -> None:
        self.calls.append("established")

    def received(self, connection: Connection, events: list[Event]) -> None:
        self.calls.append("received")
        self.events += events
        if self.on_received is not None:
            self.on_received()

    def lost(self, connection: Connection, closed: Closed) -> None:
        self.calls.append("lost")


class Accepted(Owner):
    """A connection whose endpoint gives the answers that a test wants."""

    def __init__(
        self,
        answer: Handler | HttpResponse,
        extra: dict[str, Any] | None = None,
        buffers: Buffers | None = None,
        limits: Limits | None = None,
    ) -> None:
        config = ConsumerConfig(listen=["127.0.0.1:1"], allow_classic=True, limits=limits or Limits())
        self.requests: list[RequestReceived] = []
        self.closed: list[Closed] = []
        self.full = False
        self.transport = FakeTransport(extra)

        def endpoint(_connection: Connection, request: RequestReceived) -> Handler | HttpResponse:
            self.requests.append(request)
            return answer

        keys = Keys(CLIENTS, PSK)
        self.connection = Connection.accept(endpoint, keys, config, owner=self, buffers=buffers)
        self.connection.connection_made(self.transport)

    def refusal(self, connection: Connection) -> str:
        return "this node has all the connections that it may have" if self.full else ""

    def lost(self, connection: Connection, closed: Closed) -> None:
        self.closed.append(closed)

    def exchange(self, peer: Session) -> None:
        """Carry bytes both ways until both are silent."""
        while upstream := b"".join(peer.data_to_send()):
            self.connection.data_received(upstream)
            downstream, self.transport.written = self.transport.written, b""
            peer.receive_data(downstream)


@pytest.mark.parametrize("peer_is_node", [True, False])
async def test_the_endpoint_chooses_the_handler_and_the_key(peer_is_node: bool) -> None:
    handler = Recorder()
    handler.peer_is_node = peer_is_node  # type: ignore[misc]
    accepted = Accepted(handler)
    right, wrong = (PSK, CLIENTS) if peer_is_node else (CLIENTS, PSK)
    accepted.exchange(peer := initiate(right, offer_v2=True))
    assert accepted.requests == [RequestReceived("/producer", "node.example:10001", offers_subprotocol=True)]
    assert accepted.connection.handler is handler
    assert peer.established
    assert handler.calls == ["established", "received"]
    refused = Accepted(handler)
    refused.exchange(peer := initiate(wrong, offer_v2=True))
    assert not peer.established


async def test_a_page_ends_the_connection_without_a_handler() -> None:
    accepted = Accepted(HttpResponse(404, "no\n"))
    accepted.exchange(peer := initiate())
    assert peer.closed == Closed(404, "HTTP Not Found", by_peer=True)
    assert accepted.connection.handler is None
    assert accepted.transport.ended
    accepted.connection.connection_lost(None)
    assert accepted.closed == [Closed(404, "Not Found", by_peer=False)]


async def test_a_handler_gets_no_events_before_the_hello_is_done() -> None:
    handler = Recorder()
    accepted = Accepted(handler)
    peer = initiate()
    pong = RawPeer(Role.ACCEPTOR).frame(Opcode.PONG, b"early")
    accepted.connection.data_received(b"".join(peer.data_to_send()) + pong)
    accepted.connection.data_received(pong)
    assert handler.calls == []
    assert accepted.connection.handler is handler
    peer.receive_data(accepted.transport.written)
    accepted.transport.written = b""
    accepted.exchange(peer)
    assert (handler.calls, handler.events) == (["established", "received"], [HelloDone()])
    accepted.connection.data_received(peer.frame([b'{"t":"m","d":"x","s":"news"}']))
    assert received(handler.events) == [("x", "news")]


async def test_a_peer_that_the_owner_does_not_admit_is_closed_and_its_handler_gets_nothing() -> None:
    handler = Recorder()
    accepted = Accepted(handler)
    accepted.full = True
    accepted.exchange(peer := initiate(offer_v2=True))
    reason = "this node has all the connections that it may have"
    assert peer.closed == Closed(CloseCode.TRY_AGAIN_LATER, reason, by_peer=True)
    assert handler.calls == []


async def test_the_handler_hears_of_the_loss_before_the_owner() -> None:
    handler = Recorder()
    accepted = Accepted(handler)
    accepted.exchange(initiate())
    accepted.connection.connection_lost(None)
    assert handler.calls[-1] == "lost"
    assert accepted.closed == [Closed(1006, "connection lost", by_peer=True)]


async def test_the_rest_of_a_frame_counts_until_the_connection_is_aborted_for_it() -> None:
    handler = Recorder()
    handler.peer_is_node = False  # type: ignore[misc]
    buffers = Buffers(1_000_000)
    accepted = Accepted(handler, buffers=buffers)
    accepted.exchange(initiate(CLIENTS))
    accepted.transport.unwritten = 900_000
    accepted.connection.pause_writing()
    accepted.connection.send_frames(b"x" * 200_000)
    # The frame is dropped; the close frame comes behind the rest of the one that is being written.
    assert accepted.connection.session.closed == Closed(CloseCode.TRY_AGAIN_LATER, mock.ANY, by_peer=False)
    assert 900_000 <= buffers.bytes < 901_000
    open_before = not accepted.transport.ended
    buffers.limit = 800_000
    buffers.count(mock.Mock(), 0)
    assert (open_before, accepted.transport.ended) == (True, True)
    assert buffers.bytes == 0
    accepted.connection.connection_lost(None)
    assert buffers.bytes == 0


class Turns:
    """A connection with a peer that has proved itself, in turns of the loop."""

    def __init__(self) -> None:
        self.handler = Recorder()
        self.accepted = Accepted(self.handler)
        self.connection, self.transport = self.accepted.connection, self.accepted.transport
        self.peer = initiate()
        self.accepted.exchange(self.peer)
        self.frames = RawPeer(Role.ACCEPTOR)
        self.handler.events.clear()

    def receive(self, data: bytes) -> None:
        """Take a read, as the loop does: no other comes while reading is paused."""
        assert self.transport.reading
        self.connection.data_received(data)

    async def next(self) -> list[tuple[str, str]]:
        """Let the loop turn once; return the messages that it brings."""
        self.handler.events.clear()
        await asyncio.sleep(0)
        return received(self.handler.events)

    async def settle(self) -> list[list[tuple[str, str]]]:
        """Let the loop turn until everything is taken; return the messages of each turn."""
        turns = [received(self.handler.events)]
        while not self.transport.reading:
            turns.append(await self.next())
        return turns


def messages(count: int, size: int) -> list[tuple[str, str]]:
    return [(f"{number}".ljust(size, "x"), "news") for number in range(count)]


def frames_of(peer: Session, wanted: list[tuple[str, str]]) -> bytes:
    return peer.frame([message(*one) for one in wanted])


async def test_a_turn_takes_one_read_of_a_connection() -> None:
    turns = Turns()
    wanted = messages(960, 1000)
    turns.receive(frames_of(turns.peer, wanted))
    assert not turns.transport.reading
    taken = await turns.settle()
    assert [one for turn in taken for one in turn] == wanted
    assert len(taken) == 4
    assert max(map(len, taken)) <= TURN_BYTES // 1000


async def test_others_come_first_after_a_read_that_filled_the_buffer() -> None:
    turns = Turns()
    wanted = messages(230, 1000)
    turns.receive(frames_of(turns.peer, wanted))
    assert (received(turns.handler.events), turns.transport.reading) == (wanted, True)
    turns.handler.events.clear()
    wanted = messages(248, 1000)
    turns.receive(frames_of(turns.peer, wanted))
    assert (received(turns.handler.events), turns.transport.reading) == (wanted, False)
    assert (await turns.next(), turns.transport.reading) == ([], True)


@pytest.mark.parametrize("size", [1, 10])
async def test_a_turn_takes_a_bounded_number_of_frames(size: int) -> None:
    turns = Turns()
    wanted = [(f"{number}", f"topic {number}") for number in range(7200)]
    data = frames_of(turns.peer, wanted)
    assert len(data) <= 2 * TURN_BYTES
    turns.receive(data[:size])
    turns.receive(data[size:])
    taken = await turns.settle()
    assert sorted(one for turn in taken for one in turn) == sorted(wanted)
    # One more, which had begun in the read before.
    assert max(map(len, taken)) <= TURN_CLASSIC_FRAMES + 1


async def test_a_pong_comes_after_the_messages_before_its_ping_and_in_the_turn_of_the_ping() -> None:
    turns = Turns()
    before, after = messages(400, 1000), messages(200, 1000)
    pings = [turns.frames.frame(Opcode.PING, b"%d" % number) for number in range(600)]
    data = frames_of(turns.peer, before) + b"".join(pings) + frames_of(turns.peer, after)
    turns.receive(data)
    seen: list[tuple[str, str]] = []
    pongs: list[bytes] = []
    for turn in range(100):
        seen += received(turns.handler.events) if turn == 0 else await turns.next()
        new = pongs_in(turns.transport)
        assert not new or seen[: len(before)] == before
        assert len(seen) == len(before) or len(pongs + new) == len(pings) or not new
        pongs += new
        if turns.transport.reading:
            break
    assert seen == before + after
    assert pongs == [b"%d" % number for number in range(600)]


def pongs_in(transport: FakeTransport) -> list[bytes]:
    """Return the pongs that were written since the last call."""
    data, transport.written = transport.written, b""
    pongs, position = [], 0
    while position < len(data):
        payloads, after = cut_controls(data, position, masked=False, max_message_bytes=125, max_frames=1)
        assert after > position
        pongs += payloads
        position = after
    return pongs


async def test_pauses_nest_in_the_middle_of_a_read() -> None:
    turns = Turns()
    wanted = messages(960, 1000)
    turns.receive(frames_of(turns.peer, wanted))
    seen = received(turns.handler.events)
    turns.connection.pause_reading()
    turns.connection.pause_reading()
    assert [await turns.next() for _ in range(3)] == [[], [], []]
    turns.connection.resume_reading()
    assert [await turns.next() for _ in range(3)] == [[], [], []]
    assert not turns.transport.reading
    turns.connection.resume_reading()
    assert not turns.transport.reading
    for turn in (await turns.settle())[1:]:
        seen += turn
    assert seen == wanted


async def test_a_handler_that_pauses_gets_nothing_more() -> None:
    turns = Turns()
    turns.handler.on_received = turns.connection.pause_reading
    turns.receive(frames_of(turns.peer, messages(960, 1000)))
    first = len(received(turns.handler.events))
    assert 0 < first <= TURN_BYTES // 1000
    assert await turns.next() == await turns.next() == []
    turns.connection.resume_reading()
    assert 0 < len(await turns.next()) <= TURN_BYTES // 1000
    assert not turns.transport.reading


async def test_nothing_is_taken_after_a_failure_in_the_middle_of_a_read() -> None:
    turns = Turns()
    turns.receive(frames_of(turns.peer, messages(960, 1000)))
    turns.connection.fail(CloseCode.UNEXPECTED_PACKET)
    assert [await turns.next() for _ in range(5)] == [[]] * 5


async def test_nothing_is_taken_after_the_loss_in_the_middle_of_a_read() -> None:
    turns = Turns()
    turns.receive(frames_of(turns.peer, messages(960, 1000)))
    turns.transport.ended = True
    turns.connection.connection_lost(None)
    assert [await turns.next() for _ in range(5)] == [[]] * 5
    assert turns.handler.calls[-1] == "lost"


async def test_messages_behind_a_close_of_this_end_are_still_taken() -> None:
    turns = Turns()
    wanted = messages(960, 1000)
    turns.receive(frames_of(turns.peer, wanted))
    seen = received(turns.handler.events)
    turns.connection.close(CloseCode.GOING_AWAY)
    for turn in (await turns.settle())[1:]:
        seen += turn
    assert seen == wanted


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
async def test_a_peer_that_floods_with_control_frames_is_read_slowly(
    opcode: Opcode, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("wsqueue.net.connection.monotonic", lambda: now)
    turns = Turns()
    frame = turns.frames.frame(opcode, b"")
    burst = int(BURDEN_PER_SECOND * BURDEN_BURST_SECONDS)
    for _ in range(5):
        # A thousand at once are welcome, again and again.
        turns.receive(frame * 1000)
        await turns.settle()
        now += 1000 / BURDEN_PER_SECOND
    for count in range(burst // TURN_CLASSIC_FRAMES + 1):
        assert turns.transport.reading, count
        turns.connection.data_received(frame * TURN_CLASSIC_FRAMES)
    # It is for the clock to go on, and turns without delay bring nothing more.
    assert [await turns.next() for _ in range(3)] == [[]] * 3
    assert not turns.transport.reading


async def test_a_stranger_that_floods_is_not_read_and_closed_when_its_hello_is_late() -> None:
    accepted = Accepted(Recorder(), limits=Limits(hello_seconds=0.05))
    connection, transport = accepted.connection, accepted.transport
    peer = initiate()
    connection.data_received(b"".join(peer.data_to_send()))
    transport.written = b""
    pings = RawPeer(Role.ACCEPTOR).frame(Opcode.PING, b"x" * 100) * 1000
    connection.data_received(pings)
    # Neither answered nor closed: it would send as much on another connection.
    assert (transport.reading, transport.ended, transport.written) == (False, False, b"")
    assert connection.session.unfinished_bytes == 0
    await eventually(lambda: transport.written, "the close frame is written")
    # It is read again, so that it can answer the close frame; nothing of that is looked at.
    assert transport.reading
    assert connection.session.closed == Closed(CloseCode.EARLY_DATA, mock.ANY, by_peer=False)
    connection.data_received(pings)
    assert connection.session.unfinished_bytes == 0
    connection.connection_lost(None)
    assert [closed.code for closed in accepted.closed] == [CloseCode.EARLY_DATA]


@pytest.mark.parametrize(
    ("peer", "own", "here"),
    [
        (("127.0.0.2", 5), ("127.0.0.1", 10001), True),
        (("192.0.2.7", 5), ("192.0.2.7", 10001), True),
        (("2001:db8::7", 5, 0, 0), ("2001:db8::7", 10001, 0, 0), True),
        (("192.0.2.8", 5), ("192.0.2.7", 10001), False),
        ("", "/run/socket", True),
    ],
)
async def test_a_peer_on_this_host_is_known_by_its_address(peer: object, own: object, here: bool) -> None:
    """Also by the address at which others reach this host, as a playbook asks its own nodes over TLS."""
    accepted = Accepted(Recorder(), {"peername": peer, "sockname": own})
    assert accepted.connection.from_this_host is here
