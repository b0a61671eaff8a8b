"""The status page and the JavaScript client: files of this package, put together once.

The page is one HTML document that asks for nothing but the JSON of its node, and runs nothing but its own
script: its Content-Security-Policy names script and style by their digests, and where it may connect to.
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
_SOURCE = re.compile(r"wss?://[A-Za-z0-9.-]+:[0-9]+")
"""What a policy can name (CSP level 3, section 2.3.1): no IPv6 address, and no underscore."""
_COMMENT_OR_INDENT = re.compile(r"^[ \t]*(?://[^\n]*\n|/\*\*.*?\*/\n|\n)|^[ \t]+", re.MULTILINE | re.DOTALL)

_SPACE_OF_CSS = re.compile(r"\s*;\s*(?=})|\s*([{},;])\s*|(?<=:) +|\n+")
_SPACE_OF_SCRIPT = re.compile(r" (=>|===|!==|&&|\|\||\?\?|[+-]?=|<|>) |(?<=[{(\[,;])\n")
"""Around operators that no sentence for people has, and line ends that end no statement."""


class StatusPage(msgspec.Struct, frozen=True):
    """Hold the page and the header that it must come with.

    Attributes:
        html: The whole document.
        content_security_policy: Value of the header of that name.
    """

    html: str
    content_security_policy: str


def status_page(connect: Sequence[str]) -> StatusPage:
    """Return the status page.

    Args:
        connect: Where its demo may open WebSockets besides the page's own origin, as `ws://host:port` or
            `wss://host:port`.

    Raises:
        ValueError: An origin is something else.
    """
    for origin in connect:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"expected ws://host:port or wss://host:port, not {origin!r}")
    html, style, script = _parts()
    policy = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "img-src": "data:",
        "connect-src": " ".join(["'self'", *dict.fromkeys(map(_connect_source, connect))]),
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return StatusPage(html, "; ".join(f"{name} {value}" for name, value in policy.items()))


def _connect_source(origin: str) -> str:
    """Return an origin as a policy has it, or all of its scheme where that cannot name it."""
    return origin if _SOURCE.fullmatch(origin) else f"{origin.partition(':')[0]}:"


@functools.cache
def client_js() -> str:
    """Return the JavaScript client, an ES module (docs/javascript.md)."""
    return _read("client.js")


@functools.cache
def _parts() -> tuple[str, str, str]:
    """Return the page, and its style and script as they stand in it."""
    style = _SPACE_OF_CSS.sub(r"\1", _shortened(_read("status.css")))
    script = _SPACE_OF_SCRIPT.sub(r"\1", _shortened(client_js() + _read("status.js")))
    html = _shortened(_read("status.html")).replace("{{style}}", style).replace("{{script}}", script)
    return html, style, script


def _read(name: str) -> str:
    return importlib.resources.files(__name__).joinpath(name).read_text("utf-8")


def _shortened(code: str) -> str:
    """Leave out indentation and the comments that have their own lines: a page need not carry them."""
    return _COMMENT_OR_INDENT.sub("", code)


def _source(code: str) -> str:
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"'sha256-{digest}'"
