"""The input of the load generator, without sockets: records cut anywhere, and other bytes."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode

from tests.support.strategies import cut
from wsqueue.config.addresses import parse_address
from wsqueue.config.model import Limits
from wsqueue.errors import WsqueueError
from wsqueue.protocol.frames import frame_messages
from wsqueue.protocol.keys import Order, PreSharedKey
from wsqueue.tools.bench.classic import ClassicUnwrapper, ClassicWire
from wsqueue.tools.bench.records import Records, Template
from wsqueue.tools.bench.report import Latencies
from wsqueue.tools.bench.workload import MIN_SIZE, Load

SECRET = "correct horse battery staple"
WIRE = ClassicWire(
    [parse_address("127.0.0.1:1/produce", "/produce")],
    [parse_address("127.0.0.1:2/subscribe", "/subscribe")],
    PreSharedKey(SECRET),
)
TOPIC = "bench-0000"

sizes = st.integers(MIN_SIZE, 300)
"""With the topic and JSON around them, these have frames with short and with long headers."""


def unmasked(frames: bytes) -> list[tuple[int, bytes]]:
    """Return the opcodes and payloads of short masked frames."""
    found = []
    while frames:
        length = frames[1] & 0x7F
        assert frames[1] & 0x80, "a client masks"
        key, payload = frames[2:6], frames[6 : 6 + length]
        found.append((frames[0], bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))))
        frames = frames[6 + length :]
    return found


class TestRecords:
    @given(sizes, st.integers(0, 30), st.lists(st.integers(0, 10_000), max_size=10))
    def test_unstamped_records_are_counted_wherever_they_are_cut(
        self, size: int, number: int, places: list[int]
    ) -> None:
        load = Load(size=size)
        latencies = Latencies()
        records = Records(Template(WIRE, TOPIC, load, 4096), latencies)
        stream = WIRE.delivered(TOPIC, load.filler) * number
        assert sum(records.take(piece, 0) for piece in cut(stream, places)) == number
        assert latencies.report() is None

    @given(st.integers(MIN_SIZE, 150), st.lists(st.booleans(), max_size=40), st.lists(st.integers(0, 10_000)))
    def test_each_stamp_is_found_wherever_it_is_cut(
        self, size: int, stamped: list[bool], places: list[int]
    ) -> None:
        load = Load(size=size)
        latencies = Latencies()
        records = Records(Template(WIRE, TOPIC, load, 1000), latencies)
        data = [load.stamped(1000 * index) if stamp else load.filler for index, stamp in enumerate(stamped)]
        stream = b"".join(WIRE.delivered(TOPIC, one) for one in data)
        now_ns = 1000 * len(stamped)
        assert sum(records.take(piece, now_ns) for piece in cut(stream, places)) == len(stamped)
        expected = Latencies()
        for index, stamp in enumerate(stamped):
            if stamp:
                expected.add(now_ns - 1000 * index)
        assert latencies.counts == expected.counts

    @given(
        st.integers(MIN_SIZE, 150),
        st.lists(st.booleans(), min_size=1, max_size=20),
        st.integers(0),
        st.integers(1, 255),
        st.lists(st.integers(0, 10_000), max_size=10),
    )
    def test_any_other_byte_is_refused(
        self, size: int, stamped: list[bool], place: int, change: int, places: list[int]
    ) -> None:
        load = Load(size=size)
        template = Template(WIRE, TOPIC, load, 1000)
        data = [load.stamped(2**40) if stamp else load.filler for stamp in stamped]
        stream = bytearray(b"".join(WIRE.delivered(TOPIC, one) for one in data))
        at = place % len(stream)
        record, column = divmod(at, template.stride)
        # Only the digits of a time may differ.
        digit = stamped[record] and template.mark < column < template.mark + MIN_SIZE
        stream[at] ^= change
        records = Records(template, Latencies())

        def take_all() -> None:
            for piece in cut(bytes(stream), places):
                records.take(piece, 2**41)

        if not digit:
            with pytest.raises(WsqueueError, match=r"^unexpected bytes from a subscriber of bench-0000: "):
                take_all()

    def test_a_stamp_that_is_no_number_is_refused(self) -> None:
        load = Load()
        records = Records(Template(WIRE, TOPIC, load, 1000), Latencies())
        record = WIRE.delivered(TOPIC, b"t" + load.filler[1:])
        with pytest.raises(WsqueueError, match="instead of b'-xxxx"):
            records.take(record, 0)


TEXT = frame_messages([b'{"t":"m","d":"hello","s":"news"}'], masked=False, binary=False)
LONG = frame_messages([b"x" * 200], masked=False, binary=False)
HUGE = frame_messages([b"y" * 70_000], masked=False, binary=False)


class TestClassicUnwrapper:
    @given(
        st.sampled_from([TEXT, LONG, HUGE]),
        st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=125), st.booleans()), max_size=5),
        st.lists(st.integers(0, 700_000), max_size=20),
    )
    def test_control_frames_are_taken_out_wherever_the_stream_is_cut(
        self, text: bytes, controls: list[tuple[int, bytes, bool]], places: list[int]
    ) -> None:
        stream, pings = b"", []
        for index in range(9):
            for at, payload, ping in controls:
                if at == index:
                    opcode = Opcode.PING if ping else Opcode.PONG
                    stream += Frame(opcode, payload).serialize(mask=False)
                    pings += [payload] * ping
            stream += text
        unwrapper = ClassicUnwrapper()
        assert b"".join(unwrapper.unwrap(piece) for piece in cut(stream, places)) == text * 9
        assert unmasked(unwrapper.replies()) == [(0x8A, payload) for payload in pings]
        assert unwrapper.replies() == b""

    @pytest.mark.parametrize("intruder", [LONG, HUGE, Frame(Opcode.BINARY, b"x").serialize(mask=False)])
    @pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
    def test_messages_of_other_publishers_are_left_to_the_records(self, intruder: bytes, size: int) -> None:
        load = Load()
        record = WIRE.delivered(TOPIC, load.filler)
        records = Records(Template(WIRE, TOPIC, load, 1000), Latencies())
        unwrapper = ClassicUnwrapper()
        stream = record * 3 + intruder + record * 3

        def take_all() -> None:
            for at in range(0, len(stream), size):
                records.take(unwrapper.unwrap(stream[at : at + size]), 0)

        with pytest.raises(WsqueueError, match="does another client publish there"):
            take_all()

    def test_a_read_of_equal_frames_is_not_copied(self) -> None:
        unwrapper = ClassicUnwrapper()
        unwrapper.unwrap(TEXT)
        stream = TEXT * 10 + TEXT[:7]
        assert unwrapper.unwrap(stream) is stream

    @pytest.mark.parametrize("size", [1, 2, 3, 1000])
    def test_a_close_frame_is_an_error_with_its_code_and_reason(self, size: int) -> None:
        close = Frame(Opcode.CLOSE, Close(1013, "too slow").serialize()).serialize(mask=False)
        unwrapper = ClassicUnwrapper()
        stream = TEXT * 3 + close

        def unwrap_all() -> None:
            for at in range(0, len(stream), size):
                unwrapper.unwrap(stream[at : at + size])

        with pytest.raises(WsqueueError, match=r"^the node closed with 1013 \(too slow\)$"):
            unwrap_all()


class TestClassicWire:
    @given(sizes, st.integers(0, 2**60 - 1))
    def test_the_number_of_bytes_depends_on_lengths_only(self, size: int, due_ns: int) -> None:
        load = Load(size=size, topics=2)
        lengths = {
            (len(WIRE.published(topic, data)), len(WIRE.delivered(topic, data)))
            for topic in load.topic_names
            for data in (load.filler, load.stamped(due_ns))
        }
        assert len(lengths) == 1
        assert load.stamped(due_ns) in WIRE.delivered(TOPIC, load.stamped(due_ns))

    def test_it_goes_to_a_worker_with_its_key(self) -> None:
        addresses = [parse_address("127.0.0.1:1/produce", "/produce")]
        key, limits = PreSharedKey(SECRET), Limits(max_topic_bytes=77)
        wires = [
            ClassicWire(addresses, addresses, key, Order.REVERSED, limits),
            ClassicWire(addresses, addresses, key, Order.DOCUMENT, limits),
            ClassicWire(addresses, addresses, key, Order.REVERSED),
            ClassicWire(addresses, [], key, Order.REVERSED, limits),
            ClassicWire(addresses, addresses, PreSharedKey("another"), Order.REVERSED, limits),
        ]
        jobs = list(map(pickle.dumps, wires))
        assert len(set(jobs)) == len(jobs)
        for job in jobs:
            copy = pickle.loads(job)  # noqa: S301
            assert pickle.dumps(copy) == job
            assert SECRET not in repr(copy)
