"""The opening handshake of a WebSocket (RFC 6455 section 4): a request, and a response or a page.

`ServerFraming` and `ClientFraming` are the two ends of a WebSocket. They differ until it is open; after that,
both are a plain `Framing`. A request may also be a `POST`, whose body is read before it is answered, or a
`GET` that is answered with events without end:

```
head ──> RequestReceived ─┬─ accept ──────> Upgraded, and the frames behind the head
                          ├─ take_body ───> BodyReceived ─ respond ──> a response, and the end
                          ├─ hold ──┬─ stream ───> an EventFraming, which takes over
                          │         └─ respond ──> a page, and the end
                          └─ respond ─────> a page, and the end
```
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import (
    HeaderLineTooLong,
    InvalidMessage,
    InvalidStatus,
    RequestLineTooLong,
    TooManyHeaders,
)
from websockets.http11 import Request, Response
from websockets.protocol import CLIENT, SERVER, Event
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from .classic import topic_too_long
from .close import CloseCode, Closed

if TYPE_CHECKING:
    from .event_framing import EventFraming
    from .http_post import PostReader
from .framing import (
    NO_LOGGER,
    BodyReceived,
    Framing,
    Get,
    HttpResponse,
    Item,
    Post,
    RequestReceived,
    Upgraded,
)

SUBPROTOCOL_HEADER = "Sec-WebSocket-Protocol"
"""RFC 6455 section 11.3.4."""

FORWARDING_HEADERS = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")
"""Headers of which a proxy adds one or more."""

OTHER_METHOD = HttpResponse(
    405,
    "Only GET and HEAD are answered here, and POST at /publish/TOPIC of a producer.\n",
    headers={"Allow": "GET, HEAD, POST"},
)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Tells a peer that waits for it to send the body (RFC 9110 section 10.1.1)."""

POST = b"POST "
"""First bytes of a `POST`, which another library reads: that of the WebSocket takes no body."""

GET, HEAD = b"GET /", b"HEAD "
"""First bytes of the other requests that are answered, as many as those of a `POST`."""

NO_BODY = HttpResponse(
    400,
    "A GET or HEAD has no body here: expected no Transfer-Encoding, and no Content-Length but 0. A message is"
    " published with POST /publish/TOPIC at a producer.\n",
)

CHUNKED_TURN_BYTES = 1024
"""Bytes of a body in chunks that are taken at a time: in tiny chunks they take a few milliseconds."""

RETRY_SECONDS = 5
"""Time after which a request that cannot be answered now may come again."""

UNAUTHENTICATED = {"WWW-Authenticate": "Bearer"}
"""Header of a response to a request without a credential that is taken (RFC 6750 section 3)."""


COOKIE = "wsqueue_token"
"""Name of the cookie that may have the credential of a `GET`, because a page can set no header there."""


def credential_of(get: Get) -> str:
    """Return the credential of a `GET`: its bearer, else its cookie; "" without one, or if cookies differ."""
    found = {
        value.strip().strip('"')
        for name, _, value in (cookie.partition("=") for cookie in get.cookies.split(";"))
        if name.strip() == COOKIE
    }
    return get.bearer or (found.pop() if len(found) == 1 else "")


def too_large(max_bytes: int) -> HttpResponse:
    """Return the response to a request whose body is too long."""
    return HttpResponse(413, f"A message may have {max_bytes} bytes.\n")


def topic_in_path(encoded: str, max_bytes: int, *, too_long: int = 400) -> str | HttpResponse:
    """Return the topic in a path, or the response to a request whose topic cannot be taken.

    Args:
        encoded: The topic, percent-encoded UTF-8.
        max_bytes: Most bytes of a topic (UTF-8).
        too_long: HTTP status for one that has more.
    """
    try:
        topic = unquote(encoded, errors="strict")
    except UnicodeDecodeError:
        return HttpResponse(HTTPStatus.BAD_REQUEST, "The topic is not percent-encoded UTF-8.\n")
    if topic_too_long(topic, max_bytes):
        return HttpResponse(too_long, f"The topic has more than {max_bytes} bytes.\n")
    return topic


def try_again(reason: str) -> HttpResponse:
    """Return the response to a request that may succeed later."""
    return HttpResponse(503, f"{reason}.\n", headers={"Retry-After": str(RETRY_SECONDS)})


