"""Does with both clients, on the loop of asyncio, all that they can; `test_packages.py` runs it.

Its arguments are the configuration, and a topic if nodes are lost: then it writes `lost` each time that they
should be, and waits for a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys

import wsqueue
import wsqueue.sync

CONFIG, *LOST = sys.argv[1:]

TIMES = 2
"""Times that nodes are lost."""


async def share_work(client: wsqueue.Client) -> None:
    await client.publish("jobs", "good", "later", "bad")
    outcomes: list[tuple[str | bytes, int]] = []
    async with client.subscribe("jobs", group="billing", max_deliveries=2) as jobs:
        async for job in jobs:
            outcomes.append((job.data, job.deliveries))
            if job.data == "bad":
                await job.reject("it makes no sense")
            elif job.deliveries == 1 and job.data == "later":
                await job.again()
            else:
                await job.done()
            if len(outcomes) == 4:
                break
    assert sorted(outcomes) == [("bad", 1), ("good", 1), ("later", 1), ("later", 2)], outcomes
    dead = [letter.data async for letter in client.subscribe("jobs!billing!dead", start=-1, follow=False)]
    assert dead == ["bad"], dead


async def read_by_name(client: wsqueue.Client) -> None:
    await client.publish("log", "one", "two", "three")
    found: list[str | bytes] = []
    for _ in range(3):
        async with client.subscribe("log", reader="audit") as messages:
            message = await anext(messages)
            found.append(message.data)
            await message.done()
    assert found == ["one", "two", "three"], found


async def follow_a_prefix(client: wsqueue.Client) -> None:
    async with client.subscribe(prefix="sensors/") as messages:
        for topic in ("sensors/1", "sensors/2"):
            await client.publish(topic, "20 °C")
            assert (await anext(messages)).topic == topic


async def fail_over(client: wsqueue.Client, topic: str) -> None:
    async with client.subscribe(topic) as messages:
        await client.publish(topic, "begin")
        assert (await anext(messages)).data == "begin"
        for number in range(TIMES):
            print("lost", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            await client.publish(topic, f"message {number}")
            assert (await anext(messages)).data == f"message {number}"


async def use_asyncio_client() -> None:
    loop = asyncio.get_running_loop()
    assert type(loop).__module__.partition(".")[0] == "asyncio", loop
    async with wsqueue.connect(CONFIG) as client:
        await share_work(client)
        await read_by_name(client)
        await follow_a_prefix(client)
        for topic in LOST:
            await fail_over(client, topic)


def use_blocking_client() -> None:
    client = wsqueue.sync.connect(CONFIG)
    client.publish("orders", "one", "two")
    with client.subscribe("orders", start="earliest", follow=False) as messages:
        assert [message.data for message in messages] == ["one", "two"]
    with client.subscribe("orders", group="billing") as orders:
        for data in ("one", "two"):
            order = orders.get(timeout=60)
            assert order.data == data
            order.done()
    client.close()
    with contextlib.suppress(RuntimeError):
        client.publish("orders", "three")
        raise AssertionError("a closed client publishes")


assert importlib.util.find_spec("uvloop") is None
asyncio.run(use_asyncio_client())
use_blocking_client()
print("all done")
