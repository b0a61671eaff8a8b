"""The producer: takes messages from publishers and forwards each to the consumer of its topic."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from typing import ClassVar

from . import packets
from .addresses import Address
from .config import READ_MARGIN_BYTES, NodeConfig, ProducerConfig
from .connection import HELD_OVERHEAD_BYTES, Connection, Handler
from .errors import CloseCode, Closed
from .framing import HttpAnswer
from .hello import PreSharedKey
from .link import Link
from .routing import router
from .session import Event, Received
from .tls import TlsContexts

SLICE_BYTES = 256 * 1024
"""What is written at a time of what was held, so that a slow link is noticed before it is flooded."""

SLOW_LINK_BYTES = 1024 * 1024
"""What may wait for a consumer that is up and slow: more would only add delay."""


class ConsumerLink(Link):
    """Keep the link to one consumer, and hold what it cannot take now.

    Args:
        address: Of the consumer.
        config: Of this producer.
        psk: The key of both ends.
        counters: Where events are counted.
        tls: For its connections.
    """

    def __init__(
        self,
        address: Address,
        config: ProducerConfig,
        psk: PreSharedKey,
        counters: Counter[str],
        tls: TlsContexts,
    ) -> None:
        super().__init__([address], psk, config.hello_order, config.limits, tls)
        self.held: deque[bytes] = deque()
        self._held_bytes = self._held_at_reload = 0
        self._blocked: set[Connection] = set()
        self._counters = counters
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def _full(self) -> bool:
        limit = self._limits.max_held_bytes
        if self.connection is not None:
            limit = min(limit, SLOW_LINK_BYTES)
        return self._held_bytes >= limit

    def forward(self, payloads: Sequence[bytes], publisher: Connection, publishers: int) -> None:
        """Send messages now or hold them, and stop reading from the publisher when too much is held.

        A publisher that comes when too much is held has been read once before it is stopped. When those
        that came and went have left as much again, it is closed with 1013, and what was read is lost.

        Args:
            payloads: All of one read.
            publisher: Where they come from.
            publishers: How many there are now.
        """
        if self.open and not self.held:
            self.send(payloads)
            self._counters["forwarded"] += len(payloads)
            return
        limits = self._limits
        one_read = limits.max_message_bytes + READ_MARGIN_BYTES
        far_too_much = 2 * limits.max_held_bytes + publishers * one_read + self._held_at_reload
        if self._held_bytes >= far_too_much:
            self._counters["lost_full"] += len(payloads)
            publisher.fail(CloseCode.TRY_AGAIN_LATER, "too much is held for the consumer of this topic")
            return
        self.hold(payloads)
        if self._full and publisher not in self._blocked:
            self._blocked.add(publisher)
            publisher.pause_reading()

    def hold(self, payloads: Sequence[bytes]) -> None:
        """Keep messages until the consumer takes them."""
        self.held.extend(payloads)
        self._held_bytes += sum(map(len, payloads)) + HELD_OVERHEAD_BYTES * len(payloads)
        self._emptied.clear()

    def take_held(self) -> list[bytes]:
        """Give up all that is held, and let its publishers go on."""
        held = list(self.held)
        self.held.clear()
        self._held_bytes = 0
        self._emptied.set()
        self._unblock()
        return held

    def forget(self, publisher: Connection) -> None:
        """Let go of a publisher that is gone."""
        self._blocked.discard(publisher)

    def resume(self) -> None:
        """Go on after a reload: connect if this link is new, and send what is held."""
        # What was another link's, or within another limit, is nobody's fault.
        self._held_at_reload = self._held_bytes
        self.start()
        self._send_held()

    async def drain(self) -> None:
        """Wait until the consumer has dealt with all that was bound for it."""
        await self._emptied.wait()
        await self.all_confirmed()

    def up(self) -> None:
        """Send what was held."""
        self._send_held()

    def writable(self, connection: Connection) -> None:
        """Send what was held."""
        self._send_held()

    def down(self, closed: Closed, lost: int) -> None:
        """Count what may be lost; later messages are held, and more of them than for a slow consumer."""
        self._counters["lost_in_flight"] += lost
        if not self._full:
            self._unblock()

    def _send_held(self) -> None:
        while self.held and self.open:
            size = 0
            payloads = []
            while self.held and size < SLICE_BYTES:
                payload = self.held.popleft()
                payloads.append(payload)
                size += len(payload)
            self._held_bytes -= size + HELD_OVERHEAD_BYTES * len(payloads)
            self.send(payloads)
            self._counters["forwarded"] += len(payloads)
        if not self.held:
            self._emptied.set()
            self._held_at_reload = 0
        if not self._full:
            self._unblock()

    def _unblock(self) -> None:
        blocked, self._blocked = self._blocked, set()
        for publisher in blocked:
            publisher.resume_reading()


class Producer:
    """Route messages to the links of one producer; it is also the handler of every publisher.

    Args:
        config: Consumers, in the order that all nodes share, and limits.
        psk: The key of both ends.
        counters: Where events are counted.
        tls: For the links.
    """

    role = "producer"
    config_type: ClassVar[type[NodeConfig]] = ProducerConfig
    feeds = True

    def __init__(
        self, config: ProducerConfig, psk: PreSharedKey, counters: Counter[str], tls: TlsContexts
    ) -> None:
        self.counters = counters
        self._psk, self._config, self._tls = psk, config, tls
        self.links = [self._link(address) for address in config.links]
        self._route = router(len(self.links))
        self._publishers = 0
        self._retired: dict[ConsumerLink, asyncio.Task[None]] = {}

    def endpoint(self, path: str) -> Handler | HttpAnswer:
        """Return what serves a path: `/produce`."""
        if path == "/produce":
            return self
        return HttpAnswer(404, "Not found: this producer has /produce.\n")

    def start(self) -> None:
        """Begin to connect to all consumers."""
        for link in self.links:
            link.start()

    def not_ready(self) -> str:
        """Return why the node is not ready: the consumers whose links are down."""
        down = [str(link.addresses[0]) for link in self.links if link.connection is None]
        return f"no link to {', '.join(down)}" if down else ""

    def status(self) -> str:
        """Return how the node is, in a few words."""
        up = sum(link.connection is not None for link in self.links)
        return f"{up} of {len(self.links)} links up"

    def reload(self, config: ProducerConfig, psk: PreSharedKey, tls: TlsContexts) -> None:
        """Use a new configuration: keep the links that stay, and route all that is held anew."""
        old = {link.addresses[0]: link for link in self.links}
        changed = config.links != [link.addresses[0] for link in self.links]
        self._psk, self._config, self._tls = psk, config, tls
        for link in self.links:
            link.reconfigure(psk, config.hello_order, config.limits, tls)
        if not changed:
            return
        self.links = []
        for address in config.links:
            self.links.append(old.pop(address) if address in old else self._link(address))
        self._route = router(len(self.links))
        held = [payload for link in (*old.values(), *self.links) for payload in link.take_held()]
        for link in old.values():
            self._retire(link)
        for payload in held:
            message = packets.decode(payload)
            assert isinstance(message, packets.Message)
            self.links[self._route(message.topic)].hold([payload])
        for link in self.links:
            link.resume()

    async def drain(self) -> None:
        """Wait until the consumers have dealt with all that was published."""
        await asyncio.gather(*(link.drain() for link in self.links))

    async def stop(self) -> None:
        """Close the links; what is still held is lost, and counted."""
        self.counters["lost_held"] += sum(len(link.take_held()) for link in self.links)
        await asyncio.gather(*(link.stop() for link in (*self.links, *self._retired)))

    def abort(self) -> None:
        """Cut the links; what was in flight on them may be lost, and is counted."""
        for link in (*self.links, *self._retired):
            link.abort()

    def established(self, connection: Connection) -> None:
        """Take a publisher."""
        self._publishers += 1

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Forward all messages of one read, with one write for each consumer."""
        batches: dict[int, list[bytes]] = {}
        for event in events:
            if type(event) is Received:
                batches.setdefault(self._route(event.topic), []).extend(event.payloads)
        for index, payloads in batches.items():
            self.counters["messages_in"] += len(payloads)
            self.links[index].forward(payloads, connection, self._publishers)

    def writable(self, connection: Connection) -> None:
        """Do nothing: nothing but pongs goes to a publisher."""

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Let a publisher go."""
        self._publishers -= connection.established
        for link in self.links:
            link.forget(connection)

    def _link(self, address: Address) -> ConsumerLink:
        return ConsumerLink(address, self._config, self._psk, self.counters, self._tls)

    def _retire(self, link: ConsumerLink) -> None:
        task = asyncio.create_task(link.stop())
        self._retired[link] = task
        task.add_done_callback(lambda _task: self._retired.pop(link))
