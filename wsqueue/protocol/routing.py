"""The consumer that a topic belongs to: `hash(topic) % consumers`, as the original nodes compute it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

CACHED_TOPICS = 65_536
"""Topics whose hash is cached: about 20 MiB at 100 characters; to compute a hash takes 5 µs."""

DEAD = "!dead"
"""End of the topics of dead letters. The name of a group, which stands before it, has no exclamation mark."""

MAX_CACHED_CHARACTERS = 128
"""Longest topic whose hash is cached, so that long topics don't take all the memory."""


def topic_hash(topic: str) -> int:
    """Return the hash of a topic, 0 to 2**31; dead letters have that of the topic that they come from.

    Over the UTF-16 code units, `h = h * 31 + unit` as a signed 32-bit integer, then the absolute
    value (seed wire facts, "Hash of a topic").

    Raises:
        UnicodeEncodeError: The topic holds a lone surrogate.
    """
    value = 0
    for unit in memoryview(origin(topic).encode("utf-16-le")).cast("H"):
        value = (value * 31 + unit) & 0xFFFF_FFFF
    return value if value < 2**31 else 2**32 - value


def dead_letter_topic(topic: str, group: str) -> str:
    """Return the topic of the dead letters of a group, which lives at the consumer of its topic."""
    return f"{topic}!{group}{DEAD}"


def origin(topic: str) -> str:
    """Return the topic from which dead letters come, or the topic itself if it has no dead letters."""
    while topic.endswith(DEAD) and topic.count("!") > 1:
        topic = topic.rsplit("!", 2)[0]
    return topic


def router(consumers: int) -> Callable[[str], int]:
    """Return a function from a topic to the index of its consumer, 0 to `consumers` - 1."""
    cached = functools.lru_cache(maxsize=CACHED_TOPICS)(topic_hash)

    def consumer_of(topic: str) -> int:
        return (cached if len(topic) <= MAX_CACHED_CHARACTERS else topic_hash)(topic) % consumers

    return consumer_of


def unbalanced(consumers: int) -> bool:
    """Return True if this number of consumers spreads similar topics badly: a multiple of 31."""
    return consumers % 31 == 0


def stand_in_order(topic: str, consumer: int) -> bytes:
    """Return the key by which consumers are ordered that stand in for a topic's home, the smallest first.

    Args:
        topic: Any topic.
        consumer: Index of the consumer in the list that all nodes share.

    The source is docs/protocol.md, section "Failover".
    """
    return hashlib.sha256(f"{topic}{consumer}".encode()).digest()
