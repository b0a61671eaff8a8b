"""An independent implementation of version 2 of the wsqueue protocol, written from its description alone.

It has the three roles `Client`, `Producer` and `Consumer`, which are simple and complete rather than fast. It
shares nothing with wsqueue, not even the MessagePack codec, so it can test whether the description is enough.
"""

import asyncio
import base64
import bisect
import contextlib
import hashlib
import hmac
import http
import itertools
import os
import random
import re
import ssl
import struct
import urllib.parse
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Never, TypeAlias

from websockets.asyncio.client import connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

SUBPROTOCOL = "wsqueue.v2"
MAX_NUMBER = 2**53 - 1
OVERHEAD_BYTES = 4096
FORWARD_OVERHEAD_BYTES = 4032
MAX_CHAIN_BYTES = 65536
MAX_CHAIN_BATCHES = 1024
MAX_HELLO_BYTES = 65536
WINDOW_BYTES = 16 * 2**20
MAX_TOPICS_PER_CONNECTION = 10000
MAX_NESTING = 200
DATA_CODES = frozenset({1003, 1007, 1009, 4400, 4409, 4410})
FATAL_CODES = DATA_CODES | {4401, 4402, 4403, 4404, 4405, 4412, 4413, 4414, 4416}
MAX_ANSWER_BYTES = 2**25
REASONS = {
    1003: "packets of v2 are binary messages, classic ones are texts",
    4400: "not a valid packet",
    4401: "wrong answer: the pre-shared keys differ",
    4402: "data before the hello was done",
    4403: "a second answer in the hello",
    4404: "a second challenge in the hello",
    4408: "the hello took too long",
    4409: "this endpoint does not take that packet",
    4410: "the topic is too long",
    4412: "this end does not speak the classic protocol",
    4413: "too many topics on one connection",
    4414: "the connection is altered on its way",
}
Packet: TypeAlias = dict[str, Any]
Headers: TypeAlias = dict[str, str] | None
Range: TypeAlias = tuple[int, int]


class Closed(Exception):
    """A connection ended with a close code: of this end if it is `ours`, else of the other one."""

    def __init__(self, code: int, reason: str = "", *, ours: bool = False) -> None:
        super().__init__(f"{code} {reason}")
        self.ours = ours
        self.blames_data = code in DATA_CODES and not ours
        self.code = code
        self.reason = reason


