"""Timers that begin anew when the process stood still, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from unittest import mock

import pytest

from wsqueue.net import timers
from wsqueue.net.timers import Timer, deadline

pytestmark = pytest.mark.anyio

FROZEN_SECONDS = 15.0


class Clock:
    """The clock of the loop, which can jump as it does for a process that was frozen."""

    def __init__(self) -> None:
        self.ahead = 0.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock, time = Clock(), asyncio.BaseEventLoop.time
    with mock.patch.object(asyncio.BaseEventLoop, "time", lambda loop: time(loop) + clock.ahead):
        yield clock


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_timer_fires_once(clock: Clock) -> None:
    fired = mock.Mock()
    Timer(0.5, fired)
    await turns()
    fired.assert_not_called()
    clock.ahead += 0.5
    await turns()
    clock.ahead += 0.5
    await turns()
    fired.assert_called_once_with()


async def test_a_timer_that_is_late_begins_anew(clock: Clock) -> None:
    fired, late = mock.Mock(), mock.Mock()
    Timer(0.5, fired)
    Timer(0.5, fired, late)
    for _ in range(3):
        clock.ahead += FROZEN_SECONDS
        await turns()
    fired.assert_not_called()
    late.assert_called_once_with()
    clock.ahead += 0.5
    await turns()
    fired.assert_called_once_with()


async def test_a_cancelled_timer_does_nothing(clock: Clock) -> None:
    fired = mock.Mock()
    Timer(0.5, fired, fired).cancel()
    for seconds in (0.5, FROZEN_SECONDS):
        clock.ahead += seconds
        await turns()
    fired.assert_not_called()


async def test_a_deadline(clock: Clock) -> None:
    async def wait(seconds: float | None) -> None:
        async with deadline(seconds):
            await asyncio.Event().wait()

    waiting, endless = asyncio.create_task(wait(0.5)), asyncio.create_task(wait(None))
    await turns()
    clock.ahead += FROZEN_SECONDS
    await turns()
    assert not waiting.done()
    clock.ahead += 0.5
    await turns()
    with pytest.raises(TimeoutError):
        await waiting
    assert not endless.done()
    endless.cancel()
    async with deadline(0.5):
        pass
    clock.ahead += timers.LATE_SECONDS
    await turns()
