"""Findings about the NATS servers that keep a shared log, as this host reaches them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ...config.addresses import parse_server
from ...config.model import ClientConfig, ConsumerConfig
from ...errors import ConfigError
from ...log.engine import StreamState, Unanswered
from ...net.certificates import TlsContexts
from ...report.text import amount, join, number
from ...report.warnings import ADVICE
from .cluster import Say
from .findings import Finding, Verdict, expiry, renew

if TYPE_CHECKING:
    from ...log.jetstream import JetStreamEngine

SERVER_SECONDS = 8.0
"""Maximum time to connect to a server."""

LOOK_SECONDS = 15.0
"""Maximum time until the state of all streams is known."""

PAGE_SECONDS = 2.0
"""Maximum time for the page of a server on this host."""

PAGE_PORT = 8222
"""Usual port of the pages of a NATS server."""

MAX_PAGE_BYTES = 1024 * 1024
"""Maximum size of such a page."""


async def engine_findings(
    file: str, checked: ConsumerConfig, is_here: Callable[[str], bool], say: Say
) -> AsyncIterator[Finding]:
    """Check the servers of a shared log, and their streams.

    Args:
        file: The subject of the findings.
        checked: Configuration of a consumer that shares a log.
        is_here: Returns True if a host is this one.
        say: Called with the name of each check when it begins.
    """
    jetstream = checked.retention.jetstream
    assert jetstream is not None
    try:
        # Only here, because most hosts do without its package.
        from ...log.jetstream import JetStreamEngine  # noqa: PLC0415
    except ConfigError as error:
        yield Finding(
            "problem", file, f"{_capital(error.problem)}.", "Install it in the environment of the node."
        )
        return
    for finding in _file_findings(file, checked):
        yield finding
        if finding.state == "problem" and finding.text.startswith("The certificates cannot"):
            return
    engines = []
    for server in jetstream.servers:
        alone = msgspec.structs.replace(jetstream, servers=[server])
        retention = msgspec.structs.replace(checked.retention, jetstream=alone)
        engines.append(JetStreamEngine(retention, max_message_bytes=checked.limits.max_message_bytes))
    say(f"asking {number(len(engines), 'NATS server')}")
    try:
        answers = await asyncio.gather(*(_connect(engine) for engine in engines))
        async for finding in _servers_findings(file, jetstream.servers, answers, is_here):
            yield finding
        good = [engine for engine, answer in zip(engines, answers, strict=True) if isinstance(answer, str)]
        if good:
            say("looking at the streams of the log")
            yield await _streams_finding(file, good[0], jetstream.replicas)
    finally:
        for engine in engines:
            await engine.close()


def _file_findings(file: str, checked: ConsumerConfig) -> Iterator[Finding]:
    """Check the certificates and their key; the connections check passwords."""
    jetstream = checked.retention.jetstream
    assert jetstream is not None
    try:
        contexts = TlsContexts(ClientConfig(producers=[], consumers=[], tls=jetstream.tls))
    except ConfigError as error:
        text = f"The certificates cannot be used for the shared log: {error.file}: {error.problem}."
        yield Finding("problem", file, text, "See [retention.jetstream] in docs/configuration.md.")
        return
    for where, end in contexts.ends_of_files.items():
        state, words = expiry(end, datetime.now(UTC))
        yield Finding(state, file, f"The certificate in {where} {words}.", renew(state))


async def _connect(engine: JetStreamEngine) -> str | ConfigError | Unanswered:
    """Return the name and version of a server, or the reason why it can't be used."""
    try:
        async with asyncio.timeout(SERVER_SECONDS):
            await engine.connect()
    except TimeoutError:
        return Unanswered("no answer in time")
    except (ConfigError, Unanswered) as error:
        return error
    return engine.server


