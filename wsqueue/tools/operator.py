"""Ask the nodes of a cluster to list, purge, forget and disconnect, as operators may."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypeVar

import msgspec

from ..client.link import ClientLink, ClientSettings
from ..client.owner import Owner
from ..config.addresses import Address
from ..config.model import ClientConfig, Limits
from ..errors import ConnectError, WsqueueError
from ..net.certificates import TlsContexts
from ..net.credential import Credential
from ..protocol import v2
from ..protocol.close import CloseCode, Closed
from ..protocol.keys import PreSharedKey
from ..protocol.routing import router
from ..protocol.session import Event, HelloDone
from ..protocol.v2 import NameEntry, TopicEntry
from ..report.text import number

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Maximum size of an answer: a part of a list has a few megabytes."""

Result = TypeVar("Result")
Answer = TypeVar("Answer", v2.TopicList, v2.Done)


class RequestFailed(WsqueueError):  # noqa: N818 - reads best where it is raised
    """Say why a node has not done a request.

    Attributes:
        code: One word for the reason.
    """

    def __init__(self, node: Address, packet: v2.Failed) -> None:
        self.code = packet.code
        super().__init__(f"{node.with_path('')}: {packet.reason}")


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a topic, as one consumer sees it, or all that share a log.

    Attributes:
        topic: Its name.
        consumers: Addresses of these consumers.
        messages: Number of messages that are kept.
        bytes: Bytes that they take, as the limits count them.
        first: Offset of the first of them; `next` when there is none.
        next: Offset of the message that will be published next.
        subscribers: Number of subscriptions.
        names: Its groups and named readers.
    """

    topic: str
    consumers: list[str]
    messages: int
    bytes: int
    first: int
    next: int
    subscribers: int
    names: list[NameEntry]


class Listing(msgspec.Struct, frozen=True):
    """Hold a list of topics, which lacks those of nodes that could not be asked.

    Attributes:
        topics: The topics, in the order of their names.
        problems: Why consumers could not be asked.
    """

    topics: list[Topic]
    problems: list[WsqueueError]


class OperatorLink(ClientLink):
    """Ask one node.

    Args:
        address: The address of its endpoint for operators.
        settings: The settings of the client.
    """

    def __init__(self, address: Address, settings: ClientSettings) -> None:
        super().__init__([address], settings)
        self.address, self._seconds = address, settings.open_seconds
        self._waiting: deque[asyncio.Future[v2.OperatorAnswer]] = deque()

    async def ask(self, request: v2.OperatorRequest, kind: type[Answer]) -> Answer:
        """Send a request, and return its answer.

        Raises:
            RequestFailed: The node has not done it.
            WsqueueError: The node can't be reached, or the connection was lost before the answer.
        """
        await self.wait_open(self._seconds)
        assert self.connection is not None
        answer: asyncio.Future[v2.OperatorAnswer] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self.connection.send_packet(request)
        packet = await answer
        if isinstance(packet, v2.Failed):
            raise RequestFailed(self.address, packet)
        if not isinstance(packet, kind):
            raise ConnectError(f"{self.address.with_path('')} gives another answer than was asked for")
        return packet

    def received_events(self, events: list[Event]) -> None:
        """Give the answers to those who wait."""
        assert self.connection is not None
        for event in events:
            if isinstance(event, v2.TopicList | v2.Done | v2.Failed) and self._waiting:
                waiting = self._waiting.popleft()
                if not waiting.done():
                    waiting.set_result(event)
            elif not isinstance(event, HelloDone | v2.Draining):
                self.connection.fail(CloseCode.UNEXPECTED_PACKET)

    def down(self, closed: Closed, _lost: int) -> None:
        """Tell those who wait that no answer comes: their requests may be done or not."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(ConnectError(f"{self.address.with_path('')}: {closed}"))
        self.notify()


