"""Subscribers that come back to a log whose history may have changed: restarts, copies, clocks set."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from wsqueue.log import epochs
from wsqueue.protocol import v2
from wsqueue.protocol.v2 import Deliver, Gap, Subscribe, Subscribed

from ...support.messages import append_one, packed
from ...support.stores import Logs, limits
from .test_reader import Subscriber

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("mode", ["memory", "sqlite"])]

TOPICS = ("news", "sport")


class Position:
    """A position that a subscriber has saved, and all that it had read of the topic until then."""

    def __init__(self, topic: str, epoch: str, read: list[str]) -> None:
        self.topic, self.epoch, self.read = topic, epoch, read


class World:
    """A log, the messages that it should have, and the directories that were copied."""

    def __init__(self, directory: Path, mode: str, **limited: Any) -> None:
        self.directory, self.mode, self.limited = directory, mode, limited
        self.log = directory / "log"
        self.history: dict[str, list[str]] = {topic: [] for topic in TOPICS}
        self.copies: list[tuple[Path, dict[str, list[str]]]] = []
        self.positions: list[Position] = []
        self._count = 0

    async def start(self) -> None:
        self.logs = Logs(config=limits(mode=self.mode, directory=self.log, **self.limited))
        await self.logs.store.open()

    async def stop(self) -> None:
        await self.logs.store.close()

    async def publish(self, topic: str, messages: int) -> None:
        """Publish messages that are unlike all others."""
        data = [f"{self._count + index}" for index in range(messages)]
        self._count += messages
        await self.logs.stored(append_one(topic, packed(*data)))
        self.history[topic] += data

    def save(self, topic: str, offset: int | None = None) -> None:
        """Note the position of a subscriber that has read so far."""
        read = self.history[topic][:offset]
        self.positions.append(Position(topic, self.logs.store.epochs.current.id, read))

    def copy(self) -> None:
        """Copy the directory as it is."""
        to = self.directory / f"copy {len(self.copies)}"
        shutil.copytree(self.log, to)
        self.copies.append((to, {topic: list(data) for topic, data in self.history.items()}))

    def put_back(self, which: int = -1) -> None:
        """Put a copy in the place of the directory, whose log is closed."""
        shutil.rmtree(self.log, ignore_errors=True)
        copied, history = self.copies[which]
        shutil.copytree(copied, self.log)
        self.history = {topic: list(data) for topic, data in history.items()}

    async def resume(self, position: Position) -> tuple[int, list[int | None], list[str | bytes]]:
        """Return where a subscriber goes on, the gaps that it is told, and the messages that it gets."""
        ask = Subscribe(position.topic, "offset", position.epoch, len(position.read))
        subscriber = Subscriber(self.logs, ask)
        packets: list[v2.Packet] = []
        end = len(self.history[position.topic])
        async with asyncio.timeout(5):
            while subscriber.reader.missing or not packets:
                await asyncio.sleep(0)
                packets += subscriber.took()
        packets += subscriber.took()
        subscriber.reader.stop()
        starts = [packet.offset for packet in packets if isinstance(packet, Subscribed)]
        gaps = [packet.missed for packet in packets if isinstance(packet, Gap)]
        delivered = [packet for packet in packets if isinstance(packet, Deliver)]
        got = [data for packet in delivered for data in packet.messages.unpack()]
        assert got == self.history[position.topic][end - len(got) :], "it gets all up to the end"
        return starts[-1], gaps, got

    async def check(self, position: Position) -> None:
        """Check that a subscriber misses nothing without being told, and is told nothing without need."""
        start, gaps, got = await self.resume(position)
        now = self.history[position.topic]
        same = next(
            (index for index, pair in enumerate(zip(position.read, now, strict=False)) if pair[0] != pair[1]),
            min(len(position.read), len(now)),
        )
        known = self.logs.store.epochs.number(position.epoch) is not None
        earliest = self.logs.store.earliest(self.logs.store.topic(position.topic))
        if len(position.read) > same:
            assert gaps == [None], "another history"
            assert start <= max(same, earliest), "nothing that it has not read is left out"
            assert start == max(same, earliest) or not known
        elif known and same >= earliest:
            assert (start, gaps) == (same, [])
            assert [*position.read, *got] == now
        else:
            assert gaps, "what is gone, or not known, is told"


async def test_a_copy_is_put_back(mode: str, tmp_path: Path) -> None:
    world = World(tmp_path, mode)
    await world.start()
    await world.publish("news", 100)
    world.save("news")
    await world.stop()
    world.copy()
    await world.start()
    world.save("news")
    await world.publish("news", 100)
    world.save("news")
    await world.stop()
    world.put_back()
    await world.start()
    await world.publish("news", 150)
    before, same, beyond = world.positions
    assert await world.resume(before) == (100, [], world.history["news"][100:])
    # That epoch began after the copy was made: nobody knows here how far it was read.
    assert await world.resume(same) == (0, [None], world.history["news"])
    assert await world.resume(beyond) == (0, [None], world.history["news"])
    await world.stop()


async def test_a_copy_of_a_log_that_went_on_is_put_back(mode: str, tmp_path: Path) -> None:
    """The histories part within an epoch that both know, in each topic elsewhere."""
    world = World(tmp_path, mode)
    await world.start()
    await world.publish("news", 100)
    await world.publish("sport", 10)
    if mode == "memory":
        await world.stop()
        world.copy()
        # The log goes on after its snapshot, as that of a virtual machine does.
    else:
        world.copy()
    await world.publish("news", 100)
    world.save("news", 90)
    world.save("news", 100)
    world.save("news", 101)
    world.save("news")
    world.save("sport")
    if mode == "sqlite":
        await world.stop()
    world.put_back()
    await world.start()
    await world.publish("news", 150)
    await world.publish("sport", 1)
    found = [await world.resume(position) for position in world.positions]
    assert [(start, gaps) for start, gaps, _ in found] == [
        (90, []),
        (100, []),
        (100, [None]),
        (100, [None]),
        (10, []),
    ]
    for position in world.positions:
        await world.check(position)
    await world.stop()


async def test_an_epoch_that_begins_while_subscribers_read(mode: str, tmp_path: Path) -> None:
    world = World(tmp_path, mode)
    await world.start()
    await world.publish("news", 3)
    subscriber = Subscriber(world.logs, Subscribe("news", "earliest"))
    early = Subscriber(world.logs, Subscribe("news", "time", time=0))
    first = world.logs.store.epochs.current.id
    world.save("news")
    world.logs.store.begin_epoch()
    for one in (subscriber, early):
        one.reader.name_epoch()
    second = world.logs.store.epochs.current.id
    packets = subscriber.took()
    assert [packet.log for packet in packets if isinstance(packet, Subscribed)] == [first, second]
    assert packets[-1] == Subscribed("news", second, 3, 3)
    assert early.took() == [], "it has not begun"
    async with asyncio.timeout(5):
        while not (packets := early.took()):  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert packets[0] == Subscribed("news", second, 0, 3)
    await world.publish("news", 3)
    # As if the machine had gone on to 5 before it was set back to 3.
    world.positions.append(Position("news", first, [*world.history["news"][:3], "lost", "lost too"]))
    for position in world.positions:
        await world.check(position)
    for one in (subscriber, early):
        one.reader.stop()
    await world.stop()


async def test_positions_of_a_topic_whose_messages_are_gone(mode: str, tmp_path: Path) -> None:
    world = World(tmp_path, mode, max_messages_per_topic=10)
    await world.start()
    await world.publish("news", 1)
    for number in range(30):
        if number == 15:
            await world.stop()
            await world.start()
        await world.publish("news", 1)
        world.save("news")
    last = world.positions[-1]
    assert await world.resume(last) == (31, [], [])
    # The limits have dropped all that was read in the first epoch, as many as the number says.
    assert (await world.resume(world.positions[4]))[1] == [21 - 6]
    for position in world.positions:
        await world.check(position)
    await world.stop()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cache_bytes", [0, 2**30])
async def test_any_history(
    mode: str, seed: int, cache_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No subscriber misses a message that it is not told of, and none is told of a gap without need."""
    monkeypatch.setattr("wsqueue.log.sqlite.CACHE_BYTES", cache_bytes)
    monkeypatch.setattr(epochs, "MAX_EPOCHS", 5)
    dice = random.Random(seed)
    world = World(tmp_path, mode)
    await world.start()
    for _ in range(25):
        topic = dice.choice(TOPICS)
        match dice.randrange(8):
            case 0 | 1 | 2:
                await world.publish(topic, dice.randrange(1, 5))
            case 3:
                world.save(topic, dice.randrange(len(world.history[topic]) + 1))
            case 4:
                world.save(topic)
            case 5:
                world.logs.store.begin_epoch()
            case 6:
                await world.stop()
                if dice.randrange(2):
                    world.copy()
                await world.start()
            case 7 if world.copies:
                await world.stop()
                world.put_back(dice.randrange(len(world.copies)))
                await world.start()
        for position in world.positions:
            await world.check(position)
    await world.stop()
