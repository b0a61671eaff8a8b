"""The link of a client to a node: it gives up after a time, with an error that says why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

import msgspec

from ..config.addresses import Address
from ..config.model import ClientConfig
from ..errors import AuthenticationError, ConnectError, NotAllowedError
from ..net.certificates import TlsContexts
from ..net.connection import Connection
from ..net.credential import Credential
from ..net.link import Link
from ..net.timers import deadline
from ..protocol.close import CloseCode, Closed
from .failover import SharedLog
from .owner import Owner


class ClientSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the settings that all links of a client share.

    Attributes:
        config: The nodes, how to speak to them, and the limits.
        credential: The key or the token of this client.
        tls: Contexts for connections to wss:// addresses.
        open_seconds: How long to wait for a node that does not answer.
        owner: The process and the event loop that use the client.
        shared_log: Which consumers share a log.
    """

    config: ClientConfig
    credential: Credential
    tls: TlsContexts
    open_seconds: float
    owner: Owner
    shared_log: SharedLog = msgspec.field(default_factory=SharedLog)


class ClientLink(Link):
    """Keep a connection up for an application, and raise an error when no node can be reached."""

    never_up_level = logging.INFO  # the application gets an error that says the same

    def __init__(self, addresses: Sequence[Address], settings: ClientSettings) -> None:
        super().__init__(addresses, settings.credential, settings.config, settings.tls)
        self._owner = settings.owner
        self._owner.add(self)
        self._changed = asyncio.Event()
        self._was_up = False

    @property
    def ready(self) -> bool:
        """Return True if the connection can be used."""
        return self.open

    @property
    def answered(self) -> bool:
        """Return True if a node has answered, and the connection is up."""
        return self.connection is not None and self.connection.session.established

    def start(self) -> None:
        """Start connecting, unless the link is started or belongs to another process."""
        if not self._owner.forked:
            super().start()

    async def wait_open(self, seconds: float) -> None:
        """Wait until the connection is ready.

        Raises:
            ConnectError: No node answers: within `seconds` if one has answered before, else on the first try.
            AuthenticationError: All nodes have another key.
        """
        self.start()
        loop = asyncio.get_running_loop()
        until: float | None = None
        try:
            while not self.ready:
                self.raise_if_hopeless()
                if self.answered:
                    # The connection is up and slow: that is backpressure, which has no deadline.
                    until = None
                elif until is None:
                    until = loop.time() + seconds
                self._changed.clear()
                async with deadline(None if until is None else until - loop.time()):
                    await self._changed.wait()
        except TimeoutError:
            raise ConnectError(self._failure_text()) from None

    async def until(self, finished: Callable[[], bool], seconds: float) -> None:
        """Wait until an answer has come, and connect again for that.

        Args:
            finished: Returns True once it has.
            seconds: How long to wait for a connection.

        Raises:
            ConnectError: As `wait_open`.
            AuthenticationError: As `wait_open`.
        """
        while not finished():
            await self.wait_open(seconds)
            if not finished():
                await self._until_changed()

    async def _until_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def raise_if_hopeless(self) -> None:
        """Raise if every address refuses for good, or if none has ever answered.

        Raises:
            ConnectError: Trying longer would not help.
            AuthenticationError: Trying longer would not help, because the keys differ or the token has ended.
            NotAllowedError: Trying longer would not help, because the key does not allow it.
        """
        failures = [self.failures.get(address) for address in self.addresses]
        closed = [failure for failure in failures if failure is not None]
        if len(closed) < len(failures) or self.connection is not None:
            return
        if all(failure.code in (CloseCode.WRONG_ANSWER, CloseCode.TOKEN_ENDED) for failure in closed):
            raise AuthenticationError(self._failure_text())
        if all(failure.code == CloseCode.NOT_ALLOWED for failure in closed):
            raise NotAllowedError(self._failure_text())
        if not self._was_up or not any(failure.reconnect for failure in closed):
            raise ConnectError(self._failure_text())

    def up(self) -> None:
        """Wake the tasks that wait for the connection."""
        self._was_up = True
        self.notify()

    def writable(self, connection: Connection) -> None:
        """Wake the tasks that wait until more can be written."""
        self.notify()

    @property
    def gives_up(self) -> bool:
        """Return True if every address refuses for good."""
        failures = self.failures
        return len(failures) == len(self.addresses) and not any(
            failure.reconnect for failure in failures.values()
        )

    def attempt_ended(self, closed: Closed) -> None:
        """Wake the tasks that wait for the connection."""
        self.notify()

    def notify(self) -> None:
        """Wake all tasks that wait for a change."""
        self._changed.set()

    def _failure_text(self) -> str:
        nodes = (f"{address}: {self.failures.get(address, 'no answer')}" for address in self.addresses)
        return "no node answers: " + "; ".join(nodes)


def resolve(waiters: Iterable[asyncio.Future[None]]) -> None:
    """Let those go on who wait for a confirmation, and were not cancelled meanwhile."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)


def fail(waiters: Iterable[asyncio.Future[None]], error: Exception) -> None:
    """Raise an error where somebody waits for a confirmation."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)
            # The task that waits may have been cancelled: don't log that nothing retrieved the error.
            waiter.exception()
