"""Metrics in Prometheus's text format, read back with its parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.core import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from wsqueue.monitoring.metrics import METRICS
from wsqueue.monitoring.prometheus import ProcessMetrics, exposition
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.v2 import RefusalCode
from wsqueue.report.report import (
    ClientStatus,
    ConnectionCount,
    ConnectionState,
    EngineStatus,
    HistogramStatus,
    LagStatus,
    LinkState,
    LinkStatus,
    LogStatus,
    NodeWarning,
    Report,
    TopicStatus,
    WarningCode,
)

from ...support.promtool import promtool

TIMES = HistogramStatus([0.001, 0.01, 0.1, 1.0], [5, 0, 2, 1, 3], 12.5)
CONNECTIONS = [
    ConnectionCount("", "hello", "", 2),
    ConnectionCount("publisher", "open", "v2", 5),
    ConnectionCount("publisher", "open", "classic", 1),
]
COMMON: dict[str, Any] = {
    "version": "1.2.3",
    "python": "3.12.1",
    "uptime_seconds": 60.5,
    "max_connections": 100,
    "certificate_ends": 1.8e9,
    "connections": CONNECTIONS,
    "clients": [ClientStatus(name="billing", connections=3, refused=2), ClientStatus(name="watch")],
    "top_topics": [TopicStatus("news", 2.5)],
    "lags": [LagStatus("jobs", "group", "g", 7, 2), LagStatus("jobs", "reader", "g", 3, 0)],
}
LOG_NUMBERS = {"topics": 7, "bytes": 1000, "limit_bytes": 4000, "pending_bytes": 50, "free_bytes": 10**9}
ENGINE = EngineStatus(
    available=False,
    streams=8,
    streams_without_leader=1,
    replicas=2,
    replicas_wanted=3,
    lag_records=14,
    conflicts=15,
    unanswered=16,
)
LOG = LogStatus(mode="jetstream", failing="it fails", engine=ENGINE, **LOG_NUMBERS)
CONSUMER = Report(
    id="a",
    role="consumer",
    **COMMON,
    loop_lag_seconds=0.25,
    counters={"connections": 9, "connections_refused": 3, "refused_4401": 7, "refused_4408": 1}
    | {"refused_by_peer": 2, "tls_refused": 4, "bytes_in": 10**15, "bytes_out": 1000, "messages_in": 500}
    | {"deliveries": 900, "without_subscriber": 20, "repeats": 6, "batches_refused_full": 5}
    | {"slow_subscribers": 11, "fell_behind": 12, "gaps": 13},
    commit_seconds=TIMES,
    slow_subscribers=2,
    log=LOG,
    warnings=[NodeWarning("log_failing", "The disk is full."), NodeWarning("hello_refused", "Refused.")],
)
UP = LinkStatus(address="192.0.2.7:10001", state="up", held_messages=10, held_bytes=2000)
DOWN = LinkStatus(
    address="192.0.2.8:10001",
    state="down",
    held_messages=99,
    held_bytes=64_000_000,
    paused_publishers=3,
    away=True,
)
PRODUCER = Report(
    id="b",
    role="producer",
    **COMMON,
    not_ready="no link to 192.0.2.8:10001",
    counters={
        "forwarded": 80,
        "failovers": 5,
        "lost_in_flight": 1,
        "lost_held": 2,
        "lost_refused": 3,
        "lost_full": 4,
    },
    links=[UP, DOWN],
    confirm_seconds=TIMES,
)
HOSTILE = ['a"b', "a\\b", "a\nb", 'x"} 1\nwsqueue_ready 5\n#', "\\n", "{}", "", "\r\t\0", "\u2028", "é" * 200]

Samples = dict[tuple[str, ...], float]


def families(report: Report) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(exposition(report))}


def samples(report: Report) -> dict[str, Samples]:
    """Return the samples of each name, by the values of the labels in their order."""
    found: dict[str, Samples] = {}
    for family in families(report).values():
        for sample in family.samples:
            labels = tuple(sample.labels.values())
            assert labels not in found.setdefault(sample.name, {}), "no time series is there twice"
            found[sample.name][labels] = sample.value
    return found


def names_of(report: Report) -> set[str]:
    """Return the names of our metrics; the parser cuts `_total` from the names of counters."""
    found = {family.name + "_total" * (family.type == "counter") for family in families(report).values()}
    return {name for name in found if name.startswith("wsqueue_")}


@pytest.mark.parametrize("report", [CONSUMER, PRODUCER], ids=["consumer", "producer"])
def test_a_node_has_all_metrics_of_its_role(report: Report) -> None:
    assert names_of(report) == {metric.name for metric in METRICS if metric.node in ("both", report.role)}


def test_the_numbers_of_a_consumer() -> None:
    found = samples(CONSUMER)
    assert found["wsqueue_build_info"] == {("3.12.1", "consumer", "1.2.3"): 1}
    assert found["wsqueue_connections"] == {
        ("unknown", "unknown", "hello"): 2,
        ("v2", "publisher", "open"): 5,
        ("classic", "publisher", "open"): 1,
    }
    reasons = {"wrong_answer": 7, "hello_timeout": 1, "by_peer": 2, "tls": 4, "early_data": 0}
    refused = found["wsqueue_hellos_refused_total"]
    assert {reason: refused[reason,] for reason in reasons} == reasons
    assert found["wsqueue_batches_refused_total"] == {
        (code,): 5 if code == "full" else 0 for code in get_args(RefusalCode)
    }
    assert found["wsqueue_warnings"] == {
        (code,): code in ("log_failing", "hello_refused") for code in get_args(WarningCode)
    }
    assert found["wsqueue_topic_messages_per_second"] == {("news",): 2.5}
    numbers = {name: values[()] for name, values in found.items() if () in values}
    expected = (
        {"uptime_seconds": 60.5, "ready": 1, "connections_limit": 100, "connections_accepted_total": 9}
        | {"connections_refused_total": 3, "received_bytes_total": 10**15, "sent_bytes_total": 1000}
        | {"messages_received_total": 500, "messages_delivered_total": 900, "batches_repeated_total": 6}
        | {"messages_without_subscriber_total": 20, "slow_subscribers": 2, "gaps_total": 13}
        | {"subscribers_closed_slow_total": 11, "subscribers_fell_behind_total": 12}
        | {f"log_{name}": value for name, value in LOG_NUMBERS.items()}
        | {"log_available": 0, "log_streams_without_leader": 1, "log_replicas": 2, "log_replicas_wanted": 3}
        | {"log_replica_lag_records": 14, "log_conflicts_total": 15, "log_unanswered_total": 16}
        | {"log_failing": 1, "event_loop_lag_seconds": 0.25, "certificate_expiry_timestamp_seconds": 1.8e9}
    )
    assert numbers.items() >= {f"wsqueue_{name}": value for name, value in expected.items()}.items()


def test_the_numbers_of_a_producer() -> None:
    found = samples(PRODUCER)
    assert found["wsqueue_ready"] == {(): 0}
    assert found["wsqueue_messages_forwarded_total"] == {(): 80}
    lost = found["wsqueue_messages_lost_total"]
    assert lost == {("in_flight",): 1, ("held",): 2, ("refused",): 3, ("full",): 4}
    up, down = ("192.0.2.7:10001",), ("192.0.2.8:10001",)
    assert found["wsqueue_link_up"] == {up: 1, down: 0}
    assert found["wsqueue_link_away"] == {up: 0, down: 1}
    assert found["wsqueue_failovers_total"] == {(): 5}
    assert found["wsqueue_link_held_messages"] == {up: 10, down: 99}
    assert found["wsqueue_link_held_bytes"] == {up: 2000, down: 64_000_000}
    assert found["wsqueue_link_paused_publishers"] == {up: 0, down: 3}


@pytest.mark.parametrize(
    ("report", "name"), [(CONSUMER, "wsqueue_commit_seconds"), (PRODUCER, "wsqueue_confirm_seconds")]
)
def test_a_histogram_counts_up(report: Report, name: str) -> None:
    found = samples(report)
    assert found[f"{name}_bucket"] == {("0.001",): 5, ("0.01",): 5, ("0.1",): 7, ("1.0",): 8, ("+Inf",): 11}
    assert (found[f"{name}_count"], found[f"{name}_sum"]) == ({(): 11}, {(): 12.5})


@pytest.mark.parametrize("role", ["consumer", "producer"])
def test_counters_begin_at_zero(role: str) -> None:
    found = samples(Report(id="a", role=role, version="1.2.3", clients=[ClientStatus(name="billing")]))
    for metric in METRICS:
        if metric.kind == "counter" and metric.node in ("both", role):
            assert found[metric.name], metric.name
            assert set(found[metric.name].values()) == {0.0}
    assert ("wrong_answer",) in found["wsqueue_hellos_refused_total"]


def test_values_that_a_node_does_not_have_are_not_exposed() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("certificate_ends", "commit_seconds", "log"))
    bare = msgspec.structs.replace(CONSUMER, top_topics=[], **nothing)
    assert names_of(CONSUMER) - names_of(bare) == {
        "wsqueue_certificate_expiry_timestamp_seconds",
        "wsqueue_commit_seconds",
        "wsqueue_topic_messages_per_second",
        *(
            metric.name
            for metric in METRICS
            if metric.name.startswith("wsqueue_log_") and metric.kind == "gauge"
        ),
    }
    memory = msgspec.structs.replace(CONSUMER, log=msgspec.structs.replace(LOG, free_bytes=-1))
    assert names_of(CONSUMER) - names_of(memory) == {"wsqueue_log_free_bytes"}
    silent = msgspec.structs.replace(LOG, engine=msgspec.structs.replace(ENGINE, replicas=0))
    assert names_of(CONSUMER) - names_of(msgspec.structs.replace(CONSUMER, log=silent)) == {
        "wsqueue_log_replicas"
    }


def test_each_close_code_has_a_reason() -> None:
    codes = {*(code.value for code in CloseCode), 1002, 1009, 3000, 4999}
    counts = {f"refused_{code}": 1 for code in codes} | {"x": 9}
    found = samples(Report(id="a", role="consumer", version="", counters=counts))
    expected = {code.name.lower(): 1 for code in CloseCode} | {"protocol_error": 1, "message_too_big": 1}
    expected |= {"other": 2, "by_peer": 0, "tls": 0}
    assert found["wsqueue_hellos_refused_total"] == {(name,): count for name, count in expected.items()}


def test_topics_that_were_cut_to_the_same_name_are_one() -> None:
    topics = [TopicStatus("same", 1.0), TopicStatus("same", 2.5)]
    report = msgspec.structs.replace(CONSUMER, top_topics=topics)
    assert samples(report)["wsqueue_topic_messages_per_second"] == {("same",): 3.5}


def test_lags_by_name() -> None:
    # The labels are in the order of their names.
    assert samples(CONSUMER)["wsqueue_lag_messages"] == {
        ("group", "g", "jobs"): 7,
        ("reader", "g", "jobs"): 3,
    }
    assert "wsqueue_lag_messages" not in samples(PRODUCER)


def test_the_registry_of_the_library_has_no_metric_of_ours() -> None:
    exposition(CONSUMER)
    assert not [metric.name for metric in REGISTRY.collect() if metric.name.startswith("wsqueue_")]


def test_metrics_of_the_process(tmp_path: Path) -> None:
    found = samples(CONSUMER)
    assert found["process_open_fds"][()] < found["process_max_fds"][()]
    assert found["process_resident_memory_bytes"][()] > 1_000_000
    assert found["process_start_time_seconds"][()] > 1_700_000_000
    # The machine may be hidden, as with ProcSubset=pid in systemd/wsqueue-.service.d/node.conf.
    (tmp_path / "self").symlink_to("/proc/self")
    hidden = ProcessMetrics(proc=str(tmp_path), registry=None)
    seen = ProcessMetrics(registry=None)
    names = [metric.name for metric in seen.collect()]
    assert [metric.name for metric in hidden.collect()] == names
    assert "process_open_fds" in names


def test_promtool_finds_nothing_to_say() -> None:
    for report in (CONSUMER, PRODUCER):
        hostile = msgspec.structs.replace(report, top_topics=[TopicStatus(topic, 1.0) for topic in HOSTILE])
        promtool("check", "metrics", text=exposition(hostile))


numbers = st.integers(0, 2**53)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(HOSTILE)
seconds = st.floats(0, 1e9)
COUNTERS = (
    *(f"refused_{code}" for code in (0, 1002, 4401, 4999)),
    *("refused_by_peer", "tls_refused", "messages_in", "gaps", "lost_full", "batches_refused_full"),
)
counters = st.dictionaries(st.sampled_from(COUNTERS) | texts, numbers)


def amounts(*names: str) -> dict[str, st.SearchStrategy[int]]:
    return dict.fromkeys(names, numbers)


@st.composite
def histograms(draw: st.DrawFn) -> HistogramStatus:
    bounds = sorted(draw(st.sets(st.floats(1e-6, 1e3), max_size=5)))
    counts = st.lists(st.integers(0, 2**40), min_size=len(bounds) + 1, max_size=len(bounds) + 1)
    return HistogramStatus(bounds, draw(counts), draw(seconds))


def codes(kind: object) -> st.SearchStrategy[str]:
    return st.sampled_from(get_args(kind))


connections = st.builds(
    ConnectionCount,
    st.sampled_from(["", "publisher", "producer", "subscriber", "monitor"]),
    codes(ConnectionState),
    st.sampled_from(["", "v2", "classic"]),
    numbers,
)
links = st.builds(
    LinkStatus,
    address=texts,
    state=codes(LinkState),
    **amounts("held_messages", "held_bytes", "paused_publishers"),
)
logs = st.builds(
    LogStatus,
    **dict.fromkeys(("mode", "failing"), texts),
    **amounts("topics", "bytes", "limit_bytes", "pending_bytes"),
    free_bytes=st.integers(-1, 2**53),
)
reports = st.builds(
    Report,
    **dict.fromkeys(("id", "version", "python", "not_ready"), texts),
    **dict.fromkeys(("uptime_seconds", "loop_lag_seconds"), seconds),
    **amounts("max_connections", "slow_subscribers"),
    role=st.sampled_from(["consumer", "producer"]),
    certificate_ends=st.none() | seconds,
    connections=st.lists(connections, max_size=4),
    counters=counters,
    links=st.lists(links, max_size=4, unique_by=lambda link: link.address),
    confirm_seconds=st.none() | histograms(),
    commit_seconds=st.none() | histograms(),
    top_topics=st.lists(st.builds(TopicStatus, texts, seconds), max_size=4),
    lags=st.lists(
        st.builds(LagStatus, texts, texts, texts, st.integers(0, 2**53), st.integers(0, 9)), max_size=4
    ),
    log=st.none() | logs,
    warnings=st.lists(st.builds(NodeWarning, codes(WarningCode), texts, texts), max_size=3),
)


@given(reports)
@example(CONSUMER)
@example(PRODUCER)
def test_any_report_can_be_read_back(report: Report) -> None:
    found = samples(report)
    for metric in METRICS:
        if metric.node not in ("both", report.role):
            assert metric.name not in found
    for code, name in (("refused_4401", "wrong_answer"), ("tls_refused", "tls")):
        assert found["wsqueue_hellos_refused_total"][name,] == report.counters.get(code, 0)
    histograms = {
        "wsqueue_commit_seconds": report.commit_seconds,
        "wsqueue_confirm_seconds": report.confirm_seconds,
    }
    for name, times in histograms.items():
        if buckets := found.get(f"{name}_bucket"):
            assert times is not None
            assert list(buckets.values()) == sorted(buckets.values())
            assert buckets["+Inf",] == found[f"{name}_count"][()] == sum(times.counts)
    assert set(found["wsqueue_warnings"]) == {(code,) for code in get_args(WarningCode)}
    topics = {topic.topic for topic in report.top_topics}
    assert {labels[0] for labels in found.get("wsqueue_topic_messages_per_second", {})} == topics
