"""Files and variables with pre-shared keys: they give keys, or an error that shows nothing of them.

The first byte chooses the file or the variable, and whether the cluster is local.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wsqueue.config.keys import DEFAULT_PSK, MAX_KEYS, MAX_PSK_BYTES, load_psk
from wsqueue.config.model import ClientConfig
from wsqueue.errors import ConfigError
from wsqueue.protocol.keys import Order, PreSharedKey

WORDS = (b"\r\n", b"\n\n", DEFAULT_PSK.encode(), b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0")

SHOWN_BYTES = 12
"""Bytes of a key that must not be in an error; fewer may be there by chance."""

FILE = Path(tempfile.mkdtemp(prefix="wsqueue-fuzz-")) / "psk"
CLAIM = b"claim"


def check(data: bytes) -> None:
    """Load keys, and prove and verify with each."""
    if not data:
        return
    options, content = data[0], data[1:]
    local, variable = bool(options & 1), bool(options & 2)
    config = ClientConfig(producers=[], consumers=[], local=local, psk_file=None if variable else str(FILE))
    if variable:
        if b"\0" in content:
            return
        os.environb[b"WSQUEUE_PSK"] = content
    else:
        FILE.unlink(missing_ok=True)
        FILE.touch(mode=0o600)
        FILE.write_bytes(content)
    try:
        psk = load_psk(config)
    except ConfigError as error:
        shown = str(error).encode()
        assert len(str(error).splitlines()) == 1
        for line in content.split(b"\n"):
            parts = (line[place : place + SHOWN_BYTES] for place in range(len(line) - SHOWN_BYTES + 1))
            assert not any(part in shown for part in parts if part not in EXPLAINED)
        return
    content.decode()
    assert len(content) <= MAX_PSK_BYTES or variable
    count = content.removesuffix(b"\n").count(b"\n") + 1
    assert count <= MAX_KEYS
    lines = [line.removesuffix("\r") for line in content.decode().split("\n")]
    assert local or DEFAULT_PSK not in lines
    assert repr(psk) == "PreSharedKey(<hidden>)"
    for index in range(count):
        assert psk.verify_proof(CLAIM, psk.prove(CLAIM, index)) is not None
        assert psk.verify(1, psk.answer(1, Order.REVERSED, index)) is not None
    assert psk == load_psk(config)
    assert psk.shares(psk)
    assert psk != PreSharedKey(content.decode() + "!")


EXPLAINED = f"""
no pre-shared key: expected psk_file in the configuration, the systemd credential `psk` or
the pre-shared key is the original nodes' default, which is public
expected a secret, as from `wsqueue keygen`
the pre-shared key is empty; keys, one per line; expected at most {MAX_KEYS}
the file has more than {MAX_PSK_BYTES} bytes; the file is not UTF-8; the pre-shared key is not UTF-8
{FILE}: all users may read the key; expected `chmod o= `
""".encode()
"""Words of the errors: a key that consists of them is not told by them."""


def seeds() -> Iterator[bytes]:
    """Yield files with one key and with more, and wrong ones."""
    key = b"c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I="
    for options in range(4):
        for content in (
            *(key, key + b"\n", key + b"\r\n", key + b"\nother key\n", key + b"\n\n", b"", b"\n"),
            *(DEFAULT_PSK.encode(), b"\n".join([key] * (MAX_KEYS + 1)), b"\xff" + key, b"\xed\xa0\x80" + key),
        ):
            yield bytes([options]) + content
