"""The demo: it publishes the lines that it reads on a topic, and prints the messages of the topic."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from ..client.client import Client
from ..client.subscription import Subscription
from ..client.values import Gap, Message
from .terminal import for_each_line, printable, to_stdout

RETURN_SECONDS = 5.0
"""Maximum time until the next line comes back: a healthy cluster needs milliseconds."""

MAX_MISSING_LINES = 1000
"""Maximum number of lines that have not come back: enough to keep a cluster busy, with little memory."""


async def demo(client: Client, topic: str, max_line_bytes: int) -> int:
    """Run the demo: on a terminal until the end of input, otherwise until all lines have come back.

    Returns:
        Number of lines that did not come back; 0 on a terminal.

    Raises:
        ConnectError: No node answers.
        InvalidMessage: A line cannot be published.
    """
    async with client.subscribe(topic, on_gap="yield") as messages:
        if sys.stdin.isatty() and sys.stdout.isatty():
            await _on_terminal(client, topic, messages)
            return 0
        return await _on_pipe(client, topic, messages, max_line_bytes)


async def _on_terminal(client: Client, topic: str, messages: Subscription[Message | Gap]) -> None:
    # Imported here because no other command needs it, and it is slow to import.
    from prompt_toolkit import PromptSession  # noqa: PLC0415
    from prompt_toolkit.patch_stdout import patch_stdout  # noqa: PLC0415

    session: PromptSession[str] = PromptSession(f"{printable(topic)}> ")

    async def prompt() -> None:
        try:
            while True:
                if line := await session.prompt_async():
                    await client.publish(topic, line)
        except (EOFError, KeyboardInterrupt):
            return

    async def show() -> None:
        async for message in messages:
            if isinstance(message, Gap):
                print(gap_text(message))
            else:
                print(printable(message.data))

    print(f"Subscribed to {printable(topic)}. Type a line to publish it; Ctrl-D ends.")
    with patch_stdout():
        await _until_first_ends(prompt(), show())


async def _on_pipe(
    client: Client, topic: str, messages: Subscription[Message | Gap], max_line_bytes: int
) -> int:
    missing: Counter[str] = Counter()
    count = 0
    came_back = asyncio.Event()

    async def publish() -> None:
        await for_each_line(max_line_bytes, publish_line)
        await at_most_missing(0)

    async def publish_line(line: str) -> None:
        nonlocal count
        await at_most_missing(MAX_MISSING_LINES - 1)
        await client.drain()
        client.publish_nowait(topic, line)
        missing[line] += 1
        count += 1

    async def at_most_missing(limit: int) -> None:
        while count > limit:
            came_back.clear()
            async with asyncio.timeout(RETURN_SECONDS):
                await came_back.wait()

    async def show() -> None:
        nonlocal count
        async for message in messages:
            if isinstance(message, Gap):
                print(gap_text(message), file=sys.stderr)
                continue
            print(to_stdout(message.data), flush=True)
            if missing[message.data]:
                count -= 1
            missing[message.data] -= 1
            if missing[message.data] <= 0:
                del missing[message.data]
            came_back.set()

    with contextlib.suppress(TimeoutError):
        await _until_first_ends(publish(), show())
    return count


def gap_text(gap: Gap) -> str:
    """Return a gap in words."""
    count = "Some messages" if gap.missed is None else f"{gap.missed} messages"
    return f"{count} of {printable(gap.topic)} are gone."


async def _until_first_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until one ends, cancel the others, and raise its exception."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()
