"""Sessions of both ends and protocols: a peer's fault never raises, and nothing comes after it.

The first byte chooses the end, the protocol, how far an honest peer has come before, and whether the rest is
bytes or the payloads of frames, with `BETWEEN` between them, as messages of the right type or of the other.
An empty payload is whatever the honest peer says next, so that the fuzzer gets through the hello without the
key. The second byte is the size of the reads, the third how often all is sent.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tests.fuzz.held import held_bytes
from tests.support.raw_v2_peer import deliver_of, encoded, forward_of, messages_of, publish_of
from tests.support.session_pair import (
    MAX_MESSAGE_BYTES,
    MAX_TOPIC_BYTES,
    Pair,
    accept,
    initiate,
    receive_all,
)
from tests.support.wire import WHOLE, Every, Raw, cut
from wsqueue.protocol import classic, v2
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.framing import PongReceived, RequestReceived
from wsqueue.protocol.keys import Role
from wsqueue.protocol.packed import Packed
from wsqueue.protocol.session import MAX_HELLO_BYTES, Event, HelloDone, MessagesReceived, Session

BETWEEN = b"\xc1"
"""Stands between two payloads: UTF-8 never has this byte, and MessagePack only inside of values."""

STRUCTS: tuple[type[msgspec.Struct], ...] = (*v2.PACKETS, Packed)
NAMES = {
    *(str(packet.__struct_config__.tag) for packet in v2.PACKETS),
    *(name for struct in STRUCTS for name in struct.__struct_fields__),
}
"""Tags and fields of v2."""

WORDS = (
    *(b'{"t":"', b'"m"', b'"h"', b'"o":', b'"a":', b'"d":', b'"s":', b"\r\n\r\n", BETWEEN),
    *(b"\x81\xa1t", b"\x82\xa1t", b"\xc4\x20", b"\xc2", b"\xc3", b"\xc0"),
    *map(encoded, sorted(NAMES)),
)

MAX_FED_BYTES = 128 * 1024
"""Bytes of one input with all its repeats."""

MOST_TIMES = 40
"""Repeats of one input."""

MAX_HELD_BYTES = 2 * (MAX_MESSAGE_BYTES + v2.OVERHEAD_BYTES) + MAX_HELLO_BYTES + 32 * 1024
"""A message in fragments and a frame of the largest size; a request that is read; and the objects."""

MAX_REASON_CHARACTERS = 400
"""Longest reason for an end: our own sentence, and a part of a library's."""

LIBRARY_CODES = frozenset({1002, 1007, 1009})
"""Close codes that the library sends by itself."""


