from __future__ import annotations

import io
import json
import sys

import pytest

from wsqueue.errors import InvalidMessage
from wsqueue.report.report import TopicStatus
from wsqueue.tools.terminal import _decode, json_line, one_line, printable, to_stdout


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain ñ 日本 \N{GRINNING FACE}", "plain ñ 日本 \N{GRINNING FACE}"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\0\r\b\x0b\x0c", "\\x00\\x0d\\x08\\x0b\\x0c"),
        ("\x7f\x80\x9f\xa0", "\\x7f\\x80\\x9f\xa0"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_no_control_character_but_tab_and_line_feed_is_left() -> None:
    everything = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
    left = [character for character in printable(everything) if not character.isprintable()]
    assert left == ["\t", "\n"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ñ 日本 \N{GRINNING FACE} [b]", "plain ñ 日本 \N{GRINNING FACE} [b]"),
        ("a\tb\r\nc", "a\\tb\\r\\nc"),
        ("\x1b[31m\x9b", "\\x1b[31m\\x9b"),
        ("abc\u202edcba\u200b", "abc\\u202edcba\\u200b"),
        ("\udcff", "\\udcff"),
    ],
)
def test_one_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_json_cannot_steer_a_terminal_either() -> None:
    topic = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x202E, 0xDCFF, 0xFFFF])) + "日本"
    line = json_line({"topics": [TopicStatus(topic, 1.5)]})
    assert line.isprintable()
    assert "日本" in line
    assert json.loads(line) == {"topics": [{"topic": topic, "messages_per_second": 1.5}]}


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_to_a_terminal_it_is_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Screen())
    assert to_stdout("\x1b[31m") == "\\x1b[31m"


def test_to_a_pipe_it_is_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert to_stdout("\x1b[31m\0") == "\x1b[31m\0"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"", ""),
        (b"hi", "hi"),
        (b"hi\r", "hi"),
        (b"hi\r\r", "hi\r"),
        (b"\r hi", "\r hi"),
        (b"\0\t", "\0\t"),
        ("\N{GRINNING FACE}".encode(), "\N{GRINNING FACE}"),
    ],
)
def test_a_line_of_input(line: bytes, text: str) -> None:
    assert _decode(line, 1) == text


@pytest.mark.parametrize("line", [b"\xff", b"\xc3", b"\xed\xa0\x80"])
def test_a_line_that_is_not_utf8_is_named(line: bytes) -> None:
    with pytest.raises(InvalidMessage, match=r"^line 7 of standard input is not UTF-8$"):
        _decode(line, 7)
