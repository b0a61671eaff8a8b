"""Configuration files: TOML, read once, frozen, refused as a whole when anything in them is wrong.

The pre-shared key (PSK) comes from the first of: `psk_file`, the systemd credential `psk`, and the
environment variable `WSQUEUE_PSK` (for development, with a warning). Several keys stand one a line: the
first is used, all are accepted. The nodes may have keys of their own: `node_psk_file`, credential `node_psk`.
"""

from __future__ import annotations

import difflib
import logging
import operator
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import msgspec
import tomli

from ..errors import ConfigError
from ..journal import log
from ..protocol.hello import Order, PreSharedKey
from ..protocol.routing import unbalanced
from .addresses import Address, expected_form, parse_address

logger = logging.getLogger(__name__)

DEFAULT_PSK = "pre-shared-key"
"""The original nodes' default, which everybody knows: refused unless `local = true`."""

MAX_FILE_BYTES = 1024 * 1024
"""A configuration file of 10,000 addresses has half of this; more is some other file."""

MAX_PSK_BYTES = 4096
"""Far above any key; more is some other file."""

READ_MARGIN_BYTES = 1024 * 1024
"""Above what one read (256 KiB) and a paused write buffer (256 KiB) hold, with frame headers and masks."""

MAX_KEYS = 8
"""Pre-shared keys that one file may hold: a rotation needs two, and each costs a hash for every hello."""

LogLevel = Literal["debug", "info", "warning", "error"]
RetentionMode = Literal["memory", "sqlite"]
Pages = Literal["none", "loopback", "all"]
ByteCount = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Connections = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
TopicBytes = Annotated[int, msgspec.Meta(ge=1, le=2600)]
"""Percent-encoded, 2,600 bytes become 7,800, which fit the 8,192 of a request line."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bound everything that a peer could make grow; docs/configuration.md gives the reasons."""

    max_message_bytes: ByteCount = 1024 * 1024
    max_topic_bytes: TopicBytes = 1024
    max_connections: Connections = 16_000
    max_buffered_bytes: ByteCount = 4 * 1024 * 1024
    max_held_bytes: ByteCount = 64 * 1024 * 1024
    hello_seconds: Seconds = 3.0
    close_seconds: Seconds = 3.0
    ping_interval_seconds: Seconds = 20.0
    ping_timeout_seconds: Seconds = 20.0
    reconnect_max_seconds: Seconds = 5.0
    drain_seconds: Seconds = 10.0

    def __post_init__(self) -> None:
        """Refuse a write buffer that one read's messages would overflow.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if self.max_buffered_bytes < self.max_message_bytes + READ_MARGIN_BYTES:
            least = f"max_message_bytes + {READ_MARGIN_BYTES}"
            raise ValueError(f"expected max_buffered_bytes to be at least {least}")


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Say how to prove who this end is, and whom to trust: PEM files, used at wss:// addresses.

    Attributes:
        certificate: Of this end, followed by those between it and the CA.
        key: Its private key.
        ca: Certificates to trust; without it, those of the system.
        client_certificates: Whether what connects must have a certificate of that CA too.
    """

    certificate: str | None = None
    key: str | None = None
    ca: str | None = None
    client_certificates: bool = False

    def __post_init__(self) -> None:
        """Refuse half of what is needed.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if (self.certificate is None) != (self.key is None):
            raise ValueError("expected both certificate and key, or neither")
        if self.client_certificates and self.ca is None:
            raise ValueError("client_certificates needs ca: expected the CA that signs them")


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Say what a consumer keeps of each topic, for subscribers that come (back) later.

    Attributes:
        mode: `memory` loses what it keeps when the consumer crashes, `sqlite` does not.
        directory: Where the log is, or with `memory` what is kept over a clean restart; without it,
            the state directory that systemd gives.
        max_bytes: Of all topics.
        max_bytes_per_topic: Of one.
        max_messages_per_topic: Of one.
        max_age_seconds: Older messages are dropped.
    """

    mode: RetentionMode = "memory"
    directory: str | None = None
    max_bytes: ByteCount = 64 * 1024 * 1024
    max_bytes_per_topic: ByteCount = 16 * 1024 * 1024
    max_messages_per_topic: Annotated[int, msgspec.Meta(ge=1, le=2**40)] = 1_000_000
    max_age_seconds: Annotated[float, msgspec.Meta(gt=0, le=10 * 366 * 86_400)] = 86_400.0


