"""Load configuration files; an error names the file, the line, the key and the expected value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, get_args

import msgspec
import tomli

from ..errors import ConfigError
from ..protocol.keys import Order
from .check import (
    check_addresses,
    check_clients,
    check_http_proxy,
    check_identity,
    check_proxy,
    check_servers,
    check_sites,
    check_topics,
)
from .files import read_text
from .model import (
    ClientConfig,
    Config,
    ConsumerConfig,
    JetStream,
    Limits,
    LogLevel,
    Monitoring,
    NamedClient,
    NodeConfig,
    PageAudience,
    ProducerConfig,
    Proxy,
    Replicas,
    Retention,
    RetentionMode,
    Tls,
    TopicRetention,
    role_of,
)

MAX_FILE_BYTES = 1024 * 1024
"""Maximum size of a configuration: 10,000 addresses take half of it; a larger file is something else."""

ConfigT = TypeVar("ConfigT", bound=Config)
StructT = TypeVar("StructT", bound=msgspec.Struct)

_PATHS = (
    "psk_file",
    "node_psk_file",
    "key_file",
    "token_file",
    "certificate",
    "key",
    "ca",
    "directory",
    "password_file",
    "credentials_file",
)
"""Keys whose values are paths, relative to the configuration file."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "role": ("consumer", "producer", "demo"),
    "log_level": get_args(LogLevel),
    "retention.mode": get_args(RetentionMode),
    "retention.jetstream.replicas": tuple(map(str, get_args(Replicas))),
    "monitoring.pages": get_args(PageAudience),
    "hello_order": tuple(order.value for order in Order),
}

_TABLES: dict[str, type[msgspec.Struct]] = {
    "limits": Limits,
    "tls": Tls,
    "retention": Retention,
    "retention.jetstream": JetStream,
    "retention.topics": TopicRetention,
    "monitoring": Monitoring,
    "clients": NamedClient,
    "proxy": Proxy,
}

_KINDS: tuple[type[Config], ...] = (ConsumerConfig, ProducerConfig, ClientConfig)

_ALL_KEYS = tuple(dict.fromkeys(field for kind in _KINDS for field in ("role", *kind.__struct_fields__)))


def load_config(file: str | Path, kind: type[ConfigT]) -> ConfigT:
    """Read and check a configuration file of one role.

    Raises:
        ConfigError: The file is wrong; the error names the file, line, key and expected value.
    """
    config = load_any_config(file)
    if not isinstance(config, kind):
        raise ConfigError(
            f"this file is for another role: expected {role_of(kind)!r}, found {role_of(type(config))!r}",
            file=str(file),
            line=_line_of(read_text(Path(file), MAX_FILE_BYTES), "role"),
            key="role",
        )
    return config


def load_any_config(file: str | Path) -> Config:
    """Read and check a configuration file of any role; paths in it are relative to the file.

    Raises:
        ConfigError: The file is wrong; the error names the file, line, key and expected value.
    """
    text = read_text(Path(file), MAX_FILE_BYTES)
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error.msg}", file=str(file), line=error.lineno) from None
    except (RecursionError, ValueError) as error:
        # Nested too deeply, or a number with too many digits.
        raise ConfigError(f"not TOML that Python can read: {error}", file=str(file)) from None
    try:
        config = msgspec.convert(document, ConsumerConfig | ProducerConfig | ClientConfig)
        check_addresses(config)
        if isinstance(config, NodeConfig):
            check_sites(config)
            check_clients(config)
            check_proxy(config)
        if isinstance(config, ClientConfig):
            check_identity(config)
            check_http_proxy(config)
        if isinstance(config, ConsumerConfig):
            check_servers(config)
            check_topics(config)
    except msgspec.ValidationError as error:
        key, problem = _explain(str(error))
    except ConfigError as error:
        key, problem = error.key, error.problem
    else:
        return _beside(config, Path(file).parent)
    raise ConfigError(problem, file=str(file), line=_line_of(text, key), key=key)


def _beside(struct: StructT, directory: Path) -> StructT:
    """Return a configuration or one of its tables with relative paths joined to a directory."""
    changes: dict[str, object] = {}
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, Tls | Retention | JetStream):
            changes[name] = _beside(value, directory)
        elif name == "clients":
            changes[name] = [_beside(client, directory) for client in value]
        elif name in _PATHS and value is not None:
            changes[name] = str(directory / value)
    return msgspec.structs.replace(struct, **changes)


def _explain(error: str) -> tuple[str, str]:
    """Return the key and the problem from msgspec's message."""
    match = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$\.?(.*)`)?", error, re.DOTALL)
    problem, key = (match[1], match[2] or "") if match else (error, "")
    if field := re.fullmatch(r"Object missing required field `(.+)`", problem):
        return f"{key}.{field[1]}".lstrip("."), "required and missing"
    if field := re.fullmatch(r"Object contains unknown field `(.+)`", problem):
        table = key.partition("[")[0]
        known = _TABLES[table].__struct_fields__ if table in _TABLES else _ALL_KEYS
        return f"{key}.{field[1]}".lstrip("."), f"unknown key: {_hint(field[1], known)}"
    if key in _CHOICES:
        problem += f": expected one of {', '.join(_CHOICES[key])}"
    return key, problem.replace("`", "").replace("Expected", "expected")


def _hint(unknown: str, known: Sequence[str]) -> str:
    """Return the keys that may have been meant."""
    if unknown in known:
        roles = [role_of(kind) for kind in _KINDS if unknown in kind.__struct_fields__]
        return f"expected only for role {' or '.join(roles)}"
    near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


def _line_of(text: str, key: str) -> int | None:
    """Return the line, from 1, on which `name`, `table.name` or `name[index]` is assigned in a TOML text.

    tomli gives lines for syntax errors only. For an item of a list it is the line of the list, and for a key
    in an inline table the line of the table.
    """
    if of_tables := re.fullmatch(r"([\w.]+)\[(\d+)\](?:\.(\w+).*)?", key):
        return _line_in_tables(text, of_tables[1], int(of_tables[2]), of_tables[3] or "")
    name = key.partition("[")[0]
    table, _, leaf = name.rpartition(".")
    here = re.compile(rf"\s*{_quoted(leaf)}\s*=")
    elsewhere = re.compile(rf"\s*{_quoted(name)}\s*[.=]|\s*{_quoted(table or name)}\s*[.=]")
    current = ""
    # Not splitlines(), because TOML has fewer line ends than Python.
    for number, line in enumerate(text.split("\n"), 1):
        if header := re.match(r"\s*\[{1,2}\s*([^\[\]]+?)\s*\]", line):
            current = header[1].strip("\"'")
        if (current == table and here.match(line)) or (not current and elsewhere.match(line)):
            return number
        if current == name:
            return number
    return None


def _line_in_tables(text: str, name: str, index: int, leaf: str) -> int | None:
    """Return the line of a key in one of the tables `[[name]]`, or of the table, or of an inline list."""
    here = re.compile(rf"\s*{_quoted(leaf)}\s*=") if leaf else None
    count, found = -1, None
    for number, line in enumerate(text.split("\n"), 1):
        if re.match(rf"\s*\[\[\s*{_quoted(name)}\s*\]\]", line):
            count += 1
            found = number if count == index else found
        elif count == index and re.match(r"\s*\[", line):
            break
        elif count == index and here is not None and here.match(line):
            return number
    return found or _line_of(text, name)


def _quoted(key: str) -> str:
    return rf"[\"']?{re.escape(key)}[\"']?"
