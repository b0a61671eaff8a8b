"""Certificates and keys of TLS: loading, contexts, expiry."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..config.addresses import Address
from ..config.files import read_file, read_secret
from ..config.load import MAX_FILE_BYTES
from ..config.model import Config, Tls
from ..errors import ConfigError
from .tls import TlsStream, binding_of, openssl_words

MAX_KEY_BYTES = 64 * 1024
"""Largest file of a private key: far above any key, so that another file is noticed."""

EXPIRY_WARNING = timedelta(days=30)
"""Time before its end from which a certificate is warned of; programs that renew them do it earlier."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")


_VERSION, _GENERALIZED_TIME = 0xA0, 0x18

_KEY_PROBLEMS = {
    "KEY_VALUES_MISMATCH": "it is not the key of {certificate}; expected the one that belongs to it",
    # This is the reason if one is RSA and the other is not.
    "NO_CERTIFICATE_ASSIGNED": "it is not the key of {certificate}; expected the one that belongs to it",
    None: "it holds no private key; expected PEM, from -----BEGIN PRIVATE KEY----- on",
}


class TlsContexts:
    """Hold the TLS contexts of one configuration, read from its files once.

    Args:
        config: It has the section `[tls]`, and the addresses, which decide which contexts are needed.

    Raises:
        ConfigError: A file cannot be used; it names the file and the reason.

    Attributes:
        own_binding: SHA-256 of the certificate to accept connections with, b"" without one.
    """

    def __init__(self, config: Config) -> None:
        tls = config.tls
        self._config = config
        self._ends = {
            file: min(map(certificate_end, _certificates(file)))
            for file in (tls.certificate, tls.ca)
            if file is not None
        }
        self._acceptor: ssl.SSLContext | None = None
        self._initiator: ssl.SSLContext | None = None
        self.own_binding = b""
        if tls.certificate is not None and tls.key is not None:
            self._acceptor = _context(ssl.Purpose.CLIENT_AUTH, tls)
            self.own_binding = binding_of(_load_own(self._acceptor, tls.certificate, tls.key))
            # Connections live long, and this end never resumes a session.
            self._acceptor.num_tickets = 0
            if tls.client_certificates:
                self._acceptor.verify_mode = ssl.CERT_REQUIRED
        # The system's certificates take some MiB, and few nodes need them.
        if tls.ca is not None or any(address.tls for address in config.peers):
            self._initiator = initiator_context(tls)

    def __reduce__(self) -> tuple[type[TlsContexts], tuple[Config]]:
        # Another process reads the files again.
        return TlsContexts, (self._config,)

    @property
    def ends_of_files(self) -> dict[str, datetime]:
        """Return when the first certificate of each file ends."""
        return dict(self._ends)

    @property
    def ends(self) -> datetime | None:
        """Return when the first of the certificates ends, None when there is none."""
        return min(self._ends.values(), default=None)

    def warnings(self, now: datetime) -> list[str]:
        """Return a sentence for each file with a certificate that has expired, or soon will."""
        return [
            f"{file}: a certificate in it {'has expired' if end < now else 'expires'} on {end:%Y-%m-%d}"
            for file, end in self._ends.items()
            if end < now + EXPIRY_WARNING
        ]

    @property
    def accepts(self) -> bool:
        """Return True if there is a certificate to accept connections with."""
        return self._acceptor is not None

    def accept(self) -> TlsStream:
        """Return the acceptor's end of a connection."""
        assert self._acceptor is not None
        return TlsStream(self._acceptor, None, self.own_binding)

    def connect(self, address: Address) -> TlsStream | None:
        """Return the initiator's end of a connection, None if the address has no TLS."""
        if not address.tls:
            return None
        assert self._initiator is not None
        return TlsStream(self._initiator, address.host)

    def wrap(self, connection: socket.socket, address: Address) -> ssl.SSLSocket:
        """Return an initiator's socket with TLS, the handshake done.

        Raises:
            OSError: The handshake failed; if it is an SSLError, `explain` says why.
        """
        assert self._initiator is not None
        return self._initiator.wrap_socket(connection, server_hostname=address.host)


def initiator_context(tls: Tls) -> ssl.SSLContext:
    """Return the context of an initiator, with its own certificate if it has one.

    Raises:
        ConfigError: A file cannot be used; it names the file and the reason.
    """
    context = _context(ssl.Purpose.SERVER_AUTH, tls)
    if tls.certificate is not None and tls.key is not None:
        _load_own(context, tls.certificate, tls.key)
    return context


def _context(purpose: ssl.Purpose, tls: Tls) -> ssl.SSLContext:
    """Return a context that trusts `ca`; without it, an initiator trusts the certificates of the system."""
    trusted = b"".join(_certificates(tls.ca)) if tls.ca is not None else None
    context = ssl.create_default_context(purpose, cadata=trusted)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _load_own(context: ssl.SSLContext, certificate: str, key: str) -> bytes:
    """Give a context the certificate and the key of this end, and return the certificate."""

    def refuse() -> str:
        # Without this, OpenSSL would ask for the passphrase on the terminal.
        raise ConfigError("the key needs a passphrase; expected one that does not", file=key)

    own = _certificates(certificate)[0]
    read_secret(Path(key), MAX_KEY_BYTES)
    try:
        context.load_cert_chain(certificate, key, refuse)
    except ssl.SSLError as error:
        if error.reason in _KEY_PROBLEMS:
            raise ConfigError(_KEY_PROBLEMS[error.reason].format(certificate=certificate), file=key) from None
        raise ConfigError(f"OpenSSL refuses it: {openssl_words(error)}", file=certificate) from None
    except OSError as error:
        raise ConfigError(f"cannot read it or {key}: {error.strerror}", file=certificate) from None
    # OpenSSL reads the files by itself, perhaps while they are being replaced.
    if _certificates(certificate)[0] != own:
        raise ConfigError("it changed while it was read; expected it to be left alone", file=certificate)
    return own


def _certificates(file: str) -> list[bytes]:
    """Return all certificates of a PEM file, as DER.

    Raises:
        ConfigError: There is none, or one is malformed.
    """
    found = _CERTIFICATE.findall(read_file(Path(file), MAX_FILE_BYTES))
    if not found:
        raise ConfigError("it holds no certificate; expected PEM, with BEGIN CERTIFICATE", file=file)
    try:
        certificates = [ssl.PEM_cert_to_DER_cert(text.decode("ascii")) for text in found]
        # Only to have each of them parsed.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=b"".join(certificates))
    except (ValueError, ssl.SSLError):
        raise ConfigError("a certificate in it is malformed; expected PEM", file=file) from None
    return certificates


def certificate_end(certificate: bytes) -> datetime:
    """Return when a certificate expires: `validity.notAfter` of RFC 5280 section 4.1."""
    (_, signed), *_ = _elements(certificate)
    (_, to_be_signed), *_ = _elements(signed)
    # Serial number, algorithm, issuer, validity; before them there may be the version.
    fields = [content for tag, content in _elements(to_be_signed) if tag != _VERSION]
    _, (tag, end) = _elements(fields[3])
    text = end.decode("ascii")
    if tag != _GENERALIZED_TIME:
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element of a sequence in DER."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size]), at + size
        yield tag, data[at : at + length]
        at += length
