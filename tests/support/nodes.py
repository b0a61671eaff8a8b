"""Nodes on the event loop of a test, and helpers that wait for a condition."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wsqueue
from wsqueue.config.model import Limits, Tls
from wsqueue.log.snapshot import SNAPSHOT_NAME
from wsqueue.net.connection import Connection
from wsqueue.nodes.connections import Connections
from wsqueue.nodes.consumer import Consumer
from wsqueue.nodes.consumer_link import ConsumerLink
from wsqueue.nodes.node import Node
from wsqueue.nodes.producer import Producer
from wsqueue.nodes.service import Service
from wsqueue.protocol.close import CloseCode

from .classic_peer import subscribe_path
from .keys import psk_of
from .toml import write_toml
from .waiting import WAIT_SECONDS, eventually, soon

KEY = psk_of("everybody")
OTHER_KEY = psk_of("others")

BILLING, WATCH = psk_of("billing"), psk_of("watch")
"""Keys of clients with names."""

DEFAULTS: dict[str, Any] = {"close_seconds": 1.0, "reconnect_max_seconds": 0.1}


def write_key(directory: Path, name: str, *keys: str) -> None:
    """Write the file of a name's key, or of its keys during a rotation."""
    file = directory / f"{name}.key"
    file.write_text("\n".join(keys))
    file.chmod(0o600)


def cut(connection: Connection) -> None:
    """Cut a connection as a reset does: its owner hears of it in the next turn of the loop."""
    if connection._transport is not None:
        connection._transport.abort()


class Log(logging.Handler):
    """Keep the log records of wsqueue."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, what: str, level: int = logging.NOTSET) -> list[str]:
        """Return the lines that begin so, from a level on."""
        lines = [record.getMessage() for record in self.records if record.levelno >= level]
        return [line for line in lines if line.startswith(what)]


class RunningNode:
    """Hold a node, which is started again and again on the same addresses if need be."""

    def __init__(self, file: Path, kind: type[Node], settings: dict[str, Any]) -> None:
        self.file, self._kind, self._settings = file, kind, settings
        self.write()
        self.service = Service(file, kind)

    @property
    def address(self) -> str:
        """Return `host:port` of the first listener."""
        return str(self.service.addresses[0])

    @property
    def counters(self) -> Counter[str]:
        return self.service.node.counters

    @property
    def consumer(self) -> Consumer:
        assert isinstance(self.service.node, Consumer)
        return self.service.node

    @property
    def links(self) -> list[ConsumerLink]:
        assert isinstance(self.service.node, Producer)
        return self.service.node.links

    @property
    def connections(self) -> Connections:
        return self.service.connections

    def url(self, path: str) -> str:
        address = self.address
        return f"{address}{path}" if address.startswith("wss:") else f"ws://{address}{path}"

    def subscribe_url(self, topic: str) -> str:
        return self.url(subscribe_path(topic))

    def write(self, **settings: Any) -> None:
        """Write the configuration, with some settings changed."""
        self._settings.update(settings)
        limits = {key: value for key, value in self._settings.items() if key in Limits.__struct_fields__}
        others = {key: value for key, value in self._settings.items() if key not in limits}
        write_toml(self.file, others, limits)

    def write_psk(self, key: str) -> None:
        self.file.with_name(self._settings["psk_file"]).write_text(key)

    async def start(self) -> None:
        await self.service.start()

    async def restart(self) -> None:
        """Start anew, on the same port."""
        self.service = Service(self.file, self._kind)
        await self.start()

    async def ready(self) -> None:
        """Wait until all links are up."""
        await eventually(lambda: not self.service.node.not_ready(), "all links are up")

    async def subscribed(self, topic: str, count: int = 1) -> None:
        """Wait until a topic has `count` subscribers, classic or not."""
        await eventually(lambda: self.subscribers(topic) == count, f"{count} subscribers of {topic!r}")

    def subscribers(self, topic: str) -> int:
        """Return how many subscribers a topic has, classic or not."""
        consumer = self.consumer
        return len(consumer.topics.subscribers(topic)) + len(consumer.readers.subscribers(topic))

    async def crash(self) -> None:
        """Vanish: close no connection in the polite way."""
        self.service.listeners.close()
        for connection in list(self.connections):
            connection.abort(CloseCode.ABNORMAL)
        async with soon():
            await self.service.node.stop()
        if directory := self._settings.get("retention", {}).get("directory"):
            # A process that crashed would have left none.
            (self.file.parent / directory / SNAPSHOT_NAME).unlink(missing_ok=True)
        await eventually(lambda: not self.connections, "all connections are gone")

    async def stop(self) -> None:
        """Drain, as SIGTERM does."""
        async with soon():
            await self.service.drain()


class Nodes:
    """Start nodes on loopback, and end them with the test.

    Args:
        directory: Where their files are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running: list[RunningNode] = []

    async def consumer(self, port: int = 0, key: str = KEY, **settings: Any) -> RunningNode:
        """Start a consumer; the settings are those of the configuration, limits among them."""
        return await self._start(self.made(Consumer, port, key, **settings))

    async def producer(
        self, consumers: Sequence[RunningNode | str], port: int = 0, key: str = KEY, **settings: Any
    ) -> RunningNode:
        """Start a producer; the settings are those of the configuration, limits among them."""
        settings["consumers"] = self.addresses(consumers, "/producer")
        return await self._start(self.made(Producer, port, key, **settings))

    async def cluster(self, **settings: Any) -> tuple[RunningNode, RunningNode]:
        """Start a consumer and a producer, and wait until they are ready."""
        consumer = await self.consumer(**settings)
        producer = await self.producer([consumer], **settings)
        await producer.ready()
        return consumer, producer

    def made(self, kind: type[Node], port: int = 0, key: str = KEY, **settings: Any) -> RunningNode:
        """Return a node that is not started."""
        name = f"node-{len(self._running)}"
        psk = self.directory / f"{name}.psk"
        psk.write_text(key)
        psk.chmod(0o600)
        defaults = {"role": kind.role, "listen": [f"127.0.0.1:{port}"], "psk_file": psk.name}
        node = RunningNode(self.directory / f"{name}.toml", kind, defaults | DEFAULTS | settings)
        self._running.append(node)
        return node

    def client(
        self,
        producers: Sequence[RunningNode | str],
        consumers: Sequence[RunningNode | str],
        key: str = KEY,
        *,
        hello_order: wsqueue.Order = wsqueue.Order.DOCUMENT,
        open_seconds: float = WAIT_SECONDS,
        tls: Tls | None = None,
        publisher_secret: bytes | None = None,
        **limits: Any,
    ) -> wsqueue.Client:
        """Return a client of some nodes."""
        return wsqueue.connect(
            producers=self.addresses(producers, "/produce"),
            consumers=self.addresses(consumers, "/subscribe"),
            psk=key,
            hello_order=hello_order,
            limits=Limits(**(DEFAULTS | limits)),
            tls=tls,
            publisher_secret=publisher_secret,
            open_seconds=open_seconds,
        )

    @staticmethod
    def addresses(nodes: Sequence[RunningNode | str], endpoint: str) -> list[str]:
        addresses = [node if isinstance(node, str) else node.address for node in nodes]
        return [
            address + ((":" + endpoint) if address.startswith("unix:") else endpoint) for address in addresses
        ]

    async def stop(self) -> None:
        """End all nodes without further ado, the producers first."""
        for node in reversed(self._running):
            await node.crash()

    async def _start(self, node: RunningNode) -> RunningNode:
        await node.start()
        return node
