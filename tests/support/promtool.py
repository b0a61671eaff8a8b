"""Prometheus's own checks of rules and configurations."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "scripts" / "promtool"


@functools.cache
def _find() -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, Path(sys.prefix, "bin")], capture_output=True, text=True, check=False)


def promtool(*arguments: str | Path, text: str | None = None) -> None:
    """Run promtool, and fail with its output unless it accepts everything; skip where there is none."""
    found = _find()
    if found.returncode == 3:
        pytest.skip(found.stderr.strip())
    assert found.returncode == 0, found.stderr
    program = found.stdout.strip()
    result = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