class Monitoring(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Say who may see how a node is, and where the other nodes are.

    Attributes:
        listen: Addresses for nothing but the pages of the node, which whoever reaches them may see.
        pages: Who may see status and metrics at the node's own addresses: nobody, who connects from this
            host, or all.
        consumers: All consumers of the cluster, in the order that all share; a producer knows those of
            its links.
        producers: All producers.
        top_topics: How many topics are named.
    """

    listen: list[str] = []
    pages: Pages = "loopback"
    consumers: list[str] = []
    producers: list[str] = []
    top_topics: Annotated[int, msgspec.Meta(ge=0, le=100)] = 10


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="role"):
    """Hold what all configurations have in common; a file is for one of its subclasses."""

    psk_file: str | None = None
    allow_classic: bool | None = None
    local: bool = False
    tls: Tls = Tls()
    limits: Limits = Limits()

    @property
    def peers(self) -> list[Address]:
        """Return the parsed addresses to connect to."""
        return []


class NodeConfig(Config, frozen=True, kw_only=True):
    """Hold what a producer and a consumer have in common."""

    listen: list[str]
    log_level: LogLevel = "info"
    node_psk_file: str | None = None
    monitoring: Monitoring = Monitoring()

    @property
    def listeners(self) -> list[Address]:
        """Return the parsed `listen`."""
        return [parse_address(text) for text in self.listen]

    @property
    def page_listeners(self) -> list[Address]:
        """Return the parsed `monitoring.listen`."""
        return [parse_address(text) for text in self.monitoring.listen]

    @property
    def all_consumers(self) -> list[Address]:
        """Return the addresses of the cluster's consumers in their order, as far as this node knows them."""
        return [parse_address(text) for text in self.monitoring.consumers]

    @property
    def all_producers(self) -> list[Address]:
        """Return the addresses of the cluster's producers, as far as this node knows them."""
        return [parse_address(text) for text in self.monitoring.producers]

    @property
    def peers(self) -> list[Address]:
        """Return the parsed addresses to connect to."""
        return self.all_consumers + self.all_producers


class ConsumerConfig(NodeConfig, frozen=True, kw_only=True, tag="consumer"):
    """Configure a consumer."""

    retention: Retention = Retention()


class ProducerConfig(NodeConfig, frozen=True, kw_only=True, tag="producer"):
    """Configure a producer."""

    consumers: list[str]
    hello_order: Order = Order.DOCUMENT

    @property
    def links(self) -> list[Address]:
        """Return the parsed `consumers`, in their order."""
        return [parse_address(text, "/producer") for text in self.consumers]

    @property
    def all_consumers(self) -> list[Address]:
        """Return the addresses of the cluster's consumers in their order: those of the links, or others."""
        return super().all_consumers or [address.with_path("") for address in self.links]

    @property
    def peers(self) -> list[Address]:
        """Return the parsed addresses to connect to."""
        return self.links + super().peers


class DemoConfig(Config, frozen=True, kw_only=True, tag="demo"):
    """Configure a client: `demo`, `verify`, `publish`, `subscribe` and the client library."""

    producers: list[str]
    consumers: list[str]
    hello_order: Order = Order.DOCUMENT

    @property
    def produce_addresses(self) -> list[Address]:
        """Return the parsed `producers`."""
        return [parse_address(text, "/produce") for text in self.producers]

    @property
    def subscribe_addresses(self) -> list[Address]:
        """Return the parsed `consumers`, in the order that the producers have too."""
        return [parse_address(text, "/subscribe") for text in self.consumers]

    @property
    def peers(self) -> list[Address]:
        """Return the parsed addresses to connect to."""
        return self.produce_addresses + self.subscribe_addresses


SomeConfig = TypeVar("SomeConfig", bound=Config)
SomeStruct = TypeVar("SomeStruct", bound=msgspec.Struct)


def load(file: str | Path, kind: type[SomeConfig]) -> SomeConfig:
    """Read and check a configuration file of one role.

    Raises:
        ConfigError: Something is wrong; it names the file, line, key and what is expected.
    """
    config = load_any(file)
    if not isinstance(config, kind):
        raise ConfigError(
            f"this file is for another role: expected {role_of(kind)!r}, found {role_of(type(config))!r}",
            file=str(file),
            line=_line_of(_read(Path(file), MAX_FILE_BYTES), "role"),
            key="role",
        )
    return config


def load_any(file: str | Path) -> Config:
    """Read and check a configuration file, whatever its role; a relative `psk_file` is beside it.

    Raises:
        ConfigError: Something is wrong; it names the file, line, key and what is expected.
    """
    text = _read(Path(file), MAX_FILE_BYTES)
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error.msg}", file=str(file), line=error.lineno) from None
    except (RecursionError, ValueError) as error:
        # Nested too deeply, or a number with too many digits.
        raise ConfigError(f"not TOML that Python can read: {error}", file=str(file)) from None
    try:
        config = msgspec.convert(document, ConsumerConfig | ProducerConfig | DemoConfig)
        check_addresses(config)
    except msgspec.ValidationError as error:
        key, problem = _explain(str(error))
        line = _line_of(text, key)
        raise ConfigError(problem, file=str(file), line=line, key=key) from None
    except ConfigError as error:
        line = _line_of(text, error.key)
        raise ConfigError(error.problem, file=str(file), line=line, key=error.key) from None
    return _beside(config, Path(file).parent)


