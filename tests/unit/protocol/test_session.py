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
from wsqueue.protocol.framing import PongReceived
from wsqueue.protocol.keys import Order, PreSharedKey, Role
from wsqueue.protocol.session import MAX_HELLO_BYTES, Event, HelloDone, MessagesReceived, Session

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
PROTOCOL_ERROR = 1002

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
    @both_orders
    def test_a_batch(self, role: Role, order: Order) -> None:
        sender, receiver = (pair := Pair.established(order)).ends(role)
        payloads = [message(f"{number}", "news") for number in range(100)]
        events = receiver.receive_data(sender.frame(payloads))
        messages = [classic.Message(data=f"{number}", topic="news") for number in range(100)]
        assert events == [MessagesReceived("news", messages, payloads)]
        assert pair.exchange() == ([], [])
        assert receiver.established

    @both_roles
    def test_an_empty_batch(self, role: Role) -> None:
        sender, _ = Pair.established().ends(role)
        assert sender.frame([]) == b""

    @both_roles
    def test_payloads_come_out_as_they_came(self, role: Role) -> None:
        sender, receiver = Pair.established().ends(role)
        payload = b' { "s":"\\u006eews",\n"d":"\\u00e9", "t":"m" } '
        decoded = classic.Message(data="\N{LATIN SMALL LETTER E WITH ACUTE}", topic="news")
        assert receiver.receive_data(sender.frame([payload])) == [
            MessagesReceived("news", [decoded], [payload])
        ]

    @both_roles
    def test_ping_and_pong(self, role: Role) -> None:
        pair = Pair.established()
        sender, _ = pair.ends(role)
        sender.ping(b"\0" * 8)
        sender.ping()
        events = pair.exchange()[0 if role is Role.ACCEPTOR else 1]
        assert events == [PongReceived(b"\0" * 8), PongReceived(b"")]

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
    def test_close_has_a_reason_by_itself(self, role: Role) -> None:
        pair = Pair.established()
        closer, other = pair.ends(role)
        closer.close(CloseCode.GOING_AWAY)
        pair.exchange()
        assert assert_ended(other, CloseCode.GOING_AWAY, by_peer=True).reason == "going away"

    @both_roles
    def test_closing_twice_keeps_the_first_reason(self, role: Role) -> None:
        pair = Pair.established()
        closer, other = pair.ends(role)
        closer.close(CloseCode.GOING_AWAY)
        closer.close(CloseCode.NORMAL)
        closer.fail(CloseCode.HELLO_TIMEOUT)
        pair.exchange()
        assert_ended(closer, CloseCode.GOING_AWAY)
        assert_ended(other, CloseCode.GOING_AWAY, by_peer=True)

    def test_both_close_at_once(self) -> None:
        pair = Pair.established()
        pair.acceptor.close(CloseCode.GOING_AWAY)
        pair.initiator.close(CloseCode.NORMAL)
        pair.exchange()
        assert_ended(pair.acceptor, CloseCode.GOING_AWAY)
        assert_ended(pair.initiator, CloseCode.NORMAL)
        assert pair.acceptor.closed_cleanly
        assert pair.initiator.closed_cleanly

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
    def test_nothing_is_sent_after_the_close_frame(self, role: Role) -> None:
        pair = Pair.established()
        closer, other = pair.ends(role)
        closer.close(CloseCode.NORMAL)
        closer.data_to_send()
        closer.ping(b"late")
        closer.close(CloseCode.NORMAL)
        assert closer.data_to_send() == []
        assert other.closed is None

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
    def test_when_established(self, role: Role) -> None:
        session = Pair.established().ends(role)[0]
        session.receive_eof()
        assert not session.established
        assert not session.closed_cleanly
        assert session.closed is not None
        assert session.closed.code == CloseCode.ABNORMAL
        assert session.closed.by_peer

    @both_roles
    def test_during_the_hello(self, role: Role) -> None:
        peer = RawPeer.opened(role)
        peer.session.receive_eof()
        assert not peer.session.established
        assert not peer.session.closed_cleanly
        assert peer.session.closed is not None

    @both_roles
    def test_during_the_upgrade(self, role: Role) -> None:
        session = accept() if role is Role.ACCEPTOR else initiate()
        session.data_to_send()
        session.receive_eof()
        assert session.closed is not None
        assert not session.established
        assert not session.closing
        assert session.data_to_send() == [b""]

    @both_roles
    def test_twice(self, role: Role) -> None:
        session = Pair.established().ends(role)[0]
        session.receive_eof()
        session.receive_eof()
        assert not session.established

    @both_roles
    def test_failing_afterwards_says_why(self, role: Role) -> None:
        session = initiate() if role is Role.INITIATOR else accept()
        session.fail(CloseCode.HELLO_TIMEOUT)
        session.receive_eof()
        assert_ended(session, CloseCode.HELLO_TIMEOUT)


