"""Clients with names in a configuration, and the files of their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.toml import write_toml
from wsqueue.config.keys import load_keys, load_psk
from wsqueue.config.load import load_any_config, load_config
from wsqueue.config.model import MAX_CLIENTS, ClientConfig, ConsumerConfig
from wsqueue.config.tokens import Token
from wsqueue.errors import ConfigError
from wsqueue.protocol.access import Identity, Rights
from wsqueue.protocol.keys import PreSharedKey

NODE = {"role": "consumer", "listen": ["127.0.0.1:1"], "local": True}
CLIENT = {"role": "demo", "producers": ["127.0.0.1:1/produce"], "consumers": ["127.0.0.1:2/subscribe"]}


def secret(directory: Path, name: str, text: str) -> str:
    file = directory / name
    file.write_text(text)
    file.chmod(0o600)
    return name


def node(directory: Path, *clients: dict[str, Any], **settings: Any) -> ConsumerConfig:
    file = directory / "node.toml"
    write_toml(file, NODE | settings | {"clients": list(clients)})
    return load_config(file, ConsumerConfig)


def problem(directory: Path, *clients: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_keys(node(directory, *clients, **settings))
    return str(caught.value)


def test_each_name_has_its_key_and_rights(tmp_path: Path) -> None:
    psk, one = secret(tmp_path, "psk", "everybody's"), secret(tmp_path, "one", "a key\nthe next key\n")
    config = node(
        tmp_path, {"name": "one", "key_file": one, "publish": ["a/*"], "subscribe": ["b"]}, psk_file=psk
    )
    keys = load_keys(config)
    found = keys.for_clients.find("one", b"", 0.0)
    assert found.psk == PreSharedKey("a key", "the next key", name="one")
    assert found.identity == Identity("one", rights=(Rights(("a/*",), ("b",)),))
    assert keys.for_clients.find("", b"", 0.0).psk == keys.nodes == PreSharedKey("everybody's")
    assert not keys.for_nodes.find("one", b"", 0.0).psk.shares(found.psk)


def test_without_a_key_for_everybody(tmp_path: Path) -> None:
    one, nodes = secret(tmp_path, "one", "a key"), secret(tmp_path, "nodes", "the nodes' key")
    keys = load_keys(node(tmp_path, {"name": "one", "key_file": one}, node_psk_file=nodes))
    assert keys.psk is None
    assert keys.nodes == PreSharedKey("the nodes' key")
    assert not keys.for_clients.find("", b"", 0.0).psk.shares(keys.nodes)
    assert keys.for_all.find("", b"", 0.0).psk.shares(keys.nodes)
    assert "no pre-shared key" in problem(tmp_path, {"name": "one", "key_file": one})


def test_a_key_may_be_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    secret(tmp_path, "psk", "everybody's")
    said = problem(tmp_path, {"name": "one"})
    assert "the client one has no key: expected key_file or the systemd credential `clients.one`" in said
    secret(tmp_path, "clients.one", "a key")
    assert load_keys(node(tmp_path, {"name": "one"})).for_clients.find("one", b"", 0.0).psk.name == "one"


@pytest.mark.parametrize("other", ["everybody's", "the nodes' key", "the key of two"])
def test_no_two_keys_are_the_same(tmp_path: Path, other: str) -> None:
    files = {"psk_file": secret(tmp_path, "psk", "everybody's")}
    files["node_psk_file"] = secret(tmp_path, "nodes", "the nodes' key")
    two = {"name": "two", "key_file": secret(tmp_path, "two", "the key of two")}
    one = {"name": "one", "key_file": secret(tmp_path, "one", f"a key\n{other}")}
    said = problem(tmp_path, two, one, **files)
    assert "the key of the client one is another key too" in said
    assert other not in said


@pytest.mark.parametrize(
    ("client", "key", "expected"),
    [
        ({}, "clients[0].name", "required and missing"),
        ({"name": ""}, "clients[0].name", "expected"),
        ({"name": "a/b"}, "clients[0].name", "expected"),
        ({"name": "x" * 33}, "clients[0].name", "expected"),
        ({"name": "a", "publish": "orders"}, "clients[0].publish", "expected"),
        ({"name": "a", "publish": [""]}, "clients[0].publish[0]", "expected"),
        ({"name": "a", "subscribe": ["b", "a*b"]}, "clients[0].subscribe[1]", "has a * before its end"),
        ({"name": "a", "max_topics": 0}, "clients[0].max_topics", "expected"),
        ({"name": "a", "max_topic": 1}, "clients[0].max_topic", "did you mean max_topics?"),
    ],
)
def test_wrong_values(tmp_path: Path, client: dict[str, Any], key: str, expected: str) -> None:
    said = problem(tmp_path, client, psk_file="psk")
    assert f": {key}: " in said
    assert expected in said.lower()


def test_a_name_twice(tmp_path: Path) -> None:
    said = problem(tmp_path, {"name": "a"}, {"name": "A"}, psk_file="psk")
    assert "clients[1].name: 'A' is there twice" in said


def test_too_many_names(tmp_path: Path) -> None:
    clients = [{"name": f"c{number}"} for number in range(MAX_CLIENTS + 1)]
    assert f"length <= {MAX_CLIENTS}" in problem(tmp_path, *clients, psk_file="psk")


def test_the_line_of_a_wrong_value(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        'role = "consumer"\nlisten = ["127.0.0.1:1"]\n\n[[clients]]\nname = "one"\n\n'
        '[[clients]]\nname = "two"\npublish = [1]\n[limits]\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_any_config(file)
    assert (caught.value.line, caught.value.key) == (9, "clients[1].publish[0]")


class TestClients:
    """The other side: who a client says that it is."""

    def load(self, directory: Path, **settings: Any) -> PreSharedKey:
        file = directory / "demo.toml"
        write_toml(file, CLIENT | settings)
        return load_psk(load_config(file, ClientConfig))

    def test_a_key_with_a_name(self, tmp_path: Path) -> None:
        psk = self.load(tmp_path, psk_file=secret(tmp_path, "key", "a key"), name="one")
        assert psk == PreSharedKey("a key", name="one")

    def test_a_token(self, tmp_path: Path) -> None:
        token = Token.make("a key", name="one", who="alice")
        assert self.load(tmp_path, token_file=secret(tmp_path, "token", f"{token.text}\n")) == token

    def test_a_file_without_a_token(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="the text is no token") as caught:
            self.load(tmp_path, token_file=secret(tmp_path, "token", "a key"))
        assert "a key" not in str(caught.value)

    @pytest.mark.parametrize("other", ["psk_file", "name"])
    def test_a_token_stands_alone(self, tmp_path: Path, other: str) -> None:
        with pytest.raises(ConfigError, match="token_file: a token stands for a key and its name"):
            self.load(tmp_path, **{"token_file": "token", other: "x"})

    def test_a_token_that_all_users_may_read(self, tmp_path: Path) -> None:
        name = secret(tmp_path, "token", Token.make("a key").text)
        (tmp_path / name).chmod(0o644)
        with pytest.raises(ConfigError, match="all users may read the key"):
            self.load(tmp_path, token_file=name)
