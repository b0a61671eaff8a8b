from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol.classic import (
    Hello,
    Message,
    MessageSlices,
    Packet,
    Subscribe,
    Unsubscribe,
    decode,
    decode_messages,
    encode,
    encode_string,
    message_overhead,
)
from wsqueue.protocol.close import CloseCode, PeerError
from wsqueue.protocol.packed import pack, pack_texts

from ...support.session_pair import many
from ...support.strategies import json_values, utf8_text

SHORT = 200
"""Most characters of an error that doesn't quote the payload at length."""


def refusal(payload: bytes) -> str:
    with pytest.raises(PeerError) as caught:
        decode(payload)
    assert caught.value.code is CloseCode.INVALID_PACKET
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


def reason_of(payload: bytes) -> str:
    """Return the reason why a payload is refused, "" if it is not."""
    try:
        decode(payload)
    except PeerError as error:
        return error.reason
    return ""


@pytest.mark.parametrize(
    ("packet", "payload"),
    [
        (Hello(once=1), b'{"t":"h","o":1}'),
        (Hello(once=2147483646), b'{"t":"h","o":2147483646}'),
        (Hello(answer="kBKs+/8="), b'{"t":"h","a":"kBKs+/8="}'),
        (Message(data="hi", topic="news"), b'{"t":"m","d":"hi","s":"news"}'),
        (Message(data="", topic=""), b'{"t":"m","d":"","s":""}'),
        (Message(data="a\0b", topic="\n"), b'{"t":"m","d":"a\\u0000b","s":"\\n"}'),
        (Message(data='"\\/', topic="'"), b'{"t":"m","d":"\\"\\\\/","s":"\'"}'),
        (
            Message(data="\N{GRINNING FACE}", topic="\u65e5"),
            '{"t":"m","d":"\N{GRINNING FACE}","s":"\u65e5"}'.encode(),
        ),
        (Subscribe(topic="news"), b'{"t":"s","s":"news"}'),
        (Unsubscribe(topic="news"), b'{"t":"u","s":"news"}'),
    ],
)
def test_exact_bytes_that_are_sent(packet: Packet, payload: bytes) -> None:
    assert encode(packet) == payload
    assert decode(payload) == packet


@pytest.mark.parametrize(
    ("payload", "packet"),
    [
        (b'{"s":"news","d":"hi","t":"m"}', Message(data="hi", topic="news")),
        (b'{"d":"hi","t":"m","s":"news"}', Message(data="hi", topic="news")),
        (b'{"o":7,"t":"h"}', Hello(once=7)),
        (b' \r\n{ "t" :\t"h" , "o" : 7 } \n', Hello(once=7)),
        (b'{"\\u0074":"\\u006d","d":"","s":""}', Message(data="", topic="")),
        (b'{"t":"m","d":"\\ud83d\\ude00","s":"\\u0000"}', Message(data="\N{GRINNING FACE}", topic="\0")),
        (b'{"t":"m","d":"\\/\\b\\f\\n\\r\\t","s":""}', Message(data="/\b\f\n\r\t", topic="")),
    ],
)
def test_other_spellings_of_the_same_packet(payload: bytes, packet: Packet) -> None:
    assert decode(payload) == packet


@pytest.mark.parametrize(
    "once",
    [
        *("0", "-0", "-1", str(2**31 - 1), str(2**31), str(2**63), str(2**64), "9" * 5000, "-" + "9" * 5000),
        *("1.0", "1.5", "1e3", "1e999", "true", "false", '"1"', "[1]", "{}", "null", "NaN", "01", "0x1"),
    ],
)
def test_challenge_out_of_range_or_of_another_type(once: str) -> None:
    assert len(refusal(b'{"t":"h","o":%s}' % once.encode())) < SHORT


