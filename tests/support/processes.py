"""Nodes as real processes: started from generated files, watched through their logs, always ended."""

from __future__ import annotations

import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import wsqueue
from wsqueue.config.model import Limits

from .ports import free_port
from .toml import write_toml
from .waiting import WAIT_SECONDS, wait_until

STOP_SECONDS = 20.0
"""How long a node may take to end: `drain_seconds` and a margin."""

ASK_SECONDS = 0.1
"""Between two questions for the counters: a node logs at most 20 lines of an event in a second."""

STARTED = re.compile(r"\bstarted role=\w+ version=\S+ listen=(\S+)$", re.MULTILINE)
COUNTERS = re.compile(r"\bcounters (.+)$", re.MULTILINE)

READ_BY_WSQUEUE = ("WSQUEUE_CONFIG", "WSQUEUE_PSK", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM")


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without the variables that wsqueue reads, and with those of the test."""
    return {key: value for key, value in os.environ.items() if key not in READ_BY_WSQUEUE} | more


def command(*arguments: str | Path) -> list[str]:
    """Return the command line of `wsqueue ARGUMENTS...` in this Python."""
    return [sys.executable, "-m", "wsqueue", *map(str, arguments)]


def allow_open_files(needed: int) -> None:
    """Let this process, and those that it starts, open as many files as it may; skip if too few."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} open files in a process, and {hard} are allowed")
    wanted = needed if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def memory_bytes(pid: int, field: str) -> int:
    """Return a size from the status of a process, as proc(5) names it."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


class Node:
    """Run one node, again and again if need be, always on the same port.

    Attributes:
        address: `127.0.0.1:port`.
        file: Its configuration.
        log_file: Standard error of all its runs.
    """

    def __init__(self, directory: Path, name: str, **settings: object) -> None:
        self.name, self.role = name, str(settings["role"])
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.file, self.log_file = directory / f"{name}.toml", directory / f"{name}.log"
        self.limits: dict[str, object] = {}
        self.settings: dict[str, object] = {"listen": [self.address], "psk_file": "psk", **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self._run_begins = 0
        self._asked = 0.0

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """Return the log of the present run so far."""
        with self.log_file.open("rb") as stream:
            stream.seek(self._run_begins)
            return stream.read().decode()

    def write(self) -> None:
        """Write the configuration as `settings` and `limits` have it."""
        write_toml(self.file, self.settings, self.limits)

    def start(self) -> None:
        """Start the process, and return once it listens."""
        self.launch()
        self.wait_started()

    def launch(self, **environment: str) -> None:
        """Start the process."""
        self.write()
        with self.log_file.open("ab") as log:
            self._run_begins = log.tell()
            self.process = subprocess.Popen(
                command(self.role, self.file),
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=clean_environment(**environment),
            )

    def wait_started(self) -> None:
        """Return once the node listens."""

        def started() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log}"
            return STARTED.search(self.log) is not None

        wait_until(started, f"{self.name} starts")

    def wait_logged(self, pattern: str, count: int = 1, seconds: float = WAIT_SECONDS) -> None:
        """Return once as many lines of the present run match."""
        wait_until(
            lambda: len(re.findall(pattern, self.log, re.MULTILINE)) >= count,
            f"{self.name} logs {pattern!r}",
            seconds,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """End the process as systemd does, and check that it ended well."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.log

    def wait(self) -> int:
        """Return the exit status, negative for a signal."""
        assert self.process is not None
        return self.process.wait(STOP_SECONDS)

    def counters(self) -> Counter[str]:
        """Ask the node for its counters, not so often that it would leave lines out of its log."""
        time.sleep(max(0, self._asked + ASK_SECONDS - time.monotonic()))
        self._asked = time.monotonic()
        before = len(COUNTERS.findall(self.log))
        self.signal(signal.SIGUSR1)
        self.wait_logged(COUNTERS.pattern, before + 1)
        return self.logged_counters()

    def wait_open(self, count: int) -> None:
        """Return once the node has as many connections."""
        try:
            wait_until(lambda: self.counters()["open"] == count, f"{self.name} has {count} connections")
        except AssertionError as error:
            error.add_note(self.log)
            raise

    def logged_counters(self) -> Counter[str]:
        """Return the counters that the present run logged last: at its end, or when asked."""
        pairs = (pair.split("=") for pair in COUNTERS.findall(self.log)[-1].split())
        return Counter({name: int(count) for name, count in pairs})

    def resident_bytes(self) -> int:
        """Return VmRSS of the process."""
        return memory_bytes(self.pid, "VmRSS")


