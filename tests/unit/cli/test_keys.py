"""The commands that make keys and tokens."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.toml import write_toml
from wsqueue.cli.common import ExitCode
from wsqueue.cli.main import main
from wsqueue.config.tokens import Token

CLIENT = {"role": "demo", "producers": ["127.0.0.1:1/produce"], "consumers": ["127.0.0.1:2/subscribe"]}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text("a key")
    (tmp_path / "key").chmod(0o600)
    file = tmp_path / "demo.toml"
    write_toml(file, CLIENT | {"name": "billing", "psk_file": "key"})
    return file


def test_a_key_is_random_and_its_owners_alone(tmp_path: Path) -> None:
    keys = {run("keygen").output for _ in range(3)}
    assert len(keys) == 3
    assert {len(key) for key in keys} == {44}
    file = tmp_path / "key"
    assert run("keygen", "--output", str(file)).output == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert len(text) == 44
    again = run("keygen", "--output", str(file))
    assert (again.exit_code, file.read_text()) == (ExitCode.FAILED, text)
    assert again.output == f"Error: {file} is there already: expected the name of a new file\n"
    nowhere = run("keygen", "--output", str(tmp_path / "no" / "key"))
    assert nowhere.output == f"Error: cannot write {tmp_path}/no/key: No such file or directory\n"


def test_a_token(config: Path) -> None:
    options = ["--who", "alice", "--publish", "a/*", "--publish", "b", "--subscribe", "c", "--hours", "2"]
    claims = Token(run("token", "--config", str(config), *options).output).claims
    assert (claims.key, claims.who) == ("billing", "alice")
    assert (claims.publish, claims.subscribe, claims.status) == (("a/*", "b"), ("c",), False)
    assert not claims.operator
    operator = Token(run("token", "--config", str(config), "--operator").output).claims
    assert (operator.operator, operator.status, operator.publish) == (True, False, ())
    assert claims.expires - claims.issued == 7200
    file = config.parent / "token"
    run("token", "--config", str(config), *options, "--output", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Token(file.read_text()).claims.who == "alice"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--publish", "a*b"], "publish has 'a*b': expected a topic, or its beginning and one *"),
        (["--status", "--who", "x" * 65], "who"),
        (["--status", "--hours", "0"], "--hours"),
        ([], "a token without rights is of no use"),
    ],
)
def test_values_that_cannot_be_used(config: Path, options: list[str], problem: str) -> None:
    result = run("token", "--config", str(config), *options)
    assert result.exit_code == ExitCode.WRONG_USAGE
    assert problem in result.output


def test_a_token_makes_no_token(config: Path) -> None:
    token = config.parent / "token"
    token.write_text(Token.make("a key").text)
    token.chmod(0o600)
    write_toml(config, CLIENT | {"token_file": "token"})
    result = run("token", "--config", str(config), "--status")
    assert result.exit_code == ExitCode.WRONG_CONFIG
    assert "a token makes no tokens" in result.output
