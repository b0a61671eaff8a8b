from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol.classic import Hello
from wsqueue.protocol.close import CloseCode, PeerError
from wsqueue.protocol.hello import TRANSITIONS, ClassicHandshake, HelloState, HelloStep
from wsqueue.protocol.keys import Order, PreSharedKey, Role
from wsqueue.protocol.session import HelloDone

from ...support.session_pair import PSK, RawPeer, answer_of, few

WRONG = PreSharedKey("another key")
ROLES = list(Role)
ORDERS = list(Order)


def name(value: object) -> str | None:
    return value.name.lower() if isinstance(value, Role | Order | HelloState | HelloStep) else None


def proof(handshake: ClassicHandshake, order: Order = Order.DOCUMENT) -> Hello:
    """Return the right answer to a handshake's challenge."""
    return Hello(answer=answer_of(handshake.once, order=order))


def other(once: int) -> int:
    """Return a challenge that is not this one."""
    return once % 1000 + 1 if once % 1000 + 1 != once else 2000


def bring_to(handshake: ClassicHandshake, state: HelloState) -> None:
    if state in (HelloState.CHALLENGED, HelloState.DONE):
        handshake.receive(Hello(once=other(handshake.once)))
    if state in (HelloState.PROVED, HelloState.DONE):
        handshake.receive(proof(handshake))


def refusal(handshake: ClassicHandshake, packet: Hello) -> CloseCode:
    with pytest.raises(PeerError) as caught:
        handshake.receive(packet)
    return caught.value.code


@pytest.mark.parametrize("role", ROLES, ids=name)
@pytest.mark.parametrize(("state", "step"), list(TRANSITIONS), ids=name)
def test_every_cell(role: Role, state: HelloState, step: HelloStep) -> None:
    handshake = ClassicHandshake(role, PSK)
    bring_to(handshake, state)
    packet = proof(handshake) if step is HelloStep.ANSWER else Hello(once=other(handshake.once) + 1)
    expected = TRANSITIONS[state, step]
    if isinstance(expected, CloseCode):
        assert refusal(handshake, packet) is expected
    else:
        handshake.receive(packet)
        assert handshake.done == (expected is HelloState.DONE)
        # The refusals of the next state show that it was reached.
        for following, again in (
            (HelloStep.ANSWER, proof(handshake)),
            (HelloStep.CHALLENGE, Hello(once=3000)),
        ):
            if isinstance(code := TRANSITIONS[expected, following], CloseCode):
                assert refusal(handshake, again) is code


@pytest.mark.parametrize("role", ROLES, ids=name)
@pytest.mark.parametrize("state", [HelloState.NOTHING, HelloState.CHALLENGED], ids=name)
@pytest.mark.parametrize("order", ORDERS, ids=name)
def test_a_wrong_answer(role: Role, state: HelloState, order: Order) -> None:
    handshake = ClassicHandshake(role, PSK)
    bring_to(handshake, state)
    packet = Hello(answer=WRONG.answer(handshake.once, order))
    assert refusal(handshake, packet) is CloseCode.WRONG_ANSWER
    assert not handshake.done


@pytest.mark.parametrize("role", ROLES, ids=name)
@pytest.mark.parametrize("state", [HelloState.NOTHING, HelloState.PROVED], ids=name)
def test_our_own_challenge_is_refused(role: Role, state: HelloState) -> None:
    handshake = ClassicHandshake(role, PSK)
    bring_to(handshake, state)
    assert refusal(handshake, Hello(once=handshake.once)) is CloseCode.REFLECTED_CHALLENGE
    assert not handshake.done


