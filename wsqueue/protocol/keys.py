"""The pre-shared key, the keys derived from it, and the two ends and orders in which it is proved.

```
key ──HKDF "wsqueue proof"──► proves claims in the hello of v2
    ──HKDF "wsqueue token"──► HMAC of a token's claims ──► the token's secret, a key like any other
    ──────────────────────► answers in the classic hello, whose wire demands the key itself
```
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import re

from .base64url import base64url

PROOF_USE = "wsqueue proof"
LENDING_USE = "wsqueue token"
"""The uses of a secret, from which `derive` makes keys of their own."""

MAX_TOKEN_BYTES = 4096
"""Maximum size of a token's claims: a hundred topics, and a small part of the 64 KiB of a stranger."""

FINGERPRINT_SALT = b"wsqueue fingerprint"
"""Salt of all fingerprints: the same everywhere, so that they can be compared."""

FINGERPRINT_COST = 4096
"""Cost of scrypt (RFC 7914): 4 MiB and about 10 ms, cheap for a start and expensive for guessing."""


class Role(enum.Enum):
    """Tell the end that opened the connection from the end that accepted it."""

    ACCEPTOR = "acceptor"
    INITIATOR = "initiator"


class Order(enum.Enum):
    """Name the part that comes first in the digest: the challenge (document) or the key (reversed)."""

    DOCUMENT = "document"
    REVERSED = "reversed"


def derive(secret: bytes, use: str) -> bytes:
    """Return the key for one use of a secret, 32 bytes: HKDF-SHA-256 without salt (RFC 5869)."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, use.encode() + b"\x01", "sha256")


class PreSharedKey:
    """Hold the key, and never show it: not in repr, not in an exception, not in a pickle.

    Args:
        secret: Secret that an initiator uses.
        others: Secrets that an acceptor takes too, while keys are rotated.
        name: Name under which the acceptor knows the key, "" for the one that may do everything.

    Attributes:
        name: See above.
        token: The claims of a token as they were signed, b"" if this is no token.

    Raises:
        ValueError: The key cannot be UTF-8.
    """

    __slots__ = ("_proof_keys", "_secrets", "name", "token")

    def __init__(self, secret: str, *others: str, name: str = "") -> None:
        # Not left to encode(), whose exception holds the key.
        if any(re.search("[\ud800-\udfff]", text) for text in (secret, *others)):
            raise ValueError("the pre-shared key is not UTF-8")
        self.name, self.token = name, b""
        self._secrets = [text.encode() for text in (secret, *others)]
        self._proof_keys = [derive(secret, PROOF_USE) for secret in self._secrets]

    def __repr__(self) -> str:
        return "PreSharedKey(<hidden>)"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PreSharedKey)
            and (self.name, self.token) == (other.name, other.token)
            and len(self._secrets) == len(other._secrets)
            and all(map(hmac.compare_digest, self._secrets, other._secrets))
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> str:
        raise TypeError("a pre-shared key is not pickled")

    def shares(self, other: PreSharedKey) -> bool:
        """Return True if the keys have a secret in common."""
        return any(hmac.compare_digest(mine, theirs) for mine in self._secrets for theirs in other._secrets)

    def joined(self, other: PreSharedKey) -> PreSharedKey:
        """Return a key without a name with the secrets of two."""
        both = PreSharedKey("")
        both._secrets = self._secrets + other._secrets
        both._proof_keys = self._proof_keys + other._proof_keys
        return both

    def lend(self, claims: bytes) -> list[str]:
        """Return the secret of the token with some claims, for each secret of this key."""
        lending_keys = (derive(secret, LENDING_USE) for secret in self._secrets)
        return [base64url(hmac.digest(key, claims, "sha256")) for key in lending_keys]

    def index_of(self, secret: str) -> int | None:
        """Return the index of a secret, None if this key does not have it; in constant time."""
        given = secret.encode(errors="replace")
        matches = [hmac.compare_digest(mine, given) for mine in self._secrets]
        return matches.index(True) if True in matches else None

    def proof_key(self, index: int) -> bytes:
        """Return the key with which one of the secrets proves claims: it must not be shown either."""
        return self._proof_keys[index]

    def proves_with(self, proof_key: bytes) -> bool:
        """Return True if one of the secrets has this proof key."""
        return any(hmac.compare_digest(mine, proof_key) for mine in self._proof_keys)

    def fingerprints(self) -> list[str]:
        """Return 8 hexadecimal digits for each secret, to tell keys apart; slow to guess a key from."""
        return [
            hashlib.scrypt(secret, salt=FINGERPRINT_SALT, n=FINGERPRINT_COST, r=8, p=1, dklen=4).hex()
            for secret in self._secrets
        ]

    def answer(self, once: int, order: Order, index: int = 0) -> str:
        """Return the base64 answer to a challenge with one of the secrets (seed document, section Hello)."""
        challenge = format(once, "x").encode()
        parts = (challenge, self._secrets[index])
        digest = hashlib.sha256(b"".join(parts if order is Order.DOCUMENT else parts[::-1])).digest()
        return base64.b64encode(digest).decode()

    def verify(self, once: int, answer: str) -> tuple[Order, int] | None:
        """Return the order and the index of the secret by which `answer` is right, or None; constant time."""
        given = answer.encode()
        matches = {
            (order, index): hmac.compare_digest(self.answer(once, order, index).encode(), given)
            for order in Order
            for index in range(len(self._secrets))
        }
        return next((found for found, match in matches.items() if match), None)

    def prove(self, claim: bytes, index: int = 0) -> bytes:
        """Return the proof of a claim with one of the secrets: HMAC-SHA256 (RFC 2104)."""
        return hmac.digest(self._proof_keys[index], claim, "sha256")

    def verify_proof(self, claim: bytes, proof: bytes) -> int | None:
        """Return the index of the secret with which `proof` proves a claim, or None; in constant time."""
        matches = [
            hmac.compare_digest(self.prove(claim, index), proof) for index in range(len(self._secrets))
        ]
        return matches.index(True) if True in matches else None
