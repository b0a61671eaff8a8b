"""Protocol v2 in the load generator, without sockets: batches, confirmations and deliveries."""

from __future__ import annotations

from collections import defaultdict
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN, SERVER, Protocol

from tests.support.strategies import cut
from wsqueue.errors import WsqueueError
from wsqueue.protocol import v2
from wsqueue.protocol.close import PeerError
from wsqueue.protocol.frames import frame_messages
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.protocol.packed import pack, pack_texts
from wsqueue.tools.bench.messages import SEND_BYTES
from wsqueue.tools.bench.records import Records, Template
from wsqueue.tools.bench.report import Latencies
from wsqueue.tools.bench.v2 import GroupWire, V2Wire
from wsqueue.tools.bench.workload import MIN_SIZE, Load

from ....support.messages import deliver_one

SECRET = "correct horse battery staple"
WIRE = V2Wire([], [], PreSharedKey(SECRET))
GROUP_WIRE = GroupWire([], [], PreSharedKey(SECRET))
TOPIC = "bench-0000"

places = st.lists(st.integers(0, 100_000), max_size=10)


def read(frames: bytes) -> list[v2.Packet]:
    """Return the packets that a node would read."""
    library = Protocol(SERVER, state=OPEN, max_size=None)
    library.receive_data(frames)
    assert library.parser_exc is None
    found: list[v2.Packet] = []
    for event in library.events_received():
        assert isinstance(event, Frame)
        assert event.opcode is Opcode.BINARY
        found.append(v2.decode(bytes(event.data)))
    return found


def published(frames: bytes) -> list[v2.Publish]:
    """Return the packets that a producer would read."""
    packets = read(frames)
    assert all(isinstance(packet, v2.Publish) for packet in packets)
    return cast(list[v2.Publish], packets)


def sent(*packets: v2.Packet) -> bytes:
    return frame_messages([v2.encode(packet) for packet in packets], masked=False, binary=True)


def deliver(offset: int, *data: bytes, topic: str = TOPIC) -> v2.Deliver:
    return deliver_one(topic, offset, "", 0, pack(data, text=True))


