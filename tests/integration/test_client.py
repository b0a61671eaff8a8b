"""The client library against nodes that come, go, refuse and are slow."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

import wsqueue
from wsqueue.config.model import ClientConfig
from wsqueue.net import connection

from ..support.classic_peer import answer_of
from ..support.nodes import KEY, OTHER_KEY, Log, Nodes
from ..support.ports import free_port
from ..support.raw_peer import RawServer
from ..support.raw_v2_peer import V2Server
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def begin_with_the_first_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.randrange", lambda _count: 0)


async def test_publish_and_subscribe(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    async with soon(), nodes.client([producer], [consumer]) as client:
        async with client.subscribe("news") as messages:
            await consumer.subscribed("news")
            for number in range(100):
                await client.publish("news", str(number))
            count = 0
            async for message in messages:
                assert (message.topic, message.data, message.offset) == ("news", str(count), count)
                count += 1
                if count == 100:
                    break
        await consumer.subscribed("news", 0)
    await eventually(lambda: not producer.connections, "it is closed")
    assert client.lost_in_flight == 0


async def test_two_subscriptions_to_the_same_topic(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    async with (
        soon(),
        nodes.client([producer], [consumer]) as client,
        client.subscribe("news") as first,
        client.subscribe("news") as second,
    ):
        await consumer.subscribed("news", 2)
        await client.publish("news", "1")
        assert [(await anext(first)).data, (await anext(second)).data] == ["1", "1"]
        await second.close()
        await consumer.subscribed("news", 1)
        await client.publish("news", "2")
        assert (await anext(first)).data == "2"
        with pytest.raises(StopAsyncIteration):
            await anext(second)


async def test_a_closed_subscription_ends_after_what_it_has(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    async with soon(), nodes.client([producer], [consumer]) as client:
        messages = client.subscribe("news")
        async with messages:
            # One batch, which arrives as a whole.
            await client.publish("news", *"abc")
            assert (await anext(messages)).data == "a"
        assert [message.data async for message in messages] == ["b", "c"]
        await messages.close()


async def test_closing_ends_an_iteration_that_waits(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    async with soon():
        async with nodes.client([producer], [consumer]) as client:
            messages = client.subscribe("news")
            waiting = asyncio.ensure_future(anext(messages, None))
            await consumer.subscribed("news")
        assert await waiting is None


async def test_the_first_producer_that_answers_is_used(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    down = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    refusing = await nodes.producer([consumer], key=OTHER_KEY)
    async with (
        soon(),
        nodes.client([*down, refusing, producer], [consumer]) as client,
        client.subscribe("news") as messages,
    ):
        await consumer.subscribed("news")
        await client.publish("news", "1")
        assert (await anext(messages)).data == "1"


async def test_the_load_is_spread(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = await nodes.consumer()
    producers = [await nodes.producer([consumer]) for _ in range(2)]
    monkeypatch.setattr("random.randrange", lambda count: count - 1)
    async with soon(), nodes.client(producers, [consumer]) as client:
        await client.publish("news", "1")
        assert [producer.counters["messages_in"] for producer in producers] == [0, 1]


async def test_a_client_works_once_the_keys_agree(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    async with soon(), nodes.client([producer], [consumer], OTHER_KEY) as client:
        messages = client.subscribe("news")
        with pytest.raises(wsqueue.AuthenticationError, match="4401"):
            await anext(messages)
        with pytest.raises(wsqueue.AuthenticationError, match="4401"):
            async with client.subscribe("news"):
                pass
        with pytest.raises(wsqueue.AuthenticationError, match="4401"):
            await client.publish("news", "1")
        assert producer.counters["refused_4401"] == 1
        for node in (consumer, producer):
            node.write_psk(OTHER_KEY)
            await node.service.reload()
        waiting = asyncio.ensure_future(anext(messages))
        await consumer.subscribed("news")
        await client.publish("news", "2")
        assert (await waiting).data == "2"


async def test_nothing_answers(nodes: Nodes, log: Log) -> None:
    down = f"127.0.0.1:{free_port()}"
    async with soon(), nodes.client([down], [down]) as client:
        with pytest.raises(wsqueue.ConnectError, match=f"no node answers: {down}/produce: .*refused"):
            await client.publish("news", "1")
        with pytest.raises(wsqueue.ConnectError, match=f"{down}/subscribe/news: .*refused"):
            async with client.subscribe("news"):
                pass
        with pytest.raises(wsqueue.ConnectError):
            await anext(client.subscribe("news"))
    assert log.lines("", logging.WARNING) == []


async def test_some_nodes_refuse_and_others_are_down(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    down = f"127.0.0.1:{free_port()}"
    async with soon(), nodes.client([producer, down], [consumer], OTHER_KEY) as client:
        with pytest.raises(wsqueue.ConnectError, match="4401") as caught:
            await client.publish("news", "1")
        assert not isinstance(caught.value, wsqueue.AuthenticationError)


async def test_a_client_is_used_again_after_a_failure(nodes: Nodes, log: Log) -> None:
    consumer = await nodes.consumer()
    port = free_port()
    async with soon(), nodes.client([f"127.0.0.1:{port}"], [consumer]) as client:
        with pytest.raises(wsqueue.ConnectError):
            await client.publish("news", "1")
        producer = await nodes.producer([consumer], port=port)
        # The client tries again by itself.
        await eventually(lambda: log.lines(f"link up peer={producer.address}/produce"), "it is connected")
        await client.publish("news", "2")
        await client.flush()
        assert producer.counters["messages_in"] == 1


async def test_a_producer_that_was_there_is_waited_for(nodes: Nodes, log: Log) -> None:
    consumer = await nodes.consumer()
    producer = await nodes.producer([consumer], port=free_port())
    address = producer.address
    async with soon(), nodes.client([producer], [consumer]) as client:
        await client.publish("news", "1")
        await producer.crash()
        await eventually(lambda: log.lines(f"link down peer={address}/produce"), "it is noticed")
        publishing = asyncio.create_task(client.publish("news", "2"))
        await eventually(lambda: log.lines(f"link cannot open peer={address}"), "it is down")
        assert not publishing.done()
        await producer.restart()
        await publishing
        assert producer.counters["messages_in"] == 1


async def test_a_node_that_says_nothing_is_not_waited_for_without_end(nodes: Nodes) -> None:
    async with (
        soon(),
        RawServer() as server,
        nodes.client([server.address], [server.address], open_seconds=0.3) as client,
    ):
        with pytest.raises(wsqueue.ConnectError, match="no answer"):
            await client.publish("news", "1")
        with pytest.raises(wsqueue.ConnectError, match="no answer"):
            async with client.subscribe("news"):
                pass


async def test_a_node_that_accepts_and_closes_at_once_is_not_waited_for_without_end(nodes: Nodes) -> None:
    async with (
        asyncio.timeout(5),
        RawServer() as server,
        nodes.client([server.address], [server.address], open_seconds=0.5) as client,
    ):
        serving = asyncio.create_task(accept_and_close(server))
        try:
            with pytest.raises(wsqueue.ConnectError):
                await client.publish("news", "1")
        finally:
            serving.cancel()


async def accept_and_close(server: RawServer) -> None:
    """Do the hello of every connection, and close it in the write that ends the hello."""
    while True:
        raw = await server.next()
        await raw.upgrade()
        raw.send({"t": "h", "o": 1})
        once = None
        while once is None:
            once = (await raw.packet()).get("o")
        answer = f'{{"t":"h","a":"{answer_of(once, KEY)}"}}'.encode()
        close = Frame(Opcode.CLOSE, (1000).to_bytes(2)).serialize(mask=False)
        raw.writer.write(Frame(Opcode.TEXT, answer).serialize(mask=False) + close)
        await raw.end()
        await raw.abort()


async def test_a_refusal_for_good_ends_a_subscription(nodes: Nodes) -> None:
    consumer = await nodes.consumer(max_topic_bytes=4)
    async with soon(), nodes.client([consumer], [consumer]) as client:
        messages = client.subscribe("12345")
        with pytest.raises(wsqueue.ConnectError, match="400"):
            await anext(messages)
        with pytest.raises(wsqueue.ConnectError, match="404"):
            await client.publish("news", "1")
        count = consumer.counters["connections"]
        consumer.write(max_topic_bytes=8)
        await consumer.service.reload()
        waiting = asyncio.ensure_future(anext(messages))
        await consumer.subscribed("12345")
        assert consumer.counters["connections"] == count + 1
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_the_largest_message(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    topic, headers = "t" * 256, {"n" * 64: "\U0001f642" * 1024}
    room = 1024 * 1024 - len(topic)
    room_besides_headers = room - 64 - 4 * 1024
    async with soon(), nodes.client([producer], [consumer]) as client, client.subscribe(topic) as messages:
        await consumer.subscribed(topic)
        for one, size in (("x", 1), ("\x01", 1), ("ñ", 2), (b"\xff", 1)):
            await client.publish(topic, one * (room // size))
            assert (await anext(messages)).data == one * (room // size)
            with pytest.raises(wsqueue.InvalidMessage):
                await client.publish(topic, one * (room // size + 1))
        await client.publish(topic, bytes(room_besides_headers), headers=headers)
        message = await anext(messages)
        assert (message.data, message.headers) == (bytes(room_besides_headers), headers)
        with pytest.raises(wsqueue.InvalidMessage):
            await client.publish(topic, bytes(room_besides_headers + 1), headers=headers)


BACKLOG = [*(f"{number:10}" for number in range(1100)), *(f"{number:10000}" for number in range(1100, 2500))]
"""More messages than a subscription takes ahead, and then more bytes than the kernel holds."""


async def test_an_application_that_is_slow(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    async with soon(), nodes.client([producer], [consumer]) as client, client.subscribe("news") as messages:
        await client.publish("news", *BACKLOG)
        await eventually(lambda: consumer.counters["fell_behind"], "the client stops reading")
        assert [(await anext(messages)).data for _ in BACKLOG] == BACKLOG
        await client.publish("news", "after")
        assert (await anext(messages)).data == "after"


async def test_a_silent_producer_is_left_for_another_within_seconds(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CLOSE_PING_SECONDS", 0.1)
    consumer, producer = await nodes.cluster()
    async with (
        soon(),
        V2Server() as silent,
        nodes.client([silent.address, producer], [consumer]) as client,
        client.subscribe("news") as messages,
    ):
        publishing = asyncio.create_task(client.publish("news", "a"))
        raw = await silent.speaking(KEY)
        assert (await raw.next("publisher"))["t"] == "publisher"
        assert (await raw.packet())["t"] == "publish"
        await publishing
        assert (await anext(messages)).data == "a"


async def test_a_consumer_is_lost_while_reading_is_paused(nodes: Nodes) -> None:
    consumer = await nodes.consumer(port=free_port())
    producer = await nodes.producer([consumer])
    await producer.ready()
    keepalive: dict[str, Any] = {"ping_interval_seconds": 0.1, "ping_timeout_seconds": 0.1}
    async with (
        soon(),
        nodes.client([producer], [consumer], **keepalive) as client,
        client.subscribe("news") as messages,
    ):
        await client.publish("news", *BACKLOG)
        await eventually(lambda: consumer.counters["fell_behind"], "the client stops reading")
        await consumer.crash()
        await consumer.restart()
        await client.publish("news", "after")
        received: list[str | bytes] = []
        gaps: list[int | None] = []
        while received[-1:] != ["after"]:
            try:
                received.append((await anext(messages)).data)
            except wsqueue.GapError as gap:
                gaps.append(gap.missed)
        assert received[:-1] == BACKLOG[: len(received) - 1]
        assert len(received) > 1000
        assert gaps == [None]


async def test_closing_flushes_and_may_be_done_twice(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    async with soon():
        async with nodes.client([producer], [consumer]) as client:
            for number in range(5000):
                client.publish_nowait("news", str(number))
            await asyncio.gather(client.close(), client.close())
            await client.close()
        assert client.lost_in_flight == 0
        assert producer.counters["messages_in"] == 5000
        await eventually(lambda: consumer.counters["messages_in"] == 5000, "all have come")


@pytest.mark.parametrize("options", [{}, {"group": "g"}, {"reader": "r"}])
async def test_the_end_of_the_event_loop_ends_a_client_that_is_open(
    nodes: Nodes, options: dict[str, Any]
) -> None:
    """No task is left behind, of which asyncio would complain when it is collected."""
    consumer, producer = await nodes.cluster()
    complaints: list[str] = []

    async def program() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, told: complaints.append(told["message"])
        )
        client = nodes.client([producer], [consumer])
        await client.publish("news", "1")
        client.publish_nowait("news", "2")
        await client.subscribe("news", **options).__aenter__()

    async with soon():
        await asyncio.to_thread(asyncio.run, program())
    gc.collect()
    assert complaints == []


async def test_what_a_classic_producer_that_stops_did_not_read_is_counted(nodes: Nodes) -> None:
    """It has stopped reading, so that some messages wait in the kernel and the others in the client."""
    count = 15_000
    async with soon(), RawServer() as server, nodes.client([server.address], [server.address]) as client:
        for _ in range(count):
            client.publish_nowait("news", "x" * 1000)
        producer = await server.next()
        await producer.accept(KEY)
        await producer.packet()
        producer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        producer.send_frame(Opcode.CLOSE, (1001).to_bytes(2))
        await producer.writer.drain()
        await producer.abort()
        other = await server.next()
        assert 0 < client.lost_in_flight < count
        await other.accept(KEY)
        closing = asyncio.create_task(client.close())
        received = 0
        while (frame := await other.frame())[0] is not Opcode.CLOSE:
            received += frame[0] is Opcode.TEXT
            if frame[0] is Opcode.PING:
                other.send_frame(Opcode.PONG, frame[1])
        other.send_frame(*frame)
        other.writer.write_eof()
        await closing
        assert client.lost_in_flight + received == count


async def test_cancelling_what_waits(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    async with soon(), nodes.client([producer], [consumer]) as client, client.subscribe("news") as messages:
        await consumer.subscribed("news")
        for number in range(3):
            waiting = asyncio.ensure_future(anext(messages))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            await client.publish("news", str(number))
            assert (await anext(messages)).data == str(number)


async def test_cancelling_a_publish(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    async with soon(), nodes.client([producer], [consumer]) as client, client.subscribe("news") as messages:
        await consumer.subscribed("news")
        publishing = asyncio.ensure_future(client.publish("news", "0"))
        await asyncio.sleep(0)
        publishing.cancel()
        await asyncio.wait([publishing])
        assert publishing.cancelled()
        assert (await anext(messages)).data == "0"


async def test_cancelling_a_subscription_that_begins(nodes: Nodes) -> None:
    async with soon(), RawServer() as server, nodes.client([server.address], [server.address]) as client:

        async def subscribe() -> None:
            async with client.subscribe("news"):
                pass

        subscribing = asyncio.create_task(subscribe())
        consumer = await server.next()
        subscribing.cancel()
        await asyncio.wait([subscribing])
        assert subscribing.cancelled()
        await consumer.end()


async def test_closing_again_after_it_was_cancelled(nodes: Nodes) -> None:
    async with (
        soon(),
        RawServer() as server,
        nodes.client([server.address], [server.address], close_seconds=0.3) as client,
    ):
        publishing = asyncio.create_task(client.publish("news", "1"))
        stuck = await server.next()
        await stuck.accept(KEY)
        await publishing
        closing = asyncio.create_task(client.close())
        stuck.send_frame(Opcode.PONG, await stuck.until(Opcode.PING))
        await stuck.until(Opcode.CLOSE)
        closing.cancel()
        await asyncio.wait([closing])
        await client.close()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await server.next()


async def test_from_a_file_or_a_configuration(nodes: Nodes, tmp_path: Path) -> None:
    consumer, producer = await nodes.cluster()
    file, psk_file = tmp_path / "demo.toml", tmp_path / "psk"
    psk_file.write_text(KEY)
    psk_file.chmod(0o600)
    file.write_text(
        f'role = "demo"\nproducers = ["{producer.address}/produce"]\n'
        f'consumers = ["{consumer.address}/subscribe"]\npsk_file = "psk"\n'
    )
    config = ClientConfig(
        producers=[f"{producer.address}/produce"], consumers=[f"{consumer.address}/subscribe"]
    )
    for client in (
        wsqueue.connect(file),
        wsqueue.connect(str(file), psk=KEY),
        wsqueue.connect(config, psk=wsqueue.PreSharedKey(KEY)),
    ):
        async with soon(), client:
            async with client.subscribe("news") as messages:
                await consumer.subscribed("news")
                await client.publish("news", "1")
                assert (await anext(messages)).data == "1"
            await consumer.subscribed("news", 0)


@contextlib.asynccontextmanager
async def rewriting(address: str, before: bytes, after: bytes) -> AsyncIterator[str]:
    """Run a proxy that rewrites the first line of a request, and return its address."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = address.rpartition(":")
        upstream, upstream_writer = await asyncio.open_connection(host, int(port))
        upstream_writer.write((await reader.readline()).replace(before, after))
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield "{}:{}".format(*server.sockets[0].getsockname())


