"""Certificates for tests: an authority, and certificates that it signs."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wsqueue.config.model import Tls

HOSTS = ("127.0.0.1", "localhost")


def digest_of(tls: Tls) -> str:
    """Return the SHA-256 of a certificate in hexadecimal, as reports have it."""
    assert tls.certificate is not None
    certificate = x509.load_pem_x509_certificate(Path(tls.certificate).read_bytes())
    return certificate.fingerprint(hashes.SHA256()).hex()


class Authority:
    """Sign certificates, with elliptic curves: RSA keys take long to make.

    Args:
        directory: Where all files are.
        name: The authority's name, and that of its own file.
    """

    def __init__(self, directory: Path, name: str = "ca", days: int = 365) -> None:
        self._directory = directory
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._signed(self._name, self._key, days, [], authority=True)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(_pem(self._certificate))

    def issue(self, name: str, hosts: Sequence[str] = HOSTS, days: float = 90) -> Tls:
        """Return the configuration of an end that has a certificate, and trusts this authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = self._signed(subject, key, days, hosts, authority=False)
        files = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        files[0].write_bytes(_pem(certificate))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        files[1].chmod(0o600)
        return Tls(certificate=str(files[0]), key=str(files[1]), ca=str(self.file))

    def pem(self, name: str, days: float = 90) -> str:
        """Return a new certificate and its key, as one text."""
        self.issue(name, days=days)
        return "".join((self._directory / f"{name}.{kind}").read_text() for kind in ("pem", "key"))

    def trusting(self) -> Tls:
        """Return the configuration of an end that trusts this authority, and has no certificate."""
        return Tls(ca=str(self.file))

    def context(self, own: Tls | None = None) -> ssl.SSLContext:
        """Return a context as clients other than ours have it."""
        context = ssl.create_default_context(cafile=str(self.file))
        if own is not None and own.certificate is not None:
            context.load_cert_chain(own.certificate, own.key)
        return context

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        days: float,
        hosts: Sequence[str],
        *,
        authority: bool,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=366))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        # Python 3.13 and later refuse certificates without these.
        public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(public, critical=False).add_extension(issuer, critical=False)
        if authority:
            builder = builder.add_extension(SIGNS, critical=True)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(map(_name_of, hosts)), critical=False)
        return builder.sign(self._key, hashes.SHA256())


SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
"""The use of an authority's key."""


def _name_of(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
