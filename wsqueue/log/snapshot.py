"""The snapshot that a log in memory leaves at a clean stop: a file like the archive, written and read once.

It is written beside its place and renamed when it is on the disk, so that a crash leaves the file that was
there before, or none. The next start takes it and removes it before it serves: records that come later are
not in it, and their offsets would be used twice.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..config.model import Retention
from ..errors import ConfigError, StorageError, WsqueueError
from .database import Database
from .files import DISK_ERRORS, Damaged, reason_of, set_aside, sync_directory, sync_file
from .records import Record, StoreState
from .states import StateInfo

SNAPSHOT_NAME = "snapshot.sqlite3"

SQLITE_MAGIC = b"SQLite format 3\0"
"""How a SQLite file begins; an older snapshot, which was none, does not."""

UNLIMITED = Retention(
    max_bytes=2**63, max_bytes_per_topic=2**63, max_messages_per_topic=2**63, max_age_seconds=math.inf
)
"""A snapshot has no limits, because the log that it holds has."""


def write_snapshot(
    file: Path, state: StoreState, records: Iterable[Record], states: Iterable[StateInfo] = ()
) -> None:
    """Write all of a log into one file, whole or not at all.

    Args:
        file: Replaced if it is there.
        state: State of the log.
        records: All records, oldest first.
        states: All states.

    Raises:
        WsqueueError: It cannot be written.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        part.unlink(missing_ok=True)
        _write(part, state, records, states)
        part.rename(file)
        sync_directory(file.parent)
    except (OSError, sqlite3.Error, WsqueueError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        reason = (isinstance(error, OSError) and error.strerror) or reason_of(error)
        raise WsqueueError(f"{file}: cannot write the snapshot: {reason}") from None


def _write(file: Path, state: StoreState, records: Iterable[Record], states: Iterable[StateInfo]) -> None:
    database = Database(file, UNLIMITED, durable=False)
    try:
        database.load()
        database.restore(state, records, states)
    finally:
        database.close()
    sync_file(file)


def take_snapshot(
    file: Path, clock: Callable[[], float] = time.time
) -> tuple[StoreState, list[Record], list[StateInfo]] | None:
    """Read a snapshot and remove it; return None if there is none. A damaged one is set aside.

    Args:
        file: The snapshot.
        clock: Returns the Unix time; no record is newer.

    Raises:
        ConfigError: It cannot be read or removed, or is another program's.
        StorageError: The disk does not work.
    """
    try:
        try:
            snapshot = _read(file, clock)
        except FileNotFoundError:
            return None
        except Damaged as damaged:
            set_aside(file, str(damaged))
            return None
        file.unlink()
        sync_directory(file.parent)
    except OSError as error:
        problem = f"cannot take the snapshot: {error.strerror or error}"
        if error.errno in DISK_ERRORS:
            raise StorageError(f"{file}: {problem}") from None
        raise ConfigError(problem, file=str(file)) from None
    return snapshot


def _read(file: Path, clock: Callable[[], float]) -> tuple[StoreState, list[Record], list[StateInfo]]:
    with file.open("rb") as stream:
        if stream.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC:
            raise Damaged("it is no snapshot of this version")
    database = Database(file, UNLIMITED, durable=False, clock=clock)
    try:
        state = database.load()
        return state, database.records(), database.states()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise Damaged(str(error)) from None
    finally:
        database.close()
