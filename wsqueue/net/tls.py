"""A TLS stream without I/O: from ciphertext to plaintext and back.

The TLS of the event loops holds 256 KiB for each connection, hides the size of its buffers, loses data that a
paused reader has not read, and drops the alert that tells a peer why it is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl

SLICE_BYTES = 16 * 1024
"""Bytes encrypted or decrypted at a time, one record, because OpenSSL's buffers never shrink."""


PLAIN_HTTP_ANSWER = b"HTTP/1.1 400 TLS is spoken here: expected wss://\r\nConnection: close\r\n\r\n"
"""Answer to a peer that speaks HTTP without TLS, because it would not understand an alert."""

NO_TLS_ANSWER = b"HTTP/1.1 400 No TLS is spoken here\r\nConnection: close\r\n\r\n"
"""Answer to a peer that speaks TLS where none is spoken: its TLS library reports that this is no TLS."""


_PROBLEMS = {
    "HTTP_REQUEST": "it speaks HTTP without TLS: expected wss://",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has no certificate: [tls] client_certificates wants one",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate: expected [tls] certificate and key here",
    "WRONG_VERSION_NUMBER": "it speaks no TLS: expected an address without wss://, or one that does",
}
"""Meanings of OpenSSL's reasons here; the other reasons say enough."""


class TlsStream:
    """Hold one end of a TLS connection, without I/O.

    A peer's fault never raises: it ends the stream, and `problem` says why.

    Args:
        context: A context of `TlsContexts`.
        host: The host that an initiator connects to, which the certificate must name; None for an acceptor.
        channel_binding: SHA-256 of the own certificate, for an acceptor.

    Attributes:
        channel_binding: SHA-256 of the acceptor's certificate; an initiator knows it when `established`.
        established: True when the handshake is done.
        ended: True when the peer has ended its direction of the stream.
        problem: The reason why the stream cannot go on, "" while it can.
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
        """Return the bytes to write for some plaintext; during the handshake it waits, and there are none."""
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
        """Return the bytes that the protocol itself has to write: the handshake, alerts."""
        answer, self._plain_answer = self._plain_answer, b""
        return answer or self._outgoing.read()

    def end(self) -> bytes:
        """End this direction of the stream; return the bytes to write."""
        if not self._ending:
            self._ending = True
            # It raises until the peer has ended its direction too.
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
    return binding_of(certificate)


def explain(error: ssl.SSLError) -> str:
    """Return the reason of an error on a connection, as part of a sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message.rstrip('.')}"
    if error.reason in _PROBLEMS:
        return _PROBLEMS[error.reason]
    problem = openssl_words(error)
    if alert := re.fullmatch(r"(?:ssl|tls)\w* alert (.+)", problem):
        return f"it refuses this end: {alert[1]}"
    return f"TLS failed: {problem}"


def binding_of(certificate: bytes) -> bytes:
    """Return the channel binding of a connection whose acceptor has a certificate (RFC 5929 section 4)."""
    return hashlib.sha256(certificate).digest()


def openssl_words(error: ssl.SSLError) -> str:
    """Return OpenSSL's own words for an error."""
    return (error.reason or str(error)).lower().replace("_", " ")
