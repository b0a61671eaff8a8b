"""The independent client as the conformance checks want one; see `tests.conformance.adapter`."""

from __future__ import annotations

import asyncio
import sys

from ..conformance.commands import (
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
from .peer import Client, Gap, Message, RefusedError


async def main(producer: str, consumer: str, psk_file: str) -> None:
    """Follow the commands."""
    client = Client([f"ws://{producer}"], [f"ws://{consumer}"], key_in(psk_file))

    async def publish(topic: str, data: str) -> None:
        try:
            await client.publish(topic, [data])
        except RefusedError as error:
            tell_refused(data, error.code)
        else:
            tell_confirmed(data)

    def tell(item: Gap | Message) -> None:
        if isinstance(item, Gap):
            tell_gap(item.missed)
        else:
            tell_message(item.offset, item.data)

    async def subscribe(topic: str, start: str) -> None:
        async for item in client.subscribe(topic, start):
            tell(item)

    async def follow(prefix: str, start: str) -> None:
        follower = client.follow(prefix, start)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.run())
            while True:
                tell(await follower.items.get())

    async def work(topic: str, group: str) -> None:
        member = client.member(topic, group)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(member.run())
            while True:
                loan = await member.loans.get()
                tell_lent(loan.offset, loan.deliveries, loan.data)
                await member.settle(loan, str(loan.data))
                tell_settled(loan.data)

    async def read(topic: str, name: str) -> None:
        reader = client.reader(topic, name)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reader.run())
            while True:
                message = await reader.messages.get()
                tell_message(message.offset, message.data)
                if message.data == "done":
                    await reader.done(message)
                    tell_kept(message.data)

    await follow_commands(publish=publish, subscribe=subscribe, work=work, read=read, follow=follow)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
