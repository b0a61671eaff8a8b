"""The table of packets in docs/protocol.md, and the vectors that other implementations are tested with."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from docs.generators import packets
from wsqueue.protocol import v2
from wsqueue.protocol.close import PeerError
from wsqueue.protocol.hello_v2 import Context
from wsqueue.protocol.keys import PreSharedKey, Role

from ...support.paths import ROOT
from ...support.raw_v2_peer import derived, secret_of_token

VECTORS = json.loads((ROOT / "tests" / "data" / "v2.json").read_text())
ACCEPTED, REFUSED, PROOFS = VECTORS["accepted"], VECTORS["refused"], VECTORS["proofs"]


def value_of(value: Any) -> Any:
    """Return a value of the vectors; they have bytes as `{"bin": hexadecimal digits}`."""
    if isinstance(value, list):
        return list(map(value_of, value))
    if isinstance(value, dict):
        if set(value) == {"bin"}:
            return bytes.fromhex(value["bin"])
        return {key: value_of(each) for key, each in value.items()}
    return value


def test_the_table_is_up_to_date() -> None:
    assert packets.FILE.read_text() == packets.text(), "run: python -m docs.generators.packets"


def test_it_is_written_as_it_says(tmp_path: Path) -> None:
    copy = tmp_path / "protocol.md"
    copy.write_text(packets.FILE.read_text().replace("| `deliver` | `topic` |", "| `deliver` | `other` |"))
    code = "from pathlib import Path; from docs.generators import packets"
    code += f"; packets.FILE = Path({str(copy)!r}); packets.main()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert copy.read_text() == packets.FILE.read_text()


def test_there_is_a_vector_of_every_packet() -> None:
    assert {vector["packet"]["t"] for vector in ACCEPTED} == {
        struct.__struct_config__.tag for struct in v2.PACKETS
    }


@pytest.mark.parametrize("vector", ACCEPTED, ids=lambda vector: vector["name"])
def test_a_packet_that_is_accepted(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["hex"])
    assert msgspec.msgpack.decode(payload) == value_of(vector["packet"])
    packet = v2.decode(payload)
    assert isinstance(packet, v2.PACKETS)
    if vector["name"] == packet.__struct_config__.tag:
        assert v2.encode(packet) == payload
    if isinstance(packet, v2.Publish | v2.Forward):
        assert packet.whole


@pytest.mark.parametrize("vector", REFUSED, ids=lambda vector: vector["name"])
def test_a_packet_that_is_refused(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["hex"])
    if vector["outcome"] == "invalid":
        packet = v2.decode(payload)
        assert isinstance(packet, v2.Publish | v2.Forward)
        assert not packet.whole
    else:
        with pytest.raises(PeerError) as caught:
            v2.decode(payload)
        assert caught.value.code == vector["outcome"]


@pytest.mark.parametrize("vector", PROOFS, ids=lambda vector: vector["name"])
def test_a_proof(vector: dict[str, Any]) -> None:
    nonces = [bytes.fromhex(vector[f"{end}_nonce"]) for end in ("acceptor", "initiator")]
    key, token = vector.get("key_name", ""), bytes.fromhex(vector.get("token", ""))
    binding = bytes.fromhex(vector["channel_binding"])
    context = Context(vector["path"], vector["offered"], binding, key, token)
    claim = context.claim(Role(vector["prover"]), *nonces)
    assert claim.hex() == vector["claim"]
    secret = secret_of_token(vector["key"], token) if token else vector["key"]
    proof = hmac.new(derived(secret, "wsqueue proof"), claim, hashlib.sha256).digest()
    assert proof.hex() == vector["proof"]
    assert PreSharedKey(secret).prove(claim) == proof
