"""The script that makes a release of a zipapp: it takes the place of another only when it works."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "ansible" / "roles" / "wsqueue" / "files" / "unpack.py"
WORKS = "print(1)"
FAILS = "import sys; sys.exit('no such library')"
SHOWS_ITS_FILE = "print((lambda: 0).__code__.co_filename)"


class Host:
    """A directory with releases."""

    def __init__(self, directory: Path) -> None:
        self.releases = directory
        self.release, self.zipapp = directory / "1.0-abc", directory / "1.0-abc.pyz"

    def unpack(self, program: str, expected: str = "") -> subprocess.CompletedProcess[str]:
        """Upload a zipapp and unpack it."""
        with zipfile.ZipFile(self.zipapp, "w") as archive:
            archive.writestr("site-packages/wsqueue/__init__.py", "")
            archive.writestr("site-packages/wsqueue/__main__.py", program)
        found = hashlib.sha256(self.zipapp.read_bytes()).hexdigest()
        return subprocess.run(
            [sys.executable, "-I", SCRIPT, self.zipapp, expected or found, self.release],
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self) -> str:
        """Return the output of the release, as its compiled code writes it."""
        [compiled] = self.release.rglob("__main__.*.pyc")
        return subprocess.run(
            [sys.executable, compiled], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_release_is_compiled_read_only_and_has_checksums(host: Host) -> None:
    told = host.unpack(SHOWS_ITS_FILE)
    assert (told.returncode, told.stderr) == (0, "")
    assert list(host.releases.iterdir()) == [host.release]
    assert host.run() == f"{host.release}/site-packages/wsqueue/__main__.py"
    assert [path for path in host.release.rglob("*") if path.stat().st_mode & 0o222] == []
    check = ["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=host.release, check=False).returncode == 0
    noted = (host.release / "SHA256SUMS").read_text()
    assert "  ./site-packages/wsqueue/__main__.py\n" in noted
    assert noted.count("\n") == 4


def test_the_rest_of_a_run_that_broke_off_has_no_part_in_it(host: Host) -> None:
    rest = Path(f"{host.release}.part")
    rest.mkdir()
    (rest / "rest").touch()
    assert host.unpack(WORKS).returncode == 0
    assert not (host.release / "rest").exists()
    assert not rest.exists()


def test_a_damaged_release_is_replaced(host: Host) -> None:
    assert host.unpack(FAILS.replace("sys.exit", "print")).returncode == 0
    assert host.unpack(WORKS).returncode == 0
    assert host.run() == "1"
    assert list(host.releases.iterdir()) == [host.release]


@pytest.mark.parametrize(
    ("program", "expected", "said"),
    [
        (FAILS, "", "no such library"),
        ("no Python", "", "it cannot be compiled"),
        (WORKS, "f" * 64, f", and the file that was checked had {'f' * 64}"),
    ],
)
def test_a_host_keeps_its_release_when_another_does_not_work(
    host: Host, program: str, expected: str, said: str
) -> None:
    assert host.unpack(WORKS).returncode == 0
    told = host.unpack(program, expected)
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].endswith(said)
    assert host.run() == "1"
    assert list(host.releases.iterdir()) == [host.release]
