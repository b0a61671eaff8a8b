"""The CA that a playbook makes, and its successor."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from wsqueue.net.handshake import check_certificates

from ..support import control_node

PASSPHRASE = "open sesame, and quickly please"
INVENTORY = {
    "all": {
        "children": {
            "consumers": {"hosts": {"c1.example.com": {"wsqueue_address": "2001:db8::1"}}},
            "demo": {"hosts": {"d1": {}}},
        },
        "vars": {"wsqueue_tls_client_certificates": True, "wsqueue_ca_passphrase": PASSPHRASE},
    }
}


class Control:
    """A control node with an inventory."""

    def __init__(self, directory: Path) -> None:
        self.inventory, self.tls = directory / "hosts.yml", directory / "tls"
        self.inventory.write_text(json.dumps(INVENTORY))

    def run(self, *command: str) -> str:
        program, *arguments = command
        return control_node.run(program, "-i", self.inventory, *arguments)

    def make(self, *arguments: str) -> str:
        return self.run("ansible-playbook", "ansible/playbooks/ca.yml", *arguments)

    def refusal(self, passphrase: str = PASSPHRASE) -> str:
        """Return the output of a run that must change nothing, without its line breaks."""
        file = self.tls.parent / "passphrase.json"
        file.write_text(json.dumps({"wsqueue_ca_passphrase": passphrase}))
        before = self.files()
        result = control_node.try_to_run(
            "ansible-playbook", "-i", self.inventory, "ansible/playbooks/ca.yml", "-e", f"@{file}"
        )
        assert result.returncode != 0
        assert self.files() == before
        assert not passphrase or passphrase not in result.stdout
        return " ".join(result.stdout.split())

    def files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.tls.rglob("*") if path.is_file()}

    def step(self, name: str) -> None:
        role = f"name=wsqueue_ca tasks_from={name}"
        self.run("ansible", "all", "-m", "ansible.builtin.include_role", "-a", role)

    def certificate(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.tls / f"{name}.crt").read_bytes())

    def problem(self, ca: str) -> str:
        """Return why peers that trust `ca` would refuse a node or a client, "" if they would not."""
        pem = {
            name: (self.tls / f"{name}.crt").read_text() + (self.tls / f"{name}.key").read_text()
            for name in ("c1.example.com", "d1-client")
        }
        problem, days = check_certificates(
            node=pem["c1.example.com"],
            client=pem["d1-client"],
            ca=ca,
            name="2001:db8::1",
            client_certificates=True,
        )
        assert (days > 80) != bool(problem)
        return problem

    def trusted(self) -> str:
        return (self.tls / "ca.pem").read_text()


@contextmanager
def unseen(secret: str) -> Iterator[None]:
    """Fail if any process that runs meanwhile has a secret in its command line or environment."""
    ended = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        while not ended.wait(0.05):
            for kind in ("cmdline", "environ"):
                for path in Path("/proc").glob(f"[0-9]*/{kind}"):
                    with suppress(OSError):
                        if secret.encode() in path.read_bytes():
                            seen.add(kind)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not seen


def test_a_secret_on_a_command_line_or_in_an_environment_is_seen() -> None:
    secret = "a secret that is seen"
    command = ["sh", "-c", "sleep 0.5; true"]
    with pytest.raises(AssertionError), unseen(secret):
        subprocess.run([*command, secret], check=True)
    with pytest.raises(AssertionError), unseen(secret):
        subprocess.run(command, env={"PATH": os.environ["PATH"], "SECRET": secret}, check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_ca_and_its_successor(tmp_path: Path) -> None:
    control = Control(tmp_path)
    assert "the private key of the CA, is missing or has less than 20" in control.refusal("open sesame")
    with unseen(PASSPHRASE):
        assert PASSPHRASE not in control.make("-vvv", "--diff")
    assert {
        str(path.relative_to(control.tls)): path.stat().st_mode & 0o777 for path in control.tls.rglob("*.*")
    } == {
        ".gitignore": 0o644,
        "ca.pem": 0o644,
        "ca/ca.crt": 0o644,
        "ca/ca.key": 0o600,
        **{f"{name}.crt": 0o644 for name in ("c1.example.com", "d1-client")},
        **{f"{name}.key": 0o600 for name in ("c1.example.com", "d1-client")},
    }
    assert (control.tls / ".gitignore").read_text() == "*\n"
    assert (control.tls / "ca" / "ca.key").read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    names = control.certificate("c1.example.com").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(name.value) for name in names.value] == ["c1.example.com", "2001:db8::1"]
    first = control.trusted()
    assert control.problem(first) == ""

    file = control.tls / "ca" / "ca.key"
    assert f"is not the passphrase of {file}" in control.refusal("another one, quite long")
    # As an earlier version made it without a passphrase.
    key = serialization.load_pem_private_key(file.read_bytes(), PASSPHRASE.encode())
    plain = (serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    told = re.search(r"(openssl pkcs8 [^&]+ -out (\S+)) && (mv \S+ [^\s']+)", control.refusal())
    assert told
    # Here it may not ask.
    command = [*told[1].split(), "-passout", "stdin"]
    subprocess.run(command, input=f"{PASSPHRASE}\n", text=True, check=True)
    assert Path(told[2]).stat().st_mode & 0o777 == 0o600
    subprocess.run(told[3].split(), check=True)
    output = control.make()
    assert output.count("changed=0 ") == 2, output

    control.step("next")
    both = control.trusted()
    assert both.count("BEGIN CERTIFICATE") == 2
    assert control.problem(both) == ""
    control.step("adopt")
    # As in a run that began anew after it had broken off.
    control.step("next")
    assert control.trusted().count("BEGIN CERTIFICATE") == 2
    assert control.problem(both) == ""
    assert control.problem(first) == "unable to get local issuer certificate"
    control.step("forget")
    second = control.trusted()
    assert second.count("BEGIN CERTIFICATE") == 1
    assert control.problem(second) == ""
    assert not list((control.tls / "ca").glob("[on]*"))
