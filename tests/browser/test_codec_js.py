"""The MessagePack of the JavaScript client, compared with msgspec, and packets that are none."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from playwright.async_api import Page
from websockets.frames import Opcode

from tests.support.nodes import KEY
from tests.support.paths import DATA
from tests.support.raw_v2_peer import (
    V2Server,
    V2Socket,
    deliver_of,
    encoded,
    messages_of,
    new_nonce,
    proof_of,
)
from tests.support.waiting import soon

from ..support.chromium import ORIGIN, Tabs
from .client import NEW_CLIENT, js

pytestmark = pytest.mark.anyio

VECTORS = json.loads((DATA / "v2.json").read_text())
MAX_NUMBER = 2**53 - 1
TOO_DEEP = 67

# Each value with its type, because Python and JSON have other types than JavaScript.
CODEC = """() => {
  const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  const bytes = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
  const shown = (value) => {
    if (value instanceof Uint8Array) return { bytes: hex(value) };
    if (Array.isArray(value)) return value.map(shown);
    if (typeof value === 'number' && !Number.isFinite(value)) return { number: String(value) };
    if (typeof value !== 'object' || value === null) return value;
    return { map: Object.entries(value).map(([name, one]) => [name, shown(one)]) };
  };
  const failure = (text) => {
    try {
      wsqueue.unpack(bytes(text));
    } catch (error) {
      return error instanceof Error;
    }
    return null;
  };
  Object.assign(window, { hex, bytes, shown, failure });
}"""

# Values that a newer node may have in a field which this client does not know, and JavaScript does not have.
STRANGE = [
    b"\xa1\xff",
    b"\xa3\xed\xa0\x80",
    b"\xcf" + (MAX_NUMBER + 1).to_bytes(8),
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    *(bytes([0xD4 + index]) + bytes(1 + 2**index) for index in range(5)),
    *(bytes([0xC7 + index]) + (3).to_bytes(1 << index) + b"\x01abc" for index in range(3)),
]


class AnyPacket(msgspec.Struct):
    """A packet of which no field is known."""


Shown = dict[str, Any] | list[Any] | str | float | bool | None


def shown(value: object) -> Shown:
    """Return the value as the page shows it."""
    match value:
        case bytes():
            return {"bytes": value.hex()}
        case list():
            return [shown(one) for one in value]
        case dict():
            return {"map": [[name, shown(one)] for name, one in value.items()]}
        case float() if math.isinf(value):
            return {"number": "Infinity" if value > 0 else "-Infinity"}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(value)


# The ends of all forms that a number or a size can have.
EDGES = [0, 1, 15, 16, 31, 32, 33, 127, 128, 129, 255, 256, 32_767, 32_768, 65_535, 65_536, 2**31, 2**32]
VALUES: list[Any] = [
    None,
    True,
    False,
    *EDGES,
    *(-edge for edge in EDGES),
    *(sign * edge for sign in (1, -1) for edge in (2**32 - 1, 2**53 - 2, MAX_NUMBER)),
    *(0.5, -0.1, 1e300, -1e-300, 5e-324, 2.0**70, math.inf, -math.inf),
    *("x" * size for size in (0, 1, 31, 32, 255, 256, 65_535, 65_536)),
    *("\N{LATIN SMALL LETTER N WITH TILDE}\N{GRINNING FACE}" * size for size in (5, 6, 42, 43, 11_000)),
    "\ufeff\x00\x7f\x80\u07ff\u0800\ud7ff\ue000\ufffd\uffff\U00010000\U0010ffff",
    *(bytes(size) for size in (0, 1, 255, 256, 65_535, 65_536)),
    bytes(range(256)),
    *([7] * size for size in (0, 1, 15, 16, 65_535, 65_536)),
    *({str(index): index for index in range(100, 100 + size)} for size in (0, 1, 15, 16, 300)),
    {"__proto__": {"t": "x"}, "constructor": "y", "": None, "toString": [b"", [[]], {}]},
]


def text_of(rng: random.Random) -> str:
    """Return a text of characters of any length in UTF-8."""
    ends = [0x80, 0x800, 0xFFFF, 0x110000]
    points = (rng.randrange(rng.choice(ends)) for _ in range(rng.randrange(40)))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def value_of(rng: random.Random, depth: int = 0) -> object:
    """Return any value that packets can have."""
    size = rng.randrange(8)
    makers: list[Callable[[], object]] = [
        lambda: rng.choice([None, True, False]),
        lambda: rng.choice([-1, 1]) * rng.getrandbits(rng.randrange(1, 54)),
        lambda: rng.uniform(-1e10, 1e10),
        lambda: text_of(rng),
        lambda: rng.randbytes(rng.randrange(300)),
        lambda: [value_of(rng, depth + 1) for _ in range(size)],
        # Names that are numbers come first in an object.
        lambda: {f"k{text_of(rng)}": value_of(rng, depth + 1) for _ in range(size)},
    ]
    return rng.choice(makers if depth < 5 else makers[:-2])()


async def with_codec(tabs: Tabs) -> Page:
    page = await tabs.with_client()
    await page.evaluate(CODEC)
    return page


async def refused(page: Page, payloads: list[bytes]) -> None:
    """Check that each payload is refused; the timeout of the test notices one that hangs."""
    outcomes = await js(page, "(all) => all.map(failure)", [payload.hex() for payload in payloads])
    assert [
        payload.hex()[:80] for payload, outcome in zip(payloads, outcomes, strict=True) if outcome is not True
    ] == []


@pytest.mark.parametrize("kind", ["table", "random"])
async def test_both_read_what_the_other_has_written(tabs: Tabs, kind: str) -> None:
    rng = random.Random(11)
    values = VALUES if kind == "table" else [value_of(rng) for _ in range(400)]
    page = await with_codec(tabs)
    packed = [msgspec.msgpack.encode(value) for value in values]
    # As one string, because Playwright takes long for large values.
    script = """(all) => JSON.stringify(all.map((text) => {
      const value = wsqueue.unpack(bytes(text));
      return [shown(value), hex(wsqueue.pack(value))];
    }))"""
    outcomes = json.loads(await js(page, script, [payload.hex() for payload in packed]))
    for value, payload, (found, again) in zip(values, packed, outcomes, strict=True):
        assert found == shown(value)
        assert msgspec.msgpack.decode(bytes.fromhex(again)) == value
        # Numbers may travel in another form of the same value.
        if isinstance(value, str | bytes | list) and kind == "table":
            assert again == payload.hex()


async def test_the_examples_of_the_protocol_are_read(tabs: Tabs) -> None:
    accepted = [example["hex"] for example in VECTORS["accepted"]]
    page = await with_codec(tabs)
    found = await js(page, "(all) => all.map((text) => shown(wsqueue.unpack(bytes(text))))", accepted)
    assert found == [shown(msgspec.msgpack.decode(bytes.fromhex(text))) for text in accepted]


async def test_every_form_of_a_number_is_read(tabs: Tabs) -> None:
    forms = {
        b"\xcc\x05": 5,
        b"\xcd\x00\x05": 5,
        b"\xce\x00\x00\x00\x05": 5,
        b"\xcf" + (5).to_bytes(8): 5,
        b"\xcf" + MAX_NUMBER.to_bytes(8): MAX_NUMBER,
        b"\xd0\xfb": -5,
        b"\xd1\xff\xfb": -5,
        b"\xd2\xff\xff\xff\xfb": -5,
        b"\xd3" + (-5).to_bytes(8, signed=True): -5,
        b"\xd3" + (-MAX_NUMBER).to_bytes(8, signed=True): -MAX_NUMBER,
        b"\xca" + struct.pack("!f", 1.5): 1.5,
        b"\xcb" + struct.pack("!d", -0.1): -0.1,
        b"\xd9\x01x": "x",
        b"\xda\x00\x01x": "x",
        b"\xdb\x00\x00\x00\x01x": "x",
        b"\xc5\x00\x01x": b"x",
        b"\xc6\x00\x00\x00\x01x": b"x",
        b"\xdc\x00\x01\x05": [5],
        b"\xdd\x00\x00\x00\x01\x05": [5],
        b"\xde\x00\x01\xa1x\x05": {"x": 5},
        b"\xdf\x00\x00\x00\x01\xa1x\x05": {"x": 5},
    }
    page = await with_codec(tabs)
    script = "(all) => all.map((text) => shown(wsqueue.unpack(bytes(text))))"
    found = await js(page, script, [form.hex() for form in forms])
    assert found == [shown(value) for value in forms.values()]
    assert [msgspec.msgpack.decode(form) for form in forms] == [*forms.values()]


async def test_values_that_javascript_lacks_are_undefined(tabs: Tabs) -> None:
    page = await with_codec(tabs)
    script = "(all) => all.map((text) => typeof wsqueue.unpack(bytes(text)))"
    assert await js(page, script, [value.hex() for value in STRANGE]) == ["undefined"] * len(STRANGE)
    inner = b"\x81\xa1x\x83\x01\x02\xa1y\x03\xc0\x04"
    assert await js(page, "(text) => shown(wsqueue.unpack(bytes(text)))", inner.hex()) == shown(
        {"x": {"y": 3}}
    )


async def test_other_bytes_are_refused(tabs: Tabs) -> None:
    packet = encoded(
        deliver_of(7, "news", "a", "b", messages=messages_of("a", "b", headers=[{"x": "y"}, None]))
    )
    sizes = (0xC6, 0xDB, 0xDD, 0xDF)
    deep = [bytes([code]) * count + b"\xc0" for code in (0x91, 0x81) for count in (TOO_DEEP, 1_000_000)]
    page = await with_codec(tabs)
    await refused(
        page,
        [
            *(packet[:end] for end in range(len(packet))),
            packet + b"\xc0",
            packet + packet,
            *(
                bytes([code]) + size
                for code in sizes
                for size in (b"\x7f\xff\xff\xff", b"\xff" * 4 + b"\x00" * 9)
            ),
            *deep,
            b"\xdc\xff\xff" * 20_000,
            *(bytes([code]) + bytes(30) for code in (0xC1, 0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9))),
            *(b"\x81" + key + b"\x01" for key in (b"\x01", b"\xc0", b"\xc4\x01x", b"\x90", b"\x80")),
            *(value[:-1] for value in STRANGE),
        ],
    )
    nested = b"\x91" * (TOO_DEEP - 1) + b"\xc0"
    assert await js(page, "(text) => typeof wsqueue.unpack(bytes(text))", nested.hex()) == "object"
    # With any bytes changed, it is read or refused, and a Python that knows no field reads all that is read.
    rng = random.Random(13)
    changed = [bytearray(packet) for _ in range(3000)]
    for payload in changed:
        for _ in range(rng.randrange(1, 4)):
            payload[rng.randrange(len(payload))] = rng.randrange(256)
    outcomes = await js(page, "(all) => all.map(failure)", [payload.hex() for payload in changed])
    assert set(outcomes) <= {True, None}
    read = [payload for payload, outcome in zip(changed, outcomes, strict=True) if not outcome]
    assert 100 < len(read) < 2900
    for payload in read:
        if 0x80 <= payload[0] < 0x90:
            msgspec.msgpack.decode(payload, type=AnyPacket)


HELLO = [
    b"",
    b"\x00" * 1000,
    b"\xdf\xff\xff\xff\xff",
    b"\x81" * 100_000,
    encoded({"t": "challenge"}),
    encoded({"t": "challenge", "nonce": "x" * 32}),
    encoded({"t": "challenge", "nonce": bytes(31)}),
    encoded([1, 2]),
    encoded({"nonce": bytes(32)}),
]

MESSAGES: list[Any] = [
    None,
    [],
    "x",
    {},
    {"sizes": [1]},
    {"data": b"x"},
    {"sizes": [], "data": b""},
    {"sizes": [1], "data": "x"},
    {"sizes": [1], "data": b"xy"},
    {"sizes": [2], "data": b"x"},
    {"sizes": [2, -1], "data": b"x"},
    {"sizes": [0.5, 0.5], "data": b"x"},
    {"sizes": [MAX_NUMBER, MAX_NUMBER], "data": b"x"},
    {"sizes": ["1"], "data": b"x"},
    {"sizes": {"length": 1, "0": 1}, "data": b"x"},
    {"sizes": [1], "data": b"x", "text": 1},
    {"sizes": [1], "data": b"x", "text": None},
    {"sizes": [1], "data": b"x", "headers": []},
    {"sizes": [1], "data": b"x", "headers": [None, None]},
    {"sizes": [1], "data": b"x", "headers": {"length": 1}},
    {"sizes": [1], "data": b"x", "headers": ["x"]},
    {"sizes": [1], "data": b"x", "headers": [["x"]]},
    {"sizes": [1], "data": b"x", "headers": [{"x": 1}]},
    {"sizes": [1], "data": b"x", "headers": [{"x": None}]},
]

DELIVERED = [
    *(encoded(deliver_of(0, "news", messages=messages)) for messages in MESSAGES),
    encoded(deliver_of(0, "news", "x") | {"offset": "0"}),
    encoded(deliver_of(0, "news", "x") | {"offset": None}),
    *(
        encoded(deliver_of(0, "news", "x") | {field: msgspec.Raw(value)})
        for field in ("topic", "offset", "publisher")
        for value in (STRANGE[0], STRANGE[2], STRANGE[5])
    ),
    encoded({"t": "gap", "topic": "news", "offset": 1}),
    encoded({"t": "gap", "topic": "news", "offset": 1, "missed": "1"}),
    encoded({"t": "subscribed", "topic": "news", "log": None, "offset": 1, "end": 1}),
    encoded({"t": "draining", "retry_seconds": "1"}),
    encoded({"t": "log", "id": "", "available": True}),
    encoded({"t": "log", "id": None, "available": True}),
    encoded({"t": "log", "id": "0b4c"}),
    encoded({"t": "log", "id": "0b4c", "available": 1}),
    encoded({"t": "refused", "number": 1, "code": None, "reason": ""}),
    encoded({"t": "ack", "numbers": [[1]]}),
    encoded({"t": "ack", "numbers": 1}),
    *(
        encoded(deliver_of(0, "news", "x", "y") | {"numbers": numbers, "counts": counts})
        for numbers, counts in (
            *(([2, 1], [1, 1]), ([1, 1], [1, 1]), ([1], [1]), ([1, 2], [2]), ([1, 2], [2, 0])),
            *(([], []), (1, [2]), ([1], 2), (["1"], [2]), ([-1], [2]), ([1], [3])),
        )
    ),
    encoded(deliver_of(0, "news", "x"))[:-1],
    b"\xc1",
    b"\x91" * 100_000,
]


async def test_a_peer_that_sends_something_else_is_left(tabs: Tabs) -> None:
    page = await tabs.with_client()
    async with soon(), V2Server() as server:
        options = {"psk": KEY, "consumers": [server.address], "producers": []}
        for early, payload in [*((True, one) for one in HELLO), *((False, one) for one in DELIVERED)]:
            await page.evaluate(NEW_CLIENT, options)
            await js(page, "window.ended = outcome(subscribe('news').ready); 0")
            if early:
                raw = await server.next()
                assert isinstance(raw, V2Socket)
                await raw.upgrade("wsqueue.v2")
            else:
                raw = await server.speaking(KEY)
                await raw.next("subscribe")
                raw.send({"t": "subscribed", "topic": "news", "log": "log", "offset": 0, "end": 0})
            raw.send_frame(Opcode.BINARY, payload)
            code, reason = await raw.close_frame()
            assert code == 4400, (payload[:80], code, reason)
            await raw.abort()
            await page.wait_for_function("errors.length === 1")
            assert await js(page, "[errors, got]") == [["ConnectError 4400"], []]
            await js(page, "client.close()")
    assert page.url == f"{ORIGIN}/"


async def test_fields_that_are_not_known_are_ignored(tabs: Tabs) -> None:
    """A newer node may send more."""
    more = {
        "new": [{"a": b"x"}, 1.5, None],
        "another": "one",
        "keys": {1: 2, None: {b"": []}},
        "deep": msgspec.Raw(b"\x91" * 64 + b"\xc0"),
        "strange": [msgspec.Raw(value) for value in STRANGE],
    }
    page = await tabs.with_client()
    async with soon(), V2Server() as server:
        await page.evaluate(NEW_CLIENT, {"psk": KEY, "consumers": [server.address], "producers": []})
        await js(page, "subscribe('news'); 0")
        raw = await server.next()
        assert isinstance(raw, V2Socket)
        path = await raw.upgrade("wsqueue.v2")
        nonce = new_nonce()
        raw.send({"t": "challenge", "nonce": nonce} | more)
        proof = await raw.next("proof")
        answer = proof_of(KEY, "acceptor", nonce, proof["nonce"], path)
        raw.send({"t": "proof", "proof": answer} | more)
        await raw.next("subscribe")
        raw.send({"t": "subscribed", "topic": "news", "log": "log", "offset": 3, "end": 3} | more)
        messages = messages_of("a", "b") | more
        raw.send(deliver_of(3, "news", messages=messages) | more)
        raw.send(deliver_of(5, "news", "c"))
        await page.wait_for_function("got.length === 3")
        got = await js(page, "got.map(({ data, offset }) => [data, offset])")
        assert got == [["a", 3], ["b", 4], ["c", 5]]
        await js(page, "client.close()")
        await raw.answer_close()
