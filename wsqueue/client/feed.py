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

from ..protocol.routing import topic_hash
from .inbox import Inbox
from .link import ClientSettings
from .subscriber import SubscriberLink
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

    def add_links(self, home: int, topics: Iterable[str], start: Start) -> None:
        """Give each of some topics of a classic consumer a link of its own."""
        for topic in topics:
            link = SubscriberLink(home, [topic], self._settings, start=start, feed=self)
            self._links.append(link)
            if not self.inbox.closed:
                link.start()

    def _make_links(self, topics: Iterable[str], start: Start) -> Iterator[SubscriberLink]:
        homes: dict[int, list[str]] = {}
        for topic in topics:
            homes.setdefault(home_of(topic, self._settings), []).append(topic)
        for home, names in homes.items():
            for begin in range(0, len(names), MAX_TOPICS_PER_LINK):
                part = names[begin : begin + MAX_TOPICS_PER_LINK]
                yield SubscriberLink(home, part, self._settings, start=start, feed=self)


def home_of(topic: str, settings: ClientSettings) -> int:
    """Return the index of the consumer that a topic belongs to, the first one if it stands there twice."""
    addresses = settings.config.subscribe_addresses
    return addresses.index(addresses[topic_hash(topic) % len(addresses)])
