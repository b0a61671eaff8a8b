"""The rules of lending, against a model that remembers each message."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.examples import examples
from wsqueue.groups.lending import MAX_STALE, Lending, Member, Offer, Terms
from wsqueue.groups.state import MAX_STATE_BYTES, Dying, GroupState, decode_state

MAX_DELIVERIES = 3
numbers = st.integers(0, 40)


class Model(RuleBasedStateMachine):
    """Lend messages 0 to `end`, whose keys are `keys`, as a coordinator does."""

    def __init__(self) -> None:
        super().__init__()
        self.end = self.dropped = 0
        self.now = 0.0
        self.keyed = False
        self.keys: list[str | None] = []
        self.lending = Lending(GroupState("id", "log", 0))
        self.members: list[Member] = []
        self.lent: dict[int, tuple[Member, float]] = {}
        self.leaving: set[Member] = set()
        self.done: set[int] = set()
        self.failures: Counter[int] = Counter()
        self.finished: dict[str, int] = {}

    @initialize(keyed=st.booleans())
    def begin(self, keyed: bool) -> None:
        self.keyed = keyed
        self.lending = Lending(GroupState("id", "log", 0), keyed=keyed)

    @rule(keys=st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=8))
    def publish(self, keys: list[str | None]) -> None:
        self.keys += keys
        self.end += len(keys)

    @rule(prefetch=st.integers(1, 6), lease=st.integers(1, 9))
    def join(self, prefetch: int, lease: int) -> None:
        self.members.append(self.lending.join(Terms(prefetch, lease, MAX_DELIVERIES)))

    @rule(which=numbers)
    def leave(self, which: int) -> None:
        if self.members:
            member = self.members.pop(which % len(self.members))
            self.lending.leave(member)
            self.fail([one for one, (owner, _) in self.lent.items() if owner is member])

    @rule()
    def pump(self) -> None:
        while (offer := self.lending.offer(self.end, self.now)) is not None:
            begin, end = offer.begin, offer.begin + offer.most
            assert begin < end <= self.end
            if begin < self.dropped:
                self.pass_over(offer)
                continue
            if self.keyed and not self.lending.admit(begin, self.keys[begin]):
                continue
            assert offer.member in self.members
            assert offer.member not in self.leaving
            assert offer.member.lent + offer.most <= offer.member.terms.prefetch
            self.lending.lend(offer, end, self.now)
            for offset in range(begin, end):
                assert offset not in self.lent, "lent twice"
                assert offset not in self.done, "done, and lent again"
                assert offer.deliveries == self.failures[offset]
                if self.keyed and (key := self.keys[offset]) is not None:
                    assert not any(self.keys[other] == key for other in self.lent)
                    before = [one for one in range(offset) if self.keys[one] == key]
                    assert set(before) <= self.done, "not in the order of its key"
                self.lent[offset] = (offer.member, self.now + offer.member.terms.lease_seconds)

    def pass_over(self, offer: Offer) -> None:
        """Let messages be gone: all that follow, if they are fresh."""
        fresh = offer.begin >= self.lending.cursor
        end = self.dropped if fresh else min(self.dropped, offer.begin + offer.most)
        gone = set(range(offer.begin, end)) - self.done
        assert self.lending.gone(offer, self.dropped) == len(gone - self.dying)
        self.done |= gone

    @property
    def dying(self) -> set[int]:
        return {letter.offset for letter in self.lending.state.dying}

    @rule(which=numbers, length=st.integers(1, 4), early=st.booleans())
    def finish(self, which: int, length: int, early: bool) -> None:
        """Finish messages that are lent, or others that a member had before."""
        if not self.end:
            return
        begin = which % self.end
        if not early and self.lent:
            begin = sorted(self.lent)[which % len(self.lent)]
        end = min(begin + length, self.end)
        self.lending.done(begin, end)
        for offset in range(begin, end):
            self.done.add(offset)
            self.lent.pop(offset, None)

    @rule(
        which=numbers, delay=st.integers(0, 5), how=st.sampled_from(["again", "reject", "release", "extend"])
    )
    def settle(self, which: int, delay: int, how: str) -> None:
        if not self.lent:
            return
        offset = sorted(self.lent)[which % len(self.lent)]
        member, _ = self.lent[offset]
        for stranger in [one for one in self.members if one is not member][:1]:
            self.lending.again(stranger, offset, offset + 1, self.now)
            self.lending.reject(stranger, offset, offset + 1, "a stranger's")
        if how == "again":
            self.lending.again(member, offset, offset + 1, self.now + delay)
            self.fail([offset])
        elif how == "reject":
            self.lending.reject(member, offset, offset + 1, "bad")
            self.fail([offset])
            assert offset in self.dying
        elif how == "release":
            self.lending.release(member, offset, offset + 1)
            del self.lent[offset]
            self.leaving.add(member)
        else:
            self.lending.extend(member, offset, offset + 1, self.now)
            self.lent[offset] = (member, self.now + member.terms.lease_seconds)

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        late = [offset for offset, (_, deadline) in self.lent.items() if deadline <= self.now]
        assert self.lending.expire(self.now) == len(late)
        self.fail(late)

    @rule()
    def bury(self) -> None:
        if self.lending.state.dying:
            letter = self.lending.state.dying[0]
            self.lending.bury(letter)
            self.done.add(letter.offset)

    @rule(which=numbers)
    def drop(self, which: int) -> None:
        """Let the log drop its first messages."""
        if self.end:
            self.dropped = max(self.dropped, which % self.end)

    @rule()
    def restart(self) -> None:
        """Go on from the state that is kept, without the members and their loans."""
        self.lending = Lending(decode_state(self.lending.state.encode()), keyed=self.keyed)
        self.members.clear()
        self.lent.clear()

    def fail(self, offsets: list[int]) -> None:
        for offset in offsets:
            del self.lent[offset]
            self.failures[offset] += 1
            if self.failures[offset] >= MAX_DELIVERIES:
                assert offset in self.dying

    @invariant()
    def counts_agree(self) -> None:
        assert self.lending.lent == len(self.lent)
        for member in self.members:
            mine = [offset for offset, (owner, _) in self.lent.items() if owner is member]
            assert member.lent == len(mine)
            assert member.retried == sum(self.failures[offset] > 0 for offset in mine) <= 1
        assert all(self.lending.state.is_done(offset) == (offset in self.done) for offset in range(self.end))

    def teardown(self) -> None:
        """Whatever has happened, all that is left can be done."""
        for member in list(self.members):
            self.members.remove(member)
            self.lending.leave(member)
            self.fail([one for one, (owner, _) in self.lent.items() if owner is member])
        self.members.append(self.lending.join(Terms(3, 1000.0, MAX_DELIVERIES)))
        self.now += 100
        for _ in range(3 * self.end + 10):
            self.pump()
            for offset in list(self.lent):
                self.lending.done(offset, offset + 1)
                self.done.add(offset)
                del self.lent[offset]
            self.bury()
        assert self.done == set(range(self.end))
        assert self.lending.state.floor == self.end


TestLending = Model.TestCase
TestLending.settings = examples(300, stateful_step_count=40)


def offered(lending: Lending, end: int) -> Offer:
    """Return the messages that can be lent now."""
    offer = lending.offer(end, 0.0)
    assert offer is not None
    return offer


def lent(lending: Lending, end: int, now: float = 0.0) -> list[tuple[int, int]]:
    """Lend all that can be lent, and return the ranges."""
    found = []
    while (offer := lending.offer(end, now)) is not None:
        if lending.keyed and not lending.admit(offer.begin, f"key {offer.begin}"):
            continue
        lending.lend(offer, offer.begin + offer.most, now)
        found.append((offer.begin, offer.begin + offer.most))
    return found


def test_a_message_that_failed_before_a_restart_is_offered_at_once() -> None:
    lending = Lending(GroupState("id", "log", 0))
    member = lending.join(Terms(1, 30, 5))
    lending.lend(offered(lending, 1), 1, 0.0)
    lending.leave(member)
    again = Lending(decode_state(lending.state.encode()))
    again.join(Terms(1, 30, 5))
    offer = offered(again, 1)
    assert (offer.begin, offer.most, offer.deliveries) == (0, 1, 1)


def test_a_message_that_was_lent_again_is_offered_by_who_takes_the_state_over() -> None:
    lending = Lending(GroupState("id", "log", 0))
    member = lending.join(Terms(1, 30, 5))
    for _ in range(2):
        lending.lend(offered(lending, 1), 1, 0.0)
        lending.again(member, 0, 1, 0.0)
    lending.lend(offered(lending, 1), 1, 0.0)
    another = Lending(lending.state)
    another.join(Terms(1, 30, 5))
    assert offered(another, 1).deliveries == 2


def test_a_state_that_is_full_grows_by_what_is_lent_only() -> None:
    lending = Lending(GroupState("id", "log", 0))
    lending.join(Terms(10, 30, 5))
    lending.lend(offered(lending, 10**6), 10, 0.0)
    for offset in range(20, 10**6, 2):
        lending.done(offset, offset + 1)
    assert lending.state.full
    assert len(lending.state.encode()) < 2 * MAX_STATE_BYTES
    lending.done(0, 10**6)
    assert lending.state.floor == 10
    assert lending.lent == 0


def test_a_message_that_kills_its_worker_takes_no_other_to_the_dead_letters() -> None:
    lending = Lending(GroupState("id", "log", 0))
    for _ in range(MAX_DELIVERIES):
        member = lending.join(Terms(100, 30, MAX_DELIVERIES))
        lent(lending, 50)
        lending.leave(member)
    # The worker dies with each first message that it gets; the others were beside it once.
    assert lending.state.dying == [Dying(0, MAX_DELIVERIES, "its worker has gone")]
    assert {failure.deliveries for failure in lending.state.failures.values()} == {1}


def test_members_that_come_and_go_leave_nothing_behind() -> None:
    lending = Lending(GroupState("id", "log", 0))
    first = lending.join(Terms(10, 30, 5))
    for _ in range(100):
        lending.leave(lending.join(Terms(10, 30, 5)))
        assert lending.offer(0, 0.0) is None
    assert list(lending._queue) == [first]


def test_workers_of_equal_speed_get_equal_shares() -> None:
    lending = Lending(GroupState("id", "log", 0))
    members = [lending.join(Terms(100, 30, 5)) for _ in range(8)]
    shares: Counter[Member] = Counter()
    while lending.state.floor < 200_000:
        loans: list[tuple[int, int]] = []
        while (offer := lending.offer(200_000, 0.0)) is not None:
            end = min(offer.begin + offer.most, (offer.begin // 650 + 1) * 650)
            lending.lend(offer, end, 0.0)
            shares[offer.member] += end - offer.begin
            loans.append((offer.begin, end))
        for begin, end in loans:
            lending.done(begin, end)
    assert sum(shares.values()) == 200_000
    assert max(shares.values()) < 1.1 * min(shares[member] for member in members)


def kept(lending: Lending) -> Lending:
    """Return the lending of who has the state next."""
    return Lending(decode_state(lending.state.encode()), keyed=lending.keyed)


@pytest.mark.parametrize("keyed", [False, True])
def test_a_state_that_is_full_is_worked_off_after_a_restart(keyed: bool) -> None:
    end = 6000
    lending = Lending(GroupState("id", "log", 0), keyed=keyed)
    member = lending.join(Terms(2 * end, 30, MAX_DELIVERIES))
    assert sum(last - first for first, last in lent(lending, end)) == end
    # The first one is lent still.
    lending.again(member, 1, end, 60.0)
    assert lending.state.full
    lending = kept(lending)
    lending.join(Terms(10, 30, MAX_DELIVERIES))
    while ranges := lent(lending, end, 60.0):
        for first, last in ranges:
            lending.done(first, last)
    assert lending.state.floor == end
    assert not lending.state.full


def test_a_late_outcome_counts_though_the_state_is_full() -> None:
    lending = Lending(GroupState("id", "log", 0))
    lending.join(Terms(6000, 1, MAX_DELIVERIES))
    assert lent(lending, 6000) == [(0, 6000)]
    assert lending.expire(2.0) == 6000
    assert lending.state.full
    after = kept(lending)
    for one in (lending, after):
        one.done(1, 6000)
        assert list(one.state.failures) == [0]
        assert list(one.state.done) == [(1, 6000)]


def test_a_message_that_is_done_between_two_that_were_released() -> None:
    lending = Lending(GroupState("id", "log", 0))
    member = lending.join(Terms(10, 30, MAX_DELIVERIES))
    lent(lending, 3)
    lending.release(member, 0, 3)
    lending.done(1, 2)
    lending.join(Terms(10, 30, MAX_DELIVERIES))
    assert lent(lending, 3) == [(0, 1), (2, 3)]


def test_messages_that_are_done_leave_nothing_behind_a_message_that_is_due_earlier() -> None:
    lending = Lending(GroupState("id", "log", 0))
    member = lending.join(Terms(10, 30, MAX_DELIVERIES))
    lent(lending, 1)
    lending.again(member, 0, 1, 100.0)
    for offset in range(1, 3 * MAX_STALE):
        lent(lending, offset + 1)
        lending.again(member, offset, offset + 1, 1000.0)
        lending.done(offset, offset + 1)
    assert len(lending._due) <= MAX_STALE + 2
    assert lending.next_due() == 100.0
    assert lent(lending, 3 * MAX_STALE, 100.0) == [(0, 1)]
    # It is lent, so nothing is due.
    assert lending.next_due() is None


@pytest.mark.parametrize("first", ["rejected", "lent before the group had a key"])
def test_a_message_of_a_key_passes_none_that_is_dying_after_a_restart(first: str) -> None:
    lending = Lending(GroupState("id", "log", 0))
    member = lending.join(Terms(10, 30, MAX_DELIVERIES))
    lending.lend(offered(lending, 2), 2, 0.0)
    if first == "rejected":
        lending.done(0, 1)
    lending.reject(member, 1, 2, "bad")
    lending = Lending(decode_state(lending.state.encode()), keyed=True)
    lending.join(Terms(10, 30, MAX_DELIVERIES))

    def lent_of_a_key() -> list[int]:
        found = []
        while (offer := lending.offer(3, 0.0)) is not None:
            if lending.admit(offer.begin, "all the same"):
                lending.lend(offer, offer.begin + 1, 0.0)
                found.append(offer.begin)
        return found

    if first != "rejected":
        assert lent_of_a_key() == [0]
        lending.done(0, 1)
    assert lent_of_a_key() == []
    lending.bury(lending.state.dying[0])
    assert lent_of_a_key() == [2]
    lending.done(2, 3)
    assert lending.state.floor == 3


def test_many_messages_that_come_back_are_lent_again_one_at_a_time() -> None:
    """Each in a record of its own; work in the square of their number would take minutes."""
    end = 2 * 10_000
    lending = Lending(GroupState("id", "log", 0))
    leaving = [lending.join(Terms(end // 2, 30, MAX_DELIVERIES)) for _ in range(2)]
    assert len(lent(lending, end)) == 2
    lending.done(1, 2)
    for member in leaving:
        lending.release(member, 0, end)
        lending.leave(member)
    for _ in range(2):
        lending.join(Terms(end // 2, 30, MAX_DELIVERIES))
    found = []
    while (offer := lending.offer(end, 0.0)) is not None:
        lending.lend(offer, offer.begin + 1, 0.0)
        found.append(offer.begin)
    assert found == [0, *range(2, len(found) + 1)]
    assert len(found) > end // 2
