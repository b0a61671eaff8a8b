"""The hello of v2: both ends prove that they know the pre-shared key (PSK).

The acceptor sends a nonce, the initiator a nonce and a proof, and the acceptor its proof. A proof is an HMAC
over all values that both ends must agree on, so that it is of no use in another place, role or time. The
initiator sends its view of these values, so that the acceptor can tell another key from a proxy on the way.
"""

from __future__ import annotations

import secrets

import msgspec

from .access import KeyRing, Peer, key_or_ring
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
        key: Name of the initiator's key, "" for none.
        token: Claims of the initiator's token, b"" for none.
        unbound: True if an initiator need not name the certificate.
        prefix: Path that a proxy may have removed from the request.
    """

    path: str
    offered: str
    channel_binding: bytes
    key: str = ""
    token: bytes = b""
    unbound: bool = False
    prefix: str = ""

    def check(self, path: str, binding: bytes) -> None:
        """Compare with the path and the certificate that an initiator with the key has seen.

        A topic behind `/subscribe` may differ, because v2 takes topics from packets.

        Raises:
            PeerError: They differ: something on the way ends TLS or rewrites requests.
        """
        if binding != self.channel_binding and (binding or not self.unbound):
            if self.unbound:
                detail = 'a proxy ends TLS: set channel_binding = "none" there'
                raise PeerError(CloseCode.ALTERED, detail)
            seen = "another certificate" if binding else "no TLS"
            raise PeerError(CloseCode.ALTERED, f"the peer sees {seen} at its end")
        if _endpoint(path) not in (_endpoint(self.path), _endpoint(self.prefix + self.path)):
            raise PeerError(CloseCode.ALTERED, f"{path[:24]} was asked for, {self.path[:24]} came")

    def claim(self, prover: Role, acceptor_nonce: bytes, initiator_nonce: bytes) -> bytes:
        """Return the bytes that a proof signs: each part with its length, so that none passes for another."""
        label, path, offered = map(str.encode, (f"wsqueue.v2 {prover.value}", self.path, self.offered))
        parts = [label, acceptor_nonce, initiator_nonce, path, offered, self.channel_binding]
        if self.key or self.token:
            parts += [self.key.encode(), self.token]
        return b"".join(len(part).to_bytes(4) + part for part in parts)


class V2Handshake:
    """Take one end through the hello of v2.

    Args:
        role: The end.
        keys: The key to prove and to verify with; an acceptor's are a ring.
        context: The values that both ends must agree on.
        now: Unix time, by which an acceptor judges tokens.

    Attributes:
        done: True when both ends have proved themselves.
        peer: The initiator, once it has proved itself.
        claimed: The name of its key, and of its token's user, as it says them; "" for none.
    """

    __slots__ = (
        "_context",
        "_nonce",
        "_now",
        "_peer_nonce",
        "_psk",
        "_ring",
        "_role",
        "_secret",
        "_state",
        "claimed",
        "done",
        "peer",
    )

    def __init__(self, role: Role, keys: PreSharedKey | KeyRing, context: Context, now: float = 0.0) -> None:
        self._role, self._context, self._now = role, context, now
        self._psk, self._ring = key_or_ring(role, keys)
        if self._psk is not None:
            key, token = _key_name(self._psk), self._psk.token
            self._context = msgspec.structs.replace(context, key=key, token=token)
        self.peer: Peer | None = None
        self.claimed = ""
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
            answer = Proof(
                self._prove(),
                self._nonce,
                context.path,
                context.channel_binding or None,
                context.key or None,
                context.token or None,
            )
        elif self._role is Role.ACCEPTOR:
            answer = self._receive_initiators(packet)
        else:
            if packet != Proof(packet.proof):
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
        assert self._ring is not None
        self._peer_nonce = packet.nonce
        binding, key, token = packet.binding or b"", packet.key or "", packet.token or b""
        ours = self._context
        self._context = Context(packet.path, ours.offered, binding, key, token)
        found = self._ring.find(key, token, self._now)
        self._psk, self.claimed = found.psk, str(found.identity) or key
        self._verify(packet.proof)
        ours.check(packet.path, binding)
        if found.problem:
            raise PeerError(CloseCode.TOKEN_ENDED, found.problem)
        self.peer = Peer(found.identity, token, found.psk.proof_key(self._secret))
        return Proof(self._prove())

    def _prove(self) -> bytes:
        assert self._psk is not None
        return self._psk.prove(self._claim(self._role), self._secret)

    def _verify(self, proof: bytes) -> None:
        peer = Role.INITIATOR if self._role is Role.ACCEPTOR else Role.ACCEPTOR
        assert self._psk is not None
        secret = self._psk.verify_proof(self._claim(peer), proof)
        # An initiator has proved with its first secret, and must know that the peer has the same one.
        if secret is None or (self._role is Role.INITIATOR and secret != self._secret):
            raise PeerError(CloseCode.WRONG_ANSWER)
        self._secret = secret

    def _claim(self, prover: Role) -> bytes:
        nonces = (self._nonce, self._peer_nonce)
        acceptor, initiator = nonces if self._role is Role.ACCEPTOR else nonces[::-1]
        return self._context.claim(prover, acceptor, initiator)


def _key_name(psk: PreSharedKey) -> str:
    """Return the name of a key for the hello, "" for a token: its claims have the name."""
    return "" if psk.token else psk.name


def _endpoint(path: str) -> str:
    """Return a path without the topic that may follow `/subscribe/`."""
    before, subscribe, _topic = path.partition("/subscribe/")
    return before + subscribe.rstrip("/")
