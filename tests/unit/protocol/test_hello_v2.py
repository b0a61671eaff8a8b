"""The hello of v2: its states, its proofs, and attacks on it."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode, Closed, PeerError
from wsqueue.protocol.hello import HelloState, HelloStep
from wsqueue.protocol.hello_v2 import TRANSITIONS_V2, Context, V2Handshake
from wsqueue.protocol.keys import PreSharedKey, Role, derive
from wsqueue.protocol.session import HelloDone, Session
from wsqueue.protocol.v2 import SUBPROTOCOL, Challenge, HelloPacket, Proof

from ...support import raw_v2_peer
from ...support.session_pair import PATH, PSK, SECRET, Pair, accept, few, initiate

WRONG = PreSharedKey("another key")
ROLES = list(Role)
CONTEXT = Context(PATH, SUBPROTOCOL, b"")
NONCE = bytes(range(32))


def name(value: object) -> str | None:
    return value.name.lower() if isinstance(value, Role | HelloState | HelloStep) else None


def proof_of(
    role: Role,
    acceptor_nonce: bytes,
    initiator_nonce: bytes,
    *,
    secret: str = SECRET,
    path: str = PATH,
    offered: str = SUBPROTOCOL,
    channel_binding: bytes = b"",
) -> bytes:
    """Return the right proof of one end, computed without our code."""
    return raw_v2_peer.proof_of(
        secret,
        role.value,
        acceptor_nonce,
        initiator_nonce,
        path,
        offered=offered,
        channel_binding=channel_binding,
    )


def arrived(packet: HelloPacket) -> HelloPacket:
    """Return a packet as it arrives."""
    again = v2.decode(v2.encode(packet))
    assert isinstance(again, v2.HELLO_PACKETS)
    return again


class End:
    """One end of a hello, with a peer that the test plays."""

    def __init__(self, role: Role, psk: PreSharedKey = PSK, context: Context = CONTEXT) -> None:
        self.role = role
        self.handshake = V2Handshake(role, psk, context)
        self.sent: list[HelloPacket] = []
        self._note(self.handshake.begin())

    @property
    def nonce(self) -> bytes:
        """Return the nonce of this end, once it has sent it."""
        first = self.sent[0]
        assert first.nonce is not None
        return first.nonce

    def receive(self, packet: HelloPacket) -> HelloPacket | None:
        return self._note(self.handshake.receive(packet))

    def right_proof(self, *, secret: str = SECRET, path: str = PATH, offered: str = SUBPROTOCOL) -> Proof:
        """Return the proof that a peer with the key would send now."""
        acceptor = self.role is Role.ACCEPTOR
        prover, nonces = (
            (Role.INITIATOR, (self.nonce, NONCE)) if acceptor else (Role.ACCEPTOR, (NONCE, self.nonce))
        )
        proof = proof_of(prover, *nonces, secret=secret, path=path, offered=offered)
        return Proof(proof, NONCE, PATH) if acceptor else Proof(proof)

    def bring_to(self, state: HelloState) -> None:
        if self.role is Role.INITIATOR and state is not HelloState.NOTHING:
            self.receive(Challenge(NONCE))
        if state is HelloState.DONE:
            self.receive(self.right_proof())

    def refusal(self, packet: HelloPacket) -> CloseCode:
        sent = len(self.sent)
        with pytest.raises(PeerError) as caught:
            self.receive(packet)
        assert len(self.sent) == sent
        return caught.value.code

    def _note(self, packet: HelloPacket | None) -> HelloPacket | None:
        if packet is not None:
            self.sent.append(packet)
        return packet


class TestStates:
    """Each end takes packets in one order only."""

    def test_the_table_has_every_cell_that_can_be(self) -> None:
        reached = {(role, HelloState.NOTHING) for role in ROLES}
        reached |= {(key[0], cell) for key, cell in TRANSITIONS_V2.items() if isinstance(cell, HelloState)}
        cells = {(*where, step) for where, step in itertools.product(reached, HelloStep)}
        assert set(TRANSITIONS_V2) == cells

    @pytest.mark.parametrize(("role", "state", "step"), list(TRANSITIONS_V2), ids=name)
    def test_every_cell(self, role: Role, state: HelloState, step: HelloStep) -> None:
        end = End(role)
        end.bring_to(state)
        if step is HelloStep.CHALLENGE:
            packet: HelloPacket = Challenge(NONCE)
        else:
            packet = end.right_proof() if end.sent else Proof(NONCE)
        expected = TRANSITIONS_V2[role, state, step]
        if isinstance(expected, CloseCode):
            assert end.refusal(packet) is expected
            assert end.handshake.done == (state is HelloState.DONE)
            return
        end.receive(packet)
        assert end.handshake.done == (expected is HelloState.DONE)
        # The refusals of the next state show that it was reached.
        assert end.refusal(Challenge(NONCE)) is TRANSITIONS_V2[role, expected, HelloStep.CHALLENGE]

    def test_an_acceptor_begins_and_an_initiator_waits(self) -> None:
        assert len(End(Role.ACCEPTOR).sent) == 1
        assert End(Role.INITIATOR).sent == []

    @pytest.mark.parametrize(
        ("role", "fields"),
        [
            (Role.ACCEPTOR, {"nonce": None}),
            (Role.ACCEPTOR, {"path": None}),
            (Role.INITIATOR, {"nonce": NONCE}),
            (Role.INITIATOR, {"path": PATH}),
            (Role.INITIATOR, {"binding": NONCE}),
        ],
    )
    def test_only_an_initiators_proof_has_more_and_has_all_of_it(
        self, role: Role, fields: dict[str, Any]
    ) -> None:
        end = End(role)
        end.bring_to(HelloState.CHALLENGED)
        other = msgspec.structs.replace(end.right_proof(), **fields)
        assert end.refusal(other) is CloseCode.INVALID_PACKET
        assert not end.handshake.done

    @pytest.mark.parametrize("role", ROLES, ids=name)
    def test_nonces_differ(self, role: Role) -> None:
        ends = [End(role) for _ in range(100)]
        for end in ends:
            end.bring_to(HelloState.CHALLENGED)
        assert len({end.nonce for end in ends}) == 100
        assert {len(end.nonce) for end in ends} == {32}


class TestProofs:
    """A proof covers everything that both ends must agree on."""

    @few
    @given(
        st.sampled_from(ROLES),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text(st.characters(codec="ascii"), max_size=20),
        st.text(st.characters(codec="ascii"), max_size=20),
        st.binary(max_size=32),
    )
    def test_as_computed_by_other_code(
        self, role: Role, secret: str, path: str, offered: str, channel_binding: bytes
    ) -> None:
        end = End(role, PreSharedKey(secret), Context(path, offered, channel_binding))
        end.bring_to(HelloState.CHALLENGED)

        def proof(prover: Role) -> bytes:
            nonces = (end.nonce, NONCE) if role is Role.ACCEPTOR else (NONCE, end.nonce)
            return proof_of(
                prover, *nonces, secret=secret, path=path, offered=offered, channel_binding=channel_binding
            )

        binding = channel_binding or None
        if role is Role.ACCEPTOR:
            theirs = Proof(proof(Role.INITIATOR), NONCE, path, binding)
            assert end.receive(theirs) == Proof(proof(Role.ACCEPTOR))
        else:
            assert end.sent == [Proof(proof(Role.INITIATOR), end.nonce, path, binding)]
            end.receive(Proof(proof(Role.ACCEPTOR)))
        assert end.handshake.done

    @few
    @given(
        st.lists(st.text("ab", max_size=3), min_size=4, max_size=4),
        st.lists(st.text("ab", max_size=3).map(str.encode), min_size=4, max_size=4),
        st.binary(max_size=2),
    )
    def test_no_two_agreements_have_the_same_claim(
        self, texts: list[str], nonces: list[bytes], channel_binding: bytes
    ) -> None:
        """However their parts run into each other."""
        one = Context(texts[0], texts[1], channel_binding)
        two = Context(texts[2], texts[3], b"")
        same = (one, *nonces[:2]) == (two, *nonces[2:])
        claims = [one.claim(role, nonces[0], nonces[1]) for role in ROLES]
        assert claims[0] != claims[1]
        assert (claims[0] == two.claim(ROLES[0], nonces[2], nonces[3])) == same

    @pytest.mark.parametrize("role", ROLES, ids=name)
    def test_a_nonce_and_a_binding_are_any_bytes(self, role: Role) -> None:
        """As they travel: nothing reads them as text."""
        peers_nonce, binding = b"\xff\0\n" * 10 + b"\x80=", bytes(range(224, 256))
        end = End(role, context=Context(PATH, SUBPROTOCOL, binding))
        if role is Role.INITIATOR:
            end.receive(arrived(Challenge(peers_nonce)))
            nonces = (peers_nonce, end.nonce)
            proof = Proof(proof_of(Role.ACCEPTOR, *nonces, channel_binding=binding))
            assert arrived(end.sent[0]) == end.sent[0]
        else:
            nonces = (end.nonce, peers_nonce)
            proof = Proof(
                proof_of(Role.INITIATOR, *nonces, channel_binding=binding), peers_nonce, PATH, binding
            )
        end.receive(arrived(proof))
        assert end.handshake.done

    @pytest.mark.parametrize("role", ROLES, ids=name)
    def test_any_bit_of_a_proof_counts(self, role: Role) -> None:
        for place in range(256):
            end = End(role)
            end.bring_to(HelloState.CHALLENGED)
            right = end.right_proof()
            wrong = bytearray(right.proof)
            wrong[place // 8] ^= 1 << place % 8
            assert end.refusal(msgspec.structs.replace(right, proof=bytes(wrong))) is CloseCode.WRONG_ANSWER
            assert not end.handshake.done

    @pytest.mark.parametrize("role", ROLES, ids=name)
    @pytest.mark.parametrize(
        "other",
        [{"secret": "another key"}, {"path": "/produce"}, {"path": PATH + "?"}, {"offered": "wsqueue.v2, x"}],
        ids="-".join,
    )
    def test_a_proof_of_something_else_is_wrong(self, role: Role, other: dict[str, str]) -> None:
        end = End(role)
        end.bring_to(HelloState.CHALLENGED)
        assert end.refusal(end.right_proof(**other)) is CloseCode.WRONG_ANSWER
        assert not end.handshake.done

    def test_a_known_vector(self) -> None:
        """RFC 5869, appendix A.3, has a longer key; these are its first 32 bytes."""
        vector = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
        assert derive(b"\x0b" * 22, "").hex() == vector


class TestProxies:
    """A proxy on the way that alters the connection is told from another key."""

    def hello(self, asked: str, came: str, psk: PreSharedKey = PSK) -> Closed | None:
        """Take an initiator that asks for one path to an acceptor that sees another."""
        acceptor, initiator = (
            End(Role.ACCEPTOR, context=Context(came, SUBPROTOCOL, b"")),
            End(Role.INITIATOR, psk, Context(asked, SUBPROTOCOL, b"")),
        )
        proof = initiator.receive(acceptor.sent[0])
        assert proof is not None
        try:
            answer = acceptor.receive(proof)
        except PeerError as error:
            return Closed(error.code, error.reason, by_peer=False)
        assert answer is not None
        initiator.receive(answer)
        assert acceptor.handshake.done
        assert initiator.handshake.done
        return None

    @pytest.mark.parametrize(
        ("asked", "came"),
        [
            ("/subscribe/a%2Fb", "/subscribe/a/b"),
            ("/subscribe/a%2F%2Fb", "/subscribe/a/b"),
            ("/subscribe/%D1%8F", "/subscribe/\xd1\x8f"),
            ("/subscribe/subscribe%2F", "/subscribe/subscribe/"),
        ],
    )
    def test_one_that_decodes_a_topic_does_no_harm(self, asked: str, came: str) -> None:
        assert self.hello(asked, came) is None

    @pytest.mark.parametrize(
        ("asked", "came"),
        [
            ("/queue/subscribe", "/subscribe"),
            ("/queue/subscribe/a", "/subscribe/a"),
            ("/produce", "/producer"),
            ("/produce", "/produce?token=1"),
            ("/subscribe", "/" + "x" * 8000),
        ],
    )
    def test_one_that_changes_the_path_is_named(self, asked: str, came: str) -> None:
        closed = self.hello(asked, came)
        assert closed is not None
        assert closed.code == CloseCode.ALTERED
        assert f"{asked[:24]} was asked for, {came[:24]} came" in closed.reason
        # A close frame has no room for more (RFC 6455 section 5.5).
        assert len(closed.reason.encode()) <= 123

    def test_another_key_is_still_another_key(self) -> None:
        closed = self.hello("/queue/subscribe", "/subscribe", WRONG)
        assert closed is not None
        assert closed.code == CloseCode.WRONG_ANSWER


class TestSeveralKeys:
    """While a key is changed, an acceptor takes the old one and the new one."""

    def test_an_initiator_uses_its_first_and_takes_no_other(self) -> None:
        end = End(Role.INITIATOR, PreSharedKey("one", "two"))
        end.receive(Challenge(NONCE))
        assert end.sent == [Proof(proof_of(Role.INITIATOR, NONCE, end.nonce, secret="one"), end.nonce, PATH)]
        assert end.refusal(end.right_proof(secret="two")) is CloseCode.WRONG_ANSWER
        assert not end.handshake.done

    @pytest.mark.parametrize(
        ("acceptors", "initiators", "good"),
        [
            (["old"], ["old", "new"], True),
            (["old", "new"], ["old", "new"], True),
            (["old", "new"], ["new", "old"], True),
            (["new", "old"], ["new"], True),
            (["new"], ["old", "new"], False),
            (["old"], ["new"], False),
        ],
    )
    def test_each_step_of_a_change(self, acceptors: list[str], initiators: list[str], good: bool) -> None:
        pair = Pair(accept(PreSharedKey(*acceptors)), initiate(PreSharedKey(*initiators), offer_v2=True))
        pair.exchange()
        assert pair.acceptor.established is good
        assert pair.initiator.established is good


class Wire:
    """A wire between two sessions, held by an attacker who chooses which bytes to hand on."""

    def __init__(self, acceptor: Session | None = None, initiator: Session | None = None) -> None:
        self.acceptor = acceptor or accept()
        self.initiator = initiator or initiate(offer_v2=True)

    def upstream(self) -> bytes:
        """Return the bytes that the initiator has written."""
        return b"".join(self.initiator.data_to_send())

    def downstream(self) -> bytes:
        return b"".join(self.acceptor.data_to_send())

    def open(self) -> bytes:
        """Carry the upgrade, and return the acceptor's challenge, not handed on."""
        self.acceptor.receive_data(self.upstream())
        head, end, challenge = self.downstream().partition(b"\r\n\r\n")
        self.initiator.receive_data(head + end)
        return challenge

    def hello(self) -> tuple[bytes, bytes, bytes]:
        """Carry a hello to its end; return the challenge and the proofs, as they were on the wire."""
        challenge = self.open()
        self.initiator.receive_data(challenge)
        first = self.upstream()
        self.acceptor.receive_data(first)
        second = self.downstream()
        self.initiator.receive_data(second)
        assert self.acceptor.established
        assert self.initiator.established
        return challenge, first, second


