"""`make release`: the files of all packages, their sums and their bill of materials."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from wsqueue.version import __version__

from ..support.commands import SECONDS
from ..support.paths import ROOT
from ..support.releases import release_directory
from ..support.zipapps import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TARGET = f"cp3{sys.version_info[1]}-{os.uname().machine}"
PARTS = ("ansible", "packaging", "requirements", "scripts", "systemd", "wsqueue")
FILES = ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml")
SUMS = "SHA256SUMS"


class Clone:
    """A clone whose only commit has the files of the packages."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in PARTS:
            shutil.copytree(
                ROOT / name, directory / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in FILES:
            shutil.copy(ROOT / name, directory)
        # As in every clone, the packages are not part of the next one.
        (directory / ".gitignore").write_text("/dist/\n__pycache__/\n")
        self.git("init", "--quiet")
        self.commit()

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.directory), "-c", "user.name=a", "-c", "user.email=a@example.com"]
        return subprocess.run(
            [*command, *arguments], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()

    def commit(self) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "Change")

    def build(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", self.directory / "scripts" / "release", *arguments],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def release(request: pytest.FixtureRequest) -> Path:
    if directory := release_directory():
        return directory
    clone: Clone = request.getfixturevalue("clone")
    done = clone.build("--unchecked", TARGET)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"dist/unchecked-{__version__}\n"
    return clone.directory / done.stdout.strip()


def test_it_has_every_package(release: Path) -> None:
    targets = {file.stem.removeprefix(f"wsqueue-{__version__}-") for file in release.glob("*.pyz")}
    assert TARGET in targets
    zipapps = {
        f"wsqueue-{__version__}-{target}{suffix}"
        for target in targets
        for suffix in (".pyz", ".pyz.sha256", ".cdx.json")
    }
    architectures = {"x86_64": "amd64", "aarch64": "arm64"}
    packages = {
        f"wsqueue_{__version__}+py{python.removeprefix('cp')}_{architectures[machine]}.deb"
        for python, _, machine in (target.partition("-") for target in targets)
    }
    assert {file.name for file in release.iterdir()} == zipapps | packages | {
        "Containerfile",
        "NOTES.md",
        SUMS,
        f"wsqueue-{__version__}-py3-none-any.whl",
        f"wsqueue-{__version__}.cdx.json",
        f"wsqueue-{__version__}.tar.gz",
        f"wsqueue-{__version__}.tgz",
        f"wsqueue-wsqueue-{__version__}.tar.gz",
    }


def test_its_sums_are_those_of_all_files(release: Path) -> None:
    told = subprocess.run(
        ["sha256sum", "--check", "--strict", SUMS], cwd=release, check=True, stdout=subprocess.PIPE, text=True
    )
    others = {file.name for file in release.iterdir()} - {SUMS}
    assert {line.removesuffix(": OK") for line in told.stdout.splitlines()} == others


def test_its_notes_are_the_section_of_the_changelog(release: Path) -> None:
    notes = (release / "NOTES.md").read_text()
    assert notes.startswith(f"## {__version__}")
    assert len(re.findall("^## ", notes, re.MULTILINE)) == 1
    assert notes.strip() in (ROOT / "CHANGELOG.md").read_text()


def test_its_bill_of_materials_has_the_packages_and_what_is_in_them(release: Path) -> None:
    text = (release / f"wsqueue-{__version__}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    [commit] = bill["metadata"]["component"]["properties"]
    assert re.fullmatch("[0-9a-f]{40}", commit["value"])
    packages = {item["name"]: item for item in bill["components"]}
    described = ("NOTES.md", SUMS, ".sha256", ".cdx.json")
    assert packages.keys() == {file.name for file in release.iterdir() if not file.name.endswith(described)}
    for name, item in packages.items():
        digest = hashlib.sha256((release / name).read_bytes()).hexdigest()
        assert item["hashes"] == [{"alg": "SHA-256", "content": digest}]
        held = {component["name"] for component in item["components"]}
        assert ("uvloop" in held) == name.endswith((".pyz", ".deb"))


def test_a_zipapp_runs(release: Path, tmp_path: Path) -> None:
    # Beside itself it unpacks its modules, which are no part of the release.
    zipapp = Path(shutil.copy(release / f"wsqueue-{__version__}-{TARGET}.pyz", tmp_path))
    assert run(zipapp, "--version").strip().endswith(__version__)


@pytest.mark.parametrize("name", ["LICENSE", "wsqueue/new.py"])
def test_what_is_in_no_commit_is_refused(clone: Clone, name: str) -> None:
    file = clone.directory / name
    with file.open("a") as changed:
        changed.write("# More\n")
    try:
        done = clone.build("--unchecked")
        reason = f"{name} is in no commit: commit it, or put it away with git stash -u"
        assert (done.returncode, done.stderr) == (1, f"The release cannot be built: {reason}\n")
    finally:
        clone.git("stash", "--include-untracked", "--quiet")


def test_a_version_without_changes_is_refused(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone")
    (clone.directory / "CHANGELOG.md").write_text("# Changelog\n\n## 0.0.9, 2020-01-01\n")
    clone.commit()
    done = clone.build("--unchecked")
    assert done.stderr == (
        f"The release cannot be built: CHANGELOG.md has no section that begins with '## {__version__}'\n"
    )


def test_without_git_it_is_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "wsqueue", tmp_path / "wsqueue")
    done = subprocess.run(
        [sys.executable, "-I", tmp_path / "scripts" / "release"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        1,
        f"The release cannot be built: {tmp_path} is no clone of the repository, and a release is made of a"
        " commit\n",
    )
