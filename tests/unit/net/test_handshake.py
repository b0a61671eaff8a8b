"""Certificates that peers accept and refuse, in handshakes without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsqueue.net.handshake import check_certificates

from ...support.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def check(
    *, node: str = "", client: str = "", ca: str, name: str = "127.0.0.1", client_certificates: bool = True
) -> str:
    """Return the problem, "" when the certificates work for the next 80 days."""
    problem, days = check_certificates(
        node=node, client=client, ca=ca, name=name, client_certificates=client_certificates
    )
    assert (days > 80) != bool(problem)
    return problem


def test_certificates_that_work(authority: Authority) -> None:
    node, ca = authority.pem("node"), authority.file.read_text()
    assert check(node=node, client=node, ca=ca) == ""
    assert check(node=node, ca=ca, name="localhost", client_certificates=False) == ""
    assert check(ca=ca) == ""


def test_the_first_to_expire_counts(authority: Authority) -> None:
    node, client = authority.pem("node", days=90), authority.pem("client", days=5.5)
    ca = authority.file.read_text()
    told = check_certificates(node=node, client=client, ca=ca, name="127.0.0.1", client_certificates=True)
    assert told == ("", 5)


def test_another_name(authority: Authority) -> None:
    told = check(node=authority.pem("node"), ca=authority.file.read_text(), name="192.0.2.1")
    assert told == "IP address mismatch, certificate is not valid for '192.0.2.1'"


def test_an_expired_certificate(authority: Authority) -> None:
    told = check(node=authority.pem("node", days=-1), ca=authority.file.read_text())
    assert told == "certificate has expired"


def test_another_authority(authority: Authority, tmp_path: Path) -> None:
    ca = Authority(tmp_path, "other").file.read_text()
    for told in (check(client=authority.pem("node"), ca=ca), check(node=authority.pem("node"), ca=ca)):
        assert told == "unable to get local issuer certificate"


def test_another_key(authority: Authority) -> None:
    certificate = authority.pem("node").partition("-----BEGIN PRIVATE KEY")[0]
    key = authority.pem("other").partition("-----END CERTIFICATE-----\n")[2]
    told = check(node=certificate + key, ca=authority.file.read_text())
    assert told == "the private key is not that of the certificate"


@pytest.mark.parametrize("node", ["nonsense", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])
def test_nonsense(authority: Authority, node: str) -> None:
    assert "is not PEM" in check(node=node, ca=authority.file.read_text())
