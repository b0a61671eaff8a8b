"""Timers that know when the process stood still.

A host or a unit can be frozen for seconds: a virtual machine that moves, a snapshot, SIGSTOP. The clock goes
on meanwhile, and nothing that was waited for had a chance to come. A timer that fires so late begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

LATE_SECONDS = 1.0
"""Lateness from which on a timer begins anew: no turn of the loop takes that long."""


class Timer:
    """Call back once, after a time in which the process was not frozen.

    Args:
        seconds: The time.
        callback: Called at its end.
        late: Called instead when the process stood still; by default the time begins anew.
    """

    __slots__ = ("_callback", "_handle", "_late", "_loop", "_seconds")

    def __init__(
        self, seconds: float, callback: Callable[[], None], late: Callable[[], None] | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds, self._callback, self._late = seconds, callback, late or self._begin
        self._begin()

    def cancel(self) -> None:
        """Don't call back, and keep nothing alive that would have been called."""
        self._handle.cancel()
        self._callback = self._late = _nothing

    def _begin(self) -> None:
        due = self._loop.time() + self._seconds
        self._handle = self._loop.call_at(due, self._fire, due)

    def _fire(self, due: float) -> None:
        (self._late if self._loop.time() - due > LATE_SECONDS else self._callback)()


def _nothing() -> None:
    pass


@contextlib.asynccontextmanager
async def deadline(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """Raise a TimeoutError after some seconds, as `asyncio.timeout` does, that this process was not frozen.

    Args:
        seconds: The time, None for ever.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as timeout:
        if seconds is None:
            yield timeout
            return
        timer = Timer(max(0.0, seconds), lambda: timeout.reschedule(loop.time()))
        try:
            yield timeout
        finally:
            timer.cancel()
