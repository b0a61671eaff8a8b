"""Write docs/protocol.schema.json, the JSON Schema of all packets: `python -m docs.generators.schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from wsqueue.protocol import classic, v2

FILE = Path(__file__).parent.parent.parent / "docs/protocol.schema.json"
CLASSIC: tuple[type[msgspec.Struct], ...] = (
    classic.Hello,
    classic.Message,
    classic.Subscribe,
    classic.Unsubscribe,
)

STRINGS = {"type": "array", "items": {"type": "string"}}


def schema() -> dict[str, Any]:
    """Return the schema of any packet; those of one protocol are in `$defs`, as `classic` and `v2`."""
    definitions: dict[str, Any] = {}
    for protocol, structs in (("classic", CLASSIC), ("v2", v2.PACKETS)):
        references, components = msgspec.json.schema_components(
            structs, ref_template=f"#/$defs/{protocol}.{{name}}"
        )
        definitions[protocol] = {"anyOf": list(references)}
        for name, component in components.items():
            summary = component["description"].partition("\n")[0]
            definitions[f"{protocol}.{name}"] = component | {"description": summary}
    _add_rules(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The packets of wsqueue: see protocol.md",
        "anyOf": [{"$ref": "#/$defs/classic"}, {"$ref": "#/$defs/v2"}],
        "$defs": definitions,
    }


def _add_rules(definitions: dict[str, Any]) -> None:
    """Add rules that the types of the fields can't express."""
    definitions["classic.Hello"]["oneOf"] = [
        {"required": ["o"], "properties": {"o": {"type": "integer"}}},
        {"required": ["a"], "properties": {"a": {"type": "string"}}},
    ]
    definitions["v2.Subscribe"]["allOf"] = [_goes_with("offset", "integer"), _goes_with("time", "number")]
    # Passed on unread, and refused by the consumer where it is anything else.
    definitions["v2.Publish"]["properties"]["data"] = STRINGS


def _goes_with(start: str, kind: str) -> dict[str, Any]:
    return {
        "if": {"required": ["start"], "properties": {"start": {"const": start}}},
        "then": {"required": [start], "properties": {start: {"type": kind}}},
        "else": {"properties": {start: {"type": "null"}}},
    }


def text() -> str:
    """Return the contents of the file."""
    return json.dumps(schema(), indent=2) + "\n"


def main() -> None:
    """Write the file."""
    FILE.write_text(text())


if __name__ == "__main__":
    main()
