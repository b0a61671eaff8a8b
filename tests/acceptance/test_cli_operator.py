"""`topics`, `groups` and `disconnect`: their tables, and the ends of connections."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from ..support.commands import Terminal, run
from ..support.processes import Cluster
from ..support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def config(standing_cluster: Cluster) -> str:
    return f"--config={standing_cluster.demo_file}"


def test_topics_and_groups(config: str) -> None:
    assert run("publish", config, "op/1", stdin=b"a\nb\nc\n").code == 0
    assert run("publish", config, "op/2", stdin=b"d\n").code == 0
    worked = run("work", config, "op/1", "--group=g", "--count=1", "--", "true")
    assert worked.code == 0, worked.stderr
    assert run("subscribe", config, "op/2", "--reader=mail", "--count=1").stdout == "d\n"
    code, stdout, stderr = run("topics", config, "op/*")
    assert (code, stderr) == (0, "")
    head, first, second = (line.split() for line in stdout.splitlines())
    assert head == ["TOPIC", "MESSAGES", "SIZE", "NEXT", "SUBSCRIBERS", "BEHIND"]
    assert (first[:2], first[4:]) == (["op/1", "3"], ["3", "0", "g", "2"])
    assert second[-2:] == ["mail", "0"]
    lines = [json.loads(line) for line in run("topics", config, "op/*", "--json").stdout.splitlines()]
    assert [(line["topic"], line["messages"], line["first"], line["next"]) for line in lines] == [
        ("op/1", 3, 0, 3),
        ("op/2", 1, 0, 1),
    ]
    code, stdout, stderr = run("groups", config, "op/*")
    assert (code, stderr) == (0, "")
    group, reader = [line.split() for line in stdout.splitlines()[1:]]
    assert (group[:7], group[-1]) == (["op/1", "g", "group", "0", "0", "2", "1"], "0")
    # An age may have two parts.
    assert re.fullmatch(r"(\d+m )?\d+s", " ".join(group[7:-1]))
    assert reader == ["op/2", "mail", "reader", "0", "0", "0", "-", "-", "-"]
    (line,) = run("groups", config, "op/1", "--json").stdout.splitlines()
    entry = json.loads(line)
    assert (entry["topic"], entry["name"], entry["lag"], entry["offset"]) == ("op/1", "g", 2, 1)
    assert 0 <= time.time() - entry["oldest_time"] < 600
    assert run("groups", config, "--forget", "op/1", "g") == (0, "forgotten: g of op/1\n", "")
    assert run("groups", config, "op/1") == (0, "", "no groups or named readers found\n")
    assert run("topics", config, "op/3") == (0, "", "no topics found\n")
    assert run("topics", config, "op/3", "--json") == (0, "", "")
    code, stdout, stderr = run("groups", config, "--forget", "op/1", "g")
    assert (code, stdout) == (1, "")
    assert "'op/1' has no group or reader 'g': see `wsqueue groups`" in stderr
    # It is a topic, not a pattern.
    code, stdout, stderr = run("groups", config, "--forget", "op/*", "mail")
    assert (code, stdout) == (1, "")
    assert "'op/*' has no group or reader 'mail': see `wsqueue groups`" in stderr


def test_purge(config: str) -> None:
    assert run("publish", config, "purged", stdin=b"a\nb\nc\n").code == 0
    code, stdout, stderr = run("purge", config, "purged")
    assert (code, stdout) == (2, "")
    assert "all messages of 'purged' would go for good: expected --yes, or a terminal" in stderr
    with Terminal("purge", config, "purged") as terminal:
        terminal.wait_for("Drop all messages of purged, for good? [y/N]:")
        terminal.type("n\n")
        assert terminal.end() == 1
    with Terminal("purge", config, "purged") as terminal:
        terminal.wait_for("[y/N]:")
        # Python sees a signal that comes a moment before it reads only after the answer.
        stat = Path(f"/proc/{terminal.process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "it waits for the answer")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
    assert run("purge", config, "purged", "--before", "0", "--yes") == (0, "0 messages dropped\n", "")
    with Terminal("purge", config, "purged") as terminal:
        terminal.wait_for("[y/N]:")
        terminal.type("y\n")
        terminal.wait_for("3 messages dropped")
        assert terminal.end() == 0
    assert run("topics", config, "purged") == (0, "", "no topics found\n")
    assert run("publish", config, "purged", stdin=b"d\n").code == 0
    found = run("subscribe", config, "purged", "--from", "earliest", "--no-follow", "--json")
    assert [json.loads(line)["offset"] for line in found.stdout.splitlines()] == [3]


def test_disconnect(config: str) -> None:
    assert run("disconnect", config, "192.0.2.7") == (0, "0 connections ended\n", "")
    assert run("disconnect", config, "--key", "billing") == (0, "0 connections ended\n", "")


def test_wrong_usage(config: str) -> None:
    for arguments, text in (
        (["topics", "a*b"], "'a*b' is no TOPIC: expected a topic, or its beginning and one *"),
        (["disconnect"], "expected either ADDRESS or --key"),
        (["disconnect", "x", "--key", "y"], "expected either ADDRESS or --key"),
    ):
        code, stdout, stderr = run(*arguments, config)
        assert (code, stdout) == (2, "")
        assert text in stderr
