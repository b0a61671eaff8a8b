"""Log lines in the native protocol of the journal, on a socket of ours."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsqueue.journal import Formatter, JournalHandler, log

logger = logging.getLogger("wsqueue.test_journal")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.settimeout(5)
        yield listening


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[JournalHandler]:
    handler = JournalHandler(str(tmp_path / "socket"))
    handler.setFormatter(Formatter(journal=True))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    handler.close()


def fields(datagram: bytes) -> dict[str, str]:
    """Parse one entry: each field is a name, a line feed, the value's length in 8 bytes, and the value."""
    found = {}
    while datagram:
        name, datagram = datagram.split(b"\n", 1)
        length = int.from_bytes(datagram[:8], "little")
        value, datagram = datagram[8 : 8 + length], datagram[8 + length :]
        assert datagram[:1] == b"\n"
        datagram = datagram[1:]
        found[name.decode()] = value.decode()
    return found


def test_a_line_goes_to_the_journal_with_its_fields(
    journal: socket.socket, handler: JournalHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSQUEUE_SYSLOG_IDENTIFIER", "wsqueue-consumer@10001")
    log(logger, logging.WARNING, "link down", peer="192.0.2.7:1/producer", reason="a\nb\udcff", in_flight=3)
    assert fields(journal.recv(65_536)) == {
        "MESSAGE": 'link down peer=192.0.2.7:1/producer reason="a\\nb\\udcff" in_flight=3',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "wsqueue-consumer@10001",
        "WSQUEUE_EVENT": "link down",
        "WSQUEUE_PEER": "192.0.2.7:1/producer",
        "WSQUEUE_REASON": "a\nb\\udcff",
        "WSQUEUE_IN_FLIGHT": "3",
    }


def test_a_line_that_another_wrote(journal: socket.socket, handler: JournalHandler) -> None:
    logger.info("1 > %d", 0)
    entry = fields(journal.recv(65_536))
    assert (entry["MESSAGE"], entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("1 > 0", "6", "wsqueue")


def test_long_values_are_cut(journal: socket.socket, handler: JournalHandler) -> None:
    log(logger, logging.INFO, "hello refused", reason="x" * 100_000)
    assert len(fields(journal.recv(65_536))["WSQUEUE_REASON"]) == 200


def test_without_a_journal_it_goes_to_standard_error(handler: JournalHandler) -> None:
    handler.setStream(stream := io.StringIO())
    log(logger, logging.ERROR, "reload refused", error="no")
    assert stream.getvalue() == "<3>reload refused error=no\n"


def test_a_journal_that_is_stuck_never_blocks(journal: socket.socket, handler: JournalHandler) -> None:
    handler.setStream(stream := io.StringIO())
    for _ in range(10_000):
        log(logger, logging.INFO, "link up")
    assert stream.getvalue().endswith("<6>link up\n")
