"""The consumer: takes messages from producers, keeps them, and sends them to the subscribers of their topic.

```
producers ──► ProducerEndpoint ──► logs.append ──► _done ──┬──► Ack and Refused, to producers
                     ▲                                     └──► _deliver ──┬──► classic subscribers, in turns
                     └─── resume_if_settled ◄── _done                      └──► readers of v2 subscribers
```

- `logs` calls `_done` with the outcomes of batches: at once when the logs are in memory, else after the
  commit. Until then the batches are in `logs` alone. The outcomes of each topic come in their order. A
  producer must hear of all its batches in theirs, so that an outcome may wait in `ProducerState`.
- A batch is delivered before it is confirmed, or waits for its turn in `classic` or in the log.
- `ProducerEndpoint` pauses a producer while `logs` is congested, and resumes it once when it no longer is. It
  also pauses one that is slow to read its answers, because they can be as large as its smallest batches.
- A classic subscriber gets new messages only. A `Reader` takes a v2 subscriber through the log (see there);
  `behind` holds the readers that did not keep up and have not caught up yet.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import msgspec

from ..config.keys import Keys
from ..config.model import ConsumerConfig, NodeConfig
from ..errors import StorageError, WsqueueError
from ..groups.expiry import expire
from ..groups.group import Burial
from ..groups.groups import Groups
from ..journal import log
from ..log.clock import SteadyClock
from ..log.store import FOREIGN, AppendChain, Outcome, Store
from ..log.stores import make_store
from ..log.topic import TopicLog
from ..net.buffers import Buffers
from ..net.certificates import TlsContexts
from ..net.connection import Connection, Handler, Traffic
from ..protocol import classic, v2
from ..protocol.close import CloseCode, Closed
from ..protocol.events import EVENTS, ONLY_GET, asked
from ..protocol.frames import frame_messages
from ..protocol.framing import Get, HttpResponse, PongReceived, Post
from ..protocol.packed import NOTHING, pack_texts
from ..protocol.session import Event, HelloDone, MessageDropped, MessagesReceived
from ..protocol.upgrade import topic_in_path
from ..report.report import Facts, SlowPeer
from ..report.stats import TopTopics
from ..report.warnings import MAX_CLOCK_SECONDS
from .classic_delivery import ClassicDelivery
from .clients import Clients
from .event_stream import EventOutlet, EventsEndpoint, EventTurns
from .homes import Homes
from .lags import Lags
from .memberships import GROUP_PACKETS, Memberships
from .named_readers import NamedReaders, NamedSubscriptions
from .operations import Operations
from .operator_endpoint import OperationFailed
from .prefixes import Follower, Prefixes
from .reader import Outlet, Reader, ReaderTurns
from .subscribers import Subscribers
from .topics import Topics

logger = logging.getLogger(__name__)

NOT_FOUND = HttpResponse(
    404, "Not found: this consumer has /producer and /subscribe/TOPIC, and GET /events/TOPIC.\n"
)

NO_POST = HttpResponse(404, "Not found: a consumer takes no messages; a producer has /publish/TOPIC.\n")

SUBSCRIBE = "/subscribe"

MAX_TOPICS_PER_CONNECTION = 10_000
"""Maximum number of subscriptions of one connection: 5 MiB of readers."""

DROPPED_READERS = 1000
"""Subscriptions that end in one go when their connection is lost: each takes 5 µs."""

EXPIRE_SECONDS = 3600.0
"""Time between two looks for groups and named readers that nobody has used for long."""

TRIM_SECONDS = 10.0
"""Time between two searches for messages that are too old: a small part of any useful age."""


class ProducerState:
    """Know the connection of a producer, and the outcomes whose turn has not come.

    Attributes:
        connection: The connection.
        received: Number of batches that came.
        answered: Number of batches that were answered, the first ones.
        early: Outcomes of later batches by the position of their first one, as many as batches wait at most.
    """

    __slots__ = ("answered", "connection", "early", "received")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.received = self.answered = 0
        self.early: dict[int, Outcome] = {}


class Source(msgspec.Struct, gc=False):
    """Where a chain came from.

    Attributes:
        producer: The producer.
        position: Position of its first batch on the producer's connection.
    """

    producer: ProducerState
    position: int


class Consumer:
    """Keep the logs of all topics, and know who subscribes to them.

    Args:
        config: Limits and retention; the service does the rest.
        keys: Not used, because a consumer opens no connection.
        counters: Counters of this node.
        tls: Not used either.
        clients: Knows the rights of subscribers.

    Attributes:
        logs: The logs of the topics.
        topics: Classic subscribers.
        readers: Subscriptions of v2 subscribers.
        classic: Sends messages to the classic subscribers.
        subscribers: The connections of all subscribers, and the memory of their subscriptions.
        groups: The worker groups that have members.
        named_readers: The readers whose positions are kept, as far as connections use them.
        operations: Does the requests of operators.
        lags: Knows by how much groups and named readers are behind.
        prefixes: The connections that subscribe to all topics with a prefix.
        event_turns: Lets the streams of events take turns.
        behind: The readers that have not been sent all that is stored because they are slow.
        cutting: Held by the reader that cuts a record.
    """

    role = "consumer"
    config_type: ClassVar[type[NodeConfig]] = ConsumerConfig

    def __init__(
        self,
        config: ConsumerConfig,
        keys: Keys,
        counters: Counter[str],
        tls: TlsContexts,
        clients: Clients,
    ) -> None:
        self.on_failure: Callable[[WsqueueError], None] = lambda _error: None
        self.counters, self.clients = counters, clients
        self.topics: Topics[Connection] = Topics()
        self.readers: Topics[Reader] = Topics()
        self.behind: set[Reader] = set()
        self.cutting = asyncio.Lock()
        self.buffers = Buffers(config.limits.max_total_buffered_bytes)
        self.classic = ClassicDelivery(self.topics, counters, config.limits, self.buffers)
        self.traffic = Traffic()
        self.top_topics = TopTopics()
        self._monitoring = config.monitoring
        self._retention = config.retention
        self._clock = SteadyClock(_monotonic(), time.time())
        self._clock_ahead = 0.0
        self.logs: Store = make_store(config, self._done, lambda: self._clock.read(_monotonic()))
        self.logs.index.limit = config.limits.max_index_bytes
        self.subscribers = Subscribers(self.logs.index)
        self.groups = Groups(self.logs, counters, lambda: self._clock.read(_monotonic()))
        self.named_readers = NamedReaders(self.logs, counters, lambda: self._clock.read(_monotonic()))
        self.operations = Operations(self.logs, self.groups, self.named_readers, self.topics, self.readers)
        self.lags = Lags(self.logs, self.operations.describe)
        self.prefixes = Prefixes(self.logs, MAX_TOPICS_PER_CONNECTION)
        self.logs.on_topic, self.logs.on_unlisted = self.prefixes.appeared, self.prefixes.end_all
        self.logs.on_damage = lambda reason: self.on_failure(StorageError(reason))
        self.logs.on_moved, self.logs.on_available = self._moved, self._tell_available
        # Those that must hear whether this node can reach a shared log.
        self.peers: set[Connection] = set()
        self.max_topic_bytes = config.limits.max_topic_bytes
        self.max_message_bytes = config.limits.max_message_bytes
        self.event_turns = EventTurns()
        self._homes = Homes(config.all_consumers, config.listeners)
        self._producer_endpoint = ProducerEndpoint(self)
        self._trimming: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def endpoint(self, path: str) -> Handler | HttpResponse:
        """Return the handler of a path: `/producer`, `/subscribe` or `/subscribe/<percent-encoded topic>`."""
        if path == "/producer":
            return self._producer_endpoint
        if path == SUBSCRIBE:
            return SubscribeEndpoint(self, None)
        if not path.startswith(f"{SUBSCRIBE}/"):
            return NOT_FOUND
        topic = topic_in_path(path.removeprefix(f"{SUBSCRIBE}/"), self.max_topic_bytes)
        return topic if isinstance(topic, HttpResponse) else SubscribeEndpoint(self, topic)

    def post_endpoint(self, path: str, _post: Post) -> HttpResponse:
        """Return the page that refuses any `POST`: producers take messages."""
        return ONLY_GET if path.startswith(EVENTS) else NO_POST

    def events_endpoint(self, path: str, query: str, get: Get, origin: str | None) -> Handler | HttpResponse:
        """Return the handler of `/events/<percent-encoded topic>`, or an error page."""
        if path == EVENTS:
            return NOT_FOUND
        topic = topic_in_path(path.removeprefix(EVENTS), self.max_topic_bytes, too_long=414)
        request = topic if isinstance(topic, HttpResponse) else asked(topic, query, get)
        if isinstance(request, HttpResponse):
            return request
        # With a shared log, each consumer has all topics.
        home = self._homes.elsewhere(request.start.topic) if self.logs.shared is None else None
        if home is not None:
            return HttpResponse(421, f"This topic belongs to another consumer: ask {home}.\n")
        return EventsEndpoint(self, request, origin)

    async def start(self) -> None:
        """Open the logs of the topics.

        Raises:
            ConfigError: Their directory cannot be used.
            StorageError: Its disk is full or does not work.
        """
        await self.logs.open()
        self._trimming = asyncio.create_task(self._trim())
        self._watching = asyncio.create_task(self.lags.watch())

    def not_ready(self) -> str:
        """Return "" if the node is ready: a consumer that runs is, unless it can't reach a shared log."""
        shared = self.logs.shared
        return "the shared log can't be reached" if shared is not None and not shared.available else ""

    async def operate(self, connection: Connection, request: v2.OperatorRequest) -> v2.OperatorAnswer:
        """Do a request of an operator.

        Raises:
            WsqueueError: It cannot be done.
        """
        if isinstance(request, v2.AskTopics):
            return await self.operations.ask_topics(request)
        if isinstance(request, v2.Purge):
            return await self.operations.purge(connection, request)
        if isinstance(request, v2.Forget):
            return await self.operations.forget(request)
        raise OperationFailed("unsupported", "this node does not know that request")

    def facts(self, window_seconds: float) -> Facts:
        """Return the values that a report has of a consumer."""
        slow: dict[Outlet, int] = {}
        for reader in self.behind:
            slow[reader.connection] = slow.get(reader.connection, 0) + reader.missing
        return Facts(
            commit_seconds=self.logs.commit_seconds(),
            top_topics=self.top_topics.top(self._monitoring.top_topics, window_seconds),
            lags=self.lags.largest(self._monitoring.top_topics),
            slow_peers=[
                SlowPeer(outlet.peer, _protocol(outlet), outlet.buffered_bytes, missing)
                for outlet, missing in slow.items()
            ],
            log=msgspec.structs.replace(self.logs.log_status(), clock_seconds=self._clock_ahead),
        )

    def status(self) -> str:
        """Return the status in a few words."""
        return f"topics with subscribers: {len(self.topics)} classic, {len(self.readers)} v2"

    def reload(self, config: ConsumerConfig, keys: Keys, tls: TlsContexts) -> list[str]:
        """Use a new configuration from now on; a log stays where it is until a restart."""
        self.max_topic_bytes = config.limits.max_topic_bytes
        self.max_message_bytes = config.limits.max_message_bytes
        self.classic.limits = config.limits
        self.buffers.limit = config.limits.max_total_buffered_bytes
        self.logs.index.limit = config.limits.max_index_bytes
        self._homes = Homes(config.all_consumers, config.listeners)
        self._monitoring = config.monitoring
        self.logs.reconfigure(config.retention)
        old, new = self._retention, config.retention
        sentences = [
            f"{key} is {there or 'not set'} in the configuration and {here or 'not set'} until a restart"
            for key, here, there in (
                ("retention.mode", old.mode, new.mode),
                ("retention.directory", old.directory, new.directory),
            )
            if here != there
        ]
        if new.jetstream != old.jetstream:
            sentences.append(
                "retention.jetstream is another table in the configuration and holds after a restart"
            )
        return sentences

    async def drain(self) -> None:
        """Wait until all received messages are stored, and have been sent to subscribers."""
        await self.logs.settle()
        await self.classic.settle()
        await self.groups.settle()
        await self.named_readers.settle()

    async def stop(self) -> None:
        """Close the logs of the topics; that goes on when it is cancelled, and another call waits for it."""
        if self._trimming is None:
            return
        self._trimming.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    def abort(self) -> None:
        """Do nothing: a consumer opens no connection."""

    def too_long(self, topic: str) -> bool:
        """Return True if a topic has more bytes than it may have."""
        return classic.topic_too_long(topic, self.max_topic_bytes)

    def _done(self, outcomes: list[Outcome]) -> None:
        """Deliver stored batches, and confirm or refuse all batches (the logs call this)."""
        stored: dict[str, list[Outcome]] = {}
        acks: dict[Connection, tuple[int, int]] = {}
        # The answers before the last confirmation, for producers that are refused something.
        answers: dict[Connection, list[v2.Ack | v2.Refused]] = {}
        for outcome in outcomes:
            if outcome.record is not None:
                stored.setdefault(outcome.record.topic, []).append(outcome)
            if not isinstance(source := outcome.chain.source, Source):
                if isinstance(source, Burial):
                    source.group.buried(source.letter, outcome)
                continue
            producer = source.producer
            if source.position != producer.answered + 1:
                # Its record is stored and delivered below, and has no need to stay in memory here. Nor have
                # its messages, which keep all that was read with them.
                outcome.chain.messages = NOTHING
                producer.early[source.position] = Outcome(
                    outcome.chain, outcome.repeats, None, outcome.code, outcome.reason
                )
                continue
            self._answer(outcome, producer, acks, answers)
            while producer.early and (early := producer.early.pop(producer.answered + 1, None)) is not None:
                self._answer(early, producer, acks, answers)
        for topic, group in stored.items():
            self._deliver(topic, group)
        for connection, packets in answers.items():
            connection.send(list(map(v2.encode, packets)))
        for connection, numbers in acks.items():
            connection.send_packet(v2.Ack([numbers]))
        self._producer_endpoint.resume_if_settled()

    def _answer(
        self,
        outcome: Outcome,
        producer: ProducerState,
        acks: dict[Connection, tuple[int, int]],
        answers: dict[Connection, list[v2.Ack | v2.Refused]],
    ) -> None:
        """Add the answer to the next chain of a producer to those that are about to be sent."""
        connection, position, code = producer.connection, producer.answered + 1, outcome.code
        end = position + len(outcome.chain.numbers)
        producer.answered = end - 1
        confirmed = end if code is None else position + outcome.repeats
        self.counters["repeats"] += outcome.repeats
        if confirmed > position:
            acks[connection] = (acks[connection][0] if connection in acks else position, confirmed - 1)
        if code is not None:
            before = answers.setdefault(connection, [])
            if connection in acks:
                before.append(v2.Ack([acks.pop(connection)]))
            self.counters[f"batches_refused_{code}"] += end - confirmed
            _add_refusal(before, confirmed, end - 1, code, outcome.reason[: v2.MAX_REASON_CHARACTERS])

    def _deliver(self, topic: str, outcomes: Sequence[Outcome]) -> None:
        """Send stored batches of one topic to its subscribers, with one write to each of them."""
        records = [outcome.record for outcome in outcomes if outcome.record is not None]
        count = sum(record.count for record in records)
        # The messages that another consumer appended are counted there.
        foreign = outcomes[0].chain is FOREIGN
        if not foreign:
            counts = self.top_topics.counts
            if topic in counts:
                counts[topic] += count
            else:
                self.top_topics.count(topic, count)
        subscribers = self.topics.subscribers(topic)
        readers = self.readers.subscribers(topic)
        if subscribers:
            self.classic.deliver(topic, records)
        if readers:
            frames = frame_messages([record.packet for record in records], masked=False, binary=True)
            reached = sum(reader.take(records[0].offset, records[-1].end, frames) for reader in readers)
            self.counters["deliveries"] += count * reached
        if topic in self.groups.by_topic:
            self.groups.stored(topic)
        elif not subscribers and not readers and not foreign:
            self.counters["without_subscriber"] += count

    def _moved(self, log: TopicLog, other: bool) -> None:
        """Let readers find out where a topic is that has gone on without them (the logs call this)."""
        for reader in self.readers.subscribers(log.name):
            reader.find_again(other=other)
        self.groups.moved(log.name, other=other)

    def greet(self, connection: Connection) -> None:
        """Tell a peer which log this consumer shares with others, before anything else."""
        if connection.session.v2 and (shared := self.logs.shared) is not None:
            self.peers.add(connection)
            connection.send_packet(shared)

    def _tell_available(self) -> None:
        """Tell all peers whether this consumer can reach the log (the logs call this)."""
        if (shared := self.logs.shared) is not None:
            for connection in self.peers:
                connection.send_packet(shared)

    async def _close(self) -> None:
        await self.groups.close()
        self.named_readers.close()
        try:
            await self.logs.close()
        except WsqueueError as error:
            log(logger, logging.ERROR, "snapshot failed", reason=error)

    async def _trim(self) -> None:
        expired = 0.0
        while True:
            self._correct_clock()
            await asyncio.sleep(TRIM_SECONDS)
            self.logs.trim()
            if _monotonic() - expired > EXPIRE_SECONDS:
                expired = _monotonic()
                await self._expire()

    async def _expire(self) -> None:
        """Forget the groups and named readers that nobody has used for long."""

        def in_use(topic: str, state: str) -> bool:
            return self.groups.in_use(topic, state) or self.named_readers.in_use(topic, state)

        # Other consumers of the log, and this one after a restart, don't know who uses them.
        self.named_readers.renew()
        try:
            await expire(self.logs, self._clock.read(_monotonic()), in_use)
        except WsqueueError as error:
            log(logger, logging.WARNING, "names not looked at", reason=error)

    def _correct_clock(self) -> None:
        """Let the clock of the log follow the system's, and say when that is set, and when they agree again.

        When the system's was set, the machine may be one that was set back: the logs begin an epoch.
        """
        before, ahead = self._clock_ahead, self._clock.correct(_monotonic(), time.time())
        self._clock_ahead = ahead
        if abs(ahead - before) > MAX_CLOCK_SECONDS:
            self.logs.begin_epoch()
            for reader in self.readers.all_subscribers():
                reader.name_epoch()
            self.groups.name_epoch()
            log(logger, logging.WARNING, "system clock was set", ahead_seconds=f"{ahead:.1f}")
        if abs(before) > MAX_CLOCK_SECONDS >= abs(ahead):
            log(logger, logging.INFO, "clock agrees with the system's again")


