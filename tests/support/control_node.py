"""Ansible on this machine, as on a control node."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.paths import ROOT

from .environment import without_coverage
from .labs import BIN

PROGRAMS = Path(os.environ.get("WSQUEUE_ANSIBLE", BIN))
"""Directory of Ansible's programs: those of another version, if the environment names them."""

LOCAL = {
    "ansible_connection": "local",
    "ansible_become": False,
    "ansible_python_interpreter": "{{ ansible_playbook_python }}",
}
"""Variables of a host of an inventory that is this machine."""


def try_to_run(
    program: str,
    *arguments: str | Path,
    collections: Path | None = None,
    timeout: float | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs with the project's settings, and return its output.

    Args:
        program: Its name.
        arguments: Its arguments.
        collections: Use the collections there, and nothing of this clone.
        timeout: Seconds after which it is killed.
        variables: More variables of the environment.
    """
    environment = {key: value for key, value in without_coverage().items() if not key.startswith("ANSIBLE_")}
    environment |= {"ANSIBLE_NOCOLOR": "1", "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    if collections is None:
        environment["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    else:
        environment["ANSIBLE_COLLECTIONS_PATH"] = str(collections)
    environment.pop("FORCE_COLOR", None)
    environment |= variables or {}
    return subprocess.run(
        [PROGRAMS / program, *arguments],
        cwd=ROOT if collections is None else collections,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )


def run(program: str, *arguments: str | Path, collections: Path | None = None) -> str:
    """Do the same, and fail unless the program succeeds."""
    result = try_to_run(program, *arguments, collections=collections)
    assert result.returncode == 0, result.stdout[-20_000:]
    return result.stdout
