from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode

from tests.support.strategies import cut
from wsqueue.protocol import classic
from wsqueue.protocol.close import CloseCode, Closed
from wsqueue.protocol.framing import LIBRARY_FRAMES
from wsqueue.protocol.keys import Order, PreSharedKey, Role
from wsqueue.protocol.session import (
    MAX_HELLO_BURDEN,
    MAX_HELLO_BYTES,
    Event,
    HelloDone,
    MessagesReceived,
    Session,
)

from ...support import wire
from ...support.raw_peer import request_of
from ...support.session_pair import (
    MAX_MESSAGE_BYTES,
    MAX_TOPIC_BYTES,
    PATH,
    Pair,
    RawPeer,
    accept,
    answer_of,
    by_topic,
    few,
    initiate,
    message,
    received,
)

both_roles = pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
both_orders = pytest.mark.parametrize("order", list(Order), ids=lambda order: order.value)

TOO_BIG = 1009

utf8_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
topics = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_TOPIC_BYTES // 4)


def assert_ended(session: Session, code: int, *, by_peer: bool = False) -> Closed:
    """Check that a session has ended with a code, and takes nothing more."""
    closed = session.closed
    assert closed is not None
    assert (closed.code, closed.by_peer) == (code, by_peer)
    assert not session.established
    return closed


def feed(session: Session, pieces: list[bytes]) -> list[Event]:
    return [event for piece in pieces for event in session.receive_data(piece)]


class TestTwoSessions:
    """A session understands its counterpart."""

    @both_orders
    def test_hello(self, order: Order) -> None:
        pair = Pair(initiator=initiate(order=order))
        assert not pair.acceptor.established
        assert not pair.initiator.established
        assert pair.exchange() == ([HelloDone()], [HelloDone()])
        for session in (pair.acceptor, pair.initiator):
            assert session.established
            assert not session.closing
            assert not session.closed_cleanly
            assert session.closed is None

    def test_different_keys(self) -> None:
        pair = Pair(initiator=initiate(PreSharedKey("another key")))
        assert pair.exchange() == ([], [])
        # The acceptor refuses with a wrong answer, so that both find out by themselves.
        for session in (pair.acceptor, pair.initiator):
            closed = assert_ended(session, CloseCode.WRONG_ANSWER)
            assert closed.reason == "wrong answer: the pre-shared keys differ"

    @both_roles
    @pytest.mark.parametrize("code", [CloseCode.NORMAL, CloseCode.GOING_AWAY])
    def test_close_handshake(self, role: Role, code: CloseCode) -> None:
        pair = Pair.established()
        closer, other = pair.ends(role)
        closer.close(code, "bye")
        assert_ended(closer, code)
        assert (closer.closing, closer.closed_cleanly) == (True, False)
        pair.exchange()
        assert_ended(closer, code)
        closed = assert_ended(other, code, by_peer=True)
        assert closed.reason == "bye"
        assert (closer.closed_cleanly, other.closed_cleanly) == (True, True)
        pair.acceptor.receive_eof()
        assert not pair.acceptor.closing
        assert not pair.initiator.closing

    @both_roles
    def test_closing_twice_keeps_the_first_reason(self, role: Role) -> None:
        pair = Pair.established()
        closer, other = pair.ends(role)
        closer.close(CloseCode.GOING_AWAY)
        closer.close(CloseCode.NORMAL)
        closer.fail(CloseCode.HELLO_TIMEOUT)
        pair.exchange()
        assert_ended(closer, CloseCode.GOING_AWAY)
        assert assert_ended(other, CloseCode.GOING_AWAY, by_peer=True).reason == "going away"

    @both_roles
    def test_what_came_before_the_close_frame_is_still_read(self, role: Role) -> None:
        closer, other = Pair.established().ends(role)
        closer.close(CloseCode.GOING_AWAY)
        assert received(closer.receive_data(other.frame([message("on its way")]))) == [("on its way", "news")]
        for data in closer.data_to_send():
            other.receive_data(data)
        for data in other.data_to_send():
            closer.receive_data(data)
        # A peer that gives up before it has read all sends a close frame too, and resets the connection.
        assert not closer.closed_cleanly
        closer.receive_eof()
        assert closer.closed_cleanly

    @both_roles
    @pytest.mark.parametrize("code", list(CloseCode))
    def test_fail(self, role: Role, code: CloseCode) -> None:
        pair = Pair.established()
        failing, other = pair.ends(role)
        failing.fail(code, "some reason")
        assert assert_ended(failing, code).reason == "some reason"
        assert failing.receive_data(other.frame([message("late")])) == []
        pair.exchange()
        if code is not CloseCode.ABNORMAL:  # which never travels (RFC 6455 section 7.4.1)
            assert assert_ended(other, code, by_peer=True).reason == "some reason"

    @both_roles
    def test_a_failure_before_the_upgrade(self, role: Role) -> None:
        pair = Pair()
        failing, _ = pair.ends(role)
        failing.fail(CloseCode.HELLO_TIMEOUT)
        assert pair.exchange() == ([], [])
        assert assert_ended(failing, CloseCode.HELLO_TIMEOUT).reason == "the hello took too long"


