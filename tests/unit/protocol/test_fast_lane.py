"""The fast lane against the library: any stream, cut anywhere, gives the same items and answers.

Streams are written down with texts as their messages. Where messages are binary, `render` swaps the types, so
that a text stands for a message of the type that is taken, and a binary one for the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode, Closed
from wsqueue.protocol.frames import MAX_RUN
from wsqueue.protocol.framing import TURN_FRAMES, HttpResponse
from wsqueue.protocol.keys import Role
from wsqueue.protocol.session import Event, MessagesReceived
from wsqueue.protocol.v2 import OVERHEAD_BYTES

from ...support.oracle import LIMIT, PATH, REQUEST, RESPONSE, Act, Flat, LibrarySession, Twins, state, written
from ...support.raw_v2_peer import deliver_of, encoded
from ...support.session_pair import MAX_MESSAGE_BYTES, MAX_TOPIC_BYTES, RawPeer, few, message, receive_all
from ...support.strategies import V2_PACKETS
from ...support.wire import (
    BINARY,
    BINARY_FIRST,
    BYTEWISE,
    CLOSE,
    CONT,
    CONT_LAST,
    PING,
    PONG,
    TEXT,
    TEXT_FIRST,
    WHOLE,
    At,
    Chunk,
    Cut,
    Every,
    Inside,
    Raw,
    Run,
    cut,
    render,
)
from .test_session_v2 import V2Peer

both_roles = pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
types = pytest.mark.parametrize("binary", [False, True], ids=["texts", "binary"])
uncovered = pytest.mark.usefixtures("uncovered")


def compare(
    role: Role,
    chunks: Sequence[Chunk],
    how: Cut,
    acts: Sequence[tuple[int, Act]] = (),
    *,
    binary: bool,
    limit: int = LIMIT,
    turn_frames: int = TURN_FRAMES,
) -> list[Flat]:
    twins = Twins.opened(role, limit, binary=binary)
    twins.framing.turn_frames = turn_frames
    return twins.feed(cut(render(chunks, masked=twins.masked, binary=binary), how), acts)


CORNERS: dict[str, list[Chunk]] = {
    "empty texts": [Run(3, 0)],
    "of 125 and 126 bytes": [Raw(b"a" * 125), Raw(b"b" * 126), Raw(b"c" * 127), Raw(b"d" * 125)],
    "of the largest size": [Raw(b"x" * LIMIT), Raw(b"y" * LIMIT), Raw()],
    "too large by one": [Raw(b"x"), Raw(b"x" * (LIMIT + 1)), Raw(b"late")],
    "a run of what is too large": [Raw(b"x"), Raw(b"x" * (LIMIT + 1)), Raw(b"x" * (LIMIT + 1))],
    "too large, and not there": [Raw(b"x"), Raw(b"", declared=LIMIT + 1)],
    "too large in 64 bits": [Raw(b"", declared=65_536), Raw(b"late")],
    "the top bit of the length": [Raw(b"x", declared=2**63 + 1), Raw(b"late")],
    "16 bits for a small length": [Run(3, 1, form=2), Run(2, 1)],
    "64 bits for a small length": [Run(3, 2, form=8), Raw(b"abcd"), Raw(b"ab", form=2)],
    "one length in all forms": [Raw(b"ab", form=form) for form in (0, 2, 2, 8, 8, 0, 0, 8, 2, 0)],
    "frames of one size with other headers": [Raw(b"abcd"), Raw(b"ab", form=2), Raw(b"efgh")],
    "headers that differ in the last byte": [Raw(b"x" * 127), Raw(b"y" * 127), Raw(b"z" * 126)],
    "headers that differ in the last but one": [Raw(b"x" * 256), Raw(b"y" * 256), Raw(b"\x81" * 255)],
    "lengths that differ in the first byte of two": [
        *(Run(3, 1, form=2), Raw(b"x", form=2, declared=0x101), Run(12, 1, form=2))
    ],
    "lengths that differ in the last byte of two": [Run(3, 127), Raw(b"x" * 126), Run(8, 127)],
    **{
        f"lengths that differ in byte {byte} of eight": [
            *(Run(3, 1, form=8), Raw(b"x", form=8, declared=1 + (1 << 8 * (7 - byte))), Run(12, 1, form=8))
        ]
        for byte in range(7)
    },
    "a length that looks like a header": [Raw(b"x" * 0x81, TEXT_FIRST), Raw(b"y" * 0x81, CONT_LAST)],
    "a length that looks like a binary one": [Raw(b"x" * 0x82, TEXT_FIRST), Raw(b"y" * 0x82, CONT_LAST)],
    "a header that only seems to go on": [Run(3, 2), Raw(b"\x81\x02ab\x81\x02"), Run(3, 2)],
    "a binary header that only seems to go on": [Run(3, 2), Raw(b"\x82\x02ab\x82\x02"), Run(3, 2)],
    "the header again in a payload": [Run(2, 5), Raw(b"\x81\x05\x81\x85\x81"), Run(2, 5)],
    "a binary header again in a payload": [Run(2, 5), Raw(b"\x82\x05\x82\x85\x82"), Run(2, 5)],
    "fragments": [Raw(b"a", TEXT_FIRST), Raw(b"", CONT), Raw(b"b", CONT), Raw(b"c", CONT_LAST), Raw(b"d")],
    "an empty message in fragments": [Raw(b"", TEXT_FIRST), Raw(b"", CONT_LAST), Raw(), Raw(b"x")],
    "control frames between fragments": [
        *(Raw(b"a", TEXT_FIRST), Raw(b"1", PING), Raw(b"2", PONG), Raw(b"b", CONT), Raw(b"", PING)),
        *(Raw(b"3", PONG), Raw(b"c", CONT_LAST), Raw(b"d"), Raw(b"4", PING), Raw(b"e")),
    ],
    "a text between fragments": [Raw(b"a", TEXT_FIRST), Raw(b"b"), Raw(b"c", CONT_LAST), Raw(b"d")],
    "a first fragment between fragments": [Raw(b"a", TEXT_FIRST), Raw(b"b", TEXT_FIRST), Raw(b"c")],
    "fragments of the largest size": [
        *(Raw(b"a" * 150, TEXT_FIRST), Raw(b"b" * 149, CONT), Raw(b"c", CONT_LAST)),
        *(Raw(b"a" * LIMIT, TEXT_FIRST), Raw(b"", CONT_LAST), Raw(b"d" * LIMIT)),
    ],
    "fragments that are too large": [Raw(b"a" * 150, TEXT_FIRST), Raw(b"b" * 151, CONT_LAST), Raw(b"c")],
    "many fragments that are too large": [Raw(b"a" * 299, TEXT_FIRST), *[Raw(b"b", CONT)] * 3, Raw(b"c")],
    "a fragment that is too large": [Raw(b"a" * (LIMIT + 1), TEXT_FIRST), Raw(b"b", CONT_LAST)],
    "a control frame when a fragment is large": [Raw(b"a" * 290, TEXT_FIRST), Raw(b"b" * 20, PING)],
    "a stray continuation": [Raw(b"a"), Raw(b"b", CONT_LAST), Raw(b"c")],
    "a binary": [Run(2, 1), Raw(b"b", BINARY), Raw(b"late"), Raw(b"", PING), Raw(b"\x03\xe8", CLOSE)],
    "a binary and an error": [Raw(b"a"), Raw(b"b", BINARY), Raw(b"c", CONT_LAST)],
    "a binary first": [Raw(b"b", BINARY), Raw(b"c", BINARY), Raw(b"late"), Raw(b"", PING)],
    "a binary first, in fragments": [Raw(b"b", BINARY_FIRST), Raw(b"c", CONT_LAST), Raw(b"", BINARY), Raw()],
    "a binary first, and more of one size": [
        *(Raw(b"1", PING), *[Raw(b"b", BINARY)] * 20, Raw(b"2", PONG), Raw(b"c", BINARY), Raw(b"late")),
    ],
    "a binary first, behind control frames": [Raw(b"1", PING), Raw(b"2", PONG), Raw(b"", BINARY), Raw(b"a")],
    "a text first, behind control frames": [Raw(b"1", PING), Raw(b"2", PONG), Raw(b"a"), Raw(b"", BINARY)],
    "a binary first that is too large": [Raw(b"x" * (LIMIT + 1), BINARY), Raw(b"y" * (LIMIT + 1), BINARY)],
    "a binary first with a reserved bit": [Raw(b"x", BINARY | 0x40), Raw(b"late"), Raw(b"late", BINARY)],
    "a binary first that is wrongly masked": [Raw(b"x", BINARY, wrong=True), Raw(b"late")],
    "a binary first that ends early": [Raw(b"x", BINARY, declared=9)],
    "a continuation first": [Raw(b"x", CONT), Raw(b"late")],
    "a binary in fragments": [Raw(b"a"), Raw(b"b", BINARY_FIRST), Raw(b"c", CONT_LAST), Raw(b"late")],
    "a binary between fragments": [Raw(b"a", TEXT_FIRST), Raw(b"b", BINARY), Raw(b"c")],
    "a binary that is too large": [Raw(b"a"), Raw(b"x" * (LIMIT + 1), BINARY), Raw(b"late")],
    "pings": [Raw(b"", PING), Raw(b"x" * 125, PING), Raw(b"a"), Raw(b"a", PING), Raw(b"b"), Raw(b"c")],
    "pongs": [Raw(b"a"), Raw(b"", PONG), Raw(b"b"), Raw(b"x" * 125, PONG), Raw(b"c"), Raw(b"d")],
    "a ping that is too long": [Raw(b"a"), Raw(b"x" * 126, PING), Raw(b"late")],
    "empty pings in all forms": [Raw(b"", PING, form=2), Raw(b"a"), Raw(b"", PING, form=8), Raw(b"", PING)],
    "a ping that is in fragments": [Raw(b"a"), Raw(b"x", PING & 0x7F), Raw(b"late")],
    "a close in fragments": [Raw(b"a"), Raw(b"\x03\xe8", CLOSE & 0x7F), Raw(b"late")],
    "a close": [Raw(b"a"), Raw(b"\x03\xe8bye", CLOSE)],
    "a close and more": [Raw(b"\x03\xe9", CLOSE), Raw(b"l"), Raw(b"", PING), Raw(b"\3\xe8", CLOSE)],
    "a close and garbage": [Raw(b"\x03\xe8", CLOSE), b"\xff\xff\xff\xff", Run(3, 2)],
    "a close without a code": [Raw(b"", CLOSE), Raw(b"late")],
    "a close of one byte": [Raw(b"a"), Raw(b"\x03", CLOSE), Raw(b"late")],
    **{
        f"a close with code {code}": [Raw(code.to_bytes(2), CLOSE), Raw(b"late")]
        for code in (999, 1005, 1006, 5000)
    },
    "a close with a bad reason": [Raw(b"a"), Raw(b"\x03\xe8\xff", CLOSE), Raw(b"late")],
    "a close that is too long": [Raw(b"\x03\xe8" + b"x" * 124, CLOSE)],
    "a close between fragments": [Raw(b"a", TEXT_FIRST), Raw(b"\x03\xe8", CLOSE), Raw(b"c", CONT_LAST)],
    "wrongly masked": [Run(3, 4), Raw(b"abcd", wrong=True), Raw(b"late")],
    "wrongly masked of 126 bytes": [Raw(b"x" * 126), Raw(b"x" * 126, wrong=True), Raw(b"late")],
    "a wrongly masked ping": [Raw(b"a"), Raw(b"x", PING, wrong=True), Raw(b"late")],
    "a wrongly masked close": [Raw(b"\x03\xe8", CLOSE, wrong=True)],
    **{f"the reserved bit {bit}": [Run(2, 1), Raw(b"x", TEXT | bit), Raw(b"late")] for bit in (64, 32, 16)},
    "a reserved bit of a ping": [Raw(b"x", PING | 0x40), Raw(b"late")],
    "a reserved opcode": [Run(2, 1), Raw(b"x", 0x83), Raw(b"late")],
    "a reserved opcode of control": [Run(2, 1), Raw(b"x", 0x8B), Raw(b"late")],
    "bad UTF-8": [Raw(b"\xff\xfe"), Raw(b"\xc3"), Raw(b"\xed\xa0\x80"), Raw(b"fine")],
    "bad UTF-8 in fragments": [Raw(b"\xff", TEXT_FIRST), Raw(b"\xc3", CONT_LAST), Raw(b"fine")],
    "garbage": [b"\xff" * 20],
    "zeros": [Run(2, 0), b"\0" * 20],
    "a frame that ends early": [Raw(b"a"), Raw(b"abc", declared=9)],
    "a ping that ends early": [Raw(b"a"), Raw(b"bc", PING, declared=9)],
    "nothing": [],
}
corners = pytest.mark.parametrize("chunks", CORNERS.values(), ids=CORNERS)


ACTS = [
    Act("send_message", (b"ours",)),
    Act("send_ping", (b"ours",)),
    Act("close", (CloseCode.GOING_AWAY, "bye")),
    Act("fail", (CloseCode.PING_TIMEOUT, "late")),
    Act("fail", (CloseCode.ABNORMAL, "lost")),
    Act("refuse", (CloseCode.INVALID_PACKET, "bad")),
    Act("receive_eof"),
]


@both_roles
@uncovered
class TestCorners:
    """Each corner by itself, and with a run and itself around it."""

    @types
    @corners
    def test_in_two_pieces(self, role: Role, binary: bool, chunks: list[Chunk]) -> None:
        whole = compare(role, chunks, WHOLE, binary=binary)
        frames = render(chunks, masked=role is Role.ACCEPTOR, binary=binary)
        starts = [*itertools.accumulate(map(len, frames), initial=0)]
        near = {start + offset for start in starts for offset in range(-2, 16)}
        for place in sorted(near & {*range(1, starts[-1])}):
            assert compare(role, chunks, At([place]), binary=binary) == whole

    @types
    @corners
    def test_in_many_pieces(self, role: Role, binary: bool, chunks: list[Chunk]) -> None:
        whole = compare(role, chunks, WHOLE, binary=binary)
        others: list[Cut] = [BYTEWISE, Every(2), Every(3), *map(Inside, range(1, 16))]
        for how in others:
            assert compare(role, chunks, how, binary=binary) == whole

    @corners
    @pytest.mark.parametrize(
        ("turn_frames", "binary"), [(1, False), (2, False), (7, False), (8, False), (9, False), (8, True)]
    )
    def test_in_short_turns(self, role: Role, binary: bool, chunks: list[Chunk], turn_frames: int) -> None:
        around = [Raw(b"0", PONG), Run(20, 4), *chunks, Run(20, 4)]
        for how in (WHOLE, Every(7), BYTEWISE):
            whole = compare(role, around, how, binary=binary)
            assert compare(role, around, how, binary=binary, turn_frames=turn_frames) == whole

    @types
    @corners
    def test_between_runs(self, role: Role, binary: bool, chunks: list[Chunk]) -> None:
        for how in (WHOLE, Every(7)):
            compare(role, [Run(20, 4), *chunks, Run(20, 4)], how, binary=binary)
            compare(role, [Raw(b"0", PONG), *chunks, Raw(b"0", PONG)], how, binary=binary)
            compare(role, [*chunks, *chunks], how, binary=binary)


forms = st.sampled_from([None, None, None, 0, 2, 8])


@both_roles
@types
class TestRest:
    """A connection at rest is quiet: it does without the library's protocol."""

    @pytest.mark.parametrize(
        ("chunks", "at_rest"),
        [
            ([], True),
            ([Run(3, 4)], True),
            ([Raw(b"x", declared=9)], True),
            ([Raw(b"1", PING)], True),
            ([Raw(b"", PING)], True),
            ([Raw(b"", PING, form=2)], True),
            ([Raw(b"", PONG, form=8)], True),
            ([Raw(b"1", PONG), Run(3, 4)], True),
            ([Raw(b"a", TEXT_FIRST), Raw(b"b", CONT_LAST)], True),
            ([Raw(b"a", TEXT_FIRST)], False),
            ([Raw(b"a", TEXT_FIRST), Raw(b"1", PING)], False),
            ([Raw(b"1", PING, declared=9)], False),
            ([Raw(b"\x03\xe8", CLOSE)], False),
        ],
    )
    def test_what_is_kept(self, role: Role, binary: bool, chunks: list[Chunk], at_rest: bool) -> None:
        for how in (WHOLE, BYTEWISE):
            twins = Twins.opened(role, binary=binary)
            # The first message of an acceptor says which type it sends.
            for piece in cut(render([Raw(b"first"), *chunks], masked=twins.masked, binary=binary), how):
                twins.receive(piece)
            assert twins.framing.quiet == at_rest
            twins.act(Act("send_message", (b"x",)))
            twins.act(Act("send_ping", (b"x",)))
            assert twins.framing.quiet == at_rest


