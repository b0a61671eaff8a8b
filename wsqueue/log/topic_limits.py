"""The limits of each topic: those of all topics, changed by the first table that matches its name.

Topics with the same limits share one object.
"""

from __future__ import annotations

import msgspec

from ..config.model import Retention
from ..protocol.access import matches


class TopicLimits(msgspec.Struct, frozen=True, gc=False):
    """Hold the limits of a topic.

    Attributes:
        max_bytes: Maximum size.
        max_messages: Maximum number of messages.
        max_age_seconds: Age after which a message is dropped.
        own_age: Whether this age is another one than that of most topics.
    """

    max_bytes: int
    max_messages: int
    max_age_seconds: float
    own_age: bool = False


class LimitTables:
    """Find the limits of a topic.

    Args:
        retention: The limits of all topics, and the tables.
    """

    def __init__(self, retention: Retention) -> None:
        self._others = TopicLimits(
            retention.max_bytes_per_topic, retention.max_messages_per_topic, retention.max_age_seconds
        )
        self._tables: list[tuple[str, TopicLimits]] = []
        for table in retention.topics:
            age = table.max_age_seconds or retention.max_age_seconds
            limits = TopicLimits(
                table.max_bytes_per_topic or retention.max_bytes_per_topic,
                table.max_messages_per_topic or retention.max_messages_per_topic,
                age,
                age != retention.max_age_seconds,
            )
            self._tables.append((table.match, limits))

    def of(self, topic: str) -> TopicLimits:
        """Return the limits of a topic."""
        for pattern, limits in self._tables:
            if matches(pattern, topic):
                return limits
        return self._others
