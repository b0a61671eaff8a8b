"""The link of a subscription to a consumer: it asks for topics at their positions after each reconnect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol
from urllib.parse import quote

from ..config.addresses import Address
from ..errors import ConnectError
from ..net.connection import Connection
from ..protocol import v2
from ..protocol.close import CloseCode, Closed
from ..protocol.session import Event
from .inbox import Inbox
from .link import ClientLink, ClientSettings
from .positions import Positions
from .values import Gap, Message, Start


class Receiver(Protocol):
    """A feed, as far as its links use it.

    Attributes:
        inbox: The messages that the application has not taken yet.
    """

    inbox: Inbox

    def put(self, items: Sequence[Message | Gap]) -> None:
        """Add items that a link has received."""

    def notify(self) -> None:
        """Wake who waits: the state of a link has changed."""

    def add_links(self, consumer: Address, topics: Iterable[str], start: Start) -> None:
        """Give each of some topics of a classic consumer a link of its own."""


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
        feed: Receiver,
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
