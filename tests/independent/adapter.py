"""The independent client as the conformance checks want one; see `tests.conformance.adapter`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from .peer import Client, Gap, RefusedError


async def main(producer: str, consumer: str, psk_file: str) -> None:
    """Take commands from the standard input until it ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    key = Path(psk_file).read_text().strip()  # noqa: ASYNC240 - nothing else runs yet
    client = Client([f"ws://{producer}"], [f"ws://{consumer}"], key)
    tasks: list[asyncio.Task[None]] = []
    while line := (await reader.readline()).decode().rstrip("\n"):
        command, topic, rest = line.split(" ", 2)
        work = publish(client, topic, rest) if command == "publish" else subscribe(client, topic, rest)
        tasks.append(asyncio.create_task(work))
        await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


async def publish(client: Client, topic: str, data: str) -> None:
    """Publish a message, and tell its outcome."""
    try:
        await client.publish(topic, [data])
    except RefusedError as error:
        print("refused", data, error.code, flush=True)
    else:
        print("confirmed", data, flush=True)


async def subscribe(client: Client, topic: str, start: str) -> None:
    """Tell of messages and gaps."""
    async for item in client.subscribe(topic, start):
        if isinstance(item, Gap):
            print("gap", "unknown" if item.missed is None else item.missed, flush=True)
        else:
            print("message", item.offset, item.data, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
