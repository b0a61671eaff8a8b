from __future__ import annotations

import io
import json
import sys

import pytest

from wsqueue.report.report import TopicStatus
from wsqueue.tools.terminal import (
    json_line,
    one_line,
    prepare_standard_files,
    printable,
    text_of,
    to_stdout,
)


def test_printable() -> None:
    for text in ("", "plain ñ 日本 😀", "a\tb\nc", "\xa0"):
        assert printable(text) == text
    assert printable("\x1b[31mred\x1b]0;title\x07") == "\\x1b[31mred\\x1b]0;title\\x07"
    assert printable("\0\r\b\x0b\x0c\x7f\x80\x9f") == "\\x00\\x0d\\x08\\x0b\\x0c\\x7f\\x80\\x9f"


def test_no_control_character_but_tab_and_line_feed_is_left() -> None:
    everything = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
    left = [character for character in printable(everything) if not character.isprintable()]
    assert left == ["\t", "\n"]


def test_one_line() -> None:
    assert one_line("plain ñ 日本 😀 [b]") == "plain ñ 日本 😀 [b]"
    assert one_line("a\tb\r\nc\x1b[31m\x9b") == "a\\tb\\r\\nc\\x1b[31m\\x9b"
    assert one_line("abc\u202edcba\u200b\udcff") == "abc\\u202edcba\\u200b\\udcff"


def test_json_cannot_steer_a_terminal_either() -> None:
    topic = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x202E, 0xDCFF, 0xFFFF])) + "日本"
    line = json_line({"topics": [TopicStatus(topic, 1.5)]})
    assert line.isprintable()
    assert "日本" in line
    assert json.loads(line) == {"topics": [{"topic": topic, "messages_per_second": 1.5}]}


def test_data_as_text() -> None:
    for text in ("", "ñ 日本 😀\x1b\0", "\\xff"):
        assert text_of(text) == text_of(text.encode()) == text
    assert text_of(b"a\xffb\xc3") == "a\\xffb\\xc3"
    assert text_of(b"\xed\xa0\x80") == "\\xed\\xa0\\x80"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_to_a_terminal_it_is_made_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Screen())
    assert to_stdout("\x1b[31m") == "\\x1b[31m"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert to_stdout("\x1b[31m\0") == "\x1b[31m\0"


def test_closed_standard_files_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    prepare_standard_files()
    assert [stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)] == [0, 1, 2]
