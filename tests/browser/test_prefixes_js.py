"""Subscriptions of the JavaScript client to all topics with a prefix: docs/protocol.md, "Prefixes"."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page

from tests.support.nodes import BILLING, KEY, Nodes, cut, write_key
from tests.support.ports import free_port
from tests.support.raw_v2_peer import V2Server, V2Socket, deliver_of
from tests.support.waiting import soon
from wsqueue.protocol.routing import topic_hash

from ..support.chromium import Tabs
from .client import NEW_CLIENT, js, new_client
from .test_failover_js import AWAY_MILLISECONDS, LivelyServer, is_down, log_of, port_of

pytestmark = pytest.mark.anyio

PREFIX = "s/"
FOLLOW = {"t": "follow", "prefix": PREFIX}
PAIRS = "got.map(({ topic, data }) => `${topic} ${data}`)"


def topics_at(consumer: int, count: int) -> list[str]:
    """Return topics with the prefix that live at one of two consumers."""
    return [name for name in map("s/{}".format, range(99)) if topic_hash(name) % 2 == consumer][:count]


def subscribed(topic: str, offset: int) -> dict[str, Any]:
    return {"t": "subscribed", "topic": topic, "log": "epoch", "offset": offset, "end": offset}


def from_offset(topic: str, offset: int) -> dict[str, Any]:
    return {"t": "subscribe", "topic": topic, "start": "offset", "log": "epoch", "offset": offset}


async def pairs(page: Page, count: int) -> list[str]:
    """Return topics and data of the received messages, once there are `count`."""
    await page.wait_for_function("(count) => got.length >= count", arg=count)
    found: list[str] = await js(page, PAIRS)
    return sorted(found)


async def test_topics_of_all_consumers_and_those_that_come(nodes: Nodes, tabs: Tabs) -> None:
    consumers = [await nodes.consumer(port=free_port()) for _ in range(2)]
    producer = await nodes.producer(consumers)
    page = await tabs.with_client()
    await new_client(page, consumers, [producer])
    old, new, later = zip(topics_at(0, 3), topics_at(1, 3), strict=True)
    async with soon(), nodes.client([producer], consumers) as client:
        for topic in (*old, "other"):
            await client.publish(topic, "0")
        await js(page, "window.all = subscribe({ prefix: 's/' }); all.ready")
        for topic in (*old, *new, "other"):
            await client.publish(topic, "1", "2")
        expected = [f"{topic} {data}" for topic in (*old, *new) for data in "12"]
        assert await pairs(page, 8) == sorted(expected)
        # A topic that begins while the connections are away is new as well.
        for consumer in consumers:
            for connection in list(consumer.connections):
                cut(connection)
        for topic in (*old, *later):
            await client.publish(topic, "3")
        expected += [f"{topic} 3" for topic in (*old, *later)]
        assert await pairs(page, 12) == sorted(expected)
        await js(page, "all.close()")
        # A topic is no prefix, and both can be there.
        await js(page, "got.length = 0; subscribe({ prefix: '' }, { from: -1 }); subscribe('other').ready")
        everything = [f"{topic} 3" for topic in (*old, *later)] + [f"{topic} 2" for topic in (*new, "other")]
        assert await pairs(page, 7) == sorted(everything)
        await js(page, "client.close()")
        assert await js(page, "gaps") == []
        assert await js(page, "errors") == []


@pytest.mark.parametrize(
    ("options", "count"), [("{ from: 'earliest' }", 4), ("{ from: -1 }", 2), ("{ from: new Date(0) }", 4)]
)
async def test_each_topic_begins_where_the_start_says(
    nodes: Nodes, tabs: Tabs, options: str, count: int
) -> None:
    consumer = await nodes.consumer()
    producer = await nodes.producer([consumer])
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer])
    async with soon(), nodes.client([producer], [consumer]) as client:
        for topic in ("s/a", "s/b"):
            await client.publish(topic, "1", "2")
        await js(page, f"subscribe({{ prefix: 's/' }}, {options}).ready")
        expected = ["s/a 1", "s/a 2", "s/b 1", "s/b 2"] if count == 4 else ["s/a 2", "s/b 2"]
        assert await pairs(page, count) == expected


async def test_a_shared_log_is_asked_once_and_another_consumer_stands_in(tabs: Tabs) -> None:
    """Whatever consumer the topics belong to, and from their first message on if they come meanwhile."""
    tabs.tolerate("WebSocket connection to")
    (one,), (two,) = topics_at(0, 1), topics_at(1, 1)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    first = topic_hash(PREFIX) % 2
    page = await tabs.with_client()
    await page.clock.install()
    async with soon(), LivelyServer(port_of(addresses[1 - first])) as other:
        async with LivelyServer(port_of(addresses[first])) as home:
            await page.evaluate(NEW_CLIENT, {"psk": KEY, "consumers": addresses, "producers": []})
            await js(page, "subscribe({ prefix: 's/' }); 0")
            raw = await home.speaking(KEY)
            raw.send(log_of())
            assert await raw.packet() == FOLLOW | {"start": "latest"}
            raw.send(subscribed(one, 5))
            raw.send(subscribed(two, 0))
            raw.send({"t": "followed", "prefix": PREFIX})
            raw.send(deliver_of(5, one, "a"))
            assert await pairs(page, 1) == [f"{one} a"]
            assert not any(other.address in url for url in tabs.requests)
        await is_down(page)
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        raw = await other.speaking(KEY)
        raw.send(log_of())
        assert [await raw.packet() for _ in range(3)] == [
            from_offset(one, 6),
            from_offset(two, 0),
            FOLLOW | {"start": "earliest"},
        ]
        await js(page, "client.close()")
        await raw.answer_close()


async def follower(server: V2Server, **fields: Any) -> V2Socket:
    raw = await server.speaking(KEY)
    assert await raw.packet() == FOLLOW | {"start": "latest"} | fields
    return raw


async def test_consumers_with_logs_of_their_own_have_their_own_topics(tabs: Tabs) -> None:
    (one,), (two,) = topics_at(0, 1), topics_at(1, 1)
    first = topic_hash(PREFIX) % 2
    page = await tabs.with_client()
    async with soon(), LivelyServer() as left, LivelyServer() as right:
        servers = [left, right]
        addresses = [server.address for server in servers]
        await page.evaluate(NEW_CLIENT, {"psk": KEY, "consumers": addresses, "producers": []})
        await js(page, "window.all = subscribe({ prefix: 's/' }); 0")
        await js(page, "window.is = 'waiting'; all.ready.then(() => { is = 'ready'; }); 0")
        sockets: dict[int, V2Socket] = {}
        for index in (first, 1 - first):
            sockets[index] = raw = await follower(servers[index])
            assert await js(page, "is") == "waiting"
            # A topic that is there from before the list of consumers changed is not taken.
            for topic in (one, two):
                raw.send(subscribed(topic, 0))
                raw.send(deliver_of(0, topic, f"from {index}"))
            raw.send({"t": "followed", "prefix": PREFIX})
            assert await raw.packet() == {"t": "unsubscribe", "topic": (two, one)[index]}
        await page.wait_for_function("is === 'ready'")
        assert await js(page, PAIRS) == [f"{(one, two)[index]} from {index}" for index in (first, 1 - first)]
        # A refusal by one of them is the end of all.
        sockets[0].send({"t": "unsubscribed", "topic": one, "code": "not_allowed"})
        for raw in sockets.values():
            await raw.answer_close()
        assert await js(page, "errors") == ["NotAllowedError not_allowed"]


async def test_refusals(nodes: Nodes, tabs: Tabs) -> None:
    write_key(nodes.directory, "billing", BILLING)
    consumer = await nodes.consumer(
        clients=[{"name": "billing", "key_file": "billing.key", "subscribe": ["s/a/*"]}]
    )
    page = await tabs.with_client()
    await new_client(page, [consumer], [], psk=BILLING, name="billing")
    assert await js(page, "outcome(subscribe({ prefix: 's/a/' }).ready)") == "done"
    assert await js(page, "outcome(subscribe({ prefix: 's/' }).ready)") == "NotAllowedError not_allowed"
    own = "{ onError: (error) => { window.own = String(error); } }"
    assert await js(page, f"outcome(subscribe({{ prefix: '' }}, {own}).ready)") == (
        "NotAllowedError not_allowed"
    )
    assert 'all topics that begin with "" is refused' in await js(page, "own")
    assert await js(page, "errors") == ["NotAllowedError not_allowed"]


async def test_a_log_with_too_many_topics(tabs: Tabs) -> None:
    page = await tabs.with_client()
    async with soon(), LivelyServer() as server:
        await page.evaluate(NEW_CLIENT, {"psk": KEY, "consumers": [server.address], "producers": []})
        await js(page, "window.all = subscribe({ prefix: 's/' }); 0")
        raw = await follower(server)
        raw.send({"t": "followed", "prefix": PREFIX, "code": "full"})
        assert await js(page, "outcome(all.ready)") == "ConnectError full"
        await raw.answer_close()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("subscribe({ prefix: 5 })", "TypeError: the prefix is not a string"),
        ("subscribe({})", "TypeError: the topic is not a string"),
        (
            "subscribe({ prefix: 's/' }, { from: 5 })",
            "WsqueueError: from is 5, expected 'earliest', 'latest'",
        ),
        ("subscribe({ prefix: 's/' }, { from: { offset: 5 } })", "WsqueueError: from is "),
        ("subscribe({ prefix: 's/' }, { group: 'g' })", "WsqueueError: a prefix stands for topics"),
        ("subscribe({ prefix: 's/' }, { reader: 'r' })", "WsqueueError: a prefix stands for topics"),
    ],
)
async def test_wishes_that_cannot_be(tabs: Tabs, call: str, error: str) -> None:
    page = await tabs.with_client()
    await new_client(page, ["127.0.0.1:1"], [])
    thrown = f"(() => {{ try {{ {call}; }} catch (error) {{ return String(error); }} }})()"
    assert (await js(page, thrown)).startswith(error)


async def test_classic_has_no_prefixes(tabs: Tabs) -> None:
    page = await tabs.with_client()
    await new_client(page, ["127.0.0.1:1"], [], protocol="classic")
    thrown = "(() => { try { subscribe({ prefix: '' }); } catch (error) { return String(error); } })()"
    assert await js(page, thrown) == "WsqueueError: the classic protocol has no prefixes"


@pytest.mark.parametrize("wrong", [{"prefix": 5}, {"prefix": PREFIX, "code": 5}])
async def test_packets_that_are_none(tabs: Tabs, wrong: dict[str, Any]) -> None:
    page = await tabs.with_client()
    async with soon(), LivelyServer() as server:
        await page.evaluate(NEW_CLIENT, {"psk": KEY, "consumers": [server.address], "producers": []})
        await js(page, "subscribe({ prefix: 's/' }); 0")
        raw = await follower(server)
        raw.send({"t": "followed"} | wrong)
        assert (await raw.close_frame())[0] == 4400
        await js(page, "client.close()")
        await raw.abort()
