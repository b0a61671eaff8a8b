"""The frame codec: messages and pongs to frames, plain frames to messages and pings (RFC 6455 section 5)."""

from __future__ import annotations

import functools
import itertools
import operator
import secrets
import struct
from collections.abc import Iterable, Sequence

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - a platform without the compiled extension
    from websockets.utils import apply_mask

TEXT_AND_FIN, BINARY_AND_FIN = 0x81, 0x82
"""The first bytes of an unfragmented text message and of a binary one."""

PING_AND_FIN, PONG_AND_FIN = 0x89, 0x8A
"""The first bytes of a ping and of a pong."""

MAX_CONTROL_BYTES = 125
"""Longest payload of a control frame (RFC 6455 section 5.5)."""

MAX_HEADER_BYTES = 14
"""Most bytes of a header: two, eight of a long length, four of a masking key (RFC 6455 section 5.2)."""

MIN_RUN = 8
"""Fewest frames of one size that are cut in one go: fewer are cut faster one by one."""

MAX_RUN = 256
"""Most frames that are cut in one go: many make the fixed cost small, few waste little if they differ."""

DRAWN_KEYS = 1024
"""Masking keys drawn at a time, because a call of the system takes as long as masking five frames."""

CHEAP_COPY_BYTES = 1024
"""Payload size up to which one more copy costs less than the code that would avoid it."""

CACHED_SIZES = 1024
"""Message sizes whose header or pattern is cached: each takes 200 bytes, and 0.3 µs to make."""


_unpack_16 = struct.Struct("!H").unpack_from


_unpack_64 = struct.Struct("!Q").unpack_from

_drawn_keys: list[bytes] = []


def frame_messages(payloads: Sequence[bytes], *, masked: bool, binary: bool) -> bytes:
    """Return unfragmented frames for all payloads, joined for one write (RFC 6455 section 5.2).

    Args:
        payloads: Of binary messages, or texts in UTF-8.
        masked: True for frames of an initiator; each gets a key of its own.
        binary: True for binary messages, False for texts.
    """
    if not payloads:
        return b""
    header = _HEADERS[binary][masked]
    if len(payloads) == 1 and len(payloads[0]) <= CHEAP_COPY_BYTES:
        (payload,) = payloads
        if not masked:
            return header(len(payload)) + payload
        (key,) = _masking_keys(1)
        return header(len(payload)) + key + apply_mask(payload, key)
    lengths = list(map(len, payloads))
    keys: list[bytes] = []
    bodies: Iterable[bytes] = payloads
    if masked:
        keys = _masking_keys(len(payloads))
        bodies = map(apply_mask, payloads, keys)
    if max(lengths) > CHEAP_COPY_BYTES:
        heads = map(header, lengths)
        parts = [b""] * (2 * len(payloads))
        parts[::2] = map(operator.add, heads, keys) if masked else heads
        parts[1::2] = bodies
        return b"".join(parts)
    if masked:
        bodies = map(operator.add, keys, bodies)
    if lengths.count(lengths[0]) == len(lengths):
        return header(lengths[0]) + header(lengths[0]).join(bodies)
    return b"".join(map(operator.add, map(header, lengths), bodies))


def frame_pong(payload: bytes, *, masked: bool) -> bytes:
    """Return the pong frame that answers a ping with this payload."""
    if not masked:
        return struct.pack("!BB", PONG_AND_FIN, len(payload)) + payload
    (key,) = _masking_keys(1)
    return struct.pack("!BB", PONG_AND_FIN, 0x80 | len(payload)) + key + apply_mask(payload, key)


def _masking_keys(count: int) -> list[bytes]:
    """Return fresh random keys (RFC 6455 section 5.3), from a stock."""
    if count > len(_drawn_keys):
        random = secrets.token_bytes(4 * max(count, DRAWN_KEYS))
        _drawn_keys.extend(key for (key,) in struct.iter_unpack("4s", random))
    keys = _drawn_keys[-count:]
    del _drawn_keys[-count:]
    return keys


def message_header(first: int, mask_bit: int, length: int) -> bytes:
    """Return the header of an unfragmented frame, without a masking key.

    Args:
        first: The first byte.
        mask_bit: 0x80 if a masking key follows, else 0.
        length: Bytes of the payload.
    """
    if length < 126:
        return struct.pack("!BB", first, mask_bit | length)
    if length < 65_536:
        return struct.pack("!BBH", first, mask_bit | 126, length)
    return struct.pack("!BBQ", first, mask_bit | 127, length)


_HEADERS = [
    [
        functools.lru_cache(CACHED_SIZES)(functools.partial(message_header, first, mask_bit))
        for mask_bit in (0, 0x80)
    ]
    for first in (TEXT_AND_FIN, BINARY_AND_FIN)
]
"""The headers of frames by their length: of texts and of binary messages, each without a mask and with it."""


