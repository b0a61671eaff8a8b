"""The home of a topic, as far as a consumer can tell: whether another one has it."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from ..config.addresses import Address, is_ip
from ..protocol.routing import router

ANY_HOST = ("0.0.0.0", "::")  # noqa: S104 - compared with, and not listened on
"""Addresses of listeners at all addresses of a host."""


class Homes:
    """Know which topics belong to other consumers than this one.

    A consumer knows the list of all (`[monitoring]`) or not, and finds itself in it by its listeners. If that
    fails, it knows of no topic that it belongs to another one.

    Args:
        consumers: The addresses of all consumers, in their order.
        listeners: The addresses that this one listens on.
    """

    def __init__(self, consumers: Sequence[Address], listeners: Sequence[Address]) -> None:
        own = [index for index, address in enumerate(consumers) if _is_own(address, listeners)]
        self._own = own[0] if len(own) == 1 else None
        self._consumers = consumers
        self._index_of = router(len(consumers)) if consumers else None

    def elsewhere(self, topic: str) -> Address | None:
        """Return the address of the other consumer that a topic belongs to, None if that is not known."""
        if self._own is None or self._index_of is None or (index := self._index_of(topic)) == self._own:
            return None
        return self._consumers[index]


def _is_own(address: Address, listeners: Sequence[Address]) -> bool:
    """Return True if one of the listeners is at an address."""
    if address.socket:
        return any(listener.socket == address.socket for listener in listeners)
    at_port = [
        listener.host for listener in listeners if not listener.socket and listener.port == address.port
    ]
    return address.host in at_port or (any(host in ANY_HOST for host in at_port) and _is_here(address.host))


def _is_here(host: str) -> bool:
    """Return True if a host is this one, without asking DNS."""
    if not is_ip(host):
        return host == socket.gethostname().lower()
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True
