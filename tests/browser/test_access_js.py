"""Names and tokens of the JavaScript client: their rights, and how a token is renewed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

import wsqueue
from tests.support.keys import psk_of
from tests.support.nodes import Nodes, RunningNode, cut
from tests.support.waiting import soon

from ..support.chromium import Tabs
from .client import data, js, new_client

pytestmark = pytest.mark.anyio

BILLING = psk_of("billing")
RIGHTS: dict[str, Any] = {"publish": ["orders/*"], "subscribe": ["news", "sport"]}

OUTCOMES = """(all) => all.map((options) => {
  try {
    return typeof new wsqueue.WsqueueClient(options);
  } catch (error) {
    return `${error}`;
  }
})"""


@pytest.fixture
async def cluster(nodes: Nodes, tmp_path: Path) -> tuple[RunningNode, RunningNode]:
    """Return a consumer and a producer that know a key with a name."""
    file = tmp_path / "billing.key"
    file.write_text(BILLING)
    file.chmod(0o600)
    return await nodes.cluster(clients=clients_with(**RIGHTS))


@pytest.fixture
def no_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tokens end at the time that they say."""
    monkeypatch.setattr("wsqueue.protocol.access.TOKEN_TOLERANCE_SECONDS", 0.0)


def clients_with(**rights: Any) -> list[dict[str, Any]]:
    return [{"name": "billing", "key_file": "billing.key", **rights}]


def lent(**changes: Any) -> str:
    """Return a token of billing."""
    values: dict[str, Any] = {"name": "billing", "who": "alice", "publish": ["*"], "subscribe": ["*"]}
    return wsqueue.Token.make(BILLING, **values | changes).text


async def with_renewal(
    tabs: Tabs, consumer: RunningNode, producer: RunningNode, renew: Callable[[], Any]
) -> Page:
    """Return a page whose client asks for its tokens."""
    page = await tabs.with_client()
    await page.expose_function("nextToken", renew)
    await new_client(page, [consumer], [producer], token=None)
    return page


@pytest.mark.parametrize("secret", [{"psk": BILLING, "name": "billing"}, {"token": lent()}])
async def test_what_is_allowed(
    nodes: Nodes, cluster: tuple[RunningNode, RunningNode], tabs: Tabs, secret: dict[str, str]
) -> None:
    consumer, producer = cluster
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer], **secret)
    await js(page, "subscribe('news').ready")
    assert await js(page, "outcome(client.publish('news', 'x'))") == "PublishError not_allowed"
    assert await js(page, "outcome(subscribe('orders/1').ready)") == "NotAllowedError not_allowed"
    assert await js(page, "errors") == ["NotAllowedError not_allowed"]
    # The rest goes on.
    assert await js(page, "outcome(client.publish('orders/1', 'x'))") == "done"
    async with soon(), nodes.client([producer], [consumer]) as everybody:
        await everybody.publish("news", "some news")
    assert await data(page, 1) == ["some news"]
    assert await js(page, "states.filter(({ state }) => state === 'down')") == []


async def test_a_token_allows_less_than_its_key(cluster: tuple[RunningNode, RunningNode], tabs: Tabs) -> None:
    page = await tabs.with_client()
    await new_client(page, [cluster[0]], [cluster[1]], token=lent(publish=["orders/mine"]))
    assert await js(page, "outcome(client.publish('orders/mine', 'x'))") == "done"
    assert await js(page, "outcome(client.publish('orders/other', 'x'))") == "PublishError not_allowed"


async def test_a_right_is_taken_away(
    nodes: Nodes, cluster: tuple[RunningNode, RunningNode], tabs: Tabs
) -> None:
    consumer, producer = cluster
    page = await tabs.with_client()
    await new_client(page, [consumer], [producer], psk=BILLING, name="billing")
    await js(page, "Promise.all(['news', 'sport'].map((topic) => subscribe(topic).ready))")
    consumer.write(clients=clients_with(subscribe=["sport"]))
    await consumer.service.reload()
    await page.wait_for_function("errors.length")
    assert await js(page, "errors") == ["NotAllowedError not_allowed"]
    async with soon(), nodes.client([producer], [consumer]) as everybody:
        await everybody.publish("news", "not for it")
        await everybody.publish("sport", "a goal")
    assert await data(page, 1) == ["a goal"]


async def test_classic_closes_a_connection_that_is_not_allowed(
    cluster: tuple[RunningNode, RunningNode], tabs: Tabs
) -> None:
    page = await tabs.with_client()
    await new_client(page, [cluster[0]], [cluster[1]], psk=BILLING, protocol="classic")
    await js(page, "subscribe('orders/1'); 0")
    await page.wait_for_function("errors.length")
    assert await js(page, "errors") == ["NotAllowedError 4416"]


async def test_an_unknown_name(cluster: tuple[RunningNode, RunningNode], tabs: Tabs) -> None:
    page = await tabs.with_client()
    await new_client(page, [cluster[0]], [cluster[1]], psk=BILLING, name="shipping")
    assert await js(page, "outcome(client.publish('orders/1', 'x'))") == "AuthenticationError 4401"


