"""Two ends of a connection joined in memory: two sessions, or a session and a bare WebSocket peer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import ClassVar

from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from wsqueue.protocol.framing import HttpResponse, RequestReceived
from wsqueue.protocol.keys import Order, PreSharedKey, Role
from wsqueue.protocol.session import Event, MessagesReceived, Session

from . import classic_peer
from .examples import examples

SECRET = "correct horse battery staple"
PSK = PreSharedKey(SECRET)
PATH = "/producer"
MAX_MESSAGE_BYTES = 4096
MAX_TOPIC_BYTES = 32

few = examples(60)
many = examples(300)


def pages(path: str) -> HttpResponse | None:
    """Upgrade at `PATH`; answer `/` with a page and the rest with 404."""
    if path == PATH:
        return None
    return HttpResponse(200, "wsqueue\n") if path == "/" else HttpResponse(404, "Not found.\n")


class AnsweringSession(Session):
    """An acceptor that answers each request at once, as a node does.

    Attributes:
        answer: From the path of a request to a page, or to the key that its peer must know.
    """

    answer: Callable[[str], HttpResponse | PreSharedKey]

    def receive_data(self, data: bytes) -> list[Event]:
        events = super().receive_data(data)
        if not events or not isinstance(events[0], RequestReceived):
            return events
        assert len(events) == 1
        answer = self.answer(events[0].path)
        if isinstance(answer, PreSharedKey):
            return self.accept(answer)
        self.respond(answer)
        return []


def accept(
    psk: PreSharedKey = PSK,
    answer_request: Callable[[str], HttpResponse | None] = pages,
    *,
    allow_classic: bool | None = None,
) -> AnsweringSession:
    session = AnsweringSession.acceptor(
        allow_classic=allow_classic,
        max_message_bytes=MAX_MESSAGE_BYTES,
        max_topic_bytes=MAX_TOPIC_BYTES,
    )
    session.answer = lambda path: answer_request(path) or psk
    return session


def initiate(
    psk: PreSharedKey = PSK,
    order: Order = Order.DOCUMENT,
    path: str = PATH,
    *,
    offer_v2: bool = False,
    allow_classic: bool | None = None,
) -> Session:
    return Session.initiator(
        "node.example",
        10001,
        path,
        psk,
        order,
        offer_v2=offer_v2,
        allow_classic=allow_classic,
        max_message_bytes=MAX_MESSAGE_BYTES,
        max_topic_bytes=MAX_TOPIC_BYTES,
    )


def message(data: str, topic: str = "news") -> bytes:
    """Return the payload of a message, made without our encoder."""
    return json.dumps({"t": "m", "d": data, "s": topic}, ensure_ascii=False).encode()


def received(events: list[Event]) -> list[tuple[str, str]]:
    """Return the data and topics of the messages among some events."""
    messages = (event.messages for event in events if isinstance(event, MessagesReceived))
    return [(message.data, message.topic) for message in itertools.chain.from_iterable(messages)]


def by_topic(messages: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the data of each topic, in order; between topics there is no order."""
    topics: dict[str, list[str]] = {}
    for data, topic in messages:
        topics.setdefault(topic, []).append(data)
    return topics


def answer_of(once: int, secret: str = SECRET, order: Order = Order.DOCUMENT) -> str:
    """Return the right answer to a challenge, computed without our code."""
    return classic_peer.answer_of(once, secret, order.value)


def receive_all(session: Session, data: bytes) -> list[Event]:
    """Return the events in all turns that some bytes take."""
    events = session.receive_data(data)
    while session.behind:
        events += session.receive_data(b"")
    return events


class Pair:
    """Join an initiator and an acceptor."""

    def __init__(self, acceptor: Session | None = None, initiator: Session | None = None) -> None:
        self.acceptor = acceptor or accept()
        self.initiator = initiator or initiate()

    @classmethod
    def established(cls, order: Order = Order.DOCUMENT) -> Pair:
        pair = cls(initiator=initiate(order=order))
        pair.exchange()
        assert pair.acceptor.established
        assert pair.initiator.established
        return pair

    def ends(self, sender: Role) -> tuple[Session, Session]:
        """Return the end of a role and the other one."""
        ends = (self.acceptor, self.initiator)
        return ends if sender is Role.ACCEPTOR else ends[::-1]

    def exchange(self) -> tuple[list[Event], list[Event]]:
        """Carry bytes both ways until both are silent; return the events of acceptor and initiator."""
        at_acceptor: list[Event] = []
        at_initiator: list[Event] = []
        quiet = False
        while not quiet:
            upstream, downstream = self.initiator.data_to_send(), self.acceptor.data_to_send()
            quiet = not upstream and not downstream
            at_acceptor += _deliver(upstream, self.acceptor)
            at_initiator += _deliver(downstream, self.initiator)
        return at_acceptor, at_initiator


