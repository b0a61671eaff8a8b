"""The exceptions that users see."""

from __future__ import annotations

import errno
import os

import pytest

from wsqueue.errors import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    GapError,
    InvalidMessage,
    WsqueueError,
    why,
)
from wsqueue.protocol.close import PeerError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("is bad"), "is bad"),
        (ConfigError("is bad", key="listen"), "listen: is bad"),
        (ConfigError("is bad", file="a.toml"), "a.toml: is bad"),
        (ConfigError("is bad", file="a.toml", line=3), "a.toml:3: is bad"),
        (ConfigError("is bad", file="a.toml", line=3, key="listen[0]"), "a.toml:3: listen[0]: is bad"),
        (GapError("news", 3), "3 messages of topic 'news' are gone"),
        (GapError("news", None), "some messages of topic 'news' are gone"),
    ],
)
def test_the_text_of_an_error(error: WsqueueError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(errno.ECONNREFUSED, "Connect call failed ('::1', 1, 0, 0)"),
            os.strerror(errno.ECONNREFUSED),
        ),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (OSError("multiple exceptions"), "multiple exceptions"),
    ],
)
def test_the_words_of_the_system(error: OSError, text: str) -> None:
    assert why(error) == text


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
