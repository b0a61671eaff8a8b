"""Numbers, amounts and lists in words."""

from __future__ import annotations

import pytest

from wsqueue.report.text import age, age_in_words, amount, duration, join, number, rate


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


def test_rates() -> None:
    assert [rate(each) for each in (0, 0.25, 9.94, 10, 2468.4)] == ["0", "0.2", "9.9", "10", "2,468"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (4.2e-5, "42 µs"),
        (0.001, "1 ms"),
        (0.012345, "12.3 ms"),
        (2.5, "2.5 s"),
        (7200, "7,200 s"),
    ],
)
def test_short_times(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "short", "words"),
    [
        (0, "0s", "0 seconds"),
        (1.2, "1s", "1 second"),
        (119, "1m 59s", "119 seconds"),
        (7300, "2h 1m", "2 hours"),
        (93_784, "1d 2h", "26 hours"),
        (200_000, "2d 7h", "2 days"),
    ],
)
def test_long_times(seconds: float, short: str, words: str) -> None:
    assert (age(seconds), age_in_words(seconds)) == (short, words)
