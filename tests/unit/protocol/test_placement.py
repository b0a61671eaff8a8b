"""Which consumer has a topic while its home is away."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wsqueue.protocol import v2
from wsqueue.protocol.placement import AWAY_SECONDS, BACK_SECONDS, LOG_SECONDS, Placement, Presence
from wsqueue.protocol.routing import topic_hash

CONSUMERS = 3
TOPICS = [f"topic {number}" for number in range(50)]


class Cluster:
    """Hold the presences of some consumers as a peer knows them, and the time."""

    def __init__(self, consumers: int = CONSUMERS) -> None:
        self.now = 1000.0
        self.presences = [Presence(self.now) for _ in range(consumers)]
        self.placement = Placement(self.presences)

    def up(
        self, index: int, log: str | None = "a", *, available: bool = True, v2_spoken: bool = True
    ) -> None:
        """Connect a consumer; with a log, it names it at once."""
        self.presences[index].up(self.now, v2=v2_spoken)
        if log is not None:
            self.say(index, log, available=available)

    def say(self, index: int, log: str = "a", *, available: bool) -> None:
        self.presences[index].told(v2.Log(log, available), self.now)

    def down(self, index: int) -> None:
        self.presences[index].down(self.now)

    def wait(self, seconds: float) -> bool:
        """Let time go by; return True if topics have moved."""
        self.now += seconds
        return self.placement.check(self.now)

    @property
    def away(self) -> set[int]:
        return set(self.placement.elsewhere)


def home(topic: str, consumers: int = CONSUMERS) -> int:
    return topic_hash(topic) % consumers


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    for index in range(CONSUMERS):
        cluster.up(index)
    cluster.wait(100.0)
    return cluster


def test_topics_are_at_home_while_all_are_usable(cluster: Cluster) -> None:
    assert cluster.placement.settled
    assert [cluster.placement.consumer_of(topic) for topic in TOPICS] == list(map(home, TOPICS))


def test_topics_of_a_consumer_that_is_away_go_to_others_and_come_back(cluster: Cluster) -> None:
    cluster.down(1)
    assert not cluster.placement.settled
    assert not cluster.wait(AWAY_SECONDS - 0.1)
    assert cluster.wait(0.1)
    assert cluster.away == {1}
    for topic in TOPICS:
        digests = {index: hashlib.sha256(topic.encode() + str(index).encode()).digest() for index in (0, 2)}
        expected = min(digests, key=digests.__getitem__) if home(topic) == 1 else home(topic)
        assert cluster.placement.consumer_of(topic) == expected
    assert {cluster.placement.consumer_of(topic) for topic in TOPICS if home(topic) == 1} == {0, 2}
    cluster.up(1)
    assert not cluster.wait(BACK_SECONDS - 0.1)
    assert cluster.wait(0.1)
    assert not cluster.away
    assert cluster.placement.settled


def test_one_that_cannot_reach_the_log_is_not_usable(cluster: Cluster) -> None:
    cluster.say(1, available=False)
    assert cluster.wait(AWAY_SECONDS)
    assert cluster.away == {1}
    cluster.say(1, available=True)
    assert cluster.wait(BACK_SECONDS)


def test_one_that_comes_and_goes_stays_away(cluster: Cluster) -> None:
    cluster.down(1)
    assert cluster.wait(AWAY_SECONDS)
    for _ in range(5):
        cluster.up(1)
        assert not cluster.wait(BACK_SECONDS - 1)
        cluster.down(1)
        assert not cluster.wait(1.0)


def test_one_that_connects_and_cannot_reach_the_log_is_away(cluster: Cluster) -> None:
    cluster.down(1)
    for _ in range(3):
        cluster.wait(AWAY_SECONDS / 4)
        cluster.up(1, available=False)
        cluster.down(1)
    assert cluster.wait(AWAY_SECONDS / 4)
    assert cluster.away == {1}


def test_an_outage_of_the_log_moves_nothing(cluster: Cluster) -> None:
    for index in range(CONSUMERS):
        cluster.say(index, available=False)
    assert not cluster.wait(60.0)
    for index in range(CONSUMERS):
        cluster.say(index, available=True)
        assert not cluster.wait(AWAY_SECONDS / CONSUMERS)
    assert not cluster.away


def test_an_outage_of_the_log_moves_nothing_while_one_is_away(cluster: Cluster) -> None:
    cluster.down(1)
    assert cluster.wait(AWAY_SECONDS)
    for index in (0, 2):
        cluster.say(index, available=False)
    assert not cluster.wait(60.0)
    for index in (2, 0):
        cluster.say(index, available=True)
        assert not cluster.wait(1.0)
    assert cluster.away == {1}


def test_the_first_that_is_back_is_used_at_once_if_no_other_is() -> None:
    cluster = Cluster(2)
    cluster.up(0)
    cluster.up(1)
    cluster.down(0)
    cluster.wait(AWAY_SECONDS)
    assert cluster.away == {0}
    cluster.down(1)
    assert not cluster.wait(60.0)
    cluster.up(0)
    assert cluster.wait(0.0)
    assert not cluster.away
    assert cluster.wait(AWAY_SECONDS)
    assert cluster.away == {1}


def test_one_that_never_came_is_replaced_by_any_with_a_log() -> None:
    cluster = Cluster(3)
    cluster.up(0, None)
    cluster.up(2, "a")
    cluster.wait(AWAY_SECONDS)
    assert cluster.placement.elsewhere == {1: [2]}
    assert [cluster.placement.served(index) for index in range(3)] == [True, True, True]


def test_one_that_never_came_is_not_replaced_while_others_have_different_logs() -> None:
    cluster = Cluster(3)
    cluster.up(0, "a")
    cluster.up(2, "b")
    assert not cluster.wait(60.0)
    assert not cluster.placement.served(1)


@pytest.mark.parametrize("log", ["b", None])
def test_another_log_is_no_substitute(log: str | None) -> None:
    cluster = Cluster(2)
    cluster.up(0, "a")
    cluster.up(1, log)
    cluster.wait(LOG_SECONDS)
    cluster.down(0)
    assert not cluster.wait(60.0)
    assert not cluster.placement.served(0)
    cluster.up(0)
    cluster.down(1)
    assert not cluster.wait(60.0)


@pytest.mark.parametrize("index", [0, 1])
def test_classic_is_no_substitute_and_has_none(index: int) -> None:
    cluster = Cluster(2)
    cluster.up(1 - index)
    cluster.up(index, None, v2_spoken=False)
    for gone in (0, 1):
        cluster.down(gone)
        assert not cluster.wait(60.0)
        cluster.up(gone, None if gone == index else "a", v2_spoken=gone != index)
        assert not cluster.wait(60.0)


def test_consumers_with_logs_of_their_own_never_change_anything() -> None:
    cluster = Cluster(2)
    assert cluster.placement.settled
    for index in range(2):
        cluster.up(index, None)
    cluster.down(0)
    assert cluster.placement.settled
    assert not cluster.wait(60.0)
    assert [cluster.placement.served(index) for index in range(2)] == [False, True]


@pytest.mark.parametrize("v2_spoken", [False, True])
def test_one_that_has_a_log_of_its_own_now_gets_its_topics(cluster: Cluster, v2_spoken: bool) -> None:
    cluster.down(1)
    cluster.wait(AWAY_SECONDS)
    cluster.up(1, None, v2_spoken=v2_spoken)
    assert cluster.wait(LOG_SECONDS)
    assert not cluster.away
    assert cluster.placement.settled


def test_one_whose_log_is_another_now_gets_its_topics(cluster: Cluster) -> None:
    cluster.down(1)
    cluster.wait(AWAY_SECONDS)
    cluster.up(1, "b")
    assert cluster.wait(0.0)
    assert not cluster.away


INDEXES = st.integers(0, CONSUMERS - 1)
LOGS = st.sampled_from(["a", "a", "a", "b"])


class Machine(RuleBasedStateMachine):
    """Let consumers come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.logs: list[str | None] = [None] * CONSUMERS
        self.speaks_classic = [False] * CONSUMERS

    @rule(index=INDEXES, log=LOGS, available=st.booleans())
    def up(self, index: int, log: str, available: bool) -> None:
        self.cluster.up(index, log, available=available)
        self.logs[index], self.speaks_classic[index] = log, False

    @rule(index=INDEXES)
    def up_classic(self, index: int) -> None:
        self.cluster.up(index, None, v2_spoken=False)
        self.logs[index], self.speaks_classic[index] = None, True

    @rule(index=INDEXES)
    def down(self, index: int) -> None:
        self.cluster.down(index)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, AWAY_SECONDS, BACK_SECONDS]))
    def wait(self, seconds: float) -> None:
        settled, usable = self.cluster.placement.settled, any(self.usable)
        moved = self.cluster.wait(seconds)
        assert not moved or (usable and not settled)

    @property
    def usable(self) -> list[bool]:
        return [presence.usable for presence in self.cluster.presences]

    @rule()
    def settle(self) -> None:
        """After a while, topics are at consumers that are usable, if there are any that may have them."""
        for _ in range(60):
            self.cluster.wait(0.5)
        placement, usable = self.cluster.placement, self.usable
        for topic in TOPICS:
            assert usable[placement.consumer_of(topic)] == placement.served(home(topic))
            if usable[home(topic)]:
                assert placement.consumer_of(topic) == home(topic)

    @invariant()
    def topics_are_where_the_log_is(self) -> None:
        self.cluster.placement.check(self.cluster.now)
        for topic in TOPICS:
            consumer = self.cluster.placement.consumer_of(topic)
            if consumer != home(topic):
                assert not self.speaks_classic[consumer]
                assert not self.speaks_classic[home(topic)]
                assert self.logs[home(topic)] in (None, self.logs[consumer])
                assert self.logs[consumer] is not None


TestMachine = Machine.TestCase
