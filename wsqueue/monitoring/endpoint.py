"""The endpoint /status: other nodes and tools ask it for the report of this node."""

from __future__ import annotations

from ..net.connection import Connection, Handler
from ..protocol import v2
from ..protocol.close import CloseCode
from ..protocol.framing import PongReceived
from ..protocol.session import Event, HelloDone
from .reporter import Reporter


class StatusEndpoint(Handler):
    """Serve `/status` to nodes, and to clients that may read reports; a node has one such handler.

    Args:
        reporter: Reporter of the node.
    """

    peer_role = "monitor"
    peer_may_be_node = True

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def established(self, connection: Connection) -> None:
        """Refuse the classic protocol, which has no reports, and clients that may read none."""
        if not connection.session.v2:
            connection.fail(CloseCode.CLASSIC_REFUSED)
            return
        peer = connection.session.peer
        if peer is not None and not peer.identity.may_read_reports:
            connection.fail(CloseCode.NOT_ALLOWED, f"{peer.identity} may not read reports")

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Answer each question with the report."""
        for event in events:
            if not connection.sendable:
                return
            if isinstance(event, v2.AskReport):
                connection.send_packet(v2.NodeReport(self._reporter.encoded()))
            elif not isinstance(event, HelloDone | PongReceived):
                connection.fail(CloseCode.UNEXPECTED_PACKET)
                return
