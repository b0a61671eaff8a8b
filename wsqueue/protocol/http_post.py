"""The receiving end of one `POST` (RFC 9112), over the h11 library, without I/O.

The WebSocket library reads the head of a request, and none that has a body.
"""

from __future__ import annotations

import h11
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.http11 import Request

from .framing import FULL_FRAGMENT_BYTES, LIBRARY_FRAMES, MAX_HEAD_LINES, Post

MAX_HEAD_BYTES = 32 * 1024
"""Size of the head of a `POST`: proxies take 8 to 32 KiB."""

NEWLINE = ord("\n")


class PostReader:
    """Read the head of a `POST`, and its body once that is wanted.

    Attributes:
        chunked: True if the body comes in chunks; known with the head.
        problem: HTTP status and reason if this is no request that can be taken, None if it is one so far.
    """

    __slots__ = ("_body", "_connection", "_head_lines", "_tiny_chunks", "chunked", "problem")

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._body = bytearray()
        self._head_lines = self._tiny_chunks = 0
        self.chunked = False
        self.problem: tuple[int, str] | None = None

    @property
    def waiting_bytes(self) -> int:
        """Return the bytes that came of the body."""
        return len(self._body)

    @property
    def expects_continue(self) -> bool:
        """Return True if the peer waits for 100 before it sends the body (RFC 9110 section 10.1.1)."""
        return self._connection.they_are_waiting_for_100_continue

    def take_burden(self) -> int:
        """Return the number of frames for which the tiny chunks since the last call count."""
        burden, self._tiny_chunks = self._tiny_chunks * LIBRARY_FRAMES, 0
        return burden

    def receive_head(self, data: bytes) -> tuple[Request, Post, bytes] | None:
        """Take bytes; return the head once it is whole, in the form of the WebSocket library too.

        The last item of it is the bytes behind the head, which `receive_body` takes later.
        """
        event, end = self._next_in_head(data)
        if not isinstance(event, h11.Request):
            return None
        fields = [(name.decode("latin-1"), text.decode("latin-1")) for name, text in event.headers]
        try:
            headers = Headers(fields)
        except InvalidHeader:
            self.problem = 400, "a header has control characters"
            return None

        def value(name: str) -> str:
            return ", ".join(headers.get_all(name)).strip()

        self.chunked = "Transfer-Encoding" in headers
        size, (scheme, _, bearer) = value("Content-Length"), value("Authorization").partition(" ")
        post = Post(
            int(size) if size else None,
            bearer.strip() if scheme.lower() == "bearer" else "",
            value("Content-Type"),
            value("Idempotency-Key"),
            value("X-Forwarded-Proto"),
        )
        return Request(event.target.decode("ascii"), headers, "POST"), post, data[end:]

    def receive_body(self, data: bytes) -> bytes | None:
        """Take bytes; return the body once it is whole."""
        event = self._next(data)
        while isinstance(event, h11.Data):
            self._body += event.data
            if event.chunk_start and event.chunk_end and len(event.data) < FULL_FRAGMENT_BYTES:
                self._tiny_chunks += 1
            event = self._next(b"")
        if not isinstance(event, h11.EndOfMessage):
            return None
        body, self._body = bytes(self._body), bytearray()
        return body

    def _next_in_head(self, data: bytes) -> tuple[object, int]:
        """Return the event of the head once it is whole, and where the head ends.

        The library gets it line by line, so that a stranger's thousands of lines are refused before they are
        parsed: each takes 20 µs.
        """
        position, event = 0, None
        while position < len(data) and self.problem is None and not isinstance(event, h11.Request):
            end = data.find(b"\n", position) + 1 or len(data)
            self._head_lines += data[end - 1] == NEWLINE
            if self._head_lines > MAX_HEAD_LINES:
                self.problem = 431, f"the head has more than {MAX_HEAD_LINES} lines"
            else:
                event = self._next(data[position:end])
            position = end
        return event, position

    def _next(self, data: bytes) -> object:
        """Return the next event of the library, None behind the one that is wrong."""
        try:
            if data:
                self._connection.receive_data(data)
            return self._connection.next_event()
        except h11.RemoteProtocolError as error:
            # The library quotes the line that is wrong, which may have the credential.
            self.problem = error.error_status_hint, str(error).partition(": bytearray(")[0]
            return None
