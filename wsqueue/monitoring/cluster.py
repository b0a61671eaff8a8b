"""Ask all nodes of a cluster for their reports: for the status page of a node, `top` and `doctor`.

States of a `_StatusLink`, one for each node::

    connecting    no connection yet; `waiting`
    asked         connected, `ask_report` is sent; `waiting`; a problem after STALE_SECONDS
    answered      connected, a report has come
    failed        no connection, and `_problem` says why; the link keeps trying

`up` and `ask` lead to asked, a report leads to answered, and a lost or refused connection to failed. The
latest report is kept in all states. Leaving a waiting state sets the event that `settled` waits for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

import msgspec

from ..config.addresses import Address
from ..config.model import ClientConfig, Config, Limits
from ..net.certificates import TlsContexts
from ..net.connection import Connection
from ..net.link import Link
from ..protocol import v2
from ..protocol.close import CloseCode, Closed
from ..protocol.keys import PreSharedKey
from ..protocol.session import Event, HelloDone
from ..report.report import Cluster, ClusterNode, Report
from ..report.warnings import NO_STATUS, ONLY_CLASSIC, OTHER_KEY, cluster_warnings

MAX_REPORT_BYTES = 16 * 1024 * 1024
"""Maximum size of a report: far above that of a producer with 10,000 links."""

STALE_SECONDS = 3.0
"""Time to answer after which a node counts as not answering."""


class ClusterMonitor:
    """Keep a connection to `/status` of each node, and its latest report.

    Args:
        consumers: Addresses, in the order that all nodes share; their paths are ignored.
        producers: Addresses.
        psk: The key of clients.
        config: Source of `[tls]` and the deadlines.
        tls: TLS of the connections.
    """

    def __init__(
        self,
        consumers: Sequence[Address],
        producers: Sequence[Address],
        psk: PreSharedKey,
        config: Config,
        tls: TlsContexts,
    ) -> None:
        limits = Limits(
            max_message_bytes=MAX_REPORT_BYTES,
            max_buffered_bytes=2 * MAX_REPORT_BYTES,
            hello_seconds=config.limits.hello_seconds,
        )
        # The links have the addresses; a connection needs only the rest of a client's configuration.
        client = ClientConfig(
            producers=[],
            consumers=[],
            limits=limits,
            allow_classic=False,
            tls=config.tls,
            # A node uses none.
            http_proxy=config.http_proxy if isinstance(config, ClientConfig) else "none",
        )
        self._changed = asyncio.Event()
        self._links = [
            _StatusLink(address, role, psk, client, tls, changed=self._changed)
            for role, addresses in (("consumer", consumers), ("producer", producers))
            for address in dict.fromkeys(address.with_path("") for address in addresses)
        ]

    def start(self) -> None:
        """Begin to connect; each node is asked as soon as it answers."""
        for link in self._links:
            link.start()

    def ask(self) -> None:
        """Ask all nodes for a new report."""
        for link in self._links:
            link.ask()

    async def settled(self, seconds: float = STALE_SECONDS) -> None:
        """Wait, at most `seconds`, until each node has answered or is known not to."""
        try:
            async with asyncio.timeout(seconds):
                while any(link.waiting for link in self._links):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    def cluster(self, *, own: Report | None = None) -> Cluster:
        """Return the latest reports of all nodes.

        Args:
            own: The report of the node that asks; it is part of the cluster even if its address is not
                configured.
        """
        nodes = [link.node() for link in self._links]
        if own is not None:
            _put(own, nodes)
        return Cluster(
            [node.address for node in nodes if node.role == "consumer"],
            [node.address for node in nodes if node.role == "producer"],
            nodes,
            cluster_warnings(nodes),
        )

    async def stop(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(link.stop() for link in self._links))


class _StatusLink(Link):
    """Keep a connection to one node, and its latest report."""

    never_up_level = up_level = down_level = logging.DEBUG

    def __init__(
        self,
        address: Address,
        role: str,
        psk: PreSharedKey,
        config: ClientConfig,
        tls: TlsContexts,
        *,
        changed: asyncio.Event,
    ) -> None:
        super().__init__([address.with_path("/status")], psk, config, tls)
        self._place, self._role, self._changed = address, role, changed
        self._report: Report | None = None
        self._clock_seconds = 0.0
        self._received_at = self._asked_at = time.monotonic()
        self._problem = ""
        self.waiting = True

    def ask(self) -> None:
        """Ask for a report, if the node can be reached."""
        if self.connection is None:
            self.waiting = not self._problem
            return
        if not self.waiting:
            self._asked_at = time.monotonic()
        self.waiting = True
        self.connection.send_packet(v2.AskReport())

    def node(self) -> ClusterNode:
        """Return the latest report of the node, or its problem."""
        now = time.monotonic()
        problem = self._problem
        if not problem and self.waiting and now - self._asked_at > STALE_SECONDS:
            problem = f"no answer for {now - self._asked_at:.0f} seconds"
        age = now - self._received_at if self._report is not None else None
        clock = self._clock_seconds if self._report is not None else None
        return ClusterNode(
            address=str(self._place),
            role=self._role,
            report=self._report,
            age_seconds=age,
            clock_seconds=clock,
            problem=problem,
        )

    def up(self) -> None:
        """Ask at once."""
        self._problem = ""
        self._asked_at = time.monotonic()
        self.ask()

    def received_events(self, events: list[Event]) -> None:
        """Keep the report."""
        assert self.connection is not None
        for event in events:
            if isinstance(event, v2.NodeReport):
                self._take(self.connection, event)
            elif not isinstance(event, HelloDone | v2.Draining):
                self.connection.fail(CloseCode.UNEXPECTED_PACKET)

    def attempt_ended(self, closed: Closed) -> None:
        """Note why the node can't be asked."""
        self._problem = _problem(closed)
        self.waiting = False
        self._changed.set()

    def _take(self, connection: Connection, packet: v2.NodeReport) -> None:
        try:
            self._report = msgspec.json.decode(packet.report, type=Report)
        except (msgspec.DecodeError, UnicodeDecodeError):
            connection.fail(CloseCode.INVALID_PACKET, "the report is not one of this version")
            return
        self._received_at = time.monotonic()
        took = self._received_at - self._asked_at
        # Half of that time has passed since the node read its clock, unless the answer was slow.
        if took < STALE_SECONDS:
            self._clock_seconds = self._report.time - (time.time() - took / 2)
        self.waiting = False
        self._changed.set()


def _put(own: Report, nodes: list[ClusterNode]) -> None:
    """Put a node's own report in its place, or after the nodes of its role if its address is unknown."""
    for index, node in enumerate(nodes):
        here = node.role == own.role and node.address in own.addresses
        if (node.report is None and here) or (node.report is not None and node.report.id == own.id):
            nodes[index] = _own_node(node.address, node.role, own)
            return
    known = {node.address for node in nodes}
    address = next((address for address in own.addresses if address not in known), own.role)
    before = len(nodes) if own.role == "producer" else sum(node.role == "consumer" for node in nodes)
    nodes.insert(before, _own_node(address, own.role, own))


def _own_node(address: str, role: str, report: Report) -> ClusterNode:
    return ClusterNode(address=address, role=role, report=report, age_seconds=0.0, clock_seconds=0.0)


def _problem(closed: Closed) -> str:
    """Return why a node can't be asked, in words."""
    if closed.code == CloseCode.WRONG_ANSWER:
        return OTHER_KEY
    if closed.code == 404:
        return NO_STATUS
    if closed.code == 503:
        return "it has all the connections that it may have (max_connections)"
    if closed.code == CloseCode.CLASSIC_REFUSED:
        return ONLY_CLASSIC
    return str(closed)
