"""The states that a store keeps beside the logs: one small value for each (topic, name).

A value is changed by compare-and-swap: who changes it names the version that it has seen, and nothing is
changed if that is not the present one. No limit of the logs drops a state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from ..errors import WsqueueError

MAX_STATE_BYTES = 512 * 1024
"""Bytes of a value with its topic and name: as much as the batches of a record in an engine."""

MAX_NAMES_PER_TOPIC = 100
"""States of a topic: each is somebody who has a part in it, and is asked for all of them."""

MAX_NAMES = 10_000
"""States in all: their versions take 3 MB of memory."""

MAX_STATES_BYTES = 24 * 1024 * 1024
"""Bytes of all states, which are listed at once, and which the mode `memory` has in memory: a consumer still
fits a host of 2 GiB with them."""

MAX_VERSION = 2**62
"""Largest version that is taken from a file: no store comes near it, and one that did could still go on."""

Key: TypeAlias = tuple[str, str]
"""Topic and name of a state."""


Value: TypeAlias = bytes
"""Value of a state."""


class StateConflict(Exception):  # noqa: N818 - the field's word
    """The state has another version: nothing was changed."""


class StatesFull(WsqueueError):  # noqa: N818 - reads best where it is raised
    """Say that there are too many states, or no room for one: nothing was changed."""


class State(msgspec.Struct, frozen=True):
    """Hold the value of a state.

    Attributes:
        version: Rises with each change, from 1 on.
        value: The value.
    """

    version: int
    value: bytes


class StateInfo(msgspec.Struct, frozen=True):
    """Hold a state with its place.

    Attributes:
        topic: Its topic.
        name: Its name.
        version: Rises with each change, from 1 on.
        value: The value.
    """

    topic: str
    name: str
    version: int
    value: bytes

    @property
    def size(self) -> int:
        """Return the bytes that count for the limits."""
        return size_of(self.topic, self.name, self.value)


class StateHead(msgspec.Struct, frozen=True, gc=False):
    """Describe a state without its value.

    Attributes:
        version: Its version.
        size: The bytes that count for the limits.
    """

    version: int
    size: int


class StateChange(msgspec.Struct, frozen=True, eq=False):
    """Hold a change of a state.

    Attributes:
        topic: Topic of the state.
        name: Name of the state.
        before: The state before, None if there was none.
        after: The state now, None if it is dropped.
        value: Its value, b"" if it is dropped.
    """

    topic: str
    name: str
    before: StateHead | None
    after: StateHead | None
    value: bytes


class StateIndex:
    """Know the versions and the sizes of all states, and judge changes.

    Versions rise over all names, so that while a process runs no version of a name comes twice, even if the
    name was dropped. Nobody has the versions of dropped names after a restart, when they may come again.

    Args:
        known: The states that were kept.
    """

    def __init__(self, known: Iterable[tuple[Key, StateHead]] = ()) -> None:
        self._heads = dict(known)
        self._names = Counter(topic for topic, _ in self._heads)
        self._bytes = sum(head.size for head in self._heads.values())
        self._newest = max((head.version for head in self._heads.values()), default=0)

    def change(self, topic: str, name: str, value: bytes, version: int) -> StateChange:
        """Let a state have another value, and return the change.

        Args:
            topic: Topic of the state.
            name: Name of the state.
            value: The new value.
            version: The version that it must have, 0 if there must be none.

        Raises:
            StateConflict: It has another one.
            StatesFull: There is no room for it.
        """
        before = self._heads.get((topic, name))
        if version != (0 if before is None else before.version):
            raise conflict(topic, name)
        size = size_of(topic, name, value)
        expect_size(topic, name, size)
        if before is None:
            expect_room(topic, self._names[topic], len(self._heads))
        expect_bytes(self._bytes + size - (0 if before is None else before.size))
        self._newest += 1
        change = StateChange(topic, name, before, StateHead(self._newest, size), value)
        self._put(change, change.after)
        return change

    def drop(self, topic: str, name: str, version: int) -> StateChange:
        """Drop a state, and return the change.

        Raises:
            StateConflict: It has another version, or there is none.
        """
        before = self._heads.get((topic, name))
        if before is None or version != before.version:
            raise conflict(topic, name)
        change = StateChange(topic, name, before, None, b"")
        self._put(change, None)
        return change

    def undo(self, change: StateChange) -> None:
        """Take a change back, the newest one first."""
        self._put(change, change.before)

    def _put(self, change: StateChange, head: StateHead | None) -> None:
        """Let a state have another version, or none."""
        topic, key = change.topic, (change.topic, change.name)
        old = self._heads.pop(key, None)
        if old is not None:
            self._bytes -= old.size
            self._names[topic] -= 1
            if not self._names[topic]:
                del self._names[topic]
        if head is not None:
            self._heads[key] = head
            self._bytes += head.size
            self._names[topic] += 1


def size_of(topic: str, name: str, value: bytes = b"") -> int:
    """Return the bytes of a state that count for the limits."""
    return len(topic.encode()) + len(name.encode()) + len(value)


def conflict(topic: str, name: str) -> StateConflict:
    """Return the exception for a state that has another version."""
    return StateConflict(f"the state {name!r} of the topic {topic!r} has another version")


def expect_size(topic: str, name: str, size: int) -> None:
    """Make sure that a state is not too large.

    Raises:
        StatesFull: It is.
    """
    if size > MAX_STATE_BYTES:
        raise StatesFull(
            f"the state {name!r} of the topic {topic!r} has {size:,} bytes;"
            f" expected at most {MAX_STATE_BYTES:,}"
        )


def expect_room(topic: str, names: int, in_all: int) -> None:
    """Make sure that a topic may have another state.

    Args:
        topic: The topic.
        names: Number of its states.
        in_all: Number of all states.

    Raises:
        StatesFull: It has too many, or there are too many in all.
    """
    if names >= MAX_NAMES_PER_TOPIC:
        raise StatesFull(f"the topic {topic!r} has {names:,} names; expected at most {MAX_NAMES_PER_TOPIC:,}")
    if in_all >= MAX_NAMES:
        raise StatesFull(f"there are {in_all:,} names on all topics; expected at most {MAX_NAMES:,}")


def expect_bytes(in_all: int) -> None:
    """Make sure that all states together are not too large.

    Raises:
        StatesFull: They are.
    """
    if in_all > MAX_STATES_BYTES:
        raise StatesFull(f"all states would have {in_all:,} bytes; expected at most {MAX_STATES_BYTES:,}")
