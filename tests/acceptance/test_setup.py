"""The virtual environments that make makes, whatever the user's environment says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.environment import without_coverage
from tests.support.hostile_environment import hostile_environment
from tests.support.paths import ROOT
from wsqueue.version import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_what_a_deployment_needs_and_nothing_else(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    environment = without_coverage() | hostile_environment(tmp_path / "home")
    subprocess.run([ROOT / "scripts" / "setup", venv, "deploy"], env=environment, check=True)
    told = subprocess.run(
        [venv / "bin" / "wsqueue", "--version"], stdout=subprocess.PIPE, text=True, check=True
    )
    assert told.stdout == f"wsqueue {__version__}\n"
    programs = {path.name for path in (venv / "bin").iterdir()}
    assert {"ansible-playbook", "ansible-vault", "ansible-galaxy", "shiv"} <= programs
    assert not programs & {"ansible-lint", "molecule", "mypy", "pytest", "ruff", "sphinx-build"}
    [collections] = venv.glob("lib/python3*/site-packages/ansible_collections")
    assert [path.relative_to(collections).as_posix() for path in collections.glob("*/*")] == [
        "community/crypto"
    ]
    size = sum(path.lstat().st_size for path in venv.rglob("*"))
    # 116 MB; all developers' tools take 1.2 GB.
    assert size < 200_000_000


def test_nothing_of_the_environment_reaches_what_make_runs(tmp_path: Path) -> None:
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"include {ROOT}/Makefile\nshow:\n\t@env | grep -E '^(PYTHON|TOPIC)'\n")
    environment = os.environ | {"PYTHONPATH": "/x", "PYTHONHOME": "/x", "PYTHON": "python9", "TOPIC": "news"}
    told = subprocess.run(
        ["make", "--no-print-directory", "-C", str(tmp_path), "show"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert sorted(told.stdout.splitlines()) == ["PYTHON=python9", "TOPIC=news"]
