"""The JavaScript client in a browser, through the proxies of docs/proxies.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.nodes import Nodes

from ..support.certificates import Authority
from ..support.chromium import Tabs
from ..support.proxies import proxied, real_proxy
from .client import data, js, new_client

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("program", ["nginx", "caddy"])
async def test_a_browser_behind_a_proxy(nodes: Nodes, tabs: Tabs, tmp_path: Path, program: str) -> None:
    _, _, ports = await proxied(nodes)
    Authority(tmp_path).issue("proxy")
    page = await tabs.with_client(ignore_https_errors=True)
    async with real_proxy(program, tmp_path, ports) as port:
        address = f"wss://localhost:{port}/queue"
        await new_client(page, [address], [address], channelBinding="none")
        await js(page, "subscribe('a/b ñ').ready")
        await js(page, "client.publish('a/b ñ', 'hello')")
        assert await data(page, 1) == ["hello"]
        await js(page, "client.close(); 0")
