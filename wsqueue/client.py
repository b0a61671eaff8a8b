"""The asyncio client: publishes through any producer, subscribes at the consumer of each topic.

::

    async with wsqueue.connect("/etc/wsqueue/demo.toml") as client:
        await client.publish("news", "hello")
        async for message in client.subscribe("news"):
            print(message.topic, message.data)
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote

import msgspec

from . import config as configuration
from . import packets
from .addresses import Address
from .config import DemoConfig, Limits, Tls
from .connection import Connection
from .errors import AuthenticationError, CloseCode, Closed, ConnectError, InvalidMessage
from .hello import Order, PreSharedKey
from .link import Link
from .routing import topic_hash
from .session import Event, Received
from .tls import TlsContexts

MAX_WAITING_MESSAGES = 1000
"""Messages that a subscription keeps for an application that is slow, before it stops reading."""

MAX_WAITING_CHARACTERS = 16 * 1024 * 1024
"""Characters of their data, likewise: large messages are fewer."""

OPEN_SECONDS = 10.0
"""How long a publisher or a subscriber waits for a node before it gives up: two reconnect delays."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message of a topic."""

    topic: str
    data: str


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
        self._publishing: _ClientLink | None = None
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    @property
    def lost_in_flight(self) -> int:
        """Return how many published messages may be lost, for their connection broke under them."""
        return self._publishing.lost_in_flight if self._publishing is not None else 0

    async def publish(self, topic: str, data: str) -> None:
        """Send one message through a producer that answers, waiting while it is slow.

        At most once: when the connection breaks, `lost_in_flight` says how many it may have taken.

        Raises:
            InvalidMessage: The topic or the message is longer than the nodes take, or cannot be UTF-8.
            ConnectError: No producer answers.
            AuthenticationError: The producers have another key.
            RuntimeError: The client was closed.
        """
        self._check_open()
        payload = self._payload(topic, data)
        link = self._publishing
        if link is None:
            first = random.randrange(len(self._producers))  # noqa: S311 - to spread the load
            link = self._link(self._producers[first:] + self._producers[:first])
            self._publishing = link
        while not link.open:
            await link.wait_open(self.open_seconds)
        link.send([payload])

    async def flush(self) -> None:
        """Wait until the producer has dealt with all that was published, or it is lost."""
        if self._publishing is not None:
            await self._publishing.all_confirmed()

    def subscribe(self, *topics: str) -> Subscription:
        """Return an iterator over the messages of some topics.

        Raises:
            InvalidMessage: A topic is longer than the nodes take, or cannot be UTF-8.
            RuntimeError: The client was closed.
        """
        self._check_open()
        if not topics:
            raise InvalidMessage("no topic to subscribe to: expected at least one")
        for topic in topics:
            self._check_topic(topic)
        subscription = Subscription(self, dict.fromkeys(topics))
        self._subscriptions.add(subscription)
        return subscription

    async def close(self) -> None:
        """Close every connection, after the producer has read all that was published."""
        self._closed = True
        closing = [subscription.close() for subscription in list(self._subscriptions)]
        if self._publishing is not None:
            closing.append(self._publishing.stop())
        await asyncio.gather(*closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def subscribe_link(
        self, topic: str, on_messages: Callable[[Connection, list[Message]], None]
    ) -> _ClientLink:
        """Return a link, not started, to the consumer of a topic."""
        consumer = self._consumers[topic_hash(topic) % len(self._consumers)]
        link = self._link([consumer.with_path(f"{consumer.path}/{quote(topic, safe='')}")])
        link.on_messages = on_messages
        return link

    def forget(self, subscription: Subscription) -> None:
        """Let go of a subscription that was closed."""
        self._subscriptions.discard(subscription)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed: make another one with wsqueue.connect()")

    def _link(self, addresses: list[Address]) -> _ClientLink:
        return _ClientLink(addresses, self._psk, self._config.hello_order, self._config.limits, self._tls)

    def _payload(self, topic: str, data: str) -> bytes:
        self._check_topic(topic)
        try:
            payload = packets.encode(packets.Message(data=data, topic=topic))
        except UnicodeEncodeError:
            raise InvalidMessage("the data holds a lone surrogate, which UTF-8 lacks") from None
        if len(payload) > self._config.limits.max_message_bytes:
            limit = self._config.limits.max_message_bytes
            raise InvalidMessage(f"the message has {len(payload)} bytes as JSON, at most {limit}")
        return payload

    def _check_topic(self, topic: str) -> None:
        limit = self._config.limits.max_topic_bytes
        try:
            size = len(topic.encode())
        except UnicodeEncodeError:
            raise InvalidMessage("the topic holds a lone surrogate, which UTF-8 lacks") from None
        if size > limit:
            raise InvalidMessage(f"the topic has {size} bytes, at most {limit}")


class Subscription:
    """Iterate over the messages of some topics, in the order of each topic; made by `Client.subscribe`.

    Use it as `async for`, or first as `async with` to know that it has subscribed. It reconnects by
    itself; what was published meanwhile is missed, for the classic protocol keeps nothing.
    """

    def __init__(self, client: Client, topics: Iterable[str]) -> None:
        self._client = client
        self._links = [client.subscribe_link(topic, self._take) for topic in topics]
        self._messages: deque[Message] = deque()
        self._characters = 0
        self._paused: set[Connection] = set()
        self._changed = asyncio.Event()
        for link in self._links:
            link.on_change = self._changed.set
            # One that comes back while the application is stuck must not bring a read each time.
            link.on_up, link.on_lost = self._pause_if_full, self._paused.discard
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
            await asyncio.gather(*(link.wait_open(self._client.open_seconds) for link in self._links))
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """Return the next message.

        Raises:
            ConnectError: A consumer does not answer, or refuses the subscription for good.
            AuthenticationError: A consumer has another key.
        """
        if not self._messages and not self._closed:
            # A link that gave up tries once more, now that the application asks again.
            for link in self._links:
                link.start()
        while not self._messages:
            if self._closed:
                raise StopAsyncIteration
            for link in self._links:
                link.raise_if_hopeless()
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self._characters -= len(message.data)
        if self._paused and not self._full(MAX_WAITING_MESSAGES // 2, MAX_WAITING_CHARACTERS // 2):
            self._resume()
        return message

    def _resume(self) -> None:
        paused = list(self._paused)
        self._paused.clear()
        for connection in paused:
            connection.resume_reading()

    def _full(self, messages: int = MAX_WAITING_MESSAGES, characters: int = MAX_WAITING_CHARACTERS) -> bool:
        return len(self._messages) > messages or self._characters > characters

    def _take(self, connection: Connection, messages: list[Message]) -> None:
        if self._closed:
            return
        self._messages.extend(messages)
        self._characters += sum(len(message.data) for message in messages)
        self._changed.set()
        self._pause_if_full(connection)

    def _pause_if_full(self, connection: Connection) -> None:
        if self._full() and connection not in self._paused:
            self._paused.add(connection)
            connection.pause_reading()


class _ClientLink(Link):
    """Keep a connection up for an application, and tell it when that is hopeless."""

    never_up_level = logging.INFO  # the application gets an error that says as much

    def __init__(
        self,
        addresses: Sequence[Address],
        psk: PreSharedKey,
        order: Order,
        limits: Limits,
        tls: TlsContexts,
    ) -> None:
        super().__init__(addresses, psk, order, limits, tls)
        self.lost_in_flight = 0
        self.on_change: Callable[[], None] = _ignore
        self.on_messages: Callable[[Connection, list[Message]], None] | None = None
        self.on_up: Callable[[Connection], None] = _ignore
        self.on_lost: Callable[[Connection], None] = _ignore
        self._changed = asyncio.Event()
        self._was_up = False

    async def wait_open(self, seconds: float) -> None:
        """Wait until messages can be sent.

        Raises:
            ConnectError: No node answers: within `seconds` once one has, else on the first try.
            AuthenticationError: All nodes have another key.
        """
        self.start()
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        try:
            while not self.open:
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
        self._notify()
        if self.connection is not None:
            self.on_up(self.connection)

    def writable(self, connection: Connection) -> None:
        """Tell whoever waits."""
        self._notify()

    def down(self, closed: Closed, lost: int) -> None:
        """Count what may be lost."""
        self.lost_in_flight += lost

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Let go of a connection."""
        self.on_lost(connection)
        super().lost(connection, closed)

    def retry(self, closed: Closed) -> bool:
        """Go on unless every address refuses for good."""
        self._notify()
        failures = self.failures
        return len(failures) < len(self.addresses) or any(one.reconnect for one in failures.values())

    def received_messages(self, events: list[Event]) -> None:
        """Hand messages to the subscription."""
        messages = [
            Message(message.topic, message.data)
            for event in events
            if isinstance(event, Received)
            for message in event.messages
        ]
        if messages and self.on_messages is not None and self.connection is not None:
            self.on_messages(self.connection, messages)

    def _notify(self) -> None:
        self._changed.set()
        self.on_change()

    def _failure_text(self) -> str:
        nodes = (f"{address}: {self.failures.get(address, 'no answer')}" for address in self.addresses)
        return "no node answers: " + "; ".join(nodes)


def _ignore(*_arguments: object) -> None:
    """Do nothing."""
