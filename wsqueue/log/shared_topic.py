"""The shared log of one topic, as one consumer knows it; no I/O and no clock.

    closed ──open──▶ known ──propose──▶ appending ──appended──▶ known
                      ▲ ▲                    │
          open, apply │ └────────────────────┤ full: refused
                      └─── in doubt ◀────────┘ conflict, no answer

A consumer *knows* a topic's log up to the record `seq`: its id, the next offset, and the last number of each
publisher. From that `propose` judges the chains that wait, and makes the record that stores them. It is
appended only if `seq` is still the last record. So the judgement holds if the append succeeds, and else
nothing has happened: the topic is *in doubt*, the consumer reads on, and judges again.

| an answer | needs |
|---|---|
| a chain is stored | the append of its record |
| a batch is a repeat | nothing: it is in the log that is known |
| a batch comes after a missing one | an append, of an empty record if need be, because answers may be old |
| there is no room | that no append may still be done whose outcome is unknown: else the chains wait |

This knowledge is a function of the records: two consumers that know the same `seq` know the same.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import deque
from collections.abc import Sequence

import msgspec

from ..protocol import v2
from ..protocol.packed import SIZE_BYTES, Packed
from ..protocol.repeats import crowded_out
from .engine import Place
from .logs import PROBLEMS
from .records import RECORD_OVERHEAD_BYTES, Record
from .shared_record import (
    FORMAT,
    MAX_CHANGES,
    MAX_PUBLISHERS,
    PUBLISHER_BYTES,
    TABLE_RATIO,
    SharedBatch,
    SharedRecord,
    encode_record,
)
from .store import AppendChain, Outcome
from .topic import TopicLog
from .topic_limits import TopicLimits

MAX_RECORD_BYTES = 512 * 1024
"""Bytes of batches at which a record ends: its costs are small then, and an engine takes a few in a turn."""

MAX_RECORD_CHAINS = 2000
"""Chains that are judged at a time: a few milliseconds."""

CHAIN_OVERHEAD_BYTES = 600
"""Bytes of a chain that waits besides its messages, so that the limit of those that wait is honest."""

STRING_BYTES = 5
"""Most bytes that the length of a header's name or value takes in a packet."""

OWED_SLACK = 100
"""Refused publishers beyond `MAX_PUBLISHERS` before some are forgotten, because to choose takes 0.5 ms."""

MARKS = 16
"""Parts of a topic's limit that are dropped at a time."""


NO_LIMITS = TopicLimits(2**62, 2**62, math.inf)
"""Limits that no topic reaches."""


class Proposal(msgspec.Struct, gc=False):
    """Hold a record that is to be appended, and the answers that hold then.

    Attributes:
        chains: How many of the chains that wait are answered.
        outcomes: Their outcomes.
        record: The record; None if the outcomes hold without one.
        data: The record, encoded.
        size: Bytes that it counts for the limits.
    """

    chains: int
    outcomes: list[Outcome]
    record: SharedRecord | None = None
    data: bytes = b""
    size: int = 0


class Draft(msgspec.Struct, gc=False):
    """Hold the batches of a record to be.

    Attributes:
        numbers: The last numbers of publishers that the record changes.
        end: Offset after the last message.
        time: Unix time.
        batches: The batches.
        size: Bytes that they count for the limits.
    """

    numbers: dict[str, int]
    end: int
    time: float
    batches: list[SharedBatch] = []
    size: int = 0


class Mark(msgspec.Struct, frozen=True, gc=False):
    """Note a place from which on a log could be kept: a table.

    Attributes:
        seq: Sequence number of its record.
        offset: Offset of its first message.
        bytes: Bytes of all records of the log before it.
        time: Unix time after which none of these were appended.
    """

    seq: int
    offset: int
    bytes: int
    time: float


