"""The codec of frames against the library, and the work that the fast lane does."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, SupportsIndex
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol

from wsqueue.protocol import framing as framing_module
from wsqueue.protocol.frames import BINARY_AND_FIN, MAX_RUN, TEXT_AND_FIN, cut_messages, frame_messages
from wsqueue.protocol.framing import TURN_FRAMES, Framing
from wsqueue.protocol.keys import Role

from ...support.oracle import Twins
from ...support.session_pair import few
from ...support.wire import CONT, CONT_LAST, PING, TEXT, TEXT_FIRST, Chunk, Raw, Run, render

masking = pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
types = pytest.mark.parametrize("binary", [False, True], ids=["texts", "binary"])
both_roles = pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
uncovered = pytest.mark.usefixtures("uncovered")
payloads = st.binary(max_size=8) | st.sampled_from([124, 125, 126, 127, 300]).map(bytes)


class TestFrameMessages:
    """Frames are written as the library writes them, to the byte."""

    @staticmethod
    def compare(payloads: list[bytes], *, masked: bool, binary: bool) -> None:
        ours = frame_messages(payloads, masked=masked, binary=binary)
        opcode = Opcode.BINARY if binary else Opcode.TEXT
        theirs = b""
        keys = set()
        for payload in payloads:
            place = len(theirs) + (2 if len(payload) < 126 else 4 if len(payload) < 65_536 else 10)
            keys.add(key := ours[place : place + 4])
            with mock.patch.object(secrets, "token_bytes", lambda size, key=key: key[:size]):
                theirs += Frame(opcode, payload).serialize(mask=masked)
        assert ours == theirs
        # Two of 600 keys are the same once in 24,000 times, three never.
        assert not masked or len(keys) >= len(payloads) - 1

    @types
    @masking
    def test_nothing(self, masked: bool, binary: bool) -> None:
        assert frame_messages([], masked=masked, binary=binary) == b""

    @types
    @masking
    @pytest.mark.parametrize(
        "sizes",
        [[0], [1], [125] * 3, [126] * 3, [126, 125], [65_535] * 2, [65_536, 0, 0], [70_000, 0, 127, 124]],
    )
    def test_sizes(self, masked: bool, binary: bool, sizes: list[int]) -> None:
        messages = [bytes([number]) * size for number, size in enumerate(sizes, 97)]
        self.compare(messages, masked=masked, binary=binary)

    @types
    @masking
    @few
    @given(
        payloads=st.lists(payloads, max_size=12) | st.lists(st.binary(min_size=3, max_size=3), max_size=600)
    )
    def test_any(self, masked: bool, binary: bool, payloads: list[bytes]) -> None:
        self.compare(payloads, masked=masked, binary=binary)

    def test_no_key_is_used_again_by_another_batch(self) -> None:
        keys: list[bytes] = []
        for count in [*range(60), 1000, 1100, 1, 1, 2000]:
            frames = frame_messages([bytes(8)] * count, masked=True, binary=count % 2 == 0)
            keys += [frames[place + 2 : place + 6] for place in range(0, len(frames), 14)]
        # Random keys may be the same, but hardly ever three times here.
        assert len(set(keys)) >= len(keys) - 2


class Counted(bytes):
    """Bytes that count accesses to them.

    Attributes:
        work: Bytes in all slices, and items.
    """

    work = 0

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        part = super().__getitem__(key)
        self.work += len(part) if isinstance(part, bytes) else 1
        return part


class Work:
    """Count the work of a framing, instead of its time.

    Attributes:
        calls: Of `cut_messages`.
        looked: Bytes from its positions on, in all calls that could not go on where the last one was.
        handed: Calls and bytes that the library got.
    """

    def __init__(self) -> None:
        self.calls = self.handed_calls = self.handed = 0
        self.looked = 0

    def feed(self, framing: Framing, pieces: Iterator[bytes]) -> int:
        """Feed a framing, and return how many messages came out."""
        receive = Protocol.receive_data
        count = 0

        def cut(data: bytes, position: int, **rules: Any) -> Any:
            payloads, after, needed = cut_messages(data, position, **rules)
            self.calls += 1
            self.looked += after - position + (len(data) - after if needed else 0)
            return payloads, after, needed

        def receive_data(protocol: Protocol, data: bytes) -> None:
            self.handed_calls += 1
            self.handed += len(data)
            receive(protocol, data)

        with (
            mock.patch.object(framing_module, "cut_messages", cut),
            mock.patch.object(Protocol, "receive_data", receive_data),
        ):
            for piece in pieces:
                data = piece
                while data or framing.behind:
                    count += sum(len(item) for item in framing.receive_data(data) if isinstance(item, list))
                    data = b""
        assert framing.closed is None
        return count


PATTERNS: dict[str, list[Chunk]] = {
    "AAB": [Run(2, 0), Raw(b"x")],
    "AAB in long headers": [Run(2, 0, form=8), Raw(b"x", form=8)],
    "AAB whose headers have one length": [Run(2, 2), Raw(b"", form=2)],
    "AAB whose payloads look like headers": [Raw(b"\x81\x02"), Raw(b"\x81\x02"), Raw(b"\x81\x02\x81")],
    "AAB whose payloads look like long headers": [
        *[Raw(b"\x81\x7f\0\0\0\0\0\0\0\x0a", form=8)] * 2,
        Raw(b"\x81\x7f\0\0\0\0\0\0\0\x0b" * 2, form=8),
    ],
    "AAB whose payloads look like headers of binary messages": [
        *[Raw(b"\x82\x02")] * 2,
        Raw(b"\x82\x02\x82"),
    ],
    "AAB whose payloads look like long headers of binary messages": [
        *[Raw(b"\x82\x7f\0\0\0\0\0\0\0\x0a", form=8)] * 2,
        Raw(b"\x82\x7f\0\0\0\0\0\0\0\x0b" * 2, form=8),
    ],
    "AB": [Raw(b""), Raw(b"x")],
    "one length in two forms": [Raw(b""), Raw(b"", form=2)],
    "one length in three forms": [Raw(b""), Raw(b"", form=2), Raw(b"", form=8)],
    "one length in two long forms": [Raw(b"", form=2), Raw(b"", form=8)],
    "A": [Raw(b"x")],
    "a run and one": [Run(MAX_RUN, 0), Raw(b"x")],
    "AA and a ping": [Run(2, 0), Raw(b"", PING)],
    "pings": [Raw(b"", PING)],
    "fragments": [Raw(b"", TEXT_FIRST), Raw(b"", CONT), Raw(b"x", CONT_LAST), Raw(b"")],
}


@masking
@pytest.mark.parametrize("first", [TEXT_AND_FIN, BINARY_AND_FIN], ids=["texts", "binary"])
class TestCutMessages:
    """Frames are cut off as long as they are of one type, and come out as they went in."""

    @staticmethod
    def cut(data: bytes, *, first: int, masked: bool) -> tuple[list[bytes], int, int]:
        return cut_messages(
            data, 0, first=first, masked=masked, max_message_bytes=1000, max_frames=TURN_FRAMES
        )

    @few
    @given(
        payloads=st.lists(payloads, max_size=12) | st.lists(st.binary(min_size=3, max_size=3), max_size=500)
    )
    def test_what_was_framed(self, masked: bool, first: int, payloads: list[bytes]) -> None:
        frames = frame_messages(payloads, masked=masked, binary=first == BINARY_AND_FIN)
        found, position, needed = self.cut(frames, first=first, masked=masked)
        assert (found, position) == (payloads, len(frames))
        assert needed == 2

    @pytest.mark.parametrize("count", [0, 1, 2, 9, 300])
    def test_up_to_the_other_type(self, masked: bool, first: int, count: int) -> None:
        ours, others = (
            frame_messages([b"abc"] * number, masked=masked, binary=(first == BINARY_AND_FIN) is same)
            for number, same in ((count, True), (20, False))
        )
        found, position, needed = self.cut(ours + others, first=first, masked=masked)
        assert (found, position, needed) == ([b"abc"] * count, len(ours), 0)


@both_roles
@uncovered
class TestComplexity:
    """The work for each byte of a peer is bounded."""

    @types
    @pytest.mark.parametrize("chunks", PATTERNS.values(), ids=PATTERNS)
    def test_patterns(self, role: Role, chunks: list[Chunk], binary: bool) -> None:
        frames = render(chunks, masked=role is Role.ACCEPTOR, binary=binary)
        works = []
        for count in (2000, 4000):
            stream = Counted(b"".join(frames) * count)
            work = Work()
            work.feed(Twins.opened(role, binary=binary).framing, iter([stream]))
            # A header has at most ten bytes without its key, and each of them is compared in a whole run.
            assert stream.work <= (10 * MAX_RUN + 50) * len(frames) * count
            assert work.handed <= len(stream)
            assert work.calls <= len(frames) * count + 1
            assert work.looked <= 2 * len(stream)
            works.append(stream.work + work.handed + work.looked)
        assert works[1] <= 2.1 * works[0]

    @pytest.mark.slow
    @pytest.mark.parametrize("size", [1, 2**17])
    @pytest.mark.parametrize("first", [TEXT, TEXT_FIRST], ids=["plain", "in fragments"])
    def test_dribbled(self, role: Role, size: int, first: int) -> None:
        masked = role is Role.ACCEPTOR
        messages = 2**17 // size // 16 or 1
        frames = (
            [Raw(b"x" * size, first)] if first == TEXT else [Raw(b"x" * size, first), Raw(b"", CONT_LAST)]
        )
        stream = b"".join(render(frames, masked=masked)) * messages
        work = Work()
        pieces = (stream[place : place + 1] for place in range(len(stream)))
        assert work.feed(Twins.opened(role, 2**17).framing, pieces) == messages
        # Two bytes, the rest of the header, and the whole.
        assert work.calls <= 5 * messages * len(frames)
        assert work.looked <= (size + 40) * messages * len(frames)
        assert work.handed <= len(stream) * (first != TEXT)

    def test_a_large_frame_in_pieces_is_put_together_once(self, role: Role) -> None:
        stream = b"".join(render([Raw(b"x" * 2**22)], masked=role is Role.ACCEPTOR))
        work = Work()
        pieces = [Counted(stream[place : place + 4096]) for place in range(0, len(stream), 4096)]
        assert work.feed(Twins.opened(role, 2**22).framing, iter(pieces)) == 1
        assert work.calls <= 3
        assert sum(piece.work for piece in pieces) <= 2 * 4096

    @pytest.mark.slow
    def test_a_million_small_frames(self, role: Role) -> None:
        (frame,) = render([Raw(b"")], masked=role is Role.ACCEPTOR)
        stream = Counted(frame * 1_000_000)
        work = Work()
        assert work.feed(Twins.opened(role).framing, iter([stream])) == 1_000_000
        assert (work.calls, work.handed) == (-(-1_000_000 // TURN_FRAMES), 0)
        assert stream.work <= 4 * len(stream)
