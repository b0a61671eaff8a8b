"""Numbers, amounts and lists in words."""

from __future__ import annotations

from collections.abc import Sequence


def number(count: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun, e.g. 1 time, 2,000 times."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def amount(count: float) -> str:
    """Return a number of bytes for people, e.g. 1.5 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def rate(per_second: float) -> str:
    """Return a rate for people, with a decimal if it is small, e.g. 2.5 or 2,468."""
    return f"{per_second:.1f}" if 0 < per_second < 10 else f"{per_second:,.0f}"


def duration(seconds: float) -> str:
    """Return a short time with up to three digits, e.g. 1.25 ms."""
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"


def age(seconds: float) -> str:
    """Return a long time in its two largest units, e.g. 3d 4h."""
    whole = int(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // part}{smaller}"
    return f"{whole}s"


def age_in_words(seconds: float) -> str:
    """Return a long time in the largest unit of which it has at least two, e.g. 5 hours."""
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return number(int(seconds // size), unit)
    return number(round(seconds), "second")


def join(words: Sequence[str]) -> str:
    """Return words as a list in a sentence, e.g. a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
