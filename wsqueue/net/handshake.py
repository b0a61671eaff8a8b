"""Handshakes in memory, which show whether ends would accept each other's certificates.

It uses the standard library only, because Ansible's control node uses it too, without the rest of wsqueue.
"""

from __future__ import annotations

import ssl
import tempfile
import time
from typing import Any

SECONDS_A_DAY = 86_400


def shake_hands(
    initiator: ssl.SSLContext, acceptor: ssl.SSLContext, host: str | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Return both ends, initiator first, after a handshake.

    Args:
        initiator: The context of the end that connects.
        acceptor: The context of the end that accepts.
        host: The name or address that the initiator expects in the acceptor's certificate.

    Raises:
        ssl.SSLError: An end refuses the other.
    """
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    connecting = initiator.wrap_bio(back, there, server_hostname=host)
    accepting = acceptor.wrap_bio(there, back, server_side=True)
    unfinished = [connecting, accepting]
    while unfinished:
        for end in list(unfinished):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            unfinished.remove(end)
    return connecting, accepting


def check_certificates(
    *, node: str, client: str, ca: str, name: str, client_certificates: bool
) -> tuple[str, int]:
    """Return why peers would refuse the certificates of a host, and the days until the first expires.

    The reason is "" if they would not, the number 0 if they would.

    Args:
        node: Certificate and private key of the host's nodes as PEM, "" without nodes.
        client: Certificate and private key of the host's clients as PEM, "" without them.
        ca: The certificates to trust as PEM.
        name: The name or address in the certificate of the nodes.
        client_certificates: True if what connects must have a certificate.
    """
    ends = [time.time() + 10_000 * SECONDS_A_DAY]
    try:
        if node:
            ends.append(_end_of_acceptor(node, node if client_certificates else "", ca, name))
        if client:
            ends.append(_end_of_initiator(client, ca))
    except ssl.SSLCertVerificationError as error:
        return error.verify_message.rstrip("."), 0
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            return "the private key is not that of the certificate", 0
        return "certificate, private key or CA is not PEM, or the key has a passphrase", 0
    return "", int((min(ends) - time.time()) / SECONDS_A_DAY)


def _end_of_acceptor(server: str, client: str, ca: str, name: str) -> float:
    """Return when the certificate of an acceptor expires, which asks for the client's unless that is ""."""
    initiator, acceptor = _context(ssl.PROTOCOL_TLS_CLIENT, client), _context(ssl.PROTOCOL_TLS_SERVER, server)
    initiator.load_verify_locations(cadata=ca)
    if client:
        _ask_for_certificate(acceptor, ca)
    return _end_of_peer(shake_hands(initiator, acceptor, name)[0])


def _end_of_initiator(client: str, ca: str) -> float:
    """Return when the certificate of an initiator expires."""
    initiator, acceptor = _context(ssl.PROTOCOL_TLS_CLIENT, client), _context(ssl.PROTOCOL_TLS_SERVER, client)
    initiator.check_hostname = False
    initiator.verify_mode = ssl.CERT_NONE
    _ask_for_certificate(acceptor, ca)
    return _end_of_peer(shake_hands(initiator, acceptor)[1])


def _context(protocol: int, pem: str) -> ssl.SSLContext:
    """Return a context with a certificate and its key, which Python takes from files only."""
    context = ssl.SSLContext(protocol)
    if pem:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(pem)
            file.flush()
            # The empty passphrase stands for none, so OpenSSL doesn't ask for it on the terminal.
            context.load_cert_chain(file.name, password=b"")
    return context


def _ask_for_certificate(acceptor: ssl.SSLContext, ca: str) -> None:
    acceptor.load_verify_locations(cadata=ca)
    acceptor.verify_mode = ssl.CERT_REQUIRED


def _end_of_peer(end: ssl.SSLObject) -> float:
    certificate: Any = end.getpeercert()
    return ssl.cert_time_to_seconds(certificate["notAfter"])
