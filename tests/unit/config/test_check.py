"""Errors in the addresses of a configuration, and warnings about unwise settings."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from wsqueue.config.check import check_addresses, check_servers, check_topics, config_warnings
from wsqueue.config.model import (
    ClientConfig,
    Config,
    ConsumerConfig,
    JetStream,
    Monitoring,
    ProducerConfig,
    Retention,
    RetentionMode,
    Tls,
    TopicRetention,
)
from wsqueue.errors import ConfigError

TLS = Tls(certificate="c", key="k")
SUBSCRIBE = ["b:1/subscribe"]


def consumer(**changes: Any) -> ConsumerConfig:
    return ConsumerConfig(**{"listen": ["127.0.0.1:10001"], "plain": True, **changes})


def producer(**changes: Any) -> ProducerConfig:
    defaults: dict[str, Any] = {
        "listen": ["127.0.0.1:1"],
        "consumers": ["127.0.0.1:2/producer"],
        "plain": True,
    }
    return ProducerConfig(**defaults | changes)


def monitored(tls: Tls | None = None, **changes: Any) -> ConsumerConfig:
    return consumer(monitoring=Monitoring(**changes), tls=tls or Tls())


def refused(config: Config, key: str) -> str:
    """Return why a configuration is refused; the error is about that key."""
    with pytest.raises(ConfigError) as caught:
        check_addresses(config)
    assert caught.value.key == key
    return caught.value.problem


def test_good_addresses() -> None:
    check_addresses(consumer(listen=["127.0.0.1:0", "127.0.0.1:0"]))
    check_addresses(ClientConfig(producers=["a:1/produce"], consumers=SUBSCRIBE))
    # A node is one of the cluster, and it may connect with TLS and have no certificate.
    check_addresses(monitored(consumers=["127.0.0.1:10001"], producers=["wss://node:7", "127.0.0.1:10001"]))


def test_an_empty_list() -> None:
    for config, key, form in (
        (consumer(listen=[]), "listen", "host:port"),
        (producer(consumers=[]), "consumers", "host:port/producer"),
        (ClientConfig(producers=[], consumers=SUBSCRIBE), "producers", "host:port/produce"),
        (ClientConfig(producers=["a:1/produce"], consumers=[]), "consumers", "host:port/subscribe"),
    ):
        assert refused(config, key).startswith(f"the list is empty: expected {form},")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("node:1", "is not an address: expected host:port/producer"),
        ("", "is not an address"),
        ("[::1]:0/producer", "has no port to connect to: expected 1 to 65535"),
        ("NODE.example:7/producer", "is listed twice: expected each address once"),
        ("unix:/run/q:/producer", "is listed twice: expected each address once"),
    ],
)
def test_an_address_to_connect_to(entry: str, problem: str) -> None:
    good = ["node.example:7/producer", "unix:/run/q:/producer"]
    assert refused(producer(consumers=[*good, entry]), "consumers[2]").startswith(f"{entry!r} {problem}")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (":10001", "is not an address: expected host:port, [ipv6]:port or unix:/path"),
        ("127.0.0.1:9", "is listed twice"),
        ("unix:" + "/x" * 60, "is not an address: expected a socket path of at most 107 bytes"),
    ],
)
def test_an_address_to_listen_on(entry: str, problem: str) -> None:
    assert refused(consumer(listen=["127.0.0.1:9", entry]), "listen[1]").startswith(f"{entry!r} {problem}")


@pytest.mark.parametrize("key", ["listen", "consumers", "producers"])
@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("node", "is not an address: expected host:port, [ipv6]:port or unix:/path"),
        ("127.0.0.1:7", "is listed twice: expected each address once"),
        ("wss://127.0.0.1:7", "is listed twice: expected each address once"),
    ],
)
def test_an_address_for_monitoring(key: str, entry: str, problem: str) -> None:
    config = monitored(None, **{key: ["127.0.0.1:7", entry]})
    assert refused(config, f"monitoring.{key}[1]").startswith(f"{entry!r} {problem}")
    if key != "listen":
        assert "has no port" in refused(monitored(None, **{key: ["node:0"]}), f"monitoring.{key}[0]")


@pytest.mark.parametrize("entry", ["127.0.0.1:10001", "wss://127.0.0.1:10001"])
def test_a_listener_serves_pages_or_everything(entry: str) -> None:
    problem = refused(monitored(TLS, listen=[entry]), "monitoring.listen[0]")
    assert problem == f"{entry!r} is listed twice: expected each address once"
    chosen = consumer(listen=["127.0.0.1:0"], monitoring=Monitoring(listen=["[::1]:0", "127.0.0.1:0"]))
    problem = refused(chosen, "monitoring.listen[1]")
    assert problem == "'127.0.0.1:0' is in listen too: expected an address of its own"


def test_a_listener_with_tls_needs_a_certificate() -> None:
    for config, key in (
        (consumer(listen=["wss://127.0.0.1:7"]), "listen[0]"),
        (monitored(listen=["wss://127.0.0.1:7"]), "monitoring.listen[0]"),
    ):
        assert "needs a certificate: expected the table [tls]" in refused(config, key)
    check_addresses(monitored(TLS, listen=["wss://127.0.0.1:7"]))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"listen": ["0.0.0.0:1"]}, "listen[0]"),
        ({"consumers": ["node:1/producer"]}, "consumers[0]"),
        ({"monitoring": Monitoring(listen=["192.0.2.1:7"])}, "monitoring.listen[0]"),
        ({"monitoring": Monitoring(producers=["192.0.2.1:7"])}, "monitoring.producers[0]"),
    ],
)
def test_a_local_cluster_is_on_loopback(changes: dict[str, Any], key: str) -> None:
    check_addresses(producer(**changes))
    problem = refused(producer(**changes, local=True), key)
    assert "is not on loopback, where `local = true` keeps a cluster" in problem
    client = ClientConfig(producers=["127.0.0.1:1/produce"], consumers=["[::2]:1/subscribe"], local=True)
    assert "not on loopback" in refused(client, "consumers[0]")


@pytest.mark.parametrize(("consumers", "warned"), [(1, 0), (30, 0), (31, 1), (32, 0), (62, 1)])
def test_a_number_of_consumers_among_which_topics_spread_badly(consumers: int, warned: int) -> None:
    subscribe = [f"node{number}:1/subscribe" for number in range(consumers)]
    for config in (
        producer(consumers=[f"wss://node{number}:1/producer" for number in range(consumers)]),
        ClientConfig(producers=["a:1/produce"], consumers=subscribe),
    ):
        sentences = config_warnings(config)
        assert len(sentences) == warned
        assert all(f"consumers: {consumers} is a multiple of 31" in sentence for sentence in sentences)
    assert config_warnings(consumer(listen=[f"127.0.0.1:{port}" for port in range(1, 32)])) == []


OTHER_HOSTS: list[tuple[dict[str, Any], str]] = [
    ({"listen": ["127.0.0.1:1", "0.0.0.0:2"]}, "listen[1]"),
    ({"listen": ["[::]:1"]}, "listen[0]"),
    # A name may stand for any address, now or later.
    ({"listen": ["node:1"]}, "listen[0]"),
    ({"consumers": ["127.0.0.1:1/producer", "192.0.2.1:1/producer"]}, "consumers[1]"),
    ({"monitoring": Monitoring(listen=["192.0.2.1:7"])}, "monitoring.listen[0]"),
    ({"monitoring": Monitoring(consumers=["192.0.2.1:7"])}, "monitoring.consumers[0]"),
    ({"monitoring": Monitoring(producers=["192.0.2.1:7"])}, "monitoring.producers[0]"),
]


@pytest.mark.parametrize(("changes", "key"), OTHER_HOSTS)
def test_a_node_without_tls_off_loopback_says_plain(changes: dict[str, Any], key: str) -> None:
    problem = refused(producer(**changes, plain=False), key)
    assert "without TLS nothing protects what is sent there: expected wss://" in problem
    assert problem.endswith(", or `plain = true` on a network that you trust")
    chosen = producer(**changes)
    check_addresses(chosen)
    (sentence,) = config_warnings(chosen)
    assert sentence.startswith("plain: ")
    assert "add others, without any key" in sentence


def test_nobody_else_says_plain() -> None:
    alone = producer(
        listen=["127.0.0.1:1", "unix:/node.sock", "localhost:1", "wss://0.0.0.0:2"],
        consumers=["[::1]:1/producer", "unix:/c.sock:/producer", "wss://node:1/producer"],
        monitoring=Monitoring(listen=["127.0.0.1:5", "unix:/pages.sock", "wss://192.0.2.1:6"]),
        tls=TLS,
        plain=False,
    )
    client = ClientConfig(producers=["192.0.2.1:1/produce"], consumers=["node:1/subscribe"])
    for config in (alone, msgspec.structs.replace(alone, plain=True), client):
        check_addresses(config)
        assert config_warnings(config) == []


def shared(*servers: str, **changes: Any) -> ConsumerConfig:
    """Return a consumer whose log is on some servers."""
    jetstream = JetStream(servers=list(servers))
    return consumer(retention=Retention(mode="jetstream", jetstream=jetstream), **changes)


def test_good_servers() -> None:
    check_servers(shared("tls://nats-1:4222", "tls://nats-2:4222", "tls://[2001:db8::7]:4222", plain=False))
    check_servers(shared("nats://127.0.0.1:4222", local=True, plain=False))
    check_servers(consumer())


@pytest.mark.parametrize(
    ("server", "changes", "problem"),
    [
        ("nats-1:4222", {}, "is not the address of a NATS server: expected nats://host:port"),
        ("nats://nats-1", {}, "is not the address of a NATS server: expected nats://host:port"),
        ("nats://nats-1:0", {}, "is not the address of a NATS server: expected nats://host:port"),
        ("nats://nats-1:4222/path", {}, "is not the address of a NATS server: expected nats://host:port"),
        ("nats://unix:/run/nats", {}, "is not the address of a NATS server: expected nats://host:port"),
        ("nats://wss://nats-1:4222", {}, "is not the address of a NATS server: expected nats://host:port"),
        ("wss://nats-1:4222", {}, "is not the address of a NATS server: expected nats://host:port"),
        ("nats://b:4222", {}, "is listed twice"),
        ("tls://b:4222", {}, "is listed twice"),
        ("nats://nats-1:4222", {"plain": False}, "leads to another host"),
        ("tls://nats-1:4222", {"local": True}, "is not on loopback"),
    ],
)
def test_a_server_that_cannot_be_used(server: str, changes: dict[str, Any], problem: str) -> None:
    first = "tls://b:4222" if not changes else "nats://127.0.0.1:4222"
    with pytest.raises(ConfigError) as caught:
        check_servers(shared(first, server, **changes))
    assert caught.value.key == "retention.jetstream.servers[1]"
    assert caught.value.problem.startswith(f"{server!r} {problem}")


def by_topic(*patterns: str, mode: RetentionMode = "memory", age: float = 7200.0) -> ConsumerConfig:
    """Return a consumer with other limits for some topics."""
    tables = tuple(TopicRetention(match=pattern, max_age_seconds=age) for pattern in patterns)
    jetstream = JetStream(servers=["tls://nats-1:4222"]) if mode == "jetstream" else None
    return consumer(
        retention=Retention(mode=mode, jetstream=jetstream, max_age_seconds=3600.0, topics=tables)
    )


def test_good_limits_by_topic() -> None:
    check_topics(by_topic())
    check_topics(by_topic("news", "state/*", "*"))
    check_topics(by_topic("news", mode="jetstream", age=3600.0))
    check_topics(by_topic("news", mode="jetstream", age=0.5))


@pytest.mark.parametrize("pattern", ["a*b", "**", "*a"])
def test_a_pattern_with_a_star_before_its_end(pattern: str) -> None:
    with pytest.raises(
        ConfigError, match="has a \\* before its end: expected a topic, or its beginning"
    ) as caught:
        check_topics(by_topic("news", pattern))
    assert caught.value.key == "retention.topics[1].match"


def test_servers_cannot_keep_messages_of_some_topics_longer() -> None:
    with pytest.raises(ConfigError, match="drop all messages after 3600 seconds: expected at most") as caught:
        check_topics(by_topic("news", mode="jetstream"))
    assert caught.value.key == "retention.topics[0].max_age_seconds"


@pytest.mark.parametrize(
    ("patterns", "index"),
    [
        (("state/*", "state/a"), 1),
        (("a", "state/*", "state/a/*"), 2),
        (("a", "a"), 1),
        (("*", "a*"), 1),
        (("state/a", "state/*", "state", "*"), None),
        (("a", "a*"), None),
    ],
)
def test_a_table_that_never_holds(patterns: tuple[str, ...], index: int | None) -> None:
    found = config_warnings(by_topic(*patterns))
    assert len(found) == (index is not None)
    if index is not None:
        assert found[0].startswith(f"retention.topics[{index}]: {patterns[index]!r} never holds, because ")
