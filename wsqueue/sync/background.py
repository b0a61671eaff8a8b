"""The event loop behind blocking calls: one daemon thread for all clients of a process.

| the process | its thread |
|---|---|
| makes its first call | is started |
| forks | stays in the parent; the first call in the child starts another |
| ends | stands still; the system closes the connections that are left |

The loop is asyncio's own, which each system has; moving a call between threads costs more than the loop. It
is never closed: the end of its tasks would be told to threads that wait for them, and to the user.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from inspect import isawaitable
from typing import Any, TypeVar

Result = TypeVar("Result")

END_SECONDS = 1.0
"""Time in which the thread stands still at the end of the process; it ends with the process anyway."""


class ApplicationThread(threading.Thread):
    """Call a function of the application for which clients wait."""


class Background:
    """The thread of one process, and its loop.

    Attributes:
        lock: Is held for a moment by a thread that changes a value of all threads.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._serving: tuple[threading.Thread, asyncio.AbstractEventLoop] | None = None
        self._ended = False

    def started(self) -> tuple[threading.Thread, asyncio.AbstractEventLoop]:
        """Return the thread, which runs now, and its loop.

        Raises:
            RuntimeError: The process ends, or can start no thread. At the end, a daemon thread waits instead,
                and ends with the process.
            OSError: The process can open no files for the loop; a later call tries again.
        """
        if self._ended and not threading.current_thread().daemon:
            raise RuntimeError("the process ends, and its clients are gone: use them before that")
        with self.lock:
            if self._serving is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="wsqueue", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    loop.close()
                    raise
                self._serving = thread, loop
            return self._serving

    def end(self) -> None:
        """Let the thread stand still, so that it does nothing while the interpreter takes itself apart."""
        self._ended = True
        if self._serving is not None:
            _, loop = self._serving
            stands = threading.Event()
            loop.call_soon_threadsafe(_stand_still, stands)
            stands.wait(END_SECONDS)


def _stand_still(stands: threading.Event) -> None:
    stands.set()
    threading.Event().wait()


_current = Background()
_inherited: list[object] = []


def run(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine on the thread, and return its result.

    Args:
        work: Returns the coroutine, which is cancelled when the caller is interrupted.

    Raises:
        RuntimeError: The caller is a function for which clients wait, such as one that renews tokens.
    """
    caller = threading.current_thread()
    thread, loop = _current.started()
    if caller is thread or isinstance(caller, ApplicationThread):
        raise RuntimeError(
            "a blocking call of a function that renews tokens would wait for itself: expected none there"
        )
    future = asyncio.run_coroutine_threadsafe(work(), loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def apart(function: Callable[[], Result | Awaitable[Result]]) -> Callable[[], Awaitable[Result]]:
    """Return a function of the application in a form that the loop can await without being kept from others.

    It is called in a thread of its own, for which the end of the process does not wait. If it returns an
    awaitable, that is awaited on the thread of the loop. Neither can end the loop, as `sys.exit` would.
    """

    async def called() -> Result:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result | Awaitable[Result] | BaseException] = loop.create_future()

        def work() -> None:
            result: Result | Awaitable[Result] | BaseException
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - it is that of whoever waits
                result = error
            loop.call_soon_threadsafe(done.set_result, result)

        ApplicationThread(target=work, name="wsqueue token", daemon=True).start()
        result = await done
        try:
            if isinstance(result, BaseException):
                raise result
            return await result if isawaitable(result) else result
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(repr(error)) from error

    return called


@asynccontextmanager
async def in_time(seconds: float | None, complaint: str, passed: float = 0.0) -> AsyncIterator[None]:
    """Raise a TimeoutError when a call has taken too long; to be used on the thread.

    Args:
        seconds: The time of the call, None for ever.
        complaint: The text of the error, without the time.
        passed: Seconds of the time that have passed.
    """
    try:
        async with asyncio.timeout(None if seconds is None else seconds - passed) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise late(seconds, complaint) from None


def late(seconds: float | None, complaint: str) -> TimeoutError:
    """Return the error of a call that has taken too long, as `in_time` raises it."""
    return TimeoutError(f"{complaint} within {seconds:g} s")


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
