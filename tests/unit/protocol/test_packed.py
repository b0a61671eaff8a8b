"""The messages of a batch as they travel: packed and unpacked, in parts, and with faults."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol.packed import (
    MAX_HEADER_NAME_CHARACTERS,
    MAX_HEADER_VALUE_CHARACTERS,
    MAX_HEADERS,
    NOTHING,
    Headers,
    Packed,
    pack,
    pack_texts,
)

from ...support.session_pair import many
from ...support.strategies import any_utf8_text, batches, msgpack_values

NO_UTF8 = [
    *(b"\xff", b"\xfe", b"\x80", b"a\xbf", b"\xc3", b"\xc3a", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc1\xbf"),
    *(b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xed\xa0\x80", b"\xed\xbf\xbf"),
    *(b"\xed\xa0\xbd\xed\xb8\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", "ñ".encode("latin-1")),
]
"""Cut characters, bytes that are in none, forms that are too long, surrogates, and code points beyond all."""

CHARACTERS = [
    *("\0", "\x01", "\n", '"', "\\", "\x7f", "\x80", "\xa0", "ñ", "\u07ff", "\u0800", "\u200d", "\u202e"),
    *("日", "\ud7ff", "\ue000", "\ufeff", "\ufffd", "\uffff", "\N{COMBINING ACUTE ACCENT}"),
    *("\U00010000", "\N{GRINNING FACE}", "\U000e0041", "\U0010ffff"),
]
"""The first and the last character of each length in UTF-8, and such that are often mistreated."""

raw_messages = any_utf8_text.map(str.encode) | st.binary(max_size=6) | st.sampled_from(NO_UTF8)


def travelled(packed: Packed) -> Packed:
    """Return messages as another end decodes them."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=Packed)


