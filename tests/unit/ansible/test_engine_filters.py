"""The filters about the servers of the log, without Ansible."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.support.paths import ROOT

_SPEC = importlib.util.spec_from_file_location(
    "engine", ROOT / "ansible" / "plugins" / "filter" / "engine.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
engine: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(engine)

THREE = ["e1", "e2", "e3"]
SHARED = {"wsqueue_consumer_retention": {"mode": "jetstream"}}
SECOND = 1_000_000_000


def consumers(**retention: Any) -> list[dict[str, Any]]:
    return [{"wsqueue_consumer_retention": retention}] * 2


def peer(name: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "current": True, "active": SECOND} | values


def report(
    leader: str | None, *peers: dict[str, Any], stream: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the answer of a server about the list of streams, and about one stream."""
    streams = [{"name": "s", "cluster": stream}] if stream else []
    cluster = {"name": "wsqueue", "leader": leader, "replicas": list(peers)}
    return {"meta_cluster": cluster, "account_details": [{"name": "WSQUEUE", "stream_detail": streams}]}


class TestInventory:
    @pytest.mark.parametrize(
        ("names", "hosts"),
        [
            ([], [{}]),
            ([], consumers(mode="sqlite")),
            (THREE, [SHARED]),
            (["e1"], consumers(mode="jetstream", jetstream={"replicas": 1})),
            ([*THREE, "e4", "e5"], consumers(mode="jetstream", jetstream={"replicas": 5})),
            ([], consumers(mode="jetstream", jetstream={"servers": ["tls://n1:4222"]})),
        ],
    )
    def test_good_ones(self, names: list[str], hosts: list[dict[str, Any]]) -> None:
        assert engine.engine_inventory_problem(names, hosts) == ""

    @pytest.mark.parametrize(
        ("names", "hosts", "problem"),
        [
            (THREE, [{}], "The group engine has hosts, and wsqueue_consumer_retention has the mode memory;"),
            (THREE, consumers(mode="sqlite"), "has the mode sqlite; expected the mode jetstream, or no host"),
            (
                [],
                [SHARED],
                "there are no servers; expected hosts in the group engine, or the servers of another",
            ),
            (THREE[:2], [SHARED], "The group engine has 2 hosts, and an even number survives no more losses"),
            ([*THREE, "e4"], [SHARED], "The group engine has 4 hosts"),
            (["e1"], [SHARED], "Each message has 3 replicas, and the group engine has 1 host; expected more"),
            (
                THREE,
                consumers(mode="jetstream", jetstream={"replicas": 5}),
                "5 replicas, and the group engine has 3",
            ),
            (
                THREE,
                consumers(mode="jetstream", jetstream={"servers": ["nats://n1:4222"]}),
                "names jetstream.servers, and the group engine has hosts too",
            ),
            (THREE, [SHARED, {}], "is not the same on all consumers, which share one log"),
            (
                THREE,
                consumers(mode="jetstream") + consumers(mode="jetstream", jetstream={"streams": 4}),
                "is not the same on all consumers, which share one log",
            ),
            (["e1", "e1", "e3"], [SHARED], "Two servers have the same wsqueue_engine_name"),
            (["e1", "e 2", "e3"], [SHARED], "expected letters, digits, dots, hyphens and underscores"),
        ],
    )
    def test_bad_ones(self, names: list[str], hosts: list[dict[str, Any]], problem: str) -> None:
        assert problem in engine.engine_inventory_problem(names, hosts)

    @pytest.mark.parametrize(
        ("first", "second", "problem"),
        [
            (["a" * 16] * 2, ["b+/=" * 11], ""),
            (["a" * 16, ""], ["b" * 16], "first is not set on all hosts"),
            (["a" * 16, "c" * 16], ["b" * 16], "first is not the same on all hosts"),
            (["a" * 16], ["b" * 15], "second has other characters than"),
            (["a" * 16], ["$2a$" * 8], "second has other characters than"),
            (["a" * 16], ["a" * 16], "second and first are the same"),
        ],
    )
    def test_passwords(self, first: list[str], second: list[str], problem: str) -> None:
        told = engine.engine_password_problem({"first": first, "second": second})
        assert told.startswith(problem)
        assert bool(told) == bool(problem)
        assert not any(value and value in told for value in [*first, *second])