def _add_refusal(
    answers: list[v2.Ack | v2.Refused], first: int, last: int, code: v2.RefusalCode, reason: str
) -> None:
    """Add the refusal of a range to the answers for a producer, whose last one is of the position before it.

    It joins a refusal for the same reason, so that there are no more answers than packets of the producer.
    """
    before = answers[-1] if answers else None
    if isinstance(before, v2.Refused) and (before.code, before.reason) == (code, reason):
        first = before.number
        answers.pop()
    answers.append(v2.Refused(first, code, reason, last if last > first else None))


def _protocol(outlet: Outlet) -> str:
    return "events" if isinstance(outlet, EventOutlet) else "v2"


def _monotonic() -> float:
    """Return seconds that nobody sets; they go on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ProducerEndpoint(Handler):
    """Serve `/producer`: one handler for all producers."""

    peer_role = "producer"
    peer_sends_messages = True
    peer_is_node = True

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._producers: dict[Connection, ProducerState] = {}
        self._paused: set[Connection] = set()
        self._slow: set[Connection] = set()

    def established(self, connection: Connection) -> None:
        """Take a producer."""
        self._producers[connection] = ProducerState(connection)
        self._consumer.greet(connection)

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Store the batches of a read; `_done` delivers and confirms them."""
        consumer, producer = self._consumer, self._producers[connection]
        chains: list[AppendChain] = []
        for event in events:
            if type(event) is v2.Forward:
                before = producer.received
                producer.received = before + len(event.numbers)
                problem: v2.RefusalCode | None = None
                if event.whole:
                    consumer.counters["messages_in"] += event.messages.count
                else:
                    problem = "invalid"
                if consumer.too_long(event.topic):
                    problem = "topic_too_long"
                chains.append(
                    AppendChain(
                        event.publisher,
                        event.numbers,
                        event.after,
                        event.topic,
                        event.counts,
                        event.messages,
                        Source(producer, before + 1),
                        problem,
                    )
                )
            elif type(event) is MessagesReceived:
                consumer.counters["messages_in"] += len(event.messages)
                parts = event.batches(consumer.max_message_bytes)
                chains += [
                    AppendChain("", [0], 0, event.topic, [len(data)], pack_texts(data)) for data in parts
                ]
            elif isinstance(event, MessageDropped):
                consumer.counters["dropped_invalid"] += 1
                log(logger, logging.WARNING, "message dropped", peer=connection.peer, reason=event.reason)
            elif not isinstance(event, HelloDone | PongReceived):
                connection.fail(CloseCode.UNEXPECTED_PACKET)
                break
        if chains:
            consumer.logs.append(chains)
            self._pause_if_congested(connection)

    def writable(self, connection: Connection) -> None:
        """Resume reading from a producer that has read its answers."""
        if connection in self._slow:
            self._slow.discard(connection)
            connection.resume_reading()

    def resume_if_settled(self) -> None:
        """Resume reading from producers if the disk has caught up."""
        if self._paused and not self._consumer.logs.congested:
            paused, self._paused = self._paused, set()
            for connection in paused:
                connection.resume_reading()

    def _pause_if_congested(self, connection: Connection) -> None:
        """Stop reading from a producer until the disk has caught up, and until it has read its answers."""
        if self._consumer.logs.congested and connection not in self._paused:
            self._paused.add(connection)
            connection.pause_reading()
        if connection.congested and connection not in self._slow:
            self._slow.add(connection)
            connection.pause_reading()

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Forget a producer that is gone."""
        self._producers.pop(connection, None)
        self._consumer.peers.discard(connection)
        self._paused.discard(connection)
        self._slow.discard(connection)


class SubscribeEndpoint(Handler):
    """Serve `/subscribe` or `/subscribe/<topic>`: one handler for each subscriber.

    Args:
        consumer: The node.
        topic: The topic of a classic subscriber; a v2 subscriber names its topics in packets.
    """

    peer_role = "subscriber"

    def __init__(self, consumer: Consumer, topic: str | None) -> None:
        self._consumer = consumer
        self._topic = topic
        self._readers: dict[str, Reader] = {}
        # None for nearly all, because it takes memory.
        self._memberships: Memberships | None = None
        self._named: NamedSubscriptions | None = None
        self._follower: Follower | None = None
        self._turns = ReaderTurns(consumer.cutting)
        self._refused = self._classic = False

    def established(self, connection: Connection) -> None:
        """Subscribe a classic subscriber."""
        if connection.session.v2:
            self._consumer.greet(connection)
            return
        if self._topic is None:
            connection.fail(CloseCode.UNEXPECTED_PACKET, "the classic endpoint is /subscribe/TOPIC")
            return
        if problem := self._not_allowed(connection, self._topic):
            connection.fail(CloseCode.NOT_ALLOWED, problem)
            return
        self._classic = True
        self._consumer.topics.subscribe(self._topic, connection)
        # With a log that others append to, messages come only once it is known.
        self._consumer.logs.opening(self._consumer.logs.reading(self._topic, 1))
        self._consumer.subscribers.add(self, connection, self._topic)
        self._consumer.subscribers.relieve()

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Subscribe and unsubscribe; close the connection on any other packet."""
        for event in events:
            if isinstance(event, GROUP_PACKETS):
                self._memberships_of(connection).receive(event)
                if isinstance(event, v2.Leave):
                    self._release(connection, event.topic)
            elif isinstance(event, v2.Subscribe):
                self._subscribe(connection, event)
            elif isinstance(event, v2.Follow):
                self._follow(connection, event)
            elif isinstance(event, v2.Commit):
                self._commit(connection, event)
            elif isinstance(event, v2.Unsubscribe):
                self._unsubscribe(event.topic)
                self._release(connection, event.topic)
                connection.send_packet(v2.Unsubscribed(event.topic))
            elif not isinstance(event, HelloDone | PongReceived):
                connection.fail(CloseCode.UNEXPECTED_PACKET, "publish at a producer's /produce")
                return

    def writable(self, connection: Connection) -> None:
        """Let the readers continue in their logs, and the batches that wait for classic subscribers."""
        if self._topic is not None:
            self._consumer.classic.resume(self._topic)
        for reader in list(self._readers.values()):
            reader.catch_up()
        if self._memberships is not None:
            self._memberships.writable()

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Unsubscribe from all topics."""
        if self._topic is not None:
            self._consumer.topics.unsubscribe(self._topic, connection)
            self._consumer.classic.resume(self._topic)
            if self._classic:
                self._consumer.logs.reading(self._topic, -1)
        self._consumer.peers.discard(connection)
        self._consumer.subscribers.remove(self)
        self._drop_readers()
        self._leave_all()
        self._stop_following()
        if closed.code == CloseCode.TRY_AGAIN_LATER and not closed.by_peer:
            self._consumer.counters["slow_subscribers"] += 1

    def refuse(self, connection: Connection) -> None:
        """End all subscriptions, because this connection has the most and there is no room for more."""
        self._refused = True
        reason = f"there is no room for more, and this connection has the most: {len(self._readers)}"
        connection.fail(CloseCode.TOO_MANY_SUBSCRIPTIONS, reason)
        self._drop_readers()
        self._leave_all()
        self._stop_following()

    def _drop_readers(self) -> None:
        """Unsubscribe from all topics, some in each turn of the loop."""
        for topic in list(itertools.islice(self._readers, DROPPED_READERS)):
            self._unsubscribe(topic)
        if self._readers:
            asyncio.get_running_loop().call_soon(self._drop_readers)

    def _leave_all(self) -> None:
        """Leave all groups, and use no name of a reader any more."""
        if self._memberships is not None:
            self._memberships.leave_all()
        if self._named is not None:
            self._named.leave_all()

    def _memberships_of(self, connection: Connection) -> Memberships:
        consumer = self._consumer
        if self._memberships is None:
            self._memberships = Memberships(
                connection,
                self,
                groups=consumer.groups,
                clients=consumer.clients,
                subscribers=consumer.subscribers,
                max_topic_bytes=lambda: consumer.max_topic_bytes,
            )
        return self._memberships

    def _named_of(self, connection: Connection) -> NamedSubscriptions:
        if self._named is None:
            consumer = self._consumer
            self._named = NamedSubscriptions(connection, self, consumer.named_readers, consumer.subscribers)
        return self._named

    def _not_allowed(self, connection: Connection, topic: str, reader: str | None = None) -> str:
        """Return why a subscription is not allowed, "" if it is; a refusal is counted and logged."""
        client = self._consumer.clients.of(connection)
        problem = "" if client is None else client.subscribes(topic)
        if client is not None and not problem and reader is not None:
            problem = client.reads_as(reader)
        if problem:
            self._consumer.clients.note_refusal(connection, topic, problem)
        return problem

    def _release(self, connection: Connection, topic: str) -> None:
        """Note that a client has given up a topic, unless it still subscribes to it or works on it."""
        client = self._consumer.clients.of(connection)
        works = self._memberships is not None and self._memberships.include(topic)
        if client is not None and not works and topic not in self._readers:
            client.unsubscribes(topic)

    def _commit(self, connection: Connection, packet: v2.Commit) -> None:
        """Keep how far a named reader has come, whether it is subscribed now or not."""
        if self._refused:
            return
        named = self._named_of(connection)
        if not named.uses(packet.topic, packet.reader):
            if self._not_allowed(connection, packet.topic, packet.reader):
                connection.send_packet(v2.Unsubscribed(packet.topic, "not_allowed"))
                return
            if self._consumer.too_long(packet.topic):
                self._say_too_long(connection)
                return
        named.commit(packet)

    def _say_too_long(self, connection: Connection) -> None:
        connection.fail(CloseCode.TOPIC_TOO_LONG, f"at most {self._consumer.max_topic_bytes} bytes")

    def _follow(self, connection: Connection, packet: v2.Follow) -> None:
        """Subscribe to all topics with a prefix, and to those that begin later, instead of an earlier one."""
        if self._refused:
            return
        self._stop_following()
        client = self._consumer.clients.of(connection)
        if problem := "" if client is None else client.follows(packet.prefix):
            self._consumer.clients.note_refusal(connection, packet.prefix, problem)
            connection.send_packet(v2.Followed(packet.prefix, "not_allowed"))
        elif self._consumer.too_long(packet.prefix):
            self._say_too_long(connection)
        else:
            self._follower = Follower(
                connection,
                packet,
                prefixes=self._consumer.prefixes,
                readers=self._readers,
                turns=self._turns,
                join=partial(self._subscribe, connection),
            )

    def _stop_following(self) -> None:
        if self._follower is not None:
            self._follower.stop()
            self._follower = None

    def _subscribe(self, connection: Connection, packet: v2.Subscribe) -> None:
        if self._refused:
            return
        if self._not_allowed(connection, packet.topic, packet.reader):
            connection.send_packet(v2.Unsubscribed(packet.topic, "not_allowed"))
        elif self._consumer.too_long(packet.topic):
            self._say_too_long(connection)
        elif len(self._readers) >= MAX_TOPICS_PER_CONNECTION:
            connection.fail(CloseCode.TOO_MANY_TOPICS, f"at most {MAX_TOPICS_PER_CONNECTION}")
        else:
            self._unsubscribe(packet.topic)
            if packet.reader is None:
                self._begin(connection, packet)
            else:
                begin = partial(self._begin, connection)
                self._named_of(connection).subscribe(packet, packet.reader, begin)

    def _begin(self, connection: Connection, packet: v2.Subscribe) -> None:
        consumer = self._consumer
        # First, so that empty topics make room.
        consumer.subscribers.add(self, connection, packet.topic)
        reader = Reader(
            connection,
            consumer.logs,
            packet,
            counters=consumer.counters,
            behind=consumer.behind,
            turns=self._turns,
        )
        self._readers[reader.topic] = reader
        consumer.readers.subscribe(reader.topic, reader)
        reader.catch_up()
        consumer.subscribers.relieve()

    def _unsubscribe(self, topic: str) -> None:
        if self._named is not None:
            self._named.end(topic)
        reader = self._readers.pop(topic, None)
        if reader is not None:
            self._consumer.readers.unsubscribe(topic, reader)
            self._consumer.subscribers.end_one(self, topic)
            reader.stop()
