"""The floods, each for a process of its own, with plain sockets so that it is faster than the node."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event

from websockets.frames import Frame, Opcode

from ..support.raw_peer import offer_of, request_of
from ..support.raw_v2_peer import (
    SUBPROTOCOL,
    decoded,
    encoded,
    new_nonce,
    new_secret,
    proof_of,
    publish_of,
)

FLOOD_BYTES = 8 * 1024 * 1024
"""Bytes of a flood by one peer that has the key."""

HALF_OPEN_PER_SECOND = 5000
"""Connections that strangers open in a second."""

HALF_OPEN_SECONDS = 5.0
"""Time for which a stranger keeps its connection: longer than a node waits for a hello."""

STRANGER_BYTES_PER_SECOND = 1_000_000
"""Bytes of control frames that strangers send in a second."""

Attack = Callable[[str, str, float, Event], None]
"""Floods a node at an address, whose key it may use, for some seconds, and says when it begins."""


def frame(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=True)


def binary(packet: object) -> bytes:
    return frame(Opcode.BINARY, encoded(packet))


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def read_frame(sock: socket.socket) -> bytes:
    """Return the payload of the next frame of a node."""

    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = sock.recv(count - len(data))
            if not more:
                raise ConnectionError("the node has closed")
            data += more
        return data

    length = exactly(2)[1]
    if length == 126:
        (length,) = struct.unpack("!H", exactly(2))
    return exactly(length)


def speak(address: str, path: str, key: str) -> socket.socket:
    """Return a connection whose hello of v2 is done."""
    sock = connect(address)
    sock.sendall(request_of(path, offer_of(SUBPROTOCOL)))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    challenge, nonce = decoded(read_frame(sock)), new_nonce()
    proof = proof_of(key, "initiator", challenge["nonce"], nonce, path)
    sock.sendall(binary({"t": "proof", "proof": proof, "nonce": nonce, "path": path}))
    assert decoded(read_frame(sock))["t"] == "proof"
    return sock


def with_key(path: str, frames: Callable[[], Iterator[bytes]], first: bytes = b"") -> Attack:
    """Return a flood of `FLOOD_BYTES` by a peer that has the key."""

    def flood(address: str, key: str, seconds: float, begun: Event) -> None:
        sock = speak(address, path, key)
        sock.sendall(first)
        data = bytearray()
        for one in frames():
            data += one
            if len(data) >= FLOOD_BYTES:
                break
        begun.set()
        deadline = time.monotonic() + seconds
        sock.setblocking(False)
        view = memoryview(data)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                # Answers are read, so that only the reading of the node is measured.
                with contextlib.suppress(BlockingIOError):
                    sock.recv(2**20)
                with contextlib.suppress(BlockingIOError):
                    if view:
                        view = view[sock.send(view[: 2**18]) :]
                time.sleep(0.0005)
        sock.close()

    return flood


def same(one: bytes) -> Callable[[], Iterator[bytes]]:
    def frames() -> Iterator[bytes]:
        while True:
            yield one * (65_536 // len(one))

    return frames


def fragments() -> Iterator[bytes]:
    yield frame(Opcode.BINARY, b"", fin=False)
    yield from same(frame(Opcode.CONT, b"", fin=False))()


def subscriptions(**fields: object) -> Callable[[], Iterator[bytes]]:
    def frames() -> Iterator[bytes]:
        number = 0
        while True:
            number += 1
            yield binary({"t": "subscribe", "topic": f"{number % 1000}", **fields})

    return frames


def tiny_batches() -> Iterator[bytes]:
    number = 0
    while True:
        number += 1
        yield binary(publish_of(number, f"{number % 1000}", ""))


def open_connection(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    # The end is a reset, so that no port waits for anything.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect((host, int(port)))
    return sock


def half_open(data: bytes) -> Attack:
    """Return a flood of connections that send some bytes, and nothing more."""

    def flood(address: str, _key: str, seconds: float, begun: Event) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        most = min(hard - 100, int(HALF_OPEN_PER_SECOND * HALF_OPEN_SECONDS), 25_000)
        kept: deque[socket.socket] = deque()
        silent: deque[tuple[float, socket.socket]] = deque()
        begun.set()
        begin = time.monotonic()
        opened = 0
        while (now := time.monotonic()) - begin < seconds:
            while opened < (now - begin) * HALF_OPEN_PER_SECOND:
                if len(kept) >= most:
                    kept.popleft().close()
                with contextlib.suppress(OSError):
                    kept.append(sock := open_connection(address))
                    silent.append((now, sock))
                opened += 1
            while data and silent and now - silent[0][0] > 0.05:
                with contextlib.suppress(OSError):
                    silent.popleft()[1].send(data)
            time.sleep(0.001)
        for sock in kept:
            sock.close()

    return flood


def nothing(_address: str, _key: str, _seconds: float, begun: Event) -> None:
    """Do nothing, to compare with."""
    begun.set()


def stranger_controls(address: str, _key: str, seconds: float, begun: Event) -> None:
    """Send pings before any proof, on new connections when the node has closed."""
    begun.set()
    begin = time.monotonic()
    sent = 0
    pings = frame(Opcode.PING) * 500
    while time.monotonic() - begin < seconds:
        with contextlib.suppress(OSError), connect(address) as sock:
            sock.sendall(request_of("/subscribe", offer_of(SUBPROTOCOL)))
            sock.recv(4096)
            while (now := time.monotonic()) - begin < seconds:
                if sent > (now - begin) * STRANGER_BYTES_PER_SECOND:
                    time.sleep(0.001)
                    continue
                sock.sendall(pings)
                sent += len(pings)
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    if not sock.recv(2**20):
                        break
                sock.setblocking(True)


ATTACKS: dict[str, tuple[str, Attack]] = {
    "nothing": ("consumer", nothing),
    "pings": ("consumer", with_key("/subscribe", same(frame(Opcode.PING)))),
    "full pings": ("consumer", with_key("/subscribe", same(frame(Opcode.PING, b"x" * 125)))),
    "pongs": ("consumer", with_key("/subscribe", same(frame(Opcode.PONG)))),
    "fragments": ("consumer", with_key("/subscribe", fragments)),
    "subscribe": ("consumer", with_key("/subscribe", subscriptions())),
    "start=time": ("consumer", with_key("/subscribe", subscriptions(start="time", time=1))),
    "tiny batches": ("producer", with_key("/produce", tiny_batches, binary(new_secret()))),
    "strangers' pings": ("consumer", stranger_controls),
    "half-open": ("consumer", half_open(b"")),
    "half a request": ("consumer", half_open(b"GET / HTTP/1.1\r\nHost: x\r\n")),
    "half-open at the producer": ("producer", half_open(b"")),
}
"""Which node each floods, and how."""


def attack(name: str, address: str, key: str, seconds: float, begun: Event) -> None:
    """Flood a node, in a process that was started for it."""
    ATTACKS[name][1](address, key, seconds, begun)
