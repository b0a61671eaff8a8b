"""Pre-shared keys: from a file, a systemd credential or the default."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import msgspec

from ..errors import ConfigError
from ..journal import log
from ..protocol.keys import PreSharedKey
from .load import _read
from .model import Config, NodeConfig

logger = logging.getLogger(__name__)

DEFAULT_PSK = "pre-shared-key"
"""The original nodes' default, which everybody knows: refused unless `local = true`."""

MAX_PSK_BYTES = 4096
"""Far above any key; more is some other file."""

MAX_KEYS = 8
"""Pre-shared keys that one file may hold: a rotation needs two, and each costs a hash for every hello."""


class Keys(msgspec.Struct, frozen=True):
    """Hold the keys of a node: for clients, and for other nodes (the same, unless configured)."""

    clients: PreSharedKey
    nodes: PreSharedKey


def load_keys(config: Config) -> Keys:
    """Return the pre-shared keys that a configuration points to.

    Raises:
        ConfigError: As for `load_psk`, or both files hold the same key.
    """
    clients = load_psk(config)
    if not isinstance(config, NodeConfig):
        return Keys(clients, clients)
    file = _credential(config.node_psk_file, "node_psk")
    if file is None:
        return Keys(clients, clients)
    nodes = _parse_psk(read_secret(file, MAX_PSK_BYTES), str(file), local=config.local)
    if nodes.shares(clients):
        raise ConfigError(
            "a key of the nodes is a key of the clients too; expected another one, or no node_psk_file",
            file=str(file),
        )
    return Keys(clients, nodes)


def load_psk(config: Config) -> PreSharedKey:
    """Return the pre-shared key of clients that a configuration points to.

    Raises:
        ConfigError: There is no key, it is empty, everybody may read it, there are too many, or it is
            the well-known default and the cluster is not local.
    """
    file = _credential(config.psk_file, "psk")
    if file is not None:
        return _parse_psk(read_secret(file, MAX_PSK_BYTES), str(file), local=config.local)
    if (secret := os.environ.get("WSQUEUE_PSK")) is not None:
        log(logger, logging.WARNING, "PSK taken from the environment", advice="use psk_file")
        return _parse_psk(secret, "WSQUEUE_PSK", local=config.local)
    raise ConfigError(
        "no pre-shared key: expected psk_file in the configuration, the systemd credential `psk` or,"
        " for development only, WSQUEUE_PSK in the environment"
    )


def _parse_psk(text: str, source: str, *, local: bool) -> PreSharedKey:
    secrets = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if len(secrets) > MAX_KEYS:
        raise ConfigError(f"{len(secrets)} keys, one a line; expected at most {MAX_KEYS}", file=source)
    if "" in secrets:
        raise ConfigError("the pre-shared key is empty", file=source)
    if DEFAULT_PSK in secrets and not local:
        raise ConfigError(
            "the pre-shared key is the original nodes' default, which everybody knows;"
            " expected a secret, as from `openssl rand -base64 32`",
            file=source,
        )
    try:
        return PreSharedKey(*secrets)
    except ValueError as error:
        raise ConfigError(str(error), file=source) from None


def _credential(file: str | None, name: str) -> Path | None:
    """Return a file that is configured, or else the systemd credential of that name if there is one."""
    if file is not None:
        return Path(file)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and os.path.exists(credential := Path(directory, name)):  # noqa: PTH110 - Path.exists() may raise
        return credential
    return None


def read_secret(path: Path, limit: int) -> str:
    """Return the text of a file that not everybody may read.

    Raises:
        ConfigError: It cannot be read, is too large, is not UTF-8, or everybody may read it.
    """
    secret = _read(path, limit)
    if path.stat().st_mode & stat.S_IROTH:
        raise ConfigError(f"everybody may read the key; expected `chmod o= {path}`", file=str(path))
    return secret
