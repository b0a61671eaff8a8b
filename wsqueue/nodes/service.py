"""The life of a node's process: start, serve, reload, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..config.addresses import Address
from ..config.check import config_warnings
from ..config.keys import load_keys
from ..config.load import load_config
from ..config.model import NodeConfig
from ..errors import ConfigError, ListenError, WsqueueError
from ..journal import log
from ..monitoring.endpoint import StatusEndpoint
from ..monitoring.pages import ONLY_PAGES, OTHER_SITE, Pages
from ..monitoring.reporter import Reporter
from ..net.certificates import TlsContexts
from ..net.connection import Connection, Handler
from ..net.timers import deadline
from ..protocol import v2
from ..protocol.events import EVENTS
from ..protocol.framing import HttpResponse, RequestReceived
from ..protocol.proxies import client_of, networks
from ..version import __version__
from .clients import Clients
from .connections import Connections
from .limits import allow_open_files, keep_freed_memory
from .listener import Listener, Listeners
from .node import Node
from .operator_endpoint import OperatorEndpoint
from .systemd import EXTEND_SECONDS, MAX_EXTENDED_SECONDS, Notifier

logger = logging.getLogger(__name__)

NOT_PRIVATE = HttpResponse(
    403, "A credential must not travel in the clear: expected https, or a request from the node's own host.\n"
)

STATUS = "/status"
"""The endpoint for reports, for nodes and clients that know the key."""


OPERATE = "/operate"
"""The endpoint for operators, who know a key that allows it."""


class Service:
    """Run one node.

    Args:
        file: The configuration, read again on SIGHUP.
        kind: `Consumer` or `Producer`.

    Attributes:
        node: The producer or the consumer.
        connections: The connections that the node accepted.
        reporter: Makes the node's reports.
        listeners: The node's listeners.

    Raises:
        ConfigError: The configuration, a key or a certificate cannot be used.
    """

    def __init__(self, file: str | Path, kind: type[Node]) -> None:
        self._file, self._config_type = file, kind.config_type
        self._config: NodeConfig = load_config(file, self._config_type)
        self._keys = load_keys(self._config)
        self._tls = TlsContexts(self._config)
        self._counters: Counter[str] = Counter()
        self._clients = Clients(self._counters)
        self.node = kind(self._config, self._keys, self._counters, self._tls, self._clients)
        accepted: set[Connection] = set()
        self.reporter = Reporter(
            self.node.role,
            self.node.facts,
            traffic=self.node.traffic,
            counters=self._counters,
            connections=accepted,
            clients=self._clients.status,
        )
        self.reporter.not_ready = self._not_ready
        self.connections = Connections(
            accepted,
            self._counters,
            self.node.traffic,
            self.reporter,
            buffers=self.node.buffers,
            clients=self._clients,
            keys=self._keys,
            limits=self._config.limits,
        )
        self.listeners = Listeners(self._accept, self.endpoint)
        self._endpoints: dict[str, Handler] = {
            STATUS: StatusEndpoint(self.reporter),
            OPERATE: OperatorEndpoint(self._operate),
        }
        self._pages = Pages(self.reporter)
        self._configure()
        self._stopping = asyncio.Event()
        self._deadline: asyncio.Timeout | None = None
        self._notifier = Notifier()
        self._failure: WsqueueError | None = None
        self.node.on_failure = self._fail

    @property
    def addresses(self) -> list[Address]:
        """Return where the node listens, with the ports that the system chose for port 0."""
        return self.listeners.addresses

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a second one ends the drain at once.

        Raises:
            ListenError: A listener cannot be opened.
            StorageError: The disk of the node is full, does not work or has damaged its log.
        """
        reload_wanted = asyncio.Event()
        self._handle_signals(reload_wanted)
        loop = asyncio.get_running_loop()
        async with self._more_time("starting"):
            if not await self._started():
                return
        reloading, *others = (
            loop.create_task(self._reload_on(reload_wanted)),
            loop.create_task(self._tell_manager()),
            loop.create_task(self.reporter.watch(self.node.top_topics.turn)),
        )
        await self._stopping.wait()
        reloading.cancel()
        self._notifier.stopping()
        async with self._more_time("stopping"):
            await (self.drain() if self._failure is None else self.abort())
        for task in others:
            task.cancel()
        if self._failure is not None:
            raise self._failure

    async def _started(self) -> bool:
        """Start, and return True; or False if the node was told to stop while it waited for others.

        A start that waits for servers which are away would never end by itself.
        """
        starting, stopping = asyncio.create_task(self.start()), asyncio.create_task(self._stopping.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            await asyncio.wait([starting], timeout=self._config.limits.drain_seconds)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            if starting.cancelled():
                return False
        await starting
        return True

    async def start(self) -> None:
        """Begin to work, then listen.

        Raises:
            ConfigError: The node cannot use its directory.
            StorageError: Its disk is full or does not work.
            ListenError: A listener cannot be opened.
        """
        self._check_limits()
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
        """Read the configuration again; if it is wrong, log that and keep the old one."""
        try:
            new = load_config(self._file, self._config_type)
            keys = load_keys(new)
            tls = TlsContexts(new)
            await self._listen(new)
        except (ConfigError, ListenError) as error:
            log(logger, logging.ERROR, "reload refused", error=error)
            self.reporter.reload_refused = str(error)
            return
        self.reporter.reload_refused = ""
        self._config, self._keys, self._tls = new, keys, tls
        logging.getLogger("wsqueue").setLevel(new.log_level.upper())
        self.reporter.restart_needed = self.node.reload(new, keys, tls)
        for sentence in self.reporter.restart_needed:
            log(logger, logging.WARNING, "restart needed", reason=sentence)
        self._configure()
        self.connections.use_keys(keys)
        self._check_limits()
        log(logger, logging.INFO, "reloaded", file=self._file)

    def stop(self) -> None:
        """Begin to drain, or end the drain."""
        if self._deadline is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time())
        self.connections.draining = True
        self._stopping.set()

    async def drain(self) -> None:
        """Stop accepting, pass on all received messages and close all connections, in `drain_seconds`."""
        log(logger, logging.INFO, "draining", connections=len(self.connections))
        began = time.monotonic()
        self.listeners.close()
        self._pages.stop()
        self.connections.announce_drain()
        try:
            async with deadline(self._config.limits.drain_seconds) as self._deadline:
                await self.connections.close(_sends_messages)
                await self.node.drain()
                await self.connections.close(lambda _connection: True)
                await self.node.stop()
        except TimeoutError:
            log(logger, logging.WARNING, "drain cut short", connections=len(self.connections))
            await self.abort()
        self._deadline = None
        self._log_counters()
        log(logger, logging.INFO, "stopped", seconds=f"{time.monotonic() - began:.3f}")

    async def abort(self) -> None:
        """Cut all connections, and stop; peers send unconfirmed messages again."""
        self.listeners.close()
        self._pages.stop()
        self.connections.abort()
        self.node.abort()
        await self.node.stop()

    def endpoint(
        self, listener: Listener, connection: Connection, request: RequestReceived
    ) -> Handler | HttpResponse:
        """Return the handler of a request, or the page that answers it."""
        path, _, query = request.path.partition("?")
        connection.session.unbound = self._config.channel_binding == "optional"
        if request.forwarded_for is not None:
            connection.forwarded_from("")
        if listener.proxied:
            path = self._come_through_a_proxy(connection, request, path)
        if not self._pages.sites.trusts_origin(request.origin, request.host):
            return OTHER_SITE
        get = request.get if path.startswith(EVENTS) else None
        if get is not None and get.embedded:
            # It has no `Origin`, but the cookies of a page that a browser shows.
            return OTHER_SITE
        all_pages = self._pages.allowed(connection, request.host, pages_only=listener.pages_only)
        page = None if request.post is not None else self._pages.answer(path, all_pages=all_pages)
        if page is not None or listener.pages_only:
            return page or ONLY_PAGES
        if request.post is not None:
            private = connection.private and request.post.scheme in ("", "https")
            answer = self.node.post_endpoint(path, request.post) if private else NOT_PRIVATE
        elif get is not None:
            private = connection.private and get.scheme in ("", "https")
            answer = self.node.events_endpoint(path, query, get, request.origin) if private else NOT_PRIVATE
        else:
            answer = self._endpoints.get(path) or self.node.endpoint(path)
        if isinstance(answer, Handler) and self.connections.full(answer):
            self._counters["connections_refused"] += 1
            return HttpResponse(503, "This node has all the connections that it may have.\n")
        return answer

    def _come_through_a_proxy(self, connection: Connection, request: RequestReceived, path: str) -> str:
        """Take the client and the path of a request as they were before the proxy."""
        proxy, session = self._config.proxy, connection.session
        session.unbound, session.prefix = True, proxy.path
        client = client_of(request.forwarded_for or "", connection.peer_host, self._trusted)
        connection.forwarded_from(client)
        return proxy.inner(path)

    async def _operate(self, connection: Connection, request: v2.OperatorRequest) -> v2.OperatorAnswer:
        """Do a request of an operator.

        Raises:
            WsqueueError: It cannot be done.
        """
        if isinstance(request, v2.Disconnect):
            return await self.connections.disconnect(connection, request)
        return await self.node.operate(connection, request)

    def _accept(self, listener: Listener) -> asyncio.Protocol:
        # With the key and the certificate of the latest reload.
        return self.connections.accept(listener, self._config, self._keys, self._tls)

    async def _listen(self, config: NodeConfig) -> None:
        await self.listeners.listen(config)
        self.reporter.addresses = self.addresses

    def _configure(self) -> None:
        for part in (self.reporter, self._pages):
            part.configure(self._config, self._keys, self._tls)
        self.connections.limits = self._config.limits
        self._clients.configure(self._config.clients)
        self._trusted = networks(self._config.proxy.trusted)

    def _check_limits(self) -> None:
        for sentence in config_warnings(self._config) + self._tls.warnings(datetime.now(UTC)):
            log(logger, logging.WARNING, "unwise configuration", advice=sentence)
        allow_open_files(self._config.limits)

    def _handle_signals(self, reload_wanted: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_exception)
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGHUP, reload_wanted.set)
        loop.add_signal_handler(signal.SIGUSR1, self._log_counters)

    async def _reload_on(self, wanted: asyncio.Event) -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            self._notifier.reloading()
            await self.reload()
            self._notifier.ready(self._status())

    async def _tell_manager(self) -> None:
        """Feed the service manager's watchdog from the event loop, so that it notices a loop that hangs."""
        self._notifier.ready(self._status())
        while True:
            await asyncio.sleep(self._notifier.interval_seconds)
            self._notifier.alive(self._status())

    @contextlib.asynccontextmanager
    async def _more_time(self, doing: str) -> AsyncIterator[None]:
        """Ask the service manager for more time while a start or a stop takes long, and say so."""
        asking = asyncio.create_task(self._ask_for_time(doing))
        try:
            yield
        finally:
            asking.cancel()

    async def _ask_for_time(self, doing: str) -> None:
        began = time.monotonic()
        while (seconds := time.monotonic() - began) < MAX_EXTENDED_SECONDS:
            if seconds >= EXTEND_SECONDS:
                log(logger, logging.INFO, "more time needed", doing=doing, seconds=f"{seconds:.0f}")
                self._notifier.extend(f"{doing} for {seconds:.0f} seconds")
            await asyncio.sleep(EXTEND_SECONDS)

    def _fail(self, error: WsqueueError) -> None:
        """End the node, which cannot go on."""
        self._failure = error
        self._stopping.set()

    def _not_ready(self) -> str:
        return "draining" if self._stopping.is_set() else self.node.not_ready()

    def _status(self) -> str:
        draining = "draining, " if self._stopping.is_set() else ""
        return f"{draining}{self.node.status()}, {len(self.connections)} connections"

    def _log_counters(self) -> None:
        fields = {name: str(count) for name, count in self.reporter.counters().items()}
        log(logger, logging.INFO, "counters", open=len(self.connections), **fields)


def run(file: str | Path, kind: type[Node]) -> None:
    """Run a node on uvloop until SIGTERM or SIGINT.

    Raises:
        ConfigError: The configuration or the key cannot be used.
        ListenError: A listener cannot be opened.
        WsqueueError: Only the client is installed.
    """
    try:
        import uvloop  # noqa: PLC0415 - the client does without it
    except ImportError:
        raise WsqueueError("a node needs uvloop, which pip install 'wsqueue[node]' installs") from None

    async def main() -> None:
        service = Service(file, kind)
        # Only now, because the fingerprints of keys take 4 MiB for a moment.
        keep_freed_memory()
        await service.run()

    uvloop.run(main())
    # While Python ends, a late reload must not kill the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _sends_messages(connection: Connection) -> bool:
    return connection.handler is not None and connection.handler.peer_sends_messages


def _log_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that nothing caught, in one record: it is a bug in wsqueue, and the node goes on."""
    error = context.get("exception")
    logger.error("internal error: %s", context.get("message", ""), exc_info=error)
