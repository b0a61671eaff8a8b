"""Server-sent events, read as the HTML Living Standard says (section 9.2.6), without a line of wsqueue."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import Self

import msgspec

from .raw_peer import RawSocket


class Event(msgspec.Struct, frozen=True):
    """Hold an event as a page gets it."""

    data: str
    type: str = "message"
    id: str = ""


class EventParser:
    """Parse a stream, cut anywhere.

    Attributes:
        last_id: The last event id of the stream.
        retry: The reconnection time in milliseconds, None for that of the client.
        comments: Number of comments.
    """

    def __init__(self) -> None:
        self.last_id, self.comments = "", 0
        self.retry: int | None = None
        self._rest, self._type, self._id = b"", "", ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes; return the events that are complete."""
        *lines, self._rest = _lines(self._rest + data)
        events: list[Event] = []
        for line in lines:
            text = line.decode()
            if not text:
                events += self._dispatch()
            elif text.startswith(":"):
                self.comments += 1
            else:
                name, _, value = text.partition(":")
                self._field(name, value.removeprefix(" "))
        return events

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isdecimal():
            self.retry = int(value)

    def _dispatch(self) -> list[Event]:
        self.last_id = self._id
        data, kind = self._data, self._type
        self._data, self._type = [], ""
        if not data:
            return []
        return [Event("\n".join(data), kind or "message", self.last_id)]


class EventSource:
    """Hold a stream of events.

    Attributes:
        status: HTTP status of the response.
        headers: Its headers, with names in small letters.
        page: Its body, if it is no stream.
        parser: Parses the stream, and may be ahead of the events that were taken.
        last_id: Id of the last event that was taken, "" before that.
    """

    def __init__(self, raw: RawSocket) -> None:
        self.raw = raw
        self.status, self.page, self.last_id = 0, "", ""
        self.headers: dict[str, str] = {}
        self.parser = EventParser()
        self._events: deque[Event] = deque()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        address: str,
        path: str,
        *headers: str,
        method: str = "GET",
        version: str = "1.1",
        behind: bytes = b"",
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> AsyncIterator[Self]:
        """Ask a node for events, and read the head of the response."""
        async with RawSocket.open(address, tls=tls, receive_buffer=receive_buffer) as raw:
            lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers, "", ""]
            raw.writer.write("\r\n".join(lines).encode() + behind)
            yield await cls(raw)._begun()

    async def next(self) -> Event:
        """Return the next event.

        Raises:
            EOFError: The stream has ended.
        """
        while not self._events:
            data = await self.raw.reader.read(65_536)
            if not data:
                raise EOFError
            self._events += self.parser.feed(data)
        event = self._events.popleft()
        self.last_id = event.id
        return event

    async def data(self, count: int) -> list[str]:
        """Return the data of the next events."""
        return [(await self.next()).data for _ in range(count)]

    async def identified(self) -> str:
        """Return the id of the stream, once there is one."""
        while not self.parser.last_id:
            data = await self.raw.reader.read(65_536)
            assert data, "the stream has ended"
            self._events += self.parser.feed(data)
        return self.parser.last_id

    async def ended(self) -> list[Event]:
        """Return the events that are left, once the stream has ended."""
        while data := await self.raw.reader.read(65_536):
            self._events += self.parser.feed(data)
        return [await self.next() for _ in list(self._events)]

    async def _begun(self) -> Self:
        head = (await self.raw.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        self.status = int(first.split()[1])
        fields = (line.partition(": ") for line in lines)
        self.headers = {name.lower(): value for name, _, value in fields}
        if self.headers.get("content-type") != "text/event-stream":
            self.page = (await self.raw.reader.read()).decode()
        return self


def _lines(data: bytes) -> list[bytes]:
    """Return lines, each of which ended with CR LF, LF or CR, and the begin of the next."""
    lines = re.split(rb"\r\n|\n|\r", data)
    if data.endswith(b"\r"):
        # A line feed may follow.
        lines[-2:] = [lines[-2] + b"\r"]
    return lines
