"""Numbers, amounts and lists in words."""

from __future__ import annotations

import pytest

from wsqueue.report.text import age, age_in_words, amount, duration, join, number, rate


def test_amounts() -> None:
    assert [amount(count) for count in (0, 1023, 1024, 1536)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "1.5 KiB",
    ]
    assert [amount(count * 1024**2) for count in (1.25, 64, 1024)] == ["1.2 MiB", "64 MiB", "1.0 GiB"]
    assert [amount(count * 1024**4) for count in (5, 5000)] == ["5.0 TiB", "5000.0 TiB"]


def test_numbers() -> None:
    assert [number(count, "time") for count in (0, 1, 2000)] == ["0 times", "1 time", "2,000 times"]
    assert number(2, "node is", "nodes are") == "2 nodes are"


def test_lists() -> None:
    assert [join(list(words)) for words in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]


def test_rates() -> None:
    assert [rate(each) for each in (0, 0.25, 9.94, 10, 2468.4)] == ["0", "0.2", "9.9", "10", "2,468"]


def test_short_times() -> None:
    times = (0, 4.2e-5, 0.001, 0.012345, 2.5, 7200)
    assert [duration(seconds) for seconds in times] == [
        "0 µs",
        "42 µs",
        "1 ms",
        "12.3 ms",
        "2.5 s",
        "7,200 s",
    ]


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