def _beside(struct: SomeStruct, directory: Path) -> SomeStruct:
    """Return a configuration or a table of it whose relative paths are in a directory."""
    changes: dict[str, object] = {}
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, Tls | Retention):
            changes[name] = _beside(value, directory)
        elif name in _PATHS and value is not None:
            changes[name] = str(directory / value)
    return msgspec.structs.replace(struct, **changes)


_PATHS = ("psk_file", "node_psk_file", "certificate", "key", "ca", "directory")


def check_addresses(config: Config) -> None:
    """Check the lists of addresses of a configuration.

    Raises:
        ConfigError: A list is empty, or an address in it is malformed, there twice, or not on
            loopback where `local = true`; it names the key.
    """
    listening: set[Address] = set()
    own = config.listen if isinstance(config, NodeConfig) else []
    for key, endpoint in _address_lists(config):
        entries: list[str] = operator.attrgetter(key)(config)
        if not entries and not key.startswith("monitoring."):
            raise ConfigError(f"the list is empty: {expected_form(endpoint)}", key=key)
        # One listener cannot be both, and a node's lists of others are each complete.
        seen = listening if key.endswith("listen") else set()
        for index, entry in enumerate(entries):
            connects = not key.endswith("listen")
            problem = _address_problem(entry, endpoint, seen, local=config.local, connects=connects)
            if not problem and key == "monitoring.listen" and entry in own:
                problem = "is in listen too: expected an address of its own"
            if not problem and key.endswith("listen") and config.tls.certificate is None and "wss:" in entry:
                problem = "needs a certificate: expected the table [tls] with certificate and key"
            if problem:
                raise ConfigError(f"{entry!r} {problem}", key=f"{key}[{index}]")


def warnings(config: Config) -> list[str]:
    """Return what is allowed and unwise, a sentence each."""
    found = []
    if isinstance(config, ProducerConfig | DemoConfig) and unbalanced(len(config.consumers)):
        found.append(
            f"consumers: {len(config.consumers)} is a multiple of 31, by which the topic hash"
            " multiplies, so similar topics would share few consumers; use one more or one less"
        )
    if isinstance(config, NodeConfig):
        found += [
            f"listen: {address} can be reached from elsewhere, and what travels there can be read;"
            " wss:// would protect it"
            for address in config.listeners + config.page_listeners
            if not address.tls and not address.loopback
        ]
    return found


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


