"""The interface of a store, the place that keeps the logs of a consumer's topics.

A consumer appends batches and is told their outcomes; readers take subscribers through the log of a topic.
There are three stores, `memory`, `sqlite` and `shared`; all that they share is in `logs`, and `ledger` has
the limits of the records in one place.

Promises of a store:

- A batch gets its offsets when it is appended. It is stored once, however often it comes, and not before the
  batch that it comes after. All messages of a topic have consecutive offsets, unless the topic was forgotten.
- Outcomes of a topic come in the order of its chains, once each; those of other topics come in any order.
- Before the outcome of a stored batch nothing of it can be read: `next` of its topic moves with the outcome.
- Stored records are only dropped by the limits, oldest first and whole, or the first ones of a topic by a
  purge; offsets are never used twice.
- A state is as durable as a batch in the same store, and no limit of the logs drops it.
- Nothing blocks the event loop: all that is `async` may wait for a disk or a peer.

A log that consumers share has two more things to tell: `opening` says when a topic is known that others may
have appended to, and `on_moved` that it has gone on without the records between.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeAlias

import msgspec

from ..config.model import Retention
from ..errors import WsqueueError
from ..protocol import v2
from ..protocol.packed import NOTHING, Packed
from ..protocol.v2 import RefusalCode
from ..report.report import HistogramStatus, LogStatus
from .epochs import Epochs
from .index_budget import IndexBudget
from .records import Record
from .states import State, StateInfo
from .topic import TopicLog


class AppendChain(msgspec.Struct, gc=False):
    """Hold batches of one publisher on one topic, each after the one before, that came together.

    Attributes:
        publisher: Public id of the publisher; "" for a classic publisher.
        numbers: Numbers that the publisher gave to the batches, rising; 0 for a classic publisher.
        after: Number of the publisher's batch before, if that need not be here yet, else 0.
        topic: Name of the topic of all messages.
        counts: Number of messages of each batch.
        messages: The messages of all batches.
        source: Any object that the consumer needs to confirm the batches; the store hands it back.
        problem: Why the batches cannot be stored, None when they can.
    """

    publisher: str
    numbers: list[int]
    after: int
    topic: str
    counts: list[int]
    messages: Packed
    source: object = None
    problem: RefusalCode | None = None


class Outcome(msgspec.Struct, gc=False):
    """Tell the fate of a chain: its first batches are repeats, and all others are stored, or all are refused.

    Attributes:
        chain: The chain.
        repeats: How many of its batches are repeats.
        record: The record of the others in the log; None when there are none, or they are refused.
        code: Why they are refused, None when they are not.
        reason: The same in words.
    """

    chain: AppendChain
    repeats: int = 0
    record: Record | None = None
    code: RefusalCode | None = None
    reason: str = ""


FOREIGN = AppendChain("", [], 0, "", [], NOTHING)
"""Stands for the chains of records that another consumer appended."""


class TopicExtent(msgspec.Struct, frozen=True, gc=False):
    """Describe the messages of a topic that are kept.

    Attributes:
        topic: Its name.
        bytes: Bytes of their records, as the limits count them.
        first: Offset of the first message; `next` when there is none.
        next: Offset of the message that will be stored next.
    """

    topic: str
    bytes: int
    first: int
    next: int

    @property
    def messages(self) -> int:
        """Return the number of messages."""
        return self.next - self.first


class TooManyTopics(WsqueueError):  # noqa: N818 - reads best where it is raised
    """There are more topics than can be listed."""


Done: TypeAlias = Callable[[list[Outcome]], None]
"""Takes outcomes of chains, in the order of the chains."""


class Store(ABC):
    """Keep the logs of all topics of a consumer.

    Attributes:
        epochs: The epochs of the logs; a position names the one in which it was read.
        index: Counts the memory of all that is remembered by topic.
        on_damage: Called with a sentence when the store turns out to be damaged. The caller must close the
            store, without waiting for outcomes; a new one then begins without it.
        on_moved: Called with a topic that has gone on without telling outcomes, or whose log has its id now,
            and True if its log has gone and another one begins.
        on_available: Called when `shared` changes.
        on_topic: Called with a topic that has a message now and had none, and the offset of that message. It
            may be called with other topics that have messages, and without an offset if that is not known.
        on_unlisted: Called when there may be topics of which `on_topic` will not tell, because they are too
            many.
        followed: True while somebody must hear of all topics by `on_topic`.
    """

    epochs: Epochs
    index: IndexBudget
    on_damage: Callable[[str], None]
    on_moved: Callable[[TopicLog, bool], None]
    on_available: Callable[[], None]
    on_topic: Callable[[str, int | None], None]
    on_unlisted: Callable[[], None]
    followed: bool

    @property
    def shared(self) -> v2.Log | None:
        """Return the packet that names the log which consumers share, None for a log of this consumer."""
        return None

    def log_id(self, log: TopicLog) -> str:
        """Return the id of the epoch that positions of a topic which are read now are of."""
        return self.epochs.current.id

    def opening(self, log: TopicLog) -> asyncio.Future[None] | None:
        """Return a future that is done when a topic's log is known, None if it is.

        Until then it has no id and no end. The future is cancelled when the store is closed.
        """
        return None

    @abstractmethod
    async def open(self) -> None:
        """Take over the logs that were kept before; called once, before anything else.

        Raises:
            ConfigError: There is no directory, or it cannot be used.
            StorageError: The disk is full or does not work.
        """

    @abstractmethod
    async def close(self) -> None:
        """Store all that was appended, for the next start; called once, after `open`.

        Raises:
            WsqueueError: It cannot be written.
        """

    @abstractmethod
    def reconfigure(self, limits: Retention) -> None:
        """Use other limits from now on; mode and directory stay those of the start."""

    @abstractmethod
    def append(self, chains: Sequence[AppendChain]) -> None:
        """Store batches, or find out that they were stored before, or refuse them.

        The batches of a chain that were not stored before become one record. The outcomes may be told before
        this returns. Chains lose their messages while they wait for a disk, because the records have them.
        """

    @property
    @abstractmethod
    def congested(self) -> bool:
        """Return True if too much waits to be stored; the consumer then reads no more from its producers."""

    @abstractmethod
    async def settle(self) -> None:
        """Wait until all outcomes have been told."""

    @abstractmethod
    def topic(self, name: str) -> TopicLog:
        """Return the log of a topic, a new one if there is none."""

    @abstractmethod
    def reading(self, name: str, more: int) -> TopicLog:
        """Return the log of a topic that has more readers, or fewer; with readers, it is not forgotten."""

    @abstractmethod
    def names(self) -> AsyncIterator[list[str]]:
        """Return the names of all topics that have messages, some in each turn of the loop.

        Some of them may have none any more. A topic that gets its first message meanwhile may be missing:
        `on_topic` tells of it.

        Raises:
            TooManyTopics: There are more than can be listed.
            WsqueueError: They cannot be read.
        """

    @abstractmethod
    def earliest(self, log: TopicLog) -> int:
        """Return the offset of the first message that is kept, `next` when there is none.

        A store on disk may drop that message before it is read; the reader then finds out.
        """

    @abstractmethod
    def in_memory(self, log: TopicLog, offset: int) -> bool:
        """Return True if all messages that are kept from an offset on are in memory, in `TopicLog.read`."""

    @abstractmethod
    async def read(self, log: TopicLog, offset: int, max_bytes: int) -> list[Record]:
        """Return records from the one that holds an offset on, at least one if there is any.

        When the first begins after the offset, the messages between are gone.

        Args:
            log: Log of the topic.
            offset: Offset of a message.
            max_bytes: Bytes after which no further record is read.

        Raises:
            WsqueueError: The records cannot be read.
        """

    @abstractmethod
    async def offset_at(self, log: TopicLog, moment: float) -> int:
        """Return the offset of the first record that is not older than a Unix time, `next` if all are.

        Raises:
            WsqueueError: The records cannot be read.
        """

    @abstractmethod
    async def time_at(self, topic: str, offset: int) -> float | None:
        """Return the Unix time at which the first message from an offset on was stored, None if not known.

        With an engine, it is known of topics that this consumer serves.

        Raises:
            WsqueueError: The record cannot be read.
        """

    @abstractmethod
    async def epoch_end(self, log: TopicLog, epoch: int) -> int | None:
        """Return the offset at which an epoch of these logs ends in a topic.

        Args:
            log: Log of the topic.
            epoch: Number of the epoch.

        Returns:
            None if no message is kept that shows it: the epoch ended before the first that is kept.

        Raises:
            WsqueueError: The records cannot be read.
        """

    @abstractmethod
    def begin_epoch(self) -> None:
        """Begin another epoch: messages that were read until now may not be in these logs."""

    @abstractmethod
    async def state(self, topic: str, name: str) -> State | None:
        """Return a state, None if there is none.

        An engine may answer with an older one while its servers elect a leader.

        Args:
            topic: Any topic.
            name: Any name that tells it from the topic's other states.

        Raises:
            WsqueueError: It cannot be read.
        """

    @abstractmethod
    async def change_state(self, topic: str, name: str, value: bytes, version: int) -> int:
        """Replace a state, or make one, and return its new version once it is as durable as messages are.

        Args:
            topic: Any topic.
            name: Any name that tells it from the topic's other states.
            value: The new value.
            version: The version that the state must have, 0 if there must be none.

        Raises:
            StateConflict: It has another one: nothing was changed.
            StatesFull: There are too many states, or there is no room: nothing was changed.
            StorageError: The disk or the engine does not take it. With an engine, the outcome may be open: it
                may be changed already, or later. The next change decides it, because it conflicts or wins.
        """

    @abstractmethod
    async def drop_state(self, topic: str, name: str, version: int) -> None:
        """Delete a state, and return once that is as durable as messages are.

        Args:
            topic: Any topic.
            name: Any name that tells it from the topic's other states.
            version: The version that the state must have.

        Raises:
            StateConflict: It has another one, or there is none: nothing was changed.
            StorageError: As `change_state`.
        """

    @abstractmethod
    async def states(self) -> list[StateInfo]:
        """Return all states, in no order.

        Raises:
            WsqueueError: They cannot be read.
        """

    @abstractmethod
    async def extent(self, topic: str) -> TopicExtent:
        """Return how much of a topic is kept, which is nothing of one that is unknown.

        Raises:
            WsqueueError: The engine doesn't answer.
        """

    @abstractmethod
    async def purge(self, topic: str, before: int | None) -> int:
        """Drop the first records of a topic, and return how many messages are gone, once that is durable.

        As with the limits, records go as a whole, and offsets and the numbers of publishers stay.

        Args:
            topic: The topic.
            before: Offset at or before which a record must end to be dropped, None to drop all that is kept.

        Raises:
            WsqueueError: The disk or the engine doesn't do it; some records may be gone.
        """

    @abstractmethod
    def trim(self) -> None:
        """Drop records above the limits; called from time to time, because records grow old by themselves."""

    @abstractmethod
    def log_status(self) -> LogStatus:
        """Return the status of the logs for reports."""

    @abstractmethod
    def commit_seconds(self) -> HistogramStatus | None:
        """Return how long commits took, None for a store without commits."""
