"""Subscriptions of the JavaScript client at consumers that share one log: docs/protocol.md, "Failover"."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import Any

import pytest
from playwright.async_api import Page
from websockets.frames import Opcode

from tests.support.nodes import KEY
from tests.support.ports import free_port
from tests.support.raw_v2_peer import V2Server, V2Socket, decoded, deliver_of, messages_of
from tests.support.waiting import POLL_SECONDS, soon
from wsqueue.protocol.routing import topic_hash

from ..support.chromium import Tabs
from .client import NEW_CLIENT, data, js

pytestmark = pytest.mark.anyio

TOPIC = "news"
SILENCE_MILLISECONDS = 2_000
AWAY_MILLISECONDS = 3_000
BACK_MILLISECONDS = 10_000
RECONNECT_MILLISECONDS = 5_000
STEP_MILLISECONDS = 250
FROM_NOW = {"t": "subscribe", "topic": TOPIC, "start": "latest"}
GROUP = {"topic": TOPIC, "group": "g"}
ELSEWHERE = {"t": "left", **GROUP, "code": "elsewhere", "reason": "another consumer coordinates the group"}


class LivelySocket(V2Socket):
    """Answer questions whether it is alive, also while the test does not read."""

    async def accept_v2(self, key: str) -> str:
        path = await super().accept_v2(key)
        self._frames = asyncio.Queue[tuple[Opcode, bytes] | None]()
        self._reading = asyncio.create_task(self._read())
        return path

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                opcode, payload = await super().frame()
                if opcode is Opcode.BINARY and decoded(payload) == {"t": "ask_alive"}:
                    self.send({"t": "alive"})
                else:
                    self._frames.put_nowait((opcode, payload))
        self._frames.put_nowait(None)

    async def frame(self) -> tuple[Opcode, bytes]:
        if not hasattr(self, "_frames"):
            return await super().frame()
        frame = await self._frames.get()
        if frame is None:
            raise asyncio.IncompleteReadError(b"", 2)
        return frame


class LivelyServer(V2Server):
    kind = LivelySocket


def topic_at(index: int) -> str:
    """Return another topic, of one of two consumers."""
    return next(f"topic {n}" for n in range(99) if topic_hash(f"topic {n}") % 2 == index % 2)


def log_of(log: str = "0b4c", *, available: bool = True) -> dict[str, Any]:
    return {"t": "log", "id": log, "available": available}


def from_offset(offset: int) -> dict[str, Any]:
    return {"t": "subscribe", "topic": TOPIC, "start": "offset", "log": "epoch", "offset": offset}


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def placed(home: str, others: list[str]) -> list[str]:
    """Return consumers in a list of which the topic hash chooses the home."""
    index = topic_hash(TOPIC) % (len(others) + 1)
    return [*others[:index], home, *others[index:]]


def in_order(home: str, others: list[str]) -> list[str]:
    """Return the others in the order in which they are tried."""
    consumers = placed(home, others)
    return sorted(others, key=lambda one: hashlib.sha256(f"{TOPIC}{consumers.index(one)}".encode()).digest())


async def opened(tabs: Tabs, home: str, others: list[str], **options: str) -> Page:
    """Return a page with a client, whose clock a test can put forward."""
    tabs.tolerate("WebSocket connection to")
    page = await tabs.with_client()
    await page.clock.install()
    places = {"consumers": placed(home, others), "producers": []}
    await page.evaluate(NEW_CLIENT, {"psk": KEY, **places, **options})
    return page


async def subscribed(tabs: Tabs, home: str, others: list[str], **options: str) -> Page:
    """Return a page that subscribes to the topic."""
    page = await opened(tabs, home, others, **options)
    await js(page, f"subscribe('{TOPIC}'); 0")
    return page


async def member(tabs: Tabs, home: str, others: list[str]) -> Page:
    """Return a page that joins a group of the topic."""
    page = await opened(tabs, home, others)
    join = f"client.subscribe('{TOPIC}', (job) => {{ got.push(job); }}, {{ group: 'g' }})"
    await js(page, f"window.jobs = {join}; 0")
    return page


async def asked(server: V2Server, log: dict[str, Any] | None = None) -> V2Socket:
    """Return the next connection of a member, once it has heard of the log and asks to join."""
    raw = await heard(server, log)
    await raw.next("join")
    return raw


async def joined(server: V2Server, offset: int, *lent: str) -> V2Socket:
    """Return the next connection of a member, which has joined, and is lent messages."""
    raw = await asked(server)
    raw.send({"t": "joined", **GROUP, "log": "epoch"})
    raw.send({"t": "lend", **GROUP, "offset": offset, "messages": messages_of(*lent)})
    return raw


async def heard(server: V2Server, log: dict[str, Any] | None = None) -> V2Socket:
    """Return the next connection of a consumer, once the client has heard of its log."""
    raw = await server.speaking(KEY)
    raw.send(log_of() if log is None else log)
    return raw


def answer(raw: V2Socket, offset: int, *delivered: str) -> None:
    """Begin to deliver."""
    raw.send({"t": "subscribed", "topic": TOPIC, "log": "epoch", "offset": offset, "end": offset})
    if delivered:
        raw.send(deliver_of(offset, TOPIC, *delivered))


async def is_down(page: Page) -> None:
    """Wait until the client has noticed the end of the connection that served."""
    await page.wait_for_function("states.at(-1).state === 'down'")


async def left(page: Page, raw: V2Socket) -> None:
    """Put the clock forward in steps, in which the client goes on, until it has left a consumer."""
    closing = asyncio.create_task(raw.answer_close())
    while not closing.done():
        await page.clock.fast_forward(STEP_MILLISECONDS)
        await asyncio.wait([closing], timeout=POLL_SECONDS)
    await closing


async def offsets(page: Page) -> list[int]:
    """Return the offsets of the received messages; no gap was announced."""
    assert await js(page, "gaps") == []
    found: list[int] = await js(page, "got.map(({ offset }) => offset)")
    return found


async def test_another_consumer_serves_until_the_home_is_back(tabs: Tabs) -> None:
    home_address = f"127.0.0.1:{free_port()}"
    more = topic_at(topic_hash(TOPIC))
    async with soon(), LivelyServer() as other:
        async with LivelyServer(port_of(home_address)) as home:
            page = await subscribed(tabs, home_address, [other.address])
            raw = await heard(home)
            assert await raw.packet() == FROM_NOW
            answer(raw, 5, "a", "b")
            assert await data(page, 2) == ["a", "b"]
        await is_down(page)
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        raw = await heard(other)
        assert await raw.packet() == from_offset(7)
        answer(raw, 7, "c")
        await js(page, f"window.more = subscribe('{more}'); 0")
        assert await raw.packet() == FROM_NOW | {"topic": more}
        await js(page, "more.close()")
        assert await raw.packet() == {"t": "unsubscribe", "topic": more}
        async with LivelyServer(port_of(home_address)) as home:
            again = await heard(home)
            raw.send(deliver_of(8, TOPIC, "d"))
            assert await data(page, 4) == ["a", "b", "c", "d"]
            await left(page, raw)
            assert await again.packet() == from_offset(9)
            answer(again, 9, "e")
            assert await data(page, 5) == ["a", "b", "c", "d", "e"]
            assert await offsets(page) == [5, 6, 7, 8, 9]
            up = "states.filter(({ state }) => state === 'up').map(({ address }) => address)"
            assert await js(page, up) == [home_address, other.address, home_address]
            await js(page, "client.close()")
            await again.answer_close()


async def test_a_named_reader_goes_on_at_another_consumer(tabs: Tabs) -> None:
    named = {"reader": "r"}
    commit = {"t": "commit", "topic": TOPIC, **named, "log": "epoch"}
    home_address = f"127.0.0.1:{free_port()}"
    async with soon(), LivelyServer() as other:
        async with LivelyServer(port_of(home_address)) as home:
            page = await subscribed(tabs, home_address, [other.address])
            await (await heard(home)).packet()
            await js(page, f"window.reader = subscribe('{TOPIC}', {{ reader: 'r' }}); 0")
            raw = await heard(home)
            assert await raw.packet() == FROM_NOW | named | {"start": "earliest"}
            answer(raw, 5, "a", "b")
            await data(page, 2)
            await js(page, "window.done = got[0].done(); 0")
            assert await raw.packet() == commit | {"offset": 6}
        await page.wait_for_function("states.filter(({ state }) => state === 'down').length === 2")
        await js(page, "got[1].done(); 0")
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        both = [await heard(other), await heard(other)]
        asked = {(packet := await one.packet()).get("reader", ""): (one, packet) for one in both}
        raw, packet = asked["r"]
        assert packet == from_offset(7) | named
        assert await raw.packet() == commit | {"offset": 7}
        raw.send(commit | {"t": "committed", "offset": 7})
        await js(page, "done")
        await js(page, "client.close()")
        for one in both:
            await one.answer_close()


async def test_the_others_are_tried_in_their_order(tabs: Tabs) -> None:
    """Also if the home was never there: then another one may say which log they share."""
    home_address = f"127.0.0.1:{free_port()}"
    async with soon(), LivelyServer() as one, LivelyServer() as two, LivelyServer() as three:
        servers = {server.address: server for server in (one, two, three)}
        page = await subscribed(tabs, home_address, [*servers])
        first, second, third = (servers[address] for address in in_order(home_address, [*servers]))
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        raw = await heard(first)
        assert await raw.packet() == FROM_NOW
        answer(raw, 0, "a")
        await data(page, 1)
        await raw.abort()
        # One that comes back in time goes on.
        raw = await heard(first)
        assert await raw.packet() == from_offset(1)
        raw.send(log_of(available=False))
        raw.send(deliver_of(1, TOPIC, "dropped"))
        answer(raw, 1, "b")
        await data(page, 2)
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        await raw.answer_close()
        await (await heard(first, log_of(available=False))).answer_close()
        raw = await heard(second)
        assert await raw.packet() == from_offset(2)
        answer(raw, 2, "c")
        assert await data(page, 3) == ["a", "b", "c"]
        assert await offsets(page) == [0, 1, 2]
        assert not any(third.address in url for url in tabs.requests)
        await js(page, "client.close()")
        await raw.answer_close()


async def test_a_home_with_a_log_of_its_own_is_waited_for(tabs: Tabs) -> None:
    home_address = f"127.0.0.1:{free_port()}"
    async with soon(), LivelyServer() as other:
        async with LivelyServer(port_of(home_address)) as home:
            page = await subscribed(tabs, home_address, [other.address])
            raw = await home.speaking(KEY)
            assert await raw.packet() == FROM_NOW
            answer(raw, 0, "a")
            await data(page, 1)
        await is_down(page)
        for _ in range(3):
            await page.clock.fast_forward(BACK_MILLISECONDS)
        async with LivelyServer(port_of(home_address)) as home:
            await page.clock.fast_forward(RECONNECT_MILLISECONDS)
            raw = await home.speaking(KEY)
            assert await raw.packet() == from_offset(1)
            answer(raw, 1, "b")
            assert await data(page, 2) == ["a", "b"]
            assert not any(other.address in url for url in tabs.requests)
            await js(page, "client.close()")
            await raw.answer_close()


async def test_classic_waits_for_the_home(tabs: Tabs) -> None:
    home_address = f"127.0.0.1:{free_port()}"
    async with soon(), LivelyServer() as other:
        page = await subscribed(tabs, home_address, [other.address], protocol="classic")
        for _ in range(2):
            await page.clock.fast_forward(RECONNECT_MILLISECONDS)
        async with LivelyServer(port_of(home_address)) as home:
            await page.clock.fast_forward(RECONNECT_MILLISECONDS)
            assert await (await home.next()).upgrade() == f"/subscribe/{TOPIC}"
            assert not any(other.address in url for url in tabs.requests)
            await js(page, "client.close()")


async def test_a_silent_consumer_is_left_within_seconds(tabs: Tabs) -> None:
    async with soon(), V2Server() as home, LivelyServer() as other:
        page = await subscribed(tabs, home.address, [other.address])
        raw = await heard(home)
        assert await raw.packet() == FROM_NOW
        answer(raw, 0, "a")
        await data(page, 1)
        await page.clock.fast_forward(SILENCE_MILLISECONDS)
        assert await raw.packet() == {"t": "ask_alive"}
        await page.clock.fast_forward(SILENCE_MILLISECONDS)
        assert (await raw.close_frame())[0] == 4411
        await is_down(page)
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        assert await (await heard(other)).packet() == from_offset(1)


@pytest.mark.parametrize("gone", [0, 1])
async def test_consumers_with_and_without_a_shared_log_keep_their_topics(tabs: Tabs, gone: int) -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    topics = [TOPIC, topic_at(topic_hash(TOPIC) + 1)]
    async with soon(), contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(LivelyServer(port_of(address))) for address in addresses]
        page = await subscribed(tabs, addresses[0], addresses[1:])
        await js(page, "(topic) => { subscribe(topic); }", topics[1])
        for index, server in enumerate(servers):
            raw = await server.speaking(KEY)
            if index == 1:
                raw.send(log_of())
            assert await raw.packet() == FROM_NOW | {"topic": topics[index]}
            raw.send({"t": "subscribed", "topic": topics[index], "log": "epoch", "offset": 0, "end": 0})
            raw.send(deliver_of(0, topics[index], "a"))
        await data(page, 2)
        await servers[gone].__aexit__()
        await is_down(page)
        for _ in range(2):
            await page.clock.fast_forward(RECONNECT_MILLISECONDS)
        async with LivelyServer(port_of(addresses[gone])) as again:
            await page.clock.fast_forward(RECONNECT_MILLISECONDS)
            raw = await again.speaking(KEY)
            assert (await raw.packet())["topic"] == topics[gone]
            assert sum(addresses[1 - gone] in url for url in tabs.requests) == 1
            await js(page, "client.close()")
            await raw.answer_close()


async def test_one_that_named_no_log_in_time_is_tried_again(tabs: Tabs) -> None:
    """A page that stood still for a second must not exclude a consumer for good."""
    home_address = f"127.0.0.1:{free_port()}"
    async with soon(), LivelyServer() as other:
        async with LivelyServer(port_of(home_address)) as home:
            page = await subscribed(tabs, home_address, [other.address])
            raw = await heard(home)
            assert await raw.packet() == FROM_NOW
            answer(raw, 0, "a")
            await data(page, 1)
        await is_down(page)
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        raw = await other.speaking(KEY)
        await left(page, raw)
        await page.clock.fast_forward(RECONNECT_MILLISECONDS)
        raw = await heard(other)
        assert await raw.packet() == from_offset(1)
        await js(page, "client.close()")
        await raw.answer_close()


@pytest.mark.parametrize("said", [None, {"t": "draining", "retry_seconds": 0}], ids=["nothing", "another"])
async def test_one_without_a_shared_log_is_left_and_no_other_is_tried(
    tabs: Tabs, said: dict[str, Any] | None
) -> None:
    home_address = f"127.0.0.1:{free_port()}"
    async with soon(), LivelyServer() as one, LivelyServer() as two:
        servers = {server.address: server for server in (one, two)}
        page = await subscribed(tabs, home_address, [*servers])
        first, second = (servers[address] for address in in_order(home_address, [*servers]))
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        raw = await first.speaking(KEY)
        if said is not None:
            raw.send(said)
        await left(page, raw)
        for _ in range(3):
            await page.clock.fast_forward(BACK_MILLISECONDS)
        async with LivelyServer(port_of(home_address)) as home:
            await page.clock.fast_forward(RECONNECT_MILLISECONDS)
            raw = await home.speaking(KEY)
            assert await raw.packet() == FROM_NOW
            assert sum(first.address in url for url in tabs.requests) == 1
            assert not any(second.address in url for url in tabs.requests)
            await js(page, "client.close()")
            await raw.answer_close()


async def test_the_first_log_stands_for_that_of_a_home_that_was_never_heard(tabs: Tabs) -> None:
    home_address = f"127.0.0.1:{free_port()}"
    async with soon(), LivelyServer() as one, LivelyServer() as two:
        servers = {server.address: server for server in (one, two)}
        page = await subscribed(tabs, home_address, [*servers])
        first, second = (servers[address] for address in in_order(home_address, [*servers]))
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        await left(page, await heard(first, log_of("one", available=False)))
        await left(page, await heard(second, log_of("another")))
        await js(page, "client.close()")


async def test_an_unavailable_home_is_left_for_one_with_its_log(tabs: Tabs) -> None:
    async with soon(), LivelyServer() as home, LivelyServer() as one, LivelyServer() as two:
        servers = {server.address: server for server in (one, two)}
        page = await subscribed(tabs, home.address, [*servers])
        first, second = (servers[address] for address in in_order(home.address, [*servers]))
        at_home = await heard(home)
        assert await at_home.packet() == FROM_NOW
        answer(at_home, 0, "a")
        await data(page, 1)
        at_home.send(log_of(available=False))
        at_home.send(deliver_of(1, TOPIC, "b"))
        await data(page, 2)
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        await (await heard(first, log_of("another"))).answer_close()
        raw = await heard(second)
        assert await raw.packet() == from_offset(2)
        # Until here the home serves, and from here on it does not.
        at_home.send(deliver_of(2, TOPIC, "c"))
        answer(raw, 2, "c")
        await at_home.answer_close()
        watched = await heard(home, log_of(available=False))
        raw.send(deliver_of(3, TOPIC, "d"))
        assert await data(page, 4) == ["a", "b", "c", "d"]
        # The home is usable again, and the other one goes: nothing is left to wait for.
        watched.send(log_of())
        await raw.abort()
        await is_down(page)
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        assert await watched.packet() == from_offset(4)
        answer(watched, 4, "e")
        assert await data(page, 5) == ["a", "b", "c", "d", "e"]
        assert await offsets(page) == [0, 1, 2, 3, 4]
        await js(page, "client.close()")
        await watched.answer_close()


async def test_the_home_serves_while_none_is_available(tabs: Tabs) -> None:
    async with soon(), LivelyServer() as home, LivelyServer() as other:
        page = await subscribed(tabs, home.address, [other.address])
        raw = await heard(home, log_of(available=False))
        assert await raw.packet() == FROM_NOW
        answer(raw, 0)
        await page.clock.fast_forward(AWAY_MILLISECONDS)
        await (await heard(other, log_of(available=False))).answer_close()
        raw.send(deliver_of(0, TOPIC, "a"))
        assert await data(page, 1) == ["a"]
        # Other consumers are tried again, and no more once the home is available.
        await page.clock.fast_forward(BACK_MILLISECONDS)
        tried = await other.speaking(KEY)
        raw.send(log_of())
        await tried.answer_close()
        raw.send(deliver_of(1, TOPIC, "b"))
        assert await data(page, 2) == ["a", "b"]
        await js(page, "client.close()")
        await raw.answer_close()


async def test_a_group_goes_on_at_another_consumer_and_follows_its_coordinator(tabs: Tabs) -> None:
    home_address = f"127.0.0.1:{free_port()}"
    done = {"t": "settle", **GROUP, "number": 1, "log": "epoch", "how": "done"}
    async with soon(), LivelyServer() as other:
        async with LivelyServer(port_of(home_address)) as home:
            page = await member(tabs, home_address, [other.address])
            raw = await joined(home, 0, "a", "b")
            await js(page, "jobs.ready")
            await data(page, 2)
            await js(page, "window.kept = got[0].done(); 0")
            assert await raw.next("settle") == done | {"offsets": [[0, 0]]}
        raw = await joined(other, 1, "b", "c")
        assert await raw.next("settle") == done | {"offsets": [[0, 0]]}
        raw.send({"t": "settled", **GROUP, "number": 1})
        await js(page, "kept")
        assert await data(page, 4) == ["a", "b", "b", "c"]
        # Another member is lent messages by the home now, where the group may be again.
        async with LivelyServer(port_of(home_address)) as home:
            raw.send(ELSEWHERE)
            await raw.answer_close()
            await js(page, "window.kept = got[3].done(); 0")
            raw = await joined(home, 3, "d")
            assert await raw.next("settle") == done | {"offsets": [[2, 2]]}
            raw.send({"t": "settled", **GROUP, "number": 1})
            await js(page, "kept")
            assert (await data(page, 5))[4:] == ["d"]
            assert await js(page, "errors") == []
            await js(page, "client.close()")
            await raw.answer_close()


async def test_a_member_tries_the_consumers_of_its_log_in_their_order(tabs: Tabs) -> None:
    async with soon(), contextlib.AsyncExitStack() as stack:
        home, *some = [await stack.enter_async_context(LivelyServer()) for _ in range(4)]
        servers = {server.address: server for server in some}
        page = await member(tabs, home.address, [*servers])
        ordered = [servers[address] for address in in_order(home.address, [*servers])]
        for server in (home, ordered[0]):
            raw = await asked(server)
            raw.send(ELSEWHERE)
            await raw.answer_close()
        # The members of a consumer that does not reach the log, or has another one, are none.
        await (await heard(ordered[1], log_of(available=False))).answer_close()
        await (await heard(ordered[2], log_of("another"))).answer_close()
        raw = await asked(home)
        raw.send(log_of(available=False))
        await raw.answer_close()
        for server in ordered[:2]:
            raw = await joined(server, 0, "a")
            await js(page, "jobs.ready")
            await raw.abort()
        # The third one has another log, so that it is not tried again.
        raw = await joined(home, 1, "b")
        assert await data(page, 3) == ["a", "a", "b"]
        assert sum(ordered[2].address in url for url in tabs.requests) == 1
        await js(page, "client.close()")
        await raw.answer_close()


async def test_a_group_whose_home_has_a_log_of_its_own_stays_there(tabs: Tabs) -> None:
    async with soon(), LivelyServer() as home, LivelyServer() as other:
        page = await member(tabs, home.address, [other.address])
        for offset in range(2):
            raw = await home.speaking(KEY)
            await raw.next("join")
            raw.send({"t": "joined", **GROUP, "log": "epoch"})
            raw.send({"t": "lend", **GROUP, "offset": offset, "messages": messages_of("a")})
            await data(page, offset + 1)
            await raw.abort()
        await (await home.speaking(KEY)).next("join")
        assert not any(other.address in url for url in tabs.requests)


async def test_a_member_waits_for_its_home_after_a_consumer_without_a_shared_log(tabs: Tabs) -> None:
    home_address = f"127.0.0.1:{free_port()}"
    async with soon(), LivelyServer() as other:
        page = await member(tabs, home_address, [other.address])
        await left(page, await other.speaking(KEY))
        async with LivelyServer(port_of(home_address)) as home:
            await page.clock.fast_forward(RECONNECT_MILLISECONDS)
            await (await home.speaking(KEY)).next("join")
            assert sum(other.address in url for url in tabs.requests) == 1
