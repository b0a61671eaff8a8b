"""`publish`, `subscribe` and `demo` in pipes and on terminals."""

from __future__ import annotations

import fcntl
import json
import secrets
import signal
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wsqueue.protocol.routing import topic_hash
from wsqueue.tools.demo import MAX_MISSING_LINES

from ..support.commands import SECONDS, Result, Running, Terminal, run, running, shell
from ..support.processes import Cluster, Node
from ..support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

MAX_MESSAGE_BYTES = 1024 * 1024
ESCAPES = "\x1b[31mred\x07\x7f\x9b1m"
ESCAPED = r"\x1b[31mred\x07\x7f\x9b1m"


@contextmanager
def subscribed(directory: Path, config: str, *arguments: str, links: int = 1) -> Iterator[Running]:
    """Run `subscribe`, which has subscribed already."""
    with running(directory, "-v", "subscribe", config, *arguments) as subscriber:
        subscriber.wait_for("INFO link up", links)
        yield subscriber


def published(directory: Path, config: str, topic: str, data: bytes, *arguments: str) -> list[str]:
    """Publish through standard input, and return the messages before an end mark."""
    mark = secrets.token_hex(8)
    with subscribed(directory, config, "--json", topic) as subscriber:
        assert run("publish", config, topic, *arguments, stdin=data) == (0, "", "")
        # A message through another producer could overtake the messages of this one.
        subscriber.wait_for('"data"', data.count(b"\n") + bool(data.rpartition(b"\n")[2]))
        assert run("publish", config, topic, mark) == (0, "", "")
        subscriber.wait_for(mark)
        lines = subscriber.stdout.split("\n")[:-1]
    return [json.loads(line)["data"] for line in lines if mark not in line]


def test_publish_an_argument(tmp_path: Path, config: str, topic: str) -> None:
    data = ' "ñ" \\ 😀\n'
    with subscribed(tmp_path, config, topic, "--count", "1", "--json") as subscriber:
        assert run("publish", topic, data, config) == (0, "", "")
        assert subscriber.end() == 0
        (line,) = subscriber.stdout.splitlines()
        assert line.startswith(json.dumps({"topic": topic, "data": data}, ensure_ascii=False)[:-1])
        assert sorted(json.loads(line)) == ["data", "log", "offset", "topic"]


@pytest.mark.parametrize("arguments", [["hello"], ["-"], ["--bytes"]])
def test_publish_without_confirmation(tmp_path: Path, config: str, topic: str, arguments: list[str]) -> None:
    with subscribed(tmp_path, config, topic, "--count", "1") as subscriber:
        assert run("publish", "--no-confirm", config, topic, *arguments, stdin=b"hello") == (0, "", "")
        assert subscriber.end() == 0
        assert subscriber.stdout == "hello\n"


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_publish_each_line(tmp_path: Path, config: str, topic: str, dash: list[str]) -> None:
    longest = "x" * (MAX_MESSAGE_BYTES - len(topic))
    lines = ["", "", "one", "", "  a\tb \r inside\x00\x0b\x0c", "ñ 日本\u2028\u0085😀", longest]
    lines += [f"{number} {'x' * (number % 500)}" for number in range(20_000)]
    text = "".join(f"{line}\n" for line in lines).encode() + b"one\r\nthe last\r\r"
    assert published(tmp_path, config, topic, text, *dash) == [*lines, "one", "the last\r"]
    assert published(tmp_path, config, topic, b"", *dash) == []
    result = run("publish", config, topic, *dash, stdin=longest.encode() + b"x\n")
    assert result.code == 2
    assert result.error.startswith("Error: ")


def test_publish_lines_as_they_come(tmp_path: Path, config: str, topic: str) -> None:
    with (
        subscribed(tmp_path, config, topic) as subscriber,
        running(tmp_path, "publish", config, topic) as tail,
    ):
        tail.type("first\nsec")
        subscriber.wait_for("^first$")
        tail.type("ond\nthird")
        subscriber.wait_for("^second$")
        assert tail.end() == 0
        subscriber.wait_for("^third$")


