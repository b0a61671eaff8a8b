"""One Chromium for all tests of this directory, on one event loop with the nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, async_playwright, expect

from tests.support.nodes import Nodes

from ..support.chromium import WAIT_MILLISECONDS, Tabs, launch


# Not of the session: later tests of other directories in this process want a loop of their own kind.
@pytest.fixture(scope="package")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="package")
async def browser(anyio_backend: object) -> AsyncIterator[Browser]:
    expect.set_options(timeout=WAIT_MILLISECONDS)
    async with async_playwright() as playwright:
        browser = await launch(playwright)
        yield browser
        await browser.close()


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    await made.stop()


@pytest.fixture
async def tabs(nodes: Nodes, browser: Browser) -> AsyncIterator[Tabs]:
    """Return no pages; they close before the nodes, and none may have complained."""
    opened = Tabs(browser)
    yield opened
    await opened.close()
    assert opened.complaints == []