async def _servers_findings(
    file: str,
    servers: Sequence[str],
    answers: Sequence[str | ConfigError | Unanswered],
    is_here: Callable[[str], bool],
) -> AsyncIterator[Finding]:
    names = [answer for answer in answers if isinstance(answer, str)]
    refusals = [str(answer) for answer in answers if isinstance(answer, ConfigError)]
    for server, answer in zip(servers, answers, strict=True):
        if isinstance(answer, Unanswered):
            reason = str(answer).removeprefix(f"{server}: ")
            state: Verdict = "warning" if names else "problem"
            text = f"The NATS server {server} cannot be reached: {reason}."
            yield Finding(state, file, text, "See whether it runs, its name, its port and the firewalls.")
        elif isinstance(answer, ConfigError):
            problem = f"{answer.file}: {answer.problem}" if answer.file else answer.problem
            text = f"The NATS server {server} cannot be used: {problem}."
            yield Finding("problem", file, text, "Correct it there, or in [retention.jetstream].")
        elif is_here(parse_server(server).host) and (found := await _sync_finding(file, answer)) is not None:
            yield found
    if names and not refusals:
        yield Finding("ok", file, f"The log can be used through {join(names)}.")


async def _sync_finding(file: str, server: str) -> Finding | None:
    """Look whether a server on this host waits for its disk; None if its page doesn't say so."""
    page = await _page("/varz")
    name = server.rpartition(" ")[0]
    settings = (page.get("jetstream") or {}).get("config")
    if page.get("server_name") != name or not isinstance(settings, dict) or "sync_interval" not in settings:
        return None
    if settings.get("sync_always"):
        return Finding("ok", file, f"The NATS server {name} confirms messages when its disk has them.")
    return Finding(
        "problem",
        file,
        f"The NATS server {name} confirms messages before its disk has them; a power failure loses them.",
        "Set `sync_interval: always` in the table jetstream of its configuration.",
    )


async def _page(path: str) -> dict[str, Any]:
    """Return a page of the NATS server on this host, {} if there is none."""
    with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.LimitOverrunError):
        async with asyncio.timeout(PAGE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", PAGE_PORT)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                answer = b""
                while (part := await reader.read(MAX_PAGE_BYTES)) and len(answer) < MAX_PAGE_BYTES:
                    answer += part
            finally:
                writer.close()
        found = json.loads(answer.partition(b"\r\n\r\n")[2])
        return found if isinstance(found, dict) else {}
    return {}


async def _streams_finding(file: str, engine: JetStreamEngine, wanted: int) -> Finding:
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            states = await engine.look()
    except ConfigError as error:
        text = f"The log is another one than configured: {error.problem}."
        return Finding("problem", file, text, "Give all consumers the table with which the log was made.")
    except Unanswered as error:
        return Finding(
            "problem", file, f"A part of the log does not answer: {error}.", ADVICE["log_unavailable"]
        )
    except TimeoutError:
        return Finding("problem", file, "The log does not answer in time.", ADVICE["log_unavailable"])
    return streams_finding(file, states, wanted)


def streams_finding(file: str, states: Sequence[StreamState | None], wanted: int) -> Finding:
    """Judge the streams of a shared log; None stands for one that is missing."""
    found = [state for state in states if state is not None]
    if not found:
        return Finding("ok", file, "The log does not exist yet: the first consumer that starts makes it.")
    streams = number(len(states), "stream")
    if len(found) < len(states):
        text = f"{len(found)} of {streams} of the log exist."
        return Finding("warning", file, text, "Restart a consumer, which makes the others; or restore them.")
    least = min(state.replicas for state in found)
    if least < wanted:
        text = f"{least} of {number(wanted, 'server')} that keep a part of the log can be reached."
        return Finding("warning", file, text, ADVICE["replica_missing"])
    leaders = Counter(state.leader for state in found)
    led = join([f"{name} ({count})" for name, count in sorted(leaders.items())])
    size = amount(sum(state.bytes for state in found))
    kept = f"{streams} with {size}, each on {number(wanted, 'server')}"
    return Finding("ok", file, f"The log has {kept}; they are led by {led}.")


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