class Operator:
    """Ask the nodes of a cluster, to be used in `async with`.

    Args:
        config: The nodes, and how to speak to them.
        psk: The key or the token of the operator.
        open_seconds: How long to wait for a node that does not answer.
    """

    def __init__(self, config: ClientConfig, psk: PreSharedKey, open_seconds: float = 5.0) -> None:
        limits = Limits(
            max_message_bytes=MAX_ANSWER_BYTES,
            max_buffered_bytes=2 * MAX_ANSWER_BYTES,
            hello_seconds=config.limits.hello_seconds,
        )
        # Only v2 has these packets.
        config = msgspec.structs.replace(config, limits=limits, allow_classic=False)
        settings = ClientSettings(
            config=config,
            credential=Credential(psk),
            tls=TlsContexts(config),
            open_seconds=open_seconds,
            owner=Owner(),
        )
        self._consumers = _links(config.subscribe_addresses, "/subscribe", settings)
        self._producers = _links(config.produce_addresses, "/produce", settings)
        self._consumer_of = router(max(1, len(config.consumers)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await asyncio.gather(*(link.stop() for link in (*self._consumers, *self._producers)))

    async def topics(self, pattern: str = "*", *, named: bool = False) -> Listing:
        """Return the topics of all consumers; those of a log that consumers share are there once.

        Args:
            pattern: A topic, or the beginning of topics with `*` behind it.
            named: True for topics that have groups or named readers only.

        Raises:
            WsqueueError: No consumer could be asked.
        """
        lists, problems = await _of_each(self._consumers, lambda link: _list(link, pattern, named=named))
        topics: dict[tuple[str, str], Topic] = {}
        for link, parts in lists:
            node = str(link.address.with_path(""))
            for part in parts:
                for entry in part.topics:
                    place = (part.log or node, entry.topic)
                    topics[place] = _merged(topics.get(place), entry, node)
        shared = any(part.log is not None for _, parts in lists for part in parts)
        # One consumer of a shared log knows all of its topics.
        found = sorted(topics.values(), key=lambda one: one.topic)
        return Listing(found, [] if shared else problems)

    async def purge(self, topic: str, before: int | None = None) -> int:
        """Drop messages of a topic, and return how many there were.

        Args:
            topic: The topic.
            before: Offset before which messages go, None to drop all that are kept now.

        Raises:
            WsqueueError: The consumer of the topic can't be reached, or can't do it.
        """
        home = self._consumers[self._consumer_of(topic)]
        try:
            # Another consumer must not drop messages that have come since, if this one has no answer for us.
            before = await _end(home, topic) if before is None else before
            return (await home.ask(v2.Purge(topic, before), v2.Done)).count
        except ConnectError:
            # Another one can do it if they share a log.
            for link in self._consumers:
                if link is not home and await _shares(link, topic):
                    before = await _end(link, topic) if before is None else before
                    return (await link.ask(v2.Purge(topic, before), v2.Done)).count
            raise

    async def forget(self, topic: str, name: str) -> None:
        """Forget a group or a named reader that nobody uses.

        Args:
            topic: The topic.
            name: The name; if a group and a reader have it, both are forgotten.

        Raises:
            WsqueueError: Somebody uses it, there is none, or not all consumers can be asked.
        """
        listing = await self.topics(topic, named=True)
        if listing.problems:
            raise listing.problems[0]
        # As a pattern, a topic that ends with * stands for others too.
        topics = [one for one in listing.topics if one.topic == topic]
        found = [(one, entry) for one in topics for entry in one.names if entry.name == name]
        if not found:
            raise WsqueueError(f"{topic!r} has no group or reader {name!r}: see `wsqueue groups`")
        for _, entry in found:
            if entry.members:
                users = number(entry.members, "connection" if entry.kind == "reader" else "member")
                raise WsqueueError(
                    f"the {entry.kind} {name!r} of {topic!r} has {users}: expected one that nobody uses"
                )
        for one, entry in found:
            link = next(link for link in self._consumers if str(link.address.with_path("")) in one.consumers)
            await link.ask(v2.Forget(topic, entry.kind, name), v2.Done)

    async def disconnect(
        self, *, address: str | None = None, key: str | None = None
    ) -> tuple[int, list[WsqueueError]]:
        """End the connections of a client at all nodes.

        Args:
            address: Host, or host and port, of the client.
            key: Name of its key.

        Returns:
            The number of connections, and why nodes could not be asked.

        Raises:
            WsqueueError: No node could be asked.
        """
        request = v2.Disconnect(address, key)
        nodes = (*self._consumers, *self._producers)
        answers, problems = await _of_each(nodes, lambda link: link.ask(request, v2.Done))
        return sum(answer.count for _, answer in answers), problems


def _links(addresses: Sequence[Address], endpoint: str, settings: ClientSettings) -> list[OperatorLink]:
    return [
        OperatorLink(address.with_path(address.path.removesuffix(endpoint) + "/operate"), settings)
        for address in addresses
    ]


async def _of_each(
    links: Sequence[OperatorLink], ask: Callable[[OperatorLink], Awaitable[Result]]
) -> tuple[list[tuple[OperatorLink, Result]], list[WsqueueError]]:
    """Ask nodes at the same time; return the answers, and why others gave none.

    Raises:
        WsqueueError: None gave one.
    """
    results = await asyncio.gather(*(ask(link) for link in links), return_exceptions=True)
    answers: list[tuple[OperatorLink, Result]] = []
    problems: list[WsqueueError] = []
    for link, result in zip(links, results, strict=True):
        if isinstance(result, WsqueueError):
            problems.append(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            answers.append((link, result))
    if problems and not answers:
        raise problems[0]
    return answers, problems


async def _list(link: OperatorLink, pattern: str, *, named: bool) -> list[v2.TopicList]:
    """Return the list of a consumer in its parts."""
    parts = [await link.ask(v2.AskTopics(pattern, None, named), v2.TopicList)]
    while parts[-1].after is not None:
        parts.append(await link.ask(v2.AskTopics(pattern, parts[-1].after, named), v2.TopicList))
    return parts


async def _end(link: OperatorLink, topic: str) -> int | None:
    """Return the offset behind the messages of a topic at a consumer, None if it lists no such topic."""
    parts = await _list(link, topic, named=False)
    return next((entry.next for part in parts for entry in part.topics if entry.topic == topic), None)


async def _shares(link: OperatorLink, topic: str) -> bool:
    """Return True if a consumer can be reached, and shares its log with others."""
    try:
        answer = await link.ask(v2.AskTopics(topic), v2.TopicList)
    except WsqueueError:
        return False
    return answer.log is not None


def _merged(known: Topic | None, entry: TopicEntry, node: str) -> Topic:
    """Return a topic with the view of one more consumer of its log."""
    if known is None:
        return Topic(
            topic=entry.topic,
            consumers=[node],
            messages=entry.messages,
            bytes=entry.bytes,
            first=entry.first,
            next=entry.next,
            subscribers=entry.subscribers,
            names=entry.names,
        )
    names = {(one.kind, one.name): one for one in known.names}
    for one in entry.names:
        other = names.get((one.kind, one.name))
        names[one.kind, one.name] = one if other is None else _merged_name(other, one)
    return msgspec.structs.replace(
        known,
        consumers=[*known.consumers, node],
        subscribers=known.subscribers + entry.subscribers,
        names=[names[place] for place in sorted(names)],
    )


def _merged_name(one: NameEntry, other: NameEntry) -> NameEntry:
    """Return a group or reader as two consumers see it: the later one knows more, and members add up."""
    later = max(one, other, key=lambda entry: entry.offset)
    return msgspec.structs.replace(
        later,
        lag=min(one.lag, other.lag),
        members=one.members + other.members,
        lent=one.lent + other.lent,
        # Only a consumer that serves the topic knows it.
        oldest_time=next((seen.oldest_time for seen in (later, one, other) if seen.oldest_time), None),
    )
