"""Move the SQLite logs of stopped consumers to NATS servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ..config.load import load_config
from ..config.model import ConsumerConfig
from ..errors import ConfigError, StorageError, WsqueueError
from ..log.archive import FILE_NAME
from ..log.engine import Engine
from ..log.moved_log import MovedLog
from ..log.mover import Moved, Mover
from ..log.schema import open_beside
from .backup import explained, locked

OPEN_SECONDS = 30.0
"""Time until a server must have answered, and have made the streams; an election takes a third of it."""


async def migrate(
    file: Path, directories: Sequence[Path], *, check: bool, say: Callable[[str], None]
) -> Moved:
    """Move the logs in some directories to the servers of a configuration, and return the counts.

    Args:
        file: Configuration of a consumer with the retention mode `jetstream`.
        directories: Directories of logs in SQLite files.
        check: Whether only to check and count.
        say: Shows the progress.

    Raises:
        ConfigError: The configuration is wrong, has another mode, or a consumer uses a directory.
        WsqueueError: A log can't be read, or a topic can't be moved.
        StorageError: The servers don't answer, or have no room.
    """
    config = load_config(file, ConsumerConfig)
    retention = config.retention
    if retention.mode != "jetstream" or retention.jetstream is None:
        problem = f"the mode is {retention.mode}; expected jetstream, with the servers that the logs move to"
        raise ConfigError(problem, file=str(file), key="retention.mode")
    # Only here, because its package is not needed otherwise.
    from ..log.jetstream import JetStreamEngine  # noqa: PLC0415

    engine = JetStreamEngine(retention, max_message_bytes=config.limits.max_message_bytes, make=not check)
    streams = retention.jetstream.streams
    with contextlib.ExitStack() as stack:
        logs = [_open(directory, stack) for directory in dict.fromkeys(map(Path.resolve, directories))]
        mover = Mover(logs, engine, streams=streams, max_age=retention.max_age_seconds, say=say)
        await mover.survey()
        say("asking the NATS servers")
        try:
            await _connect(engine, retention.jetstream.servers)
            wanted = await mover.check()
            return wanted if check else await mover.move()
        finally:
            await engine.close()


async def _connect(engine: Engine, servers: Sequence[str]) -> None:
    """Open an engine, which itself waits for its servers for ever.

    Raises:
        ConfigError: It can't be used.
        StorageError: No server answers.
    """
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            await engine.open()
    except TimeoutError:
        raise StorageError(f"no NATS server answers: {', '.join(servers)}") from None


def _open(directory: Path, stack: contextlib.ExitStack) -> MovedLog:
    """Open the log in a directory, and keep consumers from it.

    Raises:
        ConfigError: A consumer uses it.
        WsqueueError: There is none, or it can't be read.
    """
    file = directory / FILE_NAME
    if not file.is_file():
        raise WsqueueError(
            f"{file}: there is no such file; expected the directory of a consumer with the retention mode"
            " sqlite"
        )
    with explained(file, "cannot read it"):
        stack.enter_context(locked(directory))
        return MovedLog(file, stack.enter_context(contextlib.closing(open_beside(file))))
