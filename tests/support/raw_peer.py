"""A WebSocket peer by hand: it sends any bytes, and does nothing that a test doesn't tell it.

It answers no ping and no close frame, so that a test can be a peer that is stuck, or worse.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from typing import Any, Self

from websockets.frames import Frame, Opcode

from .classic_peer import answer_of, message_of

WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def request_of(path: str, *headers: str) -> bytes:
    """Return an upgrade request, with headers besides those that it must have."""
    lines = (
        f"GET {path} HTTP/1.1",
        "Host: node",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def offer_of(subprotocol: str) -> str:
    """Return the header that offers or selects a subprotocol."""
    return f"Sec-WebSocket-Protocol: {subprotocol}"


async def http_get(address: str, path: str, tls: ssl.SSLContext | None = None) -> tuple[int, str]:
    """Ask a node for a page; return the status and the body."""
    async with RawSocket.open(address, tls=tls) as raw:
        raw.writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return await raw.page()


class RawSocket:
    """Hold one end of a TCP or unix connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, masked: bool) -> None:
        self.reader, self.writer, self._masked = reader, writer, masked

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, address: str, *, receive_buffer: int | None = None, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[Self]:
        """Connect to a node, and send nothing."""
        address = address.removeprefix("wss://")
        if address.startswith("unix:"):
            reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
        elif address.startswith("localhost:"):
            # It may be an IPv4 or an IPv6 address.
            reader, writer = await asyncio.open_connection("localhost", int(address.rpartition(":")[2]))
        else:
            host, _, port = address.rpartition(":")
            family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
            plain = socket.socket(family)
            plain.setblocking(False)
            if receive_buffer is not None:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            try:
                await asyncio.get_running_loop().sock_connect(plain, (host.strip("[]"), int(port)))
            except OSError:
                plain.close()
                raise
            name = host.strip("[]") if tls is not None else None
            reader, writer = await asyncio.open_connection(sock=plain, ssl=tls, server_hostname=name)
        raw = cls(reader, writer, masked=True)
        try:
            yield raw
        finally:
            await raw.abort()

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        address: str,
        path: str,
        *,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> AsyncIterator[Self]:
        """Connect to a node, and upgrade."""
        async with cls.open(address, receive_buffer=receive_buffer, tls=tls) as raw:
            await raw.ask(path)
            yield raw

    @classmethod
    @contextlib.asynccontextmanager
    async def established(
        cls,
        address: str,
        path: str,
        key: str,
        *,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> AsyncIterator[Self]:
        """Connect to a node, with the hello done."""
        async with cls.opened(address, path, receive_buffer=receive_buffer, tls=tls) as raw:
            await raw.hello(key)
            yield raw

    async def accept(self, key: str) -> None:
        """Be the acceptor: answer the upgrade request, do the hello, and answer the ping after it."""
        await self.upgrade()
        await self.hello(key)
        self.send_frame(Opcode.PONG, await self.until(Opcode.PING))

    async def ask(self, path: str, subprotocol: str = "") -> None:
        """Upgrade, to a subprotocol if one is given."""
        self.writer.write(request_of(path, *[offer_of(subprotocol)] if subprotocol else []))
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        selected = re.search(rb"Sec-WebSocket-Protocol: (\S+)", head, re.IGNORECASE)
        assert (selected[1].decode() if selected else "") == subprotocol

    async def upgrade(self, subprotocol: str = "") -> str:
        """Answer the upgrade request, and return its path."""
        request = await self.reader.readuntil(b"\r\n\r\n")
        selected = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
        match = re.search(rb"Sec-WebSocket-Key: (\S+)", request, re.IGNORECASE)
        assert match is not None
        digest = hashlib.sha1(match[1] + WEBSOCKET_GUID.encode(), usedforsecurity=False).digest()
        accept = base64.b64encode(digest).decode()
        self.writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n{selected}\r\n".encode()
        )
        return request.split()[1].decode()

    async def hello(self, key: str) -> None:
        """Do the hello."""
        self.send({"t": "h", "o": 1})
        proved = False
        challenged = False
        while not (proved and challenged):
            packet = await self.packet()
            if packet.get("o"):
                self.send({"t": "h", "a": answer_of(packet["o"], key)})
                challenged = True
            else:
                assert packet["a"] == answer_of(1, key)
                proved = True

    def send(self, packet: dict[str, Any]) -> None:
        """Send a packet."""
        self.send_frame(Opcode.TEXT, json.dumps(packet).encode())

    def publish(self, topic: str, *data: str) -> None:
        """Send messages, all in one write."""
        frames = [Frame(Opcode.TEXT, message_of(topic, one).encode()) for one in data]
        self.writer.write(b"".join(frame.serialize(mask=self._masked) for frame in frames))

    def send_frame(self, opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> None:
        """Send a frame."""
        self.writer.write(Frame(opcode, payload, fin).serialize(mask=self._masked))

    async def frame(self) -> tuple[Opcode, bytes]:
        """Return the next frame.

        Raises:
            asyncio.IncompleteReadError: There is none.
        """
        first, second = await self.reader.readexactly(2)
        length = second & 0x7F
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(await self.reader.readexactly(size))
        key = await self.reader.readexactly(4) if second & 0x80 else bytes(4)
        masked = await self.reader.readexactly(length)
        mask = (key * (length // 4 + 1))[:length]
        payload = int.from_bytes(masked) ^ int.from_bytes(mask)
        return Opcode(first & 0xF), payload.to_bytes(length)

    async def packet(self) -> dict[str, Any]:
        """Return the next packet; fail if the next frame is none."""
        opcode, payload = await self.frame()
        assert opcode is Opcode.TEXT, (opcode, payload)
        packet: dict[str, Any] = json.loads(payload)
        return packet

    async def until(self, opcode: Opcode) -> bytes:
        """Return the payload of the next frame of one kind; others are dropped."""
        while True:
            found, payload = await self.frame()
            if found is opcode:
                return payload

    async def close_frame(self) -> tuple[int, str]:
        """Return the code and the reason of the next close frame; others are dropped."""
        payload = await self.until(Opcode.CLOSE)
        (code,) = struct.unpack("!H", payload[:2])
        return code, payload[2:].decode()

    async def page(self) -> tuple[int, str]:
        """Return the status and the body of an HTTP response."""
        response = (await self.reader.read()).decode()
        head, _, body = response.partition("\r\n\r\n")
        return int(head.split()[1]), body

    async def end(self) -> None:
        """Wait for the end of the stream, and drop everything before it."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65_536):
                pass

    async def abort(self) -> None:
        """End the connection at once."""
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class RawServer:
    """Accept connections on loopback, and leave them to the test.

    Args:
        port: TCP port to listen on; 0 lets the system choose.
    """

    kind: type[RawSocket] = RawSocket

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._accepted: asyncio.Queue[RawSocket] = asyncio.Queue()
        self._sockets: list[RawSocket] = []
        self.address = ""

    async def next(self) -> RawSocket:
        """Return the next connection."""
        return await self._accepted.get()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self._port)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        for raw in self._sockets:
            await raw.abort()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = self.kind(reader, writer, masked=False)
        self._sockets.append(raw)
        self._accepted.put_nowait(raw)
