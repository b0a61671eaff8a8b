"""Check the messages of the application, and encode each of them once.

The size of a message is that of its data, its headers and its topic, in UTF-8. That bounds it on the way to a
producer of v2. A producer that only speaks classic takes texts without headers, each in a form of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ..config.model import Limits
from ..errors import InvalidMessage
from ..protocol.packed import (
    MAX_HEADER_NAME_CHARACTERS,
    MAX_HEADER_VALUE_CHARACTERS,
    MAX_HEADERS,
    Headers,
)

MESSAGE_BYTES, HEADER_BYTES = 8, 6
"""Most bytes that a message and a header take in a packet besides their own, for their lengths."""


class EncodedMessage(msgspec.Struct, frozen=True, gc=False):
    """Hold a message that every node accepts.

    Attributes:
        data: The message; a text in UTF-8.
        text: True for a text, False for bytes.
        headers: Its headers, None without any.
        size: Most bytes that it takes in a packet, those of the topic included.
    """

    data: bytes
    text: bool
    headers: Headers | None
    size: int


class EncodedMessages(msgspec.Struct, frozen=True, gc=False):
    """Hold messages of one topic that every node accepts."""

    topic: str
    messages: list[EncodedMessage]


def encode_messages(
    topic: str, data: Sequence[str | bytes], limits: Limits, headers: Mapping[str, str] | None = None
) -> EncodedMessages:
    """Encode messages of one topic.

    Args:
        topic: The topic.
        data: The messages.
        limits: Limits of the nodes.
        headers: Headers that each of them has.

    Raises:
        InvalidMessage: There is no message, the topic, a message or a header is too long, or one is neither
            text nor bytes.
    """
    topic_bytes = encode_topic(topic, limits)
    if not data:
        raise InvalidMessage("no data to publish: expected at least one message")
    copied = _checked(headers) if headers else None
    overhead = topic_bytes + (_bytes_of(copied) if copied else 0)
    in_packet = MESSAGE_BYTES + HEADER_BYTES * (len(copied) if copied else 0)
    messages: list[EncodedMessage] = []
    for one in data:
        text = isinstance(one, str)
        try:
            encoded = one.encode() if isinstance(one, str) else bytes(memoryview(one))
        except UnicodeEncodeError:
            raise InvalidMessage("the data holds a lone surrogate, which UTF-8 lacks") from None
        except TypeError:
            raise InvalidMessage(f"the data is {type(one).__name__}, expected str or bytes") from None
        size = len(encoded) + overhead
        if size > limits.max_message_bytes:
            raise InvalidMessage(
                f"the message has {size} bytes with its topic and headers, and max_message_bytes is"
                f" {limits.max_message_bytes}"
            )
        messages.append(EncodedMessage(encoded, text, copied, size + in_packet))
    return EncodedMessages(topic, messages)


def encode_topic(topic: str, limits: Limits) -> int:
    """Check a topic, and return its length in bytes.

    Raises:
        InvalidMessage: It is too long, or is not text.
    """
    if not isinstance(topic, str):
        raise InvalidMessage(f"the topic is {type(topic).__name__}, expected str")
    try:
        size = len(topic.encode())
    except UnicodeEncodeError:
        raise InvalidMessage("the topic holds a lone surrogate, which UTF-8 lacks") from None
    if size > limits.max_topic_bytes:
        raise InvalidMessage(f"the topic has {size} bytes, and max_topic_bytes is {limits.max_topic_bytes}")
    return size


def _checked(headers: Mapping[str, str]) -> Headers:
    """Return a copy of headers that the nodes accept."""
    if not isinstance(headers, Mapping):
        raise InvalidMessage(f"the headers are {type(headers).__name__}, expected a mapping")
    if len(headers) > MAX_HEADERS:
        raise InvalidMessage(f"the message has {len(headers)} headers, at most {MAX_HEADERS}")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidMessage("a header is not text: expected str for its name and its value")
        if not 1 <= len(name) <= MAX_HEADER_NAME_CHARACTERS:
            raise InvalidMessage(
                f"the name of a header has {len(name)} characters, expected 1 to {MAX_HEADER_NAME_CHARACTERS}"
            )
        if len(value) > MAX_HEADER_VALUE_CHARACTERS:
            raise InvalidMessage(
                f"the header {name} has {len(value)} characters, at most {MAX_HEADER_VALUE_CHARACTERS}"
            )
    return dict(headers)


def _bytes_of(headers: Headers) -> int:
    try:
        return sum(len(text.encode()) for pair in headers.items() for text in pair)
    except UnicodeEncodeError:
        raise InvalidMessage("a header holds a lone surrogate, which UTF-8 lacks") from None
