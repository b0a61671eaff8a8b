"""Merge the batches of one read into chains, so that they cost one packet; no I/O and no clock.

A batch joins the chain that is open for its topic if it comes after the chain's last one and both have
messages of one kind. So a chain means its batches one after another (docs/protocol.md, section "Chains").
"""

from __future__ import annotations

from ..protocol.packed import SIZE_BYTES, Packed
from ..protocol.v2 import MAX_CHAIN_BATCHES, Forward, Publish
from .link_queue import ForwardChain, Origin, forward_chain

MAX_CHAIN_BYTES = 64 * 1024
"""Bytes of a chain, as our client's batches have: the cost of its packet is small then."""

BATCH_FIELD_BYTES = 16
"""Most bytes that a batch takes in a packet besides its messages: its number and its count."""


def packet_bytes(messages: Packed) -> int:
    """Return the most bytes that a batch without headers takes in a packet."""
    return messages.data.nbytes + SIZE_BYTES * len(messages.sizes) + BATCH_FIELD_BYTES


class Chain:
    """Gather batches of one publisher on one topic.

    Args:
        packet: The first batch, which is whole and has no headers.
        left: Bytes that the other batches may take in a packet.
    """

    __slots__ = ("_counts", "_data", "_first", "_last", "_left", "_numbers", "_sizes")

    def __init__(self, packet: Publish, left: int) -> None:
        self._first, self._last, self._left = packet, packet.number, left
        # Fields of the other batches.
        self._numbers: list[int] = []
        self._counts: list[int] = []
        self._sizes: list[int] = []
        self._data: list[memoryview] = []

    def join(self, packet: Publish) -> bool:
        """Take one more batch on the topic; return False if it cannot join."""
        messages, number = packet.messages, packet.number
        if not number > packet.after == self._last:
            return False
        sizes, data = messages.sizes, messages.data
        count, size = len(sizes), data.nbytes
        # As `Packed.whole`, without the calls: this is done for each batch.
        if not count or sum(sizes) != size or messages.headers is not None:
            return False
        left = self._left - size - SIZE_BYTES * count - BATCH_FIELD_BYTES
        if left < 0 or messages.text is not self._first.messages.text:
            return False
        if len(self._numbers) + 1 >= MAX_CHAIN_BATCHES:
            return False
        self._last, self._left = number, left
        self._numbers.append(number)
        self._counts.append(count)
        self._sizes += sizes
        self._data.append(data)
        return True

    def forward(self, origin: Origin) -> ForwardChain:
        """Return the chain on its way to a consumer."""
        first = self._first
        messages = first.messages
        numbers, counts = [first.number, *self._numbers], [messages.count, *self._counts]
        if self._numbers:
            data = memoryview(b"".join([messages.data, *self._data]))
            messages = Packed([*messages.sizes, *self._sizes], data, messages.text)
        packet = Forward(origin.id, numbers, first.after, first.topic, counts, messages)
        return forward_chain(packet, origin)
