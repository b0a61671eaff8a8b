"""The status page of real nodes: what it shows, how it looks, and that anybody can use it."""

from __future__ import annotations

import pytest

from tests.integration.nodes import Nodes, RunningNode, free_port

from .chromium import Tabs, screenshot

pytestmark = pytest.mark.anyio


async def cluster(nodes: Nodes, consumers: int = 2) -> tuple[list[RunningNode], RunningNode]:
    """Start consumers and a producer that know of each other."""
    port = free_port()
    producers = [f"127.0.0.1:{port}"]
    ports = [free_port() for _ in range(consumers)]
    monitoring = {"consumers": [f"127.0.0.1:{one}" for one in ports], "producers": producers}
    started = [await nodes.consumer(port=one, monitoring=monitoring) for one in ports]
    producer = await nodes.producer(started, port=port, monitoring={"producers": producers})
    await producer.ready()
    return started, producer


async def test_it_loads(nodes: Nodes, tabs: Tabs) -> None:
    consumers, producer = await cluster(nodes)
    page = await tabs.open(producer.url("/").replace("ws:", "http:"))
    await page.get_by_text("All is well.").wait_for()
    async with nodes.client([producer], consumers) as client:
        for number in range(1500):
            await client.publish(f"topic {number % 7}", *["x" * 50] * (1 + number % 40))
            if number % 300 == 0:
                await page.wait_for_timeout(1000)
    await page.wait_for_timeout(1500)
    await screenshot(page, "producer-light")
    await page.emulate_media(color_scheme="dark")
    await screenshot(page, "producer-dark")
    await page.locator("#whole + .track").click()
    await page.wait_for_timeout(2500)
    await screenshot(page, "cluster-dark")
    await page.set_viewport_size({"width": 360, "height": 800})
    await screenshot(page, "cluster-narrow")
