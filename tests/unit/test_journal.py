"""Log lines: quoting, fields, levels and bursts."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.journal import (
    BURST_LINES,
    MAX_VALUE_CHARACTERS,
    Burst,
    Complaint,
    Formatter,
    configure,
    log,
    quote,
    stderr_is_journal,
)

from ..support.session_pair import many


class Collector(logging.Handler):
    """Keep records as they are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def record(
    event: str, level: int, fields: dict[str, object], *, created: float = 1000.25, error: Any = None
) -> logging.LogRecord:
    """Return the record of an event, at a time that the test chooses."""
    logger, collector = logging.getLogger("test_logs.records"), Collector()
    logger.setLevel(logging.DEBUG)
    logger.handlers[:], logger.propagate = [collector], False
    log(logger, level, event, **fields)
    (made,) = collector.records
    made.created, made.msecs, made.exc_info = created, created % 1 * 1000, error
    return made


def line(
    event: str, level: int = logging.INFO, *, journal: bool = True, error: Any = None, **fields: object
) -> str:
    return Formatter(journal=journal).format(record(event, level, fields, error=error))


def test_a_reason_is_logged_once_until_it_works_or_there_is_another() -> None:
    logger, collector = logging.getLogger("test_logs.complaint"), Collector()
    logger.handlers[:], logger.propagate = [collector], False
    complaint = Complaint()
    for reason in ("no room", OSError("no room"), "gone", "gone", "no room"):
        complaint.log(logger, logging.ERROR, "not kept", topic="news", reason=reason)
    complaint.end()
    complaint.log(logger, logging.ERROR, "not kept", topic="news", reason="no room")
    lines = [each.getMessage() for each in collector.records]
    reasons = ('"no room"', "gone", '"no room"', '"no room"')
    assert lines == [f"not kept topic=news reason={reason}" for reason in reasons]


class TestQuote:
    @pytest.mark.parametrize(
        "value", ["x", "127.0.0.1:10001/producer", "[::1]:80", "a,b", "!#$%&'()*+;<>?@^`{|}~", "\\n", 17, 0.5]
    )
    def test_plain_values(self, value: object) -> None:
        assert quote(value) == str(value)

    @pytest.mark.parametrize(
        ("value", "quoted"),
        [
            *(("", '""'), ("two words", '"two words"'), ('say "hi"', r'"say \"hi\""'), ("ñ", r'"\u00f1"')),
            *(("\0\x1b[31m", r'"\u0000\u001b[31m"'), ("\x80\x9b31m\x9f", r'"\u0080\u009b31m\u009f"')),
            *(("\u2028\u2029\u0085", r'"\u2028\u2029\u0085"'), ("\N{GRINNING FACE}", r'"\ud83d\ude00"')),
        ],
    )
    def test_other_values_are_json_in_ascii(self, value: str, quoted: str) -> None:
        assert quote(value) == quoted
        assert json.loads(quoted) == value

    @pytest.mark.parametrize("character", ["x", " ", "\n", "ñ", "\N{GRINNING FACE}"])
    def test_long_values_are_cut(self, character: str) -> None:
        whole, cut = quote(character * MAX_VALUE_CHARACTERS), quote(character * (MAX_VALUE_CHARACTERS + 1))
        assert (whole if character == "x" else json.loads(whole)) == character * MAX_VALUE_CHARACTERS
        assert json.loads(cut) == character * MAX_VALUE_CHARACTERS + "…"
        assert quote(character * 1_000_000) == cut

    @many
    @given(st.text() | st.text(st.characters(categories=["Cs", "Cc", "Cf"])))
    def test_any_text_becomes_visible_ascii_in_one_line(self, text: str) -> None:
        quoted = quote(text)
        assert re.fullmatch(r"[!-~]+|\"[ -~]*\"", quoted)
        # Two lone surrogates side by side look like the character that they would make as a pair.
        if len(text) <= MAX_VALUE_CHARACTERS and not re.search("[\ud800-\udbff][\udc00-\udfff]", text):
            assert (json.loads(quoted) if quoted.startswith('"') else quoted) == text


class TestFormatter:
    def test_on_a_terminal_a_line_has_time_and_level(self) -> None:
        assert line("link up", journal=False, peer="192.0.2.7:1") == (
            "1970-01-01T00:16:40.250Z INFO link up peer=192.0.2.7:1"
        )

    def test_in_the_journal_a_line_has_the_level_as_a_prefix(self) -> None:
        levels = {
            logging.DEBUG: 7,
            logging.INFO: 6,
            logging.WARNING: 4,
            logging.ERROR: 3,
            logging.INFO + 1: 5,
        }
        for level, number in levels.items():
            assert line("link up", level, peer="x") == f"<{number}>link up peer=x"

    def test_fields_keep_their_order(self) -> None:
        assert line("stopped", zebra=1, ant="a b", empty="") == '<6>stopped zebra=1 ant="a b" empty=""'

    def test_a_record_of_other_code_has_no_fields(self) -> None:
        plain = logging.LogRecord("wsqueue", logging.INFO, __file__, 1, "hello %s", ("you",), None)
        assert Formatter(journal=True).format(plain) == "<6>hello you"

    @pytest.mark.parametrize("journal", [True, False])
    def test_a_record_is_one_line_whatever_is_in_it(self, journal: bool) -> None:
        text = line("a\nb", journal=journal, topic="x\n<0>forged\r\n", reason="\x1b[2J\n")
        assert "\n" not in text
        assert text.isprintable()
        assert "forged" in text

    @pytest.mark.parametrize("journal", [True, False])
    def test_a_traceback_stays_on_the_line(self, journal: bool) -> None:
        try:
            raise ValueError("first\nsecond")  # noqa: TRY301 - it is to have a traceback
        except ValueError:
            text = line("internal error", logging.ERROR, journal=journal, error=sys.exc_info(), peer="x")
        assert text.isprintable()
        head, _, traceback = text.partition(" traceback=")
        assert head.endswith("internal error peer=x")
        shown = json.loads(traceback)
        assert shown.startswith("Traceback (most recent call last):\n")
        assert shown.endswith("ValueError: first\nsecond")

    @many
    @given(st.text(), st.text())
    def test_any_values_are_told_apart(self, one: str, two: str) -> None:
        text = line("event", one=one, two=two)
        assert re.fullmatch(r'<6>event one=("[ -~]*"|[!-~]+) two=("[ -~]*"|[!-~]+)', text)


