"""`publish` and `subscribe` with bytes, files and headers."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from ..support.commands import SECONDS, Terminal, run, running, shell
from .test_cli_messages import ESCAPED, ESCAPES, MAX_MESSAGE_BYTES, subscribed, wait_until_read

pytestmark = pytest.mark.timeout(120)

ANY_BYTES = bytes(range(256))


def stored(config: str, topic: str) -> list[dict[str, Any]]:
    """Return all messages of a topic, as `subscribe --json` prints them."""
    result = run("subscribe", config, topic, "--json", "--from=earliest", "--no-follow")
    assert (result.code, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("size", [0, 1, 70_000, "most"])
@pytest.mark.parametrize("way", ["--file", "--bytes"])
def test_any_bytes_come_as_they_are(
    tmp_path: Path, config: str, topic: str, size: int | str, way: str
) -> None:
    data = random.Random(7).randbytes(MAX_MESSAGE_BYTES - len(topic) if size == "most" else int(size))
    file = tmp_path / "data"
    file.write_bytes(data)
    with subscribed(tmp_path, config, "--raw", "--count", "1", topic) as subscriber:
        if way == "--file":
            assert run("publish", config, topic, "--file", file) == (0, "", "")
        else:
            assert run("publish", config, "--bytes", topic, stdin=data) == (0, "", "")
        assert subscriber.end() == 0
        assert subscriber.stdout_bytes == data
    (message,) = stored(config, topic)
    assert list(message) == ["topic", "data_base64", "log", "offset"]
    assert (message["topic"], base64.b64decode(message["data_base64"])) == (topic, data)


def test_raw_output_has_nothing_between(tmp_path: Path, config: str, topic: str) -> None:
    (tmp_path / "data").write_bytes(ANY_BYTES)
    assert run("publish", config, topic, "--file", tmp_path / "data") == (0, "", "")
    assert run("publish", config, topic, stdin="ñ\n\n\x1b[0m\x00\n".encode()) == (0, "", "")
    assert run("publish", config, topic, "--bytes", stdin=b"a line\n") == (0, "", "")
    with running(tmp_path, "subscribe", config, topic, "--raw", "--from=earliest", "--no-follow") as all_of:
        assert all_of.end() == 0
        assert all_of.stdout_bytes == ANY_BYTES + "ñ\x1b[0m\x00a line\n".encode()


def test_bytes_are_shown_as_text_with_escapes(tmp_path: Path, config: str, topic: str) -> None:
    published = {
        "ñ 日本 😀".encode(): "ñ 日本 😀",
        b"\xff": "\\xff",
        b"a\xc3b\xed\xa0\x80": "a\\xc3b\\xed\\xa0\\x80",
        b"": "",
    }
    for data in published:
        assert run("publish", config, topic, "--bytes", stdin=data) == (0, "", "")
    lines = list(published.values())
    result = run("subscribe", config, topic, "--from=earliest", "--no-follow")
    assert result == (0, "".join(f"{line}\n" for line in lines), "")
    both = run("subscribe", config, topic, topic, "--from=earliest", "--no-follow")
    assert both == (0, "".join(f"{topic}: {line}\n" for line in lines), "")


@pytest.mark.parametrize("command", ["demo", "subscribe"])
def test_bytes_cannot_steer_a_terminal(config: str, topic: str, command: str) -> None:
    with Terminal("-v", command, config, topic) as terminal:
        terminal.wait_for("INFO link up")
        assert run("publish", config, topic, "--bytes", stdin=f"<{ESCAPES}>".encode()) == (0, "", "")
        terminal.wait_for(f"<{ESCAPED}>")
        assert run("publish", config, topic, "--bytes", stdin=b"<\x9b31m\xff>") == (0, "", "")
        terminal.wait_for(r"<\x9b31m\xff>")
        for raw in (b"\x1b[31m", b"\x07", b"\x7f", b"\x9b"):
            assert raw not in terminal.screen


def test_demo_prints_bytes_of_others(tmp_path: Path, config: str, topic: str) -> None:
    with running(tmp_path, "-v", "demo", config, topic) as demo:
        demo.wait_for("INFO link up")
        demo.type("first\n")
        demo.wait_for("^first$")
        assert run("publish", config, topic, "--bytes", stdin=b"of \xff another") == (0, "", "")
        demo.wait_for(r"^of \\xff another$")
        demo.type("last\n")
        assert demo.end() == 0
        assert demo.stdout == "first\nof \\xff another\nlast\n"


def test_headers_come_with_each_message(config: str, topic: str) -> None:
    value = 'ñ "a=b"\n=\x1b'
    options = ["--header", f"one={value}", "--header", "two=", "--header", "ñ=last"]
    expected = {"one": value, "two": "", "ñ": "last"}
    assert run("publish", config, topic, "an argument", *options) == (0, "", "")
    assert run("publish", config, topic, *options, stdin=b"line 1\nline 2\n") == (0, "", "")
    assert run("publish", config, topic, "--bytes", *options, stdin=b"\xff") == (0, "", "")
    assert run("publish", config, topic, "without") == (0, "", "")
    *some, last = stored(config, topic)
    assert [message["headers"] for message in some] == [expected] * 4
    assert [message.get("data") for message in some] == ["an argument", "line 1", "line 2", None]
    assert list(some[0]) == ["topic", "data", "log", "offset", "headers"]
    assert list(some[3]) == ["topic", "data_base64", "log", "offset", "headers"]
    assert list(last) == ["topic", "data", "log", "offset"]


@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        (["name"], "'name' is not a header: expected NAME=VALUE"),
        ([""], "'' is not a header: expected NAME=VALUE"),
        (["=value"], "the name of a header has 0 characters, expected 1 to 64"),
        (["n" * 65 + "="], "the name of a header has 65 characters, expected 1 to 64"),
        (["name=" + "x" * 1025], "the header name has 1025 characters, at most 1024"),
        ([f"{number}=" for number in range(17)], "the message has 17 headers, at most 16"),
        (["name=\udcff"], "an argument is not UTF-8"),
        (["name=1", "name=2"], "the header 'name' is there twice"),
    ],
)
def test_headers_that_cannot_be(config: str, topic: str, headers: list[str], complaint: str) -> None:
    result = run("publish", config, topic, "data", *(f"--header={header}" for header in headers))
    assert (result.code, result.stdout) == (2, "")
    assert complaint in " ".join(result.stderr.split())
    assert stored(config, topic) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["publish", "t", "data", "--bytes"], "DATA, --file and --bytes each say what to publish"),
        (["publish", "t", "data", "--file", "FILE"], "DATA, --file and --bytes each say what to publish"),
        (["publish", "t", "--bytes", "--file", "FILE"], "DATA, --file and --bytes each say what to publish"),
        (["publish", "t", "--file", "DIRECTORY"], "is a directory"),
        (["publish", "t", "--file", "MISSING"], "does not exist"),
        (["publish", "t", "--file"], "requires an argument"),
        (["subscribe", "t", "--json", "--raw"], "--json and --raw are two forms of output"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, config: str, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    paths = {"FILE": tmp_path / "file", "DIRECTORY": tmp_path, "MISSING": tmp_path / "none"}
    command, *others = [paths.get(argument, argument) for argument in arguments]
    result = run(command, config, *others)
    assert (result.code, result.stdout) == (2, "")
    assert complaint in " ".join(result.stderr.split())


def test_bytes_that_are_too_long(tmp_path: Path, config: str, topic: str) -> None:
    file = tmp_path / "data"
    for size, complaint in (
        (
            MAX_MESSAGE_BYTES - len(topic) + 1,
            "1048577 bytes with its topic and headers, and max_message_bytes is 1048576",
        ),
        (MAX_MESSAGE_BYTES + 1, f"has more than max_message_bytes ({MAX_MESSAGE_BYTES})"),
        (20 * MAX_MESSAGE_BYTES, f"has more than max_message_bytes ({MAX_MESSAGE_BYTES})"),
    ):
        file.write_bytes(bytes(size))
        for result in (
            run("publish", config, topic, "--file", file),
            run("publish", config, topic, "--bytes", stdin=bytes(size)),
        ):
            assert (result.code, result.stdout) == (2, "")
            assert complaint in result.error
    # Nobody knows how long it is.
    result = run("publish", config, topic, "--file", "/dev/zero")
    assert result.code == 2
    assert result.error == f"Error: /dev/zero has more than max_message_bytes ({MAX_MESSAGE_BYTES})"
    result = shell(f'$wsqueue publish "{config}" "{topic}" --bytes </dev/zero')
    assert result.code == 2
    assert result.error == f"Error: standard input has more than max_message_bytes ({MAX_MESSAGE_BYTES})"
    assert stored(config, topic) == []


def test_a_file_that_fails_while_it_is_read(config: str, topic: str) -> None:
    # Nothing is mapped at the beginning of the memory of a process.
    result = run("publish", config, topic, "--file", "/proc/self/mem")
    assert (result.code, result.error) == (1, "Error: /proc/self/mem: Input/output error")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all files")
def test_a_file_that_may_not_be_read(tmp_path: Path, config: str, topic: str) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"x")
    file.chmod(0)
    result = run("publish", config, topic, "--file", file)
    assert result.code == 2
    assert "is not readable" in " ".join(result.stderr.split())


def test_bytes_of_standard_input_that_is_closed_or_not_readable(config: str, topic: str) -> None:
    result = shell(f'exec $wsqueue publish "{config}" "{topic}" --bytes <&-')
    assert result.code in (0, 1, 2)
    assert len(result.stderr.splitlines()) <= 1
    result = shell(f'exec $wsqueue publish "{config}" "{topic}" --bytes 0>/dev/null')
    assert result.code in (1, 2)
    assert result.error.startswith("Error: ")


def test_bytes_are_published_when_standard_input_ends(tmp_path: Path, config: str, topic: str) -> None:
    with running(tmp_path, "publish", config, topic, "--bytes") as publisher:
        publisher.type("one\n")
        wait_until_read(publisher)
        publisher.type("two")
        wait_until_read(publisher)
        assert stored(config, topic) == []
        assert publisher.end() == 0
    assert [base64.b64decode(message["data_base64"]) for message in stored(config, topic)] == [b"one\ntwo"]


def test_half_of_standard_input_is_not_published_after_a_signal(
    tmp_path: Path, config: str, topic: str
) -> None:
    with running(tmp_path, "publish", config, topic, "--bytes") as publisher:
        publisher.type("one\n")
        wait_until_read(publisher)
        publisher.process.send_signal(signal.SIGTERM)
        assert publisher.process.wait(SECONDS) == 143
    assert stored(config, topic) == []


@pytest.mark.parametrize("form", ["", "--raw", "--json"])
def test_a_pipe_that_is_read_slowly_gets_all(tmp_path: Path, config: str, topic: str, form: str) -> None:
    (tmp_path / "data").write_bytes(b"x" * 500_000)
    for _ in range(2):
        assert run("publish", config, topic, "--file", tmp_path / "data") == (0, "", "")
    command = f'$wsqueue subscribe "{config}" "{topic}" {form} --from=earliest --no-follow'
    result = shell(f"{command} >{tmp_path}/whole; {command} | (sleep 1; cmp - {tmp_path}/whole)")
    assert result == (0, "", "")
    assert (tmp_path / "whole").stat().st_size >= 1_000_000


def test_raw_output_into_a_pipe_that_closes(tmp_path: Path, config: str, topic: str) -> None:
    (tmp_path / "data").write_bytes(b"x" * 500_000)
    assert run("publish", config, topic, "--file", tmp_path / "data") == (0, "", "")
    result = shell(f'$wsqueue subscribe "{config}" "{topic}" --raw --from=earliest | head -c 10')
    assert (result.stdout, result.stderr) == ("x" * 10, "")
    result = shell(f'$wsqueue subscribe "{config}" "{topic}" --raw --from=earliest --count 1 >/dev/full')
    assert result.code == 1
    assert "No space left on device" in result.error
