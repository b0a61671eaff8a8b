"""The oracle of the fast lane: websockets' own Protocol with nothing around it, byte by byte.

So every event of the library is seen at once, before the library has read any further; how the bytes
were cut makes no difference to it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from websockets.client import ClientProtocol
from websockets.exceptions import (
    HeaderLineTooLong,
    InvalidMessage,
    InvalidStatus,
    RequestLineTooLong,
    TooManyHeaders,
)
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import CLOSED, CLOSING, CONNECTING, OPEN
from websockets.protocol import Event as LibraryEvent
from websockets.server import ServerProtocol
from websockets.streams import StreamReader
from websockets.typing import Subprotocol
from websockets.uri import parse_uri
from websockets.utils import accept_key

from wsqueue.protocol import classic, v2
from wsqueue.protocol.close import CloseCode, Closed, PeerError
from wsqueue.protocol.framing import (
    MAX_REASON_BYTES,
    BodyReceived,
    Framing,
    HttpResponse,
    Item,
    PongReceived,
    RequestReceived,
    TooLong,
    Upgraded,
)
from wsqueue.protocol.keys import Role
from wsqueue.protocol.session import Event, MessagesReceived, Session
from wsqueue.protocol.upgrade import OTHER_METHOD, POST, ClientFraming, ServerFraming, page_for_head
from wsqueue.protocol.v2 import SUBPROTOCOL

from .raw_peer import offer_of, request_of

HOST, PORT, PATH = "node.example", 10001, "/producer"
END = b"the end of the stream"
BYTES = [bytes([number]) for number in range(256)]
V2 = Subprotocol(SUBPROTOCOL)

REQUEST = request_of(PATH).removesuffix(b"\r\n")
"""A request without the empty line that ends it."""
RESPONSE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
LIMIT = 300

Flat = bytes | Upgraded | PongReceived
"""Output, message by message."""


class AnsweringFraming(ServerFraming):
    """An acceptor that answers each request at once.

    Args:
        answer_request: From the path of a request to a page, or None to upgrade.
    """

    def __init__(
        self, answer_request: Callable[[str], HttpResponse | None], max_message_bytes: int, subprotocol: str
    ) -> None:
        super().__init__(max_message_bytes, subprotocol)
        self._answer_request = answer_request

    def receive_data(self, data: bytes) -> list[Item]:
        items = super().receive_data(data)
        if not items or not isinstance(items[0], RequestReceived):
            return items
        assert len(items) == 1
        page = self._answer_request(items[0].path)
        if page is None:
            return self.accept()
        self.respond(page)
        return []


class Library:
    """One end of a WebSocket as the library has it, with the interface of a `Framing`.

    Args:
        role: Which end.
        max_message_bytes: Larger messages close the connection with 1009.
        request: Bytes that the framing next to it has sent, if any; an initiator's key is random.
        answer_request: From the path of a request to a page, or None to upgrade.
        offers_v2: True if an initiator offers v2; an acceptor selects it whenever it is offered.
    """

    def __init__(
        self,
        role: Role,
        max_message_bytes: int,
        request: bytes,
        answer_request: Callable[[str], HttpResponse | None],
        *,
        offers_v2: bool,
    ) -> None:
        self._answer_request = answer_request
        self._offered = SUBPROTOCOL if offers_v2 else ""
        # The type of messages, None while the acceptor's first message will decide it.
        self._type: Opcode | None = Opcode.TEXT
        self._failure: Closed | None = None
        self._fragments = self._head = b""
        # The page that answers a head which the library does not take.
        self._page: list[bytes] = []
        self._protocol: ClientProtocol | ServerProtocol
        if role is Role.ACCEPTOR:
            self._protocol = ServerProtocol(max_size=max_message_bytes, select_subprotocol=_select)
        else:
            client = ClientProtocol(
                parse_uri(f"ws://{HOST}:{PORT}{PATH}"),
                max_size=max_message_bytes,
                subprotocols=[V2] if offers_v2 else None,
            )
            client.key = key_of(request)
            client.send_request(client.connect())
            self._protocol = client

    @property
    def open(self) -> bool:
        return self._failure is None and self._protocol.state is OPEN

    @property
    def closing(self) -> bool:
        return self._protocol.close_expected()

    @property
    def closed(self) -> Closed | None:
        protocol = self._protocol
        if self._failure is not None:
            return self._failure
        if protocol.handshake_exc is not None:
            return _refusal(protocol.handshake_exc, by_peer=isinstance(protocol, ClientProtocol))
        received, sent = protocol.close_rcvd, protocol.close_sent
        if received is not None and (sent is None or protocol.close_rcvd_then_sent):
            return Closed(received.code, received.reason, by_peer=True)
        if sent is not None:
            return Closed(sent.code, sent.reason, by_peer=False)
        if protocol.state is CLOSED:
            return Closed(CloseCode.ABNORMAL, CloseCode.ABNORMAL.reason, by_peer=True)
        return None

    @property
    def closed_cleanly(self) -> bool:
        received, ended = self._protocol.close_rcvd, self._protocol.state is CLOSED
        return ended and received is not None and received.code in (1000, 1001)

    def receive_data(self, data: bytes) -> list[Flat]:
        items: list[Flat] = []
        protocol = self._protocol
        for byte in data:
            if self._failure is not None:
                break
            protocol.receive_data(BYTES[byte])
            if protocol.state is CONNECTING:
                self._head += BYTES[byte]
                self._refuse_head()
            if protocol.events:
                for event in protocol.events_received():
                    items += self._take(event)
        return items

    def receive_eof(self) -> None:
        self._protocol.receive_eof()

    def data_to_send(self) -> list[bytes]:
        page, self._page = self._page, []
        return [*page, *self._protocol.data_to_send()]

    def send_message(self, payload: bytes) -> None:
        if self.open and self._type is Opcode.TEXT:
            self._protocol.send_text(payload)
        elif self.open:
            self._protocol.send_binary(payload)

    def send_ping(self, data: bytes = b"") -> None:
        if self.open:
            self._protocol.send_ping(data)

    def close(self, code: CloseCode, reason: str) -> None:
        if self.open:
            self._protocol.send_close(code, _short(reason))

    def fail(self, code: CloseCode, reason: str) -> None:
        self._failure = self.closed or Closed(code, reason, by_peer=False)
        if self._protocol.state in (OPEN, CLOSING):
            self._protocol.fail(code, _short(reason))

    def refuse(self, code: CloseCode, reason: str) -> None:
        if self.closed is None or self.closed.by_peer:
            self._failure = Closed(code, reason, by_peer=False)
        self.fail(code, reason)

    def _take(self, event: LibraryEvent) -> list[Flat]:
        if not isinstance(event, Frame):
            return self._take_opening(event)
        if event.opcode is Opcode.PONG:
            return [PongReceived(bytes(event.data))]
        if event.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._type = self._type or event.opcode
            if event.opcode is not self._type:
                self.refuse(CloseCode.UNSUPPORTED_DATA, CloseCode.UNSUPPORTED_DATA.reason)
                return []
        elif event.opcode is not Opcode.CONT:
            return []
        self._fragments += event.data
        if not event.fin:
            return []
        payload, self._fragments = self._fragments, b""
        return [payload]

    def _take_opening(self, event: LibraryEvent) -> list[Flat]:
        path, initiates = PATH, True
        if isinstance(event, Request):
            assert isinstance(self._protocol, ServerProtocol)
            path, initiates = event.path, False
            self._offered = ", ".join(event.headers.get_all("Sec-WebSocket-Protocol"))
            known = event.method in ("GET", "HEAD")
            page = self._answer_request(event.path) if known else OTHER_METHOD
            response = self._protocol.accept(event) if page is None else self._response(page)
            if event.method == "HEAD":
                response.body = b""
            self._protocol.send_response(response)
            if not self.open:
                self._failure = Closed(response.status_code, response.reason_phrase, by_peer=False)
        if not self.open:
            return []
        if self._protocol.subprotocol is not None:
            self._type = None if initiates else Opcode.BINARY
        return [Upgraded(path, self._offered, self._protocol.subprotocol)]

    def _refuse_head(self) -> None:
        error = self._protocol.handshake_exc
        if isinstance(self._protocol, ServerProtocol) and isinstance(error, InvalidMessage):
            page = page_for_head(error, self._head[: len(POST)], self._head.count(b"\n"))
            response = self._response(page)
            if self._head.startswith(b"HEAD "):
                response.body = b""
            self._page = [response.serialize()]
            self._failure = Closed(page.status, page.text.rstrip(".\n"), by_peer=False)

    def _response(self, page: HttpResponse) -> Response:
        assert isinstance(self._protocol, ServerProtocol)
        response = self._protocol.reject(page.status, page.text)
        for name, value in page.headers.items():
            response.headers[name] = value
        return response


class LibrarySession:
    """An established session that decodes one packet at a time, over the library.

    Args:
        library: Its WebSocket, open.
        role: Which end.
        max_topic_bytes: A classic message with a longer topic ends the session.
        speaks_v2: True if packets are those of v2.
    """

    def __init__(self, library: Library, role: Role, max_topic_bytes: int, *, speaks_v2: bool) -> None:
        self.library = library
        self._role, self._max_topic_bytes = role, max_topic_bytes
        self._speaks_v2 = speaks_v2

    def receive_data(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        try:
            for item in self.library.receive_data(data):
                if isinstance(item, bytes) and self._speaks_v2:
                    events += self._packets(item)
                elif isinstance(item, bytes):
                    message = self._message(item)
                    events.append(MessagesReceived(message.topic, [message], [item]))
                elif isinstance(item, PongReceived):
                    events.append(item)
        except PeerError as error:
            self.library.refuse(error.code, error.reason)
        return events

    def _packets(self, payload: bytes) -> list[Event]:
        packet = v2.decode(payload)
        if isinstance(packet, v2.Challenge):
            raise PeerError(CloseCode.SECOND_CHALLENGE)
        if isinstance(packet, v2.Proof):
            raise PeerError(CloseCode.SECOND_ANSWER)
        if isinstance(packet, v2.AskAlive) and self._role is Role.ACCEPTOR:
            self.library.send_message(v2.encode(v2.Alive()))
            return []
        return [packet]

    def _message(self, payload: bytes) -> classic.Message:
        packet = classic.decode(payload)
        if isinstance(packet, classic.Hello):
            second = CloseCode.SECOND_CHALLENGE if packet.answer is None else CloseCode.SECOND_ANSWER
            raise PeerError(second)
        if not isinstance(packet, classic.Message):
            raise PeerError(CloseCode.UNEXPECTED_PACKET)
        if len(packet.topic.encode()) > self._max_topic_bytes:
            raise PeerError(CloseCode.TOPIC_TOO_LONG, f"at most {self._max_topic_bytes} bytes")
        return packet


class Act(NamedTuple):
    """A local action, by the name of a method."""

    name: str
    arguments: tuple[Any, ...] = ()


def upgrade(_path: str) -> None:
    """Answer every request with a WebSocket."""


class Twins:
    """A framing and the library next to it, which must behave alike.

    Args:
        role: Of both.
        limit: The largest message.
        answer_request: To which paths the acceptor answers with a page.
        binary: True if the initiator offers v2, and the acceptor selects it.

    Attributes:
        masked: True if these ends receive masked frames.
        head: The request or the response that opens the WebSocket, without the empty line behind it.
        upgraded: Reported when it is open.
    """

    def __init__(
        self,
        role: Role,
        limit: int = LIMIT,
        answer_request: Callable[[str], HttpResponse | None] = upgrade,
        *,
        binary: bool = False,
    ) -> None:
        self.masked = role is Role.ACCEPTOR
        self.upgraded = Upgraded(PATH, SUBPROTOCOL, SUBPROTOCOL) if binary else Upgraded(PATH, "", None)
        self.framing: Framing
        if role is Role.ACCEPTOR:
            self.framing = AnsweringFraming(answer_request, limit, SUBPROTOCOL)
        else:
            self.framing = ClientFraming(HOST, PORT, PATH, limit, [SUBPROTOCOL] if binary else [])
        request = b"".join(self.framing.data_to_send())
        self.library = Library(role, limit, request, answer_request, offers_v2=binary)
        assert b"".join(self.library.data_to_send()) == request
        if self.masked:
            self.head = REQUEST
        else:
            self.head = RESPONSE + f"Sec-WebSocket-Accept: {accept_key(key_of(request))}\r\n".encode()
        if binary:
            self.head += offer_of(SUBPROTOCOL).encode() + b"\r\n"
        self.ended = False

    @classmethod
    def opened(cls, role: Role, limit: int = LIMIT, *, binary: bool = False) -> Twins:
        twins = cls(role, limit, binary=binary)
        assert twins.receive(twins.head + b"\r\n") == [twins.upgraded]
        return twins

    def receive(self, data: bytes) -> list[Flat]:
        if self.ended:
            return []
        flat = self._receive_turn(data)
        while self.framing.behind:
            flat += self._receive_turn(b"")
        assert all(type(item) is bytes for item in flat if not isinstance(item, Upgraded | PongReceived))
        assert flat == self.library.receive_data(data)
        self.framing.take_burden()
        self.compare()
        return flat

    def _receive_turn(self, data: bytes) -> list[Flat]:
        items = self.framing.receive_data(data)
        lists = [isinstance(item, list) for item in items]
        assert (True, True) not in itertools.pairwise(lists), "messages that follow each other are one item"
        assert [] not in items
        flat: list[Flat] = []
        for item in items:
            assert not isinstance(item, RequestReceived | BodyReceived | TooLong)
            flat += item if isinstance(item, list) else [item]
        # One may have been incomplete, and an opening is no frame.
        assert len(flat) <= self.framing.turn_frames + 2
        return flat

    def act(self, act: Act) -> None:
        self.ended |= act.name == "receive_eof"
        for end in (self.framing, self.library):
            getattr(end, act.name)(*act.arguments)
        self.compare()

    def compare(self) -> None:
        assert state(self.framing) == state(self.library)
        assert self.framing.open == self.library.open
        quiet = self.framing.quiet
        ours, theirs = self.framing.data_to_send(), self.library.data_to_send()
        assert not quiet or (ours, self.library.closed, self.library.closing) == ([], None, False)
        # An acceptor receives masked frames and sends unmasked ones.
        if ours or theirs:
            masked = not self.masked
            assert written(ours, masked=masked) == written(theirs, masked=masked)

    def feed(self, pieces: list[bytes], acts: Sequence[tuple[int, Act]] = ()) -> list[Flat]:
        """Feed pieces, act before some of them, and feed the end of the stream."""
        items: list[Flat] = []
        for index, piece in enumerate([*pieces, b""]):
            for place, act in acts:
                if place % (len(pieces) + 1) == index:
                    self.act(act)
            if piece:
                items += self.receive(piece)
        self.act(Act("receive_eof"))
        self.act(Act("receive_eof"))
        return items


def _select(_protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return V2 if V2 in offered else None


def key_of(request: bytes) -> str:
    """Return the key of an initiator's request."""
    found = re.search(rb"Sec-WebSocket-Key: (\S+)\r\n", request)
    assert found is not None
    return found[1].decode()


