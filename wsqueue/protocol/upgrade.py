"""The opening handshake of a WebSocket (RFC 6455 section 4): a request, and a response or a page.

`ServerFraming` and `ClientFraming` are the two ends of a WebSocket. They differ until it is open; after that,
both are a plain `Framing`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus

from websockets.client import ClientProtocol
from websockets.exceptions import HeaderLineTooLong, InvalidStatus, RequestLineTooLong, TooManyHeaders
from websockets.http11 import Request, Response
from websockets.protocol import CLIENT, SERVER, Event
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from .close import CloseCode, Closed
from .framing import NO_LOGGER, Framing, HttpResponse, Item, RequestReceived, Upgraded

SUBPROTOCOL_HEADER = "Sec-WebSocket-Protocol"
"""RFC 6455 section 11.3.4."""

FORWARDING_HEADERS = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")
"""Headers of which a proxy adds one or more."""

ONLY_GET = HttpResponse(405, "Only GET and HEAD are answered here.\n", headers={"Allow": "GET, HEAD"})


class ServerFraming(Framing):
    """Receive a request, and accept a WebSocket or respond with a page.

    After a `RequestReceived`, nothing more is read until it is answered; data that comes meanwhile waits.

    Args:
        max_message_bytes: Larger messages close the connection with 1009.
        subprotocol: Selected when it is offered.
    """

    __slots__ = ("_behind_request", "_request", "_subprotocol")

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

    def respond(self, page: HttpResponse) -> None:
        """Answer the request with a page, and end the connection; the bytes behind it are ignored."""
        library, request = self._answer()
        response = library.reject(page.status, page.text)
        for name, value in {"Content-Type": page.content_type, **page.headers}.items():
            response.headers.pop(name, None)
            response.headers[name] = value
        self._send(response, request)

    def _answer(self) -> tuple[ServerProtocol, Request]:
        library, request = self._protocol, self._request
        assert isinstance(library, ServerProtocol)
        assert request is not None, "there is no request to answer"
        self._request = None
        return library, request

    def _send(self, response: Response, request: Request) -> None:
        library = self._protocol
        assert isinstance(library, ServerProtocol)
        if request.method == "HEAD":
            response.body = b""
        library.send_response(response)
        self.binary = self.open and library.subprotocol is not None
        if not self.open:
            self._failure = Closed(response.status_code, response.reason_phrase, by_peer=False)
            self._behind_request = b""
        self._settle()

    def _read_head(self, data: bytes, items: list[Item]) -> int:
        position = super()._read_head(data, items) if self._request is None else 0
        if self._request is None:
            return position
        self._behind_request += data[position:]
        return len(data)

    def _take_opening(self, event: Event) -> RequestReceived | None:
        assert isinstance(event, Request)
        self._request = event
        if event.method not in ("GET", "HEAD"):
            self.respond(ONLY_GET)
            return None
        names = re.split(r"[\s,]+", _offered(event))
        host = ", ".join(event.headers.get_all("Host"))
        origin = ", ".join(event.headers.get_all("Origin")) if "Origin" in event.headers else None
        forwarded = any(name in event.headers for name in FORWARDING_HEADERS)
        forwarded_for = ", ".join(event.headers.get_all(FORWARDING_HEADERS[0])) if forwarded else None
        return RequestReceived(event.path, host, self._subprotocol in names, origin, forwarded_for)

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


def _offered(request: Request) -> str:
    """Return the subprotocols that a request offers, as they were sent."""
    return ", ".join(request.headers.get_all(SUBPROTOCOL_HEADER))
