"""The asyncio client: publishes through any producer, subscribes at the consumer of each topic.

::

    async with wsqueue.connect("/etc/wsqueue/demo.toml") as client:
        await client.publish("news", "hello")
        async for message in client.subscribe("news"):
            print(message.topic, message.data)
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Literal, Self, cast, overload
from urllib.parse import quote

import msgspec

from ..config.addresses import Address
from ..config.check import check_addresses
from ..config.keys import load_psk
from ..config.load import load_config
from ..config.model import ClientConfig, Limits, Tls
from ..errors import (
    ConnectError,
    GapError,
    InvalidMessage,
    WindowFull,
)
from ..net.certificates import TlsContexts
from ..net.connection import Connection
from ..protocol import classic, v2
from ..protocol.close import Closed
from ..protocol.keys import Order, PreSharedKey
from ..protocol.routing import topic_hash
from ..protocol.session import Event, MessagesReceived
from .link import ClientLink
from .publisher import PublisherLink
from .values import Gap, Item, Message, Position, Start

MAX_TOPICS_PER_LINK = 1000
"""Topics on one connection: a consumer takes ten times as many."""

MAX_REMEMBERED_NUMBERS = 10_000
"""Publishers on a topic whose last batch a subscription remembers."""

MAX_WAITING_MESSAGES = 1000
"""Messages that a subscription keeps for an application that is slow, before it stops reading."""

MAX_WAITING_CHARACTERS = 16 * 1024 * 1024
"""Characters of their data, likewise: large messages are fewer."""

OPEN_SECONDS = 10.0
"""How long a publisher or a subscriber waits for a node before it gives up: two reconnect delays."""


def connect(
    config: str | Path | ClientConfig | None = None,
    *,
    producers: Sequence[str] = (),
    consumers: Sequence[str] = (),
    psk: str | PreSharedKey | None = None,
    hello_order: Order = Order.DOCUMENT,
    limits: Limits | None = None,
    tls: Tls | None = None,
    open_seconds: float = OPEN_SECONDS,
) -> Client:
    """Return a client, to be used in `async with`; nothing is opened before it is needed.

    Args:
        config: A configuration of role `demo`, or its file; instead of the keywords.
        producers: Addresses as `host:port/produce`, with TLS `wss://host:port/produce`.
        consumers: Addresses as `host:port/subscribe`, in the order that the producers have too.
        psk: The pre-shared key; without it, it is looked up as the configuration says.
        hello_order: The digest order; `Order.REVERSED` for the original TypeScript nodes.
        limits: Other limits than the defaults.
        tls: Whom to trust at wss:// addresses other than whom the system does, and a certificate.
        open_seconds: How long to wait for a node that does not answer.

    Raises:
        ConfigError: The configuration, the addresses, the key or a certificate cannot be used.
    """
    if config is None:
        config = ClientConfig(
            producers=list(producers),
            consumers=list(consumers),
            hello_order=hello_order,
            limits=limits or Limits(),
            tls=tls or Tls(),
        )
        check_addresses(config)
    elif not isinstance(config, ClientConfig):
        config = load_config(config, ClientConfig)
    if psk is None:
        psk = load_psk(config)
    elif isinstance(psk, str):
        psk = PreSharedKey(psk)
    return Client(config, psk, open_seconds, TlsContexts(config))


class Client:
    """Publish and subscribe; made by `connect`."""

    def __init__(
        self, config: ClientConfig, psk: PreSharedKey, open_seconds: float, tls: TlsContexts
    ) -> None:
        self._config, self._psk, self.open_seconds, self._tls = config, psk, open_seconds, tls
        self._producers = config.produce_addresses
        self._consumers = config.subscribe_addresses
        self._publisher: PublisherLink | None = None
        self._subscriptions: set[Subscription[Any]] = set()
        self._closed = False

    @property
    def lost_in_flight(self) -> int:
        """Return how many messages may be lost that went to producers that only speak classic."""
        return self._publisher.lost_in_flight if self._publisher is not None else 0

    async def publish(self, topic: str, *data: str) -> None:
        """Publish messages, and wait until the consumer of the topic has confirmed them.

        They are sent again for as long as that takes, through any producer, and stored once. A producer
        that only speaks classic confirms nothing: `lost_in_flight` says how many may be lost there.

        Raises:
            InvalidMessage: The topic or a message is longer than the nodes take, or cannot be UTF-8.
            PublishError: The consumer refused them, e.g. since its disk is full.
            ConnectError: No producer answers; the messages may have been stored.
            AuthenticationError: The producers have another key.
            RuntimeError: The client was closed.
        """
        sizes = self._check(topic, data)
        link = self._publishing()
        await link.drain()
        await asyncio.shield(link.publish(topic, data, sizes))

    def publish_nowait(self, topic: str, *data: str) -> None:
        """Publish messages without waiting; `flush` waits for all and says what went wrong.

        Raises:
            InvalidMessage: As for `publish`.
            WindowFull: So much is not confirmed yet that you have to wait; see `drain`.
            RuntimeError: The client was closed.
        """
        sizes = self._check(topic, data)
        link = self._publishing()
        if link.full:
            raise WindowFull("too much is not confirmed yet: `await client.drain()` first")
        link.publish_nowait(topic, data, sizes)

    async def drain(self) -> None:
        """Wait until `publish_nowait` can take messages.

        Raises:
            ConnectError: No producer answers.
        """
        await self._publishing().drain()

    async def flush(self) -> None:
        """Wait until all that was published is confirmed.

        Raises:
            PublishError: Something that was published without waiting was refused.
            ConnectError: No producer answers, or none did for something published without waiting.
        """
        if self._publisher is not None:
            await self._publisher.flush()

    @overload
    def subscribe(
        self, *topics: str, start: Start = "latest", follow: bool = True, on_gap: Literal["raise"] = "raise"
    ) -> Subscription[Message]: ...

    @overload
    def subscribe(
        self, *topics: str, start: Start = "latest", follow: bool = True, on_gap: Literal["yield"]
    ) -> Subscription[Message | Gap]: ...

    def subscribe(
        self,
        *topics: str,
        start: Start = "latest",
        follow: bool = True,
        on_gap: Literal["raise", "yield"] = "raise",
    ) -> Subscription[Any]:
        """Return an iterator over the messages of some topics.

        Args:
            topics: At least one.
            start: Where to begin; an offset or a position is of one topic.
            follow: False to end with what was published before.
            on_gap: Whether messages that are gone raise a `GapError`, after which the iteration can go on, or
                yield a `Gap`.

        Raises:
            InvalidMessage: A topic is longer than the nodes take, or cannot be UTF-8.
            ValueError: The start is of one topic, and there are several.
            RuntimeError: The client was closed.
        """
        self._check_open()
        if not topics:
            raise InvalidMessage("no topic to subscribe to: expected at least one")
        for topic in topics:
            self._check_topic(topic)
        if isinstance(start, int | Position) and len(set(topics)) > 1:
            raise ValueError("an offset is of one topic, and there are several")
        subscription: Subscription[Any] = Subscription(
            self, dict.fromkeys(topics), start, on_gap, follow=follow
        )
        self._subscriptions.add(subscription)
        return subscription

    async def close(self, *, confirm: bool = True) -> None:
        """Close every connection, after all that was published is confirmed.

        Args:
            confirm: False to wait only until a producer has read it.

        Raises:
            PublishError: As for `flush`.
            ConnectError: As for `flush`, or not all is confirmed within `open_seconds`.
        """
        link = self._publisher
        await self._close(None if link is None else link.flush if confirm else link.all_sent)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        # With an exception under way, what was not confirmed does not matter.
        await self._close(self._publisher.flush if self._publisher is not None and kind is None else None)

    async def _close(self, finish: Callable[[], Awaitable[None]] | None) -> None:
        # Not only once, for it may have been cancelled.
        self._closed = True
        # The publisher gives up after the same time, and then has none that could be counted.
        waiting = self._publisher.unconfirmed if self._publisher is not None else 0
        try:
            if finish is not None:
                async with asyncio.timeout(self.open_seconds):
                    await finish()
        except TimeoutError:
            assert self._publisher is not None
            left = self._publisher.unconfirmed or waiting
            raise ConnectError(f"{left} messages were not confirmed") from None
        finally:
            closing = [subscription.close() for subscription in list(self._subscriptions)]
            if self._publisher is not None:
                closing.append(self._publisher.stop())
            await asyncio.gather(*closing)

    def subscriber_links(
        self, topics: Iterable[str], start: Start, subscription: Subscription[Any]
    ) -> list[SubscriberLink]:
        """Return links, not started, to the consumers of some topics."""
        consumers: dict[Address, list[str]] = {}
        for topic in topics:
            consumer = self._consumers[topic_hash(topic) % len(self._consumers)]
            consumers.setdefault(consumer, []).append(topic)
        return [
            SubscriberLink(consumer, its[begin : begin + MAX_TOPICS_PER_LINK], start, subscription, self)
            for consumer, its in consumers.items()
            for begin in range(0, len(its), MAX_TOPICS_PER_LINK)
        ]

    @property
    def settings(self) -> tuple[PreSharedKey, ClientConfig, TlsContexts]:
        """Return what a link needs."""
        return self._psk, self._config, self._tls

    def forget(self, subscription: Subscription[Any]) -> None:
        """Let go of a subscription that was closed."""
        self._subscriptions.discard(subscription)

    def _publishing(self) -> PublisherLink:
        if self._publisher is None:
            first = random.randrange(len(self._producers))  # noqa: S311 - to spread the load
            addresses = self._producers[first:] + self._producers[:first]
            self._publisher = PublisherLink(addresses, *self.settings, self.open_seconds)
        return self._publisher

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed: make another one with wsqueue.connect()")

    def _check(self, topic: str, data: Sequence[str]) -> list[int]:
        """Return the bytes of each message; all are good."""
        self._check_open()
        self._check_topic(topic)
        if not data:
            raise InvalidMessage("no data to publish: expected at least one message")
        limit = self._config.limits.max_message_bytes
        sizes: list[int] = []
        for one in data:
            try:
                size = len(classic.encode(classic.Message(data=one, topic=topic)))
            except UnicodeEncodeError:
                raise InvalidMessage("the data holds a lone surrogate, which UTF-8 lacks") from None
            if size > limit:
                raise InvalidMessage(f"the message has {size} bytes as JSON, at most {limit}")
            sizes.append(size)
        return sizes

    def _check_topic(self, topic: str) -> None:
        limit = self._config.limits.max_topic_bytes
        try:
            size = len(topic.encode())
        except UnicodeEncodeError:
            raise InvalidMessage("the topic holds a lone surrogate, which UTF-8 lacks") from None
        if size > limit:
            raise InvalidMessage(f"the topic has {size} bytes, at most {limit}")


class Subscription(Generic[Item]):
    """Iterate over the messages of some topics, in the order of each topic; made by `Client.subscribe`.

    Use it as `async for`, or first as `async with` to know that it has subscribed. It reconnects by itself
    and goes on where it was; what is gone by then is a gap. A consumer that only speaks classic keeps
    nothing: what is published there meanwhile is missed.
    """

    def __init__(
        self,
        client: Client,
        topics: Iterable[str],
        start: Start,
        on_gap: Literal["raise", "yield"],
        *,
        follow: bool,
    ) -> None:
        self._client = client
        self._on_gap, self._follow = on_gap, follow
        self._links = client.subscriber_links(topics, start, self)
        self._items: deque[Message | Gap] = deque()
        self._characters = 0
        self._paused: set[Connection] = set()
        self._changed = asyncio.Event()
        self._closed = False

    async def close(self) -> None:
        """Unsubscribe, and end the iteration after what has been received."""
        self._closed = True
        self._client.forget(self)
        self._resume()
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
                await asyncio.gather(*(link.wait_open(self._client.open_seconds) for link in links))
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        """Return the next message, or gap.

        Raises:
            GapError: Messages are gone, and gaps are to be raised; the iteration can go on.
            ConnectError: A consumer does not answer, or refuses the subscription for good.
            AuthenticationError: A consumer has another key.
        """
        if not self._items and not self._closed:
            # A link that gave up tries once more, now that the application asks again.
            for link in self._links:
                link.start()
        while not self._items:
            if self._closed or (not self._follow and all(link.at_end for link in self._links)):
                raise StopAsyncIteration
            for link in self._links:
                link.raise_if_hopeless()
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        if isinstance(item, Gap):
            if self._on_gap == "raise":
                raise GapError(item.topic, item.missed)
        else:
            self._characters -= len(item.data)
            if self._paused and not self._full(MAX_WAITING_MESSAGES // 2, MAX_WAITING_CHARACTERS // 2):
                self._resume()
        return cast("Item", item)

    def add(self, link: SubscriberLink) -> None:
        """Use one more link, for a topic that another cannot have."""
        self._links.append(link)
        if not self._closed:
            link.start()

    def changed(self) -> None:
        """Look again, for something happened."""
        self._changed.set()

    def take(self, items: list[Message | Gap]) -> None:
        """Keep what came until the application takes it."""
        if self._closed or not items:
            return
        self._items.extend(items)
        self._characters += sum(len(item.data) for item in items if isinstance(item, Message))
        self._changed.set()

    def pause_if_full(self, connection: Connection) -> None:
        """Stop reading while too much waits for the application."""
        if self._full() and not self._closed and connection not in self._paused:
            self._paused.add(connection)
            connection.pause_reading()

    def forget(self, connection: Connection) -> None:
        """Let go of a connection that is gone."""
        self._paused.discard(connection)

    def _resume(self) -> None:
        paused = list(self._paused)
        self._paused.clear()
        for connection in paused:
            connection.resume_reading()

    def _full(self, messages: int = MAX_WAITING_MESSAGES, characters: int = MAX_WAITING_CHARACTERS) -> bool:
        return len(self._items) > messages or self._characters > characters


class _Subscribed(msgspec.Struct):
    """Hold how far a subscription of one topic has come.

    Attributes:
        start: Where to begin, until it has begun.
        log: The id of the log.
        offset: Of the message that comes next.
        end: What was published before is before this offset.
        begun: Whether the consumer has answered on this connection.
    """

    start: Start
    log: str = ""
    offset: int = 0
    end: int = 0
    begun: bool = False


class SubscriberLink(ClientLink):
    """Subscribe to topics of one consumer, and go on where it was after a reconnect.

    Args:
        consumer: Its address, whose path lacks the topic.
        topics: At least one.
        start: Where to begin.
        subscription: Gets the messages.
        client: Whose link this is.
    """

    def __init__(
        self,
        consumer: Address,
        topics: Sequence[str],
        start: Start,
        subscription: Subscription[Any],
        client: Client,
    ) -> None:
        # A classic consumer takes the path for what is wanted, one that speaks v2 waits for packets.
        address = consumer.with_path(f"{consumer.path}/{quote(topics[0], safe='')}")
        super().__init__([address], *client.settings)
        self._consumer, self._start = consumer, start
        self._topics = {topic: _Subscribed(start) for topic in topics}
        self._subscription, self._client = subscription, client
        # The last batch of each publisher on each topic, so that one that was stored twice is taken once.
        self._numbers: OrderedDict[tuple[str, str], int] = OrderedDict()

    @property
    def ready(self) -> bool:
        """Tell whether the consumer delivers all topics."""
        return self.connection is not None and all(topic.begun for topic in self._topics.values())

    @property
    def at_end(self) -> bool:
        """Tell whether all has come that was published before."""
        return self.ready and all(topic.offset >= topic.end for topic in self._topics.values())

    def up(self) -> None:
        """Subscribe."""
        assert self.connection is not None
        if self.v2:
            self.connection.send([v2.encode(self._subscribe(topic)) for topic in self._topics])
        else:
            self._do_without_packets()
        if self._was_up:
            # One that comes back while the application is stuck must not bring a read each time.
            self._subscription.pause_if_full(self.connection)
        super().up()

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Let go of a connection."""
        for topic in self._topics.values():
            topic.begun = False
        self._subscription.forget(connection)
        super().lost(connection, closed)

    def received_events(self, events: list[Event]) -> None:
        """Hand messages and gaps to the subscription."""
        items: list[Message | Gap] = []
        for event in events:
            if isinstance(event, v2.Deliver):
                self._take(event, items)
            elif isinstance(event, MessagesReceived):
                items += [Message(message.topic, message.data) for message in event.messages]
            elif isinstance(event, v2.Subscribed) and event.topic in self._topics:
                topic = self._topics[event.topic]
                topic.log, topic.offset, topic.end, topic.begun = event.log, event.offset, event.end, True
                self.notify()
            elif isinstance(event, v2.Gap) and event.topic in self._topics:
                self._topics[event.topic].offset = event.offset
                items.append(Gap(event.topic, event.missed))
            elif isinstance(event, v2.Draining):
                self.leave(event.retry_seconds)
        self._subscription.take(items)
        # Until all topics have begun, that answer must not wait behind messages of the others.
        if self.connection is not None and self.ready:
            self._subscription.pause_if_full(self.connection)

    def notify(self) -> None:
        """Let whoever waits look again."""
        super().notify()
        self._subscription.changed()

    def _subscribe(self, name: str) -> v2.Subscribe:
        topic = self._topics[name]
        start = topic.start if not topic.log else Position(topic.log, topic.offset)
        if isinstance(start, Position):
            return v2.Subscribe(name, "offset", log=start.log, offset=start.offset)
        if isinstance(start, int):
            return v2.Subscribe(name, "offset", offset=start)
        if isinstance(start, datetime):
            return v2.Subscribe(name, "time", time=start.timestamp())
        return v2.Subscribe(name, start)

    def _do_without_packets(self) -> None:
        """Leave all topics but the first to other links: a classic connection has one."""
        first, *others = self._topics
        self._topics = {first: self._topics[first]}
        self._topics[first].begun = True
        for topic in others:
            self._subscription.add(
                SubscriberLink(self._consumer, [topic], self._start, self._subscription, self._client)
            )

    def _take(self, event: v2.Deliver, items: list[Message | Gap]) -> None:
        topic = self._topics.get(event.topic)
        if topic is None:
            return
        topic.offset = event.offset + len(event.data)
        if event.publisher:
            key = (event.topic, event.publisher)
            if event.number <= self._numbers.get(key, 0):
                return
            self._numbers[key] = event.number
            self._numbers.move_to_end(key)
            if len(self._numbers) > MAX_REMEMBERED_NUMBERS:
                self._numbers.popitem(last=False)
        log, offset = topic.log, event.offset
        items += [Message(event.topic, data, log, offset + index) for index, data in enumerate(event.data)]
