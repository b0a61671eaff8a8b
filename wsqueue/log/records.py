"""Values that stores keep, and the one way in which their bytes are counted.

A record counts its packet and `RECORD_OVERHEAD_BYTES`, a topic with messages `TOPIC_OVERHEAD_BYTES` more.
These are the bytes that records and topics take in memory. On disk they take less, but the limits of a topic
mean the same messages in every store, and a store on disk has the newest in memory too.
"""

from __future__ import annotations

import msgspec

from ..protocol.v2 import MAX_NUMBER
from .states import Key, StateHead

MAX_OFFSET = MAX_NUMBER // 2
"""Largest offset that is taken from a file: no log comes near it, and one that did could still go on."""

RECORD_OVERHEAD_BYTES = 300
"""Bytes that a record counts besides its packet: its Python objects and their places in queues."""

TOPIC_OVERHEAD_BYTES = 1200
"""Bytes that a topic with messages counts besides its records: its log, its deque, its entries in tables."""

MAX_NUMBERS = 100_000
"""Pairs of topic and publisher whose last batch is remembered: 30 MiB with few publishers."""


class Record(msgspec.Struct, gc=False):
    """Hold a chain in the log of its topic: batches of one publisher that came together.

    Attributes:
        topic: Name of the topic of all messages.
        offset: Offset of the first message; the next record begins at `end`.
        count: Number of messages, at least 1.
        time: Unix time in seconds, never falling within a topic.
        publisher: Public id of the publisher; "" for a classic publisher.
        number: Number of the last batch, rising with each batch of that publisher on that topic; 0 without
            publisher.
        packet: The packet that delivers the messages, as it travels.
        epoch: Number of the epoch in which it came, never falling.
    """

    topic: str
    offset: int
    count: int
    time: float
    publisher: str
    number: int
    packet: bytes
    epoch: int = 0

    @property
    def end(self) -> int:
        """Return the offset after the last message."""
        return self.offset + self.count

    @property
    def size(self) -> int:
        """Return the bytes that count for the limits."""
        return len(self.packet) + RECORD_OVERHEAD_BYTES


class Epoch(msgspec.Struct, frozen=True):
    """Hold a stretch of a log's history: it ends where the next one begins.

    Attributes:
        id: 16 hexadecimal digits, chosen at random.
        number: Its number in this log, from 1 on.
        restored: Whether messages may be missing before it, because the log was restored from a backup.
    """

    id: str
    number: int
    restored: bool = False


class TopicState(msgspec.Struct):
    """Say which offsets a topic has in a store.

    Attributes:
        first: Offset of the first message that is kept; `next` when there is none.
        next: Offset of the message that will be stored next.
        epoch: Number of the epoch of the last message before `next`, 0 without one.
    """

    first: int
    next: int
    epoch: int = 0


class StoreState(msgspec.Struct, kw_only=True):
    """Hold the state of a store when it is opened.

    Attributes:
        epochs: The epochs that are remembered, oldest first.
        topics: Offsets of each topic that is remembered.
        numbers: Last batch number of each (topic, publisher), least recently used first.
        floor: Offset at which topics begin that are not in `topics`: above all offsets of forgotten topics.
        heads: The states, without their values.
    """

    epochs: list[Epoch]
    topics: dict[str, TopicState]
    numbers: dict[tuple[str, str], int]
    floor: int = 0
    heads: dict[Key, StateHead] = {}

    @property
    def in_bounds(self) -> bool:
        """Return True if subscribers can be told of all offsets."""
        offsets = [self.floor]
        for topic in self.topics.values():
            offsets += (topic.first, topic.next)
        return min(offsets) >= 0 and max(offsets) <= MAX_OFFSET
