"""Which consumer a subscription uses and tries, without connections."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.client.failover import Failover, SharedLog, failover_order
from wsqueue.protocol import v2
from wsqueue.protocol.placement import AWAY_SECONDS, BACK_SECONDS, LOG_SECONDS

HOME, FIRST, SECOND = 0, 1, 2
SHARED, GONE, FOREIGN = v2.Log("shared", True), v2.Log("shared", False), v2.Log("foreign", True)


def begun(known: SharedLog | None = None) -> Failover:
    """Return one at the time 0, whose home is connected and shares its log unless `known` is given."""
    failover = Failover(HOME, [FIRST, SECOND], known or SharedLog(), 0.0)
    if known is None:
        connect(failover, HOME, SHARED, 0.0)
    return failover


def connect(failover: Failover, index: int, log: v2.Log, now: float) -> None:
    failover.up(index, now)
    failover.told(index, log, now)


def elsewhere() -> Failover:
    """Return one whose home was lost at 0, and which went to the first of the others at `AWAY_SECONDS`."""
    failover = begun()
    failover.down(HOME, 0.0)
    failover.pass_time(AWAY_SECONDS)
    connect(failover, FIRST, SHARED, AWAY_SECONDS)
    assert state(failover) == (FIRST, None)
    return failover


def state(failover: Failover) -> tuple[int, int | None]:
    return failover.place, failover.candidate


def due(failover: Failover) -> float | None:
    return failover.due


def hopeful(failover: Failover) -> bool:
    return failover.hopeful


def test_the_order_is_that_of_the_digests() -> None:
    for topic in ("news", "ñ🙂", ""):
        order = failover_order(topic, range(20))
        digests = [hashlib.sha256(topic.encode() + str(index).encode()).digest() for index in order]
        assert digests == sorted(digests)
        assert sorted(order) == list(range(20))
    assert failover_order("news", [0, 1, 2]) != failover_order("newt", [0, 1, 2])


def test_the_home_is_waited_for_before_others_are_tried() -> None:
    failover = begun()
    assert due(failover) is None
    failover.down(HOME, 10.0)
    assert (state(failover), due(failover)) == ((HOME, None), 10.0 + AWAY_SECONDS)
    failover.pass_time(10.0 + AWAY_SECONDS)
    assert state(failover) == (HOME, FIRST)
    connect(failover, FIRST, SHARED, 14.0)
    assert (state(failover), due(failover)) == ((FIRST, None), None)


def test_a_home_that_returns_in_time_is_kept() -> None:
    failover = begun()
    failover.down(HOME, 10.0)
    failover.up(HOME, 12.0)
    # It has not said yet whether it reaches the log.
    assert due(failover) == 10.0 + AWAY_SECONDS
    failover.told(HOME, SHARED, 12.0)
    assert (state(failover), due(failover)) == ((HOME, None), None)


def test_a_home_that_returns_while_others_are_tried_ends_the_search() -> None:
    failover = begun()
    failover.told(HOME, GONE, 0.0)
    failover.pass_time(AWAY_SECONDS)
    assert state(failover) == (HOME, FIRST)
    failover.told(HOME, SHARED, 4.0)
    assert (state(failover), due(failover), failover.active) == ((HOME, None), None, False)


@pytest.mark.parametrize("problem", ["down", "unavailable", "foreign", "no hello", "no log"])
def test_one_that_cannot_be_used_makes_room_for_the_next(problem: str) -> None:
    failover = begun()
    failover.told(HOME, GONE, 0.0)
    failover.pass_time(now := AWAY_SECONDS)
    if problem == "down":
        failover.down(FIRST, now)
    elif problem == "no hello":
        failover.pass_time(now := now + AWAY_SECONDS)
    else:
        failover.up(FIRST, now)
        if problem == "no log":
            assert due(failover) == now + LOG_SECONDS
            failover.pass_time(now := now + LOG_SECONDS)
        else:
            failover.told(FIRST, GONE if problem == "unavailable" else FOREIGN, now)
    assert state(failover) == (HOME, SECOND)
    failover.down(SECOND, now)
    # The round is over, and its next one has no consumer that is known to have another log.
    assert state(failover) == (HOME, None)
    assert hopeful(failover) is (problem == "unavailable")
    assert due(failover) == now + AWAY_SECONDS
    failover.pass_time(now + AWAY_SECONDS)
    assert failover.candidate == (SECOND if problem == "foreign" else FIRST)


# Times of which (now - AWAY_SECONDS) + AWAY_SECONDS is less than now, or more.
@pytest.mark.parametrize("now", [1.0, *(0.1 * 1.7**power for power in range(40))])
def test_the_first_refusal_of_a_home_is_enough(now: float) -> None:
    failover = begun(SharedLog())
    failover.down(HOME, now)
    assert state(failover) == (HOME, FIRST)
    assert hopeful(failover)
    failover.down(FIRST, now)
    failover.down(SECOND, now)
    assert not hopeful(failover)


def test_a_silent_home_is_left_too() -> None:
    failover = begun(SharedLog())
    assert due(failover) == AWAY_SECONDS
    failover.pass_time(AWAY_SECONDS)
    assert state(failover) == (HOME, FIRST)


def test_the_home_is_not_left_when_its_log_is_its_own() -> None:
    known = SharedLog()
    failover = begun(known)
    failover.up(HOME, 0.0)
    failover.told_nothing(0.0)
    failover.down(HOME, 1.0)
    assert (state(failover), due(failover)) == ((HOME, None), None)
    # Another home of the same client has a log of its own too, most likely.
    other = Failover(FIRST, [HOME, SECOND], known, 2.0)
    other.down(FIRST, 2.0)
    assert (state(other), due(other)) == ((FIRST, None), None)


def test_the_search_ends_when_another_has_a_log_of_its_own() -> None:
    failover = begun(SharedLog())
    failover.down(HOME, 0.0)
    failover.up(FIRST, 0.0)
    failover.pass_time(LOG_SECONDS)
    assert (state(failover), due(failover), hopeful(failover)) == ((HOME, None), None, False)


def test_a_log_that_another_link_has_heard_of_is_the_only_one() -> None:
    known = SharedLog()
    known.note(SECOND, "shared", home=True)
    failover = begun(known)
    failover.down(HOME, 0.0)
    connect(failover, FIRST, FOREIGN, 0.0)
    assert state(failover) == (HOME, SECOND)
    connect(failover, SECOND, SHARED, 0.0)
    assert state(failover) == (SECOND, None)


def test_a_client_of_one_consumer_has_nothing_to_do() -> None:
    failover = Failover(HOME, [], SharedLog(), 0.0)
    failover.down(HOME, 0.0)
    assert (state(failover), due(failover), hopeful(failover)) == ((HOME, None), None, False)


def test_the_topics_return_when_the_home_is_stable() -> None:
    failover = elsewhere()
    connect(failover, HOME, SHARED, 20.0)
    assert due(failover) == 20.0 + BACK_SECONDS
    failover.told(HOME, GONE, 25.0)
    assert due(failover) is None
    failover.told(HOME, SHARED, 26.0)
    failover.pass_time(26.0 + BACK_SECONDS - 1)
    assert state(failover) == (FIRST, None)
    failover.pass_time(26.0 + BACK_SECONDS)
    assert (state(failover), due(failover)) == ((HOME, None), None)


def test_a_place_that_is_lost_is_replaced_at_once() -> None:
    failover = elsewhere()
    failover.down(FIRST, 20.0)
    assert state(failover) == (HOME, FIRST)
    failover.down(FIRST, 20.0)
    connect(failover, SECOND, SHARED, 20.0)
    assert state(failover) == (SECOND, None)


def test_a_place_that_is_lost_is_replaced_by_the_home_if_that_is_usable() -> None:
    failover = elsewhere()
    connect(failover, HOME, SHARED, 20.0)
    failover.down(FIRST, 21.0)
    assert state(failover) == (HOME, None)


def test_a_place_without_the_log_is_kept_until_another_has_it() -> None:
    failover = elsewhere()
    failover.told(FIRST, GONE, 20.0)
    assert (state(failover), due(failover)) == ((FIRST, None), 20.0 + AWAY_SECONDS)
    failover.pass_time(20.0 + AWAY_SECONDS)
    assert state(failover) == (FIRST, SECOND)
    connect(failover, SECOND, GONE, 24.0)
    assert state(failover) == (FIRST, None)
    failover.told(FIRST, SHARED, 25.0)
    assert (state(failover), due(failover)) == ((FIRST, None), None)
    failover.told(FIRST, GONE, 30.0)
    connect(failover, HOME, SHARED, 31.0)
    assert state(failover) == (HOME, None)


def test_a_place_is_left_when_its_log_is_another_one() -> None:
    failover = elsewhere()
    failover.told(FIRST, FOREIGN, 20.0)
    assert state(failover) == (HOME, SECOND)
    # Packets that were on the way mean nothing any more.
    failover.told(FIRST, SHARED, 20.0)
    assert state(failover) == (HOME, SECOND)


def test_a_place_is_left_when_the_home_names_another_log() -> None:
    failover = elsewhere()
    connect(failover, HOME, FOREIGN, 20.0)
    assert state(failover) == (HOME, None)


class World:
    """Consumers that come and go, and a client's link that learns of it."""

    def __init__(self, logs: list[str | None], *, home_up: bool) -> None:
        self.logs = logs
        self.up = [home_up] + [True] * (len(logs) - 1)
        self.available = [True] * len(logs)
        self.now = 0.0
        self.connected: set[int] = set()
        self.moves: list[int] = []
        order = failover_order("news", range(1, len(logs)))
        self.failover = Failover(HOME, order, SharedLog(), 0.0)
        self.settle()

    def change(self, index: int, *, up: bool, available: bool) -> None:
        """Change the state of a consumer, which is seen on a connection to it."""
        told = self.available[index] != available
        self.up[index], self.available[index] = up, available
        if index in self.connected and not up:
            self.connected.discard(index)
            self.failover.down(index, self.now)
        elif index in self.connected and told:
            self.tell(index)
        self.settle()

    def wait(self, seconds: float) -> None:
        """Let time pass; the home is tried all the time."""
        end = self.now + seconds
        for _ in range(1000):
            due = self.failover.due
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.failover.pass_time(self.now)
            self.settle()
        else:
            raise AssertionError("it is always due")
        self.now = end

    def settle(self) -> None:
        """Connect to the consumers that are wanted, until no more is."""
        for _ in range(100):
            failover = self.failover
            wanted = {HOME, failover.place, failover.candidate} - {None}
            self.connected &= wanted
            self.check()
            new = [index for index in wanted if index is not None and index not in self.connected]
            before = (failover.place, failover.candidate)
            for index in new:
                self.attempt(index)
                if (failover.place, failover.candidate) != before:
                    break
            else:
                return
        raise AssertionError("it tries for ever without a pause")

    def attempt(self, index: int) -> None:
        if not self.up[index]:
            self.failover.down(index, self.now)
            return
        self.connected.add(index)
        self.failover.up(index, self.now)
        if self.logs[index] is not None:
            self.tell(index)
        elif index == HOME:
            self.failover.told_nothing(self.now)

    def tell(self, index: int) -> None:
        log = self.logs[index]
        if log is not None:
            self.failover.told(index, v2.Log(log, self.available[index]), self.now)

    def usable(self, index: int) -> bool:
        return self.up[index] and (self.available[index] or self.logs[index] is None)

    def check(self) -> None:
        """Check that nothing is used that must not be."""
        failover = self.failover
        if not self.moves or self.moves[-1] != failover.place:
            self.moves.append(failover.place)
            if failover.place != HOME:
                assert self.usable(failover.place)
                assert self.logs[failover.place] is not None
        assert failover.candidate not in (HOME, failover.place)
        if self.logs[HOME] is None and HOME in self.connected:
            assert failover.candidate is None


