"""Keys that nodes take, because they look as if nobody could guess them."""

from __future__ import annotations

import hashlib


def psk_of(owner: str) -> str:
    """Return the key of somebody, the same each time."""
    return hashlib.sha256(owner.encode()).hexdigest()
