"""Count the messages that a consumer keeps in its files, beside the consumer that uses them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..errors import StorageError
from . import schema
from .archive import FILE_NAME
from .files import reason_of
from .snapshot import SNAPSHOT_NAME

_TOPICS = "SELECT name, next - first FROM topic WHERE first < next"


class Kept(msgspec.Struct, frozen=True):
    """Count topics that have messages, and these messages."""

    topics: int
    messages: int


def kept_in(directory: Path, chosen: Callable[[str], bool] = lambda _topic: True) -> Kept | None:
    """Return the number of messages of some topics in a directory, None if there is no file of messages.

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


def _messages(file: Path) -> list[tuple[str, int]]:
    """Return each topic that has messages, and their number."""
    with contextlib.closing(schema.open_beside(file)) as connection:
        if schema.identity(connection) != (schema.APPLICATION_ID, schema.VERSION):
            raise StorageError(f"{file}: it is no archive of version {schema.VERSION}")
        return connection.execute(_TOPICS).fetchall()
