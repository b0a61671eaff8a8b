"""Close codes, and the ends of connections."""

from __future__ import annotations

import pytest

from wsqueue.protocol.close import UNREACHABLE, CloseCode, Closed, PeerError


def test_every_code_has_its_own_reason() -> None:
    assert len({code.reason for code in CloseCode}) == len(CloseCode.__members__)


@pytest.mark.parametrize("code", list(CloseCode))
def test_a_code_can_travel(code: CloseCode) -> None:
    assert code == int(code)
    assert 1000 <= code < 1016 or 4000 <= code < 5000
    assert 0 < len(code.reason.encode()) <= 123


@pytest.mark.parametrize(
    ("code", "reconnect"),
    [
        # docs/protocol.md has the verdict of each code.
        *((code.value, code.reconnect) for code in CloseCode),
        (CloseCode.WRONG_ANSWER, False),
        (UNREACHABLE, True),
        *((status, False) for status in (200, 301, 400, 401, 404, 426, 431)),
        *((status, True) for status in (429, 500, 502, 503)),
        *((code, True) for code in (1002, 1005, 1009, 1012, 3000, 4999)),
    ],
)
@pytest.mark.parametrize("by_peer", [True, False])
def test_reconnect(code: int, reconnect: bool, by_peer: bool) -> None:
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
def test_the_end_of_a_connection_in_words(closed: Closed, text: str) -> None:
    assert str(closed) == text


def test_peer_error() -> None:
    plain = PeerError(CloseCode.EARLY_DATA)
    assert (plain.code, plain.reason, str(plain)) == (4402, CloseCode.EARLY_DATA.reason, plain.reason)
    detailed = PeerError(CloseCode.TOPIC_TOO_LONG, "at most 3 bytes")
    assert str(detailed) == detailed.reason == "the topic is too long: at most 3 bytes"
