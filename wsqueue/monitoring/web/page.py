"""Put the status page together from the files beside this module.

The page is one HTML document that loads nothing but the JSON of its node, and runs only its own script: its
Content-Security-Policy names script and style by their digests, and the nodes that the demo may connect to.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import re
from collections.abc import Sequence

import msgspec

_ORIGIN = re.compile(r"wss?://[^\s;,'\"/?#]+:[0-9]{1,5}")
_FOR_READERS = re.compile(r"^ *(?:\n|export |//.*\n|/\*\*(?s:.*?)\*/\n)?", re.MULTILINE)
"""Indentation, empty lines, comments and `export`, an eighth of all; no string goes over a line's end."""

_SOURCE = re.compile(r"wss?://[A-Za-z0-9.-]+:[0-9]+")
"""An origin that a policy can name (CSP level 3, section 2.3.1): no IPv6 address, and no underscore."""


class StatusPage(msgspec.Struct, frozen=True):
    """Hold the page and a header that has to come with it.

    Attributes:
        html: The whole document.
        content_security_policy: Value of the header of that name.
    """

    html: str
    content_security_policy: str


def status_page(connect: Sequence[str]) -> StatusPage:
    """Return the status page.

    Args:
        connect: Origins beside the page's own to which the demo may open WebSockets, as `ws://host:port` or
            `wss://host:port`.

    Raises:
        ValueError: An origin has another form.
    """
    for origin in connect:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"expected ws://host:port or wss://host:port, not {origin!r}")
    html, style, script = _parts()
    policy = {
        "default-src": "'none'",
        "script-src": _digest(script),
        "style-src": _digest(style),
        "img-src": "data: blob:",
        "connect-src": " ".join(["'self'", *dict.fromkeys(map(_connect_source, connect))]),
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return StatusPage(html, "; ".join(f"{name} {value}" for name, value in policy.items()))


def _connect_source(origin: str) -> str:
    """Return an origin as it stands in a policy, or its scheme if a policy can't name it."""
    return origin if _SOURCE.fullmatch(origin) else f"{origin.partition(':')[0]}:"


@functools.cache
def client_js() -> str:
    """Return the JavaScript client, an ES module (docs/javascript.md)."""
    return _read("client.js")


@functools.cache
def _parts() -> tuple[str, str, str]:
    """Return the page, and its style and script as they stand in it."""
    style, script = map(_lean, (_read("status.css"), client_js() + _read("status.js")))
    html = _read("status.html").replace("{{style}}", style).replace("{{script}}", script)
    return html, style, script


def _lean(code: str) -> str:
    return _FOR_READERS.sub("", code)


def _read(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text("utf-8")


def _digest(code: str) -> str:
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"'sha256-{digest}'"
