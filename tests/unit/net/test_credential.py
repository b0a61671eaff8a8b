"""The token that an application brings, and those who wait for it."""

from __future__ import annotations

import asyncio

import pytest

from wsqueue.net.credential import Credential, RenewError

pytestmark = pytest.mark.anyio


async def test_an_error_is_told_to_those_who_still_wait() -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    credential = Credential(None, lambda: answer)
    gone, waiting = [asyncio.create_task(credential.current()) for _ in range(2)]
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    answer.set_exception(OSError("nobody answers"))
    with pytest.raises(RenewError, match="nobody answers"):
        await waiting
    assert gone.cancelled()


async def test_an_error_is_not_logged_when_nobody_waits_any_more() -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    credential = Credential(None, lambda: answer)
    gone = asyncio.create_task(credential.current())
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    # The loop's handler of exceptions would fail this test.
    answer.set_exception(OSError("nobody answers"))
    for _ in range(5):
        await asyncio.sleep(0)
    answer = asyncio.get_running_loop().create_future()
    asked_again = asyncio.create_task(credential.current())
    await asyncio.sleep(0)
    answer.set_exception(OSError("still nobody"))
    with pytest.raises(RenewError, match="still nobody"):
        await asked_again
