"""Opening a TCP connection to a name that has several addresses, some of which may be dead.

The addresses are tried in turn, of both families alternately. Each begins a moment after the one before, or
as soon as that one has failed, and the first that answers wins: "Happy Eyeballs" of RFC 8305. One after
another, a dead address would use up the deadline of all. uvloop lacks asyncio's option for it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from collections.abc import Iterable
from typing import Any

from ..errors import why
from .lookup import AddressInfo, look_up

NEXT_ATTEMPT_SECONDS = 0.25
"""Time after which the next address is tried too: the "Connection Attempt Delay" that RFC 8305 recommends."""


async def dial(host: str, port: int) -> socket.socket:
    """Return a connected, non-blocking socket.

    Args:
        host: A name or an IP address.
        port: The TCP port.

    Raises:
        OSError: The name is unknown, or no address of it takes the connection.
    """
    waiting = alternate_families(await look_up(host, port))
    attempts: set[asyncio.Task[socket.socket | OSError]] = set()
    problems: dict[str, OSError] = {}
    winner: socket.socket | None = None
    try:
        while winner is None and (waiting or attempts):
            if waiting:
                attempts.add(asyncio.create_task(_attempt(waiting.pop(0))))
            done, attempts = await asyncio.wait(
                attempts,
                timeout=NEXT_ATTEMPT_SECONDS if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                result = task.result()
                if isinstance(result, OSError):
                    problems.setdefault(why(result), result)
                elif winner is None:
                    winner = result
                else:
                    result.close()
    finally:
        for task in attempts:
            task.cancel()
            task.add_done_callback(_close)
    if winner is not None:
        return winner
    raise next(iter(problems.values())) if len(problems) == 1 else OSError(", ".join(problems))


def alternate_families(addresses: Iterable[AddressInfo]) -> list[AddressInfo]:
    """Return addresses with their families in turn, otherwise in the order that the system prefers."""
    families: dict[int, list[AddressInfo]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    turns = itertools.zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


async def _attempt(address: AddressInfo) -> socket.socket | OSError:
    """Return a socket that is connected to one address, or the system's error."""
    family, kind, protocol, _, place = address
    try:
        connection = socket.socket(family, kind, protocol)
    except OSError as error:  # such as a kernel without IPv6
        return error
    try:
        connection.setblocking(False)
        await _connect(connection, place)
    except OSError as error:
        connection.close()
        return error
    except BaseException:
        connection.close()
        raise
    return connection


async def _connect(connection: socket.socket, place: Any) -> None:  # noqa: ANN401 - as getaddrinfo has it
    """Connect a socket.

    Raises:
        OSError: The address does not take the connection.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, asyncio.BaseEventLoop):
        await loop.sock_connect(connection, place)
        return
    # That of uvloop may close the socket a second time when it is cancelled.
    code = connection.connect_ex(place)
    if code == errno.EINPROGRESS:
        await _writable(loop, connection)
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


async def _writable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Wait until an attempt has succeeded or failed."""
    writable: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not writable.done():
            writable.set_result(None)

    loop.add_writer(connection, note)
    try:
        await writable
    finally:
        loop.remove_writer(connection)


def _close(attempt: asyncio.Task[socket.socket | OSError]) -> None:
    if not attempt.cancelled() and isinstance(late := attempt.result(), socket.socket):
        late.close()
