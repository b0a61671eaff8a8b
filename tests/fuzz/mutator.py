"""Changes of the JSON and MessagePack in an input: bytes changed by chance would seldom get far in them."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

import atheris
import msgspec

OBJECT = re.compile(rb"\{[^\n\xc1]*\}")
"""A JSON object on a line of its own, behind bytes that choose something, or in `session.BETWEEN`."""

MAP = re.compile(rb"[\x81-\x8f][\xa0-\xbf][^\xc1]*", re.DOTALL)
"""The same for a map of MessagePack with a few short strings as keys."""

VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        "",
        [],
        {},
        0,
        1,
        -1,
        2**31 - 1,
        2**53 - 1,
        2**53,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63),
    ),
    *(0.5, 1e308, -0.0, "\x00", "\x1b[2J", "\u202e", "ünï😀", "a" * 300, [[]], "A" * 43 + "=", float("inf")),
)
"""Values at the edges of types, and beyond."""

PACKED_VALUES: tuple[Any, ...] = (
    *(value for value in VALUES if value != 2**64),
    *(
        b"",
        b"\xff",
        bytes(32),
        b"a" * 300,
        2**64 - 1,
        float("nan"),
        msgspec.msgpack.Ext(-1, bytes(4)),
        {1: b"\0"},
    ),
    *(
        {"sizes": [1], "data": b"a"},
        {"sizes": [1], "data": b"\xff", "text": False},
        [{"k": "v"}],
        [None],
        [0, 1],
    ),
)
"""The same of MessagePack."""

MOST_CHANGES = 4


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Return an input with changes in one of its documents, or whatever libFuzzer makes of it."""
    rng = random.Random(seed)
    found = [*OBJECT.finditer(data), *MAP.finditer(data)]
    if not found or rng.random() < 0.3:
        return bytes(atheris.Mutate(data, max_size))
    place = rng.choice(found)
    changed = changed_json(place[0], rng) if place.re is OBJECT else changed_map(place[0], rng)
    if changed is None:
        return bytes(atheris.Mutate(data, max_size))
    return (data[: place.start()] + changed + data[place.end() :])[:max_size]


def changed_json(text: bytes, rng: random.Random) -> bytes | None:
    """Return an object with changes, None if it is none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for _ in range(rng.randint(1, MOST_CHANGES)):
        change(document, rng, VALUES)
    changed = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1:
        # The same key twice, which decoders take differently.
        changed = changed.replace("{", json.dumps({rng.choice("tdsoa"): rng.choice(VALUES)})[:-1] + ",", 1)
    return changed.encode(errors="surrogatepass")


def changed_map(payload: bytes, rng: random.Random) -> bytes | None:
    """Return a map with changes, None if it is none, or has become none."""
    try:
        document = msgspec.msgpack.decode(payload)
        for _ in range(rng.randint(1, MOST_CHANGES)):
            change(document, rng, PACKED_VALUES)
        changed = msgspec.msgpack.encode(document)
        again = msgspec.msgpack.encode(rng.choice([*document, "x"]))
        again += msgspec.msgpack.encode(rng.choice(PACKED_VALUES))
    except (msgspec.DecodeError, UnicodeError, ValueError, TypeError, OverflowError, RecursionError):
        return None
    if rng.random() < 0.1 and 0x80 <= changed[0] < 0x8F:
        changed = bytes([changed[0] + 1]) + rng.choice([again + changed[1:], changed[1:] + again])
    return changed


def change(document: Any, rng: random.Random, values: tuple[Any, ...]) -> None:
    """Change one place of a document: set, remove, rename or repeat something."""
    inside = [document]
    for value in inside:
        children = value.values() if isinstance(value, dict) else value
        inside += [child for child in children if isinstance(child, dict | list)]
    where = rng.choice(inside)
    keys = list(where) if isinstance(where, dict) else list(range(len(where)))
    if not keys:
        if isinstance(where, list):
            where.append(copy.deepcopy(rng.choice(values)))
        return
    key, way = rng.choice(keys), rng.random()
    if way < 0.5:
        where[key] = copy.deepcopy(rng.choice(values))
    elif way < 0.65:
        del where[key]
    elif isinstance(where, list):
        where.insert(key, copy.deepcopy(where[key]))
    elif way < 0.8:
        where[rng.choice([*keys, "x", ""])] = where.pop(key)
    elif isinstance(where[key], str | bytes) and where[key]:
        where[key] = with_another_character(where[key], rng)
    elif isinstance(where[key], int | float):
        where[key] += rng.choice([-1, 1, 0.5])


def with_another_character(text: str | bytes, rng: random.Random) -> str | bytes:
    """Return a string in which something has taken the place of a character, or of a byte."""
    place = rng.randrange(len(text))
    if isinstance(text, bytes):
        return text[:place] + rng.choice([b"", b"\x00", b"\xc3", b"\xff"]) + text[place + 1 :]
    return text[:place] + rng.choice(["", "\x00", "é", "\ud800"]) + text[place + 1 :]
