"""Subscribers of the client while the home of their topics is away, and consumers that share one log."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

import wsqueue
from wsqueue.client.failover import failover_order
from wsqueue.config.addresses import parse_address
from wsqueue.net import connection
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.tools.bench.v2 import V2Wire

from ..support.classic_peer import topic_of
from ..support.nodes import KEY, Log, Nodes
from ..support.ports import free_port
from ..support.raw_peer import RawServer
from ..support.shared_consumers import EPOCH, SharedConsumer, SharedTopics
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

Subscribed = wsqueue.Subscription[wsqueue.Message]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all times; a test that needs one of them to be long sets it."""
    monkeypatch.setattr("wsqueue.client.failover.AWAY_SECONDS", 0.2)
    monkeypatch.setattr("wsqueue.client.failover.BACK_SECONDS", 0.3)
    monkeypatch.setattr("wsqueue.client.failover.LOG_SECONDS", 0.5)


@contextlib.asynccontextmanager
async def started(*consumers: SharedConsumer) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for consumer in consumers:
            await stack.enter_async_context(consumer)
        yield


def client_of(
    nodes: Nodes, *consumers: SharedConsumer | str, open_seconds: float = 30.0, **limits: Any
) -> wsqueue.Client:
    addresses = [one if isinstance(one, str) else one.address for one in consumers]
    return nodes.client(addresses[:1], addresses, open_seconds=open_seconds, **limits)


@contextlib.asynccontextmanager
async def subscribed(
    nodes: Nodes, topic: str, *consumers: SharedConsumer, **limits: Any
) -> AsyncIterator[Subscribed]:
    """Start consumers, and subscribe at them."""
    async with (
        started(*consumers),
        client_of(nodes, *consumers, **limits) as client,
        client.subscribe(topic) as messages,
    ):
        yield messages


def topic_at(home: int, consumers: int, first: int) -> str:
    """Return a topic with this home, for which another consumer stands in first."""
    others = [index for index in range(consumers) if index != home]
    topics = (topic_of(home, consumers, prefix) for prefix in "abcdefghijklmnop")
    return next(topic for topic in topics if failover_order(topic, others)[0] == first)


async def next_data(messages: Subscribed, count: int = 1) -> list[str | bytes]:
    return [(await anext(messages)).data for _ in range(count)]


