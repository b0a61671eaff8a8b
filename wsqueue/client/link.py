"""The link of a client to a node: it gives up after a time, with an error that says why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ..config.addresses import Address
from ..config.model import ClientConfig
from ..errors import AuthenticationError, ConnectError
from ..net.certificates import TlsContexts
from ..net.connection import Connection
from ..net.link import Link
from ..protocol.close import CloseCode, Closed
from ..protocol.keys import PreSharedKey


class ClientLink(Link):
    """Keep a connection up for an application, and tell it when that is hopeless."""

    never_up_level = logging.INFO  # the application gets an error that says as much

    def __init__(
        self, addresses: Sequence[Address], psk: PreSharedKey, config: ClientConfig, tls: TlsContexts
    ) -> None:
        super().__init__(addresses, psk, config, tls)
        self._changed = asyncio.Event()
        self._was_up = False

    @property
    def ready(self) -> bool:
        """Tell whether the connection does what it is for."""
        return self.open

    async def wait_open(self, seconds: float) -> None:
        """Wait until the connection is ready.

        Raises:
            ConnectError: No node answers: within `seconds` once one has, else on the first try.
            AuthenticationError: All nodes have another key.
        """
        self.start()
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        try:
            while not self.ready:
                self.raise_if_hopeless()
                if self.connection is not None and self.connection.session.established:
                    # It is up and slow: that is backpressure, which takes as long as it takes.
                    deadline = None
                elif deadline is None:
                    deadline = loop.time() + seconds
                self._changed.clear()
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
        except TimeoutError:
            raise ConnectError(self._failure_text()) from None

    def raise_if_hopeless(self) -> None:
        """Raise when every address refuses for good, or none ever answered.

        Raises:
            ConnectError: Trying longer would not help.
            AuthenticationError: It would not help, for the keys differ.
        """
        failures = [self.failures.get(address) for address in self.addresses]
        closed = [failure for failure in failures if failure is not None]
        if len(closed) < len(failures) or self.connection is not None:
            return
        if all(failure.code == CloseCode.WRONG_ANSWER for failure in closed):
            raise AuthenticationError(self._failure_text())
        if not self._was_up or not any(failure.reconnect for failure in closed):
            raise ConnectError(self._failure_text())

    def up(self) -> None:
        """Tell whoever waits."""
        self._was_up = True
        self.notify()

    def writable(self, connection: Connection) -> None:
        """Tell whoever waits."""
        self.notify()

    def retry(self, closed: Closed) -> bool:
        """Go on unless every address refuses for good."""
        self.notify()
        failures = self.failures
        return len(failures) < len(self.addresses) or any(one.reconnect for one in failures.values())

    def notify(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()

    def _failure_text(self) -> str:
        nodes = (f"{address}: {self.failures.get(address, 'no answer')}" for address in self.addresses)
        return "no node answers: " + "; ".join(nodes)
