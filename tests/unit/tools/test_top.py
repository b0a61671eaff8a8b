"""The screen of `wsqueue top` for invented clusters, and its rates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from rich.text import Text

from wsqueue.report.report import (
    ClientStatus,
    Cluster,
    ClusterNode,
    ConnectionCount,
    EngineStatus,
    LagStatus,
    LinkStatus,
    LogStatus,
    NodeWarning,
    Report,
    SlowPeer,
    TopicStatus,
)
from wsqueue.report.warnings import ONLY_CLASSIC, cluster_warnings
from wsqueue.tools.top import ClusterSnapshot, print_text
from wsqueue.tools.top.screen import NO_LIMIT, screen
from wsqueue.tools.top.snapshot import Rates, Sampler, top_topics

NOW = 1_764_000_000.0
OTHER_KEY = "it has another pre-shared key"
HOSTILE = "\x1b[31m\x9b31m\r\n\t[bold red]\u202e\u200b\x07"


def link(number: int, **changes: object) -> LinkStatus:
    up = LinkStatus(address=f"192.0.2.{number}:10001/producer", state="up", protocol="v2", seconds=7300.0)
    return msgspec.structs.replace(up, **changes)


def consumer(number: int, **changes: object) -> ClusterNode:
    log = LogStatus(mode="memory", topics=3, bytes=32 * 1024**2, limit_bytes=64 * 1024**2)
    return node(number, "consumer", **({"log": log} | changes))


def producer(number: int, links: Sequence[LinkStatus] = (), **changes: object) -> ClusterNode:
    return node(number, "producer", links=list(links), **changes)


def node(number: int, role: str, **changes: object) -> ClusterNode:
    report = Report(
        id=f"run-{role}-{number}",
        role=role,
        version="0.1.0",
        uptime_seconds=93_784.0,
        loop_lag_seconds=0.004,
        connections=[ConnectionCount("subscriber", "open", "v2", 1200), ConnectionCount("", "hello", "", 34)],
        counters={"messages_in": 1000, "deliveries": 5000, "forwarded": 900},
    )
    report = msgspec.structs.replace(report, **changes)
    port = 10_001 if role == "consumer" else 10_002
    known: dict[str, Any] = {"report": report, "age_seconds": 0.1, "clock_seconds": 0.0}
    return ClusterNode(address=f"192.0.2.{number}:{port}", role=role, **known)


def dead(number: int, role: str, problem: str = "Connection refused") -> ClusterNode:
    whole = node(number, role)
    return msgspec.structs.replace(whole, report=None, age_seconds=None, clock_seconds=None, problem=problem)


def cluster(*nodes: ClusterNode, warnings: Sequence[NodeWarning] | None = None) -> Cluster:
    of = {role: [node.address for node in nodes if node.role == role] for role in ("consumer", "producer")}
    found = cluster_warnings(nodes) if warnings is None else list(warnings)
    return Cluster(of["consumer"], of["producer"], list(nodes), found)


def snapshot(*nodes: ClusterNode, warnings: Sequence[NodeWarning] | None = None) -> ClusterSnapshot:
    return Sampler().snapshot(cluster(*nodes, warnings=warnings), NOW)


def text(lines: Sequence[Text]) -> str:
    return "\n".join(line.plain for line in lines)


def shown(of: ClusterSnapshot, width: int = NO_LIMIT, height: int = NO_LIMIT) -> str:
    return text(screen(of, width, height))


HEALTHY = (consumer(1), consumer(2), producer(3, [link(1), link(2)]), producer(4, [link(1), link(2)]))


def later(of: ClusterNode, seconds: float, **counters: int) -> ClusterNode:
    assert of.report is not None
    uptime, counted = (
        of.report.uptime_seconds + seconds,
        dict(Counter(of.report.counters) + Counter(counters)),
    )
    report = msgspec.structs.replace(of.report, uptime_seconds=uptime, counters=counted)
    return msgspec.structs.replace(of, report=report)


class TestRates:
    def test_they_are_those_between_two_reports(self) -> None:
        sampler = Sampler()
        first = sampler.snapshot(cluster(*HEALTHY), NOW)
        assert [node.rates for node in first.nodes] == [None] * 4
        nodes = (
            later(HEALTHY[0], 4.0, messages_in=40, deliveries=400, bytes_in=800, bytes_out=8000),
            *HEALTHY[1:3],
            later(HEALTHY[3], 2.0, messages_in=40, forwarded=30),
        )
        second = sampler.snapshot(cluster(*nodes), NOW + 4)
        # The nodes between have the same report again.
        rates = [Rates(10.0, 100.0, 200.0, 2000.0), None, None, Rates(20.0, 15.0, 0.0, 0.0)]
        assert [node.rates for node in second.nodes] == rates
        # A node that is asked too early sends the same report again, so the rates stay.
        assert sampler.snapshot(cluster(*nodes), NOW + 4.1).nodes[0].rates == second.nodes[0].rates

    def test_a_node_that_was_started_again_or_away_has_none_yet(self) -> None:
        sampler = Sampler()
        sampler.snapshot(cluster(HEALTHY[0]), NOW)
        sampler.snapshot(cluster(later(HEALTHY[0], 2.0, messages_in=10)), NOW)
        again = consumer(1, id="another", uptime_seconds=1.0, counters={"messages_in": 5})
        assert sampler.snapshot(cluster(again), NOW).nodes[0].rates is None
        rates = sampler.snapshot(cluster(later(again, 1.0, messages_in=7)), NOW).nodes[0].rates
        assert rates is not None
        assert rates.messages_in == 7.0
        assert sampler.snapshot(cluster(dead(1, "consumer")), NOW).nodes[0].rates is None
        assert sampler.snapshot(cluster(later(again, 9.0)), NOW).nodes[0].rates is None

    def test_a_topic_counts_once_though_two_roles_count_it(self) -> None:
        nodes = [
            consumer(1, top_topics=[TopicStatus("news", 30.0), TopicStatus("sport", 1.0)]),
            producer(2, top_topics=[TopicStatus("news", 10.0)]),
            producer(3, top_topics=[TopicStatus("news", 15.0), TopicStatus("new", 2.5)]),
        ]
        found = [TopicStatus("news", 30.0), TopicStatus("new", 2.5), TopicStatus("sport", 1.0)]
        assert top_topics(nodes) == found
        # The topics of a node that does not answer are old.
        assert top_topics([msgspec.structs.replace(nodes[0], problem="no answer for 4 seconds")]) == []


class TestWhatIsShown:
    def test_a_healthy_cluster(self) -> None:
        sampler = Sampler()
        sampler.snapshot(cluster(*HEALTHY), NOW)
        nodes = [later(node, 2.0, messages_in=2468, deliveries=5, forwarded=1) for node in HEALTHY]
        lines = shown(sampler.snapshot(cluster(*nodes), NOW)).split("\n")
        assert lines[0].startswith("wsqueue top  4 of 4 nodes answer, no warnings  2025-11-2")
        assert lines[1] == "Published 2,468 messages/s, delivered 5.0 messages/s"
        table = [line for line in lines if line.startswith(("ROLE", "consumer", "producer"))]
        rest = "ready 0.1.0 1d 2h 1,234 1,234"
        assert [" ".join(line.split()) for line in table] == [
            "ROLE NODE STATE VERSION UP CONN IN/s OUT/s BYTES IN/s BYTES OUT/s LAG LOG",
            f"consumer 192.0.2.1:10001 {rest} 2.5 0 bytes 0 bytes 4 ms 32 MiB 50%",
            f"consumer 192.0.2.2:10001 {rest} 2.5 0 bytes 0 bytes 4 ms 32 MiB 50%",
            f"producer 192.0.2.3:10002 {rest} 0.5 0 bytes 0 bytes 4 ms -",
            f"producer 192.0.2.4:10002 {rest} 0.5 0 bytes 0 bytes 4 ms -",
        ]
        assert "192.0.2.3:10002  192.0.2.1:10001  up    2h 1m     0  0 bytes" in lines
        assert not any("SLOW" in line or "TOPIC" in line or "REASON" in line for line in lines)

    def test_a_link_that_is_down_comes_first_with_its_reason(self) -> None:
        held = {"held_messages": 1234, "held_bytes": 2**20}
        broken = link(2, state="down", protocol="", reason="Connection refused", **held)
        nodes = (consumer(1), dead(2, "consumer"), producer(3, [link(1), broken], not_ready="no link to …"))
        lines = shown(snapshot(*nodes)).split("\n")
        assert lines[0].startswith("wsqueue top  2 of 3 nodes answer, 1 warning ")
        assert lines[3] == "! consumer 192.0.2.2:10001 does not answer: Connection refused."
        assert lines[4].startswith("  See whether it runs")
        (links,) = (index for index, line in enumerate(lines) if line.startswith("FROM PRODUCER"))
        assert lines[links + 1].split()[2:] == "down 2h 1m 1,234 1.0 MiB Connection refused".split()  # noqa: SIM905
        assert lines[links + 2].split()[2] == "up"
        (nodes_at,) = (index for index, line in enumerate(lines) if line.startswith("ROLE"))
        # Nodes with problems come first.
        states = [re.sub(" {2,}", "|", line).split("|")[2] for line in lines[nodes_at + 1 : nodes_at + 4]]
        assert states == ["down", "not ready", "ready"]

    def test_a_node_that_works_without_reports_is_not_down(self) -> None:
        lines = shown(snapshot(consumer(1), dead(2, "consumer", ONLY_CLASSIC))).split("\n")
        (at,) = (index for index, line in enumerate(lines) if line.startswith("ROLE"))
        states = [re.sub(" {2,}", "|", line).split("|")[2] for line in lines[at + 1 : at + 3]]
        assert states == ["no report", "ready"]

    def test_slow_subscribers(self) -> None:
        slow = [SlowPeer("198.51.100.9:5001", "v2", 270_000, 91_234), SlowPeer("[::9]:7", "classic", 9, 0)]
        lines = shown(snapshot(consumer(1, slow_peers=slow, slow_subscribers=7))).split("\n")
        (at,) = (index for index, line in enumerate(lines) if line.startswith("SLOW SUBSCRIBER"))
        expected = "198.51.100.9:5001 192.0.2.1:10001 v2 91,234 messages 264 KiB"
        assert lines[at + 1].split() == expected.split()
        assert lines[at + 2].split()[:3] == ["[::9]:7", "192.0.2.1:10001", "classic"]
        assert lines[at + 3] == "… and 5 more slow subscribers"

    def test_groups_and_readers_that_are_behind(self) -> None:
        one = [LagStatus("jobs", "group", "g", 1200, 2), LagStatus("jobs", "reader", "mail", 0, 1)]
        # Another consumer of the same log has looked a moment later, and has other members.
        other = [LagStatus("jobs", "group", "g", 1190, 1), LagStatus("news", "reader", "mail", 7, 0)]
        nodes = (consumer(1, lags=one), consumer(2, lags=other))
        lines = shown(snapshot(*nodes)).split("\n")
        (at,) = (index for index, line in enumerate(lines) if line.startswith("BEHIND  GROUP OR READER"))
        assert [line.split() for line in lines[at + 1 : at + 3]] == [
            ["1,200", "g", "jobs", "3"],
            ["7", "mail", "news", "0"],
        ]
        assert "mail" not in shown(snapshot(consumer(1, lags=one)))

    def test_clients_by_name(self) -> None:
        one = [ClientStatus(name="", connections=4), ClientStatus(name="web", connections=3, topics=2)]
        other = [
            ClientStatus(name="", connections=1500),
            ClientStatus(name="billing", refused=2),
            ClientStatus(name="web", connections=1, topics=1, refused=1),
        ]
        of = (consumer(1, clients=one), producer(2, clients=other))
        lines = shown(snapshot(*of)).split("\n")
        (at,) = (index for index, line in enumerate(lines) if line.startswith("CLIENT"))
        assert [" ".join(line.split()) for line in lines[at : at + 5]] == [
            "CLIENT CONN TOPICS REFUSED",
            "billing 0 - 2",
            "web 4 3 1",
            "without a name 1,504 - -",
            "",
        ][: len(lines) - at]
        # The numbers of a node that does not answer are old, and where nobody has a name there is no table.
        silent = msgspec.structs.replace(of[1], problem="no answer for 4 seconds")
        assert "billing" not in shown(snapshot(of[0], silent))
        assert "CLIENT" not in shown(snapshot(consumer(1, clients=one[:1])))
        many = [ClientStatus(name=f"name-{number}", connections=1) for number in range(200)]
        assert re.search(r"… and \d+ more names", shown(snapshot(consumer(1, clients=many)), 80, 40))

    def test_a_log_that_fails(self) -> None:
        log = LogStatus(mode="sqlite", topics=3, bytes=0, limit_bytes=1, failing="No space left")
        assert "failing" in shown(snapshot(consumer(1, log=log)))

    def test_nothing_answers(self) -> None:
        lines = shown(snapshot(dead(1, "consumer"), dead(2, "producer"))).split("\n")
        assert lines[0].startswith("wsqueue top  0 of 2 nodes answer, 2 warnings ")
        assert lines[1] == "No node answers."

    @pytest.mark.parametrize("width", [20, 80, NO_LIMIT])
    def test_strangers_cannot_steer_the_terminal(self, width: int) -> None:
        bad = link(1, address=HOSTILE, state="down", reason=HOSTILE)
        log = LogStatus(mode="memory", topics=1, bytes=1, limit_bytes=1, free_bytes=1, failing=HOSTILE)
        shared: dict[str, Any] = {
            "top_topics": [TopicStatus(HOSTILE, 5.0)],
            "slow_peers": [SlowPeer(HOSTILE, HOSTILE, 1, 1)],
        }
        shared["clients"] = [ClientStatus(name=HOSTILE, refused=1)]
        shared["lags"] = [LagStatus(HOSTILE, "group", HOSTILE, 1, 1)]
        hostile = consumer(1, version=HOSTILE, log=log, slow_subscribers=1, **shared)
        nodes = (hostile, producer(2, [bad], not_ready=HOSTILE), dead(3, HOSTILE, HOSTILE))
        warnings = [NodeWarning("loop_lag", HOSTILE, HOSTILE)]
        for height in (10, 24, NO_LIMIT):
            lines = screen(snapshot(*nodes, warnings=warnings), width, height)
            assert all(line.plain.isprintable() for line in lines)
            # Markup in names is shown as text.
            assert not any("bold red" in str(span.style) and "[" in line.plain[span.start : span.end]
                           for line in lines for span in line.spans)  # fmt: skip
        everything = shown(snapshot(*nodes))
        assert "\\x1b[31m\\x9b31m\\r\\n\\t[bold red]\\u202e\\u200b\\x07" in everything

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({}, "32 MiB 50% R3/3"),
            ({"replicas": 2}, "32 MiB 50% R2/3"),
            ({"available": False}, "unavailable"),
        ],
    )
    def test_a_shared_log(self, changes: dict[str, Any], words: str) -> None:
        engine = EngineStatus(**{"streams": 8, "replicas": 3, "replicas_wanted": 3} | changes)
        log = LogStatus(
            mode="jetstream", topics=3, bytes=32 * 1024**2, limit_bytes=64 * 1024**2, engine=engine
        )
        (line,) = re.findall(r"^consumer .*", shown(snapshot(consumer(1, log=log))), re.MULTILINE)
        assert line.endswith(words)

    def test_warnings_are_said_at_as_much_length_as_there_is_room_for(self) -> None:
        words = "Subscriber 1 is slow, which takes some words to say."
        warnings = [NodeWarning("subscriber_slow", words, "Wait.")] * 9
        of = snapshot(*HEALTHY, warnings=[*warnings, NodeWarning("link_down", "No link.", "Look.")])
        high, middle, low = (shown(of, 60, height).split("\n") for height in (80, 33, 20))
        for lines in (high, middle, low):
            assert next(line for line in lines if line.startswith("!")) == "! No link."
        assert ("  Look." in high, "  Look." in middle) == (True, False)
        for lines in (high, middle):
            assert sum(line.startswith("! Subscriber") for line in lines) == 9
        (more,) = re.findall(r"… and (\d+) more warnings", "\n".join(low))
        assert sum(line.startswith("! ") for line in low) + int(more) == 10


def large() -> ClusterSnapshot:
    def busy(number: int) -> ClusterNode:
        topics = [TopicStatus(f"topic-{number}-{index}-" + "日本" * 40, 10.0) for index in range(5)]
        slow = [SlowPeer(f"198.51.100.{number}:1", "v2", 1, 1)]
        return consumer(number, top_topics=topics, slow_peers=slow, slow_subscribers=3)

    links = [link(number, state="down" if number == 7 else "up", reason="x" * 200) for number in range(1, 40)]
    producers = [producer(number, links) for number in range(40, 60)]
    texts = (f"No link to {number}: " + "x" * 200 for number in range(30))
    warnings = [NodeWarning("link_down", text, "Look.") for text in texts]
    nodes = [*map(busy, range(1, 40)), *producers, dead(77, "producer")]
    sampler = Sampler()
    sampler.snapshot(cluster(*nodes), NOW)
    nodes = [later(node, 2.0, messages_in=2000) if node.report is not None else node for node in nodes]
    return sampler.snapshot(cluster(*nodes, warnings=warnings), NOW)


class TestTheScreen:
    @pytest.mark.parametrize("of", [snapshot(*HEALTHY), large(), snapshot(dead(1, "consumer"))])
    @pytest.mark.parametrize("width", [1, 10, 40, 80, 120, 300])
    @pytest.mark.parametrize("height", [1, 2, 5, 10, 24, 40, 200])
    def test_it_is_never_left(self, of: ClusterSnapshot, width: int, height: int) -> None:
        lines = screen(of, width, height, "q ends")
        assert 1 <= len(lines) <= height
        assert all(line.cell_len <= width for line in lines)
        assert not any("\n" in line.plain for line in lines)

    def test_eighty_by_twenty_four_has_all_that_matters(self) -> None:
        lines = text(screen(large(), 80, 24, "q ends"))
        assert "59 of 60 nodes answer, 30 warnings" in lines
        assert lines.split("\n")[0].endswith("q ends")
        parts = ("! No link to 0", "ROLE", "192.0.2.77:10002", "down", "FROM PRODUCER", "TOPIC")
        assert [part for part in (*parts, "IN/s", "OUT/s", "LAG", "CONN") if part not in lines] == []
        # The least important columns.
        assert not re.search("BYTES IN/s|VERSION", lines)
        # The nodes that are left out are counted.
        head = lines.index("ROLE")
        shown_nodes = len(re.findall(r"^(?:consumer|producer) ", lines[head:], re.MULTILINE))
        (more,) = re.findall(r"… and (\d+) more nodes", lines)
        assert shown_nodes + int(more) == 60


def test_to_a_pipe_it_is_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(large())
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("\nconsumer ") == 39
    assert "… and" not in out.replace("more slow subscribers", "").replace("… and 78 ", "")
    assert not re.search(r" $", out, re.MULTILINE)


def test_the_json_of_a_snapshot_is_that_of_the_cluster_and_more() -> None:
    of = snapshot(*HEALTHY, dead(9, "producer"))
    decoded = msgspec.json.decode(msgspec.json.encode(of))
    assert set(decoded) == {"time", "top_topics", *Cluster.__struct_fields__}
    for each in decoded["nodes"]:
        assert set(each) == {"rates", *ClusterNode.__struct_fields__}
    assert decoded["nodes"][0]["report"]["counters"]["messages_in"] == 1000
    nothing = dict.fromkeys(("report", "age_seconds", "clock_seconds", "rates"))
    named = {"address": "192.0.2.9:10002", "role": "producer", "problem": "Connection refused"}
    assert decoded["nodes"][4] == named | nothing
