"""Filters that compare the hosts with the inventory."""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from wsqueue.log import schema
from wsqueue.protocol.routing import router

_SPEC = importlib.util.spec_from_file_location(
    "deployed", ROOT / "ansible" / "plugins" / "filter" / "deployed.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
deployed = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(deployed)

PRODUCER = 'role = "producer"\nconsumers = [\n    "wss://a:1/producer",\n    "b:2/producer",\n]\n'
CONSUMER = 'role = "consumer"\n\n[monitoring]\nconsumers = ["wss://a:1", "b:2"]\n'


class TestTheListOfConsumers:
    @pytest.mark.parametrize(
        ("text", "consumers"),
        [
            (PRODUCER, ["wss://a:1", "b:2"]),
            (CONSUMER, ["wss://a:1", "b:2"]),
            ('role = "consumer"\n', []),
            # No instance yet.
            ("", []),
        ],
    )
    def test_is_read_from_the_configuration_of_a_node(self, text: str, consumers: list[str]) -> None:
        assert deployed.deployed_consumers(text) == consumers

    def test_of_a_damaged_file_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="restore or remove it"):
            deployed.deployed_consumers(PRODUCER[:-10])

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("a", "a"),
            ("a", "b"),
            ("ab", "ab"),
            ("ab", "ba"),
            ("ab", "abc"),
            ("abc", "ab"),
            ("abc", "abd"),
            ("abcde", "abcdefg"),
        ],
    )
    def test_decides_how_many_topics_move(self, old: str, new: str) -> None:
        before, after = router(len(old)), router(len(new))
        topics = [f"topic {number}" for number in range(3000)]
        moved = sum(old[before(topic)] != new[after(topic)] for topic in topics)
        percent = deployed.moved_percent(
            [f"wss://{one}:1" for one in old], [f"{one}:1/producer" for one in new]
        )
        assert percent == pytest.approx(100 * moved / len(topics), abs=5)
        assert (percent == 0) == (moved == 0)

    @pytest.mark.parametrize("lists", [([], ["a:1"]), (["a:1"], [])])
    def test_that_is_missing_moves_nothing(self, lists: tuple[list[str], list[str]]) -> None:
        assert deployed.moved_percent(*lists) == 0

    @pytest.mark.parametrize(
        ("old", "new", "changes"),
        [
            (["a:1"], ["wss://a:1"], True),
            (["wss://a:1"], ["a:1"], True),
            (["a:1"], ["b:1"], False),
            ([], ["wss://a:1"], False),
        ],
    )
    def test_gets_or_loses_tls(self, old: Sequence[str], new: Sequence[str], changes: bool) -> None:
        assert deployed.tls_changes(old, new) is changes


class TestKeptMessages:
    def test_are_counted_by_the_place_of_the_consumer(self) -> None:
        files = [f"/etc/wsqueue/consumer-{port}.toml" for port in (10001, 10003)]
        found = deployed.looks(files, {10001: "wss://a:10001"}, ["wss://b:1", "wss://a:10001"])
        assert found == [
            {
                "name": "consumer-10001",
                "arguments": ["/var/lib/wsqueue/consumer-10001", "--number", "2", "--of", "2"],
            },
            {"name": "consumer-10003", "arguments": ["/var/lib/wsqueue/consumer-10003"]},
        ]

    def test_are_summed_up(self) -> None:
        names = ("consumer-1", "consumer-2", "consumer-3", "consumer-4")
        results = [
            {"rc": 0, "stdout": '{"topics":3,"messages":1200}'},
            {"rc": 0, "stdout": '\r\n{"topics":1,"messages":34}\r\n'},
            {"rc": 0, "stdout": '{"topics":0,"messages":0}'},
            {"rc": 1, "stdout": ""},
        ]
        items = [{"item": {"name": name}} | result for name, result in zip(names, results, strict=True)]
        # It was not looked at.
        items.append({"item": {"name": "consumer-5"}, "skipped": True})
        assert deployed.orphans_sentence(deployed.kept(items, "c1")) == (
            "1,234 kept messages of 4 topics would be where no client looks for them"
            " (1,200 at consumer-1 of c1, 34 at consumer-2 of c1);"
            " the messages of consumer-4 of c1 are in memory, and not counted"
        )


