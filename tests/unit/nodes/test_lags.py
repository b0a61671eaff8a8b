"""The lags of groups and readers, look by look."""

from __future__ import annotations

import msgspec
import pytest

from tests.support.stores import Logs, batch
from wsqueue.errors import StorageError
from wsqueue.groups.names import Progress
from wsqueue.log.store import TopicExtent
from wsqueue.nodes import lags as lags_module
from wsqueue.nodes.lags import Lags
from wsqueue.nodes.named_readers import Kept
from wsqueue.protocol.v2 import NameEntry
from wsqueue.report.report import LagStatus

pytestmark = pytest.mark.anyio


def describe(extent: TopicExtent, progress: Progress) -> NameEntry:
    return NameEntry(progress.kind, progress.name, progress.offset, progress.lag(extent), 1, 0, 0)


async def with_readers(*topics: str) -> Logs:
    """Return logs in memory with a message of each topic, which a reader has not done."""
    made = Logs()
    for topic in topics:
        made.append(batch(1, topic=topic))
        await made.store.change_state(topic, "reader/r", msgspec.msgpack.encode(Kept("log", 0, 1)), 0)
    return made


def of(topic: str, lag: int) -> LagStatus:
    return LagStatus(topic, "reader", "r", lag, 1)


async def test_topics_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lags_module, "LOOKED_TOPICS", 2)
    made = await with_readers("a", "b", "c")
    lags = Lags(made.store, describe)
    await lags.look()
    assert len(lags.largest(9)) == 2
    for number in (2, 3):
        for topic in ("a", "b", "c"):
            made.append(batch(number, topic=topic))
        await lags.look()
    # Each was looked at twice, and at least once since the first message.
    assert sorted(one.topic for one in lags.largest(9)) == ["a", "b", "c"]
    assert all(one.lag >= 2 for one in lags.largest(9))
    assert [one.lag for one in lags.largest(2)] == [3, 3]
    assert lags.largest(0) == []


async def test_a_topic_that_cannot_be_read_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = await with_readers("a", "bad", "c")
    lags = Lags(made.store, describe)
    await lags.look()
    made.append(batch(2, topic="c"))
    extent = made.store.extent

    async def broken(topic: str) -> TopicExtent:
        if topic == "bad":
            raise StorageError("it is none of ours")
        return await extent(topic)

    monkeypatch.setattr(made.store, "extent", broken)
    with pytest.raises(StorageError, match="none of ours"):
        await lags.look()
    assert sorted(lags.largest(9), key=lambda one: one.topic) == [of("a", 1), of("bad", 1), of("c", 2)]
    state = await made.store.state("bad", "reader/r")
    assert state is not None
    await made.store.drop_state("bad", "reader/r", state.version)
    await lags.look()
    assert lags.largest(9) == [of("c", 2), of("a", 1)]
