"""The report of a node: its counters, the values of its role, and recent events.

State of a `Reporter`, and when it changes::

    counters, traffic, connections   changed by the service, the node and the connections, only read here
    window                           10 seconds; `watch` ends it and lets the node end its own (top topics)
      event loop's lag               the largest of this window and of the one before
      copies of the counters         one per window end, the last 7: "recent" is the difference to the oldest
    refused peers                    the last peer of each counter of refusals
    report, and its JSON             made on demand, reused for `FRESH_SECONDS`, dropped by `configure`
"""

from __future__ import annotations

import asyncio
import heapq
import platform
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from datetime import UTC, datetime

import msgspec

from ..config.addresses import Address
from ..config.keys import Keys
from ..config.model import NodeConfig
from ..net.certificates import TlsContexts
from ..net.connection import Connection, Traffic
from ..report.report import (
    FRESH_SECONDS,
    MAX_SLOW_PEERS,
    ClientStatus,
    ConnectionCount,
    ConnectionState,
    Facts,
    Report,
    SlowPeer,
)
from ..report.stats import WINDOW_SECONDS, Peak
from ..report.warnings import Recent, node_warnings
from ..version import __version__

LAG_SECONDS = 0.25
"""Interval at which the event loop's lag is measured: four wake-ups a second cost an idle node nothing."""

RECENT_WINDOWS = 6
"""Windows over which warnings look back: a minute."""


class Reporter:
    """Make the report of a node when it is asked for.

    Args:
        role: The node's role.
        facts: Returns the values of the role; takes the age of the current window in seconds.
        traffic: Counts the bytes of all connections of the node.
        counters: The node's counters.
        connections: The connections that the node accepted, kept up to date by the service.

    Attributes:
        addresses: Where the node listens, set by the service.
        not_ready: Returns why the node is not ready, "" when it is.
        restart_needed: Sentences about keys whose values hold only after a restart, set by the service.
        reload_refused: Why the latest reload was refused, "" if it was not; set by the service.
    """

    def __init__(
        self,
        role: str,
        facts: Callable[[float], Facts],
        *,
        traffic: Traffic,
        counters: Counter[str],
        connections: Collection[Connection],
        clients: Callable[[], list[ClientStatus]] = list,
    ) -> None:
        self._clients = clients
        self.role, self._facts, self._traffic = role, facts, traffic
        self._counters, self._connections = counters, connections
        self._id = secrets.token_hex(8)
        self._started = self._window_began = time.monotonic()
        self._lag = Peak()
        self._counters_before: deque[Counter[str]] = deque([Counter()], RECENT_WINDOWS + 1)
        self._refused_peers: dict[str, str] = {}
        self._made: tuple[float, Report] | None = None
        self._encoded = ""
        self.addresses: list[Address] = []
        self.not_ready: Callable[[], str] = str
        self.restart_needed: list[str] = []
        self.reload_refused = ""

    def configure(self, config: NodeConfig, keys: Keys, tls: TlsContexts) -> None:
        """Use another configuration from now on."""
        self._config, self._tls = config, tls
        self._fingerprints = [] if keys.psk is None else keys.psk.fingerprints()
        self._made = None

    def refused(self, counter: str, peer: str) -> None:
        """Remember the peer that was refused last, by counter."""
        self._refused_peers[counter] = peer

    async def watch(self, turn: Callable[[float], None]) -> None:
        """Measure the event loop's lag and end windows, until cancelled.

        Args:
            turn: Called at the end of a window, with its length in seconds.
        """
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_SECONDS)
            now = time.monotonic()
            self._lag.observe(max(0.0, now - before - LAG_SECONDS))
            if now - self._window_began >= WINDOW_SECONDS:
                turn(now - self._window_began)
                self._window_began = now
                self._lag.turn()
                self._counters_before.append(self._counters.copy())

    def counters(self) -> dict[str, int]:
        """Return the counters of the node and its bytes, in the order of their names."""
        counters = self._counters.copy()
        counters["bytes_in"], counters["bytes_out"] = self._traffic.bytes_in, self._traffic.bytes_out
        return dict(sorted(counters.items()))

    def report(self) -> Report:
        """Return the report of the node, at most `FRESH_SECONDS` old."""
        now = time.monotonic()
        if self._made is None or now - self._made[0] >= FRESH_SECONDS:
            self._made, self._encoded = (now, self._make(now)), ""
        return self._made[1]

    def encoded(self) -> str:
        """Return the report as JSON, encoded once per report."""
        report = self.report()
        self._encoded = self._encoded or msgspec.json.encode(report).decode()
        return self._encoded

    def _make(self, now: float) -> Report:
        kinds: Counter[tuple[str, ConnectionState, str]] = Counter()
        facts = self._facts(now - self._window_began)
        slow = list(facts.slow_peers)
        for connection in self._connections:
            kinds[_kind(connection)] += 1
            if connection.congested and _kind(connection) == ("subscriber", "open", "classic"):
                slow.append(SlowPeer(connection.peer, "classic", connection.buffered_bytes, 0))
        certificate_ends = self._tls.ends
        report = Report(
            id=self._id,
            role=self.role,
            version=__version__,
            python=platform.python_version(),
            addresses=[str(address) for address in self.addresses],
            time=time.time(),
            uptime_seconds=now - self._started,
            not_ready=self.not_ready(),
            restart_needed=self.restart_needed,
            reload_refused=self.reload_refused,
            psk_fingerprints=self._fingerprints,
            certificate_sha256=self._tls.own_binding.hex(),
            certificate_ends=certificate_ends.timestamp() if certificate_ends is not None else None,
            loop_lag_seconds=self._lag.value,
            max_connections=self._config.limits.max_connections,
            connections=[ConnectionCount(*kind, count) for kind, count in sorted(kinds.items())],
            clients=self._clients(),
            counters=self.counters(),
            links=facts.links,
            confirm_seconds=facts.confirm_seconds,
            commit_seconds=facts.commit_seconds,
            top_topics=facts.top_topics,
            lags=facts.lags,
            slow_subscribers=len(slow),
            slow_peers=heapq.nlargest(MAX_SLOW_PEERS, slow, key=_slowness),
            log=facts.log,
        )
        return msgspec.structs.replace(report, warnings=node_warnings(report, self._recent()))

    def _recent(self) -> Recent:
        increments = self._counters - self._counters_before[0]
        return Recent(increments, self._refused_peers, self._tls.warnings(datetime.now(UTC)))


def _kind(connection: Connection) -> tuple[str, ConnectionState, str]:
    role = connection.handler.peer_role if connection.handler is not None else ""
    if not connection.established:
        return role, "hello", ""
    if connection.session.unanswered:
        return role, "open", "http"
    if connection.session.streams:
        return role, "open" if connection.session.established else "closing", "events"
    protocol = "v2" if connection.session.v2 else "classic"
    return role, "open" if connection.session.established else "closing", protocol


def _slowness(peer: SlowPeer) -> tuple[int, int]:
    return peer.behind_messages, peer.buffered_bytes
