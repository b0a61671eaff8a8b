"""An engine in memory whose answers a test decides: the log of `SharedStore` without servers.

`FakeLog` is the truth that all servers agree on; each consumer has a `FakeEngine` in front of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from wsqueue.log.engine import STATES, Conflict, Counts, Full, Place, Stored, StreamState, Unanswered

Fate = Literal["stored", "answer lost", "late", "lost", "full"]
"""Fate of an append: done; done without an answer; done later without an answer; never done; no room."""


class FakeLog:
    """Keep records in streams.

    Attributes:
        streams: The records of the topics.
        states: The records of the states.
        ends: Sequence number of the last record that each stream ever got.
        engines: The engines of all consumers.
        late: Appends that are still to be done.
    """

    def __init__(self, streams: int = 2) -> None:
        self.streams: list[list[Stored]] = [[] for _ in range(streams)]
        self.states: list[Stored] = []
        self.ends = [0] * streams
        self.states_end = 0
        self.engines: list[FakeEngine] = []
        self.late: list[Callable[[], None]] = []

    def last_of(self, place: Place) -> Stored | None:
        found = [one for one in self.records(place.stream) if one.token == place.token]
        return found[-1] if found else None

    def records(self, stream: int) -> list[Stored]:
        """Return the records of a stream, which may be changed."""
        return self.states if stream == STATES else self.streams[stream]

    def end(self, stream: int) -> int:
        """Return the sequence number of the last record that a stream ever got."""
        return self.states_end if stream == STATES else self.ends[stream]

    def append(self, place: Place, data: bytes, after: int) -> int:
        """Append a record, or raise Conflict."""
        last = self.last_of(place)
        if (0 if last is None else last.seq) != after:
            raise Conflict("wrong last sequence")
        if place.stream == STATES:
            self.states_end += 1
            self.states[:] = [one for one in self.states if one.token != place.token]
            self.states.append(Stored(self.states_end, data, place.token))
            return self.states_end
        self.ends[place.stream] += 1
        seq = self.ends[place.stream]
        self.streams[place.stream].append(Stored(seq, data, place.token))
        return seq

    def do_late(self) -> None:
        """Do the appends that are late, unless somebody was faster."""
        late, self.late = self.late, []
        for append in late:
            append()

    def lose_last(self, place: Place) -> None:
        """Set the servers back to before the last record of a topic, as a loss of power may do."""
        last = self.last_of(place)
        assert last is not None
        self.streams[place.stream].remove(last)
        self.ends[place.stream] = last.seq - 1

    def expire(self, stream: int | None = None) -> None:
        """Drop all records of topics, as age does."""
        for number, records in enumerate(self.streams):
            if stream in (None, number):
                records.clear()


class FakeEngine:
    """Give a consumer a log, with answers that a test decides.

    Attributes:
        fate: Returns the fate of the next append.
        hidden: Returns how many of the newest records of a stream the server that answers doesn't have.
        deaf: Whether notices are lost.
        connected: Whether it answers at all.
        appends: Number of appends that were tried.
        purges: Number of requests to drop records.
        steps: Turns of the loop that each request takes.
        lag: Records by which a replica is behind.
        replicas: Number of servers that can be reached.
        silent: Streams without a leader.
        newest_at_once: Number of subjects whose newest records fit into an answer.
    """

    def __init__(self, log: FakeLog) -> None:
        self.id = "the log"
        self.log = log
        self.on_notice: Callable[[bytes], None] = lambda _notice: None
        self.on_connection: Callable[[], None] = lambda: None
        self.fate: Callable[[], Fate] = lambda: "stored"
        self.hidden: Callable[[], int] = lambda: 0
        self.deaf = False
        self.is_connected = True
        self.appends = self.reads = self.purges = 0
        self.steps: Callable[[], int] = lambda: 1
        self.lag, self.replicas = 0, 3
        self.silent: set[int] = set()
        self.newest_at_once = 3
        self.age = 0.0
        self.closed = False
        log.engines.append(self)

    @property
    def connected(self) -> bool:
        return self.is_connected

    @property
    def server(self) -> str:
        return "n1 2.15.1" if self.is_connected else ""

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True

    async def append(self, place: Place, data: bytes, after: int) -> int:
        self.appends += 1
        await self._turns()
        fate = self.fate()
        if fate == "full":
            raise Full("no room")
        if fate == "lost":
            raise Unanswered("lost")
        if fate == "late":
            self.log.late.append(lambda: self._try(place, data, after))
            raise Unanswered("late")
        seq = self.log.append(place, data, after)
        await self._turns()
        if fate == "answer lost":
            raise Unanswered("answer lost")
        return seq

    async def last(self, place: Place) -> Stored | None:
        await self._turns()
        found = [one for one in self._visible(place.stream) if one.token == place.token]
        await self._turns()
        return found[-1] if found else None

    async def read(self, place: Place, seq: int, max_bytes: int) -> list[Stored]:
        self.reads += 1
        await self._turns()
        found = [one for one in self._visible(place.stream) if one.token == place.token and one.seq >= seq]
        return self._cut(found, max_bytes)

    async def tokens(self, stream: int) -> list[str]:
        await self._turns()
        return list(dict.fromkeys(one.token for one in self._visible(stream)))

    async def newest(self, stream: int, tokens: Sequence[str]) -> list[Stored]:
        self.reads += 1
        await self._turns()
        last = {one.token: one for one in self._visible(stream) if one.token in tokens}
        return list(last.values())[: self.newest_at_once]

    async def scan(self, stream: int, seq: int, max_bytes: int) -> list[Stored]:
        await self._turns()
        return self._cut([one for one in self._visible(stream) if one.seq >= seq], max_bytes)

    async def purge(self, place: Place, below: int) -> int:
        self.purges += 1
        await self._turns()
        records = self.log.records(place.stream)
        before = len(records)
        records[:] = [one for one in records if one.token != place.token or one.seq >= below]
        return before - len(records)

    async def count(self, stream: int, token: str) -> Counts:
        await self._turns()
        records = self.log.records(stream)
        below = sum(one.token.startswith(f"{token}.") for one in records)
        return Counts(len(records), sum(len(one.data) for one in records), below)

    async def state(self, stream: int) -> StreamState:
        await self._turns()
        if stream in self.silent:
            raise Unanswered("no leader")
        records, end = self.log.records(stream), self.log.end(stream)
        first = records[0].seq if records else end + 1
        size = sum(len(one.data) for one in records)
        return StreamState(
            first,
            end,
            size,
            float(bool(records)),
            leader="n2" if stream == STATES else f"n{stream % 2}",
            lag=self.lag,
            replicas=self.replicas,
        )

    def notify(self, notice: bytes) -> None:
        for engine in self.log.engines:
            if engine is not self and not engine.deaf and not engine.closed:
                engine.on_notice(notice)

    async def set_age(self, seconds: float) -> None:
        self.age = seconds

    def _try(self, place: Place, data: bytes, after: int) -> None:
        try:
            self.log.append(place, data, after)
        except Conflict:
            return

    def _visible(self, stream: int) -> list[Stored]:
        records = self.log.records(stream)
        return records[: max(0, len(records) - self.hidden())]

    @staticmethod
    def _cut(found: list[Stored], max_bytes: int) -> list[Stored]:
        size = 0
        for index, one in enumerate(found):
            size += len(one.data)
            if size >= max_bytes:
                return found[: index + 1]
        return found

    async def _turns(self) -> None:
        for _ in range(self.steps()):
            await asyncio.sleep(0)
        if not self.is_connected:
            raise Unanswered("there is no connection")
