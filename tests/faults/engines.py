"""The NATS servers of a log that consumers share, and the harm that is done to them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client

from tests.support.nats_servers import NatsServers

from .schedule import Fault

HEALTHY_SECONDS = 60.0
"""How long the servers may take until they have all that they should have, on a busy machine."""

REQUEST_SECONDS = 2.0


async def _ignore(_error: Exception) -> None:
    """Do nothing: the request fails then."""


OPTIONS: dict[str, Any] = {
    "allow_reconnect": False,
    "connect_timeout": 1,
    "error_cb": _ignore,
    "max_reconnect_attempts": 1,
    "reconnect_time_wait": 0.1,
}
"""Options for a server that may be away: the client is patient by default, even if it may not reconnect."""


class Engines:
    """Run the servers, each with a name.

    Args:
        names: The names.
        directory: Place of their files.
    """

    def __init__(self, names: Sequence[str], directory: Path) -> None:
        self._indexes = {name: index for index, name in enumerate(names)}
        self._servers = NatsServers(directory, len(names))
        self._gone: set[int] = set()

    def address(self, name: str) -> tuple[str, int]:
        """Return host and port of a server."""
        return "127.0.0.1", self._servers.ports[self._indexes[name]]

    async def heal(self) -> None:
        """Let all servers run that are not gone for good, and wait until they are well."""
        left = [index for index in self._indexes.values() if index not in self._gone]
        for index in left:
            self._servers.kill(index, signal.SIGCONT)
            self._start(index)
        await self._servers.healthy(*left, seconds=HEALTHY_SECONDS)

    def stop(self) -> None:
        """End all servers."""
        self._servers.stop()

    async def kill(self, fault: Fault) -> None:
        """End a server, in an orderly way or not, and start it again."""
        index = self._indexes[fault.target]
        number = signal.SIGTERM if fault.kind == "engine restart" else signal.SIGKILL
        await asyncio.to_thread(self._servers.kill, index, number)
        await asyncio.sleep(fault.seconds)
        self._start(index)

    async def pause(self, fault: Fault) -> None:
        """Stop a server, and let it go on."""
        index = self._indexes[fault.target]
        self._servers.kill(index, signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        self._servers.kill(index, signal.SIGCONT)

    async def leave(self, fault: Fault) -> None:
        """End a server for good."""
        index = self._indexes[fault.target]
        self._gone.add(index)
        await asyncio.to_thread(self._servers.kill, index)

    async def step_down(self, fault: Fault) -> None:
        """Let another server lead a stream, if one can."""
        urls = list(self._servers.urls)
        random.shuffle(urls)
        for url in urls:
            client = Client()
            try:
                await client.connect(url, **OPTIONS)
                subject = f"$JS.API.STREAM.LEADER.STEPDOWN.{fault.target}"
                await client.request(subject, b"", timeout=REQUEST_SECONDS)
            except (OSError, TimeoutError, nats.errors.Error):
                # Another fault may have hit this server.
                continue
            finally:
                with contextlib.suppress(OSError, nats.errors.Error):
                    await client.close()
            return

    def _start(self, index: int) -> None:
        if index not in self._gone and self._servers.processes[index] is None:
            self._servers.start(index)
