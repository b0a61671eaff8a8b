"""The SQLite file of a store: its tables, its settings, and the errors that opening it may have.

Records lie in the order in which they came, so that an append fills whole pages and the oldest are deleted
from the front; one narrow index finds them by topic and offset.

| table | holds |
|---|---|
| `archive` | one row: the floor, where unknown topics begin; whether the end was clean |
| `epoch` | the epochs that are remembered |
| `topic` | each topic that is remembered, its offsets, bytes and last epoch, as of each commit |
| `record` | the records of all topics; a later id came later |
| `number` | the last number of each (topic, publisher); a later id was used later |
| `state` | the states, which no limit of the logs drops |

The table `state` came later than the others. It is made when it is missing, and the version did not change
with it, so that no log was set aside: a wsqueue that does not know the table leaves it alone.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ..errors import ConfigError, StorageError
from .files import Damaged, reason_of

APPLICATION_ID = 0x77737175
"""Says in the header of the file that it is a wsqueue's: `wsqu`."""

VERSION = 4
"""Version of the schema; a file of an older one is set aside, and one of a newer one never touched."""

PAGE_BYTES = 16 * 1024
"""A batch of some 50 KB is 4 pages: half the work of SQLite's 4 KiB, which would make it 13."""

CACHE_KIB = 16 * 1024
"""Holds all pages of a group, so that none is written twice."""

MAX_WAL_BYTES = 64 * 1024 * 1024
"""A longer write-ahead log waits for our own reader to pause, and then begins again."""

BUSY_SECONDS = 5.0
"""How long a commit waits for another program that writes to the file; nothing waits for one that reads."""

SCHEMA = f"""
CREATE TABLE archive (floor INTEGER NOT NULL, clean INTEGER NOT NULL) STRICT;
CREATE TABLE epoch (number INTEGER PRIMARY KEY, id TEXT NOT NULL, restored INTEGER NOT NULL) STRICT;
CREATE TABLE topic (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, first INTEGER NOT NULL, next INTEGER NOT NULL,
    bytes INTEGER NOT NULL, epoch INTEGER NOT NULL
) STRICT;
CREATE TABLE record (
    id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, "offset" INTEGER NOT NULL, count INTEGER NOT NULL,
    time REAL NOT NULL, publisher TEXT NOT NULL, number INTEGER NOT NULL, packet BLOB NOT NULL,
    epoch INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX record_position ON record (topic, "offset");
CREATE TABLE number (
    id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, publisher TEXT NOT NULL, number INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX number_owner ON number (topic, publisher);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""

_STATE_TABLE = """
CREATE TABLE IF NOT EXISTS state (
    topic TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (topic, name)
) STRICT
"""

SETTINGS_ERRORS = frozenset((sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM))
"""Errors that say nothing against the file, and don't pass by themselves."""

DAMAGE_ERRORS = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
"""Errors that say that the file contradicts itself."""

TAKEN_ERRORS = frozenset((sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY))
"""Errors that say that a place has a record which it cannot have, as the file says elsewhere."""

PASSING_ERRORS = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
    )
)
"""Errors that say nothing against the file, and may pass by themselves."""


def connect(file: Path, *, durable: bool) -> sqlite3.Connection:
    """Connect to the file.

    Args:
        file: The file, which is made when it is missing.
        durable: Whether each commit must survive a power cut.
    """
    connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _set_pragmas(connection, durable=durable)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_pragmas(connection: sqlite3.Connection, *, durable: bool) -> None:
    for pragma in (
        f"synchronous = {'FULL' if durable else 'OFF'}",
        "wal_autocheckpoint = 0",
        f"journal_size_limit = {MAX_WAL_BYTES}",
        f"cache_size = -{CACHE_KIB}",
        "secure_delete = OFF",  # some builds of SQLite write zeros over all that is deleted
        "cell_size_check = ON",
        "trusted_schema = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")


def open_beside(file: Path, *, writable: bool = False) -> sqlite3.Connection:
    """Connect to a file that is there, beside a consumer that may use it.

    Args:
        file: The file; it is never made.
        writable: Whether it may be changed.
    """
    address = f"{file.absolute().as_uri()}?mode={'rw' if writable else 'ro'}"
    return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def identity(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return whose file it is, and the version of its schema."""
    return count(connection, "PRAGMA application_id"), count(connection, "PRAGMA user_version")


def identify(connection: sqlite3.Connection, file: Path, *, durable: bool) -> bool:
    """Make sure that the file is a wsqueue's; make the tables of a new one, and return True for that.

    Raises:
        ConfigError: The file is another program's, or a newer version's.
        Damaged: The file is an older version's.
    """
    application, version = identity(connection)
    if (application, version) == (0, 0) and not count(connection, "SELECT count(*) FROM sqlite_schema"):
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA journal_mode = {'WAL' if durable else 'OFF'}")
        connection.executescript(f"BEGIN; {SCHEMA}")
        connection.execute("INSERT INTO archive VALUES (0, 1)")
        connection.execute("COMMIT")
        return True
    if application != APPLICATION_ID:
        problem = "it belongs to another program; expected a directory of its own"
        raise ConfigError(problem, file=str(file))
    if version < VERSION:
        raise Damaged(f"it has version {version}, and this version of wsqueue reads version {VERSION}")
    if version > VERSION:
        problem = f"it has version {version}, not {VERSION}; run the wsqueue that wrote it or move it away"
        raise ConfigError(problem, file=str(file))
    return False


def check(connection: sqlite3.Connection) -> None:
    """Check the whole file; this takes a minute for a gigabyte.

    Raises:
        Damaged: It contradicts itself.
    """
    # The whole check, not the quick one, because an index that misses a record would hide it.
    problem = text(connection, "PRAGMA integrity_check(1)")
    if problem != "ok":
        raise Damaged(problem)


def make_durable(connection: sqlite3.Connection) -> None:
    """Make sure that the file has a write-ahead log and can be written.

    Raises:
        Damaged: It contradicts itself.
        sqlite3.Error: It cannot be written.
    """
    # A copy that another program made has no write-ahead log.
    if text(connection, "PRAGMA journal_mode = WAL") != "wal":
        raise Damaged("it has no write-ahead log")
    # The file can be written, as was seen, but its header may say that it must not be.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")


def complete(connection: sqlite3.Connection) -> None:
    """Make the table that files of this version may lack.

    Raises:
        sqlite3.Error: It cannot be made.
    """
    connection.execute(_STATE_TABLE)


def failure(file: Path, error: sqlite3.Error) -> Exception:
    """Return the exception for a failure to open the file: another setting, another time, or damage."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    problem = f"cannot open it: {reason_of(error)}"
    if code in SETTINGS_ERRORS:
        return ConfigError(problem, file=str(file))
    if code in PASSING_ERRORS:
        return StorageError(f"{file}: {problem}")
    return Damaged(str(error))


def is_damage(error: BaseException) -> bool:
    """Return True for an error which says that the file contradicts itself."""
    if isinstance(error, UnicodeDecodeError):
        # SQLite quotes the file in its message, and Python cannot decode that.
        return True
    code = getattr(error, "sqlite_errorcode", 0)
    return code in TAKEN_ERRORS or code & 0xFF in DAMAGE_ERRORS


def text(connection: sqlite3.Connection, query: str) -> str:
    """Return the one value of a query."""
    return str(connection.execute(query).fetchone()[0])


def count(connection: sqlite3.Connection, query: str) -> int:
    """Return the one number of a query."""
    return int(text(connection, query))
