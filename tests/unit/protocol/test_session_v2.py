"""Sessions of v2, and of any mix of v2 and classic: joined in memory."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode
from websockets.typing import Subprotocol

from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.framing import PongReceived
from wsqueue.protocol.keys import Role
from wsqueue.protocol.packed import NOTHING, pack, pack_texts
from wsqueue.protocol.session import MAX_HELLO_BURDEN, Event, HelloDone, Session
from wsqueue.protocol.v2 import OVERHEAD_BYTES, SUBPROTOCOL, Packet

from ...support.messages import deliver_one, forward_one
from ...support.oracle import parse_frames
from ...support.raw_peer import offer_of, request_of
from ...support.raw_v2_peer import deliver_of, encoded, forward_of, publish_of
from ...support.session_pair import (
    MAX_MESSAGE_BYTES,
    PATH,
    Pair,
    RawPeer,
    accept,
    answer_of,
    few,
    initiate,
    message,
    received,
)
from ...support.strategies import V2_PACKETS, cut
from .test_hello_v2 import proof_of
from .test_session import TOO_BIG, assert_ended, feed

both_roles = pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)

NONCE = b"n" * 32
UPGRADE_REQUIRED = 426


def packet(tag: str, **fields: Any) -> bytes:
    """Return a packet, made without our encoder."""
    return encoded({"t": tag} | fields)


class V2Peer(RawPeer):
    """Stand opposite a session of v2, and play the hello as the protocol's description has it."""

    opcode = Opcode.BINARY

    def __init__(self, role: Role, session: Session | None = None) -> None:
        session = session or (initiate(offer_v2=True) if role is Role.INITIATOR else accept())
        super().__init__(role, session, [Subprotocol(SUBPROTOCOL)])
        self.exchange()

    @classmethod
    def established(cls, role: Role, session: Session | None = None) -> V2Peer:
        peer = cls(role, session)
        assert [event for payload in peer.hello() for event in peer.send(payload)] == [HelloDone()]
        assert peer.session.v2
        return peer

    @property
    def nonce(self) -> bytes:
        """Return the nonce that the session has sent."""
        nonce = msgspec.msgpack.decode(self.messages[0])["nonce"]
        assert isinstance(nonce, bytes)
        return nonce

    def hello(self) -> list[bytes]:
        """Return the packets that a peer with the key sends; an initiator gets its challenge at once."""
        if self.role is Role.ACCEPTOR:
            proof = proof_of(Role.INITIATOR, self.nonce, NONCE)
            return [packet("proof", proof=proof, nonce=NONCE, path=PATH)]
        assert self.send(packet("challenge", nonce=NONCE)) == []
        return [packet("proof", proof=proof_of(Role.ACCEPTOR, NONCE, self.nonce))]


class EchoingNode:
    """A classic node whose library selects the first subprotocol that is offered, as the original ones do."""

    def __init__(self, initiator: Session) -> None:
        self.session = accept(allow_classic=True)
        self.initiator = initiator
        request = b"".join(initiator.data_to_send())
        line = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n".encode()
        assert line in request
        self.session.receive_data(request.replace(line, b""))
        head, _, frames = b"".join(self.session.data_to_send()).partition(b"\r\n\r\n")
        self.answer = head + b"\r\n" + line + b"\r\n" + frames

    def exchange(self) -> tuple[list[Event], list[Event]]:
        at_initiator = self.initiator.receive_data(self.answer)
        ours, theirs = Pair(self.session, self.initiator).exchange()
        return ours, at_initiator + theirs


ALLOWED = (True, False, None)
MIXES = [
    # v2 offered; acceptor allows classic; initiator allows classic; TLS; protocol, or the end that refuses
    *[(True, *allowed, "v2") for allowed in itertools.product(ALLOWED, ALLOWED, (True, False))],
    (False, True, True, False, "classic"),
    (False, None, True, False, "classic"),
    (False, True, None, False, "classic"),
    (False, None, None, False, "classic"),
    (False, True, True, True, "classic"),
    (False, False, True, False, "the acceptor refuses"),
    (False, None, True, True, "the acceptor refuses"),
    (False, True, False, False, "the initiator refuses"),
    (False, True, None, True, "the initiator refuses"),
]


