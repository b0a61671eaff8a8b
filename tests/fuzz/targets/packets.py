"""Packets of both protocols: decoding refuses or understands them, and encoding gives the same packet.

The first byte chooses the protocol; the rest is one payload.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.fuzz.targets import session
from tests.support.paths import DATA
from tests.support.strategies import same
from wsqueue.protocol import classic, v2
from wsqueue.protocol.close import CloseCode, PeerError

WORDS = (*session.WORDS, rb"\ud800", rb"\u0000", b"\xf0\x9f\x98\x80", b"1e400", b"9007199254740992", b"null")

MAX_REASON_CHARACTERS = 200
"""Longest reason: our own words, and at most 100 characters of the decoder's."""


def check(data: bytes) -> None:
    """Decode, encode and decode again."""
    if not data:
        return
    payload = data[1:]
    protocol: Any = v2 if data[0] & 1 else classic
    try:
        packet = protocol.decode(payload)
    except PeerError as error:
        utf8 = classic.is_utf8(payload)
        assert error.code is (CloseCode.INVALID_PACKET if utf8 else CloseCode.INVALID_TEXT)
        assert len(error.reason) <= MAX_REASON_CHARACTERS
        error.reason.encode()
        if protocol is classic:
            assert classic.decode_messages([GOOD, payload]) is None
        return
    if isinstance(packet, v2.Forward | v2.Publish) and not packet.data:
        return  # its data was wrong, and is gone
    document = json.loads(payload)
    assert document["t"] == packet.__struct_config__.tag
    again = protocol.decode(protocol.encode(packet))
    assert same(again, packet), f"{packet} became {again}"
    assert protocol.encode(again) == protocol.encode(packet)
    if isinstance(packet, classic.Message):
        messages, topics = classic.decode_messages([GOOD, payload]) or ([], [])
        assert (messages[1:], topics[1:]) == ([packet], [packet.topic])
        strings = map(classic.encode_string, (packet.data, packet.topic))
        assert classic.join_message(*strings) == classic.encode(packet)


GOOD = b'{"t":"m","d":"data","s":"topic"}'


def seeds() -> Iterator[bytes]:
    """Yield the packets of the vectors, and those of a session."""
    vectors = json.loads((DATA / "vectors.json").read_bytes())
    for hello in vectors["hello"]:
        for answer in (value for value in hello.values() if isinstance(value, str)):
            yield b"\x00" + msgspec.json.encode({"t": "h", "a": answer})
    for seed in session.seeds():
        for line in seed[3:].splitlines():
            if line.startswith(b"{"):
                yield b"\x00" + line
                yield b"\x01" + line
