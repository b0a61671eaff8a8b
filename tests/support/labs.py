"""Labs for tests, beside the lab of `make lab`, with which they share nothing but the base."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.paths import ROOT

from .environment import without_coverage
from .waiting import wait_until

SCRIPT = ROOT / "scripts" / "lab"
BIN = ROOT / ".venv" / "bin"
REBOOT_SECONDS = 120
CANNOT = 3
"""Exit code of scripts/lab on a machine that cannot run a lab."""


class OwnLab:
    """A lab that is named after the process, so that two runs of the tests do not meet."""

    def __init__(self, directory: Path, hosts: Sequence[str], first: str = "wsqr", net: int = 10) -> None:
        self.directory, self.hosts = directory, hosts
        self.suites: Mapping[str, str] = {}
        self.bridge = f"{first}{os.getpid() % 10_000_000}"
        # Beside 10.231.7 of `make lab` and 10.231.9 of Molecule.
        self.net = f"10.231.{net + os.getpid() % 80}"
        self.key = directory / "id_ed25519"
        self.environment = os.environ | {
            "LAB_DIR": str(directory),
            "LAB_BRIDGE": self.bridge,
            "LAB_NET": self.net,
        }

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables of an inventory with which Ansible reaches the hosts."""
        return {
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": "-F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
            " -o LogLevel=ERROR",
            # Where `scripts/lab down` looks for them.
            "ansible_control_path_dir": str(self.directory / "ssh"),
        }

    def address(self, host: str) -> str:
        return f"{self.net}.{11 + self.hosts.index(host)}"

    def try_to(
        self, *arguments: str, stdin: str = "", timeout: float | None = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def run(self, *arguments: str, stdin: str = "") -> str:
        result = self.try_to(*arguments, stdin=stdin)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def up(self) -> str:
        # The first call builds the base, unless there is one.
        named = [f"{host}:{self.suites[host]}" if host in self.suites else host for host in self.hosts]
        result = self.try_to("up", *named, timeout=900)
        skip_if_the_lab_cannot_run(result)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def down(self) -> None:
        self.run("down")

    def ssh(self, host: str, command: str, stdin: str = "") -> str:
        """Run a command as root, which must succeed, and return its output."""
        return self.run("ssh", host, command, stdin=stdin).strip()

    def boot_id(self, host: str) -> str:
        """Return a text that differs after each boot, "" while the host does not answer."""
        return self.try_to("ssh", host, "cat /proc/sys/kernel/random/boot_id").stdout.strip()

    def reboot(self, host: str, seconds: float = REBOOT_SECONDS) -> None:
        """Reboot a host, and return when it answers again."""
        before = self.boot_id(host)
        self.try_to("ssh", host, "systemctl reboot")
        wait_until(lambda: self.boot_id(host) not in {before, ""}, f"{host} is up again", seconds)

    def nspawn(self, host: str) -> int:
        """Return the process id of the host's nspawn."""
        root = f"--directory={self.directory}/hosts/{host}/root"
        [process] = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if root in command_line(path).split()
        ]
        return process

    def inside(self, host: str, *command: str) -> list[str]:
        """Return the command that runs another inside a host, without ssh."""
        nspawn = self.nspawn(host)
        init = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()[0]
        return ["nsenter", f"--target={init}", "--mount", "--pid", "--uts", "--ipc", "--net", *command]

    @contextmanager
    def running(self, host: str, command: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command over ssh beside the test, and end it with the block."""
        with subprocess.Popen(
            [SCRIPT, "ssh", host, command],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def command_line(path: Path) -> str:
    """Return the words of a file /proc/PID/cmdline, "" if the process has ended."""
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def skip_if_the_lab_cannot_run(result: subprocess.CompletedProcess[str]) -> None:
    if result.returncode == CANNOT:
        pytest.skip(result.stderr.splitlines()[-1])


def build(directory: Path, version: str, *targets: str) -> Path:
    """Build zipapps of the package as it is here, with a version; not in dist/, which is the user's.

    Args:
        directory: Where to build them.
        version: Their version.
        targets: The Pythons and machines for which they are, by default those that run this.

    Returns:
        The last of them.
    """
    for name in ("wsqueue", "scripts", "requirements"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", directory / "LICENSE")
    file = directory / "wsqueue" / "version.py"
    file.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', file.read_text()))
    command: list[str | Path] = [BIN / "python", "-I", directory / "scripts" / "zipapp", *targets]
    built: subprocess.CompletedProcess[str] = subprocess.run(
        command, env=without_coverage(), stdout=subprocess.PIPE, text=True, check=True
    )
    return directory / built.stdout.splitlines()[-1]
