"""Inventories and packages that the preflight of the servers of the log refuses, without a host."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ..support import control_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TRY = """
- hosts: engine
  gather_facts: false
  tasks:
    # For their variables.
    - ansible.builtin.import_role: {name: wsqueue_engine}
      when: false
    - ansible.builtin.import_role: {name: wsqueue_engine, tasks_from: TASKS}
"""
SHARED = {"mode": "jetstream", "jetstream": {"replicas": 1}}


def inventory(directory: Path, hosts: list[str], **variables: Any) -> Path:
    file = directory / "hosts.yml"
    children = {"engine": {"hosts": dict.fromkeys(hosts)}, "consumers": {"hosts": {"c1": None}}}
    shared = control_node.LOCAL | {"wsqueue_consumer_retention": SHARED} | variables
    file.write_text(json.dumps({"all": {"children": children, "vars": shared}}))
    return file


def told(directory: Path, tasks: str, **variables: Any) -> str:
    """Return the output of tasks of the role, in one line, and whether they failed."""
    playbook = directory / "try.yml"
    playbook.write_text(TRY.replace("TASKS", tasks))
    hosts = inventory(directory, ["e1"], **variables)
    result = control_node.try_to_run("ansible-playbook", "-i", hosts, playbook)
    return f"{result.returncode} {' '.join(result.stdout.split())}"


def program(file: Path, version: str) -> Path:
    """Write a program that only says its version."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\necho nats-server: v{version}\n")
    file.chmod(0o755)
    return file


def package(file: Path, version: str, name: str = "nats-server") -> Path:
    """Build a .deb with such a program."""
    root = file.parent / f"root-{name}"
    program(root / "usr" / "local" / "bin" / name, version)
    (root / "DEBIAN").mkdir()
    fields = {"Package": "nats-server", "Version": version, "Architecture": "all", "Maintainer": "nobody"}
    text = "".join(f"{key}: {value}\n" for key, value in (fields | {"Description": "none"}).items())
    (root / "DEBIAN" / "control").write_text(text)
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return file


def test_the_preflight_looks_at_the_inventory_first(tmp_path: Path) -> None:
    hosts = inventory(tmp_path, ["e1", "e2"])
    result = control_node.try_to_run("ansible-playbook", "-i", hosts, "ansible/playbooks/preflight.yml")
    assert result.returncode
    assert "The group engine has 2 hosts, and an even number survives no more" in " ".join(
        result.stdout.split()
    )


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({}, "e1 needs a NATS server: expected wsqueue_engine_package"),
        ({"wsqueue_engine_package": "/nowhere"}, "e1 needs a NATS server: expected wsqueue_engine_package"),
        (
            {"wsqueue_engine_package": "/nowhere", "wsqueue_engine_sha256": "0" * 64},
            "There is no /nowhere on this machine, which e1 needs",
        ),
        (
            {"wsqueue_engine_package": "/etc/hostname", "wsqueue_engine_sha256": "0" * 64},
            "and wsqueue_engine_sha256 is 0000",
        ),
    ],
)
def test_a_package_that_is_not_the_one_that_was_meant(
    tmp_path: Path, variables: dict[str, str], problem: str
) -> None:
    output = told(tmp_path, "preflight_package", **variables)
    assert output.startswith("2 ")
    assert problem in output


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the files of the role belong to root")
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg-deb")


def tried(directory: Path, file: Path, **variables: str) -> str:
    values = {
        "wsqueue_engine_package": str(file),
        "wsqueue_engine_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "wsqueue_engine_target": str(directory / "target"),
    }
    return told(directory, "program", **values | variables)


@needs_root
def test_a_program_of_a_version_that_loses_messages(tmp_path: Path) -> None:
    output = tried(tmp_path, program(tmp_path / "nats-server", "2.10.27"))
    assert output.startswith("2 ")
    assert "nats-server is NATS server 2.10.27, and older ones than 2.15.1 have lost messages" in output


@needs_root
@pytest.mark.parametrize("version", ["2.15.1", "2.16.0"])
def test_a_program(tmp_path: Path, version: str) -> None:
    assert tried(tmp_path, program(tmp_path / "nats-server", version)).startswith("0 ")
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == ["SHA256SUMS", "nats-server"]


@needs_root
def test_a_file_that_was_damaged_on_its_way(tmp_path: Path) -> None:
    output = tried(tmp_path, program(tmp_path / "nats-server", "2.15.1"), wsqueue_engine_sha256="0" * 64)
    assert "and wsqueue_engine_sha256 is 0000" in output


@needs_root
def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("nothing\n")
    assert "other has no NATS server that works on e1" in tried(tmp_path, tmp_path / "other")


@needs_root
@needs_dpkg
def test_of_a_package_the_program_is_taken(tmp_path: Path) -> None:
    assert tried(tmp_path, package(tmp_path / "good.deb", "2.15.2")).startswith("0 ")
    assert (tmp_path / "target" / "nats-server").read_text().endswith("nats-server: v2.15.2\n")
    output = tried(tmp_path, package(tmp_path / "bad.deb", "2.15.2", name="other"))
    assert "bad.deb has no NATS server that works on e1" in output