def test_publish_fails_when_it_cannot_be_confirmed(cluster: Cluster, tmp_path: Path) -> None:
    with publishing_to_nobody(cluster, tmp_path) as (publisher, producer):
        publisher.type("one\ntwo\nthree\n")
        producer.kill()
        assert publisher.end() == 4
        # Either end may find out first, because both wait for the same time.
        error = publisher.stderr.splitlines()[-1]
        unanswered = f"Error: no node answers: {producer.address}/produce: "
        assert error.startswith((unanswered, "Error: 3 messages were not confirmed"))
        assert error.endswith("; 1 of 4 lines are confirmed")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_publish_that_is_ended_by_a_signal_waits_for_what_it_has_read(
    cluster: Cluster, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with publishing_to_nobody(cluster, tmp_path) as (publisher, producer):
        publisher.type("".join(f"{line}\n" for line in range(1000)))
        wait_until_read(publisher)
        publisher.process.send_signal(number)
        producer.signal(signal.SIGCONT)
        assert publisher.process.wait(SECONDS) == code  # with standard input still open
        assert publisher.stderr == "Interrupted: 1001 of 1001 lines are confirmed.\n"
    stored = run("subscribe", "--config", cluster.demo_file, "--from", "earliest", "--no-follow", "news")
    assert stored.stdout.splitlines() == ["arrives", *map(str, range(1000))]


def test_publish_ends_at_the_second_signal_whatever_it_waits_for(cluster: Cluster, tmp_path: Path) -> None:
    with publishing_to_nobody(cluster, tmp_path) as (publisher, _producer):
        publisher.type("one\ntwo\n")
        wait_until_read(publisher)
        for _ in range(2):
            publisher.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        assert publisher.end(None) == 143
        assert publisher.stderr == "Interrupted: 1 of 3 lines are confirmed.\n"


@contextmanager
def publishing_to_nobody(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Running, Node]]:
    """Run `publish`, whose producer is stopped once it has got the first line."""
    cluster.start(1, 1)
    (producer,) = cluster.producers
    with running(tmp_path, "publish", "--config", cluster.demo_file, "news") as publisher:
        publisher.type("arrives\n")
        wait_until(lambda: producer.counters()["messages_in"] == 1, "the first line arrives")
        producer.signal(signal.SIGSTOP)
        yield publisher, producer


def wait_until_read(command: Running) -> None:
    """Wait until a command has taken all lines from its standard input."""
    wait_until(lambda: unread_by(command) == 0, "it has read them")
    time.sleep(0.3)  # the thread that reads hands them over


def unread_by(command: Running) -> int:
    """Return how many bytes wait in the pipe from which a command reads."""
    assert command.process.stdin is not None
    return int.from_bytes(fcntl.ioctl(command.process.stdin, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_the_last_messages(config: str, topic: str) -> None:
    assert run("publish", config, topic, stdin=b"one\ntwo\nthree\n") == (0, "", "")
    for start, expected in (("-1", "three\n"), ("-2", "two\nthree\n"), ("-20", "one\ntwo\nthree\n")):
        assert run("subscribe", config, topic, "--from", start, "--no-follow") == (0, expected, "")
    both = run("subscribe", config, topic, f"{topic} two", "--from=-1", "--no-follow")
    assert both == (0, f"{topic}: three\n", "")


def test_a_named_reader_goes_on_where_it_was(config: str, topic: str) -> None:
    def read(name: str, *more: str) -> Result:
        return run("subscribe", config, "--reader", name, "--no-follow", topic, *more)

    assert run("publish", config, topic, stdin=b"one\ntwo\nthree\n") == (0, "", "")
    assert read("mail", "--count", "2") == (0, "one\ntwo\n", "")
    assert read("mail") == (0, "three\n", "")
    assert read("mail") == (0, "", "")
    assert run("publish", config, topic, stdin=b"four\n") == (0, "", "")
    assert json.loads(read("mail", "--json").stdout)["data"] == "four"
    # Another one has a place of its own.
    assert read("audit") == (0, "one\ntwo\nthree\nfour\n", "")
    for result, problem in (
        (read("mail", "news"), "a reader has one topic"),
        (read("a b"), "'a b' is not the name of a reader"),
        (read("mail", "--from", "5"), "5 is not a start of a reader"),
    ):
        assert result.code == 2
        assert problem in result.stderr


@pytest.mark.parametrize("arguments", [["demo"], ["subscribe"], ["subscribe", "--json"]])
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_output_is_utf_8_whatever_the_locale_says(
    tmp_path: Path, config: str, topic: str, arguments: list[str], encoding: str
) -> None:
    with running(tmp_path, "-v", *arguments, config, topic, env={"PYTHONIOENCODING": encoding}) as output:
        output.wait_for("INFO link up")
        assert run("publish", config, topic, "日本 ñ") == (0, "", "")
        output.wait_for("日本 ñ")
        output.end(signal.SIGINT)


@pytest.mark.parametrize("command", ["publish", "demo"])
@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (b"\xed\xa0\x80", "line 3 of standard input is not UTF-8"),
        (b"x" * (MAX_MESSAGE_BYTES + 1), "line 3 "),
        (
            b"x" * (20 * MAX_MESSAGE_BYTES),
            "line 3 of standard input has more than max_message_bytes (1048576)",
        ),
    ],
)
def test_a_line_that_cannot_be_published_is_named(
    config: str, topic: str, command: str, wrong: bytes, complaint: str
) -> None:
    result = run(command, config, topic, stdin=b"one\ntwo\n" + wrong + b"\nfour\n")
    assert result.code == 2
    assert result.error.startswith("Error: ")
    assert complaint in result.error
    outcome = {"publish": "are confirmed", "demo": "have come back"}[command]
    assert result.error.endswith(f"; 2 of the 2 lines before it {outcome}")
    assert result.stdout == {"publish": "", "demo": "one\ntwo\n"}[command]
    stored = run("subscribe", config, topic, "--from=earliest", "--no-follow")
    assert stored.stdout == "one\ntwo\n"


