"""WebSocket frames, right or wrong, and ways to cut a stream of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from websockets.utils import apply_mask

TEXT, TEXT_FIRST, CONT, CONT_LAST = 0x81, 0x01, 0x00, 0x80
BINARY, BINARY_FIRST, CLOSE, PING, PONG = 0x82, 0x02, 0x88, 0x89, 0x8A


SWAPPED = TEXT ^ BINARY
"""The bits in which the opcodes of texts and of binary messages differ."""


class Raw(NamedTuple):
    """A frame, right or wrong.

    Attributes:
        payload: Before it is masked.
        first: The first byte: FIN bit, reserved bits and opcode. Where messages are binary, the opcodes of
            texts and of binary messages swap their roles.
        form: In how many bytes the length follows the second byte: 0, 2 or 8, or None for the fewest.
        wrong: Mask it when it must not be masked, and the other way round.
        key: To mask with.
        declared: The length that the header gives instead of the true one.
    """

    payload: bytes = b""
    first: int = TEXT
    form: int | None = None
    wrong: bool = False
    key: bytes = b"\x9a\x01\xf3\x55"
    declared: int | None = None

    def render(self, *, masked: bool, binary: bool = False) -> bytes:
        masked ^= self.wrong
        swaps = binary and self.first & 0x0F in (TEXT_FIRST, BINARY_FIRST)
        length = len(self.payload) if self.declared is None else self.declared
        form = self.form
        if form is None or (form == 0 and length > 125) or (form == 2 and length > 65_535):
            form = 0 if length < 126 else 2 if length < 65_536 else 8
        code = {0: length, 2: 126, 8: 127}[form]
        header = bytes([self.first ^ SWAPPED * swaps, 0x80 * masked | code]) + length.to_bytes(8)[8 - form :]
        return header + (self.key + apply_mask(self.payload, self.key) if masked else self.payload)


class Run(NamedTuple):
    """Plain frames of one size that all differ."""

    times: int
    size: int
    form: int | None = None

    def frames(self) -> Iterator[Raw]:
        for index in range(self.times):
            number = index.to_bytes(2)
            payload = (number[::-1] * (self.size // 2 + 1))[: self.size]
            yield Raw(payload, form=self.form, key=bytes([index % 251, 7, index // 251, 0x81]))


Chunk = Raw | Run | bytes


def render(chunks: Sequence[Chunk], *, masked: bool, binary: bool = False) -> list[bytes]:
    """Return the frames of a stream one by one; `binary` says of which type its messages are."""
    frames: list[bytes] = []
    for chunk in chunks:
        if isinstance(chunk, Run):
            frames += [frame.render(masked=masked, binary=binary) for frame in chunk.frames()]
        else:
            frame = chunk if isinstance(chunk, bytes) else chunk.render(masked=masked, binary=binary)
            frames.append(frame)
    return frames


class Every(NamedTuple):
    """Cut a stream in pieces of some bytes."""

    size: int


class Inside(NamedTuple):
    """Cut every frame some bytes behind its beginning."""

    offset: int


class At(NamedTuple):
    """Cut a stream at these places, or modulo its length."""

    places: list[int]


Cut = Every | Inside | At
WHOLE, BYTEWISE = At([]), Every(1)


def cut(frames: Sequence[bytes], how: Cut) -> list[bytes]:
    data = b"".join(frames)
    if isinstance(how, Every):
        edges = set(range(0, len(data), how.size))
    elif isinstance(how, Inside):
        edges = {start + how.offset for start in itertools.accumulate(map(len, frames), initial=0)}
    else:
        edges = {place % (len(data) + 1) for place in how.places}
    places = sorted({0, len(data)} | {edge for edge in edges if edge < len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]
