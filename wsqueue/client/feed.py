"""The feed of a subscription: links to the consumers of its topics, and the messages that they bring.

::

    SubscriberLink ── Positions ──┐
    SubscriberLink ── Positions ──┴─> Inbox

Each link asks its consumer for topics and turns packets into messages (`Positions`). The messages of all
links wait in the `Inbox`, which pauses the links while the application is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from ..config.addresses import Address
from ..errors import ConnectError
from ..net.connection import Connection
from ..protocol import v2
from ..protocol.close import CloseCode, Closed
from ..protocol.routing import topic_hash
from ..protocol.session import Event
from .inbox import Inbox
from .link import ClientLink, ClientSettings
from .positions import Positions
from .values import Gap, Message, Start

MAX_TOPICS_PER_LINK = 1000
"""Topics on one connection: a tenth of the number that a consumer accepts."""


class Feed:
    """Bring the messages of topics into an inbox.

    It does not know the `Subscription` that takes them out, so that the application can drop that one.

    Attributes:
        inbox: The messages that the application has not taken yet.
    """

    def __init__(self, topics: Iterable[str], settings: ClientSettings, start: Start) -> None:
        self._settings = settings
        self._closing: asyncio.Task[None] | None = None
        self.inbox = Inbox()
        self._changed = asyncio.Event()
        self._links = list(self._make_links(topics, start))

    @property
    def at_end(self) -> bool:
        """Return True if all messages have arrived that were published before the subscription."""
        return all(link.at_end for link in self._links)

    def start(self) -> None:
        """Subscribe; a link that gave up tries once more."""
        for link in self._links:
            link.start()

    async def wait_open(self) -> None:
        """Wait until all consumers deliver.

        Raises:
            ConnectError: A consumer does not answer.
            AuthenticationError: A consumer has another key.
        """
        # A link to a classic consumer adds others.
        ready = 0
        while ready < len(self._links):
            links = self._links[ready:]
            ready = len(self._links)
            await asyncio.gather(*(link.wait_open(self._settings.open_seconds) for link in links))

    async def until_changed(self) -> None:
        """Wait for a message, for the end, or for news of a link.

        Raises:
            ConnectError: A consumer does not answer, or refuses the subscription for good.
            AuthenticationError: A consumer has another key.
        """
        for link in self._links:
            link.raise_if_hopeless()
        self._changed.clear()
        await self._changed.wait()

    async def stop(self) -> None:
        """Give the connections back; `start` goes on at the same positions."""
        await asyncio.gather(*(link.stop() for link in self._links))

    async def close(self) -> None:
        """Unsubscribe; the messages that have arrived stay."""
        self.inbox.close()
        await self.stop()
        self._changed.set()

    def drop(self) -> None:
        """Close, because the application has dropped its subscription."""
        if not self.inbox.closed:
            self._closing = asyncio.get_running_loop().create_task(self.close())

    def put(self, items: Sequence[Message | Gap]) -> None:
        """Add items that a link has received."""
        if items:
            self.inbox.put(items)
            self._changed.set()

    def notify(self) -> None:
        """Wake who waits: the state of a link has changed."""
        self._changed.set()

    def add_links(self, consumer: Address, topics: Iterable[str], start: Start) -> None:
        """Give each of some topics of a classic consumer a link of its own."""
        for topic in topics:
            link = SubscriberLink(consumer, [topic], self._settings, start=start, feed=self)
            self._links.append(link)
            if not self.inbox.closed:
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
                yield SubscriberLink(consumer, part, self._settings, start=start, feed=self)


class SubscriberLink(ClientLink):
    """Subscribe to topics of one consumer, and continue at their positions after a reconnect.

    Args:
        consumer: Its address, without a topic in the path.
        topics: At least one.
        settings: Those of the client.
        start: Where the topics begin.
        feed: Gets the messages.
    """

    def __init__(
        self,
        consumer: Address,
        topics: Sequence[str],
        settings: ClientSettings,
        *,
        start: Start,
        feed: Feed,
    ) -> None:
        address = consumer
        if settings.config.allows_classic(consumer):
            # A classic consumer takes the topic from the path; one that speaks v2 waits for packets.
            address = consumer.with_path(f"{consumer.path}/{quote(topics[0], safe='')}")
        super().__init__([address], settings)
        self._consumer, self._start, self._feed = consumer, start, feed
        self._unable = ""
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
        elif self._start != "latest":
            self._unable = (
                f"{self.addresses[0]}: it only speaks the classic protocol and keeps no messages, so that a"
                " subscription there can only begin with the next message"
            )
            self.connection.close(CloseCode.NORMAL)
        else:
            self._feed.add_links(self._consumer, self._positions.keep_first(), self._start)
        if self._was_up:
            # A link that reconnects while the application is stuck must not add a read each time.
            self._feed.inbox.pause_if_full(self.connection)
        super().up()

    @property
    def gives_up(self) -> bool:
        """Return True if the consumer cannot begin where it is asked to."""
        return bool(self._unable) or super().gives_up

    def raise_if_hopeless(self) -> None:
        """Raise if trying longer would not help.

        Raises:
            ConnectError: The consumer keeps no messages to begin with, or as for every link.
            AuthenticationError: As for every link.
        """
        if self._unable:
            raise ConnectError(self._unable)
        super().raise_if_hopeless()

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Let go of a connection."""
        self._positions.connection_lost()
        self._feed.inbox.forget(connection)
        super().lost(connection, closed)

    def received_events(self, events: list[Event]) -> None:
        """Hand messages and gaps to the feed."""
        self._feed.put(self._positions.receive(events))
        for event in events:
            if isinstance(event, v2.Subscribed):
                self.notify()
            elif isinstance(event, v2.Draining):
                self.leave(event.retry_seconds)
        # Until all topics have begun, their answers must not wait behind messages of other topics.
        if self.connection is not None and self.ready:
            self._feed.inbox.pause_if_full(self.connection)

    def notify(self) -> None:
        """Wake the tasks that wait for this link, and those that wait for the feed."""
        super().notify()
        self._feed.notify()
