from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import DATA
from wsqueue.protocol import routing
from wsqueue.protocol.routing import dead_letter_topic, origin, router, topic_hash, unbalanced
from wsqueue.protocol.v2 import GROUP_PATTERN

from ...support.session_pair import many

ALL_VECTORS: dict[str, list[dict[str, Any]]] = json.loads((DATA / "vectors.json").read_text())
VECTORS, DEAD_LETTERS = ALL_VECTORS["hash"], ALL_VECTORS["dead_letters"]


def plain_hash(topic: str) -> int:
    """Compute the hash one character at a time, as the original code does."""
    value = 0
    for character in topic:
        point = ord(character)
        units = [point] if point < 0x10000 else [0xD7C0 + (point >> 10), 0xDC00 + (point & 0x3FF)]
        for unit in units:
            value = value * 31 + unit
            value = (value + 2**31) % 2**32 - 2**31
    return abs(value)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["topic"][:20])
def test_vectors(vector: dict[str, Any]) -> None:
    assert topic_hash(vector["topic"]) == vector["hash"]
    assert router(3)(vector["topic"]) == vector["mod3"]
    assert router(7)(vector["topic"]) == vector["mod7"]
    assert plain_hash(vector["topic"]) == vector["hash"]


@many
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_hash_as_computed_by_other_code(topic: str) -> None:
    assert topic_hash(topic) == plain_hash(topic)
    assert 0 <= topic_hash(topic) <= 2**31


@many
@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 200))
def test_every_topic_has_one_consumer(topic: str, consumers: int) -> None:
    route = router(consumers)
    assert route(topic) == route(topic) == plain_hash(topic) % consumers


@pytest.mark.parametrize("vector", DEAD_LETTERS, ids=lambda vector: ascii(vector["topic"]))
def test_where_dead_letters_live(vector: dict[str, str]) -> None:
    assert origin(vector["topic"]) == vector["origin"]
    assert topic_hash(vector["topic"]) == plain_hash(vector["origin"])
    assert router(7)(vector["topic"]) == plain_hash(vector["origin"]) % 7


TOPICS = st.text(st.characters(exclude_categories=["Cs"]) | st.just("!"), max_size=30)
GROUPS = st.from_regex(GROUP_PATTERN, fullmatch=True)


@many
@given(TOPICS, st.lists(GROUPS, min_size=1, max_size=3))
def test_dead_letters_of_dead_letters_live_at_their_topic(topic: str, groups: list[str]) -> None:
    letters = topic
    for group in groups:
        letters = dead_letter_topic(letters, group)
    assert letters == topic + "".join(f"!{group}!dead" for group in groups)
    assert topic_hash(letters) == topic_hash(topic)


def test_a_lone_surrogate_has_no_hash() -> None:
    with pytest.raises(UnicodeEncodeError):
        topic_hash("\ud800")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the topics whose hash is computed, as they are."""
    topics: list[str] = []

    def counting(topic: str) -> int:
        topics.append(topic)
        return plain_hash(topic)

    monkeypatch.setattr(routing, "topic_hash", counting)
    return topics


def test_the_hash_of_a_topic_is_computed_once(computed: list[str]) -> None:
    route = router(3)
    assert [route(topic) for topic in ("a", "b", "a", "a", "b")] == [1, 2, 1, 1, 2]
    assert computed == ["a", "b"]
    assert [router(2)(topic) for topic in ("a", "b")] == [1, 0]


def test_what_is_remembered_is_bounded(computed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "CACHED_TOPICS", 2)
    names = [f"topic{number}" for number in range(10)]
    route = router(5)
    assert [route(name) for name in names * 2] == [plain_hash(name) % 5 for name in names * 2]
    assert computed == names * 2


@pytest.mark.parametrize("consumers", [1, 2, 29, 30, 31, 32, 61, 62, 63, 93])
def test_what_unbalanced_means(consumers: int) -> None:
    route = router(consumers)
    used = {route(f"topic{number:04}") for number in range(10_000)}
    assert (len(used) < consumers) == unbalanced(consumers)
