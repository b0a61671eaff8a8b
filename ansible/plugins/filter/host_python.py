"""The filter that says which Python runs the release on a host, and so which zipapp the host needs."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OLDEST_MINOR = 11
"""Minor version of the oldest Python 3 that wsqueue runs on, as in pyproject.toml."""

EXECUTABLE = ("/usr/bin/", "/usr/local/bin/", "/opt/wsqueue/")
"""Where services may have their Python: ExecPaths= in systemd/wsqueue-.service.d/node.conf."""

ANSWER = re.compile(r"([0-9]+)\n(\S+)\n(/.+)")
"""Minor version, machine and real path; another program than Python may say anything."""

IN_ARCHIVE = re.compile(r"(?:\./)?[^/]+/bin/python3\.([0-9]+)")
"""The program in an archive, whose directory at the top the host leaves out."""

WAYS = (
    "set wsqueue_python_package to a package that has one, as python3.12, wsqueue_python_archive to a file "
    "with one, or wsqueue_python to another that is there: docs/deploy.md, section Another Python"
)


class FilterModule:
    """The class that Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return all filters by name."""
        return {"host_python": host_python}


def host_python(told: Mapping[str, Any], settings: Mapping[str, str]) -> dict[str, Any]:
    """Return the `target` of a host, as "cp313-aarch64", and whether its Python is `there` already.

    Besides these, the `problem` with that Python, "" for none.

    Args:
        told: The result of asking it for its minor version, the machine, and its real path, a line each.
        settings: The variables of the host that begin with "wsqueue_python", without "wsqueue_"; its `name`
            and its `machine`.
    """
    there = told.get("rc") == 0
    answer = ANSWER.fullmatch(told["stdout"]) if there else None
    if answer:
        minor, machine, path = answer.groups()
        problem = _problem(int(minor), path, settings)
    elif there:
        minor = machine = ""
        problem = f"{settings['python']} of {settings['name']} is no Python; {WAYS}"
    else:
        machine = settings["machine"]
        minor, problem = _promised(settings)
        problem = problem or _problem(int(minor), settings["python"], settings)
    return {"target": f"cp3{minor}-{machine}", "there": there, "problem": problem}


def _problem(minor: int, path: str, settings: Mapping[str, str]) -> str:
    """Return why a Python cannot run the release, "" if it can."""
    python = f"{settings['python']} of {settings['name']}"
    if minor < OLDEST_MINOR:
        return f"{python} is Python 3.{minor}, and wsqueue needs 3.{OLDEST_MINOR} or later; {WAYS}"
    if not path.startswith(EXECUTABLE):
        places = ", ".join(EXECUTABLE)
        return f"{python} is {path}, and the services run programs beneath {places} only; {WAYS}"
    return ""


def _promised(settings: Mapping[str, str]) -> tuple[str, str]:
    """Return the minor version of the Python that a host will get, or else the problem."""
    if settings["python_archive"]:
        return _archived(Path(settings["python_archive"]), settings["python_sha256"])
    if not settings["python_package"]:
        return "", f"{settings['name']} has no Python at {settings['python']}; {WAYS}"
    if match := re.search(r"/python3\.([0-9]+)$", settings["python"]):
        return match[1], ""
    return "", (
        f"The package {settings['python_package']} has a Python of unknown version, because wsqueue_python "
        f"of {settings['name']} is {settings['python']}; expected its program, as /usr/bin/python3.12"
    )


def _archived(archive: Path, sha256: str) -> tuple[str, str]:
    """Return the minor version of the Python in an archive on the control node, or else the problem."""
    try:
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != sha256:
            said = f"wsqueue_python_sha256 says {sha256}" if sha256 else "wsqueue_python_sha256 is not set"
            return "", f"{archive} has the SHA-256 {found}, and {said}: the file is another one, or damaged"
        with tarfile.open(archive, "r:gz") as opened:
            names = opened.getnames()
    except (OSError, tarfile.TarError) as error:
        return "", f"{archive}, which wsqueue_python_archive names, cannot be read: {error}"
    for name in names:
        if match := IN_ARCHIVE.fullmatch(name):
            return match[1], ""
    return "", f"{archive} has no relocatable Python: expected a program as python/bin/python3.12 in it"
