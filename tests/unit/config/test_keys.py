"""Where the pre-shared key comes from, and which keys are refused."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from wsqueue.config.keys import DEFAULT_PSK, MAX_KEYS, MAX_PSK_BYTES, load_keys, load_psk
from wsqueue.config.load import load_any_config
from wsqueue.config.model import ClientConfig, Config, ConsumerConfig, NamedClient
from wsqueue.errors import ConfigError
from wsqueue.protocol.keys import PreSharedKey

from ...support.config_files import CONSUMER, ConfigFile
from ...support.keys import psk_of

SECRET = "a rather good secret"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "psk"
    path.write_text(SECRET + "\n")
    path.chmod(0o640)
    return path


def refusal(config: Config) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_psk(config)
    error = caught.value
    assert SECRET not in f"{error} {error!r} {vars(error)}"
    assert error.__cause__ is None
    return error


def test_a_file_beside_the_configuration(file: ConfigFile, key_file: Path) -> None:
    config = file.load(CONSUMER + 'local = true\npsk_file = "psk"\n')
    assert load_psk(config) == PreSharedKey(SECRET)


def test_a_relative_file_is_relative_to_the_configuration_and_not_to_the_process(
    file: ConfigFile, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.load(CONSUMER + 'local = true\npsk_file = "../secrets/psk"\n')
    secrets = tmp_path.parent / "secrets"
    secrets.mkdir(exist_ok=True)
    key_file.rename(secrets / "psk")
    monkeypatch.chdir(tmp_path.parent)
    assert load_psk(load_any_config(file.path.relative_to(tmp_path.parent))) == PreSharedKey(SECRET)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("key", "key"),
        ("key\n", "key"),
        ("key\r\n", "key"),
        (" key ", " key "),
        ("ñandú \N{GRINNING FACE}\n", "ñandú \N{GRINNING FACE}"),
        ("k\0y", "k\0y"),
        ("x" * MAX_PSK_BYTES, "x" * MAX_PSK_BYTES),
    ],
)
def test_a_final_newline_does_not_count(key_file: Path, content: str, key: str) -> None:
    key_file.write_bytes(content.encode())
    assert load_psk(Config(psk_file=str(key_file))) == PreSharedKey(key)


def test_the_sources_in_their_order(
    key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "psk").write_text("from systemd")
    (credentials / "psk").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    monkeypatch.setenv("WSQUEUE_PSK", "out of the variable")
    assert load_psk(Config(psk_file=str(key_file))) == PreSharedKey(SECRET)
    assert load_psk(Config()) == PreSharedKey("from systemd")
    assert caplog.records == []
    (credentials / "psk").unlink()
    with caplog.at_level(logging.WARNING, "wsqueue"):
        assert load_psk(Config()) == PreSharedKey("out of the variable")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "environment" in caplog.text
    assert "out of the variable" not in str(vars(caplog.records[0]))
    monkeypatch.delenv("WSQUEUE_PSK")
    assert "no pre-shared key: expected psk_file" in str(refusal(Config()))


@pytest.mark.parametrize("directory", ["", "missing", "x" * 5000])
def test_without_a_credential_the_environment_counts(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", directory)
    monkeypatch.setenv("WSQUEUE_PSK", SECRET)
    assert load_psk(Config()) == PreSharedKey(SECRET)


def test_a_psk_file_that_is_missing_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSQUEUE_PSK", SECRET)
    error = refusal(Config(psk_file=str(tmp_path / "missing")))
    assert error.file == str(tmp_path / "missing")
    assert "No such file" in error.problem
    assert "Is a directory" in refusal(Config(psk_file=str(tmp_path))).problem


@pytest.mark.parametrize("mode", [0o400, 0o640, 0o604, 0o777])
def test_a_file_is_not_for_all_users(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    config = Config(psk_file=str(key_file))
    if mode & 0o7:
        error = refusal(config)
        assert error.file == str(key_file)
        assert f"expected `chmod o= {key_file}`" in error.problem
    else:
        assert load_psk(config) == PreSharedKey(SECRET)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        *((content, "the pre-shared key is empty") for content in (b"", b"\r\n")),
        (SECRET.encode() + b"\xff", "UTF-8"),
        (SECRET.encode() * 1000, f"more than {MAX_PSK_BYTES} bytes"),
    ],
)
def test_no_key(key_file: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, problem: str) -> None:
    key_file.write_bytes(content)
    error = refusal(Config(psk_file=str(key_file)))
    assert error.file == str(key_file)
    assert problem in error.problem
    monkeypatch.setenv("WSQUEUE_PSK", os.fsdecode(content.rstrip()))
    if len(content) < MAX_PSK_BYTES:
        error = refusal(Config())
        assert error.file == "WSQUEUE_PSK"
        assert problem in error.problem


@pytest.mark.parametrize("source", ["file", "credential", "environment"])
def test_the_default_of_the_original_nodes(
    key_file: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    key_file.write_text(DEFAULT_PSK + "\n")
    if source == "credential":
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key_file.parent))
    elif source == "environment":
        monkeypatch.setenv("WSQUEUE_PSK", DEFAULT_PSK)
    psk_file = str(key_file) if source == "file" else None
    error = refusal(Config(psk_file=psk_file))
    assert error.file == ("WSQUEUE_PSK" if source == "environment" else str(key_file))
    assert "which is public" in error.problem
    assert DEFAULT_PSK not in str(error)
    assert load_psk(Config(psk_file=psk_file, local=True)) == PreSharedKey(DEFAULT_PSK)


def test_a_name_that_no_file_can_have(file: ConfigFile) -> None:
    config = file.load(CONSUMER + 'psk_file = "a\\u0000b"\n')
    assert "a\0b" in refusal(config).file


@pytest.mark.parametrize("count", [MAX_KEYS, MAX_KEYS + 1])
def test_several_keys(key_file: Path, count: int) -> None:
    secrets = [f"secret {number}" for number in range(count)]
    key_file.write_text("\n".join(secrets))
    config = Config(psk_file=str(key_file))
    if count <= MAX_KEYS:
        assert load_psk(config) == PreSharedKey(*secrets)
    else:
        assert f"expected at most {MAX_KEYS}" in refusal(config).problem


def test_keys_of_the_nodes(key_file: Path, tmp_path: Path) -> None:
    config = ConsumerConfig(listen=[], local=True, psk_file=str(key_file))
    keys = load_keys(config)
    assert keys.nodes is keys.psk
    nodes = tmp_path / "node_psk"
    nodes.touch(0o600)
    nodes.write_text("another secret")
    config = ConsumerConfig(listen=[], local=True, psk_file=str(key_file), node_psk_file=str(nodes))
    assert load_keys(config).nodes == PreSharedKey("another secret")
    nodes.write_text(f"another secret\n{SECRET}")
    with pytest.raises(ConfigError, match="a key of the nodes is a key of the clients too") as caught:
        load_keys(config)
    assert caught.value.file == str(nodes)


@pytest.mark.parametrize("where", ["psk_file", "node_psk_file", "client"])
def test_a_node_takes_no_key_that_is_easy_to_guess(key_file: Path, tmp_path: Path, where: str) -> None:
    key_file.write_text(psk_of("clients"))
    weak = tmp_path / "weak"
    weak.touch(0o600)
    weak.write_text(f"{psk_of('others')}\n{SECRET}\n")
    files: dict[str, Any] = {"psk_file": str(key_file)}
    if where == "client":
        files["clients"] = [NamedClient(name="one", key_file=str(weak))]
    else:
        files[where] = str(weak)
    with pytest.raises(ConfigError, match="easy to guess: expected 128 bits at least") as caught:
        load_keys(ConsumerConfig(listen=[], **files))
    assert caught.value.file == str(weak)
    assert SECRET not in str(caught.value)
    load_keys(ConsumerConfig(listen=[], local=True, **files))
    # A client must take the key that its nodes have.
    assert load_psk(ClientConfig(psk_file=str(weak), producers=[], consumers=[]))
