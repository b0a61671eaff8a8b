"""The program of docs/how-to.md that publishes the rows of an outbox, killed and started again."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.commands import run
from ..support.documents import code_blocks
from ..support.paths import ROOT
from ..support.processes import Cluster, clean_environment
from ..support.waiting import wait_until

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("uncovered")]

TOPICS = ("orders", "bills", "parcels")


class Outbox:
    """The table of an application, and the program that publishes its rows."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        (code,) = (
            block
            for block in code_blocks(ROOT / "docs" / "how-to.md", "python")
            if block.startswith("# outbox.py\n")
        )
        self._program = directory / "outbox.py"
        self._program.write_text(code)
        self._cluster, self._file = cluster, directory / "app.sqlite"
        self.errors = directory / "outbox.err"
        self.database = sqlite3.connect(self._file, timeout=30)
        self.rows: dict[str, list[str]] = {topic: [] for topic in TOPICS}

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run the program, and kill it."""
        arguments: list[str | Path] = [sys.executable, self._program, self._file, self._cluster.demo_file]
        with self.errors.open("ab") as errors:
            process = subprocess.Popen(arguments, stderr=errors, env=clean_environment())
        try:
            wait_until(self.has_tables, "it has made its tables")
            yield process
            assert process.poll() is None, self.errors.read_text()
        finally:
            process.kill()
            process.wait()

    def has_tables(self) -> bool:
        return self.number("SELECT COUNT(*) FROM sqlite_master WHERE name = 'publisher'") == 1

    def number(self, query: str) -> int:
        (number,) = self.database.execute(query).fetchone()
        return int(number)

    @property
    def unsent(self) -> int:
        return self.number("SELECT COUNT(*) FROM outbox WHERE sent = 0")

    def insert(self, count: int) -> None:
        """Insert rows as an application does, a few in each transaction."""
        for index in range(count):
            topic = TOPICS[index % len(TOPICS)]
            self.rows[topic].append(f"{len(self.rows[topic])} of {topic}")
            self.database.execute(
                "INSERT INTO outbox (topic, data) VALUES (?, ?)", [topic, self.rows[topic][-1]]
            )
            if index % 7 == 0:
                self.database.commit()
        self.database.commit()

    def stored(self, *options: str) -> dict[str, list[str]]:
        """Return what is in the logs."""
        config = f"--config={self._cluster.demo_file}"
        result = run("subscribe", config, "--json", "--from=earliest", *options, *TOPICS)
        assert (result.code, result.stderr) == (0, "")
        found: dict[str, list[str]] = {topic: [] for topic in TOPICS}
        for line in result.stdout.splitlines():
            message = json.loads(line)
            found[message["topic"]].append(message["data"])
        return found


@pytest.fixture(params=["memory", "sqlite"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path, cluster: Cluster) -> Outbox:
    cluster.start(2, 2, retention={"mode": request.param})
    return Outbox(tmp_path, cluster)


def test_a_program_that_is_killed_before_it_has_marked_its_rows(outbox: Outbox, cluster: Cluster) -> None:
    with outbox.running() as process:
        outbox.insert(50)
        wait_until(lambda: not outbox.unsent, "they are sent")
        assert outbox.stored("--no-follow") == outbox.rows
        # The rows are there at once, and the program cannot mark them while the test writes.
        process.send_signal(signal.SIGSTOP)
        outbox.insert(400)
        outbox.database.execute("BEGIN IMMEDIATE")
        process.send_signal(signal.SIGCONT)
        assert outbox.stored("--count", "450", "--timeout", "60") == outbox.rows
    outbox.database.rollback()
    assert outbox.unsent == 400
    with outbox.running():
        outbox.insert(50)
        wait_until(lambda: not outbox.unsent, "they are sent")
    assert outbox.stored("--no-follow") == outbox.rows
    assert sum(consumer.counters()["repeats"] for consumer in cluster.consumers) == 400
    assert outbox.errors.read_text() == ""


def test_a_program_that_is_killed_at_any_moment(outbox: Outbox) -> None:
    for _ in range(6):
        with outbox.running():
            outbox.insert(300)
            before = outbox.unsent
            wait_until(lambda before=before: outbox.unsent < before or not before, "it goes on")  # type: ignore[misc]
    with outbox.running():
        wait_until(lambda: not outbox.unsent, "they are sent")
    assert outbox.stored("--no-follow") == outbox.rows
    assert outbox.number("SELECT COUNT(*) FROM outbox WHERE sent = 1") == 1800
    assert outbox.errors.read_text() == ""


def test_a_row_that_no_node_would_take_is_left_out(outbox: Outbox) -> None:
    with outbox.running():
        outbox.insert(3)
        outbox.database.execute("INSERT INTO outbox (topic, data) VALUES ('orders', ?)", ["x" * 2_000_000])
        outbox.insert(3)
        wait_until(lambda: not outbox.unsent, "they are sent")
    assert outbox.stored("--no-follow") == outbox.rows
    assert outbox.number("SELECT COUNT(*) FROM outbox WHERE sent = -1") == 1


@pytest.mark.slow
def test_a_cluster_that_goes_away_for_a_while(outbox: Outbox, cluster: Cluster) -> None:
    """A program that gives up its messages begins again with the first of them."""
    with outbox.running():
        outbox.insert(30)
        wait_until(lambda: not outbox.unsent, "they are sent")
        for node in cluster.nodes:
            node.terminate()
        outbox.insert(300)
        wait_until(lambda: outbox.errors.read_text() != "", "it has given up", 60)
        for node in reversed(cluster.nodes):
            node.start()
        wait_until(lambda: not outbox.unsent, "they are sent", 60)
    assert outbox.stored("--no-follow") == outbox.rows
    assert "no node answers" in outbox.errors.read_text()
