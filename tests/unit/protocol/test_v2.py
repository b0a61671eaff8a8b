"""The packets of v2: their bytes, and whatever else a peer sends instead."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from wsqueue.protocol import v2
from wsqueue.protocol.classic import MAX_DETAIL_CHARACTERS
from wsqueue.protocol.close import CloseCode, PeerError
from wsqueue.protocol.packed import NOTHING, Packed, pack, pack_texts

from ...support.messages import deliver_one, forward_one
from ...support.raw_v2_peer import deliver_of, encoded, forward_of, messages_of, publish_of
from ...support.session_pair import many
from ...support.strategies import V2_PACKETS, batches, msgpack_values, utf8_text

SECRET = bytes(range(32))
ONE = pack_texts(["a"])


def shown(value: object) -> str:
    """Return a value as the name of a test."""
    return re.sub("( object)? at 0x[0-9a-f]+", "", ascii(value))[:60]


def refusal(payload: bytes) -> str:
    """Return the reason why a payload is refused, checked not to quote it at length."""
    with pytest.raises(PeerError) as caught:
        v2.decode(payload)
    assert caught.value.code is CloseCode.INVALID_PACKET
    assert len(caught.value.reason) <= len(CloseCode.INVALID_PACKET.reason) + 2 + MAX_DETAIL_CHARACTERS
    return caught.value.reason


def is_taken_or_refused(payload: bytes) -> v2.Packet | None:
    """Check that a payload is a packet, or is refused with a code and few words; return the packet."""
    try:
        packet = v2.decode(payload)
    except PeerError as error:
        assert error.code is CloseCode.INVALID_PACKET  # noqa: PT017
        assert error.reason == str(error)  # noqa: PT017
        assert len(error.reason) <= 150  # noqa: PT017
        return None
    assert isinstance(packet, v2.PACKETS)
    assert not isinstance(packet, v2.Deliver) or packet.messages.whole
    # A node can pass it on, and the next one understands the same.
    assert v2.decode(v2.encode(packet)) == packet
    return packet


def pieces_of(fields: dict[str, Any]) -> list[bytes]:
    """Return the keys and values of a map, each encoded."""
    return [encoded(one) for item in fields.items() for one in item]


def joined(pieces: list[bytes]) -> bytes:
    """Return the map of some keys and values, each encoded."""
    return b"\xdf" + (len(pieces) // 2).to_bytes(4) + b"".join(pieces)


def long_form(value: object) -> bytes:
    """Return a value in the longest form that MessagePack has for it."""
    if isinstance(value, str):
        return b"\xdb" + len(value.encode()).to_bytes(4) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + len(value).to_bytes(4) + value
    if isinstance(value, list | tuple):
        return b"\xdd" + len(value).to_bytes(4) + b"".join(map(long_form, value))
    if isinstance(value, dict):
        return joined([long_form(one) for item in value.items() for one in item])
    if isinstance(value, int) and not isinstance(value, bool):
        return b"\xcf" + value.to_bytes(8) if value >= 0 else b"\xd3" + value.to_bytes(8, signed=True)
    return encoded(value)


PLACE = {"topic": "jobs", "group": "g"}
PACKETS: list[tuple[v2.Packet, dict[str, Any]]] = [
    (v2.Challenge(SECRET), {"t": "challenge", "nonce": SECRET}),
    (v2.Proof(SECRET), {"t": "proof", "proof": SECRET}),
    (
        v2.Proof(SECRET, SECRET[::-1], "/produce", bytes(32)),
        {"t": "proof", "proof": SECRET, "nonce": SECRET[::-1], "path": "/produce", "binding": bytes(32)},
    ),
    (v2.Publisher(SECRET), {"t": "publisher", "secret": SECRET}),
    (v2.Publish(2, 1, "news", pack_texts(["a", "ñ"])), publish_of(2, "news", "a", "ñ", after=1)),
    (v2.Publish(2, 0, "", pack([b"\xff", b""], text=False)), publish_of(2, "", b"\xff", b"")),
    (
        forward_one("p", 2, 1, "ñ", pack([b"a", b"b"], text=True, headers=[{"k": "v"}, None])),
        {"t": "forward", "publisher": "p", "numbers": [2], "after": 1, "topic": "ñ", "counts": [2]}
        | {"messages": messages_of("a", "b", headers=[{"k": "v"}, None])},
    ),
    (v2.Ack([(1, 3), (7, 7)]), {"t": "ack", "numbers": [[1, 3], [7, 7]]}),
    (v2.Refused(4, "full", "why"), {"t": "refused", "number": 4, "code": "full", "reason": "why"}),
    (
        v2.Refused(4, "full", "why", 9),
        {"t": "refused", "number": 4, "code": "full", "reason": "why", "last": 9},
    ),
    (v2.Subscribe("news"), {"t": "subscribe", "topic": "news"}),
    (v2.Subscribe("x", "earliest"), {"t": "subscribe", "topic": "x", "start": "earliest"}),
    (
        v2.Subscribe("x", "offset", "a", 5),
        {"t": "subscribe", "topic": "x", "start": "offset", "log": "a", "offset": 5},
    ),
    (v2.Subscribe("x", "time", time=1.5), {"t": "subscribe", "topic": "x", "start": "time", "time": 1.5}),
    (v2.Subscribe("x", "last", count=7), {"t": "subscribe", "topic": "x", "start": "last", "count": 7}),
    (
        v2.Subscribe("x", "offset", "a", 5, reader="r"),
        {"t": "subscribe", "topic": "x", "start": "offset", "log": "a", "offset": 5, "reader": "r"},
    ),
    (
        v2.Subscribed("x", "abc", 0, v2.MAX_NUMBER),
        {"t": "subscribed", "topic": "x", "log": "abc", "offset": 0, "end": 2**53 - 1},
    ),
    (v2.Unsubscribe("news"), {"t": "unsubscribe", "topic": "news"}),
    (v2.Unsubscribed("news"), {"t": "unsubscribed", "topic": "news"}),
    (
        deliver_one("news", 3, "p", 2, pack([b"a", b""], text=False, headers=[None, {"k": ""}])),
        deliver_of(
            3, "news", publisher="p", numbers=[2], messages=messages_of(b"a", b"", headers=[None, {"k": ""}])
        ),
    ),
    (v2.Gap("news", 3, 2), {"t": "gap", "topic": "news", "offset": 3, "missed": 2}),
    (v2.Gap("news", 3, None), {"t": "gap", "topic": "news", "offset": 3, "missed": None}),
    (v2.Follow(""), {"t": "follow", "prefix": ""}),
    (v2.Follow("s/", "earliest"), {"t": "follow", "prefix": "s/", "start": "earliest"}),
    (v2.Follow("s/", "time", time=1.5), {"t": "follow", "prefix": "s/", "start": "time", "time": 1.5}),
    (v2.Follow("s/", "last", count=7), {"t": "follow", "prefix": "s/", "start": "last", "count": 7}),
    (v2.Followed("s/"), {"t": "followed", "prefix": "s/"}),
    (v2.Followed("s/", "full"), {"t": "followed", "prefix": "s/", "code": "full"}),
    (
        v2.Commit("x", "r", "abc", 7),
        {"t": "commit", "topic": "x", "reader": "r", "log": "abc", "offset": 7},
    ),
    (
        v2.Committed("x", "r", "abc", 7),
        {"t": "committed", "topic": "x", "reader": "r", "log": "abc", "offset": 7},
    ),
    (
        v2.Join("jobs", "g", 100, 30.0, 5),
        {"t": "join", **PLACE, "prefetch": 100, "lease_seconds": 30.0, "max_deliveries": 5},
    ),
    (
        v2.Join("jobs", "g", 1, 0.5, 1, "latest", "key"),
        {"t": "join", **PLACE, "prefetch": 1, "lease_seconds": 0.5, "max_deliveries": 1}
        | {"start": "latest", "order_key": "key"},
    ),
    (v2.Joined("jobs", "g", "abc"), {"t": "joined", **PLACE, "log": "abc"}),
    (
        v2.Lend("jobs", "g", 3, pack_texts(["a", "ñ"]), 2),
        {"t": "lend", **PLACE, "offset": 3, "messages": messages_of("a", "ñ"), "deliveries": 2},
    ),
    (
        v2.Settle("jobs", "g", 1, "abc", "done", [(1, 3), (7, 7)]),
        {"t": "settle", **PLACE, "number": 1, "log": "abc", "how": "done", "offsets": [[1, 3], [7, 7]]},
    ),
    (
        v2.Settle("jobs", "g", 2, "abc", "again", [(4, 4)], 1.5),
        {
            "t": "settle",
            **PLACE,
            "number": 2,
            "log": "abc",
            "how": "again",
            "offsets": [[4, 4]],
            "delay": 1.5,
        },
    ),
    (
        v2.Settle("jobs", "g", 3, "abc", "reject", [(5, 5)], reason="why"),
        {"t": "settle", **PLACE, "number": 3, "log": "abc", "how": "reject", "offsets": [[5, 5]]}
        | {"reason": "why"},
    ),
    (v2.Settled("jobs", "g", 3), {"t": "settled", **PLACE, "number": 3}),
    (v2.Leave("jobs", "g"), {"t": "leave", **PLACE}),
    (v2.Left("jobs", "g"), {"t": "left", **PLACE}),
    (v2.Left("jobs", "g", "full", "why"), {"t": "left", **PLACE, "code": "full", "reason": "why"}),
    (v2.Draining(2.5), {"t": "draining", "retry_seconds": 2.5}),
    (v2.Log("l", available=False), {"t": "log", "id": "l", "available": False}),
    (v2.AskReport(), {"t": "ask_report"}),
    (v2.NodeReport('{"role":"consumer"}'), {"t": "report", "report": '{"role":"consumer"}'}),
    (v2.AskTopics(), {"t": "ask_topics"}),
    (
        v2.AskTopics("a*", "b", named=True),
        {"t": "ask_topics", "pattern": "a*", "after": "b", "named": True},
    ),
    (
        v2.TopicList(
            [v2.TopicEntry("x", 3, 9, 1, 4, 2, [v2.NameEntry("group", "g", 2, 1, 5, 6, 7, 8.5)])], "x", "l"
        ),
        {
            "t": "topics",
            "topics": [
                {
                    "topic": "x",
                    "messages": 3,
                    "bytes": 9,
                    "first": 1,
                    "next": 4,
                    "subscribers": 2,
                    "names": [
                        {"kind": "group", "name": "g", "offset": 2, "lag": 1}
                        | {"members": 5, "lent": 6, "dead": 7, "oldest_time": 8.5}
                    ],
                }
            ],
            "after": "x",
            "log": "l",
        },
    ),
    (v2.Purge("x"), {"t": "purge", "topic": "x"}),
    (v2.Purge("x", 7), {"t": "purge", "topic": "x", "before": 7}),
    (v2.Forget("x", "reader", "r"), {"t": "forget", "topic": "x", "kind": "reader", "name": "r"}),
    (v2.Disconnect("192.0.2.7"), {"t": "disconnect", "address": "192.0.2.7"}),
    (v2.Disconnect(key="k"), {"t": "disconnect", "key": "k"}),
    (v2.Done(3), {"t": "done", "count": 3}),
    (v2.Failed("in_use", "why"), {"t": "failed", "code": "in_use", "reason": "why"}),
    (v2.AskAlive(), {"t": "ask_alive"}),
    (v2.Alive(), {"t": "alive"}),
]
all_packets = pytest.mark.parametrize(
    ("packet", "fields"), PACKETS, ids=[f"{index}-{fields['t']}" for index, (_, fields) in enumerate(PACKETS)]
)


@all_packets
def test_exact_bytes_that_are_sent(packet: v2.Packet, fields: dict[str, Any]) -> None:
    assert v2.encode(packet) == encoded(fields)
    assert v2.decode(encoded(fields)) == packet


def test_every_packet_is_tried() -> None:
    assert {type(packet) for packet, _ in PACKETS} == set(v2.PACKETS)


def test_bytes_as_the_specification_of_messagepack_has_them() -> None:
    """Worked out by hand, because the tests above and the source share a library."""
    assert v2.encode(v2.Alive()) == b"\x81\xa1t\xa5alive"
    assert v2.encode(v2.Challenge(SECRET)) == b"\x82\xa1t\xa9challenge\xa5nonce\xc4\x20" + SECRET
    assert v2.encode(v2.Publish(2, 0, "news", pack_texts(["a", "ñ"]))) == (
        b"\x85\xa1t\xa7publish\xa6number\x02\xa5after\x00\xa5topic\xa4news"
        b"\xa8messages\x82\xa5sizes\x92\x01\x02\xa4data\xc4\x03a\xc3\xb1"
    )
    assert v2.encode(v2.Ack([(1, 2**53 - 1)])) == (
        b"\x82\xa1t\xa3ack\xa7numbers\x91\x92\x01\xcf\x00\x1f\xff\xff\xff\xff\xff\xff"
    )
    assert v2.encode(v2.Draining(2.5)) == b"\x82\xa1t\xa8draining\xadretry_seconds\xcb\x40\x04" + bytes(6)


@many
@given(V2_PACKETS)
def test_packets_survive_and_are_plain_maps(packet: v2.Packet) -> None:
    payload = v2.encode(packet)
    assert v2.decode(payload) == packet
    fields = msgspec.msgpack.decode(payload)
    assert next(iter(fields)) == "t"
    assert fields["t"] == type(packet).__struct_config__.tag
    assert encoded(fields) == payload
    builtins = msgspec.to_builtins(packet, builtin_types=[bytes, memoryview])
    assert encoded(builtins) == payload


@many
@given(V2_PACKETS, st.randoms(use_true_random=False))
def test_the_order_of_the_keys_and_the_length_of_forms_are_free(packet: v2.Packet, random: Any) -> None:
    def shuffled(fields: dict[str, Any]) -> dict[str, Any]:
        items = list(fields.items())
        random.shuffle(items)
        return dict(items)

    fields = shuffled(msgspec.msgpack.decode(v2.encode(packet)))
    if "messages" in fields:
        fields["messages"] = shuffled(fields["messages"])
    assert v2.decode(encoded(fields)) == packet
    assert v2.decode(long_form(fields)) == packet


UNKNOWN = st.dictionaries(utf8_text.map("x-{}".format) | st.just(""), msgpack_values, max_size=3)


@many
@given(V2_PACKETS, UNKNOWN, st.integers(0, 9), st.booleans())
def test_fields_of_newer_peers_are_ignored(
    packet: v2.Packet, unknown: dict[str, Any], place: int, in_messages: bool
) -> None:
    def insert(fields: dict[str, Any]) -> dict[str, Any]:
        items = list(fields.items())
        return dict([*items[:place], *unknown.items(), *items[place:]])

    fields = insert(msgspec.msgpack.decode(v2.encode(packet)))
    if in_messages and "messages" in fields:
        fields["messages"] = insert(fields["messages"])
    assert v2.decode(encoded(fields)) == packet


@all_packets
def test_a_field_of_another_packet_is_ignored_too(packet: v2.Packet, fields: dict[str, Any]) -> None:
    every = {key: value for _, others in PACKETS for key, value in others.items()}
    own = set(type(packet).__struct_fields__)
    others = {key: value for key, value in every.items() if key not in own}
    assert v2.decode(encoded(others | fields)) == packet


NO_NUMBERS: list[object] = [
    *(-1, -(2**31), -(2**63), v2.MAX_NUMBER + 1, 2**53 + 1, 2**63, 2**64 - 1),
    *(1.0, 0.0, 1e3, 1e300, float("nan"), "1", b"\x01", [], [1], {}, True, False, Ext(1, b"\x01")),
]


class TestNumbers:
    @pytest.mark.parametrize("number", NO_NUMBERS, ids=shown)
    def test_what_is_neither_a_number_nor_an_offset(self, number: object) -> None:
        for payload in (
            {"t": "ack", "numbers": [[number, 1]]},
            {"t": "ack", "numbers": [[1, 1], [1, number]]},
            {"t": "refused", "number": number, "code": "full", "reason": ""},
            {"t": "refused", "number": 1, "code": "full", "reason": "", "last": number},
            {"t": "gap", "topic": "x", "offset": number, "missed": None},
            {"t": "gap", "topic": "x", "offset": 0, "missed": number},
            {"t": "subscribe", "topic": "x", "start": "offset", "offset": number},
            {"t": "subscribe", "topic": "x", "start": "last", "count": number},
            {"t": "subscribed", "topic": "x", "log": "", "offset": number, "end": 1},
            {"t": "subscribed", "topic": "x", "log": "", "offset": 1, "end": number},
            *(publish_of(1, "x", "a") | {field: number} for field in ("number", "after")),
            *(
                forward_of(1, "x", "a") | {field: number}
                for field in ("numbers", "after", "counts")
                if number != [1]
            ),
            *(
                deliver_of(1, "x", "a") | {field: number}
                for field in ("numbers", "offset", "counts")
                if number != [1]
            ),
            *(batch_of(1, "x", "a") | {"numbers": [number]} for batch_of in (forward_of, deliver_of)),
            *(batch_of(1, "x", "a") | {"counts": [number]} for batch_of in (forward_of, deliver_of)),
        ):
            refusal(encoded(payload))

    def test_only_offsets_may_be_zero_and_only_a_number_that_is_unknown_null(self) -> None:
        refusal(encoded({"t": "ack", "numbers": [[0, 1]]}))
        refusal(encoded({"t": "refused", "number": 0, "code": "full", "reason": ""}))
        refusal(encoded({"t": "refused", "number": 1, "code": "full", "reason": "", "last": 0}))
        refusal(encoded({"t": "gap", "topic": "x", "offset": 0, "missed": 0}))
        refusal(encoded({"t": "gap", "topic": "x", "offset": None, "missed": 1}))
        refusal(encoded(publish_of(0, "x", "a")))
        refusal(encoded(publish_of(1, "x", "a") | {"after": None}))
        assert v2.decode(encoded(deliver_of(0, "x", "a", numbers=[0]))) == deliver_one("x", 0, "", 0, ONE)

    @pytest.mark.parametrize("number", [1, 127, 128, 255, 256, 2**31, 2**32 - 1, 2**32, v2.MAX_NUMBER])
    def test_each_form_of_an_integer(self, number: int) -> None:
        forms = [
            bytes([code]) + number.to_bytes(size, signed=signed)
            for codes, signed in ((b"\xcc\xcd\xce\xcf", False), (b"\xd0\xd1\xd2\xd3", True))
            for code, size in zip(codes, (1, 2, 4, 8), strict=True)
            if number < 2 ** (8 * size - signed)
        ]
        assert forms
        for form in forms:
            payload = b"\x82\xa1t\xa3ack\xa7numbers\x91\x92" + form + form
            assert v2.decode(payload) == v2.Ack([(number, number)])

    @pytest.mark.parametrize("time", [0, 0.0, 1, 1.5, 2**53 - 1, float(2**53 - 1)])
    def test_a_time_may_be_an_integer(self, time: float) -> None:
        packet = v2.decode(encoded({"t": "subscribe", "topic": "x", "start": "time", "time": time}))
        assert packet == v2.Subscribe("x", "time", time=float(time))

    @pytest.mark.parametrize(
        "time",
        [
            -1,
            -1.5,
            2**53,
            2.0**53,
            1e300,
            float("nan"),
            float("inf"),
            -float("inf"),
            "1",
            True,
            Ext(-1, bytes(4)),
        ],
        ids=shown,
    )
    def test_what_is_no_time(self, time: object) -> None:
        assert "$.time" in refusal(encoded({"t": "subscribe", "topic": "x", "start": "time", "time": time}))
        assert "$.retry_seconds" in refusal(encoded({"t": "draining", "retry_seconds": time}))


@pytest.mark.parametrize(
    "secret",
    [
        *(b"", SECRET[:-1], SECRET + b"\0", SECRET * 2, "A" * 43 + "=", "x" * 32, SECRET.decode("latin-1")),
        *(list(SECRET), 2**64 - 1, True, Ext(1, SECRET), {"": SECRET}),
    ],
    ids=shown,
)
def test_what_is_not_a_secret(secret: object) -> None:
    assert "$.secret" in refusal(encoded({"t": "publisher", "secret": secret}))
    assert "$.nonce" in refusal(encoded({"t": "challenge", "nonce": secret}))
    assert "$.proof" in refusal(encoded({"t": "proof", "proof": secret}))
    proof = {"t": "proof", "proof": SECRET, "nonce": SECRET, "path": "/", "binding": SECRET}
    assert "$.nonce" in refusal(encoded(proof | {"nonce": secret}))
    assert "$.binding" in refusal(encoded(proof | {"binding": secret}))


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"t": "subscribe", "topic": "x", "start": "offset"}, "`offset` goes with the start `offset`"),
        ({"t": "subscribe", "topic": "x", "start": "offset", "offset": None}, "`offset` goes with"),
        ({"t": "subscribe", "topic": "x", "offset": 1}, "`offset` goes with"),
        ({"t": "subscribe", "topic": "x", "start": "time"}, "`time` goes with the start `time`"),
        ({"t": "subscribe", "topic": "x", "start": "latest", "time": 1}, "`time` goes with"),
        ({"t": "subscribe", "topic": "x", "start": "offset", "offset": 1, "time": 1}, "`time` goes with"),
        ({"t": "subscribe", "topic": "x", "start": "last"}, "`count` goes with the start `last`"),
        ({"t": "subscribe", "topic": "x", "start": "last", "count": 0}, "$.count"),
        ({"t": "subscribe", "topic": "x", "start": "last", "count": 1, "reader": "r"}, "`reader` goes with"),
        ({"t": "subscribe", "topic": "x", "start": "time", "time": 1, "reader": "r"}, "`reader` goes with"),
        ({"t": "subscribe", "topic": "x", "reader": ""}, "$.reader"),
        ({"t": "subscribe", "topic": "x", "start": "earliest", "count": 1}, "`count` goes with"),
        ({"t": "subscribe", "topic": "x", "start": "last", "count": 1, "offset": 1}, "`offset` goes with"),
        ({"t": "subscribe", "topic": "x", "start": "yesterday"}, "$.start"),
        ({"t": "subscribe", "topic": "x", "start": None}, "$.start"),
        ({"t": "subscribe", "topic": "x", "start": b"latest"}, "$.start"),
        ({"t": "subscribed", "topic": "x", "log": "x" * 65, "offset": 0, "end": 0}, "$.log"),
        ({"t": "refused", "number": 1, "code": "x" * 33, "reason": ""}, "$.code"),
        ({"t": "refused", "number": 1, "code": "full", "reason": "x" * 201}, "$.reason"),
        ({"t": "proof", "proof": SECRET, "nonce": SECRET, "path": "x" * 8193}, "$.path"),
        ({"t": "ack", "numbers": []}, "$.numbers"),
        ({"t": "ack", "numbers": None}, "$.numbers"),
        ({"t": "ack", "numbers": [[1]]}, "$.numbers"),
        ({"t": "ack", "numbers": [[1, 2, 3]]}, "$.numbers"),
        ({"t": "ack", "numbers": [{"0": 1}]}, "$.numbers"),
        (forward_of(1, "x", "a", publisher="p" * 65), "$.publisher"),
        (deliver_of(1, "x", "a", publisher="p" * 65), "$.publisher"),
        (deliver_of(1, "x", "a", messages=None), "$.messages"),
        ({"t": "draining", "retry_seconds": 3600.1}, "$.retry_seconds"),
        ({"t": "draining", "retry_seconds": 3601}, "$.retry_seconds"),
        ({"t": "report", "report": {"role": "consumer"}}, "$.report"),
        ({"t": "report", "report": b"{}"}, "$.report"),
        ({"t": "unsubscribe", "topic": b"x"}, "$.topic"),
        ({"t": "unsubscribe", "topic": None}, "$.topic"),
        ({"t": "unsubscribe"}, "missing required field `topic`"),
        ({"topic": "x"}, "missing required field `t`"),
        ({"T": "unsubscribe", "topic": "x"}, "missing required field `t`"),
        ({"t": "Unsubscribe", "topic": "x"}, "$.t"),
        ({"t": "m", "d": "x", "s": "x"}, "$.t"),
        ({"t": "", "topic": "x"}, "$.t"),
        ({"t": b"unsubscribe", "topic": "x"}, "$.t"),
        ({"t": 1}, "$.t"),
        ({"t": None}, "$.t"),
        ({}, "missing required field `t`"),
    ],
    ids=shown,
)
def test_wrong_fields(fields: dict[str, Any], hint: str) -> None:
    assert hint in refusal(encoded(fields))


@all_packets
def test_a_field_that_is_missing(packet: v2.Packet, fields: dict[str, Any]) -> None:
    required = {field.name for field in msgspec.structs.fields(type(packet)) if field.required}
    for name in ("t", *required):
        rest = {key: value for key, value in fields.items() if key != name}
        assert f"missing required field `{name}`" in refusal(encoded(rest))


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, 1, -1, 2**64 - 1, 1.5, "", "alive", b"", b"\x81\xa1t\xa5alive", [], {}),
        *(["alive"], ["t", "alive"], [["t", "alive"]], [{"t": "alive"}], Ext(1, b"alive"), Ext(-1, bytes(4))),
    ],
    ids=shown,
)
def test_what_is_not_a_packet(value: object) -> None:
    refusal(encoded(value))


BROKEN_MESSAGES: list[object] = [
    *(None, True, 1, 1.5, "x", b"x", [], [[1], b"x"], {}, ["a"], Ext(1, b"x")),
    *({"sizes": [1]}, {"data": b"x"}, {"sizes": None, "data": b"x"}, {"sizes": [1], "data": None}),
    *({"sizes": [1], "data": "x"}, {"sizes": [-1, 2], "data": b"x"}, {"sizes": [1.0], "data": b"x"}),
    *({"sizes": [True], "data": b"x"}, {"sizes": {0: 1}, "data": b"x"}, {"sizes": b"\x01", "data": b"x"}),
    *({"sizes": [1], "data": b"x", "text": text} for text in (None, 1, "true")),
    *(
        {"sizes": [1], "data": b"x", "headers": headers}
        for headers in ({"k": "v"}, "", [1], [{"": "x"}], [{"k": 1}])
    ),
    {"sizes": [1], "data": b"x", "headers": [{f"{number}": "" for number in range(17)}]},
    {"sizes": [1], "data": b"x", "headers": [{"n" * 65: ""}]},
    {"sizes": [1], "data": b"x", "headers": [{"n": "v" * 1025}]},
    *({"sizes": [1], "data": b"x", 1: 2}, {"sizes": [1], "data": b"x", b"text": True}),
]
"""Values that can be no messages."""

ODD_MESSAGES: list[dict[str, Any]] = [
    {"sizes": [], "data": b""},
    {"sizes": [], "data": b"x"},
    {"sizes": [1], "data": b""},
    {"sizes": [1], "data": b"xy"},
    {"sizes": [0], "data": b"x"},
    {"sizes": [2**64 - 1, 2**64 - 1], "data": b"x"},
    {"sizes": [1], "data": b"x", "headers": []},
    {"sizes": [1], "data": b"x", "headers": [None, None]},
    {"sizes": [1], "data": b"x", "text": False, "headers": [{"k": "v"}] * 2},
]
"""Values that can be messages, but do not have their sizes."""

broken = pytest.mark.parametrize("messages", BROKEN_MESSAGES, ids=shown)
odd = pytest.mark.parametrize("messages", ODD_MESSAGES, ids=shown)
batch_of = pytest.mark.parametrize("batch_of", [publish_of, forward_of], ids=["publish", "forward"])


def batch_with(messages: Packed, *, forward: bool) -> v2.Publish | v2.Forward:
    """Return the packet `batch_of(7, "news", after=3)` with other messages."""
    return forward_one("p", 7, 3, "news", messages) if forward else v2.Publish(7, 3, "news", messages)


def with_unknown(value: bytes) -> bytes:
    """Return messages with an unknown field, whose value is encoded."""
    return joined([*pieces_of(messages_of("a")), encoded("x"), value])


def decode_deeper(payload: bytes, frames: int) -> v2.Packet:
    return decode_deeper(payload, frames - 1) if frames else v2.decode(payload)


class TestMessages:
    """The content of a batch is the publisher's responsibility, and no reason to end a connection."""

    @broken
    @batch_of
    def test_a_batch_whose_messages_are_broken_comes_without_any(
        self, batch_of: Callable[..., dict[str, Any]], messages: object
    ) -> None:
        expected = batch_with(NOTHING, forward=batch_of is forward_of)
        fields = batch_of(7, "news", after=3, counts=[1], messages=messages)
        assert v2.decode(encoded(fields)) == expected
        # Wherever the field is.
        assert v2.decode(encoded({"messages": messages} | fields)) == expected
        assert v2.decode(long_form(fields)) == expected

    @odd
    @batch_of
    def test_a_batch_whose_messages_are_not_whole_comes_as_it_is(
        self, batch_of: Callable[..., dict[str, Any]], messages: dict[str, Any]
    ) -> None:
        packet = v2.decode(encoded(batch_of(7, "news", after=3, messages=messages)))
        assert isinstance(packet, v2.Publish | v2.Forward)
        assert not packet.whole
        same = Packed(
            messages["sizes"],
            memoryview(messages["data"]),
            messages.get("text", True),
            messages.get("headers"),
        )
        assert packet == batch_with(same, forward=batch_of is forward_of)

    @broken
    def test_a_consumer_delivers_no_broken_messages(self, messages: object) -> None:
        assert "$.messages" in refusal(encoded(deliver_of(1, "x", messages=messages)))

    @odd
    def test_a_consumer_delivers_whole_messages(self, messages: dict[str, Any]) -> None:
        assert refusal(encoded(deliver_of(1, "x", messages=messages))).endswith(v2.INVALID_MESSAGES)

    @pytest.mark.parametrize(
        "changes",
        [
            *({"after": -3}, {"after": 3.0}, {"topic": 7}),
            *({"number": one, "numbers": [one]} for one in (0, 2**53, "7")),
            *({"topic": b"news"}, {"t": "backward"}, {"t": 7}, {"t": "ack"}, {"t": "deliver"}, {1: 2}),
            *({"publisher": 7}, {"publisher": "p" * 65}),
        ],
        ids=shown,
    )
    @pytest.mark.parametrize("messages", [messages_of("a", "b"), None], ids=["good", "broken"])
    def test_another_fault_is_its_senders(self, changes: dict[Any, Any], messages: object) -> None:
        refusal(encoded(forward_of(7, "news", after=3, messages=messages) | changes))
        if "publisher" not in changes:
            refusal(encoded(publish_of(7, "news", after=3, messages=messages) | changes))

    @batch_of
    @pytest.mark.parametrize("messages", [messages_of("a", "b"), None], ids=["good", "broken"])
    def test_a_field_that_is_missing_is_its_senders_fault(
        self, batch_of: Callable[..., dict[str, Any]], messages: object
    ) -> None:
        fields = batch_of(7, "news", after=3, messages=messages)
        for name in fields:
            refusal(encoded({key: value for key, value in fields.items() if key != name}))

    @batch_of
    @pytest.mark.parametrize("messages", [messages_of("a", "b"), None], ids=["good", "broken"])
    def test_a_topic_that_is_no_utf8_is_its_senders_fault(
        self, batch_of: Callable[..., dict[str, Any]], messages: object
    ) -> None:
        payload = encoded(batch_of(7, "news", messages=messages))
        for wrong in (b"\xa4new\xff", b"\xa4n\xed\xa0\x80", b"\xa4new\xc3"):
            refusal(payload.replace(b"\xa4news", wrong))

    @batch_of
    @pytest.mark.parametrize("other", [b"\xc3", b"\x80", b"\xc0", b"\x81\xa5sizes\x90"], ids=shown)
    def test_messages_that_come_twice_are_broken_if_any_of_them_is(
        self, batch_of: Callable[..., dict[str, Any]], other: bytes
    ) -> None:
        pieces = pieces_of(batch_of(7, "news", "a", after=3))
        expected = batch_with(NOTHING, forward=batch_of is forward_of)
        again = [encoded("messages"), other]
        for place in range(0, len(pieces) + 1, 2):
            assert v2.decode(joined([*pieces[:place], *again, *pieces[place:]])) == expected

    @pytest.mark.parametrize(
        "wrong", [b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\xa2\xc0\x80", b"\xa1\xc3", b"\xda\x00\x01\x80"]
    )
    @batch_of
    def test_a_header_that_is_no_utf8_breaks_its_batch_only(
        self, batch_of: Callable[..., dict[str, Any]], wrong: bytes
    ) -> None:
        expected = batch_with(NOTHING, forward=batch_of is forward_of)
        for headers in ({"name": "x"}, {"x": "value"}):
            payload = encoded(batch_of(7, "news", after=3, messages=messages_of("a", headers=[headers])))
            mark = b"\xa4name" if "name" in headers else b"\xa5value"
            assert v2.decode(payload.replace(mark, wrong)) == expected

    @pytest.mark.parametrize("text", [True, False])
    def test_texts_are_not_read_by_nodes(self, text: bool) -> None:
        """So that they pass on whatever a publisher calls a text."""
        packed = pack([b"\xff", b"\xed\xa0\x80"], text=text)
        for packet in (
            v2.Publish(1, 0, "x", packed),
            forward_one("p", 1, 0, "x", packed),
            deliver_one("x", 0, "", 0, packed),
        ):
            again = v2.decode(v2.encode(packet))
            assert again == packet

    @many
    @given(
        st.dictionaries(st.sampled_from(["sizes", "data", "text", "headers", "x"]), msgpack_values), batches()
    )
    def test_whatever_a_producer_passes_on_a_consumer_delivers(
        self, changes: dict[str, Any], messages: Packed
    ) -> None:
        fields = msgspec.to_builtins(messages, builtin_types=[memoryview]) | changes
        payload = encoded(publish_of(7, "news", after=3, messages=fields))
        published = v2.decode(payload)
        assert isinstance(published, v2.Publish)
        forward = forward_one("p", 7, 3, "news", published.messages)
        forwarded = v2.decode(v2.encode(forward))
        assert forwarded == forward
        if published.messages.whole:
            assert len(v2.encode(published)) <= len(payload)
            deliver = deliver_one("news", 5, "p", 7, published.messages)
            assert v2.decode(v2.encode(deliver)) == deliver

    @pytest.mark.parametrize("closed", [True, False])
    def test_whatever_a_producer_takes_deep_down_it_passes_on_flat(self, closed: bool) -> None:
        for depth in (*range(900, 1100, 7), 100_000):
            nested = b"\x91" * depth + b"\xc0" * closed
            for payload in (
                joined([*pieces_of(publish_of(7, "news", after=3)), encoded("x"), nested]),
                joined([*pieces_of(publish_of(7, "news", after=3))[:-1], with_unknown(nested)]),
            ):
                packet = is_taken_or_refused(payload)
                if packet is not None:
                    assert isinstance(packet, v2.Publish)
                    forward = forward_one("p", 7, 3, "news", packet.messages)
                    assert decode_deeper(v2.encode(forward), 5) == forward


NESTED = {
    "arrays": b"\x91",
    "long arrays": b"\xdd\0\0\0\1",
    "maps": b"\x81\xa0",
    "maps with a number as key": b"\x81\x01",
    "maps as keys": b"\x81",
    "both": b"\x91\x81\xa1t",
}

LONG = {
    "array": b"\xdd\xff\xff\xff\xff",
    "array of 16 bits": b"\xdc\xff\xff",
    "map": b"\xdf\xff\xff\xff\xff",
    "map of 16 bits": b"\xde\xff\xff",
    "string": b"\xdb\xff\xff\xff\xff",
    "string of 16 bits": b"\xda\xff\xff",
    "bytes": b"\xc6\xff\xff\xff\xff",
    "bytes of 16 bits": b"\xc5\xff\xff",
    "extension": b"\xc9\xff\xff\xff\xff\x01",
    "extension of 16 bits": b"\xc8\xff\xff\x01",
}
"""Beginnings of values that are longer than any packet of these tests."""


NO_STRINGS = [
    *(
        b"\x00",
        b"\x7f",
        b"\xff",
        b"\xcc\x80",
        b"\xd0\x80",
        b"\xc0",
        b"\xc1",
        b"\xc2",
        b"\xc3",
        b"\xca" + bytes(4),
    ),
    *(b"\xcb" + bytes(8), b"\xc4\x01t", b"\xc4\x05topic", b"\x90", b"\x91\xa1t", b"\x80", b"\x81\xa1t\xa1t"),
    b"\xd4\x01t",
]
"""Values of all other types."""


class TestHostile:
    """Bytes that no encoder writes."""

    @all_packets
    def test_a_packet_that_is_cut_off(self, packet: v2.Packet, fields: dict[str, Any]) -> None:
        for payload in (encoded(fields), long_form(fields)):
            for place in range(len(payload)):
                refusal(payload[:place])

    @all_packets
    def test_bytes_behind_a_packet(self, packet: v2.Packet, fields: dict[str, Any]) -> None:
        payload = encoded(fields)
        for more in (b"\0", b"\n", b"\xc0", b"\xc1", b"\x80", b"\xff", payload):
            refusal(payload + more)

    @all_packets
    def test_any_bit_that_is_wrong(self, packet: v2.Packet, fields: dict[str, Any]) -> None:
        payload = bytearray(encoded(fields))
        for place, bit in itertools.product(range(len(payload)), range(8)):
            payload[place] ^= 1 << bit
            is_taken_or_refused(bytes(payload))
            payload[place] ^= 1 << bit
        assert v2.decode(bytes(payload)) == packet

    @all_packets
    def test_any_byte_that_becomes_the_beginning_of_another_value(
        self, packet: v2.Packet, fields: dict[str, Any]
    ) -> None:
        payload = encoded(fields)
        firsts = [*range(0xC0, 0xE0), 0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xE0, 0xFF]
        for place, first in itertools.product(range(len(payload)), firsts):
            is_taken_or_refused(payload[:place] + bytes([first]) + payload[place + 1 :])
            is_taken_or_refused(payload[:place] + bytes([first]) + payload[place:])

    @pytest.mark.parametrize("head", LONG.values(), ids=LONG)
    def test_memory_is_taken_for_what_came_and_not_for_what_is_said_to_come(self, head: bytes) -> None:
        payloads = [head, head + bytes(100), head + b"\xa1t\xa5alive"]
        for _, fields in PACKETS:
            pieces = pieces_of(fields)
            for place in range(len(pieces) + 1):
                for end in (place, place + 1):
                    changed = [*pieces[:place], head, *pieces[end:]]
                    payloads += [joined(changed), joined([*changed, bytes(100)])]
            if "messages" in fields:
                inner = pieces_of(fields["messages"])
                for place in range(len(inner)):
                    messages = joined([*inner[:place], head, *inner[place + 1 :]])
                    payloads.append(joined([*pieces[:-1], messages]))
        v2.decode(encoded(PACKETS[0][1]))
        tracemalloc.start()
        try:
            for payload in payloads:
                # Exceptions of payloads before wait for the garbage collector, longer in newer Pythons.
                before, _ = tracemalloc.get_traced_memory()
                tracemalloc.reset_peak()
                refusal(payload)
                assert tracemalloc.get_traced_memory()[1] - before < 256 * 1024
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("nested", NESTED.values(), ids=NESTED)
    @pytest.mark.parametrize("end", [b"", b"\xc0", b"\xc1", b"\x80"], ids=shown)
    @pytest.mark.parametrize("depth", [1, 100, 900, 980, 1000, 1020, 10_000, 200_000])
    def test_deep_nesting(self, nested: bytes, end: bytes, depth: int) -> None:
        value = nested * depth + end
        batch = pieces_of(publish_of(7, "x", "a"))
        for payload in (
            value,
            b"\x82\xa1t\xa5alive\xa1x" + value,
            b"\x82\xa1x" + value + b"\xa1t\xa5alive",
            b"\x82\xa1t\xa5alive" + value + b"\xa1x",
            b"\x81\xa1t" + value,
            b"\x82\xa1t\xabunsubscribe\xa5topic" + value,
            b"\x82\xa1t\xa3ack\xa7numbers" + value,
            b"\x82\xa1t\xa3ack\xa7numbers\x91" + value,
            joined([*batch[:-1], value]),
            joined([*batch[:-1], with_unknown(value)]),
            joined([*batch[:-1], joined([encoded("sizes"), value, encoded("data"), encoded(b"a")])]),
            joined([*batch[:-1], joined([*pieces_of(messages_of("a")), encoded("headers"), value])]),
            joined(
                [*batch[:-1], joined([*pieces_of(messages_of("a")), encoded("headers"), b"\x91" + value])]
            ),
        ):
            is_taken_or_refused(payload)
        # It goes on as before.
        assert v2.decode(b"\x81\xa1t\xa5alive") == v2.Alive()

    @pytest.mark.parametrize(
        "extension",
        [
            *(b"\xd4\x01\0", b"\xd5\x7f" + bytes(2), b"\xd6\x80" + bytes(4), b"\xd7\0" + bytes(8)),
            *(
                b"\xd8\x05" + bytes(16),
                b"\xc7\0\x01",
                b"\xc7\x03\x01abc",
                b"\xc8\0\x01\x01a",
                b"\xc9\0\0\0\x01\x01a",
            ),
            # Timestamps, right and wrong.
            *(
                b"\xd6\xff" + bytes(4),
                b"\xd7\xff" + b"\xff" * 8,
                b"\xc7\x0c\xff" + b"\xff" * 12,
                b"\xc7\x03\xffabc",
            ),
        ],
        ids=shown,
    )
    def test_extensions_are_of_no_packet(self, extension: bytes) -> None:
        assert v2.decode(b"\x82\xa1t\xa5alive\xa1x" + extension) == v2.Alive()
        refusal(extension)
        for _, fields in PACKETS:
            pieces = pieces_of(fields)
            for place in range(len(pieces)):
                payload = joined([*pieces[:place], extension, *pieces[place + 1 :]])
                if pieces[place - 1] == encoded("messages") and fields["t"] not in ("deliver", "lend"):
                    packet = v2.decode(payload)
                    assert isinstance(packet, v2.Publish | v2.Forward)
                    assert packet.messages == NOTHING
                else:
                    refusal(payload)

    @all_packets
    def test_a_key_is_a_string(self, packet: v2.Packet, fields: dict[str, Any]) -> None:
        pieces = pieces_of(fields)
        for place, key in itertools.product(range(0, len(pieces) + 1, 2), NO_STRINGS):
            refusal(joined([*pieces[:place], key, b"\xc0", *pieces[place:]]))

    @all_packets
    def test_of_a_field_that_comes_twice_the_last_counts(
        self, packet: v2.Packet, fields: dict[str, Any]
    ) -> None:
        pieces = pieces_of(fields)
        others = {"topic": "other", "number": 9, "offset": 9, "nonce": b"o" * 32, "proof": b"o" * 32}
        for place, (name, value) in enumerate(fields.items()):
            if name in others:
                first = [*pieces[: 2 * place], encoded(name), encoded(others[name]), *pieces[2 * place :]]
                assert v2.decode(joined(first)) == packet
                last = v2.decode(joined([*pieces, encoded(name), encoded(others[name])]))
                assert last == msgspec.structs.replace(packet, **{name: others[name]})
            assert v2.decode(joined([*pieces, encoded(name), encoded(value)])) == packet

    @all_packets
    def test_no_two_decoders_see_different_packets_in_one_payload(
        self, packet: v2.Packet, fields: dict[str, Any]
    ) -> None:
        pieces = pieces_of(fields)
        every = pieces_of({"topic": "x", "numbers": [[1, 1]], "report": ""})
        tags = {"alive", "ack", "unsubscribe", "report", "", "m", 1, None, b"alive"} - {fields["t"]}
        for place, tag in itertools.product(range(0, len(pieces) + 1, 2), tags):
            refusal(joined([*pieces[:place], encoded("t"), encoded(tag), *pieces[place:], *every]))

    @pytest.mark.parametrize(
        "fields",
        [
            *({"t": "{}"}, {"{}": 1}, {"t": "alive", 1: "{}"}, {"t": "unsubscribe", "{}": 1}),
            *({"t": "subscribe", "topic": "x", "start": "{}"}, {"t": "publisher", "secret": "{}"}),
            *({"t": "refused", "number": 1, "code": ["{}"], "reason": ""}, {"t": "report", "report": ["{}"]}),
            deliver_of(0, "x", messages={"sizes": [1], "data": b"a", "headers": [{"{}": 1}]}),
            deliver_of(0, "x", messages={"sizes": [1], "data": b"a", "headers": [{"k": ["{}"]}]}),
        ],
        ids=shown,
    )
    @pytest.mark.parametrize("times", [1, 1000])
    def test_an_error_does_not_quote_the_payload_at_length(self, fields: dict[Any, Any], times: int) -> None:
        def put_in(value: object) -> object:
            if isinstance(value, dict):
                return {put_in(key): put_in(one) for key, one in value.items()}
            if isinstance(value, list):
                return list(map(put_in, value))
            return value.replace("{}", "confidential " * times) if isinstance(value, str) else value

        assert refusal(encoded(put_in(fields))).count("confidential") < 8


CHANGES = st.lists(
    st.tuples(st.integers(0), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4
)


@many
@given(V2_PACKETS, CHANGES)
def test_changed_bytes_raise_nothing_but_peer_error(packet: v2.Packet, changes: list[Any]) -> None:
    payload = v2.encode(packet)
    for place, removed, added in changes:
        start = place % (len(payload) + 1)
        payload = payload[:start] + added + payload[start + removed :]
    is_taken_or_refused(payload)


@many
@given(V2_PACKETS, st.integers(0, 10), msgpack_values)
def test_other_values_raise_nothing_but_peer_error(packet: v2.Packet, place: int, value: Any) -> None:
    fields = msgspec.msgpack.decode(v2.encode(packet))
    key = list(fields)[place % len(fields)]
    is_taken_or_refused(encoded(fields | {key: value}))


@many
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x81\xa1t", b"\x82\xa1t\xabunsubscribe", b"\x82\xa1t\xa5alive\xa1x"]),
)
def test_arbitrary_bytes_raise_nothing_but_peer_error(data: bytes, before: bytes) -> None:
    is_taken_or_refused(before + data)


@many
@given(msgpack_values)
def test_arbitrary_values_raise_nothing_but_peer_error(value: Any) -> None:
    refusal(encoded(value))
    is_taken_or_refused(encoded({"t": value}))


@pytest.mark.parametrize(
    "packet",
    [
        v2.Unsubscribe("\udcff"),
        v2.NodeReport("\ud800"),
        deliver_one("\ud800", 0, "", 0, ONE),
        deliver_one("x", 0, "", 0, pack([b"a"], text=True, headers=[{"\ud800": ""}])),
        deliver_one("x", 0, "", 0, pack([b"a"], text=True, headers=[{"k": "\udfff"}])),
    ],
    ids=shown,
)
def test_a_lone_surrogate_cannot_be_sent(packet: v2.Packet) -> None:
    with pytest.raises(UnicodeEncodeError):
        v2.encode(packet)


def test_delivering_takes_little_more_than_forwarding() -> None:
    """A producer leaves room for it, so that a subscriber with the same limits takes the packets."""
    batches_of_all_kinds = (
        pack_texts(["\n" * 50]),
        pack_texts([""] * 70_000),
        pack([b"\xff" * 300] * 300, text=False, headers=[{"k": "v"}] * 300),
    )
    for number, messages in itertools.product((1, v2.MAX_NUMBER), batches_of_all_kinds):
        forwarded = v2.encode(forward_one("x" * 22, number, 0, "news", messages))
        delivered = v2.encode(deliver_one("news", v2.MAX_NUMBER, "x" * 22, number, messages))
        assert len(delivered) <= len(forwarded) + 64


def test_passing_on_takes_no_more_than_the_publisher_took_and_a_name() -> None:
    for messages in (pack_texts(["a"]), pack([b"\xff" * 300] * 300, text=False, headers=[None] * 300)):
        published = v2.encode(v2.Publish(1, 0, "news", messages))
        forwarded = v2.encode(forward_one("x" * 22, 1, 0, "news", messages))
        assert len(forwarded) <= len(published) + 64
