"""Subscriptions: an iterator that the application holds, over the messages of a feed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, Self, cast

from ..errors import GapError
from .feed import Feed
from .link import ClientSettings
from .values import Gap, Item, Start


class Subscription(Generic[Item]):
    """Iterate over the messages of topics, in the order of each topic; made by `Client.subscribe`.

    Use it in `async for`, or first in `async with` to be sure that it has subscribed. It reconnects by itself
    and continues at its position; messages that have been dropped from the log by then are a gap. A consumer
    that only speaks classic keeps no log, so messages published during an interruption are missed.
    """

    def __init__(
        self,
        topics: Iterable[str],
        settings: ClientSettings,
        *,
        start: Start,
        follow: bool,
        on_gap: Literal["raise", "yield"],
        when_closed: Callable[[Subscription[Any]], None],
    ) -> None:
        self._follow, self._on_gap, self._when_closed = follow, on_gap, when_closed
        self._feed = Feed(topics, settings, start)

    async def close(self) -> None:
        """Unsubscribe, and end the iteration after the messages that have already arrived."""
        self._when_closed(self)
        await self._feed.close()

    async def __aenter__(self) -> Self:
        """Subscribe.

        Raises:
            ConnectError: A consumer does not answer.
            AuthenticationError: A consumer has another key.
        """
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
        """
        inbox = self._feed.inbox
        if not inbox and not inbox.closed:
            self._feed.start()
        while not inbox:
            if inbox.closed or (not self._follow and self._feed.at_end):
                raise StopAsyncIteration
            await self._feed.until_changed()
        item = inbox.take()
        if isinstance(item, Gap) and self._on_gap == "raise":
            raise GapError(item.topic, item.missed)
        return cast("Item", item)
