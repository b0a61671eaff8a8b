"""A cluster on hosts of a lab, deployed with the playbooks."""

from __future__ import annotations

import json
import os
import re
import secrets
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from wsqueue.protocol.routing import router

from ..support import control_node
from ..support.labs import CANNOT, OwnLab
from ..support.waiting import wait_until

HOSTS = ("consumer1", "consumer2", "producer1", "demo1")
SUITES = {"consumer2": "trixie", "producer1": "noble"}
"""Hosts with another distribution than the others have, so that one cluster spans them all."""
CONSUMERS = (("consumer1", 10001), ("consumer1", 10003), ("consumer2", 10001))
PRODUCERS = (("producer1", 10002), ("producer1", 10004))
NODES = [("consumer", *node) for node in CONSUMERS] + [("producer", *node) for node in PRODUCERS]
OLD, NEW = "0.1.0", "0.1.1"
VERIFIED = re.compile(r"\b(\d+) checks, 0 failed")
KEPT = ("kept/0", "kept/1", "kept/2")
"""Topics of each consumer."""
WAIT_SECONDS = 120.0
"""Time that a cluster may take for any step on a busy machine: it needs some seconds."""
needs_time = pytest.mark.skipif(
    not os.environ.get("WSQUEUE_WHOLE_LAB"),
    reason="would make `make test` last too long: WSQUEUE_WHOLE_LAB=1 is not in the environment",
)
"""Marks tests that run only when they are asked for."""

TARGET = "import platform, sys; print(f'cp3{sys.version_info[1]}-{platform.machine()}')"

# The values come in this program, on standard input: so they are in no command line and no environment.
SEARCH = """
import glob, os, stat, subprocess
values = [value.encode()[::-1] for value in REVERSED]
def shows(data):
    return any(value in data for value in values)
def look(kind, path):
    try:
        with open(path, "rb") as file:
            if shows(file.read()):
                print(kind, path)
    except OSError:
        pass
for kind in ("environ", "cmdline"):
    for path in glob.glob(f"/proc/[0-9]*/{kind}"):
        look(kind, path)
for top in ("/etc", "/opt", "/run", "/var", "/tmp"):
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                look("file", path)
if shows(subprocess.run(["journalctl", "--all", "-o", "json"], stdout=subprocess.PIPE).stdout):
    print("journal")
"""

PAGE = """
import ssl, urllib.request
context = ssl._create_unverified_context()
print(urllib.request.urlopen("{}", timeout=5, context=context).read().decode())
"""