class TestLog:
    @pytest.fixture
    def logger(self) -> Iterator[logging.Logger]:
        logger = logging.getLogger("test_logs")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(Formatter(journal=True))
        logger.addHandler(handler)
        yield logger
        logger.removeHandler(handler)

    def test_an_event_with_fields(self, logger: logging.Logger) -> None:
        log(logger, logging.WARNING, "hello refused 100%", peer="x y", message="m", name="n", levelname="l")
        expected = '<4>hello refused 100% peer="x y" message=m name=n levelname=l\n'
        assert self.stream.getvalue() == expected

    def test_below_the_level_nothing_is_even_made_text(self, logger: logging.Logger) -> None:
        class Costly:
            def __str__(self) -> str:
                raise AssertionError

        log(logger, logging.DEBUG, "hidden", value=Costly())
        assert self.stream.getvalue() == ""


class TestBurst:
    @staticmethod
    def passed(
        burst: Burst, count: int, event: str = "hello refused", *, at: float
    ) -> list[logging.LogRecord]:
        records = [record(event, logging.INFO, {"peer": "x"}, created=at) for _ in range(count)]
        return [made for made in records if burst.filter(made)]

    def test_in_a_second_only_so_many_pass(self) -> None:
        burst = Burst()
        assert len(self.passed(burst, BURST_LINES, at=1000.0)) == BURST_LINES
        assert self.passed(burst, 5, at=1000.9) == []

    @pytest.mark.parametrize(("suppressed", "said"), [(7, " suppressed=7"), (0, "")])
    def test_the_next_line_says_how_many_were_suppressed(self, suppressed: int, said: str) -> None:
        burst = Burst()
        self.passed(burst, BURST_LINES + suppressed, at=1000.0)
        following = self.passed(burst, 3, at=1001.0) + self.passed(burst, 1, at=1006.0)
        texts = [Formatter(journal=True).format(record) for record in following]
        assert texts == ["<6>hello refused peer=x" + said, *["<6>hello refused peer=x"] * 3]

    def test_events_are_counted_apart(self) -> None:
        burst = Burst()
        self.passed(burst, BURST_LINES + 1, at=1000.0)
        assert len(self.passed(burst, 1, "link up", at=1000.5)) == 1

    def test_a_record_without_fields(self) -> None:
        burst = Burst()
        self.passed(burst, BURST_LINES + 2, "internal error", at=1000.0)
        plain = logging.LogRecord("x", logging.ERROR, __file__, 1, "internal error", None, None)
        assert burst.filter(plain)
        assert Formatter(journal=True).format(plain) == "<3>internal error suppressed=2"


class TestJournal:
    @pytest.fixture
    def stream(self) -> Iterator[IO[str]]:
        read, write = os.pipe()
        with os.fdopen(write, "w") as stream:
            yield stream
        os.close(read)

    @pytest.mark.parametrize(
        ("device", "inode", "expected"), [(0, 0, True), (1, 0, False), (0, 1, False), (-1, 1, False)]
    )
    def test_it_is_the_stream_that_systemd_names(
        self, stream: IO[str], monkeypatch: pytest.MonkeyPatch, device: int, inode: int, expected: bool
    ) -> None:
        status = os.fstat(stream.fileno())
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev + device}:{status.st_ino + inode}")
        assert stderr_is_journal() == expected

    def test_nonsense_or_not_under_systemd(self, stream: IO[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not stderr_is_journal()
        for value in ("", "x", "1", "1:", ":1", "1:2:3", "a:b"):
            monkeypatch.setenv("JOURNAL_STREAM", value)
            assert not stderr_is_journal(), value

    def test_a_stream_that_is_no_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JOURNAL_STREAM", "1:2")
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        assert not stderr_is_journal()


class TestConfigure:
    @pytest.fixture(autouse=True)
    def package(self) -> Iterator[logging.Logger]:
        package = logging.getLogger("wsqueue")
        before = package.handlers[:], package.propagate, package.level
        yield package
        package.handlers[:], package.propagate, level = before
        package.setLevel(level)

    def test_levels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        levels = ["DEBUG", "INFO", "WARNING", "ERROR"]
        for index, level in enumerate(levels):
            monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
            configure(level.lower())
            for name in levels:
                log(logging.getLogger("wsqueue.test"), getattr(logging, name), "event")
            assert [text.split()[1] for text in stream.getvalue().splitlines()] == levels[index:]

    def test_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
        configure("error")
        configure("info")
        log(logging.getLogger("wsqueue.test"), logging.INFO, "once")
        assert stream.getvalue().count("once") == 1

    def test_bursts_are_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
        monkeypatch.setattr("time.time", lambda: 1000.0)
        configure("info")
        for _ in range(BURST_LINES * 3):
            log(logging.getLogger("wsqueue.test"), logging.INFO, "flood")
        assert len(stream.getvalue().splitlines()) == BURST_LINES

    def test_other_loggers_are_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
        configure("debug")
        assert not logging.getLogger("wsqueue").propagate
        logging.getLogger("elsewhere").debug("hidden")
        assert stream.getvalue() == ""
