"""Messages of the application, checked and encoded."""

from __future__ import annotations

import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.session_pair import many
from tests.support.strategies import utf8_text
from wsqueue import InvalidMessage
from wsqueue.client.encoding import (
    HEADER_BYTES,
    MESSAGE_BYTES,
    EncodedMessage,
    encode_messages,
    encode_topic,
)
from wsqueue.config.model import Limits

LIMITS = Limits(max_message_bytes=100, max_topic_bytes=8)

headers_of_any_kind = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    max_size=16,
)


@many
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=2),
    st.lists(st.one_of(utf8_text, st.binary()), min_size=1),
    headers_of_any_kind,
)
def test_the_size_counts_the_data_the_topic_and_the_headers(
    topic: str, data: list[str | bytes], headers: dict[str, str]
) -> None:
    encoded = encode_messages(topic, data, Limits(), headers)
    assert encoded.topic == topic
    besides = len((topic + "".join(headers) + "".join(headers.values())).encode())
    for one, message in zip(data, encoded.messages, strict=True):
        assert message.text == isinstance(one, str)
        assert message.data == (one.encode() if isinstance(one, str) else one)
        assert message.headers == (headers or None)
        assert message.size == len(message.data) + besides + MESSAGE_BYTES + HEADER_BYTES * len(headers)


@pytest.mark.parametrize(
    ("topic", "data", "problem"),
    [
        ("123456789", [""], "the topic has 9 bytes, and max_topic_bytes is 8"),
        ("ññññx", [""], "the topic has 9 bytes, and max_topic_bytes is 8"),
        ("\ud800", [""], "the topic holds a lone surrogate, which UTF-8 lacks"),
        ("news", ["", "\udfff"], "the data holds a lone surrogate, which UTF-8 lacks"),
        (
            "news",
            ["", "x" * 97, "x" * 200],
            "the message has 101 bytes with its topic and headers, and max_message_bytes is 100",
        ),
        (
            "news",
            [b"", bytes(97)],
            "the message has 101 bytes with its topic and headers, and max_message_bytes is 100",
        ),
        (
            "news",
            ["ñ" * 49],
            "the message has 102 bytes with its topic and headers, and max_message_bytes is 100",
        ),
        (b"news", [""], "the topic is bytes, expected str"),
        (7, [""], "the topic is int, expected str"),
        ("news", ["", 7], "the data is int, expected str or bytes"),
        ("news", [None], "the data is NoneType, expected str or bytes"),
        ("news", [["x"]], "the data is list, expected str or bytes"),
        ("news", [], "no data to publish: expected at least one message"),
    ],
)
def test_messages_that_no_node_would_accept(topic: Any, data: list[Any], problem: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        encode_messages(topic, data, LIMITS)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({f"{number}": "" for number in range(17)}, "the message has 17 headers, at most 16"),
        ({"": "x"}, "the name of a header has 0 characters, expected 1 to 64"),
        ({"n" * 65: "x"}, "the name of a header has 65 characters, expected 1 to 64"),
        ({"name": "x" * 1025}, "the header name has 1025 characters, at most 1024"),
        ({"name": 7}, "a header is not text: expected str for its name and its value"),
        ({"name": b"x"}, "a header is not text: expected str for its name and its value"),
        ({7: "x"}, "a header is not text: expected str for its name and its value"),
        ({"name": "\ud800"}, "a header holds a lone surrogate, which UTF-8 lacks"),
        ({"\udfff": "x"}, "a header holds a lone surrogate, which UTF-8 lacks"),
        (
            {"name": "x" * 90},
            "the message has 102 bytes with its topic and headers, and max_message_bytes is 100",
        ),
    ],
)
def test_headers_that_no_node_would_accept(headers: dict[Any, Any], problem: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        encode_messages("news", ["data"], LIMITS, headers)
    assert str(caught.value) == problem


def test_the_longest_message_topic_and_headers() -> None:
    assert encode_topic("12345678", LIMITS) == 8
    (message,) = encode_messages("news", ["x" * 91], LIMITS, {"n": "vvvv"}).messages
    assert message.size == 100 + MESSAGE_BYTES + HEADER_BYTES
    most = {f"{number:064}": "\U0001f642" * 1024 for number in range(16)}
    (message,) = encode_messages("news", [b""], Limits(), most).messages
    size = 4 + MESSAGE_BYTES + 16 * (64 + 4096 + HEADER_BYTES)
    assert message == EncodedMessage(b"", False, most, size)


def test_data_and_headers_are_copied() -> None:
    data: Any = bytearray(b"before")
    headers = {"name": "before"}
    (message,) = encode_messages("news", [data], LIMITS, headers).messages
    data[:] = b"after!"
    headers["name"] = "after"
    size = len("news") + len("before") + len("name") + len("before") + MESSAGE_BYTES + HEADER_BYTES
    assert message == EncodedMessage(b"before", False, {"name": "before"}, size)


@pytest.mark.parametrize("data", [bytearray(b"abcd"), memoryview(b"abcd"), array.array("B", b"abcd")])
def test_anything_with_bytes_is_bytes(data: Any) -> None:
    (message,) = encode_messages("news", [data], LIMITS).messages
    assert message == EncodedMessage(b"abcd", False, None, 8 + MESSAGE_BYTES)
