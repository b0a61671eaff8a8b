"""Bytes as text that is fit for URLs, file names and subjects (RFC 4648 section 5)."""

from __future__ import annotations

import base64


def base64url(data: bytes) -> str:
    """Return bytes in URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
