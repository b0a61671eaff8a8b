"""Worker groups at a consumer, over connections that the test plays and with logs that it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from wsqueue.groups import group
from wsqueue.groups.expiry import UNUSED_SECONDS, expire
from wsqueue.groups.state import Dying, Failure, GroupState
from wsqueue.log.engine import Place, Stored, place_of
from wsqueue.log.states import State
from wsqueue.log.store import Store
from wsqueue.nodes.consumer import Consumer
from wsqueue.protocol import v2
from wsqueue.tools.backup import back_up, restore

from ...support.fake_engine import Fate
from ...support.waiting import eventually
from ..nodes.test_prefixes import Node, Peer
from ..nodes.test_shared_consumers import LOST, STREAMS, Shared, chain, settled, two_consumers

pytestmark = pytest.mark.anyio

Packet = TypeVar("Packet", v2.Joined, v2.Lend, v2.Settled, v2.Left)

JOIN = v2.Join("jobs", "g", 10, 30.0, 3)


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Shared]]:
    async with two_consumers(monkeypatch) as consumers:
        yield consumers


class Worker(Peer):
    """A member of the group `g` of the topic `jobs`.

    Attributes:
        log: The log of the last `joined`.
    """

    def __init__(self, node: Consumer, join: v2.Join = JOIN) -> None:
        super().__init__(node)
        self.log = ""
        self._number = 0
        self.send(join)

    async def next(self, kind: type[Packet]) -> Packet:
        """Return the next packet of a kind, and forget those before it."""
        packets = self.connection.packets
        await eventually(lambda: any(isinstance(one, kind) for one in packets), kind.__name__)
        while True:
            packet = packets.pop(0)
            if isinstance(packet, v2.Joined):
                self.log = packet.log
            if isinstance(packet, kind):
                return packet

    async def lent(self, count: int) -> list[int]:
        """Return the offsets of the next messages that are lent."""
        found: list[int] = []
        while len(found) < count:
            packet = await self.next(v2.Lend)
            found += range(packet.offset, packet.offset + packet.messages.count)
        return found

    def settle(self, how: Any, first: int, last: int, **more: Any) -> int:
        self._number += 1
        log = more.pop("log", self.log)
        self.send(v2.Settle("jobs", "g", self._number, log, how, [(first, last)], **more))
        return self._number

    async def settles(self, how: Any, first: int, last: int, **more: Any) -> None:
        """Tell an outcome, and wait until it is kept."""
        number = self.settle(how, first, last, **more)
        assert (await self.next(v2.Settled)).number == number

    def is_lent_more(self) -> bool:
        return any(isinstance(one, v2.Lend) for one in self.connection.packets)

    def leave(self) -> None:
        """Lose the connection."""
        self.endpoint.lost(self.connection, LOST)


class Gate:
    """Let changes of states wait."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting, self.open = 0, asyncio.Event()
        change = store.change_state

        async def gated(topic: str, name: str, value: bytes, version: int) -> int:
            self.waiting += 1
            await self.open.wait()
            return await change(topic, name, value, version)

        monkeypatch.setattr(store, "change_state", gated)


async def until(true: Callable[[], bool]) -> None:
    await settled(true)
    assert true()


