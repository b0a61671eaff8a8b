"""Nodes and their log for every integration test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ..support.nodes import Log, Nodes


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
