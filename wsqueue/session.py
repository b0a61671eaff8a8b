"""One wsqueue connection without I/O: bytes in, events out; packets in, bytes out.

One class for both roles. A peer's fault never raises: it ends the session with a close code, which
`data_to_send` puts on the wire and `closed` keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Self

import msgspec

from . import packets
from .errors import CloseCode, Closed, PeerError
from .framing import ClientFraming, Framing, HttpAnswer, Opened, Ponged, ServerFraming, frame_texts
from .hello import Handshake, Order, PreSharedKey, Role

MAX_HELLO_BYTES = 64 * 1024
"""What a peer may send before it has proved itself: a request with cookies, and two packets of 100 bytes."""


class Established(msgspec.Struct, frozen=True):
    """Report that both ends have proved themselves."""


class Received(msgspec.Struct):
    """Report messages of one topic that came in one read, in their order.

    Attributes:
        topic: Of all of them.
        messages: Decoded.
        payloads: The same as they came, to be forwarded without encoding them again.
    """

    topic: str
    messages: list[packets.Message]
    payloads: list[bytes]


Event = Established | Received | Ponged


class Session:
    """Speak the classic protocol on one connection.

    Args:
        framing: The WebSocket.
        handshake: The hello.
        max_topic_bytes: A message with a longer topic (UTF-8) ends the session.

    Attributes:
        channel_binding: SHA-256 of the acceptor's certificate, b"" without TLS; set before any data comes.
    """

    __slots__ = ("_framing", "_handshake", "_hello_bytes", "_max_topic_bytes", "channel_binding")

    def __init__(self, framing: Framing, handshake: Handshake, max_topic_bytes: int) -> None:
        self.channel_binding = b""
        self._framing = framing
        self._handshake = handshake
        self._max_topic_bytes = max_topic_bytes
        self._hello_bytes = 0

    @classmethod
    def accept(
        cls,
        answer_request: Callable[[str], HttpAnswer | None],
        psk: PreSharedKey,
        *,
        max_message_bytes: int,
        max_topic_bytes: int,
    ) -> Self:
        """Return the acceptor's end; `answer_request` turns paths into pages, or None to upgrade."""
        framing = ServerFraming(answer_request, max_message_bytes)
        return cls(framing, Handshake(Role.ACCEPTOR, psk), max_topic_bytes)

    @classmethod
    def initiate(
        cls,
        host: str,
        port: int,
        path: str,
        psk: PreSharedKey,
        order: Order = Order.DOCUMENT,
        *,
        max_message_bytes: int,
        max_topic_bytes: int,
    ) -> Self:
        """Return the initiator's end, its request already in `data_to_send`."""
        framing = ClientFraming(host, port, path, max_message_bytes)
        return cls(framing, Handshake(Role.INITIATOR, psk, order), max_topic_bytes)

    @property
    def established(self) -> bool:
        """Tell whether messages may be sent: the hello is done and nobody has closed."""
        return self._handshake.done and self._framing.open

    @property
    def quiet(self) -> bool:
        """Tell whether there is nothing to send and nothing ends, as after nearly every read."""
        return self._framing.quiet

    @property
    def closing(self) -> bool:
        """Tell whether the TCP connection should end soon; if it does not, it must be aborted."""
        return self._framing.closing

    @property
    def closed(self) -> Closed | None:
        """Say why the session ended or is about to, None while it goes on."""
        return self._framing.closed

    @property
    def closed_cleanly(self) -> bool:
        """Tell whether the peer has closed, or echoed our close, and so has read all that we sent."""
        return self._framing.closed_cleanly

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the network; return the events in them, in order."""
        events: list[Event] = []
        try:
            for item in self._framing.receive_data(data):
                if isinstance(item, list):
                    self._receive_texts(item, events)
                elif isinstance(item, Ponged):
                    events.append(item)
                elif isinstance(item, Opened):
                    self._send_hello(packets.Hello(once=self._handshake.once))
            if not self._handshake.done:
                self._check_hello_bytes(len(data))
        except PeerError as error:
            self._framing.refuse(error.code, error.reason)
        return events

    def receive_eof(self) -> None:
        """Take the end of the peer's stream."""
        self._framing.receive_eof()

    def data_to_send(self) -> list[bytes]:
        """Return what must be written, where b"" means to half-close the connection."""
        return self._framing.data_to_send()

    def frame(self, payloads: Sequence[bytes]) -> bytes:
        """Return the payloads as frames of this end, for one write while `established`."""
        return frame_texts(payloads, masked=self._framing.masked)

    def ping(self, data: bytes = b"") -> None:
        """Queue a ping of at most 125 bytes, unless the session is ending."""
        self._framing.send_ping(data)

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Begin the close handshake; what the peer sent before its own close frame is still read."""
        self._framing.close(code, reason or code.reason)

    def fail(self, code: CloseCode, reason: str = "") -> None:
        """End the session at once, unless it has ended; nothing more is read from the peer."""
        self._framing.fail(code, reason or code.reason)

    def _receive_texts(self, payloads: list[bytes], events: list[Event]) -> None:
        if self._handshake.done:
            groups = self._group_messages(payloads)
            if groups is not None:
                events += groups
                return
        for payload in payloads:
            packet = packets.decode(payload)
            if isinstance(packet, packets.Message):
                if not self._handshake.done:
                    raise PeerError(CloseCode.EARLY_DATA)
                if self._too_long(packet.topic):
                    raise PeerError(CloseCode.TOPIC_TOO_LONG, f"at most {self._max_topic_bytes} bytes")
                events.append(Received(packet.topic, [packet], [payload]))
            elif isinstance(packet, packets.Hello):
                self._receive_hello(packet, events)
            else:
                raise PeerError(CloseCode.UNEXPECTED_PACKET)

    def _group_messages(self, payloads: list[bytes]) -> Iterable[Received] | None:
        """Return good messages by topic, or None when anything is wrong: one by one it shows what."""
        decoded = packets.decode_messages(payloads)
        if decoded is None:
            return None
        messages, topics = decoded
        first = topics[0]
        if topics.count(first) == len(topics):
            return None if self._too_long(first) else (Received(first, messages, payloads),)
        groups: dict[str, Received] = {}
        for topic, message, payload in zip(topics, messages, payloads, strict=True):
            group = groups.get(topic)
            if group is None:
                group = groups[topic] = Received(topic, [], [])
            group.messages.append(message)
            group.payloads.append(payload)
        return None if any(map(self._too_long, groups)) else groups.values()

    def _too_long(self, topic: str) -> bool:
        # A code point takes at most 4 bytes, so the exact length is rarely needed.
        limit = self._max_topic_bytes
        return 4 * len(topic) > limit and len(topic.encode()) > limit

    def _receive_hello(self, packet: packets.Hello, events: list[Event]) -> None:
        try:
            answer = self._handshake.receive(packet)
        except PeerError as error:
            if error.code is CloseCode.WRONG_ANSWER:
                self._send_hello(self._handshake.refusal())
            raise
        self._send_hello(answer)
        if self._handshake.done:
            events.append(Established())

    def _check_hello_bytes(self, received: int) -> None:
        if self.closed is None:
            self._hello_bytes += received
            if self._hello_bytes > MAX_HELLO_BYTES:
                raise PeerError(CloseCode.EARLY_DATA, f"more than {MAX_HELLO_BYTES} bytes")

    def _send_hello(self, packet: packets.Hello | None) -> None:
        if packet is not None:
            self._framing.send_text(packets.encode(packet))
