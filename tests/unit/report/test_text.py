"""Numbers, amounts and lists in words."""

from __future__ import annotations

import pytest

from wsqueue.report.text import amount, join, number


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024, "10 KiB"),
        (1024**2 * 1.25, "1.2 MiB"),
        (64 * 1024**2, "64 MiB"),
        (1024**3, "1.0 GiB"),
        (5 * 1024**4, "5.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_amounts(count: float, text: str) -> None:
    assert amount(count) == text


def test_numbers() -> None:
    assert [number(count, "time") for count in (0, 1, 2000)] == ["0 times", "1 time", "2,000 times"]
    assert number(2, "node is", "nodes are") == "2 nodes are"


@pytest.mark.parametrize(
    ("words", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_lists(words: list[str], text: str) -> None:
    assert join(words) == text