async def test_an_epoch_that_begins_while_the_state_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the state would be of the epoch before, which ends before messages that are done."""
    node = Node()
    consumer = node.consumer
    node.publish("jobs")
    gate = Gate(consumer.logs, monkeypatch)
    worker = Worker(consumer)
    await until(lambda: gate.waiting == 1)
    consumer.logs.begin_epoch()
    consumer.groups.name_epoch()
    gate.open.set()
    assert (await worker.next(v2.Joined)).log == consumer.logs.epochs.current.id
    node.publish("jobs", "jobs")
    assert await worker.lent(3) == [0, 1, 2]
    await worker.settles("done", 0, 2)
    worker.leave()
    await until(lambda: not consumer.groups.by_topic)
    consumer.logs.begin_epoch()
    another = Worker(consumer)
    await another.next(v2.Joined)
    node.publish("jobs")
    assert await another.lent(1) == [3]
    assert consumer.counters["groups_restarted"] == 0


async def test_a_log_that_is_replaced_while_the_state_is_written(
    two: list[Shared], monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = two[0].consumer
    producer_endpoint, producer = two[1].connected("/producer")
    producer_endpoint.received(producer, [chain("jobs", 1, 2, 3)])
    first = Worker(consumer)
    await first.next(v2.Joined)
    assert await first.lent(3) == [0, 1, 2]
    await first.settles("done", 0, 2)
    first.leave()
    await until(lambda: not consumer.groups.by_topic)
    gate = Gate(consumer.logs, monkeypatch)
    worker = Worker(consumer)
    await until(lambda: gate.waiting == 1)
    two[0].clock.now = two[1].clock.now = 1e6
    two[0].engine.log.expire()
    producer_endpoint.received(producer, [chain("jobs", 4, after=3)])
    await until(lambda: consumer.logs.topic("jobs").next == 1)
    gate.open.set()
    joined = await worker.next(v2.Joined)
    assert joined.log == consumer.logs.log_id(consumer.logs.topic("jobs")) != first.log
    assert await worker.lent(1) == [0]
    assert consumer.counters["groups_restarted"] == 1


async def test_a_log_that_is_replaced_while_messages_are_read(
    two: list[Shared], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of the log before say nothing of the other one: its messages would pass for dropped ones."""
    consumer, engine = two[0].consumer, two[0].engine
    producer_endpoint, producer = two[1].connected("/producer")
    producer_endpoint.received(producer, [chain("jobs", 1, 2, 3)])
    await until(lambda: len(producer.packets) == 2)
    reading, go_on, read = asyncio.Event(), asyncio.Event(), engine.read

    async def slow(place: Place, seq: int, max_bytes: int) -> list[Stored]:
        reading.set()
        await go_on.wait()
        return await read(place, seq, max_bytes)

    monkeypatch.setattr(engine, "read", slow)
    worker = Worker(consumer)
    await reading.wait()
    two[0].clock.now = two[1].clock.now = 1e6
    engine.log.expire()
    producer_endpoint.received(producer, [chain("jobs", 4, after=3)])
    await until(lambda: consumer.logs.topic("jobs").next == 1)
    go_on.set()
    assert await worker.lent(1) == [0]
    assert consumer.counters["group_gone"] == 0


async def test_a_log_that_has_gone_before_another_one_begins(two: list[Shared]) -> None:
    """Nothing is lent of a log of which nobody knows anything."""
    consumer, engine = two[0].consumer, two[0].engine
    producer_endpoint, producer = two[0].connected("/producer")
    first = Worker(consumer)
    await first.next(v2.Joined)
    producer_endpoint.received(producer, [chain("jobs", 1, 2)])
    assert await first.lent(2) == [0, 1]
    second = Worker(consumer)
    await second.next(v2.Joined)
    fates: list[Fate] = ["lost"]
    engine.fate = lambda: fates[-1]
    two[0].clock.now = 1e6
    engine.log.expire()
    consumer.logs.trim()
    await until(lambda: consumer.logs.log_id(consumer.logs.topic("jobs")) == "")
    first.leave()
    fates.append("stored")
    await second.next(v2.Joined)
    producer_endpoint.received(producer, [chain("jobs", 3, after=2)])
    assert await second.lent(1) == [0]


@pytest.mark.parametrize("lost", ["all is done", "some are done", "one has failed", "one is dying"])
async def test_a_shared_log_that_has_lost_its_last_messages(two: list[Shared], lost: str) -> None:
    """Else the group would pass over the next messages, which have the offsets of those that are lost."""
    consumer = two[0].consumer
    producer_endpoint, producer = two[0].connected("/producer")
    producer_endpoint.received(producer, [chain("jobs", 1, 2)])
    await until(lambda: len(producer.packets) == 2)
    state = GroupState("of before", consumer.logs.log_id(consumer.logs.topic("jobs")), 1)
    if lost == "all is done":
        state.floor = 4
    elif lost == "some are done":
        state.done.add(2, 4)
    elif lost == "one has failed":
        state.failures[3] = Failure(1, 0.0)
    else:
        state.dying.append(Dying(3, 3, "bad"))
    await consumer.logs.change_state("jobs", "group/g", state.encode(), 0)
    worker = Worker(consumer)
    assert await worker.lent(2) == [0, 1]
    producer_endpoint.received(producer, [chain("jobs", 3, 4, after=2)])
    assert await worker.lent(2) == [2, 3]
    assert consumer.counters["groups_restarted"] == 1


