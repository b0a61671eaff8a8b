"""The requests of operators at a consumer: its topics, groups and named readers.

Nothing here holds the event loop up: lists come in parts, and states are decoded in turns of the loop. An
answer is true of some moment while it was made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TypeAlias

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
        self._names: Names = {}
        self._names_read = -NAMES_SECONDS

    async def ask_topics(self, question: v2.AskTopics) -> v2.TopicList:
        """Return some of the topics.

        Raises:
            OperationFailed: The question is none that can be answered.
            WsqueueError: The log or the states cannot be read.
        """
        names = await self._all_names(anew=question.after is None)
        try:
            if question.named:
                extents, after = await self._named_topics(question, names)
            else:
                extents, after = await self._logs.topics(question.pattern, question.after, LISTED_TOPICS)
        except ValueError as error:
            raise OperationFailed("invalid", str(error)) from None
        topics = [self._entry(extent, names.get(extent.topic, [])) for extent in extents]
        shared = self._logs.shared
        return v2.TopicList(topics, after, None if shared is None else shared.id)

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

    async def _named_topics(
        self, question: v2.AskTopics, names: Names
    ) -> tuple[list[TopicExtent], str | None]:
        """Return the next topics that have groups or named readers, in the order of their names."""
        after, pattern = question.after, question.pattern
        wanted = sorted(
            topic for topic in names if (after is None or topic > after) and matches(pattern, topic)
        )
        found = wanted[:LISTED_TOPICS]
        extents: list[TopicExtent] = []
        for begin in range(0, len(found), LOOKED_AT_ONCE):
            topics = found[begin : begin + LOOKED_AT_ONCE]
            extents += await asyncio.gather(*map(self._logs.extent, topics))
        return extents, found[-1] if len(wanted) > len(found) else None

    def _entry(self, extent: TopicExtent, names: list[Progress]) -> v2.TopicEntry:
        topic = extent.topic
        subscribers = self._classic.count(topic) + self._readers.count(topic)
        entries = [self.describe(extent, progress) for progress in names]
        return v2.TopicEntry(
            topic, extent.messages, extent.bytes, extent.first, extent.next, subscribers, entries
        )

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
