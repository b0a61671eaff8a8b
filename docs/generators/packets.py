"""Write the table of the fields of packets in docs/protocol.md: `python -m docs.generators.packets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from wsqueue.protocol import v2
from wsqueue.protocol.packed import Packed

FILE = Path(__file__).parent.parent.parent / "docs" / "protocol.md"
BEGIN, END = "<!-- packets -->\n", "<!-- /packets -->\n"

PARTS: dict[type, str] = {Packed: "*messages*", v2.TopicEntry: "*topic*", v2.NameEntry: "*name*"}
"""The maps in packets, and their names in the table."""

MAX_NUMBER = "2⁵³ \N{MINUS SIGN} 1"


def table() -> str:
    """Return the table: a row for each field of each packet, and of the maps in packets."""
    lines = ["| packet | field | type | default |", "|---|---|---|---|"]
    for struct in v2.PACKETS:
        lines += _rows(struct, f"`{struct.__struct_config__.tag}`")
    for struct, name in PARTS.items():
        lines += _rows(struct, name)
    return "\n".join(lines) + "\n"


def _rows(struct: type[msgspec.Struct], name: str) -> Iterator[str]:
    fields = inspect.type_info(struct)
    assert isinstance(fields, inspect.StructType)
    for field in fields.fields:
        default = "required" if field.required else _value(field.default)
        yield f"| {name} | `{field.encode_name}` | {_type(field.type)} | {default} |"
        name = ""


def _value(default: object) -> str:
    return "none" if default is None else f"`{str(default).lower()}`"


def _type(kind: inspect.Type) -> str:  # noqa: C901, PLR0911 - one case for each type
    """Return a type of MessagePack and its bounds in words."""
    match kind:
        case inspect.UnionType(types):
            return " or ".join(map(_type, types))
        case inspect.StructType(cls):
            return PARTS[cls]
        case inspect.IntType(ge=least, le=most):
            return f"integer, {_bounds(least, most)}"
        case inspect.FloatType(ge=least, le=most):
            return f"float or integer, {_bounds(least, most)}"
        case inspect.StrType(min_length=least, max_length=most):
            return _sized("string", "characters", least, most)
        case inspect.BytesType(min_length=least, max_length=most):
            return _sized("bin", "bytes", least, most)
        case inspect.LiteralType(values):
            return "string: " + ", ".join(f"`{value}`" for value in values)
        case inspect.ListType(item, min_length=least, max_length=most):
            each = _type(item)
            each = f"({each})" if isinstance(item, inspect.UnionType) else each
            length = f"{least} to {most}" if most else f"at least {least}" if least else ""
            return f"array of {each}" + (f"; {length}" if length else "")
        case inspect.TupleType(items):
            return f"[{'; '.join(map(_type, items))}]"
        case inspect.DictType(key, value, max_length=most):
            return f"map of at most {most} fields: {_type(key)}, to {_type(value)}"
    return {inspect.NoneType: "nil", inspect.BoolType: "boolean", inspect.MemoryViewType: "bin"}[type(kind)]


def _bounds(least: Any, most: Any) -> str:
    most = MAX_NUMBER if most == v2.MAX_NUMBER else most
    return f"at least {least}" if most is None else f"{least} to {most}"


def _sized(kind: str, unit: str, least: int | None, most: int | None) -> str:
    if most is None:
        return kind
    size = f"{most}" if least == most else f"{least} to {most}" if least else f"at most {most}"
    return f"{kind} of {size} {unit}"


def text() -> str:
    """Return the contents of the file."""
    before, _, rest = FILE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write the file."""
    FILE.write_text(text())


if __name__ == "__main__":
    main()
