"""Changes of the JSON in an input: bytes changed by chance would seldom get past the first brace."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

import atheris

OBJECT = re.compile(rb"\{[^\n]*\}")
"""An object on a line of its own, or behind bytes that choose something."""

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

MOST_CHANGES = 4


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Return an input with changes in its JSON, or whatever libFuzzer makes of it."""
    rng = random.Random(seed)
    found = list(OBJECT.finditer(data))
    if not found or rng.random() < 0.3:
        return bytes(atheris.Mutate(data, max_size))
    place = rng.choice(found)
    try:
        document = json.loads(place[0])
    except (ValueError, RecursionError):
        return bytes(atheris.Mutate(data, max_size))
    for _ in range(rng.randint(1, MOST_CHANGES)):
        change(document, rng)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1:
        # The same key twice, which decoders take differently.
        text = text.replace("{", json.dumps({rng.choice("tdsoa"): rng.choice(VALUES)})[:-1] + ",", 1)
    new = data[: place.start()] + text.encode(errors="surrogatepass") + data[place.end() :]
    return new[:max_size]


def change(document: Any, rng: random.Random) -> None:
    """Change one place of a document: set, remove, rename or repeat something."""
    inside = [document]
    for value in inside:
        children = value.values() if isinstance(value, dict) else value
        inside += [child for child in children if isinstance(child, dict | list)]
    where = rng.choice(inside)
    keys = list(where) if isinstance(where, dict) else list(range(len(where)))
    if not keys:
        if isinstance(where, list):
            where.append(copy.deepcopy(rng.choice(VALUES)))
        return
    key, way = rng.choice(keys), rng.random()
    if way < 0.5:
        where[key] = copy.deepcopy(rng.choice(VALUES))
    elif way < 0.65:
        del where[key]
    elif isinstance(where, list):
        where.insert(key, copy.deepcopy(where[key]))
    elif way < 0.8:
        where[rng.choice([*keys, "x", ""])] = where.pop(key)
    elif isinstance(where[key], str) and where[key]:
        position = rng.randrange(len(where[key]))
        where[key] = (
            where[key][:position] + rng.choice(["", "\x00", "é", "\ud800"]) + where[key][position + 1 :]
        )
    elif isinstance(where[key], int | float):
        where[key] += rng.choice([-1, 1, 0.5])
