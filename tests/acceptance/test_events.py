"""Streams of events from nodes that are processes, one of which is killed."""

from __future__ import annotations

import pytest

from ..support.event_source import EventSource
from ..support.nodes import write_key
from ..support.processes import Cluster
from ..support.waiting import soon

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KEY = "RtY6hFz0pWq3xVb8nMc5sLd2"


async def test_a_stream_goes_on_after_kill_9(cluster: Cluster) -> None:
    write_key(cluster.directory, "board", KEY)
    cluster.start(1, 1, retention={"mode": "sqlite"})
    (consumer,) = cluster.consumers
    consumer.settings["clients"] = [{"name": "board", "key_file": "board.key", "subscribe": ["news"]}]
    consumer.terminate()
    consumer.start()
    bearer = f"Authorization: Bearer {KEY}"
    async with soon(), cluster.client() as client:
        async with EventSource.open(consumer.address, "/events/news", bearer) as source:
            await source.identified()
            await client.publish("news", "0", "1", "2")
            assert await source.data(2) == ["0", "1"]
            consumer.kill()
            # The kernel ends it, and the browser comes again with the id of the last event that it has.
            assert [event.data for event in await source.ended()] in ([], ["2"])
        last = source.last_id
        consumer.start()
        await client.publish("news", "3")
        begin = int(last.rpartition(":")[2])
        resume = f"Last-Event-ID: {last}"
        async with EventSource.open(consumer.address, "/events/news", bearer, resume) as again:
            assert await again.data(4 - begin) == ["0", "1", "2", "3"][begin:]
