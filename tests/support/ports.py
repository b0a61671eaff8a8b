"""Ports for nodes that the tests start."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import secrets
import socket
from collections.abc import Iterator

FIRST, LAST = 12_000, 32_000
"""Ports below those that the kernel gives to clients."""


def free_port() -> int:
    """Return a port on which no process listens, and which no other process of the same test run takes.

    A node that is down for a while finds its port free: neither a client's own end nor a node of another test
    process has taken it. This process gets each port once before it gets one again.
    """
    while True:
        port = next(_ports())
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@functools.cache
def _ports() -> Iterator[int]:
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = range(FIRST + number, LAST, count)
    return itertools.cycle(secrets.SystemRandom().sample(mine, len(mine)))


def free_ports(count: int) -> list[int]:
    """Return several such ports."""
    return [free_port() for _ in range(count)]


def answers(port: int) -> bool:
    """Return True if a process listens on a port of this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
