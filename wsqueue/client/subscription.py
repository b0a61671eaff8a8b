"""Subscriptions: an iterator over messages, fed by one link or more to the consumers of its topics.

::

    SubscriberLink ── Positions ──┐
    SubscriberLink ── Positions ──┴─> Inbox ──> Subscription ──> the application

Each link asks its consumer for topics and turns packets into messages (`Positions`). The messages of all
links wait in the `Inbox`, which pauses the links while the application is slow. `Subscription` hands the
messages to the application, and waits on one event that each link sets when anything has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Literal, Self, cast
from urllib.parse import quote

from ..config.addresses import Address
from ..errors import GapError
from ..net.connection import Connection
from ..protocol import v2
from ..protocol.close import Closed
from ..protocol.routing import topic_hash
from ..protocol.session import Event
from .inbox import Inbox
from .link import ClientLink, ClientSettings
from .positions import Positions
from .values import Gap, Item, Message, Start

MAX_TOPICS_PER_LINK = 1000
"""Topics on one connection: a tenth of the number that a consumer accepts."""


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
        self._settings = settings
        self._follow, self._on_gap, self._when_closed = follow, on_gap, when_closed
        self._inbox = Inbox()
        self._changed = asyncio.Event()
        self._links = list(self._make_links(topics, start))

    async def close(self) -> None:
        """Unsubscribe, and end the iteration after the messages that have already arrived."""
        self._inbox.close()
        self._when_closed(self)
        await asyncio.gather(*(link.stop() for link in self._links))
        self._changed.set()

    async def __aenter__(self) -> Self:
        """Subscribe.

        Raises:
            ConnectError: A consumer does not answer.
            AuthenticationError: A consumer has another key.
        """
        try:
            # A link to a classic consumer adds others.
            ready = 0
            while ready < len(self._links):
                links = self._links[ready:]
                ready = len(self._links)
                await asyncio.gather(*(link.wait_open(self._settings.open_seconds) for link in links))
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
        if not self._inbox and not self._inbox.closed:
            # A link that gave up tries once more, now that the application asks again.
            for link in self._links:
                link.start()
        while not self._inbox:
            if self._inbox.closed or (not self._follow and all(link.at_end for link in self._links)):
                raise StopAsyncIteration
            for link in self._links:
                link.raise_if_hopeless()
            self._changed.clear()
            await self._changed.wait()
        item = self._inbox.take()
        if isinstance(item, Gap) and self._on_gap == "raise":
            raise GapError(item.topic, item.missed)
        return cast("Item", item)

    def put(self, items: Sequence[Message | Gap]) -> None:
        """Add items that a link has received."""
        if items:
            self._inbox.put(items)
            self._changed.set()

    def notify(self) -> None:
        """Wake the iteration: the state of a link has changed."""
        self._changed.set()

    def pause_if_full(self, connection: Connection) -> None:
        """Stop reading from a connection while too much waits for the application."""
        self._inbox.pause_if_full(connection)

    def forget(self, connection: Connection) -> None:
        """Let go of a connection that is lost."""
        self._inbox.forget(connection)

    def add_links(self, consumer: Address, topics: Iterable[str], start: Start) -> None:
        """Give each of some topics of a classic consumer a link of its own."""
        for topic in topics:
            link = SubscriberLink(consumer, [topic], self._settings, start=start, subscription=self)
            self._links.append(link)
            if not self._inbox.closed:
                link.start()

    def _make_links(self, topics: Iterable[str], start: Start) -> Iterator[SubscriberLink]:
        addresses = self._settings.config.subscribe_addresses
        consumers: dict[Address, list[str]] = {}
        for topic in topics:
            consumer = addresses[topic_hash(topic) % len(addresses)]
            consumers.setdefault(consumer, []).append(topic)
        for consumer, names in consumers.items():
            for begin in range(0, len(names), MAX_TOPICS_PER_LINK):
                part = names[begin : begin + MAX_TOPICS_PER_LINK]
                yield SubscriberLink(consumer, part, self._settings, start=start, subscription=self)


class SubscriberLink(ClientLink):
    """Subscribe to topics of one consumer, and continue at their positions after a reconnect.

    Args:
        consumer: Its address, without a topic in the path.
        topics: At least one.
        settings: Those of the client.
        start: Where the topics begin.
        subscription: Gets the messages.
    """

    def __init__(
        self,
        consumer: Address,
        topics: Sequence[str],
        settings: ClientSettings,
        *,
        start: Start,
        subscription: Subscription[Any],
    ) -> None:
        address = consumer
        if settings.config.allows_classic(consumer):
            # A classic consumer takes the topic from the path; one that speaks v2 waits for packets.
            address = consumer.with_path(f"{consumer.path}/{quote(topics[0], safe='')}")
        super().__init__([address], settings)
        self._consumer, self._start, self._subscription = consumer, start, subscription
        self._positions = Positions(topics, start)

    @property
    def ready(self) -> bool:
        """Return True if the consumer delivers all topics."""
        return self.connection is not None and self._positions.delivered

    @property
    def at_end(self) -> bool:
        """Return True if all messages have arrived that were published before the subscription."""
        return self.connection is not None and self._positions.at_end

    def up(self) -> None:
        """Subscribe."""
        assert self.connection is not None
        if self.v2:
            self.connection.send([v2.encode(request) for request in self._positions.requests()])
        else:
            self._subscription.add_links(self._consumer, self._positions.keep_first(), self._start)
        if self._was_up:
            # A link that reconnects while the application is stuck must not add a read each time.
            self._subscription.pause_if_full(self.connection)
        super().up()

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Let go of a connection."""
        self._positions.connection_lost()
        self._subscription.forget(connection)
        super().lost(connection, closed)

    def received_events(self, events: list[Event]) -> None:
        """Hand messages and gaps to the subscription."""
        self._subscription.put(self._positions.receive(events))
        for event in events:
            if isinstance(event, v2.Subscribed):
                self.notify()
            elif isinstance(event, v2.Draining):
                self.leave(event.retry_seconds)
        # Until all topics have begun, their answers must not wait behind messages of other topics.
        if self.connection is not None and self.ready:
            self._subscription.pause_if_full(self.connection)

    def notify(self) -> None:
        """Wake the tasks that wait for this link, and the iteration."""
        super().notify()
        self._subscription.notify()
