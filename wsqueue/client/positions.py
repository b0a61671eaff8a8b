"""The positions of a subscription in the topics of one connection. No I/O.

| a topic is | until | then |
|---|---|---|
| asked for | the consumer answers with `subscribed`, or the connection turns out to be classic | delivered |
| delivered | the connection is lost | asked for on the next connection, at the position where it was |

A topic begins at the start that the application chose, until a consumer has answered once. From then on its
position is the id of the log's epoch and the offset of the next message. A position that was asked for stays
until a message or a gap has come, because a connection that breaks between `subscribed` and a gap must not
hide the gap. So does the start of a named reader, which the consumer looks up again.

A consumer that has forgotten a publisher may store a batch twice. So the number of the last batch of each
publisher on each topic is kept, and a batch that is not after it is dropped, alone or at the front of its
chain.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from ..protocol import v2
from ..protocol.repeats import Repeats
from ..protocol.session import Event, MessagesReceived
from .values import NO_HEADERS, Gap, Message, Position, Start

MAX_REMEMBERED_NUMBERS = 10_000
"""Pairs of topic and publisher whose last batch is remembered: 2 MiB."""


class TopicPosition(msgspec.Struct):
    """Hold how far one topic has come.

    Attributes:
        start: Where to begin, used until `log` is known.
        log: The id of the log's epoch, "" before the first answer.
        offset: Offset of the next message.
        end: Offset after the last message that was published before the consumer answered.
        delivered: True once the consumer has answered on this connection.
        asked: The position that was asked for, or the start of a named reader, while only the answer has
            come.
    """

    start: Start
    log: str = ""
    offset: int = 0
    end: int = 0
    delivered: bool = False
    asked: Start | None = None


class Positions:
    """Ask a consumer for topics, and turn its packets into new messages and gaps.

    Args:
        topics: The topics.
        start: Where they begin.
        reader: Name of the reader, None for a subscriber without a name.
    """

    def __init__(self, topics: Iterable[str], start: Start, reader: str | None = None) -> None:
        self._start, self._reader = start, reader
        self._topics: dict[str, TopicPosition] = {}
        # Number of topics that the consumer does not deliver yet.
        self._awaited = 0
        for topic in topics:
            self._know(topic)
        self._repeats = Repeats()

    @property
    def delivered(self) -> bool:
        """Return True if the consumer delivers all topics."""
        return not self._awaited

    @property
    def at_end(self) -> bool:
        """Return True if all messages have arrived that were published before the consumer answered."""
        return self.delivered and all(topic.offset >= topic.end for topic in self._topics.values())

    def requests(self) -> Sequence[v2.Subscribe | v2.Follow]:
        """Return the packets that ask for all topics, each at its position."""
        return [_request(name, topic, self._reader) for name, topic in self._topics.items()]

    def keep_first(self) -> list[str]:
        """Deliver the first topic only, as a classic connection does; return the others."""
        first, *others = self._topics
        self._topics = {first: self._topics[first]}
        self._topics[first].delivered, self._awaited = True, 0
        return others

    def connection_lost(self) -> None:
        """Note that all topics must be asked for again."""
        for topic in self._topics.values():
            topic.delivered = False
        self._awaited = len(self._topics)

    def receive(self, events: Iterable[Event]) -> list[Message | Gap]:
        """Take the events of one read; return the new messages and gaps in them."""
        items: list[Message | Gap] = []
        for event in events:
            if isinstance(event, v2.Deliver):
                items += self._messages(event)
            elif isinstance(event, MessagesReceived):
                items += [Message(message.topic, message.data) for message in event.messages]
            elif isinstance(event, v2.Subscribed) and event.topic in self._topics:
                topic = self._topics[event.topic]
                start = _start_of(topic)
                topic.asked = start if isinstance(start, Position) or self._reader is not None else None
                self._awaited -= not topic.delivered
                if not topic.delivered or topic.log != event.log:
                    topic.end = event.end
                topic.log, topic.offset = event.log, event.offset
                topic.delivered = True
            elif isinstance(event, v2.Gap) and event.topic in self._topics:
                topic = self._topics[event.topic]
                topic.offset, topic.asked = event.offset, None
                items.append(Gap(event.topic, event.missed))
        return items

    def _know(self, topic: str) -> None:
        """Have a topic, unless it is there."""
        if topic not in self._topics:
            self._topics[topic] = TopicPosition(self._start)
            self._awaited += 1

    def _messages(self, event: v2.Deliver) -> list[Message | Gap]:
        topic = self._topics.get(event.topic)
        if topic is None:
            return []
        topic.offset, topic.asked = event.offset + event.messages.count, None
        if event.publisher:
            repeats = self._repeated_messages(event)
            if repeats == event.messages.count:
                return []
            if repeats:
                event = event.behind(repeats)
        name, log, packed = event.topic, topic.log, event.messages
        data = enumerate(packed.unpack(), event.offset)
        if packed.headers is None:
            return [Message(name, one, log, offset) for offset, one in data]
        both = zip(data, packed.headers, strict=True)
        return [Message(name, one, log, offset, headers or NO_HEADERS) for (offset, one), headers in both]

    def _repeated_messages(self, event: v2.Deliver) -> int:
        """Return the number of messages of the first batches, those that came before; note the others."""
        numbers = event.numbers
        last = self._repeats.last(event.topic, event.publisher) or 0
        if numbers[-1] <= last:
            return event.messages.count
        self._repeats.remember(event.topic, event.publisher, numbers[-1])
        if self._repeats.pairs > MAX_REMEMBERED_NUMBERS:
            self._repeats.forget()
        return sum(event.counts[: bisect.bisect_right(numbers, last)]) if numbers[0] <= last else 0


def _start_of(topic: TopicPosition) -> Start:
    if topic.asked is not None:
        return topic.asked
    return Position(topic.log, topic.offset) if topic.log else topic.start


def _request(name: str, topic: TopicPosition, reader: str | None) -> v2.Subscribe:
    start = _start_of(topic)
    if isinstance(start, Position):
        return v2.Subscribe(name, "offset", log=start.log, offset=start.offset, reader=reader)
    if isinstance(start, int):
        if start < 0:
            return v2.Subscribe(name, "last", count=-start)
        return v2.Subscribe(name, "offset", offset=start)
    if isinstance(start, datetime):
        # Before 1970 there were no messages, and the protocol has no times.
        return v2.Subscribe(name, "time", time=max(0.0, start.timestamp()))
    return v2.Subscribe(name, start, reader=reader)
