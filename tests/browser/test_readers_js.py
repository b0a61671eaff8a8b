"""Named readers of the JavaScript client: positions, commits, lost connections, room and refusals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Page

import wsqueue
from tests.support.nodes import BILLING, KEY, Nodes, RunningNode, cut, write_key
from tests.support.ports import free_port
from tests.support.raw_v2_peer import V2Server, V2Socket, deliver_of
from tests.support.waiting import eventually, soon

from ..support.chromium import Tabs
from .client import NEW_CLIENT, data, js, new_client

pytestmark = pytest.mark.anyio

NAMED = {"topic": "jobs", "reader": "r"}
SUBSCRIBE = {"t": "subscribe", **NAMED, "start": "earliest"}

# `read(callback)` subscribes as a reader; without a callback, the messages are kept in `got`.
READ = """() => {
  window.read = (callback = (job) => { got.push(job); }, options = {}) => {
    window.jobs = client.subscribe('jobs', callback, {
      reader: 'r', onGap: (gap) => { gaps.push(gap); got.push(gap); }, ...options });
    return jobs;
  };
  // A callback whose promise the test settles, one message after another.
  window.slowly = (job) => {
    got.push(job);
    return new Promise((go) => { window.go = go; });
  };
}"""


async def cluster(nodes: Nodes, tabs: Tabs, **settings: Any) -> tuple[RunningNode, wsqueue.Client, Page]:
    """Return a consumer, and a Python client and a page with a client of it and a producer."""
    consumer = await nodes.consumer(port=free_port(), **settings)
    producer = await nodes.producer([consumer])
    page = await reading(tabs, [consumer], [producer])
    return consumer, nodes.client([producer], [consumer]), page


async def reading(
    tabs: Tabs, consumers: list[RunningNode | str], producers: list[RunningNode], **options: Any
) -> Page:
    """Return another page with a client."""
    page = await tabs.with_client()
    await new_client(page, consumers, producers, **options)
    await js(page, READ)
    return page


async def left_of(client: wsqueue.Client) -> list[str | bytes]:
    """Return the messages that the reader has not done."""
    return [one.data async for one in client.subscribe("jobs", reader="r", follow=False)]


@contextlib.asynccontextmanager
async def peer(
    tabs: Tabs, callback: str = "undefined", options: str = "{}"
) -> AsyncIterator[tuple[Page, V2Socket, V2Server]]:
    """Return a page that subscribes as a reader, and the consumer's end of its connection."""
    async with soon(), V2Server() as server:
        page = await tabs.with_client()
        await page.evaluate(NEW_CLIENT, {"psk": KEY, "consumers": [server.address], "producers": []})
        await js(page, READ)
        await js(page, f"read({callback}, {options}), 0")
        raw = await server.speaking(KEY)
        assert await raw.next("subscribe") == SUBSCRIBE
        begin(raw)
        yield page, raw, server
        await js(page, "client.close()")


def begin(raw: V2Socket, offset: int = 0) -> None:
    raw.send({"t": "subscribed", "topic": "jobs", "log": "log", "offset": offset, "end": offset})


def commit_of(offset: int, log: str = "log") -> dict[str, Any]:
    return {"t": "commit", **NAMED, "log": log, "offset": offset}


def confirm(raw: V2Socket, offset: int) -> None:
    raw.send(commit_of(offset) | {"t": "committed"})


def from_offset(offset: int) -> dict[str, Any]:
    return {"t": "subscribe", **NAMED, "start": "offset", "log": "log", "offset": offset}


