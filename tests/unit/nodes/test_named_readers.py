"""Named readers at a consumer, over connections that the test plays."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

from wsqueue.errors import StorageError
from wsqueue.log import states
from wsqueue.log.states import State
from wsqueue.nodes import named_readers
from wsqueue.nodes.named_readers import Kept, NamedReaders
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode

from ...support.fake_connection import FakeConnection
from ...support.fake_engine import FakeLog
from ...support.stores import Logs
from .test_shared_consumers import LOST, STREAMS, Shared, chain, messages_in, settled

pytestmark = pytest.mark.anyio

EARLIEST = v2.Subscribe("news", "earliest", reader="r")


class Place:
    """The named readers of a store in memory, and one connection."""

    def __init__(self) -> None:
        self.logs = Logs()
        self.counters: Counter[str] = Counter()
        self.readers = NamedReaders(self.logs.store, self.counters, self.logs.clock)
        self.connection = FakeConnection()
        self.begun: list[v2.Subscribe] = []

    @property
    def log(self) -> str:
        return self.logs.store.epochs.current.id

    def use(self) -> named_readers.NamedReader:
        reader = self.readers.find("news", "r")
        reader.join(self.connection)
        return reader

    def commit(self, offset: int, log: str | None = None) -> v2.Commit:
        packet = v2.Commit("news", "r", self.log if log is None else log, offset)
        self.use().commit(self.connection, packet)
        return packet

    async def keep(self, offset: int, log: str | None = None) -> int:
        """Commit an offset, and return the one that is kept then."""
        packet = self.commit(offset, log)
        await settled(lambda: bool(self.connection.packets))
        assert self.connection.take() == [v2.Committed("news", "r", packet.log, offset)]
        return (await self.kept()).offset

    async def kept(self) -> Kept:
        state = await self.logs.store.state("news", "reader/r")
        assert state is not None
        return msgspec.msgpack.decode(state.value, type=Kept)

    async def begin(self, packet: v2.Subscribe = EARLIEST) -> v2.Subscribe:
        """Begin a subscription, and return the packet with which it begins."""
        self.use().look_up(self.connection, packet, self.begun.append)
        await settled(lambda: bool(self.begun))
        return self.begun.pop()


async def test_positions_of_logs_that_nobody_knows_put_no_other_aside() -> None:
    place = Place()
    place.logs.publish("news", *"abcdef")
    other = FakeConnection()
    reader = place.use()
    packet = place.commit(5)
    reader.join(other)
    for number in range(named_readers.MAX_LOGS + 1):
        reader.commit(other, v2.Commit("news", "r", f"{number:016x}", 1))
    await settled(lambda: bool(place.connection.packets))
    assert place.connection.take() == [v2.Committed("news", "r", packet.log, 5)]
    assert (await place.kept()).offset == 5


async def test_a_position_that_is_put_aside_is_not_confirmed() -> None:
    place = Place()
    place.logs.publish("news", *"abcdef")
    other = FakeConnection()
    reader = place.use()
    reader.join(other)
    place.commit(1, "0123456789abcdef")
    for number in range(named_readers.MAX_LOGS):
        packet = v2.Commit("news", "r", f"{number:016x}", 1)
        reader.commit(other, packet)
    await settled(lambda: bool(other.packets))
    assert other.take() == [v2.Committed("news", "r", packet.log, 1)]
    assert place.connection.packets == []


async def test_positions_of_earlier_epochs() -> None:
    place = Place()
    place.logs.publish("news", *"abcdef")
    first = place.log
    assert await place.keep(2) == 2
    place.logs.store.begin_epoch()
    place.logs.publish("news", *"gh")
    # The application still has messages of that epoch.
    assert await place.keep(6, first) == 6
    assert (await place.kept()).log == place.log != first
    # It ended at 6, so that 7 was read in a history that this log lacks.
    assert await place.keep(7, first) == 6
    assert await place.keep(7) == 7
    assert await place.keep(3, first) == 7
    assert place.counters["reader_commits"] == 3


async def test_a_reader_of_an_earlier_epoch_is_one_of_this_once_it_begins() -> None:
    place = Place()
    place.logs.publish("news", *"abc")
    await place.keep(2)
    place.logs.store.begin_epoch()
    assert await place.begin() == v2.Subscribe("news", "offset", place.log, 2)
    assert (await place.kept()).log == place.log


async def test_a_position_of_a_log_that_is_lost_is_replaced() -> None:
    place = Place()
    place.logs.publish("news", *"abc")
    lost = Kept("lost", 100, 0)
    await place.logs.store.change_state("news", "reader/r", msgspec.msgpack.encode(lost), 0)
    # So the subscriber is told of the gap.
    assert await place.begin() == v2.Subscribe("news", "offset", "lost", 100)
    assert await place.keep(1) == 1


async def test_a_new_reader() -> None:
    place = Place()
    place.logs.publish("news", *"abc")
    latest = v2.Subscribe("news", "latest", reader="r")
    assert await place.begin(latest) == v2.Subscribe("news", "offset", place.log, 3)
    place.logs.publish("news", "d")
    assert await place.begin(latest) == v2.Subscribe("news", "offset", place.log, 3)
    assert await place.begin() == v2.Subscribe("news", "offset", place.log, 3)


@pytest.mark.parametrize("how", ["connected", "coming back"])
async def test_a_reader_without_new_messages_is_used_too(how: str) -> None:
    """Else it would expire, at this consumer after a restart, or at another one of the log."""
    place = Place()
    place.logs.publish("news", *"abc")
    await place.keep(2)
    for used in (1000, 1000 + named_readers.RENEW_SECONDS):
        place.logs.clock.now = used
        if how == "connected":
            place.readers.renew()
            await place.use().settled()
        else:
            await place.begin()
        assert await place.kept() == Kept(place.log, 2, int(used))
    assert place.counters["reader_commits"] == 2


async def test_a_position_that_cannot_be_kept_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(named_readers, "RETRY_SECONDS", 0.0)
    place = Place()
    place.logs.publish("news", *"abc")
    change, failures = place.logs.store.change_state, iter(range(3))

    async def failing(topic: str, name: str, value: bytes, version: int) -> int:
        if next(failures, None) is not None:
            raise StorageError("no room")
        return await change(topic, name, value, version)

    monkeypatch.setattr(place.logs.store, "change_state", failing)
    assert await place.keep(2) == 2
    assert caplog.text.count("reader not kept") == 1


async def test_what_a_connection_has_said_that_is_lost_is_kept() -> None:
    place = Place()
    place.logs.publish("news", *"abc")
    place.commit(2)
    place.use().leave(place.connection)
    await settled(lambda: not len(place.readers))
    assert (await place.kept()).offset == 2
    assert place.connection.take() == []
    assert len(place.readers) == 0


async def test_a_position_that_cannot_be_kept_is_forgotten_with_the_last_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(named_readers, "RETRY_SECONDS", 0.0)
    place = Place()
    place.logs.publish("news", *"abc")

    async def failing(topic: str, name: str, value: bytes, version: int) -> int:
        raise StorageError("no room")

    monkeypatch.setattr(place.logs.store, "change_state", failing)
    place.commit(2)
    await settled(lambda: "reader not kept" in caplog.text)
    place.use().leave(place.connection)
    await settled(lambda: not len(place.readers))
    assert len(place.readers) == 0
    assert place.connection.take() == []


async def test_a_commit_of_a_new_reader_is_refused_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(states, "MAX_NAMES_PER_TOPIC", 0)
    place = Place()
    place.logs.publish("news", *"abc")
    place.commit(2)
    await settled(lambda: bool(place.connection.packets))
    assert place.connection.take() == [v2.Unsubscribed("news", "full")]
    assert "reader refused topic=news reader=r" in caplog.text
    place.use().leave(place.connection)
    assert len(place.readers) == 0


async def test_a_state_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    place = Place()
    await place.logs.store.change_state("news", "reader/r", b"nonsense", 0)
    place.use().look_up(place.connection, EARLIEST, place.begun.append)
    await settled(lambda: place.connection.failed is not None)
    assert place.connection.failed is CloseCode.INTERNAL_ERROR
    assert place.begun == []
    assert "not the state of a reader" in caplog.text


async def test_commits_of_many_logs_are_bounded() -> None:
    place = Place()
    place.logs.publish("news", *"abc")
    packets = [place.commit(2, f"unknown {number}") for number in range(100)]
    assert len(place.use()._wanted) == named_readers.MAX_LOGS
    await settled(lambda: bool(place.connection.packets))
    last = packets[-1]
    assert place.connection.take() == [v2.Committed("news", "r", last.log, 2)]


async def test_the_end_of_the_node() -> None:
    place = Place()
    place.commit(2)
    reader = place.use()
    place.readers.close()
    assert len(place.readers) == 0
    reader.leave(place.connection)
    await settled(turns=10)
    assert place.connection.take() == []
    assert place.logs.store.topic("news").readers == 0


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> list[Shared]:
    log = FakeLog(STREAMS)
    consumers = [Shared(log, monkeypatch), Shared(log, monkeypatch)]
    for one in consumers:
        await one.consumer.start()
    return consumers


async def test_consumers_that_share_a_log_keep_the_furthest_position(
    two: list[Shared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_readers, "CONFLICT_SECONDS", 0.0)
    producer_endpoint, producer = two[0].connected("/producer")
    producer_endpoint.received(producer, [chain("news", *range(1, 9))])
    peers = [one.connected("/subscribe") for one in two]
    logs = list[str]()
    for endpoint, connection in peers:
        endpoint.received(connection, [EARLIEST])
        await settled(lambda connection=connection: len(connection.packets) == 3)  # type: ignore[misc]
        _, begun, rest = connection.take()
        assert isinstance(begun, v2.Subscribed)
        assert messages_in([rest]) == [f"{number}" for number in range(1, 9)]
        logs.append(begun.log)
    assert logs[0] == logs[1]

    async def commit(which: int, offset: int) -> None:
        endpoint, connection = peers[which]
        endpoint.received(connection, [v2.Commit("news", "r", logs[0], offset)])
        await settled(lambda: bool(connection.packets))
        assert connection.take() == [v2.Committed("news", "r", logs[0], offset)]

    async def kept() -> int:
        state = await two[0].consumer.logs.state("news", "reader/r")
        assert isinstance(state, State)
        return msgspec.msgpack.decode(state.value, type=Kept).offset

    await commit(0, 3)
    await commit(1, 5)
    # The first has seen another version.
    await commit(0, 4)
    assert await kept() == 5
    await commit(0, 6)
    await asyncio.gather(commit(0, 7), commit(1, 8))
    assert await kept() == 8
    for (endpoint, connection), one in zip(peers, two, strict=True):
        endpoint.lost(connection, LOST)
        await settled(lambda one=one: not len(one.consumer.named_readers))  # type: ignore[misc]
        another, again = one.connected("/subscribe")
        another.received(again, [EARLIEST])
        await settled(lambda again=again: len(again.packets) == 2)  # type: ignore[misc]
        assert again.take()[1] == v2.Subscribed("news", logs[0], 8, 8)
        await one.consumer.stop()


async def test_a_position_of_a_shared_log_that_has_lost_its_last_messages(two: list[Shared]) -> None:
    """A commit that is confirmed counts, though it is not further than the position of before."""
    logs = two[0].consumer.logs
    producer_endpoint, producer = two[0].connected("/producer")
    producer_endpoint.received(producer, [chain("news", 1, 2)])
    await settled(lambda: len(producer.packets) == 2)
    log_id = logs.log_id(logs.topic("news"))
    await logs.change_state("news", "reader/r", msgspec.msgpack.encode(Kept(log_id, 5, 0)), 0)
    endpoint, connection = two[0].connected("/subscribe")
    endpoint.received(connection, [EARLIEST])
    await settled(lambda: len(connection.packets) == 3)
    assert connection.take()[1:] == [v2.Subscribed("news", log_id, 2, 2), v2.Gap("news", 2, None)]
    endpoint.received(connection, [v2.Commit("news", "r", log_id, 1)])
    await settled(lambda: bool(connection.packets))
    assert connection.take() == [v2.Committed("news", "r", log_id, 1)]
    state = await logs.state("news", "reader/r")
    assert state is not None
    assert msgspec.msgpack.decode(state.value, type=Kept).offset == 1