@pytest.mark.parametrize("used", ORDERS, ids=name)
@pytest.mark.parametrize("configured", ORDERS, ids=name)
@pytest.mark.parametrize("challenged_first", [True, False])
def test_an_acceptor_answers_after_it_has_verified_in_the_order_of_the_initiator(
    used: Order, configured: Order, challenged_first: bool
) -> None:
    handshake = ClassicHandshake(Role.ACCEPTOR, PSK, configured)
    packets = [Hello(once=77), proof(handshake, used)]
    first, second = packets if challenged_first else packets[::-1]
    assert handshake.receive(first) is None
    assert handshake.receive(second) == Hello(answer=answer_of(77, order=used))
    assert handshake.done


@pytest.mark.parametrize("peer", ORDERS, ids=name)
@pytest.mark.parametrize("configured", ORDERS, ids=name)
@pytest.mark.parametrize("challenged_first", [True, False])
def test_an_initiator_answers_at_once_in_its_own_order(
    configured: Order, peer: Order, challenged_first: bool
) -> None:
    handshake = ClassicHandshake(Role.INITIATOR, PSK, configured)
    answer = Hello(answer=answer_of(77, order=configured))
    if challenged_first:
        assert handshake.receive(Hello(once=77)) == answer
        assert handshake.receive(proof(handshake, peer)) is None
    else:
        assert handshake.receive(proof(handshake, peer)) is None
        assert handshake.receive(Hello(once=77)) == answer
    assert handshake.done


def test_challenges_have_the_range_that_the_original_nodes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda _end: 0)
    assert ClassicHandshake(Role.ACCEPTOR, PSK).once == 1
    monkeypatch.setattr("secrets.randbelow", lambda end: end - 1)
    assert ClassicHandshake(Role.ACCEPTOR, PSK).once == 2**31 - 2


class TestReflection:
    """An attacker without the key fails who lets nodes answer each other's challenges."""

    @staticmethod
    def robbed(*victims: RawPeer, challenges: set[int]) -> bool:
        """Return True if a challenge was answered, or a connection established."""
        right = {answer_of(once, order=order) for once in challenges for order in ORDERS}
        return any(right.intersection(one.answers) or one.session.established for one in victims)

    def test_the_challenge_of_a_connection_sent_back_on_it(self) -> None:
        victim = RawPeer.opened(Role.ACCEPTOR)
        once = victim.challenged_with
        assert victim.challenge(once) == []
        assert victim.close_received is not None
        assert victim.close_received.code == CloseCode.REFLECTED_CHALLENGE
        assert victim.answers == []
        assert not self.robbed(victim, challenges={once})

    @few
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=12))
    def test_no_order_of_relayed_challenges_and_answers_helps(
        self, moves: list[tuple[int, int, bool]]
    ) -> None:
        nodes = [RawPeer.opened(Role.ACCEPTOR) for _ in range(3)]
        challenges = {node.challenged_with for node in nodes}
        for source, target, challenge in moves:
            if challenge:
                nodes[target].challenge(nodes[source].challenged_with)
            else:
                answer = next(iter(nodes[source].answers), "guess")
                nodes[target].send(json.dumps({"t": "h", "a": answer}).encode())
        assert not self.robbed(*nodes, challenges=challenges)

    @pytest.mark.parametrize("challenge_first", [True, False])
    def test_who_has_the_key_does_get_an_answer(self, challenge_first: bool) -> None:
        node = RawPeer.opened(Role.ACCEPTOR)
        if challenge_first:
            node.challenge(77)
            assert not self.robbed(node, challenges={77})
            assert node.answer() == [HelloDone()]
        else:
            node.answer()
            assert not self.robbed(node, challenges={77})
            assert node.challenge(77) == [HelloDone()]
        assert self.robbed(node, challenges={77})
        assert node.answers == [answer_of(77)]

    def test_a_reflection_works_on_a_node_that_answers_at_once(self) -> None:
        """Check the attack itself: an initiator has to answer first, as the originals all do."""
        one, two = RawPeer.opened(Role.ACCEPTOR), RawPeer.opened(Role.INITIATOR)
        two.challenge(one.challenged_with)
        assert self.robbed(two, challenges={one.challenged_with})
