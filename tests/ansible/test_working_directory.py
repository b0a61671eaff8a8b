"""All that the roles install and run imports no modules from the working directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from wsqueue.version import __version__

from ..support.processes import clean_environment

ROLES = ROOT / "ansible" / "roles"
WRAPPER = ROLES / "wsqueue_demo" / "templates" / "wsqueue.j2"
UNITS = ROOT / "systemd"


def here(text: str) -> str:
    """Return text with the Python and the sources of this test for those of a release."""
    text = re.sub(r"/\S+/python3?(?= -m)", sys.executable, text)
    return text.replace("/opt/wsqueue/current/site-packages", os.fspath(ROOT))


def wrapper(directory: Path) -> list[str]:
    """Return the command of the role."""
    program = directory / "wsqueue"
    program.write_text(here(WRAPPER.read_text()))
    return ["sh", str(program), "--version"]


def unit(_directory: Path) -> list[str]:
    """Return the command of the unit of producers, in its environment."""
    settings = re.findall(
        r"^Environment=(.+)", (UNITS / "wsqueue-.service.d" / "node.conf").read_text(), re.MULTILINE
    )
    (start,) = re.findall(
        r"^ExecStart=(.+) producer ", (UNITS / "wsqueue-producer@.service").read_text(), re.MULTILINE
    )
    return ["env", *here(" ".join(settings)).split(), *here(start).split(), "--version"]


def check_of_a_node(_directory: Path) -> list[str]:
    """Return the command that checks the file of an instance before it is there."""
    return check_of("wsqueue_node")


def check_of_clients(_directory: Path) -> list[str]:
    """Return the same of the file for clients."""
    return check_of("wsqueue_demo")


def check_of(role: str) -> list[str]:
    text = " ".join((ROLES / role / "tasks" / "configure.yml").read_text().split())
    (check,) = re.findall(r"validate: >- (.+?) check-config %s", text)
    return [*here(check).split(), "--version"]


def test_each_task_that_runs_a_release_says_so() -> None:
    files = [file for file in ROLES.rglob("*.yml") if "PYTHONPATH" in file.read_text()]
    assert len(files) > 5
    for file in files:
        text = file.read_text()
        assert text.count("PYTHONPATH") == text.count("PYTHONSAFEPATH"), file


@pytest.mark.parametrize("command_of", [wrapper, unit, check_of_a_node, check_of_clients])
def test_no_module_comes_from_the_working_directory(
    tmp_path: Path, command_of: Callable[[Path], list[str]]
) -> None:
    command = command_of(tmp_path)
    place = tmp_path / "elsewhere"
    place.mkdir()
    for module in ("click", "msgspec", "wsqueue"):
        (place / f"{module}.py").write_text("raise SystemExit('imported from the working directory')\n")
    environment = clean_environment()
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert __version__ in done.stdout