async def test_a_proxy_that_strips_a_prefix_is_not_taken_for_another_key(nodes: Nodes) -> None:
    """As nginx does with `location /queue/ { proxy_pass http://node/; }`."""
    consumer, producer = await nodes.cluster()
    async with soon(), rewriting(producer.address, b"/queue/produce", b"/produce") as address:
        consumers = [f"{consumer.address}/subscribe"]
        async with wsqueue.connect(
            producers=[f"{address}/queue/produce"], consumers=consumers, psk=KEY
        ) as client:
            with pytest.raises(
                wsqueue.ConnectError, match="/queue/produce was asked for, /produce came"
            ) as caught:
                await client.publish("news", "1")
            assert not isinstance(caught.value, wsqueue.AuthenticationError)
        await eventually(lambda: producer.counters["refused_4414"] == 1, "it is counted")


async def test_a_proxy_that_decodes_topics_does_no_harm(nodes: Nodes) -> None:
    """As nginx does with `proxy_pass http://node/;`."""
    consumer, producer = await nodes.cluster()
    async with (
        soon(),
        rewriting(consumer.address, b"a%2Fb", b"a/b") as address,
        nodes.client([producer], [address]) as client,
        client.subscribe("a/b") as messages,
    ):
        await client.publish("a/b", "1")
        assert (await anext(messages)).data == "1"


async def test_the_topic_is_in_the_path_only_while_the_consumer_may_be_classic() -> None:
    for allow_classic, path in ((True, "/subscribe/a%2Fb"), (False, "/subscribe")):
        async with soon(), RawServer() as server:
            config = ClientConfig(
                producers=[f"{server.address}/produce"],
                consumers=[f"{server.address}/subscribe"],
                allow_classic=allow_classic,
            )
            async with wsqueue.connect(config, psk=KEY) as client:
                waiting = asyncio.create_task(client.subscribe("a/b").__anext__())
                assert await (await server.next()).upgrade() == path
                waiting.cancel()
