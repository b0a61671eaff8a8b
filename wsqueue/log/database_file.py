"""A SQLite file that one thread writes and another reads: how it is opened, tidied, closed and set aside."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from ..errors import WsqueueError
from ..report.text import amount, number
from . import schema
from .files import (
    Damaged,
    check_rights,
    lock_directory,
    reason_of,
    set_aside,
    sync_directory,
    unusable,
)
from .records import StoreState
from .schema import PAGE_BYTES

CHECKPOINT_BYTES = 8 * 1024 * 1024
"""Move this much at once from the write-ahead log: pages that changed several times are moved once."""

HELD_BYTES = 256 * 1024 * 1024
"""The write-ahead log may have at least this much, however small the log is, while another process reads."""

SHRINK_PAGES = 1024
"""Pages (16 MiB) that go back to the file system in one step, when more than that and than half are free."""


class DatabaseFile(ABC):
    """Hold the connections to a file.

    Args:
        file: The file.
        durable: Whether each commit must survive a power cut, and another thread may read meanwhile.

    Attributes:
        file: The file.
        wal_bytes: Bytes in the write-ahead log when it was last looked at, 0 once all of them were moved.
        held_since: Monotonic time since which another process keeps them from being moved, None if none does.
    """

    def __init__(self, file: Path, *, durable: bool) -> None:
        self.file, self._durable = file, durable
        self._lock: int | None = None
        self._connections: list[sqlite3.Connection] = []
        self.wal_bytes = self._uncheckpointed = self._wal_size = 0
        self.held_since: float | None = None
        # Held while the reader reads, so that the writer can tell it from other processes.
        self._reads = threading.Lock()

    @abstractmethod
    def _survey(self) -> StoreState:
        """Take over the state of the topics from the file.

        Raises:
            Damaged: It contradicts itself.
        """

    def free_bytes(self) -> int:
        """Return the bytes that the file system has left, -1 where it does not say."""
        try:
            file_system = os.statvfs(self.file.parent)
        except OSError:
            return -1
        return file_system.f_bavail * file_system.f_frsize

    def open(self) -> StoreState:
        """Lock the directory, and open the file or begin a new one; set a damaged one aside.

        Raises:
            ConfigError: The directory cannot be used, or the file is another program's.
            StorageError: The disk is full or does not work.
        """
        directory = self.file.parent
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_rights(directory)
            self._lock = lock_directory(directory)
            try:
                return self.load()
            except Damaged as damaged:
                self._close_connections()
                set_aside(self.file, str(damaged))
                return self.load()
        except OSError as error:
            self.close()
            raise unusable(directory, error) from None
        except BaseException:
            self.close()
            raise

    def load(self) -> StoreState:
        """Open the file or begin a new one.

        Raises:
            Damaged: It contradicts itself.
            ConfigError: It cannot be opened with these settings, or is another program's.
            StorageError: The disk is full or does not work.
            OSError: The same, without words.
        """
        try:
            self._connect()
            if schema.identify(self._writer, self.file, durable=self._durable):
                sync_directory(self.file.parent)
                sync_directory(self.file.parent.parent)
            if self._durable:
                schema.make_durable(self._writer)
            else:
                # It will be read as a whole anyway, and damaged records must not be taken over.
                schema.check(self._writer)
            schema.complete(self._writer)
            state = self._survey()
        except UnicodeDecodeError:
            # SQLite quotes the file in its message, and Python cannot decode that.
            raise Damaged("its schema is no text") from None
        except sqlite3.Error as error:
            raise schema.failure(self.file, error) from None
        if not state.in_bounds:
            raise Damaged("it has an offset that no message can have")
        return state

    def _connect(self) -> None:
        fresh = not self.file.exists() or not self.file.stat().st_size
        os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
        if fresh and _size(self._wal):
            raise Damaged("the file is empty, and its write-ahead log is not")
        for _ in range(2 if self._durable else 1):
            self._connections.append(schema.connect(self.file, durable=self._durable))

    def tidy(self, *, idle: bool) -> None:
        """Move commits out of the write-ahead log, and give free space back.

        Raises:
            sqlite3.Error: Not now; nothing is lost.
        """
        writer = self._writer
        if idle:
            pages = schema.count(writer, "PRAGMA page_count")
            free = schema.count(writer, "PRAGMA freelist_count")
            if free > max(pages // 2, SHRINK_PAGES):
                writer.execute(f"PRAGMA incremental_vacuum({SHRINK_PAGES})").fetchall()
                self._uncheckpointed += SHRINK_PAGES * PAGE_BYTES
        # Pages that trimming changes aren't counted, but let the file of the write-ahead log grow.
        written = max(self._uncheckpointed, _size(self._wal) - self._wal_size)
        if written > (0 if idle else CHECKPOINT_BYTES) or (idle and self.held_since is not None):
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Move commits out of the write-ahead log, as far as nobody reads the state before them.

        That never waits, because another process may read for hours. When all is moved, the write-ahead log
        begins anew with the next commit.
        """
        frames, moved = self._move()
        if moved < frames and frames * PAGE_BYTES > schema.MAX_WAL_BYTES:
            # Our own reader reads for milliseconds: without it, only another process can be in the way.
            with self._reads:
                frames, moved = self._move()
            if moved < frames and self.held_since is None:
                self.held_since = time.monotonic()
        if moved == frames:
            self.held_since = None
        self.wal_bytes = 0 if moved == frames else frames * PAGE_BYTES
        self._uncheckpointed, self._wal_size = 0, _size(self._wal)

    def _move(self) -> tuple[int, int]:
        """Return how many pages the write-ahead log has, and how many of them have been moved."""
        _, frames, moved = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return frames, moved

    def _check_room(self, max_bytes: int) -> None:
        """Refuse to write while another process lets the write-ahead log grow too much.

        Args:
            max_bytes: Maximum size of the log: the write-ahead log may have as much.

        Raises:
            WsqueueError: It has.
        """
        most = max(max_bytes, HELD_BYTES)
        if self.held_since is not None and self.wal_bytes + self._uncheckpointed > most:
            self._checkpoint()
            if self.held_since is not None:
                seconds = time.monotonic() - self.held_since
                raise WsqueueError(
                    f"another process has been reading {self.file} for {number(round(seconds), 'second')},"
                    f" and its write-ahead log has grown to {amount(self.wal_bytes)}"
                )

    def _empty_wal(self) -> None:
        """Empty the write-ahead log, unless another process is in the way.

        Raises:
            sqlite3.Error: It cannot be emptied.
        """
        with self._reads:
            self._writer.execute("PRAGMA busy_timeout = 0")
            try:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {int(schema.BUSY_SECONDS * 1000)}")
        self._wal_size = _size(self._wal)

    def close(self) -> None:
        """Move all into the one file, as far as that goes, and unlock the directory."""
        self._close_connections()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _wal(self) -> Path:
        return Path(f"{self.file}-wal")

    @property
    def _writer(self) -> sqlite3.Connection:
        return self._connections[0]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._reads:
                yield self._connections[1]
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if schema.is_damage(error):
                raise Damaged(reason_of(error)) from None
            raise WsqueueError(f"{self.file}: cannot be read: {reason_of(error)}") from None

    def _close_connections(self) -> None:
        # The last connection to close moves the write-ahead log into the file, and removes it.
        for connection in reversed(self._connections):
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        self._connections = []


def _size(file: Path) -> int:
    """Return the bytes of a file, 0 when it is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