@both_roles
@types
@uncovered
class TestRuns:
    """Frames that are cut in one go."""

    @pytest.mark.parametrize(
        "count", [1, 2, 3, *range(7, 11), MAX_RUN - 1, MAX_RUN, MAX_RUN + 1, 2 * MAX_RUN, 700]
    )
    @pytest.mark.parametrize("size", [0, 1, 4, 126])
    def test_frames_of_one_size(self, role: Role, binary: bool, count: int, size: int) -> None:
        expected = [frame.payload for frame in Run(count, size).frames()]
        for how in (WHOLE, Every(997), Every((size + 6) * count - 1)):
            assert compare(role, [Run(count, size)], how, binary=binary) == expected

    @few
    @given(
        runs=st.lists(
            st.builds(Run, st.integers(0, 12) | st.integers(250, 265), st.integers(0, 6), forms), max_size=6
        ),
        size=st.integers(1, 5000),
    )
    def test_runs_that_follow_each_other(self, role: Role, binary: bool, runs: list[Run], size: int) -> None:
        items = compare(role, runs, Every(size), binary=binary)
        assert items == [frame.payload for run in runs for frame in run.frames()]


first_bytes = st.sampled_from(
    [TEXT] * 6
    + [
        TEXT_FIRST,
        CONT,
        CONT_LAST,
        TEXT_FIRST,
        CONT_LAST,
        BINARY,
        BINARY_FIRST,
        CLOSE,
        PING,
        PONG,
        PING,
        PONG,
    ]
    + [PING & 0x7F, CLOSE & 0x7F, TEXT | 0x40, TEXT | 0x20, TEXT | 0x10, PONG | 0x40, 0x83, 0x8B, 0x0F]
)
sizes = st.integers(0, 6) | st.sampled_from(
    [0, 124, 125, 126, 127, 128, 255, 256, LIMIT - 1, LIMIT, LIMIT + 1]
)
payloads = st.binary(max_size=8) | sizes.map(lambda size: (b"\x81\x04ab\x82\x84\x82\x04" * size)[:size])
keys = st.binary(min_size=4, max_size=4) | st.just(bytes(4))
close_payloads = st.builds(
    lambda code, reason: code.to_bytes(2) + reason,
    st.sampled_from(
        [1000, 1001, 1002, 1007, 1011, 4400, 3000, 4999, 999, 1004, 1005, 1006, 1015, 2999, 5000]
    ),
    st.sampled_from([b"", b"bye", b"\xc3\xb1", b"\xff", b"x" * 123, b"x" * 124]),
)
none = st.none()
no = st.just(False)
plain = st.builds(Raw, payloads, st.just(TEXT), forms, no, keys, none)
controls = st.builds(Raw, st.binary(max_size=8), st.sampled_from([PING, PONG]), none, no, keys, none)
closes = st.builds(Raw, close_payloads, st.just(CLOSE), none, no, keys, none)
odd = st.builds(
    Raw,
    payloads | close_payloads,
    first_bytes,
    forms,
    st.sampled_from([False] * 6 + [True]),
    keys,
    st.sampled_from([None] * 8 + [0, 1, 5, LIMIT, LIMIT + 1, 65_535, 65_536, 2**63, 2**64 - 1]),
)
runs = st.builds(Run, st.integers(2, 12) | st.integers(250, 600), st.integers(0, 4), forms)


