"""The asyncio client: publishes through any producer, subscribes at the consumer of each topic.

::

    async with wsqueue.connect("/etc/wsqueue/demo.toml") as client:
        await client.publish("news", "hello")
        async for message in client.subscribe("news"):
            print(message.topic, message.data)
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import secrets
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar, cast, overload
from urllib.parse import quote

import msgspec

from ..config import model as configuration
from ..config.addresses import Address
from ..config.model import DemoConfig, Limits, Tls
from ..errors import (
    AuthenticationError,
    CloseCode,
    Closed,
    ConnectError,
    GapError,
    InvalidMessage,
    PublishError,
    WindowFull,
    WsqueueError,
)
from ..net.connection import Connection
from ..net.link import SLICE_BYTES, Link
from ..net.tls import TlsContexts
from ..protocol import classic, v2
from ..protocol.hello import Order, PreSharedKey
from ..protocol.routing import topic_hash
from ..protocol.session import Event, Received

WINDOW_BYTES = 16 * 1024 * 1024
"""What may be published and not confirmed: above what a fast network and a disk have under way."""

WINDOW_MESSAGES = 100_000
"""The same in messages: small ones take more than their bytes."""

BATCH_BYTES = 64 * 1024
"""Where a batch ends: its fixed cost is small then, and so is the time to fill it."""

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


class Position(msgspec.Struct, frozen=True):
    """Say where a subscription begins: at an offset of a log.

    Attributes:
        log: The id of the log; offsets of another log mean nothing.
        offset: Of the first message that is wanted.
    """

    log: str
    offset: int

    def __str__(self) -> str:
        return f"{self.log}:{self.offset}"


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message of a topic.

    Attributes:
        topic: Where it was published.
        data: What was published.
        log: The id of the log that it is in; "" from a consumer that keeps none.
        offset: Its place there.
    """

    topic: str
    data: str
    log: str = ""
    offset: int = 0

    @property
    def after(self) -> Position:
        """Return where a subscription begins that goes on after this message."""
        return Position(self.log, self.offset + 1)


class Gap(msgspec.Struct, frozen=True):
    """Messages that a subscriber has not got and that are gone.

    Attributes:
        topic: Where.
        missed: How many, None when nobody knows: a consumer died with all that it kept.
    """

    topic: str
    missed: int | None


Start = Literal["latest", "earliest"] | int | Position | datetime
"""Where a subscription begins: at what comes, at the earliest message that is kept, at an offset of the
log that the consumer has now, at a position, or at the first message that is not older than a time."""

Item = TypeVar("Item", bound="Message | Gap")


def connect(
    config: str | Path | DemoConfig | None = None,
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
        config = DemoConfig(
            producers=list(producers),
            consumers=list(consumers),
            hello_order=hello_order,
            limits=limits or Limits(),
            tls=tls or Tls(),
        )
        configuration.check_addresses(config)
    elif not isinstance(config, DemoConfig):
        config = configuration.load(config, DemoConfig)
    if psk is None:
        psk = configuration.load_psk(config)
    elif isinstance(psk, str):
        psk = PreSharedKey(psk)
    return Client(config, psk, open_seconds, TlsContexts(config))


class Client:
    """Publish and subscribe; made by `connect`."""

    def __init__(self, config: DemoConfig, psk: PreSharedKey, open_seconds: float, tls: TlsContexts) -> None:
        self._config, self._psk, self.open_seconds, self._tls = config, psk, open_seconds, tls
        self._producers = config.produce_addresses
        self._consumers = config.subscribe_addresses
        self._publisher: _PublisherLink | None = None
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
        await link.room()
        await asyncio.shield(link.publish(topic, data, sizes))

    def publish_nowait(self, topic: str, *data: str) -> None:
        """Publish messages without waiting; `flush` waits for all and says what went wrong.

        Raises:
            InvalidMessage: As for `publish`.
            WindowFull: So much is not confirmed yet that you have to wait; see `room`.
            RuntimeError: The client was closed.
        """
        sizes = self._check(topic, data)
        link = self._publishing()
        if link.full:
            raise WindowFull("too much is not confirmed yet: `await client.room()` first")
        link.publish_nowait(topic, data, sizes)

    async def room(self) -> None:
        """Wait until `publish_nowait` can take messages.

        Raises:
            ConnectError: No producer answers.
        """
        await self._publishing().room()

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
    ) -> list[_SubscriberLink]:
        """Return links, not started, to the consumers of some topics."""
        consumers: dict[Address, list[str]] = {}
        for topic in topics:
            consumer = self._consumers[topic_hash(topic) % len(self._consumers)]
            consumers.setdefault(consumer, []).append(topic)
        return [
            _SubscriberLink(consumer, its[begin : begin + MAX_TOPICS_PER_LINK], start, subscription, self)
            for consumer, its in consumers.items()
            for begin in range(0, len(its), MAX_TOPICS_PER_LINK)
        ]

    @property
    def settings(self) -> tuple[PreSharedKey, DemoConfig, TlsContexts]:
        """Return what a link needs."""
        return self._psk, self._config, self._tls

    def forget(self, subscription: Subscription[Any]) -> None:
        """Let go of a subscription that was closed."""
        self._subscriptions.discard(subscription)

    def _publishing(self) -> _PublisherLink:
        if self._publisher is None:
            first = random.randrange(len(self._producers))  # noqa: S311 - to spread the load
            addresses = self._producers[first:] + self._producers[:first]
            self._publisher = _PublisherLink(addresses, *self.settings, self.open_seconds)
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

    def add(self, link: _SubscriberLink) -> None:
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


