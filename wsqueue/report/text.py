"""Numbers and amounts in words."""

from __future__ import annotations


def number(count: int, one: str, many: str = "") -> str:
    """Return a number with what there is so many of, e.g. 1 time, 2,000 times."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def amount(count: float) -> str:
    """Return a number of bytes for people, e.g. 1.5 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
