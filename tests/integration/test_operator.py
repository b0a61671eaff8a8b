"""Operators: lists of topics and groups, purges, and the end of groups and connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import wsqueue
from wsqueue.config.model import ClientConfig, Limits
from wsqueue.errors import ConnectError, NotAllowedError, WsqueueError
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.protocol.routing import topic_hash
from wsqueue.report.report import LagStatus
from wsqueue.tools.operator import Operator

from ..support.nats_servers import NatsServers
from ..support.nodes import BILLING, KEY, Log, Nodes, RunningNode, write_key
from ..support.ports import free_port
from ..support.raw_v2_peer import V2Server, V2Socket
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

MODES = pytest.mark.parametrize("mode", ["memory", "sqlite"])


async def cluster(
    nodes: Nodes, mode: str = "memory", consumers: int = 1, **settings: Any
) -> tuple[list[RunningNode], RunningNode, wsqueue.Client]:
    """Return consumers that keep their logs, a producer, and a client of them."""
    made = [
        await nodes.consumer(
            port=free_port(),
            retention={"mode": mode, "directory": f"{nodes.directory}/log-{index}"},
            **settings,
        )
        for index in range(consumers)
    ]
    producer = await nodes.producer(made, **settings)
    return made, producer, nodes.client([producer], made)


@contextlib.asynccontextmanager
async def operating(
    consumers: Sequence[RunningNode | str], *producers: RunningNode, key: PreSharedKey | None = None
) -> AsyncIterator[Operator]:
    """Return an operator of some nodes."""
    config = ClientConfig(
        producers=Nodes.addresses(producers, "/produce"),
        consumers=Nodes.addresses(consumers, "/subscribe"),
        limits=Limits(reconnect_max_seconds=0.1, hello_seconds=2.0),
    )
    async with Operator(config, key or PreSharedKey(KEY), open_seconds=1.0) as operator:
        yield operator


@MODES
async def test_topics_of_all_consumers_are_listed(nodes: Nodes, mode: str) -> None:
    consumers, _, client = await cluster(nodes, mode, consumers=2)
    async with soon(), client, client.subscribe("b", "empty"), operating(consumers) as operator:
        await client.publish("a", "1", "2")
        await client.publish("b", "3")
        await client.publish("sensors/1", "4")
        listing = await operator.topics()
        assert listing.problems == []
        assert [
            (one.topic, one.messages, one.first, one.next, one.subscribers) for one in listing.topics
        ] == [
            ("a", 2, 0, 2, 0),
            ("b", 1, 0, 1, 1),
            ("empty", 0, 0, 0, 1),
            ("sensors/1", 1, 0, 1, 0),
        ]
        assert all(one.bytes > 0 for one in listing.topics if one.messages)
        assert [one.topic for one in (await operator.topics("sensors/*")).topics] == ["sensors/1"]
        assert [one.topic for one in (await operator.topics("a")).topics] == ["a"]
        assert (await operator.topics("*", named=True)).topics == []


@MODES
async def test_groups_and_readers_tell_how_far_they_are(nodes: Nodes, mode: str) -> None:
    consumers, _, client = await cluster(nodes, mode)
    async with soon(), client, operating(consumers) as operator:
        await client.publish("jobs", *map(str, range(10)))
        async with client.subscribe("jobs", reader="mail", start="earliest") as mail:
            await (await anext(mail)).done()
        async with client.subscribe("jobs", group="g", prefetch=4) as jobs:
            first = await anext(jobs)
            second = await anext(jobs)
            await second.done()
            (topic,) = (await operator.topics("*", named=True)).topics
            group, reader = topic.names
            assert (group.kind, group.name, group.offset, group.members) == ("group", "g", 0, 1)
            assert (group.lag, group.dead) == (9, 0)
            assert group.oldest_time is not None
            assert 0 <= time.time() - group.oldest_time < 600
            assert group.lent in (3, 4)
            assert (reader.kind, reader.name, reader.offset, reader.lag, reader.members) == (
                "reader",
                "mail",
                1,
                9,
                0,
            )
            await first.reject("bad")

        async def is_dead() -> bool:
            await asyncio.sleep(0.1)
            (found,) = (await operator.topics("jobs")).topics
            return found.names[0].dead == 1 and found.names[0].members == 0

        while not await is_dead():
            pass
        topics = {one.topic: one for one in (await operator.topics()).topics}
        assert topics["jobs"].names[0].lag == 8
        assert topics["jobs!g!dead"].messages == 1


async def test_a_list_comes_in_parts(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsqueue.nodes.operations.LISTED_TOPICS", 3)
    monkeypatch.setattr("wsqueue.nodes.sorted_names.SORTED_AT_ONCE", 2)
    consumers, _, client = await cluster(nodes)
    names = [f"t{index}" for index in range(10)]
    async with soon(), client, operating(consumers) as operator:
        for name in reversed(names):
            await client.publish(name, "x")
            async with client.subscribe(name, reader="r", start="latest"):
                pass
        assert [one.topic for one in (await operator.topics()).topics] == names
        assert [one.topic for one in (await operator.topics("t*", named=True)).topics] == names
        async with V2Socket.speaking(consumers[0].address, "/operate", KEY) as socket:
            socket.send({"t": "ask_topics", "after": "t4"})
            answer = await socket.next("topics")
            assert [one["topic"] for one in answer["topics"]] == ["t5", "t6", "t7"]
            assert answer["after"] == "t7"


@MODES
async def test_a_name_is_forgotten_unless_somebody_uses_it(nodes: Nodes, mode: str) -> None:
    consumers, _, client = await cluster(nodes, mode)
    async with soon(), client, operating(consumers) as operator:
        await client.publish("jobs", "1", "2")
        async with (
            client.subscribe("jobs", group="g") as jobs,
            client.subscribe("jobs", reader="r", start="earliest") as reader,
        ):
            await (await anext(jobs)).done()
            await (await anext(reader)).done()
            with pytest.raises(WsqueueError, match="the group 'g' of 'jobs' has 1 member"):
                await operator.forget("jobs", "g")
            with pytest.raises(WsqueueError, match="the reader 'r' of 'jobs' has 1 connection"):
                await operator.forget("jobs", "r")
        consumer = consumers[0].consumer
        await eventually(lambda: not consumer.groups.by_topic, "no member is left")
        await eventually(lambda: not len(consumer.named_readers), "nobody reads")
        await operator.forget("jobs", "g")
        await operator.forget("jobs", "r")
        assert (await operator.topics("*", named=True)).topics == []
        with pytest.raises(WsqueueError, match="has no group or reader 'g'"):
            await operator.forget("jobs", "g")
        async with client.subscribe("jobs", group="g") as jobs:
            assert (await anext(jobs)).data == "1"


@MODES
async def test_a_purge_drops_what_is_kept(nodes: Nodes, log: Log, mode: str) -> None:
    consumers, _, client = await cluster(nodes, mode)
    (consumer,) = consumers
    async with asyncio.timeout(30), client:
        for index in range(6):
            await client.publish("jobs", f"{index}")
        await client.publish("others", "x")
        async with client.subscribe("jobs", reader="mail", start="earliest") as mail:
            await (await anext(mail)).done()
        async with client.subscribe("jobs", group="g", prefetch=1) as jobs:
            await (await anext(jobs)).done()
        async with operating(consumers) as operator:
            assert await operator.purge("jobs", 3) == 3
            assert await operator.purge("jobs", 3) == 0
            assert await operator.purge("unknown") == 0
            assert log.lines("topic purged", logging.WARNING)[0].endswith("topic=jobs before=3 messages=3")
            (jobs_topic, others) = (await operator.topics()).topics
            assert (jobs_topic.first, jobs_topic.next, jobs_topic.messages) == (3, 6, 3)
            assert [name.lag for name in jobs_topic.names] == [3, 3]
            assert others.messages == 1
        async with client.subscribe("jobs", start="earliest", follow=False) as kept:
            assert [message.data async for message in kept] == ["3", "4", "5"]
        async with client.subscribe("jobs", reader="mail", on_gap="yield") as mail:
            gap = await anext(mail)
            assert isinstance(gap, wsqueue.Gap)
            assert gap.missed == 2
            message = await anext(mail)
            assert isinstance(message, wsqueue.ReaderMessage)
            assert message.data == "3"
        async with operating(consumers) as operator:
            assert await operator.purge("jobs") == 3
            assert [one.topic for one in (await operator.topics()).topics] == ["others"]
        await consumer.stop()
        await consumer.restart()
        await client.publish("jobs", "6")
        async with client.subscribe("jobs", start="earliest", follow=False) as kept:
            found = [message async for message in kept]
            assert [(message.data, message.offset) for message in found] == [("6", 6)]
        async with client.subscribe("jobs", group="g") as jobs:
            assert (await anext(jobs)).data == "6"
        assert log.lines("messages gone", logging.WARNING)


async def test_a_purge_of_a_shared_log_reaches_all_consumers(nodes: Nodes, tmp_path: Path) -> None:
    async with NatsServers(tmp_path) as servers:
        retention = {"mode": "jetstream", "jetstream": servers.settings | {"streams": 2}}
        consumers = [await nodes.consumer(port=free_port(), retention=retention) for _ in range(2)]
        producer = await nodes.producer(consumers)
        client = nodes.client([producer], consumers)
        one_each = [nodes.client([producer], [consumer.address]) for consumer in consumers]
        async with asyncio.timeout(30), client, one_each[0], one_each[1]:
            for index in range(6):
                await client.publish("jobs", f"{index}")
            # Both have the messages in memory.
            for one in one_each:
                async with one.subscribe("jobs", start="earliest", follow=False) as kept:
                    assert len([message async for message in kept]) == 6
            async with (
                operating(consumers) as operator,
                one_each[0].subscribe("jobs"),
                one_each[1].subscribe("jobs"),
            ):
                assert await operator.purge("jobs", 4) == 4
                (topic,) = (await operator.topics()).topics
                assert (topic.first, topic.next) == (4, 6)
                for one in one_each:
                    async with one.subscribe("jobs", start="earliest", follow=False) as kept:
                        assert [message.data async for message in kept] == ["4", "5"]
                await client.publish("jobs", "6")
                assert await operator.purge("jobs") == 3
                assert await operator.purge("jobs") == 0
                assert await operator.purge("unknown") == 0
                await client.publish("jobs", "7")
                for one in one_each:
                    async with one.subscribe("jobs", start="earliest", follow=False) as kept:
                        found = [message async for message in kept]
                        assert [(message.data, message.offset) for message in found] == [("7", 7)]


async def test_a_purge_that_is_repeated_elsewhere_drops_no_later_messages() -> None:
    """The home of the topic has done it, perhaps, and others have published since."""
    ports = [free_port(), free_port()]
    topic = next(name for name in "abcdefgh" if topic_hash(name) % 2 == 0)

    async def answer(socket: V2Socket, end: int) -> dict[str, Any]:
        """List the topic, and return the request to purge it."""
        while (packet := await socket.packet())["t"] == "ask_topics":
            entry = {"topic": topic, "messages": 2, "bytes": 9, "first": end - 2, "next": end}
            socket.send({"t": "topics", "topics": [entry | {"subscribers": 0, "names": []}], "log": "one"})
        return packet

    async with (
        soon(),
        V2Server(ports[0]) as home,
        V2Server(ports[1]) as other,
        operating([f"127.0.0.1:{port}" for port in ports]) as operator,
    ):
        purging = asyncio.create_task(operator.purge(topic))
        socket = await home.speaking(KEY)
        assert (await answer(socket, 4))["t"] == "purge"
        socket.writer.transport.abort()
        socket = await other.speaking(KEY)
        assert await answer(socket, 6) == {"t": "purge", "topic": topic, "before": 4}
        socket.send({"t": "done", "count": 0})
        assert await purging == 0


async def test_packets_of_operators_are_answered_one_by_one(nodes: Nodes) -> None:
    (consumer,), producer, _ = await cluster(nodes)
    async with soon(), V2Socket.speaking(consumer.address, "/operate", KEY) as socket:
        socket.send({"t": "forget", "topic": "x", "kind": "group", "name": "g"})
        socket.send({"t": "ask_topics"})
        socket.send({"t": "ask_topics", "pattern": "x"})
        failed = await socket.next("failed")
        assert (failed["t"], failed["code"]) == ("failed", "unknown")
        assert await socket.next("topics") == {"t": "topics", "topics": []}
        assert await socket.next("topics") == {"t": "topics", "topics": []}
        socket.send({"t": "ask_report"})
        assert (await socket.close_frame())[0] == 4409
    async with soon(), V2Socket.speaking(producer.address, "/operate", KEY) as socket:
        socket.send({"t": "ask_topics"})
        failed = await socket.next("failed")
        assert (failed["t"], failed["code"]) == ("failed", "unsupported")


async def test_a_name_needs_the_right(nodes: Nodes) -> None:
    write_key(nodes.directory, "billing", BILLING)
    key = PreSharedKey(BILLING, name="billing")
    client = {"name": "billing", "key_file": f"{nodes.directory}/billing.key", "subscribe": ["*"]}
    (consumer,), producer, _ = await cluster(nodes, clients=[client])
    async with soon(), operating([consumer], producer, key=key) as operator:
        with pytest.raises(NotAllowedError, match="billing may not operate"):
            await operator.topics()
    for node in (consumer, producer):
        node.write(clients=[client | {"operator": True}])
        await node.service.reload()
    async with soon(), operating([consumer], producer, key=key) as operator:
        assert (await operator.topics()).problems == []
        assert await operator.disconnect(address="192.0.2.7") == (0, [])


async def test_consumers_of_a_shared_log_have_one_list(nodes: Nodes, tmp_path: Path) -> None:
    async with NatsServers(tmp_path) as servers:
        retention = {"mode": "jetstream", "jetstream": servers.settings | {"streams": 2}}
        consumers = [await nodes.consumer(port=free_port(), retention=retention) for _ in range(2)]
        producer = await nodes.producer(consumers)
        client = nodes.client([producer], consumers)
        names = [f"t{index}" for index in range(8)]
        addresses = [consumer.address for consumer in consumers]
        async with soon(), client, operating(addresses) as operator:
            for name in names:
                await client.publish(name, "x", "y")
            async with client.subscribe("t3", group="g", prefetch=1) as jobs, client.subscribe("t3", "t4"):
                await (await anext(jobs)).done()
                await eventually(lambda: any(one.consumer.groups.by_topic for one in consumers), "it works")
                topics = (await operator.topics()).topics
                assert [(one.topic, one.messages, one.next) for one in topics] == [
                    (name, 2, 2) for name in names
                ]
                assert all(len(one.consumers) == 2 and one.bytes > 0 for one in topics)
                assert [one.subscribers for one in topics] == [0, 0, 0, 1, 1, 0, 0, 0]
                (group,) = topics[3].names
                assert (group.lag, group.offset, group.members) == (1, 1, 1)
                assert [one.topic for one in (await operator.topics("t5")).topics] == ["t5"]
                assert (await operator.topics("t9")).topics == []
                with pytest.raises(WsqueueError, match="the group 'g' of 't3' has 1 member"):
                    await operator.forget("t3", "g")
            await eventually(lambda: not any(one.consumer.groups.by_topic for one in consumers), "none left")
            await operator.forget("t3", "g")
            await consumers[0].stop()
            listing = await operator.topics("*")
            assert ([one.topic for one in listing.topics], listing.problems) == (names, [])
            assert (await operator.topics(named=True)).topics == []


async def test_a_long_list_of_a_shared_log_comes_in_parts(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsqueue.nodes.operations.LISTED_TOPICS", 3)
    async with NatsServers(tmp_path) as servers:
        retention = {"mode": "jetstream", "jetstream": servers.settings | {"streams": 2}}
        consumer = await nodes.consumer(port=free_port(), retention=retention)
        client = nodes.client([await nodes.producer([consumer])], [consumer])
        names = [f"t{index}" for index in range(10)]
        async with soon(), client, operating([consumer]) as operator:
            for name in names:
                await client.publish(name, "x")
            assert [one.topic for one in (await operator.topics()).topics] == names
            assert await operator.purge("t7") == 1
            assert "t7" not in [one.topic for one in (await operator.topics()).topics]


async def test_clients_are_disconnected(nodes: Nodes, log: Log) -> None:
    write_key(nodes.directory, "billing", BILLING)
    named = {"name": "billing", "key_file": f"{nodes.directory}/billing.key", "subscribe": ["*"]}
    consumers, producer, client = await cluster(nodes, clients=[named])
    billing = wsqueue.connect(
        producers=Nodes.addresses([producer], "/produce"),
        consumers=Nodes.addresses(consumers, "/subscribe"),
        psk=BILLING,
        name="billing",
        limits=Limits(reconnect_max_seconds=0.1),
    )
    async with soon(), client, billing, operating(consumers, producer) as operator:
        async with client.subscribe("news") as news, billing.subscribe("news") as theirs:
            await client.publish("news", "1")
            assert [(await anext(one)).data for one in (news, theirs)] == ["1", "1"]
            assert await operator.disconnect(key="others") == (0, [])
            before = consumers[0].counters["connections"]
            assert await operator.disconnect(key="billing") == (1, [])
            assert len(log.lines("clients disconnected", logging.WARNING)) == 4
            await eventually(lambda: consumers[0].counters["connections"] > before, "it connects again")
            await consumers[0].subscribed("news", 2)
            assert await operator.disconnect(address="192.0.2.7") == (0, [])
            # Two subscribers and a publisher; the link between the nodes and the operator stay.
            assert await operator.disconnect(address="127.0.0.1") == (3, [])
            await client.publish("news", "2")
            assert [(await anext(one)).data for one in (news, theirs)] == ["2", "2"]
        assert producer.links[0].connection is not None
    async with soon(), V2Socket.speaking(producer.address, "/produce", KEY) as socket:
        host, port = socket.writer.get_extra_info("sockname")
        peer = f"{host}:{port}"
        async with operating(consumers, producer) as operator:
            assert await operator.disconnect(address=peer) == (1, [])
            # Its close is not answered yet, and it does not count again.
            assert await operator.disconnect(address=peer) == (0, [])
        assert await socket.close_frame() == (4418, "an operator has ended the connection")


async def test_a_node_that_is_away_is_told(nodes: Nodes) -> None:
    consumers, producer, client = await cluster(nodes, consumers=2)
    async with soon(), client:
        for index in range(4):
            await client.publish(f"t{index}", "x")
    addresses = [consumer.address for consumer in consumers]
    await consumers[1].stop()
    async with soon(), operating(addresses, producer) as operator:
        listing = await operator.topics()
        assert listing.topics
        assert [isinstance(problem, ConnectError) for problem in listing.problems] == [True]
        count, problems = await operator.disconnect(key="x")
        assert (count, len(problems)) == (0, 1)


@MODES
async def test_reports_have_the_lags(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr("wsqueue.nodes.lags.LOOK_SECONDS", 0.02)
    (consumer,), _, client = await cluster(nodes, mode)
    lags = consumer.consumer.lags
    async with asyncio.timeout(30), client:
        await client.publish("jobs", *map(str, range(10)))
        async with client.subscribe("jobs", reader="mail", start="earliest") as mail:
            await (await anext(mail)).done()
        async with client.subscribe("jobs", group="g", prefetch=1) as jobs:
            await eventually(
                lambda: (
                    lags.largest(5)
                    == [LagStatus("jobs", "group", "g", 10, 1), LagStatus("jobs", "reader", "mail", 9, 0)]
                ),
                "both are known",
            )
            for _ in range(4):
                await (await anext(jobs)).done()
        await eventually(
            lambda: lags.largest(1) == [LagStatus("jobs", "reader", "mail", 9, 0)], "the reader is last"
        )
        await eventually(
            lambda: (
                consumer.service.reporter.report().lags
                == [LagStatus("jobs", "reader", "mail", 9, 0), LagStatus("jobs", "group", "g", 6, 0)]
            ),
            "the report has them",
        )
        consumer.write(monitoring={"top_topics": 1})
        await consumer.service.reload()
        await eventually(lambda: len(consumer.service.reporter.report().lags) == 1, "one is named")
        async with operating([consumer]) as operator:
            await operator.forget("jobs", "g")
            await operator.forget("jobs", "mail")
        await eventually(lambda: lags.largest(5) == [], "both are forgotten")


async def test_lags_of_a_shared_log_are_known_to_all(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsqueue.nodes.lags.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("wsqueue.nodes.lags.LOOKED_TOPICS", 1)
    async with NatsServers(tmp_path) as servers:
        retention = {"mode": "jetstream", "jetstream": servers.settings | {"streams": 2}}
        consumers = [await nodes.consumer(port=free_port(), retention=retention) for _ in range(2)]
        client = nodes.client([await nodes.producer(consumers)], consumers)
        async with asyncio.timeout(30), client:
            for topic in ("a", "b"):
                async with client.subscribe(topic, reader="r", start="latest"):
                    pass
                await client.publish(topic, "1", "2")
            await client.publish("b", "3")
            for consumer in consumers:
                await eventually(
                    lambda: (
                        [(one.topic, one.lag) for one in consumer.consumer.lags.largest(5)]  # noqa: B023
                        == [("b", 3), ("a", 2)]
                    ),
                    "both are known",
                )
        for consumer in consumers:
            await consumer.stop()
