"""The classic hello: both ends prove that they know the pre-shared key (PSK).

Each end sends a challenge (`once`) and answers the peer's with base64(SHA-256(hex(once) + psk)). The
seed's document has that order; the original code computes SHA-256(psk + hex(once)). Both are accepted.

An acceptor answers only after it has verified the initiator, in the order that the initiator used. That
closes the reflection attack: a peer that doesn't know the key gets no answer out of an acceptor.
A peer whose answer is wrong gets a random answer, because that is how an original initiator learns that it is
refused.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import secrets

from .access import KeyRing, Peer, key_or_ring
from .classic import MAX_ONCE, Hello, Message, decode
from .close import CloseCode, PeerError
from .keys import Order, PreSharedKey, Role


class HelloState(enum.Enum):
    """Name the packets of the hello that the peer has sent so far."""

    NOTHING = "nothing"
    CHALLENGED = "challenged"
    PROVED = "proved"
    DONE = "done"


class HelloStep(enum.Enum):
    """Name the two packets of a hello; in v2 the answer is called a proof."""

    CHALLENGE = "challenge"
    ANSWER = "answer"


TRANSITIONS: dict[tuple[HelloState, HelloStep], HelloState | CloseCode] = {
    (HelloState.NOTHING, HelloStep.CHALLENGE): HelloState.CHALLENGED,
    (HelloState.NOTHING, HelloStep.ANSWER): HelloState.PROVED,
    (HelloState.CHALLENGED, HelloStep.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (HelloState.CHALLENGED, HelloStep.ANSWER): HelloState.DONE,
    (HelloState.PROVED, HelloStep.CHALLENGE): HelloState.DONE,
    (HelloState.PROVED, HelloStep.ANSWER): CloseCode.SECOND_ANSWER,
    (HelloState.DONE, HelloStep.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (HelloState.DONE, HelloStep.ANSWER): CloseCode.SECOND_ANSWER,
}


class ClassicHandshake:
    """Take one end through the hello.

    Args:
        role: The end.
        keys: The key to answer with and to verify against; an acceptor's are a ring.
        order: The order in which an initiator answers; an acceptor answers in its peer's.

    Attributes:
        once: Our challenge.
        done: True when both ends have proved themselves.
        peer: The initiator, once it has proved itself.
    """

    __slots__ = (
        "_order",
        "_peer_once",
        "_psk",
        "_ring",
        "_role",
        "_secret",
        "_state",
        "done",
        "once",
        "peer",
    )

    def __init__(self, role: Role, keys: PreSharedKey | KeyRing, order: Order = Order.DOCUMENT) -> None:
        self.once = secrets.randbelow(MAX_ONCE) + 1
        self._role, self._order = role, order
        self._psk, self._ring = key_or_ring(role, keys)
        self.peer: Peer | None = None
        self._state = HelloState.NOTHING
        self._peer_once: int | None = None
        self._secret = 0
        self.done = False

    def begin(self) -> Hello:
        """Return the first packet of this end: its challenge."""
        return Hello(once=self.once)

    def receive(self, packet: Hello) -> Hello | None:
        """Take the peer's challenge or answer; return our answer once it may be sent.

        Raises:
            PeerError: The peer does not know the key or breaks the order of the hello.
        """
        step = HelloStep.CHALLENGE if packet.once is not None else HelloStep.ANSWER
        state = TRANSITIONS[self._state, step]
        if isinstance(state, CloseCode):
            raise PeerError(state)
        if packet.once is not None:
            if packet.once == self.once:
                raise PeerError(CloseCode.REFLECTED_CHALLENGE)
            self._peer_once = packet.once
        elif packet.answer is not None:
            self._verify(packet.answer)
        self._state = state
        self.done = state is HelloState.DONE
        return self._answer_due(step)

    def receive_payload(self, payload: bytes) -> Hello | None:
        """Take a packet as it came; return our answer once it may be sent.

        Raises:
            PeerError: As `receive`; or the payload is no packet of the hello.
        """
        packet = decode(payload)
        if isinstance(packet, Message):
            raise PeerError(CloseCode.EARLY_DATA)
        if not isinstance(packet, Hello):
            raise PeerError(CloseCode.UNEXPECTED_PACKET)
        return self.receive(packet)

    def refusal(self) -> Hello | None:
        """Return the packet for a peer whose answer was wrong, None if it waits for no answer.

        An original initiator takes only a wrong answer for a refusal, not a close code. This one is
        random, and so says nothing about the key (docs/adr/0003-refusing-with-a-wrong-answer.md).
        """
        if self._role is Role.INITIATOR or self._peer_once is None:
            return None
        return Hello(answer=base64.b64encode(secrets.token_bytes(hashlib.sha256().digest_size)).decode())

    def _verify(self, answer: str) -> None:
        if self._psk is not None:
            if self._psk.verify(self.once, answer) is None:
                raise PeerError(CloseCode.WRONG_ANSWER)
            return
        assert self._ring is not None
        # All are tried, so that the time tells nothing about the key that was right.
        tried = [(found, found.psk.verify(self.once, answer)) for found in self._ring.all()]
        for found, which in tried:
            if which is not None:
                self._psk = found.psk
                self._order, self._secret = which
                self.peer = Peer(found.identity, b"", found.psk.proof_key(self._secret))
                return
        raise PeerError(CloseCode.WRONG_ANSWER)

    def _answer_due(self, step: HelloStep) -> Hello | None:
        due = step is HelloStep.CHALLENGE if self._role is Role.INITIATOR else self.done
        if not due or self._peer_once is None:
            return None
        # An acceptor has none before the initiator has proved itself, and answers only after that.
        assert self._psk is not None
        return Hello(answer=self._psk.answer(self._peer_once, self._order, self._secret))