@pytest.mark.parametrize(
    ("payload", "hint"),
    [
        (b'{"t":"h"}', "either `o` (challenge) or `a` (answer)"),
        (b'{"t":"h","o":1,"a":"x"}', "either `o` (challenge) or `a` (answer)"),
        (b'{"t":"h","o":null,"a":null}', "either `o` (challenge) or `a` (answer)"),
        (b'{"t":"h","a":7}', "$.a"),
        (b'{"t":"m","d":"x"}', "missing required field `s`"),
        (b'{"t":"m","s":"x"}', "missing required field `d`"),
        (b'{"t":"m","d":1,"s":"x"}', "$.d"),
        (b'{"t":"m","d":"x","s":null}', "$.s"),
        (b'{"t":"m","d":"x","s":["x"]}', "$.s"),
        (b'{"t":"s"}', "missing required field `s`"),
        (b'{"t":"u","s":1}', "$.s"),
        (b'{"d":"x","s":"x"}', "missing required field `t`"),
        (b'{"T":"m","d":"x","s":"x"}', "missing required field `t`"),
        (b'{"t":"x"}', "$.t"),
        (b'{"t":"M","d":"x","s":"x"}', "$.t"),
        (b'{"t":1,"d":"x","s":"x"}', "$.t"),
        (b'{"t":null}', "$.t"),
        (b'{"t":"m","d":"x","s":"x","id":1}', "unknown field"),
        (b'{"t":"h","o":1,"d":"x"}', "unknown field"),
        (b'{"t":"s","s":"x","d":"x"}', "unknown field"),
        (b"{}", "missing required field `t`"),
    ],
)
def test_wrong_fields(payload: bytes, hint: str) -> None:
    assert hint in refusal(payload)


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b" ", b"null", b"true", b"3", b'"m"', b"[]", b'[{"t":"h","o":1}]', b"{", b'{"t":"h","o":1'),
        *(b'{"t":"h","o":1}x', b'{"t":"h","o":1}\0', b'{"t":"h","o":1}{"t":"h","o":1}', b"hi"),
        *(b'\xef\xbb\xbf{"t":"h","o":1}', b'{"t":"h","o":1,}', b"{'t':'h','o':1}"),
        *(b'{"t":"m","d":"\0","s":""}', b'{"t":"m","d":"\n","s":""}', b'{"t":"m","d":"\\x","s":""}'),
    ],
)
def test_what_is_not_one_object(payload: bytes) -> None:
    refusal(payload)


@pytest.mark.parametrize(
    "payload",
    [
        *(b'{"t":"m","d":"\xff","s":""}', b'{"t":"m","d":"","s":"\xc0\x80"}', b'{"t":"\xff"}', b"\xff"),
        *(b'{"t":"m","d":"\xed\xa0\x80","s":""}', b'{"t":"m","\xff":1}'),
    ],
)
def test_what_is_not_utf8(payload: bytes) -> None:
    with pytest.raises(PeerError) as info:
        decode(payload)
    assert info.value.code is CloseCode.INVALID_TEXT
    assert decode_messages([encode(Message("", "")), payload]) is None


@pytest.mark.parametrize(
    "text", [rb"\ud800", rb"\udc00", rb"\ud83dx", rb"\ud83d\ud83d", rb"\ude00\ud83d", rb"x\udfff"]
)
@pytest.mark.parametrize(
    "payload",
    [b'{"t":"m","d":"%s","s":""}', b'{"t":"m","d":"","s":"%s"}', b'{"t":"%s"}', b'{"t":"m","%s":1}'],
)
def test_lone_surrogates_are_refused(payload: bytes, text: bytes) -> None:
    refusal(payload % text)


@pytest.mark.parametrize("packet", [Message(data="\ud800", topic=""), Message(data="", topic="\udfff")])
def test_a_lone_surrogate_cannot_be_sent(packet: Packet) -> None:
    with pytest.raises(UnicodeEncodeError):
        encode(packet)


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000])
@pytest.mark.parametrize("payload", [b"%s", b'{"t":"m","d":%s', b'{"x":%s,"t":"m"}', b'{"t":"m","x":%s}'])
def test_deep_nesting(payload: bytes, nested: bytes) -> None:
    assert len(refusal(payload % nested)) < SHORT


def test_of_a_key_that_comes_twice_the_last_counts_as_in_javascript() -> None:
    assert decode(b'{"t":"m","d":"a","s":"b","s":"c"}') == Message(data="a", topic="c")
    assert decode(b'{"t":"h","o":1,"o":2}') == Hello(once=2)


@pytest.mark.parametrize(
    "payload",
    [
        *(b'{"t":"m","t":"h","d":"x","s":"x"}', b'{"t":"h","t":"m","d":"x","s":"x"}'),
        *(b'{"t":"m","d":"x","s":"x","t":"h"}', b'{"d":"x","s":"x","t":"m","t":"h"}'),
        *(b'{"t":"m","d":"x","s":"x","t":3}', b'{"t":"m","d":"x","s":1,"s":"x"}'),
    ],
)
def test_no_two_decoders_see_different_packets_in_one_payload(payload: bytes) -> None:
    refusal(payload)


@pytest.mark.parametrize(
    "payload",
    [
        *(
            b'{"t":"m","d":"x","s":"x","%s":1}',
            b'{"t":"m","d":"x","s":"x","y":"%s"}',
            b'{"t":"m","d":["%s"]}',
        ),
        *(b'{"t":"h","o":"%s"}', b'{"t":"h","o":1,"a":"%s"}', b'{"t":"%s"}', b'{"d":"%s","s":"x"}'),
        *(b'{"t":"m","d":"%s"}', b'"%s"', b"%s"),
    ],
)
def test_an_error_does_not_quote_the_payload_at_length(payload: bytes) -> None:
    reason = refusal(payload % (b"confidential " * 1000))
    assert len(reason) < SHORT
    assert reason.count("confidential") < 8


