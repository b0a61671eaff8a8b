"""Messages as server-sent events (HTML Living Standard, section 9.2), and the requests for them. No I/O.

```
GET /events/TOPIC?from=…&format=… ──► asked ──► EventsAsked: where to start, and the form of events
Subscribed, Deliver, Gap ──► EventEncoder.take ──► next_slice ──► whole events
```

The id of an event is the position behind it, `LOG:OFFSET`: the browser sends the last one again, and the
stream goes on there.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from . import v2
from .framing import Get, HttpResponse
from .packed import Headers
from .starts import parse_position, parse_start

EVENTS = "/events/"
"""Begin of the path, before the topic."""

SLICE_BYTES = 256 * 1024
"""Bytes of events that are made at a time, unless one event has more: about as many as a socket takes."""

SLICE_MESSAGES = 500
"""Messages of which events are made at a time: 1 ms."""

MAX_QUERY_BYTES = 512
"""Length of the query of a request: a start has 81 characters at most."""

ONLY_GET = HttpResponse(405, "Only GET is answered here.\n", headers={"Allow": "GET"})

NO_EVENTS = HttpResponse(406, "Events have the type text/event-stream: expected it in the header Accept.\n")

OTHER_OPTIONS = (
    "The query may have `from` and `format`, and nothing else. A credential goes into the header"
    " Authorization or the cookie, and never into a URL, which others log"
)

_TYPES = ("text/event-stream", "text/*", "*/*")


class EventsAsked(msgspec.Struct, frozen=True):
    """Hold a request for the events of a topic.

    Attributes:
        start: The topic, and where to start.
        as_json: True if the data of events is JSON.
        resumes: True if the client has a position, which it will ask for again until it has an event.
    """

    start: v2.Subscribe
    as_json: bool
    resumes: bool


def asked(topic: str, query: str, get: Get) -> EventsAsked | HttpResponse:
    """Return the request for the events of a topic, or the page that refuses it.

    Args:
        topic: The topic.
        query: The query of the URL, percent-encoded.
        get: The head of the request.
    """
    if get.head:
        return ONLY_GET
    if get.accept and not any(_type(one) in _TYPES for one in get.accept.split(",")):
        return NO_EVENTS
    if len(query) > MAX_QUERY_BYTES:
        return HttpResponse(414, f"The query has more than {MAX_QUERY_BYTES} bytes.\n")
    try:
        options = _options(query)
        start, resumes = _start_of(topic, options.get("from", "latest"), get.last_event_id)
    except ValueError as error:
        return HttpResponse(400, f"{error}.\n")
    return EventsAsked(start, options.get("format") == "json", resumes)


def _options(query: str) -> dict[str, str]:
    """Return the options in a query.

    Raises:
        ValueError: They cannot be used.
    """
    fields = parse_qsl(query, keep_blank_values=True)
    options = dict(fields)
    if options.keys() - {"from", "format"}:
        raise ValueError(OTHER_OPTIONS)
    if len(options) < len(fields):
        raise ValueError("The query has an option twice")
    if options.get("format", "text") not in ("text", "json"):
        raise ValueError("`format` is neither text nor json")
    return options


def _type(accepted: str) -> str:
    return accepted.partition(";")[0].strip().lower()


def _start_of(topic: str, text: str, last_event_id: str) -> tuple[v2.Subscribe, bool]:
    """Return where to start, and whether that is a position.

    Raises:
        ValueError: One of the texts is none.
    """
    if last_event_id:
        position = parse_position(last_event_id)
        if position is None:
            raise ValueError("Last-Event-ID is not the id of an event: expected LOG:OFFSET")
        return v2.Subscribe(topic, "offset", log=position[0], offset=position[1]), True
    start = parse_start(text)
    if isinstance(start, tuple):
        return v2.Subscribe(topic, "offset", log=start[0], offset=start[1]), True
    if isinstance(start, datetime):
        in_zone = start if start.tzinfo is not None else start.replace(tzinfo=UTC)
        # Before 1970 there were no messages, and the protocol has no times.
        return v2.Subscribe(topic, "time", time=max(0.0, in_zone.timestamp())), False
    if isinstance(start, str):
        return v2.Subscribe(topic, "earliest" if start == "earliest" else "latest"), False
    if start < 0:
        return v2.Subscribe(topic, "last", count=-start), False
    return v2.Subscribe(topic, "offset", offset=start), False


class _Progress:
    """Know how far a batch of messages has come."""

    __slots__ = ("begin", "deliver", "index")

    def __init__(self, deliver: v2.Deliver) -> None:
        self.deliver = deliver
        self.index = self.begin = 0


class EventEncoder:
    """Make events of the packets of a subscription to one topic, some at a time.

    A message of one byte makes an event of fifty, and a packet can have a million of them.

    Args:
        as_json: True if the data of events is JSON.
        resumes: True if the client has a position.

    Attributes:
        as_json: See above.
        has_position: True if the client has a position, as from any event.
        log: Id of the epoch that positions are of, "" before it is known.
    """

    __slots__ = ("_progress", "_waiting", "_waiting_bytes", "as_json", "has_position", "log")

    def __init__(self, *, as_json: bool, resumes: bool) -> None:
        self.as_json, self.log = as_json, ""
        self.has_position = resumes
        self._waiting: deque[bytes | v2.Subscribed | v2.Gap] = deque()
        self._progress: _Progress | None = None
        self._waiting_bytes = 0

    @property
    def waiting(self) -> bool:
        """Return True if events are still to be made."""
        return bool(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """Return the memory of the packets of which events are still to be made."""
        # A number of a list takes eight bytes.
        sizes = 0 if self._progress is None else 8 * self._progress.deliver.messages.count
        return self._waiting_bytes + sizes

    def take(self, packet: bytes | v2.Subscribed | v2.Gap) -> None:
        """Take a packet; a `Deliver` is encoded."""
        self._waiting.append(packet)
        if isinstance(packet, bytes):
            self._waiting_bytes += len(packet)

    def next_slice(self) -> bytes:
        """Return the next events, b"" if there are none or the packets make none."""
        events: list[bytes] = []
        # The bytes of packets count too, because they take time to decode.
        size, left = 0, SLICE_MESSAGES
        while self._waiting and size < SLICE_BYTES and left > 0:
            packet = self._waiting[0]
            if isinstance(packet, bytes):
                if self._progress is None:
                    self._progress = _Progress(_decoded(packet))
                    size += len(packet)
                before = self._progress.index
                size = self._add_messages(self._progress, events, size, left)
                left -= self._progress.index - before
                if self._progress.index < self._progress.deliver.messages.count:
                    break
                self._progress = None
                self._waiting_bytes -= len(packet)
            else:
                events.append(
                    self._subscribed(packet) if isinstance(packet, v2.Subscribed) else self._gap(packet)
                )
            self._waiting.popleft()
        return b"".join(events)

    def drop(self) -> None:
        """Forget all that waits."""
        self._waiting.clear()
        self._progress, self._waiting_bytes = None, 0

    def _add_messages(self, progress: _Progress, events: list[bytes], size: int, left: int) -> int:
        """Add the events of messages; return the size of all events, and of the packets that were decoded."""
        deliver, index, begin = progress.deliver, progress.index, progress.begin
        messages = deliver.messages
        end = min(messages.count, index + left)
        self.has_position = True
        while index < end and (size < SLICE_BYTES or not events):
            data = bytes(messages.data[begin : begin + messages.sizes[index]])
            headers = messages.headers[index] if messages.headers is not None else None
            event = message_event(data, headers, as_json=self.as_json)
            index += 1
            begin += len(data)
            events.append(event + self._id(deliver.offset + index))
            size += len(event)
        progress.index, progress.begin = index, begin
        return size

    def _subscribed(self, packet: v2.Subscribed) -> bytes:
        """Return a position without an event, if the client has none yet, so that it misses nothing.

        One that has a position keeps it until a message or a gap has come, because a connection that breaks
        in between must not hide the gap.
        """
        self.log = packet.log
        if self.has_position or not packet.log:
            return b""
        self.has_position = True
        return self._id(packet.offset)

    def _gap(self, packet: v2.Gap) -> bytes:
        self.has_position = True
        data = msgspec.json.encode({"missed": packet.missed})
        return b"event: gap\ndata: " + data + b"\n" + self._id(packet.offset)

    def _id(self, offset: int) -> bytes:
        """Return the last line of an event, and the empty line behind it."""
        return f"id: {self.log}:{offset}\n\n".encode() if self.log else b"\n"


def whole_slice(packets: Iterable[bytes], log: str, *, as_json: bool) -> bytes:
    """Return the events of some packets, b"" if they are more than a slice.

    Args:
        packets: Each a `Deliver`, encoded.
        log: Id of the epoch that positions are of.
        as_json: True if the data of events is JSON.
    """
    encoder = EventEncoder(as_json=as_json, resumes=True)
    encoder.log = log
    for packet in packets:
        encoder.take(packet)
    events = encoder.next_slice()
    return b"" if encoder.waiting else events


def message_event(data: bytes, headers: Headers | None, *, as_json: bool) -> bytes:
    """Return the event of a message, without its id and the empty line.

    Args:
        data: The message, a text if it is UTF-8.
        headers: Its headers, which only JSON has room for.
        as_json: True if the data is JSON.
    """
    text: str | None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    if as_json:
        fields: dict[str, Any] = (
            {"data": text} if text is not None else {"data_base64": _base64(data).decode()}
        )
        if headers:
            fields["headers"] = headers
        return b"data: " + msgspec.json.encode(fields) + b"\n"
    if text is None:
        return b"event: binary\ndata: " + _base64(data) + b"\n"
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n"


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data)


def _decoded(packet: bytes) -> v2.Deliver:
    deliver = v2.decode(packet)
    assert isinstance(deliver, v2.Deliver)
    return deliver
