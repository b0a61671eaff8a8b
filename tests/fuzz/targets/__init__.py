"""The parts that are fuzzed, a module each.

Each has `check`, which takes any bytes and returns when all is well; `seeds`, good bytes to begin with; and
`WORDS`, which the fuzzer puts in. An exception is a finding, and so is a call that takes long or much memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("archive", "configuration", "framing", "keys", "packets", "reports", "session")

CORPUS = Path(__file__).parent.parent / "corpus"
"""A folder for each target: inputs that led somewhere new, and all that have ever failed."""


def module(name: str) -> Any:
    """Return the module of a target."""
    return importlib.import_module(f"{__name__}.{name}")


def inputs(name: str) -> Iterator[bytes]:
    """Yield the seeds of a target, and the inputs in its folder."""
    yield from module(name).seeds()
    for file in sorted((CORPUS / name).glob("*")):
        yield file.read_bytes()
