"""The order in which the addresses of a name are tried."""

from __future__ import annotations

import socket

import pytest

from wsqueue.net.dial import alternate_families
from wsqueue.net.lookup import AddressInfo


def info(text: str) -> AddressInfo:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return (family, socket.SOCK_STREAM, 0, "", (text, 1))


@pytest.mark.parametrize(
    ("preferred", "order"),
    [
        ([], []),
        (["192.0.2.1"], ["192.0.2.1"]),
        (["::1", "::2", "::3", "192.0.2.1"], ["::1", "192.0.2.1", "::2", "::3"]),
        (["192.0.2.1", "192.0.2.2", "::1"], ["192.0.2.1", "::1", "192.0.2.2"]),
    ],
)
def test_families_alternate(preferred: list[str], order: list[str]) -> None:
    assert [address[-1][0] for address in alternate_families(map(info, preferred))] == order
