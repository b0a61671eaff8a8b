"""The state of a group in the store, and the right of one consumer to change it.

With a log of its own, a consumer is the only one that could. Consumers that share a log agree by the state
itself: it names its coordinator, and each change has a new version. No clock of another host is asked:

| this consumer | when | then |
|---|---|---|
| watches | the state names another one | that one goes on if it changes the state; else it is replaced |
| coordinates | the state names it | it changes the state every few seconds, or another one takes over |
| is late | its last change is too old | it lends nothing until a change succeeds, or gives up |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from ..errors import StorageError
from ..log.states import StateConflict
from ..log.store import Store
from .state import GroupState, decode_state

RENEW_SECONDS = 3.0
"""Time between two changes of a state that names its coordinator, so that others see that it is there."""

TAKEOVER_SECONDS = 10.0
"""Time without a change after which another consumer takes over: longer than an election of the servers."""

LATE_SECONDS = 7.0
"""Time without a change after which a coordinator lends nothing: another one may take over soon."""

WATCH_SECONDS = 1.0
"""Time between two looks at a state that names another coordinator."""


class Elsewhere(Exception):  # noqa: N818 - reads best where it is raised
    """Say that another consumer coordinates the group."""


class StateKeeper:
    """Read and write the state of one group.

    Args:
        logs: The logs of all topics.
        topic: The topic of the group.
        name: The name of the group.
        owner: Id of this consumer.
        pause: Sleeps; a test may do without.
    """

    def __init__(
        self,
        logs: Store,
        topic: str,
        name: str,
        owner: str,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._logs, self._topic, self._key, self._pause = logs, topic, state_name(name), pause
        self._owner = owner if logs.shared is not None else ""
        self._version = 0
        self._changed = time.monotonic()

    @property
    def renewal_due(self) -> bool:
        """Return True if the state must be written, though nothing has changed in it."""
        return bool(self._owner) and time.monotonic() - self._changed >= RENEW_SECONDS

    @property
    def late(self) -> bool:
        """Return True if another consumer may take over, so that nothing should be lent."""
        return bool(self._owner) and time.monotonic() - self._changed >= LATE_SECONDS

    async def load(self) -> GroupState | None:
        """Return the state, None if the group is new; watch one that names another coordinator first.

        Raises:
            Elsewhere: That one goes on.
            StorageError: The state cannot be read.
            ValueError: It is none.
        """
        began = time.monotonic()
        seen: int | None = None
        while (kept := await self._logs.state(self._topic, self._key)) is not None:
            self._version = kept.version
            state = decode_state(kept.value)
            if state.coordinator in ("", self._owner):
                return state
            if seen not in (None, kept.version):
                raise Elsewhere
            if seen is not None and time.monotonic() - began >= TAKEOVER_SECONDS:
                return state
            seen = kept.version
            await self._pause(WATCH_SECONDS)
        self._version = 0
        return None

    async def keep(self, state: GroupState, *, release: bool = False) -> None:
        """Write the state.

        Args:
            state: The state.
            release: True if this consumer coordinates the group no more.

        Raises:
            Elsewhere: Another consumer has changed it.
            WsqueueError: The store doesn't take it, or it is not known whether it has.
        """
        state.coordinator = "" if release else self._owner
        value = state.encode()
        try:
            self._version = await self._logs.change_state(self._topic, self._key, value, self._version)
        except StateConflict:
            # An earlier change of this consumer may have got through without an answer.
            kept = await self._logs.state(self._topic, self._key)
            if not self._owner or kept is None or not self._is_own(kept.value):
                raise Elsewhere from None
            self._version = kept.version
            raise StorageError("the state was changed by an earlier attempt") from None
        self._changed = time.monotonic()

    def _is_own(self, value: bytes) -> bool:
        try:
            return decode_state(value).coordinator == self._owner
        except ValueError:
            return False


def state_name(group: str) -> str:
    """Return the name under which the store keeps the state of a group."""
    return f"group/{group}"
