"""Topics are listed in parts, each once, in every store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_engine import FakeLog
from tests.support.stores import Logs, batch, limits
from wsqueue.log import engine_listing, logs, names
from wsqueue.log.store import Store

from .test_shared import Node, run

pytestmark = pytest.mark.anyio

MODES = pytest.mark.parametrize("mode", ["memory", "sqlite"])


async def listed(store: Store, pattern: str = "*", most: int = 3) -> list[str]:
    """Return the topics of all parts, none of which has more than it may."""
    found, after = await store.topics(pattern, None, most)
    parts = [found]
    while after is not None:
        found, after = await store.topics(pattern, after, most)
        parts.append(found)
    assert max(map(len, parts)) <= most
    return [one.topic for part in parts for one in part]


@MODES
@pytest.mark.parametrize("at_once", [2, 10_000])
async def test_topics_in_parts(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(names, "SORTED_AT_ONCE", at_once)
    monkeypatch.setattr(logs, "LISTED_AT_ONCE", at_once)
    made = Logs(config=limits(mode=mode, directory=tmp_path))
    store = made.store
    await store.open()
    topics = [f"t/{index}" for index in range(8)]
    await made.stored(*(batch(1, topic=topic) for topic in (*reversed(topics), "", "t", "u")))
    assert await listed(store) == ["", "t", *topics, "u"]
    assert await listed(store, "t/*") == topics
    assert await listed(store, "t*") == ["t", *topics]
    assert await listed(store, "v*") == []
    assert (await listed(store, "t"), await listed(store, "v")) == (["t"], [])
    # One without messages counts while somebody reads it.
    assert await store.purge("t/3", None) == 1
    store.reading("t/5", 1)
    assert await store.purge("t/5", None) == 1
    assert await listed(store, "t/*") == [topic for topic in topics if topic != "t/3"]
    assert (await listed(store, "t/3"), await listed(store, "t/5")) == ([], ["t/5"])
    await store.close()


def test_topics_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_listing, "LISTED_TOPICS", 2)

    async def test(log: FakeLog) -> None:
        first, second = await Node(log).open(), await Node(log).open()
        topics = [f"t/{index}" for index in range(8)]
        for topic in (*topics, "u"):
            await first.publish(batch(1, topic=topic), batch(2, 1, topic=topic))
        assert sorted(await listed(second.store, most=100)) == [*topics, "u"]
        assert sorted(await listed(second.store, "t/*")) == topics
        assert (await listed(second.store, "u"), await listed(second.store, "v")) == (["u"], [])
        ((one,), _) = await second.store.topics("u", None, 3)
        assert (one.first, one.next, one.messages) == (0, 2, 2)
        assert await first.store.purge("u", None) == 2
        assert await listed(second.store, "u") == []
        await second.read_from("u")
        assert await listed(second.store, "u") == ["u"]
        for place in ("x", "x:y", ":", "-1:x"):
            with pytest.raises(ValueError, match="is no place in the list of topics"):
                await second.store.topics("*", place, 3)

    run(test)
