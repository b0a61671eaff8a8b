"""Numbers of batches that are remembered, and the name and the publisher that forget first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol import repeats as module
from wsqueue.protocol.repeats import (
    NUMBER_BYTES,
    PUBLISHER_BYTES,
    Repeats,
    crowded_out,
    name_bytes,
    name_of,
)


def pairs(repeats: Repeats) -> dict[tuple[str, str], int]:
    return dict(repeats)


def most(items: Iterable[str]) -> set[str]:
    """Return the items that are there most often."""
    counts = Counter(items)
    return {item for item, count in counts.items() if count == max(counts.values())}


@pytest.mark.parametrize(
    ("publisher", "name"),
    [("billing/AbC-_0123", "billing"), ("AbC", ""), ("/x", ""), ("a/b/c", "a"), ("", "")],
)
def test_the_name_is_before_the_first_slash(publisher: str, name: str) -> None:
    assert name_of(publisher) == name


@pytest.mark.parametrize("name", ["", "flood/"])
def test_a_name_that_floods_drives_out_its_own_alone(name: str) -> None:
    repeats = Repeats()
    quiet = [f"{who}{number}" for who in ("billing/", "shop/", "/" if name else "x/") for number in range(5)]
    for publisher in quiet:
        repeats.remember("news", publisher, 1)
    for number in range(1000):
        # Ever new publishers, as a client is with ever new secrets.
        repeats.remember("news", f"{name}{number:022}", 1)
        if repeats.pairs > 30:
            repeats.forget()
    assert all(repeats.last("news", publisher) == 1 for publisher in quiet)
    flood = [publisher for (_, publisher), _ in repeats if publisher not in quiet]
    assert flood == [f"{name}{number:022}" for number in range(985, 1000)]


def test_names_that_flood_share_what_the_others_leave() -> None:
    repeats = Repeats()
    for number in range(5):
        repeats.remember("news", f"quiet/{number}", 1)
    for number in range(100):
        repeats.remember("news", f"a/{number}", 1)
    for number in range(100):
        repeats.remember("news", f"b/{number}", 1)
        while repeats.pairs > 25:
            repeats.forget()
    assert Counter(name_of(publisher) for _, publisher in pairs(repeats)) == {"quiet": 5, "a": 10, "b": 10}


def test_names_without_end_are_not_told_apart() -> None:
    repeats = Repeats()
    with mock.patch.object(module, "MAX_NAMES", 3):
        for number in range(20):
            repeats.remember("news", f"name{number}/x", 1)
    # The first three names are told apart; the group of all others is the one with most pairs.
    for _ in range(16):
        repeats.forget()
    assert [publisher for (_, publisher), _ in repeats] == ["name0/x", "name1/x", "name2/x", "name19/x"]
    for left in (3, 2, 1, 0):
        assert repeats.forget()
        assert repeats.pairs == left


def test_a_publisher_that_floods_drives_out_its_own_alone() -> None:
    repeats = Repeats()
    for publisher in "abc":
        for topic in ("news", "sport"):
            repeats.remember(topic, publisher, 1)
    for number in range(1000):
        repeats.remember(f"{number}", "flood", 1)
        if repeats.pairs > 16:
            repeats.forget()
    assert all(repeats.last(topic, publisher) == 1 for publisher in "abc" for topic in ("news", "sport"))
    assert [topic for topic, publisher in pairs(repeats) if publisher == "flood"] == [
        f"{number}" for number in range(990, 1000)
    ]


def test_among_equals_the_one_forgets_that_was_quiet_longest() -> None:
    repeats = Repeats()
    for publisher in "abcb":
        repeats.remember("news", publisher, 1)
    repeats.remember("news", "a", 2)
    for left in ("ba", "a", ""):
        repeats.forget()
        assert [publisher for (_, publisher), _ in repeats] == list(left)
    assert repeats.forget() == repeats.pairs == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["p", "q", "a/p", "a/q", "a/r", "b/p", "b/q"]),
        st.sampled_from(["a", "bb", "ü", "dddd", "e"]),
    )
    | st.none(),
    max_size=60,
)


@given(STEPS)
def test_it_is_as_the_rule_says(steps: list[tuple[str, str] | None]) -> None:
    repeats, used = Repeats(), 0
    # The rule, told slowly: all pairs, least recently used first.
    expected: dict[tuple[str, str], int] = {}
    for number, step in enumerate(steps):
        if step is not None:
            publisher, topic = step
            used += repeats.remember(topic, publisher, number)
            expected.pop((topic, publisher), None)
            expected[topic, publisher] = number
        elif expected:
            owners = [publisher for _, publisher in expected]
            before = pairs(repeats)
            used -= repeats.forget()
            (gone,) = before.keys() - pairs(repeats).keys()
            name = name_of(gone[1])
            assert name in most(map(name_of, owners))
            assert gone[1] in most(owner for owner in owners if name_of(owner) == name)
            assert gone == next(pair for pair in expected if pair[1] == gone[1])
            del expected[gone]
        else:
            assert repeats.forget() == 0
        assert pairs(repeats) == expected
        assert repeats.pairs == len(expected)
        names = sum(NUMBER_BYTES + name_bytes(topic) for topic, _ in expected)
        assert used == names + PUBLISHER_BYTES * len({publisher for _, publisher in expected})


@given(STEPS)
def test_what_was_remembered_again_forgets_in_the_same_order(steps: list[tuple[str, str] | None]) -> None:
    first, again = Repeats(), Repeats()
    for number, step in enumerate(steps):
        if step is not None:
            first.remember(step[1], step[0], number)
    for (topic, publisher), number in first:
        again.remember(topic, publisher, number)
    while first.pairs:
        assert list(first) == list(again)
        assert first.forget() == again.forget()


@given(STEPS, st.integers(1, 30))
def test_a_name_loses_nothing_to_one_that_has_more(steps: list[tuple[str, str] | None], room: int) -> None:
    repeats = Repeats()
    for number, step in enumerate(steps):
        if step is None:
            continue
        repeats.remember(step[1], step[0], number)
        if repeats.pairs > room:
            before = Counter(name_of(publisher) for _, publisher in pairs(repeats))
            repeats.forget()
            (lost,) = before - Counter(name_of(publisher) for _, publisher in pairs(repeats))
            assert before[lost] == max(before.values())


PUBLISHERS = st.lists(
    st.builds("{}{}".format, st.sampled_from(["", "a/", "b/", "c/"]), st.integers(0, 30)),
    unique=True,
    max_size=40,
)


@given(PUBLISHERS, st.integers(0, 40))
def test_the_publishers_of_a_topic_that_go(publishers: list[str], limit: int) -> None:
    left = list(publishers)
    gone = []
    while len(left) > limit:
        names = most(map(name_of, left))
        gone.append(next(publisher for publisher in left if name_of(publisher) in names))
        left.remove(gone[-1])
    assert crowded_out(publishers, limit) == gone
    repeats = Repeats()
    for publisher in publishers:
        repeats.remember("news", publisher, 1)
    while repeats.pairs > limit:
        repeats.forget()
    # The same, but for the choice among names with as many.
    kept = [publisher for (_, publisher), _ in repeats]
    assert sorted(Counter(map(name_of, kept)).values()) == sorted(Counter(map(name_of, left)).values())