@st.composite
def fragmented(draw: st.DrawFn) -> list[Chunk]:
    """Draw a message in fragments, with control frames in between and sometimes too large."""
    pieces = draw(st.lists(st.binary(max_size=4) | st.sampled_from([b"x" * 100, b"y" * 200]), min_size=2))
    chunks: list[Chunk] = []
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        chunks.append(Raw(piece, (CONT if index else TEXT_FIRST) | 0x80 * last, key=draw(keys)))
        if not last:
            chunks += draw(st.lists(controls, max_size=2))
    return chunks


def flat(groups: list[list[Chunk]]) -> list[Chunk]:
    return [chunk for group in groups for chunk in group]


def ones(chunks: st.SearchStrategy[Raw]) -> st.SearchStrategy[list[Chunk]]:
    return chunks.map(lambda chunk: [chunk])


run_ones: st.SearchStrategy[list[Chunk]] = runs.map(lambda run: [run])
garbage: st.SearchStrategy[list[Chunk]] = st.binary(max_size=20).map(lambda data: [data])
valid = st.lists(ones(plain) | ones(plain) | run_ones | ones(controls) | fragmented(), max_size=8).map(flat)
broken = st.lists(ones(plain) | fragmented() | ones(odd) | ones(closes) | garbage, max_size=6).map(flat)
streams = st.tuples(valid, broken).map(lambda parts: [*parts[0], *parts[1]]) | broken
cuts: st.SearchStrategy[Cut] = st.one_of(
    st.just(WHOLE),
    st.builds(Every, st.integers(1, 5) | st.integers(6, 2000)),
    st.builds(Inside, st.integers(1, 15)),
    st.builds(At, st.lists(st.integers(0, 9000), max_size=12)),
)
codes = st.sampled_from([code for code in CloseCode if code is not CloseCode.ABNORMAL])
reasons = st.sampled_from(["", "because", "ñ" * 100])
acts = st.one_of(
    st.builds(Act, st.just("send_message"), st.tuples(st.binary(max_size=130))),
    st.builds(Act, st.just("send_ping"), st.tuples(st.binary(max_size=125))),
    st.builds(Act, st.sampled_from(["close", "fail", "refuse"]), st.tuples(codes, reasons)),
    st.just(Act("fail", (CloseCode.ABNORMAL, "lost"))),
    st.just(Act("receive_eof")),
)
timed_acts = st.lists(st.tuples(st.integers(0, 40), acts), max_size=3)
limits = st.sampled_from([LIMIT] * 6 + [0, 1, 4, 125, 126, 65_536])


