"""The consumer: takes messages from producers and fans them out to the subscribers of their topic."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import unquote

from ..config.keys import Keys
from ..config.model import ConsumerConfig, NodeConfig
from ..errors import WsqueueError
from ..journal import log
from ..log.memory import Batch, Outcome, TopicLogs
from ..net.certificates import TlsContexts
from ..net.connection import Connection, Handler
from ..protocol import classic, v2
from ..protocol.close import CloseCode, Closed
from ..protocol.frames import frame_texts
from ..protocol.framing import HttpResponse, PongReceived
from ..protocol.session import Event, HelloDone, MessagesReceived
from ..report.report import Facts, SlowPeer
from ..report.stats import TopTopics
from .reader import Reader
from .topics import Topics

logger = logging.getLogger(__name__)

SUBSCRIBE = "/subscribe"

MAX_TOPICS_PER_CONNECTION = 10_000
"""Subscriptions of one connection: 5 MiB of readers; a client with more opens another."""


CLASSIC_SLICE_MESSAGES = 1000
"""What is framed at a time for classic subscribers, whose messages can be far longer than their batch."""

TRIM_SECONDS = 10.0
"""How often to look for messages that are too old: a small part of any useful age."""


class Source:
    """Say which batch of which producer's connection one was."""

    __slots__ = ("connection", "number")

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection, self.number = connection, number


