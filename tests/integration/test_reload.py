"""What a reload accepts holds from then on, or a warning says that it needs a restart: each key."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest

from wsqueue.config.model import ConsumerConfig, ProducerConfig, Tls
from wsqueue.nodes.consumer import Consumer
from wsqueue.nodes.node import Node
from wsqueue.nodes.producer import Producer

from ..support.certificates import Authority
from ..support.classic_peer import connected
from ..support.keys import psk_of
from ..support.messages import append_one, packed
from ..support.nodes import KEY, Log, Nodes, RunningNode
from ..support.ports import free_port
from ..support.raw_peer import http_get
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

RESTART = ("retention.mode", "retention.directory", "retention.jetstream")
"""The keys whose new values hold only after a restart."""

CHANGES: dict[str, Any] = {
    "psk_file": "other.psk",
    "node_psk_file": "other.psk",
    "clients": [{"name": "billing", "key_file": "other.psk"}],
    "channel_binding": "optional",
    "proxy.listen": ["127.0.0.4:0"],
    "proxy.trusted": ["192.0.2.7"],
    "proxy.path": "/queue",
    "allow_classic": False,
    "local": True,
    "plain": True,
    "tls.ca": True,
    "tls.certificate": True,
    "tls.key": True,
    "tls.client_certificates": True,
    "limits.max_message_bytes": 1000,
    "limits.max_topic_bytes": 10,
    "limits.max_connections": 10,
    "limits.max_strangers": 10,
    "limits.max_buffered_bytes": 5_000_000,
    "limits.max_total_buffered_bytes": 5_000_000,
    "limits.max_held_bytes": 1000,
    "limits.max_index_bytes": 1000,
    "limits.hello_seconds": 1.5,
    "limits.close_seconds": 1.5,
    "limits.ping_interval_seconds": 1.5,
    "limits.ping_timeout_seconds": 1.5,
    "limits.reconnect_max_seconds": 1.5,
    "limits.drain_seconds": 1.5,
    "listen": ["127.0.0.1:0", "127.0.0.2:0"],
    "log_level": "debug",
    "hosts": ["wsqueue.example"],
    "origins": ["https://app.example"],
    "monitoring.listen": ["127.0.0.3:0"],
    "monitoring.pages": "none",
    "monitoring.consumers": ["127.0.0.1:1"],
    "monitoring.producers": ["127.0.0.1:1"],
    "monitoring.top_topics": 1,
    "retention.mode": "sqlite",
    "retention.directory": "/elsewhere",
    "retention.jetstream": {"servers": ["nats://127.0.0.1:1"]},
    "retention.max_bytes": 1000,
    "retention.max_bytes_per_topic": 1000,
    "retention.max_messages_per_topic": 10,
    "retention.max_age_seconds": 10.0,
    "retention.topics": [{"match": "a", "max_messages_per_topic": 1}],
    "consumers": ["127.0.0.1:1/producer", "127.0.0.1:2/producer"],
    "hello_order": "reversed",
}
"""Another value of each key; those of [tls] are files that an authority makes."""


def keys_of(kind: type[msgspec.Struct], table: str = "") -> Iterator[str]:
    """Return the keys of a configuration, as `table.key`."""
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from keys_of(field.type, f"{table}{field.name}.")
        else:
            yield table + field.name


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return the settings that `RunningNode.write` takes; limits have no table there."""
    table, _, name = key.rpartition(".")
    return {table: {name: value}} if table and table != "limits" else {name: value}


def test_every_key_is_here() -> None:
    assert CHANGES.keys() == {*keys_of(ConsumerConfig), *keys_of(ProducerConfig)}


def node_of(nodes: Nodes, kind: type[Node]) -> RunningNode:
    settings: dict[str, Any] = (
        {"consumers": [f"127.0.0.1:{free_port()}/producer"]} if kind is Producer else {}
    )
    return nodes.made(kind, **settings)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        pytest.param(kind, key, id=f"{kind.role} {key}")
        for kind, config in ((Consumer, ConsumerConfig), (Producer, ProducerConfig))
        for key in keys_of(config)
    ],
)
async def test_each_key_holds_or_a_warning_says_that_it_does_not(
    nodes: Nodes, authority: Authority, log: Log, kind: type[Node], key: str
) -> None:
    node = node_of(nodes, kind)
    other = nodes.directory / "other.psk"
    other.write_text(psk_of("others"))
    other.chmod(0o600)
    change = nested(key, CHANGES[key])
    if key.startswith("tls."):
        change = {"tls": {name: value for name, value in tls_of(authority, key).items() if value is not None}}
    level = logging.getLogger("wsqueue").level
    async with soon():
        await node.start()
        node.write(**change)
        await node.service.reload()
    logging.getLogger("wsqueue").setLevel(level)
    assert len(log.lines("reloaded ")) == 1
    report = node.service.reporter.report()
    found = [warning.text for warning in report.warnings if warning.code == "restart_needed"]
    if key in RESTART:
        (sentence,) = report.restart_needed
        value = "another table" if isinstance(CHANGES[key], dict) else CHANGES[key]
        assert sentence.startswith(f"{key} is {value} in the configuration and ")
        assert found == [f"{sentence}."]
        assert len(log.lines("restart needed ", logging.WARNING)) == 1
        assert report.log is not None
        assert report.log.mode == "memory"
        # The old value is back, and all is well.
        node.write(retention={})
        await node.service.reload()
        assert node.service.reporter.report().restart_needed == []
    else:
        assert found == report.restart_needed == []


