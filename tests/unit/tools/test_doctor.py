"""Findings of `wsqueue doctor` in values of made-up clusters."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from tests.support.paths import ROOT
from wsqueue.config.model import ClientConfig, ConsumerConfig, Limits, ProducerConfig, Retention, Tls
from wsqueue.log.engine import StreamState
from wsqueue.log.kept import Kept
from wsqueue.net.certificates import TlsContexts
from wsqueue.nodes.bounds import friendly_bound
from wsqueue.report.report import (
    Cluster,
    ClusterNode,
    EngineStatus,
    LinkStatus,
    LogStatus,
    NodeWarning,
    Report,
    WarningCode,
)
from wsqueue.report.warnings import NO_REPORTS, OTHER_KEY
from wsqueue.tools.doctor import findings as doctor
from wsqueue.tools.doctor.engine import streams_finding
from wsqueue.tools.doctor.findings import Finding, cluster_findings
from wsqueue.version import __version__

from ...support.certificates import Authority

MIB = 1024 * 1024
FINGERPRINT = "1a2b3c4d"
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
CONSUMERS = ["192.0.2.1:10001", "192.0.2.2:10001"]


def link(address: str) -> LinkStatus:
    return LinkStatus(address=f"{address}/producer", state="up", protocol="v2", seconds=1.0)


def node(address: str, role: str, *, clock: float = 0.1, problem: str = "", **changes: object) -> ClusterNode:
    run = {"psk_fingerprints": [FINGERPRINT], "uptime_seconds": 7300.0} | changes
    report = Report(id=f"run of {address}", role=role, version=__version__)
    report = msgspec.structs.replace(report, **run)
    asked = {"age_seconds": 0.1, "clock_seconds": clock, "problem": problem}
    return ClusterNode(address=address, role=role, report=report, **asked)  # type: ignore[arg-type]


def consumer(number: int, **changes: object) -> ClusterNode:
    return node(CONSUMERS[number], "consumer", **changes)  # type: ignore[arg-type]


def producer(consumers: Sequence[str] = CONSUMERS, **changes: object) -> ClusterNode:
    return node("192.0.2.3:10002", "producer", links=[link(address) for address in consumers], **changes)  # type: ignore[arg-type]


def dead(address: str, role: str, problem: str) -> ClusterNode:
    return ClusterNode(address=address, role=role, problem=problem)


def findings(
    *nodes: ClusterNode, fingerprints: Sequence[str] = (FINGERPRINT,), **certificates: datetime | str
) -> list[Finding]:
    of = {role: [node.address for node in nodes if node.role == role] for role in ("consumer", "producer")}
    cluster = Cluster(of["consumer"], of["producer"], list(nodes), [])
    shown = {nodes[int(key[1:])].address: end for key, end in certificates.items()}
    return list(cluster_findings(cluster, fingerprints, shown, NOW))


def bad(found: Sequence[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.state, finding.subject, finding.text) for finding in found if finding.state != "ok"]


class TestACluster:
    def test_that_is_well(self) -> None:
        found = findings(consumer(0), consumer(1), producer())
        nodes = ["consumer 192.0.2.1:10001", "consumer 192.0.2.2:10001", "producer 192.0.2.3:10002"]
        subjects = [*nodes, "consumers", "versions", "pre-shared keys", "clocks"]
        assert [(finding.state, finding.subject) for finding in found] == [("ok", name) for name in subjects]
        assert found[0].text == f"It answers: version {__version__}, up for 2 hours, 0 connections."
        assert FINGERPRINT in found[5].text

    def test_that_shares_a_log(self) -> None:
        def sharing(number: int, name: str) -> ClusterNode:
            log = LogStatus(
                mode="jetstream", topics=1, bytes=1, limit_bytes=2, engine=EngineStatus(id=name, replicas=3)
            )
            return consumer(number, log=log)

        found = findings(sharing(0, "ab"), sharing(1, "ab"), producer())
        assert bad(found) == []
        assert (found[-1].subject, found[-1].text) == (
            "shared log",
            "All consumers that answer share the log ab.",
        )
        ((state, subject, text),) = bad(findings(sharing(0, "ab"), sharing(1, "cd")))
        assert (state, subject) == ("problem", "shared log")
        assert text.startswith("The consumers do not share one log")

    def test_a_node_is_down(self) -> None:
        (finding,) = findings(dead(CONSUMERS[0], "consumer", "Connection refused"))
        assert "systemctl status" in finding.advice
        answered_before = findings(msgspec.structs.replace(consumer(0), problem="Connection refused"))
        for found in ([finding], answered_before):
            text = "It does not answer: Connection refused."
            assert bad(found) == [("problem", "consumer 192.0.2.1:10001", text)]

    def test_a_node_has_another_key(self) -> None:
        (finding,) = findings(dead(CONSUMERS[0], "consumer", OTHER_KEY))
        assert finding.state == "problem"
        assert finding.text == f"The pre-shared key differs there: ours has the fingerprint {FINGERPRINT}."
        assert "wsqueue doctor FILE" in finding.advice
        (finding,) = findings(dead(CONSUMERS[0], "consumer", OTHER_KEY), fingerprints=())
        assert finding.text == f"It does not answer: {OTHER_KEY}."

    @pytest.mark.parametrize("problem", NO_REPORTS)
    def test_a_node_that_has_no_reports_is_no_problem(self, problem: str) -> None:
        (finding,) = findings(dead(CONSUMERS[0], "consumer", problem))
        assert finding.state == "warning"

    def test_a_node_is_of_another_role(self) -> None:
        other = consumer(0)
        assert other.report is not None
        report = msgspec.structs.replace(other.report, role="producer")
        found = findings(msgspec.structs.replace(other, report=report))
        (text,) = (text for _, subject, text in bad(found) if subject == "consumer 192.0.2.1:10001")
        assert "producer" in text

    def test_a_node_is_not_ready(self) -> None:
        assert bad(findings(consumer(0, not_ready="starting"))) == [
            ("problem", "consumer 192.0.2.1:10001", "It is not ready: starting.")
        ]

    @pytest.mark.parametrize(
        ("code", "state"),
        [("link_down", "problem"), ("log_failing", "problem"), ("subscriber_slow", "warning")],
    )
    def test_what_a_node_warns_of(self, code: WarningCode, state: str) -> None:
        warnings = [NodeWarning(code, "Something is so.", "Do that.")]
        found = findings(producer(warnings=warnings, not_ready="no link" if state == "problem" else ""))
        assert bad(found)[:1] == [(state, "producer 192.0.2.3:10002", "Something is so.")]
        assert len([finding for finding in bad(found) if finding[1].startswith("producer")]) == 1
        assert found[1].advice == "Do that."

    @pytest.mark.parametrize(
        ("consumers", "state", "words"),
        [
            (CONSUMERS[::-1], "problem", "consumer 1 of producer 192.0.2.3:10002 is 192.0.2.2"),
            (CONSUMERS[:1], "problem", "producer 192.0.2.3:10002 has 1 consumer, but"),
            ([CONSUMERS[0], "c2:10001"], "warning", "is c2:10001, and 192.0.2.2:10001"),
        ],
    )
    def test_a_producer_has_other_consumers(self, consumers: list[str], state: str, words: str) -> None:
        found = bad(findings(consumer(0), consumer(1), producer(consumers)))
        assert len(found) == 1
        assert found[0][:2] == (state, "consumers")
        assert words in found[0][2]

    def test_two_addresses_of_one_node(self) -> None:
        found = bad(findings(consumer(0, id="same"), consumer(1, id="same"), producer()))
        ((state, subject, words),) = found
        assert (state, subject) == ("problem", "addresses")
        assert words == "192.0.2.1:10001 and 192.0.2.2:10001 lead to the same node."

    def test_versions_differ(self) -> None:
        ((state, subject, words),) = bad(findings(consumer(0), consumer(1, version="0.0.9"), producer()))
        assert (state, subject) == ("warning", "versions")
        ((_, _, these),) = bad(findings(consumer(0, version="0.0.9")))
        assert these == f"The nodes have version 0.0.9, and this host {__version__}."
        assert f"0.0.9 at 192.0.2.2:10001; {__version__} at 192.0.2.1:10001 and 192.0.2.3:10002" in words

    def test_lists_of_keys_differ(self) -> None:
        ((state, subject, words),) = bad(
            findings(consumer(0), consumer(1, psk_fingerprints=["00000000", FINGERPRINT]))
        )
        assert (state, subject) == ("warning", "pre-shared keys")
        assert words.endswith(f"consumer 192.0.2.2:10001 (00000000 and {FINGERPRINT}).")

    def test_a_key_with_a_name_is_none_of_those_that_nodes_list(self) -> None:
        assert bad(findings(consumer(0), consumer(1), fingerprints=())) == []
        other = consumer(1, psk_fingerprints=["00000000"])
        ((state, subject, words),) = bad(findings(consumer(0), other, fingerprints=()))
        assert (state, subject) == ("warning", "pre-shared keys")
        assert words == "The nodes have different lists of pre-shared keys."

    @pytest.mark.parametrize(
        ("clock", "words"), [(12.4, "12 seconds ahead of"), (-3600.0, "3600 seconds behind")]
    )
    def test_clocks_differ(self, clock: float, words: str) -> None:
        # A report may be a little old.
        found = bad(findings(consumer(0, clock=-4.9), consumer(1, clock=clock)))
        assert found == [("warning", "clocks", f"The clock of consumer 192.0.2.2:10001 is {words} ours.")]


class TestCertificates:
    @pytest.mark.parametrize(
        ("end", "state", "words"),
        [
            (NOW - timedelta(days=40), "problem", "has expired on 2026-10-19"),
            (NOW + timedelta(hours=1), "problem", "expires today, on 2026-11-28"),
            (NOW + timedelta(hours=13), "problem", "expires tomorrow, on 2026-11-29"),
            (NOW + timedelta(days=2), "problem", "expires in 2 days, on 2026-11-30"),
            (NOW + timedelta(days=20), "warning", "expires in 20 days, on 2026-12-18"),
            (NOW + timedelta(days=31), "ok", "is good until 2026-12-29"),
        ],
    )
    def test_their_ends(self, end: datetime, state: str, words: str) -> None:
        report, shown = findings(consumer(0, certificate_ends=end.timestamp()), _0=end)[1:3]
        assert (report.state, report.text) == (state, f"The first of its certificates {words}.")
        assert (shown.state, shown.text) == (state, f"The certificate that it shows {words}.")
        assert bool(report.advice) == bool(shown.advice) == (state != "ok")

    def test_what_the_node_says_itself_is_said_once(self) -> None:
        warning = NodeWarning(
            "certificate_expires", "/etc/x.pem: a certificate in it has expired on 2026-11-01."
        )
        end = NOW - timedelta(days=27)
        found = findings(consumer(0, certificate_ends=end.timestamp(), warnings=[warning]))
        assert bad(found) == [("problem", "consumer 192.0.2.1:10001", warning.text)]

    def test_a_handshake_that_fails(self) -> None:
        found = bad(findings(consumer(0), _0="wrong version number"))
        text = "The TLS handshake failed: wrong version number."
        assert found == [("problem", "consumer 192.0.2.1:10001", text)]
        problem = "its certificate is not to be trusted: certificate has expired"
        (finding,) = findings(dead(CONSUMERS[0], "consumer", problem))
        assert "[tls]" in finding.advice


class TestBounds:
    def test_of_memory_are_those_of_the_document(self) -> None:
        text = (ROOT / "docs" / "configuration.md").read_text()
        rows = [
            line.split("|") for line in text.split("## Memory bounds")[1].splitlines() if line.startswith("|")
        ]
        sizes = {row[1].strip()[:40]: row[3].strip() for row in rows}

        def mib(start: str) -> float:
            (size,) = (float(size) for what, size in sizes.items() if what.startswith(start))
            return size

        known = mib("in a consumer, topics of up to 128")
        consumer = ConsumerConfig(listen=["127.0.0.1:0"])
        logs = mib("in a consumer, the log in memory")
        assert friendly_bound(consumer) / MIB == pytest.approx(48 + logs + known, abs=1)
        on_disk = ConsumerConfig(listen=["127.0.0.1:0"], retention=Retention(mode="sqlite", max_bytes=2**40))
        logs = mib("in a consumer, the log on disk")
        assert friendly_bound(on_disk) / MIB == pytest.approx(48 + logs + known, abs=1)
        producer = ProducerConfig(listen=["127.0.0.1:0"], consumers=["a:1/producer", "b:1/producer"])
        each = mib("in a producer, each consumer that is dow") + mib("in a producer, each consumer: batches")
        topics = mib("in a producer, the consumers of the topi")
        assert friendly_bound(producer) / MIB == pytest.approx(48 + 2 * each + topics, abs=1)

    def test_of_the_host(self) -> None:
        node, log = "node.toml", Path("/var/log")
        for bounds, state in (([400, 400], "ok"), ([400, 401], "warning")):
            assert doctor.memory_finding(bounds, 1000).state == state
        for allowed, state in ((-1, "ok"), (18_456, "ok"), (18_455, "warning")):
            assert doctor.files_finding(node, Limits(), allowed, "The node").state == state
        for free, state in ((100, "ok"), (99, "warning")):
            assert doctor.space_finding(node, log, 100, free).state == state

    def test_of_kept_topics_of_others(self) -> None:
        assert doctor.orphans_finding("node.toml", Kept(0, 0), 2, 3).state == "ok"
        orphans = doctor.orphans_finding("node.toml", Kept(44, 1234), 2, 3)
        assert orphans.state == "warning"
        assert "1,234 messages of 44 topics that belong to other consumers" in orphans.text
        assert "number 2 of 3 consumers" in orphans.text


def test_the_ends_of_the_certificates_of_each_file(tmp_path: Path) -> None:
    authority = Authority(tmp_path, days=100)
    issued = authority.issue("node", days=10)
    contexts = TlsContexts(ClientConfig(producers=[], consumers=[], tls=issued))
    ends = contexts.ends_of_files
    assert [round((end - datetime.now(UTC)) / timedelta(days=1)) for end in ends.values()] == [10, 100]
    assert list(ends) == [issued.certificate, issued.ca]
    assert TlsContexts(ClientConfig(producers=[], consumers=[], tls=Tls())).ends_of_files == {}


@pytest.mark.parametrize(
    ("states", "state", "words"),
    [
        ([None, None], "ok", "does not exist yet"),
        ([StreamState(1, 5, leader="n1", replicas=3), None], "warning", "1 of 2 streams of the log exist."),
        (
            [StreamState(1, 5, leader="n1", replicas=3), StreamState(1, 5, leader="n1", replicas=2)],
            "warning",
            "2 of 3 servers that keep a part of the log can be reached.",
        ),
        (
            [StreamState(1, 5, 2048, leader="n2", replicas=3), StreamState(1, 5, leader="n1", replicas=3)],
            "ok",
            "The log has 2 streams with 2.0 KiB, each on 3 servers; they are led by n1 (1) and n2 (1).",
        ),
    ],
)
def test_the_streams_of_a_shared_log(states: list[StreamState | None], state: str, words: str) -> None:
    found = streams_finding("a.toml", states, 3)
    assert (found.state, words in found.text) == (state, True)
