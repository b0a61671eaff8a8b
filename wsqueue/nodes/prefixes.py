"""Subscriptions to all topics with a prefix: a connection joins those that are there, and those that begin.

```
Follow ──► list the topics ──► join those that match ──► all have begun ──► Followed ──► messages
                                        ▲
        a topic has its first message ──┘
```

- To join a topic is to subscribe as if the client had asked for it. Until `Followed`, a topic begins where
  the client says, and from then on at its first message.
- Of all connections of the node, one lists the topics and joins them at a time. In a turn of the loop, few
  topics are joined.
- Messages wait until all topics have begun, so that a client has their positions before it has to stop
  reading.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ..errors import WsqueueError
from ..journal import Complaint
from ..log.store import Store, TooManyTopics
from ..net.connection import Connection
from ..protocol import v2
from ..protocol.close import CloseCode
from .reader import Reader, ReaderTurns

logger = logging.getLogger(__name__)

TURN_JOINS = 100
"""Topics that are joined in a turn of the loop: a few milliseconds."""

RETRY_SECONDS = 1.0
"""Pause before the topics are listed again that could not be listed."""


class Prefixes:
    """Know which connections follow which prefix.

    Args:
        logs: The logs of all topics.
        max_topics: Maximum number of topics of a connection.

    Attributes:
        logs: See above.
        max_topics: See above.
        listing: Held by the connection that lists the topics and joins them.
    """

    def __init__(self, logs: Store, max_topics: int) -> None:
        self.logs, self.max_topics = logs, max_topics
        self.listing = asyncio.Lock()
        self._followers: dict[str, dict[Follower, None]] = {}
        # The lengths of these prefixes: a new topic costs a look for each length, not for each prefix.
        self._counts: Counter[int] = Counter()
        self._lengths: list[int] = []
        self._room = TURN_JOINS

    def add(self, follower: Follower, prefix: str) -> None:
        """Let a connection hear of new topics."""
        if prefix not in self._followers:
            self._followers[prefix] = {}
            self._count(len(prefix), 1)
        self._followers[prefix][follower] = None

    def remove(self, follower: Follower, prefix: str) -> None:
        """Let go of a connection; removing it again changes nothing."""
        followers = self._followers.get(prefix)
        if followers is not None:
            followers.pop(follower, None)
            if not followers:
                del self._followers[prefix]
                self._count(len(prefix), -1)

    def appeared(self, topic: str, offset: int | None) -> None:
        """Let the connections that follow a topic join it (the logs call this).

        Args:
            topic: The topic.
            offset: Offset of its first message, None if that is not known.
        """
        for length in self._lengths:
            if length > len(topic):
                return
            for follower in list(self._followers.get(topic[:length], ())):
                follower.appeared(topic, offset)

    def end_all(self) -> None:
        """End all connections, whose topics can't be listed any more (the logs call this)."""
        for followers in list(self._followers.values()):
            for follower in list(followers):
                follower.end()

    def take_room(self) -> bool:
        """Return True if one more topic may be joined at once in this turn of the loop."""
        if self._room == TURN_JOINS:
            asyncio.get_running_loop().call_soon(self._make_room)
        if not self._room:
            return False
        self._room -= 1
        return True

    def _make_room(self) -> None:
        self._room = TURN_JOINS

    def _count(self, length: int, more: int) -> None:
        self._counts[length] += more
        self._counts += Counter()
        self._lengths = sorted(self._counts)
        self.logs.followed = bool(self._followers)


