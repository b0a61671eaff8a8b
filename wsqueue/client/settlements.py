"""The outcomes of messages that a group has lent, until its coordinator has kept them. No I/O.

::

    settle ──> unsent ──take──> sent ──confirm──> done
                  ^               │
                  └─ send_again ──┘

Outcomes of the same kind that come one after another travel in one packet. After a reconnect, all that are
not confirmed are sent again: to be done twice changes nothing, and messages that this member no longer has
stay as they are. Only an outcome that was to keep a loan (`extend`) or to give it back (`release`) is
forgotten with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, Literal, TypeVar

import msgspec

from ..protocol import v2
from ..protocol.ranges import Ranges

How = Literal["done", "again", "reject", "release", "extend"]

Waiter = TypeVar("Waiter")


class Outcome(msgspec.Struct, Generic[Waiter], kw_only=True, eq=False):
    """Hold messages of which the same has become.

    Attributes:
        how: As in `v2.Settle`.
        log: Id of the log's epoch in which they were lent.
        delay: As in `v2.Settle`.
        reason: As in `v2.Settle`.
        offsets: Their offsets.
        waiters: The caller's objects that are to be told when the outcome is kept.
        number: Number of the packet, 0 before it is sent.
    """

    how: How
    log: str
    delay: float = 0.0
    reason: str = ""
    offsets: Ranges = msgspec.field(default_factory=Ranges)
    waiters: list[Waiter] = msgspec.field(default_factory=list)
    number: int = 0


class Settlements(Generic[Waiter]):
    """Collect outcomes, and keep each until it is confirmed.

    Args:
        topic: The topic of the group.
        group: The group.
    """

    def __init__(self, topic: str, group: str) -> None:
        self._topic, self._group = topic, group
        self._unsent: deque[Outcome[Waiter]] = deque()
        self._sent: deque[Outcome[Waiter]] = deque()
        self._number = 0

    @property
    def empty(self) -> bool:
        """Return True if all outcomes are confirmed."""
        return not self._unsent and not self._sent

    @property
    def unsent(self) -> bool:
        """Return True if there is something to send."""
        return bool(self._unsent)

    def settle(
        self,
        how: How,
        log: str,
        offsets: Iterable[int],
        *,
        delay: float = 0.0,
        reason: str = "",
        waiter: Waiter | None = None,
    ) -> None:
        """Add the outcome of messages."""
        last = self._unsent[-1] if self._unsent else None
        if last is None or (last.how, last.log, last.delay, last.reason) != (how, log, delay, reason):
            last = self._begin(how, log, delay, reason)
        for offset in offsets:
            if len(last.offsets) >= v2.MAX_SETTLED_RANGES:
                last = self._begin(how, log, delay, reason)
            last.offsets.add(offset, offset + 1)
        if waiter is not None:
            last.waiters.append(waiter)

    def is_done(self, log: str, offset: int) -> bool:
        """Return True if a message is done, and that is not confirmed yet."""
        return any(
            one.how == "done" and one.log == log and offset in one.offsets
            for one in (*self._sent, *self._unsent)
        )

    def _begin(self, how: How, log: str, delay: float, reason: str) -> Outcome[Waiter]:
        outcome: Outcome[Waiter] = Outcome(how=how, log=log, delay=delay, reason=reason)
        self._unsent.append(outcome)
        return outcome

    def take(self) -> list[v2.Settle]:
        """Return the packets to send."""
        packets: list[v2.Settle] = []
        while self._unsent:
            outcome = self._unsent.popleft()
            self._number += 1
            outcome.number = self._number
            self._sent.append(outcome)
            offsets = [(begin, end - 1) for begin, end in outcome.offsets]
            packets.append(
                v2.Settle(
                    self._topic,
                    self._group,
                    outcome.number,
                    outcome.log,
                    outcome.how,
                    offsets,
                    outcome.delay,
                    outcome.reason,
                )
            )
        return packets

    def confirm(self, number: int) -> list[Waiter]:
        """Take the number up to which all is kept; return those who wait for it."""
        waiters: list[Waiter] = []
        while self._sent and self._sent[0].number <= number:
            waiters += self._sent.popleft().waiters
        return waiters

    def send_again(self) -> None:
        """Let all that is not confirmed be sent on another connection."""
        kept = [one for one in (*self._sent, *self._unsent) if one.how not in ("release", "extend")]
        self._unsent = deque(kept)
        self._sent.clear()
        self._number = 0

    def fail_all(self) -> list[Waiter]:
        """Give up all outcomes; return those who wait for them."""
        waiters = [waiter for one in (*self._sent, *self._unsent) for waiter in one.waiters]
        self._sent.clear()
        self._unsent.clear()
        return waiters