class TestServers:
    def test_all_have_the_same(self) -> None:
        good = report(
            "e1", peer("e2"), peer("e3"), stream={"leader": "e1", "replicas": [peer("e2"), peer("e3")]}
        )
        assert engine.engine_unsettled(good, "e1", [], ["e1"]) == []

    @pytest.mark.parametrize(
        ("found", "problems"),
        [
            (report(None), ["the list of streams has no leader"]),
            (report("e1", stream={"leader": "", "replicas": []}), ["the stream s has no leader"]),
            (report("e1", peer("e2", offline=True), peer("e3")), ["e2 is offline"]),
            # The servers themselves say so only later.
            (report("e1", peer("e2", active=4 * SECOND), peer("e3")), ["e2 is offline"]),
            (report("e1", peer("e2", current=False)), ["e2 is behind in the list of streams"]),
            (
                report("e9", stream={"leader": "e1", "replicas": [peer("e2", current=False)]}),
                ["e2 is behind in the stream s"],
            ),
            # Another server leads, and knows better.
            (report("e2", peer("e1", active=0), peer("e3", current=False, active=0)), []),
        ],
    )
    def test_some_have_not(self, found: dict[str, Any], problems: list[str]) -> None:
        assert engine.engine_unsettled(found, "e1") == problems

    def test_a_server_that_has_not_joined(self) -> None:
        some = report("e1", peer("e2"))
        assert engine.engine_unsettled(some, "e1", [], ["e3"]) == ["e3 has not joined"]
        assert engine.engine_unsettled(some, "e2", [], ["e3"]) == []

    def test_a_server_that_is_known_to_be_down(self) -> None:
        some = report("e1", peer("e2", offline=True), peer("e3"))
        assert engine.engine_unsettled(some, "e1", ["e2"]) == []

    def test_a_server_alone(self) -> None:
        alone = {"account_details": [{"name": "WSQUEUE", "stream_detail": [{"name": "s"}]}]}
        assert engine.engine_unsettled(alone, "e1", [], ["e1"]) == []
        assert not engine.engine_works([alone])

    def test_servers_that_work(self) -> None:
        assert engine.engine_works([{}, report("e2")])
        assert not engine.engine_works([{}, report("")])


class TestChanges:
    TEXT = 'server_name: "e1"\n\ncluster {\n'

    def test_none(self) -> None:
        reports = {"e2": report("e2", peer("e1"), peer("e3"))}
        assert engine.engine_changes(self.TEXT, "e1", True, reports) == ""
        assert engine.engine_changes("", "e4", True, reports) == ""

    @pytest.mark.parametrize(
        ("deployed", "name", "clustered", "problem"),
        [
            (TEXT, "e9", True, "its server is e1, and the inventory calls it e9"),
            (TEXT, "e1", False, "its server was one of several and would be alone"),
            ('server_name: "e1"\n', "e1", True, "its server was alone and would be one of several"),
            ("", "e1", True, "the others know a server e1 with another disk"),
        ],
    )
    def test_bad_ones(self, deployed: str, name: str, clustered: bool, problem: str) -> None:
        reports = {"e2": report("e2", peer("e1"), peer("e3"))}
        assert problem in engine.engine_changes(deployed, name, clustered, reports)

    @pytest.mark.parametrize(
        ("reports", "lost", "problem"),
        [
            ({"e2": report("e2", peer("e1", offline=True))}, "e1", ""),
            ({"e2": report("e2", peer("e1", active=9 * SECOND))}, "e1", ""),
            ({"e2": report("e2", peer("e1"))}, "e1", "e1 lives; stop it for good"),
            ({"e2": report("e2")}, "", "wsqueue_engine_lost is not set"),
            ({"e2": report("e2")}, "e2", "e2 is in the inventory"),
            ({"e2": report(""), "e3": {}}, "e1", "The servers have no leader"),
            # A server that follows does not know who lives.
            ({"e2": report("e3", peer("e1"))}, "e1", "The servers have no leader"),
        ],
    )
    def test_a_server_that_is_gone(self, reports: dict[str, Any], lost: str, problem: str) -> None:
        told = engine.engine_lost_problem(reports, lost, ["e2", "e3", "e4"])
        assert told.startswith(problem)
        assert bool(told) == bool(problem)


def test_ansible_gets_all_functions() -> None:
    filters = engine.FilterModule().filters()
    public = {name for name, value in vars(engine).items() if getattr(value, "__module__", "") == "engine"}
    assert set(filters) == {name for name in public if not name.startswith("_")} - {"FilterModule"}