LOGS = st.lists(st.sampled_from(["shared", "shared", "foreign", None]), min_size=4, max_size=4)
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 3.0, 5.0, 12.0])
    ),
    max_size=30,
)


@given(LOGS, EVENTS)
def test_in_the_end_the_topics_are_where_they_can_be_read(
    logs: list[str | None], changes: list[tuple[int, bool, bool, float]]
) -> None:
    world = World(logs, home_up=True)
    for index, up, available, seconds in changes:
        world.change(index, up=up, available=available)
        world.wait(seconds)
    before = world.failover.place
    world.wait(60.0)
    place = world.failover.place
    same = [index for index in range(4) if logs[HOME] is not None and logs[index] == logs[HOME]]
    if world.usable(HOME) or not any(world.usable(index) for index in same):
        assert place == (HOME if world.usable(HOME) else before)
    else:
        assert place in same
        assert world.usable(place)
    others = {index for index in world.moves if index != HOME}
    assert not others or len({logs[index] for index in (HOME, *others)}) == 1


@given(LOGS, EVENTS)
def test_a_home_that_is_down_at_first_is_used_in_the_end(
    logs: list[str | None], changes: list[tuple[int, bool, bool, float]]
) -> None:
    world = World(logs, home_up=False)
    for index, up, available, seconds in changes:
        world.change(index, up=up, available=available)
        world.wait(seconds)
    world.change(HOME, up=True, available=True)
    world.wait(60.0)
    assert state(world.failover) == (HOME, None)