@both_roles
@types
class TestStreams:
    @few
    @given(chunks=streams, how=cuts, limit=limits)
    def test_any(self, role: Role, binary: bool, chunks: list[Chunk], how: Cut, limit: int) -> None:
        compare(role, chunks, how, binary=binary, limit=limit)

    @few
    @given(chunks=streams, how=cuts, timed=timed_acts)
    def test_with_something_done_in_between(
        self, role: Role, binary: bool, chunks: list[Chunk], how: Cut, timed: list[tuple[int, Act]]
    ) -> None:
        compare(role, chunks, how, timed, binary=binary)

    @few
    @given(
        chunks=valid,
        how=cuts,
        mutations=st.lists(
            st.tuples(
                st.sampled_from(["flip", "insert", "delete"]), st.integers(0, 9000), st.integers(0, 255)
            ),
            min_size=1,
            max_size=4,
        ),
    )
    def test_mutations(
        self, role: Role, binary: bool, chunks: list[Chunk], how: Cut, mutations: list[tuple[str, int, int]]
    ) -> None:
        data = bytearray(b"".join(render(chunks, masked=role is Role.ACCEPTOR, binary=binary)))
        for kind, place, value in mutations:
            place %= len(data) + 1  # noqa: PLW2901
            if kind == "insert":
                data.insert(place, value)
            elif place < len(data):
                data[place : place + 1] = bytes([data[place] ^ (value or 1)]) if kind == "flip" else b""
        compare(role, [bytes(data)], how, binary=binary)


