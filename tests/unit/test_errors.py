from __future__ import annotations

import pytest

from wsqueue.errors import AuthenticationError, ConfigError, ConnectError, InvalidMessage, WsqueueError
from wsqueue.protocol.close import UNREACHABLE, CloseCode, Closed, PeerError

RECONNECT = {
    1000: True,
    1001: True,
    1003: False,
    1006: True,
    1007: False,
    1011: True,
    1013: True,
    4400: False,
    4401: False,
    4402: False,
    4403: False,
    4404: False,
    4405: False,
    4408: True,
    4409: False,
    4410: False,
    4411: True,
    4412: False,
    4413: False,
}
"""The verdicts of the table in the protocol's description."""


def test_every_code_has_its_own_number_reason_and_verdict() -> None:
    assert {code.value: code.reconnect for code in CloseCode} == RECONNECT
    assert len(CloseCode.__members__) == len(RECONNECT)
    assert len({code.reason for code in CloseCode}) == len(RECONNECT)


@pytest.mark.parametrize("code", list(CloseCode))
def test_a_code_can_travel(code: CloseCode) -> None:
    assert code == int(code)
    assert 1000 <= code < 1016 or 4000 <= code < 5000
    assert 0 < len(code.reason.encode()) <= 123


@pytest.mark.parametrize(
    ("code", "reconnect"),
    [
        *RECONNECT.items(),
        (UNREACHABLE, True),
        (200, False),
        (301, False),
        (400, False),
        (401, False),
        (404, False),
        (426, False),
        (429, True),
        (431, False),
        (500, True),
        (502, True),
        (503, True),
        (1002, True),
        (1005, True),
        (1009, True),
        (1012, True),
        (3000, True),
        (4999, True),
    ],
)
@pytest.mark.parametrize("by_peer", [True, False])
def test_whether_to_try_again(code: int, reconnect: bool, by_peer: bool) -> None:
    assert Closed(code, "", by_peer=by_peer).reconnect == reconnect


@pytest.mark.parametrize(
    ("closed", "text"),
    [
        (Closed(1000, "done", by_peer=True), "the peer closed with 1000 (done)"),
        (Closed(4401, "wrong", by_peer=False), "we closed with 4401 (wrong)"),
        (Closed(CloseCode.GOING_AWAY, "", by_peer=True), "the peer closed with 1001"),
        (Closed(503, "HTTP Busy", by_peer=True), "the peer closed with 503 (HTTP Busy)"),
        (Closed(UNREACHABLE, "Connection refused", by_peer=True), "Connection refused"),
    ],
)
def test_why_a_connection_ended(closed: Closed, text: str) -> None:
    assert str(closed) == text


def test_closed_is_a_frozen_value() -> None:
    assert Closed(1000, "x", by_peer=True) == Closed(CloseCode.NORMAL, "x", by_peer=True)
    with pytest.raises(AttributeError):
        Closed(1000, "x", by_peer=True).code = 1001  # type: ignore[misc]


def test_peer_error() -> None:
    plain = PeerError(CloseCode.EARLY_DATA)
    assert (plain.code, plain.reason, str(plain)) == (4402, CloseCode.EARLY_DATA.reason, plain.reason)
    detailed = PeerError(CloseCode.TOPIC_TOO_LONG, "at most 3 bytes")
    assert str(detailed) == detailed.reason == "the topic is too long: at most 3 bytes"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("is bad"), "is bad"),
        (ConfigError("is bad", key="listen"), "listen: is bad"),
        (ConfigError("is bad", file="a.toml"), "a.toml: is bad"),
        (ConfigError("is bad", file="a.toml", line=3), "a.toml:3: is bad"),
        (ConfigError("is bad", file="a.toml", line=3, key="listen[0]"), "a.toml:3: listen[0]: is bad"),
    ],
)
def test_config_error(error: ConfigError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (ConfigError, [WsqueueError]),
        (InvalidMessage, [WsqueueError, ValueError]),
        (PeerError, [WsqueueError]),
        (ConnectError, [WsqueueError]),
        (AuthenticationError, [ConnectError, WsqueueError]),
    ],
)
def test_tree(kind: type[Exception], bases: list[type[Exception]]) -> None:
    assert all(issubclass(kind, base) for base in bases)
    assert not issubclass(kind, OSError)
