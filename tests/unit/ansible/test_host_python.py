"""The filter that says which Python runs the release on a host, without Ansible."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from scripts.wheels import OLDEST_MINOR
from tests.support.paths import ROOT

_SPEC = importlib.util.spec_from_file_location(
    "host_python", ROOT / "ansible" / "plugins" / "filter" / "host_python.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
module: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(module)

MISSING = {"rc": 2, "stdout": "", "msg": "No such file or directory"}


def told(minor: int, path: str) -> dict[str, Any]:
    """Return the answer of a Python."""
    return {"rc": 0, "stdout": f"{minor}\nx86_64\n{path}"}


def facts(answer: dict[str, Any], **settings: str) -> Any:
    """Return the findings about the host h1, an arm64 board."""
    known = {"name": "h1", "machine": "aarch64", "python": "/usr/bin/python3"}
    none = {"python_package": "", "python_archive": "", "python_sha256": ""}
    return module.host_python(answer, known | none | settings)


def archive(directory: Path, *names: str) -> dict[str, str]:
    """Write an archive with empty files, and return the settings that name it."""
    file = directory / "python.tar.gz"
    with tarfile.open(file, "w:gz") as written:
        for name in names:
            written.addfile(tarfile.TarInfo(name), io.BytesIO())
    return {"python_archive": str(file), "python_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_a_python_that_is_there_answers_for_itself() -> None:
    expected = {"target": "cp313-x86_64", "there": True, "problem": ""}
    assert facts(told(13, "/usr/bin/python3.13")) == expected
    # Whatever would be installed otherwise.
    assert facts(told(13, "/usr/bin/python3.13"), python_package="python3.12") == expected


def test_the_oldest_python_is_that_of_the_build() -> None:
    assert module.OLDEST_MINOR == OLDEST_MINOR
    assert not facts(told(OLDEST_MINOR, "/usr/bin/python3.11"))["problem"]


@pytest.mark.parametrize(
    ("answer", "settings", "said"),
    [
        (
            told(9, "/usr/bin/python3.9"),
            {},
            "/usr/bin/python3 of h1 is Python 3.9, and wsqueue needs 3.11 or later; set wsqueue_",
        ),
        (
            {"rc": 0, "stdout": ""},
            {"python": "/bin/true"},
            "/bin/true of h1 is no Python; set wsqueue_python_package",
        ),
        ({"rc": 0, "stdout": "Hello\nx\ny"}, {}, "/usr/bin/python3 of h1 is no Python; set"),
        (MISSING, {}, "h1 has no Python at /usr/bin/python3; set wsqueue_python_package"),
        (
            told(12, "/home/me/python3.12"),
            {},
            "/usr/bin/python3 of h1 is /home/me/python3.12, and the services run programs beneath /usr/bin/",
        ),
        (
            MISSING,
            {"python_package": "python3.9", "python": "/usr/bin/python3.9"},
            "/usr/bin/python3.9 of h1 is Python 3.9",
        ),
        (
            MISSING,
            {"python_package": "python312", "python": "/usr/bin/python312"},
            "The package python312 has a Python of unknown version, because wsqueue_python of h1 is",
        ),
        (
            MISSING,
            {"python_package": "python3.12", "python": "/opt/python3.12"},
            "/opt/python3.12 of h1 is /opt/python3.12, and the services run programs beneath",
        ),
    ],
)
def test_a_python_that_cannot_run_the_release(
    answer: dict[str, Any], settings: dict[str, str], said: str
) -> None:
    assert said in facts(answer, **settings)["problem"]


def test_a_package_tells_its_python_before_it_is_installed() -> None:
    expected = {"target": "cp312-aarch64", "there": False, "problem": ""}
    for package in ("python3.12", "python312"):
        assert facts(MISSING, python_package=package, python="/usr/bin/python3.12") == expected


def test_an_archive_tells_its_python_before_it_is_unpacked(tmp_path: Path) -> None:
    settings = archive(
        tmp_path, "python/lib/python3.11/os.py", "python/bin/python3.12-config", "python/bin/python3.12"
    )
    python = "/opt/wsqueue/python/0123456789ab/bin/python3"
    expected = {"target": "cp312-aarch64", "there": False, "problem": ""}
    assert facts(MISSING, python=python, **settings) == expected


def test_an_archive_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    settings = archive(tmp_path, "bin/python3.12", "a/b/bin/python3.12")
    file, found = settings["python_archive"], settings["python_sha256"]
    assert facts(MISSING, **settings)["problem"].startswith(f"{file} has no relocatable Python")
    other = settings | {"python_sha256": "f" * 64}
    assert (
        f"{file} has the SHA-256 {found}, and wsqueue_python_sha256 says ffff"
        in facts(MISSING, **other)["problem"]
    )
    without = settings | {"python_sha256": ""}
    assert f"SHA-256 {found}, and wsqueue_python_sha256 is not set" in facts(MISSING, **without)["problem"]
    Path(file).write_text("no archive")
    damaged = settings | {"python_sha256": hashlib.sha256(b"no archive").hexdigest()}
    assert (
        f"{file}, which wsqueue_python_archive names, cannot be read: "
        in facts(MISSING, **damaged)["problem"]
    )
    Path(file).unlink()
    assert (
        f"{file}, which wsqueue_python_archive names, cannot be read: "
        in facts(MISSING, **settings)["problem"]
    )


def test_the_places_of_pythons_are_those_where_services_may_run_programs() -> None:
    settings = (ROOT / "systemd" / "wsqueue-.service.d" / "node.conf").read_text()
    [line] = [line for line in settings.splitlines() if line.startswith("ExecPaths=")]
    allowed = {path.removeprefix("-") for path in line.removeprefix("ExecPaths=").split()}
    assert {place.rstrip("/") for place in module.EXECUTABLE} <= allowed
