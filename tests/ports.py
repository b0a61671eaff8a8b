"""Ports for nodes that the tests start."""

from __future__ import annotations

import os
import secrets

FIRST, LAST = 12_000, 32_000
"""Below those that the kernel gives to clients."""


def some_port() -> int:
    """Return a port that no other process of the same test run takes, whether or not anybody listens on it.

    Otherwise a node of one could take the port on which a node of another is down for a while.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return FIRST + number + count * secrets.randbelow((LAST - FIRST) // count)
