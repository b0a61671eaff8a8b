"""The memory that subscriptions take, by connection.

When it is used up, the connection with the most is closed, so that a client which subscribes to all it can
keeps nobody else out.
"""

from __future__ import annotations

from typing import Protocol

from ..log.index_budget import IndexBudget, subscription_bytes
from ..net.connection import Connection


class Holder(Protocol):
    """The subscriptions of one connection."""

    def refuse(self, connection: Connection) -> None:
        """End all of them, and the connection."""


class _Held:
    __slots__ = ("bytes", "connection")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.bytes = 0


class Subscribers:
    """Count the memory of the subscriptions of each connection.

    Args:
        index: The budget that they share with topics and publishers.
    """

    def __init__(self, index: IndexBudget) -> None:
        self._index = index
        self._held: dict[Holder, _Held] = {}
        # The connections whose subscriptions are being ended, until all of them are.
        self._refused: set[Holder] = set()

    def add(self, holder: Holder, connection: Connection, topic: str) -> None:
        """Count a subscription of a connection that is about to begin."""
        held = self._held.get(holder)
        if held is None:
            held = self._held[holder] = _Held(connection)
        held.bytes += subscription_bytes(topic)
        self._index.used += subscription_bytes(topic)

    def relieve(self) -> None:
        """Refuse the connection that has the most, and the next, until there is room for those that stay."""
        held, index = self._held, self._index
        while index.full and index.used - sum(held[one].bytes for one in self._refused) > index.limit:
            staying = held.keys() - self._refused
            if not staying:
                return
            most = max(staying, key=lambda one: held[one].bytes)
            self._refused.add(most)
            most.refuse(held[most].connection)

    def end_one(self, holder: Holder, topic: str) -> None:
        """Count one subscription of a connection no more."""
        held = self._held.get(holder)
        if held is not None:
            held.bytes -= subscription_bytes(topic)
            self._index.used -= subscription_bytes(topic)
            if held.bytes <= 0:
                self.remove(holder)

    def remove(self, holder: Holder) -> None:
        """Count nothing more of a connection."""
        held = self._held.pop(holder, None)
        if held is not None:
            self._index.used -= held.bytes
        self._refused.discard(holder)
