"""A node of a local cluster: a process, whose log lines are passed on."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable

from ..errors import WsqueueError

START_SECONDS = 20.0
"""Maximum time until a node listens: it needs a tenth of a second, but more on a busy machine."""

STOP_SECONDS = 15.0
"""Maximum time until a node has drained: `drain_seconds` and a margin."""

MAX_LOG_LINE_BYTES = 1024 * 1024
"""Maximum length of a log line: values are cut at 200 characters, and a traceback takes a few KiB."""

_STARTED = re.compile(r"\bstarted role=\w+ version=\S+ listen=(\S+)$")


class LocalNode:
    """A node that runs as a process; its log lines are passed on.

    Args:
        name: Its name.
        process: The process, whose standard error is a pipe.
        show: Called with the name and a line that it logged.
        started: Finds the address in the line with which it says that it listens.

    Attributes:
        address: Address at which it listens, "" before.
        ended: Done when the process has ended.
    """

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        show: Callable[[str, str], None],
        *,
        started: re.Pattern[str] = _STARTED,
    ) -> None:
        self.name = name
        self._line_at_start = started
        self.address = ""
        self.ended = asyncio.create_task(self._read(process, show))
        self._process = process
        self._started = asyncio.Event()

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    async def started(self) -> None:
        """Wait until the node listens; `address` is known then.

        Raises:
            WsqueueError: The node ended or did not start in time.
        """
        waiting = asyncio.create_task(self._started.wait())
        try:
            await asyncio.wait(
                [waiting, self.ended], timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
        if not self._started.is_set():
            raise WsqueueError(f"{self.name} did not start: {self.outcome()}")

    @property
    def status(self) -> int | None:
        """Return the exit status, negative for a signal, or None while the process runs."""
        return self._process.returncode

    def outcome(self) -> str:
        """Return a text that says how the process ended."""
        status = self.status
        if status is None:
            return f"not ready after {START_SECONDS:g} seconds"
        return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.status is None:
            self._process.send_signal(number)

    async def stop(self) -> None:
        """Let the node drain, and kill it if that takes too long."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.shield(self.ended)
        except TimeoutError:
            self.kill()
            await self.ended

    def kill(self) -> None:
        """End the node at once, unless it has ended."""
        self.signal(signal.SIGKILL)

    async def _read(self, process: asyncio.subprocess.Process, show: Callable[[str, str], None]) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode(errors="backslashreplace").rstrip("\n")
            if match := self._line_at_start.search(text):
                self.address = match[1]
                self._started.set()
            show(self.name, text)
        await process.wait()
