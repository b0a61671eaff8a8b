"""Addresses that a node listens on."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

from ..config.addresses import Address
from ..config.model import NodeConfig
from ..errors import ListenError, why
from ..net.connection import Connection, Handler
from ..protocol.framing import HttpResponse, RequestReceived

LISTEN_BACKLOG = 4096
"""Connections that the kernel holds for a node, as when all come back after a restart (Linux's default)."""


class Listener:
    """Listen at an address, at which a reload may turn TLS on or off.

    Attributes:
        server: The server, once it listens.
        endpoint: Finds the handler or page of a request that comes here.
        pages_only: True when only the pages of the node are served here, to everyone who reaches it.
        proxied: True when only proxies connect here.
    """

    server: asyncio.AbstractServer

    def __init__(
        self,
        address: Address,
        endpoint: Callable[[Listener, Connection, RequestReceived], Handler | HttpResponse],
    ) -> None:
        self.address = address
        # All of its connections share one object.
        self.endpoint = functools.partial(endpoint, self)
        self.pages_only = self.proxied = False

    async def open(self, accept: Callable[[Listener], asyncio.Protocol]) -> None:
        """Begin to listen.

        Args:
            accept: Returns the protocol of a new connection.

        Raises:
            OSError: The address cannot be used.
        """
        loop, address = asyncio.get_running_loop(), self.address
        protocol = functools.partial(accept, self)
        if not address.socket:
            self.server = await loop.create_server(
                protocol, address.host, address.port, backlog=LISTEN_BACKLOG
            )
            return
        # The loop would take a socket over even from a process that listens on it.
        if somebody_listens(address.socket):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self.server = await loop.create_unix_server(protocol, address.socket, backlog=LISTEN_BACKLOG)

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


class Listeners:
    """The listeners of a node, which a reload opens and closes.

    Args:
        accept: Returns the protocol of a new connection at a listener.
        endpoint: Finds the handler or page of a request at a listener.
    """

    def __init__(
        self,
        accept: Callable[[Listener], asyncio.Protocol],
        endpoint: Callable[[Listener, Connection, RequestReceived], Handler | HttpResponse],
    ) -> None:
        self._accept, self._endpoint = accept, endpoint
        self._listeners: dict[Address, Listener] = {}

    @property
    def addresses(self) -> list[Address]:
        """Return where the node serves more than its pages, with the ports that the system chose."""
        listeners = (listener for listener in self._listeners.values() if not listener.pages_only)
        return [bound for listener in listeners for bound in listener.bound()]

    async def listen(self, config: NodeConfig) -> None:
        """Listen at the addresses of a configuration, and no longer at others.

        Raises:
            ListenError: An address cannot be used; then nothing is changed.
        """
        pages = config.page_listeners
        proxied = config.proxy_listeners
        wanted = config.listeners + proxied + pages
        turned, new = self._kept_with_other_tls(wanted)
        opened = await self._open([address for address in new if address not in turned])
        for address, listener in turned.items():
            del self._listeners[listener.address]
            listener.address = address
        self._listeners |= turned | opened
        for address in set(self._listeners).difference(wanted):
            self._listeners.pop(address).close()
        for address, listener in self._listeners.items():
            listener.pages_only, listener.proxied = address in pages, address in proxied

    def close(self) -> None:
        """Stop listening at all addresses."""
        while self._listeners:
            self._listeners.popitem()[1].close()

    def _kept_with_other_tls(self, wanted: list[Address]) -> tuple[dict[Address, Listener], list[Address]]:
        """Return listeners by the new addresses that differ only in TLS, and all new addresses."""
        new = [address for address in wanted if address not in self._listeners]
        turned: dict[Address, Listener] = {}
        for address in new:
            other = msgspec.structs.replace(address, tls=not address.tls)
            if other in self._listeners and other not in wanted:
                turned[address] = self._listeners[other]
        return turned, new

    async def _open(self, addresses: list[Address]) -> dict[Address, Listener]:
        opened: dict[Address, Listener] = {}
        try:
            for address in addresses:
                listener = Listener(address, self._endpoint)
                await listener.open(self._accept)
                opened[address] = listener
        except OSError as error:
            for listener in opened.values():
                listener.close()
            raise ListenError(f"cannot listen on {address}: {why(error)}") from None
        return opened


def somebody_listens(path: str) -> bool:
    """Return True if a process listens on a unix socket; False if it was left behind or is not there."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)
