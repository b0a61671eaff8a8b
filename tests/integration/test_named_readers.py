"""Named readers: the log keeps how far they have come, over restarts, connections and clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

import wsqueue
from wsqueue.client import inbox
from wsqueue.log import states
from wsqueue.nodes import named_readers
from wsqueue.protocol.close import CloseCode

from ..support.nodes import BILLING, KEY, Log, Nodes, RunningNode, cut, write_key
from ..support.ports import free_port
from ..support.raw_v2_peer import V2Socket
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

MODES = pytest.mark.parametrize("mode", ["memory", "sqlite"])
SUBSCRIBE = {"t": "subscribe", "topic": "jobs", "start": "earliest", "reader": "r"}
COMMIT = {"t": "commit", "topic": "jobs", "reader": "r"}


async def cluster(nodes: Nodes, mode: str = "memory", **settings: Any) -> tuple[RunningNode, wsqueue.Client]:
    """Return a consumer that keeps its logs, and a client of it and a producer."""
    retention = {"mode": mode, "directory": f"{nodes.directory}/log"} | settings.pop("retention", {})
    consumer = await nodes.consumer(port=free_port(), retention=retention, **settings)
    producer = await nodes.producer([consumer])
    return consumer, nodes.client([producer], [consumer])


async def left_of(client: wsqueue.Client, reader: str = "r", **options: Any) -> list[str | bytes]:
    """Return the messages that a reader has not done."""
    return [one.data async for one in client.subscribe("jobs", reader=reader, follow=False, **options)]


async def kept(consumer: RunningNode, reader: str = "r") -> int:
    """Return the offset that is kept of a reader."""
    state = await consumer.consumer.logs.state("jobs", f"reader/{reader}")
    assert state is not None
    return int(msgspec.msgpack.decode(state.value)[1])


@contextlib.asynccontextmanager
async def peer(consumer: RunningNode, **changes: Any) -> AsyncIterator[V2Socket]:
    """Subscribe as a raw peer."""
    async with V2Socket.speaking(consumer.address, "/subscribe", KEY) as socket:
        socket.send(SUBSCRIBE | changes)
        yield socket


@MODES
@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_a_reader_goes_on_after_a_restart(nodes: Nodes, mode: str, how: str) -> None:
    consumer, client = await cluster(nodes, mode)
    async with soon(), client:
        await client.publish("jobs", *(f"{number}" for number in range(5)))
        async with client.subscribe("jobs", reader="r") as jobs:
            messages = [await anext(jobs) for _ in range(4)]
            assert [one.data for one in messages] == ["0", "1", "2", "3"]
            await messages[1].done()
        await (consumer.stop() if how == "stop" else consumer.crash())
        await consumer.restart()
        await client.publish("jobs", "5")
        if (mode, how) == ("memory", "crash"):
            # The log has gone, and the reader with it.
            assert await left_of(client) == ["5"]
        else:
            assert await left_of(client) == ["2", "3", "4", "5"]
        assert await left_of(client, "another") == await left_of(client, "new")


@MODES
async def test_a_subscription_goes_on_while_the_consumer_restarts(nodes: Nodes, mode: str) -> None:
    consumer, client = await cluster(nodes, mode)
    async with asyncio.timeout(20), client, client.subscribe("jobs", reader="r") as jobs:
        await client.publish("jobs", "0", "1", "2")
        messages = [await anext(jobs) for _ in range(2)]
        await messages[0].done()
        await consumer.stop()
        # It is of an earlier epoch when the consumer hears of it.
        late = asyncio.create_task(messages[1].done())
        await consumer.restart()
        await late
        assert await kept(consumer) == 2
        await client.publish("jobs", "3")
        rest = [await anext(jobs) for _ in range(2)]
        assert [one.data for one in rest] == ["2", "3"]
        assert rest[1].log != messages[0].log
        await rest[1].done()
        # All messages before it are done too.
        await rest[0].done()
        assert await kept(consumer) == 4


async def test_it_goes_on_from_another_client(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    producer = await nodes.producer([consumer])
    async with soon(), client, nodes.client([producer], [consumer]) as other:
        await client.publish("jobs", "0", "1", "2")
        async with client.subscribe("jobs", reader="r") as jobs:
            await (await anext(jobs)).done()
        assert await left_of(other) == ["1", "2"]
    assert consumer.counters["reader_commits"] == 2
    await eventually(lambda: not len(consumer.consumer.named_readers), "nobody uses the name")


async def test_each_reader_gets_all_messages(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client, client.subscribe("jobs") as plain:
        await client.publish("jobs", "0", "1", "2")
        for count, reader in ((1, "a"), (2, "b"), (0, "c")):
            async with client.subscribe("jobs", reader=reader) as jobs:
                for number in range(3):
                    message = await anext(jobs)
                    assert message.data == f"{number}"
                    if number < count:
                        await message.done()
        assert await left_of(client, "a") == ["1", "2"]
        assert await left_of(client, "b") == ["2"]
        assert await left_of(client, "c") == ["0", "1", "2"]
        assert [(await anext(plain)).data for _ in range(3)] == ["0", "1", "2"]


async def test_the_furthest_of_several_with_one_name_counts(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "0", "1", "2", "3")
        async with (
            client.subscribe("jobs", reader="r") as fast,
            client.subscribe("jobs", reader="r") as slow,
        ):
            for _ in range(3):
                await (await anext(fast)).done()
            assert [(await anext(slow)).data for _ in range(2)] == ["0", "1"]
            await (await anext(slow)).done()
            assert await kept(consumer) == 3
        assert await left_of(client) == ["3"]


async def test_a_restart_does_not_let_a_slow_one_set_the_reader_back(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes, "sqlite")
    async with asyncio.timeout(20), client, client.subscribe("jobs", reader="r") as slow:
        await client.publish("jobs", "0", "1", "2", "3")
        await anext(slow)
        async with client.subscribe("jobs", reader="r") as fast:
            for _ in range(3):
                await (await anext(fast)).done()
        await consumer.crash()
        await consumer.restart()
        await client.publish("jobs", "4")
        for _ in range(3):
            await anext(slow)
        async with peer(consumer) as raw:
            log_id = (await raw.next("subscribed"))["log"]
            await raw.next("deliver")
            raw.send(COMMIT | {"log": log_id, "offset": 2})
            while (packet := await raw.packet())["t"] != "committed":
                assert packet["t"] == "deliver"
        assert packet["offset"] == 2
        assert await kept(consumer) == 3


@pytest.mark.parametrize("done", ["auto", "nowait"])
async def test_done_without_waiting(nodes: Nodes, done: str) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", *(f"{number}" for number in range(300)))
        async with client.subscribe("jobs", reader="r", auto_done=done == "auto") as jobs:
            for _ in range(200):
                message = await anext(jobs)
                if done == "nowait":
                    message.done_nowait()
            await jobs.flush()
            # With `auto_done`, the last one is not done.
            assert await kept(consumer) == (199 if done == "auto" else 200)
        assert consumer.counters["reader_commits"] < 100
        left = await left_of(client, auto_done=True)
        assert left[-1] == "299"
        assert await left_of(client) == []


async def test_where_a_reader_begins_that_is_new(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "0")
        async with client.subscribe("jobs", reader="late", start="latest"):
            pass
        # It has a place since then, though it has done nothing.
        await client.publish("jobs", "1")
        assert await left_of(client, "late", start="latest") == ["1"]
        assert await left_of(client, "late") == ["1"]
        assert await left_of(client, "early") == ["0", "1"]


async def test_a_gap_is_told(nodes: Nodes) -> None:
    _, client = await cluster(nodes, retention={"max_messages_per_topic": 10})
    async with soon(), client:
        for number in range(4):
            await client.publish("jobs", f"{number}")
        async with client.subscribe("jobs", reader="r") as jobs:
            await (await anext(jobs)).done()
        for number in range(4, 30):
            await client.publish("jobs", f"{number}")
        async with client.subscribe("jobs", reader="r") as jobs:
            with pytest.raises(wsqueue.GapError, match="19"):
                await anext(jobs)
            assert (await anext(jobs)).data == "20"
        items = [one async for one in client.subscribe("jobs", reader="r", follow=False, on_gap="yield")]
        assert items[0] == wsqueue.Gap("jobs", 19)
        assert isinstance(items[1], wsqueue.Message)
        await client.publish("jobs", "30")
        async with client.subscribe("jobs", reader="r", on_gap="yield", auto_done=True) as jobs_and_gaps:
            assert isinstance(await anext(jobs_and_gaps), wsqueue.Gap)
            item = await anext(jobs_and_gaps)
            assert isinstance(item, wsqueue.ReaderMessage)
            await item.done()
        assert (await left_of(client))[0] == "22"


async def test_a_log_that_is_another_one(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client, client.subscribe("jobs", reader="r", on_gap="yield") as jobs:
        await client.publish("jobs", "0", "1")
        old = [await anext(jobs) for _ in range(2)][1]
        await consumer.crash()
        await consumer.restart()
        await client.publish("jobs", "new", "newer")
        while not isinstance(message := await anext(jobs), wsqueue.ReaderMessage):
            assert message == wsqueue.Gap("jobs", None)
        assert message.data == "new"
        # It is of no use any more, and harms nobody.
        assert isinstance(old, wsqueue.ReaderMessage)
        await old.done()
        assert await left_of(client, on_gap="yield") == ["new", "newer"]
        await message.done()
        assert await left_of(client) == ["newer"]


async def test_more_messages_than_the_client_has_room_for(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers come behind messages, and the application takes none while it waits for them."""
    monkeypatch.setattr(inbox, "MAX_WAITING_MESSAGES", 50)
    consumer, client = await cluster(nodes)
    async with asyncio.timeout(20), client:
        for _ in range(60):
            client.publish_nowait("jobs", *["x" * 5000] * 20)
            await client.flush()
        async with client.subscribe("jobs", reader="r") as jobs:
            offsets = list[int]()
            for number in range(1200):
                message = await anext(jobs)
                offsets.append(message.offset)
                await message.done()
                if number == 600:
                    # Messages on their way come again, also while the client has no room.
                    for connection in list(consumer.connections):
                        cut(connection)
            assert offsets == list(range(1200))
            assert await kept(consumer) == 1200
            await client.publish("jobs", "live")
            assert (await anext(jobs)).data == "live"