async def test_the_topics_go_elsewhere_and_return_at_their_positions(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = SharedConsumer(log), SharedConsumer(log)
    async with soon(), subscribed(nodes, topic, home, other) as messages:
        log.append(topic, "0", "1")
        assert await next_data(messages, 2) == ["0", "1"]
        assert other.connections == 0
        await home.stop()
        log.append(topic, "2")
        assert await next_data(messages) == ["2"]
        assert [(request["log"], request["offset"]) for request in other.requests] == [(EPOCH, 2)]
        await home.start()
        await eventually(lambda: home.subscribers == 1, "it is back")
        log.append(topic, "3")
        assert await next_data(messages) == ["3"]
        assert (home.requests[-1]["log"], home.requests[-1]["offset"]) == (EPOCH, 3)
        await eventually(lambda: other.closed == 1, "the other is left in the polite way")


async def test_the_last_messages_are_asked_for_once(nodes: Nodes) -> None:
    """Another consumer is asked to go on behind them."""
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = SharedConsumer(log), SharedConsumer(log)
    log.append(topic, *map(str, range(10)))
    async with (
        soon(),
        started(home, other),
        client_of(nodes, home, other) as client,
        client.subscribe(topic, start=-3) as messages,
    ):
        assert await next_data(messages, 3) == ["7", "8", "9"]
        await home.stop()
        log.append(topic, "10")
        assert await next_data(messages) == ["10"]
        assert [(request["start"], request["offset"]) for request in other.requests] == [("offset", 10)]


async def test_all_topics_of_a_link_move_together(nodes: Nodes) -> None:
    log = SharedTopics()
    home, other = SharedConsumer(log), SharedConsumer(log)
    topics = [topic_of(0, 2, prefix) for prefix in "abc"]
    async with (
        soon(),
        started(home, other),
        client_of(nodes, home, other) as client,
        client.subscribe(*topics) as messages,
    ):
        for topic in topics:
            log.append(topic, topic)
        assert sorted(map(str, await next_data(messages, 3))) == topics
        await home.stop()
        for topic in topics:
            log.append(topic, topic)
        assert sorted(map(str, await next_data(messages, 3))) == topics
        assert other.connections == 1
        assert {request["offset"] for request in other.requests} == {1}


async def test_a_home_without_the_log_is_left_and_keeps_no_subscription(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_of(1, 2)
    other, home = SharedConsumer(log), SharedConsumer(log)
    async with soon(), subscribed(nodes, topic, other, home) as messages:
        home.become(available=False)
        await eventually(lambda: other.subscribers == 1, "it has moved")
        await eventually(lambda: home.connections == 2, "the home is watched")
        assert home.subscribers == 0
        log.append(topic, "0")
        assert await next_data(messages) == ["0"]
        home.become(available=True)
        await eventually(lambda: home.subscribers == 1, "it is back")
        log.append(topic, "1")
        assert await next_data(messages) == ["1"]


async def test_while_no_consumer_reaches_the_log_all_topics_stay(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_of(0, 3)
    home, *others = (SharedConsumer(log) for _ in range(3))
    async with soon(), subscribed(nodes, topic, home, *others) as messages:
        for consumer in (home, *others):
            consumer.become(available=False)
        await eventually(lambda: all(other.connections > 1 for other in others), "they are asked")
        home.become(available=True)
        log.append(topic, "0")
        assert await next_data(messages) == ["0"]
        assert home.connections == 1
        assert [other.requests for other in others] == [[], []]


async def test_a_place_that_is_lost_too_is_replaced(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_at(0, 3, first=2)
    home, second, first = (SharedConsumer(log) for _ in range(3))
    async with soon(), subscribed(nodes, topic, home, second, first) as messages:
        await home.stop()
        await eventually(lambda: first.subscribers == 1, "the first in the order has it")
        log.append(topic, "0")
        assert await next_data(messages) == ["0"]
        await first.stop()
        await eventually(lambda: second.subscribers == 1, "the second in the order has it")
        log.append(topic, "1")
        assert await next_data(messages) == ["1"]
        second.become(available=False)
        await first.start()
        await eventually(lambda: first.subscribers == 1, "the first has it again")
        log.append(topic, "2")
        assert await next_data(messages) == ["2"]


async def test_a_consumer_with_another_log_is_not_used(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_at(0, 3, first=1)
    home, foreign, same = SharedConsumer(log), SharedConsumer(SharedTopics(), "foreign"), SharedConsumer(log)
    async with soon(), subscribed(nodes, topic, home, foreign, same) as messages:
        await home.stop()
        log.append(topic, "0")
        assert await next_data(messages) == ["0"]
        assert (foreign.connections, foreign.requests) == (1, [])


async def test_consumers_with_logs_of_their_own_are_left_alone(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = SharedConsumer(log, None), SharedConsumer(SharedTopics(), None)
    async with soon(), subscribed(nodes, topic, home, other) as messages:
        log.append(topic, "0")
        assert await next_data(messages) == ["0"]
        await home.stop()
        await asyncio.sleep(0.5)  # longer than it takes to go elsewhere
        log.append(topic, "1")
        await home.start()
        assert await next_data(messages) == ["1"]
        assert other.connections == 0


async def test_one_that_names_no_log_is_tried_once(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = SharedConsumer(log, None), SharedConsumer(SharedTopics(), None)
    async with soon(), started(other), client_of(nodes, home, other) as client:
        for _ in range(2):
            with pytest.raises(wsqueue.ConnectError, match=f"{home.address}.*refused") as caught:
                async with client.subscribe(topic):
                    pass
            assert other.address not in str(caught.value)
        assert (other.connections, other.requests) == (1, [])
        async with home, client.subscribe(topic) as messages:
            log.append(topic, "0")
            assert await next_data(messages) == ["0"]


async def test_a_home_that_was_never_up_is_replaced_at_once(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsqueue.client.failover.AWAY_SECONDS", 3600.0)
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = SharedConsumer(log), SharedConsumer(log)
    log.append(topic, "0", "1")
    async with soon(), started(other), client_of(nodes, home, other) as client:
        found = [message.data async for message in client.subscribe(topic, start="earliest", follow=False)]
        assert found == ["0", "1"]
        async with client.subscribe(topic) as messages, home:
            await eventually(lambda: home.subscribers == 1, "it is back")
            log.append(topic, "2")
            assert await next_data(messages) == ["2"]


async def test_nobody_answers(nodes: Nodes, log: Log) -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    async with soon(), client_of(nodes, *addresses) as client:
        for _ in range(2):
            with pytest.raises(wsqueue.ConnectError) as caught:
                async with client.subscribe(topic_of(1, 3)):
                    pass
            assert all(address in str(caught.value) for address in addresses)
            assert str(caught.value).startswith(f"no node answers: {addresses[1]}/subscribe")
    assert log.lines("", 30) == []


async def test_an_election_is_waited_for(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = (SharedConsumer(log, available=False) for _ in range(2))
    async with soon(), started(home, other), client_of(nodes, home, other, open_seconds=0.1) as client:
        messages = client.subscribe(topic)
        opening = asyncio.ensure_future(messages.__aenter__())
        await eventually(lambda: other.connections > 2, "it has been asked again and again")
        assert not opening.done()
        home.become(available=True)
        await opening
        log.append(topic, "0")
        assert await next_data(messages) == ["0"]
        await messages.close()


async def test_an_election_is_waited_for_without_the_home(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = SharedConsumer(log), SharedConsumer(log, available=False)
    async with soon(), started(other), client_of(nodes, home, other, open_seconds=1.0) as client:
        opening = asyncio.ensure_future(client.subscribe(topic).__aenter__())
        await eventually(lambda: other.connections > 2, "it has been asked again and again")
        assert not opening.done()
        other.become(available=True)
        messages = await opening
        log.append(topic, "0")
        assert await next_data(messages) == ["0"]
        await messages.close()


async def test_one_that_speaks_classic_is_not_used(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_at(0, 3, first=1)
    home, same = SharedConsumer(log), SharedConsumer(log)
    async with (
        soon(),
        RawServer() as classic,
        started(home, same),
        client_of(nodes, home, classic.address, same) as client,
        client.subscribe(topic) as messages,
    ):
        await home.stop()
        raw = await classic.next()
        # Its path is not that of a topic, which a classic consumer would take for a subscription.
        assert await raw.upgrade() == "/subscribe"
        log.append(topic, "0")
        assert await next_data(messages) == ["0"]


async def test_a_home_with_another_key_is_an_error(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = await nodes.consumer(key=f"not {KEY}"), SharedConsumer(log)
    async with soon(), started(other), client_of(nodes, home.address, other) as client:
        with pytest.raises(wsqueue.AuthenticationError, match="4401"):
            async with client.subscribe(topic):
                pass
    assert other.connections == 0


async def test_nothing_stays_open(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = SharedConsumer(log), SharedConsumer(log)
    async with soon(), started(home, other):
        async with client_of(nodes, home, other) as client, client.subscribe(topic):
            home.become(available=False)
            await eventually(lambda: other.subscribers == 1, "it has moved")
            await eventually(lambda: home.connections == 2, "the home is watched")
        await eventually(lambda: home.closed == 2 and other.closed == 1, "all are closed")
        await asyncio.sleep(0.3)  # longer than a reconnect takes
        assert (home.connections, other.connections) == (2, 1)


async def test_the_end_of_the_event_loop_begins_no_further_link(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_at(0, 3, first=1)
    home, first, second = consumers = [SharedConsumer(log) for _ in range(3)]
    complaints: list[str] = []

    async def program() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, told: complaints.append(told["message"])
        )
        messages = client_of(nodes, *consumers).subscribe(topic)
        await messages.__aenter__()
        await eventually(lambda: second.subscribers == 1, "it has moved")

    async with soon(), started(*consumers):
        home.become(available=False)
        first.become(available=False)
        await asyncio.to_thread(asyncio.run, program())
    gc.collect()
    assert complaints == []


async def test_a_silent_consumer_is_left_within_seconds(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CLOSE_PING_SECONDS", 0.1)
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = SharedConsumer(log), SharedConsumer(log)
    async with soon(), subscribed(nodes, topic, home, other) as messages:
        log.append(topic, "a")
        assert await next_data(messages) == ["a"]
        home.silent = True
        await eventually(lambda: other.subscribers == 1, "it has moved")
        log.append(topic, "b")
        assert await next_data(messages) == ["b"]


async def test_a_slow_application_loses_nothing_when_its_topics_move(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading is paused at the home, and then at the other, and each is left while it is."""
    monkeypatch.setattr("wsqueue.client.inbox.MAX_WAITING_MESSAGES", 10)
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = SharedConsumer(log), SharedConsumer(log)
    expected = [str(number) for number in range(3000)]
    keepalive = {"ping_interval_seconds": 0.1, "ping_timeout_seconds": 0.1}
    async with soon(), subscribed(nodes, topic, home, other, **keepalive) as messages:
        log.append(topic, *expected[:1000])
        assert await next_data(messages) == expected[:1]
        await home.stop()
        await eventually(lambda: other.subscribers == 1, "it has moved")
        log.append(topic, *expected[1000:2000])
        await home.start()
        await eventually(lambda: home.subscribers == 1, "it is back")
        log.append(topic, *expected[2000:])
        assert await next_data(messages, 2999) == expected[1:]


async def test_the_load_generator_subscribes_at_such_consumers(nodes: Nodes) -> None:
    log, topic = SharedTopics(), topic_of(0, 2)
    home, other = SharedConsumer(log), SharedConsumer(log)
    addresses = [parse_address(f"{consumer.address}/subscribe", "/subscribe") for consumer in (home, other)]
    wire = V2Wire([], addresses, PreSharedKey(KEY))
    async with soon(), started(home, other):
        (await asyncio.to_thread(wire.open_subscriber, topic)).close()
        assert (len(home.requests), len(other.requests)) == (1, 0)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_comes_and_goes_each_message_comes_once(nodes: Nodes, seed: int) -> None:
    log, topic = SharedTopics(), topic_of(0, 3)
    consumers = [SharedConsumer(log) for _ in range(3)]
    running = set(consumers)
    chance = random.Random(seed)
    async with soon(), subscribed(nodes, topic, *consumers) as messages:
        count = 0
        for _ in range(40):
            consumer = chance.choice(consumers)
            if consumer not in running:
                consumer.available = chance.random() < 0.7
                await consumer.start()
                running.add(consumer)
            elif chance.random() < 0.5:
                consumer.become(available=not consumer.available)
            else:
                await consumer.stop()
                running.discard(consumer)
            for _ in range(chance.randrange(4)):
                log.append(topic, str(count))
                count += 1
                await asyncio.sleep(chance.random() * 0.1)
        for consumer in consumers:
            consumer.available = True
            if consumer in running:
                consumer.become(available=True)
            else:
                await consumer.start()
        log.append(topic, "end")
        assert await next_data(messages, count + 1) == [*(str(number) for number in range(count)), "end"]
    assert any(request.get("offset") for consumer in consumers[1:] for request in consumer.requests)
