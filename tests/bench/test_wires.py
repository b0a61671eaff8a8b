"""The wires of the compared systems: their output, and their records."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from bench.wires import (
    Fetched,
    JetStreamWire,
    LimitedLoad,
    Mixed,
    NatsWire,
    RedisGroupWire,
    RedisStreamWire,
    RedisWire,
    TextUnwrapper,
)
from tests.support.strategies import cut
from wsqueue.config.addresses import Address
from wsqueue.errors import WsqueueError
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.tools.bench.classic import ClassicWire
from wsqueue.tools.bench.v2 import PREFETCH
from wsqueue.tools.bench.wire import Unwrapper
from wsqueue.tools.bench.workload import Load

NATS = NatsWire("127.0.0.1", 1, frame_each=False)
NATS_FRAMES = NatsWire("127.0.0.1", 1, frame_each=True)
JETSTREAM = JetStreamWire("127.0.0.1", 1)
REDIS = RedisWire("127.0.0.1", 1)
STREAMS = RedisStreamWire("127.0.0.1", 1)
GROUP = RedisGroupWire("127.0.0.1", 1)
CLASSIC = ClassicWire([Address("127.0.0.1", 1)], [Address("127.0.0.1", 2)], PreSharedKey("key"))

TOPICS = st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True)
# The letters of control lines, so that data resemble them.
DATA = st.text("PING 1\x01~", max_size=20).map(str.encode).filter(lambda data: data != b"PING")
CUTS = st.lists(st.integers(0), max_size=8)


def unwrap(unwrapper: Unwrapper, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """Return the records and the replies, all of each."""
    records, replies = b"", b""
    for piece in pieces:
        records += unwrapper.unwrap(piece)
        replies += unwrapper.replies()
    return records, replies


def of_server(opcode: Opcode, data: bytes) -> bytes:
    return Frame(opcode, data).serialize(mask=False)


def frames_read_by_a_server(data: bytes) -> list[tuple[Opcode, bytes]]:
    server = ServerProtocol(state=OPEN, max_size=None)
    server.receive_data(data)
    assert server.parser_exc is None
    frames = [event for event in server.events_received() if isinstance(event, Frame)]
    assert all(frame.fin for frame in frames)
    return [(frame.opcode, bytes(frame.data)) for frame in frames]


@pytest.mark.parametrize("wire", [NATS, NATS_FRAMES])
@given(messages=st.lists(st.tuples(TOPICS, DATA, st.integers(0, 2)), max_size=8), frame_ends=CUTS, reads=CUTS)
def test_nats_records_come_out_whole_however_they_are_framed_and_cut(
    wire: NatsWire, messages: list[tuple[str, bytes, int]], frame_ends: list[int], reads: list[int]
) -> None:
    records = [wire.delivered(topic, data) for topic, data, _ in messages]
    pings = [count for _, _, count in messages]
    lines = b"".join(b"PING\r\n" * count + record for count, record in zip(pings, records, strict=True))
    stream = b"".join(of_server(Opcode.BINARY, part) for part in cut(lines, frame_ends))
    found, replies = unwrap(wire.unwrapper("a", Load()), cut(stream, reads))
    assert found == b"".join(records)
    if wire.frame_each:
        assert frames_read_by_a_server(replies) == [(Opcode.BINARY, b"PONG\r\n")] * sum(pings)
    else:
        assert replies == b"PONG\r\n" * sum(pings)


@pytest.mark.parametrize("size", [0, 16, 125, 126, 65_535, 65_536, 100_000])
def test_nats_frames_of_all_lengths(size: int) -> None:
    record = NATS.delivered("a", b"x" * size)
    stream = of_server(Opcode.BINARY, record) * 2
    assert unwrap(NATS.unwrapper("a", Load()), cut(stream, [len(stream) // 2 + 1])) == (record * 2, b"")
    assert frames_read_by_a_server(NATS_FRAMES.published("a", b"x" * size)) == [
        (Opcode.BINARY, NATS.published("a", b"x" * size))
    ]


def test_a_record_that_ends_like_a_ping_is_not_held_back() -> None:
    unwrapper = NATS.unwrapper("a", Load())
    record = NATS.delivered("a", b"P")
    assert unwrapper.unwrap(of_server(Opcode.BINARY, record + b"PING\r\n")) == record
    assert unwrapper.replies() == b"PONG\r\n"


def test_nats_closes() -> None:
    with pytest.raises(WsqueueError, match=r"the server sent a frame 0x88 b'\\x03\\xe8maximum payload'"):
        NATS.unwrapper("a", Load()).unwrap(
            of_server(Opcode.CLOSE, struct.pack("!H", 1000) + b"maximum payload")
        )


@given(topic=TOPICS, data=DATA)
def test_nats_publishes(topic: str, data: bytes) -> None:
    command = f"PUB {topic} {len(data)}\r\n".encode() + data + b"\r\n"
    assert NATS.published(topic, data) == command
    assert frames_read_by_a_server(NATS_FRAMES.published(topic, data)) == [(Opcode.BINARY, command)]


@given(topic=TOPICS, data=DATA, reads=CUTS)
def test_redis_publishes_and_delivers(topic: str, data: bytes, reads: list[int]) -> None:
    words = b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(topic), topic.encode(), len(data), data)
    assert REDIS.published(topic, data) == b"*3\r\n$7\r\nPUBLISH\r\n" + words
    record = REDIS.delivered(topic, data)
    assert record == b"*3\r\n$7\r\nmessage\r\n" + words
    assert unwrap(REDIS.unwrapper("a", Load()), cut(record, reads)) == (record, b"")


def jetstream_confirmation(number: int) -> bytes:
    answer = b'{"stream":"bench","seq":%d}' % number
    return b"MSG bench.confirmations 1 %d\r\n%b\r\n" % (len(answer), answer)


@given(messages=st.lists(st.tuples(DATA, st.integers(0, 2)), max_size=8), frame_ends=CUTS, reads=CUTS)
def test_jetstream_delivers_what_it_stores_however_it_is_cut(
    messages: list[tuple[bytes, int]], frame_ends: list[int], reads: list[int]
) -> None:
    lines = b"".join(
        b"PING\r\n" * pings
        + b"MSG a.b 1 $JS.ACK.bench.name.1.%d.%d.1796043834349413273.0 %d\r\n%b\r\n"
        % (number, number, len(data), data)
        for number, (data, pings) in enumerate(messages)
    )
    stream = b"".join(of_server(Opcode.BINARY, part) for part in cut(lines, frame_ends))
    found, replies = unwrap(JETSTREAM.unwrapper("a.b", Load()), cut(stream, reads))
    assert found == b"".join(JETSTREAM.delivered("a.b", data) for data, _ in messages)
    assert replies == b"PONG\r\n" * sum(pings for _, pings in messages)


@given(topic=TOPICS, data=DATA)
def test_jetstream_and_streams_are_published_to(topic: str, data: bytes) -> None:
    command = f"PUB {topic} bench.confirmations {len(data)}\r\n".encode() + data + b"\r\n"
    assert JETSTREAM.published(topic, data) == command
    words = b"$%d\r\n%b\r\n$1\r\n*\r\n$1\r\nd\r\n$%d\r\n%b\r\n" % (
        *(len(topic), topic.encode()),
        *(len(data), data),
    )
    assert STREAMS.published(topic, data) == b"*5\r\n$4\r\nXADD\r\n" + words


@given(numbers=st.sets(st.integers(1, 10**9), max_size=20), frame_ends=CUTS, reads=CUTS)
def test_confirmations_of_jetstream_are_counted_however_they_are_cut(
    numbers: set[int], frame_ends: list[int], reads: list[int]
) -> None:
    publishing = JETSTREAM.publishing(Load())
    publishing.make(0, 0, len(numbers) + 1, {})
    lines = b"PING\r\n".join(map(jetstream_confirmation, sorted(numbers)))
    stream = b"".join(of_server(Opcode.BINARY, part) for part in cut(lines, frame_ends))
    records, replies = unwrap(publishing.unwrapper(0), cut(stream, reads))
    assert (records, replies) == (b"", b"PONG\r\n" * (len(numbers) - 1))
    assert publishing.unconfirmed == 1


@given(ids=st.lists(st.tuples(st.integers(0, 10**13), st.integers(0, 10**4)), max_size=20), reads=CUTS)
def test_confirmations_of_redis_are_counted_however_they_are_cut(
    ids: list[tuple[int, int]], reads: list[int]
) -> None:
    publishing = STREAMS.publishing(Load())
    publishing.make(0, 0, len(ids) + 1, {})
    replies = [f"{milliseconds}-{number}" for milliseconds, number in ids]
    stream = "".join(f"${len(reply)}\r\n{reply}\r\n" for reply in replies).encode()
    assert unwrap(publishing.unwrapper(0), cut(stream, reads)) == (b"", b"")
    assert publishing.unconfirmed == 1


@given(replies=st.lists(st.tuples(st.lists(DATA, min_size=1, max_size=4), CUTS), max_size=4))
def test_the_next_entries_are_asked_for_once_a_reply_is_whole(
    replies: list[tuple[list[bytes], list[int]]],
) -> None:
    unwrapper = STREAMS.unwrapper("a.b", Load())
    number = 0
    for messages, reads in replies:
        stream = b"*1\r\n*2\r\n$3\r\na.b\r\n*%d\r\n" % len(messages)
        for data in messages:
            number += 1
            entry = f"1796043834349-{number}"
            fields = b"*2\r\n$1\r\nd\r\n$%d\r\n%b\r\n" % (len(data), data)
            stream += f"*2\r\n${len(entry)}\r\n{entry}\r\n".encode() + fields
        *begin, last = cut(stream, reads)
        records, early = unwrap(unwrapper, begin)
        more, command = unwrap(unwrapper, [last])
        assert records + more == b"".join(STREAMS.delivered("a.b", data) for data in messages)
        assert early == b""
        assert command.startswith(
            b"*6\r\n$5\r\nXREAD\r\n$5\r\nBLOCK\r\n$1\r\n0\r\n$7\r\nSTREAMS\r\n$3\r\na.b\r\n"
        )
        assert command.endswith(b"\r\n1796043834349-%d\r\n" % number)


@given(replies=st.lists(st.tuples(st.lists(DATA, min_size=1, max_size=4), CUTS), max_size=4))
def test_entries_of_a_group_come_out_once_they_are_acknowledged(
    replies: list[tuple[list[bytes], list[int]]],
) -> None:
    unwrapper = GROUP.unwrapper("a.b", Load())
    before, number = b"", 0
    for messages, reads in replies:
        stream = b":%d\r\n" % number if before else b""
        stream += b"*1\r\n*2\r\n$3\r\na.b\r\n*%d\r\n" % len(messages)
        ids = []
        for data in messages:
            number += 1
            ids.append(f"1796043834349-{number}".encode())
            fields = b"*2\r\n$1\r\nd\r\n$%d\r\n%b\r\n" % (len(data), data)
            stream += b"*2\r\n$%d\r\n%b\r\n" % (len(ids[-1]), ids[-1]) + fields
        *begin, last = cut(stream, reads)
        records, early = unwrap(unwrapper, begin)
        more, commands = unwrap(unwrapper, [last])
        assert (records + more, early) == (before, b"")
        before = b"".join(GROUP.delivered("a.b", data) for data in messages)
        acknowledge, _, read = commands.partition(b"*11\r\n$10\r\nXREADGROUP\r\n")
        words = [b"XACK", b"a.b", b"bench", *ids]
        bulks = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        assert acknowledge == b"*%d\r\n%b" % (len(words), bulks)
        assert read.endswith(b"$7\r\nSTREAMS\r\n$3\r\na.b\r\n$1\r\n>\r\n")


@given(messages=st.lists(DATA, max_size=3), rest=st.integers(0, 2), frame_ends=CUTS, reads=CUTS)
def test_each_message_that_is_fetched_is_acknowledged(
    messages: list[bytes], rest: int, frame_ends: list[int], reads: list[int]
) -> None:
    messages = [*messages, *[b"x"] * (PREFETCH - len(messages) - rest)]
    acks = [
        b"$JS.ACK.bench.a.1.%d.%d.1796043834349413273.0" % (number, number) for number in range(len(messages))
    ]
    lines = b"PING\r\n" + b"".join(
        b"MSG a.b 1 %b %d\r\n%b\r\n" % (ack, len(data), data)
        for ack, data in zip(acks, messages, strict=True)
    )
    stream = b"".join(of_server(Opcode.BINARY, part) for part in cut(lines, frame_ends))
    found, replies = unwrap(Fetched("a.b", b"inbox"), cut(stream, reads))
    assert found == b"".join(JETSTREAM.delivered("a.b", data) for data in messages)
    replies = replies.replace(b"PONG\r\n", b"", 1)
    fetch = b'PUB $JS.API.CONSUMER.MSG.NEXT.bench.a.b inbox 14\r\n{"batch": 100}\r\n'
    expected = b"".join(b"PUB %b 4\r\n+ACK\r\n" % ack for ack in acks)
    assert replies == (expected if rest else expected + fetch)


def test_a_fetch_that_ends_without_messages() -> None:
    status = b"HMSG inbox 1 28 28\r\nNATS/1.0 409 Consumer Deleted\r\n\r\n\r\n"
    with pytest.raises(WsqueueError, match=r"refuses: .*409 Consumer Deleted"):
        Fetched("a", b"inbox").unwrap(of_server(Opcode.BINARY, status))


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (jetstream_confirmation(7) * 2, "confirmed message 7 after 7"),
        (b"".join(map(jetstream_confirmation, range(1, 4))), "more messages than were published"),
        (b'MSG bench.confirmations 1 20\r\n{"error":{"code":503}}\r\n', "refuses: .*503"),
        (b'MSG bench.confirmations 1 43\r\n{"stream":"bench","seq":7,"duplicate":true}\r\n', "duplicate"),
        (b"-ERR 'Maximum Payload Violation'\r\n", "refuses: .*Payload"),
        (b"MSG bench.confirmations 1 " + b"9" * 1024, "unexpected bytes"),
    ],
)
def test_jetstream_does_not_confirm(stream: bytes, error: str) -> None:
    publishing = JETSTREAM.publishing(Load())
    publishing.make(0, 0, 2, {})
    with pytest.raises(WsqueueError, match=error):
        publishing.unwrapper(0).unwrap(of_server(Opcode.BINARY, stream))


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"$15\r\n1796043834349-0\r\n" * 3, "more messages than were published"),
        (b"$15\r\n1796043834349-0\r\n-OOM command not allowed\r\n", "refuses: b'-OOM command not allowed'"),
        (b"+OK\r\n" * 300, "unexpected bytes"),
    ],
)
def test_redis_does_not_confirm(stream: bytes, error: str) -> None:
    publishing = STREAMS.publishing(Load())
    publishing.make(0, 0, 2, {})
    with pytest.raises(WsqueueError, match=error):
        publishing.unwrapper(0).unwrap(stream)


def test_a_subscriber_of_a_stream_is_refused() -> None:
    with pytest.raises(WsqueueError, match="refuses: b'-WRONGTYPE'"):
        STREAMS.unwrapper("a", Load()).unwrap(b"-WRONGTYPE\r\n")


def test_a_limited_load() -> None:
    assert LimitedLoad(most=64).window(100) == 64
    assert LimitedLoad(most=64).window(65_536) == LimitedLoad().window(65_536) == Load().window(65_536) == 16


@pytest.mark.parametrize("wire", [NATS, NATS_FRAMES, JETSTREAM, REDIS, STREAMS, Mixed(NATS, (16, 30))])
@given(topic=TOPICS, data=DATA)
def test_the_length_depends_only_on_the_lengths(
    wire: NatsWire | RedisWire | Mixed, topic: str, data: bytes
) -> None:
    same = "x" * len(topic), b"y" * len(data)
    assert len(wire.published(topic, data)) == len(wire.published(*same))
    assert len(wire.delivered(topic, data)) == len(wire.delivered(*same))
    assert data in wire.delivered(topic, data)


@given(sizes=st.lists(st.sampled_from([0, 5, 100, 300, 70_000]), max_size=5), pings=CUTS, reads=CUTS)
def test_texts_of_any_sizes_come_out_whole(sizes: list[int], pings: list[int], reads: list[int]) -> None:
    mixed = Mixed(CLASSIC, tuple(sizes))
    frames = [CLASSIC.delivered("a", b"data"), *(CLASSIC.delivered("a", b"y" * size) for size in sizes)]
    record = b"".join(frames)
    assert mixed.delivered("a", b"data") == record
    assert mixed.factor == len(frames)
    for number in pings:
        frames.insert(number % (len(frames) + 1), of_server(Opcode.PING, b"%d" % number))
    unwrapper = mixed.unwrapper("a", Load())
    assert isinstance(unwrapper, TextUnwrapper)
    found, replies = unwrap(unwrapper, cut(b"".join(frames), reads))
    assert found == record
    answered = [data for _, data in frames_read_by_a_server(replies)]
    assert sorted(answered) == sorted(b"%d" % number for number in pings)


def test_a_node_closes() -> None:
    frame = of_server(Opcode.CLOSE, struct.pack("!H", 1013) + b"too slow")
    with pytest.raises(WsqueueError, match=r"0x88 .*too slow"):
        TextUnwrapper().unwrap(frame)
