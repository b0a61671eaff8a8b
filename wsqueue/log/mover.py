"""The move of logs in SQLite files into an engine, topic by topic.

    survey ──▶ check ──▶ move: 64 topics at a time, the records of each one after another; then the states
      └──────────┴─────▶ refused: nothing has been written

| newest record of a topic in the engine | the topic |
|---|---|
| none | is moved |
| is of this log, and this move wrote it, not up to the end | goes on after it |
| is of this log, and this move wrote it, up to the end | has been moved |
| is without messages, and the move of another log wrote it | is moved in its place |
| is another one | is refused; without messages in the file, it is left out |

So a move that was interrupted goes on when it is begun again. An append whose outcome is unknown is looked
up: it is done if the newest record is the one that was to be appended, and tried again if it is the one
before.

The states of a topic move with its messages, from the log that has these. A state that the engine has stays
as it is there, because this move wrote it before, or a consumer has changed it since.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from ..errors import StorageError, WsqueueError
from .engine import Conflict, Engine, EngineError, Full, Place, Stored, Unanswered, place_of, state_place
from .engine_reader import table_of
from .moved_log import WRITER, MovedLog, MovedTopic, groups
from .records import Record
from .shared_record import SharedRecord, decode_record
from .shared_states import encode_state
from .shared_topic import NO_LIMITS, SharedTopic
from .states import Key

Result = TypeVar("Result")
Item = TypeVar("Item")

PARALLEL = 64
"""Topics that are checked or moved at a time."""

GIVE_UP_SECONDS = 60.0
"""Time for a request, with all its retries, after which the move ends: an election takes a sixth of it."""

RETRY_SECONDS = 0.2
"""Pause before a request that failed is tried again."""

SAY_SECONDS = 0.1
"""Time between two lines of progress."""


class Moved(msgspec.Struct):
    """Count topics and their messages.

    Attributes:
        topics: Topics that are moved, or are to be moved.
        messages: Their messages.
        bytes: Bytes of these, as the limits count them.
        before: Topics that have been moved before as a whole.
        left_out: Topics without messages that the engine or another log has too.
        states: States that are moved, or are to be moved.
    """

    topics: int = 0
    messages: int = 0
    bytes: int = 0
    before: int = 0
    left_out: int = 0
    states: int = 0


class _Move(msgspec.Struct, gc=False):
    """Hold a topic that is to be moved.

    Attributes:
        log: Its log.
        topic: The topic.
        begun: Whether some of its messages have been moved.
        replaced: Sequence number of the record that it replaces, 0 without one.
    """

    log: MovedLog
    topic: MovedTopic
    begun: bool = False
    replaced: int = 0


class Mover:
    """Move logs into an engine.

    Args:
        logs: The logs.
        engine: The engine, which is open.
        streams: Number of its streams.
        max_age: Age in seconds; older messages don't move.
        say: Shows a line of progress.
        clock: Returns the Unix time.
        pause: Sleeps; a test may do without.
    """

    def __init__(
        self,
        logs: Sequence[MovedLog],
        engine: Engine,
        *,
        streams: int,
        max_age: float,
        say: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._logs, self._engine, self._streams, self._max_age = logs, engine, streams, max_age
        self._say, self._clock, self._pause = say, clock, pause
        self._surveyed: list[_Move] = []
        self._moves: list[_Move] = []
        self._states: list[tuple[MovedLog, Key]] = []
        self._wanted = Moved()
        self._said = 0.0

    async def survey(self) -> None:
        """Look for the topics of all logs; called once, before `check`, and before the engine is open.

        Raises:
            WsqueueError: Two logs have messages of a topic, or one is damaged.
        """
        since = self._clock() - self._max_age
        found: dict[str, _Move] = {}
        for log in self._logs:
            for checked in log.check():
                self._show(f"checked {checked:,} records of {log.file}")
                # So that Ctrl-C is heard.
                await asyncio.sleep(0)
            for topic in log.topics(since):
                other = found.setdefault(topic.name, move := _Move(log, topic))
                if other is move:
                    continue
                if topic.messages and other.topic.messages:
                    raise WsqueueError(
                        f"{log.file}: it has messages of the topic {topic.name!r}, and so has"
                        f" {other.log.file}; nothing has been moved"
                    )
                self._wanted.left_out += 1
                if topic.messages:
                    found[topic.name] = move
        self._surveyed = list(found.values())
        owners = {name: move.log for name, move in found.items()}
        for log in self._logs:
            for key in log.state_keys():
                # The positions in it are of this log.
                if owners.setdefault(key[0], log) is log:
                    self._states.append((log, key))
        self._wanted.states = len(self._states)

    async def check(self) -> Moved:
        """Find out which topics move, and return their counts; called once, before `move`.

        Raises:
            WsqueueError: The engine has messages of a topic.
            StorageError: The engine doesn't answer.
        """
        moves = self._surveyed
        refused: list[_Move] = []
        checked = 0

        async def check(move: _Move) -> None:
            nonlocal checked
            if not await self._check(move):
                refused.append(move)
            checked += 1
            self._show(f"checked {checked:,} of {len(moves):,} topics")

        await _for_each(moves, check)
        if refused:
            first = min(refused, key=lambda move: move.topic.name)
            others = f", and of {len(refused) - 1:,} others," if len(refused) > 1 else ""
            raise WsqueueError(
                f"{first.log.file}: the NATS servers have messages of the topic {first.topic.name!r}{others}"
                " already, which are not from this log as it is now; nothing has been moved by this command"
            )
        return self._wanted

    async def move(self) -> Moved:
        """Move all topics that `check` has found, and return the counts.

        Raises:
            WsqueueError: A log can't be read, or somebody else appends to a topic.
            StorageError: The engine doesn't answer, or has no room; this can be called again later.
        """
        moved, wanted = Moved(before=self._wanted.before, left_out=self._wanted.left_out), self._wanted

        async def move(one: _Move) -> None:
            async for records in self._move(one):
                moved.messages += sum(record.count for record in records)
                moved.bytes += sum(record.size for record in records)
                self._show(f"moved {moved.messages:,} of {wanted.messages:,} messages")
            moved.topics += 1

        await _for_each(self._moves, move)
        await _for_each(self._states, self._move_state)
        moved.states = wanted.states
        return moved

    async def _move_state(self, state: tuple[MovedLog, Key]) -> None:
        """Move a state, unless the engine has it.

        Raises:
            WsqueueError: The log can't be read.
            StorageError: The engine doesn't answer, or has no room.
        """
        log, (topic, name) = state
        place, data = state_place(topic, name), encode_state(topic, name, log.state((topic, name)).value)
        began = time.monotonic()
        while True:
            try:
                await self._engine.append(place, data, 0)
            except Full as error:
                raise StorageError(f"{error}; {_CONTINUED}") from None
            except (Conflict, Unanswered) as error:
                if await self._last(place) is None:
                    await self._wait(error, began)
                    continue
            return

    async def _check(self, move: _Move) -> bool:
        """Find out whether a topic can be moved, and note it; return False if it must not."""
        log, topic = move.log, move.topic
        last = await self._last(self._place(topic))
        if last is not None:
            record = decode_record(last.data)
            if _is_of(record, move):
                if record.end == topic.next:
                    self._wanted.before += 1
                    return True
                log.skip(topic, record.end)
                move.begun = True
            elif not topic.messages:
                self._wanted.left_out += 1
                return True
            elif record.before or record.batches or not record.writer.startswith(WRITER):
                return False
            else:
                # A topic that had moved to another consumer, whose log has been moved first.
                move.replaced = last.seq
        self._moves.append(move)
        self._wanted.topics += 1
        self._wanted.messages += topic.messages
        self._wanted.bytes += topic.bytes
        return True

    async def _move(self, move: _Move) -> AsyncIterator[list[Record]]:
        """Append all records of a topic; yield those that have been moved with each."""
        log, topic = move.log, move.topic
        shared = SharedTopic(topic.name, self._place(topic))
        if move.begun:
            await self._open(shared, move)
        if move.replaced:
            await self._answered(partial(self._engine.purge, shared.place, move.replaced + 1))
        offset = topic.first
        while offset < topic.next and (found := log.records(topic, offset)):
            for records in groups(found):
                offset = records[-1].end
                await self._append(shared, move, records, offset)
                yield records
        if offset < topic.next or not shared.seq:
            # So that the offsets go on where they ended.
            await self._append(shared, move, [], topic.next)

    async def _append(self, shared: SharedTopic, move: _Move, records: list[Record], end: int) -> None:
        """Append a record; the last one of the topic has all numbers.

        Raises:
            WsqueueError: Somebody else has appended.
            StorageError: The engine doesn't answer, or has no room.
        """
        log = move.log
        numbers = log.numbers(move.topic) if end == move.topic.next else {}
        proposal = shared.propose_moved(
            records, numbers, end, now=self._clock(), writer=log.writer, new_id=log.id
        )
        seq, began = 0, time.monotonic()
        while not seq:
            try:
                seq = await self._engine.append(shared.place, proposal.data, shared.seq)
            except Full as error:
                raise StorageError(f"{error}; {_CONTINUED}") from None
            except (Conflict, Unanswered) as error:
                await self._wait(error, began)
                last = await self._last(shared.place)
                if last is not None and last.data == proposal.data:
                    seq = last.seq
                elif last is not None and last.seq > shared.seq:
                    raise WsqueueError(
                        f"somebody else appends to the topic {move.topic.name!r}: expected that no consumer"
                        " runs with this log yet"
                    ) from None
        shared.appended(proposal, seq)
        # This move drops nothing.
        shared.thin_marks(NO_LIMITS)

    async def _open(self, shared: SharedTopic, move: _Move) -> None:
        """Know a topic of which a part has been moved.

        Raises:
            WsqueueError: Somebody else has appended.
            StorageError: The engine doesn't answer.
        """
        last = await self._last(shared.place)
        record = None if last is None else decode_record(last.data)
        if last is None or record is None or not _is_of(record, move) or record.end != move.topic.first:
            raise WsqueueError(f"somebody else changes the topic {move.topic.name!r} on the NATS servers")
        table = await self._answered(partial(table_of, self._engine, shared.place, record))
        shared.open(last.seq, record, table)

    def _place(self, topic: MovedTopic) -> Place:
        return place_of(topic.name, self._streams)

    async def _last(self, place: Place) -> Stored | None:
        return await self._answered(partial(self._engine.last, place))

    async def _answered(self, request: Callable[[], Awaitable[Result]]) -> Result:
        """Ask the engine until it answers.

        Raises:
            StorageError: It doesn't for too long.
        """
        began = time.monotonic()
        while True:
            try:
                return await request()
            except Unanswered as error:
                await self._wait(error, began)

    async def _wait(self, error: EngineError, began: float) -> None:
        """Wait before a request is tried again that began at a time.

        Raises:
            StorageError: It has been tried for too long.
        """
        if time.monotonic() - began > GIVE_UP_SECONDS:
            raise StorageError(f"{error}; {_CONTINUED}")
        await self._pause(RETRY_SECONDS)

    def _show(self, text: str) -> None:
        if time.monotonic() - self._said > SAY_SECONDS:
            self._said = time.monotonic()
            self._say(text)


_CONTINUED = "the same command goes on where it ended"


def _is_of(record: SharedRecord, move: _Move) -> bool:
    """Return True if a record was written by the move of this log, as the log is now."""
    log, topic = move.log, move.topic
    same = (record.topic, record.log, record.writer) == (topic.name, log.id, log.writer)
    return same and record.end <= topic.next


async def _for_each(items: Iterable[Item], work: Callable[[Item], Awaitable[None]]) -> None:
    """Do some work for each item, several at a time; the first error ends all."""
    left = iter(items)

    async def work_on() -> None:
        for item in left:
            await work(item)

    tasks = [asyncio.create_task(work_on()) for _ in range(PARALLEL)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