class RefusedError(Exception):
    """A batch or a request was refused: `code` is that of the refusal, or the close code of the connection."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class InvalidPacketError(ValueError):
    """Bytes that are not a valid packet."""


# MessagePack


class _Odd:
    """A value that no field of the protocol may have: an extension, or a key that is not a string."""


class _BadText(_Odd):
    """A string that is not UTF-8: it is an error in a field, and nobody cares in an unknown one."""


def pack(value: object) -> bytes:
    """Encode a value as MessagePack, each part in its shortest form."""
    out = bytearray()
    _pack(value, out)
    return bytes(out)


def _pack(value: object, out: bytearray) -> None:
    match value:
        case None | bool():
            out.append(0xC0 if value is None else 0xC3 if value else 0xC2)
        case int():
            if -32 <= value < 128:
                out += struct.pack("b" if value < 0 else "B", value)
            elif value >= 0:
                at = (value > 0xFF) + (value > 0xFFFF) + (value > 0xFFFFFFFF)
                out += struct.pack(">B" + "BHIQ"[at], 0xCC + at, value)
            else:
                out += struct.pack(">Bq", 0xD3, value)
        case float():
            out += struct.pack(">Bd", 0xCB, value)
        case str():
            data = value.encode()
            _head(out, len(data), 0xA0, 32, 0xD9)
            out += data
        case bytes():
            _head(out, len(value), 0, 0, 0xC4)
            out += value
        case list() | tuple():
            _head(out, len(value), 0x90, 16, 0xDB)
            for item in value:
                _pack(item, out)
        case dict():
            _head(out, len(value), 0x80, 16, 0xDD)
            for key, item in value.items():
                _pack(key, out)
                _pack(item, out)
        case _:
            raise TypeError(f"MessagePack has no {type(value).__name__}")


def _head(out: bytearray, length: int, short: int, below: int, first: int) -> None:
    """Add type and length of a value. `first` is the type with a length of 8 bits; the next ones follow."""
    if length < below:
        out.append(short + length)
    elif length <= 0xFF and first in {0xC4, 0xD9}:
        out += struct.pack(">BB", first, length)
    elif length <= 0xFFFF:
        out += struct.pack(">BH", first + 1, length)
    else:
        out += struct.pack(">BI", first + 2, length)


def unpack(data: bytes) -> Any:
    """Decode the one value of MessagePack that `data` must have."""
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise InvalidPacketError("bytes behind the packet")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise InvalidPacketError("the packet is cut off")
        part = self.data[self.at : end]
        self.at = end
        return part

    def number(self, form: str) -> Any:
        return struct.unpack(">" + form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int) -> Any:
        if depth > MAX_NESTING:
            raise InvalidPacketError("too deeply nested")
        kind = self.take(1)[0]
        if kind < 0x80 or kind >= 0xE0:
            return kind if kind < 0x80 else kind - 256
        if kind < 0x90:
            return self.map(kind & 15, depth)
        if kind < 0xA0:
            return [self.value(depth + 1) for _ in range(kind & 15)]
        if kind < 0xC0:
            return self.text(kind & 31)
        if kind in {0xC0, 0xC2, 0xC3}:
            return {0xC0: None, 0xC2: False, 0xC3: True}[kind]
        if 0xC4 <= kind <= 0xC6:
            return self.take(self.number("BHI"[kind - 0xC4]))
        if 0xC7 <= kind <= 0xC9:
            self.take(self.number("BHI"[kind - 0xC7]) + 1)
            return _Odd()
        if 0xCA <= kind <= 0xD3:
            return self.number("fdBHIQbhiq"[kind - 0xCA])
        if 0xD4 <= kind <= 0xD8:
            self.take((1 << (kind - 0xD4)) + 1)
            return _Odd()
        if 0xD9 <= kind <= 0xDB:
            return self.text(self.number("BHI"[kind - 0xD9]))
        if kind in {0xDC, 0xDD}:
            return [self.value(depth + 1) for _ in range(self.number("HI"[kind - 0xDC]))]
        if kind in {0xDE, 0xDF}:
            return self.map(self.number("HI"[kind - 0xDE]), depth)
        raise InvalidPacketError("a type that MessagePack does not have")

    def text(self, length: int) -> object:
        data = self.take(length)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return _BadText()

    def map(self, length: int, depth: int) -> dict[object, Any]:
        fields: dict[object, Any] = {}
        for _ in range(length):
            key = self.value(depth + 1)
            fields[key if isinstance(key, str | _BadText) else _Odd()] = self.value(depth + 1)
        return fields


# Packets


@dataclass
class Messages:
    """The messages of a packet: all texts, in UTF-8, or all bytes, with their headers if one has any."""

    items: list[bytes]
    text: bool = True
    headers: list[Headers] | None = None

    def pack(self) -> Packet:
        """Give the field `messages` of a packet."""
        fields: Packet = {"sizes": [len(item) for item in self.items], "data": b"".join(self.items)}
        if not self.text:
            fields["text"] = False
        if self.headers is not None and any(each is not None for each in self.headers):
            fields["headers"] = self.headers
        return fields

    def cut(self, first: int) -> "Messages":
        """Give the messages from number `first` on."""
        return Messages(self.items[first:], self.text, self.headers and self.headers[first:])

    def joined(self, other: "Messages") -> "Messages":
        """Give these messages and `other`, which must be of the same kind, behind them."""
        if self.headers is None and other.headers is None:
            return Messages(self.items + other.items, self.text)
        headers = [each for part in (self, other) for each in part.headers or [None] * len(part.items)]
        return Messages(self.items + other.items, self.text, headers)


MAX_HEADED = 65_536
"""Messages of a batch with headers."""

_Check: TypeAlias = Callable[[Any], bool]
_REQUIRED = object()


def _integer(low: int, high: int = MAX_NUMBER) -> _Check:
    return lambda value: type(value) is int and low <= value <= high


def _number(high: int) -> _Check:
    return lambda value: type(value) in {int, float} and 0 <= value <= high


def _string(most: int | None = None, least: int = 0) -> _Check:
    return lambda value: isinstance(value, str) and least <= len(value) <= (most or len(value))


def _one_of(*choices: str) -> _Check:
    return lambda value: isinstance(value, str) and value in choices


def _some(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and len(value) > 0 and all(map(check, value))


def _or_nil(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _binary(most: int, least: int = 0) -> _Check:
    return lambda value: isinstance(value, bytes) and least <= len(value) <= most


def _bin32(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == 32


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_integer(1), value))


def _group(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value) is not None


def _lease(value: object) -> bool:
    return type(value) in {int, float} and 0.1 <= value <= 86_400  # type: ignore[operator]


def _offsets(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_integer(0), value))


def _anything(value: object) -> bool:
    return True


def _all(fields: dict[str, _Check]) -> _Check:
    """Give the check of an array of maps, in which only fields that may be nil may be missing."""
    return lambda value: (
        isinstance(value, list)
        and all(
            isinstance(one, dict) and all(check(one.get(name)) for name, check in fields.items())
            for one in value
        )
    )


_NAME_ENTRY = {
    "kind": _one_of("group", "reader"),
    "name": _string(),
    **dict.fromkeys(("offset", "lag", "members", "lent", "dead"), _integer(0)),
    "oldest_time": _or_nil(_number(MAX_NUMBER)),
}
_TOPIC_ENTRY = {
    "topic": _string(),
    **dict.fromkeys(("messages", "bytes", "first", "next", "subscribers"), _integer(0)),
    "names": _all(_NAME_ENTRY),
}
_TOPIC = {"topic": (_string(), _REQUIRED)}
_PLACE = _TOPIC | {"group": (_group, _REQUIRED)}
_PROGRESS = _TOPIC | {
    "reader": (_group, _REQUIRED),
    "log": (_string(64), _REQUIRED),
    "offset": (_integer(0), _REQUIRED),
}
_CHAIN = {
    "publisher": (_string(64), _REQUIRED),
    "counts": (_some(_integer(1)), _REQUIRED),
    "messages": (_anything, _REQUIRED),
}
PACKETS: dict[str, dict[str, tuple[_Check, Any]]] = {
    "challenge": {"nonce": (_bin32, _REQUIRED)},
    "proof": {
        "proof": (_bin32, _REQUIRED),
        "nonce": (_or_nil(_bin32), None),
        "path": (_or_nil(_string(8192)), None),
        "binding": (_or_nil(_bin32), None),
        "key": (_or_nil(_string(32, 1)), None),
        "token": (_or_nil(_binary(4096, 1)), None),
    },
    "publisher": {"secret": (_bin32, _REQUIRED)},
    "publish": _TOPIC
    | {
        "number": (_integer(1), _REQUIRED),
        "after": (_integer(0), _REQUIRED),
        "messages": (_anything, _REQUIRED),
    },
    "forward": _TOPIC
    | _CHAIN
    | {
        "publisher": (_string(64, 1), _REQUIRED),
        "numbers": (_some(_integer(1)), _REQUIRED),
        "after": (_integer(0), _REQUIRED),
    },
    "ack": {"numbers": (_some(_range), _REQUIRED)},
    "refused": {
        "number": (_integer(1), _REQUIRED),
        "code": (_string(32, 1), _REQUIRED),
        "reason": (_string(200), _REQUIRED),
        "last": (_or_nil(_integer(1)), None),
    },
    "subscribe": _TOPIC
    | {
        "start": (_one_of("earliest", "last", "latest", "offset", "time"), "latest"),
        "log": (_or_nil(_string(64)), None),
        "offset": (_or_nil(_integer(0)), None),
        "time": (_or_nil(_number(MAX_NUMBER)), None),
        "count": (_or_nil(_integer(1)), None),
        "reader": (_or_nil(_group), None),
    },
    "subscribed": _TOPIC
    | {
        "log": (_string(64), _REQUIRED),
        "offset": (_integer(0), _REQUIRED),
        "end": (_integer(0), _REQUIRED),
    },
    "unsubscribe": _TOPIC,
    "unsubscribed": _TOPIC | {"code": (_or_nil(_string(32, 1)), None)},
    "deliver": _TOPIC
    | _CHAIN
    | {"offset": (_integer(0), _REQUIRED), "numbers": (_some(_integer(0)), _REQUIRED)},
    "gap": _TOPIC | {"offset": (_integer(0), _REQUIRED), "missed": (_or_nil(_integer(1)), _REQUIRED)},
    "follow": {
        "prefix": (_string(), _REQUIRED),
        "start": (_one_of("earliest", "last", "latest", "time"), "latest"),
        "time": (_or_nil(_number(MAX_NUMBER)), None),
        "count": (_or_nil(_integer(1)), None),
    },
    "followed": {"prefix": (_string(), _REQUIRED), "code": (_or_nil(_string(32, 1)), None)},
    "commit": _PROGRESS,
    "committed": _PROGRESS,
    "join": _PLACE
    | {
        "prefetch": (_integer(1, 10_000), _REQUIRED),
        "lease_seconds": (_lease, _REQUIRED),
        "max_deliveries": (_integer(1, 1000), _REQUIRED),
        "start": (_one_of("earliest", "latest"), "earliest"),
        "order_key": (_or_nil(_string(64, 1)), None),
    },
    "joined": _PLACE | {"log": (_string(64), _REQUIRED)},
    "lend": _PLACE
    | {
        "offset": (_integer(0), _REQUIRED),
        "messages": (_anything, _REQUIRED),
        "deliveries": (_integer(1), 1),
    },
    "settle": _PLACE
    | {
        "number": (_integer(1), _REQUIRED),
        "log": (_string(64), _REQUIRED),
        "how": (_one_of("again", "done", "extend", "reject", "release"), _REQUIRED),
        "offsets": (_some(_offsets), _REQUIRED),
        "delay": (_number(86_400), 0.0),
        "reason": (_string(200), ""),
    },
    "settled": _PLACE | {"number": (_integer(1), _REQUIRED)},
    "leave": _PLACE,
    "left": _PLACE | {"code": (_or_nil(_string(32, 1)), None)},
    "draining": {"retry_seconds": (_number(3600), _REQUIRED)},
    "log": {"id": (_string(64, 1), _REQUIRED), "available": (_flag, _REQUIRED)},
    "ask_report": {},
    "report": {"report": (_string(), _REQUIRED)},
    "ask_topics": {
        "pattern": (_string(), "*"),
        "after": (_or_nil(_string()), None),
        "named": (_flag, False),
    },
    "topics": {
        "topics": (_all(_TOPIC_ENTRY), _REQUIRED),
        "after": (_or_nil(_string()), None),
        "log": (_or_nil(_string(64)), None),
    },
    "purge": _TOPIC | {"before": (_or_nil(_integer(0)), None)},
    "forget": _TOPIC | {"kind": (_one_of("group", "reader"), _REQUIRED), "name": (_string(), _REQUIRED)},
    "disconnect": {
        "address": (_or_nil(_string(300, 1)), None),
        "key": (_or_nil(_string(32, 1)), None),
    },
    "done": {"count": (_integer(0), _REQUIRED)},
    "failed": {"code": (_string(32, 1), _REQUIRED), "reason": (_string(200), _REQUIRED)},
    "ask_alive": {},
    "alive": {},
}


def decode(data: bytes) -> Packet:
    """Decode a packet. Its `messages` become `Messages`, or None if the batch is to be refused."""
    raw = unpack(data)
    if not _is_map(raw):
        raise InvalidPacketError("not a map with strings as keys")
    name = raw.get("t")
    if not isinstance(name, str) or name not in PACKETS:
        raise InvalidPacketError("an unknown packet")
    packet: Packet = {"t": name}
    for key, (check, default) in PACKETS[name].items():
        value = raw.get(key, default)
        if value is _REQUIRED or (key in raw and not check(value)):
            raise InvalidPacketError(f"the field {key} of {name}")
        packet[key] = value
    if "messages" in packet:
        packet["messages"] = _messages(packet["messages"])
    if "counts" in packet:
        _check_chain(packet)
    if name == "subscribe":
        for start, field in (("offset", "offset"), ("time", "time"), ("last", "count")):
            if (packet["start"] == start) != (packet[field] is not None):
                raise InvalidPacketError("a start without its position, or the other way round")
        if packet["reader"] is not None and packet["start"] in {"time", "last"}:
            raise InvalidPacketError("a start that a reader cannot have")
    if name == "follow":
        for start, field in (("time", "time"), ("last", "count")):
            if (packet["start"] == start) != (packet[field] is not None):
                raise InvalidPacketError("a start without its position, or the other way round")
    if name == "disconnect" and (packet["address"] is None) == (packet["key"] is None):
        raise InvalidPacketError("neither an address nor a key, or both")
    return packet


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str | _BadText) for key in value)


def _check_chain(packet: Packet) -> None:
    numbers, counts = packet["numbers"], packet["counts"]
    if len(numbers) != len(counts) or any(b <= a for a, b in itertools.pairwise(numbers)):
        raise InvalidPacketError("numbers that do not rise, or other counts than numbers")
    if packet["messages"] is not None and sum(counts) != len(packet["messages"].items):
        packet["messages"] = None
    if packet["t"] == "deliver":
        if packet["messages"] is None:
            raise InvalidPacketError("broken messages in a delivery")
        if numbers[0] == 0 and (packet["publisher"] or len(numbers) > 1):
            raise InvalidPacketError("the number 0 with a publisher or with other numbers")


def _messages(raw: object) -> Messages | None:
    if not isinstance(raw, dict) or not _is_map(raw):
        return None
    sizes: Any
    headers: Any
    sizes, data, text, headers = raw.get("sizes"), raw.get("data"), raw.get("text", True), raw.get("headers")
    if not _some(_integer(0))(sizes) or not isinstance(data, bytes) or not isinstance(text, bool):
        return None
    if sum(sizes) != len(data):
        return None
    if headers is not None and not (
        isinstance(headers, list)
        and len(headers) == len(sizes) <= MAX_HEADED
        and all(map(_or_nil(_header), headers))
    ):
        return None
    items = []
    at = 0
    for size in sizes:
        items.append(data[at : at + size])
        at += size
    return Messages(items, text, headers)


def _header(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= 16
        and all(isinstance(key, str) and 1 <= len(key) <= 64 for key in value)
        and all(map(_string(1024), value.values()))
    )


def encode(packet: Packet) -> bytes:
    """Encode a packet, whose `messages` may be `Messages`."""
    return pack({key: each.pack() if isinstance(each, Messages) else each for key, each in packet.items()})


# The hello


def claim(role: str, acceptor: bytes, initiator: bytes, path: str, offered: str, binding: bytes) -> bytes:
    """Give the claim that the end in `role` proves, `initiator` or `acceptor`."""
    parts = [f"{SUBPROTOCOL} {role}".encode(), acceptor, initiator, path.encode(), offered.encode(), binding]
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def prove(key: str, claimed: bytes) -> bytes:
    """Give the proof of a claim."""
    extracted = hmac.digest(bytes(32), key.encode(), "sha256")
    return hmac.digest(hmac.digest(extracted, b"wsqueue proof\x01", "sha256"), claimed, "sha256")


def channel_binding(certificate: bytes | None) -> bytes:
    """Give the channel binding for the acceptor's certificate in DER; None is without TLS."""
    return b"" if certificate is None else hashlib.sha256(certificate).digest()


