"""The addresses of a name, found in threads for which nothing waits that ends.

An event loop looks names up in the threads of its executor. Both the end of a loop and that of the process
wait for these, until the resolver gives up.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

AddressInfo = tuple[int, int, int, str, Any]
"""Family, type, protocol, canonical name and socket address, as `getaddrinfo` returns them."""

Place = tuple[asyncio.AbstractEventLoop, str, int]
"""The loop that asks, a host name and a port."""

Found = asyncio.Future[Sequence[AddressInfo] | Exception]

_under_way: dict[Place, Found] = {}


async def look_up(host: str, port: int) -> Sequence[AddressInfo]:
    """Return the addresses of a host, as `getaddrinfo` does for TCP.

    Whoever asks the same meanwhile waits for the same answer. So there are no more threads than places,
    however often one is given up and tried again.

    Args:
        host: A name or an IP address.
        port: The TCP port.

    Raises:
        OSError: The name is unknown, or no thread can be started, as when the process ends.
    """
    with suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    loop = asyncio.get_running_loop()
    place = loop, host, port
    found = _under_way.get(place)
    if found is None:
        found = loop.create_future()
        try:
            threading.Thread(target=_find, args=(place, found), name="wsqueue lookup", daemon=True).start()
        except RuntimeError as error:
            raise OSError(f"{host} is not looked up: {error}") from None
        _under_way[place] = found
    # It is not cancelled with whoever waits.
    await asyncio.wait([found])
    if isinstance(answer := found.result(), Exception):
        raise answer
    return answer


def _find(place: Place, found: Found) -> None:
    loop, host, port = place
    answer: Sequence[AddressInfo] | Exception
    try:
        answer = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except Exception as error:  # noqa: BLE001 - it is that of whoever waits
        answer = error

    def tell() -> None:
        del _under_way[place]
        found.set_result(answer)

    try:
        loop.call_soon_threadsafe(tell)
    except RuntimeError:  # the loop is closed
        del _under_way[place]
