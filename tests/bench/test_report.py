"""Medians, files, tables and verdicts of figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import report
from bench.results import (
    COMMON,
    FAN_OUT,
    GROUPS,
    HALF,
    IDLE,
    MANY,
    MIXED,
    ONE,
    REPLAY,
    SCALING,
    STORED,
    Figure,
    Results,
    combine,
)


def results_of(*figures: Figure) -> Results:
    return Results("today", {"cores": "2"}, {"Python": "3.11"}, 3, 2.0, list(figures))


def figure_of(workload: str, system: str, payload: int = 100, **numbers: Any) -> Figure:
    return msgspec.structs.replace(Figure(workload, system, payload, messages=1.0), **numbers)


def test_the_median_of_each_number() -> None:
    figures = [
        Figure(ONE, "nats", 100, messages=rate, cpu=cpu, nodes={"a": cpu}, lost=1, latency=(cpu, 1.0, rate))
        for rate, cpu in [(1000.0, 3.0), (3000.0, 1.23456), (2000.0, 2.0)]
    ]
    found = combine(figures, failed=1)
    assert (found.messages, found.cpu, found.cpu_range) == (2000, 2, (1.235, 3))
    assert (found.nodes, found.latency) == ({"a": 2}, (2, 1, 2000))
    assert (found.lost, found.failed) == (3, 1)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = results_of(
        figure_of(ONE, "wsqueue", cpu=1.5), Figure(COMMON, "nats", 100, latency=(0.5, 1.0, 2.0))
    )
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results
    # One line for the head, one per figure, and one for the end.
    assert len((tmp_path / "results.json").read_text().splitlines()) == 4


def goal(results: Results, name: str) -> str:
    """Return the last row of the goals that has a name."""
    return [row for row in report.goals(results).splitlines() if name in row][-1]


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (1.0, 20.0, "20× less (1 µs against 20 µs): aim reached"),
        (1.0, 8.0, "goal reached"),
        (1, 7.9, "missed"),
    ],
)
def test_a_goal_that_is_better_high(ours: float, theirs: float, verdict: str) -> None:
    results = results_of(figure_of(ONE, "wsqueue", cpu=ours), figure_of(ONE, "reference", cpu=theirs))
    assert verdict in goal(results, "CPU of all nodes, against the reference")


@pytest.mark.parametrize(
    ("ours", "verdict"), [((0.1, 0.4), "aim reached"), ((0.1, 0.6), "goal reached"), ((0.31, 0.4), "missed")]
)
def test_the_worse_of_two_latencies_decides(ours: tuple[float, float], verdict: str) -> None:
    results = results_of(
        Figure(COMMON, "wsqueue", 100, latency=(*ours, 9.0)),
        Figure(COMMON, "nats", 100, latency=(0.2, 0.4, 1.0)),
    )
    assert verdict in goal(results, "p50 and p99")


def test_the_cheaper_way_of_publishing_to_nats_is_compared() -> None:
    results = results_of(
        figure_of(ONE, "wsqueue", cpu=2.0),
        figure_of(ONE, "nats", cpu=1.0),
        figure_of(ONE, "nats-frames", cpu=0.5),
    )
    assert "4× (2 µs against 0.5 µs): **missed**" in goal(results, "against NATS over WebSockets")


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "verdict"),
    [
        (
            "one message a batch",
            ("wsqueue-1", 1.0),
            ("nats-frames", 0.5),
            "2× (1 µs against 0.5 µs): aim reached",
        ),
        (
            "one message a batch",
            ("wsqueue-1", 3.0),
            ("nats-frames", 0.5),
            "6× (3 µs against 0.5 µs): goal reached",
        ),
        (
            "one message a batch",
            ("wsqueue-1", 4.0),
            ("nats-frames", 0.5),
            "8× (4 µs against 0.5 µs): **missed**",
        ),
        ("one message a batch", ("wsqueue-1", 4.0), ("nats", 0.5), "not measured"),
    ],
)
def test_a_goal_against_one_system(
    name: str, ours: tuple[str, float], theirs: tuple[str, float], verdict: str
) -> None:
    results = results_of(*(figure_of(ONE, system, cpu=cpu) for system, cpu in (ours, theirs)))
    assert verdict in goal(results, name)


def test_goals_of_confirmations_from_the_disk() -> None:
    results = results_of(
        figure_of(STORED, "wsqueue-sqlite-1", messages=50_000.0),
        figure_of(STORED, "nats-jetstream-sync", messages=1_000.0),
        figure_of(STORED, "wsqueue-sqlite-1", 65_536, messages=3_000.0),
        figure_of(STORED, "nats-jetstream-sync", 65_536, messages=2_000.0),
    )
    assert "50× (50,000/s against 1,000/s): aim reached" in goal(results, "the disk, 100 B")
    assert "1.5× (3,000/s against 2,000/s): goal reached" in goal(results, "the disk, 64 KiB")


def test_goals_without_figures() -> None:
    failed = [
        Figure(workload, system, 100, failed=3)
        for workload in (ONE, FAN_OUT, COMMON, IDLE)
        for system in ("wsqueue", "wsqueue-sqlite", "wsqueue-classic", "reference", "nats")
    ]
    for figures in ([], failed):
        assert report.goals(results_of(*figures)).count("| not measured |") == len(report.GOALS)


def test_where_wsqueue_loses() -> None:
    results = results_of(
        figure_of(ONE, "wsqueue", cpu=2.0, deliveries=100.0),
        figure_of(ONE, "nats", cpu=1.0, deliveries=99.0),
        figure_of(ONE, "redis", cpu=0.5, deliveries=150.0),
        figure_of(ONE, "nats-frames", cpu=1.6),
        figure_of(ONE, "nats", payload=MIXED, cpu=0.1),
        figure_of(ONE, "wsqueue-classic", cpu=0.1),
        figure_of(FAN_OUT, "wsqueue", cpu=1.0),
        figure_of(FAN_OUT, "nats", cpu=1.0),
        figure_of(HALF, "wsqueue", cpu=9.0, latency=(1.0, 2.0, 3.0)),
        figure_of(HALF, "nats", cpu=1.0, latency=(2.0, 1.0, 3.0)),
        Figure(COMMON, "wsqueue", 100, latency=(1.0, 2.0, 3.0)),
        Figure(COMMON, "reference", 100),
        Figure(IDLE, "wsqueue", idle_bytes=2048, subscribers=10),
        Figure(IDLE, "redis", idle_bytes=1024, subscribers=10),
        figure_of(SCALING, "wsqueue", cpu=1.0),
    )
    assert report.losses(results).splitlines()[2:] == [
        "| 1→1, 100 B | CPU µs/message | 2 | NATS 1 (2×), Redis 0.5 (4×), NATS, a frame each 1.6 (1.2×) |",
        "| latency at half of its own most | p99 ms | 2 | NATS 1 (2×) |",
        "| idle subscribers | KiB each | 2 | Redis 1 (2×) |",
        "| 1→1, 100 B | deliveries/s | 100 | Redis 150 (1.5×) |",
    ]


def test_what_confirmations_and_logs_cost() -> None:
    results = results_of(
        figure_of(ONE, "wsqueue", cpu=1.0, deliveries=1e6),
        figure_of(ONE, "wsqueue-sqlite", cpu=8.0),
        figure_of(ONE, "wsqueue-classic", cpu=2.0),
        figure_of(ONE, "wsqueue-classic", payload=MIXED, cpu=3.0),
        figure_of(COMMON, "wsqueue", cpu=2.4),
        figure_of(COMMON, "wsqueue-classic", cpu=2.0),
        figure_of(REPLAY, "wsqueue", cpu=0.1, load_cpu=0.2, deliveries=6e6),
        figure_of(REPLAY, "wsqueue-sqlite", cpu=0.2, load_cpu=0.2, deliveries=4e6),
    )
    assert report.v2(results).splitlines() == [
        "| CPU of all nodes | classic, µs/message | v2, memory | v2, sqlite |",
        "| --- | --- | --- | --- |",
        "| 1→1, 100 B | 2 | 0.5× | 4× |",
        "| at 50,000 messages/s | 2 | 1.2× | – |",
        "",
        "| replay, 100 B | messages/s | CPU µs/message | load generator |",
        "| --- | --- | --- | --- |",
        "| memory | 6,000,000 | 0.1 | 0.2 |",
        "| sqlite | 4,000,000 | 0.2 | 0.2 |",
    ]
    names = (
        *("confirmations, against classic", "with small batches", "against classic"),
        "replay, m",
        "replay, s",
    )
    verdicts = [goal(results, name).rpartition(": ")[2] for name in names]
    assert verdicts == ["aim reached |", "goal reached |", "**missed** |", "goal reached |", "**missed** |"]


def test_confirmations_from_the_disk() -> None:
    numbers: dict[str, Any] = {"cpu": 3.0, "load_cpu": 1.0}
    results = results_of(
        figure_of(STORED, "wsqueue-sqlite", messages=400.0, **numbers),
        figure_of(STORED, "wsqueue-sqlite-1", messages=100.0, **numbers),
        figure_of(STORED, "redis-streams", messages=200.0, **numbers),
        figure_of(STORED, "wsqueue-sqlite", 65_536, messages=50.0, **numbers),
        Figure(STORED, "redis-streams", 65_536, failed=3),
    )
    head, *rows = report.stored(results).splitlines()
    assert head.split(" | ") == [
        "| confirmed",
        *("100 B: messages/s", "100 B: CPU µs/message"),
        *("64 KiB: messages/s", "64 KiB: CPU µs/message |"),
    ]
    assert rows == [
        "| --- | --- | --- | --- | --- |",
        "| wsqueue, sqlite | 400 (25%) | 3 | 50 (25%) | 3 |",
        "| wsqueue, sqlite, one a batch | 100 (25%) | 3 | – | – |",
        "| Redis Streams, always synced | 200 (25%) | 3 | failed | failed |",
    ]
    assert report.losses(results).splitlines()[2:] == [
        "| stored, 100 B: wsqueue, sqlite, one a batch | messages/s | 100"
        " | Redis Streams, always synced 200 (2×) |",
    ]


def test_many_publishers() -> None:
    slow, fast = MANY
    results = results_of(
        figure_of(slow, "wsqueue", messages=2000.0, cpu=40.0, latency=(1.0, 2.0, 3.0)),
        figure_of(slow, "nats", messages=2000.0, cpu=20.0, latency=(2.0, 3.0, 4.0)),
        Figure(fast, "nats", 100, failed=3),
    )
    head = "messages/s | p50 ms | p99 ms | p99.9 ms | CPU µs/message |"
    line = "| --- | --- | --- | --- | --- | --- |"
    assert report.many(results).splitlines() == [
        f"| 2,000 publishers, 200 topics, 2,000 messages/s | {head}",
        line,
        "| wsqueue | 2,000 | 1 | 2 | 3 | 40 |",
        "| NATS | 2,000 | 2 | 3 | 4 | 20 |",
        "",
        f"| 2,000 publishers, 200 topics, 20,000 messages/s | {head}",
        line,
        "| NATS | – | – | – | – | – |",
    ]
    assert report.losses(results).splitlines()[2:] == [
        "| 2,000 publishers, 200 topics, 2,000 messages/s | CPU µs/message | 40 | NATS 20 (2×) |"
    ]


def test_groups() -> None:
    flat, paced = GROUPS
    results = results_of(
        figure_of(flat, "wsqueue", messages=900.0, cpu=2.0, nodes={"producer-1": 1.5, "consumer-1": 0.5}),
        figure_of(
            flat, "wsqueue-group", messages=90.0, cpu=3.0, nodes={"producer-1": 2.0, "consumer-1": 1.0}
        ),
        figure_of(flat, "redis-streams-group", messages=100.0, cpu=9.0, nodes={"redis-server": 9.0}),
        Figure(paced, "nats-jetstream-group", 100, failed=3),
        figure_of(paced, "wsqueue-group", messages=20.0, cpu=3.0, latency=(1.0, 2.0, 3.0)),
    )
    head = "messages/s | CPU µs/message | the consumer's | against a subscriber |"
    assert report.groups(results).splitlines() == [
        f"| 8 members, flat out | {head}",
        "| --- | --- | --- | --- | --- |",
        "| wsqueue | 900 (0%) | 2 | 0.5 | – |",
        "| wsqueue, group | 90 (0%) | 3 | 1 | 2× |",
        "| Redis Streams, consumer group, always synced | 100 (0%) | 9 | – | – |",
        "",
        f"| 8 members, 20,000 messages/s | {head} p50 ms | p99 ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| NATS JetStream, pull consumer, synced every 2 min | failed | 0 | – | – | – | – |",
        "| wsqueue, group | 20 (0%) | 3 | – | – | 1 | 2 |",
    ]
    assert "2× (1 µs against 0.5 µs): aim reached" in goal(results, "flat out, 100 B, memory")
    assert report.losses(results).splitlines()[2:] == [
        "| 8 members, flat out: wsqueue, group | messages/s | 90"
        " | Redis Streams, consumer group, always synced 100 (1.1×) |"
    ]


def test_results_without_the_newest_workloads() -> None:
    results = results_of(figure_of(ONE, "wsqueue", cpu=1.0))
    assert (report.stored(results), report.many(results)) == ("", "")


def test_wsqueue_loses_nowhere() -> None:
    results = results_of(figure_of(ONE, "wsqueue", cpu=1.0), figure_of(ONE, "nats", cpu=2.0))
    assert report.losses(results) == "Nowhere, in what was measured."


def test_a_run_that_failed_and_one_that_was_not_made() -> None:
    results = results_of(
        figure_of(ONE, "wsqueue", cpu=1.0),
        Figure(ONE, "nats", 100, failed=3),
        figure_of(ONE, "wsqueue", payload=16, cpu=1.0),
    )
    assert report.cpu(results).splitlines()[2:4] == ["| 16 B | 1 | – |", "| 100 B | 1 | failed |"]
    assert "Runs that failed: 3;" in report.about(results)


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("# Title\n\n<!-- bench:goals -->\nold\n<!-- /bench:goals -->\n\nBy hand.\n")
    results = results_of(figure_of(ONE, "wsqueue", cpu=1.0))
    report.update(document, results)
    text = document.read_text()
    assert text.startswith("# Title\n\n<!-- bench:goals -->\n\n| workload |")
    assert "old" not in text
    assert "<!-- /bench:goals -->\n\nBy hand.\n" in text
    assert text.count("<!-- bench:") == len(report.SECTIONS)
    report.update(document, results)
    assert document.read_text() == text


def test_a_marker_without_its_end(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("<!-- bench:goals -->\n")
    with pytest.raises(ValueError, match=r"<!-- bench:goals --> has no <!-- /bench:goals -->"):
        report.update(document, results_of())
    assert document.read_text() == "<!-- bench:goals -->\n"
