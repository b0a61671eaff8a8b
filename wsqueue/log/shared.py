"""The store that consumers share: the log is in an engine, and each of them appends to any topic.

    append ──▶ waiting ──▶ propose ──▶ engine.append ──┬──▶ kept in memory, told ──▶ done
                  ▲    (a task for each topic          │            │
                  │     that somebody waits for)       │            └──▶ notice to other consumers
                  └────────── read on ◀── conflict, ───┘
                                 ▲        no answer
            notice of another ───┤
            sweep ───────────────┘

- `SharedTopic` judges; a task for each topic with work moves between it and the engine (`_work`). While
  there is none, nothing is under way for the topic.
- Outcomes of a topic come in the order of its chains. Topics wait for nobody.
- A topic that is read is followed: other consumers tell of their appends by notices, which can be lost.
  `Seen` finds that out within two sweeps, and then all topics of that stream that are read are read on.
- A reader begins when the log is proved to be known: after an append, of an empty record if need be. So a
  subscription makes a topic's log begin, `trim` keeps it from growing old, and no reader is told of an end
  that others have gone beyond.
- `available` is False when the engine has done nothing that was asked of it for a while. Consumers whose
  engine is there go on, and whoever sends again there is recognised by the numbers in the log.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from ..config.model import Retention
from ..errors import StorageError
from ..journal import log
from ..protocol import v2
from ..report.report import EngineStatus, HistogramStatus, LogStatus
from ..report.stats import Histogram
from .engine import READ_BYTES, STATES, Conflict, Engine, Full, StreamState, Unanswered, place_of
from .engine_reader import EngineReader, table_of
from .health import Health
from .logs import NAMES_AT_ONCE, PROBLEMS, TopicLogs
from .purging import Purging
from .records import MAX_NUMBERS, Record
from .seen import Seen
from .shared_names import SharedNames
from .shared_record import Seq, SharedRecord, decode_record
from .shared_states import SharedStates
from .shared_topic import Proposal, SharedTopic
from .sqlite import CACHE_BYTES
from .states import State, StateInfo
from .store import FOREIGN, AppendChain, Done, Outcome, TooManyTopics, TopicExtent
from .topic import TopicLog

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

PENDING_BYTES = 32 * 1024 * 1024
"""Bytes that may wait for the engine; above it, no more is read from the producers."""

MAX_REQUESTS = 256
"""Requests to the engine at a time: more make nothing faster."""

SWEEP_SECONDS = 2.0
"""Time between two looks for records that no notice told of."""

DOUBT_SWEEPS = 6
"""Looks for a record that was missed: a leader that has lost the others may answer without it for 10 s."""

RETRY_SECONDS = 0.02
"""First pause before an append is tried again; it doubles each time."""

MAX_RETRY_SECONDS = 1.0
"""Longest such pause: an election takes seconds."""

OPEN_RETRY_SECONDS = 2.0
"""Time between two attempts to reach the engine at a start."""


MAX_NAME_CHARACTERS = 100
"""Maximum length of a server's name in a report; a longer name is cut."""

FAR_BEHIND_RECORDS = 1000
"""Records by which a replica may be behind: it catches up with these in a moment."""

MAX_OLD_ANSWERS = 60
"""Answers from before the newest message that is known, until they are taken for true: for half a minute,
which is longer than a leader can be without the others and not know it."""

MAX_FOLLOW_BYTES = 8 * 1024 * 1024
"""Bytes of records that are read on at once; a consumer that is further behind lets its readers read them."""

MAX_NOTICES = 500
"""Records that one notice tells of; more go in another one."""


MAX_AGED = 2_000
"""Topics whose old messages one trim drops from the engine: each takes a request or two."""

PURGE_PARTS = 16
"""Part of `max_bytes` after which a consumer that appends looks whether the log is too large."""


Notice = list[tuple[str, Seq, Seq]]
"""Topics, the streams of their records, and the sequence numbers of these."""

