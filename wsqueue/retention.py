"""What a consumer keeps of its topics."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, gc=False):
    """Hold one batch in the log of its topic: messages of one publisher that came together.

    Attributes:
        topic: Its name.
        offset: Of the first message; a topic's records follow each other without holes.
        count: Of messages, at least 1.
        time: Unix seconds, never falling within a topic.
        publisher: Public id; empty for a classic publisher, which has no number.
        number: Of the batch, rising with each batch of that publisher in that topic.
        packet: The packet that delivers it, as JSON.
    """

    topic: str
    offset: int
    count: int
    time: float
    publisher: str
    number: int
    packet: bytes


class RetentionLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Say how much is kept."""

    max_bytes: int
    max_bytes_per_topic: int
    max_messages_per_topic: int
    max_age_seconds: float


class TopicState(msgspec.Struct):
    """Say which offsets of a topic are kept.

    Attributes:
        first: Offset of the first message that is kept.
        next: Offset of the message to come.
    """

    first: int
    next: int
