"""A plain implementation of the same system on the asyncio API of websockets, for comparison.

It implements the classic protocol with its hello and nothing else: no limits, drain, reload or counters, and
links are not opened again.

    python -m bench.reference consumer
    python -m bench.reference producer HOST:PORT...

The key is in the environment variable REFERENCE_PSK. A node writes its port and a newline to standard output.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from urllib.parse import unquote

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection, broadcast, serve

from wsqueue.protocol.classic import Hello
from wsqueue.protocol.hello import ClassicHandshake
from wsqueue.protocol.keys import PreSharedKey, Role
from wsqueue.protocol.routing import router

PSK = PreSharedKey(os.environ.get("REFERENCE_PSK", ""))

subscribers: defaultdict[str, set[Connection]] = defaultdict(set)


def challenge(handshake: ClassicHandshake) -> str:
    """Return the first packet of a hello."""
    return json.dumps({"t": "h", "o": handshake.once})


def answer(handshake: ClassicHandshake, text: str | bytes) -> str | None:
    """Take a packet of a hello, and return the answer once it may be sent.

    Raises:
        PeerError: The peer does not know the key.
    """
    packet = json.loads(text)
    found = handshake.receive(Hello(once=packet.get("o"), answer=packet.get("a")))
    return None if found is None else json.dumps({"t": "h", "a": found.answer})


async def prove(websocket: Connection, role: Role) -> None:
    """Do the hello.

    Raises:
        PeerError: The peer does not know the key.
    """
    handshake = ClassicHandshake(role, PSK)
    await websocket.send(challenge(handshake))
    while not handshake.done:
        reply = answer(handshake, await websocket.recv())
        if reply is not None:
            await websocket.send(reply)


async def consume(websocket: ServerConnection) -> None:
    """Serve one connection of a consumer: a producer's or a subscriber's."""
    await prove(websocket, Role.ACCEPTOR)
    assert websocket.request is not None
    path = websocket.request.path
    if path == "/producer":
        async for text in websocket:
            message = json.loads(text)
            broadcast(subscribers[message["s"]], text)
    else:
        topic = unquote(path.removeprefix("/subscribe/"))
        subscribers[topic].add(websocket)
        try:
            await websocket.wait_closed()
        finally:
            subscribers[topic].discard(websocket)


async def produce(websocket: ServerConnection, links: Sequence[ClientConnection]) -> None:
    """Serve one connection of a producer: a publisher's."""
    await prove(websocket, Role.ACCEPTOR)
    consumer_of = router(len(links))
    async for text in websocket:
        message = json.loads(text)
        await links[consumer_of(message["s"])].send(text)


async def listen(handler: Callable[[ServerConnection], Awaitable[None]]) -> None:
    """Serve until the process is ended."""
    async with serve(handler, "127.0.0.1", 0, compression=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.wait_closed()


async def main(role: str, *consumers: str) -> None:
    """Run a node."""
    if role == "consumer":
        await listen(consume)
        return
    async with AsyncExitStack() as stack:
        links = []
        for consumer in consumers:
            link = connect(f"ws://{consumer}/producer", compression=None)
            links.append(await stack.enter_async_context(link))
            await prove(links[-1], Role.INITIATOR)
        await listen(lambda websocket: produce(websocket, links))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
