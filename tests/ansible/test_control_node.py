"""What a control node needs: a version of Ansible, a directory of an inventory, and no directory to be in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

from ..lab.cluster import needs_time
from ..support import control_node
from ..support.environment import without_coverage
from ..support.labs import BIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CONTROL = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: wsqueue, tasks_from: control}
"""


def inventory(directory: Path, **variables: object) -> Path:
    directory.mkdir(exist_ok=True)
    file = directory / "hosts.json"
    groups = {"consumers": {"hosts": {"c1": {}}}, "demo": {"hosts": {"d1": {}}}, "monitoring": {"hosts": {}}}
    file.write_text(json.dumps({"all": {"children": groups, "vars": control_node.LOCAL | variables}}))
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


@pytest.mark.parametrize("what", ["deploy", "dev"])
def test_all_tests_run_with_the_oldest(what: str) -> None:
    pinned = (ROOT / "requirements" / f"{what}.txt").read_text()
    assert re.findall(r"^ansible-core==(\d+\.\d+)\.", pinned, re.MULTILINE) == [oldest()]


def newest_python() -> str | None:
    """Return the newest Python in PATH that can make an environment, if newer than that of the tests."""
    for minor in range(sys.version_info[1] + 10, sys.version_info[1], -1):
        python = shutil.which(f"python3.{minor}")
        # A name that pyenv knows may lead nowhere.
        if python and not subprocess.run([python, "-c", "import ensurepip"], check=False).returncode:
            return python
    return None


def install(directory: Path, requirement: str, python: str = sys.executable) -> Path:
    """Install an ansible-core and the modules that the roles need; return the directory of its programs."""
    venv = directory / "venv"
    subprocess.run([python, "-I", "-m", "venv", venv], env=without_coverage(), check=True)
    installed = venv / "bin" / "python"
    pip: list[str | Path] = [installed, "-I", ROOT / "scripts" / "pip", "install", "--quiet"]
    subprocess.run([*pip, requirement, "cryptography"], env=without_coverage(), check=True)
    told = subprocess.run(
        [installed, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    community = Path("ansible_collections", "community")
    (Path(told.stdout.strip()) / community).mkdir(parents=True)
    crypto = community / "crypto"
    (Path(told.stdout.strip()) / crypto).symlink_to(Path(sysconfig.get_path("purelib")) / crypto)
    return venv / "bin"


@needs_time
@pytest.mark.timeout(3600)
def test_roles_and_playbooks_with_the_newest(tmp_path: Path) -> None:
    """All other tests here but those of this file, which name the version."""
    python = newest_python()
    if python is None:
        pytest.skip("newer versions of ansible-core need a newer Python, and there is none in PATH")
    tests = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=os.environ | {"WSQUEUE_ANSIBLE": str(install(tmp_path, "ansible-core", python))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-20_000:]


@pytest.fixture(scope="module")
def too_old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the last ansible-core that is too old, and return its ansible-playbook."""
    major, minor = oldest().split(".")
    requirement = f"ansible-core=={major}.{int(minor) - 1}.*"
    return install(tmp_path_factory.mktemp("old"), requirement) / "ansible-playbook"


def test_an_ansible_that_is_too_old_is_said(tmp_path: Path, too_old: Path) -> None:
    """Before 2.19, Ansible makes text of all values, and computes every variable, needed or not."""
    hosts, playbook = inventory(tmp_path / "production"), tmp_path / "control.yml"
    playbook.write_text(CONTROL)
    result = subprocess.run(
        [too_old, "-i", hosts, playbook],
        env=without_coverage() | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode
    told = " ".join(result.stdout.split())
    assert re.search(rf"This is ansible-core 2\.\S+, and the roles need {re.escape(oldest())} or later", told)


@pytest.mark.parametrize("playbook", ["site.yml", "ansible/playbooks/ca.yml"])
def test_a_playbook_finds_its_roles_from_another_directory(tmp_path: Path, playbook: str) -> None:
    hosts = inventory(tmp_path / "production")
    environment = {key: value for key, value in without_coverage().items() if not key.startswith("ANSIBLE_")}
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
    release = [f"wsqueue-0.1.0-cp311-x86_64{suffix}" for suffix in (".pyz", ".pyz.sha256", ".cdx.json")]
    for name in ("tls/c1.key", "tls/c1.crt", "tls/ca.pem", *release):
        (directory / name).write_text("no inventory\n")
    listed = control_node.run("ansible-inventory", "-i", directory, "--graph")
    assert "WARNING" not in listed
    assert re.findall(r"--(\w+)$", listed, re.MULTILINE) == ["c1", "d1"]
