"""What `wsqueue doctor` finds: in values of made-up clusters, and in files and sockets of this host."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from tests.support.paths import ROOT
from wsqueue.config.model import (
    ClientConfig,
    ConsumerConfig,
    Limits,
    ProducerConfig,
    Retention,
    Tls,
)
from wsqueue.net.certificates import TlsContexts
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.report.report import (
    Cluster,
    ClusterNode,
    LinkStatus,
    NodeWarning,
    Report,
    WarningCode,
)
from wsqueue.report.warnings import NO_REPORTS, OTHER_KEY
from wsqueue.tools import doctor
from wsqueue.tools.doctor import host
from wsqueue.tools.doctor.findings import (
    Finding,
    cluster_findings,
    files_finding,
    memory_bound,
    memory_finding,
    space_finding,
)
from wsqueue.version import __version__

from ...support.certificates import Authority
from ...support.ports import some_port

MIB = 1024 * 1024
SECRET = "correct horse battery staple"
(FINGERPRINT,) = PreSharedKey(SECRET).fingerprints()
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
CONSUMERS = ["192.0.2.1:10001", "192.0.2.2:10001"]


def link(address: str) -> LinkStatus:
    return LinkStatus(address=f"{address}/producer", state="up", protocol="v2", seconds=1.0)


def node(address: str, role: str, *, clock: float = 0.1, problem: str = "", **changes: object) -> ClusterNode:
    report = Report(
        id=f"run of {address}",
        role=role,
        version=__version__,
        psk_fingerprints=[FINGERPRINT],
        uptime_seconds=7300.0,
    )
    return ClusterNode(
        address=address,
        role=role,
        report=msgspec.structs.replace(report, **changes),
        age_seconds=0.1,
        clock_seconds=clock,
        problem=problem,
    )


def consumer(number: int, **changes: object) -> ClusterNode:
    return node(CONSUMERS[number], "consumer", **changes)  # type: ignore[arg-type]


def producer(consumers: Sequence[str] = CONSUMERS, **changes: object) -> ClusterNode:
    return node("192.0.2.3:10002", "producer", links=[link(address) for address in consumers], **changes)  # type: ignore[arg-type]


def dead(address: str, role: str, problem: str) -> ClusterNode:
    return ClusterNode(address=address, role=role, problem=problem)


def findings(*nodes: ClusterNode, **certificates: datetime | str) -> list[Finding]:
    cluster = Cluster(
        [node.address for node in nodes if node.role == "consumer"],
        [node.address for node in nodes if node.role == "producer"],
        list(nodes),
        [],
    )
    shown = {nodes[int(key[1:])].address: end for key, end in certificates.items()}
    return list(cluster_findings(cluster, [FINGERPRINT], shown, NOW))


def bad(found: Sequence[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.state, finding.subject, finding.text) for finding in found if finding.state != "ok"]


class TestACluster:
    def test_that_is_well(self) -> None:
        found = findings(consumer(0), consumer(1), producer())
        assert [(finding.state, finding.subject) for finding in found] == [
            ("ok", "consumer 192.0.2.1:10001"),
            ("ok", "consumer 192.0.2.2:10001"),
            ("ok", "producer 192.0.2.3:10002"),
            ("ok", "consumers"),
            ("ok", "versions"),
            ("ok", "pre-shared keys"),
            ("ok", "clocks"),
        ]
        assert found[0].text == f"It answers: version {__version__}, up for 2 hours, 0 connections."
        assert FINGERPRINT in found[5].text

    def test_a_node_is_down(self) -> None:
        (finding,) = findings(dead(CONSUMERS[0], "consumer", "Connection refused"))
        assert finding == Finding(
            "problem",
            "consumer 192.0.2.1:10001",
            "It does not answer: Connection refused.",
            "See whether it runs (`systemctl status`), and whether it can be reached from here.",
        )

    def test_a_node_that_answered_before_is_down_too(self) -> None:
        found = findings(msgspec.structs.replace(consumer(0), problem="no answer for 4 seconds"))
        assert bad(found) == [
            ("problem", "consumer 192.0.2.1:10001", "It does not answer: no answer for 4 seconds.")
        ]

    def test_a_node_has_another_key(self) -> None:
        (finding,) = findings(dead(CONSUMERS[0], "consumer", OTHER_KEY))
        assert finding.state == "problem"
        assert finding.text == f"The pre-shared key differs there: ours has the fingerprint {FINGERPRINT}."
        assert "wsqueue doctor FILE" in finding.advice

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
        assert found == [
            ("problem", "addresses", "192.0.2.1:10001 and 192.0.2.2:10001 lead to the same node.")
        ]

    def test_versions_differ(self) -> None:
        ((state, subject, words),) = bad(findings(consumer(0), consumer(1, version="0.0.9"), producer()))
        assert (state, subject) == ("warning", "versions")
        assert f"0.0.9 at 192.0.2.2:10001; {__version__} at 192.0.2.1:10001 and 192.0.2.3:10002" in words

    def test_this_host_has_another_version(self) -> None:
        ((_, _, words),) = bad(findings(consumer(0, version="0.0.9")))
        assert words == f"The nodes have version 0.0.9, and this host {__version__}."

    def test_lists_of_keys_differ(self) -> None:
        ((state, subject, words),) = bad(
            findings(consumer(0), consumer(1, psk_fingerprints=["00000000", FINGERPRINT]))
        )
        assert (state, subject) == ("warning", "pre-shared keys")
        assert words.endswith(f"consumer 192.0.2.2:10001 (00000000 and {FINGERPRINT}).")

    @pytest.mark.parametrize(
        ("clock", "words"), [(12.4, "12 seconds ahead of"), (-3600.0, "3600 seconds behind")]
    )
    def test_clocks_differ(self, clock: float, words: str) -> None:
        found = bad(findings(consumer(0), consumer(1, clock=clock)))
        assert found == [("warning", "clocks", f"The clock of consumer 192.0.2.2:10001 is {words} ours.")]

    def test_a_report_may_be_a_little_old(self) -> None:
        assert bad(findings(consumer(0, clock=-4.9))) == []


class TestCertificates:
    @pytest.mark.parametrize(
        ("end", "state", "words"),
        [
            (NOW - timedelta(seconds=1), "problem", "has expired on 2026-11-28"),
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
        found = findings(consumer(0), _0="wrong version number")
        assert bad(found) == [
            ("problem", "consumer 192.0.2.1:10001", "The TLS handshake failed: wrong version number.")
        ]

    def test_one_that_is_not_trusted(self) -> None:
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
        assert memory_bound(consumer) / MIB == pytest.approx(48 + logs + known, abs=1)
        on_disk = ConsumerConfig(listen=["127.0.0.1:0"], retention=Retention(mode="sqlite", max_bytes=2**40))
        logs = mib("in a consumer, the log on disk")
        assert memory_bound(on_disk) / MIB == pytest.approx(48 + logs + known, abs=1)
        producer = ProducerConfig(listen=["127.0.0.1:0"], consumers=["a:1/producer", "b:1/producer"])
        each = mib("in a producer, each consumer that is dow") + mib("in a producer, each consumer: batches")
        topics = mib("in a producer, the consumers of the topi")
        assert memory_bound(producer) / MIB == pytest.approx(48 + 2 * each + topics, abs=1)

    @pytest.mark.parametrize(("bounds", "state"), [([400, 400], "ok"), ([400, 401], "warning")])
    def test_of_memory_and_the_host(self, bounds: list[int], state: str) -> None:
        assert memory_finding(bounds, 1000).state == state

    @pytest.mark.parametrize(("allowed", "state"), [(-1, "ok"), (16_300, "ok"), (16_299, "warning")])
    def test_of_open_files(self, allowed: int, state: str) -> None:
        assert files_finding("node.toml", Limits(), allowed, "The node").state == state

    @pytest.mark.parametrize(("free", "state"), [(100, "ok"), (99, "warning")])
    def test_of_the_log(self, free: int, state: str) -> None:
        assert space_finding("node.toml", Path("/var/log"), 100, free).state == state


def configuration(directory: Path, text: str, secret: str | None = SECRET, name: str = "node.toml") -> str:
    """Write a configuration, with a key unless it is None."""
    if secret is not None:
        psk = directory / "psk"
        psk.touch(mode=0o600)
        psk.write_text(secret)
        text = f'psk_file = "psk"\n{text}'
    (directory / name).write_text(text)
    return str(directory / name)


CONSUMER = 'role = "consumer"\nlisten = ["127.0.0.1:0"]\n'
DEMO = 'role = "demo"\nproducers = ["127.0.0.1:1/produce"]\nconsumers = ["127.0.0.1:2/subscribe"]\n'


async def check(*files: str) -> tuple[list[Finding], list[ClientConfig]]:
    clusters: list[ClientConfig] = []
    said: list[str] = []
    found = [finding async for finding in doctor.check_files(files, clusters, said.append)]
    assert said[0] == f"checking {files[0]}"
    return found, clusters


@pytest.mark.anyio
class TestFiles:
    async def test_a_good_one(self, tmp_path: Path) -> None:
        file = configuration(tmp_path, CONSUMER + "limits.max_connections = 10\n")
        found, _ = await check(file)
        assert bad(found) == []
        assert [finding.subject for finding in found] == [file] * 4 + ["memory"]
        assert found[1].text.startswith(
            f"The pre-shared key has the fingerprint {FINGERPRINT}; {tmp_path}/psk can"
        )
        assert SECRET not in str(found)

    async def test_one_that_is_wrong_does_not_keep_others_from_being_checked(self, tmp_path: Path) -> None:
        wrong = configuration(tmp_path, CONSUMER + "lissten = 1\n", name="wrong.toml")
        missing = str(tmp_path / "missing.toml")
        found, _ = await check(wrong, missing, configuration(tmp_path, CONSUMER))
        assert bad(found)[:2] == [
            ("problem", wrong, "line 4: lissten: unknown key: did you mean listen?"),
            ("problem", missing, "cannot read it: No such file or directory."),
        ]
        assert found[2].state == "ok"

    @pytest.mark.parametrize(
        ("secret", "mode", "words"),
        [
            ("", 0o600, "the pre-shared key is empty"),
            (SECRET, 0o644, "all users may read the key"),
            ("pre-shared-key", 0o600, "the pre-shared key is the original nodes' default"),
        ],
    )
    async def test_a_bad_key(self, tmp_path: Path, secret: str, mode: int, words: str) -> None:
        file = configuration(tmp_path, DEMO, secret)
        (tmp_path / "psk").chmod(mode)
        found, clusters = await check(file)
        ((state, subject, text),) = bad(found)
        assert (state, subject) == ("problem", file)
        assert text.startswith(f"The key cannot be used: {tmp_path}/psk: {words}")
        assert clusters == []

    async def test_keys_of_nodes(self, tmp_path: Path) -> None:
        nodes = tmp_path / "nodes"
        nodes.touch(mode=0o640)
        nodes.write_text("another secret")
        found, _ = await check(configuration(tmp_path, CONSUMER + 'node_psk_file = "nodes"\n'))
        (of_nodes,) = PreSharedKey("another secret").fingerprints()
        assert f"The pre-shared key of the nodes has the fingerprint {of_nodes}; {nodes} can" in found[2].text
        assert " and group " in found[2].text
        nodes.write_text(SECRET)
        found, _ = await check(str(tmp_path / "node.toml"))
        assert "a key of the nodes is a key of the clients too" in bad(found)[0][2]

    async def test_certificates(self, tmp_path: Path) -> None:
        tls = Authority(tmp_path).issue("node", days=0.9)
        listen = CONSUMER.replace("127", "wss://127")
        table = f'[tls]\ncertificate = "{tls.certificate}"\nkey = "{tls.key}"\nca = "{tls.ca}"\n'
        file = configuration(tmp_path, listen + table)
        found, _ = await check(file)
        texts = {finding.state: finding.text for finding in found if "certificate in" in finding.text}
        assert texts["problem"].startswith(f"The certificate in {tls.certificate} expires to")
        assert texts["ok"].startswith(f"The certificate in {tls.ca} is good until ")
        (tmp_path / "node.key").chmod(0o644)
        found, _ = await check(file)
        assert bad(found)[0][2].startswith(f"The certificates cannot be used: {tls.key}: all users may read")

    @pytest.mark.parametrize("days", [90, -1])
    async def test_a_certificate_of_another_authority(self, tmp_path: Path, days: float) -> None:
        own = Authority(tmp_path).issue("node", days=days, hosts=["elsewhere"])
        other = Authority(tmp_path, "other").file
        listen = CONSUMER.replace("127", "wss://127")
        for ca, trusted in ((own.ca, True), (str(other), False)):
            table = f'[tls]\ncertificate = "{own.certificate}"\nkey = "{own.key}"\nca = "{ca}"\n'
            found, _ = await check(configuration(tmp_path, listen + table))
            assert any(f"trusts {ca}" in text for _, _, text in bad(found)) != trusted

    async def test_unwise_configurations(self, tmp_path: Path) -> None:
        found, _ = await check(configuration(tmp_path, CONSUMER.replace("127.0.0.1", "[::]")))
        assert bad(found)[0][2].startswith("listen: [::]:0 can be reached from other hosts")

    async def test_names_without_an_address(self, tmp_path: Path) -> None:
        file = configuration(tmp_path, DEMO.replace("127.0.0.1:2", "nowhere.invalid:2"))
        ((state, _, text),) = bad((await check(file))[0])
        assert state == "problem"
        assert text.startswith("No IP address is known for nowhere.invalid")

    async def test_a_port_that_is_free(self, tmp_path: Path) -> None:
        port = some_port()
        found, _ = await check(configuration(tmp_path, CONSUMER.replace(":0", f":{port}")))
        assert f"127.0.0.1:{port} is free for the node." in [finding.text for finding in found]

    async def test_a_port_that_another_process_has(self, tmp_path: Path) -> None:
        with listening() as port:
            found, _ = await check(configuration(tmp_path, CONSUMER.replace(":0", f":{port}")))
        ((state, _, text),) = bad(found)
        assert state == "problem"
        assert text.startswith(f"Process {os.getpid()} (")
        assert text.endswith(f") listens at 127.0.0.1:{port}, and not a node with this file.")

    async def test_a_port_whose_process_cannot_be_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(host, "_owner", lambda _address: None)
        with listening() as port:
            text = CONSUMER.replace(":0", f":{port}") + "limits.hello_seconds = 0.1\n"
            found, _ = await check(configuration(tmp_path, text))
        ((state, _, text),) = bad(found)
        assert state == "warning"
        assert f"at 127.0.0.1:{port}: " in text

    async def test_an_address_of_another_host(self, tmp_path: Path) -> None:
        found, _ = await check(configuration(tmp_path, CONSUMER.replace("127.0.0.1:0", "192.0.2.77:10001")))
        assert any(text.startswith("Nothing can listen at 192.0.2.77:10001: ") for _, _, text in bad(found))

    async def test_unix_sockets(self, tmp_path: Path) -> None:
        place = tmp_path / "node.sock"
        file = configuration(tmp_path, f'role = "consumer"\nlisten = ["unix:{place}"]\n')
        found, _ = await check(file)
        assert f"unix:{place} is free for the node." in [finding.text for finding in found]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
            listener.listen()
            found, _ = await check(file)
        assert any(f"at unix:{place}: " in text for _, _, text in bad(found))

    async def test_the_directory_of_the_log(self, tmp_path: Path) -> None:
        table = '[retention]\nmode = "sqlite"\nmax_bytes = 1048576\n'
        file = configuration(tmp_path, CONSUMER + table + 'directory = "logs"\n')
        found, _ = await check(file)
        assert any(f"{tmp_path}/logs has " in finding.text for finding in found if finding.state == "ok")
        (tmp_path / "logs").write_text("a file")
        found, _ = await check(file)
        assert any(text.startswith(f"The log cannot be kept in {tmp_path}/logs") for _, _, text in bad(found))
        found, _ = await check(configuration(tmp_path, CONSUMER + table))
        assert ("warning", file, "No directory is configured for the log.") in bad(found)
        huge = table.replace("1048576", str(2**40)) + 'directory = "more"\n'
        found, _ = await check(configuration(tmp_path, CONSUMER + huge))
        assert any(f"{tmp_path}/more has " in text and "1.0 TiB" in text for _, _, text in bad(found))

    async def test_a_demo_file_leads_to_its_cluster(self, tmp_path: Path) -> None:
        _, clusters = await check(configuration(tmp_path, DEMO))
        assert [cluster.producers for cluster in clusters] == [["127.0.0.1:1/produce"]]

    async def test_a_cluster_whose_certificates_cannot_be_used_is_not_asked(self, tmp_path: Path) -> None:
        file = configuration(tmp_path, DEMO.replace("127", "wss://127") + f'tls.ca = "{tmp_path}/none"\n')
        found, clusters = await check(file)
        assert clusters == []
        assert bad(found)[0][2].startswith("The certificates cannot be used: ")


@contextmanager
def listening() -> Iterator[int]:
    """Listen, and answer no connection."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_ends_of_the_certificates_of_each_file(tmp_path: Path) -> None:
    authority = Authority(tmp_path, days=100)
    issued = authority.issue("node", days=10)
    contexts = TlsContexts(ClientConfig(producers=[], consumers=[], tls=issued))
    ends = contexts.ends_of_files
    assert [round((end - datetime.now(UTC)) / timedelta(days=1)) for end in ends.values()] == [10, 100]
    assert list(ends) == [issued.certificate, issued.ca]
    assert TlsContexts(ClientConfig(producers=[], consumers=[], tls=Tls())).ends_of_files == {}
