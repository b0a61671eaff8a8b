"""The store in memory: batches are stored at once, and a clean stop leaves a snapshot."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence

from ..config.model import Retention
from ..report.report import HistogramStatus, LogStatus
from .files import lock_directory, make_directory, state_directory, unusable
from .logs import TopicLogs
from .records import Record, StoreState, TopicState
from .snapshot import SNAPSHOT_NAME, take_snapshot, write_snapshot
from .states import Key, State, StateHead, StateIndex, StateInfo
from .store import AppendChain, Done, Outcome
from .topic import TopicLog

TAKEN_AT_ONCE = 10_000
"""Records that are taken from a snapshot at once, so that the event loop can tell the service manager."""


class MemoryStore(TopicLogs):
    """Keep the logs of all topics in memory.

    A process that has a directory locks it, so that no other takes its snapshot or overwrites it.

    Args:
        config: The mode and the limits.
        done: Called with the outcomes of batches, in the order in which they came.
        clock: Returns the Unix time.
    """

    def __init__(self, config: Retention, done: Done, clock: Callable[[], float] = time.time) -> None:
        super().__init__(config, done, clock)
        self._lock: int | None = None
        self._index, self._values = StateIndex(), dict[Key, State]()

    async def open(self) -> None:
        """Take the snapshot that the last clean stop left.

        Raises:
            ConfigError: The directory cannot be used, or the snapshot is another program's.
            StorageError: The disk is full or does not work.
        """
        directory = state_directory(self._config)
        if directory is None:
            return
        make_directory(directory)
        try:
            self._lock = lock_directory(directory)
        except OSError as error:
            raise unusable(directory, error) from None
        try:
            snapshot = await asyncio.to_thread(take_snapshot, directory / SNAPSHOT_NAME, self._clock)
        except BaseException:
            self._unlock()
            raise
        if snapshot is not None:
            state, records, states = snapshot
            self._take_over(state)
            self._values = {(one.topic, one.name): State(one.version, one.value) for one in states}
            self._index = StateIndex(
                ((one.topic, one.name), StateHead(one.version, one.size)) for one in states
            )
            for number, record in enumerate(records):
                self._keep(record)
                if not number % TAKEN_AT_ONCE:
                    await asyncio.sleep(0)
            self.trim()

    async def close(self) -> None:
        """Leave a snapshot.

        Raises:
            WsqueueError: The snapshot cannot be written.
        """
        directory = state_directory(self._config)
        topics = self._ledger.topics
        try:
            # Without messages it keeps the epochs: else positions would look like those of another log.
            if directory is None:
                return
            state = StoreState(
                epochs=self.epochs.known(),
                topics={name: TopicState(log.first, log.next, log.epoch) for name, log in topics.items()},
                numbers=dict(self._repeats),
                floor=self._ledger.floor,
            )
            file, states = directory / SNAPSHOT_NAME, await self.states()
            await asyncio.to_thread(write_snapshot, file, state, self._all_records(), states)
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def congested(self) -> bool:
        """Return False: nothing waits."""
        return False

    async def settle(self) -> None:
        """Return at once: all outcomes have been told."""

    def append(self, chains: Sequence[AppendChain]) -> None:
        """Store batches, or find out that they were stored before, or refuse them; tell the outcomes."""
        outcomes: list[Outcome] = []
        now = self._clock()
        for chain in chains:
            outcome = self._admit(chain, self._repeats.last(chain.topic, chain.publisher), now)
            if outcome.record is not None:
                self._keep(outcome.record)
            outcomes.append(outcome)
        if outcomes:
            self._trim(now)
            self._done(outcomes)

    def earliest(self, log: TopicLog) -> int:
        """Return the offset of the first message that is kept, `next` when there is none."""
        return log.first

    def in_memory(self, log: TopicLog, offset: int) -> bool:
        """Return True: all is in memory."""
        return True

    async def read(self, log: TopicLog, offset: int, max_bytes: int) -> list[Record]:
        """Return records from the one that holds an offset on, at least one if there is any."""
        return log.read(offset, max_bytes)

    async def offset_at(self, log: TopicLog, moment: float) -> int:
        """Return the offset of the first record that is not older than a Unix time, `next` if all are."""
        return log.offset_at(moment)

    async def epoch_end(self, log: TopicLog, epoch: int) -> int | None:
        """Return the offset at which an epoch of these logs ends in a topic, None if nothing shows it."""
        return log.epoch_end(epoch)

    async def state(self, topic: str, name: str) -> State | None:
        """Return a state, None if there is none."""
        return self._values.get((topic, name))

    async def change_state(self, topic: str, name: str, value: bytes, version: int) -> int:
        """Replace a state, or make one, and return its new version.

        Raises:
            StateConflict: It has another version: nothing was changed.
            StatesFull: There are too many states, or there is no room: nothing was changed.
        """
        after = self._index.change(topic, name, value, version).after
        assert after is not None
        self._values[topic, name] = State(after.version, value)
        return after.version

    async def drop_state(self, topic: str, name: str, version: int) -> None:
        """Delete a state.

        Raises:
            StateConflict: It has another version, or there is none: nothing was changed.
        """
        self._index.drop(topic, name, version)
        del self._values[topic, name]

    async def states(self) -> list[StateInfo]:
        """Return all states."""
        return [
            StateInfo(topic, name, state.version, state.value)
            for (topic, name), state in self._values.items()
        ]

    def log_status(self) -> LogStatus:
        """Return the status of the logs for reports."""
        return LogStatus(
            mode="memory",
            topics=len(self._ledger.topics),
            bytes=self._ledger.bytes,
            limit_bytes=self._config.max_bytes,
        )

    def commit_seconds(self) -> HistogramStatus | None:
        """Return None: nothing is committed."""
        return None