class Consumer:
    """Hold the topics of one consumer.

    Args:
        config: Its limits and its retention are used; the service does the rest.
        keys: Not used, for a consumer opens no connection.
        counters: Where events are counted.
        tls: Not used either.
    """

    role = "consumer"
    config_type: ClassVar[type[NodeConfig]] = ConsumerConfig

    def __init__(self, config: ConsumerConfig, keys: Keys, counters: Counter[str], tls: TlsContexts) -> None:
        self.counters = counters
        self.topics: Topics[Connection] = Topics()
        self.readers: Topics[Reader] = Topics()
        self.behind: set[Reader] = set()
        self.top_topics = TopTopics()
        self._monitoring = config.monitoring
        self.retention = TopicLogs(config.retention, self._done)
        self.max_topic_bytes = config.limits.max_topic_bytes
        self.max_message_bytes = config.limits.max_message_bytes
        self._producer_endpoint = ProducerEndpoint(self)
        self._trimming: asyncio.Task[None] | None = None

    def endpoint(self, path: str) -> Handler | HttpResponse:
        """Return what serves a path: `/producer`, `/subscribe` or `/subscribe/<percent-encoded topic>`."""
        if path == "/producer":
            return self._producer_endpoint
        if path == SUBSCRIBE:
            return SubscribeEndpoint(self, None)
        if not path.startswith(f"{SUBSCRIBE}/"):
            return HttpResponse(404, "Not found: this consumer has /producer and /subscribe/TOPIC.\n")
        try:
            topic = unquote(path.removeprefix(f"{SUBSCRIBE}/"), errors="strict")
        except UnicodeDecodeError:
            return HttpResponse(400, "The topic is not percent-encoded UTF-8.\n")
        if self.too_long(topic):
            return HttpResponse(400, f"The topic has more than {self.max_topic_bytes} bytes.\n")
        return SubscribeEndpoint(self, topic)

    async def start(self) -> None:
        """Open the logs of the topics.

        Raises:
            ConfigError: Their directory cannot be used.
            StorageError: Its disk is full or does not work.
        """
        await self.retention.open()
        self._trimming = asyncio.create_task(self._trim())

    def not_ready(self) -> str:
        """Return why the node is not ready; a consumer that runs is."""
        return ""

    def facts(self, window_seconds: float) -> Facts:
        """Return how the node is, at length."""
        slow: dict[Connection, int] = {}
        for reader in self.behind:
            slow[reader.connection] = slow.get(reader.connection, 0) + reader.missing
        return Facts(
            commit_seconds=self.retention.commit_seconds(),
            top_topics=self.top_topics.top(self._monitoring.top_topics, window_seconds),
            slow_peers=[
                SlowPeer(connection.peer, "v2", connection.buffered_bytes, missing)
                for connection, missing in slow.items()
            ],
            log=self.retention.log_status(),
        )

    def status(self) -> str:
        """Return how the node is, in a few words."""
        return f"topics with subscribers: {len(self.topics)} classic, {len(self.readers)} v2"

    def reload(self, config: ConsumerConfig, keys: Keys, tls: TlsContexts) -> None:
        """Use a new configuration from now on."""
        self.max_topic_bytes = config.limits.max_topic_bytes
        self.max_message_bytes = config.limits.max_message_bytes
        self._monitoring = config.monitoring
        self.retention.reconfigure(config.retention)

    async def drain(self) -> None:
        """Wait until what came in is stored, and so has gone out."""
        await self.retention.settle()

    async def stop(self) -> None:
        """Close the logs of the topics."""
        if self._trimming is None:
            return
        self._trimming.cancel()
        self._trimming = None
        try:
            await self.retention.close()
        except WsqueueError as error:
            log(logger, logging.ERROR, "snapshot failed", reason=error)

    def abort(self) -> None:
        """Do nothing: a consumer opens no connection."""

    def too_long(self, topic: str) -> bool:
        """Tell whether a topic has more bytes than it may have."""
        return classic.topic_too_long(topic, self.max_topic_bytes)

    def _done(self, outcomes: list[Outcome]) -> None:
        """Deliver what is stored, and tell the producers (the retention calls this)."""
        stored: dict[str, list[Outcome]] = {}
        acks: dict[Connection, tuple[int, int]] = {}
        for outcome in outcomes:
            if outcome.record is not None:
                stored.setdefault(outcome.record.topic, []).append(outcome)
            if not isinstance(source := outcome.batch.source, Source):
                continue
            connection, number = source.connection, source.number
            if (code := outcome.code) is not None:
                if connection in acks:
                    connection.send_packet(v2.Ack([acks.pop(connection)]))
                self.counters[f"batches_refused_{code}"] += 1
                connection.send_packet(v2.Refused(number, code, outcome.reason))
                continue
            self.counters["repeats"] += outcome.record is None
            acks[connection] = (acks[connection][0] if connection in acks else number, number)
        for topic, its in stored.items():
            self._deliver(topic, its)
        for connection, numbers in acks.items():
            connection.send_packet(v2.Ack([numbers]))
        self._producer_endpoint.resume_if_settled()

    def _deliver(self, topic: str, outcomes: Sequence[Outcome]) -> None:
        """Fan messages of one topic out: they are one write for each of its subscribers."""
        records = [outcome.record for outcome in outcomes if outcome.record is not None]
        count = sum(record.count for record in records)
        counts = self.top_topics.counts
        if topic in counts:
            counts[topic] += count
        else:
            self.top_topics.count(topic, count)
        subscribers = self.topics.subscribers(topic)
        readers = self.readers.subscribers(topic)
        if subscribers:
            messages = [data for outcome in outcomes for data in _data(outcome)]
            for begin in range(0, len(messages), CLASSIC_SLICE_MESSAGES):
                some = messages[begin : begin + CLASSIC_SLICE_MESSAGES]
                frames = frame_texts(
                    [classic.encode(classic.Message(data, topic)) for data in some], masked=False
                )
                reached = sum(subscriber.send_frames(frames) for subscriber in subscribers)
                self.counters["deliveries"] += len(some) * reached
        if readers:
            frames = frame_texts([record.packet for record in records], masked=False)
            reached = sum(reader.take(records[0].offset, records[-1].end, frames) for reader in readers)
            self.counters["deliveries"] += count * reached
        if not subscribers and not readers:
            self.counters["without_subscriber"] += count

    async def _trim(self) -> None:
        while True:
            await asyncio.sleep(TRIM_SECONDS)
            self.retention.trim()


def _data(outcome: Outcome) -> list[str]:
    """Return the messages of a batch that is stored, which may only be there as they are in the log."""
    if not outcome.batch.data and outcome.record is not None:
        deliver = v2.decode(outcome.record.packet)
        assert isinstance(deliver, v2.Deliver)
        return deliver.data
    return outcome.batch.data


