"""The start of a subscription as it is written: on a command line, and in the query of a URL."""

from __future__ import annotations

import re
from datetime import datetime

from . import v2

START_FORMS = (
    "latest, earliest, an offset, LOG:OFFSET, -N for the last N messages, or a time such as 2026-11-25T12:00"
)
"""The forms that a start may have."""

_POSITION = re.compile(r"(?:([0-9A-Za-z_-]{1,64}):)?([0-9]{1,16})")
_LAST = re.compile(r"-[0-9]{1,16}")
_TIME = re.compile(r"[0-9]{4}-|[0-9]{1,2}:")


def parse_start(text: str) -> str | int | tuple[str, int] | datetime:
    """Return a start: a word, an offset or minus a number of messages, a log and an offset, or a time.

    Args:
        text: One of the forms in `START_FORMS`.

    Raises:
        ValueError: It is none.
    """
    if text in ("latest", "earliest"):
        return text
    if _LAST.fullmatch(text) and -v2.MAX_NUMBER <= (count := int(text)) < 0:
        return count
    match = _POSITION.fullmatch(text)
    # A time such as 2026-11-25T12:00 looks like an id and an offset, too.
    if match and not _TIME.match(text) and (offset := int(match[2])) <= v2.MAX_NUMBER:
        return offset if match[1] is None else (match[1], offset)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a start: expected {START_FORMS}") from None


def parse_position(text: str) -> tuple[str, int] | None:
    """Return the log and the offset in `LOG:OFFSET`, None if a text has another form."""
    match = _POSITION.fullmatch(text)
    if match is None or match[1] is None or (offset := int(match[2])) > v2.MAX_NUMBER:
        return None
    return match[1], offset
