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
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, overload

import msgspec

from ..config.check import check_addresses, check_http_proxy
from ..config.keys import load_psk
from ..config.load import load_config
from ..config.model import ClientConfig, Limits, Tls
from ..errors import ConfigError, ConnectError, InvalidMessage, OwnerError, WindowFull
from ..net.certificates import TlsContexts
from ..net.credential import Credential, Renew, token_of
from ..net.timers import deadline
from ..protocol.keys import Order, PreSharedKey
from .arguments import check_group, check_id, check_secret, check_start, check_without_group
from .encoding import EncodedMessages, encode_messages, encode_topic
from .feed import Feed, home_of
from .group import GroupFeed, GroupSubscription, join_packet
from .link import ClientSettings
from .owner import Owner
from .prefix import PrefixFeed
from .publisher import PublisherLink
from .reader import ReaderFeed, ReaderMessage, ReaderSubscription, check_reader
from .subscription import Subscription
from .values import Gap, Message, Start, belongs_to_one_topic

PREFETCH = 10
"""Messages that a member of a group has at a time: enough for quick work, few to wait for a slow worker."""

LEASE_SECONDS = 30.0
"""Seconds that a member of a group may work on a message."""

MAX_DELIVERIES = 5
"""Deliveries after which a message is given up: a fault that passes has passed by then."""

OPEN_SECONDS = 10.0
"""How long a publisher or a subscriber waits for a node before it gives up: two reconnect delays."""


def connect(
    config: str | Path | ClientConfig | None = None,
    *,
    producers: Sequence[str] = (),
    consumers: Sequence[str] = (),
    psk: str | PreSharedKey | None = None,
    name: str = "",
    token: str | Renew | None = None,
    hello_order: Order = Order.DOCUMENT,
    limits: Limits | None = None,
    tls: Tls | None = None,
    channel_binding: Literal["required", "none"] = "required",
    http_proxy: str | None = None,
    publisher_secret: bytes | None = None,
    open_seconds: float = OPEN_SECONDS,
) -> Client:
    """Return a client, to be used in `async with`; it opens connections when it needs them.

    Args:
        config: The path of a configuration file of role `demo`, or a `ClientConfig`. The keywords from
            `producers` to `http_proxy`, except `psk`, are ignored then.
        producers: Addresses as `host:port/produce`, with TLS `wss://host:port/produce`.
        consumers: Addresses as `host:port/subscribe`, in the same order as in the producers' configuration.
        psk: The pre-shared key; without it, the key is looked up as the configuration says.
        name: Name of the key in `psk`, if the nodes know it under one.
        token: A token instead of a key, or a function that returns or awaits one; it is called whenever a
            connection needs the next one.
        hello_order: The digest order; `Order.REVERSED` for the original TypeScript nodes.
        limits: Limits that differ from the defaults.
        tls: A certificate of this client, and a CA to trust instead of the system's.
        channel_binding: `"none"` if a proxy ends TLS; then nothing tells it from an attacker in the middle
            that has a certificate for its name.
        http_proxy: The URL of an HTTP proxy to connect through, or `"none"`; without it, the environment
            variables `HTTPS_PROXY` and `NO_PROXY` count for `wss://` addresses.
        publisher_secret: 32 bytes that the application keeps, such as `secrets.token_bytes(32)`, by which
            consumers know the publisher again after a restart. Each message is published with an id of the
            application's own then, over v2 only. One process at a time may have the secret.
        open_seconds: How long to wait for a node that does not answer.

    Raises:
        ConfigError: The configuration, the addresses, a key, a secret or a certificate cannot be used.
    """
    if config is None:
        config = ClientConfig(
            producers=list(producers),
            consumers=list(consumers),
            hello_order=hello_order,
            limits=limits or Limits(),
            tls=tls or Tls(),
            channel_binding=channel_binding,
            http_proxy=http_proxy,
        )
        check_addresses(config)
        check_http_proxy(config)
    elif not isinstance(config, ClientConfig):
        config = load_config(config, ClientConfig)
    credential = _credential(config, psk, name, token)
    if publisher_secret is not None:
        check_secret(publisher_secret)
    return Client(
        config,
        credential,
        tls=TlsContexts(config),
        open_seconds=open_seconds,
        publisher_secret=publisher_secret,
    )


