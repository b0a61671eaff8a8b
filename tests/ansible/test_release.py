"""Which zipapp a host gets: that of the sources in the clone, and no other unless asked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from scripts import sources
from tests.support.paths import ROOT
from wsqueue.version import __version__

from ..support import control_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TAG = "import sys; print(f'cp{sys.version_info[0]}{sys.version_info[1]}')"
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
PLAYBOOK = """
- hosts: all
  gather_facts: true
  gather_subset: [min]
  tasks:
    - ansible.builtin.import_role: {name: wsqueue, tasks_from: preflight_release}
    - ansible.builtin.debug: {msg: "content {{ wsqueue_release_facts.content }}"}
"""


def name_for(python: str) -> str:
    """Return the name of the zipapp for a Python."""
    told = subprocess.run([python, "-I", "-c", TAG], stdout=subprocess.PIPE, text=True, check=True).stdout
    return f"wsqueue-{__version__}-{told.strip()}-{os.uname().machine}.pyz"


def zipapp(directory: Path, sources: str, content: str = "0" * 64) -> Path:
    """Write a file that tells its sources, and holds nothing."""
    directory.mkdir()
    # As the roles do, which run the services with it.
    file = directory / name_for("/usr/bin/python3")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("environment.json", json.dumps({"build_id": content}))
        archive.writestr("sources", sources)
    note_sum(file)
    return file


def note_sum(file: Path) -> str:
    """Write the SHA-256 of a zipapp beside it, as the build does, and return it."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_name(f"{file.name}.sha256").write_text(f"{found}  {file.name}\n")
    return found


def inventory(directory: Path, hosts: dict[str, dict[str, object]]) -> Path:
    file = directory / "hosts.json"
    groups = {"consumers": {"hosts": {name: LOCAL | its for name, its in hosts.items()}}}
    file.write_text(json.dumps({"all": {"children": groups}}))
    return file


def check(directory: Path, hosts: dict[str, dict[str, object]]) -> tuple[bool, str]:
    """Check the zipapps of some hosts, and return whether they are good, and what is shown."""
    playbook = directory / "check.yml"
    playbook.write_text(PLAYBOOK)
    result = control_node.try_to_run("ansible-playbook", "-i", inventory(directory, hosts), playbook)
    return result.returncode == 0, " ".join(result.stdout.split())


def test_each_zipapp_is_compared_with_the_sources_of_the_clone(tmp_path: Path) -> None:
    current = str(zipapp(tmp_path / "current", sources.sources_hash(ROOT)))
    stale = str(zipapp(tmp_path / "stale", "another hash"))
    good, shown = check(tmp_path, {"c1": {"wsqueue_release_zipapp": current}})
    assert good, shown
    # Only the file of the second host is stale.
    hosts: dict[str, dict[str, object]] = {
        "c1": {"wsqueue_release_zipapp": current},
        "c2": {"wsqueue_release_zipapp": stale},
    }
    good, shown = check(tmp_path, hosts)
    assert not good
    assert f"{stale} holds other code than this clone, so c2 would not get what you see here" in shown
    assert "c1 would not" not in shown
    for host in hosts.values():
        host["wsqueue_release_other_sources"] = True
    good, shown = check(tmp_path, hosts)
    assert good, shown


def test_a_damaged_zipapp_is_refused(tmp_path: Path) -> None:
    file = zipapp(tmp_path / "damaged", "")
    file.write_bytes(file.read_bytes()[:100])
    note_sum(file)
    good, shown = check(tmp_path, {"c1": {"wsqueue_release_zipapp": str(file)}})
    assert not good
    assert "is damaged, or not from `make zipapp`; build it again." in shown


def test_a_zipapp_with_an_unknown_or_another_sum_is_refused(tmp_path: Path) -> None:
    good_file = zipapp(tmp_path / "good", sources.sources_hash(ROOT))
    damaged = zipapp(tmp_path / "damaged", sources.sources_hash(ROOT))
    found = note_sum(good_file)
    good_file.with_name(f"{good_file.name}.sha256").unlink()
    damaged.write_bytes(damaged.read_bytes() + b"more")
    other = hashlib.sha256(damaged.read_bytes()).hexdigest()
    hosts: dict[str, dict[str, object]] = {
        "c1": {"wsqueue_release_zipapp": str(good_file)},
        "c2": {"wsqueue_release_zipapp": str(good_file), "wsqueue_release_sha256": "f" * 64},
        "c3": {"wsqueue_release_zipapp": str(good_file), "wsqueue_release_sha256": found},
        "c4": {"wsqueue_release_zipapp": str(damaged)},
    }
    good, shown = check(tmp_path, hosts)
    assert not good
    assert f"Nothing says whether {good_file} is the file that was built; expected" in shown
    assert f"{good_file} has the SHA-256 {found}, and wsqueue_release_sha256 says {'f' * 64}:" in shown
    assert f"{damaged} has the SHA-256 {other}, and the file .sha256 beside it says {found}:" in shown
    assert re.search(r"c3 : .* failed=0 ", shown)


