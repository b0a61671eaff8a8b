"""The client under test: a program that reads commands and writes outcomes, each a line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

END_SECONDS = 2.0
"""Time for the program to end once its input has ended."""


class Program:
    """Write commands to the program, and read its lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, command: Sequence[str]) -> AsyncIterator[Program]:
        """Run a command as long as the block."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        try:
            yield cls(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()

    def publish(self, topic: str, data: str) -> None:
        """Let the program publish one message, as a batch of its own."""
        self._command("publish", topic, data)

    def subscribe(self, topic: str, start: str) -> None:
        """Let the program subscribe to a topic."""
        self._command("subscribe", topic, start)

    def work(self, topic: str, group: str) -> None:
        """Let the program join a worker group."""
        self._command("work", topic, group)

    def read(self, topic: str, reader: str) -> None:
        """Let the program subscribe as a named reader."""
        self._command("read", topic, reader)

    def follow(self, prefix: str, start: str) -> None:
        """Let the program subscribe to all topics with a prefix."""
        self._command("follow", prefix, start)

    async def lines(self, count: int) -> list[str]:
        """Return the next lines."""
        assert self._process.stdout is not None
        return [(await self._process.stdout.readline()).decode().rstrip("\n") for _ in range(count)]

    def _command(self, *words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words).encode() + b"\n")
