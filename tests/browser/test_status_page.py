"""The status page of real nodes: its values, its looks, and that it works for all users."""

from __future__ import annotations

import asyncio
import itertools
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.async_api import Page, Route, expect

import wsqueue
from tests.support.certificates import Authority
from tests.support.keys import psk_of
from tests.support.nodes import KEY, OTHER_KEY, Nodes, RunningNode, write_key
from tests.support.waiting import eventually
from wsqueue.report import report as reports

from ..support.chromium import Tabs, screenshot
from ..support.clusters import cluster, page_of

pytestmark = pytest.mark.anyio

NARROW = 360
WEB = psk_of("pages")
MARKUP = "<img src=x onerror=alert(1)>"

# The contrast of each visible text with its background (WCAG 2.2, success criterion 1.4.3).
CONTRASTS = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = channels(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
      if (color[3] !== 0) throw new Error('half transparent');
    }
    throw new Error('no background');
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) {
    if (walker.currentNode.textContent.trim()) texts.push(walker.currentNode.parentElement);
  }
  for (const element of [...texts, ...document.querySelectorAll('input')]) {
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    const lights = [luminance(channels(style.color)), luminance(background(element))];
    const contrast = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
    found.push([contrast, element.textContent.trim().slice(0, 40) || element.id]);
  }
  return found;
}"""


# Files as the user drops or pastes them.
HAND_OVER = """([name, files]) => {
  const transfer = new DataTransfer();
  for (const [name, type, bytes] of files) {
    transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  }
  const options = { bubbles: true, cancelable: true };
  const event = name === 'paste'
    ? new ClipboardEvent(name, { ...options, clipboardData: transfer })
    : new DragEvent(name, { ...options, dataTransfer: transfer });
  return document.getElementById('arrived-title').dispatchEvent(event);
}"""

# The addresses of the pictures that came and of those whose bytes were given back.
WATCH_PICTURES = """() => {
  window.made = [];
  window.revoked = [];
  const { createObjectURL, revokeObjectURL } = URL;
  URL.createObjectURL = (blob) => {
    made.push(createObjectURL.call(URL, blob));
    return made.at(-1);
  };
  URL.revokeObjectURL = (url) => {
    revoked.push(url);
    revokeObjectURL.call(URL, url);
  };
}"""

# The outline of the element that has the focus.
OUTLINE = """() => {
  const active = document.activeElement;
  return getComputedStyle(active.id === 'whole' ? active.nextElementSibling : active).outlineStyle;
}"""


async def low_contrasts(page: Page) -> list[Any]:
    """Return the texts that are hard to read."""
    contrasts = await page.evaluate(CONTRASTS)
    assert len(contrasts) > 30
    return [one for one in contrasts if one[0] < 4.5]


async def nameless(page: Page) -> list[str]:
    """Return the roles of elements that have no name for a screen reader."""
    session = await page.context.new_cdp_session(page)
    tree = await session.send("Accessibility.getFullAXTree")
    roles = {"button", "link", "textbox", "switch", "checkbox"}
    roles |= {"DisclosureTriangle", "image", "log", "table", "region"}
    found = [node for node in tree["nodes"] if not node["ignored"] and node["role"]["value"] in roles]
    assert {"button", "link", "textbox", "switch"} <= {node["role"]["value"] for node in found}
    return [node["role"]["value"] for node in found if not node.get("name", {}).get("value", "").strip()]


async def check_looks(page: Page, name: str, *, full_names: bool = False) -> None:
    """Check contrasts in both schemes and that a narrow page fits, and leave pictures."""
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        assert await low_contrasts(page) == []
        await screenshot(page, f"{name}-{scheme}")
    size = page.viewport_size
    assert size is not None
    await page.set_viewport_size({"width": NARROW, "height": 800})
    assert await overflow(page) <= 0
    await screenshot(page, f"{name}-dark-narrow")
    if full_names:
        assert await nameless(page) == []
    await page.set_viewport_size(size)


async def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than the window."""
    width: int = await page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
    return width


async def say_connect(page: Page, topic: str, key: str = KEY, name: str = "") -> None:
    await page.get_by_label("Topic").fill(topic)
    await page.get_by_label("Pre-shared key or token").fill(key)
    await page.get_by_label("Name of the key").fill(name)
    await page.get_by_role("button", name="Connect", exact=True).click()


