"""How commands end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.support.config_files import config_with_key
from wsqueue.cli.common import ExitCode
from wsqueue.cli.main import main
from wsqueue.cli.watch import exit_code
from wsqueue.client.values import Message
from wsqueue.errors import AuthenticationError, ConfigError, ConnectError, InvalidMessage, WsqueueError
from wsqueue.report.report import Report
from wsqueue.report.warnings import OTHER_KEY
from wsqueue.tools.top.snapshot import ClusterSnapshot, NodeSnapshot


def node(problem: str) -> NodeSnapshot:
    report = None if problem else Report(id="1", role="consumer", version="0.1.0", uptime_seconds=1.0)
    return NodeSnapshot(
        address="192.0.2.1:10001", role="consumer", report=report, problem=problem, rates=None
    )


def test_of_a_snapshot() -> None:
    for problems, code in (
        (["", ""], ExitCode.DONE),
        (["", "Connection refused"], ExitCode.FAILED),
        (["", OTHER_KEY], ExitCode.FAILED),
        (["Connection refused", "Connection refused"], ExitCode.NO_ANSWER),
        (["Connection refused", OTHER_KEY], ExitCode.OTHER_KEY),
    ):
        assert exit_code(ClusterSnapshot(0.0, [], [], list(map(node, problems)), [], [])) is code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WsqueueError("a node ended"), ExitCode.FAILED),
        (OSError(28, "No space left on device"), ExitCode.FAILED),
        (InvalidMessage("too long"), ExitCode.WRONG_USAGE),
        (click.UsageError("not both"), ExitCode.WRONG_USAGE),
        (ConfigError("empty"), ExitCode.WRONG_CONFIG),
        (ConnectError("refused"), ExitCode.NO_ANSWER),
        (AuthenticationError("differs"), ExitCode.OTHER_KEY),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
    ],
)
def test_of_an_error(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: ExitCode) -> None:
    @click.command()
    def fails() -> None:
        raise error

    monkeypatch.setitem(main.commands, "fails", fails)
    monkeypatch.setattr("wsqueue.cli.main.discard_output", lambda: None)
    assert CliRunner().invoke(main, ["fails"]).exit_code == code


@pytest.mark.parametrize(
    ("subscribes", "options", "code", "complaint"),
    [
        (False, [], ExitCode.NO_ANSWER, "Error: no consumer has answered within 0.1 seconds\n"),
        (False, ["--count=2"], ExitCode.FAILED, "2 of 2 messages did not come within 0.1 seconds.\n"),
        (True, [], ExitCode.DONE, ""),
        (True, ["--no-follow"], ExitCode.FAILED, "Not all stored messages came within 0.1 seconds.\n"),
    ],
)
def test_of_subscribe_after_its_time(
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    subscribes: bool,
    options: list[str],
    code: ExitCode,
    complaint: str,
) -> None:
    @contextlib.asynccontextmanager
    async def subscription(*_arguments: object, **_options: object) -> AsyncIterator[AsyncIterator[Message]]:
        async def messages() -> AsyncIterator[Message]:
            await asyncio.Event().wait()
            yield Message("news", "")

        if not subscribes:
            await asyncio.Event().wait()
        yield messages()

    monkeypatch.setattr("wsqueue.cli.messages._subscription", subscription)
    text = 'role = "demo"\nproducers = ["127.0.0.1:1/produce"]\nconsumers = ["127.0.0.1:2/subscribe"]\n'
    file = config_with_key(tmp_path, text)
    arguments = ["subscribe", "news", f"--config={file}", "--timeout=0.1", *options]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", complaint)


def test_the_help_has_each() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for code in ExitCode:
        assert f"{code:<3}  {code.meaning}" in text


def test_of_help_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_context: click.Context) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(main, "get_help", fails)
    monkeypatch.setattr("wsqueue.cli.main.discard_output", lambda: None)
    result = CliRunner().invoke(main, ["--help"])
    assert (result.exit_code, result.stderr) == (
        ExitCode.FAILED,
        "Error: [Errno 28] No space left on device\n",
    )