def _credential(config: ClientConfig, psk: object, name: str, token: str | Renew | None) -> Credential:
    """Return the key or the token of a client.

    Raises:
        ConfigError: There are both, or the one there is cannot be used.
    """
    if token is not None:
        if psk is not None or name:
            raise ConfigError("a token stands for a key and its name: expected either token, or psk and name")
        return Credential(None, token) if callable(token) else Credential(token_of(token))
    if isinstance(psk, PreSharedKey) and not name:
        return Credential(psk)
    if psk is None and not name:
        return Credential(load_psk(config))
    if not isinstance(psk, str) or not psk:
        # Its type only, because its value is a secret.
        problem = "is empty" if isinstance(psk, str) else f"is {type(psk).__name__}, expected str"
        raise ConfigError(f"the pre-shared key {problem}")
    return Credential(PreSharedKey(psk, name=name))


def _without_downgrades(config: ClientConfig, credential: Credential, *, keeps_secret: bool) -> ClientConfig:
    """Return the configuration with which a key or a token is used.

    Whoever is on the way could have the client speak classic, whose answers bind neither a name nor a path.
    A client whose key has a name expects nodes that speak v2, so it needs that only if it is told so. So does
    a publisher that keeps its secret, because a classic producer would store its repeats.

    Raises:
        ConfigError: A token or a secret of a publisher is to be used with the classic protocol.
    """
    if credential.is_token and config.allow_classic:
        problem = "the classic protocol has no tokens: expected false, or no allow_classic"
        raise ConfigError(problem, key="allow_classic")
    if keeps_secret and config.allow_classic:
        problem = "the classic protocol has no publisher_secret: expected false, or no allow_classic"
        raise ConfigError(problem, key="allow_classic")
    if (credential.is_named or keeps_secret) and config.allow_classic is None:
        return msgspec.structs.replace(config, allow_classic=False)
    return config


