"""Topics are listed in parts, each once, in every store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from wsqueue.errors import StorageError
from wsqueue.log import logs, shared_names
from wsqueue.log.engine import Stored, place_of
from wsqueue.log.store import TooManyTopics
from wsqueue.nodes import operations as module
from wsqueue.nodes import sorted_names
from wsqueue.nodes.consumer import Consumer
from wsqueue.nodes.named_readers import Kept
from wsqueue.protocol import v2

from .test_prefixes import Node, Peer, Writer
from .test_shared_consumers import STREAMS, Shared, two_consumers

pytestmark = pytest.mark.anyio


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Shared]]:
    async with two_consumers(monkeypatch) as consumers:
        yield consumers


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTED_TOPICS", 3)
    monkeypatch.setattr(module, "LOOKED_AT_ONCE", 2)


async def listed(node: Consumer, pattern: str = "*", *, named: bool = False) -> list[str]:
    """Return the topics of all parts, none of which has more than it may."""
    found, after = list[str](), None
    while True:
        part = await node.operations.ask_topics(v2.AskTopics(pattern, after, named))
        assert len(part.topics) <= module.LISTED_TOPICS
        found += [one.topic for one in part.topics]
        if part.after is None:
            return found
        after = part.after


@pytest.mark.parametrize("mode", ["memory", "sqlite"])
@pytest.mark.parametrize("at_once", [2, 10_000])
async def test_topics_in_parts(
    mode: Any, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorted_names, "SORTED_AT_ONCE", at_once)
    monkeypatch.setattr(logs, "NAMES_AT_ONCE", at_once)
    node = Node(mode=mode, directory=str(tmp_path))
    consumer = node.consumer
    await consumer.start()
    topics = [f"t/{index}" for index in range(8)]
    node.publish(*reversed(topics), "", "t", "u")
    await consumer.logs.settle()
    assert await listed(consumer) == ["", "t", *topics, "u"]
    assert await listed(consumer, "t/*") == topics
    assert await listed(consumer, "t*") == ["t", *topics]
    assert await listed(consumer, "v*") == []
    assert (await listed(consumer, "t"), await listed(consumer, "v")) == (["t"], [])
    # One without messages counts while somebody reads it, or if it has names and these are asked for.
    assert await consumer.logs.purge("t/3", None) == 1
    peer = Peer(consumer)
    peer.send(v2.Subscribe("t/5", "latest"))
    assert await consumer.logs.purge("t/5", None) == 1
    await consumer.logs.change_state("t/9", "reader/r", msgspec.msgpack.encode(Kept("log", 0, 1)), 0)
    assert await listed(consumer, "t/*") == [topic for topic in topics if topic != "t/3"]
    assert (await listed(consumer, "t/3"), await listed(consumer, "t/5")) == ([], ["t/5"])
    assert await listed(consumer, named=True) == await listed(consumer, "t/9", named=True) == ["t/9"]
    assert await listed(consumer, "t/5", named=True) == []
    await consumer.stop()


async def test_topics_of_an_engine(two: list[Shared], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two[0].consumer, two[1].consumer
    topics = [f"t/{index}" for index in range(8)]
    await Writer(two[0], "p").publish(*topics, "u")
    await Writer(two[0], "q").publish(*topics, "u")
    assert await listed(second) == [*topics, "u"]
    assert await listed(second, "t/*") == topics
    assert (await listed(second, "u"), await listed(second, "v")) == (["u"], [])
    (one,) = (await second.operations.ask_topics(v2.AskTopics("u"))).topics
    assert (one.first, one.next, one.messages) == (0, 2, 2)
    assert await first.logs.purge("u", None) == 2
    assert await listed(second, "u") == []
    Peer(second).send(v2.Subscribe("u", "latest"))
    assert await listed(second, "u") == ["u"]
    assert await listed(first, "u") == []


async def test_few_requests_tell_the_names_of_an_engine(two: list[Shared]) -> None:
    await Writer(two[0], "p").publish(*(f"t/{index}" for index in range(20)), "u")
    engine = two[1].engine
    engine.newest_at_once = 500
    reads = engine.reads
    assert await listed(two[1].consumer, "u*") == ["u"]
    # The newest records of each stream at once, and the oldest record of the topic.
    assert engine.reads - reads == STREAMS + 1


async def test_a_server_without_the_newest_messages_hides_no_topic(two: list[Shared]) -> None:
    await Writer(two[0], "p").publish("a", "b")
    engine, newest = two[1].engine, two[1].engine.newest
    asked = 0

    async def behind(stream: int, tokens: Any) -> list[Stored]:
        nonlocal asked
        asked += 1
        return [] if asked < 4 else await newest(stream, tokens)

    engine.newest = behind  # type: ignore[method-assign]
    assert await listed(two[1].consumer) == ["a", "b"]


async def test_a_topic_that_cannot_be_read_hides_no_other(
    two: list[Shared], caplog: pytest.LogCaptureFixture
) -> None:
    await Writer(two[0], "p").publish("a")
    two[0].engine.log.append(place_of("nobody", STREAMS), b"nonsense", 0)
    # Somebody waits for the other topic, so that its name is known.
    Peer(two[1].consumer).send(v2.Subscribe("nobody", "latest"))
    assert await listed(two[1].consumer) == ["a"]
    assert "topic not listed" in caplog.text


async def test_a_shared_log_with_too_many_topics(two: list[Shared], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_names, "MAX_NAMES_BYTES", 3 * shared_names.ENTRY_BYTES)
    await Writer(two[0], "p").publish("a", "b", "c")
    with pytest.raises(TooManyTopics, match="has too many topics"):
        await listed(two[1].consumer)
    assert await listed(two[1].consumer, "b") == ["b"]


async def test_an_engine_without_answer(two: list[Shared], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsqueue.log.engine_reader.READ_SECONDS", 0.0)
    two[1].engine.is_connected = False
    with pytest.raises(StorageError):
        await listed(two[1].consumer)
