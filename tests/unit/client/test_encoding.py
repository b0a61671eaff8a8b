"""Messages of the application, checked and encoded."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.session_pair import many
from tests.support.strategies import utf8_text
from wsqueue import InvalidMessage
from wsqueue.client.encoding import encode_messages, encode_topic
from wsqueue.config.model import Limits
from wsqueue.protocol import classic

LIMITS = Limits(max_message_bytes=100, max_topic_bytes=8)


@many
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=2), st.lists(utf8_text, min_size=1))
def test_the_size_and_the_form_are_those_of_classic_messages(topic: str, data: list[str]) -> None:
    encoded = encode_messages(topic, data, Limits())
    payloads = [classic.encode(classic.Message(text, topic)) for text in data]
    assert [classic.join_message(string, encoded.topic_json) for string in encoded.data] == payloads
    assert [len(string) + encoded.overhead for string in encoded.data] == list(map(len, payloads))
    assert list(map(msgspec.json.decode, encoded.data)) == data


@pytest.mark.parametrize(
    ("topic", "data", "problem"),
    [
        ("123456789", [""], "the topic has 9 bytes, at most 8"),
        ("ññññx", [""], "the topic has 9 bytes, at most 8"),
        ("\ud800", [""], "the topic holds a lone surrogate, which UTF-8 lacks"),
        ("news", ["", "\udfff"], "the data holds a lone surrogate, which UTF-8 lacks"),
        ("news", ["", "x" * 100, "x" * 200], "the message has 127 bytes as JSON, at most 100"),
        ("news", ["\0" * 13], "the message has 105 bytes as JSON, at most 100"),
        (b"news", [""], "the topic is bytes, expected str"),
        (7, [""], "the topic is int, expected str"),
        ("news", ["", b"hello"], "the data is bytes, expected str"),
        ("news", [None], "the data is NoneType, expected str"),
        ("news", [], "no data to publish: expected at least one message"),
    ],
)
def test_messages_that_no_node_would_accept(topic: Any, data: list[Any], problem: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        encode_messages(topic, data, LIMITS)
    assert str(caught.value) == problem


def test_the_longest_message_and_topic() -> None:
    assert encode_topic("12345678", LIMITS) == b'"12345678"'
    (data,) = encode_messages("news", ["x" * 73], LIMITS).data
    assert len(classic.join_message(data, b'"news"')) == 100
