"""The targets of the fuzzer: all inputs that were kept, and a few seconds of new ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.paths import ROOT
from .targets import CORPUS, NAMES, inputs, module

SECONDS = 2

MAX_CORPUS_BYTES = 300 * 1024
"""Size of all inputs in the repository; `make fuzz` keeps the others beside it."""

targets = pytest.mark.parametrize("target", NAMES)


@targets
def test_no_input_that_was_kept_fails(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Targets set it, and it must not stay for other tests.
    monkeypatch.setenv("WSQUEUE_PSK", "")
    for data in inputs(target):
        module(target).check(data)


@targets
@pytest.mark.slow
@pytest.mark.usefixtures("uncovered")
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no package for this machine"
)
def test_a_few_seconds_find_nothing(target: str, tmp_path: Path) -> None:
    arguments = [
        "--seconds",
        str(SECONDS),
        "--seed",
        "1",
        "--failures",
        str(tmp_path),
        "--work",
        str(tmp_path),
    ]
    result = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) <= MAX_CORPUS_BYTES
