"""Checks of a configuration as a whole: errors in its addresses, and warnings about unwise settings."""

from __future__ import annotations

import operator

import msgspec

from ..errors import ConfigError
from ..protocol.routing import unbalanced
from .addresses import Address, expected_form, parse_address
from .model import ClientConfig, Config, NodeConfig, ProducerConfig


def check_addresses(config: Config) -> None:
    """Check the lists of addresses of a configuration.

    Raises:
        ConfigError: A list is empty, or an address in it is malformed, listed twice, or not on loopback
            where `local = true`; the error names the key.
    """
    listening: set[Address] = set()
    own = config.listen if isinstance(config, NodeConfig) else []
    for key, endpoint in _address_lists(config):
        entries: list[str] = operator.attrgetter(key)(config)
        if not entries and not key.startswith("monitoring."):
            raise ConfigError(f"the list is empty: {expected_form(endpoint)}", key=key)
        # An address is in one list of listeners only; lists of other nodes are independent of each other.
        connects = not key.endswith("listen")
        seen = set() if connects else listening
        for index, entry in enumerate(entries):
            problem = _address_problem(entry, endpoint, seen, local=config.local, connects=connects)
            if not problem and key == "monitoring.listen" and entry in own:
                problem = "is in listen too: expected an address of its own"
            if not problem and not connects and config.tls.certificate is None and "wss:" in entry:
                problem = "needs a certificate: expected the table [tls] with certificate and key"
            if problem:
                raise ConfigError(f"{entry!r} {problem}", key=f"{key}[{index}]")


def config_warnings(config: Config) -> list[str]:
    """Return a sentence about each setting that is allowed and unwise."""
    found = []
    if isinstance(config, ProducerConfig | ClientConfig) and unbalanced(len(config.consumers)):
        found.append(
            f"consumers: {len(config.consumers)} is a multiple of 31, by which the topic hash"
            " multiplies, so similar topics would share few consumers; use one more or one less"
        )
    if isinstance(config, NodeConfig):
        found += [
            f"listen: {address} can be reached from other hosts, and traffic to it can be read on its way;"
            " wss:// would protect it"
            for address in config.listeners + config.page_listeners
            if not address.tls and not address.loopback
        ]
    return found


def _address_lists(config: Config) -> list[tuple[str, str]]:
    """Return the keys of all lists of addresses, with the endpoint that the addresses end with."""
    if isinstance(config, ClientConfig):
        return [("producers", "/produce"), ("consumers", "/subscribe")]
    lists = [("listen", "")]
    if isinstance(config, ProducerConfig):
        lists.append(("consumers", "/producer"))
    return lists + [(f"monitoring.{key}", "") for key in ("listen", "consumers", "producers")]


def _address_problem(entry: str, endpoint: str, seen: set[Address], *, local: bool, connects: bool) -> str:
    try:
        address = parse_address(entry, endpoint)
    except ValueError as error:
        return f"is not an address: {error}"
    place = msgspec.structs.replace(address, tls=False)
    if place in seen:
        return "is listed twice: expected each address once"
    if connects and not address.socket and not address.port:
        return "has no port to connect to: expected 1 to 65535"
    if local and not address.loopback:
        return "is not on loopback, where `local = true` keeps a cluster: expected e.g. 127.0.0.1"
    # Port 0 lets the system choose, so that two such addresses are two listeners.
    if address.socket or address.port:
        seen.add(place)
    return ""
