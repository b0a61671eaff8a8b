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


def join(words: Sequence[str]) -> str:
    """Return words as a list in a sentence, e.g. a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
