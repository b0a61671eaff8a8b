"""Runs that backup.yml and restore.yml refuse before they change anything, without a host."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from wsqueue.log import schema

from ..support import control_node

pytestmark = pytest.mark.slow
NO_SUCH_PORT = 65_000
"""A port that no consumer has on the machine of the tests."""


def refused(
    directory: Path, playbook: str, *arguments: str, consumers: tuple[str, ...] = ("c1", "c2")
) -> str:
    """Return the output of a playbook that fails and changes nothing, in one line."""
    groups = {"consumers": consumers, "producers": ("p1",), "dead": ("c2",)[: len(consumers)]}
    hosts = {group: {"hosts": dict.fromkeys(names, control_node.LOCAL)} for group, names in groups.items()}
    inventory = directory / "hosts.yml"
    inventory.write_text(json.dumps({"all": {"children": hosts}}))
    result = control_node.try_to_run(
        "ansible-playbook", "-i", inventory, f"ansible/playbooks/{playbook}.yml", *arguments
    )
    assert result.returncode != 0, result.stdout
    assert "\nchanged: " not in result.stdout
    assert sorted(directory.glob("backups*")) == []
    return " ".join(result.stdout.split())


def backup(file: Path) -> Path:
    """Make a file that begins as a backup."""
    with contextlib.closing(sqlite3.connect(file)) as log:
        log.executescript(
            f"PRAGMA application_id = {schema.APPLICATION_ID}; CREATE TABLE record (offset INTEGER);"
        )
    return file


@pytest.mark.parametrize("playbook", ["backup", "restore"])
def test_an_inventory_without_consumers(tmp_path: Path, playbook: str) -> None:
    assert "The inventory has no host in the group consumers" in refused(tmp_path, playbook, consumers=())


@pytest.mark.parametrize("host", ["p1", "c2"])
def test_a_backup_of_hosts_without_consumers(tmp_path: Path, host: str) -> None:
    told = refused(tmp_path, "backup", "--limit", host)
    assert "No host of this run has consumers, so there is nothing to back up" in told


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ("all", "One host is restored at a time, and this run has 3; expected --limit with"),
        ("p1", "p1 is not in the group consumers, so it has no log; expected --limit with one of c1, c2."),
        ("c2", "c2 is in the group dead, which all playbooks leave out"),
        ("c1", "wsqueue_restore_from is not set; expected the file of a backup on this machine"),
    ],
)
def test_a_restore_of_other_than_one_consumers_host(tmp_path: Path, limit: str, problem: str) -> None:
    assert problem in refused(tmp_path, "restore", "--limit", limit)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("none-consumer-10001.sqlite", "There is no file"),
        ("text-consumer-10001.sqlite", "is no backup of wsqueue; expected a file that backup.yml or"),
        ("nameless.sqlite", "does not say which consumer it is of; expected a name such as"),
        ("*-consumer-10001-*.sqlite", "are all of consumer-10001; expected one file for each consumer"),
        (f"c1-consumer-{NO_SUCH_PORT}.sqlite", f"c1 has no consumer-{NO_SUCH_PORT}, whose backup shall be"),
    ],
)
def test_a_restore_of_other_than_one_backup_of_each_consumer(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "text-consumer-10001.sqlite").write_text("this is no database\n" * 10)
    for good in (
        "nameless.sqlite",
        "c1-consumer-10001-20261130T070102Z.sqlite",
        "c1-consumer-10001-20261130T080102Z.sqlite",
        f"c1-consumer-{NO_SUCH_PORT}.sqlite",
    ):
        backup(tmp_path / good)
    told = refused(tmp_path, "restore", "--limit", "c1", "-e", f"wsqueue_restore_from={tmp_path / name}")
    assert problem in told
