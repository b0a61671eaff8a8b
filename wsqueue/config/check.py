"""Checks of a configuration as a whole: errors in its addresses, and warnings about unwise settings."""

from __future__ import annotations

import ipaddress
import operator
import re

import msgspec

from ..errors import ConfigError
from ..protocol.access import is_pattern, matches
from ..protocol.routing import unbalanced
from .addresses import Address, expected_form, is_ip, parse_address, parse_server
from .http_proxy import parse_proxy
from .model import ClientConfig, Config, ConsumerConfig, NodeConfig, ProducerConfig

_NAME = re.compile(r"[0-9A-Za-z._-]+")
_ORIGIN = re.compile(r"https?://([0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?|null")


def check_addresses(config: Config) -> None:
    """Check the lists of addresses of a configuration.

    Raises:
        ConfigError: A list is empty, or an address in it is malformed, listed twice, not on loopback
            where `local = true`, or without TLS where that needs `plain = true`; the error names the key.
    """
    listening: set[Address] = set()
    own = config.listen if isinstance(config, NodeConfig) else []
    # A client has no say in this: it reaches no node without TLS whose own file does not say so.
    protected = isinstance(config, NodeConfig) and not config.plain
    for key, endpoint in _address_lists(config):
        entries: list[str] = operator.attrgetter(key)(config)
        if not entries and not key.startswith(("monitoring.", "proxy.")):
            raise ConfigError(f"the list is empty: {expected_form(endpoint)}", key=key)
        # An address is in one list of listeners only; lists of other nodes are independent of each other.
        connects = not key.endswith("listen")
        seen = set() if connects else listening
        for index, entry in enumerate(entries):
            problem = _address_problem(
                entry, endpoint, seen, local=config.local, protected=protected, connects=connects
            )
            if not problem and key in ("monitoring.listen", "proxy.listen") and entry in own:
                problem = "is in listen too: expected an address of its own"
            if not problem and not connects and config.tls.certificate is None and "wss:" in entry:
                problem = "needs a certificate: expected the table [tls] with certificate and key"
            if problem:
                raise ConfigError(f"{entry!r} {problem}", key=f"{key}[{index}]")


def check_http_proxy(config: ClientConfig) -> None:
    """Check the HTTP proxy of a client.

    Raises:
        ConfigError: Its URL cannot be used.
    """
    if config.http_proxy is not None and config.http_proxy != "none":
        try:
            parse_proxy(config.http_proxy)
        except ValueError as error:
            raise ConfigError(f"{error}, or 'none'", key="http_proxy") from None


def check_sites(config: NodeConfig) -> None:
    """Check the names and origins that browsers may use.

    Raises:
        ConfigError: One has not the form that a browser sends; the error names the key.
    """
    for index, host in enumerate(config.hosts):
        if not _NAME.fullmatch(host) and not is_ip(host):
            expected = "expected a name or an IP address, without port and brackets"
            raise ConfigError(f"{host!r} is not a host: {expected}", key=f"hosts[{index}]")
    for index, origin in enumerate(config.origins):
        if not _ORIGIN.fullmatch(origin):
            expected = "expected https://host, with :port where a browser shows one, or null"
            raise ConfigError(f"{origin!r} is not an origin: {expected}", key=f"origins[{index}]")


def check_clients(config: NodeConfig) -> None:
    """Check the clients that have keys of their own.

    Raises:
        ConfigError: Two have one name, or a pattern has a `*` that is not at its end; the error names the
            key.
    """
    names: set[str] = set()
    for index, client in enumerate(config.clients):
        # Names of credentials and files may not differ in their case only, on some systems.
        if client.name.lower() in names:
            problem = f"{client.name!r} is there twice: expected each name once, in whatever case"
            raise ConfigError(problem, key=f"clients[{index}].name")
        names.add(client.name.lower())
        for key in ("publish", "subscribe", "groups"):
            for number, pattern in enumerate(getattr(client, key)):
                if not is_pattern(pattern):
                    noun = "group" if key == "groups" else "topic"
                    problem = (
                        f"{pattern!r} has a * before its end: expected a {noun}, or its beginning and one *"
                    )
                    raise ConfigError(problem, key=f"clients[{index}].{key}[{number}]")


def check_proxy(config: NodeConfig) -> None:
    """Check the proxies that are believed.

    Raises:
        ConfigError: One is neither an IP address nor a network; the error names the key.
    """
    for index, trusted in enumerate(config.proxy.trusted):
        try:
            ipaddress.ip_network(trusted)
        except ValueError:
            problem = (
                f"{trusted!r} is neither an IP address nor a network: expected e.g. 192.0.2.7 or 192.0.2.0/24"
            )
            raise ConfigError(problem, key=f"proxy.trusted[{index}]") from None