class TestBatches:
    @given(
        st.integers(1, 5),
        st.lists(
            st.tuples(st.integers(0, 1), st.integers(1, 60), st.sets(st.integers(0, 59))),
            min_size=1,
            max_size=8,
        ),
    )
    def test_each_topic_gets_its_messages_in_one_packet(
        self, topics: int, batches: list[tuple[int, int, set[int]]]
    ) -> None:
        load = Load(publishers=2, topics=topics, size=20)
        publishing, names, first = WIRE.publishing(load), load.topic_names, 7
        last: dict[tuple[int, str], int] = defaultdict(int)
        numbers = [0, 0]
        for publisher, count, stamped in batches:
            due_ns = {index: 10**12 + first + index for index in stamped if index < count}
            expected: dict[str, list[str]] = defaultdict(list)
            for index in range(count):
                data = load.stamped(due_ns[index]) if index in due_ns else load.filler
                expected[names[(first + index) % topics]].append(data.decode())
            packets = published(publishing.make(publisher, first, count, due_ns))
            assert [packet.topic for packet in packets] == list(expected)
            for packet in packets:
                assert packet.messages == pack_texts(expected[packet.topic])
                numbers[publisher] += 1
                assert (packet.number, packet.after) == (numbers[publisher], last[publisher, packet.topic])
                last[publisher, packet.topic] = packet.number
            first += count
        assert publishing.unconfirmed == first - 7

    @pytest.mark.parametrize("size", [MIN_SIZE, 100, 1000, 200_000])
    def test_a_batch_is_what_64_kib_hold(self, size: int) -> None:
        batch = WIRE.publishing(Load(size=size)).batch
        assert batch == max(1, SEND_BYTES // (size + 5))
        frames = WIRE.publishing(Load(size=size)).make(0, 0, batch, {})
        assert len(frames) <= SEND_BYTES + 200 or batch == 1
        (packet,) = published(frames)
        assert (packet.messages.count, packet.messages.whole) == (batch, True)

    def test_a_packet_has_no_more_messages_than_were_asked_for(self) -> None:
        load = Load(topics=2, batch=3, rate=1.0)
        publishing = WIRE.publishing(load)
        assert publishing.batch == WIRE.publishing(Load()).batch
        packets = published(publishing.make(0, 0, 14, {4: 7, 13: 9}))
        counts = [(packet.topic, packet.number, packet.after, packet.messages.count) for packet in packets]
        first, second = load.topic_names
        assert counts == [
            *((first, 1, 0, 3), (first, 2, 1, 3), (first, 3, 2, 1)),
            *((second, 4, 0, 3), (second, 5, 4, 3), (second, 6, 5, 1)),
        ]
        stamped = [bytes(packet.messages.data) for packet in packets]
        assert [data.count(load.stamped(7)) + 2 * data.count(load.stamped(9)) for data in stamped] == [
            *(1, 0, 0),
            *(0, 0, 2),
        ]

    def test_a_node_that_speaks_no_v2(self) -> None:
        unwrapper = WIRE.publishing(Load()).unwrapper(0)
        with pytest.raises(PeerError, match="not a valid packet"):
            unwrapper.unwrap(Frame(Opcode.BINARY, b"{}").serialize(mask=False))
        with pytest.raises(WsqueueError, match="1003"):
            unwrapper.unwrap(Frame(Opcode.TEXT, v2.encode(v2.Draining(0))).serialize(mask=False))

    @given(places)
    def test_confirmations_are_counted_wherever_they_are_cut(self, at: list[int]) -> None:
        publishing = WIRE.publishing(Load(topics=2))
        unwrapper = publishing.unwrapper(0)
        publishing.make(0, 0, 5, {})  # 3 and 2
        publishing.make(0, 5, 3, {})  # 2 and 1
        assert publishing.unconfirmed == 8
        stream = sent(v2.Ack([(4, 4), (1, 1)])) + Frame(Opcode.PING, b"x").serialize(mask=False)
        for piece in cut(stream, at):
            assert unwrapper.unwrap(piece) == b""
        assert publishing.unconfirmed == 4
        assert unwrapper.replies()[0] == 0x8A
        unwrapper.unwrap(sent(v2.Draining(1.0), v2.Ack([(2, 3)])))
        assert publishing.unconfirmed == 0

    @pytest.mark.parametrize(
        ("packet", "complaint"),
        [
            (v2.Refused(1, "full", "no room"), r"^the node refused a batch with full \(no room\)$"),
            (v2.Ack([(1, 2)]), "confirmed batch 2"),
            (v2.Unsubscribed("a"), "unexpected packet: "),
        ],
    )
    def test_what_ends_the_run(self, packet: v2.Packet, complaint: str) -> None:
        publishing = WIRE.publishing(Load())
        publishing.make(0, 0, 1, {})
        with pytest.raises(WsqueueError, match=complaint):
            publishing.unwrapper(0).unwrap(sent(packet))


class TestDeliveries:
    @given(
        st.integers(MIN_SIZE, 300),
        st.lists(st.lists(st.booleans(), min_size=1, max_size=20), max_size=8),
        places,
    )
    def test_records_come_out_whole_wherever_the_stream_is_cut(
        self, size: int, batches: list[list[bool]], at: list[int]
    ) -> None:
        load = Load(size=size)
        stream, offset = b"", 5
        for batch in batches:
            data = [load.stamped(1000) if stamp else load.filler for stamp in batch]
            stream += sent(deliver(offset, *data))
            offset += len(data)
        unwrapper, latencies = WIRE.unwrapper(TOPIC, load), Latencies()
        records = Records(Template(WIRE, TOPIC, load, 1000), latencies)
        pieces = cut(stream, at)
        assert sum(records.take(unwrapper.unwrap(piece), 3000) for piece in pieces) == offset - 5
        assert sum(latencies.counts.values()) == sum(map(sum, batches))

    def test_a_consumer_may_name_the_log_that_it_shares(self) -> None:
        data = sent(v2.Log("shared", False), deliver(0, Load().filler), v2.Log("shared", True))
        assert WIRE.unwrapper(TOPIC, Load()).unwrap(data) == WIRE.delivered(TOPIC, Load().filler)

    def test_pings_are_answered(self) -> None:
        unwrapper = WIRE.unwrapper(TOPIC, Load())
        record = WIRE.delivered(TOPIC, Load().filler)
        first, second = (sent(deliver(offset, Load().filler)) for offset in (0, 1))
        ping = Frame(Opcode.PING, b"x").serialize(mask=False)
        assert unwrapper.unwrap(first + ping + second) == 2 * record
        assert unwrapper.replies()[0] == 0x8A
        assert unwrapper.replies() == b""

    @pytest.mark.parametrize(
        ("packet", "complaint"),
        [
            (deliver(4, Load().filler), "offset 4 came instead of 2"),
            (deliver(0, Load().filler), "offset 0 came instead of 2"),
            (deliver(2, Load().filler, topic="bench-0001"), "unexpected packet: .*bench-0001"),
            (v2.Gap(TOPIC, 9, 7), "7 messages before offset 9 are gone"),
            (v2.Gap(TOPIC, 9, None), "some messages before offset 9 are gone"),
            (v2.Unsubscribed(TOPIC), "unexpected packet: "),
        ],
    )
    def test_what_ends_the_run(self, packet: v2.Packet, complaint: str) -> None:
        unwrapper = WIRE.unwrapper(TOPIC, Load())
        unwrapper.unwrap(sent(v2.Subscribed(TOPIC, "id", 0, 0), v2.Draining(0)))
        unwrapper.unwrap(sent(deliver(0, Load().filler, Load().filler)))
        with pytest.raises(WsqueueError, match=complaint):
            unwrapper.unwrap(sent(packet))

    @pytest.mark.parametrize("data", [b"hello", b"x" * 100, b"-" + b"x" * 203])
    def test_messages_of_other_publishers_are_left_to_the_records(self, data: bytes) -> None:
        load = Load()
        unwrapper = WIRE.unwrapper(TOPIC, load)
        records = Records(Template(WIRE, TOPIC, load, 1000), Latencies())
        stream = sent(deliver(0, load.filler), deliver(1, data), deliver(2, load.filler, load.filler))

        def take_all() -> None:
            records.take(unwrapper.unwrap(stream), 0)

        with pytest.raises(WsqueueError, match="does another client publish there"):
            take_all()

    def test_a_node_closes(self) -> None:
        close = Frame(Opcode.CLOSE, Close(1013, "too slow").serialize()).serialize(mask=False)
        with pytest.raises(WsqueueError, match=r"^the node closed with 1013 \(too slow\)$"):
            WIRE.unwrapper(TOPIC, Load()).unwrap(close)


class TestLoans:
    def test_messages_come_out_once_they_are_kept_as_done(self) -> None:
        unwrapper = GROUP_WIRE.unwrapper(TOPIC, Load())
        packed = [pack(data, text=True) for data in ([b"a", b"b"], [b"c"], [b"d"])]
        first, second, third = (
            v2.Lend(TOPIC, "bench", offset, messages)
            for offset, messages in zip((7, 20, 30), packed, strict=True)
        )
        assert unwrapper.unwrap(sent(v2.Joined(TOPIC, "bench", "log"), first, second)) == b""
        assert read(unwrapper.replies()) == [v2.Settle(TOPIC, "bench", 1, "log", "done", [(7, 8), (20, 20)])]
        assert unwrapper.unwrap(sent(third)) == b""
        assert read(unwrapper.replies()) == [v2.Settle(TOPIC, "bench", 2, "log", "done", [(30, 30)])]
        assert unwrapper.unwrap(sent(v2.Settled(TOPIC, "bench", 1))) == b"abc"
        assert unwrapper.replies() == b""
        assert unwrapper.unwrap(sent(v2.Settled(TOPIC, "bench", 2))) == b"d"

    @pytest.mark.parametrize(
        ("packet", "complaint"),
        [
            (v2.Left(TOPIC, "bench", "full", "too many"), r"refuses a member with full \(too many\)"),
            (v2.Unsubscribed(TOPIC), "unexpected packet: "),
        ],
    )
    def test_what_ends_the_run(self, packet: v2.Packet, complaint: str) -> None:
        with pytest.raises(WsqueueError, match=complaint):
            GROUP_WIRE.unwrapper(TOPIC, Load()).unwrap(sent(packet))
