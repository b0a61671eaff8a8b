"""The store on disk, before an archive that the test plays."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from random import Random

import pytest

from wsqueue.config.model import Retention
from wsqueue.errors import ConfigError
from wsqueue.log import ledger, sqlite
from wsqueue.log.records import TOPIC_OVERHEAD_BYTES, Epoch, StoreState, TopicState
from wsqueue.log.sqlite import SqliteStore
from wsqueue.log.store import AppendChain
from wsqueue.report.report import LogStatus

from ...support.messages import append_one, packed
from ...support.stores import Archived, FakeArchive, Logs, batch

pytestmark = pytest.mark.anyio


class TestSqliteStore:
    """Nothing is told before the archive has it, and what it cannot write is taken back."""

    @pytest.fixture(autouse=True)
    def fake(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(sqlite, "Archive", FakeArchive)
        return iter([None])

    async def test_it_needs_a_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("STATE_DIRECTORY", raising=False)
        logs = SqliteStore(Retention(mode="sqlite"), lambda _outcomes: None)
        with pytest.raises(ConfigError, match="required for the mode sqlite"):
            await logs.open()

    async def test_it_goes_on_where_the_archive_ends(self) -> None:
        known = Epoch("f" * 16, 7)
        state = StoreState(
            epochs=[known], topics={"news": TopicState(3, 9)}, numbers={("news", "p"): 4}, floor=5
        )
        logs = await Archived.opened(state)
        assert (logs.store.epochs.number(known.id), logs.store.epochs.current.number) == (7, 8)
        assert logs.archive.epochs == [logs.store.epochs.current]
        log = logs.store.topic("news")
        assert (logs.store.earliest(log), log.first, log.next) == (3, 9, 9)
        assert not logs.store.in_memory(log, 8)
        assert logs.store.topic("other").start == 5
        again, new = batch(4), batch(5, after=4)
        logs.append(again, new)
        logs.archive.commit()
        assert [logs.outcome_of(one) for one in (again, new)] == ["a repeat", "stored at 9"]

    async def test_nothing_is_told_before_it_is_committed(self) -> None:
        logs = await Archived.opened()
        one, two, three = batch(1, count=2), batch(2, after=1), batch(3)
        assert logs.append(one, two, three) == []
        log = logs.store.topic("news")
        assert (log.next, log.assigned) == (0, 4)
        assert logs.in_memory("news") == []
        logs.archive.commit(2)
        assert [logs.outcome_of(which) for which in (one, two, three)] == ["stored at 0", "stored at 2", ""]
        assert log.next == 3
        logs.archive.commit()
        assert logs.told == [2, 1]
        assert logs.in_memory("news") == [0, 1, 2, 3]

    async def test_its_status_is_the_archive_s(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", logger="wsqueue")
        logs = await Archived.opened()
        logs.archive.pending_bytes, logs.archive.bytes = 700, 12_000
        logs.append(batch(1))
        limit = logs.config.max_bytes
        status = LogStatus(
            mode="sqlite",
            topics=1,
            bytes=12_000,
            limit_bytes=limit,
            pending_bytes=700,
            commit_seconds=0.25,
            free_bytes=5_000_000,
        )
        assert logs.store.log_status() == status
        logs.archive.fail()
        assert logs.store.log_status().failing == "the disk is full"
        logs.append(batch(1))
        logs.archive.fail()
        logs.append(batch(1))
        assert logs.store.log_status().failing == "the disk is full"
        logs.archive.commit()
        assert logs.store.log_status() == status
        # Each change is logged once, however much is refused.
        messages = [record.message.split(" reason")[0].split(" after")[0] for record in caplog.records]
        assert messages == ["messages refused", "messages stored again"]
        logs.archive.commit_seconds.observe(0.1)
        commits = logs.store.commit_seconds()
        assert commits is not None
        assert sum(commits.counts) == 1

    async def test_what_need_not_wait_is_told_at_once(self) -> None:
        logs = await Archived.opened()
        logs.append(batch(1))
        logs.archive.commit()
        again, refused = batch(1), batch(5, after=3)
        outcomes = logs.append(again, refused)
        assert [outcome.code for outcome in outcomes] == [None, "after_refused"]
        await logs.store.settle()

    async def test_what_cannot_be_written_is_refused_and_taken_back(self) -> None:
        logs = await Archived.opened()
        logs.append(batch(1, count=3))
        logs.archive.commit()
        one, again, two, refused = batch(2, after=1), batch(2, after=1), batch(3, after=2), batch(9, after=8)
        other = batch(4, topic="other")
        logs.append(one, again, two, refused, other)
        logs.archive.fail()
        codes = [logs.outcome_of(which) for which in (one, again, two, refused, other)]
        assert codes == ["full", "full", "full", "after_refused", "full"]
        assert all(outcome.reason for outcome in logs.outcomes[1:])
        # Another attempt is none of a repeat, and gets the offsets that the others had.
        retried = [batch(2, after=1), batch(3, after=2), batch(4, topic="other")]
        logs.append(*retried)
        logs.archive.commit()
        assert [logs.outcome_of(which) for which in retried] == ["stored at 3", "stored at 4", "stored at 0"]
        assert logs.in_memory("news") == [0, 1, 2, 3, 4]

    async def test_what_was_committed_before_stays_when_the_rest_fails(self) -> None:
        logs = await Archived.opened()
        one, two, again = batch(1), batch(2, after=1), batch(1)
        logs.append(one, two, again)
        logs.archive.commit(1)
        logs.archive.fail()
        assert [logs.outcome_of(which) for which in (one, two, again)] == ["stored at 0", "full", "a repeat"]
        assert logs.store.topic("news").assigned == 1

    async def test_after_a_failure_nothing_comes_before_what_has_failed(self) -> None:
        """Not even of a publisher that was new, which else could begin anywhere."""
        logs = await Archived.opened()
        first, second, third = batch(7), batch(8, after=7), batch(9)
        logs.append(first)
        logs.archive.fail()
        logs.append(second, third)
        logs.archive.commit()
        outcomes = [logs.outcome_of(which) for which in (first, second, third)]
        assert outcomes == ["full", "after_refused", "stored at 0"]

    async def test_settling(self) -> None:
        logs = await Archived.opened()
        await logs.store.settle()
        for end in (logs.archive.commit, logs.archive.fail):
            logs.append(batch(1, publisher=end.__name__), batch(1, publisher=end.__name__))
            settling = asyncio.create_task(logs.store.settle())
            await asyncio.sleep(0)
            assert not settling.done()
            end()
            await asyncio.wait_for(settling, 1)

    async def test_very_many_small_batches_are_too_much_too(self) -> None:
        logs = await Archived.opened()
        each = sqlite.PENDING_OVERHEAD_BYTES + sqlite.PENDING_BATCH_BYTES
        logs.archive.pending_bytes = sqlite.PENDING_BYTES - 100 * each
        for number in range(1, 102):
            assert not logs.store.congested
            logs.append(batch(number))
        assert logs.store.congested

    async def test_the_memory_is_a_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        size = Logs().publish("news", "x" * 100).size
        monkeypatch.setattr(sqlite, "CACHE_BYTES", 2 * size + TOPIC_OVERHEAD_BYTES + 50)
        logs = await Archived.opened()
        for _ in range(5):
            logs.append(append_one("news", packed("x" * 100)))
            logs.archive.commit()
        log = logs.store.topic("news")
        assert logs.in_memory("news") == [3, 4]
        assert (logs.store.earliest(log), log.first, log.next) == (0, 3, 5)
        assert [logs.store.in_memory(log, offset) for offset in range(6)] == [False] * 3 + [True] * 3

    async def test_a_topic_is_forgotten_when_the_archive_has_forgotten_it_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ledger, "MAX_EMPTY_TOPICS", 2 * ledger.FORGET_TRIES)
        monkeypatch.setattr(sqlite, "CACHE_BYTES", 0)
        logs = await Archived.opened()
        for topic, count in (("waiting", 1), ("known", 3), ("gone", 7)):
            logs.append(batch(1, topic=topic, count=count))
        logs.archive.commit()
        logs.append(batch(2, topic="waiting"))
        logs.archive.stored = [record for record in logs.archive.stored if record.topic == "known"]
        for number in range(200):
            logs.store.topic(str(number))
        assert logs.store.log_status().topics == ledger.MAX_EMPTY_TOPICS
        assert [logs.store.topic(name).start for name in ("waiting", "known", "gone")] == [0, 0, 7]
        logs.archive.commit()
        assert logs.outcomes[-1].record is not None
        assert logs.outcomes[-1].record.offset == 1

    @pytest.mark.parametrize("seed", range(30))
    async def test_any_history(self, seed: int) -> None:
        """Two publishers send on two topics, again and again, while commits and failures come."""
        random = Random(seed)
        logs = await Archived.opened()
        sent: list[AppendChain] = []
        for _ in range(120):
            kind = random.random()
            if kind < 0.6:
                many = [
                    batch(
                        number := random.randint(1, 25),
                        after=random.choice([0, number - 1, random.randint(0, 25)]),
                        topic=random.choice("ab"),
                        publisher=random.choice("pq"),
                        count=random.randint(1, 3),
                    )
                    for _ in range(random.randint(1, 4))
                ]
                sent += many
                logs.append(*many)
            elif kind < 0.9:
                logs.archive.commit(random.randint(0, len(logs.archive.queue)))
            else:
                logs.archive.fail()
        logs.archive.commit()
        # All are told, in their order.
        assert [id(outcome.chain) for outcome in logs.outcomes] == [id(one) for one in sent]
        for topic in "ab":
            stored = [outcome.record for outcome in logs.outcomes if outcome.record is not None]
            mine = [record for record in stored if record.topic == topic]
            assert mine == [record for record in logs.archive.stored if record.topic == topic]
            assert [record.offset for record in mine] == [0, *(record.end for record in mine)][: len(mine)]
            for publisher in "pq":
                numbers = [record.number for record in mine if record.publisher == publisher]
                assert all(one < two for one, two in itertools.pairwise(numbers))
        # What was called a repeat had been stored by then.
        stored_by: set[tuple[str, str, int]] = set()
        highest: dict[tuple[str, str], int] = {}
        for outcome in logs.outcomes:
            one = outcome.chain
            if outcome.record is not None:
                stored_by.add((one.topic, one.publisher, one.numbers[-1]))
                highest[one.topic, one.publisher] = one.numbers[-1]
            elif outcome.code is None:
                assert one.numbers[-1] <= highest[one.topic, one.publisher]
        assert stored_by
