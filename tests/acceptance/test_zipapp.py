"""The zipapp runs by itself, and the same source gives the same bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from wsqueue.cli.main import main
from wsqueue.version import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SOURCES = ("wsqueue", "scripts", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def zipapps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Build two, each in a directory of its own, which is in no git checkout."""
    found = []
    for name in ("first", "second place"):
        directory = tmp_path_factory.mktemp(name)
        for source in SOURCES:
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, directory / source)
        subprocess.run([directory / "scripts" / "zipapp", Path(sys.prefix)], check=True, timeout=100)
        (zipapp,) = (directory / "dist").iterdir()
        found.append(zipapp)
    return found


def run(zipapp: Path, *arguments: str, stdin: str = "") -> str:
    # With the interpreter outside the virtual environment, which has nothing of ours.
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    environment = {"HOME": str(zipapp.parent), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [python, "-I", zipapp, *arguments],
        input=stdin,
        cwd=zipapp.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_same_source_gives_the_same_bytes(zipapps: list[Path]) -> None:
    first, second = zipapps
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_every_command_is_there(zipapps: list[Path]) -> None:
    assert run(zipapps[0], "--version") == f"wsqueue {__version__}\n"
    text = run(zipapps[0], "--help")
    for command in main.commands:
        assert command in text
        assert "Usage:" in run(zipapps[0], command, "--help")


def test_a_cluster_runs_from_it(zipapps: list[Path]) -> None:
    output = run(zipapps[0], "local", "--port", "0", "--demo", "news", stdin="hello there\n")
    assert "14 checks, 0 failed\nhello there\n" in output


def test_a_bench_runs_from_it(zipapps: list[Path]) -> None:
    assert "\nlost " in run(zipapps[0], "bench", "--duration", "0.2", "--warm-up", "0")
