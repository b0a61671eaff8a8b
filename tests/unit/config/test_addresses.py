from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.config.addresses import NO_ZONE, Address, expected_form, parse_address

from ...support.session_pair import many

LONGEST = ".".join(["x" * 63] * 3 + ["x" * 61])
"""The longest name that DNS knows."""


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:10001", Address(host="127.0.0.1", port=10001)),
        ("node-1.example.com:1", Address(host="node-1.example.com", port=1)),
        ("localhost:0", Address(host="localhost", port=0)),
        ("0.0.0.0:65535", Address(host="0.0.0.0", port=65535)),  # noqa: S104 - nothing is bound
        ("[::1]:10001", Address(host="::1", port=10001)),
        ("[2001:db8::7]:80", Address(host="2001:db8::7", port=80)),
        ("unix:/run/wsqueue.sock", Address(socket="/run/wsqueue.sock")),
        ("unix:/run/ws queue/ñ", Address(socket="/run/ws queue/ñ")),
        ("unix:/" + "x" * 106, Address(socket="/" + "x" * 106)),
    ],
)
def test_listeners(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.168.1.126:10001/producer", Address(host="192.168.1.126", port=10001, path="/producer")),
        ("[::1]:1/producer", Address(host="::1", port=1, path="/producer")),
        ("proxy:80/a/b%20c/producer", Address(host="proxy", port=80, path="/a/b%20c/producer")),
        ("proxy:80/~x!$&'()*+,;=:@-._/producer", Address("proxy", 80, "", "/~x!$&'()*+,;=:@-._/producer")),
        (f"{LONGEST}:1/producer", Address(host=LONGEST, port=1, path="/producer")),
        ("unix:/run/q.sock:/producer", Address(socket="/run/q.sock", path="/producer")),
        ("unix:/run/q.sock:/a:b/producer", Address(socket="/run/q.sock", path="/a:b/producer")),
    ],
)
def test_endpoints(text: str, address: Address) -> None:
    assert parse_address(text, "/producer") == address
    assert str(address) == text


def test_two_spellings_of_one_address() -> None:
    for one, other in (
        ("Node.Example:1", "node.example:1"),
        ("node:0080", "node:80"),
        ("[2001:DB8::A]:1", "[2001:db8::a]:1"),
        ("[0:0:0:0:0:0:0:1]:1", "[::1]:1"),
        # As the resolver is asked, and as the header Host must have them, which takes ASCII only.
        ("w\u00fcrfel.example:1", "xn--wrfel-kva.example:1"),
        ("\u4f8b\u3048.example:1", "xn--r8jz45g.example:1"),
        ("\uff4eode.example:1", "node.example:1"),
        ("[::ffff:192.0.2.7]:80", "[::FFFF:192.0.2.7]:80"),
    ):
        assert parse_address(one) == parse_address(other)
        assert hash(parse_address(one)) == hash(parse_address(other))


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "node", "node:", ":1", ":", "1", "node:1:2", "node:x", "node:-1", "node:+1", "node:1.0"),
        *("node:65536", "node:99999", "node:100000", "node: 1", "no de:1", "node:1 ", " node:1", "node:1\n"),
        *("node\n:1", "node:\u0661", "user@node:1", "node#x:1", "node?x:1", "node[:1", "node/x:1"),
        *("ws://node:1", "http://node:1", "//node:1", "tcp:node:1", "::1:1", "2001:db8::7:80"),
        *("[::1]", "[::1]:", "[::1", "::1]:1", "[]:1", "[node]:1", "[127.0.0.1]:1", "[::g]:1", "[:::]:1"),
        *("[1:2:3:4:5:6:7:8:9]:1", "[::1]x:1", "x[::1]:1", "[::256.0.0.1]:1", "a..b:1"),
        *(
            "a\0b:1",
            "a\x01:1",
            "a\x7f:1",
            "a\x80:1",
            "a\uff0fb:1",
            "a\uff20b:1",
            "\u2024:1",
            f"{LONGEST}x:1",
            "\ud800:1",
        ),
        *("unix:", "unix:run/q", "unix:/", "unix:/run/q:", "unix:/run\0q", "UNIX:/run/q", "unix:/run/q:/x"),
        *("unix:/" + "x" * 107, "unix:/" + "ñ" * 54, "x" * 64 + ":1", "node:1/", "node:1/x", "node:1?x"),
    ],
)
def test_no_listener(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected .*(host:port|at most 107 bytes)"):
        parse_address(text)


@pytest.mark.parametrize("text", ["[fe80::1%eth0]:1", "wss://[fe80::1%2]:1", "[ff02::1%eth0.5]:1/produce"])
@pytest.mark.parametrize("endpoint", ["", "/produce"])
def test_a_zone(text: str, endpoint: str) -> None:
    with pytest.raises(ValueError, match="expected a host name or an address without a zone"):
        parse_address(text, endpoint)


@pytest.mark.parametrize(
    "text",
    [
        *("node:1", "node:1/", "node:1/produce", "node:1/producers", "node:1/myproducer", "node:1/PRODUCER"),
        *("node:1/producer/", "node:1/producer?x=1", "node:1/producer#x", "node:1producer", "/producer"),
        *("node:1/pro ducer", "node:1/ñ/producer", 'node:1/"/producer', "node:1/{}/producer"),
        *("node:1/[x]/producer", "node:1/\0/producer", "node:1/\n/producer", "node:1/x\\/producer"),
        *("ws://node:1/producer", "ws://[::1]:1/producer", "unix:/run/q", "unix:/run/q:producer"),
    ],
)
def test_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_address(text, "/producer")
    assert str(caught.value) == expected_form("/producer")


def test_what_is_expected_is_taken() -> None:
    for endpoint in ("", "/produce", "/subscribe"):
        for form in ("host:1{}", "[::1]:1{}", "unix:/path:{}" if endpoint else "unix:/path"):
            assert parse_address(form.format(endpoint), endpoint).path == endpoint


def test_loopback() -> None:
    for text in ("localhost:1", "127.0.0.1:1", "127.255.0.9:1", "[::1]:1", "unix:/run/q"):
        assert parse_address(text).loopback, text
    for host in ("0.0.0.0", "[::]", "192.0.2.7", "128.0.0.1", "[2001:db8::1]"):  # noqa: S104 - nothing is bound
        assert not parse_address(f"{host}:1").loopback, host
    for host in ("localhost.example.com", "127.0.0.1.example.com", "node"):
        assert not parse_address(f"{host}:1").loopback, host


def test_another_path() -> None:
    address = parse_address("node:1/subscribe", "/subscribe")
    assert str(address.with_path("/subscribe/news")) == "node:1/subscribe/news"
    assert str(address) == "node:1/subscribe"


def problem(text: str, endpoint: str) -> str:
    """Return why a text is no address, or "" when it is one that its text names again."""
    try:
        address = parse_address(text, endpoint)
    except ValueError as error:
        return str(error)
    assert parse_address(str(address), endpoint) == address
    return ""


@many
@given(
    st.text() | st.text("abc:/[]%.0195 \0ñunix", max_size=20),
    st.sampled_from(["", "/producer"]),
    st.sampled_from(["{}", "node:1{}", "[::1]:{}", "{}:1", "unix:/{}", "node:1/{}/producer", "unix:/x:{}"]),
)
def test_any_text_is_an_address_or_refused_with_what_is_expected(text: str, endpoint: str, form: str) -> None:
    assert problem(form.format(text), endpoint) in ("", *EXPECTED)


EXPECTED = [
    expected_form(""),
    expected_form("/producer"),
    NO_ZONE,
    "expected a socket path of at most 107 bytes",
]