@many
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_peer_error(payload: bytes) -> None:
    assert len(reason_of(payload)) < SHORT


@many
@given(json_values)
def test_arbitrary_json_raises_nothing_but_peer_error(value: Any) -> None:
    assert len(reason_of(json.dumps(value).encode())) < SHORT


def is_packet(value: dict[str, Any]) -> bool:
    """Return True if an object is a packet, by the words of the wire facts."""
    keys = set(value) - {"t"}
    if value.get("t") == "h":
        if keys == {"o"}:
            return type(value["o"]) is int and 1 <= value["o"] <= 2147483646
        return keys == {"a"} and isinstance(value["a"], str)
    if value.get("t") == "m":
        return keys == {"d", "s"} and isinstance(value["d"], str) and isinstance(value["s"], str)
    return value.get("t") in ("s", "u") and keys == {"s"} and isinstance(value["s"], str)


@many
@given(
    st.fixed_dictionaries(
        {"t": st.sampled_from(["h", "m", "s", "u", "x", 1, None])},
        optional={
            "o": st.integers(-2, 3) | st.integers(2**31 - 3, 2**31 + 1) | st.just(1.5) | st.booleans(),
            "a": utf8_text | st.just(1),
            "d": utf8_text | st.just(1) | st.none(),
            "s": utf8_text | st.just(1) | st.none(),
            "x": st.none(),
        },
    ),
    st.randoms(use_true_random=False),
)
def test_exactly_the_packets_are_taken(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    payload = json.dumps(dict(items)).encode()
    if is_packet(value):
        taken = json.loads(encode(decode(payload)))
        assert {key: field for key, field in taken.items() if field is not None} == value
    else:
        refusal(payload)


@many
@given(utf8_text, utf8_text)
def test_messages_survive_and_are_what_other_decoders_read(data: str, topic: str) -> None:
    payload = encode(Message(data=data, topic=topic))
    assert decode(payload) == Message(data=data, topic=topic)
    assert json.loads(payload) == {"t": "m", "d": data, "s": topic}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text('\x01é"a', max_size=30)


@many
@given(
    topic=TEXTS,
    data=st.lists(TEXTS.map(str.encode), max_size=30)
    | st.lists(TEXTS.map(str.encode) | st.binary(max_size=9)),
    text=st.booleans(),
    max_bytes=st.integers(1, 300),
    max_message_bytes=st.integers(1, 200) | st.just(10_000),
)
def test_messages_are_built_in_slices(
    topic: str, data: list[bytes], text: bool, max_bytes: int, max_message_bytes: int
) -> None:
    messages = pack(data, text=text)
    all_built = [encode(Message(one, topic)) for one in messages.texts() if one is not None]
    expected = [one for one in all_built if len(one) <= max_message_bytes]
    slices = MessageSlices(topic, messages, max_message_bytes)
    skips_none = len(expected) == len(data)
    assert slices.count == len(data)
    assert slices.skips_none() is skips_none
    built: list[bytes] = []
    while not slices.done:
        before = slices.built
        assert slices.rest == messages.behind(before)
        piece = slices.next_slice(max_bytes)
        assert slices.built > before
        assert len(piece) <= 1 or sum(map(len, piece)) <= max_bytes
        built += piece
        assert slices.built - slices.skipped == len(built)
        if skips_none and not slices.done:
            assert sum(map(len, piece)) + len(expected[slices.built]) > max_bytes
    assert built == expected
    assert slices.skipped == len(data) - len(expected)
    assert slices.rest.count == 0


@pytest.mark.parametrize("data", ["a", "\x01", '"', "ñ", "\N{GRINNING FACE}", "a" * 100, "\x01" * 100])
def test_a_message_is_skipped_if_it_is_too_long_by_one(data: str) -> None:
    size = len(encode(Message(data, "news")))
    for most, expected in ((size, [encode(Message(data, "news"))]), (size - 1, [])):
        slices = MessageSlices("news", pack_texts([data]), most)
        assert slices.skips_none() is bool(expected)
        assert slices.next_slice(1) == expected
        assert (slices.done, slices.skipped) == (True, 1 - len(expected))


@given(topic=TEXTS, text=TEXTS)
def test_a_message_takes_its_data_as_json_and_an_overhead(topic: str, text: str) -> None:
    assert message_overhead(topic) + len(encode_string(text)) == len(encode(Message(text, topic)))
