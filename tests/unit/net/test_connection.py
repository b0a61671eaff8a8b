"""An acceptor's connection on a transport that the test plays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from websockets.frames import Opcode

from wsqueue.config.keys import Keys
from wsqueue.config.model import ConsumerConfig
from wsqueue.net.connection import Connection, Handler
from wsqueue.protocol.close import Closed
from wsqueue.protocol.framing import HttpResponse, RequestReceived
from wsqueue.protocol.keys import PreSharedKey, Role
from wsqueue.protocol.session import Event, HelloDone, Session

from ...support.session_pair import PSK, RawPeer, initiate, received

pytestmark = pytest.mark.anyio

CLIENTS = PreSharedKey("the key of clients")


class FakeTransport(asyncio.Transport):
    """Keep the bytes that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False

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
        return 0


class Recorder(Handler):
    """Keep the calls of a connection."""

    peer_is_node = True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events: list[Event] = []

    def established(self, connection: Connection) -> None:
        self.calls.append("established")

    def received(self, connection: Connection, events: list[Event]) -> None:
        self.calls.append("received")
        self.events += events

    def lost(self, connection: Connection, closed: Closed) -> None:
        self.calls.append("lost")


class Accepted:
    """A connection whose endpoint gives the answers that a test wants."""

    def __init__(self, answer: Handler | HttpResponse) -> None:
        config = ConsumerConfig(listen=["127.0.0.1:1"], allow_classic=True)
        self.requests: list[RequestReceived] = []
        self.closed: list[Closed] = []
        self.transport = FakeTransport()

        def endpoint(_connection: Connection, request: RequestReceived) -> Handler | HttpResponse:
            self.requests.append(request)
            return answer

        def on_lost(_connection: Connection, closed: Closed) -> None:
            self.closed.append(closed)

        keys = Keys(nodes=PSK, clients=CLIENTS)
        self.connection = Connection.accept(endpoint, keys, config, on_lost=on_lost)
        self.connection.connection_made(self.transport)

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


async def test_the_handler_hears_of_the_loss_before_the_owner() -> None:
    handler = Recorder()
    accepted = Accepted(handler)
    accepted.exchange(initiate())
    accepted.connection.connection_lost(None)
    assert handler.calls[-1] == "lost"
    assert accepted.closed == [Closed(1006, "connection lost", by_peer=True)]
