"""Nodes behind a proxy, and the proxies of docs/proxies.md."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from .nodes import Nodes, RunningNode
from .paths import ROOT
from .ports import answers, free_port
from .programs import debian_program
from .waiting import eventually


async def proxied(nodes: Nodes, **settings: Any) -> tuple[RunningNode, RunningNode, dict[str, str]]:
    """Return a consumer and a producer with listeners for proxies, and these by the paths at the proxy."""
    ports = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    made = [{"proxy": {"listen": [port], "path": "/queue"}} | settings for port in ports]
    consumer = await nodes.consumer(**made[0])
    producer = await nodes.producer([consumer], **made[1])
    await producer.ready()
    return consumer, producer, {"/queue/subscribe": ports[0], "/queue/produce": ports[1]}


@contextlib.asynccontextmanager
async def real_proxy(program: str, directory: Path, ports: dict[str, str]) -> AsyncIterator[int]:
    """Run nginx or Caddy as the document says, and yield its port.

    Args:
        program: `nginx` or `caddy`.
        directory: Directory with the certificate `proxy`.
        ports: The listeners of the nodes by their paths, as `proxied` returns them.
    """
    path, port = debian_program(program, program), free_port()
    file = _written_config(program, directory, ports, port)
    options = ["-c", file] if program == "nginx" else ["run", "--adapter", "caddyfile", "--config", file]
    process = await asyncio.create_subprocess_exec(
        path, *map(str, options), env={"HOME": str(directory), "XDG_DATA_HOME": str(directory)}
    )
    try:
        await eventually(lambda: answers(port), "it listens")
        yield port
    finally:
        process.terminate()
        await process.wait()


def _written_config(kind: str, directory: Path, ports: dict[str, str], port: int) -> Path:
    """Write the configuration in the document, with the ports and files of a test."""
    text = (ROOT / "docs" / "proxies.md").read_text()
    (block,) = re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)
    changes = {
        "127.0.0.1:11002": ports["/queue/produce"],
        "127.0.0.1:11001": ports["/queue/subscribe"],
        "/etc/ssl/queue.example.com": str(directory / "proxy"),
        "queue.example.com": "localhost",
    }
    for before, after in changes.items():
        assert before in block
        block = block.replace(before, after)
    if kind == "nginx":
        temporary = "".join(
            f"{name}_temp_path {directory}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        block = block.replace("listen 443", f"listen 127.0.0.1:{port}")
        block = f"events {{}} http {{ {temporary} access_log off; {block} }}"
        block = f"daemon off; pid {directory}/pid; error_log stderr; {block}"
    else:
        block = f"{{\n\tadmin off\n\tauto_https disable_redirects\n\thttps_port {port}\n}}\n{block}"
    file = directory / "proxy.conf"
    file.write_text(block)
    return file