def parse_frames(data: bytes, *, masked: bool) -> list[tuple[int, bool, bytes]]:
    """Return opcode, FIN bit and payload of frames, all of them whole."""
    reader = StreamReader()
    reader.feed_data(data)
    frames = []
    while reader.buffer:
        parser = Frame.parse(reader.read_exact, mask=masked)
        try:
            next(parser)
        except StopIteration as end:
            frames.append((int(end.value.opcode), end.value.fin, bytes(end.value.data)))
        else:
            raise AssertionError(f"half a frame: {data!r}")
    return frames


def written(writes: Sequence[bytes], *, masked: bool) -> list[object]:
    """Return the output in a form that can be compared: without masks and the time of day."""
    shown: list[object] = []
    for data, group in itertools.groupby(writes, bool):
        if not data:
            shown += [END for _ in group]
            continue
        joined = b"".join(group)
        if masked:
            shown += parse_frames(joined, masked=True)
        else:
            # The length read of a line that is too long depends on how it was cut.
            shown.append(re.sub(rb"Date: [^\r]*|Content-Length: \d+|read \d+ bytes", b"", joined))
    return shown


def state(end: Framing | Session | Library) -> tuple[object, ...]:
    """Return the state of an end."""
    closed = end.closed
    if closed is not None:
        closed = Closed(closed.code, re.sub(r"read \d+ bytes", "", closed.reason), closed.by_peer)
    return closed, end.closing, end.closed_cleanly


def _refusal(error: Exception, *, by_peer: bool) -> Closed:
    if isinstance(error, InvalidStatus):
        return Closed(error.response.status_code, f"HTTP {error.response.reason_phrase}", by_peer=True)
    if by_peer:
        return Closed(CloseCode.ABNORMAL, f"not a WebSocket server: {error}", by_peer=True)
    status = HTTPStatus.BAD_REQUEST
    if isinstance(error, RequestLineTooLong):
        status = HTTPStatus.REQUEST_URI_TOO_LONG
    elif isinstance(error, HeaderLineTooLong | TooManyHeaders):
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return Closed(status, f"not a WebSocket request: {error}", by_peer=False)


def _short(reason: str) -> str:
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
