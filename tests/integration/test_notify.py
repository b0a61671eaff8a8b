"""Messages to a service manager, on a socket as sd_notify(3) describes it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsqueue.nodes import service
from wsqueue.nodes.consumer import Consumer
from wsqueue.nodes.systemd import STATUS_SECONDS, Notifier

from ..support.nodes import Log, Nodes
from ..support.waiting import soon


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    name = f"@wsqueue-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0"))
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def test_what_the_manager_hears(manager: socket.socket) -> None:
    notifier = Notifier()
    notifier.ready("2 of 2 links up")
    notifier.alive("1 of 2 links up")
    notifier.reloading()
    notifier.stopping()
    notifier.extend("stopping for 10 seconds")
    assert [manager.recv(1000) for _ in range(5)] == [
        b"READY=1\nSTATUS=2 of 2 links up",
        b"WATCHDOG=1\nSTATUS=1 of 2 links up",
        b"RELOADING=1",
        b"STOPPING=1",
        b"EXTEND_TIMEOUT_USEC=30000000\nSTATUS=stopping for 10 seconds",
    ]


@pytest.mark.anyio
async def test_a_long_start_and_a_long_stop_get_the_time_that_they_take(
    manager: socket.socket, nodes: Nodes, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "EXTEND_SECONDS", 0.005)
    go_on = asyncio.Event()

    class Slow(Consumer):
        async def start(self) -> None:
            await go_on.wait()
            await super().start()

        async def stop(self) -> None:
            await go_on.wait()
            await super().stop()

    def heard() -> bytes:
        return manager.recv(1000).partition(b" for ")[0]

    node = nodes.made(Slow)
    running = asyncio.create_task(node.service.run())
    async with soon():
        for doing, told in (("starting", b"READY=1"), ("stopping", b"")):
            asked = f"EXTEND_TIMEOUT_USEC=30000000\nSTATUS={doing}".encode()
            assert [await asyncio.to_thread(heard) for _ in range(3)] == [asked] * 3
            go_on.set()
            if told:
                while not (await asyncio.to_thread(heard)).startswith(told):
                    pass
                go_on.clear()
                node.service.stop()
                while await asyncio.to_thread(heard) != b"STOPPING=1":
                    pass
        await running
    assert log.lines("more time needed doing=starting seconds=")
    assert log.lines("more time needed doing=stopping seconds=")


def test_no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("fine")


def test_a_manager_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Notifier().alive("fine")


def test_a_manager_that_does_not_listen_never_blocks(manager: socket.socket) -> None:
    for _ in range(10_000):
        Notifier().alive("fine")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, STATUS_SECONDS),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, STATUS_SECONDS),
        ({"WATCHDOG_USEC": "3600000000"}, STATUS_SECONDS),
        ({"WATCHDOG_USEC": "soon"}, STATUS_SECONDS),
    ],
)
def test_twice_as_often_as_the_watchdog_demands(
    environment: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Notifier().interval_seconds == seconds
