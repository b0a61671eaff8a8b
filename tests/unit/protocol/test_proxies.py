"""Who is behind a proxy, by the header that proxies add to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol.proxies import client_of, networks

from ...support.session_pair import few

TRUSTED = ["127.0.0.1", "::1", "10.0.0.0/8"]


@pytest.mark.parametrize(
    ("header", "peer", "client"),
    [
        ("", "127.0.0.1", "127.0.0.1"),
        ("192.0.2.7", "127.0.0.1", "192.0.2.7"),
        (" 192.0.2.7 ", "::1", "192.0.2.7"),
        ("192.0.2.7", "", "192.0.2.7"),
        ("192.0.2.7", "::ffff:127.0.0.1", "192.0.2.7"),
        # Two proxies that are trusted, and one that is not.
        ("192.0.2.7, 10.1.2.3", "127.0.0.1", "192.0.2.7"),
        ("192.0.2.7, 11.1.2.3", "127.0.0.1", "11.1.2.3"),
        ("192.0.2.7", "11.1.2.3", "11.1.2.3"),
        ("2001:db8::7", "127.0.0.1", "2001:db8::7"),
        ("192.0.2.7, unknown", "127.0.0.1", "127.0.0.1"),
        ("192.0.2.7:1234", "127.0.0.1", "127.0.0.1"),
        (",,", "127.0.0.1", "127.0.0.1"),
        ("10.0.0.1, 10.0.0.2", "127.0.0.1", "10.0.0.1"),
    ],
)
def test_the_last_that_is_not_trusted(header: str, peer: str, client: str) -> None:
    assert client_of(header, peer, networks(TRUSTED)) == client


@few
@given(st.lists(st.ip_addresses().map(str), max_size=4), st.ip_addresses(network="192.0.2.0/24").map(str))
def test_a_client_cannot_choose_its_address(said: list[str], true: str) -> None:
    """Whatever it says itself, the proxy adds the truth."""
    assert client_of(", ".join([*said, true]), "127.0.0.1", networks(TRUSTED)) == true