def page_for_head(error: InvalidMessage, begin: bytes, lines: int) -> HttpResponse:
    """Return the response to a head that the library does not take.

    Args:
        error: The error of the library.
        begin: The first bytes of the head, as many as those of a `POST` if there are that many.
        lines: Lines of the head up to the one because of which it is not taken.
    """
    cause = error.__cause__
    if isinstance(cause, NotImplementedError) or str(cause) == "unsupported request body":
        return NO_BODY if begin.startswith((b"GET ", HEAD)) else OTHER_METHOD
    expected = "NAME: VALUE without control characters"
    if lines == 1:
        expected = "a method, a percent-encoded path and HTTP/1.1, as in GET /healthz HTTP/1.1"
    return HttpResponse(400, f"Line {lines} of the request is malformed: expected {expected}, then CR LF.\n")


class ServerFraming(Framing):
    """Receive a request, and accept a WebSocket or respond with a page.

    After a `RequestReceived`, nothing more is taken until it is answered, but the body; data that comes
    meanwhile waits, and data that comes behind the body is dropped.

    Args:
        max_message_bytes: Larger messages close the connection with 1009.
        subprotocol: Selected when it is offered.
    """

    __slots__ = (
        "_begin",
        "_behind_request",
        "_body_read",
        "_held",
        "_post",
        "_request",
        "_subprotocol",
    )

    masked = False
    _side = SERVER

    def __init__(self, max_message_bytes: int, subprotocol: str) -> None:

        def select(_protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
            return next((name for name in offered if name == subprotocol), None)

        protocol = ServerProtocol(max_size=max_message_bytes, logger=NO_LOGGER, select_subprotocol=select)
        super().__init__(protocol, max_message_bytes)
        self._subprotocol = subprotocol
        self._request: Request | None = None
        self._behind_request = b""
        # The first bytes, which say whether it is a `POST`; nothing is read before they are there.
        self._begin = b""
        self._post: PostReader | None = None
        self._held = self._body_read = False

    @property
    def unanswered(self) -> bool:
        """Return True from `take_body` or `hold` until the request is answered."""
        return self._held and self._request is not None

    @property
    def unfinished_bytes(self) -> int:
        """Return the bytes that came of a message or body whose end has not, and those for the next turn."""
        in_body = self._post.waiting_bytes if self._post is not None else 0
        return super().unfinished_bytes + len(self._behind_request) + in_body

    def accept(self) -> list[Item]:
        """Open the WebSocket that was requested; return the items in the bytes behind the request.

        A request without the headers of an upgrade is refused (RFC 6455 section 4.2.1).
        """
        library, request = self._answer()
        self._send(library.accept(request), request)
        if not self.open:
            return []
        upgraded = Upgraded(request.path, _offered(request), library.subprotocol)
        data, self._behind_request = self._behind_request, b""
        return [upgraded, *self.receive_data(data)]

    def take_body(self) -> list[Item]:
        """Read the body of a `POST`; return it if all of it is behind the head already."""
        assert self._post is not None
        items: list[Item] = []
        self._held = True
        data, self._behind_request = self._behind_request, b""
        self._read_body(self._post, data, items)
        if not items and self.unanswered and self._post.expects_continue:
            self._writes.append(CONTINUE)
        return items

    def hold(self) -> None:
        """Keep a `GET` until it is answered, with events or with a page."""
        self._held = True

    def stream(self, headers: Mapping[str, str]) -> EventFraming:
        """Answer a `GET` with the head of a response without end; return the framing that goes on."""
        # Imported here because most connections are of WebSockets.
        from .event_framing import EventFraming  # noqa: PLC0415

        library, _ = self._answer()
        response = Response(HTTPStatus.OK, HTTPStatus.OK.phrase, Headers({**headers, "Connection": "close"}))
        return EventFraming([*library.data_to_send(), response.serialize()])

    def respond(self, page: HttpResponse) -> None:
        """Answer the request with a page, and end the connection; the bytes behind it are ignored."""
        library, request = self._answer()
        response = _response(library, page)
        if page.status == HTTPStatus.NO_CONTENT:
            # RFC 9110 section 8.6 forbids a length here.
            del response.headers["Content-Length"], response.headers["Content-Type"]
        self._send(response, request, page.text if request.method == "POST" else "")

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin the close handshake, or answer a request that is held."""
        if self.unanswered:
            self.respond(_page_for(code, reason))
        super().close(code, reason)

    def fail(self, code: CloseCode, reason: str) -> None:
        """End the connection at once, unless it has ended; a request that is held is answered."""
        if self.unanswered:
            self.respond(_page_for(code, reason))
        super().fail(code, reason)

    def _answer(self) -> tuple[ServerProtocol, Request]:
        library, request = self._protocol, self._request
        assert isinstance(library, ServerProtocol)
        assert request is not None, "there is no request to answer"
        self._request = None
        return library, request

    def _send(self, response: Response, request: Request, reason: str = "") -> None:
        library = self._protocol
        assert isinstance(library, ServerProtocol)
        if request.method == "HEAD":
            response.body = b""
        library.send_response(response)
        self.binary = self.open and library.subprotocol is not None
        if not self.open:
            reason = reason.rstrip(".\n") or response.reason_phrase
            self._failure = Closed(response.status_code, reason, by_peer=False)
            self._behind_request, self._post, self._rest = b"", None, b""
        self._settle()

    def _read_head(self, data: bytes, items: list[Item]) -> int:
        if self._post is not None:
            self._read_post(self._post, data, items)
            return len(data)
        if len(self._begin) < len(POST):
            held, begin = self._begin, self._begin + data
            # A constant where it can be, because it stays as long as the connection.
            self._begin = next(filter(begin.startswith, (GET, POST, HEAD)), begin[: len(POST)])
            if self._begin == POST:
                # Imported here because most nodes never see one.
                from .http_post import PostReader  # noqa: PLC0415

                self._post = PostReader()
                self._read_post(self._post, begin, items)
                return len(data)
            if len(begin) < len(POST) and b"\n" not in begin:
                return len(data)
            if held:
                self._feed(held, items)
        position = super()._read_head(data, items) if self._request is None else 0
        if self._request is None:
            return position
        self._behind_request += data[position:]
        return len(data)

    def _feed(self, data: bytes, items: list[Item]) -> None:
        """Hand bytes to the library, and answer a head that it does not take: it ends without a word."""
        super()._feed(data, items)
        library = self._library()
        if isinstance(library.handshake_exc, InvalidMessage) and self._failure is None:
            assert isinstance(library, ServerProtocol)
            page = page_for_head(library.handshake_exc, self._begin, self._head_lines)
            response = _response(library, page)
            if self._begin == HEAD:
                response.body = b""
            self._failure = Closed(page.status, page.text.rstrip(".\n"), by_peer=False)
            # The end of the stream, which the library has queued, comes behind the page.
            self._writes += [response.serialize(), *library.data_to_send()]

    def _read_post(self, post: PostReader, data: bytes, items: list[Item]) -> None:
        """Read the head of a `POST`, and behind it the body if that is wanted."""
        if self._request is None:
            head = post.receive_head(data)
            if head is not None:
                self._request, fields, behind = head
                self._behind_request += behind
                items.append(self._received(self._request, fields))
            self._refuse_post(post)
        elif self._held:
            self._read_body(post, data, items)
        else:
            self._behind_request += data

    def _read_body(self, post: PostReader, data: bytes, items: list[Item]) -> None:
        if self._body_read:
            return
        if post.chunked and len(data) > CHUNKED_TURN_BYTES:
            self._rest, self._rest_at = data[CHUNKED_TURN_BYTES:], 0
            data = data[:CHUNKED_TURN_BYTES]
        body = post.receive_body(data)
        self._burden += post.take_burden()
        if post.problem is not None:
            self._refuse_post(post)
        elif (post.waiting_bytes if body is None else len(body)) > self._max_message_bytes:
            self.respond(too_large(self._max_message_bytes))
        elif body is not None:
            self._body_read = True
            items.append(BodyReceived(body))

    def _refuse_post(self, post: PostReader) -> None:
        """Answer a request that is none."""
        if post.problem is not None:
            library, self._request = self._protocol, None
            assert isinstance(library, ServerProtocol)
            status, reason = post.problem
            self._send(library.reject(status, f"{reason}.\n"), Request("", Headers(), "POST"))

    def _take_opening(self, event: Event) -> RequestReceived | None:
        assert isinstance(event, Request)
        self._request = event
        if event.method not in ("GET", "HEAD"):
            self.respond(OTHER_METHOD)
            return None
        return self._received(event)

    def _received(self, event: Request, post: Post | None = None) -> RequestReceived:
        names = re.split(r"[\s,]+", _offered(event))
        host = ", ".join(event.headers.get_all("Host"))
        origin = ", ".join(event.headers.get_all("Origin")) if "Origin" in event.headers else None
        forwarded = any(name in event.headers for name in FORWARDING_HEADERS)
        forwarded_for = ", ".join(event.headers.get_all(FORWARDING_HEADERS[0])) if forwarded else None
        get = _get_of(event) if post is None and not _asks_for_websocket(event) else None
        return RequestReceived(event.path, host, self._subprotocol in names, origin, forwarded_for, post, get)

    def _refusal(self, error: Exception) -> Closed:
        status = HTTPStatus.BAD_REQUEST
        if isinstance(error, RequestLineTooLong):
            status = HTTPStatus.REQUEST_URI_TOO_LONG
        elif isinstance(error, HeaderLineTooLong | TooManyHeaders):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        return Closed(status, f"not a WebSocket request: {error}", by_peer=False)


class ClientFraming(Framing):
    """Open a WebSocket.

    Args:
        host: Host name or address, without brackets.
        port: TCP port.
        path: Path of the endpoint, percent-encoded.
        max_message_bytes: Larger messages close the connection with 1009.
        subprotocols: Names that are offered, the preferred one first.
    """

    __slots__ = ("_offered", "_path")

    masked = True
    _side = CLIENT

    def __init__(
        self, host: str, port: int, path: str, max_message_bytes: int, subprotocols: Sequence[str] = ()
    ) -> None:
        uri = WebSocketURI(False, host, port, path, "")
        protocol = ClientProtocol(
            uri,
            max_size=max_message_bytes,
            logger=NO_LOGGER,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        )
        request = protocol.connect()
        protocol.send_request(request)
        super().__init__(protocol, max_message_bytes)
        self._path, self._offered = path, _offered(request)

    def _take_opening(self, event: Event) -> Upgraded | None:
        library = self._protocol
        assert isinstance(library, ClientProtocol)
        if not self.open:
            return None
        self.binary = self._undecided = library.subprotocol is not None
        return Upgraded(self._path, self._offered, library.subprotocol)

    def _refusal(self, error: Exception) -> Closed:
        if isinstance(error, InvalidStatus):
            response = error.response
            return Closed(response.status_code, f"HTTP {response.reason_phrase}", by_peer=True)
        return Closed(CloseCode.ABNORMAL, f"not a WebSocket server: {error}", by_peer=True)


def _response(library: ServerProtocol, page: HttpResponse) -> Response:
    response = library.reject(page.status, page.text)
    for name, value in {"Content-Type": page.content_type, **page.headers}.items():
        response.headers.pop(name, None)
        response.headers[name] = value
    return response


def _offered(request: Request) -> str:
    """Return the subprotocols that a request offers, as they were sent."""
    return ", ".join(request.headers.get_all(SUBPROTOCOL_HEADER))


def _asks_for_websocket(request: Request) -> bool:
    """Return True if a request asks for a WebSocket; other upgrades are ignored (RFC 9110 section 7.8)."""
    wanted = ",".join(request.headers.get_all("Upgrade")).lower()
    return "websocket" in (name.strip() for name in wanted.split(","))


def _get_of(request: Request) -> Get:
    """Return the head of a `GET` or `HEAD` that asks for no WebSocket."""

    def value(name: str, separator: str = ", ") -> str:
        return separator.join(request.headers.get_all(name)).strip()

    scheme, _, bearer = value("Authorization").partition(" ")
    return Get(
        bearer.strip() if scheme.lower() == "bearer" else "",
        value("Cookie", "; "),
        value("Accept"),
        value("Last-Event-ID"),
        value("X-Forwarded-Proto"),
        value("Sec-Fetch-Mode") == "no-cors",
        request.method == "HEAD",
    )


def _page_for(code: CloseCode, reason: str) -> HttpResponse:
    """Return the response that says the same as a close code."""
    if code is CloseCode.TOKEN_ENDED:
        return HttpResponse(401, f"{reason}.\n", headers=UNAUTHENTICATED)
    return try_again(reason)
