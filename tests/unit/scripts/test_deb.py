"""The zipapps of which scripts/deb makes no package."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

NAME = "wsqueue-1.0-cp313-x86_64.pyz"


def refusal(*arguments: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-I", ROOT / "scripts" / "deb", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    return line


def test_none_is_named() -> None:
    assert refusal() == "Usage: scripts/deb ZIPAPP [DIRECTORY]"


def test_one_with_another_name(tmp_path: Path) -> None:
    assert refusal(tmp_path / "wsqueue.pyz") == (
        "wsqueue.pyz is no zipapp that a .deb can hold: expected wsqueue-VERSION-cp3XX-MACHINE.pyz for "
        "x86_64 or aarch64"
    )


@pytest.mark.parametrize(("content", "built"), [(None, b"PK"), (b"PK", None), (b"PK", b"P")])
def test_one_that_is_damaged(tmp_path: Path, content: bytes | None, built: bytes | None) -> None:
    zipapp = tmp_path / NAME
    if content is not None:
        zipapp.write_bytes(content)
    if built is not None:
        (tmp_path / f"{NAME}.sha256").write_text(f"{hashlib.sha256(built).hexdigest()}  {NAME}\n")
    directory = tmp_path / "packages"
    assert refusal(zipapp, directory) == (
        f"{zipapp} is not there, or not the file whose sum scripts/zipapp has written beside it"
    )
    assert not directory.exists()