class Watched:
    """A session, and all that is true of any."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.fed = self.wrote = 0
        self.hellos = 0
        self.half_closed = False

    def feed(self, data: bytes) -> bytes:
        """Feed a read, check the events, and return the answer."""
        ended = self.session.closed
        events = receive_all(self.session, data)
        self.fed += len(data)
        assert not (ended and events), f"{events[0]} after {ended}"
        for event in events:
            self.take(event)
        return self.drain()

    def weigh(self) -> None:
        """Check the memory that is held after some reads."""
        held = held_bytes(self.session)
        assert held <= MAX_HELD_BYTES, f"the session holds {held} bytes"

    def take(self, event: Event) -> None:
        """Check an event."""
        if isinstance(event, RequestReceived):
            raise AssertionError("the request was answered, and came as an event")
        if isinstance(event, PongReceived):
            return
        self.hellos += isinstance(event, HelloDone)
        assert self.hellos == 1, f"{event} with {self.hellos} hellos"
        if isinstance(event, MessagesReceived):
            assert not self.session.v2
            assert len(event.topic.encode()) <= MAX_TOPIC_BYTES
            assert len(event.messages) == len(event.payloads) > 0
            for message, payload in zip(event.messages, event.payloads, strict=True):
                assert message.topic == event.topic
                assert classic.decode(payload) == message
            batches = list(event.batches(100))
            assert [text for batch in batches for text in batch] == [one.data for one in event.messages]
            assert all(batches)
        elif not isinstance(event, HelloDone):
            assert self.session.v2
            assert isinstance(event, v2.PACKETS)
            assert not isinstance(event, v2.HELLO_PACKETS)
            assert not isinstance(event, v2.Deliver) or event.messages.whole

    def drain(self) -> bytes:
        """Return the bytes to write, and check that nothing follows the end."""
        writes = self.session.data_to_send()
        for data in writes:
            assert not self.half_closed, "something was written after the end of the stream"
            self.half_closed = not data
        self.wrote += sum(map(len, writes))
        # Each packet of a hello has an answer, and each ping a pong; a page answers a request.
        assert self.wrote <= 2 * self.fed + 4096, f"{self.wrote} bytes for {self.fed}"
        closed = self.session.closed
        if closed is not None:
            assert not self.session.established
            assert len(closed.reason) <= MAX_REASON_CHARACTERS
            str(closed).encode()
            if not closed.by_peer and closed.code >= 1000:
                assert closed.code in LIBRARY_CODES | set(CloseCode)
        return b"".join(writes)


def check(data: bytes) -> None:
    """Bring a session to some state, and feed it."""
    if len(data) < 3:
        return
    options, size, times, stream = data[0], data[1], data[2], data[3:]
    pair = Pair(accept(allow_classic=True), initiate(offer_v2=bool(options & 2), allow_classic=True))
    role = Role.INITIATOR if options & 1 else Role.ACCEPTOR
    session, honest = pair.ends(role)
    said = begin(pair, role, options >> 2 & 3)
    # The type of the honest peer's messages, unless the other one was chosen.
    binary = bool(options & 2) is not bool(options & 64)
    watched = Watched(session)
    watched.hellos = int(session.established)
    for _ in range(max(1, min(times % MOST_TIMES, MAX_FED_BYTES // (len(stream) or 1)))):
        if options & 16:
            for payload in stream.split(BETWEEN):
                frame = Raw(payload).render(masked=role is Role.ACCEPTOR, binary=binary)
                read, said = (frame, said) if payload else (said, b"")
                for piece in cut([read], Every(size) if size else WHOLE):
                    answer = watched.feed(piece)
                    if answer and honest.closed is None:
                        honest.receive_data(answer)
                        said += b"".join(honest.data_to_send())
        else:
            for piece in cut([stream], Every(size) if size else WHOLE):
                watched.feed(piece)
        watched.weigh()
    if options & 32:
        session.ping(b"data")
        session.close(CloseCode.NORMAL)
        watched.drain()
    session.receive_eof()
    session.receive_eof()
    watched.drain()
    assert session.closed is not None, "a stream has ended, and the session goes on"


def begin(pair: Pair, role: Role, state: int) -> bytes:
    """Let an honest peer open the WebSocket (1) and say hello (2 and 3); return what it would say next."""
    if state >= 2:
        pair.exchange()
        return b""
    request = b"".join(pair.initiator.data_to_send())
    if role is Role.ACCEPTOR:
        if not state:
            return request
        pair.acceptor.receive_data(request)
        pair.initiator.receive_data(b"".join(pair.acceptor.data_to_send()))
        return b"".join(pair.initiator.data_to_send())
    pair.acceptor.receive_data(request)
    response = b"".join(pair.acceptor.data_to_send())
    if not state:
        return response
    head, _, frames = response.partition(b"\r\n\r\n")
    pair.initiator.receive_data(head + b"\r\n\r\n")
    pair.acceptor.receive_data(b"".join(pair.initiator.data_to_send()))
    return frames


def seeds() -> Iterator[bytes]:
    """Yield hellos and packets of both protocols, from both ends."""
    payloads, other_type = 16, 64
    secret = b"A" * 32
    messages = [{"t": "m", "d": f"data {number}", "s": topic} for number, topic in enumerate("aab")]
    packets = [
        *({"t": "publisher", "secret": secret}, {"t": "subscribe", "topic": "news", "start": "earliest"}),
        *(publish_of(1, "news", "text"), publish_of(2, "news", b"\xff", b"", after=1)),
        publish_of(3, "news", messages=messages_of("ñ", "b", headers=[{"k": "v"}, None])),
        publish_of(4, "news", messages={"sizes": [9], "data": b"broken"}),
        {"t": "subscribe", "topic": "news", "start": "offset", "log": "f" * 16, "offset": 3},
        {"t": "subscribe", "topic": "news", "start": "time", "time": 1.5},
        *(forward_of(1, "n", "x"), forward_of(2, "n", messages=None)),
        *({"t": "ack", "numbers": [[1, 3], [5, 5]]}, {"t": "unsubscribe", "topic": "news"}),
        *(deliver_of(0, "news", "a", "b", publisher="p", number=1), deliver_of(2, "news", b"\0")),
        *(
            {"t": "gap", "topic": "news", "offset": 5, "missed": None},
            {"t": "draining", "retry_seconds": 1.5},
        ),
        {"t": "subscribed", "topic": "news", "log": "f" * 16, "offset": 3, "end": 9},
        *({"t": "refused", "number": 1, "code": "full", "reason": "no room"}, {"t": "ask_alive", "new": [1]}),
        *({"t": "ask_report"}, {"t": "report", "report": '{"id":"1"}'}, {"t": "challenge", "nonce": secret}),
    ]
    classic_payloads = BETWEEN.join(map(msgspec.json.encode, messages))
    v2_payloads = BETWEEN.join(map(encoded, packets))
    assert v2_payloads.count(BETWEEN) == len(packets) - 1
    for role in (0, 1):
        yield bytes([role + 8 + payloads, 0, 1]) + classic_payloads
        yield bytes([role + 2 + 8 + payloads, 7, 1]) + v2_payloads
        yield bytes([role + 8 + payloads + other_type, 0, 1]) + classic_payloads
        yield bytes([role + 2 + 8 + payloads + other_type, 0, 1]) + v2_payloads
        # An acceptor that has selected v2, and speaks classic.
        hello = BETWEEN.join([b'{"t":"h","o":5}', b'{"t":"h","a":"x"}', classic_payloads])
        yield bytes([role + 2 + 4 + payloads + other_type, 0, 1]) + hello
        challenge = encoded({"t": "challenge", "nonce": secret})
        proof = encoded({"t": "proof", "proof": secret, "nonce": secret, "path": "/producer"})
        yield bytes([role + 2 + 4 + payloads, 0, 1]) + BETWEEN.join([challenge, proof])
        for version in (0, 2):
            for state in (0, 4):
                yield bytes([role + version + state + payloads, 0, 1]) + BETWEEN * 3
            hello = BETWEEN.join([b"", b'{"t":"h","o":5}', b"", b'{"t":"h","a":"x"}', b"", b""])
            yield bytes([role + version + 4 + payloads, 5, 1]) + hello
            asked = Raw(encoded({"t": "ask_report"})).render(masked=not role, binary=bool(version))
            yield bytes([role + version + 8 + 32, 3, 2]) + asked
    yield b"\x00\x00\x01GET /producer HTTP/1.1\r\nHost: node\r\n\r\n"
    yield b"\x01\x00\x01HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
