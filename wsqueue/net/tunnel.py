"""Connections of clients through an HTTP proxy, with CONNECT (RFC 9110 section 9.3.6).

The proxy passes bytes on, so that TLS ends at the node, as without it. The client's configuration says which
proxy there is, and else the environment, as for other programs: `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Generator
from http import HTTPStatus

from websockets.exceptions import WebSocketException
from websockets.http11 import Response
from websockets.streams import StreamReader

from ..config.addresses import Address, host_and_port
from ..config.http_proxy import HttpProxy, parse_proxy
from ..config.model import ClientConfig, Config
from ..errors import why
from .dial import dial

MAX_ANSWER_BYTES = 16 * 1024
"""Length of the head of a proxy's answer, and of interim ones before it: far more than proxies say."""

READ_BYTES = 4096
"""Bytes of a read while a proxy answers."""

VARIABLES = ("https_proxy", "all_proxy")
"""Environment variables with a proxy for connections with TLS, in small letters; they may be in capitals."""


class ProxyError(OSError):
    """Say that there is no connection through a proxy, and why."""


async def reach(address: Address, config: Config) -> socket.socket:
    """Return a socket that is connected to an address, through a proxy if there is one.

    Args:
        address: One of TCP.
        config: That of the client or node that connects; nodes never use a proxy.

    Raises:
        OSError: As for `dial`, or the proxy opens no connection.
    """
    proxy = proxy_for(address, config)
    if proxy is None:
        return await dial(address.host, address.port)
    try:
        connection = await dial(proxy.host, proxy.port)
    except OSError as error:
        raise ProxyError(f"the proxy {proxy} does not answer: {why(error)}") from None
    try:
        await _open_tunnel(connection, proxy, host_and_port(address.host, address.port))
    except BaseException:
        connection.close()
        raise
    return connection


def proxy_for(address: Address, config: Config) -> HttpProxy | None:
    """Return the proxy for a connection, or None.

    Without `http_proxy` in the configuration, the environment counts for addresses with TLS. Nothing goes
    through a proxy to this host.

    Raises:
        ProxyError: The URL of the proxy in the environment cannot be used.
    """
    if not isinstance(config, ClientConfig) or address.loopback or config.http_proxy == "none":
        return None
    if config.http_proxy is not None:
        return parse_proxy(config.http_proxy)
    if not address.tls or not any(name.lower() in VARIABLES for name in os.environ):
        return None
    # Few clients need it, and it is large.
    from urllib.request import getproxies_environment, proxy_bypass  # noqa: PLC0415

    proxies = getproxies_environment()
    url = proxies.get("https") or proxies.get("all")
    places = {host_and_port(address.host, address.port), address.host}  # entries of IPv6 may have no brackets
    if not url or any(map(proxy_bypass, places)):
        return None
    try:
        return parse_proxy(url, with_password=True)
    except ValueError as error:
        raise ProxyError(f"HTTPS_PROXY in the environment: {error}") from None


async def _open_tunnel(connection: socket.socket, proxy: HttpProxy, target: str) -> None:
    """Ask a proxy for a connection to a target.

    Raises:
        OSError: It opens none.
    """
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, "\r\n".join([*lines, "", ""]).encode())
    answer = StreamReader()
    parser, size = _head_of(answer), 0
    try:
        while (response := _next_of(parser)) is None or _is_interim(response):
            if response is not None:
                parser = _head_of(answer)
                continue
            data = await loop.sock_recv(connection, READ_BYTES)
            size += len(data)
            if not data:
                raise ProxyError(f"the proxy {proxy} closed the connection without an answer")
            if size > MAX_ANSWER_BYTES:
                raise ProxyError(f"the proxy {proxy} answers with more than {MAX_ANSWER_BYTES} bytes")
            answer.feed_data(data)
    except (ValueError, LookupError, EOFError, WebSocketException):
        raise ProxyError(f"the proxy {proxy} does not answer as an HTTP proxy does") from None
    if not HTTPStatus.OK <= response.status_code < HTTPStatus.MULTIPLE_CHOICES:
        reason = f"{response.status_code} {response.reason_phrase}".strip()
        raise ProxyError(f"the proxy {proxy} opens no connection to {target}: {reason}")
    if answer.buffer:
        raise ProxyError(f"the proxy {proxy} sends bytes that are not of {target}, which speaks second")


def _head_of(answer: StreamReader) -> Generator[None, None, Response]:
    return Response.parse(answer.read_line, answer.read_exact, answer.read_to_eof, proxy=True)


def _is_interim(response: Response) -> bool:
    """Return True if another answer follows (RFC 9110 section 15.2); nobody has asked for 101."""
    return response.status_code < HTTPStatus.OK and response.status_code != HTTPStatus.SWITCHING_PROTOCOLS


def _next_of(parser: Generator[None, None, Response]) -> Response | None:
    """Return the head of the answer, None if more bytes are needed."""
    try:
        next(parser)
    except StopIteration as end:
        response: Response = end.value
        return response
    return None
