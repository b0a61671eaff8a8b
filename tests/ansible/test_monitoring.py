"""Alert rules and dashboard: Prometheus accepts them, alerts fire when they should, and all metrics exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.paths import ROOT
from wsqueue.monitoring.prometheus import exposition
from wsqueue.report.report import (
    ClientStatus,
    ConnectionCount,
    EngineStatus,
    HistogramStatus,
    LagStatus,
    LinkStatus,
    LogStatus,
    Report,
    TopicStatus,
)

from ..support.documents import code_blocks, rows
from ..support.promtool import promtool

FILES = ROOT / "ansible" / "roles" / "wsqueue_monitoring" / "files"
RULES = FILES / "wsqueue.rules.yml"
DASHBOARD = FILES / "wsqueue-dashboard.json"

CONSUMER, SHARED, PRODUCER = "consumer1:10001", "consumer2:10001", "producer1:10002"
LAG = 'wsqueue_lag_messages{kind="group",name="g",topic="jobs"}'
LINK = "192.0.2.7:10001"
DAY = 86_400
GOOD = HistogramStatus([0.001, 0.01, 0.1, 1.0, 10.0], [9000, 10, 0, 0, 0, 0], 3.0)
WELL = {
    "version": "1.2.3",
    "python": "3.12.1",
    "uptime_seconds": 1000.0,
    "certificate_ends": 90.0 * DAY,
    "max_connections": 100,
    "connections": [ConnectionCount("publisher", "open", "v2", 40), ConnectionCount("", "hello", "", 2)],
    "clients": [ClientStatus(name="billing", connections=3)],
    "top_topics": [TopicStatus("news", 3.0)],
}
"""Prometheus's tests begin at Unix time 0."""

NODES = {
    CONSUMER: Report(
        id="a",
        role="consumer",
        **WELL,  # type: ignore[arg-type] # each has its type
        commit_seconds=GOOD,
        lags=[LagStatus("jobs", "group", "g", 3, 1)],
        log=LogStatus(
            mode="sqlite",
            topics=5,
            bytes=3_000_000,
            limit_bytes=4_000_000,
            commit_seconds=0.001,
            free_bytes=10**9,
        ),
    ),
    SHARED: Report(
        id="c",
        role="consumer",
        **WELL,  # type: ignore[arg-type]
        commit_seconds=GOOD,
        log=LogStatus(
            mode="jetstream",
            topics=5,
            bytes=3_000_000,
            limit_bytes=4_000_000,
            engine=EngineStatus(streams=8, replicas=3, replicas_wanted=3, lag_records=200),
        ),
    ),
    PRODUCER: Report(
        id="b",
        role="producer",
        **WELL,  # type: ignore[arg-type]
        confirm_seconds=GOOD,
        links=[
            LinkStatus(
                address=LINK, state="up", protocol="v2", seconds=60.0, held_messages=3, held_bytes=1000
            )
        ],
    ),
}

RISING = "0+1x500"

FIRING: list[tuple[str, str, dict[str, str]]] = [
    ("WsqueueNodeDown", CONSUMER, {"up": "1x20 0x500"}),
    ("WsqueueLinkDown", PRODUCER, {f'wsqueue_link_up{{consumer="{LINK}"}}': "0x500"}),
    ("WsqueueLinkHoldsMuch", PRODUCER, {f'wsqueue_link_held_bytes{{consumer="{LINK}"}}': "40000000x500"}),
    ("WsqueuePublishersPaused", PRODUCER, {f'wsqueue_link_paused_publishers{{consumer="{LINK}"}}': "2x500"}),
    *(
        ("WsqueueMessagesLost", PRODUCER, {f'wsqueue_messages_lost_total{{reason="{reason}"}}': RISING})
        for reason in ("in_flight", "held", "refused", "full")
    ),
    ("WsqueueSubscribersSlow", CONSUMER, {"wsqueue_slow_subscribers": "1x500"}),
    ("WsqueueSubscribersMissMessages", CONSUMER, {"wsqueue_gaps_total": RISING}),
    ("WsqueueSubscribersMissMessages", CONSUMER, {"wsqueue_subscribers_closed_slow_total": RISING}),
    ("WsqueueGroupsMissMessages", CONSUMER, {"wsqueue_group_messages_gone_total": RISING}),
    ("WsqueueWorkBehind", CONSUMER, {LAG: "1001x500"}),
    ("WsqueueWrongKey", PRODUCER, {'wsqueue_hellos_refused_total{reason="wrong_answer"}': "0+3x500"}),
    ("WsqueueLogFailing", CONSUMER, {"wsqueue_log_failing": "1x500"}),
    (
        "WsqueueLogUnavailable",
        SHARED,
        # Then nothing can be stored, and that is one alert.
        {
            "wsqueue_log_available": "0x500",
            "wsqueue_log_failing": "1x500",
            "wsqueue_log_streams_without_leader": "8x500",
        },
    ),
    ("WsqueueLogFailing", SHARED, {"wsqueue_log_failing": "1x500"}),
    ("WsqueueLogUnavailable", SHARED, {"wsqueue_log_streams_without_leader": "1x500"}),
    ("WsqueueReplicaMissing", SHARED, {"wsqueue_log_replicas": "2x500"}),
    ("WsqueueReplicaBehind", SHARED, {"wsqueue_log_replica_lag_records": "1001x500"}),
    ("WsqueueDiskNearlyFull", CONSUMER, {"wsqueue_log_free_bytes": "900000x500"}),
    ("WsqueueLoopLag", CONSUMER, {"wsqueue_event_loop_lag_seconds": "0.6x500"}),
    (
        "WsqueueConfirmSlow",
        PRODUCER,
        # Two of a hundred take longer than a second.
        {
            f'wsqueue_confirm_seconds_bucket{{le="{bound}"}}': f"0+{count}x500"
            for bound, count in (("0.001", 980), ("0.01", 980), ("0.1", 980), ("1.0", 980), ("10.0", 1000))
        }
        | {'wsqueue_confirm_seconds_bucket{le="+Inf"}': "0+1000x500"},
    ),
    ("WsqueueCertificateEnds", CONSUMER, {"wsqueue_certificate_expiry_timestamp_seconds": f"{20 * DAY}x500"}),
    (
        "WsqueueVersionsDiffer",
        CONSUMER,
        {'wsqueue_build_info{python="3.12.1",role="consumer",version="1.2.4"}': "1x500"},
    ),
    (
        "WsqueueConnectionsNearLimit",
        CONSUMER,
        {'wsqueue_connections{protocol="v2",role="publisher",state="open"}': "89x500"},
    ),
    ("WsqueueConnectionsNearLimit", CONSUMER, {"wsqueue_connections_refused_total": RISING}),
    ("WsqueueFewFileDescriptors", CONSUMER, {"process_open_fds": "950x500"}),
    ("WsqueueFewFileDescriptors", CONSUMER, {"process_max_fds": "64x500"}),
]
"""An alert, the node on which it fires, and the series there that make it fire."""

