"""Each compared system starts, takes messages, delivers them and ends."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

from bench.results import MIXED_SIZES
from bench.systems import SYSTEMS, check_installed
from bench.wires import MessageWire, Mixed
from wsqueue.errors import WsqueueError
from wsqueue.tools.bench.runner import run_load
from wsqueue.tools.bench.workload import Load

pytestmark = pytest.mark.anyio


def missing(name: str) -> str:
    """Return a sentence if a system can't be started on this machine, "" if it can."""
    try:
        check_installed([name])
    except WsqueueError as error:
        return str(error)
    return ""


INSTALLED = [
    pytest.param(name, marks=pytest.mark.skipif(bool(missing(name)), reason=missing(name)))
    for name in SYSTEMS
]


@pytest.mark.parametrize("name", INSTALLED)
async def test_a_system_delivers_all_messages(name: str) -> None:
    async with SYSTEMS[name].start() as system:
        load = SYSTEMS[name].load(Load(topics=3, subscribers=2, count=300, warm_up=0))
        report = await run_load(system.wire, load, system.nodes)
        assert (report.sent, report.received, report.lost) == (300, 300 * load.deliveries, 0)
        assert report.nodes.keys() == system.nodes.keys()
        assert report.unconfirmed == 0
        if isinstance(system.wire, MessageWire) and not load.shared:
            mixed = Mixed(system.wire, MIXED_SIZES)
            report = await run_load(mixed, Load(rate=200, duration=0.5, warm_up=0), system.nodes)
            assert (report.received, report.lost) == (100, 0)
    for pid in system.nodes.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    "name", [item for item in INSTALLED if item.values[0] in {"wsqueue", "reference", "reference-picows"}]
)
async def test_a_system_with_two_consumers(name: str) -> None:
    async with SYSTEMS[name].start(2) as system:
        assert sorted(system.nodes) == ["consumer-1", "consumer-2", "producer-1"]
        report = await run_load(system.wire, Load(topics=10, count=100, warm_up=0), system.nodes)
        assert (report.received, report.lost) == (100, 0)


def test_servers_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_arguments, **_options: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    check_installed(["wsqueue", "reference"])
    with pytest.raises(WsqueueError) as caught:
        check_installed(["redis", "nats", "wsqueue", "reference-picows"])
    assert str(caught.value) == (
        "not installed: nats-server (make setup), picows (make setup),"
        " redis-server (on Debian and Ubuntu: apt-get install redis-server)"
    )
