"""The requests of operators at a consumer: its topics, groups and named readers.

Nothing here holds the event loop up: lists come in parts, and states are decoded in turns of the loop. An
answer is true of some moment while it was made.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import time
from typing import TypeAlias

import msgspec

from ..errors import WsqueueError
from ..groups.groups import Groups
from ..groups.keeper import RENEW_SECONDS
from ..groups.names import Progress, names_of, progress_of
from ..journal import log
from ..log.states import StateConflict
from ..log.store import Store, TopicExtent
from ..net.connection import Connection
from ..protocol import v2
from ..protocol.access import matches
from .named_readers import NamedReaders
from .operator_endpoint import OperationFailed
from .reader import Reader
from .sorted_names import SortedNames
from .topics import Topics

logger = logging.getLogger(__name__)

LISTED_TOPICS = 1000
"""Topics of one answer, which has a few megabytes at most and takes some tens of milliseconds."""

LOOKED_AT_ONCE = 100
"""Topics that are looked up in one turn of the loop, and whose requests go to the engine together."""

NAMES_SECONDS = 2.0
"""Time for which the states of all names are used again, by later parts of a list."""

Names: TypeAlias = dict[str, list[Progress]]


class Operations:
    """Do the requests of operators at a consumer.

    Args:
        logs: The logs of all topics.
        groups: The groups that have members here.
        named_readers: The named readers that connections use here.
        classic: The classic subscribers.
        readers: The subscriptions of v2 subscribers.
    """

    def __init__(
        self,
        logs: Store,
        groups: Groups,
        named_readers: NamedReaders,
        classic: Topics[Connection],
        readers: Topics[Reader],
    ) -> None:
        self._logs, self._groups, self._named_readers = logs, groups, named_readers
        self._classic, self._readers = classic, readers
        self._topics = SortedNames(self._used_topics)
        self._names: Names = {}
        self._names_read = -NAMES_SECONDS

    async def ask_topics(self, question: v2.AskTopics) -> v2.TopicList:
        """Return some of the topics.

        Raises:
            WsqueueError: The log or the states cannot be read, or there are too many topics.
        """
        names = await self._all_names(anew=question.after is None)
        topics, after = await self._wanted(question, names)
        entries: list[v2.TopicEntry] = []
        for begin in range(0, len(topics), LOOKED_AT_ONCE):
            found = await asyncio.gather(
                *(
                    self._look_up(topic, names.get(topic, []), question.named)
                    for topic in topics[begin : begin + LOOKED_AT_ONCE]
                )
            )
            entries += [entry for entry in found if entry is not None]
        shared = self._logs.shared
        wanted = [one for one in entries if (one.names if question.named else _is_used(one))]
        return v2.TopicList(wanted, after, None if shared is None else shared.id)

    async def purge(self, connection: Connection, packet: v2.Purge) -> v2.Done:
        """Drop messages of a topic.

        Args:
            connection: The connection of the operator.
            packet: The topic, and how many.

        Raises:
            WsqueueError: The disk or the engine doesn't do it.
        """
        count = await self._logs.purge(packet.topic, packet.before)
        log(
            logger,
            logging.WARNING,
            "topic purged",
            by=connection.peer,
            topic=packet.topic,
            before="all" if packet.before is None else packet.before,
            messages=count,
        )
        # Groups tell of messages that are gone when they come to them, and somebody may wait for that.
        self._groups.stored(packet.topic)
        return v2.Done(count)

    async def forget(self, packet: v2.Forget) -> v2.Done:
        """Forget a group or a named reader that nobody uses.

        Raises:
            OperationFailed: Somebody uses it, or there is none.
            WsqueueError: The states cannot be read or changed.
        """
        topic, state_name = packet.topic, f"{packet.kind}/{packet.name}"
        noun = f"the {packet.kind} {packet.name!r} of {topic!r}"
        in_use = OperationFailed("in_use", f"{noun} is in use: expected one that nobody uses")
        state = await self._logs.state(topic, state_name)
        if state is None:
            raise OperationFailed("unknown", f"{noun} is not known here")
        if self._groups.in_use(topic, state_name) or self._named_readers.in_use(topic, state_name):
            raise in_use
        if packet.kind == "group" and await self._is_coordinated(topic, state_name, state.version):
            raise in_use
        try:
            await self._logs.drop_state(topic, state_name, state.version)
        except StateConflict:
            raise in_use from None
        log(logger, logging.INFO, "name forgotten", topic=topic, name=state_name)
        return v2.Done(1)

    async def _is_coordinated(self, topic: str, name: str, version: int) -> bool:
        """Return True if another consumer coordinates a group: then it changes the state again and again."""
        states = [state for state in await self._logs.states() if (state.topic, state.name) == (topic, name)]
        progress = progress_of(states[0]) if states else None
        if progress is None or not progress.coordinator:
            return False
        await asyncio.sleep(RENEW_SECONDS + 1)
        state = await self._logs.state(topic, name)
        return state is None or state.version != version

    async def _all_names(self, *, anew: bool) -> Names:
        """Return the groups and named readers of all topics; later parts of a list have them as the first."""
        if anew or time.monotonic() - self._names_read >= NAMES_SECONDS:
            self._names = await names_of(self._logs)
            self._names_read = time.monotonic()
        return self._names

    async def _wanted(self, question: v2.AskTopics, names: Names) -> tuple[list[str], str | None]:
        """Return the next topics that a question may be about, and the last one if others follow."""
        pattern, after = question.pattern, question.after
        if not pattern.endswith("*"):
            topics = [pattern]
        elif question.named:
            topics = sorted(names)
        else:
            topics = await self._topics.all(anew=after is None)
        begin = bisect.bisect_left(topics, pattern.removesuffix("*"))
        if after is not None:
            begin = max(begin, bisect.bisect_right(topics, after))
        end = begin + LISTED_TOPICS
        wanted = [topic for topic in topics[begin:end] if matches(pattern, topic)]
        return wanted, wanted[-1] if len(wanted) == LISTED_TOPICS and end < len(topics) else None

    async def _used_topics(self) -> set[str]:
        """Return the topics that have messages, subscribers, groups or named readers, and perhaps others."""
        topics = {*self._names, *self._classic, *self._readers}
        async for some in self._logs.names():
            topics.update(some)
        return topics

    async def _look_up(self, topic: str, names: list[Progress], timed: bool) -> v2.TopicEntry | None:
        """Return the values of a topic, None if they cannot be read: it hides no other topic.

        Args:
            topic: The topic.
            names: Its groups and named readers.
            timed: True to find out how old the messages are for which these are behind.
        """
        try:
            extent = await self._logs.extent(topic)
            entries = [self.describe(extent, progress) for progress in names]
            if timed:
                entries = [await self._timed(extent, entry) for entry in entries]
        except WsqueueError as error:
            log(logger, logging.WARNING, "topic not listed", topic=topic, reason=error)
            return None
        subscribers = self._classic.count(topic) + self._readers.count(topic)
        return v2.TopicEntry(
            topic, extent.messages, extent.bytes, extent.first, extent.next, subscribers, entries
        )

    async def _timed(self, extent: TopicExtent, entry: v2.NameEntry) -> v2.NameEntry:
        if not entry.lag:
            return entry
        time = await self._logs.time_at(extent.topic, max(extent.first, entry.offset))
        return msgspec.structs.replace(entry, oldest_time=time)

    def describe(self, extent: TopicExtent, progress: Progress) -> v2.NameEntry:
        """Return the values of a group or a reader in a topic."""
        members = lent = 0
        if progress.kind == "reader":
            members = self._named_readers.users(progress.topic, progress.name)
        elif (group := self._groups.find(progress.topic, progress.name)) is not None:
            members, lent = group.member_count, group.lent
        return v2.NameEntry(
            progress.kind,
            progress.name,
            progress.offset,
            progress.lag(extent),
            members,
            lent,
            progress.dead,
        )


def _is_used(entry: v2.TopicEntry) -> bool:
    """Return True if a topic has messages, or somebody who waits for them."""
    return bool(entry.messages or entry.subscribers or any(name.members for name in entry.names))
