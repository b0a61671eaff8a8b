"""The load: the messages that are published, when they are due, and which of them carry a time."""

from __future__ import annotations

import math

import msgspec

MIN_SIZE = 16
"""Bytes of data that a mark and a time need."""

STAMPED = b"t"
"""First byte of data that carry a time."""

STAMPS_PER_SECOND = 20_000
"""Maximum number of measured deliveries per second; each costs the subscribers 2 µs."""

WINDOW_BYTES = 1024 * 1024
"""Delivered bytes by which publishers without a rate may be ahead of the slowest subscriber: enough to keep
any system busy, and a quarter of the bytes that a consumer buffers for a subscriber before it closes it."""

WINDOW_ROUNDS = 2
"""Minimum of messages per topic in the window, if messages are large or topics are many."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The messages of a run.

    Attributes:
        publishers: Connections that publish; each publishes on all topics.
        subscribers: Connections that subscribe to each topic.
        topics: Number of topics; each message goes to the next one.
        size: Bytes of data of each message.
        rate: Messages per second, sent when they are due, even if the system is slower; None for as many as
            the system takes.
        duration: Seconds of the measured phase; used without `count`.
        count: Messages of the measured phase; None for as many as fit into `duration`.
        warm_up: Seconds before the measured phase.
        batch: Maximum number of messages of a packet of v2, or of a write; None for as many as fit 64 KiB.
        replay: True to publish `count` messages before the measured phase, and to read them from the logs
            in it.
        shared: True if the subscribers of a topic share its messages, so that each goes to one of them.
    """

    publishers: int = 1
    subscribers: int = 1
    topics: int = 1
    size: int = 100
    rate: float | None = None
    duration: float = 5.0
    count: int | None = None
    warm_up: float = 1.0
    batch: int | None = None
    replay: bool = False
    shared: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: A number is too small or not finite; the text names it.
        """
        least = {
            "publishers": 1,
            "subscribers": 1,
            "topics": 1,
            "size": MIN_SIZE,
            "count": 1,
            "warm_up": 0,
            "batch": 1,
        }
        for name, number in least.items():
            value = getattr(self, name)
            if value is not None and not number <= value < math.inf:
                raise ValueError(f"{name} is {value}: expected at least {number}")
        for name in ("rate", "duration"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value:g}: expected more than 0")
        if self.replay and self.count is None:
            raise ValueError("a replay needs a count")

    @property
    def topic_names(self) -> list[str]:
        """Return the topics; all have the same length."""
        digits = max(4, len(str(self.topics - 1)))
        return [f"bench-{number:0{digits}}" for number in range(self.topics)]

    @property
    def deliveries(self) -> int:
        """Return how often each message is delivered."""
        return 1 if self.shared else self.subscribers

    @property
    def filler(self) -> bytes:
        """Return the data of a message without a time."""
        return b"-" + b"x" * (self.size - 1)

    def stamped(self, due_ns: int) -> bytes:
        """Return the data of a message with the time at which it was due."""
        return STAMPED + f"{due_ns:0{MIN_SIZE - 1}x}".encode() + self.filler[MIN_SIZE:]

    @property
    def stamp_every(self) -> int:
        """Return n if every n-th message carries a time, 0 if none does because there is no rate.

        n has no factor in common with the number of topics, so that all topics are measured.
        """
        if self.rate is None:
            return 0
        every = max(1, math.ceil(self.rate * self.deliveries / STAMPS_PER_SECOND))
        while math.gcd(every, self.topics) > 1:
            every += 1
        return every

    def window(self, record_bytes: int) -> int:
        """Return the number of messages by which publishers may be ahead of the slowest subscriber.

        Args:
            record_bytes: Bytes that deliver a message.
        """
        return max(WINDOW_BYTES // record_bytes, WINDOW_ROUNDS * self.topics)


class Window:
    """The number of messages that publishers without a rate may be ahead of the slowest subscriber.

    Args:
        size: The number of messages.
        batch: Messages that are sent at once at most.
    """

    def __init__(self, size: int, batch: int) -> None:
        self._size, self._batch = size, batch

    def free(self, ahead: int, left: int) -> int:
        """Return how many messages may be sent now; 0 if it is better to wait until more may be.

        Args:
            ahead: Messages that were sent and have not arrived.
            left: Messages that are still to be sent.
        """
        free = self._size - ahead
        return min(free, self._batch, left) if free >= min(self._batch, self._size // 2, left) else 0


class Pace:
    """When each message of a rate is due: at a time of its own, even if the messages before it are late."""

    def __init__(self, start_ns: int, rate: float) -> None:
        self._start_ns, self._per_ns, self._gap_ns = start_ns, rate / 1e9, 1e9 / rate

    def due(self, now_ns: int) -> int:
        """Return the number of messages that are due by now."""
        return int((now_ns - self._start_ns) * self._per_ns) + 1 if now_ns >= self._start_ns else 0

    def due_ns(self, number: int) -> int:
        """Return when message 0, 1, ... is due."""
        return self._start_ns + int(number * self._gap_ns)
