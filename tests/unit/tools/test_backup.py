"""Backups of logs: made while the log is written, put back, and refused where they would do harm."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from wsqueue.config.model import RetentionMode
from wsqueue.errors import ConfigError, WsqueueError
from wsqueue.log.archive import FILE_NAME
from wsqueue.log.schema import PAGE_BYTES
from wsqueue.log.snapshot import SNAPSHOT_NAME
from wsqueue.log.states import State
from wsqueue.tools import backup as tool

from ...support.messages import append_one, packed
from ...support.stores import Logs, batch, limits
from ...support.toml import write_toml

pytestmark = pytest.mark.anyio

MODES: list[RetentionMode] = ["memory", "sqlite"]
NAMES = {"memory": SNAPSHOT_NAME, "sqlite": FILE_NAME}


def silent(_text: str) -> None:
    """Show no progress."""


@contextlib.asynccontextmanager
async def running(mode: str, directory: Path) -> AsyncIterator[Logs]:
    logs = Logs(config=limits(mode=mode, directory=directory))
    await logs.store.open()
    try:
        yield logs
    finally:
        await logs.store.close()


async def kept(logs: Logs, topic: str = "news") -> list[str]:
    """Return the numbers of the batches that are kept."""
    records = await logs.store.read(logs.store.topic(topic), 0, 2**40)
    return [str(record.number) for record in records]


def back_up(what: Path, target: Path, *, replace: bool = False, say: tool.Say = silent) -> str:
    return str(tool.back_up(what, target, replace=replace, say=say))


def restore(backup: Path, where: Path, **options: Any) -> tuple[str, Path | None]:
    options = {"mode": None, "replace": False, "say": silent} | options
    content, aside = tool.restore(backup, where, **options)
    return str(content), aside


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


async def made(directory: Path, mode: str = "sqlite", batches: int = 3) -> Path:
    """Return the directory of a log that is closed."""
    async with running(mode, directory) as logs:
        await logs.stored(*(batch(number) for number in range(1, batches + 1)))
    return directory


async def test_a_log_that_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backup is the log at one moment, and the log goes on."""
    monkeypatch.setattr(tool, "STEP_PAGES", 1)
    target = tmp_path / "backup"
    async with running("sqlite", tmp_path / "log") as logs:
        await logs.stored(*(batch(number) for number in range(1, 101)))
        said: list[str] = []

        def write(text: str) -> None:
            said.append(text)
            with contextlib.closing(sqlite3.connect(tmp_path / "log" / FILE_NAME)) as other, other:
                number = "INSERT INTO number (topic, publisher, number) VALUES (1, ?, 1)"
                other.execute(number, (f"after step {len(said)}",))

        content = back_up(tmp_path / "log", target, say=write)
        assert content.startswith("100 messages on 1 topics, the newest of 1970-01-01 00:16:40 UTC")
        assert len(said) > 5
        assert said[0].startswith("copied 0 of ")
        await logs.stored(batch(101))
        assert len(await kept(logs)) == 101
    with contextlib.closing(sqlite3.connect(target)) as copy:
        assert copy.execute("SELECT count(*) FROM number").fetchone() == (1,)
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert names(tmp_path) == ["backup", "log"]
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("to", MODES)
@pytest.mark.parametrize("mode", MODES)
async def test_a_backup_that_is_put_back(mode: str, to: RetentionMode, tmp_path: Path) -> None:
    log, target, other = await made(tmp_path / "log", mode), tmp_path / "backup", tmp_path / "other"
    async with running(mode, log) as logs:
        version = await logs.store.change_state("news", "a", b"one", 0)
    back_up(log, target)
    async with running(mode, log) as logs:
        await logs.store.change_state("news", "a", b"two", version)
        epoch = logs.store.epochs.current
        await logs.stored(batch(4), batch(5))
    other.mkdir()
    content, aside = restore(target, other, mode=to)
    assert (content.partition(",")[0], aside) == ("3 messages on 1 topics", None)
    assert names(other) == sorted([NAMES[to], "lock"])
    async with running(to, other) as logs:
        assert await kept(logs) == ["1", "2", "3"]
        assert await logs.store.state("news", "a") == State(version, b"one")
        assert logs.store.epochs.number(epoch.id) is None
        # Subscribers that have read any part of the log are told.
        assert logs.store.epochs.restored == logs.store.epochs.current.number - 1
        # A batch that a publisher sends again is stored if the backup lacks it, and only then.
        again = batch(3), batch(4), batch(6, after=5), batch(5, after=4), batch(6, after=5), batch(7)
        await logs.stored(*again)
        assert [logs.outcome_of(one) for one in again] == [
            "a repeat",
            "stored at 3",
            "after_refused",
            "stored at 4",
            "stored at 5",
            "stored at 6",
        ]
    # It is told after a further start too.
    async with running(to, other) as logs:
        assert logs.store.epochs.restored == logs.store.epochs.current.number - 2


