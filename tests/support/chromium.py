"""Chromium, and pages in it that fail a test if they do anything forbidden."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Playwright, Request, Route

from tests.support.paths import ROOT
from wsqueue.monitoring.web.page import client_js

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A name that is not this host's for a browser, and so no secure context.
    "--host-resolver-rules=MAP node.example 127.0.0.1",
]

SCREENSHOTS = ROOT / ".artifacts" / "screenshots"

WAIT_MILLISECONDS = 15_000
"""How long anything may take on a busy machine."""

ORIGIN = "http://localhost:9"
"""Address of pages that no server has; it has cryptography, as a page over https."""

Scheme = Literal["light", "dark"]


def installed() -> Path:
    """Return Chromium, which Debian's package brings; without it and root, skip the test."""
    if not CHROMIUM.exists():
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip("needs Debian's package chromium, or root to install it")
        subprocess.run([ROOT / "scripts" / "apt-install", "chromium"], check=True)
    return CHROMIUM


async def launch(playwright: Playwright) -> Browser:
    """Start Chromium, without a window."""
    return await playwright.chromium.launch(executable_path=installed(), headless=True, args=FLAGS)


async def _fulfil(route: Route) -> None:
    if route.request.url.endswith("/client.js"):
        await route.fulfill(body=client_js(), content_type="text/javascript")
    else:
        await route.fulfill(body="<!doctype html><link rel=icon href=data:,>", content_type="text/html")


class Tabs:
    """Open pages, and keep their complaints and requests.

    Attributes:
        complaints: Errors of scripts and on the console, violations of the policy among them.
        requests: Addresses that the pages asked for, WebSockets too.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._tolerated = ""

    def tolerate(self, what: str) -> None:
        """Expect complaints that begin so, e.g. of a node that the test stops."""
        self._tolerated = what

    async def open(
        self, url: str, *, scheme: Scheme = "light", width: int = 1280, height: int = 900, **options: Any
    ) -> Page:
        """Open a page in a tab of its own, which shares nothing with the others."""
        page = await self._new_page(scheme, width, height, options)
        await page.goto(url)
        return page

    async def with_client(self, **options: Any) -> Page:
        """Open an empty page that has the JavaScript client as `wsqueue`, from an origin of its own."""
        # Chromium keeps pages from elsewhere off this host, and takes one without a server for such.
        page = await self._new_page("light", 800, 600, options)
        await page.context.grant_permissions(["local-network-access"])
        await page.route(f"{ORIGIN}/**", _fulfil)
        await page.goto(f"{ORIGIN}/")
        await page.evaluate("import('/client.js').then((module) => { window.wsqueue = module; })")
        return page

    async def _new_page(self, scheme: Scheme, width: int, height: int, options: dict[str, Any]) -> Page:
        context = await self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **options
        )
        self._contexts.append(context)
        context.set_default_timeout(WAIT_MILLISECONDS)
        page = await context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("request", self._requested)
        page.on("websocket", lambda socket: self.requests.append(socket.url))
        return page

    async def close(self) -> None:
        for context in self._contexts:
            await context.close()

    def _heard(self, kind: str, text: str) -> None:
        tolerated = self._tolerated and text.startswith(self._tolerated)
        if kind in ("error", "warning") and not tolerated:
            self.complaints.append(text)

    def _requested(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.requests.append(request.url)


async def screenshot(page: Page, name: str) -> None:
    """Keep a picture of the whole page, for people to look at."""
    await page.evaluate("window.scrollTo({ top: 0, behavior: 'instant' })")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True, animations="disabled")
