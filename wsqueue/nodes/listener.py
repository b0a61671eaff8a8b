"""Addresses that a node listens on."""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

from ..config.addresses import Address
from ..net.connection import Connection, Handler
from ..protocol.framing import HttpResponse

LISTEN_BACKLOG = 4096
"""Connections that the kernel holds for us: what reconnects at once after a restart (Linux's default)."""


class Listener:
    """Listen at an address, at which a reload may turn TLS on or off.

    Attributes:
        server: Once it listens.
        endpoint: Finds what serves a request that comes here.
        pages_only: Whether nothing but the pages of the node is there, for whoever reaches it.
    """

    server: asyncio.AbstractServer

    def __init__(
        self, address: Address, endpoint: Callable[[Listener, Connection, str], Handler | HttpResponse]
    ) -> None:
        self.address = address
        # One for all of its connections.
        self.endpoint = functools.partial(endpoint, self)
        self.pages_only = False

    def bound(self) -> list[Address]:
        """Return where it listens, with the ports that the system chose for port 0."""
        if self.address.port or self.address.socket:
            return [self.address]
        sockets = cast("asyncio.Server", self.server).sockets  # uvloop's is no subclass
        # A name that stands for several IP addresses gets a port for each.
        ports = dict.fromkeys(listening.getsockname()[1] for listening in sockets)
        return [msgspec.structs.replace(self.address, port=port) for port in ports]

    def close(self) -> None:
        """Stop listening."""
        self.server.close()
        if self.address.socket:
            Path(self.address.socket).unlink(missing_ok=True)


class _Refused(asyncio.Protocol):
    """Drop a connection that comes when there are far too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Drop it (asyncio calls this)."""
        cast("asyncio.Transport", transport).abort()


def somebody_listens(path: str) -> bool:
    """Tell whether somebody may listen on a unix socket, or it was left behind or is not there."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)
