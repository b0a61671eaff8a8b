"""A subscription under a name: the consumer keeps how far the reader has come.

::

    ReaderLink ── Positions ──> Inbox ──> ReaderSubscription ──> ReaderMessage.done()
        ^                                                              │
        └────────────────────────── Commits <──────────────────────────┘

The answer to a commit comes behind messages, so that the connection is read while an application waits for it
and takes no messages. When the inbox is full, the link therefore unsubscribes instead of reading no more, and
subscribes again at its position when there is room:

| the link | until | then |
|---|---|---|
| gets messages | the inbox is full | ends the subscription |
| ends the subscription | `unsubscribed` comes, behind the messages that were on their way | holds |
| holds | half of the inbox is free | gets messages |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal, cast

import msgspec

from ..errors import ConnectError
from ..journal import log
from ..net.connection import Connection
from ..protocol import v2
from ..protocol.session import Event
from .arguments import check_name
from .commits import Commits
from .feed import Feed, home_of
from .link import ClientSettings, fail, resolve
from .owner import Owner
from .subscriber import SubscriberLink
from .subscription import Subscription
from .values import Gap, Item, Message, Position, Start

logger = logging.getLogger(__name__)

NOT_KEPT = (
    "the subscription is closed, and it is not kept that the message is done: the reader will get it again"
)


def check_reader(reader: object, start: object) -> None:
    """Refuse the name of a reader that is none, or a start that a reader cannot have.

    Raises:
        ValueError: It is so; the error names the right values.
    """
    check_name("reader", reader)
    if isinstance(start, int | Position | datetime) or start not in ("earliest", "latest"):
        raise ValueError(
            f"{start!r} is not a start of a reader, which goes on where it was: expected 'earliest' or"
            " 'latest', for one that is new"
        )


class ReaderMessage(Message, frozen=True, gc=True, eq=False):
    """Hold a message that a named reader has got."""

    _number: int = 0
    _link: ReaderLink = msgspec.field(default=None)  # type: ignore[assignment]  # always given

    def __repr__(self) -> str:
        return f"ReaderMessage({self.topic!r}, {self.data!r}, {self.offset})"

    async def done(self) -> None:
        """Say that this message and all before it are done, and wait until that is kept.

        After that, the reader does not get them again, whoever reads under its name.

        Raises:
            ConnectError: The consumer does not answer, or the subscription is closed. The reader may get the
                messages again.
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        await self._link.commit(self._number, self.after)

    def done_nowait(self) -> None:
        """Say that this message and all before it are done, without waiting.

        `ReaderSubscription.flush` waits until it is kept.

        Raises:
            ConnectError: The subscription is closed.
            OwnerError: As for `done`.
        """
        self._link.commit_nowait(self._number, self.after)


