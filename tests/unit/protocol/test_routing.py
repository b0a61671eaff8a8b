from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import DATA
from wsqueue.protocol import routing
from wsqueue.protocol.routing import router, topic_hash, unbalanced

from ...support.session_pair import many

VECTORS: list[dict[str, Any]] = json.loads((DATA / "vectors.json").read_text())["hash"]


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
