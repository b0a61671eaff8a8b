"""Worker groups of the JavaScript client: shares, outcomes, leases, lost connections and refusals."""

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
from tests.support.raw_v2_peer import V2Server, V2Socket, messages_of
from tests.support.waiting import eventually, soon
from wsqueue.protocol import v2

from ..support.chromium import Tabs
from .client import NEW_CLIENT, data, js, new_client

pytestmark = pytest.mark.anyio

PLACE = {"topic": "jobs", "group": "g"}

# `work(callback)` joins the group with a callback; without one, the messages are kept in `got`.
WORK = """() => {
  window.work = (callback = (job) => { got.push(job); }, options = {}) => {
    window.jobs = client.subscribe('jobs', callback, { group: 'g', ...options });
    return jobs;
  };
}"""


async def cluster(nodes: Nodes, tabs: Tabs, **settings: Any) -> tuple[RunningNode, wsqueue.Client, Page]:
    """Return a consumer, and a Python client and a page with a client of it and a producer."""
    consumer = await nodes.consumer(port=free_port(), **settings)
    producer = await nodes.producer([consumer])
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer])
    await js(page, WORK)
    return consumer, nodes.client([producer], [consumer]), page


@contextlib.asynccontextmanager
async def peer(tabs: Tabs, options: str = "{}") -> AsyncIterator[tuple[Page, V2Socket, V2Server]]:
    """Return a page that has joined a group, and the consumer's end of its connection."""
    async with soon(), V2Server() as server:
        page = await tabs.with_client()
        await page.evaluate(NEW_CLIENT, {"psk": KEY, "consumers": [server.address], "producers": []})
        await js(page, WORK)
        await js(page, f"work(undefined, {options}), 0")
        raw = await joined(server)
        await js(page, "jobs.ready")
        yield page, raw, server
        await js(page, "client.close()")


async def joined(server: V2Server, **fields: Any) -> V2Socket:
    """Return the consumer's end of the next connection of a member, which has joined."""
    raw = await server.speaking(KEY)
    join = await raw.next("join")
    assert join == {
        "t": "join",
        **PLACE,
        "prefetch": 10,
        "lease_seconds": 30,
        "max_deliveries": 5,
        "start": "earliest",
    }
    raw.send({"t": "joined", **PLACE, "log": "log"} | fields)
    return raw


def lend_of(offset: int, *lent: str, **fields: Any) -> dict[str, Any]:
    return {"t": "lend", **PLACE, "offset": offset, "messages": messages_of(*lent)} | fields


NONE = [v2.MAX_NUMBER, v2.MAX_NUMBER]
"""The offsets of a member that leaves and has nothing to give back."""


def settle_of(number: int, how: str, *offsets: list[int], **fields: Any) -> dict[str, Any]:
    packet = {"t": "settle", **PLACE, "number": number, "log": "log", "how": how, "offsets": list(offsets)}
    return packet | fields


def confirm(raw: V2Socket, number: int) -> None:
    raw.send({"t": "settled", **PLACE, "number": number})


async def test_members_share_the_messages(nodes: Nodes, tabs: Tabs) -> None:
    consumer, client, page = await cluster(nodes, tabs)
    async with soon(), client, client.subscribe("jobs", group="g", prefetch=1) as jobs:
        script = "work(async (job) => { await job.done(); got.push(job); }, { prefetch: 1 }).ready"
        await js(page, script)
        await client.publish("jobs", *(f"{number}" for number in range(40)), headers={"trace": "t"})
        mine: list[str | bytes] = []

        async def take() -> None:
            async for job in jobs:
                await job.done()
                mine.append(job.data)

        taking = asyncio.create_task(take())
        await eventually(lambda: consumer.counters["group_deliveries"] == 40, "all are lent")
        await js(page, "jobs.close()")
        theirs = await data(page, 1)
        await eventually(lambda: len(mine) + len(theirs) == 40, "all are done")
        taking.cancel()
        assert {*mine, *theirs} == {f"{number}" for number in range(40)}
        assert mine
        fields = "[got[0].topic, got[0].headers, got[0].deliveries]"
        assert await js(page, fields) == ["jobs", {"trace": "t"}, 1]
        assert await js(page, "errors") == []