class TestEndOfStream:
    """A connection that ends without a close frame is lost."""

    @both_roles
    @pytest.mark.parametrize("begin", [RawPeer.opened, RawPeer.established])
    def test_after_the_upgrade(self, role: Role, begin: Callable[[Role], RawPeer]) -> None:
        session = begin(role).session
        for _ in range(2):
            session.receive_eof()
            assert_ended(session, CloseCode.ABNORMAL, by_peer=True)
            assert not session.closed_cleanly

    @both_roles
    def test_failing_afterwards_says_why(self, role: Role) -> None:
        session = initiate() if role is Role.INITIATOR else accept()
        session.fail(CloseCode.HELLO_TIMEOUT)
        session.receive_eof()
        assert_ended(session, CloseCode.HELLO_TIMEOUT)


class TestHello:
    """Packets of a peer before both ends have proved themselves."""

    @both_roles
    @pytest.mark.parametrize(
        ("packet", "code"),
        [
            (message("early"), CloseCode.EARLY_DATA),
            (b'{"t":"h","a":"wrong"}', CloseCode.WRONG_ANSWER),
            ('{"t":"h","a":"ñ\N{GRINNING FACE}"}'.encode(), CloseCode.WRONG_ANSWER),
            (b"{}", CloseCode.INVALID_PACKET),
            (b'{"t":"h","o":0}', CloseCode.INVALID_PACKET),
            (b'{"t":"s","s":"news"}', CloseCode.UNEXPECTED_PACKET),
            (b'{"t":"u","s":"news"}', CloseCode.UNEXPECTED_PACKET),
        ],
    )
    @pytest.mark.parametrize("challenged", [False, True])
    def test_refused_before_the_hello(
        self, role: Role, packet: bytes, code: CloseCode, challenged: bool
    ) -> None:
        peer = RawPeer.opened(role)
        if challenged:
            peer.challenge(1)
        assert peer.send(packet, message("late")) == []
        assert_ended(peer.session, code)
        assert peer.close_received is not None
        assert peer.close_received.code == code

    @pytest.mark.parametrize("first", ["challenge", "nothing"])
    def test_an_acceptor_refuses_with_an_answer_that_says_nothing_about_the_key(self, first: str) -> None:
        refusals = set()
        for _ in range(3):
            peer = RawPeer.opened(Role.ACCEPTOR)
            if first == "challenge":
                peer.challenge(99)
            peer.answer("another key")
            assert_ended(peer.session, CloseCode.WRONG_ANSWER)
            assert peer.close_received is not None
            assert peer.close_received.code == CloseCode.WRONG_ANSWER
            refusals.update(peer.answers)
        # Only a peer that has challenged waits for an answer.
        assert len(refusals) == (3 if first == "challenge" else 0)
        assert not refusals & {answer_of(99, order=order) for order in Order}
        assert all(len(base64.b64decode(refusal, validate=True)) == 32 for refusal in refusals)

    def test_an_initiator_refuses_without_an_answer(self) -> None:
        peer = RawPeer.opened(Role.INITIATOR)
        peer.challenge(99)
        peer.answer("another key")
        assert_ended(peer.session, CloseCode.WRONG_ANSWER)
        assert peer.answers == [answer_of(99)]

    @both_roles
    @pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
    @pytest.mark.parametrize("at_once", [True, False])
    def test_a_peer_may_send_few_control_frames_before_it_has_proved_itself(
        self, role: Role, opcode: Opcode, at_once: bool
    ) -> None:
        peer = RawPeer.opened(role)
        frames = [peer.frame(opcode, b"x" * 100)] * MAX_HELLO_BURDEN
        for data in [b"".join(frames)] if at_once else frames:
            peer.send_bytes(data)
        assert peer.session.closed is None
        assert not peer.session.overrun
        peer.send_bytes(frames[0])
        assert_ended(peer.session, CloseCode.EARLY_DATA)
        pings = MAX_HELLO_BURDEN + 1 if opcode is Opcode.PING else 0
        assert len(peer.pongs) == pings

    @both_roles
    def test_a_flood_of_control_frames_is_not_answered(self, role: Role) -> None:
        peer = RawPeer.opened(role)
        peer.send_bytes(peer.frame(Opcode.PING, b"") * 10_000)
        assert_ended(peer.session, CloseCode.EARLY_DATA)
        assert len(peer.pongs) == MAX_HELLO_BURDEN + 1
        assert peer.session.overrun

    @both_roles
    def test_a_peer_may_send_few_tiny_fragments_before_it_has_proved_itself(self, role: Role) -> None:
        peer = RawPeer.opened(role)
        fragments = [
            peer.frame(Opcode.TEXT, b"{", fin=False),
            *[peer.frame(Opcode.CONT, b" ", fin=False)] * (MAX_HELLO_BURDEN // LIBRARY_FRAMES - 1),
        ]
        peer.send_bytes(b"".join(fragments))
        assert peer.session.closed is None
        peer.send_bytes(peer.frame(Opcode.CONT, b" ", fin=False))
        assert_ended(peer.session, CloseCode.EARLY_DATA)

    @pytest.mark.parametrize(
        ("session", "first_line"),
        [(accept(), b"GET / HTTP/1.1\r\n"), (initiate(), b"HTTP/1.1 101 Switching Protocols\r\n")],
        ids=["acceptor", "initiator"],
    )
    def test_the_bytes_of_a_hello_are_bounded(self, session: Session, first_line: bytes) -> None:
        header = b"Cookie: " + b"x" * 4000 + b"\r\n"
        session.receive_data(first_line + header * (MAX_HELLO_BYTES // len(header)))
        assert session.closed is None
        session.receive_data(header)
        assert_ended(session, CloseCode.EARLY_DATA)

    @both_roles
    def test_the_bound_ends_with_the_hello(self, role: Role) -> None:
        peer = RawPeer.opened(role)
        answer = json.dumps({"t": "h", "a": answer_of(peer.challenged_with)}).encode()
        flood = [message("x" * 1000)] * 100
        events = peer.send(b'{"t":"h","o":1}', answer, *flood)
        assert events[0] == HelloDone()
        assert len(received(events)) == 100
        assert len(received(peer.send(*flood))) == 100
        assert peer.session.established

    @both_roles
    def test_a_wrong_answer_is_said_even_when_the_peer_closes_with_it(self, role: Role) -> None:
        peer = RawPeer.opened(role)
        peer.send_bytes(peer.text(b'{"t":"h","a":"wrong"}') + peer.close_frame())
        assert_ended(peer.session, CloseCode.WRONG_ANSWER)


class TestMessages:
    """Messages of an established peer."""

    @both_roles
    @pytest.mark.parametrize(
        ("opcode", "payload"), [(Opcode.BINARY, b"x"), (Opcode.TEXT, b"\xff"), (Opcode.TEXT, b"{}")]
    )
    def test_a_bad_message_while_we_close(self, role: Role, opcode: Opcode, payload: bytes) -> None:
        peer = RawPeer.established(role)
        peer.session.close(CloseCode.GOING_AWAY)
        bad, late = peer.frame(opcode, payload), peer.text(message("late"))
        events = peer.session.receive_data(peer.text(message("one")) + bad + late)
        assert received(events) == [("one", "news")]
        assert peer.session.receive_data(late) == []
        assert_ended(peer.session, CloseCode.GOING_AWAY)

    @both_roles
    def test_the_largest_message(self, role: Role) -> None:
        peer = RawPeer.established(role)
        data = "x" * (MAX_MESSAGE_BYTES - len(message("")))
        assert received(peer.send(message(data))) == [(data, "news")]
        assert peer.send(message(data + "x")) == []
        assert_ended(peer.session, TOO_BIG)

    @both_roles
    @pytest.mark.parametrize(("code", "clean"), [(1000, True), (1001, True), (1011, False), (4401, False)])
    def test_the_peer_closes(self, role: Role, code: int, clean: bool) -> None:
        peer = RawPeer.established(role)
        late = peer.text(message("late"))
        events = peer.send_bytes(peer.text(message("one")) + peer.close_frame(code, "ñ") + late)
        assert received(events) == [("one", "news")]
        assert assert_ended(peer.session, code, by_peer=True).reason == "ñ"
        assert not peer.session.closed_cleanly
        peer.session.receive_eof()
        assert peer.session.closed_cleanly == clean


class TestRequests:
    """HTTP at an acceptor."""

    @pytest.mark.parametrize(
        ("path", "status", "body"),
        [
            ("/", "200 OK", "wsqueue\n"),
            ("/x", "404 Not Found", "Not found.\n"),
            ("/?x=1", "404 Not Found", "Not found.\n"),
        ],
    )
    def test_pages(self, path: str, status: str, body: str) -> None:
        session = accept()
        assert session.receive_data(f"GET {path} HTTP/1.1\r\nHost: node.example\r\n\r\n".encode()) == []
        *response, end = session.data_to_send()
        assert end == b""
        head, _, sent = b"".join(response).decode().partition("\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status}\r\n")
        assert sent == body
        assert "content-type: text/plain; charset=utf-8" in head.lower()
        assert session.closing
        assert_ended(session, int(status[:3]))
        session.receive_eof()
        assert not session.closing

    @pytest.mark.parametrize(
        ("request_bytes", "status"),
        [
            (f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 426),
            (request_of(PATH).replace(b"Version: 13", b"Version: 12"), 400),
            (request_of(PATH).replace(b"dGhl", b""), 400),
            (request_of(PATH).replace(b"GET", b"POST"), 405),
        ],
    )
    def test_refused_upgrades(self, request_bytes: bytes, status: int) -> None:
        session = accept()
        assert session.receive_data(request_bytes) == []
        *response, end = session.data_to_send()
        assert b"".join(response).startswith(b"HTTP/1.1 %d " % status)
        assert end == b""
        assert session.closing
        assert_ended(session, status)

    def test_no_subprotocol_and_no_compression(self) -> None:
        session = accept()
        offers = "Sec-WebSocket-Protocol: other", "Sec-WebSocket-Extensions: permessage-deflate"
        session.receive_data(request_of(PATH, *offers))
        response = b"".join(session.data_to_send()).lower()
        assert response.startswith(b"http/1.1 101 ")
        assert b"sec-websocket-protocol" not in response
        assert b"sec-websocket-extensions" not in response


class TestResponses:
    """HTTP at an initiator."""

    @pytest.mark.parametrize(
        ("response", "code", "reason"),
        [
            (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", 503, "HTTP Busy"),
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404, "HTTP Not Found"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "HTTP OK"),
            (b"SSH-2.0-OpenSSH_9.6\r\n", CloseCode.ABNORMAL, "not a WebSocket server"),
            (b"\0\xff\n", CloseCode.ABNORMAL, "not a WebSocket server"),
            (b"x" * 10_000, CloseCode.ABNORMAL, "not a WebSocket server"),
            (
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: x\r\n\r\n",
                CloseCode.ABNORMAL,
                "not a WebSocket server",
            ),
        ],
    )
    def test_refusals(self, response: bytes, code: int, reason: str) -> None:
        session = initiate()
        session.data_to_send()
        assert session.receive_data(response) == []
        assert reason in assert_ended(session, code, by_peer=True).reason
        assert (session.closing, session.data_to_send()) == (True, [b""])
        assert session.receive_data(b"HTTP/1.1 101 x\r\n\r\n") == []
        session.receive_eof()
        assert not session.closing
        assert_ended(session, code, by_peer=True)


valid_streams = st.lists(st.tuples(utf8_text, topics), max_size=6)
places = st.lists(st.integers(0, 2000), max_size=12)


@both_roles
@few
@given(messages=valid_streams, places=places)
def test_messages_cut_anywhere_arrive_unmodified(
    role: Role, messages: list[tuple[str, str]], places: list[int]
) -> None:
    sender, receiver = Pair.established().ends(role)
    payloads = [classic.encode(classic.Message(data=data, topic=topic)) for data, topic in messages]
    events = feed(receiver, cut(sender.frame(payloads), places))
    assert by_topic(received(events)) == by_topic(messages)
    forwarded = [one for event in events if isinstance(event, MessagesReceived) for one in event.payloads]
    assert sorted(forwarded) == sorted(payloads)
    assert [classic.decode(payload) for payload in forwarded] == [
        one for event in events if isinstance(event, MessagesReceived) for one in event.messages
    ]
    assert receiver.established


frames = st.tuples(
    st.binary(max_size=130) | st.sampled_from([message("x"), b"{}"]),
    st.sampled_from([final | opcode for opcode in Opcode for final in (0, 0x80)]),
).map(lambda frame: wire.Raw(*frame))


@both_roles
@pytest.mark.parametrize("begin", [RawPeer, RawPeer.opened, RawPeer.established])
@few
@given(chunks=st.lists(st.binary(max_size=20) | frames, max_size=8), places=places)
def test_arbitrary_bytes_never_raise(
    role: Role, begin: Callable[[Role], RawPeer], chunks: list[wire.Chunk], places: list[int]
) -> None:
    peer = begin(role)
    session = peer.session
    session.data_to_send()
    feed(session, cut(b"".join(wire.render(chunks, masked=peer.masked)), places))
    failed = session.closed
    if failed is None:
        session.ping(b"alive")
        session.data_to_send()
        session.receive_eof()
    else:
        session.data_to_send()
        assert not session.established
        assert session.receive_data(peer.text(message("late"))) == []
        assert session.data_to_send() == []
        assert session.closed == failed
        session.receive_eof()
        assert session.closed == failed
    assert not session.established
    assert not session.closing


class TestBatches:
    @pytest.mark.parametrize(
        ("sizes", "most", "expected"),
        [
            ([40], 10, [1]),
            ([10, 10, 10], 30, [3]),
            ([10, 10, 10], 29, [2, 1]),
            ([40, 10, 10, 40, 10], 20, [1, 2, 1, 1]),
        ],
    )
    def test_what_one_read_brought_is_split(self, sizes: list[int], most: int, expected: list[int]) -> None:
        messages = [classic.Message(str(index), "news") for index in range(len(sizes))]
        got = list(MessagesReceived("news", messages, [bytes(size) for size in sizes]).batches(most))
        assert [len(batch) for batch in got] == expected
        assert [data for batch in got for data in batch] == [message.data for message in messages]
