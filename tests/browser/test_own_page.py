"""The page of docs/own-page.md, with each file and command of that document, behind the nginx of Debian."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

import wsqueue
from tests.support.paths import ROOT
from tests.support.waiting import eventually, soon
from wsqueue.nodes.consumer import Consumer
from wsqueue.nodes.producer import Producer
from wsqueue.nodes.service import Service

from ..support.chromium import Tabs
from ..support.ports import answers, free_port
from ..support.programs import debian_program

pytestmark = pytest.mark.anyio

DOCUMENT = ROOT / "docs" / "own-page.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?:# |<!-- )([\w/.-]+\.\w+)(?: -->)?\n")
NODE = re.compile(r"wsqueue (consumer|producer) (\S+) ")
PORTS = ("10001", "10002", "11001", "8001", "8443")
NGINX = "/usr/sbin/nginx"

# The client's own module, from the page's own site, in a tab in which a user has signed in.
SUBSCRIBE_TO = """async (topic) => {
  const { WsqueueClient } = await import('/client.js');
  const token = async () => (await (await fetch('token')).json()).token;
  const consumers = [`wss://${location.host}/queue`];
  const client = new WsqueueClient({ consumers, channelBinding: 'none', token });
  const said = await client.subscribe(topic, () => {}, { onError() {} }).ready.then(() => 'ready', String);
  client.close();
  return said;
}"""


class Walk:
    """Follow the document in a directory of its own, with other ports and with tokens that end soon.

    Args:
        directory: An empty directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[asyncio.subprocess.Process] = []
        self._nodes: list[Service] = []
        self._ports = {port: str(free_port()) for port in PORTS}

    @property
    def site(self) -> str:
        """Return the address of the page."""
        return f"https://localhost:{self._ports['8443']}/"

    async def follow(self) -> None:
        """Write each file and run each command, in the order of the document."""
        for language, text in BLOCK.findall(DOCUMENT.read_text()):
            block = re.sub(r"\b(?:" + "|".join(PORTS) + r")\b", lambda found: self._ports[found[0]], text)
            if language == "console":
                for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                    await self._run(command.strip())
            elif file := FILE.match(block):
                (self._directory / file[1]).write_text(block.replace("seconds=600", "seconds=2"))

    async def _run(self, command: str) -> None:
        if node := NODE.match(command):
            # In this process, so that the test can take the tolerance for other clocks away.
            kind = Consumer if node[1] == "consumer" else Producer
            self._nodes.append(service := Service(self._directory / node[2], kind))
            await service.start()
            await eventually(lambda: not service.node.not_ready(), f"the {node[1]} is ready")
            return
        if command.startswith("mkdir"):
            (self._directory / "site").mkdir()
            return
        background = command.endswith("&")
        if command.startswith(NGINX):
            # Its workers would be another user's, who may not read the files of the test.
            user = "-g 'user root;'" if os.geteuid() == 0 else ""
            command = command.replace(NGINX, f"{debian_program('nginx', 'nginx')} {user}")
        python = shlex.quote(sys.executable)
        functions = f'python() {{ exec {python} "$@"; }}; wsqueue() {{ {python} -m wsqueue "$@"; }}'
        line = command.removesuffix("&")
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euc",
            f"{functions}\n{'exec ' if line.startswith('/') else ''}{line}",
            cwd=self._directory,
            stderr=asyncio.subprocess.PIPE if not background else None,
        )
        if background:
            self._started.append(process)
            return
        async with soon():
            _, errors = await process.communicate()
        assert process.returncode == 0, f"{command}\n{errors.decode()}"

    async def listening(self) -> None:
        """Wait until backend and nginx take connections."""
        ports = [int(self._ports[port]) for port in ("8001", "8443")]
        await eventually(lambda: all(map(answers, ports)), "backend and nginx listen")

    def publisher(self) -> wsqueue.Client:
        """Return a client as `publisher.toml` describes it."""
        return wsqueue.connect(
            producers=[f"127.0.0.1:{self._ports['10002']}/produce"],
            consumers=[f"127.0.0.1:{self._ports['10001']}/subscribe"],
            psk=(self._directory / "nodes.key").read_text().strip(),
        )

    async def end(self) -> None:
        """End all that runs."""
        for process in self._started:
            process.send_signal(signal.SIGTERM)
        for process in self._started:
            await process.wait()
        for node in reversed(self._nodes):
            async with soon():
                await node.drain()


@pytest.fixture
async def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Walk]:
    monkeypatch.setattr("wsqueue.protocol.access.TOKEN_TOLERANCE_SECONDS", 0.0)
    made = Walk(tmp_path)
    try:
        yield made
    finally:
        await made.end()


async def signed_in(tabs: Tabs, walk: Walk, user: str, password: str) -> Page:
    """Return the page of a user, connected."""
    credentials = {"username": user, "password": password}
    page = await tabs.open(walk.site, ignore_https_errors=True, http_credentials=credentials)
    await expect(page.locator("#state")).to_have_text("Connected.")
    return page


async def test_each_user_has_a_page(walk: Walk, tabs: Tabs) -> None:
    await walk.follow()
    await walk.listening()
    alice = await signed_in(tabs, walk, "alice", "wonderland")
    bob = await signed_in(tabs, walk, "bob", "builder")
    # The tokens end and are renewed while messages come, and none is lost or comes twice.
    sent: list[str] = []
    lent = [url for url in tabs.requests if url.endswith("/token")]
    async with walk.publisher() as publisher:
        while len([url for url in tabs.requests if url.endswith("/token")]) < len(lent) + 4:
            sent.append(f"<b>{len(sent)}</b>")
            await publisher.publish("users/alice/news", sent[-1])
            await asyncio.sleep(0.05)
        await publisher.publish("users/bob/news", "hello, Bob")
    await expect(bob.locator("#news li")).to_have_text(["hello, Bob"])
    await expect(alice.locator("#news li")).to_have_text(sent)
    # Whatever a page asks for, the token is for the topics of its user.
    refused = 'NotAllowedError: the subscription to "users/alice/news" is refused: not_allowed'
    assert await bob.evaluate(SUBSCRIBE_TO, "users/alice/news") == refused
    assert await bob.evaluate(SUBSCRIBE_TO, "users/bob/news") == "ready"
    nobody = await tabs.open("about:blank", ignore_https_errors=True)
    answer = await nobody.request.get(f"{walk.site}token", headers={"X-User": "alice"})
    assert answer.status == 401
