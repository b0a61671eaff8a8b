"""The link of a producer to a consumer: a connection that is kept up, and the queue of its batches."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic

from ..config.addresses import Address
from ..config.model import ClientConfig, ProducerConfig
from ..journal import log
from ..net.certificates import TlsContexts
from ..net.classic_sender import ClassicSender
from ..net.connection import Connection, Traffic
from ..net.link import SLICE_BYTES, Link
from ..protocol import v2 as packets_v2
from ..protocol.close import CloseCode, Closed
from ..protocol.framing import PongReceived
from ..protocol.keys import PreSharedKey
from ..protocol.placement import Presence
from ..protocol.session import Event, HelloDone
from ..report.report import LinkStatus
from ..report.stats import Histogram
from .link_queue import ForwardChain, LinkQueue, Origin, RefusedBatches

logger = logging.getLogger(__name__)

TURN_SLICES = 8
"""Slices that are sent in one go: 2 MiB take a few milliseconds."""


class ConsumerLink(Link):
    """Keep the link to one consumer, and send it the batches of a queue.

    Args:
        address: Address of the consumer.
        config: Configuration of this producer.
        psk: The key of both ends.
        counters: Counters of this producer.
        tls: TLS contexts of its connections.
        traffic: Counts the bytes of the producer's connections.
        confirm_seconds: Histogram of the time that batches wait for their confirmation.
        refused: The batches that were refused on any link.
        on_presence: Called when `presence` has changed.

    Attributes:
        queue: The batches that are held.
        presence: Whether the consumer can be used, and which log it shares.
    """

    peer_role = "consumer"

    def __init__(
        self,
        address: Address,
        config: ProducerConfig,
        psk: PreSharedKey,
        counters: Counter[str],
        tls: TlsContexts,
        *,
        traffic: Traffic,
        confirm_seconds: Histogram,
        refused: RefusedBatches,
        on_presence: Callable[[], None],
    ) -> None:
        super().__init__([address], psk, config, tls, traffic)
        self.presence = Presence(self.since)
        self._on_presence = on_presence
        self._counters = counters
        self.queue = LinkQueue(config.limits, counters, confirm_seconds, refused)
        self._classic: ClassicSender | None = None
        self._next_turn: asyncio.Handle | None = None
        self._classic_before = False
        self._remade = 0
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def busy(self) -> bool:
        """Return True if a batch would have to wait here: the consumer is away, or too slow."""
        return self.connection is None or self.queue.full

    @property
    def in_flight(self) -> int:
        """Return how many classic messages would be lost if the connection broke now."""
        return self._classic.in_flight if self._classic is not None else 0

    def link_status(self, *, away: bool = False) -> LinkStatus:
        """Return how the link is; `away` says that other consumers have its topics."""
        up = self.connection is not None
        failure = self.failures.get(self.addresses[0])
        return LinkStatus(
            address=str(self.addresses[0]),
            state="up" if up else "down",
            protocol=("v2" if self.v2 else "classic") if up else "",
            seconds=monotonic() - self.since,
            reason="" if up else str(failure or "no answer yet"),
            held_messages=self.queue.held_messages,
            held_bytes=self.queue.held_bytes,
            paused_publishers=self.queue.blocked,
            remade=self._remade,
            away=away,
        )

    def reconfigure(self, psk: PreSharedKey, config: ProducerConfig | ClientConfig, tls: TlsContexts) -> None:
        """Use another key, configuration and certificates from the next connection on."""
        super().reconfigure(psk, config, tls)
        self.queue.limits = config.limits

    def forward(self, chains: Sequence[ForwardChain], publisher: Origin, publishers: int) -> None:
        """Send batches now or hold them, and stop reading from the publisher when too much is held.

        When far too much is held, the publisher is closed with 1013, and the batches are lost.

        Args:
            chains: All batches of one read.
            publisher: The publisher that sent them, which is connected.
            publishers: Number of connected publishers.
        """
        queue, connection = self.queue, publisher.connection
        assert connection is not None
        if queue.overfull(publishers):
            self._counters["lost_full"] += sum(chain.count for chain in chains if chain.origin is None)
            connection.fail(CloseCode.TRY_AGAIN_LATER, "too much is held for the consumer of this topic")
            return
        queue.hold(chains, connection.heard_at)
        self._emptied.clear()
        self._send_held()
        if queue.block(publisher):
            connection.pause_reading()

    def hold(self, chains: Sequence[ForwardChain]) -> None:
        """Keep batches that another link held, until `resume`."""
        self.queue.hold(chains)
        self._emptied.clear()

    def take_moved(self, moved: Callable[[str], bool]) -> list[ForwardChain]:
        """Give up the batches that wait and those on topics that moved, and resume their publishers."""
        taken = self.queue.take_moved(moved)
        self._pass_on()
        return taken

    def take_all(self) -> list[ForwardChain]:
        """Give up all batches that a consumer may get again, and resume their publishers."""
        taken = self.queue.take_all()
        self._pass_on()
        return taken

    def forget(self, publisher: Origin) -> None:
        """Forget a publisher that is gone."""
        self.queue.forget(publisher)

    def resume(self) -> None:
        """Go on after a reload or a move: connect if this link is new, and send the batches that are held."""
        self.queue.reloaded()
        self.start()
        self._send_held()

    async def drain(self) -> None:
        """Wait until the consumer has confirmed or refused all batches."""
        await self._emptied.wait()

    def up(self) -> None:
        """Send the batches that were held."""
        assert self.connection is not None
        self._classic = None if self.v2 else ClassicSender(self.connection)
        self.queue.connected(v2=self.v2)
        self._send_held()
        self._note_remade()
        self.presence.up(self.since, v2=self.v2)
        self._on_presence()

    def writable(self, connection: Connection) -> None:
        """Send the batches that were held."""
        self._send_held()

    def down(self, closed: Closed, lost: int) -> None:
        """Hold the unconfirmed batches for the next connection."""
        if self._classic is not None:
            self._classic.close()
            self._classic = None
            if not lost:
                # A classic consumer that closes has dealt with all messages before its close frame.
                self.queue.confirm(self.queue.sent, monotonic())
        self.queue.disconnected(closed)
        self._pass_on()
        self.presence.down(self.since)
        self._on_presence()

    def received_events(self, events: list[Event]) -> None:
        """Take the confirmations and refusals of the consumer, and which log it shares."""
        connection, queue = self.connection, self.queue
        if connection is None:
            return
        now = connection.heard_at
        if self._classic is not None:
            confirmed = self._classic.receive(events)
            if confirmed is not None:
                queue.confirm(confirmed, now)
                self._pass_on()
                self._send_held()
            return
        for event in events:
            if isinstance(event, packets_v2.Ack) and event.numbers[-1][1] <= queue.sent:
                queue.confirm(event.numbers[-1][1], now)
            elif (
                isinstance(event, packets_v2.Refused)
                and event.number <= (event.last or event.number) <= queue.sent
            ):
                queue.refuse(event, now)
            elif isinstance(event, packets_v2.Log):
                self.presence.told(event, now)
                connection.watch_closely()
                self._on_presence()
            elif not isinstance(event, packets_v2.Draining | PongReceived | HelloDone):
                connection.fail(CloseCode.UNEXPECTED_PACKET)
                return
        self._pass_on()
        if queue.sendable:
            self._send_held()

    def _note_remade(self) -> None:
        """Warn of a link that the present subscribers of an original consumer are not attached to."""
        if self._classic is not None and self._classic_before:
            self._remade += 1
            log(
                logger,
                logging.WARNING,
                "classic link made again",
                peer=self.addresses[0],
                advice="subscribers of an original consumer hear this producer once they subscribe anew",
            )
        self._classic_before = self._classic is not None

    def _send_held(self) -> None:
        """Send as much as the consumer takes, a turn at a time, so that other peers get theirs between."""
        queue = self.queue
        for _ in range(TURN_SLICES):
            if not queue.sendable or not self.open:
                break
            payloads = queue.next_slice(SLICE_BYTES)
            if not payloads:
                continue
            if self._classic is not None:
                self._classic.send(payloads, awaited=queue.awaited)
            else:
                assert self.connection is not None
                self.connection.send(payloads)
        else:
            if self._next_turn is None:
                self._next_turn = asyncio.get_running_loop().call_soon(self._go_on)
        self._pass_on()

    def _go_on(self) -> None:
        self._next_turn = None
        self._send_held()

    def _pass_on(self) -> None:
        """Pass on what the last change of the queue means for publishers, and for a drain."""
        queue = self.queue
        for publisher in queue.released():
            if publisher.connection is not None:
                publisher.connection.resume_reading()
        for publisher, packet in queue.answers():
            publisher.answer(packet)
        if queue.empty:
            self._emptied.set()
