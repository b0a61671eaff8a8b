"""Count what a consumer keeps in its files, beside the consumer that uses them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ..errors import StorageError
from .archive import FILE_NAME
from .files import reason_of
from .schema import APPLICATION_ID, VERSION, count
from .snapshot import SNAPSHOT_NAME

PAGE_TOPICS = 1000
"""Topics of one read: each takes milliseconds, so that the consumer's write-ahead log needn't grow."""

_TOPICS = """
SELECT id, name,
    (SELECT "offset" FROM record WHERE topic = topic.id ORDER BY "offset" LIMIT 1),
    (SELECT "offset" + count FROM record WHERE topic = topic.id ORDER BY "offset" DESC LIMIT 1)
FROM topic WHERE id > ? ORDER BY id LIMIT ?
"""


class Kept(msgspec.Struct, frozen=True):
    """Count topics that have messages, and these messages."""

    topics: int
    messages: int


def kept_in(directory: Path, chosen: Callable[[str], bool] = lambda _topic: True) -> Kept | None:
    """Return what the files in a directory keep of some topics, None if there is no file of messages.

    A consumer that keeps its messages in memory has a file only while it doesn't run.

    Args:
        directory: Directory of a consumer's logs.
        chosen: Returns True for the topics that count.

    Raises:
        StorageError: A file can't be read, or is of another version.
    """
    files = [file for name in (FILE_NAME, SNAPSHOT_NAME) if (file := directory / name).is_file()]
    if not files:
        return None
    topics = messages = 0
    for file in files:
        try:
            for name, number in _messages(file):
                if chosen(name):
                    topics += 1
                    messages += number
        except sqlite3.Error as error:
            raise StorageError(f"{file}: cannot read it: {reason_of(error)}") from None
    return Kept(topics, messages)


def _messages(file: Path) -> Iterator[tuple[str, int]]:
    """Yield each topic that has messages, and their number."""
    address = f"{file.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
        identity = [count(connection, f"PRAGMA {name}") for name in ("application_id", "user_version")]
        if identity != [APPLICATION_ID, VERSION]:
            raise StorageError(f"{file}: it is no archive of version {VERSION}")
        last = -1
        while rows := connection.execute(_TOPICS, (last, PAGE_TOPICS)).fetchall():
            for _, name, first, end in rows:
                if end is not None:
                    yield name, end - first
            last = rows[-1][0]
