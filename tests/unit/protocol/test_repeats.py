"""Numbers of batches that are remembered, and the publisher that forgets first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol.repeats import NUMBER_BYTES, PUBLISHER_BYTES, Repeats, name_bytes


def pairs(repeats: Repeats) -> dict[tuple[str, str], int]:
    return dict(repeats)


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
    st.tuples(st.sampled_from("pqrs"), st.sampled_from(["a", "bb", "ü", "dddd", "e"])) | st.none(),
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
            most = max(map(owners.count, owners))
            before = pairs(repeats)
            used -= repeats.forget()
            (gone,) = before.keys() - pairs(repeats).keys()
            assert owners.count(gone[1]) == most
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
