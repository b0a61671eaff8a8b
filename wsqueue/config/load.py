"""Load configuration files; an error names the file, the line, the key and the expected value."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TypeVar, get_args

import msgspec
import tomli

from ..errors import ConfigError
from ..protocol.keys import Order
from .check import check_addresses
from .model import (
    ClientConfig,
    Config,
    ConsumerConfig,
    Limits,
    LogLevel,
    Monitoring,
    Pages,
    ProducerConfig,
    Retention,
    RetentionMode,
    Tls,
    role_of,
)

MAX_FILE_BYTES = 1024 * 1024
"""A configuration file of 10,000 addresses has half of this; more is some other file."""

SomeConfig = TypeVar("SomeConfig", bound=Config)

SomeStruct = TypeVar("SomeStruct", bound=msgspec.Struct)


def load_config(file: str | Path, kind: type[SomeConfig]) -> SomeConfig:
    """Read and check a configuration file of one role.

    Raises:
        ConfigError: Something is wrong; it names the file, line, key and what is expected.
    """
    config = load_any_config(file)
    if not isinstance(config, kind):
        raise ConfigError(
            f"this file is for another role: expected {role_of(kind)!r}, found {role_of(type(config))!r}",
            file=str(file),
            line=_line_of(_read(Path(file), MAX_FILE_BYTES), "role"),
            key="role",
        )
    return config


def load_any_config(file: str | Path) -> Config:
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
        config = msgspec.convert(document, ConsumerConfig | ProducerConfig | ClientConfig)
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
        for kind in (ConsumerConfig, ProducerConfig, ClientConfig)
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
