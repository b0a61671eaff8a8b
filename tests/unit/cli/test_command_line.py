"""The command line in this process: help, wrong command lines, and `check-config`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.certificates import Authority
from tests.support.commands import Result
from tests.support.config_files import config_with_key
from wsqueue.cli.main import main

CONSUMER = 'role = "consumer"\nlisten = ["127.0.0.1:0"]\n'
PRODUCER = 'role = "producer"\nlisten = ["127.0.0.1:0"]\nconsumers = ["192.0.2.7:10001/producer"]\n'
DEMO = 'role = "demo"\nproducers = ["127.0.0.1:1/produce"]\nconsumers = ["127.0.0.1:2/subscribe"]\n'


def run(*arguments: str | Path) -> Result:
    """Run a command."""
    done = CliRunner().invoke(main, list(map(str, arguments)), prog_name="wsqueue")
    return Result(done.exit_code, done.stdout, done.stderr)


def assert_refused(result: Result, code: int, *parts: str) -> None:
    """Check an error: the exit code, nothing on standard output, one sentence on standard error."""
    assert result.code == code, result
    assert result.stdout == ""
    assert result.error.startswith("Error: ")
    for part in parts:
        assert part in result.error


@pytest.mark.parametrize("name", list(main.commands))
def test_help_of_each_command_has_an_example(name: str) -> None:
    code, stdout, stderr = run(name, "--help")
    assert (code, stderr) == (0, "")
    assert f"Usage: wsqueue {name} " in stdout
    assert re.search("^ +Examples?:$", stdout, re.MULTILINE)
    assert re.search(rf"^ +wsqueue {name}\b", stdout, re.MULTILINE)
    assert "\\b" not in stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["consume"], "No such command 'consume'"),
        (["--colour"], "No such option"),
        (["consumer"], "Missing argument 'FILE'"),
        (["publish"], "Missing argument 'TOPIC'"),
        (["publish", "news", "hello", "there"], "unexpected extra argument"),
        (["subscribe"], "Missing argument"),
        (["subscribe", "news", "--count", "0"], "--count"),
        (["subscribe", "news", "--group", "g"], "see `wsqueue work TOPIC --group g -- COMMAND`"),
        (["subscribe", "news", "--from", str(2**53)], "is not a start"),
        (["subscribe", "news", "--from", str(-(2**53))], "is not a start"),
        (["subscribe", "news", "sport", "--from", "0"], "an offset belongs to one topic"),
        (["subscribe", "news", "--prefix", "s/"], "--prefix stands for topics"),
        (["subscribe", "--prefix", "s/", "--reader", "r"], "--prefix stands for topics"),
        (["subscribe", "--prefix", "s/", "--from", "0"], "an offset belongs to one topic"),
        (["subscribe", "news", "--timeout", "soon"], "--timeout"),
        *((["subscribe", "news", "--timeout", text], "--timeout") for text in ("nan", "-nan", "NaN")),
        (["top", "--interval", "nan"], "--interval"),
        (["bench", "--rate", "nan"], "--rate"),
        *(
            (["subscribe", "news", "--from", text], "is not a start")
            for text in ("12:00", "2026-13-01T12:00", "2026-12-31T25:00", "2026-11-25T12:60", "log:", ":1")
        ),
        *(
            (["subscribe", "news", "--from", text], "too near the years 1 or 9999")
            for text in ("0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00")
        ),
        *(
            ([*arguments, "\udcff"], r"'\udcff' is not UTF-8")
            for arguments in (
                *(["topics"], ["groups"], ["groups", "--forget", "news"], ["purge", "--yes"]),
                *(["disconnect"], ["disconnect", "--key"]),
                *(["token", option] for option in ("--who", "--publish", "--subscribe", "--group")),
            )
        ),
        (["disconnect", ""], "ADDRESS has 0 characters: expected 1 to 300"),
        (["disconnect", "--key", 33 * "k"], "--key has 33 characters: expected 1 to 32"),
        (["token", "--status", "--hours", "nan"], "'nan' is not a valid float"),
        *(
            (["subscribe", "news", f"--from={text}"], "-N for the last N messages")
            for text in ("-0", "-x", "--1")
        ),
        (["publish", "news", "x", "--header", "a=1", "--header", "a=2"], "the header 'a' is there twice"),
        (["local", "--consumers", "0"], "--consumers"),
        (["migrate", "consumer.toml"], "Missing option '--from'"),
        (["migrate", "consumer.toml", "--from", "nowhere"], "Directory 'nowhere' does not exist"),
        (["restore", "backup", ".", "--mode", "jetstream"], "'jetstream' is not one of 'sqlite', 'memory'"),
        (["local", "--port", "65536"], "--port"),
        (["work", "news", "--group", "g"], "Missing argument '-- COMMAND [ARG]...'"),
        (["work", "news", "true"], "Missing option '--group'"),
        (["work", "news", "true", "--group", "g", "--parallel", "1001"], "--parallel"),
        (["work", "news", "true", "--group", "g", "--timeout", "0"], "--timeout"),
        (["work", "news", "true", "--group", "g", "--retry-delay", "nan"], "--retry-delay"),
        (["work", "news", "--group", "g", "--", "/dev/null"], "no command '/dev/null'"),
        (
            ["work", "news", "true", "--group", "g", "--parallel", "3", "--prefetch", "2"],
            "--prefetch 2 is too few for --parallel 3",
        ),
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], complaint: str) -> None:
    code, stdout, stderr = run(*arguments)
    assert (code, stdout) == (2, "")
    assert complaint in stderr
    assert "Usage: " in stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "15"], "size is 15: expected at least 16"),
        (["--size", "1048576"], "is too large for max_message_bytes: expected at most 1048543"),
        (["--rate", "nan"], "'nan' is not a valid float"),
        (["--duration", "1", "--count", "1"], "--duration and --count"),
        (["--topics", "4000", "--subscribers", "4"], "would need 16001 connections to one consumer"),
        (["--publishers", "16001"], "would need 16001 connections to one producer: at most 16000"),
        (["--config", "demo.toml", "--consumers", "2"], "--config, which starts no nodes"),
        (["--config", "demo.toml", "--retention", "sqlite"], "--config, which starts no nodes"),
        (["--replay", "--duration", "1"], "--replay can't be used with"),
        (["--replay", "--protocol", "classic"], "--replay can't be used with"),
        (["--batch", "10181"], "--batch 10181 is too large for max_message_bytes: expected at most 10180"),
        (["--plot", "plot.doc"], "plot.doc: expected a name that ends with one of "),
        (["--plot", "none/plot.svg"], "cannot write none/plot.svg: No such file or directory"),
    ],
)
def test_wrong_options_of_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run("bench", *arguments)
    assert (code, stdout) == (2, "")
    assert complaint in stderr
    assert "Usage: " in stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('role = "consumer"\nlisten = [\n', ":4: not TOML: "),
        ('role = "consumer"\n', ": listen: required and missing"),
        (CONSUMER + "[limits]\nmax_connections = 0\n", ":5: limits.max_connections: expected int >= 1"),
        (PRODUCER + "local = true\n", ":4: consumers[0]: "),
        (PRODUCER, ":4: consumers[0]: '192.0.2.7:10001/producer' leads to another host, and without TLS"),
    ],
)
def test_check_config_of_a_bad_file_names_line_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    file = config_with_key(tmp_path, text)
    assert_refused(run("check-config", file), 3, f"Error: {file}{complaint}")


def test_check_config_warns_of_what_is_unwise(tmp_path: Path) -> None:
    consumers = ", ".join(f'"wss://192.0.2.{number}:10001/producer"' for number in range(31))
    text = f'role = "producer"\nlisten = ["127.0.0.1:0"]\nconsumers = [{consumers}]\n'
    code, stdout, stderr = run("check-config", config_with_key(tmp_path, text))
    assert code == 0
    assert "a good configuration" in stdout
    assert stderr.startswith("Warning: consumers: 31 is a multiple of 31")


def test_check_config_of_certificates(tmp_path: Path) -> None:
    tls = Authority(tmp_path).issue("node", days=20)
    text = (
        CONSUMER.replace('listen = ["', 'listen = ["wss://')
        + '[tls]\ncertificate = "node.pem"\nkey = "node.key"\n'
    )
    file = config_with_key(tmp_path, text)
    code, stdout, stderr = run("check-config", file)
    assert code == 0
    assert "a good configuration" in stdout
    assert stderr.startswith(f"Warning: {tls.certificate}: a certificate in it expires on ")
    (tmp_path / "node.key").chmod(0o644)
    for name in ("check-config", "consumer"):
        assert_refused(run(name, file), 3, f"Error: {tls.key}: all users may read the key")
    (tmp_path / "node.pem").write_text("")
    for name in ("check-config", "consumer"):
        assert_refused(run(name, file), 3, f"Error: {tls.certificate}: it holds no certificate")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [(["consumer"], "demo"), (["producer"], "demo"), (["verify", "--config"], "consumer")],
)
def test_a_command_refuses_a_file_for_another_role(tmp_path: Path, arguments: list[str], found: str) -> None:
    file = config_with_key(tmp_path, DEMO if found == "demo" else CONSUMER)
    needs = ", which takes at most " if found == "consumer" else "\n"
    code, stdout, stderr = run("check-config", file)
    assert (code, stderr) == (0, "")
    assert stdout.startswith(f"{file}: a good configuration of role {found}{needs}")
    wanted = arguments[0].replace("verify", "demo")
    assert_refused(run(*arguments, file), 3, f"{file}:2: role: ", f"expected '{wanted}', found '{found}'")
    (tmp_path / "psk").write_text("")
    assert_refused(run("check-config", file), 3, f"Error: {tmp_path}/psk: the pre-shared key is empty")


def test_a_key_that_is_a_credential_of_the_unit_is_not_missed(tmp_path: Path) -> None:
    """Only the unit has it, and the key of nodes alone is a good configuration."""
    file, key = tmp_path / "consumer.toml", tmp_path / "nodes"
    key.write_text("a key of nodes")
    key.chmod(0o600)
    file.write_text(f'{CONSUMER}node_psk_file = "nodes"\n')
    assert run("check-config", file).code == 0