def public_id(secret: bytes) -> str:
    """Give the public id of the publisher with this secret."""
    return base64.urlsafe_b64encode(hashlib.sha256(secret).digest()[:16]).decode().rstrip("=")


def route(topic: str, consumers: int) -> int:
    """Give the number of the consumer of a topic."""
    while topic.endswith("!dead") and topic.count("!") >= 2:
        topic = topic.rsplit("!", 2)[0]
    units = topic.encode("utf-16-le")
    value = 0
    for low, high in zip(units[::2], units[1::2], strict=True):
        value = (value * 31 + low + 256 * high) & 0xFFFFFFFF
    return abs(value - 2**32 if value >= 2**31 else value) % consumers


def ranges(numbers: Iterable[int]) -> list[Range]:
    """Give exactly these numbers as ranges."""
    found: list[Range] = []
    for number in sorted(numbers):
        if found and number <= found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


class Wire:
    """One end of a connection of v2, which sends and receives packets once its hello is done."""

    def __init__(self, socket: Connection) -> None:
        self.socket = socket
        self.done = False

    async def send(self, packet: Packet | bytes) -> None:
        """Send a packet, or the bytes of one."""
        try:
            await self.socket.send(packet if isinstance(packet, bytes) else encode(packet))
        except ConnectionClosed as error:
            raise self._closed(error) from None

    async def receive(self) -> Packet:
        """Receive a packet, and answer `ask_alive`. A message that breaks a rule closes the connection."""
        while True:
            try:
                data = await self.socket.recv()
            except ConnectionClosed as error:
                raise self._closed(error) from None
            if not self.done and len(data) > MAX_HELLO_BYTES:
                await self.fail(4402)
            if isinstance(data, str):
                await self.fail(1003)
            try:
                packet = decode(data)
            except InvalidPacketError as error:
                await self.fail(4400, str(error))
            if self.done and packet["t"] in {"challenge", "proof"}:
                await self.fail(4404 if packet["t"] == "challenge" else 4403)
            if not self.done or packet["t"] != "ask_alive":
                return packet
            await self.send({"t": "alive"})

    async def fail(self, code: int, detail: str = "") -> Never:
        """Close the connection with a code, and raise `Closed`."""
        reason = REASONS.get(code, "") + (f" ({detail})" if detail else "")
        await self.socket.close(code, reason[:120])
        raise Closed(code, reason, ours=True)

    @staticmethod
    def _closed(error: ConnectionClosed) -> Closed:
        if error.rcvd is not None:
            return Closed(error.rcvd.code, error.rcvd.reason, ours=not error.rcvd_then_sent)
        if error.sent is not None and error.sent.code != 1011:
            return Closed(error.sent.code, error.sent.reason, ours=True)
        return Closed(1006, "connection lost")

    async def initiate(self, key: str) -> None:
        """Do the hello as the end that opened the connection."""
        assert self.socket.request is not None
        if self.socket.subprotocol != SUBPROTOCOL:
            await self.fail(4412)
        path = self.socket.request.path
        secured = self.socket.transport.get_extra_info("ssl_object")
        binding = channel_binding(secured.getpeercert(binary_form=True) if secured is not None else None)
        try:
            first = await self.socket.recv()
        except ConnectionClosed as error:
            raise self._closed(error) from None
        if isinstance(first, str):
            await self.fail(4412)
        try:
            packet = decode(first)
        except InvalidPacketError as error:
            await self.fail(4400, str(error))
        if packet["t"] != "challenge":
            await self.fail(4409 if packet["t"] == "proof" else 4402)
        nonces = packet["nonce"], os.urandom(32)
        proof = prove(key, claim("initiator", *nonces, path, SUBPROTOCOL, binding))
        own: Packet = {"t": "proof", "proof": proof, "nonce": nonces[1], "path": path}
        await self.send(own | ({"binding": binding} if binding else {}))
        packet = await self.receive()
        if packet["t"] != "proof":
            await self.fail(4404 if packet["t"] == "challenge" else 4402)
        if packet["nonce"] is not None or packet["path"] is not None or packet["binding"] is not None:
            await self.fail(4400)
        if not hmac.compare_digest(
            packet["proof"], prove(key, claim("acceptor", *nonces, path, SUBPROTOCOL, binding))
        ):
            await self.fail(4401)
        self.done = True

    async def accept(self, keys: Sequence[str], binding: bytes) -> None:
        """Do the hello as the end that accepted the connection, which knows these keys and its binding."""
        assert self.socket.request is not None
        path = self.socket.request.path
        offered = ", ".join(self.socket.request.headers.get_all("Sec-WebSocket-Protocol"))
        nonce = os.urandom(32)
        await self.send({"t": "challenge", "nonce": nonce})
        packet = await self.receive()
        if packet["t"] != "proof":
            await self.fail(4409 if packet["t"] == "challenge" else 4402)
        if packet["nonce"] is None or packet["path"] is None:
            await self.fail(4400)
        parts = nonce, packet["nonce"], packet["path"], offered, packet["binding"] or b""
        for key in keys:
            if hmac.compare_digest(packet["proof"], prove(key, claim("initiator", *parts))):
                break
        else:
            await self.fail(4401)
        if _fixed(packet["path"]) != _fixed(path) or (packet["binding"] or b"") != binding:
            await self.fail(4414)
        await self.send({"t": "proof", "proof": prove(key, claim("acceptor", *parts))})
        self.done = True


