"""TLS without I/O: from PEM files to contexts, from ciphertext to plaintext and back.

What event loops have of their own holds 256 KiB for each connection, hides what waits in its buffers,
forgets what a paused reader has not read, and drops the alert that tells a peer why it is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import ssl

SLICE_BYTES = 16 * 1024
"""What is encrypted or decrypted at a time, a record: OpenSSL's buffers stay as large as they once were."""


PLAIN_HTTP_ANSWER = b"HTTP/1.1 400 TLS is spoken here: expected wss://\r\nConnection: close\r\n\r\n"
"""What a peer gets that speaks HTTP without TLS, for it would not understand an alert."""

NO_TLS_ANSWER = b"HTTP/1.1 400 No TLS is spoken here\r\nConnection: close\r\n\r\n"
"""What a peer gets that speaks TLS where nobody else does: it finds that this is no TLS."""


_PROBLEMS = {
    "HTTP_REQUEST": "it speaks HTTP without TLS: expected wss://",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has no certificate: [tls] client_certificates wants one",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate: expected [tls] certificate and key here",
    "WRONG_VERSION_NUMBER": "it speaks no TLS: expected an address without wss://, or one that does",
}
"""What OpenSSL's reasons mean here; others say enough."""


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


def _binding(certificate: bytes) -> bytes:
    return hashlib.sha256(certificate).digest()


def openssl_words(error: ssl.SSLError) -> str:
    """Return what OpenSSL calls an error, for people."""
    return (error.reason or str(error)).lower().replace("_", " ")
