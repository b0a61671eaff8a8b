"""The memory that an object holds, so that a target can bound it."""

from __future__ import annotations

import gc
import sys
from types import BuiltinFunctionType, FunctionType, ModuleType

SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType)
"""Objects that belong to the program and not to one connection."""


def held_bytes(root: object) -> int:
    """Return the bytes of an object and of everything that it alone refers to."""
    seen: set[int] = set()
    waiting = [root]
    total = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, SHARED):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        waiting += gc.get_referents(one)
    return total
