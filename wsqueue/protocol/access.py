"""The identity of a peer and its rights: names, rights by topic, and tokens. No I/O and no clock.

```
proof {key, token} ──► KeyRing.find ──► Found ── the proof is right ──► Peer ──► Identity: its rights
classic answer ──────► KeyRing.all ───► one for each key ── an answer is right ──┘
```

A token is a key that was made from another one and ends by itself. Whoever knows a key can make tokens of it
(docs/security.md, "Tokens"): the token's claims, and as its secret an HMAC of them. A node makes the same
secret from the claims in the hello, so that it keeps no list of tokens.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import msgspec

from .classic import DECODE_ERRORS
from .keys import MAX_TOKEN_BYTES, PreSharedKey, Role

TOKEN_TOLERANCE_SECONDS = 60.0
"""How long a token is taken before it is issued and after it ends: clocks of hosts differ by less."""

MAX_WHO_CHARACTERS = 64
"""Length of the name of a token's user, which is in the journal."""

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$"
"""Form of the name of a key: it is a part of file names, of public ids and of labels of metrics."""

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
TopicPattern = Annotated[str, msgspec.Meta(min_length=1, max_length=2600)]
"""A topic, or the beginning of topics with `*` behind it."""


class Rights(msgspec.Struct, frozen=True):
    """Hold the rights of somebody.

    Attributes:
        publish: Topics that may be published to; `orders/*` stands for all that begin with `orders/`.
        subscribe: Topics that may be subscribed to.
        groups: Worker groups that may be joined, and names of readers, on topics that may be subscribed to;
            patterns as for topics.
        status: True if reports may be read.
        operator: True if topics may be listed and purged, groups ended, and clients disconnected.
    """

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    status: bool = False
    operator: bool = False


class Identity(msgspec.Struct, frozen=True):
    """Say who a peer is, once it has proved itself.

    Attributes:
        name: Name of its key, "" for the pre-shared key that may do everything.
        who: The user of a token, "" without one.
        rights: Each of these must allow an action; none allow everything.
        ends: Unix time at which its connection ends, None for never.
    """

    name: str = ""
    who: str = ""
    rights: tuple[Rights, ...] = ()
    ends: float | None = None

    def may_publish(self, topic: str) -> bool:
        """Return True if it may publish to a topic."""
        return all(_allows(rights.publish, topic) for rights in self.rights)

    def may_subscribe(self, topic: str) -> bool:
        """Return True if it may subscribe to a topic."""
        return all(_allows(rights.subscribe, topic) for rights in self.rights)

    def may_follow(self, prefix: str) -> bool:
        """Return True if it may subscribe to all topics that begin with a prefix."""
        return all(any(_covers(one, prefix) for one in rights.subscribe) for rights in self.rights)

    def may_join(self, group: str) -> bool:
        """Return True if it may join a worker group, or read as a reader with that name, on its topics."""
        return all(_allows(rights.groups, group) for rights in self.rights)

    @property
    def may_read_reports(self) -> bool:
        """Return True if it may read the reports of a node."""
        return all(rights.status for rights in self.rights)

    @property
    def may_operate(self) -> bool:
        """Return True if it may list, purge, forget and disconnect, as operators do."""
        return all(rights.operator for rights in self.rights)

    def __str__(self) -> str:
        return f"{self.name}:{self.who}" if self.who else self.name


