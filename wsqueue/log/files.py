"""The files of logs: directories, locks, damaged files set aside, and errors in words."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from ..config.model import Retention
from ..errors import ConfigError, StorageError, WsqueueError
from ..journal import log

logger = logging.getLogger(__name__)

LOCK_NAME = "lock"
"""The file in a directory of logs that a process locks."""

MAX_SET_ASIDE = 3
"""Damaged files that are kept to be looked at: each can be as large as the archive."""

SIDE_FILES = ("", "-wal", "-shm", "-journal")
"""Ends of the names of the files that SQLite makes of one."""

DISK_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO))
"""Errors of the system that may pass by themselves; another configuration would not help."""


class Damaged(Exception):  # noqa: N818 - an adjective of the file
    """The file contradicts itself; the message says how."""


def reason_of(error: Exception) -> str:
    """Return an error in words for a person."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full"
    if code == sqlite3.SQLITE_IOERR:
        name = getattr(error, "sqlite_errorname", "")
        return f"the disk cannot be read or written, or the file must not grow ({name})"
    return str(error) or type(error).__name__


def state_directory(config: Retention) -> Path | None:
    """Return the directory of a consumer's logs: the configured one, else the one that systemd gives."""
    directory = config.directory or os.environ.get("STATE_DIRECTORY")
    return Path(directory) if directory else None


def make_directory(directory: Path) -> None:
    """Make a directory for logs unless it is there.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_rights(directory)
    except OSError as error:
        problem = f"cannot make the directory: {error.strerror}"
        raise ConfigError(problem, file=str(directory), key="retention.directory") from None


def check_rights(directory: Path) -> None:
    """Refuse a directory in which a file of a log belongs to another user, as after root has put it back.

    Raises:
        ConfigError: A file there cannot be read and written; the error says how to change that.
    """
    # Others may lie there too, such as the lost+found of a disk of its own.
    for file in sorted([*directory.glob("*.sqlite*"), *directory.glob(LOCK_NAME)]):
        if not os.access(file, os.R_OK | os.W_OK):
            # The last slash leads through systemd's link to the directory.
            problem = (
                "the node may not read and write it: expected that the user of the node owns all files here,"
                f" as after `chown -R --reference={directory} {directory}/` by root"
            )
            raise ConfigError(problem, file=str(file))


def unusable(directory: Path, error: OSError) -> WsqueueError:
    """Return the exception for a directory that cannot be used: with other settings, or at another time."""
    problem = f"cannot keep messages here: {error.strerror or error}"
    if error.errno in DISK_ERRORS:
        return StorageError(f"{directory}: {problem}")
    return ConfigError(problem, file=str(directory))


def lock_directory(directory: Path) -> int:
    """Lock a directory against other processes, until the descriptor that is returned is closed.

    Raises:
        ConfigError: Another process has locked it.
        OSError: It cannot be used.
    """
    lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        problem = "another process uses it; expected a directory of its own for each node"
        raise ConfigError(problem, file=str(directory)) from None
    return lock


def sync_file(file: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_log(file: Path, ending: str) -> Path:
    """Rename a file with all that SQLite has made of it, and return its new name."""
    aside = Path(f"{file}.{ending}")
    # By these names SQLite finds the files that belong to the renamed one.
    for side in SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{file}{side}").rename(f"{aside}{side}")
    return aside


def set_aside(file: Path, reason: str) -> None:
    """Rename a damaged file, and remove the oldest damaged files above `MAX_SET_ASIDE`."""
    aside = rename_log(file, f"corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    for old in sorted(file.parent.glob(f"{file.name}.corrupt-*Z"))[:-MAX_SET_ASIDE]:
        for side in SIDE_FILES:
            Path(f"{old}{side}").unlink(missing_ok=True)
    sync_directory(file.parent)
    log(logger, logging.ERROR, "archive set aside", file=aside, reason=reason)
