"""Named readers: the consumer keeps how far each of them has come in a topic.

```
 Subscribe ──► look up ──────────► the reader of the connection begins
                  ▲
            the store ──► Committed
                  ▲
 Commit ─────► keep, forward only
```

- A `NamedReader` stands for one name on one topic while connections use it. One task of it (`_work`) looks
  the position up and changes it, so that commits which come meanwhile are kept together.
- With a log that others append to, another consumer may change the position too. So it is changed by
  compare-and-swap, and read again after a conflict.
- A position is kept as one of the log's epoch of now. Which of two is further is then a question of offsets,
  unless the one that is kept is of another log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from ..errors import WsqueueError
from ..groups.history import is_known, opened
from ..journal import Complaint, log
from ..log.states import StateConflict, StatesFull
from ..log.store import Store
from ..net.connection import Connection
from ..protocol import v2
from ..protocol.classic import DECODE_ERRORS
from ..protocol.close import CloseCode
from .subscribers import Holder, Subscribers

logger = logging.getLogger(__name__)

MAX_READERS_PER_CONNECTION = 100
"""Maximum number of named readers of one connection: they end in one turn of the loop."""

MAX_LOGS = 16
"""Epochs whose commits wait at a time: an application has messages of one or two."""

RETRY_SECONDS = 1.0
"""Pause before a position is kept again that could not be kept."""

RENEW_SECONDS = 86_400.0
"""Time after which a state says anew that its reader is used: a small part of that after which it expires."""

CONFLICT_SECONDS = 0.01
"""Pause after a conflict: an engine may answer with an older state for a moment."""

Begin: TypeAlias = Callable[[v2.Subscribe], None]
"""Begins a subscription, now that its position is known."""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """Hold how far a reader has come, as the store keeps it.

    Attributes:
        log: Id of the log's epoch.
        offset: Offset of the first message that is not done.
        used: Unix time at which the reader was used, at most a day too early.
    """

    log: v2.LogId
    offset: v2.Offset
    used: int


_decoder = msgspec.msgpack.Decoder(Kept)


class _Waiting(msgspec.Struct, eq=False):
    """Hold a subscription whose position is looked up."""

    packet: v2.Subscribe
    begin: Begin


class NamedReader:
    """Keep how far one reader has come in one topic.

    Args:
        logs: The logs of all topics.
        topic: The topic.
        name: The name of the reader.
        counters: Counters of the node.
        clock: Returns the Unix time, as the logs know it.
        ended: Called when no connection uses it any more, and its position is kept.
    """

    def __init__(
        self,
        logs: Store,
        topic: str,
        name: str,
        *,
        counters: Counter[str],
        clock: Callable[[], float],
        ended: Callable[[NamedReader], None],
    ) -> None:
        self.topic, self.name = topic, name
        self._logs, self._counters, self._clock, self._ended = logs, counters, clock, ended
        self._users: set[Connection] = set()
        # The newest subscription of each connection: it replaces those before.
        self._waiting: dict[Connection, _Waiting] = {}
        # The furthest offset that is done in each epoch and not kept yet, and the last commit to answer.
        self._wanted: dict[str, int] = {}
        self._commits: dict[Connection, v2.Commit] = {}
        # The state and its version, None before it is read.
        self._kept: Kept | None = None
        self._version: int | None = None
        self._complaint = Complaint()
        self._over = self._renewing = False
        self._task: asyncio.Task[None] | None = None
        logs.reading(topic, 1)

    @property
    def users(self) -> int:
        """Return the number of connections that use the name."""
        return len(self._users)

    def join(self, connection: Connection) -> None:
        """Let a connection use the name."""
        self._users.add(connection)

    def leave(self, connection: Connection) -> None:
        """Let go of a connection that is lost; the positions that it has told are kept."""
        self._users.discard(connection)
        self._commits.pop(connection, None)
        self._waiting.pop(connection, None)
        self._end_if_unused()

    def look_up(self, connection: Connection, packet: v2.Subscribe, begin: Begin) -> None:
        """Begin a subscription where the reader is, or at its own start if the reader is new."""
        self._waiting[connection] = _Waiting(packet, begin)
        self._go_on()

    def commit(self, connection: Connection, packet: v2.Commit) -> None:
        """Keep a position, if it is further than the one that is kept, and answer then."""
        furthest = max(packet.offset, self._wanted.pop(packet.log, 0))
        while len(self._wanted) >= MAX_LOGS:
            self._put_aside()
        self._wanted[packet.log] = furthest
        self._commits[connection] = packet
        self._go_on()

    def _put_aside(self) -> None:
        """Forget the position that has waited longest, of those in other logs than that of now."""
        this_log = self._logs.log_id(self._logs.topic(self.topic))
        other = next(log_id for log_id in self._wanted if log_id != this_log)
        del self._wanted[other]
        # It will not be kept, so nobody may be told that it was.
        self._commits = {one: commit for one, commit in self._commits.items() if commit.log != other}

    def renew(self) -> None:
        """Let the state say that the reader is used, if it has not for long."""
        if self._users:
            self._renewing = True
            self._go_on()

    async def settled(self) -> None:
        """Wait until the position is kept."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Do nothing more: the logs are about to be closed."""
        self._users.clear()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._end_if_unused()

    def _go_on(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._work())

    def _end_if_unused(self) -> None:
        if not self._users and self._task is None and not self._over:
            self._over = True
            self._logs.reading(self.topic, -1)
            self._ended(self)

    async def _work(self) -> None:
        """Look positions up and keep others, until nothing is left to do."""
        while self._waiting or self._wanted or self._renewing:
            waiting, self._waiting = self._waiting, {}
            for connection, one in waiting.items():
                await self._begin(connection, one)
            if self._wanted:
                await self._keep()
            if self._renewing:
                await self._renew()
        self._task = None
        self._end_if_unused()

    async def _begin(self, connection: Connection, one: _Waiting) -> None:
        packet = one.packet
        try:
            await opened(self._logs, self.topic)
            # Another consumer may have changed it.
            self._version = None
            kept = await self._change(lambda kept: self._begun(kept, packet.start))
        except StatesFull as error:
            self._refuse(connection, error)
            return
        except (WsqueueError, ValueError) as error:
            log(logger, logging.ERROR, "reader unusable", topic=self.topic, reader=self.name, reason=error)
            connection.fail(CloseCode.INTERNAL_ERROR, "the state of the reader cannot be used")
            return
        if connection in self._users:
            one.begin(packet if kept is None else v2.Subscribe(self.topic, "offset", kept.log, kept.offset))

    def _refuse(self, connection: Connection, error: StatesFull) -> None:
        """Tell a connection that there is no room for a new reader."""
        log(logger, logging.WARNING, "reader refused", topic=self.topic, reader=self.name, reason=error)
        connection.send_packet(v2.Unsubscribed(self.topic, "full"))

    async def _keep(self) -> None:
        """Keep the furthest position that is wanted, and answer.

        After a failure, do so again later, as long as somebody uses the name: else whoever names ever new
        readers while nothing can be kept would leave all of them here.
        """
        wanted, self._wanted = self._wanted, {}
        commits, self._commits = self._commits, {}
        try:
            await opened(self._logs, self.topic)
            ends = [offset for log_id, offset in wanted.items() if await self._is_of_this_log(log_id, offset)]
            if ends:
                await self._change(lambda kept: self._moved(kept, max(ends)))
        except (WsqueueError, ValueError) as error:
            if isinstance(error, StatesFull) and self._kept is None:
                for connection in commits:
                    self._refuse(connection, error)
                return
            self._complain(error)
            if not self._users:
                return
            for log_id, offset in wanted.items():
                self._wanted[log_id] = max(offset, self._wanted.get(log_id, 0))
            users = {one: packet for one, packet in commits.items() if one in self._users}
            self._commits = users | self._commits
            await asyncio.sleep(RETRY_SECONDS)
            return
        self._complaint.end()
        for connection, packet in commits.items():
            connection.send_packet(v2.Committed(self.topic, self.name, packet.log, packet.offset))

    async def _renew(self) -> None:
        self._renewing = False
        try:
            await self._change(self._used_now)
        except (WsqueueError, ValueError) as error:
            self._complain(error)

    async def _change(self, change: Callable[[Kept | None], Awaitable[Kept | None]]) -> Kept | None:
        """Change the state, by compare-and-swap, and return it.

        Args:
            change: Returns the new state for one, or the same.

        Raises:
            WsqueueError: It cannot be read or changed.
            ValueError: It is not the state of a reader.
        """
        while True:
            if self._version is None:
                await self._read()
            version, kept = self._version or 0, self._kept
            changed = await change(kept)
            if changed is None or changed is kept:
                return kept
            value = msgspec.msgpack.encode(changed)
            # Unknown until it is changed: after a failure, it may be changed or not.
            self._version = None
            try:
                version = await self._logs.change_state(self.topic, state_name(self.name), value, version)
            except StateConflict:
                await asyncio.sleep(CONFLICT_SECONDS)
            else:
                self._version, self._kept = version, changed
                self._counters["reader_commits"] += 1
                return changed

    async def _read(self) -> None:
        state = await self._logs.state(self.topic, state_name(self.name))
        try:
            self._kept = None if state is None else _decoder.decode(state.value)
        except DECODE_ERRORS as error:
            raise ValueError(f"not the state of a reader: {error}") from None
        self._version = 0 if state is None else state.version

    async def _begun(self, kept: Kept | None, start: str) -> Kept | None:
        """Return the state of a reader that begins: a new one, or the same as one of this epoch."""
        topic_log = self._logs.topic(self.topic)
        log_id = self._logs.log_id(topic_log)
        if kept is None:
            offset = topic_log.next if start == "latest" else self._logs.earliest(topic_log)
            # While a shared log has no room, a new topic begins in one that has no id.
            return self._now(log_id, offset) if log_id else None
        if kept.log != log_id and await self._is_of_this_log(kept.log, kept.offset):
            # Epochs are forgotten one day, and a log that moves to another store has the newest only.
            return self._now(log_id, kept.offset)
        return await self._used_now(kept)

    async def _used_now(self, kept: Kept | None) -> Kept | None:
        """Return the state of a reader that is used: the same one, unless that was long ago."""
        if kept is None or self._clock() - kept.used < RENEW_SECONDS:
            return kept
        return self._now(kept.log, kept.offset)

    async def _moved(self, kept: Kept | None, offset: int) -> Kept | None:
        """Return the state of a reader that has come to an offset; the same one if it was further before."""
        if kept is not None and kept.offset >= offset and await self._is_of_this_log(kept.log, kept.offset):
            return kept
        log_id = self._logs.log_id(self._logs.topic(self.topic))
        return self._now(log_id, offset) if log_id else kept

    def _now(self, log_id: str, offset: int) -> Kept:
        return Kept(log_id, offset, int(self._clock()))

    async def _is_of_this_log(self, log_id: str, offset: int) -> bool:
        """Return True if all before a position that was read in an epoch is as it was then."""
        epoch = self._logs.epochs.number(log_id)
        if epoch is not None and epoch < self._logs.epochs.restored:
            # The reader is told of a gap, because it may have read messages that are missing now.
            return False
        return await is_known(self._logs, self.topic, log_id, offset)

    def _complain(self, reason: object) -> None:
        """Log why a position could not be kept."""
        where = {"topic": self.topic, "reader": self.name}
        self._complaint.log(logger, logging.ERROR, "reader not kept", **where, reason=reason)


