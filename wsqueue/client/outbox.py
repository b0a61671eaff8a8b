"""The outbox of a publisher: batches, their numbers, the window and the confirmations. No I/O.

Messages come in through `add`, or one by one with numbers of the application's own through `add_numbered`;
batches go out through `take`, as packets of v2 or as classic messages; the peer's answers come in through
`acknowledge` and `refuse`, which return the batches that are done. Each message is in one batch, and each
batch in one of these states:

::

    add ──> forming ──number──> unsent ──take──> sent ──acknowledge, refuse──> done
                                ^  ^               │
                   add_numbered ┘  └──send_again───┘      fail_all: any state ──> done

| a batch is | in | until |
|---|---|---|
| forming | `_forming`, at most one for each topic | it has `batch_bytes`, or `number_all` is called |
| unsent | `_outstanding` and `_unsent` | `take` returns it |
| sent | `_outstanding` | the peer confirms or refuses it, or `send_again` makes it unsent |
| done | the list that a method returns, once | |

`_outstanding` is in the order of the numbers, because batches enter it when they are numbered. `_unsent` is
in the same order: `send_again` fills it with everything that is outstanding. `_topics` has the outstanding
numbers of each topic; the last of them is the `after` of the topic's next batch. All rules are
those of "Batches" in docs/protocol.md.

A number of the application's own stands for the same message in every run of the program. So after one that
was refused or failed, `add_numbered` takes no other: if a later one were stored on the topic, the consumer
would take the message for a repeat when it comes again, and confirm it without storing it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

import msgspec

from ..errors import PublishError
from ..protocol import classic, v2
from ..protocol.packed import Packed, pack
from .encoding import EncodedMessage, EncodedMessages

WINDOW_BYTES = 16 * 1024 * 1024
"""Unconfirmed bytes above which nothing is published: more than a fast network and disk have under way."""

WINDOW_MESSAGES = 100_000
"""Unconfirmed messages above which nothing is published: small messages take more than their bytes."""

BATCH_BYTES = 64 * 1024
"""Size at which a batch ends: its fixed cost is small then, and so is the time to fill it."""

Waiter = TypeVar("Waiter")


class OutgoingBatch(msgspec.Struct, Generic[Waiter], kw_only=True, eq=False):
    """Hold messages of one topic until they are confirmed, refused or failed.

    Attributes:
        topic: The topic.
        text: True if the messages are texts, False if they are bytes.
        messages: The messages.
        size: Bytes in the window: no fewer than its packet has.
        number: Number of the batch, 0 while it is forming.
        after: The number of the batch before it on the topic that was outstanding then, else 0.
        waiters: The caller's objects, one for each `add` that is to be told when the batch is done.
        unwatched: True if it holds messages that no waiter stands for.
    """

    topic: str
    text: bool = True
    messages: list[EncodedMessage] = msgspec.field(default_factory=list)
    size: int = 0
    number: int = 0
    after: int = 0
    waiters: list[Waiter] = msgspec.field(default_factory=list)
    unwatched: bool = False

    def packet(self) -> bytes:
        """Return the packet of v2 that publishes the batch; it is the same each time."""
        return v2.encode(v2.Publish(self.number, self.after, self.topic, self._packed()))

    def classic_problem(self, max_message_bytes: int) -> str:
        """Return why a producer that only speaks classic cannot take the batch, "" if it can."""
        packed = self._packed()
        if not packed.text or packed.headers:
            return "a producer that only speaks classic takes texts without headers"
        if not classic.MessageSlices(self.topic, packed, max_message_bytes).skips_none():
            return f"in the classic form, a message has more than {max_message_bytes} bytes"
        return ""

    def classic_payloads(self) -> list[bytes]:
        """Return the messages in classic form."""
        topic = self.topic
        return [classic.encode(classic.Message(message.data.decode(), topic)) for message in self.messages]

    def _packed(self) -> Packed:
        headers = [message.headers for message in self.messages]
        data = [message.data for message in self.messages]
        return pack(data, text=self.text, headers=headers if any(headers) else None)


class Outbox(Generic[Waiter]):
    """Batch and number messages, and keep each until the peer has confirmed or refused it.

    Args:
        batch_bytes: Size at which a batch ends, and which it exceeds with a single message only.

    Attributes:
        unconfirmed: Number of messages that are not done.
    """

    def __init__(self, *, batch_bytes: int = BATCH_BYTES) -> None:
        self.unconfirmed = 0
        self._bytes = self._last_number = self._first_undone = 0
        self._batch_bytes = batch_bytes
        self._forming: dict[str, OutgoingBatch[Waiter]] = {}
        self._outstanding: dict[int, OutgoingBatch[Waiter]] = {}
        self._unsent: deque[OutgoingBatch[Waiter]] = deque()
        self._topics: dict[str, dict[int, None]] = {}

    @property
    def full(self) -> bool:
        """Return True if the window is used up, so that nothing more should be added."""
        return self._bytes >= WINDOW_BYTES or self.unconfirmed >= WINDOW_MESSAGES

    def add(self, messages: EncodedMessages) -> list[OutgoingBatch[Waiter]]:
        """Put messages into batches; return those batches, for the caller's waiters.

        The window is checked by the caller, because one call may exceed it.
        """
        topic = messages.topic
        batch = self._forming.get(topic)
        batches: list[OutgoingBatch[Waiter]] = []
        for message in messages.messages:
            size, text = message.size, message.text
            if batch is not None and (batch.size + size > self._batch_bytes or batch.text is not text):
                self._number(batch)
                batch = None
            if batch is None:
                batch = self._forming[topic] = OutgoingBatch(topic=topic, text=text)
            if not batches or batches[-1] is not batch:
                batches.append(batch)
            batch.messages.append(message)
            batch.size += size
            self._bytes += size
            if batch.size >= self._batch_bytes:
                self._number(batch)
                batch = None
        self.unconfirmed += len(messages.messages)
        return batches

    def add_numbered(self, message: EncodedMessages, number: int) -> OutgoingBatch[Waiter]:
        """Put one message into a batch of its own, whose number is the application's; return the batch.

        A batch of several messages would have to be the same again after a restart, with the same number.

        Raises:
            ValueError: The number is not above the last one.
            PublishError: A batch before it was refused or failed.
        """
        if self._first_undone:
            problem = f"the message with the id {self._first_undone} was refused or failed before"
            raise PublishError(
                "after_refused",
                f"{problem}: make another client, and publish again what is not confirmed, from that id on",
            )
        if number <= self._last_number:
            raise ValueError(
                f"the id {number} is not above {self._last_number}, the one before it on whichever topic, so"
                " that a new message would pass for a repeat: expected a higher id, or another client for a"
                " message that was published under this id before"
            )
        (only,) = message.messages
        batch = OutgoingBatch[Waiter](topic=message.topic, text=only.text, messages=[only], size=only.size)
        self._bytes += only.size
        self.unconfirmed += 1
        self._enter(batch, number)
        return batch

    def number_all(self) -> int:
        """End all batches that are forming, and return the last number that was given."""
        for batch in list(self._forming.values()):
            self._number(batch)
        return self._last_number

    def take(self, max_bytes: int) -> list[OutgoingBatch[Waiter]]:
        """Return the next batches to send, up to the first at which they have `max_bytes` together."""
        batches: list[OutgoingBatch[Waiter]] = []
        size = 0
        while self._unsent and size < max_bytes:
            batch = self._unsent.popleft()
            if batch.number in self._outstanding:
                batches.append(batch)
                size += batch.size
        return batches

    def send_again(self) -> None:
        """Make all outstanding batches unsent, because a new connection has none of them."""
        self._unsent = deque(self._outstanding.values())

    def acknowledge(self, first: int, last: int) -> list[OutgoingBatch[Waiter]]:
        """Take a range of confirmed numbers; return the batches in it that were outstanding."""
        if last - first < len(self._outstanding):
            numbers: Iterable[int] = range(first, last + 1)
        else:  # a range is as long as the peer likes
            numbers = [number for number in self._outstanding if first <= number <= last]
        return [batch for number in numbers if (batch := self._remove(number)) is not None]

    def refuse(self, number: int) -> OutgoingBatch[Waiter] | None:
        """Take the number of a refused batch; return the batch, or None if it is not outstanding."""
        batch = self._remove(number)
        if batch is not None:
            self._note_undone(number)
        return batch

    def fail_all(self) -> list[OutgoingBatch[Waiter]]:
        """Give up all batches, and return them in the order of their numbers."""
        self.number_all()
        if self._outstanding:
            self._note_undone(next(iter(self._outstanding)))
        batches = [batch for number in list(self._outstanding) if (batch := self._remove(number)) is not None]
        self._unsent.clear()
        return batches

    def done_up_to(self, number: int) -> bool:
        """Return True if no batch up to a number is outstanding."""
        return not self._outstanding or next(iter(self._outstanding)) > number

    def sent_up_to(self, number: int) -> bool:
        """Return True if no batch up to a number is unsent."""
        return not self._unsent or self._unsent[0].number > number

    def _number(self, batch: OutgoingBatch[Waiter]) -> None:
        del self._forming[batch.topic]
        self._enter(batch, self._last_number + 1)

    def _enter(self, batch: OutgoingBatch[Waiter], number: int) -> None:
        """Give a batch its number, and its place behind all others."""
        self._last_number = number
        numbers = self._topics.setdefault(batch.topic, {})
        batch.number, batch.after = number, next(reversed(numbers), 0)
        numbers[number] = None
        self._outstanding[number] = batch
        self._unsent.append(batch)

    def _note_undone(self, number: int) -> None:
        self._first_undone = min(self._first_undone or number, number)

    def _remove(self, number: int) -> OutgoingBatch[Waiter] | None:
        batch = self._outstanding.pop(number, None)
        if batch is not None:
            numbers = self._topics[batch.topic]
            del numbers[number]
            if not numbers:
                del self._topics[batch.topic]
            self._bytes -= batch.size
            self.unconfirmed -= len(batch.messages)
        return batch
