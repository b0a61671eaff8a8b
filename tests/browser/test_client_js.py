"""The JavaScript client in Chromium, against real nodes and against peers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from playwright.async_api import Page
from websockets.frames import Opcode

import wsqueue
from tests.support.certificates import Authority, digest_of
from tests.support.dropping_proxy import DroppingProxy
from tests.support.nodes import KEY, OTHER_KEY, Nodes
from tests.support.paths import DATA
from tests.support.ports import free_port
from tests.support.raw_v2_peer import (
    V2Server,
    V2Socket,
    deliver_of,
    messages_of,
    new_nonce,
    proof_of,
    publish_of,
)
from tests.support.waiting import eventually, soon
from wsqueue.protocol.routing import topic_hash

from ..support.chromium import Tabs
from .client import NEW_CLIENT, data, js, new_client

pytestmark = pytest.mark.anyio

VECTORS = json.loads((DATA / "vectors.json").read_text())
WSS = ["wss://127.0.0.1:0"]
TEXTS = ["hello", "", "ñ 日本 😀 \x00 \"'\\</script>", "y" * 70_000]


async def test_the_hash_is_that_of_the_nodes(tabs: Tabs) -> None:
    rng = random.Random(7)
    topics = [vector["topic"] for vector in VECTORS["hash"]]
    for _ in range(3000):
        limit = rng.choice([0x7F, 0xD7FF, 0x10FFFF])
        points = (rng.randrange(limit + 1) for _ in range(rng.randrange(40)))
        topics.append("".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))
    topics += [vector["topic"] for vector in VECTORS["dead_letters"]]
    pieces = ["!", "!dead", "!g!dead", "dead", "jobs", "\n", "😀"]
    topics += ["".join(rng.choices(pieces, k=rng.randrange(8))) for _ in range(3000)]
    page = await tabs.with_client()
    hashes = await js(page, "(topics) => topics.map(wsqueue.topicHash)", topics)
    assert hashes == [topic_hash(topic) for topic in topics]
    assert hashes[: len(VECTORS["hash"])] == [vector["hash"] for vector in VECTORS["hash"]]
    assert any(ord(character) > 0xFFFF for topic in topics for character in topic)


@pytest.mark.parametrize(
    "options", [{}, {"protocol": "classic"}, {"protocol": "classic", "helloOrder": "reversed"}]
)
async def test_messages_go_through_two_consumers(nodes: Nodes, tabs: Tabs, options: dict[str, str]) -> None:
    consumers = [await nodes.consumer(), await nodes.consumer()]
    producer = await nodes.producer(consumers)
    await producer.ready()
    page = await tabs.with_client()
    await new_client(page, consumers, [producer], **options)
    topics = ["news", "a b/ñ?&=%😀", "", "日本語", "..x"]
    assert {topic_hash(topic) % 2 for topic in topics} == {0, 1}
    await js(page, "(topics) => Promise.all(topics.map((topic) => subscribe(topic).ready))", topics)
    for topic in topics:
        await consumers[topic_hash(topic) % 2].subscribed(topic)
    publishing = "([topics, data]) => Promise.all(topics.map((topic) => client.publish(topic, data)))"
    await js(page, publishing, [topics, TEXTS])
    await data(page, len(topics) * len(TEXTS))
    got = await js(page, "got")
    for topic in topics:
        assert [message["data"] for message in got if message["topic"] == topic] == TEXTS
    assert consumers[0].counters["messages_in"] + consumers[1].counters["messages_in"] == len(got)
    protocol = options.get("protocol", "v2")
    assert {connection.session.v2 for connection in producer.connections} == {protocol == "v2"}
    assert {state["protocol"] for state in await js(page, "states")} == {protocol}
    if protocol == "v2":
        assert [message["offset"] for message in got if message["topic"] == "news"] == [0, 1, 2, 3]
    await js(page, "client.close()")
    await eventually(lambda: not producer.connections, "the client has closed")
    assert await js(page, "outcome(client.publish('news', 'late'))") == "WsqueueError 0"


async def test_a_publish_is_done_when_it_is_confirmed_and_is_sent_again_until_then(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    async with soon(), V2Server() as server:
        page = await tabs.with_client()
        await new_client(page, [], [server.address])
        await js(page, "window.first = outcome(client.publish('news', ['1', '2'])); window.done = false;")
        await js(page, "first.then(() => { done = true; }); 0")
        raw = await server.speaking(KEY)
        secret = (await raw.next("publisher"))["secret"]
        batch = await raw.next("publish")
        assert batch == publish_of(1, "news", "1", "2")
        await js(page, "window.second = outcome(client.publish('news', '3')); 0")
        await js(page, "window.other = outcome(client.publish('sport', '4')); 0")
        second, other = await raw.next("publish"), await raw.next("publish")
        assert [second["after"], other["after"], other["number"]] == [1, 0, 3]
        assert not await js(page, "done")
        raw.writer.transport.abort()
        raw = await server.speaking(KEY)
        assert (await raw.next("publisher"))["secret"] == secret
        assert [await raw.next("publish") for _ in range(3)] == [batch, second, other]
        raw.send({"t": "ack", "numbers": [[1, 1], [3, 3]]})
        raw.send({"t": "refused", "number": 2, "code": "full", "reason": "the disk is full"})
        assert await js(page, "Promise.all([first, second, other])") == ["done", "PublishError full", "done"]
        await js(page, "client.close()")
        await raw.answer_close()


WITH_IDS = """([consumers, producers, psk]) => {
  const publisherSecret = new Uint8Array(32).fill(7);
  window.client = new wsqueue.WsqueueClient({ consumers, producers, psk, publisherSecret });
  window.outcome = (promise) => promise.then(() => "done", (error) => `${error.name}: ${error.message}`);
  window.publish = (topic, id, data = `${id}`) => outcome(client.publish(topic, data, { id }));
}"""


async def test_ids_of_the_application(nodes: Nodes, tabs: Tabs) -> None:
    """A message that comes again from another page, under its id, is stored once."""
    consumer, producer = await nodes.cluster()
    for rows, repeats in (("[1, 2, 5]", 0), ("[2, 5, 9, 2 ** 53 - 1]", 2)):
        page = await tabs.with_client()
        await js(page, WITH_IDS, [[consumer.address], [producer.address], KEY])
        outcomes = await js(page, f"Promise.all({rows}.map((id) => publish('news', id)))")
        assert set(outcomes) == {"done"}
        assert consumer.counters["repeats"] == repeats
        late = await js(page, "publish('sport', 2)")
        assert late.startswith("WsqueueError: the id 2 is not above ")
        await js(page, "client.close()")
    async with nodes.client([producer], [consumer]) as client:
        stored = [message.data async for message in client.subscribe("news", start="earliest", follow=False)]
    assert stored == ["1", "2", "5", "9", str(2**53 - 1)]


async def test_ids_that_cannot_be(tabs: Tabs) -> None:
    async with soon(), V2Server() as server:
        page = await tabs.with_client()
        await js(page, WITH_IDS, [[], [server.address], KEY])
        for arguments, problem in {
            "'news', undefined": "a message has an id if its client has a publisherSecret, and only then",
            "'news', 0": "0 is not an id: expected an integer, 1 to 9007199254740991",
            "'news', 1.5": "1.5 is not an id",
            "'news', '1'": "1 is not an id",
            "'news', 1, ['a', 'b']": "an id belongs to one message",
        }.items():
            assert problem in await js(page, f"publish({arguments})")
        await js(page, "window.calls = [3, 5].map((id) => publish('news', id)); 0")
        raw = await server.speaking(KEY)
        assert (await raw.next("publisher"))["secret"] == bytes([7] * 32)
        assert await raw.next("publish") == publish_of(3, "news", "3")
        assert await raw.next("publish") == publish_of(5, "news", "5", after=3)
        raw.send({"t": "ack", "numbers": [[1, 3]]})
        raw.send({"t": "refused", "number": 5, "code": "full", "reason": "no room"})
        assert await js(page, "Promise.all(calls)") == ["done", "PublishError: no room"]
        problem = await js(page, "publish('sport', 6)")
        assert problem.startswith(
            "PublishError: the message with the id 5 was refused or failed before: make"
        )
        for options in (
            "publisherSecret: 'secret'",
            "publisherSecret: new Uint8Array(32), protocol: 'classic'",
        ):
            made = f"() => {{ try {{ new wsqueue.WsqueueClient({{ psk: 'x', {options} }}); }} catch (error) "
            assert "publisherSecret" in await js(page, f"{made} {{ return error.message; }} }}")
        await js(page, "client.close()")
        await raw.answer_close()


async def test_another_producer_takes_over(nodes: Nodes, tabs: Tabs) -> None:
    consumer = await nodes.consumer()
    producers = [await nodes.producer([consumer]) for _ in range(2)]
    for producer in producers:
        await producer.ready()
    page = await tabs.with_client()
    await new_client(page, [consumer], [*producers])
    await js(page, "client.publish('news', '0')")
    used = next(producer for producer in producers if producer.counters["messages_in"])
    stopping = asyncio.create_task(used.stop())
    await js(page, "Promise.all(['1', '2', '3'].map((one) => client.publish('news', one)))")
    await stopping
    await js(page, "subscribe('news', { from: 'earliest' })")
    assert await data(page, 4) == ["0", "1", "2", "3"]


async def test_a_subscription_goes_on_where_it_was(nodes: Nodes, tabs: Tabs, tmp_path: Path) -> None:
    tabs.tolerate("WebSocket connection to")
    consumer = await nodes.consumer(
        port=free_port(), retention={"mode": "memory", "directory": f"{tmp_path}/log"}
    )
    producer = await nodes.producer([consumer])
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer])
    await js(page, "subscribe('news').ready")
    async with soon(), nodes.client([producer], [consumer]) as client:
        await client.publish("news", "1", "2")
        assert await data(page, 2) == ["1", "2"]
        await consumer.stop()
        publishing = asyncio.create_task(client.publish("news", "3", "4"))
        await page.wait_for_function("states.some(({ state }) => state === 'down')")
        await consumer.restart()
        await publishing
        await client.publish("news", "5")
        assert await data(page, 5) == ["1", "2", "3", "4", "5"]
        assert await js(page, "gaps") == []
        await consumer.crash()
        await consumer.restart()
        await client.publish("news", "6")
        assert await data(page, 6) == ["1", "2", "3", "4", "5", "6"]
        assert await js(page, "gaps") == [{"topic": "news", "missed": None}]


CLOSED_AT_ONCE = """async () => {
  const one = client.subscribe('news', (message) => { got.push(message); one.close(); });
  await one.ready;
  await client.publish('news', ['1', '2', '3']);
}"""


async def test_a_subscription_that_is_closed_calls_back_no_more(nodes: Nodes, tabs: Tabs) -> None:
    consumer, producer = await nodes.cluster()
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer])
    await js(page, CLOSED_AT_ONCE)
    await consumer.subscribed("news", 0)
    assert await data(page, 1) == ["1"]


async def test_where_a_subscription_begins(nodes: Nodes, tabs: Tabs) -> None:
    consumer, producer = await nodes.cluster()
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer])
    starts = {
        "'earliest'": ["0", "1", "2", "3"],
        "2": ["2", "3"],
        "-1": ["3"],
        "-3": ["1", "2", "3"],
        "-20": ["0", "1", "2", "3"],
        "new Date(0)": ["0", "1", "2", "3"],
        "new Date(-1)": ["0", "1", "2", "3"],
        "new Date(Date.now() + 60000)": [],
        "{ log: 'another', offset: 3 }": ["0", "1", "2", "3"],
        "'latest'": [],
    }
    for topic, (start, expected) in enumerate(starts.items()):
        await js(page, f"client.publish('{topic}', ['0', '1', '2', '3'])")
        await js(page, f"got.length = 0; subscribe('{topic}', {{ from: {start} }}).ready")
        await js(page, f"client.publish('{topic}', 'last')")
        assert await data(page, len(expected) + 1) == [*expected, "last"]


STARTS_THAT_CANNOT_BE = {
    "null": "null",
    "'erliest'": "erliest",
    "'-5'": "-5",
    "1.5": "1.5",
    "-1.5": "-1.5",
    "2 ** 53": "9007199254740992",
    "NaN": "NaN",
    "true": "true",
    "{ log: 'log' }": '{"log":"log"}',
    "{ log: 'log', offset: -1 }": '{"log":"log","offset":-1}',
    "{ log: 5, offset: 0 }": '{"log":5,"offset":0}',
    "new Date('never')": "Invalid Date",
}


async def test_a_start_that_cannot_be_harms_no_other_subscription(nodes: Nodes, tabs: Tabs) -> None:
    """A consumer would close the connection for good."""
    consumer, producer = await nodes.cluster()
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer])
    await js(page, "subscribe('news').ready")
    for topics in ("'sport'", "{ prefix: 's' }"):
        for start, shown in STARTS_THAT_CANNOT_BE.items():
            thrown = await js(page, f"thrown(() => subscribe({topics}, {{ from: {start} }}))")
            assert thrown.startswith("WsqueueError: from is "), start
            assert shown in thrown or topics != "'sport'", start
    await js(page, "client.publish('news', '1')")
    assert await data(page, 1) == ["1"]
    assert await js(page, "errors") == []
    await new_client(page, [consumer], [producer], protocol="classic")
    thrown = await js(page, "thrown(() => subscribe('news', { from: 'earliest' }))")
    assert thrown == "WsqueueError: the classic protocol keeps no messages: expected no from but 'latest'"
    await js(page, "subscribe('news', { from: 'latest' }).ready")


@pytest.mark.parametrize("protocol", ["v2", "classic"])
async def test_another_key_is_said_and_not_tried_again(nodes: Nodes, tabs: Tabs, protocol: str) -> None:
    consumer, producer = await nodes.cluster()
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer], psk=OTHER_KEY, protocol=protocol)
    assert await js(page, "outcome(subscribe('news').ready)") == "AuthenticationError 4401"
    assert await js(page, "outcome(client.publish('sport', '1'))") in ("AuthenticationError 4401", "done")
    await page.wait_for_function("errors.length === 2")
    assert await js(page, "errors") == ["AuthenticationError 4401"] * 2
    # Longer than many delays of a reconnect.
    await page.wait_for_timeout(700)
    assert consumer.counters["refused_4401"] == producer.counters["refused_4401"] == 1


async def test_a_node_that_cannot_prove_itself_gets_nothing(tabs: Tabs) -> None:
    async with soon(), V2Server() as server:
        page = await tabs.with_client()
        await new_client(page, [], [server.address])
        await js(page, "window.outcome1 = outcome(client.publish('news', 'secret')); 0")
        raw = await server.next()
        assert isinstance(raw, V2Socket)
        path = await raw.upgrade("wsqueue.v2")
        nonce = new_nonce()
        raw.send({"t": "challenge", "nonce": nonce})
        proof = await raw.packet()
        assert proof["proof"] == proof_of(KEY, "initiator", nonce, proof["nonce"], path)
        # It sends the client's own proof back, as one would who only listens.
        raw.send({"t": "proof", "proof": proof["proof"]})
        await raw.answer_close()
        assert await js(page, "outcome1") == "AuthenticationError 4401"


async def test_over_tls_a_proof_names_the_certificate(nodes: Nodes, tabs: Tabs, tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("node")
    tls = {name: value for name, value in msgspec.to_builtins(issued).items() if value}
    consumer, producer = await nodes.cluster(listen=WSS, tls=tls)
    page = await tabs.with_client(ignore_https_errors=True)
    binding = dict.fromkeys((consumer.address, producer.address), digest_of(issued))
    await new_client(page, [consumer], [producer], channelBinding=binding)
    await js(page, "subscribe('news').ready")
    await js(page, "client.publish('news', 'over TLS')")
    assert await data(page, 1) == ["over TLS"]
    await new_client(page, [consumer], [producer])
    assert await js(page, "outcome(subscribe('news').ready)") == "ConnectError 0"
    for wrong in ({consumer.address: "00" * 32}, "none"):
        await new_client(page, [consumer], [producer], channelBinding=wrong)
        assert await js(page, "outcome(subscribe('news').ready)") == "ConnectError 4414"
    lenient = await nodes.consumer(listen=WSS, tls=tls, channel_binding="optional")
    await new_client(page, [lenient], [producer], channelBinding="none")
    await js(page, "subscribe('news').ready")


@pytest.mark.timeout(150)
async def test_a_network_that_drops_everything_is_noticed(nodes: Nodes, tabs: Tabs) -> None:
    """Neither end is told: the client asks after a silence, and publishes through another producer."""
    tabs.tolerate("WebSocket connection to")
    consumer = await nodes.consumer()
    producers = [await nodes.producer([consumer]) for _ in range(2)]
    for producer in producers:
        await producer.ready()
    page = await tabs.with_client()
    async with (
        DroppingProxy(consumer.address).running() as to_consumer,
        DroppingProxy(producers[0].address).running() as to_producer,
    ):
        places = [to_producer.address, producers[1].address]
        options = {"psk": KEY, "consumers": [to_consumer.address], "producers": places}
        await page.evaluate("Math.random = () => 0")  # the first producer is used
        await page.evaluate(NEW_CLIENT, options)
        await js(page, "subscribe('news').ready")
        await js(page, "client.publish('news', 'before')")
        to_consumer.dropping = to_producer.dropping = True
        await js(page, "window.publishing = outcome(client.publish('news', 'meanwhile')); 0")
        silent = "states.filter((state) => state.state === 'down').map(({ role, code }) => `${role} ${code}`)"
        await page.wait_for_function(f"new Set({silent}).size === 2", timeout=90_000)
        assert set(await js(page, silent)) == {"consumer 4411", "producer 4411"}
        assert await js(page, "publishing") == "done"
        to_consumer.dropping = False
        # What comes back is noticed at once, too, because the browser says so.
        await js(page, "dispatchEvent(new Event('online'))")
        assert await data(page, 2) == ["before", "meanwhile"]
        await js(page, "client.close()")


async def test_a_node_that_is_there_is_asked_and_kept(tabs: Tabs) -> None:
    async with soon(), V2Server() as server:
        page = await tabs.with_client()
        await page.evaluate(NEW_CLIENT, {"psk": KEY, "consumers": [server.address], "producers": []})
        await js(page, "subscribe('news'); 0")
        raw = await server.speaking(KEY)
        assert await raw.packet() == {"t": "subscribe", "topic": "news", "start": "latest"}
        for event in ("online", "pageshow", "focus"):
            await js(page, "(event) => dispatchEvent(new Event(event))", event)
            assert await raw.packet() == {"t": "ask_alive"}
            raw.send({"t": "alive"})
        await js(page, "client.close()")
        await raw.answer_close()


async def test_a_silent_node_is_left_however_often_the_page_gets_the_focus(tabs: Tabs) -> None:
    page = await tabs.with_client()
    await page.clock.install()
    async with soon(), V2Server() as server:
        await new_client(page, [server.address], [])
        await js(page, "subscribe('news'); 0")
        raw = await server.speaking(KEY)
        await raw.next("subscribe")
        for _ in range(2):
            await js(page, "dispatchEvent(new Event('focus'))")
            await page.clock.fast_forward(6_000)
        assert await raw.packet() == {"t": "ask_alive"}
        # The first question is the only one.
        assert (await raw.frame())[0] is Opcode.CLOSE
        await raw.abort()
        await js(page, "client.close()")


async def test_after_a_refusal_for_good_a_message_has_its_own_time(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    page = await tabs.with_client()
    await page.clock.install(time=0)
    async with soon(), V2Server() as server:
        await new_client(page, [], [server.address])
        await page.clock.pause_at(100)
        await js(page, "window.first = outcome(client.publish('news', '1')); 0")
        raw = await server.next()
        assert isinstance(raw, V2Socket)
        await raw.upgrade("wsqueue.v2")
        raw.send_frame(Opcode.CLOSE, (4401).to_bytes(2))
        assert await js(page, "first") == "AuthenticationError 4401"
        await page.clock.fast_forward(9_000)
        await js(page, "window.second = outcome(client.publish('news', '2')); 0")
        raw = await server.next()
        await page.clock.fast_forward(2_000)
        assert isinstance(raw, V2Socket)
        await raw.accept_v2(KEY)
        await raw.next("publisher")
        assert await raw.next("publish") == publish_of(1, "news", "2") | {"number": 2}
        raw.send({"t": "ack", "numbers": [[2, 2]]})
        assert await js(page, "second") == "done"
        await js(page, "client.close()")
        await raw.answer_close()


async def test_a_gap_that_the_connection_did_not_bring_is_asked_for_again(tabs: Tabs) -> None:
    """As the Python client: see tests/unit/client/test_positions.py."""
    tabs.tolerate("WebSocket connection to")
    async with soon(), V2Server() as server:
        page = await tabs.with_client()
        await page.evaluate(NEW_CLIENT, {"psk": KEY, "consumers": [server.address], "producers": []})
        await js(page, "subscribe('news', { from: { log: 'log', offset: 2 } }); 0")
        asked = {"t": "subscribe", "topic": "news", "start": "offset", "log": "log", "offset": 2}
        restored = {"t": "subscribed", "topic": "news", "log": "restored", "offset": 1, "end": 1}
        raw = await server.speaking(KEY)
        assert await raw.packet() == asked
        raw.send(restored)
        raw.writer.close()
        raw = await server.speaking(KEY)
        assert await raw.packet() == asked
        raw.send(restored)
        raw.send({"t": "gap", "topic": "news", "offset": 1, "missed": None})
        await page.wait_for_function("gaps.length === 1")
        raw.writer.close()
        raw = await server.speaking(KEY)
        assert await raw.packet() == asked | {"log": "restored", "offset": 1}
        await js(page, "client.close()")
        await raw.answer_close()


async def test_what_is_refused(nodes: Nodes, tabs: Tabs) -> None:
    consumer, producer = await nodes.cluster(max_topic_bytes=8)
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer])
    assert await js(page, "outcome(client.publish('too long a topic', '1'))") == "PublishError topic_too_long"
    assert await js(page, "outcome(client.publish('news', '\\ud800'))") == "WsqueueError 0"
    assert await js(page, "outcome(client.publish('news', 7))") == "TypeError undefined"
    assert await js(page, "outcome(client.publish('news', []))") == "WsqueueError 0"
    assert await js(page, "outcome(client.publish('news', ['1', null]))") == "TypeError undefined"
    too_long = "outcome(client.publish('news', new Uint8Array(2 ** 21)))"
    assert await js(page, too_long) == "PublishError invalid"
    assert await js(page, "outcome(client.publish('news', '2'))") == "done"
    assert (
        await js(page, "subscribe('news'), outcome(Promise.try(() => subscribe('news')))") == "WsqueueError 0"
    )


async def test_the_window_is_full(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    page = await tabs.with_client()
    await new_client(page, [], [f"127.0.0.1:{free_port()}"])
    waiting = """(async () => {
      for (let count = 0; count < wsqueue.WINDOW_MESSAGES; count += 1) {
        client.publish(`${count}`, '').catch(() => {});
      }
      return outcome(client.publish('news', 'too much'));
    })()"""
    assert await js(page, waiting) == "WindowFull 0"
    await js(page, "client.close()")
    # A list that is longer than the window is published as soon as there is room at all.
    await new_client(page, [], [f"127.0.0.1:{free_port()}"])
    list_of = "client.publish('news', Array(wsqueue.WINDOW_MESSAGES + 1).fill(''))"
    await js(page, f"window.long = outcome({list_of}); 0")
    assert await js(page, "outcome(client.publish('news', 'too much'))") == "WindowFull 0"
    await js(page, "client.close()")
    assert await js(page, "long") == "ConnectError 0"
    assert await js(page, "client.close()") is None


# One character of each length in UTF-8 and in UTF-16, and those that decoders treat in their own way.
CHARACTERS = (
    "\x00\x01\n\r\x7f\x80\xff\u07ff\u0800\u2028\ud7ff\ue000\ufeff\ufffd\ufffe\uffff\U00010000\U0010ffff"
)


def any_text(rng: random.Random, length: int) -> str:
    """Return a text of characters of all planes."""
    points = (rng.choice([rng.randrange(0x110000), ord(rng.choice(CHARACTERS))]) for _ in range(length))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


@contextlib.asynccontextmanager
async def both_clients(
    nodes: Nodes, tabs: Tabs
) -> AsyncIterator[tuple[Page, wsqueue.Client, wsqueue.Subscription[wsqueue.Message]]]:
    """Return a page whose client has subscribed to `news`, and a Python client that has too."""
    consumer, producer = await nodes.cluster()
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer])
    await js(page, "subscribe('news').ready")
    async with soon(), nodes.client([producer], [consumer]) as client, client.subscribe("news") as messages:
        yield page, client, messages


async def test_all_texts_arrive_as_they_were(nodes: Nodes, tabs: Tabs) -> None:
    rng = random.Random(17)
    texts = [CHARACTERS, *CHARACTERS, *("\ufeff" + one for one in CHARACTERS), "\ufeff\ufeff", ""]
    texts += [any_text(rng, length) for length in range(200)]
    async with both_clients(nodes, tabs) as (page, client, messages):
        await js(page, "(texts) => client.publish('news', texts)", texts)
        assert [(await anext(messages)).data for _ in texts] == texts
        await client.publish("news", *texts)
    assert await data(page, 2 * len(texts)) == texts * 2


HEADERS = {"content-type": "image/png", "\ufeff\N{GRINNING FACE}": "\x00\ufeff", "__proto__": "", "t": "x"}

MIXED = """() => {
  const all = Uint8Array.from({ length: 256 }, (_, index) => index);
  const bytes = new Uint8Array([0, 1, 2, 3]);
  const publishing = [
    client.publish('news', ['a', 'b', all, new Uint8Array(), 'c', all.buffer, bytes.subarray(1, 3)]),
    client.publish('news', 'd'),
  ];
  bytes.fill(9);
  return Promise.all(publishing).then(() => 0);
}"""


async def test_bytes_and_texts_arrive_in_their_order(nodes: Nodes, tabs: Tabs) -> None:
    whole = bytes(range(256))
    expected: list[str | bytes] = ["a", "b", whole, b"", "c", whole, b"\x01\x02", "d"]
    async with both_clients(nodes, tabs) as (page, client, messages):
        await js(page, MIXED)
        assert [(await anext(messages)).data for _ in expected] == expected
        await client.publish("news", *expected)
    assert await data(page, 2 * len(expected)) == expected * 2
    assert await js(page, "got.map(({ offset }) => offset)") == list(range(2 * len(expected)))
    # Each message has bytes of its own, which the application may give away.
    assert await js(page, "new Set(got.map(({ data }) => data.buffer).filter(Boolean)).size") == 8


async def test_headers_arrive(nodes: Nodes, tabs: Tabs) -> None:
    async with both_clients(nodes, tabs) as (page, client, messages):
        keep = "(entries) => { window.own = Object.fromEntries(entries); }"
        await js(page, keep, [[name, value] for name, value in HEADERS.items()])
        await js(page, "client.publish('news', ['a', new Uint8Array([1])], { headers: own })")
        await js(page, "client.publish('news', 'none')")
        await js(page, "client.publish('news', 'none', { headers: {} })")
        got = [await anext(messages) for _ in range(4)]
        assert [dict(one.headers) for one in got] == [HEADERS, HEADERS, {}, {}]
        assert [one.data for one in got] == ["a", b"\x01", "none", "none"]
        await client.publish("news", "a", b"\x01", headers=HEADERS)
        await client.publish("news", "none")
    await data(page, 7)
    found = await js(page, "got.map(({ headers }) => Object.entries(headers))")
    assert [dict(entries) for entries in found] == [HEADERS, HEADERS, {}, {}, HEADERS, HEADERS, {}]


LONGEST = """client.publish('news', '', { headers: Object.fromEntries(
  Array.from('abcdefghijklmnop', (name) => ['😀'.repeat(63) + name, 'x'.repeat(1024)]),
) })"""

WRONG_HEADERS = {
    "Object.fromEntries(Array.from({ length: 17 }, (_, index) => [`h${index}`, '']))": "WsqueueError 0",
    "{ '': 'x' }": "WsqueueError 0",
    "{ ['x'.repeat(65)]: 'x' }": "WsqueueError 0",
    "{ x: 'x'.repeat(1025) }": "WsqueueError 0",
    "{ x: '\\ud800' }": "WsqueueError 0",
    "{ '\\udfff': 'x' }": "WsqueueError 0",
    "{ x: 1 }": "TypeError undefined",
    "{ x: null }": "TypeError undefined",
    "null": "TypeError undefined",
    "'x'": "TypeError undefined",
    "['x']": "TypeError undefined",
    "new Map([['x', 'y']])": "TypeError undefined",
    "new Headers({ x: 'y' })": "TypeError undefined",
}


async def test_headers_have_limits(nodes: Nodes, tabs: Tabs) -> None:
    consumer, producer = await nodes.cluster()
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer])
    assert await js(page, f"outcome({LONGEST})") == "done"
    for headers, outcome in WRONG_HEADERS.items():
        script = f"outcome(client.publish('news', '', {{ headers: {headers} }}))"
        assert await js(page, script) == outcome, headers
    assert consumer.counters["messages_in"] == 1


async def test_the_packets_of_bytes_and_headers(tabs: Tabs) -> None:
    async with soon(), V2Server() as server:
        page = await tabs.with_client()
        await new_client(page, [], [server.address])
        await js(page, "window.publish = (...all) => void outcome(client.publish(...all)); 0")
        await js(page, "publish('news', ['1', new Uint8Array([255, 0])], { headers: { x: 'y' } })")
        await js(page, "publish('news', ['2', new Uint8Array()])")
        raw = await server.speaking(KEY)
        secret = (await raw.next("publisher"))["secret"]
        assert isinstance(secret, bytes)
        assert len(secret) == 32
        own = [{"x": "y"}]
        assert [await raw.next("publish") for _ in range(4)] == [
            publish_of(1, "news", messages=messages_of("1", headers=own)),
            publish_of(2, "news", after=1, messages=messages_of(b"\xff\x00", headers=own)),
            publish_of(3, "news", "2", after=2),
            publish_of(4, "news", b"", after=3),
        ]
        await js(page, "publish('sport', '3'), publish('sport', '4', { headers: { x: '' } })")
        both = messages_of("3", "4", headers=[None, {"x": ""}])
        assert await raw.next("publish") == publish_of(5, "sport", messages=both)
        await js(page, "client.close()")
        await raw.answer_close()


async def subscribed_to(server: V2Server, tabs: Tabs) -> tuple[Page, V2Socket]:
    """Return a page that has subscribed to a topic of a consumer, and its connection."""
    page = await tabs.with_client()
    await page.evaluate(NEW_CLIENT, {"psk": KEY, "consumers": [server.address], "producers": []})
    await js(page, "subscribe('news'); 0")
    raw = await server.speaking(KEY)
    await raw.next("subscribe")
    raw.send({"t": "subscribed", "topic": "news", "log": "log", "offset": 0, "end": 0})
    return page, raw


async def test_a_text_that_is_no_utf_8_comes_as_bytes(tabs: Tabs) -> None:
    broken = [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
    messages = messages_of(*broken)
    del messages["text"]
    halves = messages_of("\N{EURO SIGN}")
    halves["sizes"] = [1, 2]
    async with soon(), V2Server() as server:
        page, raw = await subscribed_to(server, tabs)
        raw.send(deliver_of(0, "news", "first"))
        raw.send(deliver_of(1, "news", messages=messages))
        raw.send(deliver_of(6, "news", messages=halves))
        raw.send(deliver_of(8, "news", "last"))
        assert await data(page, 9) == ["first", *broken, b"\xe2", b"\x82\xac", "last"]
        await js(page, "client.close()")
        await raw.answer_close()


async def test_a_topic_that_is_subscribed_anew_gets_nothing_of_the_subscription_before(tabs: Tabs) -> None:
    """As a page does that mounts a component, unmounts it and mounts it again."""
    begun = {"t": "subscribed", "topic": "jobs", "log": "log", "offset": 0, "end": 7}
    async with soon(), V2Server() as server:
        page, raw = await subscribed_to(server, tabs)
        await js(page, "subscribe('jobs').close()")
        await js(page, "subscribe('jobs').close()")
        await js(page, "window.jobs = subscribe('jobs', { from: 'earliest' }); 0")
        for start in ("latest", "latest", "earliest"):
            assert await raw.next("subscribe") == {"t": "subscribe", "topic": "jobs", "start": start}
            if start == "latest":
                await raw.next("unsubscribe")
        for offset in (6, 7):
            raw.send(begun | {"offset": offset})
            raw.send({"t": "gap", "topic": "jobs", "offset": offset, "missed": 1})
            raw.send(deliver_of(offset, "jobs", "late") | {"publisher": "p", "numbers": [offset + 1]})
            raw.send({"t": "unsubscribed", "topic": "jobs", "code": "not_allowed"})
            raw.send({"t": "unsubscribed", "topic": "jobs"})
        raw.send(begun)
        for offset in range(8):
            raw.send(deliver_of(offset, "jobs", f"{offset}") | {"publisher": "p", "numbers": [offset + 1]})
        assert await data(page, 8) == [f"{offset}" for offset in range(8)]
        assert await js(page, "[gaps, errors]") == [[], []]
        # On another connection, nothing is to come of it.
        tabs.tolerate("WebSocket connection to")
        await js(page, "jobs.close(), window.jobs = subscribe('jobs'); 0")
        await raw.abort()
        raw = await server.speaking(KEY)
        assert [(await raw.next("subscribe"))["topic"] for _ in range(2)] == ["news", "jobs"]
        raw.send(begun | {"offset": 8})
        await js(page, "jobs.ready")
        await js(page, "client.close()")
        await raw.answer_close()


# It throws where the class of the package `ws` does, in a program that does not listen for errors.
LIKE_THE_PACKAGE = """([producers, psk]) => {
  class Socket extends WebSocket {
    constructor(...all) {
      super(...all);
      this.addEventListener('error', () => {
        if (!this.onerror) throw new Error("Unhandled 'error' event");
      });
    }
  }
  return new Promise((closed) => {
    const client = new wsqueue.WsqueueClient({ producers, psk, WebSocket: Socket, onState: ({ state }) => {
      if (state === 'down') closed(client.close());
    } });
    client.publish('news', '1').catch(() => {});
  });
}"""


async def test_an_error_of_a_websocket_is_the_end_of_a_connection_and_not_of_the_program(tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    page = await tabs.with_client()
    await js(page, LIKE_THE_PACKAGE, [[f"127.0.0.1:{free_port()}"], KEY])


CLOSING = """([address, psk]) => {
  const closed = (state) => new Promise((tell) => {
    const client = new wsqueue.WsqueueClient({ consumers: [address], psk, onState: (told) => {
      if (told.state !== state) return;
      client.close();
      tell();
    } });
    client.subscribe('news', () => {});
    client.subscribe('news', () => {}, { reader: 'r' });
    client.subscribe('news', () => {}, { group: 'g' });
  });
  window.closings = ['up', 'down'].map(closed);
}"""


async def test_a_client_may_be_closed_when_it_tells_of_a_connection(nodes: Nodes, tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    page = await tabs.with_client()
    await page.clock.install()
    consumer = await nodes.consumer()
    await js(page, CLOSING, [consumer.address, KEY])
    await js(page, "closings[0]")
    await consumer.stop()
    await js(page, "closings[1]")
    # Nothing is left that happens later, and fails.
    await page.clock.fast_forward(20_000)


async def test_an_error_of_a_hook_is_shown_on_the_console(tabs: Tabs) -> None:
    tabs.tolerate("Error: of the hook")
    page = await tabs.with_client()
    failing = "onState: async () => { throw new Error('of the hook'); }"
    script = f"""new Promise((closed) => {{
      const client = new wsqueue.WsqueueClient({{ psk: 'x', producers: ['127.0.0.1:1'], {failing} }});
      client.publish('news', '1').catch(closed);
      client.close();
    }}).then(() => new Promise((later) => setTimeout(later)))"""
    async with page.expect_console_message() as told:
        await js(page, script)
    assert (await told.value).text.startswith("Error: of the hook")


async def test_batches_of_a_chain_that_came_before_are_dropped(tabs: Tabs) -> None:
    chains = [
        (0, [1, 2, 5], [1, 2, 1], "abcd", "abcd"),
        (4, [2, 5, 6], [1, 1, 2], "xxef", "ef"),
        (8, [6], [1], "x", ""),
        (9, [9], [2], "gh", "gh"),
    ]
    async with soon(), V2Server() as server:
        page, raw = await subscribed_to(server, tabs)
        for offset, numbers, counts, sent, _ in chains:
            fields = {"publisher": "p", "numbers": numbers, "counts": counts}
            raw.send(deliver_of(offset, "news", *sent) | fields)
        assert await data(page, 8) == list("abcdefgh")
        assert await js(page, "got.map((one) => one.offset)") == [0, 1, 2, 3, 6, 7, 9, 10]
        await js(page, "client.close()")
        await raw.answer_close()


async def test_classic_takes_texts_without_headers(nodes: Nodes, tabs: Tabs) -> None:
    consumer, producer = await nodes.cluster()
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer], protocol="classic")
    await js(page, "subscribe('news').ready")
    await consumer.subscribed("news")
    for wrong in ("new Uint8Array(1)", "['a', new ArrayBuffer(1)]", "'a', { headers: { x: 'y' } }"):
        assert await js(page, f"outcome(client.publish('news', {wrong}))") == "PublishError invalid"
    await js(page, "client.publish('news', 'a', { headers: {} })")
    assert await data(page, 1) == ["a"]
    assert await js(page, "got[0].headers") == {}


async def test_an_original_node_that_takes_the_subprotocol_is_named(tabs: Tabs) -> None:
    """Its library selects any subprotocol; the first message shows that it does not speak it."""
    page = await tabs.with_client()
    async with soon(), V2Server() as server:
        await new_client(page, [], [server.address])
        await js(page, "window.ended = client.publish('news', '1').catch((error) => error); 0")
        raw = await server.next()
        assert isinstance(raw, V2Socket)
        await raw.upgrade("wsqueue.v2")
        raw.send_frame(Opcode.TEXT, b'{"t":"h","o":7}')
        assert await raw.close_frame() == (4412, 'it speaks classic: pass protocol: "classic"')
        await raw.abort()
        assert await js(page, "ended.then(({ name, code }) => [name, code])") == ["ConnectError", 4412]
        assert 'it speaks classic: pass protocol: "classic"' in await js(page, "ended.then(String)")


async def test_messages_of_the_other_type_are_refused(tabs: Tabs) -> None:
    page = await tabs.with_client()
    wrong = (4400, "packets of v2 are binary messages, classic ones are texts")
    async with soon(), V2Server() as server:
        await new_client(page, [], [server.address])
        await js(page, "outcome(client.publish('news', '1')); 0")
        raw = await server.speaking(KEY)
        raw.send_frame(Opcode.TEXT, b'{"t":"alive"}')
        assert await raw.close_frame() == wrong
        await raw.abort()
        await js(page, "client.close()")
        await new_client(page, [], [server.address], protocol="classic")
        await js(page, "outcome(client.publish('news', '1')); 0")
        classic = await server.next()
        await classic.upgrade()
        classic.send_frame(Opcode.BINARY, b"\x81\xa1t\xa1h")
        assert await classic.close_frame() == wrong
        await js(page, "client.close()")
