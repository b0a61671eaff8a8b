"""The link of a subscription to the home of its topics, and to another consumer while the home is away.

::

    SubscriberLink ── to the home, always kept up
       ├── OtherLink ── to the place of the topics, while the home is away
       └── OtherLink ── to the candidate, while a place is searched

`Failover` says which of them are to be there and which one is subscribed; `_steer` makes it so. Packets of
the others are read only for their `log`, so that a topic has its messages from one connection at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Protocol
from urllib.parse import quote

import msgspec

from ..config.addresses import Address
from ..errors import ConnectError, NotAllowedError
from ..net.connection import Connection
from ..net.link import Link
from ..net.timers import Timer
from ..protocol import v2
from ..protocol.close import CloseCode, Closed
from ..protocol.session import Event, HelloDone
from .failover import Failover, failover_order
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

    def add_links(self, home: int, topics: Iterable[str], start: Start) -> None:
        """Give each of some topics of a classic consumer a link of its own."""


class SubscriberLink(ClientLink):
    """Subscribe to topics of one consumer, and continue at their positions after a reconnect or elsewhere.

    Args:
        home: The index of the consumer.
        topics: At least one.
        settings: Those of the client.
        start: Where the topics begin.
        feed: Gets the messages.
        reader: Name under which the consumer keeps how far the subscriber has come, None without that.
    """

    def __init__(
        self,
        home: int,
        topics: Sequence[str],
        settings: ClientSettings,
        *,
        start: Start,
        feed: Receiver,
        reader: str | None = None,
    ) -> None:
        consumers = settings.config.subscribe_addresses
        address = consumer = consumers[home]
        if settings.config.allows_classic(consumer):
            # A classic consumer takes the topic from the path; one that speaks v2 waits for packets.
            address = consumer.with_path(f"{consumer.path}/{quote(topics[0], safe='')}")
        super().__init__([address], settings)
        self._home, self._consumers, self._settings = home, consumers, settings
        self._start, self._feed = start, feed
        self._unable = ""
        self._refusal: tuple[type[ConnectError], str] | None = None
        self._reader = reader
        self._positions = Positions(topics, start, reader)
        others = [index for index, other in enumerate(consumers) if consumers.index(other) == index != home]
        self._order = failover_order(topics[0], others)
        self._failover: Failover | None = None
        self._others: dict[int, OtherLink] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._subscribed: Connection | None = None
        self._timer: Timer | None = None
        self._silent = True
        self._tried: dict[int, str] = {}

    @property
    def home(self) -> int:
        """Return the index of the consumer."""
        return self._home

    @property
    def ready(self) -> bool:
        """Return True if a consumer delivers all topics."""
        return self._subscribed is not None and self._positions.delivered

    @property
    def at_end(self) -> bool:
        """Return True if all messages have arrived that were published before the subscription."""
        return self._subscribed is not None and self._positions.at_end

    @property
    def answered(self) -> bool:
        """Return True if a consumer has answered, and its connection is up."""
        return super().answered or any(other.connection is not None for other in self._others.values())

    @property
    def gives_up(self) -> bool:
        """Return True if the home cannot begin where it is asked to, or refuses for good."""
        active = self._failover is not None and self._failover.active
        refused = bool(self._unable) or self._refusal is not None
        return refused or (not active and super().gives_up)

    def start(self) -> None:
        """Start connecting, unless the link is started or belongs to another process."""
        begins = self._failover is None and not self._owner.forked
        if begins:
            known = self._settings.shared_log
            self._failover = Failover(self._home, self._order, known, self._now())
            self._tried.clear()
            self._refusal = None
        super().start()
        if begins:
            self._steer()

    async def stop(self) -> None:
        """Close the connections, waiting until the consumers have read all data, and stay down."""
        self._rest()
        await asyncio.gather(super().stop(), *self._ending)

    def raise_if_hopeless(self) -> None:
        """Raise if trying longer would not help.

        Raises:
            ConnectError: The consumer keeps no messages to begin with, or no more names of readers, or as for
                every link.
            AuthenticationError: As for every link.
            NotAllowedError: As for every link, or the consumer refuses a topic.
        """
        if self._unable:
            raise ConnectError(self._unable)
        if self._refusal is not None:
            kind, text = self._refusal
            raise kind(text)
        if self._failover is None or not self._failover.hopeful:
            super().raise_if_hopeless()

    def up(self) -> None:
        """Subscribe, unless the topics are elsewhere."""
        self._silent = True
        if self._failover is not None:
            self._failover.up(self._home, self._now())
            if not self.v2:
                self._failover.told_nothing(self._now())
            self._steer()
        super().up()

    def down(self, closed: Closed, lost: int) -> None:
        """Look for another consumer if the home stays away."""
        if self._failover is not None:
            self._failover.down(self._home, self._now())
            self._steer()

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Let go of a connection."""
        self.forget(connection)
        super().lost(connection, closed)

    def attempt_ended(self, closed: Closed) -> None:
        """Look for another consumer, unless the home refuses for good: that is an error to be told."""
        if self.gives_up:
            self._rest()
        elif self._failover is not None:
            self._failover.down(self._home, self._now())
            self._steer()
        super().attempt_ended(closed)

    def received_events(self, events: list[Event]) -> None:
        """Take the packets of the home."""
        if self._silent:
            self._take_first(events)
        self._take(self._home, self.connection, events)

    def notify(self) -> None:
        """Wake the tasks that wait for this link, and those that wait for the feed."""
        super().notify()
        self._feed.notify()

    def forget(self, connection: Connection) -> None:
        """Let go of a connection that is lost, to whichever consumer."""
        if connection is self._subscribed:
            self._subscribed = None
            self._positions.connection_lost()
        self._feed.inbox.forget(connection)

    def other_up(self, other: OtherLink) -> None:
        """Wait for the `log` of another consumer."""
        if self._failover is not None and self._others.get(other.index) is other:
            self._tried[other.index] = "it has another log, or does not reach it"
            self._failover.up(other.index, self._now())
            self._steer()

    def other_received(self, other: OtherLink, events: list[Event]) -> None:
        """Take the packets of another consumer."""
        if self._others.get(other.index) is other:
            self._take(other.index, other.connection, events)

    def other_ended(self, other: OtherLink, closed: Closed) -> None:
        """Go on without another consumer."""
        if self._failover is not None and self._others.get(other.index) is other:
            self._tried[other.index] = str(closed)
            self._failover.down(other.index, self._now())
            self._steer()

    def _take_first(self, events: list[Event]) -> None:
        """Learn from the first packet of the home whether it shares its log."""
        packets = [event for event in events if not isinstance(event, HelloDone)]
        if packets:
            self._silent = False
            if self._failover is not None and not isinstance(packets[0], v2.Log):
                self._failover.told_nothing(self._now())
                self._steer()

    def _take(self, index: int, connection: Connection | None, events: list[Event]) -> None:
        """Hand messages and gaps to the feed, and the state of the log to the failover."""
        if connection is not None and connection is self._subscribed:
            self._feed.put(self._positions.receive(events))
        for event in events:
            if isinstance(event, v2.Subscribed):
                self.notify()
            elif isinstance(event, v2.Unsubscribed) and event.code is not None and connection is not None:
                self._refuse(event.topic, event.code, connection)
            elif isinstance(event, v2.Draining) and index == self._home:
                self.leave(event.retry_seconds)
            elif isinstance(event, v2.Log) and connection is not None and self._failover is not None:
                connection.watch_closely()
                self._failover.told(index, event, self._now())
                self._steer()
        # Until all topics have begun, their answers must not wait behind messages of other topics.
        if connection is not None and connection is self._subscribed and self.ready:
            self._pause_if_full(connection)

    def _pause_if_full(self, connection: Connection) -> None:
        """Take no more messages while too many wait for the application."""
        self._feed.inbox.pause_if_full(connection)

    def _refuse(self, topic: str, code: str, connection: Connection) -> None:
        """End the subscription, because a consumer refuses a topic."""
        who = str(self._credential) or "this client"
        name = "" if self._reader is None else f" as the reader {self._reader!r}"
        if code == "full":
            self._refusal = ConnectError, f"no place for {topic!r}{name}: there are too many names ({code})"
        else:
            self._refusal = NotAllowedError, f"{who} may not subscribe to {topic!r}{name} ({code})"
        connection.close(CloseCode.NORMAL)

    def _steer(self) -> None:
        """Have the connections, the subscription and the timer that the failover wants, unless it is cut."""
        if self.cut:
            return
        failover = self._failover
        assert failover is not None
        places = (failover.place, failover.candidate)
        wanted = {index for index in places if index is not None and index != self._home}
        for index in self._others.keys() - wanted:
            self._end(index)
        for index in wanted - self._others.keys():
            self._tried[index] = "no answer"
            self._others[index] = OtherLink(index, self._consumers[index], self._settings, self)
            self._others[index].start()
        link: Link = self if failover.place == self._home else self._others[failover.place]
        if link.connection is not self._subscribed:
            self._subscribe(link.connection)
        if self._timer is not None:
            self._timer.cancel()
        seconds = None if failover.due is None else max(0.0, failover.due - self._now())
        self._timer = None if seconds is None else Timer(seconds, self._pass_time)
        self.notify()

    def _subscribe(self, connection: Connection | None) -> None:
        """Have all topics on one connection, or on none, instead of on the one before."""
        before, self._subscribed = self._subscribed, connection
        if before is not None:
            self._positions.connection_lost()
        if connection is not None:
            self._ask(connection)
        if before is not None:
            # Its packets that still wait to be read no longer belong to the subscription.
            self._feed.inbox.release(before)
            if before is self.connection:
                before.close(CloseCode.NORMAL)

    def _ask(self, connection: Connection) -> None:
        """Ask for all topics at their positions."""
        if connection.session.v2:
            connection.send([v2.encode(request) for request in self._positions.requests()])
        elif self._start != "latest":
            self._unable = (
                f"{self.addresses[0]}: it only speaks the classic protocol and keeps no messages, so that a"
                " subscription there can only begin with the next message"
            )
            connection.close(CloseCode.NORMAL)
        else:
            self._feed.add_links(self._home, self._positions.keep_first(), self._start)
        if self._was_up:
            # A link that reconnects while the application is stuck must not add a read each time.
            self._pause_if_full(connection)
        self._was_up = True

    def _end(self, index: int) -> None:
        """Close the connection to another consumer."""
        other = self._others.pop(index)
        if other.connection is not None and other.connection is self._subscribed:
            self._subscribe(None)
        task = asyncio.get_running_loop().create_task(other.stop())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _rest(self) -> None:
        """Look for no consumer any more."""
        self._failover = None
        if self._timer is not None:
            self._timer.cancel()
        for index in list(self._others):
            self._end(index)

    def _pass_time(self) -> None:
        assert self._failover is not None
        self._failover.pass_time(self._now())
        self._steer()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _failure_text(self) -> str:
        text = super()._failure_text()
        if not self._settings.shared_log.may_leave(self._home):
            return text
        others = (f"; {self._consumers[index]}: {problem}" for index, problem in self._tried.items())
        return text + "".join(others)


