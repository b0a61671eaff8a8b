"""The URL of the HTTP proxy that a client connects through: `http://proxy.example.com:3128`."""

from __future__ import annotations

import base64
from urllib.parse import unquote, urlsplit

import msgspec

from .addresses import host_and_port, parse_address

DEFAULT_PORT = 80
"""Port of a proxy whose URL has none: that of http."""

EXPECTED = "expected a URL such as http://proxy.example.com:3128, with a port from 1 to 65535"


class HttpProxy(msgspec.Struct, frozen=True):
    """Locate a proxy.

    Attributes:
        host: Its name or IP address, without brackets.
        port: Its TCP port.
        authorization: Value of the header `Proxy-Authorization`, which is a secret; "" without one.
    """

    host: str
    port: int
    authorization: str = ""

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)

    def __repr__(self) -> str:
        return f"HttpProxy({str(self)!r})"


def parse_proxy(url: str, *, with_password: bool = False) -> HttpProxy:
    """Parse the URL of a proxy; without a scheme it is one of http.

    Args:
        url: The URL.
        with_password: True if it may have a user and a password.

    Raises:
        ValueError: It is no such URL; the message does not repeat it, because it may have a password.
    """
    scheme, separator, _ = url.partition("://")
    # No scheme has a colon or @; a password may be before these.
    if separator and scheme.lower() != "http" and scheme.isalnum():
        raise ValueError(f"no proxy is spoken to by {scheme!r}: {EXPECTED}")
    try:
        parts = urlsplit(url if separator else f"http://{url}")
        # The name is checked as those of nodes are.
        place = parse_address(host_and_port(parts.hostname or "", parts.port or DEFAULT_PORT))
        user, password = (unquote(part or "").encode() for part in (parts.username, parts.password))
    except ValueError:
        # The library's errors repeat parts of the URL.
        raise ValueError(f"that is not the URL of a proxy: {EXPECTED}") from None
    if parts.port == 0 or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"that is not the URL of a proxy: {EXPECTED}")
    if parts.username is None:
        return HttpProxy(place.host, place.port)
    if not with_password:
        raise ValueError(
            "the URL of the proxy has a user, and a configuration is no place for a password: expected it in"
            " the environment variable HTTPS_PROXY"
        )
    authorization = f"Basic {base64.b64encode(user + b':' + password).decode()}"
    return HttpProxy(place.host, place.port, authorization)
