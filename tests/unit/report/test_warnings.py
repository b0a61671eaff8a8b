"""Conditions of warnings, their sentences and their advice."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import msgspec
import pytest

from wsqueue.protocol.close import CloseCode
from wsqueue.report.report import (
    ClusterNode,
    ConnectionCount,
    EngineStatus,
    LinkStatus,
    LogStatus,
    NodeWarning,
    Report,
    SlowPeer,
    WarningCode,
)
from wsqueue.report.warnings import (
    ADVICE,
    ENGINE_FULL,
    MAX_CLOCK_SECONDS,
    MAX_LAG_SECONDS,
    MAX_NAMED,
    MAX_REPLICA_LAG_SECONDS,
    NO_REPORTS,
    OTHER_KEY,
    Recent,
    cluster_warnings,
    node_warnings,
)

LINK = LinkStatus(address="192.0.2.1:1/producer", state="up", protocol="v2", seconds=5.0)
DOWN = LinkStatus(address="192.0.2.1:1/producer", state="down", seconds=61.7, reason="Connection refused")
LOG = LogStatus(mode="sqlite", topics=3, bytes=1000, limit_bytes=5000, free_bytes=4000)
ENGINE = EngineStatus(id="ab", server="n1 2.15.1", streams=8, replicas=3, replicas_wanted=3)
SHARED = LogStatus(mode="jetstream", topics=3, bytes=1000, limit_bytes=5000, engine=ENGINE)
WELL = Report(id="1", role="consumer", version="1.0.0", psk_fingerprints=["0badcafe"], max_connections=10)


def replaced(struct: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(struct, **changes)


def warnings(recent: dict[str, int] | None = None, **changes: Any) -> list[NodeWarning]:
    return node_warnings(replaced(WELL, **changes), Recent(Counter(recent or {})))


def only(found: list[NodeWarning], code: WarningCode) -> str:
    """Return the text of the one warning, which has that code and its advice."""
    (warning,) = found
    assert (warning.code, warning.advice) == (code, ADVICE[code])
    return warning.text


class TestNode:
    def test_all_is_well(self) -> None:
        busy = replaced(LINK, held_messages=1000, held_bytes=500_000)
        recent = {"messages_in": 1, "repeats": 1, "connections_refused": 9, "slow_subscribers": 1}
        assert warnings(recent, links=[LINK, busy], log=LOG, counters=recent) == []

    def test_every_code_has_advice(self) -> None:
        assert set(ADVICE) == set(get_args(WarningCode))
        assert [code for code, advice in ADVICE.items() if not advice] == ["draining"]

    def test_draining(self) -> None:
        assert "about to stop" in only(warnings(not_ready="draining"), "draining")
        assert warnings(not_ready="no link to 192.0.2.1:1/producer") == []

    def test_a_link_that_is_down(self) -> None:
        down = replaced(DOWN, held_messages=12, held_bytes=3 * 1024)
        assert only(warnings(links=[LINK, down]), "link_down") == (
            "No link to consumer 192.0.2.1:1/producer for 62 seconds: Connection refused;"
            " 12 messages wait for it (3.0 KiB)."
        )

    def test_a_link_that_is_down_and_whose_topics_are_elsewhere(self) -> None:
        text = only(warnings(links=[replaced(DOWN, away=True)]), "link_down")
        assert text.endswith("Connection refused; other consumers have its topics.")

    def test_a_link_to_a_classic_consumer_that_came_up_again(self) -> None:
        remade = replaced(LINK, protocol="classic", seconds=62.0, remade=1)
        assert only(warnings(links=[remade]), "link_remade") == (
            "The link to consumer 192.0.2.1:1/producer, which only speaks classic, came up again 62 seconds"
            " ago. Subscribers of an original consumer may hear nothing more of this producer until they"
            " subscribe anew."
        )
        assert warnings(links=[replaced(remade, seconds=3601.0)]) == []

    @pytest.mark.parametrize(("link", "code"), [(DOWN, "link_down"), (LINK, "link_slow")])
    def test_a_link_that_pauses_publishers(self, link: LinkStatus, code: str) -> None:
        paused = replaced(link, held_messages=1000, held_bytes=2 * 1024 * 1024, paused_publishers=2)
        first, second = warnings(links=[paused])
        assert (first.code, second.code) == (code, "publishers_paused")
        assert first.text.endswith("1,000 messages wait for it (2.0 MiB).")
        assert second.text == "2 publishers are paused because too much waits for 192.0.2.1:1/producer."

    def test_the_singular(self) -> None:
        down = replaced(DOWN, seconds=1.0, held_messages=1, held_bytes=100, paused_publishers=1)
        slow = {"slow_subscribers": 1, "slow_peers": [SlowPeer("192.0.2.9:1", "v2", 0, 1)]}
        found = warnings({"gaps": 1}, links=[down], counters={"lost_held": 1}, **slow)
        assert [warning.text for warning in found] == [
            "No link to consumer 192.0.2.1:1/producer for 1 second: Connection refused;"
            " 1 message waits for it (100 bytes).",
            "1 publisher is paused because too much waits for 192.0.2.1:1/producer.",
            "1 subscriber reads slower than its topics grow: 192.0.2.9:1 (1 message behind).",
            "1 time in the last minute, a subscriber was told that messages are gone.",
            "1 classic message was lost since the start.",
        ]

    @pytest.mark.parametrize(
        ("count", "peers"),
        [
            (1, "1 peer that had not proved itself was"),
            (2000, "2,000 peers that had not proved themselves were"),
        ],
    )
    def test_strangers_that_were_dropped(self, count: int, peers: str) -> None:
        recent = Recent(Counter(strangers_dropped=count), {"strangers_dropped": "192.0.2.9:7"})
        (found,) = node_warnings(WELL, recent)
        assert (found.code, found.text) == (
            "strangers_dropped",
            f"{peers} dropped in the last minute, because there were too many; the last from 192.0.2.9:7.",
        )

    def test_a_log_that_fails(self) -> None:
        text = only(warnings(log=replaced(LOG, failing="the disk is full")), "log_failing")
        assert text == "Messages cannot be stored, and are refused: the disk is full."

    def test_a_shared_log_is_well(self) -> None:
        assert warnings(log=SHARED) == []
        single = replaced(ENGINE, replicas=1, replicas_wanted=1, lag_records=5, conflicts=7, unanswered=9)
        assert warnings(log=replaced(SHARED, engine=single)) == []

    def test_a_shared_log_that_cannot_be_reached(self) -> None:
        # All else that is known of it is old.
        away = replaced(
            ENGINE,
            available=False,
            unavailable_seconds=61.7,
            streams_without_leader=8,
            replicas=1,
            lag_seconds=99.0,
        )
        text = only(warnings(log=replaced(SHARED, failing="no answer came", engine=away)), "log_unavailable")
        assert text == "For 62 seconds, nothing could be stored in the shared log from here: no answer came."

    @pytest.mark.parametrize(("silent", "words"), [(1, "1 of 8 streams of the shared log does not answer")])
    def test_a_part_of_a_shared_log_without_a_leader(self, silent: int, words: str) -> None:
        found = warnings(log=replaced(SHARED, engine=replaced(ENGINE, streams_without_leader=silent)))
        assert only(found, "log_unavailable").startswith(words)

    def test_a_shared_log_without_room(self) -> None:
        (found,) = warnings(log=replaced(SHARED, failing="no space"))
        assert (found.code, found.advice) == ("log_failing", ENGINE_FULL)

    @pytest.mark.parametrize(
        ("there", "wanted", "words"),
        [(2, 3, "2 of 3 servers"), (3, 5, "3 of 5 servers"), (3, 3, ""), (0, 3, "")],
    )
    def test_replicas(self, there: int, wanted: int, words: str) -> None:
        engine = replaced(ENGINE, replicas=there, replicas_wanted=wanted)
        found = warnings(log=replaced(SHARED, engine=engine))
        if not words:
            assert found == []
            return
        most = (wanted + 1) // 2
        assert only(found, "replica_missing") == (
            f"{words} that keep a part of the shared log can be reached; at least {most} must be."
        )

    def test_a_replica_that_is_far_behind(self) -> None:
        behind = replaced(ENGINE, lag_records=12_345, lag_seconds=MAX_REPLICA_LAG_SECONDS)
        assert warnings(log=replaced(SHARED, engine=behind)) == []
        behind = replaced(behind, lag_seconds=185.0)
        assert only(warnings(log=replaced(SHARED, engine=behind)), "replica_behind") == (
            "A server that keeps a part of the shared log has been far behind for 3 minutes, now by 12,345"
            " records."
        )

    @pytest.mark.parametrize(
        ("size", "free", "warned"),
        [(1000, 3999, True), (1000, 4000, False), (1000, 0, True), (1000, -1, False), (6000, 0, False)],
    )
    def test_a_file_system_that_is_smaller_than_the_log_may_be(
        self, size: int, free: int, warned: bool
    ) -> None:
        found = warnings(log=replaced(LOG, bytes=size, free_bytes=free))
        assert [warning.code for warning in found] == ["log_nearly_full"] * warned
        assert not found or " left, and the log may grow by 3.9 KiB." in found[0].text

    @pytest.mark.parametrize(
        ("ahead", "words"), [(3600.2, "3,600 seconds ahead of"), (-5.9, "6 seconds behind"), (4.9, "")]
    )
    def test_a_clock_that_was_set(self, ahead: float, words: str) -> None:
        found = warnings(log=replaced(LOG, clock_seconds=ahead))
        assert [warning.code for warning in found] == ["log_clock"] * bool(words)
        assert not found or f"are dated {words} the system's clock, which has been set" in found[0].text

    def test_a_log_that_another_process_reads(self) -> None:
        held = replaced(LOG, wal_bytes=385 * 2**20, held_seconds=65.4)
        assert only(warnings(log=held), "log_held") == (
            "The write-ahead log of the archive has 385 MiB and cannot be emptied,"
            " because another process has been reading the archive for 65 seconds."
        )

    @pytest.mark.parametrize(
        ("counter", "text", "advice"),
        [
            (
                f"refused_{CloseCode.WRONG_ANSWER}",
                "A peer with another pre-shared key was refused",
                "fingerprints",
            ),
            ("tls_refused", "A TLS handshake failed", "TLS refused"),
            (f"refused_{CloseCode.EARLY_DATA}", "A hello failed", "hello refused"),
            ("refused_by_peer", "A hello failed", "hello refused"),
        ],
    )
    def test_refusals(self, counter: str, text: str, advice: str) -> None:
        peers = {counter: "192.0.2.4:1"}
        assert node_warnings(WELL, Recent(Counter({counter: 4}), peers)) == []
        (warning,) = node_warnings(WELL, Recent(Counter({counter: 5}), peers))
        assert warning.code == "hello_refused"
        assert warning.text == f"{text} 5 times in the last minute, the last from 192.0.2.4:1."
        assert advice in warning.advice

    def test_gaps(self) -> None:
        (warning,) = warnings({"gaps": 2})
        assert (warning.code, warning.text[:26]) == ("messages_lost", "2 times in the last minute")
        assert "[retention]" in warning.advice

    @pytest.mark.parametrize("counter", ["lost_in_flight", "lost_held", "lost_refused", "lost_full"])
    def test_lost_messages(self, counter: str) -> None:
        text = only(warnings(counters={counter: 3}), "messages_lost")
        assert text == "3 classic messages were lost since the start."

    def test_slow_subscribers(self) -> None:
        named = [SlowPeer("192.0.2.1:1", "v2", 0, 9), SlowPeer("192.0.2.2:1", "classic", 5, 0)]
        for count, end in ((2, "."), (3, " and others.")):
            text = only(warnings(slow_subscribers=count, slow_peers=named), "subscriber_slow")
            assert text.startswith(f"{count} subscribers read slower than their topics grow: ")
            assert text.endswith(f" 192.0.2.1:1 (9 messages behind), 192.0.2.2:1{end}")
        slow = [SlowPeer(f"192.0.2.{number}:1", "v2", 0, 9) for number in range(9)]
        assert warnings(slow_subscribers=9, slow_peers=slow)[0].text.count("192.0.2.") == MAX_NAMED

    def test_the_event_loop(self) -> None:
        assert warnings(loop_lag_seconds=MAX_LAG_SECONDS) == []
        text = only(warnings(loop_lag_seconds=2.25), "loop_lag")
        assert text == "The event loop was late by up to 2.2 seconds."

    def test_many_connections(self) -> None:
        nine = [ConnectionCount("subscriber", "open", "v2", 9)]
        assert warnings(connections=nine) == []
        others = [ConnectionCount("", "hello", "", 90), ConnectionCount("producer", "open", "v2", 90)]
        assert warnings(connections=nine + others) == []
        text = only(
            warnings(connections=[*nine, ConnectionCount("monitor", "open", "v2", 1)]), "many_connections"
        )
        assert text == "10 of at most 10 connections are taken."

    def test_certificates(self) -> None:
        recent = Recent(Counter(), certificates=["a.pem: a certificate in it expires on 2030-01-01"])
        text = only(node_warnings(WELL, recent), "certificate_expires")
        assert text == "a.pem: a certificate in it expires on 2030-01-01."


def node(address: str = "192.0.2.1:1", *, problem: str = "", clock: float = 0.0, **changes: Any) -> Any:
    report = replaced(WELL, **changes)
    asked = {"age_seconds": 0.1, "clock_seconds": clock, "problem": problem}
    return ClusterNode(address=address, role=report.role, report=report, **asked)  # type: ignore[arg-type]


class TestCluster:
    def test_all_is_well(self) -> None:
        assert cluster_warnings([]) == []
        assert cluster_warnings([node(), node("192.0.2.2:1", role="producer")]) == []

    def test_a_node_that_was_not_asked_yet(self) -> None:
        assert cluster_warnings([ClusterNode(address="192.0.2.1:1", role="consumer")]) == []

    @pytest.mark.parametrize(
        ("problem", "advice"),
        [
            ("Connection refused", "systemctl status"),
            (OTHER_KEY, "wsqueue doctor FILE"),
            ("its certificate is not to be trusted: certificate has expired", "[tls]"),
        ],
    )
    def test_a_node_that_does_not_answer(self, problem: str, advice: str) -> None:
        (warning,) = cluster_warnings([node(problem=problem)])
        assert warning.code == "node_unreachable"
        assert warning.text == f"consumer 192.0.2.1:1 does not answer: {problem}."
        assert advice in warning.advice

    @pytest.mark.parametrize("problem", NO_REPORTS)
    def test_a_node_that_has_no_reports(self, problem: str) -> None:
        (warning,) = cluster_warnings([node(problem=problem)])
        assert warning.text == f"consumer 192.0.2.1:1 cannot be asked for a report: {problem}."
        assert warning.code == "no_report"
        assert "Update" in warning.advice

    def test_the_last_report_of_a_node_that_does_not_answer_does_not_count(self) -> None:
        late = [NodeWarning("loop_lag", "Late.")]
        old = node(problem="gone", clock=100.0, version="0.1.0", psk_fingerprints=["1"], warnings=late)
        assert [warning.code for warning in cluster_warnings([old, node()])] == ["node_unreachable"]

    def test_a_warning_of_a_node_names_the_node(self) -> None:
        late = NodeWarning("loop_lag", "It was late.", "Do something.")
        assert cluster_warnings([node(role="producer", warnings=[late]), node()]) == [
            NodeWarning("loop_lag", "producer 192.0.2.1:1: It was late.", "Do something.")
        ]

    @pytest.mark.parametrize(
        ("seconds", "words"), [(6.4, "6 seconds ahead of"), (-3600.0, "3600 seconds behind")]
    )
    def test_a_clock_that_differs(self, seconds: float, words: str) -> None:
        assert cluster_warnings([node(clock=MAX_CLOCK_SECONDS), node(clock=-MAX_CLOCK_SECONDS)]) == []
        text = only(cluster_warnings([node(clock=seconds)]), "clock_differs")
        assert text == f"The clock of consumer 192.0.2.1:1 is {words} ours."

    def test_versions(self) -> None:
        nodes = [node("c1:1", version="1.1.0"), node("c2:1"), node("c3:1", version="1.1.0")]
        text = only(cluster_warnings(nodes), "version_differs")
        assert text == "The nodes have different versions: 1.0.0 at c2:1; 1.1.0 at c1:1 and c3:1."

    def test_not_all_nodes_of_a_version_are_named(self) -> None:
        nodes = [node("c0:1", version="0.9"), *(node(f"c{number}:1") for number in range(1, 6))]
        text = only(cluster_warnings(nodes), "version_differs")
        assert text.endswith("0.9 at c0:1; 1.0.0 at c1:1, c2:1, c3:1 and 2 others.")

    @pytest.mark.parametrize(
        ("fingerprints", "differ"),
        # The first key is used, so the order matters.
        [(["ab", "ab"], False), (["a", "b"], True), (["ab", "a"], True), (["ab", "ba"], True)],
    )
    def test_keys(self, fingerprints: list[str], differ: bool) -> None:
        found = cluster_warnings([node(psk_fingerprints=list(keys)) for keys in fingerprints])
        assert [warning.code for warning in found] == ["keys_differ"] * differ

    def test_consumers_that_share_a_log(self) -> None:
        producer = node("p1:1", role="producer")
        assert cluster_warnings([node("c1:1", log=SHARED), node("c2:1", log=SHARED), producer]) == []
        # Consumers with logs of their own may keep them as they like.
        alone = [node("c1:1", log=LOG), node("c2:1", log=replaced(LOG, mode="memory"))]
        assert cluster_warnings(alone) == []
        other = replaced(SHARED, engine=replaced(ENGINE, id="cd"))
        text = only(cluster_warnings([node("c1:1", log=SHARED), node("c2:1", log=other)]), "logs_differ")
        assert text == "The consumers do not share one log: the log ab at c1:1; the log cd at c2:1."
        text = only(cluster_warnings([node("c1:1", log=SHARED), node("c2:1", log=LOG)]), "logs_differ")
        assert text.endswith("one log: a log of its own (sqlite) at c2:1; the log ab at c1:1.")