def read_file(path: Path, limit: int) -> bytes:
    """Return the bytes of a file.

    Raises:
        ConfigError: It cannot be read or is too large.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", file=str(path)) from None
    except ValueError as error:
        # A NUL in the name.
        raise ConfigError(f"cannot read it: {error}", file=str(path)) from None
    if len(content) > limit:
        raise ConfigError(f"the file has more than {limit} bytes", file=str(path))
    return content


def _read(path: Path, limit: int) -> str:
    try:
        return read_file(path, limit).decode()
    except UnicodeDecodeError:
        raise ConfigError("the file is not UTF-8", file=str(path)) from None


def _address_lists(config: Config) -> list[tuple[str, str]]:
    if isinstance(config, DemoConfig):
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
        return "is there twice: expected each address once"
    if connects and not address.socket and not address.port:
        return "has no port to connect to: expected 1 to 65535"
    if local and not address.loopback:
        return "is not on loopback, where `local = true` keeps a cluster: expected e.g. 127.0.0.1"
    # Port 0 lets the system choose, so two of them are two listeners.
    if address.socket or address.port:
        seen.add(place)
    return ""


def role_of(kind: type[Config]) -> str:
    """Return the `role` of a kind of configuration."""
    return str(kind.__struct_config__.tag)


def _explain(error: str) -> tuple[str, str]:
    """Turn msgspec's message into the key and the problem."""
    match = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$\.?(.*)`)?", error, re.DOTALL)
    problem, key = (match[1], match[2] or "") if match else (error, "")
    if field := re.fullmatch(r"Object missing required field `(.+)`", problem):
        return f"{key}.{field[1]}".lstrip("."), "required and missing"
    if field := re.fullmatch(r"Object contains unknown field `(.+)`", problem):
        known = _TABLES[key].__struct_fields__ if key in _TABLES else _ALL_KEYS
        near = difflib.get_close_matches(field[1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        return f"{key}.{field[1]}".lstrip("."), f"unknown key: {hint}"
    if key in _CHOICES:
        problem += f": expected one of {', '.join(_CHOICES[key])}"
    return key, problem.replace("`", "").replace("Expected", "expected")


_CHOICES: dict[str, tuple[str, ...]] = {
    "role": ("consumer", "producer", "demo"),
    "log_level": get_args(LogLevel),
    "retention.mode": get_args(RetentionMode),
    "monitoring.pages": get_args(Pages),
    "hello_order": tuple(order.value for order in Order),
}

_TABLES: dict[str, type[msgspec.Struct]] = {
    "limits": Limits,
    "tls": Tls,
    "retention": Retention,
    "monitoring": Monitoring,
}

_ALL_KEYS = tuple(
    dict.fromkeys(
        field
        for kind in (ConsumerConfig, ProducerConfig, DemoConfig)
        for field in ("role", *kind.__struct_fields__)
    )
)


def _line_of(text: str, key: str) -> int | None:
    """Return the line of `name`, `table.name` or `name[index]` in a TOML text, from 1.

    tomli gives lines for syntax errors only. What this finds is where the key is assigned; for an
    item of a list, the line of the item; for a key in an inline table, the line of the table.
    """
    name, _, index = key.rstrip("]").partition("[")
    table, _, leaf = name.rpartition(".")
    here = re.compile(rf"\s*{_quoted(leaf)}\s*=")
    elsewhere = re.compile(rf"\s*{_quoted(name)}\s*[.=]|\s*{_quoted(table or name)}\s*[.=]")
    current = ""
    # Not splitlines(), which takes more characters than TOML for the end of a line.
    for number, line in enumerate(text.split("\n"), 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            current = header[1].strip("\"'")
        if (current == table and here.match(line)) or (not current and elsewhere.match(line)):
            return _line_of_item(text, number, int(index)) if index.isdigit() else number
        if current == name:
            return number
    return None


def _quoted(key: str) -> str:
    return rf"[\"']?{re.escape(key)}[\"']?"


_TOKEN = re.compile(
    r"#[^\n]*"
    r'|"{3}(?:\\.|[^\\])*?"{3}'
    r"|'{3}.*?'{3}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|[^\s,\[\]#\"']+",
    re.DOTALL,
)
"""A comment, a string in one of TOML's four forms, or another value in a list."""


def _line_of_item(text: str, first: int, index: int) -> int:
    """Return the line of an item of the list that is assigned on line `first`."""
    lines = text.split("\n")
    rest = "\n".join(lines[first - 1 :])
    values = [token for token in _TOKEN.finditer(rest, rest.index("=") + 1) if token[0][0] != "#"]
    return first + rest.count("\n", 0, values[index].start())
