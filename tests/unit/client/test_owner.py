"""Who may use a client: the event loop that used it first, in the process that it was used in."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import wsqueue

Use = Callable[[wsqueue.Client, "wsqueue.Subscription[Any]"], Any]

USES: dict[str, Use] = {
    "publish": lambda client, _messages: client.publish("news", "1"),
    "publish_nowait": lambda client, _messages: client.publish_nowait("news", "1"),
    "drain": lambda client, _messages: client.drain(),
    "flush": lambda client, _messages: client.flush(),
    "close": lambda client, _messages: client.close(),
    "enter": lambda client, _messages: client.__aenter__(),
    "exit": lambda client, _messages: client.__aexit__(None),
    "subscribe": lambda client, _messages: client.subscribe("news"),
    "iterate": lambda _client, messages: anext(messages),
    "enter a subscription": lambda _client, messages: messages.__aenter__(),
    "exit a subscription": lambda _client, messages: messages.__aexit__(),
    "close a subscription": lambda _client, messages: messages.close(),
}

every_use = pytest.mark.parametrize("use", USES.values(), ids=USES)


def make() -> wsqueue.Client:
    return wsqueue.connect(producers=["127.0.0.1:1/produce"], consumers=["127.0.0.1:1/subscribe"], psk="key")


def run_without_a_loop(result: object) -> None:
    """Take the steps of a coroutine that an event loop would take, up to the first that waits."""
    if isinstance(result, Awaitable):
        result.__await__().send(None)


async def run_in_a_loop(use: Use, client: wsqueue.Client, messages: wsqueue.Subscription[Any]) -> None:
    if isinstance(result := use(client, messages), Awaitable):
        await result


@every_use
def test_in_another_loop(use: Use) -> None:
    client = make()
    messages = client.subscribe("news")
    owner = asyncio.new_event_loop()
    owner.run_until_complete(client.flush())
    with pytest.raises(wsqueue.OwnerError, match="belongs to another event loop"):
        asyncio.run(run_in_a_loop(use, client, messages))
    owner.run_until_complete(client.close())
    owner.close()


@every_use
def test_in_a_loop_after_that_of_the_client_has_ended(use: Use) -> None:
    client = make()
    messages = client.subscribe("news")
    asyncio.run(client.flush())
    with pytest.raises(wsqueue.OwnerError, match=r"has ended.*in each asyncio\.run"):
        asyncio.run(run_in_a_loop(use, client, messages))


@pytest.mark.anyio
@every_use
@pytest.mark.parametrize("used", [False, True])
async def test_in_a_thread_without_a_loop(use: Use, used: bool) -> None:
    client = make()
    messages = client.subscribe("news")
    if used:
        await client.flush()
    problems: list[BaseException] = []

    def work() -> None:
        try:
            run_without_a_loop(use(client, messages))
        except wsqueue.OwnerError as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if use is USES["subscribe"] and not used:
        # It takes nothing before its first use.
        assert problems == []
    else:
        assert "outside of an event loop" in str(problems[0])
    await client.close()


# Python warns of forks while there are threads, as pytest's own; the child needs none of them.
forking = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@forking
@every_use
@pytest.mark.parametrize("closed", [False, True])
def test_in_a_forked_process(use: Use, closed: bool) -> None:
    client = make()
    messages = client.subscribe("news")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(client.close() if closed else client.flush())

    def child() -> str:
        try:
            asyncio.run(run_in_a_loop(use, client, messages))
        except wsqueue.OwnerError as error:
            return str(error)
        return "nothing was raised"

    said = in_a_child(child)
    assert "belongs to the parent process: make another client with wsqueue.connect() in each process" in said
    loop.run_until_complete(client.close())
    loop.close()


@forking
def test_a_client_that_was_never_used_is_free_in_both_processes() -> None:
    client = make()

    def child() -> str:
        asyncio.run(client.close())
        return "closed"

    assert in_a_child(child) == "closed"
    asyncio.run(client.close())


def test_an_owner_error_is_a_runtime_error() -> None:
    assert issubclass(wsqueue.OwnerError, RuntimeError)
    assert issubclass(wsqueue.OwnerError, wsqueue.WsqueueError)


def in_a_child(work: Callable[[], str]) -> str:
    """Return the result of a function in a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return said
