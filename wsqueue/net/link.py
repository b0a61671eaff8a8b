"""A connection that is kept up: it is opened again for ever, with jittered exponential backoff.

Producers keep one to each consumer; a client keeps one to some producer and one for each topic.

In v2 the peer acknowledges what it has stored, and the link is up when the hello is done. The classic
protocol has no acknowledgements, but a pong says that the peer has dealt with all that came before the
ping. A link pings with the number of messages sent, and so knows at most how many are lost when the
connection breaks. It is up once its first ping is answered: an original node answers the hello before it
has verified ours, and would drop what comes until it closes on a wrong answer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from time import monotonic

import msgspec

from ..config.addresses import Address
from ..config.model import ClientConfig, ProducerConfig
from ..errors import why
from ..journal import log
from ..protocol.close import UNREACHABLE, CloseCode, Closed
from ..protocol.framing import PongReceived
from ..protocol.keys import PreSharedKey
from ..protocol.session import Event, HelloDone, Session
from .certificates import TlsContexts
from .connection import Connection

logger = logging.getLogger(__name__)

RECONNECT_MIN_SECONDS = 0.1
"""The first delay: long enough not to spin, short enough that a restart goes unnoticed."""

SLICE_BYTES = 256 * 1024
"""What is written at a time of what was held, so that a slow link is noticed before it is flooded."""

CONFIRM_SECONDS = 0.1
"""The longest that a sent message waits for the ping that confirms it: 10 pings a second cost nothing."""


class Link:
    """Keep one connection up to the first of some addresses that answers.

    Subclasses override `up`, `down`, `writable`, `received_events`, `confirmed_to` and `retry`.

    Args:
        addresses: Tried in turn, with their paths.
        psk: The key of both ends.
        config: Says how to speak to the peer, and has deadlines and sizes.
        tls: What a connection to a wss:// address needs.

    Attributes:
        failures: Why the latest attempt at each address failed, and since the last success.
        connection: While it is up.
        since: When it came up or went down (monotonic).
    """

    peer_role = "node"
    feeds = False
    serves_nodes = False
    never_up_level = logging.WARNING
    """The level of the log line that says that a connection cannot be opened and never was."""
    up_level = logging.INFO
    down_level = logging.WARNING
    """The level of the log line that says that the connection is lost, but for a normal end."""

    def __init__(
        self,
        addresses: Sequence[Address],
        psk: PreSharedKey,
        config: ProducerConfig | ClientConfig,
        tls: TlsContexts,
    ) -> None:
        self.addresses = list(addresses)
        self.failures: dict[Address, Closed] = {}
        self.connection: Connection | None = None
        self.sent = self.confirmed = 0
        self.since = monotonic()
        self._next = self._ups = 0
        self._old_bytes_in = self._old_bytes_out = 0
        self._pause: float | None = None
        self._psk, self._config, self._limits, self._tls = psk, config, config.limits, tls
        self._attempt: Connection | None = None
        self._ended: asyncio.Future[Closed] | None = None
        self._task: asyncio.Task[None] | None = None
        self._confirm_timer: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def open(self) -> bool:
        """Tell whether messages can be sent now and the peer keeps up with them."""
        connection = self.connection
        return connection is not None and connection.sendable and not connection.congested

    @property
    def v2(self) -> bool:
        """Tell whether the peer speaks v2; False while there is no connection."""
        return self.connection is not None and self.connection.session.v2

    @property
    def traffic(self) -> tuple[int, int]:
        """Return the bytes read and written so far, on all connections."""
        now = self._attempt
        if now is None:
            return self._old_bytes_in, self._old_bytes_out
        return self._old_bytes_in + now.bytes_in, self._old_bytes_out + now.bytes_out

    @property
    def in_flight(self) -> int:
        """Return how many classic messages were sent and not confirmed: what a broken connection can lose."""
        return self.sent - self.confirmed

    def start(self) -> None:
        """Begin to connect, unless that goes on already."""
        if self._task is None or self._task.done():
            self.failures.clear()
            self._task = asyncio.create_task(self._run())

    def reconfigure(self, psk: PreSharedKey, config: ProducerConfig | ClientConfig, tls: TlsContexts) -> None:
        """Use another key, configuration and certificates from the next connection on."""
        self._psk, self._config, self._limits, self._tls = psk, config, config.limits, tls

    async def stop(self) -> None:
        """Close the connection, waiting for the peer to read all of it, and stay down."""
        task = self._task
        if task is None:
            return
        if self.connection is not None and self._ended is not None:
            self.connection.close(CloseCode.NORMAL)
            await asyncio.wait([self._ended])
        task.cancel()
        await asyncio.wait([task])

    def leave(self, retry_seconds: float) -> None:
        """Prepare for the end of the connection to a node that is about to stop.

        The next attempt goes to another node at once, or to the same after a random part of a time.
        """
        alone = len(self.addresses) == 1
        self._pause = random.uniform(0, retry_seconds) if alone else 0.0  # noqa: S311 - as for _delay

    def abort(self) -> None:
        """Cut the connection, and stay down."""
        if self.connection is not None:
            self.connection.abort(CloseCode.GOING_AWAY)
        if self._task is not None:
            self._task.cancel()

    def send(self, payloads: Sequence[bytes]) -> None:
        """Write classic messages in one go; call it only while `open`."""
        assert self.connection is not None
        self.sent += len(payloads)
        self.connection.send(payloads)
        if self._confirm_timer is None:
            self._confirm_later()

    async def all_confirmed(self) -> None:
        """Wait until the peer has dealt with all that was sent so far, or the connection is lost."""
        if self.in_flight:
            self._ask_to_confirm()
            waiting = (self.sent, asyncio.get_running_loop().create_future())
            self._waiting.append(waiting)
            try:
                await waiting[1]
            finally:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)

    def up(self) -> None:
        """Use the connection, which can take messages now."""

    def down(self, closed: Closed, lost: int) -> None:
        """Do without the connection; at most `lost` messages went with it."""

    def writable(self, connection: Connection) -> None:
        """Go on writing after the connection was congested, perhaps."""

    def received_events(self, events: list[Event]) -> None:
        """Take what the peer sends."""

    def confirmed_to(self, count: int) -> None:
        """Note that the peer has dealt with so many classic messages of this connection."""

    def established(self, connection: Connection) -> None:
        """Use the connection, or ask a classic peer first whether it takes this end for proved too."""
        if connection.session.v2:
            self._use(connection)
        else:
            connection.ping(_count(0))

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Take all events of one read."""
        for event in events:
            if self.connection is None and not isinstance(event, HelloDone):
                self._use(connection)
            if isinstance(event, PongReceived) and len(event.data) == len(_count(0)):
                self._confirm(int.from_bytes(event.data))
        self.received_events(events)

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Let go of a connection, whether or not it was ever established."""
        if connection is self.connection:
            self.connection = None
            self.since = monotonic()
            lost = 0 if connection.session.closed_cleanly else self.in_flight
            if not lost:
                self.confirmed_to(self.sent)
            self._settle(self.sent)
            level = self.up_level if closed.code == CloseCode.NORMAL else self.down_level
            log(logger, level, "link down", peer=self._address, reason=closed, in_flight=lost)
            self.down(closed, lost)
        elif connection.established:
            hint = "after the hello: does it expect another hello_order?"
            closed = msgspec.structs.replace(closed, reason=f"{closed.reason} {hint}".strip())
        if connection is self._attempt and self._ended is not None and not self._ended.done():
            self._ended.set_result(closed)

    def retry(self, closed: Closed) -> bool:
        """Tell whether to connect again; called when a connection failed or ended."""
        return True

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
            if not self.retry(closed):
                return
            # A connection that is lost soon after it came up counts as a failure, lest it spin.
            stable = was_up and loop.time() - began > self._limits.reconnect_max_seconds
            failures = 0 if stable else failures + 1
            self._next = (self._next + 1) % len(self.addresses)
            pause, self._pause = self._pause, None
            await asyncio.sleep(self._delay(failures // len(self.addresses)) if pause is None else pause)

    async def _connect(self) -> Closed:
        """Open a connection and return why it failed or, later, why it ended."""
        address, limits = self._address, self._limits
        self._ended = asyncio.get_running_loop().create_future()
        session = Session.initiate(
            address.host or "localhost",
            address.port or 80,
            address.path,
            self._psk,
            self._config.hello_order,
            allow_classic=self._config.allow_classic,
            max_message_bytes=limits.max_message_bytes,
            max_topic_bytes=limits.max_topic_bytes,
        )
        self._attempt = connection = Connection(session, limits, self, tls=self._tls.connect(address))
        try:
            await connection.open(address)
            return await self._ended
        except TimeoutError:
            return Closed(UNREACHABLE, "no answer in time", by_peer=True)
        except OSError as error:
            return Closed(UNREACHABLE, why(error), by_peer=True)
        finally:
            connection.abort(CloseCode.NORMAL)
            self._old_bytes_in, self._old_bytes_out = self.traffic
            self._attempt = None

    @property
    def _address(self) -> Address:
        return self.addresses[self._next]

    def _delay(self, rounds: int) -> float:
        ceiling = min(self._limits.reconnect_max_seconds, RECONNECT_MIN_SECONDS * 2.0 ** min(rounds, 16))
        return ceiling * random.uniform(0.5, 1)  # noqa: S311 - jitter needs no secrecy

    def _use(self, connection: Connection) -> None:
        self.connection = connection
        self.since = monotonic()
        self.sent = self.confirmed = 0
        self._ups += 1
        self.failures.clear()
        log(logger, self.up_level, "link up", peer=self._address)
        self.up()

    def _confirm_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._confirm_timer = loop.call_later(CONFIRM_SECONDS, self._ask_to_confirm)

    def _ask_to_confirm(self) -> None:
        if self.connection is not None:
            self.connection.ping(_count(self.sent))

    def _confirm(self, count: int) -> None:
        if self.confirmed <= count <= self.sent:
            self._settle(count)
            self.confirmed_to(count)

    def _settle(self, count: int) -> None:
        """Go on with those that waited for so many messages to be confirmed, or lost."""
        self.confirmed = count
        while self._waiting and self._waiting[0][0] <= count:
            _, confirmed = self._waiting.pop(0)
            if not confirmed.done():
                confirmed.set_result(None)
        if self._confirm_timer is not None:
            self._confirm_timer.cancel()
            self._confirm_timer = None
        if self.in_flight:
            self._confirm_later()


def _count(messages: int) -> bytes:
    """Return the data of the ping that follows so many messages."""
    return messages.to_bytes(8)
