"""Three end-to-end tests of any cluster.

Every producer and every consumer answers; a random message on a random topic comes back unmodified through
every producer and every consumer; every endpoint refuses a wrong key.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec

from ..client.client import Client
from ..config.addresses import Address
from ..config.model import ClientConfig
from ..errors import WsqueueError
from ..net.certificates import TlsContexts
from ..net.credential import Credential
from ..net.link import Link
from ..protocol.close import CloseCode, Closed
from ..protocol.keys import Order, PreSharedKey
from ..protocol.routing import topic_hash
from .terminal import printable

ANSWER_SECONDS = 5.0
"""Maximum time until a message comes back: a healthy cluster needs milliseconds."""


class Check(msgspec.Struct, frozen=True):
    """A check, its duration in seconds, and its problem: "" if it passed."""

    name: str
    seconds: float
    problem: str


async def verify(
    config: ClientConfig,
    psk: PreSharedKey,
    began: Callable[[str], None] = lambda _name: None,
    without: Collection[tuple[str, int]] = (),
) -> AsyncIterator[Check]:
    """Run all checks, one after the other, and yield the result of each.

    Args:
        config: Configuration of a client of the cluster.
        psk: Pre-shared key of the client.
        began: Called with the name of each check when it begins.
        without: Host and port of each node that is known to be down.

    Raises:
        ConfigError: A certificate cannot be used.
    """
    tls = TlsContexts(config)
    producers = [
        (address, entry)
        for address, entry in zip(config.produce_addresses, config.producers, strict=True)
        if (address.host, address.port) not in without
    ]
    # The list decides which topics belong to a consumer, also when one in it is down.
    count = len(config.consumers)
    consumers = [
        (consumer, _topic_of(index, count))
        for index, consumer in enumerate(config.subscribe_addresses)
        if (consumer.host, consumer.port) not in without
    ]
    endpoints = [(producer, producer) for producer, _ in producers]
    for consumer, topic in consumers:
        endpoints.append((consumer, consumer.with_path(f"{consumer.path}/{topic}")))
    for shown, endpoint in endpoints:
        began(name := f"{shown} answers")
        yield await _check(name, _reachable(endpoint, psk, config, tls))
    for consumer, topic in consumers:
        for producer, entry in producers:
            through = msgspec.structs.replace(config, producers=[entry])
            began(name := f"a message comes back through {producer} and {consumer}")
            yield await _check(name, _round_trip(through, psk, topic, tls))
    for consumer, _ in consumers:
        link = consumer.with_path(consumer.path.removesuffix("/subscribe") + "/producer")
        endpoints.append((link, link))
    for shown, endpoint in endpoints:
        began(name := f"{shown} refuses a wrong key")
        yield await _check(name, _refuses(endpoint, psk, config, tls))


def write_junit(checks: list[Check], file: Path) -> None:
    """Write the checks as a JUnit XML report.

    Raises:
        OSError: The file cannot be written.
    """
    failures = sum(bool(check.problem) for check in checks)
    seconds = f"{sum(check.seconds for check in checks):.3f}"
    suite = ET.Element(
        "testsuite", name="wsqueue verify", tests=str(len(checks)), failures=str(failures), time=seconds
    )
    for check in checks:
        case = ET.SubElement(
            suite, "testcase", classname="wsqueue.verify", name=check.name, time=f"{check.seconds:.3f}"
        )
        if check.problem:
            # The reason of a peer may contain characters that XML does not allow.
            ET.SubElement(case, "failure", message=printable(check.problem))
    ET.ElementTree(suite).write(file, encoding="utf-8", xml_declaration=True)


async def _check(name: str, check: Awaitable[str]) -> Check:
    began = time.monotonic()
    try:
        problem = await check
    except WsqueueError as error:
        problem = str(error)
    return Check(name, time.monotonic() - began, problem)


async def _reachable(address: Address, psk: PreSharedKey, config: ClientConfig, tls: TlsContexts) -> str:
    probe = _Probe([address], psk, config, tls)
    probe.start()
    await probe.up_or_ended.wait()
    await probe.stop()
    return "" if probe.was_up else str(probe.failures[address])


async def _round_trip(config: ClientConfig, psk: PreSharedKey, topic: str, tls: TlsContexts) -> str:
    data = f"{secrets.token_urlsafe()} \x00 \"'\\ ñ 日本 😀"
    try:
        async with (
            Client(config, Credential(psk), tls=tls, open_seconds=ANSWER_SECONDS) as client,
            client.subscribe(topic) as messages,
            asyncio.timeout(ANSWER_SECONDS),
        ):
            await client.publish(topic, data)
            message = await anext(messages)
    except TimeoutError:
        return f"nothing came back within {ANSWER_SECONDS:g} seconds"
    if (message.topic, message.data) != (topic, data):
        return "the message that came back differs from the one that was sent"
    return ""


async def _refuses(address: Address, psk: PreSharedKey, config: ClientConfig, tls: TlsContexts) -> str:
    probe = _Probe([address], _WrongAnswers(psk), config, tls)
    probe.start()
    try:
        # A classic node answers before it has verified, so the link is up for a moment.
        async with asyncio.timeout(config.limits.hello_seconds):
            await probe.ended.wait()
    except TimeoutError:
        return "a wrong key was not refused"
    finally:
        await probe.stop()
    closed = probe.failures[address]
    # A node refuses by closing, or by a wrong answer of its own, upon which this end closes.
    refused = closed.code == CloseCode.WRONG_ANSWER or (closed.by_peer and closed.code >= CloseCode.NORMAL)
    return "" if refused else str(closed)


def _topic_of(index: int, consumers: int) -> str:
    """Return a random topic that belongs to one consumer."""
    while True:
        topic = f"wsqueue-verify-{secrets.token_hex(8)}"
        if topic_hash(topic) % consumers == index:
            return topic


class _WrongAnswers(PreSharedKey):
    """Verify with the right key and answer with a wrong one, so that only the peer can refuse."""

    __slots__ = ("_right",)

    def __init__(self, right: PreSharedKey) -> None:
        super().__init__(secrets.token_hex(), name=right.name)
        self.token = right.token
        self._right = right

    def verify(self, once: int, answer: str) -> tuple[Order, int] | None:
        """Return in which order, and with which secret, the peer's answer is right, or None."""
        return self._right.verify(once, answer)

    def verify_proof(self, claim: bytes, proof: bytes) -> int | None:
        """Return the secret that was used here when the peer's proof is right with any, or None."""
        return 0 if self._right.verify_proof(claim, proof) is not None else None


class _Probe(Link):
    """Open a connection once, and keep the outcome."""

    never_up_level = logging.INFO  # a check reports as much

    def __init__(
        self, addresses: Sequence[Address], psk: PreSharedKey, config: ClientConfig, tls: TlsContexts
    ) -> None:
        super().__init__(addresses, psk, config, tls)
        self.was_up = False
        self.up_or_ended = asyncio.Event()
        self.ended = asyncio.Event()

    def up(self) -> None:
        """Note that the peer has proved itself."""
        self.was_up = True
        self.up_or_ended.set()

    @property
    def gives_up(self) -> bool:
        """Return True: one attempt tells enough."""
        return True

    def attempt_ended(self, closed: Closed) -> None:
        """Note that the connection failed or ended."""
        self.up_or_ended.set()
        self.ended.set()
