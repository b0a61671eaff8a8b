"""Shake hands in memory with a host's certificates, as its peers will; say what is wrong, or until when.

Standard input is JSON. `node` and `client` are PEM: a certificate and its private key, or "". `ca` is what to
trust, `name` the host's in `node`, `client_certificates` whether what connects must have a certificate.
"""

import json
import ssl
import sys
import tempfile
import time
from typing import Any


def main() -> int:
    """Check what standard input holds."""
    given = json.load(sys.stdin)
    try:
        ends = [time.time() + 10**9]
        if given["node"]:
            client = given["node"] if given["client_certificates"] else ""
            ends.append(shake_hands(given["node"], client, given["ca"], given["name"]))
        if given["client"]:
            ends.append(shake_hands(given["client"], given["client"], given["ca"], None))
    except ssl.SSLCertVerificationError as error:
        print(error.verify_message.rstrip("."))
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            print("the private key is not that of the certificate")
        else:
            print("certificate, private key or what to trust is not PEM, or the key has a passphrase")
    else:
        print(int((min(ends) - time.time()) / 86_400))
        return 0
    return 1


def shake_hands(server: str, client: str, ca: str, name: str | None) -> float:
    """Return when the certificate expires; without a name only the client's is checked.

    Raises:
        ssl.SSLError: An end refuses the other, or cannot use its own certificate.
    """
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    connecting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load(accepting, server)
    if client:
        load(connecting, client)
        accepting.load_verify_locations(cadata=ca)
        accepting.verify_mode = ssl.CERT_REQUIRED
    if name is None:
        connecting.check_hostname = False
        connecting.verify_mode = ssl.CERT_NONE
    else:
        connecting.load_verify_locations(cadata=ca)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        connecting.wrap_bio(back, there, server_hostname=name),
        accepting.wrap_bio(there, back, server_side=True),
    ]
    unfinished = list(ends)
    while unfinished:
        for end in list(unfinished):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            unfinished.remove(end)
    checked: Any = ends[0 if name is not None else 1].getpeercert()
    return ssl.cert_time_to_seconds(checked["notAfter"])


def load(context: ssl.SSLContext, pem: str) -> None:
    """Give a context a certificate and its key, which Python takes from files only."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem)
        file.flush()
        # The empty passphrase stands for none: nobody is asked.
        context.load_cert_chain(file.name, password=b"")


if __name__ == "__main__":
    sys.exit(main())
