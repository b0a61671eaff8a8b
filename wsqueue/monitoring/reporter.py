"""The report of a node: its counters and those of its role, what happened lately, and warnings in words."""

from __future__ import annotations

import asyncio
import heapq
import platform
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime

import msgspec

from ..config.addresses import Address
from ..config.keys import Keys
from ..config.model import NodeConfig
from ..net.certificates import TlsContexts
from ..net.connection import Connection
from ..protocol.close import CloseCode
from ..report.report import (
    FRESH_SECONDS,
    LOST_REASONS,
    MAX_SLOW_PEERS,
    Connections,
    ConnectionState,
    Facts,
    NodeWarning,
    Report,
    SlowPeer,
)
from ..report.stats import WINDOW_SECONDS, Peak
from ..report.text import number
from ..report.warnings import _link_warnings, _log_warnings, _slow_warning
from ..version import __version__

LAG_SECONDS = 0.25
"""How often the event loop is looked at: four wake-ups a second cost an idle node nothing."""

LATELY_WINDOWS = 6
"""Windows over which warnings look back: a minute."""

MAX_LAG_SECONDS = 0.5
"""A loop that was later than this lets its peers feel it."""

NEARLY_FULL = 0.9
"""Part of `max_connections` above which that is said."""

MANY_REFUSALS = 5
"""In a minute; fewer are somebody's mistake, or the wrong keys that `wsqueue verify` tries."""


