"""The hello of v2: both ends prove that they know the pre-shared key (PSK).

The acceptor sends a nonce, the initiator a nonce and a proof, and the acceptor its proof. A proof is an HMAC
over all values that both ends must agree on, so that it is of no use in another place, role or time. The
initiator sends its view of these values, so that the acceptor can tell another key from a proxy on the way.
"""

from __future__ import annotations

import secrets

import msgspec

from .close import CloseCode, PeerError
from .hello import HelloState, HelloStep
from .keys import PreSharedKey, Role
from .v2 import HELLO_PACKETS, NONCE_BYTES, Challenge, HelloPacket, Proof, decode

TRANSITIONS_V2: dict[tuple[Role, HelloState, HelloStep], HelloState | CloseCode] = {
    (Role.ACCEPTOR, HelloState.NOTHING, HelloStep.CHALLENGE): CloseCode.UNEXPECTED_PACKET,
    (Role.ACCEPTOR, HelloState.NOTHING, HelloStep.ANSWER): HelloState.DONE,
    (Role.ACCEPTOR, HelloState.DONE, HelloStep.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (Role.ACCEPTOR, HelloState.DONE, HelloStep.ANSWER): CloseCode.SECOND_ANSWER,
    (Role.INITIATOR, HelloState.NOTHING, HelloStep.CHALLENGE): HelloState.CHALLENGED,
    (Role.INITIATOR, HelloState.NOTHING, HelloStep.ANSWER): CloseCode.UNEXPECTED_PACKET,
    (Role.INITIATOR, HelloState.CHALLENGED, HelloStep.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (Role.INITIATOR, HelloState.CHALLENGED, HelloStep.ANSWER): HelloState.DONE,
    (Role.INITIATOR, HelloState.DONE, HelloStep.CHALLENGE): CloseCode.SECOND_CHALLENGE,
    (Role.INITIATOR, HelloState.DONE, HelloStep.ANSWER): CloseCode.SECOND_ANSWER,
}


class Context(msgspec.Struct, frozen=True):
    """Hold the values that both ends of a v2 hello must agree on, besides the key and the nonces.

    Attributes:
        path: Path and query of the request, as they were sent.
        offered: The subprotocols that the initiator offered, as they were sent.
        channel_binding: SHA-256 of the acceptor's certificate, b"" without TLS (RFC 5929 section 4).
    """

    path: str
    offered: str
    channel_binding: bytes

    def check(self, path: str, binding: bytes) -> None:
        """Compare with the path and the certificate that an initiator with the key has seen.

        A topic behind `/subscribe` may differ, because v2 takes topics from packets.

        Raises:
            PeerError: They differ: something on the way ends TLS or rewrites requests.
        """
        if binding != self.channel_binding:
            seen = "another certificate" if binding else "no TLS"
            raise PeerError(CloseCode.ALTERED, f"the peer sees {seen} at its end")
        if _endpoint(path) != _endpoint(self.path):
            raise PeerError(CloseCode.ALTERED, f"{path[:24]} was asked for, {self.path[:24]} came")

    def claim(self, prover: Role, acceptor_nonce: bytes, initiator_nonce: bytes) -> bytes:
        """Return the bytes that a proof signs: each part with its length, so that none passes for another."""
        label, path, offered = map(str.encode, (f"wsqueue.v2 {prover.value}", self.path, self.offered))
        parts = (label, acceptor_nonce, initiator_nonce, path, offered, self.channel_binding)
        return b"".join(len(part).to_bytes(4) + part for part in parts)


class V2Handshake:
    """Take one end through the hello of v2.

    Args:
        role: The end.
        psk: The key to prove and to verify with.
        context: The values that both ends must agree on.

    Attributes:
        done: True when both ends have proved themselves.
    """

    __slots__ = ("_context", "_nonce", "_peer_nonce", "_psk", "_role", "_secret", "_state", "done")

    def __init__(self, role: Role, psk: PreSharedKey, context: Context) -> None:
        self._role, self._psk, self._context = role, psk, context
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._peer_nonce = b""
        self._secret = 0
        self._state = HelloState.NOTHING
        self.done = False

    def begin(self) -> HelloPacket | None:
        """Return the first packet of this end: an acceptor's challenge, None for an initiator."""
        return Challenge(self._nonce) if self._role is Role.ACCEPTOR else None

    def receive(self, packet: HelloPacket) -> HelloPacket | None:
        """Take a packet of the peer; return our answer if one is due.

        Raises:
            PeerError: The peer does not know the key or breaks the order of the hello.
        """
        step = HelloStep.CHALLENGE if isinstance(packet, Challenge) else HelloStep.ANSWER
        state = TRANSITIONS_V2[self._role, self._state, step]
        if isinstance(state, CloseCode):
            raise PeerError(state)
        answer: HelloPacket | None = None
        if isinstance(packet, Challenge):
            self._peer_nonce = packet.nonce
            context = self._context
            answer = Proof(self._prove(), self._nonce, context.path, context.channel_binding or None)
        elif self._role is Role.ACCEPTOR:
            answer = self._receive_initiators(packet)
        else:
            if packet.nonce is not None or packet.path is not None or packet.binding is not None:
                raise PeerError(CloseCode.INVALID_PACKET, "an acceptor's proof has nothing else")
            self._verify(packet.proof)
        self._state = state
        self.done = state is HelloState.DONE
        return answer

    def receive_payload(self, payload: bytes) -> HelloPacket | None:
        """Take a packet as it came; return our answer if one is due.

        Raises:
            PeerError: As `receive`; or the payload is no packet of the hello.
        """
        packet = decode(payload)
        if not isinstance(packet, HELLO_PACKETS):
            raise PeerError(CloseCode.EARLY_DATA)
        return self.receive(packet)

    def refusal(self) -> None:
        """Return None: the close code tells a peer of v2 that its proof was wrong."""

    def _receive_initiators(self, packet: Proof) -> Proof:
        """Verify an initiator's proof in its own view of the connection, and compare with ours only then.

        So only a peer with the key learns that the views differ, and a wrong key is not taken for that.
        """
        if packet.nonce is None or packet.path is None:
            raise PeerError(CloseCode.INVALID_PACKET, "an initiator's proof has a nonce and a path")
        self._peer_nonce = packet.nonce
        binding = packet.binding or b""
        ours, self._context = self._context, Context(packet.path, self._context.offered, binding)
        self._verify(packet.proof)
        ours.check(packet.path, binding)
        return Proof(self._prove())

    def _prove(self) -> bytes:
        return self._psk.prove(self._claim(self._role), self._secret)

    def _verify(self, proof: bytes) -> None:
        peer = Role.INITIATOR if self._role is Role.ACCEPTOR else Role.ACCEPTOR
        secret = self._psk.verify_proof(self._claim(peer), proof)
        # An initiator has proved with its first secret, and must know that the peer has the same one.
        if secret is None or (self._role is Role.INITIATOR and secret != self._secret):
            raise PeerError(CloseCode.WRONG_ANSWER)
        self._secret = secret

    def _claim(self, prover: Role) -> bytes:
        nonces = (self._nonce, self._peer_nonce)
        acceptor, initiator = nonces if self._role is Role.ACCEPTOR else nonces[::-1]
        return self._context.claim(prover, acceptor, initiator)


def _endpoint(path: str) -> str:
    """Return a path without the topic that may follow `/subscribe/`."""
    before, subscribe, _topic = path.partition("/subscribe/")
    return before + subscribe.rstrip("/")
