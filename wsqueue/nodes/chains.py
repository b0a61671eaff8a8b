"""Merge the batches of one read into chains, so that they cost one packet; no I/O and no clock.

A batch joins the chain that is open for its topic if it comes after the chain's last one and both have
messages of one kind. So a chain means its batches one after another (docs/protocol.md, section "Chains").
"""

from __future__ import annotations

from ..protocol.packed import Packed
from ..protocol.v2 import Forward, Publish
from .link_queue import ForwardChain, Origin, forward_chain

MAX_CHAIN_BYTES = 64 * 1024
"""Bytes of a chain, as our client's batches have: the cost of its packet is small then."""

BATCH_BYTES = 16
"""Most bytes that a batch takes in a packet besides its messages: its number and its count."""

SIZE_BYTES = 5
"""Most bytes that the size of a message takes in a packet."""


def packet_bytes(messages: Packed) -> int:
    """Return the most bytes that a batch without headers takes in a packet."""
    return messages.data.nbytes + SIZE_BYTES * len(messages.sizes) + BATCH_BYTES


class Chain:
    """Gather batches of one publisher on one topic.

    Args:
        packet: The first batch, which is whole and has no headers.
        max_bytes: Bytes that all batches may take in a packet.
    """

    __slots__ = ("_after", "_counts", "_max_bytes", "_numbers", "_parts", "_size", "_text", "_topic")

    def __init__(self, packet: Publish, max_bytes: int) -> None:
        messages = packet.messages
        self._topic, self._after, self._max_bytes = packet.topic, packet.after, max_bytes
        self._numbers, self._counts = [packet.number], [len(messages.sizes)]
        self._parts, self._text = [messages], messages.text
        self._size = packet_bytes(messages)

    def join(self, packet: Publish) -> bool:
        """Take one more batch on the topic; return False if it cannot join."""
        messages, numbers = packet.messages, self._numbers
        if not packet.number > packet.after == numbers[-1]:
            return False
        if messages.text != self._text or messages.headers is not None or not messages.whole:
            return False
        size = self._size + packet_bytes(messages)
        if size > self._max_bytes:
            return False
        self._size = size
        numbers.append(packet.number)
        self._counts.append(len(messages.sizes))
        self._parts.append(messages)
        return True

    def forward(self, origin: Origin) -> ForwardChain:
        """Return the chain on its way to a consumer."""
        parts = self._parts
        if len(parts) == 1:
            messages = parts[0]
        else:
            sizes = [size for part in parts for size in part.sizes]
            messages = Packed(sizes, memoryview(b"".join([part.data for part in parts])), self._text)
        packet = Forward(origin.id, self._numbers, self._after, self._topic, self._counts, messages)
        return forward_chain(packet, origin)
