"""The values of the client: messages, gaps, positions."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeVar

import msgspec


class Position(msgspec.Struct, frozen=True):
    """Say where a subscription begins: at an offset of a log.

    Attributes:
        log: The id of the log; offsets of another log mean nothing.
        offset: Of the first message that is wanted.
    """

    log: str
    offset: int

    def __str__(self) -> str:
        return f"{self.log}:{self.offset}"


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message of a topic.

    Attributes:
        topic: Where it was published.
        data: What was published.
        log: The id of the log that it is in; "" from a consumer that keeps none.
        offset: Its place there.
    """

    topic: str
    data: str
    log: str = ""
    offset: int = 0

    @property
    def after(self) -> Position:
        """Return where a subscription begins that goes on after this message."""
        return Position(self.log, self.offset + 1)


class Gap(msgspec.Struct, frozen=True):
    """Messages that a subscriber has not got and that are gone.

    Attributes:
        topic: Where.
        missed: How many, None when nobody knows: a consumer died with all that it kept.
    """

    topic: str
    missed: int | None


Start = Literal["latest", "earliest"] | int | Position | datetime
"""Where a subscription begins: at what comes, at the earliest message that is kept, at an offset of the
log that the consumer has now, at a position, or at the first message that is not older than a time."""

Item = TypeVar("Item", bound="Message | Gap")
