"""The link of a producer to a consumer: its queue, its window, and what is not confirmed yet."""

from __future__ import annotations

import asyncio
import itertools
import operator
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from time import monotonic

import msgspec

from ..config.addresses import Address
from ..config.model import READ_MARGIN_BYTES, ProducerConfig
from ..net.certificates import TlsContexts
from ..net.classic_sender import ClassicSender
from ..net.connection import Connection
from ..net.link import SLICE_BYTES, Link
from ..protocol import classic
from ..protocol import v2 as packets_v2
from ..protocol.close import CloseCode, Closed
from ..protocol.framing import PongReceived
from ..protocol.keys import PreSharedKey
from ..protocol.session import Event, HelloDone
from ..report.report import LinkStatus
from ..report.stats import Histogram

LINK_WINDOW_BYTES = 16 * 1024 * 1024
"""What a consumer may leave unconfirmed before no more is sent: far above what a fast disk has under way."""

MAX_REFUSED = 50_000
"""Refused batches that a link remembers: as many as are under way when they are small."""

BATCH_OVERHEAD_BYTES = 300
"""What a batch takes besides its payload, so that limits are honest."""

MAX_REASON_CHARACTERS = 200
"""Of the reason of a refusal, as the packet takes it."""

TIMING_SECONDS = 0.005
"""From one batch that is timed to the next: 200 a second tell enough, and cost the others nothing."""

SLOW_LINK_BYTES = 1024 * 1024
"""What may wait for a consumer that is up and slow: more would only add delay."""


class Origin:
    """Say who published a batch, which may be held for much longer than its connection lasts.

    Attributes:
        connection: While it lasts.
        publisher: Public id, "" while the publisher has none.
    """

    __slots__ = ("connection", "publisher")

    def __init__(self, connection: Connection) -> None:
        self.connection: Connection | None = connection
        self.publisher = ""

    def send_packet(self, packet: packets_v2.Packet) -> None:
        """Tell the publisher, if it is still there."""
        if self.connection is not None:
            self.connection.send_packet(packet)


class Batch(msgspec.Struct, gc=False):
    """Hold messages on their way to a consumer.

    Attributes:
        publisher: Public id of who numbered the batch.
        number: Of the batch.
        after: The number of the publisher's batch before, 0 where that does not matter.
        topic: Of all messages.
        count: How many there are.
        payload: The packet that forwards them.
        origin: The publisher that waits for its confirmation, None for classic messages.
        mark: What the consumer says when it confirms the batch: in v2 how many batches came on this
            connection, it included; for a classic consumer, how many messages.
        size: Bytes that it takes while it is held; set by itself.
    """

    publisher: str
    number: int
    after: int
    topic: str
    count: int
    payload: bytes
    origin: Origin | None
    mark: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        """Say what it takes, for that is asked four times."""
        self.size = len(self.payload) + BATCH_OVERHEAD_BYTES


_count_of = operator.attrgetter("count")


