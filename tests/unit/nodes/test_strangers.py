"""The pool of connections that have not proved themselves."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.nodes.strangers import Strangers, source_of

from ...support.session_pair import few


def test_everybody_may_be_drawn() -> None:
    strangers: Strangers[int] = Strangers(random.Random(1))
    for number in range(10):
        strangers.add(number, f"192.0.2.{number}")
    drawn = Counter(strangers.draw() for _ in range(10_000))
    assert set(drawn) == set(range(10))
    assert min(drawn.values()) > 700


def test_a_flood_from_one_address_hits_itself() -> None:
    strangers: Strangers[str] = Strangers(random.Random(1))
    for number in range(900):
        strangers.add(f"flood {number}", "192.0.2.1")
    for number in range(100):
        strangers.add(f"other {number}", f"198.51.100.{number}")
    drawn = [strangers.draw().startswith("flood") for _ in range(10_000)]
    # Only two of the others that are drawn together lose one of them.
    assert sum(drawn) > 9_800


@few
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20))), st.randoms(use_true_random=False))
def test_strangers_come_and_go(steps: list[tuple[bool, int]], chance: random.Random) -> None:
    strangers: Strangers[int] = Strangers(chance)
    model: set[int] = set()
    for comes, number in steps:
        if comes and number not in model:
            strangers.add(number, f"192.0.2.{number % 3}")
            model.add(number)
        elif not comes:
            assert strangers.remove(number) == (number in model)
            model.discard(number)
        assert len(strangers) == len(model)
        assert all((number in strangers) == (number in model) for number in range(21))
        assert not model or strangers.draw() in model


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("", ""),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1::7", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff::", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_where_a_peer_comes_from(host: str, source: str) -> None:
    assert source_of(host) == source
