"""Addresses of listeners and of endpoints: `host:port/producer`.

With TLS it is `wss://host:port/producer`.
"""

from __future__ import annotations

import ipaddress
import re

import msgspec

_TCP = re.compile(
    r"(?P<tls>wss://)?"
    r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<name>[^\s\[\]:/?#@]+))"
    r":(?P<port>[0-9]{1,5})(?P<path>/.*)?"
)
_NAME = re.compile(r"[^\s\[\]:/?#@\x00-\x1f\x7f]{1,253}\.?")  # as long as RFC 1035 allows
_UNIX = re.compile(r"unix:(/[^:\x00]+)(?::(/.*))?")
_PATH = re.compile(r"[!$&-;=@-Z_a-z~%]*")  # RFC 3986 section 3.3: pchar and "/"
_ZONE = re.compile(r"(wss://)?\[[0-9a-fA-F:.]+%")

NO_ZONE = (
    "expected a host name or an address without a zone: `%` and what follows mean nothing to other hosts"
)

MAX_SOCKET_PATH_BYTES = 107
"""Maximum length of a socket path, of unix(7); uvloop would silently cut a longer path."""


class Address(msgspec.Struct, frozen=True):
    """Locate an endpoint or a listener.

    Attributes:
        host: Host name or IP address without brackets; "" for a unix socket.
        port: TCP port; 0 for a unix socket.
        socket: Path of a unix socket; "" for TCP.
        path: Path of the endpoint, as `/producer`; "" for a listener.
        tls: Whether peers speak TLS there.
    """

    host: str = ""
    port: int = 0
    socket: str = ""
    path: str = ""
    tls: bool = False

    def __str__(self) -> str:
        if self.socket:
            return f"unix:{self.socket}" + (f":{self.path}" if self.path else "")
        return f"{'wss://' if self.tls else ''}{host_and_port(self.host, self.port)}{self.path}"

    @property
    def loopback(self) -> bool:
        """Return True if only this host can reach the address."""
        return bool(self.socket) or is_loopback(self.host)

    def with_path(self, path: str) -> Address:
        """Return the same place with another path."""
        return msgspec.structs.replace(self, path=path)


def host_and_port(host: str, port: int) -> str:
    """Return `host:port`, or `[host]:port` for an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ip(host: str) -> bool:
    """Return True if a host is an IP address, without brackets, and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return True if a name or an IP address leads to the host that uses it."""
    return host == "localhost" or (is_ip(host) and ipaddress.ip_address(host).is_loopback)


def parse_address(text: str, endpoint: str = "") -> Address:
    """Parse `host:port`, `[ipv6]:port` or `unix:/socket`, followed by the path of an endpoint.

    Before a host, `wss://` asks for TLS.

    Args:
        text: The form of configuration files, e.g. `192.0.2.7:10001/producer`,
            `[2001:db8::7]:10001/producer` or `unix:/run/wsqueue.sock:/producer`.
        endpoint: Required end of the path, e.g. `/producer`; "" if no path is allowed.

    Raises:
        ValueError: The text is no address; the message says which forms are expected.
    """
    if match := _UNIX.fullmatch(text):
        if len(match[1].encode()) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"expected a socket path of at most {MAX_SOCKET_PATH_BYTES} bytes")
        address = Address(socket=match[1], path=match[2] or "")
    elif (match := _TCP.fullmatch(text)) and int(match["port"]) < 2**16 and (host := _host_of(match)):
        address = Address(
            host=host, port=int(match["port"]), path=match["path"] or "", tls=match["tls"] is not None
        )
    elif _ZONE.match(text):
        raise ValueError(NO_ZONE)
    else:
        raise ValueError(expected_form(endpoint))
    path_right = address.path.endswith(endpoint) if endpoint else not address.path
    if not path_right or not _PATH.fullmatch(address.path):
        raise ValueError(expected_form(endpoint))
    return address


def parse_server(text: str) -> Address:
    """Parse the address of a NATS server: `nats://host:port`, with TLS `tls://host:port`.

    Raises:
        ValueError: The text is no such address; the message says which forms are expected.
    """
    scheme, separator, place = text.partition("://")
    expected = "expected nats://host:port, with TLS tls://host:port"
    if scheme not in ("nats", "tls") or not separator:
        raise ValueError(expected)
    try:
        address = parse_address(("wss://" if scheme == "tls" else "") + place)
    except ValueError:
        raise ValueError(expected) from None
    if address.socket or not address.port or "wss:" in place:
        raise ValueError(expected)
    return address


def expected_form(endpoint: str) -> str:
    """Return the expected forms of an address, for an error message."""
    socket = f"unix:/path:{endpoint}" if endpoint else "unix:/path"
    return (
        f"expected host:port{endpoint}, [ipv6]:port{endpoint} or {socket}; with TLS wss://host:port{endpoint}"
    )


def _host_of(match: re.Match[str]) -> str:
    """Return a host as the resolver and the headers of a request have it, in ASCII; "" if it is none."""
    try:
        if match["ipv6"] is not None:
            return str(ipaddress.IPv6Address(match["ipv6"]))
        name = match["name"].encode("idna").decode("ascii").lower()
        name.encode("idna")  # the first time, some characters become dots
    except ValueError:
        return ""
    return name if _NAME.fullmatch(name) else ""
