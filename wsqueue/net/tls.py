"""TLS without I/O: from PEM files to contexts, from ciphertext to plaintext and back.

What event loops have of their own holds 256 KiB for each connection, hides what waits in its buffers,
forgets what a paused reader has not read, and drops the alert that tells a peer why it is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..config.addresses import Address
from ..config.model import MAX_FILE_BYTES, Config, Tls, read_file, read_secret
from ..errors import ConfigError

MAX_KEY_BYTES = 64 * 1024
"""Far above any private key; more is some other file."""

SLICE_BYTES = 16 * 1024
"""What is encrypted or decrypted at a time, a record: OpenSSL's buffers stay as large as they once were."""

EXPIRY_WARNING = timedelta(days=30)
"""How long before its end a certificate is warned of: what renews them by itself does it earlier."""

PLAIN_HTTP_ANSWER = b"HTTP/1.1 400 TLS is spoken here: expected wss://\r\nConnection: close\r\n\r\n"
"""What a peer gets that speaks HTTP without TLS, for it would not understand an alert."""

NO_TLS_ANSWER = b"HTTP/1.1 400 No TLS is spoken here\r\nConnection: close\r\n\r\n"
"""What a peer gets that speaks TLS where nobody else does: it finds that this is no TLS."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")
_VERSION, _GENERALIZED_TIME = 0xA0, 0x18

_KEY_PROBLEMS = {
    "KEY_VALUES_MISMATCH": "it is not the key of {certificate}; expected the one that belongs to it",
    # Where the one is RSA and the other is not.
    "NO_CERTIFICATE_ASSIGNED": "it is not the key of {certificate}; expected the one that belongs to it",
    None: "it holds no private key; expected PEM, from -----BEGIN PRIVATE KEY----- on",
}

_PROBLEMS = {
    "HTTP_REQUEST": "it speaks HTTP without TLS: expected wss://",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has no certificate: [tls] client_certificates wants one",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate: expected [tls] certificate and key here",
    "WRONG_VERSION_NUMBER": "it speaks no TLS: expected an address without wss://, or one that does",
}
"""What OpenSSL's reasons mean here; others say enough."""


class TlsContexts:
    """Hold what the connections of one configuration need for TLS, read from its files once.

    Args:
        config: Its `[tls]`, and its addresses, which say what is needed.

    Raises:
        ConfigError: A file cannot be used; it names the file and what is wrong.

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
            self.own_binding = _binding(_load_own(self._acceptor, tls.certificate, tls.key))
            # Connections live long: none of ours resumes a session.
            self._acceptor.num_tickets = 0
            if tls.client_certificates:
                self._acceptor.verify_mode = ssl.CERT_REQUIRED
        # The system's certificates take some MiB, which few nodes need.
        if tls.ca is not None or any(address.tls for address in config.peers):
            self._initiator = _context(ssl.Purpose.SERVER_AUTH, tls)
            if tls.certificate is not None and tls.key is not None:
                _load_own(self._initiator, tls.certificate, tls.key)

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
        """Tell whether there is a certificate to accept connections with."""
        return self._acceptor is not None

    def accept(self) -> TlsStream:
        """Return the acceptor's end of a connection."""
        assert self._acceptor is not None
        return TlsStream(self._acceptor, None, self.own_binding)

    def connect(self, address: Address) -> TlsStream | None:
        """Return the initiator's end of a connection, None where no TLS is spoken."""
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


