"""The limits of a name, without connections and clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.config.model import NamedClient
from wsqueue.nodes import clients as module
from wsqueue.nodes.clients import BURST_SECONDS, Client, Quota
from wsqueue.protocol.access import Identity, Rights

from ...support.session_pair import few

ALL = Identity("one", rights=(Rights(("*",), ("*",)),))


def client(quota: Quota, identity: Identity = ALL) -> Client:
    return Client(identity, quota)


def test_connections_share_the_topics_of_their_name() -> None:
    quota = Quota(NamedClient(name="one", max_topics=2))
    first, second = client(quota), client(quota)
    assert not first.publishes("a")
    assert not second.subscribes("b")
    assert first.publishes("c") == second.subscribes("c") == "one uses 2 topics, and may use no more"
    # They are used already, in whatever way.
    assert not first.subscribes("b")
    assert not second.publishes("a")
    second.unsubscribes("b")
    assert first.publishes("c")
    first.leave()
    assert not second.publishes("c")
    assert dict(quota.topics) == {"a": 1, "c": 1}
    second.leave()
    assert not quota.topics


def test_remembered_rights_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED_TOPICS", 3)
    quota = Quota(NamedClient(name="one"))
    one = client(quota)
    for number in range(10):
        assert not one.publishes(str(number))
        assert len(quota.topics) <= 3


def test_subscribing_twice_is_one_subscription() -> None:
    quota = Quota(NamedClient(name="one", max_topics=1))
    one = client(quota)
    assert not one.subscribes("a")
    assert not one.subscribes("a")
    one.unsubscribes("a")
    one.unsubscribes("a")
    assert not one.subscribes("b")


def test_without_a_limit_nothing_waits() -> None:
    assert Quota(NamedClient(name="one")).pay(10**12, 0.0) == 0.0


@few
@given(st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 3)), max_size=50))
def test_no_more_than_the_rate_and_a_burst_in_any_time(reads: list[tuple[int, float]]) -> None:
    """A sender that waits as it is told sends at most the rate, a second's worth and a read."""
    quota = Quota(NamedClient(name="one", bytes_per_second=1000))
    now, sent = 0.0, []
    for size, pause in reads:
        sent.append((now, size))
        now += max(quota.pay(size, now), pause)
    for first in range(len(sent)):
        total = 0
        for at, size in sent[first:]:
            allowed = 1000 * (at - sent[first][0] + BURST_SECONDS)
            assert total <= allowed + 1e-6
            total += size