async def test_a_shared_log_that_loses_its_last_messages_while_they_are_lent(two: list[Shared]) -> None:
    consumer = two[0].consumer
    producer_endpoint, producer = two[0].connected("/producer")
    worker = Worker(consumer)
    await worker.next(v2.Joined)
    for number in (1, 2):
        producer_endpoint.received(producer, [chain("jobs", number, after=number - 1)])
        assert await worker.lent(1) == [number - 1]
    await worker.settles("done", 0, 0)
    two[0].engine.log.lose_last(place_of("jobs", STREAMS))
    producer_endpoint.received(producer, [chain("jobs", 3, publisher="q")])
    await worker.next(v2.Joined)
    assert await worker.lent(2) == [0, 1]
    assert consumer.counters["groups_restarted"] == 1


async def test_messages_that_came_at_another_consumer_since_the_log_was_known(
    two: list[Shared], monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, logs = two[0].consumer, two[0].consumer.logs
    producer_endpoint, producer = two[1].connected("/producer")
    two[0].engine.deaf = True
    read = logs.state

    async def late(topic: str, name: str) -> State | None:
        """Let the other consumer, which coordinates the group until now, do more meanwhile."""
        monkeypatch.undo()
        assert logs.topic("jobs").next == 0
        producer_endpoint.received(producer, [chain("jobs", 1, 2)])
        await until(lambda: len(producer.packets) == 2)
        state = GroupState("id", logs.log_id(logs.topic("jobs")), 2)
        await logs.change_state("jobs", "group/g", state.encode(), 0)
        return await read(topic, name)

    monkeypatch.setattr(logs, "state", late)
    worker = Worker(consumer)
    await worker.next(v2.Joined)
    producer_endpoint.received(producer, [chain("jobs", 3, after=2)])
    two[0].engine.deaf = False
    producer_endpoint.received(producer, [chain("jobs", 4, after=3)])
    assert await worker.lent(2) == [2, 3]
    assert consumer.counters["groups_restarted"] == 0


async def test_a_group_whose_members_wait_for_long_is_not_forgotten_after_a_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node()
    consumer = node.consumer
    now = consumer.logs._clock()  # type: ignore[attr-defined]
    monkeypatch.setattr(group, "MAX_TICK_SECONDS", group.MIN_TICK_SECONDS)
    monkeypatch.setattr(consumer.groups, "_clock", lambda: now)
    worker = Worker(consumer)
    await worker.next(v2.Joined)
    now += UNUSED_SECONDS + 1
    gate = Gate(consumer.logs, monkeypatch)
    gate.open.set()
    await eventually(lambda: gate.waiting, "the state is renewed")
    await expire(consumer.logs, now, lambda *_: False)
    assert len(await consumer.logs.states()) == 1


async def test_a_member_that_is_about_to_leave_is_lent_nothing_in_another_epoch() -> None:
    node = Node()
    consumer = node.consumer
    leaving = Worker(consumer)
    await leaving.next(v2.Joined)
    await leaving.settles("release", 0, v2.MAX_NUMBER)
    consumer.logs.begin_epoch()
    consumer.groups.name_epoch()
    await leaving.next(v2.Joined)
    node.publish("jobs")
    other = Worker(consumer)
    assert await other.lent(1) == [0]
    assert not leaving.is_lent_more()


async def test_a_group_goes_on_in_a_log_that_was_restored_from_a_backup(tmp_path: Path) -> None:
    """Its state is of the same moment as the messages."""
    log, backup = tmp_path / "log", tmp_path / "backup.sqlite"
    node = Node(mode="sqlite", directory=str(log))
    await node.consumer.start()
    worker = Worker(node.consumer)
    node.publish(*["jobs"] * 3)
    assert await worker.lent(3) == [0, 1, 2]
    await worker.settles("done", 0, 0)
    await worker.settles("done", 2, 2)
    back_up(log, backup, replace=False, say=lambda _: None)
    # All that comes now is lost.
    node.publish("jobs")
    await worker.lent(1)
    await worker.settles("done", 1, 1)
    worker.leave()
    await node.consumer.stop()
    restore(backup, log, mode=None, replace=True, say=lambda _: None)
    node = Node(mode="sqlite", directory=str(log))
    await node.consumer.start()
    again = Worker(node.consumer)
    # The backup has the first three, which are repeats.
    node.publish(*["jobs"] * 4)
    assert await again.lent(2) == [1, 3]
    # Nobody has done the message that has this offset now.
    await again.settles("done", 3, 3, log=worker.log)
    again.leave()
    third = Worker(node.consumer)
    assert await third.lent(1) == [1]
    third.settle("done", 1, 1)
    assert await third.lent(1) == [3]
    assert node.consumer.counters["groups_restarted"] == 0
    third.leave()
    await node.consumer.stop()
