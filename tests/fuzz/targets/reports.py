"""Reports of nodes: whatever a node sends, `top` and `doctor` can show it, or it is refused.

A line is the report of one node: those of a few nodes make a cluster.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from wsqueue.report.report import Cluster, ClusterNode, Report
from wsqueue.report.warnings import cluster_warnings
from wsqueue.tools.doctor.findings import cluster_findings
from wsqueue.tools.terminal import json_line
from wsqueue.tools.top.screen import NO_LIMIT, screen
from wsqueue.tools.top.snapshot import Sampler

WORDS = (
    *(b'"id":', b'"role":', b'"version":', b'"consumer"', b'"producer"', b'"addresses":', b'"time":'),
    *(
        b'"uptime_seconds":',
        b'"not_ready":',
        b'"psk_fingerprints":',
        b'"certificate_ends":',
        b'"loop_lag_seconds":',
    ),
    *(
        b'"max_connections":',
        b'"connections":',
        b'"counters":',
        b'"links":',
        b'"confirm_seconds":',
        b'"bounds":',
    ),
    *(
        b'"counts":',
        b'"sum":',
        b'"commit_seconds":',
        b'"top_topics":',
        b'"messages_per_second":',
        b'"slow_peers":',
    ),
    *(b'"log":', b'"limit_bytes":', b'"free_bytes":', b'"failing":', b'"warnings":', b'"code":', b'"text":'),
    *(b"1e308", b"-1e308", b"9223372036854775807", b"null", rb"\u001b[2J", b"\xe2\x80\xae"),
)

NODES = 3
"""More nodes find no more."""

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def check(data: bytes) -> None:
    """Show the reports in every way."""
    nodes = []
    for number, line in enumerate(data.split(b"\n", NODES - 1)):
        report: Report | None = None
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            report = msgspec.json.decode(line, type=Report)  # as monitoring.cluster does
        if report is not None:
            assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
        clock = report.time - NOW.timestamp() if report is not None else None
        role = "producer" if number % 2 else "consumer"
        problem = "" if report is not None else "no answer"
        nodes.append(
            ClusterNode(
                address=f"node:{number}",
                role=role,
                report=report,
                age_seconds=None if report is None else 0.5,
                clock_seconds=clock,
                problem=problem,
            )
        )
    of = {role: [node.address for node in nodes if node.role == role] for role in ("consumer", "producer")}
    cluster = Cluster(of["consumer"], of["producer"], nodes, cluster_warnings(nodes))
    list(cluster_findings(cluster, ["01234567"], {}, NOW))
    assert json_line(cluster).isprintable()
    sampler = Sampler()
    for moment, width, height in ((1000.0, 80, 24), (1001.0, NO_LIMIT, NO_LIMIT)):
        for text in screen(sampler.snapshot(cluster, moment), width, height):
            assert text.plain.isprintable(), text.plain


def seeds() -> Iterator[bytes]:
    """Yield the reports of nodes that have something to tell."""
    histogram = {"bounds": [0.1, 1.0], "counts": [1, 2, 0], "sum": 1.5}
    common = {
        "id": "one",
        "version": "0.1.0",
        "python": "3.11.2",
        "addresses": ["node:0"],
        "time": 1767225600.5,
        "uptime_seconds": 90.0,
        "psk_fingerprints": ["01234567"],
        "certificate_ends": 1767315600.0,
        "loop_lag_seconds": 0.9,
        "max_connections": 10,
        "counters": {"messages_in": 5, "lost_held": 1},
        "connections": [{"role": "publisher", "state": "open", "protocol": "v2", "count": 9}],
        "top_topics": [{"topic": "news", "messages_per_second": 2.5}],
        "warnings": [
            {"code": "loop_lag", "text": "It lags.", "advice": "Wait."},
            {"code": "new", "text": "?"},
        ],
    }
    slow = {"peer": "a:1", "protocol": "v2", "buffered_bytes": 9, "behind_messages": 3}
    log = {"mode": "sqlite", "topics": 1, "bytes": 5, "limit_bytes": 9, "free_bytes": 3, "failing": "full"}
    consumer = {"role": "consumer", "log": log, "slow_subscribers": 1, "slow_peers": [slow]}
    link = {"address": "node:0", "state": "down", "reason": "refused", "held_messages": 3, "held_bytes": 9}
    producer = {"role": "producer", "links": [link], "confirm_seconds": histogram, "not_ready": "no link"}
    reports = [
        common | consumer | {"commit_seconds": histogram},
        common | producer | {"id": "two", "version": "0.2.0", "addresses": ["node:1"]},
        {"id": "three", "role": "consumer", "version": ""},
    ]
    lines = [json.dumps(report).encode() for report in reports]
    yield from lines
    yield b"\n".join(lines)
