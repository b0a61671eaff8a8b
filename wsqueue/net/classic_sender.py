"""Sending on a classic connection: messages out, pings after them, confirmed messages by their pongs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from ..protocol.framing import PongReceived
from ..protocol.pongs import PongConfirmations
from ..protocol.session import Event
from .connection import Connection

CONFIRM_SECONDS = 0.1
"""The longest time between a message and the ping that asks about it: 10 pings a second cost nothing.

Where somebody waits for the confirmation the ping goes at once, and the next one when it is answered.
"""


class ClassicSender:
    """Send messages on one classic connection, and know how many of them the peer has dealt with.

    Args:
        connection: It is up, and nothing else sends messages on it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._counts = PongConfirmations()
        self._timer: asyncio.TimerHandle | None = None
        # Whether somebody waits for messages since the latest ping.
        self._awaited = False
        # Who waits in `all_confirmed`, each with the number of messages that must be confirmed.
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def in_flight(self) -> int:
        """Return the number of messages that are lost if the connection breaks now."""
        return self._counts.in_flight

    def send(self, payloads: Sequence[bytes], *, awaited: bool = False) -> None:
        """Write messages in one go.

        Args:
            payloads: The messages.
            awaited: True if somebody waits for their confirmation.
        """
        self._counts.add(len(payloads))
        self._connection.send(payloads)
        self._awaited |= awaited
        self._schedule_ping()

    def receive(self, events: Iterable[Event]) -> int | None:
        """Take the pongs among events; return how many messages are confirmed now, None if none was ours."""
        ours = False
        for event in events:
            if isinstance(event, PongReceived):
                ours |= self._counts.receive_pong(event.data)
        if not ours:
            return None
        self._cancel_ping()
        self._schedule_ping()
        self._release(self._counts.confirmed)
        return self._counts.confirmed

    async def all_confirmed(self) -> None:
        """Wait until the peer has dealt with all that was sent so far, or the connection is lost."""
        if self.in_flight:
            self._awaited = True
            self._schedule_ping()
            confirmed = asyncio.get_running_loop().create_future()
            self._waiting.append((self._counts.sent, confirmed))
            await confirmed

    def close(self) -> None:
        """Stop asking, because the connection is lost."""
        self._cancel_ping()
        self._release(self._counts.sent)

    def _release(self, count: int) -> None:
        while self._waiting and self._waiting[0][0] <= count:
            _, confirmed = self._waiting.popleft()
            if not confirmed.done():  # its task may have been cancelled
                confirmed.set_result(None)

    def _schedule_ping(self) -> None:
        if self._awaited and self._counts.ping_due:
            self._ping()
        elif self._timer is None and self._counts.ping_due:
            self._timer = asyncio.get_running_loop().call_later(CONFIRM_SECONDS, self._ping_now)

    def _cancel_ping(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ping_now(self) -> None:
        self._timer = None
        self._ping()

    def _ping(self) -> None:
        self._cancel_ping()
        self._awaited = False
        self._connection.ping(self._counts.ping())
