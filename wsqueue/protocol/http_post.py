"""The receiving end of one `POST` (RFC 9112), over the h11 library, without I/O.

The WebSocket library reads the head of a request, and none that has a body.
"""

from __future__ import annotations

import h11
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.http11 import Request

from .framing import Post

MAX_HEAD_BYTES = 32 * 1024
"""Size of the head of a `POST`: proxies take 8 to 32 KiB."""


class PostReader:
    """Read the head of a `POST`, and its body once that is wanted.

    Attributes:
        problem: HTTP status and reason if this is no request that can be taken, None if it is one so far.
    """

    __slots__ = ("_body", "_connection", "problem")

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._body = bytearray()
        self.problem: tuple[int, str] | None = None

    @property
    def waiting_bytes(self) -> int:
        """Return the bytes that came of the body."""
        return len(self._body)

    @property
    def expects_continue(self) -> bool:
        """Return True if the peer waits for 100 before it sends the body (RFC 9110 section 10.1.1)."""
        return self._connection.they_are_waiting_for_100_continue

    def receive_head(self, data: bytes) -> tuple[Request, Post] | None:
        """Take bytes; return the head once it is whole, in the form of the WebSocket library too."""
        event = self._next(data)
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

        size, (scheme, _, bearer) = value("Content-Length"), value("Authorization").partition(" ")
        post = Post(
            int(size) if size else None,
            bearer.strip() if scheme.lower() == "bearer" else "",
            value("Content-Type"),
            value("Idempotency-Key"),
        )
        return Request(event.target.decode("ascii"), headers, "POST"), post

    def receive_body(self, data: bytes) -> bytes | None:
        """Take bytes; return the body once it is whole."""
        event = self._next(data)
        while isinstance(event, h11.Data):
            self._body += event.data
            event = self._next(b"")
        if not isinstance(event, h11.EndOfMessage):
            return None
        body, self._body = bytes(self._body), bytearray()
        return body

    def _next(self, data: bytes) -> object:
        """Return the next event of the library, None behind the one that is wrong."""
        try:
            if data:
                self._connection.receive_data(data)
            return self._connection.next_event()
        except h11.RemoteProtocolError as error:
            self.problem = error.error_status_hint, str(error)
            return None
