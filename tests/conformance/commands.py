"""The lines between the checks and a client: commands come in, outcomes go out; see `__main__`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

Command: TypeAlias = Callable[[str, str], Coroutine[Any, Any, None]]


def key_in(psk_file: str) -> str:
    """Return the pre-shared key."""
    return Path(psk_file).read_text().strip()


async def follow_commands(
    *, publish: Command, subscribe: Command, work: Command, read: Command, follow: Command
) -> None:
    """Do each command of the standard input in a task, and end all tasks when the input ends.

    Args:
        publish: Takes a topic and data.
        subscribe: Takes a topic and a start.
        work: Takes a topic and a group.
        read: Takes a topic and the name of a reader.
        follow: Takes a prefix and a start.
    """
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    commands = {"publish": publish, "subscribe": subscribe, "work": work, "read": read, "follow": follow}
    tasks: list[asyncio.Task[None]] = []
    while line := (await reader.readline()).decode().rstrip("\n"):
        command, topic, rest = line.split(" ", 2)
        tasks.append(asyncio.create_task(commands[command](topic, rest)))
        # Messages of one turn of the loop would share a batch.
        await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def tell_confirmed(data: str) -> None:
    """Say that a batch is confirmed."""
    print("confirmed", data, flush=True)


def tell_refused(data: str, code: str) -> None:
    """Say that a batch is refused."""
    print("refused", data, code, flush=True)


def tell_message(offset: int | None, data: str | bytes) -> None:
    """Say that a message has come."""
    print("message", offset, data, flush=True)


def tell_lent(offset: int | None, deliveries: int, data: str | bytes) -> None:
    """Say that a group has lent a message."""
    print("lent", offset, deliveries, data, flush=True)


def tell_settled(data: str | bytes) -> None:
    """Say that the outcome of a message is confirmed."""
    print("settled", data, flush=True)


def tell_kept(data: str | bytes) -> None:
    """Say that it is kept that a message is done."""
    print("kept", data, flush=True)


def tell_gap(missed: int | None) -> None:
    """Say that messages are missing."""
    print("gap", "unknown" if missed is None else missed, flush=True)