@pytest.mark.parametrize("command", ["publish", "demo"])
def test_standard_input_may_be_closed_or_not_readable(config: str, topic: str, command: str) -> None:
    result = shell(f'exec $wsqueue {command} "{config}" "{topic}" <&-')
    assert result.code in (0, 1, 2)
    assert len(result.stderr.splitlines()) <= 1
    result = shell(f'exec $wsqueue {command} "{config}" "{topic}" 0>/dev/null')
    assert result.code in (1, 2)
    assert result.error.startswith("Error: ")


def test_subscribe_prints_text_as_it_came_into_a_pipe(tmp_path: Path, config: str, topic: str) -> None:
    texts = ("hello", "", "ñ 日本", ESCAPES)
    with subscribed(tmp_path, config, topic, "--count", "4") as subscriber:
        for data in texts:
            assert run("publish", config, topic, data) == (0, "", "")
        assert subscriber.end() == 0
        assert sorted(subscriber.stdout.split("\n")) == sorted([*texts, ""])


def test_subscribe_to_several_topics(tmp_path: Path, config: str, topic: str) -> None:
    topics = [topic, f"{topic}/a", f"{topic} %2F"]
    # One connection for each of the two consumers that has any of them.
    links = len({topic_hash(one) % 2 for one in topics})
    with subscribed(tmp_path, config, "--count", "3", *topics, links=links) as subscriber:
        for one in topics:
            run("publish", config, one, f"on {one}")
        assert subscriber.end() == 0
        assert sorted(subscriber.stdout.splitlines()) == sorted(f"{one}: on {one}" for one in topics)


def test_subscribe_to_a_prefix(tmp_path: Path, config: str, topic: str) -> None:
    topics = [topic, f"{topic}/a", f"{topic} %2F"]
    run("publish", config, topic, "before")
    # Both consumers are asked, whichever have topics with the prefix.
    with subscribed(tmp_path, config, "--count", "3", "--prefix", topic, links=2) as subscriber:
        for one in topics:
            run("publish", config, one, f"on {one}")
        assert subscriber.end() == 0
        assert sorted(subscriber.stdout.splitlines()) == sorted(f"{one}: on {one}" for one in topics)
    assert run("subscribe", config, "--prefix", f"{topic}/", "--from=-1", "--no-follow") == (
        0,
        f"{topic}/a: on {topic}/a\n",
        "",
    )


def test_an_argument_that_cannot_be_published(config: str) -> None:
    for topic, data, complaint in (
        ("x" * 257, "hello", "the topic has 257 bytes, and max_topic_bytes is 256"),
        ("news", "\udcff", "an argument is not UTF-8: --file and --bytes publish bytes of any kind"),
    ):
        result = run("publish", config, topic, data)
        assert (result.code, result.stdout) == (2, "")
        assert complaint in result.error


def test_subscribe_ends_after_a_time(tmp_path: Path, config: str, topic: str) -> None:
    assert run("subscribe", config, topic, "--timeout", "2") == (0, "", "")
    with subscribed(tmp_path, config, topic, "--timeout", "3", "--count", "3") as subscriber:
        run("publish", config, topic, "the only one")
        assert subscriber.end() == 1
        assert subscriber.stdout == "the only one\n"
        assert "2 of 3 messages did not come within 3 seconds." in subscriber.stderr


