"""Tokens: keys that somebody with a key lends to somebody else, until they end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Self

import msgspec

from ..protocol.access import Claims, decode_claims, is_pattern, split_token
from ..protocol.base64url import base64url
from ..protocol.keys import PreSharedKey


class Token(PreSharedKey):
    """Hold a token, and show its secret only in `text`.

    Args:
        text: The token, as `text` has it.

    Attributes:
        claims: Its claims.

    Raises:
        ValueError: The text is no token.
    """

    __slots__ = ("claims",)

    def __init__(self, text: str) -> None:
        signed, secret = split_token(text.strip())
        claims = decode_claims(signed)
        super().__init__(secret, name=claims.key)
        self.token, self.claims = signed, claims

    @classmethod
    def make(
        cls,
        key: str | PreSharedKey,
        *,
        name: str = "",
        who: str = "",
        publish: Iterable[str] = (),
        subscribe: Iterable[str] = (),
        groups: Iterable[str] = (),
        status: bool = False,
        operator: bool = False,
        seconds: float = 3600.0,
        now: float | None = None,
    ) -> Self:
        """Make a token of a key.

        Args:
            key: The key.
            name: Name of the key, if the nodes know it under one.
            who: The user of the token, at most 64 characters, for the journals of the nodes.
            publish: Topics that may be published to, as far as the key may: `orders/*` stands for all that
                begin with `orders/`.
            subscribe: Topics that may be subscribed to, as far as the key may.
            groups: Worker groups that may be joined, and names of readers, on those topics, as far as the key
                may.
            status: Whether reports may be read, if the key may.
            operator: Whether its user may list and purge topics, end groups, and disconnect clients, if the
                key may.
            seconds: How long it lasts.
            now: Unix time at which it begins, by default that of this host.

        Raises:
            ValueError: A value cannot be used, or the claims are longer than nodes take.
        """
        psk = PreSharedKey(key, name=name) if isinstance(key, str) else key
        begin = time.time() if now is None else now
        claims = Claims(
            round(begin, 3),
            round(begin + seconds, 3),
            psk.name,
            who,
            _patterns(publish, "publish"),
            _patterns(subscribe, "subscribe"),
            _patterns(groups, "groups"),
            status,
            operator,
        )
        signed = msgspec.json.encode(claims)
        decode_claims(signed)
        return cls(f"{base64url(signed)}.{psk.lend(signed)[0]}")

    @property
    def text(self) -> str:
        """Return the token: its claims and its secret, which only its user may see."""
        return f"{base64url(self.token)}.{self._secrets[0].decode()}"

    def __repr__(self) -> str:
        return f"Token({self.claims.key!r}, who={self.claims.who!r}, secret=<hidden>)"


def _patterns(topics: Iterable[str], name: str) -> tuple[str, ...]:
    """Return patterns of topics.

    Raises:
        ValueError: One of them is none.
    """
    if isinstance(topics, str):
        raise ValueError(f"{name} is a str: expected a list of topics")  # noqa: TRY004 - as for other values
    patterns = tuple(topics)
    for pattern in patterns:
        if not is_pattern(pattern):
            raise ValueError(f"{name} has {pattern!r}: expected a topic, or its beginning and one *")
    return patterns
