"""An HTTP proxy with CONNECT, which knows where names lead and may ask for a password."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence


class ConnectProxy:
    """Pass connections on.

    Args:
        names: For each target, as `node.test:443`, the port of this host that it is.
        user: Is asked for, as `user:password`; "" if nobody is asked.
        interim: Interim answers that come before each final one.

    Attributes:
        port: Where it listens.
        heads: The heads of the requests that came.
    """

    def __init__(self, names: Mapping[str, int], user: str = "", interim: Sequence[bytes] = ()) -> None:
        self.port = 0
        self.heads: list[str] = []
        self._names, self._interim = names, interim
        self._wanted = (
            f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a request, and pass bytes on."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            method, target, _ = head.split(" ", 2)
            assert method == "CONNECT"
            for answer in self._interim:
                writer.write(answer)
                await writer.drain()
            if self._wanted.lower() not in head.lower():
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            if target not in self._names:
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nno!\n")
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._names[target])
            with contextlib.closing(far_writer):
                writer.write(b"HTTP/1.1 200 Connection established\r\nX-Proxy: test\r\n\r\n")
                await asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


@contextlib.asynccontextmanager
async def http_proxy(
    names: Mapping[str, int], user: str = "", interim: Sequence[bytes] = ()
) -> AsyncIterator[ConnectProxy]:
    """Run a proxy."""
    proxy = ConnectProxy(names, user, interim)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
