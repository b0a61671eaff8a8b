"""The client as far as it needs no node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import wsqueue
from wsqueue.client.values import Start

pytestmark = pytest.mark.anyio

PRODUCERS, CONSUMERS = ["127.0.0.1:1/produce"], ["127.0.0.1:1/subscribe"]


def client(**limits: int) -> wsqueue.Client:
    limit = wsqueue.Limits(**limits)
    return wsqueue.connect(producers=PRODUCERS, consumers=CONSUMERS, psk="key", limits=limit)


@pytest.mark.parametrize(
    ("topics", "start", "problem"),
    [
        ((), "latest", "no topic to subscribe to"),
        (("news", "123456789"), "latest", "the topic has 9 bytes, and max_topic_bytes is 8"),
        (("\ud800",), "latest", "the topic holds a lone surrogate"),
        (("news", "sport"), 1, "an offset belongs to one topic"),
        (("news", "sport"), wsqueue.Position("log", 1), "an offset belongs to one topic"),
        (("news",), 2**53, "9007199254740992 is not a start: expected an offset, 0 to"),
        (("news",), -(2**53), "-9007199254740992 is not a start: .* -1 to -9007199254740991 for the last"),
        (("news",), wsqueue.Position("log", 2**53), "9007199254740992 is not an offset"),
        (("news",), wsqueue.Position("log", -1), "-1 is not an offset"),
        *((("news",), start, "is not a start") for start in ("foo", "3", 1.5, True)),
    ],
)
def test_subscriptions_that_cannot_be(topics: tuple[str, ...], start: Start, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        client(max_topic_bytes=8).subscribe(*topics, start=start)


def test_what_to_do_at_gaps_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="on_gap is 'skip', expected 'raise' or 'yield'"):
        client().subscribe("news", on_gap="skip")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("topics", "options", "problem"),
    [
        (["news"], {"prefetch": 1}, "order_key are for a group: expected group"),
        (["news"], {"order_key": "account", "reader": "mail"}, "order_key are for a group: expected group"),
        (["news"], {"lease_seconds": 60}, "order_key are for a group: expected group"),
        (["news"], {"max_deliveries": 1}, "order_key are for a group: expected group"),
        (["news"], {"auto_done": True}, "auto_done is for a reader or a group"),
        (["news", "sport"], {"group": "g"}, "a group has one topic, and there are 2: expected one"),
        (["news"], {"group": "g", "reader": "mail"}, "expected one of the two"),
        (["news"], {"group": "g", "follow": False}, "a group has neither follow nor on_gap"),
        (["news"], {"group": "g", "on_gap": "yield"}, "a group has neither follow nor on_gap"),
    ],
)
def test_options_that_cannot_be_together(topics: list[str], options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        client().subscribe(*topics, **options)


@pytest.mark.parametrize(
    ("psk", "problem"), [("", "the pre-shared key is empty"), (b"secret", "the pre-shared key is bytes")]
)
def test_keys_that_cannot_be(psk: str, problem: str) -> None:
    with pytest.raises(wsqueue.ConfigError, match=problem) as caught:
        wsqueue.connect(producers=PRODUCERS, consumers=CONSUMERS, psk=psk)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        (b"", "the publisher_secret has 0 bytes, expected 32 bytes"),
        (b"secret" * 5, "the publisher_secret has 30 bytes"),
        ("secret" * 8, r"the publisher_secret is str, expected 32 bytes, such as secrets.token_bytes\(32\)"),
    ],
)
def test_secrets_of_publishers_that_cannot_be(secret: bytes, problem: str) -> None:
    with pytest.raises(wsqueue.ConfigError, match=problem) as caught:
        wsqueue.connect(producers=PRODUCERS, consumers=CONSUMERS, psk="key", publisher_secret=secret)
    assert "secretsecret" not in str(caught.value)


def test_the_classic_protocol_has_no_secrets_of_publishers() -> None:
    config = wsqueue.ClientConfig(producers=PRODUCERS, consumers=CONSUMERS, allow_classic=True)
    with pytest.raises(
        wsqueue.ConfigError, match="allow_classic: the classic protocol has no publisher_secret"
    ):
        wsqueue.connect(config, psk="key", publisher_secret=bytes(32))


@pytest.mark.parametrize(
    ("secret", "data", "number", "problem"),
    [
        (None, ["1"], 1, "expected no id, or a client with a publisher_secret"),
        (bytes(32), ["1"], None, "a message of a client with a publisher_secret has no id: expected one"),
        (bytes(32), ["1", "2"], 1, "an id belongs to one message, and there are 2: expected a call for each"),
        *(
            (bytes(32), ["1"], number, "is not an id: expected an integer, 1 to 9007199254740991")
            for number in (0, -1, 2**53, True, 1.0, "1")
        ),
    ],
)
async def test_ids_that_cannot_be(secret: bytes | None, data: list[str], number: Any, problem: str) -> None:
    """Nothing is published, and so no id is used up."""
    unused = wsqueue.connect(
        producers=PRODUCERS, consumers=CONSUMERS, psk="key", publisher_secret=secret, open_seconds=0.1
    )
    async with unused:
        with pytest.raises(ValueError, match=problem):
            await unused.publish("news", *data, id=number)
        with pytest.raises(ValueError, match=problem):
            unused.publish_nowait("news", *data, id=number)


async def test_a_client_that_was_never_used() -> None:
    async with client(max_message_bytes=100) as unused:
        with pytest.raises(
            wsqueue.InvalidMessage, match="the message has 104 bytes with its topic and headers"
        ):
            unused.publish_nowait("news", "x" * 100)
        with pytest.raises(wsqueue.InvalidMessage, match="the name of a header has 0 characters"):
            await unused.publish("news", b"x", headers={"": "x"})
        for headers in ([("a", "b")], "abc"):
            with pytest.raises(wsqueue.InvalidMessage, match=r"the headers are \w+, expected a mapping"):
                await unused.publish("news", b"x", headers=headers)  # type: ignore[arg-type]
        await unused.flush()
    assert unused.lost_in_flight == 0


async def test_a_closed_client_says_so() -> None:
    async with client() as closed:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await closed.publish("news", "1")
    with pytest.raises(RuntimeError, match="closed"):
        closed.subscribe("news")


def test_wrong_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CREDENTIALS_DIRECTORY", "WSQUEUE_PSK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(wsqueue.ConfigError, match="no pre-shared key"):
        wsqueue.connect(producers=PRODUCERS, consumers=CONSUMERS)
    with pytest.raises(wsqueue.ConfigError, match="producers: the list is empty"):
        wsqueue.connect(consumers=CONSUMERS, psk="key")
    with pytest.raises(wsqueue.ConfigError, match=r"consumers\[0\]: .* is not an address"):
        wsqueue.connect(producers=PRODUCERS, consumers=["127.0.0.1:1"], psk="key")
    file = tmp_path / "consumer.toml"
    file.write_text('role = "consumer"\nlisten = ["127.0.0.1:0"]\n')
    with pytest.raises(wsqueue.ConfigError, match="expected 'demo', found 'consumer'"):
        wsqueue.connect(file)
