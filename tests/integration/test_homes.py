"""Whether a topic belongs to another consumer, as far as one can tell."""

from __future__ import annotations

import socket

import pytest

from wsqueue.config.addresses import parse_address
from wsqueue.nodes.homes import Homes
from wsqueue.protocol.routing import router

HERE = socket.gethostname().lower()


def home_of(consumers: list[str], listeners: list[str]) -> set[str]:
    """Return the consumers that some topics belong to, as far as this one knows that."""
    homes = Homes([parse_address(one) for one in consumers], [parse_address(one) for one in listeners])
    return {str(homes.elsewhere(f"topic {number}") or "") for number in range(50)}


@pytest.mark.parametrize(
    ("own", "listeners"),
    [
        ("web1:10001", ["web1:10001"]),
        ("127.0.0.1:10001", ["127.0.0.2:9", "0.0.0.0:10001"]),
        ("wss://[::1]:10001", ["[::]:10001"]),
        (f"{HERE}:10001", ["0.0.0.0:10001"]),
        ("unix:/run/a", ["unix:/run/a"]),
    ],
)
def test_one_that_finds_itself(own: str, listeners: list[str]) -> None:
    consumers = ["web0.example.com:10001", own, "203.0.113.9:10001"]
    assert home_of(consumers, listeners) == {"", consumers[0], consumers[2]}


@pytest.mark.parametrize(
    ("consumers", "listeners"),
    [
        ([], ["127.0.0.1:1"]),
        (["web1:10001", "web2:10001"], ["0.0.0.0:10001"]),
        (["127.0.0.1:10001", "127.0.0.2:10001"], ["0.0.0.0:10001"]),
        (["127.0.0.1:10001", "203.0.113.9:10001"], ["127.0.0.1:10002"]),
        (["unix:/run/a", "unix:/run/b"], ["127.0.0.1:10001"]),
    ],
)
def test_one_that_does_not(consumers: list[str], listeners: list[str]) -> None:
    assert home_of(consumers, listeners) == {""}


def test_each_topic_has_its_own_home() -> None:
    consumers = ["127.0.0.1:1", "127.0.0.1:2"]
    homes = Homes([parse_address(one) for one in consumers], [parse_address(consumers[1])])
    for topic in ("news", "sport", "a/b"):
        home = homes.elsewhere(topic)
        assert (home is None) is (router(2)(topic) == 1)