async def test_a_publisher_that_is_far_ahead_of_a_backup(tmp_path: Path) -> None:
    """Its confirmed batches are lost with the disk; those that it publishes from now on are not refused."""
    log, target = await made(tmp_path / "log"), tmp_path / "backup"
    back_up(log, target)
    restore(target, log, replace=True)
    async with running("sqlite", log) as logs:
        under_way = batch(71, after=70), batch(72, after=71)
        await logs.stored(*under_way)
        assert [logs.outcome_of(one) for one in under_way] == ["after_refused"] * 2
        later = batch(73), batch(74, after=73)
        await logs.stored(*later)
        assert [logs.outcome_of(one) for one in later] == ["stored at 3", "stored at 4"]


async def test_a_log_that_is_there_is_set_aside(tmp_path: Path) -> None:
    log, target = await made(tmp_path / "log"), tmp_path / "backup"
    back_up(log, target)
    async with running("sqlite", log) as logs:
        await logs.stored(batch(4))
    before = (log / FILE_NAME).read_bytes()
    with pytest.raises(WsqueueError, match="there is a log; --replace sets it aside"):
        restore(target, log)
    assert ((log / FILE_NAME).read_bytes(), names(log)) == (before, [FILE_NAME, "lock"])
    _, aside = restore(target, log, replace=True)
    assert aside is not None
    assert aside.read_bytes() == before
    assert aside.name.startswith(f"{FILE_NAME}.replaced-")
    async with running("sqlite", log) as logs:
        assert await kept(logs) == ["1", "2", "3"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    restore(aside, elsewhere)
    async with running("sqlite", elsewhere) as logs:
        assert await kept(logs) == ["1", "2", "3", "4"]


async def test_a_log_that_was_not_closed_is_set_aside_with_its_write_ahead_log(tmp_path: Path) -> None:
    target = tmp_path / "backup"
    async with running("sqlite", tmp_path / "log") as logs:
        await logs.stored(batch(1))
        # As a crash leaves it.
        shutil.copytree(tmp_path / "log", tmp_path / "crashed")
        back_up(tmp_path / "log", target)
        await logs.stored(batch(2))
    assert (tmp_path / "crashed" / f"{FILE_NAME}-wal").stat().st_size
    back_up(tmp_path / "crashed", tmp_path / "second")
    _, aside = restore(target, tmp_path / "crashed", replace=True)
    back_up(aside or Path(), tmp_path / "third")
    for file in (target, tmp_path / "second", tmp_path / "third"):
        directory = tmp_path / f"of {file.name}"
        directory.mkdir()
        restore(file, directory)
        async with running("sqlite", directory) as logs:
            assert await kept(logs) == ["1"]


@pytest.mark.parametrize("mode", MODES)
async def test_no_log_is_put_in_the_place_of_one_in_use(mode: RetentionMode, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    back_up(await made(tmp_path / "first"), target)
    log = tmp_path / "log"
    async with running(mode, log) as logs:
        await logs.stored(batch(9))
        with pytest.raises(ConfigError, match="a consumer uses it; expected that it is stopped"):
            restore(target, log, mode=mode, replace=True)
        with pytest.raises(ConfigError, match="another process uses it"):
            await Logs(config=limits(mode=mode, directory=log)).store.open()
    async with running(mode, log) as logs:
        assert await kept(logs) == ["9"]


async def test_the_configuration_says_where_the_log_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, target = tmp_path / "consumer.toml", tmp_path / "backup"
    common = 'role = "consumer"\nlisten = ["127.0.0.1:0"]\n[retention]\n'
    config.write_text(f'{common}mode = "sqlite"\ndirectory = "log"\n')
    await made(tmp_path / "log")
    back_up(config, target)
    restore(target, config, replace=True)
    with pytest.raises(ConfigError, match="the mode is sqlite, not memory"):
        restore(target, config, mode="memory")
    config.write_text(f'{common}mode = "memory"\ndirectory = "new"\n')
    with pytest.raises(WsqueueError, match="leaves a file here when it is stopped"):
        back_up(config, tmp_path / "none")
    restore(target, config)
    assert names(tmp_path / "new") == ["lock", SNAPSHOT_NAME]
    config.write_text(f'{common}mode = "sqlite"\n')
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    for failing in (lambda: back_up(config, tmp_path / "none"), lambda: restore(target, config)):
        with pytest.raises(ConfigError, match="expected the directory of the log") as caught:
            failing()
        assert caught.value.key == "retention.directory"
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "log"))
    back_up(config, tmp_path / "of systemd")
    config.write_text('role = "producer"\nlisten = ["127.0.0.1:0"]\nconsumers = ["127.0.0.1:1/producer"]\n')
    with pytest.raises(ConfigError, match="expected 'consumer', found 'producer'"):
        back_up(config, tmp_path / "none")


