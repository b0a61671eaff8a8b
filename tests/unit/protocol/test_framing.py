from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from websockets.frames import Frame, Opcode

from wsqueue.protocol.close import CloseCode, Closed
from wsqueue.protocol.frames import frame_messages
from wsqueue.protocol.framing import (
    MAX_REASON_BYTES,
    Framing,
    Get,
    HttpResponse,
    Item,
    PongReceived,
    RequestReceived,
    Upgraded,
)
from wsqueue.protocol.upgrade import ClientFraming, ServerFraming
from wsqueue.protocol.v2 import SUBPROTOCOL

from ...support.oracle import AnsweringFraming
from ...support.raw_peer import offer_of, request_of
from ...support.wire import (
    BINARY,
    BYTEWISE,
    CONT,
    CONT_LAST,
    PING,
    PONG,
    TEXT,
    TEXT_FIRST,
    WHOLE,
    Chunk,
    Cut,
    Every,
    Raw,
    Run,
    cut,
    render,
)

OPENED = Upgraded("/producer", "", None)
UNSUPPORTED = Closed(CloseCode.UNSUPPORTED_DATA, CloseCode.UNSUPPORTED_DATA.reason, by_peer=False)


class Joined:
    """Two ends of a WebSocket in memory."""

    def __init__(self, max_message_bytes: int = 1000, subprotocols: Sequence[str] = ()) -> None:
        self.requests: list[str] = []
        self.server = AnsweringFraming(self._answer, max_message_bytes, SUBPROTOCOL)
        self.client = ClientFraming("::1", 8080, "/producer", max_message_bytes, subprotocols)

    def _answer(self, path: str) -> HttpResponse | None:
        self.requests.append(path)
        return None if path == "/producer" else HttpResponse(404, "no\n")

    def exchange(self) -> tuple[list[Item], list[Item]]:
        at_server: list[Item] = []
        at_client: list[Item] = []
        for _ in range(4):
            at_server += carry(self.client, self.server)
            at_client += carry(self.server, self.client)
        return at_server, at_client


def carry(source: Framing, target: Framing) -> list[Item]:
    items: list[Item] = []
    for data in source.data_to_send():
        if data:
            items += target.receive_data(data)
        else:
            target.receive_eof()
    return items


@pytest.fixture
def joined() -> Joined:
    joined = Joined()
    assert joined.exchange() == ([OPENED], [OPENED])
    assert joined.server.open
    assert joined.client.open
    return joined


