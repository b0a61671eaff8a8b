"""Which `Host` and `Origin` a node trusts."""

from __future__ import annotations

import socket

import pytest

from wsqueue.config.model import ConsumerConfig, Monitoring
from wsqueue.monitoring.sites import Sites

SITES = Sites(
    ConsumerConfig(
        listen=["wss://Node1.example:10001", "unix:/run/node.sock", "wss://[2001:db8::1]:10001"],
        hosts=["Status.example", "2001:db8::9"],
        origins=["https://App.example.com", "null"],
        monitoring=Monitoring(listen=["127.0.0.1:20001"], producers=["wss://producer1.example:10002"]),
    )
)


@pytest.mark.parametrize(
    "host",
    [
        *("", "localhost", "LOCALHOST:1", "192.0.2.1", "192.0.2.1:10001", "[::1]", "[2001:db8::7]:10001"),
        *(
            "node1.example",
            "NODE1.example:20001",
            "status.example:80",
            "producer1.example",
            socket.gethostname(),
        ),
    ],
)
def test_names_of_the_cluster(host: str) -> None:
    assert SITES.trusts_host(host)
    origin = f"http://{host}" if host else None
    assert SITES.trusts_origin(origin, host)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:10001",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "example",
        ),
        *("evil.node1.example", "node1.example.evil.example", "localhost, evil.example", "[evil.example]"),
        *("app.example.com", "localhost@evil.example", "evil.example:10001:1"),
    ],
)
def test_other_names(host: str) -> None:
    """They are not trusted as the name of the node, and so not as the site of the node's own page."""
    assert not SITES.trusts_host(host)
    assert not SITES.trusts_origin(f"http://{host}", host)
    assert not SITES.trusts_origin(f"http://{host}", "node1.example:10001")


@pytest.mark.parametrize(
    ("origin", "trusted"),
    [
        (None, True),
        ("https://app.example.com", True),
        ("HTTPS://APP.example.com", True),
        ("http://app.example.com", False),
        ("https://app.example.com:444", False),
        ("null", True),
        ("http://localhost:3000", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:8080", True),
        ("http://[2001:db8::1]:20001", True),
        ("http://[2001:db8::9]", True),
        ("http://producer1.example:20002", True),
        ("http://192.0.2.1", False),
        ("http://[2001:db8::2]", False),
        ("ftp://node1.example", False),
        ("chrome-extension://node1.example", False),
        ("http://", False),
        ("http://[", False),
        ("", False),
        ("http://localhost, http://evil.example", False),
    ],
)
def test_origins(origin: str | None, trusted: bool) -> None:
    assert SITES.trusts_origin(origin, "198.51.100.1:10001") == trusted


def test_a_page_at_the_address_that_it_asks() -> None:
    assert SITES.trusts_origin("http://192.0.2.1:20001", "192.0.2.1:10001")
    assert not SITES.trusts_origin("http://192.0.2.1:20001", "192.0.2.2:10001")
    assert not Sites(ConsumerConfig(listen=["127.0.0.1:1"])).trusts_origin("null", "127.0.0.1:1")
