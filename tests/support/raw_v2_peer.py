"""A peer that speaks v2 by hand, written from the words of docs/protocol.md: nothing of wsqueue's packets."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from websockets.frames import Opcode

from .raw_peer import RawServer, RawSocket

SUBPROTOCOL = "wsqueue.v2"


def proof_of(
    key: str,
    prover: str,
    acceptor_nonce: bytes,
    initiator_nonce: bytes,
    path: str,
    *,
    offered: str = SUBPROTOCOL,
    channel_binding: bytes = b"",
    key_name: str = "",
    token: bytes = b"",
) -> bytes:
    """Return the proof of one end, as the protocol has it."""
    label = f"wsqueue.v2 {prover}".encode()
    parts = [label, acceptor_nonce, initiator_nonce, path.encode(), offered.encode(), channel_binding]
    if key_name or token:
        parts += [key_name.encode(), token]
    claim = b"".join(len(part).to_bytes(4) + part for part in parts)
    return hmac.new(derived(key, "wsqueue proof"), claim, hashlib.sha256).digest()


def derived(key: str, use: str) -> bytes:
    """Return the key for one use."""
    return HKDF(hashes.SHA256(), length=32, salt=None, info=use.encode()).derive(key.encode())


def secret_of_token(key: str, claims: bytes) -> str:
    """Return the secret of the token with some claims."""
    digest = hmac.new(derived(key, "wsqueue token"), claims, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def new_nonce() -> bytes:
    return secrets.token_bytes(32)


def new_secret() -> dict[str, Any]:
    """Return the packet that names a publisher."""
    return {"t": "publisher", "secret": new_nonce()}


def public_id_of(secret: bytes, who: str = "") -> str:
    """Return the public id of a publisher, without the name of its key."""
    digest = hashlib.sha256(secret + who.encode()).digest()
    return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")


def encoded(packet: object) -> bytes:
    """Return a packet as it travels."""
    return msgspec.msgpack.encode(packet)


def decoded(payload: bytes) -> dict[str, Any]:
    """Return the packet in the payload of a binary message."""
    packet = msgspec.msgpack.decode(payload)
    assert isinstance(packet, dict)
    return packet


def messages_of(*data: str | bytes, headers: Sequence[dict[str, str] | None] = ()) -> dict[str, Any]:
    """Return the field `messages` of a packet; all data is `str`, or all is `bytes`."""
    raw = [one.encode() if isinstance(one, str) else one for one in data]
    fields: dict[str, Any] = {"sizes": list(map(len, raw)), "data": b"".join(raw)}
    if any(isinstance(one, bytes) for one in data):
        assert not any(isinstance(one, str) for one in data)
        fields["text"] = False
    if headers:
        fields["headers"] = list(headers)
    return fields


def data_of(packet: dict[str, Any]) -> list[str | bytes]:
    """Return the messages of a packet that publishes, forwards or delivers a batch."""
    fields, begin = packet["messages"], 0
    found: list[str | bytes] = []
    for size in fields["sizes"]:
        raw = fields["data"][begin : begin + size]
        found.append(raw.decode() if fields.get("text", True) else raw)
        begin += size
    assert begin == len(fields["data"])
    return found


def publish_of(number: int, topic: str, *data: str | bytes, after: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a packet that publishes a batch; `changes` are fields that differ."""
    fields = {
        "t": "publish",
        "number": number,
        "after": after,
        "topic": topic,
        "messages": messages_of(*data),
    }
    return fields | changes


def forward_of(
    number: int, topic: str, *data: str | bytes, publisher: str = "p", **changes: Any
) -> dict[str, Any]:
    """Return a packet that forwards a batch; `changes` are fields that differ."""
    fields = {
        "t": "forward",
        "publisher": publisher,
        "numbers": [number],
        "after": 0,
        "topic": topic,
        **_counted(data, changes),
    }
    return fields | changes


def deliver_of(offset: int, topic: str, *data: str | bytes, **changes: Any) -> dict[str, Any]:
    """Return a packet that delivers a batch; `changes` are fields that differ."""
    fields = {
        "t": "deliver",
        "topic": topic,
        "offset": offset,
        "publisher": "",
        "numbers": [0],
        **_counted(data, changes),
    }
    return fields | changes


