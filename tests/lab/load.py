"""Clients that publish and subscribe while a cluster changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..support.labs import OwnLab

# Publishes numbered messages until standard input ends, subscribes to them, and prints counts as JSON.
LOAD = """
import asyncio, json, sys
import wsqueue
TOPICS = [f"load/{number}" for number in range(12)]
async def main():
    published = dict.fromkeys(TOPICS, 0)
    received = {topic: [] for topic in TOPICS}
    stopped = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    async def take(messages):
        async for message in messages:
            received[message.topic].append(int(message.data))
    async with wsqueue.connect("/etc/wsqueue/demo.toml") as client:
        async with client.subscribe(*TOPICS) as messages:
            taking = asyncio.create_task(take(messages))
            print("started", flush=True)
            loop = asyncio.get_running_loop()
            start, number = loop.time(), 0
            while not stopped.done() and not taking.done():
                topic = TOPICS[number % len(TOPICS)]
                await client.drain()
                client.publish_nowait(topic, str(published[topic]))
                published[topic] += 1
                number += 1
                # 100 a second, and no long burst to make up for the time in which the producers were busy.
                await asyncio.sleep(max(0.0, start + number / 100 - loop.time()))
                start = max(start, loop.time() - number / 100 - 0.1)
            await client.flush()
            deadline = loop.time() + 120
            while sum(published.values()) > sum(map(len, received.values())) and loop.time() < deadline:
                await asyncio.sleep(0.05)
        await taking
    print(json.dumps({
        "published": published,
        "received": {topic: len(numbers) for topic, numbers in received.items()},
        "duplicates": sum(len(numbers) - len(set(numbers)) for numbers in received.values()),
        "overtaken": [
            (topic, before, after)
            for topic, numbers in received.items()
            for before, after in zip(numbers, numbers[1:])
            if after < before
        ][:10],
    }))
asyncio.run(main())
"""


@contextmanager
def load(lab: OwnLab) -> Iterator[dict[str, Any]]:
    """Publish and subscribe on the demo host, and yield the result, which is empty until the block ends."""
    # The real path, which stays when the link moves.
    release = lab.ssh("demo1", "readlink -f /opt/wsqueue/current")
    lab.ssh("demo1", "cat >/tmp/load.py", stdin=LOAD)
    result: dict[str, Any] = {}
    with lab.running("demo1", f"PYTHONPATH={release}/site-packages exec python3 /tmp/load.py") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield result
        assert process.poll() is None
        shown, _ = process.communicate(timeout=180)
        assert process.returncode == 0, shown
        result |= json.loads(shown)
