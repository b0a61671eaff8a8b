"""The package for Debian: docs/packages.md on one host with real systemd, and all that may come after.

The tests build on each other, in the order of this file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsqueue.version import __version__

from ..support import labs
from ..support.documents import code_blocks
from ..support.environment import without_coverage
from ..support.hostile_environment import hostile_environment
from ..support.labs import OwnLab
from ..support.paths import ROOT
from ..support.releases import released

TARGET = "cp311-x86_64"
"""That of the hosts, which have Debian 12."""
NAME = f"wsqueue_{__version__}+py311_amd64.deb"
CONSUMER, PRODUCER = "wsqueue-consumer@10001", "wsqueue-producer@10002"
TOPICS = "/var/lib/private/wsqueue/consumer-10001"
INSTALL = f"DEBIAN_FRONTEND=noninteractive apt-get install --yes --reinstall /root/{NAME} 2>&1"
REFUSAL = "Ansible has rolled wsqueue out to this host: remove /opt/wsqueue and its units first"


def build(zipapp: Path, directory: Path, **options: Any) -> Path:
    command: list[str | Path] = [sys.executable, "-I", ROOT / "scripts" / "deb", zipapp, directory]
    options.setdefault("env", without_coverage())
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options)
    return Path(told.stdout.strip())


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labs.build(tmp_path_factory.mktemp("source"), __version__, TARGET)


class Host:
    """The one host of a lab."""

    def __init__(self, lab: OwnLab, package: Path) -> None:
        self.lab = lab
        # As bytes, which the lab's own call does not take.
        with package.open("rb") as file:
            command: list[str | Path] = [labs.SCRIPT, "ssh", lab.hosts[0], f"cat >/root/{NAME}"]
            subprocess.run(command, env=lab.environment, stdin=file, check=True)

    def run(self, command: str) -> str:
        """Return the output of a command, which must succeed."""
        return self.lab.ssh(self.lab.hosts[0], command)

    def fails(self, command: str) -> str:
        """Return the output of a command, which must not succeed."""
        result = self.lab.try_to("ssh", self.lab.hosts[0], command)
        assert result.returncode != 0, result.stdout
        return result.stdout

    def messages(self) -> list[str]:
        return self.run("wsqueue subscribe news --from earliest --no-follow").splitlines()

    def processes(self) -> list[str]:
        """Return the process ids of the consumer and the producer, "0" for one that does not run."""
        return self.run(f"systemctl show --property MainPID --value {CONSUMER} {PRODUCER}").split()

    def exists(self, *paths: str) -> list[bool]:
        return [
            answer == "yes"
            for answer in self.run(
                f"for path in {' '.join(paths)}; do [ ! -e $path ] && echo no || echo yes; done"
            ).split()
        ]


@pytest.fixture(scope="module")
def host(zipapp: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    lab = OwnLab(tmp_path_factory.mktemp("lab"), ["alone"], first="wsqd", net=90)
    try:
        lab.up()
        package = released("wsqueue_*+py311_amd64.deb") or build(zipapp, tmp_path_factory.mktemp("deb"))
        assert package.name == NAME
        yield Host(lab, package)
    finally:
        lab.down()


@pytest.mark.lab
# The first test also builds the base, where there is none yet.
@pytest.mark.timeout(900)
def test_it_refuses_a_host_to_which_ansible_came_first(host: Host) -> None:
    host.run("mkdir -p /opt/wsqueue/current")
    assert REFUSAL in host.fails(INSTALL)
    assert host.exists("/usr/bin/wsqueue", "/usr/lib/wsqueue", "/etc/wsqueue") == [False] * 3
    host.run("rmdir /opt/wsqueue/current /opt/wsqueue")


@pytest.mark.lab
def test_the_documented_steps_lead_to_a_message(host: Host) -> None:
    (block,) = code_blocks(ROOT / "docs" / "packages.md", "console")[:1]
    first, *steps = re.findall(r"^\$ (.*)$", block, re.MULTILINE)
    assert first == f"apt install ./{NAME}"
    told = host.run(INSTALL)
    assert "warn" not in told.lower(), told
    # The nodes, which may not write there, find them.
    assert host.exists("/usr/lib/wsqueue/wsqueue/__pycache__/version.cpython-311.pyc") == [True]
    assert host.run("\n".join(["set -e", *steps])).splitlines()[-1] == "hello"
    # They come back after a boot, with the target.
    assert host.run(f"systemctl is-enabled wsqueue.target {CONSUMER} {PRODUCER}").split() == ["enabled"] * 3


@pytest.mark.lab
def test_the_command_takes_no_module_from_where_it_is_started(host: Host) -> None:
    host.run("mkdir /tmp/here && echo 'raise RuntimeError' >/tmp/here/json.py")
    assert host.run("cd /tmp/here && wsqueue --version").endswith(__version__)


@pytest.mark.lab
def test_an_upgrade_restarts_nodes_that_run_and_keeps_messages(host: Host) -> None:
    before = host.processes()
    host.run(INSTALL)
    after = host.processes()
    assert all(old != new != "0" for old, new in zip(before, after, strict=True)), (before, after)
    started = "systemctl show --property ExecMainStartTimestampMonotonic --value"
    assert int(host.run(f"{started} {CONSUMER}")) < int(host.run(f"{started} {PRODUCER}"))
    assert host.messages() == ["hello"]
    host.run("wsqueue publish news again")
    assert host.messages() == ["hello", "again"]


@pytest.mark.lab
def test_a_rollout_that_came_later_goes_on(host: Host) -> None:
    host.run("mkdir -p /opt/wsqueue/current")
    before = host.processes()
    assert REFUSAL in host.fails(INSTALL)
    host.run("dpkg --purge wsqueue")
    assert host.processes() == before
    assert host.exists(TOPICS, "/etc/systemd/system/wsqueue.target.wants") == [True, True]
    host.run("rmdir /opt/wsqueue/current /opt/wsqueue")
    host.run(INSTALL)


@pytest.mark.lab
def test_after_a_removal_all_comes_back(host: Host) -> None:
    host.run("dpkg --remove wsqueue")
    assert host.processes() == ["0", "0"]
    assert host.exists("/usr/bin/wsqueue", "/usr/lib/wsqueue", TOPICS, "/etc/wsqueue/psk") == [
        False, False, True, True,
    ]  # fmt: skip
    host.run(INSTALL)
    # No version that comes later starts nodes that do not run.
    assert host.processes() == ["0", "0"]
    host.run("systemctl start wsqueue.target")
    assert host.messages() == ["hello", "again"]


@pytest.mark.lab
def test_a_purge_leaves_the_administrators_files_alone(host: Host) -> None:
    host.run("dpkg --purge wsqueue")
    assert host.processes() == ["0", "0"]
    assert host.run("ls /etc/wsqueue").split() == [
        "consumer-10001.toml", "demo.toml", "node_psk", "producer-10002.toml", "psk",
    ]  # fmt: skip
    assert host.run("stat --format %G /etc/wsqueue/psk /etc/wsqueue/node_psk").split() == [
        "wsqueue", "wsqueue-node",
    ]  # fmt: skip
    assert host.run("find /usr /var/lib /etc/systemd -name '*wsqueue*' -not -path '/var/lib/dpkg/*'") == ""


@pytest.mark.lab
def test_it_depends_neither_on_the_user_nor_on_the_umask(host: Host, zipapp: Path, tmp_path: Path) -> None:
    again = build(zipapp, tmp_path / "other", umask=0o077, env=hostile_environment(tmp_path / "home"))
    summed = subprocess.run(["sha256sum", again], check=True, capture_output=True, text=True).stdout.split()[
        0
    ]
    assert host.run(f"sha256sum /root/{NAME}").split()[0] == summed
