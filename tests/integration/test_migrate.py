"""A log in a SQLite file moves to a real NATS server, and is the same there."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.messages import append_one, packed
from tests.support.nats_servers import NatsServers
from tests.support.stores import batch, delivered
from tests.support.toml import write_toml
from wsqueue.config.model import JetStream, Retention
from wsqueue.errors import ConfigError, StorageError, WsqueueError
from wsqueue.log.jetstream import JetStreamEngine
from wsqueue.log.mover import Moved
from wsqueue.log.shared import SharedStore
from wsqueue.log.sqlite import SqliteStore
from wsqueue.log.store import AppendChain, Outcome, Store
from wsqueue.tools import migrate as tool

pytestmark = pytest.mark.anyio

STREAMS = 2
TOPICS = 100
BATCHES = 600


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServers]:
    async with NatsServers(tmp_path) as servers:
        yield servers


class Opened:
    """A store that is open, and all that it was told."""

    def __init__(self, retention: Retention) -> None:
        self.outcomes: list[Outcome] = []
        self.store: Store
        if retention.mode == "sqlite":
            self.store = SqliteStore(retention, self.outcomes.extend)
        else:
            engine = JetStreamEngine(retention, max_message_bytes=2**20)
            self.store = SharedStore(retention, self.outcomes.extend, engine=engine, streams=STREAMS)

    async def __aenter__(self) -> Opened:
        await self.store.open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.store.close()

    async def publish(self, *chains: AppendChain) -> list[str]:
        before = len(self.outcomes)
        self.store.append(chains)
        async with asyncio.timeout(30):
            await self.store.settle()
        told = self.outcomes[before:]
        return [one.code or (f"{one.record.offset}" if one.record is not None else "repeat") for one in told]


async def texts(store: Store, topic: str, offset: int) -> list[str]:
    log = store.topic(topic)
    found: list[str] = []
    while offset < log.next:
        for record in await store.read(log, offset, 2**18):
            found += [str(text) for text in delivered(record).messages.unpack()]
            offset = record.end
    return found


def in_file(directory: Path) -> Retention:
    # A topic has more than the first record holds.
    return Retention(mode="sqlite", directory=str(directory), max_bytes=2**30, max_bytes_per_topic=2**30)


def configured(directory: Path, servers: NatsServers, **changes: Any) -> tuple[Path, Retention]:
    """Write the configuration of a consumer, and return its file and its retention."""
    table = servers.settings | {"streams": STREAMS} | changes
    file = directory / "consumer.toml"
    settings: dict[str, object] = {
        "role": "consumer",
        "listen": ["127.0.0.1:0"],
        "retention.mode": "jetstream",
    }
    write_toml(file, settings | {f"retention.jetstream.{key}": value for key, value in table.items()})
    return file, Retention(mode="jetstream", jetstream=JetStream(**table))


async def move(file: Path, *directories: Path, check: bool = False) -> Moved:
    return await tool.migrate(file, directories, check=check, say=lambda _text: None)


async def test_a_log_goes_on_in_the_engine(tmp_path: Path, server: NatsServers) -> None:
    directory = tmp_path / "log"
    async with Opened(in_file(directory)) as old:
        for number in range(1, BATCHES + 1):
            chain = append_one("news", packed(f"{number}" + "x" * 3000), "p", number, number - 1)
            old.store.append(
                [chain, batch(number, max(0, number - TOPICS), topic=f"topic {number % TOPICS}")]
            )
        await old.publish(append_one("news", packed("classic")))
        id_ = old.store.epochs.current.id
        expected = await texts(old.store, "news", 0)
    file, retention = configured(tmp_path, server)
    wanted = await move(file, directory, directory, check=True)
    assert (wanted.topics, wanted.messages) == (TOPICS + 1, 2 * BATCHES + 1)
    moved = await move(file, directory)
    assert moved == wanted
    assert await move(file, directory) == Moved(before=TOPICS + 1)
    async with Opened(retention) as new:
        log = new.store.reading("news", 1)
        opening = new.store.opening(log)
        assert opening is not None
        await opening
        assert (new.store.log_id(log), log.next) == (id_, BATCHES + 1)
        assert await texts(new.store, "news", 250) == expected[250:]
        again = [
            append_one("news", packed("no"), "p", 600, 599),
            append_one("news", packed("yes"), "p", 601, 600),
        ]
        assert await new.publish(*again) == ["repeat", str(BATCHES + 1)]
        assert await new.publish(batch(600, 599, topic="topic 0"), batch(601, 600, topic="topic 0")) == [
            "repeat",
            "6",
        ]
    with pytest.raises(WsqueueError, match="have messages of the topic 'news', and of 1 others, already"):
        await move(file, directory)


async def test_a_check_makes_no_streams(tmp_path: Path, server: NatsServers) -> None:
    directory = tmp_path / "log"
    async with Opened(in_file(directory)) as old:
        await old.publish(batch(1))
    file, _ = configured(tmp_path, server, streams=3)
    assert (await move(file, directory, check=True)).messages == 1
    file, _ = configured(tmp_path, server)
    assert (await move(file, directory)).messages == 1
    # Only now their number is fixed.
    file, _ = configured(tmp_path, server, streams=3)
    with pytest.raises(ConfigError, match="was made with 2 streams"):
        await move(file, directory)


async def test_a_topic_that_another_log_remembers_without_messages(
    tmp_path: Path, server: NatsServers
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    file, retention = configured(tmp_path, server)
    async with Opened(in_file(old)) as log:
        await log.publish(batch(1), batch(2, 1))
    with contextlib.closing(sqlite3.connect(old / "archive.sqlite")) as connection, connection:
        connection.execute("DELETE FROM record")
        connection.execute("UPDATE topic SET first = next, bytes = 0")
    async with Opened(in_file(new)) as log:
        await log.publish(batch(1, publisher="q"))
    assert (await move(file, old)).messages == 0
    assert (await move(file, new)).messages == 1
    async with Opened(retention) as shared:
        assert await shared.publish(batch(1, publisher="q"), batch(2, 1, publisher="q")) == ["repeat", "1"]


async def test_a_log_in_use_and_servers_that_are_down(
    tmp_path: Path, server: NatsServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "log"
    file, _ = configured(tmp_path, server)
    async with Opened(in_file(directory)) as old:
        await old.publish(batch(1))
        with pytest.raises(ConfigError, match="log: a consumer uses it; expected that it is stopped"):
            await move(file, directory)
    with pytest.raises(WsqueueError, match=r"archive.sqlite: there is no such file; expected the directory"):
        await move(file, tmp_path)
    server.kill(0)
    monkeypatch.setattr(tool, "OPEN_SECONDS", 0.5)
    with pytest.raises(StorageError, match="no NATS server answers: nats://127"):
        await move(file, directory)
    # Nothing keeps the consumer from its log.
    async with Opened(in_file(directory)) as old:
        assert await old.publish(batch(1)) == ["repeat"]


async def test_a_crash_before(tmp_path: Path, server: NatsServers) -> None:
    """The last commits are only in the write-ahead log, and the file is checked."""
    directory, copy = tmp_path / "log", tmp_path / "copy"
    copy.mkdir()
    async with Opened(in_file(directory)) as old:
        await old.publish(batch(1), batch(2, 1))
        for part in directory.glob("archive.sqlite*"):
            if not part.name.endswith("-shm"):
                (copy / part.name).write_bytes(part.read_bytes())
    file, _ = configured(tmp_path, server)
    assert (await move(file, copy)).messages == 2
    async with Opened(in_file(copy)) as old:
        assert await old.publish(batch(2, 1)) == ["repeat"]
