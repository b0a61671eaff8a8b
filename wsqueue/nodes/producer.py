"""The producer: takes messages from publishers and forwards each to the consumer of its topic."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Collection
from time import monotonic
from typing import ClassVar

from ..config.addresses import Address
from ..config.keys import Keys
from ..config.model import NodeConfig, ProducerConfig
from ..errors import WsqueueError
from ..journal import log
from ..net.buffers import Buffers
from ..net.certificates import TlsContexts
from ..net.connection import Connection, Handler, Traffic
from ..net.timers import Timer
from ..protocol import classic
from ..protocol import v2 as packets_v2
from ..protocol.access import ANYBODY, Identity
from ..protocol.base64url import base64url
from ..protocol.close import CloseCode, Closed
from ..protocol.framing import Get, HttpResponse, PongReceived, Post
from ..protocol.packed import Packed, pack_texts
from ..protocol.placement import Placement
from ..protocol.session import Event, HelloDone, MessagesReceived
from ..protocol.upgrade import too_large, topic_in_path
from ..report.report import Facts
from ..report.stats import Histogram, TopTopics
from .chains import MAX_CHAIN_BYTES, Chain, packet_bytes
from .clients import Clients
from .consumer_link import ConsumerLink
from .link_queue import ForwardChain, Origin, RefusedBatches, forward_chain
from .operator_endpoint import OperationFailed
from .publish_request import PublishRequest, Requester

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.5
"""Time between two looks at the consumers while one is not usable, or not back: little beside 3 seconds."""

DELIVERY_BYTES = 64
"""Maximum bytes by which the packet that delivers a batch is longer than the one that forwards it."""

PUBLISH = "/publish/"
"""Begin of the paths to which messages are posted."""

NOT_FOUND = HttpResponse(404, "Not found: this producer has /produce and /publish/TOPIC.\n")

NO_EVENTS = HttpResponse(
    404, "Not found: a producer keeps no messages; the consumer of the topic has /events/TOPIC.\n"
)

ONLY_POST = HttpResponse(405, "Only POST is answered here.\n", headers={"Allow": "POST"})

OUT_OF_ORDER = "the numbers of batches do not rise, or `after` is not before the number"
"""Reason for closing a publisher."""

PUBLIC_ID_BYTES = 16
"""Length of a publisher's public id: short, and no other secret with the same id can be found."""


