"""The nodes of `bench.reference` on picows: a callback for each frame, and no task for each connection.

They have no limits either, and a producer does not wait for a consumer that reads slowly.

    python -m bench.reference_picows consumer
    python -m bench.reference_picows producer HOST:PORT...
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from urllib.parse import unquote

import uvloop
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_connect,
    ws_create_server,
)

from wsqueue.protocol.hello import ClassicHandshake
from wsqueue.protocol.keys import Role
from wsqueue.protocol.routing import router

from .reference import PSK, answer, challenge

subscribers: defaultdict[str, set[WSTransport]] = defaultdict(set)


class Peer(WSListener):
    """One end of a connection: the hello, then whatever a subclass does with messages.

    Args:
        role: Which end.
    """

    def __init__(self, role: Role) -> None:
        self._handshake = ClassicHandshake(role, PSK)
        self.proved = asyncio.Event()

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Begin the hello."""
        transport.send(WSMsgType.TEXT, challenge(self._handshake))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take a frame; picows disconnects if that fails."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        elif frame.msg_type != WSMsgType.TEXT:
            return
        elif self.proved.is_set():
            self.take(frame.get_payload_as_bytes())
        else:
            self._prove(transport, frame.get_payload_as_bytes())

    def take(self, text: bytes) -> None:
        """Take a message; a subscriber sends none."""

    def ready(self, transport: WSTransport) -> None:
        """Take the connection, whose hello is done."""

    def _prove(self, transport: WSTransport, text: bytes) -> None:
        reply = answer(self._handshake, text)
        if reply is not None:
            transport.send(WSMsgType.TEXT, reply)
        if self._handshake.done:
            self.proved.set()
            self.ready(transport)


class Subscriber(Peer):
    """A consumer's connection from a subscriber."""

    def __init__(self, topic: str) -> None:
        super().__init__(Role.ACCEPTOR)
        self._topic = topic

    def ready(self, transport: WSTransport) -> None:
        """Deliver to it from now on."""
        subscribers[self._topic].add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Deliver to it no longer."""
        subscribers[self._topic].discard(transport)


class Source(Peer):
    """A connection from which messages come: a consumer's from a producer, or a producer's from a publisher.

    Args:
        forward: Takes the topic and the text of each message.
    """

    def __init__(self, forward: Callable[[str, bytes], None]) -> None:
        super().__init__(Role.ACCEPTOR)
        self._forward = forward

    def take(self, text: bytes) -> None:
        """Take a message."""
        self._forward(json.loads(text)["s"], text)


def deliver(topic: str, text: bytes) -> None:
    """Send a message to all subscribers of its topic."""
    for transport in subscribers[topic]:
        transport.send(WSMsgType.TEXT, text)


def consume(request: WSUpgradeRequest) -> Peer:
    """Serve one connection of a consumer: a producer's or a subscriber's."""
    path = request.path.decode()
    return Source(deliver) if path == "/producer" else Subscriber(unquote(path.removeprefix("/subscribe/")))


async def listen(factory: Callable[[WSUpgradeRequest], Peer]) -> None:
    """Serve until the process is ended."""
    server = await ws_create_server(factory, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def main(role: str, *consumers: str) -> None:
    """Run a node."""
    if role == "consumer":
        await listen(consume)
        return
    links = []
    for consumer in consumers:
        link, peer = await ws_connect(lambda: Peer(Role.INITIATOR), f"ws://{consumer}/producer")
        assert isinstance(peer, Peer)
        await peer.proved.wait()
        links.append(link)
    consumer_of = router(len(links))

    def forward(topic: str, text: bytes) -> None:
        links[consumer_of(topic)].send(WSMsgType.TEXT, text)

    await listen(lambda _request: Source(forward))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
