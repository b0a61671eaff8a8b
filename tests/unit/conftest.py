"""Unit tests open no sockets, so that `make check` is quick and says the same on any machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NoReturn

import pytest
import uvloop

SOCKET_METHODS = ("bind", "connect", "connect_ex", "listen")
LOOP_METHODS = ("create_connection", "create_server", "create_unix_connection", "create_unix_server")


@pytest.fixture(scope="package", autouse=True)
def _no_sockets() -> Iterator[None]:
    """Refuse to bind and to connect. The event loop's own pair of sockets does neither."""

    def refuse(*_arguments: object, **_settings: object) -> NoReturn:
        pytest.fail("a unit test opens no sockets: move this test to tests/integration")

    with pytest.MonkeyPatch.context() as patch:
        for name in SOCKET_METHODS:
            patch.setattr(socket.socket, name, refuse)
        for name in LOOP_METHODS:
            patch.setattr(uvloop.Loop, name, refuse)
        yield