QUIET: list[tuple[str, dict[str, str]]] = [
    (PRODUCER, {f'wsqueue_link_up{{consumer="{LINK}"}}': "1x100 0x1 1x400"}),
    (PRODUCER, {f'wsqueue_link_held_bytes{{consumer="{LINK}"}}': "17000000x500"}),
    (PRODUCER, {'wsqueue_messages_lost_total{reason="held"}': "7x500"}),
    (PRODUCER, {'wsqueue_hellos_refused_total{reason="wrong_answer"}': "0x235 15x300"}),
    (CONSUMER, {'wsqueue_hellos_refused_total{reason="by_peer"}': "0+50x500"}),
    (CONSUMER, {"wsqueue_slow_subscribers": "0x235 1x4 0x300"}),
    (CONSUMER, {"wsqueue_subscribers_fell_behind_total": RISING}),
    (CONSUMER, {"wsqueue_log_free_bytes": "1000000x500"}),
    # A server is started again.
    (SHARED, {"wsqueue_log_replicas": "3x230 2x8 3x300"}),
    (SHARED, {"wsqueue_log_available": "1x238 0x0 1x300"}),
    (SHARED, {"wsqueue_log_replica_lag_records": "1000x500"}),
    (SHARED, {"wsqueue_log_conflicts_total": RISING}),
    (CONSUMER, {"wsqueue_certificate_expiry_timestamp_seconds": f"{22 * DAY}x500"}),
    (CONSUMER, {'wsqueue_connections{protocol="v2",role="publisher",state="open"}': "88x500"}),
    (CONSUMER, {"wsqueue_event_loop_lag_seconds": "0.4x500"}),
    (CONSUMER, {LAG: "1000x500"}),
    # It is catching up.
    (CONSUMER, {LAG: "90000-100x500"}),
]
"""Series of a node that come close to an alert."""


def series_of(instance: str, report: Report) -> Iterator[tuple[str, str]]:
    """Yield the metrics of a node as series that do not change, and their values."""
    yield "up", "1x500"
    for family in text_string_to_metric_families(exposition(report)):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            yield f"{sample.name}{{{labels}}}" if labels else sample.name, f"{sample.value}x500"
    # Instead of the values of this process.
    yield "process_open_fds", "50x500"
    yield "process_max_fds", "1000x500"


def scraped(changed: str, changes: dict[str, str]) -> list[dict[str, str]]:
    """Return all series of a healthy cluster, with some changes at one node."""
    found = []
    for instance, report in NODES.items():
        series = dict(series_of(instance, report))
        if instance == changed:
            unknown = {name for name in changes if name not in series and "build_info" not in name}
            assert not unknown, "changes of series that no node has"
            if any("build_info" in name for name in changes):
                series = {name: value for name, value in series.items() if "build_info" not in name}
            series |= changes
        for name, values in series.items():
            metric, _, labels = name.rstrip("}").partition("{")
            target = f'instance="{instance}",job="wsqueue"' + (f",{labels}" if labels else "")
            found.append({"series": f"{metric}{{{target}}}", "values": values})
    return found


