"""The report of a node: numbers, warnings in words, and how long they last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from wsqueue.config.addresses import parse_address
from wsqueue.config.keys import Keys
from wsqueue.config.model import ConsumerConfig, Limits, NodeConfig, Tls
from wsqueue.monitoring import reporter as reporter_module
from wsqueue.monitoring.reporter import LATELY_WINDOWS, MAX_LAG_SECONDS, Reporter
from wsqueue.net.certificates import TlsContexts
from wsqueue.net.connection import Connection
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.report.report import (
    FRESH_SECONDS,
    MAX_SLOW_PEERS,
    Connections,
    Facts,
    LinkStatus,
    LogStatus,
    NodeWarning,
    Report,
    SlowPeer,
    TopicStatus,
    WarningCode,
)
from wsqueue.report.stats import WINDOW_SECONDS
from wsqueue.version import __version__

from ...support.certificates import Authority
from ...support.fake_connection import FakeConnection
from ...support.session_pair import SECRET, accept

STEP_SECONDS = 0.125
"""How often the loop is looked at here: sums of it are exact, and it is not late."""

LINK = LinkStatus("192.0.2.1:1/producer", "up", "v2", 5.0, "", 0, 0, 0)
LOG = LogStatus("sqlite", 3, 1000, 5000, 0, 0.001, 4000, "")


class Clock:
    """Stand for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000 + self.now


class Peer(FakeConnection):
    """Stand for a connection of any kind.

    Args:
        role: Of the peer, "" before it has asked for anything.
        state: Of the connection.
        protocol: Of the peer.
    """

    def __init__(self, role: str = "subscriber", state: str = "open", protocol: str = "v2") -> None:
        super().__init__()
        self.session = Ended() if state == "closing" else Open() if state == "open" else accept()  # type: ignore[assignment]
        self.session.v2 = protocol == "v2"
        self._established = state != "hello"
        self.handler = Role(role) if role else None  # type: ignore[assignment]
        self.peer = "192.0.2.9:99"


class Open:
    established, v2 = True, True


class Ended:
    established, v2 = False, True


class Role:
    def __init__(self, peer_role: str) -> None:
        self.peer_role = peer_role


class Node:
    """Hold a reporter, and what it reports of."""

    def __init__(self, config: NodeConfig | None = None) -> None:
        self.counters: Counter[str] = Counter()
        self.connections: set[Connection] = set()
        self.facts = Facts()
        self.asked: list[float] = []
        self.traffic = (0, 0)
        self.turned: list[float] = []
        self.reporter = Reporter(
            "consumer",
            self._facts,
            lambda: self.traffic,
            counters=self.counters,
            connections=self.connections,
        )
        self.configure(config or ConsumerConfig(listen=["127.0.0.1:1"]))
        self._watch: Generator[Any, None, None] | None = None

    def configure(self, config: NodeConfig, *secrets: str) -> None:
        psk = PreSharedKey(*(secrets or (SECRET,)))
        self.reporter.configure(config, Keys(psk, psk), TlsContexts(config))

    def look(self) -> None:
        """Let the event loop be looked at once more; the first time, that begins."""
        if self._watch is None:
            self._watch = self.reporter.watch(self.turned.append).__await__()
        next(self._watch)

    def turn(self, clock: Clock) -> None:
        """Let a window end, in which the loop is in time from now on."""
        turned = len(self.turned)
        self.look()
        while len(self.turned) == turned:
            clock.now += STEP_SECONDS
            self.look()

    def fresh(self) -> Report:
        """Return a report of now."""
        self.reporter._made = None
        return self.reporter.report()

    def warnings(self, **changes: Any) -> list[NodeWarning]:
        """Return the warnings when the node has other facts."""
        self.facts = msgspec.structs.replace(Facts(), **changes)
        return self.fresh().warnings

    def _facts(self, window_seconds: float) -> Facts:
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
        assert report.role == "consumer"
        assert report.version == __version__
        assert report.addresses == ["127.0.0.1:1", "wss://[::1]:2"]
        assert (report.time, report.uptime_seconds) == (clock.time(), 12.5)
        assert report.not_ready == ""
        assert report.psk_fingerprints == PreSharedKey(SECRET).fingerprints()
        assert (report.certificate_sha256, report.certificate_ends) == ("", None)
        assert report.max_connections == Limits().max_connections
        assert report.counters == {"bytes_in": 0, "bytes_out": 0}
        assert (report.connections, report.warnings) == ([], [])

    def test_each_run_has_an_id_of_its_own(self, clock: Clock) -> None:
        assert len({Node().reporter.report().id for _ in range(20)}) == 20

    def test_what_only_the_node_knows(self, node: Node) -> None:
        top = [TopicStatus("news", 1.5)]
        node.facts = Facts(links=[LINK], top_topics=top, log=LOG)
        report = node.reporter.report()
        assert (report.links, report.top_topics, report.log) == ([LINK], top, LOG)

    def test_it_survives_the_way_to_another_node(self, node: Node) -> None:
        node.connections.add(Peer())
        node.facts = Facts(links=[LINK], log=LOG, slow_peers=[SlowPeer("ñ", "v2", 1, 2)])
        report = node.reporter.report()
        assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report

    def test_it_holds_no_key(self, node: Node) -> None:
        node.configure(ConsumerConfig(listen=["127.0.0.1:1"]), "a secret", "the next secret")
        report = node.reporter.report()
        assert len(report.psk_fingerprints) == 2
        assert b"secret" not in msgspec.json.encode(report)

    def test_certificates(self, node: Node, tmp_path: Path) -> None:
        tls = Authority(tmp_path).issue("node", days=90)
        node.configure(ConsumerConfig(listen=["wss://127.0.0.1:1"], tls=tls))
        report = node.reporter.report()
        assert len(report.certificate_sha256) == 64
        assert report.certificate_ends == pytest.approx(clock_of_certificates(90), abs=100)
        assert report.warnings == []