async def test_a_target_that_is_there_stays(tmp_path: Path) -> None:
    log, target = await made(tmp_path / "log"), tmp_path / "backup"
    target.write_text("precious")
    with pytest.raises(WsqueueError, match="it is there already; expected another name, or --replace"):
        back_up(log, target)
    assert target.read_text() == "precious"
    back_up(log, target, replace=True)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(WsqueueError, match="it is no regular file; expected the name of a file"):
        back_up(log, tmp_path / "fifo", replace=True)
    assert (tmp_path / "fifo").is_fifo()
    (tmp_path / "fifo").unlink()
    with pytest.raises(WsqueueError, match="it is a directory; expected the name of a file"):
        back_up(log, tmp_path)
    for replace in (False, True):
        with pytest.raises(WsqueueError, match="it is the log itself; expected another name"):
            back_up(log, log / FILE_NAME, replace=replace)
    with pytest.raises(WsqueueError, match="cannot write the backup: No such file or directory"):
        back_up(log, tmp_path / "none" / "backup")
    assert names(tmp_path) == ["backup", "log"]


async def test_a_target_that_comes_meanwhile_stays(tmp_path: Path) -> None:
    log, target = await made(tmp_path / "log"), tmp_path / "backup"

    def write(_text: str) -> None:
        target.write_text("precious")

    with pytest.raises(WsqueueError, match="cannot write the backup: File exists"):
        back_up(log, target, say=write)
    assert (target.read_text(), names(tmp_path)) == ("precious", ["backup", "log"])