class NamedReaders:
    """Find the named readers of a consumer that connections use.

    Args:
        logs: The logs of all topics.
        counters: Counters of the node.
        clock: Returns the Unix time, as the logs know it.
    """

    def __init__(self, logs: Store, counters: Counter[str], clock: Callable[[], float]) -> None:
        self._logs, self._counters, self._clock = logs, counters, clock
        self._readers: dict[tuple[str, str], NamedReader] = {}

    def __len__(self) -> int:
        return len(self._readers)

    def find(self, topic: str, name: str) -> NamedReader:
        """Return the reader of a topic with a name, also if it is new."""
        reader = self._readers.get((topic, name))
        if reader is None:
            reader = self._readers[topic, name] = NamedReader(
                self._logs,
                topic,
                name,
                counters=self._counters,
                clock=self._clock,
                ended=self._forget,
            )
        return reader

    def users(self, topic: str, name: str) -> int:
        """Return the number of connections that use a reader."""
        reader = self._readers.get((topic, name))
        return 0 if reader is None else reader.users

    def in_use(self, topic: str, state: str) -> bool:
        """Return True if a connection uses the reader that has a state."""
        return any(one == topic and state_name(name) == state for one, name in self._readers)

    def renew(self) -> None:
        """Let the states of all readers that connections use say so, if they have not for long."""
        for reader in list(self._readers.values()):
            reader.renew()

    async def settle(self) -> None:
        """Wait until all positions are kept."""
        await asyncio.gather(*(reader.settled() for reader in self._readers.values()))

    def close(self) -> None:
        """Do nothing more: the logs are about to be closed."""
        for reader in list(self._readers.values()):
            reader.close()

    def _forget(self, reader: NamedReader) -> None:
        if self._readers.get((reader.topic, reader.name)) is reader:
            del self._readers[reader.topic, reader.name]


