"""The lines that a node writes to standard error: for the journal, for others, and never a line a message."""

from __future__ import annotations

import asyncio
import re

import pytest

from ..support.processes import Cluster

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

MESSAGES = 2000
PLAIN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (ERROR|WARNING|INFO|DEBUG) .+")


def test_a_node_of_the_journal_writes_levels_and_no_time(cluster: Cluster) -> None:
    consumer = cluster.add_consumer()
    consumer.log_file.touch()
    status = consumer.log_file.stat()
    del consumer.settings["psk_file"]
    consumer.launch(JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}", WSQUEUE_PSK=cluster.secret)
    consumer.wait_logged(r"^<6>started role=consumer version=\S+ listen=127\.0\.0\.1:\d+$")
    consumer.wait_logged(r"^<4>PSK taken from the environment ")
    consumer.terminate()
    assert all(re.match("<[346]>", line) for line in consumer.log.splitlines()), consumer.log


def test_another_node_writes_time_and_level(cluster: Cluster) -> None:
    consumer = cluster.add_consumer()
    # Standard error of a service that passed its environment on.
    consumer.launch(JOURNAL_STREAM="1:2")
    consumer.wait_started()
    consumer.terminate()
    assert all(PLAIN.fullmatch(line) for line in consumer.log.splitlines()), consumer.log


async def test_no_line_is_written_for_a_message(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.start, 1, 1)
    before = [len(node.log.splitlines()) for node in cluster.nodes]
    async with cluster.client() as client, client.subscribe("news") as messages:
        for number in range(MESSAGES):
            await client.publish("news", f"number {number}")
        for _ in range(MESSAGES):
            await anext(messages)
    after = [len(node.log.splitlines()) for node in cluster.nodes]
    assert after == before
    assert all("news" not in node.log and "number" not in node.log for node in cluster.nodes)