class TestMixes:
    """Two ends find a protocol that both speak."""

    @pytest.mark.parametrize(("offered", "acceptors", "initiators", "tls", "outcome"), MIXES)
    def test_any_mix(
        self, offered: bool, acceptors: bool | None, initiators: bool | None, tls: bool, outcome: str
    ) -> None:
        pair = Pair(accept(allow_classic=acceptors), initiate(offer_v2=offered, allow_classic=initiators))
        pair.acceptor.channel_binding = pair.initiator.channel_binding = b"c" * 32 if tls else b""
        events = pair.exchange()
        if outcome in ("v2", "classic"):
            assert events == ([HelloDone()], [HelloDone()])
            for session in (pair.acceptor, pair.initiator):
                assert session.established
                assert session.v2 is (outcome == "v2")
            assert_that_they_understand_each_other(pair)
        else:
            assert events == ([], [])
            assert not pair.acceptor.established
            assert not pair.initiator.established
            if outcome == "the acceptor refuses":
                assert_ended(pair.acceptor, UPGRADE_REQUIRED)
                assert_ended(pair.initiator, UPGRADE_REQUIRED, by_peer=True)
            else:
                assert_ended(pair.initiator, CloseCode.CLASSIC_REFUSED)
                assert_ended(pair.acceptor, CloseCode.CLASSIC_REFUSED, by_peer=True)

    @pytest.mark.parametrize("selects", [True, False])
    @pytest.mark.parametrize("allowed", [True, None])
    def test_an_initiator_falls_back_to_classic(self, selects: bool, allowed: bool | None) -> None:
        node = EchoingNode(initiate(offer_v2=True, allow_classic=allowed))
        if not selects:
            node.answer = node.answer.replace(f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n".encode(), b"")
        assert node.exchange() == ([HelloDone()], [HelloDone()])
        assert not node.initiator.v2
        assert_that_they_understand_each_other(Pair(node.session, node.initiator))

    @pytest.mark.parametrize("selects", [True, False])
    @pytest.mark.parametrize("tls", [True, False])
    def test_an_initiator_does_not_fall_back_where_classic_is_not_allowed(
        self, selects: bool, tls: bool
    ) -> None:
        node = EchoingNode(initiate(offer_v2=True, allow_classic=None if tls else False))
        node.initiator.channel_binding = b"c" * 32 if tls else b""
        if not selects:
            node.answer = node.answer.replace(f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n".encode(), b"")
        assert node.exchange() == ([], [])
        closed = assert_ended(node.initiator, CloseCode.CLASSIC_REFUSED)
        assert not closed.reconnect

    def test_after_falling_back_a_message_is_no_longer_than_a_classic_one(self) -> None:
        node = EchoingNode(initiate(offer_v2=True))
        node.exchange()
        payload = message("x" * (MAX_MESSAGE_BYTES - len(message(""))))
        assert received(node.initiator.receive_data(node.session.frame([payload])))
        node.initiator.receive_data(node.session.frame([payload + b" "]))
        assert_ended(node.initiator, TOO_BIG)

    @both_roles
    @pytest.mark.parametrize(
        ("opcode", "code"),
        [(Opcode.TEXT, CloseCode.UNSUPPORTED_DATA), (Opcode.BINARY, CloseCode.INVALID_PACKET)],
        ids=["text", "binary"],
    )
    def test_a_classic_hello_is_no_way_back_from_v2(
        self, role: Role, opcode: Opcode, code: CloseCode
    ) -> None:
        """Only the first packet of an acceptor decides."""
        peer = V2Peer(role)
        if role is Role.INITIATOR:
            peer.send(packet("challenge", nonce=NONCE))
        assert peer.send_bytes(peer.frame(opcode, b'{"t":"h","o":1}')) == []
        assert_ended(peer.session, code)

    def test_a_classic_hello_in_a_binary_message_is_no_way_into_classic(self) -> None:
        peer = V2Peer(Role.INITIATOR)
        assert peer.send(b'{"t":"h","o":1}') == []
        assert_ended(peer.session, CloseCode.INVALID_PACKET)

    @pytest.mark.parametrize(
        ("payload", "code"),
        [
            *(
                (payload, CloseCode.INVALID_PACKET)
                for payload in (b"", b"{}", b"alive", b'{"t":"challenge"}')
            ),
            *((payload, CloseCode.INVALID_TEXT) for payload in (packet("challenge", nonce=NONCE), b"\xff")),
        ],
    )
    def test_a_first_text_is_never_of_v2(self, payload: bytes, code: CloseCode) -> None:
        node = EchoingNode(initiate(offer_v2=True))
        head = node.answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert node.initiator.receive_data(head + RawPeer(Role.INITIATOR).text(payload)) == []
        assert_ended(node.initiator, code)

    @pytest.mark.parametrize("in_fragments", [False, True])
    @pytest.mark.parametrize("pings", [0, 2])
    def test_a_first_text_is_known_by_its_beginning(self, in_fragments: bool, pings: int) -> None:
        node = EchoingNode(initiate(offer_v2=True))
        initiator = node.initiator
        raw = RawPeer(Role.INITIATOR, initiator)
        head, _, challenge = node.answer.partition(b"\r\n\r\n")
        ((_, _, payload),) = parse_frames(challenge, masked=False)
        frames = [raw.frame(Opcode.PING, b"early")] * pings
        if in_fragments:
            frames += [raw.frame(Opcode.TEXT, payload[:1], fin=False), raw.frame(Opcode.PING, b"between")]
            frames += [raw.frame(Opcode.CONT, payload[1:])]
        else:
            frames.append(challenge)
        node.answer = head + b"\r\n\r\n" + b"".join(frames)
        at_node, at_initiator = node.exchange()
        assert (at_node[-1], at_initiator) == (HelloDone(), [HelloDone()])
        assert at_node[:-1] == [PongReceived(b"early")] * pings + [PongReceived(b"between")] * in_fragments
        assert not initiator.v2
        assert_that_they_understand_each_other(Pair(node.session, initiator))
        assert initiator.receive_data(raw.frame(Opcode.BINARY, message("late"))) == []
        assert_ended(initiator, CloseCode.UNSUPPORTED_DATA)

    @pytest.mark.parametrize("pings", [0, 2])
    def test_a_first_challenge_of_v2_may_come_in_fragments(self, pings: int) -> None:
        peer = V2Peer(Role.INITIATOR)
        payload = packet("challenge", nonce=NONCE)
        data = peer.frame(Opcode.PING, b"early") * pings + peer.frame(Opcode.BINARY, payload[:5], fin=False)
        assert peer.send_bytes(data + peer.frame(Opcode.PING, b"between")) == []
        assert peer.send_bytes(peer.frame(Opcode.CONT, payload[5:])) == []
        assert peer.pongs == [b"early"] * pings + [b"between"]
        assert peer.send(packet("proof", proof=proof_of(Role.ACCEPTOR, NONCE, peer.nonce))) == [HelloDone()]
        assert peer.session.v2

    def test_a_classic_peer_that_answers_before_it_challenges(self) -> None:
        """An initiator must take that from an acceptor that has selected v2 without knowing it."""
        node = EchoingNode(initiate(offer_v2=True))
        initiator = node.initiator
        head = node.answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        raw = RawPeer(Role.INITIATOR, initiator)
        assert initiator.receive_data(head) == []
        assert initiator.receive_data(raw.text(b'{"t":"h","o":5}')) == []
        frames = parse_frames(b"".join(initiator.data_to_send()), masked=True)
        assert [frame[0] for frame in frames] == [Opcode.TEXT] * 2
        challenge, answer = (json.loads(frame[2]) for frame in frames)
        assert answer == {"t": "h", "a": answer_of(5)}
        payload = json.dumps({"t": "h", "a": answer_of(challenge["o"])}).encode()
        assert initiator.receive_data(raw.text(payload)) == [HelloDone()]
        assert not initiator.v2


def assert_that_they_understand_each_other(pair: Pair) -> None:
    for role in Role:
        sender, receiver = pair.ends(role)
        if sender.v2:
            sent = v2.Unsubscribe("news")
            assert receiver.receive_data(sender.frame([v2.encode(sent)])) == [sent]
        else:
            assert received(receiver.receive_data(sender.frame([message("hi")]))) == [("hi", "news")]
        sender.ping(b"12345678")
    assert pair.exchange() == ([PongReceived(b"12345678")], [PongReceived(b"12345678")])


def test_an_acceptor_says_that_it_is_there() -> None:
    """A script in a browser cannot ping; the answer needs nothing of who takes the packets."""
    pair = Pair(initiator=initiate(offer_v2=True))
    pair.exchange()
    initiator, acceptor = pair.ends(Role.INITIATOR)
    before = acceptor.asked_alive
    asked = initiator.frame([v2.encode(v2.AskAlive()), v2.encode(v2.Unsubscribe("news"))])
    assert acceptor.receive_data(asked) == [v2.Unsubscribe("news")]
    assert (before, acceptor.asked_alive) == (False, True)
    assert pair.exchange() == ([], [v2.Alive()])
    # It says so to nobody who could have pinged.
    assert initiator.receive_data(acceptor.frame([v2.encode(v2.AskAlive())])) == [v2.AskAlive()]
    assert pair.exchange() == ([], [])


class TestHello:
    """Packets of a peer before both ends have proved themselves."""

    @both_roles
    def test_the_last_packet_of_the_hello_and_others_in_one_read(self, role: Role) -> None:
        peer = V2Peer(role)
        events = peer.send(
            *peer.hello(), packet("unsubscribe", topic="a"), packet("draining", retry_seconds=1)
        )
        assert events == [HelloDone(), v2.Unsubscribe("a"), v2.Draining(1)]

    def test_the_whole_hello_of_an_initiator_may_come_with_its_request(self) -> None:
        session = accept()
        raw = RawPeer(Role.ACCEPTOR, session)
        raw.data_to_send()
        request = request_of(PATH, offer_of(SUBPROTOCOL))
        # It cannot know the nonce, so it is wrong, but for the right reason.
        events = session.receive_data(
            request + raw.frame(Opcode.BINARY, packet("proof", proof=NONCE, nonce=NONCE, path=PATH))
        )
        assert events == []
        assert_ended(session, CloseCode.WRONG_ANSWER)

    @both_roles
    @pytest.mark.parametrize(
        "early",
        [
            packet("publisher", secret=NONCE),
            encoded(publish_of(1, "x", "x")),
            encoded(forward_of(1, "x", "x")),
            encoded(publish_of(1, "x", messages=None)),
            encoded(forward_of(1, "x", messages=None)),
            packet("subscribe", topic="x"),
            packet("ack", numbers=[[1, 1]]),
            packet("draining", retry_seconds=0),
        ],
        ids=range(8),
    )
    @pytest.mark.parametrize("with_hello", [True, False])
    def test_early_data(self, role: Role, early: bytes, with_hello: bool) -> None:
        peer = V2Peer(role)
        hello = peer.hello() if with_hello else []
        assert peer.send(early, *hello, early) == []
        assert_ended(peer.session, CloseCode.EARLY_DATA)
        assert not peer.session.v2

    @both_roles
    @pytest.mark.parametrize(
        "payload",
        [
            *(b"", b"\x80", b"\xff", b"{}", b"\xc1", message("early"), packet("proof", proof=b"x")),
            *(
                packet("proof", proof="A" * 43 + "="),
                packet("challenge", nonce=NONCE)[:-1],
                encoded(["proof"]),
            ),
        ],
        ids=repr,
    )
    def test_what_is_no_packet(self, role: Role, payload: bytes) -> None:
        peer = V2Peer(role)
        hello = peer.hello()
        assert peer.send(payload, *hello) == []
        assert_ended(peer.session, CloseCode.INVALID_PACKET)

    @both_roles
    @pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
    def test_a_peer_may_send_few_control_frames_before_its_first_packet(
        self, role: Role, opcode: Opcode
    ) -> None:
        for more in (0, 1):
            peer = V2Peer(role)
            peer.send_bytes(peer.frame(opcode, b"x" * 100) * (MAX_HELLO_BURDEN + more))
            if more:
                assert_ended(peer.session, CloseCode.EARLY_DATA)
            else:
                assert [event for payload in peer.hello() for event in peer.send(payload)] == [HelloDone()]

    @both_roles
    def test_a_text_instead_of_the_last_packet(self, role: Role) -> None:
        peer = V2Peer(role)
        hello = peer.hello()
        assert peer.send_bytes(b"".join(map(peer.text, hello))) == []
        assert_ended(peer.session, CloseCode.UNSUPPORTED_DATA)

    @both_roles
    @pytest.mark.parametrize("tag", ["challenge", "proof"])
    @pytest.mark.parametrize("at_once", [True, False])
    def test_a_packet_of_the_hello_after_it(self, role: Role, tag: str, at_once: bool) -> None:
        peer = V2Peer(role)
        hello = peer.hello()
        late = packet(tag, **{"nonce" if tag == "challenge" else "proof": NONCE})
        good, bad = packet("unsubscribe", topic="a"), packet("unsubscribe", topic="b")
        if at_once:
            events = peer.send(*hello, good, late, bad)
        else:
            events = peer.send(*hello) + peer.send(good, late, bad)
        assert events == [HelloDone(), v2.Unsubscribe("a")]
        code = CloseCode.SECOND_CHALLENGE if tag == "challenge" else CloseCode.SECOND_ANSWER
        assert_ended(peer.session, code)


class TestPackets:
    """Packets of an established peer."""

    @both_roles
    @few
    @given(packets=st.lists(V2_PACKETS, max_size=5), places=st.lists(st.integers(0), max_size=4))
    def test_any_packets_cut_anywhere(self, role: Role, packets: list[Packet], places: list[int]) -> None:
        sent = [one for one in packets if not isinstance(one, v2.Challenge | v2.Proof | v2.AskAlive)]
        pair = Pair(initiator=initiate(offer_v2=True))
        pair.exchange()
        sender, receiver = pair.ends(role)
        frames = sender.frame([v2.encode(one) for one in sent])
        events = feed(receiver, cut(frames, places))
        assert len(events) == len(sent)
        for event, one in zip(events, sent, strict=True):
            assert event == one
        assert receiver.established

    @few
    @given(places=st.lists(st.integers(0), max_size=5), classic=st.booleans(), offered=st.booleans())
    def test_a_hello_cut_anywhere(self, places: list[int], classic: bool, offered: bool) -> None:
        pair = Pair(accept(allow_classic=classic), initiate(offer_v2=offered, allow_classic=classic))
        events: list[Event] = []
        for _ in range(6):
            for sender, receiver in (pair.ends(Role.INITIATOR), pair.ends(Role.ACCEPTOR)):
                data = b"".join(sender.data_to_send())
                events += feed(receiver, cut(data, places))
        together = offered or classic
        assert events == [HelloDone()] * (2 if together else 0)
        for session in (pair.acceptor, pair.initiator):
            assert session.established is together
            assert session.v2 is offered

    @both_roles
    def test_packets_before_a_bad_one_are_delivered_and_those_after_it_are_not(self, role: Role) -> None:
        for bad in (b"\x80", b"\xff", b"", b"{}", packet("deliver", topic="x"), packet("alive") + b"\xc0"):
            peer = V2Peer.established(role)
            one, two = packet("unsubscribe", topic="1"), packet("unsubscribe", topic="2")
            assert peer.send(one, bad, two) == [v2.Unsubscribe("1")]
            assert_ended(peer.session, CloseCode.INVALID_PACKET)
            assert peer.send(two) == []

    @both_roles
    @pytest.mark.parametrize("in_fragments", [False, True])
    def test_a_text_is_refused_where_it_comes(self, role: Role, in_fragments: bool) -> None:
        peer = V2Peer.established(role)
        one, two = (peer.frame(Opcode.BINARY, packet("unsubscribe", topic=topic)) for topic in "12")
        bad = peer.frame(Opcode.TEXT, packet("unsubscribe", topic="x"), fin=not in_fragments)
        assert peer.send_bytes(one + bad + two) == [v2.Unsubscribe("1")]
        assert_ended(peer.session, CloseCode.UNSUPPORTED_DATA)
        assert peer.close_received is not None
        assert peer.close_received.code == CloseCode.UNSUPPORTED_DATA

    @both_roles
    def test_a_batch_with_broken_messages_does_not_end_the_connection(self, role: Role) -> None:
        peer = V2Peer.established(role)
        bad = [encoded(batch(7, "x", messages={"sizes": [1]})) for batch in (forward_of, publish_of)]
        expected = [forward_one("p", 7, 0, "x", NOTHING), v2.Publish(7, 0, "x", NOTHING)]
        assert peer.send(*bad, *bad) == expected * 2
        assert peer.session.established

    @both_roles
    def test_what_is_delivered_must_be_whole(self, role: Role) -> None:
        peer = V2Peer.established(role)
        good, bad = (
            encoded(deliver_of(0, "x", messages={"sizes": [1], "data": data})) for data in (b"a", b"")
        )
        assert peer.send(good, bad, good) == [deliver_one("x", 0, "", 0, pack_texts(["a"]))]
        assert_ended(peer.session, CloseCode.INVALID_PACKET)

    @both_roles
    def test_messages_of_any_bytes_pass_the_masks(self, role: Role) -> None:
        pair = Pair(initiator=initiate(offer_v2=True))
        pair.exchange()
        sender, receiver = pair.ends(role)
        sent = deliver_one("x", 0, "", 0, pack([bytes(range(256)), b"", b"\xff" * 999], text=False))
        (event,) = receiver.receive_data(sender.frame([v2.encode(sent)]))
        assert event == sent

    @both_roles
    @pytest.mark.parametrize("in_fragments", [False, True])
    def test_the_largest_packet(self, role: Role, in_fragments: bool) -> None:
        peer = V2Peer.established(role)
        most = MAX_MESSAGE_BYTES + OVERHEAD_BYTES
        topic = "x" * (2 * most - len(packet("unsubscribe", topic="x" * most)))
        for longer in ("", "x"):
            payload = packet("unsubscribe", topic=topic + longer)
            first = len(payload) if not in_fragments else 100
            data = peer.frame(Opcode.BINARY, payload[:first], fin=not in_fragments)
            if in_fragments:
                data += peer.frame(Opcode.CONT, payload[first:])
            assert peer.send_bytes(data) == ([] if longer else [v2.Unsubscribe(topic)])
        assert_ended(peer.session, TOO_BIG)


class TestAcceptorsAnswer:
    """An acceptor's answer to the request."""

    @pytest.mark.parametrize("allowed", [True, False])
    def test_a_page_comes_before_the_protocol(self, allowed: bool) -> None:
        session = accept(allow_classic=allowed)
        session.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"".join(session.data_to_send()).startswith(b"HTTP/1.1 200 ")

    @pytest.mark.parametrize("offers", [[], ["wsqueue.v3"]])
    def test_without_an_offer_of_v2_where_classic_is_not_allowed(self, offers: list[str]) -> None:
        session = accept(allow_classic=False)
        session.receive_data(request_of(PATH, *map(offer_of, offers)))
        answer = b"".join(session.data_to_send())
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert answer.endswith(b"Expected the subprotocol wsqueue.v2.\n")
        assert not assert_ended(session, UPGRADE_REQUIRED).reconnect

    @pytest.mark.parametrize(
        ("path", "offers"), [(PATH, ["wsqueue.v3", "chat, wsqueue.v2"]), (f"{PATH}?a=%20b", [SUBPROTOCOL])]
    )
    def test_the_whole_path_and_all_offers_are_proved(self, path: str, offers: list[str]) -> None:
        session = accept(answer_request=lambda _path: None)
        session.receive_data(request_of(path, *map(offer_of, offers)))
        head, _, frames = b"".join(session.data_to_send()).partition(b"\r\n\r\n")
        assert b"Sec-WebSocket-Protocol: wsqueue.v2\r\n" in head + b"\r\n"
        ((opcode, _, challenge),) = parse_frames(frames, masked=False)
        assert opcode == Opcode.BINARY
        nonce = msgspec.msgpack.decode(challenge)["nonce"]
        proof = proof_of(Role.INITIATOR, nonce, NONCE, path=path, offered=", ".join(offers))
        payload = packet("proof", proof=proof, nonce=NONCE, path=path)
        frame = RawPeer(Role.ACCEPTOR).frame(Opcode.BINARY, payload)
        assert session.receive_data(frame) == [HelloDone()]
