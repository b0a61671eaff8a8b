"""A cluster on loopback, with a process for each node. It needs neither root nor systemd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import msgspec

from ..config.model import Retention
from ..errors import WsqueueError
from .local_engine import start_engine
from .local_node import MAX_LOG_LINE_BYTES, LocalNode


class LocalCluster:
    """Run consumers and producers, to be used in `async with`.

    Args:
        consumers: Number of consumers.
        producers: Number of producers.
        port: Port of the first consumer; the other nodes use the next ones. With 0, the system chooses.
        directory: Directory of the configuration files and the key; None for a temporary directory.
        show: Called with the name of a node and a line that it logged.
        retention: Retention of the consumers; each gets a directory of its own.
        nats_server: The program nats-server, which is started to keep one log for all consumers; without it,
            each consumer has its own.

    Raises:
        WsqueueError: The directory cannot be written, or a node does not start.
    """

    def __init__(
        self,
        consumers: int,
        producers: int,
        port: int,
        directory: Path | None,
        show: Callable[[str, str], None],
        *,
        retention: Retention | None = None,
        nats_server: Path | None = None,
    ) -> None:
        self._retention = retention or Retention()
        self._consumers, self._producers, self._port, self._show = consumers, producers, port, show
        self._nodes: list[LocalNode] = []
        self._resources = contextlib.ExitStack()
        if directory is None:
            directory = Path(self._resources.enter_context(TemporaryDirectory(prefix="wsqueue-local-")))
        self._directory = directory
        self._nats_server = nats_server
        self._engine: LocalNode | None = None

    @property
    def config_file(self) -> Path:
        """Return the configuration for clients: `wsqueue demo --config FILE TOPIC`."""
        return self._directory / "demo.toml"

    @property
    def status_page(self) -> str:
        """Return the address of the status page of the last node, a producer."""
        return f"http://{self._nodes[-1].address}/"

    @property
    def pids(self) -> dict[str, int]:
        """Return the ids of the nodes' processes by the names of the nodes."""
        return {node.name: node.pid for node in self._processes}

    @property
    def _processes(self) -> list[LocalNode]:
        """Return all nodes, and the NATS server if there is one."""
        return self._nodes if self._engine is None else [*self._nodes, self._engine]

    async def wait(self) -> None:
        """Wait until a node ends, which is an error.

        Raises:
            WsqueueError: A node has ended.
        """
        processes = self._processes
        await asyncio.wait([node.ended for node in processes], return_when=asyncio.FIRST_COMPLETED)
        node = next(node for node in processes if node.ended.done())
        raise WsqueueError(f"{node.name} ended: {node.outcome()}")

    async def __aenter__(self) -> Self:
        try:
            self._write_psk()
            retention = msgspec.structs.asdict(self._retention)
            # Without `topics = []`, tables [[retention.topics]] can be added to the files.
            settings = {
                f"retention.{key}": value for key, value in retention.items() if value not in (None, ())
            }
            if self._nats_server is not None:
                self._engine = await start_engine(self._nats_server, self._directory / "engine", self._show)
                settings |= {
                    "retention.mode": "jetstream",
                    "retention.jetstream.servers": [f"nats://{self._engine.address}"],
                    "retention.jetstream.replicas": 1,
                }
            consumers = await self._start("consumer", self._consumers, **settings)
            producers = await self._start(
                "producer", self._producers, consumers=_paths(consumers, "/producer")
            )
            self._write(
                self.config_file,
                role="demo",
                producers=_paths(producers, "/produce"),
                consumers=_paths(consumers, "/subscribe"),
            )
            self._tell_of_each_other(consumers, producers)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._stop()

    async def _start(self, role: str, count: int, **settings: object) -> list[str]:
        """Start all nodes of a role, and return their addresses once they listen."""
        nodes = [await self._spawn(role, index, settings) for index in range(count)]
        for node in nodes:
            await node.started()
        return [node.address for node in nodes]

    async def _spawn(self, role: str, index: int, settings: dict[str, object]) -> LocalNode:
        port = self._port and self._port + len(self._nodes)
        file = self._directory / f"{role}-{index + 1}.toml"
        if role == "consumer":
            settings = {**settings, "retention.directory": f"{file.stem}.logs"}
        self._write(file, role=role, listen=[f"127.0.0.1:{port}"], **settings)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "wsqueue", role, str(file)),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LOG_LINE_BYTES,
            # Ctrl-C must only reach this process, which then ends the nodes in the right order.
            start_new_session=True,
        )
        node = LocalNode(file.stem, process, self._show)
        self._nodes.append(node)
        return node

    def _tell_of_each_other(self, consumers: list[str], producers: list[str]) -> None:
        """Configure which nodes the status pages ask: their ports are known only after they have started."""
        for node in self._nodes:
            with (self._directory / f"{node.name}.toml").open("a") as file:
                file.write(_toml({"monitoring.consumers": consumers, "monitoring.producers": producers}))
            node.signal(signal.SIGHUP)

    async def _stop(self) -> None:
        """End the producers, which send all they hold to the consumers, and then the consumers."""
        try:
            for role in ("producer", "consumer"):
                await asyncio.gather(*(node.stop() for node in self._nodes if node.name.startswith(role)))
        finally:
            # This also happens if the user interrupts the waiting.
            for node in self._nodes:
                node.kill()
            await asyncio.gather(*(node.ended for node in self._nodes))
            if self._engine is not None:
                await self._engine.stop()
            self._resources.close()

    def _write_psk(self) -> None:
        file = self._directory / "psk"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(32))
        except OSError as error:
            raise WsqueueError(f"cannot write {file}: {error.strerror}") from None

    def _write(self, file: Path, **settings: object) -> None:
        settings = {"local": True, "psk_file": "psk", **settings}
        file.write_text(_toml(settings))


def _toml(settings: dict[str, object]) -> str:
    # These values have the same syntax in TOML and JSON; a dotted key is in a table.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


def _paths(addresses: Sequence[str], endpoint: str) -> list[str]:
    return [address + endpoint for address in addresses]
