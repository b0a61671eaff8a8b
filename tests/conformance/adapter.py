"""Our Python client as the checks want one: `python -m tests.conformance.adapter PRODUCER CONSUMER PSK_FILE`.

The addresses are host:port.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Literal

import wsqueue
from wsqueue import Gap, PublishError

from .commands import (
    follow_commands,
    key_in,
    tell_confirmed,
    tell_gap,
    tell_kept,
    tell_lent,
    tell_message,
    tell_refused,
    tell_settled,
)


async def settle(job: wsqueue.GroupMessage) -> None:
    """Settle a message as its data says."""
    if job.data == "done":
        await job.done()
    elif job.data == "again":
        await job.again()
    else:
        await job.reject("it says so")


async def read_all(messages: wsqueue.ReaderSubscription[wsqueue.ReaderMessage]) -> None:
    """Tell all messages, and say that those are done whose data says so."""
    async for message in messages:
        tell_message(message.offset, message.data)
        if message.data == "done":
            await message.done()
            tell_kept(message.data)


async def tell_all(items: AsyncIterator[wsqueue.Message | Gap]) -> None:
    """Tell all messages and gaps."""
    async for item in items:
        if isinstance(item, Gap):
            tell_gap(item.missed)
        else:
            tell_message(item.offset, item.data)


def start_of(word: str) -> Literal["earliest", "latest"]:
    return "earliest" if word == "earliest" else "latest"


async def main(producer: str, consumer: str, psk_file: str) -> None:
    """Follow the commands."""
    client = wsqueue.connect(
        producers=[f"{producer}/produce"],
        consumers=[f"{consumer}/subscribe"],
        psk=key_in(psk_file),
        open_seconds=0.5,
    )

    async def publish(topic: str, data: str) -> None:
        try:
            await client.publish(topic, data)
        except PublishError as error:
            tell_refused(data, error.code)
        else:
            tell_confirmed(data)

    async def subscribe(topic: str, start: str) -> None:
        await tell_all(client.subscribe(topic, start=start_of(start), on_gap="yield"))

    async def follow(prefix: str, start: str) -> None:
        await tell_all(client.subscribe(prefix=prefix, start=start_of(start), on_gap="yield"))

    async def work(topic: str, group: str) -> None:
        async for job in client.subscribe(topic, group=group):
            tell_lent(job.offset, job.deliveries, job.data)
            await settle(job)
            tell_settled(job.data)

    async def read(topic: str, reader: str) -> None:
        await read_all(client.subscribe(topic, reader=reader))

    async with client:
        await follow_commands(publish=publish, subscribe=subscribe, work=work, read=read, follow=follow)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
