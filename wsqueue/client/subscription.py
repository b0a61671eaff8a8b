"""Subscriptions: an iterator that the application holds, over the messages of a feed."""

from __future__ import annotations

import weakref
from typing import Generic, Literal, Protocol, Self, cast

from ..errors import ConnectError, GapError
from .inbox import Inbox
from .owner import Owner
from .values import Gap, Item


class Source(Protocol):
    """A feed of messages, as far as its subscription uses it.

    Attributes:
        inbox: The messages that the application has not taken yet.
    """

    inbox: Inbox

    @property
    def at_end(self) -> bool:
        """Return True if all messages have arrived that were published before the subscription."""
        ...

    def start(self) -> None:
        """Connect, unless it is connected."""

    async def wait_open(self) -> None:
        """Wait until messages can come."""

    async def until_changed(self) -> None:
        """Wait for a message, for the end, or for news of a connection."""

    async def stop(self) -> None:
        """Give the connections back; `start` goes on."""

    async def close(self) -> None:
        """Give the connections back for good."""

    def drop(self) -> None:
        """Close, because the application has dropped its subscription."""


class Subscription(Generic[Item]):
    """Iterate over the messages of topics, in the order of each topic; made by `Client.subscribe`.

    Use it in `async for`, or first in `async with` to be sure that it has subscribed. It reconnects by itself
    and continues at its position, at another consumer if its own is away and they share a log; messages that
    have been dropped from the log by then are a gap. A consumer that only speaks classic keeps no log, so
    messages published during an interruption are missed.

    It has connections from its first use until `close`, the end of `async with` or of the iteration, or until
    nothing refers to it any more, as after a `break` out of `async for message in client.subscribe(...)`.
    After a `ConnectError` it has none until the iteration goes on.
    """

    def __init__(
        self, feed: Source, owner: Owner, *, follow: bool, on_gap: Literal["raise", "yield"]
    ) -> None:
        self._feed, self._owner = feed, owner
        self._follow, self._on_gap = follow, on_gap
        weakref.finalize(self, owner.call, feed.drop).atexit = False

    @property
    def waiting(self) -> int:
        """Return how many messages have arrived that the application has not taken."""
        return len(self._feed.inbox)

    async def close(self) -> None:
        """Unsubscribe, and end the iteration after the messages that have already arrived.

        Raises:
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        self._owner.check()
        await self._feed.close()

    async def __aenter__(self) -> Self:
        """Subscribe.

        Raises:
            ConnectError: A consumer does not answer.
            AuthenticationError: A consumer has another key.
            OwnerError: The caller is another process, thread or event loop than that of the client.
            RuntimeError: The subscription or the client was closed.
        """
        self._owner.check()
        if self._feed.inbox.closed:
            raise RuntimeError("the subscription is closed: make another one with client.subscribe()")
        try:
            await self._feed.wait_open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        """Return the next message, or the next gap with `on_gap="yield"`.

        Raises:
            GapError: Messages are gone, with `on_gap="raise"`; the iteration can go on.
            ConnectError: A consumer does not answer, or refuses the subscription for good.
            AuthenticationError: A consumer has another key.
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        self._owner.check()
        inbox = self._feed.inbox
        if not inbox:
            await self._until_filled()
        item = inbox.take()
        if isinstance(item, Gap) and self._on_gap == "raise":
            raise GapError(item.topic, item.missed)
        return cast("Item", item)

    async def _until_filled(self) -> None:
        """Wait for an item; at the end, and after an error, give the connections back."""
        feed = self._feed
        if not feed.inbox.closed:
            feed.start()
        while not feed.inbox:
            if feed.inbox.closed:
                raise StopAsyncIteration
            if not self._follow and feed.at_end:
                await feed.close()
                raise StopAsyncIteration
            try:
                await feed.until_changed()
            except ConnectError:
                await feed.stop()
                raise
