"""Start and stop each system in processes of its own, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import msgspec

from wsqueue.config.addresses import Address
from wsqueue.config.load import load_config
from wsqueue.config.model import ClientConfig, RetentionMode
from wsqueue.errors import WsqueueError
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.tools.bench.classic import ClassicWire
from wsqueue.tools.bench.cluster import Protocol, retention_for, wire
from wsqueue.tools.bench.wire import Wire
from wsqueue.tools.bench.workload import Load
from wsqueue.tools.local import LocalCluster

from .results import COMMON, FAN_OUT, GROUPS, HALF, IDLE, MANY, MEMBERS, ONE, REPLAY, SCALING, STORED, TOPICS
from .wires import (
    JetStreamGroupWire,
    JetStreamWire,
    LimitedLoad,
    NatsWire,
    RedisGroupWire,
    RedisStreamWire,
    RedisWire,
)

Found = TypeVar("Found")

START_SECONDS = 20.0
"""Maximum time until a server listens: each needs less than half a second."""

STOP_SECONDS = 10.0
"""Maximum time until a server has ended; then it is killed."""

POLL_SECONDS = 0.02

MAX_PAYLOAD_BYTES = 1024 * 1024
"""The same as the default of wsqueue, far above the largest message that is measured."""

SYNCED_WINDOW = 64
"""Messages on their way to JetStream if it syncs each by itself. With more it is no faster, but it confirms
none before it has synced all that wait, which on a slow disk takes longer than the load generator does."""


@dataclass(frozen=True)
class Running:
    """A system that runs.

    Attributes:
        wire: Wire of the system.
        nodes: Process ids of the nodes by name.
    """

    wire: Wire
    nodes: Mapping[str, int]


@contextlib.asynccontextmanager
async def wsqueue(
    consumers: int = 1,
    load: Load | None = None,
    *,
    protocol: Protocol = "v2",
    mode: RetentionMode = "memory",
) -> AsyncIterator[Running]:
    """Run a producer and consumers, configured as `wsqueue bench` does for the load."""
    retention = retention_for(load or Load(), mode)
    nats_server = Path(_program("nats-server")) if mode == "jetstream" else None
    async with LocalCluster(
        consumers, 1, 0, None, lambda _name, _line: None, retention=retention, nats_server=nats_server
    ) as cluster:
        clients = load_config(cluster.config_file, ClientConfig)
        yield Running(wire(clients, protocol), cluster.pids)


@contextlib.asynccontextmanager
async def reference(consumers: int = 1, *, module: str = "bench.reference") -> AsyncIterator[Running]:
    """Run a producer and consumers of `bench.reference`, or of a module that is started in the same way."""
    secret = secrets.token_urlsafe(24)
    command = (sys.executable, "-m", module)
    async with contextlib.AsyncExitStack() as stack:
        nodes: dict[str, int] = {}

        async def start(name: str, *arguments: str) -> Address:
            process = await stack.enter_async_context(
                _process(*command, *arguments, stdout=asyncio.subprocess.PIPE, REFERENCE_PSK=secret)
            )
            assert process.stdout is not None
            port = b""
            with contextlib.suppress(TimeoutError):
                port = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
            if not port:
                raise WsqueueError(f"the reference's {name} does not start")
            nodes[name] = process.pid
            return Address("127.0.0.1", int(port))

        bound = [await start(f"consumer-{number + 1}", "consumer") for number in range(consumers)]
        producer = await start("producer-1", "producer", *map(str, bound))
        subscribe = [address.with_path("/subscribe") for address in bound]
        yield Running(ClassicWire([producer.with_path("/produce")], subscribe, PreSharedKey(secret)), nodes)


@contextlib.asynccontextmanager
async def nats(
    *,
    frame_each: bool = False,
    jetstream: str | None = None,
    stream_wire: type[JetStreamWire] = JetStreamWire,
) -> AsyncIterator[Running]:
    """Run a NATS server for clients over WebSockets.

    Args:
        frame_each: See `NatsWire`.
        jetstream: Settings of JetStream; None to store nothing.
        stream_wire: Wire for JetStream.
    """
    with TemporaryDirectory(prefix="bench-nats-") as directory:
        file = _write_nats_config(directory, jetstream)
        async with _process(_program("nats-server"), "--config", file) as process:
            ports = Path(directory, f"nats-server_{process.pid}.ports")
            port = await _until(lambda: _websocket_port(ports), process, "nats-server")
            wire = NatsWire("127.0.0.1", port, frame_each)
            if jetstream is not None:
                wire = stream_wire("127.0.0.1", port)
                wire.create_stream()
            yield Running(wire, {"nats-server": process.pid})


@contextlib.asynccontextmanager
async def redis(*, wire: type[RedisWire] = RedisWire) -> AsyncIterator[Running]:
    """Run a Redis server with unlimited buffers for slow subscribers.

    Args:
        wire: With one for streams, these are written into a file, which is synced before a reply; pub/sub has
            none. The file is never rewritten: a child process would do that, whose time is not measured.
    """
    port = _free_port()
    with TemporaryDirectory(prefix="bench-redis-") as directory:
        settings = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": directory,
            "save": "",
            "appendonly": "yes" if issubclass(wire, RedisStreamWire) else "no",
            "appendfsync": "always",
            "auto-aof-rewrite-percentage": "0",
            "client-output-buffer-limit": "pubsub 1gb 512mb 60",
            "maxclients": "15000",
        }
        arguments = [word for key, value in settings.items() for word in (f"--{key}", value)]
        async with _process(_program("redis-server"), *arguments) as process:
            await _until(lambda: _listens(port), process, "redis-server")
            yield Running(wire("127.0.0.1", port), {"redis-server": process.pid})


@dataclass(frozen=True)
class System:
    """A system that can be started.

    Attributes:
        title: Title in tables and plots.
        start: Starts the system, if possible with a number of consumers or for a replay.
        workloads: Workloads at which it is measured.
        program: Name of a command that must be installed; None if nothing must be.
        package: Name of a Python package that must be installed; None if nothing must be.
        batches: True if messages travel together, so that their different sizes do not matter.
        batch: Maximum number of messages of a batch; None for as many as fit.
        window: Maximum number of messages on their way if there is no rate; None for as many as others have.
        members: Subscribers that share the messages of each topic; 0 if the system has no groups.
    """

    title: str
    start: Callable[..., AbstractAsyncContextManager[Running]]
    workloads: Sequence[str]
    program: str | None = None
    package: str | None = None
    batches: bool = False
    batch: int | None = None
    window: int | None = None
    members: int = 0

    def load(self, load: Load) -> Load:
        """Return a load as this system gets it."""
        changes: dict[str, object] = {"batch": self.batch, "most": self.window}
        if self.members:
            changes |= {"subscribers": self.members, "shared": True}
        return LimitedLoad(**msgspec.structs.asdict(load) | changes)


_FLOODS = (ONE, FAN_OUT, TOPICS)
_COMPARED = (*_FLOODS, HALF, COMMON, IDLE)

SYSTEMS = {
    "wsqueue": System("wsqueue", wsqueue, (*_COMPARED, SCALING, REPLAY, *MANY, *GROUPS), batches=True),
    "wsqueue-1": System("wsqueue, one a batch", wsqueue, (ONE,), batches=True, batch=1),
    "wsqueue-sqlite": System(
        "wsqueue, sqlite",
        functools.partial(wsqueue, mode="sqlite"),
        (*_FLOODS, COMMON, REPLAY, STORED, *GROUPS),
        batches=True,
    ),
    "wsqueue-sqlite-1": System(
        "wsqueue, sqlite, one a batch",
        functools.partial(wsqueue, mode="sqlite"),
        (STORED,),
        batches=True,
        batch=1,
    ),
    "wsqueue-jetstream": System(
        "wsqueue, jetstream",
        functools.partial(wsqueue, mode="jetstream"),
        (ONE, STORED, *GROUPS),
        "nats-server",
        batches=True,
    ),
    "wsqueue-jetstream-1": System(
        "wsqueue, jetstream, one a batch",
        functools.partial(wsqueue, mode="jetstream"),
        (STORED,),
        "nats-server",
        batches=True,
        batch=1,
    ),
    "wsqueue-group": System(
        "wsqueue, group",
        functools.partial(wsqueue, protocol="group"),
        tuple(GROUPS),
        batches=True,
        members=MEMBERS,
    ),
    "wsqueue-sqlite-group": System(
        "wsqueue, sqlite, group",
        functools.partial(wsqueue, protocol="group", mode="sqlite"),
        tuple(GROUPS),
        batches=True,
        members=MEMBERS,
    ),
    "wsqueue-jetstream-group": System(
        "wsqueue, jetstream, group",
        functools.partial(wsqueue, protocol="group", mode="jetstream"),
        tuple(GROUPS),
        "nats-server",
        batches=True,
        members=MEMBERS,
    ),
    "wsqueue-classic": System(
        "wsqueue, classic", functools.partial(wsqueue, protocol="classic"), (*_FLOODS, COMMON, *MANY)
    ),
    "reference": System("reference", reference, _COMPARED),
    "reference-picows": System(
        "reference, picows",
        functools.partial(reference, module="bench.reference_picows"),
        _COMPARED,
        package="picows",
    ),
    "nats": System("NATS", nats, (*_COMPARED, *MANY), "nats-server"),
    # The way of publishing to NATS matters for workloads in which publishing is much of the work.
    "nats-frames": System(
        "NATS, a frame each", functools.partial(nats, frame_each=True), (ONE,), "nats-server"
    ),
    "nats-jetstream": System(
        "NATS JetStream, synced every 2 min", functools.partial(nats, jetstream=""), (STORED,), "nats-server"
    ),
    "nats-jetstream-sync": System(
        "NATS JetStream, always synced",
        functools.partial(nats, jetstream="sync_interval: always"),
        (STORED,),
        "nats-server",
        window=SYNCED_WINDOW,
    ),
    "nats-jetstream-group": System(
        "NATS JetStream, pull consumer, synced every 2 min",
        functools.partial(nats, jetstream="", stream_wire=JetStreamGroupWire),
        tuple(GROUPS),
        "nats-server",
        members=MEMBERS,
    ),
    "redis": System("Redis", redis, _COMPARED, "redis-server"),
    "redis-streams": System(
        "Redis Streams, always synced",
        functools.partial(redis, wire=RedisStreamWire),
        (STORED,),
        "redis-server",
    ),
    "redis-streams-group": System(
        "Redis Streams, consumer group, always synced",
        functools.partial(redis, wire=RedisGroupWire),
        tuple(GROUPS),
        "redis-server",
        members=MEMBERS,
    ),
}


INSTALL = {
    "nats-server": "make setup",
    "picows": "make setup",
    "redis-server": "on Debian and Ubuntu: apt-get install redis-server",
}
"""How to get the programs and packages that systems need."""


def check_installed(systems: Iterable[str]) -> None:
    """Check that systems can be started on this machine.

    Raises:
        WsqueueError: One cannot; it says how to get it.
    """
    found = [SYSTEMS[name] for name in systems]
    missing = {system.program for system in found if system.program and _find(system.program) is None}
    missing |= {system.package for system in found if system.package and not _has(system.package)}
    if missing:
        raise WsqueueError(
            f"not installed: {', '.join(f'{name} ({INSTALL[name]})' for name in sorted(missing))}"
        )


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of all systems and libraries."""
    found = {"Python": platform.python_version()}
    found |= {name: metadata.version(name) for name in ("wsqueue", "websockets", "uvloop", "msgspec")}
    systems = [SYSTEMS[name] for name in names]
    found |= {
        system.package: metadata.version(system.package) for system in systems if system.package is not None
    }
    for program in sorted({system.program for system in systems if system.program is not None}):
        output = subprocess.run([_program(program), "--version"], capture_output=True, text=True, check=True)
        match = re.search(r"v=?(\d+\.\d+\.\d+)", output.stdout)
        found[program] = match[1] if match else output.stdout.strip()
    return found