class TestHello:
    """Packets of a peer before both ends have proved themselves."""

    @both_roles
    def test_each_end_sends_its_challenge_at_once(self, role: Role) -> None:
        peer = RawPeer.opened(role)
        assert 1 <= peer.challenged_with <= 2**31 - 2
        assert not peer.session.established

    @both_orders
    @pytest.mark.parametrize("challenge_first", [True, False])
    def test_an_acceptor_answers_who_has_answered(self, order: Order, challenge_first: bool) -> None:
        peer = RawPeer.opened(Role.ACCEPTOR)
        if challenge_first:
            assert peer.challenge(99) == []
            assert peer.answers == []
            assert peer.answer(order=order) == [HelloDone()]
        else:
            assert peer.answer(order=order) == []
            assert peer.answers == []
            assert peer.challenge(99) == [HelloDone()]
        assert peer.answers == [answer_of(99, order=order)]

    @both_orders
    def test_an_initiator_answers_before_it_is_answered(self, order: Order) -> None:
        peer = RawPeer.opened(Role.INITIATOR, initiate(order=order))
        assert peer.challenge(99) == []
        assert peer.answers == [answer_of(99, order=order)]
        assert not peer.session.established
        assert peer.answer() == [HelloDone()]

    @both_roles
    def test_the_hello_and_messages_in_one_read(self, role: Role) -> None:
        peer = RawPeer.opened(role)
        answer = json.dumps({"t": "h", "a": answer_of(peer.challenged_with)}).encode()
        events = peer.send(b'{"t":"h","o":1}', answer, message("one"), message("two"))
        assert events[0] == HelloDone()
        assert received(events) == [("one", "news"), ("two", "news")]

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
    def test_refused_before_the_hello(self, role: Role, packet: bytes, code: CloseCode) -> None:
        peer = RawPeer.opened(role)
        assert peer.send(packet, message("late")) == []
        assert_ended(peer.session, code)
        assert peer.close_received is not None
        assert peer.close_received.code == code

    @both_roles
    def test_data_between_challenge_and_answer(self, role: Role) -> None:
        peer = RawPeer.opened(role)
        peer.challenge(1)
        assert peer.send(message("early")) == []
        assert_ended(peer.session, CloseCode.EARLY_DATA)

    @both_roles
    @pytest.mark.parametrize(
        ("packet", "code"),
        [
            (b'{"t":"h","o":2}', CloseCode.SECOND_CHALLENGE),
            (b'{"t":"h","a":"any"}', CloseCode.SECOND_ANSWER),
        ],
    )
    def test_a_second_hello(self, role: Role, packet: bytes, code: CloseCode) -> None:
        peer = RawPeer.established(role)
        assert peer.send(packet) == []
        assert_ended(peer.session, code)

    @both_roles
    def test_our_own_challenge(self, role: Role) -> None:
        peer = RawPeer.opened(role)
        peer.challenge(peer.challenged_with)
        assert_ended(peer.session, CloseCode.REFLECTED_CHALLENGE)
        assert peer.answers == []

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
        peer.answer("another key")
        assert_ended(peer.session, CloseCode.WRONG_ANSWER)
        assert peer.answers == []

    @both_roles
    @pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
    def test_what_a_peer_may_send_before_it_has_proved_itself_is_bounded(
        self, role: Role, opcode: Opcode
    ) -> None:
        peer = RawPeer.opened(role)
        flood = peer.frame(opcode, b"x" * 100) * 500
        assert len(flood) < MAX_HELLO_BYTES
        peer.send_bytes(flood)
        assert peer.session.closed is None
        peer.send_bytes(flood)
        assert_ended(peer.session, CloseCode.EARLY_DATA)

    @both_roles
    def test_the_bound_ends_with_the_hello(self, role: Role) -> None:
        peer = RawPeer.opened(role)
        answer = json.dumps({"t": "h", "a": answer_of(peer.challenged_with)}).encode()
        flood = [message("x" * 1000)] * 100
        assert len(received(peer.send(b'{"t":"h","o":1}', answer, *flood))) == 100
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
    @pytest.mark.parametrize("topic", ["x" * MAX_TOPIC_BYTES, "ñ" * (MAX_TOPIC_BYTES // 2), "日" * 10 + "xx"])
    def test_the_longest_topic(self, role: Role, topic: str) -> None:
        assert len(topic.encode()) == MAX_TOPIC_BYTES
        peer = RawPeer.established(role)
        assert received(peer.send(message("x", topic))) == [("x", topic)]

    @both_roles
    @pytest.mark.parametrize(
        ("payload", "code"),
        [
            (b'{"t":"s","s":"news"}', CloseCode.UNEXPECTED_PACKET),
            (b'{"t":"u","s":"news"}', CloseCode.UNEXPECTED_PACKET),
            (b'{"t":"x"}', CloseCode.INVALID_PACKET),
            (b"", CloseCode.INVALID_PACKET),
            (b"[" * 4000, CloseCode.INVALID_PACKET),
            (b"\xff", CloseCode.INVALID_TEXT),
            (b'{"t":"m","d":"\xed\xa0\x80","s":""}', CloseCode.INVALID_TEXT),
            (b"\xc3", CloseCode.INVALID_TEXT),
            (b"x" * (MAX_MESSAGE_BYTES + 1), TOO_BIG),
        ],
    )
    def test_messages_before_a_bad_one_are_delivered_and_those_after_it_are_not(
        self, role: Role, payload: bytes, code: int
    ) -> None:
        peer = RawPeer.established(role)
        events = peer.send(message("one"), message("two"), payload, message("late"))
        assert received(events) == [("one", "news"), ("two", "news")]
        closed = assert_ended(peer.session, code)
        assert closed.reason
        assert peer.close_received is not None
        assert peer.close_received.code == code
        assert peer.session.receive_data(peer.text(message("later"))) == []
        assert not peer.session.closed_cleanly

    @both_roles
    @pytest.mark.parametrize("fin", [True, False])
    def test_a_binary_message(self, role: Role, fin: bool) -> None:
        peer = RawPeer.established(role)
        binary = peer.frame(Opcode.BINARY, message("binary"), fin=fin)
        events = peer.send_bytes(peer.text(message("one")) + binary + peer.text(message("late")))
        assert received(events) == [("one", "news")]
        # The library looks at the whole read first, and a text inside a binary message is its to refuse.
        assert peer.session.closed is not None
        assert peer.session.closed.code in (CloseCode.UNSUPPORTED_DATA, PROTOCOL_ERROR)

    @both_roles
    def test_binary_messages_are_named(self, role: Role) -> None:
        peer = RawPeer.established(role)
        peer.send_bytes(peer.frame(Opcode.BINARY, b""))
        closed = assert_ended(peer.session, CloseCode.UNSUPPORTED_DATA)
        assert closed.reason == "packets are text messages, not binary"

    @both_roles
    @pytest.mark.parametrize(
        ("opcode", "payload", "code"),
        [
            (Opcode.BINARY, b"x", CloseCode.UNSUPPORTED_DATA),
            (Opcode.TEXT, b"\xff", CloseCode.INVALID_TEXT),
            (Opcode.TEXT, b"{}", CloseCode.INVALID_PACKET),
        ],
    )
    def test_a_bad_message_when_the_peer_closes_in_the_same_read(
        self, role: Role, opcode: Opcode, payload: bytes, code: CloseCode
    ) -> None:
        peer = RawPeer.established(role)
        bad, late = peer.frame(opcode, payload), peer.text(message("late"))
        events = peer.send_bytes(peer.text(message("one")) + bad + late + peer.close_frame())
        assert received(events) == [("one", "news")]
        assert_ended(peer.session, code)

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
    def test_fragments_of_invalid_utf8(self, role: Role) -> None:
        peer = RawPeer.established(role)
        peer.send_bytes(peer.frame(Opcode.TEXT, b"\xc3", fin=False) + peer.frame(Opcode.CONT, b"\x28"))
        assert_ended(peer.session, CloseCode.INVALID_TEXT)

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

    @both_roles
    def test_the_peer_closes_without_a_code(self, role: Role) -> None:
        peer = RawPeer.established(role)
        peer.send_bytes(peer.frame(Opcode.CLOSE, b""))
        assert_ended(peer.session, 1005, by_peer=True)

    def test_an_acceptor_ends_the_stream_after_the_close_handshake(self) -> None:
        peer = RawPeer.established(Role.ACCEPTOR)
        peer.send_bytes(peer.close_frame())
        assert peer.ended


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

    def test_a_client_hears_the_status(self) -> None:
        pair = Pair(initiator=initiate(path="/nowhere"))
        assert pair.exchange() == ([], [])
        closed = assert_ended(pair.initiator, 404, by_peer=True)
        assert closed.reason == "HTTP Not Found"
        assert_ended(pair.acceptor, 404)

    @pytest.mark.parametrize(
        ("request_bytes", "status"),
        [
            (f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 426),
            (request_of(PATH).replace(b"Version: 13", b"Version: 12"), 400),
            (request_of(PATH).replace(b"dGhl", b""), 400),
            (request_of(PATH).replace(b"GET", b"POST"), 405),
            (request_of("/" + "x" * 9000), 414),
            (b"GET /" + b"x" * 9000, 414),
            (request_of(PATH, "X: " + "x" * 9000), 431),
            (request_of(PATH, *["X: x"] * 200), 431),
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

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\n",
            b"\n",
            b"\r\n",
            b"GET / HTTP/1.1\n\n",
            b"GET /\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ],
    )
    def test_what_is_not_a_request(self, request_bytes: bytes) -> None:
        session = accept()
        assert session.receive_data(request_bytes) == []
        assert session.data_to_send()[-1] == b""
        assert session.closing
        assert "not a WebSocket request" in assert_ended(session, 400).reason

    @pytest.mark.parametrize(
        "rejected",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET /x HTTP/1.1\r\n\r\n",
            b"GET " + PATH.encode() + b" HTTP/1.1\r\n\r\n",
            b"x\r\n",
        ],
    )
    def test_what_follows_a_rejected_request_is_ignored(self, rejected: bytes) -> None:
        session, peer = accept(), RawPeer(Role.ACCEPTOR)
        following = peer.data_to_send() + peer.text(message("late")) + b"\0\xff\r\n\r\n" * 10
        assert session.receive_data(rejected + following) == []
        closed, written = session.closed, session.data_to_send()
        assert closed is not None
        assert b"".join(written).count(b"HTTP/1.1") <= 1
        assert session.receive_data(following) == []
        assert session.data_to_send() == []
        assert session.closed == closed

    @pytest.mark.parametrize("bytewise", [True, False])
    def test_the_request_and_frames_in_one_read(self, bytewise: bool) -> None:
        peer = RawPeer(Role.ACCEPTOR)
        data = peer.data_to_send() + peer.text(b'{"t":"h","o":5}') + peer.frame(Opcode.PING, b"now")
        assert feed(peer.session, [bytes([byte]) for byte in data] if bytewise else [data]) == []
        peer.exchange()
        assert peer.pongs == [b"now"]
        assert peer.answer() == [HelloDone()]
        assert peer.answers == [answer_of(5)]

    def test_a_line_feed_in_the_first_frame_is_no_line_of_the_request(self) -> None:
        peer = RawPeer(Role.ACCEPTOR)
        frames = peer.text(b'\n{"t":"h",\n"o":5}\n') + peer.frame(Opcode.PING, b"\n\r\n\r\n")
        assert peer.session.receive_data(peer.data_to_send() + frames) == []
        peer.exchange()
        assert peer.pongs == [b"\n\r\n\r\n"]
        assert peer.session.closed is None

    def test_no_subprotocol_and_no_compression(self) -> None:
        session = accept()
        offers = "Sec-WebSocket-Protocol: other", "Sec-WebSocket-Extensions: permessage-deflate"
        session.receive_data(request_of(PATH, *offers))
        response = b"".join(session.data_to_send()).lower()
        assert response.startswith(b"http/1.1 101 ")
        assert b"sec-websocket-protocol" not in response
        assert b"sec-websocket-extensions" not in response

    def test_the_path_is_given_as_it_came(self) -> None:
        paths: list[str] = []
        session = accept(answer_request=paths.append)
        session.receive_data(request_of("/subscribe/%2Fa%20b?c=d"))
        assert paths == ["/subscribe/%2Fa%20b?c=d"]


class TestResponses:
    """HTTP at an initiator."""

    def test_the_request(self) -> None:
        request = b"".join(initiate(path="/subscribe/%E6%97%A5").data_to_send()).decode()
        assert request.startswith("GET /subscribe/%E6%97%A5 HTTP/1.1\r\n")
        assert "\r\nHost: node.example:10001\r\n" in request
        assert "sec-websocket-protocol" not in request.lower()
        assert "sec-websocket-extensions" not in request.lower()

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

    @pytest.mark.parametrize("bytewise", [True, False])
    def test_the_response_and_frames_in_one_read(self, bytewise: bool) -> None:
        peer = RawPeer(Role.INITIATOR)
        for request in peer.session.data_to_send():
            peer.take(request)
        data = peer.data_to_send() + peer.text(b'{"t":"h","o":5}') + peer.frame(Opcode.PING, b"now")
        assert feed(peer.session, [bytes([byte]) for byte in data] if bytewise else [data]) == []
        peer.exchange()
        assert peer.answers == [answer_of(5)]
        assert peer.pongs == [b"now"]


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
    st.sampled_from(list(Opcode)),
    st.binary(max_size=130) | st.sampled_from([message("x"), b"{}"]),
    st.booleans(),
)


def arbitrary_stream(peer: RawPeer, chunks: list[bytes | tuple[Opcode, bytes, bool]]) -> bytes:
    """Return garbage in which there are frames, some of them good."""
    stream = b""
    for chunk in chunks:
        if isinstance(chunk, bytes):
            stream += chunk
        else:
            opcode, payload, fin = chunk
            control = opcode >= Opcode.CLOSE
            stream += peer.frame(opcode, payload[:125] if control else payload, fin=fin or control)
    return stream


@both_roles
@pytest.mark.parametrize("begin", [RawPeer, RawPeer.opened, RawPeer.established])
@few
@given(chunks=st.lists(st.binary(max_size=20) | frames, max_size=8), places=places)
def test_arbitrary_bytes_never_raise(
    role: Role,
    begin: Callable[[Role], RawPeer],
    chunks: list[bytes | tuple[Opcode, bytes, bool]],
    places: list[int],
) -> None:
    peer = begin(role)
    session = peer.session
    session.data_to_send()
    feed(session, cut(arbitrary_stream(peer, chunks), places))
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
