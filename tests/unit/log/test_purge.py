"""A purge drops the first records of a topic in every store, and forgets no offset and no number."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.fake_engine import FakeLog
from tests.support.messages import append_one, packed
from tests.support.stores import Logs, batch, limits
from wsqueue.errors import StorageError
from wsqueue.log import database, logs
from wsqueue.log.store import Store

from .test_shared import Node, codes, records_in, run, until

pytestmark = pytest.mark.anyio

MODES = pytest.mark.parametrize("mode", ["memory", "sqlite"])


async def kept(store: Store, topic: str) -> list[int]:
    """Return the offsets of the messages that are kept."""
    records = await store.read(store.topic(topic), 0, 2**40)
    return [offset for record in records for offset in range(record.offset, record.end)]


async def opened(mode: str, directory: Path) -> Logs:
    made = Logs(config=limits(mode=mode, directory=directory))
    await made.store.open()
    return made


@MODES
async def test_the_first_records_go_as_a_whole(mode: str, tmp_path: Path) -> None:
    made = await opened(mode, tmp_path)
    store = made.store
    await made.stored(batch(1, count=3), batch(2, count=3), batch(3, count=3), batch(1, topic="others"))
    assert await store.purge("news", 0) == 0
    assert await store.purge("news", 5) == 3
    assert await store.purge("news", 6) == 3
    assert await kept(store, "news") == [6, 7, 8]
    assert await store.purge("news", 1000) == 3
    assert (await kept(store, "news"), await kept(store, "others")) == ([], [0])
    extent = await store.extent("news")
    assert (extent.first, extent.next, extent.bytes) == (9, 9, 0)
    assert await store.purge("nothing", None) == 0
    (outcome,) = await made.stored(batch(4))
    assert outcome.record is not None
    assert outcome.record.offset == 9
    await store.close()


@MODES
async def test_numbers_and_offsets_survive_it_and_a_restart(mode: str, tmp_path: Path) -> None:
    made = await opened(mode, tmp_path)
    await made.stored(batch(1), batch(2, 1))
    assert await made.store.purge("news", None) == 2
    again = batch(2, 1)
    await made.stored(again)
    assert made.outcome_of(again) == "a repeat"
    await made.store.close()
    made = await opened(mode, tmp_path)
    again, new = batch(2, 1), batch(3, 2)
    await made.stored(again, new)
    assert (made.outcome_of(again), made.outcome_of(new)) == ("a repeat", "stored at 2")
    assert await kept(made.store, "news") == [2]
    await made.store.close()


@MODES
async def test_many_records_go_in_steps(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "AGED_RECORDS", 3)
    monkeypatch.setattr(database, "TRIM_RECORDS", 3)
    made = await opened(mode, tmp_path)
    await made.stored(*(batch(number) for number in range(1, 21)))
    await made.stored(*(batch(number, topic="others") for number in range(1, 6)))
    dropped, others = await asyncio.gather(made.store.purge("news", 17), made.store.purge("others", None))
    assert (dropped, others) == (17, 5)
    assert await kept(made.store, "news") == [17, 18, 19]
    await made.store.close()


async def test_messages_that_come_meanwhile_stay(tmp_path: Path) -> None:
    made = await opened("sqlite", tmp_path)
    await made.stored(batch(1), batch(2))
    purging = asyncio.create_task(made.store.purge("news", None))
    await asyncio.sleep(0)
    await made.stored(batch(3))
    assert await purging == 2
    assert await kept(made.store, "news") == [2]
    await made.store.close()


async def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await opened("sqlite", tmp_path)
    await made.stored(batch(1), batch(2))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(database.Database, "_delete_first", fail)
        with pytest.raises(StorageError, match="No space left on device"):
            await made.store.purge("news", None)
    assert await kept(made.store, "news") == [0, 1]
    assert await made.store.purge("news", None) == 2
    await made.store.close()
    with pytest.raises(StorageError, match="closed"):
        await made.store.purge("others", None)


def test_a_shared_log_keeps_what_it_needs_to_append() -> None:
    async def test(log: FakeLog) -> None:
        first, second = await Node(log).open(), await Node(log).open()
        for number in range(1, 8):
            await first.publish(batch(number, number - 1))
        assert await second.store.purge("news", 3) == 3
        assert (await second.store.extent("news")).first == 3
        assert await second.store.purge("news", None) == 4
        (empty,) = records_in(log, "news")
        assert (empty.offset, empty.end, empty.table, empty.numbers) == (7, 7, 0, {"p": 7})
        assert await second.store.purge("news", None) == 0
        third = await Node(log).open()
        assert codes(await third.publish(batch(7, 6), batch(8, 7))) == ["repeat", "stored"]
        assert third.outcomes[-1].record is not None
        assert third.outcomes[-1].record.offset == 7

    run(test)


def test_other_consumers_drop_what_they_have_in_memory() -> None:
    async def test(log: FakeLog) -> None:
        first, second = await Node(log).open(), await Node(log).open()
        followed = await second.read_from("news")
        for number in range(1, 6):
            await first.publish(batch(number, number - 1))
        await until(lambda: followed.next == 5)
        assert await first.store.purge("news", 2) == 2
        await until(lambda: followed.first == 2)
        assert [record.offset for record in followed.records] == [2, 3, 4]
        assert await first.store.purge("news", None) == 3
        await until(lambda: followed.first == 5)
        assert not followed.records

    run(test)


def test_a_record_of_several_batches_goes_as_a_whole() -> None:
    async def test(log: FakeLog) -> None:
        node = await Node(log).open()
        await node.publish(*(append_one("news", packed(f"{number}"), "p", number) for number in range(1, 5)))
        await node.publish(append_one("news", packed("5"), "p", 5))
        assert await node.store.purge("news", 2) == 0
        assert await node.store.purge("news", 4) == 4

    run(test)
