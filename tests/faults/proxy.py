"""A TCP proxy that behaves as a bad network: the links between the processes of a test.

A kernel can lose packets where it has netem, and cut cables anywhere; only a proxy can cut a frame in its
middle. Loss is simulated as TCP shows it: some reads come late by a retransmission, and all after them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from typing import Literal

Way = Literal["up", "down"]
"""Up is from who connects to who listens."""

READ_BYTES = 16 * 1024
QUEUED_READS = 64
"""Number of reads under way in one direction of a connection, before the sender is held up."""

RETRANSMISSION_SECONDS = 0.2
"""Linux retransmits after 200 ms at least."""

SLICE_SECONDS = 0.02
"""A slow link passes bytes in slices of this length, and not a whole read at once."""


class Condition:
    """Hold the present quality of one direction of a link."""

    def __init__(self) -> None:
        self.delay = self.loss = self.rate = 0.0
        self.left_until_tear: int | None = None
        self._passing = asyncio.Event()
        self._passing.set()

    def block(self) -> None:
        """Let nothing pass, the end of a connection neither."""
        self._passing.clear()

    def unblock(self) -> None:
        """Let the waiting bytes pass."""
        self._passing.set()

    def heal(self) -> None:
        """Let everything pass as on a good network."""
        self.delay = self.loss = self.rate = 0.0
        self.left_until_tear = None
        self.unblock()

    async def passing(self) -> None:
        """Wait until something may pass."""
        await self._passing.wait()


class Link:
    """Listen on loopback, and pass bytes on to an upstream that may change.

    Attributes:
        upstream: Host and port; None while no node listens there, and connections are then refused.
        accepted: Number of connections so far.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.upstream: tuple[str, int] | None = None
        self.conditions: dict[Way, Condition] = {"up": Condition(), "down": Condition()}
        self.random = random.Random(f"{seed} {name}")
        self.accepted = 0
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """Return where it listens, as `host:port`."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def start(self) -> None:
        """Listen on a port that the system chooses."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: asyncio.StreamReaderProtocol(_Reader(), self._serve), "127.0.0.1", 0
        )

    async def stop(self) -> None:
        """End all connections, and listen no more."""
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.end()
        await asyncio.gather(*(connection.ended() for connection in list(self._connections)))

    def reset(self) -> None:
        """Break all connections as a peer does that knows nothing of them."""
        for connection in list(self._connections):
            connection.reset()

    def half_close(self, way: Way) -> None:
        """End one direction of all connections, while the sender does not know."""
        for connection in list(self._connections):
            connection.half_close(way)

    def heal(self) -> None:
        """Undo every fault."""
        for condition in self.conditions.values():
            condition.heal()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, _Reader)
        self.accepted += 1
        connection = _Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Link]:
        """Start, and stop at the end."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()


class _TornError(Exception):
    """The connection ends here, in the middle of whatever it carried."""


class _Reader(asyncio.StreamReader):
    """Know of the end of a stream before it is read."""

    eof_came = False

    def feed_eof(self) -> None:
        self.eof_came = True
        super().feed_eof()


class _Connection:
    """Carry the bytes of one connection both ways."""

    def __init__(self, link: Link, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self._link, self._reader = link, reader
        self._writers: dict[Way, asyncio.StreamWriter] = {"down": writer}
        self._task = asyncio.current_task()
        self._ended_ways: set[Way] = set()
        self._finished = asyncio.Event()

    async def run(self) -> None:
        """Carry until both directions have ended, or one is broken."""
        try:
            upstream = await self._open()
            if upstream is not None:
                self._writers["up"] = upstream[1]
                ways = [
                    asyncio.create_task(self._carry("up", self._reader)),
                    asyncio.create_task(self._carry("down", upstream[0])),
                ]
                try:
                    await asyncio.gather(*ways)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        except _TornError:
            # The bytes that have passed arrive, and then the end.
            pass
        except OSError:
            # One end has reset it, or nobody listens: so the other end gets a reset too.
            self.reset()
        except asyncio.CancelledError:
            # The end of the test, which asks for it in `end` only.
            self.reset()
        finally:
            for writer in self._writers.values():
                writer.close()
            self._finished.set()

    async def ended(self) -> None:
        """Wait until it is over."""
        await self._finished.wait()

    def end(self) -> None:
        """Be over soon."""
        if self._task is not None:
            self._task.cancel()

    def reset(self) -> None:
        """Send both ends a reset instead of an orderly end."""
        for writer in self._writers.values():
            transport = writer.transport
            connected = transport.get_extra_info("socket")
            if connected is not None and not transport.is_closing():
                with contextlib.suppress(OSError):
                    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    def half_close(self, way: Way) -> None:
        """End one direction, and drop the bytes that still come in it."""
        writer = self._writers.get(way)
        self._ended_ways.add(way)
        if writer is not None and not writer.is_closing():
            with contextlib.suppress(OSError):
                writer.write_eof()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for condition in self._link.conditions.values():
            await condition.passing()
        if self._reader.eof_came or self._reader.exception():
            # The peer has given up meanwhile, and a network would have carried nothing of it.
            return None
        if self._link.upstream is None:
            raise ConnectionRefusedError
        return await asyncio.open_connection(*self._link.upstream)

    async def _carry(self, way: Way, reader: asyncio.StreamReader) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_READS)
        sending = asyncio.create_task(self._send(way, queue))
        reading = asyncio.create_task(self._read(way, reader, queue))
        try:
            done, _ = await asyncio.wait([sending, reading], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            sending.cancel()
            reading.cancel()
            await asyncio.gather(sending, reading, return_exceptions=True)

    async def _read(
        self, way: Way, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        condition, due = self._link.conditions[way], 0.0
        clock = asyncio.get_running_loop().time
        while True:
            try:
                data = await reader.read(READ_BYTES)
            except OSError:
                # The network carries a reset too, when it carries anything.
                await condition.passing()
                raise
            late = condition.delay * self._link.random.uniform(0.5, 1.5)
            if condition.loss and self._link.random.random() < condition.loss:
                late += RETRANSMISSION_SECONDS
            due = max(due, clock() + late)
            await queue.put((due, data))
            if not data:
                return

    async def _send(self, way: Way, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        condition, writer = self._link.conditions[way], self._writers[way]
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - clock())
            await condition.passing()
            if not data:
                self.half_close(way)
                return
            while data:
                await condition.passing()
                data = await self._send_some(condition, writer, data) if way not in self._ended_ways else b""

    async def _send_some(self, condition: Condition, writer: asyncio.StreamWriter, data: bytes) -> bytes:
        """Send as much as may go now, and return the rest."""
        size = len(data)
        if condition.rate:
            size = min(size, max(1, int(condition.rate * SLICE_SECONDS)))
        torn = condition.left_until_tear is not None and condition.left_until_tear <= size
        if condition.left_until_tear is not None:
            size = min(size, condition.left_until_tear)
            condition.left_until_tear -= size
        if writer.is_closing():
            # The other end is gone; whoever reads from there says how.
            raise ConnectionAbortedError
        writer.write(data[:size])
        await writer.drain()
        if torn:
            condition.left_until_tear = None
            raise _TornError
        if condition.rate:
            await asyncio.sleep(size / condition.rate)
        return data[size:]
