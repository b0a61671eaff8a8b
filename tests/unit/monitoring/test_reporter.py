"""The report of a node: its values, and the windows over which warnings look back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from wsqueue.config.addresses import parse_address
from wsqueue.config.keys import Keys
from wsqueue.config.model import ConsumerConfig, Limits, NodeConfig
from wsqueue.monitoring import reporter as reporter_module
from wsqueue.monitoring.reporter import RECENT_WINDOWS, Reporter
from wsqueue.net.certificates import TlsContexts
from wsqueue.net.connection import Connection, Traffic
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.report.report import (
    FRESH_SECONDS,
    MAX_SLOW_PEERS,
    ConnectionCount,
    Facts,
    LinkStatus,
    LogStatus,
    Report,
    SlowPeer,
    TopicStatus,
)
from wsqueue.report.stats import WINDOW_SECONDS
from wsqueue.report.warnings import MAX_LAG_SECONDS
from wsqueue.version import __version__

from ...support.certificates import Authority
from ...support.fake_connection import FakeConnection
from ...support.session_pair import SECRET, accept

STEP_SECONDS = 0.125
"""Interval of measurements in these tests: sums of it are exact, and the loop is not late."""

LINK = LinkStatus(address="192.0.2.1:1/producer", state="up", protocol="v2", seconds=5.0)
LOG = LogStatus(mode="sqlite", topics=3, bytes=1000, limit_bytes=5000, commit_seconds=0.001, free_bytes=4000)


class Clock:
    """Stand for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000 + self.now


class Peer(FakeConnection):
    """Stand for a connection of any kind; its role is "" before it has asked for an endpoint."""

    def __init__(self, role: str = "subscriber", state: str = "open", protocol: str = "v2") -> None:
        super().__init__()
        self.state = state
        opened: Any = SimpleNamespace(
            established=state == "open", unanswered=protocol == "http", streams=protocol == "events"
        )
        self.session = accept() if state == "hello" else opened
        self.session.v2 = protocol == "v2"
        self.handler = SimpleNamespace(peer_role=role) if role else None  # type: ignore[assignment]
        self.peer = "192.0.2.9:99"

    @property
    def established(self) -> bool:
        return self.state != "hello"


