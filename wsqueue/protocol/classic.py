"""The packets of the classic protocol: one JSON object in one WebSocket text message.

The source is "What the original nodes put on the wire" (docs/protocol.md).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, cast

import msgspec

from .close import CloseCode, PeerError
from .packed import Packed

MAX_ONCE = 2**31 - 2
"""The largest challenge that the original nodes draw; the smallest is 1, because they take 0 as absent."""

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
"""A surrogate in JSON, which is wrong without its other half; `\\u0000` is as long and never wrong."""

MAX_DETAIL_CHARACTERS = 100
"""Longest text of msgspec that an error quotes: it names a key or a tag in full, and the peer chose it."""


class Hello(
    msgspec.Struct, tag_field="t", tag="h", frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Carry a challenge or an answer, never both.

    Attributes:
        once: The challenge, 1 to `MAX_ONCE`.
        answer: Standard base64 of a SHA-256 digest, with padding.
    """

    once: Annotated[int, msgspec.Meta(ge=1, le=MAX_ONCE)] | None = msgspec.field(default=None, name="o")
    answer: str | None = msgspec.field(default=None, name="a")

    def __post_init__(self) -> None:
        """Refuse a hello that is not exactly one of the two.

        Raises:
            ValueError: Neither or both are set; msgspec turns it into a ValidationError.
        """
        if (self.once is None) == (self.answer is None):
            raise ValueError("a hello has either `o` (challenge) or `a` (answer)")


class Message(msgspec.Struct, tag_field="t", tag="m", frozen=True, gc=False, forbid_unknown_fields=True):
    """Carry data of a topic.

    Unknown fields are refused, because another peer's decoder may not skip them.
    """

    data: str = msgspec.field(name="d")
    topic: str = msgspec.field(name="s")


class _AnyMessage(msgspec.Struct, tag_field="t", tag="m", frozen=True, gc=False):
    """A message, whatever its fields are."""


class Subscribe(msgspec.Struct, tag_field="t", tag="s", frozen=True, forbid_unknown_fields=True):
    """Ask for a topic; defined by the original protocol and never used by it."""

    topic: str = msgspec.field(name="s")


class Unsubscribe(msgspec.Struct, tag_field="t", tag="u", frozen=True, forbid_unknown_fields=True):
    """Give a topic up; defined by the original protocol and never used by it."""

    topic: str = msgspec.field(name="s")


Packet = Hello | Message | Subscribe | Unsubscribe

_decoder = msgspec.json.Decoder(Packet)
# Two types, because a decoder of one type accepts a packet without its tag.
_message_decoder = msgspec.json.Decoder(Message | Hello)
_any_message_decoder = msgspec.json.Decoder(_AnyMessage | Hello)
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All exceptions that the decoder raises."""
_encoder = msgspec.json.Encoder()
encode_string: Callable[[str], bytes] = _encoder.encode
"""Encode the data or the topic of a message as JSON in UTF-8, for `join_message`.