def _counted(data: Sequence[str | bytes], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the messages of one batch, and their count as far as that is known."""
    messages = changes.get("messages", messages_of(*data))
    sizes = messages.get("sizes") if isinstance(messages, dict) else None
    return {"counts": [len(sizes) if sizes and isinstance(sizes, list) else 1], "messages": messages}


class V2Socket(RawSocket):
    """Hold one end of a connection that speaks v2."""

    @classmethod
    @contextlib.asynccontextmanager
    async def upgraded(
        cls, address: str, path: str, *, receive_buffer: int | None = None
    ) -> AsyncIterator[Self]:
        """Connect to a node, and upgrade to v2."""
        async with cls.open(address, receive_buffer=receive_buffer) as raw:
            await raw.ask(path, SUBPROTOCOL)
            yield raw

    @classmethod
    @contextlib.asynccontextmanager
    async def speaking(
        cls,
        address: str,
        path: str,
        key: str,
        *,
        name: str = "",
        token: bytes = b"",
        receive_buffer: int | None = None,
    ) -> AsyncIterator[Self]:
        """Connect to a node, with the hello of v2 done."""
        async with cls.upgraded(address, path, receive_buffer=receive_buffer) as raw:
            await raw.prove(key, path, name=name, token=token)
            yield raw

    def send(self, packet: dict[str, Any]) -> None:
        """Send a packet."""
        self.send_frame(Opcode.BINARY, encoded(packet))

    async def packet(self) -> dict[str, Any]:
        """Return the next packet; answer pings, and fail if any other frame comes first."""
        opcode, payload = await self.frame()
        while opcode is Opcode.PING:
            self.send_frame(Opcode.PONG, payload)
            opcode, payload = await self.frame()
        assert opcode is Opcode.BINARY, (opcode, payload)
        return decoded(payload)

    async def prove(self, key: str, path: str, *, name: str = "", token: bytes = b"") -> None:
        """Do the hello of an initiator, whose key may have a name or be that of a token with these claims."""
        nonces = await self.prove_wrongly(key, path, name=name, token=token)
        expected = proof_of(key, "acceptor", *nonces, path, key_name=name, token=token)
        assert await self.packet() == {"t": "proof", "proof": expected}

    async def prove_wrongly(
        self, key: str, path: str, *, name: str = "", token: bytes = b""
    ) -> tuple[bytes, bytes]:
        """Do an initiator's part of the hello, with a key that may be wrong, and return the nonces."""
        challenge = await self.packet()
        assert set(challenge) == {"t", "nonce"}
        nonces = challenge["nonce"], new_nonce()
        proof = proof_of(key, "initiator", *nonces, path, key_name=name, token=token)
        more = {key: value for key, value in (("key", name), ("token", token)) if value}
        self.send({"t": "proof", "proof": proof, "nonce": nonces[1], "path": path, **more})
        return nonces

    async def accept_v2(self, key: str) -> str:
        """Be the acceptor: answer the upgrade request, do the hello of v2, and return the path."""
        path = await self.upgrade(SUBPROTOCOL)
        nonce = new_nonce()
        self.send({"t": "challenge", "nonce": nonce})
        proof = await self.packet()
        assert proof["path"] == path
        assert proof["proof"] == proof_of(key, "initiator", nonce, proof["nonce"], path)
        self.send({"t": "proof", "proof": proof_of(key, "acceptor", nonce, proof["nonce"], path)})
        return path

    async def next(self, kind: str) -> dict[str, Any]:
        """Return the next packet, which must be of one kind; `log`s are dropped, `ask_alive` is answered."""
        packet = await self.packet()
        while packet["t"] in {"log", "ask_alive"} - {kind}:
            if packet["t"] == "ask_alive":
                self.send({"t": "alive"})
            packet = await self.packet()
        assert packet["t"] == kind, packet
        return packet

    async def delivered(self, count: int) -> list[str | bytes]:
        """Return the data of the next messages, each of which has the offset after the one before."""
        data: list[str | bytes] = []
        following: int | None = None
        while len(data) < count:
            packet = await self.next("deliver")
            assert following in (None, packet["offset"])
            found = data_of(packet)
            following = packet["offset"] + len(found)
            data += found
        return data

    async def confirmed(self, *numbers: int) -> None:
        """Wait until some batches are confirmed, in their order, and no others."""
        found: list[int] = []
        while len(found) < len(numbers):
            for first, last in (await self.next("ack"))["numbers"]:
                found += range(first, last + 1)
        assert found == list(numbers)

    async def answers(self, count: int) -> dict[int, str]:
        """Return the outcomes of the next batches by their numbers; they come in any order."""
        found: dict[int, str] = {}
        while len(found) < count:
            packet = await self.packet()
            if packet["t"] == "ack":
                for first, last in packet["numbers"]:
                    found |= dict.fromkeys(range(first, last + 1), "stored")
            elif packet["t"] != "log":
                assert packet["t"] == "refused"
                last = packet.get("last", packet["number"])
                found |= dict.fromkeys(range(packet["number"], last + 1), packet["code"])
        return found

    async def answer_close(self) -> None:
        """Read until the close frame, and answer it."""
        self.send_frame(Opcode.CLOSE, await self.until(Opcode.CLOSE))
        await self.writer.drain()


class V2Server(RawServer):
    """Accept connections of peers that offer v2, and leave them to the test."""

    kind = V2Socket

    async def speaking(self, key: str) -> V2Socket:
        """Return the next connection, with the hello of v2 done."""
        raw = await self.next()
        assert isinstance(raw, V2Socket)
        await raw.accept_v2(key)
        return raw
