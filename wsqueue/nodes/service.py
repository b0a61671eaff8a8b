"""The life of a node's process: start, serve, reload, drain, stop."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import logging
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec
import uvloop

from ..config.addresses import Address
from ..config.check import config_warnings
from ..config.keys import Keys, load_keys
from ..config.load import load_config
from ..config.model import NodeConfig
from ..errors import ConfigError, ListenError, why
from ..journal import log
from ..monitoring.endpoint import StatusEndpoint
from ..monitoring.pages import ONLY_PAGES, Pages
from ..monitoring.reporter import Reporter
from ..net.certificates import TlsContexts
from ..net.connection import Connection, Handler
from ..protocol import v2
from ..protocol.close import UNREACHABLE, CloseCode, Closed
from ..protocol.framing import HttpResponse
from ..report.report import Facts
from ..report.stats import TopTopics
from ..version import __version__
from .limits import SPARE_CONNECTIONS, open_files_wanted
from .listener import LISTEN_BACKLOG, Listener, _Refused, somebody_listens
from .systemd import Notifier

logger = logging.getLogger(__name__)


RECONNECTS_PER_SECOND = 2000.0
"""How many clients may come back in a second after a restart: what a node can greet, with room to spare."""

MAX_RETRY_SECONDS = 60.0
"""The longest time over which clients are asked to come back."""

KEPT_BYTES = 8 * 1024 * 1024
"""Freed memory that the process keeps: the buffers of some reads and writes, at 256 KiB each."""

STATUS = "/status"
"""The endpoint for reports, for nodes and clients that know the key."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""


class Node(Protocol):
    """Say what a service needs of a producer or a consumer."""

    role: str
    top_topics: TopTopics
    config_type: ClassVar[type[NodeConfig]]
    counters: Counter[str]

    def __init__(
        self,
        config: Any,  # noqa: ANN401 - the node's own kind
        keys: Keys,
        counters: Counter[str],
        tls: TlsContexts,
    ) -> None: ...

    def endpoint(self, path: str) -> Handler | HttpResponse:
        """Return what serves a path."""
        ...

    def facts(self, window_seconds: float) -> Facts:
        """Return how the node is, at length."""
        ...

    async def start(self) -> None:
        """Begin to work; the node takes connections after that."""
        ...

    def not_ready(self) -> str:
        """Return why the node is not ready, "" when it is."""
        ...

    def status(self) -> str:
        """Return how the node is, in a few words."""
        ...

    def reload(self, config: Any, keys: Keys, tls: TlsContexts) -> None:  # noqa: ANN401 - as above
        """Use a new configuration from now on."""
        ...

    async def drain(self) -> None:
        """Wait until all that was taken in has gone out."""
        ...

    async def stop(self) -> None:
        """Close everything that the node opened."""
        ...

    def abort(self) -> None:
        """Cut everything that the node opened, so that `stop` has nothing to wait for."""
        ...


