"""A connection that is kept up: it is opened again for ever, with jittered exponential backoff.

Producers keep one to each consumer; a client keeps one to some producer and one to each consumer.

A `Link` is in one of five states; each arrow names the method that takes it:

```
stopped --start--> connecting --established--> proving --received--> up
                    ^      |                      |                  |
                    |     lost                   lost              lost, down
                    |      v                      v                  |
                    +--- pausing <----------------+------------------+
```

- connecting: `_attempt` is a connection whose hello isn't done; it fails after `hello_seconds`.
- proving: only with a classic peer. An original node answers the hello before it has verified our answer, and
  drops all messages until it closes on a wrong one. So the link pings, and is up once anything is received.
- up: `connection` is the same object as `_attempt`; subclasses send on it from `up` to `down`.
- pausing: `_attempt` and `connection` are None while `_run` sleeps; how long, the backoff or `leave` says.

`stop` and `abort` end it in any state, and so does the end of the event loop; `gives_up` ends it after a
failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from time import monotonic

import msgspec

from ..config.addresses import Address
from ..config.model import ClientConfig, ProducerConfig
from ..errors import WsqueueError, why
from ..journal import log
from ..protocol.close import UNREACHABLE, CloseCode, Closed
from ..protocol.keys import PreSharedKey
from ..protocol.pongs import encode_count
from ..protocol.session import Event, HelloDone, Session
from .certificates import TlsContexts
from .connection import Connection, Handler, Traffic
from .credential import Credential

logger = logging.getLogger(__name__)

RECONNECT_MIN_SECONDS = 0.1
"""First delay of the backoff: long enough not to spin, short enough that a restart goes unnoticed."""

SLICE_BYTES = 256 * 1024
"""Bytes of held data written at a time, so that a slow link is noticed before it is flooded."""


class Link(Handler):
    """Keep one connection up to the first of some addresses that answers.

    Subclasses override `up`, `down`, `writable`, `received_events`, `attempt_ended`, `gives_up` and
    `in_flight`.

    Args:
        addresses: Addresses with their paths, tried in turn.
        psk: The key of both ends.
        config: It has the options of the protocol, deadlines and sizes.
        tls: The contexts for connections to wss:// addresses.
        traffic: Counts the bytes of its connections.

    Attributes:
        failures: Reason of the latest failure at each address, since the last success.
        connection: The connection while the link is up, else None.
        since: Time when the link came up or went down (monotonic).
    """

    peer_role = "node"
    never_up_level = logging.WARNING
    """Level of the log line about a link that can't be opened and never was up."""
    up_level = logging.INFO
    down_level = logging.WARNING
    """Level of the log line about a lost connection, except after a normal end."""

    def __init__(
        self,
        addresses: Sequence[Address],
        psk: PreSharedKey | Credential,
        config: ProducerConfig | ClientConfig,
        tls: TlsContexts,
        traffic: Traffic | None = None,
    ) -> None:
        self.addresses = list(addresses)
        self.failures: dict[Address, Closed] = {}
        self.connection: Connection | None = None
        self.since = monotonic()
        self._next = self._ups = 0
        self._traffic = traffic or Traffic()
        self._pause: float | None = None
        self._credential = psk if isinstance(psk, Credential) else Credential(psk)
        self._config, self._limits, self._tls = config, config.limits, tls
        self._attempt: Connection | None = None
        self._ended: asyncio.Future[Closed] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Return True if messages can be sent now and the peer keeps up with them."""
        connection = self.connection
        return connection is not None and connection.sendable and not connection.congested

    @property
    def v2(self) -> bool:
        """Return True if the peer speaks v2; False while there is no connection."""
        return self.connection is not None and self.connection.session.v2

    @property
    def in_flight(self) -> int:
        """Return how many messages would be lost if the connection broke now."""
        return 0

    @property
    def cut(self) -> bool:
        """Return True if its task was cancelled, as by the end of the event loop: then it stays down.

        The loop cancels all tasks at once, and would destroy one that begins after that.
        """
        return self._task is not None and self._task.cancelled()

    @property
    def gives_up(self) -> bool:
        """Return True if there is no point in connecting again after the latest failure."""
        return False

    def start(self) -> None:
        """Start connecting, unless the link is started."""
        if self._task is None or self._task.done():
            self.failures.clear()
            self._task = asyncio.create_task(self._run())

    def reconfigure(self, psk: PreSharedKey, config: ProducerConfig | ClientConfig, tls: TlsContexts) -> None:
        """Use another key, configuration and certificates from the next connection on."""
        self._credential = Credential(psk)
        self._config, self._limits, self._tls = config, config.limits, tls

    async def stop(self) -> None:
        """Close the connection, waiting until the peer has read all data, and stay down."""
        task = self._task
        if task is None:
            return
        try:
            if self.connection is not None and self._ended is not None:
                self.connection.close(CloseCode.NORMAL)
                await asyncio.wait([self._ended])
        finally:
            # Also if the caller is cancelled, because the link would connect again.
            task.cancel()
        await asyncio.wait([task])

    def leave(self, retry_seconds: float) -> None:
        """Prepare for the end of the connection to a node that is about to stop.

        The next attempt goes to another node at once, or to the same node after a random part of the time.
        """
        alone = len(self.addresses) == 1
        self._pause = random.uniform(0, retry_seconds) if alone else 0.0  # noqa: S311 - as for delay_seconds

    def abort(self) -> None:
        """Cut the connection, and stay down."""
        if self.connection is not None:
            self.connection.abort(CloseCode.GOING_AWAY)
        if self._task is not None:
            self._task.cancel()

    def detach(self) -> None:
        """Let go of the connection without a word to the peer, in a process that got it by a fork."""
        if self._attempt is not None:
            self._attempt.detach()
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._task.cancel()

    def delay_seconds(self, rounds: int) -> float:
        """Return the time before the next attempt, after some rounds through all addresses failed."""
        ceiling = min(self._limits.reconnect_max_seconds, RECONNECT_MIN_SECONDS * 2.0 ** min(rounds, 16))
        return ceiling * random.uniform(0.5, 1)  # noqa: S311 - jitter needs no secrecy

    def up(self) -> None:
        """Use the connection; called when it can take messages."""

    def down(self, closed: Closed, lost: int) -> None:
        """Do without the connection; called when it is lost, with at most `lost` messages."""

    def received_events(self, events: list[Event]) -> None:
        """Take the events that the peer's bytes hold, while the connection is up."""

    def attempt_ended(self, closed: Closed) -> None:
        """Note that a connection failed or ended; `failures` has it already."""

    def established(self, connection: Connection) -> None:
        """Use the connection; ping a classic peer first, to learn that it has verified this end."""
        if connection.session.v2:
            self._use(connection)
        else:
            connection.ping(encode_count(0))

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Take all events of one read."""
        for event in events:
            if self.connection is None and not isinstance(event, HelloDone):
                self._use(connection)
        self.received_events(events)

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Forget a connection, whether or not it was ever established."""
        if connection is self.connection:
            self.connection = None
            self.since = monotonic()
            lost = 0 if connection.session.closed_cleanly else self.in_flight
            level = self.up_level if closed.code == CloseCode.NORMAL else self.down_level
            log(logger, level, "link down", peer=self._address, reason=closed, in_flight=lost)
            self.down(closed, lost)
        elif connection.established:
            hint = "after the hello: does it expect another hello_order?"
            closed = msgspec.structs.replace(closed, reason=f"{closed.reason} {hint}".strip())
        if connection is self._attempt and self._ended is not None and not self._ended.done():
            self._ended.set_result(closed)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began, ups = loop.time(), self._ups
            closed = await self._connect()
            was_up = self._ups > ups
            if not was_up and self.failures.get(self._address) != closed:
                level = self.down_level if self._ups else self.never_up_level
                log(logger, level, "link cannot open", peer=self._address, reason=closed)
            self.failures[self._address] = closed
            self.attempt_ended(closed)
            if self.gives_up:
                return
            # A connection that is lost soon after it came up counts as a failure; else the link would spin.
            stable = was_up and loop.time() - began > self._limits.reconnect_max_seconds
            failures = 0 if stable else failures + 1
            self._next = (self._next + 1) % len(self.addresses)
            pause, self._pause = self._pause, None
            await asyncio.sleep(
                self.delay_seconds(failures // len(self.addresses)) if pause is None else pause
            )

    async def _connect(self) -> Closed:
        """Open a connection; return the reason when it has failed or ended."""
        credential, ups = self._credential, self._ups
        try:
            psk = await credential.current()
            closed = await self._connect_with(psk)
            if closed.code == CloseCode.TOKEN_ENDED and credential.renewable and self._ups == ups:
                # It had ended before; the next token may do.
                credential.ended(psk)
                psk = await credential.current()
                closed = await self._connect_with(psk)
            if closed.code == CloseCode.TOKEN_ENDED and credential.renewable and self._ups > ups:
                # The next attempt has the next token.
                credential.ended(psk)
                closed = msgspec.structs.replace(closed, code=CloseCode.GOING_AWAY)
        except WsqueueError as error:
            return Closed(UNREACHABLE, str(error), by_peer=False)
        return closed

    async def _connect_with(self, psk: PreSharedKey) -> Closed:
        """Open a connection with a key; return the reason when it has failed or ended."""
        address, limits = self._address, self._limits
        self._ended = asyncio.get_running_loop().create_future()
        session = Session.initiator(
            address.host or "localhost",
            address.port or 80,
            address.path,
            psk,
            self._config.hello_order,
            allow_classic=self._config.allows_classic(address),
            max_message_bytes=limits.max_message_bytes,
            max_topic_bytes=limits.max_topic_bytes,
        )
        tls = self._tls.connect(address)
        self._attempt = connection = Connection(
            session, limits, handler=self, tls=tls, traffic=self._traffic, binds=self._config.binds
        )
        try:
            await connection.open(address, self._config)
            return await self._ended
        except TimeoutError:
            return Closed(UNREACHABLE, "no answer in time", by_peer=True)
        except OSError as error:
            return Closed(UNREACHABLE, why(error), by_peer=True)
        finally:
            connection.abort(CloseCode.NORMAL)
            self._attempt = None

    @property
    def _address(self) -> Address:
        return self.addresses[self._next]

    def _use(self, connection: Connection) -> None:
        self.connection = connection
        self.since = monotonic()
        self._ups += 1
        self.failures.clear()
        log(logger, self.up_level, "link up", peer=self._address)
        if len(self.addresses) > 1 and self.v2:
            connection.watch_closely()
        self.up()
