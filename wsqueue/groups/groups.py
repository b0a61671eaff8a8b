"""The groups of a consumer that have members, by topic and name."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable

from ..log.store import Store
from ..net.connection import Connection
from ..protocol import v2
from .group import Group
from .keeper import state_name

CLOSE_SECONDS = 2.0
"""Time for the states that are being kept at the end: an engine that is there takes less than a second."""


class Groups:
    """Find the coordinator of each group.

    Args:
        logs: The logs of all topics.
        counters: Counters of the node.
        clock: Returns the Unix time, as the logs know it.

    Attributes:
        by_topic: The groups of each topic that have members, or dead letters to publish.
        draining: True once the node is about to stop, so that members which go are not blamed for it.
    """

    def __init__(self, logs: Store, counters: Counter[str], clock: Callable[[], float]) -> None:
        self._logs, self._counters, self._clock = logs, counters, clock
        self.by_topic: dict[str, dict[str, Group]] = {}
        self.draining = False
        self._owner = secrets.token_hex(8)

    def join(self, connection: Connection, packet: v2.Join) -> None:
        """Let a member join a group."""
        groups = self.by_topic.setdefault(packet.topic, {})
        group = groups.get(packet.group)
        if group is None:
            group = groups[packet.group] = Group(
                self._logs,
                packet.topic,
                packet.group,
                owner=self._owner,
                counters=self._counters,
                clock=self._clock,
                ended=self._forget,
            )
        group.join(connection, packet)

    def find(self, topic: str, name: str) -> Group | None:
        """Return a group, None if it has no members."""
        return self.by_topic.get(topic, {}).get(name)

    def in_use(self, topic: str, state: str) -> bool:
        """Return True if the group that has a state has members."""
        return any(state_name(name) == state for name in self.by_topic.get(topic, ()))

    def stored(self, topic: str) -> None:
        """Lend messages that were just stored."""
        for group in list(self.by_topic.get(topic, {}).values()):
            group.pump()

    def moved(self, topic: str, *, other: bool) -> None:
        """Go on in a log that has gone on without this consumer, or is another one."""
        for group in list(self.by_topic.get(topic, {}).values()):
            group.moved(other=other)

    def name_epoch(self) -> None:
        """Tell all members that an epoch has begun, so that no outcome of the one before is taken for it."""
        for topic in list(self.by_topic):
            self.moved(topic, other=False)

    async def settle(self) -> None:
        """Wait until the states of all groups are kept."""
        self.draining = True
        groups = [group for groups in self.by_topic.values() for group in groups.values()]
        await asyncio.gather(*(group.settled() for group in groups))

    async def close(self) -> None:
        """Do nothing more, because the logs are about to be closed; wait for states that are being kept."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.settle()
        for groups in list(self.by_topic.values()):
            for group in list(groups.values()):
                group.close()

    def _forget(self, group: Group) -> None:
        groups = self.by_topic.get(group.topic, {})
        if groups.get(group.name) is group:
            del groups[group.name]
            if not groups:
                del self.by_topic[group.topic]
