"""The part that all stores share: offsets, repeats, and the records in memory.

It has no await and no thread. Four tables grow with the topics:

| table | holds | bound |
|---|---|---|
| `_ledger` | all topics, empty ones in the order of forgetting | `ledger.MAX_TOPICS`, `MAX_EMPTY_TOPICS` |
| `_passed`, then `_order` | the topic of each record in memory, oldest first | twice the records, and 1,000 |
| `_repeats` | the last number of each (topic, publisher) | `records.MAX_NUMBERS` |

`index` counts the bytes of empty topics and of numbers, and bounds them with the consumer's subscriptions.

A record that its topic drops out of turn stays in the order; `TopicLog.dropped` counts such entries until
they come to the front. A topic with an age of its own drops its old records out of turn. At the front of
`_order`, its entries would hold up those behind them. So they are passed over: they go to `_passed`, whose
records are only dropped in turn when there are too many of all topics.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

import msgspec

from ..config.model import Retention
from ..protocol import v2
from ..protocol.repeats import Repeats
from ..protocol.v2 import RefusalCode
from .epochs import Epochs
from .index_budget import IndexBudget
from .ledger import Ledger
from .records import MAX_NUMBERS, Record, StoreState
from .store import AppendChain, Done, Outcome, Store, TopicExtent
from .topic import NO_RECORDS, TopicLog

PROBLEMS: dict[RefusalCode, str] = {
    "invalid": v2.INVALID_MESSAGES,
    "topic_too_long": "the topic has more than max_topic_bytes",
    # Without a number, so that a consumer can refuse many such batches in one packet.
    "after_refused": "a batch before it was refused, or never came",
}

AGED_RECORDS = 10_000
"""Records that one call drops because they are too old by ages of their topics, or because of a purge, and
topics that it looks at, in 10 ms; others go later."""

NAMES_AT_ONCE = 1000
"""Topics that a turn of the loop looks at when they are listed: a part of a millisecond."""

ORDER_SLACK = 1000
"""Entries of dropped records in the order that are not worth a walk over all."""


class TopicLogs(Store):
    """Give batches their offsets, find repeats, and keep records in memory.

    Args:
        config: The mode and the limits.
        done: Called with the outcomes of batches, in the order in which they came.
        clock: Returns the Unix time.
    """

    def __init__(
        self,
        config: Retention,
        done: Done,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.epochs = Epochs()
        self.epochs.begin()
        self.on_damage: Callable[[str], None] = lambda _reason: None
        self.on_moved: Callable[[TopicLog, bool], None] = lambda _log, _other: None
        self.on_available: Callable[[], None] = lambda: None
        self.on_topic: Callable[[str, int | None], None] = lambda _topic, _offset: None
        self.on_unlisted: Callable[[], None] = lambda: None
        self.followed = False
        self._config, self._done, self._clock = config, done, clock
        self.index = IndexBudget()
        self._ledger: Ledger[TopicLog] = Ledger(self._memory_limits(config), self._empty_topics_budget())
        self._passed: deque[TopicLog] = deque()
        self._order: deque[TopicLog] = deque()
        self._records = 0
        self._repeats = Repeats()

    def reconfigure(self, limits: Retention) -> None:
        """Use other limits from now on; mode and directory stay those of the start."""
        self._config = msgspec.structs.replace(
            limits, mode=self._config.mode, directory=self._config.directory
        )
        in_memory = self._memory_limits(limits)
        if self._ledger.limits != in_memory:
            self._compact()
            self._ledger.limit(in_memory)
            for log in list(self._ledger.topics.values()):
                self._trim_topic(log)
        self.trim()

    def topic(self, name: str) -> TopicLog:
        """Return the log of a topic, a new one if there is none."""
        log = self._ledger.topics.get(name)
        if log is None:
            log = self._new_log(name)
            self._ledger.know(log)
            self._ledger.forget(lambda one: one is log or self._needed(one))
        return log

    def reading(self, name: str, more: int) -> TopicLog:
        """Return the log of a topic that has more readers, or fewer; with readers, it is not forgotten."""
        log = self.topic(name)
        self._ledger.hold(log, more)
        if not self._needed(log):
            self._ledger.forget_unused(log)
        self._ledger.forget(self._needed)
        return log

    async def names(self) -> AsyncIterator[list[str]]:
        """Return the names of all topics that have messages, some in each turn of the loop."""
        topics = list(self._ledger.topics.values())
        for at in range(0, len(topics), NAMES_AT_ONCE):
            part = topics[at : at + NAMES_AT_ONCE]
            yield [log.name for log in part if self.earliest(log) < log.next]
            await asyncio.sleep(0)

    def begin_epoch(self) -> None:
        """Begin another epoch: messages that were read until now may not be in these logs."""
        self.epochs.begin()

    async def extent(self, topic: str) -> TopicExtent:
        """Return how much of a topic is kept, which is nothing of one that is unknown."""
        log = self._ledger.topics.get(topic)
        if log is None:
            return TopicExtent(topic, 0, self._ledger.floor, self._ledger.floor)
        return self._extent(log)

    async def time_at(self, topic: str, offset: int) -> float | None:
        """Return the Unix time at which the first message from an offset on was stored, None if not known.

        Raises:
            WsqueueError: The record cannot be read.
        """
        log = self._ledger.topics.get(topic)
        records = [] if log is None else await self.read(log, offset, 1)
        return records[0].time if records else None

    async def purge(self, topic: str, before: int | None) -> int:
        """Drop the first records of a topic, and return how many messages are gone.

        Raises:
            WsqueueError: The disk doesn't do it.
        """
        log = self.reading(topic, 1)
        try:
            first, end = self.earliest(log), log.next if before is None else min(before, log.next)
            await self._purge_topic(log, end)
            return max(0, self.earliest(log) - first)
        finally:
            self.reading(topic, -1)

    async def _purge_topic(self, log: TopicLog, end: int) -> None:
        """Drop the records that end before an offset."""
        await self._purge_memory(log, end)

    async def _purge_memory(self, log: TopicLog, end: int) -> None:
        """Drop the records in memory that end before an offset, in turns of the loop."""
        while True:
            if self._drop_before(log, end):
                break
            await asyncio.sleep(0)
        self.trim()

    def _drop_before(self, log: TopicLog, end: int) -> bool:
        """Drop some records in memory that end before an offset; return True if there are no more."""
        for _ in range(AGED_RECORDS):
            if not log.records or log.records[0].end > end:
                return True
            self._drop_first(log)
            log.dropped += 1
        return False

    def _extent(self, log: TopicLog) -> TopicExtent:
        """Return how much of a topic is kept in memory."""
        return TopicExtent(log.name, log.bytes, log.first, log.next)

    def trim(self) -> None:
        """Drop records above the limits."""
        self._trim(self._clock())

    def _trim(self, now: float) -> None:
        ledger, passed, order = self._ledger, self._passed, self._order
        if ledger.is_due(now):
            self._trim_aged(now)
        while True:
            while passed and (passed[0].dropped or ledger.overfull):
                self._drop_passed()
            if not order:
                break
            log = order[0]
            if log.dropped > log.passed:
                log.dropped -= 1
            elif log.limits.own_age:
                log.passed += 1
                passed.append(log)
            elif ledger.must_drop(log.records[0].time, now):
                self._drop_first(log)
            else:
                break
            order.popleft()
        if len(passed) + len(order) > 2 * self._records + ORDER_SLACK:
            self._compact()
        if ledger.crowded:
            ledger.forget(self._needed)

    def _trim_aged(self, now: float) -> None:
        """Drop records that are too old by the ages of their topics."""
        room = AGED_RECORDS
        for log in self._ledger.due(now, AGED_RECORDS):
            age = log.limits.max_age_seconds
            while room and log.records and log.records[0].time + age < now:
                self._drop_first(log)
                log.dropped += 1
                room -= 1
            if log.records:
                self._ledger.watch(log, log.records[0].time + age)

    def _drop_passed(self) -> None:
        """Drop the oldest record of all, which has been passed over, if its topic has not."""
        log = self._passed.popleft()
        log.passed -= 1
        if log.dropped:
            log.dropped -= 1
        else:
            self._drop_first(log)

    def _new_log(self, name: str) -> TopicLog:
        """Return the log of a topic that is not remembered."""
        return TopicLog(name, self._ledger.floor, self._ledger.floor)

    def _memory_limits(self, config: Retention) -> Retention:
        """Return the limits of the records in memory."""
        return config

    def _empty_topics_budget(self) -> IndexBudget | None:
        """Return the budget that bounds empty topics; None if only their number is bounded."""
        return self.index

    def _needed(self, log: TopicLog) -> bool:
        """Return True if an empty topic must not be forgotten now."""
        return log.assigned != log.next

    def _take_over(self, state: StoreState) -> None:
        """Go on where a log ended that was kept."""
        self.epochs, self._ledger.floor = Epochs(state.epochs), state.floor
        for (topic_name, publisher), number in state.numbers.items():
            self._remember(topic_name, publisher, number)
        for name, topic in state.topics.items():
            self._ledger.know(TopicLog(name, 0, topic.next, topic.epoch))
        self.begin_epoch()

    def _admit(self, chain: AppendChain, before: int | None, now: float) -> Outcome:
        """Give batches their place in the log, but those that are there, unless one is missing before them.

        Args:
            chain: The batches.
            before: Number of the publisher's last batch on the topic, None when the publisher is new here (or
                has been forgotten), and so may begin with any number.
            now: Unix time.
        """
        if chain.problem is not None:
            if before is None and chain.problem == "invalid" and chain.publisher:
                # Known from now on, so that no batch after this one passes for the first.
                self._remember(chain.topic, chain.publisher, 0)
            return Outcome(chain, code=chain.problem, reason=PROBLEMS[chain.problem])
        publisher, numbers, counts, messages = chain.publisher, chain.numbers, chain.counts, chain.messages
        repeats = 0
        if publisher and before is not None:
            if numbers[0] <= before:
                repeats = bisect.bisect_right(numbers, before)
                if repeats == len(numbers):
                    return Outcome(chain, repeats)
                messages = messages.behind(sum(counts[:repeats]))
                numbers, counts = numbers[repeats:], counts[repeats:]
            elif chain.after > before:
                return Outcome(chain, code="after_refused", reason=PROBLEMS["after_refused"])
        log = self._ledger.topics.get(chain.topic) or self.topic(chain.topic)
        if publisher:
            # With the topic as the log has it, so that it is in memory once.
            self._remember(log.name, publisher, numbers[-1])
        deliver = v2.Deliver(chain.topic, log.assigned, publisher, numbers, counts, messages)
        log.time = max(log.time, now)
        record = Record(
            log.name,
            log.assigned,
            messages.count,
            log.time,
            publisher,
            numbers[-1],
            v2.encode(deliver),
            self.epochs.current.number,
        )
        log.assigned = record.end
        return Outcome(chain, repeats, record)

    def _remember(self, topic: str, publisher: str, number: int) -> None:
        """Remember the last batch of a publisher on a topic, and forget others that there is no room for."""
        repeats, index = self._repeats, self.index
        if more := repeats.remember(topic, publisher, number):
            index.add_numbers(more)
            while repeats.pairs > MAX_NUMBERS or (index.numbers_full and repeats.pairs):
                index.add_numbers(-repeats.forget())

    def _keep(self, record: Record) -> None:
        """Keep a record that is stored, the newest of all, in memory."""
        log = self._ledger.topics.get(record.topic) or self.topic(record.topic)
        if not log.messages:
            self._tell_topic(log.name, record.offset)
            log.records = deque()
        log.records.append(record)
        log.epoch = record.epoch
        self._order.append(log)
        self._records += 1
        if self._ledger.add(log, record.offset, record.count, record.size):
            self._trim_topic(log)

    def _tell_topic(self, topic: str, offset: int | None) -> None:
        """Tell of a topic that has no messages in memory, and gets one with that offset."""
        self.on_topic(topic, offset)

    def _trim_topic(self, log: TopicLog) -> None:
        """Drop the first records of a topic that exceeds its limits, never its newest."""
        while len(log.records) > 1 and self._ledger.exceeds(log):
            self._drop_first(log)
            log.dropped += 1

    def _drop_first(self, log: TopicLog) -> None:
        record = log.records.popleft()
        self._records -= 1
        self._ledger.drop(log, record.end, record.size)
        log.epoch_before = record.epoch
        if not log.records:
            log.records = NO_RECORDS

    def _compact(self) -> None:
        """Make one order of both, without the entries of dropped records, which are a topic's first ones."""
        order: deque[TopicLog] = deque()
        for log in itertools.chain(self._passed, self._order):
            log.passed = 0
            if log.dropped:
                log.dropped -= 1
            else:
                order.append(log)
        self._passed, self._order = deque(), order

    def _all_records(self) -> list[Record]:
        """Return the records of all topics, oldest first."""
        self._compact()
        left = {log.name: iter(log.records) for log in self._ledger.topics.values()}
        return [next(left[log.name]) for log in self._order]
