from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import DATA
from wsqueue.protocol.classic import Hello
from wsqueue.protocol.close import CloseCode, PeerError
from wsqueue.protocol.hello import TRANSITIONS, ClassicHandshake, HelloState, HelloStep
from wsqueue.protocol.keys import Order, PreSharedKey, Role
from wsqueue.protocol.session import HelloDone

from ...support.session_pair import PSK, RawPeer, answer_of, few

VECTORS: list[dict[str, Any]] = json.loads((DATA / "vectors.json").read_text())["hello"]

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


NEXT: dict[tuple[HelloState, HelloStep], HelloState | CloseCode] = {
    (HelloState.NOTHING, HelloStep.CHALLENGE): HelloState.CHALLENGED,
    (HelloState.NOTHING, HelloStep.ANSWER): HelloState.PROVED,
    (HelloState.CHALLENGED, HelloStep.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (HelloState.CHALLENGED, HelloStep.ANSWER): HelloState.DONE,
    (HelloState.PROVED, HelloStep.CHALLENGE): HelloState.DONE,
    (HelloState.PROVED, HelloStep.ANSWER): CloseCode.SECOND_ANSWER,
    (HelloState.DONE, HelloStep.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (HelloState.DONE, HelloStep.ANSWER): CloseCode.SECOND_ANSWER,
}
"""The table of the protocol's description."""


def test_the_table_is_the_described_one_and_has_every_cell() -> None:
    assert set(TRANSITIONS) == set(itertools.product(HelloState, HelloStep))
    assert TRANSITIONS == NEXT


@pytest.mark.parametrize("role", ROLES, ids=name)
@pytest.mark.parametrize(("state", "step"), list(NEXT), ids=name)
def test_every_cell(role: Role, state: HelloState, step: HelloStep) -> None:
    handshake = ClassicHandshake(role, PSK)
    bring_to(handshake, state)
    packet = proof(handshake) if step is HelloStep.ANSWER else Hello(once=other(handshake.once) + 1)
    expected = NEXT[state, step]
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
            if isinstance(code := NEXT[expected, following], CloseCode):
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
def test_the_answer_to_another_challenge_is_wrong(role: Role) -> None:
    handshake = ClassicHandshake(role, PSK)
    assert refusal(handshake, Hello(answer=answer_of(handshake.once + 1))) is CloseCode.WRONG_ANSWER


@pytest.mark.parametrize("role", ROLES, ids=name)
@pytest.mark.parametrize("state", [HelloState.NOTHING, HelloState.PROVED], ids=name)
def test_our_own_challenge_is_refused(role: Role, state: HelloState) -> None:
    handshake = ClassicHandshake(role, PSK)
    bring_to(handshake, state)
    assert refusal(handshake, Hello(once=handshake.once)) is CloseCode.REFLECTED_CHALLENGE
    assert not handshake.done


@pytest.mark.parametrize("used", ORDERS, ids=name)
@pytest.mark.parametrize("configured", ORDERS, ids=name)
def test_an_acceptor_answers_after_it_has_verified_in_the_order_of_the_initiator(
    used: Order, configured: Order
) -> None:
    handshake = ClassicHandshake(Role.ACCEPTOR, PSK, configured)
    assert handshake.receive(Hello(once=77)) is None
    assert handshake.receive(proof(handshake, used)) == Hello(answer=answer_of(77, order=used))
    assert handshake.done


@pytest.mark.parametrize("used", ORDERS, ids=name)
def test_an_acceptor_that_is_answered_before_it_is_challenged(used: Order) -> None:
    handshake = ClassicHandshake(Role.ACCEPTOR, PSK)
    assert handshake.receive(proof(handshake, used)) is None
    assert handshake.receive(Hello(once=77)) == Hello(answer=answer_of(77, order=used))
    assert handshake.done


class TestRefusal:
    """The packet for a peer whose answer was wrong."""

    def test_an_acceptor_sends_a_random_answer_of_the_right_form(self) -> None:
        refusals = set()
        for _ in range(10):
            handshake = ClassicHandshake(Role.ACCEPTOR, PSK)
            handshake.receive(Hello(once=77))
            refusal = handshake.refusal()
            assert refusal is not None
            assert refusal.answer is not None
            assert len(base64.b64decode(refusal.answer, validate=True)) == 32
            assert PSK.verify(77, refusal.answer) is None
            refusals.add(refusal.answer)
        assert len(refusals) == 10

    def test_nothing_to_a_peer_that_waits_for_no_answer(self) -> None:
        assert ClassicHandshake(Role.ACCEPTOR, PSK).refusal() is None

    def test_an_initiator_sends_nothing(self) -> None:
        handshake = ClassicHandshake(Role.INITIATOR, PSK)
        handshake.receive(Hello(once=77))
        assert handshake.refusal() is None


def test_an_acceptor_gives_no_answer_to_a_wrong_one() -> None:
    handshake = ClassicHandshake(Role.ACCEPTOR, PSK)
    assert handshake.receive(Hello(once=77)) is None
    assert refusal(handshake, Hello(answer=WRONG.answer(handshake.once, Order.DOCUMENT)))


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


def test_challenges_differ() -> None:
    assert len({ClassicHandshake(Role.ACCEPTOR, PSK).once for _ in range(100)}) > 90


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

    def test_the_challenge_of_a_connection_sent_on_another(self) -> None:
        one, two = RawPeer.opened(Role.ACCEPTOR), RawPeer.opened(Role.ACCEPTOR)
        challenges = {one.challenged_with, two.challenged_with}
        one.challenge(two.challenged_with)
        two.challenge(one.challenged_with)
        assert one.answers == two.answers == []
        for victim in (one, two):
            victim.send(json.dumps({"t": "h", "a": "a guess, to be answered at all"}).encode())
            assert victim.session.closed is not None
            assert victim.session.closed.code == CloseCode.WRONG_ANSWER
        assert not self.robbed(one, two, challenges=challenges)

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