def lent(seconds: float) -> str:
    """Return a token for the page of a user."""
    return wsqueue.Token.make(WEB, name="web", who="alice", subscribe=["*"], seconds=seconds).text


async def connect(page: Page, topic: str) -> None:
    await say_connect(page, topic)
    await page.get_by_text(f"Connected. Messages that are published on {topic} appear here.").wait_for()


async def publish(page: Page, message: str) -> None:
    await page.get_by_label("Message", exact=True).fill(message)
    await page.get_by_role("button", name="Publish").click()


def png(width: int, height: int) -> bytes:
    """Return a picture of one color."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress((b"\x00" + b"\x0f\x6e\x84" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def shown_picture(page: Page, width: int, index: int = 0) -> None:
    """Wait for a picture in the list of messages, of a width in pixels of its own."""
    loaded = "([index, width]) => document.querySelectorAll('#arrived img')[index]?.naturalWidth === width"
    await page.wait_for_function(loaded, arg=[index, width])


async def said(page: Page, text: str) -> None:
    """Wait until the page says a text about the state of the node."""
    await page.locator("#verdict").get_by_text(text).wait_for()


async def switch(page: Page) -> None:
    """Look at the whole cluster, or at the node again."""
    await page.get_by_text("Whole cluster").click()


def full_report(number: int) -> reports.Report:
    """Return a report that has everything in it; between two of them, 100 commits were made."""
    return reports.Report(
        id="one",
        role="consumer",
        version="0.1.0",
        addresses=["wss://[2001:db8::7]:10001"],
        time=1000.0 + number,
        uptime_seconds=100_000,
        not_ready="the disk is full",
        psk_fingerprints=["0123abcd", "4567cdef"],
        certificate_ends=1000.0 + number + 3 * 86400 + 4 * 3600 + 60,
        loop_lag_seconds=1.5,
        max_connections=10,
        connections=[reports.ConnectionCount("subscriber", "open", "classic", 9)],
        clients=[
            reports.ClientStatus(name="", connections=3),
            *(reports.ClientStatus(name=f"client-{index}", connections=1) for index in range(60)),
            reports.ClientStatus(name=MARKUP, connections=2, topics=7, refused=1234),
        ],
        counters={"messages_in": 10 * number},
        commit_seconds=reports.HistogramStatus([0.001, 0.01, 0.1], [0, 98 * number, 0, 2 * number], 0.0),
        top_topics=[
            reports.TopicStatus("x" * 200, 9.5),
            reports.TopicStatus("ten per second", 10.0),
            reports.TopicStatus("", 1e7),
        ],
        lags=[reports.LagStatus(MARKUP, "group", "g", 1_000_000, 3)],
        slow_subscribers=12,
        slow_peers=[reports.SlowPeer("[2001:db8::8]:40000", "v2", 10_000_000, 1_000_000)],
        log=reports.LogStatus(
            mode="sqlite",
            topics=3,
            bytes=970,
            limit_bytes=1000,
            commit_seconds=0.25,
            free_bytes=15 * 1024**3,
            failing="the disk is full",
        ),
        warnings=[reports.NodeWarning("log_failing", "It fails.", "Look at `systemctl status` there.")],
    )


async def publish_on(nodes: Nodes, producer: RunningNode, consumers: Sequence[RunningNode]) -> None:
    """Publish until cancelled."""
    async with nodes.client([producer], consumers) as client, client.subscribe("news", "sport"):
        while True:
            await client.publish("news", *["It rains again."] * 20)
            await client.publish("sport", "1:0", MARKUP)
            await client.publish(MARKUP, "x")
            await asyncio.sleep(0.02)


class TestStatus:
    async def test_it_loads_all_from_its_node_and_the_numbers_move(self, nodes: Nodes, tabs: Tabs) -> None:
        consumers, producer = await cluster(nodes)
        page = await tabs.open(page_of(producer))
        await said(page, "All is well.")
        assert await page.title() == f"Producer {producer.address} \N{EN DASH} wsqueue"
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(publish_on(nodes, producer, consumers))
            card = page.locator(".card", has=page.get_by_role("heading", name="Messages in"))
            await expect(card.locator(".value > span").first).to_have_text(re.compile("[1-9]"))
            chart = await card.get_by_role("img").get_attribute("aria-label")
            assert chart is not None
            assert re.match(r"Messages in, last \d+ s: now [\d,]+ per second, at most ", chart)
            topics = page.get_by_role("table", name="Busiest topics")
            # Names of topics are shown as text.
            await topics.get_by_text(MARKUP).wait_for()
            assert await page.locator("img").count() == 0
            links = page.get_by_role("table", name="Links to consumers")
            assert await links.get_by_text("up", exact=True).count() == 2
            await page.get_by_text(re.compile(r"\d timed batch(es)?, last \d+ s")).wait_for()
            await check_looks(page, "producer")
            other = await tabs.open(page_of(consumers[0]), scheme="dark", width=NARROW, height=800)
            await other.get_by_role("heading", name="Log").wait_for()
            await other.get_by_text("Delivered").wait_for()
            await other.wait_for_timeout(2500)
            assert await overflow(other) <= 0
            await screenshot(other, "consumer-dark-narrow")
            publishing.cancel()
        assert {url.split("/")[2] for url in tabs.requests} == {producer.address, consumers[0].address}
        [document] = [url for url in tabs.requests if url == page_of(producer)]
        assert len((await page.request.get(document)).headers["content-security-policy"]) > 100

    async def test_a_consumer_that_is_down_is_said_in_words(self, nodes: Nodes, tabs: Tabs) -> None:
        consumers, producer = await cluster(nodes)
        page = await tabs.open(page_of(producer))
        await said(page, "All is well.")
        address = consumers[1].address
        await consumers[1].crash()
        await said(page, "This producer is not ready: no link to")
        warning = page.locator("#warnings strong", has_text=f"No link to consumer {address}")
        await warning.wait_for()
        await said(page, "See whether it runs and can be reached")
        assert (await page.title()).startswith("(1) ")
        # The seconds change in the visible sentence, and not in the text for screen readers.
        await page.evaluate("""() => {
          window.spoken = 0;
          const observer = new MutationObserver(() => { spoken += 1; });
          observer.observe(document.getElementById('spoken'), { childList: true });
        }""")
        before = await warning.text_content()
        assert before is not None
        await expect(warning).not_to_have_text(before)
        assert await page.evaluate("spoken") == 0
        await check_looks(page, "warning")
        await consumers[1].restart()
        await said(page, "All is well.")

    async def test_a_node_that_does_not_answer(self, nodes: Nodes, tabs: Tabs) -> None:
        tabs.tolerate("Failed to load resource: net::ERR_CONNECTION_REFUSED")
        _, producer = await cluster(nodes)
        page = await tabs.open(page_of(producer))
        await said(page, "All is well.")
        await producer.crash()
        await said(page, "This node does not answer since ")
        await said(page, "This page keeps trying.")
        await screenshot(page, "silent-light")
        await producer.restart()
        await said(page, "All is well.")

    async def test_the_whole_cluster(self, nodes: Nodes, tabs: Tabs) -> None:
        consumers, producer = await cluster(nodes)
        page = await tabs.open(page_of(consumers[0]))
        await switch(page)
        table = page.get_by_role("table", name="Nodes")
        await table.get_by_text("ready").nth(2).wait_for()
        rows = await table.get_by_role("row").all_inner_texts()
        assert [row.split("\t")[:2] for row in rows[1:]] == [
            *([consumer.address, "consumer"] for consumer in consumers),
            [producer.address, "producer"],
        ]
        assert "2 of 2" in rows[3]
        await said(page, "All 3 nodes answer and nothing needs attention.")
        address = consumers[1].address
        await consumers[1].crash()
        await said(page, "1 node of 3 does not answer.")
        await said(page, f"consumer {address} does not answer")
        await check_looks(page, "cluster", full_names=True)

    async def test_all_that_a_report_may_say(self, nodes: Nodes, tabs: Tabs) -> None:
        consumer = await nodes.consumer()
        page = await tabs.open("about:blank", width=NARROW, height=800)
        numbers = itertools.count()

        async def answer(route: Route) -> None:
            await route.fulfill(body=msgspec.json.encode(full_report(next(numbers))))

        await page.route("**/status.json", answer)
        await page.goto(page_of(consumer))
        texts = ["in 3 d 4 h", "1.5 s", "0123abcd, 4567cdef", "on disk (sqlite)", "the disk is full"]
        for text in [*texts, "9.5 MiB", "15.0 GiB", "and 11 others", "x" * 200]:
            await page.locator("#view").get_by_text(text).wait_for()
        await page.get_by_text("ten per second").wait_for()
        await expect(page.locator("#warnings code")).to_have_text("systemctl status")
        await page.get_by_text(re.compile("[1-9]00 commits, last ")).wait_for()
        quantiles = page.locator(".pair dd")
        assert await quantiles.all_inner_texts() == ["5.6 ms", "over 100 ms"]
        clients = page.get_by_role("table", name="Clients by name")
        rows = await clients.get_by_role("row").all_inner_texts()
        assert [row.split() for row in rows[1:4]] == [
            [*MARKUP.split(), "2", "7", "1,234"],
            ["(without", "a", "name)", "3", "–", "0"],  # noqa: RUF001
            ["client-0", "1", "0", "0"],
        ]
        assert len(rows) == 51
        await page.get_by_text("and 12 other names").wait_for()
        assert await page.locator("img").count() == 0
        await check_looks(page, "full", full_names=True)
        await page.set_viewport_size({"width": 1280, "height": 900})
        assert await overflow(page) <= 0

    async def test_a_shared_log(self, nodes: Nodes, tabs: Tabs) -> None:
        consumer = await nodes.consumer()
        page = await tabs.open("about:blank")
        engine = reports.EngineStatus(
            server="n1 2.15.1",
            streams=8,
            streams_without_leader=3,
            replicas=2,
            replicas_wanted=3,
            lag_records=1234,
            conflicts=56,
            unanswered=7890,
        )
        log = reports.LogStatus(mode="jetstream", topics=3, bytes=9, limit_bytes=10, engine=engine)

        async def answer(route: Route) -> None:
            report = msgspec.structs.replace(full_report(1), log=log)
            await route.fulfill(body=msgspec.json.encode(report))

        await page.route("**/status.json", answer)
        await page.goto(page_of(consumer))
        for text in [
            "shared with other consumers",
            "n1 2.15.1",
            "2 of 3",
            "3 of 8",
            "1,234 records",
            "56, 7,890",
        ]:
            await page.locator("#view").get_by_text(text).wait_for()


class TestDemo:
    async def test_what_one_tab_publishes_arrives_in_another(self, nodes: Nodes, tabs: Tabs) -> None:
        consumers, producer = await cluster(nodes)
        one = await tabs.open(page_of(producer))
        other = await tabs.open(page_of(consumers[0]))
        await connect(one, "news")
        await connect(other, "news")
        for message in ("hello there", MARKUP):
            await publish(one, message)
            await one.get_by_text("Stored and confirmed in").wait_for()
            await other.locator("#arrived").get_by_text(message, exact=True).wait_for()
            await one.locator("#arrived").get_by_text(message, exact=True).wait_for()
        places = await one.locator("#demo-facts").inner_text()
        assert f"{producer.address} (connected, v2)" in places
        assert "modulo 2 consumers is" in places
        assert await low_contrasts(one) == []
        await screenshot(one, "demo-light")
        await one.get_by_role("button", name="Disconnect").click()
        await one.get_by_text("Disconnected.").wait_for()
        await eventually(lambda: sum(node.subscribers("news") for node in consumers) == 1, "one has gone")
        # The key was not stored, and travelled nowhere.
        stored = await one.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert stored == [0, 0, ""]

    async def test_over_tls_the_page_knows_the_certificates(
        self, nodes: Nodes, tabs: Tabs, tmp_path: Path
    ) -> None:
        issued = msgspec.to_builtins(Authority(tmp_path).issue("node"))
        _, producer = await cluster(nodes, tls={name: value for name, value in issued.items() if value})
        page = await tabs.open(page_of(producer), ignore_https_errors=True)
        # Not said to be well: the browser has refused the certificate before it was told to ignore that.
        await page.get_by_role("table", name="Links to consumers").wait_for()
        await connect(page, "news")
        await publish(page, "over TLS")
        await page.get_by_text("Stored and confirmed in").wait_for()
        await page.locator("#arrived").get_by_text("over TLS").wait_for()
        assert page.url.startswith("https:")

    async def test_another_key_is_said_in_words(self, nodes: Nodes, tabs: Tabs) -> None:
        _, producer = await cluster(nodes)
        page = await tabs.open(page_of(producer), scheme="dark")
        await say_connect(page, "news", OTHER_KEY)
        await page.get_by_text("This is not the key of the cluster").wait_for()
        key = page.get_by_label("Pre-shared key")
        assert await key.get_attribute("aria-invalid") == "true"
        assert await low_contrasts(page) == []
        assert await nameless(page) == []
        await connect(page, "news")

    async def test_names_and_tokens(
        self, nodes: Nodes, tabs: Tabs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsqueue.protocol.access.TOKEN_TOLERANCE_SECONDS", 0.0)
        write_key(tmp_path, "web", WEB)
        rights = {"publish": ["news"], "subscribe": ["news", "sport"]}
        _, producer = await cluster(nodes, clients=[{"name": "web", "key_file": "web.key", **rights}])
        page = await tabs.open(page_of(producer))
        status = page.locator("#demo-status")
        await say_connect(page, "news", WEB)
        await status.get_by_text("This is not the key of the cluster").wait_for()
        await say_connect(page, "news", OTHER_KEY, "web")
        await status.get_by_text("This is not the key web of the nodes").wait_for()
        await say_connect(page, "secrets", WEB, "web")
        await status.get_by_text("This key or token does not allow that").wait_for()
        await say_connect(page, "news", WEB, "web")
        await status.get_by_text("Connected.").wait_for()
        clients = page.get_by_role("table", name="Clients by name")
        await publish(page, "by a name")
        await page.locator("#arrived").get_by_text("by a name").wait_for()
        await clients.get_by_role("rowheader", name="web", exact=True).wait_for()
        await check_looks(page, "clients")
        await page.get_by_role("button", name="Disconnect").click()
        # Whatever an old token may do, it ends, and the page says when.
        await say_connect(page, "sport", lent(seconds=-3600))
        await status.get_by_text(re.compile(r"This token ended at \d\d:\d\d:\d\d on \d{4}-")).wait_for()
        await say_connect(page, "sport", wsqueue.Token.make(OTHER_KEY, name="web").text)
        await status.get_by_text("The nodes do not know the key of this token").wait_for()
        await say_connect(page, "sport", f" {lent(seconds=4)}\n", "ignored")
        await status.get_by_text("Connected.").wait_for()
        await publish(page, "not allowed")
        await status.get_by_text("web:alice may not publish to 'sport'").wait_for()
        # Its end comes while the page is connected.
        await status.get_by_text("Make another with wsqueue token, and connect again.").wait_for()
        assert await page.get_by_role("button", name="Connect", exact=True).is_visible()
        assert await low_contrasts(page) == []
        stored = await page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
        assert stored == [0, 0, ""]

    async def test_connecting_can_be_cancelled(self, nodes: Nodes, tabs: Tabs) -> None:
        tabs.tolerate("WebSocket connection to")
        consumers, producer = await cluster(nodes, consumers=1)
        await consumers[0].crash()
        page = await tabs.open(page_of(producer))
        await say_connect(page, "news")
        await page.locator("#demo-facts").get_by_text("(down: no connection)").wait_for()
        await page.get_by_role("button", name="Cancel").click()
        await page.get_by_text("Disconnected.").wait_for()
        await consumers[0].restart()
        await connect(page, "news")

    async def test_a_page_without_cryptography_says_what_to_do(self, nodes: Nodes, tabs: Tabs) -> None:
        _, producer = await cluster(nodes, pages="all")
        producer.write(hosts=["node.example"])
        await producer.service.reload()
        page = await tabs.open(page_of(producer).replace("127.0.0.1", "node.example"))
        await say_connect(page, "news")
        await page.get_by_text("Open this page over https, or through a tunnel: ssh -L").wait_for()
        await said(page, "All is well.")

    async def test_the_keyboard_is_enough(self, nodes: Nodes, tabs: Tabs) -> None:
        _, producer = await cluster(nodes)
        page = await tabs.open(page_of(producer))
        await said(page, "All is well.")
        seen: list[str] = []
        while "topic" not in seen:
            await page.keyboard.press("Tab")
            seen.append(
                await page.evaluate("document.activeElement.id || document.activeElement.textContent")
            )
            assert await page.evaluate(OUTLINE) != "none", seen
            assert len(seen) < 20, seen
        assert seen[:3] == ["Skip to the content", "Status", "Try it"]
        assert "whole" in seen
        await page.keyboard.press("Control+A")
        await page.keyboard.type("sport")
        await page.keyboard.press("Tab")
        await page.keyboard.type(KEY)
        await page.keyboard.press("Enter")
        await page.get_by_text("Connected. Messages that are published on sport appear here.").wait_for()
        await page.keyboard.type("typed without a mouse")
        await page.keyboard.press("Enter")
        await page.locator("#arrived").get_by_text("typed without a mouse").wait_for()
        assert await page.evaluate("document.activeElement.id") == "message"

    async def test_the_skip_link_skips_and_a_node_may_know_no_others(self, nodes: Nodes, tabs: Tabs) -> None:
        page = await tabs.open(page_of(await nodes.consumer()), reduced_motion="reduce")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "main"
        transition = "getComputedStyle(document.querySelector('.track')).transitionProperty"
        assert await page.evaluate(transition) == "none"
        await switch(page)
        text = "This node knows no other nodes. Name them in the table [monitoring]"
        await page.get_by_text(text).wait_for()


class TestPictures:
    async def test_a_picture_goes_from_one_tab_to_another(self, nodes: Nodes, tabs: Tabs) -> None:
        consumers, producer = await cluster(nodes)
        one = await tabs.open(page_of(producer))
        other = await tabs.open(page_of(consumers[0]), scheme="dark", width=NARROW, height=800)
        chooser = one.get_by_label("Picture", exact=True)
        assert await chooser.is_disabled()
        await connect(one, "news")
        await connect(other, "news")
        picture = png(1600, 1200)
        await chooser.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture})
        await one.get_by_text("Stored and confirmed in").wait_for()
        assert await chooser.input_value() == ""
        for page in (one, other):
            await shown_picture(page, 1600)
            image = page.locator("#arrived img")
            alternative = await image.get_attribute("alt")
            assert alternative == f"Picture, {len(picture):,} bytes, image/png"
            address = await image.get_attribute("src")
            assert address is not None
            assert address.startswith("blob:")
            box = await image.bounding_box()
            assert box is not None
            assert box["height"] <= 12 * 16
            assert await overflow(page) <= 0
            assert await low_contrasts(page) == []
            assert await nameless(page) == []
        # It has grown after it was added, and the list was at its end.
        at_end = (
            "(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight < 2)"
        )
        await one.wait_for_function(f"{at_end}(document.getElementById('arrived'))")
        await publish(one, "and a text")
        await other.locator("#arrived").get_by_text("and a text").wait_for()
        await screenshot(one, "picture-light")
        await screenshot(other, "picture-dark-narrow")

    async def test_pictures_are_dropped_and_pasted(self, nodes: Nodes, tabs: Tabs) -> None:
        _, producer = await cluster(nodes)
        page = await tabs.open(page_of(producer))
        first = ["a.png", "image/png", list(png(3, 4))]
        # Not connected: the browser does not leave the page for the file, and nothing is published.
        assert not await page.evaluate(HAND_OVER, ["drop", [first]])
        assert not await page.evaluate(HAND_OVER, ["dragover", [first]])
        await connect(page, "news")
        await page.evaluate(HAND_OVER, ["drop", [first]])
        await shown_picture(page, 3)
        await page.evaluate(HAND_OVER, ["paste", [["b.png", "image/png", list(png(5, 6))]]])
        await shown_picture(page, 5, 1)
        # A text that is pasted into a field is left to the browser.
        assert await page.evaluate(HAND_OVER, ["paste", []])
        assert await page.locator("#arrived li").count() == 2

    async def test_files_that_are_not_published(self, nodes: Nodes, tabs: Tabs) -> None:
        _, producer = await cluster(nodes)
        page = await tabs.open(page_of(producer))
        await connect(page, "news")
        svg = f"<svg xmlns='http://www.w3.org/2000/svg'>{MARKUP}</svg>".encode()
        for kind in ("image/svg+xml", "text/html", "image/PNG;x", ""):
            await page.evaluate(HAND_OVER, ["drop", [[MARKUP, kind, list(svg)]]])
            await page.get_by_text(f"{MARKUP} is no PNG, JPEG, GIF or WebP.").wait_for()
            await page.evaluate("document.getElementById('demo-status').textContent = ''")
        chooser = page.get_by_label("Picture", exact=True)
        long = bytes(4 * 1024 * 1024 + 1)
        await chooser.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": long})
        await page.get_by_text("The picture has 4.0 MiB, expected at most 4.0 MiB.").wait_for()
        # The nodes have a limit of their own.
        await chooser.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": long[::2]})
        await page.get_by_text("That did not work: ").wait_for()
        assert await page.locator("#arrived li").count() == 0
        await publish(page, "It goes on.")
        await page.locator("#arrived").get_by_text("It goes on.").wait_for()

    async def test_all_else_is_shown_as_text(self, nodes: Nodes, tabs: Tabs) -> None:
        consumers, producer = await cluster(nodes)
        page = await tabs.open(page_of(producer))
        await page.evaluate(WATCH_PICTURES)
        await connect(page, "news")
        svg = f"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script>{MARKUP}</svg>"
        arrived = page.locator("#arrived")
        async with nodes.client([producer], consumers) as client:
            for kind in ("image/svg+xml", "text/html", MARKUP, "image/png2", "application/octet-stream"):
                await client.publish("news", svg.encode(), headers={"content-type": kind})
                await arrived.get_by_text(f"{len(svg)} bytes, {kind}", exact=True).wait_for()
            await client.publish("news", b"x")
            await arrived.get_by_text("1 byte", exact=True).wait_for()
            await client.publish("news", bytes(2000), headers={"__proto__": "image/png"})
            await arrived.get_by_text("2,000 bytes", exact=True).wait_for()
            # A text is no picture, whatever its headers say.
            await client.publish("news", svg, headers={"content-type": "image/png"})
            await arrived.get_by_text(svg, exact=True).wait_for()
            assert await page.evaluate("made") == []
            # These bytes are no picture either.
            await client.publish("news", svg.encode(), headers={"content-type": "image/png"})
            await arrived.get_by_text(f"{len(svg)} bytes, image/png", exact=True).wait_for()
            await client.publish("news", png(7, 8), headers={"content-type": " IMAGE/PNG ; x=y"})
            await shown_picture(page, 7)
        assert await page.locator("img, svg script").count() == 1
        made = await page.evaluate("made")
        assert await page.evaluate("revoked") == made[:1]
        assert len(made) == 2

    async def test_pictures_that_leave_the_page_give_their_bytes_back(self, nodes: Nodes, tabs: Tabs) -> None:
        consumers, producer = await cluster(nodes)
        page = await tabs.open(page_of(producer))
        await page.evaluate(WATCH_PICTURES)
        await connect(page, "news")
        headers = {"content-type": "image/png"}
        entries = "document.querySelectorAll('#arrived li').length"
        async with nodes.client([producer], consumers) as client:
            await client.publish("news", png(3, 4), png(5, 6), headers=headers)
            await shown_picture(page, 5, 1)
            await client.publish("news", *map(str, range(199)))
            await page.locator("#arrived").get_by_text("198", exact=True).wait_for()
            await shown_picture(page, 5)
            assert await page.evaluate(f"[{entries}, made.length, revoked.length]") == [200, 2, 1]
            # There is room for 32 MiB.
            large = png(1, 1) + bytes(1_000_000)
            for number in range(1, 35):
                await client.publish("news", large, headers=headers)
                await page.wait_for_function("(count) => made.length === count", arg=2 + number)
                if number == 33:
                    assert await page.evaluate(f"[{entries}, revoked.length]") == [200, 2]
            assert await page.evaluate(f"[{entries}, revoked.length]") == [33, 3]
        await page.get_by_role("button", name="Disconnect").click()
        await connect(page, "sport")
        assert await page.evaluate(entries) == 0
        assert await page.evaluate("revoked") == await page.evaluate("made")
