"""WebSocket framing: the fast lane and the library agree on any stream, cut anywhere.

The first byte chooses the end, where the stream begins, a local action and the type of messages; the second
the size of the reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tests.fuzz.held import held_bytes
from tests.support.oracle import LIMIT, Act, Twins
from tests.support.session_pair import pages
from tests.support.wire import (
    BINARY,
    BINARY_FIRST,
    CLOSE,
    CONT_LAST,
    PING,
    PONG,
    TEXT,
    TEXT_FIRST,
    WHOLE,
    Chunk,
    Every,
    Raw,
    Run,
    cut,
    render,
)
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.keys import Role

WORDS = (
    b"\r\n\r\n",
    b"HTTP/1.1",
    b"GET ",
    b"Sec-WebSocket-",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Protocol: wsqueue.v2\r\n",
    b"\x81\x7e",
    b"\x81\xfe",
    b"\x82\x7e",
    b"\x82\xfe",
)

MAX_HELD_BYTES = 32 * 1024
"""The objects of a framing and of the library, two messages of the largest size, and a request."""

ACTS: tuple[Act | None, ...] = (
    None,
    Act("send_message", (b"text",)),
    Act("send_ping", (b"ping",)),
    Act("close", (CloseCode.NORMAL, "done")),
)


def check(data: bytes) -> None:
    """Feed a stream to both, and compare after each read."""
    if len(data) < 2:
        return
    options, size, stream = data[0], data[1], data[2:]
    role = Role.INITIATOR if options & 1 else Role.ACCEPTOR
    binary = bool(options & 32)
    if options & 2:
        twins = Twins.opened(role, binary=binary)
    else:
        twins = Twins(role, answer_request=pages, binary=binary)
        if options & 4:
            stream = twins.head + stream
    act = ACTS[options >> 3 & 3]
    pieces = cut([stream], Every(size) if size else WHOLE)
    twins.feed(pieces, [(len(pieces) // 2, act)] if act is not None else [])
    held = held_bytes(twins.framing)
    assert held <= MAX_HELD_BYTES, f"the framing holds {held} bytes"


def seeds() -> Iterator[bytes]:
    """Yield openings and frames of all kinds."""
    for role, binary in itertools.product(Role, (False, True)):
        masked = role is Role.ACCEPTOR
        options = (role is Role.INITIATOR) + 32 * binary
        streams: list[list[Chunk]] = [
            [Run(12, 5), Raw(b"x" * LIMIT), Raw(b"", form=8)],
            [Raw(b"a", TEXT_FIRST), Raw(b"1", PING), Raw(b"2", PONG), Raw(b"b", CONT_LAST), Raw(b"c", TEXT)],
            [Raw(b"a"), Raw(b"\x03\xe8bye", CLOSE), Raw(b"late")],
            [Raw(b"ab", form=2), Raw(b"ab", form=8), Raw(b"x", declared=LIMIT + 1)],
            [Raw(b"1", PING), Raw(b"a", BINARY), Run(12, 5), Raw(b"b", BINARY)],
            [Raw(b"a", BINARY_FIRST), Raw(b"b", CONT_LAST), *[Raw(b"c", BINARY)] * 12, Raw(b"d")],
        ]
        for chunks in streams:
            yield bytes([2 + options, 3]) + b"".join(render(chunks, masked=masked, binary=binary))
        frames = render([Run(2, 2)], masked=masked, binary=binary)
        yield bytes([4 + options, 0]) + b"\r\n" + b"".join(frames)
    yield b"\x00\x00GET / HTTP/1.1\r\nHost: node\r\n\r\n"
    yield b"\x01\x07HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"
