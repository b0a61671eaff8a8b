"""The memory of all that is remembered by topic, in one budget of bytes.

A consumer remembers empty topics, subscriptions, and the last batch of each publisher on each topic. Peers
choose how many and how long they are. Topics with messages are not here, because the limits of the log count
them, nor are those that a log on disk knows, whose number is bounded.
"""

from __future__ import annotations

from ..protocol.repeats import name_bytes

TOPIC_BYTES = 350
"""Memory of a topic without messages besides its name: its log, and its entries in tables."""

SUBSCRIPTION_BYTES = 850
"""Memory of a subscription besides the topic's name: its reader, the topic's log, their entries in tables."""

UNLIMITED = 2**63
"""The limit of a budget that only counts."""

DEFAULT_BYTES = 96 * 1024 * 1024
"""The budget by default: 50,000 subscriptions, as many publishers, and room for long names."""


class IndexBudget:
    """Count bytes against a limit; anything above it has to go, or to be refused.

    Attributes:
        limit: Bytes that all may take; a reload sets another value.
        used: Bytes that all take.
        numbers: Bytes of `used` for the last batches of publishers.
    """

    __slots__ = ("limit", "numbers", "used")

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self.limit = limit
        self.used = self.numbers = 0

    @property
    def full(self) -> bool:
        """Return True if more is used than there is."""
        return self.used > self.limit

    @property
    def numbers_full(self) -> bool:
        """Return True if the last batches take more than their half, so that other things keep theirs."""
        return self.numbers > self.limit // 2

    def add_numbers(self, size: int) -> None:
        """Count more bytes, or fewer, for the last batches of publishers."""
        self.numbers += size
        self.used += size


def topic_bytes(name: str) -> int:
    """Return the bytes that an empty topic without readers counts."""
    return TOPIC_BYTES + name_bytes(name)


def subscription_bytes(name: str) -> int:
    """Return the bytes that a subscription to a topic counts."""
    return SUBSCRIPTION_BYTES + name_bytes(name)
