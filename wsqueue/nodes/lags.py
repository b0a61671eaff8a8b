"""By how much the groups and named readers of a consumer's topics are behind, for its reports.

A look reads all states, and the extents of their topics: with a log that consumers share, also of topics that
nobody reads now, because a group without members is the one that falls behind. After a look, the consumer
rests for a multiple of the time that it took, so that it costs little however many names there are.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Iterable

from ..errors import WsqueueError
from ..groups.names import Progress, names_of
from ..journal import Complaint
from ..log.store import Store, TopicExtent
from ..protocol.v2 import NameEntry
from ..report.report import MAX_TOPIC_CHARACTERS, LagStatus

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Time between two looks: a report that is asked for every 15 seconds has a new value each time."""

REST = 20
"""Multiple of the time of a look for which there is no other one: so looks take up to 5 percent of it."""

LOOKED_TOPICS = 1000
"""Topics of one look, those first that were not looked at for longest; others keep their values."""

LOOKED_AT_ONCE = 100
"""Topics that are looked at in one turn of the loop, and whose requests go to the engine together."""


class Lags:
    """Know the lags of groups and named readers.

    Args:
        logs: The logs of all topics.
        describe: Returns the values of a group or reader in a topic.
    """

    def __init__(self, logs: Store, describe: Callable[[TopicExtent, Progress], NameEntry]) -> None:
        self._logs, self._describe = logs, describe
        # The values of each topic; those that were looked at last come last.
        self._found: dict[str, list[LagStatus]] = {}
        self._complaint = Complaint()

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        took = 0.0
        while True:
            await asyncio.sleep(max(LOOK_SECONDS, REST * took))
            began = time.monotonic()
            try:
                await self.look()
            except WsqueueError as error:
                self._complaint.log(logger, logging.WARNING, "lags not known", reason=error)
            else:
                self._complaint.end()
            took = time.monotonic() - began

    async def look(self) -> None:
        """Find out the lags of now.

        Raises:
            WsqueueError: The states or some topic cannot be read.
        """
        names, error = await names_of(self._logs), None
        self._found = {topic: lags for topic, lags in self._found.items() if topic in names}
        due = [*(topic for topic in names if topic not in self._found), *self._found][:LOOKED_TOPICS]
        for begin in range(0, len(due), LOOKED_AT_ONCE):
            topics = due[begin : begin + LOOKED_AT_ONCE]
            extents = await asyncio.gather(*map(self._logs.extent, topics), return_exceptions=True)
            for topic, extent in zip(topics, extents, strict=True):
                before = self._found.pop(topic, [])
                if isinstance(extent, WsqueueError):
                    # One topic that cannot be read must not hide all others.
                    error, self._found[topic] = extent, before
                elif isinstance(extent, BaseException):
                    raise extent
                else:
                    self._found[topic] = [self._lag(extent, progress) for progress in names[topic]]
        if error is not None:
            raise error

    def largest(self, most: int) -> list[LagStatus]:
        """Return the largest lags, the largest first."""
        return heapq.nlargest(most, self._all(), key=lambda one: one.lag)

    def _all(self) -> Iterable[LagStatus]:
        return (one for lags in self._found.values() for one in lags)

    def _lag(self, extent: TopicExtent, progress: Progress) -> LagStatus:
        entry = self._describe(extent, progress)
        topic = extent.topic[:MAX_TOPIC_CHARACTERS]
        return LagStatus(topic, entry.kind, entry.name, entry.lag, entry.members)
