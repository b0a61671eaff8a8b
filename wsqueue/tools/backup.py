"""Backups of a consumer's log: one is made while the consumer runs, and put back while it does not.

    backup   log ──read at one moment──▶ part ──checked, synced──▶ TARGET
    restore  BACKUP ──▶ part ──checked, a restored epoch, synced──▶ log; the old one is renamed

A part lies beside the file that it becomes, so that its last step is a rename: whatever happens, the file is
there as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ..config.load import load_config
from ..config.model import ConsumerConfig, RetentionMode
from ..errors import ConfigError, WsqueueError
from ..log import queries, schema
from ..log.archive import FILE_NAME
from ..log.epochs import Epochs
from ..log.files import (
    LOCK_NAME,
    lock_directory,
    make_directory,
    reason_of,
    rename_log,
    state_directory,
    sync_directory,
    sync_file,
)
from ..log.snapshot import SNAPSHOT_NAME, SQLITE_MAGIC

NAMES: dict[RetentionMode, str] = {"sqlite": FILE_NAME, "memory": SNAPSHOT_NAME}
"""The file of a log in its directory; that of a log in memory is there while the consumer is stopped. With
`jetstream` there is none."""

STEP_PAGES = 1024
"""Pages (16 MiB) that are copied before the progress is shown and Ctrl-C is heard."""

CHECK_INSTRUCTIONS = 1_000_000
"""Instructions of SQLite (some 10 ms) after which a check hears Ctrl-C."""

MEBIBYTE = 1024 * 1024

Say = Callable[[str], None]
"""Shows a line of progress."""


class Content(msgspec.Struct, frozen=True):
    """Count the content of a log.

    Attributes:
        topics: Number of topics that it remembers.
        messages: Number of messages.
        newest: When the newest came, None without any.
    """

    topics: int
    messages: int
    newest: datetime | None

    def __str__(self) -> str:
        text = f"{self.messages:,} messages on {self.topics:,} topics"
        return text if self.newest is None else f"{text}, the newest of {self.newest:%Y-%m-%d %H:%M:%S} UTC"


def back_up(place: Path, target: Path, *, replace: bool, say: Say) -> Content:
    """Copy a log as it is at one moment; a consumer may go on with it.

    Args:
        place: A consumer's configuration, the directory of its log, or the file of the log.
        target: File of the backup.
        replace: Whether a file that is there may be replaced.
        say: Shows the progress.

    Raises:
        ConfigError: The configuration is wrong, or does not say where the log is.
        WsqueueError: There is no log, or the backup cannot be written, or is damaged.
    """
    source = _find_log(place)
    _expect_log(source)
    if target.is_dir():
        raise WsqueueError(f"{target}: it is a directory; expected the name of a file to be made")
    if target.exists() and not target.is_file():
        raise WsqueueError(f"{target}: it is no regular file; expected the name of a file to be made")
    if target.exists() and (not replace or target.samefile(source)):
        wrong = "it is the log itself" if target.samefile(source) else "it is there already"
        raise WsqueueError(f"{target}: {wrong}; expected another name{'' if replace else ', or --replace'}")
    mode = 0o600 & source.stat().st_mode
    with explained(target, "cannot write the backup"), _part(target) as part:
        with _opened(source) as log:
            _copy(log, part, say)
        with _opened(part, writable=True) as copy:
            # Otherwise the copy would need a directory in which SQLite may write, just to be read.
            copy.execute("PRAGMA journal_mode = DELETE")
            _check(copy, source, say)
            content = _content(copy)
        part.chmod(mode)
        sync_file(part)
        if replace:
            part.rename(target)
        else:
            # Unlike a rename, this does not replace a file that has come meanwhile.
            target.hardlink_to(part)
        sync_directory(target.parent)
    return content


def restore(
    backup: Path, where: Path, *, mode: RetentionMode | None, replace: bool, say: Say
) -> tuple[Content, Path | None]:
    """Put a backup in the place of a consumer's log, and note that messages may be missing.

    Args:
        backup: File of a backup.
        where: The configuration of the consumer, or the directory of its log.
        mode: How the consumer keeps messages; None if the configuration says it, or for `sqlite`.
        replace: Whether a log that is there may be set aside.
        say: Shows the progress.

    Returns:
        The content of the log now, and the new name of the one that was there.

    Raises:
        ConfigError: The configuration is wrong, or the directory cannot be used, or a consumer uses it.
        WsqueueError: It is no backup, or it is damaged, or there is a log, or it cannot be written.
    """
    _expect_log(backup)
    file = _place(where, mode)
    directory = file.parent
    with explained(file, "cannot restore the log"), locked(directory), _part(file) as part:
        if file.exists() and not replace:
            raise WsqueueError(f"{file}: there is a log; --replace sets it aside and puts the backup there")
        with _opened(backup) as log:
            _copy(log, part, say)
        with _opened(part, writable=True) as copy:
            copy.execute("PRAGMA journal_mode = DELETE")
            _check(copy, backup, say)
            epoch = Epochs(queries.epochs(copy)).begin(restored=True)
            copy.execute("INSERT INTO epoch VALUES (?, ?, ?)", (epoch.number, epoch.id, int(epoch.restored)))
            content = _content(copy)
        _give(part, directory)
        sync_file(part)
        aside = None
        if file.exists():
            aside = rename_log(file, f"replaced-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        part.rename(file)
        sync_directory(directory)
    return content, aside


def _find_log(place: Path) -> Path:
    """Return the file of the log that a configuration, a directory or a file stands for."""
    if place.is_dir():
        found = [place / name for name in NAMES.values() if (place / name).exists()]
        if len(found) > 1:
            raise WsqueueError(
                f"{place}: it has the logs of both modes; expected {' or '.join(map(str, found))}"
            )
        if found:
            return found[0]
        raise WsqueueError(f"{place}: there is no {' and no '.join(NAMES.values())}; {_WITHOUT_SNAPSHOT}")
    if _is_log(place):
        return place
    directory, mode = _directory_of(place)
    file = directory / NAMES[mode]
    if mode == "memory" and not file.exists():
        raise WsqueueError(f"{file}: there is no such file; {_WITHOUT_SNAPSHOT}")
    return file


_WITHOUT_SNAPSHOT = (
    "a consumer with the retention mode memory leaves a file here when it is stopped, and takes it at the "
    "next start; expected a consumer that is stopped, or the mode sqlite"
)


def _directory_of(file: Path) -> tuple[Path, RetentionMode]:
    """Return the directory and the mode that the configuration of a consumer names."""
    config = load_config(file, ConsumerConfig)
    if config.retention.jetstream is not None and config.retention.mode == "jetstream":
        servers = ", ".join(config.retention.jetstream.servers)
        raise ConfigError(
            f"the log is on the NATS servers: {servers}; expected the mode sqlite or memory, or a backup of"
            f" the streams {config.retention.jetstream.name}-* with the tools of NATS",
            file=str(file),
            key="retention.mode",
        )
    directory = state_directory(config.retention)
    if directory is None:
        problem = (
            "required to find the log, because only systemd knows it otherwise; expected the directory of "
            "the log instead of the file, for example /var/lib/wsqueue/consumer-10001"
        )
        raise ConfigError(problem, file=str(file), key="retention.directory")
    return directory, config.retention.mode


def _place(where: Path, mode: RetentionMode | None) -> Path:
    """Return the file that the log of a configuration or a directory has."""
    if where.is_dir():
        return where / NAMES[mode or "sqlite"]
    directory, configured = _directory_of(where)
    if mode not in (None, configured):
        raise ConfigError(f"the mode is {configured}, not {mode}", file=str(where), key="retention.mode")
    make_directory(directory)
    return directory / NAMES[configured]


def _is_log(file: Path) -> bool:
    """Return True for a file that SQLite has written."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise WsqueueError(f"{file}: it is no regular file")
        with file.open("rb") as stream:
            return stream.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except OSError as error:
        raise WsqueueError(f"{file}: cannot read it: {error.strerror}") from None