class Service:
    """Run one node.

    Args:
        file: The configuration, read again on SIGHUP.
        kind: `Consumer` or `Producer`.

    Raises:
        ConfigError: The configuration, a key or a certificate cannot be used.
    """

    def __init__(self, file: str | Path, kind: type[Node]) -> None:
        self._file, self._config_type = file, kind.config_type
        self._config: NodeConfig = load_config(file, self._config_type)
        self._keys = load_keys(self._config)
        self._tls = TlsContexts(self._config)
        self._counters: Counter[str] = Counter()
        self.node = kind(self._config, self._keys, self._counters, self._tls)
        self.connections: set[Connection] = set()
        self._reporter = Reporter(
            self.node.role,
            self.node.facts,
            counters=self._counters,
            connections=self.connections,
        )
        self._reporter.not_ready = self._not_ready
        self._status_endpoint = StatusEndpoint(self._reporter)
        self._pages = Pages(self._reporter)
        for part in (self._reporter, self._pages):
            part.configure(self._config, self._keys, self._tls)
        self._listeners: dict[Address, Listener] = {}
        self._stopping = asyncio.Event()
        self._deadline: asyncio.Timeout | None = None
        self._waiting: tuple[set[Connection], asyncio.Future[None]] | None = None
        self._notifier = Notifier()

    @property
    def addresses(self) -> list[Address]:
        """Return where the node listens, with the ports that the system chose for port 0."""
        return [
            bound
            for listener in self._listeners.values()
            if not listener.pages_only
            for bound in listener.bound()
        ]

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a second one ends the drain at once.

        Raises:
            ListenError: A listener cannot be opened.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_exception)
        reload_wanted = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGHUP, reload_wanted.set)
        loop.add_signal_handler(signal.SIGUSR1, self._log_counters)
        await self.start()
        reloading, *others = (
            loop.create_task(self._reload_on(reload_wanted)),
            loop.create_task(self._tell_manager()),
            loop.create_task(self._reporter.watch(self.node.top_topics.turn)),
        )
        await self._stopping.wait()
        reloading.cancel()
        self._notifier.stopping()
        await self.drain()
        for task in others:
            task.cancel()

    def stop(self) -> None:
        """Begin to drain, or end the drain."""
        if self._deadline is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time())
        self._stopping.set()

    async def start(self) -> None:
        """Begin to work, then listen.

        Raises:
            ConfigError: The node cannot use its directory.
            StorageError: Its disk is full or does not work.
            ListenError: A listener cannot be opened.
        """
        self._warn_of_limits()
        await self.node.start()
        try:
            await self._listen(self._config)
        except ListenError:
            self.node.abort()
            await self.node.stop()
            raise
        log(
            logger,
            logging.INFO,
            "started",
            role=self.node.role,
            version=__version__,
            listen=",".join(map(str, self.addresses)),
        )

    async def reload(self) -> None:
        """Read the configuration again; when it is wrong, say so and go on with the old one."""
        try:
            new = load_config(self._file, self._config_type)
            keys = load_keys(new)
            tls = TlsContexts(new)
            await self._listen(new)
        except (ConfigError, ListenError) as error:
            log(logger, logging.ERROR, "reload refused", error=error)
            return
        self._config, self._keys, self._tls = new, keys, tls
        logging.getLogger("wsqueue").setLevel(new.log_level.upper())
        self.node.reload(new, keys, tls)
        for part in (self._reporter, self._pages):
            part.configure(new, keys, tls)
        self._warn_of_limits()
        log(logger, logging.INFO, "reloaded", file=self._file)

    async def drain(self) -> None:
        """Stop accepting, let what came in go out, close every connection; within `drain_seconds`."""
        log(logger, logging.INFO, "draining", connections=len(self.connections))
        began = time.monotonic()
        self._stop_listening()
        self._pages.stop()
        retry_seconds = len(self.connections) / RECONNECTS_PER_SECOND
        for connection in self.connections:
            if connection.session.v2:
                connection.send_packet(v2.Draining(min(retry_seconds, MAX_RETRY_SECONDS)))
        try:
            async with asyncio.timeout(self._config.limits.drain_seconds) as self._deadline:
                await self._close(_sends_messages)
                await self.node.drain()
                await self._close(lambda _connection: True)
                await self.node.stop()
        except TimeoutError:
            log(logger, logging.WARNING, "drain cut short", connections=len(self.connections))
            for connection in list(self.connections):
                connection.abort(CloseCode.GOING_AWAY)
            self.node.abort()
            await self.node.stop()
        self._deadline = None
        self._log_counters()
        log(logger, logging.INFO, "stopped", seconds=f"{time.monotonic() - began:.3f}")

    def endpoint(self, listener: Listener, connection: Connection, path: str) -> Handler | HttpResponse:
        """Return what serves a request: a page of every node, or an endpoint of this one."""
        path = path.partition("?")[0]
        all_pages = listener.pages_only or self._pages.allowed(connection)
        page = self._pages.answer(path, all_pages=all_pages)
        if page is not None or listener.pages_only:
            return page or ONLY_PAGES
        if len(self.connections) > self._config.limits.max_connections:
            self._counters["connections_refused"] += 1
            return HttpResponse(503, "This node has all the connections that it may have.\n")
        if path == STATUS:
            return self._status_endpoint
        return self.node.endpoint(path)

    def _not_ready(self) -> str:
        return "draining" if self._stopping.is_set() else self.node.not_ready()

    def _accept(self, listener: Listener) -> asyncio.Protocol:
        tls = listener.address.tls
        limits = self._config.limits
        full = len(self.connections) >= limits.max_connections + SPARE_CONNECTIONS
        # A reload opens listeners before it uses their certificate, and closes them after.
        if full or (tls and not self._tls.accepts):
            self._counters["connections_refused"] += 1
            return _Refused()
        stream = self._tls.accept() if tls else None
        connection = Connection.accept(
            listener.endpoint, self._keys, self._config, self._lost, stream, counters=self._counters
        )
        self.connections.add(connection)
        self._counters["connections"] += 1
        return connection

    def _lost(self, connection: Connection, closed: Closed) -> None:
        self.connections.discard(connection)
        if self._waiting is not None:
            waiting, done = self._waiting
            waiting.discard(connection)
            if not waiting and not done.done():
                done.set_result(None)
        if connection.established:
            violation = closed.code >= 1002 and not closed.by_peer and not self._stopping.is_set()
            level = logging.WARNING if violation else logging.DEBUG
            log(logger, level, "connection closed", peer=connection.peer, reason=closed)
        elif closed.code == UNREACHABLE:
            self._counters["tls_refused"] += 1
            self._reporter.refused("tls_refused", connection.peer)
            log(logger, logging.WARNING, "TLS refused", peer=connection.peer, reason=closed)
        elif connection.handler is not None or closed.code == CloseCode.HELLO_TIMEOUT:
            # A code that the peer chose must not make a counter of its own.
            counter = "refused_by_peer" if closed.by_peer else f"refused_{closed.code}"
            self._counters[counter] += 1
            # A browser opens connections in advance, of which some are never used.
            if connection.handler is not None:
                self._reporter.refused(counter, connection.peer)
            level = logging.INFO if self._stopping.is_set() else logging.WARNING
            log(logger, level, "hello refused", peer=connection.peer, reason=closed)
        else:
            log(logger, logging.DEBUG, "request answered", peer=connection.peer, reason=closed)

    async def _reload_on(self, wanted: asyncio.Event) -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            self._notifier.reloading()
            await self.reload()
            self._notifier.ready(self._status())

    async def _tell_manager(self) -> None:
        """Feed the service manager's watchdog from the event loop, so that it notices when that hangs."""
        self._notifier.ready(self._status())
        while True:
            await asyncio.sleep(self._notifier.interval_seconds)
            self._notifier.alive(self._status())

    def _status(self) -> str:
        draining = "draining, " if self._stopping.is_set() else ""
        return f"{draining}{self.node.status()}, {len(self.connections)} connections"

    async def _listen(self, configured: NodeConfig) -> None:
        pages = configured.page_listeners
        wanted = configured.listeners + pages
        opened: dict[Address, Listener] = {}
        turned: dict[Address, Listener] = {}
        try:
            for address in wanted:
                if address in self._listeners:
                    continue
                other = msgspec.structs.replace(address, tls=not address.tls)
                if other in self._listeners and other not in wanted:
                    turned[address] = self._listeners[other]
                else:
                    opened[address] = await self._open(address)
        except OSError as error:
            for listener in opened.values():
                listener.close()
            raise ListenError(f"cannot listen on {address}: {why(error)}") from None
        for address, listener in turned.items():
            del self._listeners[listener.address]
            listener.address = address
        self._listeners |= turned | opened
        for address in set(self._listeners).difference(wanted):
            self._listeners.pop(address).close()
        for address, listener in self._listeners.items():
            listener.pages_only = address in pages
        self._reporter.addresses = self.addresses

    def _stop_listening(self) -> None:
        while self._listeners:
            self._listeners.popitem()[1].close()

    async def _open(self, address: Address) -> Listener:
        loop = asyncio.get_running_loop()
        listener = Listener(address, self.endpoint)
        # With the certificate of the latest reload.
        accept = functools.partial(self._accept, listener)
        if not address.socket:
            listener.server = await loop.create_server(
                accept, address.host, address.port, backlog=LISTEN_BACKLOG
            )
            return listener
        # The loop would take a socket over, whether or not somebody listens on it.
        if somebody_listens(address.socket):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        listener.server = await loop.create_unix_server(accept, address.socket, backlog=LISTEN_BACKLOG)
        return listener

    async def _close(self, choose: Callable[[Connection], bool]) -> None:
        closing = {connection for connection in self.connections if choose(connection)}
        if not closing:
            return
        gone = asyncio.get_running_loop().create_future()
        self._waiting = (set(closing), gone)
        for connection in closing:
            connection.close(CloseCode.GOING_AWAY, "draining")
        await gone

    def _log_counters(self) -> None:
        fields = {name: str(count) for name, count in self._reporter.counters().items()}
        log(logger, logging.INFO, "counters", open=len(self.connections), **fields)

    def _warn_of_limits(self) -> None:
        for sentence in config_warnings(self._config) + self._tls.warnings(datetime.now(UTC)):
            log(logger, logging.WARNING, "unwise configuration", advice=sentence)
        wanted = open_files_wanted(self._config.limits)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft < allowed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if max(soft, allowed) < wanted:
            log(
                logger,
                logging.WARNING,
                "too few open files allowed",
                allowed=allowed,
                wanted=wanted,
            )


def run(file: str | Path, kind: type[Node]) -> None:
    """Run a node on uvloop until it is told to stop.

    Raises:
        ConfigError: The configuration or the key cannot be used.
        ListenError: A listener cannot be opened.
    """

    async def main() -> None:
        service = Service(file, kind)
        # Not before, for the fingerprints of keys take 4 MiB for a moment.
        _keep_freed_memory()
        await service.run()

    uvloop.run(main())
    # While Python ends, a late reload must not kill the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _keep_freed_memory() -> None:
    """Stop glibc from giving the memory of each read and write back, to be had anew page by page."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries lack it
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _sends_messages(connection: Connection) -> bool:
    return connection.handler is not None and connection.handler.peer_sends_messages


def _log_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught, in one line: it is a defect of ours, and the node goes on."""
    error = context.get("exception")
    logger.error("internal error: %s", context.get("message", ""), exc_info=error)
