"""The clients with names at one node: their connections, and the limits that these share.

```
connection ──► Clients.add ──► Client: the rights of its key, and its topics ──► Quota of the name
```

- Rights are checked once for each connection and topic, and remembered, so that they cost a message nothing.
- A name that has used its bytes is not read from for a while, on all of its connections. Other names go on.
- When the keys change, connections are closed whose key is gone or may do something else now; their peers
  connect again. A token's connection is closed when it ends.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable

from ..config.model import NamedClient
from ..journal import log
from ..net.connection import Connection
from ..net.timers import Timer
from ..protocol.access import ANYBODY, Identity
from ..protocol.close import CloseCode
from ..report.report import ClientStatus

logger = logging.getLogger(__name__)

MAX_REMEMBERED_TOPICS = 10_000
"""Topics of a connection whose rights are remembered, 1 MiB; with more, all are checked anew."""

BURST_SECONDS = 1.0
"""Time in which a name may send all at once that it may send in it: a read has a part of a second."""

LOOK_SECONDS = 60.0
"""Longest time between two looks at the clock while a token lasts, because the clock may be set."""

MAX_TOPIC_CHARACTERS = 64
"""Characters of a topic in the reason of a refusal, which has room for 123 bytes in a close frame."""

NO_LIMITS = NamedClient(name="none")

CLIENT_ROLES = ("publisher", "subscriber")
"""Roles of peers that count as clients without a name; nodes that ask for reports are none."""


class Quota:
    """Share the limits of one name among its connections to this node. No I/O and no clock.

    Args:
        limits: The limits.

    Attributes:
        limits: See above; a reload sets others.
        connections: Number of connections.
        refused: How often something was refused.
        topics: How many connections use each topic.
    """

    __slots__ = ("_paid", "connections", "limits", "refused", "topics")

    def __init__(self, limits: NamedClient) -> None:
        self.limits = limits
        self.connections = self.refused = 0
        self.topics: Counter[str] = Counter()
        self._paid = 0.0

    @property
    def has_connection(self) -> bool:
        """Return True if there may be one more connection."""
        most = self.limits.max_connections
        return most is None or self.connections < most

    def has_topic(self, topic: str) -> bool:
        """Return True if a topic may be used."""
        most = self.limits.max_topics
        return most is None or topic in self.topics or len(self.topics) < most

    def release(self, topics: Iterable[str]) -> None:
        """Note that a connection uses some topics no more."""
        for topic in topics:
            self.topics[topic] -= 1
            if not self.topics[topic]:
                del self.topics[topic]

    def pay(self, size: int, now: float) -> float:
        """Count bytes that came; return the seconds for which no more should be read.

        Args:
            size: Number of bytes.
            now: The time (monotonic).
        """
        rate = self.limits.bytes_per_second
        if rate is None:
            return 0.0
        self._paid = max(self._paid, now - BURST_SECONDS) + size / rate
        return max(0.0, self._paid - now)


class Client:
    """Know the rights of one connection, and count the topics that it uses.

    Args:
        identity: Who its peer is.
        quota: The limits of the peer's name.

    Attributes:
        identity: See above.
        quota: See above.
    """

    __slots__ = ("_published", "_subscribed", "identity", "quota", "timer")

    def __init__(self, identity: Identity, quota: Quota) -> None:
        self.identity, self.quota = identity, quota
        self._published: set[str] = set()
        self._subscribed: set[str] = set()
        self.timer: Timer | None = None

    def publishes(self, topic: str) -> str:
        """Return why it may not publish to a topic, "" if it may."""
        if topic in self._published:
            return ""
        if not self.identity.may_publish(topic):
            return self._refuse(f"{self.identity} may not publish to {topic[:MAX_TOPIC_CHARACTERS]!r}")
        if len(self._published) >= MAX_REMEMBERED_TOPICS and self.quota.limits.max_topics is None:
            self._give_back(self._published)
        return self._use(topic, self._published)

    def subscribes(self, topic: str) -> str:
        """Return why it may not subscribe to a topic, "" if it may."""
        if topic in self._subscribed:
            return ""
        if not self.identity.may_subscribe(topic):
            return self._refuse(f"{self.identity} may not subscribe to {topic[:MAX_TOPIC_CHARACTERS]!r}")
        return self._use(topic, self._subscribed)

    def follows(self, prefix: str) -> str:
        """Return why it may not subscribe to all topics that begin with a prefix, "" if it may."""
        if self.identity.may_follow(prefix):
            return ""
        begin = f"{prefix[:MAX_TOPIC_CHARACTERS]}*"
        return self._refuse(f"{self.identity} may not subscribe to all of {begin!r}")

    def joins(self, group: str) -> str:
        """Return why it may not join a worker group, "" if it may."""
        if self.identity.may_join(group):
            return ""
        return self._refuse(f"{self.identity} may not join the group {group!r}")

    def reads_as(self, reader: str) -> str:
        """Return why it may not read under a name, "" if it may."""
        if self.identity.may_join(reader):
            return ""
        return self._refuse(f"{self.identity} may not read as {reader!r}")

    def unsubscribes(self, topic: str) -> None:
        """Note that it has given up a topic."""
        if topic in self._subscribed:
            self._subscribed.discard(topic)
            self.quota.release([topic])

    def leave(self) -> None:
        """Give back all that it uses."""
        for topics in (self._published, self._subscribed):
            self._give_back(topics)
        if self.timer is not None:
            self.timer.cancel()

    def _use(self, topic: str, used: set[str]) -> str:
        if not self.quota.has_topic(topic):
            most = self.quota.limits.max_topics
            return self._refuse(f"{self.identity.name} uses {most} topics, and may use no more")
        used.add(topic)
        self.quota.topics[topic] += 1
        return ""

    def _refuse(self, reason: str) -> str:
        self.quota.refused += 1
        return reason

    def _give_back(self, topics: set[str]) -> None:
        self.quota.release(topics)
        topics.clear()


class Clients:
    """Know the peers of this node that have names or tokens, and count the clients without.

    Args:
        counters: Counters of the node.
    """

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._limits: dict[str, NamedClient] = {}
        self._quotas: dict[str, Quota] = {}
        self._clients: dict[Connection, Client] = {}
        # A number, because there may be very many of them, and a set takes 70 bytes for each.
        self._nameless = 0

    def configure(self, clients: Iterable[NamedClient]) -> None:
        """Use the limits of a configuration."""
        self._limits = {client.name: client for client in clients}
        for name, quota in list(self._quotas.items()):
            quota.limits = self._limits.get(name, NO_LIMITS)
            if name not in self._limits and not quota.connections:
                del self._quotas[name]

    def of(self, connection: Connection) -> Client | None:
        """Return the client of a connection, None if the client may do everything."""
        return self._clients.get(connection)

    def status(self) -> list[ClientStatus]:
        """Return the values that a report has of each name, and of the clients without."""
        names = sorted({""} | self._limits.keys() | self._quotas.keys())
        return [self._status(name) for name in names]

    def _status(self, name: str) -> ClientStatus:
        nameless = 0 if name else self._nameless
        quota = self._quotas.get(name)
        if quota is None:
            return ClientStatus(name=name, connections=nameless)
        return ClientStatus(
            name=name,
            connections=nameless + quota.connections,
            topics=len(quota.topics),
            refused=quota.refused,
        )

    def add(self, connection: Connection) -> str:
        """Take a connection whose peer has proved itself; return why it may not stay, "" if it may."""
        peer = connection.session.peer
        if peer is None or peer.identity == ANYBODY:
            self._nameless += _is_client(connection)
            return ""
        identity = peer.identity
        quota = self._quotas.setdefault(identity.name, Quota(self._limits.get(identity.name, NO_LIMITS)))
        if not quota.has_connection:
            quota.refused += 1
            self._counters["connections_refused"] += 1
            return f"{identity.name} has {quota.connections} connections, and may have no more"
        quota.connections += 1
        client = self._clients[connection] = Client(identity, quota)
        connection.meter = quota
        self._watch(connection, client)
        return ""

    def note_refusal(self, connection: Connection, topic: str, reason: str) -> None:
        """Count and log that a client asked for a topic that its key does not allow."""
        self._counters["not_allowed"] += 1
        log(logger, logging.WARNING, "not allowed", peer=connection.peer, reason=reason, topic=topic)

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        client = self._clients.pop(connection, None)
        if client is None:
            self._nameless -= connection.established and _is_client(connection)
        else:
            client.leave()
            client.quota.connections -= 1
            # A name in the configuration keeps its quota, so that nobody gets a new one by connecting again.
            if not client.quota.connections and client.identity.name not in self._limits:
                self._quotas.pop(client.identity.name, None)

    def _watch(self, connection: Connection, client: Client) -> None:
        """Close a connection when its token ends, by the system's time."""
        if client.identity.ends is None:
            return
        left = client.identity.ends - time.time()
        # The first time, the handler of the connection does not know it yet.
        if left <= 0 and client.timer is not None:
            connection.close(CloseCode.TOKEN_ENDED)
        else:
            client.timer = Timer(max(0.0, min(left, LOOK_SECONDS)), lambda: self._watch(connection, client))


def _is_client(connection: Connection) -> bool:
    """Return True unless the peer of a connection is a node."""
    return connection.handler is not None and connection.handler.peer_role in CLIENT_ROLES