class ConsumerLink(Link):
    """Keep the link to one consumer, and hold each batch until that has confirmed it.

    Args:
        address: Of the consumer.
        config: Of this producer.
        psk: The key of both ends.
        counters: Where events are counted.
        tls: For its connections.
        confirm_seconds: Where it is counted how long batches wait for their confirmation: of each link,
            one at a time is timed.
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
        confirm_seconds: Histogram,
    ) -> None:
        super().__init__([address], psk, config, tls)
        self._queue: deque[Batch] = deque()
        self._unconfirmed: deque[Batch] = deque()
        self._queued_bytes = self._unconfirmed_bytes = self._held_at_reload = 0
        self._marks = 0
        self._was_v2 = False
        self._classic: ClassicSender | None = None
        self._acks: dict[Origin, list[tuple[int, int]]] = {}
        # Publisher and number of batches that were refused: so is what comes after them, even where a
        # consumer that has forgotten the publisher would take it.
        self._refused: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._blocked: set[Connection] = set()
        self._counters = counters
        self._confirm_seconds = confirm_seconds
        self._timed: Batch | None = None
        self._timed_since = 0.0
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def held_bytes(self) -> int:
        """Return what is held: waiting, and sent but not confirmed."""
        return self._queued_bytes + self._unconfirmed_bytes

    @property
    def in_flight(self) -> int:
        """Return how many classic messages would be lost if the connection broke now."""
        return self._classic.in_flight if self._classic is not None else 0

    def link_status(self) -> LinkStatus:
        """Return how the link is."""
        up = self.connection is not None
        failure = self.failures.get(self.addresses[0])
        return LinkStatus(
            address=str(self.addresses[0]),
            state="up" if up else "down",
            protocol=("v2" if self.v2 else "classic") if up else "",
            seconds=monotonic() - self.since,
            reason="" if up else str(failure or "no answer yet"),
            held_messages=sum(map(_count_of, itertools.chain(self._queue, self._unconfirmed))),
            held_bytes=self.held_bytes,
            paused_publishers=len(self._blocked),
        )

    @property
    def _full(self) -> bool:
        if self.connection is not None and self._queued_bytes >= SLOW_LINK_BYTES:
            return True
        return self.held_bytes >= self._limits.max_held_bytes

    def forward(self, batches: Sequence[Batch], publisher: Connection, publishers: int) -> None:
        """Send batches now or hold them, and stop reading from the publisher when too much is held.

        A publisher that comes when too much is held has been read once before it is stopped. When those
        that came and went have left as much again, it is closed with 1013, and what was read is lost.

        Args:
            batches: All of one read.
            publisher: Where they come from.
            publishers: How many there are now.
        """
        limits = self._limits
        one_read = limits.max_message_bytes + READ_MARGIN_BYTES
        far_too_much = 2 * limits.max_held_bytes + publishers * one_read + self._held_at_reload
        if self.held_bytes >= far_too_much:
            self._counters["lost_full"] += sum(batch.count for batch in batches if batch.origin is None)
            publisher.fail(CloseCode.TRY_AGAIN_LATER, "too much is held for the consumer of this topic")
            return
        if self._timed is None and publisher.heard_at - self._timed_since >= TIMING_SECONDS:
            self._timed, self._timed_since = batches[-1], publisher.heard_at
        self.hold(batches)
        self._send_held()
        if self._full and publisher not in self._blocked:
            self._blocked.add(publisher)
            publisher.pause_reading()

    def hold(self, batches: Sequence[Batch]) -> None:
        """Keep batches until the consumer takes them."""
        self._queue.extend(batches)
        self._queued_bytes += sum(batch.size for batch in batches)
        self._emptied.clear()

    def take_queue(self) -> list[Batch]:
        """Give up what waits, and let its publishers go on."""
        held = list(self._queue)
        self._queue.clear()
        self._timed = None
        self._queued_bytes = 0
        self._check_emptied()
        return held

    def take_held(self) -> list[Batch]:
        """Give up all that is held, as far as the consumer may get it again."""
        held: list[Batch] = []
        if self._was_v2:
            held += self._unconfirmed
            self._unconfirmed.clear()
            self._unconfirmed_bytes = 0
        return held + self.take_queue()

    def forget(self, publisher: Connection) -> None:
        """Let go of a publisher that is gone."""
        self._blocked.discard(publisher)

    def resume(self) -> None:
        """Go on after a reload: connect if this link is new, and send what is held."""
        # What was another link's, or within another limit, is nobody's fault.
        self._held_at_reload = self.held_bytes
        self.start()
        self._send_held()

    async def drain(self) -> None:
        """Wait until the consumer has confirmed all that was bound for it."""
        await self._emptied.wait()

    def up(self) -> None:
        """Send what was held."""
        self._marks = 0
        self._was_v2 = self.v2
        assert self.connection is not None
        self._classic = None if self.v2 else ClassicSender(self.connection)
        self._send_held()

    def writable(self, connection: Connection) -> None:
        """Send what was held."""
        self._send_held()

    def down(self, closed: Closed, lost: int) -> None:
        """Keep what was not confirmed for the next connection, as far as that makes sense.

        A classic consumer gets classic messages once at most. And what made a consumer refuse the connection
        for good would do so again.
        """
        if self._classic is not None:
            self._classic.close()
            self._classic = None
            if not lost:
                self._confirm_marks(self._marks)
                self._tell_origins()
        again: list[Batch] = []
        for batch in self._unconfirmed:
            if closed.data_refused:
                self._refuse(batch, "invalid", f"the consumer does not take it: {closed.reason}")
            elif batch.origin is None and not self._was_v2:
                self._counters["lost_in_flight"] += batch.count
                if batch is self._timed:
                    self._timed = None
            else:
                again.append(batch)
        self._unconfirmed.clear()
        self._unconfirmed_bytes = 0
        self._queue.extendleft(reversed(again))
        self._queued_bytes += sum(batch.size for batch in again)
        self._check_emptied()

    def received_events(self, events: list[Event]) -> None:
        """Take what the consumer confirms and refuses."""
        if self._classic is not None:
            confirmed = self._classic.receive(events)
            if confirmed is not None:
                self._confirm_marks(confirmed)
                self._tell_origins()
                self._send_held()
            return
        for event in events:
            if isinstance(event, packets_v2.Ack) and event.numbers[-1][1] <= self._marks:
                self._confirm_marks(event.numbers[-1][1])
            elif isinstance(event, packets_v2.Refused) and event.number <= self._marks:
                self._confirm_marks(event.number - 1)
                self._refuse_first(event)
            elif not isinstance(event, packets_v2.Draining | PongReceived | HelloDone):
                assert self.connection is not None
                self.connection.fail(CloseCode.UNEXPECTED_PACKET)
                return
        self._tell_origins()
        if self._queue:
            self._send_held()

    def _send_held(self) -> None:
        while self._queue and self.open and self._unconfirmed_bytes < LINK_WINDOW_BYTES:
            assert self.connection is not None
            v2, size = self._was_v2, 0
            payloads: list[bytes] = []
            while self._queue and size < SLICE_BYTES:
                batch = self._queue.popleft()
                self._queued_bytes -= batch.size
                if (batch.publisher, batch.after) in self._refused:
                    self._refuse(batch, "after_refused", "a batch before it was refused")
                    continue
                messages = [batch.payload] if v2 else _classic(batch.topic, batch.payload)
                if not v2 and len(messages) != batch.count:
                    self._refuse(batch, "invalid", packets_v2.INVALID_DATA)
                    continue
                size += batch.size
                self._marks += len(messages)
                batch.mark = self._marks
                self._unconfirmed.append(batch)
                payloads += messages
                self._counters["forwarded"] += batch.count
            self._unconfirmed_bytes += size
            (self._classic or self.connection).send(payloads)
        self._check_emptied()

    def _confirm_marks(self, mark: int) -> None:
        if self._timed is not None and 0 < self._timed.mark <= mark:
            # A classic consumer that has closed has dealt with all that came before.
            now = self.connection.heard_at if self.connection is not None else monotonic()
            self._confirm_seconds.observe(now - self._timed_since)
            self._timed = None
        while self._unconfirmed and self._unconfirmed[0].mark <= mark:
            batch = self._unconfirmed.popleft()
            self._unconfirmed_bytes -= batch.size
            if batch.origin is not None:
                ranges = self._acks.setdefault(batch.origin, [])
                if ranges and ranges[-1][1] == batch.number - 1:
                    ranges[-1] = (ranges[-1][0], batch.number)
                else:
                    ranges.append((batch.number, batch.number))
        self._check_emptied()

    def _tell_origins(self) -> None:
        acks, self._acks = self._acks, {}
        for origin, numbers in acks.items():
            origin.send_packet(packets_v2.Ack(numbers))

    def _refuse_first(self, refused: packets_v2.Refused) -> None:
        if self._unconfirmed and self._unconfirmed[0].mark == refused.number:
            batch = self._unconfirmed.popleft()
            self._unconfirmed_bytes -= batch.size
            self._refuse(batch, refused.code, refused.reason)
            self._check_emptied()

    def _refuse(self, batch: Batch, code: packets_v2.RefusalCode, reason: str) -> None:
        if batch is self._timed:
            self._timed = None
        self._refused[batch.publisher, batch.number] = None
        if len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
        if batch.origin is not None:
            batch.origin.send_packet(packets_v2.Refused(batch.number, code, reason[:MAX_REASON_CHARACTERS]))
        else:
            self._counters["lost_refused"] += batch.count

    def _check_emptied(self) -> None:
        if not self._queue and not self._unconfirmed:
            self._emptied.set()
            self._held_at_reload = 0
        if not self._full:
            self._unblock()

    def _unblock(self) -> None:
        blocked, self._blocked = self._blocked, set()
        for publisher in blocked:
            publisher.resume_reading()


def _classic(topic: str, payload: bytes) -> list[bytes]:
    """Return what a packet forwards as classic messages; none when its data is not what it should be."""
    forward = packets_v2.decode(payload)
    assert isinstance(forward, packets_v2.Forward)
    return [classic.encode(classic.Message(data, topic)) for data in forward.data]
