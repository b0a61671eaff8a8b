"""Sessions of both ends and protocols: a peer's fault never raises, and nothing comes after it.

The first byte chooses the end, the protocol, how far an honest peer has come before, and whether the rest is
bytes or the payloads of frames, one a line. An empty line is whatever the honest peer says next, so that the
fuzzer gets through the hello without the key. The second byte is the size of the reads, the third how often
all is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.fuzz.held import held_bytes
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
from wsqueue.protocol.session import MAX_HELLO_BYTES, Event, HelloDone, MessagesReceived, Session

WORDS = (
    *(b'{"t":"', b'"m"', b'"h"', b'"o":', b'"a":', b'"d":', b'"s":', b'"challenge"', b'"proof"', b'"nonce":'),
    *(b'"publisher"', b'"secret":', b'"publish"', b'"forward"', b'"number":', b'"after":', b'"topic":'),
    *(b'"count":', b',"data":', b'"ack"', b'"numbers":', b'"refused"', b'"subscribe"', b'"start":'),
    *(b'"offset"', b'"log":', b'"time":', b'"subscribed"', b'"unsubscribe"', b'"deliver"', b'"gap"'),
    *(b'"missed":', b'"draining"', b'"retry_seconds":', b'"ask_report"', b'"report":', b"\r\n\r\n"),
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
            assert not isinstance(event, v2.HELLO_PACKETS)

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
    watched = Watched(session)
    watched.hellos = int(session.established)
    for _ in range(max(1, min(times % MOST_TIMES, MAX_FED_BYTES // (len(stream) or 1)))):
        if options & 16:
            for line in stream.split(b"\n"):
                read = said if not line else Raw(line).render(masked=role is Role.ACCEPTOR)
                if not line:
                    said = b""
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
    lines = 16
    secret = "A" * 43 + "="
    messages = [{"t": "m", "d": f"data {number}", "s": topic} for number, topic in enumerate("aab")]
    packets = [
        *({"t": "publisher", "secret": secret}, {"t": "subscribe", "topic": "news", "start": "earliest"}),
        {"t": "publish", "number": 1, "after": 0, "topic": "news", "count": 1, "data": ["text"]},
        {"t": "subscribe", "topic": "news", "start": "offset", "log": "f" * 16, "offset": 3},
        {"t": "forward", "publisher": "p", "number": 1, "after": 0, "topic": "n", "count": 1, "data": ["x"]},
        *({"t": "ack", "numbers": [[1, 3], [5, 5]]}, {"t": "unsubscribe", "topic": "news"}),
        {"t": "deliver", "topic": "news", "offset": 0, "publisher": "p", "number": 1, "data": ["a", "b"]},
        *(
            {"t": "gap", "topic": "news", "offset": 5, "missed": None},
            {"t": "draining", "retry_seconds": 1.5},
        ),
        {"t": "subscribed", "topic": "news", "log": "f" * 16, "offset": 3, "end": 9},
        {"t": "refused", "number": 1, "code": "full", "reason": "the disk is full"},
        *({"t": "ask_report"}, {"t": "report", "report": {"id": "1"}}, {"t": "challenge", "nonce": secret}),
    ]
    for role in (0, 1):
        yield bytes([role + 8 + lines, 0, 1]) + b"\n".join(json.dumps(one).encode() for one in messages)
        yield bytes([role + 2 + 8 + lines, 7, 1]) + b"\n".join(json.dumps(one).encode() for one in packets)
        for version in (0, 2):
            for state in (0, 4):
                yield bytes([role + version + state + lines, 0, 1]) + b"\n\n\n"
            yield bytes([role + version + 4 + lines, 5, 1]) + b'\n{"t":"h","o":5}\n\n{"t":"h","a":"x"}\n\n'
            yield bytes([role + version + 8 + 32, 3, 2]) + Raw(b'{"t":"ask_report"}').render(masked=not role)
    yield b"\x00\x00\x01GET /producer HTTP/1.1\r\nHost: node\r\n\r\n"
    yield b"\x01\x00\x01HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
