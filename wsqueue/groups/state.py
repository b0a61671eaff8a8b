"""The state of a worker group that the store keeps: messages that are done or have failed. No I/O.

    0            floor                                          next
    │    done      │  done │ failed, dying, lent, or to be lent    │
    ├──────────────┼───────┼───────────────────────────────────────┼──▶ offsets

Loans are not kept: after a restart of the consumer, messages that were lent are lent again.
"""

from __future__ import annotations

import itertools
import math

import msgspec

from ..protocol.classic import DECODE_ERRORS
from ..protocol.ranges import Ranges
from ..protocol.v2 import MAX_REASON_CHARACTERS, LogId, Offset

MAX_STATE_BYTES = 64 * 1024
"""Size of a state above which nothing more is lent until some of it is done: a change writes all of it."""

RANGE_BYTES = 10
"""Bytes of a range of messages that are done: two numbers of up to 5 bytes each."""

FAILURE_BYTES = 16
"""Bytes of a message that has failed: its offset, its number of deliveries, and a time."""

DYING_BYTES = FAILURE_BYTES + MAX_REASON_CHARACTERS
"""Bytes of a message that is to become a dead letter: as one that has failed, with a reason."""

MAX_DYING = 100
"""Messages that wait to become dead letters: 25 KB. A message that fails beside them is tried once more."""


class Failure(msgspec.Struct, gc=False):
    """Say how often a message was lent in vain.

    Attributes:
        deliveries: How often; 0 for one that came back untouched.
        due: Unix time before which it is not lent again; infinite while it is lent.
    """

    deliveries: int
    due: float = 0.0


class Dying(msgspec.Struct, gc=False, array_like=True):
    """Describe a message that is to become a dead letter.

    Attributes:
        offset: Its offset.
        deliveries: How often it was lent.
        reason: Why it was given up.
    """

    offset: Offset
    deliveries: int
    reason: str


class _Kept(msgspec.Struct, omit_defaults=True):
    """The state as the store keeps it.

    Attributes:
        id: See `GroupState`.
        log: The id of the log's epoch in which it was written.
        floor: See `GroupState`.
        done: Ranges above the floor: how far each begins behind the end before it, and its length.
        failed: Offset, number of deliveries and due time of each message that has failed.
        dying: See `GroupState`.
        buried: See `GroupState`.
        used: See `GroupState`.
        coordinator: See `GroupState`.
    """

    id: LogId
    log: LogId
    floor: Offset
    done: list[int] = []
    failed: list[tuple[Offset, int, int]] = []
    dying: list[Dying] = []
    buried: int = 0
    used: int = 0
    coordinator: str = ""


_decoder = msgspec.msgpack.Decoder(_Kept)


class GroupState:
    """Hold the progress of a group in a topic.

    Attributes:
        id: Chosen at random when the group began, and in the public id under which its dead letters are
            published: their numbers begin anew with the group.
        log: The id of the log's epoch that the offsets are of.
        floor: The first offset that is not done.
        done: Offsets above it that are done.
        failures: The messages that were lent in vain, by offset.
        dying: The messages that are to become dead letters, in the order of these.
        buried: Number of dead letters that are in their log.
        used: Unix time at which the group had members last.
        coordinator: Id of the consumer that may change the state, if several could; else "".
    """

    __slots__ = ("buried", "coordinator", "done", "dying", "failures", "floor", "id", "log", "used")

    def __init__(self, id_: str, log: str, floor: int) -> None:
        self.id, self.log, self.floor = id_, log, floor
        self.done = Ranges()
        self.failures: dict[int, Failure] = {}
        self.dying: list[Dying] = []
        self.buried = 0
        self.used = 0.0
        self.coordinator = ""

    @property
    def full(self) -> bool:
        """Return True if it has as much as the store should keep."""
        size = len(self.done) * RANGE_BYTES + len(self.failures) * FAILURE_BYTES
        return size + len(self.dying) * DYING_BYTES > MAX_STATE_BYTES

    @property
    def end(self) -> int:
        """Return the offset behind all messages of which it tells that they are done or have failed."""
        ends = [end for _, end in self.done]
        ends += [offset + 1 for offset in (*self.failures, *(letter.offset for letter in self.dying))]
        return max(self.floor, *ends) if ends else self.floor

    def finish(self, begin: int, end: int) -> None:
        """Note that the messages from `begin` to before `end` need not be lent any more."""
        if begin <= self.floor:
            self.floor = self.done.end_at(max(self.floor, end))
            self.done.drop_below(self.floor)
        else:
            self.done.add(begin, end)

    def is_done(self, offset: int) -> bool:
        """Return True if a message is done."""
        return offset < self.floor or offset in self.done

    def encode(self) -> bytes:
        """Return the bytes that the store keeps."""
        edges = [self.floor, *itertools.chain.from_iterable(self.done)]
        done = [later - before for before, later in itertools.pairwise(edges)]
        failed = [
            (offset, failure.deliveries, 0 if failure.due == math.inf else math.ceil(failure.due))
            for offset, failure in self.failures.items()
            if failure.deliveries
        ]
        return msgspec.msgpack.encode(
            _Kept(
                self.id,
                self.log,
                self.floor,
                done,
                failed,
                self.dying,
                self.buried,
                int(self.used),
                self.coordinator,
            )
        )


def decode_state(value: bytes) -> GroupState:
    """Return the state that the store has kept.

    Raises:
        ValueError: It is none.
    """
    try:
        kept = _decoder.decode(value)
    except DECODE_ERRORS as error:
        raise ValueError(f"not the state of a group: {error}") from None
    if len(kept.done) % 2 or any(part < 1 for part in kept.done):
        raise ValueError("the ranges of the state do not rise")
    state = GroupState(kept.id, kept.log, kept.floor)
    edges = list(itertools.accumulate(kept.done, initial=kept.floor))[1:]
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        state.done.add(begin, end)
    state.failures = {
        offset: Failure(deliveries, due)
        for offset, deliveries, due in kept.failed
        if not state.is_done(offset)
    }
    state.dying, state.buried, state.used = kept.dying, kept.buried, float(kept.used)
    state.coordinator = kept.coordinator
    return state
