"""The worker groups that one connection is a member of, and its right to be."""

from __future__ import annotations

from collections.abc import Callable

from ..groups.groups import Groups
from ..net.connection import Connection
from ..protocol import classic, v2
from ..protocol.close import CloseCode
from ..protocol.routing import dead_letter_topic
from .clients import Clients
from .subscribers import Holder, Subscribers

MAX_GROUPS_PER_CONNECTION = 100
"""Maximum number of groups that one connection is a member of: they end in one turn of the loop."""

GROUP_PACKETS = (v2.Settle, v2.Join, v2.Leave)


class Memberships:
    """Take the packets of a connection that are for groups.

    Args:
        connection: The connection.
        holder: Ends all subscriptions of the connection when there is no room for them.
        groups: The groups of the consumer.
        clients: Knows the rights of the connection's peer.
        subscribers: Counts the memory of subscriptions.
        max_topic_bytes: Returns the maximum length of a topic.
    """

    def __init__(
        self,
        connection: Connection,
        holder: Holder,
        *,
        groups: Groups,
        clients: Clients,
        subscribers: Subscribers,
        max_topic_bytes: Callable[[], int],
    ) -> None:
        self._connection, self._holder, self._groups = connection, holder, groups
        self._clients, self._subscribers, self._max_topic_bytes = clients, subscribers, max_topic_bytes
        self._places: set[tuple[str, str]] = set()

    def receive(self, packet: v2.Settle | v2.Join | v2.Leave) -> None:
        """Take a packet."""
        if isinstance(packet, v2.Settle):
            if (group := self._groups.find(packet.topic, packet.group)) is not None:
                group.settle(self._connection, packet)
        elif isinstance(packet, v2.Leave):
            self._leave(packet.topic, packet.group)
            self._connection.send_packet(v2.Left(packet.topic, packet.group))
        else:
            self._join(packet)

    def include(self, topic: str) -> bool:
        """Return True if one of the groups is of a topic."""
        return any(one == topic for one, _ in self._places)

    def writable(self) -> None:
        """Let the groups lend to this connection again."""
        for topic, name in list(self._places):
            if (group := self._groups.find(topic, name)) is not None:
                group.writable(self._connection)

    def leave_all(self) -> None:
        """Leave all groups."""
        for place in list(self._places):
            self._leave(*place)

    def _join(self, packet: v2.Join) -> None:
        topic, name = packet.topic, packet.group
        self._leave(topic, name)
        if len(self._places) >= MAX_GROUPS_PER_CONNECTION:
            self._leave_refused()
        if refusal := self._refusal(packet):
            code, reason = refusal
            self._connection.send_packet(v2.Left(topic, name, code, reason[: v2.MAX_REASON_CHARACTERS]))
        elif len(self._places) >= MAX_GROUPS_PER_CONNECTION:
            self._connection.fail(CloseCode.TOO_MANY_TOPICS, f"at most {MAX_GROUPS_PER_CONNECTION} groups")
        else:
            self._places.add((topic, name))
            self._subscribers.add(self._holder, self._connection, topic)
            self._groups.join(self._connection, packet)
            self._subscribers.relieve()

    def _leave_refused(self) -> None:
        """Leave the groups that have refused this connection, or ended its membership."""
        for topic, name in list(self._places):
            group = self._groups.find(topic, name)
            if group is None or not group.has(self._connection):
                self._leave(topic, name)

    def _leave(self, topic: str, name: str) -> None:
        if (topic, name) not in self._places:
            return
        self._places.discard((topic, name))
        self._subscribers.end_one(self._holder, topic)
        if (group := self._groups.find(topic, name)) is not None:
            group.leave(self._connection, counted=not self._groups.draining)

    def _refusal(self, packet: v2.Join) -> tuple[str, str] | None:
        """Return the code and the reason for which a member is refused, None if it may join."""
        client = self._clients.of(self._connection)
        if client is not None:
            problem = client.subscribes(packet.topic) or client.joins(packet.group)
            if problem:
                self._clients.note_refusal(self._connection, packet.topic, problem)
                return "not_allowed", problem
        most = self._max_topic_bytes()
        if classic.topic_too_long(dead_letter_topic(packet.topic, packet.group), most):
            return "topic_too_long", f"the topic of its dead letters has more than max_topic_bytes, {most}"
        return None
