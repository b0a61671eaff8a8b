"""The script that unpacks a Python on a host: whole and root's own, or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "ansible" / "roles" / "wsqueue" / "files" / "unpack_python.sh"
WORKS = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
FAILS = "#!/bin/sh\necho 'no such library' >&2\nexit 1\n"


def entry(name: str, mode: int = 0o755, **fields: object) -> tarfile.TarInfo:
    """Return an entry of an archive that belongs to another user."""
    info = tarfile.TarInfo(name)
    info.mode, info.uid, info.gid = mode, 4711, 4711
    for field, value in fields.items():
        setattr(info, field, value)
    return info


class Host:
    """A directory with releases and Pythons."""

    def __init__(self, directory: Path) -> None:
        self.outside = directory / "outside"
        self.releases, self.pythons = directory / "wsqueue" / "releases", directory / "wsqueue" / "python"
        self.archive = directory / "wsqueue" / "python.tar.gz"
        for path in (self.outside, self.releases, self.pythons):
            path.mkdir(parents=True)

    def unpack(
        self, program: str, *others: tuple[tarfile.TarInfo, bytes], name: str = "new", expected: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Upload an archive with a program that is Python, and unpack it."""
        files = [(entry("python/bin/python3"), program.encode()), *others]
        with tarfile.open(self.archive, "w:gz") as archive:
            for info, data in files:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        found = hashlib.sha256(self.archive.read_bytes()).hexdigest()
        return subprocess.run(
            [
                "sh",
                "-c",
                SCRIPT.read_text(),
                "sh",
                self.archive,
                expected or found,
                self.pythons / name,
                self.releases,
            ],
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_nobody_but_its_owner_may_change_a_python(host: Host) -> None:
    library = entry("python/lib/library.so", 0o6777)
    secret = entry("python/lib/secret.py", 0o600)
    told = host.unpack(WORKS, (library, b"code"), (secret, b"text"))
    assert (told.returncode, told.stderr) == (0, "")
    assert list(host.pythons.iterdir()) == [host.pythons / "new"]
    assert not host.archive.exists()
    modes = {
        path.relative_to(host.pythons / "new").as_posix(): path.stat().st_mode & 0o7777
        for path in (host.pythons / "new").rglob("*")
    }
    assert modes == {
        "bin": 0o755,
        "bin/python3": 0o755,
        "lib": 0o755,
        "lib/library.so": 0o755,
        "lib/secret.py": 0o644,
    }
    assert {path.stat().st_uid for path in host.pythons.rglob("*")} == {os.getuid()}


@pytest.mark.parametrize("attack", ["parent", "absolute", "link"])
def test_nothing_is_written_outside(host: Host, attack: str) -> None:
    target = str(host.outside)
    others = {
        "parent": [(entry("python/../../../outside/file"), b"text")],
        "absolute": [(entry(f"{target}/file"), b"text")],
        "link": [
            (entry("python/way", type=tarfile.SYMTYPE, linkname=target), b""),
            (entry("python/way/file"), b"text"),
        ],
    }[attack]
    host.unpack(WORKS, *others)
    assert list(host.outside.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "expected", "said"),
    [(FAILS, "", "no such library"), (WORKS, "f" * 64, f", and the file that was checked had {'f' * 64}")],
)
def test_a_python_that_does_not_work_is_not_there(host: Host, program: str, expected: str, said: str) -> None:
    told = host.unpack(program, expected=expected)
    assert told.returncode != 0
    assert told.stderr.splitlines()[-1].endswith(said)
    assert list(host.pythons.iterdir()) == []
    assert not host.archive.exists()


def test_pythons_that_run_no_release_go(host: Host) -> None:
    for name in ("used", "unused"):
        assert host.unpack(WORKS, name=name).returncode == 0
        release = host.releases / name
        release.mkdir()
        (release / "python").symlink_to(host.pythons / name / "bin" / "python3")
    (host.releases / "unused" / "python").unlink()
    assert host.unpack(WORKS).returncode == 0
    assert {path.name for path in host.pythons.iterdir()} == {"used", "new"}
