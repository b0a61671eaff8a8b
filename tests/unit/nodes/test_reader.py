"""A subscriber's way through the log of a topic, over a connection that the test plays."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.config.keys import Keys
from wsqueue.config.model import ConsumerConfig
from wsqueue.errors import WsqueueError
from wsqueue.log import ledger, sqlite
from wsqueue.log.records import Epoch, Record, StoreState, TopicState
from wsqueue.log.store import Outcome
from wsqueue.net.certificates import TlsContexts
from wsqueue.net.connection import Handler
from wsqueue.nodes import reader
from wsqueue.nodes.clients import Clients
from wsqueue.nodes.consumer import Consumer
from wsqueue.nodes.reader import Reader, ReaderTurns
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.frames import frame_messages
from wsqueue.protocol.packed import Headers
from wsqueue.protocol.v2 import Deliver, Gap, Packet, Subscribe, Subscribed

from ...support.fake_connection import FakeConnection
from ...support.messages import append_one, deliver_one, packed
from ...support.session_pair import PSK, few
from ...support.stores import Archived, FakeArchive, Logs

anyio = pytest.mark.anyio


class Subscriber:
    """Read a topic of some logs.

    Args:
        logs: The logs.
        packet: The topic, and where to start.
        connection: A connection of the test's own.
        turns: Turns of the readers of that connection.
    """

    def __init__(
        self,
        logs: Logs,
        packet: Subscribe,
        connection: FakeConnection | None = None,
        turns: ReaderTurns | None = None,
    ) -> None:
        self.logs = logs
        self.topic = packet.topic
        self.connection = connection or FakeConnection()
        self.counters: Counter[str] = Counter()
        self.behind: set[Reader] = set()
        self.reader = Reader(
            self.connection,
            logs.store,
            packet,
            counters=self.counters,
            behind=self.behind,
            turns=turns or ReaderTurns(asyncio.Lock()),
        )
        self.reader.catch_up()

    def publish(self, *data: str | bytes) -> bool:
        """Publish a batch as a consumer would, and return whether the reader was sent it."""
        return self.deliver(self.logs.append(append_one(self.topic, packed(*data))))

    def deliver(self, outcomes: list[Outcome]) -> bool:
        """Hand stored batches to the reader."""
        records = [
            one.record for one in outcomes if one.record is not None and one.record.topic == self.topic
        ]
        frames = frame_messages([record.packet for record in records], masked=False, binary=True)
        return self.reader.take(records[0].offset, records[-1].end, frames)

    def took(self) -> list[Packet]:
        """Return the packets sent since the last call."""
        return self.connection.take()

    def writable(self) -> None:
        """Let the connection have room again."""
        self.connection.is_congested = False
        self.connection.room = None
        self.reader.catch_up()


def subscribed(logs: Logs, offset: int, end: int, topic: str = "news") -> Subscribed:
    return Subscribed(topic, logs.store.epochs.current.id, offset, end)


def deliver(offset: int, *data: str | bytes) -> Deliver:
    return deliver_one("news", offset, "", 0, packed(*data))


Packets = list[Packet]
BEFORE = Epoch("0123456789abcdef", 1)
EARLIEST = Subscribe("news", "earliest")
SECOND = Subscribe("news", "offset", None, 1)
ABC, D, EF = deliver(0, "a", "b", "c"), deliver(3, "d"), deliver(4, "e", "f")


def published(*batches: str, **limited: Any) -> Logs:
    """Return logs with batches of one-letter messages."""
    logs = Logs(**limited)
    for letters in batches:
        logs.publish("news", *letters)
    return logs


class TestStart:
    """Where a subscription begins."""

    def test_at_what_comes_now(self) -> None:
        logs = published("abc", "d")
        subscriber = Subscriber(logs, Subscribe("news"))
        assert subscriber.took() == [subscribed(logs, 4, 4)]
        assert subscriber.publish("e", "f")
        assert subscriber.took() == [EF]

    def test_at_the_earliest_message_that_is_kept(self) -> None:
        logs = published("abc", "d", "ef", max_messages_per_topic=3)
        subscriber = Subscriber(logs, EARLIEST)
        assert subscriber.took() == [subscribed(logs, 3, 6), D, EF]
        assert subscriber.counters == {"deliveries": 3}

    @anyio
    async def test_a_batch_in_the_middle_keeps_its_publisher_and_number(self) -> None:
        logs = Logs()
        logs.append(append_one("news", packed("a", "b"), "p", 7))
        subscriber = Subscriber(logs, SECOND)
        await turns()
        _, rest = subscriber.took()
        assert v2.decode(v2.encode(rest)) == rest == deliver_one("news", 1, "p", 7, packed("b"))

    @anyio
    @pytest.mark.parametrize("offset", range(5))
    @pytest.mark.parametrize("kind", ["bytes", "texts", "headers"])
    async def test_the_rest_of_a_batch_is_as_it_was_published(self, kind: str, offset: int) -> None:
        texts = ["", "ñ", "\U0001f642\0", "", "\ufeff\uffff"]
        data: list[str | bytes] = [*texts]
        if kind == "bytes":
            data = [b"", b"\xff\xfe", bytes(range(256)), b"", b"\xed\xa0\x80"]
        headers: list[Headers | None] = [None, {"id": "1"}, {}, {"id": "ñ", "type": ""}, None]
        of = headers if kind == "headers" else None
        logs = Logs()
        logs.append(append_one("news", packed(*data, headers=of)))
        subscriber = Subscriber(logs, Subscribe("news", "offset", None, offset))
        await turns()
        _, rest = subscriber.took()
        assert isinstance(rest, Deliver)
        assert (rest.offset, rest.messages.unpack()) == (offset, data[offset:])
        assert rest.messages.headers == (None if of is None else of[offset:])
        assert rest.messages.whole

    @anyio
    @pytest.mark.parametrize(
        ("kept", "log", "offset", "start", "rest"),
        [
            (9, "own", 0, 0, [ABC, D, EF]),
            *((9, log, 1, 1, [deliver(1, "b", "c"), D, EF]) for log in ("own", None)),
            (9, "own", 2, 2, [deliver(2, "c"), D, EF]),
            *((9, log, 3, 3, [D, EF]) for log in ("own", None)),
            *((9, log, 6, 6, []) for log in ("own", None)),
            # The message is gone.
            *((2, log, 0, 0, [Gap("news", 4, 4), EF]) for log in ("own", None)),
            *((2, log, 3, 3, [Gap("news", 4, 1), EF]) for log in ("own", None)),
            # In another log, what was read there is not known: the subscriber gets all that is kept.
            *((3, "another", offset, 3, [Gap("news", 3, None), D, EF]) for offset in (0, 4, 6, 1000)),
            # Beyond the end, for example because a consumer has lost batches that it had not written yet.
            (9, "own", 7, 6, [Gap("news", 6, None)]),
            (9, None, 7, 0, [Gap("news", 0, None), ABC, D, EF]),
        ],
    )
    async def test_at_an_offset(
        self, kept: int, log: str | None, offset: int, start: int, rest: Packets
    ) -> None:
        logs = published("abc", "d", "ef", max_messages_per_topic=kept)
        log_id = logs.store.epochs.current.id if log == "own" else log
        subscriber = Subscriber(logs, Subscribe("news", "offset", log_id, offset))
        await turns()
        assert subscriber.took() == [subscribed(logs, start, 6), *rest]
        assert subscriber.counters["gaps"] == sum(isinstance(packet, Gap) for packet in rest)
        assert subscriber.publish("g")
        assert subscriber.took() == [deliver(6, "g")]

    def test_before_the_start_of_a_topic_that_was_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ledger, "MAX_EMPTY_TOPICS", 1)
        logs = published("abc")
        logs.clock.now += 4000
        logs.store.trim()
        logs.store.topic("other")
        subscriber = Subscriber(logs, Subscribe("news", "offset", logs.store.epochs.current.id, 1))
        assert subscriber.took() == [subscribed(logs, 3, 3), Gap("news", 3, None)]

    @anyio
    @pytest.mark.parametrize(
        ("seconds", "offset", "rest"),
        [
            (0.0, 0, [deliver(0, "a", "b"), deliver(2, "c")]),
            (1000.0, 0, [deliver(0, "a", "b"), deliver(2, "c")]),
            (1000.5, 2, [deliver(2, "c")]),
            (1001.5, 3, []),
        ],
    )
    async def test_at_a_time(self, seconds: float, offset: int, rest: list[Packet]) -> None:
        logs = published("ab")
        logs.clock.now += 1
        logs.publish("news", "c")
        subscriber = Subscriber(logs, Subscribe("news", "time", time=seconds))
        assert subscriber.took() == []
        await asyncio.sleep(0)
        assert subscriber.took() == [subscribed(logs, offset, 3), *rest]
        assert subscriber.publish("d")
        assert subscriber.took() == [deliver(3, "d")]

    @anyio
    async def test_what_comes_while_a_time_is_looked_up(self) -> None:
        logs = published("a")
        subscriber = Subscriber(logs, Subscribe("news", "time", time=0))
        assert not subscriber.publish("b")
        await asyncio.sleep(0)
        assert subscriber.took() == [subscribed(logs, 0, 2), deliver(0, "a"), deliver(1, "b")]


class TestFallingBehind:
    """A subscriber that is slow reads the log, as fast as it can."""

    @pytest.fixture
    def subscriber(self) -> Subscriber:
        subscriber = Subscriber(Logs(), Subscribe("news"))
        subscriber.took()
        return subscriber

    def test_it_is_sent_nothing_while_it_is_congested(self, subscriber: Subscriber) -> None:
        subscriber.connection.is_congested = True
        assert [subscriber.publish(data) for data in "ab"] == [False, False]
        assert (subscriber.took(), subscriber.counters) == ([], {"fell_behind": 1})
        subscriber.writable()
        assert subscriber.took() == [deliver(0, "a"), deliver(1, "b")]
        assert subscriber.publish("c")
        assert subscriber.took() == [deliver(2, "c")]
        assert subscriber.counters == {"fell_behind": 1, "deliveries": 2}

    def test_it_is_among_those_behind_until_it_has_caught_up(self, subscriber: Subscriber) -> None:
        subscriber.publish("a", "b")
        assert (subscriber.behind, subscriber.reader.missing) == (set(), 0)
        subscriber.connection.is_congested = True
        subscriber.publish("c", "d")
        subscriber.publish("e")
        assert (subscriber.behind, subscriber.reader.missing) == ({subscriber.reader}, 3)
        subscriber.connection.is_congested = False
        subscriber.connection.room = 1
        subscriber.reader.catch_up()
        # What is sent counts no more, though it may still be on its way.
        assert (subscriber.behind, subscriber.reader.missing) == ({subscriber.reader}, 0)
        subscriber.writable()
        assert (subscriber.behind, subscriber.reader.missing) == (set(), 0)

    def test_who_begins_in_the_past_is_not_behind(self) -> None:
        connection = FakeConnection()
        connection.is_congested = True
        subscriber = Subscriber(published("abc", "d"), EARLIEST, connection)
        subscriber.publish("e")
        assert (subscriber.behind, subscriber.reader.missing) == (set(), 5)
        subscriber.writable()
        assert (subscriber.behind, subscriber.reader.missing) == (set(), 0)

    @pytest.mark.parametrize(
        "start", [Subscribe("news"), EARLIEST, Subscribe("news", "offset", "another", 0)]
    )
    def test_it_has_a_right_to_all_that_comes_after_the_beginning(self, start: Subscribe) -> None:
        """Although it can't know that it missed the messages before."""
        subscriber = Subscriber(published("a", max_messages_per_topic=2), start)
        subscriber.took()
        subscriber.connection.is_congested = True
        for number in range(4):
            subscriber.publish(str(number))
        # Messages that the log has dropped are missing too, until the gap is told.
        assert subscriber.reader.missing == 4
        subscriber.writable()
        assert (subscriber.behind, subscriber.reader.missing) == (set(), 0)
        assert subscriber.took() == [Gap("news", 3, 2), deliver(3, "2"), deliver(4, "3")]

    @pytest.mark.parametrize("start", [EARLIEST, Subscribe("news", "offset", "another", 0)])
    @pytest.mark.parametrize("first", [[], ["a"]], ids=["nothing", "a message"])
    def test_it_has_a_right_to_all_that_comes_to_an_empty_log(
        self, start: Subscribe, first: list[str]
    ) -> None:
        """Once it was live, there is nothing before the beginning any more."""
        subscriber = Subscriber(published(max_messages_per_topic=2), start)
        for data in first:
            assert subscriber.publish(data)
        subscriber.took()
        subscriber.connection.is_congested = True
        for data in "wxyz":
            subscriber.publish(data)
        subscriber.writable()
        last = len(first) + 2
        assert subscriber.took() == [Gap("news", last, 2), deliver(last, "y"), deliver(last + 1, "z")]

    def test_it_reads_no_more_at_a_time_than_it_takes(self) -> None:
        logs = Logs()
        for _ in range(10):
            logs.publish("news", "x" * reader.CHUNK_BYTES)
        connection = FakeConnection()
        connection.room = reader.CHUNK_BYTES
        subscriber = Subscriber(logs, EARLIEST, connection)
        assert [type(packet) for packet in subscriber.took()] == [Subscribed, Deliver]
        for _ in range(4):
            connection.room = reader.CHUNK_BYTES + 150
            subscriber.reader.catch_up()
            assert len(subscriber.took()) == 2
        assert not subscriber.publish("late")
        subscriber.writable()
        assert [packet.offset for packet in subscriber.took() if isinstance(packet, Deliver)] == [9, 10]
        assert subscriber.counters["fell_behind"] == 0

    def test_its_topic_is_not_forgotten_while_nothing_comes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Otherwise the next message would have another offset, and look like a gap."""
        monkeypatch.setattr(ledger, "MAX_EMPTY_TOPICS", 2)
        logs = published("abc")

        def crowd_out() -> None:
            logs.clock.now += 4000
            logs.store.trim()
            for number in range(10):
                logs.store.topic(str(number))

        one, two = Subscriber(logs, Subscribe("news")), Subscriber(logs, Subscribe("news"))
        one.reader.stop()
        two.took()
        logs.publish("other", *"x" * 10)
        crowd_out()
        assert two.publish("d")
        assert two.took() == [deliver(3, "d")]
        two.reader.stop()
        crowd_out()
        assert logs.store.topic("news").start == 10

    def test_very_much_at_once_is_read_from_the_log(self, subscriber: Subscriber) -> None:
        assert not subscriber.publish("x" * reader.MAX_FRAMES_BYTES)
        assert [type(packet) for packet in subscriber.took()] == [Deliver]
        assert subscriber.publish("next")
        assert subscriber.took() == [deliver(1, "next")]

    def test_a_connection_that_ends_is_sent_nothing(self, subscriber: Subscriber) -> None:
        subscriber.connection.fail(CloseCode.TRY_AGAIN_LATER)
        assert not subscriber.publish("a")
        subscriber.reader.catch_up()
        assert subscriber.took() == []

    def test_one_that_was_stopped_is_not_behind_and_is_sent_nothing(self, subscriber: Subscriber) -> None:
        subscriber.connection.is_congested = True
        subscriber.publish("a")
        assert subscriber.behind == {subscriber.reader}
        subscriber.reader.stop()
        assert subscriber.behind == set()
        subscriber.connection.is_congested = False
        assert not subscriber.publish("b")
        assert subscriber.took() == []

    @few
    @given(
        st.lists(
            st.one_of(
                st.integers(1, 3).map(lambda count: ("publish", count)),
                st.booleans().map(lambda congested: ("is_congested", int(congested))),
                st.integers(0, 1500).map(lambda room: ("room", room)),
                st.just(("age", 0)),
            ),
            max_size=40,
        ),
        st.sampled_from([Subscribe("news"), EARLIEST, Subscribe("news", "offset", None, 0)]),
    )
    def test_any_history(self, history: list[tuple[str, int]], packet: Subscribe) -> None:
        """Every message comes once and in order, or is in a gap."""
        logs = published("abc", "d", max_messages_per_topic=5, max_age_seconds=10)
        subscriber = Subscriber(logs, packet)
        taken: list[Packet] = []
        for step, value in history:
            if step == "publish":
                subscriber.publish(*["x"] * value)
            elif step == "age":
                logs.clock.now += 6
                logs.store.trim()
            else:
                setattr(subscriber.connection, step, value)
                subscriber.reader.catch_up()
            taken += subscriber.took()
        subscriber.writable()
        first, *rest = [*taken, *subscriber.took()]
        assert isinstance(first, Subscribed)
        offset, gaps = first.offset, 0
        for one in rest:
            if isinstance(one, Gap):
                assert one.missed == one.offset - offset
                offset, gaps = one.offset, gaps + 1
            else:
                assert isinstance(one, Deliver)
                assert one.offset == offset
                offset += one.messages.count
        assert (offset, gaps) == (logs.store.topic("news").next, subscriber.counters["gaps"])
        assert subscriber.publish("last")


@few
@given(
    st.lists(st.integers(1, 4), max_size=12),
    st.integers(1, 30) | st.just(v2.MAX_NUMBER),
    st.integers(1, 30),
    st.integers(0, 3),
)
def test_the_last_messages(batches: list[int], count: int, kept: int, later: int) -> None:
    """They are as many as were asked for and are kept; none is told as missing, and the next ones follow."""

    async def check() -> None:
        logs = Logs(max_messages_per_topic=kept)
        letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        for size in batches:
            logs.publish("news", *[next(letters) for _ in range(size)])
        topic = logs.store.topic("news")
        wanted = min(count, topic.next - logs.store.earliest(topic))
        subscriber = Subscriber(logs, Subscribe("news", "last", count=count))
        await turns()
        for _ in range(later):
            assert subscriber.publish(next(letters))
        begun, *rest = subscriber.took()
        assert begun == subscribed(logs, sum(batches) - wanted, sum(batches))
        expected = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[: sum(batches) + later]
        got = [data for one in rest if isinstance(one, Deliver) for data in one.messages.unpack()]
        assert got == list(expected[len(expected) - wanted - later :])
        assert (subscriber.counters["gaps"], len(subscriber.behind)) == (0, 0)

    asyncio.run(check())


class ReadableArchive(FakeArchive):
    """A fake archive that can be read, and trimmed, while the test does something else."""

    meanwhile = staticmethod(lambda: None)

    async def read(self, topic: str, offset: int, max_bytes: int) -> list[Record]:
        found = [record for record in self.stored if record.topic == topic and record.end > offset]
        await asyncio.sleep(0)
        self.meanwhile()
        return found[: max(1, max_bytes // 1000)]

    async def offset_at(self, topic: str, time: float) -> int:
        await asyncio.sleep(0)
        self.meanwhile()
        later = (record.offset for record in self.stored if record.topic == topic and record.time >= time)
        return next(later, self.stored[-1].end)


async def turns() -> None:
    """Let everything happen that is due."""
    for _ in range(20):
        await asyncio.sleep(0)


@anyio
async def test_a_subscriber_that_takes_all_gets_it_in_turns() -> None:
    logs = Logs()
    count, size = 50, 100_000
    for number in range(count):
        logs.publish("news", f"{number}" + "x" * size)
    subscriber = Subscriber(logs, EARLIEST)
    came: list[int] = []
    while len(came) < count:
        packets = [packet for packet in subscriber.took() if isinstance(packet, Deliver)]
        assert len(packets) * size <= reader.TURN_CHUNKS * (reader.CHUNK_BYTES + size)
        came += [packet.offset for packet in packets]
        await asyncio.sleep(0)
    assert came == list(range(count))
    assert subscriber.publish("live")
    # One that is stopped between two turns gets no more.
    stopped = Subscriber(logs, EARLIEST)
    stopped.reader.stop()
    took = len(stopped.took())
    await asyncio.sleep(0)
    assert took < count
    assert stopped.took() == []


@anyio
class TestCutting:
    """Records that begin before the start of a subscriber are cut in turns."""

    async def test_a_turn_of_the_loop_cuts_one_record_of_all_connections(self) -> None:
        cutting = asyncio.Lock()
        logs, connections = published("abc"), [FakeConnection() for _ in range(3)]
        for connection in connections:
            of_connection = ReaderTurns(cutting)
            for _ in range(4):
                Subscriber(logs, SECOND, connection, of_connection)
            assert connection.take() == [subscribed(logs, 1, 3)] * 4
        came: list[int] = []
        for _ in range(100):
            await asyncio.sleep(0)
            taken = [connection.take() for connection in connections]
            assert sum(map(len, taken)) <= 1
            came += [index for index, packets in enumerate(taken) if packets == [deliver(1, "b", "c")]]
        # Connections take turns.
        assert came == [0, 1, 2] * 4

    async def test_the_readers_of_one_connection_cut_one_record_in_a_turn(self) -> None:
        logs, connection, of_connection = published("abc"), FakeConnection(), ReaderTurns(asyncio.Lock())
        for _ in range(9):
            Subscriber(logs, SECOND, connection, of_connection)
        connection.take()
        taken = []
        for _ in range(30):
            await asyncio.sleep(0)
            taken.append(len(connection.take()))
        assert (sum(taken), max(taken)) == (9, 1)

    async def test_all_connections_of_a_consumer_take_turns(self) -> None:
        config = ConsumerConfig(listen=["127.0.0.1:1"])
        consumer = Consumer(config, Keys(PSK, PSK), Counter(), TlsContexts(config), Clients(Counter()))
        consumer.logs.append([append_one("news", packed("a", "b", "c"))])
        connections = [FakeConnection() for _ in range(5)]
        for connection in connections:
            endpoint = consumer.endpoint("/subscribe")
            assert isinstance(endpoint, Handler)
            endpoint.received(connection, [SECOND])
            assert len(connection.take()) == 1
        taken = []
        for _ in range(30):
            await asyncio.sleep(0)
            taken.append(sum(len(connection.take()) for connection in connections))
        assert (sum(taken), max(taken)) == (5, 1)

    @pytest.mark.parametrize("waits_for", ["its connection", "another connection"])
    async def test_one_that_is_stopped_meanwhile(self, waits_for: str) -> None:
        logs, cutting = published("abc"), asyncio.Lock()
        await cutting.acquire()
        of_connection, connection = ReaderTurns(cutting), FakeConnection()
        first = Subscriber(logs, SECOND, connection, of_connection)
        second = Subscriber(logs, SECOND, connection, of_connection)
        await turns()
        connection.take()
        (second if waits_for == "its connection" else first).reader.stop()
        cutting.release()
        await turns()
        assert connection.take() == [deliver(1, "b", "c")]
        assert not cutting.locked()

    @pytest.mark.parametrize("waits_for", ["its connection", "another connection"])
    async def test_a_record_that_is_dropped_meanwhile(self, waits_for: str) -> None:
        logs, cutting = published("abc", max_messages_per_topic=3), asyncio.Lock()
        subscriber = Subscriber(logs, SECOND, turns=ReaderTurns(cutting))
        if waits_for == "another connection":
            await cutting.acquire()
            await turns()
            cutting.release()
        assert not subscriber.publish("d", "e")
        await turns()
        assert subscriber.took() == [subscribed(logs, 1, 3), Gap("news", 3, 2), deliver(3, "d", "e")]
        assert subscriber.publish("f")

    async def test_a_connection_that_is_congested_meanwhile(self) -> None:
        logs, cutting = published("abc", "d"), asyncio.Lock()
        await cutting.acquire()
        subscriber = Subscriber(logs, SECOND, turns=ReaderTurns(cutting))
        await turns()
        subscriber.connection.is_congested = True
        cutting.release()
        await turns()
        assert subscriber.took() == [subscribed(logs, 1, 4)]
        subscriber.writable()
        await turns()
        assert subscriber.took() == [deliver(1, "b", "c"), D]
        assert subscriber.publish("e")

    async def test_messages_that_come_meanwhile(self) -> None:
        subscriber = Subscriber(published("abc"), SECOND)
        assert not subscriber.publish("d")
        await turns()
        assert subscriber.took() == [subscribed(subscriber.logs, 1, 3), deliver(1, "b", "c"), D]

    async def test_one_who_starts_at_the_first_message_of_a_record_does_not_wait(self) -> None:
        logs, cutting = published("abc", "d"), asyncio.Lock()
        await cutting.acquire()
        subscriber = Subscriber(logs, Subscribe("news", "offset", None, 0), turns=ReaderTurns(cutting))
        assert subscriber.took() == [subscribed(logs, 0, 4), ABC, D]


@anyio
class TestArchive:
    """Messages that are not in memory are read from the archive."""

    archive: ReadableArchive

    @pytest.fixture(autouse=True)
    def fake(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(sqlite, "Archive", ReadableArchive)
        monkeypatch.setattr(sqlite, "CACHE_BYTES", 0)
        return iter([None])

    async def logs(self, *batches: str) -> Archived:
        logs = await Archived.opened()
        assert isinstance(logs.archive, ReadableArchive)
        self.archive = logs.archive
        for letters in batches:
            logs.append(append_one("news", packed(*letters)))
            logs.archive.commit()
            logs.clock.now += 10
        assert logs.in_memory("news") == []
        return logs

    def publish(self, subscriber: Subscriber, *data: str) -> bool:
        subscriber.logs.append(append_one("news", packed(*data)))
        return self.commit(subscriber)

    def commit(self, subscriber: Subscriber, count: int | None = None) -> bool:
        known = len(subscriber.logs.outcomes)
        self.archive.commit(count)
        return subscriber.deliver(subscriber.logs.outcomes[known:])

    @pytest.mark.parametrize(
        ("packet", "dropped", "starts", "rest"),
        [
            (EARLIEST, 0, [0], [ABC, D, EF]),
            # Nothing is missed, but the subscriber must learn where it starts, because that may be the end.
            (EARLIEST, 2, [0, 4], [EF]),
            (EARLIEST, 3, [0, 6], []),
            (SECOND, 0, [1], [deliver(1, "b", "c"), D, EF]),
            (SECOND, 2, [1], [Gap("news", 4, 3), EF]),
            (Subscribe("news", "time", time=1010), 0, [3], [D, EF]),
            (Subscribe("news", "last", count=5), 0, [1], [deliver(1, "b", "c"), D, EF]),
            (Subscribe("news", "last", count=9), 0, [0], [ABC, D, EF]),
            # Last messages that have been dropped in the meantime are no gap either.
            (Subscribe("news", "last", count=5), 2, [1, 4], [EF]),
            (Subscribe("news", "last", count=5), 3, [1, 6], []),
        ],
    )
    async def test_from(self, packet: Subscribe, dropped: int, starts: list[int], rest: list[Packet]) -> None:
        logs = await self.logs("abc", "d", "ef")
        subscriber = Subscriber(logs, packet)
        del self.archive.stored[:dropped]
        await turns()
        assert subscriber.took() == [*(subscribed(logs, start, 6) for start in starts), *rest]
        assert subscriber.counters["gaps"] == sum(isinstance(one, Gap) for one in rest)
        assert self.publish(subscriber, "g")
        assert subscriber.took() == [deliver(6, "g")]

    @pytest.mark.parametrize("start", ["earliest", "offset"])
    async def test_what_is_committed_during_a_read_is_not_missed(self, start: Any) -> None:
        """Not even when that read has found nothing, since all has been dropped before."""
        logs = await self.logs("abc")
        subscriber = Subscriber(logs, Subscribe("news", start, None, 1 if start == "offset" else None))
        self.archive.stored.clear()

        def commit() -> None:
            if len(logs.outcomes) == 1:
                assert not self.publish(subscriber, "d")

        self.archive.meanwhile = commit
        await turns()
        first, second, *rest = subscriber.took()
        assert isinstance(first, Subscribed)
        assert second == (subscribed(logs, 3, 4) if start == "earliest" else Gap("news", 3, 2))
        assert rest == [deliver(3, "d")]

    async def test_what_the_archive_knows_before_it_has_been_told(self) -> None:
        """Its reader may find records that its writer has committed and not reported yet."""
        logs = await self.logs("ab")
        subscriber = Subscriber(logs, EARLIEST)
        logs.append(append_one("news", packed("c")), append_one("news", packed("d")))
        self.archive.stored += self.archive.queue
        await turns()
        rest = [deliver(0, "a", "b"), deliver(2, "c"), D]
        assert subscriber.took() == [subscribed(logs, 0, 2), *rest]
        del self.archive.stored[1:]
        assert not self.commit(subscriber, 1)
        assert not self.commit(subscriber)
        await turns()
        assert subscriber.took() == []
        assert self.publish(subscriber, "e")
        assert subscriber.took() == [deliver(4, "e")]

    @pytest.mark.parametrize("packet", [EARLIEST, Subscribe("news", "time", time=0)])
    async def test_an_unreadable_one(self, packet: Subscribe, caplog: pytest.LogCaptureFixture) -> None:
        logs = await self.logs("abc")
        self.archive.meanwhile = mock.Mock(side_effect=WsqueueError("the archive cannot be read"))
        subscriber = Subscriber(logs, packet)
        await turns()
        assert subscriber.connection.failed is CloseCode.INTERNAL_ERROR
        assert not any(isinstance(one, Deliver | Gap) for one in subscriber.took())
        (record,) = caplog.records
        assert record.message.startswith("archive unreadable")

    async def test_one_that_is_stopped_while_it_reads(self) -> None:
        logs = await self.logs("abc")
        for packet in (EARLIEST, Subscribe("news", "time", time=0)):
            subscriber = Subscriber(logs, packet)
            await asyncio.sleep(0)
            subscriber.reader.stop()
            await turns()
            assert not any(isinstance(one, Deliver) for one in subscriber.took())

    async def test_one_that_is_congested_reads_no_further(self) -> None:
        logs = await self.logs(*("x" * 1000 for _ in range(5)))
        connection = FakeConnection()
        subscriber = Subscriber(logs, EARLIEST, connection)
        connection.room = 1
        await turns()
        # One read finds all there is; the subscriber must take that first.
        assert len([one for one in subscriber.took() if isinstance(one, Deliver)]) == 5
        assert not self.publish(subscriber, "late")
        await turns()
        assert subscriber.took() == []
        subscriber.writable()
        await turns()
        assert [one.offset for one in subscriber.took() if isinstance(one, Deliver)] == [5000]

    async def test_the_lookups_of_a_connection_come_one_after_another(self) -> None:
        logs = await self.logs("abc")
        running = 0

        async def offset_at(topic: str, time: float) -> int:
            nonlocal running
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            running -= 1
            return 0

        self.archive.offset_at = offset_at  # type: ignore[method-assign]
        packet, connection = Subscribe("news", "time", time=0), FakeConnection()
        shared: dict[str, Any] = {
            "counters": Counter(),
            "behind": set(),
            "turns": ReaderTurns(asyncio.Lock()),
        }
        readers = [Reader(connection, logs.store, packet, **shared) for _ in range(9)]
        readers.pop().stop()
        await turns()
        assert connection.take().count(subscribed(logs, 0, 3)) == 8

    async def waiting_to_cut(self, *data: str) -> tuple[Archived, asyncio.Lock, Subscriber]:
        """Return a log, a lock that is taken, and a subscriber that waits for it inside the first record."""
        logs, cutting = await self.logs(*data), asyncio.Lock()
        await cutting.acquire()
        subscriber = Subscriber(logs, SECOND, turns=ReaderTurns(cutting))
        await turns()
        return logs, cutting, subscriber

    async def test_only_one_who_starts_inside_a_record_waits_for_those_that_cut(self) -> None:
        logs = await self.logs("abc", "d", "ef")
        cutting = asyncio.Lock()
        await cutting.acquire()
        inside = Subscriber(logs, SECOND, turns=ReaderTurns(cutting))
        at_the_first = Subscriber(logs, Subscribe("news", "offset", None, 3), turns=ReaderTurns(cutting))
        await turns()
        assert at_the_first.took() == [subscribed(logs, 3, 6), D, EF]
        assert inside.took() == [subscribed(logs, 1, 6)]
        cutting.release()
        await turns()
        assert inside.took() == [deliver(1, "b", "c"), D, EF]

    async def test_a_record_that_is_dropped_before_it_is_cut(self) -> None:
        logs, cutting, subscriber = await self.waiting_to_cut("abc", "d", "ef")
        del self.archive.stored[0]
        cutting.release()
        await turns()
        assert subscriber.took() == [subscribed(logs, 1, 6), Gap("news", 3, 2), D, EF]

    async def test_one_that_is_stopped_before_it_cuts_reads_no_more(self) -> None:
        logs, cutting, subscriber = await self.waiting_to_cut("abc")
        subscriber.reader.stop()
        self.archive.meanwhile = mock.Mock()
        cutting.release()
        await turns()
        assert subscriber.took() == [subscribed(logs, 1, 3)]
        self.archive.meanwhile.assert_not_called()

    async def test_one_that_becomes_unreadable_before_it_is_cut(self) -> None:
        _logs, cutting, subscriber = await self.waiting_to_cut("abc")
        self.archive.meanwhile = mock.Mock(side_effect=WsqueueError("the archive cannot be read"))
        cutting.release()
        await turns()
        assert subscriber.connection.failed is CloseCode.INTERNAL_ERROR
        assert not cutting.locked()

    async def test_it_goes_on_after_a_restart(self) -> None:
        state = StoreState(epochs=[BEFORE], topics={"news": TopicState(0, 4, 1)}, numbers={})
        logs = await Archived.opened(state)
        subscriber = Subscriber(logs, Subscribe("news", "offset", BEFORE.id, 4))
        await turns()
        assert subscriber.took() == [subscribed(logs, 4, 4)]
        subscriber = Subscriber(logs, Subscribe("news", "offset", BEFORE.id, 5))
        await turns()
        assert subscriber.took() == [subscribed(logs, 4, 4), Gap("news", 4, None)]


@pytest.mark.parametrize(("offset", "gaps"), [(1, [1]), (2, []), (3, [None])])
@anyio
async def test_an_epoch_whose_last_messages_were_just_dropped(offset: int, gaps: list[int | None]) -> None:
    """Its end is known, so that a subscriber which has read all of it is told of no gap."""
    logs = Logs(max_messages_per_topic=2)
    logs.publish("news", "a")
    logs.publish("news", "b")
    before = logs.store.epochs.current.id
    logs.store.begin_epoch()
    logs.publish("news", "c")
    logs.publish("news", "d")
    subscriber = Subscriber(logs, Subscribe("news", "offset", before, offset))
    await asyncio.sleep(0.01)
    packets = subscriber.took()
    assert [packet.missed for packet in packets if isinstance(packet, Gap)] == gaps
    assert next(packet.offset for packet in packets if isinstance(packet, Deliver)) == 2
