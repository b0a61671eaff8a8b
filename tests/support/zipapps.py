"""Zipapps as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(zipapp: Path, *arguments: str, stdin: str = "") -> str:
    """Return the output of a zipapp, which must succeed, with the directory of the file as its home."""
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
