"""support.yml: one archive that helps to find a fault, and has no key in it."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import stat
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

from ..support import control_node

FILES = ROOT / "ansible" / "roles" / "wsqueue" / "files"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nTheCertificateIsPublic\n-----END CERTIFICATE-----\n"

SYSTEMCTL = """#!/bin/sh
case "$1" in
list-units) echo 'wsqueue-consumer@10001.service loaded failed failed wsqueue consumer 10001'
    echo 'wsqueue.target loaded active active All nodes';;
*) echo "Environment=WSQUEUE_PSK=$SHOWN";;
esac
"""
JOURNALCTL = """#!/bin/sh
echo "asked for $*"
cat "$JOURNAL"
"""
DOCTOR = """
import os, sys
print("ok   it has read", *sys.argv[1:])
print("FAIL it shows", os.environ["SHOWN"])
print("2 checks, 1 problem, 0 warnings")
"""


class Host:
    """A host in a directory: its files, its programs, and all of its secrets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.psk, self.node_psk, self.client, self.password = (secrets.token_urlsafe(32) for _ in range(4))
        # With characters that an address writes otherwise.
        self.route = f"{secrets.token_urlsafe(16)}/+{secrets.token_urlsafe(8)}"
        self.private = [secrets.token_urlsafe(48) for _ in range(3)]
        self.other = secrets.token_urlsafe(24)
        claims = base64.urlsafe_b64encode(b'{"key": "billing", "rights": []}').decode().rstrip("=")
        self.token = f"{claims}.{secrets.token_urlsafe(32)}"
        etc, engine = root / "etc/wsqueue", root / "etc/wsqueue-engine"
        release = root / "opt/wsqueue/releases/0.1.0-abc"
        for directory in (etc / "tls", engine, release / "site-packages/wsqueue", root / "bin"):
            directory.mkdir(parents=True)
        (root / "opt/wsqueue/current").symlink_to("releases/0.1.0-abc")
        (release / "site-packages/wsqueue/__init__.py").touch()
        (release / "site-packages/wsqueue/__main__.py").write_text(DOCTOR)
        (root / "etc/os-release").write_text('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
        (etc / "psk").write_text(f"{self.psk}\n{self.psk[::-1]}\n")
        (etc / "node_psk").write_text(self.node_psk)
        (etc / "client.billing").write_text(self.client)
        (etc / "engine_password").write_text(self.password)
        (etc / "consumer-10001.toml").write_text(
            'role = "consumer"\npsk_file = "/etc/wsqueue/psk"\n'
            f'retention.jetstream.servers = ["tls://user:{self.other}@nats.example.com:4222"]\n'
        )
        key = "\n".join(["-----BEGIN PRIVATE KEY-----", *self.private, "-----END PRIVATE KEY-----\n"])
        for file in (etc / "tls/node.pem", engine / "node.pem"):
            file.write_text(CERTIFICATE + key)
        (engine / "nats.conf").write_text('include "secrets.conf"\nserver_name: "web1"\n')
        (engine / "secrets.conf").write_text(f"NODE_PASSWORD: {json.dumps(self.route)}\n")
        for name, text in (("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
        self.key_file = key
        self.journal = root / "journal"

    @property
    def secrets(self) -> list[str]:
        quoted = self.route.replace("/", "%2F").replace("+", "%2B")
        values = [self.psk, self.psk[::-1], self.node_psk, self.client, self.password, self.route, quoted]
        return [*values, *self.private, self.other, self.token]

    def tell(self, *, lines: int = 100, limit: int = 100_000) -> dict[str, dict[str, str]]:
        """Return the answer of the host."""
        command: list[str | Path] = [
            sys.executable,
            "-I",
            FILES / "support_host.py",
            self.root,
            "-2h",
            str(lines),
            str(limit),
        ]
        told = subprocess.run(
            command,
            env=os.environ
            | {
                "PATH": f"{self.root}/bin:/usr/bin:/bin:/usr/sbin",
                "SHOWN": self.psk,
                "JOURNAL": str(self.journal),
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        found: dict[str, dict[str, str]] = json.loads(zlib.decompress(base64.b64decode(told)))
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path / "host")
    host.journal.write_text("12:00 started role=consumer version=0.1.0\n")
    return host


def test_a_host_tells_what_helps_to_find_a_fault(host: Host) -> None:
    told = host.tell()
    assert told["facts"] == {
        "release": "0.1.0-abc",
        "system": f"Debian GNU/Linux 12 (bookworm), {os.uname().machine}",
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "doctor": "2 checks, 1 problem, 0 warnings",
        "failed units": "wsqueue-consumer@10001.service",
        "journals": "read",
    }
    files = told["files"]
    assert set(files) == {
        "doctor.txt",
        "system.txt",
        "units.txt",
        "resources.txt",
        "sockets.txt",
        "files.txt",
        "config/consumer-10001.toml",
        "config/nats.conf",
        "config/tls-node.pem",
        "config/wsqueue-engine-node.pem",
        "journal/wsqueue-consumer@10001.service.txt",
        "journal/wsqueue.target.txt",
    }
    assert f"doctor {host.root}/etc/wsqueue/consumer-10001.toml" in files["doctor.txt"]
    assert files["config/tls-node.pem"] == CERTIFICATE
    assert 'psk_file = "/etc/wsqueue/psk"' in files["config/consumer-10001.toml"]
    journal = files["journal/wsqueue-consumer@10001.service.txt"]
    assert "--since=-2h --lines=100" in journal
    assert "started role=consumer version=0.1.0" in journal


def test_no_text_shows_a_secret(host: Host) -> None:
    """Wherever they come from: the journal here has all of them, as no node would write it."""
    host.journal.write_text(
        "\n".join(f"a line with {value}, and more" for value in host.secrets)
        + f"\n{host.key_file}\nAuthorization: Bearer {host.other}\npassword = '{host.other}'\n"
        f'{{"api_key": "{host.other}", "psk_file": "/etc/wsqueue/psk"}}\n'
    )
    # A value that no file has is known by its name only.
    host.journal.write_text(host.journal.read_text().replace(f"a line with {host.other}, and more", ""))
    told = host.tell()
    shown = json.dumps(told)
    assert [value for value in host.secrets if value in shown or json.dumps(value)[1:-1] in shown] == []
    assert "PRIVATE KEY" not in shown
    journal = told["files"]["journal/wsqueue-consumer@10001.service.txt"]
    assert journal.count("a line with [redacted], and more") == len(host.secrets) - 1
    # Names of files are no secrets.
    assert '"psk_file": "/etc/wsqueue/psk"' in journal
    assert "FAIL it shows [redacted]" in told["files"]["doctor.txt"]
    assert "WSQUEUE_PSK=[redacted]" in told["files"]["units.txt"]
    assert "tls://[redacted]@nats.example.com:4222" in told["files"]["config/consumer-10001.toml"]


def test_a_journal_has_its_end_and_no_more_than_so_many_bytes(host: Host) -> None:
    host.journal.write_text("".join(f"line {number}: {host.psk}\n" for number in range(10_000)))
    journal = host.tell(limit=20_000)["files"]["journal/wsqueue-consumer@10001.service.txt"]
    _, mark, *lines = journal.splitlines()
    assert mark == "..."
    assert len(journal) < 20_100
    # Cut between lines, so that no part of a key is left.
    assert {re.sub(r"\d+", "N", line) for line in lines if line} == {"line N: [redacted]"}
    assert "line 9999: [redacted]" in lines


def test_journals_that_cannot_be_read_are_told(host: Host) -> None:
    (host.root / "bin" / "journalctl").write_text("#!/bin/sh\necho 'Failed to parse timestamp'\nexit 1\n")
    assert host.tell()["facts"]["journals"] == "not read (Failed to parse timestamp)"


def test_a_host_without_anything(tmp_path: Path) -> None:
    host = Host(tmp_path / "host")
    (tmp_path / "empty").mkdir()
    host.root = tmp_path / "empty"
    told = host.tell()
    assert told["facts"]["release"] == "no release"
    assert told["files"]["doctor.txt"] == "There is no release, or no configuration, on this host.\n"


def run(directory: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Play support.yml with a host that answers, one that is down and one that is dead."""
    hosts: dict[str, dict[str, Any]] = {
        "consumers": {"c1": control_node.LOCAL, "c2": {"ansible_host": "127.0.0.1", "ansible_port": 1}},
        "producers": {"p1": control_node.LOCAL | {"ansible_connection": "ssh"}},
        "demo": {"d1": control_node.LOCAL},
        "dead": {"p1": {}},
    }
    inventory = directory / "hosts.json"
    groups = {group: {"hosts": its} for group, its in hosts.items()}
    inventory.write_text(json.dumps({"all": {"children": groups}}))
    return control_node.try_to_run(
        "ansible-playbook", "-i", inventory, "ansible/playbooks/support.yml", *arguments
    ), directory / "support"


@pytest.mark.slow
def test_one_archive_of_all_hosts(tmp_path: Path) -> None:
    result, directory = run(tmp_path)
    assert result.returncode == 0, result.stdout
    [archive] = directory.iterdir()
    assert re.fullmatch(r"wsqueue-support-\d{8}T\d{6}Z\.tar\.gz", archive.name)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (directory, archive)] == [0o700, 0o600]
    # Nothing but the archive is a change.
    assert re.findall(r"^changed: .*$", result.stdout, re.MULTILINE) == ["changed: [c1 -> localhost]"]
    with tarfile.open(archive) as opened:
        names = opened.getnames()
        assert {entry.mode for entry in opened} == {0o600}
        top = archive.name.removesuffix(".tar.gz")
        index = opened.extractfile(f"{top}/index.txt")
        assert index is not None
        text = index.read().decode()
    assert names[0] == f"{top}/index.txt"
    assert {name.split("/")[1] for name in names[1:]} == {"c1", "d1"}
    assert f"{top}/c1/resources.txt" in names
    assert re.search(r"^c1 \(consumers\): release .*; kernel .*; doctor ", text, re.MULTILINE)
    assert re.search(r"^c2 \(consumers\): NOTHING, because it could not be reached: ", text, re.MULTILINE)
    assert "p1 (producers): NOTHING, because it is in the group dead\n" in text
    told = " ".join(result.stdout.split())
    assert f"{archive}: " in told
    assert "c2 (consumers): NOTHING, because it could not be reached" in told


@pytest.mark.slow
def test_an_archive_of_a_host_that_is_down(tmp_path: Path) -> None:
    result, directory = run(tmp_path, "--limit", "c2")
    assert result.returncode == 0, result.stdout
    [archive] = directory.iterdir()
    with tarfile.open(archive) as opened:
        [name] = opened.getnames()
        index = opened.extractfile(name)
        assert index is not None
        assert b"d1 (demo): NOTHING, because --limit leaves it out\n" in index.read()


@pytest.mark.slow
def test_a_check_writes_no_archive(tmp_path: Path) -> None:
    result, directory = run(tmp_path, "--check", "--limit", "c1")
    assert result.returncode == 0, result.stdout
    assert not directory.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--limit", "p1"],
            "No host of this run has anything of wsqueue, so there is nothing to gather; expected",
        ),
        (
            ["-e", "wsqueue_support_lines=many"],
            "wsqueue_support_lines is many, and wsqueue_support_bytes is 2097152;",
        ),
        (["-e", "wsqueue_support_bytes=0"], "and wsqueue_support_bytes is 0; expected a number from 1"),
        (
            ["-e", "wsqueue_support_directory=/etc/passwd", "--limit", "d1"],
            "The archive cannot be written: [Errno 17] File exists",
        ),
    ],
)
def test_an_archive_that_cannot_be_made(tmp_path: Path, arguments: list[str], problem: str) -> None:
    result, directory = run(tmp_path, *arguments)
    assert result.returncode != 0
    assert problem in " ".join(result.stdout.split())
    assert "Traceback" not in result.stdout
    assert not directory.exists()


@pytest.mark.parametrize(
    "files",
    [
        {"../outside": ""},
        {"/etc/passwd": ""},
        {"a/../../b": ""},
        {"..": ""},
        {"a b": "", "a\nb": ""},
    ],
)
def test_a_host_cannot_write_outside_its_folder(tmp_path: Path, files: dict[str, str]) -> None:
    facts = {"release": "1\nc9 (demo): NOTHING"}
    told = json.dumps({"facts": facts, "files": files | {"doctor.txt": "fine"}}).encode()
    one = {"groups": ["demo"], "data": base64.b64encode(zlib.compress(told)).decode(), "problem": ""}
    broken = one | {"data": base64.b64encode(b"no such thing").decode()}
    subprocess.run(
        [sys.executable, "-I", FILES / "support_archive.py", tmp_path / "a.tar.gz"],
        input=json.dumps(
            {"time": "today", "ansible": "2.19", "hosts": {"h/1": one, "..": one, "h2": broken}}
        ),
        stdout=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert archive.getnames() == ["a/index.txt", "a/_./doctor.txt", "a/h_1/doctor.txt"]
        index = archive.extractfile("a/index.txt")
        assert index is not None
        lines = index.read().decode().splitlines()
    assert "h2 (demo): NOTHING, what it told cannot be read" in lines
    assert "h/1 (demo): release 1 c9 (demo): NOTHING" in lines
