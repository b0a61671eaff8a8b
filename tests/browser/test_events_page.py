"""The page of docs/http.md, which reads a topic as server-sent events behind a proxy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Route, expect

import wsqueue
from tests.support.nodes import BILLING, Nodes, write_key
from tests.support.paths import ROOT
from wsqueue.protocol.close import CloseCode

from ..support.certificates import Authority
from ..support.chromium import Tabs
from ..support.proxies import proxied, real_proxy

pytestmark = pytest.mark.anyio

TOPIC = "jobs/backup"
COOKIE = "wsqueue_token={token}; Path=/queue/events; Secure; HttpOnly; SameSite=Strict"


def document(language: str) -> str:
    """Return the block of a language in the document."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "http.md").read_text(), re.DOTALL)
    return str(block)


async def test_a_page_reads_a_topic(nodes: Nodes, tabs: Tabs, tmp_path: Path) -> None:
    # Chromium says so, because the connection is lost.
    tabs.tolerate("Failed to load resource")
    clients: list[dict[str, Any]] = [{"name": "board", "key_file": "board.key", "subscribe": ["jobs/*"]}]
    write_key(tmp_path, "board", BILLING)
    consumer, producer, ports = await proxied(nodes, clients=clients)
    Authority(tmp_path).issue("proxy")
    lent = wsqueue.Token.make(BILLING, name="board", who="alice", subscribe=[TOPIC]).text
    loads: list[str] = []

    async def serve(route: Route) -> None:
        loads.append(route.request.url)
        await route.fulfill(
            body=document("html").replace("<title>", "<link rel=icon href=data:,><title>"),
            content_type="text/html",
            headers={"Set-Cookie": COOKIE.format(token=lent)},
        )

    async with real_proxy("nginx", tmp_path, ports) as port, nodes.client([producer], [consumer]) as client:
        site = f"https://localhost:{port}/"
        page = await tabs.open("about:blank", ignore_https_errors=True)
        await page.route(site, serve)
        await page.goto(site)
        await consumer.subscribed(TOPIC)
        await client.publish(TOPIC, "one", "two <b>")
        messages = page.locator("#messages li")
        await expect(messages).to_have_text(["one", "two <b>"])
        # It comes again by itself, and goes on where it was.
        for connection in list(consumer.connections):
            connection.abort(CloseCode.ABNORMAL)
        await client.publish(TOPIC, "three")
        await expect(messages).to_have_text(["one", "two <b>", "three"])
        assert loads == [site]
        assert not any(lent in url for url in tabs.requests)
        await page.close()


def test_the_cookie_of_the_document() -> None:
    assert f"Set-Cookie: {COOKIE.format(token='TOKEN')}\n" in (ROOT / "docs" / "http.md").read_text()
