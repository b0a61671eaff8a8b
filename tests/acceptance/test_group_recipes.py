"""The programs of docs/groups.md: a work queue with retries, dead letters again, services that read all."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import wsqueue

from ..support.documents import code_blocks
from ..support.paths import ROOT
from ..support.processes import Cluster, clean_environment

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

BLOCKS = code_blocks(ROOT / "docs" / "groups.md", "python")


def recipe(part: str) -> str:
    """Return the one code block that has a part."""
    (block,) = (block for block in BLOCKS if part in block)
    return block


@contextlib.asynccontextmanager
async def program(cluster: Cluster, part: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a block as a program where it expects its cluster, and end it."""
    directory = Path(cluster.directory) / "home"
    if not directory.exists():
        directory.mkdir()
        (directory / "cluster").symlink_to(cluster.directory)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-c", recipe(part), *arguments),
        cwd=directory,
        env=clean_environment(PYTHONPATH=os.fspath(ROOT)),
        stdout=subprocess.PIPE,
    )
    try:
        yield process
        assert process.returncode is None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def lines_of(process: asyncio.subprocess.Process, count: int) -> list[str]:
    """Return the next lines that a program prints."""
    assert process.stdout is not None
    return [(await process.stdout.readline()).decode().strip() for _ in range(count)]


async def until_killed(snippet: str, client: wsqueue.Client) -> None:
    """Run a snippet that has a client."""
    body = f"async def snippet(client):\n{textwrap.indent(snippet, '    ')}"
    names: dict[str, object] = {}
    exec(compile(ast.parse(body), "groups.md", "exec"), names)  # noqa: S102 - it is ours
    await names["snippet"](client)  # type: ignore[operator]


async def test_a_work_queue_and_its_dead_letters_again(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.start, 2, 1)
    async with asyncio.timeout(60), cluster.client() as client:
        await client.publish("jobs", "one", "nonsense", headers={"trace": "t"})
        async with program(cluster, "it makes no sense") as worker:
            assert await lines_of(worker, 1) == ["billed one"]
            async with client.subscribe("jobs!billing!dead", start="earliest") as letters:
                letter = await anext(letters)
            assert (letter.data, letter.headers["dead-reason"]) == ("nonsense", "it makes no sense")
            await client.publish("jobs", "two")
            assert await lines_of(worker, 1) == ["billed two"]
        # The worker is gone. The letters go back to the topic, where another one gets them.
        async with client.subscribe("jobs") as jobs:
            replay = asyncio.create_task(until_killed(recipe("dead-topic"), client))
            again = await anext(jobs)
            assert (again.data, again.headers) == ("nonsense", {"trace": "t"})
            replay.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await replay


async def test_services_that_read_all(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.start, 2, 1)
    async with asyncio.timeout(60), cluster.client() as client:
        await client.publish("orders", "A1")
        async with program(cluster, "SERVICES", "billing") as billing:
            assert await lines_of(billing, 1) == ["write the invoice for A1"]
            async with program(cluster, "SERVICES", "shipping") as shipping:
                assert await lines_of(shipping, 1) == ["pack A1"]
                await client.publish("orders", "B2")
                assert await lines_of(billing, 1) == ["write the invoice for B2"]
                assert await lines_of(shipping, 1) == ["pack B2"]
            # One that was away goes on where it was; the last one may come again, as it was killed.
            await client.publish("orders", "C3")
        async with program(cluster, "SERVICES", "shipping") as shipping:
            found = await lines_of(shipping, 1)
            if found == ["pack B2"]:
                found = await lines_of(shipping, 1)
            assert found == ["pack C3"]


async def test_a_named_reader(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    await asyncio.to_thread(cluster.start, 1, 1)
    async with asyncio.timeout(60), cluster.client() as client:
        await client.publish("orders", "A1", "B2")
        for expected in (["billed A1", "billed B2"], ["billed C3"]):
            reading = asyncio.create_task(until_killed(recipe('reader="billing"'), client))
            printed: list[str] = []
            while len(printed) < len(expected):
                await asyncio.sleep(0.05)
                printed += capsys.readouterr().out.splitlines()
            # The last one is done a moment after it is printed.
            await asyncio.sleep(0.5)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            assert printed == expected
            await client.publish("orders", "C3")