def check(tmp_path: Path, series: list[dict[str, str]], expected: list[str]) -> None:
    """Check which alerts fire after two hours."""
    query = 'count by (alertname) (ALERTS{alertstate="firing"})'
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in expected]
    expression = {"expr": query, "eval_time": "2h", "exp_samples": samples}
    test = {"interval": "30s", "input_series": series, "promql_expr_test": [expression]}
    document = {"rule_files": [str(RULES)], "evaluation_interval": "30s", "tests": [test]}
    file = tmp_path / "alerts.test.yml"
    file.write_text(json.dumps(document))
    promtool("test", "rules", file)


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions_of(panels: list[dict[str, Any]]) -> Iterator[str]:
    for panel in panels:
        for target in panel.get("targets", []):
            # Values that Grafana could insert.
            text = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            assert "$" not in text, f"{panel['title']}: an unknown variable in {text}"
            yield text


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def exposed_names() -> set[str]:
    """Return all names of series that nodes expose, for histograms each part."""
    return {name.partition("{")[0] for node in NODES for name, _ in series_of(node, NODES[node])}


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:wsqueue|process)_\w+\b(?!\")", expression))


def test_a_healthy_cluster_has_no_alert(tmp_path: Path) -> None:
    check(tmp_path, scraped("", {}), [])


@pytest.mark.parametrize(
    ("alert", "instance", "changes"),
    FIRING,
    ids=[f"{alert}-{number}" for number, (alert, *_) in enumerate(FIRING)],
)
def test_an_alert_fires_and_no_other(
    tmp_path: Path, alert: str, instance: str, changes: dict[str, str]
) -> None:
    check(tmp_path, scraped(instance, changes), [alert])


def test_a_certificate_that_ends_now_is_critical(tmp_path: Path) -> None:
    changes = {"wsqueue_certificate_expiry_timestamp_seconds": f"{2 * DAY}x500"}
    check(tmp_path, scraped(CONSUMER, changes), ["WsqueueCertificateEnds", "WsqueueCertificateEndsNow"])


@pytest.mark.parametrize(
    ("instance", "changes"), QUIET, ids=[next(iter(changes)).partition("{")[0] for _, changes in QUIET]
)
def test_series_close_to_an_alert_fire_none(tmp_path: Path, instance: str, changes: dict[str, str]) -> None:
    check(tmp_path, scraped(instance, changes), [])


def test_every_alert_is_tested() -> None:
    tested = {alert for alert, *_ in FIRING} | {"WsqueueCertificateEndsNow"}
    assert {rule["alert"] for rule in rules()} == tested


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        annotations = rule["annotations"]
        assert re.fullmatch(r"[A-Z{].{10,90}\.", annotations["summary"]), rule["alert"]
        assert len(annotations["description"]) > 100
        assert annotations["description"].endswith(".")


def test_rules_and_dashboard_ask_for_metrics_that_exist() -> None:
    exposed = exposed_names()
    for rule in rules():
        assert names_in(rule["expr"]) <= exposed, rule["alert"]
    for expression in expressions_of(dashboard()["panels"]):
        assert names_in(expression) <= exposed, expression


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    asked = set().union(
        *(names_in(rule["expr"]) for rule in rules()),
        *(names_in(expression) for expression in expressions_of(dashboard()["panels"])),
    )
    parts = re.compile(r"_(?:bucket|count|sum)$")
    unused = {parts.sub("", name) for name in exposed_names()} - {parts.sub("", name) for name in asked}
    assert {name for name in unused if name.startswith("wsqueue_")} == set()


def test_every_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{number}", "expr": expression}
        for number, expression in enumerate(expressions_of(dashboard()["panels"]))
    ]
    assert len(recorded) > 20
    file = tmp_path / "dashboard.rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", file)


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    assert (board["title"], board["uid"]) == ("wsqueue", "wsqueue")
    assert "id" not in board, "Grafana gives it one"
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert list(variables) == ["datasource", "instance"]
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert variables["instance"]["datasource"] == source
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == source
        assert panel["description"].endswith(".")
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == source
            chosen = 'instance=~"$instance"' in target["expr"] or "count by (version)" in target["expr"]
            assert chosen, panel["title"]


def test_no_panel_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_the_metrics_of_the_process_are_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    exposed = {name for name in exposed_names() if name.startswith("process_")}
    assert set(re.findall(r"`(process_\w+)`", text)) == exposed


def test_the_table_of_alerts() -> None:
    documented = [(name.strip("`"), severity) for name, severity, *_ in rows("docs/metrics.md", "Alerts")]
    assert documented == [(rule["alert"], rule["labels"]["severity"]) for rule in rules()]


def test_the_example_of_a_configuration_of_prometheus(tmp_path: Path) -> None:
    (example,) = code_blocks(ROOT / "docs" / "metrics.md", "yaml")
    (tmp_path / "prometheus.yml").write_text(example)
    promtool("check", "config", tmp_path / "prometheus.yml")