def _find(program: str) -> str | None:
    # A server from a Python package is beside the interpreter, which needn't be in the PATH; Debian installs
    # nats-server in a directory that is only in the PATH of root.
    folders = sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath), "/usr/sbin"
    return shutil.which(program, path=os.pathsep.join(folders))


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _program(program: str) -> str:
    path = _find(program)
    assert path is not None, "check_installed comes first"
    return path


@contextlib.asynccontextmanager
async def _process(
    *command: str, stdout: int = asyncio.subprocess.DEVNULL, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process, and end it."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        # Servers log peers that disconnect, which must not be mixed with our output.
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **environment},
        # Ctrl-C must only reach this process, which then ends the others.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _write_nats_config(directory: str, jetstream: str | None) -> str:
    file = Path(directory, "nats.conf")
    stored = "" if jetstream is None else f'jetstream {{ store_dir: "{directory}", {jetstream} }}'
    file.write_text(
        f"""
        listen: "127.0.0.1:-1"
        max_payload: {MAX_PAYLOAD_BYTES}
        ports_file_dir: "{directory}"
        websocket {{ listen: "127.0.0.1:-1", no_tls: true, compression: false }}
        {stored}
        """
    )
    return str(file)


async def _until(
    found: Callable[[], Found | None], process: asyncio.subprocess.Process, program: str
) -> Found:
    """Call `found` until it returns a value, and return that.

    Raises:
        WsqueueError: The process has ended, or does not start in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while process.returncode is None and time.monotonic() < deadline:
        result = found()
        if result is not None:
            return result
        await asyncio.sleep(POLL_SECONDS)
    raise WsqueueError(f"{program} does not start")


def _websocket_port(file: Path) -> int | None:
    """Return the port from the file that a NATS server writes once it listens, None before that."""
    try:
        (address,) = json.loads(file.read_text())["websocket"]
    except (FileNotFoundError, ValueError):
        return None
    return int(address.rpartition(":")[2])


def _listens(port: int) -> bool | None:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return None
    return True


def _free_port() -> int:
    """Return a free port, because Redis can't choose one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
