"""The batches of a link on their way to a consumer; no I/O and no clock.

Batches of one publisher on one topic that came together travel as a chain, in one packet. Each chain is in
one of two deques until the consumer has confirmed or refused all of its batches:

                next_slice()                 confirm()
    hold() ──► waiting ─────► unconfirmed ──────────────► an `Ack` in answers()
                  ▲  │             │  │  refuse()
                  │  └─────────────┼──┴─────────────────► a `Refused` in answers()
                  └────────────────┘
                    disconnected()

- `next_slice` takes chains from the front of `waiting` only, and `disconnected` puts the unconfirmed batches
  back there in their order. So the batches of a publisher on a topic never overtake each other. When a topic
  gets another consumer, `take_moved` takes all of its batches away, so that they are never on two links.
- A batch whose predecessor was refused is refused too, when it reaches the front of `waiting`, unless the
  predecessor has come again and gone before it.
- A consumer may confirm the first batches of a chain and refuse the others. Batches that it has answered are
  not sent again.
- A classic consumer gets one batch at a time, since it may not take each of a chain. It gets classic messages
  at most once: `disconnected` drops and counts them instead.
- `block` notes each publisher that must stop while too much is held, and `released` returns it exactly once
  when less is held, unless `forget` came before.
- The owner sends `answers()` and resumes `released()` after each call that changes the queue.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from ..config.model import READ_MARGIN_BYTES, Limits
from ..protocol import classic
from ..protocol import v2 as packets_v2
from ..protocol.close import Closed
from ..protocol.packed import Packed
from ..report.stats import Histogram

if TYPE_CHECKING:
    from ..net.connection import Connection
from ..protocol.access import ANYBODY, Identity
from .clients import Client

LINK_WINDOW_BYTES = 16 * 1024 * 1024
"""Unconfirmed bytes from which on no slice is sent: far above what a fast disk has under way."""

MAX_REFUSED = 50_000
"""Maximum number of refused chains that a producer remembers: as many as are under way if small."""

MAX_ACK_RANGES = 1000
"""Ranges of one confirmation: 22 KB, which any publisher takes, and more go in another packet."""

CHAIN_OVERHEAD_BYTES = 250
"""Memory that a chain takes besides its payload and numbers; it counts for the limits."""

NUMBER_BYTES = 50
"""Memory that a batch of a chain takes besides its part of the payload; it counts, too."""

REFUSED_BYTES = 1024
"""Bytes of a slice for which a batch counts that is refused: its answer takes as long as to send them."""

TIMING_SECONDS = 0.005
"""Time between two batches that are timed: 200 a second are enough, and cost the others nothing."""

SLOW_LINK_BYTES = 1024 * 1024
"""Maximum waiting bytes for a consumer that is connected: more would only add delay."""


class Origin:
    """A publisher whose batches may be held for much longer than its connection lasts.

    Attributes:
        connection: Its connection, None once that is lost.
        id: Public id, "" while the publisher has not sent its secret.
        number: Number of the last batch that came on the connection.
        client: Knows its rights, None if it may do everything.
    """

    __slots__ = ("client", "connection", "id", "number")

    def __init__(self, connection: Connection | None, client: Client | None = None) -> None:
        self.connection, self.client = connection, client
        self.id = ""
        self.number = 0

    def answer(self, packet: packets_v2.Packet) -> None:
        """Tell the publisher that batches are confirmed or refused, if it is still there."""
        if self.connection is not None:
            self.connection.send_packet(packet)

    @property
    def identity(self) -> Identity:
        """Return who the publisher is."""
        return ANYBODY if self.client is None else self.client.identity


class ForwardChain(msgspec.Struct, gc=False):
    """Batches of one publisher on one topic, each after the one before, on their way to a consumer.

    Attributes:
        publisher: Public id of the publisher that numbered the batches.
        numbers: Numbers of the batches.
        after: Number of the publisher's batch before, 0 where the order does not matter.
        topic: Topic of all messages.
        count: Number of messages.
        payload: The packet that forwards them.
        origin: The publisher that waits for an answer, None for classic messages.
        position: Number that the consumer confirms the last batch with: in v2 how many batches were sent on
            the connection up to this one; for a classic consumer, how many messages. 0 before it is sent.
        answered: How many of its batches are confirmed or refused: the first ones.
        size: Bytes that the chain takes while it is held.
    """

    publisher: str
    numbers: list[int]
    after: int
    topic: str
    count: int
    payload: bytes
    origin: Origin | None
    position: int = 0
    answered: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        """Note the size, which is asked for several times."""
        self.size = len(self.payload) + CHAIN_OVERHEAD_BYTES + NUMBER_BYTES * len(self.numbers)

    @property
    def unanswered(self) -> list[int]:
        """Return the numbers of the batches that are neither confirmed nor refused."""
        return self.numbers[self.answered :] if self.answered else self.numbers

    def rest(self) -> ForwardChain:
        """Return the batches that are neither confirmed nor refused."""
        if not self.answered:
            return self
        forward = _decoded(self.payload)
        messages = forward.messages.behind(sum(forward.counts[: self.answered]))
        return self._part(forward, self.answered, len(self.numbers), messages)

    def singles(self) -> list[ForwardChain]:
        """Return each batch as a chain of its own."""
        forward, first, begin = _decoded(self.payload), 0, 0
        singles: list[ForwardChain] = []
        for index, count in enumerate(forward.counts):
            part = forward.messages.part(first, count, begin)
            singles.append(self._part(forward, index, index + 1, part))
            first, begin = first + count, begin + part.data.nbytes
        return singles

    def _part(self, forward: packets_v2.Forward, begin: int, end: int, messages: Packed) -> ForwardChain:
        after = forward.numbers[begin - 1] if begin else forward.after
        numbers, counts = forward.numbers[begin:end], forward.counts[begin:end]
        packet = packets_v2.Forward(forward.publisher, numbers, after, forward.topic, counts, messages)
        return forward_chain(packet, self.origin)


def forward_chain(packet: packets_v2.Forward, origin: Origin | None) -> ForwardChain:
    """Return the chain that a packet forwards, for the publisher that waits for an answer."""
    return ForwardChain(
        packet.publisher,
        packet.numbers,
        packet.after,
        packet.topic,
        packet.messages.count,
        packets_v2.encode(packet),
        origin,
    )


_count_of = operator.attrgetter("count")


class RefusedBatches:
    """Remember which batches were refused, the latest of them, for all links of a producer.

    Attributes:
        known: The publisher's id and the number of each.
    """

    def __init__(self) -> None:
        self.known: OrderedDict[tuple[str, int], None] = OrderedDict()

    def note(self, publisher: str, number: int) -> None:
        """Note that a batch was refused."""
        self.known[publisher, number] = None
        if len(self.known) > MAX_REFUSED:
            self.known.popitem(last=False)


class LinkQueue:
    """Hold batches until a consumer has confirmed or refused them.

    Args:
        limits: Limits of the producer; a reload sets others.
        counters: Counters of the producer.
        confirm_seconds: Histogram of the time from reading a batch to its confirmation; one batch at a time
            is timed.
        refused: The batches that were refused. Batches after them are refused here, because a consumer that
            does not know the publisher would take them.

    Attributes:
        limits: See above.
        v2: True when the consumer speaks v2; between connections, when it did so on the last one.
        sent: Batches (v2) or messages (classic) sent on this connection.
        awaited: True if a publisher waits for the confirmation of the latest slice of classic messages.
    """

    def __init__(
        self, limits: Limits, counters: Counter[str], confirm_seconds: Histogram, refused: RefusedBatches
    ) -> None:
        self.limits = limits
        self.v2 = self.awaited = False
        self.sent = self._confirmed = 0
        self._connected = False
        self._waiting: deque[ForwardChain] = deque()
        self._unconfirmed: deque[ForwardChain] = deque()
        self._waiting_bytes = self._unconfirmed_bytes = self._held_at_reload = 0
        # The messages of the first batch that waits, while a classic consumer has got a part of them.
        self._begun: classic.MessageSlices | None = None
        self._acks: dict[Origin, list[tuple[int, int]]] = {}
        self._refusals: list[tuple[Origin, packets_v2.Packet]] = []
        self._refused = refused
        self._blocked: set[Origin] = set()
        self._counters, self._confirm_seconds = counters, confirm_seconds
        self._timed: ForwardChain | None = None
        self._timed_since = 0.0

    @property
    def empty(self) -> bool:
        """Return True if no batch is held."""
        return not self._waiting and not self._unconfirmed

    @property
    def sendable(self) -> bool:
        """Return True if a batch waits and the window is open."""
        return bool(self._waiting) and self._unconfirmed_bytes < LINK_WINDOW_BYTES

    @property
    def full(self) -> bool:
        """Return True if publishers must stop."""
        if self._connected and self._waiting_bytes >= SLOW_LINK_BYTES:
            return True
        return self._waiting_bytes + self._unconfirmed_bytes >= self.limits.max_held_bytes

    @property
    def held_bytes(self) -> int:
        """Return the bytes of all batches that are held."""
        return self._waiting_bytes + self._unconfirmed_bytes

    @property
    def held_messages(self) -> int:
        """Return the number of messages in all batches that are held."""
        return sum(map(_count_of, itertools.chain(self._waiting, self._unconfirmed)))

    @property
    def blocked(self) -> int:
        """Return the number of publishers that were stopped."""
        return len(self._blocked)

    def overfull(self, publishers: int) -> bool:
        """Return True if nothing more may be held.

        That is twice the limit, because each publisher that comes is read once before it is stopped.

        Args:
            publishers: Number of connected publishers, each of which may have been read once.
        """
        limits = self.limits
        excess = self._waiting_bytes + self._unconfirmed_bytes - 2 * limits.max_held_bytes
        if excess < 0:
            return False
        one_read = limits.max_message_bytes + READ_MARGIN_BYTES
        return excess >= publishers * one_read + self._held_at_reload

    def hold(self, chains: Sequence[ForwardChain], read_at: float | None = None) -> None:
        """Add batches at the end.

        Args:
            chains: Chains of batches, in their order.
            read_at: When they were read (monotonic), None when they come from another link.
        """
        if read_at is not None and self._timed is None and read_at - self._timed_since >= TIMING_SECONDS:
            self._timed, self._timed_since = chains[-1], read_at
        self._waiting.extend(chains)
        self._waiting_bytes += sum([chain.size for chain in chains])

    def block(self, publisher: Origin) -> bool:
        """Return True if a publisher must stop now; `released` will return it."""
        if not self.full or publisher in self._blocked:
            return False
        self._blocked.add(publisher)
        return True

    def forget(self, publisher: Origin) -> None:
        """Forget a publisher that is gone."""
        self._blocked.discard(publisher)

    def released(self) -> Collection[Origin]:
        """Return the stopped publishers once less is held, each of them once."""
        if self._held_at_reload and self.empty:
            self._held_at_reload = 0
        if not self._blocked or self.full:
            return ()
        released, self._blocked = self._blocked, set()
        return released

    def answers(self) -> Collection[tuple[Origin, packets_v2.Packet]]:
        """Return the refusals and confirmations since the last call, each with the publisher it is for."""
        if not self._acks and not self._refusals:
            return ()
        answers, self._refusals = self._refusals, []
        acks, self._acks = self._acks, {}
        for origin, ranges in acks.items():
            joined = _joined(ranges)
            for at in range(0, len(joined), MAX_ACK_RANGES):
                answers.append((origin, packets_v2.Ack(joined[at : at + MAX_ACK_RANGES])))
        return answers

    def connected(self, *, v2: bool) -> None:
        """Begin to count for a new connection."""
        self._connected, self.v2, self.sent, self._confirmed = True, v2, 0, 0

    def next_slice(self, slice_bytes: int) -> list[bytes]:
        """Return the payloads to send next, and move chains that are sent whole to the unconfirmed.

        Args:
            slice_bytes: Size of a slice. It ends with the chain that brings it there, or with the last one;
                it has less, or nothing, if chains are refused instead. For a classic consumer, which may get
                a part of a batch, a message may end it too.
        """
        return self._next_packets(slice_bytes) if self.v2 else self._next_messages(slice_bytes)

    def _next_packets(self, slice_bytes: int) -> list[bytes]:
        waiting, unconfirmed = self._waiting, self._unconfirmed
        payloads: list[bytes] = []
        position = self.sent
        size = messages = refused = 0
        while waiting and size + refused < slice_bytes:
            chain = waiting.popleft()
            self._waiting_bytes -= chain.size
            if self._refused_after(chain):
                refused += REFUSED_BYTES * len(chain.numbers)
                continue
            payloads.append(chain.payload)
            position += len(chain.numbers)
            chain.position = position
            unconfirmed.append(chain)
            size += chain.size
            messages += chain.count
        self.sent = position
        self._unconfirmed_bytes += size
        self._counters["forwarded"] += messages
        return payloads

    def _next_messages(self, slice_bytes: int) -> list[bytes]:
        payloads: list[bytes] = []
        size = built = refused = 0
        self.awaited = False
        while self._waiting and max(size, built) + refused < slice_bytes:
            self._divide_first()
            chain = self._waiting[0]
            if self._begun is None:
                self._begun = self._begin(chain)
                if self._begun is None:
                    self._waiting.popleft()
                    self._waiting_bytes -= chain.size
                    refused += REFUSED_BYTES
                    continue
            messages = self._begun.next_slice(slice_bytes - built)
            payloads += messages
            built += sum(map(len, messages))
            if self._begun.done:
                self._begun = None
                self._waiting.popleft()
                self._waiting_bytes -= chain.size
                chain.position = self.sent + len(payloads)
                self.awaited |= chain.origin is not None
                self._unconfirmed.append(chain)
                size += chain.size
        self.sent += len(payloads)
        self._unconfirmed_bytes += size
        self._counters["forwarded"] += len(payloads)
        return payloads

    def _divide_first(self) -> None:
        """Let each batch of the first chain that waits be a chain of its own."""
        first = self._waiting[0]
        if len(first.numbers) == 1:
            return
        singles = first.singles()
        self._waiting.popleft()
        self._waiting.extendleft(reversed(singles))
        self._waiting_bytes += sum(single.size for single in singles) - first.size
        if first is self._timed:
            self._timed = singles[-1]

    def _begin(self, chain: ForwardChain) -> classic.MessageSlices | None:
        """Return the messages of a batch, None if it was refused instead."""
        if self._refused_after(chain):
            return None
        messages = _decoded(chain.payload).messages
        max_bytes = self.limits.max_message_bytes
        slices = classic.MessageSlices(chain.topic, messages, max_bytes)
        plain = messages.text and not messages.headers
        if plain and slices.skips_none():
            return slices
        if plain and messages.is_utf8:
            reason = f"a message has more than {max_bytes} bytes in the classic form of the consumer"
            self._refuse(chain, "too_long", reason)
        else:
            self._refuse(chain, "invalid", "the consumer speaks classic, which has texts and no headers")
        return None

    def _refused_after(self, chain: ForwardChain) -> bool:
        """Refuse a chain whose predecessor was refused; return True if it was."""
        known = self._refused.known
        if not known:
            return False
        if not chain.after or (chain.publisher, chain.after) not in known:
            # It goes now, perhaps under a number that was refused before: the chain after it may follow.
            known.pop((chain.publisher, chain.numbers[-1]), None)
            return False
        self._refuse(chain, "after_refused", "a batch before it was refused")
        return True

    def confirm(self, position: int, now: float) -> None:
        """Confirm all batches up to a position.

        Args:
            position: A number up to `sent`.
            now: When the confirmation was read (monotonic).
        """
        if self._timed is not None and 0 < self._timed.position <= position:
            self._confirm_seconds.observe(now - self._timed_since)
            self._timed = None
        self._confirmed = max(self._confirmed, position)
        unconfirmed = self._unconfirmed
        while unconfirmed and unconfirmed[0].position <= position:
            chain = unconfirmed.popleft()
            self._unconfirmed_bytes -= chain.size
            self._confirm(chain, chain.unanswered)
        if self.v2 and unconfirmed:
            chain = unconfirmed[0]
            answered = position - (chain.position - len(chain.numbers))
            if answered > chain.answered:
                self._confirm(chain, chain.numbers[chain.answered : answered])
                chain.answered = answered

    def _confirm(self, chain: ForwardChain, numbers: list[int]) -> None:
        """Note that some batches of a chain are confirmed."""
        if chain.origin is None:
            return
        ranges = self._acks.setdefault(chain.origin, [])
        first, last = numbers[0], numbers[-1]
        if last - first == len(numbers) - 1:
            ranges.append((first, last))
        else:
            # Numbers between may be those of batches on other topics.
            ranges += zip(numbers, numbers, strict=True)

    def refuse(self, refused: packets_v2.Refused, now: float) -> None:
        """Refuse a range of batches, and confirm all before it; those that were answered stay as they are.

        Args:
            refused: Refusal of positions up to `sent`.
            now: When it was read (monotonic).
        """
        self.confirm(refused.number - 1, now)
        last = refused.last or refused.number
        unconfirmed = self._unconfirmed
        while unconfirmed:
            chain = unconfirmed[0]
            left = len(chain.numbers) - chain.answered
            count = min(last - (chain.position - left), left)
            if count <= 0:
                return
            self._refuse(chain, refused.code, refused.reason, count)
            if count < left:
                return
            unconfirmed.popleft()
            self._unconfirmed_bytes -= chain.size

    def disconnected(self, closed: Closed) -> None:
        """Put the unconfirmed batches back to the front of the queue, for the next connection.

        If the consumer closed the connection because of their data they are refused: it would do so again.
        """
        self._connected = False
        sent = self._begun.built if self._begun is not None else 0
        begun = self._give_up_begun()
        if begun is not None and begun.origin is None:
            self._counters["lost_in_flight"] += min(sent, self.sent - self._confirmed)
        if begun is not None and closed.data_refused:
            self._waiting.popleft()
            self._waiting_bytes -= begun.size
            self._refuse(begun, "invalid", f"the consumer does not take it: {closed.reason}")
        again: list[ForwardChain] = []
        for chain in self._unconfirmed:
            if closed.data_refused:
                self._refuse(chain, "invalid", f"the consumer does not take it: {closed.reason}")
            elif chain.origin is None and not self.v2:
                self._counters["lost_in_flight"] += chain.count
                if chain is self._timed:
                    self._timed = None
            else:
                again.append(self._rest(chain))
        self._unconfirmed.clear()
        self._unconfirmed_bytes = 0
        self._waiting.extendleft(reversed(again))
        self._waiting_bytes += sum(chain.size for chain in again)

    def take_waiting(self) -> list[ForwardChain]:
        """Remove the batches that wait, and return them; one that is sent in part stays."""
        begun = [self._waiting.popleft()] if self._begun is not None else []
        taken = list(self._waiting)
        self._waiting = deque(begun)
        self._waiting_bytes = sum(chain.size for chain in begun)
        self._timed = None
        return taken

    def take_all(self) -> list[ForwardChain]:
        """Remove all batches that a consumer may get again, and return them."""
        taken: list[ForwardChain] = []
        self._give_up_begun()
        if self.v2:
            taken += map(self._rest, self._unconfirmed)
            self._unconfirmed.clear()
            self._unconfirmed_bytes = 0
        return taken + self.take_waiting()

    def take_moved(self, moved: Callable[[str], bool]) -> list[ForwardChain]:
        """Remove the batches that wait, and those under way on topics that have another consumer now.

        A consumer that does not know a publisher takes any of its batches first, and then those before it for
        repeats. So the other consumer must not get a later batch while an earlier one is under way here.

        Args:
            moved: Returns True for such a topic.

        Returns:
            The batches, in their order. Classic messages that a classic consumer got are not among them.
        """
        if self._begun is not None and self._waiting[0].origin is not None and moved(self._waiting[0].topic):
            self._give_up_begun()
        taken: list[ForwardChain] = []
        kept: deque[ForwardChain] = deque()
        for chain in self._unconfirmed:
            if moved(chain.topic) and (self.v2 or chain.origin is not None):
                self._unconfirmed_bytes -= chain.size
                taken.append(self._rest(chain))
            else:
                kept.append(chain)
        self._unconfirmed = kept
        return taken + self.take_waiting()

    def _give_up_begun(self) -> ForwardChain | None:
        """Make a batch that a classic consumer got in part one that can be sent anew, and return it.

        All of it is sent again if its publisher waits for it, else the rest.
        """
        begun, self._begun = self._begun, None
        if begun is None:
            return None
        chain = self._waiting[0]
        if chain.origin is None and begun.built:
            messages = begun.rest
            packet = _decoded(chain.payload)
            rest = forward_chain(
                msgspec.structs.replace(packet, counts=[messages.count], messages=messages), None
            )
            self._waiting_bytes += rest.size - chain.size
            self._waiting[0] = rest
            if chain is self._timed:
                self._timed = rest
        return self._waiting[0]

    def _rest(self, chain: ForwardChain) -> ForwardChain:
        """Return the batches of a chain that were not answered, as they wait to be sent."""
        rest = chain.rest()
        rest.position = 0
        if chain is self._timed:
            self._timed = rest
        return rest

    def reloaded(self) -> None:
        """Note the bytes that other links or limits left here: no publisher is closed for them."""
        self._held_at_reload = self.held_bytes

    def _refuse(self, chain: ForwardChain, code: str, reason: str, count: int | None = None) -> None:
        """Note that the next batches of a chain are refused: `count` of them, or all that are left."""
        if chain is self._timed:
            self._timed = None
        numbers = chain.unanswered[:count]
        chain.answered += len(numbers)
        if chain.origin is None:
            self._counters["lost_refused"] += chain.count
        # The others are followed by batches of this chain only.
        self._refused.note(chain.publisher, numbers[-1])
        if chain.origin is not None:
            reason = reason[: packets_v2.MAX_REASON_CHARACTERS]
            self._refusals += [(chain.origin, packets_v2.Refused(number, code, reason)) for number in numbers]


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges in their order, those that follow each other as one."""
    if len(ranges) == 1:
        return ranges
    ranges.sort()
    joined = ranges[:1]
    for first, last in ranges[1:]:
        if first == joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


def _decoded(payload: bytes) -> packets_v2.Forward:
    forward = packets_v2.decode(payload)
    assert isinstance(forward, packets_v2.Forward)
    return forward
