"""The values of the client: messages, gaps, positions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Literal, TypeVar

import msgspec

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
"""The headers of a message that has none."""


class Position(msgspec.Struct, frozen=True):
    """Name a place in a log: a subscription can begin there.

    Attributes:
        log: The id of the log's epoch in which the position was read; offsets alone mean little.
        offset: Offset of the next message.
    """

    log: str
    offset: int

    def __str__(self) -> str:
        return f"{self.log}:{self.offset}"


class Message(msgspec.Struct, frozen=True, gc=False):
    """Hold a message of a topic.

    Attributes:
        topic: The topic that it was published on.
        data: The data that was published: a `str` or `bytes`, as it was published.
        log: The id of the epoch of the log in which it was read; "" from a consumer without a log.
        offset: Its place in that log.
        headers: The headers that were published with it.
    """

    topic: str
    data: str | bytes
    log: str = ""
    offset: int = 0
    headers: Mapping[str, str] = NO_HEADERS

    @property
    def after(self) -> Position:
        """Return the position of the next message, from which a subscription continues."""
        return Position(self.log, self.offset + 1)


class Gap(msgspec.Struct, frozen=True):
    """Stand for messages that are gone before the subscriber has got them.

    Attributes:
        topic: Their topic.
        missed: How many there were; None if that is unknown, because a consumer lost its log, or
            went on with an older copy.
    """

    topic: str
    missed: int | None


Start = Literal["latest", "earliest"] | int | Position | datetime
"""Where a subscription begins: after the latest message, at the earliest message that is kept, at an offset
of the consumer's current log, at a position, or at the first message that is not older than a time. A
negative number such as -20 stands for the last 20 messages of each topic, or as many of them as are kept."""

Item = TypeVar("Item", bound="Message | Gap")


def belongs_to_one_topic(start: Start) -> bool:
    """Return True if a start is a place in the log of one topic, and means nothing in another."""
    return isinstance(start, Position) or (isinstance(start, int) and start >= 0)