async def test_a_reader_goes_on_from_another_page(nodes: Nodes, tabs: Tabs) -> None:
    consumer, client, page = await cluster(nodes, tabs)
    async with soon(), client:
        await client.publish("jobs", "0", "1", "2", "3", headers={"trace": "t"})
        await js(page, "read().ready")
        assert await data(page, 4) == ["0", "1", "2", "3"]
        fields = "[got[0].topic, got[0].headers, got[3].offset]"
        assert await js(page, fields) == ["jobs", {"trace": "t"}, 3]
        await js(page, "got[1].done()")
        # The others get all, on whichever connection.
        await js(page, "window.all = []; client.subscribe('jobs', (job) => { all.push(job.data); }).ready")
        other = await reading(tabs, [consumer], [])
        await js(other, "read(undefined, { reader: 'other' }).ready")
        await data(other, 4)
        await js(other, "got.length = 0; read().ready")
        assert await data(other, 2) == ["2", "3"]
        await js(other, "got[1].done().then(() => jobs.close())")
        await js(page, "got[2].done().then(() => jobs.close())")
        await client.publish("jobs", "4")
        await page.wait_for_function("all.length === 1")
        assert await left_of(client) == ["4"]
        # One that is new may begin at the next message; one that is not goes on where it was.
        assert await js(page, "got.length = 0, read(undefined, { from: 'latest' }).ready.then(() => 1)") == 1
        assert await data(page, 1) == ["4"]
        await js(page, "got.length = 0, read(undefined, { from: 'latest', reader: 'late' }).ready")
        await client.publish("jobs", "5")
        await page.wait_for_function("got.length === 2")
        assert await js(page, "errors") == []


