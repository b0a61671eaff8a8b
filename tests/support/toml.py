"""Configurations written as TOML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path


def write_toml(
    file: Path, settings: Mapping[str, object], limits: Mapping[str, object] | None = None
) -> None:
    """Write a configuration; a setting that is a mapping is a table. TOML has JSON's syntax for values."""
    file.write_text("".join(_lines({**settings, "limits": limits or {}}, "")))


def _lines(settings: Mapping[str, object], table: str) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{table}{key}.")
        else:
            yield f"{table}{key} = {_value(value)}\n"


def _value(value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        tables = (", ".join(f"{key} = {json.dumps(item)}" for key, item in one.items()) for one in value)
        return f"[{', '.join(f'{{{table}}}' for table in tables)}]"
    return json.dumps(value)
