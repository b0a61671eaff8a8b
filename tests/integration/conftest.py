"""Nodes and their log for every integration test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.certificates import Authority
from ..support.nodes import BILLING, WATCH, Log, Nodes, write_key


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """Return the log of wsqueue; a test in which it logs an internal error fails."""
    logger = logging.getLogger("wsqueue")
    handler, level = Log(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
    errors = handler.lines("", logging.ERROR)
    assert [error for error in errors if not error.startswith("reload refused ")] == []


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Return no nodes; those that the test starts end after it."""
    made = Nodes(tmp_path)
    yield made
    await made.stop()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return an authority with its files in the directory of the test."""
    return Authority(tmp_path)


@pytest.fixture
def clients(tmp_path: Path) -> list[dict[str, Any]]:
    """Return clients as a configuration has them."""
    named: list[dict[str, Any]] = [
        {"name": "billing", "publish": ["orders/*"], "subscribe": ["news"]},
        {"name": "watch", "status": True},
    ]
    for client, key in zip(named, (BILLING, WATCH), strict=True):
        client["key_file"] = f"{client['name']}.key"
        write_key(tmp_path, str(client["name"]), key)
    return named