OUTCOMES = """work(async (job) => {
  got.push(job);
  if (job.data === 'bad') await job.reject('nonsense');
  else if (job.data === 'later' && job.deliveries === 1) await job.again(0.01);
  else await job.done();
}).ready"""


async def test_outcomes(nodes: Nodes, tabs: Tabs) -> None:
    _, client, page = await cluster(nodes, tabs)
    async with soon(), client:
        await js(page, OUTCOMES)
        await client.publish("jobs", "bad", "later", "good")
        assert sorted(await data(page, 4)) == ["bad", "good", "later", "later"]
        await js(page, "jobs.close()")
        async with client.subscribe("jobs!g!dead", start="earliest") as letters:
            letter = await anext(letters)
        assert (letter.data, letter.headers["dead-reason"]) == ("bad", "nonsense")
        await client.publish("jobs", "last")
        async with client.subscribe("jobs", group="g") as jobs:
            assert (await anext(jobs)).data == "last"


async def test_one_message_after_another_waits_for_the_promise_of_the_callback(
    nodes: Nodes, tabs: Tabs
) -> None:
    _, client, page = await cluster(nodes, tabs)
    async with soon(), client:
        script = "work((job) => { got.push(job); return new Promise((go) => { window.go = go; }); })"
        await js(page, f"{script}.ready")
        await client.publish("jobs", "1", "2", "3")
        assert await data(page, 1) == ["1"]
        await js(page, "got[0].done()")
        assert await js(page, "got.length") == 1
        await js(page, "go()")
        assert await data(page, 2) == ["1", "2"]
        # It gives back the one that it was not called with.
        await js(page, "jobs.close()")
        async with client.subscribe("jobs", group="g") as jobs:
            got = [await anext(jobs) for _ in range(2)]
        assert {(job.data, job.deliveries) for job in got} == {("2", 2), ("3", 1)}


async def test_an_error_of_the_callback_is_told_and_its_message_lent_again(nodes: Nodes, tabs: Tabs) -> None:
    _, client, page = await cluster(nodes, tabs)
    async with soon(), client:
        script = """work(async (job) => {
          got.push(job);
          if (job.deliveries === 1) throw new TypeError('x');
          await job.done();
        }, { leaseSeconds: 600 }).ready"""
        await js(page, script)
        await client.publish("jobs", "1")
        assert await data(page, 2) == ["1", "1"]
        assert await js(page, "errors") == ["TypeError undefined"]


BY_THEMSELVES = """(async (job) => {
  got.push(job);
  if (job.data === 'later' && job.deliveries === 1) await job.again();
  if (job.data === 'bad') job.reject('nonsense');
  if (job.data === 'thrown' && job.deliveries === 1) throw new TypeError('x');
})"""


async def test_messages_are_done_by_themselves(nodes: Nodes, tabs: Tabs) -> None:
    """Unless the callback has told another outcome, or failed."""
    consumer, client, page = await cluster(nodes, tabs)
    async with soon(), client:
        await client.publish("jobs", "1", "later", "bad", "thrown", "2")
        await js(page, f"work({BY_THEMSELVES}, {{ autoDone: true, leaseSeconds: 0.2 }}).ready")
        assert sorted(await data(page, 7)) == ["1", "2", "bad", "later", "later", "thrown", "thrown"]
        await js(page, "jobs.flush()")
        assert consumer.counters["dead_letters"] == 1
        assert await js(page, "errors") == ["TypeError undefined"]
        await js(page, "jobs.close()")
        await client.publish("jobs", "3")
        async with client.subscribe("jobs", group="g") as jobs:
            assert (await anext(jobs)).data == "3"


