"""The command line of the conformance checks, as far as it needs no implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conformance.__main__ import main


@pytest.mark.parametrize("role", ["consumer", "producer", "client"])
def test_help_is_laid_out(role: str) -> None:
    done = CliRunner().invoke(main, [role, "--help"])
    assert done.exit_code == 0
    assert "\\b" not in done.output
    if role == "client":
        assert "\n  subscribe TOPIC START   subscribe to a topic;" in done.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["127.0.0.1"], "'127.0.0.1' is not an address: expected host:port"),
        (["ws://127.0.0.1:1"], "is not an address"),
        (["127.0.0.1:1/producer"], "is not an address"),
        (["wss://127.0.0.1:1"], "the checks do without TLS"),
        (["127.0.0.1:1", "--only", "zzz"], "no check of a consumer has 'zzz' in its name"),
    ],
)
def test_wrong_command_lines(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    key = tmp_path / "psk"
    key.write_text("key\n")
    done = CliRunner().invoke(main, ["consumer", *arguments, "--psk-file", str(key)])
    assert done.exit_code == 2
    assert complaint in " ".join(done.output.split())


def test_a_key_that_is_no_text(tmp_path: Path) -> None:
    key = tmp_path / "psk"
    key.write_bytes(b"\xff\xfe")
    done = CliRunner().invoke(main, ["consumer", "127.0.0.1:1", "--psk-file", str(key)])
    assert done.exit_code == 2
    assert "is not UTF-8" in done.output