class ReaderLink(SubscriberLink):
    """Subscribe under a name, and say how far the reader has come.

    Args:
        home: The index of the consumer.
        topic: The topic.
        settings: Those of the client.
        start: Where the reader begins if it is new.
        feed: Gets the messages.
        reader: The name.
    """

    def __init__(
        self, home: int, topic: str, settings: ClientSettings, *, start: Start, feed: Feed, reader: str
    ) -> None:
        # A classic consumer keeps nothing, and takes a connection for a subscription.
        config = msgspec.structs.replace(settings.config, allow_classic=False)
        settings = msgspec.structs.replace(settings, config=config)
        super().__init__(home, [topic], settings, start=start, feed=feed, reader=reader)
        self._topic, self._name, self._inbox = topic, reader, feed.inbox
        self._open_seconds = settings.open_seconds
        self._commits: Commits[asyncio.Future[None]] = Commits()
        self._sending: asyncio.Handle | None = None
        self._held = self._unsubscribing = self._failed = self._lost = False

    @property
    def ready(self) -> bool:
        """Return True if the consumer delivers the topic, or will when the inbox has room, or never again."""
        return super().ready or (self._subscribed is not None and self._held) or self._failed

    @property
    def settled(self) -> bool:
        """Return True if all that was said is kept."""
        return self._commits.empty

    def commit_nowait(
        self, number: int, position: Position, waiter: asyncio.Future[None] | None = None
    ) -> None:
        """Say that a message and all before it are done.

        Args:
            number: Its place in the order in which the application has got messages.
            position: The position behind it.
            waiter: Is done when that is kept.

        Raises:
            ConnectError: The subscription is closed.
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        self._owner.check()
        if self._inbox.closed:
            raise ConnectError(NOT_KEPT)
        if not self._commits.say(number, position, waiter):
            if waiter is not None:
                waiter.set_result(None)
        elif self._sending is None:
            # All that is said in a turn of the event loop is one commit.
            self._sending = asyncio.get_running_loop().call_soon(self._send)

    async def commit(self, number: int, position: Position) -> None:
        """Say that a message and all before it are done, and wait until that is kept.

        Raises:
            ConnectError: As `commit_nowait`, or the consumer does not answer.
            OwnerError: As `commit_nowait`.
        """
        self._owner.check()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.commit_nowait(number, position, future)
        await self.until(future.done, self._open_seconds)
        future.result()

    async def flush(self) -> None:
        """Wait until all that was said is kept.

        Raises:
            ConnectError: The consumer does not answer.
        """
        await self.until(lambda: self.settled, self._open_seconds)

    def fail_all(self) -> None:
        """Tell all who wait that it is not kept that their messages are done, at the end."""
        self._failed = True
        self._lost |= not self.settled
        fail(self._commits.fail_all(), ConnectError(NOT_KEPT))
        self.notify()

    def raise_if_lost(self) -> None:
        """Raise if commits were given up at the end.

        Raises:
            ConnectError: They were.
        """
        if self._lost:
            raise ConnectError(NOT_KEPT)

    def pause_reading(self) -> None:
        """End the subscription until the inbox has room (the inbox calls this)."""
        self._held = True
        if self._subscribed is not None and not self._unsubscribing:
            self._unsubscribing = True
            self._subscribed.send_packet(v2.Unsubscribe(self._topic))

    def resume_reading(self) -> None:
        """Subscribe again at the position (the inbox calls this)."""
        self._held = False
        self._subscribe_again()

    def _subscribe_again(self) -> None:
        held = self._held or self._unsubscribing or self._inbox.closed
        if self._subscribed is not None and not held:
            self._subscribed.send([v2.encode(request) for request in self._positions.requests()])

    def _pause_if_full(self, connection: Connection) -> None:
        self._inbox.pause_if_full(self)

    def _ask(self, connection: Connection) -> None:
        self._unsubscribing = False
        self._commits.send_again()
        if not self._held:
            super()._ask(connection)
        self._send()

    def _take(self, index: int, connection: Connection | None, events: list[Event]) -> None:
        super()._take(index, connection, events)
        if connection is None or connection is not self._subscribed:
            return
        for event in events:
            if isinstance(event, v2.Committed):
                self._confirm(Position(event.log, event.offset))
            elif isinstance(event, v2.Unsubscribed) and event.code is None:
                self._unsubscribing = False
                self._subscribe_again()

    def _confirm(self, position: Position) -> None:
        resolve(self._commits.confirm(position))
        self._send()
        self.notify()

    def _send(self) -> None:
        self._sending = None
        if self._subscribed is not None and (position := self._commits.take()) is not None:
            packet = v2.Commit(self._topic, self._name, position.log, position.offset)
            self._subscribed.send_packet(packet)


class ReaderFeed(Feed):
    """Bring the messages of a topic into an inbox, for a named reader.

    Args:
        topic: The topic.
        settings: Those of the client.
        start: Where the reader begins if it is new.
        reader: The name.

    Attributes:
        link: Says how far the reader has come.
    """

    link: ReaderLink

    def __init__(self, topic: str, settings: ClientSettings, start: Start, reader: str) -> None:
        self._reader = reader
        super().__init__([topic], settings, start)

    def _make_links(self, topics: Iterable[str], start: Start) -> Iterator[SubscriberLink]:
        (topic,) = topics
        home = home_of(topic, self._settings)
        self.link = ReaderLink(home, topic, self._settings, start=start, feed=self, reader=self._reader)
        yield self.link

    async def close(self) -> None:
        """Unsubscribe, once all is kept that was said; the messages that have arrived stay."""
        self.inbox.close()
        try:
            if self.link.ready:
                async with asyncio.timeout(self._settings.open_seconds):
                    await self.link.flush()
        except (ConnectError, TimeoutError) as error:
            self._say_left(error if isinstance(error, ConnectError) else "no answer in time")
        else:
            if not self.link.settled:
                self._say_left("no connection")
        finally:
            self.link.fail_all()
            await super().close()

    def _say_left(self, reason: object) -> None:
        log(logger, logging.WARNING, "reader left", reader=self._reader, reason=reason)


class ReaderSubscription(Subscription[Item]):
    """Iterate over the messages of a topic as a named reader; made by `Client.subscribe` with `reader`.

    The reader goes on behind the last message of which it has said that it is done, in this subscription or
    an earlier one, from whichever client.

    Attributes:
        auto_done: True if a message is done once the next one is asked for.
    """

    def __init__(
        self,
        feed: ReaderFeed,
        owner: Owner,
        *,
        follow: bool,
        on_gap: Literal["raise", "yield"],
        auto_done: bool,
    ) -> None:
        super().__init__(feed, owner, follow=follow, on_gap=on_gap)
        self._link, self.auto_done = feed.link, auto_done
        self._count = 0
        self._latest: ReaderMessage | None = None

    async def __anext__(self) -> Item:
        """Return the next message, or the next gap with `on_gap="yield"`.

        With `auto_done`, the message before is done.

        Raises:
            GapError: Messages are gone, with `on_gap="raise"`; the iteration can go on.
            ConnectError: A consumer does not answer, or refuses the subscription for good.
            AuthenticationError: A consumer has another key.
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        latest, self._latest = self._latest, None
        if latest is not None and not self._feed.inbox.closed:
            latest.done_nowait()
        item = await super().__anext__()
        if isinstance(item, Gap):
            return item
        assert isinstance(item, Message)
        self._count += 1
        message = ReaderMessage(
            item.topic, item.data, item.log, item.offset, item.headers, self._count, self._link
        )
        if self.auto_done:
            self._latest = message
        return cast("Item", message)

    async def flush(self) -> None:
        """Wait until it is kept of all messages that they are done, as far as that was said.

        Raises:
            ConnectError: The consumer does not answer, or did not before the subscription was closed.
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        self._owner.check()
        await self._link.flush()
        self._link.raise_if_lost()