A lone surrogate, which UTF-8 cannot express, raises a UnicodeEncodeError.
"""


def decode(payload: bytes) -> Packet:
    """Decode the payload of one text message.

    Raises:
        PeerError: The payload is not a packet; with `CloseCode.INVALID_PACKET` and the reason, or
            `CloseCode.INVALID_TEXT`. The text never quotes the payload, except for a short tag.
    """
    try:
        packet: Packet = _decoder.decode(payload)
    except DECODE_ERRORS as error:
        # A payload that decodes is UTF-8: the decoder checks strings, and JSON's other tokens are ASCII.
        if not is_utf8(payload):
            raise PeerError(CloseCode.INVALID_TEXT) from None
        raise PeerError(CloseCode.INVALID_PACKET, str(error)[:MAX_DETAIL_CHARACTERS]) from None
    return packet


def decode_messages(payloads: Sequence[bytes]) -> tuple[list[Message], list[str]] | None:
    """Decode the payloads of many text messages, or return None if any is not a message.

    `decode` then tells which one, and why.

    Returns:
        The messages, and the topic of each.
    """
    try:
        messages = cast("list[Message]", list(map(_message_decoder.decode, payloads)))
        return messages, [message.topic for message in messages]
    except (*DECODE_ERRORS, AttributeError):  # a hello has no topic
        return None


def is_any_message(payload: bytes) -> bool:
    """Return True if a payload is a message whose only fault is in its fields, as a lone surrogate is."""
    try:
        packet = _any_message_decoder.decode(SURROGATE.sub(rb"\\u0000", payload))
    except DECODE_ERRORS:
        return False
    return isinstance(packet, _AnyMessage)


def topic_too_long(topic: str, max_bytes: int) -> bool:
    """Return True if a topic has more than `max_bytes` in UTF-8."""
    # A code point takes at most 4 bytes, so the exact length is rarely needed.
    return 4 * len(topic) > max_bytes and len(topic.encode()) > max_bytes


def is_utf8(payload: bytes) -> bool:
    """Return True if a payload is valid UTF-8, as a text message must be."""
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def encode(packet: Packet) -> bytes:
    """Encode a packet as compact JSON in UTF-8.

    Raises:
        UnicodeEncodeError: A string holds a lone surrogate, which UTF-8 cannot express.
    """
    return _encoder.encode(packet)


_HEAD, _TAIL = b'{"t":"m","d":', b',"s":%b}'


def join_message(data: bytes, topic: bytes) -> bytes:
    """Return the message that has these JSON strings, as `encode` writes it."""
    return _HEAD + data + _TAIL % topic


MESSAGE_OVERHEAD_BYTES = len(join_message(b"", b""))
"""Bytes of a message besides its two JSON strings."""


def message_overhead(topic: str) -> int:
    """Return the bytes of each message of a topic besides its data."""
    return MESSAGE_OVERHEAD_BYTES + len(encode_string(topic))


MAX_BYTES_PER_CHARACTER = 6
"""Most bytes that a character takes in a JSON string: a control character becomes `\\u0001`."""


class MessageSlices:
    """Build the messages of a batch a slice at a time: they can be far longer than the batch that has them.

    A topic is repeated in each message, and a batch of 1 MiB can have a million messages. A message that is
    no text, or is too long in the classic form, is skipped.

    Args:
        topic: Topic of all messages.
        messages: The messages.
        max_message_bytes: Length of the longest message.

    Attributes:
        count: Number of messages in the batch.
        built: Number of messages that were built or skipped so far.
        skipped: Number of those that were skipped.
    """

    __slots__ = ("_begin", "_messages", "_overhead", "_room", "_tail", "built", "count", "skipped")

    def __init__(self, topic: str, messages: Packed, max_message_bytes: int) -> None:
        self.count, self.built, self.skipped = messages.count, 0, 0
        self._messages, self._begin = messages, 0
        self._tail = _TAIL % encode_string(topic)
        self._overhead = len(_HEAD) + len(self._tail)
        # Bytes that the data of a message may have as JSON.
        self._room = max_message_bytes - self._overhead

    @property
    def done(self) -> bool:
        """Return True if all messages have been built or skipped."""
        return self.built >= self.count

    @property
    def rest(self) -> Packed:
        """Return the messages that have not been built."""
        return self._messages.part(self.built, self.count, self._begin)

    def skips_none(self) -> bool:
        """Return True if all messages are texts, and none is too long."""
        messages = self._messages
        if not messages.is_utf8:
            return False
        ends = itertools.accumulate(messages.sizes)
        long = [
            (end - size, end)
            for size, end in zip(messages.sizes, ends, strict=True)
            if self._may_exceed(size)
        ]
        return all(
            len(encode_string(str(messages.data[begin:end], "utf-8"))) <= self._room for begin, end in long
        )

    def next_slice(self, max_bytes: int) -> list[bytes]:
        """Return the next messages: no more than `max_bytes`, unless the first has more."""
        part = self._messages.part(self.built, max(1, max_bytes // self._overhead), self._begin)
        may_exceed = self._may_exceed(max(part.sizes, default=0))
        if not may_exceed and (whole := _without_escapes(part)):
            return self._next_slices(part, whole, max_bytes)
        data = [None if text is None else encode_string(text) for text in part.texts()]
        if may_exceed:
            data = [one if one is not None and len(one) <= self._room else None for one in data]
        sizes = [self._overhead + len(one) if one is not None else 0 for one in data]
        if sum(sizes) > max_bytes:
            data = data[: _fitting(sizes, max_bytes)]
        self.built += len(data)
        self._begin += sum(part.sizes[: len(data)])
        tail = self._tail
        built = [_HEAD + one + tail for one in data if one is not None]
        self.skipped += len(data) - len(built)
        return built

    def _next_slices(self, part: Packed, whole: bytes, max_bytes: int) -> list[bytes]:
        """Return the next messages as slices of one JSON string that has them all."""
        sizes, each = part.sizes, self._overhead + 2  # with the quotes
        if len(whole) + each * len(sizes) > max_bytes:
            sizes = sizes[: _fitting((size + each for size in sizes), max_bytes)]
        begins = itertools.accumulate(sizes, initial=1)
        self.built += len(sizes)
        self._begin += sum(sizes)
        head, tail = _HEAD + b'"', b'"' + self._tail
        return [head + whole[begin : begin + size] + tail for begin, size in zip(begins, sizes, strict=False)]

    def _may_exceed(self, size: int) -> bool:
        """Return True if a message of a size, in UTF-8, may be too long as JSON."""
        return size * MAX_BYTES_PER_CHARACTER + 2 > self._room


def _fitting(sizes: Iterable[int], max_bytes: int) -> int:
    """Return the number of the first sizes that add up to no more than `max_bytes`, and at least 1."""
    return max(1, sum(1 for _ in itertools.takewhile(max_bytes.__ge__, itertools.accumulate(sizes))))


def _without_escapes(messages: Packed) -> bytes | None:
    """Return all messages as one JSON string if they are ASCII and it is as they are; else None."""
    try:
        whole = encode_string(str(messages.data, "ascii"))
    except UnicodeDecodeError:
        return None
    return whole if len(whole) == messages.data.nbytes + 2 else None