_notice_decoder = msgspec.msgpack.Decoder(Notice)


class SharedStore(TopicLogs):
    """Keep the logs of all topics in an engine, and the newest records in memory.

    Args:
        config: The limits.
        done: Called with the outcomes of batches.
        clock: Returns the Unix time.
        engine: The engine.
        streams: Number of its streams.
        pause: Sleeps; a test may do without.

    Attributes:
        conflicts: Appends that failed because another consumer had appended.
    """

    def __init__(
        self,
        config: Retention,
        done: Done,
        clock: Callable[[], float] = time.time,
        *,
        engine: Engine,
        streams: int,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(config, done, clock)
        self._engine, self._streams, self._pause = engine, streams, pause
        engine.on_notice, engine.on_connection = self._take_notice, self._connection_changed
        # Classic publishers have no ids: their batches are this consumer's.
        self._writer = secrets.token_urlsafe(16)
        self._number = 0
        self._tasks: dict[SharedTopic, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._openings: dict[SharedTopic, list[asyncio.Future[None]]] = {}
        self._requests = asyncio.Semaphore(MAX_REQUESTS)
        self._seen = [Seen() for _ in range(streams)]
        self._doubts = [0] * streams
        self._states: dict[int, StreamState | None] = dict.fromkeys((*range(streams), STATES))
        self._reader = EngineReader(engine, self._requests, pause)
        self._shared_states = SharedStates(engine, self._requests)
        self._engine_names = SharedNames(engine, streams, self._requests)
        self._purging = Purging(engine, streams, config.max_bytes)
        self._purge: asyncio.Task[None] | None = None
        self._pending_bytes = self._appended_bytes = 0
        self._notices: Notice = []
        self._settled = asyncio.Event()
        self._settled.set()
        self._retrying = self.conflicts = 0
        self._behind_since: float | None = None
        self._health = Health(self._tell_available)
        self._append_seconds = Histogram()
        self._last_append_seconds = 0.0

    async def open(self) -> None:
        """Connect to the engine, and wait for it.

        Raises:
            ConfigError: It cannot be used.
        """
        await self._engine.open()
        for stream, seen in enumerate(self._seen):
            state = await self._until_answered(partial(self._engine.state, stream))
            self._states[stream], seen.upto = state, state.last
        self._states[STATES] = await self._until_answered(partial(self._engine.state, STATES))
        self._begin(self._sweep())

    async def close(self) -> None:
        """Let go of the engine; batches that wait are not stored."""
        tasks = {*self._tasks.values(), *self._others}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for openings in self._openings.values():
            for opening in openings:
                opening.cancel()
        await self._engine.close()

    def reconfigure(self, limits: Retention) -> None:
        """Use other limits from now on; mode and engine stay those of the start."""
        age = limits.max_age_seconds
        if age != self._config.max_age_seconds:
            self._begin(self._until_answered(partial(self._engine.set_age, age)))
        self._purging.max_bytes = limits.max_bytes
        super().reconfigure(msgspec.structs.replace(limits, jetstream=self._config.jetstream))

    @property
    def shared(self) -> v2.Log | None:
        """Return the packet that names the log which consumers share."""
        return v2.Log(self._engine.id, self._health.available)

    @property
    def congested(self) -> bool:
        """Return True if too much waits for the engine."""
        return self._pending_bytes > PENDING_BYTES

    async def settle(self) -> None:
        """Wait until nothing waits for the engine."""
        await self._settled.wait()

    def append(self, chains: Sequence[AppendChain]) -> None:
        """Let chains wait for the engine."""
        refused: list[Outcome] = []
        for chain in chains:
            if chain.problem == "topic_too_long":
                refused.append(Outcome(chain, code=chain.problem, reason=PROBLEMS[chain.problem]))
                continue
            if not chain.publisher:
                self._number += 1
                chain.publisher, chain.numbers = self._writer, [self._number]
            topic = self._topic(chain.topic)
            self._pending_bytes += topic.wait(chain)
            self._kick(topic)
        if self._pending_bytes:
            self._settled.clear()
        if refused:
            self._done(refused)

    def opening(self, log: TopicLog) -> asyncio.Future[None] | None:
        """Return a future that is done when all is known of a log that others have appended until now."""
        topic = self._topic(log.name)
        opening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._openings.setdefault(topic, []).append(opening)
        topic.proof = True
        self._kick(topic)
        return opening

    def log_id(self, log: TopicLog) -> str:
        """Return the id of a topic's log, "" before it is open."""
        return self._topic(log.name).id

    def earliest(self, log: TopicLog) -> int:
        """Return the offset at which the log began; a reader finds out which message is the first now."""
        return log.start

    def in_memory(self, log: TopicLog, offset: int) -> bool:
        """Return True if all messages that are kept from an offset on are in memory."""
        return offset >= log.first

    async def names(self) -> AsyncIterator[list[str]]:
        """Return the names of all topics in the engine, some in each turn of the loop.

        Some of them may have no messages.

        Raises:
            TooManyTopics: There are more than can be listed.
            StorageError: The engine doesn't answer.
        """
        for stream in range(self._streams):
            await self._reader.in_time(partial(self._look_for_names, stream))
            found = self._engine_names.of(stream)
            for at in range(0, len(found), NAMES_AT_ONCE):
                yield found[at : at + NAMES_AT_ONCE]
                await asyncio.sleep(0)

    async def read(self, log: TopicLog, offset: int, max_bytes: int) -> list[Record]:
        """Return records from the one that holds an offset on, also those that only the engine has.

        Raises:
            StorageError: The engine doesn't answer.
        """
        topic = self._topic(log.name)
        if self.in_memory(topic, offset):
            return topic.read(offset, max_bytes)
        return await self._reader.read(topic, offset, max_bytes)

    async def offset_at(self, log: TopicLog, moment: float) -> int:
        """Return the offset of the first record that is not older than a Unix time, `next` if all are.

        Raises:
            StorageError: The engine doesn't answer.
        """
        if log.records and log.records[0].time < moment:
            return log.offset_at(moment)
        return await self._reader.offset_at(self._topic(log.name), moment)

    async def epoch_end(self, log: TopicLog, epoch: int) -> int | None:
        """Return None: these logs have no epochs."""
        return None

    def begin_epoch(self) -> None:
        """Do nothing: the log is not on this host, and is not set back with it."""

    async def state(self, topic: str, name: str) -> State | None:
        """Return a state, None if there is none.

        Raises:
            StorageError: The engine doesn't answer, or the state is no state.
        """
        return await self._shared_states.state(topic, name)

    async def change_state(self, topic: str, name: str, value: bytes, version: int) -> int:
        """Replace a state, or make one, and return its new version once the engine has it.

        Raises:
            StateConflict: It has another version: nothing was changed.
            StatesFull: There are too many states, or there is no room: nothing was changed.
            StorageError: The engine doesn't answer: the outcome is open.
        """
        return await self._shared_states.change(topic, name, value, version)

    async def drop_state(self, topic: str, name: str, version: int) -> None:
        """Delete a state, and return once it is gone from the engine.

        Raises:
            StateConflict: It has another version, or there is none: nothing was changed.
            StorageError: The engine doesn't answer: the outcome is open.
        """
        await self._shared_states.drop(topic, name, version)

    async def states(self) -> list[StateInfo]:
        """Return all states.

        Raises:
            StorageError: The engine doesn't answer.
        """
        return await self._shared_states.states()

    async def extent(self, topic: str) -> TopicExtent:
        """Return how much of a topic is kept.

        Raises:
            StorageError: The engine doesn't answer.
        """
        found = await self._reader.extent(place_of(topic, self._streams))
        return TopicExtent(topic, 0, 0, 0) if found is None else found

    async def purge(self, topic: str, before: int | None) -> int:
        """Drop the first records of a topic, and return how many messages are gone.

        A table is appended first, because the newest one must stay, and all before it may go then.

        Raises:
            StorageError: The engine doesn't answer.
        """
        place = place_of(topic, self._streams)
        found = await self.extent(topic)
        end = found.next if before is None else min(before, found.next)
        if end <= found.first:
            return 0
        self.reading(topic, 1)
        shared = self._topic(topic)
        shared.purging = max(shared.purging, end)
        try:
            opening = self.opening(shared)
            assert opening is not None
            await asyncio.wait([opening])
            if opening.cancelled():
                raise StorageError("the log is closed")
            below = min(await self._reader.seq_at(shared, end), shared.table)
            await self._reader.purge(place, below)
            await self._purge_memory(shared, end)
            return max(0, (await self.extent(topic)).first - found.first)
        finally:
            shared.purging = 0
            self.reading(topic, -1)

    def trim(self) -> None:
        """Drop records above the limits, and keep the logs alive that are read."""
        super().trim()
        now = self._clock()
        dying = now - self._config.max_age_seconds / 2
        pairs, left = 0, MAX_AGED
        for name in list(self._ledger.topics):
            topic = self._topic(name)
            if topic.readers and topic.renewed < dying:
                topic.proof = True
                self._kick(topic)
            elif topic.limits.own_age and left:
                left -= self._trim_aged_in_engine(topic, now)
            pairs += len(topic.numbers)
            if pairs > MAX_NUMBERS and topic not in self._tasks:
                pairs -= len(topic.numbers)
                topic.close()
        self._purge_soon()

    def log_status(self) -> LogStatus:
        """Return the status of the log for reports."""
        return LogStatus(
            mode="jetstream",
            topics=len(self._ledger.topics),
            bytes=sum(
                state.bytes
                for stream, state in self._states.items()
                if state is not None and stream != STATES
            ),
            limit_bytes=self._config.max_bytes,
            pending_bytes=self._pending_bytes,
            commit_seconds=self._last_append_seconds,
            failing=self._health.failing,
            engine=self._engine_status(),
        )

    def _engine_status(self) -> EngineStatus:
        # States from before the connection was lost say nothing of now.
        known = self._states.values() if self._engine.connected else ()
        states = [state for state in known if state is not None]
        jetstream, health = self._config.jetstream, self._health
        return EngineStatus(
            id=self._engine.id,
            server=self._engine.server[:MAX_NAME_CHARACTERS],
            available=health.available,
            unavailable_seconds=health.unavailable_seconds,
            streams=len(self._states),
            streams_without_leader=len(self._states) - len(states),
            leaders=dict(sorted(Counter(state.leader[:MAX_NAME_CHARACTERS] for state in states).items())),
            replicas=min((state.replicas for state in states), default=0),
            replicas_wanted=jetstream.replicas if jetstream is not None else 1,
            lag_records=max((state.lag for state in states), default=0),
            lag_seconds=0.0 if self._behind_since is None else time.monotonic() - self._behind_since,
            conflicts=self.conflicts,
            unanswered=health.unanswered,
        )

    def commit_seconds(self) -> HistogramStatus | None:
        """Return how long appends took."""
        return self._append_seconds.status()

    def _memory_limits(self, config: Retention) -> Retention:
        """Return the limits of the records in memory, which are those of the log but for their size."""
        return msgspec.structs.replace(config, max_bytes=min(CACHE_BYTES, config.max_bytes))

    def _needed(self, log: TopicLog) -> bool:
        """Return True if somebody works on an empty topic, or an append may still be done."""
        assert isinstance(log, SharedTopic)
        return log.wanted or log in self._tasks

    def _new_log(self, name: str) -> TopicLog:
        """Return the log of a topic that is not open."""
        return SharedTopic(name, place_of(name, self._streams))

    def _tell_topic(self, topic: str, offset: int | None) -> None:
        """Tell of a topic whose messages are not in memory: its first one may be another consumer's."""
        self.on_topic(topic, None)

    def _topic(self, name: str) -> SharedTopic:
        topic = self._ledger.topics.get(name) or self.topic(name)
        assert isinstance(topic, SharedTopic)
        return topic

    # ---- the work on one topic

    def _kick(self, topic: SharedTopic) -> None:
        """Begin to work on a topic, unless somebody does."""
        if topic not in self._tasks:
            self._tasks[topic] = asyncio.create_task(self._work(topic))

    async def _work(self, topic: SharedTopic) -> None:
        """Do all that is wanted of a topic."""
        retry, retrying, conflict_at, broken = RETRY_SECONDS, False, -1, ""
        try:
            while topic.wanted:
                try:
                    await self._know(topic)
                    await self._append_next(topic)
                except Conflict:
                    topic.doubt = True
                    self.conflicts += 1
                    if conflict_at == topic.seq:
                        # A leader that has lost the others answers so while an append is under way there.
                        retry = min(2 * retry, MAX_RETRY_SECONDS)
                    conflict_at = topic.seq
                    await self._pause(random.uniform(0, retry))  # noqa: S311 - jitter
                except StorageError as error:
                    # Only of this topic: the engine works.
                    topic.doubt = True
                    self._retrying -= retrying
                    retrying = False
                    if broken != str(error):
                        broken = str(error)
                        log(logger, logging.ERROR, "topic unusable", topic=topic.name, reason=broken)
                    elif topic.waiting and not topic.uncertain:
                        # Else it would hold up the answers to all other topics of its producers.
                        self._answer(topic, topic.give_up(broken))
                    await self._pause(MAX_RETRY_SECONDS)
                except (Full, Unanswered) as error:
                    topic.doubt = True
                    self._retrying += not retrying
                    retrying = True
                    if isinstance(error, Full):
                        # Others have no room either: one that takes the topic over would refuse the chains.
                        self._health.refuse(str(error))
                    else:
                        self._health.fail(str(error))
                    await self._pause(random.uniform(retry / 2, retry))  # noqa: S311 - jitter
                    retry = min(2 * retry, MAX_RETRY_SECONDS)
                else:
                    self._retrying -= retrying
                    retry, retrying = RETRY_SECONDS, False
        finally:
            self._retrying -= retrying
            del self._tasks[topic]

    async def _know(self, topic: SharedTopic) -> None:
        """Know all of a topic that the engine tells of."""
        if topic.known:
            return
        # Before the request, because doubts that come during it are about its answer.
        topic.doubt = False
        async with self._requests:
            last = await self._engine.last(topic.place)
        self._check_age(topic, 0 if last is None else last.seq)
        if last is None:
            self._forget_records(topic)
            topic.open_empty()
            return
        record = decode_record(last.data)
        if topic.opened and last.seq == topic.seq:
            return
        if topic.opened and topic.continues(record):
            self._apply(topic, last.seq, record)
        elif not await self._read_on(topic, last.seq, record):
            await self._open(topic, last.seq, record)

    def _check_age(self, topic: SharedTopic, last: int) -> None:
        """Refuse to know less than before, as an old leader does, unless the records can have gone.

        Raises:
            Unanswered: The answer is an old one.
        """
        if last >= max(topic.heard, topic.seq):
            topic.old_answers = 0
            return
        aged = not last and 0 < topic.renewed < self._clock() - self._config.max_age_seconds / 2
        topic.old_answers += 1
        if not aged and topic.old_answers < MAX_OLD_ANSWERS:
            raise Unanswered("a server answers that doesn't have the newest messages")
        # Somebody has purged the stream.
        topic.heard, topic.old_answers = last, 0

    async def _read_on(self, topic: SharedTopic, seq: int, last: SharedRecord) -> bool:
        """Apply all records up to the last one; return False if there is a hole, or nobody reads them.

        So it is if the log has lost its last records, because its servers were set back.
        """
        behind = last.bytes - topic.bytes_ever
        if not topic.opened or not topic.readers or last.log != topic.id or behind > MAX_FOLLOW_BYTES:
            return False
        if seq < topic.seq:
            return False
        while topic.seq < seq:
            async with self._requests:
                found = await self._engine.read(topic.place, topic.seq + 1, READ_BYTES)
            if not found:
                raise Unanswered("a server answers that doesn't have the newest messages yet")
            for stored in found:
                record = decode_record(stored.data)
                if not topic.continues(record):
                    return False
                self._apply(topic, stored.seq, record)
        return True

    def _apply(self, topic: SharedTopic, seq: int, record: SharedRecord) -> None:
        """Keep and deliver a record that somebody else appended."""
        records = topic.apply(seq, record)
        if record.purged:
            self._begin(self._purge_memory(topic, record.purged))
        topic.thin_marks(topic.limits)
        # The consumer that appended it drops the records before.
        topic.purge_below(topic.limits, self._clock())
        topic.known_at = self._clock()
        self._seen[topic.place.stream].note(seq)
        if topic.unnamed:
            self._move(topic, other=False)
        for one in records:
            self._keep(one)
        if records:
            self._done([Outcome(FOREIGN, record=one) for one in records])

    async def _open(self, topic: SharedTopic, seq: int, record: SharedRecord) -> None:
        """Know a topic by its last record."""
        async with self._requests:
            table = await table_of(self._engine, topic.place, record)
        known, before = bool(topic.id), topic.next
        if seq != topic.seq:
            topic.known_at = self._clock()
        self._forget_records(topic)
        if topic.open(seq, record, table):
            self._move(topic, other=True)
        elif topic.unnamed or (known and topic.next != before):
            self._move(topic, other=False)

    def _move(self, topic: SharedTopic, *, other: bool) -> None:
        """Tell that a topic has gone on without telling outcomes, or that its log has its id now."""
        topic.unnamed = False
        self.on_moved(topic, other)

    def _forget_records(self, topic: SharedTopic) -> None:
        """Drop all that is in memory of a topic, because no continuation of it comes."""
        while topic.records:
            self._drop_first(topic)
            topic.dropped += 1

    async def _append_next(self, topic: SharedTopic) -> None:
        """Judge the chains that wait, and append the record that stores them."""
        if not topic.waiting and not topic.proof:
            self._health.succeed()
            return
        openings = len(self._openings.get(topic, ()))
        proposal = topic.propose(
            self._clock(),
            writer=self._writer,
            new_id=secrets.token_hex(8),
            max_age=self._config.max_age_seconds,
            limits=topic.limits,
        )
        if proposal.record is None:
            self._health.succeed()
            self._answer(topic, topic.answered(proposal))
            return
        began = time.monotonic()
        try:
            async with self._requests:
                seq = await self._engine.append(topic.place, proposal.data, topic.seq)
        except Full as error:
            # An engine without room need not have looked at the place: the chains may be stored already.
            await self._check_last(topic)
            self._refuse(topic, proposal, str(error))
            topic.unnamed = not topic.id
            self._opened(topic, openings)
            return
        except Unanswered:
            topic.uncertain = True
            raise
        self._last_append_seconds = time.monotonic() - began
        self._append_seconds.observe(self._last_append_seconds)
        self._health.stored()
        purge = self._appended(topic, proposal, seq)
        if openings and purge is not None:
            # So that a reader that begins at the earliest message gets none that is too old.
            await asyncio.wait([purge])
        self._opened(topic, openings)

    async def _check_last(self, topic: SharedTopic) -> None:
        """Refuse to go on if a topic has another last record than is known.

        Raises:
            Conflict: It has.
            Unanswered: There is no leader.
        """
        async with self._requests:
            last = await self._engine.last(topic.place)
        if (0 if last is None else last.seq) != topic.seq:
            raise Conflict("the last record is another one")

    def _opened(self, topic: SharedTopic, count: int) -> None:
        """Let readers begin: the first ones that wait."""
        waiting = self._openings.pop(topic, [])
        topic.proof = count < len(waiting)
        if topic.proof:
            self._openings[topic] = waiting[count:]
        for opening in waiting[:count]:
            if not opening.done():
                opening.set_result(None)

    def _appended(self, topic: SharedTopic, proposal: Proposal, seq: int) -> asyncio.Task[None] | None:
        """Keep the record of a proposal, and answer its chains; return the task that drops older records."""
        before, other = topic.id, topic.reborn
        outcomes = topic.appended(proposal, seq)
        topic.known_at = self._clock()
        self._seen[topic.place.stream].note(seq)
        self._tell_others(topic, seq)
        if other and before != topic.id:
            topic.reborn = False
            self._move(topic, other=True)
        elif topic.unnamed:
            self._move(topic, other=False)
        for outcome in outcomes:
            if outcome.record is not None:
                self._keep(outcome.record)
        self._answer(topic, outcomes)
        return self._limit(topic, proposal.size)

    def _refuse(self, topic: SharedTopic, proposal: Proposal, reason: str) -> None:
        """Refuse the chains of a proposal that there is no room for.

        Readers begin without a proof then, because they can be served, and a leader that has no room has
        hardly lost the others.

        Raises:
            Full: An append may still be done that had no answer, so that a refusal could be wrong.
        """
        if topic.waiting and topic.uncertain:
            raise Full(reason)
        self._health.refuse(reason)
        self._answer(topic, topic.full(proposal, reason))

    def _answer(self, topic: SharedTopic, outcomes: list[Outcome]) -> None:
        """Tell the outcomes of chains that no longer wait."""
        self._pending_bytes -= topic.take_freed()
        super().trim()
        if not self._pending_bytes:
            self._settled.set()
        if outcomes:
            self._done(outcomes)

    # ---- other consumers

    def _tell_others(self, topic: SharedTopic, seq: int) -> None:
        """Tell the other consumers of a record, with all others of this turn of the loop."""
        if not self._notices:
            asyncio.get_running_loop().call_soon(self._send_notices)
        self._notices.append((topic.name, topic.place.stream, seq))

    def _send_notices(self) -> None:
        notices, self._notices = self._notices, []
        for at in range(0, len(notices), MAX_NOTICES):
            self._engine.notify(msgspec.msgpack.encode(notices[at : at + MAX_NOTICES]))

    def _take_notice(self, data: bytes) -> None:
        """Follow another consumer's appends (the engine calls this)."""
        try:
            notices = _notice_decoder.decode(data)
        except msgspec.DecodeError:
            # A newer version may send others: the sweep finds the records.
            return
        for name, stream, seq in notices:
            if stream < self._streams:
                self._seen[stream].note(seq)
            topic = self._ledger.topics.get(name)
            if isinstance(topic, SharedTopic) and seq > topic.heard:
                topic.heard = seq
                if topic.readers:
                    self._kick(topic)
            if self.followed and (topic is None or not topic.readers):
                self.on_topic(name, None)

    async def _sweep(self) -> None:
        """Look for records that no notice told of, and for the state of the engine."""
        while True:
            for stream in self._states:
                await self._look(stream)
            if not self._retrying and all(self._states[stream] for stream in range(self._streams)):
                self._health.succeed()
            lag = max((state.lag for state in self._states.values() if state is not None), default=0)
            if lag <= FAR_BEHIND_RECORDS:
                self._behind_since = None
            elif self._behind_since is None:
                self._behind_since = time.monotonic()
            await self._pause(SWEEP_SECONDS)

    async def _look(self, stream: int) -> None:
        """Look for records of a stream that no notice told of, and for its state."""
        try:
            async with self._requests:
                state = self._states[stream] = await self._engine.state(stream)
        except Unanswered as error:
            self._states[stream] = None
            if stream != STATES:
                # Messages go on without the states.
                self._health.fail(str(error))
            return
        if stream == STATES:
            return
        if self._seen[stream].missed(state.last):
            self._doubts[stream] = DOUBT_SWEEPS
        if self._doubts[stream]:
            self._doubts[stream] -= 1
            self._doubt(stream)
            if self.followed:
                await self._look_for_missed_topics(stream)
        if not self.followed:
            self._engine_names.forget()

    def _doubt(self, stream: int) -> None:
        """Read on in all topics of a stream that somebody reads."""
        for log_ in list(self._ledger.topics.values()):
            if log_.readers:
                topic = self._topic(log_.name)
                if topic.place.stream == stream:
                    topic.doubt = True
                    self._kick(topic)

    async def _look_for_names(self, stream: int) -> None:
        """Look for topics of a stream that no notice told of.

        Raises:
            TooManyTopics: There are more than can be listed.
            Unanswered: No server that has the newest messages answers.
        """
        known = {
            topic.place.token: topic.name
            for topic in self._ledger.topics.values()
            if isinstance(topic, SharedTopic) and topic.place.stream == stream
        }
        for name in await self._engine_names.look(stream, known):
            self.on_topic(name, None)

    async def _look_for_missed_topics(self, stream: int) -> None:
        """Look for topics of a stream whose notices were missed, also in the next sweep if that fails."""
        try:
            await self._look_for_names(stream)
        except TooManyTopics:
            self.on_unlisted()
        except Unanswered:
            self._doubts[stream] = max(1, self._doubts[stream])

    # ---- the state of the engine

    def _tell_available(self) -> None:
        self.on_available()

    def _connection_changed(self) -> None:
        """Note that the connection to the engine is lost, or there again (the engine calls this)."""
        if not self._engine.connected:
            self._health.fail("there is no connection to a NATS server")

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do some work beside all topics."""
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)
        return task

    async def _until_answered(self, request: Callable[[], Awaitable[Result]]) -> Result:
        """Ask the engine until it answers."""
        while True:
            try:
                return await request()
            except Unanswered as error:
                self._health.fail(str(error))
                await self._pause(OPEN_RETRY_SECONDS)

    # ---- limits

    def _limit(self, topic: SharedTopic, size: int) -> asyncio.Task[None] | None:
        """Drop records of a topic that is too large, and see whether all are together.

        Returns:
            The task that drops records of the topic, None if none have to go.
        """
        topic.thin_marks(topic.limits)
        below = topic.purge_below(topic.limits, self._clock())
        purge = self._begin(self._purge_below(topic, below)) if below else None
        self._appended_bytes += size
        if self._appended_bytes > self._config.max_bytes // PURGE_PARTS:
            self._purge_soon()
        return purge

    def _trim_aged_in_engine(self, topic: SharedTopic, now: float) -> bool:
        """Drop records from the engine that are too old by the topic's own age; return True if there are any.

        A topic that others append to is theirs. The newest record stays, so it must be an empty one before
        the messages of the topic can go.
        """
        if not topic.known:
            return False
        if topic.outlived(topic.limits, now):
            topic.proof = True
            self._kick(topic)
            return True
        below = topic.purge_below(topic.limits, now)
        if below:
            self._begin(self._purge_below(topic, below))
        return bool(below)

    async def _purge_below(self, topic: SharedTopic, below: int) -> None:
        try:
            async with self._requests:
                await self._engine.purge(topic.place, below)
        except Unanswered as error:
            # The next table of the topic comes soon.
            log(logger, logging.DEBUG, "not purged", topic=topic.name, reason=error)

    def _purge_soon(self) -> None:
        self._appended_bytes = 0
        if self._purge is None or self._purge.done():
            self._purge = self._begin(self._purging.purge())
