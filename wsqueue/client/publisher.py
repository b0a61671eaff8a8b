"""The publisher: batches, numbers, and what is not confirmed yet, over one link to a producer."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from ..config.addresses import Address
from ..errors import ConnectError, PublishError, WsqueueError
from ..net.classic_sender import ClassicSender
from ..net.connection import Connection
from ..net.link import SLICE_BYTES
from ..protocol import classic, v2
from ..protocol.close import CloseCode, Closed
from ..protocol.session import Event
from .link import ClientLink, ClientSettings

WINDOW_BYTES = 16 * 1024 * 1024
"""What may be published and not confirmed: above what a fast network and a disk have under way."""

WINDOW_MESSAGES = 100_000
"""The same in messages: small ones take more than their bytes."""

BATCH_BYTES = 64 * 1024
"""Where a batch ends: its fixed cost is small then, and so is the time to fill it."""


class _Batch(msgspec.Struct):
    """Hold messages until they are confirmed.

    Attributes:
        topic: Of all messages.
        data: The messages, until they are sent for the first time.
        size: Bytes that count for the window.
        confirmed: Whoever waits.
        payload: The packet that publishes them.
    """

    topic: str
    data: list[str]
    size: int = 0
    confirmed: list[asyncio.Future[None]] = msgspec.field(default_factory=list)
    payload: bytes = b""


class PublisherLink(ClientLink):
    """Publish through some producer: batch, number, send, and send again until it is confirmed."""

    def __init__(
        self,
        addresses: Sequence[Address],
        settings: ClientSettings,
    ) -> None:
        super().__init__(addresses, settings)
        self.lost_in_flight = 0
        self._classic: ClassicSender | None = None
        self._open_seconds = settings.open_seconds
        self._secret = base64.b64encode(secrets.token_bytes(v2.NONCE_BYTES)).decode()
        self._number = 0
        self._batch_bytes = min(BATCH_BYTES, settings.config.limits.max_message_bytes)
        # By topic, what is not numbered yet; by number, what is not confirmed; which of it is to be sent.
        self._forming: dict[str, _Batch] = {}
        self._outstanding: dict[int, _Batch] = {}
        self._unsent: deque[int] = deque()
        # The numbers of each topic that are outstanding, in their order.
        self._outstanding_of: dict[str, dict[int, None]] = {}
        self._bytes = self.unconfirmed = 0
        self._error: WsqueueError | None = None
        self._flushing = False
        self._turn = asyncio.Lock()
        self._guard: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """Return how many classic messages would be lost if the connection broke now."""
        return self._classic.in_flight if self._classic is not None else 0

    @property
    def full(self) -> bool:
        """Tell whether as much is not confirmed as may be."""
        return self._bytes >= WINDOW_BYTES or self.unconfirmed >= WINDOW_MESSAGES

    def publish(self, topic: str, data: Sequence[str], sizes: Sequence[int]) -> asyncio.Future[Any]:
        """Publish messages; the future is done when they are confirmed or refused."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[None]] = []
        for batch in self._form(topic, data, sizes):
            futures.append(loop.create_future())
            batch.confirmed.append(futures[-1])
        return futures[0] if len(futures) == 1 else asyncio.gather(*futures)

    def publish_nowait(self, topic: str, data: Sequence[str], sizes: Sequence[int]) -> None:
        """Publish messages; what goes wrong is raised by `flush`."""
        self._form(topic, data, sizes)

    async def drain(self) -> None:
        """Wait until more may be published; who came first goes first."""
        if self.full or self._turn.locked():
            async with self._turn:
                while self.full:
                    await self._until_changed()

    async def flush(self) -> None:
        """Wait until all that was published so far is confirmed.

        Raises:
            WsqueueError: Something nobody waited for was not.
        """
        last = self._number_forming()
        while self._outstanding and next(iter(self._outstanding)) <= last:
            await self._until_changed()
        if self._classic is not None:
            await self._classic.all_confirmed()
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def all_sent(self) -> None:
        """Wait until all that was published so far is sent.

        Raises:
            WsqueueError: Something nobody waited for was refused.
        """
        last = self._number_forming()
        while self._unsent and self._unsent[0] <= last:
            await self._until_changed()
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def stop(self) -> None:
        """Close the connection, and stay down; what is not confirmed fails."""
        if self._guard is not None:
            self._guard.cancel()
        await super().stop()
        self._fail_all(ConnectError("the client was closed"))

    def up(self) -> None:
        """Say who publishes, and send what is not confirmed."""
        assert self.connection is not None
        self._unsent = deque(self._outstanding)
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
        """Count what a classic connection may have lost; what is not confirmed is sent again."""
        self.lost_in_flight += lost
        if self._classic is not None:
            self._classic.close()
            self._classic = None
        if closed.data_refused:
            # Whatever it was, sending it again would end the same way.
            self._fail_all(PublishError("invalid", f"the producer does not take it: {closed.reason}"))
        self._keep_guard()

    def received_events(self, events: list[Event]) -> None:
        """Take what the producer confirms and refuses."""
        if self._classic is not None:
            self._classic.receive(events)
        for event in events:
            if isinstance(event, v2.Ack):
                for first, last in event.numbers:
                    self._acknowledge(first, last)
            elif isinstance(event, v2.Refused):
                batch = self._let_go(event.number)
                if batch is not None:
                    self._fail(batch, PublishError(event.code, event.reason))
            elif isinstance(event, v2.Draining):
                self.leave(event.retry_seconds)
                if self.connection is not None:
                    self.connection.close(CloseCode.NORMAL)
        self.notify()

    def _form(self, topic: str, data: Sequence[str], sizes: Sequence[int]) -> list[_Batch]:
        """Put messages into batches that no producer finds too large, and return those."""
        batches: list[_Batch] = []
        for one, size in zip(data, sizes, strict=True):
            batch = self._forming.get(topic)
            if batch is not None and batch.size + size > self._batch_bytes:
                self._number_batch(batch)
                batch = None
            if batch is None:
                batch = self._forming[topic] = _Batch(topic, [])
            if not batches or batches[-1] is not batch:
                batches.append(batch)
            batch.data.append(one)
            batch.size += size
            self._bytes += size
            if batch.size >= self._batch_bytes:
                self._number_batch(batch)
        self.unconfirmed += len(data)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._number_all)
        self._keep_guard()
        return batches

    def _number_all(self) -> None:
        self._flushing = False
        self._number_forming()
        self._send()

    def _number_forming(self) -> int:
        """Number all that is not numbered yet, and return the last number."""
        for batch in list(self._forming.values()):
            self._number_batch(batch)
        return self._number

    def _number_batch(self, batch: _Batch) -> None:
        del self._forming[batch.topic]
        self._number += 1
        numbers = self._outstanding_of.setdefault(batch.topic, {})
        packet = v2.Publish(
            self._number,
            next(reversed(numbers), 0),
            batch.topic,
            len(batch.data),
            v2.encode_data(batch.data),
        )
        batch.payload = v2.encode(packet)
        numbers[self._number] = None
        self._outstanding[self._number] = batch
        self._unsent.append(self._number)

    def _send(self) -> None:
        while self._unsent and self.open:
            assert self.connection is not None
            size, numbers = 0, []
            while self._unsent and size < SLICE_BYTES:
                number = self._unsent.popleft()
                if number in self._outstanding:
                    numbers.append(number)
                    size += self._outstanding[number].size
            batches = [self._outstanding[number] for number in numbers]
            if self._classic is None:
                self.connection.send([batch.payload for batch in batches])
                continue
            self._classic.send(
                [
                    classic.encode(classic.Message(data, batch.topic))
                    for batch in batches
                    for data in batch.data
                ]
            )
            # A classic producer confirms nothing.
            for number in numbers:
                self._acknowledge(number, number)
        self.notify()

    def _acknowledge(self, first: int, last: int) -> None:
        if last - first < len(self._outstanding):
            numbers = list(range(first, last + 1))
        else:
            numbers = [number for number in self._outstanding if first <= number <= last]
        for number in numbers:
            batch = self._let_go(number)
            if batch is not None:
                for future in batch.confirmed:
                    if not future.done():
                        future.set_result(None)

    def _let_go(self, number: int) -> _Batch | None:
        batch = self._outstanding.pop(number, None)
        if batch is not None:
            numbers = self._outstanding_of[batch.topic]
            del numbers[number]
            if not numbers:
                del self._outstanding_of[batch.topic]
            self._bytes -= batch.size
            self.unconfirmed -= len(batch.data)
        return batch

    def _fail(self, batch: _Batch, error: WsqueueError) -> None:
        if not batch.confirmed:
            self._error = self._error or error
        for future in batch.confirmed:
            if not future.done():
                future.set_exception(error)
                # Nobody may be waiting any more.
                future.exception()

    def _fail_all(self, error: WsqueueError) -> None:
        self._number_forming()
        for number in list(self._outstanding):
            outstanding = self._let_go(number)
            if outstanding is not None:
                self._fail(outstanding, error)
        self._unsent.clear()
        self.notify()

    def _keep_guard(self) -> None:
        """See to it that what is not confirmed fails when there is no connection for too long."""
        if not self.open and (self._guard is None or self._guard.done()):
            self._guard = asyncio.create_task(self._wait_or_fail())

    async def _wait_or_fail(self) -> None:
        try:
            await self.wait_open(self._open_seconds)
        except ConnectError as error:
            self._fail_all(error)

    async def _until_changed(self) -> None:
        changed = self._changed
        changed.clear()
        await changed.wait()