def clock_of_certificates(days: float) -> float:
    """Return the Unix time after so many days: certificates go by the real clock."""
    import time  # noqa: PLC0415 - the module is patched

    return time.time() + days * 86_400


class TestFresh:
    """A report is used again for a while, however often it is asked for."""

    def test_it_is_made_once_in_a_while(self, node: Node, clock: Clock) -> None:
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
        node.connections |= {
            Peer("subscriber"),
            Peer("subscriber"),
            Peer("subscriber", protocol="classic"),
            Peer("subscriber", "closing"),
            Peer("producer", "hello"),
            Peer("", "hello"),
            Peer("monitor"),
        }
        assert node.reporter.report().connections == [
            Connections("", "hello", "", 1),
            Connections("monitor", "open", "v2", 1),
            Connections("producer", "hello", "", 1),
            Connections("subscriber", "closing", "v2", 1),
            Connections("subscriber", "open", "classic", 1),
            Connections("subscriber", "open", "v2", 2),
        ]

    def test_bytes_of_connections_that_come_and_go(self, node: Node) -> None:
        first, second = Peer(), Peer()
        node.connections |= {first, second}
        first.bytes_in, first.bytes_out, second.bytes_in = 1, 20, 300
        assert node.reporter.counters() == {"bytes_in": 301, "bytes_out": 20}
        node.connections.remove(first)
        node.reporter.lost(first)
        second.bytes_out = 4000
        node.traffic = (50_000, 600_000)
        assert node.reporter.counters() == {"bytes_in": 50_301, "bytes_out": 604_020}

    def test_counters_are_sorted_and_the_node_keeps_its_own(self, node: Node) -> None:
        node.counters.update(messages_in=2, deliveries=3)
        assert list(node.reporter.counters()) == ["bytes_in", "bytes_out", "deliveries", "messages_in"]
        assert node.counters == {"messages_in": 2, "deliveries": 3}


