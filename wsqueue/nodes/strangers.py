"""The connections whose peers have not proved themselves yet: a pool of its own, so that floods stay in it.

When the pool is full, one connection goes for each new one, by chance, as OpenSSH's MaxStartups has it: a
peer that does its hello at once is hardly ever hit, and a flood cannot keep it out. Two are drawn, and the
one goes whose address has more connections here, so that a flood from one address hits itself.
"""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from typing import Generic, TypeVar

IPV6_NETWORK_BITS = 64
"""Addresses of one IPv6 network count as one source, because a host has all of them (RFC 6177)."""

T = TypeVar("T")


class Strangers(Generic[T]):
    """Hold strangers and where they come from.

    Args:
        chance: Source of the draws.
    """

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.Random()  # noqa: S311 - who guesses a draw gains one connection
        # A list to draw from, and the place of each in it.
        self._list: list[T] = []
        self._places: dict[T, int] = {}
        self._sources: dict[T, str] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of strangers."""
        return len(self._list)

    def __contains__(self, stranger: T) -> bool:
        """Return True if this is a stranger."""
        return stranger in self._places

    def add(self, stranger: T, source: str) -> None:
        """Add a stranger.

        Args:
            stranger: The connection.
            source: Where it comes from; see `source_of`.
        """
        self._places[stranger] = len(self._list)
        self._list.append(stranger)
        self._sources[stranger] = source
        self._counts[source] += 1

    def remove(self, stranger: T) -> bool:
        """Remove a stranger that is gone or has proved itself; return False if it is none."""
        place = self._places.pop(stranger, None)
        if place is None:
            return False
        last = self._list.pop()
        if last is not stranger:
            self._list[place] = last
            self._places[last] = place
        source = self._sources.pop(stranger)
        self._counts[source] -= 1
        if not self._counts[source]:
            del self._counts[source]
        return True

    def draw(self) -> T:
        """Return the stranger that has to go."""
        first, second = self._chance.choice(self._list), self._chance.choice(self._list)
        return max(first, second, key=lambda stranger: self._counts[self._sources[stranger]])


def source_of(host: str) -> str:
    """Return where a peer comes from: its IPv4 address, its IPv6 network, or "" for a unix socket."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), IPV6_NETWORK_BITS), strict=False))
