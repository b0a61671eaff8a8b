"""The publisher: an outbox over one link to a producer, and the tasks that wait for it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from ..config.addresses import Address
from ..errors import ConnectError, PublishError, WsqueueError
from ..journal import log
from ..net.classic_sender import ClassicSender
from ..net.connection import Connection
from ..net.link import SLICE_BYTES
from ..net.timers import deadline
from ..protocol import v2
from ..protocol.close import CloseCode, Closed
from ..protocol.session import Event
from .encoding import EncodedMessages
from .link import ClientLink, ClientSettings, fail, resolve
from .outbox import BATCH_BYTES, Outbox, OutgoingBatch

logger = logging.getLogger(__name__)

CLIENT_CLOSED = "the client was closed"

Batch = OutgoingBatch[asyncio.Future[None]]


class PublisherLink(ClientLink):
    """Publish through one of several producers, whichever answers.

    `Outbox` knows which batches are to be sent and which are unconfirmed; this class moves them to and from
    the connection. A batch that is done releases the futures of `publish`; the first error of a message that
    no future stands for is kept for `flush`.

    While there is no connection, a guard task fails all batches after `open_seconds`.

    Args:
        addresses: Those of the producers.
        settings: Those of the client.
        secret: The secret of the publisher if the application keeps one, else each link has its own.

    Attributes:
        lost_in_flight: Number of messages that may be lost on connections to classic producers.
        confirmed: Number of messages that are confirmed, or that went to a classic producer.
    """

    def __init__(
        self, addresses: Sequence[Address], settings: ClientSettings, secret: bytes | None = None
    ) -> None:
        super().__init__(addresses, settings)
        self.lost_in_flight = self.confirmed = 0
        self._classic: ClassicSender | None = None
        self._open_seconds = settings.open_seconds
        self._secret = secret or secrets.token_bytes(v2.NONCE_BYTES)
        # No batch may be longer than a single message could be.
        self._max_message_bytes = settings.config.limits.max_message_bytes
        batch_bytes = min(BATCH_BYTES, self._max_message_bytes)
        self._outbox: Outbox[asyncio.Future[None]] = Outbox(batch_bytes=batch_bytes)
        self._error: WsqueueError | None = None
        self._sending_scheduled = False
        self._turn = asyncio.Lock()
        self._guard: asyncio.Task[None] | None = None
        self._stopped = False
        self._finishing: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """Return the number of classic messages that are lost if the connection breaks now."""
        return self._classic.in_flight if self._classic is not None else 0

    @property
    def unconfirmed(self) -> int:
        """Return the number of messages that are neither confirmed nor refused."""
        return self._outbox.unconfirmed

    @property
    def full(self) -> bool:
        """Return True if the window is used up: `drain` waits until it is not."""
        return self._outbox.full

    def publish(self, messages: EncodedMessages, number: int | None = None) -> asyncio.Future[Any]:
        """Publish messages, or one with its number; the future is done when they are confirmed or refused.

        Raises:
            ValueError: The number is not above the last one.
            PublishError: A message with a number was refused or failed before.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[None]] = []
        for batch in self._add(messages, number):
            futures.append(loop.create_future())
            batch.waiters.append(futures[-1])
        return futures[0] if len(futures) == 1 else asyncio.gather(*futures)

    def publish_nowait(self, messages: EncodedMessages, number: int | None = None) -> None:
        """Publish messages, or one with its number; `flush` raises their errors.

        Raises:
            ValueError: As for `publish`.
            PublishError: As for `publish`.
        """
        for batch in self._add(messages, number):
            batch.unwatched = True

    async def drain(self) -> None:
        """Wait until the window has room, in the order of the calls.

        Raises:
            ConnectError: The link was stopped meanwhile; a message would open it again.
        """
        if self.full or self._turn.locked():
            async with self._turn:
                while self.full:
                    await self._until_changed()
            if self._stopped:
                raise ConnectError(CLIENT_CLOSED)

    async def flush(self) -> None:
        """Wait until all messages that were published before are confirmed.

        Raises:
            WsqueueError: A message of `publish_nowait` was refused or failed.
        """
        last = self._outbox.number_all()
        while not self._outbox.done_up_to(last):
            await self._until_changed()
        if self._classic is not None:
            await self._classic.all_confirmed()
        self._raise_error()

    async def all_sent(self) -> None:
        """Wait until all messages that were published before are sent.

        Raises:
            WsqueueError: A message of `publish_nowait` was refused or failed.
        """
        last = self._outbox.number_all()
        while not self._outbox.sent_up_to(last):
            await self._until_changed()
        self._raise_error()

    def drop(self) -> None:
        """Close once all messages are confirmed, because the application has dropped its client."""
        if not self._stopped:
            self._finishing = asyncio.get_running_loop().create_task(self._finish())

    async def stop(self) -> None:
        """Close the connection, and stay down; unconfirmed messages fail."""
        self._stopped = True
        if self._guard is not None:
            self._guard.cancel()
        try:
            await super().stop()
        finally:
            self._fail_all(ConnectError(CLIENT_CLOSED))

    def up(self) -> None:
        """Send the publisher's secret and all unconfirmed batches."""
        assert self.connection is not None
        self._outbox.send_again()
        if self.v2:
            self.connection.send_packet(v2.Publisher(self._secret))
        else:
            self._classic = ClassicSender(self.connection)
        self._send()
        super().up()

    def writable(self, connection: Connection) -> None:
        """Send more."""
        self._send()
        super().writable(connection)

    def down(self, closed: Closed, lost: int) -> None:
        """Count the messages that a classic connection may have lost; others are sent again."""
        self.lost_in_flight += lost
        if self._classic is not None:
            self._classic.close()
            self._classic = None
        if closed.data_refused:
            # Another attempt would end in the same way.
            self._fail_all(PublishError("invalid", f"the producer does not take it: {closed.reason}"))
        if not self.cut:
            self._keep_guard()

    def received_events(self, events: list[Event]) -> None:
        """Take confirmations and refusals."""
        if self._classic is not None:
            self._classic.receive(events)
        for event in events:
            if isinstance(event, v2.Ack):
                for first, last in event.numbers:
                    self._release(self._outbox.acknowledge(first, last))
            elif isinstance(event, v2.Refused):
                batch = self._outbox.refuse(event.number)
                if batch is not None:
                    self._fail(batch, PublishError(event.code, event.reason))
            elif isinstance(event, v2.Draining):
                self.leave(event.retry_seconds)
                if self.connection is not None:
                    self.connection.close(CloseCode.NORMAL)
        self.notify()

    def _add(self, messages: EncodedMessages, number: int | None) -> list[Batch]:
        if number is None:
            batches = self._outbox.add(messages)
        else:
            batches = [self._outbox.add_numbered(messages, number)]
        if not self._sending_scheduled:
            # Messages that are published in the same turn of the event loop share batches.
            self._sending_scheduled = True
            asyncio.get_running_loop().call_soon(self._number_and_send)
        return batches

    def _number_and_send(self) -> None:
        self._sending_scheduled = False
        self._outbox.number_all()
        self._send()
        self._keep_guard()

    def _send(self) -> None:
        while self.open and (batches := self._outbox.take(SLICE_BYTES)):
            assert self.connection is not None
            if self._classic is None:
                self.connection.send([batch.packet() for batch in batches])
                continue
            for batch in batches:
                self._send_classic(self._classic, batch)
        self.notify()

    def _send_classic(self, sender: ClassicSender, batch: Batch) -> None:
        """Send a batch to a classic producer, which confirms nothing; fail one that it cannot take."""
        if problem := batch.classic_problem(self._max_message_bytes):
            self._outbox.refuse(batch.number)
            self._fail(batch, PublishError("invalid", problem))
            return
        sender.send(batch.classic_payloads())
        self._release(self._outbox.acknowledge(batch.number, batch.number))

    def _release(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self.confirmed += len(batch.messages)
            resolve(batch.waiters)

    async def _finish(self) -> None:
        waiting = self.unconfirmed
        try:
            async with deadline(self._open_seconds):
                await self.flush()
        except (WsqueueError, TimeoutError) as error:
            count = self.unconfirmed or waiting
            log(
                logger,
                logging.WARNING,
                "client dropped",
                unconfirmed=count,
                reason=error or "no answer in time",
            )
        finally:
            await self.stop()

    def _fail(self, batch: Batch, error: WsqueueError) -> None:
        if batch.unwatched:
            self._error = self._error or error
        fail(batch.waiters, error)

    def _fail_all(self, error: WsqueueError) -> None:
        for batch in self._outbox.fail_all():
            self._fail(batch, error)
        self.notify()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _keep_guard(self) -> None:
        """Make sure that unconfirmed messages fail when there is no connection for too long."""
        if not self._stopped and not self.open and (self._guard is None or self._guard.done()):
            self._guard = asyncio.create_task(self._wait_or_fail())

    async def _wait_or_fail(self) -> None:
        try:
            await self.wait_open(self._open_seconds)
        except ConnectError as error:
            self._fail_all(error)