@both_roles
@uncovered
class TestHeads:
    """A request or an answer that frames follow at once."""

    FRAMES: tuple[Chunk, ...] = (
        Run(3, 4),
        Raw(b"\n\r\n\r\n", PING),
        Raw(b"\n\n"),
        Raw(b"a", PONG),
        Run(2, 4),
    )

    def feed(
        self,
        role: Role,
        head: Callable[[bytes], bytes],
        how: Cut,
        chunks: Sequence[Chunk] = FRAMES,
        *,
        binary: bool,
    ) -> Closed | None:
        def answer(path: str) -> HttpResponse | None:
            return None if path == PATH else HttpResponse(404, "no\n")

        twins = Twins(role, answer_request=answer, binary=binary)
        twins.feed(cut([head(twins.head), *render(chunks, masked=twins.masked, binary=binary)], how))
        return twins.framing.closed

    @types
    @few
    @given(place=st.integers(0, 400), act=st.sampled_from(ACTS))
    def test_with_something_done_in_between(self, role: Role, binary: bool, place: int, act: Act) -> None:
        for head in (b"\r\n", b"X: x\n\r\n"):
            twins = Twins(role, binary=binary)
            frames = render(self.FRAMES, masked=twins.masked, binary=binary)
            twins.feed(cut([twins.head + head, *frames], At([place])), [(1 if place else 0, act)])

    @types
    @pytest.mark.parametrize("dribbled", [100, 129, 130, 131])
    @pytest.mark.parametrize("path", [PATH, "/nowhere"])
    @pytest.mark.parametrize(
        "last",
        [Raw(b"a"), Raw(b"abc", declared=9), Raw(b"1", PING), Raw(b"\x03\xe8", CLOSE), Raw(b"", BINARY)],
        ids=lambda last: f"{last.first:x}",
    )
    def test_a_dribbled_head(self, role: Role, binary: bool, dribbled: int, path: str, last: Raw) -> None:
        def head(upgrade: bytes) -> bytes:
            return upgrade.replace(PATH.encode(), path.encode()) + b"\r\n"

        how = At([*range(dribbled)])
        self.feed(role, head, how, [last], binary=binary)
        self.feed(role, head, how, [*self.FRAMES, last, Raw(b"late")], binary=binary)

    @types
    @pytest.mark.parametrize("count", [1, 123, 124, 125, 126, 200])
    @pytest.mark.parametrize("how", [WHOLE, BYTEWISE, Every(100)], ids=repr)
    def test_many_headers(self, role: Role, binary: bool, count: int, how: Cut) -> None:
        closed = self.feed(role, lambda head: head + b"X: x\r\n" * count + b"\r\n", how, binary=binary)
        assert closed is not None
        headers = count + (5 if role is Role.ACCEPTOR else 3) + binary
        assert (closed.code == CloseCode.ABNORMAL and closed.reason == "connection lost") == (headers <= 128)

    @pytest.mark.parametrize("size", [8187, 8188, 8189, 8190, 20_000])
    @pytest.mark.parametrize("how", [WHOLE, BYTEWISE, Every(4096)], ids=repr)
    @pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\r\n", b""], ids=["whole", "without CR", "endless"])
    def test_long_lines(self, role: Role, size: int, how: Cut, end: bytes) -> None:
        self.feed(role, lambda head: head + b"X: " + b"x" * size + end, how, binary=False)
        self.feed(role, lambda _: b"GET /" + b"x" * size + end, how, [], binary=False)

    @types
    @pytest.mark.parametrize(
        "head",
        [
            *(b"\r\n", b"\n", b"\n" * 300, b"\r\n" * 300, b"x\n", b"\x16\x03\x01\n", b"\0" * 9000),
            *(b"GET / HTTP/1.1\r\n\r\n", b"GET /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"GET"),
            *(b"GET /\xff HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"GET /\r\n\r\n"),
            *(
                method + b" / HTTP/1.1\r\nHost: x\r\n" + body
                for method in (b"HEAD", b"PUT", b"GETS")
                for body in (b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n", b"a\n")
            ),
            *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
            *(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbusy", b"HTTP/1.1 503 Busy\r\n\r\nbusy\n" * 50),
            b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n0\r\n\r\n",
            RESPONSE + b"Sec-WebSocket-Accept: x\r\n\r\n",
            REQUEST.replace(b"13", b"12") + b"\r\n",
            REQUEST + b"\r\n",
            *(
                REQUEST + b"Sec-WebSocket-Protocol: " + offers + b"\r\n\r\n"
                for offers in (
                    b"",
                    b"wsqueue.v3",
                    b"a, wsqueue.v2,b",
                    b"wsqueue.v2, wsqueue.v2",
                    b"WSQUEUE.V2",
                )
            ),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("how", [WHOLE, BYTEWISE, Every(50)], ids=repr)
    def test_another_head(self, role: Role, binary: bool, head: bytes, how: Cut) -> None:
        self.feed(role, lambda _: head, how, binary=binary)

    @types
    @few
    @given(
        lines=st.lists(
            st.sampled_from(
                [
                    *(b"X: x\r\n", b"Y:\r\n", b"Upgrade: no\r\n", b"bad\r\n", b"Z: z\n"),
                    *(b"Sec-WebSocket-Protocol: wsqueue.v2\r\n", b"Sec-WebSocket-Protocol: other\r\n"),
                ]
            )
        ).flatmap(lambda lines: st.sampled_from([[*lines, end] for end in (b"\r\n", b"\n", b"", b"\r")])),
        chunks=broken,
        how=cuts | st.sampled_from([10, 128, 130, 140, 200]).map(lambda dribbled: At([*range(dribbled)])),
    )
    def test_any(self, role: Role, binary: bool, lines: list[bytes], chunks: list[Chunk], how: Cut) -> None:
        self.feed(role, lambda head: head + b"".join(lines), how, chunks, binary=binary)


TOPICS = [
    "news",
    "",
    "x" * MAX_TOPIC_BYTES,
    "ñ" * (MAX_TOPIC_BYTES // 2),
    "\N{GRINNING FACE}" * 8,
    "a",
    "b",
    "c",
]
FAULTS = {
    "bad UTF-8": (b"\xff", CloseCode.INVALID_TEXT),
    "bad UTF-8 in the topic": (b'{"t":"m","d":"","s":"\xc3"}', CloseCode.INVALID_TEXT),
    "bad UTF-8 behind it": (b'{"t":"m","d":"","s":""}\xff', CloseCode.INVALID_TEXT),
    "nothing": (b"", CloseCode.INVALID_PACKET),
    "an empty object": (b"{}", CloseCode.INVALID_PACKET),
    "no tag": (b'{"d":"x","s":"news"}', CloseCode.INVALID_PACKET),
    "no topic": (b'{"t":"m","d":"x"}', CloseCode.INVALID_PACKET),
    "null": (b'{"t":"m","d":null,"s":"news"}', CloseCode.INVALID_PACKET),
    "another tag": (b'{"t":"x","d":"x","s":"news"}', CloseCode.INVALID_PACKET),
    "another tag first": (b'{"t":"h","t":"m","d":"x","s":"news"}', CloseCode.INVALID_PACKET),
    "another tag last": (b'{"t":"m","d":"x","s":"news","t":"h"}', CloseCode.INVALID_PACKET),
    "a field too many": (b'{"t":"m","d":"x","s":"news","y":1}', CloseCode.INVALID_PACKET),
    "a lone surrogate": (b'{"t":"m","d":"\\ud800","s":"news"}', CloseCode.INVALID_PACKET),
    "something behind it": (b'{"t":"m","d":"x","s":"news"}x', CloseCode.INVALID_PACKET),
    "deep": (b"[" * 4000, CloseCode.INVALID_PACKET),
    "a challenge": (b'{"t":"h","o":7}', CloseCode.SECOND_CHALLENGE),
    "an answer": (b'{"t":"h","a":"any"}', CloseCode.SECOND_ANSWER),
    "a subscription": (b'{"t":"s","s":"news"}', CloseCode.UNEXPECTED_PACKET),
    "a long topic": (message("x", "x" * (MAX_TOPIC_BYTES + 1)), CloseCode.TOPIC_TOO_LONG),
    "a long topic of few characters": (message("x", "ñ" * 16 + "x"), CloseCode.TOPIC_TOO_LONG),
}


V2_FAULTS = {
    "nothing": (b"", CloseCode.INVALID_PACKET),
    "an empty map": (b"\x80", CloseCode.INVALID_PACKET),
    "no tag": (encoded({"topic": "x"}), CloseCode.INVALID_PACKET),
    "another tag": (encoded({"t": "m", "d": "x", "s": "x"}), CloseCode.INVALID_PACKET),
    "a classic message": (message("x"), CloseCode.INVALID_PACKET),
    "no field": (encoded({"t": "unsubscribe"}), CloseCode.INVALID_PACKET),
    "a topic that is no UTF-8": (b"\x82\xa1t\xabunsubscribe\xa5topic\xa1\xff", CloseCode.INVALID_PACKET),
    "a part": (encoded({"t": "unsubscribe", "topic": "x"})[:-1], CloseCode.INVALID_PACKET),
    "something behind it": (encoded({"t": "alive"}) + b"\xc0", CloseCode.INVALID_PACKET),
    "deep": (b"\x81\xa1t" + b"\x91" * 4000, CloseCode.INVALID_PACKET),
    "half a delivery": (
        encoded(deliver_of(0, "x", messages={"sizes": [2], "data": b"a"})),
        CloseCode.INVALID_PACKET,
    ),
    "a challenge": (encoded({"t": "challenge", "nonce": bytes(32)}), CloseCode.SECOND_CHALLENGE),
    "a proof": (encoded({"t": "proof", "proof": bytes(32)}), CloseCode.SECOND_ANSWER),
}


class SessionTwins:
    """An established session, and the plain one over the library."""

    def __init__(self, role: Role, *, binary: bool) -> None:
        self.session = (V2Peer if binary else RawPeer).established(role).session
        limit = MAX_MESSAGE_BYTES + OVERHEAD_BYTES * binary
        twins = Twins.opened(role, limit, binary=binary)
        self.masked, self.binary = twins.masked, binary
        # The first message of an acceptor says which type it sends; here the hello has been.
        assert twins.receive(Raw(b"first").render(masked=self.masked, binary=binary)) == [b"first"]
        self.oracle = LibrarySession(twins.library, role, MAX_TOPIC_BYTES, speaks_v2=binary)

    def receive(self, data: bytes) -> list[Event]:
        events = receive_all(self.session, data)
        expected = self.oracle.receive_data(data)
        assert by_topic(events) == by_topic(expected)
        library = self.oracle.library
        assert state(self.session) == state(library)
        assert self.session.established == library.open
        ours, theirs = self.session.data_to_send(), library.data_to_send()
        assert written(ours, masked=not self.masked) == written(theirs, masked=not self.masked)
        return events

    def feed(self, chunks: Sequence[Chunk], how: Cut) -> list[Event]:
        pieces = cut(render(chunks, masked=self.masked, binary=self.binary), how)
        events = [event for piece in pieces for event in self.receive(piece)]
        self.session.receive_eof()
        self.oracle.library.receive_eof()
        assert state(self.session) == state(self.oracle.library)
        return events


Topics = dict[str, list[tuple[str, bytes]]]


def by_topic(events: list[Event]) -> list[Topics | Event]:
    """Return classic messages by topic, and all other events between them."""
    parts: list[Topics | Event] = []
    for event in events:
        if not isinstance(event, MessagesReceived):
            parts.append(event)
            continue
        assert {one.topic for one in event.messages} == {event.topic}
        if not parts or not isinstance(parts[-1], dict):
            parts.append({})
        topics = parts[-1]
        assert isinstance(topics, dict)
        data = [one.data for one in event.messages]
        topics.setdefault(event.topic, []).extend(zip(data, event.payloads, strict=True))
    return parts


good = st.builds(
    message, st.text(st.characters(exclude_categories=["Cs"]), max_size=9), st.sampled_from(TOPICS)
)
good_texts = st.lists(
    ones(st.builds(Raw, good, st.just(TEXT), none, no, keys, none)), min_size=1, max_size=20
).map(flat)
in_fragments: st.SearchStrategy[list[Chunk]] = st.builds(
    lambda payload, place, ping: [
        *(Raw(payload[:place], TEXT_FIRST), Raw(ping, PING), Raw(b"p", PONG), Raw(payload[place:], CONT_LAST))
    ],
    good | st.sampled_from([payload for payload, _ in FAULTS.values()]),
    st.integers(0, 40),
    st.binary(max_size=4),
)
faults = ones(
    st.sampled_from([Raw(payload) for payload, _ in FAULTS.values()])
    | st.sampled_from(
        [
            *(Raw(b"b", BINARY), Raw(b"c", CONT_LAST), Raw(b"\x03\xe8", CLOSE), Raw(b"x", TEXT | 0x40)),
            *(Raw(b"x" * (MAX_MESSAGE_BYTES + 1)), Raw(b"x", wrong=True)),
        ]
    )
)
conversations = st.lists(
    st.one_of(good_texts, good_texts, ones(controls), in_fragments, faults), min_size=1, max_size=8
).map(flat)


@both_roles
@uncovered
class TestSessions:
    @pytest.mark.parametrize(("payload", "code"), FAULTS.values(), ids=FAULTS)
    @pytest.mark.parametrize("others", [0, 3])
    def test_a_fault_at_any_place(self, role: Role, payload: bytes, code: CloseCode, others: int) -> None:
        texts = [Raw(message(f"{number}", "abc"[number % 3])) for number in range(others)]
        for place in range(others + 1):
            chunks = [*texts[:place], Raw(payload), *texts[place:]]
            for how in (WHOLE, BYTEWISE, Inside(5)):
                twins = SessionTwins(role, binary=False)
                events = twins.feed(chunks, how)
                received = [
                    one.data
                    for event in events
                    if isinstance(event, MessagesReceived)
                    for one in event.messages
                ]
                assert sorted(received, key=int) == [f"{number}" for number in range(place)]
                assert twins.session.closed is not None
                assert twins.session.closed.code == code

    @pytest.mark.parametrize(("payload", "code"), FAULTS.values(), ids=FAULTS)
    def test_a_fault_in_one_read_with_control_frames(
        self, role: Role, payload: bytes, code: CloseCode
    ) -> None:
        chunks = [Raw(message("x")), Raw(b"1", PING), Raw(b"2", PONG), Raw(payload), Raw(b"3", PING)]
        for end in (Raw(b"4", PONG), Raw(b"\x03\xe8", CLOSE), Raw(b"", BINARY), Raw(b"x", TEXT | 0x40)):
            SessionTwins(role, binary=False).feed([*chunks, end, Raw(message("late"))], WHOLE)

    def test_one_event_for_each_topic_of_a_read(self, role: Role) -> None:
        twins = SessionTwins(role, binary=False)
        texts = [Raw(message(f"{number}", TOPICS[number % 7])) for number in range(TURN_FRAMES - 2)]
        events = twins.receive(b"".join(render(texts, masked=twins.masked)))
        assert [event.topic for event in events if isinstance(event, MessagesReceived)] == TOPICS[:7]

    @few
    @given(chunks=conversations, how=cuts)
    def test_any(self, role: Role, chunks: list[Chunk], how: Cut) -> None:
        SessionTwins(role, binary=False).feed(chunks, how)


packets = st.builds(Raw, V2_PACKETS.map(v2.encode), st.just(TEXT), none, no, keys, none)
packets_in_fragments: st.SearchStrategy[list[Chunk]] = st.builds(
    lambda payload, place, ping: [
        *(Raw(payload[:place], TEXT_FIRST), Raw(ping, PING), Raw(b"p", PONG), Raw(payload[place:], CONT_LAST))
    ],
    V2_PACKETS.map(v2.encode),
    st.integers(0, 40),
    st.binary(max_size=4),
)
v2_faults = ones(
    st.sampled_from([Raw(payload) for payload, _ in V2_FAULTS.values()])
    | st.sampled_from([Raw(b"b", BINARY), Raw(b"b", BINARY_FIRST), Raw(b"\x03\xe8", CLOSE)])
    | st.just(Raw(b"x" * (MAX_MESSAGE_BYTES + OVERHEAD_BYTES + 1)))
)
v2_conversations = st.lists(
    st.one_of(st.lists(ones(packets), max_size=9).map(flat), ones(controls), packets_in_fragments, v2_faults),
    max_size=8,
).map(flat)


@both_roles
@uncovered
class TestV2Sessions:
    @pytest.mark.parametrize(("payload", "code"), V2_FAULTS.values(), ids=V2_FAULTS)
    @pytest.mark.parametrize("others", [0, 3])
    def test_a_fault_at_any_place(self, role: Role, payload: bytes, code: CloseCode, others: int) -> None:
        good = [v2.Unsubscribe(f"{number}") for number in range(others)]
        frames = [Raw(v2.encode(packet)) for packet in good]
        for place in range(others + 1):
            for how in (WHOLE, BYTEWISE, Inside(5)):
                twins = SessionTwins(role, binary=True)
                assert twins.feed([*frames[:place], Raw(payload), *frames[place:]], how) == good[:place]
                assert twins.session.closed is not None
                assert twins.session.closed.code == code

    @pytest.mark.parametrize(("payload", "code"), V2_FAULTS.values(), ids=V2_FAULTS)
    def test_a_fault_in_one_read_with_control_frames(
        self, role: Role, payload: bytes, code: CloseCode
    ) -> None:
        asked = Raw(v2.encode(v2.AskAlive()))
        chunks = [asked, Raw(b"1", PING), Raw(b"2", PONG), asked, Raw(payload), Raw(b"3", PING), asked]
        for end in (Raw(b"4", PONG), Raw(b"\x03\xe8", CLOSE), Raw(b"", BINARY), Raw(b"x", TEXT | 0x40)):
            SessionTwins(role, binary=True).feed([*chunks, end, asked], WHOLE)

    @few
    @given(chunks=v2_conversations, how=cuts)
    def test_any(self, role: Role, chunks: list[Chunk], how: Cut) -> None:
        SessionTwins(role, binary=True).feed(chunks, how)
