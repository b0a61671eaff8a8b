"""Reports of other versions, which know more fields and values or fewer."""

from __future__ import annotations

import msgspec

from wsqueue.report.report import NodeWarning, Report


def test_a_report_of_a_newer_version_is_read() -> None:
    newer = {
        "id": "1",
        "role": "producer",
        "version": "9.0.0",
        "moon": {"phase": ["full"]},
        "log": None,
        "connections": [{"role": "x", "state": "asleep", "protocol": "v3", "count": 1, "more": []}],
        "warnings": [{"code": "moon_full", "text": "The moon is full.", "sign": "Cancer"}],
    }
    report = msgspec.json.decode(msgspec.json.encode(newer), type=Report)
    assert report.warnings == [NodeWarning("moon_full", "The moon is full.")]
    assert report.connections[0].state == "asleep"


def test_a_report_of_an_older_version_is_read() -> None:
    assert msgspec.json.decode(b'{"id":"1","role":"consumer","version":"0.1.0"}', type=Report).links == []
