"""The collection works for a user who has nothing but its file."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from wsqueue.version import __version__

from ..support import control_node

pytestmark = pytest.mark.slow

PLAYBOOKS = sorted(path.stem for path in (ROOT / "ansible" / "playbooks").glob("*.yml"))


def inventory(directory: Path, **variables: object) -> Path:
    file = directory / "hosts.yml"
    hosts = {"hosts": {"c1": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}}
    file.write_text(json.dumps({"all": {"children": {"consumers": hosts}, "vars": variables}}))
    return file


def test_it_holds_files_of_the_repository_and_no_inventory_but_the_example(collections: Path) -> None:
    installed = collections / "ansible_collections" / "wsqueue" / "wsqueue"
    assert [path for path in installed.rglob("*") if path.is_symlink()] == []
    assert [path.name for path in (installed / "inventory").iterdir()] == ["example"]
    files = installed / "roles" / "wsqueue" / "files"
    for path in (ROOT / "systemd").rglob("*.*"):
        if path.is_file():
            assert (files / path.relative_to(ROOT)).read_text() == path.read_text()
    assert yaml.safe_load((ROOT / "ansible" / "galaxy.yml").read_text())["version"] == __version__


def test_all_playbooks_have_a_name(collections: Path, tmp_path: Path) -> None:
    names = [f"wsqueue.wsqueue.{name}" for name in PLAYBOOKS]
    arguments = ["--syntax-check", "-i", str(inventory(tmp_path)), *names]
    output = control_node.run("ansible-playbook", *arguments, collections=collections)
    assert re.findall(r"^playbook: .*/(\w+)\.yml$", output, re.MULTILINE) == PLAYBOOKS


def test_the_preflight_names_renamed_variables_and_builds_nothing(collections: Path, tmp_path: Path) -> None:
    hosts = inventory(tmp_path, wsqueue_release_tls=True, ansible_become=False)
    result = control_node.try_to_run(
        "ansible-playbook", "-i", hosts, "wsqueue.wsqueue.preflight", collections=collections
    )
    assert result.returncode
    shown = " ".join(result.stdout.split())
    assert "Variables have other names: wsqueue_release_tls is now wsqueue_tls; rename them" in shown
    assert "changed=0" in shown
