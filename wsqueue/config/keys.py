"""Pre-shared keys: from a file, a systemd credential or, for development, an environment variable.

A file holds one key per line: the first is used, all are accepted. Nodes may have keys of their own, and so
may clients, whose keys have names.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..journal import log
from ..protocol.access import KeyRing, NamedKey
from ..protocol.keys import PreSharedKey
from .files import read_secret
from .key_strength import MIN_KEY_BITS, is_weak
from .model import ClientConfig, Config, NamedClient, NodeConfig
from .tokens import Token

logger = logging.getLogger(__name__)

NO_KEY = (
    "no pre-shared key: expected psk_file in the configuration, the systemd credential `psk` or,"
    " for development only, WSQUEUE_PSK in the environment"
)

DEFAULT_PSK = "pre-shared-key"
"""The original nodes' default, which is public: refused unless `local = true`."""

MAX_PSK_BYTES = 4096
"""Maximum size of a key file: far above any key; a larger file is something else."""

MAX_KEYS = 8
"""Maximum number of keys in a file: a rotation needs two, and each costs a hash for every hello."""


class Keys:
    """Hold the keys of a node.

    Args:
        psk: The key of clients that has no name, if there is one.
        nodes: The key of nodes: the same, unless configured.
        named: The keys of clients that have names.

    Attributes:
        psk: See above.
        nodes: See above.
        for_clients: The keys that clients may have.
        for_nodes: The key that nodes must have.
        for_all: The keys of both.
    """

    def __init__(self, psk: PreSharedKey | None, nodes: PreSharedKey, named: Sequence[NamedKey] = ()) -> None:
        self.psk, self.nodes = psk, nodes
        self.for_clients = KeyRing(psk, named)
        self.for_nodes = KeyRing(nodes, tokens=False)
        both = nodes if psk is None or psk is nodes else psk.joined(nodes)
        self.for_all = KeyRing(both, named)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and (self.for_all, self.for_clients, self.for_nodes) == (
            other.for_all,
            other.for_clients,
            other.for_nodes,
        )

    __hash__ = None  # type: ignore[assignment]


def load_keys(config: NodeConfig) -> Keys:
    """Return the pre-shared keys that the configuration of a node points to.

    Raises:
        ConfigError: As for `load_psk`, or two files hold the same key.
    """
    psk = _find_psk(config)
    file = _credential(config.node_psk_file, "node_psk")
    if psk is None and not (config.clients and file is not None):
        raise ConfigError(NO_KEY)
    nodes = psk if file is None else _read_keys(file, config)
    assert nodes is not None
    if psk is not None and psk is not nodes and nodes.shares(psk):
        raise ConfigError(
            "a key of the nodes is a key of the clients too; expected another one, or no node_psk_file",
            file=str(file),
        )
    named: list[NamedKey] = []
    for client in config.clients:
        key = _read_named(client, config)
        for other in (psk, nodes, *(before.psk for before in named)):
            if other is not None and other.shares(key):
                where = client.key_file or f"the credential clients.{client.name}"
                raise ConfigError(f"the key of the client {client.name} is another key too", file=where)
        named.append(NamedKey(key, client.rights, client.not_before))
    return Keys(psk, nodes, named)


def load_psk(config: Config) -> PreSharedKey:
    """Return the pre-shared key or the token of clients that a configuration points to.

    Raises:
        ConfigError: There is no key, it is empty, all users may read it, there are too many keys, or it is
            the public default and the cluster is not local; or the file of a token has none.
    """
    name = ""
    if isinstance(config, ClientConfig):
        if config.token_file is not None:
            return _read_token(Path(config.token_file))
        name = config.name or ""
    psk = _find_psk(config, name)
    if psk is None:
        raise ConfigError(NO_KEY)
    return psk


def _find_psk(config: Config, name: str = "") -> PreSharedKey | None:
    file = _credential(config.psk_file, "psk")
    if file is not None:
        return _read_keys(file, config, name)
    if (secret := os.environ.get("WSQUEUE_PSK")) is not None:
        log(logger, logging.WARNING, "PSK taken from the environment", advice="use psk_file")
        return _parse_psk(secret, "WSQUEUE_PSK", config, name)
    return None


def _read_keys(file: Path, config: Config, name: str = "") -> PreSharedKey:
    return _parse_psk(read_secret(file, MAX_PSK_BYTES), str(file), config, name)


def _read_named(client: NamedClient, config: NodeConfig) -> PreSharedKey:
    file = _credential(client.key_file, f"clients.{client.name}")
    if file is None:
        expected = f"expected key_file or the systemd credential `clients.{client.name}`"
        raise ConfigError(f"the client {client.name} has no key: {expected}")
    return _read_keys(file, config, client.name)


def _read_token(file: Path) -> Token:
    try:
        return Token(read_secret(file, MAX_PSK_BYTES * 2))
    except ValueError as error:
        raise ConfigError(str(error), file=str(file)) from None


def _parse_psk(text: str, source: str, config: Config, name: str) -> PreSharedKey:
    secrets = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if len(secrets) > MAX_KEYS:
        raise ConfigError(f"{len(secrets)} keys, one per line; expected at most {MAX_KEYS}", file=source)
    if "" in secrets:
        raise ConfigError("the pre-shared key is empty", file=source)
    if DEFAULT_PSK in secrets and not config.local:
        raise ConfigError(
            "the pre-shared key is the original nodes' default, which is public;"
            " expected a secret, as from `wsqueue keygen`",
            file=source,
        )
    if isinstance(config, NodeConfig) and not config.local and any(map(is_weak, secrets)):
        raise ConfigError(
            f"the key is easy to guess: expected {MIN_KEY_BITS} bits at least, as from `wsqueue keygen`",
            file=source,
        )
    try:
        return PreSharedKey(*secrets, name=name)
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
