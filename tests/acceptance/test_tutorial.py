"""Every command in the README and the tutorial runs, and prints the output that they show.

Both in one module, so that they take turns: their clusters have the same ports.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SECONDS_AFTER_BACKGROUND = 5
MARK = "@@"
OUTPUT = "output-of-this-test"

BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.\w+)\n")
BACKGROUND = re.compile(r"&(?: \w+=\$!)?$")

NODE_LOG = re.compile(r"^wsqueue (?:consumer|producer) .* 2>>? (\S+)")

# This test runs within `make test`, and the documentation has tests of its own.
LEFT_OUT = ("make test", "make docs")

# These end the jobs that they wait for.
MAY_FAIL = re.compile(r"^kill .*; wait ")


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a document with the output that is shown for it.

    Python code is a command too, and a file where its first line names one.
    """
    for language, block in BLOCK.findall(text):
        if language == "python":
            file = FILE.match(block)
            command = f"cat > {file[1]}" if file else f"{shlex.quote(sys.executable)} -"
            yield f"{command} <<'END'\n{block}END", ""
            continue
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if command not in LEFT_OUT:
                yield command, output


def pattern(output: str) -> str:
    """Return a regular expression for an output in which `...` stands for anything and numbers may differ."""
    lines = []
    for line in output.splitlines():
        if line == "...":
            lines.append(r"(?:.*\n)*?")
        else:
            text = re.sub(r"\d+", r"\\d+", re.escape(line))
            # Columns are as wide as their contents.
            lines.append(re.sub(r"(?:\\ ){2,}", r" +", text.replace(re.escape("..."), ".*")) + r"\n")
    return "".join(lines)


def script(commands: list[tuple[str, str]]) -> str:
    """Return a shell script that runs the commands, with a mark before each and its exit status behind."""
    lines = ["set -u"]
    for command, expected in commands:
        lines += [f"echo {MARK}", command, "status=$?"]
        if BACKGROUND.search(command) and expected:
            # Its last output, up to the first part that may differ, says that it is up.
            last = re.split(r"\d|\.\.\.", expected.splitlines()[-1])[0]
            lines.append(f"until grep -qF -- {shlex.quote(last)} {OUTPUT}; do sleep 0.1; done")
        elif log := NODE_LOG.search(command):
            lines.append(f"until grep -q ' started ' {log[1]}; do sleep 0.1; done")
        elif BACKGROUND.search(command):
            lines.append(f"sleep {SECONDS_AFTER_BACKGROUND}")
        lines.append("echo $status")
    return "\n".join([*lines, "wait"])


def run(text: str, directory: Path) -> tuple[str, str]:
    """Run a script, and return its standard output and standard error."""
    with (directory / OUTPUT).open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", text],
            cwd=directory,
            # This may run within make, and the make in the documents is another one.
            env={
                name: value
                for name, value in os.environ.items()
                if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "WSQUEUE_CONFIG")
            },
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, errors = process.communicate(timeout=180)
        except BaseException:
            # With all that it has started: a cluster that is asked to end does.
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate()
            raise
    return (directory / OUTPUT).read_text(), errors


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md"])
def test_every_command_prints_what_is_shown(document: str, tmp_path: Path) -> None:
    # A directory of its own, so that a developer's files stay as they are, with the virtual environment
    # that runs this test: its sources are older, so that make doesn't make it again.
    for name in ("Makefile", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("pyproject.toml", "requirements/nodes.txt", "scripts/setup", "scripts/pip"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    commands = list(steps((ROOT / document).read_text()))
    assert len(commands) > 5
    output, errors = run(script(commands), tmp_path)
    shown = output.split(f"{MARK}\n")[1:]
    assert len(shown) == len(commands), output + errors
    for (command, expected), one in zip(commands, shown, strict=True):
        report = f"$ {command}\n{one}\n{errors}"
        text, status = one.rstrip("\n").rpartition("\n")[::2]
        assert not expected or re.fullmatch(pattern(expected), f"{text}\n"), report
        assert ("FAIL" in text) == ("FAIL" in expected), report
        assert status == "0" or MAY_FAIL.match(command) or "FAIL" in expected, report
    assert "Traceback" not in errors


def test_an_output_is_compared_but_for_its_numbers() -> None:
    expected = pattern("ok   127.0.0.1:40809/produce answers (4 ms)\n...\n14 checks, 0 failed\n")
    checks = "{} 127.0.0.1:1/produce answers (17 ms)\n{}"
    assert re.fullmatch(expected, checks.format("ok  ", "more\n15 checks, 0 failed\n"))
    assert not re.fullmatch(expected, checks.format("FAIL", "14 checks, 0 failed\n"))
    assert not re.fullmatch(expected, checks.format("ok  ", ""))
    assert not re.fullmatch(pattern("1\n"), "1\n2\n")