class Producer(Handler):
    """Route messages to the links of one producer; it is also the handler of every publisher.

    Args:
        config: Consumers, in the order that all nodes share, and limits.
        keys: Keys of the service; the links use that of nodes.
        counters: Counters of this node.
        tls: TLS contexts of the links.
        clients: Knows the rights of publishers.
    """

    role = "producer"
    peer_role = "publisher"
    config_type: ClassVar[type[NodeConfig]] = ProducerConfig
    peer_sends_messages = True

    def __init__(
        self,
        config: ProducerConfig,
        keys: Keys,
        counters: Counter[str],
        tls: TlsContexts,
        clients: Clients,
    ) -> None:
        self.on_failure: Callable[[WsqueueError], None] = lambda _error: None
        self.counters = counters
        self.traffic = Traffic()
        self.buffers = Buffers(config.limits.max_total_buffered_bytes)
        self.top_topics = TopTopics()
        self._confirm_seconds = Histogram()
        self._psk, self._config, self._tls = keys.nodes, config, tls
        self._refused = RefusedBatches()
        self.links = [self._link(address) for address in config.links]
        self._place_anew()
        self._timer: Timer | None = None
        self._stopping = False
        self._clients = clients
        self._publishers: dict[Connection, Origin] = {}
        # This node numbers the batches of classic publishers.
        self._id = public_id(secrets.token_bytes(packets_v2.NONCE_BYTES), ANYBODY)
        self._number = 0
        self._retired: dict[ConsumerLink, asyncio.Task[None]] = {}

    def endpoint(self, path: str) -> Handler | HttpResponse:
        """Return the handler of `/produce`, or an error page for any other path."""
        if path == "/produce":
            return self
        return ONLY_POST if path.startswith(PUBLISH) else NOT_FOUND

    def post_endpoint(self, path: str, post: Post) -> Handler | HttpResponse:
        """Return the handler of `/publish/<percent-encoded topic>`, or an error page for any other path."""
        if not path.startswith(PUBLISH) or path == PUBLISH:
            return NOT_FOUND
        limits = self._config.limits
        topic = topic_in_path(path.removeprefix(PUBLISH), limits.max_topic_bytes, too_long=414)
        if isinstance(topic, HttpResponse):
            return topic
        if (post.size or 0) > limits.max_message_bytes:
            return too_large(limits.max_message_bytes)
        return PublishRequest(self, topic, post)

    def events_endpoint(self, _path: str, _query: str, _get: Get, _origin: str | None) -> HttpResponse:
        """Return the page that refuses it: consumers keep messages."""
        return NO_EVENTS

    async def start(self) -> None:
        """Begin to connect to all consumers."""
        for link in self.links:
            link.start()

    def not_ready(self) -> str:
        """Return why the node is not ready: the consumers whose topics nobody can take now."""
        links = [link for index, link in enumerate(self.links) if not self._placement.served(index)]
        down = [str(link.addresses[0]) for link in links if link.connection is None]
        if down:
            return f"no link to {', '.join(down)}"
        return f"no log at {', '.join(str(link.addresses[0]) for link in links)}" if links else ""

    async def operate(
        self, _connection: Connection, _request: packets_v2.OperatorRequest
    ) -> packets_v2.OperatorAnswer:
        """Refuse a request that only a consumer can do.

        Raises:
            OperationFailed: Always.
        """
        raise OperationFailed("unsupported", "a producer keeps no topics: expected a consumer")

    def facts(self, window_seconds: float) -> Facts:
        """Return the values that a report has of a producer."""
        return Facts(
            links=[
                link.link_status(away=index in self._placement.elsewhere)
                for index, link in enumerate(self.links)
            ],
            confirm_seconds=self._confirm_seconds.status(),
            top_topics=self.top_topics.top(self._config.monitoring.top_topics, window_seconds),
        )

    def status(self) -> str:
        """Return the status in a few words."""
        up = sum(link.connection is not None for link in self.links)
        return f"{up} of {len(self.links)} links up"

    def reload(self, config: ProducerConfig, keys: Keys, tls: TlsContexts) -> list[str]:
        """Use a new configuration: keep the links that stay, and route all held batches anew."""
        old = {link.addresses[0]: link for link in self.links}
        changed = config.links != [link.addresses[0] for link in self.links]
        self._psk, self._config, self._tls = keys.nodes, config, tls
        self.buffers.limit = config.limits.max_total_buffered_bytes
        for link in self.links:
            link.reconfigure(self._psk, config, tls)
        if changed:
            self._change_links(config, old)
        for link in self.links:
            link.resume()
        return []

    async def drain(self) -> None:
        """Wait until the consumers have confirmed or refused all batches."""
        # Batches may move to a link that had none before.
        while not all(link.queue.empty for link in self.links):
            await asyncio.gather(*(link.drain() for link in self.links))

    async def stop(self) -> None:
        """Close the links; classic messages that are still held are lost, and counted."""
        self._stop_checking()
        held = [batch for link in self.links for batch in link.take_all()]
        self.counters["lost_held"] += sum(chain.count for chain in held if chain.origin is None)
        await asyncio.gather(*(link.stop() for link in (*self.links, *self._retired)))

    def abort(self) -> None:
        """Cut the links; classic messages in flight on them may be lost, and are counted."""
        self._stop_checking()
        for link in (*self.links, *self._retired):
            link.abort()

    def established(self, connection: Connection) -> None:
        """Take a publisher."""
        self._publishers[connection] = Origin(connection, self._clients.of(connection))

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Forward all messages of one read, with one write for each consumer."""
        origin = self._publishers[connection]
        by_link: dict[int, list[Chain | ForwardChain]] = {}
        open_chains: dict[str, Chain] = {}
        for event in events:
            if type(event) is packets_v2.Publish:
                if not origin.id:
                    connection.fail(CloseCode.UNEXPECTED_PACKET, "a publisher says first who it is")
                    break
                if not origin.number < event.number > event.after:
                    # Another batch with this number, or a later one, would pass for a repeat.
                    connection.fail(CloseCode.INVALID_PACKET, OUT_OF_ORDER)
                    break
                origin.number = event.number
                open_chain = open_chains.get(event.topic)
                if open_chain is None or not open_chain.join(event):
                    self._begin_chain(origin, event, by_link, open_chains)
            elif type(event) is MessagesReceived:
                if problem := self.not_allowed(origin, event.topic):
                    connection.fail(CloseCode.NOT_ALLOWED, problem)
                    break
                chains = by_link.setdefault(self._route(event.topic), [])
                chains += self._classic(origin, event)
            elif not _knows(origin, event):
                connection.fail(CloseCode.UNEXPECTED_PACKET)
                break
        for index, chains in by_link.items():
            self._forward(index, chains, origin)

    def _begin_chain(
        self,
        origin: Origin,
        packet: packets_v2.Publish,
        by_link: dict[int, list[Chain | ForwardChain]],
        open_chains: dict[str, Chain],
    ) -> None:
        """Forward a batch that joins no chain, or refuse it; others may join it if its consumer speaks v2."""
        chain = self._numbered(origin, packet)
        if chain is None:
            return
        index = self._route(packet.topic)
        by_link.setdefault(index, []).append(chain)
        if isinstance(chain, Chain) and self.links[index].queue.v2:
            open_chains[packet.topic] = chain
        else:
            open_chains.pop(packet.topic, None)

    def _forward(self, index: int, chains: list[Chain | ForwardChain], origin: Origin) -> None:
        """Forward all messages of one read that go through one link."""
        forwarded = [chain.forward(origin) if isinstance(chain, Chain) else chain for chain in chains]
        counts = self.top_topics.counts
        messages = 0
        for chain in forwarded:
            messages += chain.count
            try:
                counts[chain.topic] += chain.count
            except KeyError:
                self.top_topics.count(chain.topic, chain.count)
        self.counters["messages_in"] += messages
        self.links[index].forward(forwarded, origin, len(self._publishers))

    def requester(self, connection: Connection) -> Requester:
        """Return the publisher of one message, which it posts."""
        return Requester(connection, self._clients.of(connection))

    def refusal(self, topic: str) -> str:
        """Return why a batch would have to wait, "" if it is passed on at once."""
        link = self.links[self._route(topic)]
        return f"The consumer {link.addresses[0]} cannot take it now" if link.busy else ""

    def publish(self, origin: Requester, topic: str, messages: Packed, secret: bytes) -> None:
        """Publish a batch; the origin is told when it is stored, or refused.

        Args:
            origin: The publisher.
            topic: Topic of all messages.
            messages: The messages.
            secret: The same in each repeat, b"" if there are none.
        """
        if secret:
            origin.id, origin.number = public_id(secret, origin.identity), 1
        else:
            self._number += 1
            origin.id, origin.number = named_id(self._id, origin.identity), self._number
        by_link: dict[int, list[Chain | ForwardChain]] = {}
        self._begin_chain(origin, packets_v2.Publish(origin.number, 0, topic, messages), by_link, {})
        for index, chains in by_link.items():
            self._forward(index, chains, origin)

    def forget(self, origin: Origin) -> None:
        """Forget a publisher that is gone."""
        origin.connection = None
        for link in self.links:
            link.forget(origin)

    def writable(self, connection: Connection) -> None:
        """Do nothing: a publisher is only sent confirmations, refusals and pongs."""

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Forget a publisher that is gone."""
        origin = self._publishers.pop(connection, None)
        if origin is not None:
            self.forget(origin)

    def _numbered(self, origin: Origin, packet: packets_v2.Publish) -> Chain | ForwardChain | None:
        """Return a batch as a chain, which others may join or not; None if it is refused here."""
        limits = self._config.limits
        topic, number = packet.topic, packet.number
        if classic.topic_too_long(topic, limits.max_topic_bytes):
            reason = f"the topic has more than {limits.max_topic_bytes} bytes"
            self._refuse(origin, packet, "topic_too_long", reason)
            return None
        if problem := self.not_allowed(origin, topic):
            self._refuse(origin, packet, "not_allowed", problem)
            return None
        messages = packet.messages
        if not packet.whole:
            self._refuse(origin, packet, "invalid", packets_v2.INVALID_MESSAGES)
            return None
        left = min(MAX_CHAIN_BYTES, limits.max_message_bytes) - packet_bytes(messages)
        if messages.headers is None and left >= 0:
            return Chain(packet, left)
        forward = packets_v2.Forward(origin.id, [number], packet.after, topic, [messages.count], messages)
        chain = forward_chain(forward, origin)
        if len(chain.payload) > limits.max_message_bytes + packets_v2.OVERHEAD_BYTES - DELIVERY_BYTES:
            reason = f"the batch has more than {limits.max_message_bytes} bytes"
            self._refuse(origin, packet, "too_long", reason)
            return None
        return chain

    def not_allowed(self, origin: Origin, topic: str) -> str:
        """Return why a publisher may not publish to a topic, "" if it may; a refusal is counted."""
        problem = "" if origin.client is None else origin.client.publishes(topic)
        if problem:
            assert origin.connection is not None
            self._clients.note_refusal(origin.connection, topic, problem)
        return problem

    def _refuse(
        self, origin: Origin, packet: packets_v2.Publish, code: packets_v2.RefusalCode, reason: str
    ) -> None:
        """Refuse a batch, and those that come after it."""
        origin.answer(packets_v2.Refused(packet.number, code, reason))
        self._refused.note(origin.id, packet.number)

    def _classic(self, origin: Origin, event: MessagesReceived) -> list[ForwardChain]:
        """Return classic messages as batches."""
        chains: list[ForwardChain] = []
        publisher = named_id(self._id, origin.identity)
        for data in event.batches(self._config.limits.max_message_bytes):
            self._number += 1
            messages = pack_texts(data)
            packet = packets_v2.Forward(publisher, [self._number], 0, event.topic, [len(data)], messages)
            chains.append(forward_chain(packet, None))
        return chains

    def _link(self, address: Address) -> ConsumerLink:
        return ConsumerLink(
            address,
            self._config,
            self._psk,
            self.counters,
            self._tls,
            traffic=self.traffic,
            confirm_seconds=self._confirm_seconds,
            refused=self._refused,
            on_presence=self._check_soon,
        )

    def _change_links(self, config: ProducerConfig, old: dict[Address, ConsumerLink]) -> None:
        self.links = []
        for address in config.links:
            self.links.append(old.pop(address) if address in old else self._link(address))
        self._place_anew()
        self._move(old.values())
        for link in old.values():
            self._retire(link)
        self._check_soon()

    def _place_anew(self) -> None:
        """Place the topics on the links of a new list."""
        self._placement = Placement([link.presence for link in self.links])
        self._placement.check(monotonic())
        self._use_placement()

    def _use_placement(self) -> None:
        # While nobody is away, to find the link of a topic costs no more than its hash.
        placement = self._placement
        self._route = placement.consumer_of if placement.elsewhere else placement.home

    def _check_soon(self) -> None:
        """Look at the consumers soon, unless there is nothing to see before one of them changes."""
        if self._timer is None and not self._stopping and not self._placement.settled:
            self._timer = Timer(CHECK_SECONDS, self._check)

    def _check(self) -> None:
        """Let the topics of consumers that are away now, or back, move."""
        self._timer = None
        before = self._placement.elsewhere
        if self._placement.check(monotonic()):
            self._note_moves(before)
            self._use_placement()
            self._move()
            for link in self.links:
                link.resume()
        self._check_soon()

    def _note_moves(self, before: Collection[int]) -> None:
        for index, link in enumerate(self.links):
            away = index in self._placement.elsewhere
            if away == (index in before):
                continue
            if away:
                self.counters["failovers"] += 1
                log(logger, logging.WARNING, "consumer away", peer=link.addresses[0])
            else:
                log(logger, logging.INFO, "consumer back", peer=link.addresses[0])

    def _stop_checking(self) -> None:
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _move(self, retired: Collection[ConsumerLink] = ()) -> None:
        """Let each batch that is held wait at the link that its topic has now, until the links resume."""
        held: list[ForwardChain] = []
        for link in (*retired, *self.links):
            held += link.take_moved(functools.partial(self._moved, link))
        # A publisher's batches on a topic may have waited at several links.
        held.sort(key=lambda chain: (chain.publisher, chain.numbers[0]))
        for chain in held:
            self.links[self._route(chain.topic)].hold([chain])

    def _moved(self, link: ConsumerLink, topic: str) -> bool:
        """Return True if a topic has another link than this one."""
        return self.links[self._route(topic)] is not link

    def _retire(self, link: ConsumerLink) -> None:
        task = asyncio.create_task(link.stop())
        self._retired[link] = task
        task.add_done_callback(lambda _task: self._retired.pop(link))


def _knows(origin: Origin, event: Event) -> bool:
    """Take an event without messages; return False if a publisher may not send it."""
    if isinstance(event, packets_v2.Publisher) and not origin.id:
        origin.id = public_id(event.secret, origin.identity)
        return True
    return isinstance(event, HelloDone | PongReceived)


def public_id(secret: bytes, identity: Identity) -> str:
    """Return the id by which others know a publisher; they can't publish with it (docs/protocol.md)."""
    digest = hashlib.sha256(secret + identity.who.encode()).digest()[:PUBLIC_ID_BYTES]
    return named_id(base64url(digest), identity)


def named_id(unnamed: str, identity: Identity) -> str:
    """Return the id of a publisher whose key may have a name."""
    return f"{identity.name}/{unnamed}" if identity.name else unnamed
