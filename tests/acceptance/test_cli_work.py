"""`work`: a command for each message of a worker group."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wsqueue.tools.work import KILL_SECONDS

from ..support.commands import SECONDS, Result, Running, Terminal, is_alive, kill_all, run, running
from ..support.processes import Cluster
from ..support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

SHOW = 'echo "$(cat) $WSQUEUE_DELIVERIES"'
UNTIL_GO = "until [ -e go ]; do sleep 0.02; done"
IDLE = ("--idle-seconds", "2")


def publish(config: str, topic: str, *lines: str, header: str = "") -> None:
    """Publish lines in their order."""
    options = ["--header", header] if header else []
    data = "".join(f"{line}\n" for line in lines).encode()
    assert run("publish", config, topic, *options, stdin=data) == (0, "", "")


def arguments(config: str, topic: str, script: str, *options: str) -> list[str]:
    return ["work", config, topic, "--group=g", *options, "--", "sh", "-c", script]


def work(
    directory: Path, config: str, topic: str, script: str, *options: str, env: dict[str, str] | None = None
) -> Result:
    """Run a script for each message, in a directory, until the worker ends."""
    return run(*arguments(config, topic, script, *options), cwd=directory, env=env)


@contextmanager
def working(directory: Path, config: str, topic: str, script: str, *options: str) -> Iterator[Running]:
    """Run a worker in the background, and always end its commands, which write their ids to `pids`."""
    script = f'cd "{directory}"; echo $$ >> pids; {script}'
    try:
        with running(directory, *arguments(config, topic, script, *options)) as worker:
            yield worker
    finally:
        kill_all(pids(directory))


def pids(directory: Path) -> list[int]:
    """Return the ids that commands have written."""
    file = directory / "pids"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def lines_of(result: Result) -> list[str]:
    assert result.code == 0, result
    return sorted(result.stdout.splitlines())


def summary(stderr: str) -> str:
    return stderr.splitlines()[-1]


def left(directory: Path, config: str, topic: str, count: int = 0) -> list[str]:
    """Be done with the messages that are left, `count` of them, and return them with their deliveries."""
    # Messages that were lent before come first, so that none is left when this one comes.
    publish(config, topic, "mark")
    found = lines_of(work(directory, config, topic, SHOW, f"--count={count + 1}"))
    assert "mark 1" in found
    return [line for line in found if line != "mark 1"]


def test_a_message_is_done_or_lent_again_or_a_dead_letter(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, "good", "bad", "killed", "late")
    script = f"""{SHOW} > "$WSQUEUE_OFFSET"; cat "$WSQUEUE_OFFSET"
    case $(cat "$WSQUEUE_OFFSET") in
    bad*) exit 3;; killed*) kill -9 $$;; "late 1") exit 1;;
    esac"""
    result = work(tmp_path, config, topic, script, "--retry-delay=0", "--max-deliveries=2", *IDLE)
    assert lines_of(result) == ["bad 1", "bad 2", "good 1", "killed 1", "killed 2", "late 1", "late 2"]
    assert summary(result.stderr) == "2 done, 5 failed"
    failed = rf'WARNING command failed topic="{topic}" group=g offset=\d+'
    reasons = re.findall(rf"{failed} deliveries=1 again_seconds=0 reason=(.+)", result.stderr)
    assert len(re.findall(rf"{failed} deliveries=2 again_seconds=never reason=", result.stderr)) == 2
    assert sorted(reasons) == ['"exit code 1"', '"exit code 3"', '"signal 9"']
    assert "bad" not in result.stderr
    letters = run("subscribe", config, f"{topic}!g!dead", "--from=earliest", "--no-follow")
    assert sorted(letters.stdout.split()) == ["bad", "killed"]
    assert left(tmp_path, config, topic) == []


def test_each_delivery_is_a_run(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, *map(str, range(20)))
    options = ("--retry-delay=0", "--max-deliveries=3", "--parallel=4", *IDLE)
    result = work(tmp_path, config, topic, f"{SHOW}; exit 1", *options)
    assert lines_of(result) == sorted(f"{number} {run}" for number in range(20) for run in (1, 2, 3))
    assert summary(result.stderr) == "0 done, 60 failed"


def test_the_data_is_standard_input_byte_by_byte(tmp_path: Path, config: str, topic: str) -> None:
    sent = [b"", bytes(range(256)) * 5, b"\n", os.urandom(1_000_000)]
    for data in sent:
        assert run("publish", config, topic, "--bytes", stdin=data) == (0, "", "")
    publish(config, topic, "ñ 日本 \\ \x1b")
    for group, reader in (("g", "cat"), ("path", "cat /dev/stdin")):
        script = f'{reader} > "$WSQUEUE_OFFSET.data"'
        result = run(
            *("work", config, topic, f"--group={group}", "--count=5", "--", "sh", "-c", script), cwd=tmp_path
        )
        assert result == (0, "", "5 done, 0 failed\n")
        files = sorted(tmp_path.glob("*.data"), key=lambda file: int(file.stem))
        assert [file.read_bytes() for file in files] == [*sent, "ñ 日本 \\ \x1b".encode()]
        for file in files:
            file.unlink()


def test_a_command_need_not_read_its_input(tmp_path: Path, config: str, topic: str) -> None:
    assert run("publish", config, topic, "--bytes", stdin=bytes(1_000_000)) == (0, "", "")
    assert work(tmp_path, config, topic, "exit 0", "--count=1") == (0, "", "1 done, 0 failed\n")


def test_a_command_has_standard_files_alone(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, "one")
    # The last one is that with which the list is read.
    assert lines_of(work(tmp_path, config, topic, "ls /proc/self/fd", "--count=1")) == list("0123")


def test_the_environment(tmp_path: Path, config: str, topic: str) -> None:
    headers = {"content-type": "image/png", "ñ.1": "日 本", "a-b": "first", "A_B": "last"}
    options = [option for name, value in headers.items() for option in ("--header", f"{name}={value}")]
    assert run("publish", config, topic, "hello", *options).code == 0
    own = {"WSQUEUE_PSK": "our secret", "CREDENTIALS_DIRECTORY": "/nowhere", "WSQUEUE_HEADER_OLD": "old"}
    own |= {"OTHER": "stays", "LC_ALL": "C"}
    result = work(tmp_path, config, topic, "env", "--count=1", env=own)
    found = dict(line.split("=", 1) for line in lines_of(result))
    assert found["OTHER"] == "stays"
    assert {name: value for name, value in found.items() if "WSQUEUE_HEADER" in name} == {
        "WSQUEUE_HEADER_CONTENT_TYPE": "image/png",
        "WSQUEUE_HEADER___1": "日 本",
        "WSQUEUE_HEADER_A_B": "last",
    }
    names = ("WSQUEUE_TOPIC", "WSQUEUE_GROUP", "WSQUEUE_DELIVERIES")
    assert [found[name] for name in names] == [topic, "g", "1"]
    assert found["WSQUEUE_OFFSET"].isdecimal()
    assert not {"WSQUEUE_PSK", "CREDENTIALS_DIRECTORY"} & set(found)
    assert "our secret" not in result.stdout + result.stderr


def test_commands_run_at_a_time(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, *"123456")
    # Each waits for another one, so that it never ends alone, and counts those that run.
    script = """mkdir -p run; touch "run/$WSQUEUE_OFFSET" "begun.$WSQUEUE_OFFSET"
    until [ $(ls begun.* | wc -l) -ge 2 ]; do sleep 0.02; done
    ls run | wc -l; rm "run/$WSQUEUE_OFFSET" """
    result = work(tmp_path, config, topic, script, "--parallel=2", "--count=6")
    counts = lines_of(result)
    assert len(counts) == 6
    assert set(counts) <= {"1", "2"}
    assert summary(result.stderr) == "6 done, 0 failed"


def test_order(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, *"12345", header="account=a")
    script = 'data=$(cat); test "$data$WSQUEUE_DELIVERIES" != 21 && echo "$data"'
    result = work(
        tmp_path, config, topic, script, "--parallel=4", "--order-key=account", "--count=5", "--retry-delay=0"
    )
    assert (result.code, result.stdout.split()) == (0, list("12345"))
    assert summary(result.stderr) == "5 done, 1 failed"


def test_it_ends_after_a_number_of_messages(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, *"12345")
    result = work(tmp_path, config, topic, SHOW, "--count=3", "--parallel=4")
    assert len(lines_of(result)) == 3
    assert result.stderr == "3 done, 0 failed\n"
    assert len(left(tmp_path, config, topic, 2)) == 2


def test_it_ends_when_nothing_comes(tmp_path: Path, config: str, topic: str) -> None:
    assert work(tmp_path, config, topic, SHOW, *IDLE) == (0, "", "0 done, 0 failed\n")
    publish(config, topic, "slow")
    # While it runs, the worker is not idle: it could fail, as it does.
    script = "sleep 3; test $WSQUEUE_DELIVERIES = 2"
    result = work(tmp_path, config, topic, script, *IDLE, "--parallel=2", "--retry-delay=0")
    assert (result.code, summary(result.stderr)) == (0, "1 done, 1 failed")


def test_a_group_may_begin_at_the_latest_message(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, "old")
    assert work(tmp_path, config, topic, SHOW, *IDLE, "--from=latest").stdout == ""


def test_a_lease_is_renewed_while_the_command_runs(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, "long")
    with working(
        tmp_path, config, topic, f"{SHOW}; {UNTIL_GO}", "--lease-seconds=0.3", "--count=1"
    ) as worker:
        worker.wait_for("^long 1$")
        # Many times the lease.
        idle = work(tmp_path, config, topic, SHOW, *IDLE)
        assert idle == (0, "", "0 done, 0 failed\n")
        (tmp_path / "go").touch()
        assert worker.end() == 0
        assert (worker.stdout, worker.stderr) == ("long 1\n", "1 done, 0 failed\n")
    assert left(tmp_path, config, topic) == []


def test_a_command_that_takes_too_long(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, "long")
    options = ("--timeout=0.3", "--retry-delay=0", "--count=1")
    # All processes that it has started end with it.
    script = "test $WSQUEUE_DELIVERIES = 2 && exit; sleep 60 & echo $! >> pids; wait"
    with working(tmp_path, config, topic, script, *options) as worker:
        assert worker.end() == 0
        assert summary(worker.stderr) == "1 done, 1 failed"
        assert 'reason="no end within 0.3 seconds"' in worker.stderr
        assert not any(map(is_alive, pids(tmp_path)))


def test_a_signal_lets_the_commands_end_and_loses_nothing(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, "1", "2", "3")
    with working(tmp_path, config, topic, f"{SHOW}; {UNTIL_GO}", "--prefetch=3") as worker:
        worker.wait_for("^1 1$")
        worker.process.send_signal(signal.SIGTERM)
        # Others get the messages at once that it has not begun, as if it had never had them.
        assert work(tmp_path, config, topic, SHOW, "--count=2").stdout == "2 1\n3 1\n"
        publish(config, topic, "4")
        assert work(tmp_path, config, topic, SHOW, "--count=1").stdout == "4 1\n"
        assert worker.process.poll() is None
        (tmp_path / "go").touch()
        assert worker.process.wait(SECONDS) == 143
        assert (worker.stdout, worker.stderr) == ("1 1\n", "1 done, 0 failed\n")
    assert left(tmp_path, config, topic) == []


def test_the_second_signal_kills_the_commands(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, "gentle", "stubborn")
    script = (
        'case $(cat) in stubborn) trap "" TERM;; esac; echo begun; sleep 60 & echo $! >> pids; wait; wait'
    )
    with working(tmp_path, config, topic, script, "--parallel=2", "--retry-delay=0") as worker:
        worker.wait_for("^begun$", 2)
        wait_until(lambda: len(pids(tmp_path)) == 4, "both run")
        worker.process.send_signal(signal.SIGINT)
        # The one behind the first signal would be waited for, so only the second one ends it.
        with pytest.raises(AssertionError):
            wait_until(lambda: worker.process.poll() is not None, "the worker ends", 0.5)
        worker.process.send_signal(signal.SIGINT)
        wait_until(lambda: sum(map(is_alive, pids(tmp_path))) == 2, "the gentle one ends", KILL_SECONDS)
        assert worker.process.wait(SECONDS) == 130
        assert summary(worker.stderr) == "0 done, 2 failed"
        assert not any(map(is_alive, pids(tmp_path)))
    assert left(tmp_path, config, topic, 2) == ["gentle 2", "stubborn 2"]


def test_the_message_of_a_worker_that_is_killed_goes_to_another(
    tmp_path: Path, config: str, topic: str
) -> None:
    publish(config, topic, "one")
    with working(tmp_path, config, topic, f"{SHOW}; exec sleep 60") as worker:
        worker.wait_for("^one 1$")
        worker.process.kill()
        assert work(tmp_path, config, topic, SHOW, "--count=1").stdout == "one 2\n"


def test_a_message_is_done_though_the_consumer_is_away(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(1, 1, retention={"mode": "sqlite"})
    config, (consumer,) = f"--config={cluster.demo_file}", cluster.consumers
    publish(config, "jobs", "one")
    with working(tmp_path, config, "jobs", f"{SHOW}; {UNTIL_GO}; echo ends", "--count=1") as worker:
        worker.wait_for("^one 1$")
        consumer.kill()
        (tmp_path / "go").touch()
        worker.wait_for("^ends$")
        consumer.start()
        assert worker.end() == 0
        assert summary(worker.stderr) == "1 done, 0 failed"
    assert left(tmp_path, config, "jobs") == []


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_message_that_is_lent_again_while_its_command_runs_is_not_run_twice(
    cluster: Cluster, tmp_path: Path, parallel: int
) -> None:
    cluster.start(1, 1, retention={"mode": "sqlite"})
    config, (consumer,) = f"--config={cluster.demo_file}", cluster.consumers
    publish(config, "jobs", "one")
    script = f'data=$(cat); echo "$data begins"; [ $data = mark ] || {UNTIL_GO}; echo "$data ends"'
    with working(tmp_path, config, "jobs", script, f"--parallel={parallel}") as worker:
        worker.wait_for("^one begins$")
        consumer.terminate()
        consumer.start()
        # The consumer has forgotten that it has lent the first message, and lends it before the mark.
        wait_until(lambda: consumer.counters()["group_deliveries"] == 1, "it is lent again")
        publish(config, "jobs", "mark")
        if parallel == 2:
            worker.wait_for("^mark ends$")
        (tmp_path / "go").touch()
        worker.wait_for("^mark ends$")
        worker.wait_for("^one ends$")
        assert worker.end(signal.SIGTERM) == 143
        assert sorted(worker.stdout.splitlines()) == ["mark begins", "mark ends", "one begins", "one ends"]
        assert summary(worker.stderr) == "2 done, 0 failed"
    assert left(tmp_path, config, "jobs") == []


def test_a_worker_that_stood_still_does_not_run_a_command_again(cluster: Cluster, tmp_path: Path) -> None:
    """The message is lent to it again and again meanwhile, though it has no other member."""
    cluster.start(1, 1, retention={"mode": "sqlite"})
    config, (consumer,) = f"--config={cluster.demo_file}", cluster.consumers
    publish(config, "jobs", "one")
    script = f'data=$(cat); echo "$data begins"; [ $data = mark ] || {UNTIL_GO}'
    options = ("--lease-seconds=0.2", "--max-deliveries=1000", "--count=2")
    with working(tmp_path, config, "jobs", script, *options) as worker:
        worker.wait_for("^one begins$")
        worker.process.send_signal(signal.SIGSTOP)
        (tmp_path / "go").touch()
        (command,) = pids(tmp_path)
        wait_until(lambda: not is_alive(command), "the command ends")
        before = consumer.counters()["group_deliveries"]
        wait_until(lambda: consumer.counters()["group_deliveries"] > before + 3, "it is lent again")
        publish(config, "jobs", "mark")
        worker.process.send_signal(signal.SIGCONT)
        assert worker.end() == 0
        assert worker.stdout == "one begins\nmark begins\n"


def test_a_command_that_is_not_there(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, "one")
    file = tmp_path / "command"
    for content, complaint in ((None, "no command"), ("no program", "no command")):
        if content is not None:
            file.write_text(content)
        result = run("work", config, topic, "--group=g", "--", file)
        assert (result.code, result.stdout) == (2, "")
        assert summary(result.stderr).startswith(f"Error: {complaint} '{file}': expected a program ")
    file.write_text("#!/nowhere/interpreter\n")
    file.chmod(0o755)
    result = run("work", config, topic, "--group=g", "--retry-delay=0", "--", file)
    assert (result.code, result.stdout) == (2, "")
    assert summary(result.stderr) == f"Error: cannot start {file}: No such file or directory"
    assert "0 done, 0 failed" in result.stderr
    assert left(tmp_path, config, topic, 1) == ["one 2"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--group=!"], "'!' is not the name of a group"),
        (["--group=g", "--order-key="], "'' is not the name of a header"),
    ],
)
def test_a_wrong_name(config: str, topic: str, options: list[str], complaint: str) -> None:
    result = run("work", config, topic, *options, "--", "true")
    assert (result.code, result.stdout) == (2, "")
    assert complaint in result.stderr
    assert "Usage: " in result.stderr


def test_progress_on_a_terminal(tmp_path: Path, config: str, topic: str) -> None:
    publish(config, topic, "one")
    script = f'cd "{tmp_path}"; {UNTIL_GO}'
    with Terminal(*arguments(config, topic, script, "--count=1")) as terminal:
        terminal.wait_for("\r\x1b[K0 done, 0 failed, 1 running, 0 messages/s", 2)
        (tmp_path / "go").touch()
        assert terminal.end() == 0
        assert terminal.screen.endswith(b"\r\x1b[K1 done, 0 failed\r\n")
