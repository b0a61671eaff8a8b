"""The connections that a node accepts: their limits, how they are closed, and how each end is logged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import cast

from ..config.keys import Keys
from ..config.model import Limits, NodeConfig
from ..journal import log
from ..monitoring.reporter import Reporter
from ..net.buffers import Buffers
from ..net.certificates import TlsContexts
from ..net.connection import Connection, Handler, Owner, Traffic
from ..protocol import v2
from ..protocol.access import ANYBODY
from ..protocol.close import UNREACHABLE, CloseCode, Closed
from .clients import Clients
from .limits import LINK_CONNECTIONS
from .listener import Listener
from .strangers import Strangers, source_of

logger = logging.getLogger(__name__)

RECONNECTS_PER_SECOND = 2000.0
"""Number of clients that are asked to come back per second after a restart: a node can greet more."""

DROPPED_LOG_SECONDS = 10.0
"""Time between two log lines about strangers that were dropped: there may be thousands in a second."""

CLOSED_AT_ONCE = 100
"""Connections of a client that an operator ends in one turn of the loop: some milliseconds."""

KEYS_CHANGED = "the keys of this node have changed"
"""Reason for ending a connection after a reload; its peer tries again."""

MAX_RETRY_SECONDS = 60.0
"""The longest time over which clients are asked to come back."""


class Connections(Collection[Connection], Owner):
    """The connections that a node has accepted and that are not gone yet.

    Strangers, producers and all others have a limit each, so that none can keep another kind out. A stranger
    is a peer that has not proved itself yet; so is one that asks for a page.

    Args:
        members: An empty set; the reporter may read it too.
        counters: Counters of the node.
        traffic: Counts the bytes of all connections of the node.
        reporter: Is told of peers that were refused.
        buffers: Counts the bytes that wait in them.
        clients: Knows the peers that have names.
        keys: Keys of the node.
        limits: Limits of the node; a reload sets others.

    Attributes:
        draining: True while the node drains: then the end of a connection is nothing unusual.
    """

    def __init__(
        self,
        members: set[Connection],
        counters: Counter[str],
        traffic: Traffic,
        reporter: Reporter,
        *,
        buffers: Buffers,
        clients: Clients,
        keys: Keys,
        limits: Limits,
    ) -> None:
        self.draining = False
        self.limits = limits
        self._strangers: Strangers[Connection] = Strangers()
        self._producers: set[Connection] = set()
        self._dropped = 0
        self._dropped_logged = -DROPPED_LOG_SECONDS
        self._traffic = traffic
        self._buffers, self._clients, self._keys = buffers, clients, keys
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
        # A reload opens listeners before it uses their certificate, and closes them after.
        if listener.address.tls and not tls.accepts:
            self._counters["connections_refused"] += 1
            return _Dropped()
        stream = tls.accept() if listener.address.tls else None
        connection = Connection.accept(
            listener.endpoint,
            keys,
            config,
            owner=self,
            tls=stream,
            traffic=self._traffic,
            buffers=self._buffers,
        )
        self._members.add(connection)
        self._counters["connections"] += 1
        return connection

    def full(self, handler: Handler) -> bool:
        """Return True if there is no room for another peer of a handler's kind."""
        if handler.peer_is_node:
            return len(self._producers) >= LINK_CONNECTIONS
        others = len(self._members) - len(self._strangers) - len(self._producers)
        return others >= self.limits.max_connections

    def opened(self, connection: Connection) -> None:
        """Take a stranger; drop one by chance if there are too many."""
        if len(self._strangers) >= self.limits.max_strangers:
            self._drop(self._strangers.draw())
        self._strangers.add(connection, source_of(connection.peer_host))

    def refusal(self, connection: Connection) -> str:
        """Return why a peer that has proved itself may not stay, "" if it may."""
        handler = connection.handler
        assert handler is not None
        if self.full(handler):
            return "this node has all the connections that it may have"
        if connection.keys is not self._keys and not self._still_takes(connection):
            return KEYS_CHANGED
        if refusal := self._clients.add(connection):
            return refusal
        self._strangers.remove(connection)
        if handler.peer_is_node:
            self._producers.add(connection)
        return ""

    def use_keys(self, keys: Keys) -> None:
        """Close the connections of names whose key is gone, or may do something else now.

        Those with the key that has no name stay, as those of nodes: they change their key when they connect
        again, so that a rotation interrupts nobody.
        """
        changed, self._keys = keys != self._keys, keys
        for connection in self if changed else ():
            if not self._still_takes(connection):
                connection.close(CloseCode.GOING_AWAY, KEYS_CHANGED)

    def _still_takes(self, connection: Connection) -> bool:
        """Return True if the keys of now would take a peer with a name that has proved itself."""
        peer, handler = connection.session.peer, connection.handler
        if peer is None or handler is None or peer.identity == ANYBODY:
            return True
        return handler.keys_of_peers(self._keys).still_takes(peer, time.time())

    async def disconnect(self, operator: Connection, wanted: v2.Disconnect) -> v2.Done:
        """End the connections of a client, which may connect again; those of nodes and operators stay.

        Args:
            operator: The connection of the operator.
            wanted: The client.
        """
        chosen = [connection for connection in self if _is_of(connection, wanted)]
        log(
            logger,
            logging.WARNING,
            "clients disconnected",
            by=operator.peer,
            address=wanted.address or "",
            key=wanted.key or "",
            connections=len(chosen),
        )
        for index, connection in enumerate(chosen, 1):
            connection.close(CloseCode.DISCONNECTED)
            if not index % CLOSED_AT_ONCE:
                await asyncio.sleep(0)
        return v2.Done(len(chosen))

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

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Forget a connection."""
        self._members.discard(connection)
        self._producers.discard(connection)
        self._clients.remove(connection)
        dropped = not self._strangers.remove(connection) and not connection.established
        if self._closing is not None:
            closing, gone = self._closing
            closing.discard(connection)
            if not closing and not gone.done():
                gone.set_result(None)
        if not dropped:
            self._log_end(connection, closed)

    def _drop(self, stranger: Connection) -> None:
        """Drop a stranger because there are too many of them."""
        self._strangers.remove(stranger)
        self._counters["strangers_dropped"] += 1
        self._reporter.refused("strangers_dropped", stranger.peer)
        self._dropped += 1
        now = time.monotonic()
        if now - self._dropped_logged >= DROPPED_LOG_SECONDS:
            log(
                logger,
                logging.WARNING,
                "strangers dropped",
                count=self._dropped,
                max_strangers=self.limits.max_strangers,
                peer=stranger.peer,
            )
            self._dropped, self._dropped_logged = 0, now
        stranger.abort(CloseCode.TRY_AGAIN_LATER)

    def _log_end(self, connection: Connection, closed: Closed) -> None:
        if connection.established:
            # A token ends as it said it would, and its user brings the next one; another line tells of an
            # operator.
            ended = closed.code in (CloseCode.TOKEN_ENDED, CloseCode.DISCONNECTED)
            violation = closed.code >= 1002 and not ended and not closed.by_peer and not self.draining
            level = logging.WARNING if violation else logging.DEBUG
            log(
                logger,
                level,
                "connection closed",
                peer=connection.peer,
                **_name_of(connection),
                reason=closed,
            )
        elif closed.code == UNREACHABLE:
            self._counters["tls_refused"] += 1
            self._reporter.refused("tls_refused", connection.peer)
            log(logger, logging.WARNING, "TLS refused", peer=connection.peer, reason=closed)
        elif (
            connection.handler is not None
            or connection.session.asks_for_v2
            or closed.code == CloseCode.HELLO_TIMEOUT
        ):
            # The peer chooses its code, and must not choose the name of a counter.
            counter = "refused_by_peer" if closed.by_peer else f"refused_{closed.code}"
            self._counters[counter] += 1
            # A browser opens connections in advance, and never uses some of them.
            if connection.handler is not None:
                self._reporter.refused(counter, connection.peer)
            level = logging.INFO if self.draining else logging.WARNING
            claimed = connection.session.claimed
            claims = {"claims": claimed} if claimed else {}
            log(logger, level, "hello refused", peer=connection.peer, **claims, reason=closed)
        else:
            log(logger, logging.DEBUG, "request answered", peer=connection.peer, reason=closed)


def _is_of(connection: Connection, wanted: v2.Disconnect) -> bool:
    """Return True if a connection is one of a client, and neither end has closed it."""
    handler, peer = connection.handler, connection.session.peer
    if handler is None or handler.peer_is_node or handler.peer_role == "operator":
        return False
    if not connection.established or connection.session.closed is not None:
        return False
    if wanted.key is not None:
        return peer is not None and peer.identity.name == wanted.key
    return wanted.address in (connection.peer, connection.peer_host)


def _name_of(connection: Connection) -> dict[str, str]:
    """Return the field with the name of a peer, if it has one."""
    peer = connection.session.peer
    name = "" if peer is None else str(peer.identity)
    return {"client": name} if name else {}


class _Dropped(asyncio.Protocol):
    """Drop a connection that the node cannot take."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Drop it (asyncio calls this)."""
        cast("asyncio.Transport", transport).abort()
