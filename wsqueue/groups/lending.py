"""The rules by which the messages of a topic are lent to the members of a group. No I/O and no clock.

```
                    ┌── again, lease over, member gone ──► failed ──┐ when it is due
                    │                                               ▼
 cursor: fresh ──► lent ◄────────────────────────────────────────── to be lent again
                    │ └── too often, or rejected ──► dying ──► a dead letter, and done
                    └── done
```

- Every message below the cursor is in exactly one of these places, and is lent to one member at most.
- A loan is a range of messages that one member got in one packet. Those that are done are cut out.
- A member has room for `prefetch` messages. If that is many, it is lent more when half of it is free, so that
  packets are large. Members that have room wait in a queue, and take turns.
- A member has at most one message at a time that was lent before, because such a message may be the one that
  kills workers, and the messages that it has beside it must not be counted as if they were.
- With an order key, one message of a key is lent at a time, and the later ones of the key wait in its queue.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import deque
from collections.abc import Iterable

import msgspec

from ..protocol.ranges import Ranges
from .state import MAX_DYING, Dying, Failure, GroupState

MAX_LENT = 20_000
"""Messages of a group that are lent at a time: each may fail, and the state of all must be kept."""

MAX_HELD = 10_000
"""Messages that wait for an earlier one of their order key, 1 MiB; with more, later messages wait too."""

MAX_STALE = 1000
"""Entries of messages that are no longer to be lent, above which the queue of due times is made anew."""

SMALL_PREFETCH = 16
"""Prefetch up to which each free place is filled at once: such work takes long, and packets are few."""

GONE = "its worker has gone"
LATE = "its lease is over"


class Terms(msgspec.Struct, frozen=True):
    """Hold the wishes of a member.

    Attributes:
        prefetch: Messages that it may have at a time.
        lease_seconds: Time in which it must be done with a message.
        max_deliveries: Deliveries after which a message is given up.
    """

    prefetch: int
    lease_seconds: float
    max_deliveries: int


class Member:
    """Know the messages of one member.

    Args:
        terms: Its wishes.

    Attributes:
        terms: See above.
        lent: Number of messages that it has.
        retried: Number of these that were lent before.
        blocked: True while its connection takes nothing.
        leaving: True once it has given messages back, because it is about to leave.
        waiting: True while it is in the queue of those that have room.
    """

    __slots__ = ("_least", "blocked", "leaving", "lent", "retried", "terms", "waiting")

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._least = 1 if terms.prefetch <= SMALL_PREFETCH else (terms.prefetch + 1) // 2
        self.lent = self.retried = 0
        self.blocked = self.leaving = self.waiting = False

    @property
    def room(self) -> int:
        """Return how many messages it may be lent now."""
        return 0 if self.blocked or self.leaving else self.terms.prefetch - self.lent

    @property
    def ready(self) -> bool:
        """Return True if enough of its room is free."""
        return self.room >= self._least


class Loan(msgspec.Struct, gc=False):
    """Hold a range of messages that a member has.

    Attributes:
        begin: The first offset.
        end: The offset behind the last.
        member: The member.
        deadline: When it is over (monotonic).
        deliveries: How often the messages were lent, this time included.
    """

    begin: int
    end: int
    member: Member
    deadline: float
    deliveries: int


class Offer(msgspec.Struct, frozen=True, gc=False):
    """Say which messages should be lent next.

    Attributes:
        member: To whom.
        begin: Offset of the first message.
        most: How many messages at most, from that one on.
        deliveries: How often they have been lent.
    """

    member: Member
    begin: int
    most: int
    deliveries: int


class Lending:
    """Decide which messages are lent to whom.

    Args:
        state: The messages that are done, and those that have failed.
        keyed: True if messages have an order key, so that `admit` is asked for each fresh one.

    Attributes:
        state: See above; it changes with each call, and is to be kept when `changed` is True.
        keyed: See above.
        changed: True once the state has changed; the caller sets it to False when it takes the state.
        cursor: The first offset that has not been lent.
        members: All members.
        lent: Number of messages that are lent.
    """

    def __init__(self, state: GroupState, *, keyed: bool = False) -> None:
        self.state, self.keyed = state, keyed
        self.changed = False
        self.cursor = state.floor
        self.members: dict[Member, None] = {}
        self.lent = 0
        self._queue: deque[Member] = deque()
        # Loans by their first offsets; none overlaps another.
        self._begins: list[int] = []
        self._loans: list[Loan] = []
        # Messages below the cursor that are to be lent: those that never failed, and when the others are due.
        self._again = Ranges()
        self._due: list[tuple[float, int]] = []
        # Messages above the cursor that are no fresh ones, because they failed before a restart.
        for failure in state.failures.values():
            if failure.due == math.inf:
                # It was lent, by who had the state before.
                failure.due = 0.0
        dying = {letter.offset for letter in state.dying}
        self._old = deque(sorted(state.failures.keys() | dying))
        # Who had the state before has lent messages up to here, unless more are open than it could lend.
        self._top = state.end
        still_open = self._top - state.floor - sum(end - begin for begin, end in state.done)
        self._were_lent = still_open <= MAX_LENT + MAX_HELD + len(self._old)
        # The key of each message that is lent or was, and the later messages of each key.
        self._keys: dict[int, str] = {}
        self._held: dict[str, deque[int]] = {}
        self._held_count = 0

    # ---- members

    def join(self, terms: Terms) -> Member:
        """Return a new member."""
        member = Member(terms)
        self.members[member] = None
        self._enqueue(member)
        return member

    def leave(self, member: Member) -> None:
        """Take back all that a member has that has gone."""
        del self.members[member]
        member.blocked = True
        if member.waiting:
            # Those before it may wait for long, and many may come and go meanwhile.
            self._queue.remove(member)
            member.waiting = False
        for loan in [loan for loan in self._loans if loan.member is member]:
            self._fail(loan, loan.begin, loan.end, GONE)

    def block(self, member: Member) -> None:
        """Lend nothing to a member whose connection takes nothing."""
        member.blocked = True

    def unblock(self, member: Member) -> None:
        """Lend to a member again."""
        if member in self.members:
            member.blocked = False
            self._enqueue(member)

    def _enqueue(self, member: Member) -> None:
        if not member.waiting and member.ready:
            member.waiting = True
            self._queue.append(member)

    # ---- lending

    def offer(self, end: int, now: float) -> Offer | None:
        """Return the messages that should be lent next, None if none can be.

        The caller then calls `lend` or `gone` with it, and asks again; with an order key, it calls
        `admit` first.

        Args:
            end: Offset of the next message that will be stored.
            now: Unix time.
        """
        while self._queue and not self._queue[0].ready:
            self._queue.popleft().waiting = False
        if not self._queue or self.lent >= MAX_LENT:
            return None
        self._pass_old()
        if (offer := self._failed_offer(now)) is not None:
            return offer
        member = self._queue[0]
        most = min(member.room, MAX_LENT - self.lent)
        if (begin := self._first_again()) is not None:
            return Offer(member, begin, self._length_again(begin, most), 0)
        return self._fresh_offer(member, most, end)

    def _fresh_offer(self, member: Member, most: int, end: int) -> Offer | None:
        """Return the next messages that have not been lent, if they can be now."""
        if self.cursor >= end or self._held_count >= MAX_HELD:
            return None
        if self.state.full:
            # Only messages that were lent before a restart: those that failed may be behind them.
            if self.lent or self.cursor >= self._top:
                return None
            most = 1
        if self.keyed:
            return Offer(member, self.cursor, 1, 0)
        stop = min(end, self.cursor + most)
        if (done := self.state.done.next_from(self.cursor)) is not None:
            stop = min(stop, done)
        if self._old:
            stop = min(stop, self._old[0])
        return Offer(member, self.cursor, stop - self.cursor, 0)

    def admit(self, offset: int, key: str | None) -> bool:
        """Return True if a message can be lent now; else it waits, for one of its key or for its time.

        Args:
            offset: Its offset, which was offered.
            key: Its order key, None without one.
        """
        if offset < self.cursor:
            return True
        if key in self._held:
            self._held[key].append(offset)
            self._held_count += 1
            self.cursor = offset + 1
            return False
        if key is not None:
            self._held[key] = deque()
            self._keys[offset] = key
        if self._old and self._old[0] == offset:
            self._pass(offset)
            return False
        return True

    def lend(self, offer: Offer, end: int, now: float) -> None:
        """Lend the messages of an offer up to an offset.

        Args:
            offer: The latest offer.
            end: The offset behind the last message that is lent, at most all that were offered.
            now: The time (monotonic).
        """
        member, begin = offer.member, offer.begin
        self._take_offered(offer, end)
        if offer.deliveries:
            # It stays there, so that a restart does not forget its deliveries.
            self.state.failures[begin].due = math.inf
        deadline = now + member.terms.lease_seconds
        if self.keyed:
            # One message each, because each has a key of its own.
            for offset in range(begin, end):
                self._insert(Loan(offset, offset + 1, member, deadline, offer.deliveries + 1))
        else:
            self._insert(Loan(begin, end, member, deadline, offer.deliveries + 1))
        member.lent += end - begin
        member.retried += bool(offer.deliveries)
        self.lent += end - begin
        if self._queue and self._queue[0] is member:
            self._queue.popleft()
            member.waiting = False
            self._enqueue(member)

    def gone(self, offer: Offer, end: int) -> int:
        """Note that the messages from an offer on, up to an offset, are no longer in the log.

        Returns:
            How many of them nobody has done, without those that are dying.
        """
        if offer.begin < self.cursor:
            end = min(end, offer.begin + offer.most)
        self._take_offered(offer, end)
        done = sum(max(0, min(last, end) - max(begin, offer.begin)) for begin, last in self.state.done)
        dying = sum(offer.begin <= letter.offset < end for letter in self.state.dying)
        self._finish(offer.begin, end)
        return end - offer.begin - done - dying

    def _take_offered(self, offer: Offer, end: int) -> None:
        if offer.begin >= self.cursor:
            self.cursor = max(self.cursor, end)
        elif offer.deliveries:
            heapq.heappop(self._due)
        else:
            self._again.drop_below(end)

    def _failed_offer(self, now: float) -> Offer | None:
        """Return the message that failed and is due, if a member may have it."""
        due = self.next_due()
        if due is None or due > now:
            return None
        member = next((one for one in self._queue if one.room > 0 and not one.retried), None)
        if member is None:
            return None
        offset = self._due[0][1]
        return Offer(member, offset, 1, self.state.failures[offset].deliveries)

    def _is_due(self, entry: tuple[float, int]) -> bool:
        """Return True if an entry of the queue holds, False if its message was done or has failed anew."""
        due, offset = entry
        failure = self.state.failures.get(offset)
        return failure is not None and failure.due == due

    def _add_due(self, due: float, offset: int) -> None:
        heapq.heappush(self._due, (due, offset))
        if len(self._due) > 2 * len(self.state.failures) + MAX_STALE:
            self._due = list(set(filter(self._is_due, self._due)))
            heapq.heapify(self._due)

    def _first_again(self) -> int | None:
        """Return the first message that is to be lent again and never failed, None without one."""
        again, state = self._again, self.state
        while (begin := again.next_from(0)) is not None and state.is_done(begin):
            again.drop_below(state.done.end_at(max(begin, state.floor)))
        return begin

    def _length_again(self, begin: int, most: int) -> int:
        """Return how many messages from one on are to be lent again, which never failed."""
        if self.keyed:
            return 1
        end = min(begin + most, self._again.end_at(begin))
        done = self.state.done.next_from(begin)
        return (end if done is None else min(end, done)) - begin

    def _pass_old(self) -> None:
        """Move the cursor behind messages that are done, or that failed before a restart."""
        while True:
            self.cursor = self.state.done.end_at(max(self.cursor, self.state.floor))
            while self._old and self._old[0] < self.cursor:
                self._old.popleft()
            if not self._old or self._old[0] > self.cursor:
                return
            if self.keyed:
                # Its key must be known first, so that no later message of it passes this one.
                return
            self._pass(self.cursor)

    def _pass(self, offset: int) -> None:
        """Move the cursor behind a message that failed before a restart, or is dying since."""
        self._old.popleft()
        self.cursor = offset + 1
        if (failure := self.state.failures.get(offset)) is not None:
            self._add_due(failure.due, offset)

    def _insert(self, loan: Loan) -> None:
        index = bisect.bisect_left(self._begins, loan.begin)
        self._begins.insert(index, loan.begin)
        self._loans.insert(index, loan)

    # ---- outcomes of loans

    def done(self, begin: int, end: int) -> None:
        """Note that messages are done, whoever says so: one that was late has done them too.

        When the state is full, only messages that were lent can be done.

        Args:
            begin: The first offset.
            end: The offset behind the last, which is that of a stored message.
        """
        if self.state.full:
            # Nobody makes the state larger than it may be, by ever more ranges of messages not yet lent.
            end = min(end, max(self.cursor, self._top) if self._were_lent else self.cursor)
        if begin >= end:
            return
        for loan in self._overlapping(begin, end):
            self._cut(loan, max(begin, loan.begin), min(end, loan.end))
        self._finish(begin, end)

    def again(self, member: Member, begin: int, end: int, due: float) -> None:
        """Take messages back from a member, which could not deal with them now.

        Args:
            member: The member; messages that it does not have stay where they are.
            begin: The first offset.
            end: The offset behind the last.
            due: Unix time before which they are not lent again.
        """
        for loan in self._loans_of(member, begin, end):
            self._fail(loan, max(begin, loan.begin), min(end, loan.end), "it was put back", due)

    def reject(self, member: Member, begin: int, end: int, reason: str) -> None:
        """Give up messages that a member has.

        Args:
            member: The member; messages that it does not have stay where they are.
            begin: The first offset.
            end: The offset behind the last.
            reason: Why.
        """
        for loan in self._loans_of(member, begin, end):
            self._fail(loan, max(begin, loan.begin), min(end, loan.end), reason, give_up=True)

    def release(self, member: Member, begin: int, end: int) -> None:
        """Take messages back that a member has not touched, which does not count; it is lent nothing more."""
        member.leaving = True
        for loan in self._loans_of(member, begin, end):
            first, last = max(begin, loan.begin), min(end, loan.end)
            self._cut(loan, first, last, keep_keys=True)
            for offset in range(first, last):
                self._put_back(offset, loan.deliveries - 1, 0.0)

    def extend(self, member: Member, begin: int, end: int, now: float) -> None:
        """Begin the leases of messages anew that a member has (`now` is monotonic)."""
        deadline = now + member.terms.lease_seconds
        for loan in self._loans_of(member, begin, end):
            first, last = max(begin, loan.begin), min(end, loan.end)
            if (first, last) == (loan.begin, loan.end):
                loan.deadline = deadline
            else:
                self._remove(loan, first, last)
                self._insert(Loan(first, last, member, deadline, loan.deliveries))

    def expire(self, now: float) -> int:
        """Take back the messages whose leases are over, and return their number (`now` is monotonic)."""
        late = [loan for loan in self._loans if loan.deadline <= now]
        for loan in late:
            self._fail(loan, loan.begin, loan.end, LATE)
        return sum(loan.end - loan.begin for loan in late)

    def next_due(self) -> float | None:
        """Return the Unix time at which the first message that failed is due, None without any."""
        while self._due and not self._is_due(self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def bury(self, letter: Dying) -> None:
        """Note that the first message that is dying is a dead letter now."""
        assert self.state.dying[0] is letter
        del self.state.dying[0]
        self.state.buried += 1
        self._finish(letter.offset, letter.offset + 1)

    def _finish(self, begin: int, end: int) -> None:
        self.changed = True
        self.state.finish(begin, end)
        if failures := self.state.failures:
            offsets: Iterable[int] = range(begin, end) if end - begin < len(failures) else list(failures)
            for offset in offsets:
                if begin <= offset < end:
                    failures.pop(offset, None)
        if self._keys:
            for offset in range(begin, end) if end - begin < len(self._keys) else list(self._keys):
                if begin <= offset < end:
                    self._free_key(offset)

    def _fail(
        self, loan: Loan, begin: int, end: int, reason: str, due: float = 0.0, *, give_up: bool = False
    ) -> None:
        """Take messages of a loan back, to lend them again or to give them up."""
        self.changed = True
        self._cut(loan, begin, end, keep_keys=True)
        dead = give_up or loan.deliveries >= loan.member.terms.max_deliveries
        for offset in range(begin, end):
            if dead and len(self.state.dying) < MAX_DYING:
                self.state.failures.pop(offset, None)
                self.state.dying.append(Dying(offset, loan.deliveries, reason))
            else:
                self._put_back(offset, loan.deliveries, due)

    def _put_back(self, offset: int, deliveries: int, due: float) -> None:
        if deliveries:
            self.state.failures[offset] = Failure(deliveries, due)
            self._add_due(due, offset)
        else:
            self._again.add(offset, offset + 1)

    def _cut(self, loan: Loan, begin: int, end: int, *, keep_keys: bool = False) -> None:
        """Cut messages out of a loan: their member has them no more."""
        member = loan.member
        self._remove(loan, begin, end)
        member.lent -= end - begin
        member.retried -= loan.deliveries > 1
        self.lent -= end - begin
        if not keep_keys and self._keys:
            for offset in range(begin, end):
                self._free_key(offset)
        if member in self.members:
            self._enqueue(member)

    def _remove(self, loan: Loan, begin: int, end: int) -> None:
        """Leave only the parts of a loan before `begin` and from `end` on."""
        index = bisect.bisect_left(self._begins, loan.begin)
        del self._begins[index], self._loans[index]
        for first, last in ((loan.begin, begin), (end, loan.end)):
            if first < last:
                self._insert(Loan(first, last, loan.member, loan.deadline, loan.deliveries))

    def _free_key(self, offset: int) -> None:
        """Let the next message of a key be lent, whose message before is done."""
        key = self._keys.pop(offset, None)
        if key is None:
            return
        held = self._held[key]
        while held:
            self._held_count -= 1
            following = held.popleft()
            if not self.state.is_done(following):
                self._keys[following] = key
                if (failure := self.state.failures.get(following)) is not None:
                    self._add_due(failure.due, following)
                elif not any(letter.offset == following for letter in self.state.dying):
                    self._again.add(following, following + 1)
                return
        del self._held[key]

    def _overlapping(self, begin: int, end: int) -> list[Loan]:
        """Return the loans that have any of some messages."""
        first = bisect.bisect_right(self._begins, begin) - 1
        if first < 0 or self._loans[first].end <= begin:
            first += 1
        return self._loans[first : bisect.bisect_left(self._begins, end)]

    def _loans_of(self, member: Member, begin: int, end: int) -> list[Loan]:
        if not member.lent:
            return []
        return [loan for loan in self._overlapping(begin, end) if loan.member is member]
