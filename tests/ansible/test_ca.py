"""The CA that a playbook makes, and its successor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography import x509

from wsqueue.net.handshake import check_certificates

from ..support import control_node

INVENTORY = {
    "all": {
        "children": {
            "consumers": {"hosts": {"c1.example.com": {"wsqueue_address": "2001:db8::1"}}},
            "producers": {"hosts": {"p1": {"ansible_host": "192.0.2.1"}}},
            "demo": {"hosts": {"d1": {}}},
        },
        "vars": {"wsqueue_tls_client_certificates": True, "wsqueue_ca_passphrase": "open sesame"},
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

    def make(self) -> str:
        return self.run("ansible-playbook", "ansible/playbooks/ca.yml")

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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_ca_and_its_successor(tmp_path: Path) -> None:
    control = Control(tmp_path)
    control.make()
    assert {
        str(path.relative_to(control.tls)): path.stat().st_mode & 0o777 for path in control.tls.rglob("*.*")
    } == {
        ".gitignore": 0o644,
        "ca.pem": 0o644,
        "ca/ca.crt": 0o644,
        "ca/ca.key": 0o600,
        **{f"{name}.crt": 0o644 for name in ("c1.example.com", "p1", "d1-client")},
        **{f"{name}.key": 0o600 for name in ("c1.example.com", "p1", "d1-client")},
    }
    assert (control.tls / ".gitignore").read_text() == "*\n"
    assert "ENCRYPTED" in (control.tls / "ca" / "ca.key").read_text()
    names = control.certificate("c1.example.com").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(name.value) for name in names.value] == ["c1.example.com", "2001:db8::1"]
    first = control.trusted()
    assert control.problem(first) == ""

    output = control.make()
    assert output.count("changed=0 ") == 3, output

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