def _fixed(path: str) -> str:
    """Give the part of a path that must not change on its way: the part behind `/subscribe/` may."""
    return "/subscribe" if path.startswith("/subscribe/") else path


@contextlib.asynccontextmanager
async def _opened(
    address: str, path: str, key: str, context: ssl.SSLContext | None, limit: int, seconds: float
) -> AsyncIterator[Wire]:
    """Open a connection to a node, and do the hello. Every failure is `Closed`."""
    try:
        async with asyncio.timeout(seconds):
            socket = await connect(
                address.rstrip("/") + path,
                ssl=context,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                max_size=limit + OVERHEAD_BYTES,
                close_timeout=2,
                proxy=None,
            )
    except (OSError, TimeoutError, InvalidHandshake, InvalidMessage, EOFError) as error:
        raise Closed(1006, f"{address} does not answer: {error}") from None
    wire = Wire(socket)
    try:
        try:
            async with asyncio.timeout(seconds):
                await wire.initiate(key)
        except TimeoutError:
            await wire.fail(4408)
        yield wire
    finally:
        await socket.close(1000, "done")


async def _race(*coroutines: Any) -> None:
    """Run coroutines until the first one ends, stop the others, and raise its exception."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


# The client


@dataclass
class Message:
    """A message that a subscriber has got, and its position."""

    topic: str
    data: str | bytes
    headers: Headers
    log: str
    offset: int


@dataclass
class Gap:
    """Messages that a subscriber has lost: `missed`, if known. `offset` is that of the next message."""

    topic: str
    log: str
    offset: int
    missed: int | None


@dataclass
class _Unconfirmed:
    number: int
    topic: str
    frame: bytes
    future: asyncio.Future[None]


class Client:
    """A client that publishes through any of the producers, and subscribes to the consumers of topics."""

    def __init__(
        self,
        producers: Sequence[str],
        consumers: Sequence[str],
        key: str,
        *,
        context: ssl.SSLContext | None = None,
        max_message_bytes: int = 2**20,
        seconds: float = 10,
    ) -> None:
        self.producers = list(producers)
        self.consumers = list(consumers)
        self._how = (key, context, max_message_bytes, seconds)
        self._secret = os.urandom(32)
        self._number = 0
        self._unconfirmed: dict[int, _Unconfirmed] = {}
        self._unsent: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failed: Closed | None = None
        self.wire: Wire | None = None

    async def publish(
        self, topic: str, messages: Sequence[str | bytes], headers: Sequence[Headers] | None = None
    ) -> None:
        """Publish messages, and return when they are confirmed. `RefusedError` says that some are not."""
        if self._failed is not None:
            raise RefusedError(str(self._failed.code), self._failed.reason)
        if headers is not None and len(headers) != len(messages):
            raise ValueError("not as many headers as messages")
        first = 0
        futures = []
        for at in range(1, len(messages) + 1):
            if at == len(messages) or isinstance(messages[at], str) != isinstance(messages[first], str):
                part = list(headers[first:at]) if headers is not None else None
                futures.append(self._add(topic, messages[first:at], part))
                first = at
        if self._task is None:
            self._task = asyncio.create_task(self._publishing())
        for outcome in await asyncio.gather(*futures, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def _add(
        self, topic: str, messages: Sequence[str | bytes], headers: list[Headers] | None
    ) -> asyncio.Future[None]:
        after = max((each.number for each in self._unconfirmed.values() if each.topic == topic), default=0)
        items = [each.encode() if isinstance(each, str) else each for each in messages]
        batch = Messages(items, isinstance(messages[0], str), headers)
        packet: Packet = {"t": "publish", "number": self._number + 1, "after": after, "topic": topic}
        frame = encode(packet | {"messages": batch})
        self._number += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unconfirmed[self._number] = _Unconfirmed(self._number, topic, frame, future)
        self._unsent.append(frame)
        self._wake.set()
        return future

    def _settle(self, number: int, refusal: RefusedError | None) -> None:
        batch = self._unconfirmed.pop(number)
        if not batch.future.done():
            batch.future.set_result(None) if refusal is None else batch.future.set_exception(refusal)

    async def _publishing(self) -> None:
        order = random.sample(self.producers, len(self.producers))
        failures = 0
        while True:
            retry = [0.0]
            try:
                async with _opened(order[0], "/produce", *self._how) as self.wire:
                    await self.wire.send({"t": "publisher", "secret": self._secret})
                    self._unsent = deque(each.frame for each in self._unconfirmed.values())
                    failures = 0
                    await _race(self._send(self.wire), self._receive(self.wire, retry))
            except Closed as error:
                if error.blames_data or error.code in FATAL_CODES - DATA_CODES:
                    for number in list(self._unconfirmed):
                        self._settle(number, RefusedError(str(error.code), error.reason))
                    if error.code not in DATA_CODES:
                        self._failed = error
                        return
                failures += 1
            order.append(order.pop(0))
            if failures >= len(order) or len(order) == 1:
                await asyncio.sleep(random.random() * max(retry[0], min(2, 0.1 * 2**failures)))

    async def _send(self, wire: Wire) -> None:
        while True:
            while self._unsent:
                await wire.send(self._unsent.popleft())
            self._wake.clear()
            await self._wake.wait()

    async def _receive(self, wire: Wire, retry: list[float]) -> None:
        while True:
            packet = await wire.receive()
            if packet["t"] == "ack":
                for first, last in packet["numbers"]:
                    for number in [each for each in self._unconfirmed if first <= each <= last]:
                        self._settle(number, None)
            elif packet["t"] == "refused" and packet["number"] in self._unconfirmed:
                self._settle(packet["number"], RefusedError(packet["code"], packet["reason"]))
            elif packet["t"] == "draining":
                retry[0] = packet["retry_seconds"]
                return

    async def subscribe(
        self,
        topic: str,
        start: str = "latest",
        *,
        log: str | None = None,
        offset: int | None = None,
        time: float | None = None,
        count: int | None = None,
        ready: asyncio.Event | None = None,
    ) -> AsyncIterator[Message | Gap]:
        """Give the messages of a topic and its gaps, across broken connections. Set `ready` at its begin."""
        given = {"log": log, "offset": offset, "time": time, "count": count}
        position = {"start": start} | {key: value for key, value in given.items() if value is not None}
        address = self.consumers[route(topic, len(self.consumers))]
        seen: dict[str, int] = {}
        failures = 0
        while True:
            retry = 0.0
            try:
                async with _opened(address, "/subscribe", *self._how) as wire:
                    await wire.send({"t": "subscribe", "topic": topic} | position)
                    current, expected = "", -1
                    while True:
                        packet = await wire.receive()
                        failures = 0
                        if packet["t"] == "draining":
                            retry = packet["retry_seconds"]
                        if packet.get("topic") != topic:
                            continue
                        if packet["t"] == "subscribed":
                            current, expected = packet["log"], packet["offset"]
                            if position["start"] != "offset":
                                position = {"start": "offset", "log": current, "offset": expected}
                            if ready is not None:
                                ready.set()
                        elif packet["t"] == "gap":
                            expected = packet["offset"]
                            position = {"start": "offset", "log": current, "offset": expected}
                            yield Gap(topic, current, expected, packet["missed"])
                        elif packet["t"] == "deliver":
                            if packet["offset"] != expected:
                                await wire.fail(4400, f"offset {packet['offset']} instead of {expected}")
                            messages = list(_arrived(packet, current, seen))
                            expected += sum(packet["counts"])
                            position = {"start": "offset", "log": current, "offset": expected}
                            for message in messages:
                                yield message
            except Closed as error:
                if error.code in FATAL_CODES:
                    raise
                failures += 1
            await asyncio.sleep(random.random() * max(retry, min(2, 0.1 * 2**failures)))

    def member(self, topic: str, group: str, **wishes: Any) -> "Member":
        """Give a member of a group, which joins when its messages are asked for."""
        address = self.consumers[route(topic, len(self.consumers))]
        return Member(address, self._how, {"topic": topic, "group": group}, wishes)

    def reader(self, topic: str, name: str) -> "Reader":
        """Give a named reader, which subscribes when its messages are asked for."""
        return Reader(self.consumers[route(topic, len(self.consumers))], self._how, topic, name)

    def follow(self, prefix: str, start: str = "latest", **place: Any) -> "Follower":
        """Give a subscription to all topics with a prefix, which begins when it runs."""
        return Follower(self.consumers, self._how, prefix, {"start": start} | place)

    async def close(self) -> None:
        """Stop publishing. All that is not confirmed is forgotten."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _parts(messages: Messages, index: int) -> tuple[str | bytes, Headers]:
    """Give the data and the headers of a message."""
    data: str | bytes = messages.items[index]
    if messages.text:
        with contextlib.suppress(UnicodeDecodeError):
            data = messages.items[index].decode()
    return data, messages.headers[index] if messages.headers is not None else None


