"""The collection, as a user gets it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.environment import without_coverage
from tests.support.paths import ROOT

from ..support import control_node
from ..support.releases import released


def build(directory: Path) -> Path:
    command: list[str | Path] = [ROOT / "scripts" / "collection", ROOT / ".venv", directory]
    subprocess.run(command, env=without_coverage(), check=True, stdout=subprocess.DEVNULL, timeout=120)
    [file] = directory.glob("wsqueue-wsqueue-*.tar.gz")
    return file


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the collection, install it, and return the directory to which it was installed."""
    directory = tmp_path_factory.mktemp("collections")
    file = released("wsqueue-wsqueue-*.tar.gz") or build(directory)
    # Without its dependencies, which the package ansible has.
    arguments = ("--no-deps", "--offline", "-p", str(directory))
    control_node.run("ansible-galaxy", "collection", "install", file, *arguments, collections=directory)
    return directory
