"""A proxy that can begin to drop all packets, without a word to either end, as a broken network does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class DroppingProxy:
    """Pass bytes on between peers and one node.

    Attributes:
        address: `host:port` to connect to.
        dropping: True to drop everything from now on, and the ends of connections too.
        accepted: Number of connections.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.address = ""
        self.dropping = False
        self.accepted = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[DroppingProxy]:
        """Listen on loopback, and cut all connections at the end."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        if self.dropping:
            return
        host, _, port = self._upstream.rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        self._writers.add(back)
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                if not self.dropping:
                    writer.write(data)
            if not self.dropping:
                writer.close()