class TestWarnings:
    """Each says what is wrong and what to do, and is not there when all is well."""

    def test_none_when_all_is_well(self, node: Node) -> None:
        node.connections.add(Peer())
        node.counters.update(messages_in=1, repeats=1, connections_refused=1, slow_subscribers=1)
        assert node.warnings(links=[LINK], log=LOG) == []

    def test_draining(self, node: Node) -> None:
        node.reporter.not_ready = lambda: "draining"
        assert node.warnings() == [
            NodeWarning("draining", "It is about to stop, and takes no more connections."),
        ]
        node.reporter.not_ready = lambda: "no link to 192.0.2.1:1/producer"
        assert node.warnings() == []

    def test_a_link_that_is_down(self, node: Node) -> None:
        down = LinkStatus("192.0.2.1:1/producer", "down", "", 61.7, "Connection refused", 12, 3 * 1024, 0)
        (warning,) = node.warnings(links=[LINK, down])
        assert warning == NodeWarning(
            "link_down",
            "No link to consumer 192.0.2.1:1/producer for 62 seconds: Connection refused;"
            " 12 messages wait for it (3.0 KiB).",
            "See whether it runs and can be reached; the topics of other consumers go on.",
        )

    def test_a_link_that_is_down_and_stops_publishers(self, node: Node) -> None:
        down = LinkStatus("192.0.2.1:1/producer", "down", "", 1.0, "Connection refused", 12, 3 * 1024, 2)
        warnings = node.warnings(links=[down])
        assert [warning.code for warning in warnings] == ["link_down", "publishers_paused"]
        assert warnings[1].text.startswith("2 publishers are not read from")
        assert "192.0.2.1:1/producer" in warnings[1].text

    def test_one_of_all(self, node: Node) -> None:
        """A sentence has the number that it says."""
        down = LinkStatus("192.0.2.1:1/producer", "down", "", 1.0, "Connection refused", 1, 100, 1)
        node.counters.update(lost_held=1, gaps=1)
        slow = [SlowPeer("192.0.2.9:1", "v2", 0, 1)]
        texts = [warning.text for warning in node.warnings(links=[down], slow_peers=slow)]
        assert texts == [
            "No link to consumer 192.0.2.1:1/producer for 1 second: Connection refused;"
            " 1 message waits for it (100 bytes).",
            "1 publisher is not read from, for too much waits for 192.0.2.1:1/producer.",
            "1 subscriber reads slower than its topics grow: 192.0.2.9:1 (1 message behind).",
            "1 time in the last minute, a subscriber was told that messages are gone.",
            "1 classic message was lost since the start.",
        ]

    def test_a_link_that_is_slow(self, node: Node) -> None:
        slow = msgspec.structs.replace(
            LINK, held_messages=1000, held_bytes=2 * 1024 * 1024, paused_publishers=3
        )
        first, second = node.warnings(links=[slow])
        assert first.code == "link_slow"
        assert first.text == (
            "Consumer 192.0.2.1:1/producer takes messages slower than they come;"
            " 1,000 messages wait for it (2.0 MiB)."
        )
        assert (second.code, second.text.split(",")[0]) == (
            "publishers_paused",
            "3 publishers are not read from",
        )

    def test_a_link_that_holds_what_is_under_way_is_well(self, node: Node) -> None:
        busy = msgspec.structs.replace(LINK, held_messages=1000, held_bytes=500_000)
        assert node.warnings(links=[busy]) == []

    def test_a_log_that_fails(self, node: Node) -> None:
        log = msgspec.structs.replace(LOG, failing="the disk is full")
        (warning,) = node.warnings(log=log)
        assert warning.code == "log_failing"
        assert warning.text == "Messages cannot be stored, and are refused: the disk is full."
        assert "Make room" in warning.advice

    @pytest.mark.parametrize(("free", "warned"), [(3999, True), (4000, False), (0, True), (-1, False)])
    def test_a_file_system_that_is_smaller_than_the_log_may_be(
        self, node: Node, free: int, warned: bool
    ) -> None:
        warnings = node.warnings(log=msgspec.structs.replace(LOG, free_bytes=free))
        assert [warning.code for warning in warnings] == ["log_nearly_full"] * warned
        if free == 3999:
            assert warnings[0].text == "Its file system has 3.9 KiB left, and the log may grow by 3.9 KiB."
            assert "max_bytes" in warnings[0].advice

    def test_a_log_that_is_above_its_limit(self, node: Node) -> None:
        """As after a reload with a lower one, until it is trimmed."""
        assert node.warnings(log=msgspec.structs.replace(LOG, bytes=6000, free_bytes=0)) == []

    def test_a_log_in_memory(self, node: Node) -> None:
        log = LogStatus("memory", 0, 0, 5000, 0, 0.0, -1, "")
        assert node.warnings(log=log) == []

    @pytest.mark.parametrize(
        ("counter", "text", "advice"),
        [
            (
                f"refused_{CloseCode.WRONG_ANSWER}",
                "A peer with another pre-shared key was refused {times}.",
                "fingerprints",
            ),
            ("tls_refused", "A TLS handshake failed {times}.", "TLS refused"),
            (f"refused_{CloseCode.EARLY_DATA}", "A hello failed {times}.", "hello refused"),
            ("refused_by_peer", "A hello failed {times}.", "hello refused"),
        ],
    )
    def test_refusals(self, node: Node, counter: str, text: str, advice: str) -> None:
        for number in range(5):
            assert node.warnings() == []
            node.counters[counter] += 1
            node.reporter.refused(counter, f"192.0.2.{number}:1")
        (warning,) = node.warnings()
        assert warning.code == "hello_refused"
        assert warning.text == text.format(times="5 times in the last minute, the last from 192.0.2.4:1")
        assert advice in warning.advice

    def test_gaps(self, node: Node) -> None:
        node.counters["gaps"] += 2
        (warning,) = node.warnings()
        assert warning.code == "messages_lost"
        assert warning.text == ("2 times in the last minute, a subscriber was told that messages are gone.")
        assert "[retention]" in warning.advice

    @pytest.mark.parametrize("counter", ["lost_in_flight", "lost_held", "lost_refused", "lost_full"])
    def test_lost_messages(self, node: Node, counter: str) -> None:
        node.counters[counter] += 3
        (warning,) = node.warnings()
        assert (warning.code, warning.text) == (
            "messages_lost",
            "3 classic messages were lost since the start.",
        )
        assert "v2" in warning.advice

    def test_slow_subscribers(self, node: Node) -> None:
        slow = [SlowPeer(f"192.0.2.{number}:1", "v2", 0, number) for number in (1, 2)]
        (warning,) = node.warnings(slow_peers=slow)
        assert warning.code == "subscriber_slow"
        assert warning.text == (
            "2 subscribers read slower than their topics grow:"
            " 192.0.2.2:1 (2 messages behind), 192.0.2.1:1 (1 message behind)."
        )
        assert "max_buffered_bytes" in warning.advice

    def test_many_slow_subscribers(self, node: Node) -> None:
        slow = [SlowPeer(f"192.0.2.{number}:1", "v2", 0, number) for number in range(MAX_SLOW_PEERS + 1)]
        (warning,) = node.warnings(slow_peers=slow)
        assert warning.text.startswith(f"{MAX_SLOW_PEERS + 1} subscribers read slower")
        assert warning.text.count("192.0.2.") == 3
        assert warning.text.endswith(" and others.")
        report = node.fresh()
        assert report.slow_subscribers == MAX_SLOW_PEERS + 1
        # The one that is least behind is not named.
        assert report.slow_peers == slow[:0:-1]

    def test_a_slow_classic_subscriber(self, node: Node) -> None:
        peer = Peer(protocol="classic")
        node.connections |= {peer, Peer(protocol="classic"), Peer("publisher", protocol="classic")}
        assert node.warnings() == []
        for one in node.connections:
            assert isinstance(one, Peer)
            one.is_congested = one is peer or one.handler.peer_role == "publisher"  # type: ignore[union-attr]
        (warning,) = node.warnings()
        assert warning.text == "1 subscriber reads slower than its topics grow: 192.0.2.9:99."
        assert node.fresh().slow_peers == [SlowPeer("192.0.2.9:99", "classic", 0, 0)]

    def test_a_v2_subscriber_is_slow_when_it_is_behind(self, node: Node) -> None:
        """Not when much is on its way to it."""
        peer = Peer()
        peer.is_congested = True
        node.connections.add(peer)
        assert node.warnings() == []

    def test_the_event_loop(self, node: Node, clock: Clock) -> None:
        node.look()
        clock.now += MAX_LAG_SECONDS
        node.look()
        assert node.fresh().loop_lag_seconds == MAX_LAG_SECONDS
        assert node.warnings() == []
        clock.now += 2.25
        node.look()
        (warning,) = node.warnings()
        assert (warning.code, warning.text) == ("loop_lag", "The event loop was late by up to 2.2 seconds.")
        assert "CPU" in warning.advice

    def test_many_connections(self, node: Node) -> None:
        node.configure(ConsumerConfig(listen=["127.0.0.1:1"], limits=Limits(max_connections=10)))
        node.connections |= {Peer() for _ in range(9)}
        assert node.warnings() == []
        node.connections.add(Peer("", "hello"))
        (warning,) = node.warnings()
        assert (warning.code, warning.text) == (
            "many_connections",
            "10 of at most 10 connections are taken.",
        )
        assert "max_connections" in warning.advice

    @pytest.mark.parametrize(("days", "verb"), [(10, "expires"), (-1, "has expired")])
    def test_certificates(self, node: Node, tmp_path: Path, days: int, verb: str) -> None:
        tls = Authority(tmp_path).issue("node", days=days)
        node.configure(ConsumerConfig(listen=["wss://127.0.0.1:1"], tls=tls))
        (warning,) = node.warnings()
        assert warning.code == "certificate_expires"
        assert warning.text.startswith(f"{tls.certificate}: a certificate in it {verb} on ")
        assert warning.text.endswith(".")
        assert "reload" in warning.advice

    def test_a_reload_with_a_new_certificate(self, node: Node, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        for days, count in ((1, 1), (90, 0)):
            tls: Tls = authority.issue("node", days=days)
            node.configure(ConsumerConfig(listen=["wss://127.0.0.1:1"], tls=tls))
            assert len(node.reporter.report().warnings) == count

    def test_all_codes_of_a_node_are_tested_here(self) -> None:
        source = Path(__file__).read_text()
        elsewhere = {"node_unreachable", "clock_differs", "version_differs", "keys_differ"}
        for code in set(get_args(WarningCode)) - elsewhere - {"unwise_configuration"}:
            assert f'"{code}"' in source


class TestLately:
    """What happened is told of for a minute."""

    @pytest.mark.parametrize("counter", ["gaps", f"refused_{CloseCode.WRONG_ANSWER}", "tls_refused"])
    @pytest.mark.parametrize("windows_before", [0, 3, 20])
    def test_it_is_forgotten(self, node: Node, clock: Clock, counter: str, windows_before: int) -> None:
        for _ in range(windows_before):
            node.turn(clock)
        node.counters[counter] += 5
        if counter != "gaps":
            node.reporter.refused(counter, "192.0.2.1:1")
        for _ in range(LATELY_WINDOWS):
            assert len(node.warnings()) == 1
            node.turn(clock)
        assert len(node.warnings()) == 1
        node.turn(clock)
        assert node.warnings() == []

    def test_only_what_is_new_counts(self, node: Node, clock: Clock) -> None:
        node.counters["gaps"] += 5
        for _ in range(4):
            node.turn(clock)
        node.counters["gaps"] += 1
        assert node.warnings()[0].text.startswith("6 times in the last minute")
        for _ in range(3):
            node.turn(clock)
        assert node.warnings()[0].text.startswith("1 time in the last minute")

    def test_what_was_lost_for_good_is_not_forgotten(self, node: Node, clock: Clock) -> None:
        node.counters["lost_held"] += 1
        for _ in range(20):
            node.turn(clock)
        assert [warning.code for warning in node.warnings()] == ["messages_lost"]

    def test_a_late_event_loop_is_forgotten(self, node: Node, clock: Clock) -> None:
        node.turn(clock)
        clock.now += 3.0
        node.look()
        for _ in range(2):
            assert node.fresh().loop_lag_seconds == 3.0
            assert [warning.code for warning in node.warnings()] == ["loop_lag"]
            node.turn(clock)
        assert node.fresh().loop_lag_seconds == STEP_SECONDS
        assert node.warnings() == []

    def test_who_was_refused_is_bounded(self, node: Node) -> None:
        for number in range(10_000):
            node.reporter.refused("tls_refused", f"192.0.2.1:{number}")
        assert len(node.reporter._refused_peers) == 1
