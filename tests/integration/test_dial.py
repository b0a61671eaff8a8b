"""A name with several addresses, some of which are dead: packets to them are dropped, or they refuse."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wsqueue
from wsqueue.config.model import ClientConfig, Limits, Tls
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.tools.doctor import check_cluster
from wsqueue.tools.verify import verify

from ..support.certificates import Authority
from ..support.nodes import DEFAULTS, KEY, Nodes, RunningNode
from ..support.waiting import soon

pytestmark = pytest.mark.anyio

NAME = "localhost"
LIVE = "127.0.0.1"
DEAD = ["::1", "127.0.0.2"]

SHORT: dict[str, Any] = {**DEFAULTS, "hello_seconds": 5.0}


@contextlib.contextmanager
def dropping(host: str, port: int) -> Iterator[None]:
    """Drop all packets that open connections to an address, as its queue of unaccepted ones is full."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        try:
            listener.bind((host, port))
        except OSError:
            pytest.skip(f"this host has no address {host}")
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the addresses of the name, which a test fills."""
    found: list[str] = []
    original = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        names = found if host == NAME and "flags" not in options else [host]
        return [info for name in names for info in original(name, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return found


def named(node: RunningNode) -> str:
    return f"{NAME}:{node.address.rpartition(':')[2]}"


def port_of(node: RunningNode) -> int:
    return int(node.address.rpartition(":")[2])


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("drops", [True, False])
async def test_links_of_all_kinds(nodes: Nodes, addresses: list[str], dead: str, drops: bool) -> None:
    addresses += [dead, LIVE]
    consumer = await nodes.consumer()
    with contextlib.ExitStack() as stack:
        if drops:
            stack.enter_context(dropping(dead, port_of(consumer)))
        producer = await nodes.producer([named(consumer)], hello_seconds=5.0)
        await producer.ready()
        if drops:
            stack.enter_context(dropping(dead, port_of(producer)))
        async with soon(), nodes.client([named(producer)], [named(consumer)], hello_seconds=5.0) as client:
            await client.publish("news", "1")
            messages = client.subscribe("news", start="earliest", follow=False)
            assert [message.data async for message in messages] == ["1"]
        config = ClientConfig(
            producers=[f"{named(producer)}/produce"],
            consumers=[f"{named(consumer)}/subscribe"],
            limits=Limits(**SHORT),
        )
        async with soon():
            checks = [check async for check in verify(config, PreSharedKey(KEY))]
            assert [check.problem for check in checks if check.problem] == []
            said: list[str] = []
            found = [finding async for finding in check_cluster(config, PreSharedKey(KEY), said.append)]
        assert [finding for finding in found if finding.state == "problem"] == []


async def test_the_certificate_that_doctor_looks_at(
    nodes: Nodes, addresses: list[str], tmp_path: Path
) -> None:
    addresses += [DEAD[1], LIVE]
    authority = Authority(tmp_path)
    own = authority.issue("node", hosts=[NAME])
    tls = {"certificate": str(own.certificate), "key": str(own.key), "ca": str(own.ca)}
    consumer = await nodes.consumer(listen=[f"wss://{LIVE}:0"], tls=tls)
    with dropping(DEAD[1], port_of(consumer)):
        place = f"wss://{named(consumer)}"
        config = ClientConfig(
            producers=[f"{place}/produce"],
            consumers=[f"{place}/subscribe"],
            limits=Limits(**SHORT),
            tls=Tls(ca=str(authority.file)),
        )
        async with soon():
            found = [
                finding async for finding in check_cluster(config, PreSharedKey(KEY), lambda _text: None)
            ]
        assert any("certificate" in finding.text and finding.state == "ok" for finding in found), found


async def test_all_that_all_addresses_said(nodes: Nodes, addresses: list[str]) -> None:
    consumer = await nodes.consumer()
    down = f"{NAME}:1"
    addresses += [LIVE, "127.0.0.2"]
    async with soon(), nodes.client([down], [consumer]) as client:
        with pytest.raises(wsqueue.ConnectError, match=r"1/produce: Connection refused$"):
            await client.publish("news", "1")
    addresses.append("255.255.255.255")
    async with soon(), nodes.client([down], [consumer]) as client:
        with pytest.raises(wsqueue.ConnectError, match=r"1/produce: Connection refused, \w+"):
            await client.publish("news", "1")


async def test_a_name_that_is_unknown(nodes: Nodes, addresses: list[str]) -> None:
    consumer = await nodes.consumer()
    addresses.append("nowhere.invalid")
    async with soon(), nodes.client([f"{NAME}:1"], [consumer]) as client:
        with pytest.raises(wsqueue.ConnectError, match=r"1/produce: .*([Nn]ame|resolution)"):
            await client.publish("news", "1")


async def test_a_process_that_ends_and_looks_no_name_up(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of blocking clients goes on while the interpreter ends, which starts no more threads."""
    consumer = await nodes.consumer()
    client = nodes.client([f"{NAME}:1"], [consumer])

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    async with soon(), client:
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(wsqueue.ConnectError, match=r"localhost is not looked up: can't create"):
            await client.publish("news", "1")
