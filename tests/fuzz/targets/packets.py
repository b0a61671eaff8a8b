"""Packets of both protocols: decoding refuses or understands them, and encoding gives the same packet.

The first byte chooses the protocol; the rest is one payload.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec

from tests.fuzz.targets import session
from tests.support.paths import DATA
from wsqueue.protocol import classic, v2
from wsqueue.protocol.close import CloseCode, PeerError
from wsqueue.protocol.packed import pack

from ...support.messages import deliver_one, forward_one

WORDS = (
    *session.WORDS,
    *(rb"\ud800", rb"\u0000", b"\xf0\x9f\x98\x80", b"1e400", b"9007199254740992", b"null"),
    # Integers around the limit, the longest of everything, and an extension.
    *(b"\xcf\0\x1f" + b"\xff" * 6, b"\xcf\0\x20" + bytes(6), b"\xcf" + b"\xff" * 8, b"\xd3" + b"\xff" * 8),
    *(bytes([first]) + b"\xff" * 4 for first in b"\xc6\xc9\xdb\xdd\xdf"),
    *(b"\xd6\xff" + bytes(4), b"\xcb\x7f\xf8" + bytes(6), b"\xcb\x7f\xf0" + bytes(6)),
)

MAX_REASON_CHARACTERS = 200
"""Longest reason: our own words, and at most 100 characters of the decoder's."""


def check(data: bytes) -> None:
    """Decode, encode and decode again."""
    if not data:
        return
    payload = data[1:]
    if data[0] & 1:
        check_v2(payload)
    else:
        check_classic(payload)


def check_classic(payload: bytes) -> None:
    """Check a payload of the classic protocol."""
    try:
        packet = classic.decode(payload)
    except PeerError as error:
        utf8 = classic.is_utf8(payload)
        check_refusal(error, CloseCode.INVALID_PACKET if utf8 else CloseCode.INVALID_TEXT)
        assert classic.decode_messages([GOOD, payload]) is None
        return
    assert json.loads(payload)["t"] == packet.__struct_config__.tag
    again = classic.decode(classic.encode(packet))
    assert again == packet, f"{packet} became {again}"
    if isinstance(packet, classic.Message):
        messages, topics = classic.decode_messages([GOOD, payload]) or ([], [])
        assert (messages[1:], topics[1:]) == ([packet], [packet.topic])
        strings = map(classic.encode_string, (packet.data, packet.topic))
        assert classic.join_message(*strings) == classic.encode(packet)


def check_v2(payload: bytes) -> None:
    """Check a payload of v2."""
    try:
        packet = v2.decode(payload)
    except PeerError as error:
        check_refusal(error, CloseCode.INVALID_PACKET)
        return
    encoded = v2.encode(packet)
    again = v2.decode(encoded)
    assert again == packet, f"{packet} became {again}"
    assert v2.encode(again) == encoded
    if not isinstance(packet, v2.Publish | v2.Forward | v2.Deliver):
        return
    messages = packet.messages
    if not messages.whole:
        assert not isinstance(packet, v2.Deliver)
        return
    # A producer leaves room for no more than this.
    assert len(encoded) <= len(payload)
    unpacked, texts = messages.unpack(), messages.texts()
    assert len(unpacked) == len(texts) == messages.count
    assert messages.is_utf8 is (None not in texts)
    parts = [one.encode() if isinstance(one, str) else one for one in unpacked]
    assert pack(parts, text=messages.text, headers=messages.headers) == messages
    behind = messages.behind(messages.count // 2)
    assert behind.unpack() == unpacked[messages.count // 2 :]
    forward = forward_one("p", 1, 0, packet.topic, messages)
    assert v2.decode(v2.encode(forward)) == forward
    for some in (messages, behind):
        deliver = deliver_one(packet.topic, 0, "p", 1, some)
        assert v2.decode(v2.encode(deliver)) == deliver


def check_refusal(error: PeerError, code: CloseCode) -> None:
    """Check the reason of a refusal."""
    assert error.code is code
    assert len(error.reason) <= MAX_REASON_CHARACTERS
    error.reason.encode()


GOOD = b'{"t":"m","d":"data","s":"topic"}'


def seeds() -> Iterator[bytes]:
    """Yield the packets of the vectors, and those of a session."""
    vectors = json.loads((DATA / "vectors.json").read_bytes())
    for hello in vectors["hello"]:
        for answer in (value for value in hello.values() if isinstance(value, str)):
            yield b"\x00" + msgspec.json.encode({"t": "h", "a": answer})
    vectors = json.loads((DATA / "v2.json").read_bytes())
    for vector in (*vectors["accepted"], *vectors["refused"]):
        yield b"\x01" + bytes.fromhex(vector["hex"])
    for seed in session.seeds():
        for payload in seed[3:].split(session.BETWEEN):
            if payload.startswith(b"{"):
                yield b"\x00" + payload
            elif payload[:1] >= b"\x80":
                yield b"\x01" + payload
