"""The JavaScript client at consumers that share a log on a NATS server, of which one goes away."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.classic_peer import topic_of
from tests.support.nats_servers import NatsServers
from tests.support.nodes import Nodes
from tests.support.ports import free_port
from tests.support.waiting import eventually

from ..support.chromium import Tabs
from .client import data, js, new_client

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_a_group_and_a_prefix_go_on_at_another_consumer(
    nodes: Nodes, tabs: Tabs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    tabs.tolerate("WebSocket connection to")
    # A state is changed once a second at most, so that less would be late.
    for name, seconds in (("TAKEOVER", 3.0), ("LATE", 2.5), ("RENEW", 0.2), ("WATCH", 0.1)):
        monkeypatch.setattr(f"wsqueue.groups.keeper.{name}_SECONDS", seconds)
    topic = topic_of(0, 2)
    async with NatsServers(tmp_path) as servers:
        retention = {"mode": "jetstream", "jetstream": servers.settings | {"streams": 2}}
        consumers = [await nodes.consumer(free_port(), retention=retention) for _ in range(2)]
        producer = await nodes.producer(consumers)
        await producer.ready()
        page = await tabs.with_client()
        await new_client(page, consumers, [producer])
        async with nodes.client([producer], consumers) as client:
            await client.publish(topic, "1", "2", "3")
            await js(page, "window.all = []; client.subscribe({ prefix: '' }, (one) => all.push(one)).ready")
            join = "client.subscribe(topic, (job) => { got.push(job); }, { group: 'g', prefetch: 2 })"
            await js(page, f"(topic) => {{ window.jobs = {join}; }}", topic)
            assert await data(page, 2) == ["1", "2"]
            await js(page, "got[0].done()")
            await data(page, 3)
            await (consumers[0].stop() if how == "stop" else consumers[0].crash())
            # The message is kept as done by the other consumer, and the third is lent again.
            await js(page, "got[1].done()")
            await page.wait_for_function("got.filter((job) => job.data === '3').length === 2")
            await client.publish(topic, "4")
            await page.wait_for_function("got.at(-1).data === '4' && all.at(-1)?.data === '4'")
            await js(page, "Promise.all(got.slice(-2).map((job) => job.done())).then(() => jobs.close())")
            assert await js(page, "got.map((job) => job.data).join()") == "1,2,3,3,4"
            assert await js(page, "all.map((one) => one.data).join()") == "4"
            assert await js(page, "errors") == []
            await js(page, "client.close()")
        await eventually(lambda: not consumers[1].consumer.groups.by_topic, "the group's state is kept")
        for node in (consumers[1], producer):
            await node.stop()