class Follower:
    """Subscribe one connection to all topics with a prefix.

    Args:
        connection: The connection.
        packet: The prefix, and where topics begin that are there.
        prefixes: All followers.
        readers: The subscriptions of the connection.
        turns: Turns of these readers.
        join: Subscribes the connection to a topic, or refuses that.
    """

    def __init__(
        self,
        connection: Connection,
        packet: v2.Follow,
        *,
        prefixes: Prefixes,
        readers: Mapping[str, Reader],
        turns: ReaderTurns,
        join: Callable[[v2.Subscribe], None],
    ) -> None:
        self._connection, self._packet, self._prefixes = connection, packet, prefixes
        self._readers, self._turns, self._join = readers, turns, join
        self._answered = False
        # Topics that are still to be joined, with the offsets of their first messages.
        self._waiting: dict[str, int | None] = {}
        turns.held = True
        prefixes.add(self, packet.prefix)
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._begin())

    def appeared(self, topic: str, offset: int | None) -> None:
        """Join a topic that has its first message, at once or in a later turn of the loop."""
        if topic in self._readers or topic in self._waiting:
            return
        if not self._answered:
            self._wait([topic])
        elif not self._waiting and self._prefixes.take_room():
            self._join(_first(topic, offset))
        else:
            self._waiting[topic] = offset
            if self._task is None:
                self._task = asyncio.create_task(self._join_late())

    def stop(self) -> None:
        """Join nothing any more, and hold no messages back; the topics that have been joined stay."""
        self._leave()
        if self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        """End the connection, which is told why when it asks again."""
        self._connection.fail(CloseCode.TOO_MANY_SUBSCRIPTIONS, "there are too many topics to list them")

    def _leave(self) -> None:
        self._prefixes.remove(self, self._packet.prefix)
        if self._turns.held:
            self._release()

    async def _begin(self) -> None:
        """Join the topics that are there, and answer."""
        if not await self._list_topics():
            return
        while not await self._all_have_begun():
            await self._join_waiting()
        if not self._connection.sendable:
            return
        self._answered = True
        self._connection.send_packet(v2.Followed(self._packet.prefix))
        self._release()
        self._task = None
        if self._waiting:
            self._task = asyncio.create_task(self._join_late())

    async def _all_have_begun(self) -> bool:
        """Wait until all topics that have been joined have begun; return False if others wait by then."""
        if openings := [reader.opening for reader in self._readers.values() if reader.opening is not None]:
            await asyncio.wait(openings)
        await self._turns.finish()
        return not self._waiting or not self._connection.sendable

    def _release(self) -> None:
        """Let messages come that waited for all topics to begin."""
        self._turns.held = False
        self._catch_up(list(self._readers.values()))

    def _catch_up(self, readers: list[Reader]) -> None:
        """Let readers go on, some in each turn of the loop."""
        for reader in readers[:TURN_JOINS]:
            if self._readers.get(reader.topic) is reader:
                reader.catch_up()
        if left := readers[TURN_JOINS:]:
            asyncio.get_running_loop().call_soon(self._catch_up, left)

    async def _join_late(self) -> None:
        """Join topics for which there was no room in the turn of the loop in which they began."""
        await self._join_waiting()
        self._task = None

    async def _join_waiting(self) -> None:
        """Join the topics that wait, some in each turn of the loop."""
        while self._waiting and self._connection.sendable:
            for topic in list(itertools.islice(self._waiting, TURN_JOINS)):
                offset = self._waiting.pop(topic)
                if topic not in self._readers:
                    self._join(_first(topic, offset) if self._answered else self._request(topic))
            await asyncio.sleep(0)

    async def _list_topics(self) -> bool:
        """Join all topics that match; return False if they cannot be joined."""
        prefix, complaint = self._packet.prefix, Complaint()
        while True:
            try:
                async with self._prefixes.listing:
                    async for names in self._prefixes.logs.names():
                        self._wait([name for name in names if name.startswith(prefix)])
                        if not self._connection.sendable:
                            return False
                    # Here, so that few followers have many topics that wait.
                    await self._join_waiting()
            except TooManyTopics:
                self._leave()
                self._connection.send_packet(v2.Followed(prefix, "full"))
                return False
            except WsqueueError as error:
                complaint.log(logger, logging.WARNING, "topics not listed", reason=error)
            else:
                return True
            await asyncio.sleep(RETRY_SECONDS)

    def _wait(self, topics: Sequence[str]) -> None:
        """Let topics wait to be joined, or end the connection if they are too many."""
        self._waiting.update((topic, None) for topic in topics if topic not in self._readers)
        most = self._prefixes.max_topics
        if len(self._readers) + len(self._waiting) > most:
            self._waiting.clear()
            self._connection.fail(CloseCode.TOO_MANY_TOPICS, f"at most {most}: expected a longer prefix")

    def _request(self, topic: str) -> v2.Subscribe:
        packet = self._packet
        return v2.Subscribe(topic, packet.start, time=packet.time, count=packet.count)


def _first(topic: str, offset: int | None) -> v2.Subscribe:
    """Return the request for a topic from its first message on."""
    return v2.Subscribe(topic, "earliest") if offset is None else v2.Subscribe(topic, "offset", offset=offset)
