"""Who is behind a proxy: the addresses in `X-Forwarded-For`. No I/O.

Each proxy adds the address that it sees at the end of the list, and leaves the rest as it came. So only the
entries from the right are to be believed, as far as proxies that are trusted have added them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(trusted: Iterable[str]) -> list[Network]:
    """Return the networks of proxies that are trusted; an address is a network of one."""
    return [ipaddress.ip_network(one) for one in trusted]


def client_of(forwarded_for: str, peer: str, trusted: Iterable[Network]) -> str:
    """Return the IP address of a client, as far as proxies that are trusted tell it.

    Args:
        forwarded_for: The header, "" if there is none.
        peer: IP address of the peer, "" for a unix socket, which is trusted.
        trusted: The proxies that are trusted.
    """
    known = list(trusted)
    client = peer
    for entry in reversed(forwarded_for.split(",")):
        if client and not _is_in(client, known):
            break
        try:
            client = str(ipaddress.ip_address(entry.strip().strip("[]")))
        except ValueError:
            # Nobody who is trusted has added that.
            break
    return client


def _is_in(address: str, known: Iterable[Network]) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in known)