def _expect_log(file: Path) -> None:
    """Make sure that a file is a log of this version.

    Raises:
        WsqueueError: It is something else.
    """
    if not _is_log(file):
        raise WsqueueError(f"{file}: it is no log of wsqueue: it does not begin as a file of SQLite")
    with explained(file, "cannot read it"), _opened(file) as log:
        application, version = schema.identity(log)
    if application != schema.APPLICATION_ID:
        raise WsqueueError(f"{file}: it is no log of wsqueue: it belongs to another program")
    if version != schema.VERSION:
        raise WsqueueError(
            f"{file}: it has version {version}, and this wsqueue reads version {schema.VERSION}; expected "
            "the wsqueue that wrote it"
        )


@contextlib.contextmanager
def _opened(file: Path, *, writable: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a file that is there."""
    with contextlib.closing(schema.open_beside(file, writable=writable)) as connection:
        if writable:
            # It is synced as a whole, and thrown away if anything fails.
            connection.execute("PRAGMA synchronous = OFF")
        yield connection


@contextlib.contextmanager
def _part(file: Path) -> Iterator[Path]:
    """Make an empty file beside another, which only its owner may read; in the end nothing is left of it."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield part
    finally:
        for side in ("", "-journal", "-wal", "-shm"):
            part.with_name(f"{part.name}{side}").unlink(missing_ok=True)


def _copy(log: sqlite3.Connection, part: Path, say: Say) -> None:
    """Copy a log as it is now, step by step, while others write to it."""
    # Without a transaction each step would see a later state, and a write between them begin the copy anew.
    log.execute("BEGIN")
    log.execute("SELECT floor FROM archive").fetchall()
    page_bytes = schema.count(log, "PRAGMA page_size")

    def show(_status: int, remaining: int, total: int) -> None:
        done, all_ = ((total - remaining) * page_bytes, total * page_bytes)
        say(f"copied {done // MEBIBYTE:,} of {all_ // MEBIBYTE:,} MiB")

    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
        copy.execute("PRAGMA synchronous = OFF")
        log.backup(copy, pages=STEP_PAGES, progress=show, sleep=0)
    log.execute("ROLLBACK")


def _check(copy: sqlite3.Connection, source: Path, say: Say) -> None:
    """Check the whole of a copy.

    Raises:
        WsqueueError: It contradicts itself, as the log that was copied does, or the disk damages it.
    """
    say("checking the copy")
    copy.set_progress_handler(lambda: 0, CHECK_INSTRUCTIONS)
    problem = schema.text(copy, "PRAGMA integrity_check(1)")
    copy.set_progress_handler(None, 0)
    if problem != "ok":
        raise WsqueueError(f"{source}: it is damaged, or was when it was copied: {problem}")


def _content(copy: sqlite3.Connection) -> Content:
    messages, newest = copy.execute("SELECT ifnull(sum(count), 0), max(time) FROM record").fetchone()
    return Content(
        topics=schema.count(copy, "SELECT count(*) FROM topic"),
        messages=messages,
        newest=None if newest is None else datetime.fromtimestamp(newest, UTC),
    )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep consumers from a directory.

    Raises:
        ConfigError: One uses it.
    """
    try:
        lock = lock_directory(directory)
    except ConfigError:
        raise ConfigError("a consumer uses it; expected that it is stopped", file=str(directory)) from None
    try:
        _give(directory / LOCK_NAME, directory)
        yield
    finally:
        os.close(lock)


def _give(file: Path, directory: Path) -> None:
    """Give a file to the owner of its directory, who runs the consumer, if root has made it."""
    file.chmod(0o600)
    if os.geteuid() == 0:
        owner = directory.stat()
        os.chown(file, owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def explained(file: Path, problem: str) -> Iterator[None]:
    """Turn errors of the system and of SQLite into sentences."""
    try:
        yield
    except OSError as error:
        raise WsqueueError(f"{file}: {problem}: {error.strerror}") from None
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_INTERRUPT:
            raise KeyboardInterrupt from None
        raise WsqueueError(f"{file}: {problem}: {reason_of(error)}") from None
