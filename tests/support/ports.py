"""Ports for nodes that the tests start."""

from __future__ import annotations

import functools
import itertools
import os
import secrets
from collections.abc import Iterator

FIRST, LAST = 12_000, 32_000
"""Below those that the kernel gives to clients."""


def some_port() -> int:
    """Return a port that no other process of the same test run takes, whether or not anybody listens on it.

    Otherwise a node of one could take the port on which a node of another is down for a while. This process
    gets each once, too, before it gets one again.
    """
    return next(_ports())


@functools.cache
def _ports() -> Iterator[int]:
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = range(FIRST + number, LAST, count)
    return itertools.cycle(secrets.SystemRandom().sample(mine, len(mine)))