def cut_messages(  # noqa: C901, PLR0911, PLR0912 - one function, because a call takes as long as half a turn of the loop
    data: bytes, position: int, *, first: int, masked: bool, max_message_bytes: int, max_frames: int
) -> tuple[list[bytes], int, int]:
    """Cut plain frames off: of one type, whole, unfragmented and within the limit (RFC 6455 section 5.2).

    This is the hot loop of a node. Messages of one size tend to follow each other: after two of a size,
    the headers of the next frames are compared column by column, and all frames with the same header are cut
    in one go, which takes a third of the time.

    Args:
        data: Bytes that were read.
        position: Index at which a frame begins.
        first: The first byte of plain frames: `TEXT_AND_FIN` or `BINARY_AND_FIN`.
        masked: True for frames that an acceptor reads.
        max_message_bytes: Length of the longest payload.
        max_frames: Number of frames after which it ends.

    Returns:
        The payloads; the index of the first frame that was not cut; and the number of bytes from there on
        that it needs to be cut, or 0 if it is no plain frame or there were `max_frames`.
    """
    payloads: list[bytes] = []
    end = len(data)
    mask_bit, key_bytes = (0x80, 4) if masked else (0, 0)
    previous = None
    frames = iter(range(max_frames))
    for _ in frames:
        if end - position < 2:
            return payloads, position, 2
        if data[position] != first:
            return payloads, position, 0
        start = position + 2
        length = data[position + 1] ^ mask_bit
        if length > 125:
            if length > 127:  # wrongly masked
                return payloads, position, 0
            unpack, start = (_unpack_16, start + 2) if length == 126 else (_unpack_64, start + 8)
            if end < start:
                return payloads, position, start - position
            (length,) = unpack(data, position + 2)
        if length > max_message_bytes:
            return payloads, position, 0
        header_bytes = start - position
        start += key_bytes
        after = start + length
        if end < after:
            return payloads, position, after - position
        if length == previous and (count := (end - position) // (size := after - position)) >= MIN_RUN:
            count = min(count, MAX_RUN, max_frames - len(payloads))
            for offset in range(header_bytes):
                column = data[position + offset : position + count * size : size]
                count -= len(column.lstrip(column[:1]))
            after = position + count * size
            pattern = _frame_pattern(header_bytes, key_bytes, length)
            run = pattern.iter_unpack(memoryview(data)[position:after])
            if masked:
                payloads += [apply_mask(payload, key) for key, payload in run]
            else:
                payloads += [payload for _, payload in run]
            # All frames of the run count.
            next(itertools.islice(frames, count - 1, count - 1), None)
        else:
            payload = data[start:after]
            payloads.append(apply_mask(payload, data[start - 4 : start]) if masked else payload)
        position, previous = after, length
    return payloads, position, 0


def cut_controls(
    data: bytes, position: int, *, masked: bool, max_message_bytes: int, max_frames: int
) -> tuple[list[bytes], int]:
    """Cut off the pings, or the pongs, that follow each other, up to one that breaks a rule or is not whole.

    Args:
        data: Bytes that were read.
        position: Index at which a frame begins.
        masked: True for frames that an acceptor reads.
        max_message_bytes: Length of the longest payload, unless that of control frames is shorter.
        max_frames: Number of frames after which it ends.

    Returns:
        The payloads, and the index of the first frame that was not cut.
    """
    payloads: list[bytes] = []
    end = len(data)
    first = data[position]
    mask_bit, header_bytes = (0x80, 6) if masked else (0, 2)
    longest = min(MAX_CONTROL_BYTES, max_message_bytes)
    if first not in (PING_AND_FIN, PONG_AND_FIN):
        return payloads, position
    while end - position >= header_bytes and data[position] == first and len(payloads) < max_frames:
        length = data[position + 1] ^ mask_bit
        start = position + header_bytes
        after = start + length
        if length > longest or end < after:
            break
        payload = data[start:after]
        payloads.append(apply_mask(payload, data[start - 4 : start]) if masked and length else payload)
        position = after
    return payloads, position


@functools.lru_cache(CACHED_SIZES)
def _frame_pattern(header_bytes: int, key_bytes: int, length: int) -> struct.Struct:
    return struct.Struct(f"{header_bytes}x{key_bytes}s{length}s")


def frame_size(head: bytes) -> int | None:
    """Return the size of the frame that begins with `head`, None while that is not known."""
    if len(head) < 2:
        return None
    length, extended = head[1] & 0x7F, 0
    if length > 125:
        extended = 2 if length == 126 else 8
        if len(head) < 2 + extended:
            return None
        length = int.from_bytes(head[2 : 2 + extended])
    key_bytes = 4 if head[1] & 0x80 else 0
    return 2 + extended + key_bytes + length
