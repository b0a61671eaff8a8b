"""Blocking iterators over the messages of a subscription.

::

    Subscription of asyncio ── on the thread of the loop ──> items ── on the caller's thread ──> application

Moving a call between threads costs more than a message, so that all messages that have arrived are moved
together, up to `MAX_ITEMS`. Where it means something to take a message, as in a group, whose leases begin
then, they are moved one at a time.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from threading import TIMEOUT_MAX
from time import monotonic
from typing import Any, Generic, Self, cast

import msgspec

from ..client import group as groups
from ..client import reader as readers
from ..client import subscription as asynchronous
from ..client.values import Item, Message
from ..errors import GapError, OwnerError
from . import background
from .background import Result

MAX_ITEMS = 1000
"""Messages that are moved to the caller's thread together: their memory is bounded, and more save no time."""


class Subscription(Generic[Item]):
    """Iterate over the messages of topics, in the order of each topic; made by `Client.subscribe`.

    It is as `wsqueue.Subscription`, with `with` and `for`, and stays with the process that made it. Threads
    may share it; then each message comes to one of them.

    Args:
        subscription: That of asyncio.
        noun: Its topics, for the texts of errors.
        at_once: Messages that are moved together at most.
    """

    def __init__(
        self, subscription: asynchronous.Subscription[Any], noun: str, *, at_once: int = MAX_ITEMS
    ) -> None:
        self._subscription, self._at_once = subscription, at_once
        self._complaint = f"no message of {noun} came"
        self._items: deque[Any] = deque()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def get(self, timeout: float | None = None) -> Item:
        """Return the next message, or the next gap with `on_gap="yield"`.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            TimeoutError: None has come in time; one that comes later is not lost.
            EOFError: There are no more, because the subscription has ended.
            GapError: As for `wsqueue.Subscription`; the iteration can go on.
            WsqueueError: As for `wsqueue.Subscription`.
        """
        self._check()
        begin = monotonic()
        # Another thread may be waiting for a message.
        if not self._lock.acquire(timeout=-1 if timeout is None else min(max(0.0, timeout), TIMEOUT_MAX)):
            raise background.late(timeout, self._complaint)
        try:
            if not self._items:
                self._run(lambda: self._fill(timeout, begin))
            if not self._items:
                raise EOFError("the subscription has ended")
            item = self._items.popleft()
        finally:
            self._lock.release()
        if isinstance(item, GapError):
            raise item
        return self._made(item)

    def close(self) -> None:
        """Unsubscribe, and end the iteration after the messages that have already arrived.

        Raises:
            OwnerError: The subscription belongs to the parent process.
        """
        self._run(self._subscription.close)

    def __enter__(self) -> Self:
        """Subscribe.

        Raises:
            WsqueueError: As for `wsqueue.Subscription`.
        """
        self._run(self._subscription.__aenter__)
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        """Return the next message, as `get` does without a timeout."""
        try:
            return self.get()
        except EOFError:
            raise StopIteration from None

    async def _fill(self, seconds: float | None, begin: float) -> None:
        """Move items that have arrived, or the next one that comes in time, or nothing at the end.

        They are kept here, and not returned, so that a caller who is interrupted loses none.
        """
        try:
            async with background.in_time(seconds, self._complaint, monotonic() - begin):
                self._items.append(await anext(self._subscription))
            while len(self._items) < self._at_once and self._subscription.waiting:
                self._items.append(await anext(self._subscription))
        except GapError as error:
            self._items.append(error)
        except StopAsyncIteration:
            pass

    def _made(self, item: object) -> Item:
        """Return an item in the form for callers that wait."""
        return cast("Item", item)

    def _run(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        self._check()
        return background.run(work)

    def _check(self) -> None:
        if self._process != os.getpid():
            raise OwnerError(
                "the subscription was made before this process was forked, and belongs to the parent process:"
                " call subscribe() in each process"
            )


class ReaderMessage(Message, frozen=True, gc=True, eq=False):
    """Hold a message that a named reader has got, as `wsqueue.ReaderMessage` does, with calls that wait."""

    _message: readers.ReaderMessage = msgspec.field(default=None)  # type: ignore[assignment]  # always given

    def __repr__(self) -> str:
        return repr(self._message)

    def done(self) -> None:
        """Say that this message and all before it are done, and wait until that is kept.

        Raises:
            WsqueueError: As for `wsqueue.ReaderMessage.done`.
        """
        background.run(self._message.done)

    def done_nowait(self) -> None:
        """Say that this message and all before it are done, without waiting.

        `ReaderSubscription.flush` waits until it is kept.

        Raises:
            WsqueueError: As for `wsqueue.ReaderMessage.done_nowait`.
        """
        background.call(self._message.done_nowait)


class ReaderSubscription(Subscription[Item]):
    """Iterate over the messages of a topic as a named reader, as `wsqueue.ReaderSubscription` does."""

    def __init__(self, subscription: readers.ReaderSubscription[Any], noun: str) -> None:
        super().__init__(subscription, noun, at_once=1 if subscription.auto_done else MAX_ITEMS)
        self._reader = subscription

    def flush(self) -> None:
        """Wait until it is kept of all messages that they are done, as far as that was said.

        Raises:
            WsqueueError: As for `wsqueue.ReaderSubscription.flush`.
        """
        self._run(self._reader.flush)

    def _made(self, item: object) -> Item:
        if isinstance(item, readers.ReaderMessage):
            item = ReaderMessage(*_fields(item), item)
        return cast("Item", item)


class GroupMessage(Message, frozen=True, gc=True, eq=False):
    """Hold a message that a group has lent to this client, as `wsqueue.GroupMessage`, with calls that wait.

    Attributes:
        deliveries: How often it was lent, this time included.
    """

    deliveries: int = 1
    _message: groups.GroupMessage = msgspec.field(default=None)  # type: ignore[assignment]  # always given

    def __repr__(self) -> str:
        return repr(self._message)

    def done(self) -> None:
        """Say that the message is done, and wait until that is kept: then it is never lent again.

        Raises:
            WsqueueError: As for `wsqueue.GroupMessage.done`.
        """
        background.run(self._message.done)

    def done_nowait(self) -> None:
        """Say that the message is done; `GroupSubscription.flush` waits until that is kept.

        Raises:
            WsqueueError: As for `wsqueue.GroupMessage.done_nowait`.
        """
        background.call(self._message.done_nowait)

    def again(self, delay: float = 0.0) -> None:
        """Give the message back, so that it is lent again, perhaps to another member.

        Args:
            delay: Seconds before which it is not lent again.

        Raises:
            ValueError: The delay is below 0, or above a day.
            WsqueueError: As for `wsqueue.GroupMessage.again`.
        """
        background.run(lambda: self._message.again(delay))

    def reject(self, reason: str) -> None:
        """Give the message up: it becomes a dead letter, whatever the number of its deliveries.

        Args:
            reason: As for `wsqueue.GroupMessage.reject`.

        Raises:
            WsqueueError: As for `wsqueue.GroupMessage.reject`.
        """
        background.run(lambda: self._message.reject(reason))

    def extend(self) -> None:
        """Begin the lease of the message anew, because the work takes longer.

        Raises:
            WsqueueError: As for `wsqueue.GroupMessage.extend`.
        """
        background.call(self._message.extend)


class GroupSubscription(Subscription[GroupMessage]):
    """Iterate over the messages that a group lends to this client, as `wsqueue.GroupSubscription` does."""

    def __init__(self, subscription: groups.GroupSubscription, noun: str) -> None:
        super().__init__(subscription, noun, at_once=1)
        self._group = subscription

    def flush(self) -> None:
        """Wait until all is kept that was said of messages.

        Raises:
            WsqueueError: As for `wsqueue.GroupSubscription.flush`.
        """
        self._run(self._group.flush)

    def _made(self, item: object) -> GroupMessage:
        assert isinstance(item, groups.GroupMessage)
        return GroupMessage(*_fields(item), item.deliveries, item)


def _fields(message: Message) -> tuple[str, str | bytes, str, int, Mapping[str, str]]:
    return message.topic, message.data, message.log, message.offset, message.headers