class TlsStream:
    """Hold one end of a TLS connection, without I/O.

    A peer's fault never raises: it ends the stream, and `problem` says why.

    Args:
        context: From `TlsContexts`.
        host: To whom an initiator connects, and for whom the certificate must be; None for an acceptor.
        channel_binding: Of an acceptor.

    Attributes:
        channel_binding: SHA-256 of the acceptor's certificate; an initiator knows it when `established`.
        established: Whether the handshake is done.
        ended: Whether the peer has said that nothing more comes.
        problem: Why the stream cannot go on, "" while it can.
    """

    __slots__ = (
        "_early",
        "_ending",
        "_incoming",
        "_object",
        "_outgoing",
        "_plain_answer",
        "channel_binding",
        "ended",
        "established",
        "problem",
    )

    def __init__(self, context: ssl.SSLContext, host: str | None, channel_binding: bytes = b"") -> None:
        self.channel_binding = channel_binding
        self.established = self.ended = False
        self.problem = ""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, host is None, host)
        self._early = self._plain_answer = b""
        self._ending = False
        self.receive(b"")

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the network; return the plaintext in them, up to the end or a fault."""
        parts: list[bytes] = []
        view = memoryview(data)
        # An initiator begins with nothing.
        for at in range(0, len(data) or 1, SLICE_BYTES):
            if self.ended or self.problem:
                break
            self._incoming.write(view[at : at + SLICE_BYTES])
            self._read(parts)
        return b"".join(parts)

    def send(self, data: bytes) -> bytes:
        """Return what to write for some plaintext: nothing during the handshake, which it waits for."""
        if not self.established:
            self._early += data
            return b""
        if self._ending or self.problem:
            return b""
        if len(data) <= SLICE_BYTES:
            self._object.write(data)
            return self._outgoing.read()
        parts = []
        view = memoryview(data)
        for at in range(0, len(data), SLICE_BYTES):
            self._object.write(view[at : at + SLICE_BYTES])
            parts.append(self._outgoing.read())
        return b"".join(parts)

    def data_to_send(self) -> bytes:
        """Return what the protocol itself has to write: the handshake, alerts."""
        answer, self._plain_answer = self._plain_answer, b""
        return answer or self._outgoing.read()

    def end(self) -> bytes:
        """Return what to write so that the peer knows that nothing more comes."""
        if not self._ending:
            self._ending = True
            # It raises, as long as the peer has not said so too.
            with contextlib.suppress(ssl.SSLError):
                self._object.unwrap()
        return self._outgoing.read()

    def _read(self, parts: list[bytes]) -> None:
        try:
            if not self.established:
                self._object.do_handshake()
                self._establish()
            while data := self._object.read(SLICE_BYTES):
                parts.append(data)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            self.problem = explain(error)
            if error.reason == "HTTP_REQUEST":
                self._plain_answer = PLAIN_HTTP_ANSWER

    def _establish(self) -> None:
        self.established = True
        if not self._object.server_side:
            self.channel_binding = channel_binding(self._object)
        if self._early:
            self._object.write(self._early)
            self._early = b""


def channel_binding(connection: ssl.SSLObject | ssl.SSLSocket) -> bytes:
    """Return SHA-256 of the certificate of the acceptor at the other end."""
    certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return _binding(certificate)


def explain(error: ssl.SSLError) -> str:
    """Return what went wrong on a connection, as part of a sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message.rstrip('.')}"
    if error.reason in _PROBLEMS:
        return _PROBLEMS[error.reason]
    problem = openssl_words(error)
    if alert := re.fullmatch(r"(?:ssl|tls)\w* alert (.+)", problem):
        return f"it refuses this end: {alert[1]}"
    return f"TLS failed: {problem}"


def _context(purpose: ssl.Purpose, tls: Tls) -> ssl.SSLContext:
    """Return a context that trusts `ca`; without it, an initiator trusts what the system does."""
    trusted = b"".join(_certificates(tls.ca)) if tls.ca is not None else None
    context = ssl.create_default_context(purpose, cadata=trusted)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _load_own(context: ssl.SSLContext, certificate: str, key: str) -> bytes:
    """Give a context the certificate and the key of this end, and return the certificate."""

    def refuse() -> str:
        # Without this, OpenSSL would ask for it on the terminal.
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


def _binding(certificate: bytes) -> bytes:
    return hashlib.sha256(certificate).digest()


def openssl_words(error: ssl.SSLError) -> str:
    """Return what OpenSSL calls an error, for people."""
    return (error.reason or str(error)).lower().replace("_", " ")