class ProducerEndpoint(Handler):
    """Serve `/producer`, one for all producers."""

    peer_role = "producer"
    peer_sends_messages = True
    peer_is_node = True

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._received: dict[Connection, int] = {}
        self._paused: set[Connection] = set()

    def established(self, connection: Connection) -> None:
        """Take a producer."""
        self._received[connection] = 0

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Store and deliver what a producer sends."""
        consumer = self._consumer
        batches: list[Batch] = []
        for event in events:
            if type(event) is v2.Forward:
                number = self._received[connection] = self._received[connection] + 1
                consumer.counters["messages_in"] += event.count
                problem: v2.RefusalCode | None = None
                if len(event.data) != event.count:
                    problem = "invalid"
                elif consumer.too_long(event.topic):
                    problem = "topic_too_long"
                batches.append(
                    Batch(
                        event.topic,
                        event.data,
                        event.publisher,
                        event.number,
                        event.after,
                        Source(connection, number),
                        problem,
                    )
                )
            elif type(event) is MessagesReceived:
                consumer.counters["messages_in"] += len(event.messages)
                batches += [Batch(event.topic, data) for data in event.batches(consumer.max_message_bytes)]
            elif not isinstance(event, HelloDone | PongReceived):
                connection.fail(CloseCode.UNEXPECTED_PACKET)
                break
        if batches:
            consumer.retention.append(batches)
            if consumer.retention.congested and connection not in self._paused:
                self._paused.add(connection)
                connection.pause_reading()

    def resume_if_settled(self) -> None:
        """Read on when the disk has caught up."""
        if self._paused and not self._consumer.retention.congested:
            paused, self._paused = self._paused, set()
            for connection in paused:
                connection.resume_reading()

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Let a producer go."""
        self._received.pop(connection, None)
        self._paused.discard(connection)


class SubscribeEndpoint(Handler):
    """Serve `/subscribe` or `/subscribe/<topic>`, one for each subscriber.

    Args:
        consumer: The node.
        topic: What a classic subscriber subscribes to; one that speaks v2 says it in packets.
    """

    peer_role = "subscriber"

    def __init__(self, consumer: Consumer, topic: str | None) -> None:
        self._consumer = consumer
        self._topic = topic
        self._readers: dict[str, Reader] = {}
        self._turn = asyncio.Lock()

    def established(self, connection: Connection) -> None:
        """Subscribe a classic subscriber."""
        if connection.session.v2:
            return
        if self._topic is None:
            connection.fail(CloseCode.UNEXPECTED_PACKET, "the classic endpoint is /subscribe/TOPIC")
            return
        self._consumer.topics.subscribe(self._topic, connection)

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Subscribe and unsubscribe; refuse messages, for a subscriber listens."""
        for event in events:
            if isinstance(event, v2.Subscribe):
                self._subscribe(connection, event)
            elif isinstance(event, v2.Unsubscribe):
                self._unsubscribe(event.topic)
                connection.send_packet(v2.Unsubscribed(event.topic))
            elif not isinstance(event, HelloDone | PongReceived):
                connection.fail(CloseCode.UNEXPECTED_PACKET, "publish at a producer's /produce")
                return

    def writable(self, connection: Connection) -> None:
        """Send what readers had to leave in the log; a classic subscriber that is too slow is closed."""
        for reader in list(self._readers.values()):
            reader.catch_up()

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Unsubscribe."""
        if self._topic is not None:
            self._consumer.topics.unsubscribe(self._topic, connection)
        for topic in list(self._readers):
            self._unsubscribe(topic)
        if closed.code == CloseCode.TRY_AGAIN_LATER and not closed.by_peer:
            self._consumer.counters["slow_subscribers"] += 1

    def _subscribe(self, connection: Connection, packet: v2.Subscribe) -> None:
        consumer = self._consumer
        if consumer.too_long(packet.topic):
            connection.fail(CloseCode.TOPIC_TOO_LONG, f"at most {consumer.max_topic_bytes} bytes")
        elif len(self._readers) >= MAX_TOPICS_PER_CONNECTION:
            connection.fail(CloseCode.TOO_MANY_TOPICS, f"at most {MAX_TOPICS_PER_CONNECTION}")
        else:
            self._unsubscribe(packet.topic)
            reader = Reader(
                connection,
                consumer.retention,
                packet,
                consumer.counters,
                behind=consumer.behind,
                turn=self._turn,
            )
            self._readers[packet.topic] = reader
            consumer.readers.subscribe(packet.topic, reader)
            reader.catch_up()

    def _unsubscribe(self, topic: str) -> None:
        reader = self._readers.pop(topic, None)
        if reader is not None:
            self._consumer.readers.unsubscribe(topic, reader)
            reader.stop()
