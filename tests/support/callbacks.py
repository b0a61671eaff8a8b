"""The longest callback of an event loop, in CPU time, so that other work of the machine doesn't count."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from unittest import mock


class Longest:
    """Note the longest callback.

    Attributes:
        seconds: CPU time of the longest callback so far.
        name: What it was.
    """

    def __init__(self) -> None:
        self.seconds, self.name = 0.0, ""


@contextlib.contextmanager
def longest_callback() -> Iterator[Longest]:
    """Measure all callbacks of asyncio's own loop meanwhile."""
    longest, run = Longest(), asyncio.Handle._run

    def measured(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        if (seconds := time.thread_time() - began) > longest.seconds:
            longest.seconds, longest.name = seconds, repr(handle)

    with mock.patch.object(asyncio.Handle, "_run", measured):
        yield longest
