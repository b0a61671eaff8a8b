"""Programs of Debian that tests run, and that are no part of the virtual environment."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "scripts" / "debian-program"


@functools.cache
def _find(package: str, program: str) -> subprocess.CompletedProcess[str]:
    directory = Path(sys.prefix, "bin")
    return subprocess.run([SCRIPT, package, program, directory], capture_output=True, text=True, check=False)


def debian_program(package: str, program: str) -> str:
    """Return the path of a program of a package; skip the test where there is none."""
    found = _find(package, program)
    if found.returncode == 3:
        pytest.skip(found.stderr.strip())
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()