class SharedTopic(TopicLog):
    """Know the log of one topic, and judge chains.

    Args:
        name: Name of the topic.
        place: Where the engine has it.

    Attributes:
        place: See above.
        id: Id of the log, "" while it has no record.
        seq: Sequence number of the last record that is known, 0 without one.
        old_answers: How many answers about the log were older than it is known here, one after another.
        opened: Whether the log is known at all.
        doubt: Whether the log may have more records than are known, for some other reason than `heard`.
        heard: The largest sequence number of this topic's records that another consumer told of.
        uncertain: Whether an append of unknown outcome may still be done.
        reborn: Whether the log has gone that readers know, and another begins.
        known_at: Unix time at which the last record that is known became known here.
        unnamed: Whether readers have begun although there was no log.
        proof: Whether somebody waits for a proof that all of the log is known.
        purging: Offset before which a purge wants no messages any more, 0 without one.
        waiting: The chains that are not answered.
        bytes_ever: Bytes of all records of this log.
        numbers: The last number of each publisher; those that published last come last.
    """

    __slots__ = (
        "_changed",
        "_marks",
        "_owed",
        "_table",
        "_table_bytes",
        "_table_offset",
        "_table_time",
        "_told_bytes",
        "bytes_ever",
        "doubt",
        "heard",
        "id",
        "known_at",
        "numbers",
        "old_answers",
        "opened",
        "place",
        "proof",
        "purging",
        "reborn",
        "seq",
        "uncertain",
        "unnamed",
        "waiting",
    )

    def __init__(self, name: str, place: Place) -> None:
        super().__init__(name, 0, 0)
        self.place = place
        self.waiting: deque[AppendChain] = deque()
        self._told_bytes = self.heard = self.old_answers = self.purging = 0
        self.known_at = math.inf
        self.opened = self.doubt = self.uncertain = self.reborn = self.proof = self.unnamed = False
        # Publishers of whom a batch was refused that no record tells of.
        self._owed: dict[str, None] = {}
        self._marks: deque[Mark] = deque()
        self._begin()

    def _begin(self) -> None:
        """Know of no record."""
        self.id = ""
        self.seq = self._table = self.bytes_ever = self._table_bytes = self._table_offset = 0
        self._table_time = 0.0
        self.numbers: dict[str, int] = {}
        self._changed: dict[str, int] = {}
        self._marks.clear()

    @property
    def known(self) -> bool:
        """Return True if all is known that the engine has told of."""
        return self.opened and not self.doubt and self.heard <= self.seq

    @property
    def table(self) -> int:
        """Return the sequence number of the newest table: all before that may be dropped."""
        return self._table

    @property
    def renewed(self) -> float:
        """Return a Unix time at which the last record was there, whatever the clock of its writer says."""
        return min(self.time, self.known_at)

    @property
    def wanted(self) -> bool:
        """Return True if somebody waits for this log."""
        return bool(self.waiting) or self.proof or (self.readers > 0 and not self.known)

    def wait(self, chain: AppendChain) -> int:
        """Let a chain wait, behind all others; return the bytes that it takes."""
        self.waiting.append(chain)
        return _chain_bytes(chain)

    def close(self) -> None:
        """Forget the numbers, which can be read again, to save memory."""
        self.opened = False
        self.numbers, self._changed = {}, {}

    def open(self, seq: int, record: SharedRecord, table: SharedRecord | None) -> bool:
        """Know a log by its last record; messages before its end are not in memory.

        Args:
            seq: Sequence number of the record.
            record: The record.
            table: The table that it names, or the record itself; None if that has gone.

        Returns:
            True if that is another log than was known.
        """
        other = self.reborn or (bool(self.id) and record.log != self.id)
        self.reborn = False
        self._begin()
        if table is not None and table is not record:
            self._note(record.table, table)
        self._note(seq, record)
        self.first = self.next = self.assigned = record.end
        self.opened = True
        return other

    def open_empty(self) -> None:
        """Know that there is no record: the next append begins a log."""
        self.reborn = self.reborn or bool(self.id)
        self._begin()
        self.first = self.next = self.assigned = self.start
        self.opened = True

    def continues(self, record: SharedRecord) -> bool:
        """Return True if a record is the next one after those that are known."""
        same = record.log == self.id or not (self.id or self.reborn)
        return same and record.before == self.seq and record.offset == self.next

    def apply(self, seq: int, record: SharedRecord) -> list[Record]:
        """Know the next record, which somebody else appended; return the batches in it.

        The owner keeps them, which moves `next`.
        """
        self._note(seq, record)
        self.assigned = record.end
        return records_of(self.name, record)

    def propose(
        self, now: float, *, writer: str, new_id: str, max_age: float, limits: TopicLimits
    ) -> Proposal:
        """Judge the chains that wait, and return the record that stores them.

        Args:
            now: Unix time.
            writer: Id of this consumer.
            new_id: Id of the log if it begins now.
            max_age: Seconds after which records go.
            limits: Limits of the topic.
        """
        outcomes: list[Outcome] = []
        owed = {publisher: 0 for publisher in self._owed if publisher not in self.numbers}
        draft = Draft(owed, self.next, max(self.time, now))
        needed = self.proof
        for chain in itertools.islice(self.waiting, MAX_RECORD_CHAINS):
            if draft.size and draft.size + _most_bytes(chain.messages) > MAX_RECORD_BYTES:
                break
            outcome = self._judge(chain, draft)
            outcomes.append(outcome)
            needed = needed or outcome.record is not None or outcome.code == "after_refused"
            needed = needed or (outcome.code == "invalid" and draft.numbers.get(chain.publisher) == 0)
        if not needed:
            return Proposal(len(outcomes), outcomes)
        shared = self._record(draft, writer, new_id, max_age, limits)
        return Proposal(len(outcomes), outcomes, shared, encode_record(shared), draft.size)

    def propose_moved(
        self,
        records: Sequence[Record],
        numbers: dict[str, int],
        end: int,
        *,
        now: float,
        writer: str,
        new_id: str,
    ) -> Proposal:
        """Return the record that holds records of another log of this topic, at the offsets that they have.

        Args:
            records: The records, without holes between them; there need not be any.
            numbers: More numbers of publishers, those that published last at the end.
            end: Offset after the last message.
            now: Unix time, for a record without messages.
            writer: Id of whoever moves the log.
            new_id: Id of the log if it begins now.
        """
        draft = Draft({}, end, max(self.time, records[-1].time if records else now))
        for record in records:
            if record.publisher:
                draft.numbers.pop(record.publisher, None)
                draft.numbers[record.publisher] = record.number
            draft.batches.append(SharedBatch(record.count, record.publisher, record.number, record.packet))
            draft.size += record.size
        draft.numbers = _with(draft.numbers, numbers)
        self.next = records[0].offset if records else end
        shared = self._record(draft, writer, new_id, math.inf, NO_LIMITS)
        return Proposal(0, [], shared, encode_record(shared), draft.size)

    def appended(self, proposal: Proposal, seq: int) -> list[Outcome]:
        """Know the record of a proposal, and answer its chains; the owner keeps their records."""
        assert proposal.record is not None
        self._note(seq, proposal.record)
        self.assigned = proposal.record.end
        self._owed.clear()
        self.proof = self.uncertain = self.doubt = False
        return self.answered(proposal)

    def answered(self, proposal: Proposal) -> list[Outcome]:
        """Let go of the chains of a proposal, whose outcomes hold."""
        for _ in range(proposal.chains):
            self._told_bytes += _chain_bytes(self.waiting.popleft())
        return proposal.outcomes

    def take_freed(self) -> int:
        """Return the bytes of the chains that no longer wait, once."""
        freed, self._told_bytes = self._told_bytes, 0
        return freed

    def full(self, proposal: Proposal, reason: str) -> list[Outcome]:
        """Refuse the chains of a proposal whose record found no room, but for repeats."""
        outcomes: list[Outcome] = []
        for outcome in proposal.outcomes:
            chain = outcome.chain
            # A repeat of a batch in the same record is none now.
            repeats = bisect.bisect_right(chain.numbers, self.numbers.get(chain.publisher, 0))
            if chain.problem is not None:
                outcomes.append(outcome)
            elif repeats == len(chain.numbers):
                outcomes.append(Outcome(chain, repeats))
                continue
            else:
                outcomes.append(Outcome(chain, repeats, code="full", reason=reason))
            self._owe(chain.publisher)
        proposal.outcomes = outcomes
        return self.answered(proposal)

    def give_up(self, reason: str) -> list[Outcome]:
        """Refuse all chains that wait, because the log can't be read."""
        outcomes: list[Outcome] = []
        for chain in self.waiting:
            code = chain.problem
            outcomes.append(Outcome(chain, code=code or "full", reason=PROBLEMS[code] if code else reason))
            self._owe(chain.publisher)
        return self.answered(Proposal(len(outcomes), outcomes))

    def _owe(self, publisher: str) -> None:
        """Note that a batch of a publisher was refused that no record tells of."""
        if publisher not in self.numbers:
            self._owed[publisher] = None
            if len(self._owed) > MAX_PUBLISHERS + OWED_SLACK:
                for one in crowded_out(self._owed, MAX_PUBLISHERS):
                    del self._owed[one]

    def outlived(self, limits: TopicLimits, now: float) -> bool:
        """Return True if all messages are too old, so that an empty record lets them be dropped.

        Args:
            limits: Limits of the topic, which has an age of its own.
            now: Unix time.
        """
        return self.next > self._table_offset and self.time < now - limits.max_age_seconds

    def purge_below(self, limits: TopicLimits, now: float) -> int:
        """Return the sequence number below which records exceed the limits of the topic, 0 if none do.

        Args:
            limits: Limits of the topic.
            now: Unix time.
        """
        below = 0
        oldest = now - limits.max_age_seconds if limits.own_age else -math.inf
        marks = self._marks
        while marks and (
            self.bytes_ever - marks[0].bytes >= limits.max_bytes
            or self.next - marks[0].offset >= limits.max_messages
            or marks[0].time < oldest
        ):
            mark = marks.popleft()
            # The first one has nothing before it.
            below = mark.seq if mark.bytes else below
        return below

    def _judge(self, chain: AppendChain, draft: Draft) -> Outcome:
        """Return the outcome of a chain, and add its new batches to the draft."""
        publisher = chain.publisher
        before = draft.numbers.get(publisher, self.numbers.get(publisher))
        if chain.problem is not None:
            if before is None and chain.problem == "invalid":
                # Known from now on, so that no batch after this one passes for the first.
                draft.numbers[publisher] = 0
            return Outcome(chain, code=chain.problem, reason=PROBLEMS[chain.problem])
        numbers, counts, messages, repeats = chain.numbers, chain.counts, chain.messages, 0
        if before is not None:
            if numbers[0] <= before:
                repeats = bisect.bisect_right(numbers, before)
                if repeats == len(numbers):
                    return Outcome(chain, repeats)
                messages = messages.behind(sum(counts[:repeats]))
                numbers, counts = numbers[repeats:], counts[repeats:]
            elif chain.after > before:
                return Outcome(chain, code="after_refused", reason=PROBLEMS["after_refused"])
        draft.numbers.pop(publisher, None)
        draft.numbers[publisher] = last = numbers[-1]
        packet = v2.encode(v2.Deliver(self.name, draft.end, publisher, numbers, counts, messages))
        record = Record(self.name, draft.end, messages.count, draft.time, publisher, last, packet)
        draft.batches.append(SharedBatch(record.count, publisher, last, packet))
        draft.end = record.end
        draft.size += record.size
        return Outcome(chain, repeats, record)

    def _record(
        self, draft: Draft, writer: str, new_id: str, max_age: float, limits: TopicLimits
    ) -> SharedRecord:
        """Return the record of a draft, as a table if one is due."""
        numbers, size = _with(self._changed, draft.numbers), self.bytes_ever + draft.size
        is_table = (
            not self._table
            or self.purging > 0
            or len(numbers) > MAX_CHANGES
            or size - self._table_bytes >= TABLE_RATIO * PUBLISHER_BYTES * len(self.numbers)
            or self._table_time < draft.time - min(max_age, limits.max_age_seconds) / 2
            # A small table costs no more than the changes that any record may have.
            or (len(self.numbers) <= MAX_CHANGES and self._is_part(limits, draft.time))
        )
        if is_table:
            numbers = _with(self.numbers, draft.numbers)
            for publisher in crowded_out(numbers, MAX_PUBLISHERS):
                del numbers[publisher]
        return SharedRecord(
            format=FORMAT,
            topic=self.name,
            log=self.id or new_id,
            offset=self.next,
            end=draft.end,
            bytes=size,
            time=draft.time,
            writer=writer,
            before=self.seq,
            table=0 if is_table else self._table,
            numbers=numbers,
            batches=draft.batches,
            purged=self.purging,
        )

    def _is_part(self, limits: TopicLimits, now: float) -> bool:
        """Return True if the records since the last table are a part of the limits that can be dropped."""
        return (
            self.next - self._table_offset >= max(1, limits.max_messages // MARKS)
            or self.bytes_ever - self._table_bytes >= max(1, limits.max_bytes // MARKS)
            or (limits.own_age and self._table_time < now - limits.max_age_seconds / MARKS)
        )

    def _note(self, seq: int, record: SharedRecord) -> None:
        """Know the head of the next record."""
        if record.table:
            self._changed = record.numbers
            self.numbers = _with(self.numbers, record.numbers)
        else:
            self._mark(seq, record)
            self._table, self._table_bytes, self._table_time = seq, record.bytes, record.time
            self._table_offset = record.offset
            self.numbers, self._changed = dict(record.numbers), {}
        self.id, self.seq, self.bytes_ever = record.log, seq, record.bytes
        self.time = record.time

    def _mark(self, seq: int, record: SharedRecord) -> None:
        size = sum(len(batch.packet) + RECORD_OVERHEAD_BYTES for batch in record.batches)
        time = self.time if self.seq and record.before == self.seq else record.time
        self._marks.append(Mark(seq, record.offset, record.bytes - size, time))

    def thin_marks(self, limits: TopicLimits) -> None:
        """Keep few marks: those that are a part of the limits apart."""
        marks = self._marks
        while len(marks) > 2:
            last, before = marks[-2], marks[-3]
            if (
                last.bytes - before.bytes >= limits.max_bytes // MARKS
                or last.offset - before.offset >= limits.max_messages // MARKS
                or (limits.own_age and marks[-1].time - before.time >= limits.max_age_seconds / MARKS)
            ):
                return
            del marks[-2]


def records_of(name: str, record: SharedRecord) -> list[Record]:
    """Return the batches of a record."""
    records: list[Record] = []
    offset = record.offset
    for batch in record.batches:
        records.append(
            Record(name, offset, batch.count, record.time, batch.publisher, batch.number, batch.packet)
        )
        offset = records[-1].end
    return records


def _with(numbers: dict[str, int], newer: dict[str, int]) -> dict[str, int]:
    """Return numbers with newer ones, which come last."""
    merged = {publisher: number for publisher, number in numbers.items() if publisher not in newer}
    merged.update(newer)
    return merged


def _most_bytes(messages: Packed) -> int:
    """Return the most bytes that messages take in a packet, which can be far more than their data."""
    size = messages.data.nbytes + SIZE_BYTES * len(messages.sizes)
    for headers in messages.headers or ():
        for text in itertools.chain.from_iterable((headers or {}).items()):
            size += STRING_BYTES + (len(text) if text.isascii() else 4 * len(text))
    return size


def _chain_bytes(chain: AppendChain) -> int:
    return chain.messages.data.nbytes + CHAIN_OVERHEAD_BYTES
