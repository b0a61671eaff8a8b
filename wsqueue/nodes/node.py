"""The part of a producer or a consumer that a service runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from ..config.keys import Keys
from ..config.model import NodeConfig
from ..errors import WsqueueError
from ..net.buffers import Buffers
from ..net.certificates import TlsContexts
from ..net.connection import Connection, Handler, Traffic
from ..protocol import v2
from ..protocol.framing import Get, HttpResponse, Post
from ..report.report import Facts
from ..report.stats import TopTopics
from .clients import Clients


class Node(Protocol):
    """A producer or a consumer, without its listeners and pages.

    Attributes:
        on_failure: Called when the node cannot go on and must be aborted and stopped.
    """

    role: str
    on_failure: Callable[[WsqueueError], None]
    traffic: Traffic
    buffers: Buffers
    top_topics: TopTopics
    config_type: ClassVar[type[NodeConfig]]
    counters: Counter[str]

    def __init__(
        self,
        config: Any,  # noqa: ANN401 - the node's own kind
        keys: Keys,
        counters: Counter[str],
        tls: TlsContexts,
        clients: Clients,
    ) -> None: ...

    def endpoint(self, path: str) -> Handler | HttpResponse:
        """Return the handler that serves a path, or the page that answers it."""
        ...

    def post_endpoint(self, path: str, post: Post) -> Handler | HttpResponse:
        """Return the handler that takes the body of a `POST`, or the page that answers it."""
        ...

    def events_endpoint(self, path: str, query: str, get: Get, origin: str | None) -> Handler | HttpResponse:
        """Return the handler that answers a `GET` with the events of a topic, or the page that refuses it.

        Args:
            path: Path of the request, from `EVENTS` on.
            query: Query of the request, percent-encoded.
            get: The head of the request.
            origin: The site whose page sends it, None for none.
        """
        ...

    async def operate(self, connection: Connection, request: v2.OperatorRequest) -> v2.OperatorAnswer:
        """Do a request of an operator.

        Raises:
            WsqueueError: It cannot be done.
        """
        ...

    def facts(self, window_seconds: float) -> Facts:
        """Return the values that a report has of this role.

        Args:
            window_seconds: Age of the current window of `top_topics`.
        """
        ...

    async def start(self) -> None:
        """Begin to work; the node is handed connections after that."""
        ...

    def not_ready(self) -> str:
        """Return why the node is not ready, "" when it is."""
        ...

    def status(self) -> str:
        """Return the status in a few words."""
        ...

    def reload(self, config: Any, keys: Keys, tls: TlsContexts) -> list[str]:  # noqa: ANN401 - as above
        """Use a new configuration from now on.

        Returns:
            A sentence about each key whose new value holds only after a restart.
        """
        ...

    async def drain(self) -> None:
        """Wait until all received messages have been passed on."""
        ...

    async def stop(self) -> None:
        """Close everything that the node opened."""
        ...

    def abort(self) -> None:
        """Cut everything that the node opened, so that `stop` need not wait."""
        ...