class _ClientLink(Link):
    """Keep a connection up for an application, and tell it when that is hopeless."""

    never_up_level = logging.INFO  # the application gets an error that says as much

    def __init__(
        self, addresses: Sequence[Address], psk: PreSharedKey, config: DemoConfig, tls: TlsContexts
    ) -> None:
        super().__init__(addresses, psk, config, tls)
        self._changed = asyncio.Event()
        self._was_up = False

    @property
    def ready(self) -> bool:
        """Tell whether the connection does what it is for."""
        return self.open

    async def wait_open(self, seconds: float) -> None:
        """Wait until the connection is ready.

        Raises:
            ConnectError: No node answers: within `seconds` once one has, else on the first try.
            AuthenticationError: All nodes have another key.
        """
        self.start()
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        try:
            while not self.ready:
                self.raise_if_hopeless()
                if self.connection is not None and self.connection.session.established:
                    # It is up and slow: that is backpressure, which takes as long as it takes.
                    deadline = None
                elif deadline is None:
                    deadline = loop.time() + seconds
                self._changed.clear()
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
        except TimeoutError:
            raise ConnectError(self._failure_text()) from None

    def raise_if_hopeless(self) -> None:
        """Raise when every address refuses for good, or none ever answered.

        Raises:
            ConnectError: Trying longer would not help.
            AuthenticationError: It would not help, for the keys differ.
        """
        failures = [self.failures.get(address) for address in self.addresses]
        closed = [failure for failure in failures if failure is not None]
        if len(closed) < len(failures) or self.connection is not None:
            return
        if all(failure.code == CloseCode.WRONG_ANSWER for failure in closed):
            raise AuthenticationError(self._failure_text())
        if not self._was_up or not any(failure.reconnect for failure in closed):
            raise ConnectError(self._failure_text())

    def up(self) -> None:
        """Tell whoever waits."""
        self._was_up = True
        self.notify()

    def writable(self, connection: Connection) -> None:
        """Tell whoever waits."""
        self.notify()

    def retry(self, closed: Closed) -> bool:
        """Go on unless every address refuses for good."""
        self.notify()
        failures = self.failures
        return len(failures) < len(self.addresses) or any(one.reconnect for one in failures.values())

    def notify(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()

    def _failure_text(self) -> str:
        nodes = (f"{address}: {self.failures.get(address, 'no answer')}" for address in self.addresses)
        return "no node answers: " + "; ".join(nodes)


class _Batch(msgspec.Struct):
    """Hold messages until they are confirmed.

    Attributes:
        topic: Of all messages.
        data: The messages, until they are sent for the first time.
        size: Bytes that count for the window.
        confirmed: Whoever waits.
        payload: The packet that publishes them.
    """

    topic: str
    data: list[str]
    size: int = 0
    confirmed: list[asyncio.Future[None]] = msgspec.field(default_factory=list)
    payload: bytes = b""


class _PublisherLink(_ClientLink):
    """Publish through some producer: batch, number, send, and send again until it is confirmed.

    Args:
        open_seconds: How long to do without a connection before what is not confirmed fails.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        psk: PreSharedKey,
        config: DemoConfig,
        tls: TlsContexts,
        open_seconds: float,
    ) -> None:
        super().__init__(addresses, psk, config, tls)
        self.lost_in_flight = 0
        self._open_seconds = open_seconds
        self._secret = base64.b64encode(secrets.token_bytes(v2.NONCE_BYTES)).decode()
        self._number = 0
        self._batch_bytes = min(BATCH_BYTES, config.limits.max_message_bytes)
        # By topic, what is not numbered yet; by number, what is not confirmed; which of it is to be sent.
        self._forming: dict[str, _Batch] = {}
        self._outstanding: dict[int, _Batch] = {}
        self._unsent: deque[int] = deque()
        # The numbers of each topic that are outstanding, in their order.
        self._outstanding_of: dict[str, dict[int, None]] = {}
        self._bytes = self.unconfirmed = 0
        self._error: WsqueueError | None = None
        self._flushing = False
        self._turn = asyncio.Lock()
        self._guard: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Tell whether as much is not confirmed as may be."""
        return self._bytes >= WINDOW_BYTES or self.unconfirmed >= WINDOW_MESSAGES

    def publish(self, topic: str, data: Sequence[str], sizes: Sequence[int]) -> asyncio.Future[Any]:
        """Publish messages; the future is done when they are confirmed or refused."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[None]] = []
        for batch in self._form(topic, data, sizes):
            futures.append(loop.create_future())
            batch.confirmed.append(futures[-1])
        return futures[0] if len(futures) == 1 else asyncio.gather(*futures)

    def publish_nowait(self, topic: str, data: Sequence[str], sizes: Sequence[int]) -> None:
        """Publish messages; what goes wrong is raised by `flush`."""
        self._form(topic, data, sizes)

    async def room(self) -> None:
        """Wait until more may be published; who came first goes first."""
        if self.full or self._turn.locked():
            async with self._turn:
                while self.full:
                    await self._until_changed()

    async def flush(self) -> None:
        """Wait until all that was published so far is confirmed.

        Raises:
            WsqueueError: Something nobody waited for was not.
        """
        last = self._number_forming()
        while self._outstanding and next(iter(self._outstanding)) <= last:
            await self._until_changed()
        if not self.v2:
            await self.all_confirmed()
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def all_sent(self) -> None:
        """Wait until all that was published so far is sent.

        Raises:
            WsqueueError: Something nobody waited for was refused.
        """
        last = self._number_forming()
        while self._unsent and self._unsent[0] <= last:
            await self._until_changed()
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def stop(self) -> None:
        """Close the connection, and stay down; what is not confirmed fails."""
        if self._guard is not None:
            self._guard.cancel()
        await super().stop()
        self._fail_all(ConnectError("the client was closed"))

    def up(self) -> None:
        """Say who publishes, and send what is not confirmed."""
        assert self.connection is not None
        self._unsent = deque(self._outstanding)
        if self.v2:
            self.connection.send_packet(v2.Publisher(self._secret))
        self._send()
        super().up()

    def writable(self, connection: Connection) -> None:
        """Send more."""
        self._send()
        super().writable(connection)

    def down(self, closed: Closed, lost: int) -> None:
        """Count what a classic connection may have lost; what is not confirmed is sent again."""
        self.lost_in_flight += lost
        if closed.data_refused:
            # Whatever it was, sending it again would end the same way.
            self._fail_all(PublishError("invalid", f"the producer does not take it: {closed.reason}"))
        self._keep_guard()

    def received_events(self, events: list[Event]) -> None:
        """Take what the producer confirms and refuses."""
        for event in events:
            if isinstance(event, v2.Ack):
                for first, last in event.numbers:
                    self._acknowledge(first, last)
            elif isinstance(event, v2.Refused):
                batch = self._let_go(event.number)
                if batch is not None:
                    self._fail(batch, PublishError(event.code, event.reason))
            elif isinstance(event, v2.Draining):
                self.leave(event.retry_seconds)
                if self.connection is not None:
                    self.connection.close(CloseCode.NORMAL)
        self.notify()

    def _form(self, topic: str, data: Sequence[str], sizes: Sequence[int]) -> list[_Batch]:
        """Put messages into batches that no producer finds too large, and return those."""
        batches: list[_Batch] = []
        for one, size in zip(data, sizes, strict=True):
            batch = self._forming.get(topic)
            if batch is not None and batch.size + size > self._batch_bytes:
                self._number_batch(batch)
                batch = None
            if batch is None:
                batch = self._forming[topic] = _Batch(topic, [])
            if not batches or batches[-1] is not batch:
                batches.append(batch)
            batch.data.append(one)
            batch.size += size
            self._bytes += size
            if batch.size >= self._batch_bytes:
                self._number_batch(batch)
        self.unconfirmed += len(data)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._number_all)
        self._keep_guard()
        return batches

    def _number_all(self) -> None:
        self._flushing = False
        self._number_forming()
        self._send()

    def _number_forming(self) -> int:
        """Number all that is not numbered yet, and return the last number."""
        for batch in list(self._forming.values()):
            self._number_batch(batch)
        return self._number

    def _number_batch(self, batch: _Batch) -> None:
        del self._forming[batch.topic]
        self._number += 1
        numbers = self._outstanding_of.setdefault(batch.topic, {})
        packet = v2.Publish(
            self._number,
            next(reversed(numbers), 0),
            batch.topic,
            len(batch.data),
            v2.encode_data(batch.data),
        )
        batch.payload = v2.encode(packet)
        numbers[self._number] = None
        self._outstanding[self._number] = batch
        self._unsent.append(self._number)

    def _send(self) -> None:
        while self._unsent and self.open:
            assert self.connection is not None
            size, numbers = 0, []
            while self._unsent and size < SLICE_BYTES:
                number = self._unsent.popleft()
                if number in self._outstanding:
                    numbers.append(number)
                    size += self._outstanding[number].size
            batches = [self._outstanding[number] for number in numbers]
            if self.v2:
                self.connection.send([batch.payload for batch in batches])
                continue
            self.send(
                [
                    classic.encode(classic.Message(data, batch.topic))
                    for batch in batches
                    for data in batch.data
                ]
            )
            # A classic producer confirms nothing.
            for number in numbers:
                self._acknowledge(number, number)
        self.notify()

    def _acknowledge(self, first: int, last: int) -> None:
        if last - first < len(self._outstanding):
            numbers = list(range(first, last + 1))
        else:
            numbers = [number for number in self._outstanding if first <= number <= last]
        for number in numbers:
            batch = self._let_go(number)
            if batch is not None:
                for future in batch.confirmed:
                    if not future.done():
                        future.set_result(None)

    def _let_go(self, number: int) -> _Batch | None:
        batch = self._outstanding.pop(number, None)
        if batch is not None:
            numbers = self._outstanding_of[batch.topic]
            del numbers[number]
            if not numbers:
                del self._outstanding_of[batch.topic]
            self._bytes -= batch.size
            self.unconfirmed -= len(batch.data)
        return batch

    def _fail(self, batch: _Batch, error: WsqueueError) -> None:
        if not batch.confirmed:
            self._error = self._error or error
        for future in batch.confirmed:
            if not future.done():
                future.set_exception(error)
                # Nobody may be waiting any more.
                future.exception()

    def _fail_all(self, error: WsqueueError) -> None:
        self._number_forming()
        for number in list(self._outstanding):
            outstanding = self._let_go(number)
            if outstanding is not None:
                self._fail(outstanding, error)
        self._unsent.clear()
        self.notify()

    def _keep_guard(self) -> None:
        """See to it that what is not confirmed fails when there is no connection for too long."""
        if not self.open and (self._guard is None or self._guard.done()):
            self._guard = asyncio.create_task(self._wait_or_fail())

    async def _wait_or_fail(self) -> None:
        try:
            await self.wait_open(self._open_seconds)
        except ConnectError as error:
            self._fail_all(error)

    async def _until_changed(self) -> None:
        changed = self._changed
        changed.clear()
        await changed.wait()


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


class _SubscriberLink(_ClientLink):
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
            elif isinstance(event, Received):
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
                _SubscriberLink(self._consumer, [topic], self._start, self._subscription, self._client)
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