class TestFraming:
    def test_the_request(self) -> None:
        joined = Joined()
        request = b"".join(joined.client.data_to_send())
        assert request.startswith(b"GET /producer HTTP/1.1\r\nHost: [::1]:8080\r\n")
        assert b"Sec-WebSocket-Protocol" not in request
        assert b"Sec-WebSocket-Extensions" not in request
        assert joined.server.receive_data(request) == [OPENED]
        assert joined.requests == ["/producer"]

    @pytest.mark.parametrize(
        ("subprotocols", "selected"),
        [
            ([SUBPROTOCOL], SUBPROTOCOL),
            (["other", SUBPROTOCOL, "wsqueue.v3"], SUBPROTOCOL),
            (["other"], None),
            (["wsqueue.v22", "xwsqueue.v2"], None),
            ([SUBPROTOCOL.upper()], None),
        ],
    )
    def test_the_subprotocol_is_selected_where_it_is_offered(
        self, subprotocols: list[str], selected: str | None
    ) -> None:
        joined = Joined(subprotocols=subprotocols)
        opened = Upgraded("/producer", ", ".join(subprotocols), selected)
        assert joined.exchange() == ([opened], [opened])
        assert joined.requests == ["/producer"]

    @pytest.mark.parametrize(
        ("lines", "host"),
        [
            ([], ""),
            (["Host: node.example:1"], "node.example:1"),
            (["hOST:  [::1] "], "[::1]"),
            (["Host: a", "Host: b"], "a, b"),
        ],
    )
    def test_a_request_says_which_host_it_is_for(self, lines: list[str], host: str) -> None:
        server = ServerFraming(1000, SUBPROTOCOL)
        request = "\r\n".join(["GET /x?y HTTP/1.1", *lines, "", ""]).encode()
        expected = RequestReceived("/x?y", host, offers_subprotocol=False, get=Get())
        assert server.receive_data(request) == [expected]

    @pytest.mark.parametrize(
        ("lines", "origin"),
        [
            ([], None),
            (["Origin: "], ""),
            (["oRIGIN: https://a.example "], "https://a.example"),
            (["Origin: https://a.example", "Origin: null"], "https://a.example, null"),
        ],
    )
    def test_a_request_says_which_site_it_comes_from(self, lines: list[str], origin: str | None) -> None:
        server = ServerFraming(1000, SUBPROTOCOL)
        request = "\r\n".join(["GET / HTTP/1.1", *lines, "", ""]).encode()
        (event,) = server.receive_data(request)
        assert isinstance(event, RequestReceived)
        assert event.origin == origin

    @pytest.mark.parametrize("accepted", [True, False])
    def test_what_is_behind_a_request_waits_for_the_answer(self, accepted: bool) -> None:
        server, client = ServerFraming(1000, SUBPROTOCOL), ClientFraming("::1", 8080, "/producer", 1000)
        frames = [frame_messages([text], masked=True, binary=False) for text in (b"a", b"b", b"c")]
        ping = Frame(Opcode.PING, b"now").serialize(mask=True)
        (request,) = client.data_to_send()
        items = server.receive_data(request + frames[0] + frames[1][:3])
        assert items == [RequestReceived("/producer", "[::1]:8080", offers_subprotocol=False)]
        assert server.receive_data(frames[1][3:] + ping) == server.receive_data(frames[2]) == []
        assert (server.open, server.closed, server.data_to_send()) == (False, None, [])
        if accepted:
            assert server.accept() == [OPENED, [b"a", b"b", b"c"]]
            response, pong = server.data_to_send()
            assert client.receive_data(response + pong) == [OPENED, PongReceived(b"now")]
        else:
            server.respond(HttpResponse(404, "no\n"))
            assert server.closed == Closed(404, "Not Found", by_peer=False)
            assert server.receive_data(frames[2]) == []
            assert b"".join(server.data_to_send()).endswith(b"\r\n\r\nno\n")

    @pytest.mark.parametrize("method", ["PUT", "post", "get", "CONNECT"])
    def test_another_method_asks_for_nothing(self, method: str) -> None:
        joined = Joined()
        joined.server.receive_data(f"{method} /producer HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = b"".join(joined.server.data_to_send()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nAllow: GET, HEAD, POST" in head
        assert body == b"Only GET and HEAD are answered here, and POST at /publish/TOPIC of a producer.\n"
        assert joined.requests == []
        assert joined.server.closed is not None
        assert joined.server.closed.code == 405

    @pytest.mark.parametrize("how", [WHOLE, BYTEWISE], ids=repr)
    @pytest.mark.parametrize(
        ("head", "status", "reason"),
        [
            ("GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 400, "A GET or HEAD has no body here"),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "A GET or HEAD has no body here"),
            ("GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400, "A GET or HEAD has no body here"),
            ("GET http://x/ HTTP/1.1\r\nContent-Length: 3\r\n\r\n", 400, "A GET or HEAD has no body here"),
            ("PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405, "Only GET and HEAD are answered here"),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 405, "Only GET and HEAD"),
            ("POSTS / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405, "Only GET and HEAD"),
            (
                "GET / HTTP/1.1\r\nHost: x\r\nno colon\r\nX: x\r\n\r\n",
                400,
                "Line 3 of the request is malformed: expected NAME",
            ),
            ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, "Line 2 of the request is malformed: expected NAME"),
            (
                "GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
                400,
                "Line 3 of the request is malformed: expected NAME",
            ),
            ("GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", 400, "Line 2 of the request is malformed: expected NAME"),
            ("PUT / HTTP/1.1\r\nno colon\r\n\r\n", 400, "Line 2 of the request is malformed: expected NAME"),
            ("GET / HTTP/1.1\r\nHost: x\n\n", 400, "Line 2 of the request is malformed: expected NAME"),
            ("GET / HTTP/1.1\n\n", 400, "Line 1 of the request is malformed: expected a method"),
            ("GET /\r\n", 400, "Line 1 of the request is malformed: expected a method"),
            ("GET /a b HTTP/1.1\r\n\r\n", 400, "Line 1 of the request is malformed: expected a method"),
            ("GET /\xfc HTTP/1.1\r\n\r\n", 400, "Line 1 of the request is malformed: expected a method"),
            (
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                400,
                "Line 1 of the request is malformed: expected a method",
            ),
            ("SSH-2.0-OpenSSH_9.2\r\n", 400, "Line 1 of the request is malformed: expected a method"),
            ("\r\n", 400, "Line 1 of the request is malformed: expected a method"),
        ],
    )
    def test_a_head_that_cannot_be_taken_is_answered(
        self, head: str, status: int, reason: str, how: Cut
    ) -> None:
        joined = Joined()
        for piece in cut([head.encode()], how):
            assert joined.server.receive_data(piece) == []
        writes = joined.server.data_to_send()
        response, _, page = b"".join(writes).decode().partition("\r\n\r\n")
        assert response.startswith(f"HTTP/1.1 {status} ")
        assert "\r\nConnection: close\r\n" in response
        assert "\r\nContent-Type: text/plain" in response
        assert f"\r\nContent-Length: {len(page)}\r\n" in response
        assert ("\r\nAllow: GET, HEAD, POST" in response) is (status == 405)
        assert page.startswith(reason)
        assert writes[-1] == b"", "the stream ends behind the page"
        assert joined.server.closed == Closed(status, page.rstrip(".\n"), by_peer=False)
        assert joined.server.closing
        assert joined.requests == []
        assert joined.server.receive_data(b"GET / HTTP/1.1\r\n\r\n") == []
        joined.server.receive_eof()
        assert joined.server.data_to_send() == []

    @pytest.mark.parametrize("lines", ["Content-Length: 3\r\n\r\nabc", "no colon\r\n\r\n"])
    def test_a_head_request_that_cannot_be_taken(self, lines: str) -> None:
        joined = Joined()
        joined.server.receive_data(f"HEAD / HTTP/1.1\r\n{lines}".encode())
        head, _, body = b"".join(joined.server.data_to_send()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert body == b""

    @pytest.mark.parametrize(
        "begin", ["", "G", "GET / HTTP/1.1\r\n", "PUT / HTTP/1.1\r\nContent-Length: 3\r\n"]
    )
    def test_a_head_without_end_is_not_answered(self, begin: str) -> None:
        joined = Joined()
        joined.server.receive_data(begin.encode())
        joined.server.receive_eof()
        assert joined.server.data_to_send() == [b""]

    def test_head_has_no_body(self) -> None:
        joined = Joined()
        joined.server.receive_data(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = b"".join(joined.server.data_to_send()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404 ")
        assert b"\r\nContent-Length: 3" in head
        assert body == b""
        assert joined.requests == ["/"]

    @pytest.mark.parametrize("selects", [True, False])
    def test_what_is_behind_a_request_is_of_the_type_that_the_answer_selects(self, selects: bool) -> None:
        server = ServerFraming(1000, SUBPROTOCOL)
        offers = [offer_of(SUBPROTOCOL)] * selects
        frames = [
            frame_messages([b"a", b"b"], masked=True, binary=binary) for binary in (selects, not selects)
        ]
        server.receive_data(request_of("/producer", *offers) + b"".join(frames))
        assert not server.binary
        assert server.accept()[1:] == [[b"a", b"b"]]
        assert server.binary is selects
        assert server.closed == UNSUPPORTED

    def test_a_message_that_has_begun_may_be_longer_too(self, joined: Joined) -> None:
        begun = Frame(Opcode.TEXT, b"x" * 1000, fin=False).serialize(mask=True)
        assert joined.server.receive_data(begun) == []
        joined.server.allow_more(10)
        rest = Frame(Opcode.CONT, b"x" * 10).serialize(mask=True)
        assert joined.server.receive_data(rest) == [[b"x" * 1010]]

    def test_both_ends_have_the_path_and_the_offer_as_they_were_sent(self) -> None:
        request = (
            b"GET /producer HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: a ,wsqueue.v2\r\nSec-WebSocket-Protocol: b\r\n\r\n"
        )
        joined = Joined()
        assert joined.server.receive_data(request) == [Upgraded("/producer", "a ,wsqueue.v2, b", SUBPROTOCOL)]

    def test_each_end_masks_as_its_role_must(self, joined: Joined) -> None:
        assert joined.client.masked
        assert not joined.server.masked
        for sender, receiver in ((joined.client, joined.server), (joined.server, joined.client)):
            frames = frame_messages([b"a", b""], masked=sender.masked, binary=False)
            assert receiver.receive_data(frames) == [[b"a", b""]]

    def test_nothing_is_sent_before_it_is_open(self) -> None:
        joined = Joined()
        joined.server.send_message(b"early")
        joined.server.send_ping()
        joined.server.close(CloseCode.NORMAL, "early")
        assert joined.server.data_to_send() == []
        assert joined.server.closed is None

    def test_nothing_is_sent_after_the_close_frame(self, joined: Joined) -> None:
        joined.server.close(CloseCode.GOING_AWAY, "bye")
        joined.server.send_message(b"late")
        joined.server.send_ping()
        joined.server.close(CloseCode.NORMAL, "again")
        assert joined.exchange() == ([], [])
        assert joined.client.closed == Closed(1001, "bye", by_peer=True)
        assert joined.server.closed == Closed(1001, "bye", by_peer=False)

    @pytest.mark.parametrize("reason", ["x" * 500, "ñ" * 500, "日" * 500, "\N{GRINNING FACE}" * 500, ""])
    def test_a_close_frame_holds_the_beginning_of_the_reason(self, joined: Joined, reason: str) -> None:
        joined.server.fail(CloseCode.INVALID_PACKET, reason)
        frame = joined.server.data_to_send()[0]
        assert frame[0] == 0x88
        assert frame[1] == len(frame) - 2 <= 125
        assert struct.unpack("!H", frame[2:4]) == (4400,)
        assert reason.startswith(frame[4:].decode())
        assert len(frame[4:]) > min(MAX_REASON_BYTES - 4, len(reason) - 1)
        # This end keeps the whole reason.
        assert joined.server.closed == Closed(4400, reason, by_peer=False)

    def test_a_large_status_line_and_body_are_not_kept(self) -> None:
        joined = Joined()
        joined.client.data_to_send()
        assert joined.client.receive_data(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2_000_000) == []
        assert joined.client.closed is not None

    def test_library_messages_go_nowhere(self, joined: Joined, capfd: pytest.CaptureFixture[str]) -> None:
        joined.server.receive_data(b"\xff" * 100)
        joined.client.receive_data(b"\xff" * 100)
        joined.server.receive_eof()
        assert capfd.readouterr() == ("", "")


WHOLE_MESSAGE = [Raw(b"ab", TEXT)]
IN_FRAGMENTS = [Raw(b"a", TEXT_FIRST), Raw(b"b", CONT_LAST)]
WITH_CONTROLS = [
    *(Raw(b"", TEXT_FIRST), Raw(b"1", PING), Raw(b"a", CONT), Raw(b"2", PONG), Raw(b"b", CONT_LAST)),
]
MESSAGES = [WHOLE_MESSAGE, IN_FRAGMENTS, WITH_CONTROLS]
OPENINGS: list[list[Raw]] = [[], [Raw(b"1", PING)], [Raw(b"2", PONG), Raw(b"", PING), Raw(b"1", PING)]]


def messages_in(items: list[Item]) -> list[bytes]:
    return [payload for item in items if isinstance(item, list) for payload in item]


@pytest.mark.parametrize("how", [WHOLE, BYTEWISE, Every(3)], ids=["whole", "bytewise", "in threes"])
class TestTypes:
    """Messages are binary where v2 was selected, else texts; an acceptor may have selected it blindly."""

    @staticmethod
    def joined(*, selected: bool) -> Joined:
        joined = Joined(subprotocols=[SUBPROTOCOL] if selected else [])
        joined.exchange()
        return joined

    @staticmethod
    def feed(framing: Framing, chunks: Sequence[Chunk], how: Cut, *, binary: bool) -> list[bytes]:
        """Feed frames whose messages are of a type, and return the messages that come out."""
        frames = render(chunks, masked=not framing.masked, binary=binary)
        return messages_in([item for piece in cut(frames, how) for item in framing.receive_data(piece)])

    @pytest.mark.parametrize("selected", [True, False])
    @pytest.mark.parametrize("before", OPENINGS)
    @pytest.mark.parametrize("message", MESSAGES)
    def test_an_acceptor_takes_the_type_of_the_protocol_that_it_selected(
        self, selected: bool, before: list[Raw], message: list[Raw], how: Cut
    ) -> None:
        server = self.joined(selected=selected).server
        assert self.feed(server, [*before, *message, Run(20, 3)], how, binary=selected)[0] == b"ab"
        assert server.open
        assert self.feed(server, [*message, Raw(b"late")], how, binary=not selected) == []
        assert server.closed == UNSUPPORTED
        # From the first message on.
        server = self.joined(selected=selected).server
        assert self.feed(server, [*before, *message], how, binary=not selected) == []
        assert server.closed == UNSUPPORTED

    @pytest.mark.parametrize("binary", [True, False])
    @pytest.mark.parametrize("before", OPENINGS)
    @pytest.mark.parametrize("first", MESSAGES)
    @pytest.mark.parametrize("later", MESSAGES)
    def test_the_first_message_of_an_acceptor_that_selected_v2_decides(
        self, binary: bool, before: list[Raw], first: list[Raw], later: list[Raw], how: Cut
    ) -> None:
        joined = self.joined(selected=True)
        client, server = joined.client, joined.server
        run = [frame.payload for frame in Run(20, 3).frames()]
        steps: list[tuple[list[bytes], Sequence[Chunk]]] = [
            ([b"ab"], [*before, *first]),
            ([b"ab"], later),
            ([*run, b"ab"], [Run(20, 3), *later]),
        ]
        for expected, chunks in steps:
            assert self.feed(client, chunks, how, binary=binary) == expected
            assert client.binary is binary
        client.data_to_send()
        client.send_message(b"ours")
        assert client.data_to_send()[0][0] == (BINARY if binary else TEXT)
        assert self.feed(client, [*later, Raw(b"late")], how, binary=not binary) == []
        assert client.closed == UNSUPPORTED
        # The acceptor itself holds to its own selection.
        assert server.binary

    @pytest.mark.parametrize("message", MESSAGES)
    def test_an_acceptor_that_selected_nothing_sends_texts(self, message: list[Raw], how: Cut) -> None:
        client = self.joined(selected=False).client
        assert self.feed(client, message, how, binary=True) == []
        assert client.closed == UNSUPPORTED

    @pytest.mark.parametrize("before", OPENINGS)
    @pytest.mark.parametrize(
        "wrong", [Raw(b"a", CONT), Raw(b"a", CONT_LAST), Raw(b"a", 0x83), Raw(b"a", TEXT | 0x40)]
    )
    def test_a_first_frame_that_breaks_the_rules_decides_nothing(
        self, before: list[Raw], wrong: Raw, how: Cut
    ) -> None:
        client = self.joined(selected=True).client
        assert self.feed(client, [*before, wrong, Raw(b"late")], how, binary=False) == []
        assert client.closed is not None
        assert (client.closed.code, client.closed.by_peer) == (1002, False)

    def test_control_frames_decide_nothing(self, how: Cut) -> None:
        client = self.joined(selected=True).client
        assert self.feed(client, [Raw(b"1", PING), Raw(b"2", PONG)] * 3, how, binary=False) == []
        assert client.binary
        assert self.feed(client, [Raw(b"a"), Raw(b"b")], how, binary=False) == [b"a", b"b"]
        assert not client.binary