ANYBODY = Identity()
"""A peer with the pre-shared key that has no name."""


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Hold the claims of a token, which travel as JSON.

    Attributes:
        issued: Unix time at which it was made.
        expires: Unix time at which it ends.
        key: Name of the key that made it, "" for the one without a name.
        who: Its user.
        publish: Topics that may be published to, as far as the key may.
        subscribe: Topics that may be subscribed to, as far as the key may.
        groups: Worker groups that may be joined, and names of readers, as far as the key may.
        status: True if reports may be read, if the key may.
        operator: True if its user is an operator, if the key may be one.
    """

    issued: Annotated[float, msgspec.Meta(ge=0, le=2**53)]
    expires: Annotated[float, msgspec.Meta(ge=0, le=2**53)]
    key: Annotated[str, msgspec.Meta(max_length=32)] = ""
    who: Annotated[str, msgspec.Meta(max_length=MAX_WHO_CHARACTERS)] = ""
    publish: tuple[TopicPattern, ...] = ()
    subscribe: tuple[TopicPattern, ...] = ()
    groups: tuple[TopicPattern, ...] = ()
    status: bool = False
    operator: bool = False

    @property
    def rights(self) -> Rights:
        """Return the rights that it claims."""
        return Rights(self.publish, self.subscribe, self.groups, self.status, self.operator)

    def problem(self, not_before: float, now: float) -> str:
        """Return why the token is not valid now, "" if it is.

        Args:
            not_before: Unix time since which tokens of the key are taken.
            now: Unix time.
        """
        if now >= self.expires + TOKEN_TOLERANCE_SECONDS:
            return f"it ended {now - self.expires:.0f} seconds ago"
        if now < self.issued - TOKEN_TOLERANCE_SECONDS:
            return f"it begins in {self.issued - now:.0f} seconds, by the clock of this node"
        return "tokens of that time are revoked" if self.issued < not_before else ""


class NamedKey(msgspec.Struct, frozen=True):
    """Hold a key and its rights.

    Attributes:
        psk: The key, with its name.
        rights: Its rights, None for all.
        not_before: Unix time since which its tokens are taken.
    """

    psk: PreSharedKey
    rights: Rights | None
    not_before: float = 0.0

    @property
    def identity(self) -> Identity:
        """Return who knows this key."""
        return Identity(self.psk.name, rights=() if self.rights is None else (self.rights,))


class Found(msgspec.Struct, frozen=True):
    """Hold the key with which a peer must have made its proof.

    Attributes:
        psk: The key.
        identity: Who the peer is if the proof is right.
        problem: Why a token is not valid, though the proof may be right.
    """

    psk: PreSharedKey
    identity: Identity = ANYBODY
    problem: str = ""


class Peer(msgspec.Struct, frozen=True):
    """Hold the identity and the key that a peer has proved; the key is hidden.

    Attributes:
        identity: Who it is.
        token: The claims of its token, b"" without one.
        proof_key: The key that it has proved to know.
    """

    identity: Identity
    token: bytes
    proof_key: bytes

    def __repr__(self) -> str:
        return f"Peer({str(self.identity)!r})"


BEARER = "`Authorization: Bearer`"
"""Where each request may have a credential (RFC 6750 section 2.1)."""


class BearerError(ValueError):
    """Say why a bearer is not taken, without the bearer.

    Attributes:
        claimed: The name and the user that a token claims, "" for none.
    """

    def __init__(self, reason: str, claimed: str = "") -> None:
        super().__init__(reason)
        self.claimed = claimed


class KeyRing:
    """Hold the keys that an acceptor takes, with and without names.

    Args:
        psk: The key that may do everything, if there is one.
        named: Keys with names, all of which differ.
        tokens: Whether tokens are taken.
    """

    __slots__ = ("_keys", "_tokens", "_unknown")

    def __init__(
        self, psk: PreSharedKey | None, named: Iterable[NamedKey] = (), *, tokens: bool = True
    ) -> None:
        self._tokens = tokens
        self._keys = {} if psk is None else {"": NamedKey(psk, None)}
        self._keys |= {key.psk.name: key for key in named}
        # Nobody can prove this one; to try it takes as long as to try any other.
        self._unknown = Found(PreSharedKey(secrets.token_hex()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyRing) and (self._keys, self._tokens) == (other._keys, other._tokens)

    __hash__ = None  # type: ignore[assignment]

    def all(self) -> Iterator[Found]:
        """Return all keys, for a hello that does not name them."""
        for key in self._keys.values():
            yield Found(key.psk, key.identity)

    def find(self, name: str, token: bytes, now: float) -> Found:
        """Return the key with which a peer must have made its proof.

        Args:
            name: The name of its key, "" for none.
            token: The claims of its token, b"" for none.
            now: Unix time.
        """
        if token:
            return self._find_token(token, now)
        key = self._keys.get(name)
        return self._unknown if key is None else Found(key.psk, key.identity)

    def still_takes(self, peer: Peer, now: float) -> bool:
        """Return True if a peer would be taken with the same key again, and might do the same as before.

        Args:
            peer: The peer, which another key ring has taken.
            now: Unix time.
        """
        found = self.find(peer.identity.name, peer.token, now)
        return found.identity == peer.identity and not found.problem and found.psk.proves_with(peer.proof_key)

    def find_bearer(self, bearer: str, now: float, place: str = BEARER) -> Peer:
        """Return the peer that a bearer belongs to.

        Args:
            bearer: A token or the key of a name, as text; "" if the peer has shown nothing.
            now: Unix time.
            place: Where a request has it, for the error.

        Raises:
            BearerError: It is neither here, or the token is not valid.
        """
        if not bearer:
            raise BearerError(f"expected {place} with a token, or with the key of a name")
        try:
            token, secret = split_token(bearer)
        except ValueError:
            token, secret = b"", bearer
        keys = [self.find("", token, now)] if token else [found for found in self.all() if found.psk.name]
        # All are compared, so that the time does not tell which one is alike.
        indices = [found.psk.index_of(secret) for found in keys]
        for found, index in zip(keys, indices, strict=True):
            if index is not None:
                if found.problem:
                    raise BearerError(f"the token is not valid: {found.problem}", str(found.identity))
                return Peer(found.identity, token, found.psk.proof_key(index))
        claimed = str(keys[0].identity) if token else ""
        nameless = self._keys.get("")
        if not token and nameless is not None and nameless.psk.index_of(secret) is not None:
            raise BearerError("this key has no name: expected a token, or the key of a client with a name")
        raise BearerError("this is neither a valid token nor the key of a client with a name", claimed)

    def _find_token(self, token: bytes, now: float) -> Found:
        try:
            claims = decode_claims(token)
        except ValueError:
            return self._unknown
        maker = self._keys.get(claims.key) if self._tokens else None
        if maker is None:
            # The name that it claims is for the journal: nobody can prove it.
            return Found(self._unknown.psk, Identity(claims.key, claims.who, (Rights(),)))
        rights = (*maker.identity.rights, claims.rights)
        identity = Identity(claims.key, claims.who, rights, claims.expires + TOKEN_TOLERANCE_SECONDS)
        return Found(PreSharedKey(*maker.psk.lend(token)), identity, claims.problem(maker.not_before, now))


def key_or_ring(role: Role, keys: PreSharedKey | KeyRing) -> tuple[PreSharedKey | None, KeyRing | None]:
    """Return the key of an initiator, or the ring of an acceptor, which knows its key only from the peer."""
    if role is Role.ACCEPTOR:
        return None, keys if isinstance(keys, KeyRing) else KeyRing(keys)
    assert isinstance(keys, PreSharedKey)
    return keys, None


def split_token(text: str) -> tuple[bytes, str]:
    """Return the claims and the secret in the text of a token.

    Raises:
        ValueError: It is none; the error does not have the text.
    """
    encoded, _, secret = text.partition(".")
    try:
        signed = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        decode_claims(signed)
    except ValueError:
        signed = b""
    if not signed or not secret:
        raise ValueError("the text is no token: expected the output of `wsqueue token`") from None
    return signed, secret


def is_pattern(text: str) -> bool:
    """Return True if a text is a topic, or the beginning of topics with one `*` behind it."""
    return bool(text) and "*" not in text[:-1]


def matches(pattern: str, topic: str) -> bool:
    """Return True if a topic is a pattern, or begins with one that has a `*` behind it."""
    return topic.startswith(pattern[:-1]) if pattern.endswith("*") else topic == pattern


def _covers(pattern: str, prefix: str) -> bool:
    """Return True if all topics that begin with a prefix match a pattern."""
    return pattern.endswith("*") and prefix.startswith(pattern[:-1])


def decode_claims(signed: bytes) -> Claims:
    """Decode the claims of a token.

    Raises:
        ValueError: They are none, or longer than a node takes.
    """
    if len(signed) > MAX_TOKEN_BYTES:
        raise ValueError(f"the claims have {len(signed)} bytes, expected at most {MAX_TOKEN_BYTES}")
    try:
        return _claims_decoder.decode(signed)
    except DECODE_ERRORS as error:
        raise ValueError(f"not the claims of a token: {error}") from None


def _allows(patterns: Sequence[str], name: str) -> bool:
    return any(matches(pattern, name) for pattern in patterns)


_claims_decoder = msgspec.json.Decoder(Claims)
