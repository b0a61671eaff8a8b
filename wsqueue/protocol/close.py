"""How connections end: close codes, and errors that carry them."""

from __future__ import annotations

import enum
from http import HTTPStatus
from typing import Self

import msgspec

from ..errors import WsqueueError


class CloseCode(enum.IntEnum):
    """List the close codes that a node sends, with their reason and reconnect verdict.

    Codes below 4000 are RFC 6455 section 7.4.1 and the IANA registry; 4000 to 4999 are private use
    (RFC 6455 section 7.4.2). ``reconnect`` says whether the same attempt could succeed later.
    """

    reason: str
    reconnect: bool

    def __new__(cls, code: int, reason: str, reconnect: bool) -> Self:
        """Attach the reason and the verdict to the number."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.reason = reason
        member.reconnect = reconnect
        return member

    NORMAL = 1000, "done", True
    GOING_AWAY = 1001, "going away", True
    UNSUPPORTED_DATA = 1003, "packets of v2 are binary messages, classic ones are texts", False
    ABNORMAL = 1006, "connection lost", True
    INVALID_TEXT = 1007, "a text message is not valid UTF-8", False
    INTERNAL_ERROR = 1011, "internal error", True
    TRY_AGAIN_LATER = 1013, "too slow: the write buffer for this peer is full", True
    INVALID_PACKET = 4400, "not a valid packet", False
    WRONG_ANSWER = 4401, "wrong answer: the pre-shared keys differ", False
    EARLY_DATA = 4402, "data before the hello was done", False
    SECOND_ANSWER = 4403, "a second answer in the hello", False
    SECOND_CHALLENGE = 4404, "a second challenge in the hello", False
    REFLECTED_CHALLENGE = 4405, "our own challenge was sent back", False
    HELLO_TIMEOUT = 4408, "the hello took too long", True
    UNEXPECTED_PACKET = 4409, "this endpoint does not take that packet", False
    TOPIC_TOO_LONG = 4410, "the topic is too long", False
    PING_TIMEOUT = 4411, "no answer to a keepalive ping", True
    CLASSIC_REFUSED = 4412, "this end does not speak the classic protocol", False
    TOO_MANY_TOPICS = 4413, "too many topics on one connection", False
    ALTERED = 4414, "the connection is altered on its way", False
    TOO_MANY_SUBSCRIPTIONS = 4415, "too many subscriptions on this node", True
    NOT_ALLOWED = 4416, "this key does not allow it", False
    TOKEN_ENDED = 4417, "the token is not valid: expected a new one", False
    DISCONNECTED = 4418, "an operator has ended the connection", True


UNREACHABLE = 0
"""Code of a connection that was never made."""

_DATA_REFUSED = {
    1002,  # protocol error, and
    1009,  # message too big, which the WebSocket library sends (RFC 6455 section 7.4.1)
    CloseCode.UNSUPPORTED_DATA,
    CloseCode.INVALID_TEXT,
    CloseCode.INVALID_PACKET,
    CloseCode.UNEXPECTED_PACKET,
    CloseCode.TOPIC_TOO_LONG,
}

_RECONNECT = {code.value: code.reconnect for code in CloseCode}


class Closed(msgspec.Struct, frozen=True):
    """Give the reason why a connection ended.

    Attributes:
        code: WebSocket close code (1000 to 4999), or the HTTP status (below 1000) that refused the
            upgrade, or `UNREACHABLE`.
        reason: One sentence.
        by_peer: True if the peer closed first.
    """

    code: int
    reason: str
    by_peer: bool

    @property
    def reconnect(self) -> bool:
        """Return True if the same attempt could succeed later."""
        if self.code == UNREACHABLE:
            return True
        if self.code < 1000:
            return self.code >= 500 or self.code == HTTPStatus.TOO_MANY_REQUESTS
        return _RECONNECT.get(self.code, True)

    @property
    def data_refused(self) -> bool:
        """Return True if the peer ended the connection because of data that it would refuse again."""
        return self.by_peer and self.code in _DATA_REFUSED

    def __str__(self) -> str:
        if self.code == UNREACHABLE:
            return self.reason
        end = "the peer" if self.by_peer else "we"
        return f"{end} closed with {self.code}" + (f" ({self.reason})" if self.reason else "")


class PeerError(WsqueueError):
    """Carry the close code with which to answer a peer that broke the protocol."""

    def __init__(self, code: CloseCode, detail: str = "") -> None:
        self.code = code
        self.reason = f"{code.reason}: {detail}" if detail else code.reason
        super().__init__(self.reason)