def refused(session: Session, code: CloseCode = CloseCode.WRONG_ANSWER) -> bool:
    """Return True if a session has refused its peer."""
    closed = session.closed
    return closed is not None and (closed.code, closed.by_peer) == (code, False) and not session.established


class TestAttacks:
    """An attacker without the key, or with another one, gets nowhere."""

    @pytest.mark.parametrize("role", ROLES, ids=name)
    @pytest.mark.parametrize("swapped", ["role", "nonces"])
    def test_a_proof_in_the_other_role_or_with_swapped_nonces(self, role: Role, swapped: str) -> None:
        end = End(role)
        end.bring_to(HelloState.CHALLENGED)
        (peer,) = set(ROLES) - {role}
        acceptor = (role is Role.ACCEPTOR) == (swapped == "role")
        nonces = (end.nonce, NONCE) if acceptor else (NONCE, end.nonce)
        proof = proof_of(role if swapped == "role" else peer, *nonces)
        wrong = msgspec.structs.replace(end.right_proof(), proof=proof)
        assert end.refusal(wrong) is CloseCode.WRONG_ANSWER

    def test_a_recorded_session_replayed(self) -> None:
        challenge, first, second = Wire().hello()
        again = Wire()
        again.open()
        again.acceptor.receive_data(first)
        again.initiator.receive_data(challenge + second)
        assert refused(again.acceptor)
        assert refused(again.initiator)

    @pytest.mark.parametrize("bindings", [(b"c" * 32, b"d" * 32), (b"c" * 32, b""), (b"", b"c" * 32)])
    def test_a_man_in_the_middle_with_another_certificate_or_none(
        self, bindings: tuple[bytes, bytes]
    ) -> None:
        """The initiator trusts that certificate, for example because a CA issued it by mistake."""
        wire = Wire()
        wire.acceptor.channel_binding, wire.initiator.channel_binding = bindings
        wire.initiator.receive_data(wire.open())
        wire.acceptor.receive_data(wire.upstream())
        assert refused(wire.acceptor, CloseCode.ALTERED)
        answer = wire.downstream()
        assert b"proof" not in answer
        wire.initiator.receive_data(answer)
        assert not wire.initiator.established

    @pytest.mark.parametrize("field", ["path", "binding"])
    def test_a_man_in_the_middle_who_changes_what_the_initiator_says(self, field: str) -> None:
        """He makes it equal to what the acceptor sees, and can't make the proof that belongs to it."""
        end = End(Role.ACCEPTOR, context=Context(PATH, SUBPROTOCOL, b"c" * 32))
        binding = (b"d" if field == "binding" else b"c") * 32
        path = "/produce" if field == "path" else PATH
        proof = proof_of(Role.INITIATOR, end.nonce, NONCE, path=path, channel_binding=binding)
        said = Proof(proof, NONCE, path, binding)
        assert end.refusal(said) is CloseCode.ALTERED
        again = End(Role.ACCEPTOR, context=Context(PATH, SUBPROTOCOL, b"c" * 32))
        assert again.refusal(Proof(proof, NONCE, PATH, b"c" * 32)) is CloseCode.WRONG_ANSWER

    def test_a_refusal_says_nothing_about_the_key(self) -> None:
        wire = Wire(None, initiate(WRONG, offer_v2=True))
        wire.initiator.receive_data(wire.open())
        wire.acceptor.receive_data(wire.upstream())
        answer = wire.downstream()
        assert refused(wire.acceptor)
        assert b"proof" not in answer
        assert answer[:1] == b"\x88"

    def test_a_clients_key_at_the_endpoint_of_nodes(self) -> None:
        nodes, clients = PreSharedKey("key of nodes"), PreSharedKey("key of clients")
        keys = {"/producer": nodes, "/subscribe": clients}

        def acceptor() -> Session:
            session = accept(allow_classic=True)
            session.answer = lambda path: keys[path]
            return session

        for psk, path, good in (
            (clients, "/producer", False),
            (nodes, "/subscribe", False),
            (clients, "/subscribe", True),
            (nodes, "/producer", True),
        ):
            for offer_v2 in (True, False):
                pair = Pair(acceptor(), initiate(psk, path=path, offer_v2=offer_v2))
                events = pair.exchange()
                assert (events == ([HelloDone()], [HelloDone()])) is good
                assert pair.acceptor.established is good