def check_identity(config: ClientConfig) -> None:
    """Check who a client says that it is.

    Raises:
        ConfigError: It has a token besides a key or a name.
    """
    if config.token_file is not None and (config.psk_file is not None or config.name is not None):
        problem = "a token stands for a key and its name: expected token_file alone, or psk_file and name"
        raise ConfigError(problem, key="token_file")


def check_servers(config: ConsumerConfig) -> None:
    """Check the addresses of the servers that keep the log.

    Raises:
        ConfigError: One is malformed, listed twice, not on loopback where `local = true`, or without TLS
            where that needs `plain = true`; the error names the key.
    """
    if config.retention.jetstream is None:
        return
    seen: set[tuple[str, int]] = set()
    for index, entry in enumerate(config.retention.jetstream.servers):
        try:
            problem = _server_problem(parse_server(entry), config, seen)
        except ValueError as error:
            problem = f"is not the address of a NATS server: {error}"
        if problem:
            raise ConfigError(f"{entry!r} {problem}", key=f"retention.jetstream.servers[{index}]")


def check_topics(config: ConsumerConfig) -> None:
    """Check the limits of some topics.

    Raises:
        ConfigError: A pattern has a `*` that is not at its end, or servers drop the messages before an age;
            the error names the key.
    """
    retention = config.retention
    for index, table in enumerate(retention.topics):
        key = f"retention.topics[{index}]"
        if not is_pattern(table.match):
            problem = f"{table.match!r} has a * before its end: expected a topic, or its beginning and one *"
            raise ConfigError(problem, key=f"{key}.match")
        age, most = table.max_age_seconds, retention.max_age_seconds
        if retention.mode == "jetstream" and age is not None and age > most:
            problem = (
                f"with the mode jetstream the servers drop all messages after {most:g} seconds: expected at"
                " most that, or a larger max_age_seconds in [retention]"
            )
            raise ConfigError(problem, key=f"{key}.max_age_seconds")


def config_warnings(config: Config) -> list[str]:
    """Return a sentence about each setting that is allowed and unwise."""
    found = []
    if isinstance(config, ProducerConfig | ClientConfig) and unbalanced(len(config.consumers)):
        found.append(
            f"consumers: {len(config.consumers)} is a multiple of 31, by which the topic hash"
            " multiplies, so similar topics would share few consumers; use one more or one less"
        )
    if isinstance(config, ConsumerConfig):
        patterns = [table.match for table in config.retention.topics]
        for index, pattern in enumerate(patterns):
            # One that has a * behind it is matched as the topics are that begin with it.
            if before := [one for one in patterns[:index] if matches(one, pattern)]:
                found.append(
                    f"retention.topics[{index}]: {pattern!r} never holds, because {before[0]!r} before it"
                    " matches the same topics and the first table that matches holds; put it before that"
                )
    if isinstance(config, NodeConfig) and any(
        map(_is_exposed, config.listeners + config.proxy_listeners + config.page_listeners + config.peers)
    ):
        found.append(
            "plain: connections with other hosts go without TLS, and nothing protects them after the hello:"
            " whoever is on the way can read and change messages and add others, without any key;"
            " wss:// would protect them"
        )
    return found


def _address_lists(config: Config) -> list[tuple[str, str]]:
    """Return the keys of all lists of addresses, with the endpoint that the addresses end with."""
    if isinstance(config, ClientConfig):
        return [("producers", "/produce"), ("consumers", "/subscribe")]
    lists = [("listen", "")]
    if isinstance(config, ProducerConfig):
        lists.append(("consumers", "/producer"))
    lists.append(("proxy.listen", ""))
    return lists + [(f"monitoring.{key}", "") for key in ("listen", "consumers", "producers")]


def _is_exposed(address: Address) -> bool:
    """Return True if other hosts may be on the way to an address, and nothing protects what is sent there."""
    return not address.tls and not address.loopback


def _server_problem(address: Address, config: ConsumerConfig, seen: set[tuple[str, int]]) -> str:
    if (address.host, address.port) in seen:
        return "is listed twice: expected each address once"
    seen.add((address.host, address.port))
    if config.local and not address.loopback:
        return "is not on loopback, where `local = true` keeps a cluster: expected e.g. nats://127.0.0.1:4222"
    if not config.plain and _is_exposed(address):
        return (
            "leads to another host, and without TLS nothing protects what is sent there: expected tls://,"
            " or `plain = true` on a network that you trust"
        )
    return ""


def _address_problem(
    entry: str, endpoint: str, seen: set[Address], *, local: bool, protected: bool, connects: bool
) -> str:
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
    if protected and _is_exposed(address):
        way = "leads to another host" if connects else "can be reached from other hosts"
        return (
            f"{way}, and without TLS nothing protects what is sent there: expected wss://{entry},"
            " or `plain = true` on a network that you trust"
        )
    # Port 0 lets the system choose, so that two such addresses are two listeners.
    if address.socket or address.port:
        seen.add(place)
    return ""
