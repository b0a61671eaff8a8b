"""The hello: both ends prove that they know the pre-shared key (PSK).

Each end sends a challenge (`once`) and answers the peer's with base64(SHA-256(hex(once) + psk)). The
seed's document has that order; the original code computes SHA-256(psk + hex(once)). Both are taken.

An acceptor answers only after it has verified the initiator, in the order that the initiator used.
That closes the reflection attack: nobody gets an answer out of an acceptor without knowing the key.
Who answered wrong gets a random one, for that is how an original initiator learns that it is refused.

In v2 the acceptor sends a nonce, the initiator a nonce and a proof, and the acceptor its proof. A proof is
an HMAC over all that both ends must agree on, so that it is of no use in another place, role or time.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import secrets

import msgspec

from .classic import MAX_ONCE, Hello
from .close import CloseCode, PeerError
from .keys import Order, PreSharedKey, Role
from .v2 import NONCE_BYTES, Challenge, HelloPacket, Proof


class State(enum.Enum):
    """Say what the peer has sent so far."""

    NOTHING = "nothing"
    CHALLENGED = "challenged"
    PROVED = "proved"
    DONE = "done"


class Step(enum.Enum):
    """Name the two packets of a hello; in v2 the answer is called a proof."""

    CHALLENGE = "challenge"
    ANSWER = "answer"


TRANSITIONS: dict[tuple[State, Step], State | CloseCode] = {
    (State.NOTHING, Step.CHALLENGE): State.CHALLENGED,
    (State.NOTHING, Step.ANSWER): State.PROVED,
    (State.CHALLENGED, Step.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (State.CHALLENGED, Step.ANSWER): State.DONE,
    (State.PROVED, Step.CHALLENGE): State.DONE,
    (State.PROVED, Step.ANSWER): CloseCode.SECOND_ANSWER,
    (State.DONE, Step.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (State.DONE, Step.ANSWER): CloseCode.SECOND_ANSWER,
}


class Handshake:
    """Take one end through the hello.

    Args:
        role: Which end this is.
        psk: The key to answer with and to verify against.
        order: The order in which an initiator answers; an acceptor answers in its peer's.

    Attributes:
        once: Our challenge.
        done: Whether both ends have proved themselves.
    """

    __slots__ = ("_order", "_peer_once", "_psk", "_role", "_secret", "_state", "done", "once")

    def __init__(self, role: Role, psk: PreSharedKey, order: Order = Order.DOCUMENT) -> None:
        self.once = secrets.randbelow(MAX_ONCE) + 1
        self._role, self._psk, self._order = role, psk, order
        self._state = State.NOTHING
        self._peer_once: int | None = None
        self._secret = 0
        self.done = False

    def begin(self) -> Hello:
        """Return what this end sends before it has received anything: its challenge."""
        return Hello(once=self.once)

    def receive(self, packet: Hello) -> Hello | None:
        """Take the peer's challenge or answer; return our answer once it may be sent.

        Raises:
            PeerError: The peer does not know the key or breaks the order of the hello.
        """
        step = Step.CHALLENGE if packet.once is not None else Step.ANSWER
        state = TRANSITIONS[self._state, step]
        if isinstance(state, CloseCode):
            raise PeerError(state)
        if packet.once is not None:
            if packet.once == self.once:
                raise PeerError(CloseCode.REFLECTED_CHALLENGE)
            self._peer_once = packet.once
        elif packet.answer is not None:
            which = self._psk.verify(self.once, packet.answer)
            if which is None:
                raise PeerError(CloseCode.WRONG_ANSWER)
            if self._role is Role.ACCEPTOR:
                self._order, self._secret = which
        self._state = state
        self.done = state is State.DONE
        return self._answer_due(step)

    def refusal(self) -> Hello | None:
        """Return what to send to a peer whose answer was wrong, None if it does not wait for anything.

        An original initiator takes only a wrong answer for a refusal, not a close code. This one is
        random, and so says nothing about the key (docs/adr/0003-refusing-with-a-wrong-answer.md).
        """
        if self._role is Role.INITIATOR or self._peer_once is None:
            return None
        return Hello(answer=base64.b64encode(secrets.token_bytes(hashlib.sha256().digest_size)).decode())

    def _answer_due(self, step: Step) -> Hello | None:
        due = step is Step.CHALLENGE if self._role is Role.INITIATOR else self.done
        if not due or self._peer_once is None:
            return None
        return Hello(answer=self._psk.answer(self._peer_once, self._order, self._secret))


TRANSITIONS_V2: dict[tuple[Role, State, Step], State | CloseCode] = {
    (Role.ACCEPTOR, State.NOTHING, Step.CHALLENGE): CloseCode.UNEXPECTED_PACKET,
    (Role.ACCEPTOR, State.NOTHING, Step.ANSWER): State.DONE,
    (Role.ACCEPTOR, State.DONE, Step.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (Role.ACCEPTOR, State.DONE, Step.ANSWER): CloseCode.SECOND_ANSWER,
    (Role.INITIATOR, State.NOTHING, Step.CHALLENGE): State.CHALLENGED,
    (Role.INITIATOR, State.NOTHING, Step.ANSWER): CloseCode.UNEXPECTED_PACKET,
    (Role.INITIATOR, State.CHALLENGED, Step.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (Role.INITIATOR, State.CHALLENGED, Step.ANSWER): State.DONE,
    (Role.INITIATOR, State.DONE, Step.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (Role.INITIATOR, State.DONE, Step.ANSWER): CloseCode.SECOND_ANSWER,
}


class Context(msgspec.Struct, frozen=True):
    """Hold what both ends of a v2 hello must agree on, besides the key and the nonces.

    Attributes:
        path: Of the request, as it was sent.
        offered: The subprotocols that the initiator offered, as they were sent.
        channel_binding: SHA-256 of the acceptor's certificate, b"" without TLS (RFC 5929 section 4).
    """

    path: str
    offered: str
    channel_binding: bytes

    def claim(self, prover: Role, acceptor_nonce: str, initiator_nonce: str) -> bytes:
        """Return what a proof is about: every part with its length, so that none can pass for another."""
        label = f"wsqueue.v2 {prover.value}"
        texts = (label, acceptor_nonce, initiator_nonce, self.path, self.offered)
        parts = (*map(str.encode, texts), self.channel_binding)
        return b"".join(len(part).to_bytes(4) + part for part in parts)


class HandshakeV2:
    """Take one end through the hello of v2.

    Args:
        role: Which end this is.
        psk: The key to prove and to verify with.
        context: What both ends must agree on.

    Attributes:
        done: Whether both ends have proved themselves.
    """

    __slots__ = ("_context", "_nonce", "_peer_nonce", "_psk", "_role", "_secret", "_state", "done")

    def __init__(self, role: Role, psk: PreSharedKey, context: Context) -> None:
        self._role, self._psk, self._context = role, psk, context
        self._nonce = base64.b64encode(secrets.token_bytes(NONCE_BYTES)).decode()
        self._peer_nonce = ""
        self._secret = 0
        self._state = State.NOTHING
        self.done = False

    def begin(self) -> HelloPacket | None:
        """Return what this end sends before it has received anything: an acceptor its challenge."""
        return Challenge(self._nonce) if self._role is Role.ACCEPTOR else None

    def receive(self, packet: HelloPacket) -> HelloPacket | None:
        """Take a packet of the peer; return our answer if one is due.

        Raises:
            PeerError: The peer does not know the key or breaks the order of the hello.
        """
        step = Step.CHALLENGE if isinstance(packet, Challenge) else Step.ANSWER
        state = TRANSITIONS_V2[self._role, self._state, step]
        if isinstance(state, CloseCode):
            raise PeerError(state)
        answer: HelloPacket | None = None
        if isinstance(packet, Challenge):
            self._peer_nonce = packet.nonce
            answer = Proof(self._prove(), self._nonce)
        else:
            if (packet.nonce is None) == (self._role is Role.ACCEPTOR):
                raise PeerError(CloseCode.INVALID_PACKET, "an initiator's proof has a nonce, no other")
            self._peer_nonce = packet.nonce or self._peer_nonce
            self._verify(packet.proof)
            if self._role is Role.ACCEPTOR:
                answer = Proof(self._prove())
        self._state = state
        self.done = state is State.DONE
        return answer

    def _prove(self) -> str:
        return self._psk.prove(self._claim(self._role), self._secret)

    def _verify(self, proof: str) -> None:
        peer = Role.INITIATOR if self._role is Role.ACCEPTOR else Role.ACCEPTOR
        secret = self._psk.verify_proof(self._claim(peer), proof)
        # An initiator has used its first secret, and wants to know that the peer has the same.
        if secret is None or (self._role is Role.INITIATOR and secret != self._secret):
            raise PeerError(CloseCode.WRONG_ANSWER)
        self._secret = secret

    def _claim(self, prover: Role) -> bytes:
        nonces = (self._nonce, self._peer_nonce)
        acceptor, initiator = nonces if self._role is Role.ACCEPTOR else nonces[::-1]
        return self._context.claim(prover, acceptor, initiator)
