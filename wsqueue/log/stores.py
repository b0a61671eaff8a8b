"""Make the store that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable

from ..config.model import ConsumerConfig
from .memory import MemoryStore
from .sqlite import SqliteStore
from .store import Done, Store


def make_store(config: ConsumerConfig, done: Done, clock: Callable[[], float]) -> Store:
    """Return the store of a consumer.

    Raises:
        ConfigError: A package that it needs is not installed.
    """
    retention = config.retention
    if retention.mode == "jetstream" and retention.jetstream is not None:
        # Only here, because most consumers do without its package.
        from .jetstream import JetStreamEngine  # noqa: PLC0415
        from .shared import SharedStore  # noqa: PLC0415

        engine = JetStreamEngine(retention, max_message_bytes=config.limits.max_message_bytes)
        return SharedStore(retention, done, clock, engine=engine, streams=retention.jetstream.streams)
    return (SqliteStore if retention.mode == "sqlite" else MemoryStore)(retention, done, clock)
