"""The connections that a node accepts: their limit, how they are closed, and how each end is logged."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import cast

from ..config.keys import Keys
from ..config.model import NodeConfig
from ..journal import log
from ..monitoring.reporter import Reporter
from ..net.buffers import Buffers
from ..net.certificates import TlsContexts
from ..net.connection import Connection, Traffic
from ..protocol import v2
from ..protocol.close import UNREACHABLE, CloseCode, Closed
from .limits import SPARE_CONNECTIONS
from .listener import Listener

logger = logging.getLogger(__name__)

RECONNECTS_PER_SECOND = 2000.0
"""Number of clients that are asked to come back per second after a restart: a node can greet more."""

MAX_RETRY_SECONDS = 60.0
"""The longest time over which clients are asked to come back."""


class Connections(Collection[Connection]):
    """The connections that a node has accepted and that are not gone yet.

    Args:
        members: An empty set; the reporter may read it too.
        counters: Counters of the node.
        traffic: Counts the bytes of all connections of the node.
        buffers: Counts the bytes that wait in them.
        reporter: Is told of peers that were refused.

    Attributes:
        draining: True while the node drains: then the end of a connection is nothing unusual.
    """

    def __init__(
        self,
        members: set[Connection],
        counters: Counter[str],
        traffic: Traffic,
        buffers: Buffers,
        reporter: Reporter,
    ) -> None:
        self.draining = False
        self._traffic = traffic
        self._buffers = buffers
        self._members, self._counters, self._reporter = members, counters, reporter
        self._closing: tuple[set[Connection], asyncio.Future[None]] | None = None

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._members)

    def __iter__(self) -> Iterator[Connection]:
        """Return an iterator over the connections of this moment."""
        return iter(tuple(self._members))

    def __contains__(self, connection: object) -> bool:
        """Return True if a connection is not gone."""
        return connection in self._members

    def accept(
        self, listener: Listener, config: NodeConfig, keys: Keys, tls: TlsContexts
    ) -> asyncio.Protocol:
        """Return the protocol of a new transport: a connection, or one that drops it."""
        full = len(self._members) >= config.limits.max_connections + SPARE_CONNECTIONS
        # A reload opens listeners before it uses their certificate, and closes them after.
        if full or (listener.address.tls and not tls.accepts):
            self._counters["connections_refused"] += 1
            return _Dropped()
        stream = tls.accept() if listener.address.tls else None
        connection = Connection.accept(
            listener.endpoint,
            keys,
            config,
            on_lost=self._lost,
            tls=stream,
            traffic=self._traffic,
            buffers=self._buffers,
        )
        self._members.add(connection)
        self._counters["connections"] += 1
        return connection

    def announce_drain(self) -> None:
        """Tell the peers that speak v2 to go elsewhere, or to come back after a random time."""
        retry_seconds = min(len(self._members) / RECONNECTS_PER_SECOND, MAX_RETRY_SECONDS)
        for connection in self:
            if connection.session.v2:
                connection.send_packet(v2.Draining(retry_seconds))

    async def close(self, chosen: Callable[[Connection], bool]) -> None:
        """Close some connections, and wait until they are gone."""
        closing = set(filter(chosen, self._members))
        if not closing:
            return
        gone = asyncio.get_running_loop().create_future()
        self._closing = (set(closing), gone)
        for connection in closing:
            connection.close(CloseCode.GOING_AWAY, "draining")
        await gone

    def abort(self) -> None:
        """Cut all connections."""
        for connection in self:
            connection.abort(CloseCode.GOING_AWAY)

    def _lost(self, connection: Connection, closed: Closed) -> None:
        self._members.discard(connection)
        if self._closing is not None:
            closing, gone = self._closing
            closing.discard(connection)
            if not closing and not gone.done():
                gone.set_result(None)
        self._log_end(connection, closed)

    def _log_end(self, connection: Connection, closed: Closed) -> None:
        if connection.established:
            violation = closed.code >= 1002 and not closed.by_peer and not self.draining
            level = logging.WARNING if violation else logging.DEBUG
            log(logger, level, "connection closed", peer=connection.peer, reason=closed)
        elif closed.code == UNREACHABLE:
            self._counters["tls_refused"] += 1
            self._reporter.refused("tls_refused", connection.peer)
            log(logger, logging.WARNING, "TLS refused", peer=connection.peer, reason=closed)
        elif connection.handler is not None or closed.code == CloseCode.HELLO_TIMEOUT:
            # The peer chooses its code, and must not choose the name of a counter.
            counter = "refused_by_peer" if closed.by_peer else f"refused_{closed.code}"
            self._counters[counter] += 1
            # A browser opens connections in advance, and never uses some of them.
            if connection.handler is not None:
                self._reporter.refused(counter, connection.peer)
            level = logging.INFO if self.draining else logging.WARNING
            log(logger, level, "hello refused", peer=connection.peer, reason=closed)
        else:
            log(logger, logging.DEBUG, "request answered", peer=connection.peer, reason=closed)


class _Dropped(asyncio.Protocol):
    """Drop a connection that the node cannot take."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Drop it (asyncio calls this)."""
        cast("asyncio.Transport", transport).abort()
