"""Delivery to classic subscribers, whose messages can be far longer than the batches that have them.

```
deliver ──┬── little, and someone reads ──────────────────────────► subscribers of the topic
          └──► backlog ── turns: one slice, of one topic ─────────►
                  ▲  │
           resume │  └─ all its subscribers are congested: the topic waits
```

A classic message repeats its topic, so that a batch of 1 MiB can take hundreds. Long batches are built a
slice at a time, one slice in a turn of the loop, and wait as they are meanwhile. Batches of a
topic stay in order: while it has a backlog, new ones join it.

Classic messages are texts. A message of bytes that are no UTF-8, or whose classic form is longer than
`max_message_bytes`, is skipped and counted; the first one of a topic is logged (`_warned`).

The fastest subscriber of a topic sets the pace. Bytes that a slower one doesn't take wait in its
connection, which is closed when they are more than `max_buffered_bytes`. If all of them are slow, the batches
wait here, and all are closed when those take more than that.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence

from ..config.model import Limits
from ..journal import log
from ..log.records import Record
from ..net.buffers import Buffers
from ..net.connection import Connection
from ..protocol import classic, v2
from ..protocol.close import CloseCode
from ..protocol.frames import frame_messages
from .topics import Topics

logger = logging.getLogger(__name__)

SLICE_BYTES = 256 * 1024
"""Most bytes that are framed at a time: about as many as a socket takes; one message may have more."""

TURN_BYTES = 8 * 1024 * 1024
"""Most bytes that all subscribers of a topic are written in one go: a socket takes 1 MiB in 0.2 ms."""

MIN_SLICE_BYTES = 16 * 1024
"""Least bytes of a slice, however many subscribers a topic has: the fixed cost of tiny slices adds up."""


MAX_WARNED_TOPICS = 1000
"""Topics that were warned of; when there are more, each is warned of once more."""


class _Backlog:
    """The batches of one topic that wait.

    Args:
        give_up: Ends the topic's subscribers.
    """

    def __init__(self, give_up: Callable[[str], None]) -> None:
        self.records: deque[Record] = deque()
        self.bytes = 0
        self.slices: classic.MessageSlices | None = None
        self.give_up = give_up


class ClassicDelivery:
    """Send the batches of each topic to its classic subscribers.

    Args:
        topics: The subscribers.
        counters: Counters of the node.
        limits: Of the bytes of a message, and of those that may wait for a topic; a reload sets others.
        buffers: Counts the bytes of all batches that wait, with those that wait in connections.

    Attributes:
        limits: See above.
    """

    def __init__(
        self,
        topics: Topics[Connection],
        counters: Counter[str],
        limits: Limits,
        buffers: Buffers,
    ) -> None:
        self.limits, self._buffers = limits, buffers
        self._warned: set[str] = set()
        self._topics, self._counters = topics, counters
        self._backlogs: dict[str, _Backlog] = {}
        # Topics whose turn comes, each once; a topic with a backlog that isn't here waits for `resume`.
        self._turns: dict[str, None] = {}
        self._next_turn: asyncio.Handle | None = None
        self._settled: asyncio.Future[None] | None = None

    def deliver(self, topic: str, records: Sequence[Record]) -> None:
        """Send batches to the subscribers of their topic, now or in turns.

        Args:
            topic: Topic of all batches; it has subscribers.
            records: The batches.
        """
        subscribers = self._topics.subscribers(topic)
        backlog = self._backlogs.get(topic)
        if backlog is None:
            count = sum(record.count for record in records)
            size = count * classic.message_overhead(topic) + sum(len(record.packet) for record in records)
            few = count == 1 or size <= _slice_bytes(subscribers)
            if few and not all(subscriber.congested for subscriber in subscribers):
                messages: list[bytes] = []
                for slices in map(self._slices, records):
                    # A few times as much at most: control characters take six bytes in JSON.
                    while not slices.done:
                        messages += self._next(topic, slices, SLICE_BYTES)
                self._send(messages, subscribers)
                return
        if backlog is None:
            backlog = self._backlogs[topic] = _Backlog(functools.partial(self._give_up, topic))
            self.resume(topic)
        elif backlog.bytes > self.limits.max_buffered_bytes:
            self._give_up(topic)
            return
        backlog.records.extend(records)
        backlog.bytes += sum(record.size for record in records)
        self._buffers.count(backlog, backlog.bytes)

    def resume(self, topic: str) -> None:
        """Go on with a topic, one of whose subscribers reads again or is gone."""
        if topic in self._backlogs:
            self._turns[topic] = None
            self._schedule()

    async def settle(self) -> None:
        """Send all that waits, and no longer at the pace of the subscribers; wait until it is sent."""
        if self._backlogs:
            self._settled = asyncio.get_running_loop().create_future()
            for topic in self._backlogs:
                self.resume(topic)
            await self._settled

    def _schedule(self) -> None:
        if self._turns and self._next_turn is None:
            self._next_turn = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Send one slice."""
        self._next_turn = None
        if not self._turns:
            return
        topic = next(iter(self._turns))
        del self._turns[topic]
        backlog, subscribers = self._backlogs[topic], self._topics.subscribers(topic)
        if not subscribers:
            self._forget(topic)
        elif self._settled is not None or not all(subscriber.congested for subscriber in subscribers):
            self._send_slice(topic, backlog, subscribers)
        self._schedule()

    def _send_slice(self, topic: str, backlog: _Backlog, subscribers: list[Connection]) -> None:
        if backlog.slices is None:
            backlog.slices = self._slices(backlog.records[0])
        self._send(self._next(topic, backlog.slices, _slice_bytes(subscribers)), subscribers)
        if topic not in self._backlogs:
            # With these bytes more waited than may, and most of it was here.
            return
        self._turns[topic] = None
        if backlog.slices.done:
            backlog.slices = None
            backlog.bytes -= backlog.records.popleft().size
            if not backlog.records:
                self._forget(topic)
                return
            # The last step, because it gives the backlog up if a reload has lowered the limit.
            self._buffers.count(backlog, backlog.bytes)

    def _next(self, topic: str, slices: classic.MessageSlices, max_bytes: int) -> list[bytes]:
        before = slices.skipped
        messages = slices.next_slice(max_bytes)
        if slices.skipped > before:
            self._counters["skipped_for_classic"] += slices.skipped - before
            self._warn(topic)
        return messages

    def _send(self, messages: list[bytes], subscribers: list[Connection]) -> None:
        frames = frame_messages(messages, masked=False, binary=False)
        reached = sum(subscriber.send_frames(frames) for subscriber in subscribers)
        self._counters["deliveries"] += len(messages) * reached

    def _slices(self, record: Record) -> classic.MessageSlices:
        deliver = v2.decode(record.packet)
        assert isinstance(deliver, v2.Deliver)
        return classic.MessageSlices(record.topic, deliver.messages, self.limits.max_message_bytes)

    def _warn(self, topic: str) -> None:
        """Say that a topic has messages which its classic subscribers don't get, once."""
        if topic not in self._warned:
            if len(self._warned) >= MAX_WARNED_TOPICS:
                self._warned.clear()
            self._warned.add(topic)
            reason = "not UTF-8, or longer than max_message_bytes in the classic form"
            log(logger, logging.WARNING, "skipped for classic", topic=topic, reason=reason)

    def _give_up(self, topic: str, reason: str = "") -> None:
        """Close the subscribers of a topic, all of which are slow, and drop all that waits for them."""
        self._forget(topic)
        for subscriber in self._topics.subscribers(topic):
            subscriber.fail(CloseCode.TRY_AGAIN_LATER, reason)

    def _forget(self, topic: str) -> None:
        self._buffers.count(self._backlogs.pop(topic), 0)
        self._turns.pop(topic, None)
        if not self._backlogs and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)


def _slice_bytes(subscribers: Sequence[Connection]) -> int:
    return min(SLICE_BYTES, max(MIN_SLICE_BYTES, TURN_BYTES // len(subscribers)))
