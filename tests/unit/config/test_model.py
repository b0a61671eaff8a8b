"""The values of configurations: defaults, parsed addresses and the bounds of limits."""

from __future__ import annotations

import pytest

from wsqueue.config.addresses import Address, parse_address
from wsqueue.config.model import (
    READ_MARGIN_BYTES,
    ClientConfig,
    Config,
    ConsumerConfig,
    Limits,
    Monitoring,
    NodeConfig,
    ProducerConfig,
    role_of,
)
from wsqueue.protocol.keys import Order

from ...support.config_files import CONSUMER, DEMO, PRODUCER, ConfigFile


def test_the_shortest_consumer(file: ConfigFile) -> None:
    config = file.load(CONSUMER)
    assert config == ConsumerConfig(listen=["127.0.0.1:10001"])
    assert isinstance(config, ConsumerConfig)
    assert config.listeners == [Address(host="127.0.0.1", port=10001)]
    assert (config.psk_file, config.local, config.log_level) == (None, False, "info")
    assert config.monitoring == Monitoring()
    assert (config.monitoring.pages, config.monitoring.top_topics) == ("loopback", 10)
    assert config.page_listeners == config.all_consumers == config.all_producers == config.peers == []


def test_the_shortest_producer(file: ConfigFile) -> None:
    config = file.load(PRODUCER)
    assert isinstance(config, ProducerConfig)
    assert config.links == [Address(host="127.0.0.1", port=10001, path="/producer")]
    assert config.hello_order is Order.DOCUMENT


def test_the_shortest_demo(file: ConfigFile) -> None:
    config = file.load(DEMO)
    assert isinstance(config, ClientConfig)
    assert config.produce_addresses == [Address(host="127.0.0.1", port=10002, path="/produce")]
    assert config.subscribe_addresses == [Address(host="127.0.0.1", port=10001, path="/subscribe")]
    assert config.peers == config.produce_addresses + config.subscribe_addresses
    assert config.hello_order is Order.DOCUMENT


@pytest.mark.parametrize(
    ("text", "kind", "role", "node"),
    [
        (CONSUMER, ConsumerConfig, "consumer", True),
        (PRODUCER, ProducerConfig, "producer", True),
        (DEMO, ClientConfig, "demo", False),
    ],
)
def test_the_role_decides_the_kind(
    file: ConfigFile, text: str, kind: type[Config], role: str, node: bool
) -> None:
    config = file.load(text)
    assert type(config) is kind
    assert role_of(kind) == role
    assert isinstance(config, NodeConfig) == node


def test_the_smallest_write_buffer() -> None:
    limits = Limits(max_message_bytes=10, max_buffered_bytes=READ_MARGIN_BYTES + 10)
    assert limits.max_message_bytes == 10
    with pytest.raises(ValueError, match=r"max_buffered_bytes to be at least max_message_bytes \+ 1048576"):
        Limits(max_message_bytes=10, max_buffered_bytes=READ_MARGIN_BYTES + 9)


def test_the_other_nodes() -> None:
    consumers = ["wss://c1.example:1", "[::1]:2", "unix:/run/c.sock"]
    pages = ["127.0.0.1:20001", "unix:/run/pages.sock", "[::1]:0"]
    monitoring = Monitoring(listen=pages, consumers=consumers, producers=["p1.example:3"])
    config = ConsumerConfig(listen=["127.0.0.1:1"], monitoring=monitoring)
    assert config.page_listeners == [parse_address(text) for text in pages]
    assert config.all_consumers == [parse_address(text) for text in consumers]
    assert config.all_producers == [Address(host="p1.example", port=3)]
    assert config.peers == config.all_consumers + config.all_producers


def test_a_producer_knows_the_consumers_of_its_links() -> None:
    links = ["wss://c1.example:1/q/producer"]
    config = ProducerConfig(listen=["127.0.0.1:1"], consumers=links)
    assert config.all_consumers == [Address(host="c1.example", port=1, tls=True)]
    monitoring = Monitoring(consumers=["c2.example:1"])
    config = ProducerConfig(listen=["127.0.0.1:1"], consumers=links, monitoring=monitoring)
    assert config.all_consumers == [Address(host="c2.example", port=1)]
    assert [address.host for address in config.peers] == ["c1.example", "c2.example"]