@pytest.mark.parametrize(
    ("answer", "waits"),
    [
        ("not ready: no link to wss://a:1/producer\n", True),
        ("not ready: no link to wss://a:1/producer, [::1]:2/producer\n", True),
        ("not ready: no link to wss://a:1/producer, c:1/producer\n", False),
        ("not ready: draining\n", False),
        ("", False),
    ],
)
def test_a_node_that_only_lacks_links_to_dead_ones(answer: str, waits: bool) -> None:
    assert deployed.waits_only_for(answer, ["a:1", "[::1]:2"]) is waits
    assert not deployed.waits_only_for(answer, [])


def test_instances_that_the_inventory_does_not_have() -> None:
    files = [
        "/etc/wsqueue/consumer-10001.toml",
        "/etc/wsqueue/consumer-10003.toml",
        "/etc/wsqueue/producer-10001.toml",
        "/etc/wsqueue/consumer-x.toml",
        "/etc/wsqueue/demo.toml",
    ]
    wanted = {"consumer": ["10001"], "producer": [10002]}
    assert deployed.unknown_instances(files, wanted) == ["consumer-10003", "producer-10001"]
    assert deployed.unknown_instances(files[:1], wanted) == []


class TestBackups:
    @pytest.mark.parametrize(
        ("text", "mode"),
        [
            (CONSUMER, "memory"),
            (CONSUMER + "[retention]\nmax_bytes = 1\n", "memory"),
            (CONSUMER + '[retention]\nmode = "sqlite"\n', "sqlite"),
        ],
    )
    def test_are_of_consumers_whose_configuration_says_sqlite(self, text: str, mode: str) -> None:
        assert deployed.deployed_retention(text) == mode

    def test_are_not_of_consumers_whose_configuration_is_damaged(self) -> None:
        with pytest.raises(ValueError, match="restore or remove it"):
            deployed.deployed_retention(CONSUMER + "[retention\n")

    def test_have_the_instance_in_their_name(self) -> None:
        names = {
            "b/web1-consumer-10001-20261130T070102Z.sqlite": "consumer-10001",
            "b/consumer-5-consumer-10003-20261130T070102Z.sqlite": "consumer-10003",
            "b/web-1.example.com-consumer-10003-20261130T070102Z.sqlite": "consumer-10003",
            "consumer-10001.sqlite": "consumer-10001",
        }
        assert deployed.backups(names) == [{"file": file, "instance": name} for file, name in names.items()]
        assert (
            deployed.backups(["b/web1-producer-1.sqlite", "b/web1-consumer-1.sqlite.part", "consumer-1"])
            == []
        )

    def test_are_known_by_their_header(self, tmp_path: Path) -> None:
        files = [tmp_path / name for name in ("consumer-1.sqlite", "consumer-2.sqlite", "consumer-3.sqlite")]
        for file, application in zip(files, (schema.APPLICATION_ID, 1), strict=False):
            with contextlib.closing(sqlite3.connect(file)) as log:
                log.executescript(f"PRAGMA application_id = {application}; CREATE TABLE some (value);")
        files[2].write_bytes(b"")
        good, foreign, empty = map(str, files)
        assert deployed.backups_problem([good]) == ""
        for bad in (foreign, empty):
            told = deployed.backups_problem([good, bad])
            assert told.startswith(f"{bad} is no backup of wsqueue; expected")
        directory = tmp_path / "consumer-4.sqlite"
        directory.mkdir()
        assert "cannot be read: Is a directory" in deployed.backups_problem([str(directory)])
