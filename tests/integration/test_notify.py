"""Messages to a service manager, on a socket as sd_notify(3) describes it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsqueue.nodes.systemd import STATUS_SECONDS, Notifier


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
    assert [manager.recv(1000) for _ in range(4)] == [
        b"READY=1\nSTATUS=2 of 2 links up",
        b"WATCHDOG=1\nSTATUS=1 of 2 links up",
        b"RELOADING=1",
        b"STOPPING=1",
    ]


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
