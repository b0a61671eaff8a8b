"""Make the log of a consumer as large as you like, and measure starts: `python -m bench.big_log DIRECTORY`.

The directory must not be a node's. The log is made once, by the code that a consumer stores messages with.
Then a consumer is started on it, after a clean stop and after it was killed. The times are those until its
page answers, the memory is that of the process then.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from wsqueue.config.model import Retention
from wsqueue.log.archive import FILE_NAME
from wsqueue.log.database import Database
from wsqueue.log.records import Record

GROUP_RECORDS = 20_000
"""Records of one transaction."""

UNLIMITED = 2**40

CONFIG = """
role = "consumer"
listen = ["127.0.0.1:{port}"]
psk_file = "psk"
local = true
[retention]
mode = "sqlite"
directory = "{directory}"
max_bytes = {limit}
max_bytes_per_topic = {limit}
max_messages_per_topic = {limit}
max_age_seconds = 8640000.0
"""


def groups(records: int, size: int, topics: int) -> Iterator[list[Record]]:
    """Yield records of some topics in turns, each with one message of one of ten publishers."""
    now = time.time()
    numbers = itertools.count()
    while records > 0:
        count = min(records, GROUP_RECORDS)
        records -= count
        yield [
            Record(
                f"topic {number % topics}", number // topics, 1, now, f"{number % 10:022}", number + 1, packet
            )
            for number in itertools.islice(numbers, count)
            for packet in [b"%0*d" % (size, number)]
        ]


def fill(directory: Path, records: int, size: int, topics: int) -> None:
    """Write a log."""
    limits = Retention(
        max_bytes=UNLIMITED,
        max_bytes_per_topic=UNLIMITED,
        max_messages_per_topic=UNLIMITED,
        max_age_seconds=8_640_000.0,
    )
    # It need not survive a power cut, and is written several times as fast.
    database = Database(directory / FILE_NAME, limits, durable=False)
    database.open()
    for group in groups(records, size, topics):
        database.commit(group)
    database.close()


class Node:
    """A consumer on a log, as a process of its own."""

    def __init__(self, directory: Path, work: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        (work / "psk").write_text("big log\n")
        (work / "psk").chmod(0o600)
        config = work / "consumer.toml"
        config.write_text(CONFIG.format(port=self._port, directory=directory, limit=UNLIMITED))
        self.began = time.monotonic()
        self.process = subprocess.Popen([sys.executable, "-m", "wsqueue", "consumer", str(config)])

    def log(self) -> dict[str, Any]:
        """Return the part of the node's report about its log."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/status.json", timeout=5) as answer:
            log = json.load(answer)["log"]
        assert isinstance(log, dict)
        return log

    def wait(self, *, checked: bool) -> float:
        """Wait until it answers, and perhaps until its log is checked; return the seconds since its start."""
        while self.process.poll() is None:
            try:
                if not (self.log()["unchecked"] and checked):
                    return time.monotonic() - self.began
            except OSError:
                pass
            time.sleep(0.02)
        raise click.ClickException("the consumer ended")

    @property
    def resident_mib(self) -> int:
        """Return the MiB of memory that it has now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

    def end(self, number: int) -> None:
        """End it with a signal."""
        self.process.send_signal(number)
        self.process.wait()


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--records", default=40_000_000, show_default=True)
@click.option("--size", default=200, show_default=True, help="Bytes of a packet.")
@click.option("--topics", default=100, show_default=True)
def main(directory: Path, records: int, size: int, topics: int) -> None:
    """Fill a log in DIRECTORY unless there is one, and measure starts on it."""
    log = directory / "log"
    if not (log / FILE_NAME).exists():
        began = time.monotonic()
        fill(log, records, size, topics)
        click.echo(f"{records} records written in {time.monotonic() - began:.0f} s")
    click.echo(f"{(log / FILE_NAME).stat().st_size / 1e9:.2f} GB")
    node = Node(log, directory)
    node.wait(checked=True)
    for how, number in (("a clean stop", signal.SIGTERM), ("SIGKILL", signal.SIGKILL)):
        node.end(number)
        node = Node(log, directory)
        seconds = node.wait(checked=False)
        memory, left = node.resident_mib, node.log()["unchecked"]
        click.echo(f"after {how}: ready in {seconds:.2f} s, {memory} MiB, {left} records to check")
    click.echo(f"checked in {node.wait(checked=True):.0f} s, {node.resident_mib} MiB")
    node.end(signal.SIGTERM)


if __name__ == "__main__":
    main()
