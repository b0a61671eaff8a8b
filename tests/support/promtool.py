"""Prometheus's own checks of rules and configurations."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .programs import debian_program


def promtool(*arguments: str | Path, text: str | None = None) -> None:
    """Run promtool, and fail with its output unless it accepts everything; skip where there is none."""
    program = debian_program("prometheus", "promtool")
    result = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
