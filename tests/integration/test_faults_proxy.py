"""The proxy of the fault suite does to bytes on loopback as its faults say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ..faults.proxy import Link

pytestmark = pytest.mark.anyio

SECONDS = 10


class Ends:
    """A connection through a link, seen from both ends."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        await self.accepted.put((reader, writer))

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.link.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self.writers.append(writer)
        return reader, writer

    async def connect(
        self,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, asyncio.StreamReader, asyncio.StreamWriter]:
        """Return reader and writer of who connects, and of who listens."""
        near = await self.dial()
        return *near, *await self.accepted.get()


@asynccontextmanager
async def through_a_link() -> AsyncIterator[Ends]:
    async with asyncio.timeout(SECONDS), Link("a>b").running() as link:
        ends = Ends(link)
        server = await asyncio.start_server(ends.accept, "127.0.0.1", 0)
        link.upstream = server.sockets[0].getsockname()
        try:
            yield ends
        finally:
            server.close()
            for writer in ends.writers:
                writer.close()


async def comes(reader: asyncio.StreamReader, data: bytes) -> float:
    """Check the bytes that come, and return the time of the last."""
    assert await reader.readexactly(len(data)) == data
    return time.monotonic()


async def nothing_comes(*readers: asyncio.StreamReader) -> None:
    for reader in readers:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)


async def test_everything_passes_both_ways() -> None:
    async with through_a_link() as ends:
        for _ in range(3):
            near_reader, near_writer, far_reader, far_writer = await ends.connect()
            large = bytes(range(256)) * 4000
            near_writer.write(large)
            far_writer.write(large[::-1])
            await asyncio.gather(comes(far_reader, large), comes(near_reader, large[::-1]))
            near_writer.write_eof()
            assert await far_reader.read() == b""
            far_writer.write(b"after the end of the other direction")
            far_writer.close()
            assert await near_reader.read() == b"after the end of the other direction"


async def test_where_nobody_listens_connections_are_reset() -> None:
    async with through_a_link() as ends:
        ends.link.upstream = None
        reader, _ = await ends.dial()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        ends.link.upstream = ("127.0.0.1", 1)
        reader, _ = await ends.dial()
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_a_cut_holds_up_everything_and_loses_nothing() -> None:
    async with through_a_link() as ends:
        near_reader, near_writer, far_reader, far_writer = await ends.connect()
        for condition in ends.link.conditions.values():
            condition.block()
        near_writer.write(b"up")
        near_writer.write_eof()
        far_writer.write(b"down")
        another, _ = await ends.dial()
        await nothing_comes(near_reader, far_reader, another)
        assert ends.accepted.empty()
        ends.link.heal()
        await comes(near_reader, b"down")
        assert await far_reader.read() == b"up"
        await ends.accepted.get()


async def test_a_cut_of_one_direction_leaves_the_other() -> None:
    async with through_a_link() as ends:
        near_reader, near_writer, far_reader, far_writer = await ends.connect()
        ends.link.conditions["up"].block()
        near_writer.write(b"up")
        far_writer.write(b"down")
        await comes(near_reader, b"down")
        await nothing_comes(far_reader)
        ends.link.heal()
        await comes(far_reader, b"up")


async def test_a_connection_that_was_given_up_during_a_cut_never_arrives() -> None:
    async with through_a_link() as ends:
        ends.link.conditions["down"].block()
        _, writer = await ends.dial()
        writer.write(b"hello")
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.1)
        ends.link.heal()
        await asyncio.sleep(0.1)
        assert ends.accepted.empty()


async def test_a_reset_is_seen_as_one_at_both_ends() -> None:
    async with through_a_link() as ends:
        near_reader, _, far_reader, _ = await ends.connect()
        ends.link.reset()
        for reader in (near_reader, far_reader):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        # And the next connection is a good one.
        _, near_writer, far_reader, _ = await ends.connect()
        near_writer.write(b"again")
        await comes(far_reader, b"again")


@pytest.mark.parametrize("bytes_that_pass", [0, 1, 7, 5000])
async def test_a_tear_lets_exactly_so_many_bytes_pass(bytes_that_pass: int) -> None:
    async with through_a_link() as ends:
        near_reader, near_writer, far_reader, _ = await ends.connect()
        near_writer.write(b"before")
        await comes(far_reader, b"before")
        ends.link.conditions["up"].left_until_tear = bytes_that_pass
        for _ in range(6):
            near_writer.write(b"x" * 1000)
        assert await far_reader.read() == b"x" * bytes_that_pass
        assert await near_reader.read() == b""
        _, near_writer, far_reader, _ = await ends.connect()
        near_writer.write(b"again")
        await comes(far_reader, b"again")


async def test_a_half_close_ends_one_direction() -> None:
    async with through_a_link() as ends:
        near_reader, near_writer, far_reader, far_writer = await ends.connect()
        ends.link.half_close("up")
        assert await far_reader.read() == b""
        near_writer.write(b"into the void")
        far_writer.write(b"down")
        await comes(near_reader, b"down")


async def test_a_delay_makes_late_and_keeps_the_order() -> None:
    async with through_a_link() as ends:
        _, near_writer, far_reader, _ = await ends.connect()
        ends.link.conditions["up"].delay = 1
        began = time.monotonic()
        for number in range(20):
            near_writer.write(bytes([number]))
            await asyncio.sleep(0.005)
        assert await comes(far_reader, bytes(range(20))) - began >= 0.8
        ends.link.heal()
        began = time.monotonic()
        near_writer.write(b"soon")
        assert await comes(far_reader, b"soon") - began < 0.8


async def test_loss_makes_some_late_by_a_retransmission() -> None:
    async with through_a_link() as ends:
        _, near_writer, far_reader, _ = await ends.connect()
        ends.link.conditions["up"].loss = 0.5
        late = set[bool]()
        while late != {False, True}:
            began = time.monotonic()
            near_writer.write(b"x")
            late.add(await comes(far_reader, b"x") - began >= 0.19)


async def test_a_slow_link_is_as_slow_as_it_says() -> None:
    async with through_a_link() as ends:
        near_reader, near_writer, far_reader, far_writer = await ends.connect()
        ends.link.conditions["up"].rate = 20_000
        began = time.monotonic()
        near_writer.write(bytes(10_000))
        far_writer.write(bytes(10_000))
        prompt, slow = await asyncio.gather(
            comes(near_reader, bytes(10_000)), comes(far_reader, bytes(10_000))
        )
        assert slow - began > 0.4
        assert prompt < slow
