"""The files of logs: locks, names that survive a power cut, damaged files set aside, errors in words."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from ..errors import ConfigError
from ..journal import log

logger = logging.getLogger(__name__)

MAX_SET_ASIDE = 3
"""Damaged files that are kept for a look: each can be as large as the archive."""

_SIDE_FILES = ("", "-wal", "-shm", "-journal")

DISK_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO))
"""Errors of the system that may."""


class Damaged(Exception):  # noqa: N818 - says what a file is
    """Say what is wrong with a file."""


def reason_of(error: Exception) -> str:
    """Return what a person is told of an error."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full"
    if code == sqlite3.SQLITE_IOERR:
        name = getattr(error, "sqlite_errorname", "")
        return f"the disk cannot be read or written, or the file must not grow ({name})"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return "the archive is damaged; the node's next start sets it aside"
    return str(error) or type(error).__name__


def lock_file(file: Path) -> int:
    """Open a file that no other process has locked, and lock it."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        problem = "another process uses it; expected a directory of its own for each node"
        raise ConfigError(problem, file=str(file.parent)) from None
    return lock


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(file: Path, reason: str) -> None:
    """Rename a damaged file, and remove the oldest of those that were."""
    # SQLite, too, finds what belongs to the renamed file by these names.
    aside = f"{file}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    for side in _SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{file}{side}").rename(f"{aside}{side}")
    for old in sorted(file.parent.glob(f"{file.name}.corrupt-*Z"))[:-MAX_SET_ASIDE]:
        for side in _SIDE_FILES:
            Path(f"{old}{side}").unlink(missing_ok=True)
    sync_directory(file.parent)
    log(logger, logging.ERROR, "archive set aside", file=aside, reason=reason)
