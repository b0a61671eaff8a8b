"""Configurations written as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def write_toml(
    file: Path, settings: Mapping[str, object], limits: Mapping[str, object] | None = None
) -> None:
    """Write a configuration; a setting that is a mapping is a table. TOML has JSON's syntax for values."""
    lines = []
    for key, value in {**settings, "limits": limits or {}}.items():
        if isinstance(value, Mapping):
            lines += [f"{key}.{name} = {json.dumps(each)}\n" for name, each in value.items()]
        else:
            lines.append(f"{key} = {json.dumps(value)}\n")
    file.write_text("".join(lines))