@pytest.mark.usefixtures("no_tolerance")
async def test_a_token_that_ends_is_renewed(cluster: tuple[RunningNode, RunningNode], tabs: Tabs) -> None:
    brought: list[str] = []

    def renew() -> str:
        # The first one has ended before it is used.
        brought.append(lent(seconds=0.4 if brought else -1))
        return brought[-1]

    page = await with_renewal(tabs, *cluster, renew)
    await js(page, "subscribe('news').ready")
    while len(brought) < 4:
        assert await js(page, "outcome(client.publish('orders/1', 'x'))") == "done"
    assert await js(page, "errors") == []
    assert "the token is not valid: expected a new one" in await js(
        page, "states.find(({ state }) => state === 'down').reason"
    )


async def test_all_connections_share_a_token(cluster: tuple[RunningNode, RunningNode], tabs: Tabs) -> None:
    tabs.tolerate("WebSocket connection to")
    brought: list[str] = []

    def renew() -> str:
        brought.append(lent(seconds=3600 * (len(brought) + 1)))
        return brought[-1]

    page = await with_renewal(tabs, *cluster, renew)
    both = "Promise.all([subscribe('news').ready, client.publish('orders/1', 'x')]).then(() => 0)"
    await js(page, both)
    assert len(brought) == 1
    # New connections shortly before its end have the next one.
    await page.clock.set_fixed_time(wsqueue.Token(brought[0]).claims.expires - 9)
    for node in cluster:
        for connection in list(node.connections):
            cut(connection)
    await page.wait_for_function("states.filter(({ state }) => state === 'up').length === 4")
    assert len(brought) == 2


@pytest.mark.usefixtures("no_tolerance")
async def test_a_token_that_ends_and_is_not_renewed(
    cluster: tuple[RunningNode, RunningNode], tabs: Tabs
) -> None:
    page = await tabs.with_client()
    await new_client(page, [cluster[0]], [cluster[1]], token=lent(seconds=0.5))
    await js(page, "subscribe('news'); 0")
    await page.wait_for_function("errors.length")
    assert await js(page, "errors") == ["AuthenticationError 4417"]
    assert await js(page, "outcome(client.publish('orders/1', 'x'))") == "AuthenticationError 4417"


async def test_the_second_token_that_is_refused_is_the_last(
    cluster: tuple[RunningNode, RunningNode], tabs: Tabs
) -> None:
    brought: list[str] = []

    def renew() -> str:
        brought.append(lent(seconds=-100))
        return brought[-1]

    page = await with_renewal(tabs, *cluster, renew)
    assert await js(page, "outcome(client.publish('orders/1', 'x'))") == "AuthenticationError 4417"
    assert len(brought) == 2


async def test_an_application_that_brings_no_token(
    cluster: tuple[RunningNode, RunningNode], tabs: Tabs
) -> None:
    brought = iter([None, "claims.secret", lent()])

    def renew() -> object:
        token = next(brought)
        if token is None:
            raise ValueError("no backend")
        return token

    page = await with_renewal(tabs, *cluster, renew)
    assert await js(page, "outcome(client.publish('orders/1', 'x'))") == "done"
    no_token = "the application has brought no token: "
    assert await js(page, "states.map(({ reason }) => reason).filter(Boolean)") == [
        f"{no_token}no backend",
        f"{no_token}the text is no token: expected the output of `wsqueue token`",
    ]


async def test_options_that_cannot_be_used(tabs: Tabs) -> None:
    page = await tabs.with_client()
    token = lent()
    claims, _, secret = token.partition(".")
    wrong = [
        {"token": token, "psk": BILLING},
        {"token": token, "name": "billing"},
        {"token": token, "protocol": "classic"},
        {"token": claims},
        {"token": f"{claims[1:]}.{secret}"},
        {"token": 7},
        {"name": "billing"},
        {"psk": BILLING, "name": 7},
        {"psk": BILLING, "consumers": ["http://127.0.0.1:1"]},
        {"psk": BILLING, "producers": ["127.0.0.1:65536"]},
        {"psk": BILLING, "producers": [7]},
        {"psk": BILLING, "helloOrder": "reverse"},
    ]
    both = "WsqueueError: a token stands for a key and its name: pass either token, or psk and name"
    none = "WsqueueError: the text is no token: expected the output of `wsqueue token`"
    assert await js(page, OUTCOMES, wrong) == [
        both,
        both,
        "WsqueueError: the classic protocol has no tokens",
        none,
        none,
        none,
        "TypeError: the pre-shared key is not a string",
        "TypeError: the name of the key is not a string",
        *(
            f"WsqueueError: an address is {one}, expected host:port, ws://host:port or wss://host:port"
            for one in ("http://127.0.0.1:1", "127.0.0.1:65536", "7")
        ),
        'TypeError: helloOrder is neither "document" nor "reversed"',
    ]
    assert await js(page, OUTCOMES, [{"token": f" {token}\n"}]) == ["object"]
