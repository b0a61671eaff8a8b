"""Some schedules of the fault suite, always the same: `make test-faults` runs many more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.cluster import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]

SCHEDULES = 30
GOOD = re.compile(
    r"^\d+ schedules with \d+ faults, 0 bad: .* lost 0, duplicated 0, unexpected 0, out of order 0,",
    re.MULTILINE,
)


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.faults", "--directory", str(directory), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_what_is_promised_is_kept(tmp_path: Path) -> None:
    result = run(tmp_path / "kept", "--seed", "1", "--schedules", str(SCHEDULES))
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert GOOD.search(result.stdout), result.stdout
    assert not (tmp_path / "kept").exists()