class RawPeer:
    """Stand opposite a session with the library's protocol only, and send any bytes for a test.

    Attributes:
        session: The session under test.
        opcode: Of messages, both ways.
        messages: The payloads of the messages that it has sent.
        pongs: The data of the pongs that it has sent.
        ended: Whether it has half-closed the connection.
    """

    opcode: ClassVar[Opcode] = Opcode.TEXT

    def __init__(
        self, role: Role, session: Session | None = None, subprotocols: list[Subprotocol] | None = None
    ) -> None:
        self.role = role
        self.session = session or (accept() if role is Role.ACCEPTOR else initiate())
        self.messages: list[bytes] = []
        self.pongs: list[bytes] = []
        self.ended = False
        self.masked = role is Role.ACCEPTOR
        self._protocol: ClientProtocol | ServerProtocol
        if role is Role.ACCEPTOR:
            uri = parse_uri(f"ws://node.example:10001{PATH}")
            client = ClientProtocol(uri, subprotocols=subprotocols, max_size=None)
            client.send_request(client.connect())
            self._protocol = client
        else:
            self._protocol = ServerProtocol(subprotocols=subprotocols, max_size=None)

    @classmethod
    def opened(cls, role: Role, session: Session | None = None) -> RawPeer:
        """Return a peer whose WebSocket is open and that has the session's challenge."""
        peer = cls(role, session)
        assert peer.exchange() == []
        assert len(peer.messages) == 1
        return peer

    @classmethod
    def established(cls, role: Role, session: Session | None = None) -> RawPeer:
        peer = cls.opened(role, session)
        peer.challenge(1)
        peer.answer()
        assert peer.session.established
        return peer

    @property
    def challenged_with(self) -> int:
        once = json.loads(self.messages[0])["o"]
        assert isinstance(once, int)
        return once

    @property
    def answers(self) -> list[str]:
        """Return the answers that the session has given."""
        return [packet["a"] for packet in map(json.loads, self.messages) if packet.get("a") is not None]

    @property
    def close_received(self) -> Close | None:
        return self._protocol.close_rcvd

    def challenge(self, once: int) -> list[Event]:
        return self.send(json.dumps({"t": "h", "o": once}).encode())

    def answer(self, secret: str = SECRET, order: Order = Order.DOCUMENT) -> list[Event]:
        return self.send(json.dumps({"t": "h", "a": answer_of(self.challenged_with, secret, order)}).encode())

    def send(self, *payloads: bytes) -> list[Event]:
        """Send messages in one piece, and carry bytes both ways until both are silent."""
        return self.send_bytes(b"".join(self.frame(self.opcode, payload) for payload in payloads))

    def send_bytes(self, data: bytes) -> list[Event]:
        """Send bytes as they are, and carry bytes both ways until both are silent."""
        events = receive_all(self.session, data)
        return events + self.exchange()

    def text(self, payload: bytes) -> bytes:
        return self.frame(Opcode.TEXT, payload)

    def frame(self, opcode: Opcode, payload: bytes, *, fin: bool = True) -> bytes:
        return Frame(opcode, payload, fin).serialize(mask=self.masked)

    def close_frame(self, code: int = 1000, reason: str = "") -> bytes:
        return self.frame(Opcode.CLOSE, code.to_bytes(2) + reason.encode())

    def data_to_send(self) -> bytes:
        """Return the bytes that the library wants to write, instead of delivering them."""
        return b"".join(self._protocol.data_to_send())

    def exchange(self) -> list[Event]:
        events: list[Event] = []
        quiet = False
        while not quiet:
            ours, theirs = self._protocol.data_to_send(), self.session.data_to_send()
            quiet = not ours and not theirs
            # The test decides when this end of the stream ends.
            events += _deliver([data for data in ours if data], self.session)
            for data in theirs:
                self.take(data)
        return events

    def take(self, data: bytes) -> None:
        """Take bytes that the session has written."""
        assert not self.ended, "something was written after the end of the stream"
        if not data:
            self.ended = True
            self._protocol.receive_eof()
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request) and isinstance(self._protocol, ServerProtocol):
                self._protocol.send_response(self._protocol.accept(event))
            elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY):
                assert event.opcode is self.opcode
                self.messages.append(bytes(event.data))
            elif isinstance(event, Frame) and event.opcode is Opcode.PONG:
                self.pongs.append(bytes(event.data))


def _deliver(writes: list[bytes], session: Session) -> list[Event]:
    events: list[Event] = []
    for data in writes:
        if data:
            events += receive_all(session, data)
        else:
            session.receive_eof()
    return events