def _arrived(packet: Packet, log: str, seen: dict[str, int]) -> Iterable[Message]:
    """Give the messages of a chain without those of batches that came before."""
    messages: Messages = packet["messages"]
    at = 0
    for number, count in zip(packet["numbers"], packet["counts"], strict=True):
        if not packet["publisher"] or number > seen.get(packet["publisher"], 0):
            for index in range(at, at + count):
                yield Message(packet["topic"], *_parts(messages, index), log, packet["offset"] + index)
            if packet["publisher"]:
                seen[packet["publisher"]] = number
        at += count


@dataclass
class Loan(Message):
    """A message that a group has lent, and how often it was lent."""

    deliveries: int = 1


@dataclass
class _Outcome:
    fields: Packet
    future: asyncio.Future[None]
    number: int = 0


class Member:
    """A member of a group. Its `loans` are the messages that it has not given to the application."""

    def __init__(self, address: str, how: Any, place: Packet, wishes: Packet) -> None:
        self._address, self._how, self._place = address, how, place
        self._wishes = {"prefetch": 10, "lease_seconds": 30.0, "max_deliveries": 5} | wishes
        self.loans: asyncio.Queue[Loan] = asyncio.Queue()
        self._outcomes: list[_Outcome] = []
        self._number = 0
        self._log: str | None = None
        self._wire: Wire | None = None

    async def run(self) -> None:
        """Be a member, across broken connections. `RefusedError` says that the consumer refuses it."""
        failures = 0
        while True:
            try:
                async with _opened(self._address, "/subscribe", *self._how) as self._wire:
                    await self._wire.send({"t": "join"} | self._place | self._wishes)
                    while True:
                        await self._take(await self._wire.receive())
                        failures = 0
            except Closed as error:
                if error.code in FATAL_CODES:
                    raise
                failures += 1
            finally:
                self._forget()
            await asyncio.sleep(random.random() * min(2, 0.1 * 2**failures))

    async def settle(self, loan: Loan, how: str, **fields: Any) -> None:
        """Tell the outcome of a message, and return when it is confirmed."""
        ranges = [[loan.offset, loan.offset]]
        outcome = _Outcome(
            {"log": loan.log, "how": how, "offsets": ranges} | fields,
            asyncio.get_running_loop().create_future(),
        )
        self._outcomes.append(outcome)
        if self._log is not None:
            await self._say(outcome)
        await outcome.future

    async def _say(self, outcome: _Outcome) -> None:
        assert self._wire is not None
        self._number += 1
        outcome.number = self._number
        with contextlib.suppress(Closed):
            await self._wire.send({"t": "settle"} | self._place | {"number": outcome.number} | outcome.fields)

    async def _take(self, packet: Packet) -> None:
        if packet["t"] == "joined":
            self._drop_loans()
            self._log = packet["log"]
            for outcome in [each for each in self._outcomes if not each.number]:
                await self._say(outcome)
        elif packet["t"] == "lend" and self._log is not None:
            messages: Messages = packet["messages"]
            for index in range(len(messages.items)):
                place = packet["topic"], *_parts(messages, index), self._log, packet["offset"] + index
                self.loans.put_nowait(Loan(*place, packet["deliveries"]))
        elif packet["t"] == "settled":
            for outcome in [each for each in self._outcomes if 0 < each.number <= packet["number"]]:
                self._outcomes.remove(outcome)
                if not outcome.future.done():
                    outcome.future.set_result(None)
        elif packet["t"] == "left" and packet["code"] is not None:
            raise RefusedError(packet["code"], "no member of the group")

    def _forget(self) -> None:
        # Others get the messages that were lent; outcomes that are not confirmed are told again.
        self._drop_loans()
        self._log, self._wire, self._number = None, None, 0
        for outcome in self._outcomes:
            outcome.number = 0

    def _drop_loans(self) -> None:
        while not self.loans.empty():
            self.loans.get_nowait()