def text_of(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


class TestTexts:
    @many
    @given(st.lists(any_utf8_text, max_size=8))
    def test_they_come_back(self, texts: list[str]) -> None:
        packed = pack_texts(texts)
        assert packed.count == len(texts)
        assert packed.sizes == [len(text.encode()) for text in texts]
        assert bytes(packed.data) == "".join(texts).encode()
        assert (packed.text, packed.headers) == (True, None)
        assert packed == pack([text.encode() for text in texts], text=True)
        assert packed.whole is bool(texts)
        for one in (packed, travelled(packed)):
            assert one.texts() == texts
            assert one.unpack() == texts
            assert all(type(text) is str for text in one.unpack())

    @pytest.mark.parametrize("character", CHARACTERS, ids=ascii)
    def test_any_character_at_any_place(self, character: str) -> None:
        texts = ["", character, "a", character + "a", "a" + character, "a", character * 100, "", "a"]
        assert travelled(pack_texts(texts)).unpack() == texts
        assert travelled(pack_texts([character])).unpack() == [character]
        assert travelled(pack_texts(["a" * 1000, character, "a" * 1000])).unpack()[1] == character

    @pytest.mark.parametrize("texts", [[""], ["", ""], ["", "a"], ["a", ""], ["", "ñ", ""], [""] * 1000])
    def test_an_empty_message_is_a_message(self, texts: list[str]) -> None:
        packed = travelled(pack_texts(texts))
        assert (packed.whole, packed.count, packed.unpack()) == (True, len(texts), texts)

    @pytest.mark.parametrize(
        "texts", [["\ud800"], ["a", "\udfff"], ["a\ud83dz"], ["\ud83d", "\ude00"], ["ñ", "\udcff"]]
    )
    def test_a_lone_surrogate_cannot_be_packed(self, texts: list[str]) -> None:
        with pytest.raises(UnicodeEncodeError):
            pack_texts(texts)

    @many
    @given(st.lists(raw_messages, max_size=8), st.booleans())
    def test_what_is_no_utf8_is_no_text_and_leaves_the_others_alone(
        self, messages: list[bytes], text: bool
    ) -> None:
        packed = travelled(pack(messages, text=text))
        texts = list(map(text_of, messages))
        assert packed.texts() == texts
        assert packed.is_utf8 is (None not in texts)
        if text:
            expected = [data if one is None else one for one, data in zip(texts, messages, strict=True)]
            assert packed.unpack() == expected
        else:
            assert packed.unpack() == messages

    @pytest.mark.parametrize("wrong", NO_UTF8, ids=repr)
    def test_each_kind_of_what_is_no_utf8(self, wrong: bytes) -> None:
        packed = pack([b"a", wrong, b"", "ñ".encode(), wrong], text=True)
        assert (packed.whole, packed.is_utf8) == (True, False)
        assert packed.texts() == ["a", None, "", "ñ", None]
        assert packed.unpack() == ["a", wrong, "", "ñ", wrong]

    @pytest.mark.parametrize("character", ["ñ", "日", "\N{GRINNING FACE}"])
    def test_a_character_across_two_messages_is_in_neither(self, character: str) -> None:
        """All of them together are UTF-8."""
        encoded = character.encode()
        for place in range(1, len(encoded)):
            parts = [encoded[:place], encoded[place:]]
            packed = travelled(pack([*parts, encoded, *parts, b"a"], text=True))
            assert packed.unpack() == [*parts, character, *parts, "a"]
            assert not packed.is_utf8
            assert not pack([parts[0], b"", parts[1]], text=True).is_utf8
            assert not pack([encoded, encoded + parts[0]], text=True).is_utf8
        assert pack([b"", encoded, b"", b"", encoded, b""], text=True).is_utf8


class TestBytes:
    @many
    @given(st.lists(raw_messages, max_size=8))
    def test_they_come_back(self, messages: list[bytes]) -> None:
        packed = pack(messages, text=False)
        assert packed.whole is bool(messages)
        for one in (packed, travelled(packed)):
            assert (one.count, one.text) == (len(messages), False)
            assert one.unpack() == messages
            assert all(type(data) is bytes for data in one.unpack())

    def test_every_byte(self) -> None:
        every = bytes(range(256))
        messages = [every, every[::-1], b"", *(bytes([byte]) for byte in every)]
        assert travelled(pack(messages, text=False)).unpack() == messages

    def test_the_bytes_outlive_the_packet(self) -> None:
        payload = bytearray(msgspec.msgpack.encode(pack([b"one", b"two"], text=False)))
        messages = msgspec.msgpack.decode(bytes(payload), type=Packed).unpack()
        payload[:] = bytes(len(payload))
        assert messages == [b"one", b"two"]


class TestHeaders:
    @many
    @given(batches())
    def test_they_come_back(self, packed: Packed) -> None:
        again = travelled(packed)
        assert again == packed
        assert again.headers == packed.headers
        assert again.whole

    def test_none_at_all_and_none_of_each(self) -> None:
        assert travelled(pack([b"a", b"b"], text=True)).headers is None
        packed = travelled(pack([b"a", b"b"], text=True, headers=[None, {}]))
        assert (packed.headers, packed.whole) == ([None, {}], True)


@pytest.mark.parametrize(
    ("packed", "payload"),
    [
        (pack_texts(["a", "ñ"]), b"\x82\xa5sizes\x92\x01\x02\xa4data\xc4\x03a\xc3\xb1"),
        (pack_texts([""]), b"\x82\xa5sizes\x91\x00\xa4data\xc4\x00"),
        (pack([b"\xff"], text=False), b"\x83\xa5sizes\x91\x01\xa4data\xc4\x01\xff\xa4text\xc2"),
        (
            pack([b"a", b""], text=True, headers=[{"k": "v"}, None]),
            b"\x83\xa5sizes\x92\x01\x00\xa4data\xc4\x01a\xa7headers\x92\x81\xa1k\xa1v\xc0",
        ),
        (
            pack([b"x" * 256], text=False, headers=[{}]),
            b"\x84\xa5sizes\x91\xcd\x01\x00\xa4data\xc5\x01\x00"
            + b"x" * 256
            + b"\xa4text\xc2\xa7headers\x91\x80",
        ),
    ],
)
def test_exact_bytes(packed: Packed, payload: bytes) -> None:
    assert msgspec.msgpack.encode(packed) == payload
    assert msgspec.msgpack.decode(payload, type=Packed) == packed


class TestBehind:
    @many
    @given(batches(), st.integers(0, 6))
    def test_the_messages_from_an_index_on(self, packed: Packed, index: int) -> None:
        for one in (packed, travelled(packed)):
            behind = one.behind(index)
            assert behind.unpack() == one.unpack()[index:]
            assert behind.headers == (None if one.headers is None else one.headers[index:])
            assert (behind.text, behind.count) == (one.text, max(0, one.count - index))
            assert behind.whole is (index < one.count)
            assert travelled(behind) == behind

    @many
    @given(batches(), st.integers(0, 4), st.integers(0, 4))
    def test_in_two_steps(self, packed: Packed, one: int, other: int) -> None:
        assert packed.behind(one).behind(other) == packed.behind(one + other)

    @many
    @given(batches(), st.integers(0, 4), st.integers(0, 5))
    def test_a_part_of_them(self, packed: Packed, index: int, count: int) -> None:
        part = packed.part(index, count, sum(packed.sizes[:index]))
        assert part.unpack() == packed.unpack()[index : index + count]
        assert part.headers == (None if packed.headers is None else packed.headers[index : index + count])
        assert part.text is packed.text
        assert part.whole is (part.count > 0)

    def test_nothing_is_copied(self) -> None:
        packed = pack_texts(["one", "two"])
        assert packed.behind(1).data.obj is packed.data.obj


class TestWhole:
    @pytest.mark.parametrize(
        ("sizes", "data", "headers", "whole"),
        [
            ([3], b"abc", None, True),
            ([1, 0, 2], b"abc", None, True),
            ([0], b"", None, True),
            ([3], b"abc", [None], True),
            ([1, 2], b"abc", [{}, {"k": "v"}], True),
            ([], b"", None, False),
            ([], b"", [], False),
            ([], b"abc", None, False),
            ([2], b"abc", None, False),
            ([4], b"abc", None, False),
            ([0], b"abc", None, False),
            ([1, 1], b"abc", None, False),
            ([1], b"", None, False),
            ([2**63, 2**63], b"", None, False),
            ([2**64 - 1, 1], b"", None, False),
            ([2**32], b"", None, False),
            ([3], b"abc", [], False),
            ([3], b"abc", [None, None], False),
            ([1, 2], b"abc", [{}], False),
            ([1, 2], b"abc", [{}, None, {}], False),
        ],
    )
    def test_examples(self, sizes: list[int], data: bytes, headers: list[Any] | None, whole: bool) -> None:
        packed = Packed(sizes, memoryview(data), headers=headers)
        assert (packed.whole, travelled(packed).whole) == (whole, whole)

    @many
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(-2, 2), st.integers(-2, 2))
    def test_neither_bytes_nor_headers_may_lack_or_be_left(
        self, sizes: list[int], more: int, others: int
    ) -> None:
        data = memoryview(bytes(max(0, sum(sizes) + more)))
        fits = len(data) == sum(sizes)
        assert Packed(sizes, data).whole is fits
        headers: list[Headers | None] = [None] * max(0, len(sizes) + others)
        assert Packed(sizes, data, headers=headers).whole is (fits and len(headers) == len(sizes))

    def test_nothing_is_not_whole(self) -> None:
        assert (NOTHING.whole, NOTHING.count, NOTHING.unpack(), NOTHING.texts()) == (False, 0, [], [])
        assert travelled(NOTHING) == NOTHING


