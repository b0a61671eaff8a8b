"""The event loop behind blocking calls: one daemon thread for all clients of a process.

| the process | its thread |
|---|---|
| makes its first call | is started |
| forks | stays in the parent; the first call in the child starts another |
| ends | closes the connections that are left, and ends |

The loop is asyncio's own, which each system has; moving a call between threads costs more than the loop.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")

END_SECONDS = 1.0
"""Time for connections to be closed at the end of the process; they are gone with it anyway."""


class Background:
    """The thread of one process, and its loop.

    Attributes:
        lock: Is held for a moment by a thread that changes a value of all threads.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None

    def started(self) -> tuple[threading.Thread, asyncio.AbstractEventLoop]:
        """Return the thread, which runs now, and its loop."""
        with self.lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="wsqueue", daemon=True)
                self._thread.start()
            thread = self._thread
        self._ready.wait()
        assert self._loop is not None
        return thread, self._loop

    def end(self) -> None:
        """Close all connections that are left, and end the thread."""
        if self._thread is not None and self._loop is not None and self._ending is not None:
            self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join(END_SECONDS)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(self._until_end())

    async def _until_end(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._ending.wait()
        # A link that ends may start tasks, for which the runner would not wait.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others)


_current = Background()
_inherited: list[object] = []


def run(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine on the thread, and return its result.

    Args:
        work: Returns the coroutine, which is cancelled when the caller is interrupted.

    Raises:
        RuntimeError: The caller is on the thread itself, such as a function that renews tokens.
    """
    thread, loop = _current.started()
    if thread is threading.current_thread():
        raise RuntimeError(
            "a blocking call on the thread of the client would wait for itself: call it on another thread"
        )
    future = asyncio.run_coroutine_threadsafe(work(), loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@asynccontextmanager
async def in_time(seconds: float | None, complaint: str) -> AsyncIterator[None]:
    """Raise a TimeoutError with a complaint after some seconds, None for never; to be used on the thread."""
    try:
        async with asyncio.timeout(seconds) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise TimeoutError(f"{complaint} within {seconds:g} s") from None


def call(function: Callable[[], Result]) -> Result:
    """Call a function on the thread, and return its result.

    Raises:
        RuntimeError: As for `run`.
    """

    async def work() -> Result:
        return function()

    return run(work)


def lock() -> threading.Lock:
    """Return the lock of this process."""
    return _current.lock


def keep(inherited: object) -> None:
    """Never collect an object of the parent process: its end would close things that the parent uses."""
    _inherited.append(inherited)


def _after_fork() -> None:
    global _current  # noqa: PLW0603 - the thread is there once in each process
    keep(_current)
    _current = Background()


def _end() -> None:
    _current.end()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_end)
