"""Short configuration files, and errors of `load_config` about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsqueue.config.load import load_any_config, load_config
from wsqueue.config.model import Config
from wsqueue.errors import ConfigError

from .keys import psk_of

CONSUMER = 'role = "consumer"\nlisten = ["127.0.0.1:10001"]\n'
PRODUCER = 'role = "producer"\nlisten = ["127.0.0.1:10002"]\nconsumers = ["127.0.0.1:10001/producer"]\n'
DEMO = 'role = "demo"\nproducers = ["127.0.0.1:10002/produce"]\nconsumers = ["127.0.0.1:10001/subscribe"]\n'


SECRET = psk_of("everybody")


def config_with_key(directory: Path, text: str, secret: str | None = SECRET, name: str = "node.toml") -> Path:
    """Write a configuration file, and its key unless that is None."""
    file = directory / name
    if secret is not None:
        psk = directory / "psk"
        psk.touch(mode=0o600)
        psk.write_text(secret)
        text = f'psk_file = "psk"\n{text}'
    file.write_text(text)
    return file


class ConfigFile:
    """Write one configuration file again and again.

    Args:
        directory: Where the file is.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "node.toml"

    def load(self, content: str | bytes) -> Config:
        """Write the file and load it."""
        self.path.write_bytes(content.encode() if isinstance(content, str) else content)
        return load_any_config(self.path)

    def refusal(self, content: str | bytes) -> ConfigError:
        """Write the file and return why it can't be loaded."""
        self.path.write_bytes(content.encode() if isinstance(content, str) else content)
        return refusal(self.path)


def refusal(file: Path, kind: type[Config] | None = None) -> ConfigError:
    """Return why a file can't be loaded: an error that names the file, in one line."""
    with pytest.raises(ConfigError) as caught:
        load_any_config(file) if kind is None else load_config(file, kind)
    assert caught.value.file == str(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    return caught.value