class Cluster:
    """Make nodes in a directory, with one pre-shared key, and end them all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secret = secrets.token_urlsafe(24)
        self.consumers: list[Node] = []
        self.producers: list[Node] = []
        self.psk_file = directory / "psk"
        self.write_psk()

    def write_psk(self) -> None:
        """Write the key, for the owner only."""
        self.psk_file.touch(mode=0o600)
        self.psk_file.write_text(self.secret + "\n")

    @property
    def nodes(self) -> list[Node]:
        """Return the nodes in the order in which they should end."""
        return [*self.producers, *self.consumers]

    @property
    def demo_file(self) -> Path:
        """Return the configuration of clients."""
        return self.directory / "demo.toml"

    def add_consumer(self, **settings: object) -> Node:
        """Return another consumer, which is not started."""
        name = f"consumer-{len(self.consumers) + 1}"
        node = Node(self.directory, name, role="consumer", **settings)
        self.consumers.append(node)
        return node

    def add_producer(self, **settings: object) -> Node:
        """Return another producer, which is not started, for the consumers that there are."""
        name = f"producer-{len(self.producers) + 1}"
        links = [f"{consumer.address}/producer" for consumer in self.consumers]
        node = Node(self.directory, name, role="producer", consumers=links, **settings)
        self.producers.append(node)
        return node

    def start(
        self,
        consumers: int,
        producers: int,
        *,
        retention: Mapping[str, object] | None = None,
        **limits: object,
    ) -> None:
        """Start nodes, write the clients' configuration, and return once all links are up.

        Args:
            consumers: How many.
            producers: How many.
            retention: Of the consumers; with a mode, each has a directory too.
            limits: Of all.
        """
        for number in range(consumers):
            settings = {f"retention.{key}": value for key, value in (retention or {}).items()}
            if "retention.mode" in settings:
                settings["retention.directory"] = f"logs-{number + 1}"
            self.add_consumer(**settings)
        for _ in range(producers):
            self.add_producer()
        for node in self.nodes:
            node.limits = limits
        for node in reversed(self.nodes):
            node.launch()
        for node in self.nodes:
            node.wait_started()
        for node in self.producers:
            node.wait_logged(r"link up", consumers)
        self.write_demo(limits)

    def write_demo(self, limits: Mapping[str, object] | None = None) -> None:
        """Write the configuration of clients."""
        settings = {
            "role": "demo",
            "producers": [f"{node.address}/produce" for node in self.producers],
            "consumers": [f"{node.address}/subscribe" for node in self.consumers],
            "psk_file": "psk",
        }
        write_toml(self.demo_file, settings, limits)

    def client(self, *producers: Node, consumers: Sequence[str] = (), **limits: Any) -> wsqueue.Client:
        """Return a client of these producers and consumers, or of all."""
        return wsqueue.connect(
            producers=[f"{node.address}/produce" for node in producers or self.producers],
            consumers=consumers or [f"{node.address}/subscribe" for node in self.consumers],
            psk=self.secret,
            limits=Limits(**limits),
        )

    def stop(self) -> None:
        """End every process by its id, and check that no node met a defect of its own."""
        for node in self.nodes:
            process = node.process
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    raise
        for node in self.nodes:
            text = node.log_file.read_text() if node.log_file.exists() else ""
            assert "internal error" not in text, text
            assert "Traceback" not in text, text
            assert self.secret not in text