class Reporter:
    """Make the report of a node when it is asked for.

    Args:
        role: Of the node.
        facts: Returns what only the node knows; takes for how long the window has gone on, in seconds.
        traffic: Returns the bytes read and written on connections that the node opened.
        counters: Of the node.
        connections: Those that the node accepted, kept up to date by the service.
    """

    def __init__(
        self,
        role: str,
        facts: Callable[[float], Facts],
        traffic: Callable[[], tuple[int, int]],
        *,
        counters: Counter[str],
        connections: Collection[Connection],
    ) -> None:
        self.role, self._facts, self._traffic = role, facts, traffic
        self._counters, self._connections = counters, connections
        self._id = secrets.token_hex(8)
        self._started = self._turned = time.monotonic()
        self._lag = Peak()
        self._before: deque[Counter[str]] = deque([Counter()], LATELY_WINDOWS + 1)
        self._old_bytes_in = self._old_bytes_out = 0
        self._refused_peers: dict[str, str] = {}
        self._made: tuple[float, Report] | None = None
        self._encoded = b""
        self.addresses: list[Address] = []
        self.not_ready: Callable[[], str] = str

    def configure(self, config: NodeConfig, keys: Keys, tls: TlsContexts) -> None:
        """Use another configuration from now on."""
        self._config, self._tls = config, tls
        self._fingerprints = keys.clients.fingerprints()
        self._made = None

    def lost(self, connection: Connection) -> None:
        """Note what a connection that is gone has read and written."""
        self._old_bytes_in += connection.bytes_in
        self._old_bytes_out += connection.bytes_out

    def refused(self, counter: str, peer: str) -> None:
        """Note who was refused last, by counter."""
        self._refused_peers[counter] = peer

    async def watch(self, turn: Callable[[float], None]) -> None:
        """Measure how late the event loop is, and end a window now and then; for ever.

        Args:
            turn: Called at the end of a window, with its length in seconds.
        """
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_SECONDS)
            now = time.monotonic()
            self._lag.observe(max(0.0, now - before - LAG_SECONDS))
            if now - self._turned >= WINDOW_SECONDS:
                turn(now - self._turned)
                self._turned = now
                self._lag.turn()
                self._before.append(self._counters.copy())

    def counters(self) -> dict[str, int]:
        """Return all counters of the node, with the bytes of all connections."""
        counters = self._counters.copy()
        bytes_in, bytes_out = self._traffic()
        counters["bytes_in"] = (
            self._old_bytes_in + bytes_in + sum(connection.bytes_in for connection in self._connections)
        )
        counters["bytes_out"] = (
            self._old_bytes_out + bytes_out + sum(connection.bytes_out for connection in self._connections)
        )
        return dict(sorted(counters.items()))

    def report(self) -> Report:
        """Return how the node is, as of `FRESH_SECONDS` ago at most."""
        now = time.monotonic()
        if self._made is None or now - self._made[0] >= FRESH_SECONDS:
            self._made, self._encoded = (now, self._make(now)), b""
        return self._made[1]

    def encoded(self) -> bytes:
        """Return the report as JSON, which is made once too."""
        report = self.report()
        self._encoded = self._encoded or msgspec.json.encode(report)
        return self._encoded

    def _make(self, now: float) -> Report:
        kinds: Counter[tuple[str, ConnectionState, str]] = Counter()
        facts = self._facts(now - self._turned)
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
            psk_fingerprints=self._fingerprints,
            certificate_sha256=self._tls.own_binding.hex(),
            certificate_ends=certificate_ends.timestamp() if certificate_ends is not None else None,
            loop_lag_seconds=self._lag.value,
            max_connections=self._config.limits.max_connections,
            connections=[Connections(*kind, count) for kind, count in sorted(kinds.items())],
            counters=self.counters(),
            links=facts.links,
            confirm_seconds=facts.confirm_seconds,
            commit_seconds=facts.commit_seconds,
            top_topics=facts.top_topics,
            slow_subscribers=len(slow),
            slow_peers=heapq.nlargest(MAX_SLOW_PEERS, slow, key=_how_slow),
            log=facts.log,
        )
        lately = self._counters - self._before[0]
        return msgspec.structs.replace(report, warnings=list(self._warnings(report, lately)))

    def _warnings(self, report: Report, lately: Counter[str]) -> Iterator[NodeWarning]:
        if report.not_ready == "draining":
            yield NodeWarning("draining", "It is about to stop, and takes no more connections.")
        for link in report.links:
            yield from _link_warnings(link)
        if report.log is not None:
            yield from _log_warnings(report.log)
        yield from self._refusal_warnings(lately)
        if report.slow_subscribers:
            yield _slow_warning(report)
        if lately["gaps"]:
            yield NodeWarning(
                "messages_lost",
                f"{number(lately['gaps'], 'time', 'times')} in the last minute,"
                " a subscriber was told that messages are gone.",
                "It was away or slow for longer than the logs reach: see [retention].",
            )
        if lost := sum(report.counters.get(f"lost_{reason}", 0) for reason in LOST_REASONS):
            yield NodeWarning(
                "messages_lost",
                f"{number(lost, 'classic message was', 'classic messages were')} lost since the start.",
                "The counters lost_… say how; what is published with v2 is sent again.",
            )
        if report.loop_lag_seconds > MAX_LAG_SECONDS:
            yield NodeWarning(
                "loop_lag",
                f"The event loop was late by up to {report.loop_lag_seconds:.1f} seconds.",
                "The host is short of CPU or memory, or its disk stands still.",
            )
        count = sum(kind.count for kind in report.connections)
        if count > NEARLY_FULL * report.max_connections:
            yield NodeWarning(
                "many_connections",
                f"{count} of at most {report.max_connections} connections are taken.",
                "Raise max_connections and LimitNOFILE, or add a node.",
            )
        for sentence in self._tls.warnings(datetime.now(UTC)):
            yield NodeWarning(
                "certificate_expires",
                f"{sentence}.",
                "Put a new one there and reload, as `ansible/playbooks/rotate-tls.yml` does.",
            )

    def _refusal_warnings(self, lately: Counter[str]) -> Iterator[NodeWarning]:
        for counter, peer in self._refused_peers.items():
            if lately[counter] < MANY_REFUSALS:
                continue
            times = f"{number(lately[counter], 'time', 'times')} in the last minute, the last from {peer}"
            if counter == f"refused_{CloseCode.WRONG_ANSWER}":
                yield NodeWarning(
                    "hello_refused",
                    f"A peer with another pre-shared key was refused {times}.",
                    "Compare the fingerprints of the keys there and here with `wsqueue doctor FILE`.",
                )
            elif counter == "tls_refused":
                yield NodeWarning(
                    "hello_refused",
                    f"A TLS handshake failed {times}.",
                    "See `TLS refused` in the journal: one end speaks no TLS, or does not trust the other.",
                )
            else:
                yield NodeWarning(
                    "hello_refused",
                    f"A hello failed {times}.",
                    "See `hello refused` in the journal for the reason.",
                )


def _kind(connection: Connection) -> tuple[str, ConnectionState, str]:
    role = connection.handler.peer_role if connection.handler is not None else ""
    if not connection.established:
        return role, "hello", ""
    protocol = "v2" if connection.session.v2 else "classic"
    return role, "open" if connection.session.established else "closing", protocol


def _how_slow(peer: SlowPeer) -> tuple[int, int]:
    return peer.behind_messages, peer.buffered_bytes
