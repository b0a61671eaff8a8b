"""The messages of a batch as they travel: one block of bytes, and the size of each message in it.

So a node checks a batch without an object for each message, passes its bytes on, and never looks into them
(docs/protocol.md, section "Batches").
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec

MAX_HEADERS = 16
"""Headers of a message: content type, ids, trace context, and a few of the application."""

MAX_HEADER_NAME_CHARACTERS = 64
"""Length of a header's name, which has one character at least."""

MAX_HEADER_VALUE_CHARACTERS = 1024
"""Length of a header's value: a trace context with its state has 600."""

MAX_HEADED_MESSAGES = 65_536
"""Messages of a batch with headers, because each of them makes an object: 10 ms of any. Ours have 8,192."""

SIZE_BYTES = 5
"""Most bytes that the size of a message takes in a packet."""

CONTINUATION = re.compile(rb"[\x80-\xbf]")
"""A byte of UTF-8 inside a character."""

HeaderName = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_HEADER_NAME_CHARACTERS)]
HeaderValue = Annotated[str, msgspec.Meta(max_length=MAX_HEADER_VALUE_CHARACTERS)]
Headers = Annotated[dict[HeaderName, HeaderValue], msgspec.Meta(max_length=MAX_HEADERS)]
HeadersOfAll = Annotated[list[Headers | None], msgspec.Meta(max_length=MAX_HEADED_MESSAGES)]
Size = Annotated[int, msgspec.Meta(ge=0)]


class Packed(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Hold messages of one kind, all texts or all bytes.

    Attributes:
        sizes: Bytes of each message, in their order.
        data: The messages, one behind the other; texts in UTF-8.
        text: True for texts, False for bytes.
        headers: The headers of each message, None for a message without; None if no message has any.
    """

    sizes: list[Size]
    data: memoryview
    text: bool = True
    headers: HeadersOfAll | None = None

    @property
    def count(self) -> int:
        """Return the number of messages."""
        return len(self.sizes)

    @property
    def whole(self) -> bool:
        """Return True if there are messages, and everything that belongs to them."""
        sizes, headers = self.sizes, self.headers
        fits = bool(sizes) and sum(sizes) == self.data.nbytes
        return fits and (headers is None or len(headers) == len(sizes))

    def behind(self, index: int) -> Packed:
        """Return the messages from an index on."""
        return self.part(index, self.count, sum(self.sizes[:index]))

    def part(self, index: int, count: int, begin: int) -> Packed:
        """Return at most `count` messages from an index on, which begin at the byte `begin`."""
        sizes = self.sizes[index : index + count]
        headers = None if self.headers is None else self.headers[index : index + count]
        return Packed(sizes, self.data[begin : begin + sum(sizes)], self.text, headers)

    @property
    def is_utf8(self) -> bool:
        """Return True if each message is UTF-8."""
        data = bytes(self.data)
        if data.isascii():
            return True
        # No message may begin inside a character; one that is empty begins where the next one does.
        begins = itertools.accumulate(self.sizes, initial=0)
        firsts = bytes(map((data + b"x").__getitem__, begins))
        return CONTINUATION.search(firsts) is None and _text_if_possible(data) is not data

    def unpack(self) -> list[str | bytes]:
        """Return the messages; a text that is not UTF-8 comes as bytes."""
        if not self.text:
            return list(self._parts())
        slices = self._ascii_slices()
        return list(map(_text_if_possible, self._parts())) if slices is None else slices

    def texts(self) -> list[str | None]:
        """Return the messages as texts, None for one that is not UTF-8."""
        slices = self._ascii_slices()
        if slices is not None:
            return slices
        messages = map(_text_if_possible, self._parts())
        return [message if isinstance(message, str) else None for message in messages]

    def _ascii_slices(self) -> list[Any] | None:
        """Return the messages as texts if all are ASCII, so that bytes are characters; else None."""
        try:
            whole = str(self.data, "ascii")
        except UnicodeDecodeError:
            return None
        ends = itertools.accumulate(self.sizes)
        return [whole[end - size : end] for size, end in zip(self.sizes, ends, strict=True)]

    def _parts(self) -> Iterator[bytes]:
        data = self.data
        ends = itertools.accumulate(self.sizes)
        return (bytes(data[end - size : end]) for size, end in zip(self.sizes, ends, strict=True))


NOTHING = Packed([], memoryview(b""))
"""No messages, in the place of those that were broken, or that are in the log."""


def pack(messages: Sequence[bytes], *, text: bool, headers: list[Headers | None] | None = None) -> Packed:
    """Return messages as they travel; texts must be UTF-8 already."""
    return Packed(list(map(len, messages)), memoryview(b"".join(messages)), text, headers)


def pack_texts(texts: Sequence[str]) -> Packed:
    """Return texts as they travel.

    Raises:
        UnicodeEncodeError: A text holds a lone surrogate, which UTF-8 cannot express.
    """
    whole = "".join(texts)
    if whole.isascii():
        return Packed(list(map(len, texts)), memoryview(whole.encode()))
    return pack([text.encode() for text in texts], text=True)


def _text_if_possible(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