class Client:
    """Publish and subscribe; made by `connect`.

    A client belongs to the event loop that uses it first, and so to one thread of one process. A client that
    is dropped without `close` closes its publishing connection by itself once all messages are confirmed.
    """

    def __init__(
        self,
        config: ClientConfig,
        credential: Credential,
        *,
        tls: TlsContexts,
        open_seconds: float,
        publisher_secret: bytes | None = None,
    ) -> None:
        self._owner = Owner()
        self._settings = ClientSettings(
            config=_without_downgrades(config, credential, keeps_secret=publisher_secret is not None),
            credential=credential,
            tls=tls,
            open_seconds=open_seconds,
            owner=self._owner,
        )
        self._publisher_secret = publisher_secret
        self._publisher: PublisherLink | None = None
        # A feed lives as long as its subscription, and then until its connections are closed.
        self._feeds: weakref.WeakSet[Feed | GroupFeed] = weakref.WeakSet()
        self._closed = self._finished = False

    @property
    def lost_in_flight(self) -> int:
        """Return how many messages may be lost that went to producers that only speak classic."""
        return self._publisher.lost_in_flight if self._publisher is not None else 0

    @property
    def confirmed(self) -> int:
        """Return how many messages are confirmed so far, or went to producers that only speak classic."""
        return self._publisher.confirmed if self._publisher is not None else 0

    async def publish(
        self,
        topic: str,
        *data: str | bytes,
        headers: Mapping[str, str] | None = None,
        id: int | None = None,  # noqa: A002 - reads best where it is called
    ) -> None:
        """Publish messages, and wait until the consumer of the topic has confirmed them.

        A `str` arrives as a `str`, `bytes` arrive as `bytes`. Each message has the headers.

        Until then they are sent again after each interruption, through any producer; the consumer stores
        them once. A producer that only speaks classic confirms nothing: `lost_in_flight` counts the messages
        that may be lost there.

        A client with a `publisher_secret` publishes one message at a time, with an id that the application
        keeps, such as that of a row. When the message is published again under its id, by this program or a
        later run of it, it is confirmed, and stored once. Messages with ids have their order from the order
        of the calls, so that a call does not wait for room: the application limits how many are under way.

        Args:
            topic: Any topic.
            data: The messages.
            headers: Headers of each message.
            id: The id of the message, 1 to 2^53 - 1, above all ids that this client was given before, on
                whichever topics.

        Raises:
            InvalidMessage: The topic, a message or a header is longer than the nodes accept, or a message is
                neither text nor bytes.
            ValueError: The id is not above the one before it, or cannot be one; or there is none in a client
                with a `publisher_secret`, or one in a client without.
            PublishError: The consumer refused the messages, for example because its disk is full; or a
                message with an id was refused or failed before, after which the client takes no others.
            ConnectError: No producer answers; the messages may have been stored.
            AuthenticationError: The producers have another key.
            OwnerError: The client was first used in another process, thread or event loop.
            RuntimeError: The client was closed.
        """
        messages = self._encode(topic, data, headers, id)
        link = self._publishing()
        if id is None:
            await link.drain()
        # With an id it takes its place at once: a later one that overtook it would make it a repeat.
        # When this is cancelled, so is the future, and the messages are published all the same.
        await link.publish(messages, id)

    def publish_nowait(
        self,
        topic: str,
        *data: str | bytes,
        headers: Mapping[str, str] | None = None,
        id: int | None = None,  # noqa: A002 - as `publish` has it
    ) -> None:
        """Publish messages without waiting; `flush` waits for all of them and raises their errors.

        Args:
            topic: As for `publish`.
            data: As for `publish`.
            headers: As for `publish`.
            id: As for `publish`.

        Raises:
            InvalidMessage: As for `publish`.
            ValueError: As for `publish`.
            PublishError: A message with an id was refused or failed before.
            WindowFull: Too many messages are unconfirmed; `drain` waits until there is room.
            OwnerError: As for `publish`.
            RuntimeError: The client was closed.
        """
        messages = self._encode(topic, data, headers, id)
        link = self._publishing()
        if link.full:
            raise WindowFull("too many unconfirmed messages: await client.drain() first")
        link.publish_nowait(messages, id)

    async def drain(self) -> None:
        """Wait until `publish_nowait` can accept messages.

        Raises:
            ConnectError: No producer answers.
            OwnerError: As for `publish`.
        """
        self._owner.check()
        if self._publisher is not None:
            await self._publisher.drain()

    async def flush(self) -> None:
        """Wait until all messages that were published before are confirmed.

        Raises:
            PublishError: A message that was published without waiting was refused.
            ConnectError: No producer answers, or none did for a message published without waiting.
            OwnerError: As for `publish`.
        """
        self._owner.check()
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

    @overload
    def subscribe(
        self, *, prefix: str, start: Start = "latest", follow: bool = True, on_gap: Literal["raise"] = "raise"
    ) -> Subscription[Message]: ...

    @overload
    def subscribe(
        self, *, prefix: str, start: Start = "latest", follow: bool = True, on_gap: Literal["yield"]
    ) -> Subscription[Message | Gap]: ...

    @overload
    def subscribe(
        self,
        topic: str,
        /,
        *,
        group: str,
        start: Literal["earliest", "latest"] = "earliest",
        prefetch: int = PREFETCH,
        lease_seconds: float = LEASE_SECONDS,
        max_deliveries: int = MAX_DELIVERIES,
        order_key: str | None = None,
        auto_done: bool = False,
    ) -> GroupSubscription: ...

    @overload
    def subscribe(
        self,
        topic: str,
        /,
        *,
        reader: str,
        start: Literal["earliest", "latest"] = "earliest",
        follow: bool = True,
        on_gap: Literal["raise"] = "raise",
        auto_done: bool = False,
    ) -> ReaderSubscription[ReaderMessage]: ...

    @overload
    def subscribe(
        self,
        topic: str,
        /,
        *,
        reader: str,
        start: Literal["earliest", "latest"] = "earliest",
        follow: bool = True,
        on_gap: Literal["yield"],
        auto_done: bool = False,
    ) -> ReaderSubscription[ReaderMessage | Gap]: ...

    def subscribe(
        self,
        *topics: str,
        start: Start | None = None,
        follow: bool = True,
        on_gap: Literal["raise", "yield"] = "raise",
        prefix: str | None = None,
        reader: str | None = None,
        group: str | None = None,
        prefetch: int = PREFETCH,
        lease_seconds: float = LEASE_SECONDS,
        max_deliveries: int = MAX_DELIVERIES,
        order_key: str | None = None,
        auto_done: bool = False,
    ) -> Subscription[Any]:
        """Return an iterator over the messages of one topic or more.

        If consumers share a log, it goes on at another one while the topic's own is away.

        With a reader, the log keeps how far it has come in one topic: messages have `done`, and whoever comes
        back under its name goes on behind the last message that is done. Each reader gets all messages.

        With a group, its members share the messages of one topic: each message is lent to one member at a
        time, until one says that it is done (docs/groups.md). The arguments behind `group` are for that.

        Args:
            topics: At least one, and just one with a reader or a group; none with a prefix.
            start: Where to begin, by default at the latest message. An offset or a position belongs to one
                topic; -20 begins with the last 20 messages of each topic, or as many of them as are kept. A
                reader or a group that is new begins at the earliest message by default, and one that is not
                new goes on where it was.
            follow: False to end after the messages that were published before the subscription.
            on_gap: `"raise"` raises a `GapError` where messages are gone, after which the iteration can go
                on; `"yield"` yields a `Gap` there.
            prefix: First characters of topics: all that begin with them, "" for all topics. A topic that
                begins later joins, from its first message on. The key must allow all of them.
            reader: Name of a reader, of the same form as that of a group.
            group: Name of a worker group: 1 to 64 letters, digits, `.`, `_` and `-`.
            prefetch: Messages that this member has at most at a time, 1 to 10,000.
            lease_seconds: Seconds after which a message that it has taken and not settled is lent to another
                member, 0.1 to 86,400. Messages that it has not taken yet are kept for it.
            max_deliveries: Deliveries after which a message is given up, and becomes a dead letter.
            order_key: Name of a header: of messages with the same value there, one is lent at a time, in the
                order of the topic. All members name the same.
            auto_done: True if a message of a reader or a group is done once the next one is asked for.

        Raises:
            InvalidMessage: A topic is longer than the nodes accept, or is not text.
            ValueError: The start is an offset or a position, and there are several topics, or the start is
                beyond all offsets; or an argument is none of those above.
            OwnerError: As for `publish`; but a client that was never used may be outside of an event loop.
            RuntimeError: The client was closed.
        """
        if not self._owner.free:
            self._owner.check()
        self._check_open()
        if prefix is not None and (topics or reader is not None or group is not None):
            raise ValueError(
                "a prefix stands for topics: expected neither a topic, a reader nor a group with it"
            )
        if not topics and prefix is None:
            raise InvalidMessage("no topic to subscribe to: expected at least one, or a prefix")
        for topic in topics if prefix is None else (prefix,):
            encode_topic(topic, self._settings.config.limits)
        if group is not None:
            check_group(len(topics), reader, on_gap, follow=follow)
            join = join_packet(
                topics[0],
                group,
                start="earliest" if start is None else start,
                prefetch=prefetch,
                lease_seconds=lease_seconds,
                max_deliveries=max_deliveries,
                order_key=order_key,
            )
            group_feed = GroupFeed(home_of(topics[0], self._settings), self._settings, join)
            self._feeds.add(group_feed)
            return GroupSubscription(group_feed, self._owner, auto_done=auto_done)
        lending = (prefetch, lease_seconds, max_deliveries, order_key)
        unchanged = lending == (PREFETCH, LEASE_SECONDS, MAX_DELIVERIES, None)
        check_without_group(reader, lends=not unchanged, auto_done=auto_done)
        if on_gap not in ("raise", "yield"):
            raise ValueError(f"on_gap is {on_gap!r}, expected 'raise' or 'yield'")
        if reader is not None:
            start = "earliest" if start is None else start
            reader_feed = self._reader_feed(topics, reader, start)
            return ReaderSubscription(
                reader_feed, self._owner, follow=follow, on_gap=on_gap, auto_done=auto_done
            )
        feed = self._topics_feed(topics, prefix, "latest" if start is None else start)
        return Subscription(feed, self._owner, follow=follow, on_gap=on_gap)

    def _topics_feed(self, topics: Sequence[str], prefix: str | None, start: Start) -> Feed:
        check_start(start)
        if belongs_to_one_topic(start) and (prefix is not None or len(set(topics)) > 1):
            raise ValueError(
                "an offset belongs to one topic, and there are several: expected 'latest', 'earliest', a"
                " datetime, or a negative number for the last messages of each"
            )
        if prefix is not None:
            feed: Feed = PrefixFeed(prefix, self._settings, start)
        else:
            feed = Feed(dict.fromkeys(topics), self._settings, start)
        self._feeds.add(feed)
        return feed

    def _reader_feed(self, topics: Sequence[str], reader: str, start: Start) -> ReaderFeed:
        check_reader(reader, start)
        if len(topics) > 1:
            raise ValueError(f"a reader has one topic, and there are {len(topics)}: expected one")
        feed = ReaderFeed(topics[0], self._settings, start, reader)
        self._feeds.add(feed)
        return feed

    async def close(self, *, confirm: bool = True) -> None:
        """Close every connection, after all published messages are confirmed.

        Args:
            confirm: False to wait only until a producer has read the messages.

        Raises:
            PublishError: As for `flush`.
            ConnectError: As for `flush`, or not all messages are confirmed within `open_seconds`.
            OwnerError: As for `publish`.
        """
        self._owner.check()
        link = self._publisher
        await self._close(None if link is None else link.flush if confirm else link.all_sent)

    async def __aenter__(self) -> Self:
        self._owner.check()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        self._owner.check()
        # After an exception, don't wait for confirmations.
        await self._close(self._publisher.flush if self._publisher is not None and kind is None else None)

    async def _close(self, finish: Callable[[], Awaitable[None]] | None) -> None:
        # A second call does all of it again, because the first may have been cancelled; but it does not wait
        # for messages that the first had no need to wait for.
        self._closed = True
        if self._finished:
            finish = None
        seconds = self._settings.open_seconds
        # The publisher gives up after the same time, and then has no messages left to count.
        waiting = self._publisher.unconfirmed if self._publisher is not None else 0
        try:
            if finish is not None:
                async with deadline(seconds):
                    await finish()
                self._finished = True
        except TimeoutError:
            assert self._publisher is not None
            left = self._publisher.unconfirmed or waiting
            raise ConnectError(f"{left} messages were not confirmed") from None
        finally:
            closing = [feed.close() for feed in list(self._feeds)]
            if self._publisher is not None:
                closing.append(self._publisher.stop())
            await asyncio.gather(*closing)

    def another(self) -> Client:
        """Return a client with the same settings that nobody has used yet, such as for a forked process.

        Raises:
            OwnerError: This one has a `publisher_secret`, which one process at a time may have.
        """
        if self._publisher_secret is not None:
            raise OwnerError(
                "the client was used before this process was forked, and one process at a time may have its"
                " publisher_secret: make a client with another secret in each process"
            )
        settings = self._settings
        return Client(
            settings.config, settings.credential.copy(), tls=settings.tls, open_seconds=settings.open_seconds
        )

    def _publishing(self) -> PublisherLink:
        if self._publisher is None:
            addresses = self._settings.config.produce_addresses
            first = random.randrange(len(addresses))  # noqa: S311 - to spread the load
            addresses = addresses[first:] + addresses[:first]
            link = self._publisher = PublisherLink(addresses, self._settings, self._publisher_secret)
            weakref.finalize(self, self._owner.call, link.drop).atexit = False
        return self._publisher

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed: make another one with connect()")

    def _encode(
        self,
        topic: str,
        data: Sequence[str | bytes],
        headers: Mapping[str, str] | None,
        message_id: int | None,
    ) -> EncodedMessages:
        self._owner.check()
        if self._closed:
            self._check_open()
        if message_id is not None or self._publisher_secret is not None:
            check_id(message_id, len(data), keeps_secret=self._publisher_secret is not None)
        return encode_messages(topic, data, self._settings.config.limits, headers)
