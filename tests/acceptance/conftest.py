"""A cluster of real processes for each test, and none left behind."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.processes import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Return a cluster without nodes; the nodes that the test adds end after it."""
    made = Cluster(tmp_path)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def standing_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster of two consumers and two producers, which all tests of a module share."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start(2, 2)
        yield made
    finally:
        made.stop()


@pytest.fixture
def config(standing_cluster: Cluster) -> str:
    """Return the option that names the configuration."""
    return f"--config={standing_cluster.demo_file}"


@pytest.fixture
def topic() -> str:
    return f"topic {secrets.token_hex(4)}"