def python(directory: Path, minor: int, machine: str, path: str = "/usr/bin/python3") -> dict[str, object]:
    """Write a program that answers like a Python, and return the variable that names it."""
    file = directory / f"python3.{minor}-{machine}"
    file.write_text(f"#!/bin/sh\nprintf '{minor}\\n{machine}\\n{path}\\n'\n")
    file.chmod(0o755)
    return {"wsqueue_python": str(file)}


def test_the_hosts_decide_which_zipapps_are_built(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in ("ansible", "collections", "scripts", "systemd", "wsqueue"):
        shutil.copytree(
            ROOT / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    # It builds nothing.
    (clone / "Makefile").write_text('zipapp:\n\t@echo "$(TARGETS)" >>asked; echo "No wheels." >&2; exit 1\n')
    hosts: dict[str, dict[str, object]] = {
        "c1": python(tmp_path, 14, "x86_64"),
        "c2": python(tmp_path, 13, "aarch64"),
        "c3": python(tmp_path, 12, "x86_64"),
        "c4": python(tmp_path, 13, "aarch64"),
        "c5": {"wsqueue_release_zipapp": "/own.pyz"},
    }
    playbook = clone / "ansible" / "playbooks" / "preflight.yml"

    def run(*arguments: str) -> str:
        result = control_node.try_to_run(
            "ansible-playbook", "-i", inventory(tmp_path, hosts), playbook, *arguments
        )
        assert result.returncode != 0
        return " ".join(result.stdout.split())

    shown = run("--check", "--limit", "c2,c3,c4,c5")
    assert (clone / "asked").read_text() == "cp312-x86_64 cp313-aarch64\n"
    # The sentence of the build ends the run.
    assert "No wheels." in shown
    assert "Check all hosts" not in shown
    # With a zipapp for each host, nothing is built.
    assert "Check all hosts" in run("--limit", "c5")
    assert (clone / "asked").read_text().count("\n") == 1
    # All hosts are looked at, and nothing is built, if one cannot run any zipapp.
    hosts["c6"] = python(tmp_path, 9, "x86_64")
    hosts["c7"] = {"wsqueue_python": "/nowhere/python3"}
    shown = run()
    assert (
        "python3.9-x86_64 of c6 is Python 3.9, and wsqueue needs 3.11 or later; set wsqueue_python_" in shown
    )
    assert "c7 has no Python at /nowhere/python3; set wsqueue_python_package" in shown
    assert (clone / "asked").read_text().count("\n") == 1


def test_a_python_that_comes_with_the_release_decides_too(tmp_path: Path) -> None:
    archive = tmp_path / "python.tar.gz"
    with tarfile.open(archive, "w:gz") as written:
        written.addfile(tarfile.TarInfo("python/bin/python3.98"))
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    machine = os.uname().machine
    hosts: dict[str, dict[str, object]] = {
        "c1": {"wsqueue_python_package": "python3.99"},
        "c2": {"wsqueue_python_archive": str(archive), "wsqueue_python_sha256": found},
        "c3": {"wsqueue_python_archive": str(archive)},
    }
    good, shown = check(tmp_path, hosts)
    assert not good
    assert f"-cp399-{machine}.pyz on this machine, which c1 needs" in shown
    assert f"-cp398-{machine}.pyz on this machine, which c2 needs" in shown
    assert f"{archive} has the SHA-256 {found}, and wsqueue_python_sha256 is not set" in shown


def test_with_a_limit_too_the_release_is_built_from_the_sources(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "wsqueue", clone / "wsqueue", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("ansible", "requirements", "scripts"):
        shutil.copytree(ROOT / name, clone / name, symlinks=True)
    for name in ("Makefile", "ansible.cfg", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    for name in ("collections", "systemd"):
        shutil.copytree(ROOT / name, clone / name, symlinks=True)
    # The programs of the virtual environment here, and a mark of its own so that make doesn't make it again.
    (clone / ".venv").mkdir()
    for path in (ROOT / ".venv").glob("[!.]*"):
        (clone / ".venv" / path.name).symlink_to(path)
    (clone / ".venv" / ".deploys").touch()
    hosts = inventory(tmp_path, {"c1": {}, "c2": {}})
    playbook = clone / "ansible" / "playbooks" / "preflight.yml"

    def content() -> str:
        # It fails after the build, for this is no host for the cluster.
        result = control_node.try_to_run("ansible-playbook", "-i", hosts, playbook, "--limit", "c2")
        assert "Check all hosts" in result.stdout, result.stdout
        with zipfile.ZipFile(clone / "dist" / name_for("/usr/bin/python3")) as archive:
            return archive.read("site-packages/wsqueue/version.py").decode()

    version = clone / "wsqueue" / "version.py"
    assert content() == version.read_text()
    version.write_text(f"{version.read_text()}\n# Another line.\n")
    assert content() == version.read_text()
