"""The protocol of one connection, without I/O: bytes in, events out; packets in, bytes out.

One class for both roles, in four phases: the opening handshake (`framing`, `upgrade`), the hello (`hello`,
`hello_v2`), packets, the close handshake. A peer's fault never raises: it ends the session with a close code,
which `data_to_send` puts on the wire and `closed` keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Self

import msgspec

from . import classic, v2
from .access import BEARER, BearerError, KeyRing, Peer
from .close import CloseCode, Closed, PeerError
from .event_framing import EventFraming
from .frames import frame_messages
from .framing import (
    LIBRARY_FRAMES,
    TURN_CLASSIC_FRAMES,
    TURN_FRAMES,
    BodyReceived,
    Framing,
    HttpResponse,
    Item,
    PongReceived,
    RequestReceived,
    TooLong,
    Upgraded,
)
from .hello import ClassicHandshake
from .hello_v2 import Context, V2Handshake
from .keys import Order, PreSharedKey, Role
from .upgrade import COOKIE, UNAUTHENTICATED, ClientFraming, ServerFraming, credential_of
from .v2 import SUBPROTOCOL

MAX_HELLO_BYTES = 64 * 1024
"""Most bytes from a peer until it has proved itself: a request with cookies, and two packets of 100 bytes."""

ALIVE = v2.encode(v2.Alive())

BEARER_OR_COOKIE = f"{BEARER} or the cookie `{COOKIE}`"
"""Where a `GET` may have a credential."""

OWN_PACKETS = frozenset((*v2.HELLO_PACKETS, v2.AskAlive))
"""Packets of v2 that the session deals with itself."""


MAX_HELLO_BURDEN = 4 * LIBRARY_FRAMES
"""Pings and pongs from a peer until it has proved itself, 32; a tiny fragment counts as eight of them."""


class HelloDone(msgspec.Struct, frozen=True):
    """Report that both ends have proved themselves."""


class MessagesReceived(msgspec.Struct):
    """Report messages of one topic that came in one read, in their order.

    Attributes:
        topic: Topic of all messages.
        messages: The messages, decoded.
        payloads: The same messages as they came.
    """

    topic: str
    messages: list[classic.Message]
    payloads: list[bytes]

    def batches(self, max_bytes: int) -> Iterator[list[str]]:
        """Yield the data in batches, whose payloads have at most `max_bytes` together, or are one message."""
        data = [message.data for message in self.messages]
        if sum(map(len, self.payloads)) <= max_bytes:
            yield data
            return
        size = begin = 0
        for index, payload in enumerate(self.payloads):
            if size and size + len(payload) > max_bytes:
                yield data[begin:index]
                size, begin = 0, index
            size += len(payload)
        yield data[begin:]


class MessageDropped(msgspec.Struct, frozen=True):
    """Report a classic message that cannot be taken; the session goes on.

    Attributes:
        reason: Why, in a few words that quote no message.
    """

    reason: str


HttpEvent = RequestReceived | BodyReceived
Event = HttpEvent | HelloDone | MessagesReceived | MessageDropped | PongReceived | v2.Packet


class Session:
    """Speak one connection's protocol: v2 when both ends know it, else the classic one.

    Args:
        framing: The WebSocket.
        role: The end.
        psk: The key; an acceptor gets its keys in `accept`.
        order: The order in which an initiator answers a classic challenge.
        allow_classic: True if the peer may speak the classic protocol; None to allow it only without TLS.
        max_topic_bytes: A message with a longer topic (UTF-8) ends a classic session.

    Attributes:
        channel_binding: SHA-256 of the acceptor's certificate, b"" without TLS; set before any data comes.
        unbound: True if the peer need not name the certificate, because a proxy may end TLS.
        prefix: Path that a proxy may have removed from the request.
        v2: True if the peer speaks v2; known when the hello is done.
        asked_alive: True if the peer has asked whether this end is there, because it cannot ping.
        peer: The initiator, once it has proved itself to this acceptor.
        asks_for_v2: True if the peer has asked for a WebSocket of v2, whatever the answer was.
        claimed: The name that a peer says its key has, and its token's user, "" if it says none.
    """

    __slots__ = (
        "_allow_classic",
        "_done",
        "_drops",
        "_framing",
        "_handshake",
        "_hello_begun",
        "_hello_burden",
        "_hello_bytes",
        "_keys",
        "_max_topic_bytes",
        "_now",
        "_order",
        "_request",
        "_role",
        "asked_alive",
        "asks_for_v2",
        "channel_binding",
        "claimed",
        "peer",
        "prefix",
        "unbound",
        "v2",
    )

    def __init__(
        self,
        framing: Framing,
        role: Role,
        psk: PreSharedKey | None,
        order: Order,
        *,
        allow_classic: bool | None,
        max_topic_bytes: int,
    ) -> None:
        self.channel_binding, self.prefix, self.unbound = b"", "", False
        self.v2 = self.asked_alive = self.asks_for_v2 = self._done = self._hello_begun = False
        self._framing = framing
        self._role, self._order = role, order
        self._keys: PreSharedKey | KeyRing | None = psk
        self._now = 0.0
        self.peer: Peer | None = None
        self.claimed = ""
        self._allow_classic = allow_classic
        self._handshake: ClassicHandshake | V2Handshake | None = None
        self._max_topic_bytes = max_topic_bytes
        self._hello_bytes = self._hello_burden = 0
        # One more than are due, and a stranger's frames are not worth the time.
        framing.turn_frames = MAX_HELLO_BURDEN + 1
        self._request: RequestReceived | None = None
        self._drops = False

    @classmethod
    def acceptor(
        cls,
        *,
        allow_classic: bool | None = None,
        max_message_bytes: int,
        max_topic_bytes: int,
    ) -> Self:
        """Return the acceptor's end, which waits for a request."""
        return cls(
            ServerFraming(max_message_bytes, SUBPROTOCOL),
            Role.ACCEPTOR,
            None,
            Order.DOCUMENT,
            allow_classic=allow_classic,
            max_topic_bytes=max_topic_bytes,
        )

    @classmethod
    def initiator(
        cls,
        host: str,
        port: int,
        path: str,
        psk: PreSharedKey,
        order: Order = Order.DOCUMENT,
        *,
        offer_v2: bool = True,
        allow_classic: bool | None = None,
        max_message_bytes: int,
        max_topic_bytes: int,
    ) -> Self:
        """Return the initiator's end, its request already in `data_to_send`."""
        subprotocols = [SUBPROTOCOL] if offer_v2 else []
        framing = ClientFraming(host, port, path, max_message_bytes, subprotocols)
        return cls(
            framing,
            Role.INITIATOR,
            psk,
            order,
            allow_classic=allow_classic,
            max_topic_bytes=max_topic_bytes,
        )

    @property
    def allows_classic(self) -> bool:
        """Return True if the peer may speak the classic protocol."""
        return self._allow_classic if self._allow_classic is not None else not self.channel_binding

    @property
    def overrun(self) -> bool:
        """Return True if the session ended because of the control frames of a peer that proved nothing."""
        return self._hello_burden > MAX_HELLO_BURDEN

    @property
    def established(self) -> bool:
        """Return True if messages may be sent: the hello is done and neither end has closed."""
        return self._done and self._framing.open

    @property
    def unanswered(self) -> bool:
        """Return True from `accept_post` or `accept_get` until the request is answered."""
        return isinstance(self._framing, ServerFraming) and self._framing.unanswered

    @property
    def streams(self) -> bool:
        """Return True from `stream` on: events go out, and nothing comes in."""
        return isinstance(self._framing, EventFraming)

    @property
    def quiet(self) -> bool:
        """Return True if nothing is to be done after a read, as after most reads.

        There is nothing to send, no rest and no burden, and the connection isn't closing.
        """
        return self._framing.quiet

    @property
    def unfinished_bytes(self) -> int:
        """Return the bytes that came of a message whose end has not."""
        return self._framing.unfinished_bytes

    @property
    def behind(self) -> bool:
        """Return True if there are bytes that the latest call did not take: call `receive_data` again."""
        return self._framing.behind

    @property
    def closing(self) -> bool:
        """Return True if the TCP connection should end soon; if it doesn't, abort it."""
        return self._framing.closing

    @property
    def closed(self) -> Closed | None:
        """Return why the session ended or is about to end, None while it goes on."""
        return self._framing.closed

    @property
    def closed_cleanly(self) -> bool:
        """Return True if the peer has closed, or echoed our close, and so has read all that we sent."""
        return self._framing.closed_cleanly

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the network; return the events in them, in order.

        A `RequestReceived` comes alone: answer it with `accept` or `respond`. A call takes a bounded number
        of frames, and keeps the bytes behind them for the next one, which may bring no others: see `behind`.
        """
        items = self._framing.receive_data(data)
        if not self._done:
            self._hello_bytes += len(data)
        return self._take(items)

    def take_burden(self) -> int:
        """Return the number of control frames and tiny fragments since the last call."""
        return self._framing.take_burden()

    def accept(
        self, keys: PreSharedKey | KeyRing, *, now: float = 0.0, drops_bad_messages: bool = False
    ) -> list[Event]:
        """Open the WebSocket that was requested, for a peer that must know a key.

        Args:
            keys: The key, or all that are taken.
            now: Unix time, by which tokens are judged.
            drops_bad_messages: True if the peer passes on the messages of others, so that a bad classic
                message is not its fault: a `MessageDropped` reports it, and the session goes on.

        Returns:
            The events in the bytes that came behind the request.
        """
        request, framing = self._request, self._framing
        assert request is not None, "there is no request to answer"
        assert isinstance(framing, ServerFraming)
        if not request.offers_subprotocol and not self.allows_classic:
            self.respond(
                HttpResponse(HTTPStatus.UPGRADE_REQUIRED, f"Expected the subprotocol {SUBPROTOCOL}.\n")
            )
            return []
        self._request, self._keys, self._drops = None, keys, drops_bad_messages
        self._now = now
        return self._take(framing.accept())

    def accept_post(self, keys: KeyRing, *, now: float) -> list[Event]:
        """Read the body of the `POST` that was requested, from a peer with a credential; else respond.

        Args:
            keys: All keys that are taken.
            now: Unix time, by which tokens are judged.

        Returns:
            `HelloDone`, because the credential of a request takes the place of the hello, and the body if it
            came already. Else a `BodyReceived` comes later. Then answer it with `respond`.
        """
        request, framing = self._request, self._framing
        assert request is not None, "there is no request to answer"
        assert request.post is not None, "the request has no body"
        assert isinstance(framing, ServerFraming)
        if not self._proves_by_bearer(keys, request.post.bearer, now):
            return []
        return [HelloDone(), *self._take(framing.take_body())]

    def accept_get(self, keys: KeyRing, *, now: float) -> list[Event]:
        """Keep the `GET` that was requested, from a peer with a credential; else respond.

        Args:
            keys: All keys that are taken.
            now: Unix time, by which tokens are judged.

        Returns:
            `HelloDone`, as `accept_post` does. Then answer it with `stream` or `respond`.
        """
        request, framing = self._request, self._framing
        assert request is not None, "there is no request to answer"
        assert request.get is not None, "the request is another one"
        assert isinstance(framing, ServerFraming)
        if not self._proves_by_bearer(keys, credential_of(request.get), now, BEARER_OR_COOKIE):
            return []
        framing.hold()
        return [HelloDone()]

    def stream(self, headers: Mapping[str, str]) -> None:
        """Answer a `GET` with events without end, which `Connection` writes.

        Args:
            headers: Headers of the response.
        """
        assert isinstance(self._framing, ServerFraming)
        self._framing = self._framing.stream(headers)

    def say_inside_event(self, inside: bool) -> None:
        """Note whether a part of an event is still to be written, so that nothing else comes before it."""
        if isinstance(self._framing, EventFraming):
            self._framing.inside_event = inside

    def respond(self, page: HttpResponse) -> None:
        """Answer the request with a page, which ends the session."""
        self._request = None
        assert isinstance(self._framing, ServerFraming)
        self._framing.respond(page)

    def receive_eof(self) -> None:
        """Take the end of the peer's stream."""
        self._framing.receive_eof()

    def data_to_send(self) -> list[bytes]:
        """Return the bytes to write, where b"" means to half-close the connection."""
        return self._framing.data_to_send()

    def frame(self, payloads: Sequence[bytes]) -> bytes:
        """Return the payloads as frames of this end, for one write while `established`."""
        return frame_messages(payloads, masked=self._framing.masked, binary=self._framing.binary)

    def ping(self, data: bytes = b"") -> None:
        """Queue a ping of at most 125 bytes, unless the session is ending."""
        self._framing.send_ping(data)

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Begin the close handshake; messages that come before the peer's close frame are still read."""
        self._framing.close(code, reason or code.reason)

    def fail(self, code: CloseCode, reason: str = "") -> None:
        """End the session at once, unless it has ended; nothing more is read from the peer."""
        self._framing.fail(code, reason or code.reason)

    def _proves_by_bearer(self, keys: KeyRing, bearer: str, now: float, place: str = BEARER) -> bool:
        """Return True if a credential takes the place of the hello; respond if it does not."""
        try:
            self.peer = keys.find_bearer(bearer, now, place)
        except BearerError as error:
            self.claimed = error.claimed
            self.respond(HttpResponse(HTTPStatus.UNAUTHORIZED, f"{error}\n", headers=UNAUTHENTICATED))
            return False
        self._done, self._request = True, None
        return True

    def _take(self, items: list[Item]) -> list[Event]:
        events: list[Event] = []
        try:
            for item in items:
                if isinstance(item, list):
                    self._receive_texts(item, events)
                elif isinstance(item, Upgraded):
                    self._begin_hello(item)
                elif isinstance(item, TooLong):
                    reason = f"{item.bytes} bytes are more than max_message_bytes"
                    events.append(MessageDropped(reason))
                else:
                    if isinstance(item, RequestReceived):
                        self._request, self.asks_for_v2 = item, item.offers_subprotocol
                    events.append(item)
            if not self._done:
                self._check_hello()
        except PeerError as error:
            self._framing.refuse(error.code, error.reason)
        return events

    def _receive_texts(self, payloads: list[bytes], events: list[Event]) -> None:
        if not self._done:
            payloads = self._receive_hello(payloads, events)
        if self.v2:
            for payload, packet in zip(payloads, v2.decode_all(payloads), strict=True):
                if type(packet) in OWN_PACKETS:
                    if not isinstance(packet, v2.AskAlive):
                        self._refuse_second_hello(payload)
                    elif self._role is Role.ACCEPTOR:
                        self.asked_alive = True
                        self._framing.send_message(ALIVE)
                        continue
                events.append(packet)
        elif payloads:
            self._receive_messages(payloads, events)

    def _receive_messages(self, payloads: list[bytes], events: list[Event]) -> None:
        groups = self._group_messages(payloads)
        if groups is not None:
            events += groups
            return
        for payload in payloads:
            try:
                packet = self._take_message(payload)
            except PeerError as error:
                if not (self._drops and classic.is_any_message(payload)):
                    raise
                events.append(MessageDropped(error.reason))
            else:
                events.append(MessagesReceived(packet.topic, [packet], [payload]))

    def _take_message(self, payload: bytes) -> classic.Message:
        packet = classic.decode(payload)
        if isinstance(packet, classic.Hello):
            self._refuse_second_hello(payload)
        if not isinstance(packet, classic.Message):
            raise PeerError(CloseCode.UNEXPECTED_PACKET)
        if self._too_long(packet.topic):
            raise PeerError(CloseCode.TOPIC_TOO_LONG, f"at most {self._max_topic_bytes} bytes")
        return packet

    def _group_messages(self, payloads: list[bytes]) -> Iterable[MessagesReceived] | None:
        """Return messages by topic, or None if any is wrong: decoding them one by one tells which."""
        decoded = classic.decode_messages(payloads)
        if decoded is None:
            return None
        messages, topics = decoded
        first = topics[0]
        if topics.count(first) == len(topics):
            return None if self._too_long(first) else (MessagesReceived(first, messages, payloads),)
        groups: dict[str, MessagesReceived] = {}
        for topic, message, payload in zip(topics, messages, payloads, strict=True):
            group = groups.get(topic)
            if group is None:
                group = groups[topic] = MessagesReceived(topic, [], [])
            group.messages.append(message)
            group.payloads.append(payload)
        return None if any(map(self._too_long, groups)) else groups.values()

    def _too_long(self, topic: str) -> bool:
        return classic.topic_too_long(topic, self._max_topic_bytes)

    def _begin_hello(self, opened: Upgraded) -> None:
        if opened.subprotocol is None:
            self._begin_classic_hello()
            return
        assert self._keys is not None
        self._framing.allow_more(v2.OVERHEAD_BYTES)
        context = Context(
            opened.path, opened.offered, self.channel_binding, unbound=self.unbound, prefix=self.prefix
        )
        self._handshake = V2Handshake(self._role, self._keys, context, self._now)
        self._send_hello(self._handshake.begin())

    def _begin_classic_hello(self) -> None:
        if not self.allows_classic:
            raise PeerError(CloseCode.CLASSIC_REFUSED)
        assert self._keys is not None
        self._handshake = ClassicHandshake(self._role, self._keys, self._order)
        self._send_hello(self._handshake.begin())

    def _receive_hello(self, payloads: list[bytes], events: list[Event]) -> list[bytes]:
        """Take the packets of the hello; return the payloads behind it."""
        for count, payload in enumerate(payloads, 1):
            if not self._hello_begun:
                self._hello_begun = True
                self._follow_an_acceptor_into_classic()
            self._take_hello(payload)
            if self._done:
                events.append(HelloDone())
                return payloads[count:]
        return []

    def _follow_an_acceptor_into_classic(self) -> None:
        """Begin the classic hello if the acceptor's first packet is a text, though it selected v2.

        The library of the original nodes selects the first subprotocol, whatever it is.
        """
        if isinstance(self._handshake, V2Handshake) and not self._framing.binary:
            self._framing.allow_more(-v2.OVERHEAD_BYTES)
            self._begin_classic_hello()

    def _take_hello(self, payload: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        try:
            answer = handshake.receive_payload(payload)
        except PeerError as error:
            if isinstance(handshake, V2Handshake):
                self.claimed = handshake.claimed
            if error.code is CloseCode.WRONG_ANSWER:
                self._send_hello(handshake.refusal())
            raise
        self._send_hello(answer)
        self._done = handshake.done
        if self._done:
            self.v2 = isinstance(handshake, V2Handshake)
            self.peer = handshake.peer
            self._framing.skips_long = self._drops and not self.v2
            self._framing.turn_frames = TURN_FRAMES if self.v2 else TURN_CLASSIC_FRAMES

    def _refuse_second_hello(self, payload: bytes) -> None:
        assert self._handshake is not None
        self._handshake.receive_payload(payload)
        raise AssertionError("a hello that is done takes no more packets")

    def _check_hello(self) -> None:
        self._hello_burden += self._framing.take_burden()
        if self._request is not None or self.closed is not None:
            return
        if self._hello_bytes > MAX_HELLO_BYTES:
            raise PeerError(CloseCode.EARLY_DATA, f"more than {MAX_HELLO_BYTES} bytes")
        if self.overrun:
            raise PeerError(CloseCode.EARLY_DATA, "too many control frames or tiny fragments")

    def _send_hello(self, packet: classic.Hello | v2.HelloPacket | None) -> None:
        if packet is not None:
            payload = classic.encode(packet) if isinstance(packet, classic.Hello) else v2.encode(packet)
            self._framing.send_message(payload)
