"""The unit tests pass with another Python than the one that runs this.

`make test-pythons` runs all of them with all Pythons; this runs some with one.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.paths import ROOT

from ..support.labs import BIN, skip_if_the_lab_cannot_run

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]

PATHS = ("tests/unit/net", "tests/unit/client")
"""Most differences of Pythons are in asyncio and ssl; these take 21 seconds of CPU time."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "python", "-I", ROOT / "scripts" / "test-pythons", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_unit_tests_with_python_3_13() -> None:
    result = run("trixie", "--", "--numprocesses=2", *PATHS)
    skip_if_the_lab_cannot_run(result)
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr
    assert re.fullmatch(r"trixie: Python 3\.13\.\d+: \d+ passed.*", result.stdout.splitlines()[-1])


def test_a_test_that_fails_is_not_overlooked() -> None:
    result = run("trixie", "--", "tests/unit/test_that_is_not_there.py")
    skip_if_the_lab_cannot_run(result)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith("trixie: Python 3.13.")


def test_a_suite_that_nobody_has_is_refused() -> None:
    result = run("potato")
    skip_if_the_lab_cannot_run(result)
    assert result.returncode == 1
    assert result.stdout == "potato: A suite is one of bullseye bookworm trixie noble resolute: not potato.\n"