class Reader:
    """A named reader. Its `messages` are those that it has not given to the application."""

    def __init__(self, address: str, how: Any, topic: str, name: str) -> None:
        self._address, self._how = address, how
        self._place = {"topic": topic, "reader": name}
        # The start, until a message or a gap has come.
        self._position: Packet = {"start": "earliest"}
        self._log, self._seen = "", dict[str, int]()
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self._commits: list[_Outcome] = []
        self._wire: Wire | None = None

    async def run(self) -> None:
        """Read, across broken connections. `RefusedError` says that the consumer refuses the reader."""
        failures = 0
        while True:
            try:
                async with _opened(self._address, "/subscribe", *self._how) as wire:
                    await wire.send({"t": "subscribe"} | self._place | self._position)
                    for commit in self._commits:
                        await wire.send(commit.fields)
                    self._wire = wire
                    while True:
                        self._take(await wire.receive())
                        failures = 0
            except Closed as error:
                if error.code in FATAL_CODES:
                    raise
                failures += 1
            finally:
                self._wire = None
            await asyncio.sleep(random.random() * min(2, 0.1 * 2**failures))

    async def done(self, message: Message) -> None:
        """Say that a message and all before it are done, and return when that is confirmed."""
        place = {"log": message.log, "offset": message.offset + 1}
        fields: Packet = {"t": "commit"} | self._place | place
        commit = _Outcome(fields, asyncio.get_running_loop().create_future())
        self._commits.append(commit)
        if self._wire is not None:
            with contextlib.suppress(Closed):
                await self._wire.send(fields)
        await commit.future

    def _take(self, packet: Packet) -> None:
        if packet["t"] == "subscribed":
            self._log = packet["log"]
        elif packet["t"] == "gap":
            self._go_on(packet["offset"])
        elif packet["t"] == "deliver":
            self._go_on(packet["offset"] + sum(packet["counts"]))
            for message in _arrived(packet, self._log, self._seen):
                self.messages.put_nowait(message)
        elif packet["t"] == "committed":
            kept = [one.fields for one in self._commits]
            answered = packet | {"t": "commit"}
            # It stands for all before it, too.
            for commit in self._commits[: kept.index(answered) + 1] if answered in kept else []:
                self._commits.remove(commit)
                if not commit.future.done():
                    commit.future.set_result(None)
        elif packet["t"] == "unsubscribed" and packet["code"] is not None:
            raise RefusedError(packet["code"], "no place for the reader")

    def _go_on(self, offset: int) -> None:
        self._position = {"start": "offset", "log": self._log, "offset": offset}


class Follower:
    """A subscription to all topics with a prefix. Its `items` have not been given to the application."""

    def __init__(self, consumers: Sequence[str], how: Any, prefix: str, start: Packet) -> None:
        self._consumers, self._how = list(consumers), how
        self._prefix, self._start = prefix, start
        self.items: asyncio.Queue[Message | Gap] = asyncio.Queue()
        self.ready = asyncio.Event()
        # Whether the consumer that is asked first has the topics of all, once that is known.
        self._shared = False
        self._known = asyncio.Event()
        self._begun = 0

    async def run(self) -> None:
        """Follow, across broken connections. `RefusedError` says that a consumer refuses it."""
        first = route(self._prefix, len(self._consumers))
        others = [index for index in range(len(self._consumers)) if index != first]
        await _race(self._follow(first), *map(self._follow_later, others))

    async def _follow_later(self, index: int) -> None:
        await self._known.wait()
        if self._shared:
            await asyncio.Event().wait()
        await self._follow(index)

    async def _follow(self, index: int) -> None:
        positions: dict[str, Packet] = {}
        seen: dict[str, dict[str, int]] = {}
        start, failures = self._start, 0
        while True:
            try:
                async with _opened(self._consumers[index], "/subscribe", *self._how) as wire:
                    for topic, position in positions.items():
                        await wire.send({"t": "subscribe", "topic": topic} | position)
                    await wire.send({"t": "follow", "prefix": self._prefix} | start)
                    logs: dict[str, str] = {}
                    while True:
                        packet = await wire.receive()
                        failures = 0
                        if packet["t"] == "log":
                            self._shared = True
                        self._known.set()
                        if packet["t"] == "followed":
                            if packet["code"] is not None:
                                raise RefusedError(packet["code"], "no subscription to the prefix")
                            if start is self._start:
                                self._has_begun()
                            start = {"start": "earliest"}
                        elif packet["t"] == "subscribed" and not self._is_home(index, packet["topic"]):
                            await wire.send({"t": "unsubscribe", "topic": packet["topic"]})
                        elif "topic" in packet:
                            self._take(packet, logs, positions, seen.setdefault(packet["topic"], {}))
            except Closed as error:
                if error.code in FATAL_CODES:
                    raise
                failures += 1
            await asyncio.sleep(random.random() * min(2, 0.1 * 2**failures))

    def _has_begun(self) -> None:
        self._begun += 1
        if self._shared or self._begun == len(self._consumers):
            self.ready.set()

    def _is_home(self, index: int, topic: str) -> bool:
        return self._shared or route(topic, len(self._consumers)) == index

    def _take(
        self, packet: Packet, logs: dict[str, str], positions: dict[str, Packet], seen: dict[str, int]
    ) -> None:
        topic = packet["topic"]
        if packet["t"] == "subscribed":
            logs[topic] = packet["log"]
            # The place of one that comes back is that of its last message until another has come.
            positions.setdefault(topic, {"start": "offset", "log": packet["log"], "offset": packet["offset"]})
        elif packet["t"] == "unsubscribed" and packet["code"] is not None:
            raise RefusedError(packet["code"], f"no subscription to {topic}")
        elif topic in logs and packet["t"] in {"gap", "deliver"}:
            offset = packet["offset"] + (sum(packet["counts"]) if packet["t"] == "deliver" else 0)
            positions[topic] = {"start": "offset", "log": logs[topic], "offset": offset}
            if packet["t"] == "gap":
                self.items.put_nowait(Gap(topic, logs[topic], offset, packet["missed"]))
            else:
                for message in _arrived(packet, logs[topic], seen):
                    self.items.put_nowait(message)


