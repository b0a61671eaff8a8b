"""Our Python client as the checks want one: `python -m tests.conformance.adapter PRODUCER CONSUMER PSK_FILE`.

The addresses are host:port.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Literal

import wsqueue
from wsqueue import Client, Gap, PublishError


async def main(producer: str, consumer: str, psk_file: str) -> None:
    """Take commands from the standard input until it ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    key = Path(psk_file).read_text().strip()  # noqa: ASYNC240 - nothing else runs yet
    client = wsqueue.connect(
        producers=[f"{producer}/produce"], consumers=[f"{consumer}/subscribe"], psk=key, open_seconds=0.5
    )
    tasks: list[asyncio.Task[None]] = []
    async with client:
        while line := (await reader.readline()).decode().rstrip("\n"):
            command, topic, rest = line.split(" ", 2)
            work = publish(client, topic, rest) if command == "publish" else subscribe(client, topic, rest)
            tasks.append(asyncio.create_task(work))
            # Messages of one turn of the loop would share a batch.
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def publish(client: Client, topic: str, data: str) -> None:
    """Publish a message, and tell its outcome."""
    try:
        await client.publish(topic, data)
    except PublishError as error:
        print("refused", data, error.code, flush=True)
    else:
        print("confirmed", data, flush=True)


async def subscribe(client: Client, topic: str, start: str) -> None:
    """Tell of messages and gaps."""
    begin: Literal["earliest", "latest"] = "earliest" if start == "earliest" else "latest"
    async for item in client.subscribe(topic, start=begin, on_gap="yield"):
        if isinstance(item, Gap):
            print("gap", "unknown" if item.missed is None else item.missed, flush=True)
        else:
            print("message", item.offset, item.data, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