class Cluster:
    """A lab, its inventory, and all that Ansible has printed."""

    def __init__(self, lab: OwnLab, directory: Path) -> None:
        self.lab, self.directory = lab, directory
        self.psk, self.node_psk, self.client_key = (secrets.token_urlsafe(32) for _ in range(3))
        self.passphrase = secrets.token_urlsafe(32)
        self.clients: dict[str, Any] = {"billing": {"key": self.client_key, "publish": ["orders/*"]}}
        self.outputs: list[str] = []
        self.missing: dict[str, str] = {}
        self.targets: dict[str, str] = {}
        self.zipapps: dict[str, Path] = {}

    def boot(self) -> None:
        """Boot the hosts; one whose suite cannot be had here gets that of the others."""
        suites = {}
        for host, suite in SUITES.items():
            # The first call builds the base, unless there is one.
            result = self.lab.try_to("run", suite, "true", timeout=900)
            if result.returncode == CANNOT:
                self.missing[suite] = result.stderr.splitlines()[-1]
            else:
                suites[host] = suite
        self.lab.suites = suites
        self.lab.up()
        self.targets = {host: self.lab.ssh(host, "python3 -", stdin=TARGET) for host in HOSTS}

    def zipapp(self, version: str, host: str) -> Path:
        """Return the file that a host needs, whose name in `zipapps` has a variable of the inventory."""
        return Path(str(self.zipapps[version]).replace("{{target}}", self.targets[host]))

    @property
    def tls(self) -> Path:
        """Return where the certificates are on this machine."""
        return self.directory / "tls"

    @property
    def secrets(self) -> list[str]:
        """Return all secrets: keys, and a line of each private key."""
        files = [*self.tls.glob("*.key"), self.tls / "ca" / "ca.key"]
        assert len(files) == 4
        return [
            self.psk,
            self.node_psk,
            self.client_key,
            self.passphrase,
            *(file.read_text().splitlines()[1] for file in files),
        ]

    def inventory(self, name: str, **changes: Any) -> Path:
        """Write the inventory, with other variables for all hosts or, as `host__variable`, for one."""
        hosts: dict[str, dict[str, Any]] = {
            host: {"ansible_host": self.lab.address(host), "target": self.targets[host]} for host in HOSTS
        }
        hosts["consumer1"]["wsqueue_consumer_ports"] = [10001, 10003]
        hosts["producer1"]["wsqueue_producer_ports"] = [10002, 10004]
        variables: dict[str, Any] = self.lab.variables | {
            "wsqueue_psk": self.psk,
            "wsqueue_node_psk": self.node_psk,
            "wsqueue_clients": self.clients,
            "wsqueue_tls": True,
            "wsqueue_tls_directory": str(self.tls),
            "wsqueue_ca_passphrase": self.passphrase,
            # Room for all that is published while a slow machine rolls out.
            "wsqueue_consumer_retention": {"mode": "sqlite", "max_bytes": 2**30},
            "wsqueue_release_zipapp": str(self.zipapps[OLD]),
            "wsqueue_release_other_sources": True,
        }
        groups: dict[str, list[str]] = {
            "consumers": ["consumer1", "consumer2"],
            "producers": ["producer1"],
            "demo": ["demo1"],
            "dead": [],
        }
        for key, value in changes.items():
            host, _, variable = key.rpartition("__")
            if key in groups:
                groups[key] = value
            else:
                (hosts[host] if host else variables)[variable] = value
        children = {
            group: {"hosts": {host: hosts[host] for host in names}} for group, names in groups.items()
        }
        path = self.directory / name / "hosts.yml"
        path.parent.mkdir(exist_ok=True)
        # JSON is YAML. Variables of all are localhost's too, so site.yml builds no zipapp in dist/.
        path.write_text(json.dumps({"all": {"children": children, "vars": variables}}))
        path.chmod(0o600)
        return path

    def try_to_play(
        self,
        playbook: str,
        *arguments: str,
        inventory: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a playbook; the variables are those of its environment."""
        file = inventory or self.directory / "good" / "hosts.yml"
        result = control_node.try_to_run(
            "ansible-playbook", "-i", file, playbook, *arguments, variables=variables
        )
        self.outputs.append(result.stdout)
        return result

    def play(self, playbook: str, *arguments: str) -> str:
        start = time.monotonic()
        result = self.try_to_play(playbook, *arguments)
        print(f"{playbook} {' '.join(arguments)}: {time.monotonic() - start:.0f} s")
        assert result.returncode == 0, result.stdout[-20_000:]
        return result.stdout

    def verify(self) -> None:
        """Wait until all checks pass on the demo host: links need some seconds to come back."""

        def verified() -> bool:
            result = self.lab.try_to("ssh", "demo1", "wsqueue verify")
            return result.returncode == 0 and VERIFIED.search(result.stdout) is not None

        wait_until(verified, "all checks pass", WAIT_SECONDS)

    def consumer_of(self, topic: str) -> tuple[str, int]:
        """Return the consumer to which a topic belongs."""
        return CONSUMERS[router(len(CONSUMERS))(topic)]

    def running_version(self, node: tuple[str, str, int]) -> str:
        """Return the version that the running process of a node has logged."""
        pid = self.property(node, "MainPID")
        started = self.lab.ssh(node[1], f"journalctl --no-pager -o cat _PID={pid} | grep '^started '")
        [*_, version] = re.findall(r"\bversion=(\S+)", started)
        return str(version)

    def property(self, node: tuple[str, str, int], name: str) -> str:
        kind, host, port = node
        return self.lab.ssh(host, f"systemctl show -P {name} wsqueue-{kind}@{port}")

    def open(self, host: str, port: int, path: str) -> int:
        """Ask a node for a page, from this machine, and return the status."""
        with urllib.request.urlopen(
            f"https://{self.lab.address(host)}:{port}{path}",
            timeout=5,
            context=ssl.create_default_context(cafile=str(self.tls / "ca.pem")),
        ) as answer:
            return int(answer.status)

    def page(self, host: str, port: int, path: str) -> str:
        """Return a page of a node, as its own host sees it; the certificate is for another address."""
        return self.lab.ssh(host, "python3 -", stdin=PAGE.format(f"https://127.0.0.1:{port}{path}"))

    def is_ready(self, host: str, port: int) -> bool:
        try:
            return self.open(host, port, "/readyz") == 200
        except (OSError, urllib.error.URLError):
            return False

    def wait_until_ready(self) -> None:
        wait_until(
            lambda: all(self.is_ready(host, port) for _, host, port in NODES),
            "all nodes are ready",
            WAIT_SECONDS,
        )

    def nodes_seen_by(self, host: str, port: int) -> list[dict[str, Any]]:
        """Return a node's knowledge of all nodes, [] until all have answered."""
        nodes: list[dict[str, Any]] = json.loads(self.page(host, port, "/cluster.json"))["nodes"]
        return nodes if all(node["report"] and not node["problem"] for node in nodes) else []

    def found(self, host: str, *values: str) -> list[str]:
        """Return where one of the values can be seen on a host."""
        reversed_values = repr([value[::-1] for value in values])
        return self.lab.ssh(host, "python3 -", stdin=SEARCH.replace("REVERSED", reversed_values)).splitlines()


def recap(output: str) -> dict[str, dict[str, int]]:
    """Return the numbers of Ansible's last table, for each host."""
    table = output.rpartition("PLAY RECAP")[2]
    return {
        line.split()[0]: {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", line)}
        for line in table.splitlines()
        if " ok=" in line
    }


def assert_nothing_changed(output: str, hosts: Sequence[str]) -> None:
    """Fail if any host was changed, or one of these took no part."""
    counts = recap(output)
    assert set(hosts) <= set(counts)
    assert {host: one["changed"] for host, one in counts.items()} == dict.fromkeys(counts, 0)
