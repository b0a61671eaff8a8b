"""The feed of a subscription to all topics that begin with a prefix.

::

    PrefixLink ── PrefixPositions ──┐
    PrefixLink ── PrefixPositions ──┴─> Inbox

One consumer is asked first. If consumers share its log, it has all topics, and another one stands in for it
while it is away. If it has a log of its own, all consumers are asked, each for the topics whose home it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

import msgspec

from ..errors import ConnectError, NotAllowedError
from ..net.connection import Connection
from ..protocol import v2
from ..protocol.close import CloseCode
from ..protocol.session import Event, HelloDone
from .feed import Feed, home_of
from .link import ClientSettings
from .positions import Positions
from .subscriber import SubscriberLink
from .values import Gap, Message, Start


class PrefixPositions(Positions):
    """Ask a consumer for all topics with a prefix, and those that it has named at their positions. No I/O.

    Args:
        prefix: The prefix.
        start: Where the topics begin that are there when a consumer answers for the first time.
        takes: Returns True for a topic that this consumer is asked for.
    """

    def __init__(self, prefix: str, start: Start, takes: Callable[[str], bool]) -> None:
        super().__init__((), start)
        self._prefix, self._takes = prefix, takes
        self._begun = self._answered = False

    @property
    def delivered(self) -> bool:
        """Return True if the consumer delivers all topics, those too that begin later."""
        return self._answered and super().delivered

    def knows(self, topic: str) -> bool:
        """Return True if the messages of a topic are wanted."""
        return topic in self._topics

    def requests(self) -> list[v2.Subscribe | v2.Follow]:
        """Return the packets that ask for the topics that are known, and then for all others."""
        # A topic that has begun since the first answer is new from its first message on.
        return [*super().requests(), _follow(self._prefix, "earliest" if self._begun else self._start)]

    def connection_lost(self) -> None:
        """Note that all topics must be asked for again."""
        self._answered = False
        super().connection_lost()

    def receive(self, events: Iterable[Event]) -> list[Message | Gap]:
        """Take the events of one read; return the new messages and gaps in them."""
        events = list(events)
        for event in events:
            if isinstance(event, v2.Subscribed) and self._takes(event.topic):
                self._know(event.topic)
            elif isinstance(event, v2.Followed) and event.code is None:
                self._begun = self._answered = True
        return super().receive(events)


def _follow(prefix: str, start: Start) -> v2.Follow:
    if isinstance(start, int):
        return v2.Follow(prefix, "last", count=-start)
    if isinstance(start, datetime):
        return v2.Follow(prefix, "time", time=max(0.0, start.timestamp()))
    assert start in ("latest", "earliest")
    return v2.Follow(prefix, start)


class PrefixLink(SubscriberLink):
    """Subscribe to all topics of one consumer that begin with a prefix.

    Args:
        home: The index of the consumer.
        prefix: The prefix.
        settings: Those of the client.
        start: Where the topics begin.
        feed: Gets the messages, and knows which consumer has which topics.
    """

    def __init__(
        self, home: int, prefix: str, settings: ClientSettings, *, start: Start, feed: PrefixFeed
    ) -> None:
        # A classic consumer has no prefixes, and takes a connection for a subscription.
        config = msgspec.structs.replace(settings.config, allow_classic=False)
        settings = msgspec.structs.replace(settings, config=config)
        super().__init__(home, [prefix], settings, start=start, feed=feed)
        self._prefix, self._spread = prefix, feed.spread
        self._known = PrefixPositions(prefix, start, lambda topic: feed.takes(topic, home))
        self._positions = self._known

    def _take_first(self, events: list[Event]) -> None:
        super()._take_first(events)
        first = next((event for event in events if not isinstance(event, HelloDone)), None)
        if first is not None and not isinstance(first, v2.Log):
            self._spread()

    def _take(self, index: int, connection: Connection | None, events: list[Event]) -> None:
        super()._take(index, connection, events)
        if connection is None or connection is not self._subscribed:
            return
        for event in events:
            if isinstance(event, v2.Subscribed) and not self._known.knows(event.topic):
                connection.send_packet(v2.Unsubscribe(event.topic))
            elif isinstance(event, v2.Followed):
                if event.code is not None:
                    self._refuse_prefix(event.code, connection)
                self.notify()

    def _refuse_prefix(self, code: str, connection: Connection) -> None:
        """End the subscription, because a consumer refuses the prefix."""
        if code == "full":
            self._refusal = ConnectError, f"there are too many topics to list those of a prefix ({code})"
        else:
            who = str(self._credential) or "this client"
            topics = f"all topics that begin with {self._prefix!r}"
            self._refusal = NotAllowedError, f"{who} may not subscribe to {topics} ({code})"
        connection.close(CloseCode.NORMAL)


class PrefixFeed(Feed):
    """Bring the messages of all topics that begin with a prefix into an inbox.

    Args:
        prefix: The prefix.
        settings: Those of the client.
        start: Where the topics begin.
    """

    def __init__(self, prefix: str, settings: ClientSettings, start: Start) -> None:
        self._prefix, self._start = prefix, start
        super().__init__((), settings, start)

    def takes(self, topic: str, home: int) -> bool:
        """Return True if a topic is wanted from a consumer: from its home, unless one has all topics."""
        begins = topic.startswith(self._prefix)
        return begins and (len(self._links) == 1 or home_of(topic, self._settings) == home)

    def spread(self) -> None:
        """Ask all consumers, because one of them has a log of its own."""
        addresses = self._settings.config.subscribe_addresses
        (first, *others) = self._links
        if not others:
            homes = {addresses.index(address) for address in addresses} - {first.home}
            self._links += [self._link(home) for home in sorted(homes)]
            if not self.inbox.closed:
                for link in self._links[1:]:
                    link.start()

    def _make_links(self, topics: Iterable[str], start: Start) -> Iterator[SubscriberLink]:
        yield self._link(home_of(self._prefix, self._settings))

    def _link(self, home: int) -> PrefixLink:
        return PrefixLink(home, self._prefix, self._settings, start=self._start, feed=self)
