"""A snapshot is what a log in memory leaves at a clean stop: written once, read once."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from ..errors import ConfigError, StorageError, WsqueueError
from .database import cost
from .files import DISK_ERRORS, Damaged, set_aside, sync_directory
from .records import Record, State, TopicState

Value = TypeVar("Value")

SNAPSHOT_MAGIC = b"wsqueue snapshot 1\n"
SNAPSHOT_FRAME_BYTES = 1024 * 1024
"""Records that are written at once: what is encoded and not yet written stays small."""


class Snapshot(State, kw_only=True):
    """Hold all of a log that was in memory."""

    records: list[Record]


def write_snapshot(  # noqa: PLR0917 - one after the other as in State
    file: Path,
    id: str,  # noqa: A002 - as in State
    records: Iterable[Record],
    topics: dict[str, TopicState],
    numbers: dict[tuple[str, str], int],
    floor: int = 0,
) -> None:
    """Write all of a log into one file, whole or not at all.

    Args:
        file: Replaced if it is there.
        id: Of the log.
        records: Each topic's in order.
        topics: As in `State`.
        numbers: As in `State`.
        floor: As in `State`.

    Raises:
        WsqueueError: It cannot be written.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        part.touch(mode=0o600)
        with part.open("wb") as stream:
            stream.write(SNAPSHOT_MAGIC)
            _write_frame(stream, (id, floor, topics, [(*owner, last) for owner, last in numbers.items()]))
            batch: list[Record] = []
            size = 0
            for record in records:
                batch.append(record)
                size += cost(record)
                if size >= SNAPSHOT_FRAME_BYTES:
                    _write_frame(stream, batch)
                    batch, size = [], 0
            _write_frame(stream, batch)
            _write_frame(stream, [])
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(file)
        sync_directory(file.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise WsqueueError(f"{file}: cannot write the snapshot: {error.strerror or error}") from None


def take_snapshot(file: Path) -> Snapshot | None:
    """Read a snapshot and remove it, for what came later is not in it; None if there is none.

    Raises:
        ConfigError: It cannot be read or removed.
        StorageError: The disk does not work.
    """
    try:
        try:
            with file.open("rb") as stream:
                snapshot = _read_snapshot(stream)
        except FileNotFoundError:
            return None
        except (Damaged, msgspec.MsgspecError) as error:
            set_aside(file, str(error))
            return None
        file.unlink()
        sync_directory(file.parent)
    except OSError as error:
        problem = f"cannot take the snapshot: {error.strerror or error}"
        if error.errno in DISK_ERRORS:
            raise StorageError(f"{file}: {problem}") from None
        raise ConfigError(problem, file=str(file)) from None
    return snapshot


def _read_snapshot(stream: BinaryIO) -> Snapshot:
    if stream.read(len(SNAPSHOT_MAGIC)) != SNAPSHOT_MAGIC:
        raise Damaged("it is no snapshot of this version")
    head = _read_frame(stream, tuple[str, int, dict[str, TopicState], list[tuple[str, str, int]]])
    records: list[Record] = []
    while batch := _read_frame(stream, list[Record]):
        records += batch
    id_, floor, topics, numbers = head
    owners = {(topic, publisher): number for topic, publisher, number in numbers}
    return Snapshot(id=id_, topics=topics, numbers=owners, floor=floor, records=records)


def _write_frame(stream: BinaryIO, value: object) -> None:
    """Write a value after its length and checksum."""
    data = msgspec.msgpack.encode(value)
    stream.write(len(data).to_bytes(8) + zlib.crc32(data).to_bytes(4))
    stream.write(data)


def _read_frame(stream: BinaryIO, kind: type[Value]) -> Value:
    head = stream.read(12)
    length = int.from_bytes(head[:8])
    # Compared first, lest a damaged length take all memory.
    if len(head) < 12 or length > os.fstat(stream.fileno()).st_size - stream.tell():
        raise Damaged("it ends too early")
    data = stream.read(length)
    if zlib.crc32(data) != int.from_bytes(head[8:]):
        raise Damaged("a checksum is wrong")
    return msgspec.msgpack.decode(data, type=kind)