class Operator:
    """An operator's connection to a node."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @classmethod
    @contextlib.asynccontextmanager
    async def of(
        cls, address: str, key: str, *, context: ssl.SSLContext | None = None, seconds: float = 10
    ) -> AsyncIterator["Operator"]:
        """Connect to a node."""
        async with _opened(address, "/operate", key, context, MAX_ANSWER_BYTES, seconds) as wire:
            yield cls(wire)

    async def topics(self, pattern: str = "*", *, named: bool = False) -> list[Packet]:
        """Give the topics of a consumer. `RefusedError` says that there is no list."""
        found: list[Packet] = []
        question: Packet = {"t": "ask_topics", "pattern": pattern, "named": named}
        while True:
            answer = await self._ask(question, "topics")
            found += answer["topics"]
            if answer["after"] is None:
                return found
            question["after"] = answer["after"]

    async def do(self, request: str, **fields: Any) -> int:
        """Let the node purge, forget or disconnect, and give the count. `RefusedError` says that it cannot."""
        count = (await self._ask({"t": request} | fields, "done"))["count"]
        assert isinstance(count, int)
        return count

    async def _ask(self, request: Packet, kind: str) -> Packet:
        await self._wire.send(request)
        while (answer := await self._wire.receive())["t"] == "draining":
            pass
        if answer["t"] == "failed":
            raise RefusedError(answer["code"], answer["reason"])
        if answer["t"] != kind:
            await self._wire.fail(4409)
        return answer


# The nodes


class _Node:
    """The common part of both nodes: a server that does the hello, and that drains at its end."""

    paths: tuple[str, ...] = ()

    def __init__(
        self,
        keys: Sequence[str],
        *,
        context: ssl.SSLContext | None = None,
        certificate: bytes | None = None,
        max_message_bytes: int = 2**20,
        max_topic_bytes: int = 256,
        seconds: float = 10,
    ) -> None:
        self.keys = list(keys)
        self.context = context
        self.binding = channel_binding(certificate)
        self.max_message_bytes = max_message_bytes
        self.max_topic_bytes = max_topic_bytes
        self.seconds = seconds
        self.wires: dict[Wire, str] = {}
        self.port = 0
        self._server: Server | None = None

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen at a port; with 0, the system chooses, and `port` has it."""
        self._server = await serve(
            self._handle,
            host,
            port,
            ssl=self.context,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            process_request=self._check,
            compression=None,
            max_size=self.max_message_bytes + OVERHEAD_BYTES,
            close_timeout=2,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self, retry_seconds: float = 0.0) -> None:
        """Tell all peers, and stop."""
        for wire in list(self.wires):
            with contextlib.suppress(Closed):
                await wire.send({"t": "draining", "retry_seconds": retry_seconds})
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def cut(self) -> None:
        """Break all connections, for tests."""
        for wire in list(self.wires):
            wire.socket.transport.abort()

    def _check(self, socket: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path not in self.paths and not (path.startswith("/subscribe/") and "/subscribe" in self.paths):
            return socket.respond(http.HTTPStatus.NOT_FOUND, "not found\n")
        try:
            topic = urllib.parse.unquote(path.removeprefix("/subscribe/"), errors="strict").encode()
        except UnicodeError:
            return socket.respond(http.HTTPStatus.BAD_REQUEST, "the topic is not UTF-8\n")
        if path.startswith("/subscribe/") and len(topic) > self.max_topic_bytes:
            return socket.respond(http.HTTPStatus.BAD_REQUEST, "the topic is too long\n")
        offers = ",".join(request.headers.get_all("Sec-WebSocket-Protocol")).split(",")
        if SUBPROTOCOL not in [each.strip() for each in offers]:
            return socket.respond(http.HTTPStatus.UPGRADE_REQUIRED, "this node speaks only wsqueue.v2\n")
        return None

    async def _handle(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        wire = Wire(socket)
        with contextlib.suppress(Closed):
            path = socket.request.path.partition("?")[0]
            try:
                async with asyncio.timeout(self.seconds):
                    await wire.accept(self._known(path), self.binding)
            except TimeoutError:
                await wire.fail(4408)
            self.wires[wire] = path
            try:
                await self._serve(wire, path)
            finally:
                del self.wires[wire]

    def _known(self, path: str) -> list[str]:
        return self.keys

    async def _serve(self, wire: Wire, path: str) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class _Session:
    """A connection of a publisher: the news for it, and the latest refused batch of each topic."""

    publisher: str
    told: list[int | Packet] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def confirm(self, number: int) -> None:
        self.told.append(number)
        self.wake.set()

    def refuse(self, topic: str, number: int, code: str, reason: str) -> None:
        self.refused[topic] = max(number, self.refused.get(topic, 0))
        self.told.append({"t": "refused", "number": number, "code": code, "reason": reason[:200]})
        self.wake.set()

    async def tell(self, wire: Wire) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            told, self.told = self.told, []
            confirmed: list[int] = []
            for each in [*told, None]:
                if isinstance(each, int):
                    confirmed.append(each)
                    continue
                if confirmed:
                    await wire.send({"t": "ack", "numbers": ranges(confirmed)})
                    confirmed = []
                if each is not None:
                    await wire.send(each)


@dataclass(eq=False)
class _Batch:
    session: _Session
    number: int
    after: int
    topic: str
    messages: Messages
    size: int

    def refuse(self, code: str, reason: str) -> None:
        self.session.refuse(self.topic, self.number, code, reason)


def _forward(chain: list[_Batch]) -> bytes:
    messages = chain[0].messages
    for batch in chain[1:]:
        messages = messages.joined(batch.messages)
    packet = {
        "t": "forward",
        "publisher": chain[0].session.publisher,
        "numbers": [batch.number for batch in chain],
        "after": chain[0].after,
        "topic": chain[0].topic,
        "counts": [len(batch.messages.items) for batch in chain],
        "messages": messages,
    }
    return encode(packet)


class _Link:
    """A producer's connection to a consumer, with the batches that wait for it or for their confirmation."""

    def __init__(self, address: str, how: tuple[str, ssl.SSLContext | None, int, float]) -> None:
        self.address = address
        self.how = how
        self.queue: deque[_Batch] = deque()
        self.sent: deque[tuple[int, _Batch]] = deque()
        self.position = 0
        self.held = 0
        self.wake = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()
        self.wire: Wire | None = None

    def add(self, batch: _Batch) -> None:
        self.queue.append(batch)
        self._hold(batch.size)
        self.wake.set()

    def _hold(self, size: int) -> None:
        self.held += size
        if self.held < 2 * WINDOW_BYTES:
            self.room.set()
        else:
            self.room.clear()

    def _again(self, error: Closed) -> None:
        """Deal with the batches that a broken connection had under way."""
        sent = [batch for _, batch in self.sent]
        self.sent.clear()
        self.position = 0
        if error.blames_data:
            for batch in sent:
                self._hold(-batch.size)
                batch.refuse("invalid", f"the consumer closed the link: {error}")
            sent = []
        waiting, self.queue = [*sent, *self.queue], deque()
        for batch in waiting:
            if batch.after and batch.after == batch.session.refused.get(batch.topic):
                self._hold(-batch.size)
                batch.refuse("after_refused", "the batch before it was refused")
            else:
                self.queue.append(batch)

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                async with _opened(self.address, "/producer", *self.how) as self.wire:
                    failures = 0
                    await _race(self._send(self.wire), self._receive(self.wire))
            except Closed as error:
                self._again(error)
                failures += 1
            self.wire = None
            await asyncio.sleep(random.random() * min(2, 0.05 * 2**failures))

    async def _send(self, wire: Wire) -> None:
        while True:
            while self.queue and sum(batch.size for _, batch in self.sent) < WINDOW_BYTES:
                chain = [self.queue.popleft()]
                while self.queue and self._joins(chain, self.queue[0]):
                    chain.append(self.queue.popleft())
                for batch in chain:
                    self.position += 1
                    self.sent.append((self.position, batch))
                await wire.send(_forward(chain))
            self.wake.clear()
            await self.wake.wait()

    def _joins(self, chain: list[_Batch], batch: _Batch) -> bool:
        last = chain[-1]
        return (
            batch.session.publisher == last.session.publisher
            and batch.topic == last.topic
            and batch.after == last.number
            and batch.number > last.number
            and batch.messages.text == last.messages.text
            and sum(each.size for each in chain) + batch.size <= min(MAX_CHAIN_BYTES, self.how[2])
            and len(chain) < MAX_CHAIN_BATCHES
        )

    async def _receive(self, wire: Wire) -> None:
        while True:
            packet = await wire.receive()
            if packet["t"] == "ack":
                last = packet["numbers"][-1][1]
                if last > self.position:
                    await wire.fail(4409)
                while self.sent and self.sent[0][0] <= last:
                    _, batch = self.sent.popleft()
                    self._hold(-batch.size)
                    batch.session.confirm(batch.number)
            elif packet["t"] == "refused":
                first, last = packet["number"], packet["last"] or packet["number"]
                if not first <= last <= self.position:
                    await wire.fail(4409)
                while self.sent and self.sent[0][0] <= last:
                    position, batch = self.sent.popleft()
                    self._hold(-batch.size)
                    if position < first:
                        batch.session.confirm(batch.number)
                    else:
                        batch.refuse(packet["code"], packet["reason"])
            elif packet["t"] == "draining":
                await asyncio.sleep(random.random() * packet["retry_seconds"])
                raise Closed(1001, "the consumer is draining")
            elif packet["t"] not in {"alive", "log"}:
                await wire.fail(4409)
            self.wake.set()


class Producer(_Node):
    """A producer: it takes batches from publishers, and forwards them to the consumers of their topics."""

    paths = ("/produce",)

    def __init__(
        self,
        keys: Sequence[str],
        consumers: Sequence[str],
        node_key: str,
        *,
        link_context: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(keys, **options)
        how = (node_key, link_context, self.max_message_bytes, self.seconds)
        self.links = [_Link(address, how) for address in consumers]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen, and connect to the consumers."""
        await super().start(port, host)
        self._tasks = [asyncio.create_task(link.run()) for link in self.links]

    async def stop(self, retry_seconds: float = 0.0) -> None:
        """Stop, and forget all that is not confirmed."""
        await super().stop(retry_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, wire: Wire, path: str) -> None:
        packet = await wire.receive()
        if packet["t"] != "publisher":
            await wire.fail(4409)
        session = _Session(public_id(packet["secret"]))
        await _race(session.tell(wire), self._take(wire, session))

    async def _take(self, wire: Wire, session: _Session) -> None:
        while True:
            packet = await wire.receive()
            if packet["t"] != "publish":
                await wire.fail(4409)
            topic, number, after = packet["topic"], packet["number"], packet["after"]
            if after >= number:
                await wire.fail(4400, "a batch after itself or a later one")
            if packet["messages"] is None:
                session.refuse(topic, number, "invalid", "the messages break a rule")
            elif len(topic.encode()) > self.max_topic_bytes:
                session.refuse(topic, number, "topic_too_long", "the topic is too long")
            elif after and session.refused.get(topic) == after:
                session.refuse(topic, number, "after_refused", "the batch before it was refused")
            else:
                batch = _Batch(session, number, after, topic, packet["messages"], 0)
                batch.size = len(_forward([batch]))
                if batch.size > self.max_message_bytes + FORWARD_OVERHEAD_BYTES:
                    batch.refuse("too_long", "the batch is too long")
                    continue
                link = self.links[route(topic, len(self.links))]
                link.add(batch)
                await link.room.wait()


@dataclass
class _Chain:
    offset: int
    publisher: str
    numbers: list[int]
    counts: list[int]
    messages: Messages

    def deliver(self, topic: str, offset: int) -> Packet:
        """Give the packet with this chain from an offset inside of it on."""
        skipped = offset - self.offset
        numbers, counts = list(self.numbers), list(self.counts)
        while skipped >= counts[0]:
            skipped -= counts.pop(0)
            numbers.pop(0)
        counts[0] -= skipped
        packet: Packet = {"t": "deliver", "topic": topic, "offset": offset, "publisher": self.publisher}
        messages = self.messages.cut(offset - self.offset)
        return packet | {"numbers": numbers, "counts": counts, "messages": messages}


class _Log:
    """The log of one topic in memory."""

    def __init__(self) -> None:
        self.chains: list[_Chain] = []
        self.first = 0
        self.end = 0
        self.last: dict[str, int] = {}
        self.more = asyncio.Event()

    def append(self, chain: _Chain, keep: int | None) -> None:
        self.chains.append(chain)
        self.end += len(chain.messages.items)
        self.last[chain.publisher] = chain.numbers[-1]
        if keep is not None:
            while self.end - self.chains[0].offset > keep and len(self.chains) > 1:
                del self.chains[0]
        self.first = self.chains[0].offset
        self.more.set()
        self.more = asyncio.Event()


class Consumer(_Node):
    """A consumer: it keeps the messages in memory, and delivers them to subscribers.

    It keeps `keep` messages of a topic, and refuses more when it has had `max_messages` of them.
    """

    paths = ("/producer", "/subscribe")

    def __init__(
        self,
        keys: Sequence[str],
        node_keys: Sequence[str],
        *,
        keep: int | None = None,
        max_messages: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(keys, **options)
        self.node_keys = list(node_keys)
        self.keep = keep
        self.max_messages = max_messages
        self.log = os.urandom(8).hex()
        self.logs: dict[str, _Log] = {}
        self.chains: list[tuple[int, ...]] = []

    def _known(self, path: str) -> list[str]:
        return self.node_keys if path == "/producer" else self.keys

    async def _serve(self, wire: Wire, path: str) -> None:
        await (self._take(wire) if path == "/producer" else self._feed(wire))

    async def _take(self, wire: Wire) -> None:
        position = 0
        refused: dict[tuple[str, str], int] = {}
        while True:
            packet = await wire.receive()
            if packet["t"] != "forward":
                await wire.fail(4409)
            numbers = packet["numbers"]
            self.chains.append(tuple(numbers))
            of = packet["topic"], packet["publisher"]
            kept, refusal = self._judge(packet, refused.get(of))
            if kept:
                if refused.get(of) in numbers[:kept]:
                    # It has come again under its number, and others may follow it.
                    del refused[of]
                await wire.send({"t": "ack", "numbers": [[position + 1, position + kept]]})
            for index in range(kept, len(numbers)):
                refused[of] = numbers[index]
                place = {"t": "refused", "number": position + index + 1}
                await wire.send(place | {"code": refusal, "reason": f"refused: {refusal}"})
            position += len(numbers)

    def _judge(self, packet: Packet, refused: int | None) -> tuple[int, str]:
        """Store the new batches of a chain. Give how many batches are confirmed, and why others are not."""
        topic, publisher, numbers = packet["topic"], packet["publisher"], packet["numbers"]
        if packet["messages"] is None:
            return 0, "invalid"
        if len(topic.encode()) > self.max_topic_bytes:
            return 0, "topic_too_long"
        log = self.logs.setdefault(topic, _Log())
        last = log.last.get(publisher)
        repeats = bisect.bisect_right(numbers, last) if last is not None else 0
        if repeats == len(numbers):
            return repeats, ""
        after = packet["after"]
        if not repeats and after and (after == refused or (last is not None and after > last)):
            return 0, "after_refused"
        if self.max_messages is not None and log.end >= self.max_messages:
            return repeats, "full"
        counts = packet["counts"]
        messages = packet["messages"].cut(sum(counts[:repeats]))
        log.append(_Chain(log.end, publisher, numbers[repeats:], counts[repeats:], messages), self.keep)
        return len(numbers), ""

    async def _feed(self, wire: Wire) -> None:
        readers: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                packet = await wire.receive()
                if packet["t"] not in {"subscribe", "unsubscribe"}:
                    await wire.fail(4409)
                topic = packet["topic"]
                if packet["t"] == "subscribe" and len(topic.encode()) > self.max_topic_bytes:
                    await wire.fail(4410)
                if topic in readers:
                    readers[topic].cancel()
                    await asyncio.gather(readers.pop(topic), return_exceptions=True)
                if packet["t"] == "unsubscribe":
                    await wire.send({"t": "unsubscribed", "topic": topic})
                    continue
                if len(readers) >= MAX_TOPICS_PER_CONNECTION:
                    await wire.fail(4413)
                log = self.logs.setdefault(topic, _Log())
                offset, gap = self._begin(log, packet)
                place = {"log": self.log, "offset": offset, "end": log.end}
                await wire.send({"t": "subscribed", "topic": topic} | place)
                if gap is not False:
                    await wire.send({"t": "gap", "topic": topic, "offset": offset, "missed": gap})
                readers[topic] = asyncio.create_task(self._read(wire, topic, log, offset))
        finally:
            for task in readers.values():
                task.cancel()

    def _begin(self, log: _Log, packet: Packet) -> tuple[int, int | bool | None]:
        """Give the first offset of a subscription, and how many messages are lost; False is no gap."""
        if packet["start"] == "latest":
            return log.end, False
        if packet["start"] == "last":
            return max(log.first, log.end - packet["count"]), False
        if packet["start"] != "offset":
            return log.first, False
        offset: int = packet["offset"]
        if packet["log"] not in {None, self.log}:
            return log.first, None
        if offset > log.end:
            return (log.first if packet["log"] is None else log.end), None
        return max(offset, log.first), log.first - offset if offset < log.first else False

    async def _read(self, wire: Wire, topic: str, log: _Log, offset: int) -> None:
        with contextlib.suppress(Closed):
            while True:
                more = log.more
                if offset < log.first:
                    missed = log.first - offset
                    offset = log.first
                    await wire.send({"t": "gap", "topic": topic, "offset": offset, "missed": missed})
                elif offset < log.end:
                    at = bisect.bisect_right(log.chains, offset, key=lambda chain: chain.offset) - 1
                    chain = log.chains[at]
                    packet = chain.deliver(topic, offset)
                    offset = chain.offset + len(chain.messages.items)
                    await wire.send(packet)
                else:
                    await more.wait()