def tls_of(authority: Authority, key: str) -> dict[str, Any]:
    tls: Tls = authority.trusting() if key == "tls.ca" else authority.issue("node")
    return msgspec.structs.asdict(msgspec.structs.replace(tls, client_certificates="client" in key))


Observe = Callable[[RunningNode], Awaitable[object]]


async def _page_of_a_topic(node: RunningNode) -> object:
    return (await http_get(node.address, "/subscribe/123456789"))[0]


async def _page_beside_a_subscriber(node: RunningNode) -> object:
    async with connected(node.subscribe_url("a"), KEY):
        await node.subscribed("a")
        return (await http_get(node.address, "/subscribe/b"))[0]


async def _kept(node: RunningNode) -> object:
    logs = node.consumer.logs
    logs.append([append_one(f"{number % 2}", packed(f"{number}")) for number in range(10)])
    logs.trim()
    await logs.settle()
    return [len(await logs.read(logs.topic(topic), 0, 2**20)) for topic in "01"]


@pytest.mark.parametrize(
    ("key", "value", "observe", "seen"),
    [
        ("limits.max_topic_bytes", 8, _page_of_a_topic, (426, 400)),
        ("limits.max_connections", 1, _page_beside_a_subscriber, (426, 503)),
        ("retention.max_messages_per_topic", 2, _kept, ([5, 5], [2, 2])),
        ("retention.max_bytes_per_topic", 500, _kept, ([5, 5], [1, 1])),
        ("retention.max_bytes", 1700, _kept, ([5, 5], [0, 1])),
        ("retention.max_age_seconds", 1e-9, _kept, ([5, 5], [0, 0])),
        ("retention.topics", [{"match": "1*", "max_messages_per_topic": 2}], _kept, ([5, 5], [10, 2])),
        ("retention.topics", [{"match": "0", "max_age_seconds": 1e-9}], _kept, ([5, 5], [0, 10])),
    ],
)
async def test_a_limit_holds_at_once(
    nodes: Nodes, key: str, value: Any, observe: Observe, seen: tuple[object, object]
) -> None:
    node = await nodes.consumer()
    async with soon():
        assert await observe(node) == seen[0]
        node.write(**nested(key, value))
        await node.service.reload()
        assert await observe(node) == seen[1]


@pytest.mark.parametrize("mode", ["memory", "sqlite"])
async def test_lower_limits_trim_what_is_kept(nodes: Nodes, mode: str) -> None:
    retention: dict[str, Any] = {"mode": mode, "directory": str(nodes.directory / "log")}
    consumer = await nodes.consumer(retention=retention)
    logs = consumer.consumer.logs
    logs.append([append_one("news", packed(str(number))) for number in range(1000)])
    await logs.settle()
    log_status = logs.log_status()
    consumer.write(retention=retention | {"max_messages_per_topic": 10})
    async with soon():
        await consumer.service.reload()
        await eventually(lambda: logs.log_status().bytes < log_status.bytes / 50, "it is trimmed")
        kept: list[int] = []
        while len(kept) != 10:
            # Until the deletion is committed, the archive reads the messages that were there before.
            kept = [record.offset for record in await logs.read(logs.topic("news"), 0, 2**20)]
    assert kept == list(range(990, 1000))


async def test_a_higher_max_held_bytes_lets_publishers_go_on(nodes: Nodes) -> None:
    """And a lower one closes none of them for what is held already."""
    limits: dict[str, Any] = {"max_held_bytes": 300_000, "max_message_bytes": 100_000}
    producer = await nodes.producer([f"127.0.0.1:{free_port()}"], **limits)
    async with soon(), connected(producer.url("/produce"), KEY) as publisher:
        for _ in range(20):
            await publisher.publish("news", "x" * 90_000)
        await eventually(lambda: producer.links[0].queue.blocked, "the publisher is paused")
        producer.write(max_held_bytes=10_000_000)
        await producer.service.reload()
        await eventually(lambda: producer.counters["messages_in"] == 20, "it goes on")
        producer.write(max_held_bytes=1000)
        await producer.service.reload()
        await publisher.publish("news", "x")
        await eventually(lambda: producer.counters["messages_in"] == 21, "it is read once more")
        assert publisher.socket.close_code is None
    assert "lost_full" not in producer.counters


async def test_the_level_of_the_journal_changes(nodes: Nodes, log: Log) -> None:
    logger = logging.getLogger("wsqueue")
    before = logger.level
    consumer = await nodes.consumer()
    try:
        for level in ("error", "debug"):
            consumer.write(log_level=level)
            await consumer.service.reload()
            assert logger.level == getattr(logging, level.upper())
    finally:
        logger.setLevel(before)