class NamedSubscriptions:
    """Know the named readers that one connection uses.

    Args:
        connection: The connection.
        holder: Ends all subscriptions of the connection when there is no room for them.
        readers: The named readers of the consumer.
        subscribers: Counts the memory of subscriptions.
    """

    def __init__(
        self, connection: Connection, holder: Holder, readers: NamedReaders, subscribers: Subscribers
    ) -> None:
        self._connection, self._holder = connection, holder
        self._readers, self._subscribers = readers, subscribers
        self._used: dict[tuple[str, str], NamedReader] = {}
        # The subscriptions whose positions are looked up.
        self._waiting: dict[str, v2.Subscribe] = {}

    def uses(self, topic: str, name: str) -> bool:
        """Return True if the connection uses a name already."""
        return (topic, name) in self._used

    def subscribe(self, packet: v2.Subscribe, name: str, begin: Begin) -> None:
        """Begin a subscription under a name."""
        reader = self._use(packet.topic, name)
        if reader is None:
            return
        if packet.start == "offset":
            begin(packet)
        else:
            self._waiting[packet.topic] = packet
            reader.look_up(self._connection, packet, lambda found: self._found(packet, found, begin))
        self._subscribers.relieve()

    def commit(self, packet: v2.Commit) -> None:
        """Keep how far a reader has come."""
        if (reader := self._use(packet.topic, packet.reader)) is not None:
            reader.commit(self._connection, packet)
            self._subscribers.relieve()

    def end(self, topic: str) -> None:
        """Begin no subscription of a topic whose position is still looked up."""
        self._waiting.pop(topic, None)

    def leave_all(self) -> None:
        """Use no name any more."""
        self._waiting.clear()
        used, self._used = self._used, {}
        for (topic, _), reader in used.items():
            self._subscribers.end_one(self._holder, topic)
            reader.leave(self._connection)

    def _use(self, topic: str, name: str) -> NamedReader | None:
        reader = self._used.get((topic, name))
        if reader is not None:
            return reader
        if len(self._used) >= MAX_READERS_PER_CONNECTION:
            reason = f"at most {MAX_READERS_PER_CONNECTION} named readers"
            self._connection.fail(CloseCode.TOO_MANY_TOPICS, reason)
            return None
        self._subscribers.add(self._holder, self._connection, topic)
        reader = self._used[topic, name] = self._readers.find(topic, name)
        reader.join(self._connection)
        return reader

    def _found(self, packet: v2.Subscribe, found: v2.Subscribe, begin: Begin) -> None:
        # Another packet may have replaced it.
        if self._waiting.get(packet.topic) is packet:
            del self._waiting[packet.topic]
            begin(found)


def state_name(reader: str) -> str:
    """Return the name under which the store keeps the state of a reader."""
    return f"reader/{reader}"
