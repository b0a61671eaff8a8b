"""The text of the status page: its policy, its size, and its agreement with the protocol."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from tests.support.paths import ROOT
from wsqueue.client.group import RENEWALS
from wsqueue.client.inbox import MAX_WAITING_MESSAGES
from wsqueue.monitoring.web.page import client_js, status_page
from wsqueue.protocol import v2
from wsqueue.protocol.classic import MAX_ONCE
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.hello_v2 import TRANSITIONS_V2
from wsqueue.protocol.v2 import GROUP_PATTERN, NONCE_BYTES, SUBPROTOCOL

DOCUMENT = ROOT / "docs" / "javascript.md"
UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2}


def parts(html: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", html, re.DOTALL)


def directives(policy: str) -> dict[str, list[str]]:
    return {name: values for name, *values in (directive.split() for directive in policy.split(";"))}


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_policy_allows_the_parts_of_the_page_and_nothing_else() -> None:
    page = status_page(["ws://127.0.0.1:10001", "wss://[2001:db8::7]:443", "ws://127.0.0.1:10001"])
    [script], [style] = parts(page.html, "script"), parts(page.html, "style")
    assert directives(page.content_security_policy) == {
        "default-src": ["'none'"],
        "script-src": [digest(script)],
        "style-src": [digest(style)],
        "img-src": ["data:", "blob:"],
        "connect-src": ["'self'", "ws://127.0.0.1:10001", "wss:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }


@pytest.mark.parametrize(
    "origin", ["*", "ws://a:1; script-src *", "http://a:1", "ws://a", "ws://a:1/x", "ws://a:1 *"]
)
def test_an_origin_cannot_change_the_policy(origin: str) -> None:
    with pytest.raises(ValueError, match="expected ws://host:port"):
        status_page([origin])


def test_the_page_is_one_file_of_at_most_109_kib() -> None:
    html = status_page([]).html
    assert len(html.encode()) <= 109 * 1024
    assert "{{" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""<(?!a\b)[^>]*\s(?:src|href)=(?!"data:)""", html.split("<script", 1)[0])


def test_ids_are_unique_and_the_script_finds_all_of_them() -> None:
    html = status_page([]).html
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    [script] = parts(html, "script")
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= set(ids)
    for attribute in ("for", "aria-labelledby", "aria-describedby"):
        assert set(re.findall(rf'\s{attribute}="([^"]+)"', html)) <= set(ids)


def test_the_client_knows_the_close_codes_and_the_sizes() -> None:
    client = client_js()
    for_good = client.split("const FOR_GOOD = new Set([", 1)[1].split("])", 1)[0]
    assert {int(code) for code in re.findall(r"\d+", for_good)} == {
        code.value for code in CloseCode if not code.reconnect
    }
    assert f'SUBPROTOCOL = "{SUBPROTOCOL}"' in client
    assert f"NONCE_BYTES = {NONCE_BYTES}" in client
    assert MAX_ONCE == 2**31 - 2
    assert "MAX_ONCE = 2 ** 31 - 2" in client
    refusals = {int(code) for code in re.findall(r"fault\((\d+)", client)}
    assert {state.value for state in TRANSITIONS_V2.values() if isinstance(state, CloseCode)} <= refusals


def test_the_client_knows_the_limits_of_groups_and_readers() -> None:
    exported = dict(re.findall(r"^export const ([A-Z_]+) = ([\d.]+);", client_js(), re.MULTILINE))
    names = ("MAX_PREFETCH", "MIN_LEASE_SECONDS", "MAX_LEASE_SECONDS", "MAX_DELIVERIES", "MAX_DELAY_SECONDS")
    for name in (*names, "MAX_REASON_CHARACTERS", "MAX_SETTLED_RANGES"):
        assert float(exported[name]) == getattr(v2, name), name
    assert int(exported["RENEWALS"]) == RENEWALS
    assert int(exported["MAX_WAITING_MESSAGES"]) == MAX_WAITING_MESSAGES
    pattern = GROUP_PATTERN.removesuffix("\\Z")
    assert f"const GROUP_NAME = /{pattern}$/;" in client_js()


def test_the_limits_of_the_client() -> None:
    documented = re.findall(r"^\| `([A-Z_]+)` \| ([\d.,]+) ?(\w*) \|", DOCUMENT.read_text(), re.MULTILINE)
    exported = dict(re.findall(r"^export const ([A-Z_]+) = ([\d.* ]+);", client_js(), re.MULTILINE))
    assert [name for name, _, _ in documented] == list(exported)
    for name, number, unit in documented:
        factors = [float(factor) for factor in exported[name].split("*")]
        product = 1.0
        for factor in factors:
            product *= factor
        assert float(number.replace(",", "")) * UNITS[unit] == product