@pytest.mark.parametrize("arguments", [["subscribe"], ["publish"], ["demo"]])
def test_ctrl_c_exits_with_130(tmp_path: Path, config: str, topic: str, arguments: list[str]) -> None:
    with running(tmp_path, "-v", *arguments, config, topic) as command:
        if arguments == ["publish"]:
            command.type("a line\n")
        command.wait_for("INFO link up")
        command.process.send_signal(signal.SIGINT)
        assert command.end() == 130
        assert command.stdout == ""


@pytest.mark.parametrize("command", ["subscribe", "subscribe --json"])
def test_subscribe_into_a_pipe_that_closes(config: str, topic: str, command: str) -> None:
    script = (
        f'while sleep 0.05; do echo line; done | $wsqueue publish "{config}" "{topic}" 2>/dev/null & '
        f'publisher=$!; $wsqueue {command} "{config}" "{topic}" | head -n 2; kill $publisher'
    )
    result = shell(script)
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr == ""
    # Nothing more comes after the line that `head` wanted.
    script = (
        f'(sleep 1; echo line | $wsqueue publish "{config}" "{topic}") & '
        f'$wsqueue {command} "{config}" "{topic}" | head -n 1'
    )
    result = shell(script)
    assert (result.code, len(result.stdout.splitlines()), result.stderr) == (0, 1, "")
    result = shell(f'(echo line; sleep 60 2>/dev/null &) | $wsqueue demo "{config}" "{topic}" | head -n 1')
    assert (result.stdout.splitlines()[-1], result.stderr) == ("line", "")
    result = shell(f'seq 100000 | $wsqueue demo "{config}" "{topic}" | head -n 2')
    assert (result.stdout.splitlines()[-1], result.stderr) == ("2", "")


@pytest.mark.parametrize("command", ["demo", "subscribe --count 1"])
def test_a_full_disk_is_an_error(config: str, topic: str, command: str) -> None:
    publish = f'(sleep 1; echo hello | $wsqueue publish "{config}" "{topic}") &'
    result = shell(f'{publish} echo hello | $wsqueue {command} "{config}" "{topic}" >/dev/full')
    assert result.code == 1
    assert "No space left on device" in result.error


def test_demo_publishes_what_it_reads_and_prints_what_comes_back(config: str, topic: str) -> None:
    assert run("demo", config, topic) == (0, "", "")
    assert run("demo", config, topic, stdin=b"hello there") == (0, "hello there\n", "")
    text = "same\nsame\n\n😀\x00\x1b[0m\\\n"
    assert run("demo", config, topic, stdin=text.encode()) == (0, text, "")
    lines = "".join(f"{number % 1000}\n" for number in range(5 * MAX_MISSING_LINES))
    assert run("demo", config, topic, stdin=lines.encode()) == (0, lines, "")


def test_demo_says_how_much_was_not_confirmed(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(1, 1, drain_seconds=1)
    with running(tmp_path, "demo", "--config", cluster.demo_file, "news") as demo:
        demo.type("comes back\n")
        demo.wait_for("^comes back$")
        cluster.consumers[0].kill()
        demo.type("one\ntwo\nthree\n")
        assert demo.end() == 4
        assert demo.stdout == "comes back\n"
        assert demo.stderr.splitlines()[-1] == "Error: 3 messages were not confirmed"


def test_demo_on_two_terminals(config: str, topic: str) -> None:
    with Terminal("demo", config, topic) as first, Terminal("demo", config, topic) as second:
        for terminal in (first, second):
            terminal.wait_for(f"Subscribed to {topic}.")
            terminal.wait_for(f"{topic}>")
        first.type("hello\r")
        second.wait_for("hello\r\n")
        # The typed line, and the message that comes back.
        first.wait_for("hello", 2)
        second.type("hi 日本\r")
        first.wait_for("hi 日本")
        assert first.end("\x04") == 0
        second.type("half a line")
        assert second.end("\x03") in (0, 130)


@pytest.mark.parametrize("arguments", [["demo"], ["subscribe"], ["subscribe", "--json"]])
def test_a_message_cannot_steer_a_terminal(config: str, topic: str, arguments: list[str]) -> None:
    steering = f"{topic} \x1b]0;title\x07"
    with Terminal("-v", *arguments, config, steering) as terminal:
        terminal.wait_for("INFO link up")
        assert run("publish", config, steering, f"<{ESCAPES}>") == (0, "", "")
        if "--json" in arguments:
            terminal.wait_for('"data"')
            terminal.wait_for("}")
        else:
            terminal.wait_for(f"<{ESCAPED}>")
        for raw in (b"\x1b[31m", b"\x07", b"\x7f", "\x9b".encode(), b"\x1b]0;"):
            assert raw not in terminal.screen
