"""What only a look at all nodes of a cluster shows."""

from __future__ import annotations

import msgspec
import pytest

from wsqueue.report.report import ClusterNode, NodeWarning, Report
from wsqueue.report.text import amount
from wsqueue.report.warnings import MAX_CLOCK_SECONDS, cluster_warnings


def report(**changes: object) -> Report:
    values: dict[str, object] = {"version": "1.0.0", "psk_fingerprints": ["0badcafe"], **changes}
    return msgspec.convert({"id": "1", "role": "consumer", **values}, Report)


def node(address: str = "192.0.2.1:1", **changes: object) -> ClusterNode:
    values: dict[str, object] = {
        "role": "consumer",
        "report": report(),
        "age_seconds": 0.1,
        "clock_seconds": 0.0,
        "problem": "",
        **changes,
    }
    return ClusterNode(address, **values)  # type: ignore[arg-type]


def codes(*nodes: ClusterNode) -> list[str]:
    return [warning.code for warning in cluster_warnings(nodes)]


def test_all_is_well() -> None:
    assert cluster_warnings([]) == []
    assert cluster_warnings([node(), node("192.0.2.2:1", role="producer")]) == []


def test_a_node_that_was_not_asked_yet() -> None:
    assert cluster_warnings([node(report=None, age_seconds=None, clock_seconds=None)]) == []


def test_a_node_that_does_not_answer() -> None:
    (warning,) = cluster_warnings([node(problem="Connection refused")])
    assert warning.code == "node_unreachable"
    assert warning.text == "consumer 192.0.2.1:1 does not answer: Connection refused."
    assert "systemctl status" in warning.advice


def test_what_a_node_said_last_does_not_count_when_it_does_not_answer() -> None:
    old = report(version="0.1.0", psk_fingerprints=["1"], warnings=[NodeWarning("loop_lag", "Late.")])
    assert codes(node(problem="gone", report=old, clock_seconds=100.0), node()) == ["node_unreachable"]


def test_the_warnings_of_the_nodes_say_whose_they_are() -> None:
    one = report(warnings=[NodeWarning("loop_lag", "It was late.", "Do something.")])
    assert cluster_warnings([node(report=one, role="producer"), node()]) == [
        NodeWarning("loop_lag", "producer 192.0.2.1:1: It was late.", "Do something.")
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (MAX_CLOCK_SECONDS, None),
        (-MAX_CLOCK_SECONDS, None),
        (6.4, "The clock of consumer 192.0.2.1:1 is 6 seconds ahead of ours."),
        (-3600.0, "The clock of consumer 192.0.2.1:1 is 3600 seconds behind ours."),
    ],
)
def test_clocks(seconds: float, text: str | None) -> None:
    warnings = cluster_warnings([node(clock_seconds=seconds)])
    assert [(warning.code, warning.text) for warning in warnings] == (
        [("clock_differs", text)] if text else []
    )


def test_versions() -> None:
    nodes = [node(report=report(version=version)) for version in ("1.1.0", "1.0.0", "1.1.0")]
    (warning,) = cluster_warnings(nodes)
    assert warning.code == "version_differs"
    assert warning.text == "The nodes have different versions: 1.0.0, 1.1.0."


@pytest.mark.parametrize(
    ("fingerprints", "differ"),
    [
        ([["a"], ["a"]], False),
        ([["a", "b"], ["a", "b"]], False),
        ([["a"], ["b"]], True),
        ([["a", "b"], ["a"]], True),
        # The first is used, so the order matters.
        ([["a", "b"], ["b", "a"]], True),
    ],
)
def test_keys(fingerprints: list[list[str]], differ: bool) -> None:
    found = codes(*(node(report=report(psk_fingerprints=one)) for one in fingerprints))
    assert found == (["keys_differ"] if differ else [])


def test_one_node_differs_from_nobody() -> None:
    assert cluster_warnings([node(report=report(version="9", psk_fingerprints=["a", "b"]))]) == []


def test_what_another_version_reports() -> None:
    """It may know more, or less, than this one."""
    new = b'{"id":"1","role":"consumer","version":"9.0.0","new":{"a":[1]},"log":null}'
    assert msgspec.json.decode(new, type=Report) == Report(id="1", role="consumer", version="9.0.0")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024, "10 KiB"),
        (1024**2 * 1.25, "1.2 MiB"),
        (64 * 1024**2, "64 MiB"),
        (1024**3, "1.0 GiB"),
        (5 * 1024**4, "5.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_amounts(count: float, text: str) -> None:
    assert amount(count) == text


def test_a_report_of_a_newer_version_is_read() -> None:
    newer = {
        "id": "1",
        "role": "producer",
        "version": "9.0.0",
        "moon": "full",
        "connections": [{"role": "x", "state": "asleep", "protocol": "v3", "count": 1, "more": []}],
        "warnings": [{"code": "moon_full", "text": "The moon is full.", "sign": "Cancer"}],
    }
    report = msgspec.json.decode(msgspec.json.encode(newer), type=Report)
    assert report.warnings == [NodeWarning("moon_full", "The moon is full.")]
    assert report.connections[0].state == "asleep"


def test_a_report_of_an_older_version_is_read() -> None:
    assert msgspec.json.decode(b'{"id":"1","role":"consumer","version":"0.1.0"}', type=Report).links == []
