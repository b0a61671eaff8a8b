"""What a control node needs: a version of Ansible, a directory of an inventory, and no directory to be in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.support.certificates import Authority
from tests.support.paths import ROOT

from ..support import control_node
from ..support.labs import BIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

VARIABLES = {
    "ansible_connection": "local",
    "ansible_python_interpreter": "{{ ansible_playbook_python }}",
    "ansible_become": False,
}
CERTIFICATES = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: wsqueue, tasks_from: control}
    - ansible.builtin.import_role: {name: wsqueue, tasks_from: certificates}
    - ansible.builtin.debug: {var: wsqueue_handshake.problem}
"""


def inventory(directory: Path, **variables: object) -> Path:
    directory.mkdir(exist_ok=True)
    file = directory / "hosts.json"
    groups = {"consumers": {"hosts": {"c1": {}}}, "demo": {"hosts": {"d1": {}}}, "monitoring": {"hosts": {}}}
    file.write_text(json.dumps({"all": {"children": groups, "vars": VARIABLES | variables}}))
    return file


def oldest() -> str:
    """Return the oldest version of ansible-core that is said to do."""
    runtime = yaml.safe_load((ROOT / "ansible" / "meta" / "runtime.yml").read_text())
    found = re.fullmatch(r">=(\d+\.\d+)\.0", runtime["requires_ansible"])
    assert found is not None
    return found[1]


def test_all_places_name_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ansible-core>={oldest()}" in project["optional-dependencies"]["deploy"]
    variables = yaml.safe_load((ROOT / "ansible" / "roles" / "wsqueue" / "vars" / "main.yml").read_text())
    assert variables["wsqueue_oldest_ansible"] == oldest()
    assert f"ansible-core {oldest()} or later" in " ".join((ROOT / "docs" / "deploy.md").read_text().split())


@pytest.mark.parametrize("playbook", ["preflight.yml", "ca.yml"])
def test_an_ansible_that_is_too_old_is_said(tmp_path: Path, playbook: str) -> None:
    hosts = inventory(tmp_path / "production", wsqueue_release_zipapp="none")
    file = ROOT / "ansible" / "playbooks" / playbook
    arguments = ["-i", str(hosts), str(file), "-e", "wsqueue_oldest_ansible=99.0"]
    result = control_node.try_to_run("ansible-playbook", *arguments)
    assert result.returncode
    assert re.search(
        r"This is ansible-core 2\.\S+, and the roles need 99\.0 or later", " ".join(result.stdout.split())
    )


def test_certificates_with_the_oldest_ansible(tmp_path: Path) -> None:
    """Before 2.19, Ansible computes every variable of an expression: those of a host without clients too."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-I", "-m", "venv", venv], check=True)
    pip = [str(venv / "bin" / "python"), "-I", str(ROOT / "scripts" / "pip"), "install", "--quiet"]
    subprocess.run([*pip, f"ansible-core=={oldest()}.*"], check=True)
    directory = tmp_path / "production"
    tls = directory / "tls"
    tls.mkdir(parents=True)
    issued = Authority(tmp_path).issue("node", hosts=["c1"])
    for source, name in ((issued.certificate, "c1.crt"), (issued.key, "c1.key"), (issued.ca, "ca.pem")):
        (tls / name).write_text(Path(str(source)).read_text())
    hosts = inventory(directory, wsqueue_tls=True, wsqueue_psk="x" * 43)
    playbook = tmp_path / "certificates.yml"
    playbook.write_text(CERTIFICATES)
    result = subprocess.run(
        [venv / "bin" / "ansible-playbook", "-i", hosts, playbook],
        env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("wsqueue_handshake.problem: ''") == 2
    assert "does not support Ansible version" not in result.stdout


@pytest.mark.parametrize("playbook", ["site.yml", "ansible/playbooks/ca.yml"])
def test_a_playbook_finds_its_roles_from_another_directory(tmp_path: Path, playbook: str) -> None:
    hosts = inventory(tmp_path / "production")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    result = subprocess.run(
        [BIN / "ansible-playbook", "-i", hosts, "--syntax-check", ROOT / playbook],
        cwd=tmp_path,
        env=environment | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_keys_and_releases_in_the_directory_of_an_inventory_are_no_inventories(tmp_path: Path) -> None:
    directory = tmp_path / "production"
    inventory(directory)
    (directory / "tls").mkdir()
    for name in ("tls/c1.key", "tls/c1.crt", "tls/ca.pem", "wsqueue-0.1.0-cp311-x86_64.pyz"):
        (directory / name).write_text("no inventory\n")
    listed = control_node.run("ansible-inventory", "-i", directory, "--graph")
    assert "WARNING" not in listed
    assert re.findall(r"--(\w+)$", listed, re.MULTILINE) == ["c1", "d1"]