async def test_what_is_no_log(tmp_path: Path) -> None:
    log = await made(tmp_path / "log")
    good, target, empty = tmp_path / "good", tmp_path / "target", tmp_path / "empty"
    back_up(log, good)
    empty.mkdir()
    data = good.read_bytes()
    files: dict[str, tuple[bytes, str]] = {
        "text": (b"no log, whatever it is\n", "does not begin as a file of SQLite"),
        "nothing": (b"", "does not begin as a file of SQLite"),
        "cut": (data[: len(data) // 2], "database disk image is malformed"),
        "spoiled": (
            data[:PAGE_BYTES] + b"\xff" * PAGE_BYTES + data[2 * PAGE_BYTES :],
            "it is damaged|is malformed",
        ),
    }
    for name, (content, problem) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WsqueueError, match=problem):
            restore(tmp_path / name, empty)
        with pytest.raises(WsqueueError):
            back_up(tmp_path / name, target)
    for pragma, problem in (
        ("application_id = 7", "it belongs to another program"),
        ("user_version = 77", "it has version 77, and this wsqueue reads version"),
    ):
        other = tmp_path / "other"
        shutil.copy(good, other)
        with contextlib.closing(sqlite3.connect(other)) as connection:
            connection.execute(f"PRAGMA {pragma}")
        with pytest.raises(WsqueueError, match=problem):
            restore(other, empty)
        with pytest.raises(WsqueueError, match=problem):
            back_up(other, target)
    os.mkfifo(tmp_path / "fifo")
    for failing, problem in (
        (lambda: restore(tmp_path / "fifo", empty), "it is no regular file"),
        (lambda: back_up(tmp_path / "fifo", target), "it is no regular file"),
        (lambda: restore(tmp_path, empty), "it is no regular file"),
        (lambda: restore(tmp_path / "none", empty), "cannot read it: No such file or directory"),
        (lambda: back_up(tmp_path / "none", target), "cannot read it: No such file or directory"),
        (lambda: restore(good, tmp_path / "none"), "cannot read it: No such file or directory"),
        (lambda: back_up(empty, target), "there is no archive.sqlite and no snapshot.sqlite3"),
    ):
        with pytest.raises((WsqueueError, ConfigError), match=problem):
            failing()
    shutil.copy(log / FILE_NAME, log / SNAPSHOT_NAME)
    with pytest.raises(WsqueueError, match="it has the logs of both modes; expected "):
        back_up(log, target)
    assert not target.exists()
    assert names(empty) == ["lock"]


@pytest.mark.parametrize("moment", ["copied", "checking"])
async def test_an_interrupt_leaves_nothing(tmp_path: Path, moment: str) -> None:
    log, target = await made(tmp_path / "log"), tmp_path / "backup"

    def interrupt(text: str) -> None:
        if text.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(log, target, say=interrupt)
    assert names(tmp_path) == ["log"]


async def test_a_full_disk(small_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("log")
    async with running("sqlite", log) as logs:
        await logs.stored(append_one("news", packed("x" * 2_000_000)))
    with pytest.raises(WsqueueError, match="cannot write the backup: the disk "):
        back_up(log, small_disk / "backup")
    assert names(small_disk) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_restored_log_belongs_to_the_owner_of_its_directory(tmp_path: Path) -> None:
    log, target, other = await made(tmp_path / "log"), tmp_path / "backup", tmp_path / "other"
    back_up(log, target)
    other.mkdir(mode=0o700)
    os.chown(other, 12345, 12346)
    restore(target, other)
    for file in other.iterdir():
        status = file.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12345, 12346, 0o600)


async def test_a_log_on_nats_servers(tmp_path: Path) -> None:
    """The directory of the configuration is not used then, whatever lies there."""
    file = tmp_path / "consumer.toml"
    write_toml(
        file,
        {
            "role": "consumer",
            "listen": ["127.0.0.1:0"],
            "retention.mode": "jetstream",
            "retention.directory": "log",
            "retention.jetstream.servers": ["nats://127.0.0.1:1", "nats://127.0.0.1:2"],
            "retention.jetstream.name": "messages",
        },
    )
    log, target = await made(tmp_path / "log"), tmp_path / "backup"
    back_up(log, target)
    expected = (
        r"consumer\.toml: retention\.mode: the log is on the NATS servers: nats://127\.0\.0\.1:1,"
        r" nats://127\.0\.0\.1:2; expected .* a backup of the streams messages-\*"
    )
    with pytest.raises(ConfigError, match=expected):
        back_up(file, tmp_path / "other")
    with pytest.raises(ConfigError, match=expected):
        restore(target, file, replace=True)
    assert names(tmp_path) == ["backup", "consumer.toml", "log"]
