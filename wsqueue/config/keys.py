"""Pre-shared keys: from a file, a systemd credential or, for development, an environment variable.

A file holds one key per line: the first is used, all are accepted. Nodes may have keys of their own.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from ..errors import ConfigError
from ..journal import log
from ..protocol.keys import PreSharedKey
from .files import read_secret
from .model import Config, NodeConfig

logger = logging.getLogger(__name__)

DEFAULT_PSK = "pre-shared-key"
"""The original nodes' default, which is public: refused unless `local = true`."""

MAX_PSK_BYTES = 4096
"""Maximum size of a key file: far above any key; a larger file is something else."""

MAX_KEYS = 8
"""Maximum number of keys in a file: a rotation needs two, and each costs a hash for every hello."""


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
        ConfigError: There is no key, it is empty, all users may read it, there are too many keys, or it is
            the public default and the cluster is not local.
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
        raise ConfigError(f"{len(secrets)} keys, one per line; expected at most {MAX_KEYS}", file=source)
    if "" in secrets:
        raise ConfigError("the pre-shared key is empty", file=source)
    if DEFAULT_PSK in secrets and not local:
        raise ConfigError(
            "the pre-shared key is the original nodes' default, which is public;"
            " expected a secret, as from `openssl rand -base64 32`",
            file=source,
        )
    try:
        return PreSharedKey(*secrets)
    except ValueError as error:
        raise ConfigError(str(error), file=source) from None


def _credential(file: str | None, name: str) -> Path | None:
    """Return the configured file, or the systemd credential of that name, or None."""
    if file is not None:
        return Path(file)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and os.path.exists(credential := Path(directory, name)):  # noqa: PTH110 - Path.exists() may raise
        return credential
    return None