async def test_a_consumer_that_restarts_hears_what_is_done(nodes: Nodes, tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    retention = {"mode": "sqlite", "directory": f"{nodes.directory}/log"}
    consumer, client, page = await cluster(nodes, tabs, retention=retention)
    async with asyncio.timeout(20), client:
        await js(page, "read().ready")
        await client.publish("jobs", "0", "1", "2")
        await data(page, 3)
        await consumer.crash()
        await js(page, "keep(got[1].done()), 0")
        await consumer.restart()
        await page.wait_for_function("settled[0] === 'done'")
        await client.publish("jobs", "3")
        assert await data(page, 4) == ["0", "1", "2", "3"]
        await js(page, "jobs.close()")
        assert await left_of(client) == ["2", "3"]


async def test_a_lost_connection(nodes: Nodes, tabs: Tabs) -> None:
    consumer, client, page = await cluster(nodes, tabs)
    async with soon(), client:
        await js(page, "read().ready")
        await client.publish("jobs", "0", "1")
        await data(page, 2)
        for connection in list(consumer.connections):
            cut(connection)
        await js(page, "got[0].done()")
        await client.publish("jobs", "2")
        assert await data(page, 3) == ["0", "1", "2"]
        await js(page, "jobs.close()")
        assert await left_of(client) == ["1", "2"]


async def test_messages_are_done_by_themselves(nodes: Nodes, tabs: Tabs) -> None:
    consumer, client, page = await cluster(nodes, tabs)
    async with soon(), client:
        await client.publish("jobs", *map(str, range(3000)))
        await js(page, "read(undefined, { autoDone: true }).ready")
        await data(page, 3000)
        await js(page, "jobs.flush()")
        assert await left_of(client) == []
        assert consumer.counters["reader_commits"] < 300
        await js(page, "jobs.close(), got.length = 0, read(slowly, { autoDone: true }).ready")
        await client.publish("jobs", "a", "b", "c")
        assert await data(page, 1) == ["a"]
        await js(page, "go()")
        assert await data(page, 2) == ["a", "b"]
        # The second one is not done, and not later.
        await js(page, "jobs.close().then(() => { go(); })")
        assert await left_of(client) == ["b", "c"]
        assert await js(page, "errors") == []


FAILING = """(async (job) => {
  got.push(job);
  if (job.data === 'bad' && got.length < 4) throw new TypeError('x');
})"""
# Who subscribes again at once goes on at the message that failed.
AGAIN = """{
  autoDone: true,
  onError: (error) => { errors.push(String(error)); read(undefined, { autoDone: true }); },
}"""


async def test_an_error_of_the_callback_ends_the_subscription(nodes: Nodes, tabs: Tabs) -> None:
    """Otherwise the next message that is done would make the failed one done too."""
    _, client, page = await cluster(nodes, tabs)
    async with soon(), client:
        await client.publish("jobs", "0", "1", "bad", "3")
        await js(page, f"window.first = read({FAILING}, {AGAIN}); first.ready")
        assert await data(page, 5) == ["0", "1", "bad", "bad", "3"]
        assert await js(page, "errors") == ["TypeError: x"]
        await js(page, "first.close()")
        await js(page, "jobs.close()")
        assert await left_of(client) == []


async def test_commits_of_a_turn_are_one(tabs: Tabs) -> None:
    async with peer(tabs) as (page, raw, _):
        raw.send(deliver_of(0, "jobs", *map(str, range(8))))
        await data(page, 8)
        await js(page, "jobs.flush()")
        await js(page, "[0, 2, 1].forEach((index) => keep(got[index].done())), 0")
        assert await raw.next("commit") == commit_of(3)
        # One at a time is under way.
        await js(page, "[4, 3].forEach((index) => keep(got[index].done())), keep(jobs.flush()), 0")
        confirm(raw, 2)
        confirm(raw, 3)
        assert await raw.next("commit") == commit_of(5)
        await js(page, "Promise.all(promises.slice(0, 3)).then(() => 0)")
        assert await js(page, "Object.keys(settled)") == ["0", "1", "2"]
        # It is kept, so that nobody waits for the others.
        await js(page, "got[0].done()")
        confirm(raw, 5)
        await js(page, "Promise.all(promises).then(() => 0)")


async def test_unconfirmed_commits_are_sent_again(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    async with peer(tabs) as (page, raw, server):
        raw.send(deliver_of(0, "jobs", "0", "1", "2"))
        await data(page, 3)
        await js(page, "keep(got[0].done()), 0")
        assert await raw.next("commit") == commit_of(1)
        await js(page, "keep(got[1].done()), 0")
        await raw.abort()
        again = await server.speaking(KEY)
        assert await again.next("subscribe") == from_offset(3)
        assert await again.next("commit") == commit_of(2)
        confirm(again, 2)
        await js(page, "Promise.all(promises).then(() => 0)")


async def test_the_start_is_asked_for_until_a_message_has_come(tabs: Tabs) -> None:
    """The consumer looks the position up again, so that a gap on its way is not lost."""
    tabs.tolerate("WebSocket connection to")
    async with peer(tabs) as (page, first, server):
        await js(page, "jobs.ready")
        await first.abort()
        raw = await server.speaking(KEY)
        assert await raw.next("subscribe") == SUBSCRIBE
        begin(raw, 5)
        raw.send({"t": "gap", "topic": "jobs", "offset": 9, "missed": 4})
        raw.send(deliver_of(9, "jobs", "9"))
        await page.wait_for_function("got.length === 2")
        await raw.abort()
        raw = await server.speaking(KEY)
        assert await raw.next("subscribe") == from_offset(10)
        begin(raw, 10)
        await raw.abort()
        raw = await server.speaking(KEY)
        assert await raw.next("subscribe") == from_offset(10)


async def test_a_gap_comes_in_its_order(tabs: Tabs) -> None:
    async with peer(tabs, "slowly") as (page, raw, _):
        raw.send(deliver_of(0, "jobs", "0", "1"))
        raw.send({"t": "gap", "topic": "jobs", "offset": 5, "missed": 3})
        raw.send(deliver_of(5, "jobs", "5"))
        for count in (1, 2, 4):
            await page.wait_for_function("(count) => got.length === count", arg=count)
            assert await js(page, "gaps.length") == (count == 4)
            await js(page, "go()")
        assert await js(page, "got.map(({ offset, missed }) => offset ?? { missed })") == [
            0,
            1,
            {"missed": 3},
            5,
        ]


async def test_a_log_that_is_another_one(tabs: Tabs) -> None:
    async with peer(tabs) as (page, raw, _):
        raw.send(deliver_of(7, "jobs", "7"))
        raw.send({"t": "subscribed", "topic": "jobs", "log": "new", "offset": 0, "end": 0})
        raw.send(deliver_of(0, "jobs", "new"))
        await data(page, 2)
        await js(page, "keep(got[1].done()), keep(got[0].done()), 0")
        assert await raw.next("commit") == commit_of(1, "new")
        raw.send(commit_of(1, "new") | {"t": "committed"})
        await js(page, "Promise.all(promises).then(() => 0)")


async def test_a_reader_that_has_no_room_unsubscribes(tabs: Tabs) -> None:
    """Answers come behind messages, so that those of commits would come behind all of the log."""
    tabs.tolerate("WebSocket connection to")
    async with peer(tabs, "slowly") as (page, first, server):
        first.send(deliver_of(0, "jobs", *map(str, range(1002))))
        assert await first.next("unsubscribe") == {"t": "unsubscribe", "topic": "jobs"}
        first.send(deliver_of(1002, "jobs", *map(str, range(1002, 1010))))
        await js(page, "keep(got[0].done()), 0")
        assert await first.next("commit") == commit_of(1)
        await first.abort()
        # Still without room, it tells a new connection which messages are done.
        raw = await server.speaking(KEY)
        assert await raw.next("commit") == commit_of(1)
        confirm(raw, 1)
        await js(page, "promises[0]")
        await js(page, "(async () => { for (let n = 0; n < 509; n += 1) { go(); await 0; await 0; } })()")
        assert await raw.next("subscribe") == from_offset(1010)
        begin(raw, 1010)
        # It does so by the size of messages, too, and keeps to one question at a time.
        raw.send(deliver_of(1010, "jobs", "x" * (17 * 2**20)))
        assert (await raw.next("unsubscribe"))["topic"] == "jobs"
        await js(page, "(async () => { while (got.length < 1011) { go(); await 0; await 0; } go(); })()")
        raw.send({"t": "unsubscribed", "topic": "jobs"})
        assert await raw.next("subscribe") == from_offset(1011)


async def test_the_end_of_a_subscription_waits_for_confirmations(tabs: Tabs) -> None:
    async with peer(tabs) as (page, raw, _):
        raw.send(deliver_of(0, "jobs", "0"))
        await data(page, 1)
        await js(page, "keep(got[0].done()), keep(jobs.close()), keep(got[0].done()), keep(jobs.flush()), 0")
        closed = (
            "ConnectError the subscription is closed, and it is not kept that the message is done: the reader"
            " will get it again"
        )
        await page.wait_for_function("settled[2] && settled[3]")
        assert await js(page, "settled.slice(2)") == [closed, closed]
        assert await js(page, "Object.keys(settled)") == ["2", "3"]
        packets = [await raw.packet(), await raw.packet()]
        assert commit_of(1) in packets
        assert {"t": "unsubscribe", "topic": "jobs"} in packets
        # Too late.
        raw.send({"t": "gap", "topic": "jobs", "offset": 3, "missed": 2})
        raw.send(deliver_of(3, "jobs", "3"))
        raw.send({"t": "unsubscribed", "topic": "jobs"})
        confirm(raw, 1)
        await raw.answer_close()
        await js(page, "Promise.all(promises.slice(0, 2)).then(() => 0)")
        assert await js(page, "[got.length, gaps.length]") == [1, 0]
        assert await js(page, "outcome(jobs.ready)") == "done"
        await js(page, "jobs.close()")


async def test_the_end_of_a_client_and_of_a_connection(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    async with peer(tabs) as (page, raw, _):
        raw.send(deliver_of(0, "jobs", "0"))
        await data(page, 1)
        await js(page, "keep(got[0].done()), client.close(), keep(jobs.close()), 0")
        assert commit_of(1) in [await raw.packet(), await raw.packet()]
        await raw.abort()
        await page.wait_for_function("settled[0] && settled[1]")
        assert (await js(page, "settled[0]")).startswith("ConnectError the subscription is closed, and")
        assert await js(page, "settled[1]") == "done"
        assert await js(page, "thrown(() => read())") == "WsqueueError: the client is closed"


async def test_without_an_answer_done_fails_and_is_said_later(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    async with peer(tabs) as (page, raw, server):
        raw.send(deliver_of(0, "jobs", "0", "1"))
        await data(page, 2)
        await page.clock.install()
        # From here on nobody answers the hello.
        await raw.abort()
        silent = await server.next()
        await js(page, "keep(got[0].done()), 0")
        await page.clock.fast_forward(10_000)
        await page.wait_for_function("settled[0]")
        assert (await js(page, "settled[0]")).startswith("ConnectError no consumer can be used (")
        await silent.abort()
        # A later one has its own time.
        await js(page, "keep(got[1].done()), 0")
        await page.clock.fast_forward(1_000)
        again = await server.speaking(KEY)
        assert await again.next("subscribe") == from_offset(2)
        assert await again.next("commit") == commit_of(2)
        confirm(again, 2)
        await js(page, "promises[1]")


async def test_rights(nodes: Nodes, tabs: Tabs) -> None:
    write_key(nodes.directory, "billing", BILLING)
    rights = {"subscribe": ["jobs"], "groups": ["billing-*"]}
    consumer = await nodes.consumer(clients=[{"name": "billing", "key_file": "billing.key"} | rights])
    page = await reading(tabs, [consumer], [], psk=BILLING, name="billing")
    assert await js(page, "outcome(read(undefined, { reader: 'billing-1' }).ready)") == "done"
    own = "{ reader: 'other', onError: (error) => { window.own = String(error); } }"
    refused = "NotAllowedError not_allowed"
    assert await js(page, f"outcome(read(undefined, {own}).ready)") == refused
    assert await js(page, "own") == (
        'NotAllowedError: the subscription to "jobs" as the reader "other" is refused: not_allowed'
    )
    await js(page, "jobs.close()")
    news = "client.subscribe('news', () => {}, { reader: 'billing-1' }).ready"
    assert await js(page, f"outcome({news})") == refused
    assert await js(page, "errors") == [refused]
    await eventually(lambda: len(consumer.consumer.named_readers) == 1, "the others have gone")
    await new_client(page, [consumer], [], psk="another key")
    assert await js(page, "outcome(read().ready)") == "AuthenticationError 4401"


async def test_too_many_names(tabs: Tabs) -> None:
    async with peer(tabs) as (page, first, server):
        first.send({"t": "unsubscribed", "topic": "jobs", "code": "full"})
        await first.answer_close()
        assert await js(page, "errors") == ["ConnectError full"]
        script = "new Promise((tell) => { read(undefined, { onError: ({ message }) => tell(message) }) })"
        told = asyncio.create_task(js(page, script))
        raw = await server.speaking(KEY)
        assert await raw.next("subscribe") == SUBSCRIBE
        raw.send({"t": "unsubscribed", "topic": "jobs", "code": "full"})
        assert await told == 'no place for "jobs" as the reader "r": there are too many names (full)'
        await raw.answer_close()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("{ reader: 'a b' }", "WsqueueError: reader is a b, expected 1 to 64 letters"),
        ("{ reader: 5 }", "WsqueueError: reader is 5, expected 1 to 64 letters"),
        ("{ from: 5 }", "WsqueueError: from is 5, expected 'earliest' or 'latest' with a reader, which goes"),
        ("{ from: new Date(0) }", "WsqueueError: from is Thu Jan 01 1970"),
        ("{ group: 'g', onGap: undefined }", "WsqueueError: a group has no reader"),
    ],
)
async def test_readers_that_cannot_be(tabs: Tabs, options: str, error: str) -> None:
    page = await reading(tabs, ["127.0.0.1:1"], [])
    assert (await js(page, f"thrown(() => read(undefined, {options}))")).startswith(error)


async def test_classic_has_no_named_readers(tabs: Tabs) -> None:
    page = await reading(tabs, ["127.0.0.1:1"], [], protocol="classic")
    assert await js(page, "thrown(() => read())") == "WsqueueError: the classic protocol has no named readers"


@pytest.mark.parametrize("change", [{"topic": 5}, {"reader": None}, {"log": b"x"}, {"offset": -1}])
async def test_packets_that_are_none(tabs: Tabs, change: dict[str, Any]) -> None:
    async with peer(tabs) as (_, raw, _):
        raw.send(commit_of(1) | {"t": "committed"} | change)
        code, _ = await raw.close_frame()
        assert code == 4400
        await raw.abort()
