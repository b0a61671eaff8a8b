"""The endpoint /operate: operators list and purge topics, end groups, and disconnect clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from ..errors import WsqueueError
from ..journal import log
from ..net.connection import Connection, Handler
from ..protocol import v2
from ..protocol.close import CloseCode, Closed
from ..protocol.framing import PongReceived
from ..protocol.session import Event, HelloDone

logger = logging.getLogger(__name__)

REQUESTS = (v2.AskTopics, v2.Purge, v2.Forget, v2.Disconnect)


class OperationFailed(WsqueueError):  # noqa: N818 - reads best where it is raised
    """Say why a request of an operator cannot be done.

    Attributes:
        code: One word for the reason.
    """

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        super().__init__(reason)


class OperatorEndpoint(Handler):
    """Serve `/operate` to clients that may operate; a node has one such handler.

    The requests of a connection are done one after another, and no more is read from it meanwhile.

    Args:
        operate: Does the request in a packet of a connection, and returns the answer.
    """

    peer_role = "operator"

    def __init__(
        self, operate: Callable[[Connection, v2.OperatorRequest], Awaitable[v2.OperatorAnswer]]
    ) -> None:
        self._operate = operate
        self._tasks: dict[Connection, asyncio.Task[None]] = {}

    def established(self, connection: Connection) -> None:
        """Refuse the classic protocol, which has no such packets, and clients that may not operate."""
        if not connection.session.v2:
            connection.fail(CloseCode.CLASSIC_REFUSED)
            return
        peer = connection.session.peer
        if peer is not None and not peer.identity.may_operate:
            connection.fail(CloseCode.NOT_ALLOWED, f"{peer.identity} may not operate")

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Begin to do the requests."""
        requests: list[v2.OperatorRequest] = []
        for event in events:
            if isinstance(event, REQUESTS):
                requests.append(event)
            elif not isinstance(event, HelloDone | PongReceived):
                connection.fail(CloseCode.UNEXPECTED_PACKET)
                return
        if requests:
            connection.pause_reading()
            self._tasks[connection] = asyncio.create_task(self._do(connection, requests))

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Begin nothing more that a connection asked for."""
        if (task := self._tasks.pop(connection, None)) is not None:
            task.cancel()

    async def _do(self, connection: Connection, requests: Sequence[v2.OperatorRequest]) -> None:
        for request in requests:
            if not connection.sendable:
                return
            connection.send_packet(await self._answer(connection, request))
        self._tasks.pop(connection, None)
        connection.resume_reading()

    async def _answer(self, connection: Connection, request: v2.OperatorRequest) -> v2.OperatorAnswer:
        try:
            return await self._operate(connection, request)
        except WsqueueError as error:
            code = error.code if isinstance(error, OperationFailed) else "unavailable"
            log(logger, logging.INFO, "operation failed", peer=connection.peer, reason=error)
            return v2.Failed(code, str(error)[: v2.MAX_REASON_CHARACTERS])
