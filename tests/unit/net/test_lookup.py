"""Names are looked up in threads of their own, one for each place."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from wsqueue.net.lookup import AddressInfo, look_up

from ...support.waiting import soon

pytestmark = pytest.mark.anyio

ANSWER: list[AddressInfo] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 80))]
UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class Resolver:
    """A resolver that takes its time.

    Attributes:
        asked: The names that it was asked for.
        answers: Set when it answers.
        problem: Raised instead of an answer.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.problem: Exception | None = None

    def getaddrinfo(self, host: str, _port: int, *, flags: int = 0, **_options: Any) -> list[AddressInfo]:
        if flags:
            raise UNKNOWN
        self.asked.append(host)
        self.answers.wait()
        if self.problem is not None:
            raise self.problem
        return ANSWER


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    return resolver


async def asking(host: str = "a.example") -> asyncio.Task[Sequence[AddressInfo]]:
    task = asyncio.create_task(look_up(host, 80))
    await asyncio.sleep(0)
    return task


async def test_all_who_ask_for_a_place_wait_for_one_answer(resolver: Resolver) -> None:
    gives_up, *stay = [await asking() for _ in range(3)]
    gives_up.cancel()
    stay.append(await asking())
    other = await asking("b.example")
    resolver.answers.set()
    async with soon():
        assert await asyncio.gather(*stay, other) == [ANSWER] * 4
    assert gives_up.cancelled()
    assert sorted(resolver.asked) == ["a.example", "b.example"]
    # The answer is not kept.
    async with soon():
        assert await look_up("a.example", 80) == ANSWER
    assert len(resolver.asked) == 3


async def test_all_get_the_error(resolver: Resolver) -> None:
    resolver.problem = UNKNOWN
    tasks = [await asking() for _ in range(2)]
    resolver.answers.set()
    async with soon():
        assert await asyncio.gather(*tasks, return_exceptions=True) == [UNKNOWN] * 2


async def test_an_address_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", None)
    assert [place[:2] for *_, place in await look_up("::1", 80)] == [("::1", 80)]
    assert [place for *_, place in await look_up("192.0.2.7", 80)] == [("192.0.2.7", 80)]


def test_a_loop_that_ends_waits_for_no_answer(resolver: Resolver) -> None:
    async def give_up() -> None:
        await asking()

    asyncio.run(give_up())
    resolver.answers.set()
    # The next loop asks anew.
    asyncio.run(look_up("a.example", 80))
    assert resolver.asked == ["a.example"] * 2
