"""Hosts of the lab have all that a deployment needs, and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

from ..support.labs import OwnLab, command_line
from ..support.waiting import wait_until

HOSTS = ("alpha", "beta")


class Lab(OwnLab):
    """A lab, and its traces on this machine."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, HOSTS, first="wsqt", net=100)

    def traces(self) -> list[str]:
        """Return the namespaces, interfaces, mounts, cgroups and processes of this lab on the machine.

        By their names, for other things come and go on a machine while tests run.
        """
        found = [
            *Path("/run/netns").glob("*"),
            *Path("/sys/class/net").iterdir(),
            *Path("/proc/self/mountinfo").read_text().splitlines(),
            *(path for path in Path("/sys/fs/cgroup").rglob("*") if path.is_dir()),
            *(command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")),
        ]
        return [str(one) for one in found if self.bridge in str(one) or str(self.directory) in str(one)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        lab.up()
        yield lab
    finally:
        lab.run("down")


@pytest.fixture
def running(lab: Lab) -> Lab:
    """Return the lab with all hosts up, which the test before may have ended."""
    lab.up()
    return lab


# The first test also builds the base, where there is none yet.
@pytest.mark.lab
@pytest.mark.timeout(900)
def test_systemd_is_up(running: Lab) -> None:
    for host in HOSTS:
        assert running.ssh(host, "cat /proc/1/comm; hostname") == f"systemd\n{host}"
        # Fully up; units that only some machines let a container run make it "degraded".
        state = running.try_to("ssh", host, "systemctl is-system-running --wait").stdout.strip()
        assert state in {"running", "degraded"}, running.ssh(host, "systemctl --failed --plain")


@pytest.mark.lab
def test_a_host_that_is_up_stays_up(running: Lab) -> None:
    before = [running.boot_id(host) for host in HOSTS]
    shown = running.up()
    assert [running.boot_id(host) for host in HOSTS] == before
    assert [line.split()[:2] for line in shown.splitlines()] == [
        [host, running.address(host)] for host in HOSTS
    ]


@pytest.mark.lab
def test_hosts_reach_each_other_and_have_no_way_out(running: Lab) -> None:
    greeting = "exec 3<>/dev/tcp/{}/22 && head -c 7 <&3"
    for host, other in (HOSTS, HOSTS[::-1]):
        assert running.ssh(host, greeting.format(running.address(other))) == "SSH-2.0"
        # The default route leads to an address without a host.
        assert running.ssh(host, "ip -4 route show default") == f"default via {running.net}.254 dev eth0"


@pytest.mark.lab
def test_a_link_that_is_down_cuts_a_host_off(running: Lab) -> None:
    knock = f"timeout 2 bash -c '</dev/tcp/{running.address('beta')}/22'"
    interface = f"{running.bridge}-12"
    subprocess.run(["ip", "link", "set", interface, "down"], check=True)
    assert running.try_to("ssh", "alpha", knock).returncode != 0
    subprocess.run(["ip", "link", "set", interface, "up"], check=True)
    assert running.try_to("ssh", "alpha", knock).returncode == 0


@pytest.mark.lab
def test_a_transient_service_and_its_journal(running: Lab) -> None:
    running.ssh("alpha", "systemd-run --wait --unit hello --property DynamicUser=yes echo hello from systemd")
    assert "hello from systemd" in running.ssh("alpha", "journalctl --unit hello --output cat")


@pytest.mark.lab
def test_a_reboot_comes_back(running: Lab) -> None:
    running.ssh("alpha", "touch /root/kept")
    running.reboot("alpha")
    assert running.ssh("alpha", "ls /root/kept") == "/root/kept"


@pytest.mark.lab
def test_a_host_that_was_killed_is_made_anew(running: Lab) -> None:
    running.ssh("alpha", "touch /root/lost")
    os.kill(running.nspawn("alpha"), signal.SIGKILL)
    wait_until(lambda: "broken" in running.run("status"), "alpha is broken")
    running.up()
    assert running.ssh("alpha", "ls /root") == ""


@pytest.mark.lab
def test_another_lab_takes_neither_bridge_nor_subnet(running: Lab, tmp_path: Path) -> None:
    other = Lab(tmp_path)
    refused = other.try_to("up", "gamma")
    assert (refused.returncode, f"{running.bridge} exists" in refused.stderr) == (1, True)
    # Nor does it end another lab.
    assert other.try_to("down").returncode == 1
    other.environment["LAB_BRIDGE"] = "wsqtother"
    refused = other.try_to("up", "gamma")
    assert (refused.returncode, f"{running.net}.0/24 is in use" in refused.stderr) == (1, True)
    assert running.run("status").split().count("up") == len(HOSTS)


@pytest.mark.lab
@pytest.mark.parametrize("crash", [False, True], ids=["in order", "after a crash"])
def test_down_leaves_nothing_behind(running: Lab, crash: bool) -> None:
    # The same look finds all kinds of traces while the lab is up, so that finding none says something.
    traces = "\n".join(running.traces())
    for kind in ("/run/netns/", "/sys/class/net/", "nsfs", "/sys/fs/cgroup/", "systemd-nspawn"):
        assert kind in traces
    if crash:
        os.kill(running.nspawn("alpha"), signal.SIGKILL)
    running.run("down")
    assert running.traces() == []
    running.run("down")
    assert running.run("status") == ""


def test_the_inventory_has_the_addresses_that_make_lab_gives() -> None:
    makefile = re.search(r"^LAB_HOSTS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert makefile is not None
    inventory = (ROOT / "ansible" / "inventory" / "lab" / "hosts.yml").read_text()
    hosts = re.findall(r"^ +(\w+): \{ansible_host: (.*)\}$", inventory, re.MULTILINE)
    assert hosts == [(host, f"10.231.7.{11 + index}") for index, host in enumerate(makefile[1].split())]
