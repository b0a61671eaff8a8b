"""The owner of a client: the process, and the event loop in it, that use the client first.

A client is not safe to use from two threads. In two processes, a fork has copied the publisher's secret and
its numbers, so that a message of one process would pass for a repeat of another's. So each public call asks
the owner first, before it changes anything:

| a client is | until | then |
|---|---|---|
| free | the first call in an event loop | owned by that loop; after a fork it is free in both processes |
| owned | the process forks | in the child, a copy that raises; in the parent, still owned |
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Protocol

from ..errors import OwnerError


class Inherited(Protocol):
    """The holder of a connection, which a fork leaves to the parent process."""

    def detach(self) -> None:
        """Let go of the connection without a word to the peer."""


class Owner:
    """Know the event loop that a client belongs to.

    Attributes:
        forked: True in a process that got the client by a fork.
    """

    def __init__(self) -> None:
        self.forked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._links: weakref.WeakSet[Inherited] = weakref.WeakSet()
        _owners.add(self)

    @property
    def free(self) -> bool:
        """Return True if the client has never been used."""
        return self._loop is None and not self.forked

    def check(self) -> None:
        """Check that the caller is the owner, and take a client that is free.

        Raises:
            OwnerError: The client belongs to another process or another event loop.
        """
        # In the thread of a loop that runs, no other can run. `get_running_loop` would cost a system call.
        if get_ident() != self._thread or self._loop is None or not self._loop.is_running():
            self._take()

    def add(self, link: Inherited) -> None:
        """Remember a link, so that a forked process lets go of it."""
        self._links.add(link)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the event loop of the client, from any thread, unless the loop has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(function)

    def after_fork(self) -> None:
        """Leave everything to the parent process; called in the child."""
        if self._loop is not None:
            self._loop, self._thread, self.forked = None, 0, True
            for link in list(self._links):
                link.detach()

    def _take(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if self.forked:
            raise OwnerError(
                "the client was used before this process was forked, and belongs to the parent process: make"
                " another client with wsqueue.connect() in each process"
            )
        if loop is None:
            raise OwnerError(
                "the client is used outside of an event loop: call it from a coroutine, or from another"
                " thread through asyncio.run_coroutine_threadsafe()"
            )
        if self._loop is None or self._loop is loop:
            self._loop, self._thread = loop, get_ident()
        elif self._loop.is_closed():
            raise OwnerError(
                "the event loop that the client belongs to has ended: make another client with"
                " wsqueue.connect() in each asyncio.run()"
            )
        else:
            raise OwnerError(
                "the client belongs to another event loop: make another client with wsqueue.connect(), or"
                " call it through asyncio.run_coroutine_threadsafe()"
            )


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()


def _after_fork() -> None:
    for owner in list(_owners):
        owner.after_fork()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
