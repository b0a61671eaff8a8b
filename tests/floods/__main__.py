"""Measure floods: `python -m tests.floods --help`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from http import HTTPStatus
from pathlib import Path

import click
import uvloop

import wsqueue

from ..support.keys import psk_of
from ..support.ports import free_port
from ..support.raw_peer import http_get
from ..support.raw_v2_peer import V2Socket
from ..support.toml import write_toml
from .attacks import ATTACKS, attack

KEY = psk_of("everybody")
PUBLISH_SECONDS = 0.01
NEWCOMER_SECONDS = 0.25
HERE = Path(__file__).parent.parent.parent
TICK = os.sysconf("SC_CLK_TCK")


class Node:
    """Run a node of a checkout.

    Args:
        tree: The checkout.
        file: Its configuration.
        role: Its role.
        settings: Other settings.
    """

    def __init__(self, tree: Path, file: Path, role: str, **settings: object) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        write_toml(file, {"role": role, "listen": [self.address], "psk_file": "psk", **settings}, {})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "wsqueue", role, str(file)],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stderr=file.with_suffix(".log").open("wb"),
        )

    async def ready(self) -> None:
        """Wait until the node is ready.

        Raises:
            TimeoutError: It is not.
        """
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    if (await http_get(self.address, "/readyz"))[0] == HTTPStatus.OK:
                        return
                await asyncio.sleep(0.1)

    def cpu_seconds(self) -> float:
        """Return the CPU time of the node so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def peak_mib(self) -> float:
        """Return the most memory that the node had."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) / 1024

    async def lag_seconds(self) -> float:
        """Return the longest time for which the loop was late, from the node's report."""
        for _ in range(20):
            with contextlib.suppress(OSError, ValueError, IndexError, TimeoutError):
                async with asyncio.timeout(1):
                    _, body = await http_get(self.address, "/status.json")
                    return float(json.loads(body)["loop_lag_seconds"])
            await asyncio.sleep(0.1)
        return float("nan")

    def end(self) -> None:
        """End the node."""
        self._process.kill()
        self._process.wait()


class Bystander:
    """Publish and subscribe as a client that does no harm, and measure how long that takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.newcomers: list[float] = []
        self.refused = 0

    async def publish(self, client: wsqueue.Client) -> None:
        """Publish for ever, and wait for each confirmation and delivery."""
        received: asyncio.Queue[str | bytes] = asyncio.Queue()

        async def subscribe() -> None:
            async with client.subscribe("bystander") as messages:
                ready.set()
                async for message in messages:
                    received.put_nowait(message.data)

        ready = asyncio.Event()
        task = asyncio.create_task(subscribe())
        try:
            await ready.wait()
            number = 0
            while True:
                number += 1
                began = time.monotonic()
                await client.publish("bystander", str(number))
                while await received.get() != str(number):
                    pass
                self.seconds.append(time.monotonic() - began)
                await asyncio.sleep(PUBLISH_SECONDS)
        finally:
            task.cancel()

    async def come(self, address: str, path: str) -> None:
        """Connect for ever as new clients, each of which tries again until it is in."""
        while True:
            began = time.monotonic()
            while True:
                try:
                    async with asyncio.timeout(3), V2Socket.speaking(address, path, KEY):
                        break
                except (OSError, EOFError, TimeoutError, AssertionError):
                    self.refused += 1
                    await asyncio.sleep(0.1)
            self.newcomers.append(time.monotonic() - began)
            await asyncio.sleep(NEWCOMER_SECONDS)


async def measure(tree: Path, name: str, seconds: float) -> str:
    """Return one row of the table."""
    role = ATTACKS[name][0]
    with tempfile.TemporaryDirectory(prefix="wsqueue-floods-") as place:
        directory = Path(place)
        (directory / "psk").write_text(KEY)
        (directory / "psk").chmod(0o600)
        consumer = Node(tree, directory / "consumer.toml", "consumer")
        producer = Node(
            tree, directory / "producer.toml", "producer", consumers=[f"{consumer.address}/producer"]
        )
        node = producer if role == "producer" else consumer
        path = "/produce" if role == "producer" else "/subscribe"
        bystander = Bystander()
        context = multiprocessing.get_context("spawn")
        begun = context.Event()
        process = context.Process(target=attack, args=(name, node.address, KEY, seconds, begun), daemon=True)
        tasks: list[asyncio.Task[None]] = []
        try:
            await consumer.ready()
            await producer.ready()
            async with (
                asyncio.timeout(seconds + 120),
                wsqueue.connect(
                    psk=KEY,
                    producers=[f"{producer.address}/produce"],
                    consumers=[f"{consumer.address}/subscribe"],
                ) as client,
            ):
                await client.publish("bystander", "first")
                tasks = [
                    asyncio.create_task(bystander.publish(client)),
                    asyncio.create_task(bystander.come(node.address, path)),
                ]
                process.start()
                await asyncio.to_thread(begun.wait)
                bystander.seconds.clear()
                bystander.newcomers.clear()
                began, cpu = time.monotonic(), node.cpu_seconds()
                await asyncio.sleep(seconds)
                took, cpu = time.monotonic() - began, node.cpu_seconds() - cpu
                lag = await node.lag_seconds()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            return row(name, bystander, cpu / took, lag, node.peak_mib())
        finally:
            if process.pid is not None:
                process.kill()
            for one in (producer, consumer):
                one.end()


def row(name: str, bystander: Bystander, cpu: float, lag: float, mib: float) -> str:
    """Return one row of the table, in milliseconds unless it says otherwise."""
    # Nothing came through where there is no number.
    times = sorted(bystander.seconds) or [float("nan")]
    p50, p99, last = statistics.median(times), times[int(len(times) * 0.99)], times[-1]
    slowest = max(bystander.newcomers, default=float("nan"))
    return (
        f"| {name} | {len(bystander.seconds)} | {p50 * 1e3:.1f} | {p99 * 1e3:.1f} | {last * 1e3:.0f} "
        f"| {len(bystander.newcomers)} | {bystander.refused} | {slowest * 1e3:.0f} "
        f"| {cpu:.0%} | {lag * 1e3:.0f} | {mib:.0f} |"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("names", nargs=-1, metavar="[FLOOD]...")
@click.option("--seconds", type=click.FloatRange(1, 600), default=10.0, help="How long each flood lasts.")
@click.option(
    "--tree",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=HERE,
    help="The checkout whose nodes are flooded, to compare versions.",
)
def main(names: tuple[str, ...], seconds: float, tree: Path) -> None:
    """Flood nodes on loopback, and print how others fare: a table with a row for each flood.

    A bystander publishes and receives a message every 10 ms; newcomers connect again until they are in.
    """
    if unknown := set(names).difference(ATTACKS):
        raise click.ClickException(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(ATTACKS)}")
    click.echo(
        "| flood | messages | p50 ms | p99 ms | max ms | newcomers | refused | slowest ms | CPU | lag ms"
        " | MiB |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for name in names or ATTACKS:
        click.echo(uvloop.run(measure(tree, name, seconds)))


if __name__ == "__main__":
    main()