async def test_a_consumer_that_restarts_hears_what_is_done(nodes: Nodes, tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    retention = {"mode": "sqlite", "directory": f"{nodes.directory}/log"}
    consumer, client, page = await cluster(nodes, tabs, retention=retention)
    async with asyncio.timeout(20), client:
        await js(page, "work().ready")
        await client.publish("jobs", "1", "2")
        assert await data(page, 2) == ["1", "2"]
        await consumer.crash()
        await js(page, "keep(got[0].done()), 0")
        await consumer.restart()
        await page.wait_for_function("settled[0] === 'done'")
        # The other one is lent again, and the first one too if that was before the consumer heard of it.
        await page.wait_for_function("got.filter((job) => job.data === '2').length === 2")
        await js(page, "Promise.all(got.slice(2).map((job) => job.done())).then(() => jobs.close())")
        await client.publish("jobs", "3")
        async with client.subscribe("jobs", group="g") as jobs:
            assert (await anext(jobs)).data == "3"


async def test_a_lost_connection(nodes: Nodes, tabs: Tabs) -> None:
    consumer, client, page = await cluster(nodes, tabs)
    async with soon(), client:
        await js(page, "work().ready")
        await client.publish("jobs", "1")
        await data(page, 1)
        for connection in list(consumer.connections):
            cut(connection)
        await js(page, "got[0].done()")
        await client.publish("jobs", "2")
        assert (await data(page, 2))[-1] == "2"


async def test_outcomes_of_a_turn_share_packets(tabs: Tabs) -> None:
    async with peer(tabs) as (page, raw, _):
        await js(page, "jobs.ready")
        raw.send(lend_of(5, "5", "6", "7"))
        raw.send(lend_of(9, "9", "10", "11", deliveries=3))
        assert len(await data(page, 6)) == 6
        offsets = "got.map(({ log, offset, deliveries }) => [log, offset, deliveries])"
        assert await js(page, offsets) == [["log", n, 1] for n in (5, 6, 7)] + [
            ["log", n, 3] for n in (9, 10, 11)
        ]
        script = """(() => {
          for (const index of [0, 1, 3]) keep(got[index].done());
          keep(got[2].again(2.5));
          keep(got[4].reject('😀'.repeat(300)));
          keep(got[5].extend());
        })()"""
        await js(page, script)
        assert await raw.next("settle") == settle_of(1, "done", [5, 6], [9, 9])
        assert await raw.next("settle") == settle_of(2, "again", [7, 7], delay=2.5)
        assert await raw.next("settle") == settle_of(3, "reject", [10, 10], reason="😀" * 200)
        assert await raw.next("settle") == settle_of(4, "extend", [11, 11])
        confirm(raw, 2)
        await page.wait_for_function("settled[3] === 'done'")
        assert await js(page, "Object.keys(settled)") == ["0", "1", "2", "3"]
        confirm(raw, 4)
        await js(page, "Promise.all(promises).then(() => 0)")


async def test_unconfirmed_outcomes_are_sent_again(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    async with peer(tabs) as (page, raw, server):
        raw.send(lend_of(0, "0", "1", "2", "3", "4"))
        await data(page, 5)
        await js(page, "keep(got[0].done()), 0")
        assert await raw.next("settle") == settle_of(1, "done", [0, 0])
        confirm(raw, 1)
        await js(page, "promises[0]")
        script = "[got[1].done(), got[2].again(1), got[3].reject('x'), got[4].extend()].forEach(keep), 0"
        await js(page, script)
        sent = [await raw.next("settle") for _ in range(4)]
        assert [packet["number"] for packet in sent] == [2, 3, 4, 5]
        await raw.abort()
        # Its lease has ended with the connection.
        await js(page, "promises[4]")
        again = await joined(server)
        # Messages that are done are not given to the application once more.
        again.send(lend_of(0, "0", "1", "2"))
        assert [await again.next("settle") for _ in range(3)] == [
            packet | {"number": number} for number, packet in enumerate(sent[:3], 1)
        ]
        assert (await data(page, 7))[5:] == ["0", "2"]
        confirm(again, 3)
        await js(page, "Promise.all(promises).then(() => 0)")


WAITING = """(() => {
  jobs.close();
  work((job) => { got.push(job); return new Promise(() => {}); }, { leaseSeconds: 30 });
})()"""


async def test_leases_of_messages_that_wait_are_renewed(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    async with peer(tabs) as (page, first, server):
        await js(page, WAITING)
        assert await first.next("settle") == settle_of(1, "release", NONE)
        confirm(first, 1)
        await first.answer_close()
        await page.clock.install()
        raw = await joined(server)
        raw.send(lend_of(0, "0", "1", "2"))
        assert await data(page, 1) == ["0"]
        for number in (1, 2):
            await page.clock.fast_forward(10_000)
            assert await raw.next("settle") == settle_of(number, "extend", [1, 2])
            confirm(raw, number)
        # Another log has none of them.
        raw.send({"t": "joined", **PLACE, "log": "other"})
        raw.send(lend_of(0, "new"))
        number, log = 2, "log"
        while log == "log":  # the page may renew the old ones before it reads of the other log
            await page.clock.fast_forward(10_000)
            settle, number = await raw.next("settle"), number + 1
            confirm(raw, number)
            log = settle["log"]
        assert settle == settle_of(number, "extend", [0, 0], log="other")
        await js(page, "jobs.close(), 0")
        assert await raw.next("settle") == settle_of(number + 1, "release", [0, 0], log="other")
        confirm(raw, number + 1)
        await raw.answer_close()


async def test_a_consumer_that_drains_gets_back_the_messages_that_wait(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    async with peer(tabs) as (page, first, server):
        await js(page, WAITING)
        assert await first.next("settle") == settle_of(1, "release", NONE)
        confirm(first, 1)
        await first.answer_close()
        raw = await joined(server)
        raw.send(lend_of(0, "0", "1"))
        raw.send({"t": "draining", "retry_seconds": 0.01})
        assert await raw.next("settle") == settle_of(1, "release", [1, 1])
        await raw.abort()
        await joined(server)
        assert await js(page, "got.length") == 1


async def test_the_end_of_a_subscription_waits_for_confirmations(tabs: Tabs) -> None:
    async with peer(tabs) as (page, raw, _):
        raw.send(lend_of(0, "0"))
        await data(page, 1)
        await js(page, "keep(got[0].done()), keep(jobs.close()), keep(got[0].done()), 0")
        assert await raw.next("settle") == settle_of(1, "done", [0, 0])
        closed = "ConnectError the subscription is closed, and the outcome of the message is not kept"
        await page.wait_for_function("settled[2]")
        assert (await js(page, "settled[2]")).startswith(closed)
        assert await js(page, "Object.keys(settled)") == ["2"]
        # It has nothing to give back, and waits until it is lent nothing more.
        assert await raw.next("settle") == settle_of(2, "release", NONE)
        # Too late: it is given back.
        raw.send(lend_of(1, "1"))
        assert await raw.next("settle") == settle_of(3, "release", [1, 1])
        confirm(raw, 3)
        await raw.answer_close()
        await js(page, "Promise.all(promises.slice(0, 2)).then(() => 0)")
        assert await js(page, "got.length") == 1
        assert await js(page, "outcome(jobs.ready)") == "done"


async def test_without_an_answer_outcomes_fail_and_are_sent_later(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    async with peer(tabs) as (page, raw, server):
        raw.send(lend_of(0, "0", "1"))
        await data(page, 2)
        await page.clock.install()
        await raw.abort()
        again = await server.speaking(KEY)
        await again.next("join")
        await js(page, "keep(got[0].done()), 0")
        await page.clock.fast_forward(10_000)
        await page.wait_for_function("settled[0]")
        assert await js(page, "settled[0]") == (
            f"ConnectError no consumer can be used ({server.address}: no answer)"
        )
        # A later one has its own time.
        await js(page, "keep(got[1].done()), 0")
        again.send({"t": "joined", **PLACE, "log": "log"})
        assert await again.next("settle") == settle_of(1, "done", [0, 0])
        assert await again.next("settle") == settle_of(2, "done", [1, 1])
        # Whoever asks now waits for all of them.
        await js(page, "keep(jobs.flush()), 0")
        confirm(again, 1)
        await js(page, "jobs.ready")
        assert await js(page, "Object.keys(settled)") == ["0"]
        confirm(again, 2)
        await js(page, "Promise.all(promises.slice(1)).then(() => 0)")


async def test_refusals(nodes: Nodes, tabs: Tabs) -> None:
    write_key(nodes.directory, "billing", BILLING)
    rights = {"subscribe": ["jobs"], "groups": ["billing-*"]}
    consumer = await nodes.consumer(clients=[{"name": "billing", "key_file": "billing.key"} | rights])
    page = await tabs.with_client()
    await new_client(page, [consumer], [], psk=BILLING, name="billing")
    await js(page, WORK)
    assert await js(page, "outcome(work(undefined, { group: 'billing-1' }).ready)") == "done"
    refused = "NotAllowedError not_allowed"
    assert await js(page, "outcome(work(undefined, { group: 'other' }).ready)") == refused
    await js(page, "jobs.close()")
    own = "{ onError: (error) => { window.own = String(error); } }"
    other = f"client.subscribe('news', () => {{}}, {{ group: 'billing-1', ...{own} }}).ready"
    assert await js(page, f"outcome({other})") == refused
    assert 'no membership in the group "billing-1": ' in await js(page, "own")
    key = "work(undefined, { group: 'billing-1', orderKey: 'account' }).ready"
    assert await js(page, f"outcome({key})") == "ConnectError order_key"
    assert await js(page, "errors") == [refused, "ConnectError order_key"]
    await new_client(page, [consumer], [], psk="another key")
    assert await js(page, "outcome(work().ready)") == "AuthenticationError 4401"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("{ group: 'a b' }", "WsqueueError: group is a b, expected 1 to 64 letters"),
        ("{ group: 5 }", "WsqueueError: group is 5, expected 1 to 64 letters"),
        ("{ group: `${'x'.repeat(65)}` }", "WsqueueError: group is xxx"),
        ("{ from: 5 }", "WsqueueError: from is 5, expected 'earliest' or 'latest'"),
        ("{ prefetch: 0 }", "WsqueueError: prefetch is 0, expected a whole number from 1 to 10000"),
        ("{ prefetch: 1.5 }", "WsqueueError: prefetch is 1.5"),
        ("{ leaseSeconds: NaN }", "WsqueueError: leaseSeconds is NaN, expected a number from 0.1 to 86400"),
        ("{ maxDeliveries: 1001 }", "WsqueueError: maxDeliveries is 1001"),
        ("{ orderKey: '' }", 'WsqueueError: orderKey is "", expected 1 to 64 characters'),
        ("{ orderKey: 5 }", "TypeError: orderKey is not a string"),
        ("{ onGap: () => {} }", "WsqueueError: a group has no onGap"),
        ("{ reader: 'r' }", "WsqueueError: a group has no reader"),
        ("{ group: undefined, prefetch: 5 }", "WsqueueError: prefetch, leaseSeconds, maxDeliveries and"),
        ("{ group: undefined, reader: 'r', orderKey: 'x' }", "WsqueueError: prefetch, leaseSeconds, maxDel"),
        ("{ group: undefined, autoDone: true }", "WsqueueError: autoDone is for a reader or a group"),
    ],
)
async def test_wishes_that_cannot_be(tabs: Tabs, options: str, error: str) -> None:
    page = await tabs.with_client()
    await new_client(page, ["127.0.0.1:1"], [])
    await js(page, WORK)
    assert (await js(page, f"thrown(() => work(undefined, {options}))")).startswith(error)


async def test_outcomes_that_cannot_be(tabs: Tabs) -> None:
    async with peer(tabs) as (page, raw, _):
        raw.send(lend_of(0, "0"))
        await data(page, 1)
        for call, error in {
            "again(-1)": "WsqueueError: the delay is -1, expected 0 to 86400 seconds",
            "again('1')": "WsqueueError: the delay is 1",
            "reject()": "TypeError: the reason is not a string",
            "reject('\\ud800')": "WsqueueError: the reason has a lone surrogate",
        }.items():
            assert (await js(page, f"thrown(() => got[0].{call})")).startswith(error)


async def test_classic_has_no_groups(tabs: Tabs) -> None:
    page = await tabs.with_client()
    await new_client(page, ["127.0.0.1:1"], [], protocol="classic")
    await js(page, WORK)
    assert await js(page, "thrown(() => work())") == "WsqueueError: the classic protocol has no groups"


@pytest.mark.parametrize(
    "wrong",
    [
        {"t": "joined", **PLACE},
        {"t": "lend", **PLACE, "offset": -1, "messages": messages_of("x")},
        {"t": "lend", **PLACE, "offset": 0},
        lend_of(0, "x", deliveries="2"),
        {"t": "settled", **PLACE, "number": "1"},
        {"t": "left", **PLACE, "code": 5},
    ],
)
async def test_packets_that_are_none(tabs: Tabs, wrong: dict[str, Any]) -> None:
    async with peer(tabs) as (_, raw, _):
        raw.send(wrong)
        code, _ = await raw.close_frame()
        assert code == 4400
        await raw.abort()