async def test_a_lost_connection(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client, client.subscribe("jobs", reader="r") as jobs:
        await client.publish("jobs", "0", "1")
        first = await anext(jobs)
        for connection in list(consumer.connections):
            cut(connection)
        await first.done()
        assert await kept(consumer) == 1
        assert (await anext(jobs)).data == "1"
        await client.publish("jobs", "2")
        assert (await anext(jobs)).data == "2"


async def test_a_connection_that_breaks_before_a_message(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "0")
        async with client.subscribe("jobs", reader="r") as jobs:
            await (await anext(jobs)).done()
            for connection in list(consumer.connections):
                cut(connection)
            await consumer.subscribed("jobs", 1)
            await client.publish("jobs", "1")
            assert (await anext(jobs)).data == "1"


async def test_rights(nodes: Nodes) -> None:
    write_key(nodes.directory, "billing", BILLING)
    rights = {"subscribe": ["jobs"], "groups": ["billing-*"]}
    consumer = await nodes.consumer(clients=[{"name": "billing", "key_file": "billing.key"} | rights])
    named = wsqueue.connect(
        producers=["127.0.0.1:1/produce"],
        consumers=[f"{consumer.address}/subscribe"],
        psk=BILLING,
        name="billing",
    )
    async with soon(), named:
        async with named.subscribe("jobs", reader="billing-1"):
            pass
        with pytest.raises(wsqueue.NotAllowedError, match="subscribe to 'jobs' as the reader 'other'"):
            async with named.subscribe("jobs", reader="other"):
                pass
        with pytest.raises(wsqueue.NotAllowedError, match="may not subscribe to 'news'"):
            async with named.subscribe("news", reader="billing-1"):
                pass
        async with V2Socket.speaking(consumer.address, "/subscribe", BILLING, name="billing") as raw:
            for topic, reader in (("jobs", "other"), ("news", "billing-1")):
                raw.send(COMMIT | {"topic": topic, "reader": reader, "log": "x", "offset": 1})
                assert (await raw.next("unsubscribed"))["code"] == "not_allowed"
    assert consumer.counters["not_allowed"] == 4


async def test_positions_that_mean_nothing_here_are_confirmed_and_not_kept(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "0", "1", "2")
        async with peer(consumer) as raw:
            log_id = (await raw.next("subscribed"))["log"]
            await raw.next("deliver")
            for place in ({"log": "another", "offset": 2}, {"log": log_id, "offset": 4}):
                raw.send(COMMIT | place)
                assert await raw.next("committed") == COMMIT | {"t": "committed"} | place
                assert await kept(consumer) == 0
            for offset, expected in ((2, 2), (1, 2), (3, 3), (3, 3)):
                raw.send(COMMIT | {"log": log_id, "offset": offset})
                assert (await raw.next("committed"))["offset"] == offset
                assert await kept(consumer) == expected
            assert consumer.counters["reader_commits"] == 3


async def test_commits_that_come_together_are_kept_together(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes, "sqlite")
    async with soon(), client:
        await client.publish("jobs", *map(str, range(100)))
        async with peer(consumer) as raw:
            log_id = (await raw.next("subscribed"))["log"]
            await raw.next("deliver")
            for offset in (*range(100), 50):
                raw.send(COMMIT | {"log": log_id, "offset": offset})
            # The last answer stands for all.
            while (await raw.next("committed"))["offset"] != 50:
                pass
            assert await kept(consumer) == 99
            assert consumer.counters["reader_commits"] < 50


async def test_a_subscription_that_is_replaced_while_it_is_looked_up(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes, "sqlite")
    async with soon(), client:
        await client.publish("jobs", "0", "1")
        async with peer(consumer) as raw:
            raw.send({"t": "subscribe", "topic": "jobs", "start": "latest"})
            raw.send(SUBSCRIBE)
            raw.send({"t": "unsubscribe", "topic": "jobs"})
            raw.send(SUBSCRIBE | {"topic": "empty"})
            begun = list[tuple[str, str, int]]()
            while ("subscribed", "empty", 0) not in begun:
                packet = await raw.packet()
                begun.append((packet["t"], packet["topic"], packet.get("offset", -1)))
            assert begun == [
                ("subscribed", "jobs", 2),
                ("unsubscribed", "jobs", -1),
                ("subscribed", "empty", 0),
            ]
            assert consumer.subscribers("jobs") == 0


async def test_too_many_names(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr(states, "MAX_NAMES_PER_TOPIC", 2)
    monkeypatch.setattr(named_readers, "MAX_READERS_PER_CONNECTION", 3)
    consumer, client = await cluster(nodes)
    async with soon(), client:
        for reader in ("a", "b"):
            async with client.subscribe("jobs", reader=reader):
                pass
        with pytest.raises(wsqueue.ConnectError, match="no place for 'jobs' as the reader 'c'"):
            async with client.subscribe("jobs", reader="c"):
                pass
        async with peer(consumer, reader="a") as raw:
            for reader in "bcd":
                raw.send(SUBSCRIBE | {"reader": reader})
            assert (await raw.close_frame())[0] == CloseCode.TOO_MANY_TOPICS
    assert any("reader=c" in line for line in log.lines("reader refused"))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda client: client.subscribe("jobs", reader="a b"), "'a b' is not the name of a reader"),
        (lambda client: client.subscribe("jobs", reader=5), "5 is not the name of a reader"),
        (lambda client: client.subscribe("jobs", reader="r", start=5), "5 is not a start of a reader"),
        (
            lambda client: client.subscribe("jobs", "news", reader="r"),
            "a reader has one topic, and there are 2",
        ),
        (lambda client: client.subscribe("jobs", reader="r", on_gap="x"), "on_gap is 'x'"),
        (lambda client: client.subscribe("jobs", reader="r", group="g"), "expected one of the two"),
    ],
)
async def test_readers_that_cannot_be(
    nodes: Nodes, call: Callable[[wsqueue.Client], object], error: str
) -> None:
    async with nodes.client(["127.0.0.1:1"], ["127.0.0.1:1"]) as client:
        with pytest.raises(ValueError, match=error):
            call(client)


async def test_done_after_the_end(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "0", "1")
        async with client.subscribe("jobs", reader="r") as jobs:
            first, second = await anext(jobs), await anext(jobs)
            first.done_nowait()
        assert repr(first) == "ReaderMessage('jobs', '0', 0)"
        # It is kept already.
        with pytest.raises(wsqueue.ConnectError, match="the subscription is closed"):
            await second.done()
        assert await left_of(client) == ["1"]


async def test_a_consumer_that_is_away_at_the_end(nodes: Nodes, log: Log) -> None:
    consumer, client = await cluster(nodes)
    async with soon():
        await client.publish("jobs", "0")
        async with client.subscribe("jobs", reader="r") as jobs:
            message = await anext(jobs)
            await consumer.stop()
            waiting = asyncio.create_task(message.done())
            await eventually(lambda: not consumer.connections, "the consumer has gone")
            await asyncio.sleep(0.05)
        with pytest.raises(wsqueue.ConnectError, match="not kept that the message is done"):
            await waiting
        await client.close(confirm=False)
    assert any('reason="no connection"' in line for line in log.lines("reader left"))
