"""Waiting for a condition, on the event loop and off it. Machines may be busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

WAIT_SECONDS = 30.0
"""Time that any step may take on a busy machine: it needs milliseconds, the start of a node 0.2 seconds."""

POLL_SECONDS = 0.01

Result = TypeVar("Result")


def soon() -> asyncio.Timeout:
    """Return the deadline of a block that waits."""
    return asyncio.timeout(WAIT_SECONDS)


async def eventually(true: Callable[[], Result], condition: str, seconds: float = WAIT_SECONDS) -> Result:
    """Return the result of `true` once it is true, while the event loop goes on."""
    deadline = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < deadline, f"{condition}: not within {seconds:g} seconds"
        await asyncio.sleep(POLL_SECONDS)
    return result


def wait_until(true: Callable[[], Result], condition: str, seconds: float = WAIT_SECONDS) -> Result:
    """Return the result of `true` once it is true."""
    deadline = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < deadline, f"{condition}: not within {seconds:g} seconds"
        time.sleep(POLL_SECONDS)
    return result
