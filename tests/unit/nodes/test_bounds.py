"""The most memory that a node takes, as its configuration bounds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsqueue.config.model import ConsumerConfig, Limits, NodeConfig, ProducerConfig, Retention
from wsqueue.nodes.bounds import memory_bound

MIB = 1024 * 1024

CONSUMER = ConsumerConfig(listen=["127.0.0.1:10001"])
PRODUCER = ProducerConfig(listen=["127.0.0.1:10002"], consumers=["127.0.0.1:10001/producer"] * 2)


def test_the_worst_case_is_documented_and_fits_a_host_of_2_gib() -> None:
    text = " ".join(Path("docs/configuration.md").read_text().split())
    consumer, producer = memory_bound(CONSUMER) / MIB, memory_bound(PRODUCER) / MIB
    assert f"{consumer:,.0f} MiB for a consumer with its log in memory" in text
    assert f"{producer:,.0f} MiB for a producer with two consumers" in text
    on_disk = ConsumerConfig(listen=["127.0.0.1:10001"], retention=Retention(mode="sqlite"))
    largest = memory_bound(on_disk) / MIB
    assert f"{largest:,.0f} MiB for one with its log on disk" in text
    # With the quarter that the roles add, so that the system has some left.
    assert max(consumer, producer, largest) * 1.25 < 1800


@pytest.mark.parametrize(
    ("limit", "node", "times"),
    [
        ("max_total_buffered_bytes", CONSUMER, 1),
        ("max_index_bytes", CONSUMER, 1),
        ("max_total_buffered_bytes", PRODUCER, 1),
        ("max_held_bytes", PRODUCER, 4),
        ("max_message_bytes", PRODUCER, 4),
    ],
)
def test_a_limit_that_is_higher_allows_so_much_more(limit: str, node: NodeConfig, times: int) -> None:
    fields = {name: getattr(node, name) for name in node.__struct_fields__}
    more = Limits(**{limit: getattr(Limits(), limit) + MIB})
    larger = type(node)(**fields | {"limits": more})
    assert memory_bound(larger) - memory_bound(node) == times * MIB


def test_each_consumer_and_each_connection_counts() -> None:
    one = ProducerConfig(listen=["127.0.0.1:10002"], consumers=["127.0.0.1:10001/producer"])
    assert memory_bound(PRODUCER) - memory_bound(one) > 2 * Limits().max_held_bytes
    few = ConsumerConfig(listen=["127.0.0.1:10001"], limits=Limits(max_connections=200, max_strangers=100))
    assert memory_bound(CONSUMER) - memory_bound(few) > 300 * MIB
