"""The snapshot that a log in memory leaves at a clean stop."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from pathlib import Path

import pytest
from msgspec.structs import replace

from wsqueue.errors import ConfigError, StorageError, WsqueueError
from wsqueue.log import database, files, snapshot
from wsqueue.log.records import Epoch, Record, StoreState, TopicState
from wsqueue.log.snapshot import take_snapshot, write_snapshot
from wsqueue.log.states import StateHead, StateInfo

STATE = StoreState(
    epochs=[Epoch("0123456789abcdef", 3), Epoch("f" * 16, 4, restored=True)],
    topics={"a": TopicState(3, 50, 4), "": TopicState(9, 9, 2), "\0ñ🙂": TopicState(0, 9, 3)},
    numbers={("a", "q"): 3, ("\0ñ🙂", "p"): 9, ("a", "p"): 2**62, ("", "p"): 1},
    floor=12,
)

STATES = [StateInfo("a", "1", 7, b"one"), StateInfo("\0ñ🙂", "", 8, b"")]
WITH_HEADS = replace(STATE, heads={("a", "1"): StateHead(7, 5), ("\0ñ🙂", ""): StateHead(8, 7)})


def records(count: int = 47) -> list[Record]:
    """Return records of one topic, and one of another with the same time in the middle."""
    kept = [Record("a", 3 + index, 1, 1000.0, "p", index, b"x" * 100, 4) for index in range(count)]
    kept.insert(count // 2, Record("\0ñ🙂", 0, 9, 1000.0, "", 0, b"\0\xff", 3))
    return kept


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("at_once", [1, 10, 1000])
def test_a_snapshot_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(database, "RESTORED_AT_ONCE", at_once)
    file = tmp_path / "snapshot"
    assert take_snapshot(file) is None
    write_snapshot(file, StoreState(epochs=[], topics={}, numbers={}), [])
    write_snapshot(file, STATE, records(), STATES)
    assert file.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["snapshot"]
    taken = take_snapshot(file)
    assert taken is not None
    assert taken == (WITH_HEADS, records(), STATES)
    assert list(taken[0].numbers) == list(STATE.numbers)
    assert names(tmp_path) == []
    assert take_snapshot(file) is None


def test_an_older_snapshot_and_a_damaged_one_are_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "snapshot"
    write_snapshot(file, STATE, records())
    whole = file.read_bytes()
    for data, reason in (
        (b"wsqueue snapshot 1\n" + bytes(1000), "it is no snapshot of this version"),
        (b"", "it is no snapshot of this version"),
        (whole[: len(whole) // 2], "malformed"),
        (whole[:16], "not a database"),
        (whole.replace(b"0123456789abcdef", b"0123456789abcde\xff"), "decode"),
    ):
        caplog.clear()
        file.write_bytes(data)
        assert take_snapshot(file) is None
        assert not file.exists()
        (event,) = caplog.records
        assert event.message.startswith("archive set aside")
        assert reason in event.message
    assert len(names(tmp_path)) == files.MAX_SET_ASIDE


def test_the_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "snapshot"
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE theirs (id)")
    with pytest.raises(ConfigError, match="it belongs to another program"):
        take_snapshot(file)
    assert names(tmp_path) == ["snapshot"]


def test_a_crash_while_it_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "snapshot"
    write_snapshot(file, STATE, records())

    class Crash(BaseException):
        """Leave everything as it is."""

    def crash(_descriptor: int) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", crash)
        with pytest.raises(Crash):
            write_snapshot(file, STATE, [])
    assert names(tmp_path) == ["snapshot", "snapshot.part"]
    # The next one writes over what the crash has left.
    (tmp_path / "snapshot.part").write_bytes(b"half")
    write_snapshot(file, STATE, records(3))
    assert names(tmp_path) == ["snapshot"]
    taken = take_snapshot(file)
    assert taken is not None
    assert taken[1] == records(3)


def test_a_snapshot_that_cannot_be_written_or_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WsqueueError, match="cannot write the snapshot: No such file or directory"):
        write_snapshot(tmp_path / "missing" / "snapshot", STATE, [])
    directory = tmp_path / "snapshot"
    directory.mkdir()
    with pytest.raises(WsqueueError, match="cannot write the snapshot: Is a directory"):
        write_snapshot(directory, STATE, [])
    assert names(tmp_path) == ["snapshot"]
    with pytest.raises(ConfigError, match="cannot take the snapshot: Is a directory"):
        take_snapshot(directory)

    def broken(_file: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(snapshot, "sync_directory", broken)
    write = tmp_path / "other"
    with pytest.raises(WsqueueError, match="cannot write the snapshot: Input/output error"):
        write_snapshot(write, STATE, [])
    with pytest.raises(StorageError, match="cannot take the snapshot: Input/output error"):
        take_snapshot(write)