class OtherLink(Link):
    """Try a consumer that is not the home of the topics once, and keep its connection while it lasts.

    Args:
        index: The index of the consumer.
        address: Its address.
        settings: Those of the client.
        subscriber: Decides about the connection.
    """

    never_up_level = logging.INFO

    def __init__(
        self, index: int, address: Address, settings: ClientSettings, subscriber: SubscriberLink
    ) -> None:
        # A classic consumer has a log of no kind, and takes a connection for a subscription.
        config = msgspec.structs.replace(settings.config, allow_classic=False)
        super().__init__([address], settings.credential, config, settings.tls)
        settings.owner.add(self)
        self.index = index
        self._subscriber = subscriber

    @property
    def gives_up(self) -> bool:
        """Return True: another consumer may be next."""
        return True

    def up(self) -> None:
        """Tell the subscriber."""
        self._subscriber.other_up(self)

    def down(self, closed: Closed, lost: int) -> None:
        """Tell the subscriber."""
        self._subscriber.other_ended(self, closed)

    def attempt_ended(self, closed: Closed) -> None:
        """Tell the subscriber."""
        self._subscriber.other_ended(self, closed)

    def received_events(self, events: list[Event]) -> None:
        """Tell the subscriber."""
        self._subscriber.other_received(self, events)

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Let go of the connection."""
        self._subscriber.forget(connection)
        super().lost(connection, closed)