NAME, VALUE = "\N{GRINNING FACE}" * MAX_HEADER_NAME_CHARACTERS, "ñ" * MAX_HEADER_VALUE_CHARACTERS
GOOD: dict[str, Any] = {"sizes": [1, 2], "data": b"abc"}


def with_headers(*headers: object) -> dict[str, Any]:
    return GOOD | {"headers": list(headers)}


class TestDecoding:
    """The values that come from a peer."""

    @pytest.mark.parametrize(
        "fields",
        [
            GOOD,
            GOOD | {"text": True, "headers": None},
            GOOD | {"text": False},
            with_headers(None, None),
            with_headers({}, {NAME: VALUE}),
            {"sizes": [0] * 65_536, "data": b"", "headers": [None] * 65_535 + [{}]},
            with_headers({f"{number}": "" for number in range(MAX_HEADERS)}, None),
            with_headers({f"{number:064}": VALUE for number in range(MAX_HEADERS)}, None),
            with_headers({"\0": "\0", " ": "\r\n"}, None),
            {"data": b"abc", "sizes": [1, 2]},
            GOOD | {"later": {"any": [1, None, b"\xff", {1: 2}]}, "": 0},
        ],
        ids=lambda fields: repr(fields)[:60],
    )
    def test_good_fields(self, fields: dict[str, Any]) -> None:
        packed = msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Packed)
        assert packed == Packed(
            fields["sizes"], memoryview(fields["data"]), fields.get("text", True), fields.get("headers")
        )
        assert packed.whole

    @pytest.mark.parametrize(
        "fields",
        [
            *(None, {}, [], "abc", b"abc", 1, [[1, 2], b"abc"], [b"abc"]),
            *({"sizes": [3]}, {"data": b"abc"}),
            *(GOOD | {"sizes": sizes} for sizes in (None, 3, "3", b"\x03", {}, {0: 3}, {"0": 3}, True)),
            *(GOOD | {"sizes": [1, size]} for size in (-1, -(2**63), 2.0, 1e300, "2", b"2", None, True, [2])),
            *(GOOD | {"data": data} for data in (None, "abc", [97, 98, 99], 3, True, {"": 0})),
            *(GOOD | {"text": text} for text in (None, 0, 1, "true", b"", [True])),
            *(GOOD | {"headers": headers} for headers in ({}, {"k": "v"}, "", b"", 0, True)),
            with_headers({"": "no name"}, None),
            {"sizes": [0] * 65_537, "data": b"", "headers": [None] * 65_537},
            with_headers({NAME + "x": ""}, None),
            with_headers({"k": VALUE + "x"}, None),
            with_headers({f"{number}": "" for number in range(MAX_HEADERS + 1)}, None),
            *(with_headers(None, {key: ""}) for key in (1, None, b"k", True, 1.5)),
            *(with_headers(None, {"k": value}) for value in (1, None, b"v", True, ["v"], {"v": "v"})),
            *(with_headers(None, other) for other in ([], "k", ["k", "v"], 0, False)),
        ],
        ids=lambda fields: repr(fields)[:60],
    )
    def test_wrong_fields(self, fields: object) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Packed)

    @pytest.mark.parametrize("wrong", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80"])
    @pytest.mark.parametrize("place", ["name", "value"])
    def test_a_header_is_utf8(self, wrong: bytes, place: str) -> None:
        good = msgspec.msgpack.encode(with_headers(None, {"name": "value"}))
        payload = good.replace(place.encode(), wrong.ljust(len(place), b"x"))
        assert payload != good
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            msgspec.msgpack.decode(payload, type=Packed)

    def test_of_a_header_that_comes_twice_the_last_counts(self) -> None:
        good = msgspec.msgpack.encode(with_headers(None, {"a": "1", "b": "2"}))
        packed = msgspec.msgpack.decode(good.replace(b"\xa1b", b"\xa1a"), type=Packed)
        assert packed.headers == [None, {"a": "2"}]

    @many
    @given(st.dictionaries(st.sampled_from(["sizes", "data", "text", "headers", "x"]), msgpack_values))
    def test_whatever_is_decoded_can_be_passed_on(self, changes: dict[str, Any]) -> None:
        try:
            packed = msgspec.msgpack.decode(msgspec.msgpack.encode(GOOD | changes), type=Packed)
        except msgspec.ValidationError:
            return
        assert travelled(packed) == packed
        if packed.whole:
            assert len(packed.unpack()) == len(packed.texts()) == packed.count
            parts = [one.encode() if isinstance(one, str) else one for one in packed.unpack()]
            assert (list(map(len, parts)), b"".join(parts)) == (packed.sizes, bytes(packed.data))
