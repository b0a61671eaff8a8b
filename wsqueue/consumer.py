"""The consumer: takes messages from producers and fans them out to the subscribers of their topic."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar
from urllib.parse import unquote

from .config import ConsumerConfig, NodeConfig
from .connection import Connection, Handler
from .errors import CloseCode, Closed
from .framing import HttpAnswer, frame_texts
from .hello import PreSharedKey
from .session import Event, Received
from .tls import TlsContexts
from .topics import Topics

SUBSCRIBE = "/subscribe/"


class Consumer:
    """Hold the topics of one consumer.

    Args:
        config: Its limits are used; the service does the rest.
        psk: Not used, for a consumer opens no connection.
        counters: Where events are counted.
        tls: Not used either.
    """

    role = "consumer"
    config_type: ClassVar[type[NodeConfig]] = ConsumerConfig

    def __init__(
        self, config: ConsumerConfig, psk: PreSharedKey, counters: Counter[str], tls: TlsContexts
    ) -> None:
        self.counters = counters
        self.topics: Topics[Connection] = Topics()
        self._max_topic_bytes = config.limits.max_topic_bytes
        self._producer_endpoint = ProducerEndpoint(self)

    def endpoint(self, path: str) -> Handler | HttpAnswer:
        """Return what serves a path: `/producer` or `/subscribe/<percent-encoded topic>`."""
        if path == "/producer":
            return self._producer_endpoint
        if not path.startswith(SUBSCRIBE):
            return HttpAnswer(404, "Not found: this consumer has /producer and /subscribe/TOPIC.\n")
        try:
            topic = unquote(path.removeprefix(SUBSCRIBE), errors="strict")
        except UnicodeDecodeError:
            return HttpAnswer(400, "The topic is not percent-encoded UTF-8.\n")
        if len(topic.encode()) > self._max_topic_bytes:
            return HttpAnswer(400, f"The topic has more than {self._max_topic_bytes} bytes.\n")
        return SubscribeEndpoint(self, topic)

    def start(self) -> None:
        """Do nothing: a consumer waits for the others."""

    def not_ready(self) -> str:
        """Return why the node is not ready; a consumer that runs is."""
        return ""

    def status(self) -> str:
        """Return how the node is, in a few words."""
        return f"{len(self.topics)} topics with subscribers"

    def reload(self, config: ConsumerConfig, psk: PreSharedKey, tls: TlsContexts) -> None:
        """Use a new configuration from now on."""
        self._max_topic_bytes = config.limits.max_topic_bytes

    async def drain(self) -> None:
        """Do nothing: what came in has gone out."""

    async def stop(self) -> None:
        """Do nothing: a consumer holds nothing."""

    def abort(self) -> None:
        """Do nothing: a consumer opens no connection."""

    def deliver(self, events: list[Event]) -> None:
        """Fan all messages of one read out: those of a topic are one write for each of its subscribers."""
        for event in events:
            if type(event) is not Received:
                continue
            count = len(event.payloads)
            self.counters["messages_in"] += count
            subscribers = self.topics.subscribers(event.topic)
            if subscribers:
                frames = frame_texts(event.payloads, masked=False)
                reached = sum(subscriber.send_frames(frames) for subscriber in subscribers)
                self.counters["deliveries"] += count * reached
            else:
                self.counters["without_subscriber"] += count


class ProducerEndpoint:
    """Serve `/producer`, one for all producers."""

    feeds = True

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def established(self, connection: Connection) -> None:
        """Take a producer."""

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Deliver what a producer sends."""
        self._consumer.deliver(events)

    def writable(self, connection: Connection) -> None:
        """Do nothing: nothing but pongs goes to a producer."""

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Let a producer go."""


class SubscribeEndpoint:
    """Serve `/subscribe/<topic>`, one for each subscriber.

    Args:
        consumer: The node.
        topic: Decoded.
    """

    feeds = False

    def __init__(self, consumer: Consumer, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic

    def established(self, connection: Connection) -> None:
        """Subscribe."""
        self._consumer.topics.subscribe(self._topic, connection)

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Refuse messages: a subscriber listens."""
        if any(isinstance(event, Received) for event in events):
            connection.fail(CloseCode.UNEXPECTED_PACKET, "publish at a producer's /produce")

    def writable(self, connection: Connection) -> None:
        """Do nothing: a subscriber that is too slow is closed, not waited for."""

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Unsubscribe."""
        self._consumer.topics.unsubscribe(self._topic, connection)
        if closed.code == CloseCode.TRY_AGAIN_LATER and not closed.by_peer:
            self._consumer.counters["slow_subscribers"] += 1
