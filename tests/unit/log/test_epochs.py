"""Epochs of a log: their ids, their order and their bound."""

from __future__ import annotations

import pytest

from wsqueue.log import epochs
from wsqueue.log.epochs import Epochs


def test_each_epoch_has_an_id_of_its_own_and_the_next_number() -> None:
    known = Epochs()
    begun = [known.begin() for _ in range(50)]
    assert [epoch.number for epoch in begun] == list(range(1, 51))
    assert len({epoch.id for epoch in begun}) == 50
    assert all(len(bytes.fromhex(epoch.id)) == 8 for epoch in begun)
    assert (known.current, known.known()) == (begun[-1], begun)
    assert [known.number(epoch.id) for epoch in begun] == list(range(1, 51))
    assert known.number("f" * 16) is None
    again = Epochs(known.known())
    assert (again.current, again.begin().number) == (begun[-1], 51)


def test_the_newest_restored_epoch_counts() -> None:
    known = Epochs()
    assert known.restored == 0
    known.begin()
    assert known.restored == 0
    known.begin(restored=True)
    known.begin()
    assert (known.restored, Epochs(known.known()).restored) == (2, 2)
    known.begin(restored=True)
    assert known.restored == 4


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "MAX_EPOCHS", 3)
    known = Epochs()
    begun = [known.begin(restored=number == 0) for number in range(5)]
    assert known.known() == begun[2:]
    assert known.number(begun[1].id) is None
    assert known.restored == 1, "what is missing is still missing"
