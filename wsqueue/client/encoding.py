"""Check the messages of the application, and encode each of them once.

The size of a message is that of its classic form, `{"t":"m","d":DATA,"s":TOPIC}`. It is computed from the two
strings as JSON, and these strings are kept: both a batch of v2 and a classic message are made from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..config.model import Limits
from ..errors import InvalidMessage
from ..protocol import classic
from ..protocol.classic import encode_string


class EncodedMessages(msgspec.Struct, frozen=True, gc=False):
    """Hold messages of one topic that every node accepts.

    Attributes:
        topic: The topic as text.
        topic_json: The topic as JSON.
        data: The messages as JSON strings.
        overhead: Bytes of a message's classic form besides its data.
    """

    topic: str
    topic_json: bytes
    data: list[bytes]
    overhead: int


def encode_messages(topic: str, data: Sequence[str], limits: Limits) -> EncodedMessages:
    """Encode messages of one topic.

    Raises:
        InvalidMessage: There is no message, the topic or a message is too long, or one is not text.
    """
    topic_json = encode_topic(topic, limits)
    if not data:
        raise InvalidMessage("no data to publish: expected at least one message")
    overhead = classic.MESSAGE_OVERHEAD_BYTES + len(topic_json)
    max_bytes = limits.max_message_bytes - overhead
    encoded: list[bytes] = []
    try:
        for text in data:
            if not isinstance(text, str):
                raise _no_text("data", text)
            string = encode_string(text)
            if len(string) > max_bytes:
                size, limit = len(string) + overhead, limits.max_message_bytes
                raise InvalidMessage(f"the message has {size} bytes as JSON, at most {limit}")
            encoded.append(string)
    except UnicodeEncodeError:
        raise InvalidMessage("the data holds a lone surrogate, which UTF-8 lacks") from None
    return EncodedMessages(topic, topic_json, encoded, overhead)


def encode_topic(topic: str, limits: Limits) -> bytes:
    """Return a topic as JSON.

    Raises:
        InvalidMessage: It is too long, or is not text.
    """
    if not isinstance(topic, str):
        raise _no_text("topic", topic)
    try:
        encoded = encode_string(topic)
    except UnicodeEncodeError:
        raise InvalidMessage("the topic holds a lone surrogate, which UTF-8 lacks") from None
    # As JSON it has two quotes more, at least.
    if len(encoded) - 2 > limits.max_topic_bytes and (size := len(topic.encode())) > limits.max_topic_bytes:
        raise InvalidMessage(f"the topic has {size} bytes, at most {limits.max_topic_bytes}")
    return encoded


def _no_text(name: str, value: object) -> InvalidMessage:
    # JSON has a form for bytes and numbers too: it would pass for another text, or end the connection.
    return InvalidMessage(f"the {name} is {type(value).__name__}, expected str")
