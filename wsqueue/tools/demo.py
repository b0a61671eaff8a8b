"""The demo: it publishes the lines that it reads on a topic, and prints the messages of the topic."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter

from ..client.client import Client
from ..client.subscription import Subscription
from ..client.values import Gap, Message
from ..errors import WsqueueError
from .terminal import for_each_line, printable, text_of, to_stdout, until_first_ends, until_reader_gone

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
        return await _Pipe(client, topic, messages, max_line_bytes).run()


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
                print(printable(text_of(message.data)))

    print(f"Subscribed to {printable(topic)}. Type a line to publish it; Ctrl-D ends.")
    with patch_stdout():
        await until_first_ends(prompt(), show())


class _Pipe:
    """Publish standard input, and print the messages that come back."""

    def __init__(
        self, client: Client, topic: str, messages: Subscription[Message | Gap], max_line_bytes: int
    ) -> None:
        self._client, self._topic, self._messages = client, topic, messages
        self._max_line_bytes = max_line_bytes
        self._missing: Counter[str] = Counter()
        self._count = self._published = 0
        self._came_back = asyncio.Event()

    async def run(self) -> int:
        """Return how many lines did not come back."""
        with contextlib.suppress(TimeoutError):
            await until_first_ends(self._publish(), self._show(), until_reader_gone())
        return self._count

    async def _publish(self) -> None:
        try:
            await for_each_line(self._max_line_bytes, self._publish_line)
        except WsqueueError as error:
            with contextlib.suppress(TimeoutError):
                await self._at_most_missing(0)
            back = self._published - self._count
            error.add_note(f"{back} of the {self._published} lines before it have come back")
            raise
        await self._at_most_missing(0)

    async def _publish_line(self, line: str) -> None:
        await self._at_most_missing(MAX_MISSING_LINES - 1)
        await self._client.drain()
        self._client.publish_nowait(self._topic, line)
        self._missing[line] += 1
        self._count += 1
        self._published += 1

    async def _at_most_missing(self, limit: int) -> None:
        while self._count > limit:
            self._came_back.clear()
            async with asyncio.timeout(RETURN_SECONDS):
                await self._came_back.wait()

    async def _show(self) -> None:
        async for message in self._messages:
            if isinstance(message, Gap):
                print(gap_text(message), file=sys.stderr)
                continue
            data = text_of(message.data)
            print(to_stdout(data), flush=True)
            if self._missing[data]:
                self._count -= 1
            self._missing[data] -= 1
            if self._missing[data] <= 0:
                del self._missing[data]
            self._came_back.set()


def gap_text(gap: Gap) -> str:
    """Return a gap in words."""
    count = "Some messages" if gap.missed is None else f"{gap.missed} messages"
    return f"{count} of {printable(gap.topic)} are gone."
