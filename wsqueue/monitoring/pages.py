"""The pages of a node, for people, scripts and Prometheus: HTTP without a hello.

`[monitoring]` of the configuration says which peers may see them.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence

import msgspec

from ..config.addresses import Address
from ..config.keys import Keys
from ..config.model import NodeConfig
from ..net.certificates import TlsContexts
from ..net.connection import Connection
from ..protocol.framing import HttpResponse
from ..report.report import FRESH_SECONDS, Report
from ..version import __version__
from .cluster import ClusterMonitor
from .reporter import Reporter
from .sites import Sites

IDLE_SECONDS = 15.0
"""Time for which the other nodes are still asked after the last request: a status page asks every second."""

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

HEALTH = ("/healthz", "/readyz")
"""Pages for all peers."""

PAGES = ("/", "/status.json", "/cluster.json", "/metrics", "/client.js")
"""Pages that show topics and addresses, for peers that may see them."""

JSON = "application/json"

ONLY_PAGES = HttpResponse(404, f"Not found: there are {', '.join(HEALTH + PAGES)}.\n")

FORBIDDEN = HttpResponse(
    403,
    "You may not see the pages of this node: see `pages` and `listen` of [monitoring]"
    " in its configuration, or come from its own host, for example through ssh -L, to http://localhost."
    " If you come by a name that the node does not know, add it to `hosts`.\n",
)

OTHER_SITE = HttpResponse(
    403, "A page of another site may not use this node: see `origins` in its configuration.\n"
)


_HOST = re.compile(r"[0-9a-z._:-]+")


class Pages:
    """Answer requests for the pages of a node.

    Args:
        reporter: Reporter of the node.

    Attributes:
        sites: Knows which sites may use the node.
    """

    sites: Sites

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._metrics: tuple[Report, str] | None = None
        self._cluster: _ClusterWatch | None = None

    def configure(self, config: NodeConfig, keys: Keys, tls: TlsContexts) -> None:
        """Use another configuration from now on."""
        self._config, self._keys, self._tls = config, keys, tls
        self.sites = Sites(config)
        self.stop()

    def stop(self) -> None:
        """Stop asking the other nodes."""
        if self._cluster is not None:
            self._cluster.stop()
            self._cluster = None

    def allowed(self, connection: Connection, host: str, *, pages_only: bool) -> bool:
        """Return True if a peer may see the pages.

        A page of another site, in a browser that can reach this node, sends requests too. The browser doesn't
        let it read the answers, unless DNS resolves the site's name to this host (DNS rebinding); then the
        request names that site as its `Host`.

        Args:
            connection: Connection of the peer.
            host: The `Host` of the request.
            pages_only: True at a listener that serves only the pages, to all peers that reach it.
        """
        pages = self._config.monitoring.pages
        here = pages_only or pages == "all" or (pages == "loopback" and connection.from_this_host)
        return here and self.sites.trusts_host(host)

    def answer(self, path: str, *, all_pages: bool) -> HttpResponse | None:
        """Return the page of a path, None if there is none.

        Args:
            path: Path of the request, without the query.
            all_pages: Whether the peer may see all pages.
        """
        if path == "/healthz":
            return HttpResponse(200, "ok\n")
        if path == "/readyz":
            reason = self._reporter.not_ready()
            # It names the consumers' addresses.
            told = f": {reason}" if all_pages else ""
            return HttpResponse(503, f"not ready{told}\n") if reason else HttpResponse(200, "ready\n")
        if path in PAGES and all_pages:
            return self._page(path)
        if path == "/":
            return HttpResponse(200, f"wsqueue {self._reporter.role} {__version__}\n")
        return FORBIDDEN if path in PAGES else None

    def _page(self, path: str) -> HttpResponse:
        if path == "/status.json":
            return HttpResponse(200, self._reporter.encoded(), JSON, HEADERS)
        if path == "/cluster.json":
            return HttpResponse(200, self._cluster_json(), JSON, HEADERS)
        if path == "/metrics":
            # Imported here because it takes some MiB that a node without metrics does not need.
            from .prometheus import CONTENT_TYPE, exposition  # noqa: PLC0415

            report = self._reporter.report()
            if self._metrics is None or self._metrics[0] is not report:
                self._metrics = report, exposition(report)
            return HttpResponse(200, self._metrics[1], CONTENT_TYPE, HEADERS)
        if path == "/client.js":
            from .web.page import client_js  # noqa: PLC0415 - as above

            return HttpResponse(200, client_js(), "text/javascript; charset=utf-8", HEADERS)
        assert path == "/"
        from .web.page import status_page  # noqa: PLC0415 - as above

        page = status_page(list(_origins(self._peers())))
        policy = {"Content-Security-Policy": page.content_security_policy, "X-Frame-Options": "DENY"}
        return HttpResponse(200, page.html, "text/html; charset=utf-8", HEADERS | policy)

    def _peers(self) -> list[Address]:
        return self._config.all_consumers + self._config.all_producers

    def _cluster_json(self) -> str:
        if self._cluster is None or self._cluster.ended:
            config = self._config
            monitor = ClusterMonitor(
                config.all_consumers, config.all_producers, self._keys.nodes, config, self._tls
            )
            self._cluster = _ClusterWatch(monitor)
        self._cluster.want()
        cluster = self._cluster.monitor.cluster(own=self._reporter.report())
        return msgspec.json.encode(cluster).decode()


class _ClusterWatch:
    """Ask the other nodes until `IDLE_SECONDS` after the last request."""

    def __init__(self, monitor: ClusterMonitor) -> None:
        self.monitor = monitor
        self._wanted_at = time.monotonic()
        self._task = asyncio.create_task(self._run())

    @property
    def ended(self) -> bool:
        """Return True if asking has ended, so that the reports are old."""
        return self._task.done()

    def want(self) -> None:
        """Keep asking for another `IDLE_SECONDS`."""
        self._wanted_at = time.monotonic()

    def stop(self) -> None:
        """End at once."""
        self._task.cancel()

    async def _run(self) -> None:
        self.monitor.start()
        try:
            while time.monotonic() - self._wanted_at < IDLE_SECONDS:
                await asyncio.sleep(FRESH_SECONDS)
                self.monitor.ask()
        finally:
            await self.monitor.stop()


def _origins(addresses: Sequence[Address]) -> Iterator[str]:
    """Yield addresses as origins in a Content-Security-Policy (CSP level 3, section 2.3.1).

    A policy can't name unix sockets, which no browser opens, and names that DNS doesn't allow.
    """
    for address in addresses:
        host = address.host.encode("idna").decode()
        if _HOST.fullmatch(host):
            ascii_address = msgspec.structs.replace(address, host=host, tls=False)
            yield f"{'wss' if address.tls else 'ws'}://{ascii_address}"
