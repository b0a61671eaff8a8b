"""What the logs of topics are made of."""

from __future__ import annotations

import msgspec

MAX_NUMBERS = 100_000
"""Pairs of topic and publisher whose last batch is remembered: 30 MiB; those used least recently go first."""

RECORD_OVERHEAD_BYTES = 300
"""What a record takes besides its packet, so that limits are honest."""


class Record(msgspec.Struct, gc=False):
    """Hold one batch in the log of its topic: messages of one publisher that came together.

    Attributes:
        topic: Of all messages.
        offset: Of the first message; the next record begins at `end`.
        count: Of messages, at least 1.
        time: Unix time in seconds, never falling within a topic.
        publisher: Public id; "" for a publisher that nobody knows.
        number: Of the batch, rising with each of that publisher on that topic; 0 without one.
        packet: What delivers it, as JSON.
    """

    topic: str
    offset: int
    count: int
    time: float
    publisher: str
    number: int
    packet: bytes

    @property
    def end(self) -> int:
        """Return the offset after the last message."""
        return self.offset + self.count

    @property
    def size(self) -> int:
        """Return the bytes that count for the limits."""
        return len(self.packet) + RECORD_OVERHEAD_BYTES


class TopicState(msgspec.Struct):
    """Say which offsets a topic's log has.

    Attributes:
        first: Of the first message that is kept.
        next: Of the message to come.
    """

    first: int
    next: int


class State(msgspec.Struct, kw_only=True):
    """Say what a log holds.

    Attributes:
        id: 16 hexadecimal digits; offsets of another id mean nothing here.
        topics: What is kept of each topic that is remembered.
        numbers: The last batch number of a (topic, publisher), least recently used first.
        floor: Where a topic begins that is not in `topics`: above all offsets of any that was forgotten.
    """

    id: str
    topics: dict[str, TopicState]
    numbers: dict[tuple[str, str], int]
    floor: int = 0