class Node:
    """Hold a reporter and the values that it reports."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.traffic = Traffic()
        self.connections: set[Connection] = set()
        self.facts = Facts()
        self.asked: list[float] = []
        self.turned: list[float] = []
        shared: dict[str, Any] = {"counters": self.counters, "connections": self.connections}
        self.reporter = Reporter("consumer", self.facts_of_the_role, traffic=self.traffic, **shared)
        self.configure(ConsumerConfig(listen=["127.0.0.1:1"]))
        self.watching: Generator[Any, None, None] | None = None

    def configure(self, config: NodeConfig, *secrets: str) -> None:
        psk = PreSharedKey(*(secrets or (SECRET,)))
        self.configuration = config, Keys(psk, psk), TlsContexts(config)
        self.reporter.configure(*self.configuration)

    def look(self) -> None:
        """Measure the lag of the event loop; the first call starts the measurement."""
        if self.watching is None:
            self.watching = self.reporter.watch(self.turned.append).__await__()
        next(self.watching)

    def turn(self, clock: Clock, count: int = 1) -> None:
        """End windows without lag."""
        turned = len(self.turned)
        self.look()
        while len(self.turned) < turned + count:
            clock.now += STEP_SECONDS
            self.look()

    def fresh(self) -> Report:
        """Return a new report: a reload drops the report before."""
        self.reporter.configure(*self.configuration)
        return self.reporter.report()

    def codes(self) -> list[str]:
        """Return the codes of the current warnings."""
        return [warning.code for warning in self.fresh().warnings]

    def facts_of_the_role(self, window_seconds: float) -> Facts:
        self.asked.append(window_seconds)
        return self.facts


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reporter_module, "time", clock)
    monkeypatch.setattr(reporter_module, "LAG_SECONDS", 0)
    return clock


@pytest.fixture
def node(clock: Clock) -> Node:
    return Node()


class TestReport:
    def test_a_node_that_has_just_begun(self, node: Node, clock: Clock) -> None:
        node.reporter.addresses = [parse_address("127.0.0.1:1"), parse_address("wss://[::1]:2")]
        clock.now += 12.5
        report = node.reporter.report()
        assert (report.role, report.version) == ("consumer", __version__)
        assert report.addresses == ["127.0.0.1:1", "wss://[::1]:2"]
        assert (report.time, report.uptime_seconds) == (clock.time(), 12.5)
        assert report.not_ready == ""
        assert report.psk_fingerprints == PreSharedKey(SECRET).fingerprints()
        assert (report.certificate_sha256, report.certificate_ends) == ("", None)
        assert report.max_connections == Limits().max_connections
        assert report.counters == {"bytes_in": 0, "bytes_out": 0}
        assert (report.connections, report.warnings) == ([], [])
        assert len({Node().reporter.report().id for _ in range(20)}) == 20

    def test_it_can_be_sent_to_another_node(self, node: Node) -> None:
        node.connections.add(Peer())
        top = [TopicStatus("news", 1.5)]
        node.facts = Facts(links=[LINK], top_topics=top, log=LOG, slow_peers=[SlowPeer("ñ", "v2", 1, 2)])
        report = node.reporter.report()
        assert (report.links, report.top_topics, report.log) == ([LINK], top, LOG)
        assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
        node.configure(ConsumerConfig(listen=["127.0.0.1:1"]), "a secret", "the next secret")
        report = node.reporter.report()
        assert len(report.psk_fingerprints) == 2
        assert b"secret" not in msgspec.json.encode(report)


class TestFresh:
    """A report is used again for a while, however often a peer asks for it."""

    def test_it_is_made_at_most_twice_a_second(self, node: Node, clock: Clock) -> None:
        first = node.reporter.report()
        clock.now += FRESH_SECONDS - 0.01
        node.counters["messages_in"] += 1
        for _ in range(100):
            assert node.reporter.report() is first
        assert len(node.asked) == 1
        clock.now += 0.02
        second = node.reporter.report()
        assert (second.counters["messages_in"], second.id) == (1, first.id)
        assert len(node.asked) == 2

    def test_it_is_made_anew_after_a_reload(self, node: Node) -> None:
        first = node.reporter.report()
        limits = Limits(max_connections=7)
        node.configure(ConsumerConfig(listen=["127.0.0.1:1"], limits=limits), "another")
        second = node.reporter.report()
        assert second.max_connections == 7
        assert second.psk_fingerprints != first.psk_fingerprints

    def test_the_node_is_told_how_long_the_window_has_gone_on(self, node: Node, clock: Clock) -> None:
        clock.now += 3.0
        node.reporter.report()
        node.look()
        clock.now += WINDOW_SECONDS - 3.0
        node.look()
        clock.now += 4.5
        node.reporter.report()
        assert node.asked == [3.0, 4.5]
        assert node.turned == [WINDOW_SECONDS]


class TestConnections:
    def test_kinds(self, node: Node) -> None:
        node.connections |= {Peer(), Peer(), Peer(protocol="classic"), Peer(state="closing")}
        node.connections |= {Peer("producer", "hello"), Peer("", "hello"), Peer("monitor")}
        node.connections |= {Peer("publisher", "closing", "http"), Peer(protocol="events")}
        assert node.reporter.report().connections == [
            ConnectionCount("", "hello", "", 1),
            ConnectionCount("monitor", "open", "v2", 1),
            ConnectionCount("producer", "hello", "", 1),
            ConnectionCount("publisher", "open", "http", 1),
            ConnectionCount("subscriber", "closing", "v2", 1),
            ConnectionCount("subscriber", "open", "classic", 1),
            ConnectionCount("subscriber", "open", "events", 1),
            ConnectionCount("subscriber", "open", "v2", 2),
        ]

    def test_counters_are_sorted_and_the_node_keeps_its_own(self, node: Node) -> None:
        node.counters.update(messages_in=2, deliveries=3)
        node.traffic.bytes_in, node.traffic.bytes_out = 500, 700
        counters = node.reporter.counters()
        assert list(counters) == ["bytes_in", "bytes_out", "deliveries", "messages_in"]
        assert list(counters.values()) == [500, 700, 3, 2]
        assert node.counters == {"messages_in": 2, "deliveries": 3}


class TestWarnings:
    """Conditions that a reporter finds itself; the sentences are those of `wsqueue.report.warnings`."""

    def test_slow_classic_subscribers(self, node: Node) -> None:
        slow, fast = Peer(protocol="classic"), Peer(protocol="classic")
        publisher, behind = Peer("publisher", protocol="classic"), Peer()
        node.connections |= {slow, fast, publisher, behind}
        # A v2 subscriber is slow when it is behind, and not when much is on its way to it.
        slow.is_congested = publisher.is_congested = behind.is_congested = True
        report = node.fresh()
        assert report.slow_subscribers == 1
        assert report.slow_peers == [SlowPeer("192.0.2.9:99", "classic", 0, 0)]
        assert [warning.code for warning in report.warnings] == ["subscriber_slow"]

    def test_many_slow_subscribers(self, node: Node) -> None:
        slow = [SlowPeer(f"192.0.2.{number}:1", "v2", 0, number) for number in range(MAX_SLOW_PEERS + 1)]
        node.facts = Facts(slow_peers=slow)
        report = node.fresh()
        assert report.slow_subscribers == MAX_SLOW_PEERS + 1
        # The subscriber that is least behind is not named.
        assert report.slow_peers == slow[:0:-1]

    @pytest.mark.parametrize(("days", "verb"), [(10, "expires"), (-1, "has expired")])
    def test_certificates(self, node: Node, tmp_path: Path, days: int, verb: str) -> None:
        authority = Authority(tmp_path)
        tls = authority.issue("node", days=days)
        node.configure(ConsumerConfig(listen=["wss://127.0.0.1:1"], tls=tls))
        (warning,) = node.fresh().warnings
        assert warning.code == "certificate_expires"
        assert warning.text.startswith(f"{tls.certificate}: a certificate in it {verb} on ")
        # A reload with a new certificate.
        node.configure(ConsumerConfig(listen=["wss://127.0.0.1:1"], tls=authority.issue("node", days=90)))
        report = node.reporter.report()
        assert report.warnings == []
        assert len(report.certificate_sha256) == 64
        in_ninety_days = (datetime.now(UTC) + timedelta(days=90)).timestamp()
        assert report.certificate_ends == pytest.approx(in_ninety_days, abs=100)


class TestRecent:
    """Warnings look back a minute."""

    @pytest.mark.parametrize("counter", ["gaps", f"refused_{CloseCode.WRONG_ANSWER}", "tls_refused"])
    @pytest.mark.parametrize("before", [0, 3, 20])
    def test_increments_are_forgotten(self, node: Node, clock: Clock, counter: str, before: int) -> None:
        node.turn(clock, before)
        node.counters[counter] += 5
        if counter != "gaps":
            node.reporter.refused(counter, "192.0.2.1:1")
        for _ in range(RECENT_WINDOWS + 1):
            assert len(node.codes()) == 1
            node.turn(clock)
        assert node.codes() == []

    def test_only_recent_increments_count(self, node: Node, clock: Clock) -> None:
        node.counters["gaps"] += 5
        node.turn(clock, 4)
        node.counters["gaps"] += 1
        assert node.fresh().warnings[0].text.startswith("6 times in the last minute")
        node.turn(clock, 3)
        assert node.fresh().warnings[0].text.startswith("1 time in the last minute")

    def test_lost_messages_are_not_forgotten(self, node: Node, clock: Clock) -> None:
        node.counters["lost_held"] += 1
        node.turn(clock, 20)
        assert node.codes() == ["messages_lost"]

    def test_a_late_event_loop_is_forgotten(self, node: Node, clock: Clock) -> None:
        node.turn(clock)
        clock.now += MAX_LAG_SECONDS
        node.look()
        assert (node.fresh().loop_lag_seconds, node.codes()) == (MAX_LAG_SECONDS, [])
        clock.now += 3.0
        node.look()
        for _ in range(2):
            assert (node.fresh().loop_lag_seconds, node.codes()) == (3.0, ["loop_lag"])
            node.turn(clock)
        assert (node.fresh().loop_lag_seconds, node.codes()) == (STEP_SECONDS, [])
