"""Every command in the README runs and prints what the README shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SECONDS_AFTER_BACKGROUND = 3
MARK = "@@"

BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps() -> list[tuple[str, str]]:
    """Return each command with the output that the README shows for it."""
    found = []
    for language, block in BLOCK.findall((ROOT / "README.md").read_text()):
        if language == "python":
            found.append((f"{shlex.quote(sys.executable)} - <<'END'\n{block}END", ""))
            continue
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            # This test runs within `make test`.
            if command != "make test":
                found.append((command, output))
    return found


def pattern(output: str) -> str:
    """Return a regular expression for an output in which `...` stands for lines and numbers may differ."""
    lines = [
        r"(?:.*\n)*?" if line == "..." else re.sub(r"\d+", r"\\d+", re.escape(line)) + r"\n"
        for line in output.splitlines()
    ]
    return "".join(lines)


@pytest.mark.slow
def test_every_command_prints_what_the_readme_shows(tmp_path: Path) -> None:
    # A directory of its own, so that a developer's files stay as they are, with the virtual environment
    # that runs this test: what it is made from is older than it, lest make should make it again.
    for name in ("Makefile", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("pyproject.toml", "constraints.txt", "scripts/setup"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    script = ["set -u"]
    for command, _ in steps():
        script += [f"echo {MARK}", command]
        if command.endswith("&"):
            script.append(f"sleep {SECONDS_AFTER_BACKGROUND}")
    script.append("wait")
    result = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        # This may run within make, and the make in the README is another one.
        env={
            name: value
            for name, value in os.environ.items()
            if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    shown = result.stdout.split(f"{MARK}\n")[1:]
    assert len(shown) == len(steps()), result.stdout + result.stderr
    for (command, expected), output in zip(steps(), shown, strict=True):
        assert re.match(pattern(expected), output), f"$ {command}\n{output}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    assert "FAIL" not in result.stdout
